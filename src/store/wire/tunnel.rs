//! The stored form of a tunnel.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Read, Unreadable, code_number, code_of, decode, encode, nanoseconds, span, timestamp};
use crate::policy::Verdict;
use crate::record::{Tunnel, TunnelEnd, TunnelEnded};
use crate::send::TenantId;

numbered!(end_number, end_of, TunnelEnd {
    TunnelEnd::Closed = 0, TunnelEnd::Reset = 1, TunnelEnd::Idle = 2, TunnelEnd::Lifetime = 3, TunnelEnd::Refused = 4,
    TunnelEnd::Drained = 5,
});

#[derive(Serialize, Deserialize)]
struct TunnelForm<'a> {
    id: [u8; 16],
    tenant: &'a str,
    node: &'a str,
    client: Option<SocketAddr>,
    host: &'a str,
    port: u16,
    source: Option<IpAddr>,
    public: Option<IpAddr>,
    remote: Option<SocketAddr>,
    /// With 0 for allowed, 1 for skipped, and 2 for denied by this code.
    resolved: Vec<(IpAddr, u8, u8)>,
    would_block: Option<u8>,
    dns: Option<u64>,
    connect: Option<u64>,
    server_name: Option<&'a str>,
    begun_at: i64,
    up: u64,
    down: u64,
    ended: Option<EndedForm<'a>>,
}

#[derive(Serialize, Deserialize)]
struct EndedForm<'a> {
    at: i64,
    end: u8,
    code: Option<u8>,
    message: &'a str,
}

pub fn tunnel(tunnel: &Tunnel) -> Vec<u8> {
    let verdict = |&(ip, verdict): &(IpAddr, Verdict)| match verdict {
        Verdict::Allowed => (ip, 0, 0),
        Verdict::Skipped => (ip, 1, 0),
        Verdict::Denied(code) => (ip, 2, code_number(code)),
    };
    let form = TunnelForm {
        id: tunnel.id.into_bytes(),
        tenant: tunnel.tenant.as_str(),
        node: &tunnel.node,
        client: tunnel.client,
        host: &tunnel.host,
        port: tunnel.port,
        source: tunnel.source,
        public: tunnel.public,
        remote: tunnel.remote,
        resolved: tunnel.resolved.iter().map(verdict).collect(),
        would_block: tunnel.would_block.map(code_number),
        dns: tunnel.dns.map(span),
        connect: tunnel.connect.map(span),
        server_name: tunnel.server_name.as_deref(),
        begun_at: nanoseconds(tunnel.begun_at),
        up: tunnel.up,
        down: tunnel.down,
        ended: tunnel.ended.as_ref().map(|ended| EndedForm {
            at: nanoseconds(ended.at),
            end: end_number(ended.end),
            code: ended.code.map(code_number),
            message: &ended.message,
        }),
    };
    encode(&form, Vec::with_capacity(256))
}

pub fn read_tunnel(bytes: &[u8]) -> Read<Tunnel> {
    let form: TunnelForm<'_> = decode(bytes)?;
    let verdict = |&(ip, verdict, code): &(IpAddr, u8, u8)| match verdict {
        0 => Ok((ip, Verdict::Allowed)),
        1 => Ok((ip, Verdict::Skipped)),
        2 => code_of(code).map(|code| (ip, Verdict::Denied(code))),
        _ => Err(Unreadable("a verdict of no known number")),
    };
    let ended = |form: EndedForm<'_>| -> Read<TunnelEnded> {
        Ok(TunnelEnded {
            at: timestamp(form.at),
            end: end_of(form.end)?,
            code: form.code.map(code_of).transpose()?,
            message: form.message.to_owned(),
        })
    };
    Ok(Tunnel {
        id: Uuid::from_bytes(form.id),
        tenant: TenantId::new(form.tenant),
        node: form.node.to_owned(),
        client: form.client,
        host: form.host.to_owned(),
        port: form.port,
        source: form.source,
        public: form.public,
        remote: form.remote,
        resolved: form.resolved.iter().map(verdict).collect::<Read<_>>()?,
        would_block: form.would_block.map(code_of).transpose()?,
        dns: form.dns.map(Duration::from_nanos),
        connect: form.connect.map(Duration::from_nanos),
        server_name: form.server_name.map(str::to_owned),
        begun_at: timestamp(form.begun_at),
        up: form.up,
        down: form.down,
        ended: form.ended.map(ended).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_reads_back() {
        for &end in TunnelEnd::ALL {
            assert_eq!(end_of(end_number(end)), Ok(end));
        }
        assert!(end_of(99).is_err());
    }
}
