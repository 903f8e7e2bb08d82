//! Claims, and the sweeps over what nobody has claimed: beside the writer, which is asked only for what must be durable.
//!
//! An entry of [`Waiting`](super::waiting::Waiting) says where a row stands and little more. Here the rows and frames
//! are read, without a lock, in the order in which they stand on disk; then what they say is told to those who ask,
//! and to [`Waiting`](super::waiting::Waiting).

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;

use super::entry::{SendHead, accepted_row};
use super::frame::{Found, Kind, Scanner};
use super::piece::Piece;
use super::read::{Window, payload};
use super::table::{Extent, Row};
use super::waiting::{Closing, Counted, Hand, Looked, Queued, Taken, second, second_after};
use super::{Shared, locked};
use crate::outcome::Failure;
use crate::policy::{Asker, Suspensions};
use crate::record::Finished;
use crate::send::{ExecutionId, TenantId};
use crate::store::view::{self, EndedExecution, Standing};
use crate::store::wire::{self, SendForm};
use crate::store::{Pending, Session, StoreError, SweepPlace, Want};

/// Looks that a claim takes beyond what it may bring, before it comes back and says that there is more.
const LOOKS_BEYOND: usize = 4096;
/// Rows that one call of a sweep looks at.
const SWEEP_ROWS: usize = 4096;
/// Entries that get their place in line under one lock.
const LINED_UP_AT_ONCE: usize = 512;
/// The line aside of what nobody has seen the destination of.
const NOT_LOOKED_AT: u32 = 1;

/// A send that the store is to give its end.
pub struct ToEnd {
    pub queued: Queued,
    pub tenant: TenantId,
    pub number: u32,
    pub tenant_hash: u32,
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
    pub fn waiting_row(&self, piece: &Piece, number: u32) -> Result<Option<Row>, StoreError> {
        if let Some(row) = self.sound_row(piece, number)? {
            return Ok(Some(row));
        }
        let end = piece.log_bytes.load(std::sync::atomic::Ordering::Acquire);
        let failed = |error: std::io::Error| StoreError::CannotRead(format!("{}: {error}", piece.file("log")));
        let mut scanner = Scanner::new(&piece.log, 0, end).map_err(failed)?;
        loop {
            match scanner.next().map_err(failed)? {
                Found::Frame { at, frame } if frame.kind == Kind::Send => {
                    let Ok((head, form)) = SendHead::decode(frame.payload) else { continue };
                    if head.row == number {
                        let extent = Extent { at: at as u32, length: frame.length as u32 };
                        return Ok(Some(accepted_row(&self.keys, head.id, &form, extent)));
                    }
                }
                Found::End { .. } => return Ok(None),
                Found::Frame { .. } | Found::Damage { .. } => {}
            }
        }
    }

    /// How the execution that holds this send has ended, if any does.
    fn ended_of(&self, row: &Row) -> Result<Option<EndedExecution>, StoreError> {
        if row.is_held() { self.ending(row.execution, None) } else { Ok(None) }
    }

