//! The one thread that writes: takes what has arrived, puts it on disk together, and answers.
//!
//! A batch is decided against the state and against what the batch itself changes, and nothing else changes before it
//! is on disk. So a batch that cannot be written leaves no trace: its bytes are cut off again, and its callers are
//! told. After a failed sync nobody knows what the disk has, so the log is left as it was answered for, and a new
//! segment, whose head says how much of the old one counts, takes its place.

mod ahead;
mod batch;
mod job;
mod recover;
mod segments;

use std::{
    collections::VecDeque,
    io,
    os::unix::fs::FileExt,
    sync::{
        Arc, PoisonError,
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use jiff::Timestamp;
use metrics::{Gauge, Histogram};
use tokio::time::Instant;

use self::ahead::Large;
pub use self::batch::SendAt;
use self::batch::{Batch, Effect, Reply, Was};
pub use self::job::{AcceptJob, AcceptedJob, Answer, BeginJob, EndJob, FinishJob, Job, StoreEndJob};
use super::files::Link;
use super::segment::{End, SEND_BYTES, Segment};
use super::table::{MOVED, ROW_BYTES, Row};
use super::waiting::{Hand, Queued, Taken, second, second_after};
use super::{Fault, Shared, cannot_write, checkpoint, closed, locked};
use crate::clock;
use crate::send::{SendId, TenantId};
use crate::store::{Course, Session, StoreError, wire};

/// Under load commits are at least this far apart, so that more callers share each; a caller on its own never waits.
const COMMIT_EVERY: Duration = Duration::from_millis(2);
/// Ends, which nobody's call waits for, are written with what comes next, or after so long.
const ENDS_WAIT: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 4 });
/// A batch of this many jobs need not wait for more.
const BATCH_ENOUGH: usize = 64;
/// While nothing can be written, a try this often.
pub const TRY_AGAIN_EVERY: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 500 });
/// With nothing to do, it is looked this often whether the store is still where it was opened.
const LOOK_EVERY: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 500 });
/// What a try writes.
const PROBE_BYTES: usize = 64 * 1024;
/// Rows that are changed together are read and written in one, where no more than so many lie between two of them: as
/// many bytes as a call of the system costs.
const ROWS_APART: u32 = 16;
/// A log never grows past what an [`Extent`](super::table::Extent) can name.
const LOG_BYTES_MAX: u64 = 3 << 30;

struct Writer {
    shared: Arc<Shared>,
    jobs: Receiver<Job>,
    /// Large calls that have arrived, and the one that is being written.
    large: VecDeque<Large>,
    ahead: Option<Large>,
    /// Whose large call was written last.
    last_large: Option<TenantId>,
    newest: Arc<Segment>,
    /// Durable, and not yet in the tables: the disk did not take it.
    owed: Vec<Effect>,
    /// The newest log's end is not known: it is never written to again.
    abandon_newest: bool,
    /// Where the sends stand that the last process left to `recover`.
    left_behind: Vec<(u32, u32)>,
    tried_at: Instant,
    committed_at: Instant,
    /// The last batch had company: waiting a little gathers more.
    busy: bool,
    /// Retention has more to do, by time or (`None`) by size alone.
    letting_go: Option<Option<Timestamp>>,
    /// Bytes that may be moved on to keep the size: as much as is written, a few times over, and no more, or a store
    /// full of what waits would do nothing else.
    may_move: u64,
    checkpoint: Sender<()>,
    commit_seconds: Histogram,
    bytes_gauge: Gauge,
    bytes_told_at: Instant,
}

