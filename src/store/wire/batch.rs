//! The stored form of a batch.

use serde::{Deserialize, Serialize};

use super::{FinishForm, Read, Unreadable, decode, encode, ended, kind_number, kind_of, nanoseconds, timestamp};
use crate::record::{Batch, BatchId, BatchState, Finished};
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
}

pub fn batch(batch: &Batch) -> Vec<u8> {
    let sends: Vec<u8> = batch.sends.iter().flat_map(|id| *id.0.as_bytes()).collect();
    let attempts: Vec<_> = batch.attempts.iter().map(ended).collect();
    let last = batch.ended.as_ref().map(ended);
    let place = batch.place.text();
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
    };
    encode(&form, Vec::with_capacity(512 + sends.len()))
}

pub fn read_batch(bytes: &[u8]) -> Read<Batch> {
    let form: BatchForm<'_> = decode(bytes)?;
    let (ids, rest) = form.sends.as_chunks::<16>();
    let sends: Vec<SendId> = ids.iter().map(|id| SendId(uuid::Uuid::from_bytes(*id))).collect();
    let Some(&first) = sends.first().filter(|_| rest.is_empty()) else { return Err(Unreadable("a batch of no sends")) };
    let finished = |(form, body): (&[u8], Option<&[u8]>)| -> Read<Finished> {
        let form: FinishForm<'_> = decode(form)?;
        form.finished(first, body.map(bytes::Bytes::copy_from_slice))
    };
    let place = Place::read(kind_of(form.kind)?, form.place);
    Ok(Batch {
        id: BatchId::from_bytes(form.id),
        tenant: TenantId::new(form.tenant),
        place: place.ok_or(Unreadable("a batch of no known place"))?,
        state: state_of(form.state)?,
        opened_at: timestamp(form.opened_at),
        closes_at: timestamp(form.closes_at),
        sends,
        bytes: form.bytes,
        tried: form.tried,
        attempts: form.attempts.into_iter().map(finished).collect::<Read<_>>()?,
        ended: form.ended.map(finished).transpose()?,
    })
}
