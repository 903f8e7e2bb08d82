//! What waits: calls with keys and executions, their ends, claims, and the sweeps.
//!
//! None of this is on the hot connection: a key or an execution may have to be waited for.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::oneshot;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::Shared;
use super::counts::Tally;
use super::forms::{self, Columns, end_of, short};
use super::hot::{Answer, Manner, count_accepted, give, is_day_missing, one_known, place, started, until_known};
use super::link::{Link, Trouble};
use super::{schema, sql};
use crate::limits::IDEMPOTENCY_KEPT;
use crate::outcome::{Code, Ended, Failure, Processed};
use crate::policy::{Asker, Suspensions};
use crate::record::{ExecutionState, FinishedBy, waited};
use crate::send::{ExecutionId, SendId, TenantId};
use crate::source::Neighbour;
use crate::store::wire::{self, SendForm};
use crate::store::{
    Accept, Accepted, Claimed, Ending, ExecutionAnswer, ExecutionEnd, IdempotencyKey, Pending, Released, Session,
    StoreEnd, StoreError, SweepPlace, Swept, Want, view,
};

/// Rows that a sweep looks at in one go.
const LOOKED_AT: i64 = 1_000;
/// Most of one claim, each with up to 40 KiB of a request's URL and headers: more come with the next.
const CLAIMED_AT_ONCE: usize = 512;
/// Most of one statement's ends.
const ENDS_AT_ONCE: usize = 512;
/// How often a call that finds newer suspensions than are loaded is made again, every [`super::POLL`].
const STALE_TRIES: u32 = 8;

/// A refusal that undid its transaction.
enum Refused {
    Fenced,
    Answer(Accepted),
}

fn refused(trouble: &Trouble) -> Option<Refused> {
    match trouble.code()?.code() {
        "EGFEN" => Some(Refused::Fenced),
        "EGFUL" => Some(Refused::Answer(Accepted::ExecutionFull)),
        "EGEND" => {
            let state = trouble.detail().and_then(|detail| detail.parse().ok()).unwrap_or_default();
            Some(Refused::Answer(Accepted::Ended(ending_of(state).state())))
        }
        _ => None,
    }
}

fn ending_of(state: i16) -> Ending {
    match state {
        1 => Ending::Finish(FinishedBy::Call),
        2 => Ending::Finish(FinishedBy::HoldLimit),
        _ => Ending::Discard,
    }
}

fn number_of(ending: Ending) -> i16 {
    match ending {
        Ending::Finish(FinishedBy::Call) => 1,
        Ending::Finish(FinishedBy::HoldLimit) => 2,
        Ending::Discard => 3,
    }
}

/// How an execution's row says it stands.
pub fn state_of(number: i16) -> (ExecutionState, Option<FinishedBy>) {
    if number == 0 {
        return (ExecutionState::Open, None);
    }
    let ending = ending_of(number);
    (ending.state(), ending.finished_by())
}

/// A call with a key or with executions; its answer goes where it is waited for, or not any more.
pub async fn accept_call(
    shared: Arc<Shared>,
    by: Session,
    call: Accept,
    columns: Columns,
    is_large: bool,
    answer: Answer<Accepted>,
) {
    let said = {
        let _counting = shared.counting.read().await;
        let said = call_accepted(&shared, &by, &call, &columns, is_large).await;
        if matches!(said, Ok((_, true))) {
            count_accepted(&shared, &by, &call.sends, &columns, call.hold.is_some());
        }
        said
    };
    let manner = Manner { held: call.hold.is_some(), keyed: call.idempotency.is_some() };
    give(&shared, by, call.sends, answer, said.map(|(accepted, _)| accepted), manner);
}

