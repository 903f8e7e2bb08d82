//! Composition: builds every part, owns the lifetimes of tasks and listeners, reloads and drains.
//!
//! Order at the start: listeners are bound (so that a taken port is told before anything is touched), the store is
//! opened and brought to order, what waits is put back, and only then are calls answered.

mod news;
pub mod ours;
mod plumbing;
mod reload;
pub mod stores;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::api::{self, ApiState};
use crate::backlog::{Backlog, caps};
use crate::clock;
use crate::config::{Config, ListenerTls};
use crate::deliver::{Deliverer, apart::Apart};
use crate::dial::Dialer;
use crate::dispatch::Dispatcher;
use crate::doors::tls::{Acceptor, Listener};
use crate::doors::{self, Way};
use crate::explain::Explainer;
use crate::intake::Intake;
use crate::ledger::Ledger;
use crate::limits::VERIFY_FIRST_ROUND;
use crate::ops::{self, Readiness};
use crate::policy::Suspensions;
use crate::proxy::Proxy;
use crate::publication::Publication;
use crate::publish;
use crate::redact::Redactor;
use crate::source::{self, Neighbours};
use crate::store::{Recovered, Session, Store, StoreError, Why};
use crate::telemetry::otlp::Collector;
use crate::trace::Tracer;
use crate::verify::Verifier;
use crate::world::World;

/// How often our own interfaces and dates are looked at anew.
const REFRESH: Duration = Duration::from_secs(5);
/// How often executions at `hold_limit` and idle connections are looked for.
const TEND: Duration = Duration::from_millis(250);
/// How often the kernel is asked for the ports in use.
const COUNT_PORTS: Duration = Duration::from_secs(5);
/// How often retention is applied.
const RETAIN: Duration = Duration::from_secs(60);
/// How often it is tried to end what the last process left behind, while the store cannot write.
const RECOVER_AGAIN: Duration = Duration::from_millis(500);
/// How often the other nodes are told of this one's load.
const TELL_LOAD: Duration = Duration::from_secs(1);
/// Histograms keep raw samples until then.
const METRICS_UPKEEP: Duration = Duration::from_secs(1);

/// What the store is that an appliance starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// Its own, as its last process left it.
    Own,
    /// A copy of an earlier moment: what waits in it may have been made since, and is not sent.
    Restored,
}

/// Why an appliance did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(
        "{key} = \"{address}\" cannot be bound: {cause}; is another egressd running, or is the address not on this host?"
    )]
    Bind {
        key: &'static str,
        address: SocketAddr,
        #[source]
        cause: std::io::Error,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("this process cannot start its threads: {0}")]
    Threads(#[source] std::io::Error),
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

impl StartError {
    /// Whether it may be gone by itself at another try: a port or a store that is still another's, an address that
    /// comes later, a disk. The rest waits for a person.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Bind { cause, .. } => cause.kind() != std::io::ErrorKind::PermissionDenied,
            Self::Store(StoreError::InUse { .. } | StoreError::NodeInUse(_)) => true,
            // One that was taken for dead while it started joins anew.
            Self::Store(StoreError::Fenced(_) | StoreError::Unanswered(_)) => true,
            Self::Store(StoreError::CannotWrite(why)) => !is_denied(why),
            // What the system would not read; where it read what is wrong (another's key), that stays so.
            Self::Store(StoreError::CannotRead(why)) => why.source().is_some() && !is_denied(why),
            Self::Threads(_) => true,
            Self::Store(_) | Self::Other(_) => false,
        }
    }
}

fn is_denied(why: &Why) -> bool {
    let error = why.source().and_then(|source| source.downcast_ref::<std::io::Error>());
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
}

/// A running appliance.
pub struct App {
    pub api: SocketAddr,
    pub metrics: SocketAddr,
    pub publish: Option<SocketAddr>,
    pub proxy: Option<SocketAddr>,
    world: Arc<World>,
    ledger: Arc<Ledger>,
    intake: Arc<Intake>,
    dispatcher: Arc<Dispatcher>,
    deliverer: Arc<Deliverer>,
    publication: Arc<Publication>,
    listeners: Vec<SocketAddr>,
    config_file: Option<PathBuf>,
    api_tls: Option<Arc<Acceptor>>,
    publish_tls: Option<Arc<Acceptor>>,
    proxy_tls: Option<Arc<Acceptor>>,
    tunnels: Option<Tunnels>,
    stop_dispatch: watch::Sender<bool>,
    /// Ends the listeners and the background tasks.
    stop: watch::Sender<bool>,
    tasks: TaskTracker,
    /// Until it is dropped.
    _fronts: Fronts,
}

