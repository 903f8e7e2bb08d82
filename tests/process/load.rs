//! Callers in every way of calling, what they were promised, and the ledger that is read afterwards.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::node::{Node, PATIENCE, SOURCES, call};

/// What the API promised.
#[derive(Default)]
pub struct Promises {
    /// Ids answered 202, with the path that each may reach at most once.
    pub accepted: HashMap<String, String>,
    /// Executions whose discard was answered, and how many sends it discarded.
    discarded: HashMap<String, u64>,
    /// Executions whose finish was answered, and how many sends it released.
    finished: HashMap<String, u64>,
    /// Idempotency keys: the call's body and the ids that it was first answered with.
    keyed: HashMap<String, (String, Vec<String>)>,
    /// A process was frozen past a deadline, which may be short.
    pub frozen: bool,
}

pub type Ledger = Arc<Mutex<Promises>>;

/// Starts one caller of each kind and some more. They go on until a call is not accepted.
pub fn start_load(api: SocketAddr, receiver: SocketAddr, name: &str, ledger: &Ledger) -> [JoinHandle<()>; 6] {
    let worker = |kind: &str| Worker {
        api,
        receiver,
        name: format!("{name}-{kind}"),
        ledger: ledger.clone(),
        pause: Duration::ZERO,
    };
    [
        tokio::spawn(worker("a").singles()),
        tokio::spawn(worker("b").singles()),
        tokio::spawn(worker("c").arrays()),
        tokio::spawn(worker("d").executions()),
        tokio::spawn(worker("e").executions()),
        tokio::spawn(worker("f").keyed()),
    ]
}

/// One caller of each kind, with a pause after each round of its calls. They begin anew where a call is not accepted, until
/// it is over.
pub fn start_paced_load(
    api: SocketAddr,
    receiver: SocketAddr,
    name: &str,
    ledger: &Ledger,
    pause: Duration,
    is_over: &watch::Receiver<bool>,
) -> Vec<JoinHandle<()>> {
    let caller = |kind: char| {
        let (name, ledger, is_over) = (format!("{name}-{kind}"), ledger.clone(), is_over.clone());
        tokio::spawn(async move {
            for turn in 0.. {
                let worker = Worker { api, receiver, name: format!("{name}{turn}"), ledger: ledger.clone(), pause };
                match kind {
                    'a' => worker.singles().await,
                    'c' => worker.arrays().await,
                    'd' => worker.executions().await,
                    _ => worker.keyed().await,
                }
                if *is_over.borrow() {
                    return;
                }
                tokio::time::sleep(pause / 8).await;
            }
        })
    };
    ['a', 'c', 'd', 'f'].into_iter().map(caller).collect()
}

/// A caller ends when nothing is accepted any more.
pub async fn ends(caller: JoinHandle<()>) {
    tokio::time::timeout(PATIENCE, caller).await.expect("a call is never answered").expect("a caller ends");
}

/// One caller. Each of its ways of calling goes on until the process takes no more.
#[derive(Clone)]
struct Worker {
    api: SocketAddr,
    receiver: SocketAddr,
    name: String,
    ledger: Ledger,
    pause: Duration,
}

impl Worker {
    async fn pause(&self) {
        if !self.pause.is_zero() {
            tokio::time::sleep(self.pause).await;
        }
    }

    fn path(&self, number: usize) -> String {
        format!("/{}-{number}", self.name)
    }

    fn send(&self, path: &str) -> Value {
        let url = format!("http://{}{path}", self.receiver);
        // Its step is what a database can be asked for.
        json!({ "method": "POST", "url": url, "data": { "path": path }, "context": { "step": path } })
    }

    fn accepted(&self, answer: &Value, paths: &[String]) -> Vec<String> {
        let sends = answer["sends"].as_array().cloned().unwrap_or_else(|| vec![answer.clone()]);
        assert_eq!(sends.len(), paths.len(), "{answer}");
        let ids: Vec<String> = sends.iter().map(|send| send["id"].as_str().expect("an id").to_owned()).collect();
        let mut ledger = self.ledger.lock().unwrap();
        ledger.accepted.extend(ids.iter().cloned().zip(paths.iter().cloned()));
        ids
    }

    async fn singles(self) {
        for number in 0.. {
            let path = self.path(number);
            let Some((202, answer)) = call(self.api, "POST", "/v1/sends", &self.send(&path).to_string(), &[]).await
            else {
                return;
            };
            self.accepted(&answer, &[path]);
            self.pause().await;
        }
    }

    async fn arrays(self) {
        for number in 0.. {
            let paths: Vec<String> = (0..7).map(|item| self.path(number * 100 + item)).collect();
            let body = Value::Array(paths.iter().map(|path| self.send(path)).collect()).to_string();
            let Some((202, answer)) = call(self.api, "POST", "/v1/sends", &body, &[]).await else { return };
            self.accepted(&answer, &paths);
            self.pause().await;
        }
    }

