//! Every row of the tables at its edges, in itself and inside every form that can carry it; and the classifier
//! against a second reading of the same tables.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::Carrier;
use crate::outcome::Code;
use crate::policy::Verdict::{self, Allowed, Denied, Skipped};
use crate::policy::fixtures::{Question, ip};

const OPEN: Verdict = Allowed;
const CLOSED: Verdict = Denied(Code::PolicyAddress);
const METADATA: Verdict = Denied(Code::PolicyMetadata);

/// First and last address of a row and what they are, then what stands just before and just after it (`None`: the
/// row is at the end of all addresses).
type Row = (&'static str, &'static str, Verdict, Option<Verdict>, Option<Verdict>);

const IPV4: &[Row] = &[
    ("0.0.0.0", "0.255.255.255", CLOSED, None, Some(OPEN)),
    ("10.0.0.0", "10.255.255.255", CLOSED, Some(OPEN), Some(OPEN)),
    ("100.64.0.0", "100.127.255.255", CLOSED, Some(OPEN), Some(OPEN)),
    ("127.0.0.0", "127.255.255.255", CLOSED, Some(OPEN), Some(OPEN)),
    ("169.254.0.0", "169.254.255.255", CLOSED, Some(OPEN), Some(OPEN)),
    ("172.16.0.0", "172.31.255.255", CLOSED, Some(OPEN), Some(OPEN)),
    ("192.0.0.0", "192.0.0.255", CLOSED, Some(OPEN), Some(OPEN)),
    ("192.0.2.0", "192.0.2.255", CLOSED, Some(OPEN), Some(OPEN)),
    ("192.31.196.0", "192.31.196.255", CLOSED, Some(OPEN), Some(OPEN)),
    ("192.52.193.0", "192.52.193.255", CLOSED, Some(OPEN), Some(OPEN)),
    ("192.88.99.0", "192.88.99.255", CLOSED, Some(OPEN), Some(OPEN)),
    ("192.168.0.0", "192.168.255.255", CLOSED, Some(OPEN), Some(OPEN)),
    ("192.175.48.0", "192.175.48.255", CLOSED, Some(OPEN), Some(OPEN)),
    ("198.18.0.0", "198.19.255.255", CLOSED, Some(OPEN), Some(OPEN)),
    ("198.51.100.0", "198.51.100.255", CLOSED, Some(OPEN), Some(OPEN)),
    ("203.0.113.0", "203.0.113.255", CLOSED, Some(OPEN), Some(OPEN)),
    ("224.0.0.0", "239.255.255.255", CLOSED, Some(OPEN), Some(CLOSED)),
    ("240.0.0.0", "255.255.255.255", CLOSED, Some(CLOSED), None),
    ("255.255.255.255", "255.255.255.255", CLOSED, Some(CLOSED), None),
    // Metadata and platform addresses.
    ("168.63.129.16", "168.63.129.16", METADATA, Some(OPEN), Some(OPEN)),
    ("169.254.169.254", "169.254.169.254", METADATA, Some(METADATA), Some(CLOSED)),
    ("169.254.169.253", "169.254.169.253", METADATA, Some(CLOSED), Some(METADATA)),
    ("169.254.169.123", "169.254.169.123", METADATA, Some(CLOSED), Some(CLOSED)),
    ("169.254.170.2", "169.254.170.2", METADATA, Some(CLOSED), Some(CLOSED)),
    ("169.254.170.23", "169.254.170.23", METADATA, Some(CLOSED), Some(CLOSED)),
    ("169.254.42.42", "169.254.42.42", METADATA, Some(CLOSED), Some(CLOSED)),
    ("100.100.100.200", "100.100.100.200", METADATA, Some(CLOSED), Some(CLOSED)),
    ("192.0.0.192", "192.0.0.192", METADATA, Some(CLOSED), Some(CLOSED)),
];

