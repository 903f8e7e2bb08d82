//! Answers that nobody reads.

#![allow(clippy::disallowed_methods, reason = "a test's own client, towards its own listener")]

use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::*;
use crate::api::answers::Hangup;

const CLIENTS: &[(&str, &str, &str)] = &[
    ("acme", "acme", "submit read"),
    ("other", "other", "submit read"),
    ("nodes", "*", "submit read"),
    ("operator", "*", "submit read operate"),
];
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
            assert!(unread.len() < 20, "nothing bounds what is held");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn pages_that_nobody_reads_take_their_readers_share_and_no_more() {
    let desk = Desk::with(&clients(CLIENTS));
    for _ in 0..2 {
        large_sends(&desk, "acme", 100).await;
    }
    desk.request(as_client("other", "other", "POST", "/v1/sends", SEND)).await.ok(202);

    let unread = desk.unread("acme", "").await;
    let page = 200 * 30_000;
    let most = limits::API_ANSWERS_BYTES as usize / limits::API_ANSWER_HOLDERS_MIN / page;
    assert!((most / 2..=most).contains(&unread.len()), "{} pages", unread.len());

    // Others read, operators too, and it sends as before.
    desk.request(as_client("other", "", "GET", PAGE, "")).await.ok(200);
    large_sends(&desk, "acme", 1).await;
    desk.request(as_client("acme", "", "POST", "/v1/sends", SEND)).await.ok(202);
    // All who may name any tenant are one.
    let theirs = desk.unread("nodes", "acme").await;
    assert!((most / 2..=most).contains(&theirs.len()), "{} pages", theirs.len());
    desk.request(as_client("operator", "acme", "GET", PAGE, "")).await.problem(503, "node_full");
    desk.request(as_client("other", "", "GET", PAGE, "")).await.ok(200);

    drop(theirs);
    desk.request(as_client("operator", "acme", "GET", PAGE, "")).await.ok(200);
    let held = unread.len();
    drop(unread);
    assert_eq!(desk.unread("acme", "").await.len(), held);
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_answer_has_no_room_sends_nothing() {
    let desk = Desk::with(&clients(CLIENTS));
    let call = large_call(400);
    let most = limits::API_RECEIPTS_BYTES as usize / limits::API_ANSWER_HOLDERS_MIN / call.len();
    let mut unread = Vec::new();
    for _ in 0..most {
        let post = as_client("acme", "", "POST", "/v1/sends", &call);
        let response = desk.router.clone().oneshot(post).await.expect("the router answers everything");
        assert_eq!(response.status(), 202);
        unread.push(response);
    }
    let waiting = || desk.intake.tenants(&crate::store::Reach::All).values().map(|load| load.queued).sum::<u64>();
    let before = waiting();
    let refused = desk.request(as_client("acme", "", "POST", "/v1/sends", &call)).await;
    refused.problem(503, "node_full");
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(waiting(), before);

    // Small calls and others' are taken, also from one who sends for both.
    desk.request(as_client("acme", "", "POST", "/v1/sends", SEND)).await.ok(202);
    large_sends(&desk, "other", 100).await;
    drop(unread);
    large_sends(&desk, "acme", 100).await;
}

#[tokio::test(start_paused = true)]
async fn a_page_is_whole_however_large() {
    let desk = Desk::new();
    large_sends(&desk, "default", 60).await;
    let page = desk.get(PAGE).await;
    assert_eq!(page.header("content-type"), "application/json");
    assert_eq!(page.ok(200)["sends"].as_array().map(Vec::len), Some(60));
}

#[tokio::test(start_paused = true)]
async fn an_answer_over_http_2_of_which_nothing_is_taken_ends_its_connection() {
    let desk = Desk::new();
    large_sends(&desk, "default", 60).await;
    let hangup = Hangup::default();
    let ask = || {
        let mut call = request("GET", PAGE, &[], "");
        call.extensions_mut().insert(hangup.clone());
        desk.router.clone().oneshot(call)
    };
    let almost = limits::API_WRITE_STALL - Duration::from_secs(1);

    // Slowly, but to the end.
    let mut body = ask().await.expect("an answer").into_body();
    for _ in 0..5 {
        body.frame().await.expect("more").expect("a frame");
        timeout(almost, hangup.due()).await.expect_err("it is being read");
    }
    let last = body.collect().await.expect("whole").to_bytes();
    timeout(limits::API_WRITE_STALL * 3, hangup.due()).await.expect_err("it was read");
    drop(last);

    // All but what a connection has taken and cannot send on.
    let mut body = ask().await.expect("an answer").into_body();
    let mut last = None;
    while let Some(frame) = body.frame().await {
        last = Some(frame.expect("a frame"));
    }
    drop(body);
    timeout(limits::API_WRITE_STALL * 2, hangup.due()).await.expect("it was left");
    drop(last);

    let _unread = ask().await.expect("an answer");
    timeout(limits::API_WRITE_STALL * 2, hangup.due()).await.expect("it was left");
}

#[tokio::test(start_paused = true)]
async fn a_window_that_stays_shut_ends_a_connection() {
    let desk = Desk::new();
    large_sends(&desk, "default", 60).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (_closing, closed) = watch::channel(false);
    tokio::spawn(serve::serve(listener, desk.router.clone(), None, closed));

    let stream = TcpStream::connect(address).await.expect("it listens");
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(1);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let uri = format!("http://{address}{PAGE}");
    let call = Request::builder().uri(uri).body(Empty::<Bytes>::new()).expect("a request");
    let response = sender.send_request(call).await.expect("an answer");
    assert_eq!(response.status(), 200);
    let ended = timeout(limits::API_WRITE_STALL * 3, connection).await.expect("the connection was closed");
    drop((ended, response));
}
