//! The bytes of one tunnel, both ways: half-closes and resets are passed on, what one side does not take holds the other
//! up, and nothing is kept while nothing waits.
//!
//! Each direction reads into memory that its thread's tunnels share and writes at once; only what is not taken then is
//! copied, at most [`TUNNEL_BUFFER`] of it. Other tunnels have their turn after [`READ_TURN_BYTES`]. What ends before both
//! sides have closed ends by a reset on both: it must not look whole to either.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ::bytes::{self, Buf as _};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use metrics::Counter;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;

use super::hello::{Hello, Said, UNRECOGNIZED_NAME, is_of};
use super::lingering::Lingering;
use crate::clock;
use crate::dial::wire::Wire;
use crate::limits::{ECHO_CHARS_MAX, READ_TURN_BYTES, TUNNEL_BUFFER, TUNNEL_BUFFER_FIRST};
use crate::outcome::{Code, Failure, tame};
use crate::policy::{CheckedUrl, Denial, Host};
pub use crate::record::TunnelEnd as End;

/// What a tunnel may be.
#[derive(Clone, Debug)]
pub struct Terms {
    /// How long, without a byte either way.
    pub idle: Duration,
    /// And in all.
    pub until: Instant,
    /// The host that a TLS client must name, if it names any; `None`: nobody looks.
    pub sni: Option<Host>,
}

/// Counters of bytes that were given on.
#[derive(Clone)]
pub struct Bytes {
    pub up: Counter,
    pub down: Counter,
}

/// What a tunnel has given on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// To where it leads.
    pub up: u64,
    /// To the client.
    pub down: u64,
}

/// The client's end.
pub enum Client {
    Plain(TcpStream),
    Tls(Box<TlsStream<Lingering>>),
    /// One stream of a connection of HTTP/2.
    Stream(Box<TokioIo<Upgraded>>),
}

/// An open tunnel.
pub struct Relay {
    client: Client,
    wire: Wire,
    up: Half,
    down: Half,
    counters: Bytes,
    terms: Terms,
    /// When a byte moved last.
    last: Instant,
    timer: Pin<Box<Sleep>>,
    /// The client was told why by an alert: that must reach it.
    alerted: bool,
}

impl Relay {
    /// `early`: what the client sent before it had its answer.
    pub fn new(client: Client, wire: Wire, early: bytes::Bytes, terms: Terms, counters: Bytes) -> Self {
        if let Some(socket) = client.socket() {
            // Whoever pauses is waited for as long as a tunnel may idle; nothing else ends it sooner.
            let _ = SockRef::from(socket).set_tcp_user_timeout(None);
        }
        let last = clock::monotonic();
        let timer = Box::pin(tokio::time::sleep_until(terms.until.min(last + terms.idle)));
        let up =
            Half { early, guard: terms.sni.clone().map(|host| Box::new((Hello::default(), host))), ..Half::default() };
        Self { client, wire, up, down: Half::default(), counters, terms, last, timer, alerted: false }
    }

    /// Until it ends. What was dropped goes on where it was.
    pub async fn run(&mut self) -> End {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let before = (self.up.moved(), self.down.moved(), self.carried());
        let (up, down) = SCRATCH.with_borrow_mut(|scratch| {
            let up = self.up.poll(cx, &mut self.client, &mut self.wire, scratch);
            (up, self.down.poll(cx, &mut self.wire, &mut self.client, scratch))
        });
        if before.0 != self.up.moved() || before.1 != self.down.moved() {
            self.last = clock::monotonic();
            let now = self.carried();
            self.counters.up.increment(now.up - before.2.up);
            self.counters.down.increment(now.down - before.2.down);
        }
        match (up, down) {
            (Poll::Ready(Err(Stop::OtherServer)), _) => {
                self.alerted = true;
                // Seven bytes, to one who has been sent nothing yet.
                let _ = give(cx, &mut self.client, &UNRECOGNIZED_NAME);
                let _ = Pin::new(&mut self.client).poll_shutdown(cx);
                return Poll::Ready(End::Refused);
            }
            (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => return Poll::Ready(End::Reset),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(End::Closed),
            _ => {}
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            let (now, idle_at) = (clock::monotonic(), self.last + self.terms.idle);
            if now >= self.terms.until {
                return Poll::Ready(End::Lifetime);
            }
            if now >= idle_at {
                return Poll::Ready(End::Idle);
            }
            self.timer.as_mut().reset(self.terms.until.min(idle_at));
        }
        Poll::Pending
    }

    pub fn carried(&self) -> Carried {
        Carried { up: self.up.given, down: self.down.given }
    }

    /// Why it does not go on, where the client's TLS is the reason.
    pub fn refused(&self, url: &CheckedUrl) -> Failure {
        let host = &url.destination().host;
        let message = match &self.up.server_name {
            Some(named) => format!(
                "the TLS client in this tunnel names {}, and the tunnel was opened to {host}: open it to the server that is meant",
                tame(named, ECHO_CHARS_MAX)
            ),
            None => format!(
                "what the client of this tunnel to {host} sent begins as TLS does and cannot be read as a ClientHello: \
                 which server it names is not known"
            ),
        };
        Denial::new(Code::PolicySni, message).into()
    }

    /// The server that a TLS client named, where somebody looked.
    pub fn server_name(&self) -> Option<&str> {
        self.up.server_name.as_deref()
    }

    /// Closes both sides.
    pub fn finish(self, end: End) -> Carried {
        let carried = self.carried();
        if end != End::Closed {
            if let Some(socket) = self.client.socket().filter(|_| !self.alerted) {
                let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
            }
            self.wire.end_by_reset();
        }
        carried
    }
}

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; TUNNEL_BUFFER].into_boxed_slice());
}

