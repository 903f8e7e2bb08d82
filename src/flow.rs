//! The heart of once-only: decides when each accepted send starts, and loses track of none.
//!
//! What waits is in the store; here is a **window** over it: what can soon start, about twice what may be in flight,
//! some of each tenant. It is refilled by claims ([`Claim`]) as it empties, tenant after tenant in a round, so that a
//! tenant with one send is not behind another's million; destinations of which enough wait already are skipped, so
//! that one which does not answer holds back nobody's other sends. Which of the window goes next is
//! [`crate::schedule`]'s choice.
//!
//! ```text
//! admit ─ accepted ─┬─ begins at once (its start is in the same durable record) ─┐
//!                   ├─ kept in the window ──────┐                                ├─ Slot ─ given back
//!                   └─ waits in the store ─claim┴─ turn ─ Go ─ its start durable ┘
//! ```
//!
//! Events are methods, with what they need to know as arguments ([`Terms`]: `now`, sources, suspensions, caps); what
//! has to be done is what they answer. No I/O, no clock, no lock: a shell does what is decided here, and a
//! seeded `simulation` drives it against a store that delays, fails, crashes and comes back. What is taken ([`Slot`],
//! [`Go`], [`Admission`], [`Claim`]) is a value that comes back when it is dropped.
//!
//! Nothing here is linear in what waits: each event costs what it changes. What is linear in the window (suspensions,
//! a reload) happens at an operator's call.

mod held;
mod refill;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use jiff::Timestamp;

pub use self::held::{Admission, Claim, Entry, Go, Slot, Wake, Want};
use self::held::{Back, Ear, Returned};
use self::refill::{CROWDED, ClaimTurn, Stock, WINDOW_PER_TENANT};
use crate::limits;
use crate::policy::Destination;
use crate::schedule::{Caps, Picked, Schedule, Waiting};
use crate::send::{SendId, TenantId};

/// What decisions depend on beside what the flow knows itself.
pub trait Terms {
    /// By the clock that [`Waiting::expires_at`](crate::schedule::Waiting) goes by.
    fn now(&self) -> Timestamp;
    /// The tenant's own cap in flight, where it differs.
    fn cap_of(&self, tenant: &TenantId) -> Option<u32>;
    /// Whether the tenant's pool has a usable source; else which pool has none.
    fn admits(&self, tenant: &TenantId) -> Result<(), Arc<str>>;
    fn pool_usable(&self, pool: &str) -> bool;
    /// Why the operator stopped such sends.
    fn stopped(&self, tenant: &TenantId, workflow: Option<&str>, destination: Option<&Destination>)
    -> Option<Arc<str>>;
}

/// What waits, held sends included, as the store counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    pub tenant: u64,
    pub node: u64,
}

/// Which bound a call ran into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    Tenant { waiting: u64, limit: u64 },
    Node { waiting: u64, limit: u64 },
}

/// The room there is for what waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub tenant: u64,
    pub node: u64,
}

/// Why a send's start was not marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotBegun {
    /// The store cannot write now: it waits, and so do all others for a while.
    StoreAway,
    /// It does not wait any more; whoever began or ended it sees to its end.
    Gone,
}

/// A send that ends without being made.
#[derive(Clone, Debug)]
pub struct Unsent {
    pub tenant: TenantId,
    pub send: Waiting,
    pub why: Why,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    Expired,
    Suspended(Arc<str>),
}

/// A send that the store gave to this node.
#[derive(Clone, Debug)]
pub struct Claimed {
    pub tenant: TenantId,
    pub destination: Option<Destination>,
    pub send: Waiting,
}

/// What the store still has of a tenant after a claim, unclaimed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Left {
    #[default]
    Nothing,
    /// Only sends to destinations that were full.
    Skipped,
    More,
}

/// What is to be done now.
#[derive(Default)]
pub struct Turn {
    /// To be begun, then delivered.
    pub begin: Vec<Go>,
    pub claim: Option<Claim>,
    /// Claimed sends that this node does not look after: the store gives them to whoever asks next.
    pub give_back: Vec<SendId>,
    /// Ended without being made; the caller writes it.
    pub unsent: Vec<Unsent>,
    /// There is more to be done at once.
    pub again: bool,
}

