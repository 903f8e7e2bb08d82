//! The embedded store: append-only logs as the truth, small tables made from them, one writer.
//!
//! ```text
//! <path>/lock            which process has it open
//! <path>/format          the format's version
//! <path>/state           suspensions, first publications (state)
//! <path>/pieces/<n>/     a stretch of time, dropped as a whole (segment; the directory has the name of format 1)
//! <path>/tunnels/        tunnels of the forward proxy, in a log of their own ([`tunnels`])
//! <path>/batches/        batches of events, each in a file ([`batches`])
//! ```
//!
//! Every change is a frame in the newest segment's log ([`frame`], [`entry`]). One thread writes ([`writer`]): what has
//! arrived goes to disk in one write and one sync (and one of each before it for bodies), and only then do the tables
//! that readers look at change, and the callers get their answers. So a crash loses nothing that was answered for,
//! and whatever a replay of the logs finds ([`replay`]) is the state: no second place can disagree. A call's sends
//! count once the last of them is there, so a call is accepted whole or not at all.
//!
//! Readers ([`read`]) work beside the writer on files that only grow, and on rows under a lock held for one read.
//! Lists ([`list`]) know from an [`index`] which rows have what is asked for, and read those alone; which segments have
//! an execution or a key is known for all of them at once ([`segments`]).
//!
//! Rows know tenants, and all that filters ask for, by short hashes, which two of them may share. Whoever decides by one
//! asks a name or a longer hash ([`hashes`]).
//!
//! What waits is known in memory by 16 bytes each ([`waiting`]); its rows and frames are read when it is claimed or
//! swept ([`claim`]).
//!
//! What records never show is only ever written sealed ([`seal`]). Retention ([`retain`]) drops segments.

mod batches;
mod bloom;
mod checkpoint;
mod claim;
mod copy;
mod doubt;
mod entry;
mod executions;
mod files;
mod frame;
mod hashes;
mod hour;
mod index;
mod list;
mod mend;
mod once;
mod opening;
mod read;
mod rebuild;
mod remembered;
mod replay;
mod retain;
pub(in crate::store) mod seal;
mod segment;
mod segments;
mod span;
mod state;
mod stats;
mod table;
#[cfg(test)]
mod tests;
mod tunnels;
mod waiting;
mod writer;
mod zone_map;

