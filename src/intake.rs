//! The way in: what the API (and the demo) hands over is checked against room and suspensions, made durable, and
//! given to the hold or the schedule. Everything here answers only after the store has.

mod ids;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use metrics::{Unit, counter, describe_counter};
use tokio::sync::RwLock;

use self::ids::Ids;
use crate::backlog::{Backlog, Full, TenantBacklog};
use crate::clock;
use crate::hold::Held;
use crate::ledger::{Ledger, unsent};
use crate::outcome::{Code, Failure, Timings};
use crate::policy::{Asker, Destination, Suspensions};
use crate::record::{ExecutionState, FinishedBy, Record, State};
use crate::schedule::Waiting;
use crate::send::{ExecutionId, SendId, SendSpec, Target, TenantId};
use crate::store::{
    Accept, Accepted, Course, Ending, ExecutionEnd, IdempotencyKey, NewSend, Pending, StoreError, Suspension,
    SuspensionScope,
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
        "what this tenant has stored ({stored} bytes) has reached its share of the store ({share} bytes): try again once older records are past their retention"
    )]
    ShareFull { stored: u64, share: u64, retry_after: u64 },
    #[error("this node has {queued} sends waiting, {limit} may: try again later, or another node")]
    NodeFull { queued: u64, limit: u64, retry_after: u64 },
    #[error("this node is shutting down: try again, or another node")]
    Draining,
    #[error("{0}")]
    Store(String),
}

/// Locks over executions, so that what the store decided about one and what the hold knows of it cannot cross.
const EXECUTION_LOCKS: usize = 256;

/// Ends written at the same time when many sends end without being made.
const ENDS_AT_ONCE: usize = 256;

/// Pending sends read at once at the start.
const RECOVER_PAGE: usize = 10_000;

pub struct Intake {
    world: Arc<World>,
    ledger: Arc<Ledger>,
    backlog: Arc<Backlog>,
    node: Arc<str>,
    draining: AtomicBool,
    executions: Vec<RwLock<()>>,
    hasher: RandomState,
    ids: Ids,
}

