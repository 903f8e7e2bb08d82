//! The loop: pick what the schedule says → begin (durable) → deliver → record.
//!
//! Each delivery runs as a task of its own, holding its slot until its end is durable. Nothing is retried: a send
//! that could not begin was not started, and goes back to the front of its line.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics::{Unit, describe_gauge, gauge};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::backlog::{Backlog, caps};
use crate::clock;
use crate::deadline::Deadline;
use crate::deliver::{Attempt, Deliverer};
use crate::ledger::{Ledger, unsent};
use crate::limits;
use crate::outcome::{Code, Ended, Failure, Processed, Timings};
use crate::record::{Finished, waited};
use crate::schedule::Picked;
use crate::send::{SendId, TenantId};
use crate::store::{Begin, Started, StoreError};
use crate::world::World;

/// How often expiry, dates of sources and gauges are looked at without another cause.
const TICK: Duration = Duration::from_millis(100);

/// After the store could not mark a start, nothing is picked for this long.
const PAUSE_AFTER_STORE_FAILURE: Duration = Duration::from_millis(500);

/// Sends picked while the backlog is locked.
const PICKS_PER_LOCK: usize = 64;

pub struct Dispatcher {
    world: Arc<World>,
    backlog: Arc<Backlog>,
    ledger: Arc<Ledger>,
    deliverer: Arc<Deliverer>,
    tasks: TaskTracker,
    born: Instant,
    /// Milliseconds since `born` at which the loop last turned.
    turned: AtomicU64,
    /// Milliseconds since `born` before which nothing is picked.
    paused_until: AtomicU64,
    stopped: AtomicBool,
    flights: Mutex<HashMap<SendId, Instant>>,
}

impl Dispatcher {
    pub fn new(world: Arc<World>, backlog: Arc<Backlog>, ledger: Arc<Ledger>, deliverer: Arc<Deliverer>) -> Arc<Self> {
        describe_metrics();
        Arc::new(Self {
            world,
            backlog,
            ledger,
            deliverer,
            tasks: TaskTracker::new(),
            born: clock::monotonic(),
            turned: AtomicU64::new(0),
            paused_until: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            flights: Mutex::default(),
        })
    }

