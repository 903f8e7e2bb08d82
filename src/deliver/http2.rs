//! HTTP/2 over one connection: `hyper::client::conn`, one request at a time, and beside it what the frames say that it
//! does not hand on.
//!
//! [`Frames`] looks at the frames' heads as they are read: an answer is whole only where END_STREAM came (a reset with
//! NO_ERROR looks to the library's caller like an end, RFC 9113 section 8.1 allows it after END_STREAM alone), and what
//! a reset or a GOAWAY says of our request is known from it.

use std::error::Error as _;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http2};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::AbortHandle;

use super::http1::tls_error;
use super::turns::Turns;
use crate::dial::wire::{Io, Meter};
use crate::send::TenantId;

type Body = Full<Bytes>;
type Transport = TokioIo<Tapped>;

/// Bytes of a body that a receiver may send before we have taken them.
const WINDOW_BYTES: u32 = 128 * 1024;

/// A body whose memory tells when HTTP/2 has let go of its last byte.
struct Unsent {
    bytes: Bytes,
    _held: Arc<()>,
}

impl AsRef<[u8]> for Unsent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

pub struct Http2 {
    sender: http2::SendRequest<Body>,
    connection: Pin<Box<http2::Connection<Transport, Body, Tasks>>>,
    frames: Arc<Mutex<Frames>>,
    /// The stream of the request last sent.
    stream: u32,
    body: Option<Incoming>,
    /// Held by what has not left of the last request's body: a receiver may answer and never take it in.
    unsent: Weak<()>,
    ended: bool,
    /// Ends the connection's tasks with it.
    tasks: Tasks,
}

/// The tasks of one HTTP/2 connection, which take their tenant's turns; they end with it.
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

impl Drop for Http2 {
    fn drop(&mut self) {
        for task in self.tasks.handles.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
    }
}

/// Why there is no (whole) answer.
#[derive(Debug)]
pub enum Stop {
    /// No byte of the request left.
    Unwritten,
    Refused,
    LeftOut,
    Http1Required,
    HeadTooLarge,
    /// The stream ended, or the exchange broke the protocol's rules.
    Stream {
        reason: String,
        by_peer: bool,
    },
    /// Look at the socket.
    Connection,
}

impl Http2 {
    pub async fn open(io: Box<dyn Io>, tasks: Tasks, response_headers: usize) -> Result<Self, Stop> {
        let frames = Arc::<Mutex<Frames>>::default();
        let io = TokioIo::new(Tapped { io, frames: frames.clone() });
        let (sender, connection) = http2::Builder::new(tasks.clone())
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_header_list_size(u32::try_from(2 * response_headers).unwrap_or(u32::MAX))
            .handshake(io)
            .await
            .map_err(|_| Stop::Connection)?;
        Ok(Self {
            sender,
            connection: Box::pin(connection),
            frames,
            stream: 0,
            body: None,
            unsent: Weak::new(),
            ended: false,
            tasks,
        })
    }

    /// Sends a request and waits for the head of its answer.
    pub async fn send(
        &mut self,
        request: Request<Bytes>,
        meter: &Meter,
        response_headers: usize,
    ) -> Result<http::response::Parts, Stop> {
        let held = Arc::new(());
        self.unsent = Arc::downgrade(&held);
        meter.out_once_dropped(self.unsent.clone());
        let request = request.map(|bytes| Full::new(Bytes::from_owner(Unsent { bytes, _held: held })));
        // A client's streams are odd, one after another (RFC 9113 section 5.1.1).
        self.stream = if self.stream == 0 { 1 } else { self.stream + 2 };
        let mut answer = pin!(self.sender.try_send_request(request));
        let (connection, ended) = (&mut self.connection, &mut self.ended);
        let answer: Result<Response<Incoming>, TrySendError<Request<Body>>> = std::future::poll_fn(|cx| {
            turn(connection, ended, cx);
            answer.as_mut().poll(cx)
        })
        .await;
        match answer {
            Ok(answer) => {
                let (head, body) = answer.into_parts();
                self.body = Some(body);
                Ok(head)
            }
            Err(error) if error.message().is_some() => Err(Stop::Unwritten),
            Err(error) => Err(self.stop(error.error(), Some((meter, response_headers)))),
        }
    }

