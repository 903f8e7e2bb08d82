//! The API's places: who may stay connected, and who makes room for whom.
//!
//! A connection begins as a stranger's. Strangers have few places and little time, in all and without a call; the
//! first token that is one of ours makes it a client's connection, which may stay while it is used. Where strangers'
//! places are all taken, the one who has been a stranger for longest makes room, out of the network that has the most:
//! so a caller with a token gets in whatever strangers do. Where the clients' are all taken, the client with the most
//! connections makes room: its idlest one, or the one that has been busy for longest where another has fewer.
//!
//! Of each connection it is known how many calls are under way and which answers wait to be taken. Not here: reading
//! tokens ([`super::access`]), and how a connection is ended ([`super::serve`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::answers::Untaken;
use crate::clock;
use crate::files;
use crate::limits;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Connections in all.
    pub(crate) all: usize,
    /// Of them, those of strangers.
    pub(crate) strangers: usize,
    /// Of them, those of one IPv4 address or IPv6 network of /64.
    pub(crate) strangers_of_network: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        let all = files::of_callers(limits::API_CONNECTIONS);
        let strangers = limits::API_STRANGERS.min(all / 2);
        Self { all, strangers, strangers_of_network: limits::API_STRANGERS_OF_NETWORK.min(strangers / 2) }
    }
}

#[derive(Clone)]
pub(crate) struct Seats {
    bounds: Bounds,
    inside: Arc<Mutex<Inside>>,
}

#[derive(Default)]
struct Inside {
    /// Of the next connection: they count up, so that the first is the oldest.
    number: u64,
    strangers: BTreeMap<u64, Arc<Presence>>,
    networks: HashMap<IpAddr, BTreeSet<u64>>,
    clients: HashMap<Arc<str>, BTreeMap<u64, Arc<Presence>>>,
    of_clients: usize,
}

/// One connection, as its calls and its own task see it.
pub(crate) struct Presence {
    number: u64,
    network: IpAddr,
    opened: Instant,
    places: Seats,
    load: Mutex<Load>,
    answers: Mutex<Answers>,
    /// Its place is another's now.
    gone: AtomicBool,
    moved: Notify,
}

struct Load {
    /// `None`: a stranger.
    client: Option<Arc<str>>,
    /// Under way: until the last byte of the answer was taken or dropped.
    calls: usize,
    /// When the last call began or ended; when it was opened, before any.
    since: Instant,
    /// Its task has ended.
    left: bool,
}

/// Answers over HTTP/2, whose socket does not tell that nobody takes them. Under a lock of their own: the last holder
/// of one may be whoever looks at it here, and what it drops is a call's end, which takes the other lock.
#[derive(Default)]
struct Answers {
    all: Vec<Weak<Untaken>>,
    /// So many are kept before those that are gone are let go.
    kept: usize,
}

/// A call under way.
pub(crate) struct Begun(Arc<Presence>);

/// A connection's place; dropping it gives it back.
pub(crate) struct Seat(Arc<Presence>);

/// What a connection is to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Stay, and ask again then.
    Stay(Instant),
    /// Take no more calls, end when those under way have; and ask again then.
    Finish(Instant),
    Close,
}

impl Seats {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, inside: Arc::default() }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stranger's place, another's if need be.
    pub(crate) fn enter(&self, peer: IpAddr) -> Seat {
        let (network, now) = (network_of(peer), clock::monotonic());
        let mut inside = self.inside();
        let of_network = inside.networks.get(&network).map_or(0, BTreeSet::len);
        let from = if of_network >= self.bounds.strangers_of_network {
            Some(network)
        } else if inside.strangers.len() >= self.bounds.strangers {
            inside.networks.iter().max_by_key(|(_, numbers)| numbers.len()).map(|(network, _)| *network)
        } else {
            None
        };
        let oldest = from.and_then(|network| inside.networks.get(&network)?.first().copied());
        if let Some(oldest) = oldest.and_then(|number| inside.take_stranger(number)) {
            oldest.evict();
        }
        let number = inside.number;
        inside.number += 1;
        let presence = Arc::new(Presence {
            number,
            network,
            opened: now,
            places: self.clone(),
            load: Mutex::new(Load { client: None, calls: 0, since: now, left: false }),
            answers: Mutex::default(),
            gone: AtomicBool::new(false),
            moved: Notify::new(),
        });
        inside.strangers.insert(number, presence.clone());
        inside.networks.entry(network).or_default().insert(number);
        Seat(presence)
    }
}

