//! Sends that another node of the tier makes: those whose tenant's pool had no source where they were accepted, each from
//! the one node that is chosen for its tenant and host, and those whose destination has addresses of a family alone that
//! this node has no source of.
//!
//! The latter have begun by the time that this is known. Nothing was connected to, so no byte has left: the store takes the
//! start back as it hands the send over, in one durable change. Whoever has it then may not find it out of its reach for
//! the same reason, so none is handed on and on.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::Dispatcher;
use crate::clock;
use crate::deliver::Attempt;
use crate::outcome::Processed;
use crate::send::{SendId, TenantId};
use crate::source::Family;
use crate::store::Pending;

impl Dispatcher {
    /// Those of these claimed sends that were handed over to another node.
    pub(super) async fn others_of(&self, sends: &[Pending]) -> HashSet<SendId> {
        let (neighbours, settings, now) = (self.world.neighbours(), self.world.settings(), clock::wall());
        let mut handed = HashSet::new();
        if neighbours.0.is_empty() {
            return handed;
        }
        let own = self.ledger.session.node();
        let mut by_node: HashMap<u64, Vec<SendId>> = HashMap::new();
        for send in sends {
            let Some((accepted_by, to)) = send.accepted_by.as_ref().zip(send.destination.as_ref()) else { continue };
            let pool = settings.config.pool_of(&send.tenant);
            // Where it could have left it waits for anybody.
            if !neighbours.has_none(accepted_by, &pool) {
                continue;
            }
            let this = settings.sources.pool_usable(&pool, now).then_some(&**own);
            if let Some(other) = neighbours.choose(&pool, &Family::BOTH, &send.tenant, &to.host.text(), this) {
                by_node.entry(other.life).or_default().push(send.id);
            }
        }
        for node in &neighbours.0 {
            let Some(sends) = by_node.remove(&node.life) else { continue };
            match self.ledger.store.hand_over(&self.ledger.session, sends, node).await {
                Ok(moved) => handed.extend(moved),
                Err(error) => {
                    tracing::debug!(%error, node = %node.name, "sends were not handed over, and leave from here")
                }
            }
        }
        handed
    }

    /// Nothing has left, as this node has no source of any family that the destination has; another one has, and makes it.
    pub(super) async fn goes_on_elsewhere(&self, id: SendId, tenant: &TenantId, host: &str, attempt: &Attempt) -> bool {
        let Some(error) = &attempt.ended.error else { return false };
        let Some(connection) = &attempt.connection else { return false };
        let nothing_left = error.processed == Processed::No
            && attempt.sent_headers.is_none()
            && connection.source.is_none()
            && connection.remote.is_none();
        let neighbours = self.world.neighbours();
        if !nothing_left || neighbours.0.is_empty() {
            return false;
        }
        let settings = self.world.settings();
        let pool = settings.config.pool_of(tenant);
        let other = neighbours.reach(connection.allowed(), &settings.sources, &pool, tenant, host);
        let Some(other) = other else { return false };
        match self.ledger.store.hand_over(&self.ledger.session, vec![id], other).await {
            Ok(moved) => {
                tracing::debug!(send = %id, node = %other.name, "handed over: no source here of its destination's family");
                moved.contains(&id)
            }
            Err(error) => {
                tracing::warn!(send = %id, %error, "a send was not handed over to a node that can make it");
                false
            }
        }
    }

    /// Takes what others have claimed for this node.
    pub fn take_handed(self: &Arc<Self>) {
        let this = self.clone();
        let taken = async move {
            let sends = match this.ledger.store.take_handed(&this.ledger.session).await {
                Ok(sends) => sends.into_iter().map(|pending| this.in_window(pending)).collect(),
                Err(error) => return tracing::debug!(%error, "what was handed over was not taken; it is tried again"),
            };
            let terms = this.world.terms();
            let unsent = this.backlog.decide(|flow| flow.handed(sends, &terms));
            this.end_unsent(unsent);
        };
        self.tasks.spawn_on(taken, &self.runtime);
    }
}
