//! HTTP over one connection: a request goes out once, an answer comes in, and the connection is fit for another or it
//! is closed.
//!
//! [`Channel`] speaks what TLS settled on ([`super::http1`], [`super::http2`]) and turns how an exchange stopped into
//! the [`ExchangeCause`] that its record tells. Nothing here opens connections, follows redirects, keeps cookies or sends
//! anything again; an HTTP/2 connection carries one request at a time like any other.

use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Request, Uri, Version,
    header::{ACCEPT, CONTENT_LENGTH, HOST, USER_AGENT},
    uri::PathAndQuery,
};
use tokio::time::Instant;

use super::http1::head::{Bad, HeadCaps, keep_alive_hint};
use super::http1::{self, Http1};
use super::http2::{self, Http2, Tasks, is_too_large};
use crate::dial::pool::Idle;
use crate::dial::tls::faults;
use crate::dial::wire::{Io, Meter, Probe};
use crate::limits::{BYTES_BEFORE_ANSWER_MAX, INFORMATIONAL_RESPONSES_MAX, KEEP_ALIVE_MARGIN};
use crate::outcome::Failure;
use crate::outcome::words::{ExchangeCause, PeerEnd, SoFar};
use crate::policy::{CheckedUrl, Scheme};
use crate::record::TlsFacts;
use crate::send::{HeaderLines, HttpRequest, Method};
use crate::source::Source;

/// The network side of a connection.
#[derive(Clone, Debug)]
pub struct Line {
    pub source: Arc<Source>,
    pub local: std::net::SocketAddr,
    pub remote: std::net::SocketAddr,
    pub tls: Option<Arc<TlsFacts>>,
    pub meter: Arc<Meter>,
    pub probe: Probe,
    pub opened_at: Instant,
}

/// An HTTP connection to one host, held by one delivery at a time.
pub struct Channel {
    line: Line,
    protocol: Protocol,
    host: Arc<str>,
    caps: HeadCaps,
    /// Bytes that the socket had taken before the request that is under way, and the request's own.
    written_before: u64,
    request_bytes: u64,
    /// How long the receiver keeps it open while nothing comes, as it says.
    keeps: Option<Duration>,
    /// The answer has no body, whatever length it declares: to a HEAD, 204 or 304.
    bodiless: bool,
    used: bool,
}

enum Protocol {
    Http1(Http1),
    Http2(Box<Http2>),
}

/// The head of an answer.
pub struct Answer {
    pub status: u16,
    pub version: Version,
    pub headers: HeaderMap,
}

/// Why no answer's head came.
#[derive(Debug)]
pub enum Unanswered {
    /// No byte of the request left: it may be given to another connection.
    Unwritten,
    Failed(Failure),
}

impl Channel {
    /// Speaks HTTP/2 where TLS settled on it, else HTTP/1.1. Writes nothing of a request.
    pub async fn open(io: Box<dyn Io>, line: Line, tasks: Tasks, host: &str, caps: HeadCaps) -> Result<Self, Failure> {
        let protocol = if line.tls.as_ref().is_some_and(|tls| tls.alpn.as_deref() == Some("h2")) {
            match Http2::open(io, tasks, caps.bytes).await {
                Ok(http2) => Protocol::Http2(Box::new(http2)),
                Err(_) => {
                    let closed = line.meter.peer_end().is_some();
                    let broken = ExchangeCause::NoHttp2 { reason: "its settings could not be read", by_peer: false };
                    let cause = if closed { ExchangeCause::ClosedUnwritten } else { broken };
                    return Err(cause.failure(host));
                }
            }
        } else {
            Protocol::Http1(Http1::new(io))
        };
        let host = Arc::from(host);
        Ok(Self {
            line,
            protocol,
            host,
            caps,
            written_before: 0,
            request_bytes: 0,
            keeps: None,
            bodiless: false,
            used: false,
        })
    }

    pub fn line(&self) -> &Line {
        &self.line
    }

    pub fn version(&self) -> Version {
        match self.protocol {
            Protocol::Http1(_) => Version::HTTP_11,
            Protocol::Http2(_) => Version::HTTP_2,
        }
    }

