//! Tunnels: each subject is asked for CONNECTs to listeners of a process of their own.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::Wanted;
use crate::figures::{Figures, Report};
use crate::running::{self, Running};
use crate::support::{CONNECTIONS, Node, free_port};

/// So that the ports of one peer are not what is measured.
const LISTENERS: usize = 16;
const CONNECTS: u64 = 8_000;
const STREAMS: usize = 4;
const BYTES_OF_STREAM: u64 = 256 << 20;
const IDLE: usize = 1_000;
const MORE: &str = "tunnels = 5200\ntunnels_per_tenant = 5000\ntunnels_per_tenant_destination = 5000\n";
const BASE: &str = "egressd";

#[derive(Clone, Copy)]
enum Subject {
    Squid,
    TinyProxy,
    Envoy,
    Egressd,
}

const ALL: [Subject; 4] = [Subject::Squid, Subject::TinyProxy, Subject::Envoy, Subject::Egressd];

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Self::Squid => "squid",
            Self::TinyProxy => "tinyproxy",
            Self::Envoy => "envoy",
            Self::Egressd => BASE,
        }
    }

    fn start(self) -> (Running, SocketAddr) {
        let peer = match self {
            Self::Squid => running::squid(),
            Self::TinyProxy => running::tinyproxy(),
            Self::Envoy => running::envoy_forward(),
            Self::Egressd => return egressd(),
        };
        let address = peer.address;
        (Running::Peer(peer), address)
    }
}

/// With room for all of a bench's tunnels.
pub fn egressd() -> (Running, SocketAddr) {
    let proxy = free_port();
    // Files that are kept for deliveries are not tunnels'.
    let node = Node::start_with("in_flight = 1000\n", &format!("[proxy]\nlisten = \"{proxy}\"\n{MORE}"));
    (Running::Egressd(node), proxy)
}

#[derive(Clone, Copy)]
enum Load {
    Connects,
    Bytes,
    Idle,
}

pub async fn all(wanted: &Wanted, report: &mut Report) {
    running::install(&[("squid", "/usr/sbin/squid"), ("tinyproxy", "/usr/bin/tinyproxy")]);
    let streams = Streams::start();
    for (name, scenario, load) in [
        ("connects", "CONNECTs, CPU in us each", Load::Connects),
        ("bytes", "bytes of 4 tunnels, MiB a second, CPU in s a GiB", Load::Bytes),
        ("idle", "1,000 idle tunnels", Load::Idle),
    ] {
        if !wanted.runs(name) {
            continue;
        }
        let subjects = ALL.iter().filter(|subject| wanted.takes(subject.name()));
        let mut rows: Vec<_> = subjects.map(|subject| (*subject, Vec::new())).collect();
        for _ in 0..wanted.rounds {
            for (subject, figures) in &mut rows {
                let (running, proxy) = subject.start();
                figures.push(match load {
                    Load::Connects => connects(&running, proxy, &streams.targets).await,
                    Load::Bytes => bytes(&running, proxy, &streams.targets).await,
                    Load::Idle => idle(&running, proxy, &streams.targets).await,
                });
            }
        }
        let rows: Vec<_> = rows.into_iter().map(|(subject, figures)| (subject.name().to_owned(), figures)).collect();
        report.add(scenario, BASE, &rows);
    }
}

async fn connects(running: &Running, proxy: SocketAddr, targets: &[SocketAddr]) -> Figures {
    many(proxy, targets, 500).await;
    let (before, started) = (running.cpu(), Instant::now());
    many(proxy, targets, CONNECTS).await;
    let took = started.elapsed().as_secs_f64();
    // What is written of them is part of what they cost.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let cpu = (running.cpu() - before) / CONNECTS as f64 * 1e6;
    Figures { per_second: Some(CONNECTS as f64 / took), cpu: Some(cpu), ..Figures::default() }
}

