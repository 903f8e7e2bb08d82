//! What the benches share: the real binary with a directory of its own, the receiver in a process of its own, calls, and
//! what proc(5) tells of a process.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

pub const CONNECTIONS: usize = 64;

pub async fn submit(node: &Node, receiver: &Receiver, batch: usize, sends: u64) {
    let data = "x".repeat(1024);
    let one = json!({ "method": "POST", "url": format!("http://{}/hook", receiver.fast), "data": data });
    let body = if batch == 1 { one } else { Value::Array(vec![one; batch]) };
    let body = Bytes::from(serde_json::to_vec(&body).expect("JSON"));
    let left = Arc::new(AtomicU64::new(sends / batch as u64));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (left, body, api) = (left.clone(), body.clone(), node.api);
        tasks.spawn(async move {
            let mut client = connect(api).await;
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                loop {
                    let (status, answer) = call(&mut client, "POST", "/v1/sends", body.clone()).await;
                    match status {
                        202 => break,
                        429 | 503 => tokio::time::sleep(Duration::from_millis(20)).await,
                        _ => panic!("{status}: {}", String::from_utf8_lossy(&answer)),
                    }
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("a submitter");
    }
}

/// So many calls of one send a second, by callers that take these nodes in turn; how many that was.
pub async fn at_a_pace(apis: &[SocketAddr], to: SocketAddr, rate: u32, seconds: u32) -> u64 {
    // As many on each of up to three nodes.
    const CALLERS: u32 = 15;
    let mut tasks = tokio::task::JoinSet::new();
    for (caller, api) in (0..CALLERS).zip(apis.iter().copied().cycle()) {
        tasks.spawn(async move {
            let mut client = connect(api).await;
            let first = tokio::time::Instant::now() + Duration::from_secs(1) * caller / rate;
            let mut every = tokio::time::interval_at(first, Duration::from_secs(1) * CALLERS / rate);
            for _ in 0..rate * seconds / CALLERS {
                every.tick().await;
                let (status, answer) = call(&mut client, "POST", "/v1/sends", timed(to)).await;
                assert_eq!(status, 202, "{}", String::from_utf8_lossy(&answer));
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("a caller");
    }
    u64::from(rate * seconds / CALLERS * CALLERS)
}

/// A call whose send tells the receiver when it was made.
pub fn timed(receiver: SocketAddr) -> Bytes {
    let one = json!({ "method": "POST", "url": format!("http://{receiver}/timed"), "data": stamp(0) });
    Bytes::from(serde_json::to_vec(&one).expect("JSON"))
}

/// A body of at least so many bytes that says when it was made.
pub fn stamp(bytes: usize) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_micros();
    let mut body = now.to_string();
    body.extend(std::iter::repeat_n(' ', bytes.saturating_sub(body.len())));
    body
}

pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get(((sorted.len() as f64 * share) as usize).min(last)).copied().unwrap_or(f64::NAN)
}

/// The appliance as its users run it, with a directory of its own.
pub struct Node {
    pub child: Child,
    pub api: SocketAddr,
    pub metrics: SocketAddr,
    pub directory: Arc<tempfile::TempDir>,
}

impl Node {
    pub fn start(delivery: &str) -> Self {
        Self::start_with(delivery, "")
    }

    /// `delivery` stands within that table, `more` at the end.
    pub fn start_with(delivery: &str, more: &str) -> Self {
        Self::start_in(Arc::new(tempfile::tempdir().expect("a directory")), delivery, more)
    }

    pub fn start_in(directory: Arc<tempfile::TempDir>, delivery: &str, more: &str) -> Self {
        let config = write_config(directory.path(), delivery) + more;
        Self::start_on(directory, &config)
    }

    /// With a configuration of its own beside the bench's list of addresses.
    pub fn start_as(config: &str) -> Self {
        let directory = Arc::new(tempfile::tempdir().expect("a directory"));
        write_list(directory.path());
        Self::start_on(directory, config)
    }

    pub fn start_on(directory: Arc<tempfile::TempDir>, config: &str) -> Self {
        let (api, metrics) = (free_port(), free_port());
        let text = config.replace("API", &api.to_string()).replace("METRICS", &metrics.to_string());
        let file = directory.path().join("egressd.toml");
        std::fs::write(&file, text).expect("the configuration");
        let binary = std::env::var_os("EGRESSD").unwrap_or_else(|| env!("CARGO_BIN_EXE_egressd").into());
        let child = Command::new(binary)
            .args(["serve", "--config"])
            .arg(&file)
            .env("EGRESSD_LOG", "error")
            .spawn()
            .expect("egressd");
        let started = Instant::now();
        while std::net::TcpStream::connect(api).is_err() {
            assert!(started.elapsed() < Duration::from_secs(60), "egressd did not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child, api, metrics, directory }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn memory_mib(&self) -> f64 {
        memory_mib(self.pid())
    }

    pub fn sockets(&self) -> usize {
        let Ok(files) = std::fs::read_dir(format!("/proc/{}/fd", self.pid())) else { return 0 };
        let targets = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
        targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
    }

    /// Changes the configuration and has it read again.
    pub fn reload(&self, from: &str, to: &str) {
        let file = self.directory.path().join("egressd.toml");
        let text = std::fs::read_to_string(&file).expect("the configuration");
        assert!(text.contains(from), "{from} stands in it");
        std::fs::write(&file, text.replace(from, to)).expect("the configuration");
        let done = Command::new("kill").args(["-HUP", &self.pid().to_string()]).status().expect("kill");
        assert!(done.success());
    }

    /// SIGKILL, then a new process on what the first left behind.
    pub fn killed(mut self) -> Arc<tempfile::TempDir> {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.directory.clone()
    }

    pub async fn gauge(&self, name: &str) -> f64 {
        let mut client = connect(self.metrics).await;
        let (_, text) = call(&mut client, "GET", "/metrics", Bytes::new()).await;
        let text = String::from_utf8_lossy(&text).into_owned();
        let line = text.lines().find(|line| line.starts_with(name) && !line.starts_with('#'));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_default()
    }

    /// Every record there is, newest first.
    pub async fn records(&self) -> Vec<Value> {
        let mut client = connect(self.api).await;
        let mut records = Vec::new();
        let mut cursor = String::new();
        loop {
            let (_, page) = call(&mut client, "GET", &format!("/v1/sends?limit=200{cursor}"), Bytes::new()).await;
            let mut page: Value = serde_json::from_slice(&page).expect("JSON");
            if let Value::Array(sends) = page["sends"].take() {
                records.extend(sends);
            }
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return records,
            }
        }
    }

    /// Waits until so many sends have ended; how.
    pub async fn settled(&self, sends: u64) -> HashMap<String, u64> {
        let started = Instant::now();
        loop {
            let mut client = connect(self.metrics).await;
            let (_, text) = call(&mut client, "GET", "/metrics", Bytes::new()).await;
            let mut outcomes: HashMap<String, u64> = HashMap::new();
            for line in String::from_utf8_lossy(&text).lines() {
                if let Some(rest) = line.strip_prefix("egressd_sends_total{")
                    && let Some((labels, value)) = rest.split_once("} ")
                {
                    let outcome = labels.split("outcome=\"").nth(1).and_then(|rest| rest.split('"').next());
                    *outcomes.entry(outcome.unwrap_or("?").to_owned()).or_default() +=
                        value.parse::<u64>().unwrap_or(0);
                }
            }
            if outcomes.values().sum::<u64>() >= sends {
                return outcomes;
            }
            assert!(started.elapsed() < Duration::from_secs(120), "only {outcomes:?} of {sends} sends ended");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The public addresses.
pub fn write_list(directory: &Path) -> Vec<String> {
    let sources: Vec<String> = (11..15).map(|last| format!("127.0.0.{last}")).collect();
    std::fs::write(directory.join("public-ips.txt"), sources.join("\n")).expect("the list");
    sources
}

pub fn write_config(directory: &Path, delivery: &str) -> String {
    let sources: String =
        write_list(directory).iter().map(|ip| format!("[[egress.source]]\npublic = \"{ip}\"\n")).collect();
    format!(
        "node = \"bench\"\n[api]\nlisten = \"API\"\n[metrics]\nlisten = \"METRICS\"\n{sources}[delivery]\n{delivery}\
         [dns]\nservers = [\"127.0.0.1:53\"]\n[store]\npath = \"{0}/store\"\nkey_file = \"{0}/key\"\n\
         [[policy.exception]]\nnetworks = [\"127.0.0.0/8\"]\nreason = \"the bench's receiver\"\n",
        directory.display()
    )
}

pub fn free_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port")
}

/// The receiver's side as seen from here.
pub struct Receiver {
    pub child: Child,
    pub fast: SocketAddr,
    pub silent: SocketAddr,
}

impl Receiver {
    pub fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .arg("receiver")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the receiver");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let mut address = || lines.next().expect("a line").expect("text").parse().expect("an address");
        let (fast, silent) = (address(), address());
        Self { child, fast, silent }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub async fn ask(&self, path: &str) -> String {
        let mut client = connect(self.fast).await;
        String::from_utf8_lossy(&call(&mut client, "GET", path, Bytes::new()).await.1).into_owned()
    }

    pub async fn count(&self) -> u64 {
        self.ask("/_count").await.parse().expect("a number")
    }

    pub async fn reaches(&self, count: u64) {
        let started = Instant::now();
        loop {
            let seen = self.count().await;
            if seen >= count {
                assert_eq!(seen, count, "the receiver saw more requests than were sent");
                return;
            }
            assert!(started.elapsed() < Duration::from_secs(120), "the receiver saw {seen} of {count}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Milliseconds from the send's making to its arrival, of all since the last call.
    pub async fn latencies(&self) -> Vec<f64> {
        self.ask("/_latencies").await.split_whitespace().filter_map(|ms| ms.parse().ok()).collect()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Takes a whole burst of connections: one that waits for its second SYN takes a second.
pub fn listener() -> TcpListener {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
    socket.listen(4096).expect("a listener")
}

/// The receiver's process.
pub async fn receive() {
    let (fast, silent) = (listener(), listener());
    println!("{}\n{}", fast.local_addr().expect("bound"), silent.local_addr().expect("bound"));
    let count: Arc<AtomicU64> = Arc::default();
    let latencies: Arc<std::sync::Mutex<Vec<f64>>> = Arc::default();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((socket, _)) = silent.accept().await {
            kept.push(socket);
            if kept.len() > 15_000 {
                kept.drain(..7_500);
            }
        }
    });
    while let Ok((socket, _)) = fast.accept().await {
        let (count, latencies) = (count.clone(), latencies.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let (count, latencies) = (count.clone(), latencies.clone());
                async move {
                    let path = request.uri().path().to_owned();
                    let is_object = request.method() == hyper::Method::PUT;
                    let body = request.into_body().collect().await?.to_bytes();
                    let answer = match path.as_str() {
                        "/_count" => count.load(Ordering::Relaxed).to_string(),
                        "/_latencies" => {
                            let taken = std::mem::take(&mut *latencies.lock().expect("latencies"));
                            taken.iter().map(|ms| format!("{ms} ")).collect()
                        }
                        "/timed" => {
                            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                            let now = now.expect("a clock").as_micros() as f64;
                            let sent: f64 = String::from_utf8_lossy(&body).trim().parse().unwrap_or(now);
                            count.fetch_add(1, Ordering::Relaxed);
                            latencies.lock().expect("latencies").push((now - sent) / 1000.0);
                            "ok".to_owned()
                        }
                        "/limit" => "ok".to_owned(),
                        _ => {
                            count.fetch_add(1, Ordering::Relaxed);
                            "ok".to_owned()
                        }
                    };
                    let mut answer = Response::new(Full::new(Bytes::from(answer)));
                    if is_object {
                        // As a bucket says that it is there, and nothing more.
                        *answer.body_mut() = Full::new(Bytes::new());
                        answer.headers_mut().insert("etag", hyper::header::HeaderValue::from_static("\"bench\""));
                    }
                    Ok::<_, hyper::Error>(answer)
                }
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
        });
    }
}

pub async fn connect(address: SocketAddr) -> SendRequest<Full<Bytes>> {
    let socket = TcpStream::connect(address).await.expect("a connection");
    socket.set_nodelay(true).expect("an option");
    let (client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.expect("HTTP");
    tokio::spawn(connection);
    client
}

pub async fn call(client: &mut SendRequest<Full<Bytes>>, method: &str, path: &str, body: Bytes) -> (u16, Bytes) {
    call_as(client, method, path, body, None).await
}

pub async fn call_as(
    client: &mut SendRequest<Full<Bytes>>,
    method: &str,
    path: &str,
    body: Bytes,
    tenant: Option<&str>,
) -> (u16, Bytes) {
    let tenant = tenant.or((method == "GET" && path.starts_with("/v1/")).then_some("*"));
    let headers = tenant.map(|tenant| ("egressd-tenant", tenant));
    call_with(client, method, path, body, headers.as_slice()).await
}

pub async fn call_with(
    client: &mut SendRequest<Full<Bytes>>,
    method: &str,
    path: &str,
    body: Bytes,
    headers: &[(&str, &str)],
) -> (u16, Bytes) {
    let mut request = Request::builder().method(method).uri(path).header("host", "127.0.0.1");
    if !body.is_empty() {
        request = request.header("content-type", "application/json");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    client.ready().await.expect("a connection");
    let response = client.send_request(request.body(Full::new(body)).expect("a request")).await.expect("an answer");
    let status = response.status().as_u16();
    (status, response.into_body().collect().await.expect("a body").to_bytes())
}

pub fn body_1k() -> Bytes {
    Bytes::from_static(&[b'x'; 1024])
}

pub fn memory_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_default() / 1024.0
}

/// User and system time of a process, in seconds (proc(5), fields 14 and 15, in ticks of 10 ms).
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    let fields: Vec<&str> = after_name.split(' ').collect();
    let ticks = |index: usize| fields.get(index).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or_default();
    (ticks(11) + ticks(12)) / 100.0
}

pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let model = read("/proc/cpuinfo").lines().find_map(|line| line.strip_prefix("model name\t: ").map(str::to_owned));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{} x {}, Linux {}, load {}",
        cores,
        model.unwrap_or_default(),
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/loadavg").trim()
    )
}
