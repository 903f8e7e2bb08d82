//! The store that many nodes share: PostgreSQL.
//!
//! ```text
//! accept ─ send ─┬─ live, begun ──────────────┐
//!                ├─ live, claimed ──────begin─┼─ finish: live's row goes, done's comes
//!                ├─ live + queue ─claim─┘     │
//!                └─ live, held ─end_execution─┘
//! ```
//!
//! `send` and `done` are written once each, by day; what changes in between is one narrow row of `live`, and `queue`
//! has what is nobody's. Events are in no queue and have no claim: who gathers them is in a column of their own, and once
//! their batch is closed it is the batch that is somebody's ([`batches`]). Statements are in [`sql`], the schema beside it; the hot ones are made for many callers at once
//! ([`hot`]), the others are in [`wait`] and [`read`]. A node's life is in [`life`].
//!
//! Once-only rests on three things, each tested on the row that it changes. A send is begun by one `UPDATE` of its
//! row, which takes in who has claimed it. The node's own row is locked before, so that it is not declared dead, nor a
//! suspension made, between the look and the commit. And the lease is over by the database's clock alone.

mod address;
mod batches;
mod counts;
mod executions;
mod forms;
mod hot;
mod life;
mod link;
mod measures;
mod read;
mod registry;
mod schema;
mod shares;
mod sql;
mod stats;
#[cfg(test)]
mod tests;
mod tunnels;
mod turns;
mod wait;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{Notify, RwLock, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use self::counts::{Counts, Tally};
use self::forms::Columns;
use self::hot::{AcceptJob, BeginJob, EndJob, HotJob};
use self::life::Life;
pub use self::link::Address;
use self::link::{Link, Trouble};
use self::shares::Shares;
use self::turns::{Turn, Turns};
use super::embedded::seal::Keys;
use super::stats::{Stats, StatsAsked};
use super::{
    Accept, Accepted, Batches, Begin, Claimed, Ending, ExecutionAnswer, ExecutionEnd, ExecutionFilter, ExecutionPage,
    Filter, IdempotencyKey, Left, NewSend, News, NodeLoad, NodeSeen, OnceOnly, Opened, Page, Pending, Published, Reach,
    Records, Recovered, Registry, Released, Session, Started, StoreEnd, StoreError, StoreResult, Suspension,
    SweepPlace, Swept, TailItem, TailPlace, TunnelFilter, TunnelPage, Tunnels, WaitingCount, Want,
};
use crate::clock;
use crate::outcome::Outcome;
use crate::policy::Suspensions;
use crate::record::{Batch, BatchId, Execution, Finished, Record, Tunnel};
use crate::redact::RedactKey;
use crate::send::{ExecutionId, Kind, SendId, SendSpec, TenantId};
use crate::source::{Neighbour, SourceTold};

/// How often what has to come is looked for again.
const POLL: Duration = Duration::from_millis(100);
/// Jobs that may wait for the next statement; more callers wait for their turn.
const JOBS_MAX: usize = 8 * 1024;
/// News that may wait to be taken: what is lost of it is seen at the next look.
const NEWS_MAX: usize = 1024;
/// Connections that every node has: accepts and begins, large calls, ends, the lease, what it tends, what it looks up, the
/// schema.
const CONNECTIONS_OF_OWN: usize = 7;
/// A call of more bytes than this is made alone, one at a time, on a connection of its own: whoever is behind it on another
/// would wait for all of it to be written.
const LARGE_BYTES: usize = 256 << 10;
/// Bytes of calls that stand in front of the connection of accepts: two statements' worth, one under way and the next. Each
/// send counts for its bytes and [`SEND_BYTES`].
const HOT_ROOM: usize = 2 * hot::BYTES_MAX;
/// The same for calls with keys and executions, each of which is a statement of its own.
const SLOW_ROOM: usize = 1 << 20;
const SEND_BYTES: usize = 2 << 10;
/// Fewest that make sense.
const CONNECTIONS_MIN: usize = crate::limits::POSTGRES_CONNECTIONS_MIN as usize;
const _: () = assert!(CONNECTIONS_MIN >= CONNECTIONS_OF_OWN + 2);

/// How a node uses the tier's database.
#[derive(Clone)]
pub struct Settings {
    pub key_file: PathBuf,
    pub connections: usize,
    pub lease: Duration,
    /// How long after a death what the dead had begun may still be on the wire.
    pub grace: Duration,
    /// How long a call that is to be accepted may wait for its answer.
    pub answer_within: Duration,
    /// How long one statement may take before the database gives it up.
    pub statement_within: Duration,
    pub retention: Duration,
    pub body_retention: Duration,
    /// One tenant's share, in bytes.
    pub tenant_max_bytes: u64,
    pub past: Past,
}

/// What the database is that a node starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// As the tier's nodes left it.
    Own,
    /// A copy of an earlier moment, and the first node on it: what waits in it may have been made since. All of it ends
    /// `interrupted`, and no other node goes on with it.
    Restored,
}

