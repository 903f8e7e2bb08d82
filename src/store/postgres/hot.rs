//! The hot path: accepts and begins of many callers in one statement, over one connection; ends over another.
//!
//! While one statement is under way the next one's callers gather, so there is one commit for many of them, and none
//! waits for a timer. One bad value fails its whole statement: then each caller's part is tried by itself, and nobody's
//! call pays for another's. Where an answer was lost with its connection the same is done again, which waits for the old
//! backend, and tells what that one came to.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::Shared;
use super::counts::Tally;
use super::forms::{self, Columns, Ends};
use super::link::{Link, Trouble};
use super::turns::Turn;
use super::{measures, schema, sql};
use crate::clock;
use crate::outcome::{Code, Ended, Failure, Processed};
use crate::record::Finished;
use crate::send::{SendId, SendSpec, TenantId};
use crate::store::{Accepted, Begin, Course, NewSend, Session, Started, StoreEnd, StoreError, TailPlace, view, wire};

/// Most sends of one statement, and most bytes: more wait for the next.
const SENDS_MAX: usize = 512;
pub const BYTES_MAX: usize = 4 << 20;
/// Until a statement whose answer was lost is made again.
const AGAIN_AFTER: Duration = Duration::from_millis(50);
/// How long a node may take to load what was suspended, while what it would begin waits.
const LOADED_WITHIN: Duration = Duration::from_millis(800);

pub type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

pub struct AcceptJob {
    pub by: Session,
    pub sends: Vec<NewSend>,
    pub columns: Columns,
    pub answer: Answer<Accepted>,
    pub _turn: Turn,
}

pub struct BeginJob {
    pub by: Session,
    pub begins: Vec<Begin>,
    /// Of each begin.
    pub specs: Vec<Result<Arc<SendSpec>, StoreError>>,
    pub answer: Answer<Vec<Result<Started, StoreError>>>,
}

pub enum HotJob {
    Accept(Box<AcceptJob>),
    Begin(BeginJob),
}

pub struct EndJob {
    pub by: Session,
    pub finished: Finished,
    pub answer: Answer<TailPlace>,
}

impl HotJob {
    fn by(&self) -> &Session {
        match self {
            Self::Accept(job) => &job.by,
            Self::Begin(job) => &job.by,
        }
    }

    fn weight(&self) -> (usize, usize) {
        match self {
            Self::Accept(job) => {
                let columns = &job.columns;
                let bytes = columns.forms.iter().map(Vec::len).sum::<usize>()
                    + columns.bodies.iter().flatten().map(|body| body.len()).sum::<usize>()
                    + columns.sealed.iter().flatten().map(Vec::len).sum::<usize>();
                (columns.len(), bytes)
            }
            Self::Begin(job) => (job.begins.len(), 0),
        }
    }

    fn is_given_up(&self) -> bool {
        match self {
            Self::Accept(job) => job.answer.is_closed(),
            Self::Begin(job) => job.answer.is_closed(),
        }
    }
}

/// What has arrived, up to a statement's worth. `None`: nobody can ask any more.
async fn gather<T>(
    jobs: &mut mpsc::Receiver<T>,
    left: &mut Option<T>,
    weight: impl Fn(&T) -> (usize, usize),
) -> Option<Vec<T>> {
    let first = match left.take() {
        Some(first) => first,
        None => jobs.recv().await?,
    };
    let (mut sends, mut bytes) = weight(&first);
    let mut gathered = vec![first];
    while sends < SENDS_MAX && bytes < BYTES_MAX {
        let Ok(job) = jobs.try_recv() else { break };
        let (more_sends, more_bytes) = weight(&job);
        if sends + more_sends > SENDS_MAX || bytes + more_bytes > BYTES_MAX {
            *left = Some(job);
            break;
        }
        sends += more_sends;
        bytes += more_bytes;
        gathered.push(job);
    }
    Some(gathered)
}

