//! What an address is, before any configured rule: tables of the ranges that are not the public internet, of cloud
//! metadata addresses, and the IPv4 addresses that IPv6 forms carry.
//!
//! Stricter than the registries' "globally reachable": relay, AS112 and multicast ranges count as special too. Pure
//! arithmetic on constants. Not here: exceptions, and what is ours ([`super::rules`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// A range that is not the public internet, and what it is called.
#[derive(Clone, Copy, Debug)]
pub struct Range<N> {
    pub network: N,
    pub what: &'static str,
}

/// Whether this address itself is one of a metadata or platform service. What it carries is asked apart.
pub fn is_metadata(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => METADATA_V4.contains(&address),
        IpAddr::V6(address) => METADATA_V6.iter().any(|network| network.contains(&address)),
    }
}

/// What this address itself is when it is not public. IPv4-mapped addresses are to be made canonical first
/// ([`IpAddr::to_canonical`]); [`Carrier::Nat64`] is not special in itself: what it carries decides.
pub fn special(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => SPECIAL_V4.iter().find(|range| range.network.contains(&address)).map(|range| range.what),
        IpAddr::V6(address) if NAT64.contains(&address) => None,
        IpAddr::V6(address) if !GLOBAL_UNICAST.contains(&address) => Some(
            OUTSIDE_GLOBAL_UNICAST
                .iter()
                .find(|range| range.network.contains(&address))
                .map_or("outside 2000::/3, not allocated as global unicast", |range| range.what),
        ),
        IpAddr::V6(address) => SPECIAL_V6.iter().find(|range| range.network.contains(&address)).map(|range| range.what),
    }
}

/// An IPv6 form that carries an IPv4 address to which a relay or translator would send on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// `64:ff9b::/96`, RFC 6052.
    Nat64,
    /// `64:ff9b:1::/48`, RFC 8215: read at each prefix length of RFC 6052, as the one in use cannot be known.
    LocalNat64,
    /// `2002::/16`, RFC 3056.
    SixToFour,
    /// `2001::/32`, RFC 4380: the server, and the client's address with its bits inverted.
    Teredo,
    /// An interface identifier of RFC 5214 under any /64.
    Isatap,
    /// `::/96`, RFC 4291 section 2.5.5.1.
    Compatible,
    /// `::ffff:0:0:0/96`, RFC 2765.
    Translated,
}

/// Every IPv4 address that `address` can be read to carry. None for IPv4-mapped ones: those *are* IPv4 addresses.
pub fn carried(address: Ipv6Addr) -> impl Iterator<Item = (Carrier, Ipv4Addr)> {
    let octets = address.octets();
    let at = |places: [usize; 4]| Ipv4Addr::from(places.map(|place| octets[place]));
    const LAST: [usize; 4] = [12, 13, 14, 15];

    let mut found = [None; 5];
    if NAT64.contains(&address) {
        found[0] = Some((Carrier::Nat64, at(LAST)));
    } else if LOCAL_NAT64.contains(&address) {
        // RFC 6052 section 2.2: octet 8 is skipped. Prefix lengths below 48 would overlap the prefix itself.
        for (slot, places) in found.iter_mut().zip([[6, 7, 9, 10], [7, 9, 10, 11], [9, 10, 11, 12], LAST]) {
            *slot = Some((Carrier::LocalNat64, at(places)));
        }
    } else if SIX_TO_FOUR.contains(&address) {
        found[0] = Some((Carrier::SixToFour, at([2, 3, 4, 5])));
    } else if TEREDO.contains(&address) {
        found[0] = Some((Carrier::Teredo, at([4, 5, 6, 7])));
        found[1] = Some((Carrier::Teredo, Ipv4Addr::from(at(LAST).octets().map(|octet| !octet))));
    } else if COMPATIBLE.contains(&address) && !address.is_unspecified() && !address.is_loopback() {
        found[0] = Some((Carrier::Compatible, at(LAST)));
    } else if TRANSLATED.contains(&address) {
        found[0] = Some((Carrier::Translated, at(LAST)));
    }
    if matches!(address.segments(), [_, _, _, _, 0 | 0x0200, 0x5efe, _, _]) {
        found[4] = Some((Carrier::Isatap, at(LAST)));
    }
    found.into_iter().flatten()
}

const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

const fn v6(first: [u16; 4], last: [u16; 4], length: u8) -> Ipv6Net {
    let [a, b, c, d] = first;
    let [e, f, g, h] = last;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), length)
}

const fn range<N: Copy>(network: N, what: &'static str) -> Range<N> {
    Range { network, what }
}

