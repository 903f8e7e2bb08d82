//! A new binary on the store that an older one left: everything is found, and goes on. See `stores/README.md`.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use egressd::request_bin::RequestBin;
use serde_json::{Value, json};

use crate::node::{Node, by_a_clock_at, call, call_whole, json_or_text, run};

/// Where the stored sends go.
const RECEIVER: &str = "127.0.0.77:18077";
/// Half an hour after the last thing that happened to the stores.
const NOW: &str = "2026-11-22 11:30:00";

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).expect("a copy");
        }
    }
}

/// A node with a copy of the store, and the sources that the store has seen published.
fn taken_over(store: &Path) -> Node {
    let node = Node::new("[delivery]\nhold_limit = \"7d\"\n");
    copy(&store.join("store"), &node.path("store"));
    std::fs::copy(store.join("key"), node.path("key")).expect("the key");
    std::fs::set_permissions(node.path("key"), std::fs::Permissions::from_mode(0o600)).expect("its mode");
    std::fs::write(node.path("public-ips.txt"), "127.0.0.21\n127.0.0.22\n").expect("the list");
    let text = std::fs::read_to_string(node.config()).expect("the configuration");
    let text = text.replace("[[egress.source]]\npublic = \"127.0.0.23\"\n", "");
    std::fs::write(node.config(), text).expect("the configuration");
    node
}

fn by_the_clock_of_the_store() -> Command {
    by_a_clock_at(NOW)
}

fn ids(list: &Value) -> Vec<String> {
    list.as_array().expect("a list").iter().map(|id| id.as_str().expect("an id").to_owned()).collect()
}

/// Everything that was said is said again; there may be more by now.
fn says_all_of(now: &Value, then: &Value, at: &str) {
    match (now, then) {
        (Value::Object(now), Value::Object(then)) => {
            for (name, then) in then {
                let now = now.get(name).unwrap_or_else(|| panic!("{at}/{name} is gone"));
                says_all_of(now, then, &format!("{at}/{name}"));
            }
        }
        (Value::Array(now), Value::Array(then)) => {
            assert_eq!(now.len(), then.len(), "{at}");
            now.iter().zip(then).enumerate().for_each(|(n, (now, then))| says_all_of(now, then, &format!("{at}/{n}")));
        }
        _ => assert_eq!(now, then, "{at}"),
    }
}

