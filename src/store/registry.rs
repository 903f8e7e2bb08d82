//! The registry: suspensions, first publications, and the list's token.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use jiff::{SignedDuration, Timestamp};

use super::{Session, StoreEnd, StoreResult, TailPlace};
use crate::redact::RedactKey;
use crate::send::{SendId, TenantId};
use crate::source::{Neighbour, SourceTold};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SuspensionScope {
    Tenant { tenant: TenantId, workflow: Option<String> },
    Host { host: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspension {
    pub id: SendId,
    pub scope: SuspensionScope,
    pub reason: String,
    /// The API client's name.
    pub by: String,
    pub at: Timestamp,
    /// Lifted: when and by whom. Kept for the record.
    pub lifted: Option<(Timestamp, String)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    pub first: HashMap<IpAddr, Timestamp>,
    /// When those that are published no longer were first missed. A tier does not remember it.
    pub left: HashMap<IpAddr, Timestamp>,
    /// Zero until a digest was given.
    pub sync_token: u64,
    /// When this store first published anything. The addresses of that call have this very instant in `first`, and no
    /// other has: they need no further notice, at any later start either, wherever the clock stood then or stands now.
    pub first_start: Timestamp,
}

impl Published {
    /// Takes in what is published at `now`.
    pub fn add(&mut self, addresses: Vec<IpAddr>, now: Timestamp) {
        let at = if self.first.is_empty() {
            self.first_start = now;
            now
        } else if now == self.first_start {
            now.saturating_add(SignedDuration::from_nanos(1)).unwrap_or(Timestamp::MIN)
        } else {
            now
        };
        self.left.retain(|address, _| !addresses.contains(address));
        for gone in self.first.keys().filter(|address| !addresses.contains(address)) {
            self.left.entry(*gone).or_insert(now);
        }
        for address in addresses {
            self.first.entry(address).or_insert(at);
        }
    }
}

/// A live process that shares a store with others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSeen {
    pub name: String,
    pub version: String,
    /// Since its lease was last renewed, by the store's clock.
    pub renewed_ago: Duration,
    /// How long it is.
    pub lease: Duration,
    pub sources: Vec<IpAddr>,
    pub load: NodeLoad,
}

/// What one process has taken on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeLoad {
    /// Taken from the queue, and not begun.
    pub queued: u64,
    pub in_flight: u64,
}

/// What other processes did on the same store, told so that nobody here has to look for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    Ended(Vec<(SendId, TailPlace)>),
    /// Ends that the store gave here by itself, beside any call.
    Closed(Vec<StoreEnd>),
    /// More waits than before: of these tenants, or of any where none is named.
    Waiting(Vec<TenantId>),
    /// Another process has claimed something for this one.
    Handed,
    /// Suspensions were made or lifted: nothing more begins here until they are loaded.
    Suspensions,
    /// This process's session is over.
    Fenced,
}

/// The little that is remembered beside sends: who is suspended, what was published when, and the store's own key.
pub trait Registry: std::marker::Send + Sync + 'static {
    /// Keys everything shown as redacted; fixed for the life of the store.
    fn redact_key(&self) -> RedactKey;

    fn suspend(&self, suspension: Suspension) -> StoreResult<'_, ()>;
    /// `false`: no such suspension is in force.
    fn lift(&self, id: SendId, at: Timestamp, by: String) -> StoreResult<'_, bool>;
    /// Those in force and those lifted, newest first.
    fn suspensions(&self) -> StoreResult<'_, Vec<Suspension>>;

    /// What [`Self::suspensions`] answered last is in force in this process. Where several processes share a store,
    /// none of them begins anything before it has said so of the newest.
    fn suspensions_loaded(&self) {}

    /// What comes from other processes; `None` where there are none, and for every call but the first.
    fn news(&self) -> Option<tokio::sync::mpsc::Receiver<News>> {
        None
    }

    /// The live processes that share this store, by name, as they last told of themselves; none where it is one's own.
    fn nodes(&self) -> StoreResult<'_, Vec<NodeSeen>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// How much this process has taken on: the others see it a moment later.
    fn tell_load(&self, _load: NodeLoad) {}

    /// From these addresses this process sends, and from no others: those that it may not use, as another process does,
    /// with that one's name. Whoever has one keeps it until it is let go or its process is long dead.
    fn hold_sources<'a>(
        &'a self,
        _by: &'a Session,
        _addresses: Vec<IpAddr>,
    ) -> StoreResult<'a, HashMap<IpAddr, String>> {
        Box::pin(async { Ok(HashMap::new()) })
    }

    /// Tells the other processes what this one can send from, and answers what they can; none where the store is one's own.
    fn tell_sources<'a>(&'a self, _by: &'a Session, _sources: Vec<SourceTold>) -> StoreResult<'a, Vec<Neighbour>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// When each address was first published; addresses not seen before get `now`. Also the list's `syncToken`:
    /// `digest` is of the list as served, the answer the Unix second at which it last changed, never falling.
    /// `None` leaves the token as it is: what is served depends on first publication, so that is asked first.
    fn publish(&self, addresses: Vec<IpAddr>, digest: Option<[u8; 32]>, now: Timestamp) -> StoreResult<'_, Published>;
}

/// The token after a change at `now`: the Unix second, and past the one before, so that two changes within a second
/// are told apart and the clock may step back.
pub fn next_sync_token(before: u64, now: Timestamp) -> u64 {
    u64::try_from(now.as_second()).unwrap_or(0).max(before + 1)
}

/// Lifts the suspension where it is in force.
pub(in crate::store) fn lift_in(suspensions: &mut [Suspension], id: SendId, at: Timestamp, by: String) -> bool {
    match suspensions.iter_mut().find(|suspension| suspension.id == id && suspension.lifted.is_none()) {
        Some(suspension) => {
            suspension.lifted = Some((at, by));
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_gone_keeps_the_time_at_which_it_was_missed_until_it_is_back() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let [one, two]: [IpAddr; 2] = [1, 2].map(|last| IpAddr::from([198, 51, 100, last]));
        let mut published = Published::default();
        let mut left = Vec::new();
        for (second, addresses) in [(1, vec![one, two]), (2, vec![one]), (3, vec![one]), (4, vec![two]), (5, vec![one])]
        {
            published.add(addresses, at(second));
            left.push([one, two].map(|address| published.left.get(&address).map(|at| at.as_second())));
        }
        assert_eq!(left, [[None, None], [None, Some(2)], [None, Some(2)], [Some(4), None], [None, Some(5)]]);
    }

    #[test]
    fn only_what_the_first_call_published_has_the_instant_of_the_first_start() {
        let start = Timestamp::UNIX_EPOCH;
        let [one, two, three, four]: [IpAddr; 4] = [1, 2, 3, 4].map(|last| IpAddr::from([198, 51, 100, last]));
        let mut published = Published::default();
        published.add(vec![one, two], start);
        for (address, nanos) in [(three, 0), (four, -1)] {
            published.add(vec![one, address], start.saturating_add(SignedDuration::from_nanos(nanos)).unwrap());
        }
        let has = |address| published.first[&address] == published.first_start;
        assert_eq!([one, two, three, four].map(has), [true, true, false, false]);
    }
}
