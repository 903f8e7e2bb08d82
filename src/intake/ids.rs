//! Ids of sends: UUIDs of version 7 (RFC 9562) that grow with acceptance, also within a millisecond, and count nothing
//! but the sends of their own call.
//!
//! With one counter for everybody, two ids of a millisecond would tell a tenant how many sends of others were accepted
//! in between. So the time is kept to the nanosecond (section 6.2, method 3), each call has an instant of its own, and
//! the counter under it is the call's; what is left is random. Pure but for that: `now` is an argument.

use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use uuid::Uuid;

use crate::send::SendId;

/// Gives each call its instant.
#[derive(Default)]
pub struct Ids {
    /// Nanoseconds since 1970 of the latest call.
    latest: Mutex<u64>,
}

/// The ids of one call, in order.
pub struct CallIds {
    /// Nanoseconds since 1970, and [`COUNTER_BITS`] in which the call's sends are counted.
    next: u128,
}

impl Ids {
    pub fn call(&self, now: Timestamp) -> CallIds {
        let now = u64::try_from(now.as_nanosecond()).unwrap_or_default();
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that is coarse must not make this a count of calls, and one that was set back is followed: whoever
        // went on from the latest would count until it has caught up.
        let is_new = now > *latest || *latest - now > BACK_NANOS;
        *latest = if is_new { now } else { *latest + 1 + u64::from(random()) };
        CallIds { next: u128::from(*latest) << COUNTER_BITS }
    }
}

impl CallIds {
    pub fn id(&mut self) -> SendId {
        let this = self.next;
        self.next += 1;
        let nanos = u64::try_from(this >> COUNTER_BITS).unwrap_or(u64::MAX);
        let within_millisecond = u128::from(nanos % 1_000_000) << COUNTER_BITS | this & ((1 << COUNTER_BITS) - 1);
        let (seconds, subsecond) = (nanos / 1_000_000_000, (nanos % 1_000_000_000) as u32);
        let bits = NANOSECOND_BITS + COUNTER_BITS;
        SendId(Uuid::new_v7(uuid::Timestamp::from_unix_time(seconds, subsecond, within_millisecond, bits)))
    }
}

/// Where the system gives none, ids still grow and still differ.
fn random() -> u16 {
    let mut bytes = [0; 2];
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u16::from_le_bytes(bytes)
}

/// Further back is a clock that was set.
const BACK_NANOS: u64 = 10_000_000;
/// The nanoseconds of a millisecond.
const NANOSECOND_BITS: u8 = 20;
/// A call with more sends goes on in the next nanosecond.
const COUNTER_BITS: u8 = 20;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Without the random rest: version 7 leaves 74 bits, of which time and counter take 40.
    fn told(id: SendId) -> u128 {
        id.0.as_u128() >> 34
    }

    fn at(nanos: i128) -> Timestamp {
        Timestamp::from_nanosecond(nanos).unwrap()
    }

    const NOW: i128 = 1_795_312_000_123_456_789;

    #[test]
    fn ids_grow_within_a_call_and_from_call_to_call() {
        let ids = Ids::default();
        let mut given = Vec::new();
        // Later, at the same time, a little earlier, later again, and over a millisecond's end.
        for now in [NOW, NOW + 1, NOW + 1, NOW - 5_000_000, NOW + 900_000, NOW + 2_000_000] {
            let mut call = ids.call(at(now));
            given.extend((0..1_000).map(|_| call.id()));
        }
        assert!(given.is_sorted());
        assert_eq!(given.iter().collect::<HashSet<_>>().len(), given.len());
        for id in given {
            assert_eq!((id.0.get_version_num(), id.0.get_variant()), (7, uuid::Variant::RFC4122));
        }
        let (seconds, nanos) = ids.call(at(NOW + 3_000_000)).id().0.get_timestamp().unwrap().to_unix();
        assert_eq!((seconds, nanos), (1_795_312_000, 126_000_000));
    }

    #[test]
    fn more_sends_than_the_counter_has_numbers_go_on() {
        let ids = Ids::default();
        let mut call = ids.call(at(1_795_312_000_000_999_999));
        call.next += (1 << COUNTER_BITS) - 2;
        let given: Vec<_> = (0..4).map(|_| call.id()).collect();
        assert!(given.is_sorted());
        let (_, nanos) = given[3].0.get_timestamp().unwrap().to_unix();
        assert_eq!(nanos, 1_000_000, "of the next millisecond");
    }

    #[test]
    fn an_id_does_not_tell_how_many_others_were_given() {
        let of_mine = |others: usize| {
            let ids = Ids::default();
            let mut first = ids.call(at(NOW));
            let mut mine = vec![told(first.id()), told(first.id())];
            for other in 0..others {
                let mut call = ids.call(at(NOW + 1 + i128::try_from(other).unwrap()));
                assert!((0..50).map(|_| call.id()).is_sorted());
            }
            // In the same millisecond.
            mine.push(told(ids.call(at(NOW + 400_000)).id()));
            mine
        };
        assert_eq!(of_mine(0), of_mine(1));
        assert_eq!(of_mine(0), of_mine(5_000));
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_tell_it_either() {
        const HOUR: i128 = 3_600_000_000_000;
        let of_mine = |others: i128| {
            let ids = Ids::default();
            ids.call(at(NOW));
            let first = told(ids.call(at(NOW - HOUR)).id());
            for other in 0..others {
                ids.call(at(NOW - HOUR + 1 + other));
            }
            (first, told(ids.call(at(NOW - HOUR + 400_000)).id()))
        };
        assert_eq!(of_mine(0), of_mine(5_000));
    }
}
