//! Heads that cannot be read never become a call: hyper refuses them itself, with a status and no body. This gives
//! those refusals the body that every error of the API has.
//!
//! They are told from the API's own answers by having none: every error that the API makes has a body.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::api::problem::{Problem, ProblemCode};

/// A stream that hyper writes its answers to.
pub struct Explained<S> {
    stream: S,
    /// Of the listener, in the log.
    name: &'static str,
    instead: Option<Instead>,
    /// Its first bytes have come.
    begun: bool,
}

/// The first two bytes of a TLS handshake (RFC 8446 section 5.1).
const HANDSHAKE: &[u8] = &[22, 3];

/// What is written in the place of something else, and of how many bytes of that.
struct Instead {
    rest: Bytes,
    of_bytes: usize,
}

impl<S> Explained<S> {
    pub fn new(stream: S, name: &'static str) -> Self {
        Self { stream, name, instead: None, begun: false }
    }

    /// Once it no longer carries HTTP.
    pub fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: AsyncWrite + Unpin> Explained<S> {
    /// `None`: there is nothing to be written instead.
    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<usize>>> {
        let Some(instead) = &mut self.instead else { return Poll::Ready(None) };
        while instead.rest.has_remaining() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &instead.rest)) {
                Ok(0) => return Poll::Ready(Some(Err(io::ErrorKind::WriteZero.into()))),
                Ok(written) => instead.rest.advance(written),
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
        let of_bytes = instead.of_bytes;
        self.instead = None;
        Poll::Ready(Some(Ok(of_bytes)))
    }

    fn explain(&mut self, written: &[u8]) {
        if self.instead.is_none() {
            self.instead = explained(written).map(|rest| Instead { rest, of_bytes: written.len() });
        }
    }
}

/// The whole answer with a body, where this is one of hyper's refusals.
fn explained(answer: &[u8]) -> Option<Bytes> {
    const NO_BODY: &str = "content-length: 0\r\n";
    let problem = match answer.get(..13)? {
        b"HTTP/1.1 400 " => Problem::shape("this is no HTTP request that can be read: look at its line and headers"),
        b"HTTP/1.1 414 " => Problem::new(ProblemCode::TooLarge, "the request's line is too long"),
        b"HTTP/1.1 431 " => {
            Problem::new(ProblemCode::TooLarge, "the request's line and headers are too many, or too large together")
        }
        _ => return None,
    };
    let head = std::str::from_utf8(answer).ok()?.strip_suffix("\r\n\r\n")?;
    let (before, after) = format!("{head}\r\n").split_once(NO_BODY).map(|(a, b)| (a.to_owned(), b.to_owned()))?;
    let status = head.get(9..12)?.parse::<u16>().ok().and_then(|status| http::StatusCode::from_u16(status).ok())?;
    let body = problem.status(status).body();
    let head = format!(
        "{before}content-type: application/problem+json\r\ncontent-length: {}\r\ncache-control: no-store\r\n\
         x-content-type-options: nosniff\r\n{after}\r\n",
        body.len()
    );
    Some([head.into_bytes(), body].concat().into())
}

impl<S: AsyncRead + Unpin> AsyncRead for Explained<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, into);
        let came = into.filled().get(before..).unwrap_or_default();
        let first = !self.begun && !came.is_empty();
        self.begun |= first;
        if first && came.starts_with(HANDSHAKE) {
            // No answer of ours can be read over there.
            let name = self.name;
            tracing::warn!(
                "a caller speaks TLS to {name}, which speaks plain HTTP: call it as http://, or set its tls"
            );
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Explained<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.explain(bytes);
        match ready!(self.poll_instead(cx)) {
            Some(written) => Poll::Ready(written),
            None => Pin::new(&mut self.stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [only] = parts {
            self.explain(only);
        }
        match ready!(self.poll_instead(cx)) {
            Some(written) => Poll::Ready(written),
            None => Pin::new(&mut self.stream).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
