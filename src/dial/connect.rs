//! Connecting: our own socket, bound to a source, towards an address that passed.
//!
//! The only place that makes a socket towards a destination, and it takes a [`Source`] and a [`CheckedAddr`] to do
//! so: never unbound, never towards a name. Several addresses are tried as RFC 8305 section 5 has it; the first that
//! connects wins and the others are closed with nothing written. Nothing is ever written here.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, StreamExt};
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;

use super::metrics::DialMetrics;
use super::plumbed::Routes;
use super::wire::Wire;
use crate::clock;
use crate::limits::{CONNECT_STAGGER, EXHAUSTED_ASKED_AGAIN, EXHAUSTED_KEPT_MAX, PORTS_LEFT_ONE_IN};
use crate::outcome::Failure;
use crate::outcome::words::{ConnectCause, Tried};
use crate::policy::{CheckedAddr, leads_to_us};
use crate::source::Source;

/// Why no connection was made. `NotOnHost`, `NotInForce` and `OutOfPorts` are ours to answer for, the rest lies with the
/// destination or the way to it.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("source {bind} is not on this host: plumb it, or drop it from `[[egress.source]]` and public-ips.txt")]
    NotOnHost { bind: IpAddr },
    #[error("source {bind} may not be left from any more: its dates, a reload or a reflector took it out meanwhile")]
    NotInForce { bind: IpAddr },
    #[error("source {bind} has no free port left towards {peer}")]
    OutOfPorts { bind: IpAddr, peer: SocketAddr },
    /// A route to it that leads back to this host has come since it was judged, or stands in a table that only this
    /// source is looked up in.
    #[error("{peer} is this host itself")]
    Ourselves { peer: SocketAddr },
    #[error("{peer} refused the connection")]
    Refused { peer: SocketAddr },
    #[error("{peer} reset the connection")]
    Reset { peer: SocketAddr },
    #[error("no way to {peer}")]
    HostUnreachable { peer: SocketAddr, source: io::Error },
    #[error("no route to the network of {peer}")]
    NetworkUnreachable { peer: SocketAddr, source: io::Error },
    /// The kernel connected us to another address than the one that passed.
    #[error("connected to {found} instead of {peer}")]
    WrongPeer { peer: SocketAddr, found: SocketAddr },
    /// The host is short of something (files, memory), or an option was refused.
    #[error("no socket towards {peer}: {source}")]
    Host { peer: SocketAddr, source: io::Error },
}

impl ConnectError {
    /// What the send's author is told: the host as they wrote it, never a source's own address nor what the host
    /// resolved to. `from`: the published address that was left from.
    pub fn failure(&self, host: &str, port: u16, from: Option<IpAddr>, tried: Tried) -> Failure {
        let cause = match self {
            // A refusal by the policy, and no phase's.
            Self::Ourselves { .. } => return leads_to_us(host).into(),
            Self::NotOnHost { .. } | Self::NotInForce { .. } => ConnectCause::NoSource { port },
            Self::OutOfPorts { .. } => ConnectCause::NoPort { port },
            Self::Refused { .. } => ConnectCause::Refused { port, from, tried },
            Self::Reset { .. } => ConnectCause::Reset { port, from, tried },
            Self::HostUnreachable { .. } => ConnectCause::Unreachable { port, from, tried },
            Self::NetworkUnreachable { .. } => ConnectCause::NetworkUnreachable { port, tried },
            Self::WrongPeer { .. } => ConnectCause::LedElsewhere { port },
            Self::Host { .. } => ConnectCause::NoSocket { port },
        };
        cause.failure(host)
    }

    /// Nothing left this host, so the next source may be tried for the same address.
    fn is_sources(&self) -> bool {
        matches!(self, Self::NotOnHost { .. } | Self::NotInForce { .. } | Self::OutOfPorts { .. })
    }
}

