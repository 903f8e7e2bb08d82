//! The forms in which the embedded store keeps things, apart from the domain's own types: postcard, borrowed where
//! it can be, each with a version in front.
//!
//! Numbers stand for the closed lists and never change their meaning; a value added to a list gets the next number
//! here. Times are nanoseconds since 1970, durations nanoseconds.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::view::host_text;
use super::{IdempotencyKey, NewSend};
use crate::outcome::{Code, Ended, Failure, Outcome, Phase, Processed, Timings};
use crate::policy::{CheckedUrl, Destination, Host, Scheme, Verdict};
use crate::record::{
    BatchId, Certificate, Connection, Finished, InBatch, ShownBody, ShownHeaders, ShownRequest, ShownResponse, ShownTo,
    TlsFacts,
};
use crate::send::trace::TraceParent;
use crate::send::{
    Context, Email, Event, ExecutionId, HeaderLines, HttpRequest, Kind, Method, Place, SendId, SendSpec, Spelling,
    Target, TenantId, To,
};

/// Of every form here. A form that changes gets the next, and reads the ones before.
const VERSION: u8 = 1;

/// Why stored bytes could not be read back as what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable(pub &'static str);

type Read<T> = Result<T, Unreadable>;

macro_rules! numbered {
    ($to:ident, $from:ident, $type:ty { $($variant:path = $number:literal),+ $(,)? }) => {
        pub fn $to(value: $type) -> u8 {
            match value { $($variant => $number),+ }
        }
        pub fn $from(number: u8) -> Read<$type> {
            match number { $($number => Ok($variant),)+ _ => Err(Unreadable(concat!(stringify!($type), " of no known number"))) }
        }
    };
}

mod batch;
mod tunnel;

pub use self::batch::{batch, read_batch};
pub use self::tunnel::{end_number, read_tunnel, tunnel};

numbered!(outcome_number, outcome_of, Outcome {
    Outcome::Delivered = 0, Outcome::Rejected = 1, Outcome::Failed = 2, Outcome::Blocked = 3, Outcome::Expired = 4,
    Outcome::Discarded = 5, Outcome::Interrupted = 6,
});
numbered!(code_number, code_of, Code {
    Code::Timeout = 0, Code::DnsNotFound = 1, Code::DnsFailed = 2, Code::DnsNoAddress = 3,
    Code::ConnectionRefused = 4, Code::ConnectionReset = 5, Code::ConnectionClosed = 6, Code::HostUnreachable = 7,
    Code::NetworkUnreachable = 8, Code::TlsCertificate = 9, Code::TlsHandshake = 10, Code::ProtocolError = 11,
    Code::ResponseHeadersTooLarge = 12, Code::SourceUnavailable = 13, Code::SourcePortsExhausted = 14,
    Code::PolicyUrl = 15, Code::PolicyPort = 16, Code::PolicyName = 17, Code::PolicyAddress = 18,
    Code::PolicyMetadata = 19, Code::PolicyScan = 20, Code::PolicySelf = 21, Code::PolicyMixed = 22,
    Code::PolicyDenied = 23, Code::PolicyNotAllowed = 24, Code::Suspended = 25, Code::Interrupted = 26,
    Code::Expired = 27, Code::Discarded = 28, Code::Internal = 29, Code::PolicySni = 30,
});
numbered!(phase_number, phase_of, Phase {
    Phase::Dns = 0, Phase::Connect = 1, Phase::Tls = 2, Phase::Write = 3, Phase::Wait = 4, Phase::Read = 5,
});
numbered!(processed_number, processed_of, Processed {
    Processed::No = 0, Processed::Maybe = 1, Processed::Yes = 2,
});
numbered!(method_number, method_of, Method {
    Method::Get = 0, Method::Head = 1, Method::Post = 2, Method::Put = 3, Method::Patch = 4, Method::Delete = 5,
    Method::Options = 6,
});

numbered!(kind_number, kind_of, Kind { Kind::Http = 0, Kind::Email = 1, Kind::S3 = 2, Kind::Sql = 3 });

pub fn nanoseconds(at: Timestamp) -> i64 {
    i64::try_from(at.as_nanosecond()).unwrap_or(if at.as_second() < 0 { i64::MIN } else { i64::MAX })
}

pub fn timestamp(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or_default()
}

fn span(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

pub fn encode<T: Serialize>(form: &T, into: Vec<u8>) -> Vec<u8> {
    let mut into = into;
    into.push(VERSION);
    // Writing into memory cannot fail for forms made of numbers, text and lists of known length.
    postcard::to_extend(form, into).unwrap_or_default()
}

pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Read<T> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => postcard::from_bytes(rest).map_err(|_| Unreadable("not of its form")),
        Some(_) => Err(Unreadable("of a version that is not known")),
        None => Err(Unreadable("empty")),
    }
}

// A send as accepted.