pub async fn accept_and_begin(shared: Arc<Shared>, mut jobs: mpsc::Receiver<HotJob>) {
    let mut left = None;
    while let Some(gathered) = gather(&mut jobs, &mut left, HotJob::weight).await {
        // What nobody waits for any more was refused, and nothing of it is done.
        let mut by_session: HashMap<Session, (Vec<AcceptJob>, Vec<BeginJob>)> = HashMap::new();
        for job in gathered.into_iter().filter(|job| !job.is_given_up()) {
            let (accepts, begins) = by_session.entry(job.by().clone()).or_default();
            match job {
                HotJob::Accept(job) => accepts.push(*job),
                HotJob::Begin(job) => begins.push(job),
            }
        }
        for (by, (accepts, begins)) in by_session {
            // Both at once, one behind the other on the wire: what begins has a place in flight meanwhile, and is soon done.
            tokio::join!(begin(&shared, &by, begins), accept(&shared, &shared.hot, &by, accepts));
        }
    }
}

// Accepting.

/// Alone, on a connection of its own.
pub async fn accept_large(shared: &Arc<Shared>, job: AcceptJob) {
    let by = job.by.clone();
    accept(shared, &shared.large, &by, vec![job]).await;
}

async fn accept(shared: &Arc<Shared>, link: &Link, by: &Session, mut jobs: Vec<AcceptJob>) {
    if jobs.is_empty() {
        return;
    }
    let _counting = shared.counting.read().await;
    let all: Vec<&Columns> = jobs.iter().map(|job| &job.columns).collect();
    match accept_columns(shared, link, by, &all).await {
        Err(trouble @ Trouble::Refused(_)) if jobs.len() > 1 && !trouble.took_too_long() => {
            tracing::debug!(error = %trouble.on_write(), "a batch was refused; each of its calls is made alone");
            for job in jobs {
                let made = accept_columns(shared, link, by, &[&job.columns]).await;
                accepted(shared, job, made.map_err(|trouble| trouble.on_write()));
            }
        }
        Ok(Ok(())) => jobs.drain(..).for_each(|job| accepted(shared, job, Ok(Ok(())))),
        Ok(Err(why)) => jobs.drain(..).for_each(|job| accepted(shared, job, Ok(Err(why.clone())))),
        Err(trouble) => jobs.drain(..).for_each(|job| accepted(shared, job, Err(trouble.on_write()))),
    }
}

