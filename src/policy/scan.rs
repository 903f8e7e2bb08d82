//! Which destinations each tenant tried of late: the memory behind `policy_scan`.
//!
//! Exact over a sliding window, and bounded: a tenant's pairs by its limit, the tenants by who tried anything within
//! the last two windows. `now` is an argument; a wall clock that is set back costs at most one window.

use std::collections::{BTreeSet, HashMap};

use jiff::{SignedDuration, Timestamp};

use super::url::{Destination, Host};
use crate::limits::SCAN_WINDOW;
use crate::send::TenantId;

/// Which (host, port) pairs each tenant tried within the last minute. Bounded; owned by whoever asks.
#[derive(Debug, Default)]
pub struct ScanMemory {
    tenants: HashMap<TenantId, Tries>,
    /// The latest `now` so far.
    latest: Timestamp,
    /// When tenants without recent tries were last dropped.
    swept: Timestamp,
}

type Pair = (Host, u16);

/// One tenant's pairs with the time each was last tried, kept by pair and by time.
#[derive(Debug, Default)]
struct Tries {
    last: HashMap<Pair, Timestamp>,
    by_time: BTreeSet<(Timestamp, Pair)>,
}

impl ScanMemory {
    /// Notes a try; `false` when it would be one distinct pair too many. A refused try is not noted, so that a
    /// tenant is let through again as soon as its older pairs have left the window.
    pub fn admit(&mut self, tenant: &TenantId, destination: &Destination, limit: u32, now: Timestamp) -> bool {
        let now = self.steady(now);
        if now.duration_since(self.swept) >= window() {
            self.tenants.retain(|_, tries| tries.by_time.last().is_some_and(|(last, _)| is_recent(*last, now)));
            self.swept = now;
        }
        if !self.tenants.contains_key(tenant) {
            self.tenants.insert(tenant.clone(), Tries::default());
        }
        match self.tenants.get_mut(tenant) {
            Some(tries) => tries.admit((destination.host.clone(), destination.port), limit, now),
            None => false,
        }
    }

    /// Time as it can be compared with what is noted: never falling, unless the clock was set back for good.
    fn steady(&mut self, now: Timestamp) -> Timestamp {
        if self.latest.duration_since(now) > window() {
            *self = Self { latest: now, swept: now, ..Self::default() };
        }
        self.latest = self.latest.max(now);
        self.latest
    }
}

impl Tries {
    fn admit(&mut self, pair: Pair, limit: u32, now: Timestamp) -> bool {
        while let Some((last, _)) = self.by_time.first()
            && !is_recent(*last, now)
        {
            if let Some((_, pair)) = self.by_time.pop_first() {
                self.last.remove(&pair);
            }
        }
        let known = self.last.get(&pair).copied();
        if known.is_none() && self.last.len() >= limit as usize {
            return false;
        }
        if let Some(last) = known {
            self.by_time.remove(&(last, pair.clone()));
        }
        self.by_time.insert((now, pair.clone()));
        self.last.insert(pair, now);
        true
    }
}

fn window() -> SignedDuration {
    SignedDuration::try_from(SCAN_WINDOW).unwrap_or(SignedDuration::MAX)
}

fn is_recent(last: Timestamp, now: Timestamp) -> bool {
    now.duration_since(last) < window()
}

#[cfg(test)]
mod tests;
