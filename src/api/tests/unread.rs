//! Answers that nobody reads.

#![allow(clippy::disallowed_methods, reason = "a test's own client, towards its own listener")]

use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{advance, timeout};

use super::*;
use crate::api::budget::Shares;
use crate::api::seats::{Bounds, Seat, Seats, Verdict};

const CLIENTS: &[(&str, &str, &str)] = &[
    ("acme", "acme", "submit read"),
    ("other", "other", "submit read"),
    ("nodes", "*", "submit read"),
    ("operator", "*", "submit read operate"),
];
/// Of which a tenant has 64 MiB, half of it for reading.
const SHARES: Shares = Shares { all: 256 << 20, reserve: 32 << 20, one: 64 << 20, reading_one_in: 2 };
const PAGE: &str = "/v1/sends?limit=200";

fn as_client(name: &str, tenant: &str, method: &str, path: &str, body: &str) -> Request<Body> {
    let token = format!("Bearer {name}");
    request(method, path, &[("authorization", &token), ("egressd-tenant", tenant)], body)
}

/// A call of this many sends of 30 KiB each.
fn large_call(sends: usize) -> String {
    let headers: Vec<String> = (0..10).map(|n| format!("\"x-{n}\":\"{}\"", "v".repeat(3000))).collect();
    let send = format!(r#"{{"method":"GET","url":"https://example.com/","headers":{{{}}}}}"#, headers.join(","));
    format!("[{}]", vec![send; sends].join(","))
}

async fn large_sends(desk: &Desk, tenant: &str, sends: usize) {
    let answer = desk.request(as_client("nodes", tenant, "POST", "/v1/sends", &large_call(sends))).await;
    assert_eq!(answer.status, 202, "{:?}", answer.body);
}

impl Desk {
    /// Pages as this client gets them until there is no room, and none of them read.
    async fn unread(&self, client: &str, tenant: &str) -> Vec<Response> {
        let mut unread = Vec::new();
        loop {
            let call = as_client(client, tenant, "GET", PAGE, "");
            let response = self.router.clone().oneshot(call).await.expect("the router answers everything");
            if response.status() != 200 {
                assert_eq!(response.status(), 503);
                assert_eq!(response.headers()["retry-after"], "1");
                let body = response.into_body().collect().await.expect("whole").to_bytes();
                assert!(String::from_utf8_lossy(&body).contains("\"code\":\"node_full\""), "{body:?}");
                return unread;
            }
            unread.push(response);
            assert!(unread.len() < 30, "nothing bounds what is held");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn pages_that_nobody_reads_take_their_readers_share_and_no_more() {
    let desk = Desk::sharing(SHARES, &clients(CLIENTS));
    for _ in 0..2 {
        large_sends(&desk, "acme", 100).await;
    }
    desk.request(as_client("other", "other", "POST", "/v1/sends", SEND)).await.ok(202);

    let unread = desk.unread("acme", "").await;
    let most = SHARES.one / 2 / (200 * 30_000);
    assert!((most / 2..=most).contains(&unread.len()), "{} pages", unread.len());

    // Others read, and it sends as before.
    desk.request(as_client("other", "", "GET", PAGE, "")).await.ok(200);
    large_sends(&desk, "acme", 1).await;
    desk.request(as_client("acme", "", "POST", "/v1/sends", SEND)).await.ok(202);
    // Who may name any tenant has twice as much, and takes nothing of an operator's.
    let theirs = desk.unread("nodes", "acme").await;
    assert!((most..=2 * most).contains(&theirs.len()), "{} pages", theirs.len());
    desk.request(as_client("operator", "acme", "GET", PAGE, "")).await.ok(200);
    desk.request(as_client("other", "", "GET", PAGE, "")).await.ok(200);

    drop(theirs);
    let held = unread.len();
    drop(unread);
    assert_eq!(desk.unread("acme", "").await.len(), held);
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_answer_has_no_room_sends_nothing() {
    let desk = Desk::sharing(SHARES, &clients(CLIENTS));
    let call = large_call(100);
    let (mut unread, waiting) =
        (Vec::new(), || desk.intake.tenants(&crate::store::Reach::All).values().map(|load| load.queued).sum::<u64>());
    let refused = loop {
        let before = waiting();
        let post = as_client("acme", "", "POST", "/v1/sends", &call);
        let response = desk.router.clone().oneshot(post).await.expect("the router answers everything");
        if response.status() != 202 {
            assert_eq!(waiting(), before);
            break response;
        }
        unread.push(response);
        assert!(unread.len() * call.len() < SHARES.one, "nothing bounds what is held");
    };
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (503, &HeaderValue::from_static("1")));
    assert!(unread.len() * call.len() > SHARES.one / 2, "{} answers", unread.len());

    // Small calls and others' are taken, also from one who sends for both.
    desk.request(as_client("acme", "", "POST", "/v1/sends", SEND)).await.ok(202);
    large_sends(&desk, "other", 100).await;
    drop(unread);
    desk.request(as_client("acme", "", "POST", "/v1/sends", &call)).await.ok(202);
}

/// The paused clock goes on when every task waits.
async fn settled() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_body_counts_from_its_first_byte_for_whoever_sends_it() {
    let desk = Desk::sharing(SHARES, &clients(CLIENTS));
    // Bodies that never end, each of a size that would not be worth counting by itself.
    let unfinished = |client: &str| {
        let mut call = as_client(client, "acme", "POST", "/v1/sends", "");
        call.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
        let begun = Ok::<_, std::convert::Infallible>(Bytes::from(vec![b' '; 63 * 1024]));
        let silence = futures_util::stream::pending();
        *call.body_mut() =
            Body::from_stream(futures_util::StreamExt::chain(futures_util::stream::iter([begun]), silence));
        tokio::spawn(desk.router.clone().oneshot(call))
    };
    let most = SHARES.one / (63 * 1024);
    let calls: Vec<_> = (0..most + 100).map(|_| unfinished("acme")).collect();
    settled().await;
    let refused = calls.iter().filter(|call| call.is_finished()).count();
    assert!(refused >= 100 && refused < most, "{refused} of {} were refused", calls.len());
    desk.request(as_client("acme", "", "GET", "/v1/sends", "")).await.problem(503, "node_full");
    let large = format!(r#"{{"method":"POST","url":"https://example.com/","data":"{}"}}"#, "x".repeat(1_000_000));
    for client in ["other", "nodes", "operator"] {
        let tenant = if client == "other" { "" } else { "acme" };
        desk.request(as_client(client, tenant, "POST", "/v1/sends", &large)).await.ok(202);
    }
    for call in calls {
        call.abort();
        let _ = call.await;
    }
    desk.request(as_client("acme", "", "POST", "/v1/sends", &large)).await.ok(202);
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_holds_an_id_and_little_more() {
    let desk = Desk::sharing(SHARES, &clients(CLIENTS));
    let id = Desk::accepted(&desk.request(as_client("acme", "", "POST", "/v1/sends", SEND)).await);
    struct Witness(std::sync::Arc<()>);
    impl Clone for Witness {
        fn clone(&self) -> Self {
            Self(self.0.clone())
        }
    }
    for path in [format!("/v1/sends/{id}?wait=30"), "/v1/tail".to_owned()] {
        let whole = std::sync::Arc::new(());
        let mut call = as_client("acme", "", "GET", &path, "");
        call.extensions_mut().insert(Witness(whole.clone()));
        let waiting = tokio::spawn(desk.router.clone().oneshot(call));
        settled().await;
        assert_eq!(std::sync::Arc::strong_count(&whole), 1, "{path} keeps its call");
        waiting.abort();
    }
    // And they are counted: no number of them takes more than a share.
    let most = SHARES.one / 2 / limits::API_CALL_BYTES;
    let path = format!("/v1/sends/{id}?wait=30");
    let mut waits: Vec<_> = (0..most + 10)
        .map(|_| tokio::spawn(desk.router.clone().oneshot(as_client("acme", "", "GET", &path, ""))))
        .collect();
    settled().await;
    let refused = waits.iter().filter(|wait| wait.is_finished()).count();
    assert!((10..most / 2).contains(&refused), "{refused}");
    desk.answer("acme", id, 200).await;
    for wait in waits.drain(..) {
        let status = wait.await.expect("no panic").expect("an answer").status();
        assert!(status == 200 || status == 503, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_is_whole_however_large() {
    let desk = Desk::new();
    large_sends(&desk, "default", 60).await;
    let page = desk.get(PAGE).await;
    assert_eq!(page.header("content-type"), "application/json");
    assert_eq!(page.ok(200)["sends"].as_array().map(Vec::len), Some(60));
}

/// A connection over HTTP/2 to a desk.
struct Connection<'a> {
    desk: &'a Desk,
    place: Seat,
}

impl<'a> Connection<'a> {
    fn to(desk: &'a Desk) -> Self {
        Self { desk, place: Seats::new(Bounds::default()).enter("192.0.2.1".parse().expect("an address")) }
    }

    async fn get(&self, path: &str) -> Body {
        let mut call = request("GET", path, &[], "");
        *call.version_mut() = http::Version::HTTP_2;
        call.extensions_mut().insert(self.place.presence().clone());
        self.desk.router.clone().oneshot(call).await.expect("an answer").into_body()
    }

    fn is_closed(&self) -> bool {
        self.place.presence().verdict(clock::monotonic()) == Verdict::Close
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_over_http_2_of_which_nothing_is_taken_ends_its_connection() {
    let desk = Desk::new();
    large_sends(&desk, "default", 60).await;
    let id = Desk::accepted(&desk.post("/v1/sends", SEND).await);
    let almost = limits::API_WRITE_STALL - Duration::from_secs(1);

    // Slowly, but to the end.
    let connection = Connection::to(&desk);
    let mut body = connection.get(PAGE).await;
    for _ in 0..5 {
        body.frame().await.expect("more").expect("a frame");
        advance(almost).await;
        assert!(!connection.is_closed(), "it is being read");
    }
    drop(body.collect().await.expect("whole").to_bytes());
    advance(limits::API_WRITE_STALL * 2).await;
    assert!(!connection.is_closed(), "it was read");

    // However small it is, and whoever makes it.
    for path in [PAGE, &format!("/v1/sends/{id}"), "/v1/sends/nope", "/", "/openapi.json", "/v1/tail", "/nope"] {
        let connection = Connection::to(&desk);
        let unread = connection.get(path).await;
        advance(almost).await;
        assert!(!connection.is_closed(), "{path}");
        advance(Duration::from_secs(1)).await;
        assert!(connection.is_closed(), "{path} was left");
        drop(unread);
        assert!(!connection.is_closed(), "{path}: nothing is held");

        // All but what a connection has taken and cannot send on.
        let connection = Connection::to(&desk);
        let mut body = connection.get(path).await;
        let frame = body.frame().await.expect("a frame").expect("a frame");
        advance(limits::API_WRITE_STALL).await;
        assert!(connection.is_closed(), "{path} was left");
        drop((frame, body));
    }

    // A tail that has nothing to tell is not one that nobody reads.
    let connection = Connection::to(&desk);
    let mut tail = connection.get("/v1/tail").await;
    tail.frame().await.expect("its beginning").expect("a frame");
    timeout(limits::TAIL_KEEP_ALIVE / 2, tail.frame()).await.expect_err("nothing finishes");
    advance(limits::API_WRITE_STALL * 3).await;
    assert!(!connection.is_closed());
}

#[tokio::test(start_paused = true)]
async fn a_window_that_stays_shut_ends_a_connection() {
    let desk = Desk::new();
    large_sends(&desk, "default", 60).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (_closing, closed) = watch::channel(false);
    tokio::spawn(serve::serve(listener, desk.router.clone(), None, closed));

    for path in [PAGE, "/v1/sends/nope", "/"] {
        let stream = TcpStream::connect(address).await.expect("it listens");
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(1);
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.expect("HTTP/2");
        let connection = tokio::spawn(connection);
        let uri = format!("http://{address}{path}");
        let call = Request::builder().uri(uri).body(Empty::<Bytes>::new()).expect("a request");
        let response = sender.send_request(call).await.expect("an answer");
        let ended = timeout(limits::API_WRITE_STALL * 2, connection).await.expect("the connection was closed");
        drop((ended, response));
    }
}
