//! Three namespaces in a row: app ── router ── world. The appliance binds 10.1.0.x and 2001:db8:1::x; the router maps
//! each 10.1.0.x to 198.51.100.x and lets IPv6 through; receivers are in 192.0.2.0/24 and 2001:db8:2::/64.
//!
//! The app's first address (….5) is its own and published nowhere: whatever leaves unbound leaves from it. A lab
//! captures everything that arrives in its world from its first packet to its last, and a test fails at its end when a
//! packet bore an address that no list of it had.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::sync::watch;

/// How long anything may take before a test gives up on it: a busy machine is no failure.
pub const PATIENCE: Duration = Duration::from_secs(180);

pub const API: &str = "127.0.0.1:8700";
pub const METRICS: &str = "127.0.0.1:8701";
/// Where receivers are.
pub const WORLD_V4: &str = "192.0.2.80";
pub const WORLD_V4_OTHER: &str = "192.0.2.81";
pub const WORLD_V6: &str = "2001:db8:2::80";
pub const WORLD_V6_OTHER: &str = "2001:db8:2::81";

/// Runs a command line; it must succeed.
#[track_caller]
pub fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().expect("a shell");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}\n{errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The lab; taken down when dropped.
pub struct Lab {
    pub app: String,
    pub router: String,
    pub world: String,
    pub directory: tempfile::TempDir,
    node: Option<Node>,
    /// What arrived since the lab is there.
    arrived: Option<Capture>,
    /// Every address that a list of this test had, and those that a test lets arrive although none has.
    admitted: Mutex<BTreeSet<IpAddr>>,
    /// The appliance's clock is not this host's.
    has_own_clock: bool,
}

/// An `egressd serve` and its log.
struct Node {
    child: Child,
    log: Arc<Log>,
}

#[derive(Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    more: Condvar,
}

