//! Batches of events, each of one node's while it gathers and once it is closed.
//!
//! Closing locks the node's row as a begin does, tests each event on the row that is changed, and makes what is the node's
//! still the batch, in one transaction. From then on the batch's one row says whose all of them are; a node that is gone
//! keeps it until nothing of its tries can be on the wire any more. A large batch is closed in several, so that its node's
//! lease is renewed in between: nothing of it is tried before the last, so what a death cuts off is a smaller batch, and the
//! rest gathers anew.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::hot::until_known;
use super::link::Trouble;
use super::{Shared, forms, locked, sql};
use crate::clock;
use crate::limits::BATCH_GIVE_UP_MAX;
use crate::outcome::Processed;
use crate::record::{Batch, BatchId, BatchState, Finished, InBatch};
use crate::send::{Kind, Place, SendId, SendSpec, TenantId};
use crate::source::Neighbour;
use crate::store::{Left, Opened, Pending, Reach, Session, StoreError, view, wire};

/// Events that one statement takes, of each sort.
const TAKEN_AT_ONCE: i64 = 512;
/// Events of a batch that are closed in one transaction.
const CLOSED_AT_ONCE: usize = if cfg!(test) { 3 } else { 5_000 };
/// Batches that are taken over at once: each comes with its sends.
const BATCHES_AT_ONCE: i64 = 16;
/// Rows that are dropped in one statement.
const DROPPED_AT_ONCE: i64 = if cfg!(test) { 2 } else { 1_000 };

fn kinds_of(kinds: &[Kind]) -> Vec<i16> {
    kinds.iter().map(|kind| wire::kind_number(*kind).into()).collect()
}

pub async fn note(shared: &Shared, by: &Session, opened: Vec<Opened>) -> Result<(), StoreError> {
    shared.open()?;
    let incarnation = by.incarnation() as i64;
    let ids: Vec<Vec<u8>> = opened.iter().map(|one| one.id.to_bytes().to_vec()).collect();
    let tenants: Vec<&str> = opened.iter().map(|one| one.tenant.as_str()).collect();
    let kinds: Vec<i16> = opened.iter().map(|one| wire::kind_number(one.place.kind()).into()).collect();
    let places: Vec<_> = opened.iter().map(|one| one.place.text().to_string()).collect();
    let destinations: Vec<i64> = opened.iter().map(|one| forms::short_of_place(&one.place)).collect();
    let opened_at: Vec<i64> = opened.iter().map(|one| wire::nanoseconds(one.opened_at)).collect();
    let closes_at: Vec<i64> = opened.iter().map(|one| wire::nanoseconds(one.closes_at)).collect();
    let values: [&(dyn ToSql + Sync); 8] =
        [&incarnation, &ids, &tenants, &kinds, &places, &destinations, &opened_at, &closes_at];
    shared.slow().query(sql::NOTE_GATHERING, &values).await.map(drop).map_err(|trouble| trouble.on_write())
}

pub async fn forget(shared: &Shared, by: &Session, ids: Vec<BatchId>) -> Result<(), StoreError> {
    shared.open()?;
    let ids: Vec<Vec<u8>> = ids.iter().map(|id| id.to_bytes().to_vec()).collect();
    let forgotten = shared.slow().query(sql::FORGET_GATHERING, &[&(by.incarnation() as i64), &ids]).await;
    forgotten.map(drop).map_err(|trouble| trouble.on_write())
}

/// What is written of a batch at each change: its sends stand beside it.
fn form_of(batch: &Batch) -> Vec<u8> {
    let first = batch.sends.first().copied().into_iter().collect();
    wire::batch(&Batch { sends: first, ..batch.clone() })
}

fn read(form: &[u8], sends: Vec<Uuid>) -> Result<Batch, StoreError> {
    let batch = wire::read_batch(form)
        .map_err(|wire::Unreadable(why)| StoreError::CannotRead(format!("a batch in the database: {why}").into()))?;
    Ok(Batch { sends: sends.into_iter().map(SendId).collect(), ..batch })
}

