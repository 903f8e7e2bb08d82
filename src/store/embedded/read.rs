//! Reading beside the writer: records, executions, the tail. Lists have a module of their own.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;

use super::Shared;
use super::entry::{BodyPlace, FinishHead, SendHead, id_of};
use super::frame::{self, Frame, FrameKind, Scanned, Scanner};
use super::hashes::{ExecutionHash, TenantHash};
use super::index::FoundEnding;
use super::list::{Sieve, cursor, parse_cursor};
use super::seal::{SLOT_BYTES, Slot};
use super::segment::{END_BYTES, End, RowOf, Segment};
use super::table::{Extent, NONE, Row};
use crate::clock;
use crate::limits::IDEMPOTENCY_KEPT;
use crate::outcome::words::UnmadeCause;
use crate::outcome::{Ended, Outcome, Timings};
use crate::record::{Execution, ExecutionState, Record, ShownRequest, ShownTo, State, Unfinished, waited};
use crate::send::{Context, ExecutionId, Method, SendId, SendSpec, Spelling, TenantId};
use crate::store::view::{EndedExecution, Standing};
use crate::store::wire::{self, CallForm, EndingForm, FinishForm, Rest, SendForm, Unreadable};
use crate::store::{Accepted, Filter, IdempotencyKey, Reach, StoreError, TailItem, TailPlace, Why};

/// Places of the tail looked at in one call, so that a filter that matches nothing still comes back.
const TAIL_PLACES_MAX: u32 = 16 * 1024;

/// However the time of day is set meanwhile.
fn age(created_at: i64, now: Timestamp) -> Duration {
    waited(clock::steady(wire::timestamp(created_at)), clock::steady(now))
}

impl Shared {
    /// The end of an execution.
    pub fn ending(&self, execution: ExecutionHash) -> Result<Option<EndedExecution>, StoreError> {
        for segment in self.segments().with(execution.hash) {
            for found in segment.endings(execution)? {
                let at = match found {
                    FoundEnding::Known(ended) => return Ok(Some(ended)),
                    FoundEnding::At(at) => at,
                };
                let bytes = segment.frame(at)?;
                let form: EndingForm<'_> = payload(segment, at, &bytes, wire::decode)?;
                if self.keys.execution(form.tenant, form.execution) == execution {
                    return form.ended().map(Some).map_err(|why| damaged(segment, at, why));
                }
            }
        }
        Ok(None)
    }

    /// What an earlier call with this key came to.
    pub fn known_call(&self, hash: u64, key: &IdempotencyKey, now: Timestamp) -> Result<Option<Accepted>, StoreError> {
        for segment in self.segments().with(hash) {
            for (first, count) in segment.calls(hash)?.into_iter().rev() {
                if count == 0 {
                    match self.carried_call(segment, first, key, now)? {
                        Some(known) => return Ok(Some(known)),
                        None => continue,
                    }
                }
                let Some(row) = self.known_row(segment, first)?.filter(|row| !row.is_lost()) else { continue };
                if age(row.created_at, now) >= IDEMPOTENCY_KEPT {
                    continue;
                }
                let bytes = segment.frame(row.accepted)?;
                let (_, form) = payload(segment, row.accepted, &bytes, SendHead::decode)?;
                let Some(known) = form.key.as_ref().filter(|known| known.path == key.path && known.key == key.key)
                else {
                    continue;
                };
                if form.tenant != key.tenant.as_str() {
                    continue;
                }
                // Stores from before fingerprints were keyed have them as they came; within a day none is left.
                if known.fingerprint != self.keys.fingerprint(&key.fingerprint) && known.fingerprint != key.fingerprint
                {
                    return Ok(Some(Accepted::Mismatch));
                }
                return Ok(Some(Accepted::Replayed(self.sends_of_call(segment, first, count)?)));
            }
        }
        Ok(None)
    }

    fn sends_of_call(&self, segment: &Segment, first: u32, count: u32) -> Result<Vec<SendId>, StoreError> {
        let mut sends = Vec::with_capacity(count as usize);
        for number in first..segment.row_count().min(first + count) {
            sends.extend(self.known_row(segment, number)?.filter(|row| !row.is_lost()).map(|row| row.id()));
        }
        Ok(sends)
    }

