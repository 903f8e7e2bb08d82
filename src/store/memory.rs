//! The twin in memory: the same answers as the embedded store's, and nothing of it outlives the process.
//!
//! For tests and for telling what the trait means. Everything is under one lock; nothing is fast about it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::FutureExt;
use jiff::{SignedDuration, Timestamp};

use super::stats::{self, By, Choosing, Place, Stats, StatsAsked};
use super::view::{self, EndedExecution, Standing, host_text};
use super::{
    Accept, Accepted, Batches, Begin, Claimed, Course, Ending, ExecutionAnswer, ExecutionEnd, ExecutionFilter,
    ExecutionPage, Filter, IdempotencyKey, NewSend, OnceOnly, Page, Pending, Published, Reach, Records, Recovered,
    Registry, Released, Session, Started, StoreEnd, StoreError, StoreResult, Suspension, SweepPlace, Swept, TailItem,
    TailPlace, TunnelFilter, TunnelPage, Tunnels, WaitingCount, Want,
};
use crate::limits::{self, IDEMPOTENCY_KEPT};
use crate::outcome::{Failure, Outcome};
use crate::policy::{Asker, Suspensions};
use crate::record::{
    Batch, BatchId, BatchState, Execution, ExecutionState, ExecutionSummary, Finished, FinishedBy, Record, State,
    Tunnel, Unfinished,
};
use crate::redact::RedactKey;
use crate::send::{ExecutionId, SendId, SendSpec, TenantId};

/// How long records are kept.
const RETENTION: SignedDuration = SignedDuration::from_hours(30 * 24);

/// Sends remembered for as long as this value lives.
pub struct Memory {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    closed: bool,
    /// The session of each node that is in force, by its incarnation.
    sessions: HashMap<Arc<str>, u64>,
    incarnations: u64,
    /// In accept order.
    sends: Vec<Kept>,
    places: HashMap<SendId, usize>,
    endings: HashMap<(TenantId, ExecutionId), EndedExecution>,
    members: HashMap<(TenantId, ExecutionId), Vec<usize>>,
    keys: HashMap<(TenantId, String, String), KeptKey>,
    /// By the place in the tail.
    tail: BTreeMap<u64, usize>,
    tunnels: BTreeMap<u128, Arc<Tunnel>>,
    batches: BTreeMap<BatchId, Arc<Batch>>,
    suspensions: Vec<Suspension>,
    published: Published,
    digest: Option<[u8; 32]>,
}

struct Kept {
    new: NewSend,
    node: Arc<str>,
    hold: Option<ExecutionId>,
    index: Option<u32>,
    claimed_by: Option<Session>,
    started: Option<(Timestamp, Session)>,
    finished: Option<Finished>,
    /// Its record's time is over.
    gone: bool,
}

struct KeptKey {
    fingerprint: [u8; 32],
    at: Timestamp,
    sends: Vec<SendId>,
}

