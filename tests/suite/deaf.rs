//! The gate is deaf to the machine's mood: no test of it says how soon something must have happened. What is about speed
//! is a bench's; what is about order waits for events, with one generous end that only a failure comes to.
//!
//! By pattern, which finds the usual ways of writing it. What stands on purpose is named in [`ALLOWED`] with its reason.

use std::path::{Path, PathBuf};

/// Where, what (a part of the line or statement), and why it may stand.
const ALLOWED: &[(&str, &str, &str)] = &[
    ("src/dial/ports.rs", "begun.elapsed() < std::time::Duration::from_secs(60)", "a test's patience"),
    (
        "src/store/embedded/tests/damage.rs",
        "sleep(Duration::from_millis(300))",
        "for what must not happen: a loaded machine tries less often",
    ),
    (
        "tests/suite/names.rs",
        "attempt.timings.total.unwrap() < LONG / 2",
        "half of the tests' patience, to tell it from the deadline",
    ),
    (
        "tests/suite/deliveries.rs",
        "spent <= timings.total.unwrap()",
        "parts of one record's sum, measured by one clock",
    ),
    (
        "tests/suite/http2.rs",
        "sleep(std::time::Duration::from_millis(260))",
        "a connection is kept open for so long before it is used again",
    ),
    ("tests/suite/reuse.rs", "loop {", "looks that end with the receiver's patience, beside which they run"),
    ("tests/suite/support/hostile.rs", "loop {", "a receiver lasts as long as its peer does"),
    (
        "src/dial/resolve/message/tests.rs",
        "each < std::time::Duration::from_millis(5)",
        "processor time, far above what is needed; what the reading looks at is counted beside it",
    ),
    ("src/deliver/turns.rs", "loop {", "work without end is what is stopped there"),
    ("src/dispatch/tests.rs", "timeout(Duration::from_secs(3600)", "of a paused clock"),
    ("src/ledger/tests.rs", "timeout(Duration::from_secs(1)", "of a paused clock"),
    ("src/ledger/tests.rs", "timeout(Duration::from_secs(3600)", "of a paused clock"),
    ("src/dispatch/tests.rs", "sleep(Duration::from_secs(60))", "of a paused clock"),
    ("src/api/tests/tails.rs", "sleep(Duration::from_secs(1))", "of a paused clock"),
    ("src/api/tests/calls.rs", "sleep(Duration::from_secs(1))", "of a paused clock"),
    ("src/api/serve/tests.rs", "sleep(Duration::from_secs(1))", "of a paused clock"),
    ("src/api/serve/tests.rs", "stayed <= limits::API_STRANGER_LIFE", "by a paused clock"),
    (
        "deploy/workflow-node/test/destination.test.js",
        "const execution = `d-${Math.random()}`",
        "a name of its own, no choice",
    ),
    (
        "tests/process/tail.rs",
        "timeout(Duration::from_millis(300)",
        "until another send is made: none of them is required to be followed",
    ),
    (
        "tests/process/commands.rs",
        "timeout(Duration::from_millis(300)",
        "until another send is made: none of them is required to be followed",
    ),
];

/// One finding: where, and what stands there.
struct Found {
    place: String,
    what: String,
    rule: &'static str,
}

/// The gate's own text, by language: tests of every kind, and nothing of benches, fuzzing or other people's.
fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut files, mut directories) = (Vec::new(), vec![root.join("src"), root.join("tests"), root.join("deploy")]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                if !["node_modules", "bench", "fuzz", "stores", "assets"].contains(&name) {
                    directories.push(path);
                }
            } else if name != "deaf.rs"
                && name != "bench.js"
                && let Ok(text) = std::fs::read_to_string(&path)
            {
                files.push((path.strip_prefix(root).unwrap().to_owned(), text));
            }
        }
    }
    files
}

/// What is a test of a file, and how many lines stand before it. All of it under `tests/`.
fn tests_of<'a>(path: &Path, text: &'a str) -> Option<(&'a str, usize)> {
    let name = path.to_str().unwrap();
    if name.starts_with("tests/") || name.contains("/test/") || name.contains("tests") {
        return Some((text, 0));
    }
    let at = text.find("#[cfg(test)]\nmod tests {")?;
    Some((&text[at..], text[..at].matches('\n').count()))
}

