//! Lists: which rows a filter asks for, and the pages made of them.
//!
//! From the newest segment back, the index says which rows have all that is asked for, or may; each is read and
//! compared, and then the record it stands for is asked the whole filter again, so that equal hashes deceive nobody.
//! Segments whose filter says that they cannot have it are passed by.
//! A cursor names a place in a table: it holds while sends are added and segments dropped.

use roaring::RoaringBitmap;

use super::Shared;
use super::hashes::ExecutionHash;
use super::read::{assemble, unreadable};
use super::seal::Asked;
use super::segment::Segment;
use super::table::{Row, code_term, outcome_term, status_term, term};
use super::zone_map::Window;
use crate::limits::LIST_LOOKED_AT_MAX;
use crate::record::State;
use crate::send::TenantId;
use crate::store::{Filter, HostFilter, Page, StatusFilter, StoreError, wire};

#[cfg(test)]
mod tests;

/// As many rows are read sooner than an index says which of them have a term.
const FEW: u64 = 16;

/// A filter as numbers and hashes.
pub struct Sieve {
    /// What sends must have, as the indexes know it: one of each.
    terms: Vec<Vec<u64>>,
    tenant: u32,
    workflow: u32,
    step: u32,
    host: u32,
    execution: u32,
    /// With its tenant.
    execution_of_tenant: Option<ExecutionHash>,
    source: u32,
    public_only: bool,
    outcomes: Vec<u8>,
    codes: Vec<u8>,
    statuses: Vec<StatusFilter>,
    /// Only what is not done is asked for.
    undone: bool,
    /// Only the sends are that executions are listed by, and who is shown a row says whether it is one.
    first: bool,
    window: Window,
}

impl Sieve {
    pub fn of(shared: &Shared, filter: &Filter) -> Self {
        let keys = &shared.keys;
        let short = |asked, text: Option<&str>| text.map_or(0, |text| keys.short(asked, text));
        let named = filter.reach.one().map(TenantId::as_str);
        let tenant = short(Asked::Tenant, named);
        let workflow = short(Asked::Workflow, filter.workflow.as_deref());
        let step = short(Asked::Step, filter.step.as_deref());
        let host = match &filter.host {
            Some(HostFilter::One(host)) => keys.short(Asked::Host, host),
            Some(HostFilter::Below(_)) | None => 0,
        };
        let source = filter.source_ip.map_or(0, |ip| keys.short(Asked::Source, &ip.to_string()));
        let outcomes: Vec<u8> = filter.outcomes.iter().copied().map(wire::outcome_number).collect();
        let codes: Vec<u8> = filter.codes.iter().copied().map(wire::code_number).collect();
        // A class is not looked up: the rows know it as well.
        let statuses = filter.statuses.iter().map(|status| match status {
            StatusFilter::One(status) => Some(status_term(*status)),
            StatusFilter::Class(_) => None,
        });
        let named_execution = filter.execution.as_deref();
        let execution_of_tenant = match (named, named_execution) {
            (Some(tenant), Some(execution)) => Some(keys.execution(tenant, execution)),
            _ => None,
        };
        let named = [
            term(Asked::Tenant, tenant),
            term(Asked::Workflow, workflow),
            term(Asked::Step, step),
            term(Asked::Host, host),
            term(Asked::Source, source),
        ];
        let mut terms: Vec<Vec<u64>> = named.into_iter().filter(|&term| term != 0).map(|term| vec![term]).collect();
        let several = [
            outcomes.iter().copied().map(outcome_term).collect(),
            codes.iter().copied().map(code_term).collect(),
            statuses.collect::<Option<Vec<u64>>>().unwrap_or_default(),
        ];
        terms.extend(several.into_iter().filter(|terms: &Vec<u64>| !terms.is_empty()));
        Self {
            terms,
            tenant,
            workflow,
            step,
            host,
            execution: short(Asked::Execution, named_execution),
            execution_of_tenant,
            source,
            public_only: filter.public_only,
            outcomes,
            codes,
            statuses: filter.statuses.clone(),
            undone: filter.state.is_some_and(|state| state != State::Done),
            first: false,
            window: Window {
                since: filter.since.map_or(i64::MIN, wire::nanoseconds),
                until: filter.until.map_or(i64::MAX, wire::nanoseconds),
                of_start: filter.source_ip.is_some(),
            },
        }
    }

    /// The same of the sends that executions are listed by.
    pub fn of_first_ones(shared: &Shared, filter: &Filter) -> Self {
        Self { first: true, ..Self::of(shared, filter) }
    }

    /// Rows of a segment that may pass: all that do are among them.
    fn candidates(&self, segment: &Segment) -> Result<RoaringBitmap, StoreError> {
        let may_have = |terms: &Vec<u64>| terms.iter().any(|&term| segment.may_have(term));
        if !segment.zones().meets(&self.window)
            || !self.terms.iter().all(may_have)
            || self.undone && segment.undone_count() == 0
            || self.first && !segment.may_have_first_ones()
        {
            return Ok(RoaringBitmap::new());
        }
        let mut rows = match (self.execution_of_tenant, self.execution) {
            (None, 0) if self.first => segment.first_ones()?,
            (None, 0) => all_rows(segment),
            (None, execution) => segment.members_of_any(execution)?,
            (Some(execution), _) => segment.members(execution)?.into_iter().collect(),
        };
        if let Some(within) = segment.zones().rows_in(&self.window) {
            rows &= within;
        }
        for terms in &self.terms {
            if rows.len() <= FEW {
                break;
            }
            let mut with_any = RoaringBitmap::new();
            for &term in terms {
                with_any |= segment.rows_with(term)?;
            }
            rows &= with_any;
        }
        Ok(rows)
    }