impl Lab {
    /// `sources` are last parts of addresses, each there in IPv4 and IPv6.
    pub fn new(sources: &[u8]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("egr{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let [app, router, world] = ["app", "router", "world"].map(|part| format!("{id}-{part}"));
        let directory = tempfile::tempdir().expect("a directory");
        let mut lab = Self {
            app,
            router,
            world,
            directory,
            node: None,
            arrived: None,
            admitted: Mutex::default(),
            has_own_clock: false,
        };
        let Self { app, router, world, .. } = &lab;
        for namespace in [app, router, world] {
            // No link waits a second for its own address: until then nobody asks for neighbours there.
            sh(&format!(
                "ip netns add {namespace} && ip -n {namespace} link set lo up &&
                 ip netns exec {namespace} sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0"
            ));
        }
        sh(&format!("ip link add name wan netns {app} type veth peer name inner netns {router}"));
        sh(&format!("ip link add name outer netns {router} type veth peer name net netns {world}"));
        for (namespace, interface, v4, v6) in [
            (app, "wan", "10.1.0.5", "2001:db8:1::5"),
            (router, "inner", "10.1.0.1", "2001:db8:1::1"),
            (router, "outer", "192.0.2.1", "2001:db8:2::1"),
            (world, "net", WORLD_V4, WORLD_V6),
            (world, "net", WORLD_V4_OTHER, WORLD_V6_OTHER),
        ] {
            sh(&format!(
                "ip -n {namespace} addr add {v4}/24 dev {interface} && \
                 ip -n {namespace} addr add {v6}/64 dev {interface} nodad && \
                 ip -n {namespace} link set {interface} up"
            ));
        }
        for source in sources {
            lab.plumb(*source);
        }
        let elements: Vec<String> =
            sources.iter().chain(&[5]).map(|part| format!("10.1.0.{part} : 198.51.100.{part}")).collect();
        sh(&format!(
            "ip netns exec {app} sysctl -qw net.ipv4.conf.all.promote_secondaries=1 net.ipv4.conf.wan.promote_secondaries=1
             ip netns exec {router} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
             ip -n {app} route add default via 10.1.0.1 && ip -n {app} route add default via 2001:db8:1::1 &&
             ip -n {world} route add 198.51.100.0/24 via 192.0.2.1 &&
             ip -n {world} route add 2001:db8:1::/64 via 2001:db8:2::1 &&
             ip netns exec {router} nft 'table ip pairs {{
                 map public {{ type ipv4_addr : ipv4_addr; elements = {{ {} }}; }}
                 chain post {{ type nat hook postrouting priority 100; oifname outer snat to ip saddr map @public; }}
             }}' &&
             ip netns exec {world} nft 'table inet wall {{
                 set v4 {{ type ipv4_addr; }}
                 set v6 {{ type ipv6_addr; }}
                 counter strangers {{ }}
                 chain input {{
                     type filter hook input priority 0;
                     iifname != net accept
                     ip saddr 192.0.2.1 accept
                     ip saddr @v4 accept
                     ip6 saddr @v6 accept
                     meta l4proto {{ tcp, udp }} counter name strangers drop
                 }}
             }}'",
            elements.join(", ")
        ));
        lab.arrived = Some(lab.capture());
        lab
    }

    /// Gives the appliance a clock of its own, or sets it anew: that time now, and on from there as time goes. A
    /// process that runs sees it within a second.
    pub fn set_clock(&mut self, now: Timestamp) {
        let ahead = now.duration_since(egressd::clock::wall());
        let (file, new) = (self.clock_file(), self.directory.path().join("clock.new"));
        std::fs::write(&new, format!("{:+.3}", ahead.as_secs_f64())).expect("a file");
        std::fs::rename(new, file).expect("a file");
        self.has_own_clock = true;
    }

    fn clock_file(&self) -> std::path::PathBuf {
        self.directory.path().join("clock")
    }

    /// Gives the app an address of both families. One of IPv6 is never the kernel's own choice (RFC 6724 rule 3).
    pub fn plumb(&self, source: u8) {
        let app = &self.app;
        sh(&format!("ip -n {app} addr add 10.1.0.{source}/24 dev wan"));
        sh(&format!("ip -n {app} addr add 2001:db8:1::{source}/64 dev wan nodad preferred_lft 0"));
    }

    /// Takes an address of both families away.
    pub fn unplumb(&self, source: u8) {
        let app = &self.app;
        sh(&format!("ip -n {app} addr del 10.1.0.{source}/24 dev wan"));
        sh(&format!("ip -n {app} addr del 2001:db8:1::{source}/64 dev wan"));
    }

    /// Makes the router say another public address for a bound one.
    pub fn map(&self, source: u8, public: &str) {
        let router = &self.router;
        sh(&format!(
            "ip netns exec {router} nft 'delete element ip pairs public {{ 10.1.0.{source} }}; \
             add element ip pairs public {{ 10.1.0.{source} : {public} }}'"
        ));
    }

    /// The wall admits the list that the appliance serves, and nobody else.
    pub async fn admit_the_list(&self) {
        let (status, list) = self.call(API, "GET", "/public-ips.txt", "", &[]).await;
        assert_eq!(status, 200, "{list}");
        for line in list.lines() {
            let address: IpAddr = line.parse().expect("an address");
            let set = if address.is_ipv4() { "v4" } else { "v6" };
            sh(&format!("ip netns exec {} nft add element inet wall {set} '{{ {address} }}'", self.world));
        }
    }

    /// Packets that came to the wall from addresses that are not on the list.
    pub fn strangers(&self) -> u64 {
        let text = sh(&format!("ip netns exec {} nft -j list counter inet wall strangers", self.world));
        let json: Value = serde_json::from_str(&text).expect("nft's JSON");
        let items = json["nftables"].as_array().expect("a list");
        items.iter().find_map(|item| item["counter"]["packets"].as_u64()).expect("a counter")
    }

    /// What must not arrive, and does because this test wants it to.
    pub fn lets_arrive(&self, address: &str) {
        self.admitted.lock().expect("addresses").insert(address.parse().expect("an address"));
    }

    pub fn write_list(&self, text: &str) {
        for line in text.lines().filter_map(|line| line.split_whitespace().next()) {
            self.lets_arrive(line);
        }
        std::fs::write(self.directory.path().join("public-ips.txt"), text).expect("the list");
    }

    /// `sources`: as many as there are, in both families or in IPv4 alone. `more`: further tables.
    pub fn configure(&self, sources: &[u8], families: &[&str], more: &str) {
        let mut text = format!(
            "node = \"lab\"\n[api]\nlisten = \"{API}\"\n[metrics]\nlisten = \"{METRICS}\"\n\
             [dns]\nservers = [\"192.0.2.53\"]\n[store]\npath = \"store\"\n\
             [[policy.exception]]\nnetworks = [\"192.0.2.0/24\", \"2001:db8:2::/48\"]\nreason = \"the lab's world\"\n"
        );
        for source in sources {
            if families.contains(&"v4") {
                let pair = format!("public = \"198.51.100.{source}\"\nbind = \"10.1.0.{source}\"\n");
                text += &format!("[[egress.source]]\n{pair}");
            }
            if families.contains(&"v6") {
                text += &format!("[[egress.source]]\npublic = \"2001:db8:1::{source}\"\n");
            }
        }
        std::fs::write(self.config(), text + more).expect("the configuration");
    }

    pub fn config(&self) -> String {
        self.directory.path().join("egressd.toml").display().to_string()
    }

    fn egressd(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.app]).stdin(Stdio::null());
        if self.has_own_clock {
            // Only the time of day: what is measured is measured by the true clock. `$LIB` is for the loader.
            command.args(["env", "LD_PRELOAD=/usr/$LIB/faketime/libfaketimeMT.so.1", "FAKETIME_DONT_FAKE_MONOTONIC=1"]);
            command.args(["FAKETIME_CACHE_DURATION=1", "NO_FAKE_STAT=1", "FAKETIME_DISABLE_SHM=1"]);
            command.arg(format!("FAKETIME_TIMESTAMP_FILE={}", self.clock_file().display()));
        }
        command.arg(env!("CARGO_BIN_EXE_egressd")).args(arguments);
        command
    }

    /// Runs a command of egressd's in the app: exit code, stdout, stderr.
    pub fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let output = self.egressd(arguments).output().expect("egressd runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    /// Starts the appliance and waits until it says that it is ready.
    pub fn start(&mut self) {
        let config = self.config();
        let mut command = self.egressd(&["serve", "--config", &config]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("egressd starts");
        let log = Arc::<Log>::default();
        let (stderr, noted) = (child.stderr.take().expect("a pipe"), log.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                noted.lines.lock().expect("the log").push(line);
                noted.more.notify_all();
            }
        });
        self.node = Some(Node { child, log });
        self.logged(0, &["ready"]);
    }

    fn node(&self) -> &Node {
        self.node.as_ref().expect("a running appliance")
    }

    /// How many lines the log has, for [`Self::logged`].
    pub fn log_length(&self) -> usize {
        self.node().log.lines.lock().expect("the log").len()
    }

    /// Waits for a line after the first `after` ones that holds all of these.
    #[track_caller]
    pub fn logged(&self, after: usize, parts: &[&str]) -> String {
        let log = &self.node().log;
        let started = Instant::now();
        let mut lines = log.lines.lock().expect("the log");
        loop {
            let wanted = |line: &&String| parts.iter().all(|part| line.contains(part));
            if let Some(line) = lines.iter().skip(after).find(wanted) {
                return line.clone();
            }
            assert!(started.elapsed() < PATIENCE, "{parts:?} was not logged:\n{}", lines.join("\n"));
            lines = log.more.wait_timeout(lines, Duration::from_secs(1)).expect("the log").0;
        }
    }

    /// Reloads and waits for the answer of the log.
    pub fn reload(&self) {
        let before = self.log_length();
        self.signal(Signal::SIGHUP);
        self.logged(before, &["the configuration was reloaded"]);
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.node().child.id().try_into().expect("a pid"));
        kill(pid, signal).expect("a signal");
    }

    /// Drains; the exit must be clean.
    pub fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let mut node = self.node.take().expect("a running appliance");
        let status = node.child.wait().expect("its end");
        assert_eq!(status.code(), Some(0), "{}", node.log.lines.lock().expect("the log").join("\n"));
    }

    /// One call to the appliance from its own namespace: status and body.
    pub async fn call(
        &self,
        address: &str,
        method: &str,
        path: &str,
        body: &str,
        headers: &[(&str, &str)],
    ) -> (u16, String) {
        self.caller(address).await.call(method, path, body, headers).await
    }

    /// A connection to the appliance from its own namespace, for many calls.
    pub async fn caller(&self, address: &str) -> Caller {
        let address: SocketAddr = address.parse().expect("an address");
        let stream = inside(&self.app, move || {
            #[allow(clippy::disallowed_methods, reason = "a test's client, not a delivery")]
            let stream = std::net::TcpStream::connect(address).expect("the appliance answers");
            stream.set_nonblocking(true).expect("a socket");
            stream
        });
        let stream = tokio::net::TcpStream::from_std(stream).expect("a socket");
        let (client, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("a connection");
        tokio::spawn(connection);
        Caller(client)
    }

    /// A receiver in the world.
    pub async fn receiver(&self, address: &str, port: u16) -> Receiver {
        Receiver::start(&self.world, SocketAddr::new(address.parse().expect("an address"), port))
    }

    /// What arrives in the world from now on.
    pub fn capture(&self) -> Capture {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let file = format!("capture{}.pcap", NEXT.fetch_add(1, Ordering::Relaxed));
        let file = self.directory.path().join(file);
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.world, "tcpdump", "-i", "net", "-nn", "-Q", "in", "--immediate-mode", "-U"])
            .args(["-Z", "root", "-s", "96", "-B", "65536", "-w"])
            .arg(&file)
            .arg("ip or ip6")
            .stderr(Stdio::piped())
            .spawn()
            .expect("tcpdump runs");
        let mut line = String::new();
        let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        while !line.contains("listening on") {
            line.clear();
            assert_ne!(stderr.read_line(&mut line).expect("tcpdump's word"), 0, "tcpdump has ended");
        }
        Capture { child, file, stderr, router: self.router.clone() }
    }

    /// Waits until `metrics` has this series with a value that will do.
    pub async fn metric(&self, series: &str, will_do: impl Fn(f64) -> bool) -> f64 {
        let started = Instant::now();
        // One connection while it lasts, because the appliance's host may have few ports left; that is for half a minute.
        let mut caller = self.caller(METRICS).await;
        loop {
            if caller.0.is_closed() {
                caller = self.caller(METRICS).await;
            }
            let (_, text) = caller.call("GET", "/metrics", "", &[]).await;
            let line = text.lines().find(|line| line.starts_with(series));
            let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
            if let Some(value) = value.filter(|value| will_do(*value)) {
                return value;
            }
            assert!(started.elapsed() < PATIENCE, "{series} is {value:?} for ever");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(node) = &mut self.node {
            let _ = node.child.kill();
            let _ = node.child.wait();
            if std::thread::panicking() {
                eprintln!("the appliance's log:\n{}", node.log.lines.lock().expect("the log").join("\n"));
            }
        }
        let arrived = self.arrived.take();
        let arrived = if std::thread::panicking() {
            arrived.into_iter().for_each(Capture::kill);
            BTreeSet::new()
        } else {
            arrived.map(Capture::sources).unwrap_or_default()
        };
        for namespace in [&self.app, &self.router, &self.world] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
        if !std::thread::panicking() {
            let admitted = self.admitted.lock().expect("addresses");
            let strangers: Vec<_> = arrived.difference(&admitted).collect();
            assert!(strangers.is_empty(), "packets arrived from {strangers:?}, which no list had");
        }
    }
}

