//! From the bytes of an API call to sends of valid shape, or to **every** problem of the call at once.
//!
//! The call is read through borrowed raw values: `data` keeps its own bytes, as they stand in the call, so that a
//! signature over them holds. Keys that are read here (a send's own, those of `headers`, `params`, `auth` and
//! `context`) may stand once: parsers differ on which of two counts. Where a URL points is never a problem of
//! shape: a refused URL becomes [`Target::Refused`]. No message repeats a value that may be secret.

mod event;
mod members;
mod problems;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, header};
use serde::de::Error as _;
use serde_json::value::RawValue;

pub use self::event::{BATCHES_TABLE, REFUSED_TABLE};
pub(crate) use self::members::{Members, ValueKind, elements, text};
pub(crate) use self::problems::{At, Problems};
pub use self::problems::{Fault, ShapeProblem};
use super::body::{self, Body};
use super::email::{Email, Letter};
use super::headers::{self, Headers};
use super::{
    Context, Event, ExecutionId, Explained, HeaderLines, HttpRequest, Method, SendSpec, Spelling, Target, To, params,
};
use crate::config::S3Settings;
use crate::config::file::closest;
use crate::limits;
use crate::policy::url::without_userinfo;
use crate::policy::{CheckedUrl, Denial, Destination};
use crate::redact::Hide;

/// What a call may be at most, and where its tenant's sends may go beside URLs: part of the configuration.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Bytes of one send's body.
    pub request_body: u64,
    pub sends_per_request: u32,
    pub mail: Mail,
    /// `None`: it is not set up.
    pub s3: Option<Arc<S3Settings>>,
    pub sql: Sql,
}

/// Where the tenant's mail goes.
#[derive(Clone, Debug)]
pub enum Mail {
    /// There is no relay.
    NotSetUp,
    /// There is one, and this tenant has no address.
    NoAddress,
    Relay(Destination),
}

impl Mail {
    /// The relay; or what is missing, and what to do about it.
    pub fn relay(&self) -> Result<&Destination, (&'static str, &'static str)> {
        match self {
            Self::Relay(relay) => Ok(relay),
            Self::NotSetUp => Err((
                "this node's operator has not set mail up",
                "ask the operator for [destination.email], or send to a URL",
            )),
            Self::NoAddress => Err((
                "this tenant has no mail address, and mail goes nowhere else",
                "ask the operator to give the [[tenant]] its email",
            )),
        }
    }
}

/// Where the tenant's events for tables go.
#[derive(Clone, Debug)]
pub enum Sql {
    NotSetUp,
    /// There is a database, and no schema of this tenant's.
    NoSchema(&'static str),
    Server(Destination),
}

impl Sql {
    /// What is connected to; or what is missing, and what to do about it.
    pub fn way(&self) -> Result<&Destination, (&'static str, &'static str)> {
        match self {
            Self::Server(server) => Ok(server),
            Self::NotSetUp => Err((
                "this node's operator has not set SQL up",
                "ask the operator for [destination.sql], or send to a URL",
            )),
            Self::NoSchema(why) => Err((why, "ask the operator to name this tenant in a [[tenant]]")),
        }
    }
}

/// A call of valid shape.
#[derive(Debug, PartialEq, Eq)]
pub enum Call {
    One(Box<SendSpec>),
    Many(Vec<SendSpec>),
}

/// Reads a whole call. `held_by`: the execution that the call's path names, if it does.
pub fn call(
    raw: &Bytes,
    bounds: &Bounds,
    hide: Hide<'_>,
    held_by: Option<&ExecutionId>,
) -> Result<Call, Vec<ShapeProblem>> {
    let mut problems = Problems::default();
    let Some(json) = whole(raw, &mut problems) else { return Err(problems.into_list()) };
    let reading = CallReader { raw, bounds, hide, held_by };
    let call = match ValueKind::of(json) {
        ValueKind::Object => reading.send(json, At::Root, &mut problems).map(|send| Call::One(Box::new(send))),
        ValueKind::Array => reading.sends(json, &mut problems).map(Call::Many),
        other => {
            problems.add(
                At::Root,
                format!("the body is {}; it must be one send (an object) or an array of sends", other.name()),
                None,
            );
            None
        }
    };
    match call {
        Some(call) if problems.is_empty() => Ok(call),
        _ => Err(problems.into_list()),
    }
}

/// What the body of a resend supplies beside the original.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Supplied {
    /// From `auth`: the whole value of `authorization`.
    pub authorization: Option<HeaderValue>,
    pub headers: HeaderLines,
    pub spelling: Spelling,
    pub dropped_headers: Vec<String>,
    pub body: Option<Body>,
    /// In place of all of these, where the original is a message.
    pub email: Option<Email>,
    /// The same of an event.
    pub event: Option<Event>,
}

