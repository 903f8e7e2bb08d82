//! The embedded store on its own: what a send costs in CPU, and whether ten million records cost what ten thousand
//! do.
//!
//! `cargo bench --bench store` fills stores with 10 thousand, 1 million and 10 million records, through the store,
//! then measures them in turns, so that whatever else the machine does falls on all of them, and prints one line for
//! each and how the last compares with the first; it takes some minutes and 15 GB in `TMPDIR`.
//! `cargo bench --bench store -- 10000 1000000` measures these sizes, `-- queued` how a store opens in which 983,000
//! sends wait, `-- stats 10000 5000000` what statistics of a month with so many sends cost, and counting them;
//! with `crowded` of 10,000 tenants, 100 else. Steps and questions are CPU of the whole process, so they hold the callers' part too; the best of many
//! counts. Every question but `nothing` and `apart` finds a page's worth at every size.

#![allow(clippy::disallowed_methods, reason = "a stopwatch, not the appliance")]

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use egressd::config::StoreSettings;
use egressd::outcome::{Code, Ended, Failure, Outcome, Processed, Timings};
use egressd::policy::CheckedUrl;
use egressd::record::{Connection, Finished, ShownBody, ShownRequest, ShownResponse, ShownTo};
use egressd::send::{Context, ExecutionId, HttpRequest, Method, SendId, SendSpec, Target, TenantId, To};
use egressd::store::embedded::Embedded;
use egressd::store::stats::{By, StatsAsked};
use egressd::store::{
    Accept, Accepted, Begin, Course, Filter, HostFilter, IdempotencyKey, NewSend, OnceOnly, Reach, Records, Session,
    StatusFilter,
};
use http::{HeaderName, HeaderValue};
use jiff::Timestamp;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Sends whose steps are under way at once.
const TOGETHER: usize = 256;
/// Sends that are measured together.
const MEASURED: u64 = 5_000;
/// Turns that each store gets, for its steps and for each question.
const ROUNDS: u64 = 8;
const QUESTION_ROUNDS: u64 = 20;
/// Times that a question is asked in a turn.
const TRIES: u32 = 50;

