//! What the writer is asked to do, and who waits for it.

use std::path::PathBuf;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::oneshot;

use crate::record::Finished;
use crate::send::{ExecutionId, TenantId};
use crate::store::embedded::entry::FinishFacts;
use crate::store::embedded::seal::{Keys, Slot};
use crate::store::embedded::table::Row;
use crate::store::{Accepted, Ending, ExecutionEnd, IdempotencyKey, Recovered, StoreError, wire};

pub type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

pub enum Job {
    Accept(Box<AcceptJob>, Answer<Accepted>),
    End(EndJob, Answer<ExecutionEnd>),
    Begin(BeginJob, Answer<()>),
    Finish(Box<FinishJob>, Answer<u64>),
    Recover(Timestamp, Answer<Recovered>),
    /// Answers the directories that may be removed.
    Retain(Timestamp, Answer<Vec<PathBuf>>),
    Close(Answer<()>),
}

pub struct AcceptJob {
    pub tenant: TenantId,
    pub now: Timestamp,
    pub sends: Vec<AcceptedJob>,
    pub hold: Option<(u64, ExecutionId)>,
    pub key: Option<(u64, IdempotencyKey)>,
    pub sends_per_execution: u32,
}

pub struct AcceptedJob {
    /// Complete but for where its frame will stand.
    pub row: Row,
    pub form: Vec<u8>,
    pub body: Option<Bytes>,
    /// Sealed already.
    pub rest: Option<Vec<u8>>,
    pub slot: Option<Slot>,
}

pub struct EndJob {
    pub hash: u64,
    pub tenant: TenantId,
    pub execution: ExecutionId,
    pub ending: Ending,
    pub at: Timestamp,
}

pub struct BeginJob {
    pub id: u128,
    pub tenant: u32,
    pub at: i64,
}

pub struct FinishJob {
    pub id: u128,
    pub form: Vec<u8>,
    pub body: Option<Bytes>,
    pub facts: FinishFacts,
}

impl FinishJob {
    pub fn of(keys: &Keys, finished: &Finished) -> Self {
        let (form, body) = wire::ended(finished);
        Self { id: finished.id.0.as_u128(), form, body, facts: FinishFacts::of_finished(keys, finished) }
    }
}
