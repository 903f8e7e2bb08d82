//! The way in: what the API (and the demo) hands over is checked against room and suspensions, made durable, and
//! given to the hold or the schedule. Everything here answers only after the store has.

use jiff::Timestamp;

use crate::record::ExecutionState;
use crate::send::{ExecutionId, SendId, SendSpec, TenantId};
use crate::store::{Ending, IdempotencyKey, Suspension, SuspensionScope};

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
    Accepted(Vec<SendId>),
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
    #[error("this node has {queued} sends waiting, {limit} may: try again later, or another node")]
    NodeFull { queued: u64, limit: u64, retry_after: u64 },
    #[error("this node is shutting down: try again, or another node")]
    Draining,
    #[error("{0}")]
    Store(String),
}

/// One tenant as `GET /v1/tenants` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantLoad {
    pub tenant: TenantId,
    pub held: u64,
    pub queued: u64,
    pub in_flight: u64,
    pub oldest_queued: Option<Timestamp>,
}

pub struct Intake {
    // filled in by the implementation
}

impl Intake {
    pub async fn submit(&self, _call: Submit) -> Result<Submitted, Refusal> {
        todo!()
    }

    /// How many sends the (first) call released or discarded.
    pub async fn end_execution(
        &self,
        _tenant: TenantId,
        _execution: ExecutionId,
        _ending: Ending,
    ) -> Result<u64, Refusal> {
        todo!()
    }

    /// Effective at once on what is submitted, queued and held.
    pub async fn suspend(&self, _scope: SuspensionScope, _reason: String, _by: String) -> Result<Suspension, Refusal> {
        todo!()
    }

    /// `false`: no such suspension is in force.
    pub async fn lift(&self, _id: SendId, _by: String) -> Result<bool, Refusal> {
        todo!()
    }

    pub fn tenants(&self) -> Vec<TenantLoad> {
        todo!()
    }
}
