//! What a delivery under way leaves behind when its task does not come to its end.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use tokio::time::Instant;

use super::Dispatcher;
use crate::clock;
use crate::outcome::words::UnmadeCause;
use crate::outcome::{Ended, Timings};
use crate::record::Finished;
use crate::schedule::Waiting;
use crate::send::SendId;

/// When a send was accepted, and when it was free to go.
#[derive(Clone, Copy, Debug)]
pub struct Since {
    pub created_at: Timestamp,
    pub released_at: Timestamp,
}

impl Since {
    pub fn of(send: &Waiting) -> Self {
        Self { created_at: send.created_at, released_at: send.released_at }
    }
}

/// Deliveries in flight, by the moment at which each is overdue.
#[derive(Default)]
pub struct Flights {
    under_way: BTreeSet<(Instant, u64)>,
    next: u64,
}

/// A delivery in flight, until it is dropped.
pub struct Flight {
    flights: Arc<Mutex<Flights>>,
    key: (Instant, u64),
}

impl Flights {
    pub fn enter(flights: &Arc<Mutex<Self>>, overdue: Instant) -> Flight {
        let mut inside = flights.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (overdue, inside.next);
        inside.next += 1;
        inside.under_way.insert(key);
        Flight { flights: flights.clone(), key }
    }

    pub fn len(&self) -> usize {
        self.under_way.len()
    }

    /// Costs what its answer does, which is 0.
    pub fn overdue(&self, now: Instant) -> usize {
        self.under_way.range(..(now, 0)).count()
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).under_way.remove(&self.key);
    }
}

/// A begun send until its end is on its way. Dropped before, by a panic of its task, it ends `internal`.
pub struct Unended {
    dispatcher: Option<Arc<Dispatcher>>,
    id: SendId,
    since: Since,
    started_at: Timestamp,
}

impl Unended {
    pub fn new(dispatcher: Arc<Dispatcher>, id: SendId, since: Since, started_at: Timestamp) -> Self {
        Self { dispatcher: Some(dispatcher), id, since, started_at }
    }

    pub fn ends(mut self) {
        self.dispatcher = None;
    }
}

impl Drop for Unended {
    fn drop(&mut self) {
        // Also when the runtime goes down: then nothing is written, and the next start says `interrupted`.
        let Some(dispatcher) = self.dispatcher.take() else { return };
        tracing::error!(send = %self.id, "the task of a delivery did not come to its end; its send ends `internal`");
        let finished = Finished {
            id: self.id,
            ended: Ended::because(UnmadeCause::Defect.failure()),
            sent_headers: None,
            response: None,
            connection: None,
            would_block: None,
            timings: Timings {
                held: Some(clock::waited(self.since.created_at, self.since.released_at)),
                queued: Some(clock::waited(self.since.released_at, self.started_at)),
                ..Timings::default()
            },
            released_at: Some(self.since.released_at),
            started_at: Some(self.started_at),
            finished_at: clock::wall(),
            batch: None,
        };
        let (tasks, runtime) = (dispatcher.tasks.clone(), dispatcher.runtime.clone());
        tasks.spawn_on(async move { dispatcher.ledger.close(finished).await }, &runtime);
    }
}
