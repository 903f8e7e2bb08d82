//! The one place where a try is repeated: batches of events, which do no harm when they come twice.
//!
//! ```text
//! gathered ─close (durable)→ waits for its turn ─carried→ its end (durable) ─→ its sends' ends (durable) → done
//!                                  └────── a pause ←──────┘ what may pass, until `give_up`
//! ```
//!
//! Where many nodes share a store each makes batches of its own. One that is closed is one node's, who asks the store right
//! before each try whether it still is; what a node that is gone left is taken by the others ([`take_left`](crate::store::Batches::take_left)).
//!
//! Which events go together is [`gather`](crate::gather)'s to say; they are sends that this process has claimed and that
//! never begin. A closed batch stands in the [`flow`]'s window by its first send, and takes one slot for each
//! try. What it holds and when it closed is durable before the first one, so each has the same key and the same bytes,
//! whatever died in between. Right before a try it is durable that the batch may be where it goes, and which
//! place that is: from then on it has the same events, and goes there or nowhere. Its end is durable before the first of its sends has one: who dies in the middle of these
//! gives the others the same. Nothing of an HTTP send or a message comes here: there is no `Started` in this file.

mod elsewhere;
mod ends;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use jiff::{SignedDuration, Timestamp};
use metrics::{Unit, counter, describe_counter};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::backlog::Backlog;
use crate::clock;
use crate::config::Gathering as Settings;
use crate::deadline::Deadline;
use crate::deliver::batch::{Fate, Packing, Parcel};
use crate::deliver::{self, Attempt, Deliverer};
use crate::flow::{self, Go, Terms as _};
use crate::gather::{Gatherer, Member, Ripe, Terms};
use crate::ledger::{Ledger, unsent};
use crate::limits;
use crate::outcome::words::UnmadeCause;
use crate::outcome::{Ended, Failure, Processed};
use crate::record::{Batch, BatchId, BatchState, Finished, InBatch, LeftOut};
use crate::schedule::Waiting;
use crate::send::{Kind, Place, SendId, TenantId, To};
use crate::store::{Opened, Pending, StoreError};
use crate::world::World;
use ends::{end_of, kept, stopped};

/// Ends written at the same time.
const ENDS_AT_ONCE: usize = 256;
/// Events read at once.
const READ_AT_ONCE: usize = 512;
/// What could not be written is tried again so much later.
const WRITE_AGAIN: Duration = Duration::from_millis(500);
/// After so long, and again, it is asked of a batch that was left behind whether those of its sends that have not come have their
/// ends: it is tried without them.
const LEFT_BEHIND: Duration = Duration::from_secs(5);
/// Turns of [`Batcher::tend`] between two looks at what nodes that are gone left behind.
const LOOK_TURNS: u64 = 3;

pub struct Batcher {
    world: Arc<World>,
    backlog: Arc<Backlog>,
    ledger: Arc<Ledger>,
    deliverer: Arc<Deliverer>,
    inside: Mutex<Inside>,
    tasks: TaskTracker,
    runtime: Handle,
    stop: watch::Sender<bool>,
    /// Held by who tells the other nodes of what gathers here.
    noting: tokio::sync::Mutex<()>,
    looking: AtomicBool,
}

#[derive(Default)]
struct Inside {
    gatherer: Gatherer,
    /// Those that are closed and not done, by the send that stands for each in the window: its first.
    closed: HashMap<SendId, Closed>,
    /// The sends of these, with the one that stands for them.
    whose: HashMap<SendId, SendId>,
    /// Those that an earlier process closed, and whose sends still come.
    left_behind: HashSet<SendId>,
    /// The closed ones by their identity.
    by_id: HashMap<BatchId, SendId>,
    /// How many are carried now, of each tenant and kind that has any.
    carried: HashMap<(TenantId, Kind), usize>,
    /// Batches that opened here and that the store is to be told of, for other nodes, and those that it was told of.
    unnoted: Vec<Opened>,
    noted: HashMap<BatchId, Opened>,
    /// What stood for a batch that is another's by now, and may be in the window still.
    left: HashSet<SendId>,
    turns: u64,
}

/// One that is made up and carried: its content is in memory.
struct Carrying {
    of: Arc<Batcher>,
    whose: (TenantId, Kind),
}

impl Drop for Carrying {
    fn drop(&mut self) {
        let mut inside = self.of.inside();
        match inside.carried.get_mut(&self.whose) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(inside.carried.remove(&self.whose)),
        }
    }
}

struct Closed {
    batch: Arc<Batch>,
    /// Those of its sends that this process has claimed.
    here: HashMap<SendId, Member>,
    /// Held by who writes their ends: nobody takes them for written before they are.
    ends: Arc<tokio::sync::Mutex<()>>,
    /// How many of them have come, with those that have their ends by now.
    come: usize,
    /// An earlier process closed it, this long ago at most: its sends come one by one.
    left_behind: Option<tokio::time::Instant>,
    pause: Duration,
    /// It is not durable yet.
    is_closing: bool,
    /// It is in the window.
    waits: bool,
}

impl Closed {
    /// With those of its sends that are here.
    fn new(batch: Batch, here: HashMap<SendId, Member>) -> Self {
        Self {
            batch: Arc::new(batch),
            come: here.len(),
            here,
            ends: Arc::default(),
            left_behind: None,
            pause: limits::BATCH_FIRST_PAUSE,
            is_closing: false,
            waits: false,
        }
    }
}

