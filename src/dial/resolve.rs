//! Looking destinations up: the absolute name, asked of the configured name servers by ourselves.
//!
//! No search domains, no hosts file, no C library. An answer is used for at most [`DNS_TTL_MAX`] and never past its
//! TTL. Lookups are dropped with the delivery that asked, and each tenant waits for its own only: at most
//! [`DNS_LOOKUPS_PER_TENANT`] of them run at once, [`DNS_LOOKUPS_PER_DOMAIN`] for one registrable domain. What is
//! found here has not been judged: that is [`crate::policy`]'s, and takes the aliases ([`Found::cname_targets`]) too.
//!
//! Deliberately not here: SVCB and HTTPS records, DNSSEC, negative answers kept for later.

pub mod query;

use std::{
    collections::HashMap,
    future::Future,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use futures_util::future::{Either, select};
use hickory_proto::rr::{Name, RecordType};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use self::query::{Unanswered, ask, read};
use crate::clock;
use crate::limits::{
    DNS_CACHED_NAMES_MAX, DNS_CNAMES_MAX, DNS_FAMILY_GRACE, DNS_LOOKUPS_PER_DOMAIN, DNS_LOOKUPS_PER_TENANT, DNS_TTL_MAX,
};
use crate::outcome::{Code, Failure, Phase};
use crate::send::TenantId;

/// What a name resolved to, A and AAAA together, alternating between the families, IPv6 first (RFC 8305 section 4).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Every name that the asked one is an alias of, in order, lower-case without the final dot.
    pub cname_targets: Vec<String>,
    pub addresses: Vec<IpAddr>,
}

/// A lookup without an address. The aliases seen on the way are still to be judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotFound {
    pub failure: Failure,
    pub cname_targets: Vec<String>,
}

/// One for the process: what was found lately, and who is looking.
#[derive(Debug, Default)]
pub struct Resolver {
    found: Mutex<HashMap<Asked, Kept>>,
    gates: Mutex<HashMap<Gate, Weak<Semaphore>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Asked {
    name: Arc<str>,
    with_v6: bool,
}

#[derive(Debug)]
struct Kept {
    found: Arc<Found>,
    until: Instant,
}

/// Lookups of one tenant, or of one tenant for one registrable domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Gate {
    tenant: TenantId,
    domain: Option<Arc<str>>,
}

impl Resolver {
    /// Looks an absolute name up for a tenant. Waits for as long as the name servers are silent: the caller's
    /// deadline drops it.
    pub async fn lookup(
        &self,
        tenant: &TenantId,
        name: &Arc<str>,
        with_v6: bool,
        servers: &[SocketAddr],
    ) -> Result<Arc<Found>, NotFound> {
        let asked = Asked { name: name.clone(), with_v6 };
        if let Some(found) = self.kept(&asked) {
            return Ok(found);
        }
        // Boxed: most deliveries find the answer kept, and none should carry this about.
        Box::pin(async {
            let _permits = self.admit(tenant, name).await;
            // Whoever was admitted before may have asked the same.
            if let Some(found) = self.kept(&asked) {
                return Ok(found);
            }
            let (found, ttl) = lookup(name, with_v6, servers).await?;
            let found = Arc::new(found);
            self.keep(asked, found.clone(), ttl);
            Ok(found)
        })
        .await
    }

    /// Forgets what is out of date. Called now and then.
    pub fn tend(&self) {
        let now = clock::monotonic();
        self.found.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, kept| kept.until > now);
        self.gates.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, gate| gate.strong_count() > 0);
    }

    /// Forgets everything: the name servers may be others now.
    pub fn clear(&self) {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn kept(&self, asked: &Asked) -> Option<Arc<Found>> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.get(asked).filter(|kept| kept.until > clock::monotonic()).map(|kept| kept.found.clone())
    }

    fn keep(&self, asked: Asked, answer: Arc<Found>, ttl: Duration) {
        if ttl.is_zero() {
            return;
        }
        let now = clock::monotonic();
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found.len() >= DNS_CACHED_NAMES_MAX {
            found.retain(|_, kept| kept.until > now);
            if found.len() >= DNS_CACHED_NAMES_MAX {
                found.clear();
            }
        }
        found.insert(asked, Kept { found: answer, until: now + ttl.min(DNS_TTL_MAX) });
    }

    /// The domain's gate first, so that who waits for a slow domain does not stand in the tenant's.
    async fn admit(&self, tenant: &TenantId, name: &str) -> [Option<OwnedSemaphorePermit>; 2] {
        let domain = Some(Arc::from(registrable_domain(name)));
        let domain = self.gate(Gate { tenant: tenant.clone(), domain }, DNS_LOOKUPS_PER_DOMAIN);
        let domain = domain.acquire_owned().await.ok();
        let all = self.gate(Gate { tenant: tenant.clone(), domain: None }, DNS_LOOKUPS_PER_TENANT);
        [domain, all.acquire_owned().await.ok()]
    }

    fn gate(&self, gate: Gate, most: usize) -> Arc<Semaphore> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(semaphore) = gates.get(&gate).and_then(Weak::upgrade) {
            return semaphore;
        }
        let semaphore = Arc::new(Semaphore::new(most));
        gates.insert(gate, Arc::downgrade(&semaphore));
        semaphore
    }
}

