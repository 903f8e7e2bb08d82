//! Whether a start is worth another try, and what `check` and a reload say of the sources.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::node::{Node, PATIENCE, SOURCES, egressd, run};

/// 1 is what may pass by itself, which the unit tries again; 2 waits for a person.
#[test]
fn a_start_that_fails_says_whether_another_may_succeed() {
    type Spoil = fn(&Node) -> Box<dyn std::any::Any>;
    let rows: [(&str, i32, &str, Spoil); 9] = [
        ("the API's port is taken", 1, "[api] listen", |node| Box::new(std::net::TcpListener::bind(node.api).unwrap())),
        ("the metrics' port is taken", 1, "[metrics] listen", |node| {
            Box::new(std::net::TcpListener::bind(node.metrics).unwrap())
        }),
        ("the store is no directory", 1, "store", |node| {
            std::fs::write(node.path("store"), "a file").unwrap();
            Box::new(())
        }),
        ("the store is of a later format", 2, "format 99", |node| {
            std::fs::create_dir(node.path("store")).unwrap();
            std::fs::write(node.path("store/format"), "egressd store, format 99\n").unwrap();
            Box::new(())
        }),
        ("the key file is open to others", 2, "chmod 600", |node| {
            std::fs::write(node.path("key"), [7; 32]).unwrap();
            std::fs::set_permissions(node.path("key"), std::fs::Permissions::from_mode(0o644)).unwrap();
            Box::new(())
        }),
        ("the key file is cut", 2, "5 bytes", |node| {
            std::fs::write(node.path("key"), "short").unwrap();
            std::fs::set_permissions(node.path("key"), std::fs::Permissions::from_mode(0o600)).unwrap();
            Box::new(())
        }),
        ("the list is gone", 2, "public-ips.txt", |node| {
            std::fs::remove_file(node.path("public-ips.txt")).unwrap();
            Box::new(())
        }),
        ("a key is unknown", 2, "nonsense", |node| {
            node.configure("nonsense = 1\n");
            Box::new(())
        }),
        ("there is no configuration", 2, "cannot be read", |node| {
            std::fs::remove_file(node.config()).unwrap();
            Box::new(())
        }),
    ];
    for (what, code, told, spoil) in rows {
        let node = Node::new("");
        let _held = spoil(&node);
        let (ended, err) = node.refuses_to_start();
        assert_eq!(ended, Some(code), "{what}: {err}");
        assert!(err.contains(told), "{what}: {err}");
    }
}