use std::{
    collections::{HashMap, HashSet},
    fs,
    hash::{BuildHasher, RandomState},
    io::{self, Read, Write},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use futures_util::FutureExt;
use jiff::{SignedDuration, Timestamp};
use nix::fcntl::{Flock, FlockArg};
use tokio::sync::{Semaphore, oneshot};

use self::claim::ToEnd;
use self::files::Link;
use self::hashes::{ExecutionHash, TenantHash};
use self::hour::Hour;
use self::seal::{Asked, Keys};
use self::segment::Segment;
use self::segments::Segments;
use self::state::State;
use self::table::Row;
use self::waiting::{Counted, Waiting};
use self::writer::{AcceptJob, AcceptedJob, BeginJob, EndJob, FinishJob, Job, SendAt, StoreEndJob};
use super::stats::{Stats, StatsAsked};
use super::view::{self, Standing};
use super::{
    Accept, Accepted, Batches, Begin, Claimed, Course, Ending, ExecutionAnswer, ExecutionEnd, ExecutionFilter,
    ExecutionPage, Filter, IdempotencyKey, NoRoom, OnceOnly, Page, Published, Reach, Records, Recovered, Registry,
    Released, Session, Started, StoreEnd, StoreError, StoreResult, Suspension, SweepPlace, Swept, TailItem, TailPlace,
    TunnelFilter, TunnelPage, Tunnels, WaitingCount, Want, Why, wire,
};
use crate::config::StoreSettings;
use crate::limits::INLINE_BYTES;
use crate::outcome::{Code, Outcome, Processed};
use crate::policy::{Destination, Host, Suspensions};
use crate::record::{Batch, BatchId, BatchState, Execution, Finished, FinishedBy, InBatch, Record, Tunnel};
use crate::redact::RedactKey;
use crate::send::{ExecutionId, SendId, SendSpec, TenantId};

/// Jobs that may wait for the writer; more callers wait for their turn.
const JOBS_MAX: usize = 32 * 1024;

/// Ends that the store gives by itself, in one go of the writer's.
const STORE_ENDS_AT_ONCE: usize = 256;

/// Damaged places that are remembered and told of; what lies beyond is met when it is read.
const DAMAGE_MAX: usize = 256;

/// When the newest segment makes room for another.
#[derive(Clone, Copy, Debug)]
pub struct SegmentLimits {
    pub sends: u32,
    pub log_bytes: u64,
    pub bodies_bytes: u64,
    pub age: Duration,
    /// With as many segments, neither bodies nor age ask for another.
    pub many: usize,
}

impl SegmentLimits {
    /// A segment holds at most a small part of what may be kept, so that dropping one is dropping little.
    fn of(settings: &StoreSettings) -> Self {
        Self {
            sends: 128 * 1024,
            log_bytes: (settings.max_bytes / 16).clamp(64 << 10, 128 << 20),
            bodies_bytes: (settings.body_max_bytes / 16).clamp(64 << 10, 1 << 30),
            age: Duration::from_secs(24 * 3600).min(settings.body_retention / 4).max(Duration::from_secs(60)),
            many: 1024,
        }
    }
}

/// What the writer, the readers and the checkpointer share.
struct Shared {
    root: PathBuf,
    node: Arc<str>,
    waiting: Mutex<Waiting>,
    /// Bytes that each tenant has stored.
    stored: Mutex<HashMap<TenantHash, u64>>,
    hour: Hour,
    /// Directories of dropped segments, to be removed beside the writer.
    gone: Mutex<Vec<PathBuf>>,
    /// Held by who gives released sends their places in line.
    lining_up: Mutex<()>,
    /// Read while rows are looked at whose places are in no line: none is moved on meanwhile.
    places: RwLock<()>,
    hasher: RandomState,
    keys: Keys,
    settings: StoreSettings,
    limits: SegmentLimits,
    /// Which segments there are is the writer's to say alone.
    segments: RwLock<Arc<Segments>>,
    /// Of the newest finish that is durable.
    last_seq: AtomicU64,
    /// Why nothing can be written at the moment.
    failing: Mutex<Option<String>>,
    /// The tables lag behind what was answered for, because the disk does not take them.
    in_debt: AtomicBool,
    closed: AtomicBool,
    state: Mutex<State>,
    /// Sends that wait, and that may have been made by what is lost. They wait for their end alone.
    doubted: Mutex<HashSet<u128>>,
    /// Events of batches that an earlier process closed, until these are done: they end with these, and by no sweep.
    batched: Mutex<HashMap<u128, InBatch>>,
    /// What was found unreadable since the store was opened.
    damage: Mutex<Vec<String>>,
    /// Ends that the store has given, and whose caller has heard of an error instead.
    untold: Mutex<Vec<StoreEnd>>,
    faults: Faults,
    /// Of the directory and the lock: what is written elsewhere does not last.
    links: Vec<Link>,
    copy: copy::Copy,
    tunnels: tunnels::Log,
    batches: batches::Files,
}

/// The places where a disk may refuse, for tests to refuse in its stead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Write,
    Sync,
    /// Tables, which no answer waits for.
    Table,
    /// Making the name of a new segment durable.
    Name,
}

/// Which places refuse at the moment; none outside of tests.
#[derive(Default)]
struct Faults {
    #[cfg(test)]
    refusing: Mutex<Vec<(Fault, io::ErrorKind)>>,
}

impl Faults {
    #[cfg(test)]
    fn pass(&self, place: Fault) -> io::Result<()> {
        let refusing = locked(&self.refusing);
        let refuse = refusing.iter().find(|(refused, _)| *refused == place);
        refuse.map_or(Ok(()), |(_, kind)| Err(io::Error::from(*kind)))
    }

