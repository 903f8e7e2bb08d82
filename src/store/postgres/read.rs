//! Reading: records, lists, executions, the tail. Each is short, so that it holds no vacuum back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::forms::{self, Alive, Parts};
use super::hot::place;
use super::link::{Link, Trouble};
use super::wait::state_of;
use super::{Shared, schema, sql};
use crate::limits::{IDEMPOTENCY_KEPT, LIST_LOOKED_AT_MAX};
use crate::outcome::Outcome;
use crate::record::{Execution, Record, State};
use crate::send::{ExecutionId, SendId, SendSpec, TenantId};
use crate::store::{Filter, HostFilter, Page, Reach, StatusFilter, StoreError, TailItem, TailPlace, view, wire};

/// How long the tail waits for transactions that are being committed, before it answers without their ends.
// Tests share a cluster: what another has open, some for as long as it lasts, hides the newest of all.
const SETTLED_WITHIN: Duration = Duration::from_millis(if cfg!(test) { 60_000 } else { 100 });
const SETTLED_AGAIN: Duration = Duration::from_millis(2);
/// Days of the first stretch that a list walks; each next one is twice as long.
const FIRST_STRETCH: i64 = 1;
const LONGEST_STRETCH: i64 = 16;

pub fn failed(trouble: Trouble) -> StoreError {
    trouble.on_read()
}

/// What deliveries need of these; one that is not there is left out.
pub async fn specs(
    shared: &Shared,
    ids: &[crate::send::SendId],
) -> Result<HashMap<Uuid, Result<Arc<SendSpec>, StoreError>>, StoreError> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    // An outage is one of writing: what is to be begun waits.
    let rows = shared.look.query(sql::SPECS, &[&ids]).await.map_err(|trouble| trouble.on_write())?;
    Ok(rows.iter().map(|row| (row.get(0), forms::spec_of(row, &shared.keys).map(Arc::new))).collect())
}

/// Those of these that there are, in their order.
pub async fn records(link: &Link, ids: &[Uuid], bodies: bool) -> Result<Vec<Record>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let link = link.open().await.map_err(failed)?;
    let asked: [&(dyn ToSql + Sync); 1] = [&ids];
    // One behind the other: what is not in `live` any more by the second look is in `done` at the third.
    let (sends, lives, dones) = tokio::try_join!(
        link.query(sql::SENDS, &asked),
        link.query(sql::LIVES, &asked),
        link.query(sql::DONES, &asked),
    )
    .map_err(failed)?;
    let (sent_bodies, done_bodies) = if bodies {
        tokio::try_join!(link.query(sql::SEND_BODIES, &asked), link.query(sql::DONE_BODIES, &asked)).map_err(failed)?
    } else {
        (Vec::new(), Vec::new())
    };
    let by_id = |rows: &[tokio_postgres::Row]| -> HashMap<Uuid, usize> {
        rows.iter().enumerate().map(|(at, row)| (row.get(0), at)).collect()
    };
    let (send_at, live_at, done_at) = (by_id(&sends), by_id(&lives), by_id(&dones));
    let body_of = |rows: &[tokio_postgres::Row]| -> HashMap<Uuid, Bytes> {
        rows.iter().map(|row| (row.get(0), Bytes::copy_from_slice(row.get(1)))).collect()
    };
    let (mut sent_bodies, mut done_bodies) = (body_of(&sent_bodies), body_of(&done_bodies));
    let mut records = Vec::with_capacity(ids.len());
    for id in ids {
        let Some(send) = send_at.get(id).map(|at| &sends[*at]) else { continue };
        let alive = live_at.get(id).map(|at| &lives[*at]).map(|row| Alive {
            held: row.get(1),
            released_at: row.get(2),
            began_at: row.get(3),
            batch: forms::batch_of(row, 4),
        });
        let done = done_at.get(id).map(|at| &dones[*at]).map(|row| (row.get(1), row.get(2)));
        if alive.is_none() && done.is_none() {
            continue;
        }
        records.push(forms::record(Parts {
            id: *id,
            form: send.get(1),
            place: send.get(2),
            alive,
            done,
            body: sent_bodies.remove(id),
            answer_body: done_bodies.remove(id),
        })?);
    }
    Ok(records)
}

