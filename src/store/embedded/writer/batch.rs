//! Deciding a batch: each job adds to it, or is refused, against the state and what the batch itself changes.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use super::Writer;
use super::job::{AcceptJob, AcceptedJob, Answer, BeginJob, EndJob, FinishJob, StoreEndJob};
use crate::send::{SendId, TenantId};
use crate::store::embedded::entry::{BeginHead, BodyPlace, FinishFacts, FinishHead, SendHead};
use crate::store::embedded::frame::{self, FrameKind};
use crate::store::embedded::hashes::{ExecutionHash, TenantHash};
use crate::store::embedded::locked;
use crate::store::embedded::read::payload;
use crate::store::embedded::segment::{END_BYTES_RESERVED, FIRST_SEGMENT, SEND_BYTES, Segment};
use crate::store::embedded::table::{CARRIED, Extent, FIRST, Row};
use crate::store::embedded::waiting::{Counted, Hand, Place};
use crate::store::view::EndedExecution;
use crate::store::wire::{self, CallForm, EndingForm, KeyForm};
use crate::store::{Accepted, Course, Ending, ExecutionEnd, IdempotencyKey, Session, StoreError};

/// Most jobs and bytes of one batch.
const BATCH_JOBS: usize = 4096;
const BATCH_BYTES: usize = 8 << 20;

/// What changes in tables and memory once the batch is durable. Each may be tried again after an I/O error.
pub enum Effect {
    Sends {
        first: u32,
        sends: Vec<Row>,
        /// Bytes of the bodies of each, but for what was written ahead.
        bodies: Vec<u64>,
        tenant: TenantId,
        by: u64,
        /// Of each its course, destination and tenant.
        courses: Vec<(Course, u64, TenantHash)>,
    },
    /// An idempotent call whose records go.
    Carried {
        hash: u64,
        at: u32,
    },
    /// Sends that wait and whose segment goes, moved on at this instant.
    Moved(Vec<Moved>, i64),
    Key {
        hash: u64,
        first: u32,
        count: u32,
        /// Of its second place, and whose they are.
        bytes: u64,
        tenant: TenantHash,
    },
    Ending {
        execution: ExecutionHash,
        at: Extent,
        ended: EndedExecution,
        tenant: TenantHash,
    },
    Begin {
        send: SendAt,
        id: u128,
        at: i64,
        by: u64,
    },
    Finish {
        send: SendAt,
        id: u128,
        seq: u64,
        at: Extent,
        facts: FinishFacts,
        was: Was,
        body: u64,
    },
}

impl Effect {
    /// What this changes in the row of a send that begins or ends, where logs are written to this segment.
    pub fn change(&self, row: &mut Row, newest: u32) {
        match self {
            Self::Begin { at, .. } => row.started_at = *at,
            Self::Finish { at, facts, .. } => facts.apply(row, newest, *at),
            _ => {}
        }
    }
}

/// A send that was moved on.
pub struct Moved {
    pub from: Place,
    /// Its number in the newest segment, and its row there.
    pub number: u32,
    pub row: Row,
    pub bodies: u64,
    pub tenant: TenantHash,
}

/// Where a send's row is, and whose it is.
#[derive(Clone, Copy, Debug)]
pub struct SendAt {
    pub segment: u32,
    pub row: u32,
    pub tenant: TenantHash,
}

/// Who had a send before it begins or ends.
#[derive(Clone, Copy, Debug)]
pub enum Was {
    Taken,
    /// Nobody: it is of this tenant's number, and counted as this.
    Untaken(u32, Counted),
}

pub enum Reply {
    Accept(Answer<Accepted>, Accepted),
    End(Answer<ExecutionEnd>, ExecutionEnd),
    Begin(Answer<Vec<Result<(), StoreError>>>, Vec<Result<(), StoreError>>),
    Finish(Answer<u64>, u64),
    StoreEnds(Answer<Vec<Option<u64>>>, Vec<Option<u64>>),
}

