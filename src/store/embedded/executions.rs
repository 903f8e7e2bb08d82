//! Executions, the newest first: each is found by its first send, and counted by the indexes of the segments that know it.
//!
//! Where the first send is gone with its segment, the oldest that is left stands for it; so does another where the
//! first is damaged. An execution is in the list as long as one of its sends is there.

use std::collections::{HashMap, hash_map::Entry};
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::Shared;
use super::entry::SendHead;
use super::hashes::ExecutionHash;
use super::list::{Goes, Sieve, cursor, parse_cursor, walk};
use super::read::payload;
use super::segment::Segment;
use super::table::{Row, first_term, outcome_term};
use crate::outcome::Outcome;
use crate::record::{ExecutionState, ExecutionSummary};
use crate::send::{Context, TenantId};
use crate::store::{ExecutionFilter, ExecutionPage, StoreError, wire};

/// To count as many sends takes what it does to look at one.
const COUNTED_AS_ONE: u64 = 16;
/// Sends of an execution that are asked for its name where the one that stands for it is unreadable.
const ASKED_FOR_ITS_NAME: usize = 16;
/// Of those that were moved on the one with the greatest index is among the last.
const ASKED_OF_THOSE_MOVED: usize = 16;

pub fn executions(
    shared: &Shared,
    filter: &ExecutionFilter,
    at: Option<&str>,
    limit: usize,
) -> Result<ExecutionPage, StoreError> {
    let before = at.map(|at| parse_cursor('x', at)).transpose()?;
    let of_first = filter.of_first();
    let mut counting = Counting { shared, delivered: HashMap::new(), first: HashMap::new(), standing: HashMap::new() };
    let mut executions = Vec::new();
    let next = walk(shared, &Sieve::of_first_ones(shared, &of_first), before, |segment, number, row, looked_at| {
        let Some(hash) = row.execution() else { return Ok(Goes::On) };
        if !row.is_first() && counting.standing_for(hash, looked_at)? != Some((segment.number, number)) {
            return Ok(Goes::On);
        }
        let ended = shared.ending(hash)?;
        let state = ended.map_or(ExecutionState::Open, |ended| ended.ending.state());
        if filter.state.is_some_and(|wanted| wanted != state) {
            return Ok(Goes::On);
        }
        let (tenant, context) = match names(segment, row) {
            Err(StoreError::Damaged(why)) => {
                shared.tell_damage(why.to_string());
                match counting.names_of_another(hash)? {
                    Some(names) => names,
                    None => return Ok(Goes::On),
                }
            }
            read => read?,
        };
        // Rows know hashes: that it is this one is asked of the send itself.
        let is_wanted = filter.reach.takes_in(&tenant)
            && filter.workflow.as_deref().is_none_or(|wanted| context.workflow.as_deref() == Some(wanted));
        let Some(execution) = context.execution.filter(|_| is_wanted) else { return Ok(Goes::On) };
        if executions.len() == limit {
            return Ok(Goes::NoFurther);
        }
        let counts = counting.of(hash)?;
        *looked_at += usize::try_from(counts.total / COUNTED_AS_ONE).unwrap_or(usize::MAX);
        executions.push(ExecutionSummary {
            tenant,
            execution,
            workflow: context.workflow.as_deref().map(str::to_owned),
            state,
            finished_by: ended.and_then(|ended| ended.ending.finished_by()),
            delivered: counts.delivered,
            done: counts.done,
            total: counts.total,
            created_at: wire::timestamp(row.created_at),
            ended_at: ended.map(|ended| ended.at),
        });
        Ok(Goes::On)
    })?;
    Ok(ExecutionPage { executions, next: next.map(|(segment, row)| cursor('x', segment, row)) })
}

impl Shared {
    /// The greatest index of an execution's sends that are left.
    pub fn newest_index(&self, execution: ExecutionHash) -> Result<Option<u32>, StoreError> {
        let mut newest = None;
        for segment in self.segments().with(execution.hash) {
            let Some(last) = segment.last_member(execution)? else { continue };
            let (index, carried) = self.index_of(segment, last)?;
            newest = newest.max(index);
            if !carried {
                break;
            }
            // It is older than where it stands, and those before it here may be younger.
            for number in segment.members(execution)?.into_iter().rev().take(ASKED_OF_THOSE_MOVED) {
                let (index, carried) = self.index_of(segment, number)?;
                newest = newest.max(index);
                if !carried {
                    return Ok(newest);
                }
            }
        }
        Ok(newest)
    }

