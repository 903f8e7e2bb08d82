//! The bytes of one tunnel, both ways: half-closes and resets are passed on, what one side does not take holds the other
//! up, and nothing is kept while nothing waits.
//!
//! Each direction reads into memory that its thread's tunnels share and writes at once; only what is not taken then is
//! copied, at most [`TUNNEL_BUFFER`] of it. Other tunnels have their turn after [`crate::limits::READ_TURN_BYTES`]. What ends before both
//! sides have closed ends by a reset on both: it must not look whole to either.
//!
//! A side that takes no more may have said why (a server that refuses an upload answers and closes): what it sent is
//! given on to its end, and reaches the other side before that is closed, or reset where it was.

mod half;

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use metrics::Counter;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;

use self::half::{Half, Passed, Stage, Stop, give, pass_over};
use super::hello::UNRECOGNIZED_NAME;
use super::lingering::Lingering;
use crate::clock;
use crate::dial::wire::{Wire, is_unacknowledged};
use crate::limits::{ACKNOWLEDGED_ASKED_EVERY, ECHO_CHARS_MAX, LINGER_BYTES, LINGER_TIME, TUNNEL_BUFFER};
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
    /// The first side that was found to take no more, or to be gone.
    broken: Option<Side>,
    ending: Option<Ending>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Wire,
}