/// What is measured of a store, in the order of a line.
const COLUMNS: [&str; 19] = [
    "sends/s",
    "accept",
    "keyed",
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
const STEPS: [Step; 6] = [Step::Accept, Step::Begin, Step::Finish, Step::Keyed, Step::Begin, Step::Finish];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, option, directory] = arguments.as_slice()
        && option == "--open"
    {
        return open(Path::new(directory));
    }
    if arguments.iter().any(|argument| argument == "queued") {
        return queued(983_000);
    }
    let mut sizes = vec![10_000, 1_000_000, 10_000_000];
    let of_stats = arguments.iter().any(|argument| argument == "stats");
    let asked: Vec<u64> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    if !asked.is_empty() {
        sizes = asked;
    }
    if of_stats {
        let tenants = if arguments.iter().any(|argument| argument == "crowded") { 10_000 } else { 100 };
        return sizes.into_iter().for_each(|size| runtime().block_on(statistics(size, tenants)));
    }
    println!("us; open: ms; memory: MiB of a process that has it open; drop: ms for 100,000 records");
    let lines = runtime().block_on(measure(&sizes));
    print!("{:>10}", "records");
    COLUMNS.iter().for_each(|name| print!(" {name:>9}"));
    println!();
    for (size, line) in sizes.iter().zip(&lines) {
        print!("{size:>10}");
        line.iter().for_each(|value| print!(" {value:>9.1}"));
        println!();
    }
    if let [first, .., last] = lines.as_slice() {
        print!("{:>10}", "last/first");
        first.iter().zip(last).for_each(|(first, last)| print!(" {:>8.2}x", last / first));
        println!();
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

fn settings(directory: &Path) -> StoreSettings {
    StoreSettings {
        postgres: None,
        path: directory.join("store"),
        key_file: directory.join("key"),
        retention: Duration::from_secs(30 * 24 * 3600),
        body_retention: Duration::from_secs(3 * 24 * 3600),
        max_bytes: 500 << 30,
        body_max_bytes: 400 << 30,
        tenant_max_bytes: 400 << 30,
    }
}

/// One store, and the best of what was measured of it.
struct Subject {
    size: u64,
    directory: tempfile::TempDir,
    store: Arc<Joined>,
    /// The number of the next send.
    next: u64,
    rate: f64,
    accept: f64,
    keyed: f64,
    begin: f64,
    finish: f64,
    questions: [f64; 11],
}

async fn measure(sizes: &[u64]) -> Vec<[f64; 19]> {
    let mut subjects = Vec::new();
    for &size in sizes {
        let from = Instant::now();
        subjects.push(Subject::filled(size).await);
        println!("filled with {size} in {:.1} s", from.elapsed().as_secs_f64());
    }
    for subject in &subjects {
        subject.come_to_rest();
    }
    for _ in 0..ROUNDS {
        for subject in &mut subjects {
            subject.measure_steps().await;
        }
    }
    for question in 0..11 {
        for _ in 0..QUESTION_ROUNDS {
            for subject in &mut subjects {
                subject.measure_question(question).await;
            }
        }
    }
    let mut lines = Vec::new();
    for subject in subjects {
        lines.push(subject.line().await);
    }
    lines
}

impl Subject {
    async fn filled(size: u64) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Arc::new(Joined::open(directory.path()).await);
        store.recover(&store.session, Timestamp::UNIX_EPOCH).await.expect("recovered");
        // The filling is not measured; its calls bring 100 sends each.
        fill(&store, 0..size).await;
        Self {
            size,
            directory,
            store,
            next: size,
            rate: 0.0,
            accept: f64::MAX,
            keyed: f64::MAX,
            begin: f64::MAX,
            finish: f64::MAX,
            questions: [f64::MAX; 11],
        }
    }

    /// Waits for what is done beside the writer, and for the disk.
    fn come_to_rest(&self) {
        let mut segments: Vec<PathBuf> = std::fs::read_dir(self.directory.path().join("store/pieces"))
            .expect("readable")
            .map(|entry| entry.expect("readable").path())
            .collect();
        segments.sort();
        segments.pop();
        while !segments.iter().all(|segment| segment.join("index").exists()) {
            std::thread::sleep(Duration::from_millis(100));
        }
        nix::unistd::sync();
    }

    async fn measure_steps(&mut self) {
        for half in STEPS.chunks(3) {
            let numbers = self.next..self.next + MEASURED;
            self.next = numbers.end;
            let from = Instant::now();
            for &step in half {
                let took = steps(&self.store, numbers.clone(), step).await.as_secs_f64() * 1e6 / MEASURED as f64;
                let best = match step {
                    Step::Accept => &mut self.accept,
                    Step::Keyed => &mut self.keyed,
                    Step::Begin => &mut self.begin,
                    Step::Finish => &mut self.finish,
                };
                *best = best.min(took);
            }
            self.rate = self.rate.max(MEASURED as f64 / from.elapsed().as_secs_f64());
        }
    }

    async fn measure_question(&mut self, question: usize) {
        let filters = filters(self.size);
        let Some(filters) = filters.get(question) else {
            let cpu = cpu_time();
            for number in (0..50).cycle().take(10 * TRIES as usize) {
                let id = id_of(number * (self.size / 50));
                self.store.record(Reach::All, id, false).await.expect("readable").expect("known");
            }
            self.asked(question, (cpu_time() - cpu) / (10 * TRIES));
            return;
        };
        let mut longest = Duration::ZERO;
        for filter in filters {
            let cpu = cpu_time();
            for _ in 0..TRIES {
                self.store.list(filter.clone(), None, 50).await.expect("a page");
            }
            longest = longest.max((cpu_time() - cpu) / TRIES);
        }
        self.asked(question, longest);
    }

    fn asked(&mut self, question: usize, took: Duration) {
        let best = &mut self.questions[question];
        *best = best.min(took.as_secs_f64() * 1e6);
    }

    async fn line(self) -> [f64; 19] {
        self.store.close().await.expect("closed");
        drop(self.store);
        let (open, memory) = opened_by_another(self.directory.path());
        let store = Joined::open(self.directory.path()).await;
        store.recover(&store.session, Timestamp::UNIX_EPOCH).await.expect("recovered");
        // Past every retention: all that there is goes.
        let from = Instant::now();
        store.retain(Timestamp::now() + Duration::from_secs(400 * 24 * 3600)).await.expect("dropped");
        let dropped = from.elapsed().as_secs_f64() * 1e3 / self.next as f64 * 1e5;
        let left = store.list(Filter::of(Reach::All), None, 1).await.expect("a page").sends.len();
        assert_eq!(left, 0, "every record is gone");
        let [list, tenant, workflow, execution, host, outcome, two, apart, nothing, abuse, record] = self.questions;
        [
            self.rate,
            self.accept,
            self.keyed,
            self.begin,
            self.finish,
            list,
            tenant,
            workflow,
            execution,
            host,
            outcome,
            two,
            apart,
            nothing,
            abuse,
            record,
            open,
            memory,
            dropped,
        ]
    }
}

