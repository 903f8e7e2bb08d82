//! The way in: what the API (and the demo) hands over is checked against room and suspensions, and made durable. What
//! may start at once is accepted and begun in one record; the rest waits in the window of the
//! [`flow`](crate::flow) or in the store, and held sends wait there for their execution, which the store releases or
//! discards as a whole. Everything here answers only after the store has.

mod ids;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use metrics::{Unit, counter, describe_counter};
use tokio::sync::{Mutex, OwnedMutexGuard};

use self::ids::Ids;
use crate::backlog::{Backlog, TenantBacklog};
use crate::batcher::Standing;
use crate::clock;
use crate::config::Config;
use crate::deliver::apart::Apart;
use crate::dispatch::{Dispatcher, Since};
use crate::flow::{Admission, Bounds, Claimed, Counted, Entry, Full};
use crate::gather::Member;
use crate::ledger::Ledger;
use crate::limits::STORE_ANSWERS_WITHIN;
use crate::outcome::Timings;
use crate::policy::{Asker, Suspensions};
use crate::record::{BatchId, ExecutionState, Record, ShownTo, State, Unfinished};
use crate::redact::Redactor;
use crate::schedule::Waiting;
use crate::send::{ExecutionId, Place, SendId, SendSpec, TenantId};
use crate::store::{
    Accept, Accepted, Course, Ending, ExecutionEnd, IdempotencyKey, NewSend, NodeLoad, Reach, Started, StoreError,
    Suspension, SuspensionScope,
};
use crate::world::World;

/// One submitting call, of valid shape.
#[derive(Debug)]
pub struct Submit {
    pub tenant: TenantId,
    /// In call order; never empty, at most `sends_per_request`.
    pub sends: Vec<SendSpec>,
    /// Held until this execution ends.
    pub hold: Option<ExecutionId>,
    pub idempotency: Option<IdempotencyKey>,
    pub resend_of: Option<SendId>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Submitted {
    /// The records as they are at acceptance, in call order: what was just written need not be read back.
    Accepted(Vec<Record>),
    Replayed(Vec<SendId>),
}

/// Why a call was not accepted. Nothing of it was.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    #[error("sends of {who} are suspended: {reason}")]
    Suspended { who: String, reason: String },
    #[error("execution {execution} is {}: it takes no more calls of this kind", state.label())]
    ExecutionEnded { execution: ExecutionId, state: ExecutionState },
    #[error(
        "execution {execution} would hold more than {limit} sends: raise `[limits] sends_per_execution` or send less"
    )]
    ExecutionFull { execution: ExecutionId, limit: u32 },
    #[error("this Idempotency-Key came before with another body")]
    IdempotencyMismatch,
    #[error("{queued} sends of this tenant wait already, {limit} may: try again later")]
    TenantFull { queued: u64, limit: u64, retry_after: u64 },
    #[error(
        "what this tenant has stored ({stored} bytes) has reached its share of the store ({share} bytes): try again \
         once older records are past their retention"
    )]
    ShareFull { stored: u64, share: u64, retry_after: u64 },
    /// How much waits on a node is for its operators to know: what others are told is the API's to say.
    #[error("this node has {queued} sends waiting, {limit} may: try again later, or another node")]
    NodeFull { queued: u64, limit: u64, retry_after: u64 },
    #[error("this node is shutting down: try again, or another node")]
    Draining,
    #[error("not accepted: {0}")]
    Store(#[from] StoreError),
}

/// Sends that one sweep of the store ends or releases at once.
const SWEEP: usize = 1_000;
/// A sweep that the store did not take is tried again so much later.
const SWEEP_AGAIN: Duration = Duration::from_millis(500);
/// Seconds after which a tenant over its share may ask again.
const SHARE_RETRY: u64 = 60;

pub struct Intake {
    world: Arc<World>,
    ledger: Arc<Ledger>,
    backlog: Arc<Backlog>,
    dispatcher: Arc<Dispatcher>,
    draining: AtomicBool,
    ids: Ids,
    apart: Apart,
    /// Held by who changes suspensions: what is in force is read from the store and put in force by one at a time, or
    /// the older of two images would stay.
    changing: Arc<Mutex<()>>,
    /// Held by who ends what is suspended: each walks over all that waits.
    ending: Mutex<()>,
}