/// A batch in the making.
#[derive(Default)]
pub struct Batch {
    /// The segment it is made for.
    pub segment: u32,
    pub log: Vec<u8>,
    pub bodies: Vec<u8>,
    pub effects: Vec<Effect>,
    pub replies: Vec<Reply>,
    /// Sends accepted in it.
    pub rows: u32,
    pub next_seq: u64,
    // What it changes, asked before the state.
    keys: HashMap<u64, (IdempotencyKey, Vec<SendId>)>,
    endings: HashMap<ExecutionHash, EndedExecution>,
    /// Sends of each execution, those of the batch with those before.
    members: HashMap<ExecutionHash, u32>,
    held: HashMap<ExecutionHash, i64>,
    begun: HashSet<u128>,
    done: HashSet<u128>,
    /// Bytes of each tenant's.
    stored: HashMap<TenantHash, u64>,
    /// Sends that nobody may claim while their ends are written.
    pub ending: Vec<u128>,
}

impl Batch {
    pub fn of(segment: u32, next_seq: u64) -> Self {
        Self { segment, next_seq, ..Self::default() }
    }

    pub fn is_full(&self) -> bool {
        self.replies.len() >= BATCH_JOBS || self.log.len() + self.bodies.len() >= BATCH_BYTES
    }
}

impl Writer {
    pub fn accept(&self, batch: &mut Batch, job: AcceptJob, answer: Answer<Accepted>) {
        match self.decide_accept(batch, job) {
            Ok(accepted) => batch.replies.push(Reply::Accept(answer, accepted)),
            Err(error) => drop(answer.send(Err(error))),
        }
    }

    /// What this call gets without being written, if anything; else the call counts against its tenant's share.
    pub fn answered(&self, batch: &mut Batch, job: &AcceptJob) -> Result<Option<Accepted>, StoreError> {
        self.shared.in_force(&locked(&self.shared.waiting), &job.by)?;
        if let Some((hash, key)) = &job.key {
            if let Some((known, ids)) = batch.keys.get(hash).filter(|(known, _)| known.is_of(key)) {
                let same = known.fingerprint == key.fingerprint;
                return Ok(Some(if same { Accepted::Replayed(ids.clone()) } else { Accepted::Mismatch }));
            }
            if let Some(known) = self.shared.known_call(*hash, key, job.now)? {
                return Ok(Some(known));
            }
        }
        if let Some(execution) = job.hold {
            if let Some(ended) = self.ending(batch, execution)? {
                return Ok(Some(Accepted::Ended(ended.ending.state())));
            }
            let before = self.member_count(batch, execution)? as usize;
            if before + job.sends.len() > job.sends_per_execution as usize {
                return Ok(Some(Accepted::ExecutionFull));
            }
        }
        let bytes = |send: &AcceptedJob| send.bytes() as u64 + SEND_BYTES;
        let before = batch.stored.get(&job.tenant_hash).copied().unwrap_or(0);
        let stored = self.shared.stored_by(job.tenant_hash) + before;
        let more: u64 = job.sends.iter().map(|send| bytes(send) + END_BYTES_RESERVED).sum();
        let share = self.shared.settings.tenant_max_bytes;
        let number = locked(&self.shared.waiting).known(&job.tenant);
        if stored + self.reserved(number, 0) + more > share {
            return Ok(Some(Accepted::ShareFull { stored, share }));
        }
        batch.stored.insert(job.tenant_hash, before + more);
        Ok(None)
    }