    pub fn passes(&self, row: &Row) -> bool {
        let instant = if self.window.of_start { row.started_at } else { row.created_at };
        (self.tenant == 0 || self.tenant == row.tenant)
            && (self.workflow == 0 || self.workflow == row.workflow)
            && (self.step == 0 || self.step == row.step)
            && (self.host == 0 || self.host == row.host)
            && (self.execution == 0 || self.execution == row.execution as u32)
            && (self.execution_of_tenant.is_none() || self.execution_of_tenant == row.execution())
            && (self.source == 0 || self.source == row.public || !self.public_only && self.source == row.source)
            && (self.outcomes.is_empty() || self.outcomes.contains(&row.outcome))
            && (self.codes.is_empty() || self.codes.contains(&row.code))
            && (self.statuses.is_empty() || self.statuses.iter().any(|statuses| statuses.takes_in(row.status)))
            && !(self.undone && row.is_done())
            && instant >= self.window.since
            && instant < self.window.until
            && !row.is_lost()
            && !row.is_moved()
    }
}

fn all_rows(segment: &Segment) -> RoaringBitmap {
    let mut all = RoaringBitmap::new();
    all.insert_range(0..segment.row_count());
    all
}

/// A place in the tables, in a cursor: rows before it are still to come (in a list), or it and those after it (in an
/// execution).
pub fn cursor(letter: char, segment: u32, row: u32) -> String {
    format!("{letter}{segment:x}.{row:x}")
}

pub fn parse_cursor(letter: char, cursor: &str) -> Result<(u32, u32), StoreError> {
    let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => u32::from_str_radix(text, 16).ok(),
        false => None,
    };
    let parts = cursor.strip_prefix(letter).and_then(|rest| rest.split_once('.'));
    parts.and_then(|(segment, row)| Some((number(segment)?, number(row)?))).ok_or(StoreError::BadCursor)
}

pub fn list(shared: &Shared, filter: &Filter, at: Option<&str>, limit: usize) -> Result<Page, StoreError> {
    let before = at.map(|at| parse_cursor('l', at)).transpose()?;
    let mut sends = Vec::new();
    let next = walk(shared, &Sieve::of(shared, filter), before, |segment, _, row, _| {
        let record = match assemble(shared, segment, row, false) {
            Ok((record, host)) if filter.lets_through(&record, host.as_deref()) => record,
            Ok(_) => return Ok(Goes::On),
            Err(error @ StoreError::Damaged(_)) => unreadable(shared, filter, row, &error),
            Err(error) => return Err(error),
        };
        if sends.len() == limit {
            return Ok(Goes::NoFurther);
        }
        sends.push(record);
        Ok(Goes::On)
    })?;
    Ok(Page { sends, next: next.map(|(segment, row)| cursor('l', segment, row)) })
}

/// What becomes of a walk after a row.
pub enum Goes {
    On,
    /// There is no room for it: the next page begins with this row.
    NoFurther,
}

/// From the newest row before a place back, shows those that pass, until there is no room for one or
/// [`LIST_LOOKED_AT_MAX`] were looked at: then answers the place before which the rest is. Who is shown a row may add to
/// what was looked at.
pub fn walk(
    shared: &Shared,
    sieve: &Sieve,
    before: Option<(u32, u32)>,
    mut show: impl FnMut(&Segment, u32, &Row, &mut usize) -> Result<Goes, StoreError>,
) -> Result<Option<(u32, u32)>, StoreError> {
    let mut looked_at = 0;
    let segments = shared.segments();
    let segments: Vec<_> = match sieve.execution_of_tenant {
        None => segments.iter().rev().collect(),
        Some(execution) => segments.with(execution.hash).collect(),
    };
    for segment in segments {
        let to = match before {
            Some((number, _)) if segment.number > number => continue,
            Some((number, row)) if segment.number == number => row.min(segment.row_count()),
            _ => segment.row_count(),
        };
        let mut rows = sieve.candidates(segment).unwrap_or_else(|error| {
            tracing::warn!(%error, "a list does without an index");
            all_rows(segment)
        });
        rows.remove_range(to..);
        for number in rows.iter().rev() {
            // Those above this row were looked at.
            let place = Some((segment.number, number + 1));
            if looked_at >= LIST_LOOKED_AT_MAX {
                return Ok(place);
            }
            looked_at += 1;
            let Some(row) = shared.known_row(segment, number)? else { continue };
            if sieve.passes(&row) && matches!(show(segment, number, &row, &mut looked_at)?, Goes::NoFurther) {
                return Ok(place);
            }
        }
    }
    Ok(None)
}
