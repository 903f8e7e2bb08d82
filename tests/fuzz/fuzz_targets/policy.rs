//! The policy that both targets ask: the defaults, without exceptions.

use std::net::IpAddr;

use egressd::config::{PolicyMode, PolicySettings};
use egressd::policy::{Asker, CheckedUrl, Circumstances, Policy, Purpose, ScanMemory, SelfAddrs, Suspensions, Verdict};
use egressd::send::TenantId;

pub fn default_policy() -> Policy {
    Policy::new(&PolicySettings {
        mode: PolicyMode::Enforce,
        ports: vec![(80, 80), (443, 443), (1024, 65535)],
        deny_hosts: Vec::new(),
        deny_networks: Vec::new(),
        distinct_destinations_per_minute: 1000,
        exceptions: Vec::new(),
        tenants: Vec::new(),
    })
}

/// Whether the URL stage lets this URL through.
#[allow(dead_code, reason = "one target needs it")]
pub fn passes(policy: &Policy, url: &CheckedUrl) -> bool {
    let tenant = TenantId::new("fuzz");
    let asker = Asker { tenant: &tenant, workflow: None };
    let mut scan = ScanMemory::default();
    policy.judge_url(asker, url, &Suspensions::default(), &mut scan, jiff::Timestamp::UNIX_EPOCH).denial.is_none()
}

/// The verdict on one address of an answer, and whether it would be dialled.
pub fn verdict(policy: &Policy, url: &CheckedUrl, address: IpAddr) -> (Verdict, bool) {
    let tenant = TenantId::new("fuzz");
    let asker = Asker { tenant: &tenant, workflow: None };
    let (ours, suspensions) = (SelfAddrs::default(), Suspensions::default());
    let by = Circumstances { ours: &ours, local: &[], suspensions: &suspensions, purpose: Purpose::Delivery };
    let answer = policy.judge_answer(asker, url.destination(), &[], &[address], by);
    let dialled = answer.addresses.iter().any(|checked| checked.socket_addr().ip() == address.to_canonical());
    assert_eq!(answer.denial.is_some(), matches!(answer.resolved[0].1, Verdict::Denied(_)));
    (answer.resolved[0].1, dialled)
}
