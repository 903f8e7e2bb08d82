//! Which events go together: those of one tenant for one place, in a batch that closes a while after its first event, or
//! when it is full.
//!
//! Decides only: `now` is an argument, and what is gathered is known by who it is and how large, not by what it says. All
//! of it is on disk as sends that wait; a process that dies gathers them anew, in the same order, into batches of the same
//! identities.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::outcome::Processed;
use crate::record::{BatchId, InBatch};
use crate::send::{Place, SendId, TenantId};

/// When a batch is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// After its first event.
    pub every: Duration,
    /// Of payloads; an event that goes beyond is the first of the next.
    pub bytes: u64,
    pub sends: usize,
}

/// An event that waits for its batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: SendId,
    pub workflow: Option<Arc<str>>,
    pub created_at: Timestamp,
    pub released_at: Timestamp,
    pub expires_at: Timestamp,
    /// Of its payload.
    pub bytes: u64,
}

/// A batch that is to be closed.
#[derive(Debug, PartialEq, Eq)]
pub struct Ripe {
    pub id: BatchId,
    pub tenant: TenantId,
    pub place: Place,
    pub opened_at: Timestamp,
    pub members: Vec<Member>,
}

/// How a batch that gathers stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gathering {
    pub tenant: TenantId,
    pub place: Place,
    pub opened_at: Timestamp,
    pub closes_at: Timestamp,
    pub sends: usize,
    pub bytes: u64,
}

#[derive(Debug)]
struct Open {
    id: BatchId,
    opened_at: Timestamp,
    closes_at: Timestamp,
    /// When it closes although more of what was there before it may come.
    closes_by: Timestamp,
    /// The earlier of the two.
    due_at: Timestamp,
    bytes: u64,
    members: Vec<Member>,
}

#[derive(Debug, Default)]
pub struct Gatherer {
    open: HashMap<(TenantId, Place), Open>,
    /// The same by when they close: what is not due is not looked at.
    queue: BTreeMap<(Timestamp, BatchId), Arc<(TenantId, Place)>>,
    by_id: HashMap<BatchId, Arc<(TenantId, Place)>>,
    /// Whose batch gathers each.
    whose: HashMap<SendId, Arc<(TenantId, Place)>>,
    names: HashMap<(TenantId, Place), Arc<(TenantId, Place)>>,
}

fn after(at: Timestamp, time: Duration) -> Timestamp {
    let time = SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX);
    at.checked_add(time).unwrap_or(Timestamp::MAX)
}

impl Gatherer {
    /// Adds an event, behind those that came before. What it makes full is to be closed at once.
    pub fn take(
        &mut self,
        tenant: &TenantId,
        place: &Place,
        member: Member,
        terms: Terms,
        now: Timestamp,
    ) -> Vec<Ripe> {
        let mut ripe = Vec::new();
        if self.whose.contains_key(&member.id) {
            return ripe;
        }
        let key = (tenant.clone(), place.clone());
        if self.open.get(&key).is_some_and(|open| open.bytes + member.bytes > terms.bytes) {
            ripe.extend(self.close(&key));
        }
        let (closes_at, closes_by) = (after(member.released_at, terms.every), after(now, terms.every));
        let open = self.open.entry(key.clone()).or_insert_with(|| Open {
            id: BatchId::of(member.id, tenant, place),
            opened_at: member.released_at,
            closes_at,
            closes_by,
            due_at: closes_at.min(closes_by),
            bytes: 0,
            members: Vec::new(),
        });
        let name = self.names.entry(key.clone()).or_insert_with(|| Arc::new(key.clone())).clone();
        self.whose.insert(member.id, name.clone());
        if open.members.is_empty() {
            self.queue.insert((open.due_at, open.id), name.clone());
            self.by_id.insert(open.id, name);
        }
        open.bytes += member.bytes;
        open.members.push(member);
        if open.members.len() >= terms.sends || open.bytes >= terms.bytes {
            ripe.extend(self.close(&key));
        }
        ripe
    }

