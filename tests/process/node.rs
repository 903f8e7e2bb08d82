//! An `egressd serve` of the test's own, and a receiver that counts.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};

pub const SOURCES: [&str; 3] = ["127.0.0.21", "127.0.0.22", "127.0.0.23"];

/// How long anything may take before a test gives up on it: a busy machine is no failure.
pub const PATIENCE: Duration = Duration::from_secs(180);

static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Tests that load the machine run one at a time: what each asserts is about its own load.
pub async fn alone() -> tokio::sync::MutexGuard<'static, ()> {
    ALONE.lock().await
}

pub fn egressd() -> Command {
    Command::new(env!("CARGO_BIN_EXE_egressd"))
}

/// `egressd` by a clock of its own (libfaketime), which goes on from this time in UTC: the time of day alone, what is
/// measured is measured by the true one.
pub fn by_a_clock_at(now: &str) -> Command {
    let mut command = by_a_clock();
    command.env("FAKETIME", format!("@{now}"));
    command
}

/// The same by one that is as far from the true one as this file says (`-1d`), at every moment.
pub fn by_a_clock_that_is_set(by: &Path) -> Command {
    let mut command = by_a_clock();
    command.env("FAKETIME_TIMESTAMP_FILE", by).env("FAKETIME_NO_CACHE", "1");
    command
}

