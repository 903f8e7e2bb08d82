//! Ten thousand records against many: two tiers of one node, each over a database of its own, measured in turns, so that
//! whatever else the machine does falls on both.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::Value;
use tokio_postgres::Client;

use super::{Receiver, Round, Tier, Used, forget_statements};
use crate::support::{call_as, connect};

const FEW: i64 = 10_000;
/// Some 5 GB, and as many minutes. `EGRESSD_BENCH_RECORDS` says how many else.
const MANY: i64 = 5_000_000;
/// Over which they are spread: within the default retention.
const DAYS: i64 = 28;
const MS_PER_DAY: i64 = 24 * 3600 * 1000;
/// Of one statement that fills.
const FILLED_AT_ONCE: i64 = 100_000;

const ROUNDS: usize = 6;
/// Of one round.
const SENDS: u64 = 5_000;
/// Times that a question is asked in a round.
const TRIES: usize = 50;

/// As the store writes them, of a hundred tenants and hosts; a twentieth did not arrive. The forms are those of one that was
/// made, but for the tenant's name, which is as long. Bodies are left out, as they are kept for fewer days. The places in the
/// tail are below all that nodes give.
const FILL: &str = "WITH one AS MATERIALIZED (SELECT s.form AS asked, d.form AS told, \
     position('default'::bytea IN s.form) AS at_tenant FROM send s JOIN done d USING (id) \
     WHERE d.outcome = 0 AND s.tenant = 'default' LIMIT 1), \
     given AS MATERIALIZED (SELECT n, ms * 1000000 AS at, (lpad(to_hex(ms), 12, '0') || '7' || substr(random, 1, 3) || '8' \
     || substr(random, 4, 15))::uuid AS id, 'ten-' || lpad((n % 100)::text, 3, '0') AS tenant, \
     'workflow-' || n / 100 % 20 AS workflow, 'host-' || n / 3 % 100 || '.example' AS host, n / 11 % 20 = 0 AS has_failed \
     FROM (SELECT n, $3::bigint + (n * $4::float8)::bigint AS ms, md5(n::text) AS random \
     FROM generate_series($1::bigint, $2::bigint) n) g), \
     sent AS (INSERT INTO send (id, tenant, workflow, host, created_at, form) \
     SELECT id, tenant, workflow, host, at, overlay(asked PLACING convert_to(tenant, 'UTF8') FROM at_tenant) \
     FROM given, one) \
     INSERT INTO done (id, seq, tenant, outcome, code, status, source, public, started_at, finished_at, node, form) \
     SELECT id, n, tenant, CASE WHEN has_failed THEN 2 ELSE 0 END, CASE WHEN has_failed THEN 0 END, \
     CASE WHEN NOT has_failed THEN 200 END, '127.0.0.11', '127.0.0.11', at, at + 5000000, 'bench-0', told FROM given, one";

/// A list leaves out what its form tells otherwise than its columns, so they ask for what is in both.
const QUESTIONS: [(&str, &str, &str); 2] =
    [("a page", "*", "/v1/sends?limit=50"), ("of a tenant", "ten-007", "/v1/sends?limit=50")];

/// One of the two, and what was measured of it.
struct Subject {
    tier: Tier,
    records: i64,
    took: f64,
    used: Used,
    asked: [f64; QUESTIONS.len()],
}

impl Subject {
    async fn filled(receiver: &Receiver, records: i64) -> Self {
        let tier = Tier::start(1, "").await;
        tier.submit(receiver, 1, 2_000).await;
        tier.settled().await;
        let started = Instant::now();
        fill(&tier.client, records).await;
        let bytes = tier.number("SELECT pg_database_size(current_database())").await;
        println!(
            "    filled with {records} records in {:.0} s: {:.2} GB",
            started.elapsed().as_secs_f64(),
            bytes as f64 / 1e9
        );
        Self { tier, records, took: 0.0, used: Used::default(), asked: [0.0; QUESTIONS.len()] }
    }

    async fn sends(&mut self, receiver: &Receiver) {
        let Round { took, before, after, .. } = self.tier.round(receiver, 1, SENDS).await;
        self.took += took;
        self.used.nodes += after.nodes - before.nodes;
        self.used.database += after.database - before.database;
        self.used.load += after.load - before.load;
        self.used.wal += after.wal - before.wal;
    }

