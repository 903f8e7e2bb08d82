//! Which published address a delivery leaves from: family, dates, pool, stickiness, health.
//!
//! A [`Source`] can only be made here, from a configured pair whose public address stands in the published list.
//! Deciding only: `dial::connect` binds, `app` refreshes dates and health. `now` is an argument.

pub mod metrics;

use std::{
    collections::HashMap,
    net::IpAddr,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU8, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;

use crate::config::Egress;
use crate::limits::SOURCE_RETRIED_AFTER;
use crate::outcome::labelled;
use crate::policy::Purpose;
use crate::publish::{self, Entry, Notice};
use crate::send::TenantId;

/// An address of ours that deliveries leave from. The only way to a socket towards a destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    public: IpAddr,
    bind: IpAddr,
    pool: Arc<str>,
}

impl Source {
    /// As the world sees it.
    pub fn public(&self) -> IpAddr {
        self.public
    }
    /// As this host has it.
    pub fn bind(&self) -> IpAddr {
        self.bind
    }
    pub fn pool(&self) -> &Arc<str> {
        &self.pool
    }

    #[cfg(test)]
    pub fn for_tests(address: IpAddr) -> Self {
        Self { public: address, bind: address, pool: "default".into() }
    }
}

labelled! {
    /// What the reflectors say of a source.
    Verified {
        /// No `[egress.verify]`, or not asked yet.
        Unknown = "unknown",
        Yes = "verified",
        /// The reflectors could not be reached: still usable.
        Unverified = "unverified",
        /// Seen as another address: taken out.
        Drift = "drift",
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// A source as the other nodes of a tier are told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceTold {
    pub public: IpAddr,
    pub pool: Arc<str>,
    pub family: Family,
    pub usable: bool,
}

/// Another node of the tier, and what it can send from: pools, with the families that it has usable sources of there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub name: Arc<str>,
    /// Which of that node's lives, for the store.
    pub life: u64,
    pub serves: Vec<(Arc<str>, Family)>,
}

impl Neighbour {
    fn can(&self, pool: &str, families: &[Family]) -> bool {
        self.serves.iter().any(|(serves, family)| **serves == *pool && families.contains(family))
    }
}

/// The other nodes of the tier, as they told of themselves within seconds.
#[derive(Debug, Default)]
pub struct Neighbours(pub Vec<Neighbour>);

impl Neighbours {
    /// Whether any of them sends from an address of this family.
    pub fn have(&self, family: Family) -> bool {
        self.0.iter().any(|node| node.serves.iter().any(|(_, serves)| *serves == family))
    }

    /// It is there, and nothing of this pool can leave from it.
    pub fn has_none(&self, node: &str, pool: &str) -> bool {
        self.0.iter().any(|one| *one.name == *node && !one.can(pool, &Family::BOTH))
    }

    /// The one of them that sends to this host for this tenant, among those that can (and `own`, where this node can):
    /// the same whoever asks, for as long as those that can are the same ([`Sources::choose`]). `None`: this node, or none.
    pub fn choose(
        &self,
        pool: &str,
        families: &[Family],
        tenant: &TenantId,
        host: &str,
        own: Option<&str>,
    ) -> Option<&Neighbour> {
        let key = hash(&[tenant.as_str().as_bytes(), host.as_bytes()]);
        let rank = |name: &str| (mix(hash(&[name.as_bytes()]) ^ key), name.to_owned());
        let able = self.0.iter().filter(|node| node.can(pool, families));
        let best = able.max_by_key(|node| rank(&node.name))?;
        own.is_none_or(|own| rank(own) < rank(&best.name)).then_some(best)
    }

    /// The one of them that reaches any of these addresses, where this node, with these sources, has none of any of their
    /// families.
    pub fn reach(
        &self,
        addresses: impl Iterator<Item = IpAddr>,
        own: &Sources,
        pool: &str,
        tenant: &TenantId,
        host: &str,
    ) -> Option<&Neighbour> {
        let found: Vec<Family> = addresses.map(Family::of).collect();
        let families: Vec<Family> = Family::BOTH.into_iter().filter(|family| found.contains(family)).collect();
        if families.is_empty() || families.iter().any(|family| own.pool_has(pool, *family)) {
            return None;
        }
        self.choose(pool, &families, tenant, host, None)
    }
}

