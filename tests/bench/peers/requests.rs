//! Requests: each subject is handed 1 KiB POSTs and makes them to one receiver, on connections that are kept.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::Wanted;
use crate::figures::{Figures, Report};
use crate::running::{self, Running};
use crate::support::{CONNECTIONS, Node, Receiver, call, call_with, connect, cpu_seconds, quantile, stamp};

const KIB: usize = 1024;
const WARM: u64 = 2_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Subject {
    /// A hyper client of this process, to the receiver.
    Bare,
    Nginx,
    HaProxy,
    Envoy,
    /// With so many sends a call, answered with their records.
    Egressd(usize),
    /// The same, and the answers have ids and states alone.
    Minimal(usize),
}

const ALL: [Subject; 8] = [
    Subject::Bare,
    Subject::Nginx,
    Subject::HaProxy,
    Subject::Envoy,
    Subject::Egressd(1),
    Subject::Minimal(1),
    Subject::Egressd(100),
    Subject::Minimal(100),
];
/// What others are measured against.
const BASE: &str = "bare client and receiver";

impl Subject {
    fn name(self) -> String {
        match self {
            Self::Bare => BASE.to_owned(),
            Self::Nginx => "nginx".to_owned(),
            Self::HaProxy => "haproxy".to_owned(),
            Self::Envoy => "envoy".to_owned(),
            Self::Egressd(1) => "egressd".to_owned(),
            Self::Minimal(1) => "egressd, minimal".to_owned(),
            Self::Egressd(batch) => format!("egressd, {batch} a call"),
            Self::Minimal(batch) => format!("egressd, {batch} a call, minimal"),
        }
    }

    /// `None`: nothing stands between.
    fn start(self, receiver: &Receiver) -> Option<Running> {
        Some(match self {
            Self::Bare => return None,
            Self::Nginx => Running::Peer(running::nginx(receiver.fast)),
            Self::HaProxy => Running::Peer(running::haproxy(receiver.fast)),
            Self::Envoy => Running::Peer(running::envoy(receiver.fast)),
            Self::Egressd(_) | Self::Minimal(_) => Running::Egressd(Node::start("")),
        })
    }

    fn batch(self) -> usize {
        if let Self::Egressd(batch) | Self::Minimal(batch) = self { batch } else { 1 }
    }
}

/// What a subject is called with, and where.
#[derive(Clone, Copy)]
struct Way {
    address: SocketAddr,
    receiver: SocketAddr,
    batch: usize,
    bytes: usize,
    is_egressd: bool,
    minimal: bool,
}

impl Way {
    fn of(subject: Subject, running: Option<&Running>, receiver: &Receiver, bytes: usize) -> Self {
        let address = match running {
            None => receiver.fast,
            Some(Running::Peer(peer)) => peer.address,
            Some(Running::Egressd(node)) => node.api,
        };
        let minimal = matches!(subject, Subject::Minimal(_));
        let is_egressd = minimal || matches!(subject, Subject::Egressd(_));
        Self { address, receiver: receiver.fast, batch: subject.batch(), bytes, is_egressd, minimal }
    }

    async fn call(self, client: &mut hyper::client::conn::http1::SendRequest<http_body_util::Full<Bytes>>) {
        let body = stamp(self.bytes);
        if !self.is_egressd {
            let (status, _) = call(client, "POST", "/timed", body.into()).await;
            assert_eq!(status, 200);
            return;
        }
        let one = json!({ "method": "POST", "url": format!("http://{}/timed", self.receiver), "data": body });
        let call_body = if self.batch == 1 { one } else { Value::Array(vec![one; self.batch]) };
        let bytes = Bytes::from(serde_json::to_vec(&call_body).expect("JSON"));
        let prefer: &[_] = if self.minimal { &[("prefer", "return=minimal")] } else { &[] };
        loop {
            let (status, answer) = call_with(client, "POST", "/v1/sends", bytes.clone(), prefer).await;
            match status {
                202 => return,
                429 | 503 => tokio::time::sleep(Duration::from_millis(20)).await,
                _ => panic!("{status}: {}", String::from_utf8_lossy(&answer)),
            }
        }
    }

