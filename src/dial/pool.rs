//! Idle connections, kept for a short while so that the next request to the same place needs no new one.
//!
//! Keyed by tenant, source, scheme, host and port. Reuse risks writing to a connection that the receiver is just
//! closing, and a request so lost is never sent again; so a destination's connections are reused only after one of
//! them was seen to stay open, idle, for [`REUSE_PROVEN_AFTER`], and one that turns out stale turns reuse off for
//! [`REUSE_OFF_AFTER_STALE`]. Nothing here writes.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::clock;
use crate::limits::{
    CONNECTION_AGE_MAX, IDLE_PER_DESTINATION, REUSE_MEMORY_MAX, REUSE_OFF_AFTER_STALE, REUSE_PROVEN_AFTER,
};
use crate::policy::Destination;
use crate::send::TenantId;
use crate::source::Source;

/// A connection that can lie idle.
pub trait Idle: Send {
    /// Lets it notice what happened meanwhile: `true` while it is open and nothing came unasked.
    fn is_quiet(&mut self) -> bool;
    fn source(&self) -> &Source;
    fn opened_at(&self) -> Instant;
    /// How long it may lie idle at most, where the receiver has said so.
    fn idle_max(&self) -> Option<Duration>;
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    tenant: TenantId,
    destination: Destination,
}

struct Shelf<C> {
    idle: Vec<Parked<C>>,
    reuse: Reuse,
    used: Instant,
}

struct Parked<C> {
    connection: C,
    since: Instant,
}

