//! One delivery: a [`Started`] send goes in, what came of it comes out. Never twice: `Started` is taken by value.
//!
//! Not here: redaction, records and the store (`dispatch` turns an [`Attempt`] into what is remembered).

pub mod body;
pub mod http;

use std::sync::Arc;

use crate::deadline::Deadline;
use crate::outcome::{Code, Ended, Timings};
use crate::record::Connection;
use crate::redact::RawResponse;
use crate::send::HeaderLines;
use crate::store::Started;

/// What one delivery came to, unredacted.
pub struct Attempt {
    pub ended: Ended,
    /// Every header line that was handed to the wire, in order; `None` where no request was written.
    pub sent_headers: Option<HeaderLines>,
    pub response: Option<RawResponse>,
    pub connection: Option<Connection>,
    /// `held` and `queued` are left for the dispatcher.
    pub timings: Timings,
    pub would_block: Option<Code>,
}

/// Makes deliveries. One for the process; what a reload changes is swapped inside.
pub struct Deliverer {
    // filled in by the implementation
}

impl Deliverer {
    /// Ends at the deadline and not later, whatever the receiver does.
    pub async fn deliver(self: &Arc<Self>, _started: Started, _deadline: Deadline) -> Attempt {
        todo!()
    }
}