impl Memory {
    pub fn new() -> Self {
        Self { inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<MutexGuard<'_, Inner>, StoreError> {
        let inner = self.lock();
        if inner.closed { Err(StoreError::CannotWrite("it is closed".into())) } else { Ok(inner) }
    }

    /// For a session that is in force.
    fn open_for(&self, by: &Session) -> Result<MutexGuard<'_, Inner>, StoreError> {
        let inner = self.open()?;
        inner.in_force(by)?;
        Ok(inner)
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Kept {
    fn host(&self) -> Option<String> {
        self.new.spec.destination().map(|to| host_text(&to.host))
    }
}

impl Inner {
    fn standing(&self, kept: &Kept) -> Standing {
        let ended =
            kept.hold.as_ref().and_then(|hold| self.endings.get(&(kept.new.tenant.clone(), hold.clone())).copied());
        let started_at = kept.started.as_ref().map(|(at, _)| *at);
        Standing { created_at: kept.new.created_at, held: kept.hold.is_some(), ended, started_at }
    }

    fn in_force(&self, by: &Session) -> Result<(), StoreError> {
        match self.sessions.get(by.node()) {
            Some(incarnation) if *incarnation == by.incarnation() => Ok(()),
            _ => Err(StoreError::Fenced(by.to_string())),
        }
    }

    fn join(&mut self, node: Arc<str>) -> Session {
        self.incarnations += 1;
        let session = Session::new(node.clone(), self.incarnations);
        for kept in &mut self.sends {
            if kept.claimed_by.as_ref().is_some_and(|by| *by.node() == node) {
                kept.claimed_by = None;
            }
        }
        self.sessions.insert(node, session.incarnation());
        session
    }

    /// Released sends that have not begun, in the order of release.
    fn queued(&self) -> Vec<usize> {
        let queued = |place: &usize| {
            let kept = &self.sends[*place];
            kept.finished.is_none() && is_queued(&self.standing(kept))
        };
        let mut places: Vec<usize> = (0..self.sends.len()).filter(queued).collect();
        places.sort_by_key(|place| (self.standing(&self.sends[*place]).released_at(), *place));
        places
    }

    fn pending_of(&self, place: usize) -> Pending {
        let kept = &self.sends[place];
        let released_at = self.standing(kept).released_at().unwrap_or(kept.new.created_at);
        Pending {
            accepted_by: None,
            id: kept.new.id,
            tenant: kept.new.tenant.clone(),
            workflow: kept.new.spec.context.workflow.clone(),
            destination: kept.new.spec.destination().cloned(),
            created_at: kept.new.created_at,
            released_at,
            expires_in: kept.new.expires_in,
            gathers: kept
                .new
                .spec
                .gathers()
                .map(|place| (place.clone(), kept.new.spec.body().map_or(0, |body| body.len() as u64))),
            spec: None,
        }
    }

    /// When the first held send of an execution was accepted.
    fn opened_at(&self, execution: &(TenantId, ExecutionId)) -> Option<Timestamp> {
        let members = self.members.get(execution)?.iter().map(|&place| &self.sends[place]);
        members.filter(|kept| kept.hold.is_some()).map(|kept| kept.new.created_at).next()
    }

    fn claim(&mut self, by: &Session, wants: &[Want], limit: usize) -> Claimed {
        let mut claimed = Claimed::default();
        let queued = self.queued();
        for want in wants {
            let mut room = want.room;
            for &place in &queued {
                let pending = self.pending_of(place);
                let is_full = pending.destination.as_ref().is_some_and(|wanted| want.full.contains(wanted));
                if pending.tenant != want.tenant || is_full || self.sends[place].claimed_by.is_some() {
                    continue;
                }
                if room == 0 {
                    break;
                }
                if claimed.sends.len() == limit {
                    claimed.more = true;
                    return claimed;
                }
                room -= 1;
                self.sends[place].claimed_by = Some(by.clone());
                claimed.sends.push(pending);
            }
        }
        claimed
    }

    fn waiting(&self) -> BTreeMap<TenantId, WaitingCount> {
        let mut tenants: BTreeMap<TenantId, WaitingCount> = BTreeMap::new();
        for kept in self.sends.iter().filter(|kept| kept.finished.is_none() && kept.started.is_none()) {
            let standing = self.standing(kept);
            let count = tenants.entry(kept.new.tenant.clone()).or_default();
            match standing.released_at() {
                Some(released) => {
                    count.queued += 1;
                    if kept.claimed_by.is_none() {
                        count.unclaimed += 1;
                        count.oldest = Some(count.oldest.map_or(released, |oldest| oldest.min(released)));
                    }
                }
                None => count.held += 1,
            }
        }
        tenants
    }

    /// Ends what `why` gives a reason for, of what waits, nobody has claimed and no batch holds.
    fn end_where(
        &mut self,
        now: Timestamp,
        limit: usize,
        why: impl Fn(&Self, &Kept) -> Option<Failure>,
    ) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        for place in 0..self.sends.len() {
            let kept = &self.sends[place];
            if kept.finished.is_some() || kept.started.is_some() || kept.claimed_by.is_some() {
                continue;
            }
            let Some(why) = why(self, kept) else { continue };
            let mut open = self.batches.values().filter(|batch| batch.state != BatchState::Done);
            if open.any(|batch| batch.sends.contains(&kept.new.id)) {
                continue;
            }
            if swept.ended.len() == limit {
                swept.next = Some(SweepPlace(place as u128));
                break;
            }
            swept.ended.push(self.end(place, why, now)?);
        }
        Ok(swept)
    }

    /// Gives a send the end that only the store can give it.
    fn end(&mut self, place: usize, why: Failure, now: Timestamp) -> Result<StoreEnd, StoreError> {
        let kept = &self.sends[place];
        let (id, tenant, code) = (kept.new.id, kept.new.tenant.clone(), why.code);
        let finished = self.standing(kept).end(id, why, now);
        Ok(StoreEnd { id, tenant, code, place: self.put_end(finished)? })
    }

    fn release_overdue(
        &mut self,
        held_for: SignedDuration,
        now: Timestamp,
        limit: usize,
    ) -> Result<Released, StoreError> {
        let opened_before = now.checked_sub(held_for).unwrap_or(Timestamp::MIN);
        let open = self.members.keys().filter(|execution| !self.endings.contains_key(execution));
        let opened = open.filter_map(|execution| Some((self.opened_at(execution)?, execution.clone())));
        let mut overdue: Vec<_> = opened.filter(|(opened, _)| *opened < opened_before).collect();
        overdue.sort();
        let mut released = Released { executions: Vec::new(), more: overdue.len() > limit };
        for (_, execution) in overdue.into_iter().take(limit) {
            let ending = Ending::Finish(FinishedBy::HoldLimit);
            if let ExecutionEnd::Done { count, .. } = self.end_execution(execution.clone(), ending, now)?.end {
                released.executions.push((execution.0, execution.1, count));
            }
        }
        Ok(released)
    }

    fn record(&self, place: usize, bodies: bool) -> Record {
        let kept = &self.sends[place];
        let standing = self.standing(kept);
        let mut record = Record::from(Unfinished {
            id: kept.new.id,
            tenant: kept.new.tenant.clone(),
            context: kept.new.spec.context.clone(),
            index: kept.index,
            request: kept.new.shown.clone(),
            resend_of: kept.new.resend_of,
            node: kept.node.to_string(),
            created_at: kept.new.created_at,
            released_at: standing.released_at(),
            started_at: standing.started_at,
            timings: standing.timings(),
        });
        if let Some(finished) = kept.finished.clone() {
            record.end(finished);
        }
        if !bodies {
            if let Some(body) = &mut record.request.body {
                body.bytes = None;
            }
            if let Some(response) = &mut record.response {
                response.body.bytes = None;
            }
        }
        record
    }

    fn replay(&self, key: &IdempotencyKey, now: Timestamp) -> Option<Accepted> {
        let kept = self.keys.get(&(key.tenant.clone(), key.path.clone(), key.key.clone()))?;
        if crate::record::waited(kept.at, now) >= IDEMPOTENCY_KEPT {
            return None;
        }
        Some(if kept.fingerprint == key.fingerprint {
            Accepted::Replayed(kept.sends.clone())
        } else {
            Accepted::Mismatch
        })
    }

    fn finish(&mut self, by: &Session, finished: Finished) -> Result<TailPlace, StoreError> {
        let place = *self.places.get(&finished.id).ok_or(StoreError::NoSuchSend)?;
        let kept = &self.sends[place];
        let holder = kept.started.as_ref().map(|(_, by)| by).or(kept.claimed_by.as_ref());
        if holder != Some(by) {
            return Err(StoreError::NoSuchSend);
        }
        self.put_end(finished)
    }

    fn put_end(&mut self, finished: Finished) -> Result<TailPlace, StoreError> {
        let place = *self.places.get(&finished.id).ok_or(StoreError::NoSuchSend)?;
        if self.sends[place].finished.is_some() {
            return Err(StoreError::NoSuchSend);
        }
        self.sends[place].finished = Some(finished);
        let newest = self.tail.last_key_value().map_or(0, |(newest, _)| *newest) + 1;
        self.tail.insert(newest, place);
        Ok(TailPlace::from_bits(newest))
    }

    fn accept(&mut self, by: &Session, call: Accept) -> Accepted {
        let now = call.sends.first().map(|send| send.created_at).unwrap_or_default();
        if let Some(replay) = call.idempotency.as_ref().and_then(|key| self.replay(key, now)) {
            return replay;
        }
        if let Some(hold) = &call.hold {
            let execution = (call.tenant.clone(), hold.clone());
            if let Some(ended) = self.endings.get(&execution) {
                return Accepted::Ended(ended.ending.state());
            }
            let before = self.members.get(&execution).map_or(0, Vec::len);
            if before + call.sends.len() > call.sends_per_execution as usize {
                return Accepted::ExecutionFull;
            }
        }
        if let Some(key) = call.idempotency {
            let kept = KeptKey {
                fingerprint: key.fingerprint,
                at: now,
                sends: call.sends.iter().map(|send| send.id).collect(),
            };
            self.keys.insert((key.tenant, key.path, key.key), kept);
        }
        let mut indexes = Vec::with_capacity(call.sends.len());
        let mut started = Vec::new();
        for new in call.sends {
            let place = self.sends.len();
            let index = new.spec.context.execution.as_ref().map(|execution| {
                let members = self.members.entry((new.tenant.clone(), execution.clone())).or_default();
                let before = members.last().and_then(|&place| self.sends[place].index);
                members.push(place);
                before.map_or(0, |index| index + 1)
            });
            indexes.push(index);
            self.places.insert(new.id, place);
            let course = if call.hold.is_some() { Course::Wait } else { new.course };
            let begun = course == Course::Begin;
            if begun {
                let (tenant, spec) = (new.tenant.clone(), new.spec.clone());
                started.push(Started::new(new.id, tenant, spec, new.created_at, by.clone()));
            }
            self.sends.push(Kept {
                node: by.node().clone(),
                hold: call.hold.clone(),
                index,
                claimed_by: (course == Course::Claim).then(|| by.clone()),
                started: begun.then(|| (new.created_at, by.clone())),
                finished: None,
                gone: false,
                new,
            });
        }
        Accepted::New { indexes, started }
    }

    fn end_execution(
        &mut self,
        execution: (TenantId, ExecutionId),
        ending: Ending,
        at: Timestamp,
    ) -> Result<ExecutionAnswer, StoreError> {
        if let Some(before) = self.endings.get(&execution) {
            let end = if before.ending.state() == ending.state() {
                ExecutionEnd::Done { count: before.count, first: false }
            } else {
                ExecutionEnd::Conflict(before.ending.state())
            };
            return Ok(ExecutionAnswer { end, ended: Vec::new() });
        }
        let members = self.members.get(&execution).map_or(&[][..], Vec::as_slice);
        let waits = |place: &&usize| self.sends[**place].hold.is_some() && self.sends[**place].finished.is_none();
        let held: Vec<usize> = members.iter().filter(waits).copied().collect();
        let count = held.len() as u64;
        self.endings.insert(execution, EndedExecution { ending, at, count });
        let ended = match ending {
            Ending::Finish(_) => Vec::new(),
            Ending::Discard => {
                let ends = held.into_iter().map(|place| self.end(place, view::discarded(), at));
                ends.collect::<Result<_, _>>()?
            }
        };
        Ok(ExecutionAnswer { end: ExecutionEnd::Done { count, first: true }, ended })
    }

    fn begin(&mut self, by: &Session, begin: Begin) -> Result<Started, StoreError> {
        let place = *self.places.get(&begin.id).ok_or(StoreError::NoSuchSend)?;
        let kept = &self.sends[place];
        let waiting = kept.finished.is_none() && is_queued(&self.standing(kept));
        let is_mine = kept.claimed_by.as_ref() == Some(by);
        if kept.new.tenant != begin.tenant || !waiting || !is_mine {
            return Err(StoreError::NoSuchSend);
        }
        let spec = kept.new.spec.clone();
        self.sends[place].started = Some((begin.at, by.clone()));
        Ok(Started::new(begin.id, begin.tenant, spec, begin.at, by.clone()))
    }

    fn recover(&mut self, now: Timestamp) -> Result<Recovered, StoreError> {
        let mut recovered = Recovered::default();
        for place in 0..self.sends.len() {
            let kept = &self.sends[place];
            let standing = self.standing(kept);
            let error = if kept.finished.is_some() {
                continue;
            } else if let Some((_, started_by)) = &kept.started {
                if self.in_force(started_by).is_ok() {
                    continue;
                }
                recovered.interrupted += 1;
                view::interrupted()
            } else if standing.is_discarded() {
                recovered.discarded += 1;
                view::discarded()
            } else {
                continue;
            };
            recovered.note(kept.new.id);
            self.end(place, error, now)?;
        }
        Ok(recovered)
    }

    fn list(&self, filter: &Filter, cursor: Option<String>, limit: usize) -> Result<Page, StoreError> {
        let before = match cursor {
            None => self.sends.len(),
            Some(cursor) => cursor.parse().ok().filter(|at| *at <= self.sends.len()).ok_or(StoreError::BadCursor)?,
        };
        let mut page = Page::default();
        for (looked_at, place) in (0..before).rev().enumerate() {
            if looked_at == limits::LIST_LOOKED_AT_MAX {
                page.next = Some((place + 1).to_string());
                break;
            }
            let record = self.record(place, false);
            if self.sends[place].gone || !filter.lets_through(&record, self.sends[place].host().as_deref()) {
                continue;
            }
            if page.sends.len() == limit {
                page.next = Some((place + 1).to_string());
                break;
            }
            page.sends.push(record);
        }
        Ok(page)
    }

    fn execution(
        &self,
        tenant: TenantId,
        execution: ExecutionId,
        cursor: Option<String>,
        limit: usize,
    ) -> Result<Option<Execution>, StoreError> {
        let key = (tenant, execution);
        let ended = self.endings.get(&key);
        let members = self.members.get(&key).map_or(&[][..], Vec::as_slice);
        if ended.is_none() && members.is_empty() {
            return Ok(None);
        }
        let from = match cursor {
            None => 0,
            Some(cursor) => cursor.parse().ok().filter(|at| *at <= members.len()).ok_or(StoreError::BadCursor)?,
        };
        let delivered = members.iter().filter(|&&place| {
            let finished = self.sends[place].finished.as_ref();
            finished.is_some_and(|finished| finished.ended.outcome == Outcome::Delivered)
        });
        let sends: Vec<_> = members[from..].iter().take(limit).map(|&place| self.record(place, false)).collect();
        let next = (from + sends.len() < members.len()).then(|| (from + sends.len()).to_string());
        Ok(Some(Execution {
            state: ended.map_or(ExecutionState::Open, |ended| ended.ending.state()),
            finished_by: ended.and_then(|ended| ended.ending.finished_by()),
            delivered: delivered.count() as u64,
            total: members.len() as u64,
            execution: key.1,
            sends,
            next,
        }))
    }

    fn executions(
        &self,
        filter: &ExecutionFilter,
        cursor: Option<String>,
        limit: usize,
    ) -> Result<ExecutionPage, StoreError> {
        let before = match cursor {
            None => self.sends.len(),
            Some(cursor) => cursor.parse().ok().filter(|at| *at <= self.sends.len()).ok_or(StoreError::BadCursor)?,
        };
        let of_first = filter.of_first();
        let mut page = ExecutionPage::default();
        let first_ones: HashSet<usize> = self.members.values().filter_map(|members| members.first().copied()).collect();
        for place in (0..before).rev().filter(|place| first_ones.contains(place)) {
            let record = self.record(place, false);
            let Some(execution) = record.context.execution.clone() else { continue };
            let key = (record.tenant.clone(), execution);
            let ended = self.endings.get(&key);
            let state = ended.map_or(ExecutionState::Open, |ended| ended.ending.state());
            if !of_first.lets_through(&record, None) || filter.state.is_some_and(|wanted| wanted != state) {
                continue;
            }
            if page.executions.len() == limit {
                page.next = Some((place + 1).to_string());
                break;
            }
            let members = self.members.get(&key).map_or(&[][..], Vec::as_slice);
            let ends = || members.iter().filter_map(|&place| self.sends[place].finished.as_ref());
            page.executions.push(ExecutionSummary {
                tenant: key.0,
                execution: key.1,
                workflow: record.context.workflow.as_deref().map(str::to_owned),
                state,
                finished_by: ended.and_then(|ended| ended.ending.finished_by()),
                delivered: ends().filter(|end| end.ended.outcome == Outcome::Delivered).count() as u64,
                done: ends().count() as u64,
                total: members.len() as u64,
                created_at: record.created_at,
                ended_at: ended.map(|ended| ended.at),
            });
        }
        Ok(page)
    }

    /// Records of a month are kept.
    fn retain(&mut self, now: Timestamp) {
        let oldest = now.checked_sub(RETENTION).unwrap_or(Timestamp::MIN);
        for kept in &mut self.sends {
            kept.gone |= kept.finished.as_ref().is_some_and(|finished| finished.finished_at < oldest);
        }
        self.batches.retain(|_, batch| batch.state != BatchState::Done || batch.closes_at >= oldest);
        let sends = &self.sends;
        self.places.retain(|_, place| !sends[*place].gone);
        self.tail.retain(|_, place| !sends[*place].gone);
        self.members.values_mut().for_each(|members| members.retain(|&place| !sends[place].gone));
    }

    fn finished_after(&self, after: TailPlace, filter: &Filter, limit: usize) -> (Vec<TailItem>, TailPlace) {
        let mut items = Vec::new();
        let mut looked_at = after;
        for (&newest, &place) in self.tail.range(after.to_bits().saturating_add(1)..) {
            if items.len() == limit {
                break;
            }
            looked_at = TailPlace::from_bits(newest);
            let record = self.record(place, false);
            if filter.lets_through(&record, self.sends[place].host().as_deref()) {
                items.push(TailItem { place: looked_at, record });
            }
        }
        (items, looked_at)
    }

    fn outcomes_of_the_hour(&self, now: Timestamp) -> HashMap<TenantId, HashMap<Outcome, u64>> {
        let mut counts: HashMap<TenantId, HashMap<Outcome, u64>> = HashMap::new();
        let recent = |finished: &&Finished| view::is_of_the_hour(finished.finished_at, now);
        for kept in &self.sends {
            if let Some(finished) = kept.finished.as_ref().filter(recent) {
                *counts.entry(kept.new.tenant.clone()).or_default().entry(finished.ended.outcome).or_default() += 1;
            }
        }
        counts
    }

    fn stats(&self, asked: &StatsAsked) -> Stats {
        let ends: Vec<(Option<String>, Place)> = self
            .sends
            .iter()
            .filter(|kept| asked.reach.takes_in(&kept.new.tenant))
            .filter_map(|kept| {
                let end = kept.finished.as_ref()?;
                let slot = stats::slot_of(end.finished_at);
                let name = match asked.by {
                    By::Outcome => Some(end.ended.outcome.label().to_owned()),
                    By::Tenant => Some(kept.new.tenant.to_string()),
                    By::Host => kept.host(),
                    By::Source => end.connection.as_ref().and_then(|one| one.public).map(|public| public.to_string()),
                };
                let time = stats::time_of(end.timings.total);
                let delivered = end.ended.outcome == Outcome::Delivered;
                asked.takes_in(slot).then_some((name, Place { slot, delivered, time }))
            })
            .collect();
        let mut choosing = Choosing::default();
        ends.iter().for_each(|(name, place)| choosing.add(name.as_deref(), place.delivered, 1));
        let mut gathering = choosing.chosen();
        ends.iter().for_each(|(name, place)| gathering.add(asked, name.as_deref(), *place, 1));
        gathering.done()
    }

    fn publish(&mut self, addresses: Vec<IpAddr>, digest: Option<[u8; 32]>, now: Timestamp) -> Published {
        self.published.add(addresses, now);
        if digest.is_some() && digest != self.digest {
            self.digest = digest;
            self.published.sync_token = super::next_sync_token(self.published.sync_token, now);
        }
        self.published.clone()
    }
}

/// A ready answer: nothing here waits.
fn ready<'a, T: Send + 'a>(answer: Result<T, StoreError>) -> StoreResult<'a, T> {
    std::future::ready(answer).boxed()
}

