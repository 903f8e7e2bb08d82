//! What waits, in memory: 16 bytes for each send that nobody has claimed, a little for each open execution, and what is
//! claimed or begun.
//!
//! Each tenant has a *line* in the order of release. Who claims takes from its front; what goes to a destination that
//! is full at the moment is put aside, to a line of that destination, with its order: so it is looked at once, keeps
//! its place in front of all that came later, and costs nothing until its destination has room again. What is given
//! back goes the same way. A line is made of blocks that know their earliest expiry, so that what expires is found
//! without a look at the rest.
//!
//! Held sends are only counted: their executions know them. An entry may be of a send that has ended meanwhile; whoever
//! takes it finds out from its row. Decides and counts only: no I/O and no clock.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use jiff::{SignedDuration, Timestamp};

use super::hashes::{ExecutionHash, TenantHash};
use crate::clock;
use crate::send::TenantId;
use crate::store::view::EndedExecution;
use crate::store::{Ending, WaitingCount, wire};

/// Entries of a line that share their earliest expiry.
const BLOCK: usize = 256;
/// The line of a tenant that is no destination's.
const FRONT: u64 = 0;

/// A send that waits: where its row stands, and the seconds since 1970 at which it expires and was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queued {
    pub segment: u32,
    pub row: u32,
    pub expires: u32,
    pub released: u32,
}

impl Queued {
    pub fn place(&self) -> Place {
        (self.segment, self.row)
    }
}

/// Where a row stands: its segment, and its number there.
pub type Place = (u32, u32);

/// With its order among all that were taken from the front of the line.
pub type Aside = (u64, Queued);

trait Expires {
    fn expires(&self) -> u32;
}

impl Expires for Queued {
    fn expires(&self) -> u32 {
        self.expires
    }
}

impl Expires for Aside {
    fn expires(&self) -> u32 {
        self.1.expires
    }
}

/// First in, first out.
#[derive(Debug)]
struct Line<T> {
    blocks: VecDeque<Block<T>>,
    /// As it stands in [`Waiting::due`]: no entry expires earlier.
    noted: Option<u32>,
}

#[derive(Debug)]
struct Block<T> {
    entries: VecDeque<T>,
    earliest: u32,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self { blocks: VecDeque::new(), noted: None }
    }
}

impl<T: Expires> Line<T> {
    fn push_back(&mut self, entry: T) {
        if self.blocks.back().is_none_or(|block| block.entries.len() >= BLOCK) {
            self.blocks.push_back(Block { entries: VecDeque::new(), earliest: u32::MAX });
        }
        if let Some(block) = self.blocks.back_mut() {
            block.earliest = block.earliest.min(entry.expires());
            block.entries.push_back(entry);
        }
    }

    fn front(&self) -> Option<&T> {
        self.blocks.front()?.entries.front()
    }

    fn pop_front(&mut self) -> Option<T> {
        let block = self.blocks.front_mut()?;
        let entry = block.entries.pop_front();
        if block.entries.is_empty() {
            self.blocks.pop_front();
        }
        entry
    }

    fn earliest(&self) -> Option<u32> {
        self.blocks.iter().map(|block| block.earliest).min()
    }

    /// Takes out at most `limit` that expire by then.
    fn take_expired(&mut self, by: u32, limit: usize, into: &mut Vec<T>) {
        let mut left = limit;
        for block in self.blocks.iter_mut().filter(|block| block.earliest <= by) {
            let mut kept = VecDeque::with_capacity(block.entries.len());
            block.earliest = u32::MAX;
            for entry in block.entries.drain(..) {
                if entry.expires() <= by && left > 0 {
                    left -= 1;
                    into.push(entry);
                } else {
                    block.earliest = block.earliest.min(entry.expires());
                    kept.push_back(entry);
                }
            }
            block.entries = kept;
            if left == 0 {
                break;
            }
        }
        self.blocks.retain(|block| !block.entries.is_empty());
    }
}

impl Line<Aside> {
    /// Where its order says. Almost always that is the end or the front.
    fn insert(&mut self, entry: Aside) {
        if self.blocks.back().and_then(|block| block.entries.back()).is_none_or(|last| last.0 < entry.0) {
            return self.push_back(entry);
        }
        let at = self.blocks.partition_point(|block| block.entries.back().is_some_and(|last| last.0 < entry.0));
        let Some(block) = self.blocks.get_mut(at) else { return self.push_back(entry) };
        block.earliest = block.earliest.min(entry.1.expires);
        let place = block.entries.partition_point(|other| other.0 < entry.0);
        block.entries.insert(place, entry);
        if block.entries.len() > 2 * BLOCK {
            let entries = block.entries.split_off(BLOCK);
            let earliest = block.earliest;
            self.blocks.insert(at + 1, Block { entries, earliest });
        }
    }
}

