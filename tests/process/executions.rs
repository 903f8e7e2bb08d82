//! An execution's life with the real process: killed between any two of its steps, called many times at once, and
//! thousands of them open together.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::node::{Node, alone, call, counting_receiver};

fn sends(receiver: std::net::SocketAddr, paths: std::ops::Range<usize>, of: &str) -> String {
    let one = |n| json!({ "method": "POST", "url": format!("http://{receiver}/{of}-{n}"), "data": { "n": n } });
    Value::Array(paths.map(one).collect()).to_string()
}

/// `SIGKILL`, and a new process on what was left.
fn killed(node: &mut Node) {
    node.kill();
    node.start();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_between_any_two_steps_changes_nothing_of_what_was_answered() {
    let (receiver, seen) = counting_receiver(Duration::ZERO).await;
    let mut node = Node::started("");
    let key = [("idempotency-key", "the first call")];
    let to = "/v1/executions/run/sends";
    let first = sends(receiver, 0..3, "run");
    let (_, answer) = call(node.api, "POST", to, &first, &key).await.unwrap();
    killed(&mut node);
    let (status, again) = call(node.api, "POST", to, &first, &key).await.unwrap();
    assert_eq!((status, &again["sends"]), (202, &answer["sends"]), "the key is known after the kill");
    let (status, _) = call(node.api, "POST", to, &sends(receiver, 0..2, "run"), &key).await.unwrap();
    assert_eq!(status, 422, "another body");
    let execution = node.get("/v1/executions/run").await;
    assert_eq!((execution["state"].as_str(), execution["total"].as_u64()), (Some("open"), Some(3)));

    let (status, _) = node.call("POST", to, &sends(receiver, 3..5, "run")).await.unwrap();
    assert_eq!(status, 202);
    killed(&mut node);
    assert!(seen.all().is_empty(), "held through two kills");
    let (_, answer) = node.call("POST", "/v1/executions/run/finish", "").await.unwrap();
    assert_eq!(answer, json!({ "released": 5 }));
    killed(&mut node);
    let (status, answer) = node.call("POST", "/v1/executions/run/finish", "").await.unwrap();
    assert_eq!((status, answer), (200, json!({ "released": 5 })), "a second call answers the same");
    for (method, path, body) in
        [("POST", to, sends(receiver, 5..6, "run")), ("POST", "/v1/executions/run/discard", String::new())]
    {
        assert_eq!(node.call(method, path, &body).await.unwrap().0, 409, "{path}");
    }
    node.settled().await;
    killed(&mut node);
    let execution = node.get("/v1/executions/run").await;
    assert_eq!((execution["state"].as_str(), execution["finished_by"].as_str()), (Some("finished"), Some("call")));
    let records = execution["sends"].as_array().unwrap();
    for (nth, record) in records.iter().enumerate() {
        assert_eq!(record["context"]["index"], nth, "in call order");
        assert!(record["request"]["url"].as_str().unwrap().ends_with(&format!("/run-{nth}")), "{record}");
        let reached = seen.of(&format!("/run-{nth}")).len();
        match record["outcome"].as_str().unwrap() {
            "delivered" => assert_eq!(reached, 1),
            // Begun in the moment of the third kill.
            "interrupted" => assert!(reached <= 1),
            other => panic!("{other}: {record}"),
        }
    }
    assert_eq!(records.len(), 5);

    // The same for one that is discarded.
    let (status, _) = node.call("POST", "/v1/executions/gone/sends", &sends(receiver, 0..4, "gone")).await.unwrap();
    assert_eq!(status, 202);
    killed(&mut node);
    let (_, answer) = node.call("POST", "/v1/executions/gone/discard", "").await.unwrap();
    assert_eq!(answer, json!({ "discarded": 4 }));
    killed(&mut node);
    assert_eq!(node.call("POST", "/v1/executions/gone/discard", "").await.unwrap(), (200, json!({ "discarded": 4 })));
    assert_eq!(node.call("POST", "/v1/executions/gone/finish", "").await.unwrap().0, 409);
    let execution = node.get("/v1/executions/gone").await;
    assert_eq!((execution["state"].as_str(), execution["delivered"].as_u64()), (Some("discarded"), Some(0)));
    for record in execution["sends"].as_array().unwrap() {
        assert_eq!((record["state"].as_str(), record["outcome"].as_str()), (Some("done"), Some("discarded")));
    }

    // One that was closed before anything was held.
    let (_, answer) = node.call("POST", "/v1/executions/empty/finish", "").await.unwrap();
    assert_eq!(answer, json!({ "released": 0 }));
    killed(&mut node);
    let (status, _) = node.call("POST", "/v1/executions/empty/sends", &sends(receiver, 0..1, "empty")).await.unwrap();
    assert_eq!(status, 409);
    assert!(seen.all().keys().all(|path| path.starts_with("/run-")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_key_from_forty_callers_at_once_is_one_set_of_sends() {
    let (receiver, seen) = counting_receiver(Duration::ZERO).await;
    let node = Node::started("");
    for round in 0..12 {
        let held = round % 2 == 1;
        let to = if held { format!("/v1/executions/e{round}/sends") } else { "/v1/sends".to_owned() };
        let bodies = [sends(receiver, 0..3, &format!("{round}-a")), sends(receiver, 0..2, &format!("{round}-b"))];
        let mut callers = tokio::task::JoinSet::new();
        for caller in 0..40 {
            // In every third round two bodies race for the key.
            let which = if round % 3 == 2 { caller % 2 } else { 0 };
            let (api, to, body, key) = (node.api, to.clone(), bodies[which].clone(), format!("key-{round}"));
            callers.spawn(async move {
                let answer = call(api, "POST", &to, &body, &[("idempotency-key", &key)]).await;
                (which, answer.expect("an answer"))
            });
        }
        let (mut accepted, mut refused) = (HashSet::new(), HashSet::new());
        for (which, (status, answer)) in callers.join_all().await {
            if status == 422 {
                refused.insert(which);
                continue;
            }
            assert_eq!(status, 202, "{answer}");
            let ids = answer["sends"].as_array().unwrap().iter().map(|send| send["id"].as_str().unwrap().to_owned());
            accepted.insert((which, ids.collect::<Vec<_>>()));
        }
        assert_eq!(accepted.len(), 1, "one set of sends: {accepted:?}");
        let (which, ids) = accepted.into_iter().next().unwrap();
        assert_eq!(ids.len(), if which == 0 { 3 } else { 2 });
        assert!(!refused.contains(&which), "the body that was first is refused to nobody");
        if held {
            let (_, answer) = node.call("POST", &format!("/v1/executions/e{round}/finish"), "").await.unwrap();
            assert_eq!(answer["released"], ids.len());
        }
    }
    let records = node.settled().await;
    assert_eq!(records.len(), seen.all().len());
    assert!(seen.all().values().all(|times| times.len() == 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_open_executions_cost_what_their_sends_cost() {
    let _alone = alone().await;
    const EXECUTIONS: usize = 4_000;
    let (receiver, seen) = counting_receiver(Duration::ZERO).await;
    let mut grown = Vec::new();
    for executions in [2, EXECUTIONS] {
        let each = 2 * EXECUTIONS / executions;
        let mut node = Node::started("");
        node.call("POST", "/v1/executions/warm/sends", &sends(receiver, 0..2, "warm")).await.unwrap();
        let before = node.memory_kib();
        let mut callers = tokio::task::JoinSet::new();
        for caller in 0..16 {
            let api = node.api;
            callers.spawn(async move {
                for execution in (0..executions).filter(|execution| execution % 16 == caller) {
                    for from in (0..each).step_by(1_000) {
                        let body = sends(receiver, from..each.min(from + 1_000), &execution.to_string());
                        let to = format!("/v1/executions/{execution}/sends");
                        let (status, answer) = call(api, "POST", &to, &body, &[]).await.expect("an answer");
                        assert_eq!(status, 202, "{answer}");
                    }
                }
            });
        }
        callers.join_all().await;
        grown.push(node.memory_kib().saturating_sub(before));
        killed(&mut node);
        let started = std::time::Instant::now();
        while node.metric("egressd_held_sends").await != Some(2.0 * EXECUTIONS as f64 + 2.0) {
            assert!(started.elapsed() < crate::node::PATIENCE, "not all are held after the kill");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let (_, answer) = node.call("POST", "/v1/executions/1/finish", "").await.unwrap();
        assert_eq!(answer["released"], each);
    }
    println!("{} sends held: {} KiB in 2 executions, {} KiB in {EXECUTIONS}", 2 * EXECUTIONS, grown[0], grown[1]);
    // A KiB for each that is open, and what the allocator keeps of so many calls.
    let bound = grown[0] + EXECUTIONS as u64 + 24 * 1024;
    assert!(grown[1] <= bound, "{} KiB, and {} KiB for the same sends in two", grown[1], grown[0]);
    assert!(seen.all().keys().all(|path| path.starts_with("/1-")), "the others are held still");
}
