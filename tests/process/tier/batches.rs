//! Batches over a tier: whichever node gathers, closes or carries, and dies, freezes or leaves as it does, each event is in the
//! bucket and in the table once, and has one outcome that every node tells alike.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{Cluster, READY, in_tier, is_fenced, ready};
use crate::bucket::{Answer, Bucket};
use crate::node::{Node, PATIENCE, SOURCES, alone, call};
use crate::sql::{cluster_with, rows};

const LETS_IN: &str = "host all all 127.0.0.0/8 trust";

struct Tier {
    cluster: Cluster,
    bucket: Bucket,
    nodes: Vec<Node>,
    /// By what it holds: what it became when it was accepted.
    sent: BTreeMap<String, String>,
    _directory: tempfile::TempDir,
    _shared: tempfile::TempDir,
}

impl Tier {
    async fn start(every: &str, more: [&str; 3]) -> Self {
        Self::with(Bucket::start([]).await, every, more).await
    }

    async fn with(bucket: Bucket, every: &str, more: [&str; 3]) -> Self {
        let (mut cluster, directory) = cluster_with(LETS_IN);
        cluster.tell("stop fast");
        cluster.tell("start");
        let shared = tempfile::tempdir().expect("a directory");
        let credentials = shared.path().join("credentials");
        std::fs::write(&credentials, "[default]\naws_access_key_id = A\naws_secret_access_key = b\n").expect("written");
        let store = in_tier(&cluster.url(), &shared.path().join("key"));
        let gathers = format!("every = \"{every}\"\ndeadline = \"2s\"\n");
        let destinations = format!(
            "[delivery]\ndeadline = \"1s\"\n[destination.s3]\nendpoint = \"http://{}\"\npath_style = true\n\
             credentials_file = \"{}\"\n{gathers}[destination.sql]\nurl = \"{}?sslmode=disable\"\n{gathers}",
            bucket.address,
            credentials.display(),
            cluster.url(),
        );
        let mut nodes = Vec::new();
        for ((name, source), more) in ["a", "b", "c"].into_iter().zip(SOURCES).zip(more) {
            // One that has its sources from its own lines has no others.
            let own = if more.contains("[[egress.source]]") { vec![] } else { vec![source] };
            let mut node = Node::of(name, &own, &store, &format!("{destinations}{more}"));
            if bucket.address.is_ipv6() {
                let list = [&SOURCES[..], &["::1"]].concat().join("\n");
                std::fs::write(node.path("public-ips.txt"), list).expect("the list");
            }
            ready(&mut node).await;
            nodes.push(node);
        }
        Self { cluster, bucket, nodes, sent: BTreeMap::new(), _directory: directory, _shared: shared }
    }