/// Everything of an accepted send but its bodies, which stand apart, and what the writer alone knows.
#[derive(Serialize, Deserialize)]
pub struct SendForm<'a> {
    pub tenant: &'a str,
    workflow: Option<&'a str>,
    execution: Option<&'a str>,
    step: Option<&'a str>,
    node: &'a str,
    resend_of: Option<[u8; 16]>,
    pub created_at: i64,
    expires_in: u64,
    own_expires_in: Option<u64>,
    pub held: bool,
    #[serde(borrow)]
    pub key: Option<KeyForm<'a>>,
    destination: Option<DestinationForm<'a>>,
    refused: Option<FailureForm<'a>>,
    method: u8,
    url: &'a str,
    headers: HeadersForm<'a>,
    dropped_headers: Vec<&'a str>,
    body: Option<BodyForm>,
    rest: Rest,
    /// As [`FinishForm::more`].
    #[serde(borrow, deserialize_with = "facts_or_none")]
    more: Vec<(u8, &'a [u8])>,
}

/// Of [`SendForm::more`]: the header names of its [`Spelling`], with a line's end between them.
const SPELLING: u8 = 0;
/// Where a send stood that was moved, its segment and its row there, and when it was.
const MOVED_FROM: u8 = 1;
/// The caller's place in a trace.
const TRACE: u8 = 2;
/// One byte, which destination: of HTTP it is not there. Of others the form's `method` and `url` are stand-ins
/// ([`NO_METHOD`], [`NO_URL`]), which a reader from before there were others can show, and can make nothing of: it takes
/// the send for one that is unreadable, and never makes it.
const KIND: u8 = 3;
/// Of an event: the [`Place::text`] of where it gathers.
const PLACE: u8 = 4;

const NO_METHOD: Method = Method::Post;
/// Of a message, and of an event; no URL that a request could be made to.
const NO_URL: &str = "mailto:";
const NO_URL_OF_EVENT: &str = "data:";

type HeadersForm<'a> = Vec<(&'a str, Vec<&'a str>)>;

/// Where what `spec` has and `shown` lacks is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rest {
    /// Nowhere: `shown` says it all.
    Nothing,
    /// Beside the body, encrypted.
    Sealed,
}

#[derive(Serialize, Deserialize)]
pub struct KeyForm<'a> {
    pub path: &'a str,
    pub key: &'a str,
    pub fingerprint: [u8; 32],
    /// Sends of that call; they follow one another.
    pub count: u32,
}

/// A call with a key, apart from its sends: these may be lost or gone before the key's day is over.
#[derive(Serialize, Deserialize)]
pub struct CallForm<'a> {
    pub tenant: &'a str,
    #[serde(borrow)]
    pub key: KeyForm<'a>,
    pub created_at: i64,
    pub sends: Vec<[u8; 16]>,
}

impl CallForm<'_> {
    /// Whether this send is its first.
    pub fn is_of(&self, first: u128) -> bool {
        self.sends.first().is_some_and(|id| u128::from_be_bytes(*id) == first)
    }
}

#[derive(Serialize, Deserialize)]
struct DestinationForm<'a> {
    https: bool,
    #[serde(borrow)]
    host: HostForm<'a>,
    port: u16,
}

#[derive(Serialize, Deserialize)]
enum HostForm<'a> {
    Name(&'a str),
    Address(IpAddr),
}

#[derive(Serialize, Deserialize)]
struct FailureForm<'a> {
    code: u8,
    phase: Option<u8>,
    message: &'a str,
}

#[derive(Serialize, Deserialize)]
struct BodyForm {
    kept: bool,
    total: u64,
    truncated: bool,
    sha256: Option<[u8; 32]>,
}

/// What `spec` has and `shown` lacks.
#[derive(Serialize, Deserialize)]
struct RestForm<'a> {
    #[serde(borrow)]
    url: Option<&'a str>,
    headers: Option<Vec<(&'a str, &'a [u8])>>,
    /// `None`: the same as shown.
    body: Option<Option<&'a [u8]>>,
}

impl<'a> From<&'a Failure> for FailureForm<'a> {
    fn from(failure: &'a Failure) -> Self {
        Self { code: code_number(failure.code), phase: failure.phase.map(phase_number), message: &failure.message }
    }
}

impl FailureForm<'_> {
    fn failure(&self) -> Read<Failure> {
        let (code, phase) = (code_of(self.code)?, self.phase.map(phase_of).transpose()?);
        Ok(Failure::recorded(code, phase, Processed::usual(code, phase), self.message))
    }
}

fn headers_form(headers: &ShownHeaders) -> HeadersForm<'_> {
    headers.iter().map(|(name, values)| (name.as_str(), values.iter().map(String::as_str).collect())).collect()
}

fn shown_headers(form: &HeadersForm<'_>) -> ShownHeaders {
    let owned = |(name, values): &(&str, Vec<&str>)| {
        ((*name).to_owned(), values.iter().map(|value| (*value).to_owned()).collect())
    };
    form.iter().map(owned).collect()
}

impl From<&ShownBody> for BodyForm {
    fn from(body: &ShownBody) -> Self {
        Self { kept: body.bytes.is_some(), total: body.total, truncated: body.truncated, sha256: body.sha256 }
    }
}

impl BodyForm {
    fn shown(&self, bytes: Option<Bytes>) -> ShownBody {
        ShownBody { bytes, total: self.total, truncated: self.truncated, sha256: self.sha256 }
    }
}