impl OnceOnly for Memory {
    fn join(&self, node: Arc<str>) -> StoreResult<'_, Session> {
        ready(self.open().map(|mut inner| inner.join(node)))
    }

    fn recover<'a>(&'a self, by: &'a Session, now: Timestamp) -> StoreResult<'a, Recovered> {
        ready(self.open_for(by).and_then(|mut inner| inner.recover(now)))
    }

    fn accept<'a>(&'a self, by: &'a Session, call: Accept) -> StoreResult<'a, Accepted> {
        ready(self.open_for(by).map(|mut inner| inner.accept(by, call)))
    }

    fn replay(&self, key: IdempotencyKey, now: Timestamp) -> StoreResult<'_, Option<Accepted>> {
        ready(self.open().map(|inner| inner.replay(&key, now)))
    }

    fn end_execution<'a>(
        &'a self,
        by: &'a Session,
        tenant: TenantId,
        execution: ExecutionId,
        ending: Ending,
        at: Timestamp,
    ) -> StoreResult<'a, ExecutionAnswer> {
        ready(self.open_for(by).and_then(|mut inner| inner.end_execution((tenant, execution), ending, at)))
    }

    fn claim<'a>(&'a self, by: &'a Session, wants: Vec<Want>, limit: usize) -> StoreResult<'a, Claimed> {
        ready(self.open_for(by).map(|mut inner| inner.claim(by, &wants, limit)))
    }

    fn give_back<'a>(&'a self, by: &'a Session, sends: Vec<SendId>) -> StoreResult<'a, ()> {
        ready(self.open_for(by).map(|mut inner| {
            for id in sends {
                let Some(place) = inner.places.get(&id).copied() else { continue };
                let kept = &mut inner.sends[place];
                if kept.claimed_by.as_ref() == Some(by) && kept.started.is_none() {
                    kept.claimed_by = None;
                }
            }
        }))
    }

    fn begin<'a>(&'a self, by: &'a Session, sends: Vec<Begin>) -> StoreResult<'a, Vec<Result<Started, StoreError>>> {
        ready(self.open_for(by).map(|mut inner| sends.into_iter().map(|begin| inner.begin(by, begin)).collect()))
    }

    fn finish<'a>(&'a self, by: &'a Session, finished: Finished) -> StoreResult<'a, TailPlace> {
        ready(self.open().and_then(|mut inner| inner.finish(by, finished)))
    }

    fn release_overdue<'a>(
        &'a self,
        by: &'a Session,
        held_for: SignedDuration,
        now: Timestamp,
        limit: usize,
    ) -> StoreResult<'a, Released> {
        ready(self.open_for(by).and_then(|mut inner| inner.release_overdue(held_for, now, limit)))
    }

    fn expire<'a>(&'a self, by: &'a Session, now: Timestamp, limit: usize) -> StoreResult<'a, Swept> {
        ready(self.open_for(by).and_then(|mut inner| {
            inner.end_where(now, limit, |inner, kept| {
                let released = inner.standing(kept).released_at()?;
                is_expired(released, kept.new.expires_in, now).then(view::expired)
            })
        }))
    }

    fn end_suspended<'a>(
        &'a self,
        by: &'a Session,
        suspensions: Arc<Suspensions>,
        _from: Option<SweepPlace>,
        now: Timestamp,
        limit: usize,
    ) -> StoreResult<'a, Swept> {
        ready(self.open_for(by).and_then(|mut inner| {
            inner.end_where(now, limit, |_, kept| {
                let asker = Asker { tenant: &kept.new.tenant, workflow: kept.new.spec.context.workflow.as_deref() };
                view::suspended(&suspensions, asker, kept.new.spec.destination().map(|to| &to.host))
            })
        }))
    }

    fn waiting_of(&self, tenant: &TenantId) -> WaitingCount {
        self.lock().waiting().remove(tenant).unwrap_or_default()
    }

    fn waiting_in_all(&self) -> WaitingCount {
        self.lock().waiting().into_values().fold(WaitingCount::default(), WaitingCount::with)
    }

    fn waiting(&self) -> Vec<(TenantId, WaitingCount)> {
        self.lock().waiting().into_iter().collect()
    }
}

