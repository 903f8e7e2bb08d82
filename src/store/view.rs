//! What every store says alike: which state a send is in, what a filter lets through, how a half-made delivery ends.
//!
//! Values in, values out: of the clock nothing is asked but how it was set since then.

use std::net::IpAddr;

use jiff::Timestamp;

use super::{Ending, Filter};
use crate::clock;
use crate::outcome::words::UnmadeCause;
use crate::outcome::{Ended, Failure, Processed, Timings};
use crate::policy::{Asker, Host, Suspensions};
use crate::record::{ExecutionState, Finished, FinishedBy, Record};
use crate::send::SendId;

/// How and when an execution ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedExecution {
    pub ending: Ending,
    pub at: Timestamp,
    /// Sends released or discarded by it.
    pub count: u64,
}

impl Ending {
    pub fn state(self) -> ExecutionState {
        match self {
            Self::Finish(_) => ExecutionState::Finished,
            Self::Discard => ExecutionState::Discarded,
        }
    }

    pub fn finished_by(self) -> Option<FinishedBy> {
        match self {
            Self::Finish(by) => Some(by),
            Self::Discard => None,
        }
    }
}

/// Where an unfinished send stands.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    pub created_at: Timestamp,
    /// It was accepted to be held.
    pub held: bool,
    /// The end of the execution that holds it.
    pub ended: Option<EndedExecution>,
    pub started_at: Option<Timestamp>,
}

impl Standing {
    /// When it was free to go: at its acceptance, or when its execution finished; `None` while held.
    pub fn released_at(&self) -> Option<Timestamp> {
        match (self.held, self.ended) {
            (false, _) => Some(self.created_at),
            (true, Some(EndedExecution { ending: Ending::Finish(_), at, .. })) => {
                Some(clock::later_of(self.created_at, at))
            }
            (true, _) => None,
        }
    }

    pub fn is_discarded(&self) -> bool {
        self.held && matches!(self.ended, Some(EndedExecution { ending: Ending::Discard, .. }))
    }

    /// What can be told of its time so far.
    pub fn timings(&self) -> Timings {
        let released_at = self.released_at();
        Timings {
            held: released_at.map(|released| clock::waited(self.created_at, released)),
            queued: released_at.zip(self.started_at).map(|(released, started)| clock::waited(released, started)),
            ..Timings::default()
        }
    }

    /// The end that a store itself gives to a send which can have no other.
    pub fn end(&self, id: SendId, error: Failure, now: Timestamp) -> Finished {
        Finished {
            id,
            ended: Ended::because(error),
            sent_headers: None,
            response: None,
            connection: None,
            would_block: None,
            timings: self.timings(),
            released_at: self.released_at(),
            started_at: self.started_at,
            finished_at: now,
            batch: None,
        }
    }
}

/// Why a begun send was cut off.
pub fn interrupted() -> Failure {
    UnmadeCause::Interrupted.failure()
}

/// Why a send is not made that may have been.
pub fn doubted() -> Failure {
    UnmadeCause::Doubted.failure()
}

/// Why what waited in a restored copy is not made.
pub fn restored() -> Failure {
    UnmadeCause::Restored.failure()
}

/// Why a held send was never sent.
pub fn discarded() -> Failure {
    UnmadeCause::Discarded.failure()
}

/// Why a send whose request was lost to damage cannot be made; with what earlier tries of its batch may have made of it.
pub fn unreadable(taken: Processed) -> Failure {
    UnmadeCause::unreadable(taken).failure()
}

/// Why a send was not made in time.
pub fn expired() -> Failure {
    UnmadeCause::Expired.failure()
}

/// Why the operator has it stopped, if it is.
pub fn suspended(suspensions: &Suspensions, asker: Asker<'_>, host: Option<&Host>) -> Option<Failure> {
    let reason = suspensions.of(asker).or_else(|| host.and_then(|host| suspensions.of_host(host)))?;
    Some(UnmadeCause::Suspended { reason }.failure())
}

/// Ends are counted by the minute: those of this minute and of the 59 before it.
pub fn is_of_the_hour(at: Timestamp, now: Timestamp) -> bool {
    (minute(now) - 59..=minute(now)).contains(&minute(at))
}

/// The first instant of which [`is_of_the_hour`] is true.
pub fn start_of_the_hour(now: Timestamp) -> Timestamp {
    Timestamp::from_second((minute(now) - 59) * 60).unwrap_or(Timestamp::MIN)
}

pub fn minute(at: Timestamp) -> i64 {
    at.as_second().div_euclid(60)
}

/// A host as filters name it: IPv6 addresses without brackets.
pub fn host_text(host: &Host) -> String {
    match host {
        Host::Name(name) => name.to_string(),
        Host::Address(address) => address.to_string(),
    }
}

/// The path of a URL as records show it; nothing where there is none.
fn path_of(url: &str) -> &str {
    let after = url.split_once("://").map_or("", |(_, rest)| rest);
    let path = after.find(['/', '?', '#']).map_or("", |at| &after[at..]);
    path.split(['?', '#']).next().unwrap_or("")
}

impl Filter {
    /// Whether the whole filter lets this record through. `host`: [`host_text`] of its URL's host.
    pub fn lets_through(&self, record: &Record, host: Option<&str>) -> bool {
        fn is(wanted: Option<&str>, found: Option<&str>) -> bool {
            wanted.is_none_or(|wanted| found == Some(wanted))
        }
        fn any<T: Copy>(wanted: &[T], is: impl FnMut(T) -> bool) -> bool {
            wanted.is_empty() || wanted.iter().copied().any(is)
        }
        let (context, ended) = (&record.context, record.ended.as_ref());
        let by = |ip: IpAddr| {
            record.connection.as_ref().is_some_and(|connection| {
                let is_bound = || connection.source.is_some_and(|source| source.ip() == ip);
                connection.public == Some(ip) || !self.public_only && is_bound()
            })
        };
        let instant = if self.source_ip.is_some() { record.started_at } else { Some(record.created_at) };
        self.reach.takes_in(&record.tenant)
            && is(self.workflow.as_deref(), context.workflow.as_deref())
            && is(self.execution.as_deref(), context.execution.as_ref().map(|execution| execution.as_str()))
            && is(self.step.as_deref(), context.step.as_deref())
            && self.host.as_ref().is_none_or(|hosts| host.is_some_and(|host| hosts.takes_in(host)))
            && any(&self.outcomes, |outcome| ended.is_some_and(|ended| ended.outcome == outcome))
            && any(&self.codes, |code| {
                ended.and_then(|ended| ended.error.as_ref()).is_some_and(|error| error.code == code)
            })
            && any(&self.statuses, |statuses| {
                record.response.as_ref().is_some_and(|answer| statuses.takes_in(answer.status))
            })
            && self.state.is_none_or(|state| record.state == state)
            && self.method.is_none_or(|method| record.request.to.method() == Some(method))
            && self
                .path
                .as_deref()
                .is_none_or(|path| record.request.to.url().is_some_and(|url| path_of(url).starts_with(path)))
            && self.source_ip.is_none_or(by)
            && self.since.is_none_or(|since| instant.is_some_and(|instant| instant >= since))
            && self.until.is_none_or(|until| instant.is_some_and(|instant| instant < until))
    }
}