/// Whether the lines, grouped by name as `shown` groups them, are what it shows.
fn says_all(shown: &ShownHeaders, lines: &HeaderLines) -> bool {
    let mut lines = lines.iter();
    let said = shown.iter().all(|(name, values)| {
        values.iter().all(|value| {
            lines.next().is_some_and(|(line, text)| line.as_str() == name && text.as_bytes() == value.as_bytes())
        })
    });
    said && lines.next().is_none()
}

fn lines(form: &HeadersForm<'_>) -> Read<HeaderLines> {
    let mut lines = HeaderLines::new();
    for (name, values) in form {
        for value in values {
            lines.push(line(name, value.as_bytes())?);
        }
    }
    Ok(lines)
}

fn line(name: &str, value: &[u8]) -> Read<(HeaderName, HeaderValue)> {
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| Unreadable("a header name of no valid form"))?;
    let value = HeaderValue::from_bytes(value).map_err(|_| Unreadable("a header value of no valid form"))?;
    Ok((name, value))
}

/// A send as accepted, ready to be written.
pub struct AcceptedSend {
    /// A [`SendForm`].
    pub form: Vec<u8>,
    /// The body as shown.
    pub body: Option<Bytes>,
    /// A [`RestForm`], still in the clear: to be sealed, whatever `NewSend::sealed` says, because what records do
    /// not show is not for the disk.
    pub rest: Option<Vec<u8>>,
}

/// Splits a send into what may be shown and what may not.
pub fn accepted(new: &NewSend, node: &str, held: bool, key: Option<(&IdempotencyKey, u32)>) -> AcceptedSend {
    let NewSend { spec, shown, .. } = new;
    let (method, shown_url) = match &shown.to {
        ShownTo::Http { method, url } => (*method, url.as_str()),
        ShownTo::Email { .. } => (NO_METHOD, NO_URL),
        ShownTo::Event { .. } => (NO_METHOD, NO_URL_OF_EVENT),
    };
    let (url, headers) = match &spec.to {
        To::Http(request) => (
            (request.target.shown() != shown_url).then(|| request.target.shown()),
            (!says_all(&shown.headers, &request.headers))
                .then(|| request.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect()),
        ),
        To::Email(_) | To::Event(_) => (None, None),
    };
    let shown_bytes = shown.body.as_ref().and_then(|body| body.bytes.as_ref());
    let body = (shown_bytes != spec.body()).then(|| spec.body().map(|body| &body[..]));
    let rest = RestForm { url, headers, body };
    let rest = (rest.url.is_some() || rest.headers.is_some() || rest.body.is_some()).then(|| encode(&rest, Vec::new()));
    let refused = match &spec.to {
        To::Http(HttpRequest { target: Target::Refused { denial, .. }, .. }) => Some(denial.into()),
        To::Http(_) | To::Email(_) | To::Event(_) => None,
    };
    let spelling = shown.spelling.iter().collect::<Vec<_>>().join("\n");
    let kind = [kind_number(spec.to.kind())];
    let kind_fact = (spec.to.kind() != Kind::Http).then_some((KIND, &kind[..]));
    let place = spec.gathers().map(Place::text);
    let place_fact = place.as_ref().map(|place| (PLACE, place.as_bytes()));
    let trace = spec.context.trace.map(TraceParent::to_bytes);
    let spelling_fact = (!spelling.is_empty()).then_some((SPELLING, spelling.as_bytes()));
    let trace_fact = trace.as_ref().map(|trace| (TRACE, &trace[..]));
    let form = SendForm {
        tenant: new.tenant.as_str(),
        workflow: spec.context.workflow.as_deref(),
        execution: spec.context.execution.as_ref().map(ExecutionId::as_str),
        step: spec.context.step.as_deref(),
        node,
        resend_of: new.resend_of.map(|id| *id.0.as_bytes()),
        created_at: nanoseconds(new.created_at),
        expires_in: span(new.expires_in),
        own_expires_in: spec.expires_in.map(span),
        held,
        key: key.map(|(key, count)| KeyForm { path: &key.path, key: &key.key, fingerprint: key.fingerprint, count }),
        destination: spec.destination().map(|destination| DestinationForm {
            https: matches!(destination.scheme, Scheme::Https | Scheme::Smtps | Scheme::PostgresTls),
            host: match &destination.host {
                Host::Name(name) => HostForm::Name(name),
                Host::Address(address) => HostForm::Address(*address),
            },
            port: destination.port,
        }),
        refused,
        method: method_number(method),
        url: shown_url,
        headers: headers_form(&shown.headers),
        dropped_headers: shown.dropped_headers.iter().map(String::as_str).collect(),
        body: shown.body.as_ref().map(BodyForm::from),
        rest: if rest.is_some() { Rest::Sealed } else { Rest::Nothing },
        more: spelling_fact.into_iter().chain(trace_fact).chain(kind_fact).chain(place_fact).collect(),
    };
    AcceptedSend { form: encode(&form, Vec::with_capacity(512)), body: shown_bytes.cloned(), rest }
}

