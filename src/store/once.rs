//! The once-only protocol: accepted, claimed, begun, ended, each step durable before it is answered.
//!
//! ```text
//! accept ─ held ──end_execution──> waits ──claim──> claimed ──begin──> started ──finish──> done
//!    └─────────────────────────────^  ^─give_back────┘
//! ```
//!
//! Whatever waits belongs to nobody; a session claims a few sends at a time, and begins only what it has claimed. A
//! [`Session`] is one life of a node: when its name joins again, or the store declares it dead, it is *fenced*, and
//! begins nothing more. Its claims wait again; what it had begun ends `interrupted`, unless its own end comes first.

use std::fmt;
use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};

use super::{StoreError, StoreResult, TailPlace};
use crate::limits::TRACE_QUEUE;
use crate::outcome::Code;
use crate::policy::{Destination, Suspensions};
use crate::record::{ExecutionState, Finished, FinishedBy, ShownRequest};
use crate::send::{ExecutionId, Place, SendId, SendSpec, TenantId};
use crate::source::Neighbour;

/// One life of a node, as the store knows it. Only [`OnceOnly::join`] makes one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Session {
    node: Arc<str>,
    incarnation: u64,
}

impl Session {
    pub(in crate::store) fn new(node: Arc<str>, incarnation: u64) -> Self {
        Self { node, incarnation }
    }
    pub fn node(&self) -> &Arc<str> {
        &self.node
    }
    pub(in crate::store) fn incarnation(&self) -> u64 {
        self.incarnation
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.node, self.incarnation)
    }
}

/// What becomes of a send once it is accepted. A held send waits for its execution whatever this says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// Begun in the same durable record, at its `created_at`: the caller has a slot for it.
    Begin,
    /// Claimed by the accepting session.
    Claim,
    /// It waits in the store until somebody claims it.
    Wait,
}

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
    pub course: Course,
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
}

#[derive(Debug, PartialEq, Eq)]
pub enum Accepted {
    /// `indexes` within the execution, one per send in call order; `None` for a send without one. `started`: those
    /// whose course was [`Course::Begin`], in call order.
    New { indexes: Vec<Option<u32>>, started: Vec<Started> },
    /// The same key and body came before: these are that call's sends.
    Replayed(Vec<SendId>),
    /// The same key with another body.
    Mismatch,
    /// `hold` names an execution that has ended.
    Ended(ExecutionState),
    /// The execution would have more than `sends_per_execution`.
    ExecutionFull,
    /// What this tenant has stored, and the call, would be more than its share of the store, in bytes.
    ShareFull { stored: u64, share: u64 },
}

/// What the schedule needs to know of a send that it has claimed.
#[derive(Clone, Debug)]
pub struct Pending {
    pub id: SendId,
    pub tenant: TenantId,
    pub workflow: Option<Arc<str>>,
    /// `None`: its URL was refused; it only waits to be told so.
    pub destination: Option<Destination>,
    pub created_at: Timestamp,
    /// When it was released or accepted.
    pub released_at: Timestamp,
    pub expires_in: Duration,
    /// Where it gathers with others, and the bytes of its payload; `None`: it goes by itself.
    pub gathers: Option<(Place, u64)>,
    /// What is to be delivered, where the claim had it at hand; else its beginning reads it.
    pub spec: Option<Arc<SendSpec>>,
    /// The node that accepted it, where the store is that of many.
    pub accepted_by: Option<Arc<str>>,
}

/// Proof that a delivery's start is on disk. Only a store's `begin` or `accept` makes one, and delivering takes it by
/// value.
#[derive(Debug, PartialEq, Eq)]
pub struct Started {
    id: SendId,
    tenant: TenantId,
    spec: Arc<SendSpec>,
    at: Timestamp,
    by: Session,
}

impl Started {
    /// For stores alone, after the mark is durable.
    pub(in crate::store) fn new(id: SendId, tenant: TenantId, spec: Arc<SendSpec>, at: Timestamp, by: Session) -> Self {
        Self { id, tenant, spec, at, by }
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
    /// Who began it, and alone may finish it.
    pub fn by(&self) -> &Session {
        &self.by
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
    Done { count: u64, first: bool },
    /// It ended the other way before.
    Conflict(ExecutionState),
    /// Nobody knows it, and what this tenant has stored has reached its share of the store, in bytes.
    ShareFull { stored: u64, share: u64 },
}

/// An execution's end, and the ends of its sends that came with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutionAnswer {
    pub end: ExecutionEnd,
    /// Discarded sends, each of them done. (Released ones wait, and are claimed like all others.)
    pub ended: Vec<StoreEnd>,
}

/// The end of a send that the store itself gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreEnd {
    pub id: SendId,
    pub tenant: TenantId,
    pub code: Code,
    pub place: TailPlace,
}

/// What a session would take of one tenant.
#[derive(Clone, Debug)]
pub struct Want {
    pub tenant: TenantId,
    /// Most sends.
    pub room: usize,
    /// Destinations that take no more at the moment: their sends are stepped over, and keep their place in front.
    pub full: Vec<Destination>,
}

#[derive(Clone, Debug, Default)]
pub struct Claimed {
    /// Each tenant's in the order of release, tenants in the order of the wants.
    pub sends: Vec<Pending>,
    /// What could not be read, and has its end now.
    pub ended: Vec<StoreEnd>,
    /// The look ended early: with the same wants there may be more at once.
    pub more: bool,
}

/// What a sweep of the store did. `next`: where to go on, if it did not come to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub ended: Vec<StoreEnd>,
    pub next: Option<SweepPlace>,
}

/// How far a sweep has come; opaque.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweepPlace(pub(in crate::store) u128);

