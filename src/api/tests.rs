//! The API over a real intake and the store in memory, without a dispatcher: sends stay where they were put until a
//! test ends them.

mod calls;
mod guards;
mod large;
mod operators;
mod rests;
mod tails;
mod unread;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use super::*;
use crate::backlog::{Backlog, caps};
use crate::clock;
use crate::config::Config;
use crate::deliver::Deliverer;
use crate::deliver::apart::Apart;
use crate::dial::Dialer;
use crate::dispatch::Dispatcher;
use crate::ledger::Ledger;
use crate::outcome::{Code, Ended, Failure, Phase, Processed, Timings};
use crate::policy::{SelfAddrs, Suspensions, Verdict};
use crate::publish::Notice;
use crate::record::{Connection, Finished, ShownBody, ShownResponse};
use crate::redact::Redactor;
use crate::send::{SendId, TenantId};
use crate::store::memory::Memory;
use crate::store::{Begin, Want};
use crate::trace::Tracer;

/// What a test calls.
struct Desk {
    router: Router,
    world: Arc<World>,
    intake: Arc<Intake>,
    ledger: Arc<Ledger>,
    deliverer: Arc<Deliverer>,
    closing: watch::Sender<bool>,
    dir: tempfile::TempDir,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// A problem detail with this status and code; its detail.
    #[track_caller]
    fn problem(&self, status: u16, code: &str) -> String {
        assert_eq!(self.status.as_u16(), status, "{:?}", self.body);
        assert_eq!(self.header("content-type"), "application/problem+json");
        let json = self.json();
        assert_eq!(json["code"], code, "{json}");
        assert_eq!(json["status"], status);
        assert_eq!(json["type"], format!("urn:egressd:problem:{code}"));
        assert!(json["title"].as_str().is_some_and(|title| !title.is_empty()));
        json["detail"].as_str().expect("a detail").to_owned()
    }

    #[track_caller]
    fn ok(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{:?}", self.body);
        assert_eq!(self.header("content-type"), "application/json");
        self.json()
    }
}

fn config(dir: &std::path::Path, more: &str) -> Arc<Config> {
    std::fs::write(dir.join("ips.txt"), "127.0.0.11\n").expect("a writable directory");
    let text = format!(
        "node = \"test\"\n[egress]\npublished = \"ips.txt\"\n[[egress.source]]\npublic = \"127.0.0.11\"\n\
         [dns]\nservers = [\"127.0.0.1:1\"]\n[[policy.exception]]\nnetworks = [\"127.0.0.0/8\"]\nreason = \"a test\"\n{more}"
    );
    match Config::from_text(&text, &dir.join("egressd.toml"), clock::wall()) {
        Ok(config) => Arc::new(config),
        Err(problems) => panic!("{problems:#?}\n{text}"),
    }
}

impl Desk {
    fn new() -> Self {
        Self::with("")
    }

    /// With more TOML.
    fn with(more: &str) -> Self {
        Self::sharing(budget::BYTES, more)
    }

    /// With so much for what its callers hold.
    fn sharing(shares: budget::Shares, more: &str) -> Self {
        Self::working(Apart::here(), shares, more)
    }

    /// With what is large of calls worked on there.
    fn working(apart: Apart, shares: budget::Shares, more: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = config(dir.path(), more);
        let world = World::new(config.clone(), &Notice::default(), SelfAddrs::default(), Suspensions::default());
        let store: Arc<dyn Store> = Arc::new(Memory::new());
        let session =
            futures_util::FutureExt::now_or_never(store.join(Arc::from("test"))).expect("at once").expect("joined");
        let ledger =
            Ledger::new(store.clone(), session, Redactor::new(store.redact_key(), &config.redact), Tracer::off());
        let deliverer = Deliverer::new(world.clone(), Dialer::prepare(&config).expect("trust"));
        let backlog = Backlog::new(caps(&config));
        // Its loop does not run: nothing starts.
        let dispatcher = Dispatcher::new(world.clone(), backlog.clone(), ledger.clone(), deliverer.clone());
        let intake = Intake::new(world.clone(), ledger.clone(), backlog, dispatcher, apart);
        let explainer = Explainer::new(world.clone(), deliverer.clone(), store.redact_key());
        let (closing, closed) = watch::channel(false);
        let state = ApiState {
            world: world.clone(),
            store,
            intake: intake.clone(),
            events: ledger.events.clone(),
            explainer,
            deliverer: deliverer.clone(),
            closing: closed,
        };
        Self { router: router_sharing(shares, state, Router::new()), world, intake, ledger, deliverer, closing, dir }
    }