    /// As fast as it goes, by so many callers at once.
    async fn load(self, requests: u64) {
        let left = Arc::new(AtomicU64::new(requests / self.batch as u64));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..CONNECTIONS {
            let left = left.clone();
            tasks.spawn(async move {
                let mut client = connect(self.address).await;
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                    self.call(&mut client).await;
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("a caller");
        }
    }

    /// At a pace that leaves everybody idle for most of the time; how many that was.
    async fn paced(self, rate: u32, seconds: u32) -> u64 {
        const CALLERS: u32 = 15;
        let mut tasks = tokio::task::JoinSet::new();
        for caller in 0..CALLERS {
            tasks.spawn(async move {
                let mut client = connect(self.address).await;
                let first = tokio::time::Instant::now() + Duration::from_secs(1) * caller / rate;
                let mut every = tokio::time::interval_at(first, Duration::from_secs(1) * CALLERS / rate);
                for _ in 0..rate * seconds / CALLERS {
                    every.tick().await;
                    self.call(&mut client).await;
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("a caller");
        }
        u64::from(rate * seconds / CALLERS * CALLERS)
    }
}

/// What is done to a subject in a round.
#[derive(Clone, Copy)]
enum Load {
    Full { requests: u64 },
    Paced { rate: u32, seconds: u32 },
}

/// 64 callers, as fast as they are answered.
pub async fn kept(wanted: &Wanted, receiver: &Receiver, report: &mut Report) {
    let load = Load::Full { requests: 40_000 };
    rounds("1 KiB, kept connections, 64 clients", &ALL, wanted, receiver, KIB, load, report).await;
}

/// Where nobody is busy.
pub async fn paced(wanted: &Wanted, receiver: &Receiver, rate: u32, report: &mut Report) {
    let subjects = [Subject::Bare, Subject::Nginx, Subject::HaProxy, Subject::Envoy, Subject::Egressd(1)];
    let load = Load::Paced { rate, seconds: 8 };
    rounds(&format!("1 KiB, {rate} a second"), &subjects, wanted, receiver, KIB, load, report).await;
}

/// Larger bodies, from 16 callers' worth of requests.
pub async fn sized(wanted: &Wanted, receiver: &Receiver, kib: usize, report: &mut Report) {
    let subjects = [Subject::Bare, Subject::Nginx, Subject::HaProxy, Subject::Egressd(1)];
    let load = Load::Full { requests: if kib > 64 { 4_000 } else { 20_000 } };
    rounds(&format!("{kib} KiB, kept connections, 64 clients"), &subjects, wanted, receiver, kib * KIB, load, report)
        .await;
}

async fn rounds(
    scenario: &str,
    subjects: &[Subject],
    wanted: &Wanted,
    receiver: &Receiver,
    bytes: usize,
    load: Load,
    report: &mut Report,
) {
    running::install(&[("nginx", "/usr/sbin/nginx"), ("haproxy", "/usr/sbin/haproxy")]);
    let subjects = subjects.iter().filter(|subject| wanted.takes(&subject.name()));
    let mut rows: Vec<(Subject, Vec<Figures>)> = subjects.map(|subject| (*subject, Vec::new())).collect();
    for _ in 0..wanted.rounds {
        for (subject, figures) in &mut rows {
            figures.push(round(*subject, receiver, bytes, load).await);
        }
    }
    let rows: Vec<_> = rows.into_iter().map(|(subject, figures)| (subject.name(), figures)).collect();
    report.add(scenario, BASE, &rows);
}

async fn round(subject: Subject, receiver: &Receiver, bytes: usize, load: Load) -> Figures {
    let running = subject.start(receiver);
    let way = Way::of(subject, running.as_ref(), receiver, bytes);
    let settled = async |requests: u64| {
        if let Some(Running::Egressd(node)) = &running {
            node.settled(requests).await;
        }
    };
    let cpu = || match &running {
        None => cpu_seconds(std::process::id()) + cpu_seconds(receiver.pid()),
        Some(running) => running.cpu(),
    };
    let seen = receiver.count().await;
    way.load(WARM).await;
    receiver.reaches(seen + WARM).await;
    settled(WARM).await;
    receiver.latencies().await;

    let (before, started) = (cpu(), Instant::now());
    let requests = match load {
        Load::Full { requests } => {
            way.load(requests).await;
            requests
        }
        Load::Paced { rate, seconds } => way.paced(rate, seconds).await,
    };
    receiver.reaches(seen + WARM + requests).await;
    let took = started.elapsed().as_secs_f64();
    settled(WARM + requests).await;
    let cpu = (cpu() - before) / requests as f64 * 1e6;
    let latencies = receiver.latencies().await;
    Figures {
        per_second: Some(requests as f64 / took),
        cpu: Some(cpu),
        p50: Some(quantile(&latencies, 0.5)),
        p99: Some(quantile(&latencies, 0.99)),
        kib: None,
    }
}
