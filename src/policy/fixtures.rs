//! What the policy's tests share: settings to start from, and the whole way of a URL to its verdict.

use std::net::IpAddr;

use jiff::Timestamp;

use super::*;
use crate::config::{Exception, HostPattern, PolicyMode, PolicySettings, TenantHosts};
use crate::outcome::Code;
use crate::send::TenantId;

/// An address that nothing denies.
pub const PUBLIC: &str = "93.184.216.34";

/// The settings of a configuration that says nothing about policy.
pub fn settings() -> PolicySettings {
    PolicySettings {
        mode: PolicyMode::Enforce,
        ports: vec![(80, 80), (443, 443), (1024, 65535)],
        deny_hosts: Vec::new(),
        deny_networks: Vec::new(),
        distinct_destinations_per_minute: 1000,
        exceptions: Vec::new(),
        tenants: Vec::new(),
    }
}

pub fn patterns(texts: &[&str]) -> Vec<HostPattern> {
    texts.iter().map(|text| HostPattern::parse(text).unwrap()).collect()
}

/// An exception for every tenant.
pub fn exception(networks: &[&str], hosts: &[&str]) -> Exception {
    Exception {
        networks: networks.iter().map(|network| network.parse().unwrap()).collect(),
        hosts: patterns(hosts),
        reason: "a test".to_owned(),
        tenants: Vec::new(),
        destinations: Vec::new(),
    }
}

pub fn tenant(id: &str, allow: Option<&[&str]>, deny: &[&str]) -> TenantHosts {
    TenantHosts { tenant: TenantId::new(id), allow: allow.map(patterns), deny: patterns(deny) }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text} is an address"))
}

/// One question to the policy, complete; a test changes what it is about.
pub struct Question {
    pub settings: PolicySettings,
    pub tenant: TenantId,
    pub workflow: Option<&'static str>,
    pub suspensions: Suspensions,
    pub ours: SelfAddrs,
    /// What the kernel takes for its own.
    pub local: Vec<IpAddr>,
    pub purpose: Purpose,
    /// What DNS says, for a URL that names its host.
    pub cname_targets: Vec<String>,
    pub addresses: Vec<IpAddr>,
}

impl Default for Question {
    fn default() -> Self {
        Self {
            settings: settings(),
            tenant: TenantId::new("acme"),
            workflow: None,
            suspensions: Suspensions::default(),
            ours: SelfAddrs::default(),
            local: Vec::new(),
            purpose: Purpose::Delivery,
            cname_targets: Vec::new(),
            addresses: vec![ip(PUBLIC)],
        }
    }
}

/// How a send would fare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    pub denial: Option<Denial>,
    pub would_block: Option<Code>,
    pub resolved: Vec<(IpAddr, Verdict)>,
    pub dialled: Vec<IpAddr>,
}

impl Fate {
    pub fn code(&self) -> Option<Code> {
        self.denial.as_ref().map(|denial| denial.code)
    }

    /// `allowed`, or the code's label: what tables compare.
    pub fn word(&self) -> &'static str {
        self.code().map_or("allowed", Code::label)
    }
}

impl Question {
    fn circumstances(&self) -> Circumstances<'_> {
        Circumstances { ours: &self.ours, local: &self.local, suspensions: &self.suspensions, purpose: self.purpose }
    }

    /// A policy with default settings, asked about one address behind a name.
    pub fn verdict(&self, address: IpAddr) -> Verdict {
        let url = CheckedUrl::parse("https://receiver.example.com/").unwrap();
        let asker = Asker { tenant: &self.tenant, workflow: None };
        let answer =
            Policy::new(&self.settings).judge_answer(asker, url.destination(), &[], &[address], self.circumstances());
        answer.resolved[0].1
    }

    /// The way of a send: parse, judge the URL, look up (a literal is its own answer), judge the answer.
    pub fn ask(&self, raw: &str) -> Fate {
        let url = match CheckedUrl::parse(raw) {
            Ok(url) => url,
            Err(denial) => return Fate { denial: Some(denial), ..Fate::default() },
        };
        let policy = Policy::new(&self.settings);
        let asker = Asker { tenant: &self.tenant, workflow: self.workflow };
        let judged =
            policy.judge_url(asker, &url, &self.suspensions, &mut ScanMemory::default(), Timestamp::UNIX_EPOCH);
        if judged.denial.is_some() {
            return Fate { denial: judged.denial, would_block: judged.would_block, ..Fate::default() };
        }
        let literal = match &url.destination().host {
            Host::Address(address) => Some(vec![*address]),
            Host::Name(_) => None,
        };
        let (targets, addresses) = match &literal {
            Some(literal) => (&[][..], literal),
            None => (&self.cname_targets[..], &self.addresses),
        };
        let answer = policy.judge_answer(asker, url.destination(), targets, addresses, self.circumstances());
        Fate {
            would_block: judged.would_block.or(answer.would_block).filter(|_| answer.denial.is_none()),
            denial: answer.denial,
            resolved: answer.resolved,
            dialled: answer.addresses.iter().map(|address| address.socket_addr().ip()).collect(),
        }
    }
}
