//! `[policy]`: what the operator adds to the rules that always hold, and where an exception may open them.

use std::net::IpAddr;

use ipnet::IpNet;

use super::super::file::{Table, Wrong, as_integer, wrong};
use super::super::{Exception, HostPattern, PolicyMode, PolicySettings};
use super::{Surroundings, tenant_id, values};
use crate::limits;
use crate::policy::{address, name};
use crate::send::Kind;

/// Shortest prefixes that an exception may open.
const EXCEPTION_PREFIX_MIN_V4: u8 = 8;
const EXCEPTION_PREFIX_MIN_V6: u8 = 16;

impl<'a, 'r> Surroundings<'a, 'r> {
    /// Without the tenants' lists, which stand elsewhere in the file.
    pub(super) fn policy(&self, table: Table<'a, 'r>) -> PolicySettings {
        let mode = table.text("mode", PolicyMode::Enforce, |text| match text {
            "enforce" => Ok(PolicyMode::Enforce),
            "report" => Ok(PolicyMode::Report),
            _ => Err(wrong(format!("{text:?} is not a mode"), "\"enforce\" or \"report\"")),
        });
        let ports = table.list("ports", |value| match value.as_str() {
            Some(text) => port_range(text),
            None => port(as_integer(value)?).map(|port| (port, port)),
        });
        if table.is_empty_list("ports") {
            table.note("ports", wrong("holds no port: nothing could be sent", "for example [80, 443, \"1024-65535\"]"));
        }
        let settings = PolicySettings {
            mode: mode.value,
            ports: ports.map_or_else(|| vec![(80, 80), (443, 443), (1024, 65535)], |ports| values(Some(ports))),
            deny_hosts: values(table.texts("deny_hosts", host_pattern)),
            deny_networks: values(table.texts("deny_networks", network)),
            distinct_destinations_per_minute: table
                .count("distinct_destinations_per_minute", limits::DISTINCT_DESTINATIONS_PER_MINUTE, 1..=1_000_000)
                .value,
            exceptions: table.tables("exception").into_iter().filter_map(|table| self.exception(table)).collect(),
            tenants: Vec::new(),
        };
        table.finish();
        settings
    }

    fn exception(&self, table: Table<'a, 'r>) -> Option<Exception> {
        let networks = table.texts("networks", exception_network);
        let hosts = table.texts("hosts", exception_host);
        let written = |key| table.item(key).is_some() && !table.is_empty_list(key);
        if !written("networks") && !written("hosts") {
            let fix = "name networks = [\"10.20.0.0/16\"] or hosts = [\"billing.corp\"]";
            table.note("networks", wrong("the exception opens nothing", fix));
        }
        let reason = table.required("reason", "say why it is opened: it is logged at every start", |text| {
            if text.trim().is_empty() || text.len() > 1024 || text.chars().any(char::is_control) {
                return Err(wrong(
                    "is empty, too long or holds control characters",
                    "say in one line why it is opened",
                ));
            }
            Ok(text.to_owned())
        });
        let tenants = table.texts("tenants", tenant_id);
        if table.is_empty_list("tenants") {
            table.note("tenants", wrong("is empty", "name tenants, or leave the key out to open it for all"));
        }
        let known = Kind::ALL.iter().map(|kind| format!("\"{kind}\"")).collect::<Vec<_>>().join(", ");
        let destinations = table.texts("destinations", |text| {
            Kind::from_label(text).ok_or_else(|| wrong(format!("{text:?} is no kind of destination"), &known))
        });
        if table.is_empty_list("destinations") {
            let fix = format!("name some of {known}, or leave the key out to open it for all of them");
            table.note("destinations", wrong("is empty", fix));
        }
        table.finish();
        Some(Exception {
            networks: values(networks),
            hosts: values(hosts),
            reason: reason?,
            tenants: values(tenants),
            destinations: values(destinations),
        })
    }
}

pub(super) fn host_pattern(text: &str) -> Result<HostPattern, Wrong> {
    HostPattern::parse(text).map_err(|message| match message.split_once("; ") {
        Some((detail, fix)) => wrong(detail, fix),
        None => wrong(message, "write an exact name or `*.example.com`"),
    })
}

fn exception_host(text: &str) -> Result<HostPattern, Wrong> {
    let pattern = host_pattern(text)?;
    let (HostPattern::Exact(host) | HostPattern::Under(host)) = &pattern;
    let metadata = |host: &str| {
        name::METADATA_NAMES.iter().any(|name| host == *name || host.ends_with(&format!(".{name}")))
            || host.parse().is_ok_and(address::is_metadata)
    };
    if metadata(host) {
        return Err(wrong(format!("{text:?} is a metadata name, which no exception opens"), "leave it out"));
    }
    Ok(pattern)
}

/// A network without host bits; a bare address is a network of one.
fn network(text: &str) -> Result<IpNet, Wrong> {
    let bad = || wrong(format!("{text:?} is not a network"), "an address and a prefix, like \"10.20.0.0/16\"");
    let network: IpNet = match text.parse::<IpAddr>() {
        Ok(address) => address.into(),
        Err(_) => text.parse().map_err(|_| bad())?,
    };
    if network.trunc() != network {
        let fix = format!("write \"{}\"", network.trunc());
        return Err(wrong(format!("{text:?} has bits set beyond its prefix"), fix));
    }
    if let IpNet::V6(v6) = network
        && v6.addr().to_ipv4_mapped().is_some()
    {
        return Err(wrong(format!("{text:?} is an IPv4 network in IPv6 form"), "write the IPv4 network"));
    }
    Ok(network)
}

fn exception_network(text: &str) -> Result<IpNet, Wrong> {
    let network = network(text)?;
    let widest = if matches!(network, IpNet::V4(_)) { EXCEPTION_PREFIX_MIN_V4 } else { EXCEPTION_PREFIX_MIN_V6 };
    if network.prefix_len() < widest {
        let detail = format!("{text:?} is wider than /{widest}");
        return Err(wrong(detail, "open only the networks that are needed, one by one"));
    }
    let metadata = match network {
        IpNet::V4(v4) => v4.prefix_len() == 32 && address::is_metadata(v4.addr().into()),
        IpNet::V6(v6) => address::METADATA_V6.iter().any(|known| known.contains(&v6)),
    };
    if metadata {
        return Err(wrong(format!("{text:?} is a metadata address, which no exception opens"), "leave it out"));
    }
    Ok(network)
}

fn port(number: i64) -> Result<u16, Wrong> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(wrong(format!("{number} is not a port"), "1 to 65535")),
    }
}

fn port_range(text: &str) -> Result<(u16, u16), Wrong> {
    let bad = || wrong(format!("{text:?} is not a range of ports"), "write a number, or \"1024-65535\"");
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    let (first, last) = text.split_once('-').ok_or_else(bad)?;
    let (first, last) = (port(number(first).ok_or_else(bad)?)?, port(number(last).ok_or_else(bad)?)?);
    if first > last {
        Err(wrong(format!("{text:?} runs backwards"), "write the lower port first"))
    } else {
        Ok((first, last))
    }
}
