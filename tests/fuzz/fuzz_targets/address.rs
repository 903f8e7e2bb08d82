//! Any address: the classifier agrees with a second reading of its tables, and with the standard library's own
//! words for what is not public.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use egressd::outcome::Code;
use egressd::policy::{CheckedUrl, Policy, Verdict};
use libfuzzer_sys::fuzz_target;

mod policy;
#[path = "../../../src/policy/address/tests/second_reading.rs"]
mod second_reading;

use second_reading::Reading;

static POLICY: LazyLock<(Policy, CheckedUrl)> = LazyLock::new(|| {
    (policy::default_policy(), CheckedUrl::parse("https://receiver.com/").unwrap_or_else(|_| unreachable!()))
});

fuzz_target!(|data: [u8; 16]| {
    check(IpAddr::V6(Ipv6Addr::from(data)));
    let [.., a, b, c, d] = data;
    let inside = Ipv4Addr::new(a, b, c, d);
    check(IpAddr::V4(inside));
    // The last four bytes again behind every well-known prefix, and as Teredo's inverted client.
    let low = u128::from(u32::from(inside));
    for prefix in
        [0xffff_u128 << 32, 0x64_ff9b << 96, 0x64_ff9b_0001 << 80, 0xffff_u128 << 48, 0x2600 << 112 | 0x5efe << 32, 0]
    {
        check(IpAddr::V6(Ipv6Addr::from(prefix | low)));
    }
    check(IpAddr::V6(Ipv6Addr::from(0x2002_u128 << 112 | low << 80)));
    check(IpAddr::V6(Ipv6Addr::from(0x2001_u128 << 112 | u128::from(!u32::from(inside)))));
});

fn check(address: IpAddr) {
    let (policy, url) = &*POLICY;
    let (verdict, dialled) = policy::verdict(policy, url, address);
    let expected = match second_reading::of(address) {
        Reading::Open => Verdict::Allowed,
        Reading::Passed => Verdict::Skipped,
        Reading::Closed => Verdict::Denied(Code::PolicyAddress),
        Reading::Metadata => Verdict::Denied(Code::PolicyMetadata),
    };
    assert_eq!(verdict, expected, "{address}");
    assert_eq!(dialled, verdict == Verdict::Allowed, "{address}");
    if dialled {
        assert!(is_public(address.to_canonical()), "{address}");
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            !(address.is_unspecified()
                || address.is_loopback()
                || address.is_private()
                || address.is_link_local()
                || address.is_multicast()
                || address.is_broadcast()
                || address.is_documentation())
        }
        IpAddr::V6(address) => {
            !(address.is_unspecified()
                || address.is_loopback()
                || address.is_multicast()
                || address.is_unique_local()
                || address.is_unicast_link_local())
        }
    }
}