/// Does something on a thread of its own in a namespace; sockets made there stay there.
pub fn inside<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    let file = File::open(format!("/run/netns/{namespace}")).expect("the namespace");
    let enter = || {
        setns(&file, CloneFlags::CLONE_NEWNET).expect("the namespace can be entered: run as root");
        work()
    };
    std::thread::scope(|scope| scope.spawn(enter).join().expect("no panic"))
}

pub struct Caller(hyper::client::conn::http1::SendRequest<Full<Bytes>>);

impl Caller {
    pub async fn call(&mut self, method: &str, path: &str, body: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let mut request = Request::builder().method(method).uri(path).header("host", "127.0.0.1");
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).expect("a request");
        self.0.ready().await.expect("a connection");
        let response = self.0.send_request(request).await.expect("an answer");
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    /// The validator of what stands at a path.
    pub async fn etag(&mut self, path: &str) -> String {
        let request = Request::get(path).header("host", "127.0.0.1").body(Full::default()).expect("a request");
        self.0.ready().await.expect("a connection");
        let response = self.0.send_request(request).await.expect("an answer");
        let etag = response.headers()["etag"].to_str().expect("text").to_owned();
        response.into_body().collect().await.expect("a body");
        etag
    }

    /// Submits GETs of these URLs for a tenant; their ids.
    pub async fn submit(&mut self, tenant: &str, urls: &[String]) -> Vec<String> {
        let sends: Vec<Value> = urls.iter().map(|url| json!({"method": "GET", "url": url})).collect();
        let body = json!(sends).to_string();
        let (status, answer) = self.call("POST", "/v1/sends", &body, &[("egressd-tenant", tenant)]).await;
        assert_eq!(status, 202, "{answer}");
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        let sends = answer["sends"].as_array().expect("records");
        sends.iter().map(|send| send["id"].as_str().expect("an id").to_owned()).collect()
    }