fn by_a_clock() -> Command {
    let mut command = egressd();
    command.envs([
        ("LD_PRELOAD", "/usr/$LIB/faketime/libfaketimeMT.so.1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("NO_FAKE_STAT", "1"),
        ("FAKETIME_DISABLE_SHM", "1"),
        ("TZ", "UTC"),
    ]);
    command
}

/// A directory with a configuration; starts and stops processes on it.
pub struct Node {
    pub directory: tempfile::TempDir,
    pub api: SocketAddr,
    pub metrics: SocketAddr,
    child: Option<Child>,
    /// Where the log of the last start begins.
    life: u64,
}

impl Node {
    /// `extra` is TOML appended to a configuration that opens loopback for receivers.
    pub fn new(extra: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let node = Self { directory, api: free_port(), metrics: free_port(), child: None, life: 0 };
        std::fs::write(node.path("public-ips.txt"), SOURCES.join("\n")).expect("the list");
        node.configure(extra);
        node
    }

    /// A node with a name, sources and a store of its own.
    pub fn of(name: &str, sources: &[&str], store: &str, extra: &str) -> Self {
        let node = Self::new("");
        let sources: String = sources.iter().map(|ip| format!("[[egress.source]]\npublic = \"{ip}\"\n")).collect();
        let text = format!(
            "node = \"{name}\"\n[api]\nlisten = \"{}\"\n[metrics]\nlisten = \"{}\"\n{sources}\
             [dns]\nservers = [\"127.0.0.1:53\"]\n{store}\
             [[policy.exception]]\nnetworks = [\"127.0.0.0/8\"]\nreason = \"receivers of tests\"\n{extra}",
            node.api, node.metrics
        );
        std::fs::write(node.config(), text).expect("the configuration");
        node
    }

    pub fn started(extra: &str) -> Self {
        let mut node = Self::new(extra);
        node.start();
        node
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn config(&self) -> PathBuf {
        self.path("egressd.toml")
    }

    pub fn configure(&self, extra: &str) {
        let sources: String = SOURCES.iter().map(|ip| format!("[[egress.source]]\npublic = \"{ip}\"\n")).collect();
        let text = format!(
            "node = \"test\"\n[api]\nlisten = \"{}\"\n[metrics]\nlisten = \"{}\"\n{sources}\
             [dns]\nservers = [\"127.0.0.1:53\"]\n[store]\npath = \"store\"\nkey_file = \"key\"\n\
             [[policy.exception]]\nnetworks = [\"127.0.0.0/8\"]\nreason = \"receivers of tests\"\n{extra}",
            self.api, self.metrics
        );
        std::fs::write(self.config(), text).expect("the configuration");
    }

    /// Starts the process and waits until it answers.
    pub fn start(&mut self) {
        self.start_as(egressd());
    }

    /// The same through another command that becomes `egressd`: its arguments go on with those of `egressd`.
    pub fn start_as(&mut self, command: Command) {
        self.start_set(command, |_| {});
    }

    /// As [`Self::start`], with `set` asked last about the command.
    pub fn start_with(&mut self, set: impl FnOnce(&mut Command)) {
        self.start_set(egressd(), set);
    }

    /// Ends with a code of its own instead of serving: that, and what it told.
    pub fn refuses_to_start(&self) -> (Option<i32>, String) {
        let (code, _, err) = run(&["serve", "--config", "egressd.toml"], self.directory.path());
        (code, err)
    }

    /// Starts the process, and waits for nothing.
    pub fn launch(&mut self) {
        self.launch_set(egressd(), |_| {});
    }

    fn launch_set(&mut self, mut command: Command, set: impl FnOnce(&mut Command)) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("log")).expect("the log");
        self.life = log.metadata().expect("its size").len();
        let command = command.args(["serve", "--config"]).arg(self.config()).stdin(Stdio::null()).stderr(log);
        set(command);
        self.child = Some(command.spawn().expect("egressd starts"));
    }

    fn start_set(&mut self, command: Command, set: impl FnOnce(&mut Command)) {
        self.launch_set(command, set);
        let started = Instant::now();
        while std::net::TcpStream::connect(self.metrics).is_err() || std::net::TcpStream::connect(self.api).is_err() {
            let child = self.child.as_mut().expect("started");
            assert!(child.try_wait().expect("its state").is_none(), "egressd ended: {}", self.log());
            assert!(started.elapsed() < PATIENCE, "egressd does not answer: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// What it logged since it was last started.
    pub fn log_of_this_life(&self) -> String {
        let read = || {
            let mut log = std::fs::File::open(self.path("log")).ok()?;
            log.seek(SeekFrom::Start(self.life)).ok()?;
            let mut bytes = Vec::new();
            log.read_to_end(&mut bytes).ok()?;
            Some(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().unwrap_or_default()
    }

    pub fn pid(&self) -> nix::unistd::Pid {
        let id = self.child.as_ref().expect("a running process").id();
        nix::unistd::Pid::from_raw(id.try_into().expect("a pid"))
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(self.pid(), signal).expect("a signal");
    }

    /// SIGKILL, as a machine's death would be.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("a running process");
        child.kill().expect("a kill");
        child.wait().expect("its end");
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().expect("its state").is_none())
    }

    /// Waits for the process to end by itself; its exit code.
    pub fn ended(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("a running process");
        let started = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("its state") {
                return status.code();
            }
            assert!(started.elapsed() < PATIENCE, "egressd does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The same without keeping a thread.
    pub async fn has_ended(&mut self) -> Option<i32> {
        let started = Instant::now();
        while self.is_running() {
            assert!(started.elapsed() < PATIENCE, "egressd does not end: {}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.ended()
    }

    pub async fn call(&self, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
        call(self.api, method, path, body, &[]).await
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, answer) = self.call("GET", path, "").await.unwrap_or_else(|| panic!("{path}: {}", self.log()));
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    /// The record of a tenant's send once it is done.
    pub async fn done_as(&self, tenant: &str, id: &str) -> Value {
        let started = Instant::now();
        loop {
            let path = format!("/v1/sends/{id}?wait=30");
            let answer = call(self.api, "GET", &path, "", &[("egressd-tenant", tenant)]).await;
            let (status, record) = answer.expect("an answer");
            assert_eq!(status, 200, "{record}");
            if record["state"] == "done" {
                return record;
            }
            assert!(started.elapsed() < PATIENCE, "it never ended: {record}");
        }
    }

    /// The most memory that the process ever had, in KiB: the kernel keeps count, whoever looks or not.
    pub fn memory_peak_kib(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// The memory that the process has now, in KiB.
    pub fn memory_kib(&self) -> u64 {
        self.memory("VmRSS:")
    }

    fn memory(&self, of: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("its status");
        let line = status.lines().find(|line| line.starts_with(of)).expect("its memory");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
    }

    /// What `/healthz` or `/readyz` says.
    pub async fn health(&self, path: &str) -> (u16, String) {
        call_text(self.metrics, "GET", path, "", &[]).await.expect("an answer")
    }

    pub async fn metric(&self, line_start: &str) -> Option<f64> {
        let (_, text) = call_text(self.metrics, "GET", "/metrics", "", &[]).await.expect("metrics");
        text.lines().find(|line| line.starts_with(line_start))?.rsplit(' ').next()?.parse().ok()
    }

    /// Every record there is, newest first.
    pub async fn records(&self) -> Vec<Value> {
        let mut records = Vec::new();
        let mut path = "/v1/sends?limit=200".to_owned();
        loop {
            let page = self.get(&path).await;
            records.extend(page["sends"].as_array().expect("a list").iter().cloned());
            match page["next"].as_str() {
                Some(next) => path = format!("/v1/sends?limit=200&cursor={next}"),
                None => return records,
            }
        }
    }

    /// Waits until no send is held, queued or in flight; then all records.
    pub async fn settled(&self) -> Vec<Value> {
        let started = Instant::now();
        loop {
            let records = self.records().await;
            let open = records.iter().filter(|record| record["state"] != "done").count();
            if open == 0 {
                return records;
            }
            assert!(started.elapsed() < PATIENCE, "{open} of {} sends never ended: {}", records.len(), self.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Below those that the kernel gives to connections that go out: one of these could take it before a process that is
/// started has bound it, or while it is down. Nobody here is given one twice.
pub fn free_port() -> SocketAddr {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    const PORTS: std::ops::Range<u32> = 16_000..32_000;
    let of_process = std::process::id().wrapping_mul(97);
    let free = (0..PORTS.len()).find_map(|_| {
        let turn = GIVEN.fetch_add(1, Ordering::Relaxed).wrapping_add(of_process);
        let port = PORTS.start + turn % (PORTS.end - PORTS.start);
        let listener = std::net::TcpListener::bind(("127.0.0.1", u16::try_from(port).expect("a port"))).ok()?;
        listener.local_addr().ok()
    });
    free.expect("a port that is free")
}

/// One call; `None` where the connection died.
pub async fn call(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
    headers: &[(&str, &str)],
) -> Option<(u16, Value)> {
    let (status, text) = call_text(address, method, path, body, headers).await?;
    Some((status, json_or_text(text)))
}

pub fn json_or_text(text: String) -> Value {
    serde_json::from_str(&text).unwrap_or(Value::String(text))
}

pub async fn call_text(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
    headers: &[(&str, &str)],
) -> Option<(u16, String)> {
    let (head, text) = call_whole(address, method, path, body, headers).await?;
    Some((head.status.as_u16(), text))
}

/// The whole answer, its headers too.
pub async fn call_whole(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
    headers: &[(&str, &str)],
) -> Option<(http::response::Parts, String)> {
    let socket = TcpStream::connect(address).await.ok()?;
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.ok()?;
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", address.to_string());
    if !body.is_empty() {
        request = request.header("content-type", "application/json");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body.to_owned()))).expect("a request");
    let (head, body) = client.send_request(request).await.ok()?.into_parts();
    let body = body.collect().await.ok()?.to_bytes();
    Some((head, String::from_utf8_lossy(&body).into_owned()))
}

/// What reached a receiver: how often each path, and from where.
#[derive(Clone, Default)]
pub struct Seen(Arc<Mutex<HashMap<String, Vec<SocketAddr>>>>);

impl Seen {
    pub fn of(&self, path: &str) -> Vec<SocketAddr> {
        self.0.lock().expect("what was seen").get(path).cloned().unwrap_or_default()
    }

    pub fn all(&self) -> HashMap<String, Vec<SocketAddr>> {
        self.0.lock().expect("what was seen").clone()
    }
}

/// A receiver that answers 200 after `delay`, and remembers every request.
pub async fn counting_receiver(delay: Duration) -> (SocketAddr, Seen) {
    counting_receiver_at("127.0.0.1:0", delay).await
}

pub async fn counting_receiver_at(at: &str, delay: Duration) -> (SocketAddr, Seen) {
    let listener = TcpListener::bind(at).await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let seen = Seen::default();
    let noted = seen.clone();
    tokio::spawn(async move {
        while let Ok((socket, peer)) = listener.accept().await {
            let noted = noted.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let noted = noted.clone();
                    async move {
                        let path = request.uri().path().to_owned();
                        noted.0.lock().expect("what was seen").entry(path).or_default().push(peer);
                        tokio::time::sleep(delay).await;
                        Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from_static(b"ok"))))
                    }
                });
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    (address, seen)
}

/// Runs a command to its end: exit code, stdout, stderr.
pub fn run(arguments: &[&str], directory: &Path) -> (Option<i32>, String, String) {
    let output = egressd().args(arguments).current_dir(directory).stdin(Stdio::null()).output().expect("egressd runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}
