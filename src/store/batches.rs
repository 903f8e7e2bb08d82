//! Batches: what each one holds is durable before it is first tried, and so is its end before its sends have theirs.
//!
//! While its events gather a batch is nothing to a store: they are sends that wait, claimed by who gathers them and never
//! begun. So whatever dies, they wait again.

use std::sync::Arc;

use super::{Reach, Session, StoreResult};
use crate::record::{Batch, BatchId};
use crate::send::{SendId, SendSpec};

/// What the store remembers of batches.
pub trait Batches: std::marker::Send + Sync + 'static {
    /// Remembers a batch as it is now, in the place of what was known of it.
    fn put_batch<'a>(&'a self, by: &'a Session, batch: Arc<Batch>) -> StoreResult<'a, ()>;

    fn batch(&self, reach: Reach, id: BatchId) -> StoreResult<'_, Option<Batch>>;

    /// Those that are closed and not done.
    fn open_batches(&self) -> StoreResult<'_, Vec<Batch>>;

    /// What these sends are to deliver, one for each in order; `None`: it has its end, or cannot be read.
    fn specs(&self, sends: Vec<SendId>) -> StoreResult<'_, Vec<Option<Arc<SendSpec>>>>;
}
