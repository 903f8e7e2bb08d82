//! The rules put together: what the configuration says, in the order of precedence, with the deciding rule named.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use jiff::Timestamp;

use super::url::{CheckedUrl, Destination};
use crate::config::PolicySettings;
use crate::outcome::{Code, Failure};
use crate::send::TenantId;

/// A refusal: the rule that decided, and words for the author which name no address behind a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    pub code: Code,
    pub message: String,
}

impl Denial {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<Denial> for Failure {
    fn from(denial: Denial) -> Self {
        Failure::new(denial.code, None, denial.message)
    }
}

/// Whose send is being judged.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    pub tenant: &'a TenantId,
    pub workflow: Option<&'a str>,
}

/// The URL stage's result. `would_block`: report mode let something pass that a host list would have blocked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    pub denial: Option<Denial>,
    pub would_block: Option<Code>,
}

/// What is said of one address of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    /// Not denied and not usable: a NAT64 form of a good address.
    Skipped,
    Denied(Code),
}

impl Verdict {
    pub fn label(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Skipped => "skipped",
            Self::Denied(code) => code.label(),
        }
    }
}

/// An address that passed; made here alone, and the only thing that can be dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CheckedAddr(SocketAddr);

impl CheckedAddr {
    pub fn socket_addr(self) -> SocketAddr {
        self.0
    }
}

/// The address stage's result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Every address looked at, with its verdict, in the order of the answer.
    pub resolved: Vec<(IpAddr, Verdict)>,
    /// Those that may be dialled; empty where `denial` is set.
    pub addresses: Vec<CheckedAddr>,
    pub denial: Option<Denial>,
    pub would_block: Option<Code>,
}

/// What is ours and therefore never a destination (`policy_self`). Refreshed while running.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SelfAddrs {
    /// Addresses of this host's interfaces: any port.
    pub interfaces: Vec<IpAddr>,
    /// Published and bound source addresses: any port.
    pub sources: Vec<IpAddr>,
    /// Our own listeners; an unspecified address stands for every address of this host.
    pub listeners: Vec<SocketAddr>,
    /// The configured DNS servers: address and port.
    pub name_servers: Vec<SocketAddr>,
}

/// Who is stopped for abuse. Kept by the store; this is its image for judging.
#[derive(Clone, Debug, Default)]
pub struct Suspensions {
    /// Whole tenants, or one workflow of one, with the reason.
    pub tenants: HashMap<TenantId, Arc<str>>,
    pub workflows: HashMap<(TenantId, Arc<str>), Arc<str>>,
    /// Hosts in IDNA-mapped, lower-case, dot-trimmed form (or an address' text).
    pub hosts: HashMap<Arc<str>, Arc<str>>,
}

impl Suspensions {
    /// The reason why this tenant or this workflow of it may not submit.
    pub fn of(&self, _asker: Asker<'_>) -> Option<&str> {
        todo!()
    }

    /// The reason why no send may go to this host.
    pub fn of_host(&self, _host: &super::url::Host) -> Option<&str> {
        todo!()
    }
}

/// Which (host, port) pairs each tenant tried within the last minute. Bounded; owned by whoever asks.
#[derive(Debug, Default)]
pub struct ScanMemory {
    // filled in by the implementation
}

impl ScanMemory {
    /// Notes a try; `false` when it would be one distinct pair too many.
    pub fn admit(&mut self, _tenant: &TenantId, _destination: &Destination, _limit: u32, _now: Timestamp) -> bool {
        todo!()
    }
}

/// The acceptable-use policy as configured: immutable, replaced as a whole by a reload.
#[derive(Clone, Debug)]
pub struct Policy {
    // filled in by the implementation
}

impl Policy {
    /// `settings` were checked at load (`config::check`).
    pub fn new(_settings: &PolicySettings) -> Self {
        todo!()
    }

    /// Port, suspension, deny and allow lists, scan limit, names: everything that is decided before a lookup.
    /// `scan` is asked, and notes the try, only where nothing of a higher rank denied.
    pub fn judge_url(
        &self,
        _asker: Asker<'_>,
        _url: &CheckedUrl,
        _suspensions: &Suspensions,
        _scan: &mut ScanMemory,
        _now: Timestamp,
    ) -> Judged {
        todo!()
    }

    /// Every address of an answer (A and AAAA together; an IP literal's own address goes the same way) and every
    /// CNAME target's name. At most [`crate::limits::DNS_ADDRESSES_MAX`] addresses are looked at.
    pub fn judge_answer(
        &self,
        _asker: Asker<'_>,
        _url: &CheckedUrl,
        _cname_targets: &[String],
        _addresses: &[IpAddr],
        _ours: &SelfAddrs,
        _purpose: Purpose,
    ) -> Answer {
        todo!()
    }
}

/// Why an address is judged: reflectors alone may be addresses of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Delivery,
    Reflector,
}
