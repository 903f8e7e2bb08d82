//! What some callers do is not felt by others, and what a damaged disk lost does not keep the rest from working.

use std::io::{Read, Write};
use std::time::Duration;

use serde_json::json;

use crate::node::{Node, PATIENCE, call, counting_receiver};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_send_slowly_hold_no_large_call_up() {
    let (receiver, _) = counting_receiver(Duration::ZERO).await;
    let node = Node::started("");
    let mut slow = Vec::new();
    for _ in 0..60 {
        let mut socket = std::net::TcpStream::connect(node.api).unwrap();
        let head = format!(
            "POST /v1/sends HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: 16000000\r\n\r\n[",
            node.api
        );
        socket.write_all(head.as_bytes()).unwrap();
        slow.push(socket);
    }
    let large =
        json!({ "method": "POST", "url": format!("http://{receiver}/"), "data": "x".repeat(200_000) }).to_string();
    let answer = call(node.api, "POST", "/v1/sends", &large, &[]).await;
    assert_eq!(answer.expect("an answer").0, 202);
    // And not because they had gone.
    for socket in &mut slow {
        socket.set_nonblocking(true).unwrap();
        let said = socket.read(&mut [0; 1]).map_err(|error| error.kind());
        assert_eq!(
            said,
            Err(std::io::ErrorKind::WouldBlock),
            "a slow caller was let go before the large call had an answer"
        );
    }
}

/// CPU time is compared, not how long anything took: on whose threads a call is worked on is what keeps its load from
/// the deliveries' timers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_callers_ask_is_worked_on_by_threads_that_make_no_deliveries() {
    let node = Node::started("");
    let explain = json!({ "method": "GET", "url": "http://127.0.0.1:9000/" }).to_string();
    // Wrong in a thousand places: read, judged and refused.
    let wrong = serde_json::Value::Array(vec![json!({ "method": "post", "uri": 1 }); 1_000]).to_string();
    let asked = [
        ("POST", "/v1/explain", explain.as_str(), 200),
        ("GET", "/openapi.json", "", 200),
        ("POST", "/v1/sends", wrong.as_str(), 400),
        ("GET", "/", "", 200),
    ];
    let before = cpu_ticks(&node);
    let started = std::time::Instant::now();
    loop {
        for (method, path, body, expected) in asked {
            let (status, _) = node.call(method, path, body).await.expect("an answer");
            assert_eq!(status, expected, "{method} {path}");
        }
        let now = cpu_ticks(&node);
        let spent = |threads: &str| now.get(threads).unwrap_or(&0) - before.get(threads).unwrap_or(&0);
        let (fronts, deliveries) = (spent("fronts"), spent("tokio-rt-worker"));
        if fronts >= 100 {
            assert!(deliveries <= fronts / 4, "{deliveries} ticks on the deliveries' threads, {fronts} on the fronts'");
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{now:?}");
    }
}

/// User and system time by name of thread (proc(5): fields 14 and 15 of stat, in ticks).
pub fn cpu_ticks(node: &Node) -> std::collections::HashMap<String, u64> {
    let mut ticks = std::collections::HashMap::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", node.pid())).expect("its threads") {
        let Ok(stat) = std::fs::read_to_string(task.expect("a thread").path().join("stat")) else { continue };
        let (name, rest) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(") ")).expect("a name");
        let fields: Vec<&str> = rest.split(' ').collect();
        let spent: u64 = [fields[11], fields[12]].iter().filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        *ticks.entry(name.to_owned()).or_default() += spent;
    }
    ticks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_piece_whose_log_is_lost_is_told_and_set_aside() {
    let (receiver, _) = counting_receiver(Duration::ZERO).await;
    let send = json!({ "method": "GET", "url": format!("http://{receiver}/") }).to_string();
    for emptied in [true, false] {
        let mut node = Node::started("");
        node.call("POST", "/v1/sends", &send).await.unwrap();
        node.settled().await;
        node.kill();
        let pieces = node.path("store/pieces");
        let piece = std::fs::read_dir(&pieces).unwrap().next().unwrap().unwrap().path();
        let log = piece.join("log");
        if emptied {
            std::fs::write(log, "").unwrap()
        } else {
            std::fs::remove_file(log).unwrap()
        }
        for _ in 0..2 {
            node.start();
            let (status, _) = node.call("POST", "/v1/sends", &send).await.unwrap();
            assert_eq!(status, 202);
            node.settled().await;
            node.kill();
        }
        assert!(node.log().contains("is lost"), "{}", node.log());
        let kept =
            std::fs::read_dir(&pieces).unwrap().any(|entry| entry.unwrap().path().to_string_lossy().contains("lost"));
        assert!(kept, "what was left of the piece is kept");
    }
}
