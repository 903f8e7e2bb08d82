//! What is ours and therefore never a destination: looked up from the host and the configuration.

use std::net::{IpAddr, SocketAddr};

use crate::config::Config;
use crate::policy::SelfAddrs;

/// Looks at this host's interfaces as they are now.
pub fn look(config: &Config, listeners: &[SocketAddr]) -> SelfAddrs {
    let published = config.egress.published.entries.iter().map(|entry| entry.address);
    let sources = config.egress.sources.iter().flat_map(|source| [source.bind, source.public]);
    SelfAddrs {
        interfaces: interfaces(),
        sources: published.chain(sources).collect(),
        listeners: listeners.to_vec(),
        name_servers: config.dns_servers.clone(),
    }
}

fn interfaces() -> Vec<IpAddr> {
    let addresses = match nix::ifaddrs::getifaddrs() {
        Ok(addresses) => addresses,
        Err(error) => {
            tracing::error!(%error, "this host's interfaces cannot be listed; the addresses of sources are still refused");
            return Vec::new();
        }
    };
    addresses
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .collect()
}