/// Whose turn it is to change suspensions.
pub struct Changing {
    _turn: OwnedMutexGuard<()>,
}

fn image_of(suspensions: impl IntoIterator<Item = Suspension>) -> Suspensions {
    let mut image = Suspensions::default();
    for suspension in suspensions {
        let reason: Arc<str> = suspension.reason.as_str().into();
        match suspension.scope {
            SuspensionScope::Tenant { tenant, workflow: None } => {
                image.tenants.insert(tenant, reason);
            }
            SuspensionScope::Tenant { tenant, workflow: Some(workflow) } => {
                image.workflows.insert((tenant, workflow.into()), reason);
            }
            SuspensionScope::Host { host } => image.stop_host(&host, reason),
        }
    }
    image
}

impl Intake {
    /// `apart`: where calls, whose size is their callers' choice, are worked on.
    pub fn new(
        world: Arc<World>,
        ledger: Arc<Ledger>,
        backlog: Arc<Backlog>,
        dispatcher: Arc<Dispatcher>,
        apart: Apart,
    ) -> Arc<Self> {
        describe_counter!(
            "egressd_sends_accepted_total",
            Unit::Count,
            "Sends accepted: each will have exactly one outcome."
        );
        let (draining, ids) = (AtomicBool::new(false), Ids::default());
        let (changing, ending) = Default::default();
        Arc::new(Self { world, ledger, backlog, dispatcher, draining, ids, apart, changing, ending })
    }

    /// Where what is large of a call is worked on.
    pub fn apart(&self) -> &Apart {
        &self.apart
    }

    /// What records may show now.
    pub fn redactor(&self) -> Arc<Redactor> {
        self.ledger.redactor.load_full()
    }

    /// No more calls are accepted from now on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Accepts a call's sends, all or none; they are on disk when this answers.
    pub async fn submit(&self, call: Submit) -> Result<Submitted, Refusal> {
        if let Some(key) = &call.idempotency {
            match self.ledger.store.replay(key.clone(), clock::wall()).await? {
                Some(Accepted::Replayed(ids)) => return Ok(Submitted::Replayed(ids)),
                Some(Accepted::Mismatch) => return Err(Refusal::IdempotencyMismatch),
                _ => {}
            }
        }
        if self.draining() {
            return Err(Refusal::Draining);
        }
        self.refuse_suspended(&call)?;
        let config = self.world.config();
        let mut admission = self.admit(&call.tenant, call.sends.len() as u64, &config)?;

        let created_at = clock::wall();
        let held = call.hold.is_some();
        let mut ids = self.ids.call(created_at);
        let named: Vec<SendId> = call.sends.iter().map(|_| ids.id()).collect();
        if !held {
            // Events gather beside the window: they are claimed, and nothing of them alone is scheduled.
            let gathers = |(_, spec): &(&SendId, &SendSpec)| spec.gathers().is_some();
            let (gathered, single): (Vec<_>, Vec<_>) = named.iter().zip(&call.sends).partition(gathers);
            admission.gather(gathered.into_iter().map(|(id, _)| *id));
            let sends = single.into_iter().map(|(id, spec)| (*id, spec.destination().cloned()));
            let terms = self.world.terms();
            self.backlog.decide(|flow| flow.place(&mut admission, sends, &terms));
        }
        let mut placed = admission.entries.iter().map(course_of);
        let course = |spec: &SendSpec| match spec.gathers() {
            Some(_) if !held => Course::Claim,
            _ => placed.next().unwrap_or(Course::Wait),
        };
        let courses: Vec<Course> = call.sends.iter().map(course).collect();
        let footprint = call.sends.iter().map(|spec| spec.footprint() as usize).sum();
        let making = Making {
            tenant: call.tenant.clone(),
            held,
            resend_of: call.resend_of,
            created_at,
            expires_in: config.delivery.expires_in,
            keep_bodies: config.keeps_bodies(&call.tenant),
            redactor: self.ledger.redactor.load_full(),
            node: self.ledger.session.node().to_string(),
        };
        let specs = call.sends;
        let make = move || {
            let mut courses = courses.into_iter();
            let each = specs.into_iter().zip(named);
            each.map(|(spec, id)| making.of(spec, id, courses.next().unwrap_or(Course::Wait))).unzip()
        };
        let (sends, mut records): (Vec<NewSend>, Vec<Record>) = self.apart.on(footprint, &call.tenant, make).await;
        let (kept, gathered) = (self.kept(&sends), self.gathered(&sends, held));
        let accept = Accept {
            tenant: call.tenant.clone(),
            sends,
            hold: call.hold.clone(),
            idempotency: call.idempotency,
            sends_per_execution: config.limits.sends_per_execution,
        };
        let execution = call.hold.unwrap_or_else(|| ExecutionId::new(""));
        match self.ledger.store.accept(&self.ledger.session, accept).await? {
            Accepted::New { indexes, started } => {
                for (record, index) in records.iter_mut().zip(indexes) {
                    record.index = index;
                }
                let gathers = !gathered.is_empty();
                for (place, member) in gathered {
                    self.dispatcher.batcher().take(&call.tenant, &place, member);
                }
                self.accepted(admission, kept, started);
                if gathers {
                    // Whoever is asked next knows the batch. One that cannot be told of is no reason to refuse what is accepted.
                    tokio::select! {
                        () = self.dispatcher.batcher().noted() => {}
                        () = tokio::time::sleep(STORE_ANSWERS_WITHIN) => {}
                    }
                }
                records.iter_mut().for_each(|record| self.name_batch(record));
            }
            Accepted::Replayed(ids) => return Ok(Submitted::Replayed(ids)),
            Accepted::Mismatch => return Err(Refusal::IdempotencyMismatch),
            Accepted::Ended(state) => return Err(Refusal::ExecutionEnded { execution, state }),
            Accepted::ExecutionFull => {
                return Err(Refusal::ExecutionFull { execution, limit: config.limits.sends_per_execution });
            }
            Accepted::ShareFull { stored, share } => {
                return Err(Refusal::ShareFull { stored, share, retry_after: SHARE_RETRY });
            }
        }
        counter!("egressd_sends_accepted_total").increment(records.len() as u64);
        Ok(Submitted::Accepted(records))
    }

