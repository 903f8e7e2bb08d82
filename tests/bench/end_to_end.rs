//! The end-to-end bench: the real binary between this process (the load) and a receiver in a process of its own, with
//! a bare hyper client loop on the same receiver beside it as the limit. Prints figures; asserts nothing about time.
//!
//! `cargo bench --bench end_to_end [-- SCENARIO...]`, with scenarios `limit idle single batch paced backlog silent
//! noisy hosts holds chains neighbour_accepts hostile full restart events rows`, and those of a tier, which are run only when
//! they are named: `tier tier_paced tier_wakes tier_backlog tier_killed tier_grown`. With `EGRESSD=PATH` it measures another build of
//! egressd, which is how two of them are compared in turns. `EGRESSD_BENCH_RECORDS` says how many records the larger tier of
//! `tier_grown` has; with `EGRESSD_BENCH_STATEMENTS=1` rows of a tier tell what its database was asked.

#![allow(clippy::disallowed_methods, reason = "a load generator and a stopwatch, not the appliance")]

mod batches;
#[allow(dead_code, reason = "the bench uses less of it than the tests")]
#[path = "../suite/support/hostile.rs"]
mod hostile;
mod neighbour;
#[allow(dead_code, reason = "the benches use parts of it each")]
mod support;
mod tier;
#[allow(dead_code, reason = "the bench uses less of it than the tests")]
#[path = "../suite/support/tls.rs"]
mod tls;

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hostile::{Hostile, Kind};
use serde_json::{Value, json};
use support::{
    CONNECTIONS, Node, Receiver, at_a_pace, body_1k, call, call_as, connect, cpu_seconds, machine, memory_mib,
    quantile, receive, submit, timed,
};
use tokio::net::TcpListener;

/// What the README says that one delivery may take, beside what it sends.
const KIB_PER_DELIVERY: f64 = 448.0;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    if arguments.first().is_some_and(|argument| argument == "receiver") {
        return runtime.block_on(receive());
    }
    if let [first, rest @ ..] = &arguments[..]
        && first == "caller"
    {
        return runtime.block_on(neighbour::load(rest));
    }
    if let [first, pem] = &arguments[..]
        && first == "harm"
    {
        return runtime.block_on(harm(Path::new(pem)));
    }
    runtime.block_on(bench(&arguments));
}

async fn bench(wanted: &[String]) {
    let runs = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    println!("machine: {}", machine());
    let receiver = Receiver::start();
    println!("\n{:<44} {:>12} {:>14} {:>12}", "scenario", "per second", "CPU us/send", "memory MiB");
    if runs("limit") {
        limit(&receiver, 100_000).await;
    }
    if runs("idle") {
        let node = Node::start("");
        tokio::time::sleep(Duration::from_secs(2)).await;
        println!("{:<44} {:>12} {:>14} {:>12.1}", "idle", "-", "-", node.memory_mib());
    }
    if runs("single") {
        accept_and_deliver(&receiver, 1, 40_000).await;
    }
    if runs("batch") {
        accept_and_deliver(&receiver, 100, 100_000).await;
    }
    if runs("paced") {
        for rate in [300, 2_000] {
            paced(&receiver, rate, 8).await;
        }
    }
    if runs("backlog") {
        backlog(&receiver, 10_000).await;
    }
    if runs("silent") {
        silent(&receiver, 5_000).await;
    }
    if runs("noisy") {
        noisy(&receiver).await;
    }
    if runs("hosts") {
        hosts(&receiver, 100_000).await;
    }
    if runs("holds") {
        holds(&receiver, 40_000).await;
    }
    if runs("chains") {
        chains(&receiver, 1_000).await;
    }
    if runs("neighbour_accepts") {
        neighbour::neighbour_accepts(&receiver).await;
    }
    if runs("hostile") {
        hostile(&receiver, &Kind::ALL, 5, 125).await;
    }
    if runs("full") {
        hostile(&receiver, &[Kind::FullThenDrip], 3, 2_000).await;
        hostile(&receiver, &[Kind::FullThenDripTls], 3, 1_000).await;
        hostile(&receiver, &[Kind::FullThenDripHttp2], 3, 1_000).await;
    }
    if runs("restart") {
        restart(1_000_000).await;
    }
    if runs("events") {
        batches::events(&receiver, 10_000, 30).await;
    }
    if runs("rows") {
        batches::rows(100_000).await;
    }
    let is_named = |name: &str| wanted.iter().any(|wanted| wanted == name);
    if is_named("tier") {
        for (batch, sends) in [(1, 30_000), (100, 60_000)] {
            for nodes in 1..=3 {
                tier::accept_and_deliver(&receiver, nodes, batch, sends).await;
            }
        }
    }
    if is_named("tier_paced") {
        for nodes in [1, 3] {
            tier::paced(&receiver, nodes, 500, 12).await;
        }
    }
    if is_named("tier_wakes") {
        tier::wakes(&receiver, 200).await;
    }
    if is_named("tier_backlog") {
        tier::backlog(&receiver, 3, 100_000).await;
    }
    if is_named("tier_killed") {
        tier::killed(&receiver).await;
    }
    if is_named("tier_grown") {
        tier::grown::grown(&receiver).await;
    }
}

