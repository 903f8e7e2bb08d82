//! The nodes of a tier, as operators look at them: who is there, how fresh its lease is, and what it has taken on. Every
//! node tells the same, a moment late of the others. One that is alone tells of itself.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::access::{Caller, Need, Tenants};
use super::problem::{Problem, ProblemView};
use super::{Shared, json, openapi, query};
use crate::store::NodeLoad;

/// One live node.
#[derive(Serialize, ToSchema)]
#[schema(as = Node)]
struct NodeView {
    node: String,
    version: String,
    /// Whether it is the one that answers.
    this: bool,
    /// Milliseconds since its lease was last renewed; null where it is alone on its store.
    #[schema(required)]
    lease_age_ms: Option<u64>,
    /// How long the lease is. A node whose lease is over begins nothing, and is soon declared dead.
    #[schema(required)]
    lease_ms: Option<u64>,
    /// The public addresses that it sends from, and nobody else.
    #[schema(value_type = Vec<String>)]
    sources: Vec<IpAddr>,
    /// Sends that it has taken from the queue and not begun; null for who sees one tenant alone.
    #[schema(required)]
    queued: Option<u64>,
    /// Deliveries under way; null for who sees one tenant alone.
    #[schema(required)]
    in_flight: Option<u64>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Nodes)]
struct NodesView {
    /// Sends of unfinished executions, of all nodes: until their release they are no node's.
    held: u64,
    /// Sends that wait, of all nodes, with those that one has taken.
    queued: u64,
    /// By name.
    nodes: Vec<NodeView>,
}

/// The nodes that share this store, with their leases, sources and load.
#[utoipa::path(
    get, path = "/v1/nodes", operation_id = "list_nodes", tag = "operators",
    params(openapi::Tenant),
    responses(
        (status = 200, description = "All that live", body = NodesView),
        (status = 400, body = ProblemView<'static>, content_type = "application/problem+json", description = "A parameter is not right"),
        (status = 401, body = ProblemView<'static>, content_type = "application/problem+json", description = "No valid token"),
        (status = 403, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not allowed"),
        (status = 503, body = ProblemView<'static>, content_type = "application/problem+json", description = "The store cannot read"),
    ),
)]
pub(super) async fn list(State(api): State<Arc<Shared>>, request: Request) -> Result<Response, Problem> {
    let config = api.world.config();
    let caller = Caller::admit(request.headers(), &config, Need::Operate)?;
    let reach = caller.reach(request.headers())?;
    query::none(request.uri().query())?;
    // What all tenants have together is not for who may see one.
    let sees_all = reach == Tenants::All;
    let waiting = match &reach {
        Tenants::All => api.store.waiting_in_all(),
        Tenants::One(tenant) => api.store.waiting_of(tenant),
    };
    let own = api.intake.load();
    let seen = api.store.nodes().await?;
    let view = |node: String, version: String, lease: Option<(u64, u64)>, sources, load: NodeLoad| NodeView {
        this: node == config.node,
        node,
        version,
        lease_age_ms: lease.map(|(age, _)| age),
        lease_ms: lease.map(|(_, whole)| whole),
        sources,
        queued: sees_all.then_some(load.queued),
        in_flight: sees_all.then_some(load.in_flight),
    };
    let milliseconds = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let mut nodes: Vec<NodeView> = seen
        .into_iter()
        .map(|node| {
            let lease = (milliseconds(node.renewed_ago), milliseconds(node.lease));
            let load = if node.name == config.node { own } else { node.load };
            view(node.name, node.version, Some(lease), node.sources, load)
        })
        .collect();
    if nodes.is_empty() {
        let sources = config.egress.sources.iter().map(|source| source.public).collect();
        nodes.push(view(config.node.clone(), env!("CARGO_PKG_VERSION").to_owned(), None, sources, own));
    }
    Ok(json(StatusCode::OK, &NodesView { held: waiting.held, queued: waiting.queued, nodes }))
}
