//! Looking destinations up: the absolute name, asked of the configured name servers by ourselves.
//!
//! No search domains, no hosts file, no C library. An answer is used for at most [`DNS_TTL_MAX`] and never past its
//! TTL, by the tenant that asked alone. A lookup that every server failed is made once more. Lookups are dropped with
//! the delivery that asked, and each tenant waits for its own only: at most [`DNS_LOOKUPS_PER_TENANT`] of them run at
//! once, [`DNS_LOOKUPS_PER_DOMAIN`] for one registrable domain. What is found here has not been judged: that is
//! [`crate::policy`]'s, and takes the aliases ([`Found::cname_targets`]) too.
//!
//! Deliberately not here: SVCB and HTTPS records, DNSSEC, negative answers kept for later.

mod cache;
pub mod inquiry;
pub mod message;
mod query;
mod servers;

use std::{
    collections::HashMap,
    future::Future,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use futures_util::future::{Either, select};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::cache::Cache;
use self::inquiry::Inquiry;
use self::message::{Name, RecordType};
use self::query::{AllFailed, Asking, ask};
use self::servers::Servers;
#[cfg(doc)]
use crate::limits::DNS_TTL_MAX;
use crate::limits::{
    DNS_ASKED_AGAIN_AFTER, DNS_ASKED_AGAIN_SHARE, DNS_CNAMES_MAX, DNS_FAMILY_GRACE, DNS_LOOKUPS_PER_DOMAIN,
    DNS_LOOKUPS_PER_TENANT,
};
use crate::outcome::Failure;
use crate::outcome::words::NameCause;
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

/// What is looked up, and how.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    pub tenant: &'a TenantId,
    /// Absolute, lower-case, without the final dot.
    pub name: &'a Arc<str>,
    /// Whether IPv6 addresses could be reached.
    pub with_v6: bool,
    pub servers: &'a [SocketAddr],
    /// What the whole delivery may take.
    pub deadline: Duration,
}

/// One for the process: what was found lately, who is looking, and what is known of the name servers.
#[derive(Debug, Default)]
pub struct Resolver {
    found: Cache,
    gates: Mutex<HashMap<Gate, Weak<Semaphore>>>,
    servers: Arc<Servers>,
}

/// Lookups of one tenant, or of one tenant for one registrable domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Gate {
    tenant: TenantId,
    domain: Option<Arc<str>>,
}

impl Resolver {
    /// Looks an absolute name up for a tenant. Waits for as long as the name servers are silent: the caller's
    /// deadline drops it, and `inquiry` has what there is to say then.
    pub async fn lookup(&self, wanted: &Wanted<'_>, inquiry: &Inquiry) -> Result<Arc<Found>, NotFound> {
        inquiry.begin(wanted.name);
        let asked = (wanted.name.clone(), wanted.with_v6);
        if let Some(found) = self.found.kept(wanted.tenant, &asked) {
            return Ok(found);
        }
        // Boxed: most deliveries find the answer kept, and none should carry this about.
        Box::pin(async {
            let Some(name) = Name::from_text(wanted.name) else {
                let failure = NameCause::NoName.failure(wanted.name);
                return Err(NotFound { failure, cname_targets: Vec::new() });
            };
            let mut last = false;
            loop {
                let permits = self.admit(wanted.tenant, wanted.name).await;
                // Whoever was admitted before may have asked the same.
                if let Some(found) = self.found.kept(wanted.tenant, &asked) {
                    return Ok(found);
                }
                let order = self.servers.order(wanted.servers);
                let asking = Asking { servers: &self.servers, order, inquiry, last };
                let answers = both_families(&asking, &name, wanted.with_v6).await;
                drop(permits);
                match Heard::new(answers, wanted.with_v6) {
                    Heard::Found(found, ttl) => {
                        let found = Arc::new(found);
                        self.found.keep(wanted.tenant, asked, found.clone(), ttl);
                        return Ok(found);
                    }
                    // Nobody waits for this one's turn meanwhile.
                    Heard::Failed(_) if !last => {
                        last = true;
                        let pause = DNS_ASKED_AGAIN_AFTER.min(wanted.deadline / DNS_ASKED_AGAIN_SHARE);
                        tokio::time::sleep(pause).await;
                    }
                    heard => return Err(heard.not_found(wanted, inquiry)),
                }
            }
        })
        .await
    }