    /// The entry of a send that is free to go.
    pub fn queued(&self, piece: &Piece, number: u32, row: &Row, released: Timestamp) -> Result<Queued, StoreError> {
        let expires_in = match row.expires_in() {
            Some(seconds) => seconds,
            // Of a row from before they had it.
            None => match piece.frame(row.accepted) {
                Ok(bytes) => payload(piece, row.accepted, &bytes, SendHead::decode)
                    .map_or(0, |(_, form)| expires_in_seconds(&form)),
                Err(StoreError::Damaged(_)) => 0,
                Err(error) => return Err(error),
            },
        };
        let expires = second_after(released).saturating_add(expires_in);
        Ok(Queued { piece: piece.number, row: number, expires, released: second(released) })
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
    let mut claim = Claim::default();
    let mut looks = limit + LOOKS_BEYOND;
    let mut failed = None;
    'wants: for want in wants {
        let Some(number) = locked(&shared.waiting).known(&want.tenant) else { continue };
        if let Err(error) = line_up(shared, number) {
            failed = Some(error);
            continue;
        }
        let full: HashSet<u32> = want.full.iter().map(|destination| shared.destination(destination)).collect();
        let mut room = want.room;
        while room > 0 {
            let most = room.min(limit - claim.sends.len()).min(looks);
            let looked = {
                let mut waiting = locked(&shared.waiting);
                shared.in_force(&waiting, by)?;
                match waiting.known(&want.tenant) {
                    Some(number) if most == 0 => {
                        claim.more |= waiting.count_of(&want.tenant).unclaimed > 0 && number < u32::MAX;
                        break;
                    }
                    Some(number) => waiting.look(number, most, &full),
                    None => break,
                }
            };
            if looked.is_empty() {
                break;
            }
            looks -= looked.len();
            let before = claim.sends.len();
            match take(shared, by, number, &looked, &full, &mut claim) {
                Ok(()) => {}
                Err(error @ StoreError::Fenced(_)) => return Err(error),
                // What is claimed already is answered, and those behind it are looked at.
                Err(error) => {
                    failed = Some(error);
                    continue 'wants;
                }
            }
            room -= claim.sends.len() - before;
        }
    }
    if let Some(error) = failed {
        if claim.sends.is_empty() && claim.unreadable.is_empty() {
            return Err(error);
        }
        tracing::warn!(%error, "some of what waits cannot be claimed yet");
        claim.more = true;
    }
    Ok(claim)
}

/// Takes what was looked at, or puts it where it belongs.
fn take(
    shared: &Arc<Shared>,
    by: &Session,
    number: u32,
    looked: &[Looked],
    full: &HashSet<u32>,
    claim: &mut Claim,
) -> Result<(), StoreError> {
    let mut reader = Reader::of(shared, looked.len());
    let mut looks = Vec::with_capacity(looked.len());
    for one in looked {
        match reader.look(by, number, one) {
            Ok(look) => looks.push(look),
            Err(error) => {
                let mut waiting = locked(&shared.waiting);
                for one in looked {
                    waiting.put_aside(number, NOT_LOOKED_AT, (one.order, one.queued));
                }
                return Err(error);
            }
        }
    }
    let mut waiting = locked(&shared.waiting);
    let is_over = shared.in_force(&waiting, by);
    for (look, one) in looks.into_iter().zip(looked) {
        match look {
            Look::Gone => {}
            Look::Unreadable(end) => claim.unreadable.push(*end),
            Look::Waits(send) => {
                let (pending, taken) = *send;
                let id = pending.id.0.as_u128();
                let still = shared
                    .piece(taken.queued.piece)
                    .is_some_and(|piece| piece.ended().undone.contains(taken.queued.row));
                if !still || waiting.taken(id).is_some() {
                    continue;
                }
                if pending.tenant != *waiting.name(number).unwrap_or(&pending.tenant) {
                    // Two tenants of one hash, found when the store was opened.
                    waiting.uncount(number, Counted::Queued);
                    let own = waiting.number(&pending.tenant);
                    waiting.queue(own, taken.queued);
                } else if is_over.is_err() || full.contains(&taken.destination) || waiting.ending.contains(&id) {
                    waiting.put_aside(number, taken.destination, (one.order, one.queued));
                } else {
                    waiting.claim(id, taken);
                    claim.sends.push(pending);
                }
            }
        }
    }
    is_over
}

/// Reads rows and frames that mostly follow one another.
struct Reader<'s> {
    shared: &'s Shared,
    window: Option<Window>,
    window_bytes: usize,
}

impl<'s> Reader<'s> {
    fn of(shared: &'s Shared, sends: usize) -> Self {
        Self { shared, window: None, window_bytes: (sends * 1024).clamp(4096, 1 << 20) }
    }