    /// Sends a request and waits for the head of its answer.
    pub async fn send(&mut self, prepared: Prepared) -> Result<Answer, Unanswered> {
        // Whatever it is made of: TLS and frames add to what the headers themselves may be.
        self.line.meter.allow(2 * self.caps.bytes as u64 + BYTES_BEFORE_ANSWER_MAX);
        self.written_before = self.line.meter.bytes_written();
        self.request_bytes = prepared.bytes();
        let again = std::mem::replace(&mut self.used, true);
        let head_only = prepared.method == Method::Head;
        let answer = match (&mut self.protocol, prepared.form) {
            (Protocol::Http1(http1), Form::Http1 { head, body }) => {
                match http1.send(head, body, head_only, again, self.caps).await {
                    Ok(head) => Ok(Answer { status: head.status, version: head.version, headers: head.headers }),
                    Err(stop) => Err(self.stopped(stop, None)),
                }
            }
            (Protocol::Http2(http2), Form::Http2(request)) => {
                match http2.send(*request, &self.line.meter, self.caps.bytes).await {
                    Ok(head) if is_too_large(&head.headers, self.caps.bytes, self.caps.lines) => {
                        Err(Some(self.too_large(Some(head.status.as_u16()))))
                    }
                    Ok(head) => {
                        Ok(Answer { status: head.status.as_u16(), version: head.version, headers: head.headers })
                    }
                    Err(stop) => Err(self.stopped2(stop, None)),
                }
            }
            _ => Err(Some(ExchangeCause::Broken { so_far: None }.failure(&self.host))),
        };
        match answer {
            Ok(answer) if answer.status == 101 => Err(Unanswered::Failed(ExchangeCause::Switched.failure(&self.host))),
            Ok(answer) => {
                self.line.meter.allow(u64::MAX);
                self.keeps = keep_alive_hint(&answer.headers);
                self.bodiless = head_only || matches!(answer.status, 204 | 304);
                Ok(answer)
            }
            Err(Some(failure)) => Err(Unanswered::Failed(failure)),
            Err(None) => Err(Unanswered::Unwritten),
        }
    }

    /// The next piece of an answer's body; `None` at its end. `so_far`: what came of it before.
    pub async fn read(&mut self, so_far: SoFar) -> Result<Option<Bytes>, Failure> {
        let broken = || ExchangeCause::Broken { so_far: Some(so_far) }.failure(&self.host);
        match &mut self.protocol {
            Protocol::Http1(http1) => match http1.read().await {
                Ok(piece) => Ok(piece),
                Err(stop) => Err(self.stopped(stop, Some(so_far)).unwrap_or_else(broken)),
            },
            Protocol::Http2(http2) => match http2.read().await {
                Ok(None) if !self.bodiless && so_far.declared.is_some_and(|declared| declared != so_far.bytes) => {
                    Err(ExchangeCause::WrongLength { so_far }.failure(&self.host))
                }
                Ok(piece) => Ok(piece),
                Err(stop) => Err(self.stopped2(stop, Some(so_far)).unwrap_or_else(broken)),
            },
        }
    }

    /// `None`: nothing of the request left.
    fn stopped(&self, stop: http1::Stop, so_far: Option<SoFar>) -> Option<Failure> {
        let failed = |cause: ExchangeCause<'_>| Some(cause.failure(&self.host));
        let body = so_far.unwrap_or(SoFar { status: 0, bytes: 0, declared: None });
        if self.line.meter.is_over_limit() {
            return failed(ExchangeCause::TooManyBytes { most: BYTES_BEFORE_ANSWER_MAX, so_far });
        }
        match stop {
            http1::Stop::NotFresh => None,
            http1::Stop::Unasked { line } => failed(ExchangeCause::Unasked { line: &line }),
            http1::Stop::Ended { tidy } => self.connection_ended(so_far, tidy),
            http1::Stop::CutWithoutNotice => failed(ExchangeCause::CutWithoutNotice { so_far: body }),
            http1::Stop::Bad(Bad::NotHttp { line }) => failed(ExchangeCause::NotHttp { line: &line }),
            http1::Stop::Bad(Bad::Line { status, line, after, why }) => {
                failed(ExchangeCause::BadLine { status, line: &line, after: after.as_deref(), why })
            }
            http1::Stop::Bad(Bad::TooLarge { status }) => Some(self.too_large(status)),
            http1::Stop::Chunk { line, why } => failed(ExchangeCause::BadChunk { so_far: body, line: &line, why }),
            http1::Stop::TooManyInformational => {
                failed(ExchangeCause::TooManyInformational { most: INFORMATIONAL_RESPONSES_MAX })
            }
        }
    }

