//! HTTP over one connection, driven by hand: a request goes out once, an answer comes in, and the connection is fit
//! for another or it is closed.
//!
//! `hyper::client::conn` on top of a connection of the dialer's. Nothing here opens connections, follows redirects,
//! keeps cookies or sends anything again; an HTTP/2 connection carries one request at a time like any other. Over
//! HTTP/1 no task is spawned: who waits for the answer turns the connection, and dropping it closes the socket.

use std::{
    error::Error as _,
    future::Future,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version,
    header::{ACCEPT, CONTENT_LENGTH, HOST, USER_AGENT},
    uri::PathAndQuery,
};
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::TokioIo;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::turns::Turns;
use crate::dial::pool::Idle;
use crate::dial::tls::words;
use crate::dial::wire::{Io, Meter, PeerEnd, Probe};
use crate::limits::{BYTES_BEFORE_ANSWER_MAX, INFORMATIONAL_RESPONSES_MAX, RESPONSE_HEADERS_MAX};
use crate::outcome::{Code, Failure, Phase, Processed};
use crate::policy::{CheckedUrl, Scheme};
use crate::record::TlsFacts;
use crate::send::{HeaderLines, Method, SendSpec, TenantId};
use crate::source::Source;

type Body = Full<Bytes>;
type Transport = TokioIo<Box<dyn Io>>;

/// Least that hyper takes for its buffers.
const BUFFER_BYTES_MIN: usize = 8 * 1024;
/// Bytes of a body that an HTTP/2 receiver may send before we have taken them.
const WINDOW_BYTES: u32 = 128 * 1024;

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

/// An HTTP connection, held by one delivery at a time.
pub struct Channel {
    line: Line,
    protocol: Protocol,
    ended: bool,
    /// The receiver will not take over HTTP/2 what it was sent (RFC 9113 section 7, HTTP_1_1_REQUIRED).
    wants_http1: bool,
}

enum Protocol {
    Http1 {
        sender: http1::SendRequest<Body>,
        connection: Pin<Box<http1::Connection<Transport, Body>>>,
    },
    Http2 {
        sender: http2::SendRequest<Body>,
        connection: Pin<Box<http2::Connection<Transport, Body, Tasks>>>,
        /// Ends the connection's tasks with it.
        _tasks: Tasks,
    },
}

/// The tasks of one HTTP/2 connection, which take their tenant's turns; they end when the last handle is dropped by
/// [`Channel`].
#[derive(Clone)]
pub struct Tasks {
    turns: Arc<Turns>,
    tenant: TenantId,
    handles: Arc<Mutex<Vec<AbortHandle>>>,
}

