//! What some callers do is not felt by others, and what a damaged disk lost does not keep the rest from working.

use std::io::Write;
use std::time::Duration;

use serde_json::json;

use crate::node::{Node, call, counting_receiver};

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
    let answer = call(node.api, "POST", "/v1/sends", &large, &[]);
    let answer = tokio::time::timeout(Duration::from_secs(15), answer).await.expect("an answer while others are slow");
    assert_eq!(answer.expect("an answer").0, 202);
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
