//! SIGTERM drains, SIGHUP reloads as a whole or not at all, and a store has one owner.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::load::{Ledger, ends, judge, replayed_keys_answer_the_same, start_load};
use crate::node::{Node, PATIENCE, call_text, counting_receiver, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_finishes_what_is_in_flight_and_keeps_what_waits() {
    let (receiver, seen) = counting_receiver(Duration::from_millis(400)).await;
    let mut node =
        Node::started("[delivery]\nin_flight = 4\nin_flight_per_tenant = 4\nin_flight_per_tenant_destination = 4\n");
    let sends: Vec<_> = (0..40)
        .map(|number| json!({ "method": "POST", "url": format!("http://{receiver}/{number}"), "data": number }))
        .collect();
    let (status, _) = node.call("POST", "/v1/sends", &json!(sends).to_string()).await.unwrap();
    assert_eq!(status, 202);
    let started = Instant::now();
    while seen.all().is_empty() {
        assert!(started.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    node.signal(Signal::SIGTERM);
    assert_eq!(node.ended(), Some(0), "{}", node.log());
    let before = seen.all().len();
    assert!((4..40).contains(&before), "{before} were made before the drain ended");

    node.start();
    let records = node.settled().await;
    assert_eq!(records.len(), 40);
    for record in &records {
        assert_eq!(record["outcome"], "delivered", "{record}");
    }
    assert!(seen.all().values().all(|peers| peers.len() == 1), "a send was made twice");
    assert_eq!(seen.all().len(), 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_under_full_load_loses_nothing_and_doubles_nothing() {
    let (receiver, seen) = counting_receiver(Duration::from_millis(60)).await;
    // Slower than its callers, so that there is always something queued, held, in flight and just being accepted.
    let mut node = Node::new("[delivery]\nin_flight = 24\nhold_limit = \"2s\"\ndrain = \"6s\"\n");
    let ledger = Ledger::default();
    for round in 0..2 {
        node.start();
        let before = ledger.lock().unwrap().accepted.len();
        let load: Vec<_> =
            (0..3).flat_map(|callers| start_load(node.api, receiver, &format!("{round}-{callers}"), &ledger)).collect();
        let started = Instant::now();
        while ledger.lock().unwrap().accepted.len() < before + 3_000 {
            assert!(started.elapsed() < PATIENCE, "{}", node.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let queued = node.metric("egressd_queued_sends").await;
        assert!(queued.is_some_and(|queued| queued > 500.0), "only {queued:?} were queued: this was no load");
        assert!(node.metric("egressd_held_sends").await.is_some_and(|held| held > 0.0), "nothing was held");
        node.signal(Signal::SIGTERM);
        assert_eq!(node.ended(), Some(0), "{}", node.log());
        let (made, accepted) = (seen.all().len(), ledger.lock().unwrap().accepted.len());
        assert!(made < accepted, "all {accepted} were made: what waited was not kept for later");
        for worker in load {
            ends(worker).await;
        }
    }
    node.configure("[delivery]\nhold_limit = \"2s\"\n");
    node.start();
    replayed_keys_answer_the_same(&node, &ledger).await;
    let records = node.settled().await;
    let outcomes = judge(&records, &ledger.lock().unwrap(), &seen.all());
    assert!(!outcomes.contains_key("interrupted"), "a delivery was cut off: {outcomes:?}");
    println!("2 drains: {} accepted, {outcomes:?}", ledger.lock().unwrap().accepted.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_takes_effect_as_a_whole_or_not_at_all() {
    let (receiver, seen) = counting_receiver(Duration::ZERO).await;
    let node = Node::started("");
    let body = json!({ "method": "GET", "url": format!("http://{receiver}/") }).to_string();
    let ends = |node: &Node| {
        let (api, body) = (node.api, body.clone());
        async move {
            let (_, record) = crate::node::call(api, "POST", "/v1/sends", &body, &[]).await.unwrap();
            let path = format!("/v1/sends/{}?wait=30", record["id"].as_str().unwrap());
            crate::node::call(api, "GET", &path, "", &[]).await.unwrap().1["outcome"].as_str().unwrap().to_owned()
        }
    };
    let reloaded = |result: &'static str, count: f64| {
        let node = &node;
        async move {
            let started = Instant::now();
            let line = format!("egressd_config_reloads_total{{result=\"{result}\"}}");
            while node.metric(&line).await != Some(count) {
                assert!(started.elapsed() < PATIENCE, "{result}: {}", node.log());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    };
    assert_eq!(ends(&node).await, "delivered");
    assert_eq!(node.metric("egressd_config_last_reload_successful").await, Some(1.0));

    // A good policy beside a problem: nothing of the file counts.
    node.configure("[policy]\nports = [443]\n[tls]\nroots = \"no such roots\"\n");
    node.signal(Signal::SIGHUP);
    reloaded("refused", 1.0).await;
    assert_eq!(ends(&node).await, "delivered");
    assert!(node.log().contains("tls.roots"), "{}", node.log());

    // What cannot change while running is named.
    node.configure("");
    let text = std::fs::read_to_string(node.config()).unwrap().replace("path = \"store\"", "path = \"elsewhere\"");
    std::fs::write(node.config(), text).unwrap();
    node.signal(Signal::SIGHUP);
    reloaded("refused", 2.0).await;
    assert!(node.log().contains("store.path"), "{}", node.log());

    let lasting = "egressd_config_last_reload_successful";
    assert_eq!(node.metric(lasting).await, Some(0.0));

    node.configure("[policy]\nports = [443]\n");
    node.signal(Signal::SIGHUP);
    reloaded("ok", 1.0).await;
    assert_eq!(node.metric(lasting).await, Some(1.0));
    assert_eq!(ends(&node).await, "blocked");
    assert_eq!(seen.of("/").len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_has_one_owner_who_is_named() {
    let node = Node::started("");
    let pid = node.pid();
    let text = std::fs::read_to_string(node.config()).unwrap();
    let other = text
        .replace(&node.api.to_string(), &crate::node::free_port().to_string())
        .replace(&node.metrics.to_string(), &crate::node::free_port().to_string());
    std::fs::write(node.path("other.toml"), other).unwrap();
    let directory = node.directory.path().to_owned();
    let (code, _, err) =
        tokio::task::spawn_blocking(move || run(&["serve", "--config", "other.toml"], &directory)).await.unwrap();
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains(&format!("process {pid}")), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_readiness_answer() {
    let node = Node::started("");
    assert_eq!(call_text(node.metrics, "GET", "/healthz", "", &[]).await.unwrap().0, 200);
    let (status, text) = call_text(node.metrics, "GET", "/readyz", "", &[]).await.unwrap();
    assert_eq!((status, text.as_str()), (200, "ready\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_execution_that_nobody_finishes_is_released_at_the_limit() {
    let (receiver, seen) = counting_receiver(Duration::ZERO).await;
    let mut node = Node::started("[delivery]\nhold_limit = \"1500ms\"\n");
    let body = json!({ "method": "POST", "url": format!("http://{receiver}/held"), "data": 1 }).to_string();
    let (status, record) = node.call("POST", "/v1/executions/e1/sends", &body).await.unwrap();
    assert_eq!((status, record["state"].as_str()), (202, Some("held")));
    // The limit counts from the first send, also across a death of the process.
    node.kill();
    assert!(seen.all().is_empty());
    node.start();
    let records = node.settled().await;
    assert_eq!(records[0]["outcome"], "delivered");
    let execution = node.get("/v1/executions/e1").await;
    assert_eq!(
        (execution["state"].as_str(), execution["finished_by"].as_str()),
        (Some("finished"), Some("hold_limit"))
    );
    assert_eq!(seen.of("/held").len(), 1);
}
