//! The list for the world, asked for by callers who mean no good: whoever wants the list gets it all the same, and the
//! appliance does its work.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::node::{Node, PATIENCE, call, counting_receiver, free_port};
use crate::tls::Authority;

/// A connection to the list from this address.
fn connected(from: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((from, 0)).into()).expect("an address");
    socket.connect(&to.into()).expect("the list's listener");
    socket.into()
}

/// What one who only wants the list gets; tries again while turned away.
fn list(from: [u8; 4], to: SocketAddr) -> String {
    let started = Instant::now();
    loop {
        let mut answer = String::new();
        let mut stream = connected(from, to);
        let asked = stream.write_all(b"GET /public-ips.txt HTTP/1.1\r\nhost: list\r\nconnection: close\r\n\r\n");
        if asked.and_then(|()| stream.read_to_string(&mut answer)).is_ok() && answer.starts_with("HTTP/1.1 200") {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE, "turned away for ever: {answer:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

async fn delivers(node: &Node, receiver: SocketAddr) {
    let body = json!({ "method": "GET", "url": format!("http://{receiver}/") }).to_string();
    let (_, record) = call(node.api, "POST", "/v1/sends", &body, &[]).await.expect("an answer");
    let path = format!("/v1/sends/{}?wait=30", record["id"].as_str().expect("an id"));
    let (_, record) = call(node.api, "GET", &path, "", &[]).await.expect("an answer");
    assert_eq!(record["outcome"], "delivered", "{record}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_callers_keep_the_list_from_nobody() {
    let (receiver, _seen) = counting_receiver(Duration::ZERO).await;
    let publish = free_port();
    let node = Node::started(&format!("[publish]\nlisten = \"{publish}\"\n"));
    // More than there are places, from many networks; each has sent half a head, and goes on byte by byte.
    let mut slow: Vec<_> = (0..SLOW).map(|number| slow_caller(number, publish)).collect();
    let enough = Arc::new(AtomicBool::new(false));
    let dripping = std::thread::spawn({
        let enough = enough.clone();
        move || {
            let mut waited = Instant::now();
            while !slow.is_empty() {
                slow.retain_mut(drips);
                // Who had to go is back at once, until the list was had.
                while !enough.load(Ordering::Relaxed) && slow.len() < SLOW {
                    slow.push(slow_caller(slow.len(), publish));
                    waited = Instant::now();
                }
                assert!(waited.elapsed() < PATIENCE, "{} are held for ever", slow.len());
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    });
    // While they hold all places, from a network of none of them.
    let asked = tokio::task::spawn_blocking(move || list([127, 0, 10, 1], publish)).await.expect("the list");
    enough.store(true, Ordering::Relaxed);
    assert!(asked.ends_with("\r\n\r\n127.0.0.21\n127.0.0.22\n127.0.0.23\n"), "{asked}");
    delivers(&node, receiver).await;
    // And however they drip, their heads have their time: each of them is closed while it does.
    tokio::task::spawn_blocking(move || dripping.join()).await.expect("a thread").expect("no panic");
}

/// More than there are places.
const SLOW: usize = 600;

/// One of many networks, which has sent half a head.
fn slow_caller(number: usize, to: SocketAddr) -> TcpStream {
    let mut stream = connected([127, 0, 9, (number % 40) as u8 + 1], to);
    stream.set_nonblocking(true).expect("a socket");
    // One that was turned away shows it later.
    let _ = stream.write_all(b"GET /public-ips.txt HTTP/1.1\r\nx: ");
    stream
}

/// One byte more, where it is still there.
fn drips(stream: &mut TcpStream) -> bool {
    let mut said = [0; 1024];
    loop {
        match stream.read(&mut said) {
            Ok(1..) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return stream.write_all(b"a").is_ok(),
            Ok(0) | Err(_) => return false,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn greedy_callers_cost_no_memory_and_keep_the_list_from_nobody() {
    let (receiver, _seen) = counting_receiver(Duration::ZERO).await;
    let publish = free_port();
    let node = Node::started(&format!("[publish]\nlisten = \"{publish}\"\n"));
    list([127, 0, 10, 1], publish);
    let before = node.memory_kib();
    // Request after request, and not one answer read, until the kernel takes no more.
    let requests = b"GET /public-ips.json HTTP/1.1\r\nhost: list\r\n\r\n".repeat(1000);
    let greedy = tokio::task::spawn_blocking(move || {
        let mut all = Vec::new();
        for number in 0..64 {
            let mut stream = connected([127, 0, 9, number / 8 + 1], publish);
            stream.set_nonblocking(true).expect("a socket");
            let started = Instant::now();
            let mut stuck = 0;
            while stuck < 20 {
                assert!(started.elapsed() < PATIENCE, "it reads on, although nobody reads its answers");
                match stream.write(&requests) {
                    Ok(_) => stuck = 0,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        stuck += 1;
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    Err(error) => panic!("closed: {error}"),
                }
            }
            all.push(stream);
        }
        all
    });
    let greedy = greedy.await.expect("greed");
    tokio::task::spawn_blocking(move || list([127, 0, 10, 1], publish)).await.expect("the list");
    delivers(&node, receiver).await;
    let grown = node.memory_kib().saturating_sub(before);
    assert!(grown < 64 * 1024, "{grown} KiB more for 64 callers");
    drop(greedy);
}

/// What is answered to a GET of this path over TLS, behind what is said before; `None`: no such connection.
fn over_tls(from: [u8; 4], to: SocketAddr, authority: &Authority, before: &str, path: &str) -> Option<String> {
    let mut stream = connected(from, to);
    stream.write_all(before.as_bytes()).ok()?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.der()).expect("an authority");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "egress.example.net".try_into().expect("a name");
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name).expect("a connection");
    let mut stream = rustls::Stream::new(&mut tls, &mut stream);
    write!(stream, "GET {path} HTTP/1.1\r\nhost: egress.example.net\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_world_reads_the_list_over_tls_and_behind_proxies() {
    const DIRECT: [u8; 4] = [127, 0, 10, 1];
    const PROXY: [u8; 4] = [127, 0, 9, 1];
    let publish = free_port();
    let (first, second) = (Authority::new(), Authority::new());
    let says = |operator: &str| {
        format!(
            "[publish]\nlisten = \"{publish}\"\nproxies = [\"127.0.9.0/24\"]\noperator = \"{operator}\"\nabuse = \
             \"abuse@example.net\"\ntls = {{ cert = \"list.crt\", key = \"list.key\" }}\n"
        )
    };
    let mut node = Node::new(&says("The First"));
    let renew = |authority: &Authority, node: &Node| {
        authority.write_server(&["egress.example.net"], &node.path("list.crt"), &node.path("list.key"));
    };
    renew(&first, &node);
    let (code, _, told) = crate::node::run(&["check", "--config", "egressd.toml"], node.directory.path());
    assert_eq!(code, Some(0), "{told}");
    node.start();
    let ask = |from, authority: &Authority, before: &'static str, path: &str| {
        tokio::task::block_in_place(|| over_tls(from, publish, authority, before, path))
    };
    for (from, before, wanted) in [
        (DIRECT, "", Some("127.0.10.1")),
        (PROXY, "PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n", Some("192.0.2.7")),
        (PROXY, "PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n", Some("2001:db8::7")),
        (PROXY, "PROXY UNKNOWN\r\n", Some("127.0.9.1")),
        // Who is a proxy says for whom, and nobody else does.
        (PROXY, "", None),
        (DIRECT, "PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n", None),
    ] {
        let answer = ask(from, &first, before, "/whoami");
        let body = answer.as_deref().map(|answer| body_of(answer).trim_end());
        assert_eq!(body, wanted, "{from:?} {before:?}: {}", node.log());
    }
    // In the clear, and told so.
    let plain = tokio::task::block_in_place(|| {
        let mut stream = connected(DIRECT, publish);
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer).expect("an answer")
    });
    assert!(plain.starts_with("HTTP/1.1 400 ") && plain.contains("this port speaks TLS"), "{plain}");
    let page = ask(DIRECT, &first, "", "/").expect("the page");
    assert!(page.contains("requests of The First come from") && page.contains("mailto:abuse@example.net"), "{page}");
    assert!(page.contains("<td>127.0.0.21<td>active"), "{page}");
    let feed = ask(DIRECT, &first, "", "/public-ips.atom").expect("the feed");
    assert!(feed.contains("<title>127.0.0.22 is on the list</title>"), "{feed}");

    // A reload takes the certificate and what is said; one that cannot be used changes nothing.
    let reload = async |result: &str| {
        node.signal(nix::sys::signal::Signal::SIGHUP);
        let started = Instant::now();
        while node.metric(&format!("egressd_config_reloads_total{{result=\"{result}\"}}")).await != Some(1.0) {
            assert!(started.elapsed() < PATIENCE, "{}", node.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let text = std::fs::read_to_string(node.config()).expect("the configuration");
    std::fs::write(node.config(), text.replace("The First", "The Second")).expect("written");
    renew(&second, &node);
    reload("ok").await;
    assert_eq!(ask(DIRECT, &first, "", "/"), None);
    let page = ask(DIRECT, &second, "", "/").expect("the page");
    assert!(page.contains("requests of The Second come from"), "{page}");
    std::fs::write(node.path("list.key"), "nothing").expect("written");
    reload("refused").await;
    assert!(ask(DIRECT, &second, "", "/").is_some(), "{}", node.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_appliances_list_is_a_reflector() {
    let publish = free_port();
    let _reflector = Node::started(&format!("[publish]\nlisten = \"{publish}\"\n"));
    let verify = format!("[egress.verify]\nreflectors = [\"http://{publish}/whoami\"]\n");
    let node = Node::new(&verify);
    let config = node.config().display().to_string();
    let directory = node.directory.path().to_owned();
    let asks = move || crate::node::run(&["ips", "--config", &config, "--verify"], &directory);
    let (code, table, errors) = tokio::task::spawn_blocking(asks).await.expect("egressd");
    assert_eq!((code, errors.as_str()), (Some(0), ""), "{table}");
    let verified = |line: &&str| line.ends_with("verified") && line.starts_with("127.0.0.2");
    assert_eq!(table.lines().filter(verified).count(), 3, "{table}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_was_not_announced_in_time_starts_nothing_and_is_not_reloaded() {
    let publish = free_port();
    let mut node = Node::started(&format!("[publish]\nlisten = \"{publish}\"\n"));
    let good = std::fs::read_to_string(node.path("public-ips.txt")).expect("the list");
    let served = tokio::task::spawn_blocking(move || list([127, 0, 10, 1], publish)).await.expect("the list");
    let config = node.config().display().to_string();
    let mut refused = 0.0;
    for (line, told) in [
        ("127.0.0.22 announced=2031-01-01 active=2031-01-07", "6d of notice, less than egress.notice (7d)"),
        ("127.0.0.22 active=2999-01-01", "its notice is unknown"),
        ("", "127.0.0.22 is not in the published file"),
    ] {
        std::fs::write(node.path("public-ips.txt"), good.replace("127.0.0.22", line)).expect("the list");
        for command in ["check", "serve"] {
            let (code, out, errors) = crate::node::run(&[command, "--config", &config], node.directory.path());
            assert_eq!(code, Some(2), "{command} {line}: {out}{errors}");
            assert!(errors.contains(told), "{command} {line}: {errors}");
        }
        refused += 1.0;
        node.signal(nix::sys::signal::Signal::SIGHUP);
        let started = Instant::now();
        while node.metric("egressd_config_reloads_total{result=\"refused\"}").await != Some(refused) {
            assert!(started.elapsed() < PATIENCE, "{}", node.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Its lines are written by a thread of their own.
        while !node.log().contains(told) {
            assert!(started.elapsed() < PATIENCE, "{}", node.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let now = tokio::task::spawn_blocking(move || list([127, 0, 10, 1], publish)).await.expect("the list");
        assert_eq!(body_of(&now), body_of(&served));
    }
    node.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(node.ended(), Some(0));
}

fn body_of(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").expect("an answer").1
}
