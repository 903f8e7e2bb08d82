//! The addresses that sends leave from, as operators look at them: usable or not and why, how busy, how verified.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::access::{Caller, Need};
use super::problem::{Problem, ProblemView};
use super::{Shared, json, openapi, query};
use crate::clock;
use crate::send::Kind;

/// One configured source. Its dates stand in `/public-ips.json`.
#[derive(Serialize, ToSchema)]
#[schema(as = Source)]
struct SourceView<'a> {
    /// As the world sees it.
    #[schema(value_type = String)]
    public_ip: IpAddr,
    /// As this host has it.
    #[schema(value_type = String)]
    bind_ip: IpAddr,
    pool: &'a str,
    /// Whether new connections may leave from it now.
    usable: bool,
    /// Why it is not usable.
    #[schema(required)]
    reason: Option<String>,
    /// What the reflectors see: `unknown` while none is asked, `verified`, `unverified` while they cannot be
    /// reached, `drift` where they see another address.
    #[schema(schema_with = openapi::verified)]
    verified: &'static str,
    /// Deliveries under way from it.
    in_flight: u64,
    /// Ports in use towards its busiest peer, those in TIME_WAIT included, as a share of the system's port range.
    #[schema(minimum = 0)]
    ports_used_ratio: f64,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Sources)]
struct SourcesView<'a> {
    node: &'a str,
    /// The one budget of a delivery, in milliseconds.
    deadline_ms: u64,
    /// The one of a message; `null` where mail is not set up.
    #[schema(required)]
    email_deadline_ms: Option<u64>,
    /// In the order of the configuration.
    sources: Vec<SourceView<'a>>,
}

/// The addresses that this node's sends leave from, with their state.
#[utoipa::path(
    get, path = "/v1/sources", tag = "operators",
    params(openapi::Tenant),
    responses(
        (status = 200, description = "All that are configured", body = SourcesView<'static>),
        (status = 400, body = ProblemView<'static>, content_type = "application/problem+json", description = "A parameter is not right"),
        (status = 401, body = ProblemView<'static>, content_type = "application/problem+json", description = "No valid token"),
        (status = 403, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not allowed"),
    ),
)]
pub(super) async fn list(State(api): State<Arc<Shared>>, request: Request) -> Result<Response, Problem> {
    let settings = api.world.settings();
    let caller = Caller::admit(request.headers(), &settings.config, Need::Operate)?;
    // Sources are no tenant's; a header that names a foreign one is refused here as everywhere.
    caller.reach(request.headers())?;
    query::none(request.uri().query())?;
    let now = clock::wall();
    let all = settings.sources.all();
    let sources = all.iter().map(|source| {
        let reason = settings.sources.unusable(source, now);
        let load = api.deliverer.dialer().load(source);
        SourceView {
            public_ip: source.public(),
            bind_ip: source.bind(),
            pool: source.pool(),
            usable: reason.is_none(),
            reason,
            verified: settings.sources.verification(source).label(),
            in_flight: load.in_flight,
            ports_used_ratio: load.ports_used,
        }
    });
    let milliseconds = |kind| u64::try_from(settings.config.deadline_of(kind).as_millis()).unwrap_or(u64::MAX);
    let view = SourcesView {
        node: &settings.config.node,
        deadline_ms: milliseconds(Kind::Http),
        email_deadline_ms: settings.config.destinations.email.as_ref().map(|_| milliseconds(Kind::Email)),
        sources: sources.collect(),
    };
    Ok(json(StatusCode::OK, &view))
}
