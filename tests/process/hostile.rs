//! Receivers that mean harm, by the hundred at once: every delivery ends, not before its deadline, in one outcome, and
//! leaves nothing behind. The bench's scenario of this name does the same with ten thousand, and says how late.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harm::{Hostile, Kind};
use crate::node::{Node, PATIENCE, alone, call, counting_receiver};
use crate::tls::{Authority, Leaf};

const TENANTS: usize = 4;
/// Deliveries of each kind for each tenant.
const EACH: usize = 16;

/// What the README says that one delivery may take, beside what it sends, in KiB.
const KIB_PER_DELIVERY: u64 = 448;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_delivery_to_a_hostile_receiver_ends_once_and_leaves_nothing_behind() {
    let _alone = alone().await;
    let authority = Authority::new();
    // Long enough for every delivery to come to the phase in which it is kept, on a busy machine too.
    let mut node = Node::new("[delivery]\ndeadline = \"8s\"\n[tls]\nextra_ca = [\"ca.pem\"]\n");
    authority.write_pem(&node.path("ca.pem"));
    node.start();
    let acceptor = |alpn: &[&str]| authority.server(&["127.0.0.1"], Leaf::Good, alpn);
    let receivers: Vec<Hostile> = Kind::ALL.iter().map(|kind| Hostile::start(*kind, &acceptor)).collect();
    let (fast, _) = counting_receiver(Duration::ZERO).await;
    // Once it answers, it has all that it opens for itself.
    node.get("/v1/tenants").await;
    let (base, sockets) = (node.memory_kib(), sockets(&node));

    let mut kinds = HashMap::new();
    for tenant in 0..TENANTS {
        for number in 0..EACH {
            let sends = receivers.iter().map(|receiver| {
                let data = "x".repeat(receiver.kind.request_bytes());
                json!({ "method": "POST", "url": receiver.url(tenant * EACH + number), "data": data })
            });
            let body = Value::Array(sends.collect()).to_string();
            let who = format!("tenant-{tenant}");
            let (status, answer) =
                call(node.api, "POST", "/v1/sends", &body, &[("egressd-tenant", &who)]).await.expect("an answer");
            assert_eq!(status, 202, "{answer}");
            for (send, receiver) in answer["sends"].as_array().expect("a list").iter().zip(&receivers) {
                kinds.insert(send["id"].as_str().expect("an id").to_owned(), receiver.kind);
            }
        }
    }
    assert_eq!(kinds.len(), TENANTS * EACH * Kind::ALL.len());

    let started = std::time::Instant::now();
    while node.metric("egressd_in_flight").await.is_none() || in_flight(&node).await > 0.0 {
        assert!(started.elapsed() < PATIENCE, "some never end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let memory = node.memory_peak_kib();
    let requests: u64 = kinds.values().map(|kind| kind.request_bytes() as u64 / 1024).sum();
    let bound = base + 72 * 1024 + kinds.len() as u64 * KIB_PER_DELIVERY + requests;
    assert!(memory <= bound, "{memory} KiB of memory, {bound} promised");

    let all = [("egressd-tenant", "*")];
    let mut ends: HashMap<Kind, HashMap<String, usize>> = HashMap::new();
    let mut path = "/v1/sends?limit=200".to_owned();
    loop {
        let (_, page) = call(node.api, "GET", &path, "", &all).await.expect("an answer");
        for record in page["sends"].as_array().expect("a list") {
            let id = record["id"].as_str().expect("an id");
            let kind = kinds.remove(id).expect("accepted here, and listed once");
            // A slot is free when the receiver is done, and the end follows.
            let tenant = [("egressd-tenant", record["context"]["tenant"].as_str().expect("a tenant"))];
            let path = format!("/v1/sends/{id}?wait=30");
            let record = match record["state"].as_str() {
                Some("done") => record.clone(),
                _ => call(node.api, "GET", &path, "", &tenant).await.expect("an answer").1,
            };
            let end = end_of(&record);
            let total = record["timings_ms"]["total"].as_f64().expect("a time");
            if end.contains("timeout") {
                assert!(total >= 8_000.0, "{kind:?} ran out after {total} ms");
            }
            *ends.entry(kind).or_default().entry(end).or_default() += 1;
        }
        match page["next"].as_str() {
            Some(next) => path = format!("/v1/sends?limit=200&cursor={next}"),
            None => break,
        }
    }
    assert!(kinds.is_empty(), "{} sends have no record", kinds.len());
    for (kind, ends) in &ends {
        let expected = kind.ends();
        let as_told = |end: &&String| expected.contains(&end.as_str());
        assert!(ends.keys().any(|end| as_told(&end)), "{kind:?} ended {ends:?}, none {expected:?}");
        // A busy machine may come no further than to a phase before.
        let else_ended: Vec<_> = ends.keys().filter(|end| !as_told(end)).collect();
        assert!(
            else_ended.iter().all(|end| end.starts_with("failed timeout ") && !later(end, expected)),
            "{kind:?} ended {ends:?}, not {expected:?}"
        );
    }
    for receiver in &receivers {
        for (path, times) in receiver.seen() {
            assert_eq!(times, 1, "{:?}: {path} was asked for {times} times", receiver.kind);
        }
        let answered = ends[&receiver.kind].iter().any(|(end, _)| end.starts_with("delivered"));
        assert!(!answered || receiver.seen().len() == TENANTS * EACH, "{:?}", receiver.kind);
    }

    // What was idle is closed after `keep_alive`; what others hold open here is closed as well.
    let patience = std::time::Instant::now();
    while self::sockets(&node) > sockets {
        assert!(patience.elapsed() < PATIENCE, "{} sockets, {sockets} before", self::sockets(&node));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let send = json!({ "method": "GET", "url": format!("http://{fast}/after") }).to_string();
    let (_, answer) = node.call("POST", "/v1/sends", &send).await.expect("an answer");
    let record = node.get(&format!("/v1/sends/{}?wait=30", answer["id"].as_str().expect("an id"))).await;
    assert_eq!(record["outcome"], "delivered", "{record}");
}

/// Whether an end was in a later phase than any of these.
fn later(end: &str, than: &[&str]) -> bool {
    const PHASES: [&str; 6] = ["dns", "connect", "tls", "write", "wait", "read"];
    let place = |end: &str| PHASES.iter().position(|phase| end.ends_with(phase)).unwrap_or(PHASES.len());
    than.iter().all(|than| place(end) > place(than))
}

fn end_of(record: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    match record["error"].as_object() {
        Some(error) => format!("{} {} {}", text(&record["outcome"]), text(&error["code"]), text(&error["phase"])),
        None => format!("{} {}", text(&record["outcome"]), record["response"]["status"]),
    }
}

/// Sends of any tenant that are queued or in flight.
async fn in_flight(node: &Node) -> f64 {
    let (_, tenants) = node.call("GET", "/v1/tenants", "").await.expect("an answer");
    let of = |tenant: &Value, what: &str| tenant[what].as_f64().unwrap_or_default();
    let tenants = tenants["tenants"].as_array().expect("a list");
    tenants.iter().map(|tenant| of(tenant, "queued") + of(tenant, "in_flight")).sum()
}

fn sockets(node: &Node) -> usize {
    let files = std::fs::read_dir(format!("/proc/{}/fd", node.pid())).expect("its files");
    let targets = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
}
