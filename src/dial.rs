//! Reaching out: resolve → judge → choose a source → connect → TLS. Gives a connection that knows its source.
//!
//! Only [`connect`] makes a socket towards a destination, and it cannot be called without a
//! [`crate::source::Source`] and a [`crate::policy::CheckedAddr`]. Only [`resolve`] looks a destination up.
//! Nothing here retries what was written: the only second try is another address or source while no byte of a
//! request has left. Everything waits for as long as the peer is silent: the caller's deadline ends it.

pub mod chain;
pub mod connect;
pub mod metrics;
pub mod plumbed;
pub mod pool;
pub mod ports;
pub mod resolve;
pub mod tls;
pub mod wire;

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;

use self::connect::{Candidate, Connected, Connector, Exhausted, Met, PortRange, Ports};
use self::metrics::{DialMetrics, SourceLoad};
use self::plumbed::Routes;
use self::resolve::inquiry::Inquiry;
use self::resolve::{NotFound, Resolver, Wanted};
use self::tls::{Trust, TrustError};
use crate::clock;
use crate::config::Config;
use crate::limits::DNS_ADDRESSES_MAX;
use crate::outcome::words::{ConnectCause, NameCause};
use crate::outcome::{Code, Failure};
use crate::policy::{
    Answer, Asker, CheckedAddr, CheckedUrl, Circumstances, Destination, Errand, Host, Purpose, ScanMemory, Verdict,
    forms,
};
use crate::source::{Family, Source};
use crate::world::{Settings, World};

/// Finds ways to destinations and opens them. One for the process.
pub struct Dialer {
    world: Arc<World>,
    resolver: Resolver,
    trust: Arc<ArcSwap<Trust>>,
    port_range: Arc<PortRange>,
    /// Those that it takes.
    ports: Ports,
    exhausted: Exhausted,
    routes: Routes,
    metrics: Arc<DialMetrics>,
}

/// What a destination's name came to.
#[derive(Debug)]
pub struct Look {
    /// Where the name leads under other names.
    pub aliases: Vec<String>,
    /// Every address looked at, with its verdict.
    pub resolved: Vec<(IpAddr, Verdict)>,
    /// What report mode let pass.
    pub would_block: Option<Code>,
    /// What may be dialled and from where, in the order to be tried (never empty); or why nothing may.
    pub way: Result<Vec<Candidate>, Failure>,
}

/// A [`Look`] before sources are chosen.
#[derive(Debug)]
pub struct Vetted {
    pub aliases: Vec<String>,
    pub resolved: Vec<(IpAddr, Verdict)>,
    pub would_block: Option<Code>,
    /// What passed; or why nothing may be dialled.
    pub addresses: Result<Vec<CheckedAddr>, Failure>,
}

impl Look {
    /// The source that would be left from.
    pub fn source(&self) -> Option<&Arc<Source>> {
        self.way.as_ref().ok()?.first()?.sources.first()
    }
}

impl Dialer {
    pub fn new(world: Arc<World>, trust: Trust) -> Self {
        metrics::describe();
        Self {
            world,
            resolver: Resolver::default(),
            trust: Arc::new(ArcSwap::from_pointee(trust)),
            port_range: Arc::default(),
            ports: Ports::All,
            exhausted: Exhausted::default(),
            routes: Routes::default(),
            metrics: Arc::default(),
        }
    }

    /// Another, of the same rules and sources, for what must not get in this one's way: its lookups wait for each other
    /// alone, and some of a source's ports towards a peer it leaves.
    pub fn beside(&self) -> Self {
        Self {
            world: self.world.clone(),
            resolver: Resolver::default(),
            trust: self.trust.clone(),
            port_range: self.port_range.clone(),
            ports: Ports::ButSome,
            exhausted: Exhausted::default(),
            routes: Routes::default(),
            metrics: self.metrics.clone(),
        }
    }

    /// What follows a reload for one that stands beside another: names are looked up anew.
    pub fn forget_names(&self) {
        self.resolver.clear();
    }

    /// What a configuration says of trust, before it is put in force.
    pub fn prepare(config: &Config) -> Result<Trust, TrustError> {
        Trust::load(&config.tls)
    }

    /// What follows a reload: other trust, and names looked up anew.
    pub fn reload(&self, trust: Trust) {
        self.trust.store(Arc::new(trust));
        self.resolver.clear();
        self.port_range.refresh();
    }

    pub fn trust(&self) -> Arc<Trust> {
        self.trust.load_full()
    }

    pub fn metrics(&self) -> &DialMetrics {
        &self.metrics
    }

    /// How busy a source is at this moment.
    pub fn load(&self, source: &Source) -> SourceLoad {
        self.metrics.load(source, self.port_range.size())
    }

