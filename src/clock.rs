//! The one place that reads a clock. Deciding modules take `now` as an argument instead.

use jiff::Timestamp;
use tokio::time::Instant;

/// The time of day, for records and dates. May step; never used to measure.
#[allow(clippy::disallowed_methods, reason = "the one place that may")]
pub fn wall() -> Timestamp {
    Timestamp::now()
}

/// The monotonic clock, for deadlines and timings; tests may pause it.
#[allow(clippy::disallowed_methods, reason = "the one place that may")]
pub fn monotonic() -> Instant {
    Instant::now()
}