/// With whether it was accepted now.
async fn call_accepted(
    shared: &Shared,
    by: &Session,
    call: &Accept,
    columns: &Columns,
    is_large: bool,
) -> Result<(Accepted, bool), StoreError> {
    let incarnation = by.incarnation() as i64;
    let key = call.idempotency.as_ref();
    let (path, name) = (key.map(|key| key.path.as_str()), key.map(|key| key.key.as_str()));
    let fingerprint = key.map(|key| shared.keys.fingerprint(&key.fingerprint));
    let fingerprint = fingerprint.as_ref().map(|bytes| &bytes[..]);
    let now = call.sends.first().map_or(0, |send| wire::nanoseconds(send.created_at));
    let kept = i64::try_from(IDEMPOTENCY_KEPT.as_nanos()).unwrap_or(i64::MAX);
    let hold = call.hold.as_ref().map(ExecutionId::as_str);
    let limit = i32::try_from(call.sends_per_execution).unwrap_or(i32::MAX);
    let bodies = columns.bodies();
    let mut days_made = false;
    let mut tries = 0;
    loop {
        let loaded = *shared.loaded.borrow();
        let tenant = call.tenant.as_str();
        let values: [&(dyn ToSql + Sync); 25] = [
            &incarnation,
            &loaded,
            &tenant,
            &path,
            &name,
            &fingerprint,
            &now,
            &kept,
            &hold,
            &limit,
            &columns.ids,
            &columns.workflows,
            &columns.executions,
            &columns.steps,
            &columns.hosts,
            &columns.forms,
            &bodies,
            &columns.sealed,
            &columns.slots,
            &columns.courses,
            &columns.destinations,
            &columns.created,
            &columns.expires,
            &columns.gathers,
            &columns.weights,
        ];
        let link = if is_large { &shared.large } else { shared.slow() };
        let made = one_known(link, sql::ACCEPT_CALL, &values).await;
        let trouble = match made {
            Ok((row, _)) => return Ok(answered(&row, by, call)),
            Err(trouble) => trouble,
        };
        if is_day_missing(&trouble) && !std::mem::replace(&mut days_made, true) {
            let days = columns.ids.iter().map(|id| schema::day_of(*id));
            let made = schema::make_days(&shared.admin, &shared.address.schema, days).await;
            made.map_err(|trouble| trouble.on_write())?;
            continue;
        }
        match refused(&trouble) {
            Some(Refused::Answer(answer)) => return Ok((answer, false)),
            Some(Refused::Fenced) => {
                let standing = shared.standing(shared.slow(), by).await.map_err(|trouble| trouble.on_write())?;
                let Some(newer) = standing.is_behind(loaded).filter(|_| tries < STALE_TRIES) else {
                    return Err(standing.error(by));
                };
                tries += 1;
                shared.tell_suspensions(newer);
                tokio::time::sleep(super::POLL).await;
            }
            None => return Err(trouble.on_write()),
        }
    }
}

fn answered(row: &Row, by: &Session, call: &Accept) -> (Accepted, bool) {
    match row.get::<_, i32>(0) {
        1 => {
            let ids: Vec<Uuid> = row.get(2);
            (Accepted::Replayed(ids.into_iter().map(SendId).collect()), false)
        }
        2 => (Accepted::Mismatch, false),
        _ => {
            let places: Vec<Option<i32>> = row.get(1);
            let indexes = places.into_iter().map(|place| place.and_then(|place| u32::try_from(place).ok())).collect();
            let started = if call.hold.is_some() { Vec::new() } else { started(by, &call.sends) };
            (Accepted::New { indexes, started }, true)
        }
    }
}

pub async fn replay(shared: &Shared, key: IdempotencyKey, now: Timestamp) -> Result<Option<Accepted>, StoreError> {
    let rows = shared.look.query(sql::REPLAY, &[&key.tenant.as_str(), &key.path, &key.key]).await;
    // Who cannot be told of its first call is not accepted either: an outage is one of writing.
    let rows = rows.map_err(|trouble| trouble.on_write())?;
    let Some(row) = rows.first() else { return Ok(None) };
    let (fingerprint, at): (&[u8], i64) = (row.get(0), row.get(1));
    if waited(wire::timestamp(at), now) >= IDEMPOTENCY_KEPT {
        return Ok(None);
    }
    if fingerprint != shared.keys.fingerprint(&key.fingerprint) {
        return Ok(Some(Accepted::Mismatch));
    }
    let ids: Vec<Uuid> = row.get(2);
    Ok(Some(Accepted::Replayed(ids.into_iter().map(SendId).collect())))
}

// Ends of executions.

pub async fn is_known(shared: &Shared, tenant: &TenantId, execution: &ExecutionId) -> Result<bool, StoreError> {
    let rows = shared.look.query(sql::EXECUTION, &[&tenant.as_str(), &execution.as_str()]).await;
    Ok(!rows.map_err(|trouble| trouble.on_write())?.is_empty())
}

