//! A connected socket, and what was seen on it.
//!
//! [`Wire`] is the lowest layer, under TLS: it notes when bytes moved and how the peer ended, so that a failure is
//! named by the call that made it and not by the words of a layer above. Not here: making the socket
//! ([`super::connect`]).

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::metrics::PortGuard;
use crate::clock;

/// How the peer, or the way to it, ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerEnd {
    /// It closed its side.
    Closed,
    /// It reset the connection, or a write found it closed.
    Reset,
    /// The network gave up on it.
    Lost,
}

/// What was seen on one socket. Shared between the socket and whoever explains its failure; relaxed everywhere,
/// because both live in one task.
#[derive(Debug)]
pub struct Meter {
    base: Instant,
    read: AtomicU64,
    written: AtomicU64,
    /// Nanoseconds since `base` at which a write last moved bytes.
    last_write: AtomicU64,
    /// The last write found the socket full.
    blocked: AtomicBool,
    end: AtomicU8,
}

impl Meter {
    fn new() -> Self {
        Self {
            base: clock::monotonic(),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            last_write: AtomicU64::new(0),
            blocked: AtomicBool::new(false),
            end: AtomicU8::new(0),
        }
    }

    /// Bytes received, TLS framing included.
    pub fn bytes_read(&self) -> u64 {
        self.read.load(Relaxed)
    }

    /// Bytes handed to the kernel, TLS framing included.
    pub fn bytes_written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    /// When bytes were last handed to the kernel.
    pub fn last_write(&self) -> Instant {
        self.base + Duration::from_nanos(self.last_write.load(Relaxed))
    }

    /// Something waits for room in the socket.
    pub fn is_blocked(&self) -> bool {
        self.blocked.load(Relaxed)
    }

    pub fn peer_end(&self) -> Option<PeerEnd> {
        match self.end.load(Relaxed) {
            1 => Some(PeerEnd::Closed),
            2 => Some(PeerEnd::Reset),
            3 => Some(PeerEnd::Lost),
            _ => None,
        }
    }

    fn wrote(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Relaxed);
        let since = clock::monotonic().duration_since(self.base);
        self.last_write.store(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        self.blocked.store(false, Relaxed);
    }

    fn failed(&self, error: &io::Error) {
        let end = match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => 2,
            _ => 3,
        };
        // An end that was seen first explains what follows it.
        let _ = self.end.compare_exchange(0, end, Relaxed, Relaxed);
    }

    fn closed(&self) {
        let _ = self.end.compare_exchange(0, 1, Relaxed, Relaxed);
    }
}

/// A connected socket. Dropping it closes the connection.
#[derive(Debug)]
pub struct Wire {
    socket: Arc<TcpStream>,
    meter: Arc<Meter>,
    _port: PortGuard,
}

impl Wire {
    pub fn new(socket: TcpStream, port: PortGuard) -> Self {
        Self { socket: Arc::new(socket), meter: Arc::new(Meter::new()), _port: port }
    }

    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    pub fn probe(&self) -> Probe {
        Probe(self.socket.clone())
    }
}

/// Asks the kernel whether an idle connection is still open and silent.
#[derive(Clone, Debug)]
pub struct Probe(Arc<TcpStream>);

impl Probe {
    /// `false`: the peer closed or reset it, or sent what nobody asked for.
    pub fn is_quiet(&self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        match socket2::SockRef::from(&*self.0).peek(&mut byte) {
            Ok(_) => false,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            // Not asked for anything: a read of nothing must not look like the peer's end.
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(self.socket.poll_read_ready(cx))?;
            match self.socket.try_read_buf(buf) {
                Ok(0) => {
                    self.meter.closed();
                    return Poll::Ready(Ok(()));
                }
                Ok(bytes) => {
                    self.meter.read.fetch_add(bytes as u64, Relaxed);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    self.meter.failed(&error);
                    return Poll::Ready(Err(error));
                }
            }
        }
    }
}

impl Wire {
    fn poll_write_with(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.socket.poll_write_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => {
                    self.meter.blocked.store(true, Relaxed);
                    return Poll::Pending;
                }
            }
            match write(&self.socket) {
                Ok(bytes) => {
                    self.meter.wrote(bytes);
                    return Poll::Ready(Ok(bytes));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    self.meter.failed(&error);
                    return Poll::Ready(Err(error));
                }
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |socket| socket.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |socket| socket.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(socket2::SockRef::from(&*self.socket).shutdown(std::net::Shutdown::Write))
    }
}

/// A connection of any kind: a [`Wire`], or TLS over one.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}