/// An execution that holds sends.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    pub tenant: u32,
    pub sends: u64,
    /// When its first held send was accepted, in nanoseconds.
    pub since: i64,
    /// One of its rows, which knows its name.
    pub segment: u32,
    pub row: u32,
}

/// Whose a send is that is in no line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hand {
    /// By the session of this incarnation.
    Claimed(u64),
    Begun(u64),
}

/// A send that is claimed or begun.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    pub queued: Queued,
    pub tenant: u32,
    pub tenant_hash: TenantHash,
    /// Of its destination.
    pub destination: u64,
    pub order: u64,
    pub hand: Hand,
}

/// An execution that has ended, while its sends are not in line or done yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closing {
    pub execution: ExecutionHash,
    pub ended: EndedExecution,
}

/// What a send that nobody has taken is counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    HeldBy(ExecutionHash),
    Queued,
    /// No more, since its execution was discarded.
    Not,
}

/// What was taken out of the lines to be looked at.
#[derive(Clone, Copy, Debug)]
pub struct Looked {
    pub order: u64,
    pub queued: Queued,
}

#[derive(Debug)]
struct Tenant {
    name: TenantId,
    count: Count,
    /// How many of its sends are claimed or begun.
    taken: u64,
    line: Line<Queued>,
    /// By destination.
    aside: HashMap<u64, Line<Aside>>,
    /// Order and destination of the first in each of these lines.
    fronts: BTreeMap<u64, u64>,
    next_order: u64,
    closing: VecDeque<Closing>,
    /// As it stands in [`Waiting::oldest`].
    oldest: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    held: u64,
    queued: u64,
    unclaimed: u64,
}

#[derive(Debug, Default)]
pub struct Waiting {
    /// Of the session in force.
    pub incarnation: u64,
    tenants: Vec<Option<Tenant>>,
    free: Vec<u32>,
    by_name: HashMap<TenantId, u32>,
    open: HashMap<ExecutionHash, Open>,
    by_age: BTreeSet<(i64, ExecutionHash)>,
    taken: HashMap<u128, Taken>,
    /// Sends whose end the store is writing, and that nobody may claim meanwhile.
    pub ending: HashSet<u128>,
    /// Earliest expiry, tenant and destination of each line with anything in it.
    due: BTreeSet<(u32, u32, u64)>,
    /// Tenants with discarded executions in [`Tenant::closing`].
    discarding: BTreeSet<u32>,
    /// When the first in line was released, and whose it is.
    oldest: BTreeSet<(u32, u32)>,
    all: Count,
}

impl Tenant {
    fn new(name: TenantId) -> Self {
        Self {
            name,
            count: Count::default(),
            taken: 0,
            line: Line::default(),
            aside: HashMap::new(),
            fronts: BTreeMap::new(),
            next_order: 0,
            closing: VecDeque::new(),
            oldest: None,
        }
    }

    fn is_empty(&self) -> bool {
        self.count == Count::default() && self.taken == 0 && self.closing.is_empty()
    }

    /// When the first of those that nobody has claimed was released.
    fn first_released(&self) -> Option<u32> {
        let aside = self.fronts.first_key_value().and_then(|(_, destination)| self.aside.get(destination)?.front());
        let closing = self.closing.iter().filter(|closing| matches!(closing.ended.ending, Ending::Finish(_)));
        let closing = closing.map(|closing| second(closing.ended.at)).next();
        let all = [aside.map(|(_, queued)| queued.released), self.line.front().map(|queued| queued.released), closing];
        all.into_iter().flatten().min().filter(|_| self.count.unclaimed > 0)
    }
}

/// Since 1970, as all that this file compares by a [steady](clock::steady) clock.
fn nanosecond(at: Timestamp) -> i64 {
    wire::nanoseconds(clock::steady(at))
}

/// Whole seconds since 1970, cut off; by the same clock.
pub fn second(at: Timestamp) -> u32 {
    u32::try_from(clock::steady(at).as_second().max(0)).unwrap_or(u32::MAX)
}

