//! A node's life in the tier: it joins as a new incarnation, renews its lease, sees who has died, takes over what those
//! had claimed, and ends what they had begun.
//!
//! Every instant that decides is the database's. A node's own clock is only asked how long ago, at most, the database
//! was told to renew ([`Life::renewed`]): counted from the sending, so never longer than it is.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;
use tokio_postgres::Row;
use uuid::Uuid;

use super::counts::Tally;
use super::forms::end_of;
use super::hot::{Unsent, undo};
use super::link::{Link, Trouble};
use super::{Shared, locked, measures, schema, shares, sql, wait};
use crate::clock;
use crate::outcome::{Code, Ended};
use crate::send::{SendId, TenantId};
use crate::store::{News, Session, StoreEnd, StoreError, view, wire};

/// How often a node looks at the others: what they do is known here within a tenth of a second, with what the looks take.
const TENDED_EVERY: Duration = Duration::from_millis(50);
/// Rows that one statement of an adopter takes, so that it holds none of them for long.
const ADOPTED_AT_ONCE: i64 = 2_000;
const INTERRUPTED_AT_ONCE: i64 = 512;
/// Polls between two looks at what a lost answer left claimed.
const STRAYS_SEEN_TWICE_AFTER: Duration = Duration::from_secs(2);
const AWAY_AGAIN: Duration = Duration::from_millis(300);
const COUNTED_AGAIN_AFTER: Duration = Duration::from_secs(3);
/// How long the end of an earlier life of this node is waited for.
const NAME_WITHIN: Duration = Duration::from_secs(3);
/// How long the database may take to say what time it is.
const CLOCK_WITHIN: Duration = Duration::from_millis(500);
const COMPACTED_EVERY: Duration = Duration::from_secs(2);
/// How often what ended is counted for the statistics, so that who asks for them waits for little.
const COUNTED_EVERY: Duration = Duration::from_secs(2);
/// How often what is begun is looked through for what nobody here is about any more; that is twice so, and began longer
/// ago than this beyond what a delivery may take.
const FORGOTTEN_EVERY: Duration = Duration::from_secs(60);
const PARTITIONS_EVERY: Duration = Duration::from_secs(600);
/// Ends that one look at the tail brings to those who wait.
const ENDS_TOLD: i64 = 1_000;

/// The life of this process's node.
pub struct Life {
    pub session: Session,
    /// When the last renewal that succeeded was sent.
    pub renewed: Instant,
}

/// How a session stands by the node's row.
#[derive(Clone, Copy, Debug)]
pub enum Standing {
    InForce {
        suspensions: i64,
    },
    /// It may still be renewed.
    LeaseOver,
    Fenced,
}

impl Standing {
    pub fn is_in_force(self) -> bool {
        matches!(self, Self::InForce { .. })
    }

    /// The version that has to be loaded, where that is all that is wrong.
    pub fn is_behind(self, loaded: i64) -> Option<i64> {
        match self {
            Self::InForce { suspensions } if suspensions != loaded => Some(suspensions),
            _ => None,
        }
    }

    /// Nothing that this session was about with these suspensions can be done any more.
    pub fn is_settled(self, loaded: i64) -> bool {
        matches!(self, Self::Fenced) || self.is_behind(loaded).is_some()
    }

    pub fn error(self, by: &Session) -> StoreError {
        match self {
            Self::Fenced => StoreError::Fenced(by.to_string()),
            Self::LeaseOver => StoreError::CannotWrite(
                "this node's lease is over and has not been renewed yet: it begins nothing meanwhile".into(),
            ),
            Self::InForce { .. } => {
                StoreError::CannotWrite("this node has not loaded the newest suspensions yet: try again".into())
            }
        }
    }
}

pub async fn standing(link: &Link, by: &Session) -> Result<Standing, Trouble> {
    let rows = link.query(sql::STANDING, &[&(by.incarnation() as i64)]).await?;
    Ok(match rows.first().map(|row| (row.get::<_, i64>(0), row.get::<_, bool>(1))) {
        None => Standing::Fenced,
        Some((suspensions, true)) => Standing::InForce { suspensions },
        Some((_, false)) => Standing::LeaseOver,
    })
}

