//! Addresses found lately, each tenant's for itself: how long a lookup took must not tell which hosts another used.
//!
//! Bounded in bytes, for one tenant and in all. Where room is needed, what is out of date goes first, then the share of
//! whoever holds much: filling the cache costs those who fill it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Found;
use crate::clock;
use crate::limits::{DNS_CACHE_BYTES, DNS_CACHE_BYTES_PER_TENANT, DNS_CACHE_SWEPT_EVERY, DNS_TTL_MAX};
use crate::send::TenantId;

/// What an entry and its place in the maps take beside texts and addresses, roughly.
const ENTRY_BYTES: usize = 256;

/// A name, and whether IPv6 addresses were asked for.
pub type Asked = (Arc<str>, bool);

#[derive(Debug, Default)]
pub struct Cache(Mutex<Shares>);

#[derive(Debug, Default)]
struct Shares {
    of: HashMap<TenantId, Share>,
    bytes: usize,
    swept: Option<Instant>,
}

#[derive(Debug, Default)]
struct Share {
    found: HashMap<Asked, Kept>,
    bytes: usize,
}

#[derive(Debug)]
struct Kept {
    found: Arc<Found>,
    until: Instant,
    bytes: usize,
}

impl Cache {
    fn lock(&self) -> MutexGuard<'_, Shares> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn kept(&self, tenant: &TenantId, asked: &Asked) -> Option<Arc<Found>> {
        let shares = self.lock();
        let kept = shares.of.get(tenant)?.found.get(asked)?;
        (kept.until > clock::monotonic()).then(|| kept.found.clone())
    }

    pub fn keep(&self, tenant: &TenantId, asked: Asked, found: Arc<Found>, ttl: Duration) {
        if ttl.is_zero() {
            return;
        }
        let now = clock::monotonic();
        let kept =
            Kept { bytes: ENTRY_BYTES + asked.0.len() + found.bytes(), found, until: now + ttl.min(DNS_TTL_MAX) };
        let mut shares = self.lock();
        shares.make_room(tenant, kept.bytes, now);
        shares.insert(tenant, asked, kept);
    }

    /// Forgets what is out of date, now and then.
    pub fn tend(&self) {
        let now = clock::monotonic();
        let mut shares = self.lock();
        if shares.swept.is_none_or(|at| now.duration_since(at) >= DNS_CACHE_SWEPT_EVERY) {
            shares.swept = Some(now);
            shares.forget_old(now);
        }
    }

    pub fn clear(&self) {
        *self.lock() = Shares::default();
    }
}

impl Shares {
    fn insert(&mut self, tenant: &TenantId, asked: Asked, kept: Kept) {
        let share = self.of.entry(tenant.clone()).or_default();
        let bytes = kept.bytes;
        let before = share.found.insert(asked, kept).map_or(0, |before| before.bytes);
        share.bytes = share.bytes + bytes - before;
        self.bytes = self.bytes + bytes - before;
    }

    /// So that each look at all of a share, or of all shares, frees a good part of it.
    fn make_room(&mut self, tenant: &TenantId, bytes: usize, now: Instant) {
        let full = |share: &Share, of: usize| share.bytes + bytes > of;
        if let Some(share) = self.of.get_mut(tenant)
            && full(share, DNS_CACHE_BYTES_PER_TENANT)
        {
            let before = share.bytes;
            share.forget_old(now);
            if full(share, DNS_CACHE_BYTES_PER_TENANT / 4 * 3) {
                *share = Share::default();
            }
            self.bytes -= before - share.bytes;
        }
        if self.bytes + bytes > DNS_CACHE_BYTES {
            self.forget_old(now);
            if self.bytes + bytes > DNS_CACHE_BYTES / 4 * 3 {
                let mean = self.bytes / self.of.len().max(1);
                self.of.retain(|_, share| share.bytes < mean);
                self.count();
            }
        }
    }

    fn forget_old(&mut self, now: Instant) {
        self.of.retain(|_, share| {
            share.forget_old(now);
            !share.found.is_empty()
        });
        self.count();
    }

    fn count(&mut self) {
        self.bytes = self.of.values().map(|share| share.bytes).sum();
    }
}

impl Share {
    fn forget_old(&mut self, now: Instant) {
        self.found.retain(|_, kept| kept.until > now);
        self.bytes = self.found.values().map(|kept| kept.bytes).sum();
    }
}

impl Found {
    /// What it takes, roughly.
    fn bytes(&self) -> usize {
        let aliases: usize = self.cname_targets.iter().map(|alias| alias.len() + size_of::<String>()).sum();
        aliases + self.addresses.len() * size_of::<std::net::IpAddr>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(aliases: usize) -> Arc<Found> {
        Arc::new(Found { cname_targets: vec!["a".repeat(200); aliases], addresses: vec![[192, 0, 2, 1].into()] })
    }

    fn asked(number: usize) -> Asked {
        (format!("host{number}.example.com").into(), false)
    }

    #[test]
    fn a_tenant_finds_what_it_looked_up_itself_alone() {
        let cache = Cache::default();
        let [a, b] = ["a", "b"].map(TenantId::new);
        cache.keep(&a, asked(1), found(0), DNS_TTL_MAX);
        assert_eq!(cache.kept(&a, &asked(1)), Some(found(0)));
        assert_eq!(cache.kept(&b, &asked(1)), None);
        assert_eq!(cache.kept(&a, &(asked(1).0, true)), None);
    }

    #[test]
    fn what_fills_the_cache_costs_who_fills_it() {
        for (tenants, names, aliases) in [(1, 20_000, 0), (1, 5_000, 8), (40, 1_000, 8), (5_000, 5, 8)] {
            let cache = Cache::default();
            let small = TenantId::new("small");
            cache.keep(&small, asked(0), found(0), DNS_TTL_MAX);
            let mut most = 0;
            for number in 0..names {
                for tenant in 0..tenants {
                    let tenant = TenantId::new(format!("t{tenant}"));
                    cache.keep(&tenant, asked(number), found(aliases), DNS_TTL_MAX);
                    let shares = cache.lock();
                    most = most.max(shares.of[&tenant].bytes);
                    assert!(shares.bytes <= DNS_CACHE_BYTES, "{tenants} tenants: {} bytes", shares.bytes);
                }
            }
            assert!(most <= DNS_CACHE_BYTES_PER_TENANT, "{tenants} tenants: one has {most} bytes");
            assert!(cache.kept(&small, &asked(0)).is_some(), "{tenants} tenants");
            let mut shares = cache.lock();
            let counted = shares.bytes;
            shares.count();
            assert_eq!(shares.bytes, counted, "{tenants} tenants");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_out_of_date_goes_first() {
        let cache = Cache::default();
        let tenant = TenantId::new("a");
        cache.keep(&tenant, asked(0), found(0), Duration::from_secs(3));
        cache.keep(&tenant, asked(1), found(0), Duration::from_secs(30));
        cache.keep(&tenant, asked(2), found(0), Duration::ZERO);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!([0, 1, 2].map(|at| cache.kept(&tenant, &asked(at)).is_some()), [false, true, false]);
        cache.tend();
        assert_eq!(cache.lock().of[&tenant].found.len(), 1);
        tokio::time::advance(Duration::from_secs(27)).await;
        cache.tend();
        let shares = cache.lock();
        assert_eq!((shares.of.len(), shares.bytes), (0, 0));
    }
}