pub async fn close(
    shared: &Shared,
    by: &Session,
    batch: Arc<Batch>,
    grace: Duration,
) -> Result<Vec<SendId>, StoreError> {
    shared.open()?;
    let (incarnation, loaded) = (by.incarnation() as i64, *shared.loaded.borrow());
    let id = batch.id.to_bytes().to_vec();
    let (tenant, kind) = (batch.tenant.as_str(), i16::from(wire::kind_number(batch.place.kind())));
    let ids: Vec<Uuid> = batch.sends.iter().map(|send| send.0).collect();
    let closes_at = wire::nanoseconds(batch.closes_at);
    let grace = i64::try_from(grace.as_millis()).unwrap_or(i64::MAX);
    let form = form_of(&batch);
    let mut kept: Vec<Uuid> = Vec::new();
    for some in ids.chunks(CLOSED_AT_ONCE) {
        let values: [&(dyn ToSql + Sync); 9] =
            [&incarnation, &loaded, &id, &tenant, &kind, &some, &closes_at, &grace, &form];
        match until_known(&shared.large, sql::CLOSE_BATCH, &values).await {
            Ok((rows, _)) => kept = rows.first().map(|row| row.get(0)).unwrap_or(kept),
            Err(trouble) if trouble.code().is_some_and(|code| code.code() == "EGFEN") => {
                return Err(why_not(shared, by, loaded).await);
            }
            Err(trouble) => return Err(trouble.on_write()),
        }
        let mut claimed = locked(&shared.claimed);
        for id in some {
            claimed.remove(id);
        }
    }
    if !kept.is_empty() {
        locked(&shared.batches).insert(batch.id);
    }
    Ok(kept.into_iter().map(SendId).collect())
}

/// How the session stands that nothing was done for.
async fn why_not(shared: &Shared, by: &Session, loaded: i64) -> StoreError {
    match shared.standing(shared.slow(), by).await {
        Ok(standing) => {
            if let Some(newer) = standing.is_behind(loaded) {
                shared.tell_suspensions(newer);
            }
            standing.error(by)
        }
        Err(trouble) => trouble.on_write(),
    }
}

pub async fn put(shared: &Shared, by: &Session, batch: Arc<Batch>) -> Result<(), StoreError> {
    shared.open()?;
    let (id, incarnation) = (batch.id.to_bytes().to_vec(), by.incarnation() as i64);
    let (has_ended, is_done) = (batch.ended.is_some(), batch.state == BatchState::Done);
    let form = form_of(&batch);
    let failed = |trouble: Trouble| trouble.on_write();
    let link = shared.slow();
    let values: [&(dyn ToSql + Sync); 5] = [&id, &incarnation, &form, &has_ended, &is_done];
    let (rows, _) = until_known(link, sql::PUT_BATCH, &values).await.map_err(failed)?;
    if rows.is_empty() {
        let rows = link.query(sql::BATCH_STANDS, &[&id, &incarnation]).await.map_err(failed)?;
        match rows.first().map(|row| (row.get::<_, bool>(0), row.get::<_, bool>(1))) {
            Some((true, true)) if is_done => {}
            Some((true, _)) | None => return Err(StoreError::NoSuchSend),
            Some((false, _)) => {
                locked(&shared.batches).remove(&batch.id);
                return Err(StoreError::Fenced(by.to_string()));
            }
        }
    }
    if is_done {
        locked(&shared.batches).remove(&batch.id);
    }
    Ok(())
}

pub async fn may_carry(shared: &Shared, by: &Session, id: BatchId) -> Result<(), StoreError> {
    shared.open()?;
    let (incarnation, loaded, id) = (by.incarnation() as i64, *shared.loaded.borrow(), id.to_bytes().to_vec());
    let row = shared.slow().one(sql::MAY_CARRY, &[&incarnation, &loaded, &id]).await;
    let row = row.map_err(|trouble| trouble.on_write())?;
    if row.get::<_, i64>(0) == 0 {
        return Err(why_not(shared, by, loaded).await);
    }
    if !row.get::<_, bool>(1) {
        return Err(StoreError::Fenced(by.to_string()));
    }
    // An answer that took longer than the lease says nothing any more.
    if shared.lease_holds(by) {
        Ok(())
    } else {
        Err(StoreError::CannotWrite("this node's lease is over: it carries nothing meanwhile".into()))
    }
}

