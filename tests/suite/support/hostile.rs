//! Receivers that mean harm, for deliveries by the thousand: they drip, keep silent, do not read, and flood.
//!
//! Stands by itself, so that the bench uses it as well as the tests.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// Between two bytes of those that drip.
const DRIP: Duration = Duration::from_millis(300);

/// How long one that does not read keeps a connection: longer than any delivery to it.
const DEAF_FOR: Duration = Duration::from_secs(20);

/// What a receiver does with each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A head that never ends, byte by byte.
    DripHead,
    /// A head, and then a body byte by byte.
    DripBody,
    /// As many headers and as much body as are read at once; then byte by byte.
    FullThenDrip,
    FullThenDripTls,
    FullThenDripHttp2,
    /// Takes the request and says nothing.
    Silent,
    /// A head, and then nothing.
    SilentInBody,
    /// Never answers the handshake.
    SilentTls,
    /// Accepts and never reads.
    Deaf,
    /// Never accepts: what the kernel queues is connected, the rest never is.
    Unaccepted,
    /// A body without end, as fast as it goes.
    FloodBody,
    /// The same in pieces of one byte.
    FloodChunks,
    /// The same in HTTP/2 frames of one byte.
    FloodFrames,
    /// Header lines without end.
    FloodHeaders,
    /// 1xx answers without end.
    FloodInformational,
    /// Bytes that are no handshake, without end.
    FloodTls,
    /// A certificate under twenty authorities of one name.
    LookAlikes,
}

impl Kind {
    pub const ALL: [Self; 17] = [
        Self::DripHead,
        Self::DripBody,
        Self::FullThenDrip,
        Self::FullThenDripTls,
        Self::FullThenDripHttp2,
        Self::Silent,
        Self::SilentInBody,
        Self::SilentTls,
        Self::Deaf,
        Self::Unaccepted,
        Self::FloodBody,
        Self::FloodChunks,
        Self::FloodFrames,
        Self::FloodHeaders,
        Self::FloodInformational,
        Self::FloodTls,
        Self::LookAlikes,
    ];

    pub fn scheme(self) -> &'static str {
        match self {
            Self::FullThenDripTls
            | Self::FullThenDripHttp2
            | Self::SilentTls
            | Self::FloodFrames
            | Self::FloodTls
            | Self::LookAlikes => "https",
            _ => "http",
        }
    }

    /// Bytes of body that a request to it bears: enough that one who does not read is noticed.
    pub fn request_bytes(self) -> usize {
        if self == Self::Deaf { 256 * 1024 } else { 64 }
    }

    /// How its deliveries end: `outcome code phase`, or `outcome status`.
    pub fn ends(self) -> &'static [&'static str] {
        match self {
            Self::DripHead | Self::Silent => &["failed timeout wait"],
            Self::DripBody
            | Self::SilentInBody
            | Self::FullThenDrip
            | Self::FullThenDripTls
            | Self::FullThenDripHttp2 => &["failed timeout read"],
            Self::SilentTls => &["failed timeout tls"],
            // What the kernel takes for it counts as written: how much that is, is up to the kernel.
            Self::Deaf => &["failed timeout write", "failed timeout wait"],
            Self::Unaccepted => &["failed timeout connect", "failed timeout wait"],
            Self::FloodBody => &["delivered 200"],
            Self::FloodChunks => &["failed protocol_error read", "failed timeout read"],
            // Or the connection is given up for the frames' sake.
            Self::FloodFrames => &["delivered 200", "failed timeout read", "failed protocol_error read"],
            Self::FloodHeaders => &["failed response_headers_too_large wait"],
            Self::FloodInformational => &["failed protocol_error wait"],
            Self::FloodTls => &["failed tls_handshake tls", "failed connection_reset tls"],
            Self::LookAlikes => &["failed tls_certificate tls"],
        }
    }
}

/// A listener of one kind. Stops when dropped.
pub struct Hostile {
    pub kind: Kind,
    pub address: SocketAddr,
    seen: Arc<Mutex<HashMap<String, u32>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Hostile {
    /// `acceptor` speaks for the kinds that come as far as a handshake; it offers `h2` and `http/1.1`.
    pub fn start(kind: Kind, acceptor: &dyn Fn(&[&str]) -> TlsAcceptor) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        if kind == Kind::Deaf {
            // Else the kernel would take the whole request for it.
            socket.set_recv_buffer_size(4096).expect("an option");
        }
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a loopback port");
        socket.listen(if kind == Kind::Unaccepted { 1 } else { 4096 }).expect("a listener");
        socket.set_nonblocking(true).expect("an option");
        let listener = TcpListener::from_std(socket.into()).expect("a listener");
        let address = listener.local_addr().expect("bound");
        let acceptor = match kind {
            Kind::FullThenDripTls => Some(acceptor(&["http/1.1"])),
            Kind::FullThenDripHttp2 | Kind::FloodFrames => Some(acceptor(&["h2"])),
            Kind::LookAlikes => Some(super::tls::look_alike_server(20)),
            _ => None,
        };
        let seen = Arc::default();
        let task = tokio::spawn(accept(kind, listener, acceptor, Arc::clone(&seen)));
        Self { kind, address, seen, task }
    }

    pub fn url(&self, number: usize) -> String {
        format!("{}://{}/{:?}/{number}", self.kind.scheme(), self.address, self.kind)
    }