pub async fn done_among(shared: &Shared, ids: Vec<SendId>) -> Result<Vec<SendId>, StoreError> {
    let ids: Vec<Uuid> = ids.into_iter().map(|id| id.0).collect();
    let rows = shared.look.query(sql::DONE_AMONG, &[&ids]).await.map_err(failed)?;
    Ok(rows.iter().map(|row| SendId(row.get(0))).collect())
}

// Lists.

/// The conditions of a filter, with what they are asked with.
struct Sieve {
    text: String,
    values: Vec<Box<dyn ToSql + Sync + Send>>,
    of_done: bool,
}

impl Sieve {
    fn of(filter: &Filter) -> Self {
        let mut sieve = Self { text: String::new(), values: Vec::new(), of_done: false };
        if let Reach::One(tenant) = &filter.reach {
            sieve.and("s.tenant = $", tenant.as_str().to_owned());
        }
        for (column, value) in
            [("s.workflow = $", &filter.workflow), ("s.execution = $", &filter.execution), ("s.step = $", &filter.step)]
        {
            if let Some(value) = value {
                sieve.and(column, value.clone());
            }
        }
        match &filter.host {
            Some(HostFilter::One(host)) => sieve.and("s.host = $", host.clone()),
            Some(HostFilter::Below(parent)) => {
                sieve.and("right(s.host, length($::text)) = $::text", format!(".{parent}"))
            }
            None => {}
        }
        let outcomes: Vec<i16> = filter.outcomes.iter().map(|&one| wire::outcome_number(one).into()).collect();
        let codes: Vec<i16> = filter.codes.iter().map(|&one| wire::code_number(one).into()).collect();
        for (column, values) in [("d.outcome", outcomes), ("d.code", codes)] {
            if !values.is_empty() {
                sieve.and(&format!("{column} = ANY ($)"), values);
                sieve.of_done = true;
            }
        }
        if !filter.statuses.is_empty() {
            let any = filter.statuses.iter().map(|status| match status {
                StatusFilter::One(status) => format!("d.status = {status}"),
                StatusFilter::Class(class) => format!("d.status BETWEEN {class}00 AND {class}99"),
            });
            sieve.text += &format!(" AND ({})", any.collect::<Vec<_>>().join(" OR "));
            sieve.of_done = true;
        }
        let alive = match filter.state {
            Some(State::Held) => "l.held",
            Some(State::Queued) => "NOT l.held AND l.began_at IS NULL",
            Some(State::Sending) => "l.began_at IS NOT NULL",
            Some(State::Done) | None => "",
        };
        if !alive.is_empty() {
            sieve.text += &format!(" AND EXISTS (SELECT FROM live l WHERE l.id = s.id AND {alive})");
        }
        sieve.of_done |= filter.state == Some(State::Done);
        let mut instant = "s.created_at";
        if let Some(ip) = filter.source_ip {
            let at = sieve.values.len() + 1;
            sieve.text += &match filter.public_only {
                true => format!(" AND d.public = ${at}"),
                false => format!(" AND (d.source = ${at} OR d.public = ${at})"),
            };
            sieve.values.push(Box::new(ip.to_string()));
            sieve.of_done = true;
            instant = "d.started_at";
        }
        for (sign, bound) in [(">=", filter.since), ("<", filter.until)] {
            if let Some(bound) = bound {
                sieve.and(&format!("{instant} {sign} $"), wire::nanoseconds(bound));
            }
        }
        sieve
    }

    /// `$` in the condition is the value.
    fn and(&mut self, condition: &str, value: impl ToSql + Sync + Send + 'static) {
        self.values.push(Box::new(value));
        let condition = condition.replace('$', &format!("${}", self.values.len()));
        self.text += &format!(" AND {condition}");
    }

    fn values(&self) -> Vec<&(dyn ToSql + Sync)> {
        self.values.iter().map(|value| value.as_ref() as &(dyn ToSql + Sync)).collect()
    }
}