    #[cfg(not(test))]
    fn pass(&self, _place: Fault) -> io::Result<()> {
        Ok(())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn segments(&self) -> Arc<Segments> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace_segments(&self, segments: Vec<Arc<Segment>>) {
        let mut before = self.segments.write().unwrap_or_else(PoisonError::into_inner);
        *before = Arc::new(Segments::of(segments, &before));
    }

    fn segment(&self, number: u32) -> Option<Arc<Segment>> {
        let segments = self.segments();
        let at = segments.binary_search_by_key(&number, |segment| segment.number).ok()?;
        Some(segments[at].clone())
    }

    fn segments_directory(&self) -> PathBuf {
        self.root.join("pieces")
    }

    fn state_path(&self) -> PathBuf {
        self.root.join("state")
    }

    fn bytes(&self) -> (u64, u64) {
        let each = self.segments().iter().map(|segment| segment.bytes()).collect::<Vec<_>>();
        each.into_iter().fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
    }

    fn set_failing(&self, why: Option<String>) {
        *locked(&self.failing) = why;
    }

    fn health(&self) -> Result<(), StoreError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(closed());
        }
        match &*locked(&self.failing) {
            Some(why) => Err(StoreError::CannotWrite(why.clone().into())),
            None => Ok(()),
        }
    }

    /// `Err` while the tables lag behind what was answered for, so that nobody takes them for all there is.
    fn free_of_debt(&self) -> Result<(), StoreError> {
        if !self.in_debt.load(Ordering::Acquire) {
            return Ok(());
        }
        self.health()?;
        Err(StoreError::CannotWrite("its tables lag behind its log: try again".into()))
    }

    /// Remembers and logs what is unreadable, each place once.
    fn tell_damage(&self, what: String) {
        let mut damage = locked(&self.damage);
        if damage.len() < DAMAGE_MAX && !damage.contains(&what) {
            tracing::error!(what, "the store is damaged");
            damage.push(what);
        }
    }

    /// The end of one whose content is lost.
    fn unreadable(&self, standing: Standing, id: SendId, now: Timestamp) -> Finished {
        let batch = locked(&self.batched).get(&id.0.as_u128()).copied();
        let why = view::unreadable(batch.map_or(Processed::No, |batch| batch.taken));
        Finished { batch, ..standing.end(id, why, now) }
    }

    /// What cannot be read costs nobody else anything: it is told, and tried again later.
    fn tell_unread(&self, error: &StoreError) {
        match error {
            StoreError::CannotRead(_) | StoreError::Damaged(_) => self.tell_damage(error.to_string()),
            other => tracing::warn!(error = %other, "some of what waits is not looked at yet"),
        }
    }

    /// A row, or nothing where it is damaged: that is told, and the next start has it again.
    fn sound_row(&self, segment: &Segment, number: u32) -> Result<Option<Row>, StoreError> {
        match segment.row(number) {
            Ok(row) => Ok(Some(row)),
            Err(StoreError::Damaged(why)) => {
                segment.distrust();
                self.tell_damage(why.to_string());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Changes the small state, durably; on an error it is what it was. What is asked often and changes rarely is
    /// written only where it changed.
    fn change_state<T>(&self, change: impl FnOnce(&mut State) -> T) -> Result<T, StoreError> {
        let mut state = locked(&self.state);
        let mut changed = state.clone();
        let answer = change(&mut changed);
        changed.trim();
        if changed != *state {
            changed.save(&self.state_path()).map_err(|error| cannot_write(&self.state_path(), error))?;
            *state = changed;
        }
        Ok(answer)
    }
}

fn closed() -> StoreError {
    StoreError::CannotWrite("it is closed".into())
}

/// Says what failed, and what the operator may do about it.
fn cannot_write(path: &Path, error: io::Error) -> StoreError {
    let fix = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free some space on its file system, or lower `[store] max_bytes`"
        }
        io::ErrorKind::ReadOnlyFilesystem => "find out why its file system turned read-only, and mount it writable",
        io::ErrorKind::PermissionDenied => "let the user who runs egressd write there",
        _ => "look at the disk and the kernel's log",
    };
    StoreError::CannotWrite(Why::by(format!("{}: {error}: {fix}", path.display()), error))
}

/// What stands in the way of a store with this path and key file, as far as can be seen without opening or making it,
/// by the key of the configuration.
pub fn hindrances(path: &Path, key_file: &Path) -> Vec<(&'static str, StoreError)> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let no_directory = absolute.ancestors().find(|above| above.exists()).filter(|above| !above.is_dir());
    let place = no_directory.map(|file| StoreError::CannotWrite(format!("{} is no directory", file.display()).into()));
    let key = Keys::look_at(key_file, path).err();
    [place.map(|error| ("store.path", error)), key.map(|error| ("store.key_file", error))]
        .into_iter()
        .flatten()
        .collect()
}