impl Tasks {
    pub fn new(turns: &Arc<Turns>, tenant: &TenantId) -> Self {
        Self { turns: turns.clone(), tenant: tenant.clone(), handles: Arc::default() }
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        let handle = tokio::spawn(self.turns.take(&self.tenant, Box::pin(task))).abort_handle();
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        if let Protocol::Http2 { _tasks: tasks, .. } = &self.protocol {
            for task in tasks.handles.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
                task.abort();
            }
        }
    }
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
    pub async fn open(
        io: Box<dyn Io>,
        line: Line,
        tasks: Tasks,
        host: &str,
        response_headers: usize,
    ) -> Result<Self, Failure> {
        let io = TokioIo::new(io);
        let broken = |error: hyper::Error| explain(&error, &line.meter, Phase::Write, host, response_headers);
        let protocol = if line.tls.as_ref().is_some_and(|tls| tls.alpn.as_deref() == Some("h2")) {
            let (sender, connection) = http2::Builder::new(tasks.clone())
                .initial_stream_window_size(WINDOW_BYTES)
                .initial_connection_window_size(WINDOW_BYTES)
                .max_header_list_size(u32::try_from(2 * response_headers).unwrap_or(u32::MAX))
                .handshake(io)
                .await
                .map_err(broken)?;
            Protocol::Http2 { sender, connection: Box::pin(connection), _tasks: tasks }
        } else {
            let (sender, connection) = http1::Builder::new()
                .max_headers(RESPONSE_HEADERS_MAX)
                .max_header_size(response_headers)
                .max_buf_size(response_headers.max(BUFFER_BYTES_MIN))
                .http09_responses(false)
                .handshake(io)
                .await
                .map_err(broken)?;
            Protocol::Http1 { sender, connection: Box::pin(connection) }
        };
        Ok(Self { line, protocol, ended: false, wants_http1: false })
    }

    pub fn line(&self) -> &Line {
        &self.line
    }

    pub fn wants_http1(&self) -> bool {
        self.wants_http1
    }

    pub fn version(&self) -> Version {
        match self.protocol {
            Protocol::Http1 { .. } => Version::HTTP_11,
            Protocol::Http2 { .. } => Version::HTTP_2,
        }
    }

    /// Lets the connection do what it can.
    fn turn(&mut self, cx: &mut Context<'_>) {
        if !self.ended {
            self.ended = match &mut self.protocol {
                Protocol::Http1 { connection, .. } => connection.as_mut().poll(cx).is_ready(),
                Protocol::Http2 { connection, .. } => connection.as_mut().poll(cx).is_ready(),
            };
        }
    }

    fn is_ready(&self) -> bool {
        !self.ended
            && match &self.protocol {
                Protocol::Http1 { sender, .. } => sender.is_ready(),
                Protocol::Http2 { sender, .. } => sender.is_ready(),
            }
    }

    /// Sends a request and waits for the head of its answer.
    pub async fn send(
        &mut self,
        mut request: Request<Body>,
        host: &str,
        response_headers: usize,
    ) -> Result<Response<Incoming>, Unanswered> {
        // Whatever it is made of: TLS and frames add to what the headers themselves may be.
        self.line.meter.allow(2 * response_headers as u64 + BYTES_BEFORE_ANSWER_MAX);
        let informational = Arc::new(AtomicUsize::new(0));
        let seen = informational.clone();
        match &mut self.protocol {
            Protocol::Http1 { sender, .. } => {
                hyper::ext::on_informational(&mut request, move |_| {
                    seen.fetch_add(1, Relaxed);
                });
                let answer = sender.try_send_request(request);
                self.answer(answer, &informational, host, response_headers).await
            }
            Protocol::Http2 { sender, .. } => {
                let answer = sender.try_send_request(request);
                let answer = self.answer(answer, &informational, host, response_headers).await?;
                if is_too_large(answer.headers(), response_headers) {
                    return Err(Unanswered::Failed(headers_too_large(host, response_headers)));
                }
                Ok(answer)
            }
        }
    }

    async fn answer(
        &mut self,
        answer: impl Future<Output = Result<Response<Incoming>, TrySendError<Request<Body>>>>,
        informational: &AtomicUsize,
        host: &str,
        response_headers: usize,
    ) -> Result<Response<Incoming>, Unanswered> {
        let mut answer = pin!(answer);
        let answer = std::future::poll_fn(|cx| {
            self.turn(cx);
            if informational.load(Relaxed) > INFORMATIONAL_RESPONSES_MAX {
                return Poll::Ready(None);
            }
            answer.as_mut().poll(cx).map(Some)
        })
        .await;
        match answer {
            Some(Ok(response)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                Err(Unanswered::Failed(Failure::new(
                    Code::ProtocolError,
                    Phase::Wait,
                    format!(
                        "{host} answered 101 and switched protocols, which nobody asked for; have it answer the request itself"
                    ),
                )))
            }
            Some(Ok(response)) => {
                self.line.meter.allow(u64::MAX);
                Ok(response)
            }
            Some(Err(error)) if error.message().is_some() => Err(Unanswered::Unwritten),
            Some(Err(error)) => {
                let reason = error.error().source().and_then(|cause| cause.downcast_ref::<h2::Error>());
                self.wants_http1 = reason.and_then(h2::Error::reason) == Some(h2::Reason::HTTP_1_1_REQUIRED);
                let failure = explain(error.error(), &self.line.meter, Phase::Wait, host, response_headers);
                Err(Unanswered::Failed(failure))
            }
            None => Err(Unanswered::Failed(Failure::new(
                Code::ProtocolError,
                Phase::Wait,
                format!(
                    "{host} sent more than {INFORMATIONAL_RESPONSES_MAX} informational (1xx) answers before its final one; have it send the final one"
                ),
            ))),
        }
    }

    /// The next piece of an answer's body; `None` at its end.
    pub async fn read(
        &mut self,
        body: &mut Incoming,
        host: &str,
        response_headers: usize,
    ) -> Result<Option<Bytes>, Failure> {
        loop {
            let frame = std::future::poll_fn(|cx| match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Pending => {
                    self.turn(cx);
                    Pin::new(&mut *body).poll_frame(cx)
                }
                ready => ready,
            })
            .await;
            match frame {
                None => return Ok(None),
                // Trailers are passed over.
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(error)) => {
                    return Err(explain(&error, &self.line.meter, Phase::Read, host, response_headers));
                }
            }
        }
    }

    /// Whether the connection is fit for another request now that an answer has been read to its end.
    pub fn is_reusable(&mut self, answered: Version) -> bool {
        if answered == Version::HTTP_10 || self.line.meter.is_blocked() {
            return false;
        }
        self.turn(&mut Context::from_waker(Waker::noop()));
        self.is_ready()
    }
}

