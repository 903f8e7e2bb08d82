//! Records as the API shows them: the contract's shape, with every key present in its order.
//!
//! Views borrow from the record and are serialised directly. What a tenant may not know (addresses of ours, and
//! what a denied name resolved to) is left out here, once, for every call that shows a record.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::openapi;
use crate::deliver::{s3, sql};
use crate::outcome::{
    Outcome, Processed, Refusal, Timings, redirected, refused_by_bucket, refused_by_relay, refused_by_warehouse,
};
use crate::policy::{Verdict, is_internal, without_internal_addresses, written_address};
use crate::record::{
    BatchId, Certificate, Connection, Execution, ExecutionSummary, Record, ShownBody, ShownHeaders, ShownRequest,
    ShownTo, State, TlsFacts,
};
use crate::redact::Visible;
use crate::send::{Kind, Method, Place, SendId};
use crate::store::ExecutionPage;

/// How much of a record is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    /// With the scope `operate`: addresses of ours, and of denied names.
    pub operate: bool,
    /// `false`: bodies read `null`.
    pub bodies: bool,
}

/// One send: what was asked for, what was sent, and what came back.
#[derive(Serialize, ToSchema)]
#[schema(as = Record)]
pub struct RecordView<'a> {
    #[schema(value_type = String, format = "uuid")]
    id: Shown<SendId>,
    #[schema(schema_with = openapi::state)]
    state: &'static str,
    #[schema(schema_with = openapi::outcome_or_null, required)]
    outcome: Option<&'static str>,
    #[schema(required)]
    error: Option<ErrorView<'a>>,
    /// The send that this one repeats.
    #[schema(value_type = Option<String>, format = "uuid", required)]
    resend_of: Option<Shown<SendId>>,
    context: ContextView<'a>,
    /// `null`: the send is no HTTP request, and what it is stands beside.
    #[schema(required)]
    request: Option<RequestView<'a>>,
    /// Only where the send is a message.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    email: Option<EmailView<'a>>,
    /// Only where the send is an event for a bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    s3: Option<EventView<'a>>,
    /// Only where the send is an event for a table.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    sql: Option<RowView<'a>>,
    /// Only where others go with it, and once that is known: of a held event it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    batch: Option<InBatchView>,
    #[schema(required)]
    response: Option<ResponseView<'a>>,
    /// In report mode: the code with which a host list would have blocked it.
    #[schema(schema_with = openapi::code_or_null, required)]
    would_block: Option<&'static str>,
    #[schema(required)]
    connection: Option<ConnectionView<'a>>,
    timings_ms: TimingsView,
    /// The node that accepted it.
    node: &'a str,
    #[schema(value_type = String, format = DateTime)]
    created_at: Shown<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime, required)]
    released_at: Option<Shown<Timestamp>>,
    #[schema(value_type = Option<String>, format = DateTime, required)]
    started_at: Option<Shown<Timestamp>>,
    #[schema(value_type = Option<String>, format = DateTime, required)]
    finished_at: Option<Shown<Timestamp>>,
}

/// About how many bytes a record's JSON has, with its bodies or without.
pub(super) fn likely_bytes(record: &Record, bodies: bool) -> usize {
    const OF_RECORD: usize = 1024;
    const OF_LINE: usize = 8;
    let of_headers = |headers: &ShownHeaders| -> usize {
        let lines = headers.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value)));
        lines.map(|(name, value)| name.len() + value.len() + OF_LINE).sum()
    };
    let kept = |body: Option<&ShownBody>| body.and_then(|body| body.bytes.as_ref()).map_or(0, |bytes| bytes.len());
    let (request, response) = (&record.request, record.response.as_ref());
    let mut bytes = OF_RECORD + request.to.url().map_or(0, str::len) + of_headers(&request.headers);
    bytes += response.map_or(0, |response| of_headers(&response.headers));
    if bodies {
        bytes += kept(request.body.as_ref()) + kept(response.map(|response| &response.body));
    }
    bytes
}

/// The same of several, without bodies.
pub(super) fn likely_bytes_of(records: &[Record]) -> usize {
    records.iter().map(|record| likely_bytes(record, false)).sum()
}

/// A value whose `Display` is its form in JSON.
pub struct Shown<T>(pub T);

