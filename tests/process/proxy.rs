//! The forward proxy from outside: what is refused is reached by nobody, whatever it is called, and what is allowed is
//! reached from a published source, byte by byte as it was sent.

mod ends;
mod http2;
mod neighbours;
mod plain;
mod records;
mod refusals;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::greetings::{connector, listener};
use crate::node::{Node, PATIENCE, SOURCES, free_port};
use crate::strangers::client_of;
use crate::tls::Authority;

/// A node whose `[proxy]` has these keys beside its address; `more` are tables after it.
fn node_with(keys: &str, more: &str) -> (Node, SocketAddr) {
    let proxy = free_port();
    (Node::new(&format!("[proxy]\nlisten = \"{proxy}\"\n{keys}\n{more}")), proxy)
}

fn started(keys: &str, more: &str) -> (Node, SocketAddr) {
    let (mut node, proxy) = node_with(keys, more);
    node.start();
    (node, proxy)
}

/// A client that may open tunnels, and whose token is the tenant's name.
fn may_tunnel(tenant: &str) -> String {
    client_of(tenant).replace("\"read\"]", "\"read\", \"proxy\"]")
}

fn basic(tenant: &str, token: &str) -> String {
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{tenant}:{token}"));
    format!("Proxy-Authorization: Basic {pair}\r\n")
}

/// An answer's head, and as much behind it as came with it.
struct Answer {
    status: u16,
    head: String,
    rest: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let line = self
            .head
            .lines()
            .find(|line| line.split_once(':').is_some_and(|(found, _)| found.eq_ignore_ascii_case(name)))?;
        line.split_once(':').map(|(_, value)| value.trim())
    }

    /// Status and `Egressd-Code`, for tables.
    fn told(&self) -> String {
        format!("{} {}", self.status, self.header("egressd-code").unwrap_or("-"))
    }
}

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("in time")
}

/// Reads one answer's head.
async fn answer(stream: &mut (impl AsyncRead + Unpin)) -> Answer {
    let mut came = Vec::new();
    loop {
        if let Some(end) = came.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&came[..end + 4]).into_owned();
            let status = head.get(9..12).and_then(|status| status.parse().ok()).expect("a status");
            return Answer { status, head, rest: came.split_off(end + 4) };
        }
        let mut part = [0; 4096];
        let read = in_time(stream.read(&mut part)).await.expect("readable");
        assert!(read > 0, "closed before an answer: {}", String::from_utf8_lossy(&came));
        came.extend_from_slice(&part[..read]);
    }
}

/// Sends a CONNECT with these lines more, and reads what is answered.
async fn connect_over<S>(stream: &mut S, target: &str, lines: &str) -> Answer
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{lines}\r\n");
    stream.write_all(head.as_bytes()).await.expect("written");
    answer(stream).await
}

async fn connect(proxy: SocketAddr, target: &str, lines: &str) -> (Answer, TcpStream) {
    let mut stream = TcpStream::connect(proxy).await.expect("it listens");
    let answer = connect_over(&mut stream, target, lines).await;
    (answer, stream)
}

/// A tunnel that must come about.
async fn tunnel(proxy: SocketAddr, target: &str) -> TcpStream {
    let (answer, stream) = connect(proxy, target, "").await;
    assert_eq!(answer.status, 200, "{}", answer.head);
    stream
}

/// Who came, and what was sent.
type Caller = (SocketAddr, Vec<u8>);

/// Everything that came to a listener.
#[derive(Clone, Default)]
struct Came(Arc<Mutex<Vec<Caller>>>);

impl Came {
    fn all(&self) -> Vec<Caller> {
        self.0.lock().expect("what came").clone()
    }
}

/// Answers each connection with what it is sent, and closes its side when the other has.
async fn echo() -> (SocketAddr, Came) {
    echo_on(TcpListener::bind("127.0.0.1:0").await.expect("a port"))
}

fn echo_on(listener: TcpListener) -> (SocketAddr, Came) {
    let address = listener.local_addr().expect("bound");
    let came = Came::default();
    let noted = came.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, peer)) = listener.accept().await {
            let noted = noted.clone();
            let number = {
                let mut all = noted.0.lock().expect("what came");
                all.push((peer, Vec::new()));
                all.len() - 1
            };
            tokio::spawn(async move {
                let mut part = vec![0; 64 * 1024];
                while let Ok(read @ 1..) = stream.read(&mut part).await {
                    noted.0.lock().expect("what came")[number].1.extend_from_slice(&part[..read]);
                    if stream.write_all(&part[..read]).await.is_err() {
                        return;
                    }
                }
                let _ = stream.shutdown().await;
            });
        }
    });
    (address, came)
}