pub async fn end_execution(
    shared: &Shared,
    by: &Session,
    tenant: TenantId,
    execution: ExecutionId,
    ending: Ending,
    at: Timestamp,
) -> Result<ExecutionAnswer, StoreError> {
    // All of them end alike, and were never released.
    let why = view::discarded();
    let form = wire::ended(&end_of(Uuid::nil(), wire::nanoseconds(at), None, None, why.clone(), at)).0;
    let outcome = i16::from(wire::outcome_number(Ended::because(why).outcome));
    let code = i16::from(wire::code_number(Code::Discarded));
    let (incarnation, state, node) = (by.incarnation() as i64, number_of(ending), by.node().to_string());
    let (now, of, named) = (wire::nanoseconds(at), tenant.as_str(), execution.as_str());
    let values: [&(dyn ToSql + Sync); 9] = [&incarnation, &of, &named, &state, &now, &outcome, &code, &node, &form];
    let counting = shared.counting.read().await;
    let made = one_known(shared.slow(), sql::END_EXECUTION, &values).await;
    let (row, lost) = match made {
        Ok(made) => made,
        Err(trouble) if matches!(refused(&trouble), Some(Refused::Fenced)) => {
            return Err(shared.standing(shared.slow(), by).await.map_err(|trouble| trouble.on_write())?.error(by));
        }
        Err(trouble) => return Err(trouble.on_write()),
    };
    let (found, first, count): (i16, bool, i64) = (row.get(0), row.get(1), row.get(2));
    if !first {
        if lost {
            // It may have been this very call that ended it.
            shared.uncounted.notify_one();
        }
        let end = if ending_of(found).state() == ending.state() {
            ExecutionEnd::Done { count: count.unsigned_abs(), first: false }
        } else {
            ExecutionEnd::Conflict(ending_of(found).state())
        };
        return Ok(ExecutionAnswer { end, ended: Vec::new() });
    }
    let change = match ending {
        Ending::Discard => Tally::held(-count),
        Ending::Finish(_) => Tally::released(count, row.get(5)),
    };
    shared.count(by, &tenant, change);
    drop(counting);
    if ending != Ending::Discard && count > 0 {
        look_at_fronts(shared, std::slice::from_ref(&tenant)).await;
    }
    let ids: Vec<Uuid> = row.get::<_, Option<_>>(3).unwrap_or_default();
    let seqs: Vec<i64> = row.get::<_, Option<_>>(4).unwrap_or_default();
    let ended = ids.into_iter().zip(seqs).map(|(id, seq)| StoreEnd {
        id: SendId(id),
        tenant: tenant.clone(),
        code: Code::Discarded,
        place: place(seq),
    });
    Ok(ExecutionAnswer { end: ExecutionEnd::Done { count: count.unsigned_abs(), first: true }, ended: ended.collect() })
}

pub async fn release_overdue(
    shared: &Shared,
    by: &Session,
    held_for: SignedDuration,
    now: Timestamp,
    limit: usize,
) -> Result<Released, StoreError> {
    let opened_before = now.checked_sub(held_for).unwrap_or(Timestamp::MIN);
    let (before, some) = (wire::nanoseconds(opened_before), limit as i64 + 1);
    let rows = shared.slow().query(sql::OVERDUE, &[&before, &some]).await.map_err(|trouble| trouble.on_write())?;
    let mut released = Released { executions: Vec::new(), more: rows.len() > limit };
    if rows.is_empty() {
        shared.must_be_in_force(by).await?;
    }
    for row in rows.iter().take(limit) {
        let (tenant, execution) = (TenantId::new(row.get::<_, &str>(0)), ExecutionId::new(row.get::<_, &str>(1)));
        let ending = Ending::Finish(FinishedBy::HoldLimit);
        let answer = end_execution(shared, by, tenant.clone(), execution.clone(), ending, now).await?;
        if let ExecutionEnd::Done { count, first: true } = answer.end {
            released.executions.push((tenant, execution, count));
        }
    }
    Ok(released)
}

// Claims.

