//! HTTP/1.1 over one connection: a request is written, and what comes back is read, whichever of the two is possible.
//!
//! Written by hand rather than with a library's client, because what is promised here is what such clients leave out:
//! header names leave as their author wrote them; an answer that has come is read even where the request could not be
//! written to its end (RFC 9112 section 9.5); an answer is whole only where its framing says so; and a failure names
//! the line it met. No task is spawned: who waits turns the connection, and dropping it closes the socket.

pub mod head;

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::ReadBuf;

use self::head::{Bad, Framing, Head, HeadCaps, kept};
use crate::dial::wire::Io;
use crate::limits::{CHUNK_LINE_BYTES_MAX, INFORMATIONAL_RESPONSES_MAX};

/// Bytes read at once.
const READ_BYTES: usize = 16 * 1024;

/// One connection, held by one delivery at a time.
pub struct Http1 {
    io: Box<dyn Io>,
    inbox: BytesMut,
    out: Out,
    body: Body,
    /// What was read of the connection's end.
    ended: Option<End>,
    /// Nothing yet speaks against another request.
    keeps_open: bool,
    tls_error: Option<rustls::Error>,
}

/// What TLS says, where it is at an error's root.
pub fn tls_error(error: &io::Error) -> Option<rustls::Error> {
    error.get_ref()?.downcast_ref::<rustls::Error>().cloned()
}

/// The request, as far as it has not been written.
#[derive(Default)]
struct Out {
    head: Bytes,
    body: Bytes,
    state: OutState,
    /// Some of it was.
    begun: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum OutState {
    #[default]
    Done,
    Writing,
    /// The socket takes no more; what has come may still be read.
    Failed,
}

/// The answer's body, as far as it has not been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    /// Read to where it ends.
    Done,
    Length(u64),
    Close,
    /// A chunk's size comes next.
    ChunkSize,
    Chunk(u64),
    /// The line's end behind a chunk.
    ChunkEnd,
    /// Bytes of trailer lines so far.
    Trailers(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Closed,
    /// Closed without TLS's own end.
    Cut,
    Failed,
}

/// Why there is no (whole) answer.
#[derive(Debug)]
pub enum Stop {
    /// It stood closed before the request was written; or it is not a new one, and something came unasked.
    NotFresh,
    /// On a new connection something came before the first byte of the request had left.
    Unasked {
        line: String,
    },
    /// The connection ended. `tidy`: the peer closed its side, if only TLS's.
    Ended {
        tidy: bool,
    },
    /// It ended without TLS's own end, where that alone tells that all of the body came.
    CutWithoutNotice,
    Bad(Bad),
    Chunk {
        line: String,
        why: &'static str,
    },
    TooManyInformational,
}

impl Http1 {
    pub fn new(io: Box<dyn Io>) -> Self {
        Self {
            io,
            inbox: BytesMut::new(),
            out: Out::default(),
            body: Body::Done,
            ended: None,
            keeps_open: true,
            tls_error: None,
        }
    }

    /// Writes a request and reads the head of its answer.
    /// `head_only`: it is a HEAD; `again`: it is not the connection's first.
    pub async fn send(
        &mut self,
        head: Bytes,
        body: Bytes,
        head_only: bool,
        again: bool,
        caps: HeadCaps,
    ) -> Result<Head, Stop> {
        // What is known of the connection before it is written to.
        self.look();
        if self.ended.is_some() && self.inbox.is_empty() {
            return Err(Stop::NotFresh);
        }
        self.nothing_unasked(again)?;
        self.out = Out { head, body, state: OutState::Writing, begun: false };
        let (mut scanned, mut informational) = (0, 0);
        let mut lenient = false;
        std::future::poll_fn(|cx| {
            loop {
                let _ = self.poll_out(cx);
                if !self.out.begun {
                    self.nothing_unasked(again)?;
                }
                if let Some(head) = head::take(&mut self.inbox, &mut scanned, caps).map_err(Stop::Bad)? {
                    lenient |= head.is_lenient;
                    if !matches!(head.status, 100 | 102..200) {
                        self.begin(&head, head_only)?;
                        self.keeps_open &= !lenient;
                        return Poll::Ready(Ok(head));
                    }
                    informational += 1;
                    if informational > INFORMATIONAL_RESPONSES_MAX {
                        return Poll::Ready(Err(Stop::TooManyInformational));
                    }
                    continue;
                }
                if ready!(self.poll_in(cx)).is_some() {
                    return Poll::Ready(Err(Stop::Ended { tidy: self.ended != Some(End::Failed) }));
                }
            }
        })
        .await
    }

