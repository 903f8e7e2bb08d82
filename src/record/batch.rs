//! What is remembered of a batch: the events that one upload carries, and what came of each try.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;

use super::Finished;
use crate::outcome::{Processed, labelled};
use crate::redact::sha256;
use crate::send::{Place, SendId, TenantId};

/// A batch's identity, from which the object's key is made: 32 bytes, shown as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchId([u8; 32]);

impl BatchId {
    /// Of the batch that begins with this send. So what gathers has the same identity again after a crash, though nothing
    /// of it but its sends is on disk.
    pub fn of(first: SendId, tenant: &TenantId, place: &Place) -> Self {
        let parts = [first.0.as_bytes(), tenant.as_str().as_bytes(), b"\0", place.text().as_bytes()].concat();
        Self(sha256(&parts))
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub fn to_bytes(self) -> [u8; 32] {
        self.0
    }
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// It is not 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoBatchId;

impl FromStr for BatchId {
    type Err = NoBatchId;

    fn from_str(text: &str) -> Result<Self, NoBatchId> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(NoBatchId),
        };
        let digits: &[u8; 64] = text.as_bytes().try_into().map_err(|_| NoBatchId)?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

/// What a send's record says of its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InBatch {
    pub id: BatchId,
    /// When it closes, or has closed.
    pub closes_at: Timestamp,
    /// Whether its place may have it where its end does not say that it does: `No` or `Maybe`.
    pub taken: Processed,
}

labelled! {
    /// Where a batch is on its way.
    BatchState {
        /// Events are added to it.
        Gathering = "gathering",
        /// It is complete, and tried until it has its end.
        Closed = "closed",
        /// Its sends have their ends.
        Done = "done",
    }
}

impl Batch {
    /// As records of its events name it.
    pub const fn named(&self) -> InBatch {
        InBatch { id: self.id, closes_at: self.closes_at, taken: self.taken }
    }
}

/// A batch as remembered. What it holds does not change once it is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub id: BatchId,
    pub tenant: TenantId,
    pub place: Place,
    pub state: BatchState,
    /// When its first event was accepted or released.
    pub opened_at: Timestamp,
    /// When it closes; once it has, when it did.
    pub closes_at: Timestamp,
    /// Where the configuration leads it, as [`crate::config::Config::placed`] has it: once it may be there, it goes to no other
    /// place. `None`: nothing was set up when it closed.
    pub placed: Option<Box<str>>,
    /// In the order of their lines.
    pub sends: Vec<SendId>,
    /// Of their payloads.
    pub bytes: u64,
    /// How many tries there were.
    pub tried: u32,
    /// Whether one of these may have brought it there: `No` or `Maybe`.
    pub taken: Processed,
    /// The first and the last of them, at most [`crate::limits::BATCH_ATTEMPTS_KEPT`], as ends of the first send.
    pub attempts: Vec<Finished>,
    /// How it ended, which its sends have in their records: one of `attempts`, or that it was stopped.
    pub ended: Option<Finished>,
    /// Those that it went without, with `ended`.
    pub left_out: Vec<LeftOut>,
}

/// Events that a batch went without, because they were refused and it was not; each is in one of these at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// At least one.
    pub sends: Vec<SendId>,
    /// Theirs in place of the batch's, as the end of the first of them.
    pub end: Finished,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_of_its_first_send_and_reads_back() {
        let place = Place::S3 { bucket: "b".into(), prefix: "p".into() };
        let (one, two) = (SendId(uuid::Uuid::from_u128(1)), SendId(uuid::Uuid::from_u128(2)));
        let id = BatchId::of(one, &TenantId::new("acme"), &place);
        assert_eq!(id, BatchId::of(one, &TenantId::new("acme"), &place));
        assert_ne!(id, BatchId::of(two, &TenantId::new("acme"), &place));
        let text = id.to_string();
        assert_eq!((text.len(), text.parse()), (64, Ok(id)));
        for wrong in ["", &text[1..], &text.to_uppercase(), &format!("{text}0")] {
            assert_eq!(wrong.parse::<BatchId>(), Err(NoBatchId), "{wrong}");
        }
    }
}