impl Records for Memory {
    fn record(&self, reach: Reach, id: SendId, bodies: bool) -> StoreResult<'_, Option<Record>> {
        ready(self.open().map(|inner| {
            let record = inner.places.get(&id).map(|&place| inner.record(place, bodies));
            record.filter(|record| reach.takes_in(&record.tenant))
        }))
    }

    fn list(&self, filter: Filter, cursor: Option<String>, limit: usize) -> StoreResult<'_, Page> {
        ready(self.open().and_then(|inner| inner.list(&filter, cursor, limit)))
    }

    fn execution(
        &self,
        tenant: TenantId,
        execution: ExecutionId,
        cursor: Option<String>,
        limit: usize,
    ) -> StoreResult<'_, Option<Execution>> {
        ready(self.open().and_then(|inner| inner.execution(tenant, execution, cursor, limit)))
    }

    fn executions(
        &self,
        filter: ExecutionFilter,
        cursor: Option<String>,
        limit: usize,
    ) -> StoreResult<'_, ExecutionPage> {
        ready(self.open().and_then(|inner| inner.executions(&filter, cursor, limit)))
    }

    fn finished_after(
        &self,
        place: TailPlace,
        filter: Filter,
        limit: usize,
    ) -> StoreResult<'_, (Vec<TailItem>, TailPlace)> {
        ready(self.open().map(|inner| inner.finished_after(place, &filter, limit)))
    }

    fn newest_place(&self) -> StoreResult<'_, TailPlace> {
        ready(
            self.open().map(|inner| TailPlace::from_bits(inner.tail.last_key_value().map_or(0, |(newest, _)| *newest))),
        )
    }

    fn outcomes_of_the_hour(&self, now: Timestamp) -> StoreResult<'_, HashMap<TenantId, HashMap<Outcome, u64>>> {
        ready(self.open().map(|inner| inner.outcomes_of_the_hour(now)))
    }

    fn stats(&self, asked: StatsAsked) -> StoreResult<'_, Stats> {
        ready(self.open().map(|inner| inner.stats(&asked)))
    }

    fn retain(&self, now: Timestamp) -> StoreResult<'_, ()> {
        ready(self.open().map(|mut inner| inner.retain(now)))
    }

    fn damage(&self) -> Vec<String> {
        Vec::new()
    }

    fn health(&self) -> Result<(), StoreError> {
        self.open().map(|_| ())
    }

    fn close(&self) -> StoreResult<'_, ()> {
        self.lock().closed = true;
        ready(Ok(()))
    }
}

