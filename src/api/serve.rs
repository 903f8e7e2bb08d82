//! A listener that serves a router: HTTP/1.1 and HTTP/2, over TLS or in the clear, bounded in connections ([`super::seats`]
//! says who stays), heads and time (for those who do not read, too), and let go gracefully when the process stops.
//! [`serve_on`] is the same for another service, in bounds of its own.

pub(crate) mod explained;
mod patient;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::task::TaskTracker;

use self::explained::Explained;
use self::patient::Patient;
use super::problem::Problem;
use super::seats::{Bounds, Presence, Seat, Seats, Verdict, network_of};
use crate::clock;
use crate::deliver::apart::Apart;
use crate::doors::tls::{self, Acceptor};
use crate::limits;
use crate::send::TenantId;

/// After a failed accept (out of files, mostly), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections that have lost their place and not ended yet: beyond so many, newcomers wait in the kernel's backlog.
const ENDING: usize = 256;

/// Serves until `closing` turns `true`, then takes no more connections and returns when the calls that are being
/// answered have been. Whoever calls decides how long that may take.
pub async fn serve(listener: TcpListener, router: Router, tls: Option<Arc<Acceptor>>, closing: watch::Receiver<bool>) {
    // Whoever connects has us compute what a handshake takes: in turns by network, whatever each of them wants.
    let handshakes = Apart::new("call-tls");
    serve_within(Bounds::default(), handshakes, listener, router, tls, closing).await;
}

async fn serve_within(
    bounds: Bounds,
    handshakes: Apart,
    listener: TcpListener,
    router: Router,
    tls: Option<Arc<Acceptor>>,
    closing: watch::Receiver<bool>,
) {
    let served = Served {
        name: "[api] listen",
        bounds,
        handshakes,
        builder: builder(),
        service: TowerToHyperService::new(router),
    };
    // Beneath TLS: what counts is what the kernel takes, not what a buffer of ours does.
    serve_on(served, |stream| Patient::new(stream, limits::API_WRITE_STALL), listener, tls, closing).await;
}

/// What a listener serves, and in which bounds.
pub(crate) struct Served<S> {
    /// Of the listener, in the log.
    pub(crate) name: &'static str,
    pub(crate) bounds: Bounds,
    /// Where they are computed.
    pub(crate) handshakes: Apart,
    pub(crate) builder: auto::Builder<TokioExecutor>,
    pub(crate) service: S,
}

/// Who stands at the other end of a connection: an extension of each of its requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// As [`serve`]. `under`: what stands between a connection's socket and everything else, TLS too. Each request has its
/// connection's [`Presence`] and [`Peer`] among its extensions.
pub(crate) async fn serve_on<S, W>(
    served: Served<S>,
    under: fn(TcpStream) -> W,
    listener: TcpListener,
    tls: Option<Arc<Acceptor>>,
    mut closing: watch::Receiver<bool>,
) where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    W: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Served { name, bounds, handshakes, builder, service } = served;
    let sockets = Arc::new(Semaphore::new(bounds.all + ENDING));
    let (places, connections) = (Seats::new(bounds), TaskTracker::new());
    let (builder, handshakes) = (Arc::new(builder), Arc::new(handshakes));
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &sockets) => accepted,
            _ = closing.wait_for(|closing| *closing) => break,
        };
        let (stream, peer, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection to {name} was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let place = places.enter(peer.ip());
        let (builder, service, closing) = (builder.clone(), service.clone(), closing.clone());
        let tls = tls.as_ref().map(|tls| (tls.current(), handshakes.clone()));
        connections.spawn(async move {
            let _permit = permit;
            let service = Present { service, presence: place.presence().clone(), peer: Peer(peer) };
            match tls {
                None => connection(&builder, Explained::new(under(stream), name), service, &place, closing).await,
                Some((tls, handshakes)) => {
                    if shaken(tls::speaks_tls(&stream), &place).await == Some(false) {
                        let problem = Problem::shape("this port speaks TLS: call it as https://");
                        return tls::tell_plain(stream, "application/problem+json", &problem.body()).await;
                    }
                    let stream = under(stream);
                    let network = TenantId::new(network_of(peer.ip()).to_string());
                    let handshake = handshakes.run(&network, async move { tls.accept(stream).await });
                    match shaken(handshake, &place).await {
                        Some(Ok(stream)) => {
                            connection(&builder, Explained::new(stream, name), service, &place, closing).await;
                        }
                        Some(Err(error)) => tracing::debug!(%error, "a TLS handshake with a caller failed"),
                        None => {
                            tracing::debug!("a TLS handshake with a caller took too long, or made room for another");
                        }
                    }
                }
            }
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn accept(
    listener: &TcpListener,
    sockets: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = sockets.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    // Answers are small and wanted at once.
    let _ = stream.set_nodelay(true);
    // A peer that is no longer there does not acknowledge; the kernel would try for a quarter of an hour.
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(limits::API_WRITE_STALL));
    Ok((stream, peer, permit))
}

/// Not with `pipeline_flush`: what it holds back while there is more to read are the refusals of heads, for good.
fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::API_HEAD_TIME)
        .max_buf_size(limits::API_HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits::API_STREAMS_PER_CONNECTION)
        .max_header_list_size(limits::API_HEAD_BYTES as u32)
        .initial_stream_window_size(limits::API_STREAM_WINDOW)
        .initial_connection_window_size(limits::API_CONNECTION_WINDOW)
        .max_send_buf_size(limits::API_SEND_BUFFER)
        .keep_alive_interval(limits::API_HEAD_TIME)
        .keep_alive_timeout(limits::API_HEAD_TIME);
    builder
}

/// A handshake, for as long as the connection has its place; `None`: it has it no longer.
async fn shaken<T>(handshake: impl Future<Output = T>, place: &Seat) -> Option<T> {
    let mut handshake = pin!(handshake);
    loop {
        let Verdict::Stay(until) = place.presence().verdict(clock::monotonic()) else { return None };
        tokio::select! {
            biased;
            shaken = &mut handshake => return Some(shaken),
            () = place.taken() => return None,
            () = tokio::time::sleep_until(until) => {}
        }
    }
}

/// One connection, for as long as it has its place. What has come is looked at before whether the place is still its
/// own: the call that a newcomer makes room for may be among it.
async fn connection<I, S>(
    builder: &auto::Builder<TokioExecutor>,
    stream: I,
    service: S,
    place: &Seat,
    mut closing: watch::Receiver<bool>,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    let presence = place.presence();
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = pin!(connection.into_owned());
    let mut ending = false;
    loop {
        let until = match presence.verdict(clock::monotonic()) {
            Verdict::Stay(until) => until,
            Verdict::Finish(until) => {
                if !ending {
                    ending = true;
                    connection.as_mut().graceful_shutdown();
                }
                until
            }
            Verdict::Close => return,
        };
        tokio::select! {
            biased;
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a caller's connection ended early");
                }
                return;
            }
            () = place.taken() => return,
            _ = closing.wait_for(|closing| *closing), if !ending => {
                ending = true;
                connection.as_mut().graceful_shutdown();
            }
            () = tokio::time::sleep_until(until) => {}
        }
    }
}

/// Tells each call which connection it came over.
struct Present<S> {
    service: S,
    presence: Arc<Presence>,
    peer: Peer,
}

impl<S: Service<Request<Incoming>>> Service<Request<Incoming>> for Present<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.presence.clone());
        request.extensions_mut().insert(self.peer);
        self.service.call(request)
    }
}

#[cfg(test)]
mod tests;