    /// What a call came to whose records are gone.
    fn carried_call(
        &self,
        segment: &Segment,
        at: u32,
        key: &IdempotencyKey,
        now: Timestamp,
    ) -> Result<Option<Accepted>, StoreError> {
        let bytes = segment.frame_at(at)?;
        let extent = Extent { at, length: bytes.len() as u32 };
        let form: CallForm<'_> = payload(segment, extent, &bytes, wire::decode)?;
        let is_it = form.tenant == key.tenant.as_str() && form.key.path == key.path && form.key.key == key.key;
        if !is_it || age(form.created_at, now) >= IDEMPOTENCY_KEPT {
            return Ok(None);
        }
        // It was keyed when it was carried, if not before.
        if form.key.fingerprint != self.keys.fingerprint(&key.fingerprint) && form.key.fingerprint != key.fingerprint {
            return Ok(Some(Accepted::Mismatch));
        }
        let sends = form.sends.iter().map(|id| SendId(uuid::Uuid::from_bytes(*id))).collect();
        Ok(Some(Accepted::Replayed(sends)))
    }

    /// The calls of a segment whose keys are still promised, as frames to be carried on, each with its hash.
    pub fn calls_to_carry(&self, segment: &Segment, now: Timestamp) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let mut carried = Vec::new();
        let alive = |created_at: i64| age(created_at, now) < IDEMPOTENCY_KEPT;
        for (hash, first, count) in segment.all_calls()? {
            if count == 0 {
                let bytes = match segment.frame_at(first) {
                    Err(StoreError::Damaged(why)) => {
                        self.tell_damage(why.to_string());
                        carried.extend(self.second_place(segment, first, hash, alive).map(|form| (hash, form)));
                        continue;
                    }
                    read => read?,
                };
                let extent = Extent { at: first, length: bytes.len() as u32 };
                let form: CallForm<'_> = payload(segment, extent, &bytes, wire::decode)?;
                if alive(form.created_at) {
                    carried.push((hash, wire::encode(&form, Vec::new())));
                }
                continue;
            }
            let Some(row) = self.known_row(segment, first)?.filter(|row| !row.is_lost() && alive(row.created_at))
            else {
                continue;
            };
            let bytes = match segment.frame(row.accepted) {
                Err(StoreError::Damaged(why)) => {
                    self.tell_damage(why.to_string());
                    carried.extend(self.second_place(segment, row.accepted.at, hash, alive).map(|form| (hash, form)));
                    continue;
                }
                read => read?,
            };
            let (_, form) = payload(segment, row.accepted, &bytes, SendHead::decode)?;
            let Some(key) = form.key else { continue };
            let sends = self.sends_of_call(segment, first, count)?.iter().map(|id| *id.0.as_bytes()).collect();
            let form = CallForm { tenant: form.tenant, key, created_at: row.created_at, sends };
            carried.push((hash, wire::encode(&form, Vec::new())));
        }
        Ok(carried)
    }

    /// The form of a call whose first place is damaged, from its second: the next frame of a call behind it.
    fn second_place(&self, segment: &Segment, at: u32, hash: u64, alive: impl Fn(i64) -> bool) -> Option<Vec<u8>> {
        let counts = segment.log_bytes.load(Ordering::Acquire);
        let mut scanner = Scanner::new(&segment.log, u64::from(at), counts).ok()?;
        loop {
            let frame = match scanner.next().ok()? {
                Scanned::Frame { frame, .. } => frame,
                Scanned::Damage { .. } => continue,
                Scanned::End { .. } => return None,
            };
            match frame.kind {
                // Of the same call.
                FrameKind::Send | FrameKind::Begin => {}
                FrameKind::Call => {
                    let form: CallForm<'_> = wire::decode(frame.payload).ok()?;
                    let is_it = self.keys.call(form.tenant, form.key.path, form.key.key) == hash;
                    return (is_it && alive(form.created_at)).then(|| wire::encode(&form, Vec::new()));
                }
                _ => return None,
            }
        }
    }

    /// What the frame says whose a row is.
    pub fn tenant_named(&self, segment: &Segment, row: &Row) -> Result<TenantId, StoreError> {
        let bytes = segment.frame(row.accepted)?;
        payload(segment, row.accepted, &bytes, SendHead::decode).map(|(_, form)| form.tenant_id())
    }

    /// Whose a row is, as far as that can be read.
    pub fn tenant_of(&self, segment: &Segment, row: &Row) -> TenantHash {
        segment.tenant_by_shares(row.tenant).unwrap_or_else(|| {
            let named = self.tenant_named(segment, row);
            named.map_or(TenantHash::any_of(row.tenant), |name| self.keys.tenant(name.as_str()))
        })
    }

    pub fn find(&self, id: SendId) -> Result<Option<(std::sync::Arc<Segment>, u32, Row)>, StoreError> {
        let id = id.0.as_u128();
        let mut doubt = None;
        for segment in self.segments().with_id(id) {
            match segment.row_of(id)? {
                RowOf::Found(number, row) => return Ok(Some((segment.clone(), number, row))),
                RowOf::Nowhere => {}
                RowOf::AmongUnsound(numbers) => {
                    for number in numbers {
                        match self.known_row(segment, number)? {
                            Some(row) if row.id == id => return Ok(Some((segment.clone(), number, row))),
                            Some(_) => {}
                            None => doubt = Some((segment.clone(), number)),
                        }
                    }
                }
            }
        }
        // It may be the one of which neither table nor log tells.
        if let Some((segment, number)) = doubt {
            segment.row(number)?;
        }
        // It may be among those accepted last.
        self.free_of_debt()?;
        Ok(None)
    }
}

