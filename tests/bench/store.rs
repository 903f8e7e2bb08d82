//! The embedded store on its own: what a send costs in CPU, and whether ten million records cost what ten thousand
//! do.
//!
//! `cargo bench --bench store` fills a store with 10 thousand, 1 million and 10 million records, through the store,
//! and prints one line for each and how the last compares with the first; it takes some minutes and 15 GB in
//! `TMPDIR`. `cargo bench --bench store -- 1000000` measures one size. Steps are CPU of the whole process, so they
//! hold the callers' part too; questions are wall time, the best of many. Every question but `nothing` and `apart`
//! finds a page's worth at every size.

#![allow(clippy::disallowed_methods, reason = "a stopwatch, not the appliance")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use egressd::config::StoreSettings;
use egressd::outcome::{Code, Ended, Failure, Outcome, Timings};
use egressd::policy::CheckedUrl;
use egressd::record::{Connection, Finished, ShownBody, ShownRequest, ShownResponse};
use egressd::send::{Context, ExecutionId, Method, SendId, SendSpec, Target, TenantId};
use egressd::store::embedded::Embedded;
use egressd::store::{Accept, Accepted, Begin, Filter, NewSend, Store};
use http::{HeaderName, HeaderValue};
use jiff::Timestamp;

/// Sends whose steps are under way at once.
const TOGETHER: usize = 256;
/// Sends whose cost is measured at each size.
const MEASURED: u64 = 10_000;
/// The best of as many rounds counts.
const ROUNDS: u64 = 4;
/// Tries of each question.
const TRIES: usize = 50;

/// What is measured, in the order of a line.
const COLUMNS: [&str; 18] = [
    "sends/s",
    "accept",
    "begin",
    "finish",
    "list",
    "tenant",
    "workflow",
    "execution",
    "host",
    "outcome",
    "two",
    "apart",
    "nothing",
    "abuse",
    "record",
    "open",
    "memory",
    "drop",
];

