//! How sends of the last hour ended, by tenant and minute: counted as they end, so that asking costs what is answered.
//!
//! Minutes are those of the [steady](clock::steady) clock: whatever the time of day is set to while this process lives, an
//! end counts for an hour, and no longer.
//!
//! What ended before the store was opened is counted once, beside everything else, from the tail's entries. Of ends that
//! say they are still to come, by a clock that was ahead then, nobody knows when they came about: they are not counted.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Condvar, Mutex, PoisonError};

use jiff::Timestamp;

use super::seal::Asked;
use super::segment::{END_BYTES, End};
use super::{Shared, locked};
use crate::clock;
use crate::outcome::Outcome;
use crate::send::TenantId;
use crate::store::view::{is_of_the_hour, minute, start_of_the_hour};
use crate::store::{StoreError, wire};

/// Ends that are read at once.
const ENDS_AT_ONCE: u32 = 16 * 1024;

#[derive(Default)]
pub struct Hour {
    counts: Mutex<Counts>,
    /// Set once what ended before the store was opened is counted.
    counted: Mutex<bool>,
    is_counted: Condvar,
}

/// Minutes in which any ended, the oldest first.
type Minutes = VecDeque<(i64, HashMap<Outcome, u64>)>;

#[derive(Default)]
struct Counts {
    tenants: HashMap<TenantId, Minutes>,
    /// The minute in which tenants without any were last let go.
    swept: i64,
}

impl Counts {
    fn add(&mut self, tenant: &TenantId, outcome: Outcome, at: i64, count: u64, now: i64) {
        if now > self.swept {
            self.swept = now;
            self.tenants.retain(|_, minutes| {
                while minutes.front().is_some_and(|(minute, _)| *minute <= now - 60) {
                    minutes.pop_front();
                }
                !minutes.is_empty()
            });
        }
        if !self.tenants.contains_key(tenant) {
            self.tenants.insert(tenant.clone(), VecDeque::new());
        }
        let Some(minutes) = self.tenants.get_mut(tenant) else { return };
        let place = minutes.partition_point(|(minute, _)| *minute < at);
        if minutes.get(place).is_none_or(|(minute, _)| *minute != at) {
            minutes.insert(place, (at, HashMap::new()));
        }
        *minutes[place].1.entry(outcome).or_default() += count;
    }
}

impl Hour {
    /// A send ended.
    pub fn add(&self, tenant: &TenantId, outcome: Outcome, at: Timestamp) {
        let at = minute(clock::steady(at));
        locked(&self.counts).add(tenant, outcome, at, 1, at);
    }

    /// Of the hour that ends now. Waits for what ended before the store was opened, where that is still being counted.
    pub fn outcomes(&self, now: Timestamp) -> HashMap<TenantId, HashMap<Outcome, u64>> {
        let mut counted = locked(&self.counted);
        while !*counted {
            counted = self.is_counted.wait(counted).unwrap_or_else(PoisonError::into_inner);
        }
        drop(counted);
        let now = clock::steady(now);
        let counts = locked(&self.counts);
        let mut outcomes: HashMap<TenantId, HashMap<Outcome, u64>> = HashMap::new();
        for (tenant, minutes) in &counts.tenants {
            for (at, of_minute) in minutes {
                let at = Timestamp::from_second(at * 60).unwrap_or_default();
                if !is_of_the_hour(at, now) {
                    continue;
                }
                let of_tenant = outcomes.entry(tenant.clone()).or_default();
                of_minute.iter().for_each(|(outcome, count)| *of_tenant.entry(*outcome).or_default() += count);
            }
        }
        outcomes
    }

    /// Nothing more is to be waited for.
    pub fn done(&self) {
        *locked(&self.counted) = true;
        self.is_counted.notify_all();
    }
}

/// Counts what ended up to this number of the tail, within the hour before the newest of it, or before now where that is
/// of a clock that was ahead.
pub fn count(shared: &Shared, newest: u64, now: Timestamp) -> Result<(), StoreError> {
    let segments = shared.segments();
    let Some(last) =
        segments.iter().map(|segment| segment.zones().newest_finished_at).max().filter(|at| *at > i64::MIN)
    else {
        return Ok(());
    };
    let last = wire::timestamp(last).min(now);
    let since = wire::nanoseconds(start_of_the_hour(last));
    let until = wire::nanoseconds(now);
    // By the tenant's hash and the minute, and whose hash it is: of several, each send is asked.
    let mut counts: HashMap<(u32, i64, u8), u64> = HashMap::new();
    let mut names: HashMap<u32, HashSet<TenantId>> = HashMap::new();
    let mut shared_ones: HashMap<(TenantId, i64, u8), u64> = HashMap::new();
    let within: Vec<_> = segments.iter().filter(|segment| segment.zones().newest_finished_at >= since).collect();
    for segment in &within {
        for tenant in super::stats::tenants(shared, segment)? {
            names.entry(shared.keys.short(Asked::Tenant, tenant.as_str())).or_default().insert(tenant);
        }
    }
    for segment in within {
        let known = u32::try_from((newest + 1).saturating_sub(segment.first_seq)).unwrap_or(u32::MAX);
        let known = known.min(segment.ends_count.load(std::sync::atomic::Ordering::Acquire));
        for from in (0..known).step_by(ENDS_AT_ONCE as usize) {
            let bytes = segment.ends(from, known.min(from + ENDS_AT_ONCE))?;
            for end in bytes.chunks_exact(END_BYTES).filter_map(End::decode) {
                if end.finished_at < since || end.finished_at > until || end.tenant == 0 {
                    continue;
                }
                let at = minute(clock::steady(wire::timestamp(end.finished_at)));
                if names.get(&end.tenant).is_none_or(|names| names.len() < 2) {
                    *counts.entry((end.tenant, at, end.outcome)).or_default() += 1;
                } else if let Some(tenant) = super::stats::tenant_of(shared, &end)? {
                    *shared_ones.entry((tenant, at, end.outcome)).or_default() += 1;
                }
            }
        }
    }
    let last = minute(clock::steady(last));
    let mut known = locked(&shared.hour.counts);
    let mut add = |tenant: &TenantId, at, outcome, count| {
        if let Ok(outcome) = wire::outcome_of(outcome) {
            known.add(tenant, outcome, at, count, last);
        }
    };
    for ((hash, at, outcome), count) in counts {
        if let Some(tenant) = names.get(&hash).and_then(|names| names.iter().next()) {
            add(tenant, at, outcome, count);
        }
    }
    shared_ones.into_iter().for_each(|((tenant, at, outcome), count)| add(&tenant, at, outcome, count));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_minute_is_kept_for_longer_than_an_hour() {
        let mut counts = Counts::default();
        let tenants = [TenantId::new("a"), TenantId::new("b")];
        for now in 1_000..1_400 {
            counts.add(&tenants[0], Outcome::Delivered, now, 1, now);
            // What was counted late, of what ended before.
            counts.add(&tenants[1], Outcome::Failed, now - 30, 1, now);
            assert!(counts.tenants.values().all(|minutes| minutes.len() <= 60), "in minute {now}");
        }
        counts.add(&tenants[0], Outcome::Delivered, 1_500, 1, 1_500);
        assert_eq!(counts.tenants.len(), 1, "who has none is let go");
    }
}