/// What came of a batch's turn.
enum Turn {
    Tried(Box<Tried>),
    /// The operator has stopped it before a byte of this try left.
    Stopped(Box<Finished>),
    /// The store could not be asked: nothing was tried.
    NotNow,
    /// It is not this process's any more.
    Gone,
}

/// What came of one try.
struct Tried {
    finished: Finished,
    fate: Fate,
    left_out: Vec<LeftOut>,
}

impl Tried {
    /// In vain, for a reason that may pass.
    fn in_vain(finished: Finished) -> Self {
        Self { finished, fate: Fate::MayPass, left_out: Vec::new() }
    }
}

/// How one batch stands, gathering or closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub batch: Batch,
    pub sends: usize,
}

impl Batcher {
    /// To be called within the runtime that is to deliver.
    pub fn new(world: Arc<World>, backlog: Arc<Backlog>, ledger: Arc<Ledger>, deliverer: Arc<Deliverer>) -> Arc<Self> {
        describe_counter!("egressd_batches_total", Unit::Count, "Batches of events that ended, by kind and outcome.");
        describe_counter!(
            "egressd_batch_tries_total",
            Unit::Count,
            "Tries to bring a batch to where it goes, by kind and by what came of each."
        );
        describe_counter!("egressd_batch_sends_total", Unit::Count, "Events of batches that closed, by kind.");
        Arc::new(Self {
            world,
            backlog,
            ledger,
            deliverer,
            inside: Mutex::default(),
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
            stop: watch::Sender::new(false),
            noting: tokio::sync::Mutex::default(),
            looking: AtomicBool::new(false),
        })
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settings_of(&self, place: &Place) -> Settings {
        self.world.config().gathering_of(place.kind())
    }

    /// What earlier processes closed and did not bring to its end. Before anything is claimed.
    pub async fn restore(&self) -> Result<(), StoreError> {
        let batches = self.ledger.store.open_batches().await?;
        let mut inside = self.inside();
        for batch in batches {
            let Some(&first) = batch.sends.first() else { continue };
            for send in &batch.sends {
                inside.whose.insert(*send, first);
            }
            let closed = Closed { left_behind: Some(clock::monotonic()), ..Closed::new(batch, HashMap::new()) };
            inside.left_behind.insert(first);
            inside.by_id.insert(closed.batch.id, first);
            inside.closed.insert(first, closed);
        }
        Ok(())
    }

    /// Takes an event that this process has claimed.
    pub fn take(self: &Arc<Self>, tenant: &TenantId, place: &Place, member: Member) {
        let settings = self.settings_of(place);
        let (terms, now) =
            (Terms { every: settings.every, bytes: settings.bytes, sends: settings.sends }, clock::wall());
        let ripe = {
            let mut inside = self.inside();
            if let Some(first) = inside.whose.get(&member.id).copied() {
                // Of one that is closed: given back and claimed again, it comes a second time.
                if let Some(closed) = inside.closed.get_mut(&first) {
                    let stands_for_it = member.id == first && closed.left_behind.is_none();
                    closed.come += usize::from(closed.here.insert(member.id, member).is_none());
                    drop(inside);
                    if stands_for_it {
                        self.enter(first);
                    }
                }
                return;
            }
            let send = member.id;
            let ripe = inside.gatherer.take(tenant, place, member, terms, now);
            if let Some((batch, opened_at)) = inside.gatherer.opened(send)
                && !inside.noted.contains_key(&batch.id)
                && !inside.unnoted.iter().any(|one| one.id == batch.id)
            {
                let (tenant, place) = (tenant.clone(), place.clone());
                inside.unnoted.push(Opened { id: batch.id, tenant, place, opened_at, closes_at: batch.closes_at });
            }
            ripe
        };
        self.close_all(ripe);
    }

    /// The same of what the store gave; `None`: it is none that gathers.
    pub fn take_pending(self: &Arc<Self>, pending: Pending) -> Option<Pending> {
        let Some((place, member)) = member_of(&pending) else { return Some(pending) };
        self.take(&pending.tenant, place, member);
        None
    }

    /// It is another's, or nobody's: nothing of it is done here.
    fn let_go(&self, first: SendId) {
        let mut inside = self.inside();
        if let Some(closed) = inside.closed.remove(&first) {
            inside.by_id.remove(&closed.batch.id);
            for send in &closed.batch.sends {
                inside.whose.remove(send);
            }
            if closed.waits {
                inside.left.insert(first);
            }
        }
    }

    /// The window has no room for these now.
    pub fn later(self: &Arc<Self>, firsts: Vec<SendId>) {
        for first in firsts {
            self.again(first, self.carried_again());
        }
    }

    /// Another turn, later. Thousands may wait so: a task that does nothing else is small.
    fn again(self: &Arc<Self>, first: SendId, after: Duration) {
        let this = self.clone();
        self.spawn(async move {
            if !this.stopped_within(after).await {
                this.enter(first);
            }
        });
    }

    /// What time alone changes; to be called about ten times a second.
    pub fn tend(self: &Arc<Self>) {
        if *self.stop.borrow() {
            return;
        }
        let (store, now) = (self.ledger.store.clone(), clock::wall());
        let settled = |tenant: &TenantId| store.waiting_of(tenant).unclaimed == 0;
        let (ripe, whole, late, ended) = {
            let mut inside = self.inside();
            let ripe = inside.gatherer.due(now, settled);
            let (mut whole, mut late, mut ended) = (Vec::new(), Vec::new(), Vec::new());
            let Inside { left_behind, closed, .. } = &mut *inside;
            left_behind.retain(|first| {
                let Some(closed) = closed.get_mut(first) else { return false };
                let Some(since) = closed.left_behind else { return false };
                if closed.come >= closed.batch.sends.len() {
                    closed.left_behind = None;
                    whole.push(*first);
                    return false;
                }
                if clock::monotonic().duration_since(since) >= LEFT_BEHIND {
                    closed.left_behind = Some(clock::monotonic());
                    late.push(*first);
                }
                if closed.batch.ended.is_some() && !closed.here.is_empty() {
                    ended.push(*first);
                }
                true
            });
            (ripe, whole, late, ended)
        };
        self.close_all(ripe);
        let is_looked = {
            let mut inside = self.inside();
            inside.turns += 1;
            inside.turns.is_multiple_of(LOOK_TURNS)
        };
        if is_looked {
            self.look_around();
        }
        for first in whole {
            self.go_on(first);
        }
        for first in late {
            let this = self.clone();
            self.spawn(async move {
                if this.none_is_to_come(first).await {
                    this.go_on(first);
                }
            });
        }
        for first in ended {
            // Its end is known, whatever else is still to come.
            let this = self.clone();
            self.spawn(async move { this.end_here(first).await });
        }
    }

    /// Whether those sends of a batch that was left behind that are not here have their ends, whatever else waits.
    async fn none_is_to_come(&self, first: SendId) -> bool {
        let missing: Vec<SendId> = match self.inside().closed.get(&first) {
            Some(closed) => closed.batch.sends.iter().filter(|send| !closed.here.contains_key(send)).copied().collect(),
            None => return false,
        };
        for some in missing.chunks(READ_AT_ONCE) {
            match self.ledger.store.specs(some.to_vec()).await {
                Ok(specs) if specs.iter().all(Option::is_none) => {}
                Ok(_) => return false,
                Err(error) => {
                    tracing::debug!(%error, "which events of a batch are still to come is not known now");
                    return false;
                }
            }
        }
        let mut inside = self.inside();
        let Inside { left_behind, closed, .. } = &mut *inside;
        left_behind.remove(&first) && closed.get_mut(&first).is_some_and(|closed| closed.left_behind.take().is_some())
    }

    /// One that an earlier process closed, once its sends are here.
    fn go_on(self: &Arc<Self>, first: SendId) {
        let Some((batch, is_empty)) = self.closed(first) else { return };
        match batch.ended.clone() {
            Some(ended) => self.spawn(self.clone().end(first, ended)),
            // All of its sends have had their ends by themselves: nobody waits for it.
            None if is_empty => {
                let why = UnmadeCause::Interrupted.failure();
                self.spawn(self.clone().end(first, stopped(first, &batch, why)));
            }
            None => self.enter(first),
        }
    }

    fn closed(&self, first: SendId) -> Option<(Arc<Batch>, bool)> {
        self.inside().closed.get(&first).map(|closed| (closed.batch.clone(), closed.here.is_empty()))
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(work, &self.runtime);
    }

    fn close_all(self: &Arc<Self>, ripe: Vec<Ripe>) {
        for ripe in ripe {
            // Known at once, so that its events are never without their batch.
            let (first, ends) = self.make(ripe);
            let this = self.clone();
            self.spawn(async move {
                futures_util::stream::iter(ends)
                    .for_each_concurrent(ENDS_AT_ONCE, |(member, why)| {
                        this.ledger.close(unsent(member.id, member.created_at, Some(member.released_at), why))
                    })
                    .await;
                if let Some(first) = first
                    && this.close(first).await
                {
                    this.enter(first);
                }
            });
        }
    }

    /// A closed batch of what has not expired and may go, and the ends of the rest: what came here after the others of its
    /// workflow were suspended is among that.
    fn make(&self, ripe: Ripe) -> (Option<SendId>, Vec<(Member, Failure)>) {
        let now = clock::wall();
        let (terms, way) = (self.world.terms(), self.world.config().way_of(&ripe.place));
        let (mut here, mut ends) = (Vec::with_capacity(ripe.members.len()), Vec::new());
        for member in ripe.members {
            if member.expires_at <= now {
                ends.push((member, UnmadeCause::Expired.failure()));
            } else if let Some(reason) = terms.stopped(&ripe.tenant, member.workflow.as_deref(), way.as_ref()) {
                ends.push((member, UnmadeCause::Suspended { reason: &reason }.failure()));
            } else {
                here.push(member);
            }
        }
        let Some(first) = here.first().map(|member| member.id) else { return (None, ends) };
        let batch = Batch {
            id: ripe.id,
            placed: self.world.config().placed(&ripe.tenant, &ripe.place).map(Into::into),
            tenant: ripe.tenant,
            place: ripe.place,
            state: BatchState::Closed,
            opened_at: ripe.opened_at,
            closes_at: now,
            sends: here.iter().map(|member| member.id).collect(),
            bytes: here.iter().map(|member| member.bytes).sum(),
            tried: 0,
            taken: Processed::No,
            attempts: Vec::new(),
            ended: None,
            left_out: Vec::new(),
        };
        counter!("egressd_batch_sends_total", "kind" => batch.place.kind().label()).increment(here.len() as u64);
        let mut inside = self.inside();
        for send in &batch.sends {
            inside.whose.insert(*send, first);
        }
        let here: HashMap<SendId, Member> = here.into_iter().map(|member| (member.id, member)).collect();
        let closed = Closed { is_closing: true, ..Closed::new(batch, here) };
        inside.by_id.insert(closed.batch.id, first);
        inside.closed.insert(first, closed);
        (Some(first), ends)
    }

    /// `true` once it is durable, and this process's to carry.
    async fn close(&self, first: SendId) -> bool {
        let Some((batch, _)) = self.closed(first) else { return false };
        let grace = self.world.config().deadline_of(batch.place.kind()) + limits::DEAD_GRACE;
        let kept = loop {
            match self.ledger.store.close_batch(&self.ledger.session, batch.clone(), grace).await {
                Ok(kept) => break kept,
                Err(StoreError::CannotWrite(why)) => {
                    tracing::warn!(batch = %batch.id, %why, "a batch could not be closed; it is tried again");
                    if self.stopped_within(WRITE_AGAIN).await {
                        return false;
                    }
                }
                Err(error) => {
                    tracing::error!(batch = %batch.id, %error, "a batch was not closed; its events wait in the store");
                    self.let_go(first);
                    return false;
                }
            }
        };
        if kept.is_empty() {
            self.let_go(first);
            return false;
        }
        let changed = {
            let mut inside = self.inside();
            let Some(closed) = inside.closed.get_mut(&first) else { return false };
            closed.is_closing = false;
            if kept.len() == batch.sends.len() {
                return true;
            }
            // The others had their ends meanwhile.
            let is_in: HashSet<SendId> = kept.iter().copied().collect();
            closed.here.retain(|send, _| is_in.contains(send));
            closed.come = kept.len();
            let bytes = closed.here.values().map(|member| member.bytes).sum();
            closed.batch = Arc::new(Batch { sends: kept, bytes, ..Batch::clone(&closed.batch) });
            let changed = closed.batch.clone();
            for send in batch.sends.iter().filter(|send| !is_in.contains(send)) {
                inside.whose.remove(send);
            }
            changed
        };
        self.put(changed).await
    }

    /// Durable when it answers `true`; else this process can do no more for it.
    async fn put(&self, batch: Arc<Batch>) -> bool {
        loop {
            match self.ledger.store.put_batch(&self.ledger.session, batch.clone()).await {
                Ok(()) => return true,
                Err(StoreError::CannotWrite(why)) => {
                    tracing::warn!(batch = %batch.id, %why, "a batch could not be written; it is tried again");
                    if self.stopped_within(WRITE_AGAIN).await {
                        return false;
                    }
                }
                Err(error) => {
                    tracing::error!(batch = %batch.id, %error, "a batch was not written; its events wait in the store");
                    if let StoreError::Fenced(_) = error
                        && let Some(first) = batch.sends.first()
                    {
                        self.let_go(*first);
                    }
                    return false;
                }
            }
        }
    }

    async fn stopped_within(&self, time: Duration) -> bool {
        let mut stop = self.stop.subscribe();
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => true,
            () = tokio::time::sleep(time) => false,
        }
    }

