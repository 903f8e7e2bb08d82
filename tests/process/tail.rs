//! The tail over a restart: its ids hold as long as the store does, and mean nothing anywhere else.

use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::node::{Node, PATIENCE, counting_receiver, egressd};

/// Where the tail begins, and so many events: the id of each, and the send's.
async fn follow(node: &Node, after: Option<&str>, count: usize) -> (String, Vec<(String, String)>) {
    let socket = tokio::net::TcpStream::connect(node.api).await.expect("a connection");
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.expect("HTTP");
    tokio::spawn(connection);
    let mut request = Request::get("/v1/tail").header("host", node.api.to_string());
    if let Some(id) = after {
        request = request.header("last-event-id", id);
    }
    let mut answer = client.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let (mut text, mut begins, mut events) = (String::new(), None, Vec::new());
    while begins.is_none() || events.len() < count {
        let frame = tokio::time::timeout(PATIENCE, answer.frame()).await.expect("an event in time");
        text.push_str(std::str::from_utf8(&frame.unwrap().unwrap().into_data().unwrap()).unwrap());
        while let Some((block, rest)) = text.split_once("\n\n") {
            let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            let id = field("id: ").expect("an id");
            begins.get_or_insert_with(|| id.clone());
            if let Some(data) = field("data: ") {
                let record: Value = serde_json::from_str(&data).expect("a record");
                events.push((id, record["id"].as_str().expect("an id").to_owned()));
            }
            text = rest.to_owned();
        }
    }
    (begins.unwrap_or_default(), events)
}

/// One send from its acceptance to its end.
async fn delivered(node: &Node, url: &str) -> String {
    let (status, record) =
        node.call("POST", "/v1/sends", &json!({ "method": "GET", "url": url }).to_string()).await.unwrap();
    assert_eq!(status, 202, "{record}");
    let id = record["id"].as_str().unwrap().to_owned();
    assert_eq!(node.get(&format!("/v1/sends/{id}?wait=30")).await["outcome"], "delivered");
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_resumes_after_a_restart_and_only_in_its_own_store() {
    let (receiver, _) = counting_receiver(Duration::ZERO).await;
    let url = format!("http://{receiver}/");
    let mut node = Node::started("");
    // Of a store in which nothing has finished yet.
    let (begins, _) = follow(&node, None, 0).await;
    let mut sends = Vec::new();
    for _ in 0..3 {
        sends.push(delivered(&node, &url).await);
    }
    let (_, events) = follow(&node, Some(&begins), 3).await;
    assert_eq!(events.iter().map(|(_, send)| send).collect::<Vec<_>>(), sends.iter().collect::<Vec<_>>());

    node.kill();
    node.start();
    sends.push(delivered(&node, &url).await);
    for (at, id) in std::iter::once(&begins).chain(events.iter().map(|(id, _)| id)).enumerate() {
        let (_, resumed) = follow(&node, Some(id), sends.len() - at).await;
        let resumed: Vec<_> = resumed.into_iter().map(|(_, send)| send).collect();
        assert_eq!(resumed, sends[at..]);
    }

    let another = Node::started("");
    for (node, id) in [(&another, events[0].0.as_str()), (&node, "1"), (&node, "0")] {
        let answer = crate::node::call(node.api, "GET", "/v1/tail", "", &[("last-event-id", id)]).await;
        let (status, problem) = answer.expect("an answer");
        assert_eq!((status, &problem["code"]), (400, &json!("shape")), "{id}: {problem}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn egressd_tail_misses_nothing_while_the_node_restarts() {
    let (receiver, _) = counting_receiver(Duration::ZERO).await;
    let url = format!("http://{receiver}/");
    let mut node = Node::started("");
    let mut tail = tokio::process::Command::from(egressd())
        .args(["tail", "--json", "--api", &format!("http://{}", node.api)])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    let id_of = |line: &str| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
    // Until the tail stands, sends may come before it.
    let mut last = delivered(&node, &url).await;
    let started = std::time::Instant::now();
    loop {
        assert!(started.elapsed() < PATIENCE, "the tail never stands");
        match tokio::time::timeout(Duration::from_millis(300), lines.next_line()).await {
            Ok(line) => {
                if id_of(&line.unwrap().unwrap()) == last {
                    break;
                }
            }
            Err(_) => last = delivered(&node, &url).await,
        }
    }
    node.kill();
    node.start();
    let mut missed = Vec::new();
    for _ in 0..3 {
        missed.push(delivered(&node, &url).await);
    }
    for id in missed {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("in time").unwrap().unwrap();
        assert_eq!(id_of(&line), id);
    }
}
