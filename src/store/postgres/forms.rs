//! Between the domain's values and the columns: what is written of a send and of its end, and a record put together.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use tokio_postgres::Row;
use uuid::Uuid;

use super::shares::SEND_BYTES;
use crate::outcome::{Failure, Processed};
use crate::policy::{Destination, Host};
use crate::record::{BatchId, Finished, InBatch, Record, State};
use crate::send::{Place, SendId, SendSpec, TenantId};
use crate::store::embedded::seal::{Keys, Slot};
use crate::store::view::{self, Standing};
use crate::store::wire::{self, FinishForm, Rest, SendForm, Unreadable};
use crate::store::{Course, NewSend, Pending, StoreError};

/// How a send enters, as `live` is made from it.
pub const WAIT: i16 = 0;
pub const CLAIM: i16 = 1;
pub const BEGIN: i16 = 2;
pub const HELD: i16 = 3;

/// A send's columns, of many sends: one array each.
#[derive(Default)]
pub struct Columns {
    pub ids: Vec<Uuid>,
    pub tenants: Vec<String>,
    pub workflows: Vec<Option<String>>,
    pub executions: Vec<Option<String>>,
    pub steps: Vec<Option<String>>,
    pub hosts: Vec<Option<String>>,
    pub forms: Vec<Vec<u8>>,
    pub bodies: Vec<Option<Bytes>>,
    pub sealed: Vec<Option<Vec<u8>>>,
    pub slots: Vec<Option<Vec<u8>>>,
    pub courses: Vec<i16>,
    pub destinations: Vec<i64>,
    pub created: Vec<i64>,
    pub expires: Vec<i64>,
    /// Of an event, the number of what it is for, and the bytes of its payload.
    pub gathers: Vec<Option<i16>>,
    pub weights: Vec<Option<i64>>,
}

impl Columns {
    pub fn add(&mut self, new: &NewSend, node: &str, held: bool, keys: &Keys) -> Result<(), StoreError> {
        let mut written = wire::accepted(new, node, held, None);
        let slot = match &mut written.rest {
            Some(rest) => Some(keys.seal(new.id, rest)?.to_vec()),
            None => None,
        };
        let context = &new.spec.context;
        let destination = new.spec.destination();
        self.ids.push(new.id.0);
        self.tenants.push(new.tenant.as_str().to_owned());
        self.workflows.push(context.workflow.as_deref().map(str::to_owned));
        self.executions.push(context.execution.as_ref().map(|execution| execution.as_str().to_owned()));
        self.steps.push(context.step.as_deref().map(str::to_owned));
        self.hosts.push(destination.map(|destination| view::host_text(&destination.host)));
        self.forms.push(written.form);
        self.bodies.push(written.body);
        self.sealed.push(written.rest);
        self.slots.push(slot);
        self.courses.push(match new.course {
            _ if held => HELD,
            Course::Begin => BEGIN,
            Course::Claim => CLAIM,
            Course::Wait => WAIT,
        });
        let place = new.spec.gathers();
        self.destinations.push(place.map_or_else(|| short(destination), short_of_place));
        self.gathers.push(place.map(|place| wire::kind_number(place.kind()).into()));
        self.weights.push(place.map(|_| new.spec.body().map_or(0, |body| body.len() as i64)));
        self.created.push(wire::nanoseconds(new.created_at));
        self.expires.push(i64::try_from(new.expires_in.as_nanos()).unwrap_or(i64::MAX));
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// What the statements that accept count of it for its tenant.
    pub fn kept_bytes(&self) -> u64 {
        let forms = self.forms.iter().map(Vec::len).sum::<usize>();
        let bodies = self.bodies.iter().flatten().map(Bytes::len).sum::<usize>();
        let sealed = self.sealed.iter().flatten().map(Vec::len).sum::<usize>();
        (forms + bodies + sealed) as u64 + self.len() as u64 * SEND_BYTES
    }

    /// The bodies as the driver takes them.
    pub fn bodies(&self) -> Vec<Option<&[u8]>> {
        self.bodies.iter().map(|body| body.as_deref()).collect()
    }
}

/// A destination as the queue knows it: FNV-1a. Two that share one are only ever full together.
pub fn short(destination: Option<&Destination>) -> i64 {
    let Some(destination) = destination else { return 0 };
    let address;
    let host = match &destination.host {
        Host::Name(name) => name.as_bytes(),
        Host::Address(ip) => {
            address = ip.to_string();
            address.as_bytes()
        }
    };
    // The scheme as it is declared: nodes of one tier have to agree.
    hashed(&[&[destination.scheme as u8], host, &destination.port.to_be_bytes()])
}

/// The same of where events gather.
pub fn short_of_place(place: &Place) -> i64 {
    hashed(&[&[wire::kind_number(place.kind())], place.text().as_bytes()])
}

fn hashed(parts: &[&[u8]]) -> i64 {
    let add = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    parts.iter().copied().flatten().fold(0xcbf2_9ce4_8422_2325_u64, add) as i64
}

/// Larger ends than this are cut where their tenant keeps its share already.
const LARGE_END_BYTES: usize = 1024;

/// An end's columns.
#[derive(Default)]
pub struct Ends {
    pub ids: Vec<Uuid>,
    pub outcomes: Vec<i16>,
    pub codes: Vec<Option<i16>>,
    pub statuses: Vec<Option<i16>>,
    pub sources: Vec<Option<String>>,
    pub publics: Vec<Option<String>>,
    pub started: Vec<Option<i64>>,
    pub finished: Vec<i64>,
    pub forms: Vec<Vec<u8>>,
    pub bodies: Vec<Option<Bytes>>,
}

impl Ends {
    pub fn add(&mut self, finished: &Finished) {
        let (form, body) = wire::ended(finished);
        let connection = finished.connection.as_ref();
        let text = |ip: IpAddr| ip.to_string();
        self.ids.push(finished.id.0);
        self.outcomes.push(i16::from(wire::outcome_number(finished.ended.outcome)));
        self.codes.push(finished.ended.error.as_ref().map(|error| i16::from(wire::code_number(error.code))));
        self.statuses.push(finished.response.as_ref().and_then(|answer| i16::try_from(answer.status).ok()));
        self.sources.push(connection.and_then(|connection| connection.source).map(|source| text(source.ip())));
        self.publics.push(connection.and_then(|connection| connection.public).map(text));
        self.started.push(finished.started_at.map(wire::nanoseconds));
        self.finished.push(wire::nanoseconds(finished.finished_at));
        self.forms.push(form);
        self.bodies.push(body);
    }

