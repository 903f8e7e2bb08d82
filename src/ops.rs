//! The operator's listener: `/metrics`, `/healthz` and `/readyz`, and nothing else.

use std::sync::Arc;

use axum::{
    Router, extract::State, http::StatusCode, http::header::CONTENT_TYPE, response::IntoResponse, routing::get,
};
use metrics_exporter_prometheus::PrometheusHandle;

use crate::clock;
use crate::dispatch::Dispatcher;
use crate::intake::Intake;
use crate::store::Store;
use crate::world::World;

/// Damaged places that `/readyz` names.
const DAMAGE_SHOWN: usize = 16;

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

pub fn router(metrics: PrometheusHandle, readiness: Arc<Readiness>) -> Router {
    let metrics = get(move || {
        let metrics = metrics.clone();
        async move { ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render()) }
    });
    Router::new()
        .route("/metrics", metrics)
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(readiness)
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