    /// Asks the kernel for the ports in use; for the time of that the count of what is open has to do.
    pub async fn count_ports(&self) {
        self.port_range.refresh();
        let binds = self.world.sources().all().iter().map(|source| source.bind()).collect();
        let counted = tokio::task::spawn_blocking(move || ports::busiest(&binds)).await;
        match counted.unwrap_or_else(|panic| Err(panic.into())) {
            Ok(busiest) => self.metrics.counted(busiest),
            Err(error) => {
                if self.metrics.cannot_count() {
                    tracing::warn!(
                        %error,
                        "the kernel does not tell which ports are in use: those in TIME_WAIT are missing from egressd_source_ports_used_ratio"
                    );
                }
            }
        }
    }

    /// Forgets what is out of date and brings the gauges up to date.
    pub fn tend(&self) {
        self.resolver.tend();
        self.exhausted.tend();
        self.metrics.observe(&self.world.sources().all(), self.port_range.size());
    }

    /// Resolves a destination, judges the answer and finds its sources; sends nothing to it. The URL stage is the
    /// caller's. `inquiry` has what the name servers said so far, for whoever drops this.
    pub async fn look(
        &self,
        asker: Asker<'_>,
        to: &Destination,
        settings: &Settings,
        purpose: Purpose,
        inquiry: &Inquiry,
    ) -> Look {
        let Vetted { aliases, resolved, would_block, addresses } =
            self.find(asker, to, settings, purpose, inquiry).await;
        // By what is in force now: a name may have taken its time, and a reload may have come between.
        let now = self.world.settings();
        let way = addresses.and_then(|addresses| self.candidates(asker, to, &now, &addresses));
        Look { aliases, resolved, would_block, way }
    }

    /// As [`Self::look`], without the sources.
    pub async fn find(
        &self,
        asker: Asker<'_>,
        to: &Destination,
        settings: &Settings,
        purpose: Purpose,
        inquiry: &Inquiry,
    ) -> Vetted {
        let host = &to.host;
        if to.scheme.has_tls()
            && let Err(failure) = tls::nameable(host)
        {
            // Before anything is looked up or opened for it.
            return Vetted { aliases: Vec::new(), resolved: Vec::new(), would_block: None, addresses: Err(failure) };
        }
        let (aliases, addresses, failure) = match host {
            Host::Address(address) => (Vec::new(), vec![*address], None),
            Host::Name(name) => {
                // Of any pool: that this tenant's has none is then said of the source, not of the name.
                // So of any node of the tier: it may be handed over to that one.
                let with_v6 = settings.sources.all().iter().any(|source| Family::of(source.bind()) == Family::V6)
                    || self.world.neighbours().have(Family::V6);
                let wanted = Wanted {
                    tenant: asker.tenant,
                    name,
                    with_v6,
                    servers: &settings.config.dns_servers,
                    deadline: settings.config.delivery.deadline,
                };
                match self.resolver.lookup(&wanted, inquiry).await {
                    Ok(found) => (found.cname_targets.clone(), found.addresses.clone(), None),
                    Err(NotFound { failure, cname_targets }) => (cname_targets, Vec::new(), Some(failure)),
                }
            }
        };
        let Answer { resolved, addresses, denial, would_block } = self.judge(asker, to, &aliases, &addresses, purpose);
        // An alias is denied whether or not it has an address: a failure must not tell more than a refusal.
        let addresses = match (denial, failure) {
            (Some(denial), _) => Err(denial.into()),
            (None, Some(failure)) => Err(failure),
            (None, None) => Ok(addresses),
        };
        Vetted { aliases, resolved, would_block, addresses }
    }

    /// An answer, by what is in force now: a name may have taken its time, and a reload may have come between.
    fn judge(
        &self,
        asker: Asker<'_>,
        to: &Destination,
        aliases: &[String],
        addresses: &[IpAddr],
        purpose: Purpose,
    ) -> Answer {
        let (policy, ours, suspensions) = (self.world.policy(), self.world.ours(), self.world.suspensions());
        let local = self.local(addresses);
        let by = Circumstances { ours: &ours, local: &local, suspensions: &suspensions, purpose };
        policy.judge_answer(asker, to, aliases, addresses, by)
    }

    /// Whether what was connected may still be there, by what is in force now.
    pub fn judge_again(
        &self,
        asker: Asker<'_>,
        url: &CheckedUrl,
        aliases: &[String],
        addresses: &[IpAddr],
        remote: SocketAddr,
    ) -> Result<(), Failure> {
        let (policy, suspensions) = (self.world.policy(), self.world.suspensions());
        // It was tried when it was judged first, and is not once more.
        let mut scan = ScanMemory::default();
        if let Some(denial) = policy.judge_url(asker, url, &suspensions, &mut scan, clock::wall()).denial {
            return Err(denial.into());
        }
        self.leads_there(asker, url.destination(), aliases, addresses, Purpose::Delivery, remote)
    }

