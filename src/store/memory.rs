//! The twin in memory: the same answers as the embedded store's, and nothing of it outlives the process.
//!
//! For tests and for telling what the trait means. Everything is under one lock; nothing is fast about it.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::FutureExt;
use jiff::Timestamp;

use super::view::{self, EndedExecution, Standing, host_text};
use super::{
    Accept, Accepted, Begin, Ending, ExecutionEnd, Filter, IdempotencyKey, NewSend, Page, Pending, Published,
    Recovered, Started, Store, StoreError, StoreResult, Suspension, TailItem,
};
use crate::limits::IDEMPOTENCY_KEPT;
use crate::outcome::Outcome;
use crate::record::{Execution, ExecutionState, Finished, Record, State};
use crate::redact::RedactKey;
use crate::send::{ExecutionId, SendId, Target, TenantId};

/// Sends remembered for as long as this value lives.
pub struct Memory {
    node: Arc<str>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    closed: bool,
    /// In accept order.
    sends: Vec<Kept>,
    places: HashMap<SendId, usize>,
    endings: HashMap<(TenantId, ExecutionId), EndedExecution>,
    members: HashMap<(TenantId, ExecutionId), Vec<usize>>,
    keys: HashMap<(TenantId, String, String), KeptKey>,
    tail: BTreeMap<u64, usize>,
    suspensions: Vec<Suspension>,
    published: Published,
    digest: Option<[u8; 32]>,
}

struct Kept {
    new: NewSend,
    node: Arc<str>,
    hold: Option<ExecutionId>,
    index: Option<u32>,
    started_at: Option<Timestamp>,
    finished: Option<Finished>,
}

struct KeptKey {
    fingerprint: [u8; 32],
    at: Timestamp,
    sends: Vec<SendId>,
}

impl Memory {
    pub fn new(node: &str) -> Self {
        Self { node: Arc::from(node), inner: Mutex::default() }
    }

    /// The name given to [`Self::new`].
    pub fn node(&self) -> &str {
        &self.node
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<MutexGuard<'_, Inner>, StoreError> {
        let inner = self.lock();
        if inner.closed { Err(StoreError::CannotWrite("it is closed".to_owned())) } else { Ok(inner) }
    }
}

impl Kept {
    fn host(&self) -> Option<String> {
        match &self.new.spec.target {
            Target::Url(url) => Some(host_text(&url.destination().host)),
            Target::Refused { .. } => None,
        }
    }
}

impl Inner {
    fn standing(&self, kept: &Kept) -> Standing {
        let ended =
            kept.hold.as_ref().and_then(|hold| self.endings.get(&(kept.new.tenant.clone(), hold.clone())).copied());
        Standing { created_at: kept.new.created_at, held: kept.hold.is_some(), ended, started_at: kept.started_at }
    }

