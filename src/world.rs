//! What judging and delivering share, and what a reload swaps: the configuration with all that is made from it,
//! what is ours, who is suspended, and what was lately tried.
//!
//! A [`Settings`] is swapped as a whole, so that no delivery sees the policy of one file with the sources of
//! another. Not here: reading files, or deciding when to reload (`app`).

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use jiff::Timestamp;

use crate::clock;
use crate::config::Config;
use crate::flow::Terms;
use crate::policy::{
    Asker, CheckedUrl, Denial, Destination, Judged, Policy, Purpose, ScanMemory, SelfAddrs, Suspensions,
};
use crate::publish::Notice;
use crate::send::TenantId;
use crate::source::{Neighbours, Sources};

/// One configuration and what is made from it. Immutable but for the sources' health.
#[derive(Debug)]
pub struct Settings {
    pub config: Arc<Config>,
    pub policy: Arc<Policy>,
    pub sources: Arc<Sources>,
}

/// One for the process.
pub struct World {
    settings: ArcSwap<Settings>,
    ours: ArcSwap<SelfAddrs>,
    suspensions: ArcSwap<Suspensions>,
    neighbours: ArcSwap<Neighbours>,
    /// Which destinations each tenant lately tried; explaining counts as a try.
    scan: Mutex<ScanMemory>,
}

impl World {
    pub fn new(config: Arc<Config>, notice: &Notice, ours: SelfAddrs, suspensions: Suspensions) -> Arc<Self> {
        let settings = Settings::new(config, notice, None);
        Arc::new(Self {
            settings: ArcSwap::from_pointee(settings),
            ours: ArcSwap::from_pointee(ours),
            suspensions: ArcSwap::from_pointee(suspensions),
            neighbours: ArcSwap::default(),
            scan: Mutex::default(),
        })
    }

    /// The settings in force, all of one file. Hold it for as long as one decision takes, not longer.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    pub fn config(&self) -> Arc<Config> {
        self.settings.load().config.clone()
    }

    pub fn policy(&self) -> Arc<Policy> {
        self.settings.load().policy.clone()
    }

    pub fn sources(&self) -> Arc<Sources> {
        self.settings.load().sources.clone()
    }

    pub fn ours(&self) -> Arc<SelfAddrs> {
        self.ours.load_full()
    }

    pub fn suspensions(&self) -> Arc<Suspensions> {
        self.suspensions.load_full()
    }

    /// What decisions about waiting sends depend on, as it stands now: for one decision.
    pub fn terms(&self) -> Now {
        Now {
            at: clock::wall(),
            settings: self.settings(),
            suspensions: self.suspensions(),
            usable: RefCell::default(),
        }
    }

    /// What a send is judged by at this moment.
    pub fn in_force(&self) -> InForce {
        InForce { policy: self.policy(), ours: self.ours(), suspensions: self.suspensions() }
    }

    /// The URL stage under the settings in force; notes the try.
    pub fn judge_url(&self, asker: Asker<'_>, url: &CheckedUrl, now: Timestamp) -> Judged {
        let policy = self.policy();
        let suspensions = self.suspensions.load();
        let mut scan = self.scan.lock().unwrap_or_else(PoisonError::into_inner);
        policy.judge_url(asker, url, &suspensions, &mut scan, now)
    }

    /// The same of an endpoint that is configured.
    pub fn judge_endpoint(&self, asker: Asker<'_>, to: &Destination, purpose: Purpose) -> Option<Denial> {
        self.policy().judge_endpoint(asker, to, &self.suspensions.load(), purpose)
    }

    /// Puts a checked configuration in force; sources that stay keep their health. `Deliverer::reload` follows.
    pub fn reload(&self, config: Arc<Config>, notice: &Notice) {
        let previous = self.sources();
        self.settings.store(Arc::new(Settings::new(config, notice, Some(&previous))));
    }

    pub fn set_ours(&self, ours: SelfAddrs) {
        self.ours.store(Arc::new(ours));
    }

    /// The other nodes of the tier.
    pub fn neighbours(&self) -> Arc<Neighbours> {
        self.neighbours.load_full()
    }

    pub fn set_neighbours(&self, neighbours: Neighbours) {
        self.neighbours.store(Arc::new(neighbours));
    }

    pub fn set_suspensions(&self, suspensions: Suspensions) {
        self.suspensions.store(Arc::new(suspensions));
    }
}

/// What a send is judged by, to be compared with that of another moment.
pub struct InForce {
    policy: Arc<Policy>,
    ours: Arc<SelfAddrs>,
    suspensions: Arc<Suspensions>,
}

impl InForce {
    /// Nothing of it was replaced.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.policy, &other.policy)
            && Arc::ptr_eq(&self.ours, &other.ours)
            && Arc::ptr_eq(&self.suspensions, &other.suspensions)
    }
}

/// One moment's [`Terms`].
pub struct Now {
    at: Timestamp,
    settings: Arc<Settings>,
    suspensions: Arc<Suspensions>,
    /// One pool's answer holds for the moment.
    usable: RefCell<HashMap<Arc<str>, bool>>,
}

impl Terms for Now {
    fn now(&self) -> Timestamp {
        clock::steady(self.at)
    }

    fn cap_of(&self, tenant: &TenantId) -> Option<u32> {
        self.settings.config.tenant(tenant).map(|tenant| tenant.in_flight)
    }

    fn admits(&self, tenant: &TenantId) -> Result<(), Arc<str>> {
        let pool = self.settings.config.pool_of(tenant);
        if self.pool_usable(&pool) { Ok(()) } else { Err(pool) }
    }

    fn pool_usable(&self, pool: &str) -> bool {
        if let Some(usable) = self.usable.borrow().get(pool) {
            return *usable;
        }
        let usable = self.settings.sources.pool_usable(pool, self.at);
        self.usable.borrow_mut().insert(pool.into(), usable);
        usable
    }

    fn stopped(
        &self,
        tenant: &TenantId,
        workflow: Option<&str>,
        destination: Option<&Destination>,
    ) -> Option<Arc<str>> {
        let of_host = || destination.and_then(|destination| self.suspensions.of_host(&destination.host));
        self.suspensions.of(Asker { tenant, workflow }).or_else(of_host).map(Arc::from)
    }
}

impl Settings {
    fn new(config: Arc<Config>, notice: &Notice, previous: Option<&Sources>) -> Self {
        let policy = Arc::new(Policy::new(&config.policy));
        let sources = Arc::new(Sources::new(&config.egress, notice, previous));
        Self { config, policy, sources }
    }
}
