//! `/v1/executions`: sends that are held until the run they belong to has ended.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::access::{Caller, Need};
use super::problem::{Problem, ProblemView};
use super::sends::LISTED_JSON_BYTES;
use super::view::likely_bytes_of;
use super::view::{ExecutionView, ExecutionsView, Sight};
use super::{Shared, in_full, json, openapi, query};
use crate::limits;
use crate::record::FinishedBy;
use crate::send::ExecutionId;
use crate::store::Ending;

/// How many held sends the finish let go.
#[derive(Serialize, ToSchema)]
struct Released {
    released: u64,
}

/// How many held sends will never be sent.
#[derive(Serialize, ToSchema)]
struct Discarded {
    discarded: u64,
}

fn execution_id(path: Result<Path<String>, PathRejection>) -> Result<ExecutionId, Problem> {
    let most = limits::CONTEXT_CHARS_MAX;
    match path {
        Ok(Path(text)) if (1..=most).contains(&text.chars().count()) => Ok(ExecutionId::new(text)),
        _ => Err(Problem::shape(format!("the execution in the path must be UTF-8 of 1 to {most} characters"))),
    }
}

/// Submit sends that are held until their execution finishes.
#[utoipa::path(
    post, path = "/v1/executions/{execution}/sends", operation_id = "submit_held_sends", tag = "executions",
    params(openapi::Tenant, openapi::Idempotency, openapi::Prefer, openapi::Trace, ("execution" = String, Path, description = "The run's id", min_length = 1, max_length = 256)),
    request_body(content = inline(openapi::Submission), content_type = "application/json", examples(
        ("several" = (summary = "Two sends of a run", value = json!([{"method": "POST", "url": "https://hooks.example.com/a", "data": {"name": "Luke"}}, {"method": "POST", "url": "https://hooks.example.com/a", "data": {"name": "Leia"}}])))
    )),
    responses(
        (status = 202, description = "Accepted, on disk, and held", body = inline(openapi::SubmissionAnswer),
            headers(
                ("idempotency-replayed" = String, description = "`true`: an earlier call's sends"),
                ("preference-applied" = String, description = "`return=minimal`: as it was preferred"),
            )),
        (status = 400, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not of the right shape"),
        (status = 401, body = ProblemView<'static>, content_type = "application/problem+json", description = "No valid token"),
        (status = 403, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not allowed, or suspended"),
        (status = 409, body = ProblemView<'static>, content_type = "application/problem+json", description = "The execution has ended"),
        (status = 413, body = ProblemView<'static>, content_type = "application/problem+json", description = "Too large, or too many for one execution"),
        (status = 415, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not JSON"),
        (status = 422, body = ProblemView<'static>, content_type = "application/problem+json", description = "The key came with another body"),
        (status = 429, body = ProblemView<'static>, content_type = "application/problem+json", description = "The tenant's queue is full"),
        (status = 503, body = ProblemView<'static>, content_type = "application/problem+json", description = "The node is full, draining, or its store cannot write"),
    ),
)]
pub(super) async fn submit(
    State(api): State<Arc<Shared>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    match execution_id(path) {
        Ok(execution) => {
            let scope = format!("/v1/executions/{execution}/sends");
            api.accept(Some(execution), scope, request).await
        }
        Err(problem) => {
            super::refused(&problem, 1);
            problem.into_response()
        }
    }
}

/// Release the held sends. A second call answers the same.
#[utoipa::path(
    post, path = "/v1/executions/{execution}/finish", operation_id = "finish_execution", tag = "executions",
    params(openapi::Tenant, ("execution" = String, Path, description = "The run's id", min_length = 1, max_length = 256)),
    responses(
        (status = 200, description = "Released; durable", body = Released),
        (status = 400, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not of the right shape"),
        (status = 401, body = ProblemView<'static>, content_type = "application/problem+json", description = "No valid token"),
        (status = 403, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not allowed"),
        (status = 409, body = ProblemView<'static>, content_type = "application/problem+json", description = "It was discarded before"),
        (status = 415, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not JSON"),
        (status = 503, body = ProblemView<'static>, content_type = "application/problem+json", description = "The store cannot write"),
    ),
)]
pub(super) async fn finish(
    State(api): State<Arc<Shared>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let released = api.end(path, request, Ending::Finish(FinishedBy::Call)).await?;
    Ok(json(StatusCode::OK, &Released { released }))
}

/// The held sends are never sent; each ends `discarded`.
#[utoipa::path(
    post, path = "/v1/executions/{execution}/discard", operation_id = "discard_execution", tag = "executions",
    params(openapi::Tenant, ("execution" = String, Path, description = "The run's id", min_length = 1, max_length = 256)),
    responses(
        (status = 200, description = "Discarded; durable", body = Discarded),
        (status = 400, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not of the right shape"),
        (status = 401, body = ProblemView<'static>, content_type = "application/problem+json", description = "No valid token"),
        (status = 403, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not allowed"),
        (status = 409, body = ProblemView<'static>, content_type = "application/problem+json", description = "It was finished before"),
        (status = 415, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not JSON"),
        (status = 503, body = ProblemView<'static>, content_type = "application/problem+json", description = "The store cannot write"),
    ),
)]
pub(super) async fn discard(
    State(api): State<Arc<Shared>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let discarded = api.end(path, request, Ending::Discard).await?;
    Ok(json(StatusCode::OK, &Discarded { discarded }))
}

impl Shared {
    async fn end(
        &self,
        path: Result<Path<String>, PathRejection>,
        request: Request,
        ending: Ending,
    ) -> Result<u64, Problem> {
        let caller = Caller::admit(request.headers(), &self.world.config(), Need::Submit)?;
        let tenant = caller.tenant(request.headers())?;
        query::none(request.uri().query())?;
        let execution = execution_id(path)?;
        self.no_body(&caller, request).await?;
        let intake = self.intake.clone();
        Ok(in_full(async move { intake.end_execution(tenant, execution, ending).await }).await??)
    }
}

/// A guess at the JSON of one execution of a list.
const SUMMARY_JSON_BYTES: usize = 512;

/// The executions of a tenant, the newest first: when each began, whether it has ended, and how many of its sends were
/// delivered.
///
/// One is as new as its first send, or the oldest that is left where that is past its retention; one of which none is left
/// is not listed, and what is gone is not counted.
#[utoipa::path(
    get, path = "/v1/executions", operation_id = "list_executions", tag = "executions",
    params(openapi::Tenant, openapi::ExecutionFilters, openapi::Paging),
    responses(
        (status = 200, description = "One page", body = ExecutionsView<'static>),
        (status = 400, body = ProblemView<'static>, content_type = "application/problem+json", description = "A parameter is not right"),
        (status = 401, body = ProblemView<'static>, content_type = "application/problem+json", description = "No valid token"),
        (status = 403, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not allowed"),
        (status = 503, body = ProblemView<'static>, content_type = "application/problem+json", description = "The store cannot read, or too many answers are unread"),
    ),
)]
pub(super) async fn list(State(api): State<Arc<Shared>>, request: Request) -> Result<Response, Problem> {
    let caller = Caller::admit(request.headers(), &api.world.config(), Need::Read)?;
    let tenants = caller.tenants(request.headers())?;
    let (filter, page) = query::executions(request.uri().query(), tenants)?;
    let cursor = page.cursor.map(|next| api.places.list_cursor(&next)).transpose()?;
    let turn = api.turns.turn(&caller.holder(), page.limit * SUMMARY_JSON_BYTES).await?;
    let store = api.store.clone();
    let (turn, page) = turn.reading(async move { store.executions(filter, cursor, page.limit).await }).await?;
    let next = page.next.as_deref().map(|cursor| api.places.list(cursor)).transpose()?;
    let bytes = page.executions.len() * SUMMARY_JSON_BYTES;
    let write = move || turn.json(StatusCode::OK, &ExecutionsView::new(&page, next.as_deref()));
    api.intake.apart().on(bytes, &caller.holder().in_line(), write).await
}

/// One execution: its state, its counts, and its sends in call order.
#[utoipa::path(
    get, path = "/v1/executions/{execution}", operation_id = "read_execution", tag = "executions",
    params(openapi::Tenant, openapi::Paging, ("execution" = String, Path, description = "The run's id", min_length = 1, max_length = 256)),
    responses(
        (status = 200, description = "The execution", body = ExecutionView<'static>),
        (status = 400, body = ProblemView<'static>, content_type = "application/problem+json", description = "A parameter is not right"),
        (status = 401, body = ProblemView<'static>, content_type = "application/problem+json", description = "No valid token"),
        (status = 403, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not allowed"),
        (status = 404, body = ProblemView<'static>, content_type = "application/problem+json", description = "No such execution"),
        (status = 503, body = ProblemView<'static>, content_type = "application/problem+json", description = "The store cannot read, or too many answers are unread"),
    ),
)]
pub(super) async fn one(
    State(api): State<Arc<Shared>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let caller = Caller::admit(request.headers(), &api.world.config(), Need::Read)?;
    let tenant = caller.tenant(request.headers())?;
    let page = query::page(request.uri().query())?;
    let execution = execution_id(path)?;
    let cursor = page.cursor.map(|next| api.places.list_cursor(&next)).transpose()?;
    let turn = api.turns.turn(&caller.holder(), page.limit * LISTED_JSON_BYTES).await?;
    let store = api.store.clone();
    let read = async move { store.execution(tenant, execution, cursor, page.limit).await };
    let (turn, found) = turn.reading(read).await?;
    let mut found = found.ok_or_else(|| Problem::not_found("execution"))?;
    found.next = found.next.map(|cursor| api.places.list(&cursor)).transpose()?;
    let sight = Sight { operate: caller.operate, bodies: false };
    let bytes = likely_bytes_of(&found.sends);
    let redactor = api.intake.redactor();
    found.sends.iter_mut().for_each(|record| api.intake.name_batch(record));
    let write = move || {
        let sends: Vec<_> = std::mem::take(&mut found.sends).into_iter().map(|send| redactor.visible(send)).collect();
        turn.json(StatusCode::OK, &ExecutionView::new(&found, &sends, sight))
    };
    api.intake.apart().on(bytes, &caller.holder().in_line(), write).await
}
