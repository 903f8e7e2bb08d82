//! A tier: nodes over one PostgreSQL of their own on the same machine, its syncs on. The database's CPU is that of all of
//! its processes, and its WAL is what they wrote of it.

pub mod cluster;
pub mod grown;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio_postgres::Client;

use self::cluster::{Cluster, forget_statements, tell_statements, wal_bytes};
use crate::support::{CONNECTIONS, Node, Receiver, at_a_pace, call, connect, cpu_seconds, quantile, timed};

/// The shortest that a deadline of a second allows.
const LEASE: Duration = Duration::from_secs(3);

struct Tier {
    nodes: Vec<Node>,
    client: Client,
    cluster: Cluster,
    _keys: tempfile::TempDir,
}

/// What was used up to some moment.
#[derive(Clone, Copy, Default)]
struct Used {
    nodes: f64,
    database: f64,
    /// This process and the receiver.
    load: f64,
    wal: f64,
}

impl Tier {
    /// Each node has one source address of its own.
    async fn start(nodes: usize, delivery: &str) -> Self {
        let cluster = Cluster::start();
        let keys = tempfile::tempdir().expect("a directory");
        let start = |n: usize| Node::start_as(&config(n, &cluster.url(), keys.path(), delivery));
        // One behind the other: the first makes the schema.
        let nodes: Vec<Node> = (0..nodes).map(start).collect();
        let client = cluster.client().await;
        Self { nodes, client, cluster, _keys: keys }
    }

    fn memory_mib(&self) -> f64 {
        self.nodes.iter().map(Node::memory_mib).sum()
    }

    async fn used(&self, receiver: &Receiver) -> Used {
        Used {
            nodes: self.nodes.iter().map(|node| cpu_seconds(node.pid())).sum(),
            database: self.cluster.cpu_seconds(),
            load: cpu_seconds(std::process::id()) + cpu_seconds(receiver.child.id()),
            wal: wal_bytes(&self.client).await,
        }
    }

    /// Of what is to be told.
    async fn begins(&self, receiver: &Receiver) -> Used {
        forget_statements(&self.client).await;
        self.used(receiver).await
    }

    async fn number(&self, sql: &str) -> i64 {
        self.client.query_one(sql, &[]).await.expect("an answer").get(0)
    }

