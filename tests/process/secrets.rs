//! Secrets planted in every field of a send reach the receiver and nothing else: no answer, log line, metric or file of
//! the store, neither while the send waits nor once it is done. So do those that a receiver answers.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::node::{Node, PATIENCE, call_text, egressd, free_port};

const SECRETS: [&str; 8] = [
    "s3cret-password",
    "s3cret-authorization",
    "s3cret-cookie",
    "s3cret-api-key",
    "s3cret-own-header",
    "s3cret-member",
    "s3cret-userinfo",
    "s3cret-body",
];
/// `leia:s3cret-password`, as Basic writes it.
const BASIC: &str = "bGVpYTpzM2NyZXQtcGFzc3dvcmQ";

fn every_file(directory: &Path, found: &mut Vec<(String, Vec<u8>)>) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            every_file(&path, found);
        } else {
            found.push((path.display().to_string(), std::fs::read(&path).expect("a readable file")));
        }
    }
}

fn none_in(place: &str, bytes: &[u8]) {
    for secret in SECRETS.iter().chain([&BASIC]) {
        let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "{secret} stands in {place}");
    }
}

async fn nowhere(node: &Node, ids: &[(&str, String)]) {
    let mut files = Vec::new();
    every_file(&node.path("store"), &mut files);
    assert!(files.iter().any(|(name, bytes)| name.contains("pieces") && !bytes.is_empty()));
    for (name, bytes) in files {
        none_in(&name, &bytes);
    }
    none_in("the log", node.log().as_bytes());
    let (_, metrics) = call_text(node.metrics, "GET", "/metrics", "", &[]).await.expect("metrics");
    none_in("/metrics", metrics.as_bytes());
    for (tenant, id) in ids {
        for path in [
            format!("/v1/sends/{id}"),
            format!("/v1/sends/{id}/har"),
            "/v1/sends".to_owned(),
            "/v1/executions/e".to_owned(),
            "/v1/tenants".to_owned(),
            "/".to_owned(),
        ] {
            let answer = call_text(node.api, "GET", &path, "", &[("egressd-tenant", tenant)]).await;
            none_in(&path, answer.expect("an answer").1.as_bytes());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_reach_the_receiver_and_nothing_else() {
    let receiver = free_port();
    let _bin = tokio::process::Command::from(egressd())
        .args(["bin", "--listen", &receiver.to_string()])
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut node = Node::started(
        "[redact]\nheaders = [\"x-own\"]\njson_pointers = [\"/deep/member\"]\n[[tenant]]\nid = \"quiet\"\nkeep_bodies = false\n",
    );
    let url = format!("http://{receiver}/in");
    let planted = [
        (
            "default",
            json!({
                "method": "POST", "url": url, "auth": { "username": "leia", "password": SECRETS[0] },
                "headers": { "Cookie": SECRETS[2], "X-Api-Key": SECRETS[3], "X_Own": SECRETS[4] },
                "data": { "deep": { "member": SECRETS[5] }, "open": 1 },
            }),
        ),
        ("default", json!({ "method": "GET", "url": url, "headers": { "authorization": SECRETS[1] } })),
        ("default", json!({ "method": "GET", "url": format!("http://user:{}@{receiver}/", SECRETS[6]) })),
        ("quiet", json!({ "method": "POST", "url": url, "data": SECRETS[7] })),
    ];
    let mut ids = Vec::new();
    for (tenant, send) in &planted {
        let headers = [("egressd-tenant", *tenant)];
        let answer = call_text(node.api, "POST", "/v1/executions/e/sends", &send.to_string(), &headers).await;
        let (status, answer) = answer.expect("an answer");
        assert_eq!(status, 202, "{answer}");
        none_in("the answer to a submit", answer.as_bytes());
        let record: Value = serde_json::from_str(&answer).unwrap();
        ids.push((*tenant, record["id"].as_str().unwrap().to_owned()));
    }
    let (_, first) = call_text(node.api, "GET", &format!("/v1/sends/{}", ids[0].1), "", &[]).await.unwrap();
    assert!(first.contains("[redacted hmac:"), "{first}");
    nowhere(&node, &ids).await;
    node.kill();
    node.start();
    nowhere(&node, &ids).await;

    for tenant in ["default", "quiet"] {
        let finished = call_text(node.api, "POST", "/v1/executions/e/finish", "", &[("egressd-tenant", tenant)]).await;
        assert_eq!(finished.expect("an answer").0, 200);
    }
    for (tenant, id) in &ids {
        let path = format!("/v1/sends/{id}?wait=30");
        let (_, record) = call_text(node.api, "GET", &path, "", &[("egressd-tenant", tenant)]).await.unwrap();
        assert!(record.contains("\"state\":\"done\""), "{record}");
    }
    nowhere(&node, &ids).await;
    node.kill();
    node.start();
    nowhere(&node, &ids).await;

    let (_, seen) = call_text(receiver, "GET", "/_requests", "", &[]).await.unwrap();
    for secret in [BASIC, SECRETS[1], SECRETS[2], SECRETS[3], SECRETS[4], SECRETS[5], SECRETS[7]] {
        assert!(seen.contains(secret), "{secret} did not reach the receiver: {seen}");
    }
}

/// What an operator names as secret once it was seen: it is seen no more, in whatever was kept before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_hides_what_was_accepted_before_it_too() {
    const SECRET: &str = "s3cret-of-a-session";
    let answer = format!("{{\"k\": \"{SECRET}\"}}");
    let head = format!("HTTP/1.1 200 OK\r\nx-sess: {SECRET}\r\ncontent-type: application/json\r\n");
    let whole: &'static str = format!("{head}content-length: {}\r\n\r\n{answer}", answer.len()).leak();
    let receiver = answering_receiver(move |_| whole).await;
    let node = Node::started("");
    let url = format!("http://{receiver}/");
    let send = json!({"method": "POST", "url": url, "headers": {"X-Sess": SECRET}, "data": {"k": SECRET}}).to_string();
    let id_of = |answer: &Value| answer["id"].as_str().expect("an id").to_owned();
    let (_, done) = node.call("POST", "/v1/sends", &send).await.expect("an answer");
    let done = id_of(&done);
    node.done_as("default", &done).await;
    let (_, held) = node.call("POST", "/v1/executions/e/sends", &send).await.expect("an answer");
    let held = id_of(&held);
    let paths = |id: &str| {
        let places = ["/v1/sends", "/v1/executions/e", &format!("/v1/sends?text={SECRET}")].map(str::to_owned);
        [vec![format!("/v1/sends/{id}"), format!("/v1/sends/{id}/har")], places.to_vec()].concat()
    };
    let shows = async |path: &str| {
        let (status, text) = call_text(node.api, "GET", path, "", &[]).await.expect("an answer");
        assert_eq!(status, 200, "{path}: {text}");
        text.contains(SECRET)
    };
    for path in paths(&done) {
        assert!(shows(&path).await, "{path}: nothing is secret yet");
    }
    let text = std::fs::read_to_string(node.config()).expect("the configuration");
    let added = "\n[redact]\nheaders = [\"x-sess\"]\njson_pointers = [\"/k\"]\n";
    std::fs::write(node.config(), text + added).expect("written");
    node.signal(nix::sys::signal::Signal::SIGHUP);
    let started = Instant::now();
    while node.metric("egressd_config_reloads_total{result=\"ok\"}").await != Some(1.0) {
        assert!(started.elapsed() < PATIENCE, "{}", node.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for path in paths(&done).into_iter().chain(paths(&held)) {
        assert!(!shows(&path).await, "{path}");
    }
    assert_eq!(node.call("POST", "/v1/executions/e/finish", "").await.expect("an answer").0, 200);
    node.done_as("default", &held).await;
    for path in paths(&held) {
        assert!(!shows(&path).await, "{path}, after it was sent");
    }
    let found = node.get(&format!("/v1/sends?text={SECRET}")).await;
    assert_eq!(found["sends"], json!([]), "what is hidden is not found");
    let record = node.get(&format!("/v1/sends/{done}")).await;
    for part in ["request", "response"] {
        assert!(record[part]["headers"]["x-sess"][0].to_string().contains("[redacted hmac:"), "{record}");
        assert!(record[part]["body"].to_string().contains("[redacted hmac:"), "{record}");
    }
    assert_eq!(record["request"]["body_sha256"], Value::Null);
    // A resend is of the request as it was.
    let (status, again) = node.call("POST", &format!("/v1/sends/{done}/resend"), "{}").await.expect("an answer");
    assert_eq!(status, 202, "{again}");
    assert!(!again.to_string().contains(SECRET) && !node.log().contains(SECRET), "{again}");
    assert_eq!(node.done_as("default", &id_of(&again)).await["outcome"], "delivered");
}

/// Answers that cannot be read, by path, each with something in it; whether that is of a body.
const BROKEN: [(&str, &str, &str, bool); 7] = [
    ("/no-http", "s3cret-of-no-http {}\r\n", "s3cret-of-no-http", true),
    ("/json", "{\"token\": \"s3cret-of-json\"}", "s3cret-of-json", true),
    ("/chunk", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\ns3cret-of-chunk\r\n", "s3cret-of-chunk", true),
    (
        "/chunk-end",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\noks3cret-of-end\r\n",
        "s3cret-of-end",
        true,
    ),
    ("/cookie", "HTTP/1.1 200 OK\r\nSet-Cookie id=s3cret-of-cookie\r\n\r\n", "s3cret-of-cookie", false),
    ("/broken-cookie", "HTTP/1.1 200 OK\r\nset-cookie: a=b;\r\nid=s3cret-of-broken\r\n\r\n", "s3cret-of-broken", false),
    ("/own", "HTTP/1.1 200 OK\r\n X_Own: s3cret-of-own\r\n\r\n", "s3cret-of-own", false),
];

async fn broken_receiver() -> std::net::SocketAddr {
    answering_receiver(|path| BROKEN.iter().find(|(at, ..)| *at == path).expect("one of them").1).await
}

/// Closes after each answer, which it has by path.
async fn answering_receiver(answer: impl Fn(&str) -> &'static str + Copy + Send + 'static) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.windows(4).any(|window| window == b"\r\n\r\n") {
                    if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let answer = answer(String::from_utf8_lossy(&head).split(' ').nth(1).expect("a path"));
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_of_an_answer_is_quoted_only_where_it_would_have_been_kept() {
    let receiver = broken_receiver().await;
    let node = Node::started("[redact]\nheaders = [\"x-own\"]\n[[tenant]]\nid = \"quiet\"\nkeep_bodies = false\n");
    for (path, _, secret, is_body) in BROKEN {
        for tenant in ["default", "quiet"] {
            let send = json!({ "method": "GET", "url": format!("http://{receiver}{path}") }).to_string();
            let headers = [("egressd-tenant", tenant)];
            let (status, answer) = call_text(node.api, "POST", "/v1/sends", &send, &headers).await.expect("an answer");
            assert_eq!(status, 202, "{answer}");
            let record: Value = serde_json::from_str(&answer).expect("a record");
            let record = node.done_as(tenant, record["id"].as_str().expect("an id")).await;
            assert_eq!(record["error"]["code"], "protocol_error", "{path}: {record}");
            let shown = is_body && tenant == "default";
            assert_eq!(record.to_string().contains(secret), shown, "{path}, {tenant}: {}", record["error"]);
            let message = record["error"]["message"].as_str().expect("a message");
            assert_eq!(message.contains("(what came: "), shown || !is_body, "{path}, {tenant}: {message}");
            assert_eq!(message.contains("[redacted hmac:"), !is_body, "{path}, {tenant}: {message}");
        }
    }
    let (mut files, log) = (Vec::new(), node.log());
    every_file(&node.path("store"), &mut files);
    for (.., secret, is_body) in BROKEN {
        let is_in = |bytes: &[u8]| bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!is_in(log.as_bytes()), "{secret} stands in the log");
        // The one tenant's records have what was of a body.
        let mut places = files.iter().filter(|(_, bytes)| is_in(bytes)).map(|(name, _)| name);
        assert!(is_body || places.next().is_none(), "{secret} stands on disk");
    }
}