/// A new incarnation. What the one before had claimed waits again.
pub async fn join(shared: &Arc<Shared>, node: Arc<str>) -> Result<Session, StoreError> {
    if shared.session().is_none() {
        take_name(shared, &node).await?;
    }
    let sent = clock::monotonic();
    let lease = shared.settings.lease.as_secs_f64();
    let version = env!("CARGO_PKG_VERSION");
    let row = shared.tend.one(sql::JOIN, &[&&*node, &version, &lease]).await.map_err(|t| t.on_write())?;
    let (incarnation, suspensions): (i64, i64) = (row.get(0), row.get(1));
    let session = Session::new(node, incarnation.unsigned_abs());
    {
        let mut life = locked(&shared.life);
        shared.counts.begin_life();
        *life = Some(Life { session: session.clone(), renewed: sent });
    }
    locked(&shared.claimed).clear();
    locked(&shared.begun).clear();
    locked(&shared.batches).clear();
    shared.loaded.send_replace(suspensions);
    let adopted = adopt(shared, incarnation).await.map_err(|trouble| trouble.on_write())?;
    if adopted > 0 {
        tracing::info!(adopted, "what an earlier life of a node had claimed waits again");
    }
    poll(shared, incarnation).await.map_err(|trouble| trouble.on_write())?;
    Ok(session)
}

/// Waits, a little, for the end of a life before this one; refuses where that goes on. One that is frozen keeps its
/// connection, and its lease ends.
async fn take_name(shared: &Shared, node: &str) -> Result<(), StoreError> {
    let since = clock::monotonic();
    loop {
        let row = shared.lease.one(sql::TAKE_NAME, &[&node]).await.map_err(|trouble| trouble.on_write())?;
        let (is_free, lives): (bool, bool) = (row.get(0), row.get(1));
        if is_free || !lives {
            return Ok(());
        }
        if clock::monotonic().duration_since(since) >= NAME_WITHIN {
            return Err(StoreError::NodeInUse(node.to_owned()));
        }
        tokio::time::sleep(super::POLL).await;
    }
}

/// The tier has one time of day, the database's: no node's own decides over what others accepted. One whose system is
/// off by more than clocks that are kept goes by the database's (see [`clock::follow`]).
pub async fn follow_clock(link: &Link, off: &mut Option<SignedDuration>) -> Result<(), Trouble> {
    let sent = clock::monotonic();
    let said: i64 = link.one(sql::CLOCK, &[]).await?.get(0);
    // An answer that was long under way says little.
    let Ok(said) = Timestamp::from_microsecond(said) else { return Ok(()) };
    if clock::monotonic().duration_since(sent) > CLOCK_WITHIN {
        return Ok(());
    }
    let before = std::mem::replace(off, clock::follow(said));
    match (before, *off) {
        (None, Some(ahead)) => tracing::error!(
            seconds = ahead.as_secs(),
            "this machine's clock differs from the database's by so much: the database's is used, set this one right"
        ),
        (Some(_), None) => tracing::info!("this machine's clock and the database's agree again"),
        _ => {}
    }
    Ok(())
}

/// Renews the lease until the store is closed. It has a connection that nothing else waits on.
pub async fn renew(shared: Arc<Shared>) {
    let every = shared.settings.lease / 6;
    let mut off = None;
    loop {
        // One that is away is looked for more often, so that all goes on soon after it is back.
        let is_away = locked(&shared.failing).is_some();
        tokio::time::sleep(if is_away { every.min(AWAY_AGAIN) } else { every }).await;
        let Some(session) = shared.session().filter(|_| shared.renews.load(Ordering::Relaxed)) else { continue };
        let sent = clock::monotonic();
        let (incarnation, lease) = (session.incarnation() as i64, shared.settings.lease.as_secs_f64());
        let load = *locked(&shared.load);
        let (queued, in_flight) = (load.queued as i64, load.in_flight as i64);
        measures::lease(&shared);
        match shared.lease.query(sql::RENEW, &[&incarnation, &lease, &queued, &in_flight]).await {
            Ok(rows) => {
                shared.set_failing(None);
                // Again where the connection is a new one.
                let _ = shared.lease.query(sql::TAKE_NAME, &[&&**session.node()]).await;
                let _ = follow_clock(&shared.lease, &mut off).await;
                if let Some(row) = rows.first() {
                    let mut life = locked(&shared.life);
                    if let Some(life) = life.as_mut().filter(|life| life.session == session) {
                        life.renewed = sent;
                    }
                    drop(life);
                    shared.tell_suspensions(row.get(0));
                } else if shared.session().as_ref() == Some(&session) {
                    shared.tell_fenced(&session);
                }
            }
            Err(trouble) => shared.set_failing(Some(trouble.on_write())),
        }
    }
}

