//! Nobody reads what a command prints any more: it ends without a word, as it would have.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::node::{Node, PATIENCE, call_text, counting_receiver, egressd, free_port};

/// A pipe's end to write to, of which the other end is closed.
fn unread() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn of_node(node: &Node, arguments: &str) -> Command {
    let mut command = egressd();
    command.args(arguments.split_whitespace()).current_dir(node.directory.path()).stdin(Stdio::null());
    command.env("EGRESSD_API", format!("http://{}", node.api));
    command
}

/// Waits for its end; the exit code. Killed if it does not end.
fn ended(mut child: std::process::Child, what: &str) -> Option<i32> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if started.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("{what} does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_pipe_ends_every_command_quietly() {
    let (receiver, _) = counting_receiver(Duration::ZERO).await;
    let node = Node::started("");
    let broken = Node::new("nonsense = 1\n");
    let ok = format!("http://{receiver}/");
    let (_, made) = node.call("POST", "/v1/suspensions", r#"{"host":"x.example.com","reason":"r"}"#).await.unwrap();
    let lift = format!("lift {}", made["id"].as_str().unwrap());
    for (arguments, code) in [
        ("--help", 0),
        ("--version", 0),
        ("send --help", 0),
        ("check --config egressd.toml", 0),
        (&*format!("explain GET {ok} --config egressd.toml"), 0),
        (&*format!("explain GET {ok}"), 0),
        (&*format!("explain GET {ok} --json"), 0),
        ("explain GET http://10.0.0.1/", 1),
        ("ips --config egressd.toml", 0),
        ("ips", 0),
        ("ips --format json", 0),
        ("ips --verify", 0),
        (&*format!("send GET {ok}"), 0),
        (&*format!("send GET {ok} --wait"), 0),
        (&*format!("send GET {ok} --wait --json"), 0),
        ("send GET http://10.0.0.1/ --wait", 1),
        ("suspend host y.example.com --reason r", 0),
        ("suspend host y.example.com --reason r --json", 0),
        ("suspend tenant nobody --reason r", 0),
        (&*lift, 0),
        ("suspensions --all", 0),
        ("tenants", 0),
        ("tenants --json", 0),
        // These go on until they are stopped, or nobody reads any more.
        ("tail", 0),
        ("tail --json --since 1h", 0),
        ("demo", 0),
        ("demo --once", 0),
    ] {
        let mut command = of_node(&node, arguments);
        command.stdout(unread()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let arguments = arguments.to_owned();
        tokio::task::spawn_blocking(move || {
            assert_eq!(ended(child, &arguments), Some(code), "{arguments}");
            let mut told = String::new();
            stderr.read_to_string(&mut told).unwrap();
            let expected = told.is_empty() || arguments.starts_with("suspend tenant nobody");
            assert!(expected && !told.contains("panicked"), "{arguments}: {told}");
        })
        .await
        .unwrap();
    }
    // What goes to stderr is nobody's loss either.
    for (node, arguments, code) in [
        (&broken, "check --config egressd.toml", 2),
        (&broken, "serve --config egressd.toml", 2),
        (&broken, "explain GET http://10.0.0.1/ --config egressd.toml", 2),
        (&node, "send get http://10.0.0.1/", 2),
        (&node, "lift nothing", 2),
        (&node, "nonsense", 2),
    ] {
        let child = of_node(node, arguments).stdout(unread()).stderr(unread()).spawn().unwrap();
        let arguments = arguments.to_owned();
        tokio::task::spawn_blocking(move || assert_eq!(ended(child, &arguments), Some(code), "{arguments}"))
            .await
            .unwrap();
    }
}

#[test]
fn output_that_is_lost_otherwise_is_an_error() {
    let node = Node::new("");
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    for arguments in ["ips --config egressd.toml", "check --config egressd.toml"] {
        let output = of_node(&node, arguments).stdout(full()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("cannot be written"), "{arguments}");
    }
}

/// Ends the process when the test does.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bin_answers_whatever_its_stdout_does() {
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    for (what, stdout) in [("a closed pipe", unread()), ("a full disk", full().into()), ("nowhere", Stdio::null())] {
        let address = free_port();
        let mut command = egressd();
        command.args(["bin", "--listen", &address.to_string()]).stdout(stdout).stderr(Stdio::null());
        let mut bin = Running(command.spawn().unwrap());
        let started = Instant::now();
        while call_text(address, "GET", "/_requests", "", &[]).await.is_none() {
            assert!(started.elapsed() < PATIENCE, "{what}: the bin does not answer");
            assert_eq!(bin.0.try_wait().unwrap(), None, "{what}: the bin has ended");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for _ in 0..3 {
            let answer = call_text(address, "POST", "/hook", "{}", &[]).await;
            assert_eq!(answer, Some((200, "ok\n".to_owned())), "{what}");
        }
        let (_, seen) = crate::node::call(address, "GET", "/_requests", "", &[]).await.unwrap();
        assert_eq!(seen.as_array().map(Vec::len), Some(3), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_serves_on_though_nobody_reads_its_log() {
    let (receiver, _) = counting_receiver(Duration::ZERO).await;
    let mut node = Node::new("");
    node.start_with(|command| {
        command.stdout(unread()).stderr(unread());
    });
    node.signal(Signal::SIGHUP);
    let send = serde_json::json!({ "method": "GET", "url": format!("http://{receiver}/x") }).to_string();
    node.call("POST", "/v1/sends", &send).await.unwrap();
    node.call("POST", "/v1/suspensions", r#"{"host":"y.example.com","reason":"it logs a line"}"#).await.unwrap();
    assert_eq!(node.settled().await[0]["outcome"], "delivered");
    node.signal(Signal::SIGTERM);
    assert_eq!(tokio::task::spawn_blocking(move || node.ended()).await.unwrap(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_stops_reading_the_log_holds_up_no_send_and_no_end() {
    let (receiver, seen) = counting_receiver(Duration::ZERO).await;
    let (kept, log) = std::io::pipe().unwrap();
    // As little as the kernel has it hold.
    nix::fcntl::fcntl(&log, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let mut node = Node::new("");
    node.start_with(|command| {
        command.stderr(log).env("EGRESSD_LOG", "debug");
    });
    let body = |url: &str, count| {
        serde_json::Value::Array(vec![serde_json::json!({ "method": "GET", "url": url }); count]).to_string()
    };
    // Each is a line, and nobody reads any.
    let (status, answer) = node.call("POST", "/v1/sends", &body("http://169.254.169.254/", 1_000)).await.unwrap();
    assert_eq!(status, 202, "{answer}");
    let (status, answer) = node.call("POST", "/v1/sends", &body(&format!("http://{receiver}/on"), 10)).await.unwrap();
    assert_eq!(status, 202, "{answer}");
    for send in answer["sends"].as_array().unwrap() {
        let record = node.done_as("default", send["id"].as_str().unwrap()).await;
        assert_eq!(record["outcome"], "delivered", "{record}");
    }
    assert_eq!(seen.of("/on").len(), 10);
    node.signal(Signal::SIGTERM);
    assert_eq!(node.ended(), Some(0));
    drop(kept);
}
