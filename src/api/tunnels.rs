//! `/v1/tunnels`: the tunnels of the forward proxy, those that are open and those that were.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::access::{Caller, Need};
use super::problem::{Problem, ProblemView};
use super::view::{ResolvedView, Shown, Sight};
use super::{Shared, openapi, query};
use crate::policy::without_internal_addresses;
use crate::record::Tunnel;

/// A guess at one tunnel's JSON.
const TUNNEL_JSON_BYTES: usize = 1024;

/// One tunnel: where it led, from which address, and how it ended. Nothing of what it carried is kept.
#[derive(Serialize, ToSchema)]
#[schema(as = Tunnel)]
struct TunnelView<'a> {
    #[schema(value_type = String, format = "uuid")]
    id: Shown<Uuid>,
    tenant: &'a str,
    /// The node that it goes through.
    node: &'a str,
    /// `null`: it is open.
    #[schema(schema_with = openapi::tunnel_end_or_null, required)]
    end: Option<&'static str>,
    /// Why, where it was not opened or did not end by itself.
    #[schema(schema_with = openapi::code_or_null, required)]
    code: Option<&'static str>,
    #[schema(required)]
    message: Option<Cow<'a, str>>,
    /// Who asked for it.
    #[schema(required)]
    client_ip: Option<String>,
    #[schema(required)]
    client_port: Option<u16>,
    host: &'a str,
    port: u16,
    /// The server that a TLS client named.
    #[schema(required)]
    server_name: Option<&'a str>,
    /// The address bound; the public one for callers without the scope `operate`.
    #[schema(value_type = Option<String>, required)]
    source_ip: Option<IpAddr>,
    /// The published address that the other side sees.
    #[schema(value_type = Option<String>, required)]
    public_ip: Option<IpAddr>,
    #[schema(value_type = Option<String>, required)]
    remote_ip: Option<IpAddr>,
    #[schema(required)]
    remote_port: Option<u16>,
    resolved: Vec<ResolvedView>,
    /// In report mode: the code with which a host list would have refused it.
    #[schema(schema_with = openapi::code_or_null, required)]
    would_block: Option<&'static str>,
    /// Milliseconds; `null` where it did not come to that.
    #[schema(required)]
    dns_ms: Option<f64>,
    #[schema(required)]
    connect_ms: Option<f64>,
    /// Bytes that were given on, to where it leads and to the client; `null` while it is open, and of one that was
    /// `interrupted`.
    #[schema(required)]
    bytes_up: Option<u64>,
    #[schema(required)]
    bytes_down: Option<u64>,
    #[schema(value_type = String, format = DateTime)]
    begun_at: Shown<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime, required)]
    ended_at: Option<Shown<Timestamp>>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Tunnels)]
struct TunnelsView<'a> {
    tunnels: Vec<TunnelView<'a>>,
    /// The `cursor` of the next page; `null`: this is the last one.
    #[schema(required)]
    next: Option<&'a str>,
}

impl<'a> TunnelView<'a> {
    fn new(tunnel: &'a Tunnel, sight: Sight) -> Self {
        let ended = tunnel.ended.as_ref();
        let message = ended.map(|ended| &*ended.message).filter(|message| !message.is_empty());
        let milliseconds = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        let written = tunnel.host.parse::<IpAddr>().ok();
        // What stands elsewhere in the record is no news.
        let known = |ip: IpAddr| {
            written == Some(ip) || tunnel.public == Some(ip) || tunnel.remote.is_some_and(|remote| remote.ip() == ip)
        };
        Self {
            id: Shown(tunnel.id),
            tenant: tunnel.tenant.as_str(),
            node: &tunnel.node,
            end: ended.map(|ended| ended.end.label()),
            code: ended.and_then(|ended| ended.code).map(|code| code.label()),
            message: message.map(|message| match sight.operate {
                true => Cow::Borrowed(message),
                false => without_internal_addresses(message, known),
            }),
            client_ip: tunnel.client.as_ref().map(|client| client.ip().to_canonical().to_string()),
            client_port: tunnel.client.as_ref().map(SocketAddr::port),
            host: &tunnel.host,
            port: tunnel.port,
            server_name: tunnel.server_name.as_deref(),
            source_ip: if sight.operate { tunnel.source } else { tunnel.source.and(tunnel.public) },
            public_ip: tunnel.public,
            remote_ip: tunnel.remote.as_ref().map(SocketAddr::ip),
            remote_port: tunnel.remote.as_ref().map(SocketAddr::port),
            resolved: tunnel.resolved.iter().map(|&(ip, verdict)| ResolvedView::new(ip, verdict, sight)).collect(),
            would_block: tunnel.would_block.map(|code| code.label()),
            dns_ms: tunnel.dns.map(milliseconds),
            connect_ms: tunnel.connect.map(milliseconds),
            bytes_up: tunnel.carried().map(|(up, _)| up),
            bytes_down: tunnel.carried().map(|(_, down)| down),
            begun_at: Shown(tunnel.begun_at),
            ended_at: ended.map(|ended| Shown(ended.at)),
        }
    }
}

/// The tunnels of a tenant: those that are open, and those that were, of all nodes.
///
/// Those that are open come first, then the others, the newest first.
#[utoipa::path(
    get, path = "/v1/tunnels", operation_id = "list_tunnels", tag = "tunnels",
    params(openapi::Tenant, openapi::TunnelFilters, openapi::Paging),
    responses(
        (status = 200, description = "One page", body = TunnelsView<'static>),
        (status = 400, body = ProblemView<'static>, content_type = "application/problem+json", description = "A parameter is not right"),
        (status = 401, body = ProblemView<'static>, content_type = "application/problem+json", description = "No valid token"),
        (status = 403, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not allowed"),
        (status = 503, body = ProblemView<'static>, content_type = "application/problem+json", description = "The store cannot read, or too many answers are unread"),
    ),
)]
pub(super) async fn list(State(api): State<Arc<Shared>>, request: Request) -> Result<Response, Problem> {
    let caller = Caller::admit(request.headers(), &api.world.config(), Need::Read)?;
    let tenants = caller.tenants(request.headers())?;
    let (filter, page) = query::tunnels(request.uri().query(), tenants, caller.operate)?;
    let cursor = page.cursor.map(|next| api.places.list_cursor(&next)).transpose()?;
    let turn = api.turns.turn(&caller.holder(), page.limit * TUNNEL_JSON_BYTES).await?;
    let store = api.store.clone();
    let (turn, page) = turn.reading(async move { store.tunnels(filter, cursor, page.limit).await }).await?;
    let next = page.next.as_deref().map(|cursor| api.places.list(cursor)).transpose()?;
    let sight = Sight { operate: caller.operate, bodies: false };
    let bytes = page.tunnels.len() * TUNNEL_JSON_BYTES;
    let write = move || {
        let tunnels = page.tunnels.iter().map(|tunnel| TunnelView::new(tunnel, sight)).collect();
        turn.json(StatusCode::OK, &TunnelsView { tunnels, next: next.as_deref() })
    };
    api.intake.apart().on(bytes, &caller.holder().in_line(), write).await
}
