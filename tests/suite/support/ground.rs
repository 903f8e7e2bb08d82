//! Everything a delivery needs, on loopback: sources, a policy that opens 127.0.0.0/8, a store.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use egressd::{
    clock,
    config::{Config, StoreSettings},
    deadline::Deadline,
    deliver::{Attempt, Deliverer},
    dial::Dialer,
    policy::{CheckedUrl, SelfAddrs, Suspensions},
    publish::Notice,
    record::{ShownRequest, ShownTo},
    send::{Context, HttpRequest, Method, SendId, SendSpec, Target, TenantId, To},
    store::{Accept, Accepted, Course, NewSend, OnceOnly, Session, Started, embedded::Embedded},
    world::World,
};
use http::{HeaderName, HeaderValue};
use uuid::Uuid;

/// For what ends by the deadline alone: enough for every phase before, on a busy machine too.
pub const SHORT: Duration = Duration::from_secs(3);
/// For what never waits for the deadline: only a test that fails comes to it.
pub const LONG: Duration = Duration::from_secs(60);

/// The first of the loopback sources.
pub const SOURCE: &str = "127.0.0.11";

pub struct Ground {
    pub world: Arc<World>,
    pub deliverer: Arc<Deliverer>,
    store: Embedded,
    session: tokio::sync::OnceCell<Session>,
    /// Removed with it: the published list and what tests put there.
    pub directory: tempfile::TempDir,
}

/// The configuration of a [`Ground`], to be added to.
pub struct Plan {
    /// Public and bound address of each source, in the default pool.
    pub sources: Vec<(String, String)>,
    pub name_servers: Vec<SocketAddr>,
    /// More TOML: tables that are not written already.
    pub more: String,
    /// Networks that an exception opens; empty: none.
    pub opened: Vec<String>,
    pub delivery: String,
    pub limits: String,
    pub tls: String,
    pub ours: SelfAddrs,
    pub directory: tempfile::TempDir,
}