    fn admit(&self, tenant: &TenantId, sends: u64, config: &Config) -> Result<Admission, Refusal> {
        let store = &self.ledger.store;
        let (of_tenant, in_all) = (store.waiting_of(tenant), store.waiting_in_all());
        let counted = Counted { tenant: of_tenant.held + of_tenant.queued, node: in_all.held + in_all.queued };
        let bounds = Bounds {
            tenant: config.tenant(tenant).map_or(config.delivery.queued_per_tenant, |tenant| tenant.queued),
            node: config.delivery.queued,
        };
        let admitted = {
            let terms = self.world.terms();
            self.backlog.decide(|flow| flow.admit(tenant, sends, counted, bounds, &terms))
        };
        admitted.map_err(|full| {
            // How soon room is likely: about a tenth of what the oldest waiting send has waited, in seconds.
            let oldest = match full {
                Full::Tenant { .. } => of_tenant.oldest.into_iter().chain(self.backlog.lock().oldest_of(tenant)).min(),
                Full::Node { .. } => in_all.oldest,
            };
            let waited = oldest.map_or(0, |oldest| clock::wall().duration_since(oldest).as_secs());
            let retry_after = u64::try_from(waited / 10).unwrap_or_default().clamp(1, 60);
            match full {
                Full::Tenant { waiting, limit } => Refusal::TenantFull { queued: waiting, limit, retry_after },
                Full::Node { waiting, limit } => Refusal::NodeFull { queued: waiting, limit, retry_after },
            }
        })
    }

    /// What is to wait in the window once the call is accepted.
    fn kept(&self, sends: &[NewSend]) -> Vec<Claimed> {
        let kept = sends.iter().filter(|send| send.course == Course::Claim && send.spec.gathers().is_none());
        kept.map(|send| Claimed {
            tenant: send.tenant.clone(),
            destination: send.spec.destination().cloned(),
            send: Waiting {
                id: send.id,
                workflow: send.spec.context.workflow.clone(),
                created_at: send.created_at,
                released_at: send.created_at,
                expires_at: Waiting::expiry(clock::steady(send.created_at), send.expires_in),
                spec: self.backlog.keep_hot(&send.spec),
            },
        })
        .collect()
    }

