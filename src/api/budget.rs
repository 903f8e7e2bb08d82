//! What callers make us hold, counted from the first byte of a call to the last byte of its answer that was taken.
//!
//! One pot for heads, bodies, what is made of them, waits and answers. Nobody has more of it than its share: a tenant
//! (all its tokens together), a client that may name any tenant, or all who have not said who they are. Reading has at
//! most half of everything, so that readers keep nobody from sending, and callers who may operate have a part that
//! nobody else can use up. Nothing here waits: what does not fit is refused, and the caller told to come back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::limits;
use crate::send::TenantId;

/// Who a call is counted for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    key: Arc<str>,
    kind: Wideness,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wideness {
    /// One tenant, or callers that nobody knows.
    One,
    /// A client that speaks for any tenant.
    Many,
    /// As [`Wideness::One`] and [`Wideness::Many`], and what operators have to themselves is open to it.
    Operator { many: bool },
}

impl Holder {
    /// All whom no token has named.
    pub(crate) fn nobody() -> Self {
        Self { key: "nobody".into(), kind: Wideness::One }
    }

    pub(crate) fn tenant(tenant: &str, operate: bool) -> Self {
        let kind = if operate { Wideness::Operator { many: false } } else { Wideness::One };
        Self { key: format!("tenant {tenant}").into(), kind }
    }

    pub(crate) fn client(name: &str, operate: bool) -> Self {
        let kind = if operate { Wideness::Operator { many: true } } else { Wideness::Many };
        Self { key: format!("client {name}").into(), kind }
    }

    pub(crate) fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// Under which name it takes turns at what is written for it.
    pub(crate) fn in_line(&self) -> TenantId {
        TenantId::new(self.key.clone())
    }

    pub(crate) fn operates(&self) -> bool {
        matches!(self.kind, Wideness::Operator { .. })
    }

    /// Whether it speaks for any tenant.
    pub(crate) fn is_many(&self) -> bool {
        matches!(self.kind, Wideness::Many | Wideness::Operator { many: true })
    }
}

/// What something is held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Sending,
    Reading,
}

/// How a pot is shared; the unit is whatever is counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shares {
    pub(crate) all: usize,
    /// Of all, what only operators can take.
    pub(crate) reserve: usize,
    /// The most of one tenant; a client of many has twice as much.
    pub(crate) one: usize,
    /// Reading has this part of each of the above: one in so many.
    pub(crate) reading_one_in: usize,
}

/// Bytes of the API's calls.
pub(crate) const BYTES: Shares = Shares {
    all: limits::API_BYTES as usize,
    reserve: limits::API_BYTES_RESERVE as usize,
    one: limits::API_BYTES as usize / limits::API_HOLDERS_MIN,
    reading_one_in: 2,
};

/// Tails.
pub(crate) const TAILS: Shares =
    Shares { all: limits::TAILS, reserve: limits::TAILS_RESERVE, one: limits::TAILS_OF_ONE, reading_one_in: 1 };

#[derive(Clone)]
pub(crate) struct Budget(Arc<Pot>);

struct Pot {
    shares: Shares,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    by_all: Amount,
    /// Of those who hold any now.
    by_one: HashMap<Arc<str>, Amount>,
}

#[derive(Clone, Copy, Default)]
struct Amount {
    all: usize,
    reading: usize,
}

impl Amount {
    fn with(self, more: usize, purpose: Purpose) -> Self {
        let reading = if purpose == Purpose::Reading { more } else { 0 };
        Self { all: self.all + more, reading: self.reading + reading }
    }

    fn without(self, less: usize, purpose: Purpose) -> Self {
        let reading = if purpose == Purpose::Reading { less } else { 0 };
        Self { all: self.all - less, reading: self.reading - reading }
    }

    /// What is read already keeps nobody from sending: its bound is asked of those who would read more.
    fn fits(self, most: usize, reading_one_in: usize, purpose: Purpose) -> bool {
        self.all <= most && (purpose == Purpose::Sending || self.reading <= most / reading_one_in)
    }
}

impl Budget {
    pub(crate) fn new(shares: Shares) -> Self {
        Self(Arc::new(Pot { shares, held: Mutex::default() }))
    }

    /// Room for so much, where there is as much, in all and for this holder.
    pub(crate) fn room(&self, holder: &Holder, purpose: Purpose, amount: usize) -> Option<Room> {
        let mut room = Room { budget: self.clone(), holder: holder.clone(), purpose, amount: 0 };
        room.cover(amount).then_some(room)
    }
}

/// A part of a pot; it goes back when dropped.
pub(crate) struct Room {
    budget: Budget,
    holder: Holder,
    purpose: Purpose,
    amount: usize,
}

impl Room {
    #[cfg(test)]
    pub(crate) fn amount(&self) -> usize {
        self.amount
    }