fn findings(path: &Path, text: &str) -> Vec<Found> {
    let Some((tests, before)) = tests_of(path, text) else { return Vec::new() };
    let mut found = Vec::new();
    let mut report = |at: usize, what: &str, rule: &'static str| {
        let line = before + tests[..at].matches('\n').count() + 1;
        let what = what.split_whitespace().collect::<Vec<_>>().join(" ");
        found.push(Found { place: format!("{}:{line}", path.display()), what, rule });
    };
    let kind = path.extension().and_then(|extension| extension.to_str()).unwrap_or("");
    for (at, line) in lines(tests) {
        let code = line.trim_start();
        if code.starts_with("//") || code.starts_with('#') || code.starts_with('*') {
            continue;
        }
        if ["numgen random", "Math.random", "rand::random", "rand::rng", "thread_rng", "random.random("]
            .iter()
            .any(|random| code.contains(random))
        {
            report(at, code, "what is random in a test has a seed");
        }
        if code.contains("waitForTimeout(") {
            report(at, code, "a page is waited for by what it shows");
        }
        if kind == "js" && code.contains("assert") && (code.contains("performance.now") || is_past(code)) {
            report(at, code, "how long it took is no assertion");
        }
        if kind == "rs" && literal_wait(code) {
            report(at, code, "waits are for events, and their end is PATIENCE");
        }
        let waits_for_itself = code.starts_with("while ") && !code.starts_with("while let ") && code.ends_with('{');
        if kind == "rs" && (waits_for_itself || code == "loop {") {
            let body = body_of(tests, at, line);
            let waits = body.contains("yield_now") || body.contains("sleep(");
            let ends =
                ["assert", "panic!", "patience", "PATIENCE", "lasts()", "spins("].iter().any(|end| body.contains(end));
            if waits && !ends {
                report(at, code, "a loop that waits gives up after PATIENCE");
            }
        }
    }
    if kind == "rs" {
        let uncommented = lines(tests).map(|(_, line)| line).map(|line| {
            let comment = line.trim_start().starts_with("//");
            if comment { " ".repeat(line.len()) + "\n" } else { format!("{line}\n") }
        });
        for (at, assertion) in assertions(&uncommented.collect::<String>()) {
            if bounds_time(assertion) {
                report(at, assertion, "how soon it happened is no assertion: order, counts and lower bounds are");
            }
        }
    }
    found
}

fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.split_inclusive('\n').scan(0, |at, line| {
        let from = *at;
        *at += line.len();
        Some((from, line.trim_end()))
    })
}

/// A line of the browser's tests that compares times of day, as in `Date.now() - started < 1500`.
fn is_past(code: &str) -> bool {
    code.contains("Date.now() -") && code.contains(" < ") && !code.contains("PATIENCE") && !code.contains("Date.parse")
}

/// `sleep` for a fifth of a second or more, or `timeout` after a time of its own.
fn literal_wait(code: &str) -> bool {
    let number = |call: &str| -> Option<u64> {
        let rest = &code[code.find(call)? + call.len()..];
        let rest = rest.trim_start_matches("std::time::").strip_prefix("Duration::from_")?;
        let (unit, rest) = rest.split_once('(')?;
        let digits: String =
            rest.chars().take_while(|c| c.is_ascii_digit() || *c == '_').filter(|c| *c != '_').collect();
        Some(digits.parse::<u64>().ok()? * if unit == "secs" { 1000 } else { 1 })
    };
    number("sleep(").is_some_and(|milliseconds| milliseconds >= 200) || number("timeout(").is_some()
}

/// The loop that begins on this line, to the brace at its own depth.
fn body_of<'a>(text: &'a str, at: usize, line: &str) -> &'a str {
    let depth = line.len() - line.trim_start().len();
    let closing = format!("\n{}}}", &line[..depth]);
    let rest = &text[at..];
    &rest[..rest.find(&closing).unwrap_or(rest.len())]
}

/// Each `assert…!(…)` with its arguments.
fn assertions(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("assert") {
        let Some(open) = text[at..].find("!(").filter(|open| *open <= "assert_matches".len()) else { continue };
        if !text[at..at + open].chars().all(|c| c.is_ascii_alphabetic() || c == '_') {
            continue;
        }
        let mut depth = 0;
        let end = text[at + open..].char_indices().find(|(_, c)| {
            depth += i32::from(*c == '(') - i32::from(*c == ')');
            *c == ')' && depth == 0
        });
        if let Some((end, _)) = end {
            found.push((at, &text[at..at + open + end + 1]));
        }
    }
    found
}