/// Everything else that a node does beside its calls.
pub async fn tend(shared: Arc<Shared>) {
    let mut compacted = clock::monotonic();
    let mut partitioned = compacted;
    let mut counted = compacted;
    let mut shares_seen = None;
    let (mut looked_through, mut forgotten) = (compacted, HashSet::new());
    let mut measured = None;
    let mut tail = None;
    loop {
        tokio::time::sleep(TENDED_EVERY).await;
        let Some(session) = shared.session() else { continue };
        let incarnation = session.incarnation() as i64;
        let now = clock::monotonic();
        let tended = async {
            tell_ends(&shared, &mut tail).await?;
            let lease = shared.settings.lease.as_secs_f64();
            for row in shared.tend.query(sql::DECLARE_DEAD, &[&incarnation, &lease]).await? {
                let (node, incarnation): (&str, i64) = (row.get(0), row.get(1));
                tracing::error!(node, incarnation, "a node's lease is over: what it had queued is taken over");
                measures::lost_one();
            }
            let look = shared.tend.one(sql::LOOK, &[&incarnation]).await?;
            if let Some(suspensions) = look.get(1) {
                shared.tell_suspensions(suspensions);
            }
            if look.get(0) {
                adopt(&shared, incarnation).await?;
                if shared.interrupts.load(Ordering::Relaxed) {
                    interrupt(&shared, shared.settings.grace, clock::wall()).await?;
                }
            }
            if look.get(2) {
                shared.tell(News::Handed);
            }
            let more = poll(&shared, incarnation).await?;
            if !more.is_empty() {
                shared.tell(News::Waiting(more));
            }
            if now.duration_since(compacted) >= COMPACTED_EVERY {
                compacted = now;
                shared.tend.query(sql::COMPACT_TALLY, &[]).await?;
                shared.tend.query(sql::COMPACT_HOUR, &[]).await?;
                shared.tend.query(sql::FORGET_HANDED, &[]).await?;
                shared.tend.query(sql::FORGET_DEAD, &[]).await?;
            }
            if now.duration_since(counted) >= COUNTED_EVERY {
                counted = now;
                super::stats::count(&shared.tend, sql::COUNT_STATS_IF_FREE).await?;
            }
            if now.duration_since(looked_through) >= FORGOTTEN_EVERY {
                looked_through = now;
                let before = std::mem::take(&mut forgotten);
                forgotten = end_forgotten(&shared, &before, shared.settings.grace + FORGOTTEN_EVERY).await?;
            }
            if shares_seen.is_none_or(|at| now.duration_since(at) >= shares::LOOKED_AT_EVERY) {
                shares_seen = Some(now);
                shared.shares.look(&shared.tend).await?;
            }
            if measured.is_none_or(|at| now.duration_since(at) >= measures::EVERY) {
                measured = Some(now);
                measures::database(&shared.tend).await?;
            }
            if now.duration_since(partitioned) >= PARTITIONS_EVERY {
                partitioned = now;
                schema::make_ahead(&shared.admin, &shared.address.schema, clock::wall()).await?;
            }
            Ok::<(), Trouble>(())
        };
        if let Err(trouble) = tended.await {
            tracing::debug!(error = %trouble.on_read(), "the tier was not looked at");
        }
    }
}