/// What the passing of time asks for.
#[derive(Default)]
pub struct Tick {
    pub unsent: Vec<Unsent>,
    /// The store is to end those of its unclaimed sends that have expired.
    pub expire: bool,
    /// The store is to be asked which tenants have something waiting: other nodes accept, and die.
    pub look: bool,
}

/// Most sends that one turn starts.
const BEGIN_PER_TURN: usize = 64;
/// So many of a destination that is full are kept in the window; the rest goes back.
const FULL_KEPT: usize = 128;
/// The least window.
const WINDOW_MIN: u64 = 256;
/// Ticks without a start after the store could not mark one.
const PAUSE_TICKS: u32 = 5;
/// Ticks between two looks at the whole of what waits.
const LOOK_TICKS: u64 = 50;
/// Ticks between two sweeps of the store for what has expired there.
const EXPIRE_TICKS: u64 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Nothing starts before the shell says so.
    Waiting,
    Running,
    /// No more starts: the process stops, or another took its place.
    Stopped,
}

pub struct Flow {
    mode: Mode,
    schedule: Schedule,
    caps: Caps,
    stocks: HashMap<TenantId, Stock>,
    /// Tenants with little in the window and more in the store, each once.
    line: BTreeMap<ClaimTurn, TenantId>,
    next_place: u64,
    reserved: u64,
    coming: u64,
    claiming: bool,
    /// Pools without a source to use, of whose tenants no more was claimed.
    shut: BTreeSet<Arc<str>>,
    /// Ticks until something may start again.
    pause: u32,
    ticks: u64,
    back: Back,
    returned: Receiver<Returned>,
    /// How many places were taken back.
    taken: u64,
    /// Kept sends of calls that came to no end: whether the store has them is not known.
    lost: Vec<SendId>,
}

impl Flow {
    /// `wake` is called when a turn is worth taking because something was given back, once [`Self::is_due`] was asked
    /// after the last event.
    pub fn new(caps: Caps, wake: Wake) -> Self {
        let (sender, returned) = channel();
        Self {
            mode: Mode::Waiting,
            schedule: Schedule::new(caps),
            caps,
            stocks: HashMap::new(),
            line: BTreeMap::new(),
            next_place: 0,
            reserved: 0,
            coming: 0,
            claiming: false,
            shut: BTreeSet::new(),
            pause: 0,
            ticks: 0,
            back: Back { sender, wake, ear: Arc::new(Ear::default()) },
            returned,
            taken: 0,
            lost: Vec::new(),
        }
    }

    // Calls.

    /// Makes room for a call's sends, or says which bound is reached: what waits, what other calls have reserved and
    /// this one must fit in together.
    pub fn admit(
        &mut self,
        tenant: &TenantId,
        count: u64,
        counted: Counted,
        bounds: Bounds,
        terms: &impl Terms,
    ) -> Result<Admission, Full> {
        self.take_back(terms);
        let reserved = self.stocks.get(tenant).map_or(0, |stock| stock.reserved);
        let waiting = counted.tenant + reserved;
        if waiting + count > bounds.tenant {
            return Err(Full::Tenant { waiting, limit: bounds.tenant });
        }
        let waiting = counted.node + self.reserved;
        if waiting + count > bounds.node {
            return Err(Full::Node { waiting, limit: bounds.node });
        }
        self.stock(tenant).reserved += count;
        self.reserved += count;
        Ok(Admission {
            tenant: tenant.clone(),
            sends: count,
            kept: Vec::new(),
            gathered: Vec::new(),
            entries: Vec::new(),
            waits: false,
            back: self.back.clone(),
        })
    }

    /// Says what becomes of each send of an admitted call once it is accepted. Not for those that are held.
    pub fn place(
        &mut self,
        admission: &mut Admission,
        sends: impl Iterator<Item = (SendId, Option<Destination>)>,
        terms: &impl Terms,
    ) {
        self.take_back(terms);
        let tenant = admission.tenant.clone();
        // What cannot leave from here is nobody's: another node may have a source for it.
        let admitted = terms.admits(&tenant).is_ok();
        admission.waits |= !admitted;
        let starts = self.starts() && admitted;
        for (id, destination) in sends {
            let entry = self.enter(&tenant, &destination, starts, admission, terms);
            match entry {
                Entry::Begin(_) => {}
                Entry::Keep => {
                    admission.kept.push(id);
                    self.stock(&tenant).coming += 1;
                    self.coming += 1;
                }
                Entry::Wait => admission.waits = true,
            }
            admission.entries.push(entry);
        }
    }