pub async fn list(shared: &Shared, filter: Filter, cursor: Option<String>, limit: usize) -> Result<Page, StoreError> {
    let by_id = filter.source_ip.is_none();
    let window = (filter.since.filter(|_| by_id), filter.until.filter(|_| by_id));
    let Some(mut stretches) = Stretches::of(shared, window, cursor).await? else { return Ok(Page::default()) };
    let sieve = Sieve::of(&filter);
    let mut page = Page::default();
    let mut looked_at = 0;
    while let Some((from, to)) = stretches.next() {
        let join = if sieve.of_done {
            format!("JOIN done d ON d.id = s.id AND d.id >= '{from}' AND d.id < '{to}'")
        } else {
            String::new()
        };
        let most = limit + 1;
        let text = format!(
            "SELECT s.id FROM send s {join} WHERE s.id >= '{from}' AND s.id < '{to}'{} ORDER BY s.id DESC LIMIT {most}",
            sieve.text,
        );
        let _turn = shared.list_turn(&filter.reach).await;
        let link = shared.list();
        let rows = match link.ask(&text, &sieve.values()).await {
            // What was found by now is a page; the next one begins where this took too long.
            Err(trouble) if trouble.took_too_long() && !page.sends.is_empty() => {
                page.next = Some(stretches.place());
                return Ok(page);
            }
            rows => rows.map_err(failed)?,
        };
        let ids: Vec<Uuid> = rows.iter().map(|row| row.get::<_, Uuid>(0)).collect();
        // What no column knows is asked of the records.
        for record in records(link, &ids, false).await? {
            if !filter.lets_through(&record, host_of(&record).as_deref()) {
                continue;
            }
            if page.sends.len() == limit {
                page.next = page.sends.last().map(|record| record.id.0.as_hyphenated().to_string());
                return Ok(page);
            }
            page.sends.push(record);
        }
        looked_at += ids.len();
        stretches.walked(ids.last().copied().filter(|_| ids.len() == most));
        if looked_at >= LIST_LOOKED_AT_MAX {
            page.next = Some(stretches.place());
            return Ok(page);
        }
    }
    Ok(page)
}

/// Where a list goes, from the newest id back: few days at first, then more at once. Bounds are written out, as planning
/// over a month of partitions would cost more than the page.
pub struct Stretches {
    oldest: i64,
    days: i64,
    from: Uuid,
    to: Uuid,
}

impl Stretches {
    /// Of what was created between two instants, before the cursor's id; `None`: nothing is there.
    pub async fn of(
        shared: &Shared,
        (since, until): (Option<Timestamp>, Option<Timestamp>),
        cursor: Option<String>,
    ) -> Result<Option<Self>, StoreError> {
        let before = match &cursor {
            Some(text) if text.len() == 36 => Some(Uuid::try_parse(text).map_err(|_| StoreError::BadCursor)?),
            Some(_) => return Err(StoreError::BadCursor),
            None => None,
        };
        let days = schema::known_days(shared.list()).await.map_err(failed)?;
        let (Some(first), Some(last)) = (days.first().copied(), days.last().copied()) else { return Ok(None) };
        // A send's day is that of its id, which is a little older or newer than its acceptance.
        let bound = |at: Option<Timestamp>, more: i64| at.map(|at| schema::day_at(at) + more);
        let oldest = bound(since, -1).map_or(first, |day| day.max(first));
        let mut to = schema::first_of(last + 1);
        if let Some(day) = bound(until, 2) {
            to = to.min(schema::first_of(day));
        }
        if let Some(before) = before {
            to = to.min(before);
        }
        Ok(Some(Self { oldest, days: FIRST_STRETCH, from: to, to }))
    }

    /// The next one, unless all were walked.
    pub fn next(&mut self) -> Option<(Uuid, Uuid)> {
        if self.to <= schema::first_of(self.oldest) {
            return None;
        }
        let from_day = (schema::day_of(self.to) - self.days + 1).max(self.oldest);
        let from_day = if schema::first_of(from_day) >= self.to { from_day - 1 } else { from_day };
        self.from = schema::first_of(from_day);
        Some((self.from, self.to))
    }