/// Ends those that this session began so long ago, that nobody here is to end, and that were so `before` as well; which
/// are so now. There are none, unless a task died: they would be in flight until this node leaves.
pub async fn end_forgotten(shared: &Shared, before: &HashSet<Uuid>, since: Duration) -> Result<HashSet<Uuid>, Trouble> {
    let Some(session) = shared.session() else { return Ok(HashSet::new()) };
    let since = SignedDuration::try_from(since).unwrap_or(SignedDuration::MAX);
    let at = clock::wall().checked_sub(since).map_or(0, wire::nanoseconds);
    let rows = shared.tend.query(sql::BEGUN_BEFORE, &[&(session.incarnation() as i64), &at]).await?;
    let known = locked(&shared.begun).clone();
    let (mut now, mut again) = (HashSet::new(), Vec::new());
    for row in rows.iter().filter(|row| !known.contains(&row.get(0))) {
        let id: Uuid = row.get(0);
        if before.contains(&id) {
            let tenant = TenantId::new(row.get::<_, &str>(1));
            let (created, released, began) = (row.get(2), row.get(3), row.get(4));
            again.push(Unsent { id: SendId(id), tenant, created, released, began });
        } else {
            now.insert(id);
        }
    }
    if !again.is_empty() {
        tracing::error!(sends = again.len(), "begun sends that nobody here is about any more end interrupted");
        undo(shared, &session, again, view::interrupted()).await;
    }
    Ok(now)
}

/// Gives back what the answer to a claim was lost of: claimed by this session, and in nobody's window.
pub async fn give_back_strays(shared: Arc<Shared>) {
    loop {
        shared.strays.notified().await;
        let mut before: Option<HashSet<Uuid>> = None;
        loop {
            tokio::time::sleep(STRAYS_SEEN_TWICE_AFTER).await;
            let Some(session) = shared.session() else { break };
            let incarnation = session.incarnation() as i64;
            let Ok(rows) = shared.look.query(sql::CLAIMED, &[&incarnation]).await else { continue };
            let known = locked(&shared.claimed).clone();
            let now: HashSet<Uuid> = rows.iter().map(|row| row.get(0)).filter(|id| !known.contains(id)).collect();
            let Some(before) = before.replace(now.clone()) else { continue };
            let strays: Vec<SendId> = now.intersection(&before).map(|id| SendId(*id)).collect();
            tracing::info!(strays = strays.len(), "claimed sends whose claim had no answer wait again");
            if wait::give_back(&shared, &session, strays).await.is_ok() {
                break;
            }
        }
    }
}

/// Counts what is this session's anew after an answer was lost that told how counts have changed, and once more a
/// little later, as the backend that had it may have been at work still.
pub async fn count_anew(shared: Arc<Shared>) {
    loop {
        shared.uncounted.notified().await;
        for pause in [Duration::ZERO, COUNTED_AGAIN_AFTER] {
            tokio::time::sleep(pause).await;
            while !count_once(&shared).await {
                tokio::time::sleep(super::POLL).await;
            }
        }
    }
}

async fn count_once(shared: &Shared) -> bool {
    let Some(session) = shared.session() else { return true };
    let _alone = shared.counting.write().await;
    let Ok(rows) = shared.look.query(sql::TALLY_OF, &[&(session.incarnation() as i64)]).await else { return false };
    let life = locked(&shared.life);
    if life.as_ref().is_some_and(|life| life.session == session) {
        shared.counts.set_mine(tallies(&rows));
    }
    true
}

fn tallies(rows: &[Row]) -> HashMap<TenantId, Tally> {
    let of = |row: &Row| {
        let tally = Tally { held: row.get(1), queued: row.get(2), unclaimed: row.get(3) };
        (TenantId::new(row.get::<_, &str>(0)), tally)
    };
    rows.iter().map(of).collect()
}

/// It leaves by itself: what it had claimed is the others' at once.
pub async fn leave(shared: &Shared, by: &Session) -> Result<(), StoreError> {
    let incarnation = by.incarnation() as i64;
    shared.tend.query(sql::LEAVE_BATCHES, &[&incarnation]).await.map_err(|trouble| trouble.on_write())?;
    shared.tend.query(sql::LEAVE, &[&incarnation]).await.map_err(|trouble| trouble.on_write())?;
    adopt(shared, incarnation).await.map(drop).map_err(|trouble| trouble.on_write())
}