    fn close(&mut self, key: &(TenantId, Place)) -> Option<Ripe> {
        let Open { id, opened_at, due_at, members, .. } = self.open.remove(key)?;
        self.names.remove(key);
        self.queue.remove(&(due_at, id));
        self.by_id.remove(&id);
        for member in &members {
            self.whose.remove(&member.id);
        }
        let (tenant, place) = key.clone();
        Some(Ripe { id, tenant, place, opened_at, members })
    }

    /// Those whose time has come. `settled`: nothing more of this tenant comes that waited before, so that what a process
    /// left behind is gathered as a whole.
    pub fn due(&mut self, now: Timestamp, settled: impl Fn(&TenantId) -> bool) -> Vec<Ripe> {
        let is_due = |key: &(TenantId, Place)| {
            self.open.get(key).is_some_and(|open| now >= open.closes_by || (now >= open.closes_at && settled(&key.0)))
        };
        let due = self.queue.iter().take_while(|((due_at, _), _)| *due_at <= now);
        let due: Vec<_> = due.map(|(_, key)| key.clone()).filter(|key| is_due(key)).collect();
        due.iter().filter_map(|key| self.close(key)).collect()
    }

    /// Takes out the events for which there is a reason.
    pub fn remove_where<W>(
        &mut self,
        why: impl Fn(&TenantId, &Place, &Member) -> Option<W>,
    ) -> Vec<(TenantId, Member, W)> {
        let mut gone = Vec::new();
        for ((tenant, place), open) in &mut self.open {
            let before = std::mem::take(&mut open.members);
            for member in before {
                match why(tenant, place, &member) {
                    None => open.members.push(member),
                    Some(why) => {
                        open.bytes -= member.bytes;
                        self.whose.remove(&member.id);
                        gone.push((tenant.clone(), member, why));
                    }
                }
            }
        }
        let empty: Vec<_> =
            self.open.iter().filter(|(_, open)| open.members.is_empty()).map(|(key, _)| key.clone()).collect();
        empty.iter().for_each(|key| drop(self.close(key)));
        gone
    }

    /// How many events gather.
    pub fn events(&self) -> usize {
        self.whose.len()
    }

    /// The batch that gathers this event.
    pub fn of(&self, send: SendId) -> Option<InBatch> {
        self.opened(send).map(|(batch, _)| batch)
    }

    /// With when its first event came.
    pub fn opened(&self, send: SendId) -> Option<(InBatch, Timestamp)> {
        let open = self.open.get(&**self.whose.get(&send)?)?;
        Some((InBatch { id: open.id, closes_at: open.closes_at, taken: Processed::No }, open.opened_at))
    }

    pub fn gathers(&self, tenant: &TenantId, place: &Place, id: BatchId) -> bool {
        self.open.get(&(tenant.clone(), place.clone())).is_some_and(|open| open.id == id)
    }

