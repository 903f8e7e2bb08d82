//! A listener that takes whoever comes: bounded in connections, in all and of one network, in the time until a head is
//! read, in the head's size and in a connection's whole life. Where all places are taken, the oldest goes, so that
//! nobody keeps others out by staying. HTTP/1.1 is all that is spoken, over TLS where that is set up, and behind proxies
//! that say for whom they ask.

pub mod proxied;
pub mod tls;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    error::Error,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::tls::Acceptor;
use crate::clock;
use crate::deliver::apart::Apart;
use crate::limits::{
    DOORS_CONNECTION_LIFE as CONNECTION_LIFE, DOORS_HEAD_BYTES_MAX as HEAD_BYTES_MAX, DOORS_HEAD_TIME as HEAD_TIME,
    DOORS_HEADERS_MAX as HEADERS_MAX, DOORS_PLACE_TIME as PLACE_TIME, LISTEN_BACKLOG,
};
use crate::send::TenantId;

/// After a failed accept (out of files, mostly): asking again at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How many may be in at once.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub connections: usize,
    /// Of one IPv4 address or one IPv6 network of /64.
    pub connections_per_network: usize,
}

/// How callers come in.
#[derive(Default)]
pub struct Way {
    pub tls: Option<Arc<Acceptor>>,
    /// Who must say for whom.
    pub proxies: Vec<IpNet>,
}

/// The same, with where handshakes are computed: in turns by network, whatever each of them wants.
struct Entrance {
    tls: Option<(Arc<Acceptor>, Apart)>,
    proxies: Vec<IpNet>,
}

/// Opens a listener whose callers wait in line, however many come at once while nobody takes them in: the kernel drops
/// the first packet of one too many, who then comes again a second later.
pub fn open(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart need not wait for the last process's connections to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(LISTEN_BACKLOG)
}