/// Reads the body of a resend; an empty one, or `null`, supplies nothing.
pub fn supplied(raw: &Bytes, bounds: &Bounds, content_type: Option<&str>) -> Result<Supplied, Vec<ShapeProblem>> {
    let mut problems = Problems::default();
    if matches!(raw.trim_ascii(), b"" | b"null") {
        return Ok(Supplied::default());
    }
    let Some(json) = whole(raw, &mut problems) else { return Err(problems.into_list()) };
    let Some(members) =
        Members::expect(json, At::Root, "it must be an object with what the original lacks", &mut problems)
    else {
        return Err(problems.into_list());
    };
    const KNOWN: [&str; 7] = ["auth", "headers", "data", "data_base64", "email", "s3", "sql"];
    let values = known(&members, &KNOWN, At::Root, &mut problems, |key| {
        matches!(key, "method" | "url" | "params" | "context" | "expires_in")
            .then_some("a resend repeats the original request; submit a new send to change it")
    });
    let [auth, headers_value, data, data_base64, email, s3, sql] = values;
    let s3 = s3.and_then(|value| event::read_s3(value, At::Key(&At::Root, "s3"), bounds, &mut problems));
    let sql = sql.and_then(|value| event::read_sql(value, At::Key(&At::Root, "sql"), bounds, &mut problems));
    let event = s3.or(sql);
    let email = email.and_then(|value| read_email(value, At::Key(&At::Root, "email"), bounds, &mut problems));
    let given = headers_value
        .and_then(|value| headers::read(value, At::Key(&At::Root, "headers"), &mut problems))
        .unwrap_or_default();
    let authorization = auth.and_then(|value| basic(value, At::Key(&At::Root, "auth"), &mut problems));
    let content_type = given.content_type().or(content_type).map(str::to_owned);
    let body = body::read(raw, At::Root, data, data_base64, content_type.as_deref(), bounds, &mut problems);
    if problems.is_empty() {
        let Headers { lines, spelling, dropped } = given;
        Ok(Supplied { authorization, headers: lines, spelling, dropped_headers: dropped, body, email, event })
    } else {
        Err(problems.into_list())
    }
}

/// What explaining a send, or a tunnel (`CONNECT`), needs of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Outline {
    Url(Explained, String),
    Email,
    Event(Event),
}

