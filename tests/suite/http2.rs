//! HTTP/2, where TLS settles on it: the same outcomes, one request at a time, and none made twice whatever the
//! receiver calls its refusal.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use bytes::Bytes;
use egressd::send::Method;
use h2::{Reason, server::SendResponse};
use http::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::ground::{Ground, LONG, Plan, SHORT, end_of, get, post, request};
use crate::support::name_server::NameServer;
use crate::support::tls::{Authority, Leaf};

const NAME: &str = "hook.example.com";

/// What a receiver does with each stream.
#[derive(Clone, Copy, Debug)]
enum Script {
    /// 200, echoing the body.
    Echo,
    Status(u16),
    Reset(Reason),
    /// The head, some of the body, and then a reset.
    ResetWithin,
    GoAway,
    /// Never answers.
    Hold,
    /// The head, and then nothing.
    HoldWithin,
    Endless,
    /// 1xx without end.
    Informational,
    /// A head of this many bytes.
    Head(usize),
    /// A head of this many lines.
    Lines(usize),
    /// Answers a request with a body before it has come, and never takes it in; with some bytes, or with the head alone.
    Untaken {
        bytes: &'static [u8],
    },
    /// Neither takes in a body nor answers.
    Deaf,
}

struct Receiver {
    port: u16,
    requests: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Receiver {
    async fn start(acceptor: TlsAcceptor, script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (requests, connections) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (seen, opened) = (requests.clone(), connections.clone());
        let task = tokio::spawn(async move {
            let mut tasks = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                opened.fetch_add(1, Relaxed);
                let (acceptor, seen) = (acceptor.clone(), seen.clone());
                tasks.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    if stream.get_ref().1.alpn_protocol() == Some(b"http/1.1") {
                        seen.fetch_add(1, Relaxed);
                        return http1(stream).await;
                    }
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    while let Some(Ok((request, answer))) = connection.accept().await {
                        seen.fetch_add(1, Relaxed);
                        if matches!(script, Script::GoAway) {
                            connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                            continue;
                        }
                        tokio::spawn(serve(request, answer, script));
                    }
                });
            }
        });
        Self { port, requests, connections, task }
    }
}

/// Takes a request that comes in one piece, and answers it.
async fn http1(mut stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>) {
    let _ = stream.read(&mut [0; 4096]).await;
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let _ = stream.read(&mut [0; 4096]).await;
}

async fn serve(request: Request<h2::RecvStream>, mut answer: SendResponse<Bytes>, script: Script) {
    let (head, mut body) = request.into_parts();
    if let Script::Untaken { bytes } = script {
        let mut stream = answer.send_response(Response::new(()), bytes.is_empty()).unwrap();
        if !bytes.is_empty() {
            stream.send_data(Bytes::from_static(bytes), true).unwrap();
        }
        // Letting go of it would tell the other side that no more of it is wanted.
        std::future::pending::<()>().await;
        drop(body);
        return;
    }
    if matches!(script, Script::Deaf) {
        std::future::pending::<()>().await;
        drop((body, answer));
        return;
    }
    let mut received = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        received.extend_from_slice(&data);
    }
    let response = |status: u16| Response::builder().status(status).body(()).unwrap();
    match script {
        Script::Echo => {
            let mut response = response(200);
            let target = head.uri.to_string().parse().unwrap();
            response.headers_mut().insert("x-target", target);
            response.headers_mut().insert("x-host", head.headers.contains_key("host").to_string().parse().unwrap());
            let mut stream = answer.send_response(response, false).unwrap();
            stream.send_data(received.into(), true).unwrap();
        }
        Script::Status(status) => drop(answer.send_response(response(status), true)),
        Script::Reset(reason) => answer.send_reset(reason),
        Script::ResetWithin => {
            let mut stream = answer.send_response(response(200), false).unwrap();
            stream.send_data(Bytes::from_static(b"half"), false).unwrap();
            // A reset takes back what has not left yet.
            tokio::time::sleep(SHORT / 6).await;
            stream.send_reset(Reason::INTERNAL_ERROR);
        }
        Script::HoldWithin => {
            let stream = answer.send_response(response(200), false).unwrap();
            std::future::pending::<()>().await;
            drop(stream);
        }
        Script::Endless => {
            let mut stream = answer.send_response(response(200), false).unwrap();
            loop {
                stream.reserve_capacity(16 * 1024);
                match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
                    Some(Ok(room)) => {
                        if stream.send_data(Bytes::from(vec![b'z'; room]), false).is_err() {
                            return;
                        }
                    }
                    _ => return,
                }
            }
        }
        Script::Informational => loop {
            if answer.send_informational(response(103)).is_err() {
                return;
            }
            tokio::task::yield_now().await;
        },
        Script::Head(bytes) => {
            let mut response = response(200);
            for at in 0..bytes / 1000 {
                let name: http::HeaderName = format!("x-{at}").parse().unwrap();
                response.headers_mut().insert(name, "v".repeat(950).parse().unwrap());
            }
            drop(answer.send_response(response, true));
        }
        Script::Lines(lines) => {
            let mut response = response(200);
            for _ in 0..lines {
                response.headers_mut().append("x", "v".parse().unwrap());
            }
            drop(answer.send_response(response, true));
        }
        Script::Hold | Script::GoAway | Script::Untaken { .. } | Script::Deaf => {
            std::future::pending::<()>().await;
            drop(answer);
        }
    }
}