impl<T: std::fmt::Display> Serialize for Shown<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// Why there is no complete response; or, with a `code` of `null`, where a redirect points, or what a relay refused.
#[derive(Serialize, ToSchema)]
#[schema(as = RecordError)]
struct ErrorView<'a> {
    /// `null`: an answer came, and it is a redirect or a relay's refusal.
    #[schema(schema_with = openapi::code_or_null, required)]
    code: Option<&'static str>,
    #[schema(schema_with = openapi::phase_or_null, required)]
    phase: Option<&'static str>,
    /// `no`: nothing of the request left, or the peer said that it did nothing with it. `maybe`. `yes`: a status came.
    #[schema(schema_with = openapi::processed)]
    processed: &'static str,
    /// What was tried, with which values, and what to do next.
    message: Cow<'a, str>,
}

/// The record's error message as this caller may read it: a tenant is told no address of ours, or near us, that it is
/// not told elsewhere in the record.
pub(super) fn shown_message<'a>(message: &'a str, record: &Record, sight: Sight) -> Cow<'a, str> {
    if sight.operate {
        return Cow::Borrowed(message);
    }
    // What the author wrote is no news.
    let written = record.request.to.url().and_then(written_address);
    without_internal_addresses(message, |ip| {
        let in_connection = record.connection.as_ref().is_some_and(|connection| {
            let allowed = |(one, verdict): &(IpAddr, Verdict)| *one == ip && !matches!(verdict, Verdict::Denied(_));
            let is_peer =
                || connection.remote.is_some_and(|remote| remote.ip() == ip) || connection.resolved.iter().any(allowed);
            connection.public == Some(ip) || !is_the_operators(record) && is_peer()
        });
        in_connection || written == Some(ip)
    })
}

impl<'a> ErrorView<'a> {
    fn new(record: &'a Record, sight: Sight) -> Option<Self> {
        let ended = record.ended.as_ref()?;
        if let Some(error) = &ended.error {
            return Some(Self {
                code: Some(error.code.label()),
                phase: error.phase.map(|phase| phase.label()),
                processed: error.processed.label(),
                message: shown_message(&error.message, record, sight),
            });
        }
        let response = record.response.as_ref().filter(|_| ended.outcome == Outcome::Rejected)?;
        let taken = record.batch.map_or(Processed::No, |batch| batch.taken);
        let (processed, message) = match record.request.to.kind() {
            Kind::Http if response.status < 400 => {
                (Processed::Yes, redirected(response.status, response.header("location")))
            }
            Kind::Http => return None,
            Kind::Email => (Processed::No, refused_by_relay(response.status, response.header("command"))),
            Kind::Sql => {
                let (state, events) = (response.header("sqlstate"), response.header(sql::REFUSED_EVENTS));
                let Refusal { processed, message } = refused_by_warehouse(response.status, state, events, taken);
                (processed, message)
            }
            Kind::S3 => {
                let code = s3::error_code(response.body.bytes.as_deref().unwrap_or_default());
                let Refusal { processed, message } = refused_by_bucket(response.status, code, taken);
                (processed, message)
            }
        };
        Some(Self { code: None, phase: None, processed: processed.label(), message: Cow::Owned(message) })
    }
}

/// Whose send it is, and where it came from.
#[derive(Serialize, ToSchema)]
#[schema(as = RecordContext)]
struct ContextView<'a> {
    tenant: &'a str,
    #[schema(required)]
    workflow: Option<&'a str>,
    #[schema(required)]
    execution: Option<&'a str>,
    #[schema(required)]
    step: Option<&'a str>,
    /// Place within the execution, in accept order.
    #[schema(required)]
    index: Option<u32>,
}

/// The request; once sent, with every header that left.
#[derive(Serialize, ToSchema)]
#[schema(as = RecordRequest)]
struct RequestView<'a> {
    #[schema(schema_with = openapi::method)]
    method: &'static str,
    url: &'a str,
    headers: Headers<'a>,
    /// Headers that were given and never leave.
    dropped_headers: &'a [String],
    #[schema(required)]
    body: Option<Cow<'a, str>>,
    #[schema(schema_with = openapi::encoding_or_null, required)]
    body_encoding: Option<&'static str>,
    /// Size of the body that is sent.
    body_bytes: u64,
    /// Less is stored than was sent.
    body_truncated: bool,
    /// `null` where the body is redacted or not kept.
    #[schema(required)]
    body_sha256: Option<Hex<'a>>,
}

