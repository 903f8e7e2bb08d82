//! What is remembered of tunnels, and who may read it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hickory_proto::rr::RecordType;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{basic, connect, echo, in_time, may_tunnel, node_with, started};
use crate::name_server::{NameServer, Reply, address};
use crate::node::{Node, PATIENCE, SOURCES, call};
use crate::strangers::client_of;

/// Waits until a page has so many, all of which are as this says.
async fn listed(node: &Node, query: &str, headers: &[(&str, &str)], is: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let begun = Instant::now();
    loop {
        let path = format!("/v1/tunnels{query}");
        let (status, page) = call(node.api, "GET", &path, "", headers).await.expect("an answer");
        assert_eq!(status, 200, "{page}");
        let tunnels = page["tunnels"].as_array().expect("a list").clone();
        if is(&tunnels) {
            return tunnels;
        }
        assert!(begun.elapsed() < PATIENCE, "{page}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_is_remembered_when_it_is_opened_and_as_it_ended() {
    let (mut node, proxy) = started("", "");
    let (receiver, _) = echo().await;
    let target = receiver.to_string();
    let (told, mut stream) = connect(proxy, &target, &basic("acme", "x")).await;
    assert_eq!(told.status, 200, "{}", told.head);
    let acme = [("egressd-tenant", "acme")];
    let open = listed(&node, "", &acme, |tunnels| tunnels.len() == 1).await;
    let client = stream.local_addr().unwrap();
    let one = &open[0];
    for (key, wanted) in [
        ("tenant", json!("acme")),
        ("node", json!("test")),
        ("end", Value::Null),
        ("code", Value::Null),
        ("message", Value::Null),
        ("client_ip", json!("127.0.0.1")),
        ("client_port", json!(client.port())),
        ("host", json!("127.0.0.1")),
        ("port", json!(receiver.port())),
        ("remote_ip", json!("127.0.0.1")),
        ("remote_port", json!(receiver.port())),
        ("resolved", json!([{ "ip": "127.0.0.1", "verdict": "allowed" }])),
        ("bytes_up", Value::Null),
        ("ended_at", Value::Null),
    ] {
        assert_eq!(one[key], wanted, "{key}: {one}");
    }
    let source = one["public_ip"].as_str().unwrap();
    assert!(SOURCES.contains(&source) && one["source_ip"] == source, "{one}");
    assert!(one["connect_ms"].is_number(), "{one}");

    stream.write_all(b"12345").await.unwrap();
    stream.shutdown().await.unwrap();
    in_time(stream.read_to_end(&mut Vec::new())).await.unwrap();
    let done = |tunnels: &[Value]| tunnels.len() == 1 && !tunnels[0]["end"].is_null();
    let ended = listed(&node, "", &acme, done).await;
    assert_eq!((&ended[0]["end"], &ended[0]["id"]), (&json!("closed"), &one["id"]));
    assert_eq!((&ended[0]["bytes_up"], &ended[0]["bytes_down"]), (&json!(5), &json!(5)));

    // One that is refused, and one that nobody answers.
    let (refused, _) = connect(proxy, "169.254.169.254:80", &basic("acme", "x")).await;
    assert_eq!(refused.told(), "403 policy_metadata");
    let closed = crate::node::free_port();
    assert_eq!(connect(proxy, &closed.to_string(), &basic("acme", "x")).await.0.status, 502);
    listed(&node, "", &acme, |tunnels| tunnels.len() == 3).await;
    let (since, until) = (one["begun_at"].as_str().unwrap(), "2020-01-01T00:00:00Z");
    for (query, hosts) in [
        (format!("?source_ip={source}&end=closed"), vec!["127.0.0.1"]),
        ("?code=policy_metadata".to_owned(), vec!["169.254.169.254"]),
        ("?end=refused&host=127.0.0.1".to_owned(), vec!["127.0.0.1"]),
        ("?end=refused&end=closed&limit=200".to_owned(), vec!["127.0.0.1", "169.254.169.254", "127.0.0.1"]),
        (format!("?since={since}"), vec!["127.0.0.1", "169.254.169.254", "127.0.0.1"]),
        (format!("?until={until}"), vec![]),
        ("?host=*.example.com".to_owned(), vec![]),
    ] {
        let found = listed(&node, &query, &acme, |_| true).await;
        let found: Vec<_> = found.iter().map(|tunnel| tunnel["host"].as_str().unwrap().to_owned()).collect();
        assert_eq!(found, hosts, "{query}");
    }
    // Page by page, each once.
    let (mut seen, mut query) = (Vec::new(), "?limit=1".to_owned());
    loop {
        let (_, page) = call(node.api, "GET", &format!("/v1/tunnels{query}"), "", &acme).await.unwrap();
        seen.extend(page["tunnels"].as_array().unwrap().iter().map(|tunnel| tunnel["id"].clone()));
        match page["next"].as_str() {
            Some(next) => query = format!("?limit=1&cursor={next}"),
            None => break,
        }
    }
    seen.dedup();
    assert_eq!(seen.len(), 3);
    for query in ["?end=never", "?code=x", "?source_ip=x", "?limit=0", "?cursor=x", "?workflow=w", "?tenant=acme"] {
        let (status, problem) = call(node.api, "GET", &format!("/v1/tunnels{query}"), "", &acme).await.unwrap();
        assert_eq!(status, 400, "{query}: {problem}");
    }

    // What is open when the process dies has ended with it; what was before is there.
    let (told, _held) = connect(proxy, &target, &basic("acme", "x")).await;
    assert_eq!(told.status, 200);
    listed(&node, "", &acme, |tunnels| tunnels.len() == 4).await;
    node.kill();
    node.start();
    let after = listed(&node, "", &acme, |tunnels| tunnels.len() == 4).await;
    assert_eq!((&after[0]["end"], &after[0]["code"]), (&json!("reset"), &json!("interrupted")), "{}", after[0]);
    assert_eq!(after[1..].iter().filter(|tunnel| tunnel["end"] == "refused").count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_reads_its_own_and_nothing_that_is_near_us() {
    let names = NameServer::start(|asked| match asked.kind {
        RecordType::A => Reply::Records(vec![address(&asked.name, 60, "10.1.2.3")]),
        _ => Reply::Records(Vec::new()),
    })
    .await;
    let operator =
        client_of("desk").replace("tenant = \"desk\"", "tenant = \"*\"").replace("\"submit\"", "\"operate\"");
    let only_proxy = may_tunnel("blind").replace("\"submit\", \"read\", ", "");
    let (mut node, proxy) = node_with("", &(may_tunnel("acme") + &client_of("other") + &operator + &only_proxy));
    let text = std::fs::read_to_string(node.config()).unwrap();
    std::fs::write(node.config(), text.replace("127.0.0.1:53", &names.address().to_string())).unwrap();
    node.start();
    let (refused, _) = connect(proxy, "inside.example.com:443", &basic("acme", "acme")).await;
    assert_eq!(refused.told(), "403 policy_address");
    assert!(!refused.head.contains("10.1.2.3"), "{}", refused.head);
    let token = |name: &str| format!("Bearer {name}");
    let (acme, other, desk) = (token("acme"), token("other"), token("desk"));
    let own = listed(&node, "", &[("authorization", &acme)], |tunnels| tunnels.len() == 1).await;
    assert_eq!(own[0]["resolved"], json!([{ "ip": null, "verdict": "policy_address" }]));
    assert!(!own[0].to_string().contains("10.1.2.3"), "{}", own[0]);
    assert!(listed(&node, "", &[("authorization", &other)], |_| true).await.is_empty());
    let all = [("authorization", &*desk), ("egressd-tenant", "*")];
    let seen = listed(&node, "?tenant=acme", &all, |tunnels| tunnels.len() == 1).await;
    assert_eq!(seen[0]["resolved"][0]["ip"], "10.1.2.3");
    for (who, status) in [(token("blind"), 403), (token("nobody"), 401)] {
        let answer = call(node.api, "GET", "/v1/tunnels", "", &[("authorization", &who)]).await.unwrap();
        assert_eq!(answer.0, status, "{}", answer.1);
    }
}

/// While its name is looked up, or while or after it is connected: what left for where a tunnel leads is known afterwards,
/// whoever waited for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_whose_caller_hangs_up_before_the_answer_is_remembered() {
    let names = NameServer::start(|_| Reply::Silence).await;
    let (mut node, proxy) = node_with("", "");
    let text = std::fs::read_to_string(node.config()).unwrap();
    std::fs::write(node.config(), text.replace("127.0.0.1:53", &names.address().to_string())).unwrap();
    node.start();
    let receiver = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = receiver.local_addr().unwrap().to_string();
    // Some of them come so far.
    let came = Arc::new(Mutex::new(Vec::new()));
    let noted = came.clone();
    tokio::spawn(async move {
        while let Ok((_, from)) = receiver.accept().await {
            noted.lock().unwrap().push(from);
        }
    });
    let asked = async |target: &str| {
        let mut stream = TcpStream::connect(proxy).await.unwrap();
        let head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{}\r\n", basic("acme", "x"));
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    };
    let acme = [("egressd-tenant", "acme")];
    let all_over = |tunnels: &[Value]| tunnels.iter().all(|tunnel| !tunnel["end"].is_null());
    let looking = asked("silent.example.com:443").await;
    let begun = Instant::now();
    while names.asked().is_empty() {
        assert!(begun.elapsed() < PATIENCE, "nothing is looked up");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(looking);
    let ended = listed(&node, "", &acme, |tunnels| tunnels.len() == 1 && all_over(tunnels)).await;
    assert_eq!((&ended[0]["host"], &ended[0]["end"]), (&json!("silent.example.com"), &json!("reset")));

    for _ in 0..40 {
        drop(asked(&target).await);
    }
    // One that waits for its answer, so that those before it have gone their way.
    drop(connect(proxy, &target, &basic("acme", "x")).await);
    listed(&node, "?host=127.0.0.1&limit=100", &acme, |tunnels| {
        let told = tunnels.iter().filter(|tunnel| tunnel["source_ip"].is_string()).count();
        all_over(tunnels) && told >= came.lock().unwrap().len().max(1)
    })
    .await;
}
