//! The one place that reads a clock. Deciding modules take `now` as an argument instead.

use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// A clock that this process follows where it shares one with others: what it said, and when.
#[derive(Clone, Copy)]
struct Followed {
    said: Timestamp,
    at: Uptime,
}

/// Since the machine started, times of sleep included: nobody sets it. (Whatever a test does to [`monotonic`].)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Uptime(SignedDuration);

impl Uptime {
    fn now() -> Self {
        // Linux has had this clock since 2.6.39.
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
        Self(SignedDuration::try_from(now).unwrap_or(SignedDuration::MAX))
    }

    fn since(self, earlier: Self) -> SignedDuration {
        self.0.saturating_sub(earlier.0)
    }
}

/// Clocks that are kept differ by less, and then each goes by its own, which does not step with every look.
const KEPT: SignedDuration = SignedDuration::from_secs(1);

/// What is known of the time of day beside what the system says.
struct Known {
    followed: Option<Followed>,
    course: Option<Course>,
}

impl Known {
    fn told(&self, own: Timestamp, at: Uptime) -> Timestamp {
        self.followed.map_or(own, |followed| of_both(own, followed, at))
    }
}

static KNOWN: RwLock<Known> = RwLock::new(Known { followed: None, course: None });

/// The time of day, for records and dates. May step; never used to measure.
pub fn wall() -> Timestamp {
    look(|now, _| now)
}

/// With the time of day, and how it went since this process began to look.
fn look<T>(of: impl FnOnce(Timestamp, &Course) -> T) -> T {
    let (at, own) = both();
    {
        let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
        let now = known.told(own, at);
        if let Some(course) = &known.course
            && course.stepped(now, at).is_none()
        {
            return of(now, course);
        }
    }
    // It was set, or this thread was held up between the two clocks.
    let (before, own) = both();
    let after = Uptime::now();
    let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    let now = known.told(own, after);
    let course = match known.course.take() {
        None => Course::from(now, before),
        // Of one that was held up nothing can be told.
        Some(course) if after.since(before) >= AT_ONCE => course,
        Some(course) => match course.stepped(now, before) {
            None => course,
            Some(by) => course.set(by, now, before),
        },
    };
    of(now, known.course.insert(course))
}

/// The clock that nobody sets, and then what the system says.
#[allow(clippy::disallowed_methods, reason = "the one place that may")]
fn both() -> (Uptime, Timestamp) {
    (Uptime::now(), Timestamp::now())
}

/// How the time of day goes beside the one that nobody sets.
#[derive(Clone, Debug)]
struct Course {
    /// Where both stood when it was last set.
    wall: Timestamp,
    at: Uptime,
    /// The time of day since each time that it was set, the last one last, and before.
    settings: Vec<Setting>,
}

/// While a clock was set as it was.
#[derive(Clone, Copy, Debug)]
struct Setting {
    /// What is to be added to it then, for the steady time.
    off: SignedDuration,
    /// The steady time when that began.
    from: Timestamp,
}

const AT_ONCE: SignedDuration = SignedDuration::from_millis(100);
/// A clock that is set more often is remembered by its last settings: what waits for longer is measured by the first of
/// them.
const SETTINGS: usize = 16;

impl Course {
    fn from(wall: Timestamp, at: Uptime) -> Self {
        Self { wall, at, settings: vec![Setting { off: SignedDuration::ZERO, from: Timestamp::MIN }] }
    }

    fn last(&self) -> Setting {
        self.settings.last().copied().unwrap_or(Setting { off: SignedDuration::ZERO, from: Timestamp::MIN })
    }

    /// By how much the time of day was set since, forward where it is more than nothing. (An earlier look of another
    /// thread that comes in only now is told apart by its instant.)
    fn stepped(&self, wall: Timestamp, at: Uptime) -> Option<SignedDuration> {
        if at < self.at {
            return None;
        }
        let by = wall.duration_since(self.wall).saturating_sub(at.since(self.at));
        Some(by).filter(|by| by.abs() > KEPT)
    }

    fn set(&self, by: SignedDuration, wall: Timestamp, at: Uptime) -> Self {
        let off = self.last().off.saturating_sub(by);
        let mut settings = self.settings.clone();
        settings.push(Setting { off, from: later(wall, off) });
        if settings.len() > SETTINGS {
            settings.remove(0);
            settings[0].from = Timestamp::MIN;
        }
        Self { wall, at, settings }
    }

    fn waited(&self, from: Timestamp, to: Timestamp, now: Timestamp) -> Duration {
        Duration::try_from(self.steady(to, now).duration_since(self.steady(from, now))).unwrap_or_default()
    }

    /// The steady time when the time of day was this, where it is `now`: the last such time, where it came more than once.
    fn steady(&self, at: Timestamp, now: Timestamp) -> Timestamp {
        let last = self.last();
        let mut until = later(now, last.off);
        for setting in self.settings.iter().rev() {
            let then = later(at, setting.off);
            if (setting.from..=until).contains(&then) {
                return then;
            }
            until = setting.from;
        }
        // It never was: told by another clock, or still to come.
        later(at, last.off).clamp(last.from, later(now, last.off))
    }
}

fn later(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.checked_add(by).unwrap_or(at)
}

/// A time of day that is past, as waits are measured by: by a clock that goes on however the time of day is set while this
/// process lives, and that counts a machine's sleep. It orders and subtracts within this process, and is written down
/// nowhere. One that is still to come counts as now.
pub fn steady(at: Timestamp) -> Timestamp {
    look(|now, course| course.steady(at, now))
}

/// How long it was from one time of day to a later one, both past, however it was set in between while this process
/// lived. Where it was set before that, as far as the two tell; never less than nothing.
pub fn waited(from: Timestamp, to: Timestamp) -> Duration {
    look(|now, course| course.waited(from, to, now))
}