impl<'a> RequestView<'a> {
    fn new(method: Method, url: &'a str, request: &'a ShownRequest, sight: Sight) -> Self {
        let no_body = ShownBody::default();
        let (body, body_encoding) = shown_body(request.body.as_ref(), sight);
        let sent = request.body.as_ref();
        Self {
            method: method.label(),
            url,
            headers: Headers(&request.headers),
            dropped_headers: &request.dropped_headers,
            body,
            body_encoding,
            body_bytes: sent.unwrap_or(&no_body).total,
            body_truncated: sent.unwrap_or(&no_body).truncated,
            body_sha256: sent.and_then(|body| body.sha256.as_ref()).map(Hex),
        }
    }
}

/// A message to the tenant's own address.
#[derive(Serialize, ToSchema)]
#[schema(as = RecordEmail)]
struct EmailView<'a> {
    /// As are `text` and `html`: `null` where bodies are left out or no longer kept, and where it was not given.
    #[schema(required)]
    subject: Option<String>,
    #[schema(required)]
    text: Option<String>,
    #[schema(required)]
    html: Option<String>,
    /// `null`: no longer kept.
    #[schema(required)]
    include_collaborators: Option<bool>,
    /// Once it left, whom it went to and from whom, and its `message-id`: of the headers that left all but the subject and
    /// those that describe its parts.
    headers: Headers<'a>,
    /// Size of what was given, as JSON.
    body_bytes: u64,
    /// What was given is no longer kept, or not all of it is shown.
    body_truncated: bool,
}

impl<'a> EmailView<'a> {
    fn new(request: &'a ShownRequest, sight: Sight) -> Self {
        let shown = request.body.as_ref().filter(|_| sight.bodies).and_then(|body| body.bytes.as_ref());
        // Where redaction left no JSON of it, nothing is shown.
        let mut content: serde_json::Map<String, serde_json::Value> =
            shown.and_then(|content| serde_json::from_slice(content).ok()).unwrap_or_default();
        let mut text = |name: &str| match content.remove(name) {
            Some(serde_json::Value::String(text)) => Some(text),
            _ => None,
        };
        let (subject, body_text, html) = (text("subject"), text("text"), text("html"));
        Self {
            subject,
            text: body_text,
            html,
            include_collaborators: content.get("include_collaborators").and_then(serde_json::Value::as_bool),
            headers: Headers(&request.headers),
            body_bytes: request.body.as_ref().map_or(0, |body| body.total),
            body_truncated: request.body.as_ref().is_some_and(|body| body.truncated),
        }
    }
}

/// An event for a bucket.
#[derive(Serialize, ToSchema)]
#[schema(as = RecordS3)]
struct EventView<'a> {
    bucket: &'a str,
    /// Without its last `/`.
    prefix: &'a str,
    /// In its author's own bytes; `null` where bodies are left out or no longer kept.
    #[schema(value_type = Option<serde_json::Value>, required)]
    payload: Option<&'a RawValue>,
    payload_bytes: u64,
    /// What was given is no longer kept, or not all of it is shown.
    payload_truncated: bool,
}

/// The batch that carries an event.
#[derive(Serialize, ToSchema)]
#[schema(as = InBatch)]
struct InBatchView {
    #[schema(value_type = String, pattern = "^[0-9a-f]{64}$")]
    id: Shown<BatchId>,
    /// When it closes, or has closed.
    #[schema(value_type = String, format = DateTime)]
    closes_at: Shown<Timestamp>,
}

/// An event for a table.
#[derive(Serialize, ToSchema)]
#[schema(as = RecordSql)]
struct RowView<'a> {
    table: &'a str,
    /// As that of an event for a bucket.
    #[schema(value_type = Option<serde_json::Value>, required)]
    payload: Option<&'a RawValue>,
    payload_bytes: u64,
    payload_truncated: bool,
}

/// An event as it is shown, for a bucket or for a table.
fn events<'a>(
    place: &'a Place,
    request: &'a ShownRequest,
    sight: Sight,
) -> (Option<EventView<'a>>, Option<RowView<'a>>) {
    let shown = request.body.as_ref().filter(|_| sight.bodies).and_then(|body| body.bytes.as_ref());
    // Where redaction left no JSON of it, nothing is shown.
    let payload = shown.and_then(|payload| serde_json::from_slice(payload).ok());
    let payload_bytes = request.body.as_ref().map_or(0, |body| body.total);
    let payload_truncated = request.body.as_ref().is_some_and(|body| body.truncated);
    match place {
        Place::S3 { bucket, prefix } => {
            (Some(EventView { bucket, prefix, payload, payload_bytes, payload_truncated }), None)
        }
        Place::Sql { table } => (None, Some(RowView { table, payload, payload_bytes, payload_truncated })),
    }
}

