//! What the dialer counts: connections and deliveries per source, and how near a source is to having no port left.
//!
//! Labels are the configured sources' public addresses, never a destination's.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

use crate::source::Source;

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
        "Open connections of this source towards its busiest peer, as a share of the system's port range"
    );
}

/// One source's handles, looked up once.
pub struct SourceCounters {
    pub fresh: Counter,
    pub reused: Counter,
    pub ports_exhausted: Counter,
    in_flight: Gauge,
    ports_used: Gauge,
}

/// Counts per source, and the ports in use per source and peer.
pub struct DialMetrics {
    /// Deliveries for which no source is chosen yet.
    nowhere: Gauge,
    sources: Mutex<HashMap<IpAddr, Arc<SourceCounters>>>,
    ports: Arc<Ports>,
}

type PortKey = (IpAddr, SocketAddr);

/// Open connections by (public source, peer).
#[derive(Debug, Default)]
struct Ports(Mutex<HashMap<PortKey, u32>>);

/// One open connection's place in the count.
#[derive(Debug)]
pub struct PortGuard {
    ports: Arc<Ports>,
    key: PortKey,
}

impl Drop for PortGuard {
    fn drop(&mut self) {
        let mut open = self.ports.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.key);
            }
        }
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
        self.gauge.decrement(1.0);
        self.gauge = counters.in_flight.clone();
        self.gauge.increment(1.0);
        self.source = Some(counters.clone());
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.gauge.decrement(1.0);
    }
}

impl Default for DialMetrics {
    fn default() -> Self {
        Self {
            nowhere: gauge!("egressd_in_flight", "source_ip" => "none"),
            sources: Mutex::default(),
            ports: Arc::default(),
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
        });
        sources.insert(source.public(), counters.clone());
        counters
    }

    /// Counts a connection that is about to be made; dropped with it.
    pub fn open(&self, source: &Source, peer: SocketAddr) -> PortGuard {
        let key = (source.public(), peer);
        *self.ports.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default() += 1;
        PortGuard { ports: self.ports.clone(), key }
    }

    /// Brings the gauges up to date. `range`: how many ports the system gives out.
    pub fn observe(&self, sources: &[Arc<Source>], range: u32) {
        let mut busiest: HashMap<IpAddr, u32> = HashMap::new();
        for ((source, _), count) in self.ports.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let most = busiest.entry(*source).or_default();
            *most = (*most).max(*count);
        }
        for source in sources {
            let most = busiest.get(&source.public()).copied().unwrap_or(0);
            self.of(source).ports_used.set(f64::from(most) / f64::from(range.max(1)));
        }
    }
}

#[cfg(test)]
impl PortGuard {
    pub fn for_tests() -> Self {
        let key = (IpAddr::from([127, 0, 0, 1]), SocketAddr::from(([127, 0, 0, 1], 1)));
        Self { ports: Arc::default(), key }
    }
}