/// Reads `{method, url}`, or `{email}`, `{s3}` or `{sql}` as a send has it.
pub fn outline(raw: &Bytes, bounds: &Bounds) -> Result<Outline, Vec<ShapeProblem>> {
    let mut problems = Problems::default();
    let Some(json) = whole(raw, &mut problems) else { return Err(problems.into_list()) };
    let what = "it must be an object with method and url, or with email, s3 or sql";
    let Some(members) = Members::expect(json, At::Root, what, &mut problems) else { return Err(problems.into_list()) };
    let [method, url, email, s3, sql] =
        known(&members, &["method", "url", "email", "s3", "sql"], At::Root, &mut problems, |key| {
            SEND_KEYS.contains(&key).then_some("the policy looks at method and url alone: leave it out")
        });
    let given = [("sql", sql), ("s3", s3), ("email", email), ("method", method), ("url", url)];
    let given: Vec<_> = given.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    if let Some((first @ ("email" | "s3" | "sql"), value)) = given.first().copied() {
        for (name, _) in &given[1..] {
            let beside = format!("stands beside {first}: a send goes to one destination");
            problems.add(At::Key(&At::Root, name), beside, "ask about one of the two");
        }
        let at = At::Key(&At::Root, first);
        let read = match first {
            "email" => read_email(value, at, bounds, &mut problems).map(|_| Outline::Email),
            "s3" => event::read_s3(value, at, bounds, &mut problems).map(Outline::Event),
            _ => event::read_sql(value, at, bounds, &mut problems).map(Outline::Event),
        };
        return read.filter(|_| problems.is_empty()).ok_or_else(|| problems.into_list());
    }
    let method = required(method, At::Root, "method", &mut problems);
    let method = method.and_then(|(value, at)| match value.get() {
        "\"CONNECT\"" => Some(Explained::Tunnel),
        _ => read_method(value, at, &mut problems).map(Explained::Send),
    });
    let url = required(url, At::Root, "url", &mut problems);
    let url = url.and_then(|(value, at)| read_url(value, at, &mut problems));
    match (method, url) {
        (Some(method), Some(url)) if problems.is_empty() => Ok(Outline::Url(method, url.into_owned())),
        _ => Err(problems.into_list()),
    }
}

/// Reads an object of strings, each of at most so many characters and not empty; `null` is absent.
pub fn strings<const N: usize>(
    raw: &Bytes,
    names: &[&'static str; N],
    chars_max: usize,
) -> Result<[Option<String>; N], Vec<ShapeProblem>> {
    let mut problems = Problems::default();
    let Some(json) = whole(raw, &mut problems) else { return Err(problems.into_list()) };
    let what = format!("it must be an object of {}", names.join(", "));
    let Some(members) = Members::expect(json, At::Root, &what, &mut problems) else { return Err(problems.into_list()) };
    let values = known(&members, names, At::Root, &mut problems, |_| None);
    let mut texts = [const { None }; N];
    for ((slot, value), name) in texts.iter_mut().zip(values).zip(names) {
        let Some(value) = value else { continue };
        let at = At::Key(&At::Root, name);
        if ValueKind::of(value) != ValueKind::String {
            problems.add(at, format!("is {}; it must be a string", ValueKind::of(value).name()), None);
            continue;
        }
        let Some(given) = text(value, at, &mut problems) else { continue };
        if !(1..=chars_max).contains(&given.chars().count()) {
            problems.add(at, format!("must have 1 to {chars_max} characters"), None);
            continue;
        }
        *slot = Some(given.into_owned());
    }
    if problems.is_empty() { Ok(texts) } else { Err(problems.into_list()) }
}

/// Where a send with this URL points, or a tunnel to this `host:port`; or why nowhere.
pub fn target_of(what: Explained, url: &str, hide: Hide<'_>) -> Target {
    match what {
        Explained::Send(_) => target(url, &params::Params::default(), hide),
        Explained::Tunnel => checked_target(url, CheckedUrl::of_authority(url), hide),
    }
}

fn target(url: &str, replaced: &params::Params, hide: Hide<'_>) -> Target {
    let checked = CheckedUrl::parse(url).and_then(|url| {
        if replaced.is_empty() {
            return Ok(url);
        }
        let query = replaced.applied_to(url.query());
        url.with_query(query.as_deref())
    });
    checked_target(url, checked, hide)
}

fn checked_target(url: &str, checked: Result<CheckedUrl, Denial>, hide: Hide<'_>) -> Target {
    match checked {
        Ok(url) => Target::Url(url),
        Err(denial) => {
            let mut shown = without_userinfo(url, |secret| hide.hide(secret.as_bytes()));
            // Cut after hiding, so that no part of a secret stays.
            if shown.len() > limits::URL_BYTES_MAX {
                let cut = (0..=limits::URL_BYTES_MAX).rev().find(|&at| shown.is_char_boundary(at)).unwrap_or(0);
                shown.truncate(cut);
            }
            Target::Refused { shown, denial: denial.into() }
        }
    }
}

/// The body as one JSON value, unread.
fn whole<'a>(raw: &'a Bytes, problems: &mut Problems) -> Option<&'a RawValue> {
    let read = std::str::from_utf8(raw)
        .map_err(|error| {
            serde_json::Error::custom(format!("byte {} is not UTF-8, as JSON has to be", error.valid_up_to()))
        })
        .and_then(serde_json::from_str::<&RawValue>);
    match read {
        Ok(json) => Some(json),
        Err(error) => {
            problems.add(At::Root, format!("the body is not JSON: {error}"), None);
            None
        }
    }
}