    /// It waits for its turn among all that this process has to do.
    fn enter(self: &Arc<Self>, first: SendId) {
        let (batch, expiry) = match self.inside().closed.get_mut(&first) {
            Some(closed) => {
                closed.waits = true;
                (closed.batch.clone(), closed.here.values().map(|member| member.expires_at).max())
            }
            None => return,
        };
        let claimed = flow::Claimed {
            tenant: batch.tenant.clone(),
            destination: self.world.config().way_of(&batch.place),
            send: Waiting {
                id: first,
                workflow: None,
                created_at: batch.opened_at,
                released_at: batch.closes_at,
                expires_at: self.expires_at(&batch, expiry.unwrap_or(Timestamp::MAX)),
                spec: None,
            },
        };
        let unsent = {
            let terms = self.world.terms();
            self.backlog.decide(|flow| flow.handed(vec![claimed], &terms))
        };
        for one in unsent {
            self.stop(&one);
        }
    }

    /// When it is given up, should it have no turn by then, as where no source is usable: at its age where it was tried, else
    /// with its events. One that comes too old, from a node that was down, has the time for its turn all the same.
    fn expires_at(&self, batch: &Batch, of_events: Timestamp) -> Timestamp {
        let config = self.world.config();
        let after = |at: Timestamp, time: Duration| {
            SignedDuration::try_from(time).ok().and_then(|time| at.checked_add(time).ok()).unwrap_or(Timestamp::MAX)
        };
        let given_up = match batch.attempts.is_empty() {
            true => of_events,
            false => after(batch.closes_at, self.settings_of(&batch.place).give_up),
        };
        given_up.max(after(clock::wall(), config.deadline_of(batch.place.kind())))
    }