impl Intake {
    pub fn new(world: Arc<World>, ledger: Arc<Ledger>, backlog: Arc<Backlog>) -> Arc<Self> {
        describe_counter!(
            "egressd_sends_accepted_total",
            Unit::Count,
            "Sends accepted: each will have exactly one outcome."
        );
        let node = world.config().node.as_str().into();
        Arc::new(Self {
            world,
            ledger,
            backlog,
            node,
            draining: AtomicBool::new(false),
            executions: (0..EXECUTION_LOCKS).map(|_| RwLock::new(())).collect(),
            hasher: RandomState::new(),
            ids: Ids::default(),
        })
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
        let reservation = self
            .backlog
            .reserve(&call.tenant, call.sends.len() as u64, &config)
            .map_err(|full| self.full(full, &call.tenant))?;

        let keep_bodies = config.keeps_bodies(&call.tenant);
        let created_at = clock::wall();
        let redactor = self.ledger.redactor.load_full();
        let default_expiry = config.delivery.expires_in;
        let mut sends = Vec::with_capacity(call.sends.len());
        let mut entries = Vec::with_capacity(call.sends.len());
        let mut records = Vec::with_capacity(call.sends.len());
        let held = call.hold.is_some();
        let mut ids = self.ids.call(created_at);
        for spec in call.sends {
            let spec = Arc::new(spec);
            let id = ids.id();
            let (shown, sealed) = redactor.request(&spec, keep_bodies);
            let expires_in = spec.expires_in.unwrap_or(default_expiry);
            entries.push(Held {
                id,
                destination: destination_of(&spec.target),
                workflow: spec.context.workflow.clone(),
                created_at,
                expires_in: SignedDuration::try_from(expires_in).unwrap_or(SignedDuration::MAX),
                spec: self.backlog.keep_hot(&spec),
            });
            records.push(Record {
                id,
                state: if held { State::Held } else { State::Queued },
                ended: None,
                resend_of: call.resend_of,
                tenant: call.tenant.clone(),
                context: spec.context.clone(),
                index: None,
                request: shown.clone(),
                response: None,
                would_block: None,
                connection: None,
                timings: Timings { held: (!held).then_some(Duration::ZERO), ..Timings::default() },
                node: self.node.to_string(),
                created_at,
                released_at: (!held).then_some(created_at),
                started_at: None,
                finished_at: None,
            });
            sends.push(NewSend {
                id,
                tenant: call.tenant.clone(),
                spec,
                shown,
                sealed,
                resend_of: call.resend_of,
                created_at,
                expires_in,
                course: Course::Claim,
            });
        }
        let accept = Accept {
            tenant: call.tenant.clone(),
            sends,
            hold: call.hold.clone(),
            idempotency: call.idempotency,
            sends_per_execution: config.limits.sends_per_execution,
        };
        // Held until the hold knows what the store has accepted, so that an ending either sees both or neither.
        let _guard = match &call.hold {
            Some(execution) => Some(self.lock_of(&call.tenant, execution).read().await),
            None => None,
        };
        match self.ledger.store.accept(&self.ledger.session, accept).await? {
            Accepted::New { indexes, .. } => {
                for (record, index) in records.iter_mut().zip(indexes) {
                    record.index = index;
                }
            }
            Accepted::Replayed(ids) => return Ok(Submitted::Replayed(ids)),
            Accepted::Mismatch => return Err(Refusal::IdempotencyMismatch),
            Accepted::Ended(state) => {
                let execution = call.hold.unwrap_or_else(|| ExecutionId::new(""));
                return Err(Refusal::ExecutionEnded { execution, state });
            }
            Accepted::ExecutionFull => {
                let execution = call.hold.unwrap_or_else(|| ExecutionId::new(""));
                return Err(Refusal::ExecutionFull { execution, limit: config.limits.sends_per_execution });
            }
            Accepted::ShareFull { stored, share } => return Err(Refusal::ShareFull { stored, share, retry_after: 60 }),
        }
        counter!("egressd_sends_accepted_total").increment(records.len() as u64);
        let mut parts = self.backlog.lock();
        match &call.hold {
            Some(execution) => parts.hold.add(&call.tenant, execution, created_at, entries),
            None => {
                let cap = config.tenant(&call.tenant).map(|tenant| tenant.in_flight);
                for entry in entries {
                    let (destination, waiting) = released(entry, created_at);
                    parts.schedule.push(&call.tenant, destination, cap, waiting);
                }
            }
        }
        drop(parts);
        drop(reservation);
        self.backlog.wake.notify_one();
        Ok(Submitted::Accepted(records))
    }

    /// How many sends the (first) call released or discarded. Ends of discarded sends are written before it answers.
    pub async fn end_execution(
        &self,
        tenant: TenantId,
        execution: ExecutionId,
        ending: Ending,
    ) -> Result<u64, Refusal> {
        let lock = self.lock_of(&tenant, &execution).write().await;
        let at = clock::wall();
        let ended =
            self.ledger.store.end_execution(&self.ledger.session, tenant.clone(), execution.clone(), ending, at);
        let ended = ended.await?;
        let count = match ended.end {
            ExecutionEnd::Done { count, .. } => count,
            ExecutionEnd::ShareFull { stored, share } => {
                return Err(Refusal::ShareFull { stored, share, retry_after: 60 });
            }
            ExecutionEnd::Conflict(state) => return Err(Refusal::ExecutionEnded { execution, state }),
        };
        // Taken also when an earlier call did it: that call may have been cut off before it came to this.
        let config = self.world.config();
        let cap = config.tenant(&tenant).map(|tenant| tenant.in_flight);
        let sends = {
            let mut parts = self.backlog.lock();
            let sends = parts.hold.take(&tenant, &execution);
            match ending {
                Ending::Finish(_) => {
                    for send in sends {
                        let (destination, waiting) = released(send, at);
                        parts.schedule.push(&tenant, destination, cap, waiting);
                    }
                    Vec::new()
                }
                Ending::Discard => sends,
            }
        };
        drop(lock);
        self.backlog.wake.notify_one();
        for end in &ended.ended {
            self.ledger.closed_by_store(end);
        }
        let over: std::collections::HashSet<SendId> = ended.ended.iter().map(|end| end.id).collect();
        let sends = sends.into_iter().filter(|send| !over.contains(&send.id));
        self.end_unsent(sends.map(|send| {
            let why = format!("execution {execution} was discarded: this send was never made");
            unsent(send.id, send.created_at, None, Failure::new(Code::Discarded, None, why))
        }))
        .await;
        Ok(count)
    }