/// The later of two times of day that are past; of a clock that was set back between them, that is the lesser.
pub fn later_of(one: Timestamp, other: Timestamp) -> Timestamp {
    look(|now, course| std::cmp::max_by_key(one, other, |at| (course.steady(*at, now), *at)))
}

/// The time of day that is now this [`steady`] one.
pub fn unsteady(at: Timestamp) -> Timestamp {
    at.checked_sub(look(|_, course| course.last().off)).unwrap_or(at)
}

/// The followed one's, where the system's is not kept.
fn of_both(own: Timestamp, followed: Followed, now: Uptime) -> Timestamp {
    match followed.said.checked_add(now.since(followed.at)) {
        Ok(theirs) if own.duration_since(theirs).abs() > KEPT => theirs,
        _ => own,
    }
}

/// From now on the time of day is this one, which was said just now; how far the system's is ahead of it, where that is
/// not kept.
#[allow(clippy::disallowed_methods, reason = "the one place that may")]
pub fn follow(said: Timestamp) -> Option<SignedDuration> {
    let ahead = Timestamp::now().duration_since(said);
    let followed = Followed { said, at: Uptime::now() };
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

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn up(seconds: i64) -> Uptime {
        Uptime(SignedDuration::from_secs(seconds))
    }

    /// As [`look`] has it.
    fn looked(course: &Course, wall: i64, at: i64) -> Course {
        match course.stepped(second(wall), up(at)) {
            None => course.clone(),
            Some(by) => course.set(by, second(wall), up(at)),
        }
    }

    #[test]
    fn what_waits_waits_as_long_however_the_clock_is_set() {
        let mut course = Course::from(second(1_000), up(0));
        let mut told = Vec::new();
        // After so many seconds the time of day is this.
        for (passed, wall) in [
            (10, 1_010),
            (90_000, 91_000), // the machine slept, and both went on
            (90_010, 91_010),
            (90_020, 90_420), // set back by ten minutes
            (90_030, 90_430),
            (90_040, 94_040), // set forward by an hour
            (90_050, 90_450), // and that was wrong
            (90_060, 91_060), // right again
        ] {
            course = looked(&course, wall, passed);
            told.push((passed, wall));
            let age = |at| {
                let now = second(wall);
                course.steady(now, now).duration_since(course.steady(second(at), now)).as_secs()
            };
            for &(earlier, at) in &told {
                assert_eq!(age(at), passed - earlier, "told at {earlier}, looked at {passed}");
            }
            // One from before this process looked, by the clock that it began with.
            assert_eq!(age(900), 100 + passed);
            // One that never was.
            assert_eq!(course.steady(second(wall + 500_000), second(wall)), course.steady(second(wall), second(wall)));
        }
        // A time that came twice is the later one: what waits may wait for longer then, and ends at no time too early.
        course = looked(&course, 96_000, 95_000);
        assert_eq!(course.steady(second(94_040), second(96_000)), second(94_040));
        // A clock that is a little off was not set.
        assert_eq!(looked(&course, 96_011, 95_010).settings.len(), course.settings.len());
        // A look that comes in late tells nothing.
        assert_eq!(looked(&course, 0, 0).settings.len(), course.settings.len());
    }

    #[test]
    fn a_wait_is_as_long_as_it_was_however_the_clock_was_set_in_between() {
        // Accepted after 100 s, released after 108 and begun after 113; the time of day is set by so much after some.
        for (which, settings) in [
            ("never", &[][..]),
            ("back while held", &[(104, -3_600)]),
            ("forward while held", &[(104, 3_600)]),
            ("back while queued", &[(110, -3_600)]),
            ("back while held, and right again while queued", &[(104, -86_400), (110, 86_400)]),
            ("forward while held, and right again", &[(104, 3_600), (106, -3_600)]),
            ("back afterwards", &[(120, -3_600)]),
        ] {
            let wall = |passed: i64| {
                let set = settings.iter().filter(|(after, _)| *after <= passed);
                1_000_000 + passed + set.map(|(_, by)| by).sum::<i64>()
            };
            let mut course = Course::from(second(wall(0)), up(0));
            for passed in 1..=125 {
                course = looked(&course, wall(passed), passed);
            }
            let now = second(wall(125));
            let [accepted, released, begun] = [100, 108, 113].map(|passed| second(wall(passed)));
            let waits = [(accepted, released), (released, begun), (accepted, begun), (begun, accepted)];
            let waits = waits.map(|(from, to)| course.waited(from, to, now).as_secs());
            assert_eq!(waits, [8, 5, 13, 0], "{which}");
        }
    }

    #[test]
    fn a_clock_that_is_always_set_takes_no_more_room() {
        let mut course = Course::from(second(1_000_000), up(0));
        for n in 1..100 {
            course = looked(&course, 1_000_000 + n * 7 - (n % 2) * 500, n * 7);
        }
        assert_eq!(course.settings.len(), SETTINGS);
        let now = second(1_000_000 + 99 * 7 - 500);
        assert_eq!(course.steady(now, now).as_second(), 1_000_000 + 99 * 7);
    }

    #[test]
    fn a_clock_that_is_not_kept_goes_by_the_one_that_is_followed() {
        let followed = Followed { said: second(1_000), at: up(5) };
        for (own, expected) in
            [(1_060, 1_060), (1_061, 1_061), (1_059, 1_059), (1_062, 1_060), (1_058, 1_060), (91_060, 1_060)]
        {
            let told = of_both(second(own), followed, up(65));
            assert_eq!(told.as_second(), expected, "{own}");
        }
    }
}
