//! What the proxy's callers do is not felt by others: strangers keep nobody out, and tunnels make no send late.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::{basic, connect, connect_over, echo, may_tunnel, started, tunnel};
use crate::neighbours::cpu_ticks;
use crate::node::{PATIENCE, alone, egressd, free_port};
use crate::strangers::MANY;

/// What a stranger sends once, and nothing after it.
const KINDS: &[(&str, &[u8])] = &[
    ("silence", b""),
    ("half a head", b"CONNECT example.com:443 HTTP/1.1\r\nHost: "),
    ("a refused CONNECT", b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\nand more"),
    ("a refused request's body", b"POST http://example.com/ HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n["),
    ("HTTP/2 and no call", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_with_a_token_gets_its_tunnel_whatever_strangers_do() {
    let _alone = alone().await;
    let (_node, proxy) = started("", &may_tunnel("acme"));
    let (receiver, _) = echo().await;
    let mut kept = connect(proxy, &receiver.to_string(), &basic("acme", "acme")).await;
    assert_eq!(kept.0.status, 200);
    for (kind, sent) in KINDS {
        // Once each: who stays is the proxy's to say.
        let mut held = Vec::with_capacity(MANY);
        for _ in 0..MANY {
            let mut stream = TcpStream::connect(proxy).await.unwrap();
            let _ = stream.write_all(sent).await;
            held.push(stream);
        }
        for _ in 0..10 {
            // From another address than theirs: among one address's own newcomers, the oldest makes room.
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from(([127, 0, 0, 77], 0))).unwrap();
            let mut stream = socket.connect(proxy).await.unwrap();
            let told = connect_over(&mut stream, &receiver.to_string(), &basic("acme", "acme")).await;
            assert_eq!(told.status, 200, "{kind}: {}", told.head);
            stream.write_all(b"x").await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), b'x', "{kind}");
            kept.1.write_all(b"y").await.unwrap();
            assert_eq!(kept.1.read_u8().await.unwrap(), b'y', "{kind}: a tunnel lost its place");
        }
        drop(held);
    }
}

/// Whose threads did what is counted, not how long anything took: and every send comes to its end within its deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_at_full_speed_are_carried_by_threads_that_make_no_deliveries() {
    let _alone = alone().await;
    let (node, proxy) = started("", "");
    let pours = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = pours.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = pours.accept().await {
            tokio::spawn(async move { while stream.write_all(&[1; 65_536]).await.is_ok() {} });
        }
    });
    let carried = Arc::<AtomicU64>::default();
    let before = cpu_ticks(&node);
    let mut readers = tokio::task::JoinSet::new();
    for number in 0..40 {
        let mut stream = tunnel(proxy, &at.to_string()).await;
        // Some read nothing at all.
        if number % 4 == 0 {
            readers.spawn(async move {
                std::future::pending::<()>().await;
                drop(stream);
            });
            continue;
        }
        let carried = carried.clone();
        readers.spawn(async move {
            let mut piece = vec![0; 65_536];
            while let Ok(read @ 1..) = stream.read(&mut piece).await {
                carried.fetch_add(read as u64, Ordering::Relaxed);
            }
        });
    }
    let spent = |before: &std::collections::HashMap<String, u64>, threads: &str| {
        cpu_ticks(&node).get(threads).unwrap_or(&0) - before.get(threads).unwrap_or(&0)
    };
    let begun = Instant::now();
    while carried.load(Ordering::Relaxed) < 1 << 30 || spent(&before, "tunnels") < 20 {
        assert!(begun.elapsed() < PATIENCE, "{} bytes were carried", carried.load(Ordering::Relaxed));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (tunnels, deliveries) = (spent(&before, "tunnels"), spent(&before, "tokio-rt-worker"));
    assert!(deliveries <= tunnels / 4, "{deliveries} ticks on the deliveries' threads, {tunnels} on the tunnels'");

    // A process of its own: this one's threads are busy with both ends of the tunnels.
    let receiver = free_port();
    let _bin = tokio::process::Command::from(egressd())
        .args(["bin", "--listen", &receiver.to_string()])
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    while tokio::net::TcpStream::connect(receiver).await.is_err() {
        assert!(begun.elapsed() < PATIENCE, "the receiver does not listen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let send = json!({ "method": "POST", "url": format!("http://{receiver}/"), "data": { "a": 1 } });
    let until = carried.load(Ordering::Relaxed) + (1 << 30);
    while carried.load(Ordering::Relaxed) < until {
        let (status, answer) = node.call("POST", "/v1/sends", &json!(vec![&send; 10]).to_string()).await.unwrap();
        assert_eq!(status, 202, "{answer}");
        assert!(begun.elapsed() < PATIENCE, "{} bytes were carried", carried.load(Ordering::Relaxed));
    }
    let records = node.settled().await;
    assert!(records.len() >= 10);
    for record in &records {
        assert_eq!(record["outcome"], "delivered", "{record}");
    }
    assert_eq!(node.metric("egressd_overdue_deliveries").await, Some(0.0));
    readers.abort_all();
}