    fn look(&mut self, by: &Session, number: u32, looked: &Looked) -> Result<Look, StoreError> {
        let queued = looked.queued;
        let Some((piece, row)) = waiting(self.shared, queued.piece, queued.row)? else { return Ok(Look::Gone) };
        let standing = standing(&row, self.shared.ended_of(&row)?);
        let Some(released_at) = standing.released_at() else { return Ok(Look::Gone) };
        let form = self.form(&piece, &row, |form| {
            let destination = form.destination();
            let pending = Pending {
                id: row.id(),
                tenant: form.tenant_id(),
                workflow: form.workflow(),
                destination,
                created_at: standing.created_at,
                released_at,
                expires_in: form.expires_in(),
            };
            let destination =
                pending.destination.as_ref().map_or(0, |destination| self.shared.destination(destination));
            let hand = Hand::Claimed(by.incarnation());
            let (order, tenant_hash) = (looked.order, row.tenant);
            Box::new((pending, Taken { queued, tenant: number, tenant_hash, destination, order, hand }))
        })?;
        Ok(match form {
            Ok(waits) => Look::Waits(waits),
            Err(now) => Look::Unreadable(Box::new(ToEnd {
                queued,
                tenant: locked(&self.shared.waiting).name(number).cloned().unwrap_or_else(|| TenantId::new("")),
                number,
                tenant_hash: row.tenant,
                counted: Counted::Queued,
                finished: standing.end(row.id(), view::unreadable(), now),
            })),
        })
    }

