//! Which waiting send goes next: deficit round-robin over tenants, and within a tenant round-robin over its
//! destinations, under caps in flight for the node, the tenant and the tenant's destination.
//!
//! Promises: a tenant that has something runnable is offered a slot at least once in every round over the tenants,
//! whatever the others have queued; a destination at its cap does not hold back its tenant's others; what a tenant
//! moved beyond the common measure (large bodies) is charged to its later rounds, at most [`DEBT_MAX`].
//!
//! Nothing here looks at all that waits: expiry is an index, and what a tenant could start at once is counted as it
//! changes.
//!
//! Decides only: no clock, no I/O. [`Schedule::next`] and [`Schedule::enter`] take a place in flight and
//! [`Schedule::done`] gives it back; [`crate::flow`] wraps it into a value that cannot be lost.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

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

impl Waiting {
    /// When a send released then expires.
    pub fn expiry(released_at: Timestamp, expires_in: Duration) -> Timestamp {
        let expires_in = SignedDuration::try_from(expires_in).unwrap_or(SignedDuration::MAX);
        released_at.checked_add(expires_in).unwrap_or(Timestamp::MAX)
    }
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
    /// Tenants with something runnable whose pool has no usable source, by that pool.
    parked: HashMap<Arc<str>, Vec<TenantId>>,
    in_flight: u32,
    queued: u64,
    /// Where each waiting send stands, the first to expire first.
    expiries: BTreeMap<(Timestamp, SendId), (TenantId, Option<Destination>)>,
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
    /// Of those queued, the ones whose destination has room: what could start if the tenant and the node have.
    startable: u64,
    deficit: i64,
    place: RingState,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum RingState {
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
            parked: HashMap::new(),
            in_flight: 0,
            queued: 0,
            expiries: BTreeMap::new(),
        }
    }

    /// Adds a send at the end of its tenant's line for this destination. `cap`: the tenant's own, if it differs.
    pub fn push(&mut self, tenant: &TenantId, destination: Option<Destination>, cap: Option<u32>, send: Waiting) {
        self.add(tenant, destination, cap, send, VecDeque::push_back);
    }

    /// Puts back what [`Self::next`] took, at the front: its delivery could not begin. Its place in flight is given
    /// back apart from it.
    pub fn put_back(&mut self, tenant: &TenantId, destination: Option<Destination>, cap: Option<u32>, send: Waiting) {
        self.add(tenant, destination, cap, send, VecDeque::push_front);
    }

    fn add(
        &mut self,
        tenant: &TenantId,
        destination: Option<Destination>,
        cap: Option<u32>,
        send: Waiting,
        put: fn(&mut VecDeque<Waiting>, Waiting),
    ) {
        self.expiries.insert((send.expires_at, send.id), (tenant.clone(), destination.clone()));
        self.queued += 1;
        let state = self.tenants.entry(tenant.clone()).or_default();
        state.cap = cap;
        state.queued += 1;
        let queue = state.destinations.entry(destination.clone()).or_default();
        put(&mut queue.waiting, send);
        if queue.ready {
            state.startable += 1;
        } else if queue.in_flight < self.caps.per_destination {
            queue.ready = true;
            state.startable += queue.waiting.len() as u64;
            state.ready.push_back(destination);
        }
        self.enter_ring(tenant);
    }

    /// Takes a place in flight for a send that never waited. `false`, and nothing is taken: somebody else is next, or
    /// a cap is reached, or others wait for this destination.
    pub fn enter(&mut self, tenant: &TenantId, destination: &Option<Destination>, cap: Option<u32>) -> bool {
        if self.in_flight >= self.caps.in_flight || !self.ring.is_empty() || self.caps.per_destination == 0 {
            return false;
        }
        if !self.tenants.contains_key(tenant) {
            self.tenants.insert(tenant.clone(), Tenant::default());
        }
        let Some(state) = self.tenants.get_mut(tenant) else { return false };
        state.cap = cap;
        let known = state.destinations.get(destination);
        let taken = state.in_flight < cap.unwrap_or(self.caps.per_tenant)
            && known.is_none_or(|queue| queue.waiting.is_empty() && queue.in_flight < self.caps.per_destination);
        if taken {
            if let Some(queue) = state.destinations.get_mut(destination) {
                queue.in_flight += 1;
            } else {
                let queue = Queue { in_flight: 1, ..Queue::default() };
                state.destinations.insert(destination.clone(), queue);
            }
            state.in_flight += 1;
            self.in_flight += 1;
        } else if state.is_idle() {
            self.tenants.remove(tenant);
        }
        taken
    }

    /// The next send to start, with its place in flight taken. `admits` says whether a tenant's pool has a usable
    /// source, or which pool has none; tenants that it turns away are parked until [`Self::unpark`].
    pub fn next(&mut self, mut admits: impl FnMut(&TenantId) -> Result<(), Arc<str>>) -> Option<Picked> {
        while self.in_flight < self.caps.in_flight {
            let tenant = self.ring.front()?.clone();
            if let Err(pool) = admits(&tenant) {
                self.ring.pop_front();
                if let Some(state) = self.tenants.get_mut(&tenant) {
                    state.place = RingState::Parked;
                    self.parked.entry(pool).or_default().push(tenant);
                }
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
            if let Some((_, send)) = &picked {
                state.deficit -= 1;
                self.in_flight += 1;
                self.queued -= 1;
                self.expiries.remove(&(send.expires_at, send.id));
            }
            if !state.runnable(self.caps) {
                state.place = RingState::Idle;
                // Unused measure is not saved up; debt stays.
                state.deficit = state.deficit.min(0);
                self.ring.pop_front();
                if state.is_idle() {
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
        if state.is_idle() {
            // Nothing is known of an idle tenant, so that past tenants cost nothing. Debt is forgiven with it.
            self.forget_idle(tenant);
            return;
        }
        self.enter_ring(tenant);
    }

    /// Takes out every waiting send that has expired.
    pub fn expire(&mut self, now: Timestamp) -> Vec<Picked> {
        let mut out = Vec::new();
        while let Some(first) = self.expiries.first_entry().filter(|first| first.key().0 <= now) {
            let ((_, id), (tenant, destination)) = first.remove_entry();
            let Some(state) = self.tenants.get_mut(&tenant) else { continue };
            let Some(send) = state.remove(&destination, id) else { continue };
            self.queued -= 1;
            self.forget_idle(&tenant);
            out.push(Picked { tenant, destination, send });
        }
        out
    }

    /// Takes out every waiting send that `which` names, and looks at each for it; no places in flight are involved.
    pub fn remove_where(
        &mut self,
        mut which: impl FnMut(&TenantId, &Option<Destination>, &Waiting) -> bool,
    ) -> Vec<Picked> {
        let mut out = Vec::new();
        for (tenant, state) in &mut self.tenants {
            for (destination, queue) in &mut state.destinations {
                let before = queue.waiting.len();
                queue.waiting.retain(|send| {
                    let remove = which(tenant, destination, send);
                    if remove {
                        self.expiries.remove(&(send.expires_at, send.id));
                        out.push(Picked {
                            tenant: tenant.clone(),
                            destination: destination.clone(),
                            send: send.clone(),
                        });
                    }
                    !remove
                });
                let gone = (before - queue.waiting.len()) as u64;
                state.queued -= gone;
                state.startable -= if queue.ready { gone } else { 0 };
            }
            // Empty destinations leave the ready list when their turn comes.
        }
        self.queued -= out.len() as u64;
        for picked in &out {
            self.forget_idle(&picked.tenant);
        }
        out
    }

    /// Parked tenants of the pools that are usable are asked again.
    pub fn unpark(&mut self, mut usable: impl FnMut(&str) -> bool) {
        if self.parked.is_empty() {
            return;
        }
        for (_, tenants) in self.parked.extract_if(|pool, _| usable(pool)).collect::<Vec<_>>() {
            for tenant in tenants {
                if let Some(state) = self.tenants.get_mut(&tenant).filter(|state| state.place == RingState::Parked) {
                    state.place = RingState::Idle;
                    self.enter_ring(&tenant);
                    self.forget_idle(&tenant);
                }
            }
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
                        state.startable += queue.waiting.len() as u64;
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

    /// Of those queued, the ones whose destination has room.
    pub fn startable_of(&self, tenant: &TenantId) -> u64 {
        self.tenants.get(tenant).map_or(0, |state| state.startable)
    }

    /// Waiting sends of the tenant to this destination.
    pub fn queued_to(&self, tenant: &TenantId, destination: &Option<Destination>) -> usize {
        self.tenants.get(tenant).and_then(|state| state.destinations.get(destination)).map_or(0, |to| to.waiting.len())
    }

    /// Destinations of the tenant for which so many or more wait. Looks at each of its destinations.
    pub fn crowded(&self, tenant: &TenantId, least: usize) -> Vec<Destination> {
        let destinations = self.tenants.get(tenant).into_iter().flat_map(|state| &state.destinations);
        destinations.filter(|(_, queue)| queue.waiting.len() >= least).filter_map(|(to, _)| to.clone()).collect()
    }

    /// How many more sends of the tenant fit before more than `kept` wait for a destination that is full, whichever of
    /// those that are not crowded they are to. Looks at each of its destinations.
    pub fn room_before_full(&self, tenant: &TenantId, kept: usize, crowded: usize) -> u64 {
        let most = u64::from(self.caps.per_destination) + kept as u64;
        let destinations = self.tenants.get(tenant).into_iter().flat_map(|state| state.destinations.values());
        let open = destinations.filter(|queue| queue.waiting.len() < crowded);
        let taken = open.map(|queue| u64::from(queue.in_flight) + queue.waiting.len() as u64).max();
        // A cap may have been lowered since.
        most.saturating_sub(taken.unwrap_or_default()).max(kept.saturating_sub(crowded) as u64)
    }

    /// Whether the tenant's destination has as much in flight as it may.
    pub fn is_full(&self, tenant: &TenantId, destination: &Option<Destination>) -> bool {
        let queue = self.tenants.get(tenant).and_then(|state| state.destinations.get(destination));
        queue.is_some_and(|queue| queue.in_flight >= self.caps.per_destination)
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    pub fn in_flight_of(&self, tenant: &TenantId) -> u32 {
        self.tenants.get(tenant).map_or(0, |state| state.in_flight)
    }

    /// Whether something could be picked if a source were usable and the node had room.
    pub fn runnable(&self) -> bool {
        !self.ring.is_empty() && self.in_flight < self.caps.in_flight
    }

    /// When the oldest waiting send was released. Looks at the front of every line.
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

    /// When the oldest waiting send of this tenant was released. Looks at the front of its lines.
    pub fn oldest_of(&self, tenant: &TenantId) -> Option<Timestamp> {
        self.tenants.get(tenant).and_then(Tenant::oldest)
    }

    fn forget_idle(&mut self, tenant: &TenantId) {
        if self.tenants.get(tenant).is_some_and(|state| state.is_idle() && state.place == RingState::Idle) {
            self.tenants.remove(tenant);
        }
    }

    fn enter_ring(&mut self, tenant: &TenantId) {
        let Some(state) = self.tenants.get_mut(tenant) else { return };
        if state.place == RingState::Idle && state.runnable(self.caps) {
            state.place = RingState::Ring;
            self.ring.push_back(tenant.clone());
        }
    }
}

impl Tenant {
    fn runnable(&self, caps: Caps) -> bool {
        self.in_flight < self.cap.unwrap_or(caps.per_tenant) && !self.ready.is_empty()
    }

    fn is_idle(&self) -> bool {
        self.queued == 0 && self.in_flight == 0
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
                self.startable -= queue.waiting.len() as u64;
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
            self.startable -= 1;
            if queue.waiting.is_empty() || queue.in_flight >= caps.per_destination {
                queue.ready = false;
                self.startable -= queue.waiting.len() as u64;
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
            self.startable += queue.waiting.len() as u64;
            self.ready.push_back(destination.clone());
        }
    }

    /// Takes a send out of the middle of its line; a line is as long as the window lets it be.
    fn remove(&mut self, destination: &Option<Destination>, id: SendId) -> Option<Waiting> {
        let queue = self.destinations.get_mut(destination)?;
        let at = queue.waiting.iter().position(|send| send.id == id)?;
        self.queued -= 1;
        self.startable -= u64::from(queue.ready);
        // An empty destination leaves the ready list when its turn comes.
        queue.waiting.remove(at)
    }

    fn oldest(&self) -> Option<Timestamp> {
        self.destinations.values().filter_map(|queue| queue.waiting.front()).map(|send| send.released_at).min()
    }
}
