//! The HTTP front: submitting sends, looking at them, and stopping them.
//!
//! [`router`] is every call of the API over what [`ApiState`] brings together; [`serve`] puts it on a listener. A
//! call goes through the same steps wherever it leads: the browser guard, its connection's place ([`seats`]) and room for
//! what it takes ([`budget`]), the token and its scope ([`access`]), the query ([`query`]), the body ([`body`]), then the
//! work; what is answered counts until it was taken ([`answers`]). Every error is a [`problem::Problem`]. Records leave in
//! the shape of [`view`] alone, which decides what a tenant may know; places in the store's order are sealed
//! ([`cursors`]). Not here: what makes a send acceptable (`intake`), and anything about delivery.

pub mod access;
mod answers;
mod batches;
pub mod body;
mod budget;
mod cursors;
mod executions;
pub mod explain;
mod har;
mod nodes;
pub mod openapi;
mod page;
pub mod problem;
pub mod query;
mod resend;
mod rest;
mod search;
pub(crate) mod seats;
mod sends;
pub mod serve;
mod sources;
mod stats;
mod suspensions;
mod tail;
mod tunnels;
pub mod view;

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, StatusCode, Uri, Version};
use metrics::{Unit, counter, describe_counter};
use serde::Serialize;
use tokio::sync::watch;

use self::answers::{Turns, Untaken};
use self::budget::{Budget, Holder, Purpose};
use self::cursors::Cursors;
use self::problem::{Problem, ProblemCode};
use self::seats::Presence;
use crate::deliver::Deliverer;
use crate::events::Events;
use crate::explain::Explainer;
use crate::intake::Intake;
use crate::limits;
use crate::redact::RedactKey;
use crate::store::Store;
use crate::world::World;

/// What the API stands on.
pub struct ApiState {
    pub world: Arc<World>,
    pub store: Arc<dyn Store>,
    pub intake: Arc<Intake>,
    pub events: Arc<Events>,
    pub explainer: Arc<Explainer>,
    /// Asked how busy the sources are, and nothing else.
    pub deliverer: Arc<Deliverer>,
    /// Turns `true` when the process is about to stop: waits answer and tails end.
    pub closing: watch::Receiver<bool>,
}

/// What every call shares.
pub(crate) struct Shared {
    pub(crate) world: Arc<World>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) intake: Arc<Intake>,
    pub(crate) events: Arc<Events>,
    pub(crate) explainer: Arc<Explainer>,
    pub(crate) deliverer: Arc<Deliverer>,
    pub(crate) closing: watch::Receiver<bool>,
    pub(crate) redact_key: RedactKey,
    pub(crate) places: Cursors,
    /// Of what all calls hold.
    pub(crate) budget: Budget,
    pub(crate) tails: Budget,
    pub(crate) turns: Turns,
}

/// The whole API. `addresses` serves `/public-ips.txt` and `/public-ips.json`.
pub fn router(state: ApiState, addresses: Router) -> Router {
    router_sharing(budget::BYTES, state, addresses)
}

fn router_sharing(shares: budget::Shares, state: ApiState, addresses: Router) -> Router {
    describe_counter!(
        "egressd_sends_refused_total",
        Unit::Count,
        "Sends that a submitting call brought and that were not accepted, by problem code (calls of no readable shape count as one)."
    );
    let ApiState { world, store, intake, events, explainer, deliverer, closing } = state;
    let redact_key = store.redact_key();
    let places = Cursors::new(&redact_key);
    let (budget, tails) = (Budget::new(shares), Budget::new(budget::TAILS));
    let turns = Turns::new(budget.clone());
    let shared = Arc::new(Shared {
        world,
        store,
        intake,
        events,
        explainer,
        deliverer,
        closing,
        redact_key,
        places,
        budget,
        tails,
        turns,
    });
    Router::new()
        .route("/v1/sends", get(sends::list).post(sends::submit))
        .route("/v1/sends/{id}", get(sends::one))
        .route("/v1/sends/{id}/resend", post(resend::resend))
        .route("/v1/sends/{id}/har", get(har::har))
        .route("/v1/executions", get(executions::list))
        .route("/v1/executions/{execution}", get(executions::one))
        .route("/v1/executions/{execution}/sends", post(executions::submit))
        .route("/v1/executions/{execution}/finish", post(executions::finish))
        .route("/v1/executions/{execution}/discard", post(executions::discard))
        .route("/v1/stats", get(stats::read))
        .route("/v1/tail", get(tail::tail))
        .route("/v1/explain", post(explain::explain))
        .route("/v1/suspensions", get(suspensions::list).post(suspensions::suspend))
        .route("/v1/suspensions/{id}", delete(suspensions::lift))
        .route("/v1/tenants", get(suspensions::tenants))
        .route("/v1/sources", get(sources::list))
        .route("/v1/nodes", get(nodes::list))
        .route("/v1/tunnels", get(tunnels::list))
        .route("/v1/batches/{id}", get(batches::one))
        .route("/openapi.json", get(openapi::document))
        .route("/", get(page::index))
        .route("/inspector/{*path}", get(page::asset))
        .with_state(shared.clone())
        .merge(addresses)
        .fallback(nothing_here)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(axum::middleware::from_fn_with_state(shared, guarded))
}

