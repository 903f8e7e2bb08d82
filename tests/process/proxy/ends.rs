//! How tunnels end: by themselves, by age and silence, and because they are no longer allowed or the process ends.

use std::io::ErrorKind;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{basic, connect, counted, echo, in_time, logged, may_tunnel, node_with, started, tunnel};
use crate::node::{Node, alone, call};
use crate::strangers::client_of;

async fn ended(node: &Node, end: &str, code: &str) {
    counted(node, &format!("egressd_tunnels_total{{end=\"{end}\",code=\"{code}\"}}"), 1.0).await;
    for source in crate::node::SOURCES {
        let line = format!("egressd_tunnels_open{{source_ip=\"{source}\"}}");
        if node.metric(&line).await.is_some() {
            counted(node, &line, 0.0).await;
        }
    }
}

/// It must not look as if the other side had closed it by itself.
async fn is_reset(stream: &mut TcpStream) {
    let error = in_time(stream.read_to_end(&mut Vec::new())).await.expect_err("cut short, and looks whole");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_nothing_and_a_peer_that_never_closes_are_let_go() {
    let (node, proxy) = started("idle = \"1s\"", "");
    let floods = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = floods.local_addr().unwrap();
    let flooding = tokio::spawn(async move {
        let (mut stream, _) = floods.accept().await.unwrap();
        while stream.write_all(&[1; 65_536]).await.is_ok() {}
    });
    let deaf = tunnel(proxy, &at.to_string()).await;
    in_time(flooding).await.unwrap();
    ended(&node, "idle", "none").await;
    drop(deaf);

    let stays = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut stream = tunnel(proxy, &stays.local_addr().unwrap().to_string()).await;
    let (_kept, _) = stays.accept().await.unwrap();
    stream.shutdown().await.unwrap();
    is_reset(&mut stream).await;
    counted(&node, "egressd_tunnels_total{end=\"idle\",code=\"none\"}", 2.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_has_a_lifetime_however_busy_it_is() {
    let (node, proxy) = started("lifetime = \"1s\"", "");
    let (receiver, _) = echo().await;
    let mut stream = tunnel(proxy, &receiver.to_string()).await;
    let begun = std::time::Instant::now();
    while stream.write_all(b".").await.is_ok() && stream.read_u8().await.is_ok() {
        assert!(begun.elapsed() < crate::node::PATIENCE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ended(&node, "lifetime", "none").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_is_passed_on() {
    let (node, proxy) = started("", "");
    let resets = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut stream = tunnel(proxy, &resets.local_addr().unwrap().to_string()).await;
    let (peer, _) = resets.accept().await.unwrap();
    socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
    drop(peer);
    is_reset(&mut stream).await;
    ended(&node, "reset", "none").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_stopped_loses_the_tunnels_that_are_open() {
    let (node, proxy) = started("", "");
    let (receiver, _) = echo().await;
    let open = async |tenant: &str| {
        let (told, stream) = connect(proxy, &receiver.to_string(), &basic(tenant, "x")).await;
        assert_eq!(told.status, 200, "{}", told.head);
        stream
    };
    let (mut bad, mut good) = (open("bad").await, open("good").await);
    let stop = json!({ "tenant": "bad", "reason": "abuse report 4711" }).to_string();
    let (status, answer) = node.call("POST", "/v1/suspensions", &stop).await.unwrap();
    assert_eq!(status, 201, "{answer}");
    is_reset(&mut bad).await;
    ended_of(&node, "suspended").await;
    assert_eq!(connect(proxy, &receiver.to_string(), &basic("bad", "x")).await.0.told(), "403 suspended");
    good.write_all(b"x").await.unwrap();
    assert_eq!(in_time(good.read_u8()).await.unwrap(), b'x');

    // And whoever leads where nobody may go any more.
    let stop = json!({ "host": "127.0.0.1", "reason": "abuse report 4712" }).to_string();
    let answer = call(node.api, "POST", "/v1/suspensions", &stop, &[]).await.unwrap();
    assert_eq!(answer.0, 201, "{}", answer.1);
    is_reset(&mut good).await;
}

async fn ended_of(node: &Node, code: &str) {
    logged(node, &["tunnel ended", "\"end\":\"refused\"", &format!("\"code\":\"{code}\""), "\"source_ip\""]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_ends_what_it_no_longer_allows_and_nothing_else() {
    let (node, proxy) = started("", "");
    let (kept, denied) = (echo().await.0, TcpListener::bind("127.0.0.5:0").await.unwrap());
    let mut stays = tunnel(proxy, &kept.to_string()).await;
    let mut goes = tunnel(proxy, &denied.local_addr().unwrap().to_string()).await;
    let _peer = denied.accept().await.unwrap();
    node.configure(&format!("[proxy]\nlisten = \"{proxy}\"\n[policy]\ndeny_networks = [\"127.0.0.5/32\"]\n"));
    node.signal(Signal::SIGHUP);
    is_reset(&mut goes).await;
    ended_of(&node, "policy_denied").await;
    stays.write_all(b"x").await.unwrap();
    assert_eq!(in_time(stays.read_u8()).await.unwrap(), b'x');

    // A source that is no longer configured is not left from, by what was opened before either.
    let text = std::fs::read_to_string(node.config()).unwrap();
    let sources: String = crate::node::SOURCES.map(|ip| format!("[[egress.source]]\npublic = \"{ip}\"\n")).concat();
    std::fs::write(node.path("public-ips.txt"), "127.0.0.29\n").unwrap();
    std::fs::write(node.config(), text.replace(&sources, "[[egress.source]]\npublic = \"127.0.0.29\"\n")).unwrap();
    node.signal(Signal::SIGHUP);
    is_reset(&mut stays).await;
    ended_of(&node, "source_unavailable").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_that_takes_a_token_or_its_scope_ends_its_tunnels() {
    let clients = |of: &[String]| of.concat();
    let (acme, other, reader) = (may_tunnel("acme"), may_tunnel("other"), client_of("acme"));
    let (node, proxy) = started("", &clients(&[acme, other.clone()]));
    let (receiver, _) = echo().await;
    let open = async |tenant: &str| {
        let (told, stream) = connect(proxy, &receiver.to_string(), &basic(tenant, tenant)).await;
        assert_eq!(told.status, 200, "{}", told.head);
        stream
    };
    let (mut acmes, mut others) = (open("acme").await, open("other").await);
    let reload = |of: &[String]| {
        node.configure(&format!("[proxy]\nlisten = \"{proxy}\"\n{}", clients(of)));
        node.signal(Signal::SIGHUP);
    };
    // Without its scope, though the token is there still.
    reload(&[reader.clone(), other]);
    is_reset(&mut acmes).await;
    ended_of(&node, "unauthorized").await;
    others.write_all(b"x").await.unwrap();
    assert_eq!(in_time(others.read_u8()).await.unwrap(), b'x');
    reload(&[reader]);
    is_reset(&mut others).await;
    counted(&node, "egressd_tunnels_total{end=\"refused\",code=\"unauthorized\"}", 2.0).await;
    let begun = std::time::Instant::now();
    let listed = loop {
        let read = call(node.api, "GET", "/v1/tunnels?end=refused", "", &[("authorization", "Bearer acme")]).await;
        let (_, listed) = read.unwrap();
        if listed["tunnels"] != json!([]) {
            break listed;
        }
        assert!(begun.elapsed() < crate::node::PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let record = &listed["tunnels"][0];
    assert_eq!((&record["tenant"], &record["code"]), (&json!("acme"), &json!(null)), "{listed}");
    assert!(record["message"].as_str().unwrap().contains("the token"), "{listed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_gives_open_tunnels_time_and_begins_none() {
    let (mut node, proxy) = node_with("", "[delivery]\ndeadline = \"1s\"\ndrain = \"3s\"\n");
    node.start();
    let (receiver, _) = echo().await;
    let (mut ends, mut stays) =
        (tunnel(proxy, &receiver.to_string()).await, tunnel(proxy, &receiver.to_string()).await);
    node.signal(Signal::SIGTERM);
    logged(&node, &["draining"]).await;
    let told = loop {
        let (told, _) = connect(proxy, &receiver.to_string(), "").await;
        if told.status != 200 {
            break told;
        }
    };
    assert_eq!(told.told(), "503 draining", "{}", told.head);
    ends.write_all(b"still").await.unwrap();
    ends.shutdown().await.unwrap();
    let mut echoed = Vec::new();
    in_time(ends.read_to_end(&mut echoed)).await.unwrap();
    assert_eq!(echoed, b"still");
    is_reset(&mut stays).await;
    assert_eq!(node.has_ended().await, Some(0), "{}", node.log());
    assert!(node.log().contains("\"end\":\"drained\""), "{}", node.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_idles_takes_little_memory() {
    const FIRST: usize = 200;
    const MANY: usize = 1500;
    let _alone = alone().await;
    let keys = "idle = \"1h\"\ntunnels_per_tenant = 5000\ntunnels_per_tenant_destination = 5000\n";
    let (node, proxy) = started(keys, "[delivery]\nin_flight = 1000\nin_flight_per_tenant = 1000\n");
    let stays = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = stays.local_addr().unwrap();
    let kept = tokio::spawn(async move {
        let mut kept = Vec::new();
        while kept.len() < FIRST + MANY {
            let (mut stream, _) = stays.accept().await.unwrap();
            stream.write_u8(stream.peek(&mut [0]).await.unwrap() as u8).await.unwrap();
            kept.push(stream);
        }
        kept
    });
    let (mut held, mut before) = (Vec::new(), 0);
    for number in 0..FIRST + MANY {
        if number == FIRST {
            // What all of them share is there.
            before = node.memory_peak_kib();
        }
        let mut stream = TcpStream::connect(proxy).await.unwrap();
        // One in eight with bytes before the answer, which are in the buffer of the head.
        let early = if number % 8 == 0 { "early" } else { "" };
        let head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nX-A: {}\r\n\r\n{early}", "a".repeat(3000));
        stream.write_all(head.as_bytes()).await.unwrap();
        let told = super::answer(&mut stream).await;
        assert_eq!(told.status, 200, "{}", told.head);
        if early.is_empty() {
            stream.write_all(b"late").await.unwrap();
        }
        if told.rest.is_empty() {
            in_time(stream.read_u8()).await.unwrap();
        }
        held.push(stream);
    }
    let _kept = in_time(kept).await.unwrap();
    let each = (node.memory_peak_kib() - before) as f64 / MANY as f64;
    println!("an idle tunnel takes {each:.1} KiB");
    assert!(each < 12.0, "{each:.1} KiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_gibibytes_go_through_one_tunnel_and_the_process_does_not_grow() {
    const ALL: u64 = 4 << 30;
    let _alone = alone().await;
    let (node, proxy) = started("", "");
    let pours = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut stream = tunnel(proxy, &pours.local_addr().unwrap().to_string()).await;
    let (mut peer, _) = pours.accept().await.unwrap();
    let before = node.memory_peak_kib();
    let pouring = tokio::spawn(async move {
        let piece = vec![7; 1 << 20];
        for _ in 0..ALL >> 20 {
            peer.write_all(&piece).await.unwrap();
        }
        peer.shutdown().await.unwrap();
    });
    let (mut got, mut piece) = (0, vec![0; 1 << 20]);
    loop {
        match in_time(stream.read(&mut piece)).await.unwrap() {
            0 => break,
            read => got += read as u64,
        }
    }
    pouring.await.unwrap();
    assert_eq!(got, ALL);
    let grown = node.memory_peak_kib() - before;
    assert!(grown < 16 * 1024, "{grown} KiB");
    drop(stream);
    counted(&node, "egressd_tunnel_bytes_total{direction=\"down\"}", ALL as f64).await;
}
