//! Which waiting send goes next: deficit round-robin over tenants, and within a tenant round-robin over its
//! destinations, under caps in flight for the node, the tenant and the tenant's destination.
//!
//! Promises: a tenant that has something runnable is offered a slot at least once in every round over the tenants,
//! whatever the others have queued; a destination at its cap does not hold back its tenant's others; what a tenant
//! moved beyond the common measure (large bodies) is charged to its later rounds, at most [`DEBT_MAX`].
//!
//! Decides only: no clock, no I/O. [`Schedule::next`] takes a slot and [`Schedule::done`] gives it back.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;

use crate::policy::Destination;
use crate::send::{SendId, SendSpec, TenantId};

#[cfg(test)]
mod tests;

/// What a tenant may start in one round.
const QUANTUM: i64 = 4;
/// What a tenant may owe at most, in sends: large transfers slow a tenant down, they never lock it out.
const DEBT_MAX: i64 = 64;
/// Bytes moved that weigh as much as one send.
const BYTES_PER_SEND: u64 = 64 * 1024;

/// The caps in flight. A reload may change them at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    pub in_flight: u32,
    pub per_tenant: u32,
    pub per_destination: u32,
}

/// A send that waits for its turn.
#[derive(Clone, Debug)]
pub struct Waiting {
    pub id: SendId,
    pub workflow: Option<Arc<str>>,
    pub created_at: Timestamp,
    pub released_at: Timestamp,
    pub expires_at: Timestamp,
    /// While memory has room for it; otherwise the store reads it again.
    pub spec: Option<Arc<HotSpec>>,
}

/// A spec kept in memory, which gives its room back when dropped.
#[derive(Debug)]
pub struct HotSpec {
    pub spec: Arc<SendSpec>,
    room: Arc<std::sync::atomic::AtomicU64>,
    bytes: u64,
}

impl HotSpec {
    /// `None` where the budget is used up.
    pub fn keep(spec: &Arc<SendSpec>, used: &Arc<std::sync::atomic::AtomicU64>, budget: u64) -> Option<Arc<Self>> {
        use std::sync::atomic::Ordering::Relaxed;
        let bytes = spec.footprint();
        used.fetch_update(Relaxed, Relaxed, |used| (used + bytes <= budget).then_some(used + bytes)).ok()?;
        Some(Arc::new(Self { spec: spec.clone(), room: used.clone(), bytes }))
    }
}

impl Drop for HotSpec {
    fn drop(&mut self) {
        self.room.fetch_sub(self.bytes, std::sync::atomic::Ordering::Relaxed);
    }
}

/// A send taken out of the schedule.
#[derive(Clone, Debug)]
pub struct Picked {
    pub tenant: TenantId,
    pub destination: Option<Destination>,
    pub send: Waiting,
}

/// How a tenant stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    pub queued: u64,
    pub in_flight: u64,
    pub oldest: Option<Timestamp>,
}

#[derive(Debug)]
pub struct Schedule {
    caps: Caps,
    tenants: HashMap<TenantId, Tenant>,
    /// Tenants with something runnable, each once.
    ring: VecDeque<TenantId>,
    /// Tenants with something runnable whose pool has no usable source.
    parked: Vec<TenantId>,
    in_flight: u32,
    queued: u64,
    /// No waiting send expires before this.
    next_expiry: Option<Timestamp>,
}

#[derive(Debug, Default)]
struct Tenant {
    destinations: HashMap<Option<Destination>, Queue>,
    /// Destinations with waiting sends and room under their cap, each once.
    ready: VecDeque<Option<Destination>>,
    /// This tenant's own cap, where it differs.
    cap: Option<u32>,
    in_flight: u32,
    queued: u64,
    deficit: i64,
    place: Place,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Idle,
    Ring,
    Parked,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    in_flight: u32,
    ready: bool,
}

impl Schedule {
    pub fn new(caps: Caps) -> Self {
        Self {
            caps,
            tenants: HashMap::new(),
            ring: VecDeque::new(),
            parked: Vec::new(),
            in_flight: 0,
            queued: 0,
            next_expiry: None,
        }
    }

    /// Adds a send at the end of its tenant's line for this destination. `cap`: the tenant's own, if it differs.
    pub fn push(&mut self, tenant: &TenantId, destination: Option<Destination>, cap: Option<u32>, send: Waiting) {
        self.note_expiry(send.expires_at);
        self.queued += 1;
        if !self.tenants.contains_key(tenant) {
            self.tenants.insert(tenant.clone(), Tenant::default());
        }
        if let Some(state) = self.tenants.get_mut(tenant) {
            state.cap = cap;
            state.queued += 1;
            let queue = state.destinations.entry(destination.clone()).or_default();
            queue.waiting.push_back(send);
            if !queue.ready && queue.in_flight < self.caps.per_destination {
                queue.ready = true;
                state.ready.push_back(destination);
            }
        }
        self.enter_ring(tenant);
    }