    /// What of it is to gather with others once the call is accepted. Of held sends nothing is before they are released.
    fn gathered(&self, sends: &[NewSend], held: bool) -> Vec<(Place, Member)> {
        let gathers = sends.iter().filter(|_| !held).filter_map(|send| Some((send, send.spec.gathers()?)));
        gathers
            .map(|(send, place)| {
                let member = Member {
                    id: send.id,
                    workflow: send.spec.context.workflow.clone(),
                    created_at: send.created_at,
                    released_at: send.created_at,
                    expires_at: Waiting::expiry(send.created_at, send.expires_in),
                    bytes: send.spec.body().map_or(0, |body| body.len() as u64),
                };
                (place.clone(), member)
            })
            .collect()
    }

    /// Tells a record of its batch, while that is known here alone, or better than by the store.
    pub fn name_batch(&self, record: &mut Record) {
        if record.state != State::Done
            && matches!(record.request.to, ShownTo::Event { .. })
            && let Some(batch) = self.dispatcher.batcher().of(record.id)
        {
            record.batch = Some(batch);
        }
    }

    /// A batch that is not done, as it stands, with how many sends.
    pub fn batch(&self, id: BatchId) -> Option<Standing> {
        self.dispatcher.batcher().standing(id)
    }

    /// The call is on disk, and what of it was begun goes out.
    fn accepted(&self, mut admission: Admission, kept: Vec<Claimed>, started: Vec<Started>) {
        let entries = std::mem::take(&mut admission.entries);
        let slots = entries.into_iter().filter_map(|entry| match entry {
            Entry::Begin(slot) => Some(slot),
            _ => None,
        });
        for (started, slot) in started.into_iter().zip(slots) {
            let since = Since { created_at: started.at(), released_at: started.at() };
            self.dispatcher.deliver(started, slot, since);
        }
        if admission.is_spent() {
            return;
        }
        let unsent = {
            let terms = self.world.terms();
            self.backlog.decide(|flow| flow.accepted(admission, kept, &terms))
        };
        self.dispatcher.end_unsent(unsent);
    }

    /// How many sends the (first) call released or discarded. Ends of discarded sends are written before it answers.
    pub async fn end_execution(
        &self,
        tenant: TenantId,
        execution: ExecutionId,
        ending: Ending,
    ) -> Result<u64, Refusal> {
        let at = clock::wall();
        let (store, session) = (&self.ledger.store, &self.ledger.session);
        let ended = store.end_execution(session, tenant.clone(), execution.clone(), ending, at).await?;
        let count = match ended.end {
            ExecutionEnd::Done { count, .. } => count,
            ExecutionEnd::ShareFull { stored, share } => {
                return Err(Refusal::ShareFull { stored, share, retry_after: SHARE_RETRY });
            }
            ExecutionEnd::Conflict(state) => return Err(Refusal::ExecutionEnded { execution, state }),
        };
        self.ledger.closed_by_store(&ended.ended);
        // Also when an earlier call did it: that one may have been cut off before it came to this.
        if ending != Ending::Discard && count > 0 {
            self.backlog.decide(|flow| flow.added(&tenant));
        }
        Ok(count)
    }

    /// Releases the held sends of executions that nobody finished within `hold_limit`.
    pub async fn release_overdue(&self) {
        let limit = SignedDuration::try_from(self.world.config().delivery.hold_limit).unwrap_or(SignedDuration::MAX);
        loop {
            let now = clock::wall();
            let (store, session) = (&self.ledger.store, &self.ledger.session);
            let released = match store.release_overdue(session, limit, now, SWEEP).await {
                Ok(released) => released,
                Err(error) => {
                    tracing::warn!(%error, "held sends could not be released yet");
                    return;
                }
            };
            for (tenant, execution, count) in &released.executions {
                tracing::info!(%tenant, %execution, count, "held sends were released: nobody finished their execution");
                self.backlog.decide(|flow| flow.added(tenant));
            }
            if !released.more {
                return;
            }
        }
    }