/// What the store at this path remembers of publications, read beside whoever has it open. `None`: nothing yet, or
/// nothing that this process may read.
pub fn published(path: &Path) -> Option<Published> {
    State::load(&path.join("state")).ok().flatten().map(|state| state.published)
}

/// Sends remembered on disk. One process at a time has a store's path open.
pub struct Embedded {
    shared: Arc<Shared>,
    jobs: std::sync::mpsc::Sender<Job>,
    room: Arc<Semaphore>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    lock: Mutex<Option<Lock>>,
}

impl Embedded {
    /// As [`Self::open`], of a store that is a copy of an earlier moment: [`copy`] says what becomes of it.
    pub fn open_copy(settings: &StoreSettings, node: &str) -> Result<Self, StoreError> {
        Self::open_as(settings, node, SegmentLimits::of(settings), true)
    }

    /// Opens the store, or makes it at the first start. Reads what the last process left; nothing is delivered,
    /// interrupted or discarded before `recover`.
    pub fn open(settings: &StoreSettings, node: &str) -> Result<Self, StoreError> {
        Self::open_with(settings, node, SegmentLimits::of(settings))
    }

    fn open_with(settings: &StoreSettings, node: &str, limits: SegmentLimits) -> Result<Self, StoreError> {
        Self::open_as(settings, node, limits, false)
    }

    fn open_as(settings: &StoreSettings, node: &str, limits: SegmentLimits, is_copy: bool) -> Result<Self, StoreError> {
        let root = settings.path.clone();
        files::make_directory(&root).map_err(|error| cannot_write(&root, error))?;
        let lock = Lock::take(&root)?;
        let (narrowed, failed) = files::narrow(&root);
        if let Some(first) = narrowed.first() {
            let (first, paths) = (first.display(), narrowed.len());
            tracing::warn!(%first, paths, "others than the owner could use the store's files: their modes are narrowed");
        }
        if let Some((path, error)) = failed.first() {
            let (path, paths) = (path.display(), failed.len());
            tracing::warn!(%path, paths, %error, "others than the owner can use the store's files: chmod them to 0600 and 0700");
        }
        let copy = copy::Copy::of(&root, is_copy)?;
        state::check_format(&root)?;
        let segments = root.join("pieces");
        files::make_directory(&segments).map_err(|error| cannot_write(&segments, error))?;
        let state_path = root.join("state");
        let state = State::load(&state_path)?;
        if state.is_none() && segment::are_in(&segments) {
            // Going on without it would lift every suspension, and let new addresses carry traffic without notice.
            return Err(StoreError::Damaged(
                format!(
                    "{} is missing beside sends: suspensions and the dates of first publication stood in it; restore it \
                     from a copy, or give this egressd another `[store] path`",
                    state_path.display()
                )
                .into(),
            ));
        }
        let keys = Keys::load(&settings.key_file, state.is_none())?;
        let state =
            match state {
                Some(state) if state.key_check == keys.check() => state,
                Some(_) => {
                    return Err(StoreError::CannotRead(format!(
                    "key file {} is not the one that the store at {} was made with: restore that one, or give this \
                     egressd another `[store] path`",
                    settings.key_file.display(),
                    root.display()
                ).into()));
                }
                None => {
                    let state = State { key_check: keys.check(), ..State::default() };
                    state.save(&state_path).map_err(|error| cannot_write(&state_path, error))?;
                    state
                }
            };
        let tunnels = tunnels::Log::open(&root, settings)?;
        let batches = batches::Files::open(&root, settings.retention)?;
        let (left_closed, _) = batches.unfinished()?;
        let batched =
            left_closed.iter().flat_map(|batch| batch.sends.iter().map(|send| (send.0.as_u128(), batch.named())));
        let shared = Arc::new(Shared {
            root,
            node: Arc::from(node),
            waiting: Mutex::default(),
            stored: Mutex::default(),
            hour: Hour::default(),
            gone: Mutex::default(),
            lining_up: Mutex::default(),
            places: RwLock::default(),
            hasher: RandomState::new(),
            keys,
            settings: settings.clone(),
            limits,
            segments: RwLock::default(),
            last_seq: AtomicU64::new(0),
            failing: Mutex::default(),
            in_debt: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            state: Mutex::new(state),
            doubted: Mutex::default(),
            batched: Mutex::new(batched.collect()),
            damage: Mutex::default(),
            untold: Mutex::default(),
            faults: Faults::default(),
            links: lock.links.clone(),
            copy,
            tunnels,
            batches,
        });
        let left_behind = replay::load(&shared)?;
        // Told at once, not only by the first call that it cannot take.
        if let Err(why) = writer::probe(&shared) {
            tracing::error!(why, "the store cannot write");
            shared.set_failing(Some(why));
        }
        let (jobs, threads) = writer::start(shared.clone(), left_behind).map_err(|error| {
            StoreError::CannotWrite(Why::by(
                format!("starting the store's threads: {error}: raise the limit on processes"),
                error,
            ))
        })?;
        Ok(Self {
            shared,
            jobs,
            room: Arc::new(Semaphore::new(JOBS_MAX)),
            threads: Mutex::new(threads),
            lock: Mutex::new(Some(lock)),
        })
    }