    /// A send does not overtake what waits of its tenant, but for what waits because its destination is full.
    fn enter(
        &mut self,
        tenant: &TenantId,
        destination: &Option<Destination>,
        starts: bool,
        so_far: &Admission,
        terms: &impl Terms,
    ) -> Entry {
        let in_store = so_far.waits || self.stocks.get(tenant).is_some_and(|stock| stock.left != Left::Nothing);
        if in_store || self.mode == Mode::Stopped {
            return Entry::Wait;
        }
        let coming = self.stocks.get(tenant).map_or(0, |stock| stock.coming);
        if starts && coming == 0 && self.schedule.enter(tenant, destination, terms.cap_of(tenant)) {
            return Entry::Begin(Slot::new(tenant.clone(), destination.clone(), self.back.clone()));
        }
        let room = self.window() < self.window_max()
            && coming + self.schedule.queued_of(tenant) < WINDOW_PER_TENANT
            && coming as usize + self.schedule.queued_to(tenant, destination) < FULL_KEPT;
        if room { Entry::Keep } else { Entry::Wait }
    }

    /// The call's sends are on disk: those to be kept come into the window.
    pub fn accepted(&mut self, mut admission: Admission, kept: Vec<Claimed>, terms: &impl Terms) -> Vec<Unsent> {
        let unsent = self.put_into_window(kept, terms);
        self.not_coming(&admission.tenant, admission.kept.len() as u64);
        admission.kept.clear();
        admission.gathered.clear();
        if std::mem::take(&mut admission.waits) {
            self.added(&admission.tenant);
        }
        unsent
    }

    /// The store has more of this tenant than before, unclaimed: released by an execution's end, given back, accepted
    /// elsewhere.
    pub fn added(&mut self, tenant: &TenantId) {
        let stock = self.stock(tenant);
        stock.left = Left::More;
        stock.added = stock.claiming;
        self.look_for_more(tenant);
    }

    // Between the store and the window.

    /// What a claim brought.
    pub fn claimed(&mut self, mut claim: Claim, left: &[Left], sends: Vec<Claimed>, terms: &impl Terms) -> Vec<Unsent> {
        claim.answered = true;
        self.claiming = false;
        let unsent = self.put_into_window(sends, terms);
        for (at, want) in claim.wants.iter().enumerate() {
            // What was full when it was asked may have drained since, and nothing of it be left here to say so.
            let mut full = want.full.iter();
            let drained = full.any(|to| self.schedule.queued_to(&want.tenant, &Some(to.clone())) < CROWDED);
            let stock = self.stock(&want.tenant);
            stock.claiming = false;
            stock.left = match left.get(at) {
                _ if std::mem::take(&mut stock.added) => Left::More,
                // It was not even looked at.
                None => Left::More,
                Some(Left::Skipped) if drained => Left::More,
                Some(left) => *left,
            };
            self.look_for_more(&want.tenant);
        }
        unsent
    }

    /// What another node has claimed for this one.
    pub fn handed(&mut self, sends: Vec<Claimed>, terms: &impl Terms) -> Vec<Unsent> {
        self.put_into_window(sends, terms)
    }

    /// A send did not begin; its place comes back with `go`.
    pub fn not_begun(&mut self, go: Go, why: NotBegun) {
        match why {
            // Dropped, it waits again.
            NotBegun::StoreAway => self.store_away(),
            NotBegun::Gone => drop(go.take()),
        }
    }

    /// The store does not write: nothing starts for a while.
    pub fn store_away(&mut self) {
        self.pause = PAUSE_TICKS;
    }