/// One try to bring a batch to where it goes.
#[derive(Serialize, ToSchema)]
#[schema(as = BatchAttempt)]
pub struct AttemptView<'a> {
    /// What came of it; that of the batch where no other follows.
    #[schema(schema_with = openapi::outcome_or_null, required)]
    outcome: Option<&'static str>,
    #[schema(required)]
    error: Option<ErrorView<'a>>,
    #[schema(required)]
    response: Option<ResponseView<'a>>,
    #[schema(required)]
    connection: Option<ConnectionView<'a>>,
    timings_ms: TimingsView,
    #[schema(value_type = Option<String>, format = DateTime, required)]
    started_at: Option<Shown<Timestamp>>,
    #[schema(value_type = Option<String>, format = DateTime, required)]
    finished_at: Option<Shown<Timestamp>>,
}

impl<'a> AttemptView<'a> {
    /// `record`: of a send that this was tried for alone.
    pub fn new(record: &'a Visible, sight: Sight) -> Self {
        let RecordView { outcome, error, response, connection, timings_ms, started_at, finished_at, .. } =
            RecordView::new(record, sight);
        Self { outcome, error, response, connection, timings_ms, started_at, finished_at }
    }
}

/// What the receiver answered; of a message, what the relay did, and no more than its code and words.
#[derive(Serialize, ToSchema)]
#[schema(as = RecordResponse)]
struct ResponseView<'a> {
    status: u16,
    /// `SMTP` of a relay's reply, whose `headers` say which `command` it answers.
    #[schema(example = "HTTP/1.1")]
    version: &'a str,
    headers: Headers<'a>,
    #[schema(required)]
    body: Option<Cow<'a, str>>,
    #[schema(schema_with = openapi::encoding_or_null, required)]
    body_encoding: Option<&'static str>,
    /// Bytes read.
    body_bytes: u64,
    /// The `Content-Length` it declared.
    #[schema(required)]
    body_declared: Option<u64>,
    /// Less is stored than was sent.
    body_truncated: bool,
}

/// The network side, as far as the delivery came.
#[derive(Serialize, ToSchema)]
#[schema(as = RecordConnection)]
struct ConnectionView<'a> {
    /// The address bound; the public one for callers without the scope `operate`.
    #[schema(value_type = Option<String>, required)]
    source_ip: Option<IpAddr>,
    /// The published address that the receiver saw.
    #[schema(value_type = Option<String>, required)]
    public_ip: Option<IpAddr>,
    #[schema(required)]
    source_port: Option<u16>,
    #[schema(value_type = Option<String>, required)]
    remote_ip: Option<IpAddr>,
    #[schema(required)]
    remote_port: Option<u16>,
    resolved: Vec<ResolvedView>,
    /// Whether an earlier delivery's connection was used again.
    reused: bool,
    #[schema(required)]
    tls: Option<TlsView<'a>>,
}

/// An address that the name resolved to, with what the policy says of it.
#[derive(Serialize, ToSchema)]
#[schema(as = ResolvedAddress)]
pub(super) struct ResolvedView {
    /// `null` for a denied address, without the scope `operate`.
    #[schema(value_type = Option<String>, required)]
    ip: Option<IpAddr>,
    /// `allowed`, `skipped`, or the code that denied it.
    #[schema(example = "allowed")]
    verdict: &'static str,
}

#[derive(Serialize, ToSchema)]
#[schema(as = RecordTls)]
struct TlsView<'a> {
    /// `null`, as is `cipher`, where the handshake did not come to its end: the certificate is then one that was refused.
    #[schema(example = "TLSv1.3", required)]
    version: Option<&'a str>,
    #[schema(required)]
    cipher: Option<&'a str>,
    #[schema(required)]
    alpn: Option<&'a str>,
    #[schema(required)]
    certificate: Option<CertificateView<'a>>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = RecordCertificate)]
