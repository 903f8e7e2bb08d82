//! Who is stopped for abuse, as judging asks it: tenants, workflows of theirs, and hosts.
//!
//! A host is stopped as a name, as every name under one, or as a network of addresses (one address is a network of
//! one). Names count also where they are the target of an alias, addresses under every name and in every form that
//! leads to them. Kept by the store; this is its image. Asked in time that does not grow with how many are stopped.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::name::parents;
use super::rules::{Asker, forms};
use super::url::Host;

/// A host as a suspension names it, in canonical form; `Display` gives that form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StoppedHost {
    Name(Arc<str>),
    /// `*.example.com`: every name under `example.com`, not itself.
    Under(Arc<str>),
    Network(IpNet),
}

/// Nothing wider is stopped by one suspension: it would be most of the internet, by a slip of the hand.
const PREFIX_MIN_V4: u8 = 8;
const PREFIX_MIN_V6: u8 = 16;

impl StoppedHost {
    /// The error ends a sentence that begins with what was given.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Some(parent) = text.strip_prefix("*.") {
            return match Host::parse(parent)? {
                Host::Name(name) => Ok(Self::Under(name)),
                Host::Address(_) => Err("nothing lies under an address: write a network, like 203.0.113.0/24".into()),
            };
        }
        if let Ok(network) = text.parse::<IpNet>() {
            return Self::network(network);
        }
        match Host::parse(text).map_err(|problem| problem.replace("`deny_networks`", "this as 203.0.113.0/24"))? {
            Host::Name(name) => Ok(Self::Name(name)),
            Host::Address(address) => Ok(Self::Network(address.into())),
        }
    }

    fn network(network: IpNet) -> Result<Self, String> {
        let widest = if network.addr().is_ipv4() { PREFIX_MIN_V4 } else { PREFIX_MIN_V6 };
        if network.trunc() != network {
            return Err(format!("it has bits set beyond its prefix: write {}", network.trunc()));
        }
        if network.prefix_len() < widest {
            return Err(format!("it is wider than /{widest}: name smaller networks, one by one"));
        }
        if matches!(network, IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some()) {
            return Err("it is an IPv4 network in IPv6 form: write the IPv4 network".into());
        }
        Ok(Self::Network(network))
    }

    /// What it stops and what it does not, for whoever made it.
    pub fn covers(&self) -> String {
        match self {
            Self::Name(name) => format!(
                "{name}, and every name that is an alias (CNAME) of it; not the names under it (suspend *.{name}), and \
                 not its addresses under other names (suspend the address)"
            ),
            Self::Under(parent) => format!(
                "every name under {parent}, and every alias (CNAME) of one; not {parent} itself, and not their \
                 addresses under other names (suspend those)"
            ),
            Self::Network(network) if network.prefix_len() == network.max_prefix_len() => {
                format!("{}, under every name that resolves to it", network.addr())
            }
            Self::Network(network) => format!("every address in {network}, under every name that resolves to one"),
        }
    }
}

impl fmt::Display for StoppedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Under(parent) => write!(f, "*.{parent}"),
            Self::Network(network) if network.prefix_len() == network.max_prefix_len() => network.addr().fmt(f),
            Self::Network(network) => network.fmt(f),
        }
    }
}

/// Everyone and everything that is stopped, with the reasons.
#[derive(Clone, Debug, Default)]
pub struct Suspensions {
    /// Whole tenants, or one workflow of one.
    pub tenants: HashMap<crate::send::TenantId, Arc<str>>,
    pub workflows: HashMap<(crate::send::TenantId, Arc<str>), Arc<str>>,
    names: HashMap<Arc<str>, Arc<str>>,
    under: HashMap<Arc<str>, Arc<str>>,
    /// By the length of their prefix.
    networks: BTreeMap<u8, HashMap<IpNet, Arc<str>>>,
}

impl Suspensions {
    /// Whose sends alone are stopped; `None`: a host is stopped, for everybody.
    pub fn only_of(&self) -> Option<impl Iterator<Item = &crate::send::TenantId>> {
        let stops_a_host = !self.names.is_empty() || !self.under.is_empty() || !self.networks.is_empty();
        (!stops_a_host).then(|| self.tenants.keys().chain(self.workflows.keys().map(|(tenant, _)| tenant)))
    }

    /// `host` as the store has it: what [`StoppedHost`] shows.
    pub fn stop_host(&mut self, host: &str, reason: Arc<str>) {
        match StoppedHost::parse(host) {
            Ok(StoppedHost::Under(parent)) => drop(self.under.insert(parent, reason)),
            Ok(StoppedHost::Network(network)) => {
                self.networks.entry(network.prefix_len()).or_default().insert(network, reason);
            }
            Ok(StoppedHost::Name(name)) => drop(self.names.insert(name, reason)),
            // What a newer version wrote: nothing is lost by comparing it as it stands.
            Err(_) => drop(self.names.insert(host.into(), reason)),
        }
    }

    /// Nobody and nothing is stopped.
    pub fn is_empty(&self) -> bool {
        let nobody = self.tenants.is_empty() && self.workflows.is_empty();
        nobody && self.names.is_empty() && self.under.is_empty() && self.networks.is_empty()
    }

    /// The reason why this tenant or this workflow of it may not submit.
    pub fn of(&self, asker: Asker<'_>) -> Option<&str> {
        let workflow = || {
            // Making the key costs two allocations: only while someone is suspended.
            let workflow = asker.workflow.filter(|_| !self.workflows.is_empty())?;
            self.workflows.get(&(asker.tenant.clone(), Arc::from(workflow)))
        };
        self.tenants.get(asker.tenant).or_else(workflow).map(|reason| &**reason)
    }

