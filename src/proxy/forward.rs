//! Requests in absolute form (RFC 9112 section 3.2.2), for what is not worth a tunnel: `GET http://host/path`.
//!
//! Each is made once, on a connection of its own that is closed after it: nothing is tried again, and nothing is kept. The
//! request that leaves is made from the URL as it was judged; bodies are streamed both ways as they come, and what holds
//! one side up holds up the other. Headers between two hops go no further than those, nor do those of policy 8; `Via` is
//! not added. Not here: what is stored of it, which is what is stored of a tunnel.

use std::collections::HashSet;
use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::header::{CONNECTION, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::refusal::Refusal;
use super::relay::{Carried, End, Terms};
use crate::api::access::TENANT_HEADER;
use crate::clock;
use crate::config::Limits;
use crate::dial::wire::{Meter, Wire};
use crate::limits::FORWARD_HEAD_BYTES_MIN;
use crate::outcome::words::{ExchangeCause, PeerEnd};
use crate::outcome::{Code, Failure};
use crate::policy::{CheckedUrl, Denial, Scheme};
use crate::send::headers::is_dropped;

/// The URL stage, of a request's target.
pub fn target(target: &Uri) -> Result<CheckedUrl, Refusal> {
    let (Some(scheme), Some(authority)) = (target.scheme_str(), target.authority()) else {
        return Err(Refusal::not_absolute());
    };
    let path = target.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let denied = |denial: Denial| Refusal::denied(&Failure::from(denial));
    let url = CheckedUrl::parse(&format!("{scheme}://{authority}{path}")).map_err(denied)?;
    if url.destination().scheme != Scheme::Http {
        let why = "the URL is refused: an https URL goes through a tunnel: CONNECT, as every client does by itself";
        return Err(denied(Denial::new(Code::PolicyUrl, why)));
    }
    Ok(url)
}

/// One request on its way.
pub struct Forward {
    sender: http1::SendRequest<Incoming>,
    exchange: Exchange,
    waits: oneshot::Sender<Infallible>,
}

/// The connection under it, which is worked on beside whoever waits for the answer.
pub struct Exchange {
    connection: http1::Connection<TokioIo<Heard>, Incoming>,
    meter: Arc<Meter>,
    /// Why there is no answer: the first to know says it.
    unanswered: Arc<Mutex<Option<Failure>>>,
    answered: Arc<AtomicBool>,
    begun: Instant,
    settled: oneshot::Receiver<Infallible>,
}

/// Opens what a request is made on.
pub async fn open(wire: Wire, limits: &Limits) -> Result<Forward, Failure> {
    let meter = wire.meter().clone();
    let bytes = usize::try_from(limits.response_headers).unwrap_or(usize::MAX).max(FORWARD_HEAD_BYTES_MIN);
    let handshake = http1::Builder::new()
        .max_buf_size(bytes)
        .max_headers(limits.response_header_lines as usize)
        .title_case_headers(true)
        .handshake(TokioIo::new(Heard { wire, is_cut_short: false }));
    // Nothing is written or read for it.
    let (sender, connection) = handshake.await.map_err(|_| ExchangeCause::Broken { so_far: None }.failure(""))?;
    let (waits, settled) = oneshot::channel();
    let (unanswered, answered) = (Arc::default(), Arc::default());
    let exchange = Exchange { connection, meter, unanswered, answered, begun: clock::monotonic(), settled };
    Ok(Forward { sender, exchange, waits })
}

impl Forward {
    /// The request as it leaves, its answer to come, and the connection to be worked on meanwhile.
    pub fn send(
        self,
        request: Request<Incoming>,
        url: &CheckedUrl,
    ) -> (impl Future<Output = Result<Response<Incoming>, Failure>> + Send + use<>, Exchange) {
        let Self { mut sender, exchange, waits } = self;
        let host = url.destination().host.text().into_owned();
        let (unanswered, is_answered) = (exchange.unanswered.clone(), exchange.answered.clone());
        let meter = exchange.meter.clone();
        let request = leaving(request, url);
        let answer = async move {
            let _waits = waits;
            let answered = match request {
                Some(request) => sender.send_request(request).await.map_err(|error| failed(&error, &meter, &host)),
                None => Err(ExchangeCause::NotWritable { what: "its target" }.failure(&host)),
            };
            let answered = answered.and_then(|answer| match answer.status() {
                // Nothing was asked to be switched to.
                StatusCode::SWITCHING_PROTOCOLS => Err(ExchangeCause::Switched.failure(&host)),
                _ => Ok(answer),
            });
            is_answered.store(answered.is_ok(), Ordering::Relaxed);
            answered.map_err(|failure| {
                unanswered.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure).clone()
            })
        };
        (answer, exchange)
    }
}

