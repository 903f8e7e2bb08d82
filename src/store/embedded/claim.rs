//! Claims, and the sweeps over what nobody has claimed: beside the writer, which is asked only for what must be
//! durable.
//!
//! An entry of [`Waiting`](super::waiting::Waiting) says where a row stands and little more. Here the rows and frames
//! are read, without a lock, in the order in which they stand on disk; then what they say is told to those who ask,
//! and to [`Waiting`](super::waiting::Waiting).

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLockReadGuard};

use jiff::{SignedDuration, Timestamp};

use super::entry::{SendHead, accepted_row, id_of};
use super::frame::{FrameKind, Scanned, Scanner};
use super::hashes::ExecutionHash;
use super::read::{self, Window, in_call_order, payload};
use super::segment::Segment;
use super::table::{Extent, Row};
use super::waiting::{Closing, Counted, Hand, Looked, Open, Place, Queued, Taken, second, second_after};
use super::{Shared, locked};
use crate::outcome::{Failure, Processed};
use crate::policy::{Asker, Suspensions};
use crate::record::Finished;
use crate::send::{ExecutionId, TenantId};
use crate::store::view::{self, EndedExecution, Standing};
use crate::store::wire::{self, SendForm};
use crate::store::{Pending, Session, StoreError, SweepPlace, WaitingCount, Want, Why};

/// Looks that a claim takes beyond what it may bring, before it comes back and says that there is more.
const LOOKS_BEYOND: usize = 4096;
/// A claim reads what is to be sent as well where that is no longer than this, in bytes: its frame is at hand, and its
/// beginning need not go to the disk once more.
const READ_WITH_CLAIM: usize = 16 * 1024;
/// Bytes of that in one claim, which holds them until the window takes what it has room for.
const READ_WITH_CLAIM_IN_ALL: usize = if cfg!(test) { 64 << 10 } else { 16 << 20 };
/// Rows that one call of a sweep looks at.
const SWEEP_ROWS: usize = 4096;
/// Entries that get their place in line under one lock.
const LINED_UP_AT_ONCE: usize = 512;
/// Seconds after which what has expired and could not be read is looked at again.
const UNREAD_AGAIN: u32 = 60;
/// The line aside of what nobody has seen the destination of.
const NOT_LOOKED_AT: u64 = 1;

/// A send that the store is to give its end.
pub struct ToEnd {
    pub queued: Queued,
    pub tenant: TenantId,
    pub number: u32,
    pub counted: Counted,
    pub finished: Finished,
}

#[derive(Default)]
pub struct Claim {
    pub sends: Vec<Pending>,
    pub unreadable: Vec<ToEnd>,
    pub more: bool,
}

enum Look {
    /// It does not wait any more, or stands elsewhere by now.
    Gone,
    Waits(Box<(Pending, Taken)>),
    Unreadable(Box<ToEnd>),
}

impl Shared {
    /// A row of a send that waits. Where it is damaged, the log still has all that it said.
    pub fn waiting_row(&self, segment: &Segment, number: u32) -> Result<Option<Row>, StoreError> {
        if let Some(row) = self.sound_row(segment, number)? {
            return Ok(Some(row));
        }
        let end = segment.log_bytes.load(std::sync::atomic::Ordering::Acquire);
        let failed =
            |error: std::io::Error| StoreError::CannotRead(Why::by(format!("{}: {error}", segment.file("log")), error));
        let mut scanner = Scanner::new(&segment.log, 0, end).map_err(failed)?;
        loop {
            match scanner.next().map_err(failed)? {
                Scanned::Frame { at, frame } if frame.kind == FrameKind::Send => {
                    let Ok((head, form)) = SendHead::decode(frame.payload) else { continue };
                    if head.row == number {
                        let extent = Extent { at: at as u32, length: frame.length as u32 };
                        return Ok(Some(accepted_row(&self.keys, &head, &form, extent)));
                    }
                }
                Scanned::End { .. } => return Ok(None),
                Scanned::Frame { .. } | Scanned::Damage { .. } => {}
            }
        }
    }