impl Inside {
    fn take_stranger(&mut self, number: u64) -> Option<Arc<Presence>> {
        let presence = self.strangers.remove(&number)?;
        if let Some(numbers) = self.networks.get_mut(&presence.network) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.networks.remove(&presence.network);
            }
        }
        Some(presence)
    }

    fn take_client(&mut self, client: &Arc<str>, number: u64) -> Option<Arc<Presence>> {
        let own = self.clients.get_mut(client)?;
        let presence = own.remove(&number)?;
        if own.is_empty() {
            self.clients.remove(client);
        }
        self.of_clients -= 1;
        Some(presence)
    }

    /// Whose connection ends for one more of this client.
    fn victim(&self, client: &Arc<str>) -> Option<(Arc<str>, u64)> {
        let (most, theirs) = self.clients.iter().max_by_key(|(_, theirs)| theirs.len())?;
        let of_own = self.clients.get(client).map_or(0, BTreeMap::len);
        let oldest = |of: &BTreeMap<u64, Arc<Presence>>, idle: bool| {
            let loads = of.values().map(|presence| {
                let load = presence.load();
                (load.calls, load.since, presence.number)
            });
            let among = loads.filter(|(calls, ..)| !idle || *calls == 0);
            among.min_by_key(|(_, since, _)| *since).map(|(.., number)| number)
        };
        let busy = || {
            let fewer = of_own + 1 < theirs.len();
            fewer.then(|| oldest(theirs, false)).flatten()
        };
        if let Some(number) = oldest(theirs, true).or_else(busy) {
            return Some((most.clone(), number));
        }
        self.clients.iter().find_map(|(client, theirs)| Some((client.clone(), oldest(theirs, true)?)))
    }
}

impl Seat {
    pub(crate) fn presence(&self) -> &Arc<Presence> {
        &self.0
    }

    /// Ready when the place was given to another.
    pub(crate) async fn taken(&self) {
        loop {
            self.0.moved.notified().await;
            if self.0.gone.load(Ordering::Acquire) {
                return;
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inside = self.0.places.inside();
        let mut load = self.0.load();
        load.left = true;
        let client = load.client.clone();
        drop(load);
        match client {
            Some(client) => drop(inside.take_client(&client, self.0.number)),
            None => drop(inside.take_stranger(self.0.number)),
        }
    }
}

impl Presence {
    fn load(&self) -> MutexGuard<'_, Load> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn evict(&self) {
        tracing::debug!(network = %self.network, "a connection to the API made room for another");
        self.gone.store(true, Ordering::Release);
        self.moved.notify_one();
    }

    /// A call came with a token of this client. `false`: there is no place for one more connection of it.
    pub(crate) fn admit(self: &Arc<Self>, client: &Arc<str>) -> bool {
        if self.load().client.is_some() {
            return true;
        }
        let mut inside = self.places.inside();
        if self.load().left {
            return true;
        }
        let bounds = self.places.bounds;
        if inside.of_clients >= bounds.all - bounds.strangers {
            let Some((of, number)) = inside.victim(client) else { return false };
            if let Some(victim) = inside.take_client(&of, number) {
                victim.evict();
            }
        }
        // Also where its stranger's place was just given away: it has shown what it lacked.
        inside.take_stranger(self.number);
        self.gone.store(false, Ordering::Release);
        inside.clients.entry(client.clone()).or_default().insert(self.number, self.clone());
        inside.of_clients += 1;
        self.load().client = Some(client.clone());
        true
    }

    pub(crate) fn begin(self: &Arc<Self>) -> Begun {
        let mut load = self.load();
        load.calls += 1;
        load.since = clock::monotonic();
        drop(load);
        Begun(self.clone())
    }

    /// This answer counts as unread while nothing of it is taken.
    pub(crate) fn watch(&self, answer: &Arc<Untaken>) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.all.len() >= answers.kept {
            answers.all.retain(|answer| answer.strong_count() > 0);
            answers.kept = (2 * answers.all.len()).max(8);
        }
        answers.all.push(Arc::downgrade(answer));
    }

    fn has_unread(&self, now: Instant) -> bool {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let held: Vec<Arc<Untaken>> = answers.all.iter().filter_map(Weak::upgrade).collect();
        drop(answers);
        held.iter().filter_map(|answer| answer.since()).any(|since| now >= since + limits::API_WRITE_STALL)
    }

    pub(crate) fn verdict(&self, now: Instant) -> Verdict {
        if self.has_unread(now) {
            tracing::debug!("a caller took nothing of an answer: its connection is closed");
            return Verdict::Close;
        }
        let load = self.load();
        let idle = |time| (load.calls == 0).then(|| load.since + time);
        let end = match &load.client {
            Some(_) => idle(limits::API_IDLE),
            None => {
                let life = self.opened + limits::API_STRANGER_LIFE;
                Some(idle(limits::API_STRANGER_IDLE).map_or(life, |idle| idle.min(life)))
            }
        };
        let look_again = now + limits::API_WRITE_STALL / 4;
        match end {
            Some(end) if now >= end + limits::API_FINISH => Verdict::Close,
            Some(end) if now >= end => Verdict::Finish(end + limits::API_FINISH),
            Some(end) => Verdict::Stay(end.min(look_again)),
            None => Verdict::Stay(look_again),
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut load = self.0.load();
        load.calls -= 1;
        load.since = clock::monotonic();
    }
}

/// What counts as one peer: an IPv4 address, or an IPv6 network of /64, of which one host has every address.
pub(crate) fn network_of(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests;
