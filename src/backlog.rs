//! Everything accepted that has not begun: the hold, the schedule, and the room that calls have reserved while
//! their sends are on their way to the disk.
//!
//! One lock around three deciding parts, so that counts agree; nothing is awaited under it. `intake` fills it,
//! `dispatch` empties it.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::Notify;

use crate::config::Config;
use crate::hold::Hold;
use crate::limits;
use crate::schedule::{Caps, HotSpec, Schedule};
use crate::send::{SendSpec, TenantId};

/// How one tenant stands, held sends included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantBacklog {
    pub held: u64,
    pub queued: u64,
    pub in_flight: u64,
    pub oldest_queued: Option<Timestamp>,
}

pub struct Backlog {
    parts: Mutex<Parts>,
    /// Something may have become runnable.
    pub wake: Notify,
    hot_bytes: Arc<AtomicU64>,
}

pub struct Parts {
    pub schedule: Schedule,
    pub hold: Hold,
    reserved: HashMap<TenantId, u64>,
    reserved_total: u64,
}

/// Which bound a call ran into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    Tenant { waiting: u64, limit: u64 },
    Node { waiting: u64, limit: u64 },
}

/// Room for sends that are being written; given back when dropped, which is when they stand in the backlog
/// themselves or were not accepted after all.
pub struct Reservation {
    backlog: Arc<Backlog>,
    tenant: TenantId,
    sends: u64,
}

pub fn caps(config: &Config) -> Caps {
    Caps {
        in_flight: config.delivery.in_flight,
        per_tenant: config.delivery.in_flight_per_tenant,
        per_destination: config.delivery.in_flight_per_tenant_destination,
    }
}

impl Backlog {
    pub fn new(caps: Caps) -> Arc<Self> {
        Arc::new(Self {
            parts: Mutex::new(Parts {
                schedule: Schedule::new(caps),
                hold: Hold::default(),
                reserved: HashMap::new(),
                reserved_total: 0,
            }),
            wake: Notify::new(),
            hot_bytes: Arc::default(),
        })
    }

    pub fn lock(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves room for so many sends, or says which bound is reached. Held sends count as queued.
    pub fn reserve(self: &Arc<Self>, tenant: &TenantId, sends: u64, config: &Config) -> Result<Reservation, Full> {
        let mut parts = self.lock();
        let limit = config.tenant(tenant).map_or(config.delivery.queued_per_tenant, |tenant| tenant.queued);
        let waiting = parts.waiting_of(tenant);
        if waiting + sends > limit {
            return Err(Full::Tenant { waiting, limit });
        }
        let waiting = parts.waiting();
        if waiting + sends > config.delivery.queued {
            return Err(Full::Node { waiting, limit: config.delivery.queued });
        }
        *parts.reserved.entry(tenant.clone()).or_default() += sends;
        parts.reserved_total += sends;
        drop(parts);
        Ok(Reservation { backlog: self.clone(), tenant: tenant.clone(), sends })
    }

    /// Keeps the spec in memory for its delivery, if there is room.
    pub fn keep_hot(&self, spec: &Arc<SendSpec>) -> Option<Arc<HotSpec>> {
        HotSpec::keep(spec, &self.hot_bytes, limits::HOT_BYTES_MAX)
    }

    pub fn tenants(&self) -> HashMap<TenantId, TenantBacklog> {
        let parts = self.lock();
        let mut tenants: HashMap<TenantId, TenantBacklog> = HashMap::new();
        for (tenant, load) in parts.schedule.loads() {
            let one = tenants.entry(tenant.clone()).or_default();
            (one.queued, one.in_flight, one.oldest_queued) = (load.queued, load.in_flight, load.oldest);
        }
        for (tenant, held) in parts.hold.per_tenant() {
            tenants.entry(tenant.clone()).or_default().held = *held;
        }
        tenants
    }
}

impl Parts {
    fn waiting(&self) -> u64 {
        self.schedule.queued() + self.hold.sends() + self.reserved_total
    }

    fn waiting_of(&self, tenant: &TenantId) -> u64 {
        self.schedule.queued_of(tenant)
            + self.hold.per_tenant().get(tenant).copied().unwrap_or_default()
            + self.reserved.get(tenant).copied().unwrap_or_default()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut parts = self.backlog.lock();
        parts.reserved_total -= self.sends;
        if let Some(reserved) = parts.reserved.get_mut(&self.tenant) {
            *reserved -= self.sends;
            if *reserved == 0 {
                parts.reserved.remove(&self.tenant);
            }
        }
    }
}