    /// While this is held no send is moved on.
    pub fn places_hold(&self) -> RwLockReadGuard<'_, ()> {
        self.places.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a send is by now that was at this place when it was looked at; `None`: it is done.
    pub fn undone_now(&self, id: u128, place: Place) -> Option<Place> {
        let is_there =
            |place: &Place| self.segment(place.0).is_some_and(|segment| segment.ended().undone.contains(place.1));
        if is_there(&place) {
            return Some(place);
        }
        let (segment, row, _) = self.find(id_of(id)).ok()??;
        Some((segment.number, row)).filter(is_there)
    }

    pub fn queued_now(&self, end: &ToEnd) -> Queued {
        let (segment, row) =
            self.undone_now(end.finished.id.0.as_u128(), end.queued.place()).unwrap_or(end.queued.place());
        Queued { segment, row, ..end.queued }
    }

    /// How the execution that holds this send has ended, if any does.
    pub fn ended_of(&self, row: &Row) -> Result<Option<EndedExecution>, StoreError> {
        row.holder().map_or(Ok(None), |execution| self.ending(execution))
    }

    /// The entry of a send that is free to go.
    pub fn queued(&self, segment: &Segment, number: u32, row: &Row, released: Timestamp) -> Result<Queued, StoreError> {
        let expires_in = match row.expires_in() {
            Some(seconds) => seconds,
            // Of a row from before they had it.
            None => match segment.frame(row.accepted) {
                Ok(bytes) => payload(segment, row.accepted, &bytes, SendHead::decode)
                    .map_or(0, |(_, form)| expires_in_seconds(&form)),
                Err(StoreError::Damaged(_)) => 0,
                Err(error) => return Err(error),
            },
        };
        let expires = second_after(released).saturating_add(expires_in);
        Ok(Queued { segment: segment.number, row: number, expires, released: second(released) })
    }
}

fn expires_in_seconds(form: &SendForm<'_>) -> u32 {
    super::table::whole_seconds(form.expires_in())
}

fn standing(row: &Row, ended: Option<EndedExecution>) -> Standing {
    Standing {
        created_at: wire::timestamp(row.created_at),
        held: row.is_held(),
        ended,
        started_at: row.is_begun().then(|| wire::timestamp(row.started_at)),
    }
}

// Claiming.

pub fn claim(shared: &Arc<Shared>, by: &Session, wants: &[Want], limit: usize) -> Result<Claim, StoreError> {
    let _still = shared.places_hold();
    let mut claiming = Claiming {
        shared,
        by,
        claim: Claim::default(),
        looks: limit + LOOKS_BEYOND,
        may_read: READ_WITH_CLAIM_IN_ALL,
        unread: Vec::new(),
    };
    let done = wants.iter().try_for_each(|want| claiming.want(want, limit));
    // Only now: within this call they would be looked at again and again.
    let mut waiting = locked(&shared.waiting);
    for (number, one) in claiming.unread {
        waiting.put_aside(number, NOT_LOOKED_AT, (one.order, one.queued));
    }
    done.map(|()| claiming.claim)
}

/// A claim under way.
struct Claiming<'s> {
    shared: &'s Shared,
    by: &'s Session,
    claim: Claim,
    looks: usize,
    /// Bytes of what is to be sent.
    may_read: usize,
    /// What could not be read, with its tenant's number.
    unread: Vec<(u32, Looked)>,
}

