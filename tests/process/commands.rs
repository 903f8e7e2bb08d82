//! The commands and their exit codes, as a person or a script meets them.

use std::process::Stdio;
use std::time::Duration;

use crate::node::{Node, PATIENCE, SOURCES, counting_receiver, egressd, run};

#[test]
fn the_demo_shows_every_kind_of_end_and_exits_well() {
    let directory = tempfile::tempdir().unwrap();
    let (code, out, err) = run(&["demo", "--once"], directory.path());
    assert_eq!(code, Some(0), "{out}\n{err}");
    for part in [
        "delivered",
        "rejected   500",
        "connection_refused",
        "timeout",
        "policy_metadata",
        "Obi%20Wan",
        "127.0.0.1",
        "inspector",
        "/v1/sends",
    ] {
        let part = if part == "Obi%20Wan" { "Obi Wan" } else { part };
        assert!(out.contains(part), "{part} is missing in\n{out}");
    }
}

#[test]
fn the_demo_of_a_tier_shows_a_node_die_and_the_others_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let (code, out, err) = run(&["demo", "--nodes", "3", "--once"], directory.path());
    assert_eq!(code, Some(0), "{out}\n{err}");
    for part in ["node-3 is killed", "delivered", "policy_metadata", "interrupted"] {
        assert!(out.contains(part), "{part} is missing in\n{out}");
    }
    // Either may have claimed all that was released, if the other was not quick enough to ask.
    assert!(out.contains("by node-1") || out.contains("by node-2"), "{out}");
    assert!(!out.contains("by node-3"), "{out}");
    let (code, _, err) = run(&["demo", "--postgres", "postgres://a@b/c"], directory.path());
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("--nodes"), "{err}");
}

#[test]
fn every_command_explains_itself() {
    let directory = tempfile::tempdir().unwrap();
    for command in
        ["serve", "demo", "check", "explain", "send", "tail", "bin", "ips", "suspend", "lift", "suspensions", "tenants"]
    {
        let (code, out, _) = run(&[command, "--help"], directory.path());
        assert_eq!(code, Some(0), "{command}");
        assert!(out.contains("Usage: egressd"), "{command}: {out}");
    }
    let (code, out, _) = run(&["--version"], directory.path());
    assert_eq!(code, Some(0));
    assert!(out.starts_with("egressd "), "{out}");
    let (code, _, err) = run(&["serve"], directory.path());
    assert_eq!(code, Some(2));
    assert!(err.contains("--config"), "{err}");
}

#[test]
fn a_bad_configuration_starts_nothing_and_names_every_problem() {
    let node = Node::new("[limits]\nrequest_bodyy = \"1MiB\"\n[tls]\nroots = \"none\"\n");
    for command in ["serve", "check"] {
        let (code, _, err) = run(&[command, "--config", "egressd.toml"], node.directory.path());
        assert_eq!(code, Some(2), "{command}: {err}");
        assert!(err.contains("request_bodyy") && err.contains("tls.roots"), "{command}: {err}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn send_waits_for_its_record_and_says_how_it_ended() {
    let (receiver, seen) = counting_receiver(Duration::ZERO).await;
    let node = Node::started("");
    let api = format!("http://{}", node.api);
    let url = format!("http://{receiver}/hook");
    let directory = node.directory.path().to_owned();
    let call = move |arguments: Vec<String>| {
        let directory = directory.clone();
        tokio::task::spawn_blocking(move || {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            run(&arguments, &directory)
        })
    };
    let words = |line: &str| -> Vec<String> { line.split(' ').map(str::to_owned).collect() };

    let (code, out, err) = call(words(&format!("send POST {url} -d {{\"a\":1}} --wait --api {api}"))).await.unwrap();
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("delivered") && out.contains("200") && out.contains("127.0.0.2"), "{out}");
    let peers = seen.of("/hook");
    assert_eq!(peers.len(), 1);
    assert!(SOURCES.contains(&peers[0].ip().to_string().as_str()), "{peers:?}");

    let (code, out, _) = call(words(&format!("send GET http://10.0.0.1/ --wait --json --api {api}"))).await.unwrap();
    assert_eq!(code, Some(1), "{out}");
    let record: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (record["outcome"].as_str(), record["error"]["code"].as_str()),
        (Some("blocked"), Some("policy_address"))
    );

    let (code, _, err) = call(words(&format!("send get {url} --api {api}"))).await.unwrap();
    assert_eq!(code, Some(2));
    assert!(err.contains("GET"), "{err}");

    let (code, _, err) = call(words(&format!("send GET {url} --api http://127.0.0.1:1"))).await.unwrap();
    assert_eq!(code, Some(2));
    assert!(err.contains("is `egressd serve` running there?"), "{err}");

    let (code, out, _) = call(words(&format!("explain GET {url} --json --config egressd.toml"))).await.unwrap();
    assert_eq!(code, Some(0), "{out}");
    let (code, out, _) = call(words("explain GET http://169.254.169.254/ --config egressd.toml")).await.unwrap();
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("policy_metadata"), "{out}");

    let (code, out, _) = call(words("ips --config egressd.toml")).await.unwrap();
    assert_eq!((code, out.trim()), (Some(0), SOURCES.join("\n").as_str()));
    let (code, out, _) = call(words("check --config egressd.toml")).await.unwrap();
    assert_eq!(code, Some(0), "{out}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tail_follows_what_finishes() {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let (receiver, _) = counting_receiver(Duration::ZERO).await;
    let node = Node::started("");
    let mut tail = tokio::process::Command::from(egressd())
        .args(["tail", "--json", "--outcome", "delivered", "--api", &format!("http://{}", node.api)])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    // Until the tail stands, sends may come before it: send until one is followed.
    let body = serde_json::json!({ "method": "GET", "url": format!("http://{receiver}/x") }).to_string();
    let started = std::time::Instant::now();
    let line = loop {
        assert!(started.elapsed() < PATIENCE, "the tail never stands");
        node.call("POST", "/v1/sends", &body).await.unwrap();
        if let Ok(line) = tokio::time::timeout(Duration::from_millis(300), lines.next_line()).await {
            break line.unwrap().unwrap();
        }
    };
    let record: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(record["outcome"], "delivered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bin_shows_what_it_got_and_from_whom() {
    let address = crate::node::free_port();
    let mut bin = tokio::process::Command::from(egressd())
        .args(["bin", "--listen", &address.to_string()])
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let call = |method: &'static str, path: &'static str| async move {
        let started = std::time::Instant::now();
        loop {
            assert!(started.elapsed() < PATIENCE, "the bin does not answer");
            if let Some(answer) = crate::node::call_text(address, method, path, "", &[]).await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert_eq!(call("GET", "/whoami").await, (200, "127.0.0.1\n".to_owned()));
    assert_eq!(call("POST", "/_status/503").await.0, 503);
    assert_eq!(call("DELETE", "/thing?x=1").await.0, 200);
    let seen: serde_json::Value = serde_json::from_str(&call("GET", "/_requests").await.1).unwrap();
    assert_eq!(seen[1]["target"], "/thing?x=1");
    assert_eq!(seen[1]["method"], "DELETE");
    assert!(seen[1]["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(bin.id().unwrap().try_into().unwrap()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    assert_eq!(bin.wait().await.unwrap().code(), Some(0));
}