impl<C: Idle> Parked<C> {
    /// How long it is kept.
    fn kept(&self, keep_alive: Duration) -> Duration {
        self.connection.idle_max().map_or(keep_alive, |idle_max| idle_max.min(keep_alive))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reuse {
    /// Not yet seen to keep a connection open: one is kept, to find out.
    Unknown,
    Proven,
    OffUntil(Instant),
}

struct Shelves<C> {
    by_key: HashMap<Key, Shelf<C>>,
    /// Idle connections in all.
    idle: usize,
    /// Grows when everything was dropped: a connection from before does not come back.
    generation: u64,
}

/// One for the process.
pub struct Pool<C> {
    places: Mutex<Shelves<C>>,
    /// Most idle connections in all.
    most: usize,
}

/// Since when a connection is held; one from before a [`Pool::clear`] is not taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation(u64);

impl<C: Idle> Pool<C> {
    /// Keeps no more than `most` idle connections.
    pub fn new(most: usize) -> Self {
        Self { places: Mutex::new(Shelves { by_key: HashMap::new(), idle: 0, generation: 0 }), most }
    }

    pub fn generation(&self) -> Generation {
        Generation(self.lock().generation)
    }

    /// An idle connection that may be used, the one used last first; `usable` says whether its source may still be
    /// left from. Those found unfit are closed.
    pub fn take(
        &self,
        tenant: &TenantId,
        destination: &Destination,
        keep_alive: Duration,
        usable: impl Fn(&Source) -> bool,
    ) -> Option<C> {
        let now = clock::monotonic();
        let key = Key { tenant: tenant.clone(), destination: destination.clone() };
        // Closed after the lock is given back.
        let mut unfit = Vec::new();
        let mut places = self.lock();
        let place = places.by_key.get_mut(&key)?;
        place.used = now;
        let mut found = None;
        while let Some(mut parked) = place.idle.pop() {
            let idle = now.duration_since(parked.since);
            let fit = idle < parked.kept(keep_alive)
                && now.duration_since(parked.connection.opened_at()) < CONNECTION_AGE_MAX
                && usable(parked.connection.source())
                && parked.connection.is_quiet();
            if !fit {
                unfit.push(parked);
                continue;
            }
            if idle >= REUSE_PROVEN_AFTER && place.reuse == Reuse::Unknown {
                place.reuse = Reuse::Proven;
            }
            if place.reuse == Reuse::Proven {
                found = Some(parked.connection);
                break;
            }
            // Still being watched: it stays.
            place.idle.push(parked);
            break;
        }
        places.idle -= unfit.len() + usize::from(found.is_some());
        drop(places);
        drop(unfit);
        found
    }

    /// Keeps a connection for the next request, where there is room and reuse is not off.
    pub fn park(&self, tenant: &TenantId, destination: &Destination, generation: Generation, connection: C) {
        let now = clock::monotonic();
        let mut places = self.lock();
        if places.generation != generation.0
            || places.idle >= self.most
            || now.duration_since(connection.opened_at()) >= CONNECTION_AGE_MAX
            || connection.idle_max().is_some_and(|idle_max| idle_max.is_zero())
        {
            return;
        }
        let Some(place) = places.place(tenant, destination, now) else { return };
        let room = match place.reuse {
            Reuse::Unknown => 1,
            Reuse::Proven => IDLE_PER_DESTINATION,
            Reuse::OffUntil(until) if until > now => 0,
            Reuse::OffUntil(_) => {
                place.reuse = Reuse::Unknown;
                1
            }
        };
        if place.idle.len() < room {
            place.idle.push(Parked { connection, since: now });
            places.idle += 1;
        }
    }

    /// A reused connection had been closed by the time the request was written.
    pub fn stale(&self, tenant: &TenantId, destination: &Destination) {
        let now = clock::monotonic();
        let mut places = self.lock();
        let Some(place) = places.place(tenant, destination, now) else { return };
        place.reuse = Reuse::OffUntil(now + REUSE_OFF_AFTER_STALE);
        let closed = std::mem::take(&mut place.idle);
        places.idle -= closed.len();
        drop(places);
        drop(closed);
    }

    /// Closes what lay idle too long, and looks at those that are watched. Called every quarter second or so.
    pub fn tend(&self, keep_alive: Duration) {
        let now = clock::monotonic();
        let mut closed = Vec::new();
        let mut places = self.lock();
        let full = places.by_key.len() >= REUSE_MEMORY_MAX / 2;
        places.by_key.retain(|_, place| {
            for mut parked in std::mem::take(&mut place.idle) {
                let idle = now.duration_since(parked.since);
                let watched = place.reuse == Reuse::Unknown && idle >= REUSE_PROVEN_AFTER;
                if idle >= parked.kept(keep_alive) || (watched && !parked.connection.is_quiet()) {
                    closed.push(parked);
                    continue;
                }
                if watched {
                    place.reuse = Reuse::Proven;
                }
                place.idle.push(parked);
            }
            let forget = if full { Duration::from_secs(10) } else { REUSE_OFF_AFTER_STALE };
            !place.idle.is_empty() || now.duration_since(place.used) < forget
        });
        places.idle -= closed.len();
        drop(places);
        drop(closed);
    }

    /// Closes everything: what the connections were judged by has changed. How destinations treat idle connections
    /// is still known.
    pub fn clear(&self) {
        let mut places = self.lock();
        places.generation += 1;
        places.idle = 0;
        let closed: Vec<_> = places.by_key.values_mut().map(|place| std::mem::take(&mut place.idle)).collect();
        drop(places);
        drop(closed);
    }

    /// Idle connections in all.
    pub fn len(&self) -> usize {
        self.lock().idle
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shelves<C>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C> Shelves<C> {
    /// `None`: too many destinations are remembered already.
    fn place(&mut self, tenant: &TenantId, destination: &Destination, now: Instant) -> Option<&mut Shelf<C>> {
        let key = Key { tenant: tenant.clone(), destination: destination.clone() };
        if self.by_key.len() >= REUSE_MEMORY_MAX && !self.by_key.contains_key(&key) {
            return None;
        }
        let fresh = || Shelf { idle: Vec::new(), reuse: Reuse::Unknown, used: now };
        let place = self.by_key.entry(key).or_insert_with(fresh);
        place.used = now;
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Egress, SourceSettings};
    use crate::limits::IDLE_TOTAL;
    use crate::policy::CheckedUrl;
    use crate::publish::{Notice, PublishedList};
    use crate::source::Sources;

    struct Fake {
        source: Source,
        opened_at: Instant,
        idle_max: Option<Duration>,
    }

    impl Idle for Fake {
        fn is_quiet(&mut self) -> bool {
            true
        }
        fn source(&self) -> &Source {
            &self.source
        }
        fn opened_at(&self) -> Instant {
            self.opened_at
        }
        fn idle_max(&self) -> Option<Duration> {
            self.idle_max
        }
    }

    const KEEP_ALIVE: Duration = Duration::from_secs(3);

    fn fake() -> Fake {
        let address = std::net::IpAddr::from([127, 0, 0, 1]);
        let pair = SourceSettings { public: address, bind: address, pool: std::sync::Arc::from("default") };
        let egress = Egress {
            published: std::sync::Arc::new(PublishedList::parse("127.0.0.1").unwrap()),
            published_path: "public-ips.txt".into(),
            notice: Duration::ZERO,
            sources: vec![pair],
            verify: None,
        };
        let source = Sources::new(&egress, &Notice::default(), None).all().remove(0);
        Fake { source: (*source).clone(), opened_at: clock::monotonic(), idle_max: None }
    }

    fn destination(port: usize) -> Destination {
        let url = CheckedUrl::parse(&format!("http://hook.example.com:{}/", 1024 + port));
        url.map(|url| url.destination().clone()).unwrap_or_else(|denial| panic!("{denial:?}"))
    }

    #[tokio::test(start_paused = true)]
    async fn what_lies_idle_is_bounded_per_destination_and_in_all() {
        let pool = Pool::new(IDLE_TOTAL);
        let tenant = TenantId::new("acme");
        let park = |port: usize| pool.park(&tenant, &destination(port), pool.generation(), fake());
        // One is watched; the others are closed until it has proven itself.
        for _ in 0..3 {
            park(0);
        }
        assert_eq!(pool.len(), 1);
        tokio::time::advance(REUSE_PROVEN_AFTER).await;
        pool.tend(KEEP_ALIVE);
        for _ in 0..2 * IDLE_PER_DESTINATION {
            park(0);
        }
        assert_eq!(pool.len(), IDLE_PER_DESTINATION);
        for port in 1..=IDLE_TOTAL {
            park(port);
        }
        assert_eq!(pool.len(), IDLE_TOTAL);
        tokio::time::advance(KEEP_ALIVE).await;
        pool.tend(KEEP_ALIVE);
        assert!(pool.is_empty());
        // What was learnt stays for a while, and not for ever.
        assert!(pool.lock().by_key.len() > IDLE_TOTAL / 2);
        tokio::time::advance(REUSE_OFF_AFTER_STALE).await;
        pool.tend(KEEP_ALIVE);
        assert_eq!(pool.lock().by_key.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_lies_idle_no_longer_than_its_receiver_says() {
        for (says, kept) in [
            (Duration::ZERO, false),
            (Duration::from_millis(900), false),
            (Duration::from_millis(1100), true),
            (Duration::from_secs(60), true),
        ] {
            let pool = Pool::new(IDLE_TOTAL);
            let (tenant, place) = (TenantId::new("acme"), destination(0));
            let parked = Fake { idle_max: Some(says), ..fake() };
            pool.park(&tenant, &place, pool.generation(), parked);
            tokio::time::advance(Duration::from_secs(1)).await;
            assert_eq!(pool.take(&tenant, &place, KEEP_ALIVE, |_| true).is_some(), kept, "{says:?}");
            pool.tend(KEEP_ALIVE);
            tokio::time::advance(KEEP_ALIVE).await;
            pool.tend(KEEP_ALIVE);
            assert!(pool.is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_from_before_a_clearing_does_not_come_back() {
        let pool = Pool::new(IDLE_TOTAL);
        let (tenant, place) = (TenantId::new("acme"), destination(0));
        let before = pool.generation();
        pool.clear();
        pool.park(&tenant, &place, before, fake());
        assert!(pool.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_whose_source_may_no_longer_be_left_from_is_closed() {
        let pool = Pool::new(IDLE_TOTAL);
        let (tenant, place) = (TenantId::new("acme"), destination(0));
        pool.park(&tenant, &place, pool.generation(), fake());
        tokio::time::advance(REUSE_PROVEN_AFTER).await;
        assert!(pool.take(&tenant, &place, KEEP_ALIVE, |_| false).is_none());
        assert!(pool.is_empty());
    }
}
