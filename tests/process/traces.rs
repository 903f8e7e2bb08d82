//! What a collector of traces is told of sends, and what it can do to them: nothing.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::node::{Node, PATIENCE, call, counting_receiver};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

/// Answers 200, and remembers what came: path and query, headers and body of each.
#[derive(Clone, Default)]
struct Came(Arc<Mutex<Vec<(String, HeaderMap, String)>>>);

async fn noting() -> (SocketAddr, Came) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let came = Came::default();
    let noted = came.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let noted = noted.clone();
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let noted = noted.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await?.to_bytes();
                    let text = String::from_utf8_lossy(&body).into_owned();
                    noted.0.lock().expect("what came").push((head.uri.to_string(), head.headers, text));
                    Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from_static(b"{}"))))
                }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service));
        }
    });
    (address, came)
}

impl Came {
    /// What came to this path, headers alone.
    fn to(&self, path: &str) -> HeaderMap {
        let came = self.0.lock().expect("what came");
        came.iter().find(|(at, ..)| at == path).unwrap_or_else(|| panic!("nothing came to {path}")).1.clone()
    }

    fn text(&self) -> String {
        self.0.lock().expect("what came").iter().map(|(path, _, body)| format!("{path} {body}\n")).collect()
    }

    /// Every span that the collector was told of.
    fn spans(&self) -> Vec<Value> {
        let came = self.0.lock().expect("what came");
        let bodies = came.iter().map(|(_, _, body)| serde_json::from_str::<Value>(body).expect("JSON"));
        let spans = bodies.flat_map(|body| {
            assert_eq!(attribute(&body["resourceSpans"][0]["resource"], "service.name"), json!("egressd"));
            body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().expect("spans").clone()
        });
        spans.collect()
    }

