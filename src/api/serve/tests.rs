#![allow(clippy::disallowed_methods, reason = "a test's own client, towards its own listener")]

use std::net::SocketAddr;
use std::path::Path;

use axum::routing::get;
use bytes::Bytes;
use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::*;
use crate::config::ListenerTls;
use crate::doors::tls::Listener;

/// A server of one word, on loopback.
struct Server {
    address: SocketAddr,
    closing: watch::Sender<bool>,
    task: JoinHandle<()>,
    tls: Option<Arc<Acceptor>>,
}

async fn start(tls: Option<Acceptor>, router: Router) -> Server {
    start_within(Bounds::default(), tls, router).await
}

async fn start_within(bounds: Bounds, tls: Option<Acceptor>, router: Router) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (closing, closed) = watch::channel(false);
    let tls = tls.map(Arc::new);
    let task = tokio::spawn(serve_within(bounds, Apart::here(), listener, router, tls.clone(), closed));
    Server { address, closing, task, tls }
}

fn hello() -> Router {
    Router::new().route("/", get(|| async { "hello" }))
}

async fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(server.address).await.expect("it listens")
}

/// One GET over this stream: version and body.
async fn ask<S>(stream: S, http2: bool) -> Result<(Version, Bytes), hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(stream);
    let request = |uri: &str| {
        Request::builder().uri(uri).header("host", "localhost").body(Empty::<Bytes>::new()).expect("a request")
    };
    let response = if http2 {
        let (mut sender, connection) = conn::http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        sender.send_request(request("http://localhost/")).await?
    } else {
        let (mut sender, connection) = conn::http1::handshake(io).await?;
        tokio::spawn(connection);
        sender.send_request(request("/")).await?
    };
    assert_eq!(response.status(), StatusCode::OK);
    let version = response.version();
    Ok((version, response.into_body().collect().await?.to_bytes()))
}

struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: rcgen::Issuer::new(params, key), pem }
    }

    /// A certificate and its key, as files of these names.
    fn write(&self, dir: &Path, name: &str) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        std::fs::write(dir.join(format!("{name}.pem")), certificate.pem()).expect("written");
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).expect("written");
        std::fs::write(dir.join("ca.pem"), &self.pem).expect("written");
    }

    /// A client that trusts this authority, with this certificate of its own.
    fn client(&self, own: Option<(&Path, &str)>, alpn: &[&str]) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.pem.as_bytes()) {
            roots.add(certificate.expect("PEM")).expect("an authority");
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some((dir, name)) => {
                let chain = CertificateDer::pem_file_iter(dir.join(format!("{name}.pem"))).expect("PEM");
                let key = PrivateKeyDer::from_pem_file(dir.join(format!("{name}.key"))).expect("PEM");
                let chain = chain.collect::<Result<Vec<_>, _>>().expect("PEM");
                builder.with_client_auth_cert(chain, key).expect("a pair")
            }
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }
}

fn files(dir: &Path, name: &str, client_ca: bool) -> ListenerTls {
    ListenerTls {
        cert: dir.join(format!("{name}.pem")),
        key: dir.join(format!("{name}.key")),
        client_ca: client_ca.then(|| dir.join("ca.pem")),
    }
}

async fn over_tls(
    server: &Server,
    client: &TlsConnector,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let name = ServerName::try_from("localhost").expect("a name");
    client.connect(name, connect(server).await).await
}

#[tokio::test]
async fn both_versions_are_served_in_the_clear() {
    let server = start(None, hello()).await;
    for (http2, version) in [(false, Version::HTTP_11), (true, Version::HTTP_2)] {
        let answer = ask(connect(&server).await, http2).await.expect("an answer");
        assert_eq!(answer, (version, Bytes::from_static(b"hello")));
    }
}