/// The forward proxy, where there is one, and its threads.
struct Tunnels {
    proxy: Arc<Proxy>,
    /// Until it is dropped.
    _threads: Fronts,
}

/// Threads of their own for the listeners: whatever they ask for, however much of it at once, the
/// timers of deliveries turn elsewhere.
struct Fronts {
    handle: Handle,
    /// `None` once it is shut down.
    runtime: Option<Runtime>,
}

impl Fronts {
    /// As many as there are processors.
    fn start() -> std::io::Result<Self> {
        Self::of(tokio::runtime::Builder::new_multi_thread().thread_name("fronts"))
    }

    /// For tunnels, which may be busy all the time: half as many, so that they never have more than half of what
    /// this host computes.
    fn for_tunnels() -> std::io::Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, |all| (all.get() / 2).max(1));
        Self::of(tokio::runtime::Builder::new_multi_thread().thread_name("tunnels").worker_threads(threads))
    }

    fn of(builder: &mut tokio::runtime::Builder) -> std::io::Result<Self> {
        let runtime = builder.enable_all().build()?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Bound over there: who comes is told to the runtime that a listener was made in, so that `/readyz` answers
    /// while no thread of the deliveries' turns.
    async fn bind(&self, address: SocketAddr, key: &'static str) -> Result<TcpListener, StartError> {
        let bound = self.handle.spawn(async move { doors::open(address) }).await.map_err(anyhow::Error::from)?;
        bound.map_err(|cause| StartError::Bind { key, address, cause })
    }
}