    /// The span of a send, once it has come.
    async fn span_of(&self, id: &str) -> Value {
        let started = Instant::now();
        loop {
            let found = self.spans().into_iter().find(|span| attribute(span, "egressd.send") == json!(id));
            if let Some(found) = found {
                return found;
            }
            assert!(started.elapsed() < PATIENCE, "never told of {id}: {}", self.text());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn attribute(of: &Value, key: &str) -> Value {
    let all = of["attributes"].as_array().into_iter().flatten();
    let found =
        all.filter(|one| one["key"] == key).map(|one| one["value"].as_object().and_then(|value| value.values().next()));
    found.flatten().next().cloned().unwrap_or_default()
}

async fn send(node: &Node, path: &str, body: Value, trace: Option<&str>) -> Value {
    let header = trace.map(|trace| ("traceparent", trace));
    let headers: Vec<_> = header.into_iter().collect();
    let (status, record) = call(node.api, "POST", path, &body.to_string(), &headers).await.expect("an answer");
    assert_eq!(status, 202, "{record}");
    node.done_as("default", record["id"].as_str().expect("an id")).await
}

fn traceparent(headers: &HeaderMap) -> Option<String> {
    headers.get("traceparent").map(|value| value.to_str().expect("text").to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_send_is_one_span_of_its_callers_trace_and_the_receiver_is_told() {
    let (collector, told) = noting().await;
    let (receiver, came) = noting().await;
    let node = Node::started(&format!(
        "[telemetry]\notlp = \"http://{collector}\"\n[delivery]\npropagate_trace = true\n[[tenant]]\nid = \"unused\"\n"
    ));
    let given = format!("00-{TRACE}-{SPAN}-01");
    let to = |path: &str| format!("http://{receiver}{path}");
    let secrets = json!({
        "method": "POST", "url": to("/joined?token=SECRET-1"), "data": {"password": "SECRET-2"},
        "headers": {"x-api-key": "SECRET-3"}, "auth": {"username": "u", "password": "SECRET-4"},
        "context": {"workflow": "wf", "execution": "ex", "step": "st"},
    });
    let record = send(&node, "/v1/sends", secrets, Some(&given)).await;
    assert_eq!(record["outcome"], "delivered", "{record}");
    let id = record["id"].as_str().expect("an id");
    let span = told.span_of(id).await;
    assert_eq!((span["traceId"].as_str(), span["parentSpanId"].as_str()), (Some(TRACE), Some(SPAN)), "{span}");
    let own = span["spanId"].as_str().expect("an id").to_owned();
    assert_eq!(traceparent(&came.to("/joined?token=SECRET-1")), Some(format!("00-{TRACE}-{own}-01")));
    assert_eq!(record["request"]["headers"]["traceparent"], json!([format!("00-{TRACE}-{own}-01")]));
    for (key, value) in [
        ("http.request.method", json!("POST")),
        ("http.response.status_code", json!("200")),
        ("server.address", json!("127.0.0.1")),
        ("server.port", json!(receiver.port().to_string())),
        ("network.protocol.version", json!("1.1")),
        ("egressd.outcome", json!("delivered")),
        ("egressd.tenant", json!("default")),
        ("egressd.workflow", json!("wf")),
        ("egressd.execution", json!("ex")),
        ("egressd.step", json!("st")),
        ("egressd.source_ip", record["connection"]["public_ip"].clone()),
    ] {
        assert_eq!(attribute(&span, key), value, "{key}: {span}");
    }
    // Its phases are parts of it, one after the other, and within it.
    let nanos =
        |span: &Value, key: &str| span[key].as_str().and_then(|text| text.parse::<u128>().ok()).expect("a time");
    let parts: Vec<_> = told.spans().into_iter().filter(|one| one["parentSpanId"] == json!(own)).collect();
    let names: Vec<_> =
        parts.iter().filter_map(|part| part["name"].as_str()).filter(|name| *name != "queued").collect();
    assert_eq!(names, ["connect", "write", "wait", "read"], "{parts:?}");
    let mut at = nanos(&span, "startTimeUnixNano");
    for part in &parts {
        let (from, until) = (nanos(part, "startTimeUnixNano"), nanos(part, "endTimeUnixNano"));
        assert!(at <= from && from <= until && until <= nanos(&span, "endTimeUnixNano"), "{part} in {span}");
        assert_eq!(part["traceId"], TRACE);
        at = until;
    }

    // One without a trace has its own; one whose caller records none has the caller's, and is not told of.
    let alone = send(&node, "/v1/sends", json!({"method": "GET", "url": to("/alone")}), None).await;
    let span = told.span_of(alone["id"].as_str().expect("an id")).await;
    assert_eq!(span["parentSpanId"], Value::Null, "{span}");
    let place = format!("00-{}-{}-01", span["traceId"].as_str().expect("text"), span["spanId"].as_str().expect("text"));
    assert_eq!(traceparent(&came.to("/alone")), Some(place));
    let silent = format!("00-{TRACE}-{SPAN}-00");
    let unsampled = send(&node, "/v1/sends", json!({"method": "GET", "url": to("/silent")}), Some(&silent)).await;
    assert_eq!(traceparent(&came.to("/silent")), Some(silent));
    // The author's own leaves as it is, and what is no traceparent counts as none.
    let theirs = "00-11111111111111111111111111111111-2222222222222222-01";
    let body = json!({"method": "GET", "url": to("/theirs"), "headers": {"traceparent": theirs}});
    send(&node, "/v1/sends", body, Some("nonsense")).await;
    assert_eq!(traceparent(&came.to("/theirs")).as_deref(), Some(theirs));
    // A failure is told as one; and a resend is not the send that it is made of.
    let refused = json!({"method": "GET", "url": "http://127.0.0.1:9/"});
    let refused = send(&node, "/v1/sends", refused, Some(&given)).await;
    let span = told.span_of(refused["id"].as_str().expect("an id")).await;
    assert_eq!(attribute(&span, "error.type"), refused["error"]["code"], "{span}");
    assert_eq!(span["status"]["code"], 2, "{span}");
    let path = format!("/v1/sends/{}/resend", alone["id"].as_str().expect("an id"));
    let again = send(&node, &path, json!({}), Some(&given)).await;
    let span = told.span_of(again["id"].as_str().expect("an id")).await;
    let place = format!("00-{TRACE}-{}-01", span["spanId"].as_str().expect("text"));
    assert_eq!(again["request"]["headers"]["traceparent"], json!([place]));

    let text = told.text();
    assert!(!text.contains("SECRET") && !text.contains("joined") && !text.contains("password"), "{text}");
    assert!(!text.contains(unsampled["id"].as_str().expect("an id")), "{text}");
    let began = Instant::now();
    while node.metric("egressd_trace_spans_total{result=\"sent\"}").await != Some(5.0) {
        assert!(began.elapsed() < PATIENCE, "{}", node.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_outlives_the_process_and_nobody_is_told_unless_it_is_set_up() {
    let (collector, told) = noting().await;
    let (receiver, came) = noting().await;
    let given = format!("00-{TRACE}-{SPAN}-01");
    let mut node = Node::started("");
    let body = json!({"method": "GET", "url": format!("http://{receiver}/held")}).to_string();
    let path = "/v1/executions/run/sends";
    let (status, held) = call(node.api, "POST", path, &body, &[("traceparent", &given)]).await.expect("an answer");
    assert_eq!(status, 202, "{held}");
    send(&node, "/v1/sends", json!({"method": "GET", "url": format!("http://{receiver}/off")}), Some(&given)).await;
    assert_eq!(traceparent(&came.to("/off")), None);
    node.kill();
    node.configure(&format!("[telemetry]\notlp = \"http://{collector}\"\n"));
    node.start();
    let (status, _) = node.call("POST", "/v1/executions/run/finish", "").await.expect("an answer");
    assert_eq!(status, 200);
    let id = held["id"].as_str().expect("an id");
    node.done_as("default", id).await;
    // With what is told at the very end: the process waits for it.
    node.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(node.ended(), Some(0), "{}", node.log());
    let span = told.span_of(id).await;
    assert_eq!((span["traceId"].as_str(), span["parentSpanId"].as_str()), (Some(TRACE), Some(SPAN)), "{span}");
    assert!(told.spans().iter().any(|part| part["name"] == "held" && part["parentSpanId"] == span["spanId"]));
    assert_eq!(traceparent(&came.to("/held")), None, "told of, and not carried");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ends_while_it_waits_is_one_span_too() {
    let (collector, told) = noting().await;
    // As long as a delivery may take: who waits for the one place in flight expires.
    let (receiver, _seen) = counting_receiver(Duration::from_secs(60)).await;
    let mut node = Node::started(&format!(
        "[telemetry]\notlp = \"http://{collector}\"\n[[tenant]]\nid = \"default\"\nin_flight = 1\n"
    ));
    let given = format!("00-{TRACE}-{SPAN}-01");
    let submit = async |path: &str, more: Value, tenant: &str, trace: &str| {
        let mut body = json!({"method": "PUT", "url": format!("http://{receiver}/SECRET-1")});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let headers = [("traceparent", trace), ("egressd-tenant", tenant)];
        let (status, record) = call(node.api, "POST", path, &body.to_string(), &headers).await.expect("an answer");
        assert_eq!(status, 202, "{record}");
        record["id"].as_str().expect("an id").to_owned()
    };
    let none = || json!({});
    let begun = submit("/v1/sends", none(), "default", &given).await;
    let expired = submit("/v1/sends", json!({"expires_in": 1}), "default", &given).await;
    let discarded = submit("/v1/executions/run/sends", none(), "default", &given).await;
    let unsampled = submit("/v1/executions/run/sends", none(), "default", &format!("00-{TRACE}-{SPAN}-00")).await;
    let suspended = submit("/v1/executions/run/sends", none(), "other", &given).await;
    let blocked = submit("/v1/sends", json!({"url": "http://169.254.169.254/"}), "third", &given).await;
    let refused = submit("/v1/sends", json!({"url": "no URL"}), "third", &given).await;
    for (path, body) in
        [("/v1/executions/run/discard", ""), ("/v1/suspensions", r#"{"tenant":"other","reason":"abuse"}"#)]
    {
        let (status, answer) = node.call("POST", path, body).await.expect("an answer");
        assert!(status < 300, "{path}: {answer}");
    }
    for (tenant, id, outcome, code, parts) in [
        ("default", &expired, "expired", "expired", &["queued"][..]),
        ("default", &discarded, "discarded", "discarded", &["held"]),
        ("other", &suspended, "blocked", "suspended", &["held"]),
        ("third", &blocked, "blocked", "policy_metadata", &[]),
        ("third", &refused, "blocked", "policy_url", &[]),
        ("default", &begun, "failed", "timeout", &["connect", "write", "wait"]),
    ] {
        let record = node.done_as(tenant, id).await;
        assert_eq!((&record["outcome"], &record["error"]["code"]), (&json!(outcome), &json!(code)), "{record}");
        let span = told.span_of(id).await;
        assert_eq!((span["traceId"].as_str(), span["parentSpanId"].as_str()), (Some(TRACE), Some(SPAN)), "{span}");
        for (key, value) in [
            ("egressd.outcome", outcome),
            ("error.type", code),
            ("egressd.tenant", tenant),
            ("http.request.method", "PUT"),
        ] {
            assert_eq!(attribute(&span, key), json!(value), "{key}: {span}");
        }
        let spans = told.spans();
        let of_it = spans.iter().filter(|one| one["parentSpanId"] == span["spanId"]);
        let names: Vec<_> = of_it.filter_map(|part| part["name"].as_str()).collect();
        assert!(parts.iter().all(|part| names.contains(part)), "{names:?} of {span}");
        let own = spans.iter().filter(|one| attribute(one, "egressd.send") == json!(id));
        assert_eq!(own.count(), 1, "one span of {id}");
    }
    node.done_as("default", &unsampled).await;
    // What the next process ends.
    let left = submit("/v1/sends", none(), "default", &given).await;
    let reached = Instant::now();
    while node.records().await.iter().all(|record| record["id"] != json!(left) || record["state"] != "sending") {
        assert!(reached.elapsed() < PATIENCE, "{left} is not sent");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    node.kill();
    node.start();
    let span = told.span_of(&left).await;
    assert_eq!((span["traceId"].as_str(), span["parentSpanId"].as_str()), (Some(TRACE), Some(SPAN)), "{span}");
    assert_eq!(attribute(&span, "egressd.outcome"), json!("interrupted"), "{span}");
    let text = told.text();
    assert!(!text.contains("SECRET") && !text.contains(&unsampled), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_never_answers_holds_up_no_delivery_and_no_end() {
    // It takes connections, and is silent.
    let collector = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (receiver, _seen) = counting_receiver(Duration::ZERO).await;
    let telemetry = format!("[telemetry]\notlp = \"http://{}\"\n", collector.local_addr().expect("bound"));
    let mut node = Node::started(&telemetry);
    let sends: Vec<_> = (0..1000).map(|_| json!({"method": "GET", "url": format!("http://{receiver}/")})).collect();
    let sends = Value::Array(sends).to_string();
    // More than may wait for it.
    for _ in 0..5 {
        let (status, answer) = node.call("POST", "/v1/sends", &sends).await.expect("an answer");
        assert_eq!(status, 202, "{answer}");
    }
    let started = Instant::now();
    let delivered = "egressd_sends_total{outcome=\"delivered\",code=\"none\"}";
    while node.metric(delivered).await != Some(5000.0) {
        assert!(started.elapsed() < PATIENCE, "{}", node.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let left_out = node.metric("egressd_trace_spans_total{result=\"left_out\"}").await;
    assert!(left_out.is_some_and(|count| count > 0.0), "{left_out:?}");
    node.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(node.ended(), Some(0), "{}", node.log());
}
