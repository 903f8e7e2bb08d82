//! Disks that fill up, turn read-only, fail and forget, under the real process; then the ledger.
//!
//! Full and read-only ones are file systems that the test mounts, so it needs root. Failing ones are made by
//! `strace`, which lets chosen system calls of the process fail.

use std::collections::HashMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::node::{
    Node, PATIENCE, SOURCES, Seen, by_a_clock_at, call_whole, counting_receiver, egressd, json_or_text, run,
};

/// A file system of its own on a directory; unmounted when it is dropped, also after a panic.
struct Mounted {
    at: PathBuf,
    mounted: bool,
}

impl Mounted {
    fn new(what: &[String], at: PathBuf) -> Self {
        std::fs::create_dir_all(&at).expect("a directory");
        let mut this = Self { at, mounted: false };
        this.mount(what);
        this
    }

    fn tmpfs(at: PathBuf, size: &str) -> Self {
        Self::new(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"].map(str::to_owned), at)
    }

    fn mount(&mut self, what: &[String]) {
        tool(Command::new("mount").args(what).arg(&self.at));
        self.mounted = true;
    }

    fn resize(&self, size: &str) {
        tool(Command::new("mount").args(["-o", &format!("remount,size={size}")]).arg(&self.at));
    }

    fn unmount(&mut self) {
        tool(Command::new("umount").arg(&self.at));
        self.mounted = false;
    }

    /// What an unrecoverable error of its own makes an ext4 do.
    fn turn_read_only(&self) {
        let source = tool(Command::new("findmnt").args(["-no", "SOURCE"]).arg(&self.at));
        let device = Path::new(source.trim()).file_name().expect("a device").to_string_lossy().into_owned();
        let trigger = Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error");
        std::fs::write(trigger, "1").expect("an error is triggered");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.mounted {
            // Lazily: the process may still have files open.
            let _ = Command::new("umount").arg("-l").arg(&self.at).status();
        }
    }
}

/// All the room that there was left.
struct Ballast(PathBuf);

impl Ballast {
    fn fill(directory: &Path) -> Self {
        let this = Self(directory.join("ballast"));
        let mut file = std::fs::File::create(&this.0).expect("a file");
        while file.write_all(&[1; 512]).is_ok() {}
        this
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Runs a tool that has to work; what it printed.
fn tool(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A caller that remembers what it was promised.
struct Caller {
    api: SocketAddr,
    receiver: SocketAddr,
    name: String,
    made: usize,
    /// Ids answered 202, with the path that each may reach once.
    accepted: HashMap<String, String>,
}

impl Caller {
    fn new(node: &Node, receiver: SocketAddr, name: &str) -> Self {
        Self { api: node.api, receiver, name: name.to_owned(), made: 0, accepted: HashMap::new() }
    }

    /// One send with a body of this size; whether it was accepted. All else must be the refusal it should be.
    async fn submit(&mut self, to: &str, body_bytes: usize) -> bool {
        self.made += 1;
        let path = format!("/{}-{}", self.name, self.made);
        let url = format!("http://{}{path}", self.receiver);
        let send = json!({ "method": "POST", "url": url, "data": "x".repeat(body_bytes) }).to_string();
        let (head, text) = call_whole(self.api, "POST", to, &send, &[]).await.expect("an answer");
        let answer = json_or_text(text);
        match head.status.as_u16() {
            202 => {
                self.accepted.insert(answer["id"].as_str().expect("an id").to_owned(), path);
                true
            }
            503 => {
                assert_eq!(answer["code"], "store", "{answer}");
                assert_eq!(head.headers["content-type"], "application/problem+json");
                let after = head.headers.get("retry-after").and_then(|after| after.to_str().ok());
                assert!(after.is_some_and(|after| after.parse::<u32>().is_ok_and(|after| after > 0)), "{head:?}");
                false
            }
            _ => panic!("{head:?}: {answer}"),
        }
    }

    /// Submits until it is refused.
    async fn fill(&mut self, body_bytes: usize) {
        let before = self.made;
        while self.submit("/v1/sends", body_bytes).await {
            assert!(self.made - before < 100_000, "the disk never filled");
        }
    }

    /// Submits until it is accepted.
    async fn until_accepted(&mut self) {
        let from = Instant::now();
        while !self.submit("/v1/sends", 100).await {
            assert!(from.elapsed() < PATIENCE, "the store does not recover");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Nothing promised is denied while the disk fails, though it may be too soon to tell.
    async fn denies_none(&self, node: &Node) {
        for id in self.accepted.keys() {
            let (status, record) = node.call("GET", &format!("/v1/sends/{id}"), "").await.expect("an answer");
            assert!(status == 200 || (status == 503 && record["code"] == "store"), "{status} {record}");
        }
    }

    /// Everything promised is there.
    async fn finds_each(&self, node: &Node) {
        for (id, path) in &self.accepted {
            let record = node.get(&format!("/v1/sends/{id}")).await;
            assert!(record["request"]["url"].as_str().is_some_and(|url| url.ends_with(path.as_str())), "{record}");
        }
    }

    /// Every promise has one record with one outcome, and the receiver saw what the outcome says.
    fn judge(&self, records: &[Value], seen: &Seen) -> HashMap<String, usize> {
        let seen = seen.all();
        let mut outcomes = HashMap::<String, usize>::new();
        let mut paths = HashMap::<String, &Value>::new();
        for record in records {
            let url = record["request"]["url"].as_str().expect("a URL");
            let path = url.strip_prefix(&format!("http://{}", self.receiver)).expect("a URL of ours").to_owned();
            let outcome = record["outcome"].as_str().expect("an outcome");
            let reached = seen.get(&path).map_or(0, Vec::len);
            match outcome {
                "delivered" => assert_eq!(reached, 1, "{record}"),
                "interrupted" => assert!(reached <= 1, "{path} reached its receiver {reached} times"),
                _ => panic!("{record}"),
            }
            *outcomes.entry(outcome.to_owned()).or_default() += 1;
            assert!(paths.insert(path, record).is_none(), "two records for one send: {record}");
        }
        for (id, path) in &self.accepted {
            let record = paths.get(path).unwrap_or_else(|| panic!("{path} was answered 202 and has no record"));
            assert_eq!(record["id"].as_str(), Some(id.as_str()), "{path}");
        }
        for path in seen.keys() {
            assert!(paths.contains_key(path), "{path} reached its receiver without a record");
        }
        outcomes
    }
}

/// `/readyz` says 503 with this in its reason, while the process is as healthy as can be.
async fn is_unready(node: &Node, why: &str) {
    let (status, text) = node.health("/readyz").await;
    assert!(status == 503 && text.contains("the store cannot write") && text.contains(why), "{status} {text}");
    assert_eq!(node.health("/healthz").await.0, 200);
}

async fn until_ready(node: &Node) {
    let from = Instant::now();
    loop {
        let (status, text) = node.health("/readyz").await;
        if status == 200 {
            return;
        }
        assert!(from.elapsed() < PATIENCE, "{text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn until_reached(seen: &Seen, path: &str) {
    let from = Instant::now();
    while seen.of(path).is_empty() {
        assert!(from.elapsed() < PATIENCE, "{path} never reached its receiver");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_what_it_cannot_keep_and_nothing_else() {
    full("").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_with_many_pieces_does_so_too() {
    // A sixteenth of it makes a piece.
    full("body_max_bytes = \"4MiB\"\n").await;
}

async fn full(settings: &str) {
    let (receiver, seen) = counting_receiver(Duration::from_millis(700)).await;
    let mut node = Node::new("");
    let config = std::fs::read_to_string(node.config()).unwrap();
    std::fs::write(node.config(), config.replace("[store]\n", &format!("[store]\n{settings}"))).unwrap();
    let disk = Mounted::tmpfs(node.path("store"), "2m");
    node.start();
    let mut caller = Caller::new(&node, receiver, "full");
    for _ in 0..3 {
        assert!(caller.submit("/v1/executions/e/sends", 100).await);
    }
    assert!(caller.submit("/v1/sends", 100).await);
    until_reached(&seen, "/full-4").await;

    // Full while deliveries are in flight: their ends wait, and come when there is room.
    // It tries again by itself, and may find room for that much until the last of it is used up.
    let told = loop {
        caller.fill(16_000).await;
        let (status, text) = node.health("/readyz").await;
        if status == 503 {
            break text;
        }
    };
    assert!(told.contains("the store cannot write") && told.contains("free some space"), "{told}");
    caller.finds_each(&node).await;
    let ballast = Ballast::fill(&node.path("store"));
    let stop = json!({ "host": "victim.example.com", "reason": "its owner asked" }).to_string();
    let (status, answer) = node.call("POST", "/v1/suspensions", &stop).await.unwrap();
    assert_eq!((status, answer["code"].as_str()), (503, Some("store")), "{answer}");
    assert_eq!(node.get("/v1/suspensions").await["suspensions"], json!([]), "what is not kept is not in force");
    drop(ballast);
    disk.resize("4m");
    caller.until_accepted().await;
    until_ready(&node).await;
    let in_time = Instant::now();
    let open = loop {
        let open = node.records().await.iter().filter(|record| record["state"] != "done").count();
        if open <= 3 || in_time.elapsed() > PATIENCE {
            break open;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(open, 3, "all but the held sends have their outcome, without a restart");

    // Full again, with a delivery in flight, and the process dies.
    let before = caller.made;
    assert!(caller.submit("/v1/sends", 100).await);
    until_reached(&seen, &format!("/full-{}", before + 1)).await;
    caller.fill(16_000).await;
    node.kill();
    // To the last byte: a start may take nothing more than it has.
    let _ballast = Ballast::fill(&node.path("store"));
    for _ in 0..2 {
        node.start();
        is_unready(&node, "free some space").await;
        assert!(!caller.submit("/v1/sends", 100).await, "there is no room");
        caller.finds_each(&node).await;
        let (status, answer) = node.call("POST", "/v1/executions/e/finish", "").await.unwrap();
        assert_eq!((status, answer["code"].as_str()), (503, Some("store")), "{answer}");
        node.kill();
    }
    node.start();
    is_unready(&node, "free some space").await;
    disk.resize("64m");
    caller.until_accepted().await;
    until_ready(&node).await;
    let (status, answer) = node.call("POST", "/v1/executions/e/finish", "").await.unwrap();
    assert_eq!((status, answer["released"].as_u64()), (200, Some(3)), "{answer}");
    let outcomes = caller.judge(&node.settled().await, &seen);
    assert!(outcomes["interrupted"] >= 1 && outcomes["delivered"] > 50, "{outcomes:?}");
    node.kill();
    node.start();
    assert_eq!(node.health("/readyz").await, (200, "ready\n".to_owned()), "nothing was damaged");
    assert_eq!(caller.judge(&node.settled().await, &seen), outcomes);
}

/// A piece of the store that could not be opened whole must not end the log before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_moment_without_descriptors_loses_nothing() {
    let (receiver, seen) = counting_receiver(Duration::ZERO).await;
    let mut could_not = 0;
    for spare in 1..=6 {
        let mut node = Node::new("");
        let config = std::fs::read_to_string(node.config()).unwrap();
        // A sixteenth of it makes a piece, and held sends take no other descriptors than the caller's.
        let config = config.replace("[store]\n", "[store]\nbody_max_bytes = \"1MiB\"\n");
        std::fs::write(node.config(), config).unwrap();
        node.start();
        let pieces = || {
            let names = std::fs::read_dir(node.path("store/pieces")).expect("readable");
            names.filter(|name| !name.as_ref().expect("a name").path().to_string_lossy().ends_with(".new")).count()
        };
        let mut caller = Caller::new(&node, receiver, &format!("spare-{spare}"));
        assert!(caller.submit("/v1/executions/e/sends", 8_000).await);
        let pid = node.pid().to_string();
        let limit = |soft: usize| tool(Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={soft}:")]));
        // The least of some looks: connections that are just closing are not to be had later.
        let mut open = usize::MAX;
        for _ in 0..10 {
            open = open.min(std::fs::read_dir(format!("/proc/{pid}/fd")).expect("readable").count());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        limit(open + spare);
        for _ in 0..16 {
            assert!(caller.submit("/v1/executions/e/sends", 8_000).await, "the disk takes it, so it is accepted");
        }
        could_not += usize::from(pieces() == 1);
        limit(4096);
        for _ in 0..16 {
            assert!(caller.submit("/v1/executions/e/sends", 8_000).await);
        }
        assert!(pieces() > 1, "it goes on");
        node.kill();
        node.start();
        assert_eq!(node.health("/readyz").await, (200, "ready\n".to_owned()), "nothing was lost");
        let (status, answer) = node.call("POST", "/v1/executions/e/finish", "").await.unwrap();
        assert_eq!((status, answer["released"].as_u64()), (200, Some(33)), "{answer}");
        let records = node.settled().await;
        let ours = |path: &str| path.starts_with(&format!("/spare-{spare}-"));
        let reached = seen.all().into_iter().filter(|(path, _)| ours(path)).map(|(_, times)| times.len());
        assert_eq!((records.len(), reached.collect::<Vec<_>>()), (33, vec![1; 33]));
        caller.finds_each(&node).await;
    }
    assert!(could_not > 0, "there were always descriptors enough to open another piece");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_date_of_the_list_is_kept_on_a_full_disk() {
    let mut node = Node::new("");
    let list = format!("{}\n127.0.0.99 announced=2026-11-20 active=2026-12-01\n", SOURCES.join("\n"));
    std::fs::write(node.path("public-ips.txt"), list).unwrap();
    let disk = Mounted::tmpfs(node.path("store"), "1m");
    node.start_as(by_a_clock_at("2026-11-22 12:00:00"));
    let status = |list: &Value| {
        let entry = list["prefixes"].as_array().unwrap().iter().find(|entry| entry["ipv4Prefix"] == "127.0.0.99/32");
        entry.expect("it is listed")["status"].as_str().unwrap().to_owned()
    };
    let token = |list: &Value| list["syncToken"].as_str().unwrap().parse::<u64>().unwrap();
    let before = node.get("/public-ips.json").await;
    assert_eq!(status(&before), "announced");
    node.kill();
    let _ballast = Ballast::fill(&node.path("store"));

    node.start_as(by_a_clock_at("2026-12-02 12:00:00"));
    is_unready(&node, "free some space").await;
    let full = node.get("/public-ips.json").await;
    assert_eq!(status(&full), "active");
    assert!(token(&full) > token(&before), "{full}");
    disk.resize("64m");
    until_ready(&node).await;
    node.kill();
    node.start_as(by_a_clock_at("2026-12-02 13:00:00"));
    let after = node.get("/public-ips.json").await;
    assert_eq!(status(&after), "active");
    assert!(token(&after) >= token(&full), "{after}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_turns_read_only_is_told_and_loses_nothing() {
    let (receiver, seen) = counting_receiver(Duration::from_millis(300)).await;
    let mut node = Node::new("");
    let image = node.path("image");
    std::fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
    tool(Command::new("mkfs.ext4").arg("-q").arg(&image));
    let how = |image: &Path| ["-o".to_owned(), "loop,errors=remount-ro".to_owned(), image.display().to_string()];
    let mut disk = Mounted::new(&how(&image), node.path("store"));
    node.start();
    let mut caller = Caller::new(&node, receiver, "ro");
    for _ in 0..20 {
        assert!(caller.submit("/v1/sends", 2_000).await);
    }
    assert!(caller.submit("/v1/executions/e/sends", 100).await);
    until_reached(&seen, "/ro-20").await;
    assert!(caller.submit("/v1/sends", 100).await);
    until_reached(&seen, "/ro-22").await;
    disk.turn_read_only();
    assert!(!caller.submit("/v1/sends", 100).await);
    // What failed first may have been a sync, which says less.
    let from = Instant::now();
    while !node.health("/readyz").await.1.contains("mount it writable") {
        assert!(from.elapsed() < PATIENCE, "{}", node.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    is_unready(&node, "mount it writable").await;
    caller.finds_each(&node).await;
    node.kill();

    // It cannot even take the store for itself: a start says so and does nothing.
    let directory = node.directory.path().to_owned();
    let (code, _, err) =
        tokio::task::spawn_blocking(move || run(&["serve", "--config", "egressd.toml"], &directory)).await.unwrap();
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("store/lock: Read-only file system") && err.contains("mount it writable"), "{err}");

    disk.unmount();
    // As after a loss of power: what was synced, and what happened to be written. A copy, since a mount namespace that
    // was made meanwhile may keep the failed file system alive.
    let repaired = node.path("repaired");
    std::fs::copy(&image, &repaired).unwrap();
    disk.mount(&how(&repaired));
    node.start();
    assert_eq!(node.health("/readyz").await, (200, "ready\n".to_owned()));
    caller.finds_each(&node).await;
    caller.until_accepted().await;
    let (status, answer) = node.call("POST", "/v1/executions/e/finish", "").await.unwrap();
    assert_eq!((status, answer["released"].as_u64()), (200, Some(1)), "{answer}");
    let outcomes = caller.judge(&node.settled().await, &seen);
    assert!(outcomes["delivered"] >= 2, "{outcomes:?}");
}

/// The real process, with these of its system calls failing where they touch the store.
fn injected(node: &Node, injections: &[String]) -> Command {
    let mut command = Command::new("strace");
    // The tracer is the grandchild: what is started is `egressd` itself.
    command.args(["-D", "-f", "-qq", "--seccomp-bpf", "-o"]).arg(node.path("trace"));
    for injection in injections {
        command.args(["-e", &format!("inject={injection}")]);
    }
    command.arg(egressd().get_program());
    command
}

/// Calls fail from their nth on (each thread counts for itself), a few times or for good.
async fn calls_fail(name: &str, calls: &str, error: &str, from: usize, for_good: bool) {
    let (receiver, seen) = counting_receiver(Duration::from_millis(5)).await;
    let mut node = Node::started("");
    node.kill();
    let mut caller = Caller::new(&node, receiver, name);
    let when = if for_good { format!("{from}+") } else { format!("{from}..{}", from + 3) };
    let injections: Vec<_> = calls.split('+').map(|call| format!("{call}:error={error}:when={when}")).collect();
    node.start_as(injected(&node, &injections));
    let mut refused = 0;
    let begun = Instant::now();
    while refused == 0 {
        assert!(begun.elapsed() < PATIENCE, "{name}: nothing was refused: {}", node.log());
        let to = if caller.made.is_multiple_of(5) { "/v1/executions/e/sends" } else { "/v1/sends" };
        refused += usize::from(!caller.submit(to, 700).await);
    }
    let (status, text) = node.health("/readyz").await;
    assert!(status == 503 || !for_good, "{name}: {status} {text}");
    assert_eq!(node.health("/healthz").await.0, 200);
    if for_good {
        for _ in 0..5 {
            assert!(!caller.submit("/v1/sends", 700).await, "{name}: the disk takes nothing any more");
        }
        caller.denies_none(&node).await;
    } else {
        caller.until_accepted().await;
        until_ready(&node).await;
        for _ in 0..20 {
            caller.submit("/v1/sends", 700).await;
        }
        caller.finds_each(&node).await;
    }
    node.kill();
    node.start();
    assert_eq!(node.health("/readyz").await, (200, "ready\n".to_owned()), "{name}");
    caller.finds_each(&node).await;
    node.call("POST", "/v1/executions/e/finish", "").await.unwrap();
    let outcomes = caller.judge(&node.settled().await, &seen);
    println!("{name}: {} accepted, {outcomes:?}", caller.accepted.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_fail_are_answered_for_and_what_was_promised_is_kept() {
    let mut cases = tokio::task::JoinSet::new();
    for (calls, error, from) in [
        ("fdatasync", "EIO", 1),
        ("fdatasync", "EIO", 4),
        ("fdatasync", "EIO", 33),
        ("fdatasync", "ENOSPC", 12),
        ("pwrite64", "ENOSPC", 3),
        ("pwrite64", "ENOSPC", 17),
        ("pwrite64", "EIO", 40),
        ("pwrite64", "EROFS", 26),
        // Nothing can be taken back, either.
        ("fdatasync+ftruncate", "EIO", 9),
        ("fdatasync+fsync", "EIO", 21),
    ] {
        for for_good in [false, true] {
            let name = format!("{calls}-{error}-{from}-{for_good}");
            cases.spawn(async move { calls_fail(&name, calls, error, from, for_good).await });
            // A few at a time: each is a traced process.
            while cases.len() >= 4 {
                cases.join_next().await.expect("a case").expect("it holds");
            }
        }
    }
    while let Some(case) = cases.join_next().await {
        case.expect("it holds");
    }
}

/// Changes a file in place.
fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).expect("a file");
    change(&mut bytes);
    std::fs::write(path, bytes).expect("it is written");
}

fn position(bytes: &[u8], text: &str) -> usize {
    bytes.windows(text.len()).position(|part| part == text.as_bytes()).unwrap_or_else(|| panic!("{text} is not there"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_corrupted_file_lost_is_told_and_the_rest_works() {
    let (receiver, seen) = counting_receiver(Duration::ZERO).await;
    let mut node = Node::started("");
    let mut ids = Vec::new();
    for number in 0..8 {
        let url = format!("http://{receiver}/send-{number}");
        let send = json!({ "method": "POST", "url": url, "data": format!("body of send {number}") });
        let (status, record) = node.call("POST", "/v1/sends", &send.to_string()).await.unwrap();
        assert_eq!(status, 202);
        ids.push(record["id"].as_str().unwrap().to_owned());
        node.settled().await;
    }
    node.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(node.ended(), Some(0));

    let piece = node.path("store/pieces/00000001");
    // The request of send 3, the body of send 5, and the answer's body of send 7, which is the last.
    change(&piece.join("log"), |log| {
        let at = position(log, "/send-3");
        log[at] ^= 1;
    });
    change(&piece.join("bodies"), |bodies| {
        let at = position(bodies, "body of send 5");
        bodies[at] ^= 1;
        bodies.truncate(bodies.len() - 1);
    });
    for start in 1..=2 {
        node.start();
        let (status, text) = node.health("/readyz").await;
        assert_eq!(status, 200, "{text}");
        // What is behind the lost bodies' place is a gap for the second start, met when it is read.
        let short = (start == 1).then_some("00000001/bodies ends at byte ");
        for lost in ["00000001/log is unreadable at bytes "].into_iter().chain(short) {
            assert!(text.contains(lost), "start {start}: {lost} is missing in {text}");
            assert!(node.log().contains(lost), "start {start}: {lost} is missing in {}", node.log());
        }
        let listed = node.records().await;
        for (number, id) in ids.iter().enumerate() {
            let found = listed.iter().any(|record| record["id"].as_str() == Some(id));
            assert_eq!(found, number != 3, "send {number}");
            let (status, record) = node.call("GET", &format!("/v1/sends/{id}"), "").await.unwrap();
            assert_eq!(status, if number == 3 { 404 } else { 200 }, "send {number}: {record}");
            if number == 3 {
                continue;
            }
            assert_eq!(record["outcome"], "delivered");
            let (request, response) = (&record["request"], &record["response"]);
            if number == 5 {
                assert!(request["body"].is_null() && request["body_encoding"].is_null(), "{record}");
                assert_eq!(request["body_truncated"], true, "{record}");
                assert_eq!(request["body_bytes"], 14, "{record}");
            } else {
                assert_eq!(request["body"], format!("body of send {number}"));
                assert_eq!(request["body_truncated"], false);
            }
            let lost = number == 7;
            assert_eq!(response["body"].as_str(), (!lost).then_some("ok"), "{record}");
            assert_eq!(response["body_truncated"], lost, "{record}");
            let (status, har) = node.call("GET", &format!("/v1/sends/{id}/har"), "").await.unwrap();
            assert_eq!(status, 200, "{har}");
        }
        let resend = node.call("POST", &format!("/v1/sends/{}/resend", ids[5]), "").await.unwrap();
        assert_eq!((resend.0, resend.1["code"].as_str()), (409, Some("resend_incomplete")), "{}", resend.1);
        // Found when it was read.
        let (_, text) = node.health("/readyz").await;
        assert!(text.contains("00000001/bodies is unreadable at bytes "), "{text}");

        let send = json!({ "method": "GET", "url": format!("http://{receiver}/after-{start}") }).to_string();
        assert_eq!(node.call("POST", "/v1/sends", &send).await.unwrap().0, 202);
        node.settled().await;
        assert_eq!(seen.of(&format!("/after-{start}")).len(), 1);
        node.kill();
    }
    for number in 0..8 {
        assert_eq!(seen.of(&format!("/send-{number}")).len(), 1, "send {number}");
    }
}
