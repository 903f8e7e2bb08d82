//! One budget for the whole delivery: every phase spends from it, none gets its own.

use std::{future::Future, time::Duration};

use tokio::time::Instant;

use crate::clock;
use crate::outcome::{Code, Failure, Phase, Timings};

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

    /// Runs one phase: its time goes into `timings`, also when it fails; out of time it is dropped and fails with
    /// `timeout`, naming the phase.
    pub async fn spend<T>(
        &self,
        phase: Phase,
        timings: &mut Timings,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let from = clock::monotonic();
        #[allow(clippy::disallowed_methods, reason = "the one timeout there is")]
        let result = tokio::time::timeout_at(self.at(), work).await;
        timings.spend(phase, clock::monotonic().duration_since(from));
        result.unwrap_or_else(|_| Err(self.ran_out(phase)))
    }

    /// What a delivery that ran out in this phase says.
    pub fn ran_out(&self, phase: Phase) -> Failure {
        let doing = match phase {
            Phase::Dns => "looking the host up",
            Phase::Connect => "connecting",
            Phase::Tls => "the TLS handshake",
            Phase::Write => "writing the request",
            Phase::Wait => "waiting for the response to begin",
            Phase::Read => "reading the response",
        };
        let total = self.total.as_secs_f64();
        Failure::new(
            Code::Timeout,
            phase,
            format!(
                "the {total} s that a delivery may take in all ran out during {doing}; make the receiver answer sooner, and do slow work after it has answered"
            ),
        )
    }
}
