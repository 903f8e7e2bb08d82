//! Events that go in batches: into buckets at a pace, and many rows into a table. What they cost beside requests that carry
//! the same, and what they leave on disk.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::support::{CONNECTIONS, Node, Receiver, call, connect, cpu_seconds};
use crate::tier::cluster::Cluster;

const IN_A_CALL: usize = 100;
const BUCKETS: usize = 10;
const LIMITS: &str = "queued = 4000000\nqueued_per_tenant = 4000000\n";

/// About 200 bytes.
fn payload(number: usize) -> Value {
    json!({ "order": number, "state": "paid", "amount": 129.9, "currency": "EUR",
            "note": "what an event of a workflow is made of: a few names and numbers, and a sentence that says something" })
}

/// Calls of a hundred each, which are spread over so many seconds; 0: as fast as they are taken.
async fn submit(node: &Node, events: usize, seconds: u32, one: impl Fn(usize) -> Value) {
    let call_of = |from: usize| Value::Array((from..from + IN_A_CALL).map(&one).collect());
    let bodies: Vec<Bytes> =
        (0..BUCKETS).map(|n| Bytes::from(serde_json::to_vec(&call_of(n)).expect("JSON"))).collect();
    let calls = events / IN_A_CALL;
    let callers = if seconds == 0 { CONNECTIONS } else { 8 }.min(calls);
    let every = Duration::from_secs(u64::from(seconds)) * callers as u32 / calls as u32;
    let mut tasks = tokio::task::JoinSet::new();
    for caller in 0..callers {
        let (bodies, api) = (bodies.clone(), node.api);
        tasks.spawn(async move {
            let mut client = connect(api).await;
            let first = tokio::time::Instant::now() + every * caller as u32 / callers as u32;
            for (turn, number) in (caller..calls).step_by(callers).enumerate() {
                tokio::time::sleep_until(first + every * turn as u32).await;
                let body = bodies[number % BUCKETS].clone();
                let (status, answer) = call(&mut client, "POST", "/v1/sends", body).await;
                assert_eq!(status, 202, "{}", String::from_utf8_lossy(&answer));
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("a caller");
    }
}

fn bytes_below(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    let of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(of) if of.is_dir() => bytes_below(&entry.path()),
        Ok(of) => of.len(),
        Err(_) => 0,
    };
    entries.flatten().map(of).sum()
}

/// The largest that it was while this goes on.
async fn with_peak<T>(pid: u32, work: impl Future<Output = T>) -> (T, f64) {
    let mut peak: f64 = 0.0;
    let mut work = std::pin::pin!(work);
    let mut look = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            done = &mut work => return (done, peak),
            _ = look.tick() => peak = peak.max(crate::support::memory_mib(pid)),
        }
    }
}

fn row(name: &str, per_second: f64, cpu_us: f64, memory: f64) {
    println!("{name:<44} {per_second:>12.0} {cpu_us:>14.1} {memory:>12.1}");
}

