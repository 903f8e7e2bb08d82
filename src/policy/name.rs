//! Host names: their one canonical form, the names that are never public, and the patterns of host lists.
//!
//! Every comparison is made on the canonical form: mapped by IDNA, lower-case, without the trailing dot. Addresses
//! that stand where a name could take part by their text (see [`super::Host`]). Not here: looking a name up.

use std::{borrow::Cow, collections::HashSet, net::IpAddr, sync::Arc};

use idna::AsciiDenyList;

use super::url::Host;
use crate::config::HostPattern;
use crate::limits::{HOST_LABEL_BYTES_MAX, HOST_NAME_BYTES_MAX};

/// Why a name is never looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// A metadata service's own name, or one under it: no exception opens it.
    Metadata,
    /// It ends in a suffix which is not part of the public name space; without the leading dot.
    SpecialUse(&'static str),
    /// One label: what it means depends on the search domains of whoever asks.
    SingleLabel,
}

/// The rule that keeps `name` (canonical) from being looked up.
pub fn judge(name: &str) -> Option<NameRule> {
    if METADATA_NAMES.iter().any(|metadata| is_or_is_under(name, metadata)) {
        return Some(NameRule::Metadata);
    }
    if let Some(suffix) = SPECIAL_USE_SUFFIXES.iter().find(|suffix| is_or_is_under(name, suffix)) {
        return Some(NameRule::SpecialUse(suffix));
    }
    (!name.contains('.')).then_some(NameRule::SingleLabel)
}

fn is_or_is_under(name: &str, parent: &str) -> bool {
    name.strip_suffix(parent).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The canonical form of a name as written: IDNA-mapped (UTS 46, as the URL Standard applies it), lower-case, without
/// one trailing dot. The error ends a sentence that begins with the name.
pub fn canonical(name: &str) -> Result<String, &'static str> {
    let mapped = idna::domain_to_ascii_cow(name.as_bytes(), AsciiDenyList::URL)
        .map_err(|_| "is not a valid (internationalised) domain name")?;
    let trimmed = mapped.strip_suffix('.').unwrap_or(&mapped);
    check_shape(trimmed)?;
    Ok(trimmed.to_owned())
}

/// Whether a mapped name without its trailing dot can stand in DNS and in a `Host` field without being read in two
/// ways. Wider than RFC 1123 only by `_`, which real receivers use.
pub(super) fn check_shape(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("is empty");
    }
    if name.len() > HOST_NAME_BYTES_MAX {
        return Err("is longer than the 253 characters that a domain name may have");
    }
    for label in name.split('.') {
        if label.is_empty() {
            return Err("has an empty label (two dots in a row, or a dot at its start)");
        }
        if label.len() > HOST_LABEL_BYTES_MAX {
            return Err("has a label longer than the 63 characters that DNS allows");
        }
        if !label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte)) {
            return Err("has a character that is not a letter, a digit, `-`, `_` or `.`");
        }
    }
    Ok(())
}

/// The form in which the target of a CNAME is judged. What cannot be mapped is compared as it stands: its addresses
/// are judged in any case.
pub(super) fn canonical_target(target: &str) -> Cow<'_, str> {
    match canonical(target) {
        Ok(name) => Cow::Owned(name),
        Err(_) => Cow::Owned(target.trim_end_matches('.').to_ascii_lowercase()),
    }
}

impl HostPattern {
    /// Reads an exact name, an address, or `*.example.com`. The error says what is wrong with `text` and what to
    /// write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(parent) = text.strip_prefix("*.") {
            return match Host::parse(parent).map_err(|problem| explain(text, &problem))? {
                Host::Name(name) => Ok(Self::Under(name)),
                Host::Address(_) => {
                    Err(explain(text, "nothing lies under an address: networks go into `deny_networks`"))
                }
            };
        }
        match Host::parse(text).map_err(|problem| explain(text, &problem))? {
            Host::Name(name) => Ok(Self::Exact(name)),
            Host::Address(address) => Ok(Self::Exact(address.to_string().into())),
        }
    }
}