    /// The record of a send once it is done.
    pub async fn done(&mut self, tenant: &str, id: &str) -> Value {
        let started = Instant::now();
        loop {
            let path = format!("/v1/sends/{id}?wait=10");
            let (status, answer) = self.call("GET", &path, "", &[("egressd-tenant", tenant)]).await;
            assert_eq!(status, 200, "{answer}");
            let record: Value = serde_json::from_str(&answer).expect("JSON");
            if record["state"] == "done" {
                return record;
            }
            assert!(started.elapsed() < PATIENCE, "{record}");
        }
    }

    /// One GET from its submission to its end.
    pub async fn get(&mut self, tenant: &str, url: &str) -> Value {
        let ids = self.submit(tenant, &[url.to_owned()]).await;
        self.done(tenant, &ids[0]).await
    }
}

/// How a send ended: `delivered`, or the code of what kept it from that.
pub fn end_of(record: &Value) -> &str {
    record["error"]["code"].as_str().or(record["outcome"].as_str()).expect("an outcome")
}

/// A receiver that remembers who asked for what. Paths under `/hold` are answered when [`Self::release`] is called.
pub struct Receiver {
    seen: Arc<Mutex<HashMap<String, Vec<SocketAddr>>>>,
    held: watch::Sender<usize>,
    open: watch::Sender<bool>,
}