impl Drop for Fronts {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl App {
    /// Starts everything; the appliance answers calls when this returns.
    pub async fn start(
        config: Config,
        config_file: Option<PathBuf>,
        past: Past,
        metrics: PrometheusHandle,
    ) -> Result<Self, StartError> {
        describe_metrics();
        source::metrics::describe();
        let config = Arc::new(config);
        let fronts = Fronts::start().map_err(StartError::Threads)?;
        let publish_listener = match &config.publish {
            Some(publish) => Some(fronts.bind(publish.listen, "[publish] listen").await?),
            None => None,
        };
        let (proxy_threads, proxy_listener) = match &config.proxy {
            Some(proxy) => {
                let threads = Fronts::for_tunnels().map_err(StartError::Threads)?;
                let listener = threads.bind(proxy.listen, "[proxy] listen").await?;
                (Some(threads), Some(listener))
            }
            None => (None, None),
        };
        let api_listener = fronts.bind(config.api.listen, "[api] listen").await?;
        // The last one: where health is told, all of them are open.
        let metrics_listener = fronts.bind(config.metrics_listen, "[metrics] listen").await?;
        let local = |listener: &TcpListener| listener.local_addr().map_err(anyhow::Error::from);
        let (api, metrics_address) = (local(&api_listener)?, local(&metrics_listener)?);
        let publish = publish_listener.as_ref().map(local).transpose()?;
        let proxy = proxy_listener.as_ref().map(local).transpose()?;
        let listeners: Vec<SocketAddr> = [api, metrics_address].into_iter().chain(publish).chain(proxy).collect();

        let store = stores::open(&config, past).await?;
        let session = store.join(config.node.as_str().into()).await?;
        let recovered = match store.recover(&session, clock::wall()).await {
            Ok(recovered) => {
                log_recovered(&recovered);
                Some(recovered)
            }
            // A full disk is no reason to hide what it has: `/readyz` says why, and the ends follow.
            Err(StoreError::CannotWrite(why)) => {
                tracing::error!(%why, "what the last process left behind gets its end once the store can write");
                None
            }
            Err(error) => return Err(error.into()),
        };

        let left_open = store.end_tunnels_left_open(&config.node, clock::wall()).await;
        match left_open {
            Ok(0) => {}
            Ok(tunnels) => tracing::warn!(tunnels, "tunnels that the last process left open have ended with it"),
            Err(error) => tracing::error!(%error, "tunnels that the last process left open read as open still"),
        }
        let publication = Publication::open(store.clone(), &config, clock::wall()).await?;
        let ours = ours::look(&config, &listeners);
        let world = World::new(config.clone(), &publication.notice(), ours, Suspensions::default());
        let backlog = Backlog::new(caps(&config));
        let trust = Dialer::prepare(&config).map_err(anyhow::Error::from)?;
        let collector = config.telemetry.otlp.as_ref().map(|otlp| Collector::new(otlp, &config)).transpose()?;
        let (tracer, told) = match collector {
            None => (Tracer::off(), None),
            Some(collector) => {
                let (tracer, told) = Tracer::on(config.telemetry.one_in);
                (tracer.clone(), Some((collector, (tracer, told))))
            }
        };
        let redactor = Redactor::new(store.redact_key(), &config.redact);
        let ledger = Ledger::new(store.clone(), session.clone(), redactor, tracer.clone());
        let deliverer = Deliverer::traced(world.clone(), trust, tracer);
        let dispatcher = Dispatcher::new(world.clone(), backlog.clone(), ledger.clone(), deliverer.clone());
        let intake = Intake::new(world.clone(), ledger.clone(), backlog, dispatcher.clone(), Apart::new("call-work"));

        hold_sources(&store, &session, &world).await?;

        let (stop_dispatch, dispatch_stopped) = watch::channel(false);
        let (stop, stopped) = watch::channel(false);
        let tasks = TaskTracker::new();
        match recovered {
            Some(recovered) => ledger.recovered(&recovered.some),
            None => drop(tasks.spawn(recover_later(ledger.clone(), stopped.clone()))),
        }
        let (asked, first_round) = tokio::sync::oneshot::channel();
        tasks.spawn(Verifier::new(world.clone(), deliverer.clone()).run(asked, stopped.clone()));
        if let Some(told) = store.news() {
            tasks.spawn(news::follow(told, intake.clone(), dispatcher.clone(), ledger.clone(), stopped.clone()));
            tasks.spawn(news::look_for_ends(ledger.clone(), stopped.clone()));
        }
        dispatcher.batcher().restore().await?;
        let restored = intake.restore().await?;
        if restored > 0 {
            tracing::info!(restored, "sends that wait were taken up again");
        }
        // Not before the suspensions are loaded.
        tasks.spawn(dispatch_once_verified(dispatcher.clone(), first_round, dispatch_stopped));

        let readiness = Arc::new(Readiness {
            world: world.clone(),
            store: store.clone(),
            intake: intake.clone(),
            dispatcher: dispatcher.clone(),
        });
        let state = ApiState {
            world: world.clone(),
            store: store.clone(),
            intake: intake.clone(),
            events: ledger.events.clone(),
            explainer: Explainer::new(world.clone(), deliverer.clone(), store.redact_key()),
            deliverer: deliverer.clone(),
            closing: stopped.clone(),
        };
        let router = api::router(state, publish::front::router(publication.clone()));
        let acceptor = |listener, files: Option<&ListenerTls>| {
            let loaded = files.map(|files| Acceptor::load(listener, files)).transpose().map_err(anyhow::Error::from)?;
            Ok::<_, StartError>(loaded.map(Arc::new))
        };
        let api_tls = acceptor(Listener::Api, config.api.tls.as_ref())?;
        let of_publish = config.publish.as_ref();
        let publish_tls = acceptor(Listener::Publish, of_publish.and_then(|publish| publish.tls.as_ref()))?;
        let of_proxy = config.proxy.as_ref().and_then(|proxy| proxy.tls.as_ref());
        let proxy_tls = acceptor(Listener::Proxy, of_proxy)?;
        tasks.spawn_on(api::serve::serve(api_listener, router, api_tls.clone(), stopped.clone()), fronts.handle());
        let ops_router = ops::router(metrics.clone(), readiness, Handle::current());
        tasks.spawn_on(ops::serve(metrics_listener, ops_router, stopped.clone()), fronts.handle());
        if let Some((collector, told)) = told {
            tasks.spawn_on(collector.run(told, store.clone(), stopped.clone()), fronts.handle());
        }
        if let Some(listener) = publish_listener {
            let proxies = of_publish.map(|publish| publish.proxies.clone()).unwrap_or_default();
            let way = Way { tls: publish_tls.clone(), proxies };
            let serving = publish::front::serve(listener, publication.clone(), way, stopped.clone());
            tasks.spawn_on(serving, fronts.handle());
        }
        let tunnels = proxy_threads.zip(proxy_listener).map(|(threads, listener)| {
            let proxy = Proxy::new(world.clone(), &deliverer, store.clone());
            let serving = proxy.clone().serve(listener, proxy_tls.clone(), stopped.clone());
            tasks.spawn_on(serving, threads.handle());
            Tunnels { proxy, _threads: threads }
        });

        let app = Self {
            api,
            metrics: metrics_address,
            publish,
            proxy,
            world,
            ledger,
            intake,
            dispatcher,
            deliverer,
            publication,
            listeners,
            config_file,
            api_tls,
            publish_tls,
            proxy_tls,
            tunnels,
            stop_dispatch,
            stop,
            tasks,
            _fronts: fronts,
        };
        app.tend_in_background(metrics, stopped);
        gauge!("egressd_config_last_reload_successful").set(1.0);
        app.tell_sources();
        Ok(app)
    }