/// Serves until `stopped` turns true; what is being answered then is finished. `service` is asked once for each
/// connection; `what` names the listener in the log.
pub async fn serve<S, B>(
    listener: TcpListener,
    what: &'static str,
    bounds: Bounds,
    way: Way,
    service: impl Fn(SocketAddr) -> S + Clone + Send + 'static,
    mut stopped: watch::Receiver<bool>,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let doors = Doors::new(bounds);
    let tls = way.tls.map(|acceptor| (acceptor, Apart::new("list-tls")));
    let entrance = Arc::new(Entrance { tls, proxies: way.proxies });
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = stop(&mut stopped) => break,
        };
        match accepted {
            // One too many is closed at once.
            Ok((stream, peer)) => {
                let from = peer.ip().to_canonical();
                let proxy = proxied::is_proxy(&entrance.proxies, from);
                let pass =
                    if proxy { doors.enter_proxied(clock::monotonic()) } else { doors.enter(from, clock::monotonic()) };
                if let Some(pass) = pass {
                    let (entrance, service, stopped) = (entrance.clone(), service.clone(), stopped.clone());
                    connections.spawn(let_in(entrance, stream, peer, proxy, service, stopped, pass));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "{what} cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Ready when the process is to stop, or its owner is gone.
async fn stop(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// One connection, from its first byte to its end.
async fn let_in<S, B>(
    entrance: Arc<Entrance>,
    mut stream: TcpStream,
    peer: SocketAddr,
    proxy: bool,
    service: impl Fn(SocketAddr) -> S,
    mut stopped: watch::Receiver<bool>,
    mut pass: Pass,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    B: Body + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let (doors, number) = (pass.doors.clone(), pass.number);
    let greeting = async {
        let mut caller = peer;
        if proxy {
            caller = proxied::caller(&mut stream).await.ok()?.unwrap_or(peer);
            if caller != peer && !doors.is_for(number, caller.ip().to_canonical(), clock::monotonic()) {
                return None;
            }
        }
        let Some((acceptor, handshakes)) = &entrance.tls else { return Some((caller, Met::Plain(stream))) };
        if !tls::speaks_tls(&stream).await {
            tls::tell_plain(stream, "text/plain; charset=utf-8", b"this port speaks TLS: https://\n").await;
            return None;
        }
        let (network, acceptor) = (network_of(caller.ip().to_canonical()), acceptor.current());
        let handshake = async move { acceptor.accept(stream).await };
        let shaken = handshakes.run(&TenantId::new(network.to_string()), handshake).await;
        shaken.ok().map(|stream| (caller, Met::Tls(Box::new(stream))))
    };
    let met = tokio::select! {
        met = greeting => met,
        _ = &mut pass.taken => None,
        () = tokio::time::sleep(HEAD_TIME) => None,
        () = stop(&mut stopped) => None,
    };
    match met {
        Some((caller, Met::Plain(stream))) => answer(stream, service(caller), stopped, pass).await,
        Some((caller, Met::Tls(stream))) => answer(stream, service(caller), stopped, pass).await,
        None => {}
    }
}

/// What a connection's first bytes led to.
enum Met {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

/// One that has come in.
async fn answer<S, B>(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    service: S,
    mut stopped: watch::Receiver<bool>,
    mut pass: Pass,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    B: Body + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .half_close(false)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let life = tokio::time::sleep(CONNECTION_LIFE);
    tokio::pin!(life);
    // What is being answered at the end of its life may be finished, where that takes no longer than an answer does.
    let last_call = tokio::time::sleep(CONNECTION_LIFE.saturating_sub(PLACE_TIME));
    tokio::pin!(last_call);
    let mut ending = false;
    loop {
        tokio::select! {
            // A peer that misbehaves is no news: it gets hyper's answer or none.
            _ = connection.as_mut() => return,
            () = life.as_mut() => return,
            _ = &mut pass.taken => return,
            () = last_call.as_mut(), if !ending => {
                ending = true;
                connection.as_mut().graceful_shutdown();
            }
            () = stop(&mut stopped), if !ending => {
                ending = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Who is in, in the order in which they came.
#[derive(Clone)]
struct Doors {
    bounds: Bounds,
    inside: Arc<Mutex<Inside>>,
}

#[derive(Default)]
struct Inside {
    /// Of the next one.
    number: u64,
    places: BTreeMap<u64, Visitor>,
}

struct Visitor {
    /// `None`: a proxy that has not said for whom it asks.
    network: Option<IpAddr>,
    since: Instant,
    /// Dropped when another takes the place.
    _held: oneshot::Sender<Infallible>,
}

/// A connection's place; leaving it gives it back.
struct Pass {
    doors: Doors,
    number: u64,
    /// Ready when another has taken the place.
    taken: oneshot::Receiver<Infallible>,
}

impl Doors {
    fn new(bounds: Bounds) -> Self {
        Self { bounds, inside: Arc::default() }
    }

    /// Where every place is taken (or every one of the caller's network), whoever has had one for longest makes room,
    /// once it had [`PLACE_TIME`]: an answer takes no such time, holding places open does.
    fn enter(&self, peer: IpAddr, now: Instant) -> Option<Pass> {
        self.enter_as(Some(network_of(peer)), now)
    }

    /// A proxy's connection is nobody's until it has said for whom it asks: [`Self::is_for`].
    fn enter_proxied(&self, now: Instant) -> Option<Pass> {
        self.enter_as(None, now)
    }

    /// A proxy has said for whom it asks that has this place. `false`: that network has as many as it may have.
    fn is_for(&self, number: u64, caller: IpAddr, now: Instant) -> bool {
        let network = Some(network_of(caller));
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        if !inside.has_room_for(network, self.bounds, now) {
            return false;
        }
        // None: another has the place by now.
        inside.places.get_mut(&number).map(|place| place.network = network).is_some()
    }

    fn enter_as(&self, network: Option<IpAddr>, now: Instant) -> Option<Pass> {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        if !inside.has_room_for(network, self.bounds, now) {
            return None;
        }
        if inside.places.len() >= self.bounds.connections && !inside.oldest_goes(|_| true, now) {
            return None;
        }
        let (held, taken) = oneshot::channel();
        let number = inside.number;
        inside.number += 1;
        inside.places.insert(number, Visitor { network, since: now, _held: held });
        Some(Pass { doors: self.clone(), number, taken })
    }
}

impl Inside {
    /// One more of this network may be in; its oldest may have had to go for that.
    fn has_room_for(&mut self, network: Option<IpAddr>, bounds: Bounds, now: Instant) -> bool {
        let own = |place: &Visitor| network.is_some() && place.network == network;
        let count = self.places.values().filter(|place| own(place)).count();
        count < bounds.connections_per_network || self.oldest_goes(own, now)
    }

    fn oldest_goes(&mut self, of: impl Fn(&Visitor) -> bool, now: Instant) -> bool {
        let oldest = self.places.iter().find(|(_, place)| of(place));
        let oldest = oldest.filter(|(_, place)| now.duration_since(place.since) >= PLACE_TIME);
        let number = oldest.map(|(number, _)| *number);
        number.is_some_and(|number| self.places.remove(&number).is_some())
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.doors.inside.lock().unwrap_or_else(PoisonError::into_inner).places.remove(&self.number);
    }
}

/// What counts as one caller: an IPv4 address, or an IPv6 network of /64, of which one host has every address.
fn network_of(peer: IpAddr) -> IpAddr {
    match peer {
        IpAddr::V4(_) => peer,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

#[cfg(test)]
mod tests;
