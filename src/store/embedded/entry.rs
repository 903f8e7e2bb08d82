//! What a log's frames say: the numbers that the writer alone knows, in front of the stored forms.

use std::net::IpAddr;

use super::frame::HEADER_BYTES;
use super::seal::{Asked, Keys};
use super::table::{CARRIED, Extent, FIRST, HELD, NONE, Row, SEALED, expiry_number};
use crate::record::{Finished, FinishedBy};
use crate::send::SendId;
use crate::store::Ending;
use crate::store::view::EndedExecution;
use crate::store::wire::{self, EndingForm, FinishForm, Rest, SendForm, Unreadable};

/// Where a body stands in the bodies file of the same segment. Empty: there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BodyPlace {
    pub at: u64,
    pub length: u32,
}

/// In front of a [`SendForm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendHead {
    pub id: u128,
    pub row: u32,
    /// Sends of the same call that follow; the call counts once it reached 0.
    pub remaining: u32,
    pub index: Option<u32>,
    pub body: BodyPlace,
    pub rest: BodyPlace,
}

/// In front of a [`FinishForm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FinishHead {
    pub id: u128,
    pub segment: u32,
    pub row: u32,
    pub seq: u64,
    /// In the bodies of the segment whose log this is.
    pub body: BodyPlace,
}

/// All of a begin frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeginHead {
    pub id: u128,
    pub segment: u32,
    pub row: u32,
    pub at: i64,
}

const SEND_HEAD_BYTES: usize = 16 + 4 + 4 + 4 + 12 + 12;
const FINISH_HEAD_BYTES: usize = 16 + 4 + 4 + 8 + 12;
const BEGIN_BYTES: usize = 16 + 4 + 4 + 8;

/// Frames of sends and of ends are at least so long: no log names more of them than it has bytes for.
const SEND_FRAME_BYTES_MIN: usize = HEADER_BYTES + SEND_HEAD_BYTES;
const FINISH_FRAME_BYTES_MIN: usize = HEADER_BYTES + FINISH_HEAD_BYTES;

/// The greatest row that a log can name at this byte.
pub fn row_at_most(at: u64) -> u64 {
    at / SEND_FRAME_BYTES_MIN as u64
}

/// The greatest number of the tail that a log can name at this byte.
pub fn seq_at_most(first_seq: u64, at: u64) -> u64 {
    first_seq.saturating_add(at / FINISH_FRAME_BYTES_MIN as u64)
}

/// Takes numbers off the front of bytes.
struct Take<'a>(&'a [u8]);

impl Take<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Unreadable> {
        let (first, rest) = self.0.split_first_chunk().ok_or(Unreadable("shorter than its head"))?;
        self.0 = rest;
        Ok(*first)
    }
    fn id(&mut self) -> Result<u128, Unreadable> {
        self.take().map(u128::from_le_bytes)
    }
    fn number(&mut self) -> Result<u32, Unreadable> {
        self.take().map(u32::from_le_bytes)
    }
    fn long(&mut self) -> Result<u64, Unreadable> {
        self.take().map(u64::from_le_bytes)
    }
    fn place(&mut self) -> Result<BodyPlace, Unreadable> {
        Ok(BodyPlace { at: self.long()?, length: self.number()? })
    }
}

fn put_place(into: &mut Vec<u8>, place: BodyPlace) {
    into.extend_from_slice(&place.at.to_le_bytes());
    into.extend_from_slice(&place.length.to_le_bytes());
}

impl SendHead {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SEND_HEAD_BYTES);
        bytes.extend_from_slice(&self.id.to_le_bytes());
        bytes.extend_from_slice(&self.row.to_le_bytes());
        bytes.extend_from_slice(&self.remaining.to_le_bytes());
        bytes.extend_from_slice(&self.index.map_or(0, |index| index.saturating_add(1)).to_le_bytes());
        put_place(&mut bytes, self.body);
        put_place(&mut bytes, self.rest);
        bytes
    }

    pub fn decode(payload: &[u8]) -> Result<(Self, SendForm<'_>), Unreadable> {
        let mut take = Take(payload);
        let head = Self {
            id: take.id()?,
            row: take.number()?,
            remaining: take.number()?,
            index: take.number()?.checked_sub(1),
            body: take.place()?,
            rest: take.place()?,
        };
        Ok((head, wire::decode(take.0)?))
    }
}

impl FinishHead {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FINISH_HEAD_BYTES);
        bytes.extend_from_slice(&self.id.to_le_bytes());
        bytes.extend_from_slice(&self.segment.to_le_bytes());
        bytes.extend_from_slice(&self.row.to_le_bytes());
        bytes.extend_from_slice(&self.seq.to_le_bytes());
        put_place(&mut bytes, self.body);
        bytes
    }

    pub fn decode(payload: &[u8]) -> Result<(Self, FinishForm<'_>), Unreadable> {
        let mut take = Take(payload);
        let head = Self {
            id: take.id()?,
            segment: take.number()?,
            row: take.number()?,
            seq: take.long()?,
            body: take.place()?,
        };
        Ok((head, wire::decode(take.0)?))
    }
}

