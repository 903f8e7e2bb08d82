//! Executions, the newest first: each is found by its first send, and counted by the indexes of the segments that know it.

use std::collections::{HashMap, hash_map::Entry};

use roaring::RoaringBitmap;

use super::Shared;
use super::entry::SendHead;
use super::hashes::ExecutionHash;
use super::list::{Goes, Sieve, cursor, parse_cursor, walk};
use super::read::payload;
use super::segment::Segment;
use super::table::outcome_term;
use crate::outcome::Outcome;
use crate::record::{ExecutionState, ExecutionSummary};
use crate::store::{ExecutionFilter, ExecutionPage, StoreError, wire};

/// To count as many sends takes what it does to look at one.
const COUNTED_AS_ONE: u64 = 16;

pub fn executions(
    shared: &Shared,
    filter: &ExecutionFilter,
    at: Option<&str>,
    limit: usize,
) -> Result<ExecutionPage, StoreError> {
    let before = at.map(|at| parse_cursor('x', at)).transpose()?;
    let of_first = filter.of_first();
    let mut counting = Counting { shared, delivered: HashMap::new() };
    let mut executions = Vec::new();
    let next = walk(shared, &Sieve::of_first_ones(shared, &of_first), before, |segment, row, looked_at| {
        let Some(hash) = row.execution() else { return Ok(Goes::On) };
        let ended = shared.ending(hash)?;
        let state = ended.map_or(ExecutionState::Open, |ended| ended.ending.state());
        if filter.state.is_some_and(|wanted| wanted != state) {
            return Ok(Goes::On);
        }
        let bytes = match segment.frame(row.accepted) {
            Err(StoreError::Damaged(why)) => {
                shared.tell_damage(why.to_string());
                return Ok(Goes::On);
            }
            read => read?,
        };
        let (_, form) = payload(segment, row.accepted, &bytes, SendHead::decode)?;
        let (tenant, context) = (form.tenant_id(), form.context());
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
}

impl Counting<'_> {
    fn of(&mut self, execution: ExecutionHash) -> Result<Counts, StoreError> {
        let mut counts = Counts::default();
        for segment in self.shared.segments().with(execution.hash) {
            let rows = segment.row_count();
            let members: RoaringBitmap =
                segment.members(execution)?.into_iter().filter(|&number| number < rows).collect();
            if members.is_empty() {
                continue;
            }
            counts.total += members.len();
            counts.done += members.len() - members.intersection_len(&segment.ended().undone);
            counts.delivered += members.intersection_len(self.delivered_of(segment)?);
        }
        Ok(counts)
    }

    fn delivered_of(&mut self, segment: &Segment) -> Result<&RoaringBitmap, StoreError> {
        Ok(match self.delivered.entry(segment.number) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let term = outcome_term(wire::outcome_number(Outcome::Delivered));
                place.insert(segment.rows_with(term)?)
            }
        })
    }
}