impl Tunnels for Memory {
    fn note_tunnels(&self, tunnels: Vec<Arc<Tunnel>>) -> StoreResult<'_, ()> {
        let by_id = tunnels.into_iter().map(|tunnel| (tunnel.id.as_u128(), tunnel));
        ready(self.open().map(|mut inner| inner.tunnels.extend(by_id)))
    }

    fn tunnels(&self, filter: TunnelFilter, cursor: Option<String>, limit: usize) -> StoreResult<'_, TunnelPage> {
        let before = match cursor.map(|cursor| cursor.parse()) {
            None => u128::MAX,
            Some(Ok(before)) => before,
            Some(Err(_)) => return ready(Err(StoreError::BadCursor)),
        };
        ready(self.open().map(|inner| {
            let tunnels = inner.tunnels.range(..before).rev().map(|(_, tunnel)| Tunnel::clone(tunnel));
            let tunnels: Vec<Tunnel> = tunnels.filter(|tunnel| filter.takes_in(tunnel)).take(limit).collect();
            let next = tunnels.last().filter(|_| tunnels.len() == limit).map(|last| last.id.as_u128().to_string());
            TunnelPage { tunnels, next }
        }))
    }

    fn end_tunnels_left_open<'a>(&'a self, node: &'a str, now: Timestamp) -> StoreResult<'a, u64> {
        ready(self.open().map(|mut inner| {
            let left = inner.tunnels.values_mut().filter(|tunnel| tunnel.ended.is_none() && tunnel.node == node);
            let ended = left.map(|tunnel| *tunnel = Arc::new(tunnel.interrupted(now)));
            ended.count() as u64
        }))
    }
}

