//! Shares of the log: what callers and receivers can cause in bulk writes so many lines a minute, and how many more
//! there were.
//!
//! A line is of its kind (where it stands in the code) and of whoever it names: a tenant, or the client that asked. Each
//! has a share of its own, so that nobody's lines push out another's. What is left out is counted and told when the
//! minute is over; records keep all of it.

use std::collections::HashMap;
use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, callsite};
use tracing_subscriber::layer::{Context, Layer};

use crate::clock;
use crate::limits::{LOG_LINES, LOG_LINES_OF_ONE, LOG_NAMES_MAX, NAME_CHARS_MAX, TENANT_CHARS_MAX};

/// How long a share lasts.
pub const MINUTE: Duration = Duration::from_secs(60);
/// Of the lines that tell what was left out, which are never left out.
const LEFT_OUT: &str = "egressd::log";

#[derive(Clone, Debug, Default)]
pub struct Shares(Arc<Mutex<HashMap<callsite::Identifier, Kind>>>);

/// Lines of one place in the code.
#[derive(Debug)]
struct Kind {
    level: Level,
    message: String,
    shares: HashMap<Whose, Share>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
enum Whose {
    Tenant(String),
    Client(String),
    #[default]
    Nobodys,
}

#[derive(Debug)]
struct Share {
    since: Instant,
    written: u32,
    left_out: u64,
}

impl Shares {
    fn lock(&self) -> MutexGuard<'_, HashMap<callsite::Identifier, Kind>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this line is within its share.
    fn admit(&self, metadata: &Metadata<'_>, line: Line, now: Instant) -> bool {
        let mut kinds = self.lock();
        let kind = kinds.entry(metadata.callsite()).or_insert_with(|| Kind {
            level: *metadata.level(),
            message: line.message,
            shares: HashMap::new(),
        });
        let full = kind.shares.len() >= LOG_NAMES_MAX;
        let whose = if full && !kind.shares.contains_key(&line.whose) { Whose::Nobodys } else { line.whose };
        let most = if whose == Whose::Nobodys { LOG_LINES } else { LOG_LINES_OF_ONE };
        let share = kind.shares.entry(whose).or_insert(Share { since: now, written: 0, left_out: 0 });
        let within = share.written < most;
        if within {
            share.written += 1;
        } else {
            share.left_out += 1;
        }
        within
    }

    /// Tells of what was left out, once a share's minute is over; all of it where the process ends.
    pub fn tell(&self, ends: bool) {
        let now = clock::monotonic();
        let mut told = Vec::new();
        for kind in self.lock().values_mut() {
            kind.shares.retain(|whose, share| {
                let over = ends || now >= share.since + MINUTE;
                if over && share.left_out > 0 {
                    told.push((kind.level, kind.message.clone(), whose.clone(), share.left_out));
                }
                !over
            });
        }
        // Outside of the lock, which each line takes.
        for (level, like, whose, left_out) in told {
            let (tenant, by) = match &whose {
                Whose::Tenant(tenant) => (Some(tenant.as_str()), None),
                Whose::Client(client) => (None, Some(client.as_str())),
                Whose::Nobodys => (None, None),
            };
            if level <= Level::WARN {
                tracing::warn!(target: LEFT_OUT, left_out, tenant, by, like, "more like this in the last minute");
            } else {
                tracing::info!(target: LEFT_OUT, left_out, tenant, by, like, "more like this in the last minute");
            }
        }
    }
}

impl<S: Subscriber> Layer<S> for Shares {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if metadata.target() == LEFT_OUT {
            return true;
        }
        let mut line = Line::default();
        event.record(&mut line);
        self.admit(metadata, line, clock::monotonic())
    }
}

/// What is looked at of a line.
#[derive(Default)]
struct Line {
    message: String,
    whose: Whose,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "message" => self.message = bounded(value),
            "tenant" => self.whose = Whose::Tenant(bounded(value)),
            "by" => self.whose = Whose::Client(bounded(value)),
            _ => {}
        }
    }
}