impl SendForm<'_> {
    pub fn tenant_id(&self) -> TenantId {
        TenantId::new(self.tenant)
    }

    pub fn workflow(&self) -> Option<Arc<str>> {
        self.workflow.map(Arc::from)
    }

    pub fn workflow_text(&self) -> Option<&str> {
        self.workflow
    }

    pub fn execution(&self) -> Option<&str> {
        self.execution
    }

    pub fn step(&self) -> Option<&str> {
        self.step
    }

    pub fn node(&self) -> &str {
        self.node
    }

    pub fn resend_of(&self) -> Option<SendId> {
        self.resend_of.map(|id| SendId(uuid::Uuid::from_bytes(id)))
    }

    pub fn expires_in(&self) -> Duration {
        Duration::from_nanos(self.expires_in)
    }

    pub fn rest(&self) -> Rest {
        self.rest
    }

    fn fact(&self, wanted: u8) -> Option<&[u8]> {
        self.more.iter().find(|(number, _)| *number == wanted).map(|(_, fact)| *fact)
    }

    /// The place, and the instant.
    pub fn moved_from(&self) -> Option<((u32, u32), i64)> {
        let fact = self.fact(MOVED_FROM)?;
        let (segment, rest) = fact.split_first_chunk()?;
        let (row, rest) = rest.split_first_chunk()?;
        let place = (u32::from_le_bytes(*segment), u32::from_le_bytes(*row));
        Some((place, i64::from_le_bytes(*rest.first_chunk()?)))
    }

    /// The same send where it is moved to, without its call's key: that is of the call's sends where they were.
    pub fn moved(self, (segment, row): (u32, u32), at: i64) -> Vec<u8> {
        let fact = [&segment.to_le_bytes()[..], &row.to_le_bytes(), &at.to_le_bytes()].concat();
        let mut form: SendForm<'_> = self;
        form.key = None;
        form.more.retain(|(number, _)| *number != MOVED_FROM);
        form.more.push((MOVED_FROM, &fact));
        encode(&form, Vec::with_capacity(512))
    }

    /// The body as shown was kept (it may be gone by now).
    pub fn keeps_body(&self) -> bool {
        self.body.as_ref().is_some_and(|body| body.kept)
    }

    pub fn context(&self) -> Context {
        Context {
            workflow: self.workflow(),
            execution: self.execution.map(ExecutionId::new),
            step: self.step.map(Arc::from),
            trace: self.fact(TRACE).and_then(TraceParent::from_bytes),
        }
    }

    fn kind(&self) -> Read<Kind> {
        match self.fact(KIND) {
            None => Ok(Kind::Http),
            Some(&[number]) => kind_of(number),
            Some(_) => Err(Unreadable("a destination of no known form")),
        }
    }

    /// What it is connected to. Of a kind that is not known, as if that were HTTP: for caps and lists that is near enough.
    pub fn destination(&self) -> Option<Destination> {
        let kind = self.kind().unwrap_or(Kind::Http);
        self.destination.as_ref().map(|form| Destination {
            scheme: match (kind, form.https) {
                (Kind::Http | Kind::S3, false) => Scheme::Http,
                (Kind::Http | Kind::S3, true) => Scheme::Https,
                (Kind::Email, false) => Scheme::Smtp,
                (Kind::Email, true) => Scheme::Smtps,
                (Kind::Sql, false) => Scheme::Postgres,
                (Kind::Sql, true) => Scheme::PostgresTls,
            },
            host: match form.host {
                HostForm::Name(name) => Host::Name(Arc::from(name)),
                HostForm::Address(address) => Host::Address(address),
            },
            port: form.port,
        })
    }

    /// As filters name it.
    pub fn host(&self) -> Option<String> {
        self.destination().map(|destination| host_text(&destination.host))
    }

    fn spelling(&self) -> Spelling {
        let names = self.fact(SPELLING).and_then(|names| std::str::from_utf8(names).ok()).unwrap_or_default();
        names.lines().collect()
    }

    pub fn shown(&self, body: Option<Bytes>) -> Read<ShownRequest> {
        Ok(ShownRequest {
            to: match self.kind()? {
                Kind::Http => ShownTo::Http { method: method_of(self.method)?, url: self.url.to_owned() },
                Kind::Email => ShownTo::Email { relay: self.way()? },
                Kind::S3 | Kind::Sql => ShownTo::Event { place: self.place()?, way: self.way()? },
            },
            headers: shown_headers(&self.headers),
            spelling: self.spelling(),
            dropped_headers: self.dropped_headers.iter().map(|&name| name.to_owned()).collect(),
            body: self.body.as_ref().map(|form| form.shown(body)),
        })
    }

    fn way(&self) -> Read<Destination> {
        self.destination().ok_or(Unreadable("a message or an event without what it is connected to"))
    }

    fn place(&self) -> Read<Place> {
        self.gathers().ok_or(Unreadable("an event of no known place"))
    }

    /// Where it gathers with others; of one that goes by itself nowhere.
    pub fn gathers(&self) -> Option<Place> {
        let kind = self.kind().ok()?;
        Place::read(kind, std::str::from_utf8(self.fact(PLACE)?).ok()?)
    }

    /// Bytes of its body.
    pub fn body_bytes(&self) -> u64 {
        self.body.as_ref().map_or(0, |body| body.total)
    }

    /// The spec again. `body`: the body as shown; `rest`: the opened [`RestForm`].
    pub fn spec(&self, body: Option<Bytes>, rest: Option<&[u8]>) -> Read<SendSpec> {
        let rest: RestForm<'_> = match rest {
            Some(rest) => decode(rest)?,
            None => RestForm { url: None, headers: None, body: None },
        };
        let body = match rest.body {
            Some(body) => body.map(Bytes::copy_from_slice),
            None => body,
        };
        let to = match self.kind()? {
            Kind::Http => To::Http(self.request(rest.url, rest.headers, body)?),
            Kind::Email => {
                let email = Email::stored(body.unwrap_or_default(), self.way()?);
                To::Email(email.ok_or(Unreadable("a message of no known form"))?)
            }
            Kind::S3 | Kind::Sql => {
                let event = Event::new(self.place()?, self.way()?, body.unwrap_or_default());
                To::Event(event.ok_or(Unreadable("an event of no known form"))?)
            }
        };
        let expires_in = self.own_expires_in.map(Duration::from_nanos);
        Ok(SendSpec { to, context: self.context(), expires_in })
    }

    /// `url` and `headers`: those that are not as shown.
    fn request(
        &self,
        url: Option<&str>,
        headers: Option<Vec<(&str, &[u8])>>,
        body: Option<Bytes>,
    ) -> Read<HttpRequest> {
        let url = url.unwrap_or(self.url);
        let target = match &self.refused {
            Some(denial) => Target::Refused { shown: url.to_owned(), denial: denial.failure()? },
            None => Target::Url(CheckedUrl::parse(url).map_err(|_| Unreadable("a URL that is refused now"))?),
        };
        let headers = match headers {
            Some(headers) => headers.into_iter().map(|(name, value)| line(name, value)).collect::<Read<_>>()?,
            None => lines(&self.headers)?,
        };
        Ok(HttpRequest {
            method: method_of(self.method)?,
            target,
            headers,
            spelling: self.spelling(),
            dropped_headers: self.dropped_headers.iter().map(|&name| name.to_owned()).collect(),
            body,
        })
    }
}

