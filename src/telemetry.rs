//! Logs and metrics of the process: where they go and in which buckets; and spans, to a collector ([`otlp`]).
//!
//! Every metric is described where it is counted; labels come from closed lists or the configured sources only.

pub mod otlp;
mod shares;
mod writer;

use std::fmt::Write as _;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

pub use self::shares::MINUTE;
use self::shares::Shares;
use self::writer::Lines;
use crate::clock;

/// From a millisecond to just past the default deadline, in seconds.
const DELIVERY_BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 4.9, 5.05, 5.25, 10.0];
/// A queue may be as old as a send's expiry: to a day, in seconds.
const QUEUE_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 86400.0,
];
/// What a sync to disk takes, in seconds.
const COMMIT_BUCKETS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// Makes this process' metrics go to the handle. Once per process.
pub fn metrics() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full("egressd_delivery_seconds".to_owned()), DELIVERY_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full("egressd_phase_seconds".to_owned()), DELIVERY_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full("egressd_tunnel_connect_seconds".to_owned()), DELIVERY_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full("egressd_queue_wait_seconds".to_owned()), QUEUE_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full("egressd_store_commit_seconds".to_owned()), COMMIT_BUCKETS)?
        .install_recorder()?;
    metrics::describe_gauge!("egressd_build_info", metrics::Unit::Count, "Always 1; version and commit are labels.");
    metrics::gauge!("egressd_build_info", "version" => env!("CARGO_PKG_VERSION"), "commit" => env!("EGRESSD_COMMIT"))
        .set(1.0);
    Ok(handle)
}

/// What becomes of lines on their way to stderr.
#[derive(Debug)]
pub struct Logs {
    shares: Shares,
    lines: Option<Lines>,
}

impl Logs {
    /// Tells what was left out, of minutes that are over. To be called a few times a minute.
    pub fn tell(&self) {
        self.shares.tell(false);
    }

    /// Tells what was left out, and waits a little until all is written: the process ends.
    pub fn close(self) {
        self.shares.tell(true);
        if let Some(lines) = &self.lines {
            lines.flush();
        }
    }
}

/// Logs go to stderr: as lines for a person on a terminal, as JSON when piped. `EGRESSD_LOG` filters
/// (`tracing_subscriber`'s directives; default `info`). Nobody has more than a share of them, and nobody waits for
/// whoever reads them.
pub fn logs(default: &str) -> Logs {
    use std::io::{self, IsTerminal};
    let filter = EnvFilter::try_from_env("EGRESSD_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let is_terminal = io::stderr().is_terminal();
    let lines = Lines::start(io::stderr(), if is_terminal { no_room } else { no_room_json }).ok();
    let writer = match lines.clone() {
        Some(lines) => BoxMakeWriter::new(lines),
        // Without a thread of their own they are written where they come from.
        None => BoxMakeWriter::new(io::stderr),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    // It would say on stderr that stderr cannot be written, and panic there.
    let builder = builder.log_internal_errors(false);
    let shares = Shares::default();
    // A second call (tests start several appliances in one process) keeps the first.
    let _ = if is_terminal {
        builder.fmt_fields(plain_fields()).finish().with(shares.clone()).try_init()
    } else {
        builder.json().finish().with(shares.clone()).try_init()
    };
    Logs { shares, lines }
}

const NO_ROOM: &str = "log lines were left out: nobody read them";

fn no_room(count: u64) -> String {
    format!("{} {count} {NO_ROOM}\n", clock::wall())
}

fn no_room_json(count: u64) -> String {
    let at = clock::wall();
    format!(
        "{{\"timestamp\":\"{at}\",\"level\":\"WARN\",\"fields\":{{\"message\":\"{NO_ROOM}\",\"left_out\":{count}}},\"target\":\"egressd::log\"}}\n"
    )
}

/// Fields of a line for a person. What others have written (ids, reasons, errors) stands among them: it neither steers
/// the terminal nor begins a line of its own.
fn plain_fields() -> impl for<'w> FormatFields<'w> + Send + Sync + 'static {
    let field = |writer: &mut Writer<'_>, field: &Field, value: &dyn std::fmt::Debug| match field.name() {
        "message" => write!(Plain(writer), "{value:?}"),
        name => write!(Plain(writer), "{name}={value:?}"),
    };
    debug_fn(field).delimited(" ")
}

/// Writes control characters, and those that turn the direction of text, by their numbers.
struct Plain<'a, W>(&'a mut W);

impl<W: std::fmt::Write> std::fmt::Write for Plain<'_, W> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for part in text.split_inclusive(steers) {
            let Some(last) = part.chars().next_back().filter(|last| steers(*last)) else {
                self.0.write_str(part)?;
                continue;
            };
            self.0.write_str(&part[..part.len() - last.len_utf8()])?;
            write!(self.0, "{}", last.escape_unicode())?;
        }
        Ok(())
    }
}

/// Unicode's line and paragraph separators, and its marks, embeddings and overrides of direction.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Terminal(Arc<Mutex<Vec<u8>>>);

    impl Write for Terminal {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_others_wrote_steers_no_terminal_and_begins_no_line() {
        let terminal = Terminal::default();
        let writer = terminal.clone();
        let lines = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .fmt_fields(plain_fields())
            .finish();
        let evil = "\u{1b}]0;PWNED\u{7}\u{1b}[2J\r\n2026-11-29T00:00:00Z INFO forged\u{9b}31m \u{202e}txt\u{2028}end";
        tracing::subscriber::with_default(lines, || {
            tracing::warn!(execution = %evil, "shown");
            tracing::warn!(reason = ?evil, "debugged");
            tracing::warn!(evil, "as a value");
            tracing::warn!("in the message: {evil}");
            tracing::warn!(error = &std::io::Error::other(evil) as &dyn std::error::Error, "an error");
            let span = tracing::warn_span!("span", reason = %evil);
            span.in_scope(|| tracing::warn!("in a span"));
        });
        let written = String::from_utf8(terminal.0.lock().unwrap().clone()).unwrap();
        assert_eq!(written.lines().count(), 6, "{written}");
        assert_eq!(written.matches("PWNED").count(), 6, "{written}");
        assert!(!written.chars().any(|c| c != '\n' && steers(c)), "{written:?}");
        assert!(written.lines().all(|line| line.contains(" WARN ")), "{written}");
    }
}