/// The values of the keys that are known, in their order, `null` read as absent. Everything else is a problem.
pub(crate) fn known<'a, const N: usize>(
    members: &Members<'a>,
    names: &[&'static str; N],
    at: At<'_>,
    problems: &mut Problems,
    hint: impl Fn(&str) -> Option<&'static str>,
) -> [Option<&'a RawValue>; N] {
    let mut values = [None; N];
    let mut seen = [false; N];
    for (key, value) in &members.0 {
        let at = At::Key(&at, key);
        match names.iter().position(|name| name == key) {
            Some(index) if seen[index] => problems.add(at, "stands here a second time", "keep one of the two"),
            Some(index) => {
                seen[index] = true;
                values[index] = Some(*value).filter(|value| ValueKind::of(value) != ValueKind::Null);
            }
            None => {
                let meant = || closest(&key.to_ascii_lowercase(), names).map(|name| format!("did you mean {name}?"));
                let hint = hint(key).map(str::to_owned).or_else(meant);
                problems.push(Fault::Shape, at, format!("is not a key that is known here: {}", names.join(", ")), hint);
            }
        }
    }
    values
}

struct CallReader<'c> {
    raw: &'c Bytes,
    bounds: &'c Bounds,
    hide: Hide<'c>,
    held_by: Option<&'c ExecutionId>,
}

const SEND_KEYS: [&str; 12] = [
    "method",
    "url",
    "data",
    "data_base64",
    "headers",
    "params",
    "auth",
    "email",
    "s3",
    "sql",
    "context",
    "expires_in",
];
/// The first of them are a request's, those behind them a destination each.
const REQUEST_KEYS: usize = 7;
const DESTINATION_KEYS: usize = 10;