// How a send ended.

/// Everything of an end but the response's body.
#[derive(Serialize, Deserialize)]
pub struct FinishForm<'a> {
    outcome: u8,
    #[serde(borrow)]
    error: Option<FailureForm<'a>>,
    sent_headers: Option<HeadersForm<'a>>,
    response: Option<ResponseForm<'a>>,
    connection: Option<ConnectionForm<'a>>,
    would_block: Option<u8>,
    /// held, queued, dns, connect, tls, write, wait, read, total
    timings: [Option<u64>; 9],
    released_at: Option<i64>,
    started_at: Option<i64>,
    pub finished_at: i64,
    /// What was added since, each fact under a number of its own ([`PROCESSED`] …): a reader passes over those it does
    /// not know, and forms from before any was added end in front of this.
    #[serde(borrow, deserialize_with = "facts_or_none")]
    more: Vec<(u8, &'a [u8])>,
}

/// Of [`FinishForm::more`]: one byte, the error's `processed`.
const PROCESSED: u8 = 0;
/// Of [`FinishForm::more`]: a [`CertificateMore`].
const CERTIFICATE: u8 = 1;
/// Of [`FinishForm::more`]: the batch's identity, and the nanosecond at which it closed.
const BATCH: u8 = 2;
/// Of [`FinishForm::more`], and empty: the place of its batch may have it.
const TAKEN: u8 = 3;

#[derive(Serialize, Deserialize)]
struct CertificateMore<'a> {
    #[serde(borrow)]
    names: Vec<&'a str>,
    not_before: Option<i64>,
    key: &'a str,
}

fn facts_or_none<'de: 'a, 'a, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<(u8, &'a [u8])>, D::Error> {
    Ok(Vec::deserialize(from).unwrap_or_default())
}

#[derive(Serialize, Deserialize)]
struct ResponseForm<'a> {
    status: u16,
    version: &'a str,
    #[serde(borrow)]
    headers: HeadersForm<'a>,
    body: BodyForm,
    declared: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct ConnectionForm<'a> {
    source: Option<SocketAddr>,
    public: Option<IpAddr>,
    remote: Option<SocketAddr>,
    /// 0 allowed, 1 skipped, 2 denied with the code beside it.
    resolved: Vec<(IpAddr, u8, u8)>,
    reused: bool,
    #[serde(borrow)]
    tls: Option<TlsForm<'a>>,
}

#[derive(Serialize, Deserialize)]
struct TlsForm<'a> {
    version: &'a str,
    cipher: &'a str,
    alpn: Option<&'a str>,
    #[serde(borrow)]
    certificate: Option<CertificateForm<'a>>,
}

#[derive(Serialize, Deserialize)]
struct CertificateForm<'a> {
    subject: &'a str,
    issuer: &'a str,
    not_after: i64,
    sha256: [u8; 32],
}

