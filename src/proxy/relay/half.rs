//! One direction of a tunnel.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::bytes::{self, Buf as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::limits::{READ_TURN_BYTES, TUNNEL_BUFFER, TUNNEL_BUFFER_FIRST};
use crate::policy::Host;
use crate::proxy::hello::{Hello, Said, is_of};

/// Why a direction does not go on.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    /// There is no more to be read, and that is no end.
    Broken,
    /// What was read is not taken.
    Untaken {
        /// By a reset. Who closes first, and resets then, is told of by another error (tcp(7), `EPIPE`).
        by_reset: bool,
    },
    /// The client's TLS names another server, or cannot be read.
    OtherServer,
}

pub struct Half {
    /// Read before this was: taken before anything else.
    early: bytes::Bytes,
    /// Looks at the first bytes, and for which host.
    guard: Option<Box<(Hello, Host)>>,
    pub server_name: Option<String>,
    /// Read, and not taken yet.
    pub waiting: bytes::Bytes,
    pub stage: Stage,
    /// Its end is that of a reset, which the other direction was told of: the kernel tells it once.
    pub is_cut_short: bool,
    /// How much is read at once.
    reach: usize,
    pub taken: u64,
    pub given: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Open,
    /// The one side has closed; the other is to be told.
    Ended,
    Done,
    /// The other side takes no more. What is sent to it still is passed over: whoever sends it might read nothing before.
    Cut,
    /// And there is no more of it.
    CutOff,
}

impl Default for Half {
    fn default() -> Self {
        Self {
            early: bytes::Bytes::new(),
            guard: None,
            server_name: None,
            waiting: bytes::Bytes::new(),
            stage: Stage::Open,
            is_cut_short: false,
            reach: TUNNEL_BUFFER_FIRST,
            taken: 0,
            given: 0,
        }
    }
}

impl Half {
    /// `early`: read before this was. `host`: the one that a TLS client must name.
    pub fn new(early: &[u8], host: Option<Host>) -> Self {
        let guard = host.map(|host| Box::new((Hello::default(), host)));
        // A copy: it is part of a buffer that would live as long as the tunnel.
        Self { early: bytes::Bytes::copy_from_slice(early), guard, ..Self::default() }
    }

    pub fn moved(&self) -> u64 {
        self.taken + self.given
    }

    /// Nothing more is given.
    pub fn is_over(&self) -> bool {
        !matches!(self.stage, Stage::Open | Stage::Ended)
    }

    /// Goes on as far as it can.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        scratch: &mut [u8],
    ) -> Result<(), Stop> {
        let stopped = match self.poll_open(cx, from, to, scratch) {
            Poll::Ready(Err(stop)) => Err(stop),
            _ => Ok(()),
        };
        if let Err(Stop::Untaken { .. }) = stopped {
            self.stage = Stage::Cut;
            (self.early, self.waiting, self.guard) = (bytes::Bytes::new(), bytes::Bytes::new(), None);
        }
        if self.stage == Stage::Cut {
            match pass_over(cx, from, scratch, &mut { READ_TURN_BYTES }) {
                Passed::All => {}
                Passed::Enough => cx.waker().wake_by_ref(),
                Passed::Ended => self.stage = Stage::CutOff,
            }
        }
        stopped
    }

    fn poll_open(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        scratch: &mut [u8],
    ) -> Poll<Result<(), Stop>> {
        let mut turn = 0;
        loop {
            if !self.waiting.is_empty() {
                let written = give(cx, to, &self.waiting).map_err(untaken)?;
                self.given += written as u64;
                self.waiting.advance(written);
                if !self.waiting.is_empty() {
                    return Poll::Pending;
                }
                self.waiting = bytes::Bytes::new();
            }
            match self.stage {
                Stage::Done | Stage::Cut | Stage::CutOff => return Poll::Ready(Ok(())),
                Stage::Ended => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(untaken)?;
                    self.stage = Stage::Done;
                    return Poll::Ready(Ok(()));
                }
                Stage::Open => {}
            }
            if turn >= READ_TURN_BYTES {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let mut buffer = ReadBuf::new(&mut scratch[..self.reach]);
            if !self.early.is_empty() {
                buffer.put_slice(&self.early.split_to(self.early.len().min(self.reach)));
            } else if Pin::new(&mut *from).poll_read(cx, &mut buffer).map_err(|_| Stop::Broken)?.is_pending() {
                // What TLS has of it still.
                let _ = Pin::new(&mut *to).poll_flush(cx).map_err(untaken)?;
                return Poll::Pending;
            }
            let read = buffer.filled();
            if read.is_empty() {
                if self.is_cut_short {
                    return Poll::Ready(Err(Stop::Broken));
                }
                self.stage = Stage::Ended;
                continue;
            }
            turn += read.len();
            self.taken += read.len() as u64;
            if self.guard.is_some() {
                self.waiting = self.looked_at(read)?.into();
                continue;
            }
            let written = give(cx, to, read).map_err(untaken)?;
            self.given += written as u64;
            if written < read.len() {
                self.waiting = bytes::Bytes::copy_from_slice(&read[written..]);
                self.reach = TUNNEL_BUFFER_FIRST;
                return Poll::Pending;
            }
            if read.len() == self.reach {
                self.reach = (self.reach * 2).min(TUNNEL_BUFFER);
            }
        }
    }
}

impl Half {
    /// What goes on of it, and of what was held back.
    fn looked_at(&mut self, mut read: &[u8]) -> Result<Vec<u8>, Stop> {
        let mut on = Vec::new();
        while let Some(guard) = &mut self.guard {
            match guard.0.take(std::mem::take(&mut read)) {
                Said::More => break,
                Said::Named(bytes, named) => {
                    let is_meant = named.as_ref().is_none_or(|named| is_of(named, &guard.1));
                    self.server_name = named.or(self.server_name.take());
                    if !is_meant {
                        return Err(Stop::OtherServer);
                    }
                    on.extend(bytes);
                }
                Said::On(bytes) => {
                    self.guard = None;
                    on.extend(bytes);
                }
                Said::Unreadable => {
                    self.server_name = None;
                    return Err(Stop::OtherServer);
                }
            }
        }
        Ok(on)
    }
}

fn untaken(error: io::Error) -> Stop {
    Stop::Untaken { by_reset: error.kind() != io::ErrorKind::BrokenPipe }
}

/// What came of passing over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// All that there was; there may be more.
    All,
    /// As much as it may be.
    Enough,
    /// There is no more.
    Ended,
}

/// Reads what nobody will have, `left` bytes of it at most.
pub fn pass_over(
    cx: &mut Context<'_>,
    from: &mut (impl AsyncRead + Unpin),
    scratch: &mut [u8],
    left: &mut usize,
) -> Passed {
    while *left > 0 {
        let reach = scratch.len().min(*left);
        let mut buffer = ReadBuf::new(&mut scratch[..reach]);
        match Pin::new(&mut *from).poll_read(cx, &mut buffer) {
            Poll::Pending => return Passed::All,
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => *left -= buffer.filled().len(),
            Poll::Ready(_) => return Passed::Ended,
        }
    }
    Passed::Enough
}

/// How much of it is taken now; where it is less than all, whoever is woken goes on.
pub fn give(cx: &mut Context<'_>, to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match Pin::new(&mut *to).poll_write(cx, &bytes[written..])? {
            Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(more) => written += more,
            Poll::Pending => break,
        }
    }
    Ok(written)
}
