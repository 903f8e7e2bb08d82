//! `POST /v1/sends/{id}/resend`: the same request once more, as a new send. Never automatic.
//!
//! What was redacted, or is no longer kept, has to be supplied anew: the record alone is no secret store. A message goes
//! to whom the configuration names now.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, header};

use super::access::{Caller, Need};
use super::answers::{self, Receipt};
use super::body::Received;
use super::problem::{BodyProblem, Problem, ProblemCode, ProblemView};
use super::sends::{RECORD_JSON_BYTES, Telling, bounds, idempotency_key, prefers_minimal, send_id, trace_of};
use super::{Shared, openapi, query, refused};
use crate::config::S3Settings;
use crate::deliver::http::TRACEPARENT;
use crate::intake::Submit;
use crate::policy::CheckedUrl;
use crate::record::{Record, ShownTo};
use crate::redact::REDACTED_PREFIX;
use crate::send::headers::is_dropped;
use crate::send::parse::{self, Mail, Sql, Supplied};
use crate::send::trace::TraceParent;
use crate::send::{Email, Event, HeaderLines, HttpRequest, Method, Place, SendSpec, Target, To};
use crate::store::Reach;

/// Send the same request again, as a new send that names this one.
///
/// What was redacted or is no longer kept is supplied in the body; while any of it is missing, 409
/// `resend_incomplete` names each.
#[utoipa::path(
    post, path = "/v1/sends/{id}/resend", operation_id = "resend", tag = "sends",
    params(openapi::Tenant, openapi::Idempotency, openapi::Prefer, openapi::Trace, ("id" = String, Path, description = "The send's id")),
    request_body(content = Option<openapi::ResendBody>, content_type = "application/json", example = json!({"headers": {"Authorization": "Bearer …"}})),
    responses(
        (status = 202, description = "Accepted and on disk: the new send", body = super::view::AcceptedView<'static>,
            headers(
                ("idempotency-replayed" = String, description = "`true`: an earlier call's send"),
                ("preference-applied" = String, description = "`return=minimal`: as it was preferred"),
            )),
        (status = 400, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not of the right shape"),
        (status = 401, body = ProblemView<'static>, content_type = "application/problem+json", description = "No valid token"),
        (status = 403, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not allowed, or suspended"),
        (status = 404, body = ProblemView<'static>, content_type = "application/problem+json", description = "No such send"),
        (status = 409, body = ProblemView<'static>, content_type = "application/problem+json", description = "Something of the original is missing"),
        (status = 413, body = ProblemView<'static>, content_type = "application/problem+json", description = "Too large"),
        (status = 415, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not JSON"),
        (status = 422, body = ProblemView<'static>, content_type = "application/problem+json", description = "The key came with another body"),
        (status = 429, body = ProblemView<'static>, content_type = "application/problem+json", description = "The tenant's queue is full"),
        (status = 503, body = ProblemView<'static>, content_type = "application/problem+json", description = "The node is full, draining, or its store cannot write"),
    ),
)]
pub(super) async fn resend(
    State(api): State<Arc<Shared>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    match api.resend(path, request).await {
        Ok(response) => response,
        Err(problem) => {
            refused(&problem, 1);
            problem.into_response()
        }
    }
}

impl Shared {
    async fn resend(&self, path: Result<Path<String>, PathRejection>, request: Request) -> Result<Response, Problem> {
        let config = self.world.config();
        let caller = Caller::admit(request.headers(), &config, Need::SubmitAndRead)?;
        let tenant = caller.tenant(request.headers())?;
        query::none(request.uri().query())?;
        let key = idempotency_key(request.headers())?;
        let trace = trace_of(request.headers());
        let telling = Telling { one: true, minimal: prefers_minimal(request.headers()) };
        let id = send_id(path)?;
        let Received { bytes, room } = self.body(&caller, request).await?;
        let path = format!("/v1/sends/{id}/resend");
        let idempotency = self.idempotency(key, &tenant, path, &bytes).await;
        if let Some(submitted) = self.replayed(idempotency.clone()).await? {
            return self.accepted(tenant, &caller, telling, submitted, Receipt(room)).await;
        }
        let original = self.store.record(Reach::One(tenant.clone()), id, true).await?;
        let original = original.ok_or_else(|| Problem::not_found("send"))?;
        let content_type = original_header(&original, "content-type");
        let bounds = bounds(&config, &tenant);
        let (mail, stores) = (bounds.mail.clone(), (bounds.s3.clone(), bounds.sql.clone()));
        let (content_type, call) = (content_type.map(str::to_owned), bytes.len());
        let supplied = move |bytes: &bytes::Bytes| parse::supplied(bytes, &bounds, content_type.as_deref());
        let (supplied, mut room) = self.read(Received { bytes, room }, &tenant, supplied).await?;
        let to = match &original.request.to {
            ShownTo::Http { method, url } => {
                To::Http(again(&original, *method, url, supplied, &config.delivery.user_agent)?)
            }
            ShownTo::Email { .. } => To::Email(email_again(&original, supplied, &mail)?),
            ShownTo::Event { place, .. } => {
                To::Event(event_again(&original, place, supplied, (stores.0.as_deref(), &stores.1))?)
            }
        };
        let mut send = SendSpec { to, context: original.context.clone(), expires_in: None };
        send.context.trace = trace;
        let body = send.body().map_or(0, |body| body.len());
        if !room.cover_beyond(call + RECORD_JSON_BYTES + 3 * body) {
            return Err(answers::full());
        }
        let receipt = Receipt(room);
        let submit = Submit { tenant: tenant.clone(), sends: vec![send], hold: None, idempotency, resend_of: Some(id) };
        let (submitted, receipt) = self.submit_in_full(submit, receipt).await?;
        let submitted = submitted.map_err(|refusal| Problem::told(refusal, caller.operate))?;
        self.accepted(tenant, &caller, telling, submitted, receipt).await
    }
}

fn original_header<'a>(original: &'a Record, name: &str) -> Option<&'a str> {
    let headers = original.request.headers.iter();
    headers.into_iter().find(|(known, _)| known == name).and_then(|(_, values)| values.first()).map(String::as_str)
}

/// The original's request with what was supplied; or the list of what is missing.
fn again(
    original: &Record,
    method: Method,
    url: &str,
    supplied: Supplied,
    our_user_agent: &str,
) -> Result<HttpRequest, Problem> {
    if supplied.email.is_some() {
        return Err(misplaced("/email", "the original is a request, which has no message"));
    }
    if supplied.event.is_some() {
        return Err(misplaced("", "the original is a request, and no event"));
    }
    let mut missing = Vec::new();
    let mut miss = |pointer: String, detail: String| missing.push(BodyProblem { pointer, detail, hint: None });
    let request = &original.request;

    let parent = original.context.trace;
    let carried = [parent, Some(TraceParent::of(original.id, parent.as_ref()))];
    let mut lines: HeaderLines = Vec::new();
    for (name, values) in &request.headers {
        // A record that was sent holds what we added ourselves; those are added again.
        let ours = is_dropped(name)
            || (name == "user-agent" && values.as_slice() == [our_user_agent])
            || (name == TRACEPARENT && values.iter().all(|value| carried.contains(&TraceParent::parse(value))));
        let supplied_anew = supplied.headers.iter().any(|(known, _)| known == name.as_str())
            || (name == "authorization" && supplied.authorization.is_some());
        if ours || supplied_anew {
            continue;
        }
        if values.iter().any(|value| value.starts_with(REDACTED_PREFIX)) {
            let pointer = if name == "authorization" { "/auth".to_owned() } else { format!("/headers/{name}") };
            let or = if name == "authorization" { " (or headers.authorization)" } else { "" };
            miss(pointer, format!("the header {name} was redacted: supply it anew{or}"));
            continue;
        }
        for value in values {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                lines.push((name, value));
            }
        }
    }
    let body = match (supplied.body, &request.body) {
        (Some(body), _) => {
            let typed = lines.iter().chain(&supplied.headers).any(|(name, _)| name == header::CONTENT_TYPE);
            if !typed {
                lines.push((header::CONTENT_TYPE, HeaderValue::from_static(body.kind.content_type())));
            }
            Some(body.bytes)
        }
        (None, None) => None,
        (None, Some(kept)) if kept.total == 0 => Some(bytes::Bytes::new()),
        (None, Some(kept)) => match &kept.bytes {
            Some(bytes) if kept.sha256.is_some() && !kept.truncated => Some(bytes.clone()),
            Some(_) => {
                miss("/data".to_owned(), "the body was redacted: supply it anew (data or data_base64)".to_owned());
                None
            }
            None => {
                miss("/data".to_owned(), "the body is not kept: supply it anew (data or data_base64)".to_owned());
                None
            }
        },
    };
    if !missing.is_empty() {
        let details: Vec<&str> = missing.iter().map(|one| one.detail.as_str()).collect();
        return Err(Problem::new(ProblemCode::ResendIncomplete, details.join("; ")).errors(missing));
    }
    if let Some(value) = supplied.authorization {
        lines.retain(|(name, _)| name != header::AUTHORIZATION);
        lines.extend(supplied.headers.into_iter().filter(|(name, _)| name != header::AUTHORIZATION));
        lines.push((header::AUTHORIZATION, value));
    } else {
        lines.extend(supplied.headers);
    }
    let mut dropped_headers = request.dropped_headers.clone();
    for name in supplied.dropped_headers {
        if !dropped_headers.contains(&name) {
            dropped_headers.push(name);
        }
    }
    let target = match CheckedUrl::parse(url) {
        Ok(url) => Target::Url(url),
        Err(denial) => Target::Refused { shown: url.to_owned(), denial: denial.into() },
    };
    let mut spelling = request.spelling.clone();
    supplied.spelling.iter().for_each(|name| spelling.note(name));
    Ok(HttpRequest { method, target, headers: lines, spelling, dropped_headers, body })
}

/// The original's message, or the one that was supplied in its place, to the address that is configured now.
fn email_again(original: &Record, supplied: Supplied, mail: &Mail) -> Result<Email, Problem> {
    if let Some(pointer) = of_request(&supplied).or_else(|| supplied.event.is_some().then_some("")) {
        return Err(misplaced(pointer, "the original is a message: supply email in its place, or nothing"));
    }
    if let Some(email) = supplied.email {
        return Ok(email);
    }
    let relay = mail.relay().map_err(|(detail, hint)| Problem::shape(format!("{detail}: {hint}")))?;
    let kept = original.request.body.as_ref();
    let whole = kept.filter(|kept| kept.sha256.is_some() && !kept.truncated).and_then(|kept| kept.bytes.clone());
    let email = whole.and_then(|content| Email::stored(content, relay.clone()));
    email.ok_or_else(|| {
        let what = if kept.is_some_and(|kept| kept.bytes.is_some()) { "was redacted" } else { "is not kept" };
        let missing = BodyProblem {
            pointer: "/email".to_owned(),
            detail: format!("the message {what}: supply it anew (email)"),
            hint: None,
        };
        Problem::new(ProblemCode::ResendIncomplete, missing.detail.clone()).errors(vec![missing])
    })
}

/// What was supplied that only a request has.
fn of_request(supplied: &Supplied) -> Option<&'static str> {
    let given = [
        ("/auth", supplied.authorization.is_some()),
        ("/headers", !supplied.headers.is_empty() || !supplied.dropped_headers.is_empty()),
        ("/data", supplied.body.is_some()),
    ];
    given.iter().find(|(_, given)| *given).map(|(pointer, _)| *pointer)
}

/// The original's event, or the one that was supplied in its place, for the store that is configured now.
fn event_again(
    original: &Record,
    place: &Place,
    supplied: Supplied,
    (s3, sql): (Option<&S3Settings>, &Sql),
) -> Result<Event, Problem> {
    let name = place.kind().label();
    if let Some(pointer) = of_request(&supplied).or_else(|| supplied.email.is_some().then_some("/email")) {
        return Err(misplaced(pointer, &format!("the original is an event: supply {name} in its place, or nothing")));
    }
    if let Some(event) = supplied.event {
        if event.place().kind() != place.kind() {
            return Err(misplaced("", &format!("the original is an event: supply {name} in its place, or nothing")));
        }
        return Ok(event);
    }
    let way = match place {
        Place::S3 { bucket, .. } => {
            let set_up =
                s3.ok_or_else(|| Problem::shape("this node's operator has not set S3 up: ask for [destination.s3]"))?;
            if !set_up.allows(bucket) {
                let detail = "the bucket is none of those that the operator allows now: ask the operator";
                return Err(Problem::shape(detail));
            }
            set_up.way(bucket).map_err(|denial| Problem::shape(denial.message))?
        }
        Place::Sql { .. } => sql.way().map_err(|(detail, hint)| Problem::shape(format!("{detail}: {hint}")))?.clone(),
    };
    let kept = original.request.body.as_ref();
    let whole = kept.filter(|kept| kept.sha256.is_some() && !kept.truncated).and_then(|kept| kept.bytes.clone());
    let event = whole.and_then(|payload| Event::new(place.clone(), way, payload));
    event.ok_or_else(|| {
        let what = if kept.is_some_and(|kept| kept.bytes.is_some()) { "was redacted" } else { "is not kept" };
        let missing = BodyProblem {
            pointer: format!("/{name}"),
            detail: format!("the payload {what}: supply the event anew ({name})"),
            hint: None,
        };
        Problem::new(ProblemCode::ResendIncomplete, missing.detail.clone()).errors(vec![missing])
    })
}

fn misplaced(pointer: &str, detail: &str) -> Problem {
    let problem = BodyProblem { pointer: pointer.to_owned(), detail: detail.to_owned(), hint: None };
    Problem::shape(detail).errors(vec![problem])
}
