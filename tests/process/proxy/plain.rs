//! Requests in absolute form: made once, as the URL says, and nothing of the way here goes on.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{Answer, answer, basic, echo, in_time, logged, may_tunnel, started, tunnel};
use crate::node::{PATIENCE, SOURCES, call};

/// What came to a receiver, connection by connection, each of which is answered with these bytes once its head has come
/// and as much of a body as was waited for.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<(SocketAddr, String)>>>);

impl Seen {
    fn all(&self) -> Vec<(SocketAddr, String)> {
        self.0.lock().unwrap().clone()
    }
}

async fn receiver(until: &'static str, answer: &'static [u8]) -> (SocketAddr, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let seen = Seen::default();
    let noted = seen.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, peer)) = listener.accept().await {
            let noted = noted.clone();
            tokio::spawn(async move {
                let mut came = String::new();
                let mut part = [0; 4096];
                while !came.ends_with(until) {
                    match stream.read(&mut part).await {
                        Ok(read @ 1..) => came.push_str(&String::from_utf8_lossy(&part[..read])),
                        _ => break,
                    }
                }
                noted.0.lock().unwrap().push((peer, came));
                let _ = stream.write_all(answer).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    (at, seen)
}

async fn ask(proxy: SocketAddr, request: &str) -> (Answer, Vec<u8>) {
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    let last = if request.contains("Connection: close") { "" } else { "\r\nConnection: close" };
    let (line, rest) = request.split_once("\r\n").expect("a request");
    stream.write_all(format!("{line}{last}\r\n{rest}").as_bytes()).await.unwrap();
    let mut told = answer(&mut stream).await;
    let mut body = std::mem::take(&mut told.rest);
    in_time(stream.read_to_end(&mut body)).await.unwrap_or_default();
    (told, body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_made_once_as_its_url_says() {
    let (node, proxy) = started("", &may_tunnel("acme"));
    let (at, seen) = receiver(
        "\r\n\r\n",
        b"HTTP/1.1 203 Fine\r\nContent-Length: 5\r\nX-Answer: yes\r\nConnection: X-Hop\r\nX-Hop: 1\r\nProxy-Connection: \
          close\r\nKeep-Alive: timeout=5\r\n\r\nhello",
    )
    .await;
    let (told, body) = ask(
        proxy,
        &format!(
            "GET http://{at}/path?a=b#part HTTP/1.1\r\nHost: elsewhere.example.com\r\n{}Proxy-Connection: keep-alive\r\n\
             Egressd-Tenant: acme\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\nX-Forwarded-For: 10.0.0.1\r\nVia: 1.0 x\r\n\
             Upgrade: websocket\r\nTE: trailers\r\nAccept: */*\r\nCookie: a=b\r\n\r\n",
            basic("acme", "acme")
        ),
    )
    .await;
    assert_eq!((told.status, &*body), (203, &b"hello"[..]), "{}", told.head);
    assert_eq!(told.header("x-answer"), Some("yes"));
    for gone in ["x-hop", "proxy-connection", "keep-alive", "via"] {
        assert_eq!(told.header(gone), None, "{}", told.head);
    }
    let all = seen.all();
    assert_eq!(all.len(), 1);
    let (peer, head) = &all[0];
    assert!(SOURCES.contains(&peer.ip().to_string().as_str()));
    let mut lines: Vec<String> = head.lines().map(str::to_lowercase).filter(|line| !line.is_empty()).collect();
    lines.sort();
    let mut wanted = vec![
        "get /path?a=b http/1.1".to_owned(),
        format!("host: {at}"),
        "accept: */*".to_owned(),
        "cookie: a=b".to_owned(),
        "connection: close".to_owned(),
    ];
    wanted.sort();
    assert_eq!(lines, wanted);
    logged(&node, &["tunnel ended", "\"end\":\"closed\"", "\"tenant\":\"acme\""]).await;
    let begun = Instant::now();
    loop {
        let page = call(node.api, "GET", "/v1/tunnels", "", &[("authorization", "Bearer acme")]).await.unwrap().1;
        if page["tunnels"][0]["end"] == "closed" {
            assert_eq!(
                (&page["tunnels"][0]["host"], &page["tunnels"][0]["port"]),
                (&"127.0.0.1".into(), &at.port().into())
            );
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{page}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_go_both_ways_whatever_their_framing() {
    let (_node, proxy) = started("", "");
    let (at, seen) = receiver(
        "0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
    )
    .await;
    let request =
        format!("POST http://{at}/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    let (told, body) = ask(proxy, &request).await;
    assert_eq!(told.status, 200);
    let body = String::from_utf8_lossy(&body).into_owned();
    assert!(body.contains("hello") && body.contains(" world") && body.ends_with("0\r\n\r\n"), "{body}");
    assert!(seen.all()[0].1.ends_with("abc\r\n0\r\n\r\n"), "{}", seen.all()[0].1);

    let (at, seen) = receiver("abcde", b"HTTP/1.1 200 OK\r\n\r\nuntil the end").await;
    let (told, body) =
        ask(proxy, &format!("PUT http://{at}/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde")).await;
    assert_eq!(told.status, 200);
    assert!(String::from_utf8_lossy(&body).contains("until the end"));
    assert!(seen.all()[0].1.to_lowercase().contains("content-length: 5\r\n"), "{}", seen.all()[0].1);

    let (at, _) = receiver("\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n").await;
    let (told, body) = ask(proxy, &format!("HEAD http://{at}/ HTTP/1.1\r\nHost: x\r\n\r\n")).await;
    assert_eq!((told.status, told.header("content-length"), body.len()), (200, Some("7"), 0), "{}", told.head);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_answered_is_not_tried_again() {
    let (_node, proxy) = started("idle = \"1s\"", "");
    let ask_at = async |at: SocketAddr| {
        let (told, _) = ask(proxy, &format!("GET http://{at}/ HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        told.told()
    };
    for (said, told) in [
        (&b""[..], "502 connection_closed"),
        (b"nonsense\r\n\r\n", "502 protocol_error"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "502 protocol_error"),
    ] {
        let (at, seen) = receiver("\r\n\r\n", said).await;
        assert_eq!(ask_at(at).await, told, "{}", String::from_utf8_lossy(said));
        assert_eq!(seen.all().len(), 1, "{told}");
    }
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    assert_eq!(ask_at(silent.local_addr().unwrap()).await, "504 timeout");
    assert_eq!(ask_at(crate::node::free_port()).await, "502 connection_refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_comes_before_all_was_sent_arrives() {
    const ANSWER: &[u8] = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\nConnection: close\r\n\r\ntoo large";
    let (node, proxy) = started("", "");
    let refuses = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = refuses.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = refuses.accept().await {
            stream.read_exact(&mut [0; 100]).await.unwrap();
            // Closed with much of it unread: a reset comes behind the answer.
            stream.write_all(ANSWER).await.unwrap();
        }
    });
    for _ in 0..20 {
        let stream = TcpStream::connect(proxy).await.unwrap();
        let (mut read, mut write) = stream.into_split();
        let sending = tokio::spawn(async move {
            let head = format!("POST http://{target}/ HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 32 << 20);
            let mut written = write.write_all(head.as_bytes()).await;
            for _ in 0..32 {
                if written.is_ok() {
                    written = write.write_all(&[7; 1 << 20]).await;
                }
            }
            // Kept open: what is read is the answer's end.
            write
        });
        let told = answer(&mut read).await;
        assert_eq!(told.status, 413, "{}", told.head);
        let mut body = told.rest;
        while body.len() < 9 {
            assert_ne!(in_time(read.read_buf(&mut body)).await.expect("its body"), 0);
        }
        assert_eq!(body, b"too large");
        drop(read);
        drop(in_time(sending).await.unwrap());
    }
    drop(node);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_of_a_connection_is_asked_who_makes_it() {
    let (_node, proxy) = started("", &(may_tunnel("acme") + &may_tunnel("other")));
    let (at, seen) = receiver("\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    let get = |lines: &str| format!("GET http://{at}/ HTTP/1.1\r\nHost: x\r\n{lines}\r\n");
    for tenant in ["acme", "other", "acme"] {
        stream.write_all(get(&basic(tenant, tenant)).as_bytes()).await.unwrap();
        let told = answer(&mut stream).await;
        assert_eq!(told.status, 200, "{}", told.head);
        if told.rest.len() < 2 {
            in_time(stream.read_exact(&mut vec![0; 2 - told.rest.len()])).await.unwrap();
        }
    }
    assert_eq!(seen.all().len(), 3, "a connection each");
    stream.write_all(get("").as_bytes()).await.unwrap();
    let told = answer(&mut stream).await;
    assert_eq!(told.told(), "407 unauthorized");
    in_time(stream.read_to_end(&mut Vec::new())).await.unwrap();
    assert_eq!(seen.all().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_policy_is_the_same_and_the_key_turns_it_off() {
    let (node, proxy) = started("", "");
    let (at, came) = echo().await;
    for (url, told) in [
        (format!("http://127.0.0.1:{}/", node.api.port()), "403 policy_self"),
        ("http://169.254.169.254/latest/meta-data/".to_owned(), "403 policy_metadata"),
        ("http://localhost/".to_owned(), "403 policy_name"),
        ("http://10.0.0.1/".to_owned(), "403 policy_address"),
        ("http://127.0.0.1:25/".to_owned(), "403 policy_port"),
        (format!("http://user:pw@{at}/"), "403 policy_url"),
        (format!("https://{at}/"), "403 policy_url"),
        ("/".to_owned(), "400 shape"),
    ] {
        let (refused, _) = ask(proxy, &format!("GET {url} HTTP/1.1\r\nHost: {at}\r\n\r\n")).await;
        assert_eq!(refused.told(), told, "{url}: {}", refused.head);
    }
    let (_off, proxy) = started("plain_http = false", "");
    let (refused, _) = ask(proxy, &format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\n\r\n")).await;
    assert_eq!(refused.told(), "405 method_not_allowed");
    assert!(came.all().is_empty());
    drop(tunnel(proxy, &at.to_string()).await);
}