const IPV6: &[Row] = &[
    // The one range in which anything is public.
    ("2000::", "3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", OPEN, Some(CLOSED), Some(CLOSED)),
    ("2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", CLOSED, Some(OPEN), Some(OPEN)),
    ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", CLOSED, Some(OPEN), Some(OPEN)),
    ("2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", CLOSED, Some(OPEN), Some(OPEN)),
    ("2620:4f:8000::", "2620:4f:8000:ffff:ffff:ffff:ffff:ffff", CLOSED, Some(OPEN), Some(OPEN)),
    ("3ffe::", "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", CLOSED, Some(OPEN), Some(CLOSED)),
    ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", CLOSED, Some(CLOSED), Some(OPEN)),
    // Forms that carry an IPv4 address: their edges carry 0.0.0.0 and 255.255.255.255.
    ("::ffff:0:0", "::ffff:ffff:ffff", CLOSED, Some(CLOSED), Some(CLOSED)),
    ("64:ff9b::", "64:ff9b::ffff:ffff", CLOSED, Some(CLOSED), Some(CLOSED)),
    ("64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff", CLOSED, Some(CLOSED), Some(CLOSED)),
    ("::", "::ffff:ffff", CLOSED, None, Some(CLOSED)),
    ("::ffff:0:0:0", "::ffff:0:ffff:ffff", CLOSED, Some(CLOSED), Some(CLOSED)),
    // What lies outside.
    ("::1", "::1", CLOSED, Some(CLOSED), Some(CLOSED)),
    ("100::", "100::ffff:ffff:ffff:ffff", CLOSED, Some(CLOSED), Some(CLOSED)),
    ("100:0:0:1::", "100:0:0:1:ffff:ffff:ffff:ffff", CLOSED, Some(CLOSED), Some(CLOSED)),
    ("5f00::", "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff", CLOSED, Some(CLOSED), Some(CLOSED)),
    ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", CLOSED, Some(CLOSED), Some(CLOSED)),
    ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", CLOSED, Some(CLOSED), Some(CLOSED)),
    ("fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", CLOSED, Some(CLOSED), Some(CLOSED)),
    ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", CLOSED, Some(CLOSED), None),
    // Metadata.
    ("fd00:ec2::", "fd00:ec2:ffff:ffff:ffff:ffff:ffff:ffff", METADATA, Some(CLOSED), Some(CLOSED)),
    ("fd20:ce::254", "fd20:ce::254", METADATA, Some(CLOSED), Some(CLOSED)),
    ("fd00:c1::a9fe:a9fe", "fd00:c1::a9fe:a9fe", METADATA, Some(CLOSED), Some(CLOSED)),
    ("fd00:42::42", "fd00:42::42", METADATA, Some(CLOSED), Some(CLOSED)),
    ("fd00:a9fe:a9fe::1", "fd00:a9fe:a9fe::1", METADATA, Some(CLOSED), Some(CLOSED)),
    ("fd00:100::100:200", "fd00:100::100:200", METADATA, Some(CLOSED), Some(CLOSED)),
    ("fe80::a9fe:a9fe", "fe80::a9fe:a9fe", METADATA, Some(CLOSED), Some(CLOSED)),
];

/// Addresses that receivers really have, and the single special ones that other filters miss.
const SINGLE: &[(&str, Verdict)] = &[
    ("1.1.1.1", OPEN),
    ("8.8.8.8", OPEN),
    ("93.184.216.34", OPEN),
    ("2606:4700:4700::1111", OPEN),
    ("2a00:1450:4001:81b::200e", OPEN),
    ("2600:1::5efe:808:808", OPEN),
    ("::ffff:93.184.216.34", OPEN),
    ("64:ff9b::5db8:d822", Skipped),
    ("192.0.0.9", CLOSED),
    ("192.0.0.10", CLOSED),
    ("192.0.0.8", CLOSED),
    ("192.0.0.170", CLOSED),
    ("224.0.0.251", CLOSED),
    ("239.255.255.250", CLOSED),
    ("2001:1::1", CLOSED),
    ("2001:3::1", CLOSED),
    ("2001:4:112::1", CLOSED),
    ("2001:20::1", CLOSED),
    ("2001:30::1", CLOSED),
    ("ff02::1", CLOSED),
    ("fe80::1", CLOSED),
    ("4000::1", CLOSED),
    ("a000::1", CLOSED),
];

