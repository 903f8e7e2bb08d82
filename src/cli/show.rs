//! Records as lines and blocks for a terminal; colour only on one. What came from elsewhere is shown without its
//! control characters, so that it cannot steer the terminal.

use std::io::IsTerminal;

use serde_json::Value;

/// How stdout is written to.
#[derive(Clone, Copy)]
pub struct Style {
    colour: bool,
}

impl Style {
    pub fn of_stdout() -> Self {
        Self { colour: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }

    pub fn plain() -> Self {
        Self { colour: false }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn outcome(self, outcome: &str, padded: &str) -> String {
        let code = match outcome {
            "delivered" => "32",
            "rejected" => "33",
            "blocked" => "35",
            "failed" | "interrupted" => "31",
            _ => "2",
        };
        self.paint(code, padded)
    }
}

/// At most `max` characters of a text, control characters and direction overrides replaced.
pub fn clean(text: &str, max: usize) -> String {
    crate::outcome::tame(text, max)
}

fn text<'a>(record: &'a Value, pointer: &str) -> &'a str {
    record.pointer(pointer).and_then(Value::as_str).unwrap_or("-")
}

/// A number of milliseconds, short.
fn ms(value: Option<&Value>) -> String {
    match value.and_then(Value::as_f64) {
        None => "-".to_owned(),
        Some(ms) if ms < 10.0 => format!("{ms:.1}"),
        Some(ms) => format!("{ms:.0}"),
    }
}

/// The columns of [`line()`], for above a list.
pub fn header(style: Style) -> String {
    style.dim(&format!(
        "{:<12} {:<11} {:<22} {:<15} {:>8}  {:<7} url",
        "time (UTC)", "outcome", "status or code", "source", "total ms", "method"
    ))
}

/// One send on one line: time, outcome, status or code, source, total, method, URL.
pub fn line(record: &Value, style: Style) -> String {
    let outcome = match text(record, "/outcome") {
        "-" => text(record, "/state"),
        outcome => outcome,
    };
    let answer = match text(record, "/error/code") {
        "-" => record.pointer("/response/status").map_or_else(|| "-".to_owned(), ToString::to_string),
        code => code.to_owned(),
    };
    let source = match text(record, "/connection/public_ip") {
        "-" => text(record, "/connection/source_ip"),
        public => public,
    };
    // A message has neither: what stands there is that it is one, and whom it went to.
    let to = || record.pointer("/email/headers/to/0").and_then(Value::as_str).unwrap_or("the tenant's own address");
    let is = |name: &str| record.get(name).is_some_and(Value::is_object);
    let bucket = || {
        format!(
            "s3://{}/{}",
            text(record, "/s3/bucket"),
            record.pointer("/s3/prefix").and_then(Value::as_str).unwrap_or_default()
        )
    };
    let (method, url) = match () {
        () if is("email") => ("EMAIL", to().to_owned()),
        () if is("s3") => ("S3", bucket()),
        () if is("sql") => ("SQL", text(record, "/sql/table").to_owned()),
        () => (text(record, "/request/method"), text(record, "/request/url").to_owned()),
    };
    format!(
        "{} {} {answer:<22} {source:<15} {:>8}  {method:<7} {}",
        style.dim(&format!("{:<12}", text(record, "/finished_at").get(11..23).unwrap_or("-"))),
        style.outcome(outcome, &format!("{outcome:<11}")),
        ms(record.pointer("/timings_ms/total")),
        clean(&url, 200),
    )
}

/// Where the time of a send went: `queued 0.8 · dns 1.2 · …`.
pub fn timings(record: &Value) -> String {
    let shown = ["held", "queued", "dns", "connect", "tls", "write", "wait", "read"].iter().filter_map(|phase| {
        let value = record.get("timings_ms")?.get(phase)?;
        value.is_number().then(|| format!("{phase} {}", ms(Some(value))))
    });
    shown.collect::<Vec<_>>().join(" · ")
}

/// A record as a block: what was sent, from where, what came back, why it failed.
pub fn block(record: &Value, style: Style) -> String {
    let field = |name: &str, value: &str| format!("  {} {value}\n", style.dim(&format!("{name:<9}")));
    let address = |ip: &str, port: &str| match text(record, ip) {
        "-" => None,
        ip => Some(format!("{ip} port {}", record.pointer(port).unwrap_or(&Value::Null))),
    };
    let mut out = line(record, style) + "\n" + &field("id", text(record, "/id"));
    if let Some(message) = record.pointer("/error/message").and_then(Value::as_str) {
        out += &field("why", &clean(message, 1024));
        out += &field("handled", text(record, "/error/processed"));
    }
    if let Some(from) = address("/connection/source_ip", "/connection/source_port") {
        out += &field("from", &from);
    }
    if let Some(to) = address("/connection/remote_ip", "/connection/remote_port") {
        out += &field("to", &to);
    }
    if text(record, "/connection/tls/version") != "-" {
        let tls = format!("{} {}", text(record, "/connection/tls/version"), text(record, "/connection/tls/cipher"));
        out += &field("tls", &tls);
    }
    out += &field("ms", &timings(record));
    let sent =
        [("subject", "/email/subject"), ("text", "/email/text"), ("html", "/email/html"), ("sent", "/request/body")];
    for (name, pointer) in sent.into_iter().chain([("received", "/response/body")]) {
        if let Some(body) = record.pointer(pointer).and_then(Value::as_str)
            && !body.is_empty()
        {
            out += &field(name, &clean(body.trim_end(), 300));
        }
    }
    out
}

/// Rows whose columns stand under one another; the last one ends where it ends.
pub fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_receiver_sent_cannot_steer_the_terminal() {
        assert_eq!(clean("a\x1b[2Jb\u{202e}c\r\n", 99), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}\u{fffd}");
        assert_eq!(clean("abcdef", 3), "ab…");
    }

    #[test]
    fn a_message_is_told_by_whom_it_went_to() {
        let mut record = json!({
            "outcome": "rejected", "request": null, "response": {"status": 550, "body": "5.1.1 unknown"},
            "email": {"subject": "Order 7", "text": "It has\narrived.", "html": null, "headers": {"to": ["owner@acme.example"]}},
        });
        let block = block(&record, Style::plain());
        for part in [
            "rejected",
            "550",
            "EMAIL",
            "owner@acme.example",
            "subject   Order 7",
            "It has\u{fffd}arrived.",
            "5.1.1 unknown",
        ] {
            assert!(block.contains(part), "{part}: {block}");
        }
        record["email"]["headers"] = json!({});
        assert!(line(&record, Style::plain()).ends_with("EMAIL   the tenant's own address"));
    }

    #[test]
    fn a_line_names_outcome_code_source_and_url() {
        let record = json!({
            "outcome": "failed", "error": {"code": "timeout"}, "finished_at": "2026-11-22T10:11:12.345Z",
            "connection": {"public_ip": "198.51.100.10"}, "timings_ms": {"total": 5000.4, "dns": 1.25},
            "request": {"method": "POST", "url": "https://a.example.net/"},
        });
        let line = line(&record, Style::plain());
        for part in ["10:11:12.345", "failed", "timeout", "198.51.100.10", "5000", "POST", "https://a.example.net/"] {
            assert!(line.contains(part), "{line}");
        }
        assert_eq!(timings(&record), "dns 1.2");
    }
}