    /// The next piece of the answer's body; `None` at its end.
    pub async fn read(&mut self) -> Result<Option<Bytes>, Stop> {
        let Some(mut body) = self.body.take() else { return Ok(None) };
        let (connection, ended) = (&mut self.connection, &mut self.ended);
        let frame = loop {
            let frame = std::future::poll_fn(|cx| match Pin::new(&mut body).poll_frame(cx) {
                Poll::Pending => {
                    turn(connection, ended, cx);
                    Pin::new(&mut body).poll_frame(cx)
                }
                ready => ready,
            })
            .await;
            match frame {
                // Trailers are passed over.
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        break Some(Ok(data));
                    }
                }
                Some(Err(error)) => break Some(Err(error)),
                None => break None,
            }
        };
        match frame {
            Some(Ok(data)) => {
                self.body = Some(body);
                Ok(Some(data))
            }
            Some(Err(error)) => Err(self.stop(&error, None)),
            None if self.frames().ended >= self.stream => Ok(None),
            None => Err(Stop::Stream { reason: "NO_ERROR, before END_STREAM".to_owned(), by_peer: true }),
        }
    }

    /// `before_answer`: no head came.
    fn stop(&self, error: &hyper::Error, before_answer: Option<(&Meter, usize)>) -> Stop {
        let frames = self.frames();
        let reset = frames.reset.filter(|(stream, _)| *stream == self.stream).map(|(_, code)| code);
        if before_answer.is_some() {
            // What the frames say, whatever the library makes of them.
            match (reset, frames.goaway) {
                (Some(REFUSED_STREAM), _) => return Stop::Refused,
                (Some(HTTP_1_1_REQUIRED), _) => return Stop::Http1Required,
                (None, Some((last, _))) if last < self.stream => return Stop::LeftOut,
                _ => {}
            }
        }
        // Said before the connection ended, which the library may have seen first.
        let why = frames.goaway.map(|(_, code)| h2::Reason::from(code)).filter(|&why| why != h2::Reason::NO_ERROR);
        drop(frames);
        match error.source().and_then(|cause| cause.downcast_ref::<h2::Error>()) {
            Some(http2) if !http2.is_io() => {
                if before_answer
                    .is_some_and(|(meter, response_headers)| gave_up_on_a_head(http2, meter, response_headers))
                {
                    return Stop::HeadTooLarge;
                }
                let reason = http2.reason().map(|reason| reason.description().to_owned());
                let reason = reason.unwrap_or_else(|| "an error without a code".to_owned());
                Stop::Stream { reason, by_peer: http2.is_remote() }
            }
            _ => match why {
                Some(why) => Stop::Stream { reason: why.description().to_owned(), by_peer: true },
                None => Stop::Connection,
            },
        }
    }

    fn frames(&self) -> MutexGuard<'_, Frames> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_ready(&mut self, cx: &mut Context<'_>) -> bool {
        turn(&mut self.connection, &mut self.ended, cx);
        let (is_leaving, takes_no_stream) = {
            let frames = self.frames();
            (frames.goaway.is_some(), frames.takes_no_stream)
        };
        !self.ended && self.sender.is_ready() && !is_leaving && !takes_no_stream && self.unsent.strong_count() == 0
    }

    /// What TLS said at the connection's end, where it was TLS that ended it.
    pub fn tls_error(&self) -> Option<rustls::Error> {
        self.frames().tls_error.clone()
    }

    /// The receiver wants HTTP/1.1 for a request like the last one.
    pub fn wants_http1(&self) -> bool {
        self.frames().reset == Some((self.stream, HTTP_1_1_REQUIRED))
    }

    pub fn forget_body(&mut self) {
        self.body = None;
    }
}

/// Lets the connection do what it can.
fn turn(connection: &mut Pin<Box<http2::Connection<Transport, Body, Tasks>>>, ended: &mut bool, cx: &mut Context<'_>) {
    if !*ended {
        *ended = connection.as_mut().poll(cx).is_ready();
    }
}

/// Whether a head is one that would have been too large over HTTP/1.
pub fn is_too_large(headers: &HeaderMap, bytes_max: usize, lines_max: usize) -> bool {
    // A line there has ": " and an end.
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    bytes > bytes_max || headers.len() > lines_max
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

/// RFC 9113 section 7.
const REFUSED_STREAM: u32 = 0x7;
const HTTP_1_1_REQUIRED: u32 = 0xd;

/// What the peer's frames said (RFC 9113 sections 4.1 and 6).
#[derive(Debug, Default)]
struct Frames {
    /// The head of the frame that is being read.
    head: [u8; FRAME_HEAD_BYTES],
    filled: usize,
    /// Bytes of its payload to come.
    left: u32,
    /// The payload of a RST_STREAM or a GOAWAY, or one setting.
    told: [u8; 8],
    told_filled: usize,
    /// The highest stream that END_STREAM was seen of: there is one at a time.
    ended: u32,
    /// The last stream that was reset, and the code.
    reset: Option<(u32, u32)>,
    /// The last stream that a GOAWAY leaves in, and its code.
    goaway: Option<(u32, u32)>,
    /// Its newest SETTINGS_MAX_CONCURRENT_STREAMS is 0: a request would wait for another.
    takes_no_stream: bool,
    tls_error: Option<rustls::Error>,
}

const FRAME_HEAD_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
/// Identifier and value (RFC 9113 section 6.5.1).
const SETTING_BYTES: usize = 6;
const MAX_CONCURRENT_STREAMS: u16 = 3;

impl Frames {
    fn see(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.filled < FRAME_HEAD_BYTES {
                let take = bytes.len().min(FRAME_HEAD_BYTES - self.filled);
                self.head[self.filled..self.filled + take].copy_from_slice(&bytes[..take]);
                self.filled += take;
                bytes = &bytes[take..];
                if self.filled < FRAME_HEAD_BYTES {
                    return;
                }
                self.left = u32::from_be_bytes([0, self.head[0], self.head[1], self.head[2]]);
                self.told_filled = 0;
            } else {
                let is_settings = self.head[3] == SETTINGS;
                let mut take = bytes.len().min(self.left as usize);
                let room = if is_settings { SETTING_BYTES } else { self.told.len() } - self.told_filled;
                if is_settings {
                    take = take.min(room);
                }
                let keep = take.min(room);
                self.told[self.told_filled..self.told_filled + keep].copy_from_slice(&bytes[..keep]);
                self.told_filled += keep;
                if is_settings && self.told_filled == SETTING_BYTES {
                    self.told_filled = 0;
                    self.set();
                }
                self.left -= u32::try_from(take).unwrap_or(u32::MAX);
                bytes = &bytes[take..];
            }
            if self.left == 0 {
                self.filled = 0;
                self.seen();
            }
        }
    }

    /// A whole setting.
    fn set(&mut self) {
        let [high, low, value @ ..] = self.told;
        if u16::from_be_bytes([high, low]) == MAX_CONCURRENT_STREAMS {
            self.takes_no_stream = value[..4] == [0; 4];
        }
    }

    /// A whole frame.
    fn seen(&mut self) {
        let number = |at: usize, from: &[u8]| from.get(at..at + 4).and_then(|four| four.try_into().ok());
        let number = |at, from| number(at, from).map_or(0, u32::from_be_bytes);
        let (kind, flags, stream) = (self.head[3], self.head[4], number(5, &self.head) & 0x7fff_ffff);
        match kind {
            DATA | HEADERS if flags & END_STREAM != 0 => self.ended = self.ended.max(stream),
            RST_STREAM => self.reset = Some((stream, number(0, &self.told))),
            GOAWAY => self.goaway = Some((number(0, &self.told) & 0x7fff_ffff, number(4, &self.told))),
            _ => {}
        }
    }
}

