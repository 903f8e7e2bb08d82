//! A real Prometheus scrapes the real process and is asked what it knows; `promtool` reads the same text.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use crate::node::{Node, PATIENCE, call, call_text, counting_receiver, free_port};

/// Every metric with its type, save `egressd_source_verified`, which has samples only where reflectors are asked.
const METRICS: [(&str, &str); 22] = [
    ("egressd_sends_accepted_total", "counter"),
    ("egressd_sends_refused_total", "counter"),
    ("egressd_sends_total", "counter"),
    ("egressd_responses_total", "counter"),
    ("egressd_delivery_seconds", "histogram"),
    ("egressd_phase_seconds", "histogram"),
    ("egressd_queue_wait_seconds", "histogram"),
    ("egressd_held_sends", "gauge"),
    ("egressd_queued_sends", "gauge"),
    ("egressd_batch_events", "gauge"),
    ("egressd_oldest_queued_seconds", "gauge"),
    ("egressd_in_flight", "gauge"),
    ("egressd_overdue_deliveries", "gauge"),
    ("egressd_connections_total", "counter"),
    ("egressd_source_usable", "gauge"),
    ("egressd_source_ports_used_ratio", "gauge"),
    ("egressd_source_ports_exhausted_total", "counter"),
    ("egressd_store_commit_seconds", "histogram"),
    ("egressd_store_bytes", "gauge"),
    ("egressd_config_reloads_total", "counter"),
    ("egressd_config_last_reload_successful", "gauge"),
    ("egressd_build_info", "gauge"),
];

async fn loaded_node() -> Node {
    let (receiver, _) = counting_receiver(Duration::ZERO).await;
    let node = Node::started("");
    let send = json!({ "method": "POST", "url": format!("http://{receiver}/"), "data": { "a": 1 } });
    let sends = vec![send; 20];
    node.call("POST", "/v1/sends", &json!(sends).to_string()).await.unwrap();
    let blocked = json!({ "method": "GET", "url": "http://192.168.0.1/" }).to_string();
    node.call("POST", "/v1/sends", &blocked).await.unwrap();
    let (status, _) = node.call("POST", "/v1/sends", "{}").await.unwrap();
    assert_eq!(status, 400);
    let records = node.settled().await;
    let id = records.iter().find(|record| record["outcome"] == "blocked").and_then(|record| record["id"].as_str());
    let line = node.log().lines().find(|line| line.contains(id.expect("a blocked send"))).map(str::to_owned);
    let line = line.unwrap_or_else(|| panic!("a refusal without a log line: {}", node.log()));
    assert!(line.contains("policy_address") && line.contains("\"tenant\":\"default\""), "{line}");
    node
}

/// Without a bound they would take the files that callers and deliveries need.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scrapers_that_say_nothing_are_let_go() {
    let node = Node::started("");
    let mut silent = Vec::new();
    for _ in 0..egressd::limits::OPS_CONNECTIONS * 2 {
        silent.push(tokio::net::TcpStream::connect(node.metrics).await.unwrap());
    }
    let all_end = async {
        for mut one in silent {
            let _ = one.read(&mut [0]).await;
        }
    };
    tokio::time::timeout(PATIENCE, all_end).await.expect("nobody stays");
    assert_eq!(node.health("/healthz").await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_is_there_and_promtool_finds_nothing_to_say() {
    let node = loaded_node().await;
    let (_, text) = call_text(node.metrics, "GET", "/metrics", "", &[]).await.unwrap();
    for (name, kind) in METRICS {
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no description\n{text}");
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name} is no {kind}\n{text}");
    }
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool, of Debian's package prometheus");
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prometheus_that_scrapes_knows_what_was_sent() {
    let node = loaded_node().await;
    let directory = tempfile::tempdir().unwrap();
    let listen = free_port();
    let config = format!(
        "global: {{ scrape_interval: 1s }}\nscrape_configs:\n- job_name: egressd\n  static_configs: [{{ targets: ['{}'] }}]\n",
        node.metrics
    );
    std::fs::write(directory.path().join("prometheus.yml"), config).unwrap();
    let mut prometheus = Command::new("prometheus")
        .arg(format!("--config.file={}", directory.path().join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
        .arg(format!("--web.listen-address={listen}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("prometheus, of Debian's package of that name");
    let started = Instant::now();
    let query = "/api/v1/query?query=sum%20by%20(outcome)(egressd_sends_total)";
    let found = loop {
        let answer: Option<(u16, Value)> = call(listen, "GET", query, "", &[]).await;
        if let Some((200, answer)) = answer
            && answer["data"]["result"].as_array().is_some_and(|series| !series.is_empty())
        {
            break answer;
        }
        if started.elapsed() > PATIENCE {
            let _ = prometheus.kill();
            panic!("prometheus never knew of a send");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let _ = prometheus.kill();
    let _ = prometheus.wait();
    let value = |outcome: &str| {
        let series = found["data"]["result"].as_array().unwrap().iter().find(|one| one["metric"]["outcome"] == outcome);
        series.and_then(|one| one["value"][1].as_str()).unwrap_or("none").to_owned()
    };
    assert_eq!((value("delivered").as_str(), value("blocked").as_str()), ("20", "1"), "{found}");
}
