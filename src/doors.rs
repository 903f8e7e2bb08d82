//! A listener that takes whoever comes: bounded in connections, in all and of one network, in the time until a head is
//! read, in the head's size and in a connection's whole life. Where all places are taken, the oldest goes, so that
//! nobody keeps others out by staying. HTTP/1.1 is all that is spoken.

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
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::clock;
use crate::limits::{
    DOORS_CONNECTION_LIFE as CONNECTION_LIFE, DOORS_HEAD_BYTES_MAX as HEAD_BYTES_MAX, DOORS_HEAD_TIME as HEAD_TIME,
    DOORS_HEADERS_MAX as HEADERS_MAX, DOORS_PLACE_TIME as PLACE_TIME, LISTEN_BACKLOG,
};

/// After a failed accept (out of files, mostly): asking again at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How many may be in at once.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub connections: usize,
    /// Of one IPv4 address or one IPv6 network of /64.
    pub connections_per_network: usize,
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
    service: impl Fn(SocketAddr) -> S,
    mut stopped: watch::Receiver<bool>,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let doors = Doors::new(bounds);
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
                if let Some(pass) = doors.enter(peer.ip().to_canonical(), clock::monotonic()) {
                    connections.spawn(answer(stream, service(peer), stopped.clone(), pass));
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
async fn answer<S, B>(stream: TcpStream, service: S, mut stopped: watch::Receiver<bool>, mut pass: Pass)
where
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
    network: IpAddr,
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
        let network = network_of(peer);
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let own = || inside.places.iter().filter(|(_, place)| place.network == network);
        let oldest = if own().count() >= self.bounds.connections_per_network {
            own().next()
        } else if inside.places.len() >= self.bounds.connections {
            inside.places.iter().next()
        } else {
            None
        };
        if let Some((number, place)) = oldest {
            if now.duration_since(place.since) < PLACE_TIME {
                return None;
            }
            let number = *number;
            inside.places.remove(&number);
        }
        let (held, taken) = oneshot::channel();
        let number = inside.number;
        inside.number += 1;
        inside.places.insert(number, Visitor { network, since: now, _held: held });
        Some(Pass { doors: self.clone(), number, taken })
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