    /// Makes it at least so much, where there is as much; it stays as it is where there is not.
    pub(crate) fn cover(&mut self, amount: usize) -> bool {
        let Some(more) = amount.checked_sub(self.amount).filter(|more| *more > 0) else { return true };
        let Pot { shares, held } = &*self.budget.0;
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        let most_of_all = if self.holder.operates() { shares.all } else { shares.all - shares.reserve };
        let most_of_one = if self.holder.is_many() { 2 * shares.one } else { shares.one };
        let by_all = held.by_all.with(more, self.purpose);
        let by_one = held.by_one.get(&self.holder.key).copied().unwrap_or_default().with(more, self.purpose);
        let part = shares.reading_one_in;
        if !by_all.fits(most_of_all, part, self.purpose) || !by_one.fits(most_of_one, part, self.purpose) {
            return false;
        }
        held.by_all = by_all;
        held.by_one.insert(self.holder.key.clone(), by_one);
        drop(held);
        self.amount = amount;
        true
    }

    /// As [`Self::cover`], but for what counts with the call already.
    pub(crate) fn cover_beyond(&mut self, bytes: usize) -> bool {
        self.cover(bytes.saturating_sub(limits::API_CALL_INCLUDED))
    }

    /// Gives back what goes beyond so much.
    pub(crate) fn shrink(&mut self, amount: usize) {
        let Some(less) = self.amount.checked_sub(amount).filter(|less| *less > 0) else { return };
        self.amount = amount;
        let mut held = self.budget.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.by_all = held.by_all.without(less, self.purpose);
        let Some(by_one) = held.by_one.get_mut(&self.holder.key) else { return };
        *by_one = by_one.without(less, self.purpose);
        if by_one.all == 0 {
            held.by_one.remove(&self.holder.key);
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARES: Shares = Shares { all: 100, reserve: 10, one: 25, reading_one_in: 2 };

    /// How much one more of these can take, a unit at a time, and keeps.
    fn fill(budget: &Budget, holder: &Holder, purpose: Purpose) -> (usize, Room) {
        let mut room = budget.room(holder, purpose, 0).expect("nothing always fits");
        while room.cover(room.amount() + 1) {}
        (room.amount(), room)
    }

    #[test]
    fn nobody_takes_more_than_its_share_and_readers_half_of_it() {
        for (holder, sending, reading) in [
            (Holder::nobody(), 25, 12),
            (Holder::tenant("acme", false), 25, 12),
            (Holder::tenant("acme", true), 25, 12),
            (Holder::client("nodes", false), 50, 25),
            (Holder::client("operator", true), 50, 25),
        ] {
            let budget = Budget::new(SHARES);
            assert_eq!(fill(&budget, &holder, Purpose::Sending).0, sending, "{holder:?}");
            let (read, kept) = fill(&budget, &holder, Purpose::Reading);
            assert_eq!(read, reading, "{holder:?}");
            // Reading in full, it sends with the rest; its own second token is the same holder.
            assert_eq!(fill(&budget, &holder, Purpose::Sending).0, sending - reading, "{holder:?}");
            drop(kept);
            assert!(budget.0.held.lock().unwrap().by_one.is_empty());
            assert_eq!(budget.0.held.lock().unwrap().by_all.all, 0);
        }
    }

    #[test]
    fn all_together_leave_what_operators_need() {
        let budget = Budget::new(SHARES);
        let tenants: Vec<_> = (0..9).map(|n| Holder::tenant(&n.to_string(), false)).collect();
        let kept: Vec<_> = tenants.iter().map(|tenant| fill(&budget, tenant, Purpose::Sending)).collect();
        assert_eq!(kept.iter().map(|(amount, _)| amount).sum::<usize>(), 90);
        let operator = Holder::client("operator", true);
        assert_eq!(fill(&budget, &operator, Purpose::Reading).0, 10);
        drop(kept);
        // Readers alone fill half, and others send.
        let kept: Vec<_> = tenants.iter().map(|tenant| fill(&budget, tenant, Purpose::Reading)).collect();
        assert_eq!(kept.iter().map(|(amount, _)| amount).sum::<usize>(), 45);
        let (more, _kept) = fill(&budget, &operator, Purpose::Reading);
        assert_eq!(more, 5);
        assert_eq!(fill(&budget, &tenants[0], Purpose::Sending).0, 25 - kept[0].0);
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        let budget = Budget::new(SHARES);
        let acme = Holder::tenant("acme", false);
        let mut room = budget.room(&acme, Purpose::Sending, 20).expect("room");
        assert!(!room.cover(26) && room.amount() == 20);
        assert!(budget.room(&acme, Purpose::Sending, 6).is_none());
        room.shrink(5);
        assert!(room.cover(3) && room.amount() == 5);
        assert_eq!(budget.room(&acme, Purpose::Sending, 20).map(|room| room.amount()), Some(20));
        drop(room);
        assert!(budget.0.held.lock().unwrap().by_one.is_empty());
    }
}