impl Exchange {
    /// Until its connection has ended by itself, or nothing has moved on it for too long, or it is too old.
    pub async fn run(&mut self, terms: &Terms, host: &str) -> End {
        let end = self.run_on(terms).await;
        if matches!(end, End::Idle | End::Lifetime) {
            let total = if end == End::Idle { terms.idle } else { self.begun.elapsed() };
            self.cut_short(ExchangeCause::NoAnswer { total }.failure(host));
        }
        end
    }

    /// What it came to, and why it has no answer, once whoever waits for that has heard.
    pub async fn settle(self) -> (Carried, Option<Failure>) {
        let Self { connection, meter, unanswered, settled, .. } = self;
        drop(connection);
        // Dropped with the wait, whichever way that ends.
        let _ = settled.await;
        let why = unanswered.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (Carried { up: meter.bytes_written(), down: meter.bytes_read() }, why)
    }

    /// It is ended from here: that is why there will be no answer, if there was none.
    pub fn cut_short(&self, why: Failure) {
        if !self.answered.load(Ordering::Relaxed) {
            self.unanswered.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        }
    }

    async fn run_on(&mut self, terms: &Terms) -> End {
        let mut moved = (self.carried(), clock::monotonic());
        loop {
            let wait = (moved.1 + terms.idle).min(terms.until);
            tokio::select! {
                biased;
                ended = &mut self.connection => return if ended.is_ok() { End::Closed } else { End::Reset },
                () = tokio::time::sleep_until(look_at(wait, terms.idle)) => {}
            }
            let (carried, now) = (self.carried(), clock::monotonic());
            if carried != moved.0 {
                moved = (carried, now);
            } else if now >= moved.1 + terms.idle {
                return End::Idle;
            }
            if now >= terms.until {
                return End::Lifetime;
            }
        }
    }

    /// Bytes on the wire, heads among them.
    pub fn carried(&self) -> Carried {
        Carried { up: self.meter.bytes_written(), down: self.meter.bytes_read() }
    }
}

/// Often enough to know when something moved last.
fn look_at(wait: Instant, idle: Duration) -> Instant {
    wait.min(clock::monotonic() + idle / 8)
}

/// A connection whose peer may take no more, and have said why: what it said is read to its end. What is written from then
/// on is nobody's.
struct Heard {
    wire: Wire,
    /// Its end is that of a reset, which a write was told of: the kernel tells it once.
    is_cut_short: bool,
}

impl Heard {
    /// Where it cannot be written, all of it is.
    fn as_if(&mut self, written: Poll<io::Result<usize>>, all: usize) -> Poll<io::Result<usize>> {
        written.map(|written| {
            Ok(written.unwrap_or_else(|error| {
                self.is_cut_short |= error.kind() != io::ErrorKind::BrokenPipe;
                all
            }))
        })
    }
}

impl AsyncRead for Heard {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.wire).poll_read(cx, into))?;
        let is_end = into.filled().len() == before && into.remaining() > 0;
        Poll::Ready(if is_end && self.is_cut_short { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) })
    }
}

impl AsyncWrite for Heard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.wire).poll_write(cx, bytes);
        self.as_if(written, bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = parts.iter().map(|part| part.len()).sum();
        let written = Pin::new(&mut self.wire).poll_write_vectored(cx, parts);
        self.as_if(written, all)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx).map(|_| Ok(()))
    }
}

/// What leaves: the method, the headers of the end, and the body as it comes.
fn leaving(request: Request<Incoming>, url: &CheckedUrl) -> Option<Request<Incoming>> {
    let (parts, body) = request.into_parts();
    let mut headers = of_the_end(&parts.headers, is_dropped);
    headers.remove(TENANT_HEADER);
    headers.insert(HOST, HeaderValue::from_str(&url.authority()).ok()?);
    // The connection is this request's alone.
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    let mut leaving = Request::builder().method(parts.method).uri(url.origin_form()).version(Version::HTTP_11);
    *leaving.headers_mut()? = headers;
    leaving.body(body).ok()
}