impl Batches for Memory {
    fn put_batch<'a>(&'a self, by: &'a Session, batch: Arc<Batch>) -> StoreResult<'a, ()> {
        ready(self.open_for(by).map(|mut inner| drop(inner.batches.insert(batch.id, batch))))
    }

    fn close_batch<'a>(&'a self, by: &'a Session, batch: Arc<Batch>, _grace: Duration) -> StoreResult<'a, Vec<SendId>> {
        ready(self.open_for(by).map(|mut inner| {
            let is_ours = |id: &&SendId| {
                let kept = inner.places.get(id).map(|&place| &inner.sends[place]);
                kept.is_some_and(|kept| kept.finished.is_none() && kept.claimed_by.as_ref() == Some(by))
            };
            let sends: Vec<SendId> = batch.sends.iter().filter(is_ours).copied().collect();
            if !sends.is_empty() {
                inner.batches.insert(batch.id, Arc::new(Batch { sends: sends.clone(), ..Batch::clone(&batch) }));
            }
            sends
        }))
    }

    fn batch(&self, reach: Reach, id: BatchId) -> StoreResult<'_, Option<Batch>> {
        let within = |batch: &&Arc<Batch>| reach.takes_in(&batch.tenant);
        ready(self.open().map(|inner| inner.batches.get(&id).filter(within).map(|batch| Batch::clone(batch))))
    }

    fn open_batches(&self) -> StoreResult<'_, Vec<Batch>> {
        let is_open = |batch: &&Arc<Batch>| batch.state != BatchState::Done;
        ready(
            self.open().map(|inner| inner.batches.values().filter(is_open).map(|batch| Batch::clone(batch)).collect()),
        )
    }

    fn specs(&self, sends: Vec<SendId>) -> StoreResult<'_, Vec<Option<Arc<SendSpec>>>> {
        ready(self.open().map(|inner| {
            let spec = |id: SendId| {
                let kept = &inner.sends[*inner.places.get(&id)?];
                kept.finished.is_none().then(|| kept.new.spec.clone())
            };
            sends.into_iter().map(spec).collect()
        }))
    }
}

