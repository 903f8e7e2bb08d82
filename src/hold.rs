//! The sends of executions that have not ended: kept in call order until they are released or discarded.
//!
//! An image of what the store holds durably; deciding only, `now` is an argument. Not here: the marks on disk
//! (`store`) and the queue that released sends go to (`schedule`).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::policy::Destination;
use crate::schedule::HotSpec;
use crate::send::{ExecutionId, SendId, TenantId};

/// A send that waits for its execution to end.
#[derive(Clone, Debug)]
pub struct Held {
    pub id: SendId,
    pub destination: Option<Destination>,
    pub workflow: Option<Arc<str>>,
    pub created_at: Timestamp,
    /// Counts from its release.
    pub expires_in: SignedDuration,
    pub spec: Option<Arc<HotSpec>>,
}

#[derive(Debug, Default)]
pub struct Hold {
    executions: HashMap<(TenantId, ExecutionId), Open>,
    /// By opening time, so that those at the limit are found without a search.
    by_age: BTreeSet<(Timestamp, TenantId, ExecutionId)>,
    per_tenant: HashMap<TenantId, u64>,
    sends: u64,
}

#[derive(Debug)]
struct Open {
    since: Timestamp,
    sends: Vec<Held>,
}

impl Hold {
    /// Adds sends in call order. `opened_at`: when the execution's first held send was accepted.
    pub fn add(
        &mut self,
        tenant: &TenantId,
        execution: &ExecutionId,
        opened_at: Timestamp,
        sends: impl IntoIterator<Item = Held>,
    ) {
        let key = (tenant.clone(), execution.clone());
        let open = self.executions.entry(key).or_insert_with(|| {
            self.by_age.insert((opened_at, tenant.clone(), execution.clone()));
            Open { since: opened_at, sends: Vec::new() }
        });
        let before = open.sends.len();
        open.sends.extend(sends);
        // Ids are given in accept order; concurrent calls may arrive here the other way round.
        if open.sends[before.saturating_sub(1)..].windows(2).any(|pair| pair[0].id > pair[1].id) {
            open.sends.sort_by_key(|send| send.id);
        }
        let added = (open.sends.len() - before) as u64;
        *self.per_tenant.entry(tenant.clone()).or_default() += added;
        self.sends += added;
    }

    /// Takes an execution's sends out, in call order; empty where it has none.
    pub fn take(&mut self, tenant: &TenantId, execution: &ExecutionId) -> Vec<Held> {
        let Some(open) = self.executions.remove(&(tenant.clone(), execution.clone())) else { return Vec::new() };
        self.by_age.remove(&(open.since, tenant.clone(), execution.clone()));
        self.count_out(tenant, open.sends.len() as u64);
        open.sends
    }

    /// Executions open for `limit` or longer.
    pub fn due(&self, now: Timestamp, limit: SignedDuration) -> Vec<(TenantId, ExecutionId)> {
        self.by_age
            .iter()
            .take_while(|(since, ..)| now.duration_since(*since) >= limit)
            .map(|(_, tenant, execution)| (tenant.clone(), execution.clone()))
            .collect()
    }

    /// Takes out every held send that `which` names; the executions stay open.
    pub fn remove_where(&mut self, mut which: impl FnMut(&TenantId, &Held) -> bool) -> Vec<(TenantId, Held)> {
        let mut out = Vec::new();
        for ((tenant, _), open) in &mut self.executions {
            open.sends.retain(|send| {
                let remove = which(tenant, send);
                if remove {
                    out.push((tenant.clone(), send.clone()));
                }
                !remove
            });
        }
        for (tenant, _) in &out {
            self.count_out(tenant, 1);
        }
        out
    }

    /// Held sends in all.
    pub fn sends(&self) -> u64 {
        self.sends
    }

    pub fn per_tenant(&self) -> &HashMap<TenantId, u64> {
        &self.per_tenant
    }

    fn count_out(&mut self, tenant: &TenantId, sends: u64) {
        self.sends -= sends;
        if let Some(count) = self.per_tenant.get_mut(tenant) {
            *count -= sends;
            if *count == 0 {
                self.per_tenant.remove(tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn held(id: u128) -> Held {
        Held {
            id: SendId(Uuid::from_u128(id)),
            destination: None,
            workflow: None,
            created_at: at(0),
            expires_in: SignedDuration::from_secs(60),
            spec: None,
        }
    }

    #[test]
    fn sends_come_out_in_call_order_even_when_calls_arrive_crossed() {
        let (tenant, execution) = (TenantId::new("t"), ExecutionId::new("e"));
        let mut hold = Hold::default();
        hold.add(&tenant, &execution, at(1), [held(3), held(4)]);
        hold.add(&tenant, &execution, at(1), [held(1), held(2)]);
        assert_eq!(hold.sends(), 4);
        let ids: Vec<u128> = hold.take(&tenant, &execution).iter().map(|send| send.id.0.as_u128()).collect();
        assert_eq!(ids, [1, 2, 3, 4]);
        assert_eq!(hold.sends(), 0);
        assert!(hold.per_tenant().is_empty());
        assert!(hold.take(&tenant, &execution).is_empty());
    }

    #[test]
    fn an_execution_is_due_at_the_limit_and_not_before() {
        let tenant = TenantId::new("t");
        let mut hold = Hold::default();
        hold.add(&tenant, &ExecutionId::new("old"), at(100), [held(1)]);
        hold.add(&tenant, &ExecutionId::new("new"), at(200), [held(2)]);
        let limit = SignedDuration::from_secs(900);
        assert!(hold.due(at(999), limit).is_empty());
        assert_eq!(hold.due(at(1000), limit), [(tenant.clone(), ExecutionId::new("old"))]);
        assert_eq!(hold.due(at(1100), limit).len(), 2);
    }

    #[test]
    fn a_tenant_and_its_execution_ids_are_its_own() {
        let mut hold = Hold::default();
        let execution = ExecutionId::new("same");
        hold.add(&TenantId::new("a"), &execution, at(1), [held(1)]);
        hold.add(&TenantId::new("b"), &execution, at(1), [held(2)]);
        assert_eq!(hold.take(&TenantId::new("a"), &execution).len(), 1);
        assert_eq!(hold.sends(), 1);
        let gone = hold.remove_where(|tenant, _| tenant.as_str() == "b");
        assert_eq!(gone.len(), 1);
        assert_eq!(hold.sends(), 0);
    }
}
