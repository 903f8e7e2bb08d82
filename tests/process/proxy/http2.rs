//! Tunnels over HTTP/2: each a stream of its own, and one that is refused takes none of the others with it.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{basic, counted, echo, in_time, may_tunnel, node_with, started};
use crate::greetings::{connector, listener};
use crate::tls::Authority;

type Client = SendRequest<Empty<Bytes>>;

async fn client<S>(stream: S) -> Client
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
    tokio::spawn(connection);
    client
}

async fn connect(client: &mut Client, target: &str, tenant: &str) -> Response<Incoming> {
    let credentials = basic(tenant, tenant);
    let value = credentials.trim().split_once(": ").expect("a line").1;
    let request = Request::connect(target).header("proxy-authorization", value).body(Empty::new()).expect("a request");
    in_time(client.send_request(request)).await.expect("an answer")
}

async fn tunnel(client: &mut Client, target: SocketAddr, tenant: &str) -> TokioIo<hyper::upgrade::Upgraded> {
    let response = connect(client, &target.to_string(), tenant).await;
    assert_eq!(response.status(), 200);
    TokioIo::new(hyper::upgrade::on(response).await.expect("a tunnel"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_of_one_connection_are_apart_from_each_other() {
    let authority = Authority::new();
    let (mut node, proxy) = node_with("", "");
    authority.write_server(&["127.0.0.1"], &node.path("cert.pem"), &node.path("key.pem"));
    let tls = "[proxy.tls]\ncert = \"cert.pem\"\nkey = \"key.pem\"\n";
    let clients = may_tunnel("acme") + &may_tunnel("other");
    node.configure(&format!("[proxy]\nlisten = \"{proxy}\"\n{tls}{clients}"));
    node.start();
    let (receiver, came) = echo().await;
    let stream = connector(&authority, None).connect(listener(), TcpStream::connect(proxy).await.unwrap()).await;
    let mut client = client(stream.expect("TLS")).await;
    let mut first = tunnel(&mut client, receiver, "acme").await;
    // Of another tenant, on the same connection: each says who it is.
    let mut second = tunnel(&mut client, receiver, "other").await;
    for (target, tenant, status, code) in [
        ("127.0.0.1:25".to_owned(), "acme", 403, "policy_port"),
        ("169.254.169.254:80".to_owned(), "acme", 403, "policy_metadata"),
        (proxy.to_string(), "acme", 403, "policy_self"),
        (receiver.to_string(), "nobody", 407, "unauthorized"),
    ] {
        let refused = connect(&mut client, &target, tenant).await;
        assert_eq!(refused.status(), status, "{target}");
        assert_eq!(refused.headers()["egressd-code"], code, "{target}");
        let body = refused.into_body().collect().await.unwrap().to_bytes();
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem["code"], code, "{problem}");
    }
    let sent = vec![3; 500_000];
    for stream in [&mut first, &mut second] {
        let (mut read, mut write) = tokio::io::split(stream);
        let (echoed, ()) = tokio::join!(
            async {
                let mut echoed = Vec::new();
                in_time(read.read_to_end(&mut echoed)).await.unwrap();
                echoed
            },
            async {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            }
        );
        assert!(echoed == sent);
    }
    drop((first, second));
    counted(&node, "egressd_tunnels_total{end=\"closed\",code=\"none\"}", 2.0).await;
    assert_eq!(came.all().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_breaks_leaves_its_connection_to_the_others() {
    let (node, proxy) = started("", "");
    let resets = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = client(TcpStream::connect(proxy).await.unwrap()).await;
    let mut stream = tunnel(&mut client, resets.local_addr().unwrap(), "acme").await;
    let (mut peer, _) = resets.accept().await.unwrap();
    peer.write_all(b"some").await.unwrap();
    in_time(stream.read_exact(&mut [0; 4])).await.unwrap();
    socket2::SockRef::from(&peer).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    drop(peer);
    let _ = in_time(stream.read_to_end(&mut Vec::new())).await;
    counted(&node, "egressd_tunnels_total{end=\"reset\",code=\"none\"}", 1.0).await;
    let (receiver, _) = echo().await;
    let mut stream = tunnel(&mut client, receiver, "acme").await;
    stream.write_all(b"x").await.unwrap();
    assert_eq!(in_time(stream.read_u8()).await.unwrap(), b'x');
}