/// The verdict on an address as part of an answer, by a policy without exceptions.
fn verdict(address: IpAddr) -> Verdict {
    Question::default().verdict(address)
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn address_like(example: IpAddr, number: u128) -> IpAddr {
    match example {
        IpAddr::V4(_) => Ipv4Addr::from(u32::try_from(number).unwrap()).into(),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

/// First, last, the one before and the one after, each with what it must be.
fn edges(row: &Row) -> Vec<(IpAddr, Verdict)> {
    let (first, last, inside, before, after) = row;
    let (first, last) = (ip(first), ip(last));
    let mut edges = vec![(first, *inside), (last, *inside)];
    edges.extend(before.map(|verdict| (address_like(first, number(first) - 1), verdict)));
    edges.extend(after.map(|verdict| (address_like(last, number(last) + 1), verdict)));
    edges
}

#[test]
fn every_row_holds_at_its_edges() {
    let mut rows = 0;
    for row in IPV4.iter().chain(IPV6) {
        for (address, expected) in edges(row) {
            // The last address of 169.254.0.0/16 and the like stay what their row says; inner rows say otherwise.
            assert_eq!(verdict(address), expected, "{address} in the row {} - {}", row.0, row.1);
            rows += 1;
        }
    }
    for (address, expected) in SINGLE {
        assert_eq!(verdict(ip(address)), *expected, "{address}");
        rows += 1;
    }
    println!("{rows} addresses at the edges of {} ranges", IPV4.len() + IPV6.len());
}

type Embed = fn(u128) -> u128;

/// The forms, written as arithmetic on the number and not as the classifier reads them.
const FORMS: &[(&str, Embed)] = &[
    ("mapped", |v4| 0xffff_0000_0000 | v4),
    ("NAT64", |v4| 0x0064_ff9b_u128 << 96 | v4),
    ("ISATAP", |v4| 0x2600_0001_u128 << 96 | 0x0000_5efe_u128 << 32 | v4),
    ("ISATAP, universal", |v4| 0x2600_0001_u128 << 96 | 0x0200_5efe_u128 << 32 | v4),
    ("ISATAP, link-local", |v4| 0xfe80_u128 << 112 | 0x0000_5efe_u128 << 32 | v4),
    ("compatible", |v4| v4),
    ("translated", |v4| 0xffff_u128 << 48 | v4),
    ("6to4", |v4| 0x2002_u128 << 112 | v4 << 80),
    ("6to4, a host in it", |v4| 0x2002_u128 << 112 | v4 << 80 | 0x0001_0000_0000_0000_0001),
    ("Teredo client", |v4| 0x2001_0000_u128 << 96 | 0x4136_e378_u128 << 64 | (!v4 & 0xffff_ffff)),
    ("Teredo server", |v4| 0x2001_0000_u128 << 96 | v4 << 64 | (!0x0808_0808_u128 & 0xffff_ffff)),
    ("local NAT64 /96", |v4| 0x0064_ff9b_0001_u128 << 80 | v4),
    ("local NAT64 /48", |v4| 0x0064_ff9b_0001_u128 << 80 | around_octet_8(v4, 16)),
    ("local NAT64 /56", |v4| 0x0064_ff9b_0001_u128 << 80 | around_octet_8(v4, 8)),
    ("local NAT64 /64", |v4| 0x0064_ff9b_0001_u128 << 80 | around_octet_8(v4, 0)),
    ("RFC 6052 /32 of the documentation prefix", |v4| 0x2001_0db8_u128 << 96 | v4 << 64),
    ("RFC 6052 /40 of the documentation prefix", |v4| 0x0020_010d_b801_u128 << 88 | around_octet_8(v4, 24)),
    ("RFC 6052 /48 of the documentation prefix", |v4| 0x2001_0db8_0122_u128 << 80 | around_octet_8(v4, 16)),
    ("RFC 6052 /56 of the documentation prefix", |v4| 0x0020_010d_b801_2203_u128 << 72 | around_octet_8(v4, 8)),
    ("RFC 6052 /64 of the documentation prefix", |v4| 0x2001_0db8_0122_0344_u128 << 64 | around_octet_8(v4, 0)),
    ("RFC 6052 /96 of the documentation prefix", |v4| 0x2001_0db8_0122_0344_u128 << 64 | v4),
];

/// RFC 6052 section 2.2: the top `above` bits of the address stand before octet 8, the rest behind it.
fn around_octet_8(v4: u128, above: u32) -> u128 {
    let upper = v4 >> (32 - above);
    let lower = v4 & ((1 << (32 - above)) - 1);
    upper << 64 | lower << (56 - (32 - above))
}

/// What an IPv6 form of an IPv4 address must be, given what that address is.
fn inside(form: &str, bare: Verdict) -> Verdict {
    match form {
        "mapped" | "ISATAP" | "ISATAP, universal" => bare,
        "NAT64" if bare == OPEN => Skipped,
        "NAT64" => bare,
        _ if form.starts_with("RFC 6052") => CLOSED, // The prefix alone decides.
        _ if bare == METADATA => METADATA,
        _ => CLOSED,
    }
}

#[test]
fn every_ipv4_row_holds_inside_every_form_that_carries_it() {
    let mut rows = 0;
    for row in IPV4 {
        for (address, bare) in edges(row) {
            for (form, embed) in FORMS {
                let carrying = IpAddr::V6(Ipv6Addr::from(embed(number(address))));
                assert_eq!(verdict(carrying), inside(form, bare), "{address} as {form}: {carrying}");
                rows += 1;
            }
        }
    }
    println!("{rows} addresses in {} forms", FORMS.len());
}

#[test]
fn examples_of_the_rfcs_read_as_they_say() {
    let carried = |text: &str| match ip(text) {
        IpAddr::V6(address) => super::carried(address).collect::<Vec<_>>(),
        IpAddr::V4(_) => Vec::new(),
    };
    let v4 = |text: &str| text.parse::<Ipv4Addr>().unwrap();
    assert_eq!(carried("64:ff9b::192.0.2.33"), [(Carrier::Nat64, v4("192.0.2.33"))]);
    // RFC 6052 section 2.4 with the local prefix in place of the documentation one.
    assert!(carried("64:ff9b:1:c000:2:2100::").contains(&(Carrier::LocalNat64, v4("192.0.2.33"))));
    assert!(carried("64:ff9b:1:3c0:0:221::").contains(&(Carrier::LocalNat64, v4("192.0.2.33"))));
    assert!(carried("64:ff9b:1:344:c0:2:2100::").contains(&(Carrier::LocalNat64, v4("192.0.2.33"))));
    assert!(carried("64:ff9b:1:344::192.0.2.33").contains(&(Carrier::LocalNat64, v4("192.0.2.33"))));
    // RFC 4380 section 4: server 65.54.227.120, client 192.0.2.45.
    assert_eq!(
        carried("2001:0:4136:e378:8000:63bf:3fff:fdd2"),
        [(Carrier::Teredo, v4("65.54.227.120")), (Carrier::Teredo, v4("192.0.2.45"))]
    );
    assert_eq!(carried("2002:c000:204::1"), [(Carrier::SixToFour, v4("192.0.2.4"))]);
    assert_eq!(carried("fe80::5efe:192.0.2.1"), [(Carrier::Isatap, v4("192.0.2.1"))]);
    assert_eq!(
        carried("2002:c000:204::200:5efe:10.0.0.1"),
        [(Carrier::SixToFour, v4("192.0.2.4")), (Carrier::Isatap, v4("10.0.0.1"))]
    );
    for none in ["::", "::1", "::ffff:10.0.0.1", "2606:4700::1111", "2600:1::100:5efe:10.0.0.1"] {
        assert_eq!(carried(none), [], "{none}");
    }
}

#[test]
fn the_tables_name_whole_networks() {
    for range in super::SPECIAL_V4 {
        assert_eq!(range.network, range.network.trunc(), "{}", range.what);
    }
    for range in super::SPECIAL_V6.iter().chain(super::OUTSIDE_GLOBAL_UNICAST) {
        assert_eq!(range.network, range.network.trunc(), "{}", range.what);
    }
    for range in super::OUTSIDE_GLOBAL_UNICAST {
        assert!(!super::GLOBAL_UNICAST.contains(&range.network), "{}", range.what);
    }
}

mod second_reading;

fn read_again(address: IpAddr) -> Verdict {
    match second_reading::of(address) {
        second_reading::Reading::Open => OPEN,
        second_reading::Reading::Passed => Skipped,
        second_reading::Reading::Closed => CLOSED,
        second_reading::Reading::Metadata => METADATA,
    }
}

/// IPv4 addresses, most of them near the edge of a row.
fn any_v4() -> impl Strategy<Value = u32> {
    let edge = (0..IPV4.len(), any::<bool>(), -3_i64..=3).prop_map(|(row, first, off)| {
        let at = number(ip(if first { IPV4[row].0 } else { IPV4[row].1 })) as i64;
        (at + off).clamp(0, u32::MAX.into()) as u32
    });
    prop_oneof![3 => edge, 1 => any::<u32>()]
}

/// IPv6 addresses: near the edge of a row, carrying an IPv4 address, with an ISATAP identifier, or anything.
fn any_v6() -> impl Strategy<Value = u128> {
    let edge = (0..IPV6.len(), any::<bool>(), 0..8_u128, any::<bool>()).prop_map(|(row, first, off, up)| {
        let at = number(ip(if first { IPV6[row].0 } else { IPV6[row].1 }));
        if up { at.saturating_add(off) } else { at.saturating_sub(off) }
    });
    let carrying = (0..FORMS.len(), any_v4()).prop_map(|(form, v4)| FORMS[form].1(v4.into()));
    let isatap = (any::<u64>(), any::<bool>(), any_v4()).prop_map(|(prefix, universal, v4)| {
        u128::from(prefix) << 64 | if universal { 0x0200_5efe_u128 } else { 0x5efe } << 32 | u128::from(v4)
    });
    prop_oneof![2 => edge, 3 => carrying, 1 => isatap, 1 => any::<u128>(), 1 => any::<u128>().prop_map(|n| n >> 3 | 1 << 125)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn ipv4_reads_the_same_twice(n in any_v4()) {
        let address = IpAddr::V4(n.into());
        prop_assert_eq!(verdict(address), read_again(address), "{}", address);
    }

    #[test]
    fn ipv6_reads_the_same_twice(n in any_v6()) {
        let address = IpAddr::V6(n.into());
        prop_assert_eq!(verdict(address), read_again(address), "{}", address);
    }
}
