//! What is taken and must be given back, as values: a place in flight ([`Slot`]), a send on its way to its start
//! ([`Go`]), room for sends that are being written ([`Admission`]), a question to the store ([`Claim`]).
//!
//! None of them can be copied, none can be lost: dropping one, by a panic too, tells the flow at its next turn. Only
//! [`super::Flow`] makes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::Sender;

use crate::policy::Destination;
use crate::schedule::Waiting;
use crate::send::{SendId, TenantId};

/// Called when something was given back that changes what can be done; must not block and not call the flow.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// The way back to the flow.
#[derive(Clone)]
pub(super) struct Back {
    pub sender: Sender<Returned>,
    pub wake: Wake,
    pub ear: Arc<Ear>,
}

/// Whether a place that comes back is of use to anybody now. Where nothing waits it is not, and the wake that it would
/// cost is most of what a turn costs: the next event takes it back.
///
/// Who gives counts, then looks whether somebody waits; the flow says that somebody waits, then looks at the count. So
/// one of the two sees the other (both in one order of all, hence `SeqCst`).
#[derive(Default)]
pub(super) struct Ear {
    /// Given back.
    places: AtomicU64,
    waits: AtomicBool,
}

impl Ear {
    /// Something waits in the window, or nothing does. Whether more places were given back than those so many.
    pub fn set(&self, waits: bool, taken: u64) -> bool {
        self.waits.store(waits, SeqCst);
        waits && self.places.load(SeqCst) != taken
    }
}

impl Back {
    fn give(&self, what: Returned) {
        let is_place = matches!(what, Returned::Place { .. });
        // Nobody waits for room: who finds none is refused.
        let is_room = matches!(
            &what,
            Returned::Room { lost, gathered, waits: false, .. } if lost.is_empty() && gathered.is_empty()
        );
        // Nobody is there to take it once the flow itself is gone.
        let _ = self.sender.send(what);
        if is_place {
            self.ear.places.fetch_add(1, SeqCst);
        }
        if !is_room && (!is_place || self.ear.waits.load(SeqCst)) {
            (self.wake)();
        }
    }
}

/// What comes back.
pub(super) enum Returned {
    Place { tenant: TenantId, destination: Option<Destination>, moved: u64 },
    Unbegun { tenant: TenantId, destination: Option<Destination>, send: Waiting },
    Room { tenant: TenantId, sends: u64, lost: Vec<SendId>, gathered: Vec<SendId>, waits: bool },
    Claim { tenants: Vec<TenantId> },
}

/// A place in flight, of the node, the tenant and the destination.
#[must_use]
pub struct Slot {
    tenant: TenantId,
    destination: Option<Destination>,
    moved: u64,
    back: Back,
}

impl Slot {
    pub(super) fn new(tenant: TenantId, destination: Option<Destination>, back: Back) -> Self {
        Self { tenant, destination, moved: 0, back }
    }

    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    pub fn destination(&self) -> &Option<Destination> {
        &self.destination
    }

    /// What the delivery moved, for the tenant's account.
    pub fn moved(&mut self, bytes: u64) {
        self.moved = bytes;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let (tenant, destination) = (self.tenant.clone(), self.destination.take());
        self.back.give(Returned::Place { tenant, destination, moved: self.moved });
    }
}

/// A send whose turn it is, with its place in flight. Dropped as it is, it waits again, at the front of its line.
#[must_use]
pub struct Go {
    /// `None` once it was taken out.
    inside: Option<(Slot, Waiting)>,
}

impl Go {
    pub(super) fn new(slot: Slot, send: Waiting) -> Self {
        Self { inside: Some((slot, send)) }
    }

    pub fn send(&self) -> Option<&Waiting> {
        self.inside.as_ref().map(|(_, send)| send)
    }

    pub fn tenant(&self) -> Option<&TenantId> {
        self.inside.as_ref().map(|(slot, _)| &slot.tenant)
    }

    /// Its start is durable, or it can never be made: from now on it is the caller's to end.
    pub fn take(mut self) -> Option<(Slot, Waiting)> {
        self.inside.take()
    }
}

impl Drop for Go {
    fn drop(&mut self) {
        if let Some((slot, send)) = self.inside.take() {
            let (tenant, destination) = (slot.tenant.clone(), slot.destination.clone());
            let back = slot.back.clone();
            drop(slot);
            back.give(Returned::Unbegun { tenant, destination, send });
        }
    }
}

/// What becomes of one send of a call once it is accepted.
pub enum Entry {
    /// It starts at once, in this place: accepting it marks its start.
    Begin(Slot),
    /// It waits in the window.
    Keep,
    /// It waits in the store.
    Wait,
}

/// Room for a call's sends while they are being written. To be handed to [`super::Flow::accepted`] when they are;
/// dropped, the room is free again.
#[must_use]
pub struct Admission {
    pub(super) tenant: TenantId,
    pub(super) sends: u64,
    /// Of those, the ones that are to be kept in the window.
    pub(super) kept: Vec<SendId>,
    /// And those that are claimed to gather with others, beside the window.
    pub(super) gathered: Vec<SendId>,
    /// Empty for a call whose sends are held; else one for each send, in call order.
    pub entries: Vec<Entry>,
    pub(super) waits: bool,
    pub(super) back: Back,
}

impl Admission {
    /// Nothing of it comes into the window or waits in the store: once its sends are written, it has only its room to
    /// give back.
    pub fn is_spent(&self) -> bool {
        self.kept.is_empty() && self.gathered.is_empty() && !self.waits
    }

    /// These of the call are claimed to gather with others: no slot and no place in the window is theirs.
    pub fn gather(&mut self, sends: impl Iterator<Item = SendId>) {
        self.gathered.extend(sends);
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let (tenant, lost) = (self.tenant.clone(), std::mem::take(&mut self.kept));
        let gathered = std::mem::take(&mut self.gathered);
        self.back.give(Returned::Room { tenant, sends: self.sends, lost, gathered, waits: self.waits });
    }
}

/// What the store is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    pub tenant: TenantId,
    pub room: usize,
    /// Destinations of which enough wait in the window.
    pub full: Vec<Destination>,
}

/// A question to the store, to be handed back with its answer; dropped, it is asked again.
#[must_use]
pub struct Claim {
    pub wants: Vec<Want>,
    pub(super) answered: bool,
    pub(super) back: Back,
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.answered {
            let tenants = self.wants.iter().map(|want| want.tenant.clone()).collect();
            self.back.give(Returned::Claim { tenants });
        }
    }
}