/// An end, ready to be written: its [`FinishForm`], and the response's body as shown.
pub fn ended(finished: &Finished) -> (Vec<u8>, Option<Bytes>) {
    let timings = &finished.timings;
    let timings = [
        timings.held,
        timings.queued,
        timings.dns,
        timings.connect,
        timings.tls,
        timings.write,
        timings.wait,
        timings.read,
        timings.total,
    ];
    let certificate = finished.connection.as_ref().and_then(|connection| connection.tls.as_ref()?.certificate.as_ref());
    let certificate = certificate.and_then(|certificate| {
        let more = CertificateMore {
            names: certificate.names.iter().map(String::as_str).collect(),
            not_before: certificate.not_before.map(nanoseconds),
            key: &certificate.key,
        };
        postcard::to_allocvec(&more).ok()
    });
    let processed = finished.ended.error.as_ref().map(|error| [processed_number(error.processed)]);
    let batch =
        finished.batch.map(|batch| [&batch.id.to_bytes()[..], &nanoseconds(batch.closes_at).to_le_bytes()].concat());
    let taken = finished.batch.filter(|batch| batch.taken != Processed::No);
    let form = FinishForm {
        outcome: outcome_number(finished.ended.outcome),
        error: finished.ended.error.as_ref().map(FailureForm::from),
        sent_headers: finished.sent_headers.as_ref().map(headers_form),
        response: finished.response.as_ref().map(|response| ResponseForm {
            status: response.status,
            version: &response.version,
            headers: headers_form(&response.headers),
            body: BodyForm::from(&response.body),
            declared: response.declared,
        }),
        connection: finished.connection.as_ref().map(|connection| ConnectionForm {
            source: connection.source,
            public: connection.public,
            remote: connection.remote,
            resolved: connection
                .resolved
                .iter()
                .map(|&(ip, verdict)| match verdict {
                    Verdict::Allowed => (ip, 0, 0),
                    Verdict::Skipped => (ip, 1, 0),
                    Verdict::Denied(code) => (ip, 2, code_number(code)),
                })
                .collect(),
            reused: connection.reused,
            tls: connection.tls.as_ref().map(|tls| TlsForm {
                version: &tls.version,
                cipher: &tls.cipher,
                alpn: tls.alpn.as_deref(),
                certificate: tls.certificate.as_ref().map(|certificate| CertificateForm {
                    subject: &certificate.subject,
                    issuer: &certificate.issuer,
                    not_after: nanoseconds(certificate.not_after),
                    sha256: certificate.sha256,
                }),
            }),
        }),
        would_block: finished.would_block.map(code_number),
        timings: timings.map(|timing| timing.map(span)),
        released_at: finished.released_at.map(nanoseconds),
        started_at: finished.started_at.map(nanoseconds),
        finished_at: nanoseconds(finished.finished_at),
        more: processed
            .iter()
            .map(|processed| (PROCESSED, &processed[..]))
            .chain(certificate.iter().map(|certificate| (CERTIFICATE, &certificate[..])))
            .chain(batch.iter().map(|batch| (BATCH, &batch[..])))
            .chain(taken.map(|_| (TAKEN, &[][..])))
            .collect(),
    };
    let body = finished.response.as_ref().and_then(|response| response.body.bytes.clone());
    (encode(&form, Vec::with_capacity(512)), body)
}

/// The same end without what a peer or an author can make large: headers, and of the body all but how long it was.
pub fn without_answer(ended: &[u8]) -> Read<Vec<u8>> {
    let mut form: FinishForm<'_> = decode(ended)?;
    form.sent_headers = None;
    if let Some(response) = &mut form.response {
        response.headers.clear();
        let body = &mut response.body;
        *body = BodyForm { kept: false, truncated: body.truncated || body.total > 0, ..*body };
    }
    Ok(encode(&form, Vec::with_capacity(512)))
}