    pub fn gathering(&self, id: BatchId) -> Option<Gathering> {
        let key = self.by_id.get(&id)?;
        let ((tenant, place), open) = (&**key, self.open.get(&**key)?);
        Some(Gathering {
            tenant: tenant.clone(),
            place: place.clone(),
            opened_at: open.opened_at,
            closes_at: open.closes_at,
            sends: open.members.len(),
            bytes: open.bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { every: Duration::from_secs(60), bytes: 100, sends: 3 };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("a time")
    }

    fn member(number: u128, second: i64, bytes: u64) -> Member {
        Member {
            id: SendId(uuid::Uuid::from_u128(number)),
            workflow: None,
            created_at: at(second),
            released_at: at(second),
            expires_at: at(second + 1000),
            bytes,
        }
    }

    fn place(prefix: &str) -> Place {
        Place::S3 { bucket: "b".into(), prefix: prefix.into() }
    }

    fn numbers(ripe: &[Ripe]) -> Vec<Vec<u128>> {
        ripe.iter().map(|ripe| ripe.members.iter().map(|member| member.id.0.as_u128()).collect()).collect()
    }

    #[test]
    fn a_batch_is_of_one_tenant_and_place_and_closes_after_its_first_or_when_it_is_full() {
        let mut gatherer = Gatherer::default();
        let (acme, other) = (TenantId::new("acme"), TenantId::new("other"));
        for (tenant, prefix, number) in [(&acme, "p", 1), (&acme, "q", 2), (&other, "p", 3)] {
            let ripe = gatherer.take(tenant, &place(prefix), member(number, number as i64, 10), TERMS, at(5));
            assert_eq!(numbers(&ripe), [[0; 0]; 0]);
        }
        assert!(gatherer.take(&acme, &place("p"), member(4, 5, 10), TERMS, at(5)).is_empty());
        // A second time is none.
        assert!(gatherer.take(&acme, &place("p"), member(4, 5, 10), TERMS, at(5)).is_empty());
        let one = gatherer.of(member(1, 1, 1).id).expect("gathered");
        assert_eq!(Some(one), gatherer.of(member(4, 1, 1).id));
        assert_eq!(one.closes_at, at(61));
        assert_eq!(gatherer.opened(member(4, 1, 1).id), Some((one, at(1))));
        assert!(gatherer.gathers(&acme, &place("p"), one.id) && !gatherer.gathers(&acme, &place("q"), one.id));
        let standing = gatherer.gathering(one.id).expect("it gathers");
        assert_eq!((standing.sends, standing.bytes, standing.opened_at), (2, 20, at(1)));
        // By number.
        assert_eq!(numbers(&gatherer.take(&acme, &place("p"), member(5, 6, 10), TERMS, at(6))), [[1, 4, 5]]);
        assert_eq!(gatherer.of(member(1, 1, 1).id), None);
        // By size: what would not fit is the first of the next.
        assert!(gatherer.take(&acme, &place("p"), member(6, 6, 60), TERMS, at(6)).is_empty());
        assert_eq!(numbers(&gatherer.take(&acme, &place("p"), member(7, 6, 60), TERMS, at(6))), [[6]]);
        assert_eq!(numbers(&gatherer.take(&acme, &place("p"), member(8, 6, 100), TERMS, at(6))), [[7], [8]]);
        // By time: of those that came from before nothing more is to come, or it is late.
        assert!(gatherer.due(at(61), |_| true).is_empty());
        assert!(gatherer.due(at(64), |_| false).is_empty());
        let mut due = numbers(&gatherer.due(at(63), |_| true));
        due.sort();
        assert_eq!(due, [[2], [3]]);
        assert!(gatherer.take(&acme, &place("p"), member(9, 6, 1), TERMS, at(100)).is_empty());
        assert!(gatherer.due(at(159), |_| false).is_empty());
        assert_eq!(numbers(&gatherer.due(at(160), |_| false)), [[9]]);
    }

    #[test]
    fn what_is_taken_out_is_in_no_batch_and_the_rest_keeps_its_own() {
        let mut gatherer = Gatherer::default();
        let acme = TenantId::new("acme");
        for number in [1, 2] {
            assert!(gatherer.take(&acme, &place("p"), member(number, 1, 10), TERMS, at(1)).is_empty());
        }
        let id = gatherer.of(member(2, 1, 1).id).map(|batch| batch.id);
        let first = |_: &TenantId, _: &Place, member: &Member| (member.id.0.as_u128() == 1).then_some("why");
        let gone = gatherer.remove_where(first);
        assert_eq!(gone.len(), 1);
        assert_eq!(gatherer.of(member(1, 1, 1).id), None);
        assert_eq!(gatherer.of(member(2, 1, 1).id).map(|batch| batch.id), id);
        assert_eq!(gatherer.remove_where(|_, _, _| Some(())).len(), 1);
        assert!(gatherer.due(at(1000), |_| true).is_empty());
    }
}