fn damaged(segment: &Segment, at: Extent, why: Unreadable) -> StoreError {
    let to = u64::from(at.at) + u64::from(at.length);
    StoreError::Damaged(format!("{} is unreadable at bytes {} to {to}: {}", segment.file("log"), at.at, why.0).into())
}

pub fn payload<'a, T>(
    segment: &Segment,
    at: Extent,
    bytes: &'a [u8],
    read: impl FnOnce(&'a [u8]) -> Result<T, Unreadable>,
) -> Result<T, StoreError> {
    // `Segment::frame` has checked the sum; asking once more costs little and needs no second way to say it.
    let Some(Frame { payload, .. }) = frame::parse(bytes) else {
        return Err(damaged(segment, at, Unreadable("it fails its checksum")));
    };
    read(payload).map_err(|why| damaged(segment, at, why))
}

fn body(segment: &Segment, place: BodyPlace) -> Result<Option<Bytes>, StoreError> {
    if place.length == 0 {
        return Ok(None);
    }
    Ok(segment.body(place.at, place.length)?.map(Bytes::from))
}

/// A body to be shown, and whether damage has lost it. That is told, and the rest of the record is shown without it.
fn shown_body(shared: &Shared, segment: &Segment, place: BodyPlace) -> Result<(Option<Bytes>, bool), StoreError> {
    match body(segment, place) {
        Err(StoreError::Damaged(why)) => {
            shared.tell_damage(why.to_string());
            Ok((None, true))
        }
        read => read.map(|bytes| (bytes, false)),
    }
}

// One record.

pub fn record(shared: &Shared, id: SendId, bodies: bool) -> Result<Option<Record>, StoreError> {
    match shared.find(id)? {
        Some((segment, _, row)) => match assemble(shared, &segment, &row, bodies) {
            // Its segment went meanwhile, and with it the one that tells how it ended.
            Err(_) if shared.segment(segment.number).is_none() => Ok(None),
            assembled => assembled.map(|(record, _)| Some(record)),
        },
        None => Ok(None),
    }
}

