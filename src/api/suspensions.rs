//! What operators do: stopping senders and hosts for abuse, and seeing who is noisy.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::access::{Caller, Need, Tenants};
use super::problem::{BodyProblem, Problem, ProblemCode, ProblemView, RETRY_SOON};
use super::sends::SHOWN_JSON_BYTES;
use super::view::Shown;
use super::{Shared, in_full, json, openapi, query};
use crate::clock;
use crate::limits;
use crate::outcome::Outcome;
use crate::policy::StoppedHost;
use crate::send::parse;
use crate::send::{SendId, TenantId};
use crate::store::{Filter, Reach, Suspension, SuspensionScope};

/// Who is stopped, why, by whom and since when; and when and by whom it was lifted.
#[derive(Serialize, ToSchema)]
#[schema(as = Suspension)]
struct SuspensionView<'a> {
    #[schema(value_type = String, format = "uuid")]
    id: Shown<SendId>,
    #[schema(required)]
    tenant: Option<&'a str>,
    #[schema(required)]
    workflow: Option<&'a str>,
    #[schema(required)]
    host: Option<&'a str>,
    reason: &'a str,
    /// The API client that made it.
    by: &'a str,
    #[schema(value_type = String, format = DateTime)]
    at: Shown<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime, required)]
    lifted_at: Option<Shown<Timestamp>>,
    #[schema(required)]
    lifted_by: Option<&'a str>,
    /// What it stops, in words.
    covers: String,
}

/// A suspension just made, and what it came upon.
#[derive(Serialize, ToSchema)]
#[schema(as = SuspensionMade)]
struct MadeView<'a> {
    #[serde(flatten)]
    suspension: SuspensionView<'a>,
    /// Sends that were waiting, queued or held, and have ended `blocked` by it.
    hit: u64,
    /// Says so where no send of this tenant or workflow is on record: its name may be misspelt.
    #[schema(required)]
    warning: Option<String>,
}

impl<'a> SuspensionView<'a> {
    fn new(suspension: &'a Suspension) -> Self {
        let (tenant, workflow, host) = match &suspension.scope {
            SuspensionScope::Tenant { tenant, workflow } => (Some(tenant.as_str()), workflow.as_deref(), None),
            SuspensionScope::Host { host } => (None, None, Some(host.as_str())),
        };
        let lifted = suspension.lifted.as_ref();
        Self {
            id: Shown(suspension.id),
            tenant,
            workflow,
            host,
            reason: &suspension.reason,
            by: &suspension.by,
            at: Shown(suspension.at),
            lifted_at: lifted.map(|(at, _)| Shown(*at)),
            lifted_by: lifted.map(|(_, by)| by.as_str()),
            covers: covers(&suspension.scope),
        }
    }
}

fn covers(scope: &SuspensionScope) -> String {
    match scope {
        SuspensionScope::Tenant { tenant, workflow: None } => format!("every send of tenant {tenant}"),
        SuspensionScope::Tenant { tenant, workflow: Some(workflow) } => {
            format!("every send of tenant {tenant} whose context names workflow {workflow}")
        }
        SuspensionScope::Host { host } => match StoppedHost::parse(host) {
            Ok(stopped) => format!("every tenant's sends to {}", stopped.covers()),
            Err(_) => format!("every tenant's sends to {host}"),
        },
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = Suspensions)]
struct SuspensionsView<'a> {
    suspensions: Vec<SuspensionView<'a>>,
}

