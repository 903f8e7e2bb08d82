//! Batches: what each one holds is durable before it is first tried, and so is its end before its sends have theirs.
//!
//! While its events gather nothing of a batch decides anything: they are sends that wait, claimed by who gathers them and
//! never begun. So whatever dies, they wait again. Once it is closed it belongs to one session, with all of its sends
//! together; where many nodes share a store another one has it when that one is gone.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{Pending, Reach, Session, StoreResult};
use crate::record::{Batch, BatchId};
use crate::send::{Kind, Place, SendId, SendSpec, TenantId};
use crate::source::Neighbour;

/// A batch that gathers, as other nodes may tell of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    pub id: BatchId,
    pub tenant: TenantId,
    pub place: Place,
    pub opened_at: Timestamp,
    pub closes_at: Timestamp,
}

/// What others left behind, and is this session's from now on.
#[derive(Clone, Debug, Default)]
pub struct Left {
    /// Closed ones, each with those of its sends that have no end yet.
    pub batches: Vec<(Batch, Vec<Pending>)>,
    /// To gather.
    pub events: Vec<Pending>,
    /// There may be more at once.
    pub more: bool,
}

/// What the store remembers of batches.
pub trait Batches: std::marker::Send + Sync + 'static {
    /// Tells the other nodes of batches that gather.
    fn note_gathering<'a>(&'a self, _by: &'a Session, _opened: Vec<Opened>) -> StoreResult<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    /// Of these nothing gathers any more, and none was closed.
    fn forget_gathering<'a>(&'a self, _by: &'a Session, _ids: Vec<BatchId>) -> StoreResult<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    /// Closes a batch: its sends are in it, and in no other. Those of them that are, in their order; none where this session
    /// had none of them any more. `grace`: how long after its carrier's death a try may still be on the wire.
    fn close_batch<'a>(&'a self, by: &'a Session, batch: Arc<Batch>, _grace: Duration) -> StoreResult<'a, Vec<SendId>> {
        Box::pin(async move {
            let sends = batch.sends.clone();
            self.put_batch(by, batch).await.map(|()| sends)
        })
    }

    /// Remembers a closed batch as it is now, in the place of what was known of it. Of who does not carry it any more it is
    /// refused as of a fenced session.
    fn put_batch<'a>(&'a self, by: &'a Session, batch: Arc<Batch>) -> StoreResult<'a, ()>;

    /// To be asked right before a try: nobody else carries the batch, and it has no end. `CannotWrite`: not now.
    fn may_carry<'a>(&'a self, _by: &'a Session, _id: BatchId) -> StoreResult<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    /// A batch of this session of which nothing is on the wire is that other one's from now on. `false`: it is not.
    fn hand_batch<'a>(&'a self, _by: &'a Session, _id: BatchId, _to: &'a Neighbour) -> StoreResult<'a, bool> {
        Box::pin(async { Ok(false) })
    }

    /// Takes what nodes that are gone left of these kinds, some of it at once.
    fn take_left<'a>(&'a self, _by: &'a Session, _kinds: Vec<Kind>) -> StoreResult<'a, Left> {
        Box::pin(async { Ok(Left::default()) })
    }

    /// A closed one.
    fn batch(&self, reach: Reach, id: BatchId) -> StoreResult<'_, Option<Batch>>;

    /// One that gathers on another node, without its sends, and how many these are.
    fn gathering(&self, _reach: Reach, _id: BatchId) -> StoreResult<'_, Option<(Batch, u64)>> {
        Box::pin(async { Ok(None) })
    }

    /// Those of this session, or of a process before it on its own store, that are closed and not done.
    fn open_batches(&self) -> StoreResult<'_, Vec<Batch>>;

    /// What these sends are to deliver, one for each in order; `None`: it has its end, or cannot be read.
    fn specs(&self, sends: Vec<SendId>) -> StoreResult<'_, Vec<Option<Arc<SendSpec>>>>;
}
