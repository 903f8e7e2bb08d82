//! How much waits, as this node knows it: what it changed itself, exactly and at once, and what the others say of
//! theirs, a moment later.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::send::TenantId;
use crate::store::{WaitingCount, wire};

/// A change, or the sum of many. One node's may be negative: it claims what another accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub held: i64,
    pub queued: i64,
    pub unclaimed: i64,
}

impl Tally {
    pub fn held(held: i64) -> Self {
        Self { held, ..Self::default() }
    }
    /// Claimed ones.
    pub fn queued(queued: i64) -> Self {
        Self { queued, ..Self::default() }
    }
    pub fn waiting(count: i64) -> Self {
        Self { held: 0, queued: count, unclaimed: count }
    }
    /// Claimed ones become nobody's.
    pub fn unclaimed(unclaimed: i64) -> Self {
        Self { unclaimed, ..Self::default() }
    }
    /// So many of them wait to be claimed; the others gather.
    pub fn released(count: i64, unclaimed: i64) -> Self {
        Self { held: -count, queued: count, unclaimed }
    }

    fn add(&mut self, other: Self) {
        self.held += other.held;
        self.queued += other.queued;
        self.unclaimed += other.unclaimed;
    }

    fn count(self, oldest: Option<i64>) -> WaitingCount {
        let whole = |number: i64| u64::try_from(number).unwrap_or_default();
        let unclaimed = whole(self.unclaimed);
        WaitingCount {
            held: whole(self.held),
            queued: whole(self.queued),
            unclaimed,
            oldest: oldest.filter(|_| unclaimed > 0).map(wire::timestamp),
        }
    }
}

#[derive(Default)]
struct Inner {
    mine: HashMap<TenantId, Tally>,
    others: HashMap<TenantId, Tally>,
    all: Tally,
    /// When the front of each tenant's queue was released.
    oldest: HashMap<TenantId, i64>,
    by_age: BTreeSet<(i64, TenantId)>,
    /// Grows with every change of a front that this node made itself.
    fronts: u64,
}

#[derive(Default)]
pub struct Counts(Mutex<Inner>);

impl Counts {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add(&self, tenant: &TenantId, change: Tally) {
        let mut inner = self.lock();
        inner.all.add(change);
        inner.mine.entry(tenant.clone()).or_default().add(change);
        if inner.mine.get(tenant) == Some(&Tally::default()) {
            inner.mine.remove(tenant);
        }
    }

    /// What the database has of this node's, as nothing that changes it is under way.
    pub fn set_mine(&self, mine: HashMap<TenantId, Tally>) {
        let mut inner = self.lock();
        inner.mine = mine;
        inner.add_up();
    }

    /// A new life of this node: what it changed in the one before is an other's.
    pub fn begin_life(&self) {
        self.lock().mine.clear();
    }

    /// What the others have come to by now. Of whom more waits than before.
    pub fn set_others(&self, others: HashMap<TenantId, Tally>) -> Vec<TenantId> {
        let mut inner = self.lock();
        let more = others
            .iter()
            .filter(|(tenant, tally)| tally.unclaimed > inner.others.get(*tenant).map_or(0, |before| before.unclaimed));
        let more = more.map(|(tenant, _)| tenant.clone()).collect();
        inner.others = others;
        inner.add_up();
        more
    }

    /// What a look that was begun at [`Self::fronts`] found; nothing where this node has changed one since.
    pub fn set_fronts(&self, since: u64, fronts: impl Iterator<Item = (TenantId, Option<i64>)>) {
        for (tenant, oldest) in fronts {
            let mut inner = self.lock();
            if inner.fronts == since {
                inner.set_oldest(&tenant, oldest);
            }
        }
    }

    pub fn fronts(&self) -> u64 {
        self.lock().fronts
    }