impl Idle for Channel {
    fn is_quiet(&mut self) -> bool {
        self.turn(&mut Context::from_waker(Waker::noop()));
        self.is_ready() && self.line.probe.is_quiet()
    }

    fn source(&self) -> &Source {
        &self.line.source
    }

    fn opened_at(&self) -> Instant {
        self.line.opened_at
    }
}

/// A request ready for the wire, and its header lines as they leave.
pub struct Prepared {
    pub request: Request<Body>,
    pub lines: HeaderLines,
    pub body_bytes: u64,
}

/// Makes the request of a send: `Host` from the URL alone, the author's headers, then ours where they gave none.
pub fn prepare(spec: &SendSpec, url: &CheckedUrl, user_agent: &str, version: Version) -> Result<Prepared, Failure> {
    let cannot = |what: &str| {
        let message = format!("the {what} of {} cannot be put on the wire; check the URL's characters", url.as_str());
        Failure::new(Code::Internal, Phase::Write, message).but(Processed::No)
    };
    let authority = url.authority();
    let host = HeaderValue::from_str(&authority).map_err(|_| cannot("host"))?;
    let target = PathAndQuery::from_maybe_shared(Bytes::from(url.origin_form())).map_err(|_| cannot("path"))?;

    let mut headers = HeaderMap::with_capacity(spec.headers.len() + 4);
    headers.insert(HOST, host);
    for (name, value) in &spec.headers {
        headers.append(name.clone(), value.clone());
    }
    if !headers.contains_key(USER_AGENT) {
        headers.insert(USER_AGENT, HeaderValue::from_str(user_agent).map_err(|_| cannot("user agent"))?);
    }
    if !headers.contains_key(ACCEPT) {
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    }
    let body_bytes = spec.body.as_ref().map_or(0, Bytes::len) as u64;
    let expects_body = matches!(spec.method, Method::Post | Method::Put | Method::Patch);
    if spec.body.is_some() || expects_body {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body_bytes));
    }
    let mut lines = Vec::with_capacity(headers.len());
    lines.extend(headers.iter().map(|(name, value)| (name.clone(), value.clone())));

    let mut parts = http::uri::Parts::default();
    parts.path_and_query = Some(target);
    if version == Version::HTTP_2 {
        // `:authority` says it there; `lines` keeps it under the name that records know.
        headers.remove(HOST);
        parts.scheme = Some(match url.destination().scheme {
            Scheme::Http => http::uri::Scheme::HTTP,
            Scheme::Https => http::uri::Scheme::HTTPS,
        });
        parts.authority = Some(authority.parse().map_err(|_| cannot("host"))?);
    }
    let mut request = Request::new(Full::new(spec.body.clone().unwrap_or_default()));
    *request.method_mut() = method(spec.method);
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| cannot("URL"))?;
    *request.headers_mut() = headers;
    Ok(Prepared { request, lines, body_bytes })
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

