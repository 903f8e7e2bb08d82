//! The commands that ask a running node, with no configuration beside them: by its address and a token.

use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, BufReader};

use crate::node::{Node, PATIENCE, SOURCES, counting_receiver, egressd};

const TOKEN: &str = "the-operators-token";

/// Whoever has [`TOKEN`] may do all of it, for any tenant.
fn clients() -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, TOKEN.as_bytes());
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "[[api.client]]\nname = \"operator\"\ntoken_sha256 = \"{hex}\"\ntenant = \"*\"\n\
         scopes = [\"submit\", \"read\", \"operate\"]\n"
    )
}

/// A person at another machine: an empty directory, the address and the token.
struct Person {
    directory: tempfile::TempDir,
    api: String,
}

impl Person {
    fn at(node: &Node) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("token"), format!("{TOKEN}\n")).unwrap();
        Self { directory, api: format!("http://{}", node.api) }
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = egressd();
        command.args(arguments).current_dir(self.directory.path()).stdin(Stdio::null());
        command.args(["--api", &self.api, "--token-file", "token"]);
        command
    }

    /// Exit code, stdout and stderr.
    async fn runs(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let mut command = self.command(arguments);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_node_is_asked_without_a_configuration() {
    let (receiver, seen) = counting_receiver(Duration::ZERO).await;
    let node = Node::started(&clients());
    let person = Person::at(&node);
    let url = format!("http://{receiver}/hook");

    let (code, out, err) = person.runs(&["explain", "GET", &url, "--tenant", "acme"]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("allowed") && SOURCES.iter().any(|source| out.contains(source)), "{out}");
    let (code, out, _) = person.runs(&["explain", "GET", "http://10.0.0.1/", "--tenant", "acme", "--json"]).await;
    let explained: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &explained["code"]), (Some(1), &"policy_address".into()), "{out}");
    assert_eq!(seen.all().len(), 0, "explaining sends nothing");

    let (code, out, err) = person.runs(&["ips"]).await;
    assert_eq!((code, out.trim()), (Some(0), SOURCES.join("\n").as_str()), "{err}");
    let (code, out, _) = person.runs(&["ips", "--format", "json"]).await;
    let list: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, list["prefixes"].as_array().map(Vec::len)), (Some(0), Some(SOURCES.len())));
    let (code, out, err) = person.runs(&["ips", "--verify"]).await;
    assert_eq!(code, Some(0), "{err}");
    assert!(SOURCES.iter().all(|source| out.contains(source)) && out.contains("USABLE"), "{out}");

    let (code, out, err) = person.runs(&["send", "POST", &url, "-d", "{\"a\":1}", "--wait", "--tenant", "acme"]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("delivered"), "{out}");
    assert_eq!(seen.of("/hook").len(), 1);

    // Without the token: an answer, and not a wait.
    let mut stranger = egressd();
    stranger.args(["explain", "GET", &url, "--api", &person.api]).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || stranger.output().unwrap()).await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("unauthorized"));
    let (code, _, err) = person.runs(&["explain", "GET", &url, "--config", "egressd.toml"]).await;
    assert_eq!(code, Some(2));
    assert!(err.contains("--config") && err.contains("--api"), "a file or a node, not both: {err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspension_tells_what_it_hit_and_is_lifted_by_its_id() {
    let (receiver, seen) = counting_receiver(Duration::ZERO).await;
    let node = Node::started(&clients());
    let person = Person::at(&node);
    let authorization = format!("Bearer {TOKEN}");
    let headers = [("authorization", authorization.as_str()), ("egressd-tenant", "acme")];
    let body = serde_json::json!([
        { "method": "GET", "url": format!("http://{receiver}/a") },
        { "method": "GET", "url": format!("http://{receiver}/b") },
    ]);
    let held = crate::node::call(node.api, "POST", "/v1/executions/run/sends", &body.to_string(), &headers).await;
    assert_eq!(held.unwrap().0, 202);

    let (code, out, _) = person.runs(&["tenants"]).await;
    assert_eq!(code, Some(0));
    let line: Vec<&str> = out.lines().find(|line| line.starts_with("acme")).unwrap().split_whitespace().collect();
    assert_eq!(line[..4], ["acme", "2", "0", "0"], "{out}");

    let reason = ["--reason", "abuse report 1"];
    let (code, out, err) = person.runs(&[&["suspend", "tenant", "acme"], &reason[..]].concat()).await;
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert!(out.contains("every send of tenant acme") && out.contains("2 sends that waited have ended"), "{out}");
    let (code, out, err) = person.runs(&[&["suspend", "tenant", "acmee"], &reason[..]].concat()).await;
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("0 sends that waited") && err.contains("no send of tenant acmee"), "{out}{err}");
    let workflow = ["suspend", "tenant", "acme", "--workflow", "shop"];
    let (code, out, err) = person.runs(&[&workflow, &reason[..]].concat()).await;
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains("names workflow shop") && err.contains("workflow shop"), "{out}{err}");
    let (code, out, _) = person.runs(&[&["suspend", "host", "*.example.com", "--json"], &reason[..]].concat()).await;
    let made: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &made["hit"]), (Some(0), &0.into()), "{out}");
    let (code, _, err) = person.runs(&[&["suspend", "host", "not a host"], &reason[..]].concat()).await;
    assert_eq!(code, Some(2));
    assert!(err.contains("/host"), "{err}");

    let (code, out, _) = person.runs(&["suspensions"]).await;
    assert_eq!((code, out.lines().count()), (Some(0), 5), "{out}");
    let id = made["id"].as_str().unwrap();
    assert!(
        [id, "abuse report 1", "operator", "every send of tenant acme\n"].iter().all(|part| out.contains(part)),
        "{out}"
    );
    let (code, out, _) = person.runs(&["lift", id]).await;
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains("under example.com"), "{out}");
    let (code, _, err) = person.runs(&["lift", id]).await;
    assert_eq!(code, Some(2));
    assert!(err.contains("no such suspension in force"), "{err}");
    let (_, out, _) = person.runs(&["suspensions"]).await;
    assert!(!out.contains(id), "{out}");
    let (_, out, _) = person.runs(&["suspensions", "--all"]).await;
    assert!(out.contains(id) && out.contains("lifted"), "{out}");
    assert_eq!(seen.all().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_begins_with_what_has_ended_since_and_shows_each_once() {
    let (receiver, _) = counting_receiver(Duration::ZERO).await;
    let node = Node::started("");
    let person = Person { api: format!("http://{}", node.api), ..Person::at(&node) };
    let send =
        |path: &str| serde_json::json!({ "method": "GET", "url": format!("http://{receiver}{path}") }).to_string();
    for path in ["/1", "/2", "/3"] {
        node.call("POST", "/v1/sends", &send(path)).await.unwrap();
        node.settled().await;
    }
    let mut tail = tokio::process::Command::from(person.command(&["tail", "--json", "--since", "1h"]))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    let mut seen = Vec::new();
    let mut shown = async || -> String {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
        let record: serde_json::Value = serde_json::from_str(&line).unwrap();
        let url = record["request"]["url"].as_str().unwrap();
        url[url.rfind('/').unwrap()..].to_owned()
    };
    for _ in 0..3 {
        seen.push(shown().await);
    }
    // Now it follows.
    let started = Instant::now();
    node.call("POST", "/v1/sends", &send("/4")).await.unwrap();
    seen.push(shown().await);
    assert!(started.elapsed() < PATIENCE);
    assert_eq!(seen, ["/1", "/2", "/3", "/4"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_that_looks_like_json_and_is_none_goes_as_text_and_is_told() {
    let (receiver, _) = counting_receiver(Duration::ZERO).await;
    let node = Node::started("");
    let person = Person::at(&node);
    let url = format!("http://{receiver}/");
    for (data, told, kind) in [
        ("{\"a\": 1}", false, "application/json"),
        ("[1, 2]", false, "application/json"),
        ("17", false, "application/json"),
        ("plain words", false, "text/plain; charset=utf-8"),
        ("{bad json", true, "text/plain; charset=utf-8"),
        ("{'a': 1}", true, "text/plain; charset=utf-8"),
        ("[1, 2", true, "text/plain; charset=utf-8"),
    ] {
        let (code, out, err) = person.runs(&["send", "POST", &url, "-d", data, "--wait", "--json"]).await;
        assert_eq!(code, Some(0), "{data}: {out}{err}");
        assert_eq!(err.contains("-d begins like JSON and is none"), told, "{data}: {err}");
        let record: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(record["request"]["headers"]["content-type"][0], kind, "{data}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_the_wrong_port_or_in_the_wrong_way_is_told_which() {
    let plain = Node::started("");
    let mut secure = Node::new("");
    let authority = crate::tls::Authority::new();
    authority.write_server(&["127.0.0.1"], &secure.path("api.crt"), &secure.path("api.key"));
    let text = std::fs::read_to_string(secure.config()).unwrap();
    let listen = format!("listen = \"{}\"\n", secure.api);
    let with = text.replacen(&listen, &format!("{listen}tls = {{ cert = \"api.crt\", key = \"api.key\" }}\n"), 1);
    assert_ne!(text, with);
    std::fs::write(secure.config(), with).unwrap();
    secure.start();
    let person = Person::at(&plain);
    for (api, told) in [
        (format!("https://{}", plain.api), format!("speaks no TLS: try http://{}", plain.api)),
        (format!("http://{}", secure.api), "this port speaks TLS: call it as https://".to_owned()),
        (format!("http://{}", plain.metrics), "this is [metrics] listen".to_owned()),
        (format!("https://{}", plain.metrics), format!("speaks no TLS: try http://{}", plain.metrics)),
    ] {
        let mut command = egressd();
        command.args(["tenants", "--api", &api]).current_dir(person.directory.path()).stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{api}: {error}");
        assert!(error.contains(&told), "{api}: {error}");
    }
    let started = Instant::now();
    while !plain.log().contains("a caller speaks TLS to [api] listen") {
        assert!(started.elapsed() < PATIENCE, "{}", plain.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