fn bounded(value: &dyn Debug) -> String {
    let mut text = String::new();
    let _ = write!(text, "{value:?}");
    let most = TENANT_CHARS_MAX.max(NAME_CHARS_MAX);
    text.char_indices().nth(most).map(|(at, _)| at).inspect(|at| text.truncate(*at));
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Written {
        /// What was written since the last time.
        fn lines(&self) -> Vec<String> {
            let written = std::mem::take(&mut *self.0.lock().unwrap());
            String::from_utf8(written).unwrap().lines().map(str::to_owned).collect()
        }
    }

    /// What is logged meanwhile goes through shares of its own.
    fn logging(then: impl AsyncFnOnce(Shares, Written)) {
        let (shares, written) = (Shares::default(), Written::default());
        let writer = written.clone();
        let lines = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        tracing::subscriber::with_default(lines.with(shares.clone()), || runtime.block_on(then(shares, written)));
    }

    fn ended(tenant: &str) {
        tracing::info!(send = 7, %tenant, code = "connection_refused", "send ended");
    }

    fn count(lines: &[String], what: &str) -> usize {
        lines.iter().filter(|line| line.contains(what)).count()
    }

    #[test]
    fn a_tenants_failures_write_their_share_and_are_counted() {
        logging(async |shares, written| {
            for number in 0..10_000 {
                ended("loud");
                if number % 1_000 == 0 {
                    ended("quiet");
                    tracing::warn!(tenant = "loud", "of another kind");
                }
            }
            let lines = written.lines();
            assert_eq!(count(&lines, "tenant=loud code"), LOG_LINES_OF_ONE as usize);
            assert_eq!((count(&lines, "tenant=quiet"), count(&lines, "another kind")), (10, 10), "shares of their own");
            shares.tell(false);
            assert_eq!(written.lines(), [""; 0], "the minute is not over");

            tokio::time::advance(MINUTE).await;
            shares.tell(false);
            let lines = written.lines();
            assert_eq!(lines.len(), 1, "{lines:?}");
            let told = "INFO egressd::log: more like this in the last minute left_out=9940 tenant=\"loud\" like=\"send ended\"";
            assert!(lines[0].ends_with(told), "{lines:?}");
            assert!(shares.lock().values().all(|kind| kind.shares.is_empty()), "nothing is kept of who is silent");

            // Another minute, another share; and the end of the process leaves nothing untold.
            (0..100).for_each(|_| ended("loud"));
            assert_eq!(count(&written.lines(), "tenant=loud"), LOG_LINES_OF_ONE as usize);
            shares.tell(true);
            assert_eq!(count(&written.lines(), "left_out=40 tenant=\"loud\""), 1);
        });
    }

    #[test]
    fn whoever_asks_and_what_names_nobody_have_shares_too() {
        logging(async |shares, written| {
            for number in 0..2 * LOG_LINES {
                tracing::warn!(by = %"their operator", id = number, "suspended");
                tracing::error!(send = number, "an outcome could not be written");
            }
            let lines = written.lines();
            assert_eq!(count(&lines, "suspended"), LOG_LINES_OF_ONE as usize);
            assert_eq!(count(&lines, "outcome"), LOG_LINES as usize);
            shares.tell(true);
            let lines = written.lines();
            assert_eq!(count(&lines, "WARN egressd::log: more like this in the last minute left_out="), 2, "{lines:?}");
            assert_eq!(count(&lines, "left_out=1940 by=\"their operator\" like=\"suspended\""), 1, "{lines:?}");
            assert_eq!(count(&lines, "left_out=1000 like=\"an outcome"), 1, "{lines:?}");
        });
    }

    #[test]
    fn names_without_end_are_not_kept_without_end() {
        logging(async |shares, written| {
            let names = LOG_NAMES_MAX + LOG_LINES as usize + 500;
            for number in 0..names {
                ended(&format!("t{number}-{}", "x".repeat(10_000)));
            }
            assert_eq!(written.lines().len(), LOG_NAMES_MAX + LOG_LINES as usize);
            for kind in shares.lock().values() {
                assert_eq!(kind.shares.len(), LOG_NAMES_MAX + 1);
                let longest = |whose: &Whose| if let Whose::Tenant(name) = whose { name.len() } else { 0 };
                assert!(kind.shares.keys().map(longest).max() <= Some(TENANT_CHARS_MAX));
            }
        });
    }
}