struct Shared {
    address: Arc<Address>,
    settings: Settings,
    keys: Keys,
    hot: Link,
    /// Of calls that are more than [`LARGE_BYTES`].
    large: Link,
    ends: Link,
    lease: Link,
    tend: Link,
    admin: Link,
    /// What is looked up by its key, or is little: nobody waits for it behind a list.
    look: Link,
    slow: Vec<Link>,
    hot_turns: Turns,
    slow_turns: Turns,
    large_turns: Turns,
    lists: Vec<Link>,
    list_turns: Turns,
    turn: AtomicUsize,
    life: Mutex<Option<Life>>,
    /// The version of the suspensions that are in force here, and of those that were read last.
    loaded: watch::Sender<i64>,
    read: AtomicI64,
    counts: Counts,
    shares: Shares,
    load: Mutex<NodeLoad>,
    /// Read by whatever changes counts, until it has its answer and has counted it; written to count anew.
    counting: RwLock<()>,
    /// An answer was lost that told how counts have changed.
    uncounted: Notify,
    /// What this session has claimed and knows of.
    claimed: Mutex<HashSet<uuid::Uuid>>,
    /// What it has begun and somebody here is to end.
    begun: Mutex<HashSet<uuid::Uuid>>,
    /// Batches that it knows to be its own.
    batches: Mutex<HashSet<BatchId>>,
    /// The answer to a claim was lost.
    strays: Notify,
    end_jobs: mpsc::Sender<EndJob>,
    news: mpsc::Sender<News>,
    /// Until somebody takes it.
    news_taken: Mutex<Option<mpsc::Receiver<News>>>,
    /// Why nothing can be written at the moment.
    failing: Mutex<Option<StoreError>>,
    closed: AtomicBool,
    /// Unless a test has it frozen, or wants to see what `recover` does.
    renews: AtomicBool,
    interrupts: AtomicBool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn crowded() -> StoreError {
    StoreError::CannotWrite("too many calls wait for the database: try again".into())
}

fn closed() -> StoreError {
    StoreError::CannotWrite("it is closed".into())
}

/// About what these sends will be counted for, from what they take in memory.
fn kept_bytes(sends: &[NewSend]) -> u64 {
    let bytes = |send: &NewSend| shares::SEND_BYTES.saturating_add(send.spec.footprint());
    sends.iter().map(bytes).fold(0, u64::saturating_add)
}

impl Shared {
    fn next<'a>(&self, of: &'a [Link]) -> &'a Link {
        &of[self.turn.fetch_add(1, Ordering::Relaxed) % of.len()]
    }

    /// One that may wait for others' locks.
    fn slow(&self) -> &Link {
        self.next(&self.slow)
    }

    fn list(&self) -> &Link {
        self.next(&self.lists)
    }

    /// One statement of a list is behind one of each other tenant at most.
    async fn list_turn(&self, reach: &Reach) -> Turn {
        let of = reach.one().cloned().unwrap_or_else(|| TenantId::new(""));
        self.list_turns.take(&of, 1).await
    }

    fn open(&self) -> Result<(), StoreError> {
        if self.closed.load(Ordering::Acquire) { Err(closed()) } else { Ok(()) }
    }

    /// The session that is this process's now.
    fn session(&self) -> Option<Session> {
        locked(&self.life).as_ref().map(|life| life.session.clone())
    }

    /// Counted from the sending of the last renewal, the lease is not over.
    fn lease_holds(&self, by: &Session) -> bool {
        let life = locked(&self.life);
        let life = life.as_ref().filter(|life| life.session == *by);
        life.is_some_and(|life| clock::monotonic().duration_since(life.renewed) < self.settings.lease)
    }

    async fn standing(&self, link: &Link, by: &Session) -> Result<life::Standing, Trouble> {
        life::standing(link, by).await
    }

    async fn must_be_in_force(&self, by: &Session) -> Result<(), StoreError> {
        let standing = self.standing(self.slow(), by).await.map_err(|trouble| trouble.on_write())?;
        if standing.is_in_force() { Ok(()) } else { Err(standing.error(by)) }
    }

    /// What this did to the counts is not known here: they are asked for.
    fn uncounted<T>(&self, answer: Result<T, Trouble>) -> Result<T, Trouble> {
        if matches!(answer, Err(Trouble::Lost(_))) {
            self.uncounted.notify_one();
        }
        answer
    }

    fn count(&self, by: &Session, tenant: &TenantId, change: Tally) {
        self.count_of(by.incarnation() as i64, tenant, change);
    }

    /// What another session changed comes with the next look at the others.
    fn count_of(&self, incarnation: i64, tenant: &TenantId, change: Tally) {
        let life = locked(&self.life);
        if life.as_ref().is_some_and(|life| life.session.incarnation() as i64 == incarnation) {
            self.counts.add(tenant, change);
        }
    }

    fn tell(&self, news: News) {
        let _ = self.news.try_send(news);
    }

    /// Ends that this node gave beside its calls: nobody else counts them.
    fn tell_closed(&self, ends: impl Iterator<Item = StoreEnd>) {
        let ends: Vec<StoreEnd> = ends.collect();
        if !ends.is_empty() {
            self.tell(News::Closed(ends));
        }
    }

    fn tell_suspensions(&self, newest: i64) {
        if newest != *self.loaded.borrow() {
            self.tell(News::Suspensions);
        }
    }

    fn tell_fenced(&self, by: &Session) {
        tracing::error!(session = %by, "this node was taken for dead, or another has its name");
        self.tell(News::Fenced);
    }

    fn set_failing(&self, why: Option<StoreError>) {
        let mut failing = locked(&self.failing);
        match (&*failing, &why) {
            (None, Some(why)) => tracing::error!(%why, "the database takes nothing"),
            (Some(_), None) => tracing::info!("the database is back"),
            _ => {}
        }
        *failing = why;
    }

    async fn finish(&self, by: &Session, finished: Finished) -> Result<TailPlace, StoreError> {
        self.open()?;
        let id = finished.id.0;
        let (answer, said) = oneshot::channel();
        let job = EndJob { by: by.clone(), finished, answer };
        self.end_jobs.send(job).await.map_err(|_| closed())?;
        let said = said.await.unwrap_or_else(|_| Err(closed()));
        if said.is_ok() {
            locked(&self.claimed).remove(&id);
        }
        if matches!(said, Ok(_) | Err(StoreError::NoSuchSend)) {
            locked(&self.begun).remove(&id);
        }
        said
    }
}