/// A process is killed with so many sends in its queue; how soon the next one makes its first delivery.
async fn restart(sends: usize) {
    let queued = "queued = 4000000\nqueued_per_tenant = 4000000\n";
    let idle = {
        let node = Node::start("");
        tokio::time::sleep(Duration::from_secs(2)).await;
        node.memory_mib()
    };
    // One at a time, to a listener that nobody accepts from: the rest waits.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let node = Node::start_with(
        &format!("{queued}in_flight = 1\nin_flight_per_tenant = 1\nin_flight_per_tenant_destination = 1\n"),
        "",
    );
    let url = format!("http://{}/", listener.local_addr().expect("bound"));
    let one = json!({ "method": "POST", "url": url, "data": { "name": "Luke" } });
    let body = Bytes::from(serde_json::to_vec(&Value::Array(vec![one; 1000])).expect("JSON"));
    let left = Arc::new(AtomicU64::new(sends as u64 / 1000));
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for tenant in 0..8 {
        let (left, body, api) = (left.clone(), body.clone(), node.api);
        tasks.spawn(async move {
            let mut client = connect(api).await;
            let who = format!("tenant-{tenant}");
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                let (status, answer) = call_as(&mut client, "POST", "/v1/sends", body.clone(), Some(&who)).await;
                assert_eq!(status, 202, "{}", String::from_utf8_lossy(&answer));
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("a submitter");
    }
    let (accepted, before) = (started.elapsed(), node.memory_mib());
    let waiting = node.gauge("egressd_queued_sends").await;
    let directory = node.killed();
    // What the first process had begun.
    while tokio::time::timeout(Duration::from_millis(100), listener.accept()).await.is_ok() {}

    let started = Instant::now();
    let starting = tokio::task::spawn_blocking(move || Node::start_in(directory, queued, ""));
    let (mut socket, _) = listener.accept().await.expect("a delivery");
    tokio::io::AsyncReadExt::read_u8(&mut socket).await.expect("a request");
    let first = started.elapsed();
    let node = starting.await.expect("the second process");
    let answers = started.elapsed();
    while node.gauge("egressd_queued_sends").await < waiting * 0.99 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let name = format!("killed with {waiting} queued");
    println!("{name:<44} {:>12} {:>14} {:>12.1}", "-", "-", node.memory_mib());
    println!(
        "    accepted in {:.1} s ({before:.1} MiB); {:.1} MiB above an idle one; after the restart the first delivery arrives after {:.2} s, calls \
         are answered after {:.2} s",
        accepted.as_secs_f64(),
        node.memory_mib() - idle,
        first.as_secs_f64(),
        answers.as_secs_f64()
    );
}

/// The bare client: what the receiver and this machine can do without an appliance in between.
async fn limit(receiver: &Receiver, requests: u64) {
    let cpu = cpu_seconds(std::process::id());
    let started = Instant::now();
    let left = Arc::new(AtomicU64::new(requests));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (left, address) = (left.clone(), receiver.fast);
        tasks.spawn(async move {
            let mut client = connect(address).await;
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                call(&mut client, "POST", "/limit", body_1k()).await;
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    let took = started.elapsed().as_secs_f64();
    let cpu = (cpu_seconds(std::process::id()) - cpu) / requests as f64 * 1e6;
    println!("{:<44} {:>12.0} {:>14.1} {:>12}", "limit: bare hyper client, 1 KiB", requests as f64 / took, cpu, "-");
}

/// Calls of `batch` sends of 1 KiB each, until the receiver has all and every record is written.
async fn accept_and_deliver(receiver: &Receiver, batch: usize, sends: u64) {
    let node = Node::start("");
    submit(&node, receiver, batch, 2_000).await;
    node.settled(2_000).await;
    let (cpu, seen) = (cpu_seconds(node.pid()), receiver.count().await);
    let started = Instant::now();
    submit(&node, receiver, batch, sends).await;
    let accepted = started.elapsed().as_secs_f64();
    receiver.reaches(seen + sends).await;
    let delivered = started.elapsed().as_secs_f64();
    let outcomes = node.settled(2_000 + sends).await;
    let cpu = (cpu_seconds(node.pid()) - cpu) / sends as f64 * 1e6;
    let name = format!("accept + deliver, {batch} send(s) a call, 1 KiB");
    println!("{name:<44} {:>12.0} {cpu:>14.1} {:>12.1}", sends as f64 / delivered, node.memory_mib());
    println!("    accepted at {:.0}/s; outcomes {outcomes:?}", sends as f64 / accepted);
}

/// Held sends of one execution, released at once.
async fn backlog(receiver: &Receiver, sends: u64) {
    let node = Node::start("");
    submit(&node, receiver, 1, 1_000).await;
    node.settled(1_000).await;
    let one = json!({ "method": "POST", "url": format!("http://{}/hook", receiver.fast), "data": "x".repeat(1024) });
    let body = Bytes::from(serde_json::to_vec(&Value::Array(vec![one; 500])).expect("JSON"));
    let mut client = connect(node.api).await;
    for _ in 0..sends / 500 {
        let (status, answer) = call(&mut client, "POST", "/v1/executions/bench/sends", body.clone()).await;
        assert_eq!(status, 202, "{}", String::from_utf8_lossy(&answer));
    }
    let (cpu, seen) = (cpu_seconds(node.pid()), receiver.count().await);
    let started = Instant::now();
    let (status, _) = call(&mut client, "POST", "/v1/executions/bench/finish", Bytes::new()).await;
    assert_eq!(status, 200);
    receiver.reaches(seen + sends).await;
    let took = started.elapsed().as_secs_f64();
    node.settled(1_000 + sends).await;
    let cpu = (cpu_seconds(node.pid()) - cpu) / sends as f64 * 1e6;
    println!(
        "{:<44} {:>12.0} {cpu:>14.1} {:>12.1}",
        format!("backlog of {sends} held sends drains"),
        sends as f64 / took,
        node.memory_mib()
    );
}

/// Deliveries in flight to a receiver that never answers.
async fn silent(receiver: &Receiver, sends: u64) {
    let node = Node::start("in_flight_per_tenant = 10000\nin_flight_per_tenant_destination = 10000\n");
    let before = node.memory_mib();
    let one =
        json!({ "method": "POST", "url": format!("http://{}/silent", receiver.silent), "data": "x".repeat(1024) });
    let body = Bytes::from(serde_json::to_vec(&Value::Array(vec![one; 500])).expect("JSON"));
    let mut client = connect(node.api).await;
    for _ in 0..sends / 500 {
        let (status, _) = call(&mut client, "POST", "/v1/sends", body.clone()).await;
        assert_eq!(status, 202);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let during = node.memory_mib();
    let outcomes = node.settled(sends).await;
    let records = node.records().await;
    let mut totals: Vec<f64> = records.iter().filter_map(|record| record["timings_ms"]["total"].as_f64()).collect();
    totals.sort_by(f64::total_cmp);
    let (first, last) = (totals.first().copied().unwrap_or(0.0), totals.last().copied().unwrap_or(0.0));
    println!("{:<44} {:>12} {:>14} {:>12.1}", format!("{sends} in flight to a silent receiver"), "-", "-", during);
    println!(
        "    {} records end after {first:.0} to {last:.0} ms; {:.1} KiB of memory each; outcomes {outcomes:?}",
        totals.len(),
        (during - before) * 1024.0 / sends as f64
    );
}

/// So many sends a second, one a call, which is less than the node can do: what each costs, and how long after its call
/// it is at the receiver.
async fn paced(receiver: &Receiver, rate: u32, seconds: u32) {
    let node = Node::start("");
    submit(&node, receiver, 1, 2_000).await;
    node.settled(2_000).await;
    receiver.latencies().await;
    let cpu = cpu_seconds(node.pid());
    let sends = at_a_pace(&[node.api], receiver.fast, rate, seconds).await;
    node.settled(2_000 + sends).await;
    let cpu = (cpu_seconds(node.pid()) - cpu) / sends as f64 * 1e6;
    let latencies = receiver.latencies().await;
    let at = |share: f64| quantile(&latencies, share);
    println!(
        "{:<44} {:>12.0} {cpu:>14.1} {:>12.1}",
        format!("paced, {rate} calls a second"),
        f64::from(rate),
        node.memory_mib()
    );
    println!(
        "    accept-to-receiver ms: p50 {:.2}  p99 {:.1}  max {:.1}  ({} seen)",
        at(0.5),
        at(0.99),
        at(1.0),
        latencies.len()
    );
}

/// One tenant floods a silent receiver; another sends 20 a second to one that answers.
async fn noisy(receiver: &Receiver) {
    let mut figures = Vec::new();
    for flood in [false, true] {
        let node = Node::start("");
        if flood {
            let one =
                json!({ "method": "POST", "url": format!("http://{}/silent", receiver.silent), "data": { "n": 1 } });
            let body = Bytes::from(serde_json::to_vec(&Value::Array(vec![one; 1000])).expect("JSON"));
            let mut client = connect(node.api).await;
            for _ in 0..100 {
                let (status, _) = call_as(&mut client, "POST", "/v1/sends", body.clone(), Some("noisy")).await;
                assert_eq!(status, 202);
            }
        }
        let mut client = connect(node.api).await;
        receiver.latencies().await;
        let mut every = tokio::time::interval(Duration::from_millis(50));
        for _ in 0..200 {
            every.tick().await;
            let (status, _) = call_as(&mut client, "POST", "/v1/sends", timed(receiver.fast), Some("quiet")).await;
            assert_eq!(status, 202);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let latencies = receiver.latencies().await;
        let at = |share: f64| quantile(&latencies, share);
        let name = if flood { "neighbour of a flood of 100,000" } else { "the same tenant alone" };
        println!(
            "{name:<44} accept-to-receiver ms: p50 {:.1}  p99 {:.1}  max {:.1}  ({} seen)",
            at(0.5),
            at(0.99),
            at(1.0),
            latencies.len()
        );
        figures.push(at(0.99));
    }
    println!("    p99 with the flood is {:.2} x that without", figures[1] / figures[0]);
}

/// A tenant with so many sends to as many hosts in its queue: what its refused calls cost, what the queue costs while
/// nothing happens, and what another tenant's accepts wait.
async fn hosts(receiver: &Receiver, sends: usize) {
    let config = format!("queued_per_tenant = {sends}\nin_flight_per_tenant = 1\n");
    let node = Node::start(&config);
    let alone = accepts(&node, receiver).await;
    let mut client = connect(node.api).await;
    // On every address of 127.0.0.0/8, and accepts nothing: what was begun takes its whole time.
    let silent = TcpListener::bind("0.0.0.0:0").await.expect("a port");
    let port = silent.local_addr().expect("bound").port();
    let url = |n: usize| format!("http://127.{}.{}.{}:{port}/", 1 + (n >> 16), n >> 8 & 255, n & 255);
    for first in (0..sends).step_by(1000) {
        let one = |n| json!({ "method": "POST", "url": url(n), "data": { "n": n } });
        let batch: Vec<Value> = (first..first + 1000).map(one).collect();
        let body = Bytes::from(serde_json::to_vec(&batch).expect("JSON"));
        let (status, answer) = call_as(&mut client, "POST", "/v1/sends", body, Some("many")).await;
        assert!(status == 202 || status == 429, "{}", String::from_utf8_lossy(&answer));
    }
    let cpu = cpu_seconds(node.pid());
    tokio::time::sleep(Duration::from_secs(10)).await;
    let idle = (cpu_seconds(node.pid()) - cpu) / 10.0 * 100.0;
    let one = json!({ "method": "POST", "url": url(0), "data": 1 });
    let body = Bytes::from(serde_json::to_vec(&one).expect("JSON"));
    let calls = 20_000;
    let mut refused = 0;
    // The one that ended meanwhile left a place.
    call_as(&mut client, "POST", "/v1/sends", body.clone(), Some("many")).await;
    let cpu = cpu_seconds(node.pid());
    for _ in 0..calls {
        let (status, _) = call_as(&mut client, "POST", "/v1/sends", body.clone(), Some("many")).await;
        refused += u32::from(status == 429);
    }
    let each = (cpu_seconds(node.pid()) - cpu) / f64::from(calls) * 1e6;
    let beside = accepts(&node, receiver).await;
    let name = format!("{sends} queued to as many hosts");
    println!("{name:<44} {:>12} {:>14} {:>12.1}", "-", "-", node.memory_mib());
    println!(
        "    idle {idle:.2} % of a core; a call that gets 429 ({refused} of {calls}) costs {each:.1} us of \
         CPU; another tenant's accept p50 {beside:.2} ms, {alone:.2} ms before"
    );
}

/// The median time of an accept, in milliseconds.
async fn accepts(node: &Node, receiver: &Receiver) -> f64 {
    let mut client = connect(node.api).await;
    let one = json!({ "method": "POST", "url": format!("http://{}/limit", receiver.fast), "data": 1 });
    let body = Bytes::from(serde_json::to_vec(&one).expect("JSON"));
    let mut took = Vec::new();
    for _ in 0..500 {
        let started = Instant::now();
        let (status, _) = call_as(&mut client, "POST", "/v1/sends", body.clone(), Some("quiet")).await;
        assert_eq!(status, 202);
        took.push(started.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    took.sort_by(f64::total_cmp);
    took[took.len() / 2]
}

/// So many executions that nobody ended come to the hold limit at the same moment.
async fn holds(receiver: &Receiver, executions: u64) {
    let one_at_a_time = "in_flight_per_tenant = 1\n";
    let node = Node::start(&format!("{one_at_a_time}hold_limit = \"1h\"\n"));
    let one = json!({ "method": "POST", "url": format!("http://{}/", receiver.silent), "data": 1 });
    let body = Bytes::from(serde_json::to_vec(&one).expect("JSON"));
    let left = Arc::new(AtomicU64::new(executions));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (left, body, api) = (left.clone(), body.clone(), node.api);
        tasks.spawn(async move {
            let mut client = connect(api).await;
            while let Ok(n) = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) {
                let path = format!("/v1/executions/e{n}/sends");
                let (status, answer) = call(&mut client, "POST", &path, body.clone()).await;
                assert_eq!(status, 202, "{}", String::from_utf8_lossy(&answer));
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("a submitter");
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let cpu = cpu_seconds(node.pid());
    node.reload("hold_limit = \"1h\"", "hold_limit = \"1s\"");
    while node.gauge("egressd_held_sends").await >= executions as f64 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let started = Instant::now();
    let before = node.gauge("egressd_held_sends").await;
    while node.gauge("egressd_held_sends").await > 0.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let took = started.elapsed().as_secs_f64();
    let cpu = (cpu_seconds(node.pid()) - cpu) / executions as f64 * 1e6;
    let name = format!("{executions} executions at the hold limit");
    println!("{name:<44} {:>12.0} {cpu:>14.1} {:>12.1}", before.max(1.0) / took.max(0.1), node.memory_mib());
    println!("    the last {before} of them were released within {took:.2} s");
}

/// `count` deliveries of each kind for each of so many tenants, all in flight at once towards receivers that mean harm,
/// and a tenant beside them that sends to one that answers.
async fn hostile(receiver: &Receiver, kinds: &[Kind], tenants: usize, count: usize) {
    let harm = [Harm::start(), Harm::start()];
    let total = tenants * kinds.len() * count;
    let node = Node::start_with(
        // What the tenant beside them needs is on top.
        &format!(
            "in_flight = {}\nin_flight_per_tenant = {1}\nin_flight_per_tenant_destination = {1}\n",
            total + 100,
            total
        ),
        &format!("[tls]\nextra_ca = [{:?}, {:?}]\n", harm[0].pem(), harm[1].pem()),
    );
    let (base, sockets) = (node.memory_mib(), node.sockets());
    let sampler = tokio::spawn(sample(node.metrics, node.pid()));
    receiver.latencies().await;
    let beside = tokio::spawn(healthy(node.api, receiver.fast));

    let started = Instant::now();
    let mut submitters = tokio::task::JoinSet::new();
    for tenant in 0..tenants {
        let (api, kinds) = (node.api, kinds.to_vec());
        let addresses = harm[tenant % harm.len()].addresses.clone();
        submitters.spawn(async move {
            let mut client = connect(api).await;
            let mut batch = Vec::new();
            let mut bytes = 0;
            for number in 0..count {
                for kind in &kinds {
                    let url = format!("{}://{}/{number}", kind.scheme(), addresses[&format!("{kind:?}")]);
                    let data = "x".repeat(kind.request_bytes());
                    bytes += data.len();
                    batch.push(json!({ "method": "POST", "url": url, "data": data, "context": { "step": format!("{kind:?}") } }));
                    let last = number + 1 == count && Some(kind) == kinds.last();
                    if last || bytes > 8 << 20 || batch.len() == 500 {
                        let body = Bytes::from(serde_json::to_vec(&batch).expect("JSON"));
                        let who = format!("tenant-{tenant}");
                        let (status, answer) = call_as(&mut client, "POST", "/v1/sends", body, Some(&who)).await;
                        assert_eq!(status, 202, "{}", String::from_utf8_lossy(&answer));
                        (batch, bytes) = (Vec::new(), 0);
                    }
                }
            }
        });
    }
    while let Some(done) = submitters.join_next().await {
        done.expect("a submitter");
    }
    let accepted = started.elapsed();
    let (made, mut latencies) = {
        beside.await.expect("the tenant beside them");
        node.settled(total as u64 + HEALTHY).await;
        (started.elapsed(), receiver.latencies().await)
    };
    sampler.abort();
    let seen = SAMPLES.lock().expect("samples").drain(..).collect::<Vec<_>>();
    let most = |of: fn(&Sample) -> f64| seen.iter().map(of).fold(0.0, f64::max);
    let requests: usize = kinds.iter().map(|kind| kind.request_bytes() * count * tenants).sum();
    let formula = base + 120.0 + (total as f64 * KIB_PER_DELIVERY + requests as f64 / 1024.0) / 1024.0;
    println!(
        "{:<44} {:>12} {:>14} {:>12.1}",
        format!("{total} hostile deliveries"),
        "-",
        "-",
        most(|sample| sample.memory_mib)
    );
    let full = most(|sample| sample.in_flight);
    let during = seen.iter().filter(|sample| sample.in_flight >= full * 0.99).map(|sample| sample.memory_mib);
    println!(
        "    accepted in {:.1} s, all ended after {:.1} s; most in flight {}; overdue at most {} of {} samples; \
         memory's bound {formula:.0} MiB, {:.0} MiB while most were in flight",
        accepted.as_secs_f64(),
        made.as_secs_f64(),
        most(|sample| sample.in_flight),
        most(|sample| sample.overdue),
        seen.len(),
        during.fold(0.0, f64::max),
    );
    let mut by_kind: std::collections::BTreeMap<String, (HashMap<String, u64>, f64, f64)> = Default::default();
    for record in node.records().await {
        let Some(step) = record["context"]["step"].as_str() else { continue };
        let total = record["timings_ms"]["total"].as_f64().unwrap_or_default();
        let (ends, first, last) = by_kind.entry(step.to_owned()).or_insert((HashMap::new(), f64::MAX, 0.0));
        *ends.entry(end_of(&record)).or_default() += 1;
        (*first, *last) = (first.min(total), last.max(total));
    }
    for (kind, (ends, first, last)) in by_kind {
        let sum: u64 = ends.values().sum();
        println!("    {kind:<20} {sum:>6}  {first:>6.0} to {last:>6.0} ms  {ends:?}");
    }
    latencies.sort_by(f64::total_cmp);
    let at = |share: f64| latencies.get((latencies.len() as f64 * share) as usize).or(latencies.last()).copied();
    println!(
        "    beside them, accept-to-receiver ms: p50 {:.1}  p99 {:.1}  max {:.1}  ({} seen)",
        at(0.5).unwrap_or(f64::NAN),
        at(0.99).unwrap_or(f64::NAN),
        at(1.0).unwrap_or(f64::NAN),
        latencies.len()
    );
    // Longer than `keep_alive` and the time until that is looked at.
    tokio::time::sleep(Duration::from_secs(5)).await;
    println!("    sockets: {sockets} before, {} after; memory after: {:.1} MiB", node.sockets(), node.memory_mib());
}

/// A tenant's sends to receivers whose certificates have look-alike authorities, so many at once and again and again,
/// while every processor has something else to do; beside them one that sends 20 a second.
async fn chains(receiver: &Receiver, count: usize) {
    let harm = Harm::start();
    let url = format!("https://{}/", harm.addresses[&format!("{:?}", Kind::LookAlikes)]);
    let node = Node::start_with(
        &format!("in_flight_per_tenant = {0}\nin_flight_per_tenant_destination = {0}\n", count + 100),
        &format!("[tls]\nextra_ca = [{:?}]\n", harm.pem()),
    );
    let _busy = Busy::start();
    let sampler = tokio::spawn(sample(node.metrics, node.pid()));
    receiver.latencies().await;
    healthy(node.api, receiver.fast).await;
    node.settled(HEALTHY).await;
    let mut quiet = receiver.latencies().await;

    let beside = tokio::spawn(healthy(node.api, receiver.fast));
    let cpu = cpu_seconds(node.pid());
    let mut client = connect(node.api).await;
    let mut made = 0;
    while !beside.is_finished() {
        let batch = vec![json!({ "method": "POST", "url": url, "data": "x", "context": { "step": "evil" } }); count];
        let body = Bytes::from(serde_json::to_vec(&batch).expect("JSON"));
        let (status, answer) = call_as(&mut client, "POST", "/v1/sends", body, Some("evil")).await;
        assert_eq!(status, 202, "{}", String::from_utf8_lossy(&answer));
        made += count as u64;
        node.settled(HEALTHY + made).await;
    }
    beside.await.expect("the tenant beside them");
    node.settled(2 * HEALTHY + made).await;
    let cpu = (cpu_seconds(node.pid()) - cpu) * 1e6 / made as f64;
    let mut during = receiver.latencies().await;
    sampler.abort();
    let samples = SAMPLES.lock().expect("samples").drain(..).collect::<Vec<_>>();
    let overdue = samples.iter().map(|sample| sample.overdue).fold(0.0, f64::max);
    let totals = node.records().await.into_iter().filter_map(|record| record["timings_ms"]["total"].as_f64());
    let longest = totals.fold(0.0, f64::max);
    println!("{:<44} {:>12} {cpu:>14.1} {:>12}", format!("{made} look-alike chains, {count} at once"), "-", "-");
    let p99 = |latencies: &mut Vec<f64>| {
        latencies.sort_by(f64::total_cmp);
        let at = latencies.len() * 99 / 100;
        (latencies.get(at).copied().unwrap_or(f64::NAN), latencies.last().copied().unwrap_or(f64::NAN))
    };
    let ((quiet, quiet_most), (loud, loud_most)) = (p99(&mut quiet), p99(&mut during));
    println!(
        "    longest delivery {longest:.0} ms; overdue at most {overdue} of {} samples; beside them, accept-to-receiver ms: \
         p99 {loud:.1}, max {loud_most:.1} (without them {quiet:.1}, {quiet_most:.1})",
        samples.len()
    );
}

/// Keeps every processor busy until it is dropped.
struct Busy(Arc<std::sync::atomic::AtomicBool>);

impl Busy {
    fn start() -> Self {
        let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            let over = over.clone();
            std::thread::spawn(move || while !over.load(Ordering::Relaxed) {});
        }
        Self(over)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn end_of(record: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    match record["error"].as_object() {
        Some(error) => format!("{} {} {}", text(&record["outcome"]), text(&error["code"]), text(&error["phase"])),
        None => format!("{} {}", text(&record["outcome"]), record["response"]["status"]),
    }
}

/// What the tenant beside them sends in all.
const HEALTHY: u64 = 160;

/// Sends 20 a second for 8 s.
async fn healthy(api: SocketAddr, to: SocketAddr) {
    let mut client = connect(api).await;
    let mut every = tokio::time::interval(Duration::from_millis(50));
    for _ in 0..HEALTHY {
        every.tick().await;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_micros();
        let one = json!({ "method": "POST", "url": format!("http://{to}/timed"), "data": now.to_string() });
        let body = Bytes::from(serde_json::to_vec(&one).expect("JSON"));
        let (status, _) = call_as(&mut client, "POST", "/v1/sends", body, Some("healthy")).await;
        assert_eq!(status, 202);
    }
}

struct Sample {
    overdue: f64,
    in_flight: f64,
    memory_mib: f64,
}

static SAMPLES: std::sync::Mutex<Vec<Sample>> = std::sync::Mutex::new(Vec::new());

async fn sample(metrics: SocketAddr, pid: u32) {
    let mut client = connect(metrics).await;
    loop {
        let (_, text) = call(&mut client, "GET", "/metrics", Bytes::new()).await;
        let text = String::from_utf8_lossy(&text);
        let sum = |name: &str| -> f64 {
            let lines = text.lines().filter(|line| line.starts_with(name));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        let (overdue, in_flight) = (sum("egressd_overdue_deliveries"), sum("egressd_in_flight{"));
        SAMPLES.lock().expect("samples").push(Sample { overdue, in_flight, memory_mib: memory_mib(pid) });
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Receivers that mean harm, in a process of their own.
struct Harm {
    child: Child,
    addresses: HashMap<String, SocketAddr>,
    directory: tempfile::TempDir,
}

impl Harm {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .arg("harm")
            .arg(directory.path().join("ca.pem"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("the receivers");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let mut addresses = HashMap::new();
        for line in lines.take(Kind::ALL.len()) {
            let line = line.expect("text");
            let (kind, address) = line.split_once(' ').expect("a kind and its address");
            addresses.insert(kind.to_owned(), address.parse().expect("an address"));
        }
        Self { child, addresses, directory }
    }

    fn pem(&self) -> std::path::PathBuf {
        self.directory.path().join("ca.pem")
    }
}

impl Drop for Harm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process of the receivers that mean harm.
async fn harm(pem: &Path) {
    let authority = tls::Authority::new();
    authority.write_pem(pem);
    let acceptor = |alpn: &[&str]| authority.server(&["127.0.0.1"], tls::Leaf::Good, alpn);
    let receivers: Vec<Hostile> = Kind::ALL.iter().map(|kind| Hostile::start(*kind, &acceptor)).collect();
    for receiver in &receivers {
        println!("{:?} {}", receiver.kind, receiver.address);
    }
    std::future::pending::<()>().await;
}