    /// Until nothing is left that is not done.
    async fn settled(&self) {
        let started = Instant::now();
        while self.number("SELECT count(*) FROM (SELECT FROM live LIMIT 1) l").await > 0 {
            assert!(started.elapsed() < Duration::from_secs(300), "it does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Calls of `batch` sends of 1 KiB, to all of the nodes at once.
    async fn submit(&self, receiver: &Receiver, batch: usize, sends: u64) {
        let data = "x".repeat(1024);
        let one = json!({ "method": "POST", "url": format!("http://{}/hook", receiver.fast), "data": data });
        let body = if batch == 1 { one } else { Value::Array(vec![one; batch]) };
        let body = Bytes::from(serde_json::to_vec(&body).expect("JSON"));
        let left = Arc::new(AtomicU64::new(sends / batch as u64));
        let mut tasks = tokio::task::JoinSet::new();
        for caller in 0..CONNECTIONS {
            let (left, body, api) = (left.clone(), body.clone(), self.nodes[caller % self.nodes.len()].api);
            tasks.spawn(async move {
                let mut client = connect(api).await;
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                    accepted(&mut client, "/v1/sends", &body).await;
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("a submitter");
        }
    }

    /// Submits so many, until the receiver has all and every record is written.
    async fn round(&self, receiver: &Receiver, batch: usize, sends: u64) -> Round {
        let (before, seen, ended) = (self.used(receiver).await, receiver.count().await, self.number(ENDED).await);
        let started = Instant::now();
        self.submit(receiver, batch, sends).await;
        let accepted = started.elapsed().as_secs_f64();
        delivered(receiver, seen + sends).await;
        self.settled().await;
        let took = started.elapsed().as_secs_f64();
        let after = self.used(receiver).await;
        // A refused call is made again, and some of it may have been begun: those are other sends. Each is seen once.
        let (seen, ended) = (receiver.count().await - seen, self.number(ENDED).await - ended);
        assert!(seen <= ended as u64, "{seen} requests of {ended} sends");
        Round { accepted, took, before, after }
    }

    async fn tell(&self, name: &str, took: f64, sends: u64, before: &Used, after: &Used) {
        let each = |before: f64, after: f64| (after - before) / sends as f64 * 1e6;
        let (nodes, database) = (each(before.nodes, after.nodes), each(before.database, after.database));
        let load = each(before.load, after.load);
        println!(
            "{name:<44} {:>12.0} {:>14.1} {:>12.1}",
            sends as f64 / took,
            nodes + database + load,
            self.memory_mib()
        );
        println!(
            "    CPU us/send: nodes {nodes:.1}, database {database:.1}, load and receiver {load:.1}; WAL {:.2} KiB/send",
            (after.wal - before.wal) / sends as f64 / 1024.0
        );
        tell_statements(&self.client, sends).await;
    }
}

/// Sends that were accepted by one process and delivered to another, and what that used.
struct Round {
    accepted: f64,
    took: f64,
    before: Used,
    after: Used,
}

/// What the nodes have ended: transactions before the first of them, and what is put there as if, have lesser places.
const ENDED: &str = "SELECT count(*) FROM done WHERE seq > 1::bigint << 29";

type Sender = hyper::client::conn::http1::SendRequest<http_body_util::Full<Bytes>>;

async fn accepted(client: &mut Sender, path: &str, body: &Bytes) {
    loop {
        let (status, answer) = call(client, "POST", path, body.clone()).await;
        match status {
            202 => return,
            429 | 503 => tokio::time::sleep(Duration::from_millis(20)).await,
            _ => panic!("{status}: {}", String::from_utf8_lossy(&answer)),
        }
    }
}

/// Of a call that was refused, as it took too long, some may have gone out all the same: the receiver may see more.
async fn delivered(receiver: &Receiver, sends: u64) {
    let started = Instant::now();
    while receiver.count().await < sends {
        assert!(started.elapsed() < Duration::from_secs(300), "they do not arrive");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn config(n: usize, url: &str, keys: &Path, delivery: &str) -> String {
    format!(
        "node = \"bench-{n}\"\n[api]\nlisten = \"API\"\n[metrics]\nlisten = \"METRICS\"\n[[egress.source]]\n\
         public = \"127.0.0.{}\"\n[delivery]\ndeadline = \"1s\"\n{delivery}\n[dns]\nservers = [\"127.0.0.1:53\"]\n[store]\n\
         engine = \"postgres\"\nurl = \"{url}\"\nkey_file = \"{}/key\"\nlease = \"{}s\"\n[[policy.exception]]\n\
         networks = [\"127.0.0.0/8\"]\nreason = \"the bench's receiver\"\n",
        11 + n,
        keys.display(),
        LEASE.as_secs()
    )
}

/// Calls of `batch` sends of 1 KiB each to so many nodes, until the receiver has all and every record is written.
pub async fn accept_and_deliver(receiver: &Receiver, nodes: usize, batch: usize, sends: u64) {
    let tier = Tier::start(nodes, "").await;
    tier.submit(receiver, batch, 5_000).await;
    tier.settled().await;
    forget_statements(&tier.client).await;
    let Round { accepted, took, before, after } = tier.round(receiver, batch, sends).await;
    tier.tell(&format!("tier of {nodes}, {batch} send(s) a call, 1 KiB"), took, sends, &before, &after).await;
    println!("    accepted at {:.0}/s", sends as f64 / accepted);
}

/// Fewer sends a second than the tier can do, one a call, each node a share.
pub async fn paced(receiver: &Receiver, nodes: usize, rate: u32, seconds: u32) {
    let tier = Tier::start(nodes, "").await;
    tier.submit(receiver, 1, 2_000).await;
    tier.settled().await;
    receiver.latencies().await;
    let before = tier.begins(receiver).await;
    let started = Instant::now();
    let apis: Vec<SocketAddr> = tier.nodes.iter().map(|node| node.api).collect();
    let sends = at_a_pace(&apis, receiver.fast, rate, seconds).await;
    tier.settled().await;
    let took = started.elapsed().as_secs_f64();
    let after = tier.used(receiver).await;
    tier.tell(&format!("tier of {nodes}, paced, {rate} calls a second"), took, sends, &before, &after).await;
    let latencies = receiver.latencies().await;
    let at = |share: f64| quantile(&latencies, share);
    println!(
        "    accept-to-receiver ms: p50 {:.2}  p99 {:.1}  max {:.1}  ({} seen)",
        at(0.5),
        at(0.99),
        at(1.0),
        latencies.len()
    );
}

/// Held sends of as many executions as it takes, released at once.
pub async fn backlog(receiver: &Receiver, nodes: usize, sends: u64) {
    const OF_ONE: u64 = 10_000;
    let tier = Tier::start(nodes, "queued_per_tenant = 1000000").await;
    tier.submit(receiver, 1, 2_000).await;
    tier.settled().await;
    hold(&tier, receiver, sends, OF_ONE).await;
    let (before, seen) = (tier.begins(receiver).await, receiver.count().await);
    let started = Instant::now();
    release(&tier, sends / OF_ONE).await;
    let released = started.elapsed().as_secs_f64();
    delivered(receiver, seen + sends).await;
    tier.settled().await;
    let took = started.elapsed().as_secs_f64();
    let after = tier.used(receiver).await;
    tier.tell(&format!("tier of {nodes}: a backlog of {sends} drains"), took, sends, &before, &after).await;
    println!("    released within {released:.2} s, all done within {took:.2} s");
}

async fn hold(tier: &Tier, receiver: &Receiver, sends: u64, of_one: u64) {
    const CALL: u64 = 500;
    let one = json!({ "method": "POST", "url": format!("http://{}/hook", receiver.fast), "data": "x".repeat(1024) });
    let body = Bytes::from(serde_json::to_vec(&Value::Array(vec![one; CALL as usize])).expect("JSON"));
    let mut client = connect(tier.nodes[0].api).await;
    for n in 0..sends / CALL {
        accepted(&mut client, &format!("/v1/executions/bench-{}/sends", n * CALL / of_one), &body).await;
    }
}

async fn release(tier: &Tier, executions: u64) {
    let mut client = connect(tier.nodes[0].api).await;
    for n in 0..executions {
        let (status, answer) =
            call(&mut client, "POST", &format!("/v1/executions/bench-{n}/finish"), Bytes::new()).await;
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
    }
}

/// A node is killed that has claimed some of a backlog: when the others have that, and when what it had begun has ended.
pub async fn killed(receiver: &Receiver) {
    // Few at a time, so that much of it is still there.
    let delivery = "in_flight_per_tenant_destination = 4\nqueued_per_tenant = 1000000";
    let mut tier = Tier::start(3, delivery).await;
    tier.submit(receiver, 1, 300).await;
    tier.settled().await;
    hold(&tier, receiver, 10_000, 10_000).await;
    let (victim, silent) = (tier.nodes.remove(2), receiver.silent);
    // What it has in flight when it dies.
    let body = json!({ "method": "POST", "url": format!("http://{silent}/silent"), "data": 1 }).to_string();
    let of_victim = "(SELECT incarnation FROM node WHERE name = 'bench-2')";
    release(&tier, 1).await;
    let mut client = connect(victim.api).await;
    let (status, _) = call(&mut client, "POST", "/v1/sends", Bytes::from(body)).await;
    assert_eq!(status, 202);
    let claimed = format!("SELECT count(*) FROM live WHERE began_at IS NULL AND incarnation IN {of_victim}");
    let begun = format!("SELECT count(*) FROM live WHERE began_at IS NOT NULL AND incarnation IN {of_victim}");
    let started = Instant::now();
    while tier.number(&claimed).await == 0 {
        assert!(started.elapsed() < Duration::from_secs(60), "it claims nothing");
    }
    drop(victim);
    let started = Instant::now();
    let (had_claimed, had_begun) = (tier.number(&claimed).await, tier.number(&begun).await);
    while tier.number(&claimed).await > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let adopted = started.elapsed().as_secs_f64();
    while tier.number(&begun).await > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let interrupted = started.elapsed().as_secs_f64();
    let name = "tier of 3, one killed";
    println!("{name:<44} {:>12} {:>14} {:>12.1}", "-", "-", tier.memory_mib());
    println!(
        "    under a lease of {} s and a deadline of 1 s, {had_claimed} claimed were taken over {adopted:.2} s after the \
         kill, and {had_begun} begun had ended {interrupted:.2} s after it",
        LEASE.as_secs()
    );
}

/// How long after an end on one node who waits for it on another is told; and of sends that were held on one node and
/// released on another, how long after the release the first byte leaves from either, and who waits on the first is told.
pub async fn wakes(receiver: &Receiver, times: usize) {
    let tier = Tier::start(2, "").await;
    tier.submit(receiver, 1, 200).await;
    tier.settled().await;
    let (mut one, mut other) = (connect(tier.nodes[0].api).await, connect(tier.nodes[1].api).await);
    // To a path that answers at once: what the wait takes is what the wake takes.
    let (mut ended, mut started, mut released) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..times {
        let id = submitted(&mut one, "/v1/sends", receiver).await;
        ended.push(told_after_end(&mut other, &id).await.0);
    }
    for n in 0..times {
        let execution = format!("/v1/executions/wake-{n}");
        let id = submitted(&mut one, &format!("{execution}/sends"), receiver).await;
        let (told, ()) = tokio::join!(told_after_end(&mut one, &id), async {
            // Once it is waited for.
            tokio::time::sleep(Duration::from_millis(20)).await;
            let (status, _) = call(&mut other, "POST", &format!("{execution}/finish"), Bytes::new()).await;
            assert_eq!(status, 200);
        });
        released.push(told.0);
        started.push(ms_between(time_of(&told.1, "released_at"), time_of(&told.1, "started_at")));
    }
    let of = |name: &str, what: &str, took: &[f64]| {
        let at = |share: f64| quantile(took, share);
        println!("{name:<44} ms {what}: p50 {:.1}  p99 {:.1}  max {:.1}", at(0.5), at(0.99), at(1.0));
    };
    of(&format!("tier of 2: {times} ends told on the other node"), "after the end", &ended);
    let name = format!("tier of 2: {times} held on one, released on the other");
    of(&name, "from the release to the start", &started);
    of("", "from the end until told where it was held", &released);
}

/// One send, and the name that it gets.
async fn submitted(client: &mut Sender, path: &str, receiver: &Receiver) -> String {
    let (status, answer) = call(client, "POST", path, timed(receiver.fast)).await;
    assert_eq!(status, 202, "{}", String::from_utf8_lossy(&answer));
    let record: Value = serde_json::from_slice(&answer).expect("JSON");
    record["id"].as_str().expect("an id").to_owned()
}

/// Milliseconds after its end, with its record.
async fn told_after_end(client: &mut Sender, id: &str) -> (f64, Value) {
    let (_, answer) = call(client, "GET", &format!("/v1/sends/{id}?wait=10"), Bytes::new()).await;
    let now = jiff::Timestamp::now();
    let record: Value = serde_json::from_slice(&answer).expect("JSON");
    (ms_between(time_of(&record, "finished_at"), now), record)
}

fn time_of(record: &Value, name: &str) -> jiff::Timestamp {
    record[name].as_str().and_then(|text| text.parse().ok()).expect("a time")
}

fn ms_between(one: jiff::Timestamp, other: jiff::Timestamp) -> f64 {
    other.duration_since(one).as_secs_f64() * 1e3
}