/// The sources in force. Cheap to share; health changes in place, and a reload makes a new table that shares the
/// health of every pair that stays.
#[derive(Debug)]
pub struct Sources {
    slots: Vec<Slot>,
}

#[derive(Debug)]
struct Slot {
    source: Arc<Source>,
    /// The public address, mixed for the choice.
    hash: u64,
    entry: Entry,
    /// When the notice ends that the first publication began.
    notice_ends: Option<Timestamp>,
    /// When it carries traffic: asked for every send, so worked out once.
    window: Option<Range<Timestamp>>,
    health: Arc<Health>,
}

/// What was found out about a pair while running.
#[derive(Debug, Default)]
struct Health {
    /// Millisecond until which its address counts as missing from this host; 0: it is there as far as known.
    absent_until: AtomicI64,
    /// An index into [`Verified::ALL`].
    verified: AtomicU8,
    /// The node of the tier that sends from it, where that is another.
    elsewhere: ArcSwapOption<String>,
}

impl Health {
    fn verified(&self) -> Verified {
        let index = usize::from(self.verified.load(Ordering::Relaxed));
        Verified::ALL.get(index).copied().unwrap_or(Verified::Unknown)
    }

    fn forget_verification(&self) {
        let unknown = Verified::ALL.iter().position(|state| *state == Verified::Unknown).unwrap_or_default();
        self.verified.store(u8::try_from(unknown).unwrap_or_default(), Ordering::Relaxed);
    }
}

impl Sources {
    /// `egress` was checked at load: every public address is in the list. `notice` is what the store remembers.
    pub fn new(egress: &Egress, notice: &Notice, previous: Option<&Sources>) -> Self {
        let slots = egress.sources.iter().filter_map(|pair| {
            let source = Source { public: pair.public, bind: pair.bind, pool: pair.pool.clone() };
            let known = previous.and_then(|sources| sources.slots.iter().find(|slot| slot.is_pair(&source)));
            // Without a line in the list there is no source, whatever came before.
            let entry = egress.published.entry(source.public)?.clone();
            if let (None, Some(known)) = (&egress.verify, known) {
                // Where nobody asks any more, what was last heard must not keep a source out for ever.
                known.health.forget_verification();
            }
            Some(Slot {
                hash: hash(&[source.public.to_string().as_bytes()]),
                notice_ends: notice.ends(source.public),
                window: entry.window(notice),
                entry,
                health: known.map_or_else(Arc::default, |slot| slot.health.clone()),
                source: Arc::new(source),
            })
        });
        Self { slots: slots.collect() }
    }

    /// Every configured source, usable or not, in the order of the file.
    pub fn all(&self) -> Vec<Arc<Source>> {
        self.slots.iter().map(|slot| slot.source.clone()).collect()
    }

    /// As the other nodes of a tier are told of them.
    pub fn told_to_others(&self, now: Timestamp) -> Vec<SourceTold> {
        let told = |slot: &Slot| SourceTold {
            public: slot.source.public,
            pool: slot.source.pool.clone(),
            family: Family::of(slot.source.bind),
            usable: slot.unusable(now).is_none(),
        };
        self.slots.iter().map(told).collect()
    }

    /// The usable sources of a pool and family in the order to be tried: stable for (tenant, host).
    ///
    /// Rendezvous hashing (Thaler and Ravishankar, 1998): a source that comes or goes moves only the destinations
    /// that it takes or leaves behind.
    pub fn choose(
        &self,
        pool: &str,
        family: Family,
        tenant: &TenantId,
        host: &str,
        now: Timestamp,
    ) -> Vec<Arc<Source>> {
        let key = hash(&[tenant.as_str().as_bytes(), host.as_bytes()]);
        let usable = self.slots.iter().filter(|slot| slot.is_of(pool, family) && slot.unusable(now).is_none());
        let mut ranked: Vec<_> = usable.map(|slot| (mix(slot.hash ^ key), &slot.source)).collect();
        ranked.sort_unstable_by(|a, b| (b.0, a.1.public).cmp(&(a.0, b.1.public)));
        ranked.into_iter().map(|(_, source)| source.clone()).collect()
    }