    fn put_into_window(&mut self, sends: Vec<Claimed>, terms: &impl Terms) -> Vec<Unsent> {
        let mut unsent = Vec::new();
        for Claimed { tenant, destination, send } in sends {
            // Whoever was suspended meanwhile was not in the window when it was looked through.
            if let Some(reason) = terms.stopped(&tenant, send.workflow.as_deref(), destination.as_ref()) {
                unsent.push(Unsent { tenant, send, why: Why::Suspended(reason) });
            } else if self.mode == Mode::Stopped || self.is_over(&tenant, &destination) {
                self.lost.push(send.id);
                self.added(&tenant);
            } else {
                self.schedule.push(&tenant, destination, terms.cap_of(&tenant), send);
            }
        }
        unsent
    }

    /// Its destination is full, and enough of it wait here.
    fn is_over(&self, tenant: &TenantId, destination: &Option<Destination>) -> bool {
        self.schedule.is_full(tenant, destination) && self.schedule.queued_to(tenant, destination) >= FULL_KEPT
    }

    // The loop.

    /// Starts what may start, and asks the store for more where the window has room.
    pub fn turn(&mut self, terms: &impl Terms) -> Turn {
        self.take_back(terms);
        let mut turn = Turn::default();
        if self.starts() {
            let mut shut_out = HashSet::new();
            while turn.begin.len() < BEGIN_PER_TURN
                && let Some(Picked { tenant, destination, send }) =
                    self.schedule.next(|tenant| terms.admits(tenant).inspect_err(|_| shut_out.extend([tenant.clone()])))
            {
                self.left_window(&tenant, &destination);
                let slot = Slot::new(tenant.clone(), destination, self.back.clone());
                if send.expires_at <= terms.now() {
                    turn.unsent.push(Unsent { tenant, send, why: Why::Expired });
                } else {
                    turn.begin.push(Go::new(slot, send));
                }
            }
            turn.again = turn.begin.len() == BEGIN_PER_TURN;
            self.hand_over(shut_out);
        }
        turn.give_back = std::mem::take(&mut self.lost);
        turn.claim = self.claim(terms);
        turn.again |= self.listen();
        turn
    }

    /// What cannot leave from here is nobody's again: another node may have a source for it.
    fn hand_over(&mut self, tenants: HashSet<TenantId>) {
        if tenants.is_empty() {
            return;
        }
        let gone = self.schedule.remove_where(|tenant, _, _| tenants.contains(tenant));
        self.lost.extend(gone.into_iter().map(|picked| picked.send.id));
        tenants.iter().for_each(|tenant| self.added(tenant));
    }

    /// What time alone changes; to be called about ten times a second.
    pub fn tick(&mut self, terms: &impl Terms) -> Tick {
        self.take_back(terms);
        self.ticks += 1;
        self.pause = self.pause.saturating_sub(1);
        self.schedule.unpark(|pool| terms.pool_usable(pool));
        self.look_at_shut(terms);
        let mut tick = Tick {
            expire: self.ticks.is_multiple_of(EXPIRE_TICKS),
            look: self.ticks.is_multiple_of(LOOK_TICKS) && self.mode == Mode::Running,
            ..Tick::default()
        };
        for Picked { tenant, destination, send } in self.schedule.expire(terms.now()) {
            self.left_window(&tenant, &destination);
            tick.unsent.push(Unsent { tenant, send, why: Why::Expired });
        }
        tick
    }

    /// After suspensions have changed: takes out of the window what they stop.
    pub fn suspended(&mut self, terms: &impl Terms) -> Vec<Unsent> {
        let stopped = |tenant: &TenantId, destination: &Option<Destination>, send: &Waiting| {
            terms.stopped(tenant, send.workflow.as_deref(), destination.as_ref())
        };
        let gone = self.schedule.remove_where(|tenant, to, send| stopped(tenant, to, send).is_some());
        let mut unsent = Vec::with_capacity(gone.len());
        for Picked { tenant, destination, send } in gone {
            self.left_window(&tenant, &destination);
            let reason = stopped(&tenant, &destination, &send).unwrap_or_else(|| Arc::from(""));
            unsent.push(Unsent { tenant, send, why: Why::Suspended(reason) });
        }
        unsent
    }

    /// New caps, after a reload.
    pub fn set_caps(&mut self, caps: Caps, terms: &impl Terms) {
        self.caps = caps;
        self.schedule.set_caps(caps, |tenant| terms.cap_of(tenant));
        // Tenants may have another pool now: each is asked again, and parked again where it must be.
        self.schedule.unpark(|_| true);
        self.shut.clear();
        self.look_everywhere(|left| *left != Left::Nothing);
    }