    /// It was walked down to this id, or to its end.
    pub fn walked(&mut self, to: Option<Uuid>) {
        match to {
            Some(to) => self.to = to,
            None => {
                self.to = self.from;
                self.days = (self.days * 2).min(LONGEST_STRETCH);
            }
        }
    }

    /// A cursor: what is before it is still to come.
    pub fn place(&self) -> String {
        self.to.as_hyphenated().to_string()
    }
}

// Executions.

pub async fn execution(
    shared: &Shared,
    tenant: TenantId,
    execution: ExecutionId,
    cursor: Option<String>,
    limit: usize,
) -> Result<Option<Execution>, StoreError> {
    let from: i32 = match cursor {
        Some(text) => text.parse().ok().filter(|from| *from >= 0).ok_or(StoreError::BadCursor)?,
        None => 0,
    };
    let (of, name) = (tenant.as_str(), execution.as_str());
    let _turn = shared.list_turn(&Reach::One(tenant.clone())).await;
    let list = shared.list();
    let link = list.open().await.map_err(failed)?;
    let rows = link.query(sql::EXECUTION, &[&of, &name]).await.map_err(failed)?;
    let Some(row) = rows.first() else { return Ok(None) };
    let (state, finished_by) = state_of(row.get(0));
    let next: i32 = row.get(1);
    let counts = link.query(sql::SENDS_OF_EXECUTIONS, &[&vec![of], &vec![name]]).await.map_err(failed)?;
    let (total, delivered): (i64, i64) = counts.first().map_or((0, 0), |row| (row.get(0), row.get(2)));
    let some = limit as i64;
    let members = link.query(sql::MEMBERS, &[&of, &name, &from, &some]).await.map_err(failed)?;
    let ids: Vec<Uuid> = members.iter().map(|row| row.get(0)).collect();
    let sends = records(list, &ids, false).await?;
    // Those before may be gone, so places need not begin where it was asked for.
    let reached = members.last().map(|row| row.get::<_, i32>(1) + 1);
    let next = reached.filter(|reached| *reached < next).map(|reached| reached.to_string());
    Ok(Some(Execution {
        execution,
        state,
        finished_by,
        delivered: delivered.unsigned_abs(),
        total: total.unsigned_abs(),
        sends,
        next,
    }))
}

// The tail.

/// Waits, a little, until what has been committed by now can be told in its order; up to where that is.
async fn settled(shared: &Shared) -> Result<Option<i64>, StoreError> {
    let since = crate::clock::monotonic();
    let mut target = None;
    loop {
        let row = shared.look.one(sql::NEWEST, &[]).await.map_err(failed)?;
        let (newest, bound): (Option<i64>, i64) = (row.get(0), row.get(1));
        let target = *target.get_or_insert(newest);
        let is_below = target.is_none_or(|target| target < bound);
        if is_below {
            return Ok(target);
        }
        if crate::clock::monotonic().duration_since(since) >= SETTLED_WITHIN {
            // Others' transactions are open: what is below them is all that can be told.
            let row = shared.look.query(sql::NEWEST_BELOW, &[&bound]).await.map_err(failed)?;
            return Ok(row.first().map(|row| row.get(0)));
        }
        tokio::time::sleep(SETTLED_AGAIN).await;
    }
}

/// Waits, a little, until what has been committed by now can be counted.
pub async fn settle(shared: &Shared) -> Result<(), StoreError> {
    settled(shared).await.map(drop)
}

pub async fn newest_place(shared: &Shared) -> Result<TailPlace, StoreError> {
    Ok(settled(shared).await?.map_or(TailPlace::START, place))
}

pub async fn finished_after(
    shared: &Shared,
    after: TailPlace,
    filter: Filter,
    limit: usize,
) -> Result<(Vec<TailItem>, TailPlace), StoreError> {
    settled(shared).await?;
    let mut from = i64::try_from(after.to_bits()).unwrap_or(i64::MAX);
    let some = (limit as i64).max(200);
    let rows = shared.look.query(sql::TAIL, &[&from, &some]).await.map_err(failed)?;
    let seqs: HashMap<Uuid, i64> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let ids: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    let mut items = Vec::new();
    let known: HashMap<Uuid, Record> =
        records(&shared.look, &ids, false).await?.into_iter().map(|record| (record.id.0, record)).collect();
    for id in ids {
        if items.len() == limit {
            break;
        }
        from = seqs[&id];
        let Some(record) = known.get(&id) else { continue };
        let host = host_of(record);
        if filter.lets_through(record, host.as_deref()) {
            items.push(TailItem { place: place(from), record: record.clone() });
        }
    }
    Ok((items, TailPlace::from_bits(from.unsigned_abs())))
}

