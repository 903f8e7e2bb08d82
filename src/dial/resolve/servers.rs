//! What is known of the configured name servers: which are dead, and which do not answer with EDNS.
//!
//! Shared by all tenants, so no tenant may decide it. That a server is silent about a name says nothing: the name's own
//! servers may be silent, and whoever holds them chooses to whom. A server that is silent to someone is therefore asked
//! a question of ours, about the root, which every resolver answers from what it has; only one that is silent to that
//! too is dead. It is asked last then, and asked again every [`DNS_PROBED_EVERY`] whether it is back, so that a dead
//! server costs the lookups of one moment a second each, and those after it nothing.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::query;
use crate::clock;
use crate::limits::{DNS_PLAIN_FOR, DNS_PROBED_EVERY, DNS_SERVERS_MAX};

/// So many answers in a row only to questions without EDNS: something drops those with it.
const PLAIN_AFTER: u8 = 3;

#[derive(Debug, Default)]
pub struct Servers(Mutex<HashMap<SocketAddr, Known>>);

#[derive(Debug, Default)]
struct Known {
    dead: bool,
    probed: Option<Probed>,
    /// Answers in a row that came only once EDNS was left out.
    plain_answers: u8,
    /// Asked without EDNS until then.
    plain_until: Option<Instant>,
}

#[derive(Debug)]
enum Probed {
    Now,
    At(Instant),
}

impl Servers {
    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whom to ask, in this order: as configured, the dead last.
    pub fn order(self: &Arc<Self>, servers: &[SocketAddr]) -> Vec<SocketAddr> {
        let mut order = servers.to_vec();
        let dead: Vec<SocketAddr> = {
            let known = self.lock();
            let is_dead = |server: &SocketAddr| known.get(server).is_some_and(|known| known.dead);
            order.sort_by_key(is_dead);
            servers.iter().copied().filter(is_dead).collect()
        };
        for server in dead {
            self.suspect(server);
        }
        order.truncate(DNS_SERVERS_MAX);
        order
    }

    /// Something came from this server; `late`: only once it was asked without EDNS. That may be a datagram lost, so
    /// it takes [`PLAIN_AFTER`] of them in a row.
    pub fn answered(&self, server: SocketAddr, late: bool) {
        let mut all = self.lock();
        if !late {
            if let Some(known) = all.get_mut(&server) {
                (known.dead, known.plain_answers) = (false, 0);
            }
            return;
        }
        let known = all.entry(server).or_default();
        known.dead = false;
        known.plain_answers += 1;
        if known.plain_answers >= PLAIN_AFTER {
            known.plain_answers = 0;
            known.plain_until = Some(clock::monotonic() + DNS_PLAIN_FOR);
        }
    }

    /// Nothing came, yet: asks whether it lives at all, at most once at a time and not again too soon.
    pub fn suspect(self: &Arc<Self>, server: SocketAddr) {
        {
            let mut all = self.lock();
            let known = all.entry(server).or_default();
            let again = if known.dead { DNS_PROBED_EVERY } else { DNS_PROBED_EVERY / 10 };
            match known.probed {
                Some(Probed::Now) => return,
                Some(Probed::At(at)) if clock::monotonic().duration_since(at) < again => return,
                _ => known.probed = Some(Probed::Now),
            }
        }
        let servers = self.clone();
        tokio::spawn(async move {
            let lives = query::lives(server).await;
            let mut all = servers.lock();
            let Some(known) = all.get_mut(&server) else { return };
            match (known.dead, lives) {
                (false, false) => tracing::warn!(%server, "name server is silent: the others are asked before it"),
                (true, true) => tracing::info!(%server, "name server is back"),
                _ => {}
            }
            known.dead = !lives;
            known.probed = Some(Probed::At(clock::monotonic()));
        });
    }

    pub fn takes_edns(&self, server: SocketAddr) -> bool {
        let until = self.lock().get(&server).and_then(|known| known.plain_until);
        until.is_none_or(|until| until <= clock::monotonic())
    }

    /// It said that it cannot read EDNS.
    pub fn refused_edns(&self, server: SocketAddr) {
        self.lock().entry(server).or_default().plain_until = Some(clock::monotonic() + DNS_PLAIN_FOR);
    }

    /// Other servers may be meant by now.
    pub fn clear(&self) {
        self.lock().clear();
    }
}