    fn stopped2(&self, stop: http2::Stop, so_far: Option<SoFar>) -> Option<Failure> {
        let failed = |cause: ExchangeCause<'_>| Some(cause.failure(&self.host));
        if self.line.meter.is_over_limit() {
            return failed(ExchangeCause::TooManyBytes { most: BYTES_BEFORE_ANSWER_MAX, so_far });
        }
        match stop {
            http2::Stop::Unwritten => None,
            http2::Stop::Refused => failed(ExchangeCause::StreamRefused),
            http2::Stop::LeftOut => failed(ExchangeCause::LeftOut),
            http2::Stop::Http1Required => failed(ExchangeCause::Http1Required),
            http2::Stop::HeadTooLarge => Some(self.too_large(None)),
            http2::Stop::Stream { reason, by_peer } if so_far.is_none() && self.request_written() == 0 => {
                failed(ExchangeCause::NoHttp2 { reason: &reason, by_peer })
            }
            http2::Stop::Stream { reason, by_peer } => {
                failed(ExchangeCause::StreamEnded { reason: &reason, by_peer, so_far })
            }
            http2::Stop::Connection => self
                .connection_ended(so_far, self.tls_error().is_none())
                .or_else(|| failed(ExchangeCause::Broken { so_far })),
        }
    }

    /// What the socket saw of the end. `None`: it took nothing of the request before.
    fn connection_ended(&self, so_far: Option<SoFar>, tidy: bool) -> Option<Failure> {
        let (meter, bytes) = (&self.line.meter, self.request_written());
        if let Some(failure) = self.tls_failure(so_far) {
            return Some(failure);
        }
        // TLS has an end of its own, before the socket's.
        let end = meter.peer_end().or(tidy.then_some(PeerEnd::Closed));
        let cause = match (end, so_far) {
            (Some(end), Some(so_far)) => ExchangeCause::CutOff { end, so_far },
            (_, None) if bytes == 0 => return None,
            (Some(end), None) => {
                let out = meter.request_out_at().is_some();
                ExchangeCause::Unanswered { end, written: (!out).then_some((bytes, self.request_bytes)) }
            }
            (None, so_far) => ExchangeCause::Broken { so_far },
        };
        Some(cause.failure(&self.host))
    }

    /// Bytes of the request that the kernel took, about.
    fn request_written(&self) -> u64 {
        (self.line.meter.bytes_written() - self.written_before).min(self.request_bytes)
    }

    fn too_large(&self, status: Option<u16>) -> Failure {
        let HeadCaps { bytes, lines } = self.caps;
        ExchangeCause::HeadersTooLarge { status, bytes, lines }.failure(&self.host)
    }

    /// The receiver wants HTTP/1.1 for a request like the last one.
    pub fn wants_http1(&self) -> bool {
        match &self.protocol {
            Protocol::Http1(_) => false,
            Protocol::Http2(http2) => http2.wants_http1(),
        }
    }

    /// What it means that TLS ended the connection, where it did. `so_far`: what had come of an answer.
    pub fn tls_failure(&self, so_far: Option<SoFar>) -> Option<Failure> {
        let error = self.tls_error()?;
        Some(if so_far.is_none() && self.request_written() == 0 {
            faults::before_request(&error, &self.host)
        } else {
            faults::after_handshake(&error, so_far, &self.host)
        })
    }

    /// What TLS said at the connection's end, where it was TLS that ended it.
    fn tls_error(&self) -> Option<rustls::Error> {
        match &self.protocol {
            Protocol::Http1(http1) => http1.tls_error().cloned(),
            Protocol::Http2(http2) => http2.tls_error(),
        }
    }

    /// Whether the connection is fit for another request now that an answer has been read to its end.
    pub fn is_reusable(&mut self) -> bool {
        !self.line.meter.is_blocked() && self.is_ready()
    }

    fn is_ready(&mut self) -> bool {
        match &mut self.protocol {
            Protocol::Http1(http1) => http1.is_ready(),
            Protocol::Http2(http2) => http2.is_ready(&mut Context::from_waker(Waker::noop())),
        }
    }

    /// What is left of an answer is not wanted.
    pub fn forget_answer(&mut self) {
        if let Protocol::Http2(http2) = &mut self.protocol {
            http2.forget_body();
        }
    }
}

impl Idle for Channel {
    fn is_quiet(&mut self) -> bool {
        self.is_ready() && self.line.probe.is_quiet()
    }

    fn source(&self) -> &Source {
        &self.line.source
    }

    fn opened_at(&self) -> Instant {
        self.line.opened_at
    }

    fn idle_max(&self) -> Option<Duration> {
        self.keeps.map(|keeps| keeps.saturating_sub(KEEP_ALIVE_MARGIN))
    }
}

