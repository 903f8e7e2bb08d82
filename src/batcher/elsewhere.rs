//! Batches over many nodes: what gathers here is told of there, what others left is taken, and what cannot leave from here is
//! handed on.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Batcher, Closed, member_of};
use crate::clock;
use crate::record::{Batch, BatchId, Finished};
use crate::send::{Kind, SendId};
use crate::source::{Family, Neighbour};
use crate::store::{Opened, Pending};

impl Batcher {
    /// To be called now and then; one at a time is under way.
    pub(super) fn look_around(self: &Arc<Self>) {
        if self.looking.swap(true, Ordering::AcqRel) {
            return;
        }
        let this = self.clone();
        self.spawn(async move {
            this.clone().take_left().await;
            this.noted().await;
            this.unnote().await;
            this.hand_on().await;
            this.looking.store(false, Ordering::Release);
        });
    }

    /// Once the other nodes can tell of every batch that has been opened here by now. Where the store does not take that, they
    /// are told later.
    pub async fn noted(&self) {
        if self.inside().unnoted.is_empty() {
            return;
        }
        let _turn = self.noting.lock().await;
        let opened = self.inside().unnoted.clone();
        if opened.is_empty() {
            return;
        }
        match self.ledger.store.note_gathering(&self.ledger.session, opened.clone()).await {
            Ok(()) => {
                let mut inside = self.inside();
                inside.unnoted.retain(|one| !opened.contains(one));
                inside.noted.extend(opened.into_iter().map(|one| (one.id, one)));
            }
            Err(error) => tracing::debug!(%error, "the other nodes were not told of what gathers here"),
        }
    }

    /// What gathers no more is told of no more. What is being closed is, until that is durable.
    async fn unnote(&self) {
        let _turn = self.noting.lock().await;
        let gone: Vec<BatchId> = {
            let inside = self.inside();
            let closing: HashSet<BatchId> =
                inside.closed.values().filter(|closed| closed.is_closing).map(|closed| closed.batch.id).collect();
            let is_gone =
                |one: &&Opened| !closing.contains(&one.id) && !inside.gatherer.gathers(&one.tenant, &one.place, one.id);
            inside.noted.values().filter(is_gone).map(|one| one.id).collect()
        };
        if gone.is_empty() {
            return;
        }
        match self.ledger.store.forget_gathering(&self.ledger.session, gone.clone()).await {
            Ok(()) => self.inside().noted.retain(|id, _| !gone.contains(id)),
            Err(error) => tracing::debug!(%error, "the other nodes are told of what gathers here no more"),
        }
    }

    /// Takes what nodes that are gone left behind, until there is no more of it.
    async fn take_left(self: Arc<Self>) {
        while !*self.stop.borrow() {
            let config = self.world.config();
            let is_set_up = |kind: &Kind| match kind {
                Kind::S3 => config.destinations.s3.is_some(),
                Kind::Sql => config.destinations.sql.is_some(),
                Kind::Http | Kind::Email => false,
            };
            let kinds = Kind::ALL.iter().copied().filter(is_set_up).collect();
            let left = match self.ledger.store.take_left(&self.ledger.session, kinds).await {
                Ok(left) => left,
                Err(error) => {
                    tracing::debug!(%error, "what other nodes left behind was not looked for");
                    break;
                }
            };
            for (batch, members) in left.batches {
                tracing::info!(batch = %batch.id, sends = members.len(), "a batch that another node had is this one's now");
                self.took(batch, &members);
            }
            for event in left.events {
                self.take_pending(event);
            }
            if !left.more {
                break;
            }
        }
    }

    /// Batches that wait for a source that this node has none of, and another has, are that one's from now on.
    async fn hand_on(&self) {
        let neighbours = self.world.neighbours();
        if neighbours.0.is_empty() {
            return;
        }
        let (settings, now) = (self.world.settings(), clock::wall());
        let stranded: Vec<(SendId, Arc<Batch>)> = {
            let inside = self.inside();
            let is_stranded = |closed: &Closed| {
                closed.waits && !settings.sources.pool_usable(&settings.config.pool_of(&closed.batch.tenant), now)
            };
            let stranded = inside.closed.iter().filter(|(_, closed)| is_stranded(closed));
            stranded.map(|(first, closed)| (*first, closed.batch.clone())).collect()
        };
        for (first, batch) in stranded {
            let (pool, tenant) = (settings.config.pool_of(&batch.tenant), &batch.tenant);
            let Some(way) = settings.config.way_of(&batch.place) else { continue };
            let Some(other) = neighbours.choose(&pool, &Family::BOTH, tenant, &way.host.text(), None) else { continue };
            self.hand(first, batch.id, other).await;
        }
    }

    /// It was tried in vain, as this node has no source of any family that its destination has, and is another's that has.
    pub(super) async fn goes_elsewhere(&self, first: SendId, batch: &Batch, tried: &Finished) -> bool {
        let (neighbours, settings) = (self.world.neighbours(), self.world.settings());
        let met = tried.connection.as_ref().filter(|met| met.source.is_none() && met.remote.is_none());
        let Some((met, way)) = met.zip(settings.config.way_of(&batch.place)) else { return false };
        let (pool, host) = (settings.config.pool_of(&batch.tenant), way.host.text());
        match neighbours.reach(met.allowed(), &settings.sources, &pool, &batch.tenant, &host) {
            Some(other) => self.hand(first, batch.id, other).await,
            None => false,
        }
    }

    async fn hand(&self, first: SendId, id: BatchId, other: &Neighbour) -> bool {
        match self.ledger.store.hand_batch(&self.ledger.session, id, other).await {
            Ok(true) => {
                tracing::debug!(batch = %id, node = %other.name, "handed over: it has no source here");
                self.let_go(first);
                true
            }
            Ok(false) => false,
            Err(error) => {
                tracing::debug!(batch = %id, %error, "a batch was not handed over");
                false
            }
        }
    }

    /// One that another node closed, with its sends.
    fn took(self: &Arc<Self>, batch: Batch, members: &[Pending]) {
        let Some(&first) = batch.sends.first() else { return };
        let members = members.iter().filter_map(|pending| Some((pending.id, member_of(pending)?.1)));
        {
            let mut inside = self.inside();
            for send in &batch.sends {
                inside.whose.insert(*send, first);
            }
            // Those that are not here have their ends by now.
            let closed = Closed { come: batch.sends.len(), ..Closed::new(batch, members.collect()) };
            inside.by_id.insert(closed.batch.id, first);
            inside.closed.insert(first, closed);
        }
        self.go_on(first);
    }
}