#[tokio::test]
async fn both_versions_are_served_over_tls_as_the_client_chooses() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::new();
    authority.write(dir.path(), "server");
    let server =
        start(Some(Acceptor::load(Listener::Api, &files(dir.path(), "server", false)).expect("usable")), hello()).await;
    for (alpn, http2) in [(&["h2", "http/1.1"][..], true), (&["http/1.1"], false), (&[], false)] {
        let stream = over_tls(&server, &authority.client(None, alpn)).await.expect("a handshake");
        let chosen = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        assert_eq!(chosen, alpn.first().map(|name| name.as_bytes().to_vec()));
        assert!(ask(stream, http2).await.is_ok());
    }
    // In the clear towards TLS: told so, and the server goes on.
    let mut plain = connect(&server).await;
    let call = format!("POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 40000\r\n\r\n{}", "x".repeat(40_000));
    plain.write_all(call.as_bytes()).await.expect("written");
    let mut answer = String::new();
    plain.read_to_string(&mut answer).await.expect("not lost to a reset");
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("application/problem+json"), "{answer}");
    assert!(answer.contains("this port speaks TLS: call it as https://"), "{answer}");
    for begun in ["", "\u{16}"] {
        connect(&server).await.write_all(begun.as_bytes()).await.expect("written");
    }
    let stranger = Authority::new();
    assert!(over_tls(&server, &stranger.client(None, &[])).await.is_err());
    assert!(over_tls(&server, &authority.client(None, &[])).await.is_ok());
}

#[tokio::test]
async fn mutual_tls_admits_only_certificates_of_the_authority() {
    let dir = tempfile::tempdir().expect("a directory");
    let strange_dir = tempfile::tempdir().expect("a directory");
    let (authority, stranger) = (Authority::new(), Authority::new());
    authority.write(dir.path(), "server");
    authority.write(dir.path(), "client");
    stranger.write(strange_dir.path(), "client");
    let server =
        start(Some(Acceptor::load(Listener::Api, &files(dir.path(), "server", true)).expect("usable")), hello()).await;
    // In TLS 1.3 the client learns of a refusal only when it reads.
    for (own, admitted) in
        [(None, false), (Some((strange_dir.path(), "client")), false), (Some((dir.path(), "client")), true)]
    {
        let answered = match over_tls(&server, &authority.client(own, &["http/1.1"])).await {
            Ok(stream) => ask(stream, false).await.is_ok(),
            Err(_) => false,
        };
        assert_eq!(answered, admitted, "{own:?}");
    }
}

#[tokio::test]
async fn a_reload_changes_the_certificate_or_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let (first, second) = (Authority::new(), Authority::new());
    first.write(dir.path(), "server");
    let server =
        start(Some(Acceptor::load(Listener::Api, &files(dir.path(), "server", false)).expect("usable")), hello()).await;
    let tls = server.tls.clone().expect("TLS is on");
    assert!(over_tls(&server, &first.client(None, &[])).await.is_ok());
    second.write(dir.path(), "server");
    std::fs::write(dir.path().join("broken.pem"), "nothing").expect("written");
    let broken = ListenerTls { cert: dir.path().join("broken.pem"), ..files(dir.path(), "server", false) };
    assert!(Acceptor::load(Listener::Api, &broken).is_err_and(|error| error.to_string().contains("broken.pem")));
    assert!(over_tls(&server, &first.client(None, &[])).await.is_ok());
    tls.replace(&Acceptor::load(Listener::Api, &files(dir.path(), "server", false)).expect("usable"));
    assert!(over_tls(&server, &second.client(None, &[])).await.is_ok());
    assert!(over_tls(&server, &first.client(None, &[])).await.is_err());
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::new();
    authority.write(dir.path(), "one");
    authority.write(dir.path(), "two");
    let good = files(dir.path(), "one", true);
    assert!(Acceptor::load(Listener::Api, &good).is_ok());
    let missing = dir.path().join("missing.pem");
    for (files, names) in [
        (ListenerTls { cert: missing.clone(), ..good.clone() }, "missing.pem"),
        (ListenerTls { key: missing.clone(), ..good.clone() }, "missing.pem"),
        (ListenerTls { client_ca: Some(missing), ..good.clone() }, "missing.pem"),
        (ListenerTls { key: dir.path().join("two.key"), ..good.clone() }, "is the key that of the first certificate?"),
        (ListenerTls { cert: dir.path().join("one.key"), ..good }, "it holds none"),
    ] {
        let error = Acceptor::load(Listener::Api, &files).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(names) && error.starts_with("[api] tls: "), "{error}");
    }
}