    /// Stops accepting, lets what is in flight finish and tunnels end (at most `[delivery] drain`), and closes the store.
    /// What is still queued stays on disk. `false`: something was still in flight; it will read `interrupted`.
    pub async fn drain(self) -> bool {
        let tunnels = self.tunnels.as_ref().map(|tunnels| &tunnels.proxy);
        tracing::info!(
            in_flight = self.dispatcher.in_flight(),
            tunnels = tunnels.map(|proxy| proxy.open()),
            "draining"
        );
        self.intake.drain();
        self.stop_dispatch.send_replace(true);
        let patience = self.world.config().delivery.drain;
        let over = clock::monotonic() + patience;
        if let Some(proxy) = tunnels {
            proxy.drain();
        }
        let clean = tokio::select! {
            () = self.dispatcher.drained() => true,
            () = tokio::time::sleep(patience) => false,
        };
        if let Some(proxy) = tunnels {
            proxy.end_by(over).await;
        }
        self.stop.send_replace(true);
        self.tasks.close();
        // Callers that wait or follow are let go; a slow one does not hold the exit up.
        tokio::select! {
            () = self.tasks.wait() => {}
            () = tokio::time::sleep(Duration::from_secs(2)) => {}
        }
        // Whoever was inside when the door closed may have begun something since.
        let clean = clean
            && tokio::select! {
                () = self.dispatcher.drained() => true,
                () = tokio::time::sleep(patience) => false,
            };
        if let Err(error) = self.ledger.store.close().await {
            tracing::error!(%error, "the store was not closed cleanly; nothing acknowledged is lost");
        }
        if clean {
            tracing::info!("drained");
        } else {
            tracing::error!(in_flight = self.dispatcher.in_flight(), "deliveries did not end within the drain time");
        }
        clean
    }

    /// Ready once this process's session is over: it can do nothing more than end what is in flight.
    pub async fn session_over(&self) {
        while !self.dispatcher.fenced() {
            tokio::time::sleep(TEND).await;
        }
    }

    /// A sign of life for the service manager: the dispatcher's loop turns.
    pub fn dispatcher_turns(&self) -> bool {
        self.dispatcher.stalled().is_none()
    }

    /// In the log: each source with its state, and each pool that has none to use.
    fn tell_sources(&self) {
        plumbing::look(&self.world, &self.deliverer, &self.listeners);
        let (sources, now) = (self.world.sources(), clock::wall());
        for line in sources.told(now) {
            tracing::info!("{line}");
        }
        for pool in sources.pools_without(now) {
            tracing::warn!(%pool, "no source of this pool is usable now: its sends wait until one is, or expire");
        }
    }