    /// Hands a job to the writer and waits for its answer.
    async fn ask<T: Send>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Job,
    ) -> Result<T, StoreError> {
        // The writer answers in the end whether or not the caller still waits; the permit bounds those who do.
        let _room = self.room.acquire().await.map_err(|_| closed())?;
        let (answer, answered) = oneshot::channel();
        self.jobs.send(job(answer)).map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }

    /// Runs what reads files where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Shared>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = self.shared.clone();
        if shared.closed.load(Ordering::Acquire) {
            return Err(closed());
        }
        let done = tokio::task::spawn_blocking(move || work(&shared)).await;
        done.map_err(|_| StoreError::CannotRead("a reading task did not come to its end".into()))?
    }
}

impl Shared {
    fn accept_job(&self, by: &Session, call: &Accept) -> Result<AcceptJob, StoreError> {
        let keys = &self.keys;
        let kept = call.idempotency.as_ref().map(|key| {
            let fingerprint = keys.fingerprint(&key.fingerprint);
            IdempotencyKey { fingerprint, ..key.clone() }
        });
        let key = kept.as_ref();
        let count = u32::try_from(call.sends.len()).unwrap_or(u32::MAX);
        let mut sends = Vec::with_capacity(call.sends.len());
        for (at, new) in call.sends.iter().enumerate() {
            let key = key.filter(|_| at == 0).map(|key| (key, count));
            let parts = wire::accepted(new, by.node(), call.hold.is_some(), key);
            let (rest, slot) = match parts.rest {
                Some(mut rest) => {
                    let slot = keys.seal(new.id, &mut rest)?;
                    (Some(rest), Some(slot))
                }
                None => (None, None),
            };
            let context = &new.spec.context;
            let short = |asked, text: Option<&str>| text.map_or(0, |text| keys.short(asked, text));
            let host = new.spec.destination().map_or(0, |to| match &to.host {
                Host::Name(name) => keys.short(Asked::Host, name),
                Host::Address(address) => keys.short(Asked::Host, &address.to_string()),
            });
            let tenant = keys.tenant(new.tenant.as_str());
            let execution = |execution: &ExecutionId| keys.execution(new.tenant.as_str(), execution.as_str()).hash;
            let row = table::Row {
                id: new.id.0.as_u128(),
                created_at: wire::nanoseconds(new.created_at),
                execution: context.execution.as_ref().map_or(0, execution),
                tenant: tenant.short(),
                workflow: short(Asked::Workflow, context.workflow.as_deref()),
                step: short(Asked::Step, context.step.as_deref()),
                host,
                outcome: table::NONE,
                code: table::NONE,
                flags: if call.hold.is_some() { table::HELD } else { 0 }
                    | if slot.is_some() { table::SEALED } else { 0 },
                expiry: table::expiry_number(new.expires_in),
                ..table::Row::default()
            };
            let destination = new.spec.destination().map_or(0, |to| self.destination(to));
            let (form, body, course) = (parts.form, parts.body, new.course);
            sends.push(AcceptedJob { row, tenant, form, body, rest, ahead: None, slot, course, destination });
        }
        let hold = call.hold.as_ref().map(|hold| keys.execution(call.tenant.as_str(), hold.as_str()));
        let key = call.idempotency.clone().map(|key| (keys.call(key.tenant.as_str(), &key.path, &key.key), key));
        Ok(AcceptJob {
            by: by.clone(),
            tenant: call.tenant.clone(),
            tenant_hash: keys.tenant(call.tenant.as_str()),
            now: call.sends.first().map(|send| send.created_at).unwrap_or_default(),
            sends,
            hold,
            key,
            sends_per_execution: call.sends_per_execution,
        })
    }
}