    /// How many events are queued for their batch here: it gathers them, or is tried.
    pub fn events(&self) -> usize {
        let inside = self.inside();
        inside.gatherer.events() + inside.whose.len()
    }

    /// Whether this stands for a batch.
    pub fn stands_for_one(&self, send: SendId) -> bool {
        let inside = self.inside();
        inside.closed.contains_key(&send) || inside.left.contains(&send)
    }

    /// The window gave it back: the operator has stopped it. With how many sends.
    pub fn stop(self: &Arc<Self>, one: &flow::Unsent) -> u64 {
        let Some(batch) = self.out_of_window(one.send.id) else { return 0 };
        let stopped = |why: UnmadeCause<'_>| stopped(one.send.id, &batch, why.failure());
        let ended = match &one.why {
            flow::Why::Expired => batch.attempts.last().cloned().unwrap_or_else(|| stopped(UnmadeCause::Expired)),
            flow::Why::Suspended(reason) => stopped(UnmadeCause::Suspended { reason }),
        };
        self.spawn(self.clone().end(one.send.id, ended));
        batch.sends.len() as u64
    }

    /// Ends what gathers and is suspended by now. With how many sends.
    pub async fn suspended(&self) -> u64 {
        let gone = {
            let (terms, config) = (self.world.terms(), self.world.config());
            self.inside().gatherer.remove_where(|tenant, place, member| {
                terms.stopped(tenant, member.workflow.as_deref(), config.way_of(place).as_ref())
            })
        };
        let count = gone.len() as u64;
        let ends = gone.into_iter().map(|(_, member, reason)| {
            let why = UnmadeCause::Suspended { reason: &reason }.failure();
            unsent(member.id, member.created_at, Some(member.released_at), why)
        });
        futures_util::stream::iter(ends).for_each_concurrent(ENDS_AT_ONCE, |end| self.ledger.close(end)).await;
        count
    }