    /// Sends may start from now on.
    pub fn start(&mut self) {
        if self.mode == Mode::Waiting {
            self.mode = Mode::Running;
        }
    }

    /// These tenants have something in the store that waits unclaimed, by its own account.
    pub fn waiting(&mut self, tenants: impl IntoIterator<Item = TenantId>) {
        for tenant in tenants {
            match self.stocks.get(&tenant).map(|stock| stock.left) {
                Some(Left::More) => self.look_for_more(&tenant),
                _ => self.added(&tenant),
            }
        }
    }

    /// Nothing starts any more; what is in the window goes back to the store with the next turn.
    pub fn stop(&mut self) {
        self.mode = Mode::Stopped;
        self.line.clear();
        for stock in self.stocks.values_mut() {
            stock.place = None;
        }
        self.lost.extend(self.schedule.remove_where(|_, _, _| true).into_iter().map(|picked| picked.send.id));
    }

    // What it tells.

    pub fn in_flight(&self) -> u32 {
        self.schedule.in_flight()
    }

    pub fn in_flight_of(&self, tenant: &TenantId) -> u32 {
        self.schedule.in_flight_of(tenant)
    }

    /// Every tenant with something in the window or in flight: how much is in flight, and since when the oldest in
    /// the window waits.
    pub fn loads(&self) -> impl Iterator<Item = (&TenantId, u64, Option<Timestamp>)> {
        self.schedule.loads().map(|(tenant, load)| (tenant, load.in_flight, load.oldest))
    }

    /// When the oldest send in the window was released.
    pub fn oldest(&self) -> Option<Timestamp> {
        self.schedule.oldest()
    }

    pub fn oldest_of(&self, tenant: &TenantId) -> Option<Timestamp> {
        self.schedule.oldest_of(tenant)
    }

    /// Whether a turn is worth taking. To be asked after each event.
    pub fn is_due(&self) -> bool {
        let more = self.listen();
        more || self.starts() && self.schedule.runnable() || self.may_claim() || !self.lost.is_empty()
    }

    /// From now on a place that comes back wakes, or does not; whether one came back that nobody was woken for and
    /// that is of use now.
    fn listen(&self) -> bool {
        self.back.ear.set(self.window() > 0, self.taken)
    }

    fn starts(&self) -> bool {
        self.mode == Mode::Running && self.pause == 0
    }

    /// Sends in memory, and those that are about to be.
    fn window(&self) -> u64 {
        self.schedule.queued() + self.coming
    }

    fn window_max(&self) -> u64 {
        (2 * u64::from(self.caps.in_flight)).clamp(WINDOW_MIN, limits::WINDOW_MAX)
    }

    // What came back.

    /// Calls that need places, turns and ticks do so by themselves; this is for who only looks at what is in flight.
    pub fn take_back(&mut self, terms: &impl Terms) {
        while let Ok(returned) = self.returned.try_recv() {
            match returned {
                Returned::Place { tenant, destination, moved } => {
                    self.taken += 1;
                    self.schedule.done(&tenant, &destination, moved);
                }
                Returned::Unbegun { tenant, destination, send } => {
                    if self.mode == Mode::Stopped {
                        self.lost.push(send.id);
                    } else {
                        self.schedule.put_back(&tenant, destination, terms.cap_of(&tenant), send);
                    }
                }
                Returned::Room { tenant, sends, lost, gathered, waits } => {
                    self.reserved -= sends;
                    self.stock(&tenant).reserved -= sends;
                    // Whether the store has them is not known.
                    if waits || !lost.is_empty() || !gathered.is_empty() {
                        self.not_coming(&tenant, lost.len() as u64);
                        self.lost.extend(lost);
                        self.lost.extend(gathered);
                        self.added(&tenant);
                    }
                    self.forget_idle(&tenant);
                }
                Returned::Claim { tenants } => {
                    self.claiming = false;
                    for tenant in tenants {
                        self.stock(&tenant).claiming = false;
                        self.added(&tenant);
                    }
                }
            }
        }
    }

    fn not_coming(&mut self, tenant: &TenantId, sends: u64) {
        self.coming -= sends;
        self.stock(tenant).coming -= sends;
    }
}