/// What `serve` would stumble over in its store's place and key file; nothing is made by looking.
#[test]
fn check_sees_what_stands_in_the_way_of_the_store() {
    type Spoil = fn(&Node);
    fn key(node: &Node, bytes: &[u8], mode: u32) {
        std::fs::write(node.path("key"), bytes).unwrap();
        std::fs::set_permissions(node.path("key"), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let rows: [(&str, &[&str], Spoil); 6] = [
        ("nothing", &[], |_| {}),
        ("the key file is open to others", &["store.key_file", "chmod 600"], |node| key(node, &[7; 32], 0o644)),
        ("the key file is cut", &["store.key_file", "5 bytes"], |node| key(node, b"short", 0o600)),
        ("the key file is a directory", &["store.key_file", "key"], |node| {
            std::fs::create_dir(node.path("key")).unwrap();
            std::fs::set_permissions(node.path("key"), std::fs::Permissions::from_mode(0o700)).unwrap();
        }),
        ("the key file's directory is missing", &["store.key_file", "is no directory"], |node| {
            let config = std::fs::read_to_string(node.config()).unwrap();
            std::fs::write(node.config(), config.replace("\"key\"", "\"nowhere/key\"")).unwrap();
        }),
        ("the store is a file", &["store.path", "is no directory"], |node| {
            std::fs::write(node.path("store"), "a file").unwrap();
        }),
    ];
    for (what, told, spoil) in rows {
        let node = Node::new("");
        spoil(&node);
        let (code, out, err) = run(&["check", "--config", "egressd.toml"], node.directory.path());
        assert_eq!(code, Some(if told.is_empty() { 0 } else { 2 }), "{what}: {out}{err}");
        assert!(told.iter().all(|told| err.contains(told)), "{what}: {out}{err}");
        assert!(what != "nothing" || !node.path("key").exists() && !node.path("store").exists());
    }
}

/// A day so many days from now, as the list writes it.
pub fn day(from_now: i64) -> String {
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    today.checked_add(jiff::Span::new().days(from_now)).unwrap().to_string()
}

#[test]
fn check_says_of_each_source_whether_it_is_usable_and_fails_where_a_pool_has_none() {
    let [a, b, c] = SOURCES;
    let (last, next, later) = (day(-1), day(1), day(9));
    for (list, code, lines) in [
        (format!("{a}\n{b}\n{c}\n"), 0, vec![format!("{a} (pool default): usable now")]),
        (
            format!("{a} retires={later}\n{b} announced={last} active={later}\n{c} retires={last}\n"),
            0,
            vec![
                format!("{a} (pool default): usable now, until {later}"),
                format!("{b} (pool default): not usable: {b} is announced, and active from {later}"),
                format!("{c} (pool default): not usable: {c} retired on {last}"),
            ],
        ),
        (
            format!("{a} retires={last}\n{b} announced={last} active={next}\n{c} announced={last} active={later}\n"),
            2,
            vec![format!("{b} (pool default): not usable: {b} is announced, and active from {next}")],
        ),
    ] {
        let node = Node::new("");
        let config =
            std::fs::read_to_string(node.config()).unwrap().replace("[[egress", "[egress]\nnotice = \"0s\"\n[[egress");
        std::fs::write(node.config(), config.replacen("[egress]\nnotice = \"0s\"\n", "", 2)).unwrap();
        std::fs::write(node.path("public-ips.txt"), &list).unwrap();
        let (ended, out, err) = run(&["check", "--config", "egressd.toml"], node.directory.path());
        assert_eq!(ended, Some(code), "{list}: {out}{err}");
        for line in lines {
            assert!(out.lines().any(|told| told == format!("source {line}")), "{line} is missing in\n{out}");
        }
        assert_eq!(err.contains("pool \"default\" has no source that is usable now"), code == 2, "{err}");
    }
}

/// What a node has published since its first start is in its store: an address that comes later owes its notice.
#[tokio::test]
async fn check_and_explain_know_what_the_node_has_published() {
    let [first, later, _] = SOURCES;
    let mut node = Node::of("test", &[first], "[store]\npath = \"store\"\nkey_file = \"key\"\n", "");
    std::fs::write(node.path("public-ips.txt"), format!("{first}\n")).unwrap();
    node.start();
    assert_eq!(node.get("/v1/sends").await["next"], serde_json::Value::Null, "it is through with its start");
    node.kill();
    std::fs::write(node.path("public-ips.txt"), format!("{first}\n{later}\n")).unwrap();
    let config = std::fs::read_to_string(node.config()).unwrap();
    let of_first = format!("public = \"{first}\"");
    std::fs::write(node.config(), config.replace(&of_first, &format!("public = \"{later}\""))).unwrap();
    let check = || run(&["check", "--config", "egressd.toml"], node.directory.path());
    let (code, out, err) = check();
    assert_eq!(code, Some(2), "{out}{err}");
    assert!(out.contains(&format!("{later} was first published too lately: its notice ends")), "{out}{err}");
    // A node that has published nothing yet gives every notice with its first start.
    std::fs::remove_dir_all(node.path("store")).unwrap();
    let (code, out, err) = check();
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains(&format!("{later} (pool default): usable now")), "{out}{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_tells_each_source_and_warns_of_a_pool_without_one() {
    let node = Node::started("");
    let reload = |count: f64| {
        let node = &node;
        async move {
            node.signal(Signal::SIGHUP);
            let started = Instant::now();
            while node.metric("egressd_config_reloads_total{result=\"ok\"}").await != Some(count) {
                assert!(started.elapsed() < PATIENCE, "{}", node.log());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    };
    let told = |what: &str| node.log().lines().filter(|line| line.contains(what)).count();
    let until = |what: String, times: usize| {
        let node = &node;
        async move {
            let started = Instant::now();
            while node.log().lines().filter(|line| line.contains(&what)).count() < times {
                assert!(started.elapsed() < PATIENCE, "{what}: {}", node.log());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    };
    let usable = format!("source {} (pool default): usable now", SOURCES[0]);
    until(usable.clone(), 1).await;
    reload(1.0).await;
    until(usable.clone(), 2).await;
    let list: Vec<String> = SOURCES.iter().map(|source| format!("{source} retires={}", day(-1))).collect();
    std::fs::write(node.path("public-ips.txt"), list.join("\n")).unwrap();
    reload(2.0).await;
    let without = "no source of this pool is usable now";
    until(without.to_owned(), 1).await;
    until(format!("{} retired on {}", SOURCES[0], day(-1)), 1).await;
    assert_eq!((told(&usable), told(without)), (2, 1), "{}", node.log());
}

/// Only root can look with another's rights; the gate runs as root.
#[test]
fn check_looks_with_the_rights_of_the_user_that_serve_runs_as() {
    let node = Node::new("");
    let check = |user: &str| run(&["check", "--config", "egressd.toml", "--as-user", user], node.directory.path());
    let allow = |path: &std::path::Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    allow(node.directory.path(), 0o755);
    let (code, _, err) = check("nobody");
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("store.path") && err.contains("nobody may not use"), "{err}");
    allow(node.directory.path(), 0o777);
    let (code, out, err) = check("nobody");
    assert_eq!(code, Some(0), "{out}{err}");
    allow(&node.config(), 0o600);
    let (code, _, err) = check("nobody");
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("cannot be read"), "{err}");
    assert_eq!(check("root").0, Some(0));
    let (code, _, err) = check("nobody-of-this-name");
    assert_eq!(code, Some(2));
    assert!(err.contains("no such user"), "{err}");
}

#[test]
fn the_version_names_the_commit() {
    let output = egressd().arg("--version").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.trim(), format!("egressd {} ({})", env!("CARGO_PKG_VERSION"), env!("EGRESSD_COMMIT")));
}
