//! `POST /v1/explain`: what the policy would say of a send. `egressd explain --json` prints the same.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::access::{Caller, Need};
use super::problem::{Problem, ProblemView};
use super::sends::bounds;
use super::view::{ResolvedView, Sight};
use super::{Shared, json, openapi, query};
use crate::explain::Explanation;
use crate::outcome::{Ended, Outcome};
use crate::policy::{Asker, Destination, Purpose, is_internal, without_internal_addresses, written_address};
use crate::send::parse::{self, Outline};
use crate::send::{Explained, Kind, Target, TenantId};

/// What would become of a send, or of a tunnel.
#[derive(Serialize, ToSchema)]
#[schema(as = Explanation)]
pub struct ExplanationView<'a> {
    tenant: &'a str,
    /// `null`, as is `url`, of a message.
    #[schema(schema_with = openapi::explained_or_null, required)]
    method: Option<&'static str>,
    #[schema(required)]
    url: Option<&'a str>,
    /// `allowed`: it would be tried; `blocked`: by the policy; `failed`: no address or no source for it.
    #[schema(schema_with = openapi::explained_verdict)]
    verdict: &'static str,
    /// The rule that decided.
    #[schema(schema_with = openapi::code_or_null, required)]
    code: Option<&'static str>,
    #[schema(required)]
    message: Option<Cow<'a, str>>,
    /// In report mode: the code with which a host list would have blocked it.
    #[schema(schema_with = openapi::code_or_null, required)]
    would_block: Option<&'static str>,
    resolved: Vec<ResolvedView>,
    /// The source that would be used; the public address for callers without the scope `operate`.
    #[schema(value_type = Option<String>, required)]
    source_ip: Option<IpAddr>,
    #[schema(value_type = Option<String>, required)]
    public_ip: Option<IpAddr>,
}

impl<'a> ExplanationView<'a> {
    pub fn new(tenant: &'a TenantId, explanation: &'a Explanation, sight: Sight) -> Self {
        let refusal = explanation.refusal.as_ref();
        let verdict = match refusal.map(|refusal| Ended::because(refusal.clone()).outcome) {
            None => "allowed",
            Some(Outcome::Blocked) => "blocked",
            Some(_) => "failed",
        };
        let resolved = explanation.resolved.iter();
        let source = explanation.source.as_ref();
        Self {
            tenant: tenant.as_str(),
            method: explanation.request.as_ref().map(|(method, _)| method.label()),
            url: explanation.request.as_ref().map(|(_, url)| url.as_str()),
            verdict,
            code: refusal.map(|refusal| refusal.code.label()),
            message: refusal.map(|refusal| match sight.operate {
                true => Cow::Borrowed(&*refusal.message),
                // What the author wrote is no news.
                false => {
                    let written = explanation.request.as_ref().and_then(|(_, url)| written_address(url));
                    without_internal_addresses(&refusal.message, |ip| written == Some(ip))
                }
            }),
            would_block: explanation.would_block.map(|code| code.label()),
            resolved: resolved
                .map(|&(ip, verdict)| {
                    // Where a message goes is the operator's choice.
                    let shows = |ip: &IpAddr| sight.operate || explanation.request.is_some() || !is_internal(*ip);
                    ResolvedView::new(ip, verdict, sight).but(shows)
                })
                .collect(),
            source_ip: source.map(|source| if sight.operate { source.bind() } else { source.public() }),
            public_ip: source.map(|source| source.public()),
        }
    }
}

/// What is asked about, as it was read.
enum Asked {
    Target(Explained, Target),
    Message,
    /// Of this kind, connected to this.
    Event(Kind, Destination),
}

/// Say what would become of a send (of a request by its method and URL, of a message, or of an event), or of a tunnel (`CONNECT` to a
/// `host:port`). It counts as a try; nothing is sent.
#[utoipa::path(
    post, path = "/v1/explain", operation_id = "explain", tag = "policy",
    params(openapi::Tenant),
    request_body(content = openapi::ExplainBody, content_type = "application/json", example = json!({"method": "POST", "url": "https://hooks.example.com/orders"})),
    responses(
        (status = 200, description = "The verdict", body = ExplanationView<'static>),
        (status = 400, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not of the right shape"),
        (status = 401, body = ProblemView<'static>, content_type = "application/problem+json", description = "No valid token"),
        (status = 403, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not allowed"),
        (status = 413, body = ProblemView<'static>, content_type = "application/problem+json", description = "Too large"),
        (status = 415, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not JSON"),
    ),
)]
pub(super) async fn explain(State(api): State<Arc<Shared>>, request: Request) -> Result<Response, Problem> {
    let caller = Caller::admit(request.headers(), &api.world.config(), Need::Submit)?;
    let tenant = caller.tenant(request.headers())?;
    query::none(request.uri().query())?;
    let received = api.body(&caller, request).await?;
    let (redact_key, of) = (api.redact_key.clone(), tenant.clone());
    let bounds = bounds(&api.world.config(), &tenant);
    let relay = bounds.mail.relay().cloned().ok();
    let read = move |bytes: &Bytes| {
        Ok(match parse::outline(bytes, &bounds)? {
            Outline::Url(method, url) => Asked::Target(method, parse::target_of(method, &url, redact_key.of(&of))),
            Outline::Email => Asked::Message,
            Outline::Event(event) => Asked::Event(event.place().kind(), event.way().clone()),
        })
    };
    let (request, _) = api.read(received, &tenant, read).await?;
    let asker = Asker { tenant: &tenant, workflow: None };
    let explanation = match (request, relay) {
        (Asked::Target(method, target), _) => api.explainer.of(asker, method, target).await,
        (Asked::Event(kind, to), _) => {
            let purpose = if kind == Kind::Sql { Purpose::Warehouse } else { Purpose::Bucket };
            api.explainer.of_endpoint(asker, &to, kind, purpose).await
        }
        (Asked::Message, Some(relay)) => api.explainer.of_endpoint(asker, &relay, Kind::Email, Purpose::Relay).await,
        (Asked::Message, None) => return Err(Problem::shape("mail is not set up for this tenant")),
    };
    let sight = Sight { operate: caller.operate, bodies: false };
    Ok(json(StatusCode::OK, &ExplanationView::new(&tenant, &explanation, sight)))
}
