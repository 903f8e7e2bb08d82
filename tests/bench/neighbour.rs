//! What one client's calls at full speed do to another's accepts. The load is a process of its own, so that what is
//! measured beside it is the node and not the stopwatch.

use std::net::SocketAddr;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use serde_json::{Value, json};

use crate::support::{Node, Receiver, connect};

/// What the other client does, on so many connections each.
const LOADS: &[(&str, usize)] =
    &[("accepts", 8), ("pages", 16), ("records", 16), ("large", 8), ("redacted", 8), ("refused", 8), ("tails", 64)];
/// Its sends are made one at a time, to a receiver that is silent: what it does is call.
const DELIVERY: &str = "in_flight_per_tenant_destination = 20\nqueued_per_tenant = 1000000\n";
const MORE: &str = "[redact]\njson_pointers = [\"/password\", \"/card/number\", \"/secrets/0\", \"/items/0/pin\"]\n";
const ACCEPTS: usize = 1_000;

/// Accepts of a client that has the node to itself, and beside each of the loads.
pub async fn neighbour_accepts(receiver: &Receiver) {
    let tokens: String = ["loud", "quiet"].iter().map(|name| client(name)).collect();
    let quiet = {
        let node = Node::start_with(DELIVERY, &format!("{MORE}{tokens}"));
        accepts(node.api, receiver.fast).await
    };
    let told = |name: &str, took: &[f64], ratios: String| {
        let at = |share| percentile(took, share);
        println!("{name:<44} accept ms: p50 {:.2}  p99 {:.2}  max {:.2}{ratios}", at(0.5), at(0.99), at(1.0));
    };
    told("accepts of a client on its own", &quiet, String::new());
    for (load, connections) in LOADS {
        let node = Node::start_with(DELIVERY, &format!("{MORE}{tokens}"));
        let loud = Load::start(load, *connections, node.api, receiver.silent);
        tokio::time::sleep(Duration::from_secs(2)).await;
        let took = accepts(node.api, receiver.fast).await;
        drop(loud);
        let ratio = |share| percentile(&took, share) / percentile(&quiet, share);
        let ratios = format!("  ({:.1} x and {:.1} x those on its own; p99 may be 50 ms)", ratio(0.5), ratio(0.99));
        told(&format!("beside {connections} connections of another: {load}"), &took, ratios);
    }
}

fn client(name: &str) -> String {
    let digest: String = egressd::redact::sha256(name.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "[[api.client]]\nname = \"{name}\"\ntoken_sha256 = \"{digest}\"\ntenant = \"{name}\"\nscopes = [\"submit\", \"read\"]\n"
    )
}

