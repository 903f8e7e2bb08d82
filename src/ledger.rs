//! How a send's end is written: redacted, durable, counted, and told to whoever waits for it.
//!
//! An end is never given up while the process lives: when the store cannot write, it is tried again until it can.
//! (What is lost with the process after that reads `interrupted` at the next start.) So that they cannot pile up while
//! it cannot, an end gets room first, by its bytes ([`Ledger::room`]): whoever waits for that keeps its place in flight.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use metrics::{Counter, Histogram, Unit, counter, describe_counter, describe_histogram, histogram};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::clock;
use crate::events::Events;
use crate::limits;
use crate::outcome::{Ended, Failure, Outcome, Phase, Timings};
use crate::record::Finished;
use crate::redact::Redactor;
use crate::send::SendId;
use crate::store::{Session, Store, StoreEnd, StoreError};
use crate::trace::Tracer;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

pub struct Ledger {
    pub store: Arc<dyn Store>,
    /// This process's.
    pub session: Session,
    pub events: Arc<Events>,
    /// Swapped by a reload.
    pub redactor: ArcSwap<Redactor>,
    /// One permit is so many bytes.
    room: Semaphore,
    /// Who is told of what ends without having been begun, once it is durable.
    tracer: Tracer,
}

const PERMIT_BYTES: usize = 1024;

/// Room for an end that is on its way to the disk.
#[must_use]
pub struct Room<'a> {
    _permit: Option<SemaphorePermit<'a>>,
}

impl Ledger {
    pub fn new(store: Arc<dyn Store>, session: Session, redactor: Redactor, tracer: Tracer) -> Arc<Self> {
        describe_metrics();
        let room = Semaphore::new(limits::ENDS_BYTES / PERMIT_BYTES);
        let redactor = ArcSwap::from_pointee(redactor);
        Arc::new(Self { store, session, events: Arc::default(), redactor, room, tracer })
    }

    /// These have ended at a start.
    pub fn recovered(&self, ids: &[SendId]) {
        ids.iter().for_each(|id| self.tracer.waited(*id));
    }

    /// Waits until the ends on their way leave room for this one.
    pub async fn room(&self, finished: &Finished) -> Room<'_> {
        let permits = bytes_of(finished).min(limits::ENDS_BYTES).div_ceil(PERMIT_BYTES);
        // Never closed; without it, it is written all the same.
        Room { _permit: self.room.acquire_many(u32::try_from(permits).unwrap_or(u32::MAX)).await.ok() }
    }

    /// Writes a send's end. Returns once it is durable, however long the store is away.
    pub async fn close(&self, finished: Finished) {
        let room = self.room(&finished).await;
        self.write(finished, room).await;
    }

    /// The same, with the room it takes.
    pub async fn write(&self, finished: Finished, _room: Room<'_>) {
        let mut pause = FIRST_PAUSE;
        let place = loop {
            match self.store.finish(&self.session, finished.clone()).await {
                Ok(place) => break place,
                Err(StoreError::CannotWrite(why)) => {
                    tracing::warn!(send = %finished.id, %why, "an outcome could not be written; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(error) => {
                    tracing::error!(send = %finished.id, outcome = %finished.ended.outcome, %error, "an outcome was not recorded");
                    return;
                }
            }
        };
        count(&finished);
        self.events.finished(finished.id, place);
        if finished.started_at.is_none() {
            self.tracer.waited(finished.id);
        }
    }

    /// Counts and tells of ends that the store gave by itself.
    pub fn closed_by_store(&self, ends: &[StoreEnd]) {
        for end in ends {
            let outcome = end.code.outcome().label();
            counter!("egressd_sends_total", "outcome" => outcome, "code" => end.code.label()).increment(1);
            self.events.finished(end.id, end.place);
            self.tracer.waited(end.id);
        }
    }
}

/// What an end takes in memory beside what came of the receiver.
const END_BYTES: usize = 1024;

/// About as much as its record will take.
fn bytes_of(finished: &Finished) -> usize {
    let response = finished.response.as_ref().map_or(0, |response| {
        let headers = response.headers.iter().flat_map(|(name, values)| std::iter::once(name).chain(values));
        response.body.bytes.as_ref().map_or(0, bytes::Bytes::len) + headers.map(String::len).sum::<usize>()
    });
    END_BYTES + response
}

/// The end of a send that was never begun.
pub fn unsent(id: SendId, created_at: Timestamp, released_at: Option<Timestamp>, why: Failure) -> Finished {
    let now = clock::wall();
    Finished {
        id,
        ended: Ended::because(why),
        sent_headers: None,
        response: None,
        connection: None,
        would_block: None,
        timings: Timings {
            held: Some(clock::waited(created_at, released_at.unwrap_or(now))),
            queued: released_at.map(|released| clock::waited(released, now)),
            ..Timings::default()
        },
        released_at,
        started_at: None,
        finished_at: now,
        batch: None,
    }
}

fn describe_metrics() {
    describe_counter!("egressd_sends_total", Unit::Count, "Finished sends by outcome and error code.");
    describe_counter!("egressd_responses_total", Unit::Count, "Complete responses by class of their status.");
    describe_histogram!(
        "egressd_delivery_seconds",
        Unit::Seconds,
        "Time of a delivery, from its start to its end: the part that the deadline bounds."
    );
    describe_histogram!("egressd_phase_seconds", Unit::Seconds, "Time spent in each phase of a delivery.");
    describe_histogram!(
        "egressd_queue_wait_seconds",
        Unit::Seconds,
        "Time from a send's acceptance or release to the start of its delivery."
    );
}

/// The series that most deliveries touch, looked up once: a look-up costs more than what is counted.
struct Series {
    /// By outcome.
    seconds: Vec<Histogram>,
    /// By phase.
    phases: Vec<Histogram>,
    queue_wait: Histogram,
    /// By the first digit of a status, less one.
    responses: [Counter; 5],
}

static SERIES: LazyLock<Series> = LazyLock::new(|| Series {
    seconds: Outcome::ALL.iter().map(|one| histogram!("egressd_delivery_seconds", "outcome" => one.label())).collect(),
    phases: Phase::ALL.iter().map(|one| histogram!("egressd_phase_seconds", "phase" => one.label())).collect(),
    queue_wait: histogram!("egressd_queue_wait_seconds"),
    responses: ["1xx", "2xx", "3xx", "4xx", "5xx"]
        .map(|class| counter!("egressd_responses_total", "status_class" => class)),
});

fn count(finished: &Finished) {
    let (outcome, series) = (finished.ended.outcome, &*SERIES);
    counter!("egressd_sends_total", "outcome" => outcome.label(), "code" => finished.ended.code_label()).increment(1);
    if let Some(response) = &finished.response
        && finished.ended.error.is_none()
    {
        series.responses[usize::from(response.status / 100).clamp(1, 5) - 1].increment(1);
    }
    let timings = &finished.timings;
    if let Some(total) = timings.total {
        series.seconds[outcome as usize].record(total);
        for (&phase, seconds) in Phase::ALL.iter().zip(&series.phases) {
            if let Some(spent) = timings.phase(phase) {
                seconds.record(spent);
            }
        }
        if let Some(queued) = timings.queued {
            series.queue_wait.record(queued);
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a paused clock says that there is no room")]
mod tests;