    /// Puts back what [`Self::next`] took, at the front: its delivery could not begin.
    pub fn put_back(&mut self, picked: Picked) {
        let Picked { tenant, destination, send } = picked;
        self.note_expiry(send.expires_at);
        self.queued += 1;
        if let Some(state) = self.tenants.get_mut(&tenant) {
            state.queued += 1;
            state.destinations.entry(destination.clone()).or_default().waiting.push_front(send);
        }
        self.done(&tenant, &destination, 0);
    }

    /// The next send to start, with its slot taken. `admits` says whether a tenant's pool has a usable source;
    /// tenants that it turns away are parked until [`Self::unpark`].
    pub fn next(&mut self, mut admits: impl FnMut(&TenantId) -> bool) -> Option<Picked> {
        while self.in_flight < self.caps.in_flight {
            let tenant = self.ring.front()?.clone();
            if !admits(&tenant) {
                self.ring.pop_front();
                if let Some(state) = self.tenants.get_mut(&tenant) {
                    state.place = Place::Parked;
                }
                self.parked.push(tenant);
                continue;
            }
            let Some(state) = self.tenants.get_mut(&tenant) else {
                self.ring.pop_front();
                continue;
            };
            if state.deficit <= 0 {
                // Its turn in this round begins; what it owes may use all of it up.
                state.deficit += QUANTUM;
                if state.deficit <= 0 {
                    self.ring.rotate_left(1);
                    continue;
                }
            }
            let picked = state.take(self.caps);
            if picked.is_some() {
                state.deficit -= 1;
                self.in_flight += 1;
                self.queued -= 1;
            }
            if !state.runnable(self.caps) {
                state.place = Place::Idle;
                // Unused measure is not saved up; debt stays.
                state.deficit = state.deficit.min(0);
                let idle = state.queued == 0 && state.in_flight == 0;
                self.ring.pop_front();
                if idle {
                    self.tenants.remove(&tenant);
                }
            } else if state.deficit <= 0 {
                self.ring.rotate_left(1);
            }
            if let Some((destination, send)) = picked {
                return Some(Picked { tenant, destination, send });
            }
        }
        None
    }