fn percentile(took: &[f64], share: f64) -> f64 {
    took.get(((took.len() as f64 * share) as usize).min(took.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// In milliseconds, in order of size.
async fn accepts(api: SocketAddr, to: SocketAddr) -> Vec<f64> {
    let mut client = connect(api).await;
    let body = serde_json::to_vec(&json!({ "method": "POST", "url": format!("http://{to}/limit"), "data": 1 }));
    let body = Bytes::from(body.expect("JSON"));
    let mut took = Vec::new();
    for _ in 0..ACCEPTS {
        let started = Instant::now();
        let (status, answer) = call_by(&mut client, "quiet", "POST", "/v1/sends", body.clone()).await;
        assert_eq!(status, 202, "{}", String::from_utf8_lossy(&answer));
        took.push(started.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    took.sort_by(f64::total_cmp);
    took
}

type Client = hyper::client::conn::http1::SendRequest<Full<Bytes>>;

async fn call_by(client: &mut Client, token: &str, method: &str, path: &str, body: Bytes) -> (u16, Bytes) {
    try_call_by(client, token, method, path, body).await.expect("an answer")
}

/// `None`: the connection has ended.
async fn try_call_by(client: &mut Client, token: &str, method: &str, path: &str, body: Bytes) -> Option<(u16, Bytes)> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "127.0.0.1")
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/json");
    client.ready().await.ok()?;
    let response = client.send_request(request.body(Full::new(body)).expect("a request")).await.ok()?;
    let status = response.status().as_u16();
    Some((status, response.into_body().collect().await.ok()?.to_bytes()))
}

struct Load(Child);

impl Load {
    fn start(load: &str, connections: usize, api: SocketAddr, to: SocketAddr) -> Self {
        let arguments =
            ["caller".to_owned(), load.to_owned(), connections.to_string(), api.to_string(), to.to_string()];
        Self(Command::new(std::env::current_exe().expect("this program")).args(arguments).spawn().expect("the load"))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The process of the other client: calls on every connection, one after another, until it is killed.
pub async fn load(arguments: &[String]) {
    let [load, connections, api, to] = arguments else { panic!("{arguments:?}") };
    let api: SocketAddr = api.parse().expect("an address");
    let one = json!({ "method": "POST", "url": format!("http://{to}/"), "data": 1 });
    let fat: serde_json::Map<String, Value> =
        (0..9).map(|n| (format!("x-{n}"), Value::String("v".repeat(3000)))).collect();
    let fat = json!({ "method": "GET", "url": format!("http://{to}/"), "headers": fat });
    let text = |value: &Value| Bytes::from(serde_json::to_vec(value).expect("JSON"));
    // What is read later.
    let mut client = connect(api).await;
    for number in 0..3 {
        let path = format!("/v1/executions/fat{number}/sends");
        let (status, answer) =
            call_by(&mut client, "loud", "POST", &path, text(&Value::Array(vec![fat.clone(); 100]))).await;
        assert_eq!(status, 202, "{}", String::from_utf8_lossy(&answer));
    }
    let large = json!({ "method": "POST", "url": format!("http://{to}/"), "data": "x".repeat(900_000) });
    let (status, answer) = call_by(&mut client, "loud", "POST", "/v1/executions/large/sends", text(&large)).await;
    assert_eq!(status, 202, "{}", String::from_utf8_lossy(&answer));
    let id = serde_json::from_slice::<Value>(&answer).expect("JSON")["id"].as_str().expect("an id").to_owned();
    let numbers = json!({ "method": "POST", "url": format!("http://{to}/"), "data": vec![1; 450_000] });
    let unknown: serde_json::Map<String, Value> = (0..9_000).map(|n| (format!("{n:0>200}"), json!(1))).collect();
    let (method, path, body) = match load.as_str() {
        "accepts" => ("POST", "/v1/sends".to_owned(), text(&one)),
        "pages" => ("GET", "/v1/sends?limit=200".to_owned(), Bytes::new()),
        "records" => ("GET", format!("/v1/sends/{id}"), Bytes::new()),
        "large" => ("POST", "/v1/executions/NUMBER/sends".to_owned(), text(&Value::Array(vec![large; 14]))),
        "redacted" => ("POST", "/v1/executions/NUMBER/sends".to_owned(), text(&Value::Array(vec![numbers; 15]))),
        "refused" => ("POST", "/v1/explain".to_owned(), text(&Value::Object(unknown))),
        "tails" => ("POST", "/v1/executions/NUMBER/sends".to_owned(), text(&Value::Array(vec![fat; 20]))),
        other => panic!("{other} is no load"),
    };
    let numbers = std::sync::Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    let connections: usize = connections.parse().expect("a number");
    for number in 0..connections {
        let (body, path, numbers, follows) =
            (body.clone(), path.clone(), numbers.clone(), load == "tails" && number > 3);
        tasks.spawn(async move {
            let mut client = connect(api).await;
            if follows {
                return drop(try_call_by(&mut client, "loud", "GET", "/v1/tail", Bytes::new()).await);
            }
            loop {
                // Discarded, what is held ends at once, and tails have something to tell.
                let number = numbers.fetch_add(1, Ordering::Relaxed);
                let own = path.replace("NUMBER", &format!("e{number}"));
                let mut answered = try_call_by(&mut client, "loud", method, &own, body.clone()).await.is_some();
                if own != path {
                    let end = format!("/v1/executions/e{number}/discard");
                    answered &= try_call_by(&mut client, "loud", "POST", &end, Bytes::new()).await.is_some();
                }
                if !answered {
                    client = connect(api).await;
                }
            }
        });
    }
    tasks.join_all().await;
}
