//! Tunnels of the forward proxy: they leave from published addresses alone, however they end, and leave ports to sends.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::lab::{API, Lab, PATIENCE, Receiver, WORLD_V4, WORLD_V6, end_of, inside, list, published, sh};

const SOURCES: [u8; 3] = [11, 12, 13];
const PROXY: &str = "127.0.0.1:8703";

fn lab(sources: &[u8], more: &str) -> Lab {
    let mut lab = Lab::new(sources);
    lab.write_list(&list(sources));
    lab.configure(sources, &["v4", "v6"], &configuration(more));
    lab.start();
    lab
}

fn configuration(more: &str) -> String {
    format!("{more}[proxy]\nlisten = \"{PROXY}\"\nconnect_deadline = \"60s\"\n")
}

/// Asks for a tunnel: the status of the answer, its head, and what became of it.
fn connect(lab: &Lab, tenant: &str, target: &str) -> (u16, String, TcpStream) {
    let mut stream = inside(&lab.app, || TcpStream::connect(PROXY).expect("the proxy listens"));
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let user = base64(&format!("{tenant}:x"));
    let head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: Basic {user}\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("written");
    let head = head_of(&mut stream);
    (head[9..12].parse().expect("a status"), head, stream)
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

fn head_of(stream: &mut TcpStream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    String::from_utf8(head).expect("a head of text")
}

/// A request through it.
fn ask(stream: &mut TcpStream, path: &str) {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).expect("written");
    assert!(head_of(stream).starts_with("HTTP/1.1 200"));
}

fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket");
    drop(stream);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_tunnel_arrives_but_from_published_addresses() {
    let lab = lab(&SOURCES, "");
    let capture = lab.capture();
    lab.admit_the_list().await;
    let (v4, v6) = (lab.receiver(WORLD_V4, 8080).await, lab.receiver(WORLD_V6, 8080).await);
    let targets = [format!("{WORLD_V4}:8080"), format!("[{WORLD_V6}]:8080")];
    let mut kept = Vec::new();
    for number in 0..24 {
        for target in &targets {
            let (status, head, mut stream) = connect(&lab, &format!("t{number}"), target);
            assert_eq!(status, 200, "{head}");
            ask(&mut stream, "/tunnel");
            match number % 4 {
                0 => stream.shutdown(Shutdown::Write).expect("a socket"),
                1 => reset(stream),
                // Half a request, and then nothing.
                2 => stream.write_all(b"GET ").expect("written"),
                _ => kept.push(stream),
            }
        }
        // Nobody listens there.
        assert_eq!(connect(&lab, &format!("t{number}"), &format!("{WORLD_V4}:8089")).0, 502);
    }
    let seen =
        |receiver: &Receiver| receiver.seen("/tunnel").iter().map(|peer| peer.ip()).collect::<BTreeSet<IpAddr>>();
    assert_eq!(seen(&v4).union(&seen(&v6)).copied().collect::<BTreeSet<_>>(), published(&SOURCES));

    // Addresses that go while tunnels are open; a reload that takes them out; a death, and what the kernel says then.
    lab.unplumb(12);
    for stream in &mut kept {
        let _ = stream.write_all(b"GET /late HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    lab.configure(&[11, 13], &["v4", "v6"], &configuration(""));
    lab.reload();
    for target in &targets {
        let (status, head, mut stream) = connect(&lab, "late", target);
        assert_eq!(status, 200, "{head}");
        ask(&mut stream, "/last");
        kept.push(stream);
    }
    lab.signal(Signal::SIGKILL);
    for mut stream in kept {
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert_eq!(lab.strangers(), 0);
    assert_eq!(capture.sources(), published(&SOURCES));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_tunnels_leaves_a_quarter_of_the_ports_to_sends_while_they_are_in_time_wait() {
    // A lab for each, as the callers of the proxy have no more ports than it.
    for (address, host) in [(WORLD_V4, WORLD_V4.to_owned()), (WORLD_V6, format!("[{WORLD_V6}]"))] {
        let mut lab = Lab::new(&[11]);
        lab.write_list(&list(&[11]));
        lab.configure(&[11], &["v4", "v6"], &configuration("[delivery]\nkeep_alive = \"0s\"\n"));
        sh(&format!(
            "ip netns exec {} sysctl -qw net.ipv4.ip_local_port_range='40000 40019' net.ipv4.tcp_tw_reuse=0",
            lab.app
        ));
        lab.start();
        lab.admit_the_list().await;
        let mut caller = lab.caller(API).await;
        let receiver = lab.receiver(address, 8080).await;
        let mut opened = 0;
        let refused = loop {
            let (status, head, mut stream) = connect(&lab, "acme", &format!("{host}:8080"));
            if status != 200 {
                break head;
            }
            opened += 1;
            assert!(opened <= 20, "all of them");
            // Closed from here first: the waiting is ours.
            ask(&mut stream, "/tunnel");
            stream.shutdown(Shutdown::Write).expect("a socket");
            stream.read_to_end(&mut Vec::new()).expect("its end");
        };
        assert_eq!(opened, 15);
        assert!(refused.starts_with("HTTP/1.1 502") && refused.contains("source_ports_exhausted"), "{refused}");
        for number in 0..5 {
            let record = caller.get("acme", &format!("http://{host}:8080/{number}")).await;
            assert_eq!(end_of(&record), "delivered", "{record}");
        }
        let record = caller.get("acme", &format!("http://{host}:8080/one-too-many")).await;
        assert_eq!(end_of(&record), "source_ports_exhausted", "{record}");
        assert_eq!(receiver.seen("/tunnel").len(), 15);
    }
}