    fn tend_in_background(&self, metrics: PrometheusHandle, stopped: watch::Receiver<bool>) {
        self.every(METRICS_UPKEEP, stopped.clone(), move || {
            let metrics = metrics.clone();
            async move { metrics.run_upkeep() }
        });
        let (intake, deliverer) = (self.intake.clone(), self.deliverer.clone());
        self.every(TEND, stopped.clone(), move || {
            let (intake, deliverer) = (intake.clone(), deliverer.clone());
            async move {
                deliverer.tend();
                intake.release_overdue().await;
            }
        });
        if let Some(Tunnels { proxy, .. }) = &self.tunnels {
            let proxy = proxy.clone();
            self.every(TEND, stopped.clone(), move || {
                proxy.tend();
                std::future::ready(())
            });
        }
        let deliverer = self.deliverer.clone();
        self.every(COUNT_PORTS, stopped.clone(), move || {
            let deliverer = deliverer.clone();
            async move { deliverer.dialer().count_ports().await }
        });
        self.tasks.spawn(watch_addresses(
            self.world.clone(),
            self.deliverer.clone(),
            self.listeners.clone(),
            stopped.clone(),
        ));
        let (intake, store) = (self.intake.clone(), self.ledger.store.clone());
        self.every(TELL_LOAD, stopped.clone(), move || {
            store.tell_load(intake.load());
            std::future::ready(())
        });
        let (ledger, world) = (self.ledger.clone(), self.world.clone());
        self.every(REFRESH, stopped.clone(), move || {
            let (ledger, world) = (ledger.clone(), world.clone());
            async move {
                if let Err(error) = hold_sources(&ledger.store, &ledger.session, &world).await {
                    tracing::debug!(%error, "who sends from which source was not asked; it is asked again");
                }
            }
        });
        self.tasks.spawn(follow_dates(self.world.clone(), self.publication.clone(), stopped.clone()));
        let store = self.ledger.store.clone();
        self.every(RETAIN, stopped, move || {
            let store = store.clone();
            async move {
                if let Err(error) = store.retain(clock::wall()).await {
                    tracing::warn!(%error, "retention was not applied; it is tried again");
                }
            }
        });
    }

    fn every<F>(
        &self,
        period: Duration,
        mut stopped: watch::Receiver<bool>,
        mut work: impl FnMut() -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send,
    {
        self.tasks.spawn(async move {
            let mut ticks = tokio::time::interval(period);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    _ = stopped.wait_for(|stopped| *stopped) => return,
                }
                work().await;
            }
        });
    }
}

/// Takes the sources of the configuration for this node, and learns of those that another sends from.
async fn hold_sources(store: &Arc<dyn Store>, session: &Session, world: &World) -> Result<(), StoreError> {
    let sources = world.sources();
    let addresses = sources.all().iter().map(|source| source.public()).collect();
    sources.held_elsewhere(&store.hold_sources(session, addresses).await?);
    let told = sources.told_to_others(clock::wall());
    world.set_neighbours(Neighbours(store.tell_sources(session, told).await?));
    Ok(())
}

/// Tries until the store takes the ends of what the last process left behind.
async fn recover_later(ledger: Arc<Ledger>, mut stopped: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(RECOVER_AGAIN) => {}
            _ = stopped.wait_for(|stopped| *stopped) => return,
        }
        match ledger.store.recover(&ledger.session, clock::wall()).await {
            Ok(recovered) => {
                ledger.recovered(&recovered.some);
                return log_recovered(&recovered);
            }
            Err(StoreError::CannotWrite(_)) => {}
            Err(error) => {
                tracing::error!(%error, "what the last process left behind did not get its end; it is tried again")
            }
        }
    }
}

fn log_recovered(recovered: &Recovered) {
    if recovered.interrupted + recovered.discarded > 0 {
        tracing::warn!(
            interrupted = recovered.interrupted,
            discarded = recovered.discarded,
            "sends that the last process left behind have ended"
        );
    }
}

/// The first delivery waits for the reflectors' first word on every source, so that none leaves from a pair that they
/// would have told to be false; but not for long: what cannot be verified is used.
async fn dispatch_once_verified(
    dispatcher: Arc<Dispatcher>,
    first_round: tokio::sync::oneshot::Receiver<()>,
    mut stopped: watch::Receiver<bool>,
) {
    tokio::select! {
        // An end without a word is one, too.
        _ = first_round => {}
        () = tokio::time::sleep(VERIFY_FIRST_ROUND) => {
            tracing::warn!("the reflectors have not answered about every source; deliveries begin all the same");
        }
        _ = stopped.wait_for(|stopped| *stopped) => return,
    }
    dispatcher.run(stopped).await;
}