    /// Runs until `stop` turns true; deliveries in flight go on and are awaited by [`Self::drained`].
    pub async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let ticked = tokio::select! {
                () = self.backlog.wake.notified() => false,
                _ = tick.tick() => true,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            self.turned.store(self.elapsed(), Ordering::Relaxed);
            if ticked {
                self.tend();
            }
            self.start_what_may();
        }
        self.stopped.store(true, Ordering::Release);
    }

    /// Waits for what is in flight; what waits stays on disk.
    pub async fn drained(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Deliveries that have begun and not ended.
    pub fn in_flight(&self) -> usize {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The loop has not turned for too long.
    pub fn stalled(&self) -> Option<Duration> {
        let since = Duration::from_millis(self.elapsed().saturating_sub(self.turned.load(Ordering::Relaxed)));
        (since > limits::DISPATCH_STALLED_AFTER && !self.stopped.load(Ordering::Acquire)).then_some(since)
    }

    /// After a reload.
    pub fn reload(&self) {
        let config = self.world.config();
        let caps = caps(&config);
        self.backlog.lock().schedule.set_caps(caps, |tenant| config.tenant(tenant).map(|tenant| tenant.in_flight));
        self.backlog.wake.notify_one();
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(clock::monotonic().duration_since(self.born).as_millis()).unwrap_or(u64::MAX)
    }

    fn start_what_may(self: &Arc<Self>) {
        if self.elapsed() < self.paused_until.load(Ordering::Relaxed) {
            return;
        }
        let settings = self.world.settings();
        let now = clock::wall();
        // One pool's answer holds for this turn.
        let mut usable: HashMap<Arc<str>, bool> = HashMap::new();
        let mut admits = |tenant: &TenantId| {
            *usable
                .entry(settings.config.pool_of(tenant))
                .or_insert_with_key(|pool| settings.sources.pool_usable(pool, now))
        };
        loop {
            let mut picks = Vec::with_capacity(PICKS_PER_LOCK);
            {
                let mut parts = self.backlog.lock();
                while picks.len() < PICKS_PER_LOCK
                    && let Some(picked) = parts.schedule.next(&mut admits)
                {
                    picks.push(picked);
                }
            }
            let all = picks.len() < PICKS_PER_LOCK;
            for picked in picks {
                self.tasks.spawn(self.clone().send(picked));
            }
            if all {
                return;
            }
        }
    }

    /// One send, from its turn to its durable end.
    async fn send(self: Arc<Self>, picked: Picked) {
        let now = clock::wall();
        if picked.send.expires_at <= now {
            self.expire(&picked).await;
            self.slot_free(&picked, 0);
            return;
        }
        let begin = Begin {
            id: picked.send.id,
            tenant: picked.tenant.clone(),
            spec: picked.send.spec.as_ref().map(|hot| hot.spec.clone()),
            at: now,
        };
        let begun = self.ledger.store.begin(&self.ledger.session, vec![begin]).await;
        let started = match begun.and_then(|mut begun| begun.pop().unwrap_or(Err(StoreError::NoSuchSend))) {
            Ok(started) => started,
            Err(error) => return self.could_not_begin(picked, error).await,
        };
        let id = picked.send.id;
        let started_at = started.at();
        let deadline = Deadline::start(self.world.config().delivery.deadline);
        let overdue = deadline.at() + limits::OVERDUE_GRACE;
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).insert(id, overdue);
        let attempt = self.attempt(started, deadline, Flight { dispatcher: &self, id }).await;

        let moved = attempt.response.as_ref().map_or(0, |response| response.body_total);
        let writing = Box::pin(async {
            let finished = self.redact(&picked, started_at, attempt);
            log(&picked, &finished);
            self.ledger.close(finished).await;
        });
        self.deliverer.turns().take(&picked.tenant, writing).await;
        self.slot_free(&picked, moved);
    }

    /// A delivery that panics is a defect of ours, and still an outcome.
    async fn attempt(&self, started: Started, deadline: Deadline, flight: Flight<'_>) -> Attempt {
        let id = started.id();
        let deliverer = self.deliverer.clone();
        let work = std::panic::AssertUnwindSafe(async move { deliverer.deliver(started, deadline, flight).await });
        match futures_util::FutureExt::catch_unwind(work).await {
            Ok(attempt) => attempt,
            Err(_) => {
                tracing::error!(send = %id, "a delivery panicked; its send ends `internal`");
                let why = "a defect in egressd ended this delivery; the receiver may or may not have it. Please report it with this send's id";
                Attempt {
                    ended: Ended::because(Failure::new(Code::Internal, None, why)),
                    sent_headers: None,
                    response: None,
                    connection: None,
                    timings: Timings { total: Some(deadline.spent()), ..Timings::default() },
                    would_block: None,
                }
            }
        }
    }

    fn redact(&self, picked: &Picked, started_at: jiff::Timestamp, attempt: Attempt) -> Finished {
        let redactor = self.ledger.redactor.load();
        let keep_bodies = self.world.config().keeps_bodies(&picked.tenant);
        let mut timings = attempt.timings;
        timings.held = Some(waited(picked.send.created_at, picked.send.released_at));
        timings.queued = Some(waited(picked.send.released_at, started_at));
        Finished {
            id: picked.send.id,
            ended: attempt.ended,
            sent_headers: attempt.sent_headers.map(|headers| redactor.sent_headers(&headers)),
            response: attempt.response.map(|response| redactor.response(response, keep_bodies)),
            connection: attempt.connection,
            would_block: attempt.would_block,
            timings,
            released_at: Some(picked.send.released_at),
            started_at: Some(started_at),
            finished_at: clock::wall(),
        }
    }

    async fn could_not_begin(&self, picked: Picked, error: StoreError) {
        match error {
            StoreError::CannotWrite(why) => {
                tracing::warn!(send = %picked.send.id, %why, "a delivery could not begin; it waits");
                let until = self.elapsed() + u64::try_from(PAUSE_AFTER_STORE_FAILURE.as_millis()).unwrap_or_default();
                self.paused_until.store(until, Ordering::Relaxed);
                self.backlog.lock().schedule.put_back(picked);
            }
            StoreError::NoSuchSend => {
                // Already begun or ended: whoever did that writes its end.
                tracing::error!(send = %picked.send.id, "a send in the queue is not waiting in the store");
                self.slot_free(&picked, 0);
            }
            other => {
                // Its content cannot be read: it can never be made, and says so.
                tracing::error!(send = %picked.send.id, error = %other, "a send could not be read");
                let why = format!("the node could not read this send back from its store ({other}); submit it again");
                let end = unsent(
                    picked.send.id,
                    picked.send.created_at,
                    Some(picked.send.released_at),
                    Failure::new(Code::Internal, None, why).but(Processed::No),
                );
                self.ledger.close(end).await;
                self.slot_free(&picked, 0);
            }
        }
    }

    async fn expire(&self, picked: &Picked) {
        let why = "it was not started within its `expires_in`; the node was too busy, or no source address was usable";
        let end = unsent(
            picked.send.id,
            picked.send.created_at,
            Some(picked.send.released_at),
            Failure::new(Code::Expired, None, why),
        );
        self.ledger.close(end).await;
    }

    fn slot_free(&self, picked: &Picked, moved: u64) {
        let mut parts = self.backlog.lock();
        parts.schedule.done(&picked.tenant, &picked.destination, moved);
        let more = parts.schedule.runnable();
        drop(parts);
        if more {
            self.backlog.wake.notify_one();
        }
    }

    /// What time alone changes.
    fn tend(self: &Arc<Self>) {
        let now = clock::wall();
        let (expired, held, queued, oldest) = {
            let mut parts = self.backlog.lock();
            parts.schedule.unpark();
            let expired = parts.schedule.expire(now);
            (expired, parts.hold.sends(), parts.schedule.queued(), parts.schedule.oldest())
        };
        if !expired.is_empty() {
            let this = self.clone();
            self.tasks.spawn(async move {
                use futures_util::StreamExt;
                futures_util::stream::iter(&expired).for_each_concurrent(256, |picked| this.expire(picked)).await;
            });
        }
        #[allow(clippy::cast_precision_loss, reason = "gauges are floats")]
        {
            gauge!("egressd_held_sends").set(held as f64);
            gauge!("egressd_queued_sends").set(queued as f64);
            gauge!("egressd_oldest_queued_seconds").set(oldest.map_or(0.0, |oldest| waited(oldest, now).as_secs_f64()));
            let now = clock::monotonic();
            let flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
            let overdue = flights.values().filter(|overdue| **overdue < now).count();
            gauge!("egressd_overdue_deliveries").set(overdue as f64);
        }
    }
}

/// A delivery in flight, until it is dropped.
struct Flight<'a> {
    dispatcher: &'a Dispatcher,
    id: SendId,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.dispatcher.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

fn describe_metrics() {
    describe_gauge!("egressd_held_sends", Unit::Count, "Sends held until their execution ends.");
    describe_gauge!("egressd_queued_sends", Unit::Count, "Sends that wait for their turn.");
    describe_gauge!(
        "egressd_oldest_queued_seconds",
        Unit::Seconds,
        "How long the longest-waiting queued send has waited."
    );
    describe_gauge!(
        "egressd_overdue_deliveries",
        Unit::Count,
        "Deliveries in flight past their deadline and its grace of 250 ms: always 0, or something is broken."
    );
}

/// The one log line of a delivery that did not end `delivered`.
fn log(picked: &Picked, finished: &Finished) {
    let Some(error) = &finished.ended.error else { return };
    tracing::info!(
        send = %finished.id,
        tenant = %picked.tenant,
        outcome = %finished.ended.outcome,
        code = %error.code,
        phase = error.phase.map_or("none", crate::outcome::Phase::label),
        processed = %error.processed,
        why = %error.message,
        "send ended"
    );
}
