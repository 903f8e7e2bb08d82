//! The rules put together: what the configuration says, in the order of precedence, with the deciding rule named.
//!
//! [`PRECEDENCE`] is that order. Deny beats allow. An exception opens special-purpose addresses and names, never
//! metadata, and never what is ours, but for the ports of loopback on which nothing of ours listens. Report mode
//! lets through what only a host list would have blocked. An address on any host list counts on both looks: as a
//! literal, and behind every name that leads to it. Not here: who is suspended ([`super::suspended`]).

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net};
use jiff::Timestamp;

use super::address::{self, Carrier};
use super::name::{self, NameRule, PatternSet};
use super::port;
pub use super::scan::ScanMemory;
pub use super::suspended::{StoppedHost, Suspensions};
use super::url::{CheckedUrl, Destination, Host};
use super::wording::{answer_message, name_message};
use crate::config::{Exception, PolicyMode, PolicySettings};
use crate::limits::DNS_ADDRESSES_MAX;
use crate::outcome::words::UnmadeCause;
use crate::outcome::{Code, Failure};
use crate::send::{Kind, TenantId};

/// A refusal: the rule that decided, and words for the author which name no address behind a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    pub code: Code,
    pub message: String,
}

/// Which denial is named when several apply, first to last. An answer that mixes allowed and denied addresses is
/// `policy_mixed` in place of what its denied addresses are, unless one of them is suspended.
pub const PRECEDENCE: &[Code] = &[
    Code::PolicyUrl,
    Code::PolicyPort,
    Code::Suspended,
    Code::PolicyDenied,
    Code::PolicyNotAllowed,
    Code::PolicyScan,
    Code::PolicyName,
    Code::PolicyMetadata,
    Code::PolicyAddress,
    Code::PolicySelf,
    Code::PolicyMixed,
];

impl Denial {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<Denial> for Failure {
    fn from(denial: Denial) -> Self {
        UnmadeCause::Denied { code: denial.code, why: &denial.message }.failure()
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

/// An address that passed, and what for: made here alone, and the only thing that can be dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedAddr {
    address: SocketAddr,
    errand: Arc<Errand>,
    /// The kernel takes it for this host's own, and it passed all the same.
    local: bool,
}

/// What an address was judged for. One that passed for one tenant, destination or purpose says nothing of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errand {
    pub tenant: TenantId,
    pub destination: Destination,
    pub purpose: Purpose,
}

impl CheckedAddr {
    pub fn socket_addr(&self) -> SocketAddr {
        self.address
    }

    pub fn errand(&self) -> &Errand {
        &self.errand
    }

