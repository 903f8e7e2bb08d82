//! Nodes on one PostgreSQL: killed, frozen, drained, cut off and started again under load, as is the database; then the
//! ledger.

mod batches;
mod events;
mod mail;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::load::{Ledger, ends, judge, replayed_keys_answer_the_same, start_load};
use crate::node::{
    Node, PATIENCE, SOURCES, alone, by_a_clock_at, call, counting_receiver, counting_receiver_at, free_port, run,
};

/// A database of the test's own, which ends with this value.
pub struct Cluster {
    child: Child,
    told: BufReader<ChildStdout>,
    port: u16,
}

impl Cluster {
    pub fn start() -> Self {
        Self::start_as(&[])
    }

    /// What the database's processes do is the same; what others write to the disk is not waited for.
    fn in_memory() -> Self {
        Self::start_as(&["memory"])
    }

    fn start_as(how: &[&str]) -> Self {
        let port = free_port().port();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/postgres/cluster");
        let mut child = Command::new(script)
            .arg(port.to_string())
            .args(how)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tests/postgres/cluster runs");
        let mut directory = String::new();
        let mut told = BufReader::new(child.stdout.take().expect("its output"));
        told.read_line(&mut directory).expect("its directory");
        assert!(!directory.is_empty(), "no cluster was started");
        Self { child, told, port }
    }

    /// Returns once it is done.
    pub fn tell(&mut self, command: &str) {
        writeln!(self.child.stdin.as_mut().expect("its input"), "{command}").expect("told");
        let mut said = String::new();
        self.told.read_line(&mut said).expect("its word");
        assert_eq!(said.trim(), "done", "{command}");
    }

