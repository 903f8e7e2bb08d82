//! What the dialer counts: connections and deliveries per source, and how near a source is to having no port left.
//!
//! Labels are the configured sources' public addresses, never a destination's.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

use tokio::time::Instant;

use super::ports::Busiest;
use crate::clock;
use crate::source::Source;

/// `TCP_TIMEWAIT_LEN` of net/tcp.h.
const TIME_WAIT: Duration = Duration::from_secs(60);

/// Says what each metric of this module means; once, after the recorder is installed.
pub fn describe() {
    describe_counter!(
        "egressd_connections_total",
        "Connections that a request was given to, by source address and whether they had carried one before"
    );
    describe_counter!(
        "egressd_source_ports_exhausted_total",
        "Connects that found no free port of this source towards their peer; the next source was tried"
    );
    describe_gauge!(
        "egressd_in_flight",
        "Deliveries under way, by the source address they leave from (none before one is chosen)"
    );
    describe_gauge!(
        "egressd_source_ports_used_ratio",
        "Ports of this source in use towards its busiest peer, those in TIME_WAIT included, as a share of the system's port range"
    );
}

/// One source's handles, looked up once.
pub struct SourceCounters {
    pub fresh: Counter,
    pub reused: Counter,
    pub ports_exhausted: Counter,
    in_flight: Gauge,
    ports_used: Gauge,
    /// What `in_flight` shows, to be read.
    under_way: AtomicU64,
}

/// How busy a source is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SourceLoad {
    /// Deliveries under way from it.
    pub in_flight: u64,
    /// Ports in use towards its busiest peer, as a share of the system's port range.
    pub ports_used: f64,
}

/// Counts per source, and the ports in use per source and peer.
pub struct DialMetrics {
    /// Deliveries for which no source is chosen yet.
    nowhere: Gauge,
    sources: Mutex<HashMap<IpAddr, Arc<SourceCounters>>>,
    ports: Arc<Ports>,
    /// What the kernel last said of ports in use towards a source's busiest peer, by bound address; `None`: it would
    /// not say.
    counted: Mutex<Option<HashMap<IpAddr, Busiest>>>,
}

type PortKey = (IpAddr, SocketAddr);

#[derive(Debug, Default)]
struct Ports(Mutex<Taken>);

/// By (public source, peer).
#[derive(Debug, Default)]
struct Taken {
    /// Connections that are open.
    open: HashMap<PortKey, u32>,
    /// When those were closed whose ports may be in TIME_WAIT still, oldest first, where that is reckoned with.
    closed: HashMap<PortKey, VecDeque<Instant>>,
}

/// One open connection's place in the count.
#[derive(Debug)]
pub struct PortGuard {
    ports: Arc<Ports>,
    key: PortKey,
    /// It counts for as long as its port may be in TIME_WAIT, too.
    is_reckoned: bool,
}

impl Drop for PortGuard {
    fn drop(&mut self) {
        let mut taken = self.ports.lock();
        if self.is_reckoned {
            taken.closed.entry(self.key).or_default().push_back(clock::monotonic());
        }
        if let Some(count) = taken.open.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                taken.open.remove(&self.key);
            }
        }
    }
}

impl Ports {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets those that are out of TIME_WAIT.
fn out_of_time_wait(closed: &mut VecDeque<Instant>, now: Instant) {
    while closed.front().is_some_and(|at| now.duration_since(*at) >= TIME_WAIT) {
        closed.pop_front();
    }
}

/// One delivery under way, counted until it is dropped: at first towards no source.
pub struct InFlight {
    gauge: Gauge,
    source: Option<Arc<SourceCounters>>,
}

impl InFlight {
    /// Counted towards this source from now on.
    pub fn leaves_from(&mut self, counters: &Arc<SourceCounters>) {
        if self.source.as_ref().is_some_and(|source| Arc::ptr_eq(source, counters)) {
            return;
        }
        self.leave();
        self.gauge = counters.in_flight.clone();
        self.gauge.increment(1.0);
        counters.under_way.fetch_add(1, Ordering::Relaxed);
        self.source = Some(counters.clone());
    }