/// Sends remembered in a database that other nodes use as well.
pub struct Postgres {
    shared: Arc<Shared>,
    hot_jobs: mpsc::Sender<HotJob>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Postgres {
    /// Connects, and makes the schema or brings it forward. To be called within the runtime that it is used in.
    pub async fn open(address: Address, settings: Settings) -> Result<Self, StoreError> {
        let address = Arc::new(address);
        let within = settings.statement_within;
        let link = |name| Link::limited(address.clone(), name, within);
        // What is made of the schema takes what it takes.
        let admin = Link::new(address.clone(), "schema");
        life::follow_clock(&admin, &mut None).await.map_err(|trouble| trouble.on_start())?;
        // Only the first node of a tier makes a key: the others have the same.
        let load = |is_new| Keys::load(&settings.key_file, is_new);
        admin.open_first().await.map_err(|trouble| trouble.on_start())?;
        let keys = schema::bring_forward(&admin, &address.schema, settings.past, load).await?;
        schema::make_ahead(&admin, &address.schema, clock::wall()).await.map_err(|trouble| trouble.on_write())?;

        let rest = settings.connections.max(CONNECTIONS_MIN) - CONNECTIONS_OF_OWN;
        let lists = (rest / 2).max(1);
        let (hot_jobs, hot_taken) = mpsc::channel(JOBS_MAX);
        let (end_jobs, ends_taken) = mpsc::channel(JOBS_MAX);
        let (news, news_taken) = mpsc::channel(NEWS_MAX);
        let shared = Arc::new(Shared {
            keys,
            hot: link("hot"),
            large: Link::limited(address.clone(), "large", 3 * within),
            hot_turns: Turns::new(HOT_ROOM),
            slow_turns: Turns::new(SLOW_ROOM),
            large_turns: Turns::new(1),
            ends: link("ends"),
            // It may be tried again before the lease is over.
            lease: Link::limited(address.clone(), "lease", within.min(settings.lease / 3)),
            tend: link("tend"),
            admin,
            slow: (0..rest.div_ceil(2)).map(|_| link("calls")).collect(),
            look: link("look"),
            lists: (0..lists).map(|_| link("lists")).collect(),
            list_turns: Turns::new(lists),
            address,
            turn: AtomicUsize::new(0),
            life: Mutex::default(),
            loaded: watch::Sender::new(0),
            read: AtomicI64::new(0),
            counts: Counts::default(),
            shares: Shares::of(settings.tenant_max_bytes),
            settings,
            load: Mutex::default(),
            counting: RwLock::default(),
            uncounted: Notify::new(),
            claimed: Mutex::default(),
            begun: Mutex::default(),
            batches: Mutex::default(),
            strays: Notify::new(),
            end_jobs,
            news,
            news_taken: Mutex::new(Some(news_taken)),
            failing: Mutex::default(),
            closed: AtomicBool::new(false),
            renews: AtomicBool::new(true),
            interrupts: AtomicBool::new(true),
        });
        measures::describe();
        // Before anybody calls.
        let own = [&shared.hot, &shared.large, &shared.ends, &shared.lease, &shared.tend, &shared.look];
        let links = own.into_iter().chain(&shared.slow).chain(&shared.lists);
        let opened = futures_util::future::try_join_all(links.map(Link::open_first)).await;
        opened.map_err(|trouble| trouble.on_start())?;
        let tasks = vec![
            tokio::spawn(hot::accept_and_begin(shared.clone(), hot_taken)),
            tokio::spawn(hot::finish(shared.clone(), ends_taken)),
            tokio::spawn(life::renew(shared.clone())),
            tokio::spawn(life::tend(shared.clone())),
            tokio::spawn(registry::watch(shared.clone())),
            tokio::spawn(life::give_back_strays(shared.clone())),
            tokio::spawn(life::count_anew(shared.clone())),
        ];
        Ok(Self { shared, hot_jobs, tasks: Mutex::new(tasks) })
    }

    /// Whether [`Self::open`] would find a tier that it can be a node of, or could make one. Changes nothing.
    pub async fn check(address: Address, settings: &Settings) -> Result<(), StoreError> {
        let address = Arc::new(address);
        let link = Link::new(address.clone(), "check");
        match schema::key_check(&link, &address.schema).await? {
            Some(check) if Keys::load(&settings.key_file, false)?.check()[..] == check[..] => Ok(()),
            Some(_) => Err(schema::another_key()),
            None => schema::may_be_made(&link, &address.schema).await,
        }
    }

    #[cfg(test)]
    fn stop_renewing(&self) {
        self.shared.renews.store(false, Ordering::Relaxed);
    }

    #[cfg(test)]
    fn renew_again(&self) {
        self.shared.renews.store(true, Ordering::Relaxed);
    }

    fn stop(&self) {
        for task in locked(&self.tasks).drain(..) {
            task.abort();
        }
    }

    /// The room that a call takes in front of its connection, and whether it is a large one. Until there is some it stays in
    /// the hands of its caller.
    async fn turn(&self, call: &Accept, needs_locks: bool) -> Result<(Turn, bool), StoreError> {
        let bytes = |send: &NewSend| SEND_BYTES + usize::try_from(send.spec.footprint()).unwrap_or(usize::MAX / 2);
        let weight = call.sends.iter().map(bytes).fold(0, usize::saturating_add);
        let is_large = weight - SEND_BYTES * call.sends.len() > LARGE_BYTES;
        let (turns, weight) = match (is_large, needs_locks) {
            (true, _) => (&self.shared.large_turns, 1),
            (false, true) => (&self.shared.slow_turns, weight),
            (false, false) => (&self.shared.hot_turns, weight),
        };
        tokio::select! {
            turn = turns.take(&call.tenant, weight) => Ok((turn, is_large)),
            () = tokio::time::sleep(self.shared.settings.answer_within) => Err(crowded()),
        }
    }

    async fn accept(&self, by: &Session, call: Accept) -> Result<Accepted, StoreError> {
        self.shared.open()?;
        let needs_locks =
            call.idempotency.is_some() || call.sends.iter().any(|send| send.spec.context.execution.is_some());
        if let Some(stored) = self.shared.shares.past(&call.tenant, kept_bytes(&call.sends)) {
            return self.past_share(call, stored).await;
        }
        let (turn, is_large) = self.turn(&call, needs_locks).await?;
        let mut columns = Columns::default();
        for send in &call.sends {
            columns.add(send, by.node(), call.hold.is_some(), &self.shared.keys)?;
        }
        let (answer, said) = oneshot::channel();
        let shared = self.shared.clone();
        if needs_locks {
            let by = by.clone();
            tokio::spawn(async move {
                wait::accept_call(shared, by, call, columns, is_large, answer).await;
                drop(turn);
            });
        } else {
            let job = AcceptJob { by: by.clone(), sends: call.sends, columns, answer, _turn: turn };
            if is_large {
                tokio::spawn(async move { hot::accept_large(&shared, job).await });
            } else {
                // Who waits for a place waits within the same time.
                tokio::select! {
                    sent = self.hot_jobs.send(HotJob::Accept(Box::new(job))) => sent.map_err(|_| closed())?,
                    () = tokio::time::sleep(shared.settings.answer_within) => return Err(crowded()),
                }
            }
        }
        wait::within(said, self.shared.settings.answer_within).await
    }

    /// A call that was accepted before is answered as it was then.
    async fn past_share(&self, call: Accept, stored: u64) -> Result<Accepted, StoreError> {
        if let Some(key) = call.idempotency {
            let now = call.sends.first().map_or_else(clock::wall, |send| send.created_at);
            if let Some(known) = wait::replay(&self.shared, key, now).await? {
                return Ok(known);
            }
        }
        Ok(Accepted::ShareFull { stored, share: self.shared.shares.share() })
    }

    async fn begin(&self, by: &Session, begins: Vec<Begin>) -> Result<Vec<Result<Started, StoreError>>, StoreError> {
        self.shared.open()?;
        let missing: Vec<SendId> = begins.iter().filter(|begin| begin.spec.is_none()).map(|begin| begin.id).collect();
        let mut read = read::specs(&self.shared, &missing).await?;
        let specs = begins.iter().map(|begin| match &begin.spec {
            Some(spec) => Ok(spec.clone()),
            None => read.get_mut(&begin.id.0).map_or(Err(StoreError::NoSuchSend), |spec| spec.clone()),
        });
        let specs = specs.collect();
        let ids: Vec<_> = begins.iter().map(|begin| begin.id.0).collect();
        let (answer, said) = oneshot::channel();
        let job = HotJob::Begin(BeginJob { by: by.clone(), begins, specs, answer });
        self.hot_jobs.send(job).await.map_err(|_| closed())?;
        let answers = said.await.unwrap_or_else(|_| Err(closed()))?;
        let mut claimed = locked(&self.shared.claimed);
        for (id, answer) in ids.iter().zip(&answers) {
            if matches!(answer, Ok(_) | Err(StoreError::NoSuchSend)) {
                claimed.remove(id);
            }
        }
        drop(claimed);
        Ok(answers)
    }

    async fn recover(&self, by: &Session, now: Timestamp) -> Result<Recovered, StoreError> {
        self.shared.open()?;
        self.shared.must_be_in_force(by).await?;
        let interrupted = life::interrupt(&self.shared, self.shared.settings.grace, now).await;
        Ok(Recovered { interrupted: interrupted.map_err(|trouble| trouble.on_write())?, ..Recovered::default() })
    }

    async fn close(&self) -> Result<(), StoreError> {
        if self.shared.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let left = match self.shared.session() {
            // What it had claimed is the others' at once.
            Some(session) => life::leave(&self.shared, &session).await,
            None => Ok(()),
        };
        self.stop();
        left
    }
}

/// As a process that dies: nothing is handed over.
impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

impl OnceOnly for Postgres {
    fn join(&self, node: Arc<str>) -> StoreResult<'_, Session> {
        async move {
            self.shared.open()?;
            life::join(&self.shared, node).await
        }
        .boxed()
    }