impl CallReader<'_> {
    fn sends(&self, json: &RawValue, problems: &mut Problems) -> Option<Vec<SendSpec>> {
        let items = elements(json, At::Root, problems)?;
        if items.is_empty() {
            problems.add(At::Root, "the array is empty", "leave the call out when there is nothing to send");
            return None;
        }
        if items.len() > self.bounds.sends_per_request as usize {
            problems.too_large(
                At::Root,
                format!("the array has {} sends, one call takes {}", items.len(), self.bounds.sends_per_request),
                "spread them over several calls",
            );
            return None;
        }
        let mut sends = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            sends.extend(self.send(item, At::Index(&At::Root, index), problems));
        }
        Some(sends)
    }

    /// `None` goes with at least one problem.
    fn send(&self, json: &RawValue, at: At<'_>, problems: &mut Problems) -> Option<SendSpec> {
        let what = "a send is an object with `method` and `url`, or with `email`, `s3` or `sql`";
        let members = Members::expect(json, at, what, problems)?;
        let values = known(&members, &SEND_KEYS, at, problems, hint_for_send_key);
        let [.., context, expires_in] = values;
        let named = SEND_KEYS.iter().zip(&values).take(DESTINATION_KEYS);
        let named: Vec<_> = named.filter_map(|(name, value)| Some((*name, (*value)?))).collect();
        let to = match named.iter().find(|(name, _)| SEND_KEYS[REQUEST_KEYS..DESTINATION_KEYS].contains(name)) {
            None => self.request(&values, at, problems).map(To::Http),
            Some((first, value)) => {
                for (name, _) in named.iter().filter(|(name, _)| name != first) {
                    let beside = format!("stands beside {first}: a send goes to one destination");
                    problems.add(At::Key(&at, name), beside, "make it two sends");
                }
                let place = At::Key(&at, first);
                match *first {
                    "email" => read_email(value, place, self.bounds, problems).map(To::Email),
                    "s3" => event::read_s3(value, place, self.bounds, problems).map(To::Event),
                    _ => event::read_sql(value, place, self.bounds, problems).map(To::Event),
                }
            }
        };
        let context = self.context(context, At::Key(&at, "context"), problems);
        let expires_in = expires_in.and_then(|value| read_expires_in(value, At::Key(&at, "expires_in"), problems));
        if !problems.is_empty() {
            return None;
        }
        Some(SendSpec { to: to?, context: context?, expires_in })
    }

    /// `None` goes with at least one problem.
    fn request(
        &self,
        values: &[Option<&RawValue>; SEND_KEYS.len()],
        at: At<'_>,
        problems: &mut Problems,
    ) -> Option<HttpRequest> {
        let [method, url, data, data_base64, header_object, param_object, auth, ..] = *values;
        let method = required(method, at, "method", problems).and_then(|(value, at)| read_method(value, at, problems));
        let url = required(url, at, "url", problems).and_then(|(value, at)| read_url(value, at, problems));
        let given: Headers =
            header_object.and_then(|value| headers::read(value, At::Key(&at, "headers"), problems)).unwrap_or_default();
        let replaced = match param_object {
            Some(value) => params::read(value, At::Key(&at, "params"), problems),
            None => Some(params::Params::default()),
        };
        let authorization = auth.and_then(|value| basic(value, At::Key(&at, "auth"), problems));

        if method == Some(Method::Head) && (data.is_some() || data_base64.is_some()) {
            let key = if data.is_some() { "data" } else { "data_base64" };
            problems.add(At::Key(&at, key), "a HEAD request has no body", "leave it out, or use another method");
        }
        let content_type = given.content_type();
        let body = body::read(self.raw, at, data, data_base64, content_type, self.bounds, problems);

        if !problems.is_empty() {
            return None;
        }
        let has_content_type = content_type.is_some();
        let Headers { mut lines, spelling, dropped } = given;
        if let Some(value) = authorization {
            lines.retain(|(name, _)| name != header::AUTHORIZATION);
            lines.push((header::AUTHORIZATION, value));
        }
        let body = body.map(|body| {
            if !has_content_type {
                lines.push((header::CONTENT_TYPE, HeaderValue::from_static(body.kind.content_type())));
            }
            body.bytes
        });
        Some(HttpRequest {
            method: method?,
            target: target(&url?, &replaced?, self.hide),
            headers: lines,
            spelling,
            dropped_headers: dropped,
            body,
        })
    }

    fn context(&self, value: Option<&RawValue>, at: At<'_>, problems: &mut Problems) -> Option<Context> {
        let mut context = Context { execution: self.held_by.cloned(), ..Context::default() };
        let Some(value) = value else { return Some(context) };
        let what = "it must be an object with workflow, execution and step, each of them optional";
        let members = Members::expect(value, at, what, problems)?;
        let values = known(&members, &["workflow", "execution", "step"], at, problems, |key| {
            (key == "tenant").then_some("the tenant is named by the header Egressd-Tenant, or by the token")
        });
        let [workflow, execution, step] = values;
        context.workflow = read_context_text(workflow, At::Key(&at, "workflow"), problems).map(Arc::from);
        context.step = read_context_text(step, At::Key(&at, "step"), problems).map(Arc::from);
        let execution = read_context_text(execution, At::Key(&at, "execution"), problems);
        match (execution, self.held_by) {
            (Some(given), Some(path)) if *given != *path.as_str() => problems.add(
                At::Key(&at, "execution"),
                "is another execution than the one in the call's path",
                "leave it out: the path names the execution",
            ),
            (Some(given), None) => context.execution = Some(ExecutionId::new(given.as_ref())),
            _ => {}
        }
        Some(context)
    }
}