    fn decide_accept(&self, batch: &mut Batch, job: AcceptJob) -> Result<Accepted, StoreError> {
        if let Some(accepted) = self.answered(batch, &job)? {
            return Ok(accepted);
        }
        // All that can fail comes before the first byte: a call is in the batch whole or not at all.
        let mut next = HashMap::new();
        let mut indexes = Vec::with_capacity(job.sends.len());
        for send in &job.sends {
            let Some(execution) = send.row.execution() else {
                indexes.push(None);
                continue;
            };
            let index = match next.get(&execution) {
                Some(&index) => index,
                None => self.member_count(batch, execution)?,
            };
            next.insert(execution, index + 1);
            indexes.push(Some(index));
        }
        batch.members.extend(next);
        let first = self.newest.row_count() + batch.rows;
        let count = job.sends.len() as u32;
        let log_at = self.newest.log_bytes.load(Ordering::Relaxed);
        let mut sends = Vec::with_capacity(job.sends.len());
        let mut begun = Vec::new();
        let mut bodies = Vec::with_capacity(job.sends.len());
        let mut courses = Vec::with_capacity(job.sends.len());
        for (turn, mut send) in job.sends.into_iter().enumerate() {
            let [body, rest] = send.bodies().map(|body| self.append_body(batch, body));
            bodies.push(u64::from(body.length) + u64::from(rest.length));
            let [body, rest] = send.ahead.unwrap_or([body, rest]);
            let head = SendHead {
                id: send.row.id,
                row: first + turn as u32,
                remaining: count - 1 - turn as u32,
                index: indexes[turn],
                body,
                rest,
            };
            let at = log_at + batch.log.len() as u64;
            let length =
                frame::append(&mut batch.log, FrameKind::Send, &[&head.encode(), &send.form], send.slot.as_ref());
            if head.index == Some(0) {
                send.row.flags |= FIRST;
            }
            send.row.accepted = Extent { at: at as u32, length: length as u32 };
            courses.push((send.course, send.destination, send.tenant));
            if send.course == Course::Begin && job.hold.is_none() {
                begun.push(BeginHead { id: head.id, segment: batch.segment, row: head.row, at: send.row.created_at });
                send.row.started_at = send.row.created_at;
            }
            sends.push(send.row);
        }
        // Behind the whole call, so that no start is read of a send that was never accepted.
        for head in begun {
            frame::append(&mut batch.log, FrameKind::Begin, &[&head.encode()], None);
        }
        batch.rows += count;
        if let Some(execution) = job.hold {
            *batch.held.entry(execution).or_default() += i64::from(count);
        }
        let ids: Vec<SendId> = sends.iter().map(Row::id).collect();
        let created_at = sends.first().map_or(0, |send| send.created_at);
        let (tenant, by) = (job.tenant, job.by.incarnation());
        batch.effects.push(Effect::Sends { first, sends, bodies, tenant, by, courses });
        if let Some((hash, key)) = job.key {
            // The first place is its first send's frame. A frame that is lost takes one of them, and the key is known
            // by the other: the call is not made again.
            let form = CallForm {
                tenant: key.tenant.as_str(),
                key: KeyForm {
                    path: &key.path,
                    key: &key.key,
                    fingerprint: self.shared.keys.fingerprint(&key.fingerprint),
                    count,
                },
                created_at,
                sends: ids.iter().map(|id| *id.0.as_bytes()).collect(),
            };
            let bytes = frame::append(&mut batch.log, FrameKind::Call, &[&wire::encode(&form, Vec::new())], None);
            batch.effects.push(Effect::Key { hash, first, count, bytes: bytes as u64, tenant: job.tenant_hash });
            batch.keys.insert(hash, (key, ids));
        }
        Ok(Accepted::New { indexes, started: Vec::new() })
    }

    pub fn end(&self, batch: &mut Batch, job: EndJob, answer: Answer<ExecutionEnd>) {
        match self.decide_end(batch, &job) {
            Ok(end) => batch.replies.push(Reply::End(answer, end)),
            Err(error) => drop(answer.send(Err(error))),
        }
    }

    fn decide_end(&self, batch: &mut Batch, job: &EndJob) -> Result<ExecutionEnd, StoreError> {
        self.shared.in_force(&locked(&self.shared.waiting), &job.by)?;
        let execution = self.shared.keys.execution(job.tenant.as_str(), job.execution.as_str());
        if let Some(before) = self.ending(batch, execution)? {
            return Ok(if before.ending.state() == job.ending.state() {
                ExecutionEnd::Done { count: before.count, first: false }
            } else {
                ExecutionEnd::Conflict(before.ending.state())
            });
        }
        // Memory knows what is durable, and this batch what is about to be: a submit that stands before this end in the
        // batch is released or discarded by it, though no table has it yet; one behind it finds `batch.endings`.
        let known = locked(&self.shared.waiting).held_by(execution);
        let count = known.saturating_add_signed(batch.held.get(&execution).copied().unwrap_or(0));
        let tenant = self.shared.keys.tenant(job.tenant.as_str());
        if count == 0 && self.member_count(batch, execution)? == 0 {
            // Nobody waits for it, so it is refused as a send would be.
            let (stored, share) = (self.shared.stored_by(tenant), self.shared.settings.tenant_max_bytes);
            let number = locked(&self.shared.waiting).known(&job.tenant);
            if stored + self.reserved(number, 0) + SEND_BYTES + END_BYTES_RESERVED > share {
                return Ok(ExecutionEnd::ShareFull { stored, share });
            }
        }
        let ended = EndedExecution { ending: job.ending, at: job.at, count };
        self.append_ending(batch, (job.tenant.as_str(), job.execution.as_str()), ended);
        Ok(ExecutionEnd::Done { count, first: true })
    }