fn headers_too_large(host: &str, response_headers: usize) -> Failure {
    let message = format!(
        "the headers of {host}'s answer are larger than {response_headers} bytes or more than {RESPONSE_HEADERS_MAX} lines; have it send fewer"
    );
    Failure::new(Code::ResponseHeadersTooLarge, Phase::Wait, message)
}

/// Whether a head that came over HTTP/2 is one that would have been too large over HTTP/1.
fn is_too_large(headers: &HeaderMap, response_headers: usize) -> bool {
    // A line there has ": " and an end.
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    bytes > response_headers || headers.len() > RESPONSE_HEADERS_MAX
}

/// Whether the HTTP/2 layer refused a head for its size. It says so in so many words only where the size is beyond
/// all measure; below that, but above what it was told to take (twice what an answer may have, so that
/// [`is_too_large`] decides about all that is near the limit), it calls the head malformed, and what came over the
/// wire tells.
fn gave_up_on_a_head(error: &h2::Error, meter: &Meter, response_headers: usize) -> bool {
    error.is_library()
        && match error.reason() {
            Some(h2::Reason::ENHANCE_YOUR_CALM | h2::Reason::COMPRESSION_ERROR) => true,
            Some(h2::Reason::PROTOCOL_ERROR) => meter.allowance_used() > response_headers as u64,
            _ => false,
        }
}

/// What ended an exchange: first what the receiver said that is not HTTP, then what the socket saw.
fn explain(error: &hyper::Error, meter: &Meter, phase: Phase, host: &str, response_headers: usize) -> Failure {
    let when = match phase {
        Phase::Read => "in the middle of its answer",
        _ => "before it answered",
    };
    let (code, message) = if meter.is_over_limit() {
        (
            Code::ProtocolError,
            format!(
                "{host} sent more than {BYTES_BEFORE_ANSWER_MAX} bytes that led to no answer; have it send the answer itself"
            ),
        )
    } else if let Some(cause) = words::at_the_root_of(error) {
        return words::after_handshake(cause, phase, host);
    } else if error.is_parse_too_large() {
        return headers_too_large(host, response_headers);
    } else if error.is_parse() {
        (
            Code::ProtocolError,
            format!(
                "what {host} answered is not HTTP/1.1 ({error}); check that the port is the right one and speaks HTTP"
            ),
        )
    } else if let Some(http2) = error.source().and_then(|cause| cause.downcast_ref::<h2::Error>())
        && !http2.is_io()
    {
        if phase == Phase::Wait && gave_up_on_a_head(http2, meter, response_headers) {
            return headers_too_large(host, response_headers);
        }
        let code = if http2.is_remote() { Code::ConnectionReset } else { Code::ProtocolError };
        let reason = http2.reason().map_or_else(|| http2.to_string(), |reason| reason.description().to_owned());
        (
            code,
            format!(
                "the HTTP/2 exchange with {host} was ended {when} ({reason}); whether the request was handled is not known, and it is not sent again"
            ),
        )
    } else {
        match meter.peer_end() {
            Some(PeerEnd::Reset) => (
                Code::ConnectionReset,
                format!(
                    "{host} reset the connection {when}; whether the request was handled is not known, and it is not sent again"
                ),
            ),
            Some(PeerEnd::Closed) => (
                Code::ConnectionClosed,
                format!(
                    "{host} closed the connection {when}; whether the request was handled is not known, and it is not sent again"
                ),
            ),
            Some(PeerEnd::Lost) => (
                Code::HostUnreachable,
                format!(
                    "the connection to {host} was lost {when}; whether the request was handled is not known, and it is not sent again"
                ),
            ),
            None => (
                Code::ProtocolError,
                format!("{host} broke the protocol {when} ({error}); check what answers on this port"),
            ),
        }
    };
    Failure::new(code, phase, message)
}
