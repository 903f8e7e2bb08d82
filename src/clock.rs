//! The one place that reads a clock. Deciding modules take `now` as an argument instead.

use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// A clock that this process follows where it shares one with others: what it said, and when.
#[derive(Clone, Copy)]
struct Followed {
    said: Timestamp,
    /// Of the system, whatever a test does to [`monotonic`].
    at: std::time::Instant,
}

/// Clocks that are kept differ by less, and then each goes by its own, which does not step with every look.
const KEPT: SignedDuration = SignedDuration::from_secs(1);

/// What is known of the time of day beside what the system says.
struct Known {
    followed: Option<Followed>,
    course: Option<Course>,
}

static KNOWN: RwLock<Known> = RwLock::new(Known { followed: None, course: None });

/// The time of day, for records and dates. May step; never used to measure.
pub fn wall() -> Timestamp {
    look().0
}

/// The time of day, and by how much it was set back in all since this process began to look.
#[allow(clippy::disallowed_methods, reason = "the one place that may")]
fn look() -> (Timestamp, SignedDuration) {
    let before = std::time::Instant::now();
    let own = Timestamp::now();
    let after = std::time::Instant::now();
    let (followed, course) = {
        let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
        (known.followed, known.course)
    };
    let told = followed.map_or(own, |followed| of_both(own, followed, after));
    // Of one that was held up between its looks at the two clocks nothing can be told.
    let is_known = after.saturating_duration_since(before) >= AT_ONCE
        || course.is_some_and(|course| course.stepped(told, before).is_none());
    if is_known {
        return (told, course.map_or(SignedDuration::ZERO, |course| course.back));
    }
    let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    let course = Course::after(known.course, told, before);
    known.course = Some(course);
    (told, course.back)
}

/// How the time of day goes beside the monotonic clock: where both stood when it was last set, and by how much it was set
/// back in all.
#[derive(Clone, Copy)]
struct Course {
    wall: Timestamp,
    at: std::time::Instant,
    back: SignedDuration,
}

const AT_ONCE: Duration = Duration::from_millis(100);

impl Course {
    /// By how much the time of day was set since, and forward where it is more than nothing. (An earlier look of another
    /// thread that comes in only now is told apart by its instant.)
    fn stepped(self, wall: Timestamp, at: std::time::Instant) -> Option<SignedDuration> {
        let passed = SignedDuration::try_from(at.checked_duration_since(self.at)?).ok()?;
        let by = wall.duration_since(self.wall) - passed;
        Some(by).filter(|by| by.abs() > KEPT)
    }

    fn after(course: Option<Self>, wall: Timestamp, at: std::time::Instant) -> Self {
        let Some(course) = course else { return Self { wall, at, back: SignedDuration::ZERO } };
        match course.stepped(wall, at) {
            Some(by) => Self { wall, at, back: course.back + (-by).max(SignedDuration::ZERO) },
            None => course,
        }
    }
}

/// A time of day that is past, as waits are measured by: by a clock that this process never saw set back. It orders and
/// subtracts within this process, and is written down nowhere. One that is still to come was told before the clock was set
/// back, and counts as now.
pub fn steady(at: Timestamp) -> Timestamp {
    let (now, back) = look();
    let at = at.min(now);
    at.checked_add(back).unwrap_or(at)
}

/// The time of day that is now this [`steady`] one.
pub fn unsteady(at: Timestamp) -> Timestamp {
    at.checked_sub(look().1).unwrap_or(at)
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
    KNOWN.write().unwrap_or_else(PoisonError::into_inner).followed = Some(followed);
    Some(ahead).filter(|ahead| ahead.abs() > KEPT)
}

/// The monotonic clock, for deadlines and timings; tests may pause it.
#[allow(clippy::disallowed_methods, reason = "the one place that may")]
pub fn monotonic() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "any instant will do")]
    fn what_waits_is_not_made_to_wait_by_a_clock_that_is_set_back() {
        let start = std::time::Instant::now();
        let mut course = None;
        // After so many seconds the time of day is this; then so much of it was set back in all.
        for (passed, wall, back) in [
            (0, 1_000, 0),
            (10, 1_010, 0),
            (20, 1_021, 0), // no step, as yet
            (30, 430, 600), // set back by ten minutes
            (40, 440, 600),
            (50, 4_050, 600), // set forward by an hour, which is nobody's wait
            (60, 460, 4_200), // and that was wrong
            (70, 470, 4_200),
            (70, 468, 4_202),
        ] {
            let wall = Timestamp::from_second(wall).expect("a time");
            let told = Course::after(course, wall, start + Duration::from_secs(passed));
            assert_eq!(told.back.as_secs(), back, "after {passed} s");
            course = Some(told);
        }
        // A look that comes in late tells nothing.
        let late = Course::after(course, Timestamp::UNIX_EPOCH, start);
        assert_eq!(late.back.as_secs(), 4_202);
    }

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