    /// Releases the held sends of executions that nobody finished within `hold_limit`.
    pub async fn release_overdue(&self) {
        let limit = SignedDuration::try_from(self.world.config().delivery.hold_limit).unwrap_or(SignedDuration::MAX);
        let due = self.backlog.lock().hold.due(clock::wall(), limit);
        for (tenant, execution) in due {
            let ending = Ending::Finish(FinishedBy::HoldLimit);
            match self.end_execution(tenant.clone(), execution.clone(), ending).await {
                Ok(count) => {
                    tracing::info!(%tenant, %execution, count, "held sends were released: nobody finished their execution")
                }
                Err(error) => tracing::warn!(%tenant, %execution, %error, "held sends could not be released yet"),
            }
        }
    }

    /// Effective at once on what is submitted, queued and held: with it, how many waiting sends it ended.
    pub async fn suspend(
        &self,
        scope: SuspensionScope,
        reason: String,
        by: String,
    ) -> Result<(Suspension, u64), Refusal> {
        let at = clock::wall();
        let suspension = Suspension { id: self.ids.call(at).id(), scope, reason, by, at, lifted: None };
        self.ledger.store.suspend(suspension.clone()).await?;
        self.load_suspensions().await?;
        tracing::warn!(id = %suspension.id, scope = ?suspension.scope, by = %suspension.by, reason = %suspension.reason, "suspended");
        let hit = self.end_suspended().await;
        Ok((suspension, hit))
    }

    /// `false`: no such suspension is in force.
    pub async fn lift(&self, id: SendId, by: String) -> Result<bool, Refusal> {
        let lifted = self.ledger.store.lift(id, clock::wall(), by.clone()).await?;
        if lifted {
            self.load_suspensions().await?;
            tracing::warn!(%id, %by, "suspension lifted");
        }
        Ok(lifted)
    }

    pub fn tenants(&self) -> HashMap<TenantId, TenantBacklog> {
        self.backlog.tenants()
    }