/// About the part of a name that one registrant holds: its last two labels, or three where the last two read like a
/// registry's (`co.uk`). A miss only moves a lookup to another of the same tenant's gates.
fn registrable_domain(name: &str) -> &str {
    let mut dots = name.rmatch_indices('.').map(|(at, _)| at);
    let (Some(last), Some(second)) = (dots.next(), dots.next()) else { return name };
    let third = dots.next();
    let registry = name.len() - last == 3 && last - second <= 4;
    match (registry, third) {
        (true, Some(third)) => &name[third + 1..],
        (true, None) => name,
        (false, _) => &name[second + 1..],
    }
}

/// One family's answer.
#[derive(Debug)]
enum Family {
    /// No addresses: the name exists without any of this family.
    Addresses { addresses: Vec<IpAddr>, ttl: u32 },
    /// No such name, for any family.
    Gone,
    /// The name servers gave nothing usable.
    Failed(Unanswered),
    /// More aliases than are followed.
    TooManyAliases,
}

impl Family {
    fn has_addresses(&self) -> bool {
        matches!(self, Self::Addresses { addresses, .. } if !addresses.is_empty())
    }
}

async fn lookup(name: &str, with_v6: bool, servers: &[SocketAddr]) -> Result<(Found, Duration), NotFound> {
    let not_found = |code, message: String, cname_targets| NotFound {
        failure: Failure::new(code, Phase::Dns, message),
        cname_targets,
    };
    let Ok(mut absolute) = Name::from_ascii(name) else {
        let message = format!("{name} cannot be asked of a name server: it is not a name DNS can hold; check the URL");
        return Err(not_found(Code::DnsNotFound, message, Vec::new()));
    };
    absolute.set_fqdn(true);

    let (v4, v6) = if with_v6 {
        both(family(&absolute, RecordType::A, servers), family(&absolute, RecordType::AAAA, servers)).await
    } else {
        (Some(family(&absolute, RecordType::A, servers).await), None)
    };
    let mut cname_targets: Vec<String> = Vec::new();
    let mut families = Vec::new();
    for (family, aliases) in [v6, v4].into_iter().flatten() {
        for alias in aliases {
            if !cname_targets.contains(&alias) {
                cname_targets.push(alias);
            }
        }
        families.push(family);
    }

    if families.iter().any(Family::has_addresses) {
        // An answer of one family alone is used, and not kept for the next.
        let whole = families.len() == 1 + usize::from(with_v6);
        let mut ttl = if whole { u32::MAX } else { 0 };
        let mut lists = Vec::new();
        for family in families {
            match family {
                Family::Addresses { addresses, ttl: its } => {
                    ttl = ttl.min(its);
                    lists.push(addresses);
                }
                _ => ttl = 0,
            }
        }
        let found = Found { cname_targets, addresses: alternate(lists) };
        return Ok((found, Duration::from_secs(u64::from(ttl))));
    }
    Err(if families.iter().any(|family| matches!(family, Family::Gone)) {
        let message = format!(
            "there is no such name as {name} (the name servers answered NXDOMAIN); check its spelling, and that it is published in the public DNS"
        );
        not_found(Code::DnsNotFound, message, cname_targets)
    } else if families.iter().any(|family| matches!(family, Family::TooManyAliases)) {
        let message =
            format!("{name} is an alias of more than {DNS_CNAMES_MAX} names in a row; shorten its CNAME chain");
        not_found(Code::DnsFailed, message, cname_targets)
    } else if let Some(unanswered) = families.iter().find_map(|family| match family {
        Family::Failed(unanswered) => Some(unanswered),
        _ => None,
    }) {
        let message =
            format!("looking up {name} failed: {unanswered}; check the name's own name servers, or resend later");
        not_found(Code::DnsFailed, message, cname_targets)
    } else {
        let records = if with_v6 { "A or AAAA" } else { "A" };
        let message = format!("{name} exists and has no {records} record that could be used; publish one for it");
        not_found(Code::DnsNoAddress, message, cname_targets)
    })
}