impl Plan {
    pub fn new() -> Self {
        Self {
            sources: vec![(SOURCE.to_owned(), SOURCE.to_owned())],
            // Nobody listens there: a test that looks names up brings its own.
            name_servers: vec![SocketAddr::from(([127, 0, 0, 1], 1))],
            more: String::new(),
            opened: vec!["127.0.0.0/8".to_owned()],
            delivery: String::new(),
            limits: String::new(),
            tls: String::new(),
            ours: SelfAddrs::default(),
            directory: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    pub fn sources(mut self, addresses: &[&str]) -> Self {
        self.sources = addresses.iter().map(|address| ((*address).to_owned(), (*address).to_owned())).collect();
        self
    }

    pub fn name_server(mut self, address: SocketAddr) -> Self {
        self.name_servers = vec![address];
        self
    }

    pub fn delivery(mut self, toml: &str) -> Self {
        self.delivery.push_str(toml);
        self
    }

    pub fn limits(mut self, toml: &str) -> Self {
        self.limits.push_str(toml);
        self
    }

    /// Trusts this authority beside the public ones.
    pub fn trust(mut self, authority: &super::tls::Authority) -> Self {
        authority.write_pem(&self.directory.path().join("ca.pem"));
        self.tls = "extra_ca = [\"ca.pem\"]".to_owned();
        self
    }

    /// Trusts what is in this PEM, beside the public ones.
    pub fn trust_pem(mut self, pem: &str) -> Self {
        std::fs::write(self.directory.path().join("ca.pem"), pem).expect("a writable directory");
        self.tls = "extra_ca = [\"ca.pem\"]".to_owned();
        self
    }

    fn toml(&self) -> String {
        let mut text = String::from("node = \"test\"\n[egress]\npublished = \"ips.txt\"\n");
        for (public, bind) in &self.sources {
            text += &format!("[[egress.source]]\npublic = \"{public}\"\nbind = \"{bind}\"\n");
        }
        text += &format!("[delivery]\n{}\n[limits]\n{}\n[tls]\n{}\n", self.delivery, self.limits, self.tls);
        text +=
            &format!("[dns]\nservers = {:?}\n", self.name_servers.iter().map(ToString::to_string).collect::<Vec<_>>());
        if !self.opened.is_empty() {
            text += &format!("[[policy.exception]]\nnetworks = {:?}\nreason = \"a test\"\n", self.opened);
        }
        text + &self.more
    }

    pub fn config(&self) -> Arc<Config> {
        let list: Vec<&str> = self.sources.iter().map(|(public, _)| public.as_str()).collect();
        std::fs::write(self.directory.path().join("ips.txt"), list.join("\n")).expect("a writable directory");
        let path = self.directory.path().join("egressd.toml");
        match Config::from_text(&self.toml(), &path, clock::wall()) {
            Ok(config) => Arc::new(config),
            Err(problems) => panic!("the test's configuration: {problems:#?}\n{}", self.toml()),
        }
    }

    pub fn build(self) -> Ground {
        let config = self.config();
        let trust = Dialer::prepare(&config).expect("trust");
        let world = World::new(config, &Notice::default(), self.ours, Suspensions::default());
        let deliverer = Deliverer::new(world.clone(), trust);
        let (path, key_file) = (self.directory.path().join("store"), self.directory.path().join("key"));
        let settings = StoreSettings { path, key_file, ..world.config().store.clone() };
        let store = Embedded::open(&settings, "test").expect("a store");
        Ground { world, deliverer, store, session: Default::default(), directory: self.directory }
    }
}

impl Ground {
    pub fn new() -> Self {
        Plan::new().build()
    }

    /// Accepts and begins a send, as a dispatcher would.
    pub async fn begin(&self, tenant: &str, spec: SendSpec) -> Started {
        let tenant = TenantId::new(tenant);
        let id = SendId(Uuid::now_v7());
        let spec = Arc::new(spec);
        let shown = ShownRequest {
            to: match &spec.to {
                To::Http(request) => ShownTo::Http { method: request.method, url: request.target.shown().to_owned() },
                To::Email(email) => ShownTo::Email { relay: email.relay().clone() },
                To::Event(event) => ShownTo::Event { place: event.place().clone(), way: event.way().clone() },
            },
            headers: Vec::new(),
            spelling: egressd::send::Spelling::default(),
            dropped_headers: Vec::new(),
            body: None,
        };
        let new = NewSend {
            id,
            tenant: tenant.clone(),
            spec,
            shown,
            sealed: false,
            resend_of: None,
            created_at: clock::wall(),
            expires_in: Duration::from_secs(60),
            course: Course::Begin,
        };
        let accept =
            Accept { tenant: tenant.clone(), sends: vec![new], hold: None, idempotency: None, sends_per_execution: 1 };
        let join = || async { self.store.join(Arc::from("test")).await.expect("joined") };
        match self.store.accept(self.session.get_or_init(join).await, accept).await {
            Ok(Accepted::New { mut started, .. }) => started.pop().expect("begun"),
            other => panic!("not accepted: {other:?}"),
        }
    }

    pub async fn deliver(&self, spec: SendSpec, total: Duration) -> Attempt {
        self.deliver_for("acme", spec, total).await
    }

    pub async fn deliver_for(&self, tenant: &str, spec: SendSpec, total: Duration) -> Attempt {
        let started = self.begin(tenant, spec).await;
        self.deliverer.deliver(started, Deadline::start(total), ()).await
    }

    /// A GET with plenty of time.
    pub async fn get(&self, url: &str) -> Attempt {
        self.deliver(get(url), LONG).await
    }
}

/// The clock stands still while this lives, and goes on only where it is told to: whatever comes to pass needed no
/// timer, however long it took. Where a test waits for what does not come, the clock runs on after [`LONG`].
pub struct StoppedClock(#[allow(dead_code, reason = "its end is what is waited for")] std::sync::mpsc::Sender<()>);

impl StoppedClock {
    /// In a runtime of one thread.
    pub fn stop() -> Self {
        let (alive, ended) = std::sync::mpsc::channel();
        tokio::time::pause();
        // A paused clock jumps on when nothing is left to do, but not while a blocking task is at work.
        tokio::task::spawn_blocking(move || ended.recv_timeout(LONG));
        Self(alive)
    }

    pub async fn passes(&self, time: Duration) {
        tokio::time::advance(time).await;
    }
}

impl Drop for StoppedClock {
    fn drop(&mut self) {
        tokio::time::resume();
    }
}

pub fn request(method: Method, url: &str, headers: &[(&str, &str)], body: Option<&str>) -> SendSpec {
    let target = match CheckedUrl::parse(url) {
        Ok(url) => Target::Url(url),
        Err(denial) => Target::Refused { shown: url.to_owned(), denial: denial.into() },
    };
    let spelling = headers.iter().map(|(name, _)| *name).collect();
    let headers = headers.iter().map(|(name, value)| {
        (name.parse::<HeaderName>().expect("a name"), HeaderValue::from_str(value).expect("a value"))
    });
    SendSpec {
        to: To::Http(HttpRequest {
            method,
            target,
            headers: headers.collect(),
            spelling,
            dropped_headers: Vec::new(),
            body: body.map(|body| Bytes::copy_from_slice(body.as_bytes())),
        }),
        context: Context::default(),
        expires_in: None,
    }
}

pub fn http(spec: &SendSpec) -> &HttpRequest {
    match &spec.to {
        To::Http(request) => request,
        To::Email(_) | To::Event(_) => panic!("no request: {spec:?}"),
    }
}

pub fn get(url: &str) -> SendSpec {
    request(Method::Get, url, &[], None)
}

pub fn post(url: &str, body: &str) -> SendSpec {
    request(Method::Post, url, &[], Some(body))
}

/// Outcome, code and phase in one word each, for tables: `delivered`, `failed timeout read`.
pub fn end_of(attempt: &Attempt) -> String {
    let mut words = vec![attempt.ended.outcome.label()];
    if let Some(error) = &attempt.ended.error {
        words.push(error.code.label());
        words.extend(error.phase.map(|phase| phase.label()));
    }
    words.join(" ")
}
