//! The shape of the house, as `lib.rs` promises it: imports point down only, and what must be absent is.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// From the ground up: a module may use those of its own floor and of the floors below.
const FLOORS: &[(&str, &[&str])] = &[
    ("words", &["clock", "limits", "outcome", "send", "policy", "record", "redact", "publish", "config"]),
    ("deciding", &["schedule", "flow", "gather", "source"]),
    ("remembering", &["store", "publication", "events"]),
    (
        "reaching out",
        &[
            "files", "world", "deadline", "dial", "deliver", "verify", "trace", "ledger", "backlog", "batcher",
            "dispatch",
        ],
    ),
    ("fronts", &["intake", "explain", "doors", "publish::front", "ops", "api", "proxy", "request_bin"]),
    ("composition", &["telemetry", "app", "cli"]),
];

struct File {
    /// `dial`, or `publish::front` where a part of a module stands on another floor.
    module: String,
    path: PathBuf,
    /// Without unit tests and comments.
    code: String,
}

fn files() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let name = path.strip_prefix(&root).unwrap().with_extension("").to_str().unwrap().replace('/', "::");
            if path.extension().is_none_or(|extension| extension != "rs") || name.ends_with("tests") {
                continue;
            }
            if matches!(name.as_str(), "lib" | "main") || name.contains("conformance") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            files.push(File { module: module_of(&name), path, code: lines.collect::<Vec<_>>().join("\n") });
        }
    }
    files
}

/// The entry of [`FLOORS`] that a path of modules belongs to.
fn module_of(path: &str) -> String {
    let named = FLOORS.iter().flat_map(|(_, modules)| *modules);
    let within = |module: &&&str| path == **module || path.starts_with(&format!("{module}::"));
    let longest = named.filter(within).max_by_key(|module| module.len());
    longest.unwrap_or_else(|| panic!("{path} stands on no floor: put it into this test and into lib.rs")).to_string()
}

fn floor_of(module: &str) -> usize {
    FLOORS.iter().position(|(_, modules)| modules.contains(&module)).unwrap()
}

/// `crate::…` paths that a file names; of `crate::{a, b::c}` each.
fn imports(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let ends = |c: char| !(c.is_alphanumeric() || c == '_' || c == ':');
        if let Some(list) = rest.strip_prefix('{') {
            let list = &list[..list.find("};").unwrap_or(list.len())];
            found.extend(list.split(',').map(|one| one.trim().split(ends).next().unwrap().to_owned()));
        } else {
            found.push(rest.split(ends).next().unwrap().to_owned());
        }
    }
    found.retain(|path| !path.is_empty() && path.starts_with(char::is_lowercase));
    found
}

#[test]
fn imports_point_down_only() {
    let mut wrong = Vec::new();
    let mut seen: HashMap<usize, usize> = HashMap::new();
    for file in files() {
        let floor = floor_of(&file.module);
        for import in imports(&file.code) {
            let used = module_of(import.trim_end_matches(':'));
            *seen.entry(floor).or_default() += 1;
            if floor_of(&used) > floor {
                wrong.push(format!("{} uses {import}, which stands above it", file.path.display()));
            }
        }
    }
    assert!(seen.len() == FLOORS.len(), "the test reads no imports of some floor: {seen:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `(what, pattern, where it may stand)`: the invariants of `lib.rs` that are absences.
#[test]
fn what_must_be_absent_is() {
    let values: Vec<&str> = FLOORS[..2].iter().flat_map(|(_, modules)| *modules).copied().collect();
    let mut wrong = Vec::new();
    for file in files() {
        let name = file.path.display().to_string();
        let may = |places: &[&str]| places.iter().any(|place| name.contains(place));
        let mut absent = |what: &str, patterns: &[&str]| {
            for pattern in patterns.iter().filter(|pattern| file.code.contains(**pattern)) {
                wrong.push(format!("{name}: {what} ({pattern})"));
            }
        };
        let decides = values.contains(&file.module.as_str()) && !may(&["src/config", "src/clock"]);
        if decides {
            absent(
                "words and deciding modules read no clock and do no I/O",
                &["clock::", "Instant::now", "tokio::", "std::fs", "fs::", "std::net::Tcp", "std::net::Udp", "spawn("],
            );
        }
        // Reading what an author wrote is parsing's work; its result is a domain type.
        if decides && !may(&["src/send/parse"]) {
            absent("domain types have no serde form", &["Serialize)", "Serialize,", "Deserialize"]);
        }
        // `plumbed` binds a socket that goes nowhere, `doors` one that listens.
        if !may(&["src/dial/connect.rs", "src/dial/plumbed.rs", "src/cli/check.rs", "src/doors.rs"]) {
            absent("only the dialer makes sockets towards destinations", &["Socket::new(", "TcpSocket::new"]);
        }
        if !may(&["src/store", "src/app/stores.rs"]) {
            let stores = ["store::embedded", "Embedded::", "store::memory", "store::postgres", "Postgres::"];
            absent("only app::stores knows which store is in use", &stores);
        }
        if !may(&["src/flow/simulation"]) {
            absent("`println!` panics where nobody reads: `cli::out` prints", &["println!", "print!"]);
        }
        if !may(&["src/proxy", "src/app", "src/cli"]) {
            absent("nothing but the composition knows the proxy", &["crate::proxy", "super::proxy::"]);
        }
        if !may(&["src/store"]) {
            absent("only a store makes a Started", &["Started::new", "Started {"]);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