    pub fn begin(
        &self,
        batch: &mut Batch,
        by: &Session,
        jobs: &[BeginJob],
        answer: Answer<Vec<Result<(), StoreError>>>,
    ) {
        if let Err(error) = self.shared.in_force(&locked(&self.shared.waiting), by) {
            return drop(answer.send(Err(error)));
        }
        let begun = jobs.iter().map(|job| self.decide_begin(batch, by, job)).collect();
        batch.replies.push(Reply::Begin(answer, begun));
    }

    fn decide_begin(&self, batch: &mut Batch, by: &Session, job: &BeginJob) -> Result<(), StoreError> {
        // Memory changes only once the batch is durable, so until then a send that this batch has begun looks claimed.
        if batch.begun.contains(&job.id) || batch.done.contains(&job.id) {
            return Err(StoreError::NoSuchSend);
        }
        let taken = locked(&self.shared.waiting).taken(job.id).copied();
        let Some(taken) = taken.filter(|taken| taken.hand == Hand::Claimed(by.incarnation())) else {
            return Err(StoreError::NoSuchSend);
        };
        let send = SendAt { segment: taken.queued.segment, row: taken.queued.row, tenant: taken.tenant_hash };
        if send.tenant != job.tenant {
            return Err(StoreError::NoSuchSend);
        }
        let head = BeginHead { id: job.id, segment: send.segment, row: send.row, at: job.at };
        frame::append(&mut batch.log, FrameKind::Begin, &[&head.encode()], None);
        batch.begun.insert(job.id);
        batch.effects.push(Effect::Begin { send, id: job.id, at: job.at, by: by.incarnation() });
        Ok(())
    }

    pub fn finish(&self, batch: &mut Batch, by: &Session, job: FinishJob, answer: Answer<u64>) {
        let decided = self.may_finish(batch, by, job.id);
        match decided.map(|send| self.decide_finish(batch, send, Was::Taken, job)) {
            Ok(seq) => batch.replies.push(Reply::Finish(answer, seq)),
            Err(error) => drop(answer.send(Err(error))),
        }
    }

    /// Also a session that is over may end what it had begun.
    fn may_finish(&self, batch: &Batch, by: &Session, id: u128) -> Result<SendAt, StoreError> {
        let is_mine = |hand| matches!(hand, Hand::Claimed(of) | Hand::Begun(of) if of == by.incarnation());
        match locked(&self.shared.waiting).taken(id) {
            Some(taken) if is_mine(taken.hand) && !batch.done.contains(&id) => {
                Ok(SendAt { segment: taken.queued.segment, row: taken.queued.row, tenant: taken.tenant_hash })
            }
            _ => Err(StoreError::NoSuchSend),
        }
    }

    /// Ends that the store gives: of what nobody has taken, or of what sessions before this one had begun.
    pub fn store_ends(&self, batch: &mut Batch, jobs: Vec<StoreEndJob>, answer: Answer<Vec<Option<u64>>>) {
        let ends = jobs.into_iter().map(|job| self.decide_store_end(batch, job)).collect();
        batch.replies.push(Reply::StoreEnds(answer, ends));
    }