/// An upper bound on something that is a time by its name or type, and not on a test's patience.
fn bounds_time(assertion: &str) -> bool {
    const MEASURED: [&str; 7] = ["elapsed(", "as_millis", "as_secs", "timings", "took", "lasted", "timing(\""];
    let measured = |side: &str| MEASURED.iter().any(|time| side.contains(time));
    let timed = |side: &str| measured(side) || side.contains("Duration::from_");
    // The message is no part of what is compared.
    let condition = assertion.split(", \"").next().unwrap();
    if condition.to_lowercase().contains("patience") {
        return false;
    }
    let sides = |sign: &str| condition.split_once(sign);
    let upper =
        [" < ", " <= "].iter().filter_map(|sign| sides(sign)).any(|(left, right)| measured(left) || timed(right));
    let reversed = [" > ", " >= "].iter().filter_map(|sign| sides(sign)).any(|(_, right)| measured(right));
    let range = condition.contains(".contains(&") && condition.contains("..") && timed(condition);
    upper || reversed || range
}

#[test]
fn no_test_of_the_gate_says_how_soon() {
    let files = sources();
    let mut used = vec![false; ALLOWED.len()];
    let mut wrong = Vec::new();
    for (path, text) in &files {
        for Found { place, what, rule } in findings(path, text) {
            let allowed = ALLOWED.iter().position(|(file, part, _)| place.starts_with(file) && what.contains(part));
            match allowed {
                Some(at) => used[at] = true,
                None => wrong.push(format!("{place}: {what}\n    {rule}")),
            }
        }
    }
    for extension in ["rs", "js", "py", "bash"] {
        assert!(
            files.iter().any(|(path, _)| path.extension().is_some_and(|is| is == extension)),
            "no {extension} is read"
        );
    }
    let stale =
        ALLOWED.iter().zip(&used).filter(|(_, used)| !**used).map(|((file, part, _), _)| format!("{file}: {part}"));
    let stale: Vec<_> = stale.collect();
    assert!(wrong.is_empty(), "{}\n(or, with its reason, into ALLOWED)", wrong.join("\n"));
    assert!(stale.is_empty(), "allowed and not there: {}", stale.join("\n"));
}

/// The check can fail, and lets through what is meant to stand.
#[test]
fn the_usual_ways_of_saying_how_soon_are_found() {
    let found = |file: &str, line: &str| !findings(Path::new(file), line).is_empty();
    for line in [
        "assert!(started.elapsed() < Duration::from_secs(5), \"late\");",
        "assert!(\n    Duration::from_millis(200) > begun.elapsed(),\n);",
        "assert!(attempt.timings.connect.unwrap() < limit);",
        "assert!(took <= NOT_SLOWED, \"{took}\");",
        "assert!((Duration::from_secs(5)..Duration::from_secs(6)).contains(&spent));",
        "tokio::time::sleep(Duration::from_millis(250)).await;",
        "std::thread::sleep(std::time::Duration::from_secs(1));",
        "tokio::time::timeout(Duration::from_secs(15), answer).await",
        "    while seen.is_empty() {\n        tokio::task::yield_now().await;\n    }\n",
        "    loop {\n        sleep(SOON).await;\n    }\n",
        "numgen random mod 100 < 25 drop",
        "let pick = rand::random::<u8>();",
    ] {
        assert!(found("tests/process/some.rs", line), "{line}");
        assert!(found("src/some/tests.rs", line), "{line}");
    }
    for line in [
        "await page.waitForTimeout(300);",
        "assert.ok(performance.now() - started < 1500);",
        "assert.ok(Date.now() - started < 1500);",
        "const pause = Math.random() * 10;",
    ] {
        assert!(found("tests/browser/some.test.js", line), "{line}");
    }
    for line in [
        "assert!(started.elapsed() < PATIENCE, \"never\");",
        "assert!(waited >= notice, \"used after {waited}\");",
        "assert!(connect >= Duration::from_millis(245), \"{connect:?}\");",
        "assert!(rows.len() < 120);",
        "tokio::time::sleep(Duration::from_millis(5)).await;",
        "tokio::time::timeout(PATIENCE, answer).await",
        "    while seen.is_empty() {\n        assert!(started.elapsed() < PATIENCE);\n        sleep(SOON).await;\n    }\n",
        "// assert!(started.elapsed() < Duration::from_secs(5));",
    ] {
        assert!(!found("tests/process/some.rs", line), "{line}");
    }
}