    pub fn bodies(&self) -> Vec<Option<&[u8]>> {
        self.bodies.iter().map(|body| body.as_deref()).collect()
    }

    /// What is kept of each where its tenant keeps its share already; `None` where that is all of it.
    pub fn bare(&self) -> Vec<Option<Vec<u8>>> {
        let size = |form: &[u8], body: Option<&Bytes>| form.len() + body.map_or(0, Bytes::len);
        let each = self.forms.iter().zip(&self.bodies);
        let large = each.map(|(form, body)| (size(form, body.as_ref()) > LARGE_END_BYTES).then_some(form));
        // It was encoded here, so it reads back.
        large.map(|form| form.and_then(|form| wire::without_answer(form).ok())).collect()
    }
}

pub fn damaged(id: Uuid, why: Unreadable) -> StoreError {
    StoreError::Damaged(format!("send {id} is unreadable in the database: {}", why.0).into())
}

/// What a delivery needs, from what [`super::sql::SPECS`] answers.
pub fn spec_of(row: &Row, keys: &Keys) -> Result<SendSpec, StoreError> {
    spec_from(row, 1, keys)
}

/// From four columns, the first of which is `at`: the form, what is sealed, its wrapped key, the body.
fn spec_from(row: &Row, at: usize, keys: &Keys) -> Result<SendSpec, StoreError> {
    let id: Uuid = row.get(0);
    let form: &[u8] = row.get::<_, Option<&[u8]>>(at).ok_or(StoreError::NoSuchSend)?;
    let form: SendForm<'_> = wire::decode(form).map_err(|why| damaged(id, why))?;
    let body = row.get::<_, Option<&[u8]>>(at + 3).map(Bytes::copy_from_slice);
    // An empty body that is kept has a row as well.
    if form.keeps_body() && body.is_none() {
        return Err(damaged(id, Unreadable("its body is gone")));
    }
    let mut sealed;
    let rest = match form.rest() {
        Rest::Nothing => None,
        Rest::Sealed => {
            let slot: Option<Slot> = row.get::<_, Option<&[u8]>>(at + 2).and_then(|slot| slot.try_into().ok());
            sealed = row.get::<_, Option<Vec<u8>>>(at + 1).unwrap_or_default();
            let opened = slot.and_then(|slot| keys.open(SendId(id), &slot, &mut sealed));
            Some(opened.ok_or_else(|| damaged(id, Unreadable("what is sealed of it does not open")))?)
        }
    };
    form.spec(body, rest).map_err(|why| damaged(id, why))
}

/// A claimed send, with what its delivery needs, where the claim brought that and it can be read: its beginning finds out
/// what it means where it can't.
pub fn claimed(row: &Row, keys: &Keys) -> Result<Pending, (SendId, TenantId)> {
    let spec = if row.get(9) { None } else { spec_from(row, 5, keys).ok() };
    Ok(Pending { spec: spec.map(Arc::new), ..pending(row)? })
}

/// A claimed send, for the schedule.
pub fn pending(row: &Row) -> Result<Pending, (SendId, TenantId)> {
    let (id, tenant): (Uuid, &str) = (row.get(0), row.get(1));
    let (created_at, released_at, expires_in): (i64, i64, i64) = (row.get(2), row.get(3), row.get(4));
    let form = row.get::<_, Option<&[u8]>>(5).and_then(|form| wire::decode::<SendForm<'_>>(form).ok());
    let form = form.ok_or_else(|| (SendId(id), TenantId::new(tenant)))?;
    Ok(Pending {
        accepted_by: Some(form.node().into()),
        id: SendId(id),
        tenant: TenantId::new(tenant),
        workflow: form.workflow(),
        destination: form.destination(),
        created_at: wire::timestamp(created_at),
        released_at: wire::timestamp(released_at),
        expires_in: std::time::Duration::from_nanos(expires_in.unsigned_abs()),
        gathers: form.gathers().map(|place| (place, form.body_bytes())),
        spec: None,
    })
}

/// The end that the store gives to one that stands so.
pub fn end_of(
    id: Uuid,
    created_at: i64,
    released_at: Option<i64>,
    began_at: Option<i64>,
    why: Failure,
    now: Timestamp,
) -> Finished {
    let released = released_at.map(wire::timestamp);
    let created_at = wire::timestamp(created_at);
    // As one that was never held where it is free, held where it is not.
    let standing = Standing {
        created_at,
        held: released != Some(created_at),
        ended: released.map(|at| view::EndedExecution {
            ending: crate::store::Ending::Finish(crate::record::FinishedBy::Call),
            at,
            count: 0,
        }),
        started_at: began_at.map(wire::timestamp),
    };
    standing.end(SendId(id), why, now)
}

/// Where a send that is not done stands.
pub struct Alive {
    pub held: bool,
    pub released_at: Option<i64>,
    pub began_at: Option<i64>,
    pub batch: Option<InBatch>,
}

/// The batch that a row of [`super::sql::LIVES`] names from this column on.
pub fn batch_of(row: &Row, at: usize) -> Option<InBatch> {
    let id: Option<&[u8]> = row.get(at);
    let closes_at: Option<i64> = row.get(at + 1);
    Some(InBatch {
        id: BatchId::from_bytes(id?.try_into().ok()?),
        closes_at: wire::timestamp(closes_at?),
        taken: Processed::No,
    })
}

/// All parts of one record; `Err` where what was accepted cannot be read.
pub struct Parts<'a> {
    pub id: Uuid,
    pub form: &'a [u8],
    pub place: Option<i32>,
    pub alive: Option<Alive>,
    /// With the name of who wrote it.
    pub done: Option<(&'a [u8], &'a str)>,
    pub body: Option<Bytes>,
    pub answer_body: Option<Bytes>,
}

pub fn record(parts: Parts<'_>) -> Result<Record, StoreError> {
    let id = SendId(parts.id);
    let form: SendForm<'_> = wire::decode(parts.form).map_err(|why| damaged(parts.id, why))?;
    let request = form.shown(parts.body).map_err(|why| damaged(parts.id, why))?;
    let finished = match parts.done {
        Some((bytes, _)) => {
            let end: FinishForm<'_> = wire::decode(bytes).map_err(|why| damaged(parts.id, why))?;
            Some(end.finished(id, parts.answer_body).map_err(|why| damaged(parts.id, why))?)
        }
        None => None,
    };
    let created_at = wire::timestamp(form.created_at);
    let node = match (&finished, parts.done) {
        // Who delivered it; one that was never made is of who accepted it.
        (Some(finished), Some((_, node))) if finished.started_at.is_some() => node.to_owned(),
        _ => form.node().to_owned(),
    };
    let mut record = Record {
        id,
        state: State::Done,
        ended: None,
        resend_of: form.resend_of(),
        tenant: TenantId::new(form.tenant),
        context: form.context(),
        index: parts.place.and_then(|place| u32::try_from(place).ok()),
        request,
        response: None,
        would_block: None,
        connection: None,
        timings: Default::default(),
        node,
        created_at,
        released_at: None,
        started_at: None,
        finished_at: None,
        batch: None,
    };
    match finished {
        Some(finished) => {
            if let Some(sent) = finished.sent_headers {
                record.request.headers = sent;
            }
            record.ended = Some(finished.ended);
            record.response = finished.response;
            record.would_block = finished.would_block;
            record.connection = finished.connection;
            record.batch = finished.batch;
            record.timings = finished.timings;
            record.released_at = finished.released_at;
            record.started_at = finished.started_at;
            record.finished_at = Some(finished.finished_at);
        }
        None => {
            let alive = parts.alive.unwrap_or(Alive { held: false, released_at: None, began_at: None, batch: None });
            record.batch = alive.batch;
            record.released_at = alive.released_at.map(wire::timestamp);
            record.started_at = alive.began_at.map(wire::timestamp);
            record.state = match (alive.held, alive.began_at) {
                (true, _) => State::Held,
                (false, None) => State::Queued,
                (false, Some(_)) => State::Sending,
            };
            record.timings.held = record.released_at.map(|at| crate::clock::waited(created_at, at));
            record.timings.queued = record
                .released_at
                .and_then(|released| record.started_at.map(|started| crate::clock::waited(released, started)));
        }
    }
    Ok(record)
}