/// A message to the tenant's own address.
fn read_email(value: &RawValue, at: At<'_>, bounds: &Bounds, problems: &mut Problems) -> Option<Email> {
    const KEYS: [&str; 4] = ["subject", "text", "html", "include_collaborators"];
    let relay = bounds.mail.relay().map_err(|(detail, hint)| problems.add(at, detail, hint)).ok();
    let members = Members::expect(value, at, "it must be an object with text, html or both", problems)?;
    let [subject, text_value, html_value, include_collaborators] =
        known(&members, &KEYS, at, problems, |key| match key.to_ascii_lowercase().as_str() {
            "to" | "cc" | "bcc" | "recipient" | "recipients" | "email" | "address" => {
                Some("leave it out: mail goes to the tenant's own address, which the operator has configured")
            }
            "from" | "reply_to" | "replyto" | "sender" => Some("leave it out: the operator has configured the sender"),
            "body" | "message" | "content" => Some("write text, html or both"),
            "attachments" | "attachment" | "files" => Some("leave it out: a message is its text and its HTML"),
            _ => None,
        });
    let mut string = |value: Option<&RawValue>, name: &str| -> Option<String> {
        let (value, at) = (value?, At::Key(&at, name));
        if ValueKind::of(value) != ValueKind::String {
            problems.add(at, format!("is {}; it must be a string", ValueKind::of(value).name()), None);
            return None;
        }
        let given = text(value, at, problems)?;
        if given.contains('\0') {
            problems.add(at, "holds the character U+0000, which mail cannot carry", "take it out");
        }
        Some(given.into_owned())
    };
    let (subject, text, html) = (string(subject, "subject"), string(text_value, "text"), string(html_value, "html"));
    if text_value.is_none() && html_value.is_none() {
        problems.add(at, "has neither text nor html: there is nothing to read", "give one of the two, or both");
    }
    if let Some(subject) = &subject {
        let at = At::Key(&at, "subject");
        if subject.contains(char::is_control) {
            problems.add(
                at,
                "holds a control character: a subject is one line",
                "take it out; text may have many lines",
            );
        }
        let chars = subject.chars().count();
        if chars > limits::SUBJECT_CHARS_MAX {
            let detail = format!("has {chars} characters, at most {} may stand here", limits::SUBJECT_CHARS_MAX);
            problems.add(at, detail, None);
        }
    }
    let include_collaborators = match include_collaborators.map(|value| (ValueKind::of(value), value.get())) {
        None => false,
        Some((ValueKind::Boolean, written)) => written == "true",
        Some((kind, _)) => {
            let detail = format!("is {}; it must be true or false", kind.name());
            problems.add(At::Key(&at, "include_collaborators"), detail, None);
            false
        }
    };
    if !problems.is_empty() {
        return None;
    }
    let letter = Letter { subject: subject.unwrap_or_default(), text, html, include_collaborators };
    let email = Email::new(letter, relay?.clone());
    let bytes = email.content().len();
    if bytes as u64 > bounds.request_body {
        problems.too_large(
            at,
            format!("makes a message of {bytes} bytes, one send may have {}", bounds.request_body),
            "send less, or raise `[limits] request_body`",
        );
        return None;
    }
    Some(email)
}

fn required<'a, 'p>(
    value: Option<&'a RawValue>,
    parent: At<'p>,
    name: &'static str,
    problems: &mut Problems,
) -> Option<(&'a RawValue, OwnedKey<'p>)> {
    if value.is_none() {
        problems.add(At::Key(&parent, name), "is missing: a request needs it", None);
    }
    value.map(|value| (value, OwnedKey { parent, name }))
}

/// A place one key below another, which can be handed on by value.
struct OwnedKey<'p> {
    parent: At<'p>,
    name: &'static str,
}