    /// The `grace` after a death is waited for by [`life::tend`]; what is past it ends here.
    fn recover<'a>(&'a self, by: &'a Session, now: Timestamp) -> StoreResult<'a, Recovered> {
        self.recover(by, now).boxed()
    }

    fn accept<'a>(&'a self, by: &'a Session, call: Accept) -> StoreResult<'a, Accepted> {
        self.accept(by, call).boxed()
    }

    fn replay(&self, key: IdempotencyKey, now: Timestamp) -> StoreResult<'_, Option<Accepted>> {
        wait::replay(&self.shared, key, now).boxed()
    }

    fn end_execution<'a>(
        &'a self,
        by: &'a Session,
        tenant: TenantId,
        execution: ExecutionId,
        ending: Ending,
        at: Timestamp,
    ) -> StoreResult<'a, ExecutionAnswer> {
        // To its end, also where the database goes away in the middle: its caller is told in time that it is not known.
        let (shared, by) = (self.shared.clone(), by.clone());
        let (answer, said) = oneshot::channel();
        async move {
            if let Some(stored) = shared.shares.past(&tenant, shares::SEND_BYTES)
                && !wait::is_known(&shared, &tenant, &execution).await?
            {
                // Nobody waits for it, so it is refused as a send would be.
                let end = ExecutionEnd::ShareFull { stored, share: shared.shares.share() };
                return Ok(ExecutionAnswer { end, ended: Vec::new() });
            }
            let most = shared.settings.answer_within;
            tokio::spawn(async move {
                let end = wait::end_execution(&shared, &by, tenant, execution, ending, at).await;
                let _ = answer.send(end);
            });
            wait::within(said, most).await
        }
        .boxed()
    }

    fn claim<'a>(&'a self, by: &'a Session, wants: Vec<Want>, limit: usize) -> StoreResult<'a, Claimed> {
        wait::claim(&self.shared, by, wants, limit).boxed()
    }

    fn give_back<'a>(&'a self, by: &'a Session, sends: Vec<SendId>) -> StoreResult<'a, ()> {
        wait::give_back(&self.shared, by, sends).boxed()
    }

    fn hand_over<'a>(&'a self, by: &'a Session, sends: Vec<SendId>, to: &'a Neighbour) -> StoreResult<'a, Vec<SendId>> {
        wait::hand_over(&self.shared, by, sends, to).boxed()
    }

    fn take_handed<'a>(&'a self, by: &'a Session) -> StoreResult<'a, Vec<Pending>> {
        wait::take_handed(&self.shared, by).boxed()
    }

    fn begin<'a>(&'a self, by: &'a Session, sends: Vec<Begin>) -> StoreResult<'a, Vec<Result<Started, StoreError>>> {
        self.begin(by, sends).boxed()
    }

    fn finish<'a>(&'a self, by: &'a Session, finished: Finished) -> StoreResult<'a, TailPlace> {
        self.shared.finish(by, finished).boxed()
    }

    fn release_overdue<'a>(
        &'a self,
        by: &'a Session,
        held_for: SignedDuration,
        now: Timestamp,
        limit: usize,
    ) -> StoreResult<'a, Released> {
        wait::release_overdue(&self.shared, by, held_for, now, limit).boxed()
    }

    fn expire<'a>(&'a self, by: &'a Session, now: Timestamp, limit: usize) -> StoreResult<'a, Swept> {
        wait::expire(&self.shared, by, now, limit).boxed()
    }

    fn end_suspended<'a>(
        &'a self,
        by: &'a Session,
        suspensions: Arc<Suspensions>,
        from: Option<SweepPlace>,
        now: Timestamp,
        limit: usize,
    ) -> StoreResult<'a, Swept> {
        async move { wait::end_suspended(&self.shared, by, &suspensions, from, now, limit).await }.boxed()
    }

    fn waiting_of(&self, tenant: &TenantId) -> WaitingCount {
        self.shared.counts.of(tenant)
    }

    fn waiting_in_all(&self) -> WaitingCount {
        self.shared.counts.in_all()
    }

    fn waiting(&self) -> Vec<(TenantId, WaitingCount)> {
        self.shared.counts.each()
    }
}

