//! The time of day is set while sends wait.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::node::{Node, by_a_clock_that_is_set, call_whole, counting_receiver};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_waits_as_long_however_the_clock_is_set() {
    // Before the sends, and while they wait: set back; forward by mistake and back again; forward; back and forth.
    let all = [
        ([].as_slice(), ["-1d"].as_slice()),
        (&["+2d"], &["+0d"]),
        (&["-2h"], &["-1d"]),
        (&[], &["+2d"]),
        (&[], &["-1d", "+0d"]),
        (&["-1d"], &["+0d"]),
    ];
    futures_util::future::join_all(all.map(|(before, meanwhile)| waits_as_long(before, meanwhile))).await;
}

async fn waits_as_long(before: &[&str], meanwhile: &[&str]) {
    let extra = "[delivery]\ndeadline = \"3s\"\nhold_limit = \"2s\"\nin_flight_per_tenant_destination = 1\n";
    let (quick, seen) = counting_receiver(Duration::ZERO).await;
    let (slow, _) = counting_receiver(Duration::from_secs(30)).await;
    let mut node = Node::new(extra);
    let (clock, next) = (node.path("clock"), node.path("next"));
    let set = |to: &str| {
        // As a whole: it is read at every look at the clock.
        std::fs::write(&next, to).expect("written");
        std::fs::rename(&next, &clock).expect("set");
    };
    set("+0d");
    node.start_as(by_a_clock_that_is_set(&clock));
    let send = |to, path: &str, expires_in: u32| {
        json!({ "method": "GET", "url": format!("http://{to}/{path}"), "expires_in": expires_in }).to_string()
    };
    let submitted = async |path: &str, send: String, headers: &[(&str, &str)]| {
        let (head, answer) = call_whole(node.api, "POST", path, &send, headers).await.expect("an answer");
        assert_eq!(head.status.as_u16(), 202, "{answer}");
        let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
        answer["id"].as_str().expect("an id").to_owned()
    };
    let key = [("idempotency-key", "\"k\"")];
    let keyed = async || submitted("/v1/sends", send(quick, "keyed", 3600), &key).await;
    for to in before {
        set(to);
        submitted("/v1/sends", send(quick, "looked", 3600), &[]).await;
    }
    let once = keyed().await;
    // One has the destination's only place, for its deadline; the next ones wait behind it.
    submitted("/v1/sends", send(slow, "first", 3600), &[]).await;
    let (mut waiting, started) = (Vec::new(), Instant::now());
    for (path, to, expires_in, outcome) in [
        ("/v1/sends", slow, 1, "expired"),
        ("/v1/sends", slow, 3600, "failed"),
        ("/v1/executions/e/sends", quick, 3600, "delivered"),
    ] {
        waiting.push((submitted(path, send(to, "waits", expires_in), &[]).await, outcome));
    }
    for to in meanwhile {
        set(to);
        assert_eq!(keyed().await, once, "{before:?}, {meanwhile:?}: the same key within its day");
    }
    let ends = waiting.iter().map(async |(id, outcome)| {
        let record = node.done_as("default", id).await;
        assert_eq!(record["outcome"], *outcome, "{before:?}, {meanwhile:?}: {record}");
        let waited = started.elapsed();
        assert!(waited >= Duration::from_secs(1), "{before:?}, {meanwhile:?}: after {waited:?}: {record}");
        // Nobody finishes the execution.
        let held = record["context"]["execution"].is_string();
        assert!(!held || waited >= Duration::from_secs(2), "{before:?}, {meanwhile:?}: after {waited:?}: {record}");
        // What it waited is told as long as it was: a second at least, and no hour.
        let told = &record["timings_ms"][if *outcome == "delivered" { "held" } else { "queued" }];
        let is_told = told.as_f64().is_some_and(|told| (500.0..3_600_000.0).contains(&told));
        assert!(is_told, "{before:?}, {meanwhile:?}: {record}");
    });
    futures_util::future::join_all(ends).await;
    for path in ["/keyed", "/waits"] {
        assert_eq!(seen.of(path).len(), 1, "{before:?}, {meanwhile:?}: {path}");
    }
}