    /// CPU of the node and of the database.
    async fn asks(&mut self, receiver: &Receiver, question: usize) {
        let (_, tenant, path) = QUESTIONS[question];
        let mut client = connect(self.tier.nodes[0].api).await;
        let before = self.tier.used(receiver).await;
        for _ in 0..TRIES {
            let (status, page) = call_as(&mut client, "GET", path, Bytes::new(), Some(tenant)).await;
            let page: Value = serde_json::from_slice(&page).expect("JSON");
            assert_eq!((status, page["sends"].as_array().map(Vec::len)), (200, Some(50)), "{tenant} {path}");
        }
        let after = self.tier.used(receiver).await;
        self.asked[question] += after.nodes - before.nodes + after.database - before.database;
    }

    async fn tell(&self) {
        let name = format!("tier of 1 with {} records, 1 send a call", self.records);
        self.tier.tell(&name, self.took, SENDS * ROUNDS as u64, &Used::default(), &self.used).await;
    }
}

pub async fn grown(receiver: &Receiver) {
    let asked = std::env::var("EGRESSD_BENCH_RECORDS").ok().map(|text| text.parse().expect("a number of records"));
    let mut subjects = [Subject::filled(receiver, FEW).await, Subject::filled(receiver, asked.unwrap_or(MANY)).await];
    for subject in &subjects {
        forget_statements(&subject.tier.client).await;
    }
    for _ in 0..ROUNDS {
        for subject in &mut subjects {
            subject.sends(receiver).await;
        }
    }
    for subject in &subjects {
        subject.tell().await;
    }
    for question in 0..QUESTIONS.len() {
        for _ in 0..ROUNDS {
            for subject in &mut subjects {
                subject.asks(receiver, question).await;
            }
        }
    }
    let [few, many] = &subjects;
    let cpu = |of: &Subject| of.used.nodes + of.used.database;
    println!(
        "    {} against {} records: {:.2} times the sends a second, {:.2} times the CPU of node and database, {:.2} times \
         the WAL",
        many.records,
        few.records,
        few.took / many.took,
        cpu(many) / cpu(few),
        many.used.wal / few.used.wal
    );
    for (question, (name, ..)) in QUESTIONS.iter().enumerate() {
        let each = |of: &Subject| of.asked[question] / (TRIES * ROUNDS) as f64 * 1e6;
        println!("    {name:<16} {:>6.0} us of CPU against {:>6.0}", each(many), each(few));
    }
}

async fn fill(client: &Client, records: i64) {
    assert!((1..1 << 29).contains(&records), "{records} records");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_millis() as i64;
    let from = now - DAYS * MS_PER_DAY;
    let run =
        async |text: String| client.batch_execute(&text).await.unwrap_or_else(|error| panic!("{text}: {error:?}"));
    // What is in the WAL is no part of what is measured, nor of what it takes on the disk.
    run("ALTER SYSTEM SET max_wal_size = '1GB'".to_owned()).await;
    run("SELECT pg_reload_conf()".to_owned()).await;
    run("SET synchronous_commit = off".to_owned()).await;
    let first_of = |day: i64| {
        let hex = format!("{:012x}", day * MS_PER_DAY);
        format!("{}-{}-0000-0000-000000000000", &hex[..8], &hex[8..])
    };
    for day in from / MS_PER_DAY..=now / MS_PER_DAY {
        for parent in ["send", "done"] {
            run(format!(
                "CREATE TABLE IF NOT EXISTS {parent}_{day} PARTITION OF {parent} FOR VALUES FROM ('{}') TO ('{}')",
                first_of(day),
                first_of(day + 1)
            ))
            .await;
        }
    }
    let each = (DAYS * MS_PER_DAY) as f64 / records as f64;
    for first in (0..records).step_by(FILLED_AT_ONCE as usize) {
        let last = records.min(first + FILLED_AT_ONCE) - 1;
        let filled = client.execute(FILL, &[&first, &last, &from, &each]).await.expect("filled");
        assert_eq!(filled as i64, last - first + 1);
    }
    // They were counted when they ended.
    run(format!("UPDATE stat_place SET seq = greatest(seq, {records})")).await;
    run("VACUUM (ANALYZE)".to_owned()).await;
    run("ALTER SYSTEM SET max_wal_size = '4GB'".to_owned()).await;
    run("SELECT pg_reload_conf()".to_owned()).await;
    run("CHECKPOINT".to_owned()).await;
}