async fn ground() -> (Ground, NameServer, Authority) {
    let authority = Authority::new();
    let names = NameServer::with_addresses(60, &["127.0.0.1"]).await;
    let ground =
        Plan::new().name_server(names.address()).trust(&authority).limits("response_body_read = \"256KiB\"").build();
    (ground, names, authority)
}

#[tokio::test]
async fn every_end_of_a_stream_is_an_outcome_and_the_request_is_made_once() {
    let (ground, _names, authority) = ground().await;
    for (script, end, total) in [
        (Script::Status(200), "delivered", LONG),
        (Script::Status(302), "rejected", LONG),
        (Script::Status(503), "rejected", LONG),
        (Script::Endless, "delivered", LONG),
        // Even the refusals that promise that nothing was done.
        (Script::Reset(Reason::REFUSED_STREAM), "failed connection_refused wait", LONG),
        (Script::Reset(Reason::INTERNAL_ERROR), "failed connection_reset wait", LONG),
        (Script::Reset(Reason::HTTP_1_1_REQUIRED), "failed protocol_error wait", LONG),
        (Script::ResetWithin, "failed connection_reset read", LONG),
        (Script::GoAway, "failed connection_reset wait", LONG),
        (Script::Informational, "failed protocol_error wait", LONG),
        (Script::Head(32_000), "delivered", LONG),
        // Just above the limit, above what the protocol's layer takes, and beyond all measure.
        (Script::Head(70_000), "failed response_headers_too_large wait", LONG),
        (Script::Head(200_000), "failed response_headers_too_large wait", LONG),
        (Script::Head(1_000_000), "failed response_headers_too_large wait", LONG),
        (Script::Lines(256), "delivered", LONG),
        (Script::Lines(257), "failed response_headers_too_large wait", LONG),
        (Script::Hold, "failed timeout wait", SHORT),
        (Script::HoldWithin, "failed timeout read", SHORT),
    ] {
        let acceptor = authority.server(&[NAME], Leaf::Good, &["h2", "http/1.1"]);
        let receiver = Receiver::start(acceptor, script).await;
        let attempt = ground.deliver(post(&format!("https://{NAME}:{}/", receiver.port), "some bytes"), total).await;
        assert_eq!(end_of(&attempt), end, "{script:?}: {:?}", attempt.ended);
        assert_eq!(receiver.requests.load(Relaxed), 1, "{script:?}");
        assert_eq!(receiver.connections.load(Relaxed), 1, "{script:?}");
    }
}