fn explain(text: &str, problem: &str) -> String {
    format!("`{text}` is not a host pattern: {problem}; write an exact name or `*.example.com` (every name under it)")
}

impl Host {
    /// Reads a host that stands alone (in a list, a suspension), as it would read in a URL: a name is mapped, an
    /// address may stand in brackets. Disguised addresses (`127.1`) are refused rather than normalised.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.contains('*') {
            return Err("`*` may only stand as the whole first label".to_owned());
        }
        if text.contains("://") {
            return Err("it holds a scheme: write the host alone".to_owned());
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(Self::Address(address.to_canonical()));
        }
        if text.contains('/') {
            return Err("it holds a `/`: write the host alone (networks go into `deny_networks`)".to_owned());
        }
        if text.contains([':', '[', ']']) {
            return Err("it is neither a name nor an address: write the host without a port".to_owned());
        }
        if let Some(parent) = text.strip_prefix('.') {
            return Err(format!("it begins with a dot: names under a domain are `*.{parent}`"));
        }
        let name = canonical(text).map_err(|problem| format!("it {problem}"))?;
        if let Ok(address) = name.parse::<IpAddr>() {
            return Ok(Self::Address(address)); // Fullwidth digits and the like.
        }
        if ends_in_a_number(&name) {
            return Err("it ends in a number and is not an address in its plain form".to_owned());
        }
        Ok(Self::Name(name.into()))
    }
}

/// Whether parsers would take `name` for an IPv4 address (URL Standard, "ends in a number checker").
fn ends_in_a_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    let all = |text: &str, is_digit: fn(&u8) -> bool| text.as_bytes().iter().all(is_digit);
    all(last, u8::is_ascii_digit) || last.strip_prefix("0x").is_some_and(|hex| all(hex, u8::is_ascii_hexdigit))
}

/// The names that `name` lies under, from the nearest up.
pub(super) fn parents(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('.').filter_map(|(at, _)| name.get(at + 1..))
}

/// Many patterns, asked in time that depends on the host's labels and not on their number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PatternSet {
    exact: HashSet<Arc<str>>,
    under: HashSet<Arc<str>>,
    /// Of the exact ones, those that are addresses: they count under every name that leads to them.
    addresses: HashSet<IpAddr>,
}

impl PatternSet {
    pub(super) fn new(patterns: &[HostPattern]) -> Self {
        let mut set = Self::default();
        for pattern in patterns {
            match pattern {
                HostPattern::Exact(name) => {
                    set.addresses.extend(name.parse::<IpAddr>());
                    set.exact.insert(name.clone());
                }
                HostPattern::Under(parent) => {
                    set.under.insert(parent.clone());
                }
            }
        }
        set
    }

    /// Whether an address (canonical) is one of them, under whatever name it was found.
    pub(super) fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// Whether what a name resolves to may decide about it.
    pub(super) fn names_addresses(&self) -> bool {
        !self.addresses.is_empty()
    }

    /// `host` is a canonical name or an address' text.
    pub(super) fn matches(&self, host: &str) -> bool {
        self.exact.contains(host) || (!self.under.is_empty() && parents(host).any(|up| self.under.contains(up)))
    }
}

/// Names of metadata and platform services; every name under one counts as well.
pub const METADATA_NAMES: &[&str] = &[
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "instance-data",
    "instance-data.ec2.internal",
    "metadata.tencentyun.com",
    "metadata.packet.net",
    "metadata.platformequinix.com",
    "rancher-metadata",
    "kubernetes",
    "kubernetes.default.svc",
    "host.docker.internal",
    "gateway.docker.internal",
];

/// Suffixes outside the public name space: the IANA special-use domain names (RFC 6761 and its successors), and the
/// ones that local networks, clusters and container hosts use.
pub const SPECIAL_USE_SUFFIXES: &[&str] = &[
    "localhost",
    "local",
    "internal",
    "intranet",
    "lan",
    "home",
    "corp",
    "private",
    "localdomain",
    "home.arpa",
    "svc",
    "cluster.local",
    "arpa",
    "onion",
    "invalid",
    "test",
    "example",
    "alt",
];

#[cfg(test)]
mod tests;
