//! What the writer is asked to do, and who waits for it.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::oneshot;

use super::batch::SendAt;
use crate::record::Finished;
use crate::send::{ExecutionId, SendId, TenantId};
use crate::store::embedded::entry::{BodyPlace, FinishFacts};
use crate::store::embedded::hashes::{ExecutionHash, TenantHash};
use crate::store::embedded::seal::{Keys, Slot};
use crate::store::embedded::table::Row;
use crate::store::embedded::waiting::Counted;
use crate::store::{Accepted, Course, Ending, ExecutionEnd, IdempotencyKey, Recovered, Session, StoreError, wire};

pub type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

pub enum Job {
    Accept(Box<AcceptJob>, Answer<Accepted>),
    /// The end of an execution.
    End(EndJob, Answer<ExecutionEnd>),
    /// One answer for each.
    Begin(Session, Vec<BeginJob>, Answer<Vec<Result<(), StoreError>>>),
    Finish(Session, Box<FinishJob>, Answer<u64>),
    /// Ends that the store gives by itself. `None`: it is not the store's to end any more.
    StoreEnds(Vec<StoreEndJob>, Answer<Vec<Option<u64>>>),
    Join(Arc<str>, Answer<Session>),
    GiveBack(Session, Vec<SendId>, Answer<()>),
    Recover(Session, Timestamp, Answer<Recovered>),
    /// Answers the directories that may be removed.
    Retain(Timestamp, Answer<Vec<PathBuf>>),
    Close(Answer<()>),
}

pub struct AcceptJob {
    pub by: Session,
    pub tenant: TenantId,
    pub tenant_hash: TenantHash,
    pub now: Timestamp,
    pub sends: Vec<AcceptedJob>,
    pub hold: Option<ExecutionHash>,
    pub key: Option<(u64, IdempotencyKey)>,
    pub sends_per_execution: u32,
}

pub struct AcceptedJob {
    /// Complete but for where its frame will stand.
    pub row: Row,
    pub tenant: TenantHash,
    pub form: Vec<u8>,
    pub body: Option<Bytes>,
    /// Sealed already.
    pub rest: Option<Vec<u8>>,
    /// Where both stand, once they were written ahead of their batch.
    pub ahead: Option<[BodyPlace; 2]>,
    pub slot: Option<Slot>,
    pub course: Course,
    /// [`Shared::destination`](crate::store::embedded::Shared::destination) of it.
    pub destination: u64,
}

impl AcceptJob {
    pub fn bytes(&self) -> usize {
        self.sends.iter().map(AcceptedJob::bytes).sum()
    }
}

impl AcceptedJob {
    /// What it adds to log and bodies, but for their heads.
    pub fn bytes(&self) -> usize {
        self.form.len() + self.bodies().into_iter().flatten().map(<[u8]>::len).sum::<usize>()
    }

    /// Those that are to be written with its batch.
    pub fn bodies(&self) -> [Option<&[u8]>; 2] {
        match self.ahead {
            None => [self.body.as_deref(), self.rest.as_deref()],
            Some(_) => [None, None],
        }
    }
}

pub struct EndJob {
    pub by: Session,
    pub tenant: TenantId,
    pub execution: ExecutionId,
    pub ending: Ending,
    pub at: Timestamp,
}

pub struct BeginJob {
    pub id: u128,
    pub tenant: TenantHash,
    pub at: i64,
}

pub struct StoreEndJob {
    pub send: SendAt,
    pub number: u32,
    pub counted: Counted,
    pub finish: FinishJob,
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
