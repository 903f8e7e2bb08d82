//! Mail over a tier: what one node holds leaves from another, once; what one had handed over as it died is interrupted, and
//! no other hands it over again.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{Cluster, in_tier, ready};
use crate::node::{Node, PATIENCE, SOURCES};
use crate::smtp::{At, Relay, Twist};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_of_a_node_that_dies_leaves_from_another_once_and_not_again_where_it_had_been_handed_over() {
    let cluster = Cluster::in_memory();
    let (taking, silent) = (Relay::tls(Vec::new()).await, Relay::tls(vec![(At::Message, Twist::Silent)]).await);
    let shared = tempfile::tempdir().expect("a directory");
    let store = in_tier(&cluster.url(), &shared.path().join("key"));
    let node = |name: &str, sources: &[&str], relay: &Relay| {
        let ca = shared.path().join(format!("{name}.pem"));
        relay.authority.write_pem(&ca);
        let mail = format!(
            "[delivery]\ndeadline = \"1s\"\n[tls]\nextra_ca = [\"{}\"]\n[destination.email]\nrelay = \"{}\"\n\
             from = \"n@example.net\"\ndeadline = \"2s\"\n[[tenant]]\nid = \"default\"\nemail = \"owner@acme.example\"\n",
            ca.display(),
            relay.url("smtps")
        );
        Node::of(name, sources, &store, &mail)
    };
    // The one that dies has a relay that never answers the message.
    let mut one = node("one", &SOURCES[..2], &silent);
    let mut other = node("other", &SOURCES[2..], &taking);
    for node in [&mut one, &mut other] {
        ready(node).await;
    }
    let mail = json!({"email": {"subject": "S", "text": "T"}}).to_string();
    let submit = async |path: &str| {
        let (status, answer) = one.call("POST", path, &mail).await.expect("an answer");
        assert_eq!(status, 202, "{answer}");
        answer["id"].as_str().expect("an id").to_owned()
    };
    let held = submit("/v1/executions/e/sends").await;
    let begun = submit("/v1/sends").await;
    let started = Instant::now();
    while silent.seen().messages.is_empty() {
        assert!(started.elapsed() < PATIENCE, "{}", one.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    one.kill();

    let (_, answer) = other.call("POST", "/v1/executions/e/finish", "").await.expect("an answer");
    assert_eq!(answer["released"], 1, "{answer}");
    let record = other.done_as("default", &held).await;
    assert_eq!((&record["outcome"], &record["email"]["text"]), (&json!("delivered"), &json!("T")), "{record}");
    assert_eq!(record["node"], "other");
    let record = other.done_as("default", &begun).await;
    let error = &record["error"];
    assert_eq!((&record["outcome"], &error["processed"]), (&json!("interrupted"), &json!("maybe")), "{record}");
    let peers: Vec<_> = taking.seen().peers.iter().map(ToString::to_string).collect();
    assert_eq!(peers, [SOURCES[2]]);
    assert_eq!((taking.seen().messages.len(), silent.seen().messages.len()), (1, 1), "once each");
}