impl Receiver {
    fn start(namespace: &str, address: SocketAddr) -> Self {
        let listener = inside(namespace, move || {
            let listener = std::net::TcpListener::bind(address).expect("the receiver's address");
            listener.set_nonblocking(true).expect("a socket");
            listener
        });
        let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
        let receiver = Self { seen: Arc::default(), held: watch::Sender::new(0), open: watch::Sender::new(false) };
        let (seen, held, open) = (receiver.seen.clone(), receiver.held.clone(), receiver.open.clone());
        tokio::spawn(async move {
            while let Ok((socket, peer)) = listener.accept().await {
                let (seen, held, open) = (seen.clone(), held.clone(), open.clone());
                let respond = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let (seen, held, mut open) = (seen.clone(), held.clone(), open.subscribe());
                    async move {
                        let path = request.uri().path().to_owned();
                        seen.lock().expect("what was seen").entry(path.clone()).or_default().push(peer);
                        if path.starts_with("/hold") {
                            held.send_modify(|held| *held += 1);
                            let _ = open.wait_for(|open| *open).await;
                        }
                        let body = format!("{}\n", peer.ip());
                        Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(body))))
                    }
                });
                let builder = hyper::server::conn::http1::Builder::new();
                tokio::spawn(builder.serve_connection(TokioIo::new(socket), respond));
            }
        });
        receiver
    }

    /// Who asked for this path.
    pub fn seen(&self, path: &str) -> Vec<SocketAddr> {
        self.seen.lock().expect("what was seen").get(path).cloned().unwrap_or_default()
    }

    /// Waits until so many requests are held.
    pub async fn holds(&self, count: usize) {
        let mut held = self.held.subscribe();
        tokio::select! {
            enough = held.wait_for(|held| *held >= count) => drop(enough.expect("the receiver")),
            () = tokio::time::sleep(PATIENCE) => panic!("{} of {count} requests came", *self.held.borrow()),
        }
    }

    /// Answers what is held, and what comes from now on.
    pub fn release(&self) {
        self.open.send_replace(true);
    }
}