    /// It is in the window no more; `None`: nor is it this process's.
    fn out_of_window(&self, first: SendId) -> Option<Arc<Batch>> {
        let mut inside = self.inside();
        inside.left.remove(&first);
        let closed = inside.closed.get_mut(&first)?;
        closed.waits = false;
        Some(closed.batch.clone())
    }

    /// It is its turn.
    pub fn go(self: &Arc<Self>, go: Go) {
        let this = self.clone();
        self.spawn(async move {
            let Some((slot, waiting)) = go.take() else { return };
            if this.out_of_window(waiting.id).is_none() {
                return;
            }
            let Some(carrying) = this.may_carry(waiting.id) else {
                // Its slot is others' meanwhile: what hangs holds up batches alone.
                drop(slot);
                return match this.given_up(waiting.id) {
                    Some(last) => this.end(waiting.id, last).await,
                    None => this.again(waiting.id, this.carried_again()),
                };
            };
            let mut stop = this.stop.subscribe();
            let tried = tokio::select! {
                // A try that is cut off does no harm: the next process makes it again.
                _ = stop.wait_for(|stop| *stop) => return,
                tried = this.clone().carry_or_tell(waiting.id) => tried,
            };
            drop((slot, carrying));
            match tried {
                Turn::Tried(tried) => this.tried(waiting.id, *tried).await,
                Turn::Stopped(ended) => this.end(waiting.id, *ended).await,
                Turn::NotNow => this.again(waiting.id, WRITE_AGAIN),
                Turn::Gone => this.let_go(waiting.id),
            }
        });
    }

    /// Whether it is too old for another try so much later.
    fn is_over(&self, batch: &Batch, later: Duration) -> bool {
        clock::waited(batch.closes_at, clock::wall()) + later >= self.settings_of(&batch.place).give_up
    }

    /// What its last try brought, where it is too old to wait for a place. Each has one try, however old.
    fn given_up(&self, first: SendId) -> Option<Finished> {
        let (batch, _) = self.closed(first)?;
        self.is_over(&batch, Duration::ZERO).then(|| batch.attempts.last().cloned())?
    }

    /// A place among those that are made up and carried at once, of which a tenant has some, and not all of these for one kind.
    fn may_carry(self: &Arc<Self>, first: SendId) -> Option<Carrying> {
        let mut inside = self.inside();
        let batch = &inside.closed.get(&first)?.batch;
        let whose = (batch.tenant.clone(), batch.place.kind());
        let (mut all, mut own) = (0, 0);
        for ((tenant, _), count) in &inside.carried {
            all += count;
            own += if *tenant == whose.0 { *count } else { 0 };
        }
        let of_kind = inside.carried.get(&whose).copied().unwrap_or(0);
        let is_full = all >= limits::BATCHES_CARRIED || own >= limits::BATCHES_CARRIED_OF_ONE;
        if is_full || of_kind >= limits::BATCHES_CARRIED_OF_KIND {
            return None;
        }
        inside.carried.insert(whose.clone(), of_kind + 1);
        drop(inside);
        Some(Carrying { of: self.clone(), whose })
    }

    /// The more wait, the later each asks again: all of them together take little.
    fn carried_again(&self) -> Duration {
        let waiting = u32::try_from(self.inside().closed.len()).unwrap_or(u32::MAX);
        limits::BATCH_CARRIED_AGAIN + limits::BATCH_CARRIED_AGAIN_EACH * waiting.min(100_000)
    }

