//! Who waits for a send's end is woken by it.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::node::{Node, PATIENCE, counting_receiver};

/// Waits in a row, each longer than a third of the tests' patience where nobody is woken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_ends_with_its_send_and_not_with_its_time() {
    const WAITS: u32 = 12;
    const { assert!(30 * WAITS as u64 > PATIENCE.as_secs(), "a wait that runs to its end is noticed") };
    // Long enough for the wait to stand before the send is done.
    let (receiver, _) = counting_receiver(Duration::from_millis(150)).await;
    let node = Node::started("");
    let started = Instant::now();
    for number in 0..WAITS {
        let send = json!({ "method": "GET", "url": format!("http://{receiver}/{number}") }).to_string();
        let (_, record) = node.call("POST", "/v1/sends", &send).await.expect("an answer");
        let path = format!("/v1/sends/{}?wait=30", record["id"].as_str().expect("an id"));
        assert_eq!(node.get(&path).await["outcome"], "delivered");
        assert!(started.elapsed() < PATIENCE, "{} waits took their whole time", number + 1);
    }
}
