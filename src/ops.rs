//! The operator's listener: `/metrics`, `/healthz` and `/readyz`, and nothing else.
//!
//! It is served apart from the deliveries, so that no number of its callers takes anything from them, and so that it
//! answers, and says so, when they stand still.

use std::sync::Arc;

use axum::extract::Request;
use axum::middleware::Next;
use axum::{
    Router, extract::State, http::StatusCode, http::header::CONTENT_TYPE, response::IntoResponse, routing::get,
};
use hyper_util::service::TowerToHyperService;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::api::access;
use crate::clock;
use crate::dispatch::Dispatcher;
use crate::doors::{self, Bounds, Way};
use crate::intake::Intake;
use crate::limits;
use crate::store::Store;
use crate::world::World;

/// Damaged places that `/readyz` names.
const DAMAGE_SHOWN: usize = 16;

/// One host asks for all of it, as a rule.
const BOUNDS: Bounds =
    Bounds { connections: limits::OPS_CONNECTIONS, connections_per_network: limits::OPS_CONNECTIONS };

/// What `/readyz` asks.
pub struct Readiness {
    pub world: Arc<World>,
    pub store: Arc<dyn Store>,
    pub intake: Arc<Intake>,
    pub dispatcher: Arc<Dispatcher>,
}

impl Readiness {
    /// Why this node should get no sends now, a line each; empty: it should.
    pub fn reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.intake.draining() {
            reasons.push("draining: the process is about to stop".to_owned());
        }
        if let Err(error) = self.store.health() {
            reasons.push(error.to_string());
        }
        if self.dispatcher.fenced() {
            reasons.push("another process has this node's place in its store: this one begins nothing more".to_owned());
        }
        if let Some(since) = self.dispatcher.stalled() {
            reasons
                .push(format!("the dispatcher has stalled: its loop has not turned for {:.1} s", since.as_secs_f64()));
        }
        let sources = self.world.sources();
        let now = clock::wall();
        if !sources.any_usable(now) {
            reasons.push("no source is usable".to_owned());
        }
        reasons
    }

    /// Sources that are out, and what the store has lost, for the detail of `/readyz`: neither makes a node unready.
    fn notes(&self) -> Vec<String> {
        let sources = self.world.sources();
        let now = clock::wall();
        let out = |source: &Arc<crate::source::Source>| {
            sources.unusable(source, now).map(|why| format!("source {} is not usable: {why}", source.public()))
        };
        let mut notes: Vec<String> = sources.all().iter().filter_map(out).collect();
        let damage = self.store.damage();
        notes.extend(damage.iter().take(DAMAGE_SHOWN).map(|what| format!("the store is damaged: {what}")));
        if damage.len() > DAMAGE_SHOWN {
            notes.push(format!("the store is damaged in {} more places: see the log", damage.len() - DAMAGE_SHOWN));
        }
        notes
    }
}

/// Serves until `stopped` turns true; what is being answered then is finished.
pub async fn serve(listener: TcpListener, router: Router, stopped: watch::Receiver<bool>) {
    // Open to everyone who reaches it: on loopback, no page in somebody's browser may, by whatever name.
    let loopback = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
    let router = router.layer(axum::middleware::from_fn(move |request: Request, next: Next| async move {
        match access::guard(&request, loopback, false) {
            Ok(()) => next.run(request).await,
            Err(problem) => problem.into_response(),
        }
    }));
    let service = TowerToHyperService::new(router);
    doors::serve(listener, "the metrics listener", BOUNDS, Way::default(), move |_| service.clone(), stopped).await;
}