/// Inner error: nothing was accepted, because of how the session stands.
async fn accept_columns(
    shared: &Shared,
    link: &Link,
    by: &Session,
    all: &[&Columns],
) -> Result<Result<(), StoreError>, Trouble> {
    let incarnation = by.incarnation() as i64;
    let one = |pick: fn(&Columns) -> &Vec<Option<String>>| -> Vec<Option<&str>> {
        all.iter().flat_map(|columns| pick(columns).iter().map(|text| text.as_deref())).collect()
    };
    let ids: Vec<Uuid> = all.iter().flat_map(|columns| columns.ids.iter().copied()).collect();
    let tenants: Vec<&str> = all.iter().flat_map(|columns| columns.tenants.iter().map(String::as_str)).collect();
    let (workflows, steps, hosts) = (one(|c| &c.workflows), one(|c| &c.steps), one(|c| &c.hosts));
    let forms: Vec<&[u8]> = all.iter().flat_map(|columns| columns.forms.iter().map(Vec::as_slice)).collect();
    let bodies: Vec<Option<&[u8]>> = all.iter().flat_map(|columns| columns.bodies()).collect();
    let sealed: Vec<Option<&[u8]>> = all.iter().flat_map(|c| c.sealed.iter().map(|bytes| bytes.as_deref())).collect();
    let slots: Vec<Option<&[u8]>> = all.iter().flat_map(|c| c.slots.iter().map(|bytes| bytes.as_deref())).collect();
    let courses: Vec<i16> = all.iter().flat_map(|columns| columns.courses.iter().copied()).collect();
    let destinations: Vec<i64> = all.iter().flat_map(|columns| columns.destinations.iter().copied()).collect();
    let created: Vec<i64> = all.iter().flat_map(|columns| columns.created.iter().copied()).collect();
    let expires: Vec<i64> = all.iter().flat_map(|columns| columns.expires.iter().copied()).collect();
    let gathers: Vec<Option<i16>> = all.iter().flat_map(|columns| columns.gathers.iter().copied()).collect();
    let weights: Vec<Option<i64>> = all.iter().flat_map(|columns| columns.weights.iter().copied()).collect();
    let mut days_made = false;
    let mut attempt = Attempt::new(shared);
    let mut lost = false;
    loop {
        let values: [&(dyn ToSql + Sync); 17] = [
            &incarnation,
            &attempt.loaded,
            &ids,
            &tenants,
            &workflows,
            &steps,
            &hosts,
            &forms,
            &bodies,
            &sealed,
            &slots,
            &courses,
            &destinations,
            &created,
            &expires,
            &gathers,
            &weights,
        ];
        match known_after(link, sql::ACCEPT, &values, &mut lost).await.map(only) {
            Ok(Some(row)) if row.get::<_, i64>(0) > 0 => return Ok(Ok(())),
            Ok(_) => {
                if let Err(why) = attempt.again(shared, by, lost).await? {
                    // The one whose answer was lost may have done it, before the session stood so.
                    let done = lost && !known_after(link, sql::ACCEPTED, &[&ids], &mut lost).await?.is_empty();
                    return Ok(if done { Ok(()) } else { Err(why) });
                }
            }
            Err(trouble) if is_day_missing(&trouble) && !std::mem::replace(&mut days_made, true) => {
                let days = ids.iter().map(|id| schema::day_of(*id));
                schema::make_days(&shared.admin, &shared.address.schema, days).await?;
            }
            Err(trouble) => return Err(trouble),
        }
    }
}

pub fn is_day_missing(trouble: &Trouble) -> bool {
    trouble.code() == Some(&SqlState::CHECK_VIOLATION)
}

/// Makes the statement until its answer is known; with whether one was lost before. It is one that may be made again.
pub async fn until_known(
    link: &Link,
    sql: &'static str,
    values: &[&(dyn ToSql + Sync)],
) -> Result<(Vec<Row>, bool), Trouble> {
    let mut lost = false;
    let rows = known_after(link, sql, values, &mut lost).await?;
    Ok((rows, lost))
}

