//! What waits, as it is found when a store is opened: from the tables alone, so that it costs little for each.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::claim::held_rows;
use super::doubt::Doubts;
use super::hashes::{ExecutionHash, TenantHash};
use super::segment::{SCAN_ROWS, Segment};
use super::table::{ROW_BYTES, Row};
use super::waiting::{Queued, Waiting};
use super::{Shared, locked};
use crate::store::view::{EndedExecution, Standing};
use crate::store::{Ending, StoreError, wire};

pub struct Opening<'a> {
    shared: &'a Shared,
    doubts: &'a Doubts,
    waiting: Waiting,
    numbers: HashMap<TenantHash, u32>,
    /// Of those of which rows of this segment have that, where it is one tenant's.
    numbers_here: (u32, HashMap<u32, u32>),
    held: HashMap<ExecutionHash, Held>,
    /// By tenant: what was moved on from where it stood in line.
    carried: HashMap<u32, Vec<Queued>>,
    doubted: HashSet<u128>,
    left: Vec<(u32, u32)>,
}

/// The sends that an execution held, whether or not it has ended.
struct Held {
    number: u32,
    since: i64,
    first: (u32, u32),
    sends: u64,
}

impl<'a> Opening<'a> {
    pub fn of(shared: &'a Shared, doubts: &'a Doubts) -> Self {
        Self {
            shared,
            doubts,
            waiting: Waiting::default(),
            numbers: HashMap::new(),
            numbers_here: (0, HashMap::new()),
            held: HashMap::new(),
            carried: HashMap::new(),
            doubted: HashSet::new(),
            left: Vec::new(),
        }
    }

    /// Of a segment that was checkpointed while sends of it waited: which still do, and what ended since.
    pub fn look_through(&mut self, segment: &Arc<Segment>) -> Result<(), StoreError> {
        let waited = segment.ended().undone.clone();
        let rows = segment.row_count();
        let mut bytes = Vec::new();
        let mut undone = 0;
        for from in (0..rows).step_by(SCAN_ROWS as usize) {
            let to = rows.min(from + SCAN_ROWS);
            if waited.range_cardinality(from..to) > 0 {
                segment.rows(from, to, &mut bytes)?;
            }
            for number in waited.range(from..to) {
                let at = (number - from) as usize * ROW_BYTES;
                let row = match bytes.get(at..).and_then(|row| row.first_chunk()).and_then(Row::decode) {
                    Some(row) => row,
                    None => segment.row(number)?,
                };
                if row.is_done() {
                    segment.add_end(number, &row);
                } else {
                    undone += 1;
                    self.add(segment, number, &row)?;
                }
            }
        }
        segment.undone.store(undone, std::sync::atomic::Ordering::Release);
        Ok(())
    }

    /// A send that is not done, in the order of acceptance.
    pub fn add(&mut self, segment: &Arc<Segment>, number: u32, row: &Row) -> Result<(), StoreError> {
        let place = (segment.number, number);
        if row.is_begun() || self.shared.copy.is_one() {
            self.left.push(place);
            return Ok(());
        }
        if self.doubts.has(row.id, place, row.is_held()) {
            self.doubted.insert(row.id);
            self.left.push(place);
            return Ok(());
        }
        let tenant = match self.number(segment, row) {
            Ok(number) => number,
            Err(StoreError::Damaged(why)) => {
                // It can never be made, and its end says so.
                self.shared.tell_damage(why.to_string());
                self.left.push(place);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if let Some(execution) = row.holder() {
            let (since, first) = (row.created_at, place);
            let held = self.held.entry(execution).or_insert(Held { number: tenant, since, first, sends: 0 });
            // One that was moved comes after those that were accepted later.
            held.since = held.since.min(since);
            held.sends += 1;
        } else {
            let queued = self.shared.queued(segment, number, row, wire::timestamp(row.created_at))?;
            if row.is_carried() {
                self.carried.entry(tenant).or_default().push(queued);
            } else {
                self.waiting.queue(tenant, queued);
            }
        }
        Ok(())
    }

    /// The number of a row's tenant. Its frame is read where that is new, or rows here do not tell.
    fn number(&mut self, segment: &Segment, row: &Row) -> Result<u32, StoreError> {
        if self.numbers_here.0 != segment.number {
            self.numbers_here = (segment.number, HashMap::new());
        }
        if let Some(&number) = self.numbers_here.1.get(&row.tenant) {
            return Ok(number);
        }
        let alone = segment.tenant_by_shares(row.tenant);
        let number = match alone.and_then(|tenant| self.numbers.get(&tenant)) {
            Some(&number) => number,
            None => {
                let name = self.shared.tenant_named(segment, row)?;
                let number = self.waiting.number(&name);
                self.numbers.insert(self.shared.keys.tenant(name.as_str()), number);
                number
            }
        };
        if alone.is_some() {
            self.numbers_here.1.insert(row.tenant, number);
        }
        Ok(number)
    }

    /// Where the sends stand that wait for nothing but an end.
    pub fn done(mut self) -> Result<Vec<(u32, u32)>, StoreError> {
        let mut released: HashMap<u32, Vec<Queued>> = HashMap::new();
        for (execution, held) in std::mem::take(&mut self.held) {
            match self.shared.ending(execution)? {
                None => self.waiting.hold(held.number, execution, held.since, held.first, held.sends),
                Some(EndedExecution { ending: Ending::Discard, .. }) => {
                    let rows = held_rows(self.shared, execution)?;
                    let left: HashSet<(u32, u32)> = self.left.iter().copied().collect();
                    self.left.extend(rows.into_iter().filter(|place| !left.contains(place)));
                }
                Some(ended) => {
                    let entries = released.entry(held.number).or_default();
                    for (segment, number) in held_rows(self.shared, execution)? {
                        let Some(segment) = self.shared.segment(segment) else { continue };
                        let Some(row) = self.shared.waiting_row(&segment, number)? else { continue };
                        if row.is_begun() || self.doubted.contains(&row.id) {
                            continue;
                        }
                        let created_at = wire::timestamp(row.created_at);
                        let standing = Standing { created_at, held: true, ended: Some(ended), started_at: None };
                        let at = standing.released_at().unwrap_or(ended.at);
                        entries.push(self.shared.queued(&segment, number, &row, at)?);
                    }
                }
            }
        }
        // What was moved on was accepted before all of its second that was not.
        let carried = std::mem::take(&mut self.carried);
        carried
            .into_iter()
            .for_each(|(number, entries)| self.waiting.merge(number, entries, |one, other| one <= other));
        released
            .into_iter()
            .for_each(|(number, entries)| self.waiting.merge(number, entries, |one, other| one < other));
        let mut stored: HashMap<TenantHash, u64> = HashMap::new();
        for segment in self.shared.segments().iter() {
            let has_bodies = segment.has_bodies();
            for (tenant, records, bodies) in segment.shares() {
                *stored.entry(tenant).or_default() += records + if has_bodies { bodies } else { 0 };
            }
        }
        *locked(&self.shared.stored) = stored;
        *locked(&self.shared.doubted) = self.doubted;
        *locked(&self.shared.waiting) = self.waiting;
        Ok(self.left)
    }
}