/// `deliveries` is the runtime whose health is told: not the one that this is served on.
pub fn router(metrics: PrometheusHandle, readiness: Arc<Readiness>, deliveries: Handle) -> Router {
    let metrics = get(move || {
        let metrics = metrics.clone();
        async move { ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render()) }
    });
    Router::new()
        .route("/metrics", metrics)
        .route("/healthz", get(move || healthz(deliveries.clone())))
        .route("/readyz", get(readyz))
        .fallback(|| async {
            let told = "this is [metrics] listen, with /metrics, /healthz and /readyz; the API is at [api] listen\n";
            (StatusCode::NOT_FOUND, told)
        })
        .with_state(readiness)
}

/// Whether the threads that deliver take up what is given to them.
async fn healthz(deliveries: Handle) -> (StatusCode, &'static str) {
    let turned = tokio::select! {
        turned = deliveries.spawn(async {}) => turned.is_ok(),
        () = tokio::time::sleep(limits::HEALTH_WITHIN) => false,
    };
    if turned {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the threads that deliver do not take up what they are given\n")
    }
}

async fn readyz(State(readiness): State<Arc<Readiness>>) -> impl IntoResponse {
    let reasons = readiness.reasons();
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut lines = if reasons.is_empty() { vec!["ready".to_owned()] } else { reasons };
    for note in readiness.notes() {
        if !lines.contains(&note) {
            lines.push(note);
        }
    }
    (status, lines.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn health_is_that_of_the_threads_that_deliver() {
        let undriven = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        assert_eq!(healthz(undriven.handle().clone()).await.0, StatusCode::SERVICE_UNAVAILABLE);
        undriven.shutdown_background();
        assert_eq!(healthz(Handle::current()).await, (StatusCode::OK, "ok\n"));
    }

    #[tokio::test]
    #[allow(clippy::disallowed_methods, reason = "a test's own client, towards its own listener")]
    async fn a_page_in_a_browser_reads_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (_stop, stopped) = watch::channel(false);
        let router = Router::new().route("/metrics", get(|| async { "all of them" }));
        tokio::spawn(serve(listener, router, stopped));
        for (head, status) in [
            ("host: localhost", 200),
            ("host: 127.0.0.1:8701", 200),
            ("host: [::1]:8701", 200),
            ("host: evil.example.com", 421),
            ("host: 10.0.0.1:8701", 421),
            ("host: localhost\r\nhost: localhost", 400),
            ("host: localhost\r\norigin: https://evil.example.com", 403),
            ("host: localhost\r\nsec-fetch-site: cross-site", 403),
            ("host: localhost\r\nsec-fetch-site: same-site", 403),
            ("host: localhost\r\nsec-fetch-site: none", 200),
        ] {
            let mut stream = TcpStream::connect(address).await.expect("it listens");
            let call = format!("GET /metrics HTTP/1.1\r\n{head}\r\nconnection: close\r\n\r\n");
            stream.write_all(call.as_bytes()).await.expect("written");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("an answer");
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head}: {answer}");
            assert_eq!(answer.contains("all of them"), status == 200, "{head}");
        }
    }

    #[tokio::test(start_paused = true)]
    #[allow(clippy::disallowed_methods, reason = "a test's own client, towards its own listener")]
    async fn whoever_stays_keeps_nobody_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (_stop, stopped) = watch::channel(false);
        let router = Router::new().route("/metrics", get(|| async { "all of them" }));
        tokio::spawn(serve(listener, router, stopped));
        let mut idle = Vec::new();
        for _ in 0..limits::OPS_CONNECTIONS * 2 {
            idle.push(TcpStream::connect(address).await.expect("it listens"));
        }
        tokio::time::sleep(limits::DOORS_PLACE_TIME).await;
        let mut newcomer = TcpStream::connect(address).await.expect("it listens");
        let call = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        newcomer.write_all(call).await.expect("written");
        let mut answer = String::new();
        newcomer.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("all of them"), "{answer}");
        let all_end = async {
            for mut one in idle {
                let _ = one.read(&mut [0]).await;
            }
        };
        tokio::time::timeout(limits::DOORS_CONNECTION_LIFE, all_end).await.expect("nobody stays");
    }
}