/// What the dead had claimed waits again; how many. Goes on until there is no more of it.
pub async fn adopt(shared: &Shared, incarnation: i64) -> Result<i64, Trouble> {
    let mut all = 0;
    loop {
        let _counting = shared.counting.read().await;
        let rows = shared.uncounted(shared.tend.query(sql::ADOPT, &[&ADOPTED_AT_ONCE, &incarnation]).await)?;
        let mut some = 0;
        for row in &rows {
            let (tenant, count): (&str, i64) = (row.get(0), row.get(1));
            some += count;
            let tenant = TenantId::new(tenant);
            shared.count_of(incarnation, &tenant, Tally::unclaimed(count));
        }
        all += some;
        measures::adopted(some);
        if some < ADOPTED_AT_ONCE {
            if all > 0 {
                shared.tell(News::Waiting(Vec::new()));
            }
            return Ok(all);
        }
    }
}

/// Ends what dead incarnations had begun, `grace` after they were declared so; how many.
pub async fn interrupt(shared: &Shared, grace: Duration, now: Timestamp) -> Result<u64, Trouble> {
    let mut all = 0;
    loop {
        let rows = shared.tend.query(sql::INTERRUPTED, &[&grace.as_secs_f64(), &INTERRUPTED_AT_ONCE]).await?;
        if rows.is_empty() {
            return Ok(all);
        }
        let (mut ids, mut incarnations, mut started, mut forms) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for row in &rows {
            let (id, incarnation, created_at): (Uuid, i64, i64) = (row.get(0), row.get(1), row.get(2));
            let (released_at, began_at): (Option<i64>, i64) = (row.get(3), row.get(4));
            // Of a restored copy: it was called off before it began.
            let began_at = Some(began_at).filter(|at| *at >= 0);
            ids.push(id);
            incarnations.push(incarnation);
            started.push(began_at);
            forms.push(wire::ended(&end_of(id, created_at, released_at, began_at, view::interrupted(), now)).0);
        }
        let outcome = i16::from(wire::outcome_number(Ended::because(view::interrupted()).outcome));
        let (code, at) = (i16::from(wire::code_number(Code::Interrupted)), wire::nanoseconds(now));
        let ended = shared
            .tend
            .query(sql::END_INTERRUPTED, &[&ids, &incarnations, &started, &forms, &outcome, &code, &at])
            .await?;
        all += ended.len() as u64;
        shared.tell_closed(ended.iter().map(|row| StoreEnd {
            id: SendId(row.get(0)),
            tenant: TenantId::new(row.get::<_, &str>(2)),
            code: Code::Interrupted,
            place: super::hot::place(row.get(1)),
        }));
        if (rows.len() as i64) < INTERRUPTED_AT_ONCE {
            return Ok(all);
        }
    }
}

/// What the others have come to, and the front of every queue. Of whom more waits than before.
async fn poll(shared: &Shared, incarnation: i64) -> Result<Vec<TenantId>, Trouble> {
    let rows = shared.tend.query(sql::TALLY, &[&incarnation]).await?;
    let others = tallies(&rows);
    let more = {
        // What was asked for an earlier life says nothing of this one.
        let life = locked(&shared.life);
        if life.as_ref().is_none_or(|life| life.session.incarnation() as i64 != incarnation) {
            return Ok(Vec::new());
        }
        shared.counts.set_others(others)
    };
    let fronts = shared.counts.fronts();
    let tenants = shared.counts.with_queue();
    if !tenants.is_empty() {
        let names: Vec<&str> = tenants.iter().map(TenantId::as_str).collect();
        let rows = shared.tend.query(sql::OLDEST, &[&names]).await?;
        let found = rows.iter().map(|row| (TenantId::new(row.get::<_, &str>(0)), row.get(1)));
        shared.counts.set_fronts(fronts, found);
    }
    Ok(more)
}

/// Wakes whoever waits for an end that another node wrote.
async fn tell_ends(shared: &Shared, from: &mut Option<i64>) -> Result<(), Trouble> {
    let Some(after) = *from else {
        *from = Some(shared.tend.one(sql::NEWEST, &[]).await?.get::<_, i64>(1) - 1);
        return Ok(());
    };
    let rows = shared.tend.query(sql::TAIL, &[&after, &ENDS_TOLD]).await?;
    if let Some(last) = rows.last() {
        *from = Some(last.get(1));
        let ends = rows.iter().map(|row| (SendId(row.get(0)), super::hot::place(row.get(1)))).collect();
        shared.tell(News::Ended(ends));
    }
    Ok(())
}