/// A request ready for the wire, and its header lines as they leave.
pub struct Prepared {
    form: Form,
    method: Method,
    pub lines: HeaderLines,
    pub body_bytes: u64,
    head_bytes: u64,
}

enum Form {
    Http1 { head: Bytes, body: Bytes },
    Http2(Box<Request<Bytes>>),
}

impl Prepared {
    /// Bytes of the request in all; over HTTP/2 the head takes fewer.
    pub fn bytes(&self) -> u64 {
        self.head_bytes + self.body_bytes
    }
}

/// W3C Trace Context.
pub const TRACEPARENT: &str = "traceparent";

/// Makes the request of a send: `Host` from the URL alone, the author's headers, then ours where they gave none.
pub fn prepare(
    asked: &HttpRequest,
    url: &CheckedUrl,
    user_agent: &str,
    carried: Option<&HeaderValue>,
    version: Version,
) -> Result<Prepared, Failure> {
    let cannot = |what| ExchangeCause::NotWritable { what }.failure(&url.destination().host.text());
    let authority = url.authority();
    let host = HeaderValue::from_str(&authority).map_err(|_| cannot("host"))?;
    let target = PathAndQuery::from_maybe_shared(Bytes::from(url.origin_form())).map_err(|_| cannot("path"))?;

    let mut headers = HeaderMap::with_capacity(asked.headers.len() + 4);
    headers.insert(HOST, host);
    for (name, value) in &asked.headers {
        headers.append(name.clone(), value.clone());
    }
    if !headers.contains_key(USER_AGENT) {
        headers.insert(USER_AGENT, HeaderValue::from_str(user_agent).map_err(|_| cannot("user agent"))?);
    }
    if !headers.contains_key(ACCEPT) {
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    }
    // The author's own, where there is one, is another's trace.
    if let Some(carried) = carried.filter(|_| !headers.contains_key(TRACEPARENT)) {
        headers.insert(TRACEPARENT, carried.clone());
    }
    let body_bytes = asked.body.as_ref().map_or(0, Bytes::len) as u64;
    let expects_body = matches!(asked.method, Method::Post | Method::Put | Method::Patch);
    if asked.body.is_some() || expects_body {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body_bytes));
    }
    let mut lines = Vec::with_capacity(headers.len());
    lines.extend(headers.iter().map(|(name, value)| (name.clone(), value.clone())));

    let body = asked.body.clone().unwrap_or_default();
    let form = if version == Version::HTTP_2 {
        // `:authority` says it there; `lines` keeps it under the name that records know.
        headers.remove(HOST);
        let mut parts = http::uri::Parts::default();
        parts.path_and_query = Some(target);
        let is_plain = url.destination().scheme == Scheme::Http;
        parts.scheme = Some(if is_plain { http::uri::Scheme::HTTP } else { http::uri::Scheme::HTTPS });
        parts.authority = Some(authority.parse().map_err(|_| cannot("host"))?);
        let mut request = Request::new(body);
        *request.method_mut() = method(asked.method);
        *request.uri_mut() = Uri::from_parts(parts).map_err(|_| cannot("URL"))?;
        *request.headers_mut() = headers;
        Form::Http2(Box::new(request))
    } else {
        Form::Http1 { head: head_of(asked, target.as_str(), &lines), body }
    };
    let head_bytes = lines.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>() as u64;
    Ok(Prepared { form, method: asked.method, lines, body_bytes, head_bytes })
}

/// The head as it leaves over HTTP/1.1 (RFC 9112 section 2.1). Nothing in it can end a line: the target is a URL's that
/// was parsed, names and values are checked where they are made.
fn head_of(asked: &HttpRequest, target: &str, lines: &HeaderLines) -> Bytes {
    let mut head = BytesMut::with_capacity(512);
    for part in [asked.method.label(), " ", target, " HTTP/1.1\r\n"] {
        head.extend_from_slice(part.as_bytes());
    }
    for (name, value) in lines {
        head.extend_from_slice(asked.spelling.of(name).as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head.freeze()
}

fn method(method: Method) -> http::Method {
    match method {
        Method::Get => http::Method::GET,
        Method::Head => http::Method::HEAD,
        Method::Post => http::Method::POST,
        Method::Put => http::Method::PUT,
        Method::Patch => http::Method::PATCH,
        Method::Delete => http::Method::DELETE,
        Method::Options => http::Method::OPTIONS,
    }
}