    /// Whether the pool has any source of this family at all, usable or not.
    pub fn pool_has(&self, pool: &str, family: Family) -> bool {
        self.slots.iter().any(|slot| slot.is_of(pool, family))
    }

    /// Whether a send of this pool could leave at all now.
    pub fn pool_usable(&self, pool: &str, now: Timestamp) -> bool {
        self.slots.iter().any(|slot| *slot.source.pool == *pool && slot.unusable(now).is_none())
    }

    /// Whether any source could be used now.
    pub fn any_usable(&self, now: Timestamp) -> bool {
        self.slots.iter().any(|slot| slot.unusable(now).is_none())
    }

    /// Why this source is not usable now; `None`: it is.
    pub fn unusable(&self, source: &Source, now: Timestamp) -> Option<String> {
        let Some(slot) = self.slot(source) else {
            return Some(format!("{} is no longer configured", source.public));
        };
        slot.unusable(now).map(|reason| reason.told(slot, now))
    }

    /// A line for each source, for whoever operates it: usable now, from when, until when, or why not.
    pub fn told(&self, now: Timestamp) -> Vec<String> {
        let line = |slot: &Slot| {
            let Source { public, bind, pool } = &*slot.source;
            let bound = if public == bind { String::new() } else { format!("bound as {bind}, ") };
            let state = match (slot.unusable(now), slot.entry.retires) {
                (Some(reason), _) => format!("not usable: {}", reason.told(slot, now)),
                (None, Some(retires)) => format!("usable now, until {retires}"),
                (None, None) => "usable now".to_owned(),
            };
            format!("source {public} ({bound}pool {pool}): {state}")
        };
        self.slots.iter().map(line).collect()
    }

    /// Pools of which no source is usable now.
    pub fn pools_without(&self, now: Timestamp) -> Vec<Arc<str>> {
        let mut pools: Vec<Arc<str>> = self.slots.iter().map(|slot| slot.source.pool.clone()).collect();
        pools.sort();
        pools.dedup();
        pools.retain(|pool| !self.pool_usable(pool, now));
        pools
    }

    /// A bind said that the address is not on this host; tried again after [`SOURCE_RETRIED_AFTER`].
    pub fn not_on_host(&self, source: &Source, now: Timestamp) {
        if let Some(slot) = self.slot(source) {
            let until = now.saturating_add(SOURCE_RETRIED_AFTER).unwrap_or(Timestamp::MAX);
            if slot.health.absent_until.swap(until.as_millisecond().max(1), Ordering::Relaxed) == 0 {
                tracing::error!(
                    source_ip = %source.public, bind = %source.bind,
                    "the source's address is not on this host: plumb it, or drop the source"
                );
            }
        }
    }

    /// A bind worked.
    pub fn on_host(&self, source: &Source) {
        if let Some(slot) = self.slot(source) {
            // The common case only reads: this is asked at every connection.
            let absent = &slot.health.absent_until;
            if absent.load(Ordering::Relaxed) != 0 && absent.swap(0, Ordering::Relaxed) != 0 {
                tracing::info!(source_ip = %source.public, bind = %source.bind, "the source's address is back");
            }
        }
    }

    /// Those that other nodes of the tier send from, by their names: an address is one node's at a time.
    pub fn held_elsewhere(&self, holders: &HashMap<IpAddr, String>) {
        for slot in &self.slots {
            let (public, holder) = (slot.source.public, holders.get(&slot.source.public));
            let before = slot.health.elsewhere.swap(holder.cloned().map(Arc::new));
            match (before.as_deref(), holder) {
                (before, Some(node)) if before != Some(node) => tracing::error!(
                    source_ip = %public, %node,
                    "another node of this tier sends from this source, so this one does not: name it on one of them"
                ),
                (Some(node), None) => {
                    tracing::info!(source_ip = %public, %node, "the other node has let go of this source: it is this one's")
                }
                _ => {}
            }
        }
    }