fn host_of(record: &Record) -> Option<String> {
    Some(view::host_text(&record.request.to.destination()?.host))
}

pub async fn outcomes_of_the_hour(
    shared: &Shared,
    now: Timestamp,
) -> Result<HashMap<TenantId, HashMap<Outcome, u64>>, StoreError> {
    let before = view::minute(now) - 60;
    let mut counts: HashMap<TenantId, HashMap<Outcome, u64>> = HashMap::new();
    for row in shared.look.query(sql::HOUR, &[&before]).await.map_err(failed)? {
        let (tenant, outcome, n): (&str, i16, i64) = (row.get(0), row.get(1), row.get(2));
        if let Ok(outcome) = wire::outcome_of(u8::try_from(outcome).unwrap_or(u8::MAX)) {
            counts.entry(TenantId::new(tenant)).or_default().insert(outcome, n.unsigned_abs());
        }
    }
    Ok(counts)
}

/// Drops what is past its retention, whole days at a time, and makes the days ahead.
pub async fn retain(shared: &Shared, now: Timestamp) -> Result<(), StoreError> {
    shared.open()?;
    let failed = |trouble: Trouble| trouble.on_write();
    let before = |kept: Duration| {
        let kept = SignedDuration::try_from(kept).unwrap_or(SignedDuration::MAX);
        now.checked_sub(kept).map_or(0, schema::day_at)
    };
    let link = &shared.admin;
    schema::make_ahead(link, &shared.address.schema, now).await.map_err(failed)?;
    // What waits is kept, however old it is.
    let live = link.query(sql::OLDEST_LIVE, &[]).await.map_err(failed)?;
    let live = live.first().map_or(i64::MAX, |row| schema::day_of(row.get(0)));
    let (bodies, records) = (before(shared.settings.body_retention), before(shared.settings.retention));
    schema::drop_before(link, bodies.min(live), true).await.map_err(failed)?;
    let kept = schema::first_of(records.min(live));
    for day in schema::known_days(link).await.map_err(failed)?.into_iter().filter(|day| *day < records.min(live)) {
        for (from, to) in schema::hours_of(day) {
            link.query(sql::STAND_FOR_EXECUTIONS, &[&from, &to, &kept]).await.map_err(failed)?;
        }
    }
    schema::drop_before(link, records.min(live), false).await.map_err(failed)?;
    let first_kept = records.min(live).saturating_mul(24 * 3600);
    for (text, day) in sql::FORGET_KEPT.into_iter().zip([records.min(live), bodies.min(live)]) {
        link.query(text, &[&day]).await.map_err(failed)?;
    }
    link.query(sql::FORGET_STATS, &[&first_kept]).await.map_err(failed)?;
    let kept = SignedDuration::try_from(shared.settings.retention).unwrap_or(SignedDuration::MAX);
    super::tunnels::end_of_the_dead(shared, now).await?;
    let oldest = now.checked_sub(kept).map_or(0, wire::nanoseconds);
    super::tunnels::drop_before(shared, oldest).await?;
    super::batches::drop_before(shared, oldest).await?;
    let keys = now.checked_sub(SignedDuration::try_from(IDEMPOTENCY_KEPT).unwrap_or(SignedDuration::MAX));
    link.query(sql::FORGET_KEYS, &[&keys.map_or(0, wire::nanoseconds)]).await.map_err(failed)?;
    let bytes: i64 = link.one(sql::BYTES, &[]).await.map_err(failed)?.get(0);
    #[allow(clippy::cast_precision_loss, reason = "gauges are floats")]
    metrics::gauge!("egressd_store_bytes").set(bytes as f64);
    Ok(())
}
