//! The database of a tier, and what it tells of itself.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use tokio_postgres::{Client, NoTls};

use crate::support::{cpu_seconds, free_port};

/// What `deploy/tier/postgresql.conf` says, for a machine that has little to give.
const SETTINGS: [&str; 6] = [
    "shared_buffers = '512MB'",
    "max_wal_size = '4GB'",
    "checkpoint_timeout = '15min'",
    "wal_compression = on",
    "random_page_cost = 1.1",
    "autovacuum_naptime = '10s'",
];

/// A database of the bench's own, which ends with this value.
pub struct Cluster {
    child: Child,
    told: BufReader<ChildStdout>,
    directory: PathBuf,
    port: u16,
}

impl Cluster {
    pub fn start() -> Self {
        let port = free_port().port();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/postgres/cluster");
        let started = Command::new(script).arg(port.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = started.expect("tests/postgres/cluster runs");
        let mut told = BufReader::new(child.stdout.take().expect("its output"));
        let mut directory = String::new();
        told.read_line(&mut directory).expect("its directory");
        assert!(!directory.is_empty(), "no cluster was started");
        let mut cluster = Self { child, told, directory: directory.trim().into(), port };
        let counting = counts_statements().then_some("shared_preload_libraries = 'pg_stat_statements'");
        for setting in SETTINGS.into_iter().chain(counting) {
            cluster.tell(&format!("sql ALTER SYSTEM SET {setting}"));
        }
        cluster.tell("stop fast");
        cluster.tell("start");
        cluster
    }

    pub fn tell(&mut self, command: &str) {
        writeln!(self.child.stdin.as_mut().expect("its input"), "{command}").expect("told");
        let mut said = String::new();
        self.told.read_line(&mut said).expect("its word");
        assert_eq!(said.trim(), "done", "{command}");
    }

    pub fn url(&self) -> String {
        format!("postgres://egressd@127.0.0.1:{}/postgres", self.port)
    }

    pub async fn client(&self) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.url(), NoTls).await.expect("connected");
        tokio::spawn(connection);
        if counts_statements() {
            let made = client.batch_execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements SCHEMA public").await;
            made.expect("an extension of Debian's package");
        }
        client.batch_execute("SET search_path TO egressd").await.expect("a setting");
        client
    }

    /// Of the postmaster, of its children that live, and of those that have ended.
    pub fn cpu_seconds(&self) -> f64 {
        let file = std::fs::read_to_string(self.directory.join("data/postmaster.pid")).unwrap_or_default();
        let postmaster: u32 = file.lines().next().and_then(|line| line.parse().ok()).expect("its number");
        let children = std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children"));
        let live = children.unwrap_or_default();
        let live = live.split_whitespace().filter_map(|pid| pid.parse().ok()).map(cpu_seconds).sum::<f64>();
        live + cpu_seconds(postmaster) + ended_children_seconds(postmaster)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// proc(5), fields 16 and 17.
fn ended_children_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    let fields: Vec<&str> = after_name.split(' ').collect();
    let ticks = |index: usize| fields.get(index).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or_default();
    (ticks(13) + ticks(14)) / 100.0
}

pub async fn wal_bytes(client: &Client) -> f64 {
    let row = client.query_one("SELECT (pg_current_wal_insert_lsn() - '0/0')::float8", &[]).await;
    row.expect("a place in the WAL").get(0)
}

/// What the statements are that a send goes through, and how each is told from the others.
const STATEMENTS: [(&str, &str); 9] = [
    ("accept", "%made AS (INSERT INTO send %"),
    ("accept, keyed or held", "%FROM accept_call(%"),
    ("claim around full ones", "WITH RECURSIVE %picked AS %"),
    ("claim", "%picked AS %"),
    ("give back", "%back AS (UPDATE live %FROM me %"),
    ("read what is claimed", "SELECT g.id, (SELECT s.form %"),
    ("begin", "%begun AS (UPDATE live %"),
    ("end", "%gone.began_at, gone.created_at%ends AS (INSERT INTO done %"),
    ("what waits", "%FROM queue %"),
];

/// They are counted where `EGRESSD_BENCH_STATEMENTS` is set: it costs a little, so figures are told without.
fn counts_statements() -> bool {
    std::env::var_os("EGRESSD_BENCH_STATEMENTS").is_some()
}

pub async fn forget_statements(client: &Client) {
    if counts_statements() {
        client.batch_execute("SELECT public.pg_stat_statements_reset()").await.expect("forgotten");
    }
}

/// Since they were forgotten.
pub async fn tell_statements(client: &Client, sends: u64) {
    if !counts_statements() {
        return;
    }
    let kinds: String =
        STATEMENTS.iter().map(|(kind, like)| format!("WHEN query LIKE '{like}' THEN '{kind}' ")).collect();
    let asked = format!(
        "SELECT CASE {kinds} ELSE 'others' END, sum(calls)::float8, sum(rows)::float8, sum(total_exec_time)::float8, \
         sum(wal_bytes)::float8 FROM public.pg_stat_statements GROUP BY 1 ORDER BY 4 DESC"
    );
    let each = |value: f64| value / sends as f64;
    for row in client.query(&asked, &[]).await.expect("counted") {
        let (kind, calls, rows): (&str, f64, f64) = (row.get(0), row.get(1), row.get(2));
        let (ms, wal): (f64, f64) = (row.get(3), row.get(4));
        println!(
            "    {kind:<24} {calls:>8.0} calls  a send: {:>7.3} rows {:>7.1} us {:>8.0} bytes of WAL",
            each(rows),
            each(ms) * 1e3,
            each(wal)
        );
    }
}