/// The first whole second since 1970 at which an instant is past.
pub fn second_after(at: Timestamp) -> u32 {
    let at = clock::steady(at);
    u32::try_from(at.as_second().max(0)).unwrap_or(u32::MAX).saturating_add(u32::from(at.subsec_nanosecond() > 0))
}

fn note(due: &mut BTreeSet<(u32, u32, u64)>, noted: &mut Option<u32>, (expires, number, destination): (u32, u32, u64)) {
    if let Some(before) = *noted {
        if before <= expires {
            return;
        }
        due.remove(&(before, number, destination));
    }
    due.insert((expires, number, destination));
    *noted = Some(expires);
}

impl Waiting {
    /// The number of a tenant, which stays the same while anything of it waits or is taken.
    pub fn number(&mut self, name: &TenantId) -> u32 {
        if let Some(&number) = self.by_name.get(name) {
            return number;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.tenants.push(None);
            (self.tenants.len() - 1) as u32
        });
        self.tenants[number as usize] = Some(Tenant::new(name.clone()));
        self.by_name.insert(name.clone(), number);
        number
    }

    /// `None`: nothing of it waits or is taken.
    pub fn known(&self, name: &TenantId) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    pub fn name(&self, number: u32) -> Option<&TenantId> {
        self.tenants.get(number as usize)?.as_ref().map(|tenant| &tenant.name)
    }

    /// Changes a tenant, and with it what is known of all; then lets go of it, if nothing is left.
    fn change<T: Default>(
        &mut self,
        number: u32,
        change: impl FnOnce(&mut Tenant, &mut BTreeSet<(u32, u32, u64)>) -> T,
    ) -> T {
        let Some(slot) = self.tenants.get_mut(number as usize) else { return T::default() };
        let Some(tenant) = slot.as_mut() else { return T::default() };
        let before = tenant.count;
        let was_empty = tenant.is_empty();
        let answer = change(tenant, &mut self.due);
        let after = tenant.count;
        self.all.held = self.all.held + after.held - before.held;
        self.all.queued = self.all.queued + after.queued - before.queued;
        self.all.unclaimed = self.all.unclaimed + after.unclaimed - before.unclaimed;
        let oldest = tenant.first_released();
        if oldest != tenant.oldest {
            if let Some(before) = tenant.oldest {
                self.oldest.remove(&(before, number));
            }
            if let Some(oldest) = oldest {
                self.oldest.insert((oldest, number));
            }
            tenant.oldest = oldest;
        }
        if !was_empty && tenant.is_empty() {
            // What may be left in its lines is of sends that have ended.
            let asides = tenant.aside.iter().map(|(&destination, line)| (line.noted, destination));
            for (noted, destination) in asides.chain([(tenant.line.noted, FRONT)]) {
                noted.map(|noted| self.due.remove(&(noted, number, destination)));
            }
            self.by_name.remove(&tenant.name);
            *slot = None;
            self.free.push(number);
        }
        answer
    }

    // Coming in.

    /// A send is free to go, and nobody's.
    pub fn queue(&mut self, number: u32, queued: Queued) {
        self.change(number, |tenant, due| {
            tenant.count.queued += 1;
            tenant.count.unclaimed += 1;
            tenant.line.push_back(queued);
            note(due, &mut tenant.line.noted, (queued.expires, number, FRONT));
        });
    }

    /// A send that is counted as queued already gets its place in line.
    pub fn line_up(&mut self, number: u32, queued: Queued) {
        self.change(number, |tenant, due| {
            tenant.line.push_back(queued);
            note(due, &mut tenant.line.noted, (queued.expires, number, FRONT));
        });
    }

    /// Sends that were released among others, each to the place that its release gives it: before those released in
    /// the second in which it `comes_before` them.
    pub fn merge(&mut self, number: u32, mut entries: Vec<Queued>, comes_before: impl Fn(u32, u32) -> bool) {
        entries.sort_by_key(|queued| queued.released);
        let before = self.change(number, |tenant, _| std::mem::take(&mut tenant.line.blocks));
        let mut entries = entries.into_iter().peekable();
        for queued in before.into_iter().flat_map(|block| block.entries) {
            while let Some(earlier) = entries.next_if(|entry| comes_before(entry.released, queued.released)) {
                self.queue(number, earlier);
            }
            self.line_up(number, queued);
        }
        entries.for_each(|queued| self.queue(number, queued));
    }

    /// Sends are held by an execution. `accepted`: when the first of them was.
    pub fn hold(
        &mut self,
        number: u32,
        execution: ExecutionHash,
        accepted: i64,
        (segment, row): (u32, u32),
        sends: u64,
    ) {
        let since = nanosecond(wire::timestamp(accepted));
        let by_age = &mut self.by_age;
        let open = self.open.entry(execution).or_insert_with(|| {
            by_age.insert((since, execution));
            Open { tenant: number, sends: 0, since, segment, row }
        });
        open.sends += sends;
        self.change(number, |tenant, _| tenant.count.held += sends);
    }

    /// A send was accepted and is claimed or begun.
    pub fn take(&mut self, id: u128, taken: Taken) {
        self.change(taken.tenant, |tenant, _| {
            tenant.count.queued += u64::from(matches!(taken.hand, Hand::Claimed(_)));
            tenant.taken += 1;
        });
        self.taken.insert(id, taken);
    }

    pub fn taken(&self, id: u128) -> Option<&Taken> {
        self.taken.get(&id)
    }

    /// What sessions before the one in force had begun.
    pub fn begun_before(&self) -> Vec<(u128, Taken)> {
        let before = |taken: &Taken| matches!(taken.hand, Hand::Begun(by) if by != self.incarnation);
        self.taken.iter().filter(|(_, taken)| before(taken)).map(|(&id, &taken)| (id, taken)).collect()
    }

    /// These were moved on, from the first place to the second. One look at all that waits.
    pub fn moved(&mut self, places: &HashMap<Place, Place>) {
        let follow = |segment: &mut u32, row: &mut u32| {
            if let Some(place) = places.get(&(*segment, *row)) {
                (*segment, *row) = *place;
            }
        };
        for tenant in self.tenants.iter_mut().flatten() {
            let line = tenant.line.blocks.iter_mut().flat_map(|block| &mut block.entries);
            line.for_each(|queued| follow(&mut queued.segment, &mut queued.row));
            let aside = tenant.aside.values_mut().flat_map(|line| &mut line.blocks);
            let aside = aside.flat_map(|block| &mut block.entries);
            aside.for_each(|(_, queued)| follow(&mut queued.segment, &mut queued.row));
        }
        self.taken.values_mut().for_each(|taken| follow(&mut taken.queued.segment, &mut taken.queued.row));
        self.open.values_mut().for_each(|open| follow(&mut open.segment, &mut open.row));
    }

    // Executions.

    pub fn held_by(&self, execution: ExecutionHash) -> u64 {
        self.open.get(&execution).map_or(0, |open| open.sends)
    }

    /// Those that are open for longer, longest open first.
    pub fn overdue(&self, held_for: SignedDuration, now: Timestamp, limit: usize) -> Vec<(ExecutionHash, Open)> {
        // A time of day so long ago may never have been: of the steady clock's there is each.
        let before = wire::nanoseconds(clock::steady(now).checked_sub(held_for).unwrap_or(Timestamp::MIN));
        let aged = self.by_age.iter().take_while(|(since, _)| *since < before).take(limit);
        aged.filter_map(|(_, execution)| self.open.get(execution).map(|open| (*execution, *open))).collect()
    }

    /// An execution has ended, durably. Its sends count as what they are now.
    pub fn close(&mut self, execution: ExecutionHash, ended: EndedExecution) {
        let Some(open) = self.open.remove(&execution) else { return };
        self.by_age.remove(&(open.since, execution));
        if ended.ending == Ending::Discard && open.sends > 0 {
            self.discarding.insert(open.tenant);
        }
        self.change(open.tenant, |tenant, _| {
            tenant.count.held -= open.sends;
            if matches!(ended.ending, Ending::Finish(_)) {
                tenant.count.queued += open.sends;
                tenant.count.unclaimed += open.sends;
            }
            if open.sends > 0 {
                tenant.closing.push_back(Closing { execution, ended });
            }
        });
    }

    /// Ended executions of this tenant whose sends are to be lined up (`finished`) or ended.
    pub fn closings(&self, number: u32, finished: bool) -> Vec<Closing> {
        self.closing(number, finished).collect()
    }

    pub fn is_closing(&self, number: u32, finished: bool) -> bool {
        self.closing(number, finished).next().is_some()
    }

    fn closing(&self, number: u32, finished: bool) -> impl Iterator<Item = Closing> {
        let tenant = self.tenants.get(number as usize).and_then(Option::as_ref);
        let closing = tenant.into_iter().flat_map(|tenant| tenant.closing.iter().copied());
        closing.filter(move |closing| matches!(closing.ended.ending, Ending::Finish(_)) == finished)
    }

    /// Tenants with discarded executions some of whose sends may have no end yet.
    pub fn discarding(&self) -> Vec<u32> {
        self.discarding.iter().copied().collect()
    }

    /// What is next to be put aside in front of the line comes behind all that is there.
    pub fn next_order(&mut self, number: u32) -> u64 {
        self.change(number, |tenant, _| {
            tenant.next_order += 1;
            tenant.next_order - 1
        })
    }

    /// An execution whose sends have all been ended one by one is overdue no more.
    pub fn forget_age(&mut self, execution: ExecutionHash) {
        if let Some(open) = self.open.get(&execution) {
            self.by_age.remove(&(open.since, execution));
        }
    }

    /// All of its sends are in line, or done.
    pub fn closed(&mut self, number: u32, execution: ExecutionHash) {
        self.change(number, |tenant, _| tenant.closing.retain(|closing| closing.execution != execution));
        if !self.is_closing(number, false) {
            self.discarding.remove(&number);
        }
    }

    // Claiming.

    /// Takes out what comes first and does not go to a full destination, as far as that is known.
    pub fn look(&mut self, number: u32, room: usize, full: &HashSet<u64>) -> Vec<Looked> {
        self.change(number, |tenant, due| {
            let mut looked = Vec::new();
            while looked.len() < room {
                let next = tenant.fronts.iter().find(|(_, destination)| !full.contains(destination));
                let Some((&order, &destination)) = next else { break };
                tenant.fronts.remove(&order);
                let Some(line) = tenant.aside.get_mut(&destination) else { continue };
                looked.extend(line.pop_front().map(|(order, queued)| Looked { order, queued }));
                match line.front() {
                    Some((order, _)) => drop(tenant.fronts.insert(*order, destination)),
                    None => {
                        line.noted.map(|noted| due.remove(&(noted, number, destination)));
                        tenant.aside.remove(&destination);
                    }
                }
            }
            while looked.len() < room
                && let Some(queued) = tenant.line.pop_front()
            {
                looked.push(Looked { order: tenant.next_order, queued });
                tenant.next_order += 1;
            }
            if tenant.line.front().is_none()
                && let Some(noted) = tenant.line.noted.take()
            {
                due.remove(&(noted, number, FRONT));
            }
            looked
        })
    }

    /// What was looked at is claimed.
    pub fn claim(&mut self, id: u128, taken: Taken) {
        self.change(taken.tenant, |tenant, _| {
            tenant.count.unclaimed -= 1;
            tenant.taken += 1;
        });
        self.taken.insert(id, taken);
    }

    /// Puts aside what goes to a full destination, or was given back.
    pub fn put_aside(&mut self, number: u32, destination: u64, entry: Aside) {
        self.change(number, |tenant, due| {
            let line = tenant.aside.entry(destination).or_default();
            let before = line.front().map(|(order, _)| *order);
            line.insert(entry);
            note(due, &mut line.noted, (entry.1.expires, number, destination));
            let first = line.front().map(|(order, _)| *order);
            if first != before {
                before.map(|before| tenant.fronts.remove(&before));
                first.map(|first| tenant.fronts.insert(first, destination));
            }
        });
    }

    /// A claimed send is nobody's again.
    pub fn give_back(&mut self, id: u128, by: u64) {
        if !self.taken.get(&id).is_some_and(|taken| taken.hand == Hand::Claimed(by)) {
            return;
        }
        if let Some(taken) = self.taken.remove(&id) {
            self.change(taken.tenant, |tenant, _| {
                tenant.count.unclaimed += 1;
                tenant.taken -= 1;
            });
            self.put_aside(taken.tenant, taken.destination, (taken.order, taken.queued));
        }
    }

    /// A new session: what those before had claimed is nobody's again.
    pub fn join(&mut self) -> u64 {
        let claimed = |(id, taken): (&u128, &Taken)| match taken.hand {
            Hand::Claimed(by) => Some((*id, by)),
            Hand::Begun(_) => None,
        };
        let claimed: Vec<(u128, u64)> = self.taken.iter().filter_map(claimed).collect();
        claimed.into_iter().for_each(|(id, by)| self.give_back(id, by));
        self.incarnation += 1;
        self.incarnation
    }

    // Going out.

    /// A claimed send has begun.
    pub fn begin(&mut self, id: u128, by: u64) {
        let Some(taken) = self.taken.get_mut(&id) else { return };
        taken.hand = Hand::Begun(by);
        let number = taken.tenant;
        self.change(number, |tenant, _| tenant.count.queued -= 1);
    }

    /// A send that was claimed or begun is done. `false`: it was neither.
    pub fn finish(&mut self, id: u128) -> bool {
        let Some(taken) = self.taken.remove(&id) else { return false };
        self.change(taken.tenant, |tenant, _| {
            tenant.count.queued -= u64::from(matches!(taken.hand, Hand::Claimed(_)));
            tenant.taken -= 1;
        });
        true
    }

    /// A send that nobody had taken is no longer counted: it is done, or begun.
    pub fn uncount(&mut self, number: u32, counted: Counted) {
        if let Counted::HeldBy(execution) = counted
            && let Some(open) = self.open.get_mut(&execution)
        {
            open.sends -= 1;
        }
        self.change(number, |tenant, _| match counted {
            Counted::HeldBy(_) => tenant.count.held -= 1,
            Counted::Queued => {
                tenant.count.queued -= 1;
                tenant.count.unclaimed -= 1;
            }
            Counted::Not => {}
        });
    }

    /// Whether anything in line may have expired by then.
    pub fn is_due(&self, by: u32) -> bool {
        self.due.first().is_some_and(|(earliest, ..)| *earliest <= by)
    }

    /// Takes out what has expired by then, earliest lines first.
    pub fn take_expired(&mut self, by: u32, limit: usize) -> Vec<(u32, Queued)> {
        let mut expired = Vec::new();
        while expired.len() < limit
            && let Some(&(earliest, number, destination)) = self.due.first()
            && earliest <= by
        {
            self.due.remove(&(earliest, number, destination));
            let left = limit - expired.len();
            let taken = self.change(number, |tenant, due| {
                let mut taken = Vec::new();
                if destination == FRONT {
                    tenant.line.take_expired(by, left, &mut taken);
                    tenant.line.noted = tenant.line.earliest();
                    tenant.line.noted.map(|earliest| due.insert((earliest, number, FRONT)));
                } else if let Some(line) = tenant.aside.get_mut(&destination) {
                    let before = line.front().map(|(order, _)| *order);
                    let mut entries = Vec::new();
                    line.take_expired(by, left, &mut entries);
                    taken.extend(entries.into_iter().map(|(_, queued)| queued));
                    line.noted = line.earliest();
                    line.noted.map(|earliest| due.insert((earliest, number, destination)));
                    let first = line.front().map(|(order, _)| *order);
                    if first != before {
                        before.map(|before| tenant.fronts.remove(&before));
                        first.map(|first| tenant.fronts.insert(first, destination));
                    }
                    if first.is_none() {
                        tenant.aside.remove(&destination);
                    }
                }
                taken
            });
            expired.extend(taken.into_iter().map(|queued| (number, queued)));
        }
        expired
    }

    // Counts.

    pub fn count_of(&self, name: &TenantId) -> WaitingCount {
        let tenant = self.known(name).and_then(|number| self.tenants[number as usize].as_ref());
        tenant.map(|tenant| shown(tenant.count, tenant.oldest)).unwrap_or_default()
    }

    /// Sends of a tenant that are not done: held, in line, claimed or begun.
    pub fn undone_of(&self, number: u32) -> u64 {
        let tenant = self.tenants.get(number as usize).and_then(Option::as_ref);
        tenant.map_or(0, |tenant| tenant.count.held + tenant.count.unclaimed + tenant.taken)
    }

    pub fn count_of_all(&self) -> WaitingCount {
        shown(self.all, self.oldest.first().map(|(oldest, _)| *oldest))
    }

    pub fn counts(&self) -> Vec<(TenantId, WaitingCount)> {
        let tenants = self.tenants.iter().flatten().filter(|tenant| tenant.count != Count::default());
        tenants.map(|tenant| (tenant.name.clone(), shown(tenant.count, tenant.oldest))).collect()
    }
}

fn shown(count: Count, oldest: Option<u32>) -> WaitingCount {
    WaitingCount {
        held: count.held,
        queued: count.queued,
        unclaimed: count.unclaimed,
        oldest: oldest.and_then(|second| Timestamp::from_second(i64::from(second)).ok()).map(clock::unsteady),
    }
}

#[cfg(test)]
mod tests;