impl Records for Postgres {
    fn record(&self, reach: Reach, id: SendId, bodies: bool) -> StoreResult<'_, Option<Record>> {
        async move {
            let record = read::records(&self.shared.look, &[id.0], bodies).await?.pop();
            Ok(record.filter(|record| reach.takes_in(&record.tenant)))
        }
        .boxed()
    }

    fn list(&self, filter: Filter, cursor: Option<String>, limit: usize) -> StoreResult<'_, Page> {
        read::list(&self.shared, filter, cursor, limit).boxed()
    }

    fn execution(
        &self,
        tenant: TenantId,
        execution: ExecutionId,
        cursor: Option<String>,
        limit: usize,
    ) -> StoreResult<'_, Option<Execution>> {
        read::execution(&self.shared, tenant, execution, cursor, limit).boxed()
    }

    fn executions(
        &self,
        filter: ExecutionFilter,
        cursor: Option<String>,
        limit: usize,
    ) -> StoreResult<'_, ExecutionPage> {
        executions::list(&self.shared, filter, cursor, limit).boxed()
    }

    fn finished_after(
        &self,
        place: TailPlace,
        filter: Filter,
        limit: usize,
    ) -> StoreResult<'_, (Vec<TailItem>, TailPlace)> {
        read::finished_after(&self.shared, place, filter, limit).boxed()
    }

    fn done_among(&self, ids: Vec<SendId>) -> StoreResult<'_, Vec<SendId>> {
        read::done_among(&self.shared, ids).boxed()
    }

    fn newest_place(&self) -> StoreResult<'_, TailPlace> {
        read::newest_place(&self.shared).boxed()
    }

    fn outcomes_of_the_hour(&self, now: Timestamp) -> StoreResult<'_, HashMap<TenantId, HashMap<Outcome, u64>>> {
        read::outcomes_of_the_hour(&self.shared, now).boxed()
    }

    fn stats(&self, asked: StatsAsked) -> StoreResult<'_, Stats> {
        stats::stats(&self.shared, asked).boxed()
    }

    fn retain(&self, now: Timestamp) -> StoreResult<'_, ()> {
        read::retain(&self.shared, now).boxed()
    }

    fn health(&self) -> Result<(), StoreError> {
        self.shared.open()?;
        locked(&self.shared.failing).clone().map_or(Ok(()), Err)
    }

    fn damage(&self) -> Vec<String> {
        Vec::new()
    }

    fn close(&self) -> StoreResult<'_, ()> {
        self.close().boxed()
    }
}

