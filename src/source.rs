//! Which published address a delivery leaves from: family, dates, pool, stickiness, health.
//!
//! A [`Source`] can only be made here, from a configured pair whose public address stands in the published list.
//! Deciding only: `dial::connect` binds, `app` refreshes dates and health. `now` is an argument.

use std::{net::IpAddr, sync::Arc};

use jiff::Timestamp;

use crate::config::Egress;
use crate::outcome::labelled;
use crate::publish::Notice;
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
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// The sources in force. Cheap to share; health changes in place, a reload makes a new table that inherits it.
#[derive(Debug)]
pub struct Sources {
    // filled in by the implementation: entries with atomics for health
}

impl Sources {
    /// `egress` was checked at load: every public address is in the list. `notice` is what the store remembers.
    pub fn new(_egress: &Egress, _notice: &Notice, _previous: Option<&Sources>) -> Self {
        todo!()
    }

    /// Every configured source, usable or not, in the order of the file.
    pub fn all(&self) -> Vec<Arc<Source>> {
        todo!()
    }

    /// The usable sources of a pool and family in the order to be tried: stable for (tenant, host).
    pub fn choose(
        &self,
        _pool: &str,
        _family: Family,
        _tenant: &TenantId,
        _host: &str,
        _now: Timestamp,
    ) -> Vec<Arc<Source>> {
        todo!()
    }

    /// Whether the pool has any source of this family at all, usable or not.
    pub fn pool_has(&self, _pool: &str, _family: Family) -> bool {
        todo!()
    }

    /// Whether a send of this pool could leave at all now.
    pub fn pool_usable(&self, _pool: &str, _now: Timestamp) -> bool {
        todo!()
    }

    /// Whether any source could be used now.
    pub fn any_usable(&self, _now: Timestamp) -> bool {
        todo!()
    }

    /// Why this source is not usable now; `None`: it is.
    pub fn unusable(&self, _source: &Source, _now: Timestamp) -> Option<String> {
        todo!()
    }

    /// A bind said that the address is not on this host; tried again after a while.
    pub fn not_on_host(&self, _source: &Source, _now: Timestamp) {
        todo!()
    }

    /// A bind worked.
    pub fn on_host(&self, _source: &Source) {
        todo!()
    }

    pub fn verified(&self, _source: &Source, _state: Verified) {
        todo!()
    }
}
