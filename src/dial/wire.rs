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
        Arc, Mutex, PoisonError, Weak,
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
use crate::limits::READ_TURN_BYTES;
pub use crate::outcome::words::PeerEnd;

/// What was seen on one socket. Shared between the socket and whoever explains its failure; relaxed everywhere,
/// because both live in one task.
#[derive(Debug)]
pub struct Meter {
    base: Instant,
    read: AtomicU64,
    written: AtomicU64,
    /// The last write found the socket full.
    blocked: AtomicBool,
    /// A request is out once this many bytes are written in all and nothing is blocked.
    target: AtomicU64,
    /// Nanoseconds since `base` at which `target` was reached; 0: not yet.
    reached: AtomicU64,
    /// Held by what has not left of the request's body, where that is known: more is written over HTTP/2 than bodies,
    /// and what a receiver's window holds back does not fill the socket.
    unsent: Mutex<Weak<()>>,
    /// Reading ends with an error once this many bytes were read in all.
    read_limit: AtomicU64,
    /// Bytes read when that was set.
    allowed_from: AtomicU64,
    over_limit: AtomicBool,
    end: AtomicU8,
}

impl Meter {
    fn new() -> Self {
        Self {
            base: clock::monotonic(),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            blocked: AtomicBool::new(false),
            target: AtomicU64::new(u64::MAX),
            reached: AtomicU64::new(0),
            unsent: Mutex::default(),
            read_limit: AtomicU64::new(u64::MAX),
            allowed_from: AtomicU64::new(0),
            over_limit: AtomicBool::new(false),
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

    /// A request with this many bytes of body begins: it is out once more than those are written and nothing waits.
    pub fn begin_request(&self, body_bytes: u64) {
        self.target.store(self.bytes_written() + body_bytes + 1, Relaxed);
        self.reached.store(0, Relaxed);
        self.out_once_dropped(Weak::new());
    }

    /// The request that begins is not out while this is held.
    pub fn out_once_dropped(&self, held: Weak<()>) {
        *self.unsent.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }

    /// When the last byte of the request was handed to the kernel, if it was. What a connection writes of its own
    /// accord after it does not count.
    pub fn request_out_at(&self) -> Option<Instant> {
        let is_held = self.unsent.lock().unwrap_or_else(PoisonError::into_inner).strong_count() > 0;
        match self.reached.load(Relaxed) {
            0 => None,
            _ if is_held => None,
            since => Some(self.base + Duration::from_nanos(since)),
        }
    }

    /// From now on at most this many more bytes are read; what comes beyond is an error.
    pub fn allow(&self, bytes: u64) {
        self.allowed_from.store(self.bytes_read(), Relaxed);
        self.read_limit.store(self.bytes_read().saturating_add(bytes), Relaxed);
    }

    /// Bytes read since [`Self::allow`] was last called.
    pub fn allowance_used(&self) -> u64 {
        self.bytes_read() - self.allowed_from.load(Relaxed)
    }

    /// The peer sent more than it was allowed.
    pub fn is_over_limit(&self) -> bool {
        self.over_limit.load(Relaxed)
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
        let written = self.written.fetch_add(bytes as u64, Relaxed) + bytes as u64;
        self.blocked.store(false, Relaxed);
        if written >= self.target.load(Relaxed) && self.reached.load(Relaxed) == 0 {
            let since = clock::monotonic().duration_since(self.base);
            self.reached.store(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX).max(1), Relaxed);
        }
    }

    /// A write waits for room: whatever was counted, there is more.
    fn blocked(&self) {
        self.blocked.store(true, Relaxed);
        self.reached.store(0, Relaxed);
    }

    fn read(&self, bytes: usize) -> io::Result<()> {
        let read = self.read.fetch_add(bytes as u64, Relaxed) + bytes as u64;
        if read > self.read_limit.load(Relaxed) {
            self.over_limit.store(true, Relaxed);
            return Err(io::Error::other("the peer sent more than it was allowed"));
        }
        Ok(())
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
    /// Bytes read since others last had a turn.
    turn: usize,
    _port: PortGuard,
}

impl Wire {
    pub fn new(socket: TcpStream, port: PortGuard) -> Self {
        Self { socket: Arc::new(socket), meter: Arc::new(Meter::new()), turn: 0, _port: port }
    }

    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    pub fn probe(&self) -> Probe {
        Probe(self.socket.clone())
    }

    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// From now on its end is a reset: what was cut short must not look whole over there.
    pub fn end_by_reset(&self) {
        let _ = socket2::SockRef::from(&*self.socket).set_linger(Some(Duration::ZERO));
    }
}

/// Whether the peer has not acknowledged everything that was written. Of a socket that does not say so: no.
///
/// Neither `socket2` nor `nix` has a safe call for this (tcp(7), `SIOCOUTQ`).
#[allow(unsafe_code, reason = "one request by its number, with a pointer to a local of the size that it writes")]
pub fn is_unacknowledged(socket: &TcpStream) -> bool {
    use std::os::fd::AsRawFd;

    use nix::libc;

    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open for as long as `socket` is borrowed, and the kernel writes one `int` to a local that
    // outlives the call.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    answer == 0 && bytes > 0
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
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            // Not asked for anything: a read of nothing must not look like the peer's end.
            return Poll::Ready(Ok(()));
        }
        if self.turn >= READ_TURN_BYTES {
            // A peer that sends faster than we read would have this thread to itself for as long as it likes, and no
            // timer of any delivery would fire meanwhile.
            self.turn = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            let readable = self.socket.poll_read_ready(cx);
            if readable.is_pending() {
                self.turn = 0;
            }
            ready!(readable)?;
            match self.socket.try_read_buf(buf) {
                Ok(0) => {
                    self.meter.closed();
                    return Poll::Ready(Ok(()));
                }
                Ok(bytes) => {
                    self.turn += bytes;
                    return Poll::Ready(self.meter.read(bytes));
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
                    self.meter.blocked();
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