/// The system's range of ports for connections, which each socket is told: above half full, `connect` is slow
/// without it (ip(7), `IP_LOCAL_PORT_RANGE`, Linux 6.3).
#[derive(Debug)]
pub struct PortRange {
    /// `high << 16 | low`; 0: unknown.
    packed: AtomicU32,
    /// The same of the lower part of it, above which [`PORTS_LEFT_ONE_IN`] is left.
    lower: AtomicU32,
    /// Ports in it that the system gives to nobody.
    reserved: AtomicU32,
    /// The kernel knows the option.
    supported: AtomicBool,
}

/// Which of a source's ports towards one peer a connection may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    All,
    /// All but one in [`PORTS_LEFT_ONE_IN`], which are others'. Where the kernel can be told, those are the highest: then
    /// none of them is ever taken, not by what is in TIME_WAIT either. Where it cannot, they are counted.
    ButSome,
}

impl Default for PortRange {
    fn default() -> Self {
        let number = || AtomicU32::new(0);
        let supported = AtomicBool::new(true);
        let range = Self { packed: number(), lower: number(), reserved: number(), supported };
        range.refresh();
        if let Ok(socket) = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)) {
            range.apply(&socket, Ports::All);
        }
        range
    }
}

fn pack((low, high): (u16, u16)) -> u32 {
    u32::from(high) << 16 | u32::from(low)
}

fn system_port_range() -> Option<(u16, u16)> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut numbers = text.split_whitespace().map(|number| number.parse::<u16>().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// What of `low..=high` stands in `ip_local_reserved_ports`, which the kernel writes without overlaps.
fn reserved_ranges((low, high): (u16, u16), reserved: &str) -> Vec<RangeInclusive<u16>> {
    let ranges = reserved.trim().split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u16>().ok()?.max(low)..=last.parse::<u16>().ok()?.min(high))
    });
    ranges.filter(|range| !range.is_empty()).collect()
}

fn reserved_within(range: (u16, u16), reserved: &str) -> u32 {
    reserved_ranges(range, reserved).iter().map(|range| u32::from(range.end() - range.start()) + 1).sum()
}

/// The part of a range above which so many of its ports are that the system gives out; at least its lowest port.
fn below((low, high): (u16, u16), reserved: &str, mut left: u32) -> (u16, u16) {
    let taken = reserved_ranges((low, high), reserved);
    let mut top = high;
    while left > 0 && top > low {
        left -= u32::from(!taken.iter().any(|range| range.contains(&top)));
        top -= 1;
    }
    (low, top)
}

impl PortRange {
    /// The operator may have moved it.
    pub fn refresh(&self) {
        let range = system_port_range();
        let reserved = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default();
        self.packed.store(range.map_or(0, pack), Relaxed);
        self.reserved.store(range.map_or(0, |range| reserved_within(range, &reserved)), Relaxed);
        let left = self.left();
        self.lower.store(range.map_or(0, |range| pack(below(range, &reserved, left))), Relaxed);
    }

    /// How many of them are others' where some are.
    fn left(&self) -> u32 {
        self.size().div_ceil(PORTS_LEFT_ONE_IN)
    }

    /// The kernel gives out no port outside of what it is told.
    fn is_kept(&self) -> bool {
        self.supported.load(Relaxed) && self.lower.load(Relaxed) != 0
    }

    /// How many ports there are.
    pub fn size(&self) -> u32 {
        let packed = self.packed.load(Relaxed);
        if packed == 0 {
            return 28_232;
        }
        ((packed >> 16).saturating_sub(packed & 0xffff) + 1).saturating_sub(self.reserved.load(Relaxed))
    }

    fn apply(&self, socket: &Socket, ports: Ports) {
        let packed = match ports {
            Ports::All => self.packed.load(Relaxed),
            Ports::ButSome => self.lower.load(Relaxed),
        };
        if packed == 0 || !self.supported.load(Relaxed) {
            return;
        }
        if !set_local_port_range(socket, packed) {
            self.supported.store(false, Relaxed);
        }
    }
}