struct CertificateView<'a> {
    subject: &'a str,
    issuer: &'a str,
    /// The hosts and addresses it is for, the first ten of them.
    names: &'a [String],
    #[schema(value_type = Option<String>, format = DateTime, required)]
    not_before: Option<Shown<Timestamp>>,
    #[schema(value_type = String, format = DateTime)]
    not_after: Shown<Timestamp>,
    /// Kind and size of its key.
    #[schema(example = "RSA 2048", required)]
    key: Option<&'a str>,
    sha256: Hex<'a>,
}

/// Milliseconds; a phase that did not happen is `null`. `total` is the delivery, which the deadline bounds.
#[derive(Serialize, ToSchema)]
#[schema(as = RecordTimings)]
struct TimingsView {
    #[schema(required)]
    held: Option<f64>,
    #[schema(required)]
    queued: Option<f64>,
    #[schema(required)]
    dns: Option<f64>,
    #[schema(required)]
    connect: Option<f64>,
    #[schema(required)]
    tls: Option<f64>,
    #[schema(required)]
    write: Option<f64>,
    #[schema(required)]
    wait: Option<f64>,
    #[schema(required)]
    read: Option<f64>,
    #[schema(required)]
    total: Option<f64>,
}

/// Header lines as an object of arrays, in their order.
#[derive(ToSchema)]
#[schema(as = Headers, value_type = std::collections::HashMap<String, Vec<String>>)]
struct Headers<'a>(&'a ShownHeaders);

impl Serialize for Headers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, values) in self.0 {
            map.serialize_entry(name, values)?;
        }
        map.end()
    }
}

/// A digest in lower-case hex.
#[derive(ToSchema)]
#[schema(as = Sha256, value_type = String, example = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
struct Hex<'a>(&'a [u8; 32]);

impl Serialize for Hex<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 64];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        serializer.serialize_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

impl<'a> RecordView<'a> {
    pub fn new(record: &'a Visible, sight: Sight) -> Self {
        let asked = &record.request;
        let (request, email, (s3, sql)) = match &asked.to {
            ShownTo::Http { method, url } => (Some(RequestView::new(*method, url, asked, sight)), None, (None, None)),
            ShownTo::Email { .. } => (None, Some(EmailView::new(asked, sight)), (None, None)),
            ShownTo::Event { place, .. } => (None, None, events(place, asked, sight)),
        };
        Self {
            id: Shown(record.id),
            state: record.state.label(),
            outcome: record.ended.as_ref().map(|ended| ended.outcome.label()),
            error: ErrorView::new(record, sight),
            resend_of: record.resend_of.map(Shown),
            context: ContextView {
                tenant: record.tenant.as_str(),
                workflow: record.context.workflow.as_deref(),
                execution: record.context.execution.as_ref().map(|execution| execution.as_str()),
                step: record.context.step.as_deref(),
                index: record.index,
            },
            request,
            email,
            s3,
            sql,
            batch: record.batch.map(|batch| InBatchView { id: Shown(batch.id), closes_at: Shown(batch.closes_at) }),
            response: record.response.as_ref().map(|response| {
                let (body, body_encoding) = shown_body(Some(&response.body), sight);
                // A relay may say where it is, and whom it hands on to.
                let body = match body {
                    Some(said) if is_the_operators(record) && !sight.operate => {
                        Some(Cow::Owned(without_internal_addresses(&said, |_| false).into_owned()))
                    }
                    body => body,
                };
                ResponseView {
                    status: response.status,
                    version: &response.version,
                    headers: Headers(&response.headers),
                    body,
                    body_encoding,
                    body_bytes: response.body.total,
                    body_declared: response.declared,
                    body_truncated: response.body.truncated,
                }
            }),
            would_block: record.would_block.map(|code| code.label()),
            connection: record.connection.as_ref().map(|connection| {
                let peers = if is_the_operators(record) && !sight.operate { Peers::Public } else { Peers::All };
                ConnectionView::new(connection, sight, peers)
            }),
            timings_ms: TimingsView::new(&record.timings),
            node: &record.node,
            created_at: Shown(record.created_at),
            released_at: record.released_at.map(Shown),
            started_at: record.started_at.map(Shown),
            finished_at: record.finished_at.map(Shown),
        }
    }
}

/// Which addresses that were connected to, or might have been, are shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Peers {
    All,
    Public,
}

/// Where it went is the operator's choice: an author is told no address near us for it.
fn is_the_operators(record: &Record) -> bool {
    record.request.to.kind() != Kind::Http
}

