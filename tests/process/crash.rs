//! SIGKILL at seeded random moments while calls, executions and deliveries are in progress; then the ledger.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::load::{Ledger, ends, judge, replayed_keys_answer_the_same, start_load};
use crate::node::{Node, PATIENCE, alone, call, counting_receiver};

/// How often the process is killed at least, and how many sends are accepted meanwhile.
const KILLS: u64 = 300;
const ACCEPTED: usize = 2_000;

/// How many sends are accepted between two kills, about: none to twice as many.
const EACH: u64 = 20;
const _: () = assert!(KILLS as usize * EACH as usize > 2 * ACCEPTED);

/// A seeded xorshift: the same moments for the same seed.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_and_nothing_doubled_over_hundreds_of_kills() {
    let _alone = alone().await;
    let (receiver, seen) = counting_receiver(Duration::from_millis(3)).await;
    let mut node = Node::new("[delivery]\nhold_limit = \"1s\"\n");
    let ledger = Ledger::default();
    let mut random = Seeded(0x5eed_e9e5);
    let mut kills = 0;
    while kills < KILLS || ledger.lock().unwrap().accepted.len() <= ACCEPTED {
        let round = kills;
        node.start();
        let load = start_load(node.api, receiver, &round.to_string(), &ledger);
        // Not when so much time has passed, but when so much was accepted: on a busy machine that is later.
        let enough = ledger.lock().unwrap().accepted.len() as u64 + random.below(2 * EACH);
        let (started, soon) = (Instant::now(), Duration::from_millis(random.below(5)));
        while (ledger.lock().unwrap().accepted.len() as u64) < enough {
            assert!(started.elapsed() < PATIENCE, "nothing more is accepted: {}", node.log());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(soon).await;
        node.kill();
        for worker in load {
            ends(worker).await;
        }
        kills += 1;
    }
    node.start();
    replayed_keys_answer_the_same(&node, &ledger).await;
    let records = node.settled().await;
    let (promises, seen) = (ledger.lock().unwrap(), seen.all());
    let outcomes = judge(&records, &promises, &seen);
    println!(
        "{kills} kills: {} sends answered 202, {} records {outcomes:?}, {} paths seen by the receiver",
        promises.accepted.len(),
        records.len(),
        seen.len()
    );
    assert!(outcomes.get("interrupted").copied().unwrap_or_default() > 0, "no kill met a delivery");
}

/// One changed bit of the newest log, at a start: neither the call that stood there nor its key is made anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_whose_calls_entry_is_damaged_sends_nothing_again() {
    let (receiver, seen) = counting_receiver(Duration::ZERO).await;
    let mut node = Node::started("");
    for (turn, what) in ["/of-a-url", "key-itself", "nothing"].into_iter().enumerate() {
        let (path, key) = (format!("/of-a-url-{turn}"), format!("a-key-itself-{turn}"));
        let send = json!({"method": "POST", "url": format!("http://{receiver}{path}"), "data": "x"}).to_string();
        let submit = async |node: &Node| {
            let answer = call(node.api, "POST", "/v1/sends", &send, &[("idempotency-key", &key)]).await;
            answer.expect("an answer")
        };
        let (status, record) = submit(&node).await;
        assert_eq!(status, 202, "{record}");
        let id = record["id"].as_str().expect("an id").to_owned();
        node.done_as("default", &id).await;
        if turn % 2 == 0 {
            node.kill();
        } else {
            node.signal(nix::sys::signal::Signal::SIGTERM);
            assert_eq!(node.has_ended().await, Some(0));
        }
        let log = node.path("store/pieces/00000001/log");
        let mut bytes = std::fs::read(&log).expect("the log");
        let wanted = format!("{what}-{turn}");
        if let Some(at) = bytes.windows(wanted.len()).position(|part| part == wanted.as_bytes()) {
            bytes[at] ^= 1;
            std::fs::write(&log, bytes).expect("written");
        }
        node.start();
        let (status, answer) = submit(&node).await;
        assert_eq!((status, answer["id"].as_str()), (202, Some(&*id)), "{what}: {answer}");
        assert_eq!(answer["state"], if what == "nothing" { "done" } else { "gone" }, "{what}: {answer}");
        // Without that key the same call is another.
        let (_, other) = node.call("POST", "/v1/sends", &send).await.expect("an answer");
        node.done_as("default", other["id"].as_str().expect("an id")).await;
        assert_eq!(seen.of(&path).len(), 2, "{what}: once with the key, once without");
    }
}