    /// A try that panics is a defect of ours, and one of those that may pass.
    async fn carry_or_tell(self: Arc<Self>, first: SendId) -> Turn {
        let work = std::panic::AssertUnwindSafe(Box::pin(self.clone().carry(first)));
        match futures_util::FutureExt::catch_unwind(work).await {
            Ok(tried) => tried,
            Err(_) => {
                let Some((batch, _)) = self.closed(first) else { return Turn::Gone };
                tracing::error!(batch = %batch.id, "a try to carry a batch panicked; it is made again");
                Turn::Tried(Box::new(Tried::in_vain(stopped(first, &batch, UnmadeCause::Defect.failure()))))
            }
        }
    }

    /// What cannot be read back goes without the others, and they without it. Where an earlier try may have brought it there
    /// that is all that is known of it.
    async fn end_unread(&self, first: SendId, batch: &Batch, unread: Vec<SendId>) {
        let unread: Vec<Member> = match self.inside().closed.get_mut(&first) {
            Some(closed) => unread.iter().filter_map(|send| closed.here.remove(send)).collect(),
            None => Vec::new(),
        };
        for member in unread {
            let why = UnmadeCause::unreadable(batch.taken).failure();
            let end = unsent(member.id, member.created_at, Some(member.released_at), why);
            self.ledger.close(Finished { batch: Some(batch.named()), ..end }).await;
        }
    }

    async fn carries(&self, batch: &Batch) -> Result<(), Turn> {
        match self.ledger.store.may_carry(&self.ledger.session, batch.id).await {
            Ok(()) => Ok(()),
            Err(StoreError::Fenced(_)) => Err(Turn::Gone),
            Err(error) => {
                tracing::warn!(batch = %batch.id, %error, "a batch is not tried now; it waits");
                Err(Turn::NotNow)
            }
        }
    }

    /// One try, from the reading of its events to its answer.
    async fn carry(self: Arc<Self>, first: SendId) -> Turn {
        let Some((batch, _)) = self.closed(first) else { return Turn::Gone };
        // Who does not carry it any more gives none of its sends an end.
        if let Err(turn) = self.carries(&batch).await {
            return turn;
        }
        if batch.taken == Processed::No
            && let Some(reason) = self.end_suspended(first, &batch).await
        {
            let why = UnmadeCause::Suspended { reason: &reason }.failure();
            return Turn::Stopped(Box::new(stopped(first, &batch, why)));
        }
        let mut packing = Packing::new(&batch.place);
        let mut is_empty = true;
        for some in batch.sends.chunks(READ_AT_ONCE) {
            let specs = match self.ledger.store.specs(some.to_vec()).await {
                Ok(specs) => specs,
                // The store is away: that says nothing of the batch.
                Err(StoreError::CannotWrite(why)) => {
                    tracing::warn!(batch = %batch.id, %why, "the events of a batch could not be asked for; it waits");
                    return Turn::NotNow;
                }
                Err(error) => {
                    tracing::warn!(batch = %batch.id, %error, "the events of a batch could not be read; it is tried again");
                    let failure = UnmadeCause::Unreadable.failure();
                    return Turn::Tried(Box::new(Tried::in_vain(stopped(first, &batch, failure))));
                }
            };
            let read = some.iter().copied().zip(specs);
            let (events, unread): (Vec<_>, Vec<_>) = read.partition(|(_, spec)| spec.is_some());
            self.end_unread(first, &batch, unread.into_iter().map(|(send, _)| send).collect()).await;
            is_empty &= events.is_empty();
            let pack = async move {
                for (id, spec) in events {
                    if let Some(To::Event(event)) = spec.as_ref().map(|spec| &spec.to) {
                        packing.add(id, event);
                    }
                }
                packing
            };
            packing = self.deliverer.apart().run(&batch.tenant, pack).await;
        }
        if is_empty {
            let why = UnmadeCause::unreadable(batch.taken).failure();
            return Turn::Stopped(Box::new(stopped(first, &batch, why)));
        }
        let content = self.deliverer.apart().run(&batch.tenant, async move { packing.finish() }).await;
        if let Err(turn) = self.carries(&batch).await {
            return turn;
        }
        // What was suspended since its turn came is in force here by now.
        let way = self.world.config().way_of(&batch.place);
        if let Some(reason) = self.world.terms().stopped(&batch.tenant, None, way.as_ref()) {
            let why = UnmadeCause::Suspended { reason: &reason }.failure();
            return Turn::Stopped(Box::new(stopped(first, &batch, why)));
        }
        let Some(batch) = self.ready(first).await else { return Turn::NotNow };
        let started_at = clock::wall();
        let deadline = Deadline::start(self.world.config().deadline_of(batch.place.kind()));
        let parcel = Parcel {
            id: batch.id,
            tenant: batch.tenant.clone(),
            place: batch.place.clone(),
            closed_at: batch.closes_at,
            placed: batch.placed.clone(),
            content,
        };
        let attempt = self.deliverer.carry(parcel, deadline).await;
        let mut tried = self.told(first, &batch, started_at, attempt);
        // A reload came between: it goes where that leads it.
        if batch.taken == Processed::No
            && self.world.config().placed(&batch.tenant, &batch.place).as_deref() != batch.placed.as_deref()
        {
            tried.fate = if tried.fate == Fate::Over { Fate::MayPass } else { tried.fate };
        }
        Turn::Tried(Box::new(tried))
    }

