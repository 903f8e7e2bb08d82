//! A store that was copied and restored: `serve --restored` sends nothing of what waits in it.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::node::{Node, PATIENCE, counting_receiver};

fn copy(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "cp -a {}", from.display());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_in_a_restored_copy_is_never_sent_a_second_time() {
    let (receiver, seen) = counting_receiver(Duration::from_millis(50)).await;
    let narrow = "[delivery]\nin_flight = 1\n";
    let mut node = Node::started(narrow);
    let send = |path: &str| json!({ "method": "POST", "url": format!("http://{receiver}{path}"), "data": 1 });
    let queued: Vec<_> = (0..30).map(|number| send(&format!("/queued/{number}"))).collect();
    assert_eq!(node.call("POST", "/v1/sends", &json!(queued).to_string()).await.unwrap().0, 202);
    let held = json!([send("/held/1"), send("/held/2")]).to_string();
    assert_eq!(node.call("POST", "/v1/executions/run/sends", &held).await.unwrap().0, 202);
    let started = Instant::now();
    while seen.all().is_empty() {
        assert!(started.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The backup, as OPERATIONS has it: of a node that is stopped.
    node.signal(Signal::SIGTERM);
    assert_eq!(node.ended(), Some(0), "{}", node.log());
    let mut restored = Node::new(narrow);
    copy(&node.path("store"), &restored.path("store"));
    copy(&node.path("key"), &restored.path("key"));

    // It goes on, and sends all of it.
    node.start();
    assert_eq!(node.call("POST", "/v1/executions/run/finish", "").await.unwrap().1["released"], 2);
    let made = node.settled().await;
    assert_eq!(made.len(), 32);
    assert!(made.iter().all(|record| record["outcome"] == "delivered"));
    let before = seen.all();
    assert_eq!(before.len(), 32);

    // Its copy sends none of it, at this start and at the next.
    restored.start_with(|command| {
        command.arg("--restored");
    });
    let records = restored.settled().await;
    assert_eq!(records.len(), 32);
    let waited: Vec<_> = records.iter().filter(|record| record["outcome"] == "interrupted").collect();
    assert!(waited.len() >= 2, "nothing waited in the copy: this shows nothing");
    for record in &waited {
        let error = &record["error"];
        assert_eq!((&error["code"], &error["processed"]), (&"interrupted".into(), &"maybe".into()), "{record}");
        assert!(error["message"].as_str().unwrap().contains("copy of the store"), "{record}");
        assert_eq!(record["started_at"], serde_json::Value::Null, "{record}");
    }
    assert_eq!(records.len() - waited.len(), records.iter().filter(|record| record["outcome"] == "delivered").count());
    assert!(restored.log().contains("copy that was restored"), "{}", restored.log());
    restored.kill();
    restored.start();
    assert_eq!(restored.call("POST", "/v1/executions/run/finish", "").await.unwrap().1["released"], 0);
    assert_eq!(restored.settled().await.len(), 32);
    // What it accepts now it sends.
    restored.call("POST", "/v1/sends", &send("/after").to_string()).await.unwrap();
    restored.settled().await;
    assert_eq!(seen.of("/after").len(), 1);
    let after = seen.all();
    assert_eq!(after.len(), 33);
    assert!(after.values().all(|peers| peers.len() == 1), "a send was made twice");
}