/// Waits until a line of the node's log has all of these.
async fn logged(node: &Node, parts: &[&str]) -> String {
    let begun = Instant::now();
    loop {
        let log = node.log();
        if let Some(line) = log.lines().find(|line| parts.iter().all(|part| line.contains(part))) {
            return line.to_owned();
        }
        assert!(begun.elapsed() < PATIENCE, "no line has {parts:?}: {log}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until a metric is so much.
async fn counted(node: &Node, line_start: &str, wanted: f64) {
    let begun = Instant::now();
    while node.metric(line_start).await != Some(wanted) {
        assert!(begun.elapsed() < PATIENCE, "{line_start} is {:?}", node.metric(line_start).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_leaves_from_a_published_source_and_carries_what_it_is_given() {
    let (node, proxy) = started("", "");
    let (receiver, came) = echo().await;
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    // What comes behind the head, before there is an answer, is the tunnel's; what the head says is not.
    let head = format!(
        "CONNECT {receiver} HTTP/1.1\r\nHost: elsewhere.example.com\r\nProxy-Connection: keep-alive\r\n{}Via: 1.1 x\r\n\
         \r\nearly ",
        basic("acme", "anything")
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let told = answer(&mut stream).await;
    assert_eq!(told.status, 200, "{}", told.head);
    assert_eq!((told.header("content-length"), told.header("transfer-encoding")), (None, None), "{}", told.head);
    stream.write_all(b"and late").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut echoed = told.rest;
    in_time(stream.read_to_end(&mut echoed)).await.unwrap();
    assert_eq!(echoed, b"early and late");
    let all = came.all();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].1, b"early and late");
    let source = all[0].0.ip().to_string();
    assert!(SOURCES.contains(&source.as_str()), "{source}");

    let line = logged(&node, &["tunnel ended"]).await;
    let port = receiver.port().to_string();
    for part in
        ["\"tenant\":\"acme\"", "\"end\":\"closed\"", "\"code\":\"none\"", "\"up\":14", "\"down\":14", &port, &source]
    {
        assert!(line.contains(part), "{part}: {line}");
    }
    counted(&node, "egressd_tunnels_total{end=\"closed\",code=\"none\"}", 1.0).await;
    counted(&node, &format!("egressd_tunnels_open{{source_ip=\"{source}\"}}"), 0.0).await;
    for direction in ["up", "down"] {
        counted(&node, &format!("egressd_tunnel_bytes_total{{direction=\"{direction}\"}}"), 14.0).await;
    }
    counted(&node, "egressd_tunnel_connect_seconds_count", 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_table_there_is_no_proxy() {
    let (mut node, proxy) = node_with("", "");
    node.configure("");
    node.start();
    assert!(TcpStream::connect(proxy).await.is_err());
    let (_, metrics) = crate::node::call_text(node.metrics, "GET", "/metrics", "", &[]).await.unwrap();
    assert!(!metrics.contains("tunnel"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_shows_a_token_that_may_and_nobody_else_sees_it() {
    let clients = may_tunnel("acme") + &client_of("reader");
    let (node, proxy) = started("", &clients);
    let (receiver, came) = echo().await;
    let target = receiver.to_string();
    for (lines, told) in [
        (String::new(), "407 unauthorized"),
        (basic("acme", "wrong"), "407 unauthorized"),
        (basic("acme", "reader"), "403 forbidden"),
        (basic("other", "acme"), "403 forbidden"),
        ("Authorization: Bearer acme\r\n".to_owned(), "407 unauthorized"),
    ] {
        let (refused, mut stream) = connect(proxy, &target, &lines).await;
        assert_eq!(refused.told(), told, "{lines}: {}", refused.head);
        assert_eq!(refused.header("proxy-authenticate").is_some(), refused.status == 407);
        assert!(refused.header("content-type").unwrap().contains("problem+json"));
        let mut rest = Vec::new();
        in_time(stream.read_to_end(&mut rest)).await.expect("closed");
    }
    assert!(came.all().is_empty());
    for (code, times) in [("unauthorized", 3.0), ("forbidden", 2.0)] {
        counted(&node, &format!("egressd_tunnels_total{{end=\"refused\",code=\"{code}\"}}"), times).await;
    }
    for lines in [basic("acme", "acme"), "Proxy-Authorization: Bearer acme\r\n".to_owned()] {
        let (fine, mut stream) = connect(proxy, &target, &lines).await;
        assert_eq!(fine.status, 200, "{}", fine.head);
        stream.write_all(b"x").await.unwrap();
        assert_eq!(in_time(stream.read_u8()).await.unwrap(), b'x');
    }
    assert!(came.all().iter().all(|(_, bytes)| bytes == b"x"));
    // The API's scopes stay the API's.
    let read = crate::node::call(node.api, "GET", "/v1/sends", "", &[("authorization", "Bearer acme")]).await;
    assert_eq!(read.unwrap().0, 200);
    let line = logged(&node, &["tunnel ended", "\"tenant\":\"acme\""]).await;
    assert!(!node.log().contains("YWNtZTphY21l"), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_a_caller_shows_a_certificate_where_one_is_wanted() {
    let authority = Authority::new();
    let (mut node, proxy) = node_with("", "");
    authority.write_pem(&node.path("ca.pem"));
    authority.write_server(&["127.0.0.1"], &node.path("cert.pem"), &node.path("key.pem"));
    let tls = "[proxy.tls]\ncert = \"cert.pem\"\nkey = \"key.pem\"\nclient_ca = \"ca.pem\"\n";
    node.configure(&format!("[proxy]\nlisten = \"{proxy}\"\n{tls}{}", may_tunnel("acme")));
    node.start();
    let (receiver, came) = echo().await;
    let target = receiver.to_string();
    let known = connector(&authority, Some(authority.client("a node")));

    let mut stream = known.connect(listener(), TcpStream::connect(proxy).await.unwrap()).await.unwrap();
    let told = connect_over(&mut stream, &target, &basic("acme", "acme")).await;
    assert_eq!(told.status, 200, "{}", told.head);
    let sent = vec![9; 300_000];
    let (mut read, mut write) = tokio::io::split(stream);
    let ((), echoed) = tokio::join!(
        async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        },
        async {
            let mut echoed = Vec::new();
            in_time(read.read_to_end(&mut echoed)).await.unwrap();
            echoed
        }
    );
    assert!(echoed == sent);

    // The certificate admits, the token says who.
    let mut stream = known.connect(listener(), TcpStream::connect(proxy).await.unwrap()).await.unwrap();
    assert_eq!(connect_over(&mut stream, &target, "").await.told(), "407 unauthorized");
    let unknown = connector(&authority, None);
    let stream = unknown.connect(listener(), TcpStream::connect(proxy).await.unwrap()).await;
    let mut refused = match stream {
        // TLS 1.3: what the server thinks of it comes after.
        Ok(mut stream) => {
            let _ = stream.write_all(b"CONNECT x:1 HTTP/1.1\r\n\r\n").await;
            in_time(stream.read(&mut [0; 64])).await.map(|read| read == 0).unwrap_or(true)
        }
        Err(_) => true,
    };
    assert!(std::mem::take(&mut refused));
    let (plain, _) = connect(proxy, &target, &basic("acme", "acme")).await;
    assert_eq!(plain.status, 400, "{}", plain.head);
    assert_eq!(came.all().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tls_client_that_names_another_server_gets_no_tunnel() {
    let names = crate::name_server::NameServer::start(|asked| match asked.kind {
        hickory_proto::rr::RecordType::A => {
            crate::name_server::Reply::Records(vec![crate::name_server::address(&asked.name, 60, "127.0.0.1")])
        }
        _ => crate::name_server::Reply::Records(Vec::new()),
    })
    .await;
    let authority = Authority::new();
    let hosts = ["shop.example.net", "front.example.net"];
    let acceptor = authority.server(&hosts, crate::tls::Leaf::Good, &["http/1.1"]);
    let served = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = served.local_addr().unwrap().port();
    let came = Arc::new(Mutex::new(Vec::new()));
    let noted = came.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = served.accept().await {
            let (acceptor, noted) = (acceptor.clone(), noted.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let named = stream.get_ref().1.server_name().map(str::to_owned);
                noted.lock().unwrap().push(named);
                let _ = stream.write_all(b"hello").await;
            });
        }
    });
    let client = connector(&authority, None);
    for (verify, named, fine) in
        [(true, "shop.example.net", true), (true, "front.example.net", false), (false, "front.example.net", true)]
    {
        let (mut node, proxy) = node_with(&format!("verify_sni = {verify}"), "");
        let text = std::fs::read_to_string(node.config()).unwrap();
        std::fs::write(node.config(), text.replace("127.0.0.1:53", &names.address().to_string())).unwrap();
        node.start();
        let before = came.lock().unwrap().len();
        let stream = tunnel(proxy, &format!("shop.example.net:{port}")).await;
        let name = rustls::pki_types::ServerName::try_from(named).unwrap();
        let shaken = in_time(client.connect(name, stream)).await;
        assert_eq!(shaken.is_ok(), fine, "{named}");
        match shaken {
            Ok(mut stream) => {
                in_time(stream.read_exact(&mut [0; 5])).await.unwrap();
                assert_eq!(came.lock().unwrap().last().cloned().flatten().as_deref(), Some(named));
            }
            Err(error) => {
                assert!(format!("{error:?}").contains("UnrecognisedName"), "{error:?}");
                logged(&node, &["tunnel ended", "\"end\":\"refused\"", "\"code\":\"policy_sni\""]).await;
                assert_eq!(came.lock().unwrap().len(), before, "a byte of it went on");
            }
        }
    }
}