    /// Whether it may be dialled although the kernel would lead us to this host itself.
    pub fn may_be_local(&self) -> bool {
        self.local || self.address.ip().is_loopback()
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

/// The acceptable-use policy as configured: immutable, replaced as a whole by a reload.
#[derive(Clone, Debug)]
pub struct Policy {
    mode: PolicyMode,
    ports: Vec<(u16, u16)>,
    deny_hosts: PatternSet,
    deny_networks: Vec<IpNet>,
    distinct_destinations_per_minute: u32,
    exceptions: Vec<Opening>,
    tenants: HashMap<TenantId, TenantRules>,
}

/// An exception as it is asked.
#[derive(Clone, Debug)]
struct Opening {
    networks: Vec<IpNet>,
    hosts: PatternSet,
    /// Empty: every tenant.
    tenants: Vec<TenantId>,
    /// Empty: every kind of destination, and reflectors.
    destinations: Vec<Kind>,
}

#[derive(Clone, Debug)]
struct TenantRules {
    allow: Option<PatternSet>,
    deny: PatternSet,
}

impl Policy {
    /// `settings` were checked at load (`config::check`).
    pub fn new(settings: &PolicySettings) -> Self {
        let opening = |exception: &Exception| Opening {
            networks: exception.networks.clone(),
            hosts: PatternSet::new(&exception.hosts),
            tenants: exception.tenants.clone(),
            destinations: exception.destinations.clone(),
        };
        let mut tenants = HashMap::new();
        for tenant in &settings.tenants {
            let rules = TenantRules {
                allow: tenant.allow.as_deref().map(PatternSet::new),
                deny: PatternSet::new(&tenant.deny),
            };
            tenants.insert(tenant.tenant.clone(), rules);
        }
        Self {
            mode: settings.mode,
            ports: settings.ports.clone(),
            deny_hosts: PatternSet::new(&settings.deny_hosts),
            deny_networks: settings.deny_networks.iter().map(unmapped).collect(),
            distinct_destinations_per_minute: settings.distinct_destinations_per_minute,
            exceptions: settings.exceptions.iter().map(opening).collect(),
            tenants,
        }
    }

    /// Port, suspension, deny and allow lists, scan limit, names: everything that is decided before a lookup.
    /// `scan` is asked, and notes the try, only where nothing of a higher rank denied.
    pub fn judge_url(
        &self,
        asker: Asker<'_>,
        url: &CheckedUrl,
        suspensions: &Suspensions,
        scan: &mut ScanMemory,
        now: Timestamp,
    ) -> Judged {
        let destination = url.destination();
        let host = &destination.host;
        let text = host.text();

        if let Some(denial) = self.judge_port(destination.port) {
            return Judged::denied(denial);
        }
        if let Some(denial) = self.judge_stopped(asker, host, suspensions) {
            return Judged::denied(denial);
        }
        let mut judged = Judged::default();
        if let Some(denial) = self.judge_lists(asker, host, &text) {
            match self.mode {
                PolicyMode::Enforce => return Judged::denied(denial),
                PolicyMode::Report => judged.would_block = Some(denial.code),
            }
        }
        let limit = self.distinct_destinations_per_minute;
        if !scan.admit(asker.tenant, destination, limit, now) {
            return Judged::denied(Denial::new(
                Code::PolicyScan,
                format!(
                    "this tenant tried {limit} distinct hosts and ports within a minute, and `{host}` port {} would \
                     be one more: spread the sends over time, or ask the operator to raise \
                     `policy.distinct_destinations_per_minute`",
                    destination.port
                ),
            ));
        }
        if let Host::Name(name) = host
            && let Some(rule) = self.judge_name(asker.tenant, Purpose::Delivery, name)
        {
            return Judged::denied(Denial::new(Code::PolicyName, name_message(name, rule)));
        }
        judged
    }

    /// The same of an endpoint that the operator has configured for a kind of destination, on the port that it names:
    /// whose send it carries may be suspended as ever, and the rest is judged as for this node itself. No tenant chose
    /// it, so no tenant's lists are asked, and it is no try towards the scan limit.
    pub fn judge_endpoint(
        &self,
        asker: Asker<'_>,
        to: &Destination,
        suspensions: &Suspensions,
        purpose: Purpose,
    ) -> Option<Denial> {
        let (host, text, ours) = (&to.host, to.host.text(), TenantId::OURSELVES);
        let stopped = self.judge_stopped(asker, host, suspensions);
        let listed = || {
            let asker = Asker { tenant: &ours, workflow: None };
            self.judge_lists(asker, host, &text).filter(|_| self.mode == PolicyMode::Enforce)
        };
        let named = || match host {
            Host::Name(name) => {
                let rule = self.judge_name(&ours, purpose, name)?;
                Some(Denial::new(Code::PolicyName, name_message(name, rule)))
            }
            Host::Address(_) => None,
        };
        stopped.or_else(listed).or_else(named)
    }

    /// Who and what is suspended, and the networks that are denied.
    fn judge_stopped(&self, asker: Asker<'_>, host: &Host, suspensions: &Suspensions) -> Option<Denial> {
        if let Some(reason) = suspensions.of(asker) {
            return Some(Denial::new(
                Code::Suspended,
                format!("this tenant or workflow is suspended ({reason}): ask the operator to lift it"),
            ));
        }
        if let Some(reason) = suspensions.of_host(host) {
            return Some(Denial::new(
                Code::Suspended,
                format!("sends to `{host}` are suspended ({reason}): ask the operator to lift it"),
            ));
        }
        // A network is no host list: report mode does not open it.
        let is_denied = matches!(host, Host::Address(address) if self.is_in_denied_network(*address));
        is_denied.then(|| {
            Denial::new(
                Code::PolicyDenied,
                format!("{host} lies in a network on the operator's deny list: ask the operator"),
            )
        })
    }

    /// Every address of an answer (A and AAAA together; an IP literal's own address goes the same way) and every
    /// CNAME target's name, suspended hosts included: a host is spared under every name and in every form that leads
    /// to it, by whichever of its names or addresses it was suspended. At most [`crate::limits::DNS_ADDRESSES_MAX`] addresses are looked at.
    pub fn judge_answer(
        &self,
        asker: Asker<'_>,
        destination: &Destination,
        cname_targets: &[String],
        addresses: &[IpAddr],
        by: Circumstances<'_>,
    ) -> Answer {
        let ours = TenantId::OURSELVES;
        // By whose lists and exceptions.
        let whose = if by.purpose.is_a_tenants() { asker } else { Asker { tenant: &ours, workflow: None } };
        let mut answer = Answer::default();
        let mut by_alias = Denials::default();
        let mut by_address = Denials::default();

        let mut suspended = None;
        for target in cname_targets {
            let target = name::canonical_target(target);
            if let Some(reason) = by.suspensions.of_name(&target) {
                suspended = suspended.or(Some(("is an alias of a host", reason)));
            }
            if self.is_on_deny_list(whose, &target) {
                match self.mode {
                    PolicyMode::Enforce => by_alias.add(Code::PolicyDenied),
                    PolicyMode::Report => answer.would_block = Some(Code::PolicyDenied),
                }
            }
            if self.judge_name(whose.tenant, by.purpose, &target).is_some() {
                by_alias.add(Code::PolicyName);
            }
        }

        let errand = Errand { tenant: asker.tenant.clone(), destination: destination.clone(), purpose: by.purpose };
        let errand = Arc::new(errand);
        let ask = AddressQuestion {
            tenant: whose.tenant,
            port: destination.port,
            ours: by.ours,
            local: by.local,
            purpose: by.purpose,
            allow: self.allow_of(whose).filter(|allow| !allow.matches(&destination.host.text())),
        };
        for &address in addresses.iter().take(DNS_ADDRESSES_MAX) {
            if self.mode == PolicyMode::Report {
                answer.would_block = answer.would_block.or(self.judge_listed(&ask, address.to_canonical()));
            }
            let verdict = match by.suspensions.of_address(address) {
                Some(reason) => {
                    suspended = suspended.or(Some(("leads to an address", reason)));
                    Verdict::Denied(Code::Suspended)
                }
                None => self.judge_address(&ask, address),
            };
            answer.resolved.push((address, verdict));
            match verdict {
                Verdict::Allowed => {
                    let canonical = address.to_canonical();
                    let checked = CheckedAddr {
                        address: SocketAddr::new(canonical, destination.port),
                        errand: errand.clone(),
                        local: by.local.contains(&canonical),
                    };
                    if !answer.addresses.contains(&checked) {
                        answer.addresses.push(checked);
                    }
                }
                Verdict::Skipped => {}
                Verdict::Denied(code) => by_address.add(code),
            }
        }
        if by_address.0.is_some() && !answer.addresses.is_empty() {
            by_address = Denials(Some(Code::PolicyMixed));
        }
        let mut denials = Denials(by_alias.0);
        by_address.0.into_iter().for_each(|code| denials.add(code));
        if suspended.is_some() {
            denials.add(Code::Suspended);
        }
        if let Some(code) = denials.0 {
            let message = match suspended.filter(|_| code == Code::Suspended) {
                Some((what, reason)) => format!(
                    "`{}` {what} to which sends are suspended ({reason}): ask the operator to lift it",
                    destination.host
                ),
                None => answer_message(&destination.host, code, by_alias.0 == Some(code)),
            };
            answer.addresses.clear();
            answer.would_block = None;
            answer.denial = Some(Denial::new(code, message));
        }
        answer
    }

    fn judge_port(&self, port: u16) -> Option<Denial> {
        let why = if port == 0 {
            "no service can be reached on it: use 443 or 80"
        } else if port::is_bad(port) {
            "it belongs to a service that is no webhook receiver, and is always closed: use 443 or 80"
        } else if !self.ports.iter().any(|(first, last)| (*first..=*last).contains(&port)) {
            "it is not among the open ports: use 443 or 80, or ask the operator to open it in `policy.ports`"
        } else {
            return None;
        };
        Some(Denial::new(Code::PolicyPort, format!("port {port} is refused: {why}")))
    }

    /// The host lists, operator's and tenant's, as far as the host's own text decides. Where the allow list names
    /// addresses, a name that is not on it may still lead to one of them: its answer is judged by that.
    fn judge_lists(&self, asker: Asker<'_>, host: &Host, text: &str) -> Option<Denial> {
        if self.is_on_deny_list(asker, text) {
            return Some(Denial::new(
                Code::PolicyDenied,
                format!("`{text}` is on the operator's or this tenant's deny list: ask the operator"),
            ));
        }
        let allow = self.allow_of(asker)?;
        let may_lead_there = matches!(host, Host::Name(_)) && allow.names_addresses();
        (!allow.matches(text) && !may_lead_there).then(|| {
            Denial::new(
                Code::PolicyNotAllowed,
                format!(
                    "this tenant may reach only the hosts of its allow list, and `{text}` is not on it: ask the operator \
                     to add it"
                ),
            )
        })
    }

    /// The addresses of the host lists, whatever name or form led to this one (canonical).
    fn judge_listed(&self, ask: &AddressQuestion<'_>, address: IpAddr) -> Option<Code> {
        let tenant = self.tenants.get(ask.tenant);
        let denied = |form: IpAddr| {
            self.deny_hosts.has_address(form) || tenant.is_some_and(|tenant| tenant.deny.has_address(form))
        };
        if forms(address).any(denied) {
            return Some(Code::PolicyDenied);
        }
        ask.allow.filter(|allow| !allow.has_address(address)).map(|_| Code::PolicyNotAllowed)
    }

    fn allow_of(&self, asker: Asker<'_>) -> Option<&PatternSet> {
        self.tenants.get(asker.tenant)?.allow.as_ref()
    }

    fn is_on_deny_list(&self, asker: Asker<'_>, host: &str) -> bool {
        self.deny_hosts.matches(host) || self.tenants.get(asker.tenant).is_some_and(|tenant| tenant.deny.matches(host))
    }

    fn judge_name(&self, tenant: &TenantId, purpose: Purpose, name: &str) -> Option<NameRule> {
        let rule = name::judge(name)?;
        let opened =
            rule != NameRule::Metadata && self.openings(tenant, purpose).any(|exception| exception.hosts.matches(name));
        (!opened).then_some(rule)
    }

    fn judge_address(&self, ask: &AddressQuestion<'_>, address: IpAddr) -> Verdict {
        let address = address.to_canonical();
        let carried = || carried(address);
        let forms = || forms(address);
        let is_closed = |form: IpAddr| address::special(form).is_some() && !self.opens(ask, form);

        if forms().any(|form| self.is_in_denied_network(form)) {
            return Verdict::Denied(Code::PolicyDenied);
        }
        if self.mode == PolicyMode::Enforce
            && let Some(code) = self.judge_listed(ask, address)
        {
            return Verdict::Denied(code);
        }
        if forms().any(address::is_metadata) {
            return Verdict::Denied(Code::PolicyMetadata);
        }
        // What local NAT64 carries is one reading of several: an operator who opens the prefix has decided on it.
        let closed_inside =
            carried().any(|(carrier, inside)| carrier != Carrier::LocalNat64 && is_closed(IpAddr::V4(inside)));
        if is_closed(address) || closed_inside {
            return Verdict::Denied(Code::PolicyAddress);
        }
        // The kernel reads an unspecified address as "this host".
        let is_ours = || address.is_unspecified() || forms().any(|form| self.is_ours(ask, form));
        if ask.purpose.is_a_tenants() && is_ours() {
            return Verdict::Denied(Code::PolicySelf);
        }
        let is_nat64 = carried().any(|(carrier, _)| carrier == Carrier::Nat64);
        if is_nat64 && !self.opens(ask, address) { Verdict::Skipped } else { Verdict::Allowed }
    }

    /// By what is listed, and by what the kernel says: a `local` route makes whole networks this host's own that stand
    /// on no interface. An exception that names such an address opens it, but for the ports on which we listen.
    fn is_ours(&self, ask: &AddressQuestion<'_>, form: IpAddr) -> bool {
        let local = ask.local.contains(&form);
        ask.ours.has(form, ask.port, local) || (local && !form.is_loopback() && !self.opens(ask, form))
    }

    fn is_in_denied_network(&self, address: IpAddr) -> bool {
        self.deny_networks.iter().any(|network| network.contains(&address))
    }

    fn openings<'a>(&'a self, tenant: &'a TenantId, purpose: Purpose) -> impl Iterator<Item = &'a Opening> {
        self.exceptions.iter().filter(move |Opening { tenants, destinations, .. }| {
            let of_kind = || purpose.kind().is_some_and(|kind| destinations.contains(&kind));
            (tenants.is_empty() || tenants.contains(tenant)) && (destinations.is_empty() || of_kind())
        })
    }

    fn opens(&self, ask: &AddressQuestion<'_>, address: IpAddr) -> bool {
        let opens = |exception: &Opening| {
            exception.networks.iter().any(|network| network.contains(&address)) || exception.hosts.has_address(address)
        };
        self.openings(ask.tenant, ask.purpose).any(opens)
    }
}

/// A network of IPv4-mapped addresses as the IPv4 network it is, as addresses are compared in that form. Not for
/// exceptions: `::ffff:0:0/96` would open all of IPv4.
fn unmapped(network: &IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return *network };
    let length = v6.prefix_len().checked_sub(96);
    let v4 = v6.network().to_ipv4_mapped().zip(length).and_then(|(first, length)| Ipv4Net::new(first, length).ok());
    v4.map_or(*network, IpNet::V4)
}

/// The IPv4 addresses inside of an address, and what carries them.
fn carried(address: IpAddr) -> impl Iterator<Item = (Carrier, Ipv4Addr)> {
    let carried = match address {
        IpAddr::V6(address) => Some(address::carried(address)),
        IpAddr::V4(_) => None,
    };
    carried.into_iter().flatten()
}

/// An address (canonical) and those that it carries.
pub fn forms(address: IpAddr) -> impl Iterator<Item = IpAddr> {
    std::iter::once(address).chain(carried(address).map(|(_, inside)| IpAddr::V4(inside)))
}

/// What is the same for every address of one answer.
struct AddressQuestion<'a> {
    tenant: &'a TenantId,
    port: u16,
    ours: &'a SelfAddrs,
    local: &'a [IpAddr],
    purpose: Purpose,
    /// The tenant's allow list, where the host was not on it by name: then each address has to be.
    allow: Option<&'a PatternSet>,
}

impl SelfAddrs {
    /// Whether `address` (canonical; `local`: the kernel takes it for this host's own) is ours on `port`. Loopback gets
    /// here only when an exception opened it: then it is ours where something of ours listens.
    fn has(&self, address: IpAddr, port: u16, local: bool) -> bool {
        let same = |other: &IpAddr| other.to_canonical() == address;
        let is_of_this_host = self.interfaces.iter().chain(&self.sources).any(same);
        let is_listener = |listener: &SocketAddr| {
            let everywhere =
                listener.ip().to_canonical().is_unspecified() && (is_of_this_host || local || address.is_loopback());
            listener.port() == port && (same(&listener.ip()) || everywhere)
        };
        self.name_servers.iter().any(|server| server.port() == port && same(&server.ip()))
            || self.listeners.iter().any(is_listener)
            || (is_of_this_host && !address.is_loopback())
    }
}

impl Judged {
    fn denied(denial: Denial) -> Self {
        Self { denial: Some(denial), would_block: None }
    }
}

/// The denials of an answer; the first in the order of precedence is named.
#[derive(Default)]
struct Denials(Option<Code>);

impl Denials {
    fn add(&mut self, code: Code) {
        let rank = |code: Code| PRECEDENCE.iter().position(|listed| *listed == code);
        if self.0.is_none_or(|first| rank(code) < rank(first)) {
            self.0 = Some(code);
        }
    }
}

/// What an answer is judged by, beside the rules.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'a> {
    pub ours: &'a SelfAddrs,
    /// Those of the answer's addresses, in any form ([`forms`]), that the kernel takes for this host's own.
    pub local: &'a [IpAddr],
    pub suspensions: &'a Suspensions,
    pub purpose: Purpose,
}

/// Why an address is judged: what the operator has configured may be an address of ours, what a send names may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Delivery,
    Reflector,
    /// Of messages.
    Relay,
    /// An S3-compatible store, for batches of events.
    Bucket,
    /// What takes such batches as rows.
    Warehouse,
}

impl Purpose {
    /// A tenant chose the destination: it is judged by the rules for tenants.
    pub fn is_a_tenants(self) -> bool {
        self == Self::Delivery
    }

    /// `None`: no send's.
    fn kind(self) -> Option<Kind> {
        match self {
            Self::Delivery => Some(Kind::Http),
            Self::Reflector => None,
            Self::Relay => Some(Kind::Email),
            Self::Bucket => Some(Kind::S3),
            Self::Warehouse => Some(Kind::Sql),
        }
    }
}

#[cfg(test)]
mod tests;