    /// The same of an endpoint that is configured.
    pub fn judge_endpoint_again(
        &self,
        asker: Asker<'_>,
        to: &Destination,
        aliases: &[String],
        addresses: &[IpAddr],
        purpose: Purpose,
        remote: SocketAddr,
    ) -> Result<(), Failure> {
        if let Some(denial) = self.world.judge_endpoint(asker, to, purpose) {
            return Err(denial.into());
        }
        self.leads_there(asker, to, aliases, addresses, purpose, remote)
    }

    fn leads_there(
        &self,
        asker: Asker<'_>,
        to: &Destination,
        aliases: &[String],
        addresses: &[IpAddr],
        purpose: Purpose,
        remote: SocketAddr,
    ) -> Result<(), Failure> {
        match self.judge(asker, to, aliases, addresses, purpose) {
            Answer { denial: Some(denial), .. } => Err(denial.into()),
            Answer { addresses, .. } if addresses.iter().any(|address| address.socket_addr() == remote) => Ok(()),
            // Passed over, and nothing is said against it: as if it had not been found.
            Answer { .. } => Err(NameCause::OutOfReach.failure(&to.host.text())),
        }
    }

    /// Which of these, in any form, the kernel takes for this host's own.
    fn local(&self, addresses: &[IpAddr]) -> Vec<IpAddr> {
        let forms = addresses.iter().take(DNS_ADDRESSES_MAX).flat_map(|address| forms(address.to_canonical()));
        let is_local = |address: &IpAddr| {
            // Loopback is known. Where there is no answer, each connection asks once more, and is not made without.
            !address.is_loopback() && self.routes.is_local(*address, None).unwrap_or_default()
        };
        forms.filter(is_local).collect()
    }

    fn candidates(
        &self,
        asker: Asker<'_>,
        to: &Destination,
        settings: &Settings,
        addresses: &[CheckedAddr],
    ) -> Result<Vec<Candidate>, Failure> {
        let host = to.host.text();
        let pool = settings.config.pool_of(asker.tenant);
        let now = clock::wall();
        let choose = |family| settings.sources.choose(&pool, family, asker.tenant, &host, now);
        let (mut v4, mut v6) = (None, None);
        let candidates: Vec<_> = addresses
            .iter()
            .filter_map(|address| {
                let family = Family::of(address.socket_addr().ip());
                let kept = if family == Family::V4 { &mut v4 } else { &mut v6 };
                let sources = kept.get_or_insert_with(|| choose(family)).clone();
                (!sources.is_empty()).then_some(Candidate { address: address.clone(), sources })
            })
            .collect();
        if !candidates.is_empty() {
            return Ok(candidates);
        }
        let all = settings.sources.all();
        let reachable = |address: &CheckedAddr| {
            let family = Family::of(address.socket_addr().ip());
            all.iter().any(|source| Family::of(source.bind()) == family)
        };
        Err(if addresses.iter().any(reachable) {
            ConnectCause::NoSourceOfFamily.failure(&host)
        } else {
            NameCause::OutOfReach.failure(&host)
        })
    }

    /// Connects to the first candidate that answers, from a source that may be left from at that moment. `errand`: what
    /// every one of them was judged for. `met` has what became of it so far, for whoever drops
    /// this.
    pub async fn connect(
        &self,
        errand: &Errand,
        candidates: &[Candidate],
        met: &Mutex<Met>,
    ) -> Result<Connected, Failure> {
        let destination = &errand.destination;
        if candidates.iter().any(|candidate| candidate.address.errand() != errand) {
            let cause = ConnectCause::JudgedForAnother { port: destination.port };
            return Err(cause.failure(&destination.host.text()));
        }
        let in_force = |source: &Source| self.world.sources().may_leave(source, errand.purpose, clock::wall());
        let bound = |source: &Source, on_host: bool| {
            if on_host {
                self.world.sources().on_host(source);
            } else {
                self.world.sources().not_on_host(source, clock::wall());
                tracing::warn!(source = %source.bind(), "source is not on this host: not used for a while");
            }
        };
        let connector = Connector {
            port_range: &self.port_range,
            ports: self.ports,
            exhausted: &self.exhausted,
            routes: &self.routes,
            metrics: &self.metrics,
            in_force: &in_force,
            bound: &bound,
            met,
        };
        connector.connect(candidates).await.map_err(|error| {
            tracing::debug!(%error, "no connection");
            let met = met.lock().unwrap_or_else(PoisonError::into_inner);
            let from = met.from.as_ref().map(|source| source.public());
            error.failure(&destination.host.text(), destination.port, from, met.tried)
        })
    }
}