impl Claiming<'_> {
    fn want(&mut self, want: &Want, limit: usize) -> Result<(), StoreError> {
        let known = || locked(&self.shared.waiting).known(&want.tenant);
        if let Some(Err(error)) = known().map(|number| give_places(self.shared, number)) {
            // What is in line already can be claimed.
            self.shared.tell_unread(&error);
        }
        let full: HashSet<u64> = want.full.iter().map(|destination| self.shared.destination(destination)).collect();
        let mut room = want.room;
        while room > 0 {
            let most = room.min(limit - self.claim.sends.len()).min(self.looks);
            let (number, looked) = {
                let mut waiting = locked(&self.shared.waiting);
                self.shared.in_force(&waiting, self.by)?;
                // Asked each time: a tenant of which nothing waits any more gives its number to another.
                let Some(number) = waiting.known(&want.tenant) else { break };
                if most == 0 {
                    self.claim.more |= waiting.count_of(&want.tenant).unclaimed > 0;
                    break;
                }
                (number, waiting.look(number, most, &full))
            };
            if looked.is_empty() {
                break;
            }
            self.looks -= looked.len();
            let before = self.claim.sends.len();
            self.take(number, &looked, &full)?;
            room -= self.claim.sends.len() - before;
        }
        Ok(())
    }

    /// Takes what was looked at, or puts it where it belongs. What cannot be read costs nobody else's sends.
    fn take(&mut self, number: u32, looked: &[Looked], full: &HashSet<u64>) -> Result<(), StoreError> {
        let mut reader = Reader { may_read: self.may_read, ..Reader::of(self.shared, looked.len()) };
        let mut looks = Vec::with_capacity(looked.len());
        for one in looked {
            match reader.look(self.by, number, one) {
                Ok(look) => looks.push((look, one)),
                Err(error) => {
                    self.shared.tell_unread(&error);
                    self.unread.push((number, *one));
                }
            }
        }
        self.may_read = reader.may_read;
        let mut waiting = locked(&self.shared.waiting);
        let is_over = self.shared.in_force(&waiting, self.by);
        for (look, one) in looks {
            match look {
                Look::Gone => {}
                Look::Unreadable(end) => self.claim.unreadable.push(*end),
                Look::Waits(send) => {
                    let (pending, taken) = *send;
                    let id = pending.id.0.as_u128();
                    let still = self
                        .shared
                        .segment(taken.queued.segment)
                        .is_some_and(|segment| segment.ended().undone.contains(taken.queued.row));
                    if !still || waiting.taken(id).is_some() {
                        continue;
                    }
                    if is_over.is_err() || full.contains(&taken.destination) || waiting.ending.contains(&id) {
                        waiting.put_aside(number, taken.destination, (one.order, one.queued));
                    } else {
                        waiting.claim(id, taken);
                        self.claim.sends.push(pending);
                    }
                }
            }
        }
        is_over
    }
}

/// Reads rows and frames that mostly follow one another.
struct Reader<'s> {
    shared: &'s Shared,
    window: Option<Window>,
    window_bytes: usize,
    /// Bytes of what is to be sent.
    may_read: usize,
}

impl<'s> Reader<'s> {
    fn of(shared: &'s Shared, sends: usize) -> Self {
        Self { shared, window: None, window_bytes: (sends * 1024).clamp(4096, 1 << 20), may_read: 0 }
    }