/// Why a direction does not go on.
#[derive(Debug)]
enum Stop {
    Broken,
    /// The client's TLS names another server, or cannot be read.
    OtherServer,
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Self::Broken
    }
}

/// One direction.
struct Half {
    /// Read before this was: taken before anything else.
    early: bytes::Bytes,
    /// Looks at the first bytes, and for which host.
    guard: Option<Box<(Hello, Host)>>,
    server_name: Option<String>,
    /// Read, and not taken yet.
    waiting: bytes::Bytes,
    stage: Stage,
    /// How much is read at once.
    reach: usize,
    taken: u64,
    given: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Open,
    /// The one side has closed; the other is to be told.
    Ended,
    Done,
}

impl Default for Half {
    fn default() -> Self {
        Self {
            early: bytes::Bytes::new(),
            guard: None,
            server_name: None,
            waiting: bytes::Bytes::new(),
            stage: Stage::Open,
            reach: TUNNEL_BUFFER_FIRST,
            taken: 0,
            given: 0,
        }
    }
}

impl Half {
    fn moved(&self) -> u64 {
        self.taken + self.given
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        scratch: &mut [u8],
    ) -> Poll<Result<(), Stop>> {
        let mut turn = 0;
        loop {
            if !self.waiting.is_empty() {
                let written = give(cx, to, &self.waiting)?;
                self.given += written as u64;
                self.waiting.advance(written);
                if !self.waiting.is_empty() {
                    return Poll::Pending;
                }
                self.waiting = bytes::Bytes::new();
            }
            match self.stage {
                Stage::Done => return Poll::Ready(Ok(())),
                Stage::Ended => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
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
            } else if Pin::new(&mut *from).poll_read(cx, &mut buffer)?.is_pending() {
                // What TLS has of it still.
                let _ = Pin::new(&mut *to).poll_flush(cx)?;
                return Poll::Pending;
            }
            let read = buffer.filled();
            if read.is_empty() {
                self.stage = Stage::Ended;
                continue;
            }
            turn += read.len();
            self.taken += read.len() as u64;
            if self.guard.is_some() {
                self.waiting = self.looked_at(read)?.into();
                continue;
            }
            let written = give(cx, to, read)?;
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

/// How much of it is taken now; where it is less than all, whoever is woken goes on.
fn give(cx: &mut Context<'_>, to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<usize> {
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

impl Client {
    /// Its own alone.
    fn socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(stream) => Some(stream),
            Self::Tls(stream) => Some(stream.get_ref().0.socket()),
            Self::Stream(_) => None,
        }
    }
}

impl AsyncRead for Client {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, into),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, into),
            Self::Stream(stream) => Pin::new(stream).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for Client {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Stream(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Stream(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Stream(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test's own connections")]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::dial::metrics::PortGuard;

    /// Both sides of a tunnel, and the tunnel between them.
    async fn tunnel(early: &'static [u8], terms: Terms) -> (TcpStream, Relay, TcpStream) {
        async fn pair() -> (TcpStream, TcpStream) {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (one, other) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
            (one.unwrap(), other.unwrap().0)
        }
        let ((client, ours), (to, receiver)) = (pair().await, pair().await);
        let wire = Wire::new(to, PortGuard::for_tests());
        let counters = Bytes { up: Counter::noop(), down: Counter::noop() };
        let early = bytes::Bytes::from_static(early);
        (client, Relay::new(Client::Plain(ours), wire, early, terms, counters), receiver)
    }

    fn long() -> Terms {
        let hour = Duration::from_secs(3600);
        Terms { idle: hour, until: clock::monotonic() + hour, sni: None }
    }

    #[tokio::test]
    async fn bytes_go_both_ways_in_order_and_each_side_closes_for_itself() {
        let (mut client, mut relay, mut receiver) = tunnel(b"early ", long()).await;
        let ran = tokio::spawn(async move { (relay.run().await, relay.carried()) });
        client.write_all(b"then late").await.unwrap();
        client.shutdown().await.unwrap();
        let mut came = String::new();
        receiver.read_to_string(&mut came).await.unwrap();
        assert_eq!(came, "early then late");
        // The other direction is open still.
        let answer = vec![7; 1_000_000];
        let (_, sent) = tokio::join!(
            async {
                let mut got = Vec::new();
                client.read_to_end(&mut got).await.unwrap();
                assert!(got == answer);
            },
            async {
                receiver.write_all(&answer).await.unwrap();
                receiver.shutdown().await
            }
        );
        sent.unwrap();
        assert_eq!(ran.await.unwrap(), (End::Closed, Carried { up: 15, down: 1_000_000 }));
    }

    #[tokio::test]
    async fn a_reset_of_one_side_is_one_of_the_other() {
        for from_client in [true, false] {
            let (client, mut relay, receiver) = tunnel(b"", long()).await;
            let (one, mut other) = if from_client { (client, receiver) } else { (receiver, client) };
            SockRef::from(&one).set_linger(Some(Duration::ZERO)).unwrap();
            drop(one);
            assert_eq!(relay.run().await, End::Reset);
            relay.finish(End::Reset);
            let error = other.read(&mut [0]).await.expect_err("no end as of something whole");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }

    #[tokio::test]
    async fn who_takes_nothing_is_sent_no_more_than_the_buffers_hold() {
        let (client, mut relay, mut receiver) = tunnel(b"", long()).await;
        let sending = tokio::spawn(async move {
            let mut sent = 0_u64;
            while let Ok(more) = receiver.write(&[1; 65_536]).await {
                sent += more as u64;
            }
            sent
        });
        while relay.down.waiting.is_empty() {
            tokio::select! {
                end = relay.run() => panic!("{end}"),
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
        let before = relay.down.taken;
        assert!(relay.down.waiting.len() <= TUNNEL_BUFFER);
        assert_eq!(relay.down.taken - relay.down.given, relay.down.waiting.len() as u64);
        drop(client);
        assert_eq!(relay.run().await, End::Reset);
        relay.finish(End::Reset);
        assert!(sending.await.unwrap() >= before);
    }

    #[tokio::test]
    async fn nothing_is_kept_while_nothing_waits() {
        let (mut client, mut relay, mut receiver) = tunnel(b"early", long()).await;
        client.write_all(&[1; 100_000]).await.unwrap();
        let mut got = vec![0; 100_005];
        tokio::select! {
            end = relay.run() => panic!("{end}"),
            read = receiver.read_exact(&mut got) => drop(read.unwrap()),
        }
        assert!(relay.up.waiting.is_empty() && relay.down.waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_age_end_a_tunnel() {
        let (idle, lifetime) = (Duration::from_secs(60), Duration::from_secs(150));
        let begun = clock::monotonic();
        let terms = Terms { idle, until: begun + lifetime, sni: None };
        let (_client, mut relay, _receiver) = tunnel(b"", terms).await;
        assert_eq!(relay.run().await, End::Idle);
        assert!(clock::monotonic() >= begun + idle && clock::monotonic() < begun + lifetime);

        let until = clock::monotonic() + lifetime;
        let (mut client, mut relay, mut receiver) = tunnel(b"", Terms { idle, until, sni: None }).await;
        let talking = async {
            loop {
                client.write_all(b".").await.unwrap();
                receiver.read_exact(&mut [0]).await.unwrap();
                tokio::time::sleep(idle / 2).await;
            }
        };
        tokio::select! {
            end = relay.run() => assert_eq!(end, End::Lifetime),
            () = talking => {}
        }
        assert!(clock::monotonic() >= until);
    }

    #[tokio::test]
    async fn a_client_that_names_another_server_is_told_so_and_nothing_of_it_goes_on() {
        for (early, late) in [(&b"\x16\x03\x01\x00\x05hello"[..], &b""[..]), (b"", b"\x16\x03\x01\x00\x05hello")] {
            let sni = Some(Host::Name("shop.example.com".into()));
            let (mut client, mut relay, mut receiver) = tunnel(early, Terms { sni, ..long() }).await;
            client.write_all(late).await.unwrap();
            assert_eq!(relay.run().await, End::Refused);
            relay.finish(End::Refused);
            let mut alert = Vec::new();
            client.read_to_end(&mut alert).await.unwrap();
            assert_eq!(alert, UNRECOGNIZED_NAME);
            let error = receiver.read(&mut [0]).await.expect_err("not a byte, and no end");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        // What is no TLS goes on as it is, also where it dripped.
        let sni = Some(Host::Name("shop.example.com".into()));
        let (_client, mut relay, mut receiver) = tunnel(b"SSH-2.0", Terms { sni, ..long() }).await;
        let mut came = [0; 7];
        tokio::select! {
            end = relay.run() => panic!("{end}"),
            read = receiver.read_exact(&mut came) => drop(read.unwrap()),
        }
        assert_eq!(&came, b"SSH-2.0");
    }
}