pub async fn claim(shared: &Shared, by: &Session, wants: Vec<Want>, limit: usize) -> Result<Claimed, StoreError> {
    let limit = limit.min(CLAIMED_AT_ONCE);
    let incarnation = by.incarnation() as i64;
    let counting = shared.counting.read().await;
    // An answer that is lost leaves its sends claimed by this session, and in nobody's window: they are given back.
    let rows = match claim_rows(shared.slow(), incarnation, &wants, limit as i64).await {
        Ok(rows) => rows,
        Err(trouble) => {
            if matches!(trouble, Trouble::Lost(_)) {
                shared.strays.notify_one();
                shared.uncounted.notify_one();
            }
            return Err(trouble.on_write());
        }
    };
    if rows.is_empty() {
        shared.must_be_in_force(by).await?;
    }
    let mut claimed = Claimed::default();
    let wanted: usize = wants.iter().map(|want| want.room).sum();
    claimed.more = rows.len() == limit && wanted > limit;
    let mut unreadable = Vec::new();
    let mut of: HashMap<TenantId, i64> = HashMap::new();
    for row in &rows {
        *of.entry(TenantId::new(row.get::<_, &str>(1))).or_default() += 1;
        match forms::claimed(row, &shared.keys) {
            Ok(pending) => {
                super::locked(&shared.claimed).insert(pending.id.0);
                claimed.sends.push(pending);
            }
            Err((id, tenant)) => unreadable.push((id, tenant, row.get::<_, i64>(2), row.get::<_, i64>(3))),
        }
    }
    for (tenant, count) in &of {
        shared.count(by, tenant, Tally::unclaimed(-count));
    }
    drop(counting);
    look_at_fronts(shared, &of.keys().cloned().collect::<Vec<_>>()).await;
    for (id, tenant, created_at, released_at) in unreadable {
        let now = crate::clock::wall();
        let why = view::unreadable(Processed::No);
        let code = why.code;
        let end = end_of(id.0, created_at, Some(released_at), None, why, now);
        let place = shared.finish(by, end).await?;
        claimed.ended.push(StoreEnd { id, tenant, code, place });
    }
    Ok(claimed)
}

async fn claim_rows(link: &Link, incarnation: i64, wants: &[Want], limit: i64) -> Result<Vec<Row>, Trouble> {
    let (around, plain): (Vec<&Want>, Vec<&Want>) = wants.iter().partition(|want| !want.full.is_empty());
    let of = |wants: &[&Want]| -> (Vec<String>, Vec<i64>) {
        wants.iter().map(|want| (want.tenant.as_str().to_owned(), want.room as i64)).unzip()
    };
    let mut rows = Vec::new();
    if !plain.is_empty() {
        let (tenants, rooms) = of(&plain);
        rows = link.query(sql::CLAIM, &[&incarnation, &tenants, &rooms, &limit]).await?;
    }
    if around.is_empty() || rows.len() as i64 >= limit {
        return Ok(rows);
    }
    let (tenants, rooms) = of(&around);
    let (mut full_of, mut full) = (Vec::new(), Vec::new());
    for (at, want) in around.iter().enumerate() {
        for destination in &want.full {
            full_of.push(at as i64 + 1);
            full.push(short(Some(destination)));
        }
    }
    // From somewhere among the destinations, so that each has its turn where they are many.
    let from = (Uuid::now_v7().as_u128() as u64).rotate_left(2) as i64;
    let left = limit - rows.len() as i64;
    let values: [&(dyn ToSql + Sync); 7] = [&incarnation, &tenants, &rooms, &full_of, &full, &from, &left];
    rows.extend(link.query(sql::CLAIM_AROUND, &values).await?);
    Ok(rows)
}

pub async fn give_back(shared: &Shared, by: &Session, sends: Vec<SendId>) -> Result<(), StoreError> {
    if sends.is_empty() {
        return Ok(());
    }
    let incarnation = by.incarnation() as i64;
    let mut ids: Vec<Uuid> = sends.iter().map(|id| id.0).collect();
    ids.sort_unstable();
    let counting = shared.counting.read().await;
    let row = shared.uncounted(shared.slow().one(sql::GIVE_BACK, &[&incarnation, &ids]).await);
    let row = row.map_err(|trouble| trouble.on_write())?;
    if row.get::<_, i64>(0) == 0 {
        return shared.must_be_in_force(by).await;
    }
    super::locked(&shared.claimed).retain(|id| ids.binary_search(id).is_err());
    let mut of: HashMap<TenantId, i64> = HashMap::new();
    for tenant in row.get::<_, Option<Vec<String>>>(1).unwrap_or_default() {
        *of.entry(TenantId::new(tenant)).or_default() += 1;
    }
    for (tenant, count) in &of {
        shared.count(by, tenant, Tally::unclaimed(*count));
    }
    drop(counting);
    look_at_fronts(shared, &of.keys().cloned().collect::<Vec<_>>()).await;
    Ok(())
}