/// The same where an answer may have been `lost` before: then it has to be found out, however long that takes.
async fn known_after(
    link: &Link,
    sql: &'static str,
    values: &[&(dyn ToSql + Sync)],
    lost: &mut bool,
) -> Result<Vec<Row>, Trouble> {
    loop {
        let sent = clock::monotonic();
        match link.query(sql, values).await {
            Ok(rows) => {
                measures::committed(sent);
                return Ok(rows);
            }
            Err(Trouble::Lost(why)) => {
                tracing::warn!(%why, "an answer of the database was lost; what it was is found out");
                *lost = true;
            }
            Err(trouble) if *lost && trouble.may_pass() => {}
            Err(trouble) => return Err(trouble),
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

fn only(rows: Vec<Row>) -> Option<Row> {
    rows.into_iter().next()
}

/// The same for what always has one row.
pub async fn one_known(link: &Link, sql: &'static str, values: &[&(dyn ToSql + Sync)]) -> Result<(Row, bool), Trouble> {
    let (rows, lost) = until_known(link, sql, values).await?;
    Ok((only(rows).ok_or_else(no_row)?, lost))
}

fn no_row() -> Trouble {
    Trouble::Away("there is no row where there always is one".into())
}

/// A statement under way, by a session and with the suspensions that are loaded here.
struct Attempt {
    changes: watch::Receiver<i64>,
    loaded: i64,
    until: Instant,
}

impl Attempt {
    fn new(shared: &Shared) -> Self {
        let mut changes = shared.loaded.subscribe();
        let loaded = *changes.borrow_and_update();
        Self { changes, loaded, until: clock::monotonic() + LOADED_WITHIN }
    }

    /// Nothing was done, because of how the session stands. Where there are newer suspensions than are loaded they are
    /// waited for, and it may be made again; else why it was not done.
    ///
    /// Where an answer was `lost` its backend may be at it still. It holds the node's row, so that a death and a newer
    /// suspension tell that it is done; a lease that is only over does not, and is waited for.
    async fn again(&mut self, shared: &Shared, by: &Session, lost: bool) -> Result<Result<(), StoreError>, Trouble> {
        let standing = match shared.standing(&shared.hot, by).await {
            Err(trouble) if lost && trouble.may_pass() => None,
            standing => Some(standing?),
        };
        let Some(standing) = standing.filter(|standing| !lost || standing.is_settled(self.loaded)) else {
            tokio::time::sleep(AGAIN_AFTER).await;
            return Ok(Ok(()));
        };
        let Some(newer) = standing.is_behind(self.loaded) else { return Ok(Err(standing.error(by))) };
        shared.tell_suspensions(newer);
        tokio::select! {
            changed = self.changes.changed() => if changed.is_err() { return Ok(Err(standing.error(by))) },
            () = tokio::time::sleep_until(self.until) => return Ok(Err(standing.error(by))),
        }
        self.loaded = *self.changes.borrow_and_update();
        Ok(Ok(()))
    }
}

fn accepted(shared: &Arc<Shared>, job: AcceptJob, made: Result<Result<(), StoreError>, StoreError>) {
    let answer = match made.and_then(|made| made) {
        Ok(()) => {
            count_accepted(shared, &job.by, &job.sends, &job.columns, false);
            let started = started(&job.by, &job.sends);
            Ok(Accepted::New { indexes: vec![None; job.sends.len()], started })
        }
        Err(error) => Err(error),
    };
    give(shared, job.by, job.sends, job.answer, answer, Manner { held: false, keyed: false });
}

pub fn started(by: &Session, sends: &[NewSend]) -> Vec<Started> {
    let begun = sends.iter().filter(|send| send.course == Course::Begin);
    begun
        .map(|send| Started::new(send.id, send.tenant.clone(), send.spec.clone(), send.created_at, by.clone()))
        .collect()
}

pub fn count_accepted(shared: &Shared, by: &Session, sends: &[NewSend], columns: &Columns, held: bool) {
    if let Some(first) = sends.first() {
        shared.shares.add(&first.tenant, columns.kept_bytes());
    }
    for send in sends {
        let change = match send.course {
            _ if held => Tally::held(1),
            Course::Begin => {
                super::locked(&shared.begun).insert(send.id.0);
                continue;
            }
            Course::Claim => {
                super::locked(&shared.claimed).insert(send.id.0);
                Tally::queued(1)
            }
            // What gathers is looked for by itself, and never claimed.
            Course::Wait if send.spec.gathers().is_some() => Tally::queued(1),
            Course::Wait => {
                shared.counts.note_front(&send.tenant, wire::nanoseconds(send.created_at));
                Tally::waiting(1)
            }
        };
        shared.count(by, &send.tenant, change);
    }
}

/// How a call came.
#[derive(Clone, Copy)]
pub struct Manner {
    pub held: bool,
    pub keyed: bool,
}

/// Hands the answer over. Where the caller was told by then that nothing is known of it, it does as it likes, and may
/// call again: what was accepted ends unsent. Of a call with a key only what was begun does; the rest waits for anybody.
pub fn give(
    shared: &Arc<Shared>,
    by: Session,
    sends: Vec<NewSend>,
    answer: Answer<Accepted>,
    said: Result<Accepted, StoreError>,
    manner: Manner,
) {
    let Err(Ok(Accepted::New { .. })) = answer.send(said) else { return };
    let shared = shared.clone();
    tokio::spawn(async move {
        let (mut unsent, mut claimed) = (Vec::new(), Vec::new());
        for send in sends {
            match send.course {
                _ if !manner.keyed => unsent.push(Unsent::accepted(&send, manner.held)),
                _ if manner.held => {}
                Course::Begin => unsent.push(Unsent::accepted(&send, false)),
                Course::Claim => claimed.push(send.id),
                Course::Wait => {}
            }
        }
        if !unsent.is_empty() {
            tracing::warn!(sends = unsent.len(), "what was accepted after its caller was refused ends unsent");
        }
        undo(&shared, &by, unsent, never_sent()).await;
        if let Err(error) = super::wait::give_back(&shared, &by, claimed.clone()).await {
            tracing::debug!(%error, "claimed sends were not given back yet");
            super::locked(&shared.claimed).retain(|id| !claimed.contains(&SendId(*id)));
            shared.strays.notify_one();
        }
    });
}

/// One that nobody is there to deliver.
pub struct Unsent {
    pub id: SendId,
    pub tenant: TenantId,
    pub created: i64,
    /// Of one that is not held.
    pub released: Option<i64>,
    /// Of one that was begun.
    pub began: Option<i64>,
}

impl Unsent {
    fn accepted(send: &NewSend, held: bool) -> Self {
        let created = wire::nanoseconds(send.created_at);
        let began = (send.course == Course::Begin && !held).then_some(created);
        Self { id: send.id, tenant: send.tenant.clone(), created, released: (!held).then_some(created), began }
    }

    fn begun(id: SendId, tenant: TenantId, at: Timestamp) -> Self {
        let at = wire::nanoseconds(at);
        Self { id, tenant, created: at, released: Some(at), began: Some(at) }
    }
}

fn never_sent() -> Failure {
    view::interrupted().but(Processed::No)
}

/// Ends them, but for those that another node has begun by now; however long the database is away.
pub async fn undo(shared: &Shared, by: &Session, mut all: Vec<Unsent>, why: Failure) {
    let outcome = i16::from(wire::outcome_number(Ended::because(why.clone()).outcome));
    let (code, node, incarnation) =
        (i16::from(wire::code_number(Code::Interrupted)), by.node().to_string(), by.incarnation() as i64);
    all.sort_unstable_by_key(|one| one.id);
    for some in all.chunks(SENDS_MAX) {
        let now = clock::wall();
        let at = wire::nanoseconds(now);
        let ids: Vec<Uuid> = some.iter().map(|one| one.id.0).collect();
        let tenants: Vec<&str> = some.iter().map(|one| one.tenant.as_str()).collect();
        let released: Vec<Option<i64>> = some.iter().map(|one| one.released).collect();
        let began: Vec<Option<i64>> = some.iter().map(|one| one.began).collect();
        let end = |one: &Unsent| forms::end_of(one.id.0, one.created, one.released, one.began, why.clone(), now);
        let forms: Vec<Vec<u8>> = some.iter().map(|one| wire::ended(&end(one)).0).collect();
        let values: [&(dyn ToSql + Sync); 10] =
            [&incarnation, &ids, &tenants, &released, &began, &forms, &outcome, &code, &at, &node];
        let mut lost = false;
        let rows = loop {
            let _counting = shared.counting.read().await;
            match shared.ends.query(sql::UNDO, &values).await {
                Ok(rows) => {
                    for row in &rows {
                        let change = Tally {
                            held: -row.get::<_, i64>(3),
                            queued: -row.get::<_, i64>(4),
                            unclaimed: -row.get::<_, i64>(5),
                        };
                        shared.count(by, &TenantId::new(row.get::<_, &str>(2)), change);
                    }
                    break rows;
                }
                Err(trouble) if trouble.may_pass() => lost |= matches!(trouble, Trouble::Lost(_)),
                Err(trouble) => {
                    tracing::error!(error = %trouble.on_write(), sends = some.len(), "sends that nobody delivers have no end");
                    return;
                }
            }
            drop(_counting);
            tokio::time::sleep(AGAIN_AFTER).await;
        };
        let mut ends: Vec<(Uuid, i64, TenantId)> =
            rows.iter().map(|row| (row.get(0), row.get(1), TenantId::new(row.get::<_, &str>(2)))).collect();
        if lost {
            shared.uncounted.notify_one();
            if let Ok(rows) = known_after(&shared.ends, sql::ENDED_BY, &[&ids, &node, &at], &mut lost).await {
                ends = rows.iter().map(|row| (row.get(0), row.get(1), TenantId::new(row.get::<_, &str>(2)))).collect();
            }
        }
        super::locked(&shared.claimed).retain(|id| ids.binary_search(id).is_err());
        super::locked(&shared.begun).retain(|id| ids.binary_search(id).is_err());
        shared.tell_closed(ends.into_iter().map(|(id, seq, tenant)| StoreEnd {
            id: SendId(id),
            tenant,
            code: Code::Interrupted,
            place: place(seq),
        }));
    }
}

// Beginning.

async fn begin(shared: &Arc<Shared>, by: &Session, mut jobs: Vec<BeginJob>) {
    if jobs.is_empty() {
        return;
    }
    let _counting = shared.counting.read().await;
    let all: Vec<&BeginJob> = jobs.iter().collect();
    match begin_all(shared, by, &all).await {
        Err(trouble @ Trouble::Refused(_)) if jobs.len() > 1 && !trouble.took_too_long() => {
            for job in jobs {
                let made = begin_all(shared, by, &[&job]).await;
                begun(shared, job, made.map_err(|trouble| trouble.on_write()).and_then(|made| made).as_mut());
            }
        }
        Ok(made) => {
            let mut made = made;
            jobs.drain(..).for_each(|job| begun(shared, job, made.as_mut()));
        }
        Err(trouble) => jobs.drain(..).for_each(|job| begun(shared, job, Err(&mut trouble.on_write()))),
    }
}

async fn begin_all(
    shared: &Shared,
    by: &Session,
    jobs: &[&BeginJob],
) -> Result<Result<HashSet<Uuid>, StoreError>, Trouble> {
    let incarnation = by.incarnation() as i64;
    let mut wanted: Vec<(Uuid, &str, i64)> = Vec::new();
    for job in jobs {
        for (begin, spec) in job.begins.iter().zip(&job.specs) {
            if spec.is_ok() {
                wanted.push((begin.id.0, begin.tenant.as_str(), wire::nanoseconds(begin.at)));
            }
        }
    }
    // In one order everywhere, so that no two statements wait for each other.
    wanted.sort_unstable_by_key(|(id, _, _)| *id);
    let ids: Vec<Uuid> = wanted.iter().map(|(id, _, _)| *id).collect();
    let tenants: Vec<&str> = wanted.iter().map(|(_, tenant, _)| *tenant).collect();
    let times: Vec<i64> = wanted.iter().map(|(_, _, at)| *at).collect();
    let mut attempt = Attempt::new(shared);
    let mut lost = false;
    loop {
        let values: [&(dyn ToSql + Sync); 5] = [&incarnation, &attempt.loaded, &ids, &tenants, &times];
        let row = only(known_after(&shared.hot, sql::BEGIN, &values, &mut lost).await?).ok_or_else(no_row)?;
        let mut begun: HashSet<Uuid> = row.get::<_, Option<Vec<Uuid>>>(1).unwrap_or_default().into_iter().collect();
        let why = match row.get::<_, i64>(0) {
            0 => match attempt.again(shared, by, lost).await? {
                Ok(()) => continue,
                Err(why) => Some(why),
            },
            _ => None,
        };
        if lost {
            // The old backend is done by now: its marks are ours.
            let rows = known_after(&shared.hot, sql::BEGUN, &[&incarnation, &ids, &times], &mut lost).await?;
            begun.extend(rows.iter().map(|row| row.get::<_, Uuid>(0)));
        }
        return Ok(match why {
            Some(why) if begun.is_empty() => Err(why),
            _ => Ok(begun),
        });
    }
}

fn begun(shared: &Arc<Shared>, job: BeginJob, made: Result<&mut HashSet<Uuid>, &mut StoreError>) {
    let marked = match made {
        Ok(marked) => marked,
        Err(error) => {
            let _ = job.answer.send(Err(error.clone()));
            return;
        }
    };
    // Looked at after the answer: a mark that came later than the lease may be one that others have taken for dead.
    let in_time = shared.lease_holds(&job.by);
    let mut answers = Vec::with_capacity(job.begins.len());
    let mut too_late = Vec::new();
    for (begin, spec) in job.begins.into_iter().zip(job.specs) {
        let spec = match spec {
            Ok(spec) => spec,
            Err(error) => {
                answers.push(Err(error));
                continue;
            }
        };
        if !marked.remove(&begin.id.0) {
            answers.push(Err(StoreError::NoSuchSend));
            continue;
        }
        shared.count(&job.by, &begin.tenant, Tally::queued(-1));
        if in_time {
            super::locked(&shared.begun).insert(begin.id.0);
            answers.push(Ok(Started::new(begin.id, begin.tenant, spec, begin.at, job.by.clone())));
        } else {
            too_late.push((begin.id, begin.tenant, begin.at));
            answers.push(Err(StoreError::NoSuchSend));
        }
    }
    let unheard = match job.answer.send(Ok(answers)) {
        Err(Ok(answers)) => answers
            .into_iter()
            .flatten()
            .map(|started| (started.id(), started.tenant().clone(), started.at()))
            .collect(),
        _ => Vec::new(),
    };
    let unsent: Vec<_> = too_late.into_iter().chain(unheard).collect();
    if !unsent.is_empty() {
        tracing::warn!(sends = unsent.len(), "starts were marked too late, and are not sent");
        let (shared, by) = (shared.clone(), job.by);
        tokio::spawn(async move {
            let unsent = unsent.into_iter().map(|(id, tenant, at)| Unsent::begun(id, tenant, at));
            undo(&shared, &by, unsent.collect(), never_sent()).await;
        });
    }
}

// Ending.

pub async fn finish(shared: Arc<Shared>, mut jobs: mpsc::Receiver<EndJob>) {
    let mut left = None;
    let weight = |job: &EndJob| {
        let body = job.finished.response.as_ref().and_then(|answer| answer.body.bytes.as_ref());
        (1, 1024 + body.map_or(0, |body| body.len()))
    };
    while let Some(gathered) = gather(&mut jobs, &mut left, weight).await {
        let mut by_session: HashMap<Session, Vec<EndJob>> = HashMap::new();
        for job in gathered {
            by_session.entry(job.by.clone()).or_default().push(job);
        }
        for (by, jobs) in by_session {
            finish_all(&shared, &by, jobs).await;
        }
    }
}

async fn finish_all(shared: &Shared, by: &Session, mut jobs: Vec<EndJob>) {
    // Two ends of one send in one statement would be two rows of it.
    let mut seen = HashSet::new();
    let (first, again): (Vec<_>, Vec<_>) = jobs.drain(..).partition(|job| seen.insert(job.finished.id));
    let mut jobs = first;
    jobs.sort_unstable_by_key(|job| job.finished.id);
    match finish_batch(shared, by, &jobs).await {
        Ok(mut ends) => {
            for job in jobs {
                let end = ends.remove(&job.finished.id.0).unwrap_or(Err(StoreError::NoSuchSend));
                let _ = job.answer.send(end);
            }
        }
        Err(trouble @ Trouble::Refused(_)) if jobs.len() > 1 && !trouble.took_too_long() => {
            for job in jobs {
                let one = [job];
                let end = finish_batch(shared, by, &one).await;
                let [job] = one;
                let end = match end {
                    Ok(mut ends) => ends.remove(&job.finished.id.0).unwrap_or(Err(StoreError::NoSuchSend)),
                    Err(trouble) => Err(trouble.on_write()),
                };
                let _ = job.answer.send(end);
            }
        }
        Err(trouble) => {
            for job in jobs {
                let _ = job.answer.send(Err(trouble.on_write()));
            }
        }
    }
    for job in again {
        let _ = job.answer.send(Err(StoreError::NoSuchSend));
    }
}

async fn finish_batch(
    shared: &Shared,
    by: &Session,
    jobs: &[EndJob],
) -> Result<HashMap<Uuid, Result<TailPlace, StoreError>>, Trouble> {
    let mut ends = Ends::default();
    jobs.iter().for_each(|job| ends.add(&job.finished));
    let _counting = shared.counting.read().await;
    let (incarnation, node, bodies) = (by.incarnation() as i64, by.node().to_string(), ends.bodies());
    let full = shared.shares.full();
    let bare = if full.is_empty() { vec![None; ends.ids.len()] } else { ends.bare() };
    let values: [&(dyn ToSql + Sync); 14] = [
        &incarnation,
        &ends.ids,
        &ends.outcomes,
        &ends.codes,
        &ends.statuses,
        &ends.sources,
        &ends.publics,
        &ends.started,
        &ends.finished,
        &ends.forms,
        &bodies,
        &node,
        &full,
        &bare,
    ];
    let (rows, lost) = until_known(&shared.ends, sql::FINISH, &values).await?;
    if lost {
        // Some of them may have waited still.
        shared.uncounted.notify_one();
    }
    let mut answers = HashMap::new();
    for row in rows {
        let (id, seq, tenant, was_waiting): (Uuid, i64, &str, bool) = (row.get(0), row.get(1), row.get(2), row.get(3));
        let tenant = TenantId::new(tenant);
        if was_waiting {
            shared.count(by, &tenant, Tally::queued(-1));
        }
        if let Ok(at) = ends.ids.binary_search(&id) {
            let body = bodies[at].map_or(0, <[u8]>::len);
            shared.shares.add(&tenant, (ends.forms[at].len() + body) as u64);
        }
        answers.insert(id, Ok(place(seq)));
    }
    let missing: Vec<Uuid> = ends.ids.iter().copied().filter(|id| !answers.contains_key(id)).collect();
    if !missing.is_empty() {
        let standing = shared.standing(&shared.ends, by).await?;
        for row in until_known(&shared.ends, sql::WHY_NOT_FINISHED, &[&missing, &incarnation]).await?.0 {
            let id: Uuid = row.get(0);
            let (is_claimed, seq): (Option<bool>, Option<i64>) = (row.get(1), row.get(2));
            let form: Option<&[u8]> = row.get(3);
            let is_mine = |at: usize| form == Some(ends.forms[at].as_slice()) || form == bare[at].as_deref();
            let at = ends.ids.iter().position(|known| *known == id);
            let end = match (is_claimed, seq) {
                // The answer that was lost said so.
                (None, Some(seq)) if lost && at.is_some_and(is_mine) => Ok(place(seq)),
                (Some(true), _) if !standing.is_in_force() => Err(standing.error(by)),
                _ => Err(StoreError::NoSuchSend),
            };
            answers.insert(id, end);
        }
    }
    Ok(answers)
}

pub fn place(seq: i64) -> TailPlace {
    TailPlace::from_bits(seq.unsigned_abs())
}