    fn look(&mut self, by: &Session, number: u32, looked: &Looked) -> Result<Look, StoreError> {
        let queued = looked.queued;
        let Some((segment, row)) = waiting(self.shared, queued.segment, queued.row)? else { return Ok(Look::Gone) };
        let standing = standing(&row, self.shared.ended_of(&row)?);
        let Some(released_at) = standing.released_at() else { return Ok(Look::Gone) };
        let (shared, may_read) = (self.shared, self.may_read);
        let mut read_of_it = 0;
        let form = self.form(&segment, &row, |bytes, head, form| {
            let destination = form.destination();
            let size = bytes.len() + head.body.length as usize + head.rest.length as usize;
            let is_small = size <= READ_WITH_CLAIM.min(may_read);
            read_of_it = if is_small { size } else { 0 };
            // Where it can't be read now, its beginning finds out what that means.
            let spec = || read::spec_of(shared, &segment, &row, (bytes, head, form)).ok();
            let pending = Pending {
                accepted_by: None,
                id: row.id(),
                tenant: form.tenant_id(),
                workflow: form.workflow(),
                destination,
                created_at: standing.created_at,
                released_at,
                expires_in: form.expires_in(),
                gathers: form.gathers().map(|place| (place, form.body_bytes())),
                spec: is_small.then(spec).flatten(),
            };
            let destination = pending.destination.as_ref().map_or(0, |destination| shared.destination(destination));
            let hand = Hand::Claimed(by.incarnation());
            let (order, tenant_hash) = (looked.order, shared.keys.tenant(form.tenant));
            Box::new((pending, Taken { queued, tenant: number, tenant_hash, destination, order, hand }))
        })?;
        self.may_read -= read_of_it;
        Ok(match form {
            Ok(waits) => Look::Waits(waits),
            Err(now) => Look::Unreadable(Box::new(ToEnd {
                queued,
                tenant: name_of(self.shared, number),
                number,
                counted: Counted::Queued,
                finished: self.shared.unreadable(standing, row.id(), now),
            })),
        })
    }