/// Executions whose held sends were released because nobody ended them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// With how many sends of it.
    pub executions: Vec<(TenantId, ExecutionId, u64)>,
    pub more: bool,
}

/// How many sends wait, and since when. Neither begun nor done ones are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaitingCount {
    pub held: u64,
    /// Released, claimed ones included.
    pub queued: u64,
    /// Of them, those that nobody has claimed.
    pub unclaimed: u64,
    /// When the longest-waiting of those that nobody has claimed was released.
    pub oldest: Option<Timestamp>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Sends whose delivery had begun: now `interrupted`.
    pub interrupted: u64,
    /// Held sends of executions that were discarded: now `discarded`.
    pub discarded: u64,
    /// Some of these, as many as a collector of traces may be told of at once; none where the store tells of them as
    /// [`News`](super::News).
    pub some: Vec<SendId>,
    /// What could not be read by then, as [`Records::damage`](super::Records::damage) tells it.
    pub damage: Vec<String>,
}

impl Recovered {
    pub fn note(&mut self, id: SendId) {
        if self.some.len() < TRACE_QUEUE {
            self.some.push(id);
        }
    }
}

/// Each call carries the session that makes it; a fenced one is told so, and nothing changes.
pub trait OnceOnly: std::marker::Send + Sync + 'static {
    /// A new life of this node. An earlier one of the same name is fenced from now on, and what it had claimed waits
    /// again.
    fn join(&self, node: Arc<str>) -> StoreResult<'_, Session>;

    /// Once, before anything else: what lives before this one left half done is brought to its end. Where the disk
    /// takes no write, nothing of that can be begun or ended by others meanwhile, and a later call goes on with what is
    /// left.
    fn recover<'a>(&'a self, by: &'a Session, now: Timestamp) -> StoreResult<'a, Recovered>;

    /// All of the call's sends are accepted, or none. Sends with [`Course::Begin`] are accepted and begun in one
    /// durable record: after a crash they read `interrupted`.
    fn accept<'a>(&'a self, by: &'a Session, call: Accept) -> StoreResult<'a, Accepted>;

    /// The call's earlier sends, before anything else is decided about it.
    fn replay(&self, key: IdempotencyKey, now: Timestamp) -> StoreResult<'_, Option<Accepted>>;

    /// Releases an execution's held sends, which then wait unclaimed, or ends them `discarded`, whoever accepted them.
    /// An unknown execution is created and closed.
    fn end_execution<'a>(
        &'a self,
        by: &'a Session,
        tenant: TenantId,
        execution: ExecutionId,
        ending: Ending,
        at: Timestamp,
    ) -> StoreResult<'a, ExecutionAnswer>;

    /// Takes waiting sends for this session: not durable, and gone with the session. Sends to full destinations are
    /// stepped over without being looked at again and again. At most `limit` in all.
    fn claim<'a>(&'a self, by: &'a Session, wants: Vec<Want>, limit: usize) -> StoreResult<'a, Claimed>;

    /// Claimed sends wait again, in front of those behind them. What is not claimed by this session is passed over.
    fn give_back<'a>(&'a self, by: &'a Session, sends: Vec<SendId>) -> StoreResult<'a, ()>;

    /// Sends that this session has claimed, or has begun and sent nothing of, are claimed by that other one from now on
    /// ([`News::Handed`](super::News::Handed)). Those that are: the rest is this session's as before.
    fn hand_over<'a>(
        &'a self,
        _by: &'a Session,
        _sends: Vec<SendId>,
        _to: &'a Neighbour,
    ) -> StoreResult<'a, Vec<SendId>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// What others have claimed for this session since it was last asked.
    fn take_handed<'a>(&'a self, _by: &'a Session) -> StoreResult<'a, Vec<Pending>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// Marks the starts of deliveries, one answer for each in order. A send is begun at most once, ever, and only by
    /// who has claimed it.
    fn begin<'a>(&'a self, by: &'a Session, sends: Vec<Begin>) -> StoreResult<'a, Vec<Result<Started, StoreError>>>;

    /// The end of a send that this session has begun, or claimed and not begun; of any other, and for a second end, it
    /// is `NoSuchSend`. A fenced session's end of what it had begun is taken while the send has none.
    fn finish<'a>(&'a self, by: &'a Session, finished: Finished) -> StoreResult<'a, TailPlace>;

    /// Releases executions whose first held send was accepted longer ago than that: those opened first, first.
    fn release_overdue<'a>(
        &'a self,
        by: &'a Session,
        held_for: SignedDuration,
        now: Timestamp,
        limit: usize,
    ) -> StoreResult<'a, Released>;

    /// Ends what waits unclaimed and is past its time, about `limit` sends at once. `next` says that there may be more.
    /// Comes back to what other calls could not end, and tells of ends whose callers heard of an error.
    fn expire<'a>(&'a self, by: &'a Session, now: Timestamp, limit: usize) -> StoreResult<'a, Swept>;

    /// Ends what waits unclaimed or is held, and is suspended. About `limit` sends are ended at once, and a bounded
    /// number is looked at; `from`: where the call before came to.
    fn end_suspended<'a>(
        &'a self,
        by: &'a Session,
        suspensions: Arc<Suspensions>,
        from: Option<SweepPlace>,
        now: Timestamp,
        limit: usize,
    ) -> StoreResult<'a, Swept>;

    /// How one tenant stands; costs the same however much waits.
    fn waiting_of(&self, tenant: &TenantId) -> WaitingCount;

    /// All tenants together; costs the same however much waits.
    fn waiting_in_all(&self) -> WaitingCount;

    /// Every tenant of which something waits; costs what its answer does.
    fn waiting(&self) -> Vec<(TenantId, WaitingCount)>;
}