impl FinishForm<'_> {
    pub fn outcome(&self) -> u8 {
        self.outcome
    }

    pub fn code(&self) -> Option<u8> {
        self.error.as_ref().map(|error| error.code)
    }

    pub fn status(&self) -> Option<u16> {
        self.response.as_ref().map(|response| response.status)
    }

    /// Bound and public address.
    pub fn sources(&self) -> (Option<IpAddr>, Option<IpAddr>) {
        let connection = self.connection.as_ref();
        (
            connection.and_then(|connection| connection.source).map(|source| source.ip()),
            connection.and_then(|connection| connection.public),
        )
    }

    pub fn started_at(&self) -> Option<i64> {
        self.started_at
    }

    /// How long the delivery took; `None`: it was not begun, or nobody saw it end.
    pub fn total(&self) -> Option<Duration> {
        self.timings[8].map(Duration::from_nanos)
    }

    fn fact(&self, number: u8) -> Option<&[u8]> {
        self.more.iter().find(|(known, _)| *known == number).map(|(_, fact)| *fact)
    }

    fn batch(&self) -> Option<InBatch> {
        let (id, rest) = self.fact(BATCH)?.split_first_chunk()?;
        let closes_at = timestamp(i64::from_le_bytes(*rest.first_chunk()?));
        let taken = self.fact(TAKEN).map_or(Processed::No, |_| Processed::Maybe);
        Some(InBatch { id: BatchId::from_bytes(*id), closes_at, taken })
    }

    fn error(&self) -> Read<Option<Failure>> {
        let Some(error) = &self.error else { return Ok(None) };
        let failure = error.failure()?;
        Ok(Some(match self.fact(PROCESSED) {
            Some(&[number]) => failure.but(processed_of(number)?),
            _ => failure,
        }))
    }

    pub fn finished(&self, id: SendId, body: Option<Bytes>) -> Read<Finished> {
        let [held, queued, dns, connect, tls, write, wait, read, total] =
            self.timings.map(|timing| timing.map(Duration::from_nanos));
        let mut connection = match &self.connection {
            Some(connection) => Some(connection.connection()?),
            None => None,
        };
        if let Some(certificate) =
            connection.as_mut().and_then(|connection| connection.tls.as_mut()?.certificate.as_mut())
            && let Some(more) = self.fact(CERTIFICATE)
        {
            let more: CertificateMore<'_> = postcard::from_bytes(more).map_err(|_| Unreadable("not of its form"))?;
            certificate.names = more.names.iter().map(|name| (*name).to_owned()).collect();
            certificate.not_before = more.not_before.map(timestamp);
            more.key.clone_into(&mut certificate.key);
        }
        Ok(Finished {
            id,
            ended: Ended { outcome: outcome_of(self.outcome)?, error: self.error()? },
            sent_headers: self.sent_headers.as_ref().map(shown_headers),
            response: self.response.as_ref().map(|response| ShownResponse {
                status: response.status,
                version: response.version.to_owned(),
                headers: shown_headers(&response.headers),
                body: response.body.shown(body),
                declared: response.declared,
            }),
            connection,
            would_block: self.would_block.map(code_of).transpose()?,
            timings: Timings { held, queued, dns, connect, tls, write, wait, read, total },
            released_at: self.released_at.map(timestamp),
            started_at: self.started_at.map(timestamp),
            finished_at: timestamp(self.finished_at),
            batch: self.batch(),
        })
    }
}

impl ConnectionForm<'_> {
    fn connection(&self) -> Read<Connection> {
        let verdict = |&(ip, verdict, code): &(IpAddr, u8, u8)| match verdict {
            0 => Ok((ip, Verdict::Allowed)),
            1 => Ok((ip, Verdict::Skipped)),
            2 => Ok((ip, Verdict::Denied(code_of(code)?))),
            _ => Err(Unreadable("a verdict of no known number")),
        };
        Ok(Connection {
            source: self.source,
            public: self.public,
            remote: self.remote,
            resolved: self.resolved.iter().map(verdict).collect::<Read<_>>()?,
            reused: self.reused,
            tls: self.tls.as_ref().map(|tls| TlsFacts {
                version: tls.version.to_owned(),
                cipher: tls.cipher.to_owned(),
                alpn: tls.alpn.map(str::to_owned),
                certificate: tls.certificate.as_ref().map(|certificate| Certificate {
                    subject: certificate.subject.to_owned(),
                    issuer: certificate.issuer.to_owned(),
                    // Beside it, as what was added since.
                    names: Vec::new(),
                    not_before: None,
                    key: String::new(),
                    not_after: timestamp(certificate.not_after),
                    sha256: certificate.sha256,
                }),
            }),
        })
    }
}

// How an execution ended.