/// A connection whose frames are looked at as they are read.
struct Tapped {
    io: Box<dyn Io>,
    frames: Arc<Mutex<Frames>>,
}

impl AsyncRead for Tapped {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut *self.io).poll_read(cx, buf));
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        match &read {
            Ok(()) => frames.see(&buf.filled()[before..]),
            Err(error) => frames.tls_error = tls_error(error),
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Tapped {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    #[test]
    fn frames_are_seen_however_they_are_cut() {
        let wire = [
            frame(4, 0, 0, &[]),
            frame(HEADERS, 4, 1, b"head"),
            frame(DATA, END_STREAM, 1, &[9; 300]),
            frame(HEADERS, 4, 3, b"head"),
            frame(RST_STREAM, 0, 3, &7u32.to_be_bytes()),
            frame(GOAWAY, 0, 0, &[0x80, 0, 0, 1, 0, 0, 0, 2, b'w', b'h', b'y']),
            frame(DATA, 0, 5, b"more"),
        ]
        .concat();
        for step in [1, 2, 5, 9, 13, wire.len()] {
            let mut frames = Frames::default();
            wire.chunks(step).for_each(|part| frames.see(part));
            assert_eq!(frames.ended, 1, "{step}");
            assert_eq!(frames.reset, Some((3, REFUSED_STREAM)), "{step}");
            assert_eq!(frames.goaway, Some((1, 2)), "{step}");
        }
    }

    /// Of two settings of a kind the later one holds.
    #[test]
    fn a_peer_that_takes_no_more_streams_is_seen_however_its_settings_are_cut() {
        let setting = |id: u16, value: u32| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
        for (settings, takes_no_stream) in [
            (vec![vec![]], false),
            (vec![setting(MAX_CONCURRENT_STREAMS, 100)], false),
            (vec![setting(MAX_CONCURRENT_STREAMS, 0)], true),
            (vec![setting(MAX_CONCURRENT_STREAMS, 1 << 24)], false),
            (vec![[setting(4, 0), setting(MAX_CONCURRENT_STREAMS, 0), setting(5, 16_384)].concat()], true),
            (vec![[setting(MAX_CONCURRENT_STREAMS, 0), setting(MAX_CONCURRENT_STREAMS, 1)].concat()], false),
            (vec![setting(MAX_CONCURRENT_STREAMS, 1), setting(MAX_CONCURRENT_STREAMS, 0)], true),
            (vec![setting(MAX_CONCURRENT_STREAMS, 0), setting(1, 4096), vec![]], true),
            (vec![setting(MAX_CONCURRENT_STREAMS, 0), setting(MAX_CONCURRENT_STREAMS, 7)], false),
        ] {
            let wire = settings.iter().map(|settings| frame(SETTINGS, 0, 0, settings));
            let wire = wire.chain([frame(DATA, END_STREAM, 1, b"more")]).collect::<Vec<_>>().concat();
            for step in [1, 2, 3, 5, 7, 13, wire.len()] {
                let mut frames = Frames::default();
                wire.chunks(step).for_each(|part| frames.see(part));
                assert_eq!((frames.takes_no_stream, frames.ended), (takes_no_stream, 1), "{step} {settings:?}");
            }
        }
    }
}
