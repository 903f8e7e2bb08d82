//! `/v1/batches/{id}`: the events that one upload carries, and what came of each try.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use http::StatusCode;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::access::{Caller, Need};
use super::problem::{Problem, ProblemView};
use super::view::{AttemptView, Shown, Sight};
use super::{Shared, json, openapi, query};
use crate::batcher::Standing;
use crate::policy::{Destination, Host, Scheme};
use crate::record::{Batch, BatchId, BatchState, Finished, Record, ShownRequest, ShownTo, Unfinished};
use crate::redact::{Redactor, Visible};
use crate::send::{Context, Place, Spelling};

/// Where a batch goes.
#[derive(Serialize, ToSchema)]
#[schema(as = BatchDestination)]
struct DestinationView<'a> {
    /// One of the two is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    s3: Option<BucketView<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    sql: Option<TableView<'a>>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = BatchTable)]
struct TableView<'a> {
    table: &'a str,
}

#[derive(Serialize, ToSchema)]
#[schema(as = BatchBucket)]
struct BucketView<'a> {
    bucket: &'a str,
    prefix: &'a str,
    /// Of the object; `null` while events are added.
    #[schema(required)]
    key: Option<String>,
}

/// A batch of events.
#[derive(Serialize, ToSchema)]
#[schema(as = Batch)]
struct BatchView<'a> {
    #[schema(value_type = String, pattern = "^[0-9a-f]{64}$")]
    id: Shown<BatchId>,
    tenant: &'a str,
    #[schema(schema_with = openapi::batch_state)]
    state: &'static str,
    /// That of its sends; `null`: it has none yet.
    #[schema(schema_with = openapi::outcome_or_null, required)]
    outcome: Option<&'static str>,
    destination: DestinationView<'a>,
    /// How many events it holds.
    sends: usize,
    /// Those of them that were refused while it was not: each has an end of its own.
    refused: usize,
    /// Of their payloads, before they are compressed.
    bytes: u64,
    #[schema(value_type = String, format = DateTime)]
    opened_at: Shown<Timestamp>,
    /// When it closes, or has closed.
    #[schema(value_type = String, format = DateTime)]
    closes_at: Shown<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime, required)]
    finished_at: Option<Shown<Timestamp>>,
    /// How many tries there were.
    tried: u32,
    /// The first two of them and the last eight, in order, each with 4 KiB of its answer's body.
    attempts: Vec<AttemptView<'a>>,
}

impl<'a> BatchView<'a> {
    fn new(batch: &'a Batch, sends: usize, attempts: &'a [Visible], sight: Sight) -> Self {
        let is_closed = batch.state != BatchState::Gathering;
        let destination = match &batch.place {
            Place::S3 { bucket, prefix } => {
                let key = is_closed.then(|| crate::deliver::s3::key(prefix, batch.closes_at, batch.id));
                DestinationView { s3: Some(BucketView { bucket, prefix, key }), sql: None }
            }
            Place::Sql { table } => DestinationView { s3: None, sql: Some(TableView { table }) },
        };
        let ended = batch.ended.as_ref();
        Self {
            id: Shown(batch.id),
            tenant: batch.tenant.as_str(),
            state: batch.state.label(),
            outcome: ended.map(|ended| ended.ended.outcome.label()),
            destination,
            sends,
            refused: batch.left_out.iter().map(|left_out| left_out.sends.len()).sum(),
            bytes: batch.bytes,
            opened_at: Shown(batch.opened_at),
            closes_at: Shown(batch.closes_at),
            finished_at: ended.map(|ended| Shown(ended.finished_at)),
            tried: batch.tried,
            attempts: attempts.iter().map(|attempt| AttemptView::new(attempt, sight)).collect(),
        }
    }
}

const NOWHERE: Destination = Destination { scheme: Scheme::Https, host: Host::Address(UNSPECIFIED), port: 0 };
const UNSPECIFIED: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// A try as the record of a send would tell it.
fn attempt(batch: &Batch, finished: Finished, redactor: &Redactor) -> Visible {
    let request = ShownRequest {
        // What it was connected to stands in the connection, and nobody looks for it here.
        to: ShownTo::Event { place: batch.place.clone(), way: NOWHERE },
        headers: Vec::new(),
        spelling: Spelling::default(),
        dropped_headers: Vec::new(),
        body: None,
    };
    let mut record = Record::from(Unfinished {
        id: finished.id,
        tenant: batch.tenant.clone(),
        context: Context::default(),
        index: None,
        request,
        resend_of: None,
        node: String::new(),
        created_at: batch.opened_at,
        released_at: Some(batch.closes_at),
        started_at: finished.started_at,
        timings: finished.timings.clone(),
    });
    record.end(finished);
    redactor.visible(record)
}

/// One batch: where it goes, how much it holds, and every try with its source, its phases and its answer.
#[utoipa::path(
    get, path = "/v1/batches/{id}", operation_id = "read_batch", tag = "sends",
    params(
        openapi::Tenant,
        ("id" = String, Path, description = "The batch's id, as its sends' records have it"),
    ),
    responses(
        (status = 200, description = "The batch", body = BatchView<'static>),
        (status = 400, body = ProblemView<'static>, content_type = "application/problem+json", description = "A parameter is not right"),
        (status = 401, body = ProblemView<'static>, content_type = "application/problem+json", description = "No valid token"),
        (status = 403, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not allowed"),
        (status = 404, body = ProblemView<'static>, content_type = "application/problem+json", description = "No such batch"),
        (status = 503, body = ProblemView<'static>, content_type = "application/problem+json", description = "The store cannot read"),
    ),
)]
pub(super) async fn one(
    State(api): State<Arc<Shared>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let caller = Caller::admit(request.headers(), &api.world.config(), Need::Read)?;
    let tenants = caller.tenants(request.headers())?;
    query::none(request.uri().query())?;
    let missing = || Problem::not_found("batch");
    let Path(id) = path.map_err(|_| missing())?;
    let id: BatchId = id.parse().map_err(|_| missing())?;
    let reach = tenants.clone().reach();
    let standing = api.intake.batch(id).filter(|standing| reach.takes_in(&standing.batch.tenant));
    let Standing { mut batch, sends } = match standing {
        Some(standing) => standing,
        None => {
            match api.store.batch(reach.clone(), id).await? {
                Some(batch) => Standing { sends: batch.sends.len(), batch },
                // Another node may gather it.
                None => {
                    let (batch, sends) = api.store.gathering(reach, id).await?.ok_or_else(missing)?;
                    Standing { batch, sends: usize::try_from(sends).unwrap_or(usize::MAX) }
                }
            }
        }
    };
    let redactor = api.intake.redactor();
    let attempts = std::mem::take(&mut batch.attempts);
    let attempts: Vec<Visible> = attempts.into_iter().map(|one| attempt(&batch, one, &redactor)).collect();
    let sight = Sight { operate: caller.operate, bodies: true };
    Ok(json(StatusCode::OK, &BatchView::new(&batch, sends, &attempts, sight)))
}