    /// Puts what the store remembers as waiting back into hold and schedule. Called once, before the dispatcher runs.
    pub async fn restore(&self) -> Result<u64, StoreError> {
        self.load_suspensions().await.map_err(|refusal| StoreError::CannotRead(refusal.to_string()))?;
        let mut after = None;
        let mut restored = 0;
        loop {
            let page = self.ledger.store.pending(after, RECOVER_PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            restored += page.len() as u64;
            self.take_back(page);
            self.backlog.wake.notify_one();
        }
        self.end_suspended().await;
        Ok(restored)
    }

    fn take_back(&self, page: Vec<Pending>) {
        let config = self.world.config();
        let mut parts = self.backlog.lock();
        for pending in page {
            let held = Held {
                id: pending.id,
                destination: pending.destination,
                workflow: pending.workflow,
                created_at: pending.created_at,
                expires_in: SignedDuration::try_from(pending.expires_in).unwrap_or(SignedDuration::MAX),
                spec: None,
            };
            match pending.held_by {
                Some((execution, since)) => parts.hold.add(&pending.tenant, &execution, since, [held]),
                None => {
                    let cap = config.tenant(&pending.tenant).map(|tenant| tenant.in_flight);
                    let (destination, waiting) = released(held, pending.released_at.unwrap_or(pending.created_at));
                    parts.schedule.push(&pending.tenant, destination, cap, waiting);
                }
            }
        }
    }

    async fn load_suspensions(&self) -> Result<(), Refusal> {
        let mut image = Suspensions::default();
        for suspension in self.ledger.store.suspensions().await? {
            if suspension.lifted.is_some() {
                continue;
            }
            let reason: Arc<str> = suspension.reason.as_str().into();
            match suspension.scope {
                SuspensionScope::Tenant { tenant, workflow: None } => {
                    image.tenants.insert(tenant, reason);
                }
                SuspensionScope::Tenant { tenant, workflow: Some(workflow) } => {
                    image.workflows.insert((tenant, workflow.into()), reason);
                }
                SuspensionScope::Host { host } => {
                    image.stop_host(&host, reason);
                }
            }
        }
        self.world.set_suspensions(image);
        Ok(())
    }

    /// Ends what waits and is suspended by now; how many sends that were.
    async fn end_suspended(&self) -> u64 {
        let suspensions = self.world.suspensions();
        let stopped = |tenant: &TenantId, workflow: Option<&str>, destination: Option<&Destination>| {
            let asker = Asker { tenant, workflow };
            suspensions
                .of(asker)
                .or_else(|| destination.and_then(|destination| suspensions.of_host(&destination.host)))
                .map(str::to_owned)
        };
        let (queued, held) = {
            let mut parts = self.backlog.lock();
            let queued = parts.schedule.remove_where(|tenant, destination, send| {
                stopped(tenant, send.workflow.as_deref(), destination.as_ref()).is_some()
            });
            let held = parts.hold.remove_where(|tenant, send| {
                stopped(tenant, send.workflow.as_deref(), send.destination.as_ref()).is_some()
            });
            (queued, held)
        };
        let reason = |tenant: &TenantId, workflow: Option<&str>, destination: Option<&Destination>| {
            let why = stopped(tenant, workflow, destination).unwrap_or_default();
            Failure::new(Code::Suspended, None, format!("stopped by the operator: {why}"))
        };
        let hit = (queued.len() + held.len()) as u64;
        let queued = queued.into_iter().map(|picked| {
            let why = reason(&picked.tenant, picked.send.workflow.as_deref(), picked.destination.as_ref());
            unsent(picked.send.id, picked.send.created_at, Some(picked.send.released_at), why)
        });
        let held = held.into_iter().map(|(tenant, send)| {
            let why = reason(&tenant, send.workflow.as_deref(), send.destination.as_ref());
            unsent(send.id, send.created_at, None, why)
        });
        self.end_unsent(queued.chain(held)).await;
        hit
    }

    async fn end_unsent(&self, ends: impl Iterator<Item = crate::record::Finished>) {
        use futures_util::StreamExt;
        futures_util::stream::iter(ends).for_each_concurrent(ENDS_AT_ONCE, |end| self.ledger.close(end)).await;
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

    /// How soon room is likely: about a tenth of what the oldest waiting send has waited, in seconds.
    fn full(&self, full: Full, tenant: &TenantId) -> Refusal {
        let oldest = match full {
            Full::Tenant { .. } => self.tenants().get(tenant).and_then(|tenant| tenant.oldest_queued),
            Full::Node { .. } => self.backlog.lock().schedule.oldest(),
        };
        let waited = oldest.map_or(0, |oldest| clock::wall().duration_since(oldest).as_secs());
        let retry_after = u64::try_from(waited / 10).unwrap_or_default().clamp(1, 60);
        match full {
            Full::Tenant { waiting, limit } => Refusal::TenantFull { queued: waiting, limit, retry_after },
            Full::Node { waiting, limit } => Refusal::NodeFull { queued: waiting, limit, retry_after },
        }
    }

    fn lock_of(&self, tenant: &TenantId, execution: &ExecutionId) -> &RwLock<()> {
        let hash = self.hasher.hash_one((tenant, execution)) as usize;
        &self.executions[hash % self.executions.len()]
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Store(error.to_string())
    }
}

fn destination_of(target: &Target) -> Option<Destination> {
    match target {
        Target::Url(url) => Some(url.destination().clone()),
        Target::Refused { .. } => None,
    }
}

/// A held send as it joins the schedule.
fn released(send: Held, at: Timestamp) -> (Option<Destination>, Waiting) {
    let expires_at = at.checked_add(send.expires_in).unwrap_or(Timestamp::MAX);
    let waiting = Waiting {
        id: send.id,
        workflow: send.workflow,
        created_at: send.created_at,
        released_at: at,
        expires_at,
        spec: send.spec,
    };
    (send.destination, waiting)
}