/// Neither `socket2` nor `nix` has a setter for this option.
#[allow(unsafe_code, reason = "one socket option by its number, with a pointer to a local of the size it is told")]
fn set_local_port_range(socket: &Socket, packed: u32) -> bool {
    use std::os::fd::AsRawFd;

    use nix::libc;

    const IP_LOCAL_PORT_RANGE: libc::c_int = 51;
    // SAFETY: the descriptor is open for as long as `socket` is borrowed, and the kernel reads four bytes of a
    // local that outlives the call.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            IP_LOCAL_PORT_RANGE,
            (&raw const packed).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    answer == 0
}

/// Sources that had no port left towards a peer a moment ago.
///
/// To find that out the kernel looks at every port of the range, which takes it milliseconds where there are tens of
/// thousands, on the thread that other deliveries turn on. So it is asked again only after [`EXHAUSTED_ASKED_AGAIN`]
/// times as long: however many deliveries want to go there, the question takes a small share of one thread's time.
#[derive(Debug, Default)]
pub struct Exhausted(Mutex<HashMap<(IpAddr, SocketAddr), Instant>>);

impl Exhausted {
    fn holds(&self, bind: IpAddr, peer: SocketAddr) -> bool {
        let until = self.lock().get(&(bind, peer)).copied();
        until.is_some_and(|until| clock::monotonic() < until)
    }

    /// The kernel has said so, after so long.
    fn note(&self, bind: IpAddr, peer: SocketAddr, took: Duration) {
        let wait = (took * EXHAUSTED_ASKED_AGAIN).min(EXHAUSTED_KEPT_MAX);
        self.lock().insert((bind, peer), clock::monotonic() + wait);
    }