/// Which of these are the other's from now on.
pub async fn hand_over(
    shared: &Shared,
    by: &Session,
    sends: Vec<SendId>,
    to: &Neighbour,
) -> Result<Vec<SendId>, StoreError> {
    shared.open()?;
    let (incarnation, other) = (by.incarnation() as i64, to.life as i64);
    let mut ids: Vec<Uuid> = sends.iter().map(|id| id.0).collect();
    ids.sort_unstable();
    let _counting = shared.counting.read().await;
    let link = shared.slow();
    let made = until_known(link, sql::HAND_OVER, &[&incarnation, &other, &ids]).await;
    let (rows, lost) = made.map_err(|trouble| trouble.on_write())?;
    let mut moved: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    for row in &rows {
        if row.get(2) {
            shared.count(by, &TenantId::new(row.get::<_, &str>(1)), Tally::queued(1));
        }
    }
    if lost {
        // The old backend is done by now: what is not this session's any more it has handed over.
        shared.uncounted.notify_one();
        let mine = until_known(link, sql::MINE_AMONG, &[&incarnation, &ids]).await;
        let mine = mine.map_err(|trouble| trouble.on_write())?.0;
        let mine: HashSet<Uuid> = mine.iter().map(|row| row.get(0)).collect();
        moved = ids.into_iter().filter(|id| !mine.contains(id)).collect();
    }
    let moved: HashSet<Uuid> = moved.into_iter().collect();
    super::locked(&shared.claimed).retain(|id| !moved.contains(id));
    super::locked(&shared.begun).retain(|id| !moved.contains(id));
    Ok(sends.into_iter().filter(|id| moved.contains(&id.0)).collect())
}

pub async fn take_handed(shared: &Shared, by: &Session) -> Result<Vec<Pending>, StoreError> {
    shared.open()?;
    let rows = match shared.slow().query(sql::TAKE_HANDED, &[&(by.incarnation() as i64)]).await {
        Ok(rows) => rows,
        Err(trouble) => {
            if matches!(trouble, Trouble::Lost(_)) {
                shared.strays.notify_one();
            }
            return Err(trouble.on_write());
        }
    };
    let mut taken = Vec::with_capacity(rows.len());
    for row in &rows {
        match forms::pending(row) {
            Ok(pending) => {
                super::locked(&shared.claimed).insert(pending.id.0);
                taken.push(pending);
            }
            // As a stray it waits again; whoever claims it ends it.
            Err(_) => shared.strays.notify_one(),
        }
    }
    Ok(taken)
}

/// When the front of each of these was released. Where it cannot be asked, the next poll does.
pub async fn look_at_fronts(shared: &Shared, tenants: &[TenantId]) {
    if tenants.is_empty() {
        return;
    }
    let names: Vec<&str> = tenants.iter().map(TenantId::as_str).collect();
    shared.counts.changing_fronts();
    if let Ok(rows) = shared.slow().query(sql::OLDEST, &[&names]).await {
        for row in rows {
            shared.counts.set_oldest(&TenantId::new(row.get::<_, &str>(0)), row.get(1));
        }
    }
}

// Sweeps.

/// One that waits and is to end.
struct Doomed {
    id: Uuid,
    tenant: String,
    created_at: i64,
    released_at: Option<i64>,
    why: Failure,
}

pub async fn expire(shared: &Shared, by: &Session, now: Timestamp, limit: usize) -> Result<Swept, StoreError> {
    let (at, most) = (wire::nanoseconds(now), limit as i64);
    let rows = shared.slow().query(sql::EXPIRED, &[&at, &most]).await.map_err(|trouble| trouble.on_write())?;
    if rows.is_empty() {
        shared.must_be_in_force(by).await?;
        return Ok(Swept::default());
    }
    let doomed = rows.iter().map(|row| Doomed {
        id: row.get(0),
        tenant: row.get(1),
        released_at: row.get(2),
        created_at: row.get::<_, Option<i64>>(3).unwrap_or_default(),
        why: view::expired(),
    });
    let ended = end_waiting(shared, by, doomed.collect(), now).await?;
    Ok(Swept { ended, next: (rows.len() >= limit).then_some(SweepPlace(0)) })
}