impl Registry for Memory {
    fn redact_key(&self) -> RedactKey {
        RedactKey::new(b"a store in memory has no key file")
    }

    fn suspend(&self, suspension: Suspension) -> StoreResult<'_, ()> {
        ready(self.open().map(|mut inner| inner.suspensions.push(suspension)))
    }

    fn lift(&self, id: SendId, at: Timestamp, by: String) -> StoreResult<'_, bool> {
        ready(self.open().map(|mut inner| super::lift_in(&mut inner.suspensions, id, at, by)))
    }

    fn suspensions(&self) -> StoreResult<'_, Vec<Suspension>> {
        ready(self.open().map(|inner| inner.suspensions.iter().rev().cloned().collect()))
    }

    fn publish(&self, addresses: Vec<IpAddr>, digest: Option<[u8; 32]>, now: Timestamp) -> StoreResult<'_, Published> {
        ready(self.open().map(|mut inner| inner.publish(addresses, digest, now)))
    }
}

fn is_queued(standing: &Standing) -> bool {
    State::of(standing.released_at(), standing.started_at) == State::Queued
}

/// Its time counts from its release.
fn is_expired(released_at: Timestamp, expires_in: Duration, now: Timestamp) -> bool {
    let expires_in = SignedDuration::try_from(expires_in).unwrap_or(SignedDuration::MAX);
    released_at.checked_add(expires_in).is_ok_and(|at| at <= now)
}

impl WaitingCount {
    /// Both together.
    fn with(self, other: Self) -> Self {
        let oldest = match (self.oldest, other.oldest) {
            (Some(one), Some(another)) => Some(one.min(another)),
            (one, another) => one.or(another),
        };
        Self {
            held: self.held + other.held,
            queued: self.queued + other.queued,
            unclaimed: self.unclaimed + other.unclaimed,
            oldest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance::{self, Subject};

    struct Twin(Memory, Session);

    impl Subject for Twin {
        type Store = Memory;

        async fn fresh() -> Self {
            let store = Memory::new();
            let session = store.join(Arc::from(conformance::NODE)).await.expect("joined");
            Self(store, session)
        }
        fn store(&self) -> &Memory {
            &self.0
        }
        fn session(&self) -> &Session {
            &self.1
        }
        /// It has no second life: what a restart would find is what is there.
        async fn crash(self) -> Self {
            let session = self.0.join(Arc::from(conformance::NODE)).await.expect("joined");
            Self(self.0, session)
        }
    }

    #[tokio::test]
    async fn the_twin_passes_the_suite() {
        conformance::run::<Twin>().await;
        conformance::waiting::run::<Twin>().await;
        conformance::batches::run::<Twin>().await;
    }
}