    /// Forgets what is out of date. Called now and then.
    pub fn tend(&self) {
        self.found.tend();
        self.gates.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, gate| gate.strong_count() > 0);
    }

    /// Forgets everything: the name servers may be others now.
    pub fn clear(&self) {
        self.found.clear();
        self.servers.clear();
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

/// The part of a name that one registrant holds, by the Public Suffix List (its private part too: who has a name under
/// `github.io` holds that one). A name that is a suffix itself, or under none, stands for itself.
fn registrable_domain(name: &str) -> &str {
    psl::domain_str(name).unwrap_or(name)
}

/// One family's answer.
#[derive(Debug)]
enum Family {
    /// No addresses: the name exists without any of this family.
    Addresses { addresses: Vec<IpAddr>, ttl: u32 },
    /// No such name, the server says: for this family, where it holds the other to be there.
    Gone,
    /// The name servers gave nothing usable.
    Failed,
    /// More aliases than are followed.
    TooManyAliases,
}

/// With every alias on the way.
type FamilyAnswer = (Family, Vec<String>);

fn has_addresses((family, _): &FamilyAnswer) -> bool {
    matches!(family, Family::Addresses { addresses, .. } if !addresses.is_empty())
}

/// IPv6 first; a family that was not asked for, or not waited for, is missing.
async fn both_families(asking: &Asking<'_>, name: &Name, with_v6: bool) -> Vec<FamilyAnswer> {
    let v4 = family(asking, name, RecordType::A);
    if !with_v6 {
        return vec![v4.await];
    }
    let (v6, v4) = both(family(asking, name, RecordType::AAAA), v4).await;
    let mut answers = [(RecordType::AAAA, v6), (RecordType::A, v4)];
    let found = answers.iter().any(|(_, answer)| answer.as_ref().is_some_and(has_addresses));
    for (kind, answer) in &mut answers {
        // The lookup is not made once more, as there is something to go on with: a hiccup must not cost this family.
        if found && matches!(answer, Some((Family::Failed, _))) {
            tokio::select! {
                again = family(asking, name, *kind) => *answer = Some(again),
                () = tokio::time::sleep(DNS_FAMILY_GRACE) => {}
            }
        }
    }
    answers.into_iter().filter_map(|(_, answer)| answer).collect()
}

/// Both families at once. Once one has answered with addresses the other has [`DNS_FAMILY_GRACE`] left. That one does
/// not exist says nothing of the other: there are name servers that deny a name for the family it lacks (RFC 4074
/// section 4.2).
async fn both<A, B>(first: A, second: B) -> (Option<FamilyAnswer>, Option<FamilyAnswer>)
where
    A: Future<Output = FamilyAnswer>,
    B: Future<Output = FamilyAnswer>,
{
    async fn rest(has_addresses: bool, other: impl Future<Output = FamilyAnswer>) -> Option<FamilyAnswer> {
        if !has_addresses {
            return Some(other.await);
        }
        tokio::select! {
            answer = other => Some(answer),
            () = tokio::time::sleep(DNS_FAMILY_GRACE) => None,
        }
    }
    match select(std::pin::pin!(first), std::pin::pin!(second)).await {
        Either::Left((answer, other)) => {
            let other = rest(has_addresses(&answer), other).await;
            (Some(answer), other)
        }
        Either::Right((answer, other)) => {
            let other = rest(has_addresses(&answer), other).await;
            (other, Some(answer))
        }
    }
}

/// Asks for one family, along the aliases, until addresses or the end of the chain.
async fn family(asking: &Asking<'_>, name: &Name, kind: RecordType) -> FamilyAnswer {
    let mut aliases: Vec<String> = Vec::new();
    let mut at = name.clone();
    let mut ttl = u32::MAX;
    loop {
        let Ok(reading) = ask(asking, &at, kind).await.map_err(|AllFailed| ()) else {
            return (Family::Failed, aliases);
        };
        aliases.extend(reading.aliases.iter().map(Name::to_string));
        if aliases.len() > DNS_CNAMES_MAX {
            return (Family::TooManyAliases, aliases);
        }
        ttl = ttl.min(reading.ttl);
        if reading.gone {
            return (Family::Gone, aliases);
        }
        match reading.aliases.into_iter().next_back() {
            // The server stopped at an alias: asked for that name itself.
            Some(last) if reading.addresses.is_empty() => at = last,
            _ => return (Family::Addresses { addresses: reading.addresses, ttl }, aliases),
        }
    }
}

/// What both families come to, with every alias of either.
#[derive(Debug)]
enum Heard {
    Found(Found, Duration),
    Failed(Vec<String>),
    TooManyAliases(Vec<String>),
    Gone(Vec<String>),
    /// It exists, without an address of a family that was asked for.
    Empty(Vec<String>),
}

impl Heard {
    fn new(answers: Vec<FamilyAnswer>, with_v6: bool) -> Self {
        let mut cname_targets: Vec<String> = Vec::new();
        for (_, aliases) in &answers {
            for alias in aliases {
                if !cname_targets.contains(alias) {
                    cname_targets.push(alias.clone());
                }
            }
        }
        let any = |is: fn(&Family) -> bool| answers.iter().any(|(family, _)| is(family));
        if answers.iter().any(has_addresses) {
            // An answer of one family alone is used, and not kept for the next.
            let mut ttl = if answers.len() == 1 + usize::from(with_v6) { u32::MAX } else { 0 };
            let mut lists = Vec::new();
            for (family, _) in answers {
                match family {
                    Family::Addresses { addresses, ttl: its } => {
                        ttl = ttl.min(its);
                        lists.push(addresses);
                    }
                    _ => ttl = 0,
                }
            }
            let found = Found { cname_targets, addresses: alternate(lists) };
            return Self::Found(found, Duration::from_secs(u64::from(ttl)));
        }
        // What failed for one family may be there.
        if any(|family| matches!(family, Family::Failed)) {
            Self::Failed(cname_targets)
        } else if any(|family| matches!(family, Family::TooManyAliases)) {
            Self::TooManyAliases(cname_targets)
        } else if any(|family| matches!(family, Family::Addresses { .. })) {
            Self::Empty(cname_targets)
        } else {
            Self::Gone(cname_targets)
        }
    }

    /// Why, where nothing was found.
    fn not_found(self, wanted: &Wanted<'_>, inquiry: &Inquiry) -> NotFound {
        let faults = inquiry.faults();
        let (Self::Failed(aliases)
        | Self::TooManyAliases(aliases)
        | Self::Gone(aliases)
        | Self::Empty(aliases)
        | Self::Found(Found { cname_targets: aliases, .. }, _)) = &self;
        let target = aliases.last().map(String::as_str);
        let cause = match &self {
            Self::Failed(_) => NameCause::Failed { faults: &faults },
            Self::TooManyAliases(_) => NameCause::TooManyAliases { most: DNS_CNAMES_MAX },
            Self::Gone(_) => NameCause::Gone { target },
            Self::Empty(_) | Self::Found(..) => NameCause::Empty { target, with_v6: wanted.with_v6 },
        };
        NotFound { failure: cause.failure(wanted.name), cname_targets: aliases.clone() }
    }
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
    use crate::outcome::Code;

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
            // A short name under a country is one registrant's, and not a registry.
            ("a.bit.ly", "bit.ly"),
            // Registries with longer names.
            ("a.b.govt.nz", "b.govt.nz"),
            ("a.b.kawasaki.jp", "a.b.kawasaki.jp"),
            // Each of these has its own holder.
            ("a.one.github.io", "one.github.io"),
            ("_sip.-a.example.com", "example.com"),
            ("a.b.c.nosuchtld", "c.nosuchtld"),
        ] {
            assert_eq!(registrable_domain(name), domain, "{name}");
        }
    }

    #[tokio::test]
    async fn a_name_that_dns_cannot_hold_is_asked_of_nobody() {
        let resolver = Resolver::default();
        for name in ["a..b", ".a.b", &"a.".repeat(127), &format!("{}.example.com", "a".repeat(64))] {
            let (tenant, name) = (TenantId::new("a"), Arc::from(name));
            let deadline = Duration::from_secs(5);
            let wanted = Wanted { tenant: &tenant, name: &name, with_v6: true, servers: &[], deadline };
            let failure = resolver.lookup(&wanted, &Inquiry::default()).await.unwrap_err().failure;
            assert_eq!(failure.code, Code::DnsNotFound, "{name}");
            assert!(failure.message.contains("DNS holds names of at most 253 characters"), "{}", failure.message);
        }
    }

    #[test]
    fn addresses_alternate_between_the_families() {
        let ip = |last: u8| IpAddr::from([192, 0, 2, last]);
        let mixed = alternate(vec![vec![ip(1), ip(2), ip(3)], vec![ip(9)]]);
        assert_eq!(mixed, [ip(1), ip(9), ip(2), ip(3)]);
    }
}