fn main() {
    let mut sizes = vec![10_000, 1_000_000, 10_000_000];
    if let Some(size) = std::env::args().find_map(|argument| argument.parse().ok()) {
        sizes = vec![size];
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    println!("us; open: ms; memory: MiB once open; drop: ms for 100,000 records");
    print!("{:>10}", "records");
    COLUMNS.iter().for_each(|name| print!(" {name:>9}"));
    println!();
    let mut lines = Vec::new();
    for size in sizes {
        let line = runtime.block_on(measure(size));
        print!("{size:>10}");
        line.iter().for_each(|value| print!(" {value:>9.1}"));
        println!();
        lines.push(line);
    }
    if let [first, .., last] = lines.as_slice() {
        print!("{:>10}", "last/first");
        first.iter().zip(last).for_each(|(first, last)| print!(" {:>8.2}x", last / first));
        println!();
    }
}

fn settings(directory: &std::path::Path) -> StoreSettings {
    StoreSettings {
        path: directory.join("store"),
        key_file: directory.join("key"),
        retention: Duration::from_secs(30 * 24 * 3600),
        body_retention: Duration::from_secs(3 * 24 * 3600),
        max_bytes: 500 << 30,
        body_max_bytes: 400 << 30,
    }
}

async fn measure(size: u64) -> [f64; 18] {
    let directory = tempfile::tempdir().expect("a directory");
    let settings = settings(directory.path());
    let store = Arc::new(Embedded::open(&settings, "bench").expect("it opens"));
    store.recover(Timestamp::UNIX_EPOCH).await.expect("recovered");
    // The filling is not measured; its calls bring 100 sends each.
    fill(&store, 0..size).await;
    let mut steps_cost = [f64::MAX; 3];
    let mut rate: f64 = 0.0;
    for round in 0..ROUNDS {
        let numbers = size + round * MEASURED..size + (round + 1) * MEASURED;
        let from = Instant::now();
        for (step, best) in [Step::Accept, Step::Begin, Step::Finish].into_iter().zip(&mut steps_cost) {
            let took = steps(&store, numbers.clone(), step).await;
            *best = best.min(took.as_secs_f64() * 1e6 / MEASURED as f64);
        }
        rate = rate.max(MEASURED as f64 / from.elapsed().as_secs_f64());
    }

    let tenant = |number: u64| Some(TenantId::new(format!("tenant-{number}")));
    let all = Filter::default;
    let ask = async |filter: Filter| ask(&store, filter).await.as_secs_f64() * 1e6;
    let list = ask(all()).await;
    let of_tenant = ask(Filter { tenant: tenant(3), ..all() }).await;
    let workflow = ask(Filter { workflow: Some("workflow-77".to_owned()), ..all() }).await;
    let execution = ask(Filter { execution: Some("execution-3".to_owned()), tenant: tenant(3), ..all() }).await;
    let host = ask(Filter { host: Some("host-11.example.com".to_owned()), ..all() }).await;
    let outcome = ask(Filter { outcome: Some(Outcome::Failed), ..all() }).await;
    let two = ask(Filter { tenant: tenant(7), status: Some(503), ..all() }).await;
    // Two common things that never come together, and one that was never heard of.
    let apart = ask(Filter { tenant: tenant(1), status: Some(503), ..all() }).await;
    let nothing = ask(Filter { workflow: Some("no such workflow".to_owned()), ..all() }).await;
    // "Who sent this from this address at this time?": a minute in the middle, and somebody who was never asked.
    let window = |host: &str| Filter {
        source_ip: Some("198.51.100.10".parse().expect("an address")),
        since: Some(at(size / 2)),
        until: Some(at(size / 2 + 60_000)),
        host: Some(host.to_owned()),
        ..all()
    };
    let abuse = ask(window("host-11.example.com")).await.max(ask(window("nobody.example.com")).await);
    let mut record = f64::MAX;
    for _ in 0..TRIES {
        let from = Instant::now();
        for number in 0..50 {
            let id = id_of(number * (size / 50));
            store.record(None, id, false).await.expect("readable").expect("known");
        }
        record = record.min(from.elapsed().as_secs_f64() * 1e6 / 50.0);
    }
    store.close().await.expect("closed");
    drop(store);
    let reopened = Instant::now();
    let store = Embedded::open(&settings, "bench").expect("it opens");
    store.recover(Timestamp::UNIX_EPOCH).await.expect("recovered");
    let open = reopened.elapsed().as_secs_f64() * 1e3;
    let memory = memory();
    // Past every retention: all that there is goes.
    let from = Instant::now();
    store.retain(Timestamp::now() + Duration::from_secs(400 * 24 * 3600)).await.expect("dropped");
    let dropped = from.elapsed().as_secs_f64() * 1e3 / (size + ROUNDS * MEASURED) as f64 * 1e5;
    let left = store.list(all(), None, 1).await.expect("a page").sends.len();
    assert_eq!(left, 0, "every record is gone");
    let [accept, begin, finish] = steps_cost;
    [
        rate, accept, begin, finish, list, of_tenant, workflow, execution, host, outcome, two, apart, nothing, abuse,
        record, open, memory, dropped,
    ]
}

#[derive(Clone, Copy)]
enum Step {
    Accept,
    Begin,
    Finish,
}

/// CPU that one step of all these sends took.
async fn steps(store: &Arc<Embedded>, numbers: std::ops::Range<u64>, step: Step) -> Duration {
    let next = Arc::new(std::sync::atomic::AtomicU64::new(numbers.start));
    let cpu = cpu_time();
    let tasks: Vec<_> = (0..TOGETHER)
        .map(|_| {
            let (store, next, end) = (store.clone(), next.clone(), numbers.end);
            tokio::spawn(async move {
                loop {
                    let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if number >= end {
                        return;
                    }
                    match step {
                        Step::Accept => accept_call(&store, vec![new_send(number)]).await,
                        Step::Begin => {
                            let send = new_send(number);
                            let begin =
                                Begin { id: send.id, tenant: send.tenant, spec: Some(send.spec), at: at(number) };
                            drop(store.begin(begin).await.expect("begun"));
                        }
                        Step::Finish => drop(store.finish(finished(number)).await.expect("ended")),
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("it ends");
    }
    cpu_time() - cpu
}

async fn fill(store: &Arc<Embedded>, numbers: std::ops::Range<u64>) {
    let next = Arc::new(std::sync::atomic::AtomicU64::new(numbers.start));
    let tasks: Vec<_> = (0..32)
        .map(|_| {
            let (store, next, end) = (store.clone(), next.clone(), numbers.end);
            tokio::spawn(async move {
                loop {
                    let first = next.fetch_add(100, std::sync::atomic::Ordering::Relaxed);
                    if first >= end {
                        return;
                    }
                    let numbers = first..end.min(first + 100);
                    accept_call(&store, numbers.clone().map(new_send).collect()).await;
                    let ends = numbers.map(|number| store.finish(finished(number)));
                    for end in futures_util::future::join_all(ends).await {
                        end.expect("ended");
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("it ends");
    }
}

async fn accept_call(store: &Embedded, sends: Vec<NewSend>) {
    let call = Accept {
        tenant: sends[0].tenant.clone(),
        sends,
        hold: None,
        idempotency: None,
        sends_per_execution: 10_000,
        node: Arc::from("bench"),
    };
    assert!(matches!(store.accept(call).await, Ok(Accepted::New { .. })));
}

/// The best of as many tries: what it costs where nothing else wants the machine.
async fn ask(store: &Embedded, filter: Filter) -> Duration {
    let mut best = Duration::MAX;
    for _ in 0..TRIES {
        let from = Instant::now();
        store.list(filter.clone(), None, 50).await.expect("a page");
        best = best.min(from.elapsed());
    }
    best
}

// Sends: a hundred tenants, workflows and hosts, an execution for every four of a tenant's.

fn at(number: u64) -> Timestamp {
    Timestamp::from_millisecond(1_790_000_000_000 + number as i64).expect("in range")
}

fn id_of(number: u64) -> SendId {
    let mut tail = [0; 10];
    tail[2..].copy_from_slice(&number.to_be_bytes());
    SendId(uuid::Builder::from_unix_timestamp_millis(at(number).as_millisecond() as u64, &tail).into_uuid())
}

fn new_send(number: u64) -> NewSend {
    let target = CheckedUrl::parse(&format!("https://host-{}.example.com/orders/{number}", number / 3 % 100));
    let target = Target::Url(target.expect("a plain URL"));
    let body = Bytes::from_static(&[b'x'; 256]);
    let shown = ShownRequest {
        method: Method::Post,
        url: target.shown().to_owned(),
        headers: vec![("content-type".to_owned(), vec!["application/json".to_owned()])],
        dropped_headers: Vec::new(),
        body: Some(ShownBody { bytes: Some(body.clone()), total: 256, truncated: false, sha256: Some([1; 32]) }),
    };
    let header = (HeaderName::from_static("content-type"), HeaderValue::from_static("application/json"));
    NewSend {
        id: id_of(number),
        tenant: TenantId::new(format!("tenant-{}", number % 100)),
        shown,
        spec: Arc::new(SendSpec {
            method: Method::Post,
            target,
            headers: vec![header],
            dropped_headers: Vec::new(),
            body: Some(body),
            context: Context {
                workflow: Some(Arc::from(format!("workflow-{}", number / 5 % 100))),
                execution: Some(ExecutionId::new(format!("execution-{}", number / 400))),
                step: Some(Arc::from("step")),
            },
            expires_in: None,
        }),
        sealed: false,
        resend_of: None,
        created_at: at(number),
        expires_in: Duration::from_secs(24 * 3600),
    }
}

fn finished(number: u64) -> Finished {
    let milliseconds = |number| Some(Duration::from_millis(number));
    // The last tenant's fail, the eighth's are answered 503.
    let failed = number % 100 == 99;
    let status = if number % 100 == 7 { 503 } else { 200 };
    let error = Failure::new(Code::Timeout, None, "no answer within 5 s: ask the receiver");
    Finished {
        id: id_of(number),
        ended: if failed { Ended::because(error) } else { Ended::answered(status) },
        sent_headers: Some(
            ["host", "content-type", "content-length", "user-agent"]
                .map(|name| (name.to_owned(), vec!["a value of the usual length".to_owned()]))
                .to_vec(),
        ),
        response: (!failed).then(|| ShownResponse {
            status,
            version: "HTTP/1.1".to_owned(),
            headers: ["content-type", "content-length", "date", "server"]
                .map(|name| (name.to_owned(), vec!["a value of the usual length".to_owned()]))
                .to_vec(),
            body: ShownBody { bytes: Some(Bytes::from_static(b"{\"ok\": true}")), total: 12, ..ShownBody::default() },
            declared: Some(12),
        }),
        connection: Some(Connection {
            source: Some("10.0.0.10:40001".parse().expect("an address")),
            public: Some("198.51.100.10".parse().expect("an address")),
            remote: Some("93.184.216.34:443".parse().expect("an address")),
            ..Connection::default()
        }),
        would_block: None,
        timings: Timings { wait: milliseconds(20), total: milliseconds(30), ..Timings::default() },
        released_at: Some(at(number)),
        started_at: Some(at(number)),
        finished_at: at(number + 30),
    }
}

/// Of the process, in MiB, with what the allocator has not given back since the store was filled.
fn memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("readable");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a resident size");
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().expect("a number");
    kib / 1024.0
}

fn cpu_time() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("the system counts");
    [usage.user_time(), usage.system_time()]
        .into_iter()
        .map(|time| Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000))
        .sum()
}