    fn leave(&self) {
        self.gauge.decrement(1.0);
        if let Some(source) = &self.source {
            source.under_way.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Default for DialMetrics {
    fn default() -> Self {
        Self {
            nowhere: gauge!("egressd_in_flight", "source_ip" => "none"),
            sources: Mutex::default(),
            ports: Arc::default(),
            counted: Mutex::new(Some(HashMap::new())),
        }
    }
}

impl DialMetrics {
    pub fn in_flight(&self) -> InFlight {
        self.nowhere.increment(1.0);
        InFlight { gauge: self.nowhere.clone(), source: None }
    }

    pub fn of(&self, source: &Source) -> Arc<SourceCounters> {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counters) = sources.get(&source.public()) {
            return counters.clone();
        }
        let ip = source.public().to_string();
        let counters = Arc::new(SourceCounters {
            fresh: counter!("egressd_connections_total", "source_ip" => ip.clone(), "reused" => "false"),
            reused: counter!("egressd_connections_total", "source_ip" => ip.clone(), "reused" => "true"),
            ports_exhausted: counter!("egressd_source_ports_exhausted_total", "source_ip" => ip.clone()),
            in_flight: gauge!("egressd_in_flight", "source_ip" => ip.clone()),
            ports_used: gauge!("egressd_source_ports_used_ratio", "source_ip" => ip),
            under_way: AtomicU64::new(0),
        });
        sources.insert(source.public(), counters.clone());
        counters
    }

    /// Counts a connection that is about to be made; dropped with it. `is_reckoned`: [`Self::ports_in_use`] is asked.
    pub fn open(&self, source: &Source, peer: SocketAddr, is_reckoned: bool) -> PortGuard {
        let key = (source.public(), peer);
        *self.ports.lock().open.entry(key).or_default() += 1;
        PortGuard { ports: self.ports.clone(), key, is_reckoned }
    }

    /// What the kernel says of ports in use ([`super::ports::busiest`]).
    pub fn counted(&self, busiest: HashMap<IpAddr, Busiest>) {
        *self.counted.lock().unwrap_or_else(PoisonError::into_inner) = Some(busiest);
    }

    /// The kernel would not say; `true` the first time.
    pub fn cannot_count(&self) -> bool {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }

    /// Brings the gauges up to date. `range`: how many ports the system gives out.
    pub fn observe(&self, sources: &[Arc<Source>], range: u32) {
        let now = clock::monotonic();
        self.ports.lock().closed.retain(|_, closed| {
            out_of_time_wait(closed, now);
            !closed.is_empty()
        });
        let open = self.busiest();
        for source in sources {
            self.of(source).ports_used.set(self.share(&open, source, range));
        }
    }

    /// How busy a source is at this moment.
    pub fn load(&self, source: &Source, range: u32) -> SourceLoad {
        SourceLoad {
            in_flight: self.of(source).under_way.load(Ordering::Relaxed),
            ports_used: self.share(&self.busiest(), source, range),
        }
    }

    /// Ports of a source towards one peer, where the kernel cannot be told which to leave: those in TIME_WAIT too, as it
    /// counts them towards the source's busiest peer every few seconds, and as if each one that was closed were in it.
    pub fn ports_in_use(&self, source: &Source, peer: SocketAddr, now: Instant) -> u32 {
        let key = (source.public(), peer);
        let open = {
            let mut taken = self.ports.lock();
            let closed = taken.closed.get_mut(&key).map_or(0, |closed| {
                out_of_time_wait(closed, now);
                u32::try_from(closed.len()).unwrap_or(u32::MAX)
            });
            Some(taken.open.get(&key).copied().unwrap_or(0).saturating_add(closed))
        };
        let counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = counted.as_ref().and_then(|counted| counted.get(&source.bind())).filter(|busy| busy.peer == peer);
        open.max(counted.map(|busy| busy.ports)).unwrap_or(0)
    }

    /// Open connections towards the peer that has the most, by source.
    fn busiest(&self) -> HashMap<IpAddr, u32> {
        let mut busiest: HashMap<IpAddr, u32> = HashMap::new();
        for ((source, _), count) in &self.ports.lock().open {
            let most = busiest.entry(*source).or_default();
            *most = (*most).max(*count);
        }
        busiest
    }

    /// What is open is known at once, what the kernel counts a little later: the larger of the two.
    fn share(&self, open: &HashMap<IpAddr, u32>, source: &Source, range: u32) -> f64 {
        let counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = counted.as_ref().and_then(|counted| counted.get(&source.bind())).map(|busy| busy.ports);
        let most = open.get(&source.public()).copied().max(counted).unwrap_or(0);
        f64::from(most) / f64::from(range.max(1))
    }
}

#[cfg(test)]
impl PortGuard {
    pub fn for_tests() -> Self {
        let key = (IpAddr::from([127, 0, 0, 1]), SocketAddr::from(([127, 0, 0, 1], 1)));
        Self { ports: Arc::default(), key, is_reckoned: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_port_that_was_closed_is_reckoned_with_for_as_long_as_it_may_be_in_time_wait() {
        let metrics = DialMetrics::default();
        let bind = IpAddr::from([127, 0, 0, 2]);
        let source = Source::for_tests(bind);
        let (peer, other) = (SocketAddr::from(([127, 0, 0, 1], 80)), SocketAddr::from(([127, 0, 0, 1], 81)));
        let in_use = |peer| metrics.ports_in_use(&source, peer, clock::monotonic());
        let held: Vec<_> = (0..3).map(|_| metrics.open(&source, peer, true)).collect();
        let sends = metrics.open(&source, peer, false);
        assert_eq!((in_use(peer), in_use(other)), (4, 0));
        drop((held, sends));
        assert_eq!(in_use(peer), 3);
        tokio::time::advance(TIME_WAIT - Duration::from_secs(1)).await;
        metrics.observe(&[], 1);
        let open = metrics.open(&source, peer, true);
        assert_eq!(in_use(peer), 4);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(in_use(peer), 1);
        metrics.observe(&[], 1);
        assert!(metrics.ports.lock().closed.is_empty());
        // What the kernel has counted counts where it is more.
        metrics.counted(HashMap::from([(bind, Busiest { peer, ports: 9 })]));
        assert_eq!((in_use(peer), in_use(other)), (9, 0));
        drop(open);
    }
}