pub async fn end_suspended(
    shared: &Shared,
    by: &Session,
    suspensions: &Suspensions,
    from: Option<SweepPlace>,
    now: Timestamp,
    limit: usize,
) -> Result<Swept, StoreError> {
    let mut after = Uuid::from_u128(from.map_or(0, |place| place.0));
    let most = LOOKED_AT;
    let rows = shared.slow().query(sql::WAITING, &[&after, &most]).await.map_err(|trouble| trouble.on_write())?;
    if rows.is_empty() {
        shared.must_be_in_force(by).await?;
        return Ok(Swept::default());
    }
    let mut doomed = Vec::new();
    let mut came_to_end = rows.len() < LOOKED_AT as usize;
    for row in &rows {
        if doomed.len() == limit {
            came_to_end = false;
            break;
        }
        let (id, tenant): (Uuid, String) = (row.get(0), row.get(1));
        after = id;
        let destination =
            row.get::<_, Option<&[u8]>>(5).and_then(|form| wire::decode::<SendForm<'_>>(form).ok()?.destination());
        let named = TenantId::new(tenant.as_str());
        let asker = Asker { tenant: &named, workflow: row.get(4) };
        if let Some(why) = view::suspended(suspensions, asker, destination.as_ref().map(|to| &to.host)) {
            doomed.push(Doomed { id, tenant, created_at: row.get(2), released_at: row.get(3), why });
        }
    }
    let ended = end_waiting(shared, by, doomed, now).await?;
    Ok(Swept { ended, next: (!came_to_end).then_some(SweepPlace(after.as_u128())) })
}

/// Ends those that still wait and are nobody's.
async fn end_waiting(
    shared: &Shared,
    by: &Session,
    mut doomed: Vec<Doomed>,
    now: Timestamp,
) -> Result<Vec<StoreEnd>, StoreError> {
    doomed.sort_unstable_by_key(|one| one.id);
    let (incarnation, at, node) = (by.incarnation() as i64, wire::nanoseconds(now), by.node().to_string());
    let mut ended = Vec::new();
    let mut tenants = BTreeSet::new();
    for some in doomed.chunks(ENDS_AT_ONCE) {
        let ids: Vec<Uuid> = some.iter().map(|one| one.id).collect();
        let released: Vec<Option<i64>> = some.iter().map(|one| one.released_at).collect();
        let names: Vec<&str> = some.iter().map(|one| one.tenant.as_str()).collect();
        let ends = some
            .iter()
            .map(|one| wire::ended(&end_of(one.id, one.created_at, one.released_at, None, one.why.clone(), now)).0);
        let forms: Vec<Vec<u8>> = ends.collect();
        // A sweep ends all of its sends for one reason.
        let code = some[0].why.code;
        let outcome = i16::from(wire::outcome_number(Ended::because(some[0].why.clone()).outcome));
        let number = i16::from(wire::code_number(code));
        let link: &Link = shared.slow();
        let _counting = shared.counting.read().await;
        let values: [&(dyn ToSql + Sync); 9] =
            [&incarnation, &ids, &released, &names, &forms, &outcome, &number, &at, &node];
        let (rows, lost) = until_known(link, sql::END_WAITING, &values).await.map_err(|trouble| trouble.on_write())?;
        if lost {
            shared.uncounted.notify_one();
            let by_now = until_known(link, sql::ENDED_BY, &[&ids, &node, &at]).await;
            let known: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
            for row in by_now.map_err(|trouble| trouble.on_write())?.0 {
                let (id, seq, tenant): (Uuid, i64, &str) = (row.get(0), row.get(1), row.get(2));
                if !known.contains(&id) {
                    ended.push(StoreEnd { id: SendId(id), tenant: TenantId::new(tenant), code, place: place(seq) });
                }
            }
        }
        for row in rows {
            let (id, seq, tenant, held): (Uuid, i64, &str, bool) = (row.get(0), row.get(1), row.get(2), row.get(3));
            let tenant = TenantId::new(tenant);
            let change = match (held, row.get(4)) {
                (true, _) => Tally::held(-1),
                (false, true) => Tally::queued(-1),
                (false, false) => Tally::waiting(-1),
            };
            shared.count(by, &tenant, change);
            tenants.insert(tenant.clone());
            ended.push(StoreEnd { id: SendId(id), tenant, code, place: place(seq) });
        }
    }
    if ended.is_empty() {
        shared.must_be_in_force(by).await?;
    }
    look_at_fronts(shared, &tenants.into_iter().collect::<Vec<_>>()).await;
    Ok(ended)
}

/// What an answer that is waited for too long is told.
pub async fn within<T>(answer: oneshot::Receiver<Result<T, StoreError>>, most: Duration) -> Result<T, StoreError> {
    tokio::select! {
        answer = answer => answer.unwrap_or_else(|_| Err(super::closed())),
        () = tokio::time::sleep(most) => Err(StoreError::Unanswered(format!(
            "the database has not answered within {} ms", most.as_millis()
        ).into())),
    }
}
