//! Against a real PostgreSQL: the suite that every store passes, and what only several sessions can break.

mod batches;
mod claims;
mod handed;
mod hung;
mod lost;
mod many;
mod nodes;
mod plans;
mod shares;
mod tunnels;
mod unheard;
mod wrong;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;

use super::*;
use crate::store::conformance::{self, NODE, Subject};

struct Cluster {
    /// With its input, which keeps it up.
    child: Child,
    directory: String,
}

/// One cluster for all tests of this process; it ends with it.
fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(Cluster::start)
}

impl Cluster {
    fn start() -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|one| one.local_addr()).expect("a port").port();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/postgres/cluster");
        let mut child = Command::new(script)
            .args([&port.to_string(), "memory"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tests/postgres/cluster runs");
        let mut directory = String::new();
        let mut told = BufReader::new(child.stdout.take().expect("its output"));
        told.read_line(&mut directory).expect("its directory");
        assert!(!directory.is_empty(), "no cluster was started");
        let directory = format!("{}:{port}", directory.trim());
        Self { child, directory }
    }

    fn address(&self, schema: &str) -> Address {
        let (directory, port) = self.directory.rsplit_once(':').expect("both");
        let mut config = tokio_postgres::Config::new();
        config.host(directory).port(port.parse().expect("a port")).user("egressd").dbname("postgres");
        Address { config, tls: None, schema: schema.to_owned() }
    }

    fn port(&self) -> u16 {
        self.directory.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("a port")
    }
}

fn settings(directory: &std::path::Path) -> Settings {
    Settings {
        key_file: directory.join("key"),
        connections: CONNECTIONS_MIN,
        lease: Duration::from_secs(60),
        grace: Duration::ZERO,
        // A busy machine is no outage.
        answer_within: Duration::from_secs(60),
        statement_within: Duration::from_secs(120),
        retention: Duration::from_secs(30 * 24 * 3600),
        body_retention: Duration::from_secs(30 * 24 * 3600),
        tenant_max_bytes: 50 << 30,
        past: Past::Own,
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// A schema of its own.
fn fresh_schema() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

struct Tier {
    store: Postgres,
    session: Session,
    schema: String,
    directory: tempfile::TempDir,
}

impl Tier {
    async fn opened(schema: String, directory: tempfile::TempDir) -> Self {
        let store = Postgres::open(cluster().address(&schema), settings(directory.path())).await.expect("opened");
        // In a tier that is done by whoever comes to it first.
        store.shared.interrupts.store(false, Ordering::Relaxed);
        let session = store.join(Arc::from(NODE)).await.expect("joined");
        Self { store, session, schema, directory }
    }
}

impl Subject for Tier {
    type Store = Postgres;

    async fn fresh() -> Self {
        Self::opened(fresh_schema(), tempfile::tempdir().expect("a directory")).await
    }
    fn store(&self) -> &Postgres {
        &self.store
    }
    fn session(&self) -> &Session {
        &self.session
    }
    async fn crash(self) -> Self {
        let Self { store, schema, directory, .. } = self;
        drop(store);
        Self::opened(schema, directory).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_of_a_tier_passes_the_suite() {
    Box::pin(conformance::run::<Tier>()).await;
    Box::pin(conformance::waiting::run::<Tier>()).await;
    Box::pin(conformance::batches::run::<Tier>()).await;
}