    pub fn decide_store_end(&self, batch: &mut Batch, job: StoreEndJob) -> Option<u64> {
        let StoreEndJob { send, number, counted, finish } = job;
        // Its execution may have ended since it was looked at.
        let counted = match counted {
            Counted::HeldBy(execution) => {
                let ended = match batch.endings.get(&execution) {
                    Some(ended) => Some(*ended),
                    None => self.shared.ending(execution).ok()?,
                };
                match ended.map(|ended| ended.ending) {
                    None => counted,
                    Some(Ending::Discard) => Counted::Not,
                    Some(Ending::Finish(_)) => Counted::Queued,
                }
            }
            other => other,
        };
        if batch.done.contains(&finish.id) || batch.begun.contains(&finish.id) {
            return None;
        }
        let (segment, row) = self.shared.undone_now(finish.id, (send.segment, send.row))?;
        let send = SendAt { segment, row, ..send };
        let mut waiting = locked(&self.shared.waiting);
        let was = match waiting.taken(finish.id) {
            None => Was::Untaken(number, counted),
            Some(taken) => match taken.hand {
                Hand::Begun(by) if by != waiting.incarnation => Was::Taken,
                _ => return None,
            },
        };
        // The writer decides alone, but claims are made beside it: from here until the batch is applied the send is not
        // to be claimed, or it would begin after its end.
        waiting.ending.insert(finish.id);
        batch.ending.push(finish.id);
        drop(waiting);
        Some(self.decide_finish(batch, send, was, finish))
    }

    fn decide_finish(&self, batch: &mut Batch, send: SendAt, was: Was, mut job: FinishJob) -> u64 {
        batch.done.insert(job.id);
        self.hold_to_share(batch, send.tenant, was, &mut job);
        let seq = batch.next_seq;
        batch.next_seq += 1;
        let body = self.append_body(batch, job.body.as_deref());
        let head = FinishHead { id: job.id, segment: send.segment, row: send.row, seq, body };
        let at = self.newest.log_bytes.load(Ordering::Relaxed) + batch.log.len() as u64;
        let length = frame::append(&mut batch.log, FrameKind::Finish, &[&head.encode(), &job.form], None);
        let at = Extent { at: at as u32, length: length as u32 };
        if let Was::Untaken(_, Counted::HeldBy(execution)) = was {
            *batch.held.entry(execution).or_default() -= 1;
        }
        batch.effects.push(Effect::Finish {
            send,
            id: job.id,
            seq,
            at,
            facts: job.facts,
            was,
            body: u64::from(body.length),
        });
        seq
    }

    /// What this tenant's sends that are not done, but for so many, may still need for their ends.
    fn reserved(&self, number: Option<u32>, but: u64) -> u64 {
        let undone = number.map_or(0, |number| locked(&self.shared.waiting).undone_of(number));
        undone.saturating_sub(but) * END_BYTES_RESERVED
    }

    /// A send ends whatever its tenant has stored. But what came back is kept only within the tenant's share, or answers
    /// would take from others what calls may not.
    fn hold_to_share(&self, batch: &mut Batch, tenant: TenantHash, was: Was, job: &mut FinishJob) {
        let number = match was {
            Was::Taken => locked(&self.shared.waiting).taken(job.id).map(|taken| taken.tenant),
            Was::Untaken(number, _) => Some(number),
        };
        let before = batch.stored.get(&tenant).copied().unwrap_or(0);
        let stored = self.shared.stored_by(tenant) + before + self.reserved(number, 1);
        let bytes = |job: &FinishJob| (job.form.len() + job.body.as_ref().map_or(0, |body| body.len())) as u64;
        let is_large = bytes(job) > END_BYTES_RESERVED;
        if is_large && stored + bytes(job) > self.shared.settings.tenant_max_bytes {
            // It was encoded here, so it reads back.
            job.form = wire::without_answer(&job.form).unwrap_or_else(|_| std::mem::take(&mut job.form));
            job.body = None;
        }
        batch.stored.insert(tenant, before + bytes(job));
    }

    /// A call's key outlives its records.
    pub fn carry(&self, batch: &mut Batch, hash: u64, form: &[u8]) {
        let at = self.newest.log_bytes.load(Ordering::Relaxed) + batch.log.len() as u64;
        // Twice, as it stood before.
        for _ in 0..2 {
            frame::append(&mut batch.log, FrameKind::Call, &[form], None);
        }
        batch.effects.push(Effect::Carried { hash, at: at as u32 });
    }