    /// What has come before a request's first byte left is no answer to it (RFC 9112 section 9.2): a connection that was
    /// used before is out of step, and one that is new leads to somebody who speaks another protocol, or who does not
    /// wait to hear what is wanted. Its status, were it one, says nothing of the request.
    fn nothing_unasked(&self, again: bool) -> Result<(), Stop> {
        if self.inbox.is_empty() {
            return Ok(());
        }
        if again {
            return Err(Stop::NotFresh);
        }
        let line = self.inbox[..].split(|&byte| byte == b'\n').next().unwrap_or_default();
        Err(Stop::Unasked { line: kept(line.trim_ascii_end()) })
    }

    /// What TLS said at the connection's end, where it was TLS that ended it.
    pub fn tls_error(&self) -> Option<&rustls::Error> {
        self.tls_error.as_ref()
    }

    fn begin(&mut self, head: &Head, head_only: bool) -> Result<(), Stop> {
        let framing = head.framing(head_only).map_err(Stop::Bad)?;
        self.keeps_open &= head.keeps_open() && framing != Framing::Close;
        self.body = match framing {
            Framing::Empty | Framing::Length(0) => Body::Done,
            Framing::Length(length) => Body::Length(length),
            Framing::Chunked => Body::ChunkSize,
            Framing::Close => Body::Close,
        };
        Ok(())
    }

    /// The next piece of an answer's body, never of two chunks; `None` at its end.
    pub async fn read(&mut self) -> Result<Option<Bytes>, Stop> {
        std::future::poll_fn(|cx| {
            loop {
                let _ = self.poll_out(cx);
                if self.body == Body::Done {
                    return Poll::Ready(Ok(None));
                }
                if let Some(piece) = self.piece()? {
                    return Poll::Ready(Ok(Some(piece)));
                }
                if self.body == Body::Done {
                    return Poll::Ready(Ok(None));
                }
                if let Some(end) = ready!(self.poll_in(cx)) {
                    return Poll::Ready(match (self.body, end) {
                        (Body::Close, End::Closed) => {
                            self.body = Body::Done;
                            Ok(None)
                        }
                        (Body::Close, End::Cut) => Err(Stop::CutWithoutNotice),
                        (_, end) => Err(Stop::Ended { tidy: end != End::Failed }),
                    });
                }
            }
        })
        .await
    }

    /// What can be taken of the body without reading more.
    fn piece(&mut self) -> Result<Option<Bytes>, Stop> {
        loop {
            match self.body {
                Body::Done => return Ok(None),
                Body::Length(left) | Body::Chunk(left) => {
                    if self.inbox.is_empty() {
                        return Ok(None);
                    }
                    let take = self.inbox.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    let left = left - take as u64;
                    self.body = match self.body {
                        Body::Length(_) if left == 0 => Body::Done,
                        Body::Length(_) => Body::Length(left),
                        _ if left == 0 => Body::ChunkEnd,
                        _ => Body::Chunk(left),
                    };
                    return Ok(Some(self.inbox.split_to(take).freeze()));
                }
                Body::Close => {
                    let all = self.inbox.split().freeze();
                    return Ok((!all.is_empty()).then_some(all));
                }
                Body::ChunkSize => {
                    let Some(line) = self.line(CHUNK_LINE_BYTES_MAX)? else { return Ok(None) };
                    let size = chunk_size(&line).ok_or_else(|| chunk(&line, "is no chunk size"))?;
                    // Padding that another reader may take otherwise.
                    let digits = line[..].split(|&byte| byte == b';').next().unwrap_or_default();
                    self.keeps_open &= digits.iter().all(u8::is_ascii_hexdigit);
                    self.body = if size == 0 { Body::Trailers(0) } else { Body::Chunk(size) };
                }
                Body::ChunkEnd => match &self.inbox[..] {
                    [b'\r', b'\n', ..] => {
                        self.inbox.advance(2);
                        self.body = Body::ChunkSize;
                    }
                    [] | [b'\r'] => return Ok(None),
                    other => return Err(chunk(&other[..other.len().min(16)], "stands where a chunk ends")),
                },
                Body::Trailers(bytes) => {
                    let Some(line) = self.line(CHUNK_LINE_BYTES_MAX)? else { return Ok(None) };
                    // They are passed over.
                    let bytes = bytes + line.len();
                    if bytes > 4 * CHUNK_LINE_BYTES_MAX {
                        return Err(chunk(&line, "is one trailer line too many"));
                    }
                    self.body = if line.is_empty() { Body::Done } else { Body::Trailers(bytes) };
                }
            }
        }
    }