    /// Effective at once on what is submitted, queued and held. With how many sends that ended.
    pub async fn suspend(
        &self,
        scope: SuspensionScope,
        reason: String,
        by: String,
        turn: Changing,
    ) -> Result<(Suspension, u64), Refusal> {
        let at = clock::wall();
        let suspension = Suspension { id: self.ids.call(at).id(), scope, reason, by, at, lifted: None };
        self.ledger.store.suspend(suspension.clone()).await?;
        self.load_suspensions(&turn).await?;
        drop(turn);
        tracing::warn!(id = %suspension.id, scope = ?suspension.scope, by = %suspension.by, reason = %suspension.reason, "suspended");
        let hit = self.end_suspended(image_of([suspension.clone()]).into()).await;
        Ok((suspension, hit))
    }

    /// `false`: no such suspension is in force.
    pub async fn lift(&self, id: SendId, by: String) -> Result<bool, Refusal> {
        let turn = self.change_suspensions().await;
        let lifted = self.ledger.store.lift(id, clock::wall(), by.clone()).await?;
        if lifted {
            self.load_suspensions(&turn).await?;
            tracing::warn!(%id, %by, "suspension lifted");
        }
        Ok(lifted)
    }

    /// What this node has taken on.
    pub fn load(&self) -> NodeLoad {
        let queued = self.backlog.lock().loads().map(|(_, queued, _)| queued).sum();
        NodeLoad { queued, in_flight: self.dispatcher.in_flight() as u64 }
    }

    /// Those within reach of whom something waits or is under way; costs what its answer does.
    pub fn tenants(&self, reach: &Reach) -> HashMap<TenantId, TenantBacklog> {
        let store = &self.ledger.store;
        let mut tenants: HashMap<TenantId, TenantBacklog> = HashMap::new();
        let waiting = match reach {
            Reach::All => store.waiting(),
            Reach::One(tenant) => vec![(tenant.clone(), store.waiting_of(tenant))],
        };
        for (tenant, count) in waiting {
            let one =
                TenantBacklog { held: count.held, queued: count.queued, in_flight: 0, oldest_queued: count.oldest };
            tenants.insert(tenant, one);
        }
        let terms = self.world.terms();
        let mut flow = self.backlog.lock();
        flow.take_back(&terms);
        let mut add = |tenant: &TenantId, in_flight: u64, oldest: Option<Timestamp>| {
            let one = tenants.entry(tenant.clone()).or_default();
            one.in_flight = in_flight;
            one.oldest_queued = one.oldest_queued.into_iter().chain(oldest).min();
        };
        match reach {
            Reach::All => flow.loads().for_each(|(tenant, in_flight, oldest)| add(tenant, in_flight, oldest)),
            Reach::One(tenant) => add(tenant, u64::from(flow.in_flight_of(tenant)), flow.oldest_of(tenant)),
        }
        drop(flow);
        tenants.retain(|_, one| *one != TenantBacklog::default());
        tenants
    }

    /// Takes up what the store remembers as waiting; how many sends. Called once, before the dispatcher runs.
    pub async fn restore(self: &Arc<Self>) -> Result<u64, StoreError> {
        self.load_suspensions(&self.change_suspensions().await).await?;
        self.dispatcher.look();
        if !self.world.suspensions().is_empty() {
            // Whoever stopped before the last of them had its end. Nothing suspended starts meanwhile.
            let this = self.clone();
            tokio::spawn(async move { this.end_suspended(this.world.suspensions()).await });
        }
        let waiting = self.ledger.store.waiting_in_all();
        Ok(waiting.held + waiting.queued)
    }

    /// What another process suspended or lifted: effective here from now on.
    pub async fn suspended_elsewhere(&self) {
        let loaded = self.load_suspensions(&self.change_suspensions().await).await;
        match loaded {
            Ok(()) => {
                self.end_suspended(self.world.suspensions()).await;
            }
            Err(error) => tracing::warn!(%error, "suspensions were not loaded; nothing more begins before they are"),
        }
    }