impl OwnedKey<'_> {
    fn at(&self) -> At<'_> {
        At::Key(&self.parent, self.name)
    }
}

fn read_method(value: &RawValue, at: OwnedKey<'_>, problems: &mut Problems) -> Option<Method> {
    let at = at.at();
    if ValueKind::of(value) != ValueKind::String {
        problems.add(at, format!("is {}; it must be a string", ValueKind::of(value).name()), None);
        return None;
    }
    let given = text(value, at, problems)?;
    if let Some(method) = Method::from_label(&given) {
        return Some(method);
    }
    let upper = given.trim().to_ascii_uppercase();
    match upper.as_str() {
        "CONNECT" => problems.add(at, "CONNECT is refused: it would make a tunnel past the policy", None),
        "TRACE" => problems.add(at, "TRACE is refused: its answer repeats the request with its secrets", None),
        _ => {
            let known = Method::ALL.iter().map(|method| method.label()).collect::<Vec<_>>().join(" ");
            match Method::from_label(&upper) {
                Some(method) => problems.push(
                    Fault::Shape,
                    at,
                    "methods are written in upper case".to_owned(),
                    Some(format!("write {method}")),
                ),
                None => problems.add(at, format!("is not one of {known}"), None),
            }
        }
    }
    None
}

fn read_url<'a>(value: &'a RawValue, at: OwnedKey<'_>, problems: &mut Problems) -> Option<Cow<'a, str>> {
    let at = at.at();
    if ValueKind::of(value) != ValueKind::String {
        problems.add(at, format!("is {}; it must be a string", ValueKind::of(value).name()), None);
        return None;
    }
    text(value, at, problems)
}

fn read_context_text<'a>(value: Option<&'a RawValue>, at: At<'_>, problems: &mut Problems) -> Option<Cow<'a, str>> {
    let value = value?;
    if ValueKind::of(value) != ValueKind::String {
        problems.add(at, format!("is {}; it must be a string", ValueKind::of(value).name()), None);
        return None;
    }
    let given = text(value, at, problems)?;
    let chars = given.chars().count();
    if chars > limits::CONTEXT_CHARS_MAX {
        problems.add(at, format!("has {chars} characters, at most {} may stand here", limits::CONTEXT_CHARS_MAX), None);
        return None;
    }
    Some(given)
}

fn read_expires_in(value: &RawValue, at: At<'_>, problems: &mut Problems) -> Option<Duration> {
    let most = limits::EXPIRES_IN_MAX.as_secs();
    match value.get().parse::<u64>() {
        Ok(seconds) if (1..=most).contains(&seconds) => Some(Duration::from_secs(seconds)),
        _ => {
            let detail = match ValueKind::of(value) {
                ValueKind::Number => format!("must be a whole number of seconds from 1 to {most}"),
                other => format!("is {}; it must be a whole number of seconds from 1 to {most}", other.name()),
            };
            let hint = (ValueKind::of(value) == ValueKind::String)
                .then_some("write 60 for a minute, without quotes or a unit");
            problems.add(at, detail, hint);
            None
        }
    }
}

