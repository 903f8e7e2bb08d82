//! Handshakes with callers who need no credentials for them: they are computed beside everything else, and a caller who
//! has a certificate and a token is answered whatever the others show.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::neighbours::cpu_ticks;
use crate::node::{Node, PATIENCE, alone};
use crate::strangers::client_of;
use crate::tls::{Authority, look_alikes};

/// What a stranger does, again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Begins a handshake, and is silent after the answer.
    Silent,
    /// Bytes that are no handshake.
    Nonsense,
    /// A handshake without a certificate.
    Bare,
    /// One that is nobody's, with as many look-alike authorities as are looked at, and with more.
    LookAlikes(usize),
    /// One with so many bytes of names.
    Fat(usize),
}

/// Certificates that a stranger shows, and the key of the first.
fn shown(kind: Kind) -> Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let (names, more) = match kind {
        Kind::LookAlikes(count) => (vec!["caller.example.com".to_owned()], count),
        Kind::Fat(bytes) => ((0..bytes / 32).map(|n| format!("{n:0>20}.example.com")).collect(), 0),
        _ => return None,
    };
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(names).expect("names");
    // Of an authority that is named as the look-alikes are.
    params.distinguished_name.push(rcgen::DnType::CommonName, "a caller");
    let leaf = Authority::named("X").sign(params, &key);
    let chain = std::iter::once(leaf).chain(look_alikes(more)).collect();
    Some((chain, PrivateKeyDer::Pkcs8(key.serialize_der().into())))
}

/// Trusts the listener's authority alone.
pub fn connector(
    authority: &Authority,
    own: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.der()).expect("an authority");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let mut config = match own {
        Some((chain, key)) => config.with_client_auth_cert(chain, key).expect("a certificate with its key"),
        None => config.with_no_client_auth(),
    };
    config.resumption = rustls::client::Resumption::disabled();
    TlsConnector::from(Arc::new(config))
}

pub fn listener() -> ServerName<'static> {
    ServerName::try_from("127.0.0.1").expect("a name")
}

async fn stranger(address: SocketAddr, kind: Kind, connector: TlsConnector, held: &mut Vec<TcpStream>) {
    let Ok(mut stream) = TcpStream::connect(address).await else { return };
    match kind {
        Kind::Silent => {
            // A ClientHello, as the library makes it.
            let (mut ours, theirs) = tokio::io::duplex(16 * 1024);
            let hello = tokio::spawn(async move { drop(connector.connect(listener(), theirs).await) });
            let mut bytes = vec![0; 16 * 1024];
            let count = ours.read(&mut bytes).await.unwrap_or(0);
            hello.abort();
            let _ = stream.write_all(&bytes[..count]).await;
            let _ = stream.read(&mut bytes).await;
            if held.len() > 200 {
                held.remove(0);
            }
            held.push(stream);
        }
        Kind::Nonsense => {
            let _ = stream.write_all(&b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".repeat(100)).await;
            let _ = stream.read(&mut [0; 100]).await;
        }
        _ => {
            if let Ok(mut tls) = connector.connect(listener(), stream).await {
                // What the listener thinks of it.
                let _ = tls.read(&mut [0; 1]).await;
            }
        }
    }
}

/// A send by a caller who has what it takes.
async fn submit(node: &Node, connector: &TlsConnector, send: &str) -> u16 {
    let stream = TcpStream::connect(node.api).await.expect("it listens");
    let tls = connector.connect(listener(), stream).await.expect("a certificate that is trusted");
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.expect("HTTP");
    tokio::spawn(connection);
    let request = http::Request::post("/v1/sends")
        .header("host", node.api.to_string())
        .header("authorization", "Bearer acme")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(send.to_owned())));
    client.send_request(request.expect("a request")).await.expect("an answer").status().as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_of_strangers_are_computed_beside_what_is_answered() {
    let _alone = alone().await;
    let authority = Authority::new();
    let mut node = Node::new("");
    authority.write_pem(&node.path("ca.pem"));
    authority.write_server(&["127.0.0.1"], &node.path("cert.pem"), &node.path("key.pem"));
    let tls = "[api.tls]\ncert = \"cert.pem\"\nkey = \"key.pem\"\nclient_ca = \"ca.pem\"\n";
    node.configure(&format!("{tls}{}", client_of("acme")));
    node.start();
    let known = connector(&authority, Some(authority.client("a node")));
    let send = json!({ "method": "GET", "url": "http://127.0.0.1:1/" }).to_string();
    assert_eq!(submit(&node, &known, &send).await, 202);

    for kind in [
        Kind::Silent,
        Kind::Nonsense,
        Kind::Bare,
        Kind::LookAlikes(2),
        Kind::LookAlikes(20),
        Kind::Fat(12 * 1024),
        Kind::Fat(40 * 1024),
    ] {
        let (stop, made) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let mut flood = tokio::task::JoinSet::new();
        let connector = connector(&authority, shown(kind));
        let before = cpu_ticks(&node);
        for _ in 0..16 {
            let (stop, made, connector, address) = (stop.clone(), made.clone(), connector.clone(), node.api);
            flood.spawn(async move {
                let mut held = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    stranger(address, kind, connector.clone(), &mut held).await;
                    made.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let started = Instant::now();
        let mut answers = 0;
        while answers < 20 || made.load(Ordering::Relaxed) < 1_000 {
            let answer = tokio::time::timeout(PATIENCE, submit(&node, &known, &send)).await;
            assert_eq!(answer.expect("in time"), 202, "{kind:?}");
            answers += 1;
            assert!(started.elapsed() < PATIENCE, "{kind:?}: the flood does not come to its height");
        }
        stop.store(true, Ordering::Relaxed);
        flood.join_all().await;
        let now = cpu_ticks(&node);
        let spent = |threads: &str| now.get(threads).unwrap_or(&0) - before.get(threads).unwrap_or(&0);
        let (handshakes, fronts, deliveries) = (spent("call-tls"), spent("fronts"), spent("tokio-rt-worker"));
        println!(
            "{kind:?}: {} handshakes, {answers} answers, {handshakes} ticks for them, {fronts} on the fronts' threads, \
             {deliveries} on the deliveries'",
            made.load(Ordering::Relaxed)
        );
        if kind != Kind::Nonsense {
            assert!(fronts + deliveries <= handshakes * 2, "{kind:?}: {handshakes} {fronts} {deliveries}");
        }
    }
}