    /// Waits for one's turn to change them: what is asked of those in force holds until it is over.
    pub async fn change_suspensions(&self) -> Changing {
        Changing { _turn: self.changing.clone().lock_owned().await }
    }

    async fn load_suspensions(&self, _turn: &Changing) -> Result<(), StoreError> {
        let all = self.ledger.store.suspensions().await?;
        self.world.set_suspensions(image_of(all.into_iter().filter(|one| one.lifted.is_none())));
        self.ledger.store.suspensions_loaded();
        Ok(())
    }

    /// Ends what waits and is suspended by now, in the store by these suspensions: how many sends.
    async fn end_suspended(&self, suspensions: Arc<Suspensions>) -> u64 {
        let unsent = {
            let terms = self.world.terms();
            self.backlog.decide(|flow| flow.suspended(&terms))
        };
        let mut hit = self.dispatcher.close_unsent(unsent).await + self.dispatcher.batcher().suspended().await;
        let _turn = self.ending.lock().await;
        let mut from = None;
        loop {
            let (store, session) = (&self.ledger.store, &self.ledger.session);
            match store.end_suspended(session, suspensions.clone(), from, clock::wall(), SWEEP).await {
                Ok(swept) => {
                    hit += swept.ended.len() as u64;
                    self.ledger.closed_by_store(&swept.ended);
                    match swept.next {
                        Some(next) => from = Some(next),
                        None => return hit,
                    }
                }
                Err(StoreError::CannotWrite(why)) => {
                    tracing::warn!(%why, "suspended sends did not get their end yet; it is tried again");
                    tokio::time::sleep(SWEEP_AGAIN).await;
                }
                Err(error) => {
                    tracing::error!(%error, "suspended sends did not get their end; none of them starts");
                    return hit;
                }
            }
        }
    }

    fn refuse_suspended(&self, call: &Submit) -> Result<(), Refusal> {
        let suspensions = self.world.suspensions();
        for send in &call.sends {
            let workflow = send.context.workflow.as_deref();
            if let Some(reason) = suspensions.of(Asker { tenant: &call.tenant, workflow }) {
                let who = match workflow {
                    Some(workflow) if !suspensions.tenants.contains_key(&call.tenant) => format!("workflow {workflow}"),
                    _ => format!("tenant {}", call.tenant),
                };
                return Err(Refusal::Suspended { who, reason: reason.to_owned() });
            }
        }
        Ok(())
    }
}

/// What the sends of one call have in common.
struct Making {
    tenant: TenantId,
    held: bool,
    resend_of: Option<SendId>,
    created_at: Timestamp,
    expires_in: Duration,
    keep_bodies: bool,
    redactor: Arc<Redactor>,
    node: String,
}

impl Making {
    /// A send, and its record as it is at acceptance.
    fn of(&self, spec: SendSpec, id: SendId, course: Course) -> (NewSend, Record) {
        let (shown, sealed) = self.redactor.of(&self.tenant).request(&spec, self.keep_bodies);
        let new = NewSend {
            id,
            tenant: self.tenant.clone(),
            shown,
            sealed,
            resend_of: self.resend_of,
            created_at: self.created_at,
            expires_in: spec.expires_in.unwrap_or(self.expires_in),
            course,
            spec: Arc::new(spec),
        };
        let begun = !self.held && course == Course::Begin;
        let record = Record::from(Unfinished {
            id,
            tenant: self.tenant.clone(),
            context: new.spec.context.clone(),
            index: None,
            request: new.shown.clone(),
            resend_of: self.resend_of,
            node: self.node.clone(),
            created_at: self.created_at,
            released_at: (!self.held).then_some(self.created_at),
            started_at: begun.then_some(self.created_at),
            timings: Timings {
                held: (!self.held).then_some(Duration::ZERO),
                queued: begun.then_some(Duration::ZERO),
                ..Timings::default()
            },
        });
        (new, record)
    }
}

fn course_of(entry: &Entry) -> Course {
    match entry {
        Entry::Begin(_) => Course::Begin,
        Entry::Keep => Course::Claim,
        Entry::Wait => Course::Wait,
    }
}
