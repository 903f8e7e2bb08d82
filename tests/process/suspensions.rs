//! Suspensions stop what is submitted, queued and held, outlive the process, and end when they are lifted.

use std::time::Duration;

use serde_json::{Value, json};

use crate::node::{Node, call, counting_receiver};

async fn as_tenant(node: &Node, tenant: &str, method: &str, path: &str, body: &str) -> (u16, Value) {
    call(node.api, method, path, body, &[("egressd-tenant", tenant)]).await.expect("an answer")
}

async fn end_of(node: &Node, tenant: &str, record: &Value) -> (String, String) {
    let path = format!("/v1/sends/{}?wait=30", record["id"].as_str().expect("an id"));
    let (_, record) = as_tenant(node, tenant, "GET", &path, "").await;
    let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str).unwrap_or("-").to_owned();
    (text("/outcome"), text("/error/code"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_tenant_is_stopped_at_once_and_across_a_death_of_the_process() {
    let (receiver, seen) = counting_receiver(Duration::from_millis(1500)).await;
    let mut node = Node::started("[delivery]\nin_flight_per_tenant = 1\nin_flight_per_tenant_destination = 1\n");
    let send =
        |path: &str| json!({ "method": "POST", "url": format!("http://{receiver}/{path}"), "data": 1 }).to_string();
    let (_, flying) = as_tenant(&node, "bad", "POST", "/v1/sends", &send("flying")).await;
    let started = std::time::Instant::now();
    while seen.of("/flying").is_empty() {
        assert!(started.elapsed() < crate::node::PATIENCE, "it does not fly");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (_, queued) = as_tenant(&node, "bad", "POST", "/v1/sends", &send("queued")).await;
    let (_, held) = as_tenant(&node, "bad", "POST", "/v1/executions/e/sends", &send("held")).await;
    let (_, neighbour) = as_tenant(&node, "good", "POST", "/v1/sends", &send("neighbour")).await;

    let stop = json!({ "tenant": "bad", "reason": "abuse report 4711" }).to_string();
    let (status, suspension) = as_tenant(&node, "*", "POST", "/v1/suspensions", &stop).await;
    assert_eq!(status, 201, "{suspension}");
    let blocked = ("blocked".to_owned(), "suspended".to_owned());
    assert_eq!(end_of(&node, "bad", &queued).await, blocked);
    assert_eq!(end_of(&node, "bad", &held).await, blocked);
    assert_eq!(end_of(&node, "bad", &flying).await.0, "delivered", "what has begun is not cut off");
    assert_eq!(end_of(&node, "good", &neighbour).await.0, "delivered");

    node.kill();
    node.start();
    let (status, refusal) = as_tenant(&node, "bad", "POST", "/v1/sends", &send("again")).await;
    assert_eq!((status, refusal["code"].as_str()), (403, Some("suspended")), "{refusal}");
    assert!(refusal["detail"].as_str().unwrap().contains("abuse report 4711"), "{refusal}");

    let path = format!("/v1/suspensions/{}", suspension["id"].as_str().unwrap());
    assert!(matches!(as_tenant(&node, "*", "DELETE", &path, "").await.0, 200 | 204));
    let (status, again) = as_tenant(&node, "bad", "POST", "/v1/sends", &send("again")).await;
    assert_eq!(status, 202, "{again}");
    assert_eq!(end_of(&node, "bad", &again).await.0, "delivered");
    let (_, list) = as_tenant(&node, "*", "GET", "/v1/suspensions", "").await;
    let kept = &list["suspensions"][0];
    assert_eq!(kept["reason"], "abuse report 4711", "{list}");
    assert!(kept["lifted_at"].is_string() && kept["lifted_by"].is_string(), "who lifted it and when is kept: {list}");

    assert!(seen.of("/queued").is_empty() && seen.of("/held").is_empty());
    for path in ["/flying", "/neighbour", "/again"] {
        assert_eq!(seen.of(path).len(), 1, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_host_is_reached_by_nobody_and_a_workflow_is_stopped_alone() {
    let (receiver, seen) = counting_receiver(Duration::ZERO).await;
    let (spared, _) = counting_receiver(Duration::ZERO).await;
    let node = Node::started("");
    let stop = json!({ "host": receiver.ip().to_string(), "reason": "its owner asked" }).to_string();
    let (status, host) = as_tenant(&node, "*", "POST", "/v1/suspensions", &stop).await;
    assert_eq!(status, 201, "{host}");
    let send = json!({ "method": "GET", "url": format!("http://{receiver}/x") }).to_string();
    for tenant in ["a", "b"] {
        let (status, record) = as_tenant(&node, tenant, "POST", "/v1/sends", &send).await;
        assert_eq!(status, 202);
        assert_eq!(end_of(&node, tenant, &record).await, ("blocked".to_owned(), "suspended".to_owned()));
    }
    assert!(seen.all().is_empty());
    let path = format!("/v1/suspensions/{}", host["id"].as_str().unwrap());
    as_tenant(&node, "*", "DELETE", &path, "").await;

    let stop = json!({ "tenant": "a", "workflow": "w1", "reason": "loops" }).to_string();
    assert_eq!(as_tenant(&node, "*", "POST", "/v1/suspensions", &stop).await.0, 201);
    for (tenant, workflow, status) in [("a", "w1", 403), ("a", "w2", 202), ("b", "w1", 202)] {
        let send = json!({ "method": "GET", "url": format!("http://{spared}/y"), "context": { "workflow": workflow } });
        let (got, answer) = as_tenant(&node, tenant, "POST", "/v1/sends", &send.to_string()).await;
        assert_eq!(got, status, "{tenant} {workflow}: {answer}");
    }
}