    /// Three sends held by two calls, then finished, discarded, or left to the hold limit.
    async fn executions(self) {
        for number in 0_usize.. {
            let execution = format!("{}-{number}", self.name);
            let paths: Vec<String> = (0..3).map(|item| self.path(number * 100 + item)).collect();
            let to = format!("/v1/executions/{execution}/sends");
            let body = Value::Array(paths[..2].iter().map(|path| self.send(path)).collect()).to_string();
            let Some((202, answer)) = call(self.api, "POST", &to, &body, &[]).await else { return };
            self.accepted(&answer, &paths[..2]);
            let body = self.send(&paths[2]).to_string();
            let Some((202, answer)) = call(self.api, "POST", &to, &body, &[]).await else { return };
            self.accepted(&answer, &paths[2..]);
            match number % 3 {
                0 => {
                    let to = format!("/v1/executions/{execution}/finish");
                    let Some((200, answer)) = call(self.api, "POST", &to, "", &[]).await else { return };
                    let released = answer["released"].as_u64().expect("a count");
                    self.ledger.lock().unwrap().finished.insert(execution, released);
                }
                1 => {
                    let to = format!("/v1/executions/{execution}/discard");
                    let Some((200, answer)) = call(self.api, "POST", &to, "", &[]).await else { return };
                    let discarded = answer["discarded"].as_u64().expect("a count");
                    self.ledger.lock().unwrap().discarded.insert(execution, discarded);
                }
                _ => {}
            }
            self.pause().await;
        }
    }

    /// The same call twice at once: one set of sends.
    async fn keyed(self) {
        for number in 0.. {
            let key = format!("key-{}-{number}", self.name);
            let path = self.path(number);
            let body = self.send(&path).to_string();
            let headers = [("idempotency-key", key.as_str())];
            let (one, two) = tokio::join!(
                call(self.api, "POST", "/v1/sends", &body, &headers),
                call(self.api, "POST", "/v1/sends", &body, &headers)
            );
            let mut answered = Vec::new();
            for answer in [one, two].into_iter().flatten() {
                if answer.0 == 503 {
                    // A node of a tier whose lease is over says so as its store does.
                    let code = &answer.1["code"];
                    assert!(code == "draining" || code == "store", "{}", answer.1);
                    continue;
                }
                assert_eq!(answer.0, 202, "{}", answer.1);
                answered.push(self.accepted(&answer.1, std::slice::from_ref(&path)));
            }
            if let [one, two] = &answered[..] {
                assert_eq!(one, two, "concurrent duplicates of {key}");
            }
            let Some(ids) = answered.pop() else { return };
            self.ledger.lock().unwrap().keyed.insert(key, (body, ids));
            self.pause().await;
        }
    }
}

pub async fn replayed_keys_answer_the_same(node: &Node, ledger: &Ledger) {
    let keyed = ledger.lock().unwrap().keyed.clone();
    assert!(keyed.len() > 50, "only {} keys were used", keyed.len());
    for (key, (body, ids)) in keyed {
        let headers = [("idempotency-key", key.as_str())];
        let (status, answer) = call(node.api, "POST", "/v1/sends", &body, &headers).await.expect("an answer");
        assert_eq!(status, 202, "{answer}");
        assert_eq!(answer["id"].as_str(), Some(ids[0].as_str()), "{key}");
    }
}

/// Holds the records to the promises and to what the receiver saw; how many ended how.
pub fn judge(
    records: &[Value],
    promises: &Promises,
    seen: &HashMap<String, Vec<SocketAddr>>,
) -> HashMap<String, usize> {
    let by_id: HashMap<&str, &Value> =
        records.iter().map(|record| (record["id"].as_str().expect("an id"), record)).collect();
    assert_eq!(by_id.len(), records.len(), "an id stands twice");
    let path_of = |record: &Value| {
        let url = record["request"]["url"].as_str().expect("a URL");
        url.splitn(4, '/').nth(3).map(|path| format!("/{path}")).expect("a path")
    };
    for (id, path) in &promises.accepted {
        let record = by_id.get(id.as_str()).unwrap_or_else(|| panic!("{id} was answered 202 and has no record"));
        assert_eq!(&path_of(record), path);
    }
    let mut by_path: HashMap<String, &Value> = HashMap::new();
    let mut outcomes: HashMap<String, usize> = HashMap::new();
    for record in records {
        let path = path_of(record);
        assert!(by_path.insert(path.clone(), record).is_none(), "{path} was accepted twice");
        let outcome = record["outcome"].as_str().expect("an outcome").to_owned();
        let reached = seen.get(&path).map_or(0, Vec::len);
        match outcome.as_str() {
            "delivered" => assert_eq!(reached, 1, "{path}: {record}"),
            "interrupted" => assert!(reached <= 1, "{path} reached its receiver {reached} times"),
            // It finds its deadline past when it goes on.
            "failed" if record["error"]["code"] == "timeout" => {
                assert!(promises.frozen && reached <= 1, "{path} reached its receiver {reached} times: {record}");
            }
            "discarded" => assert_eq!(reached, 0, "{path} was discarded"),
            _ => panic!("{path} ended {record}"),
        }
        *outcomes.entry(outcome).or_default() += 1;
    }
    for (path, peers) in seen {
        assert!(by_path.contains_key(path), "{path} reached its receiver without a record");
        assert!(peers.iter().all(|peer| SOURCES.contains(&peer.ip().to_string().as_str())), "{path} from {peers:?}");
    }
    let mut by_execution: HashMap<&str, Vec<&Value>> = HashMap::new();
    for record in records {
        if let Some(execution) = record["context"]["execution"].as_str() {
            by_execution.entry(execution).or_default().push(record);
        }
    }
    let of = |execution: &String| by_execution.get(execution.as_str()).map_or(&[][..], Vec::as_slice);
    for (execution, discarded) in &promises.discarded {
        // All that it was filled with.
        let is_discarded = of(execution).iter().all(|record| record["outcome"] == "discarded");
        assert!(is_discarded && *discarded == 3, "{discarded} were discarded of {execution}: {:?}", of(execution));
    }
    for (execution, released) in &promises.finished {
        let made = of(execution).iter().filter(|record| record["outcome"] != "discarded").count() as u64;
        assert_eq!(made, *released, "{execution}");
    }
    outcomes
}