/// The IANA IPv4 special-purpose registry (2025-10-09) with multicast, AS112, AMT and 6to4 relays. Ranges that the
/// registry calls globally reachable are here too: nothing that a webhook is for lives in them.
pub const SPECIAL_V4: &[Range<Ipv4Net>] = &[
    range(v4(0, 0, 0, 0, 8), "\"this network\", 0.0.0.0/8"),
    range(v4(10, 0, 0, 0, 8), "private, 10.0.0.0/8"),
    range(v4(100, 64, 0, 0, 10), "shared by carriers, 100.64.0.0/10"),
    range(v4(127, 0, 0, 0, 8), "loopback, 127.0.0.0/8"),
    range(v4(169, 254, 0, 0, 16), "link-local, 169.254.0.0/16"),
    range(v4(172, 16, 0, 0, 12), "private, 172.16.0.0/12"),
    range(v4(192, 0, 0, 0, 24), "protocol assignments, 192.0.0.0/24"),
    range(v4(192, 0, 2, 0, 24), "documentation, 192.0.2.0/24"),
    range(v4(192, 31, 196, 0, 24), "AS112, 192.31.196.0/24"),
    range(v4(192, 52, 193, 0, 24), "AMT relays, 192.52.193.0/24"),
    range(v4(192, 88, 99, 0, 24), "6to4 relays, 192.88.99.0/24"),
    range(v4(192, 168, 0, 0, 16), "private, 192.168.0.0/16"),
    range(v4(192, 175, 48, 0, 24), "AS112, 192.175.48.0/24"),
    range(v4(198, 18, 0, 0, 15), "benchmarking, 198.18.0.0/15"),
    range(v4(198, 51, 100, 0, 24), "documentation, 198.51.100.0/24"),
    range(v4(203, 0, 113, 0, 24), "documentation, 203.0.113.0/24"),
    range(v4(224, 0, 0, 0, 4), "multicast, 224.0.0.0/4"),
    range(v4(255, 255, 255, 255, 32), "broadcast, 255.255.255.255"),
    range(v4(240, 0, 0, 0, 4), "reserved, 240.0.0.0/4"),
];

/// The only IPv6 addresses that can be public, RFC 4291 section 2.4.
pub const GLOBAL_UNICAST: Ipv6Net = v6([0x2000, 0, 0, 0], [0; 4], 3);

/// What is special inside [`GLOBAL_UNICAST`].
pub const SPECIAL_V6: &[Range<Ipv6Net>] = &[
    range(v6([0x2001, 0, 0, 0], [0; 4], 23), "protocol assignments (Teredo, ORCHID and others), 2001::/23"),
    range(v6([0x2001, 0xdb8, 0, 0], [0; 4], 32), "documentation, 2001:db8::/32"),
    range(v6([0x2002, 0, 0, 0], [0; 4], 16), "6to4, 2002::/16"),
    range(v6([0x2620, 0x4f, 0x8000, 0], [0; 4], 48), "AS112, 2620:4f:8000::/48"),
    range(v6([0x3fff, 0, 0, 0], [0; 4], 20), "documentation, 3fff::/20"),
    range(v6([0x3ffe, 0, 0, 0], [0; 4], 16), "the former 6bone, 3ffe::/16"),
];

/// Names for what is outside [`GLOBAL_UNICAST`], for messages alone: everything there is denied.
const OUTSIDE_GLOBAL_UNICAST: &[Range<Ipv6Net>] = &[
    range(v6([0; 4], [0; 4], 128), "unspecified, ::"),
    range(v6([0; 4], [0, 0, 0, 1], 128), "loopback, ::1"),
    range(COMPATIBLE, "IPv4-compatible, ::/96"),
    range(TRANSLATED, "IPv4-translated, ::ffff:0:0:0/96"),
    range(LOCAL_NAT64, "local NAT64, 64:ff9b:1::/48"),
    range(v6([0x100, 0, 0, 0], [0; 4], 64), "discard-only, 100::/64"),
    range(v6([0x100, 0, 0, 1], [0; 4], 64), "dummy prefix, 100:0:0:1::/64"),
    range(v6([0x5f00, 0, 0, 0], [0; 4], 16), "segment routing, 5f00::/16"),
    range(v6([0xfc00, 0, 0, 0], [0; 4], 7), "unique local, fc00::/7"),
    range(v6([0xfe80, 0, 0, 0], [0; 4], 10), "link-local, fe80::/10"),
    range(v6([0xfec0, 0, 0, 0], [0; 4], 10), "site-local, fec0::/10"),
    range(v6([0xff00, 0, 0, 0], [0; 4], 8), "multicast, ff00::/8"),
];

const NAT64: Ipv6Net = v6([0x64, 0xff9b, 0, 0], [0; 4], 96);
const LOCAL_NAT64: Ipv6Net = v6([0x64, 0xff9b, 1, 0], [0; 4], 48);
const SIX_TO_FOUR: Ipv6Net = v6([0x2002, 0, 0, 0], [0; 4], 16);
const TEREDO: Ipv6Net = v6([0x2001, 0, 0, 0], [0; 4], 32);
const COMPATIBLE: Ipv6Net = v6([0; 4], [0; 4], 96);
const TRANSLATED: Ipv6Net = v6([0; 4], [0xffff, 0, 0, 0], 96);

/// Metadata and platform services of the large clouds.
pub const METADATA_V4: &[Ipv4Addr] = &[
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(169, 254, 170, 23),
    Ipv4Addr::new(169, 254, 169, 253),
    Ipv4Addr::new(169, 254, 169, 123),
    Ipv4Addr::new(169, 254, 42, 42),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
    Ipv4Addr::new(168, 63, 129, 16),
];

pub const METADATA_V6: &[Ipv6Net] = &[
    v6([0xfd00, 0xec2, 0, 0], [0; 4], 32),
    v6([0xfd20, 0xce, 0, 0], [0, 0, 0, 0x254], 128),
    v6([0xfd00, 0xc1, 0, 0], [0, 0, 0xa9fe, 0xa9fe], 128),
    v6([0xfd00, 0x42, 0, 0], [0, 0, 0, 0x42], 128),
    v6([0xfd00, 0xa9fe, 0xa9fe, 0], [0, 0, 0, 1], 128),
    v6([0xfd00, 0x100, 0, 0], [0, 0, 0x100, 0x200], 128),
    v6([0xfe80, 0, 0, 0], [0, 0, 0xa9fe, 0xa9fe], 128),
];

#[cfg(test)]
mod tests;
