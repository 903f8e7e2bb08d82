//! Bodies that never end, each too small to be worth a thought, in bulk: what the process takes for them stays within
//! what the README says, and others are answered.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::node::{Node, PATIENCE, alone, call};
use crate::strangers::client_of;

/// What comes of each.
const BODY: usize = 63 * 1024;
/// What the README says, in KiB: one tenant's share of what callers make us hold, with the quarter by which the allocator
/// may round up what it is asked for, and what a connection may have beside that. No sends, so nothing else is on top.
const SHARE_KIB: u64 = 256 * 1024 * 5 / 4;
const HTTP1_KIB: u64 = 64;
const HTTP2_KIB: u64 = 128;

fn tokens() -> String {
    client_of("one") + &client_of("other")
}

/// Over HTTP/1.1, a connection for each.
fn over_http1(address: SocketAddr, connections: usize) -> Vec<TcpStream> {
    let head = format!(
        "POST /v1/sends HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer one\r\nContent-Type: application/json\r\n\
         Content-Length: 65536\r\n\r\n"
    );
    let call = [head.into_bytes(), vec![b' '; BODY]].concat();
    let open = |_| {
        let mut stream = TcpStream::connect(address).expect("it listens");
        // It may be let go while it still speaks.
        let _ = stream.write_all(&call);
        stream
    };
    (0..connections).map(open).collect()
}

/// Over HTTP/2, a hundred on each connection; every one of them goes on as far as it is let.
async fn over_http2(address: SocketAddr, connections: usize, tasks: &mut tokio::task::JoinSet<()>) {
    for _ in 0..connections {
        let stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
        let Ok((mut client, connection)) = h2::client::handshake(stream).await else { continue };
        tasks.spawn(async move { drop(connection.await) });
        tasks.spawn(async move {
            let mut bodies = Vec::new();
            for _ in 0..100 {
                let request = http::Request::post(format!("http://{address}/v1/sends"))
                    .header("authorization", "Bearer one")
                    .header("content-type", "application/json");
                let Ok(ready) = client.ready().await else { break };
                client = ready;
                let Ok((answer, mut body)) = client.send_request(request.body(()).expect("a request"), false) else {
                    break;
                };
                // Queued: it leaves as the windows let it.
                let _ = body.send_data(vec![b' '; BODY].into(), false);
                bodies.push((answer, body));
            }
            std::future::pending::<()>().await;
            drop(bodies);
        });
    }
}

/// Once nothing of it moves any more; the most that was seen.
async fn at_rest(node: &Node) -> u64 {
    let started = Instant::now();
    let (mut before, mut still) = (node.memory_kib(), 0);
    while still < 10 {
        assert!(started.elapsed() < PATIENCE, "what it holds never comes to rest");
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = node.memory_kib();
        still = if now.abs_diff(before) < 1024 { still + 1 } else { 0 };
        before = now;
    }
    node.memory_peak_kib()
}

async fn others_are_answered(node: &Node, how: &str) {
    let send = json!({ "method": "GET", "url": "http://127.0.0.1:1/" }).to_string();
    for _ in 0..5 {
        let headers = [("authorization", "Bearer other")];
        let answer = tokio::time::timeout(PATIENCE, call(node.api, "POST", "/v1/sends", &send, &headers)).await;
        let (status, answer) = answer.expect("in time").unwrap_or_else(|| panic!("{how}: turned away"));
        assert_eq!(status, 202, "{how}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_never_end_take_their_tenants_share_and_no_more() {
    let _alone = alone().await;
    for (how, connections, each_kib) in [("HTTP/1.1", 2_000, HTTP1_KIB), ("HTTP/2", 100, HTTP2_KIB)] {
        let mut node = Node::new("");
        node.configure(&tokens());
        node.start();
        others_are_answered(&node, how).await;
        let base = node.memory_kib();
        let (mut streams, mut tasks) = (Vec::new(), tokio::task::JoinSet::new());
        if how == "HTTP/1.1" {
            streams = over_http1(node.api, connections);
        } else {
            over_http2(node.api, connections, &mut tasks).await;
        }
        let peak = at_rest(&node).await;
        others_are_answered(&node, how).await;
        let most = base + SHARE_KIB + connections as u64 * each_kib;
        println!("{how}: {} KiB at its most, {base} before, {most} may be", peak);
        assert!(peak <= most, "{how}: {peak} KiB, {base} before, and no more than {most} may be");
        for stream in &mut streams {
            let _ = stream.set_nonblocking(true);
            let _ = stream.read(&mut [0; 1]);
        }
    }
}
