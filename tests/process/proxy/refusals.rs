//! What no tunnel may reach. Behind every target there is a listener that would tell of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::rr::RecordType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{answer, connect, counted, echo, echo_on, in_time, logged, node_with, started, tunnel};
use crate::name_server::{NameServer, Reply, address};
use crate::node::{Node, free_port};

/// A node without any exception, with name servers of its own.
fn strict(names: SocketAddr, keys: &str) -> (Node, SocketAddr) {
    let (mut node, proxy) = node_with("", "");
    let text = format!(
        "node = \"test\"\n[api]\nlisten = \"{}\"\n[metrics]\nlisten = \"{}\"\n[[egress.source]]\npublic = \"127.0.0.21\"\n\
         [dns]\nservers = [\"{names}\"]\n[store]\npath = \"store\"\nkey_file = \"key\"\n[proxy]\nlisten = \"{proxy}\"\n{keys}",
        node.api, node.metrics
    );
    std::fs::write(node.config(), text).unwrap();
    node.start();
    (node, proxy)
}

/// Every address of this host, in both families, on one port.
async fn everywhere() -> (u16, super::Came, super::Came) {
    loop {
        let v4 = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = v4.local_addr().unwrap().port();
        let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
        socket.set_only_v6(true).unwrap();
        socket.set_nonblocking(true).unwrap();
        if socket.bind(&SocketAddr::from(([0_u16; 8], port)).into()).is_ok() && socket.listen(64).is_ok() {
            let v6 = TcpListener::from_std(socket.into()).unwrap();
            return (port, echo_on(v4).1, echo_on(v6).1);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_this_host_is_reached_under_any_spelling() {
    let names = NameServer::start(|asked| match (&*asked.name, asked.kind) {
        ("inside.attacker.net", RecordType::A) => Reply::Records(vec![address(&asked.name, 60, "127.0.0.1")]),
        ("mixed.attacker.net", RecordType::A) => {
            Reply::Records(vec![address(&asked.name, 60, "127.0.0.1"), address(&asked.name, 60, "1.1.1.1")])
        }
        ("meta.attacker.net", RecordType::A) => Reply::Records(vec![address(&asked.name, 60, "169.254.169.254")]),
        _ => Reply::Records(Vec::new()),
    })
    .await;
    let (_node, proxy) = strict(names.address(), "");
    let (port, v4, v6) = everywhere().await;
    for (host, told) in [
        ("127.0.0.1", "403 policy_address"),
        ("127.0.0.1.", "403 policy_address"),
        ("127.1", "403 policy_address"),
        ("2130706433", "403 policy_address"),
        ("0x7f000001", "403 policy_address"),
        ("0x7f.1", "403 policy_address"),
        ("0177.0.0.1", "403 policy_address"),
        ("017700000001", "403 policy_address"),
        ("00000000177.0.0.1", "403 policy_address"),
        ("0", "403 policy_address"),
        ("0.0.0.0", "403 policy_address"),
        ("127.0.0.21", "403 policy_address"),
        ("[::1]", "403 policy_address"),
        ("[::]", "403 policy_address"),
        ("[::ffff:127.0.0.1]", "403 policy_address"),
        ("[::127.0.0.1]", "403 policy_address"),
        ("[64:ff9b::7f00:1]", "403 policy_address"),
        ("[::ffff:0:127.0.0.1]", "403 policy_address"),
        ("169.254.43518", "403 policy_metadata"),
        ("169.254.169.254", "403 policy_metadata"),
        ("[fd00:ec2::254]", "403 policy_metadata"),
        ("localhost", "403 policy_name"),
        ("LOCALHOST.", "403 policy_name"),
        ("x.localhost", "403 policy_name"),
        ("metadata.google.internal", "403 policy_name"),
        ("inside.attacker.net", "403 policy_address"),
        ("mixed.attacker.net", "403 policy_mixed"),
        ("meta.attacker.net", "403 policy_metadata"),
        ("localhost..", "403 policy_url"),
        ("127.0.0.1..", "403 policy_url"),
        ("a..b", "403 policy_url"),
        ("user:pw@127.0.0.1", "403 policy_url"),
        ("example.com@127.0.0.1", "403 policy_url"),
    ] {
        let (refused, _) = connect(proxy, &format!("{host}:{port}"), "").await;
        assert_eq!(refused.told(), told, "{host}: {}", refused.head);
    }
    // What no parser of HTTP reads as a target, or what is more than one.
    for target in [
        format!("127.0.0.1:{port}/"),
        format!("http://127.0.0.1:{port}"),
        format!("/127.0.0.1:{port}"),
        format!("[fe80::1%25lo]:{port}"),
        format!("[fe80::1%lo]:{port}"),
        format!("example.com\\@127.0.0.1:{port}"),
        format!("%6c%6fcalhost:{port}"),
        "127.0.0.1".to_owned(),
        "127.0.0.1:".to_owned(),
        "127.0.0.1:65536".to_owned(),
        format!("127.0.0.1:+{port}"),
        format!("127.0.0.1:{port}:{port}"),
    ] {
        let (refused, _) = connect(proxy, &target, "").await;
        assert!([400, 403].contains(&refused.status), "{target}: {}", refused.head);
    }
    assert!(v4.all().is_empty() && v6.all().is_empty(), "{:?} {:?}", v4.all(), v6.all());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_denied_range_is_denied_to_tunnels_at_both_of_its_ends() {
    let names = free_port();
    let (_node, proxy) = strict(names, "");
    let v4 = "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 \
              192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 \
              203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 255.255.255.255/32 168.63.129.16/32";
    let v6 = "::/128 ::1/128 ::ffff:10.0.0.0/104 64:ff9b:1::/48 100::/64 2001::/23 2001:db8::/32 2002::/16 2620:4f:8000::/48 \
              3fff::/20 3ffe::/16 5f00::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8";
    let mut asked = 0;
    for network in v4.split_whitespace().chain(v6.split_whitespace()) {
        let network: ipnet::IpNet = network.parse().unwrap();
        for address in [network.network(), network.broadcast()] {
            let mut forms = vec![SocketAddr::new(address, 443)];
            if let IpAddr::V4(v4) = address {
                forms.push(SocketAddr::new(v4.to_ipv6_mapped().into(), 443));
                let [a, b, c, d] = v4.octets();
                let nat64 = [0x64, 0xff9b, 0, 0, 0, 0, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
                forms.push(SocketAddr::from((nat64, 443)));
            }
            for form in forms {
                let (refused, _) = connect(proxy, &form.to_string(), "").await;
                let denied = ["403 policy_address", "403 policy_metadata"].contains(&refused.told().as_str());
                assert!(denied, "{form}: {}", refused.head);
                asked += 1;
            }
        }
    }
    assert!(asked > 100, "{asked}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_listeners_are_nobodys_destination_though_loopback_is_open() {
    let (node, proxy) = started("", "");
    let (receiver, _) = echo().await;
    drop(tunnel(proxy, &receiver.to_string()).await);
    for listener in [node.api, node.metrics, proxy] {
        let port = listener.port();
        for host in ["127.0.0.1", "127.1", "2130706433", "[::ffff:127.0.0.1]"] {
            let (refused, _) = connect(proxy, &format!("{host}:{port}"), "").await;
            assert_eq!(refused.told(), "403 policy_self", "{host}:{port}: {}", refused.head);
        }
    }
    // The configured name server, too.
    assert_eq!(connect(proxy, "127.0.0.1:53", "").await.0.told(), "403 policy_port");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_of_other_services_are_closed_to_tunnels() {
    let (_node, proxy) = started("", "");
    for port in [0, 22, 25, 53, 110, 465, 587, 2375, 3306, 5432, 6379, 6667, 9200, 11211, 27017, 1023] {
        let (refused, _) = connect(proxy, &format!("127.0.0.1:{port}"), "").await;
        assert_eq!(refused.told(), "403 policy_port", "{port}: {}", refused.head);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_behind_a_refused_request_is_read_by_nobody() {
    let (_node, proxy) = started("", "");
    let (receiver, came) = echo().await;
    let good = format!("CONNECT {receiver} HTTP/1.1\r\nHost: {receiver}\r\n\r\nsmuggled");
    for refused in [
        "CONNECT 127.0.0.1:25 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        format!("CONNECT {receiver} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"),
        format!("CONNECT {receiver} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        format!("GET https://{receiver}/ HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"),
        "GET http://127.0.0.1:25/ HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        format!("TRACE http://{receiver}/ HTTP/1.1\r\nHost: x\r\n\r\n"),
        format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", good.len()),
        "nonsense\r\n\r\n".to_owned(),
    ] {
        let mut stream = TcpStream::connect(proxy).await.unwrap();
        stream.write_all(format!("{refused}{good}{good}").as_bytes()).await.unwrap();
        let told = answer(&mut stream).await;
        assert!((400..500).contains(&told.status), "{refused}: {}", told.head);
        let mut rest = told.rest;
        // The whole answer, and then the end: no second one, and no reset that takes it away.
        in_time(stream.read_to_end(&mut rest)).await.unwrap_or_else(|error| panic!("{refused}: {error}"));
        assert!(!String::from_utf8_lossy(&rest).contains("HTTP/1.1"), "{refused}");
    }
    assert!(came.all().is_empty(), "{:?}", came.all());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_never_ends_is_let_go() {
    let (_node, proxy) = started("", "");
    let mut slow = TcpStream::connect(proxy).await.unwrap();
    slow.write_all(b"CONNECT 127.0.0.1:80 HTTP/1.1\r\n").await.unwrap();
    let mut silent = TcpStream::connect(proxy).await.unwrap();
    let (mut read, mut write) = slow.split();
    let dripping = async {
        let begun = std::time::Instant::now();
        while write.write_all(b"X-A: b\r\n").await.is_ok() {
            assert!(begun.elapsed() < crate::node::PATIENCE);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        std::future::pending::<()>().await;
    };
    // Whatever is said of it: the connection ends.
    let ended = async {
        let mut said = Vec::new();
        let _ = read.read_to_end(&mut said).await;
    };
    tokio::select! {
        () = in_time(ended) => {}
        () = dripping => {}
    }
    let _ = in_time(silent.read_to_end(&mut Vec::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_a_name_has_only_at_the_second_look_is_never_dialled() {
    // At first a public one, that nobody here answers at; then ours.
    let names = NameServer::start(|asked| match asked.kind {
        RecordType::A if asked.before == 0 => Reply::Records(vec![address(&asked.name, 0, "127.0.0.99")]),
        RecordType::A => Reply::Records(vec![address(&asked.name, 0, "127.0.0.1")]),
        _ => Reply::Records(Vec::new()),
    })
    .await;
    let (port, came, _) = everywhere().await;
    let (mut node, proxy) = node_with("", "");
    let text = std::fs::read_to_string(node.config()).unwrap();
    let text = text.replace("127.0.0.1:53", &names.address().to_string()).replace("127.0.0.0/8", "127.0.0.99/32");
    std::fs::write(node.config(), text).unwrap();
    node.start();
    let mut first = tunnel(proxy, &format!("rebinds.attacker.net:{port}")).await;
    first.write_all(b"to the first").await.unwrap();
    in_time(first.read_u8()).await.unwrap();
    let (second, _) = connect(proxy, &format!("rebinds.attacker.net:{port}"), "").await;
    assert_eq!(second.told(), "403 policy_address", "{}", second.head);
    let reached: Vec<_> = came.all().into_iter().map(|(_, bytes)| bytes).collect();
    assert_eq!(reached, [b"to the first".to_vec()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_reached_is_told_why() {
    let names = NameServer::start(|asked| match &*asked.name {
        "silent.example.net" => Reply::Silence,
        "gone.example.net" => Reply::Code(hickory_proto::op::ResponseCode::NXDomain, Vec::new()),
        _ => Reply::Records(Vec::new()),
    })
    .await;
    let (mut node, proxy) = node_with("connect_deadline = \"700ms\"", "");
    let text = std::fs::read_to_string(node.config()).unwrap();
    std::fs::write(node.config(), text.replace("127.0.0.1:53", &names.address().to_string())).unwrap();
    node.start();
    // One whose queue is full answers no more connects.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    full.listen(0).unwrap();
    let full = (full.local_addr().unwrap().as_socket().unwrap(), full);
    let mut queued = Vec::new();
    for _ in 0..3 {
        let queues = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        queues.set_nonblocking(true).unwrap();
        let _ = queues.connect(&full.0.into());
        queued.push(queues);
    }
    let closed = free_port();
    for (target, told) in [
        (closed.to_string(), "502 connection_refused"),
        (full.0.to_string(), "504 timeout"),
        ("silent.example.net:443".to_owned(), "504 timeout"),
        ("gone.example.net:443".to_owned(), "502 dns_not_found"),
        ("empty.example.net:443".to_owned(), "502 dns_no_address"),
    ] {
        let (refused, mut stream) = connect(proxy, &target, "").await;
        assert_eq!(refused.told(), told, "{target}: {}", refused.head);
        let mut body = refused.rest;
        in_time(stream.read_to_end(&mut body)).await.unwrap();
        let problem: serde_json::Value = serde_json::from_slice(&body).expect("problem details");
        assert_eq!(problem["code"], told.split_once(' ').unwrap().1, "{problem}");
        let words = problem["detail"].as_str().unwrap();
        assert!(words.contains("127.0.0.1") == target.contains("127.0.0.1"), "{words}");
    }
    counted(&node, "egressd_tunnels_total{end=\"refused\",code=\"timeout\"}", 2.0).await;
    logged(&node, &["tunnel ended", "dns_not_found", "gone.example.net"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_cap_is_told_with_when_to_try_again() {
    let keys = "tunnels = 3\ntunnels_per_tenant = 2\ntunnels_per_tenant_destination = 1";
    let (node, proxy) = started(keys, "");
    let (mut receivers, mut held) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        receivers.push(echo().await.0.to_string());
    }
    let tenant = |name: &str| super::basic(name, "x");
    let mut open = async |who: &str, to: &String| {
        let (told, stream) = connect(proxy, to, &tenant(who)).await;
        if told.status == 200 {
            held.push(stream);
        } else {
            assert!(told.header("retry-after").is_some(), "{}", told.head);
        }
        told.told()
    };
    assert_eq!(open("a", &receivers[0]).await, "200 -");
    assert_eq!(open("a", &receivers[0]).await, "429 tenant_full");
    assert_eq!(open("a", &receivers[1]).await, "200 -");
    assert_eq!(open("a", &receivers[2]).await, "429 tenant_full");
    assert_eq!(open("b", &receivers[0]).await, "200 -");
    assert_eq!(open("b", &receivers[3]).await, "429 node_full");
    // Each tenant reads of it.
    for (tenant, words) in [("a", "to this host and port"), ("b", "this node has as many")] {
        let begun = std::time::Instant::now();
        loop {
            let headers = [("egressd-tenant", tenant)];
            let read = crate::node::call(node.api, "GET", "/v1/tunnels?end=refused", "", &headers).await;
            let (_, page) = read.unwrap();
            let all = page["tunnels"].as_array().unwrap();
            let told = |one: &serde_json::Value| one["message"].as_str().is_some_and(|told| told.contains(words));
            if let Some(one) = all.iter().find(|one| told(one)) {
                assert_eq!((&one["code"], &one["host"]), (&serde_json::Value::Null, &"127.0.0.1".into()), "{page}");
                break;
            }
            assert!(begun.elapsed() < crate::node::PATIENCE, "{page}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    for (code, times) in [("tenant_full", 2.0), ("node_full", 1.0)] {
        counted(&node, &format!("egressd_tunnels_total{{end=\"refused\",code=\"{code}\"}}"), times).await;
    }
    // A place comes back with its tunnel's end.
    held.remove(0);
    let begun = std::time::Instant::now();
    while connect(proxy, &receivers[0], &tenant("a")).await.0.status != 200 {
        assert!(begun.elapsed() < crate::node::PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_explained_of_a_tunnel_is_what_becomes_of_it() {
    let (node, proxy) = started("", "");
    let (receiver, came) = echo().await;
    for (target, verdict, code) in [
        (receiver.to_string(), "allowed", None),
        (format!("127.0.0.1:{}", proxy.port()), "blocked", Some("policy_self")),
        ("169.254.169.254:80".to_owned(), "blocked", Some("policy_metadata")),
        ("127.0.0.1:25".to_owned(), "blocked", Some("policy_port")),
        ("example.com@127.0.0.1:443".to_owned(), "blocked", Some("policy_url")),
    ] {
        let asked = serde_json::json!({ "method": "CONNECT", "url": target }).to_string();
        let (status, said) = node.call("POST", "/v1/explain", &asked).await.unwrap();
        assert_eq!((status, said["verdict"].as_str()), (200, Some(verdict)), "{said}");
        assert_eq!((said["method"].as_str(), said["code"].as_str()), (Some("CONNECT"), code), "{said}");
        // As the file says it, beside the node.
        let (exit, out, err) = crate::node::run(
            &["explain", "CONNECT", &target, "--config", "egressd.toml", "--json"],
            node.directory.path(),
        );
        assert_eq!(exit, Some(i32::from(code.is_some())), "{out} {err}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&out).unwrap()["code"], said["code"], "{out}");
        let (met, _) = connect(proxy, &target, "").await;
        assert_eq!(met.header("egressd-code"), code, "{target}: {}", met.head);
    }
    assert!(came.all().iter().all(|(_, bytes)| bytes.is_empty()));
    let asked = serde_json::json!({ "method": "CONNECT", "url": "https://example.com/" }).to_string();
    let (_, said) = node.call("POST", "/v1/explain", &asked).await.unwrap();
    assert_eq!(said["code"], "policy_url", "{said}");
}
