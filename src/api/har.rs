//! `GET /v1/sends/{id}/har`: a record as HAR 1.2 (the HTTP Archive format), for tools that read it.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use http::header::CONTENT_DISPOSITION;
use http::{HeaderValue, StatusCode};
use serde_json::{Value, json};

use super::access::{Caller, Need};
use super::problem::{Problem, ProblemCode, ProblemView};
use super::sends::{SHOWN_JSON_BYTES, send_id};
use super::view::{Sight, likely_bytes, milliseconds, shown_body, shown_message};
use super::{Shared, openapi, query};
use crate::record::{Record, ShownHeaders};
use crate::redact::Visible;
use crate::send::Kind;

/// One send's record as HAR 1.2, which tells of HTTP alone: of other sends there is none. A send without a response has status 0, as browsers write it.
#[utoipa::path(
    get, path = "/v1/sends/{id}/har", operation_id = "read_har", tag = "sends",
    params(openapi::Tenant, ("id" = String, Path, description = "The send's id")),
    responses(
        (status = 200, description = "HAR 1.2", body = openapi::Har),
        (status = 400, body = ProblemView<'static>, content_type = "application/problem+json", description = "A parameter is not right"),
        (status = 401, body = ProblemView<'static>, content_type = "application/problem+json", description = "No valid token"),
        (status = 403, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not allowed"),
        (status = 404, body = ProblemView<'static>, content_type = "application/problem+json", description = "No such send, or it is no HTTP request"),
        (status = 503, body = ProblemView<'static>, content_type = "application/problem+json", description = "The store cannot read, or too many answers are unread"),
    ),
)]
pub(super) async fn har(
    State(api): State<Arc<Shared>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let caller = Caller::admit(request.headers(), &api.world.config(), Need::Read)?;
    let tenants = caller.tenants(request.headers())?;
    query::none(request.uri().query())?;
    let id = send_id(path)?;
    let turn = api.turns.turn(&caller.holder(), SHOWN_JSON_BYTES).await?;
    let (turn, record) = api.read_record(turn, tenants, id).await?;
    if record.request.to.kind() != Kind::Http {
        let detail = "a HAR tells of HTTP, and this send is none: GET /v1/sends/{id} has all that there is of it";
        return Err(Problem::new(ProblemCode::NotFound, detail));
    }
    let bytes = likely_bytes(&record, true);
    let redactor = api.intake.redactor();
    let write = move || turn.json(StatusCode::OK, &archive(&redactor.visible(record)));
    let mut response = api.intake.apart().on(bytes, &caller.holder().in_line(), write).await?;
    if let Ok(name) = HeaderValue::try_from(format!("inline; filename=\"{id}.har\"")) {
        response.headers_mut().insert(CONTENT_DISPOSITION, name);
    }
    Ok(response)
}

fn archive(record: &Visible) -> Value {
    json!({"log": {
        "version": "1.2",
        "creator": {"name": "egressd", "version": env!("CARGO_PKG_VERSION")},
        "entries": [entry(record)],
    }})
}

fn entry(record: &Record) -> Value {
    let connection = record.connection.as_ref();
    let remote = connection.and_then(|connection| connection.remote);
    let total = record.timings.total.map_or(0.0, milliseconds);
    let mut entry = json!({
        "startedDateTime": record.started_at.unwrap_or(record.created_at).to_string(),
        "time": total,
        "request": request(record),
        "response": response(record),
        "cache": {},
        "timings": timings(record),
        "_id": record.id.to_string(),
        "_outcome": record.ended.as_ref().map(|ended| ended.outcome.label()),
    });
    if let Some(remote) = remote {
        entry["serverIPAddress"] = remote.ip().to_string().into();
    }
    if let Some(source) = connection.and_then(|connection| connection.source) {
        entry["connection"] = source.port().to_string().into();
    }
    if let Some(error) = record.ended.as_ref().and_then(|ended| ended.error.as_ref()) {
        entry["comment"] = format!("{}: {}", error.code, shown_message(&error.message, record, WITH_BODIES)).into();
        entry["_processed"] = error.processed.label().into();
    }
    entry
}

const WITH_BODIES: Sight = Sight { operate: false, bodies: true };

fn request(record: &Record) -> Value {
    let shown = &record.request;
    let url = shown.to.url().unwrap_or_default();
    let mut request = json!({
        "method": shown.to.method().map(|method| method.label()),
        "url": url,
        "httpVersion": record.response.as_ref().map_or("unknown", |response| response.version.as_str()),
        "cookies": [],
        "headers": headers(&shown.headers),
        "queryString": query_string(url),
        "headersSize": -1,
        "bodySize": shown.body.as_ref().map_or(0, |body| body.total),
    });
    if let Some(body) = &shown.body {
        let (text, encoding) = shown_body(Some(body), WITH_BODIES);
        let mut data = json!({
            "mimeType": value_of(&shown.headers, "content-type"),
            "params": [],
            "text": text.unwrap_or_default(),
        });
        match encoding {
            // The format has no place for the encoding of a posted body.
            Some("base64") => {
                data["_encoding"] = "base64".into();
                data["comment"] = "text is base64".into();
            }
            Some(_) => {}
            None => data["comment"] = "the body is not kept".into(),
        }
        request["postData"] = data;
    }
    request
}

fn response(record: &Record) -> Value {
    let Some(shown) = &record.response else {
        return json!({
            "status": 0, "statusText": "", "httpVersion": "unknown", "cookies": [], "headers": [],
            "content": {"size": 0, "mimeType": "x-unknown"},
            "redirectURL": "", "headersSize": -1, "bodySize": -1,
        });
    };
    let (text, encoding) = shown_body(Some(&shown.body), WITH_BODIES);
    let mut content = json!({"size": shown.body.total, "mimeType": value_of(&shown.headers, "content-type")});
    if let Some(text) = text {
        content["text"] = text.into();
    }
    if encoding == Some("base64") {
        content["encoding"] = "base64".into();
    }
    if shown.body.truncated {
        content["comment"] = "less is stored than was sent".into();
    }
    let reason = StatusCode::from_u16(shown.status).ok().and_then(|status| status.canonical_reason());
    json!({
        "status": shown.status,
        "statusText": reason.unwrap_or_default(),
        "httpVersion": shown.version,
        "cookies": [],
        "headers": headers(&shown.headers),
        "content": content,
        "redirectURL": value_of(&shown.headers, "location"),
        "headersSize": -1,
        "bodySize": shown.body.total,
    })
}

fn headers(shown: &ShownHeaders) -> Vec<Value> {
    let lines = shown.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value)));
    lines.map(|(name, value)| json!({"name": name, "value": value})).collect()
}

fn value_of<'a>(shown: &'a ShownHeaders, name: &str) -> &'a str {
    shown.iter().find(|(known, _)| known == name).and_then(|(_, values)| values.first()).map_or("", String::as_str)
}

fn query_string(url: &str) -> Vec<Value> {
    let Ok(url) = url::Url::parse(url) else { return Vec::new() };
    url.query_pairs().map(|(name, value)| json!({"name": name, "value": value})).collect()
}

/// HAR 1.2: -1 where a phase did not happen; `connect` includes `ssl`; the last three are never negative.
fn timings(record: &Record) -> Value {
    let spent = |phase: Option<std::time::Duration>| phase.map_or(-1.0, milliseconds);
    let timings = &record.timings;
    let connect = match (timings.connect, timings.tls) {
        (Some(connect), tls) => milliseconds(connect + tls.unwrap_or_default()),
        (None, tls) => spent(tls),
    };
    json!({
        "blocked": spent(timings.queued),
        "dns": spent(timings.dns),
        "connect": connect,
        "ssl": spent(timings.tls),
        "send": spent(timings.write).max(0.0),
        "wait": spent(timings.wait).max(0.0),
        "receive": spent(timings.read).max(0.0),
    })
}
