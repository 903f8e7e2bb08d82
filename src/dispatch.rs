//! The loop: does what the [`flow`](crate::flow) decides. Picked sends are begun together (durable), each is delivered
//! in a task of its own, and its end is written.
//!
//! A delivery holds its slot until the receiver is done and its end has room on its way to the disk; the end is durable
//! a little later. Nothing is retried: a send that could not begin was not started, and goes back to the front of its
//! line. A task that panics gives back what it holds, and the send it had begun ends `internal`.

mod elsewhere;
mod flight;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics::{Unit, describe_gauge, gauge};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

pub use self::flight::Since;
use self::flight::{Flights, Unended};
use crate::backlog::{Backlog, caps};
use crate::batcher::Batcher;
use crate::clock;
use crate::deadline::Deadline;
use crate::deliver::{Attempt, Deliverer};
use crate::flow::{Claim, Claimed, Go, Left, NotBegun, Slot, Unsent, Why};
use crate::ledger::{Ledger, unsent};
use crate::limits;
use crate::outcome::words::UnmadeCause;
use crate::outcome::{Ended, Processed, Timings};
use crate::record::{Finished, waited};
use crate::schedule::Waiting;
use crate::send::{SendId, TenantId};
use crate::store::{self, Begin, Pending, Started, StoreError};
use crate::world::World;

/// How often expiry, dates of sources and gauges are looked at without another cause.
const TICK: Duration = Duration::from_millis(100);
/// Ticks between two looks at how long the oldest has waited, which looks at every line of the window.
const OLDEST_TICKS: u64 = 10;
/// Sends that one sweep of the store ends at once.
const SWEEP: usize = 1_000;
/// Ends written at the same time when many sends end without being made.
const ENDS_AT_ONCE: usize = 256;

pub struct Dispatcher {
    world: Arc<World>,
    backlog: Arc<Backlog>,
    ledger: Arc<Ledger>,
    deliverer: Arc<Deliverer>,
    batcher: Arc<Batcher>,
    tasks: TaskTracker,
    /// Of the runtime that delivers, whoever hands a delivery over.
    runtime: Handle,
    born: Instant,
    /// Milliseconds since `born` at which the loop last turned.
    turned: AtomicU64,
    ticks: AtomicU64,
    stopped: AtomicBool,
    sweeping: AtomicBool,
    /// Another process has this node's name, or the store took this one for dead.
    fenced: AtomicBool,
    flights: Arc<Mutex<Flights>>,
}

impl Dispatcher {
    /// To be called within the runtime that is to deliver.
    pub fn new(world: Arc<World>, backlog: Arc<Backlog>, ledger: Arc<Ledger>, deliverer: Arc<Deliverer>) -> Arc<Self> {
        describe_metrics();
        let batcher = Batcher::new(world.clone(), backlog.clone(), ledger.clone(), deliverer.clone());
        Arc::new(Self {
            world,
            backlog,
            ledger,
            deliverer,
            batcher,
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
            born: clock::monotonic(),
            turned: AtomicU64::new(0),
            ticks: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            sweeping: AtomicBool::new(false),
            fenced: AtomicBool::new(false),
            flights: Arc::default(),
        })
    }