/// Starts the writer and the checkpointer. Both end when the last sender of jobs is gone, or after `Close`.
pub fn start(shared: Arc<Shared>, left_behind: Vec<(u32, u32)>) -> io::Result<(Sender<Job>, Vec<JoinHandle<()>>)> {
    metrics::describe_histogram!(
        "egressd_store_commit_seconds",
        metrics::Unit::Seconds,
        "Time that one commit of the store took, from its first byte written to the end of its sync"
    );
    metrics::describe_gauge!(
        "egressd_store_bytes",
        metrics::Unit::Bytes,
        "Bytes of records, bodies and batches that the store has on disk"
    );
    let (jobs, arriving) = channel();
    let (checkpoint, asked) = channel();
    let now = clock::monotonic();
    let newest = shared.segments().last().cloned().ok_or_else(|| io::Error::other("the store has no segment"))?;
    let mut writer = Writer {
        jobs: arriving,
        large: VecDeque::new(),
        ahead: None,
        last_large: None,
        newest,
        owed: Vec::new(),
        abandon_newest: false,
        left_behind,
        tried_at: now,
        committed_at: now,
        busy: false,
        letting_go: None,
        may_move: shared.limits.log_bytes + shared.limits.bodies_bytes,
        checkpoint,
        commit_seconds: metrics::histogram!("egressd_store_commit_seconds"),
        bytes_gauge: metrics::gauge!("egressd_store_bytes"),
        bytes_told_at: now,
        shared: shared.clone(),
    };
    writer.tell_bytes();
    let newest_end = shared.last_seq.load(Ordering::Acquire);
    let checkpointer = std::thread::Builder::new()
        .name("store-ckpt".to_owned())
        .spawn(move || checkpoint::when_asked(&shared, &asked, newest_end))?;
    let writer = std::thread::Builder::new().name("store-write".to_owned()).spawn(move || writer.run())?;
    Ok((jobs, vec![writer, checkpointer]))
}