impl Tunnels for Postgres {
    fn note_tunnels(&self, tunnels: Vec<Arc<Tunnel>>) -> StoreResult<'_, ()> {
        tunnels::note(&self.shared, tunnels).boxed()
    }

    fn tunnels(&self, filter: TunnelFilter, cursor: Option<String>, limit: usize) -> StoreResult<'_, TunnelPage> {
        tunnels::list(&self.shared, filter, cursor, limit).boxed()
    }

    fn end_tunnels_left_open<'a>(&'a self, node: &'a str, now: Timestamp) -> StoreResult<'a, u64> {
        tunnels::end_left_open(&self.shared, node, now).boxed()
    }
}

impl Batches for Postgres {
    fn note_gathering<'a>(&'a self, by: &'a Session, opened: Vec<Opened>) -> StoreResult<'a, ()> {
        batches::note(&self.shared, by, opened).boxed()
    }

    fn forget_gathering<'a>(&'a self, by: &'a Session, ids: Vec<BatchId>) -> StoreResult<'a, ()> {
        batches::forget(&self.shared, by, ids).boxed()
    }

    fn close_batch<'a>(&'a self, by: &'a Session, batch: Arc<Batch>, grace: Duration) -> StoreResult<'a, Vec<SendId>> {
        batches::close(&self.shared, by, batch, grace).boxed()
    }