    pub fn url(&self) -> String {
        format!("postgres://egressd@127.0.0.1:{}/postgres", self.port)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The `[store]` of a tier, and a lease that is soon over.
fn in_tier(url: &str, key: &std::path::Path) -> String {
    format!("[store]\nengine = \"postgres\"\nurl = \"{url}\"\nkey_file = \"{}\"\nlease = \"3s\"\n", key.display())
}

const SOON: &str = "[delivery]\ndeadline = \"1s\"\nhold_limit = \"1s\"\n";

const READY: &str = "\"ready\"";
/// Whichever of a node's parts finds it out first says so.
const FENCED: [&str; 2] = ["this node was taken for dead", "this node begins nothing more\""];

/// It was taken for dead since it was last started.
fn is_fenced(node: &Node) -> bool {
    let log = node.log_of_this_life();
    FENCED.iter().any(|fenced| log.contains(fenced))
}

/// Callers of some nodes, as many of them as it takes until so much more is accepted, or they are all taken for dead. Each
/// node has its own: those of one that is frozen wait with it.
struct Load<'a> {
    receiver: SocketAddr,
    ledger: &'a Ledger,
    rounds: usize,
    workers: Vec<(SocketAddr, JoinHandle<()>)>,
}

impl Load<'_> {
    async fn until_more(&mut self, nodes: &[&Node], more: usize) {
        let goal = self.ledger.lock().unwrap().accepted.len() + more;
        let started = Instant::now();
        loop {
            for node in nodes {
                let calling = self.workers.iter().filter(|(api, worker)| *api == node.api && !worker.is_finished());
                if calling.count() < 6 {
                    self.rounds += 1;
                    let more = start_load(node.api, self.receiver, &self.rounds.to_string(), self.ledger);
                    self.workers.extend(more.map(|worker| (node.api, worker)));
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            if self.ledger.lock().unwrap().accepted.len() >= goal || nodes.iter().all(|node| is_fenced(node)) {
                return;
            }
            let logs = || nodes.iter().map(|node| node.log()).collect::<Vec<_>>().join("\n");
            assert!(started.elapsed() < PATIENCE, "nothing more is accepted: {}", logs());
        }
    }
}

async fn logged(node: &Node, what: &str, times: usize) {
    let started = Instant::now();
    while node.log().matches(what).count() < times {
        assert!(started.elapsed() < PATIENCE, "{what}: {}", node.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Started, and past its start: while the database is away that fails. One that ends because of what may pass (it was taken
/// for dead meanwhile, its last life still holds its name) is started again.
async fn ready(node: &mut Node) {
    let (before, started) = (node.log().matches(READY).count(), Instant::now());
    node.start();
    while node.log().matches(READY).count() == before {
        assert!(started.elapsed() < PATIENCE, "not ready: {}", node.log());
        if !node.is_running() {
            assert_eq!(node.ended(), Some(1), "{}", node.log());
            node.start();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tier_goes_on_while_its_nodes_die_freeze_drain_and_come_back() {
    let _alone = alone().await;
    let cluster = Cluster::start();
    let (receiver, seen) = counting_receiver(Duration::from_millis(20)).await;
    let keys = tempfile::tempdir().expect("a directory");
    let store = in_tier(&cluster.url(), &keys.path().join("key"));
    let mut one = Node::of("one", &SOURCES[..2], &store, SOON);
    let mut other = Node::of("other", &SOURCES[2..], &store, SOON);
    let (code, told, why) = run(&["check", "--config", one.config().to_str().unwrap()], one.directory.path());
    assert_eq!(code, Some(0), "{told}{why}");
    for node in [&mut one, &mut other] {
        ready(node).await;
    }
    let ledger = Ledger::default();
    let mut load = Load { receiver, ledger: &ledger, rounds: 0, workers: Vec::new() };

    load.until_more(&[&one, &other], 300).await;
    // Killed, and at once back under its name.
    one.kill();
    load.until_more(&[&other], 100).await;
    ready(&mut one).await;
    load.until_more(&[&one, &other], 100).await;
    // Killed for longer: the other takes its queue over.
    other.kill();
    logged(&one, "a node's lease is over", 1).await;
    load.until_more(&[&one], 100).await;
    ready(&mut other).await;
    load.until_more(&[&one, &other], 100).await;
    // Frozen, past its lease: it finds itself fenced, ends what it had in flight, and leaves.
    ledger.lock().unwrap().frozen = true;
    other.signal(Signal::SIGSTOP);
    logged(&one, "a node's lease is over", 2).await;
    load.until_more(&[&one], 100).await;
    other.signal(Signal::SIGCONT);
    assert_eq!(other.ended(), Some(1), "{}", other.log());
    assert!(is_fenced(&other), "{}", other.log());
    ready(&mut other).await;
    load.until_more(&[&one, &other], 100).await;
    // Drained, one after the other.
    for node in [&mut one, &mut other] {
        node.signal(Signal::SIGTERM);
        assert_eq!(node.ended(), Some(0), "{}", node.log());
        ready(node).await;
    }
    load.until_more(&[&one, &other], 100).await;
    for node in [&mut one, &mut other] {
        node.signal(Signal::SIGTERM);
        assert_eq!(node.ended(), Some(0), "{}", node.log());
    }
    for (_, worker) in load.workers {
        ends(worker).await;
    }
    ready(&mut one).await;
    ready(&mut other).await;
    replayed_keys_answer_the_same(&one, &ledger).await;
    replayed_keys_answer_the_same(&other, &ledger).await;
    let records = one.settled().await;
    let outcomes = judge(&records, &ledger.lock().unwrap(), &seen.all());
    println!("{} accepted, {} records: {outcomes:?}", ledger.lock().unwrap().accepted.len(), records.len());
    assert!(outcomes.get("interrupted").copied().unwrap_or_default() > 0, "nothing was met in flight");
    let of = |name: &str| records.iter().filter(|record| record["node"] == name).collect::<Vec<_>>();
    for (name, sources) in [("one", &SOURCES[..2]), ("other", &SOURCES[2..])] {
        let delivered: Vec<&&str> = of(name)
            .into_iter()
            .filter_map(|record| record["connection"]["source_ip"].as_str())
            .map(|ip| sources.iter().find(|source| **source == ip).unwrap_or_else(|| panic!("{name} from {ip}")))
            .collect();
        assert!(delivered.len() > 50, "{name} delivered {}", delivered.len());
    }
    // Every node tells the same.
    let ids = |records: &[Value]| records.iter().map(|record| record["id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(&records), ids(&other.settled().await));
}

/// Each of three is drained and started again while the others are called; and before the last, the schema is one
/// version newer than what runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tier_is_restarted_node_by_node_and_goes_on_under_a_schema_one_newer() {
    let _alone = alone().await;
    let mut cluster = Cluster::in_memory();
    let (receiver, seen) = counting_receiver(Duration::from_millis(20)).await;
    let keys = tempfile::tempdir().expect("a directory");
    // Nothing has to be over soon here.
    let store = in_tier(&cluster.url(), &keys.path().join("key")).replace("\"3s\"", "\"15s\"");
    let mut nodes = Vec::new();
    for (name, source) in ["a", "b", "c"].into_iter().zip(SOURCES) {
        let mut node = Node::of(name, &[source], &store, "[delivery]\nhold_limit = \"1s\"\n");
        ready(&mut node).await;
        nodes.push(node);
    }
    let ledger = Ledger::default();
    let mut load = Load { receiver, ledger: &ledger, rounds: 0, workers: Vec::new() };
    load.until_more(&nodes.iter().collect::<Vec<_>>(), 100).await;
    for turn in 0..nodes.len() {
        nodes[turn].signal(Signal::SIGTERM);
        let others: Vec<&Node> = nodes.iter().enumerate().filter(|(n, _)| *n != turn).map(|(_, node)| node).collect();
        load.until_more(&others, 50).await;
        assert_eq!(nodes[turn].ended(), Some(0), "{}", nodes[turn].log());
        ready(&mut nodes[turn]).await;
        load.until_more(&nodes.iter().collect::<Vec<_>>(), 50).await;
    }
    // As the first node of the next version leaves it: with a column more.
    cluster.tell("sql ALTER TABLE egressd.send ADD COLUMN of_the_next text");
    cluster.tell("sql UPDATE egressd.tier SET version = version + 1");
    load.until_more(&nodes.iter().collect::<Vec<_>>(), 100).await;
    let mut last = nodes.pop().expect("three");
    last.signal(Signal::SIGTERM);
    assert_eq!(last.ended(), Some(0), "{}", last.log());
    let (code, why) = last.refuses_to_start();
    assert_eq!(code, Some(2), "{why}");
    let named =
        |before: &str| why.split(before).nth(1)?.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok();
    let (found, known) = (named("has format "), named("this egressd knows up to "));
    assert!(known.is_some() && found == known.map(|known| known + 1), "{why}");
    load.until_more(&nodes.iter().collect::<Vec<_>>(), 100).await;
    let records = {
        nodes[1].signal(Signal::SIGTERM);
        assert_eq!(nodes[1].ended(), Some(0), "{}", nodes[1].log());
        let left = &nodes[0];
        // Callers end with the first call that is not accepted.
        cluster.tell("stop fast");
        for (_, worker) in load.workers {
            ends(worker).await;
        }
        cluster.tell("start");
        left.settled().await
    };
    let outcomes = judge(&records, &ledger.lock().unwrap(), &seen.all());
    println!("{} accepted, {} records: {outcomes:?}", ledger.lock().unwrap().accepted.len(), records.len());
    // But for what was accepted as the database went away, whose caller was told that nothing was.
    let accepted = &ledger.lock().unwrap().accepted;
    let interrupted: Vec<&Value> = records.iter().filter(|record| record["outcome"] == "interrupted").collect();
    assert!(
        interrupted.iter().all(|record| !accepted.contains_key(record["id"].as_str().expect("an id"))),
        "{interrupted:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_works_on_every_node() {
    let cluster = Cluster::start();
    let (receiver, seen) = counting_receiver(Duration::ZERO).await;
    let keys = tempfile::tempdir().expect("a directory");
    let store = in_tier(&cluster.url(), &keys.path().join("key"));
    let mut one = Node::of("one", &SOURCES[..2], &store, SOON);
    let mut other = Node::of("other", &SOURCES[2..], &store, SOON);
    for node in [&mut one, &mut other] {
        ready(node).await;
    }
    // Opened here, filled there, finished here, looked at there.
    let send =
        |path: &str| json!({ "method": "POST", "url": format!("http://{receiver}{path}"), "data": 1 }).to_string();
    for (node, path) in [(&one, "/a"), (&other, "/b")] {
        let (status, answer) = node.call("POST", "/v1/executions/e/sends", &send(path)).await.expect("an answer");
        assert_eq!((status, answer["state"].as_str()), (202, Some("held")), "{answer}");
    }
    let (_, answer) = one.call("POST", "/v1/executions/e/finish", "").await.expect("an answer");
    assert_eq!(answer["released"], 2);
    let started = Instant::now();
    loop {
        let execution = other.get("/v1/executions/e").await;
        if execution["delivered"] == 2 {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "{execution}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Waited for on the other node.
    let (_, answer) = one.call("POST", "/v1/sends", &send("/c")).await.expect("an answer");
    let record = other.done_as("default", answer["id"].as_str().expect("an id")).await;
    assert_eq!((record["outcome"].as_str(), record["node"].as_str()), (Some("delivered"), Some("one")));
    assert!(["/a", "/b", "/c"].iter().all(|path| seen.of(path).len() == 1), "{:?}", seen.all());
    // Suspended here: refused and ended there.
    let suspension = json!({ "host": receiver.ip().to_string(), "reason": "enough" }).to_string();
    let (status, _) = one.call("POST", "/v1/suspensions", &suspension).await.expect("an answer");
    assert_eq!(status, 201);
    let answer = loop {
        // Nothing is accepted there before it is loaded there, which takes a moment.
        let (status, answer) = other.call("POST", "/v1/sends", &send("/d")).await.expect("an answer");
        if status == 202 {
            break answer;
        }
        assert!(status == 503 && started.elapsed() < PATIENCE, "{answer}");
    };
    let record = one.done_as("default", answer["id"].as_str().expect("an id")).await;
    assert_eq!((record["outcome"].as_str(), record["error"]["code"].as_str()), (Some("blocked"), Some("suspended")));
    assert_eq!(seen.of("/d"), []);
    // A second process under a name that lives is refused.
    let twin = Node::of("other", &SOURCES[2..], &store, SOON);
    let (code, _, why) = {
        let (config, directory) = (twin.config(), twin.directory.path().to_owned());
        tokio::task::spawn_blocking(move || run(&["serve", "--config", config.to_str().unwrap()], &directory))
            .await
            .unwrap()
    };
    assert_eq!(code, Some(1), "{why}");
    assert!(why.contains("another live process of this tier is called other"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_see_each_other_and_send_from_no_address_of_anothers() {
    let cluster = Cluster::start();
    let (receiver, seen) = counting_receiver(Duration::ZERO).await;
    let keys = tempfile::tempdir().expect("a directory");
    let store = in_tier(&cluster.url(), &keys.path().join("key"));
    let mut one = Node::of("one", &SOURCES[..2], &store, SOON);
    let mut other = Node::of("other", &SOURCES[1..], &store, SOON);
    for node in [&mut one, &mut other] {
        ready(node).await;
    }
    logged(&other, "another node of this tier sends from this source", 1).await;
    let source = async |node: &Node| node.get("/v1/sources").await["sources"][0].clone();
    let shared = source(&other).await;
    assert_eq!(shared["usable"], false);
    assert_eq!(shared["reason"], format!("{} is used by node one of this tier", SOURCES[1]));
    for (node, this) in [(&one, [true, false]), (&other, [false, true])] {
        let answer = node.get("/v1/nodes").await;
        let nodes = answer["nodes"].as_array().expect("nodes");
        let told: Vec<_> = nodes.iter().map(|node| (&node["node"], &node["sources"], &node["this"])).collect();
        assert_eq!(
            told,
            [
                (&json!("one"), &json!(SOURCES[..2]), &json!(this[0])),
                (&json!("other"), &json!(SOURCES[2..]), &json!(this[1]))
            ]
        );
        assert!(nodes.iter().all(|node| node["lease_ms"] == 3000 && node["lease_age_ms"].is_u64()), "{answer}");
    }
    // What alerts rest on.
    let listed = include_str!("../deploy/metrics-of-tiers.txt").lines().filter(|line| !line.starts_with('#'));
    for name in listed.filter_map(|line| line.split_whitespace().next()) {
        let started = Instant::now();
        while one.metric(&format!("{name} ")).await.is_none() {
            assert!(started.elapsed() < PATIENCE, "{name} is not there");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let api = format!("http://{}", one.api);
    let directory = one.directory.path().to_owned();
    let told = tokio::task::spawn_blocking(move || run(&["nodes", "--api", &api], &directory)).await.unwrap();
    assert_eq!(told.0, Some(0), "{told:?}");
    assert!(told.1.contains("other") && told.1.contains(SOURCES[2]), "{told:?}");
    // Whatever the destination, what the other accepts leaves from its own.
    for n in 0..20 {
        let send = json!({ "method": "GET", "url": format!("http://{receiver}/{n}"), "context": { "workflow": "w" } });
        let (status, answer) = other.call("POST", "/v1/sends", &send.to_string()).await.expect("an answer");
        assert_eq!(status, 202, "{answer}");
        let record = other.done_as("default", answer["id"].as_str().expect("an id")).await;
        let of = if record["node"] == "other" { &SOURCES[2..] } else { &SOURCES[..2] };
        assert!(of.contains(&record["connection"]["source_ip"].as_str().expect("a source")), "{record}");
    }
    assert_eq!(seen.all().len(), 20);
    // It is the other's once its holder has left.
    one.signal(Signal::SIGTERM);
    assert_eq!(one.ended(), Some(0), "{}", one.log());
    logged(&other, "the other node has let go of this source", 1).await;
    assert_eq!(source(&other).await["usable"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_source_where_it_was_accepted_leaves_from_a_node_that_has_one() {
    let cluster = Cluster::start();
    let (receiver, seen) = counting_receiver(Duration::ZERO).await;
    let keys = tempfile::tempdir().expect("a directory");
    let store = in_tier(&cluster.url(), &keys.path().join("key"));
    let acme = format!("{SOON}[[tenant]]\nid = \"acme\"\npool = \"own\"\n");
    let own = format!("{acme}[[egress.source]]\npublic = \"{}\"\npool = \"own\"\n", SOURCES[2]);
    let mut one = Node::of("one", &SOURCES[..1], &store, &acme);
    let mut other = Node::of("other", &SOURCES[1..2], &store, &own);
    for node in [&mut one, &mut other] {
        ready(node).await;
    }
    for n in 0..10 {
        let send = json!({ "method": "GET", "url": format!("http://{receiver}/{n}") }).to_string();
        let answer = call(one.api, "POST", "/v1/sends", &send, &[("egressd-tenant", "acme")]).await;
        let (status, answer) = answer.expect("an answer");
        assert_eq!(status, 202, "{answer}");
        let record = one.done_as("acme", answer["id"].as_str().expect("an id")).await;
        assert_eq!((&record["outcome"], &record["node"]), (&json!("delivered"), &json!("other")), "{record}");
        assert_eq!(record["connection"]["source_ip"], SOURCES[2]);
    }
    assert_eq!(seen.all().len(), 10);
}

/// Of three nodes one has no source of the pool that the tenants have, and none of IPv6.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenants_host_is_reached_from_one_node_and_over_the_family_that_it_has() {
    let cluster = Cluster::start();
    let (receiver, seen) = counting_receiver(Duration::ZERO).await;
    let (over_v6, seen_over_v6) = counting_receiver_at("[::1]:0", Duration::ZERO).await;
    let keys = tempfile::tempdir().expect("a directory");
    let store = in_tier(&cluster.url(), &keys.path().join("key"));
    let tenants: Vec<String> = (0..8).map(|n| format!("t{n}")).collect();
    let of_tenants = tenants.iter().map(|tenant| format!("[[tenant]]\nid = \"{tenant}\"\npool = \"own\"\n"));
    let exception = "[[policy.exception]]\nnetworks = [\"::1/128\"]\nreason = \"a receiver of tests\"\n";
    let common = format!("{SOON}{exception}{}", of_tenants.collect::<String>());
    let source = |ip: &str, pool: &str| format!("[[egress.source]]\npublic = \"{ip}\"\npool = \"{pool}\"\n");
    let own = |ip: &str| format!("{common}{}", source(ip, "own"));
    // Of IPv6 the third has the only source of the pool that the first has an IPv4 one of.
    let third = format!("{}{}", own(SOURCES[2]), source("::1", "default"));
    let mut nodes = [
        Node::of("one", &SOURCES[..1], &store, &common),
        Node::of("other", &[], &store, &own(SOURCES[1])),
        Node::of("third", &[], &store, &third),
    ];
    for node in &mut nodes {
        let list = [&SOURCES[..], &["::1"]].concat().join("\n");
        std::fs::write(node.path("public-ips.txt"), list).expect("the list");
        ready(node).await;
    }
    let [one, _, third] = &mut nodes;
    let deliver = async |to: &Node, tenant: &str, receiver: SocketAddr, path: &str| {
        let send = json!({ "method": "GET", "url": format!("http://{receiver}{path}") }).to_string();
        let answer = call(to.api, "POST", "/v1/sends", &send, &[("egressd-tenant", tenant)]).await;
        let (status, answer) = answer.expect("an answer");
        assert_eq!(status, 202, "{answer}");
        to.done_as(tenant, answer["id"].as_str().expect("an id")).await
    };
    // Each learns of the others within seconds. From then on a tenant's stay where they are.
    let started = Instant::now();
    let (mut of_tenant, mut agreed) = (std::collections::HashMap::new(), 0);
    for round in 0.. {
        agreed += 1;
        for tenant in &tenants {
            let path = format!("/{tenant}-{round}");
            let record = deliver(one, tenant, receiver, &path).await;
            assert_eq!(record["outcome"], "delivered", "{record}");
            let peer = seen.of(&path)[0].ip().to_string();
            assert_eq!(record["connection"]["source_ip"], peer.as_str());
            if of_tenant.insert(tenant, peer.clone()).is_some_and(|before| before != peer) {
                agreed = 0;
            }
        }
        if agreed == 6 {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "tenants go on moving");
    }
    let used: std::collections::HashSet<_> = of_tenant.values().cloned().collect();
    assert_eq!(used.len(), 2, "{of_tenant:?}");
    // A destination of IPv6 alone: the first has begun it before it knows.
    let mut delivered = 0;
    for n in 0.. {
        let path = format!("/v6-{n}");
        let record = deliver(one, "default", over_v6, &path).await;
        if record["outcome"] != "delivered" && delivered == 0 && started.elapsed() < PATIENCE {
            continue;
        }
        assert_eq!((&record["outcome"], &record["node"]), (&json!("delivered"), &json!("third")), "{record}");
        let peers = seen_over_v6.of(&path);
        assert!(peers.len() == 1 && peers[0].ip().to_string() == "::1", "{peers:?}");
        delivered += 1;
        if delivered == 3 {
            break;
        }
    }
    // Where nobody has one, it ends where it is.
    third.signal(Signal::SIGTERM);
    assert_eq!(third.ended(), Some(0), "{}", third.log());
    let started = Instant::now();
    loop {
        let record = deliver(one, "default", over_v6, "/nowhere").await;
        // Within a moment it may still be handed to the one that has left, and come back.
        if record["outcome"] == "failed" {
            break assert_eq!(record["error"]["processed"], "no", "{record}");
        }
        assert!(started.elapsed() < PATIENCE, "{record}");
    }
    assert_eq!(seen_over_v6.of("/nowhere"), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_clock_is_wrong_goes_by_the_databases() {
    let cluster = Cluster::start();
    let (receiver, seen) = counting_receiver(Duration::ZERO).await;
    let keys = tempfile::tempdir().expect("a directory");
    let store = in_tier(&cluster.url(), &keys.path().join("key"));
    let few = "[delivery]\ndeadline = \"1s\"\n";
    let mut one = Node::of("one", &SOURCES[..2], &store, few);
    let mut other = Node::of("other", &SOURCES[2..], &store, few);
    ready(&mut one).await;
    let send = |path: &str| json!({ "method": "GET", "url": format!("http://{receiver}{path}") }).to_string();
    let keyed = async |node: &Node| {
        let answer = call(node.api, "POST", "/v1/sends", &send("/keyed"), &[("idempotency-key", "k")]).await;
        let (status, answer) = answer.expect("an answer");
        assert_eq!(status, 202, "{answer}");
        answer["id"].as_str().expect("an id").to_owned()
    };
    let first = keyed(&one).await;
    let (status, held) = one.call("POST", "/v1/executions/e/sends", &send("/held")).await.expect("an answer");
    assert_eq!(status, 202, "{held}");
    let created =
        |answer: &Value| answer["created_at"].as_str().expect("a time").parse::<jiff::Timestamp>().expect("one");
    let begun = created(&held);
    let day_ahead = begun + jiff::SignedDuration::from_hours(25);
    let (code, told, why) = {
        let mut check = by_a_clock_at(&day_ahead.strftime("%F %T").to_string());
        let made = check.args(["check", "--config"]).arg(other.config()).current_dir(other.directory.path()).output();
        let made = made.expect("it runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (made.status.code(), text(made.stdout), text(made.stderr))
    };
    assert_eq!(code, Some(0), "{told}{why}");
    assert!(format!("{told}{why}").contains("clock differs from the database's by "), "{told}{why}");
    other.start_as(by_a_clock_at(&day_ahead.strftime("%F %T").to_string()));
    logged(&other, READY, 1).await;
    logged(&other, "this machine's clock differs from the database's", 1).await;
    // What it accepts is of the tier's time, and so is what it forgets and lets go.
    assert_eq!(keyed(&other).await, first);
    let (status, answer) = other.call("POST", "/v1/sends", &send("/new")).await.expect("an answer");
    assert_eq!(status, 202, "{answer}");
    let later = created(&answer).duration_since(begun);
    assert!(later.as_hours() == 0 && !later.is_negative(), "{later:?}");
    other.done_as("default", answer["id"].as_str().expect("an id")).await;
    let (status, answer) = one.call("POST", "/v1/executions/e/discard", "").await.expect("an answer");
    assert_eq!((status, &answer["discarded"]), (200, &json!(1)), "{answer}");
    assert_eq!((seen.of("/keyed").len(), seen.of("/held").len()), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_on_another_node_ends_with_its_send_whatever_transaction_is_open() {
    let cluster = Cluster::start();
    // Long enough for the other node to wait for it.
    let (receiver, _) = counting_receiver(Duration::from_millis(500)).await;
    let keys = tempfile::tempdir().expect("a directory");
    let store = in_tier(&cluster.url(), &keys.path().join("key"));
    let delivery = "[delivery]\ndeadline = \"1s\"\n";
    let mut one = Node::of("one", &SOURCES[..2], &store, delivery);
    let mut other = Node::of("other", &SOURCES[2..], &store, delivery);
    ready(&mut one).await;
    ready(&mut other).await;
    let (open, connection) = tokio_postgres::connect(&cluster.url(), tokio_postgres::NoTls).await.expect("connected");
    tokio::spawn(connection);
    open.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.expect("a transaction");
    let send = json!({ "method": "GET", "url": format!("http://{receiver}/") }).to_string();
    let (status, answer) = one.call("POST", "/v1/sends", &send).await.expect("an answer");
    assert_eq!(status, 202, "{answer}");
    let (status, held) = one.call("POST", "/v1/executions/e/sends", &send).await.expect("an answer");
    assert_eq!(status, 202, "{held}");
    let wait = |answer: &Value, most: u32| format!("/v1/sends/{}?wait={most}", answer["id"].as_str().expect("an id"));
    // What is held is waited for in vain, for half as long.
    let (path, in_vain) = (wait(&answer, 30), wait(&held, 15));
    let (_, record) = tokio::select! {
        answer = other.call("GET", &path, "") => answer.expect("an answer"),
        _ = other.call("GET", &in_vain, "") => panic!("it waits for all of its time"),
    };
    assert_eq!(record["outcome"], "delivered", "{record}");
    open.batch_execute("COMMIT").await.expect("it was open until now");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_tells_what_is_wrong_with_the_database() {
    let mut cluster = Cluster::start();
    let url = cluster.url();
    let keys = tempfile::tempdir().expect("a directory");
    let key = keys.path().join("key");
    let told = |url: &str, key: &std::path::Path| {
        let node = Node::of("one", &SOURCES[..1], &in_tier(url, key), SOON);
        let (code, out, why) = run(&["check", "--config", node.config().to_str().unwrap()], node.directory.path());
        (code, format!("{out}{why}"))
    };
    assert_eq!(told(&url, &key).0, Some(0));
    assert!(!key.exists(), "it changes nothing");
    let nobody = format!("postgres://egressd@127.0.0.1:{}/postgres", free_port().port());
    for (url, expected) in [
        (nobody, "the database cannot be reached"),
        (url.replace("/postgres", "/nowhere"), "nowhere"),
        (format!("{url}?sslmode=verify-full"), "TLS"),
        (url.replace("egressd@", "egressd:secret@"), "has a password in it"),
        (url.replace("postgres://", "mysql://"), "is not the URL of a PostgreSQL database"),
        (format!("{url}?options=-c%20synchronous_commit%3Doff"), "synchronous_commit = off"),
    ] {
        let (code, told) = told(&url, &key);
        assert_eq!(code, Some(2), "{url}: {told}");
        assert!(told.contains(expected), "{url}: {told}");
    }
    // A node makes the tier, with its key; who comes with another is told.
    let mut node = Node::of("one", &SOURCES[..1], &in_tier(&url, &key), SOON);
    node.start();
    logged(&node, "\"ready\"", 1).await;
    assert_eq!(told(&url, &key).0, Some(0), "beside a node that runs");
    let another = keys.path().join("another");
    assert!(told(&url, &another).1.contains("key file"), "a missing one");
    std::fs::write(&another, [7; 32]).expect("written");
    std::fs::set_permissions(&another, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("narrowed");
    assert!(told(&url, &another).1.contains("not the one that this tier was made with"));
    // A pool in between: one that keeps sessions apart is none of ours.
    let pool = free_port().port();
    let through = format!("postgres://egressd@127.0.0.1:{pool}/postgres");
    for (mode, expected) in [("session", Some(0)), ("transaction", Some(2))] {
        cluster.tell(&format!("pool {pool} {mode}"));
        let (code, told) = told(&through, &key);
        assert_eq!(code, expected, "{mode}: {told}");
        assert_eq!(code == Some(2), told.contains("set pool_mode = session"), "{told}");
    }
    // A database that only follows, at check and at the start.
    node.signal(Signal::SIGTERM);
    assert_eq!(node.ended(), Some(0), "{}", node.log());
    for command in ["stop fast", "standby", "start"] {
        cluster.tell(command);
    }
    let (code, check) = told(&url, &key);
    assert_eq!(code, Some(2), "{check}");
    assert!(check.contains("the database is a standby"), "{check}");
    let (code, _, why) = run(&["serve", "--config", node.config().to_str().unwrap()], node.directory.path());
    assert_eq!(code, Some(1), "it may become the primary: {why}");
    assert!(why.contains("the database is a standby"), "{why}");
}