#[tokio::test]
async fn closing_lets_calls_end_and_idle_connections_go() {
    let begun = Arc::new(tokio::sync::Notify::new());
    let go = Arc::new(tokio::sync::Notify::new());
    let (begun_there, go_there) = (begun.clone(), go.clone());
    let slow = get(move || async move {
        begun_there.notify_one();
        go_there.notified().await;
        "late"
    });
    let server = start(None, hello().route("/slow", slow)).await;
    let mut idle = connect(&server).await;
    idle.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("written");
    let mut answer = [0; 15];
    idle.read_exact(&mut answer).await.expect("an answer");
    let mut busy = connect(&server).await;
    busy.write_all(b"GET /slow HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("written");
    begun.notified().await;
    server.closing.send_replace(true);
    // The idle one is let go at once; the other call is answered in full.
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).await.expect("the end");
    assert!(!server.task.is_finished());
    go.notify_one();
    let mut late = String::new();
    busy.read_to_string(&mut late).await.expect("an answer");
    assert!(late.starts_with("HTTP/1.1 200") && late.ends_with("late"), "{late}");
    server.task.await.expect("no panic");
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_silent_or_slow_caller_is_let_go() {
    let server = start(None, hello()).await;
    for begun in [&b""[..], b"P", b"PRI * HTTP/2.0", b"GET / HT", b"GET / HTTP/1.1\r\nhost: localhost\r\n"] {
        let mut stream = connect(&server).await;
        stream.write_all(begun).await.expect("written");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("the end");
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{begun:?}");
    }
}

/// More than any socket's buffers hold.
fn much() -> Router {
    hello().route("/much", get(|| async { Bytes::from_static(&[b'x'; 16 * 1024 * 1024]) }))
}

/// Whoever calls is a client, named by its `authorization`; without one it stays a stranger.
fn known(router: Router) -> Router {
    let enter = |request: axum::extract::Request, next: axum::middleware::Next| async move {
        let presence = request.extensions().get::<Arc<Presence>>().expect("a connection").clone();
        let _begun = presence.begin();
        let client = request.headers().get("authorization").and_then(|name| name.to_str().ok());
        match client {
            Some(client) if presence.admit(&client.into()) => next.run(request).await,
            Some(_) => axum::response::IntoResponse::into_response(StatusCode::SERVICE_UNAVAILABLE),
            None => axum::response::IntoResponse::into_response(StatusCode::UNAUTHORIZED),
        }
    };
    router.layer(axum::middleware::from_fn(enter))
}

#[tokio::test(start_paused = true)]
async fn callers_that_do_not_read_are_let_go() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::new();
    authority.write(dir.path(), "server");
    let tls = Acceptor::load(Listener::Api, &files(dir.path(), "server", false)).expect("usable");
    let calls = "GET /much HTTP/1.1\r\nhost: localhost\r\nauthorization: deaf\r\n\r\n".repeat(60);

    let server = start(None, known(much())).await;
    let mut deaf = connect(&server).await;
    deaf.write_all(calls.as_bytes()).await.expect("written");
    lets_go(&mut deaf).await;

    let server = start(Some(tls), known(much())).await;
    let mut deaf = over_tls(&server, &authority.client(None, &["http/1.1"])).await.expect("a handshake");
    deaf.write_all(calls.as_bytes()).await.expect("written");
    lets_go(&mut deaf).await;
}

/// After a time in which nothing was read, there is an end before the 60 answers of 16 MiB.
async fn lets_go(deaf: &mut (impl AsyncRead + Unpin)) {
    tokio::time::sleep(limits::API_WRITE_STALL * 2).await;
    let mut read = 0;
    let mut part = vec![0; 1024 * 1024];
    while let Ok(more @ 1..) = deaf.read(&mut part).await {
        read += more;
    }
    assert!(read < 60 * 16 * 1024 * 1024, "all was written");
}

const FEW: Bounds = Bounds { all: 12, strangers: 8, strangers_of_network: 6 };
const CALL: &[u8] = b"GET / HTTP/1.1\r\nhost: localhost\r\nauthorization: nodes\r\n\r\n";

async fn is_answered(stream: &mut TcpStream) {
    stream.write_all(CALL).await.expect("written");
    let mut answer = Vec::new();
    while !answer.ends_with(b"hello") {
        assert_ne!(stream.read_buf(&mut answer).await.expect("an answer"), 0, "it was let go: {answer:?}");
    }
    assert!(answer.starts_with(b"HTTP/1.1 200 OK"));
}