    /// Some for the bucket and some for the table, by this node; their ids.
    async fn submit(&mut self, node: usize) -> Vec<String> {
        let holds: Vec<String> = (0..6).map(|n| format!("{:04}", self.sent.len() + n)).collect();
        let event = |holds: &String| match holds.ends_with(['0', '2', '4', '6', '8']) {
            true => json!({"s3": {"bucket": "logs", "prefix": "p", "payload": holds}}),
            false => json!({"sql": {"table": "t", "payload": holds}}),
        };
        let sends: Vec<Value> = holds.iter().map(event).collect();
        let started = Instant::now();
        let body = json!(sends).to_string();
        let headers = [("idempotency-key", holds[0].as_str())];
        loop {
            // Of a key: one that was accepted although it was refused is answered as it was then.
            let answer = call(self.nodes[node].api, "POST", "/v1/sends", &body, &headers).await;
            if let Some((202, answer)) = &answer {
                let ids: Vec<String> = answer["sends"].as_array().expect("a list").iter().map(id_of).collect();
                self.sent.extend(holds.into_iter().zip(ids.iter().cloned()));
                return ids;
            }
            assert!(started.elapsed() < PATIENCE, "{answer:?}: {}", self.nodes[node].log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn delivered(&self, by: usize, ids: &[String]) {
        let started = Instant::now();
        for id in ids {
            // While the database is away nobody can tell.
            while self.nodes[by]
                .call("GET", &format!("/v1/sends/{id}"), "")
                .await
                .is_none_or(|(status, _)| status == 503)
            {
                assert!(started.elapsed() < PATIENCE, "{}", self.nodes[by].log());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let record = self.nodes[by].done_as("default", id).await;
            assert_eq!(record["outcome"], "delivered", "{record}");
        }
    }

    /// The bucket has heard of a try from this node's address since it had heard so many.
    async fn tried_from(&self, node: usize, since: usize) {
        let started = Instant::now();
        while !self.bucket.peers()[since..].iter().any(|peer| peer.to_string() == SOURCES[node]) {
            assert!(started.elapsed() < PATIENCE, "no try: {}", self.nodes[node].log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn sees_no_database(&self, node: usize) {
        let started = Instant::now();
        while self.nodes[node].health("/readyz").await.0 != 503 {
            assert!(started.elapsed() < PATIENCE, "{}", self.nodes[node].log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// How often a batch went over to another node.
    fn taken_over(&self) -> usize {
        self.nodes.iter().map(|node| node.log().matches("a batch that another node had").count()).sum()
    }

    /// Each event is where it belongs, once, has one outcome, and every node tells the same of it and of its batch.
    async fn judge(&self) {
        let mut seen: Vec<String> = self.bucket.objects().into_values().flatten().collect();
        seen.extend(rows(&self.cluster, "SELECT event #>> '{}' FROM \"default\".t").await);
        seen.sort();
        assert_eq!(seen, self.sent.keys().cloned().collect::<Vec<_>>());
        let noted = rows(&self.cluster, "SELECT sum(sends) FROM \"default\".egressd_batches").await;
        assert_eq!(noted, [(self.sent.len() / 2).to_string()]);
        let told = self.nodes[0].settled().await;
        assert_eq!(told.len(), self.sent.len());
        assert!(told.iter().all(|record| record["outcome"] == "delivered"));
        let batches: BTreeSet<&str> = told.iter().filter_map(|record| record["batch"]["id"].as_str()).collect();
        for node in &self.nodes[1..] {
            assert_eq!(node.settled().await, told);
        }
        let mut members = 0;
        for id in batches {
            let path = format!("/v1/batches/{id}");
            let started = Instant::now();
            // Its sends have their ends a moment before it is done.
            let batch = loop {
                let batch = self.nodes[0].get(&path).await;
                if batch["state"] == "done" {
                    break batch;
                }
                assert!(started.elapsed() < PATIENCE, "{batch}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            for node in &self.nodes[1..] {
                assert_eq!(node.get(&path).await, batch);
            }
            members += batch["sends"].as_u64().expect("a number");
        }
        assert_eq!(members, self.sent.len() as u64, "each is in one batch");
    }
}

fn id_of(answer: &Value) -> String {
    answer["id"].as_str().unwrap_or_else(|| panic!("an id: {answer}")).to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_is_there_once_whichever_node_gathers_or_carries_it_and_dies_freezes_or_leaves() {
    let _alone = alone().await;
    let mut tier = Tier::start("500ms", [""; 3]).await;
    // Killed as it gathers.
    let ids = tier.submit(0).await;
    tier.nodes[0].kill();
    tier.delivered(1, &ids).await;
    ready(&mut tier.nodes[0]).await;

    // Killed as it carries: the bucket has the whole of it, and has said nothing yet.
    let since = tier.bucket.puts().len();
    tier.bucket.always(Some(Answer::Silent));
    let ids = tier.submit(1).await;
    tier.tried_from(1, since).await;
    tier.nodes[1].kill();
    tier.bucket.always(None);
    tier.delivered(2, &ids).await;
    ready(&mut tier.nodes[1]).await;

    // Its answers are lost, for as long as one that is there is put again: by whoever comes next.
    let (since, met) = (tier.bucket.puts().len(), tier.bucket.met());
    tier.bucket.always(Some(Answer::Lost));
    let ids = tier.submit(2).await;
    tier.tried_from(2, since).await;
    tier.nodes[2].kill();
    tier.bucket.always(None);
    tier.delivered(0, &ids).await;
    assert!(tier.bucket.met() > met, "it was put by the one that died, too");
    ready(&mut tier.nodes[2]).await;

    // Frozen past its lease in the middle of a try: it finds itself fenced, whatever it comes back to.
    let since = tier.bucket.puts().len();
    tier.bucket.always(Some(Answer::Silent));
    let ids = tier.submit(0).await;
    tier.tried_from(0, since).await;
    tier.nodes[0].signal(Signal::SIGSTOP);
    let before = tier.taken_over();
    tier.bucket.always(None);
    tier.delivered(1, &ids).await;
    assert!(tier.taken_over() > before, "somebody took it over");
    tier.nodes[0].signal(Signal::SIGCONT);
    assert_eq!(tier.nodes[0].has_ended().await, Some(1), "{}", tier.nodes[0].log());
    assert!(is_fenced(&tier.nodes[0]), "{}", tier.nodes[0].log());
    ready(&mut tier.nodes[0]).await;

    // Drained, with what gathers and with what is tried in vain.
    let since = tier.bucket.puts().len();
    tier.bucket.always(Some(Answer::Refused(503, "SlowDown")));
    let mut ids = tier.submit(1).await;
    tier.tried_from(1, since).await;
    ids.extend(tier.submit(1).await);
    tier.nodes[1].signal(Signal::SIGTERM);
    assert_eq!(tier.nodes[1].has_ended().await, Some(0), "{}", tier.nodes[1].log());
    tier.bucket.always(None);
    tier.delivered(2, &ids).await;
    ready(&mut tier.nodes[1]).await;

    // The database goes away, comes back, and loses answers on its way.
    let mut ids = Vec::new();
    for round in 0..3 {
        ids.extend(tier.submit(round).await);
        tier.cluster.tell("stop immediate");
        tier.sees_no_database(round).await;
        tier.cluster.tell("start");
        ids.extend(tier.submit(round).await);
        let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'egressd %'";
        tier.cluster.tell(&format!("sql {cut}"));
    }
    tier.delivered(0, &ids).await;
    for node in &tier.nodes {
        assert_eq!(node.log_of_this_life().matches(READY).count(), 1, "{}", node.log());
        assert!(!is_fenced(node), "{}", node.log());
    }
    tier.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_gathers_is_told_alike_by_every_node_and_goes_on_where_its_node_leaves() {
    let mut tier = Tier::start("60s", [""; 3]).await;
    let event = json!({"s3": {"bucket": "logs", "prefix": "p", "payload": {"n": 1}}}).to_string();
    let submit = async |node: &Node, path: &str| {
        let (status, answer) = node.call("POST", path, &event).await.expect("an answer");
        assert_eq!(status, 202, "{answer}");
        answer
    };
    // Opened on one, filled on another, finished on the third: it gathers wherever it is taken, in a batch of its own.
    let elsewhere = event.replace("\"p\"", "\"held\"");
    let held = tier.nodes[1].call("POST", "/v1/executions/e/sends", &elsewhere).await.expect("an answer").1;
    assert_eq!(held["state"], "held", "{held}");
    let (_, answer) = tier.nodes[2].call("POST", "/v1/executions/e/finish", "").await.expect("an answer");
    assert_eq!(answer["released"], 1, "{answer}");
    let first = submit(&tier.nodes[0], "/v1/sends").await;
    let second = submit(&tier.nodes[0], "/v1/sends").await;
    let batch = first["batch"].clone();
    assert!(batch["id"].is_string() && second["batch"] == batch, "{first} {second}");
    let path = format!("/v1/batches/{}", batch["id"].as_str().expect("an id"));
    let seen = tier.nodes[0].get(&path).await;
    assert_eq!((&seen["state"], &seen["closes_at"]), (&json!("gathering"), &batch["closes_at"]));
    for node in &tier.nodes {
        for send in [&first, &second] {
            let record = node.get(&format!("/v1/sends/{}", id_of(send))).await;
            assert_eq!((&record["batch"], &record["state"]), (&batch, &json!("queued")), "{record}");
        }
        assert_eq!(node.get(&path).await, seen);
        let listed = node.records().await;
        assert_eq!(
            listed.iter().filter(|record| record["batch"] == batch).count(),
            seen["sends"].as_u64().unwrap() as usize
        );
    }
    // Whoever took the released one says so on every node alike.
    let told = async |node: &Node, id: &str| node.get(&format!("/v1/sends/{id}")).await["batch"].clone();
    let alike = async |nodes: &[Node], id: &str, not: &Value| {
        let started = Instant::now();
        loop {
            let mut all = Vec::new();
            for node in nodes {
                all.push(told(node, id).await);
            }
            if all[0].is_object() && all[0] != *not && all.iter().all(|one| *one == all[0]) {
                return all.swap_remove(0);
            }
            assert!(started.elapsed() < PATIENCE, "{all:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    alike(&tier.nodes, &id_of(&held), &Value::Null).await;
    // Its node leaves: it gathers on another one, and each that is left tells the same.
    tier.nodes[0].signal(Signal::SIGTERM);
    assert_eq!(tier.nodes[0].has_ended().await, Some(0), "{}", tier.nodes[0].log());
    let left = &tier.nodes[1..];
    let started = Instant::now();
    loop {
        let now = alike(left, &id_of(&first), &Value::Null).await;
        let at = format!("/v1/batches/{}", now["id"].as_str().expect("an id"));
        let one = left[0].call("GET", &at, "").await.expect("an answer");
        // The others of the place may come to it in between.
        if one.0 == 200 && left[1].call("GET", &at, "").await.expect("an answer") == one {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "{one:?}");
    }
    // Nothing of it is left where its tenant is suspended, on whichever node.
    let suspension = json!({"tenant": "default", "reason": "a test"}).to_string();
    let (status, answer) = left[1].call("POST", "/v1/suspensions", &suspension).await.expect("an answer");
    assert_eq!(status, 201, "{answer}");
    for send in [&held, &first, &second] {
        let record = left[0].done_as("default", &id_of(send)).await;
        assert_eq!(
            (&record["outcome"], &record["error"]["code"]),
            (&json!("blocked"), &json!("suspended")),
            "{record}"
        );
    }
    assert!(tier.bucket.puts().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_whose_pool_has_no_source_here_is_carried_by_the_node_that_has_one() {
    let tenant = "[[tenant]]\nid = \"acme\"\npool = \"special\"\n";
    let special = format!("[[egress.source]]\npublic = \"{}\"\npool = \"special\"\n{tenant}", SOURCES[2]);
    let mut tier = Tier::start("100ms", [tenant, tenant, &special]).await;
    let event = json!({"s3": {"bucket": "logs", "prefix": "p", "payload": {"n": 1}}}).to_string();
    let headers = [("egressd-tenant", "acme")];
    for by in 0..2 {
        let answer = call(tier.nodes[by].api, "POST", "/v1/sends", &event, &headers).await;
        let (status, answer) = answer.expect("an answer");
        assert_eq!(status, 202, "{answer}");
        let record = tier.nodes[by].done_as("acme", &id_of(&answer)).await;
        assert_eq!((&record["outcome"], &record["node"]), (&json!("delivered"), &json!("c")), "{record}");
    }
    assert!(tier.bucket.peers().iter().all(|peer| peer.to_string() == SOURCES[2]), "{:?}", tier.bucket.peers());
    // Nothing of them is left in the windows of those that had them.
    for node in &mut tier.nodes {
        node.signal(Signal::SIGTERM);
        assert_eq!(node.has_ended().await, Some(0), "{}", node.log());
        assert!(!node.log().contains("is not waiting in the store"), "{}", node.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_for_a_family_that_this_node_has_no_source_of_is_carried_by_the_node_that_has_one() {
    let exception = "[[policy.exception]]\nnetworks = [\"::1/128\"]\nreason = \"a bucket of tests\"\n";
    let source = |ip: &str| format!("[[egress.source]]\npublic = \"{ip}\"\n");
    let both = format!("{}{}{exception}", source(SOURCES[2]), source("::1"));
    let bucket = Bucket::start_at(Ipv6Addr::LOCALHOST.into(), []).await;
    let tier = Tier::with(bucket, "100ms", [exception, exception, &both]).await;
    let event = json!({"s3": {"bucket": "logs", "prefix": "p", "payload": {"n": 1}}}).to_string();
    for by in 0..3 {
        let (status, answer) = tier.nodes[by].call("POST", "/v1/sends", &event).await.expect("an answer");
        assert_eq!(status, 202, "{answer}");
        let record = tier.nodes[by].done_as("default", &id_of(&answer)).await;
        assert_eq!((&record["outcome"], &record["node"]), (&json!("delivered"), &json!("c")), "{record}");
        assert_eq!(record["connection"]["source_ip"], "::1", "{record}");
    }
    assert_eq!(tier.bucket.puts().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_taken_over_under_a_suspension_of_its_workflow_is_in_no_batch() {
    let mut tier = Tier::start("8s", [""; 3]).await;
    let event = |workflow: &str| json!({"s3": {"bucket": "logs", "prefix": "p", "payload": workflow}, "context": {"workflow": workflow}});
    let both = json!([event("stopped"), event("other")]).to_string();
    let (status, answer) = tier.nodes[0].call("POST", "/v1/sends", &both).await.expect("an answer");
    assert_eq!(status, 202, "{answer}");
    tier.nodes[0].kill();
    // Nobody gathers them now, and nobody has taken them over yet: its lease is not over.
    let suspension = json!({"tenant": "default", "workflow": "stopped", "reason": "a test"}).to_string();
    let (status, suspended) = tier.nodes[1].call("POST", "/v1/suspensions", &suspension).await.expect("an answer");
    assert_eq!(status, 201, "{suspended}");
    let [stopped, other] = [0, 1].map(|at| id_of(&answer["sends"][at]));
    let record = tier.nodes[2].done_as("default", &stopped).await;
    assert_eq!((&record["outcome"], &record["error"]["code"]), (&json!("blocked"), &json!("suspended")), "{record}");
    assert_eq!(tier.nodes[2].done_as("default", &other).await["outcome"], "delivered");
    assert_eq!(tier.bucket.objects().into_values().flatten().collect::<Vec<_>>(), ["other"]);
}