    /// Before what it holds may be anywhere: whose workflow the operator has stopped meanwhile is not in it, at this try or a later
    /// one. Why all of them were, where nothing else is left; then they end with the batch.
    async fn end_suspended(&self, first: SendId, batch: &Batch) -> Option<Arc<str>> {
        let (terms, way) = (self.world.terms(), self.world.config().way_of(&batch.place));
        let stopped = {
            let mut inside = self.inside();
            let here = &mut inside.closed.get_mut(&first)?.here;
            let why = |member: &Member| terms.stopped(&batch.tenant, member.workflow.as_deref(), way.as_ref());
            let mut stopped: Vec<(SendId, Arc<str>)> =
                here.values().filter_map(|member| Some((member.id, why(member)?))).collect();
            if stopped.len() == here.len() {
                return stopped.pop().map(|(_, reason)| reason);
            }
            let taken_out = |(send, reason)| Some((here.remove(&send)?, reason));
            stopped.into_iter().filter_map(taken_out).collect::<Vec<(Member, Arc<str>)>>()
        };
        let ends = stopped.into_iter().map(|(member, reason)| {
            let why = UnmadeCause::Suspended { reason: &reason }.failure();
            unsent(member.id, member.created_at, Some(member.released_at), why)
        });
        futures_util::stream::iter(ends).for_each_concurrent(ENDS_AT_ONCE, |end| self.ledger.close(end)).await;
        None
    }

    /// The batch as it is right before a try: durable that it may be where it goes from now on, and where that is. One that no
    /// try can have brought anywhere goes where the configuration leads it now.
    async fn ready(&self, first: SendId) -> Option<Arc<Batch>> {
        let (batch, _) = self.closed(first)?;
        if batch.taken != Processed::No {
            return Some(batch);
        }
        let placed = self.world.config().placed(&batch.tenant, &batch.place).map(Into::into);
        let batch = Arc::new(Batch { placed, ..Batch::clone(&batch) });
        self.inside().closed.get_mut(&first)?.batch = batch.clone();
        // What becomes of the try is not known before it is over.
        let noted = Arc::new(Batch { taken: Processed::Maybe, ..Batch::clone(&batch) });
        self.put(noted).await.then_some(batch)
    }

    /// A try as it is remembered.
    fn told(&self, first: SendId, batch: &Batch, started_at: Timestamp, attempt: Attempt) -> Tried {
        let fate = Fate::of(&attempt);
        let redactor = self.ledger.redactor.load();
        let redactor = redactor.of(&batch.tenant);
        let keep_bodies = self.world.config().keeps_bodies(&batch.tenant);
        let body_max = self.world.config().limits.response_body_stored;
        let ended = match fate {
            // Also where it was there before: the answer says so, and that is what was wanted.
            Fate::There => Ended { outcome: crate::outcome::Outcome::Delivered, error: None },
            Fate::MayPass | Fate::Over => redactor.ended(attempt.ended, keep_bodies),
        };
        let finished = Finished {
            id: first,
            ended,
            sent_headers: None,
            response: attempt.response.map(|response| kept(redactor.response(response, keep_bodies), body_max)),
            connection: attempt.connection,
            would_block: attempt.would_block,
            timings: attempt.timings,
            released_at: Some(batch.closes_at),
            started_at: Some(started_at),
            finished_at: clock::wall(),
            batch: Some(InBatch { taken: attempt.taken, ..batch.named() }),
        };
        let left_out = |left_out: deliver::LeftOut| {
            let id = *left_out.sends.first()?;
            let ended = Ended::answered(left_out.answer.status);
            let response = Some(redactor.response(left_out.answer, keep_bodies));
            let batch = Some(InBatch { taken: Processed::No, ..batch.named() });
            Some(LeftOut { sends: left_out.sends, end: Finished { id, ended, response, batch, ..finished.clone() } })
        };
        let left_out = attempt.left_out.into_iter().filter_map(left_out).collect();
        Tried { finished, fate, left_out }
    }