    fn put_batch<'a>(&'a self, by: &'a Session, batch: Arc<Batch>) -> StoreResult<'a, ()> {
        batches::put(&self.shared, by, batch).boxed()
    }

    fn may_carry<'a>(&'a self, by: &'a Session, id: BatchId) -> StoreResult<'a, ()> {
        batches::may_carry(&self.shared, by, id).boxed()
    }

    fn hand_batch<'a>(&'a self, by: &'a Session, id: BatchId, to: &'a Neighbour) -> StoreResult<'a, bool> {
        batches::hand(&self.shared, by, id, to).boxed()
    }

    fn take_left<'a>(&'a self, by: &'a Session, kinds: Vec<Kind>) -> StoreResult<'a, Left> {
        batches::take_left(&self.shared, by, kinds).boxed()
    }

    fn batch(&self, reach: Reach, id: BatchId) -> StoreResult<'_, Option<Batch>> {
        batches::find(&self.shared, reach, id).boxed()
    }

    fn gathering(&self, reach: Reach, id: BatchId) -> StoreResult<'_, Option<(Batch, u64)>> {
        batches::gathering(&self.shared, reach, id).boxed()
    }

    fn open_batches(&self) -> StoreResult<'_, Vec<Batch>> {
        batches::open(&self.shared).boxed()
    }

    fn specs(&self, sends: Vec<SendId>) -> StoreResult<'_, Vec<Option<Arc<SendSpec>>>> {
        batches::specs(&self.shared, sends).boxed()
    }
}