impl Writer {
    fn run(mut self) {
        loop {
            let wait = match self.letting_go {
                _ if self.has_large() => Duration::ZERO,
                _ if self.is_failing() => TRY_AGAIN_EVERY,
                Some(_) => Duration::ZERO,
                None => LOOK_EVERY,
            };
            let job = match self.jobs.recv_timeout(wait) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) if self.take_large() => {
                    self.go_on();
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {
                    if let Err(why) = self.links_hold() {
                        self.fail(&StoreError::CannotWrite(why.into()));
                    }
                    self.try_again();
                    self.go_on();
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if let Some(closing) = self.take(job) {
                let done = self.come_to_rest();
                self.shared.closed.store(true, Ordering::Release);
                let _ = closing.send(done);
                return;
            }
            self.go_on();
        }
        let _ = self.come_to_rest();
    }

    /// What has arrived is written, and everything derived is synced too; the next start has little to replay.
    fn come_to_rest(&mut self) -> Result<(), StoreError> {
        while self.take_large() {}
        let segments = self.shared.segments();
        for segment in segments.iter() {
            segment.sync_derived().map_err(|error| cannot_write(&segment.directory, error))?;
        }
        Ok(())
    }

    /// Works on this job and on those that arrived with it. Answers the caller who wants it closed.
    fn take(&mut self, first: Job) -> Option<Answer<()>> {
        if self.busy {
            let since = clock::monotonic() - self.committed_at;
            if since < COMMIT_EVERY {
                std::thread::sleep(COMMIT_EVERY - since);
            }
        }
        let in_debt = self.pay_debts().err();
        let mut batch = self.empty_batch();
        // Beside ends.
        let mut arrived = 0;
        let mut apart = None;
        let mut next = Some(first);
        let from = clock::monotonic();
        while let Some(job) = next.take() {
            match job {
                Job::Accept(call, answer) if Large::is(&call) => self.large.push_back(Large::of(call, answer)),
                job => {
                    arrived += usize::from(!matches!(job, Job::Finish(..)));
                    apart = self.put(&mut batch, job, in_debt.as_ref());
                }
            }
            if apart.is_some() || batch.is_full() {
                break;
            }
            next = self.jobs.try_recv().ok();
            if next.is_none() && arrived == 0 && !self.has_large() {
                // A commit costs more than all else that is done for a send: at a steady pace ends share the next call's.
                next = self.jobs.recv_timeout(ENDS_WAIT.saturating_sub(clock::monotonic() - from)).ok();
            }
        }
        self.busy = (2..BATCH_ENOUGH).contains(&arrived);
        self.commit(batch);
        self.take_large();
        match apart {
            Some(Job::Join(node, answer)) => {
                let incarnation = locked(&self.shared.waiting).join();
                let _ = answer.send(Ok(Session::new(node, incarnation)));
            }
            Some(Job::GiveBack(by, sends, answer)) => drop(answer.send(self.give_back(&by, &sends))),
            Some(Job::Recover(by, now, answer)) => drop(answer.send(self.recover(&by, now))),
            Some(Job::Retain(now, answer)) => drop(answer.send(self.retain(now))),
            Some(Job::Close(answer)) => return Some(answer),
            _ => {}
        }
        None
    }

    /// Decides it within this batch, or refuses it where an earlier one is still owed to the tables. Gives back what is
    /// no part of any batch.
    fn put(&self, batch: &mut Batch, job: Job, in_debt: Option<&StoreError>) -> Option<Job> {
        match (job, in_debt) {
            (Job::Accept(_, answer), Some(why)) => drop(answer.send(Err(why.clone()))),
            (Job::End(_, answer), Some(why)) => drop(answer.send(Err(why.clone()))),
            (Job::Begin(_, _, answer), Some(why)) => drop(answer.send(Err(why.clone()))),
            (Job::Finish(_, _, answer), Some(why)) => drop(answer.send(Err(why.clone()))),
            (Job::StoreEnds(_, answer), Some(why)) => drop(answer.send(Err(why.clone()))),
            (Job::Accept(job, answer), None) => self.accept(batch, *job, answer),
            (Job::End(job, answer), None) => self.end(batch, job, answer),
            (Job::Begin(by, jobs, answer), None) => self.begin(batch, &by, &jobs, answer),
            (Job::Finish(by, job, answer), None) => self.finish(batch, &by, *job, answer),
            (Job::StoreEnds(jobs, answer), None) => self.store_ends(batch, jobs, answer),
            (other, _) => return Some(other),
        }
        None
    }

    fn give_back(&self, by: &Session, sends: &[SendId]) -> Result<(), StoreError> {
        let mut waiting = locked(&self.shared.waiting);
        self.shared.in_force(&waiting, by)?;
        sends.iter().for_each(|id| waiting.give_back(id.0.as_u128(), by.incarnation()));
        Ok(())
    }

    fn empty_batch(&self) -> Batch {
        Batch::of(self.newest.number, self.shared.last_seq.load(Ordering::Acquire) + 1)
    }

    // Writing.

    fn commit(&mut self, batch: Batch) {
        let done = self.write(&batch);
        match done {
            Ok(()) => {
                self.earn((batch.log.len() + batch.bodies.len()) as u64);
                self.owed.extend(batch.effects);
                self.apply_owed();
                for reply in batch.replies {
                    match reply {
                        Reply::Accept(answer, accepted) => drop(answer.send(Ok(accepted))),
                        Reply::End(answer, end) => drop(answer.send(Ok(end))),
                        Reply::Begin(answer, begun) => drop(answer.send(Ok(begun))),
                        Reply::Finish(answer, seq) => drop(answer.send(Ok(seq))),
                        Reply::StoreEnds(answer, ends) => drop(answer.send(Ok(ends))),
                    }
                }
                self.make_room();
                self.tell_bytes();
            }
            Err(error) => {
                self.not_ended(&batch.ending);
                for reply in batch.replies {
                    let error = error.clone();
                    match reply {
                        Reply::Accept(answer, _) => drop(answer.send(Err(error))),
                        Reply::End(answer, _) => drop(answer.send(Err(error))),
                        Reply::Begin(answer, _) => drop(answer.send(Err(error))),
                        Reply::Finish(answer, _) => drop(answer.send(Err(error))),
                        Reply::StoreEnds(answer, _) => drop(answer.send(Err(error))),
                    }
                }
            }
        }
    }

    fn not_ended(&self, ids: &[u128]) {
        let mut waiting = locked(&self.shared.waiting);
        waiting.ending.retain(|id| !ids.contains(id));
    }

    fn is_failing(&self) -> bool {
        self.abandon_newest || !self.owed.is_empty() || super::locked(&self.shared.failing).is_some()
    }

    /// Makes the batch durable, bodies first. On an error nothing of it counts.
    fn write(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if batch.log.is_empty() {
            return Ok(());
        }
        if self.shared.closed.load(Ordering::Acquire) {
            return Err(closed());
        }
        if self.is_failing() {
            if clock::monotonic() - self.tried_at < TRY_AGAIN_EVERY {
                return self.shared.health().and_then(|()| Err(closed()));
            }
            self.try_again();
            self.shared.health()?;
            if batch.segment != self.newest.number {
                // It names places in a log that is not written to any more.
                return Err(StoreError::CannotWrite("the store has just recovered: try again".into()));
            }
        }
        if let Err(why) = self.links_hold() {
            let error = StoreError::CannotWrite(why.into());
            self.fail(&error);
            return Err(error);
        }
        let from = clock::monotonic();
        self.committed_at = from;
        let newest = self.newest.clone();
        let log_at = newest.log_bytes.load(Ordering::Relaxed);
        let bodies_at = newest.bodies_bytes.load(Ordering::Relaxed);
        let mut synced = true;
        let mut file = "table";
        let faults = &self.shared.faults;
        let written = (|| {
            let ends = batch.next_seq.saturating_sub(newest.first_seq);
            newest.reserve(newest.row_count() + batch.rows, ends)?;
            file = "bodies";
            if !batch.bodies.is_empty() {
                newest.with_bodies(|bodies| {
                    bodies.write_all_at(&batch.bodies, bodies_at)?;
                    synced = false;
                    bodies.sync_data()?;
                    synced = true;
                    Ok(())
                })?;
            }
            file = "log";
            faults.pass(Fault::Write)?;
            newest.log.write_all_at(&batch.log, log_at)?;
            synced = false;
            faults.pass(Fault::Sync)?;
            newest.log.sync_data()?;
            synced = true;
            Ok(())
        })();
        match written {
            Ok(()) => {
                newest.log_bytes.store(log_at + batch.log.len() as u64, Ordering::Release);
                newest.bodies_bytes.store(bodies_at + batch.bodies.len() as u64, Ordering::Release);
                self.commit_seconds.record((clock::monotonic() - from).as_secs_f64());
                Ok(())
            }
            Err(error) => {
                let error: io::Error = error;
                // What was not answered for must not be found by the next start.
                let cut =
                    newest.log.set_len(log_at).and_then(|()| newest.with_bodies(|bodies| bodies.set_len(bodies_at)));
                self.abandon_newest = !synced || cut.is_err();
                let error = cannot_write(&newest.directory.join(file), error);
                self.fail(&error);
                Err(error)
            }
        }
    }

    /// Whether the directory, the lock and the log are still what others find at their paths: what is written to them
    /// else is lost, and another process may write there.
    fn links_hold(&self) -> Result<(), String> {
        self.shared.links.iter().chain([&self.newest.link]).try_for_each(Link::check)
    }

    fn fail(&mut self, error: &StoreError) {
        self.tried_at = clock::monotonic();
        let why = why(error);
        if locked(&self.shared.failing).as_ref() != Some(&why) {
            tracing::error!(why, "the store cannot write");
        }
        self.shared.set_failing(Some(why));
    }

    /// Finds out whether the disk takes writes again, and goes on if it does.
    fn try_again(&mut self) {
        if !self.is_failing() {
            return;
        }
        self.tried_at = clock::monotonic();
        self.apply_owed();
        if !self.owed.is_empty() {
            return;
        }
        let mut probed = self.links_hold().and_then(|()| probe(&self.shared));
        if probed.is_ok() && self.abandon_newest {
            probed = self.open_segment().map_err(|error| why(&error));
        }
        match probed {
            Ok(()) => {
                self.abandon_newest = false;
                self.shared.set_failing(None);
                tracing::info!("the store can write again");
            }
            Err(why) => self.shared.set_failing(Some(why)),
        }
    }

    /// What is durable and not in the tables yet is not known to who decides: nothing is decided before it is.
    fn pay_debts(&mut self) -> Result<(), StoreError> {
        if !self.owed.is_empty() && clock::monotonic() - self.tried_at >= TRY_AGAIN_EVERY {
            self.try_again();
        }
        self.shared.free_of_debt()
    }

    fn apply_owed(&mut self) {
        let owed = std::mem::take(&mut self.owed);
        let rows = match self.write_tables(&owed) {
            Ok(rows) => rows,
            Err(error) => return self.owe(owed, &error),
        };
        let mut owed = owed.into_iter().zip(rows);
        while let Some((effect, row)) = owed.next() {
            if let Err(error) = self.apply(&effect, row) {
                let rest = owed.map(|(effect, _)| effect);
                return self.owe(std::iter::once(effect).chain(rest).collect(), &error);
            }
        }
        self.shared.in_debt.store(false, Ordering::Release);
    }

    fn owe(&mut self, owed: Vec<Effect>, error: &StoreError) {
        self.owed = owed;
        if !self.owed.is_empty() {
            self.shared.in_debt.store(true, Ordering::Release);
        }
        self.fail(error);
    }

    /// Changes memory, which comes after the tables, so that a try that failed may be made again. With the row of what
    /// began or ended, where it is not damaged.
    fn apply(&mut self, effect: &Effect, row: Option<Row>) -> Result<(), StoreError> {
        let newest = self.newest.clone();
        match effect {
            Effect::Sends { first, sends, bodies, tenant, by, courses } => {
                newest.add_rows(*first, sends);
                for ((row, bodies), (_, _, tenant)) in sends.iter().zip(bodies).zip(courses) {
                    self.shared.store(&newest, *tenant, u64::from(row.accepted.length) + SEND_BYTES, *bodies);
                }
                let mut waiting = locked(&self.shared.waiting);
                let tenant = waiting.number(tenant);
                for ((row, number), (course, destination, tenant_hash)) in sends.iter().zip(*first..).zip(courses) {
                    if let Some(execution) = row.holder() {
                        waiting.hold(tenant, execution, row.created_at, (newest.number, number), 1);
                        continue;
                    }
                    let released = wire::timestamp(row.created_at);
                    let expires = second_after(released).saturating_add(row.expires_in().unwrap_or(0));
                    let queued = Queued { segment: newest.number, row: number, expires, released: second(released) };
                    let hand = match course {
                        Course::Wait => {
                            waiting.queue(tenant, queued);
                            continue;
                        }
                        Course::Claim => Hand::Claimed(*by),
                        Course::Begin => Hand::Begun(*by),
                    };
                    let order = waiting.next_order(tenant);
                    let (tenant_hash, destination) = (*tenant_hash, *destination);
                    waiting.take(row.id, Taken { queued, tenant, tenant_hash, destination, order, hand });
                }
                drop(waiting);
                newest.undone.fetch_add(sends.len() as u32, Ordering::AcqRel);
                newest.rows.store(first + sends.len() as u32, Ordering::Release);
            }
            Effect::Moved(moved, at) => {
                let shared = self.shared.clone();
                let _alone = shared.places.write().unwrap_or_else(PoisonError::into_inner);
                let mut left = Vec::with_capacity(moved.len());
                for one in moved {
                    newest.write_rows(one.number, &one.row.encode()).map_err(failed(&newest))?;
                    let segment = self.segment_of(one.from.0)?;
                    let row =
                        shared.sound_row(&segment, one.from.1)?.map(|row| Row { flags: row.flags | MOVED, ..row });
                    if let Some(row) = &row {
                        segment.write_rows(one.from.1, &row.encode()).map_err(failed(&segment))?;
                        if row.is_sealed() {
                            segment.wipe(row.accepted).map_err(failed(&segment))?;
                        }
                    }
                    left.push((segment, row));
                }
                for (one, (segment, row)) in moved.iter().zip(left) {
                    newest.add_rows(one.number, &[one.row]);
                    shared.store(&newest, one.tenant, u64::from(one.row.accepted.length) + SEND_BYTES, one.bodies);
                    newest.undone.fetch_add(1, Ordering::AcqRel);
                    newest.rows.store(one.number + 1, Ordering::Release);
                    match row {
                        Some(row) => segment.add_end(one.from.1, &row),
                        None => segment.add_lost_end(one.from.1),
                    }
                    segment.undone.fetch_sub(1, Ordering::AcqRel);
                }
                newest.change_zones(|known| known.keep_from(*at));
                let places = moved.iter().map(|one| (one.from, (newest.number, one.number))).collect();
                locked(&shared.waiting).moved(&places);
            }
            Effect::Carried { hash, at } => newest.change_growing(|growing| growing.add_key(*hash, *at, 0)),
            Effect::Key { hash, first, count, bytes, tenant } => {
                self.shared.store(&newest, *tenant, *bytes, 0);
                newest.change_growing(|growing| growing.add_key(*hash, *first, *count));
            }
            Effect::Ending { execution, at, ended, tenant } => {
                self.shared.store(&newest, *tenant, u64::from(at.length), 0);
                newest.change_growing(|growing| growing.add_ending(*execution, *at, *ended));
                locked(&self.shared.waiting).close(*execution, *ended);
            }
            Effect::Begin { id, by, .. } => locked(&self.shared.waiting).begin(*id, *by),
            Effect::Finish { send, id, seq, at, facts, was, body } => {
                let segment = self.segment_of(send.segment)?;
                match &row {
                    Some(row) => {
                        if row.is_sealed() {
                            segment.wipe(row.accepted).map_err(failed(&segment))?;
                        }
                        segment.add_end(send.row, row);
                    }
                    None => segment.add_lost_end(send.row),
                }
                self.shared.store(&newest, send.tenant, u64::from(at.length), *body);
                newest.change_zones(|known| known.newest_finished_at = known.newest_finished_at.max(facts.finished_at));
                let mut waiting = locked(&self.shared.waiting);
                let number = match was {
                    Was::Taken => waiting.taken(*id).map(|taken| taken.tenant),
                    Was::Untaken(number, _) => Some(*number),
                };
                if let Some(tenant) = number.and_then(|number| waiting.name(number))
                    && let Ok(outcome) = wire::outcome_of(facts.outcome)
                {
                    self.shared.hour.add(tenant, outcome, wire::timestamp(facts.finished_at));
                }
                match was {
                    Was::Taken => drop(waiting.finish(*id)),
                    Was::Untaken(tenant, counted) => waiting.uncount(*tenant, *counted),
                }
                waiting.ending.remove(id);
                drop(waiting);
                segment.undone.fetch_sub(1, Ordering::AcqRel);
                self.shared.last_seq.fetch_max(*seq, Ordering::AcqRel);
            }
        }
        Ok(())
    }

    /// Writes what a batch's effects change in the tables, and gives of each that begins or ends a send its row; `None`:
    /// that is damaged. The rows and ends of a batch follow on each other, and what began together ends together: however
    /// many sends are in it, these are a few writes.
    fn write_tables(&self, effects: &[Effect]) -> Result<Vec<Option<Row>>, StoreError> {
        if effects.is_empty() {
            return Ok(Vec::new());
        }
        let newest = &self.newest;
        self.shared.faults.pass(Fault::Table).map_err(failed(newest))?;
        let (mut first_row, mut accepted) = (None, Vec::new());
        let (mut first_seq, mut ends) = (None, Vec::new());
        let mut changed = Vec::new();
        for (at, effect) in effects.iter().enumerate() {
            match effect {
                Effect::Sends { first, sends, .. } => {
                    first_row.get_or_insert(*first);
                    sends.iter().for_each(|row| accepted.extend_from_slice(&row.encode()));
                }
                Effect::Begin { send, .. } => changed.push((send.segment, send.row, at)),
                Effect::Finish { send, seq, facts, .. } => {
                    first_seq.get_or_insert(*seq);
                    changed.push((send.segment, send.row, at));
                    let end = End {
                        finished_at: facts.finished_at,
                        segment: send.segment,
                        row: send.row,
                        tenant: send.tenant.short(),
                        outcome: facts.outcome,
                    };
                    ends.extend_from_slice(&end.encode());
                }
                _ => {}
            }
        }
        if let Some(first) = first_row {
            newest.write_rows(first, &accepted).map_err(failed(newest))?;
        }
        let mut rows = vec![None; effects.len()];
        changed.sort_unstable();
        for near in changed.chunk_by(|one, next| one.0 == next.0 && next.1 - one.1 <= ROWS_APART) {
            self.change_rows(effects, near, &mut rows)?;
        }
        if let Some(first) = first_seq {
            newest.write_ends(first, &ends).map_err(failed(newest))?;
        }
        Ok(rows)
    }

    /// Changes rows of one segment: its number, theirs in rising order, and of each its effect. Rows between them are
    /// written as they were read: nobody else writes there.
    fn change_rows(
        &self,
        effects: &[Effect],
        near: &[(u32, u32, usize)],
        changed: &mut [Option<Row>],
    ) -> Result<(), StoreError> {
        let [(segment, first, _), ..] = *near else { return Ok(()) };
        let last = near.last().map_or(first, |(_, last, _)| *last);
        let segment = self.segment_of(segment)?;
        let mut rows = Vec::new();
        let are_there = match segment.rows(first, last + 1, &mut rows) {
            Ok(()) => true,
            // The table ends before. Each row tells of itself.
            Err(StoreError::Damaged(_)) => false,
            Err(error) => return Err(error),
        };
        for &(_, number, at) in near {
            let place = &mut rows[(number - first) as usize * ROW_BYTES..][..ROW_BYTES];
            let sound = place.first_chunk().filter(|_| are_there).and_then(Row::decode);
            let sound = sound.map_or_else(|| self.shared.sound_row(&segment, number), |row| Ok(Some(row)))?;
            let Some(mut row) = sound else { continue };
            effects[at].change(&mut row, self.newest.number);
            place.copy_from_slice(&row.encode());
            if !are_there {
                segment.write_rows(number, place).map_err(failed(&segment))?;
            }
            changed[at] = Some(row);
        }
        if are_there { segment.write_rows(first, &rows).map_err(failed(&segment)) } else { Ok(()) }
    }

    fn segment_of(&self, number: u32) -> Result<Arc<Segment>, StoreError> {
        if number == self.newest.number {
            return Ok(self.newest.clone());
        }
        let missing = || StoreError::Damaged(format!("segment {number} is gone while a send of it waits").into());
        self.shared.segment(number).ok_or_else(missing)
    }

    /// A batch that nobody waits for.
    fn write_alone(&mut self, batch: Batch) -> Result<(), StoreError> {
        self.write(&batch)?;
        self.owed.extend(batch.effects);
        self.apply_owed();
        self.pay_debts()
    }

    fn tell_bytes(&mut self) {
        let now = clock::monotonic();
        if now - self.bytes_told_at >= Duration::from_secs(1) || self.bytes_told_at == self.committed_at {
            self.bytes_told_at = now;
            let (records, bodies) = self.shared.bytes();
            self.bytes_gauge.set((records + bodies + self.shared.batches.bytes()) as f64);
        }
    }
}

fn failed(segment: &Segment) -> impl FnOnce(io::Error) -> StoreError {
    let directory = segment.directory.clone();
    move |error| cannot_write(&directory, error)
}

/// Why an error of this store is one, without whose it is.
fn why(error: &StoreError) -> String {
    match error {
        StoreError::CannotWrite(why) | StoreError::CannotRead(why) | StoreError::Damaged(why) => why.to_string(),
        other => other.to_string(),
    }
}

/// Whether the file system takes a write and a sync; else why it does not.
pub fn probe(shared: &Shared) -> Result<(), String> {
    let path = shared.root.join("probe");
    let done = (|| {
        shared.faults.pass(Fault::Write)?;
        shared.faults.pass(Fault::Sync)?;
        let file = super::files::make(&path)?;
        file.write_all_at(&[0; PROBE_BYTES], 0)?;
        file.sync_data()
    })();
    let _ = std::fs::remove_file(&path);
    done.map_err(|error| why(&cannot_write(&shared.root, error)))
}