#[tokio::test]
async fn a_request_over_http2_says_what_one_over_http1_would() {
    let (ground, _names, authority) = ground().await;
    let receiver = Receiver::start(authority.server(&[NAME], Leaf::Good, &["h2"]), Script::Echo).await;
    let url = format!("https://{NAME}:{}/path?q=1", receiver.port);
    let body = "x".repeat(100_000);
    let attempt = ground.deliver(post(&url, &body), LONG).await;
    assert_eq!(end_of(&attempt), "delivered", "{:?}", attempt.ended);
    let response = attempt.response.unwrap();
    assert_eq!((response.version, response.body_total), ("HTTP/2", 100_000));
    let header = |name: &str| {
        response.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.to_str().unwrap().to_owned())
    };
    assert_eq!(header("x-target"), Some(url));
    // `:authority` says it; a second one in a header could say something else.
    assert_eq!(header("x-host").as_deref(), Some("false"));
    assert_eq!(attempt.connection.unwrap().tls.unwrap().alpn.as_deref(), Some("h2"));
    let names: Vec<_> = attempt.sent_headers.unwrap().iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(names, ["host", "user-agent", "accept", "content-length"]);
}

#[tokio::test]
async fn an_http2_connection_is_reused_one_request_at_a_time() {
    let (ground, _names, authority) = ground().await;
    let receiver = Receiver::start(authority.server(&[NAME], Leaf::Good, &["h2"]), Script::Echo).await;
    let url = format!("https://{NAME}:{}/", receiver.port);
    assert_eq!(end_of(&ground.get(&url).await), "delivered");
    // Real time: its tasks need turns of their own to see that the connection stays open.
    while !{
        ground.deliverer.tend();
        let attempt = ground.deliver(get(&url), LONG).await;
        assert_eq!(end_of(&attempt), "delivered", "{:?}", attempt.ended);
        attempt.connection.unwrap().reused
    } {
        tokio::time::sleep(std::time::Duration::from_millis(260)).await;
        assert!(receiver.connections.load(Relaxed) < 10);
    }
}

/// What is left of a request would keep the next one from leaving, for as long as the receiver likes.
#[tokio::test]
async fn a_connection_on_which_some_of_a_request_was_left_unsent_carries_no_other() {
    let (ground, _names, authority) = ground().await;
    // A receiver gives 65,535 bytes of a stream and of the connection (RFC 9113 section 6.9.2).
    for (answer, bytes, kept) in [
        (&b""[..], 0, true),
        (b"", 1_000, true),
        (b"ok", 60_000, true),
        (b"", 65_536, false),
        (b"ok", 65_536, false),
        (b"", 300_000, false),
        (b"ok", 300_000, false),
    ] {
        let acceptor = authority.server(&[NAME], Leaf::Good, &["h2"]);
        let receiver = Receiver::start(acceptor, Script::Untaken { bytes: answer }).await;
        let url = format!("https://{NAME}:{}/", receiver.port);
        let reused = async |spec| {
            let attempt = ground.deliver(spec, LONG).await;
            assert_eq!(end_of(&attempt), "delivered", "{bytes} {:?}", attempt.ended);
            attempt.connection.unwrap().reused
        };
        // Real time: the connection's tasks need turns of their own to see that it stays open.
        while !reused(get(&url)).await {
            tokio::time::sleep(std::time::Duration::from_millis(260)).await;
            ground.deliverer.tend();
            assert!(receiver.connections.load(Relaxed) < 10);
        }
        assert!(reused(post(&url, &"x".repeat(bytes))).await);
        assert_eq!(reused(get(&url)).await, kept, "{bytes} bytes, answered with {answer:?}");
    }
}

