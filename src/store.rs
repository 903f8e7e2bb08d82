//! Remembering: every step of a send's life, on disk before it is answered for.
//!
//! [`Store`] is the one trait; [`embedded`] is the default, [`memory`] the twin for tests, and `conformance` the
//! suite that both pass. A method that changes something returns once the change is **durable**; concurrent calls
//! share commits. No module but `app` knows which store is in use.

#[cfg(test)]
pub mod conformance;
pub mod embedded;
pub mod memory;
mod view;
mod wire;

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use jiff::Timestamp;

use crate::outcome::{Code, Outcome};
use crate::policy::Destination;
use crate::record::{Execution, ExecutionState, Finished, FinishedBy, Record, ShownRequest};
use crate::redact::RedactKey;
use crate::send::{ExecutionId, SendId, SendSpec, TenantId};

/// One send to be accepted. `spec` is what will be delivered; `shown` is all that records may ever tell of it.
/// Where the two differ in headers or body, or bodies are not kept, `spec`'s are stored sealed only, and dropped
/// when the send is done.
#[derive(Clone, Debug)]
pub struct NewSend {
    pub id: SendId,
    pub tenant: TenantId,
    pub spec: Arc<SendSpec>,
    pub shown: ShownRequest,
    /// `spec` holds what `shown` does not: seal it.
    pub sealed: bool,
    pub resend_of: Option<SendId>,
    pub created_at: Timestamp,
    /// The send's own, or the default at acceptance.
    pub expires_in: Duration,
}

/// Durable for [`crate::limits::IDEMPOTENCY_KEPT`], scoped to tenant and path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    pub tenant: TenantId,
    /// The call's path, e.g. `/v1/sends`.
    pub path: String,
    pub key: String,
    /// SHA-256 of the raw body.
    pub fingerprint: [u8; 32],
}

/// One accepting call: all of its sends are accepted, or none.
#[derive(Clone, Debug)]
pub struct Accept {
    pub tenant: TenantId,
    /// In call order; never empty.
    pub sends: Vec<NewSend>,
    /// `Some`: held until this execution ends. It equals every send's `context.execution`.
    pub hold: Option<ExecutionId>,
    pub idempotency: Option<IdempotencyKey>,
    /// Most sends one execution may hold.
    pub sends_per_execution: u32,
    pub node: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// Indexes within the execution, one per send in call order; `None` for a send without one.
    New { indexes: Vec<Option<u32>> },
    /// The same key and body came before: these are that call's sends.
    Replayed(Vec<SendId>),
    /// The same key with another body.
    Mismatch,
    /// `hold` names an execution that has ended.
    Ended(ExecutionState),
    /// The execution would have more than `sends_per_execution`.
    ExecutionFull,
}

/// What the schedule needs to know of a send that is not done.
#[derive(Clone, Debug)]
pub struct Pending {
    pub id: SendId,
    pub tenant: TenantId,
    pub workflow: Option<Arc<str>>,
    /// `None`: its URL was refused; it only waits to be told so.
    pub destination: Option<Destination>,
    pub created_at: Timestamp,
    /// When it was released or accepted; `None` while held.
    pub released_at: Option<Timestamp>,
    pub expires_in: Duration,
    /// The execution that holds it, with its opening time (its first held send's `created_at`).
    pub held_by: Option<(ExecutionId, Timestamp)>,
}

/// Proof that a delivery's start is on disk. Only a store's `begin` makes one, and delivering takes it by value.
#[derive(Debug)]
pub struct Started {
    id: SendId,
    tenant: TenantId,
    spec: Arc<SendSpec>,
    at: Timestamp,
}

impl Started {
    /// For stores alone, after the mark is durable.
    pub(in crate::store) fn new(id: SendId, tenant: TenantId, spec: Arc<SendSpec>, at: Timestamp) -> Self {
        Self { id, tenant, spec, at }
    }
    pub fn id(&self) -> SendId {
        self.id
    }
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }
    pub fn spec(&self) -> &Arc<SendSpec> {
        &self.spec
    }
    pub fn at(&self) -> Timestamp {
        self.at
    }
}

