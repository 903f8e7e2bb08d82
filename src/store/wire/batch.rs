//! The stored form of a batch.

use serde::{Deserialize, Serialize};

use super::{FinishForm, Read, Unreadable, decode, encode, ended, kind_number, kind_of, nanoseconds, timestamp};
use crate::outcome::Processed;
use crate::record::{Batch, BatchId, BatchState, Finished, LeftOut};
use crate::send::{Place, SendId, TenantId};

numbered!(state_number, state_of, BatchState {
    BatchState::Gathering = 0, BatchState::Closed = 1, BatchState::Done = 2,
});

#[derive(Serialize, Deserialize)]
struct BatchForm<'a> {
    id: [u8; 32],
    tenant: &'a str,
    kind: u8,
    place: &'a str,
    state: u8,
    opened_at: i64,
    closes_at: i64,
    sends: &'a [u8],
    bytes: u64,
    tried: u32,
    /// A [`FinishForm`] each, with the answer's body.
    #[serde(borrow)]
    attempts: Vec<(&'a [u8], Option<&'a [u8]>)>,
    #[serde(borrow)]
    ended: Option<(&'a [u8], Option<&'a [u8]>)>,
    /// Facts that not every batch has, by number, each of a form of its own; who does not know one leaves it out.
    #[serde(borrow)]
    more: Vec<(u8, &'a [u8])>,
}

/// Of [`BatchForm::more`], once for each: the identities of events that it went without, and their end.
const LEFT_OUT: u8 = 1;
/// Of [`BatchForm::more`], and empty: one of its tries may have brought it there.
const TAKEN: u8 = 2;
/// Of [`BatchForm::more`]: where the configuration led it.
const PLACED: u8 = 3;

#[derive(Serialize, Deserialize)]
struct LeftOutForm<'a> {
    sends: &'a [u8],
    end: &'a [u8],
    body: Option<&'a [u8]>,
}

fn identities(sends: &[SendId]) -> Vec<u8> {
    sends.iter().flat_map(|id| *id.0.as_bytes()).collect()
}

/// At least one.
fn read_identities(bytes: &[u8]) -> Read<Vec<SendId>> {
    let (ids, rest) = bytes.as_chunks::<16>();
    if ids.is_empty() || !rest.is_empty() {
        return Err(Unreadable("a batch of no sends"));
    }
    Ok(ids.iter().map(|id| SendId(uuid::Uuid::from_bytes(*id))).collect())
}

fn read_end(first: SendId, form: &[u8], body: Option<&[u8]>) -> Read<Finished> {
    let form: FinishForm<'_> = decode(form)?;
    form.finished(first, body.map(bytes::Bytes::copy_from_slice))
}

fn left_out(left_out: &LeftOut) -> Vec<u8> {
    let (sends, (end, body)) = (identities(&left_out.sends), ended(&left_out.end));
    let form = LeftOutForm { sends: &sends, end: &end, body: body.as_deref() };
    encode(&form, Vec::with_capacity(512 + sends.len()))
}

fn read_left_out(bytes: &[u8]) -> Read<LeftOut> {
    let form: LeftOutForm<'_> = decode(bytes)?;
    let sends = read_identities(form.sends)?;
    let end = read_end(sends[0], form.end, form.body)?;
    Ok(LeftOut { sends, end })
}

pub fn batch(batch: &Batch) -> Vec<u8> {
    let sends = identities(&batch.sends);
    let attempts: Vec<_> = batch.attempts.iter().map(ended).collect();
    let last = batch.ended.as_ref().map(ended);
    let place = batch.place.text();
    let taken = (batch.taken != Processed::No).then_some((TAKEN, &[][..]));
    let placed = batch.placed.as_ref().map(|placed| (PLACED, placed.as_bytes()));
    let without: Vec<Vec<u8>> = batch.left_out.iter().map(left_out).collect();
    let form = BatchForm {
        id: batch.id.to_bytes(),
        tenant: batch.tenant.as_str(),
        kind: kind_number(batch.place.kind()),
        place: &place,
        state: state_number(batch.state),
        opened_at: nanoseconds(batch.opened_at),
        closes_at: nanoseconds(batch.closes_at),
        sends: &sends,
        bytes: batch.bytes,
        tried: batch.tried,
        attempts: attempts.iter().map(|(form, body)| (&form[..], body.as_deref())).collect(),
        ended: last.as_ref().map(|(form, body)| (&form[..], body.as_deref())),
        more: without.iter().map(|form| (LEFT_OUT, &form[..])).chain(taken).chain(placed).collect(),
    };
    encode(&form, Vec::with_capacity(512 + sends.len()))
}

pub fn read_batch(bytes: &[u8]) -> Read<Batch> {
    let form: BatchForm<'_> = decode(bytes)?;
    let sends = read_identities(form.sends)?;
    let finished = |(form, body): (&[u8], Option<&[u8]>)| read_end(sends[0], form, body);
    let attempts = form.attempts.into_iter().map(finished).collect::<Read<_>>()?;
    let ended = form.ended.map(finished).transpose()?;
    let taken = form.more.iter().any(|(fact, _)| *fact == TAKEN);
    let placed = form.more.iter().find(|(fact, _)| *fact == PLACED);
    let placed = placed.and_then(|(_, text)| std::str::from_utf8(text).ok()).map(Into::into);
    let left_out = form.more.into_iter().filter(|(fact, _)| *fact == LEFT_OUT);
    let place = Place::read(kind_of(form.kind)?, form.place);
    Ok(Batch {
        id: BatchId::from_bytes(form.id),
        tenant: TenantId::new(form.tenant),
        place: place.ok_or(Unreadable("a batch of no known place"))?,
        state: state_of(form.state)?,
        opened_at: timestamp(form.opened_at),
        closes_at: timestamp(form.closes_at),
        placed,
        sends,
        bytes: form.bytes,
        tried: form.tried,
        taken: if taken { Processed::Maybe } else { Processed::No },
        attempts,
        ended,
        left_out: left_out.map(|(_, form)| read_left_out(form)).collect::<Read<_>>()?,
    })
}