#[derive(Serialize, Deserialize)]
pub struct EndingForm<'a> {
    pub tenant: &'a str,
    pub execution: &'a str,
    /// 0 finished by a call, 1 finished by the hold limit, 2 discarded.
    pub kind: u8,
    pub at: i64,
    pub count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_reads_back_as_its_value() {
        for &outcome in Outcome::ALL {
            assert_eq!(outcome_of(outcome_number(outcome)), Ok(outcome));
        }
        for &code in Code::ALL {
            assert_eq!(code_of(code_number(code)), Ok(code));
        }
        for &phase in Phase::ALL {
            assert_eq!(phase_of(phase_number(phase)), Ok(phase));
        }
        for &processed in Processed::ALL {
            assert_eq!(processed_of(processed_number(processed)), Ok(processed));
        }
        for &method in Method::ALL {
            assert_eq!(method_of(method_number(method)), Ok(method));
        }
        for &kind in Kind::ALL {
            assert_eq!(kind_of(kind_number(kind)), Ok(kind));
        }
        assert!(code_of(200).is_err());
    }

    #[test]
    fn an_end_from_before_a_fact_was_added_reads_without_it_and_a_later_one_with_more() {
        let id = SendId(uuid::Uuid::nil());
        let end = Finished {
            id,
            ended: Ended::because(Failure::recorded(Code::ConnectionReset, Some(Phase::Wait), Processed::No, "why")),
            sent_headers: None,
            response: None,
            connection: None,
            would_block: None,
            timings: Timings::default(),
            released_at: None,
            started_at: None,
            finished_at: timestamp(7),
            batch: None,
        };
        let (bytes, _) = ended(&end);
        let read = |bytes: &[u8]| decode::<FinishForm<'_>>(bytes)?.finished(id, None);
        assert_eq!(read(&bytes), Ok(end.clone()));
        // The list of added facts is: how many, and for each its number, its length and its bytes.
        assert_eq!(bytes[bytes.len() - 4..], [1, PROCESSED, 1, 0]);
        let before = &bytes[..bytes.len() - 4];
        let usual = Failure::recorded(Code::ConnectionReset, Some(Phase::Wait), Processed::Maybe, "why");
        assert_eq!(read(before).map(|end| end.ended.error), Ok(Some(usual)));
        let later = [before, &[2, 200, 2, 9, 9, PROCESSED, 1, 0]].concat();
        assert_eq!(read(&later), Ok(end));
    }

    #[test]
    fn a_message_is_shown_to_a_reader_from_before_there_were_any_and_never_made_by_it() {
        let email = Email::stored(
            Bytes::from_static(br#"{"include_collaborators":false,"subject":"S","text":"T"}"#),
            Destination { scheme: Scheme::Smtp, host: Host::Name("relay.example.net".into()), port: 587 },
        )
        .expect("a message");
        let body =
            ShownBody { bytes: Some(email.content().clone()), total: 59, truncated: false, sha256: Some([7; 32]) };
        let (relay, headers, spelling) = (email.relay().clone(), Vec::new(), Spelling::default());
        let new = NewSend {
            id: SendId(uuid::Uuid::nil()),
            tenant: TenantId::new("acme"),
            shown: ShownRequest {
                to: ShownTo::Email { relay },
                headers,
                spelling,
                dropped_headers: Vec::new(),
                body: Some(body),
            },
            spec: Arc::new(SendSpec { to: To::Email(email), context: Context::default(), expires_in: None }),
            sealed: false,
            resend_of: None,
            created_at: timestamp(7),
            expires_in: Duration::from_secs(60),
            course: super::super::Course::Wait,
        };
        let written = accepted(&new, "node", false, None);
        assert!(written.rest.is_none(), "all of it is shown");
        let form: SendForm<'_> = decode(&written.form).expect("a form");
        assert_eq!(form.shown(written.body.clone()).as_ref(), Ok(&new.shown));
        assert_eq!(form.spec(written.body.clone(), None).as_ref(), Ok(&*new.spec));
        assert_eq!(form.destination(), new.spec.destination().cloned());

        // Who does not know the fact that says so passes over it.
        let before = SendForm { more: Vec::new(), ..form };
        let shown = before.shown(written.body.clone()).expect("shown");
        assert_eq!(shown.to, ShownTo::Http { method: Method::Post, url: "mailto:".to_owned() });
        assert_eq!(before.spec(written.body.clone(), None), Err(Unreadable("a URL that is refused now")));
        // And one that is of a kind to come is none that is known.
        let later = SendForm { more: vec![(KIND, &[200][..])], ..before };
        assert!(later.shown(written.body.clone()).is_err() && later.spec(written.body, None).is_err());
        assert!(later.destination().is_some());
    }

    #[test]
    fn an_event_is_never_made_by_a_reader_from_before_there_were_any() {
        let place = Place::S3 { bucket: "logs".into(), prefix: "a\u{e9}/b".into() };
        let way = Destination { scheme: Scheme::Https, host: Host::Name("logs.s3.example.net".into()), port: 443 };
        let event = Event::new(place.clone(), way.clone(), Bytes::from_static(b"{\"n\":1}")).expect("an event");
        let body =
            ShownBody { bytes: Some(event.payload().clone()), total: 7, truncated: false, sha256: Some([7; 32]) };
        let new = NewSend {
            id: SendId(uuid::Uuid::nil()),
            tenant: TenantId::new("acme"),
            shown: ShownRequest {
                to: ShownTo::Event { place: place.clone(), way: way.clone() },
                headers: Vec::new(),
                spelling: Spelling::default(),
                dropped_headers: Vec::new(),
                body: Some(body),
            },
            spec: Arc::new(SendSpec { to: To::Event(event), context: Context::default(), expires_in: None }),
            sealed: false,
            resend_of: None,
            created_at: timestamp(7),
            expires_in: Duration::from_secs(60),
            course: super::super::Course::Claim,
        };
        let written = accepted(&new, "node", false, None);
        let form: SendForm<'_> = decode(&written.form).expect("a form");
        assert_eq!(form.shown(written.body.clone()).as_ref(), Ok(&new.shown));
        assert_eq!(form.spec(written.body.clone(), None).as_ref(), Ok(&*new.spec));
        assert_eq!((form.gathers(), form.body_bytes(), form.destination()), (Some(place), 7, Some(way)));
        // Who does not know the kind makes nothing of it, nor does who knows no kinds at all.
        let before = SendForm { more: Vec::new(), ..form };
        assert_eq!(before.spec(written.body.clone(), None), Err(Unreadable("a URL that is refused now")));
        let without_place = SendForm { more: vec![(KIND, &[2][..])], ..before };
        assert!(without_place.spec(written.body, None).is_err() && without_place.gathers().is_none());
    }

    #[test]
    fn a_form_of_another_version_is_not_guessed_at() {
        let form = EndingForm { tenant: "a", execution: "e", kind: 0, at: 1, count: 2 };
        let mut bytes = encode(&form, Vec::new());
        assert_eq!(decode::<EndingForm<'_>>(&bytes).map(|form| form.count), Ok(2));
        bytes[0] = 9;
        assert!(decode::<EndingForm<'_>>(&bytes).is_err());
        assert!(decode::<EndingForm<'_>>(&[]).is_err());
    }
}
