//! What one tenant's tunnels do to everybody's sends and to another's tunnels: full speed, slow readers and idlers at once,
//! from a process of their own, so that what is measured beside it is the node and not the stopwatch.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::running::Running;
use crate::support::{Node, Receiver, call_as, connect, quantile};
use crate::tunnels::{Streams, connect_for, egressd};

/// How many of each kind, 5,000 in all.
const FULL_SPEED: usize = 200;
const SLOW_READERS: usize = 1_800;
const IDLERS: usize = 3_000;
/// What is measured of each, one at a time.
const ACCEPTS: usize = 1_000;
const SILENT: usize = 200;
const TUNNELS: usize = 500;

/// Percentiles with the crowd, beside those without it.
pub async fn isolation(receiver: &Receiver) {
    println!(
        "\n5,000 tunnels of another tenant: {FULL_SPEED} at full speed, {SLOW_READERS} that read nothing, {IDLERS} idle"
    );
    let streams = Streams::start();
    for crowded in [false, true] {
        let (running, proxy) = egressd();
        let Running::Egressd(node) = &running else { panic!("it is egressd") };
        let crowd = crowded.then(|| Crowd::start(proxy, &streams.targets));
        let open = if crowded { node.gauge("egressd_tunnels_open").await } else { 0.0 };
        let (accepts, overdue, tunnels) =
            tokio::join!(accepts(node, receiver.fast), silent(node, receiver.silent), tunnels(proxy, &streams.targets));
        println!("{}", if crowded { format!("beside them ({open:.0} are open)") } else { "alone".to_owned() });
        for (what, took) in
            [("accept", accepts), ("past the deadline of 5 s", overdue), ("tunnel opened and answered", tunnels)]
        {
            let at = |share| quantile(&took, share);
            println!("    {what:<28} ms: p50 {:.2}  p99 {:.2}  max {:.2}", at(0.5), at(0.99), at(1.0));
        }
        drop(crowd);
    }
}

async fn accepts(node: &Node, to: SocketAddr) -> Vec<f64> {
    let mut client = connect(node.api).await;
    let one = json!({ "method": "POST", "url": format!("http://{to}/limit"), "data": 1 });
    let body = Bytes::from(serde_json::to_vec(&one).expect("JSON"));
    let mut took = Vec::new();
    for _ in 0..ACCEPTS {
        let started = Instant::now();
        let (status, answer) = call_as(&mut client, "POST", "/v1/sends", body.clone(), Some("quiet")).await;
        assert_eq!(status, 202, "{}", String::from_utf8_lossy(&answer));
        took.push(started.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    took
}

/// By how much sends to a receiver that never answers pass their deadline.
async fn silent(node: &Node, to: SocketAddr) -> Vec<f64> {
    let mut client = connect(node.api).await;
    let one = json!({ "method": "POST", "url": format!("http://{to}/"), "data": 1 });
    let body = Bytes::from(serde_json::to_vec(&one).expect("JSON"));
    for _ in 0..SILENT {
        let (status, _) = call_as(&mut client, "POST", "/v1/sends", body.clone(), Some("silent")).await;
        assert_eq!(status, 202);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut past = Vec::new();
    while past.len() < SILENT {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let (_, page) = call_as(&mut client, "GET", "/v1/sends?limit=200", Bytes::new(), Some("silent")).await;
        let page: serde_json::Value = serde_json::from_slice(&page).expect("JSON");
        let totals = page["sends"].as_array().into_iter().flatten().filter(|send| send["state"] == "done");
        past = totals.filter_map(|send| send["timings_ms"]["total"].as_f64().map(|total| total - 5_000.0)).collect();
    }
    past
}

/// From the connect to the proxy until a byte came back through the tunnel.
async fn tunnels(proxy: SocketAddr, targets: &[SocketAddr]) -> Vec<f64> {
    let mut took = Vec::new();
    for n in 0..TUNNELS {
        let started = Instant::now();
        let mut tunnel = connect_for("quiet", proxy, targets[n % targets.len()], n).await;
        tunnel.write_all(b"e").await.expect("the tunnel takes a byte");
        assert_eq!(tunnel.read_u8().await.expect("an answer"), b'e');
        took.push(started.elapsed().as_secs_f64() * 1e3);
        drop(tunnel);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    took
}

/// The other tenant's process; all of its tunnels are open.
struct Crowd(Child);

impl Crowd {
    fn start(proxy: SocketAddr, targets: &[SocketAddr]) -> Self {
        use std::io::{BufRead, BufReader};
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["crowd".to_owned(), proxy.to_string()])
            .args(targets.iter().map(SocketAddr::to_string))
            .stdout(Stdio::piped())
            .spawn()
            .expect("the crowd");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
        assert_eq!(line, "open\n");
        Self(child)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Its process, until it is killed.
pub async fn crowd(arguments: &[String]) {
    let addresses: Vec<SocketAddr> = arguments.iter().map(|text| text.parse().expect("an address")).collect();
    let (proxy, targets) = addresses.split_first().expect("the proxy and its targets");
    let mut kept = Vec::new();
    let mut reading = tokio::task::JoinSet::new();
    for n in 0..IDLERS + SLOW_READERS + FULL_SPEED {
        let mut tunnel = connect_for("loud", *proxy, targets[n % targets.len()], n).await;
        if n < IDLERS {
            kept.push(tunnel);
            continue;
        }
        // From here on bytes come.
        tunnel.write_all(b"d").await.expect("the tunnel takes a byte");
        if n < IDLERS + SLOW_READERS {
            kept.push(tunnel);
            continue;
        }
        reading.spawn(async move {
            let mut buffer = vec![0; 64 << 10];
            while tunnel.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
        });
    }
    println!("open");
    reading.join_all().await;
    drop(kept);
    std::future::pending::<()>().await;
}