/// RFC 9110 section 7.6.1, of an answer.
fn is_of_the_hop(name: &str) -> bool {
    ["connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"].contains(&name)
        || name.starts_with("proxy-")
}

/// Those that are neither dropped nor named by `Connection`.
fn of_the_end(headers: &HeaderMap, dropped: fn(&str) -> bool) -> HeaderMap {
    let named = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named: HashSet<String> =
        named.flat_map(|value| value.split(',')).map(|name| name.trim().to_ascii_lowercase()).collect();
    let goes = |name: &HeaderName| !dropped(name.as_str()) && !named.contains(name.as_str());
    let lines = headers.iter().filter(|(name, _)| goes(name));
    let mut kept = HeaderMap::with_capacity(headers.len());
    for (name, value) in lines {
        kept.append(name.clone(), value.clone());
    }
    kept
}

/// What a library that reads answers met.
fn failed(error: &hyper::Error, meter: &Meter, host: &str) -> Failure {
    if error.is_parse_too_large() {
        return ExchangeCause::HeadersTooLarge { status: None, bytes: 0, lines: 0 }.failure(host);
    }
    if error.is_parse() {
        return ExchangeCause::Broken { so_far: None }.failure(host);
    }
    let end = meter.peer_end().unwrap_or(PeerEnd::Closed);
    ExchangeCause::Unanswered { end, written: None }.failure(host)
}

/// The answer as the client gets it; `held` lasts as long as its body.
pub fn arriving<T: Send + Unpin + 'static>(answer: Response<Incoming>, held: T) -> Response<Body> {
    let (parts, body) = answer.into_parts();
    let mut response = Response::new(Body::new(Held { body, _held: held }));
    *response.status_mut() = parts.status;
    *response.headers_mut() = of_the_end(&parts.headers, is_of_the_hop);
    response
}

struct Held<T> {
    body: Incoming,
    _held: T,
}

impl<T: Unpin> http_body::Body for Held<T> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_whole_http_url() {
        for (given, wanted) in [
            ("http://example.com/a?b=c", Ok("http://example.com/a?b=c")),
            ("http://EXAMPLE.com:8080", Ok("http://example.com:8080/")),
            ("http://2130706433/", Ok("http://127.0.0.1/")),
            ("https://example.com/", Err(403)),
            ("ftp://example.com/", Err(403)),
            ("http://user:pw@example.com/", Err(403)),
            ("http://example.com:65536/", Err(403)),
            ("/a", Err(400)),
            ("*", Err(400)),
            ("example.com:80", Err(400)),
        ] {
            let found = given.parse::<Uri>().map(|uri| target(&uri));
            let Ok(found) = found else {
                assert!(wanted.is_err(), "{given}");
                continue;
            };
            let found = found.map(|url| url.as_str().to_owned()).map_err(|refusal| refusal.status().as_u16());
            assert_eq!(found, wanted.map(str::to_owned), "{given}");
        }
    }

    #[test]
    fn what_is_between_two_hops_goes_no_further() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("accept", "*/*"),
            ("cookie", "a=b"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("connection", "close, X-One"),
            ("proxy-authorization", "Basic x"),
            ("proxy-connection", "keep-alive"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("upgrade", "websocket"),
            ("expect", "100-continue"),
            ("via", "1.1 x"),
            ("x-forwarded-for", "10.0.0.1"),
            ("metadata-flavor", "Google"),
            ("x_forwarded_host", "x"),
        ] {
            headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_static(value));
        }
        let names = |kept: HeaderMap| kept.keys().map(|name| name.as_str().to_owned()).collect::<Vec<_>>();
        assert_eq!(names(of_the_end(&headers, is_dropped)), ["accept", "cookie", "x-two"]);
        let of_answer = names(of_the_end(&headers, is_of_the_hop));
        for (name, goes) in [("via", true), ("x-one", false), ("proxy-connection", false), ("keep-alive", false)] {
            assert_eq!(of_answer.iter().any(|kept| kept == name), goes, "{name}");
        }
    }
}