impl<'a> ConnectionView<'a> {
    fn new(connection: &'a Connection, sight: Sight, peers: Peers) -> Self {
        let shows = |ip: &IpAddr| peers == Peers::All || !is_internal(*ip);
        let bound = connection.source.as_ref().map(SocketAddr::ip);
        Self {
            source_ip: if sight.operate { bound } else { bound.and(connection.public) },
            public_ip: connection.public,
            // 0: the connection was not made, so the kernel gave none.
            source_port: connection.source.as_ref().map(SocketAddr::port).filter(|port| *port != 0),
            remote_ip: connection.remote.as_ref().map(SocketAddr::ip).filter(shows),
            remote_port: connection.remote.as_ref().map(SocketAddr::port),
            resolved: connection
                .resolved
                .iter()
                .map(|&(ip, verdict)| ResolvedView::new(ip, verdict, sight).but(shows))
                .collect(),
            reused: connection.reused,
            tls: connection.tls.as_ref().map(TlsView::new),
        }
    }
}

impl ResolvedView {
    pub(super) fn new(ip: IpAddr, verdict: Verdict, sight: Sight) -> Self {
        let denied = matches!(verdict, Verdict::Denied(_));
        Self { ip: (sight.operate || !denied).then_some(ip), verdict: verdict.label() }
    }

    /// Without an address that this does not show.
    pub(super) fn but(self, shows: impl Fn(&IpAddr) -> bool) -> Self {
        Self { ip: self.ip.filter(shows), ..self }
    }
}

impl<'a> TlsView<'a> {
    fn new(facts: &'a TlsFacts) -> Self {
        Self {
            version: Some(&*facts.version).filter(|version| !version.is_empty()),
            cipher: Some(&*facts.cipher).filter(|cipher| !cipher.is_empty()),
            alpn: facts.alpn.as_deref(),
            certificate: facts.certificate.as_ref().map(CertificateView::new),
        }
    }
}

impl<'a> CertificateView<'a> {
    fn new(certificate: &'a Certificate) -> Self {
        Self {
            subject: &certificate.subject,
            issuer: &certificate.issuer,
            names: &certificate.names,
            not_before: certificate.not_before.map(Shown),
            not_after: Shown(certificate.not_after),
            key: Some(&*certificate.key).filter(|key| !key.is_empty()),
            sha256: Hex(&certificate.sha256),
        }
    }
}

impl TimingsView {
    fn new(timings: &Timings) -> Self {
        Self {
            held: timings.held.map(milliseconds),
            queued: timings.queued.map(milliseconds),
            dns: timings.dns.map(milliseconds),
            connect: timings.connect.map(milliseconds),
            tls: timings.tls.map(milliseconds),
            write: timings.write.map(milliseconds),
            wait: timings.wait.map(milliseconds),
            read: timings.read.map(milliseconds),
            total: timings.total.map(milliseconds),
        }
    }
}

/// To the microsecond.
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

/// The body and its encoding: text where it is UTF-8 (also where storing cut its last character in two).
pub(super) fn shown_body(body: Option<&ShownBody>, sight: Sight) -> (Option<Cow<'_, str>>, Option<&'static str>) {
    let Some(body) = body.filter(|_| sight.bodies) else { return (None, None) };
    let Some(bytes) = &body.bytes else { return (None, None) };
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(Cow::Borrowed(text)), Some("utf8")),
        Err(error) if body.truncated && error.error_len().is_none() && error.valid_up_to() > 0 => {
            let text = std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
            (Some(Cow::Borrowed(text)), Some("utf8"))
        }
        Err(_) => (Some(Cow::Owned(STANDARD.encode(bytes))), Some("base64")),
    }
}

/// Several sends in call order.
#[derive(Serialize, ToSchema)]
#[schema(as = Sends)]
pub struct SendsView<'a> {
    pub sends: Vec<AcceptedView<'a>>,
}

/// A send that a call was accepted with, as it is now.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = Accepted)]
pub enum AcceptedView<'a> {
    Told(Box<RecordView<'a>>),
    Named(NamedView),
}

/// A send that is named alone: more was not asked for (`Prefer: return=minimal`), or its record is gone, past its retention or
/// lost with a damaged disk; then it was accepted by an earlier call with the same key, and what came of it is not known any
/// more.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Named)]
pub struct NamedView {
    #[schema(value_type = String, format = "uuid")]
    id: Shown<SendId>,
    /// `gone`: its record is.
    #[schema(schema_with = openapi::state_or_gone)]
    state: &'static str,
}