/// One side is gone; the other has still to get what was written to it.
struct Ending {
    /// It was told the end of what it is sent, and may be sending still: so much of that is read, so that no reset takes
    /// the rest away from it. `None`: it is reset.
    told: Option<usize>,
    until: Instant,
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
        let up = Half::new(&early, terms.sni.clone());
        Self {
            client,
            wire,
            up,
            down: Half::default(),
            counters,
            terms,
            last,
            timer,
            alerted: false,
            broken: None,
            ending: None,
        }
    }

    /// Until it ends. What was dropped goes on where it was.
    pub async fn run(&mut self) -> End {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if self.ending.is_some() {
            return self.poll_ending(cx);
        }
        let before = (self.up.moved(), self.down.moved(), self.carried());
        let (up, down) = SCRATCH.with_borrow_mut(|scratch| {
            let up = self.up.poll(cx, &mut self.client, &mut self.wire, scratch);
            self.down.is_cut_short |= up == Err(Stop::Untaken { by_reset: true });
            let down = self.down.poll(cx, &mut self.wire, &mut self.client, scratch);
            self.up.is_cut_short |= down == Err(Stop::Untaken { by_reset: true });
            (up, down)
        });
        if before.0 != self.up.moved() || before.1 != self.down.moved() {
            self.last = clock::monotonic();
            let now = self.carried();
            self.counters.up.increment(now.up - before.2.up);
            self.counters.down.increment(now.down - before.2.down);
        }
        match up {
            Err(Stop::OtherServer) => {
                self.alerted = true;
                // Seven bytes, to one who has been sent nothing yet.
                let _ = give(cx, &mut self.client, &UNRECOGNIZED_NAME);
                let _ = Pin::new(&mut self.client).poll_shutdown(cx);
                return Poll::Ready(End::Refused);
            }
            Err(Stop::Untaken { .. }) => self.broken = self.broken.or(Some(Side::Wire)),
            Err(Stop::Broken) => return self.begin_to_end(cx, Side::Client),
            Ok(()) => {}
        }
        match down {
            Err(Stop::Untaken { .. }) => self.broken = self.broken.or(Some(Side::Client)),
            Err(_) => return self.begin_to_end(cx, Side::Wire),
            Ok(()) => {}
        }
        if self.up.is_over() && self.down.is_over() {
            return match self.broken {
                None => Poll::Ready(End::Closed),
                Some(broken) => self.begin_to_end(cx, broken),
            };
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

    fn begin_to_end(&mut self, cx: &mut Context<'_>, broken: Side) -> Poll<End> {
        let broken = *self.broken.get_or_insert(broken);
        let towards = if broken == Side::Client { &self.up } else { &self.down };
        let told = (towards.stage == Stage::Done).then_some(LINGER_BYTES);
        self.ending = Some(Ending { told, until: clock::monotonic() + LINGER_TIME });
        self.poll_ending(cx)
    }

    fn poll_ending(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let Some(ending) = &mut self.ending else { return Poll::Ready(End::Reset) };
        let of_client = self.broken == Some(Side::Wire);
        let next = match &mut ending.told {
            Some(left) => {
                let passed = SCRATCH.with_borrow_mut(|scratch| match of_client {
                    true => pass_over(cx, &mut self.client, scratch, left),
                    false => pass_over(cx, &mut self.wire, scratch, left),
                });
                if passed != Passed::All {
                    return Poll::Ready(End::Reset);
                }
                ending.until
            }
            None => {
                let waits = match of_client {
                    true => {
                        Pin::new(&mut self.client).poll_flush(cx).is_pending()
                            || self.client.socket().is_some_and(is_unacknowledged)
                    }
                    false => is_unacknowledged(self.wire.socket()),
                };
                if !waits {
                    return Poll::Ready(End::Reset);
                }
                ending.until.min(clock::monotonic() + ACKNOWLEDGED_ASKED_EVERY)
            }
        };
        if clock::monotonic() >= ending.until {
            return Poll::Ready(End::Reset);
        }
        self.timer.as_mut().reset(next);
        if self.timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
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
            // Whoever got all that the broken side sent is closed, not reset.
            let is_whole = |side| self.broken.is_some_and(|broken| broken != side) && self.is_told();
            if let Some(socket) = self.client.socket().filter(|_| !self.alerted && !is_whole(Side::Client)) {
                let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
            }
            if !is_whole(Side::Wire) {
                self.wire.end_by_reset();
            }
        }
        carried
    }

    fn is_told(&self) -> bool {
        self.ending.as_ref().is_some_and(|ending| ending.told.is_some())
    }
}

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; TUNNEL_BUFFER].into_boxed_slice());
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

    /// As a server does that refuses an upload, and as one that is in a hurry with it.
    #[tokio::test]
    async fn what_was_said_before_a_side_took_no_more_is_heard_to_its_end() {
        for (from_client, is_told) in [(true, true), (true, false), (false, true), (false, false)] {
            let (client, mut relay, receiver) = tunnel(b"", long()).await;
            let ran = tokio::spawn(async move {
                let end = relay.run().await;
                (end, relay.finish(end))
            });
            let (sends, mut refuses) = if from_client { (client, receiver) } else { (receiver, client) };
            let (mut hears, mut writes) = sends.into_split();
            let sending = tokio::spawn(async move { while writes.write_all(&[1; 65_536]).await.is_ok() {} });
            let refusing = tokio::spawn(async move {
                refuses.read_exact(&mut [0; 1000]).await.unwrap();
                refuses.write_all(&[7; 300_000]).await.unwrap();
                if is_told {
                    refuses.shutdown().await.unwrap();
                }
                // Else what it has not sent yet would be lost to its own close.
                while is_unacknowledged(&refuses) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                SockRef::from(&refuses).set_linger(Some(Duration::ZERO)).unwrap();
            });
            let mut heard = Vec::new();
            let end = hears.read_to_end(&mut heard).await;
            assert_eq!((heard.len(), end.is_ok()), (300_000, is_told), "{from_client} {end:?}");
            refusing.await.unwrap();
            drop(hears);
            sending.await.unwrap();
            let (end, carried) = ran.await.unwrap();
            let heard = if from_client { carried.down } else { carried.up };
            assert_eq!((end, heard), (End::Reset, 300_000));
        }
    }

    /// Bytes that nobody had time to read are not lost to the reset that comes behind them.
    #[tokio::test]
    async fn a_slow_client_has_what_came_before_a_reset() {
        let (mut client, mut relay, mut receiver) = tunnel(b"", long()).await;
        receiver.write_all(&[7; 200_000]).await.unwrap();
        tokio::select! {
            end = relay.run() => panic!("{end}"),
            () = async {
                while is_unacknowledged(&receiver) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            } => {}
        }
        SockRef::from(&receiver).set_linger(Some(Duration::ZERO)).unwrap();
        drop(receiver);
        let ran = tokio::spawn(async move {
            let end = relay.run().await;
            relay.finish(end);
        });
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.expect_err("cut short");
        assert_eq!(heard.len(), 200_000);
        ran.await.unwrap();
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