    /// What the send's frame says; `Err`: it is damaged, which is told, at this instant.
    fn form<T>(
        &mut self,
        piece: &Arc<Piece>,
        row: &Row,
        read: impl FnOnce(&SendForm<'_>) -> T,
    ) -> Result<Result<T, Timestamp>, StoreError> {
        if self.window.as_ref().is_none_or(|window| window.piece.number != piece.number) {
            self.window = Some(Window::of(piece.clone(), self.window_bytes));
        }
        let Some(window) = &mut self.window else { return Ok(Err(crate::clock::wall())) };
        let form = window
            .frame(row.accepted)
            .and_then(|bytes| payload(piece, row.accepted, bytes, SendHead::decode).map(|(_, form)| read(&form)));
        match form {
            Ok(read) => Ok(Ok(read)),
            Err(StoreError::Damaged(why)) => {
                self.shared.tell_damage(why);
                Ok(Err(crate::clock::wall()))
            }
            Err(error) => Err(error),
        }
    }
}

/// A send that has neither begun nor ended; `None`: it has.
fn waiting(shared: &Shared, piece: u32, number: u32) -> Result<Option<(Arc<Piece>, Row)>, StoreError> {
    let Some(piece) = shared.piece(piece) else { return Ok(None) };
    if !piece.ended().undone.contains(number) {
        return Ok(None);
    }
    let row = shared.waiting_row(&piece, number)?;
    Ok(row.filter(|row| !row.is_begun() && !row.is_done()).map(|row| (piece, row)))
}

// Executions that have ended.

/// Gives the sends of this tenant's finished executions their places in line.
pub fn line_up(shared: &Arc<Shared>, number: u32) -> Result<(), StoreError> {
    let next = || locked(&shared.waiting).closing(number, true);
    if next().is_none() {
        return Ok(());
    }
    // One at a time: each send gets one place.
    let _one = locked(&shared.lining_up);
    while let Some(closing) = next() {
        let mut entries = Vec::new();
        for (piece, row) in held_rows(shared, closing.hash)? {
            let Some((piece, row)) = waiting(shared, piece, row)?.map(|(piece, found)| (piece, (row, found))) else {
                continue;
            };
            let released = standing(&row.1, Some(closing.ended)).released_at().unwrap_or(closing.ended.at);
            entries.push(shared.queued(&piece, row.0, &row.1, released)?);
        }
        for some in entries.chunks(LINED_UP_AT_ONCE) {
            let mut waiting = locked(&shared.waiting);
            some.iter().for_each(|queued| waiting.line_up(number, *queued));
        }
        locked(&shared.waiting).closed(number, closing.hash);
    }
    Ok(())
}

/// The sends of this tenant's discarded executions that have no end yet, of the first of them.
pub fn discarded(
    shared: &Arc<Shared>,
    number: u32,
    now: Timestamp,
) -> Result<Option<(Closing, Vec<ToEnd>)>, StoreError> {
    let (closing, tenant) = {
        let waiting = locked(&shared.waiting);
        let Some(closing) = waiting.closing(number, false) else { return Ok(None) };
        (closing, waiting.name(number).cloned().unwrap_or_else(|| TenantId::new("")))
    };
    let mut ends = Vec::new();
    for (piece, row) in held_rows(shared, closing.hash)? {
        let Some((piece, found)) = waiting(shared, piece, row)? else { continue };
        let standing = standing(&found, Some(closing.ended));
        ends.push(ToEnd {
            queued: Queued { piece: piece.number, row, expires: u32::MAX, released: 0 },
            tenant: tenant.clone(),
            number,
            tenant_hash: found.tenant,
            counted: Counted::Not,
            finished: standing.end(found.id(), view::discarded(), now),
        });
    }
    Ok(Some((closing, ends)))
}

/// Rows of an execution that are not done, in call order; those that it does not hold among them.
pub fn held_rows(shared: &Shared, hash: u64) -> Result<Vec<(u32, u32)>, StoreError> {
    let mut rows = Vec::new();
    for piece in shared.pieces().with(hash).rev() {
        for number in piece.members(hash)? {
            if !piece.ended().undone.contains(number) {
                continue;
            }
            let Some(row) = shared.waiting_row(piece, number)? else { continue };
            if row.is_held() && row.execution == hash {
                rows.push((piece.number, number));
            }
        }
    }
    Ok(rows)
}

// Sweeps.

/// What has expired by now, taken out of line.
pub fn expired(shared: &Arc<Shared>, now: Timestamp, limit: usize) -> Result<Vec<ToEnd>, StoreError> {
    let taken = locked(&shared.waiting).take_expired(second(now), limit);
    let mut ends = Vec::with_capacity(taken.len());
    for (at, (number, queued)) in taken.iter().enumerate() {
        let end = waiting(shared, queued.piece, queued.row).and_then(|found| {
            let Some((_, row)) = found else { return Ok(None) };
            let standing = standing(&row, shared.ended_of(&row)?);
            let tenant = locked(&shared.waiting).name(*number).cloned().unwrap_or_else(|| TenantId::new(""));
            Ok(Some(ToEnd {
                queued: *queued,
                tenant,
                number: *number,
                tenant_hash: row.tenant,
                counted: Counted::Queued,
                finished: standing.end(row.id(), view::expired(), now),
            }))
        });
        match end {
            Ok(end) => ends.extend(end),
            Err(error) => {
                put_back(shared, ends.iter().map(|end| (end.number, end.queued)));
                put_back(shared, taken[at..].iter().copied());
                return Err(error);
            }
        }
    }
    Ok(ends)
}

/// What could not be ended is in line again, in front.
pub fn put_back(shared: &Shared, sends: impl Iterator<Item = (u32, Queued)>) {
    let mut waiting = locked(&shared.waiting);
    for (number, queued) in sends {
        let order = waiting.next_order(number);
        waiting.put_aside(number, NOT_LOOKED_AT, (order, queued));
    }
}

/// What waits or is held, and is suspended; with the place to go on from.
pub fn suspended(
    shared: &Arc<Shared>,
    suspensions: &Suspensions,
    from: Option<SweepPlace>,
    now: Timestamp,
    limit: usize,
) -> Result<(Vec<ToEnd>, Option<SweepPlace>), StoreError> {
    let from = from.map_or((0, 0), |place| ((place.0 >> 32) as u32, place.0 as u32));
    let mut ends = Vec::new();
    let mut rows = 0;
    let mut reader = Reader::of(shared, SWEEP_ROWS);
    for piece in shared.pieces().iter().filter(|piece| piece.number >= from.0) {
        let first = if piece.number == from.0 { from.1 } else { 0 };
        let undone: Vec<u32> = piece.ended().undone.range(first..).take(SWEEP_ROWS + 1).collect();
        for number in undone {
            if rows == SWEEP_ROWS || ends.len() >= limit {
                return Ok((ends, Some(SweepPlace(u64::from(piece.number) << 32 | u64::from(number)))));
            }
            rows += 1;
            let Some((piece, row)) = waiting(shared, piece.number, number)? else { continue };
            if locked(&shared.waiting).taken(row.id).is_some() || locked(&shared.doubted).contains(&row.id) {
                continue;
            }
            let found = reader.form(&piece, &row, |form| {
                let tenant = form.tenant_id();
                let (workflow, destination) = (form.workflow(), form.destination());
                let asker = Asker { tenant: &tenant, workflow: workflow.as_deref() };
                let host = destination.as_ref().map(|destination| &destination.host);
                view::suspended(suspensions, asker, host).map(|why| (tenant.clone(), why))
            })?;
            if let Ok(Some((tenant, why))) = found {
                ends.extend(end_of(shared, tenant, &piece, number, &row, why, now)?);
            }
        }
    }
    Ok((ends, None))
}

fn end_of(
    shared: &Shared,
    tenant: TenantId,
    piece: &Piece,
    number: u32,
    row: &Row,
    why: Failure,
    now: Timestamp,
) -> Result<Option<ToEnd>, StoreError> {
    let ended = shared.ended_of(row)?;
    let standing = standing(row, ended);
    let counted = match (standing.released_at(), standing.is_discarded()) {
        (_, true) => return Ok(None),
        (Some(_), _) => Counted::Queued,
        (None, _) => Counted::HeldBy(row.execution),
    };
    let queued = match standing.released_at() {
        Some(released) => shared.queued(piece, number, row, released)?,
        None => Queued { piece: piece.number, row: number, expires: u32::MAX, released: 0 },
    };
    Ok(Some(ToEnd {
        queued,
        number: locked(&shared.waiting).number(&tenant),
        tenant,
        tenant_hash: row.tenant,
        counted,
        finished: standing.end(row.id(), why, now),
    }))
}

/// Executions whose hold is over.
#[derive(Default)]
pub struct Overdue {
    pub executions: Vec<(TenantId, ExecutionId)>,
    /// Sends of executions whose very names are lost to damage.
    pub unreadable: Vec<ToEnd>,
    pub more: bool,
}

/// Those that are open since before then.
pub fn overdue(shared: &Arc<Shared>, before: Timestamp, now: Timestamp, limit: usize) -> Result<Overdue, StoreError> {
    let open = locked(&shared.waiting).overdue(wire::nanoseconds(before), limit + 1);
    let mut overdue = Overdue { more: open.len() > limit, ..Overdue::default() };
    let mut reader = Reader::of(shared, open.len());
    for (hash, open) in open.into_iter().take(limit) {
        let mut name_at = |(piece, number): (u32, u32)| -> Result<Option<(TenantId, ExecutionId)>, StoreError> {
            let Some(piece) = shared.piece(piece) else { return Ok(None) };
            let Some(row) = shared.waiting_row(&piece, number)? else { return Ok(None) };
            let name = reader.form(&piece, &row, |form| {
                form.execution().map(|execution| (form.tenant_id(), ExecutionId::new(execution)))
            });
            name.map(|name| name.ok().flatten())
        };
        let mut name = name_at((open.piece, open.row))?;
        if name.is_none() {
            // Mostly the first of its sends knows; where that one is damaged, any other does.
            let places = held_rows(shared, hash)?;
            for &place in &places {
                name = name_at(place)?;
                if name.is_some() {
                    break;
                }
            }
            if name.is_none() {
                let tenant = locked(&shared.waiting).name(open.tenant).cloned();
                let tenant = tenant.unwrap_or_else(|| TenantId::new(""));
                for (piece, number) in places {
                    let Some((piece, row)) = waiting(shared, piece, number)? else { continue };
                    let why = view::unreadable();
                    overdue.unreadable.extend(end_of(shared, tenant.clone(), &piece, number, &row, why, now)?);
                }
                locked(&shared.waiting).forget_age(hash);
            }
        }
        overdue.executions.extend(name);
    }
    Ok(overdue)
}