async fn nothing_here(uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(limits::ECHO_CHARS_MAX).collect();
    Problem::new(ProblemCode::NotFound, format!("{path} is not a path of this API: see /openapi.json"))
}

async fn method_not_allowed(method: Method) -> Problem {
    Problem::method_not_allowed(&method)
}

/// Around every call: before it the browser guard, its connection's place and room for what it takes; after it, that
/// its answer counts until it was taken, that what a refused caller still sends is read, and headers that keep a browser from guessing and storing.
async fn guarded(State(api): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let private = request.uri().path().starts_with("/v1/");
    let watcher = request.extensions().get::<Arc<Presence>>().filter(|_| request.version() == Version::HTTP_2).cloned();
    let (request, rest) = rest::lend(request);
    let mut response = match api.enter(&request) {
        Ok(untaken) => {
            let response = next.run(request).await;
            if let Some(presence) = watcher {
                presence.watch(&untaken);
            }
            response.map(|body| answers::taken(body, untaken))
        }
        Err(problem) => {
            drop(request);
            problem.into_response()
        }
    };
    if let Some(rest) = rest {
        rest.read().await;
    }
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if private || !response.status().is_success() {
        response.headers_mut().entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    }
    response
}

impl Shared {
    /// What every call passes, wherever it leads, and what it holds until its answer was taken.
    fn enter(&self, request: &Request) -> Result<Arc<Untaken>, Problem> {
        let config = self.world.config();
        access::guard(request, config.api.clients.is_empty(), !config.api.embed.is_empty())?;
        let known = access::holder(request.headers(), &config);
        let presence = request.extensions().get::<Arc<Presence>>();
        if let (Some(presence), Some(known)) = (presence, &known)
            && !presence.admit(known.key())
        {
            let detail = "this client has as many connections as there are places for, and all of them are in use";
            return Err(Problem::new(ProblemCode::NodeFull, detail).retry_after(problem::RETRY_SOON));
        }
        let reads = [Method::GET, Method::HEAD].contains(request.method());
        let purpose = if reads { Purpose::Reading } else { Purpose::Sending };
        let amount = limits::API_CALL_BYTES + head_bytes(request);
        let room = self.budget.room(&known.unwrap_or_else(Holder::nobody), purpose, amount);
        Ok(Untaken::new(room.ok_or_else(answers::full)?, presence.map(Presence::begin)))
    }
}

/// What a call's head takes in memory, about.
fn head_bytes(request: &Request) -> usize {
    const OF_LINE: usize = 96;
    let lines = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + OF_LINE);
    lines.sum::<usize>() + request.uri().path().len() + request.uri().query().map_or(0, str::len)
}

/// Counts a refused submit of this many sends.
fn refused(problem: &Problem, sends: usize) {
    counter!("egressd_sends_refused_total", "reason" => problem.code().label()).increment(sends.max(1) as u64);
}

/// Works on what changes something to its end: a caller that hangs up drops its call's future, and what is on disk by
/// then must still reach the schedule.
async fn in_full<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Result<T, Problem> {
    // Boxed, as it may have to move to a task.
    let done = InFull(Some(AssertUnwindSafe(work).catch_unwind().boxed())).await;
    done.map_err(|_| {
        tracing::error!("a call ended in a defect: the panic is told above");
        Problem::new(ProblemCode::Store, "the call ended in a defect of this service; its log says more")
            .status(StatusCode::INTERNAL_SERVER_ERROR)
    })
}

/// Worked on by whoever waits for it, and by a task of its own once nobody does: nearly all callers wait, and a task for
/// each of their calls would wake another thread.
struct InFull<T: Send + 'static>(Option<BoxFuture<'static, T>>);

impl<T: Send + 'static> Future for InFull<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let Some(work) = &mut self.0 else { return Poll::Pending };
        let done = ready!(work.as_mut().poll(context));
        self.0 = None;
        Poll::Ready(done)
    }
}

impl<T: Send + 'static> Drop for InFull<T> {
    fn drop(&mut self) {
        if let Some(work) = self.0.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(work);
        }
    }
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    json_sized(status, value, 1024)
}

/// `size` is a guess at the answer's bytes, so that it need not grow often.
fn json_sized(status: StatusCode, value: &impl Serialize, size: usize) -> Response {
    let mut body = Vec::with_capacity(size);
    if let Err(error) = serde_json::to_writer(&mut body, value) {
        return unwritten(&error).into_response();
    }
    answered(status, body.into())
}

/// Views have string keys and finite numbers only, so this cannot be reached.
fn unwritten(error: &serde_json::Error) -> Problem {
    tracing::error!(%error, "an answer could not be written as JSON");
    Problem::new(ProblemCode::Store, "the answer could not be written")
}

fn answered(status: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests;