    /// The reason why no send may go to this host.
    pub fn of_host(&self, host: &Host) -> Option<&str> {
        match host {
            Host::Name(name) => self.of_name(name),
            Host::Address(address) => self.of_address(*address),
        }
    }

    /// As [`Self::of_host`], for a name in mapped form.
    pub(super) fn of_name(&self, name: &str) -> Option<&str> {
        let under = || parents(name).find_map(|parent| self.under.get(parent));
        let reason = self.names.get(name).or_else(|| if self.under.is_empty() { None } else { under() });
        reason.map(|reason| &**reason)
    }

    /// As [`Self::of_host`], for an address under any name, in any form that carries it.
    pub(super) fn of_address(&self, address: IpAddr) -> Option<&str> {
        if self.networks.is_empty() {
            return None;
        }
        let within = |form: IpAddr| {
            self.networks.iter().find_map(|(length, networks)| {
                networks.get(&IpNet::new(form, *length).ok()?.trunc()).map(|reason| &**reason)
            })
        };
        forms(address.to_canonical()).find_map(within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::fixtures::Question;

    #[test]
    fn a_host_is_a_name_all_under_one_an_address_or_a_network() {
        for (given, stopped) in [
            ("Victim.Example.com.", Ok("victim.example.com")),
            ("*.Victim.COM", Ok("*.victim.com")),
            ("*.bücher.example.com", Ok("*.xn--bcher-kva.example.com")),
            ("203.0.113.7", Ok("203.0.113.7")),
            ("[2001:DB8::1]", Ok("2001:db8::1")),
            ("::ffff:203.0.113.7", Ok("203.0.113.7")),
            ("203.0.113.0/24", Ok("203.0.113.0/24")),
            ("203.0.113.7/32", Ok("203.0.113.7")),
            ("2001:db8::/32", Ok("2001:db8::/32")),
            ("203.0.113.7/24", Err("write 203.0.113.0/24")),
            ("0.0.0.0/0", Err("wider than /8")),
            ("8.0.0.0/7", Err("wider than /8")),
            ("::/0", Err("wider than /16")),
            ("::ffff:203.0.113.0/120", Err("IPv6 form")),
            ("*", Err("first label")),
            ("*.", Err("")),
            ("*.203.0.113.7", Err("under an address")),
            ("a.*.com", Err("first label")),
            ("https://victim.com", Err("scheme")),
            ("victim.com:443", Err("port")),
            ("victim.com/path", Err("")),
            ("0x7f.1", Err("number")),
            ("", Err("")),
        ] {
            match (StoppedHost::parse(given), stopped) {
                (Ok(found), Ok(expected)) => {
                    assert_eq!(found.to_string(), expected, "{given}");
                    assert_eq!(StoppedHost::parse(expected), Ok(found), "{given}");
                }
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{given}: {found}"),
                (found, _) => panic!("{given}: {found:?}"),
            }
        }
    }

    #[test]
    fn what_is_under_a_name_or_in_a_network_is_stopped_on_both_looks() {
        for (stopped, url, targets, answer, word) in [
            ("*.victim.com", "https://www.victim.com/", &[][..], "1.1.1.1", "suspended"),
            ("*.victim.com", "https://a.b.victim.com./", &[], "1.1.1.1", "suspended"),
            ("*.victim.com", "https://victim.com/", &[], "1.1.1.1", "allowed"),
            ("*.victim.com", "https://notvictim.com/", &[], "1.1.1.1", "allowed"),
            ("*.victim.com", "https://alias.net/", &["edge.victim.com."], "1.1.1.1", "suspended"),
            ("victim.com", "https://www.victim.com/", &[], "1.1.1.1", "allowed"),
            ("203.0.114.0/24", "https://anything.net/", &[], "203.0.114.9", "suspended"),
            ("203.0.114.0/24", "https://anything.net/", &[], "203.0.115.9", "allowed"),
            ("203.0.114.0/24", "https://203.0.114.1/", &[], "1.1.1.1", "suspended"),
            ("203.0.114.0/24", "https://[::ffff:203.0.114.1]/", &[], "1.1.1.1", "suspended"),
            ("203.0.114.0/24", "https://[64:ff9b::203.0.114.1]/", &[], "1.1.1.1", "suspended"),
            ("203.0.114.0/24", "https://anything.net/", &[], "64:ff9b::cb00:7201", "suspended"),
            ("2606:4700::/32", "https://anything.net/", &[], "2606:4700:1::1", "suspended"),
            ("2606:4700::/32", "https://anything.net/", &[], "2606:4701::1", "allowed"),
        ] {
            let mut question = Question::default();
            question.suspensions.stop_host(stopped, "report 4711".into());
            // Others beside it take nothing away.
            question.suspensions.stop_host("198.41.0.0/16", "another".into());
            question.suspensions.stop_host("*.elsewhere.net", "another".into());
            question.cname_targets = targets.iter().map(|&target| target.to_owned()).collect();
            question.addresses = vec![answer.parse().unwrap()];
            let fate = question.ask(url);
            assert_eq!(fate.word(), word, "{stopped}: {url} at {answer}");
            assert!(fate.denial.is_none_or(|denial| denial.message.contains("report 4711")));
        }
    }
}