impl<'a> AcceptedView<'a> {
    pub fn new(id: SendId, record: Option<&'a Visible>, sight: Sight) -> Self {
        match record {
            Some(record) => Self::Told(Box::new(RecordView::new(record, sight))),
            None => Self::named(id, None),
        }
    }

    /// `None`: its record is gone.
    pub fn named(id: SendId, state: Option<State>) -> Self {
        Self::Named(NamedView { id: Shown(id), state: state.map_or("gone", |state| state.label()) })
    }
}

/// A page of sends.
#[derive(Serialize, ToSchema)]
#[schema(as = Page)]
pub struct PageView<'a> {
    pub sends: Vec<RecordView<'a>>,
    /// The next page's `cursor`; `null`: this is the last.
    #[schema(required)]
    pub next: Option<&'a str>,
    /// Where `text` was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub searched: Option<SearchedView>,
}

/// How far bodies were searched for this page.
#[derive(Serialize, ToSchema)]
#[schema(as = Searched)]
pub struct SearchedView {
    /// Whose bodies were.
    pub sends: u64,
    pub bytes: u64,
    /// When the oldest of them was accepted; null: there was none.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    pub back_to: Option<Shown<Timestamp>>,
}

/// One execution, with a page of its sends in call order.
#[derive(Serialize, ToSchema)]
#[schema(as = Execution)]
pub struct ExecutionView<'a> {
    execution: &'a str,
    #[schema(schema_with = openapi::execution_state)]
    state: &'static str,
    #[schema(schema_with = openapi::finished_by_or_null, required)]
    finished_by: Option<&'static str>,
    /// Sends whose outcome is `delivered`.
    delivered: u64,
    total: u64,
    sends: Vec<RecordView<'a>>,
    #[schema(required)]
    next: Option<&'a str>,
}

impl<'a> ExecutionView<'a> {
    /// `sends`: the execution's.
    pub fn new(execution: &'a Execution, sends: &'a [Visible], sight: Sight) -> Self {
        Self {
            execution: execution.execution.as_str(),
            state: execution.state.label(),
            finished_by: execution.finished_by.map(|by| by.label()),
            delivered: execution.delivered,
            total: execution.total,
            sends: sends.iter().map(|record| RecordView::new(record, sight)).collect(),
            next: execution.next.as_deref(),
        }
    }
}

/// One execution of a list.
#[derive(Serialize, ToSchema)]
#[schema(as = ExecutionSummary)]
struct SummaryView<'a> {
    execution: &'a str,
    tenant: &'a str,
    /// Of its first send that is left.
    #[schema(required)]
    workflow: Option<&'a str>,
    #[schema(schema_with = openapi::execution_state)]
    state: &'static str,
    #[schema(schema_with = openapi::finished_by_or_null, required)]
    finished_by: Option<&'static str>,
    /// Sends whose outcome is `delivered`.
    delivered: u64,
    /// Sends that have an outcome.
    done: u64,
    total: u64,
    /// When its first send that is left was accepted.
    #[schema(value_type = String, format = DateTime)]
    created_at: Shown<Timestamp>,
    /// When it was finished or discarded.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    ended_at: Option<Shown<Timestamp>>,
}

/// Executions, the newest first.
#[derive(Serialize, ToSchema)]
#[schema(as = Executions)]
pub struct ExecutionsView<'a> {
    executions: Vec<SummaryView<'a>>,
    /// For `cursor`; `null`: this is the last page.
    #[schema(required)]
    next: Option<&'a str>,
}

impl<'a> ExecutionsView<'a> {
    pub fn new(page: &'a ExecutionPage, next: Option<&'a str>) -> Self {
        let summary = |one: &'a ExecutionSummary| SummaryView {
            execution: one.execution.as_str(),
            tenant: one.tenant.as_str(),
            workflow: one.workflow.as_deref(),
            state: one.state.label(),
            finished_by: one.finished_by.map(|by| by.label()),
            delivered: one.delivered,
            done: one.done,
            total: one.total,
            created_at: Shown(one.created_at),
            ended_at: one.ended_at.map(Shown),
        };
        Self { executions: page.executions.iter().map(summary).collect(), next }
    }
}

#[cfg(test)]
mod tests;
