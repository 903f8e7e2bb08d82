//! Few files: what there is none for waits, and no tenant leaves others without.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::node::{Node, call, counting_receiver};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_floods_a_silent_receiver_leaves_files_for_everybody() {
    const FILES: usize = 512;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (receiver, _) = counting_receiver(Duration::ZERO).await;
    let mut node = Node::new("[delivery]\nin_flight_per_tenant_destination = 2000\n");
    let mut limited = Command::new("prlimit");
    // The soft limit is raised to the hard one.
    limited.arg(format!("--nofile=100:{FILES}")).arg(env!("CARGO_BIN_EXE_egressd"));
    node.start_as(limited);
    assert!(node.log().contains("may open too few files"), "{}", node.log());
    let submit = async |tenant: &str, url: String, count: usize| {
        let body = Value::Array(vec![json!({ "method": "GET", "url": url }); count]).to_string();
        let answer = call(node.api, "POST", "/v1/sends", &body, &[("egressd-tenant", tenant)]).await;
        let (status, answer) = answer.expect("an answer");
        assert_eq!(status, 202, "{answer}");
        answer["sends"]
            .as_array()
            .unwrap()
            .iter()
            .map(|send| send["id"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let loud = submit("loud", format!("http://{}/", silent.local_addr().unwrap()), 1_000).await;
    for id in submit("quiet", format!("http://{receiver}/"), 50).await {
        let record = node.done_as("quiet", &id).await;
        assert_eq!(record["outcome"], "delivered", "{record}");
    }
    assert_eq!(node.health("/readyz").await.0, 200);
    // What began ran out of time; what there was no file for waited.
    let record = node.done_as("loud", &loud[0]).await;
    assert_eq!(record["error"]["code"], "timeout", "{record}");
    assert_eq!(node.metric("egressd_sends_total{outcome=\"failed\",code=\"internal\"}").await.unwrap_or(0.0), 0.0);
}
