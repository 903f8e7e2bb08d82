use std::io::{Read, Write};

use super::*;
use crate::config::Config;
use crate::store::memory::Memory;

fn served() -> Served {
    let form = |text: &str| Form::from(text.to_owned());
    let last_modified = "2026-11-22T12:00:00Z".parse().unwrap();
    let (text, json, atom, page) = (form("203.0.113.1\n"), form("{}\n"), form("<feed/>\n"), form("<p>\n"));
    Served { text, json, atom, page, last_modified, known: Default::default(), digest: [0; 32] }
}

fn asked(headers: &[(&'static str, &str)]) -> HeaderMap {
    headers.iter().map(|(name, value)| ((*name).parse().unwrap(), value.parse().unwrap())).collect()
}

const PEER: ([u8; 4], u16) = ([192, 0, 2, 7], 4711);

#[test]
fn the_list_in_each_form_and_the_callers_address_are_served_and_nothing_else() {
    for (method, path, status, kind) in [
        ("GET", "/public-ips.txt", 200, "text/plain; charset=utf-8"),
        ("HEAD", "/public-ips.txt", 200, "text/plain; charset=utf-8"),
        ("GET", "/public-ips.json", 200, "application/json"),
        ("GET", "/whoami", 200, "text/plain; charset=utf-8"),
        ("POST", "/whoami", 405, "text/plain; charset=utf-8"),
        ("DELETE", "/public-ips.txt", 405, "text/plain; charset=utf-8"),
        ("GET", "/public-ips.atom", 200, "application/atom+xml; charset=utf-8"),
        ("GET", "/", 200, "text/html; charset=utf-8"),
        ("GET", "/index.html", 404, "text/plain; charset=utf-8"),
        ("POST", "/", 405, "text/plain; charset=utf-8"),
        ("GET", "/v1/sends", 404, "text/plain; charset=utf-8"),
        ("GET", "/metrics", 404, "text/plain; charset=utf-8"),
        ("GET", "/public-ips.txt/", 404, "text/plain; charset=utf-8"),
        ("GET", "//public-ips.txt", 404, "text/plain; charset=utf-8"),
    ] {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let response = respond(&served(), &method, path, &HeaderMap::new(), PEER.into());
        assert_eq!(response.status(), status, "{method} {path}");
        assert_eq!(response.headers()[CONTENT_TYPE], kind, "{method} {path}");
    }
}

#[test]
fn a_caller_that_has_the_list_is_told_so() {
    let served = served();
    let (own, other) = (served.text.etag.as_str(), served.json.etag.as_str());
    assert_ne!(own, other);
    assert!(own.starts_with('"') && own.ends_with('"'), "{own} is not a strong validator");
    let (both, weak) = (format!("{other}, {own}"), format!("W/{own}"));
    for (headers, status) in [
        (vec![], 200),
        (vec![("if-none-match", own)], 304),
        (vec![("if-none-match", &both)], 304),
        (vec![("if-none-match", &weak)], 304),
        (vec![("if-none-match", "*")], 304),
        (vec![("if-none-match", other)], 200),
        (vec![("if-none-match", "")], 200),
        (vec![("if-modified-since", "Sun, 22 Nov 2026 12:00:00 GMT")], 304),
        (vec![("if-modified-since", "Sun, 22 Nov 2026 12:00:01 GMT")], 304),
        (vec![("if-modified-since", "Sun, 22 Nov 2026 11:59:59 GMT")], 200),
        (vec![("if-modified-since", "yesterday")], 200),
        // The tag decides where both are given.
        (vec![("if-none-match", other), ("if-modified-since", "Sun, 22 Nov 2026 12:00:00 GMT")], 200),
    ] {
        let response = list(&served, Kind::Text, &asked(&headers));
        assert_eq!(response.status(), status, "{headers:?}");
        assert_eq!(response.headers()[ETAG], own, "{headers:?}");
        assert_eq!(response.headers()[LAST_MODIFIED], "Sun, 22 Nov 2026 12:00:00 GMT");
        assert_eq!(response.headers()[CACHE_CONTROL], LIST_CACHE);
    }
}

#[test]
fn a_connection_whose_request_has_a_body_ends_with_it() {
    for (headers, closes) in [
        (vec![], false),
        (vec![("content-length", "0")], false),
        (vec![("content-length", "5")], true),
        (vec![("transfer-encoding", "chunked")], true),
    ] {
        let response = respond(&served(), &Method::GET, "/whoami", &asked(&headers), PEER.into());
        assert_eq!(response.headers().contains_key(CONNECTION), closes, "{headers:?}");
    }
}

/// A listener in front of a list of one address.
async fn running() -> (SocketAddr, watch::Sender<bool>, tokio::task::JoinHandle<()>) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("public-ips.txt"), "127.0.0.1\n").unwrap();
    let text = "[[egress.source]]\npublic = \"127.0.0.1\"\n[dns]\nservers = [\"127.0.0.1\"]\n";
    let now = "2026-11-22T12:00:00Z".parse().unwrap();
    let config = Config::from_text(text, &directory.path().join("egressd.toml"), now).unwrap();
    let publication = Publication::open(Arc::new(Memory::new()), &config, now).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    (address, stop, tokio::spawn(serve(listener, publication, Way::default(), stopped)))
}

/// What a plain client of blocking sockets reads until the listener closes the connection.
async fn talk(address: SocketAddr, text: &'static str) -> String {
    tokio::task::spawn_blocking(move || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.connect(&address.into()).unwrap();
        let mut stream: std::net::TcpStream = socket.into();
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn the_listener_answers_and_ends_when_it_is_told_to() {
    let (address, stop, task) = running().await;
    let answer = talk(address, "GET /public-ips.txt HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n127.0.0.1\n"), "{answer}");
    let answer = talk(address, "HEAD /public-ips.txt HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.contains("content-length: 10\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    let answer = talk(address, "GET /whoami HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.ends_with("\r\n\r\n127.0.0.1\n"), "{answer}");
    // The body is not waited for.
    let answer = talk(address, "GET /whoami HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let kept = tokio::task::spawn_blocking(move || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.connect(&address.into()).unwrap();
        socket
    });
    let kept = kept.await.unwrap();
    stop.send(true).unwrap();
    task.await.unwrap();
    drop(kept);
}

#[tokio::test]
async fn a_head_without_end_is_cut_off() {
    let (address, _stop, _task) = running().await;
    let endless: &'static str = format!("GET / HTTP/1.1\r\nx: {}", "a".repeat(20_000)).leak();
    let answer = talk(address, endless).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn a_silent_caller_is_let_go() {
    let (address, _stop, _task) = running().await;
    let begun = crate::clock::monotonic();
    let answer = talk(address, "GET /whoami HTTP/1.1\r\n").await;
    let lasted = begun.elapsed();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(lasted >= limits::DOORS_HEAD_TIME, "{lasted:?}");
}