    fn record(&self, place: usize, bodies: bool) -> Record {
        let kept = &self.sends[place];
        let standing = self.standing(kept);
        let mut request = kept.new.shown.clone();
        let finished = kept.finished.as_ref();
        if let Some(sent) = finished.and_then(|finished| finished.sent_headers.clone()) {
            request.headers = sent;
        }
        let mut response = finished.and_then(|finished| finished.response.clone());
        if !bodies {
            if let Some(body) = &mut request.body {
                body.bytes = None;
            }
            if let Some(response) = &mut response {
                response.body.bytes = None;
            }
        }
        Record {
            id: kept.new.id,
            state: if finished.is_some() { State::Done } else { standing.state() },
            ended: finished.map(|finished| finished.ended.clone()),
            resend_of: kept.new.resend_of,
            tenant: kept.new.tenant.clone(),
            context: kept.new.spec.context.clone(),
            index: kept.index,
            request,
            response,
            would_block: finished.and_then(|finished| finished.would_block),
            connection: finished.and_then(|finished| finished.connection.clone()),
            timings: finished.map_or_else(|| standing.timings(), |finished| finished.timings.clone()),
            node: kept.node.to_string(),
            created_at: kept.new.created_at,
            released_at: finished.map_or_else(|| standing.released_at(), |finished| finished.released_at),
            started_at: finished.map_or(kept.started_at, |finished| finished.started_at),
            finished_at: finished.map(|finished| finished.finished_at),
        }
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

    fn finish(&mut self, finished: Finished) -> Result<u64, StoreError> {
        let place = *self.places.get(&finished.id).ok_or(StoreError::NoSuchSend)?;
        if self.sends[place].finished.is_some() {
            return Err(StoreError::NoSuchSend);
        }
        self.sends[place].finished = Some(finished);
        let seq = self.tail.last_key_value().map_or(0, |(seq, _)| *seq) + 1;
        self.tail.insert(seq, place);
        Ok(seq)
    }

    fn accept(&mut self, call: Accept) -> Accepted {
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
        for new in call.sends {
            let place = self.sends.len();
            let index = new.spec.context.execution.as_ref().map(|execution| {
                let members = self.members.entry((new.tenant.clone(), execution.clone())).or_default();
                members.push(place);
                (members.len() - 1) as u32
            });
            indexes.push(index);
            self.places.insert(new.id, place);
            self.sends.push(Kept {
                new,
                node: call.node.clone(),
                hold: call.hold.clone(),
                index,
                started_at: None,
                finished: None,
            });
        }
        Accepted::New { indexes }
    }

    fn end_execution(&mut self, execution: (TenantId, ExecutionId), ending: Ending, at: Timestamp) -> ExecutionEnd {
        if let Some(before) = self.endings.get(&execution) {
            return if before.ending.state() == ending.state() {
                ExecutionEnd::Done { count: before.count, first: false }
            } else {
                ExecutionEnd::Conflict(before.ending.state())
            };
        }
        let members = self.members.get(&execution).map_or(&[][..], Vec::as_slice);
        let count = members
            .iter()
            .filter(|&&place| self.sends[place].hold.is_some() && self.sends[place].finished.is_none())
            .count() as u64;
        self.endings.insert(execution, EndedExecution { ending, at, count });
        ExecutionEnd::Done { count, first: true }
    }

    fn begin(&mut self, begin: Begin) -> Result<Started, StoreError> {
        let place = *self.places.get(&begin.id).ok_or(StoreError::NoSuchSend)?;
        let kept = &self.sends[place];
        let waiting = kept.finished.is_none() && self.standing(kept).state() == State::Queued;
        if kept.new.tenant != begin.tenant || !waiting {
            return Err(StoreError::NoSuchSend);
        }
        let spec = kept.new.spec.clone();
        self.sends[place].started_at = Some(begin.at);
        Ok(Started::new(begin.id, begin.tenant, spec, begin.at))
    }

    fn recover(&mut self, now: Timestamp) -> Result<Recovered, StoreError> {
        let mut recovered = Recovered::default();
        for place in 0..self.sends.len() {
            let kept = &self.sends[place];
            let standing = self.standing(kept);
            let error = if kept.finished.is_some() {
                continue;
            } else if kept.started_at.is_some() {
                recovered.interrupted += 1;
                view::interrupted()
            } else if standing.is_discarded() {
                recovered.discarded += 1;
                view::discarded()
            } else {
                continue;
            };
            let finished = standing.end(kept.new.id, error, now);
            self.finish(finished)?;
        }
        Ok(recovered)
    }

    fn pending(&self, after: Option<SendId>, limit: usize) -> Result<Vec<Pending>, StoreError> {
        let from = match after {
            None => 0,
            Some(id) => self.places.get(&id).ok_or(StoreError::NoSuchSend)? + 1,
        };
        let waiting = self.sends[from..].iter().filter(|kept| kept.finished.is_none() && kept.started_at.is_none());
        let pending = waiting.take(limit).map(|kept| {
            let standing = self.standing(kept);
            let released_at = standing.released_at();
            let held_by = kept.hold.clone().filter(|_| released_at.is_none()).map(|hold| {
                let members = &self.members[&(kept.new.tenant.clone(), hold.clone())];
                let opened = members.iter().map(|&place| &self.sends[place]).find(|kept| kept.hold.is_some());
                (hold, opened.map_or(kept.new.created_at, |kept| kept.new.created_at))
            });
            Pending {
                id: kept.new.id,
                tenant: kept.new.tenant.clone(),
                workflow: kept.new.spec.context.workflow.clone(),
                destination: match &kept.new.spec.target {
                    Target::Url(url) => Some(url.destination().clone()),
                    Target::Refused { .. } => None,
                },
                created_at: kept.new.created_at,
                released_at,
                expires_in: kept.new.expires_in,
                held_by,
            }
        });
        Ok(pending.collect())
    }

    fn list(&self, filter: &Filter, cursor: Option<String>, limit: usize) -> Result<Page, StoreError> {
        let before = match cursor {
            None => self.sends.len(),
            Some(cursor) => cursor.parse().ok().filter(|at| *at <= self.sends.len()).ok_or(StoreError::BadCursor)?,
        };
        let mut page = Page::default();
        for place in (0..before).rev() {
            let record = self.record(place, false);
            if !filter.lets_through(&record, self.sends[place].host().as_deref()) {
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

    fn finished_after(&self, seq: u64, filter: &Filter, limit: usize) -> (Vec<TailItem>, u64) {
        let mut items = Vec::new();
        let mut looked_at = seq;
        for (&seq, &place) in self.tail.range(seq.saturating_add(1)..) {
            if items.len() == limit {
                break;
            }
            looked_at = seq;
            let record = self.record(place, false);
            if filter.lets_through(&record, self.sends[place].host().as_deref()) {
                items.push(TailItem { seq, record });
            }
        }
        (items, looked_at)
    }

    fn outcomes_since(&self, since: Timestamp) -> HashMap<TenantId, HashMap<Outcome, u64>> {
        let mut counts: HashMap<TenantId, HashMap<Outcome, u64>> = HashMap::new();
        for kept in &self.sends {
            if let Some(finished) = kept.finished.as_ref().filter(|finished| finished.finished_at >= since) {
                *counts.entry(kept.new.tenant.clone()).or_default().entry(finished.ended.outcome).or_default() += 1;
            }
        }
        counts
    }

    fn publish(&mut self, addresses: Vec<IpAddr>, digest: Option<[u8; 32]>, now: Timestamp) -> Published {
        if self.published.first.is_empty() {
            self.published.first_start = now;
        }
        for address in addresses {
            self.published.first.entry(address).or_insert(now);
        }
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

impl Store for Memory {
    fn redact_key(&self) -> RedactKey {
        RedactKey::new(b"a store in memory has no key file")
    }

    fn recover(&self, now: Timestamp) -> StoreResult<'_, Recovered> {
        ready(self.open().and_then(|mut inner| inner.recover(now)))
    }

    fn pending(&self, after: Option<SendId>, limit: usize) -> StoreResult<'_, Vec<Pending>> {
        ready(self.open().and_then(|inner| inner.pending(after, limit)))
    }

    fn accept(&self, call: Accept) -> StoreResult<'_, Accepted> {
        ready(self.open().map(|mut inner| inner.accept(call)))
    }

    fn replay(&self, key: IdempotencyKey, now: Timestamp) -> StoreResult<'_, Option<Accepted>> {
        ready(self.open().map(|inner| inner.replay(&key, now)))
    }

    fn end_execution(
        &self,
        tenant: TenantId,
        execution: ExecutionId,
        ending: Ending,
        at: Timestamp,
    ) -> StoreResult<'_, ExecutionEnd> {
        ready(self.open().map(|mut inner| inner.end_execution((tenant, execution), ending, at)))
    }

    fn begin(&self, begin: Begin) -> StoreResult<'_, Started> {
        ready(self.open().and_then(|mut inner| inner.begin(begin)))
    }