    /// How often each path was asked for.
    pub fn seen(&self) -> HashMap<String, u32> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

type Seen = Arc<Mutex<HashMap<String, u32>>>;

fn note(seen: &Seen, path: &str) {
    *seen.lock().unwrap_or_else(PoisonError::into_inner).entry(path.to_owned()).or_default() += 1;
}

async fn accept(kind: Kind, listener: TcpListener, acceptor: Option<TlsAcceptor>, seen: Seen) {
    if kind == Kind::Unaccepted {
        std::future::pending::<()>().await;
    }
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let _ = stream.set_nodelay(true);
        connections.spawn(connection(kind, stream, acceptor.clone(), seen.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(kind: Kind, mut stream: TcpStream, acceptor: Option<TlsAcceptor>, seen: Seen) {
    match (kind, acceptor) {
        // The other side's end cannot be seen without reading.
        (Kind::Deaf, _) => tokio::time::sleep(DEAF_FOR).await,
        (Kind::SilentTls, _) => hold(&mut stream).await,
        (Kind::FloodTls, _) => while stream.write_all(&[b'x'; 64 * 1024]).await.is_ok() {},
        (Kind::FullThenDripHttp2 | Kind::FloodFrames, Some(acceptor)) => {
            if let Ok(stream) = acceptor.accept(stream).await {
                http2(kind, stream, seen).await;
            }
        }
        (_, Some(acceptor)) => {
            if let Ok(stream) = acceptor.accept(stream).await {
                http1(kind, stream, seen).await;
            }
        }
        (_, None) => http1(kind, stream, seen).await,
    }
}

async fn hold(stream: &mut (impl AsyncRead + Unpin)) {
    let mut taken = [0; 4096];
    while matches!(stream.read(&mut taken).await, Ok(1..)) {}
}

/// Header lines of 60 KiB together.
fn large_headers() -> impl Iterator<Item = (String, String)> {
    (0..60).map(|n| (format!("x-fill-{n}"), "v".repeat(1000)))
}

async fn http1(kind: Kind, mut stream: impl AsyncRead + AsyncWrite + Unpin, seen: Seen) {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        let mut taken = [0; 4096];
        match stream.read(&mut taken).await {
            Ok(length @ 1..) => head.extend_from_slice(&taken[..length]),
            _ => return,
        }
    }
    let head = String::from_utf8_lossy(&head);
    note(&seen, head.split(' ').nth(1).unwrap_or_default());
    let (first, then): (Vec<u8>, Then) = match kind {
        Kind::DripHead => (b"HTTP/1.1 200 OK\r\nx-drip: ".to_vec(), Then::Drip),
        Kind::DripBody => (b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n".to_vec(), Then::Drip),
        Kind::FullThenDrip | Kind::FullThenDripTls => {
            let mut first = b"HTTP/1.1 200 OK\r\ncontent-length: 2000000\r\n".to_vec();
            large_headers().for_each(|(name, value)| first.extend(format!("{name}: {value}\r\n").bytes()));
            first.extend_from_slice(b"\r\n");
            first.resize(first.len() + 1_000_000, b'x');
            (first, Then::Drip)
        }
        Kind::SilentInBody => (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n".to_vec(), Then::Hold),
        Kind::FloodBody => (b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), Then::Repeat(vec![b'z'; 64 * 1024])),
        Kind::FloodChunks => (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec(),
            Then::Repeat(b"1\r\nz\r\n".repeat(10_000)),
        ),
        Kind::FloodHeaders => {
            (b"HTTP/1.1 200 OK\r\n".to_vec(), Then::Repeat(format!("x-flood: {}\r\n", "v".repeat(1000)).into_bytes()))
        }
        Kind::FloodInformational => (Vec::new(), Then::Repeat(b"HTTP/1.1 103 Early Hints\r\n\r\n".to_vec())),
        _ => (Vec::new(), Then::Hold),
    };
    if stream.write_all(&first).await.is_err() || stream.flush().await.is_err() {
        return;
    }
    match then {
        Then::Hold => hold(&mut stream).await,
        Then::Drip => loop {
            tokio::time::sleep(DRIP).await;
            if stream.write_all(b"x").await.is_err() || stream.flush().await.is_err() {
                return;
            }
        },
        Then::Repeat(bytes) => while stream.write_all(&bytes).await.is_ok() {},
    }
}

enum Then {
    Hold,
    Drip,
    Repeat(Vec<u8>),
}

async fn http2(kind: Kind, stream: impl AsyncRead + AsyncWrite + Unpin, seen: Seen) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut answer))) = connection.accept().await {
        note(&seen, request.uri().path());
        tokio::spawn(async move {
            let mut response = http::Response::new(());
            for (name, value) in large_headers() {
                let (Ok(name), Ok(value)) = (name.parse::<http::HeaderName>(), value.parse()) else { return };
                if kind == Kind::FullThenDripHttp2 {
                    response.headers_mut().insert(name, value);
                }
            }
            let Ok(mut body) = answer.send_response(response, false) else { return };
            let full = kind == Kind::FullThenDripHttp2;
            // So many frames of one byte are a flood; more would only fill this side's memory.
            let (mut left, most): (usize, usize) = if full { (1_000_000, 16 * 1024) } else { (20_000, 1) };
            loop {
                let piece = if left > 0 { most } else { 1 };
                body.reserve_capacity(piece);
                let room = std::future::poll_fn(|cx| body.poll_capacity(cx)).await;
                let Some(Ok(room)) = room else { return };
                let piece = room.min(piece);
                if body.send_data(Bytes::from(vec![b'x'; piece]), false).is_err() {
                    return;
                }
                left = left.saturating_sub(piece);
                if left == 0 {
                    tokio::time::sleep(DRIP).await;
                }
            }
        });
    }
}