    /// What the send's frame says; `Err`: it is damaged, which is told, at this instant.
    fn form<T>(
        &mut self,
        segment: &Arc<Segment>,
        row: &Row,
        read: impl FnOnce(&[u8], &SendHead, &SendForm<'_>) -> T,
    ) -> Result<Result<T, Timestamp>, StoreError> {
        if self.window.as_ref().is_none_or(|window| window.segment.number != segment.number) {
            self.window = Some(Window::of(segment.clone(), self.window_bytes));
        }
        let Some(window) = &mut self.window else { return Ok(Err(crate::clock::wall())) };
        let form = window.frame(row.accepted).and_then(|bytes| {
            payload(segment, row.accepted, bytes, SendHead::decode).map(|(head, form)| read(bytes, &head, &form))
        });
        match form {
            Ok(read) => Ok(Ok(read)),
            Err(StoreError::Damaged(why)) => {
                self.shared.tell_damage(why.to_string());
                Ok(Err(crate::clock::wall()))
            }
            Err(error) => Err(error),
        }
    }
}

/// A send that has neither begun nor ended; `None`: it has.
fn waiting(shared: &Shared, segment: u32, number: u32) -> Result<Option<(Arc<Segment>, Row)>, StoreError> {
    let Some(segment) = shared.segment(segment) else { return Ok(None) };
    if !segment.ended().undone.contains(number) {
        return Ok(None);
    }
    let row = shared.waiting_row(&segment, number)?;
    Ok(row.filter(|row| !row.is_begun() && !row.is_done()).map(|row| (segment, row)))
}

// Executions that have ended.

/// Gives the sends of this tenant's finished executions their places in line. One execution that cannot be read does
/// not keep the others out; it is tried again with the next claim.
pub fn line_up(shared: &Shared, number: u32) -> Result<(), StoreError> {
    let _still = shared.places_hold();
    give_places(shared, number)
}

fn give_places(shared: &Shared, number: u32) -> Result<(), StoreError> {
    if !locked(&shared.waiting).is_closing(number, true) {
        return Ok(());
    }
    // One at a time: each send gets one place.
    let _one = locked(&shared.lining_up);
    let closings = locked(&shared.waiting).closings(number, true);
    let mut done = Ok(());
    for closing in closings {
        match released(shared, &closing) {
            Ok(entries) => {
                for some in entries.chunks(LINED_UP_AT_ONCE) {
                    let mut waiting = locked(&shared.waiting);
                    some.iter().for_each(|queued| waiting.line_up(number, *queued));
                }
                locked(&shared.waiting).closed(number, closing.execution);
            }
            Err(error) => done = Err(error),
        }
    }
    done
}

/// The places in line of what a finished execution held.
fn released(shared: &Shared, closing: &Closing) -> Result<Vec<Queued>, StoreError> {
    let mut entries = Vec::new();
    for (segment, number, row) in held(shared, closing.execution)? {
        let entry = row.and_then(|row| {
            if row.is_begun() || row.is_done() {
                return Ok(None);
            }
            let released = standing(&row, Some(closing.ended)).released_at().unwrap_or(closing.ended.at);
            shared.queued(&segment, number, &row, released).map(Some)
        });
        entries.extend(entry.unwrap_or_else(|error| {
            // In line all the same: who claims it tries to read it again.
            shared.tell_unread(&error);
            let released = second(closing.ended.at);
            Some(Queued { segment: segment.number, row: number, expires: u32::MAX, released })
        }));
    }
    Ok(entries)
}

/// The sends of a discarded execution of this tenant that have no end yet, and why not all of them are told.
pub fn discarded(
    shared: &Shared,
    number: u32,
    closing: &Closing,
    now: Timestamp,
) -> Result<(Vec<ToEnd>, Option<StoreError>), StoreError> {
    let _still = shared.places_hold();
    let tenant = name_of(shared, number);
    let mut ends = Vec::new();
    let mut failed = None;
    for (segment, row, found) in held(shared, closing.execution)? {
        match found {
            Ok(found) if found.is_begun() || found.is_done() => {}
            Ok(found) => ends.push(ToEnd {
                queued: Queued { segment: segment.number, row, expires: u32::MAX, released: 0 },
                tenant: tenant.clone(),
                number,
                counted: Counted::Not,
                finished: standing(&found, Some(closing.ended)).end(found.id(), view::discarded(), now),
            }),
            Err(error) => {
                shared.tell_unread(&error);
                failed = Some(error);
            }
        }
    }
    Ok((ends, failed))
}

fn name_of(shared: &Shared, number: u32) -> TenantId {
    locked(&shared.waiting).name(number).cloned().unwrap_or_else(|| TenantId::new(""))
}

/// A row that an execution holds, if it can be read.
type HeldRow = (Arc<Segment>, u32, Result<Row, StoreError>);

/// Rows of an execution that are not done, in call order, those that it does not hold left out.
fn held(shared: &Shared, execution: ExecutionHash) -> Result<Vec<HeldRow>, StoreError> {
    let mut rows = Vec::new();
    for segment in shared.segments().with(execution.hash).rev() {
        for number in segment.members(execution)? {
            if !segment.ended().undone.contains(number) {
                continue;
            }
            match shared.waiting_row(segment, number).transpose() {
                Some(Ok(row)) if row.holder() != Some(execution) => {}
                Some(row) => rows.push((segment.clone(), number, row)),
                None => {}
            }
        }
    }
    in_call_order(&mut rows, |(_, _, row)| row.as_ref().ok());
    Ok(rows)
}

/// Where these rows are, all of them.
pub fn held_rows(shared: &Shared, execution: ExecutionHash) -> Result<Vec<(u32, u32)>, StoreError> {
    held(shared, execution)?.into_iter().map(|(segment, number, row)| row.map(|_| (segment.number, number))).collect()
}

// Sweeps.

/// What has expired by now, taken out of line; and whether there may be more. What cannot be read holds nothing up: it
/// is in line again, and looked at later.
pub fn expired(shared: &Shared, now: Timestamp, limit: usize) -> (Vec<ToEnd>, bool) {
    let _still = shared.places_hold();
    let taken = locked(&shared.waiting).take_expired(second(now), limit);
    let more = taken.len() >= limit;
    let mut ends = Vec::with_capacity(taken.len());
    let (mut unread, mut kept) = (Vec::new(), Vec::new());
    for (number, queued) in taken {
        let end = waiting(shared, queued.segment, queued.row).and_then(|found| {
            let Some((_, row)) = found else { return Ok(None) };
            let standing = standing(&row, shared.ended_of(&row)?);
            if locked(&shared.batched).contains_key(&row.id) {
                kept.push((number, Queued { expires: u32::MAX, ..queued }));
                return Ok(None);
            }
            Ok(Some(ToEnd {
                queued,
                tenant: name_of(shared, number),
                number,
                counted: Counted::Queued,
                finished: standing.end(row.id(), view::expired(), now),
            }))
        });
        match end {
            Ok(end) => ends.extend(end),
            Err(error) => {
                shared.tell_unread(&error);
                unread.push((number, Queued { expires: second(now).saturating_add(UNREAD_AGAIN), ..queued }));
            }
        }
    }
    put_back(shared, unread.into_iter().chain(kept));
    (ends, more)
}

/// What could not be ended is in line again, in front.
pub fn put_back(shared: &Shared, sends: impl Iterator<Item = (u32, Queued)>) {
    let mut waiting = locked(&shared.waiting);
    for (number, queued) in sends {
        let order = waiting.next_order(number);
        waiting.put_aside(number, NOT_LOOKED_AT, (order, queued));
    }
}

/// What waits or is held, and is suspended; with the place to go on from. What cannot be read is passed over.
pub fn suspended(
    shared: &Shared,
    suspensions: &Suspensions,
    from: Option<SweepPlace>,
    now: Timestamp,
    limit: usize,
) -> (Vec<ToEnd>, Option<SweepPlace>) {
    let nothing_waits_of = |tenant: &TenantId| locked(&shared.waiting).count_of(tenant) == WaitingCount::default();
    if suspensions.only_of().is_some_and(|mut tenants| tenants.all(nothing_waits_of)) {
        // A walk over all that waits would find nothing.
        return (Vec::new(), None);
    }
    let _still = shared.places_hold();
    let from = from.map_or((0, 0), |place| ((place.0 >> 32) as u32, place.0 as u32));
    let mut ends = Vec::new();
    let mut rows = 0;
    let mut reader = Reader::of(shared, SWEEP_ROWS);
    for segment in shared.segments().iter().filter(|segment| segment.number >= from.0) {
        let first = if segment.number == from.0 { from.1 } else { 0 };
        let undone: Vec<u32> = segment.ended().undone.range(first..).take(SWEEP_ROWS + 1).collect();
        for number in undone {
            if rows == SWEEP_ROWS || ends.len() >= limit {
                return (ends, Some(SweepPlace(u128::from(segment.number) << 32 | u128::from(number))));
            }
            rows += 1;
            match suspended_row(shared, &mut reader, (segment, number), suspensions, now) {
                Ok(end) => ends.extend(end),
                // Should it be readable once it is claimed, whoever claims it ends it.
                Err(error) => shared.tell_unread(&error),
            }
        }
    }
    (ends, None)
}

fn suspended_row(
    shared: &Shared,
    reader: &mut Reader<'_>,
    (segment, number): (&Arc<Segment>, u32),
    suspensions: &Suspensions,
    now: Timestamp,
) -> Result<Option<ToEnd>, StoreError> {
    let Some((segment, row)) = waiting(shared, segment.number, number)? else { return Ok(None) };
    let is_taken = locked(&shared.waiting).taken(row.id).is_some();
    if is_taken || locked(&shared.doubted).contains(&row.id) || locked(&shared.batched).contains_key(&row.id) {
        return Ok(None);
    }
    let found = reader.form(&segment, &row, |_, _, form| {
        let tenant = form.tenant_id();
        let (workflow, destination) = (form.workflow(), form.destination());
        let asker = Asker { tenant: &tenant, workflow: workflow.as_deref() };
        let host = destination.as_ref().map(|destination| &destination.host);
        view::suspended(suspensions, asker, host).map(|why| (tenant.clone(), why))
    })?;
    match found {
        Ok(Some((tenant, why))) => end_of(shared, tenant, &segment, number, &row, why, now),
        _ => Ok(None),
    }
}

fn end_of(
    shared: &Shared,
    tenant: TenantId,
    segment: &Segment,
    number: u32,
    row: &Row,
    why: Failure,
    now: Timestamp,
) -> Result<Option<ToEnd>, StoreError> {
    let ended = shared.ended_of(row)?;
    let standing = standing(row, ended);
    let counted = match (standing.released_at(), standing.is_discarded(), row.holder()) {
        (_, true, _) => return Ok(None),
        (None, _, Some(execution)) => Counted::HeldBy(execution),
        (..) => Counted::Queued,
    };
    let queued = match standing.released_at() {
        Some(released) => shared.queued(segment, number, row, released)?,
        None => Queued { segment: segment.number, row: number, expires: u32::MAX, released: 0 },
    };
    Ok(Some(ToEnd {
        queued,
        number: locked(&shared.waiting).number(&tenant),
        tenant,
        counted,
        finished: standing.end(row.id(), why, now),
    }))
}

/// Executions whose hold is over.
#[derive(Default)]
pub struct Overdue {
    pub executions: Vec<(TenantId, ExecutionId)>,
    /// Sends of executions whose very names are lost to damage, and these executions.
    pub unreadable: Vec<ToEnd>,
    pub nameless: Vec<ExecutionHash>,
    pub more: bool,
}

/// Those that are open for longer. What cannot be read is passed over, and looked at again the next time.
pub fn overdue(shared: &Shared, held_for: SignedDuration, now: Timestamp, limit: usize) -> Overdue {
    let _still = shared.places_hold();
    let open = locked(&shared.waiting).overdue(held_for, now, limit + 1);
    let is_more = open.len() > limit;
    let mut overdue = Overdue::default();
    let mut reader = Reader::of(shared, open.len());
    for (execution, open) in open.into_iter().take(limit) {
        let looked = name_of_execution(shared, &mut reader, execution, &open).and_then(|name| match name {
            Some(name) => Ok((Some(name), Vec::new())),
            None => unreadable_sends(shared, execution, open.tenant, now).map(|ends| (None, ends)),
        });
        match looked {
            Ok((Some(name), _)) => overdue.executions.push(name),
            Ok((None, ends)) => {
                overdue.unreadable.extend(ends);
                overdue.nameless.push(execution);
            }
            Err(error) => shared.tell_unread(&error),
        }
    }
    overdue.more = is_more && !(overdue.executions.is_empty() && overdue.nameless.is_empty());
    overdue
}

/// Mostly the first of its sends knows; where that one is damaged, any other does.
fn name_of_execution(
    shared: &Shared,
    reader: &mut Reader<'_>,
    execution: ExecutionHash,
    open: &Open,
) -> Result<Option<(TenantId, ExecutionId)>, StoreError> {
    let mut name_at = |(segment, number): (u32, u32)| -> Result<Option<(TenantId, ExecutionId)>, StoreError> {
        let Some(segment) = shared.segment(segment) else { return Ok(None) };
        let Some(row) = shared.waiting_row(&segment, number)? else { return Ok(None) };
        let name = reader.form(&segment, &row, |_, _, form| {
            form.execution().map(|execution| (form.tenant_id(), ExecutionId::new(execution)))
        });
        name.map(|name| name.ok().flatten())
    };
    if let Some(name) = name_at((open.segment, open.row))? {
        return Ok(Some(name));
    }
    for place in held_rows(shared, execution)? {
        if let Some(name) = name_at(place)? {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// The ends of what an execution holds whose name nothing tells any more.
fn unreadable_sends(
    shared: &Shared,
    execution: ExecutionHash,
    number: u32,
    now: Timestamp,
) -> Result<Vec<ToEnd>, StoreError> {
    let tenant = name_of(shared, number);
    let mut ends = Vec::new();
    for (segment, row) in held_rows(shared, execution)? {
        let Some((segment, found)) = waiting(shared, segment, row)? else { continue };
        ends.extend(end_of(shared, tenant.clone(), &segment, row, &found, view::unreadable(Processed::No), now)?);
    }
    Ok(ends)
}
