//! A second reading of the address rules, in plain numbers and without the tables. The standard library alone, so
//! that the fuzz target reads it too.

use std::net::IpAddr;

/// What an address is to a policy without exceptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    Open,
    /// The NAT64 form of a good address.
    Passed,
    Closed,
    Metadata,
}

pub fn of(address: IpAddr) -> Reading {
    match address {
        IpAddr::V4(address) => v4(address.into()),
        IpAddr::V6(address) => v6(address.into()),
    }
}

fn is_metadata_v4(n: u32) -> bool {
    [
        0xa9fe_a9fe,
        0xa9fe_aa02,
        0xa9fe_aa17,
        0xa9fe_a9fd,
        0xa9fe_a97b,
        0xa9fe_2a2a,
        0x6464_64c8,
        0xc000_00c0,
        0xa83f_8110,
    ]
    .contains(&n)
}

fn is_special_v4(n: u32) -> bool {
    let [a, b, c, _] = n.to_be_bytes();
    match a {
        0 | 10 | 127 | 224..=255 => true,
        100 => (64..128).contains(&b),
        169 => b == 254,
        172 => b >> 4 == 1,
        192 => matches!((b, c), (0, 0 | 2) | (31, 196) | (52, 193) | (88, 99) | (168, _) | (175, 48)),
        198 => b == 18 || b == 19 || (b == 51 && c == 100),
        203 => b == 0 && c == 113,
        _ => false,
    }
}

fn v4(n: u32) -> Reading {
    if is_metadata_v4(n) {
        Reading::Metadata
    } else if is_special_v4(n) {
        Reading::Closed
    } else {
        Reading::Open
    }
}

fn v6(n: u128) -> Reading {
    let low = n as u32;
    if n >> 32 == 0xffff {
        return v4(low);
    }
    let top = |bits: u32| n >> (128 - bits);
    let is_metadata_v6 = top(32) == 0xfd00_0ec2
        || [
            0xfd20_00ce << 96 | 0x254,
            0xfd00_00c1 << 96 | 0xa9fe_a9fe,
            0xfd00_0042 << 96 | 0x42,
            0xfd00_a9fe_a9fe << 80 | 1,
            0xfd00_0100 << 96 | 0x0100_0200,
            0xfe80 << 112 | 0xa9fe_a9fe,
        ]
        .contains(&n);

    let mut inner: Vec<u32> = Vec::new();
    let is_isatap = (n >> 32) as u32 & !0x0200_0000 == 0x5efe;
    if is_isatap || n >> 32 == 0xffff_0000 || (n >> 32 == 0 && n > 1) || top(96) == 0x64_ff9b << 64 {
        inner.push(low);
    }
    if top(16) == 0x2002 {
        inner.push((n >> 80) as u32);
    }
    if top(32) == 0x2001_0000 {
        inner.extend([(n >> 64) as u32, !low]);
    }
    if top(48) == 0x64_ff9b_0001 {
        // The 80 bits behind the prefix without octet 8: 72 bits, in which the address stands at each offset.
        let squeezed = (n >> 64 & 0xffff) << 56 | n & 0xff_ffff_ffff_ffff;
        inner.extend([(squeezed >> 40) as u32, (squeezed >> 32) as u32, (squeezed >> 24) as u32, low]);
    }
    if is_metadata_v6 || inner.iter().any(|inside| is_metadata_v4(*inside)) {
        return Reading::Metadata;
    }
    let is_nat64 = top(96) == 0x64_ff9b << 64;
    let is_outside = top(3) != 1 && !is_nat64;
    let is_taken_out = top(23) == 0x2001_0000 >> 9
        || top(32) == 0x2001_0db8
        || top(16) == 0x2002
        || top(48) == 0x2620_004f_8000
        || top(20) == 0x3fff0
        || top(16) == 0x3ffe;
    if is_outside || is_taken_out || inner.iter().any(|inside| is_special_v4(*inside)) {
        Reading::Closed
    } else if is_nat64 {
        Reading::Passed
    } else {
        Reading::Open
    }
}