impl Embedded {
    /// Has the writer end these, and tells which it did. What it could not end is in line again, where it was taken
    /// `out_of_line` for it.
    async fn end_by_store(&self, ends: Vec<ToEnd>, out_of_line: bool) -> Result<Vec<StoreEnd>, StoreError> {
        let mut told = Vec::with_capacity(ends.len());
        let mut ends = ends.into_iter();
        while !ends.as_slice().is_empty() {
            let some: Vec<ToEnd> = ends.by_ref().take(STORE_ENDS_AT_ONCE).collect();
            let jobs = some.iter().map(|end| StoreEndJob {
                send: SendAt {
                    segment: end.queued.segment,
                    row: end.queued.row,
                    tenant: self.shared.keys.tenant(end.tenant.as_str()),
                },
                number: end.number,
                counted: end.counted,
                finish: FinishJob::of(&self.shared.keys, &end.finished),
            });
            let jobs = jobs.collect();
            let places = match self.ask(|answer| Job::StoreEnds(jobs, answer)).await {
                Ok(places) => places,
                Err(error) => {
                    let left = some.iter().chain(ends.as_slice());
                    let queued = left.filter(|end| out_of_line && end.counted == Counted::Queued);
                    claim::put_back(&self.shared, queued.map(|end| (end.number, self.shared.queued_now(end))));
                    self.tell_later(told);
                    return Err(error);
                }
            };
            told.extend(some.into_iter().zip(places).filter_map(|(end, place)| {
                let code = end.finished.ended.error.map_or(Code::Internal, |error| error.code);
                let (id, tenant) = (end.finished.id, end.tenant);
                place.map(|place| StoreEnd { id, tenant, code, place: TailPlace::from_bits(place) })
            }));
        }
        Ok(told)
    }

    /// Ends whose caller hears of an error: the next sweep tells of them.
    fn tell_later(&self, told: Vec<StoreEnd>) {
        locked(&self.shared.untold).extend(told);
    }

    /// Ends what discarded executions of this tenant have left, or (`only`) this one. What cannot be read or written
    /// now stays known, and [`OnceOnly::expire`] comes back to it.
    async fn end_discarded(
        &self,
        tenant: u32,
        only: Option<ExecutionHash>,
        now: Timestamp,
    ) -> Result<Vec<StoreEnd>, StoreError> {
        let mut told = Vec::new();
        let mut done = Ok(());
        let mut closings = locked(&self.shared.waiting).closings(tenant, false);
        closings.retain(|closing| only.is_none_or(|only| only == closing.execution));
        for closing in closings {
            let left = self.blocking(move |shared| claim::discarded(shared, tenant, &closing, now)).await;
            let ended = match left {
                Ok((ends, unread)) => self.end_by_store(ends, false).await.map(|ended| (ended, unread)),
                Err(error) => Err(error),
            };
            match ended {
                Ok((ended, None)) => {
                    told.extend(ended);
                    locked(&self.shared.waiting).closed(tenant, closing.execution);
                }
                Ok((ended, Some(error))) => {
                    told.extend(ended);
                    done = Err(error);
                }
                Err(error) => done = Err(error),
            }
        }
        match done {
            Ok(()) => Ok(told),
            Err(error) => {
                self.tell_later(told);
                Err(error)
            }
        }
    }