    /// What this node found after a change of its own.
    pub fn set_oldest(&self, tenant: &TenantId, oldest: Option<i64>) {
        let mut inner = self.lock();
        inner.fronts += 1;
        inner.set_oldest(tenant, oldest);
    }

    /// This node is about to change some.
    pub fn changing_fronts(&self) {
        self.lock().fronts += 1;
    }

    /// One more waits since then: it is the front where there was none.
    pub fn note_front(&self, tenant: &TenantId, released_at: i64) {
        let mut inner = self.lock();
        inner.fronts += 1;
        if inner.oldest.get(tenant).is_none_or(|front| released_at < *front) {
            inner.set_oldest(tenant, Some(released_at));
        }
    }

    pub fn of(&self, tenant: &TenantId) -> WaitingCount {
        self.lock().of(tenant)
    }

    pub fn in_all(&self) -> WaitingCount {
        let inner = self.lock();
        inner.all.count(inner.by_age.first().map(|(at, _)| *at))
    }

    pub fn each(&self) -> Vec<(TenantId, WaitingCount)> {
        let inner = self.lock();
        let mut tenants: BTreeSet<&TenantId> = inner.mine.keys().collect();
        tenants.extend(inner.others.keys());
        let counts = tenants.into_iter().map(|tenant| (tenant.clone(), inner.of(tenant)));
        counts.filter(|(_, count)| *count != WaitingCount::default()).collect()
    }

    /// Of whom something is nobody's, or was.
    pub fn with_queue(&self) -> Vec<TenantId> {
        let inner = self.lock();
        let mut tenants: BTreeSet<TenantId> = inner.oldest.keys().cloned().collect();
        let waits = |tenant: &&TenantId| inner.of(tenant).unclaimed > 0;
        tenants.extend(inner.mine.keys().chain(inner.others.keys()).filter(waits).cloned());
        tenants.into_iter().collect()
    }
}

impl Inner {
    fn add_up(&mut self) {
        let mut all = Tally::default();
        self.mine.values().chain(self.others.values()).for_each(|tally| all.add(*tally));
        self.all = all;
    }

    fn set_oldest(&mut self, tenant: &TenantId, oldest: Option<i64>) {
        let before = match oldest {
            Some(at) => self.oldest.insert(tenant.clone(), at),
            None => self.oldest.remove(tenant),
        };
        if let Some(before) = before {
            self.by_age.remove(&(before, tenant.clone()));
        }
        if let Some(at) = oldest {
            self.by_age.insert((at, tenant.clone()));
        }
    }

    fn of(&self, tenant: &TenantId) -> WaitingCount {
        let mut tally = self.mine.get(tenant).copied().unwrap_or_default();
        tally.add(self.others.get(tenant).copied().unwrap_or_default());
        tally.count(self.oldest.get(tenant).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mine_and_what_the_others_say_add_up() {
        let counts = Counts::default();
        let (a, b) = (TenantId::new("a"), TenantId::new("b"));
        counts.add(&a, Tally::waiting(3));
        counts.add(&a, Tally::unclaimed(-1));
        assert_eq!((counts.of(&a).queued, counts.of(&a).unclaimed), (3, 2));
        // Another node accepted five of b and took two of a.
        let others = HashMap::from([(b.clone(), Tally::waiting(5)), (a.clone(), Tally::unclaimed(-2))]);
        assert_eq!(counts.set_others(others), vec![b.clone()]);
        assert_eq!((counts.of(&a).queued, counts.of(&a).unclaimed), (3, 0));
        assert_eq!((counts.in_all().queued, counts.in_all().unclaimed), (8, 5));
        counts.set_oldest(&b, Some(7));
        assert_eq!(counts.in_all().oldest, Some(wire::timestamp(7)));
        // A new life: all of it is the others'.
        let others = HashMap::from([(a.clone(), Tally::waiting(1))]);
        counts.begin_life();
        counts.set_others(others);
        assert_eq!((counts.in_all().queued, counts.of(&b)), (1, WaitingCount::default()));
    }
}
