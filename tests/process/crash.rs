//! SIGKILL at seeded random moments while calls, executions and deliveries are in progress; then the ledger.

use std::time::{Duration, Instant};

use crate::load::{Ledger, ends, judge, replayed_keys_answer_the_same, start_load};
use crate::node::{Node, PATIENCE, alone, counting_receiver};

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