impl BeginHead {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BEGIN_BYTES);
        bytes.extend_from_slice(&self.id.to_le_bytes());
        bytes.extend_from_slice(&self.segment.to_le_bytes());
        bytes.extend_from_slice(&self.row.to_le_bytes());
        bytes.extend_from_slice(&self.at.to_le_bytes());
        bytes
    }

    pub fn decode(payload: &[u8]) -> Result<Self, Unreadable> {
        let mut take = Take(payload);
        Ok(Self { id: take.id()?, segment: take.number()?, row: take.number()?, at: i64::from_le_bytes(take.take()?) })
    }
}

/// The row that an accepted send gets.
pub fn accepted_row(keys: &Keys, head: &SendHead, form: &SendForm<'_>, at: Extent) -> Row {
    let short = |asked, text: Option<&str>| text.map_or(0, |text| keys.short(asked, text));
    let held = if form.held { HELD } else { 0 };
    let sealed = if form.rest() == Rest::Sealed { SEALED } else { 0 };
    let carried = if form.moved_from().is_some() { CARRIED } else { 0 };
    let first = if head.index == Some(0) { FIRST } else { 0 };
    Row {
        id: head.id,
        created_at: form.created_at,
        accepted: at,
        execution: form.execution().map_or(0, |execution| keys.execution(form.tenant, execution).hash),
        tenant: keys.short(Asked::Tenant, form.tenant),
        workflow: short(Asked::Workflow, form.workflow_text()),
        step: short(Asked::Step, form.step()),
        host: short(Asked::Host, form.host().as_deref()),
        outcome: NONE,
        code: NONE,
        flags: held | sealed | carried | first,
        expiry: expiry_number(form.expires_in()),
        ..Row::default()
    }
}

/// What an end adds to a row.
#[derive(Clone, Copy, Debug)]
pub struct FinishFacts {
    pub finished_at: i64,
    started_at: Option<i64>,
    pub outcome: u8,
    code: u8,
    status: u16,
    source: u32,
    public: u32,
}

impl FinishFacts {
    pub fn of(keys: &Keys, form: &FinishForm<'_>) -> Self {
        let (source, public) = form.sources();
        let hash = |ip: Option<IpAddr>| ip.map_or(0, |ip| keys.short(Asked::Source, &ip.to_string()));
        Self {
            finished_at: form.finished_at,
            started_at: form.started_at(),
            outcome: form.outcome(),
            code: form.code().unwrap_or(NONE),
            status: form.status().unwrap_or(0),
            source: hash(source),
            public: hash(public),
        }
    }

    pub fn of_finished(keys: &Keys, finished: &Finished) -> Self {
        let connection = finished.connection.as_ref();
        let hash = |ip: Option<IpAddr>| ip.map_or(0, |ip| keys.short(Asked::Source, &ip.to_string()));
        Self {
            finished_at: wire::nanoseconds(finished.finished_at),
            started_at: finished.started_at.map(wire::nanoseconds),
            outcome: wire::outcome_number(finished.ended.outcome),
            code: finished.ended.error.as_ref().map_or(NONE, |error| wire::code_number(error.code)),
            status: finished.response.as_ref().map_or(0, |response| response.status),
            source: hash(connection.and_then(|connection| connection.source).map(|source| source.ip())),
            public: hash(connection.and_then(|connection| connection.public)),
        }
    }

    pub fn apply(&self, row: &mut Row, segment: u32, at: Extent) {
        row.finish_segment = segment;
        row.finish = at;
        row.outcome = self.outcome;
        row.code = self.code;
        row.status = self.status;
        row.source = self.source;
        row.public = self.public;
        // The record's own word on when it began, for the filter on time by source address.
        row.started_at = self.started_at.unwrap_or(0);
    }
}

impl EndingForm<'_> {
    pub fn of<'a>(tenant: &'a str, execution: &'a str, ended: &EndedExecution) -> EndingForm<'a> {
        let kind = match ended.ending {
            Ending::Finish(FinishedBy::Call) => 0,
            Ending::Finish(FinishedBy::HoldLimit) => 1,
            Ending::Discard => 2,
        };
        EndingForm { tenant, execution, kind, at: wire::nanoseconds(ended.at), count: ended.count }
    }

    pub fn ended(&self) -> Result<EndedExecution, Unreadable> {
        let ending = match self.kind {
            0 => Ending::Finish(FinishedBy::Call),
            1 => Ending::Finish(FinishedBy::HoldLimit),
            2 => Ending::Discard,
            _ => return Err(Unreadable("an ending of no known number")),
        };
        Ok(EndedExecution { ending, at: wire::timestamp(self.at), count: self.count })
    }
}

pub fn id_of(number: u128) -> SendId {
    SendId(uuid::Uuid::from_u128(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_read_back() {
        let begin = BeginHead { id: 1 << 90, segment: 2, row: 3, at: -4 };
        assert_eq!(BeginHead::decode(&begin.encode()), Ok(begin));
        assert_eq!(begin.encode().len(), BEGIN_BYTES);
        assert!(BeginHead::decode(&begin.encode()[1..]).is_err());
    }
}
