//! The one place that reads a clock. Deciding modules take `now` as an argument instead.

use std::sync::{PoisonError, RwLock};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// A clock that this process follows where it shares one with others: what it said, and when.
#[derive(Clone, Copy)]
struct Followed {
    said: Timestamp,
    /// Of the system, whatever a test does to [`monotonic`].
    at: std::time::Instant,
}

static FOLLOWED: RwLock<Option<Followed>> = RwLock::new(None);

/// Clocks that are kept differ by less, and then each goes by its own, which does not step with every look.
const KEPT: SignedDuration = SignedDuration::from_secs(1);

/// The time of day, for records and dates. May step; never used to measure.
#[allow(clippy::disallowed_methods, reason = "the one place that may")]
pub fn wall() -> Timestamp {
    let followed = *FOLLOWED.read().unwrap_or_else(PoisonError::into_inner);
    let own = Timestamp::now();
    followed.map_or(own, |followed| of_both(own, followed, std::time::Instant::now()))
}

/// The followed one's, where the system's is not kept.
fn of_both(own: Timestamp, followed: Followed, now: std::time::Instant) -> Timestamp {
    let since = SignedDuration::try_from(now.saturating_duration_since(followed.at)).unwrap_or(SignedDuration::MAX);
    match followed.said.checked_add(since) {
        Ok(theirs) if own.duration_since(theirs).abs() > KEPT => theirs,
        _ => own,
    }
}

/// From now on the time of day is this one, which was said just now; how far the system's is ahead of it, where that is
/// not kept.
#[allow(clippy::disallowed_methods, reason = "the one place that may")]
pub fn follow(said: Timestamp) -> Option<SignedDuration> {
    let ahead = Timestamp::now().duration_since(said);
    let followed = Followed { said, at: std::time::Instant::now() };
    *FOLLOWED.write().unwrap_or_else(PoisonError::into_inner) = Some(followed);
    Some(ahead).filter(|ahead| ahead.abs() > KEPT)
}

/// The monotonic clock, for deadlines and timings; tests may pause it.
#[allow(clippy::disallowed_methods, reason = "the one place that may")]
pub fn monotonic() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "any instant will do")]
    fn a_clock_that_is_not_kept_goes_by_the_one_that_is_followed() {
        let second = Timestamp::from_second;
        let followed = Followed { said: second(1_000).expect("a time"), at: std::time::Instant::now() };
        let later = followed.at + Duration::from_secs(60);
        for (own, expected) in
            [(1_060, 1_060), (1_061, 1_061), (1_059, 1_059), (1_062, 1_060), (1_058, 1_060), (91_060, 1_060)]
        {
            let told = of_both(second(own).expect("a time"), followed, later);
            assert_eq!(told.as_second(), expected, "{own}");
        }
    }
}