    /// Ends what nobody else comes back to: what has expired, and what of discarded executions has no end yet.
    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<Swept, StoreError> {
        let (discarding, is_due) = {
            let waiting = locked(&self.shared.waiting);
            (waiting.discarding(), waiting.is_due(waiting::second(now)))
        };
        let mut swept = Swept::default();
        if discarding.is_empty() && !is_due {
            return Ok(swept);
        }
        // Nothing of it could be written, so nothing is looked at.
        self.shared.health()?;
        let mut done = Ok(());
        for tenant in discarding {
            match self.end_discarded(tenant, None, now).await {
                Ok(ended) => swept.ended.extend(ended),
                Err(error) => done = Err(error),
            }
        }
        let (ends, more) = self.blocking(move |shared| Ok(claim::expired(shared, now, limit))).await?;
        match self.end_by_store(ends, true).await {
            Ok(ended) => swept.ended.extend(ended),
            Err(error) => done = Err(error),
        }
        swept.next = more.then_some(SweepPlace(0));
        match done {
            Ok(()) => Ok(swept),
            Err(error) => {
                self.tell_later(swept.ended);
                Err(error)
            }
        }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        // Whoever did not close it still gets a writer that has come to rest before the lock is let go.
        self.shared.closed.store(true, Ordering::Release);
        let (nobody, jobs) = std::sync::mpsc::channel();
        drop(jobs);
        drop(std::mem::replace(&mut self.jobs, nobody));
        for thread in locked(&self.threads).drain(..) {
            let _ = thread.join();
        }
    }
}

/// The store's path is this process's alone while this lives. The directory itself is locked, which no `rm` swaps under
/// us; the file `lock` tells who has it, and keeps out versions that know of it alone.
struct Lock {
    _directory: Flock<fs::File>,
    _file: Flock<fs::File>,
    links: Vec<Link>,
}

impl Lock {
    fn take(root: &Path) -> Result<Self, StoreError> {
        let path = root.join("lock");
        let mut file = files::open(&path, true).map_err(|error| cannot_write(&path, error))?;
        let mut before = String::new();
        let _ = file.read_to_string(&mut before);
        let exclusive = |file: fs::File, path: &Path| match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(lock),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                let pid = before.trim().parse().ok();
                Err(StoreError::InUse { path: root.display().to_string(), pid })
            }
            Err((_, error)) => Err(cannot_write(path, error.into())),
        };
        let directory = fs::File::open(root).map_err(|error| cannot_write(root, error))?;
        let directory = exclusive(directory, root)?;
        let mut file = exclusive(file, &path)?;
        // Written over what is there, which a full disk takes too.
        let pid = format!("{}\n", std::process::id());
        let written = io::Seek::rewind(&mut *file)
            .and_then(|()| file.write_all(pid.as_bytes()))
            .and_then(|()| file.set_len(pid.len() as u64));
        written.map_err(|error| cannot_write(&path, error))?;
        let link = |path: &Path, file: &fs::File| Link::of(path, file).map_err(|error| cannot_write(path, error));
        let links = vec![link(root, &directory)?, link(&path, &file)?];
        Ok(Self { _directory: directory, _file: file, links })
    }
}

impl Shared {
    fn in_force(&self, waiting: &Waiting, by: &Session) -> Result<(), StoreError> {
        if by.incarnation() == waiting.incarnation {
            return Ok(());
        }
        Err(StoreError::Fenced(by.to_string()))
    }

    /// Counts what a tenant has stored.
    fn store(&self, segment: &Segment, tenant: TenantHash, records: u64, bodies: u64) {
        segment.add_share(tenant, records, bodies);
        *locked(&self.stored).entry(tenant).or_default() += records + bodies;
    }

    /// With what segments of earlier versions, or damage, do not tell from it.
    fn stored_by(&self, tenant: TenantHash) -> u64 {
        let stored = locked(&self.stored);
        [tenant, TenantHash::any_of(tenant.short())].iter().filter_map(|tenant| stored.get(tenant)).sum()
    }

    /// A segment goes, or (`records`: not set) its bodies do.
    fn forget_shares(&self, segment: &Segment, records: bool) {
        let has_bodies = segment.has_bodies();
        let mut stored = locked(&self.stored);
        for (tenant, of_records, of_bodies) in segment.shares() {
            let less = if records { of_records } else { 0 } + if has_bodies { of_bodies } else { 0 };
            if let Some(bytes) = stored.get_mut(&tenant) {
                *bytes = bytes.saturating_sub(less);
                if *bytes == 0 {
                    stored.remove(&tenant);
                }
            }
        }
    }

    /// Tells destinations apart while this process lives; never one of the lines' own numbers.
    fn destination(&self, destination: &Destination) -> u64 {
        self.hasher.hash_one(destination).max(2)
    }
}