    /// What comes of a try: the end, or another one.
    async fn tried(self: &Arc<Self>, first: SendId, tried: Tried) {
        let Tried { finished, fate, left_out } = tried;
        let pause = {
            let mut inside = self.inside();
            let Some(closed) = inside.closed.get_mut(&first) else { return };
            let mut batch = Batch::clone(&closed.batch);
            batch.tried = batch.tried.saturating_add(1);
            batch.left_out = left_out;
            let says = finished.ended.error.as_ref().map_or(Processed::No, |error| error.processed);
            if [Some(says), finished.batch.map(|batch| batch.taken)].contains(&Some(Processed::Maybe)) {
                batch.taken = Processed::Maybe;
            }
            // Most have one or two, and thousands of batches may wait with theirs.
            batch.attempts.reserve_exact(1);
            batch.attempts.push(finished.clone());
            if batch.attempts.len() > limits::BATCH_ATTEMPTS_KEPT {
                batch.attempts.remove(limits::BATCH_FIRST_ATTEMPTS_KEPT);
            }
            closed.batch = Arc::new(batch);
            let pause = closed.pause;
            closed.pause = (pause * 2).min(limits::BATCH_LONGEST_PAUSE);
            pause
        };
        let Some((batch, _)) = self.closed(first) else { return };
        let (kind, outcome) = (batch.place.kind().label(), finished.ended.outcome.label());
        counter!("egressd_batch_tries_total", "kind" => kind, "outcome" => outcome).increment(1);
        if let Some(error) = &finished.ended.error {
            tracing::info!(batch = %batch.id, tenant = %batch.tenant, place = %batch.place, code = %error.code, "a batch was tried in vain");
        }
        if fate != Fate::MayPass || self.is_over(&batch, pause) {
            return self.clone().end(first, finished).await;
        }
        if self.put(batch.clone()).await && !self.goes_elsewhere(first, &batch, &finished).await {
            self.again(first, pause);
        }
    }

    /// Gives the batch its end, then each of its sends.
    async fn end(self: Arc<Self>, first: SendId, ended: Finished) {
        let (batch, is_first_end) = {
            let mut inside = self.inside();
            let Some(closed) = inside.closed.get_mut(&first) else { return };
            let is_first_end = closed.batch.ended.is_none();
            if is_first_end {
                let ended = ended.clone().in_doubt(closed.batch.taken);
                closed.batch = Arc::new(Batch { ended: Some(ended), ..Batch::clone(&closed.batch) });
            }
            (closed.batch.clone(), is_first_end)
        };
        let Some(ended) = batch.ended.clone() else { return };
        if !self.put(batch.clone()).await {
            return;
        }
        self.end_here(first).await;
        if !self.put(Arc::new(Batch { state: BatchState::Done, ..Batch::clone(&batch) })).await {
            return;
        }
        if is_first_end {
            let (kind, outcome) = (batch.place.kind().label(), ended.ended.outcome.label());
            counter!("egressd_batches_total", "kind" => kind, "outcome" => outcome).increment(1);
        }
        let mut inside = self.inside();
        inside.closed.remove(&first);
        inside.by_id.remove(&batch.id);
        for send in &batch.sends {
            inside.whose.remove(send);
        }
    }

    /// Gives those of its sends that are here the end that it has.
    async fn end_here(&self, first: SendId) {
        let Some(ends) = self.inside().closed.get(&first).map(|closed| closed.ends.clone()) else { return };
        let _turn = ends.lock().await;
        loop {
            let (batch, here) = match self.inside().closed.get_mut(&first) {
                Some(closed) => (closed.batch.clone(), std::mem::take(&mut closed.here)),
                None => return,
            };
            let Some(ended) = &batch.ended else { return };
            if here.is_empty() {
                return;
            }
            let own: HashMap<SendId, &Finished> = batch
                .left_out
                .iter()
                .flat_map(|left_out| left_out.sends.iter().map(|send| (*send, &left_out.end)))
                .collect();
            let end = |member: Member| end_of(&member, own.get(&member.id).copied().unwrap_or(ended));
            let ends = here.into_values().map(end);
            futures_util::stream::iter(ends).for_each_concurrent(ENDS_AT_ONCE, |end| self.ledger.close(end)).await;
        }
    }

    // What it tells.

    /// The batch that this event is in, while it has no end.
    pub fn of(&self, send: SendId) -> Option<InBatch> {
        let inside = self.inside();
        match inside.whose.get(&send).and_then(|first| inside.closed.get(first)) {
            Some(closed) => Some(closed.batch.named()),
            None => inside.gatherer.of(send),
        }
    }

    /// A batch that is not done, with how many sends.
    pub fn standing(&self, id: BatchId) -> Option<Standing> {
        let inside = self.inside();
        if let Some(closed) = inside.by_id.get(&id).and_then(|first| inside.closed.get(first)) {
            return Some(Standing { batch: Batch::clone(&closed.batch), sends: closed.batch.sends.len() });
        }
        let gathering = inside.gatherer.gathering(id)?;
        let batch = Batch {
            id,
            tenant: gathering.tenant,
            place: gathering.place,
            state: BatchState::Gathering,
            opened_at: gathering.opened_at,
            closes_at: gathering.closes_at,
            placed: None,
            sends: Vec::new(),
            bytes: gathering.bytes,
            tried: 0,
            taken: Processed::No,
            attempts: Vec::new(),
            ended: None,
            left_out: Vec::new(),
        };
        Some(Standing { batch, sends: gathering.sends })
    }

    /// No more is tried. What gathers and what is closed stays on disk.
    pub fn rest(&self) {
        self.stop.send_replace(true);
    }

    /// Waits for ends that are being written.
    pub async fn rested(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// One that gathers, of what the store gave; `None`: it goes by itself.
fn member_of(pending: &Pending) -> Option<(&Place, Member)> {
    let (place, bytes) = pending.gathers.as_ref()?;
    let member = Member {
        id: pending.id,
        workflow: pending.workflow.clone(),
        created_at: pending.created_at,
        released_at: pending.released_at,
        expires_at: Waiting::expiry(pending.released_at, pending.expires_in),
        bytes: *bytes,
    };
    Some((place, member))
}