/// So many a second for so long into ten buckets, a batch each ten seconds; and as many requests of the same.
pub async fn events(receiver: &Receiver, rate: usize, seconds: u32) {
    let events = rate * seconds as usize;
    let idle = Node::start(LIMITS).memory_mib();
    let of_request =
        |n: usize| json!({ "method": "POST", "url": format!("http://{}/hook", receiver.fast), "data": payload(n) });
    let of_event = |n: usize| json!({ "s3": { "bucket": format!("bucket-{}", n % BUCKETS), "prefix": "events", "payload": payload(n) } });
    let more = format!(
        "[destination.s3]\nendpoint = \"http://{}\"\npath_style = true\ncredentials_file = \"credentials\"\nevery = \"10s\"\n",
        receiver.fast
    );
    for (name, more, one) in [
        ("requests of the same, each on its own", "", &of_request as &dyn Fn(usize) -> Value),
        ("events into 10 buckets, 10 s a batch", more.as_str(), &of_event),
    ] {
        let node = with_credentials(more);
        let (before, started) = (cpu_seconds(node.pid()), Instant::now());
        let (outcomes, peak) = with_peak(node.pid(), async {
            submit(&node, events, seconds, one).await;
            node.settled(events as u64).await
        })
        .await;
        assert_eq!(outcomes.get("delivered"), Some(&(events as u64)), "{outcomes:?}");
        let cpu = cpu_seconds(node.pid()) - before;
        row(name, events as f64 / started.elapsed().as_secs_f64(), cpu * 1e6 / events as f64, peak);
        let on_disk = bytes_below(&node.directory.path().join("store"));
        let per = (peak - idle) * 1024.0 * 1024.0 / events as f64;
        println!(
            "{:<44} {:.0} bytes on disk, {per:.0} of memory above idle at its peak, each of {events}",
            "",
            on_disk as f64 / events as f64
        );
    }
}

fn with_credentials(more: &str) -> Node {
    let directory = std::sync::Arc::new(tempfile::tempdir().expect("a directory"));
    let profile = "[default]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = secret\n";
    std::fs::write(directory.path().join("credentials"), profile).expect("the credentials");
    Node::start_in(directory, LIMITS, more)
}

/// One batch of so many rows.
pub async fn rows(count: usize) {
    let mut cluster = Cluster::start();
    // The bench's sources are not the address that a cluster of Debian's trusts by itself.
    let rules = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(rules.path(), "host all all 127.0.0.0/8 trust\nlocal all all trust\n").expect("the rules");
    std::fs::set_permissions(rules.path(), std::fs::Permissions::from_mode(0o644)).expect("theirs to read");
    cluster.tell(&format!("sql ALTER SYSTEM SET hba_file = '{}'", rules.path().display()));
    cluster.tell("stop fast");
    cluster.tell("start");
    let (client, connection) =
        tokio_postgres::connect(&cluster.url(), tokio_postgres::NoTls).await.expect("a database");
    tokio::spawn(connection);
    let more = format!(
        "[destination.sql]\nurl = \"{}?sslmode=disable\"\nschema = \"bench_{{tenant}}\"\nevery = \"1h\"\nbatch_sends = {count}\n\
         batch_bytes = \"128MiB\"\ndeadline = \"1m\"\n",
        cluster.url()
    );
    let node = with_credentials(&more);
    let idle = node.memory_mib();
    let one = |n: usize| json!({ "sql": { "table": "events", "payload": payload(n) } });
    let before = cpu_seconds(node.pid());
    submit(&node, count, 0, one).await;
    let accepted = cpu_seconds(node.pid());
    let (started, database) = (Instant::now(), cluster.cpu_seconds());
    let api = node.api;
    let there = async {
        let has = "SELECT count(*) FROM bench_default.events";
        while client.query_one(has, &[]).await.map_or(0, |row| row.get::<_, i64>(0)) < count as i64 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(started.elapsed() < Duration::from_secs(120), "the rows are not there: see the batch at {api}");
        }
        started.elapsed()
    };
    let (there, peak) = with_peak(node.pid(), there).await;
    let database = cluster.cpu_seconds() - database;
    let outcomes = node.settled(count as u64).await;
    assert_eq!(outcomes.get("delivered"), Some(&(count as u64)), "{outcomes:?}");
    let cpu = cpu_seconds(node.pid()) - accepted;
    let per = |seconds: f64| seconds * 1e6 / count as f64;
    let name = format!("one batch of {count} rows");
    row(&name, count as f64 / there.as_secs_f64(), per(cpu), peak);
    println!(
        "{:<44} accepted for {:.1} us each; there {:.2} s after the last; {:.1} us of PostgreSQL a row; idle {idle:.1} MiB",
        "",
        per(accepted - before),
        there.as_secs_f64(),
        per(database)
    );
}