    /// A send that waits, with all that it is made of, and the end of the execution that held it.
    pub fn move_on(
        &self,
        batch: &mut Batch,
        segment: &Segment,
        number: u32,
        row: &Row,
        now: i64,
    ) -> Result<Moved, StoreError> {
        let bytes = segment.frame(row.accepted)?;
        let (head, form) = payload(segment, row.accepted, &bytes, SendHead::decode)?;
        let slot = row.is_sealed().then(|| bytes.last_chunk()).flatten();
        let body_of = |place: BodyPlace| match place.length {
            0 => Ok(None),
            _ => segment.body(place.at, place.length)?.map(Some).ok_or_else(|| {
                StoreError::Damaged(format!("{} is gone while a send of it waits", segment.file("bodies")).into())
            }),
        };
        let (body, rest) = (body_of(head.body)?, body_of(head.rest)?);
        if let Some(holder) = row.holder()
            && !batch.endings.contains_key(&holder)
            && let Some(ended) = self.shared.ending(holder)?
            && let Some(execution) = form.execution()
        {
            self.append_ending(batch, (form.tenant, execution), ended);
        }
        let tenant = self.shared.keys.tenant(form.tenant);
        let head = SendHead {
            row: self.newest.row_count() + batch.rows,
            remaining: 0,
            body: self.append_body(batch, body.as_deref()),
            rest: self.append_body(batch, rest.as_deref()),
            ..head
        };
        let at = self.newest.log_bytes.load(Ordering::Relaxed) + batch.log.len() as u64;
        let form = form.moved((segment.number, number), now);
        let length = frame::append(&mut batch.log, FrameKind::Send, &[&head.encode(), &form], slot);
        batch.rows += 1;
        let accepted = Extent { at: at as u32, length: length as u32 };
        Ok(Moved {
            from: (segment.number, number),
            number: head.row,
            row: Row { accepted, flags: row.flags | CARRIED, ..*row },
            bodies: u64::from(head.body.length) + u64::from(head.rest.length),
            tenant,
        })
    }

    fn append_ending(&self, batch: &mut Batch, (tenant, execution): (&str, &str), ended: EndedExecution) {
        let form = EndingForm::of(tenant, execution, &ended);
        let at = self.newest.log_bytes.load(Ordering::Relaxed) + batch.log.len() as u64;
        let length = frame::append(&mut batch.log, FrameKind::Ending, &[&wire::encode(&form, Vec::new())], None);
        let at = Extent { at: at as u32, length: length as u32 };
        let (hash, tenant) = (self.shared.keys.execution(tenant, execution), self.shared.keys.tenant(tenant));
        batch.effects.push(Effect::Ending { execution: hash, at, ended, tenant });
        batch.endings.insert(hash, ended);
    }

    fn append_body(&self, batch: &mut Batch, body: Option<&[u8]>) -> BodyPlace {
        let Some(body) = body else { return BodyPlace::default() };
        let at = self.newest.bodies_bytes.load(Ordering::Relaxed) + batch.bodies.len() as u64;
        let length = frame::append(&mut batch.bodies, FrameKind::Body, &[body], None);
        BodyPlace { at, length: length as u32 }
    }

    fn ending(&self, batch: &Batch, execution: ExecutionHash) -> Result<Option<EndedExecution>, StoreError> {
        batch.endings.get(&execution).map_or_else(|| self.shared.ending(execution), |ended| Ok(Some(*ended)))
    }

    /// Sends of an execution so far; also the index of its next. Those count that are gone, as far as a later one tells.
    fn member_count(&self, batch: &Batch, execution: ExecutionHash) -> Result<u32, StoreError> {
        if let Some(count) = batch.members.get(&execution) {
            return Ok(*count);
        }
        let segments = self.shared.segments();
        let counts = segments.with(execution.hash).map(|segment| segment.member_count(execution));
        let count = counts.sum::<Result<u32, StoreError>>()?;
        let is_whole = segments.first().is_none_or(|oldest| oldest.number <= FIRST_SEGMENT);
        if count == 0 || is_whole {
            return Ok(count);
        }
        let newest = self.shared.newest_index(execution)?;
        Ok(newest.map_or(count, |index| count.max(index.saturating_add(1))))
    }
}

impl IdempotencyKey {
    /// The same key of the same tenant and path.
    fn is_of(&self, other: &Self) -> bool {
        self.tenant == other.tenant && self.path == other.path && self.key == other.key
    }
}