/// HTTP Basic (RFC 7617) from `{username, password}`.
fn basic(value: &RawValue, at: At<'_>, problems: &mut Problems) -> Option<HeaderValue> {
    use base64::Engine as _;

    let members = Members::expect(value, at, "it must be an object with username and password", problems)?;
    let values = known(&members, &["username", "password"], at, problems, |key| match key {
        "user" | "login" | "name" => Some("write username"),
        "pass" | "pwd" => Some("write password"),
        "token" | "bearer" => Some("write headers: {\"Authorization\": \"Bearer …\"}"),
        _ => None,
    });
    let mut read = |value: Option<&RawValue>, name: &str| -> Option<String> {
        let at = At::Key(&at, name);
        match value {
            None => {
                problems.add(at, "is missing: auth needs username and password", "write \"\" where it is empty");
                None
            }
            Some(value) if ValueKind::of(value) == ValueKind::String => text(value, at, problems).map(Cow::into_owned),
            Some(value) => {
                problems.add(at, format!("is {}; it must be a string", ValueKind::of(value).name()), None);
                None
            }
        }
    };
    let username = read(values[0], "username");
    let password = read(values[1], "password");
    for (name, given) in [("username", &username), ("password", &password)] {
        // RFC 7617 section 2 forbids them, and receivers end a name or a password at some of them.
        if given.as_ref().is_some_and(|given| given.contains(char::is_control)) {
            problems.add(
                At::Key(&at, name),
                "holds a control character, which HTTP Basic cannot carry",
                "take it out; a line end often comes from the file that a secret was read from",
            );
        }
    }
    if username.as_ref().is_some_and(|username| username.contains(':')) {
        problems.add(
            At::Key(&at, "username"),
            "holds a colon, which HTTP Basic reads as the end of the name",
            "put what follows the colon into password",
        );
        return None;
    }
    let (username, password) = (username?, password?);
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
    if encoded.len() > limits::REQUEST_HEADER_BYTES_MAX {
        problems.add(at, format!("is longer than {} bytes", limits::REQUEST_HEADER_BYTES_MAX), None);
        return None;
    }
    HeaderValue::try_from(format!("Basic {encoded}")).ok()
}

/// What the author of an unknown key most likely meant.
fn hint_for_send_key(key: &str) -> Option<&'static str> {
    let plain: String = key
        .chars()
        .take(limits::ECHO_CHARS_MAX)
        .filter(|c| !matches!(c, '_' | '-' | ' '))
        .flat_map(char::to_lowercase)
        .collect();
    Some(match plain.as_str() {
        "body" | "json" | "payload" | "content" | "form" | "formdata" | "postdata" | "requestbody" => "write data",
        "data" => "write data, in lower case",
        "base64" | "database64" | "bodybase64" | "binary" => "write data_base64",
        "query" | "queryparams" | "querystring" | "qs" | "search" | "searchparams" | "param" | "params" => {
            "write params"
        }
        "bucket" | "prefix" | "s3" => "write s3: {\"bucket\": …, \"prefix\": …, \"payload\": …}",
        "table" | "sql" => "write sql: {\"table\": …, \"payload\": …}",
        "mail" | "email" | "subject" | "text" | "html" => "write email: {\"subject\": …, \"text\": …}",
        "uri" | "href" | "endpoint" | "address" | "destination" | "target" | "url" => "write url",
        "baseurl" | "path" | "host" | "hostname" | "port" | "protocol" => "write the whole address as url",
        "verb" | "httpmethod" | "method" => "write method",
        "header" | "headers" => "write headers",
        "contenttype" => "write headers: {\"Content-Type\": …}",
        "cookie" | "cookies" => "write headers: {\"Cookie\": …}",
        "username" | "password" | "user" | "basicauth" | "authentication" | "auth" => {
            "write auth: {\"username\": …, \"password\": …}"
        }
        "authorization" | "token" | "bearer" => "write headers: {\"Authorization\": …}",
        "workflow" | "execution" | "step" | "metadata" | "meta" | "context" => {
            "write context: {\"workflow\": …, \"execution\": …, \"step\": …}"
        }
        "tenant" => "the tenant is named by the header Egressd-Tenant, or by the token",
        "expires" | "expiresin" | "ttl" | "expiry" => "write expires_in, in whole seconds",
        "timeout" | "deadline" => "leave it out: every delivery has the same deadline",
        "retry" | "retries" | "maxretries" => "leave it out: a send is made once and never retried",
        "followredirects" | "followredirect" | "maxredirects" | "redirect" => {
            "leave it out: a redirect is an answer and is never followed"
        }
        "proxy" | "agent" | "httpagent" | "httpsagent" | "sourceip" | "interface" => {
            "leave it out: sends leave from the published addresses"
        }
        "responsetype" | "validatestatus" | "transformresponse" | "decompress" | "encoding" => {
            "leave it out: the response is recorded as it came"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