/// Those in force and those lifted, newest first.
#[utoipa::path(
    get, path = "/v1/suspensions", operation_id = "list_suspensions", tag = "operators",
    params(openapi::Tenant),
    responses(
        (status = 200, description = "All of them", body = SuspensionsView<'static>),
        (status = 400, body = ProblemView<'static>, content_type = "application/problem+json", description = "A parameter is not right"),
        (status = 401, body = ProblemView<'static>, content_type = "application/problem+json", description = "No valid token"),
        (status = 403, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not allowed"),
        (status = 503, body = ProblemView<'static>, content_type = "application/problem+json", description = "The store cannot read, or too many answers are unread"),
    ),
)]
pub(super) async fn list(State(api): State<Arc<Shared>>, request: Request) -> Result<Response, Problem> {
    let caller = Caller::admit(request.headers(), &api.world.config(), Need::Operate)?;
    let reach = caller.reach(request.headers())?;
    query::none(request.uri().query())?;
    let turn = api.turns.turn(&caller.holder(), SHOWN_JSON_BYTES).await?;
    let all = api.store.suspensions().await?;
    let bytes = all.iter().map(|one| SUSPENSION_JSON_BYTES + one.reason.len()).sum();
    let write = move || {
        let suspensions = all.iter().filter(|one| within(one, &reach)).map(SuspensionView::new).collect();
        turn.json(StatusCode::OK, &SuspensionsView { suspensions })
    };
    api.intake.apart().on(bytes, &caller.holder().in_line(), write).await
}

/// A guess at a suspension's JSON without its reason.
const SUSPENSION_JSON_BYTES: usize = 320;

/// Whether an operator of this reach may see and lift it.
fn within(suspension: &Suspension, reach: &Tenants) -> bool {
    match (reach, &suspension.scope) {
        (Tenants::All, _) => true,
        (Tenants::One(own), SuspensionScope::Tenant { tenant, .. }) => own == tenant,
        (Tenants::One(_), SuspensionScope::Host { .. }) => false,
    }
}

/// Stop a tenant, one workflow of it, or every tenant's sends to one host. Effective at once.
///
/// `host` is a name, `*.name` (every name under it, not itself), an address or a network. A name is spared under every
/// name whose chain of aliases (CNAME) leads to it, too; an address, under every name that resolves to it. The answer
/// says what the suspension covers, and how many waiting sends it ended.
#[utoipa::path(
    post, path = "/v1/suspensions", operation_id = "suspend", tag = "operators",
    params(openapi::Tenant),
    request_body(content = openapi::SuspendBody, content_type = "application/json", examples(
        ("host" = (value = json!({"host": "victim.example.com", "reason": "abuse report 4711"}))),
        ("tenant" = (value = json!({"tenant": "acme", "workflow": "scraper", "reason": "abuse report 4712"})))
    )),
    responses(
        (status = 201, description = "In force", body = MadeView<'static>),
        (status = 400, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not of the right shape"),
        (status = 401, body = ProblemView<'static>, content_type = "application/problem+json", description = "No valid token"),
        (status = 403, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not allowed"),
        (status = 413, body = ProblemView<'static>, content_type = "application/problem+json", description = "Too large"),
        (status = 415, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not JSON"),
        (status = 429, body = ProblemView<'static>, content_type = "application/problem+json", description = "This tenant has as many in force as it may"),
        (status = 503, body = ProblemView<'static>, content_type = "application/problem+json", description = "As many are in force as may be, or the store cannot write"),
    ),
)]
pub(super) async fn suspend(State(api): State<Arc<Shared>>, request: Request) -> Result<Response, Problem> {
    let caller = Caller::admit(request.headers(), &api.world.config(), Need::Operate)?;
    let reach = caller.reach(request.headers())?;
    query::none(request.uri().query())?;
    let received = api.body(&caller, request).await?;
    let texts = |bytes: &Bytes| parse::strings(bytes, &SUSPENSION_KEYS, limits::REASON_CHARS_MAX);
    let (texts, _) = api.read(received, &caller.holder().in_line(), texts).await?;
    let (scope, reason) = read(texts)?;
    let allowed = match (&reach, &scope) {
        (Tenants::All, _) => true,
        (Tenants::One(own), SuspensionScope::Tenant { tenant, .. }) => own == tenant,
        (Tenants::One(_), SuspensionScope::Host { .. }) => false,
    };
    if !allowed {
        let detail = "this concerns other tenants too, which this token may not touch";
        return Err(Problem::new(ProblemCode::Forbidden, detail));
    }
    let warning = api.never_seen(&scope).await?;
    let turn = api.intake.change_suspensions().await;
    api.room_for_suspension(&reach).await?;
    let (suspension, hit) =
        in_full(async move { api.intake.suspend(scope, reason, caller.name, turn).await }).await??;
    Ok(json(StatusCode::CREATED, &MadeView { suspension: SuspensionView::new(&suspension), hit, warning }))
}

impl Shared {
    /// A suspension that stops nobody looks like one that does: a name that no send bears is told.
    async fn never_seen(&self, scope: &SuspensionScope) -> Result<Option<String>, Problem> {
        let SuspensionScope::Tenant { tenant, workflow } = scope else { return Ok(None) };
        let mut filter = Filter::of(Reach::One(tenant.clone()));
        filter.workflow.clone_from(workflow);
        if !self.store.list(filter, None, 1).await?.sends.is_empty() {
            return Ok(None);
        }
        let whose = match workflow {
            None => format!("tenant {tenant}"),
            Some(workflow) => format!("workflow {workflow} of tenant {tenant}"),
        };
        Ok(Some(format!("no send of {whose} is on record: is that how its workflow nodes spell it? It is in force")))
    }

    /// Each one in force costs every send a look, and every change of any a walk over what waits.
    async fn room_for_suspension(&self, reach: &Tenants) -> Result<(), Problem> {
        let all = self.store.suspensions().await?;
        let in_force = all.iter().filter(|one| one.lifted.is_none());
        let (count, most) = match reach {
            Tenants::All => (in_force.count(), limits::SUSPENSIONS),
            Tenants::One(_) => (in_force.filter(|one| within(one, reach)).count(), limits::SUSPENSIONS_OF_TENANT),
        };
        if count < most {
            return Ok(());
        }
        let detail = format!("{count} suspensions are in force, which is as many as there may be: lift some");
        let code = if *reach == Tenants::All { ProblemCode::NodeFull } else { ProblemCode::TenantFull };
        Err(Problem::new(code, detail).retry_after(RETRY_SOON))
    }
}

const SUSPENSION_KEYS: [&str; 4] = ["tenant", "workflow", "host", "reason"];

/// `{tenant, workflow?, reason}` or `{host, reason}`.
fn read([tenant, workflow, host, reason]: [Option<String>; 4]) -> Result<(SuspensionScope, String), Problem> {
    let mut problems = Vec::new();
    let mut bad = |pointer: &str, detail: String| {
        problems.push(BodyProblem { pointer: pointer.to_owned(), detail, hint: None });
    };
    if reason.is_none() {
        bad("/reason", "is missing: say why, for whoever looks at it later".to_owned());
    }
    for (name, value, most) in
        [("/tenant", &tenant, limits::TENANT_CHARS_MAX), ("/workflow", &workflow, limits::CONTEXT_CHARS_MAX)]
    {
        if value.as_ref().is_some_and(|value| value.chars().count() > most) {
            bad(name, format!("must have 1 to {most} characters"));
        }
    }
    let stopped = match host.as_deref().map(StoppedHost::parse).transpose() {
        Ok(stopped) => stopped,
        Err(why) => {
            bad("/host", format!("must be a name, `*.name`, an address or a network, without scheme and port: {why}"));
            None
        }
    };
    match (&tenant, &host) {
        (Some(_), Some(_)) => bad("/host", "stands beside tenant: one suspension stops one of the two".to_owned()),
        (None, None) => bad("", "names neither tenant nor host: what is to be stopped?".to_owned()),
        (None, Some(_)) if workflow.is_some() => bad("/workflow", "goes with tenant, not with host".to_owned()),
        _ => {}
    }
    match (tenant, stopped) {
        _ if !problems.is_empty() => Err(bad_shape(problems)),
        (Some(tenant), _) => {
            Ok((SuspensionScope::Tenant { tenant: TenantId::new(tenant), workflow }, reason.unwrap_or_default()))
        }
        (None, stopped) => {
            let host = stopped.map(|host| host.to_string()).unwrap_or_default();
            Ok((SuspensionScope::Host { host }, reason.unwrap_or_default()))
        }
    }
}

fn bad_shape(problems: Vec<BodyProblem>) -> Problem {
    let details: Vec<String> =
        problems.iter().map(|problem| format!("{} {}", problem.pointer, problem.detail).trim().to_owned()).collect();
    Problem::shape(details.join("; ")).errors(problems)
}

/// Lift a suspension. It stays in the list, with who lifted it and when.
#[utoipa::path(
    delete, path = "/v1/suspensions/{id}", operation_id = "lift_suspension", tag = "operators",
    params(openapi::Tenant, ("id" = String, Path, description = "The suspension's id")),
    responses(
        (status = 204, description = "Lifted"),
        (status = 400, body = ProblemView<'static>, content_type = "application/problem+json", description = "A parameter is not right"),
        (status = 401, body = ProblemView<'static>, content_type = "application/problem+json", description = "No valid token"),
        (status = 403, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not allowed"),
        (status = 404, body = ProblemView<'static>, content_type = "application/problem+json", description = "No such suspension in force"),
        (status = 503, body = ProblemView<'static>, content_type = "application/problem+json", description = "The store cannot write"),
    ),
)]
pub(super) async fn lift(
    State(api): State<Arc<Shared>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let caller = Caller::admit(request.headers(), &api.world.config(), Need::Operate)?;
    let reach = caller.reach(request.headers())?;
    query::none(request.uri().query())?;
    api.no_body(&caller, request).await?;
    let missing = || Problem::not_found("suspension in force");
    let id: SendId = path.ok().and_then(|Path(text)| text.parse().ok()).ok_or_else(missing)?;
    if reach != Tenants::All {
        let all = api.store.suspensions().await?;
        if !all.iter().any(|one| one.id == id && within(one, &reach)) {
            return Err(missing());
        }
    }
    if in_full(async move { api.intake.lift(id, caller.name).await }).await?? {
        Ok(StatusCode::NO_CONTENT.into_response())
    } else {
        Err(missing())
    }
}

/// What one tenant has waiting and under way, and what came of its sends in the last hour.
#[derive(Serialize, ToSchema)]
#[schema(as = TenantLoad)]
struct TenantView<'a> {
    tenant: &'a str,
    held: u64,
    queued: u64,
    in_flight: u64,
    /// When the send that waits longest was released or accepted.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    oldest_queued: Option<Shown<Timestamp>>,
    /// Sends finished within the last hour, by outcome.
    #[schema(value_type = std::collections::HashMap<String, u64>)]
    finished: Finished<'a>,
}

/// Every outcome with its count, zero included.
struct Finished<'a>(Option<&'a std::collections::HashMap<Outcome, u64>>);

impl Serialize for Finished<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(Outcome::ALL.iter().map(|outcome| {
            let count = self.0.and_then(|counts| counts.get(outcome)).copied().unwrap_or(0);
            (outcome.label(), count)
        }))
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = Tenants)]
struct TenantsView<'a> {
    tenants: Vec<TenantView<'a>>,
}

/// Who is noisy: every tenant with something waiting, under way, or finished within the last hour.
#[utoipa::path(
    get, path = "/v1/tenants", operation_id = "list_tenants", tag = "operators",
    params(openapi::Tenant),
    responses(
        (status = 200, description = "By tenant", body = TenantsView<'static>),
        (status = 400, body = ProblemView<'static>, content_type = "application/problem+json", description = "A parameter is not right"),
        (status = 401, body = ProblemView<'static>, content_type = "application/problem+json", description = "No valid token"),
        (status = 403, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not allowed"),
        (status = 503, body = ProblemView<'static>, content_type = "application/problem+json", description = "The store cannot read, or too many answers are unread"),
    ),
)]
pub(super) async fn tenants(State(api): State<Arc<Shared>>, request: Request) -> Result<Response, Problem> {
    let caller = Caller::admit(request.headers(), &api.world.config(), Need::Operate)?;
    let reach = caller.reach(request.headers())?;
    query::none(request.uri().query())?;
    let turn = api.turns.turn(&caller.holder(), SHOWN_JSON_BYTES).await?;
    let finished = api.store.outcomes_of_the_hour(clock::wall()).await?;
    let waiting = api.intake.tenants(&reach.clone().reach());
    let mut views = BTreeMap::new();
    for tenant in finished.keys() {
        views.insert(tenant.clone(), None);
    }
    for (tenant, load) in waiting {
        views.insert(tenant, Some(load));
    }
    let seen = |tenant: &TenantId| match &reach {
        Tenants::All => true,
        Tenants::One(own) => own == tenant,
    };
    let tenants = views
        .iter()
        .filter(|(tenant, _)| seen(tenant))
        .map(|(tenant, load)| TenantView {
            tenant: tenant.as_str(),
            held: load.as_ref().map_or(0, |load| load.held),
            queued: load.as_ref().map_or(0, |load| load.queued),
            in_flight: load.as_ref().map_or(0, |load| load.in_flight),
            oldest_queued: load.as_ref().and_then(|load| load.oldest_queued).map(Shown),
            finished: Finished(finished.get(tenant)),
        })
        .collect();
    turn.json(StatusCode::OK, &TenantsView { tenants })
}