    pub fn verified(&self, source: &Source, state: Verified) {
        if let Some(slot) = self.slot(source)
            && let Some(index) = Verified::ALL.iter().position(|known| *known == state)
        {
            slot.health.verified.store(index as u8, Ordering::Relaxed);
        }
    }

    /// What the reflectors last said.
    pub fn verification(&self, source: &Source) -> Verified {
        self.slot(source).map_or(Verified::Unknown, |slot| slot.health.verified())
    }

    /// It carries traffic or is announced to: worth verifying. A retired one is not, nor one that was taken out of the
    /// configuration.
    pub fn has_a_future(&self, source: &Source, now: Timestamp) -> bool {
        self.slot(source)
            .is_some_and(|slot| !matches!(slot.unusable(now), Some(Unusable::Retired | Unusable::Elsewhere)))
    }

    /// Whether a connection for this purpose may be made from it now.
    pub fn may_leave(&self, source: &Source, purpose: Purpose, now: Timestamp) -> bool {
        match purpose {
            // In the pool that it was chosen from: a reload may have made it another's.
            Purpose::Delivery | Purpose::Relay | Purpose::Bucket | Purpose::Warehouse => {
                self.slot(source).is_some_and(|slot| *slot.source == *source && slot.unusable(now).is_none())
            }
            Purpose::Reflector => self.has_a_future(source, now),
        }
    }

    /// Whether it is still configured, in its pool: what was opened from one whose dates have passed may end by itself.
    pub fn has(&self, source: &Source) -> bool {
        self.slot(source).is_some_and(|slot| *slot.source == *source)
    }

    fn slot(&self, source: &Source) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.is_pair(source))
    }
}

enum Unusable {
    Announced,
    Retired,
    Absent,
    Drift,
    Elsewhere,
}

impl Slot {
    fn is_pair(&self, source: &Source) -> bool {
        self.source.public == source.public && self.source.bind == source.bind
    }

    fn is_of(&self, pool: &str, family: Family) -> bool {
        *self.source.pool == *pool && Family::of(self.source.bind) == family
    }

    fn unusable(&self, now: Timestamp) -> Option<Unusable> {
        match &self.window {
            Some(window) if now >= window.end => return Some(Unusable::Retired),
            Some(window) if now >= window.start => {}
            _ => return Some(Unusable::Announced),
        }
        if self.health.elsewhere.load().is_some() {
            return Some(Unusable::Elsewhere);
        }
        if self.health.absent_until.load(Ordering::Relaxed) > now.as_millisecond() {
            return Some(Unusable::Absent);
        }
        (self.health.verified() == Verified::Drift).then_some(Unusable::Drift)
    }
}

impl Unusable {
    fn told(&self, slot: &Slot, now: Timestamp) -> String {
        let Source { public, bind, .. } = &*slot.source;
        match self {
            Self::Announced => match slot.notice_ends.filter(|ends| *ends > now) {
                Some(ends) => {
                    format!("{public} was first published too lately: its notice ends {}", publish::shown(ends))
                }
                None => match slot.entry.active {
                    Some(active) => format!("{public} is announced, and active from {active}"),
                    None => format!("{public} is announced, without an `active` date"),
                },
            },
            Self::Retired => match slot.entry.retires {
                Some(retires) => format!("{public} retired on {retires}"),
                None => format!("{public} has retired"),
            },
            Self::Absent => format!("{bind}, the bound address of {public}, is not on this host"),
            Self::Elsewhere => {
                let node = slot.health.elsewhere.load_full();
                let node = node.as_deref().map_or("another node", String::as_str);
                format!("{public} is used by node {node} of this tier")
            }
            Self::Drift => format!("the reflectors see another address than {public}"),
        }
    }
}

/// FNV-1a, mixed; a byte that no text holds ends each part. Ours rather than the standard library's, whose result may
/// change with the compiler: a receiver must see the same address after an upgrade.
fn hash(parts: &[&[u8]]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.iter().chain(&[0xff]));
    mix(bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)))
}

/// The finaliser of SplitMix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests;