/// How long a process of its own took to open a store, in milliseconds, and its memory then, in MiB.
fn opened_by_another(directory: &Path) -> (f64, f64) {
    let this = std::env::current_exe().expect("a path");
    let output = std::process::Command::new(this).arg("--open").arg(directory).output().expect("it runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let figures = text.split_whitespace().map(|figure| figure.parse().expect("a figure")).collect::<Vec<f64>>();
    let [open, memory] = figures.try_into().expect("two figures");
    (open, memory)
}

/// A store with this process's session.
struct Joined {
    store: Embedded,
    session: Session,
}

impl Joined {
    async fn open(directory: &Path) -> Self {
        let store = Embedded::open(&settings(directory), "bench").expect("it opens");
        let session = store.join(Arc::from("bench")).await.expect("joined");
        Self { store, session }
    }
}

impl std::ops::Deref for Joined {
    type Target = Embedded;
    fn deref(&self) -> &Embedded {
        &self.store
    }
}

/// Days of the month that statistics are asked for.
const MONTH: i64 = 30 * 24 * 3600;

/// Sends of a month, and what statistics of it cost: the best of a few answers, and CPU of the whole process for each send
/// until all ends are counted.
async fn statistics(size: u64, tenants: u64) {
    let directory = tempfile::tempdir().expect("a directory");
    let joined = Arc::new(Joined::open(directory.path()).await);
    let now = Timestamp::now();
    let spread = move |number: u64| {
        let before = i64::try_from(u128::from(size - number) * (MONTH as u128 - 3600) * 1000 / u128::from(size));
        now - jiff::SignedDuration::from_millis(before.expect("within a month"))
    };
    let (cpu, from) = (cpu_time(), Instant::now());
    let send = move |number| {
        let tenant = TenantId::new(format!("tenant-{}", number % tenants));
        NewSend { tenant, ..new_send(number) }
    };
    fill_by(&joined, 0..size, send, move |number| {
        // Other hosts and times than their numbers alone would give.
        let took = [8, 12, 18, 25, 40, 90, 250, 1200][(number.wrapping_mul(2_654_435_761) >> 7) as usize % 8];
        let at = spread(number);
        let mut end = finished(number);
        (end.started_at, end.released_at) = (Some(at), Some(at));
        end.finished_at = at + jiff::SignedDuration::from_millis(took);
        end
    })
    .await;
    let of = |reach: Reach, by, bucket, seconds| {
        let since = now - jiff::SignedDuration::from_secs(seconds);
        StatsAsked::of(reach, by, bucket, since, now).expect("whole buckets")
    };
    // The last segment but one is sealed beside the writer.
    let counted = async || joined.stats(of(Reach::All, By::Outcome, 288, MONTH)).await.expect("counted").all.count;
    assert_eq!(counted().await, size);
    let fill = (cpu_time() - cpu).as_secs_f64() * 1e6 / size as f64;
    println!(
        "{size} sends of {tenants} tenants in {:.0} s, {fill:.1} us of CPU each, counted and all",
        from.elapsed().as_secs_f64()
    );
    tokio::time::sleep(Duration::from_secs(10)).await;
    for (name, bucket, seconds) in
        [("a month by days", 288, MONTH), ("a month by hours", 12, MONTH), ("a day", 3, 86_400)]
    {
        for reach in [Reach::All, Reach::One(TenantId::new("tenant-3"))] {
            let whose = reach.one().map_or("all", |_| "one tenant");
            let mut line = format!("  {name}, {whose}:");
            for by in By::ALL {
                let mut best = f64::INFINITY;
                for _ in 0..5 {
                    let cpu = cpu_time();
                    joined.stats(of(reach.clone(), *by, bucket, seconds)).await.expect("counted");
                    best = best.min((cpu_time() - cpu).as_secs_f64() * 1e3);
                }
                line += &format!(" {by} {best:.1} ms");
            }
            println!("{line}");
        }
    }
    joined.close().await.expect("closed");
}

/// How a store opens in which so many sends wait, and claims the first of them.
fn queued(sends: u64) {
    let empty = tempfile::tempdir().expect("a directory");
    let (_, idle) = opened_by_another(empty.path());
    let directory = tempfile::tempdir().expect("a directory");
    let runtime = runtime();
    runtime.block_on(async {
        let store = Joined::open(directory.path()).await;
        for first in (0..sends).step_by(1000) {
            let tenant = TenantId::new(format!("tenant-{}", first / 1000 % 8));
            let waits = |number| NewSend { course: Course::Wait, tenant: tenant.clone(), ..new_send(number) };
            accept_call(&store, (first..sends.min(first + 1000)).map(waits).collect(), None).await;
        }
        assert_eq!(store.waiting_in_all().unclaimed, sends);
    });
    let (open, memory) = opened_by_another(directory.path());
    println!(
        "with {sends} queued: open {open:.0} ms, memory {memory:.1} MiB, {:.1} above an empty store",
        memory - idle
    );
}
fn open(directory: &Path) {
    let from = Instant::now();
    let runtime = runtime();
    let store = runtime.block_on(Joined::open(directory));
    runtime.block_on(store.recover(&store.session, Timestamp::UNIX_EPOCH)).expect("recovered");
    println!("{} {}", from.elapsed().as_secs_f64() * 1e3, memory());
}

/// Questions; where one is several, the longest counts.
fn filters(size: u64) -> [Vec<Filter>; 10] {
    let all = || Filter::of(Reach::All);
    let tenant = |number: u64| Reach::One(TenantId::new(format!("tenant-{number}")));
    // "Who sent this from this address at this time?": a minute in the middle, and somebody who was never asked.
    let window = |host: &str| Filter {
        source_ip: Some("198.51.100.10".parse().expect("an address")),
        since: Some(at(size / 2)),
        until: Some(at(size / 2 + 60_000)),
        host: Some(HostFilter::One(host.to_owned())),
        ..all()
    };
    [
        vec![all()],
        vec![Filter::of(tenant(3))],
        vec![Filter { workflow: Some("workflow-77".to_owned()), ..all() }],
        vec![Filter { execution: Some("execution-3".to_owned()), reach: tenant(3), ..all() }],
        vec![Filter { host: Some(HostFilter::One("host-11.example.com".to_owned())), ..all() }],
        vec![Filter { outcomes: vec![Outcome::Failed], ..all() }],
        vec![Filter { reach: tenant(7), statuses: vec![StatusFilter::One(503)], ..all() }],
        // Two common things that never come together, and one that was never heard of.
        vec![Filter { reach: tenant(1), statuses: vec![StatusFilter::One(503)], ..all() }],
        vec![Filter { workflow: Some("no such workflow".to_owned()), ..all() }],
        vec![window("host-11.example.com"), window("nobody.example.com")],
    ]
}

#[derive(Clone, Copy)]
enum Step {
    Accept,
    /// The same, with an idempotency key.
    Keyed,
    Begin,
    Finish,
}

/// CPU that one step of all these sends took.
async fn steps(store: &Arc<Joined>, numbers: std::ops::Range<u64>, step: Step) -> Duration {
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
                        Step::Accept => accept_call(&store, vec![new_send(number)], None).await,
                        Step::Keyed => {
                            let send = new_send(number);
                            let (tenant, path) = (send.tenant.clone(), "/v1/sends".to_owned());
                            let key =
                                IdempotencyKey { tenant, path, key: format!("key-{number}"), fingerprint: [7; 32] };
                            accept_call(&store, vec![send], Some(key)).await;
                        }
                        Step::Begin => {
                            let send = new_send(number);
                            let begin =
                                Begin { id: send.id, tenant: send.tenant, spec: Some(send.spec), at: at(number) };
                            drop(store.begin(&store.session, vec![begin]).await.expect("begun"));
                        }
                        Step::Finish => drop(store.finish(&store.session, finished(number)).await.expect("ended")),
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

async fn fill(store: &Arc<Joined>, numbers: std::ops::Range<u64>) {
    fill_by(store, numbers, new_send, finished).await;
}

async fn fill_by(
    store: &Arc<Joined>,
    numbers: std::ops::Range<u64>,
    send: impl Fn(u64) -> NewSend + Copy + Send + Sync + 'static,
    finished: impl Fn(u64) -> Finished + Copy + Send + Sync + 'static,
) {
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
                    accept_call(&store, numbers.clone().map(send).collect(), None).await;
                    let ends = numbers.map(|number| store.finish(&store.session, finished(number)));
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

async fn accept_call(store: &Joined, sends: Vec<NewSend>, idempotency: Option<IdempotencyKey>) {
    let call = Accept { tenant: sends[0].tenant.clone(), sends, hold: None, idempotency, sends_per_execution: 10_000 };
    assert!(matches!(store.accept(&store.session, call).await, Ok(Accepted::New { .. })));
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
        to: ShownTo::Http { method: Method::Post, url: target.shown().to_owned() },
        headers: vec![("content-type".to_owned(), vec!["application/json".to_owned()])],
        spelling: egressd::send::Spelling::default(),
        dropped_headers: Vec::new(),
        body: Some(ShownBody { bytes: Some(body.clone()), total: 256, truncated: false, sha256: Some([1; 32]) }),
    };
    let header = (HeaderName::from_static("content-type"), HeaderValue::from_static("application/json"));
    NewSend {
        id: id_of(number),
        tenant: TenantId::new(format!("tenant-{}", number % 100)),
        shown,
        spec: Arc::new(SendSpec {
            to: To::Http(HttpRequest {
                method: Method::Post,
                target,
                headers: vec![header],
                spelling: egressd::send::Spelling::default(),
                dropped_headers: Vec::new(),
                body: Some(body),
            }),
            context: Context {
                workflow: Some(Arc::from(format!("workflow-{}", number / 5 % 100))),
                execution: Some(ExecutionId::new(format!("execution-{}", number / 400))),
                step: Some(Arc::from("step")),
                trace: None,
            },
            expires_in: None,
        }),
        sealed: false,
        resend_of: None,
        created_at: at(number),
        expires_in: Duration::from_secs(24 * 3600),
        course: Course::Claim,
    }
}

fn finished(number: u64) -> Finished {
    let milliseconds = |number| Some(Duration::from_millis(number));
    // The last tenant's fail, the eighth's are answered 503.
    let failed = number % 100 == 99;
    let status = if number % 100 == 7 { 503 } else { 200 };
    let error = Failure::recorded(Code::Timeout, None, Processed::Maybe, "no answer within 5 s: ask the receiver");
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
        batch: None,
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
