//! The time of day is set while sends wait.

use std::time::Duration;

use serde_json::json;

use crate::node::{Node, by_a_clock_that_is_set, counting_receiver};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_waits_no_longer_when_the_clock_is_set_back() {
    let extra = "[delivery]\ndeadline = \"3s\"\nhold_limit = \"2s\"\nin_flight_per_tenant_destination = 1\n";
    let (quick, seen) = counting_receiver(Duration::ZERO).await;
    let (slow, _) = counting_receiver(Duration::from_secs(30)).await;
    // By the true one first; then set back, or set forward by mistake and back again.
    for (n, sets) in [["-1d"].as_slice(), &["+2d", "+0d"], &["-2h", "-1d"]].into_iter().enumerate() {
        let mut node = Node::new(extra);
        let (clock, next) = (node.path("clock"), node.path("next"));
        let set = |to: &str| {
            // As a whole: it is read at every look at the clock.
            std::fs::write(&next, to).expect("written");
            std::fs::rename(&next, &clock).expect("set");
        };
        set("+0d");
        node.start_as(by_a_clock_that_is_set(&clock));
        let send = |to, expires_in: u32| {
            json!({ "method": "GET", "url": format!("http://{to}/{n}"), "expires_in": expires_in }).to_string()
        };
        let mut waiting = Vec::new();
        let submitted = async |path: &str, send: String| {
            let (status, answer) = node.call("POST", path, &send).await.expect("an answer");
            assert_eq!(status, 202, "{answer}");
            answer["id"].as_str().expect("an id").to_owned()
        };
        let (last, first) = sets.split_last().expect("one");
        first.iter().for_each(|to| set(to));
        // One has the destination's only place, for its deadline; the next waits behind it.
        submitted("/v1/sends", send(slow, 3600)).await;
        for (path, to, expires_in, outcome) in
            [("/v1/sends", slow, 1, "expired"), ("/v1/executions/e/sends", quick, 3600, "delivered")]
        {
            waiting.push((submitted(path, send(to, expires_in)).await, outcome));
        }
        set(last);
        for (id, outcome) in waiting {
            let record = node.done_as("default", &id).await;
            assert_eq!(record["outcome"], outcome, "{sets:?}: {record}");
        }
        assert_eq!(seen.of(&format!("/{n}")).len(), 1, "{sets:?}");
    }
}
