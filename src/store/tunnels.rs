//! Tunnels of the forward proxy: that each was opened, and how it ended, for who asks about them.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;

use super::{HostFilter, Reach, StoreResult};
use crate::outcome::Code;
use crate::record::{Tunnel, TunnelEnd};
use crate::send::TenantId;

/// Filters of `GET /v1/tunnels`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelFilter {
    pub reach: Reach,
    pub host: Option<HostFilter>,
    /// Bound or public.
    pub source_ip: Option<IpAddr>,
    /// Only the public address counts: who asks may not know which one is bound behind it.
    pub public_only: bool,
    /// Any of these, as with the codes; empty: whichever, those that are open too.
    pub ends: Vec<TunnelEnd>,
    pub codes: Vec<Code>,
    /// Those that were there at some time from `since` on and before `until`, whenever they began.
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
}

impl TunnelFilter {
    /// Everything within this reach.
    pub fn of(reach: Reach) -> Self {
        Self {
            reach,
            host: None,
            source_ip: None,
            public_only: false,
            ends: Vec::new(),
            codes: Vec::new(),
            since: None,
            until: None,
        }
    }

    pub fn takes_in(&self, tunnel: &Tunnel) -> bool {
        let ended = tunnel.ended.as_ref();
        let is_source = |ip: IpAddr| tunnel.public == Some(ip) || (!self.public_only && tunnel.source == Some(ip));
        self.reach.takes_in(&tunnel.tenant)
            && self.host.as_ref().is_none_or(|host| host.takes_in(&tunnel.host))
            && self.source_ip.is_none_or(is_source)
            && (self.ends.is_empty() || ended.is_some_and(|ended| self.ends.contains(&ended.end)))
            && (self.codes.is_empty()
                || ended.and_then(|ended| ended.code).is_some_and(|code| self.codes.contains(&code)))
            && self.until.is_none_or(|until| tunnel.begun_at < until)
            && self.since.is_none_or(|since| ended.is_none_or(|ended| ended.at >= since))
    }
}

/// One page: those that are open first, the newest of them first, then the others. As of sends it may hold fewer than
/// were asked for and have a `next`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TunnelPage {
    pub tunnels: Vec<Tunnel>,
    pub next: Option<String>,
}

/// What the store remembers of tunnels.
pub trait Tunnels: std::marker::Send + Sync + 'static {
    /// Remembers them as they are now: each when it was opened, and once more when it ended.
    fn note_tunnels(&self, tunnels: Vec<Arc<Tunnel>>) -> StoreResult<'_, ()>;

    fn tunnels(&self, filter: TunnelFilter, cursor: Option<String>, limit: usize) -> StoreResult<'_, TunnelPage>;

    /// Ends those that a process left open which is gone: of this node's name, before it opens any. Answers how many.
    fn end_tunnels_left_open<'a>(&'a self, node: &'a str, now: Timestamp) -> StoreResult<'a, u64>;

    /// Whether there is room for the record of one more of this tenant's. Where it is not counted there is.
    fn room_for_tunnel(&self, _tenant: &TenantId) -> Result<(), NoRoom> {
        Ok(())
    }
}

/// Why no more is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// As many of this tenant's are kept as may be.
    OfTenant,
    /// So many are open that their ends might find none.
    AtAll,
}