    /// Runs until `stop` turns true; deliveries in flight go on and are awaited by [`Self::drained`].
    pub async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        self.backlog.decide(|flow| flow.start());
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
            self.turn();
        }
        self.stopped.store(true, Ordering::Release);
        self.batcher.rest();
        self.backlog.decide(|flow| flow.stop());
        self.turn();
    }

    /// Who gathers events, and carries them.
    pub fn batcher(&self) -> &Arc<Batcher> {
        &self.batcher
    }

    /// Waits for what is in flight; what waits stays on disk.
    pub async fn drained(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.batcher.rested().await;
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

    /// The store takes nothing from this process any more: another one has its place.
    pub fn fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }

    /// After a reload.
    pub fn reload(&self) {
        let terms = self.world.terms();
        self.backlog.decide(|flow| flow.set_caps(caps(&self.world.config()), &terms));
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(clock::monotonic().duration_since(self.born).as_millis()).unwrap_or(u64::MAX)
    }

    fn turn(self: &Arc<Self>) {
        let terms = self.world.terms();
        loop {
            let turn = self.backlog.lock().turn(&terms);
            let stands_for_one = |go: &Go| go.send().is_some_and(|send| self.batcher.stands_for_one(send.id));
            let (batches, begin): (Vec<Go>, Vec<Go>) = turn.begin.into_iter().partition(stands_for_one);
            batches.into_iter().for_each(|go| self.batcher.go(go));
            if !begin.is_empty() {
                self.tasks.spawn_on(self.clone().begin(begin), &self.runtime);
            }
            if let Some(claim) = turn.claim {
                self.tasks.spawn_on(self.clone().claim(claim), &self.runtime);
            }
            let (batches, give_back): (Vec<SendId>, Vec<SendId>) =
                turn.give_back.into_iter().partition(|send| self.batcher.stands_for_one(*send));
            self.batcher.later(batches);
            if !give_back.is_empty() {
                let this = self.clone();
                let given = async move {
                    if let Err(error) = this.ledger.store.give_back(&this.ledger.session, give_back).await {
                        tracing::warn!(%error, "claimed sends were not given back; they wait for the next start");
                    }
                };
                self.tasks.spawn_on(given, &self.runtime);
            }
            self.end_unsent(turn.unsent);
            if !turn.again {
                return;
            }
        }
    }

    /// Lets the store mark the starts of these, together, and delivers each.
    async fn begin(self: Arc<Self>, goes: Vec<Go>) {
        let at = clock::wall();
        let begins = goes.iter().filter_map(|go| {
            let (tenant, send) = (go.tenant()?.clone(), go.send()?);
            let spec = send.spec.as_ref().map(|hot| hot.spec.clone());
            Some(Begin { id: send.id, tenant, spec, at })
        });
        match self.ledger.store.begin(&self.ledger.session, begins.collect()).await {
            Ok(answers) => {
                for (go, answer) in goes.into_iter().zip(answers) {
                    match answer {
                        Ok(started) => {
                            if let Some((slot, send)) = go.take() {
                                self.deliver(started, slot, Since::of(&send));
                            }
                        }
                        Err(error) => self.could_not_begin(go, error),
                    }
                }
            }
            Err(error) => {
                for go in goes {
                    self.could_not_begin(go, error.clone());
                }
            }
        }
    }

    fn could_not_begin(self: &Arc<Self>, go: Go, error: StoreError) {
        let id = go.send().map(|send| send.id);
        match error {
            StoreError::CannotWrite(why) => {
                tracing::warn!(send = ?id, %why, "a delivery could not begin; it waits");
                self.backlog.decide(|flow| flow.not_begun(go, NotBegun::StoreAway));
            }
            StoreError::Fenced(_) => {
                self.fence(&error);
                drop(go);
            }
            StoreError::NoSuchSend => {
                // Already begun or ended: whoever did that writes its end.
                tracing::error!(send = ?id, "a send in the window is not waiting in the store");
                self.backlog.decide(|flow| flow.not_begun(go, NotBegun::Gone));
            }
            other => {
                // Its content cannot be read: it can never be made, and says so.
                tracing::error!(send = ?id, error = %other, "a send could not be read");
                let Some((slot, send)) = go.take() else { return };
                let failure = UnmadeCause::Unreadable.failure();
                let (this, end) = (self.clone(), unsent(send.id, send.created_at, Some(send.released_at), failure));
                self.tasks.spawn_on(
                    async move {
                        let room = this.ledger.room(&end).await;
                        drop(slot);
                        this.ledger.write(end, room).await;
                    },
                    &self.runtime,
                );
            }
        }
    }

    /// Nothing of this process counts any more: it begins nothing, and says so.
    pub fn fence(&self, error: &StoreError) {
        if !self.fenced.swap(true, Ordering::AcqRel) {
            tracing::error!(%error, "this node begins nothing more");
        }
        self.backlog.decide(|flow| flow.stop());
    }

    /// Asks the store for more of what waits.
    async fn claim(self: Arc<Self>, claim: Claim) {
        let wants: Vec<store::Want> = claim
            .wants
            .iter()
            .map(|want| store::Want { tenant: want.tenant.clone(), room: want.room, full: want.full.clone() })
            .collect();
        let limit = wants.iter().map(|want| want.room).sum();
        let store = &self.ledger.store;
        let claimed = match store.claim(&self.ledger.session, wants, limit).await {
            Ok(claimed) => claimed,
            Err(error) => {
                match &error {
                    StoreError::Fenced(_) => self.fence(&error),
                    _ => tracing::warn!(%error, "what waits could not be asked for; it is tried again"),
                }
                return self.backlog.decide(|flow| {
                    flow.store_away();
                    drop(claim);
                });
            }
        };
        self.ledger.closed_by_store(&claimed.ended);
        let mut brought = 0;
        let others = self.others_of(&claimed.sends).await;
        let mut sends = claimed.sends.into_iter().peekable();
        let mut in_order = Vec::new();
        let mut left = Vec::with_capacity(claim.wants.len());
        for want in &claim.wants {
            let before = brought;
            while let Some(pending) = sends.next_if(|pending| pending.tenant == want.tenant) {
                brought += 1;
                if !others.contains(&pending.id)
                    && let Some(pending) = self.batcher.take_pending(pending)
                {
                    in_order.push(self.in_window(pending));
                }
            }
            left.push(match store.waiting_of(&want.tenant).unclaimed {
                0 => Left::Nothing,
                _ if claimed.more || brought - before >= want.room => Left::More,
                _ => Left::Skipped,
            });
        }
        let unsent = {
            let terms = self.world.terms();
            self.backlog.decide(|flow| flow.claimed(claim, &left, in_order, &terms))
        };
        self.end_unsent(unsent);
    }

    /// Makes the delivery in a task of its own.
    pub fn deliver(self: &Arc<Self>, started: Started, slot: Slot, since: Since) {
        let this = self.clone();
        // Made by the thread that runs it: the future of a delivery is large, and a task that holds it itself is copied
        // several times on its way, and freed by another thread than the one that allocated it.
        self.tasks.spawn_on(async move { Box::pin(this.fly(started, slot, since)).await }, &self.runtime);
    }

    /// One send, from its durable start to its durable end.
    async fn fly(self: Arc<Self>, started: Started, mut slot: Slot, since: Since) {
        let tenant = started.tenant().clone();
        let started_at = started.at();
        let host = started.spec().destination().map(|to| to.host.text().into_owned());
        let unended = Unended::new(self.clone(), started.id(), since, started_at);
        let deadline = Deadline::start(self.world.config().deadline_of(started.spec().to.kind()));
        let flight = Flights::enter(&self.flights, deadline.at() + limits::OVERDUE_GRACE);
        let id = started.id();
        let begun = self.deliverer.tracer().begun(&started);
        let attempt = self.attempt(started, deadline, flight).await;
        if let Some(host) = host
            && self.goes_on_elsewhere(id, &tenant, &host, &attempt).await
        {
            unended.ends();
            return;
        }

        slot.moved(attempt.response.as_ref().map_or(0, |response| response.body_total));
        let kept = attempt.response.as_ref().map_or(0, |response| response.body.len());
        let looked_into = if self.ledger.redactor.load().looks_into_bodies() { kept } else { 0 };
        let (this, whose) = (self.clone(), tenant.clone());
        let telling = async move {
            let finished = this.redact(id, &whose, since, started_at, attempt);
            log(&whose, &finished);
            finished
        };
        let finished = if looked_into > limits::INLINE_BYTES {
            self.deliverer.apart().run(&tenant, telling).await
        } else {
            self.deliverer.turns().take(&tenant, Box::pin(telling)).await
        };
        let room = self.ledger.room(&finished).await;
        drop(slot);
        unended.ends();
        if let Some(begun) = begun {
            self.deliverer.tracer().ended(begun, since.created_at, &finished);
        }
        self.ledger.write(finished, room).await;
    }

    /// A delivery that panics is a defect of ours, and still an outcome.
    async fn attempt(&self, started: Started, deadline: Deadline, flight: impl Send) -> Attempt {
        let id = started.id();
        let deliverer = self.deliverer.clone();
        let work = std::panic::AssertUnwindSafe(async move { deliverer.deliver(started, deadline, flight).await });
        match futures_util::FutureExt::catch_unwind(work).await {
            Ok(attempt) => attempt,
            Err(_) => {
                tracing::error!(send = %id, "a delivery panicked; its send ends `internal`");
                Attempt {
                    ended: Ended::because(UnmadeCause::Defect.failure()),
                    sent_headers: None,
                    response: None,
                    connection: None,
                    timings: Timings { total: Some(deadline.spent()), ..Timings::default() },
                    would_block: None,
                    left_out: Vec::new(),
                    taken: Processed::No,
                }
            }
        }
    }

    fn redact(
        &self,
        id: crate::send::SendId,
        tenant: &TenantId,
        since: Since,
        started_at: jiff::Timestamp,
        attempt: Attempt,
    ) -> Finished {
        let redactor = self.ledger.redactor.load();
        let redactor = redactor.of(tenant);
        let keep_bodies = self.world.config().keeps_bodies(tenant);
        let mut timings = attempt.timings;
        timings.held = Some(clock::waited(since.created_at, since.released_at));
        timings.queued = Some(clock::waited(since.released_at, started_at));
        Finished {
            id,
            ended: redactor.ended(attempt.ended, keep_bodies),
            sent_headers: attempt.sent_headers.map(|headers| redactor.sent_headers(&headers)),
            response: attempt.response.map(|response| redactor.response(response, keep_bodies)),
            connection: attempt.connection,
            would_block: attempt.would_block,
            timings,
            released_at: Some(since.released_at),
            started_at: Some(started_at),
            finished_at: clock::wall(),
            batch: None,
        }
    }

    /// Writes the ends of sends that are never made, beside everything else.
    pub fn end_unsent(self: &Arc<Self>, unsent: Vec<Unsent>) {
        if !unsent.is_empty() {
            let this = self.clone();
            self.tasks.spawn_on(
                async move {
                    let _ = this.close_unsent(unsent).await;
                },
                &self.runtime,
            );
        }
    }

    /// The same, until they are durable; with how many sends. Those of a batch follow.
    pub async fn close_unsent(&self, unsent: Vec<Unsent>) -> u64 {
        use futures_util::StreamExt;
        let (batches, unsent): (Vec<Unsent>, Vec<Unsent>) =
            unsent.into_iter().partition(|one| self.batcher.stands_for_one(one.send.id));
        let count = unsent.len() as u64 + batches.iter().map(|one| self.batcher.stop(one)).sum::<u64>();
        let ends = unsent.into_iter().map(unsent_end);
        futures_util::stream::iter(ends).for_each_concurrent(ENDS_AT_ONCE, |end| self.ledger.close(end)).await;
        count
    }

    /// What time alone changes.
    fn tend(self: &Arc<Self>) {
        let ticks = self.ticks.fetch_add(1, Ordering::Relaxed);
        let terms = self.world.terms();
        let tick = self.backlog.lock().tick(&terms);
        self.end_unsent(tick.unsent);
        self.batcher.tend();
        if tick.expire && !self.sweeping.swap(true, Ordering::AcqRel) {
            self.tasks.spawn_on(self.clone().sweep(), &self.runtime);
        }
        if tick.look {
            self.look();
        }
        let waiting = self.ledger.store.waiting_in_all();
        #[allow(clippy::cast_precision_loss, reason = "gauges are floats")]
        {
            gauge!("egressd_held_sends").set(waiting.held as f64);
            gauge!("egressd_queued_sends").set(waiting.queued as f64);
            gauge!("egressd_batch_events").set(self.batcher.events() as f64);
            if ticks.is_multiple_of(OLDEST_TICKS) {
                let of_window = self.backlog.lock().oldest().map(|at| clock::unsteady(clock::steady(at)));
                let oldest = of_window.into_iter().chain(waiting.oldest).min();
                let seconds = oldest.map_or(0.0, |oldest| waited(oldest, clock::wall()).as_secs_f64());
                gauge!("egressd_oldest_queued_seconds").set(seconds);
            }
            let flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
            gauge!("egressd_overdue_deliveries").set(flights.overdue(clock::monotonic()) as f64);
        }
    }

    /// Tells the flow of every tenant of which something waits, by the store's own account.
    pub fn look(&self) {
        let waiting = self.ledger.store.waiting();
        let unclaimed = waiting.into_iter().filter(|(_, count)| count.unclaimed > 0);
        let unclaimed: Vec<TenantId> = unclaimed.map(|(tenant, _)| tenant).collect();
        self.backlog.decide(|flow| flow.waiting(unclaimed));
    }

    /// A claimed send as it stands in the window.
    fn in_window(&self, pending: Pending) -> Claimed {
        let released_at = pending.released_at;
        Claimed {
            tenant: pending.tenant,
            destination: pending.destination,
            send: Waiting {
                id: pending.id,
                workflow: pending.workflow,
                created_at: pending.created_at,
                released_at,
                expires_at: Waiting::expiry(clock::steady(released_at), pending.expires_in),
                spec: pending.spec.and_then(|spec| self.backlog.keep_hot(&spec)),
            },
        }
    }

    /// Ends what has expired in the store.
    async fn sweep(self: Arc<Self>) {
        loop {
            match self.ledger.store.expire(&self.ledger.session, clock::wall(), SWEEP).await {
                Ok(swept) => {
                    self.ledger.closed_by_store(&swept.ended);
                    if swept.next.is_none() {
                        break;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "expired sends did not get their end; it is tried again");
                    break;
                }
            }
        }
        self.sweeping.store(false, Ordering::Release);
    }
}

fn unsent_end(one: Unsent) -> Finished {
    let cause = match &one.why {
        Why::Expired => UnmadeCause::Expired,
        Why::Suspended(reason) => UnmadeCause::Suspended { reason },
    };
    unsent(one.send.id, one.send.created_at, Some(one.send.released_at), cause.failure())
}

fn describe_metrics() {
    describe_gauge!("egressd_held_sends", Unit::Count, "Sends held until their execution ends.");
    describe_gauge!("egressd_queued_sends", Unit::Count, "Sends that wait for their turn.");
    describe_gauge!(
        "egressd_batch_events",
        Unit::Count,
        "Of those queued, events that wait for their batch: it gathers, or is tried again."
    );
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
fn log(tenant: &TenantId, finished: &Finished) {
    let Some(error) = &finished.ended.error else { return };
    tracing::info!(
        send = %finished.id,
        %tenant,
        outcome = %finished.ended.outcome,
        code = %error.code,
        phase = error.phase.map_or("none", crate::outcome::Phase::label),
        "send ended"
    );
}