type FamilyAnswer = (Family, Vec<String>);

/// Both families at once. Once one has answered with addresses the other has [`DNS_FAMILY_GRACE`] left; `Gone` of
/// one is `Gone` of both.
async fn both(
    v4: impl Future<Output = FamilyAnswer>,
    v6: impl Future<Output = FamilyAnswer>,
) -> (Option<FamilyAnswer>, Option<FamilyAnswer>) {
    async fn rest(first: &FamilyAnswer, other: impl Future<Output = FamilyAnswer>) -> Option<FamilyAnswer> {
        if matches!(first.0, Family::Gone) {
            return None;
        }
        if !first.0.has_addresses() {
            return Some(other.await);
        }
        tokio::select! {
            answer = other => Some(answer),
            () = tokio::time::sleep(DNS_FAMILY_GRACE) => None,
        }
    }
    match select(std::pin::pin!(v4), std::pin::pin!(v6)).await {
        Either::Left((first, other)) => {
            let second = rest(&first, other).await;
            (Some(first), second)
        }
        Either::Right((first, other)) => {
            let second = rest(&first, other).await;
            (second, Some(first))
        }
    }
}

/// Asks for one family, along the aliases, until addresses or the end of the chain.
async fn family(name: &Name, kind: RecordType, servers: &[SocketAddr]) -> FamilyAnswer {
    let mut aliases: Vec<String> = Vec::new();
    let mut at = name.clone();
    let mut ttl = u32::MAX;
    loop {
        let message = match ask(servers, &at, kind).await {
            Ok(message) => message,
            Err(unanswered) => return (Family::Failed(unanswered), aliases),
        };
        let reading = read(&message, &at, kind);
        let followed = !reading.aliases.is_empty();
        for alias in &reading.aliases {
            aliases.push(plain(alias));
        }
        if aliases.len() > DNS_CNAMES_MAX {
            return (Family::TooManyAliases, aliases);
        }
        ttl = ttl.min(reading.ttl);
        if reading.gone {
            return (Family::Gone, aliases);
        }
        match reading.aliases.into_iter().next_back() {
            // The server stopped at an alias: asked for that name itself.
            Some(last) if reading.addresses.is_empty() && followed => at = last,
            _ => return (Family::Addresses { addresses: reading.addresses, ttl }, aliases),
        }
    }
}

/// A name as policy compares it.
fn plain(name: &Name) -> String {
    let text = name.to_lowercase().to_ascii();
    text.strip_suffix('.').map_or(text.clone(), str::to_owned)
}

/// Takes one from each list in turn.
fn alternate(lists: Vec<Vec<IpAddr>>) -> Vec<IpAddr> {
    let mut lists: Vec<_> = lists.into_iter().map(Vec::into_iter).collect();
    let mut all = Vec::new();
    loop {
        let before = all.len();
        all.extend(lists.iter_mut().filter_map(Iterator::next));
        if all.len() == before {
            return all;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registrable_domain_is_what_one_registrant_holds() {
        for (name, domain) in [
            ("localhost", "localhost"),
            ("example.com", "example.com"),
            ("a.b.example.com", "example.com"),
            ("example.co.uk", "example.co.uk"),
            ("www.example.co.uk", "example.co.uk"),
            ("www.example.de", "example.de"),
            ("co.uk", "co.uk"),
        ] {
            assert_eq!(registrable_domain(name), domain, "{name}");
        }
    }

    #[test]
    fn addresses_alternate_between_the_families() {
        let ip = |last: u8| IpAddr::from([192, 0, 2, last]);
        let mixed = alternate(vec![vec![ip(1), ip(2), ip(3)], vec![ip(9)]]);
        assert_eq!(mixed, [ip(1), ip(9), ip(2), ip(3)]);
    }
}