    /// Forgets what is over.
    pub fn tend(&self) {
        let now = clock::monotonic();
        self.lock().retain(|_, until| now < *until);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(IpAddr, SocketAddr), Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection, and what it leaves from.
#[derive(Debug)]
pub struct Connected {
    pub wire: Wire,
    pub source: Arc<Source>,
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

/// One address to try, with the sources of its family in the order to be tried; never empty.
#[derive(Debug)]
pub struct Candidate {
    pub address: CheckedAddr,
    pub sources: Vec<Arc<Source>>,
}

/// What connecting needs beside addresses.
pub struct Connector<'a> {
    pub port_range: &'a PortRange,
    pub ports: Ports,
    pub exhausted: &'a Exhausted,
    pub routes: &'a Routes,
    pub metrics: &'a DialMetrics,
    /// Whether a source may be left from now. Asked at each connection, because the candidates were found a while ago.
    pub in_force: &'a (dyn Fn(&Source) -> bool + Sync),
    /// Told what a bind said of a source.
    pub bound: &'a (dyn Fn(&Source, bool) + Sync),
    /// What became of it so far, for whoever drops this.
    pub met: &'a Mutex<Met>,
}

/// How the addresses met a connect that is under way.
#[derive(Debug, Default)]
pub struct Met {
    pub tried: Tried,
    /// The first source that a connect was begun from: one without a port left is not left from.
    pub from: Option<Arc<Source>>,
}

impl Connector<'_> {
    /// The first of the candidates that connects. Runs until the caller's deadline drops it.
    pub async fn connect(&self, candidates: &[Candidate]) -> Result<Connected, ConnectError> {
        if let [only] = candidates {
            return self.attempt(only).await;
        }
        let mut running = FuturesUnordered::new();
        let mut waiting = candidates.iter();
        let mut told: Option<ConnectError> = None;
        loop {
            running.extend(waiting.next().map(|next| self.attempt(next)));
            let more = waiting.len() > 0;
            tokio::select! {
                biased;
                ended = running.next() => match ended {
                    Some(Ok(connected)) => return Ok(connected),
                    // What a destination said tells the author more than what we lacked.
                    Some(Err(error)) if told.as_ref().is_none_or(ConnectError::is_sources) => told = Some(error),
                    Some(Err(_)) => {}
                    None => return Err(told.unwrap_or_else(nothing_to_try)),
                },
                () = tokio::time::sleep(CONNECT_STAGGER), if more => {}
            }
        }
    }

    /// One address: the next source is tried only while no packet has left.
    async fn attempt(&self, candidate: &Candidate) -> Result<Connected, ConnectError> {
        self.note(|met| met.tried.silent += 1);
        let ended = self.attempt_from(candidate).await;
        self.note(|Met { tried, .. }| {
            tried.silent -= 1;
            match &ended {
                Err(ConnectError::Refused { .. } | ConnectError::Reset { .. }) => tried.refused += 1,
                Err(ConnectError::HostUnreachable { .. } | ConnectError::NetworkUnreachable { .. }) => {
                    tried.unreachable += 1;
                }
                _ => {}
            }
        });
        ended
    }

    fn note(&self, what: impl FnOnce(&mut Met)) {
        what(&mut self.met.lock().unwrap_or_else(PoisonError::into_inner));
    }

    async fn attempt_from(&self, candidate: &Candidate) -> Result<Connected, ConnectError> {
        let mut told = None;
        for source in &candidate.sources {
            match self.connect_from(source, &candidate.address).await {
                Err(error) if error.is_sources() => {
                    match error {
                        ConnectError::NotOnHost { .. } => (self.bound)(source, false),
                        ConnectError::NotInForce { .. } => {}
                        _ => self.metrics.of(source).ports_exhausted.increment(1),
                    }
                    // A source that exists and is full says more than one that is missing.
                    if !matches!(told, Some(ConnectError::OutOfPorts { .. })) {
                        told = Some(error);
                    }
                }
                result => return result,
            }
        }
        Err(told.unwrap_or_else(nothing_to_try))
    }

    #[allow(clippy::disallowed_methods, reason = "the one place that connects to destinations")]
    async fn connect_from(&self, source: &Arc<Source>, address: &CheckedAddr) -> Result<Connected, ConnectError> {
        let (bind, peer) = (source.bind(), address.socket_addr());
        if !(self.in_force)(source) {
            return Err(ConnectError::NotInForce { bind });
        }
        let is_reckoned = self.ports == Ports::ButSome && !self.port_range.is_kept();
        let is_for_others = || {
            let range = self.port_range;
            self.metrics.ports_in_use(source, peer, clock::monotonic()).saturating_add(range.left()) >= range.size()
        };
        if self.exhausted.holds(bind, peer) || is_reckoned && is_for_others() {
            return Err(ConnectError::OutOfPorts { bind, peer });
        }
        let host = |source| ConnectError::Host { peer, source };
        let may_be_ours = !address.errand().purpose.is_a_tenants();
        if !address.may_be_local() && !may_be_ours && self.routes.is_local(peer.ip(), Some(bind)).map_err(host)? {
            return Err(ConnectError::Ourselves { peer });
        }
        let socket = Socket::new(Domain::for_address(peer), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))
            .map_err(host)?;
        socket.set_tcp_nodelay(true).map_err(host)?;
        // Without it `bind` takes a port from all destinations at once, and poisons it for every source.
        setsockopt(&socket, IpBindAddressNoPort, &true).map_err(|errno| host(errno.into()))?;
        self.port_range.apply(&socket, self.ports);
        socket.bind(&SocketAddr::new(bind, 0).into()).map_err(|error| match error.kind() {
            io::ErrorKind::AddrNotAvailable => ConnectError::NotOnHost { bind },
            _ => host(error),
        })?;
        (self.bound)(source, true);
        let port = self.metrics.open(source, peer, is_reckoned);
        let socket = TcpSocket::from_std_stream(socket.into());
        let asked = clock::monotonic();
        let mut is_first = false;
        self.note(|met| {
            is_first = met.from.is_none();
            met.from.get_or_insert_with(|| source.clone());
        });
        let stream = socket.connect(peer).await.map_err(|error| {
            let error = of_connect(error, bind, peer);
            if matches!(error, ConnectError::OutOfPorts { .. }) {
                self.exhausted.note(bind, peer, asked.elapsed());
                if is_first {
                    self.note(|met| met.from = None);
                }
            }
            error
        })?;
        let (local, remote) = both_ends(&stream).map_err(|error| of_connect(error, bind, peer))?;
        if remote != peer {
            return Err(ConnectError::WrongPeer { peer, found: remote });
        }
        Ok(Connected { wire: Wire::new(stream, port), source: source.clone(), local, remote })
    }
}