impl Registry for Postgres {
    fn redact_key(&self) -> RedactKey {
        self.shared.keys.redact_key()
    }

    fn suspend(&self, suspension: Suspension) -> StoreResult<'_, ()> {
        registry::suspend(&self.shared, suspension).boxed()
    }

    fn lift(&self, id: SendId, at: Timestamp, by: String) -> StoreResult<'_, bool> {
        registry::lift(&self.shared, id, at, by).boxed()
    }

    fn suspensions(&self) -> StoreResult<'_, Vec<Suspension>> {
        registry::suspensions(&self.shared).boxed()
    }

    fn suspensions_loaded(&self) {
        self.shared.loaded.send_replace(self.shared.read.load(Ordering::Acquire));
    }

    fn nodes(&self) -> StoreResult<'_, Vec<NodeSeen>> {
        registry::nodes(&self.shared).boxed()
    }

    fn tell_load(&self, load: NodeLoad) {
        *locked(&self.shared.load) = load;
    }

    fn hold_sources<'a>(&'a self, by: &'a Session, addresses: Vec<IpAddr>) -> StoreResult<'a, HashMap<IpAddr, String>> {
        registry::hold_sources(&self.shared, by, addresses).boxed()
    }

    fn news(&self) -> Option<mpsc::Receiver<News>> {
        locked(&self.shared.news_taken).take()
    }

    fn tell_sources<'a>(&'a self, by: &'a Session, sources: Vec<SourceTold>) -> StoreResult<'a, Vec<Neighbour>> {
        registry::tell_sources(&self.shared, by, sources).boxed()
    }

    fn publish(&self, addresses: Vec<IpAddr>, digest: Option<[u8; 32]>, now: Timestamp) -> StoreResult<'_, Published> {
        registry::publish(&self.shared, addresses, digest, now).boxed()
    }
}
