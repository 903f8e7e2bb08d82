//! One budget for the whole delivery: every phase spends from it, none gets its own.

use std::{future::Future, time::Duration};

use tokio::time::Instant;

use crate::clock;
use crate::outcome::{Phase, Timings};

/// Made once, when a delivery starts.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    started: Instant,
    total: Duration,
}

impl Deadline {
    pub fn start(total: Duration) -> Self {
        Self { started: clock::monotonic(), total }
    }

    pub fn at(&self) -> Instant {
        self.started + self.total
    }

    pub fn total(&self) -> Duration {
        self.total
    }

    /// Time since the delivery started, never more than a timer's slack past the total.
    pub fn spent(&self) -> Duration {
        clock::monotonic().duration_since(self.started)
    }

    /// Runs a whole delivery, all phases of it; `None`: out of time, and the work was dropped where it stood. One
    /// timer for all phases, so that none of them can be given its own.
    pub async fn bound<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        #[allow(clippy::disallowed_methods, reason = "the one timeout there is")]
        tokio::time::timeout_at(self.at(), work).await.ok()
    }
}

/// Which phase a delivery is in, and where its time went so far. Kept outside of the work, so that it still tells
/// when the work was dropped.
#[derive(Debug, Default)]
pub struct Stopwatch {
    timings: Timings,
    running: Option<(Phase, Instant)>,
}

impl Stopwatch {
    /// The phase before, if any, ends here.
    pub fn enter(&mut self, phase: Phase) {
        let now = clock::monotonic();
        self.leave_at(now);
        self.running = Some((phase, now));
    }

    /// The running phase did not happen after all.
    pub fn cancel(&mut self) {
        self.running = None;
    }

    pub fn leave(&mut self) {
        self.leave_at(clock::monotonic());
    }

    /// Ends the running phase at an instant that something else saw; never before it began.
    pub fn leave_at(&mut self, at: Instant) {
        if let Some((phase, from)) = self.running.take() {
            self.timings.spend(phase, at.saturating_duration_since(from));
        }
    }

    /// The phase that ended at `at` is followed by this one without a gap.
    pub fn enter_at(&mut self, phase: Phase, at: Instant) {
        let at = self.running.map_or(at, |(_, from)| at.max(from));
        self.leave_at(at);
        self.running = Some((phase, at));
    }

    pub fn phase(&self) -> Option<Phase> {
        self.running.map(|(phase, _)| phase)
    }

    /// What ended by now took so long.
    pub fn so_far(&self) -> &Timings {
        &self.timings
    }

    /// Ends the running phase, where the delivery ended.
    pub fn finish(mut self, deadline: &Deadline, total: Duration) -> Timings {
        self.leave_at(deadline.started + total);
        self.timings.total = Some(total);
        self.timings
    }
}