fn both_ends(stream: &TcpStream) -> io::Result<(SocketAddr, SocketAddr)> {
    Ok((stream.local_addr()?, stream.peer_addr()?))
}

/// What `connect` itself said.
fn of_connect(error: io::Error, bind: IpAddr, peer: SocketAddr) -> ConnectError {
    use io::ErrorKind;
    match error.kind() {
        ErrorKind::AddrNotAvailable => ConnectError::OutOfPorts { bind, peer },
        ErrorKind::ConnectionRefused => ConnectError::Refused { peer },
        // The peer connected and was gone before we could look.
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::NotConnected => {
            ConnectError::Reset { peer }
        }
        ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown => {
            ConnectError::NetworkUnreachable { peer, source: error }
        }
        // The kernel's own patience ended, or this host's firewall said no.
        ErrorKind::HostUnreachable | ErrorKind::TimedOut | ErrorKind::PermissionDenied => {
            ConnectError::HostUnreachable { peer, source: error }
        }
        _ if error.raw_os_error() == Some(nix::libc::EHOSTDOWN) => {
            ConnectError::HostUnreachable { peer, source: error }
        }
        _ => ConnectError::Host { peer, source: error },
    }
}

/// Callers never ask without a candidate or a source; said rather than panicked.
fn nothing_to_try() -> ConnectError {
    let peer = SocketAddr::from(([0, 0, 0, 0], 0));
    ConnectError::Host { peer, source: io::Error::other("no address and source to try") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ports_of_the_range_are_nobodys() {
        for (reserved, count) in [
            ("", 0),
            ("\n", 0),
            ("32768", 1),
            ("8700-8702,30000-32767\n", 0),
            ("30000-32769,60999-65535,40000\n", 4),
            ("1-65535", 28_232),
        ] {
            assert_eq!(reserved_within((32_768, 60_999), reserved), count, "{reserved:?}");
        }
    }

    #[test]
    fn the_highest_that_the_system_gives_out_are_left() {
        for (range, reserved, left, top) in [
            ((32_768, 60_999), "", 7_058, 53_941),
            ((32_768, 60_999), "60000-60999", 7_058, 52_941),
            ((32_768, 60_999), "32768-40000,1-2", 5_250, 55_749),
            ((100, 119), "", 5, 114),
            ((100, 119), "119,118,116", 5, 111),
            ((100, 119), "", 500, 100),
            ((100, 100), "", 1, 100),
        ] {
            assert_eq!(below(range, reserved, left), (range.0, top), "{range:?} {reserved}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_without_ports_is_asked_again_after_many_times_as_long_as_it_took() {
        let exhausted = Exhausted::default();
        let (bind, peer) = (IpAddr::from([127, 0, 0, 1]), SocketAddr::from(([127, 0, 0, 2], 80)));
        let others = [(bind, SocketAddr::from(([127, 0, 0, 2], 81))), (IpAddr::from([127, 0, 0, 3]), peer)];
        for (took, wait) in [
            (Duration::from_micros(50), Duration::from_millis(1)),
            (Duration::from_millis(5), Duration::from_millis(100)),
            (Duration::from_secs(1), EXHAUSTED_KEPT_MAX),
        ] {
            assert!(!exhausted.holds(bind, peer));
            exhausted.note(bind, peer, took);
            tokio::time::advance(wait - Duration::from_micros(1)).await;
            exhausted.tend();
            assert!(exhausted.holds(bind, peer), "{took:?}");
            assert!(others.iter().all(|(bind, peer)| !exhausted.holds(*bind, *peer)));
            tokio::time::advance(Duration::from_micros(1)).await;
            assert!(!exhausted.holds(bind, peer), "{took:?}");
            exhausted.tend();
            assert!(exhausted.lock().is_empty());
        }
    }
}