    async fn request(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.expect("the router answers everything");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a whole answer").to_bytes();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        self.request(request(method, path, headers, body)).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], "").await
    }

    async fn post(&self, path: &str, body: &str) -> Answer {
        self.call("POST", path, &[], body).await
    }

    /// The id of one accepted send.
    #[track_caller]
    fn accepted(answer: &Answer) -> SendId {
        answer.ok(202)["id"].as_str().and_then(|id| id.parse().ok()).expect("an id")
    }

    /// Ends a send as a complete response with this status would.
    async fn answer(&self, tenant: &str, id: SendId, status: u16) {
        self.end(tenant, finished(id, status)).await;
    }

    async fn end(&self, tenant: &str, finished: Finished) {
        // Where its execution has released it, nobody has claimed it yet.
        let want = Want { tenant: TenantId::new(tenant), room: usize::MAX, full: Vec::new() };
        self.ledger.store.claim(&self.ledger.session, vec![want], usize::MAX).await.expect("in force");
        let begin = Begin { id: finished.id, tenant: TenantId::new(tenant), spec: None, at: clock::wall() };
        let begun = self.ledger.store.begin(&self.ledger.session, vec![begin]).await.expect("in force");
        assert!(begun.iter().all(Result::is_ok), "it waits");
        self.ledger.close(finished).await;
    }

    fn reload(&self, more: &str) {
        self.world.reload(config(self.dir.path(), more), &Notice::default());
    }
}

fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    let named = |name: &str| headers.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));
    if !named("host") {
        request = request.header("host", "localhost:8700");
    }
    if !body.is_empty() && !named("content-type") {
        request = request.header("content-type", "application/json");
    }
    for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
        request = request.header(*name, *value);
    }
    let body = if body.is_empty() { Body::empty() } else { Body::from(body.to_owned()) };
    request.body(body).expect("a request")
}

fn finished(id: SendId, status: u16) -> Finished {
    let now = clock::wall();
    let ip = |last| IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
    Finished {
        id,
        ended: Ended::answered(status),
        sent_headers: Some(vec![
            ("host".to_owned(), vec!["example.com".to_owned()]),
            ("user-agent".to_owned(), vec![format!("egressd/{}", env!("CARGO_PKG_VERSION"))]),
            ("x-mine".to_owned(), vec!["1".to_owned()]),
        ]),
        response: Some(ShownResponse {
            status,
            version: "HTTP/1.1".to_owned(),
            headers: vec![("content-type".to_owned(), vec!["text/plain".to_owned()])],
            body: ShownBody { bytes: Some(Bytes::from_static(b"hello")), total: 5, truncated: false, sha256: None },
            declared: Some(5),
        }),
        connection: Some(Connection {
            source: Some(SocketAddr::new(ip(11), 40_001)),
            public: Some(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10))),
            remote: Some(SocketAddr::new(ip(1), 80)),
            resolved: vec![(ip(1), Verdict::Allowed), (ip(2), Verdict::Denied(Code::PolicyAddress))],
            reused: false,
            tls: None,
        }),
        would_block: None,
        timings: Timings {
            held: Some(Duration::ZERO),
            queued: Some(Duration::from_micros(800)),
            dns: Some(Duration::from_micros(1234)),
            connect: Some(Duration::from_millis(3)),
            tls: None,
            write: Some(Duration::from_micros(100)),
            wait: Some(Duration::from_micros(20_500)),
            read: Some(Duration::from_micros(200)),
            total: Some(Duration::from_micros(25_034)),
        },
        released_at: Some(now),
        started_at: Some(now),
        finished_at: now,
        batch: None,
    }
}

/// A GET of https://example.com/.
const SEND: &str = r#"{"method":"GET","url":"https://example.com/"}"#;

/// The configuration of clients named for what they are; each one's token is its name.
fn clients(rows: &[(&str, &str, &str)]) -> String {
    let client = |(name, tenant, scopes): &(&str, &str, &str)| {
        let scopes: Vec<&str> = scopes.split_whitespace().collect();
        let digest: String = crate::redact::sha256(name.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        format!(
            "[[api.client]]\nname = \"{name}\"\ntoken_sha256 = \"{digest}\"\ntenant = \"{tenant}\"\nscopes = {scopes:?}\n"
        )
    };
    rows.iter().map(client).collect()
}