#[derive(Clone, Debug)]
pub struct Begin {
    pub id: SendId,
    pub tenant: TenantId,
    /// Where it is still in memory; else the store reads it.
    pub spec: Option<Arc<SendSpec>>,
    pub at: Timestamp,
}

/// How an execution is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Finish(FinishedBy),
    Discard,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecutionEnd {
    /// `count` sends were released or discarded by the first such call. `first`: this call did it.
    /// Discarded sends still need their `Finished`, which the caller writes from its hold; the store does it
    /// itself for those it finds at `recover`.
    Done { count: u64, first: bool },
    /// It ended the other way before.
    Conflict(ExecutionState),
}

/// Filters of `GET /v1/sends` and the tail. Empty: everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// `None`: all tenants.
    pub tenant: Option<TenantId>,
    pub workflow: Option<String>,
    pub execution: Option<String>,
    pub step: Option<String>,
    /// Host of the URL, as IDNA maps it.
    pub host: Option<String>,
    pub outcome: Option<Outcome>,
    pub code: Option<Code>,
    pub status: Option<u16>,
    /// Bound or public.
    pub source_ip: Option<IpAddr>,
    /// Inclusive. Bound `created_at`, or `started_at` where `source_ip` is given.
    pub since: Option<Timestamp>,
    /// Exclusive.
    pub until: Option<Timestamp>,
}

/// One page, newest first. `next` is opaque and holds while sends are added.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    pub sends: Vec<Record>,
    pub next: Option<String>,
}

/// A finished send as the tail shows it: `seq` grows by finish order, across restarts.
#[derive(Clone, Debug, PartialEq)]
pub struct TailItem {
    pub seq: u64,
    pub record: Record,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SuspensionScope {
    Tenant { tenant: TenantId, workflow: Option<String> },
    Host { host: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspension {
    pub id: SendId,
    pub scope: SuspensionScope,
    pub reason: String,
    /// The API client's name.
    pub by: String,
    pub at: Timestamp,
    /// Lifted: when and by whom. Kept for the record.
    pub lifted: Option<(Timestamp, String)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Sends whose delivery had begun: now `interrupted`.
    pub interrupted: u64,
    /// Held sends of executions that were discarded: now `discarded`.
    pub discarded: u64,
    /// What could not be read by then, as [`Store::damage`] tells it.
    pub damage: Vec<String>,
}

/// What a store cannot do, and why. The message names file and cause and what to do next.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum StoreError {
    /// Nothing was written; the disk is full, read-only or failing. Later calls may succeed.
    #[error("the store cannot write: {0}")]
    CannotWrite(String),
    #[error("the store cannot read: {0}")]
    CannotRead(String),
    /// Another process has it open.
    #[error("the store at {path} is in use by process {pid}: stop it, or give this one another `[store] path`")]
    InUse { path: String, pid: i32 },
    #[error(
        "the store at {path} has format {found}, this egressd knows up to {known}: run the newer egressd that wrote it"
    )]
    TooNew { path: String, found: u32, known: u32 },
    /// No such send, or of another tenant, or it was begun or finished already.
    #[error("no such send is waiting")]
    NoSuchSend,
    #[error("{0}")]
    Damaged(String),
    /// The cursor is not one of ours.
    #[error("this cursor is not one that a list answered")]
    BadCursor,
}