/// So many, by 64 clients, each open for no longer than it takes to say that it is.
async fn many(proxy: SocketAddr, targets: &[SocketAddr], tunnels: u64) {
    let left = Arc::new(AtomicU64::new(tunnels));
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..CONNECTIONS {
        let (left, targets) = (left.clone(), targets.to_vec());
        tasks.spawn(async move {
            let mut targets = targets.iter().cycle().skip(client);
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                let target = targets.next().expect("they go round");
                let mut tunnel = connect_through(proxy, *target, client).await;
                // The target answers one byte with one, and ends: what waits in TIME_WAIT is its own.
                tunnel.write_all(b"e").await.expect("the tunnel takes a byte");
                let mut rest = Vec::new();
                tunnel.read_to_end(&mut rest).await.expect("the target's end");
                assert_eq!(rest, b"e");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("a client");
    }
}

async fn bytes(running: &Running, proxy: SocketAddr, targets: &[SocketAddr]) -> Figures {
    let (before, started) = (running.cpu(), Instant::now());
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..STREAMS {
        let target = targets[client % targets.len()];
        tasks.spawn(async move {
            let mut tunnel = connect_through(proxy, target, client).await;
            tunnel.write_all(b"d").await.expect("the tunnel takes a byte");
            let (mut buffer, mut left) = (vec![0; 256 << 10], BYTES_OF_STREAM);
            while left > 0 {
                let read = tunnel.read(&mut buffer).await.expect("bytes");
                assert!(read > 0, "{left} bytes are missing");
                left = left.saturating_sub(read as u64);
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("a client");
    }
    let took = started.elapsed().as_secs_f64();
    let all = (STREAMS as u64 * BYTES_OF_STREAM) as f64;
    let cpu = (running.cpu() - before) / (all / f64::from(1 << 30));
    Figures { per_second: Some(all / f64::from(1 << 20) / took), cpu: Some(cpu), ..Figures::default() }
}

async fn idle(running: &Running, proxy: SocketAddr, targets: &[SocketAddr]) -> Figures {
    let open = async || {
        let mut kept = Vec::new();
        for n in 0..IDLE {
            let mut tunnel = connect_through(proxy, targets[n % targets.len()], n).await;
            tunnel.write_all(b"i").await.expect("the tunnel takes a byte");
            assert_eq!(tunnel.read_u8().await.expect("an answer"), b'i', "both directions were used");
            kept.push(tunnel);
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        kept
    };
    let before = running.kib();
    let kept = open().await;
    let kib = (running.kib() - before) / IDLE as f64;
    drop(kept);
    Figures { kib: Some(kib), ..Figures::default() }
}

async fn connect_through(proxy: SocketAddr, target: SocketAddr, client: usize) -> TcpStream {
    connect_for("default", proxy, target, client).await
}

/// For a tenant of egressd's, from an address of each client's own: a proxy's peer has ports for all of them.
pub async fn connect_for(tenant: &str, proxy: SocketAddr, target: SocketAddr, client: usize) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 1, 1 + (client % 200) as u8], 0).into()).expect("an address of loopback");
    let mut stream = socket.connect(proxy).await.expect("the proxy");
    stream.set_nodelay(true).expect("an option");
    let head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nEgressd-Tenant: {tenant}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("the proxy reads");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let read = stream.read_buf(&mut answer).await.expect("an answer");
        assert!(read > 0, "the proxy hung up after {}", String::from_utf8_lossy(&answer));
    }
    let text = String::from_utf8_lossy(&answer);
    assert!(text.starts_with("HTTP/1.1 200") || text.starts_with("HTTP/1.0 200"), "{text}");
    stream
}

/// The targets, in a process of their own.
pub struct Streams {
    child: Child,
    pub targets: Vec<SocketAddr>,
}

impl Streams {
    pub fn start() -> Self {
        use std::io::{BufRead, BufReader};
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .arg("streams")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the targets");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let address = |line: std::io::Result<String>| line.expect("text").parse().expect("an address");
        let targets = lines.take(LISTENERS).map(address).collect();
        Self { child, targets }
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process of the targets: what a connection is for is its first byte.
pub async fn streams() {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..LISTENERS {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        println!("{}", listener.local_addr().expect("bound"));
        tasks.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        });
    }
    tasks.join_all().await;
}

async fn serve(mut stream: TcpStream) {
    match stream.read_u8().await {
        Ok(b'e') => drop(stream.write_all(b"e").await),
        Ok(b'd') => {
            let zeros = vec![0; 256 << 10];
            while stream.write_all(&zeros).await.is_ok() {}
        }
        Ok(byte) => {
            let _ = stream.write_all(&[byte]).await;
            let _ = stream.read_u8().await;
        }
        Err(_) => {}
    }
}
