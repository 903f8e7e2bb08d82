//! One delivery against one scripted receiver: script → outcome, code, phase, and how many requests the receiver saw.
//! Whatever happens, that is never more than one.

use std::time::Duration;

use bytes::Bytes;
use egressd::outcome::{Code, Outcome, Phase};
use egressd::send::{Method, To};

use crate::support::ground::{Ground, LONG, Plan, SHORT, SOURCE, end_of, get, http, post, request};
use crate::support::receiver::{Receiver, Step, ok, write};

/// A connection's script, and what a POST of some bytes to it must come to.
struct Row {
    name: &'static str,
    script: Vec<Step>,
    end: &'static str,
    /// Requests that the receiver must have seen.
    requests: usize,
    /// How long the delivery may take; the deadline is the subject of few rows.
    total: Duration,
}

fn row(name: &'static str, script: impl Into<Vec<Step>>, end: &'static str) -> Row {
    Row { name, script: script.into(), end, requests: 1, total: LONG }
}

impl Row {
    /// The request lies in the receiver's socket.
    fn unread(mut self) -> Self {
        self.requests = 0;
        self
    }

    /// The receiver never comes to an end: the deadline does.
    fn short(mut self) -> Self {
        self.total = SHORT;
        self
    }
}

/// All rows at once: what one waits for costs no other.
async fn check(rows: Vec<Row>) {
    let ground = Ground::new();
    let wrong = futures_util::future::join_all(rows.into_iter().map(|row| check_one(&ground, row))).await;
    let wrong: Vec<_> = wrong.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

async fn check_one(ground: &Ground, row: Row) -> Option<String> {
    let receiver = Receiver::start(row.script.clone()).await;
    let attempt = ground.deliver(post(&receiver.url("/hook"), "some bytes"), row.total).await;
    // A failure says in words what was tried and what to do next, and names no address of ours.
    if let Some(error) = &attempt.ended.error {
        assert!(error.message.len() > 40 && error.message.contains(';'), "{}: {}", row.name, error.message);
        assert!(!error.message.contains(SOURCE), "{}: {}", row.name, error.message);
    }
    let total = attempt.timings.total.expect(row.name);
    assert!(!row.end.contains("timeout") || total >= row.total, "{}: ran out after {total:?}", row.name);
    // A second connection never takes the request of a first.
    assert!(receiver.peers().len() <= 1, "{}: {:?}", row.name, receiver.peers());
    let found = (end_of(&attempt), receiver.requests());
    (found != (row.end.to_owned(), row.requests))
        .then(|| format!("{}: {found:?}, not {:?}: {:?}", row.name, (row.end, row.requests), attempt.ended))
}

fn head(lines: &str) -> Step {
    write(format!("HTTP/1.1 200 OK\r\n{lines}\r\n"))
}

#[tokio::test]
async fn an_answer_to_its_end_is_an_outcome() {
    let answer = |status: &str| vec![Step::Read, write(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n"))];
    check(vec![
        row("200", [Step::Read, ok()], "delivered"),
        row("204", answer("204 No Content"), "delivered"),
        row("299", answer("299 Odd"), "delivered"),
        row("300", answer("300 Odd"), "rejected"),
        row("301 is not followed", answer("301 Moved\r\nlocation: http://127.0.0.1:1/"), "rejected"),
        row("304", answer("304 Not Modified"), "rejected"),
        row("399", answer("399 Odd"), "rejected"),
        row("400", answer("400 Bad Request"), "rejected"),
        row("500", answer("500 Oops"), "rejected"),
        row("599", answer("599 Odd"), "rejected"),
        row("503 with Retry-After is not retried", answer("503 Later\r\nretry-after: 0"), "rejected"),
        row("408 is not retried", answer("408 Request Timeout\r\nconnection: close"), "rejected"),
        row(
            "a body to the end of the connection",
            [Step::Read, write("HTTP/1.1 200 OK\r\n\r\nall of it")],
            "delivered",
        ),
        row("HTTP/1.0", [Step::Read, write("HTTP/1.0 200 OK\r\n\r\nold")], "delivered"),
        row(
            "chunks and trailers",
            [Step::Read, head("transfer-encoding: chunked\r\n"), write("2\r\nok\r\n0\r\nx-after: 1\r\n\r\n")],
            "delivered",
        ),
        row(
            "chunks under HTTP/1.0",
            [Step::Read, write("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")],
            "delivered",
        ),
        row("a folded header", [Step::Read, head("x: 1\r\n y\r\ncontent-length: 0\r\n")], "delivered"),
        row("a space before a colon", [Step::Read, head("x : 1\r\ncontent-length : 2\r\n"), write("ok")], "delivered"),
        row("a header of no name", [Step::Read, head("x y: 1\r\n: 2\r\ncontent-length: 0\r\n")], "delivered"),
        row("an answer before the body was sent", [Step::ReadHead, ok()], "delivered"),
        row(
            "some 1xx first",
            [Step::Read, write("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\n\r\n"), ok()],
            "delivered",
        ),
        row(
            "bytes after the end",
            [Step::Read, ok(), write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")],
            "delivered",
        ),
        row(
            "compressed, and left so",
            [Step::Read, head("content-encoding: gzip\r\ncontent-length: 3\r\n"), write("\x1f\x08\x07")],
            "delivered",
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_connection_that_breaks_is_a_failure_and_never_a_second_try() {
    let half = head("content-length: 10\r\n");
    let chunked = head("transfer-encoding: chunked\r\n");
    check(vec![
        row("closed after the request", [Step::Read], "failed connection_closed wait"),
        row("reset after the head", [Step::ReadHead, Step::Reset], "failed connection_reset wait"),
        row("reset after the request", [Step::Read, Step::Reset], "failed connection_reset wait"),
        row("closed within the status line", [Step::Read, write("HTTP/1.1 2")], "failed connection_closed wait"),
        row(
            "closed within the headers",
            [Step::Read, write("HTTP/1.1 200 OK\r\nx: 1\r\n")],
            "failed connection_closed wait",
        ),
        row(
            "reset within the headers",
            [Step::Read, write("HTTP/1.1 200 OK\r\nx: 1\r\n"), Step::Pause(SHORT / 10), Step::Reset],
            "failed connection_reset wait",
        ),
        row("closed after the headers", [Step::Read, half.clone()], "failed connection_closed read"),
        row("closed within the body", [Step::Read, half.clone(), write("12345")], "failed connection_closed read"),
        row(
            "reset within the body",
            [Step::Read, half, write("12345"), Step::Pause(SHORT / 10), Step::Reset],
            "failed connection_reset read",
        ),
        row(
            "a byte a chunk, and no end of them",
            [Step::Read, chunked.clone(), write("1\r\nx\r\n".repeat(9_000))],
            "failed protocol_error read",
        ),
        row("closed within a chunk", [Step::Read, chunked.clone(), write("5\r\n123")], "failed connection_closed read"),
        row(
            "closed before the last chunk",
            [Step::Read, chunked, write("2\r\nok\r\n")],
            "failed connection_closed read",
        ),
    ])
    .await;
}

#[tokio::test]
async fn what_is_not_http_is_a_protocol_error() {
    let read = |bytes: &'static str| vec![Step::Read, write(bytes)];
    check(vec![
        row("garbage", read("\u{1}\u{2}\u{3} what is this\r\n\r\n"), "failed protocol_error wait"),
        row("another protocol", read("SSH-2.0-OpenSSH_9.9\r\n"), "failed protocol_error wait"),
        row("HTTP/0.9", read("<html>hello</html>"), "failed protocol_error wait"),
        row("HTTP/2 to HTTP/1.1", read("HTTP/2 200 OK\r\n\r\n"), "failed protocol_error wait"),
        row("a status of two digits", read("HTTP/1.1 20 OK\r\n\r\n"), "failed protocol_error wait"),
        row("a header without a colon", read("HTTP/1.1 200 OK\r\nnonsense\r\n\r\n"), "failed protocol_error wait"),
        row("a NUL in a header", read("HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n"), "failed protocol_error wait"),
        row(
            "two lengths that differ",
            read("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab"),
            "failed protocol_error wait",
        ),
        row(
            "a length that is none",
            read("HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n"),
            "failed protocol_error wait",
        ),
        row("a negative length", read("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"), "failed protocol_error wait"),
        row(
            "101",
            read("HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: other\r\n\r\n"),
            "failed protocol_error wait",
        ),
        row(
            "a chunk size that is none",
            read("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"),
            "failed protocol_error read",
        ),
        row(
            "a chunk without its end",
            read("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nokXX"),
            "failed protocol_error read",
        ),
        row(
            "a flood of 1xx",
            [Step::Read, Step::Endless(Bytes::from_static(b"HTTP/1.1 100 Continue\r\n\r\n"))],
            "failed protocol_error wait",
        ),
    ])
    .await;
}

#[tokio::test]
async fn headers_are_bounded_in_bytes_and_in_lines() {
    let line = |bytes: usize| format!("x-long: {}\r\n", "v".repeat(bytes));
    let lines = |count: usize| (0..count).map(|at| format!("x-{at}: v\r\n")).collect::<String>();
    check(vec![
        row("nearly too large", [Step::Read, head(&format!("{}content-length: 0\r\n", line(60 * 1024)))], "delivered"),
        row("too large", [Step::Read, head(&line(64 * 1024))], "failed response_headers_too_large wait"),
        row(
            "a header without end",
            [Step::Read, write("HTTP/1.1 200 OK\r\nx: "), Step::Endless(Bytes::from(vec![b'v'; 4096]))],
            "failed response_headers_too_large wait",
        ),
        row("nearly too many", [Step::Read, head(&format!("{}content-length: 0\r\n", lines(255)))], "delivered"),
        row("too many", [Step::Read, head(&lines(257))], "failed response_headers_too_large wait"),
        row(
            "a 1xx too large",
            [Step::Read, write(format!("HTTP/1.1 103 Hints\r\n{}\r\n", line(64 * 1024))), ok()],
            "failed response_headers_too_large wait",
        ),
    ])
    .await;
}

#[tokio::test]
async fn silence_ends_at_the_deadline_with_the_phase_it_was_in() {
    let every = Duration::from_millis(20);
    let body = head("content-length: 1000\r\n");
    check(vec![
        row("no answer", [Step::Read, Step::Hold], "failed timeout wait").short(),
        row("half a status line", [Step::Read, write("HTTP/1."), Step::Hold], "failed timeout wait").short(),
        row(
            "headers that drip",
            [Step::Read, Step::Drip(Bytes::from(vec![b'a'; 1000]), every)],
            "failed protocol_error wait",
        )
        .short(),
        row(
            "headers that drip and are good",
            [Step::Read, write("HTTP/1.1 200 OK\r\nx: "), Step::Drip(Bytes::from(vec![b'a'; 1000]), every)],
            "failed timeout wait",
        )
        .short(),
        row("no body", [Step::Read, body.clone(), Step::Hold], "failed timeout read").short(),
        row(
            "a body that drips",
            [Step::Read, body, Step::Drip(Bytes::from(vec![b'a'; 1000]), every)],
            "failed timeout read",
        )
        .short(),
        row(
            "chunks that drip",
            [
                Step::Read,
                head("transfer-encoding: chunked\r\n"),
                Step::Drip(Bytes::from("1\r\na\r\n".repeat(200)), every),
            ],
            "failed timeout read",
        )
        .short(),
        row(
            "1xx that drip",
            [Step::Read, Step::Drip(Bytes::from("HTTP/1.1 100 C\r\n\r\n".repeat(20)), every / 4), Step::Hold],
            "failed timeout wait",
        )
        .short(),
        row("a connection that is not read", [Step::Pause(LONG)], "failed timeout wait").short().unread(),
        row("a listener that is not there in time", [Step::Read, Step::Pause(SHORT * 2), ok()], "failed timeout wait")
            .short(),
    ])
    .await;
}

#[tokio::test]
async fn a_receiver_that_closes_at_once_gets_at_most_one_request() {
    // Whether the request was written before the end was seen is a race; that it is not made again is not.
    let ground = Ground::new();
    for script in [vec![], vec![Step::Reset]] {
        let receiver = Receiver::start(script).await;
        let attempt = ground.deliver(post(&receiver.url("/"), "x"), LONG).await;
        let code = attempt.ended.error.unwrap().code;
        assert!(matches!(code, Code::ConnectionClosed | Code::ConnectionReset), "{code}");
        assert!(receiver.requests() <= 1);
        assert_eq!(receiver.peers().len(), 1);
    }
}

#[tokio::test]
async fn nothing_listens_there() {
    let ground = Ground::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let attempt = ground.get(&format!("http://{address}/")).await;
    assert_eq!(end_of(&attempt), "failed connection_refused connect");
    assert_eq!(attempt.sent_headers, None);
    let connection = attempt.connection.unwrap();
    assert_eq!(connection.public, Some(SOURCE.parse().unwrap()));
    assert_eq!(connection.remote, Some(address));
    assert!(attempt.timings.connect.is_some() && attempt.timings.write.is_none());
}

#[tokio::test]
async fn a_request_that_the_receiver_does_not_read_runs_out_while_it_is_written() {
    let ground = Ground::new();
    let receiver = Receiver::start([Step::ReadHead, Step::Pause(LONG)]).await;
    // More than any socket buffer takes.
    let body = "x".repeat(32 << 20);
    let attempt = ground.deliver(post(&receiver.url("/"), &body), SHORT).await;
    assert_eq!(end_of(&attempt), "failed timeout write");
    assert!(attempt.timings.write.is_some() && attempt.timings.wait.is_none(), "{:?}", attempt.timings);
    assert!(attempt.sent_headers.is_some());
}

#[tokio::test]
async fn a_body_without_end_is_cut_and_counts_as_complete() {
    let ground = Plan::new().limits("response_body_read = \"256KiB\"\nresponse_body_stored = \"64KiB\"").build();
    for framing in ["", "content-length: 100000000\r\n"] {
        let endless = Step::Endless(Bytes::from(vec![b'z'; 10_000]));
        let receiver = Receiver::start([Step::Read, head(framing), endless]).await;
        let attempt = ground.get(&receiver.url("/")).await;
        assert_eq!(end_of(&attempt), "delivered");
        let response = attempt.response.unwrap();
        assert!(response.body_truncated);
        assert_eq!((response.body.len(), response.body_total), (64 << 10, 256 << 10));
        // The connection was closed, and not kept for another.
        receiver.ended(1).await;
    }
}

#[tokio::test]
async fn an_answer_that_broke_off_is_remembered_as_far_as_it_came() {
    let ground = Ground::new();
    let script = [Step::Read, head("content-length: 10\r\nx-kind: half\r\n"), write("12345")];
    let receiver = Receiver::start(script).await;
    let attempt = ground.get(&receiver.url("/")).await;
    assert_eq!(end_of(&attempt), "failed connection_closed read");
    let response = attempt.response.unwrap();
    assert_eq!((response.status, response.declared, response.body_total), (200, Some(10), 5));
    assert_eq!(response.body, "12345");
    assert!(response.body_truncated);
}

#[tokio::test]
async fn an_answer_is_remembered_whole() {
    let ground = Ground::new();
    let answer = "HTTP/1.1 201 Created\r\nx-twice: a\r\nx-twice: b\r\ncontent-length: 4\r\n\r\nbody";
    let receiver = Receiver::start([Step::Read, write(answer)]).await;
    let attempt = ground.deliver(post(&receiver.url("/"), "x"), LONG).await;
    let response = attempt.response.unwrap();
    assert_eq!((response.status, response.version, response.declared), (201, "HTTP/1.1", Some(4)));
    let lines: Vec<_> = response.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    assert_eq!(lines, [("x-twice", "a"), ("x-twice", "b"), ("content-length", "4")]);
    assert_eq!((&response.body[..], response.body_total, response.body_truncated), (&b"body"[..], 4, false));
    let timings = attempt.timings;
    for phase in [Phase::Connect, Phase::Write, Phase::Wait, Phase::Read] {
        assert!(timings.phase(phase).is_some(), "{phase}");
    }
    // An address was not looked up, and there was no TLS.
    assert_eq!((timings.dns, timings.tls), (None, None));
    let spent: Duration = Phase::ALL.iter().filter_map(|phase| timings.phase(*phase)).sum();
    assert!(spent <= timings.total.unwrap());
}

#[tokio::test]
async fn the_receiver_sees_the_source_and_the_record_names_it() {
    let ground = Ground::new();
    let receiver = Receiver::start([Step::Read, ok()]).await;
    let attempt = ground.get(&receiver.url("/")).await;
    let connection = attempt.connection.unwrap();
    assert_eq!(receiver.peers(), [connection.source.unwrap()]);
    assert_eq!(connection.source.unwrap().ip().to_string(), SOURCE);
    assert_eq!(connection.public, Some(SOURCE.parse().unwrap()));
    assert_eq!(connection.remote, Some(receiver.address()));
    assert!(!connection.reused);
}

/// Everything that leaves, byte for byte.
#[tokio::test]
async fn what_leaves_is_what_should() {
    let agent = format!("egressd/{}", env!("CARGO_PKG_VERSION"));
    let ours = format!("User-Agent: {agent}\r\nAccept: */*\r\n");
    let rows: Vec<(&str, egressd::send::SendSpec, String)> = vec![
        ("a GET", get("http://{}/"), format!("GET / HTTP/1.1\r\nHost: {{}}\r\n{ours}\r\n")),
        (
            "a path and a query as they were parsed",
            get("http://{}/a%20b/%2e/../c?q=1&q=2&empty#fragment"),
            format!("GET /c?q=1&q=2&empty HTTP/1.1\r\nHost: {{}}\r\n{ours}\r\n"),
        ),
        ("two slashes are a path", get("http://{}//x"), format!("GET //x HTTP/1.1\r\nHost: {{}}\r\n{ours}\r\n")),
        (
            "odd characters in a query",
            get("http://{}/?a={b}|c^d`e\"<>'"),
            format!("GET /?a={{b}}|c^d`e%22%3C%3E%27 HTTP/1.1\r\nHost: {{}}\r\n{ours}\r\n").replace("{b}", "{b}"),
        ),
        (
            "a body and its length",
            post("http://{}/", "four"),
            format!("POST / HTTP/1.1\r\nHost: {{}}\r\n{ours}Content-Length: 4\r\n\r\nfour"),
        ),
        (
            "a POST without a body",
            request(Method::Post, "http://{}/", &[], None),
            format!("POST / HTTP/1.1\r\nHost: {{}}\r\n{ours}Content-Length: 0\r\n\r\n"),
        ),
        (
            "a PUT with an empty one",
            request(Method::Put, "http://{}/", &[], Some("")),
            format!("PUT / HTTP/1.1\r\nHost: {{}}\r\n{ours}Content-Length: 0\r\n\r\n"),
        ),
        (
            "a DELETE with a body",
            request(Method::Delete, "http://{}/", &[], Some("x")),
            format!("DELETE / HTTP/1.1\r\nHost: {{}}\r\n{ours}Content-Length: 1\r\n\r\nx"),
        ),
        (
            "OPTIONS names a path",
            request(Method::Options, "http://{}", &[], None),
            format!("OPTIONS / HTTP/1.1\r\nHost: {{}}\r\n{ours}\r\n"),
        ),
        (
            "the author's own agent and accept, in their order and spelling, lines of one name together",
            request(
                Method::Get,
                "http://{}/",
                &[("x-b", "1"), ("USER-agent", "mine"), ("SOAPAction", "2"), ("accept", "text/plain"), ("x-b", "3")],
                None,
            ),
            "GET / HTTP/1.1\r\nHost: {}\r\nx-b: 1\r\nx-b: 3\r\nUSER-agent: mine\r\nSOAPAction: 2\r\naccept: text/plain\r\n\r\n"
                .to_owned(),
        ),
    ];
    let ground = Plan::new().delivery("keep_alive = \"0s\"").build();
    for (name, mut spec, wanted) in rows {
        let receiver = Receiver::start([Step::Read, ok()]).await;
        let address = receiver.address().to_string();
        let shown = http(&spec).target.shown().to_owned();
        assert!(shown.starts_with("http://{}") || shown.starts_with("http://%7B%7D"), "{shown}");
        let url = shown.replacen("{}", &address, 1).replacen("%7B%7D", &address, 1);
        let To::Http(request) = &mut spec.to else { panic!("a request") };
        request.target = http(&get(&url)).target.clone();
        let attempt = ground.deliver(spec, LONG).await;
        assert_eq!(end_of(&attempt), "delivered", "{name}: {:?}", attempt.ended);
        let wanted = wanted.replacen("Host: {}", &format!("Host: {address}"), 1);
        assert_eq!(String::from_utf8_lossy(&receiver.received()[0]), wanted, "{name}");
        // The record's lines are the wire's, in its order.
        let sent = attempt.sent_headers.unwrap();
        let sent: String =
            sent.iter().map(|(name, value)| format!("{name}: {}\r\n", value.to_str().unwrap())).collect();
        let head = wanted.split_once("\r\n\r\n").expect("a head").0.to_lowercase() + "\r\n";
        assert!(head.ends_with(&format!("http/1.1\r\n{}", sent.to_lowercase())), "{name}: {sent}");
    }
}

#[tokio::test]
async fn an_answer_to_head_has_no_body_whatever_it_declares() {
    let ground = Ground::new();
    let receiver = Receiver::start([Step::Read, head("content-length: 500\r\n")]).await;
    let attempt = ground.deliver(request(Method::Head, &receiver.url("/"), &[], None), LONG).await;
    assert_eq!(end_of(&attempt), "delivered");
    let response = attempt.response.unwrap();
    assert_eq!((response.declared, response.body_total, response.body_truncated), (Some(500), 0, false));
}

#[tokio::test]
async fn what_the_policy_blocks_reaches_nobody() {
    let ground = Plan { opened: Vec::new(), ..Plan::new() }.build();
    let receiver = Receiver::start([Step::Read, ok()]).await;
    let port = receiver.port();
    for (url, code) in [
        (receiver.url("/"), Code::PolicyAddress),
        (format!("http://localhost:{port}/"), Code::PolicyName),
        (format!("http://2130706433:{port}/"), Code::PolicyAddress),
        (format!("http://[::ffff:127.0.0.1]:{port}/"), Code::PolicyAddress),
        (format!("http://user:pw@127.0.0.1:{port}/"), Code::PolicyUrl),
        ("http://169.254.169.254/latest/meta-data".to_owned(), Code::PolicyMetadata),
        ("http://127.0.0.1:22/".to_owned(), Code::PolicyPort),
        ("ftp://127.0.0.1/".to_owned(), Code::PolicyUrl),
    ] {
        let attempt = ground.get(&url).await;
        assert_eq!(attempt.ended.outcome, Outcome::Blocked, "{url}");
        assert_eq!(attempt.ended.error.map(|error| error.code), Some(code), "{url}");
        assert!(attempt.sent_headers.is_none() && attempt.response.is_none(), "{url}");
    }
    assert_eq!(receiver.peers(), []);
}