/// A running capture of what arrives.
pub struct Capture {
    child: Child,
    file: std::path::PathBuf,
    stderr: BufReader<std::process::ChildStderr>,
    router: String,
}

impl Capture {
    /// Ends it; the source addresses of every packet that arrived, whatever it carried.
    pub fn sources(mut self) -> BTreeSet<IpAddr> {
        // The last packet is the router's, so that none before it is still to be written.
        let last = b"the end of the capture";
        inside(&self.router, || {
            let socket = std::net::UdpSocket::bind((ROUTER[0], 0)).expect("a socket");
            socket.send_to(last, (WORLD_V4, 9)).expect("a packet");
        });
        let started = Instant::now();
        while !std::fs::read(&self.file).expect("the capture").windows(last.len()).any(|bytes| bytes == last) {
            assert!(started.elapsed() < PATIENCE, "the capture does not come to its end");
            std::thread::sleep(Duration::from_millis(10));
        }
        kill(Pid::from_raw(self.child.id().try_into().expect("a pid")), Signal::SIGINT).expect("a signal");
        self.child.wait().expect("its end");
        let mut told = String::new();
        std::io::Read::read_to_string(&mut self.stderr, &mut told).expect("tcpdump's word");
        assert!(told.contains("\n0 packets dropped by kernel"), "the capture has holes: {told}");
        let bytes = std::fs::read(&self.file).expect("the capture");
        // pcap-savefile(5): a header of 24 bytes that ends with the link type, then packets under 16 bytes each.
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        assert_eq!((word(0), word(20)), (0xa1b2_c3d4, 1), "not a capture of Ethernet in this host's byte order");
        let (mut at, mut sources) = (24, BTreeSet::new());
        while at < bytes.len() {
            let captured = word(at + 8) as usize;
            sources.insert(source_of(&bytes[at + 16..at + 16 + captured]));
            at += 16 + captured;
        }
        // The router's own: it looks for neighbours, and tells of errors.
        sources.retain(|source| !ROUTER.contains(&source.to_string().as_str()) && !is_of_the_link(*source));
        sources
    }
}

impl Capture {
    fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The router's addresses on the world's side.
const ROUTER: [&str; 2] = ["192.0.2.1", "2001:db8:2::1"];

fn is_of_the_link(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_unspecified(),
    }
}

/// Whom an Ethernet frame with an IP packet says it is from.
fn source_of(frame: &[u8]) -> IpAddr {
    let field = |at: usize, length: usize| &frame[at..at + length];
    match field(12, 2) {
        [0x08, 0x00] => IpAddr::from(<[u8; 4]>::try_from(field(26, 4)).expect("four bytes")),
        [0x86, 0xdd] => IpAddr::from(<[u8; 16]>::try_from(field(22, 16)).expect("sixteen bytes")),
        kind => panic!("a frame of kind {kind:?} was captured"),
    }
}

/// The published addresses of these sources.
pub fn published(sources: &[u8]) -> BTreeSet<IpAddr> {
    let both = |part: &u8| [format!("198.51.100.{part}"), format!("2001:db8:1::{part}")];
    sources.iter().flat_map(both).map(|address| address.parse().expect("an address")).collect()
}

/// They as a file.
pub fn list(sources: &[u8]) -> String {
    published(sources).iter().map(|address| format!("{address}\n")).collect()
}