/// The record of a row, and its host as filters name it.
pub fn assemble(
    shared: &Shared,
    segment: &Segment,
    row: &Row,
    bodies: bool,
) -> Result<(Record, Option<String>), StoreError> {
    let bytes = segment.frame(row.accepted)?;
    let (head, form) = payload(segment, row.accepted, &bytes, SendHead::decode)?;
    let of_accept = |why| damaged(segment, row.accepted, why);
    let (request_body, lost) =
        if bodies && form.keeps_body() { shown_body(shared, segment, head.body)? } else { (None, false) };
    let mut request = form.shown(request_body).map_err(of_accept)?;
    if let Some(body) = request.body.as_mut().filter(|_| lost) {
        body.truncated = true;
    }
    let ended = shared.ended_of(row)?;
    let standing = Standing {
        created_at: wire::timestamp(form.created_at),
        held: row.is_held(),
        ended,
        started_at: row.is_begun().then(|| wire::timestamp(row.started_at)),
    };
    let mut record = Record::from(Unfinished {
        id: id_of(head.id),
        tenant: form.tenant_id(),
        context: form.context(),
        index: head.index,
        request,
        resend_of: form.resend_of(),
        node: form.node().to_owned(),
        created_at: standing.created_at,
        released_at: standing.released_at(),
        started_at: standing.started_at,
        timings: if row.has_end() { Timings::default() } else { standing.timings() },
    });
    if row.has_end() {
        let place = row.finish;
        let missing = || {
            let why = format!("the segment {} that tells how send {} ended is gone", row.finish_segment, record.id);
            StoreError::Damaged(why.into())
        };
        let elsewhere;
        let log = if row.finish_segment == segment.number {
            segment
        } else {
            elsewhere = shared.segment(row.finish_segment).ok_or_else(missing)?;
            &elsewhere
        };
        let bytes = log.frame(place)?;
        let (head, form): (FinishHead, FinishForm<'_>) = payload(log, place, &bytes, FinishHead::decode)?;
        let (response_body, lost) = if bodies { shown_body(shared, log, head.body)? } else { (None, false) };
        let mut finished = form.finished(record.id, response_body).map_err(|why| damaged(log, place, why))?;
        if let Some(response) = finished.response.as_mut().filter(|_| lost) {
            response.body.truncated = true;
        }
        record.end(finished);
    }
    Ok((record, form.host()))
}

/// What a list shows in the place of a record that cannot be read: that it is there, how it ended, and where the
/// damage is.
pub fn unreadable(shared: &Shared, filter: &Filter, row: &Row, why: &StoreError) -> Record {
    let outcome = (row.outcome != NONE).then(|| wire::outcome_of(row.outcome).ok()).flatten();
    let code = (row.code != NONE).then(|| wire::code_of(row.code).ok()).flatten();
    let mut record = Record::from(Unfinished {
        id: row.id(),
        tenant: filter.reach.one().cloned().unwrap_or_else(|| TenantId::new("unreadable")),
        context: Context::default(),
        index: None,
        request: ShownRequest {
            to: ShownTo::Http { method: Method::Get, url: format!("unreadable: {why}") },
            headers: Vec::new(),
            spelling: Spelling::default(),
            dropped_headers: Vec::new(),
            body: None,
        },
        resend_of: None,
        node: shared.node.to_string(),
        created_at: wire::timestamp(row.created_at),
        released_at: None,
        started_at: row.is_begun().then(|| wire::timestamp(row.started_at)),
        timings: Timings::default(),
    });
    record.state = if row.is_done() { State::Done } else { State::Queued };
    record.ended = outcome.map(|outcome| {
        let damaged = |code| UnmadeCause::Damaged { code, place: &why.to_string() }.failure();
        Ended { outcome, error: code.map(damaged) }
    });
    record
}

/// What is to be delivered, opened where it was sealed. `None`: no such send waits.
pub fn spec(shared: &Shared, id: SendId) -> Result<Option<std::sync::Arc<SendSpec>>, StoreError> {
    // Where it is moved on it counts no more in the one place before it is known to be in the other.
    let _still = shared.places_hold();
    let place = super::locked(&shared.waiting).taken(id.0.as_u128()).map(|taken| taken.queued.place());
    let found = match place {
        Some((segment, row)) => match shared.segment(segment) {
            Some(segment) => shared.waiting_row(&segment, row)?.map(|row| (segment, row)),
            None => None,
        },
        None => shared.find(id)?.map(|(segment, _, row)| (segment, row)),
    };
    let Some((segment, row)) = found.filter(|(_, row)| !row.is_done()) else { return Ok(None) };
    let bytes = segment.frame(row.accepted)?;
    let (head, form): (SendHead, SendForm<'_>) = payload(&segment, row.accepted, &bytes, SendHead::decode)?;
    spec_of(shared, &segment, &row, (&bytes, &head, &form)).map(Some)
}

/// What this frame says is to be delivered.
pub fn spec_of(
    shared: &Shared,
    segment: &Segment,
    row: &Row,
    (bytes, head, form): (&[u8], &SendHead, &SendForm<'_>),
) -> Result<std::sync::Arc<SendSpec>, StoreError> {
    let id = row.id();
    let lost = |what: &str| StoreError::Damaged(format!("{what} of send {id} in {}", segment.file("bodies")).into());
    let gone = || lost("the bodies file is gone, and with it the request");
    let request_body = match head.body.length {
        0 => None,
        _ => Some(body(segment, head.body)?.ok_or_else(gone)?),
    };
    let mut sealed;
    let rest = match form.rest() {
        Rest::Nothing => None,
        Rest::Sealed => {
            let slot: &Slot = bytes
                .get(bytes.len() - SLOT_BYTES..)
                .and_then(|slot| slot.first_chunk())
                .ok_or_else(|| damaged(segment, row.accepted, Unreadable("it lacks its wrapped key")))?;
            sealed = segment.body(head.rest.at, head.rest.length)?.ok_or_else(gone)?;
            let opened = shared.keys.open(id, slot, &mut sealed);
            Some(opened.ok_or_else(|| lost("the key file does not open what was sealed"))?)
        }
    };
    let spec = form.spec(request_body, rest).map_err(|why| damaged(segment, row.accepted, why))?;
    Ok(std::sync::Arc::new(spec))
}

/// Reads frames that follow one another with few reads.
pub struct Window {
    pub segment: std::sync::Arc<Segment>,
    bytes: Vec<u8>,
    at: u64,
    /// Read at once.
    most: usize,
}

impl Window {
    pub fn of(segment: std::sync::Arc<Segment>, most: usize) -> Self {
        Self { segment, bytes: Vec::new(), at: 0, most }
    }

    pub fn frame(&mut self, extent: Extent) -> Result<&[u8], StoreError> {
        let (at, length) = (u64::from(extent.at), extent.length as usize);
        if at < self.at || at + length as u64 > self.at + self.bytes.len() as u64 {
            let end = self.segment.log_bytes.load(std::sync::atomic::Ordering::Acquire);
            let most = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX);
            let read = frame::read_at(&self.segment.log, at, self.most.max(length).min(most));
            self.bytes = read.map_err(|error| {
                StoreError::CannotRead(Why::by(format!("{}: {error}", self.segment.file("log")), error))
            })?;
            self.at = at;
        }
        let from = (at - self.at) as usize;
        let short = || damaged(&self.segment, extent, Unreadable("the file ends before it"));
        self.bytes.get(from..from + length).ok_or_else(short)
    }
}

pub fn execution(
    shared: &Shared,
    tenant: &TenantId,
    execution: ExecutionId,
    at: Option<&str>,
    limit: usize,
) -> Result<Option<Execution>, StoreError> {
    let from = at.map(|at| parse_cursor('e', at)).transpose()?.unwrap_or((0, 0));
    let hash = shared.keys.execution(tenant.as_str(), execution.as_str());
    let ended = shared.ending(hash)?;
    let delivered_number = wire::outcome_number(Outcome::Delivered);
    let (mut total, mut delivered) = (0, 0);
    let mut sends = Vec::new();
    let mut next = None;
    let filter = Filter::of(Reach::One(tenant.clone()));
    let mut members = Vec::new();
    for segment in shared.segments().with(hash.hash).rev() {
        let rows = segment.row_count();
        for number in segment.members(hash)?.into_iter().filter(|&number| number < rows) {
            total += 1;
            let Some(row) = shared.known_row(segment, number)? else { continue };
            delivered += u64::from(row.outcome == delivered_number);
            members.push((segment.clone(), number, row));
        }
    }
    in_call_order(&mut members, |(_, _, row)| Some(row));
    let place = |member: &(std::sync::Arc<Segment>, u32, Row)| (member.0.number, member.1);
    let first = members.iter().position(|member| place(member) == from);
    let first = first.or_else(|| members.iter().position(|member| place(member) > from));
    for (segment, number, row) in &members[first.unwrap_or(members.len())..] {
        if sends.len() == limit {
            next = Some(cursor('e', segment.number, *number));
            break;
        }
        sends.push(match assemble(shared, segment, row, false) {
            Ok((record, _)) => record,
            Err(error @ StoreError::Damaged(_)) => unreadable(shared, &filter, row, &error),
            Err(error) => return Err(error),
        });
    }
    if ended.is_none() && total == 0 {
        return Ok(None);
    }
    Ok(Some(Execution {
        execution,
        state: ended.map_or(ExecutionState::Open, |ended| ended.ending.state()),
        finished_by: ended.and_then(|ended| ended.ending.finished_by()),
        delivered,
        total,
        sends,
        next,
    }))
}

/// Rows of an execution, as they were accepted: that is how they stand, but for those that were moved on. Ids grow with
/// acceptance.
pub fn in_call_order<T>(members: &mut [T], row: impl Fn(&T) -> Option<&Row>) {
    if members.iter().filter_map(&row).any(Row::is_carried) {
        members.sort_by_key(|member| row(member).map(|row| row.id));
    }
}

// The tail.

pub fn finished_after(
    shared: &Shared,
    seq: u64,
    filter: &Filter,
    limit: usize,
) -> Result<(Vec<TailItem>, TailPlace), StoreError> {
    let newest = shared.last_seq.load(std::sync::atomic::Ordering::Acquire);
    let sieve = Sieve::of(shared, filter);
    let mut items = Vec::new();
    let mut looked_at = seq;
    let mut left = TAIL_PLACES_MAX;
    let segments = shared.segments();
    for (at, segment) in segments.iter().enumerate() {
        let end = segments.get(at + 1).map_or(newest + 1, |next| next.first_seq);
        let first = segment.first_seq.max(looked_at.saturating_add(1));
        if first >= end {
            continue;
        }
        let known = segment.ends_count.load(std::sync::atomic::Ordering::Acquire);
        let from = u32::try_from(first - segment.first_seq).unwrap_or(u32::MAX).min(known);
        let to = known.min(from.saturating_add(left));
        left -= to - from;
        let bytes = segment.ends(from, to)?;
        for (bytes, place) in bytes.chunks_exact(END_BYTES).zip(from..) {
            let seq = segment.first_seq + u64::from(place);
            if items.len() == limit || seq > newest {
                return Ok((items, TailPlace::from_bits(looked_at)));
            }
            looked_at = seq;
            let Some(end) = End::decode(bytes) else { continue };
            // Of a segment that was dropped in the meantime nothing is left to show.
            let Some(of) = shared.segment(end.segment) else { continue };
            let Some(row) = shared.known_row(&of, end.row)? else { continue };
            if row.is_lost() || !sieve.passes(&row) {
                continue;
            }
            match assemble(shared, &of, &row, false) {
                Ok((record, host)) if filter.lets_through(&record, host.as_deref()) => {
                    items.push(TailItem { place: TailPlace::from_bits(seq), record });
                }
                Ok(_) => {}
                Err(error @ StoreError::Damaged(_)) => {
                    items.push(TailItem {
                        place: TailPlace::from_bits(seq),
                        record: unreadable(shared, filter, &row, &error),
                    });
                }
                Err(error) => return Err(error),
            }
        }
        if left == 0 {
            return Ok((items, TailPlace::from_bits(looked_at)));
        }
        looked_at = looked_at.max(end - 1);
    }
    Ok((items, TailPlace::from_bits(looked_at)))
}