    /// A send's index in its execution, and whether it was moved to where it stands. Damage tells neither.
    fn index_of(&self, segment: &Segment, number: u32) -> Result<(Option<u32>, bool), StoreError> {
        let Some(row) = self.sound_row(segment, number)? else { return Ok((None, true)) };
        let bytes = match segment.frame(row.accepted) {
            Err(StoreError::Damaged(why)) => {
                self.tell_damage(why.to_string());
                return Ok((None, true));
            }
            read => read?,
        };
        let (head, _) = payload(segment, row.accepted, &bytes, SendHead::decode)?;
        Ok((head.index, row.is_carried()))
    }
}

/// Whose this send is, and what it is of.
fn names(segment: &Segment, row: &Row) -> Result<(TenantId, Context), StoreError> {
    let bytes = segment.frame(row.accepted)?;
    let (_, form) = payload(segment, row.accepted, &bytes, SendHead::decode)?;
    Ok((form.tenant_id(), form.context()))
}

#[derive(Default)]
struct Counts {
    delivered: u64,
    done: u64,
    total: u64,
}

/// The executions of one page are counted.
struct Counting<'a> {
    shared: &'a Shared,
    /// Rows that were delivered, by segment.
    delivered: HashMap<u32, RoaringBitmap>,
    /// First sends, by segment.
    first: HashMap<u32, RoaringBitmap>,
    /// Where the sends stand by which executions are listed that were met by others.
    standing: HashMap<ExecutionHash, Option<(u32, u32)>>,
}

impl Counting<'_> {
    fn of(&mut self, execution: ExecutionHash) -> Result<Counts, StoreError> {
        let mut counts = Counts::default();
        for (segment, members) in members(self.shared, execution)? {
            counts.total += members.len();
            counts.done += members.len() - members.intersection_len(&segment.ended().undone);
            let delivered = outcome_term(wire::outcome_number(Outcome::Delivered));
            counts.delivered += members.intersection_len(rows_with(&mut self.delivered, &segment, delivered)?);
        }
        Ok(counts)
    }

    /// The place of the send by which an execution is listed: its first one, wherever it was moved, or else the oldest
    /// that is left. What it takes to find it counts as looked at.
    fn standing_for(
        &mut self,
        execution: ExecutionHash,
        looked_at: &mut usize,
    ) -> Result<Option<(u32, u32)>, StoreError> {
        if let Some(known) = self.standing.get(&execution) {
            return Ok(*known);
        }
        let (mut place, mut looked) = (None, 0);
        // The newest first.
        for (segment, members) in members(self.shared, execution)? {
            looked += members.len();
            let first = rows_with(&mut self.first, &segment, first_term())?;
            if let Some(number) = (&members & first).min() {
                place = Some((segment.number, number));
                break;
            }
            place = members.min().map(|number| (segment.number, number));
        }
        *looked_at += usize::try_from(looked / COUNTED_AS_ONE).unwrap_or(usize::MAX);
        self.standing.insert(execution, place);
        Ok(place)
    }

    /// The same as [`names`], of a send of it that can be read.
    fn names_of_another(&self, execution: ExecutionHash) -> Result<Option<(TenantId, Context)>, StoreError> {
        let mut asked = 0;
        for (segment, members) in members(self.shared, execution)?.iter().rev() {
            for number in members {
                if asked == ASKED_FOR_ITS_NAME {
                    return Ok(None);
                }
                asked += 1;
                let Some(row) = self.shared.known_row(segment, number)? else { continue };
                match names(segment, &row) {
                    Ok(names) => return Ok(Some(names)),
                    Err(StoreError::Damaged(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(None)
    }
}

/// The rows of an execution, by segment, the newest first.
fn members(shared: &Shared, execution: ExecutionHash) -> Result<Vec<(Arc<Segment>, RoaringBitmap)>, StoreError> {
    let mut all = Vec::new();
    for segment in shared.segments().with(execution.hash) {
        let rows = segment.row_count();
        let members: RoaringBitmap = segment.members(execution)?.into_iter().filter(|&number| number < rows).collect();
        if !members.is_empty() {
            all.push((segment.clone(), members));
        }
    }
    Ok(all)
}

/// The rows of a segment that have this term, read once.
fn rows_with<'a>(
    known: &'a mut HashMap<u32, RoaringBitmap>,
    segment: &Segment,
    term: u64,
) -> Result<&'a RoaringBitmap, StoreError> {
    Ok(match known.entry(segment.number) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(place) => place.insert(segment.rows_with(term)?),
    })
}