pub async fn hand(shared: &Shared, by: &Session, id: BatchId, to: &Neighbour) -> Result<bool, StoreError> {
    shared.open()?;
    let (incarnation, other, bytes) = (by.incarnation() as i64, to.life as i64, id.to_bytes().to_vec());
    // An answer that is lost is found out before the next try: it is another's then.
    let rows = shared.slow().query(sql::HAND_BATCH, &[&incarnation, &other, &bytes]).await;
    let is_handed = !rows.map_err(|trouble| trouble.on_write())?.is_empty();
    if is_handed {
        locked(&shared.batches).remove(&id);
    }
    Ok(is_handed)
}

pub async fn take_left(shared: &Shared, by: &Session, kinds: Vec<Kind>) -> Result<Left, StoreError> {
    shared.open()?;
    let failed = |trouble: Trouble| trouble.on_write();
    let (incarnation, kinds) = (by.incarnation() as i64, kinds_of(&kinds));
    let link = shared.slow();
    link.query(sql::FORGET_GATHERING_OF_THE_DEAD, &[]).await.map_err(failed)?;
    let rows = match link.query(sql::TAKE_EVENTS, &[&incarnation, &kinds, &TAKEN_AT_ONCE]).await {
        Ok(rows) => rows,
        Err(trouble) => {
            if matches!(trouble, Trouble::Lost(_)) {
                shared.strays.notify_one();
            }
            return Err(failed(trouble));
        }
    };
    let mut left = Left { more: rows.len() as i64 >= TAKEN_AT_ONCE, ..Left::default() };
    left.events = readable(shared, by, &rows, None).await?;
    let long_ago = SignedDuration::try_from(BATCH_GIVE_UP_MAX).unwrap_or(SignedDuration::MAX);
    let long_ago = clock::wall().checked_sub(long_ago).map_or(0, wire::nanoseconds);
    let asked: [&(dyn ToSql + Sync); 4] = [&incarnation, &kinds, &long_ago, &BATCHES_AT_ONCE];
    // Whatever becomes of this answer: what is this session's by now is asked for next.
    link.query(sql::ADOPT_BATCHES, &asked).await.map_err(failed)?;
    let rows = link.query(sql::NOT_TAKEN, &[&incarnation, &BATCHES_AT_ONCE]).await.map_err(failed)?;
    let mut taken = Vec::with_capacity(rows.len());
    for row in &rows {
        let (id, sends): (Vec<u8>, Vec<Uuid>) = (row.get(0), row.get(2));
        let known = id.as_slice().try_into().map(BatchId::from_bytes);
        let is_known = known.is_ok_and(|id| locked(&shared.batches).contains(&id));
        if !is_known {
            let rows = shared.large.query(sql::MEMBERS_OF_BATCH, &[&id, &sends]).await.map_err(failed)?;
            let batch = read(row.get(1), sends);
            let members = readable(shared, by, &rows, batch.as_ref().ok().map(Batch::named)).await?;
            match batch {
                Ok(batch) => {
                    locked(&shared.batches).insert(batch.id);
                    left.batches.push((batch, members));
                }
                Err(error) => {
                    tracing::error!(%error, sends = members.len(), "what was tried of a batch is not known: its sends end");
                    for member in members {
                        end_doubted(shared, by, member).await?;
                    }
                }
            }
        }
        taken.push(id);
    }
    if !taken.is_empty() {
        left.more |= taken.len() as i64 >= BATCHES_AT_ONCE;
        // One that is not marked comes again, and is known by then.
        let _ = link.query(sql::TAKEN, &[&incarnation, &taken]).await;
    }
    Ok(left)
}

/// What cannot be read ends, as where it is claimed; `batch`: what all of these are in.
async fn readable(
    shared: &Shared,
    by: &Session,
    rows: &[Row],
    batch: Option<InBatch>,
) -> Result<Vec<Pending>, StoreError> {
    let mut events = Vec::with_capacity(rows.len());
    let mut unreadable = Vec::new();
    for row in rows {
        match forms::pending(row) {
            Ok(pending) if pending.gathers.is_some() => {
                locked(&shared.claimed).insert(pending.id.0);
                events.push(pending);
            }
            _ => unreadable.push((row.get::<_, Uuid>(0), row.get::<_, i64>(2), row.get::<_, Option<i64>>(3))),
        }
    }
    for (id, created_at, released_at) in unreadable {
        let why = view::unreadable(batch.map_or(Processed::No, |batch| batch.taken));
        let ended = forms::end_of(id, created_at, released_at, None, why, clock::wall());
        end(shared, by, Finished { batch, ..ended }).await?;
    }
    Ok(events)
}

