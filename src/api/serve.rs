//! A listener that serves a router: HTTP/1.1 and HTTP/2, over TLS or in the clear, bounded in connections, heads and
//! time (for those who do not read, too), and let go gracefully when the process stops.

mod explained;
mod patient;

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use http::{Request, Version};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use self::explained::Explained;
use self::patient::Patient;
use super::answers::Hangup;
use super::tls::Acceptor;
use crate::limits;

/// After a failed accept (out of files, mostly), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `closing` turns `true`, then takes no more connections and returns when the calls that are being
/// answered have been. Whoever calls decides how long that may take.
pub async fn serve(listener: TcpListener, router: Router, tls: Option<Arc<Acceptor>>, closing: watch::Receiver<bool>) {
    serve_at_most(limits::API_CONNECTIONS, listener, router, tls, closing).await;
}

async fn serve_at_most(
    connections: usize,
    listener: TcpListener,
    router: Router,
    tls: Option<Arc<Acceptor>>,
    mut closing: watch::Receiver<bool>,
) {
    let connections = Arc::new(Semaphore::new(connections));
    let graceful = GracefulShutdown::new();
    let builder = Arc::new(builder());
    let service = TowerToHyperService::new(router);
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &connections) => accepted,
            _ = closing.wait_for(|closing| *closing) => break,
        };
        let (stream, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection to the API was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Answers are small and wanted at once.
        let _ = stream.set_nodelay(true);
        // Beneath TLS: what counts is what the kernel takes, not what a buffer of ours does.
        let stream = Patient::new(stream, limits::API_WRITE_STALL);
        let (builder, service, watcher) = (builder.clone(), service.clone(), graceful.watcher());
        let tls = tls.as_ref().map(|tls| tls.current());
        tokio::spawn(async move {
            let _permit = permit;
            match tls {
                None => connection(&builder, stream, service, watcher).await,
                Some(tls) => {
                    #[allow(clippy::disallowed_methods, reason = "a caller's own slowness, no part of any delivery")]
                    let handshake = tokio::time::timeout(limits::API_HEAD_TIME, tls.accept(stream)).await;
                    match handshake {
                        Ok(Ok(stream)) => connection(&builder, stream, service, watcher).await,
                        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake with a caller failed"),
                        Err(_) => tracing::debug!("a TLS handshake with a caller took too long"),
                    }
                }
            }
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    // A permit first: connections beyond the bound wait in the kernel's backlog.
    let permit = connections.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
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
        .keep_alive_interval(limits::API_HEAD_TIME)
        .keep_alive_timeout(limits::API_HEAD_TIME);
    builder
}

async fn connection<S>(
    builder: &auto::Builder<TokioExecutor>,
    stream: S,
    service: TowerToHyperService<Router>,
    watcher: hyper_util::server::graceful::Watcher,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let called = Arc::new(AtomicBool::new(false));
    let hangup = Hangup::default();
    let service = Noticed { service, called: called.clone(), hangup: hangup.clone() };
    let connection = builder.serve_connection(TokioIo::new(Explained::new(stream)), service);
    let connection = pin!(watcher.watch(connection.into_owned()));
    let mut connection = pin!(async {
        tokio::select! {
            result = connection => result,
            // An answer over HTTP/2 was left where it was, which the socket does not tell.
            () = hangup.due() => Ok(()),
        }
    });
    let result = tokio::select! {
        result = &mut connection => result,
        // Telling the versions apart waits for bytes without a time of its own.
        () = tokio::time::sleep(limits::API_HEAD_TIME) => {
            if !called.load(Ordering::Relaxed) {
                tracing::debug!("a connection to the API brought no call in time");
                return;
            }
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection to the API ended early");
    }
}

/// Remembers that there was a call, and lets calls over HTTP/2 end their connection.
struct Noticed {
    service: TowerToHyperService<Router>,
    called: Arc<AtomicBool>,
    hangup: Hangup,
}

impl Service<Request<Incoming>> for Noticed {
    type Response = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Response;
    type Error = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Error;
    type Future = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Future;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        self.called.store(true, Ordering::Relaxed);
        if request.version() == Version::HTTP_2 {
            request.extensions_mut().insert(self.hangup.clone());
        }
        self.service.call(request)
    }
}

#[cfg(test)]
mod tests;