    fn finish(&self, finished: Finished) -> StoreResult<'_, u64> {
        ready(self.open().and_then(|mut inner| inner.finish(finished)))
    }

    fn record(&self, tenant: Option<TenantId>, id: SendId, bodies: bool) -> StoreResult<'_, Option<Record>> {
        ready(self.open().map(|inner| {
            let record = inner.places.get(&id).map(|&place| inner.record(place, bodies));
            record.filter(|record| tenant.is_none_or(|tenant| tenant == record.tenant))
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

    fn finished_after(&self, seq: u64, filter: Filter, limit: usize) -> StoreResult<'_, (Vec<TailItem>, u64)> {
        ready(self.open().map(|inner| inner.finished_after(seq, &filter, limit)))
    }

    fn last_seq(&self) -> StoreResult<'_, u64> {
        ready(self.open().map(|inner| inner.tail.last_key_value().map_or(0, |(seq, _)| *seq)))
    }

    fn outcomes_since(&self, since: Timestamp) -> StoreResult<'_, HashMap<TenantId, HashMap<Outcome, u64>>> {
        ready(self.open().map(|inner| inner.outcomes_since(since)))
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

    fn retain(&self, _now: Timestamp) -> StoreResult<'_, ()> {
        ready(self.open().map(|_| ()))
    }

    fn bytes(&self) -> u64 {
        self.lock().sends.iter().map(|kept| kept.new.spec.footprint()).sum()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance::{self, Subject};

    struct Twin(Memory);

    impl Subject for Twin {
        type Store = Memory;

        async fn fresh() -> Self {
            Self(Memory::new(conformance::NODE))
        }
        fn store(&self) -> &Memory {
            &self.0
        }
        /// It has no second life: what a restart would find is what is there.
        async fn crash(self) -> Self {
            self
        }
    }

    #[tokio::test]
    async fn the_twin_passes_the_suite() {
        conformance::run::<Twin>().await;
    }
}