#[tokio::test(start_paused = true)]
async fn whoever_calls_nothing_keeps_nobody_out() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::new();
    authority.write(dir.path(), "server");
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for begun in [
        &b""[..],
        b"GET / HTTP/1.1\r\nhost: local",
        b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\n{",
        preface,
        b"PRI * HTTP/2.0\r\n\r",
    ] {
        let server = start_within(FEW, None, known(hello())).await;
        let mut client = connect(&server).await;
        is_answered(&mut client).await;
        let mut flood = Vec::new();
        for _ in 0..FEW.all * 3 {
            let mut stream = connect(&server).await;
            let _ = stream.write_all(begun).await;
            flood.push(stream);
        }
        // A newcomer gets in at once, and who was known before has kept its place.
        is_answered(&mut connect(&server).await).await;
        is_answered(&mut client).await;
        drop(flood);
    }
    // Handshakes that are never finished, with a certificate of its own demanded or not.
    for mutual in [false, true] {
        authority.write(dir.path(), "client");
        let tls = Acceptor::load(Listener::Api, &files(dir.path(), "server", mutual)).expect("usable");
        let server = start_within(FEW, Some(tls), known(hello())).await;
        let mut flood = Vec::new();
        for begun in [&b""[..], b"\x16\x03\x01\x02\0\x01", b"\x16"].iter().cycle().take(FEW.all * 3) {
            let mut stream = connect(&server).await;
            stream.write_all(begun).await.expect("written");
            flood.push(stream);
        }
        let own = mutual.then_some((dir.path(), "client"));
        let mut stream = over_tls(&server, &authority.client(own, &["http/1.1"])).await.expect("a handshake");
        stream.write_all(CALL).await.expect("written");
        let mut answer = [0; 15];
        stream.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        // They are let go by themselves, too.
        for mut one in flood {
            let _ = one.read(&mut [0; 64]).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stranger_stays_for_no_longer_than_it_takes_to_show_a_token() {
    let server = start(None, known(hello())).await;
    let mut stream = connect(&server).await;
    let begun = clock::monotonic();
    let refused = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut answer = vec![0; 4096];
    while stream.write_all(refused).await.is_ok() {
        match stream.read(&mut answer).await {
            Ok(read @ 1..) => assert!(answer[..read].starts_with(b"HTTP/1.1 401")),
            _ => break,
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let stayed = clock::monotonic() - begun;
    assert!(stayed <= limits::API_STRANGER_LIFE + limits::API_FINISH + Duration::from_secs(1), "{stayed:?}");
    // With a token, it stays.
    let mut stream = connect(&server).await;
    for _ in 0..5 {
        is_answered(&mut stream).await;
        tokio::time::sleep(limits::API_STRANGER_LIFE).await;
    }
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let server = start(None, hello()).await;
    let long = "x".repeat(limits::API_HEAD_BYTES);
    let many: String = (0..200).map(|n| format!("x-{n}: y\r\n")).collect();
    for head in [
        format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {long}\r\n\r\n"),
        format!("GET /{long} HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nhost: localhost\r\n{many}\r\n"),
    ] {
        is_refused(&server, head.as_bytes(), 431, "too_large").await;
    }
    assert!(ask(connect(&server).await, false).await.is_ok());
}

/// What is answered to these bytes is a problem like any other of the API, and the connection's end.
async fn is_refused(server: &Server, head: &[u8], status: u16, code: &str) {
    let mut stream = connect(server).await;
    // The server may close before all of it is written.
    let _ = stream.write_all(head).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).expect("text");
    let said = String::from_utf8_lossy(&head[..head.len().min(60)]);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{said:?} was answered {answer:?}"));
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{said:?}: {head}");
    assert!(head.contains("content-type: application/problem+json\r\n"), "{head}");
    assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
    let problem: serde_json::Value = serde_json::from_str(body).expect("JSON");
    assert_eq!((problem["status"].as_u64(), problem["code"].as_str()), (Some(status.into()), Some(code)), "{said:?}");
}

#[tokio::test]
async fn a_head_that_cannot_be_read_is_a_problem() {
    let server = start(None, hello()).await;
    for head in [
        "hello\r\n\r\n",
        "GET / HTTP/3.7\r\nhost: localhost\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: localhost\r\nbad header: x\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: localhost\r\nx: \u{1}\r\n\r\n",
        "G\u{e9}T / HTTP/1.1\r\nhost: localhost\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n{}",
        "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: x\r\n\r\n{}",
        "POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip\r\n\r\n{}",
        "GET / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked, gzip\r\n\r\n",
    ] {
        is_refused(&server, head.as_bytes(), 400, "shape").await;
    }
    let mut stream = connect(&server).await;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("written");
    let mut answer = vec![0; 4096];
    let read = stream.read(&mut answer).await.expect("an answer");
    assert!(answer[..read].starts_with(b"HTTP/1.1 200 OK\r\n") && answer[..read].ends_with(b"hello"));
    stream.write_all(b"and now\r\n\r\n").await.expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("\"code\":\"shape\""), "{answer}");
}
