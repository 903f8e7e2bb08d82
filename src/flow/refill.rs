//! When the window is refilled: who claims, how much, in which order.
//!
//! A tenant stands in line while the store has more of it and little of it could start here. Those of whom nothing
//! here could start come first, and are not kept out by those who fill the window: so each tenant has something to
//! offer in every round of [`crate::schedule`], whatever the others have queued.

use super::{Claim, FULL_KEPT, Flow, Left, Mode, Terms, Want};
use crate::policy::Destination;
use crate::send::TenantId;

/// Most tenants that one claim asks for.
pub(super) const TENANTS_PER_CLAIM: usize = 64;
/// A tenant has so many startable sends in the window after a claim; it claims when less than [`LOW`] are left.
pub(super) const WINDOW_PER_TENANT: u64 = 256;
pub(super) const LOW: u64 = 64;
/// With so many in the window, a tenant's destination is skipped.
pub(super) const CROWDED: usize = 64;
/// A tenant has no more than this in the window, whatever of it could start.
pub(super) const WINDOW_PER_TENANT_MAX: u64 = 4 * 1024;
/// A tenant that has none in the window may claim so many although it is full.
pub(super) const FEW: u64 = 4;
// Who may claim has room for something, whatever it turns out to be.
const _: () = assert!(FULL_KEPT as u64 >= CROWDED as u64 + LOW);

/// What is known of a tenant beside what the schedule knows. None where all of it is at its default.
#[derive(Debug, Default)]
pub(super) struct Stock {
    pub(super) left: Left,
    /// A claim for it is under way.
    pub(super) claiming: bool,
    /// Something was added to the store's while it was: the answer does not know.
    pub(super) added: bool,
    /// Where it stands in line for a claim.
    pub(super) place: Option<ClaimTurn>,
    /// Sends of calls that are being written.
    pub(super) reserved: u64,
    /// Of those, the ones that come into the window.
    pub(super) coming: u64,
}

/// A place in line: those who have nothing here that could start come first, then who came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ClaimTurn {
    pub(super) has_some: bool,
    pub(super) number: u64,
}

impl Flow {
    pub(super) fn may_claim(&self) -> bool {
        let first = self.line.first_key_value().map(|(place, _)| place);
        let room =
            |place: &ClaimTurn| self.window() < if place.has_some { self.window_max() } else { 2 * self.window_max() };
        !self.claiming && self.pause == 0 && first.is_some_and(room)
    }

    pub(super) fn stock(&mut self, tenant: &TenantId) -> &mut Stock {
        if !self.stocks.contains_key(tenant) {
            self.stocks.insert(tenant.clone(), Stock::default());
        }
        self.stocks.entry(tenant.clone()).or_default()
    }

    pub(super) fn forget_idle(&mut self, tenant: &TenantId) {
        let idle = |stock: &Stock| {
            stock.left == Left::Nothing
                && !stock.claiming
                && stock.place.is_none()
                && stock.reserved == 0
                && stock.coming == 0
        };
        if self.stocks.get(tenant).is_some_and(idle) {
            self.stocks.remove(tenant);
        }
    }

    /// A send of this tenant has left the window.
    pub(super) fn left_window(&mut self, tenant: &TenantId, destination: &Option<Destination>) {
        if let Some(stock) = self.stocks.get_mut(tenant)
            && stock.left != Left::Nothing
        {
            if stock.left == Left::Skipped && self.schedule.queued_to(tenant, destination) < CROWDED {
                // What was skipped for it may be claimed now.
                stock.left = Left::More;
            }
            self.look_for_more(tenant);
        }
    }

    /// Puts the tenant in line for a claim, where it has more in the store and little here.
    pub(super) fn look_for_more(&mut self, tenant: &TenantId) {
        if self.mode == Mode::Stopped {
            return;
        }
        let (startable, queued) = (self.schedule.startable_of(tenant), self.schedule.queued_of(tenant));
        let Some(stock) = self.stocks.get_mut(tenant) else { return };
        if stock.left != Left::More {
            return self.forget_idle(tenant);
        }
        let here = startable + stock.coming;
        if stock.claiming || here >= LOW || queued >= WINDOW_PER_TENANT_MAX {
            return;
        }
        match stock.place {
            // It has run out meanwhile.
            Some(place) if place.has_some && here == 0 => drop(self.line.remove(&place)),
            Some(_) => return,
            None => {}
        }
        let place = ClaimTurn { has_some: here > 0, number: self.next_place };
        self.next_place += 1;
        stock.place = Some(place);
        self.line.insert(place, tenant.clone());
    }

    /// Pools that could not be used when more of their tenants was to be claimed: of those that can be now, it is.
    pub(super) fn look_at_shut(&mut self, terms: &impl Terms) {
        let before = self.shut.len();
        self.shut.retain(|pool| !terms.pool_usable(pool));
        if self.shut.len() < before {
            self.look_everywhere(|left| *left == Left::More);
        }
    }

    pub(super) fn look_everywhere(&mut self, which: impl Fn(&Left) -> bool) {
        let tenants: Vec<TenantId> =
            self.stocks.iter().filter(|(_, stock)| which(&stock.left)).map(|(tenant, _)| tenant.clone()).collect();
        for tenant in tenants {
            self.added(&tenant);
        }
    }

    /// The next question to the store: tenants in turn, each up to its share, as far as the window has room. Those who
    /// have nothing here that could start are not kept out by those who fill it.
    pub(super) fn claim(&mut self, terms: &impl Terms) -> Option<Claim> {
        let mut wants = Vec::new();
        let mut asked = 0;
        while wants.len() < TENANTS_PER_CLAIM && self.may_claim() {
            let free = self.window_max().saturating_sub(self.window() + asked);
            let beyond = (2 * self.window_max()).saturating_sub(self.window() + asked);
            let Some(first) = self.line.first_entry() else { break };
            let has_some = first.key().has_some;
            if beyond == 0 || has_some && free == 0 {
                break;
            }
            let tenant = first.remove();
            let (startable, queued) = (self.schedule.startable_of(&tenant), self.schedule.queued_of(&tenant));
            let full = self.schedule.crowded(&tenant, CROWDED);
            let stock = self.stock(&tenant);
            stock.place = None;
            if let Err(pool) = terms.admits(&tenant) {
                self.shut.insert(pool);
                continue;
            }
            // All that comes may be one destination's that is full then: more than is kept of it would go back at once, to
            // be claimed again.
            let kept = self.schedule.room_before_full(&tenant, FULL_KEPT, CROWDED);
            let stock = self.stock(&tenant);
            let here = startable + stock.coming;
            let share = WINDOW_PER_TENANT.saturating_sub(here).min(WINDOW_PER_TENANT_MAX.saturating_sub(queued));
            let share = share.min(kept.saturating_sub(stock.coming));
            let room = share.min(if has_some { free } else { free.max(FEW.min(beyond)) });
            if here >= LOW || stock.left != Left::More || room == 0 {
                continue;
            }
            stock.claiming = true;
            asked += room;
            wants.push(Want { tenant, room: room as usize, full });
        }
        if wants.is_empty() {
            return None;
        }
        self.claiming = true;
        Some(Claim { wants, answered: false, back: self.back.clone() })
    }
}