    /// A line without its end; `None`: it has not come yet.
    fn line(&mut self, most: usize) -> Result<Option<BytesMut>, Stop> {
        let Some(end) = self.inbox.iter().take(most).position(|&byte| byte == b'\n') else {
            if self.inbox.len() >= most {
                return Err(chunk(&self.inbox[..64], "begins a line without end"));
            }
            return Ok(None);
        };
        let mut line = self.inbox.split_to(end + 1);
        line.truncate(end);
        match line.last() {
            Some(b'\r') => line.truncate(end - 1),
            _ => return Err(chunk(&line, "is a line without its CR")),
        }
        Ok(Some(line))
    }

    /// Writes what the socket takes. `Pending`: there is more.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.out.state == OutState::Writing {
            let Out { head, body, .. } = &self.out;
            let written = if head.is_empty() && body.is_empty() {
                match ready!(Pin::new(&mut *self.io).poll_flush(cx)) {
                    Ok(()) => {
                        self.out.state = OutState::Done;
                        break;
                    }
                    Err(error) => Err(error),
                }
            } else {
                ready!(Pin::new(&mut *self.io).poll_write_vectored(cx, &[IoSlice::new(head), IoSlice::new(body)]))
            };
            match written {
                Ok(written) if written > 0 => {
                    self.out.begun = true;
                    let of_head = written.min(self.out.head.len());
                    self.out.head.advance(of_head);
                    self.out.body.advance(written - of_head);
                }
                _ => {
                    self.out = Out { state: OutState::Failed, begun: self.out.begun, ..Out::default() };
                    self.keeps_open = false;
                }
            }
        }
        Poll::Ready(())
    }

    /// Reads into the inbox; `Some` at the connection's end.
    fn poll_in(&mut self, cx: &mut Context<'_>) -> Poll<Option<End>> {
        if self.ended.is_some() {
            return Poll::Ready(self.ended);
        }
        let mut space = [MaybeUninit::<u8>::uninit(); READ_BYTES];
        let mut space = ReadBuf::uninit(&mut space);
        let end = match ready!(Pin::new(&mut *self.io).poll_read(cx, &mut space)) {
            Ok(()) if space.filled().is_empty() => End::Closed,
            Ok(()) => {
                self.inbox.extend_from_slice(space.filled());
                return Poll::Ready(None);
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => End::Cut,
            Err(error) => {
                self.tls_error = tls_error(&error);
                End::Failed
            }
        };
        self.ended = Some(end);
        Poll::Ready(self.ended)
    }

    /// Lets it notice what has come meanwhile, without waiting.
    fn look(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        let _ = self.poll_out(&mut cx);
        if self.ended.is_none() && self.inbox.is_empty() {
            let _ = self.poll_in(&mut cx);
        }
    }

    /// Whether it is fit for another request now.
    pub fn is_ready(&mut self) -> bool {
        self.look();
        self.keeps_open
            && self.ended.is_none()
            && self.inbox.is_empty()
            && self.body == Body::Done
            && self.out.state == OutState::Done
    }
}

fn chunk(line: &[u8], why: &'static str) -> Stop {
    Stop::Chunk { line: kept(line), why }
}

/// RFC 9112 section 7.1, its extensions passed over.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|&byte| byte == b';').next()?.trim_ascii_end();
    let sound = (1..=16).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit);
    sound.then(|| std::str::from_utf8(digits).ok().and_then(|digits| u64::from_str_radix(digits, 16).ok())).flatten()
}

#[cfg(test)]
mod tests;
