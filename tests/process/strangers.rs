//! Callers who have not said who they are, by the thousand: those with a token are answered all the same.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::json;

use crate::node::{Node, PATIENCE, alone, call};

/// More than there are places for strangers.
pub const MANY: usize = 1_500;
const TOKEN: &str = "a-token-of-the-tests";

/// A client whose token is the tenant's name.
pub fn client_of(tenant: &str) -> String {
    let digest: String = egressd::redact::sha256(tenant.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "[[api.client]]\nname = \"{tenant}\"\ntoken_sha256 = \"{digest}\"\ntenant = \"{tenant}\"\nscopes = [\"submit\", \"read\"]\n"
    )
}

/// What a caller sends once, and nothing after it.
const KINDS: &[(&str, &[u8])] = &[
    ("silence", b""),
    ("half a head", b"GET /v1/sends HTTP/1.1\r\nHost: 127.0.0.1\r\nX-"),
    ("a refused call", b"GET /v1/sends HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
    ("a refused call's body", b"POST /v1/sends HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999\r\n\r\n["),
    ("HTTP/2 and no call", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"),
];

/// Keeps so many connections open that have sent this, opening anew what is closed, until it is stopped.
fn flood(address: SocketAddr, sent: &'static [u8], stop: Arc<AtomicBool>, opened: Arc<AtomicUsize>) {
    let mut open: Vec<TcpStream> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        if open.len() >= MANY {
            open.remove(0);
        }
        let Ok(mut stream) = TcpStream::connect(address) else { continue };
        let _ = stream.write_all(sent);
        open.push(stream);
        opened.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_with_a_token_is_answered_whatever_strangers_do() {
    let _alone = alone().await;
    let mut node = Node::new("");
    node.configure(&client_of(TOKEN));
    node.start();
    let bearer = format!("Bearer {TOKEN}");
    let send = json!({ "method": "GET", "url": "http://127.0.0.1:1/" }).to_string();
    // Kept from before the flood: strangers do not cost a client its place.
    let mut kept = TcpStream::connect(node.api).expect("it listens");
    let list = format!("GET /v1/sends?limit=1 HTTP/1.1\r\nHost: {}\r\nAuthorization: {bearer}\r\n\r\n", node.api);
    let mut page = [0; 16 * 1024];
    kept.write_all(list.as_bytes()).expect("written");
    assert!(kept.read(&mut page).expect("an answer") > 0);
    for (kind, sent) in KINDS {
        let (stop, opened) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let flooding = {
            let (stop, opened, address) = (stop.clone(), opened.clone(), node.api);
            std::thread::spawn(move || flood(address, sent, stop, opened))
        };
        let started = Instant::now();
        while opened.load(Ordering::Relaxed) < MANY {
            assert!(started.elapsed() < PATIENCE, "{kind}: the flood does not come to its height");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        let mut slowest = std::time::Duration::ZERO;
        for _ in 0..20 {
            let asked = Instant::now();
            let headers = [("authorization", bearer.as_str())];
            let answer = tokio::time::timeout(PATIENCE, call(node.api, "POST", "/v1/sends", &send, &headers)).await;
            let (status, answer) = answer.expect("in time").unwrap_or_else(|| panic!("{kind}: turned away"));
            assert_eq!(status, 202, "{kind}: {answer}");
            slowest = slowest.max(asked.elapsed());
            kept.write_all(list.as_bytes()).expect("written");
            assert!(kept.read(&mut page).expect("an answer") > 0, "{kind}: a client lost its place");
        }
        stop.store(true, Ordering::Relaxed);
        flooding.join().expect("no panic");
        println!("{kind}: {} connections, slowest answer {slowest:?}", opened.load(Ordering::Relaxed));
    }
}