/// Serves and shows what the dates of the list have come to: when the next one comes, and every [`REFRESH`] all the
/// same, for a list that was reloaded and a clock that was set. What may carry traffic does not wait for this.
async fn follow_dates(world: Arc<World>, publication: Arc<Publication>, mut stopped: watch::Receiver<bool>) {
    loop {
        let (config, now) = (world.config(), clock::wall());
        if let Err(error) = publication.refresh(&config, now).await {
            tracing::warn!(%error, "the published list was not refreshed");
        }
        world.sources().measure(now);
        let next = config.egress.published.next_change(&publication.notice(), now);
        let wait = next.map_or(REFRESH, |at| at.duration_since(now).unsigned_abs().min(REFRESH));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = stopped.wait_for(|stopped| *stopped) => return,
        }
    }
}

/// Looks at the host's addresses when the kernel says that one has changed, and every [`REFRESH`] all the same.
async fn watch_addresses(
    world: Arc<World>,
    deliverer: Arc<Deliverer>,
    listeners: Vec<SocketAddr>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut events = plumbing::AddressEvents::open();
    if let Err(error) = &events {
        tracing::warn!(%error, "the kernel does not tell when an address changes; they are looked at now and then");
    }
    loop {
        plumbing::look(&world, &deliverer, &listeners);
        let changed = async {
            match &mut events {
                Ok(events) => events.changed().await,
                Err(_) => std::future::pending().await,
            }
        };
        let result = tokio::select! {
            result = changed => result,
            () = tokio::time::sleep(REFRESH) => Ok(()),
            _ = stopped.wait_for(|stopped| *stopped) => return,
        };
        if let Err(error) = result {
            tracing::warn!(%error, "the kernel no longer tells when an address changes");
            events = Err(error);
        }
    }
}