pub type StoreResult<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Where sends are remembered. Changes are durable when the future is ready.
pub trait Store: std::marker::Send + Sync + 'static {
    /// Keys everything shown as redacted; fixed for the life of the store.
    fn redact_key(&self) -> RedactKey;

    /// Once, before anything else: what a crash left half done is brought to its end. Where the disk takes no write,
    /// nothing of that can be begun or ended by others meanwhile, and a later call goes on with what is left.
    fn recover(&self, now: Timestamp) -> StoreResult<'_, Recovered>;

    /// Sends that are not done, in accept order, those after `after`; at most `limit`.
    fn pending(&self, after: Option<SendId>, limit: usize) -> StoreResult<'_, Vec<Pending>>;

    fn accept(&self, call: Accept) -> StoreResult<'_, Accepted>;

    /// The call's earlier sends, before anything else is decided about it.
    fn replay(&self, key: IdempotencyKey, now: Timestamp) -> StoreResult<'_, Option<Accepted>>;

    /// An unknown execution is created and closed.
    fn end_execution(
        &self,
        tenant: TenantId,
        execution: ExecutionId,
        ending: Ending,
        at: Timestamp,
    ) -> StoreResult<'_, ExecutionEnd>;

    /// Marks the delivery's start. A send is begun at most once, ever.
    fn begin(&self, begin: Begin) -> StoreResult<'_, Started>;

    /// The end of a send, begun or not. `seq` of the tail. A second end for the same send is `NoSuchSend`.
    fn finish(&self, finished: Finished) -> StoreResult<'_, u64>;

    /// One record; with its bodies where `bodies` is set. `tenant`: `None` reads any tenant's.
    fn record(&self, tenant: Option<TenantId>, id: SendId, bodies: bool) -> StoreResult<'_, Option<Record>>;

    /// Newest first; bodies are left out.
    fn list(&self, filter: Filter, cursor: Option<String>, limit: usize) -> StoreResult<'_, Page>;

    /// `None`: this tenant has no such execution.
    fn execution(
        &self,
        tenant: TenantId,
        execution: ExecutionId,
        cursor: Option<String>,
        limit: usize,
    ) -> StoreResult<'_, Option<Execution>>;

    /// Finished sends after `seq`, in finish order; bodies are left out. Second value: the last seq looked at, so
    /// that a filter that matches nothing still advances.
    fn finished_after(&self, seq: u64, filter: Filter, limit: usize) -> StoreResult<'_, (Vec<TailItem>, u64)>;

    /// The newest seq of the tail; 0 when nothing has finished.
    fn last_seq(&self) -> StoreResult<'_, u64>;

    /// Outcomes of sends finished since then, per tenant.
    fn outcomes_since(&self, since: Timestamp) -> StoreResult<'_, HashMap<TenantId, HashMap<Outcome, u64>>>;

    fn suspend(&self, suspension: Suspension) -> StoreResult<'_, ()>;
    /// `false`: no such suspension is in force.
    fn lift(&self, id: SendId, at: Timestamp, by: String) -> StoreResult<'_, bool>;
    /// Those in force and those lifted, newest first.
    fn suspensions(&self) -> StoreResult<'_, Vec<Suspension>>;

    /// When each address was first published; addresses not seen before get `now`. Also the list's `syncToken`:
    /// `digest` is of the list as served, the answer the Unix second at which it last changed, never falling.
    /// `None` leaves the token as it is: what is served depends on first publication, so that is asked first.
    fn publish(&self, addresses: Vec<IpAddr>, digest: Option<[u8; 32]>, now: Timestamp) -> StoreResult<'_, Published>;

    /// Drops what retention no longer keeps, whole pieces at a time.
    fn retain(&self, now: Timestamp) -> StoreResult<'_, ()>;

    /// Bytes on disk.
    fn bytes(&self) -> u64;

    /// `Err` while it cannot write, with why; asked by `/readyz`. Tries anew now and then.
    fn health(&self) -> Result<(), StoreError>;

    /// What was found unreadable since it was opened, one line each with file and extent; empty on a sound store.
    fn damage(&self) -> Vec<String>;

    /// Everything written is synced and files are closed; later calls fail.
    fn close(&self) -> StoreResult<'_, ()>;
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    pub first: HashMap<IpAddr, Timestamp>,
    /// Zero until a digest was given.
    pub sync_token: u64,
    /// When this store first published anything: the addresses of that call need no further notice, at any later
    /// start either.
    pub first_start: Timestamp,
}

/// The token after a change at `now`: the Unix second, and past the one before, so that two changes within a second
/// are told apart and the clock may step back.
pub fn next_sync_token(before: u64, now: Timestamp) -> u64 {
    u64::try_from(now.as_second()).unwrap_or(0).max(before + 1)
}

/// Lifts the suspension where it is in force.
fn lift_in(suspensions: &mut [Suspension], id: SendId, at: Timestamp, by: String) -> bool {
    match suspensions.iter_mut().find(|suspension| suspension.id == id && suspension.lifted.is_none()) {
        Some(suspension) => {
            suspension.lifted = Some((at, by));
            true
        }
        None => false,
    }
}