async fn as_operator(node: &Node, path: &str) -> Value {
    let (status, answer) = call(node.api, "GET", path, "", &[("egressd-tenant", "*")]).await.expect("an answer");
    assert_eq!(status, 200, "{path}: {answer}");
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_older_egressd_left_is_found_and_goes_on() {
    let listener = tokio::net::TcpListener::bind(RECEIVER).await.expect("the receiver's address is free");
    let receiver = RequestBin::default();
    tokio::spawn(receiver.clone().serve(listener));
    let stores = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/process/stores");
    let all = std::fs::read_dir(stores).expect("the stores").map(|entry| entry.expect("an entry").path());
    let all: Vec<PathBuf> = all.filter(|path| path.is_dir()).collect();
    assert!(!all.is_empty());
    for store in all {
        println!("{}", store.display());
        goes_on(&store, &receiver).await;
    }
}

async fn goes_on(store: &Path, receiver: &RequestBin) {
    let made = std::fs::read_to_string(store.join("made.json")).expect("what was made");
    let made: Value = serde_json::from_str(&made).expect("JSON");
    let mut node = taken_over(store);
    let seen_before = receiver.seen().len();
    node.start_as(by_the_clock_of_the_store());
    assert_eq!(node.health("/readyz").await, (200, "ready\n".to_owned()));
    assert!(!node.log().contains("damaged"), "{}", node.log());

    // What had begun is not made again, what was queued is made now, what was held is held.
    let started = made["started"].as_str().expect("an id");
    let record = node.get(&format!("/v1/sends/{started}")).await;
    assert_eq!((&record["outcome"], &record["error"]["code"]), (&json!("interrupted"), &json!("interrupted")));
    for id in ids(&made["queued"]) {
        let record = node.get(&format!("/v1/sends/{id}?wait=30")).await;
        assert_eq!(record["outcome"], "delivered", "{record}");
    }
    let execution = node.get("/v1/executions/run-3").await;
    assert_eq!((&execution["state"], &execution["total"]), (&json!("open"), &json!(2)), "{execution}");
    for id in ids(&made["held"]) {
        assert_eq!(node.get(&format!("/v1/sends/{id}")).await["state"], "held");
    }

    finds_what_was(&node, &made).await;

    let (status, answer) = node.call("POST", "/v1/executions/run-3/finish", "").await.unwrap();
    assert_eq!((status, answer["released"].as_u64()), (200, Some(2)), "{answer}");
    for id in ids(&made["held"]) {
        let record = node.get(&format!("/v1/sends/{id}?wait=30")).await;
        assert_eq!(record["outcome"], "delivered", "{record}");
    }
    let one_more = json!({ "method": "POST", "url": format!("http://{RECEIVER}/new"), "data": 1 }).to_string();
    for (execution, finished) in [("run-1", true), ("run-2", false), ("run-3", true)] {
        let path = format!("/v1/executions/{execution}/sends");
        assert_eq!(node.call("POST", &path, &one_more).await.unwrap().0, 409, "{execution}");
        let state = &node.get(&format!("/v1/executions/{execution}")).await["state"];
        assert_eq!(state, if finished { "finished" } else { "discarded" }, "{execution}");
    }

    // It was killed before: the same once more, by what this binary has written.
    node.kill();
    node.start_as(by_the_clock_of_the_store());
    finds_what_was(&node, &made).await;
    let (status, record) = node.call("POST", "/v1/sends", &one_more).await.unwrap();
    assert_eq!(status, 202, "{record}");
    let at = record["created_at"].as_str().unwrap();
    assert!(at.starts_with("2026-11-22T11:3"), "it has no clock of its own (libfaketime) but says {at}");
    let record = node.get(&format!("/v1/sends/{}?wait=30", record["id"].as_str().unwrap())).await;
    assert_eq!(record["outcome"], "delivered", "{record}");
    let open = as_operator(&node, "/v1/sends?limit=200").await;
    let open = open["sends"].as_array().unwrap();
    assert!(open.iter().all(|record| record["state"] == "done"), "{open:?}");

    let seen = receiver.seen().split_off(seen_before);
    let mut times = HashMap::<&str, usize>::new();
    seen.iter().for_each(|request| *times.entry(&request.target).or_default() += 1);
    let expected = ["/queued/0", "/queued/1", "/queued/2", "/run-3/0", "/run-3/1", "/new"];
    assert_eq!(times, expected.into_iter().map(|target| (target, 1)).collect(), "each once, and nothing else");
    let header = |target: &str, name: &str| {
        let request = seen.iter().find(|request| request.target == target).expect("it was seen");
        request.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    };
    assert_eq!(header("/queued/0", "x-api-key").as_deref(), Some("token-of-the-queue"), "it opens what was sealed");
    assert_eq!(header("/queued/1", "authorization").as_deref(), Some("Basic dXNlcjpwYXNzIHdvcmQ="));
    let body = |target: &str| seen.iter().find(|request| request.target == target).and_then(|one| one.body.clone());
    assert_eq!(body("/queued/1").as_deref(), Some("{\"second\": true}"));
}

/// Records, lists, the idempotency key, suspensions and first publications are as they were.
async fn finds_what_was(node: &Node, made: &Value) {
    let done = made["done"].as_array().expect("records");
    for then in done {
        let id = then["id"].as_str().expect("an id");
        says_all_of(&as_operator(node, &format!("/v1/sends/{id}")).await, then, id);
    }
    for (filter, matches) in [
        ("outcome=rejected", (|record| record["outcome"] == "rejected") as fn(&Value) -> bool),
        ("workflow=orders&outcome=delivered&until=2026-11-22T00:00:00Z", |record| {
            record["context"]["workflow"] == "orders" && record["created_at"].as_str().unwrap() < "2026-11-21T12"
        }),
        ("code=policy_metadata", |record| record["error"]["code"] == "policy_metadata"),
        ("tenant=acme", |record| record["context"]["tenant"] == "acme"),
    ] {
        let listed = as_operator(node, &format!("/v1/sends?limit=200&{filter}")).await;
        let listed: Vec<_> = listed["sends"].as_array().unwrap().iter().map(|record| record["id"].clone()).collect();
        let then: Vec<_> = done.iter().filter(|record| matches(record)).map(|record| record["id"].clone()).collect();
        for id in &then {
            assert!(listed.contains(id), "{filter}: {id} is missing");
        }
        assert!(!then.is_empty(), "{filter} finds nothing of what was made");
    }

    let call_then = &made["idempotency"];
    let headers = [("idempotency-key", call_then["key"].as_str().unwrap())];
    let body = call_then["body"].as_str().unwrap();
    let (head, text) = call_whole(node.api, "POST", "/v1/sends", body, &headers).await.unwrap();
    let answer = json_or_text(text);
    assert_eq!((head.status.as_u16(), &head.headers["idempotency-replayed"]), (202, &"true".parse().unwrap()));
    let replayed: Vec<_> = answer["sends"].as_array().unwrap().iter().map(|send| send["id"].clone()).collect();
    assert_eq!(json!(replayed), call_then["ids"]);
    let (status, answer) = call(node.api, "POST", "/v1/sends", &body.replace("/once/0", "/x"), &headers).await.unwrap();
    assert_eq!((status, answer["code"].as_str()), (422, Some("idempotency_mismatch")), "{answer}");

    says_all_of(&as_operator(node, "/v1/suspensions").await, &made["suspensions"], "suspensions");
    let send = json!({ "method": "GET", "url": format!("http://{RECEIVER}/stopped") }).to_string();
    let (status, answer) = call(node.api, "POST", "/v1/sends", &send, &[("egressd-tenant", "noisy")]).await.unwrap();
    assert_eq!((status, answer["code"].as_str()), (403, Some("suspended")), "{answer}");
    says_all_of(&node.get("/public-ips.json").await, &made["public_ips"], "public-ips.json");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_of_a_newer_format_is_refused_and_left_alone() {
    let mut node = Node::started("");
    node.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(node.ended(), Some(0));
    let log = node.path("store/pieces/00000001/log");
    let before = std::fs::read(&log).unwrap();
    std::fs::write(node.path("store/format"), "egressd store, format 4711\n").unwrap();
    let directory = node.directory.path().to_owned();
    let (code, _, err) =
        tokio::task::spawn_blocking(move || run(&["serve", "--config", "egressd.toml"], &directory)).await.unwrap();
    assert_eq!(code, Some(2), "{err}");
    for part in ["the store at store has format 4711", "knows up to ", "run the newer egressd"] {
        assert!(err.contains(part), "{part} is missing in {err}");
    }
    assert_eq!(std::fs::read(&log).unwrap(), before);
    assert_eq!(std::fs::read_to_string(node.path("store/format")).unwrap(), "egressd store, format 4711\n");
}