    /// A slot is free again. `bytes`: what the delivery moved, charged to the tenant beyond the common measure.
    pub fn done(&mut self, tenant: &TenantId, destination: &Option<Destination>, bytes: u64) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let Some(state) = self.tenants.get_mut(tenant) else { return };
        state.in_flight = state.in_flight.saturating_sub(1);
        let charge = i64::try_from(bytes / BYTES_PER_SEND).unwrap_or(DEBT_MAX);
        state.deficit = (state.deficit - charge).max(-DEBT_MAX);
        state.leave(destination, self.caps);
        if state.queued == 0 && state.in_flight == 0 {
            // Nothing is known of an idle tenant, so that past tenants cost nothing. Debt is forgiven with it.
            if state.place == Place::Idle {
                self.tenants.remove(tenant);
            }
            return;
        }
        self.enter_ring(tenant);
    }

    /// Takes out every waiting send that has expired. Looks at the queues only when one may have.
    pub fn expire(&mut self, now: Timestamp) -> Vec<Picked> {
        if self.next_expiry.is_none_or(|next| now < next) {
            return Vec::new();
        }
        self.remove_where(|_, _, send| send.expires_at <= now)
    }

    /// Takes out every waiting send that `which` names; no slots are involved.
    pub fn remove_where(
        &mut self,
        mut which: impl FnMut(&TenantId, &Option<Destination>, &Waiting) -> bool,
    ) -> Vec<Picked> {
        let mut out = Vec::new();
        self.next_expiry = None;
        let mut next_expiry: Option<Timestamp> = None;
        for (tenant, state) in &mut self.tenants {
            for (destination, queue) in &mut state.destinations {
                let before = queue.waiting.len();
                queue.waiting.retain(|send| {
                    let remove = which(tenant, destination, send);
                    if remove {
                        out.push(Picked {
                            tenant: tenant.clone(),
                            destination: destination.clone(),
                            send: send.clone(),
                        });
                    } else {
                        next_expiry = Some(next_expiry.map_or(send.expires_at, |next| next.min(send.expires_at)));
                    }
                    !remove
                });
                state.queued -= (before - queue.waiting.len()) as u64;
            }
            // Empty destinations leave the ready list when their turn comes.
        }
        self.next_expiry = next_expiry;
        self.queued -= out.len() as u64;
        out
    }

    /// Parked tenants are asked again.
    pub fn unpark(&mut self) {
        for tenant in std::mem::take(&mut self.parked) {
            if let Some(state) = self.tenants.get_mut(&tenant) {
                state.place = Place::Idle;
            }
            self.enter_ring(&tenant);
        }
    }

    /// New caps: what they now admit becomes runnable, what they no longer admit only waits longer.
    pub fn set_caps(&mut self, caps: Caps, cap_of: impl Fn(&TenantId) -> Option<u32>) {
        self.caps = caps;
        let tenants: Vec<TenantId> = self.tenants.keys().cloned().collect();
        for tenant in tenants {
            if let Some(state) = self.tenants.get_mut(&tenant) {
                state.cap = cap_of(&tenant);
                for (destination, queue) in &mut state.destinations {
                    if !queue.ready && !queue.waiting.is_empty() && queue.in_flight < caps.per_destination {
                        queue.ready = true;
                        state.ready.push_back(destination.clone());
                    }
                }
            }
            self.enter_ring(&tenant);
        }
    }

    pub fn queued(&self) -> u64 {
        self.queued
    }

    pub fn queued_of(&self, tenant: &TenantId) -> u64 {
        self.tenants.get(tenant).map_or(0, |state| state.queued)
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Whether something could be picked if a source were usable and the node had room.
    pub fn runnable(&self) -> bool {
        !self.ring.is_empty() && self.in_flight < self.caps.in_flight
    }

    /// When the oldest waiting send was released.
    pub fn oldest(&self) -> Option<Timestamp> {
        self.tenants.values().filter_map(Tenant::oldest).min()
    }

    /// Every tenant with something waiting or in flight.
    pub fn loads(&self) -> impl Iterator<Item = (&TenantId, Load)> {
        self.tenants.iter().map(|(tenant, state)| {
            let load = Load { queued: state.queued, in_flight: u64::from(state.in_flight), oldest: state.oldest() };
            (tenant, load)
        })
    }

    fn note_expiry(&mut self, at: Timestamp) {
        self.next_expiry = Some(self.next_expiry.map_or(at, |next| next.min(at)));
    }

    fn enter_ring(&mut self, tenant: &TenantId) {
        let Some(state) = self.tenants.get_mut(tenant) else { return };
        if state.place == Place::Idle && state.runnable(self.caps) {
            state.place = Place::Ring;
            self.ring.push_back(tenant.clone());
        }
    }
}

impl Tenant {
    fn runnable(&self, caps: Caps) -> bool {
        self.in_flight < self.cap.unwrap_or(caps.per_tenant) && !self.ready.is_empty()
    }

    /// The next send of this tenant: its destinations take turns.
    fn take(&mut self, caps: Caps) -> Option<(Option<Destination>, Waiting)> {
        if self.in_flight >= self.cap.unwrap_or(caps.per_tenant) {
            return None;
        }
        while let Some(destination) = self.ready.pop_front() {
            let Some(queue) = self.destinations.get_mut(&destination) else { continue };
            if queue.in_flight >= caps.per_destination {
                // Its cap was lowered meanwhile; it is ready again when enough of it has ended.
                queue.ready = false;
                continue;
            }
            let Some(send) = queue.waiting.pop_front() else {
                queue.ready = false;
                if queue.in_flight == 0 {
                    self.destinations.remove(&destination);
                }
                continue;
            };
            queue.in_flight += 1;
            self.in_flight += 1;
            self.queued -= 1;
            if queue.waiting.is_empty() || queue.in_flight >= caps.per_destination {
                queue.ready = false;
            } else {
                self.ready.push_back(destination.clone());
            }
            return Some((destination, send));
        }
        None
    }

    fn leave(&mut self, destination: &Option<Destination>, caps: Caps) {
        let Some(queue) = self.destinations.get_mut(destination) else { return };
        queue.in_flight = queue.in_flight.saturating_sub(1);
        if queue.waiting.is_empty() {
            if queue.in_flight == 0 && !queue.ready {
                self.destinations.remove(destination);
            }
        } else if !queue.ready && queue.in_flight < caps.per_destination {
            queue.ready = true;
            self.ready.push_back(destination.clone());
        }
    }

    fn oldest(&self) -> Option<Timestamp> {
        self.destinations.values().filter_map(|queue| queue.waiting.front()).map(|send| send.released_at).min()
    }
}