fn describe_metrics() {
    describe_counter!("egressd_config_reloads_total", Unit::Count, "Reloads of the configuration, by result.");
    describe_gauge!(
        "egressd_config_last_reload_successful",
        Unit::Count,
        "1 while what is in force is what the files said when they were last read; 0 after a reload that was refused."
    );
    for result in ["ok", "refused"] {
        counter!("egressd_config_reloads_total", "result" => result).increment(0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use futures_util::FutureExt;

    use super::*;
    use crate::intake::{Submit, Submitted};
    use crate::outcome::Code;
    use crate::policy::CheckedUrl;
    use crate::record::{Record, State};
    use crate::send::{Context, HttpRequest, Method, SendSpec, Target, TenantId, To};
    use crate::store::embedded::Embedded;
    use crate::store::{Reach, Records};

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn what_waits_for_a_person_is_told_from_what_may_pass() {
        use std::io::{Error, ErrorKind};
        let by = |kind: ErrorKind| Why::by("words".to_owned(), Error::from(kind));
        let busy = StoreError::InUse { path: "store".to_owned(), pid: None };
        for (error, may_pass) in [
            (busy, true),
            (StoreError::NodeInUse("one".to_owned()), true),
            (StoreError::Fenced("one#4".to_owned()), true),
            (StoreError::Unanswered("no answer within 5 s".into()), true),
            (StoreError::Unfit("no key file".to_owned()), false),
            (StoreError::CannotWrite(by(ErrorKind::StorageFull)), true),
            (StoreError::CannotWrite(by(ErrorKind::PermissionDenied)), false),
            (StoreError::CannotRead(by(ErrorKind::TimedOut)), true),
            (StoreError::CannotRead(by(ErrorKind::PermissionDenied)), false),
            (StoreError::CannotRead("the key file has 5 bytes".into()), false),
            (StoreError::Damaged("the state fails its checksum".into()), false),
            (StoreError::TooNew { path: "store".to_owned(), found: 9, known: 8 }, false),
        ] {
            let told = format!("{error}");
            assert_eq!(StartError::from(error).may_pass(), may_pass, "{told}");
        }
    }

    /// With more TOML.
    async fn started(more: &str) -> (App, tempfile::TempDir) {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("public-ips.txt"), "127.0.0.2\n").expect("written");
        let file = directory.path().join("egressd.toml");
        let text = format!(
            "[api]\nlisten = \"127.0.0.1:0\"\n[metrics]\nlisten = \"127.0.0.1:0\"\n[[egress.source]]\npublic = \"127.0.0.2\"\n\
             [store]\npath = \"{0}/store\"\nkey_file = \"{0}/key\"\n{more}",
            directory.path().display()
        );
        std::fs::write(&file, text).expect("written");
        let config = Config::load(&file, clock::wall()).expect("a good configuration");
        let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
        (App::start(config, Some(file), Past::Own, metrics).await.expect("it starts"), directory)
    }

    async fn submit(intake: Arc<Intake>, url: String, tenant: &'static str) -> Record {
        let spec = SendSpec {
            to: To::Http(HttpRequest {
                method: Method::Get,
                target: Target::Url(CheckedUrl::parse(&url).expect("a URL")),
                headers: Vec::new(),
                spelling: Default::default(),
                dropped_headers: Vec::new(),
                body: None,
            }),
            context: Context::default(),
            expires_in: None,
        };
        let tenant = TenantId::new(tenant);
        let call = Submit { tenant, sends: vec![spec], hold: None, idempotency: None, resend_of: None };
        match intake.submit(call).await.expect("accepted") {
            Submitted::Accepted(mut records) => records.remove(0),
            Submitted::Replayed(ids) => panic!("{ids:?}"),
        }
    }

    /// One thread has this runtime, and it waits in the kernel from its first question on: nothing turns that delivers.
    #[tokio::test]
    #[allow(clippy::disallowed_methods, reason = "towards our own listener, and it is to hold the thread up")]
    async fn who_asks_is_answered_while_nothing_turns_that_delivers() {
        let (app, _directory) = started("").await;
        let ask = || {
            let mut stream = std::net::TcpStream::connect(app.metrics).expect("connected");
            stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
            stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").expect("written");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("an answer");
            answer
        };
        let answer =
            (0..1_000_000).map(|_| ask()).find(|answer| answer.starts_with("HTTP/1.1 503")).expect("told in the end");
        assert!(answer.contains("the dispatcher has stalled"), "{answer}");
        assert!(app.drain().await);
    }

    #[tokio::test]
    #[allow(clippy::disallowed_methods, reason = "a test's patience")]
    async fn a_drain_waits_for_what_was_inside_when_the_door_closed() {
        // It takes requests, and never answers.
        let receiver = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let url = format!("http://{}/", receiver.local_addr().expect("bound"));
        let more = "[delivery]\ndeadline = \"500ms\"\n[[policy.exception]]\nnetworks = [\"127.0.0.0/8\"]\nreason = \"a test\"\n";
        let (app, _directory) = started(more).await;
        // The loop runs: who comes when nothing waits starts at once.
        let first = submit(app.intake.clone(), url.clone(), "before").await;
        let ticket = app.ledger.events.wait_for(first.id);
        let ended = ticket.finished();
        tokio::pin!(ended);
        ended.as_mut().enable();
        if app
            .ledger
            .store
            .record(Reach::All, first.id, false)
            .await
            .expect("readable")
            .is_some_and(|record| record.state != State::Done)
        {
            tokio::time::timeout(PATIENCE, ended).await.expect("the loop never runs");
        }
        // One whose call is on its way to the disk; the disk may be quicker than this thread, which others hold up too.
        let on_its_way = || {
            let mut call = Box::pin(submit(app.intake.clone(), url.clone(), "inside"));
            (&mut call).now_or_never().is_none().then_some(call)
        };
        let inside = (0..1_000).find_map(|_| on_its_way()).expect("the disk is always quicker than its caller");
        let settings = app.world.config().store.clone();
        let mut stopped = app.stop.subscribe();
        // As a call does that has come through the API.
        let resumed = app.tasks.spawn(async move {
            let _ = stopped.wait_for(|stopped| *stopped).await;
            inside.await
        });
        let (clean, record) = tokio::join!(app.drain(), resumed);
        let record = record.expect("no panic");
        assert!(clean);
        assert_eq!(record.state, State::Sending, "it began after all others had ended");
        let store = Embedded::open(&settings, "test").expect("closed before");
        let record = store.record(Reach::All, record.id, false).await.expect("readable").expect("accepted");
        let code = record.ended.clone().and_then(|ended| ended.error).map(|error| error.code);
        assert_eq!(code, Some(Code::Timeout), "its end is written: {record:?}");
    }
}