async fn end_doubted(shared: &Shared, by: &Session, member: Pending) -> Result<(), StoreError> {
    let (created_at, released_at) = (wire::nanoseconds(member.created_at), wire::nanoseconds(member.released_at));
    let why = view::doubted();
    end(shared, by, forms::end_of(member.id.0, created_at, Some(released_at), None, why, clock::wall())).await
}

async fn end(shared: &Shared, by: &Session, finished: Finished) -> Result<(), StoreError> {
    match shared.finish(by, finished).await {
        Ok(_) | Err(StoreError::NoSuchSend) => Ok(()),
        Err(error) => Err(error),
    }
}

pub async fn find(shared: &Shared, reach: Reach, id: BatchId) -> Result<Option<Batch>, StoreError> {
    let id = id.to_bytes().to_vec();
    let rows = shared.look.query(sql::BATCH, &[&id]).await.map_err(super::read::failed)?;
    let batch = rows.first().map(|row| read(row.get(0), row.get(1))).transpose()?;
    Ok(batch.filter(|batch| reach.takes_in(&batch.tenant)))
}

pub async fn gathering(shared: &Shared, reach: Reach, id: BatchId) -> Result<Option<(Batch, u64)>, StoreError> {
    let asked = id.to_bytes().to_vec();
    let rows = shared.look.query(sql::GATHERING, &[&asked]).await.map_err(super::read::failed)?;
    let Some(row) = rows.first() else { return Ok(None) };
    let tenant = TenantId::new(row.get::<_, &str>(0));
    let kind = u8::try_from(row.get::<_, i16>(1)).ok().and_then(|kind| wire::kind_of(kind).ok());
    let place = kind.and_then(|kind| Place::read(kind, row.get(2)));
    let Some(place) = place.filter(|_| reach.takes_in(&tenant)) else { return Ok(None) };
    let (sends, bytes): (i64, i64) = (row.get(5), row.get(6));
    let batch = Batch {
        id,
        tenant,
        place,
        state: BatchState::Gathering,
        opened_at: wire::timestamp(row.get(3)),
        closes_at: wire::timestamp(row.get(4)),
        sends: Vec::new(),
        bytes: bytes.unsigned_abs(),
        tried: 0,
        placed: None,
        taken: Processed::No,
        attempts: Vec::new(),
        ended: None,
        left_out: Vec::new(),
    };
    Ok(Some((batch, sends.unsigned_abs())))
}

pub async fn open(shared: &Shared) -> Result<Vec<Batch>, StoreError> {
    let Some(session) = shared.session() else { return Ok(Vec::new()) };
    let rows = shared.look.query(sql::BATCHES_OF, &[&(session.incarnation() as i64)]).await;
    let rows = rows.map_err(super::read::failed)?;
    rows.iter().map(|row| read(row.get(0), row.get(1))).collect()
}

pub async fn specs(shared: &Shared, sends: Vec<SendId>) -> Result<Vec<Option<Arc<SendSpec>>>, StoreError> {
    let ids: Vec<Uuid> = sends.iter().map(|id| id.0).collect();
    // An outage is one of writing: it passes.
    let rows = shared.slow().query(sql::SPECS_ALIVE, &[&ids]).await.map_err(|trouble| trouble.on_write())?;
    let mut specs: HashMap<Uuid, Arc<SendSpec>> = HashMap::with_capacity(rows.len());
    for row in &rows {
        match forms::spec_of(row, &shared.keys) {
            Ok(spec) => drop(specs.insert(row.get(0), Arc::new(spec))),
            Err(error) => tracing::error!(%error, "an event cannot be read"),
        }
    }
    Ok(ids.iter().map(|id| specs.remove(id)).collect())
}

/// Those that are done and closed before this.
pub async fn drop_before(shared: &Shared, at: i64) -> Result<(), StoreError> {
    loop {
        let asked: [&(dyn ToSql + Sync); 2] = [&at, &DROPPED_AT_ONCE];
        let dropped = shared.admin.query(sql::FORGET_BATCHES, &asked).await.map_err(|trouble| trouble.on_write())?;
        if (dropped.len() as i64) < DROPPED_AT_ONCE {
            return Ok(());
        }
    }
}