#[tokio::test]
async fn a_receiver_that_wants_http_1_1_is_offered_nothing_else_by_the_tenant_that_met_it() {
    let authority = Authority::new();
    let names = NameServer::with_addresses(60, &["127.0.0.1"]).await;
    let ground = Plan::new().name_server(names.address()).trust(&authority).build();
    let acceptor = authority.server(&[NAME], Leaf::Good, &["h2", "http/1.1"]);
    let receiver = Receiver::start(acceptor, Script::Reset(Reason::HTTP_1_1_REQUIRED)).await;
    let url = format!("https://{NAME}:{}/", receiver.port);
    let mut ends = Vec::new();
    for tenant in ["acme", "acme", "acme", "other", "other"] {
        let attempt = ground.deliver_for(tenant, post(&url, "x"), LONG).await;
        let alpn = attempt.connection.unwrap().tls.unwrap().alpn.unwrap();
        ends.push(format!("{tenant} {} {alpn}", attempt.ended.outcome.label()));
    }
    let expected = [
        "acme failed h2",
        "acme delivered http/1.1",
        "acme delivered http/1.1",
        "other failed h2",
        "other delivered http/1.1",
    ];
    assert_eq!(ends, expected);
    // None was made twice for it.
    assert_eq!(receiver.requests.load(Relaxed), 5);
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Reads a whole request, answers with these bytes, and waits for the other side to go.
async fn answers_with(listener: TcpListener, acceptor: TlsAcceptor, answer: Vec<u8>, then_close: bool) {
    let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
    stream.write_all(&frame(4, 0, 0, &[])).await.unwrap();
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await.unwrap();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        stream.read_exact(&mut payload).await.unwrap();
        // DATA or HEADERS with END_STREAM.
        if head[3] < 2 && head[4] & 1 == 1 {
            break;
        }
    }
    stream.write_all(&[frame(4, 1, 0, &[]), answer].concat()).await.unwrap();
    stream.flush().await.unwrap();
    if then_close {
        let _ = stream.shutdown().await;
    }
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

#[tokio::test]
async fn an_answer_is_whole_where_its_frames_say_so_and_a_refusal_is_known_from_them() {
    let (ground, _names, authority) = ground().await;
    // HPACK (RFC 7541): `:status: 200` is entry 8 of the static table, `content-length` the name of entry 28.
    let head = |flags: u8, more: &[u8]| frame(1, 4 | flags, 1, &[&[0x88], more].concat());
    let length = |length: &str| [&[0x0f, 0x0d, u8::try_from(length.len()).unwrap()], length.as_bytes()].concat();
    let data = |flags: u8| frame(0, flags, 1, b"abc");
    let reset = |reason: Reason| frame(3, 0, 1, &u32::from(reason).to_be_bytes());
    let goaway = |last: u32| frame(7, 0, 0, &[last.to_be_bytes(), [0; 4]].concat());
    let trailers = |flags: u8| frame(1, 4 | flags, 1, &[0x00, 1, b'x', 1, b'y']);
    let no_error = || reset(Reason::NO_ERROR);
    for (name, frames, close, end, processed) in [
        ("END_STREAM", vec![head(0, &[]), data(1)], false, "delivered", None),
        ("END_STREAM with the head", vec![head(1, &[])], false, "delivered", None),
        ("HEAD, and the length of what a GET would get", vec![head(1, &length("500"))], false, "delivered", None),
        (
            "END_STREAM, and no more wanted of the request",
            vec![head(0, &[]), data(1), no_error()],
            false,
            "delivered",
            None,
        ),
        ("the length that came", vec![head(0, &length("3")), data(1), no_error()], false, "delivered", None),
        ("trailers", vec![head(0, &[]), data(0), trailers(1)], false, "delivered", None),
        ("END_STREAM, and the end of the connection", vec![head(0, &[]), data(1), goaway(1)], true, "delivered", None),
        (
            "NO_ERROR within a length",
            vec![head(0, &length("10")), data(0), no_error()],
            false,
            "failed connection_reset read",
            Some("yes"),
        ),
        (
            "NO_ERROR without a length",
            vec![head(0, &[]), data(0), no_error()],
            false,
            "failed connection_reset read",
            Some("yes"),
        ),
        (
            "NO_ERROR after the length",
            vec![head(0, &length("3")), data(0), no_error()],
            false,
            "failed connection_reset read",
            Some("yes"),
        ),
        ("NO_ERROR after the head", vec![head(0, &[]), no_error()], false, "failed connection_reset read", Some("yes")),
        (
            "another reset within",
            vec![head(0, &[]), data(0), reset(Reason::CANCEL)],
            false,
            "failed connection_reset read",
            Some("yes"),
        ),
        (
            "refused within",
            vec![head(0, &[]), reset(Reason::REFUSED_STREAM)],
            false,
            "failed connection_reset read",
            Some("yes"),
        ),
        (
            "less than the length",
            vec![head(0, &length("10")), data(1)],
            false,
            "failed protocol_error read",
            Some("yes"),
        ),
        (
            "more than the length",
            vec![head(0, &length("1")), data(1)],
            false,
            "failed protocol_error read",
            Some("yes"),
        ),
        ("closed within", vec![head(0, &[]), data(0)], true, "failed connection_closed read", Some("yes")),
        ("closed before", vec![], true, "failed connection_closed wait", Some("maybe")),
        ("a GOAWAY that takes it in", vec![goaway(1)], true, "failed connection_closed wait", Some("maybe")),
        ("a GOAWAY that leaves it out", vec![goaway(0)], true, "failed connection_closed wait", Some("no")),
        ("REFUSED_STREAM", vec![reset(Reason::REFUSED_STREAM)], false, "failed connection_refused wait", Some("no")),
        ("HTTP_1_1_REQUIRED", vec![reset(Reason::HTTP_1_1_REQUIRED)], false, "failed protocol_error wait", Some("no")),
        ("INTERNAL_ERROR", vec![reset(Reason::INTERNAL_ERROR)], false, "failed connection_reset wait", Some("maybe")),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = authority.server(&[NAME], Leaf::Good, &["h2"]);
        let receiver = tokio::spawn(answers_with(listener, acceptor, frames.concat(), close));
        let url = format!("https://{NAME}:{port}/");
        let spec =
            if name.starts_with("HEAD") { request(Method::Head, &url, &[], None) } else { post(&url, "some bytes") };
        let attempt = ground.deliver(spec, LONG).await;
        assert_eq!(end_of(&attempt), end, "{name}: {:?}", attempt.ended);
        let error = attempt.ended.error;
        assert_eq!(error.as_ref().map(|error| error.processed.label()), processed, "{name}: {error:?}");
        if let Some(error) = error {
            let known = error.processed.label() != "maybe";
            assert_eq!(error.message.contains("not known"), !known, "{name}: {}", error.message);
            assert_eq!(
                error.message.contains("not handled"),
                error.processed.label() == "no",
                "{name}: {}",
                error.message
            );
        }
        if end.ends_with("read") {
            let response = attempt.response.expect("its head came");
            assert!(response.status == 200 && response.body_truncated, "{name}");
        }
        receiver.abort();
    }
}

/// What TLS and HTTP/2 write beside a body is more than what a receiver's window holds back of it.
#[tokio::test]
async fn a_request_of_which_the_window_holds_back_a_part_is_not_said_to_have_left_whole() {
    let (ground, _names, authority) = ground().await;
    for (bytes, phase) in
        [(60_000, "wait"), (65_536, "write"), (65_700, "write"), (66_500, "write"), (300_000, "write")]
    {
        let acceptor = authority.server(&[NAME], Leaf::Good, &["h2"]);
        let receiver = Receiver::start(acceptor, Script::Deaf).await;
        let url = format!("https://{NAME}:{}/", receiver.port);
        let attempt = ground.deliver(post(&url, &"x".repeat(bytes)), SHORT).await;
        assert_eq!(end_of(&attempt), format!("failed timeout {phase}"), "{bytes}: {:?}", attempt.ended);
        let message = attempt.ended.error.expect("out of time").message;
        assert_eq!(message.contains("has the whole request"), phase == "wait", "{bytes}: {message}");
    }
}
