//! `/v1/stats`: how sends ended over time, by outcome, host, tenant or source.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::access::{Caller, Need};
use super::problem::{Problem, ProblemView};
use super::view::Shown;
use super::{Shared, openapi, query};
use crate::clock;
use crate::limits::{STATS_GROUPS_BY_COUNT, STATS_GROUPS_BY_LOSS};
use crate::store::stats::{Figures, Stats, StatsAsked};

/// A guess at the JSON of one bucket.
const BUCKET_JSON_BYTES: usize = 160;
const GROUPS: usize = STATS_GROUPS_BY_COUNT + STATS_GROUPS_BY_LOSS + 1;

/// Milliseconds from a delivery's start to its end, within a step of the list 1, 1.5, 2, 3, 5, 7, 10 ….
#[derive(Serialize, ToSchema)]
#[schema(as = Percentiles)]
struct PercentilesView {
    p50: f64,
    p95: f64,
    p99: f64,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Figures)]
struct FiguresView {
    /// Sends that ended.
    count: u64,
    delivered: u64,
    /// The share of them that was delivered; null where none ended.
    #[schema(required)]
    success_rate: Option<f64>,
    /// Of those that were begun and were seen to end; null where there are none.
    #[schema(required)]
    latency_ms: Option<PercentilesView>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = StatsBucket)]
struct BucketView {
    #[schema(value_type = String, format = DateTime)]
    at: Shown<Timestamp>,
    #[serde(flatten)]
    figures: FiguresView,
}

/// Sends that have something in common.
#[derive(Serialize, ToSchema)]
#[schema(as = StatsGroup)]
struct GroupView<'a> {
    /// Null: all that no other group has.
    #[schema(required)]
    name: Option<&'a str>,
    #[serde(flatten)]
    figures: FiguresView,
    /// Those in which any ended, oldest first.
    buckets: Vec<BucketView>,
}

/// How sends ended.
#[derive(Serialize, ToSchema)]
#[schema(as = Stats)]
struct StatsView<'a> {
    /// When the first bucket begins.
    #[schema(value_type = String, format = DateTime)]
    since: Shown<Timestamp>,
    /// When the last one ends.
    #[schema(value_type = String, format = DateTime)]
    until: Shown<Timestamp>,
    #[schema(schema_with = openapi::bucket)]
    bucket: &'static str,
    #[schema(schema_with = openapi::by)]
    by: &'static str,
    total: FiguresView,
    groups: Vec<GroupView<'a>>,
}

impl FiguresView {
    fn new(figures: &Figures) -> Self {
        let rounded = |share| figures.percentile(share).map(|milliseconds| (milliseconds * 10.0).round() / 10.0);
        let percentiles = || Some(PercentilesView { p50: rounded(0.5)?, p95: rounded(0.95)?, p99: rounded(0.99)? });
        #[allow(clippy::cast_precision_loss, reason = "a share of a few digits")]
        let rate = |count: u64| (figures.delivered as f64 / count as f64 * 10_000.0).round() / 10_000.0;
        Self {
            count: figures.count,
            delivered: figures.delivered,
            success_rate: (figures.count > 0).then(|| rate(figures.count)),
            latency_ms: percentiles(),
        }
    }
}

impl<'a> StatsView<'a> {
    fn new(asked: &StatsAsked, bucket: &'static str, stats: &'a Stats) -> Self {
        let start = |slot: i64| Shown(StatsAsked::start_of(slot));
        let groups = stats.groups.iter().map(|group| GroupView {
            name: group.name.as_deref(),
            figures: FiguresView::new(&group.all),
            buckets: group
                .buckets
                .iter()
                .map(|(&slot, figures)| BucketView { at: start(slot), figures: FiguresView::new(figures) })
                .collect(),
        });
        Self {
            since: start(asked.since),
            until: start(asked.until),
            bucket,
            by: asked.by.label(),
            total: FiguresView::new(&stats.all),
            groups: groups.collect(),
        }
    }
}

/// How sends ended over time: counts, success rate and latency by outcome, host, tenant or source, as far back as records
/// are kept.
///
/// The twenty groups with most sends are told, and beside them the ten of which most were not delivered; the others are one
/// group without a name. Of hosts, at most 1,000 of a tenant are told apart in five minutes; where
/// there are too many for a store, those with fewest sends of the tenants with most are not.
#[utoipa::path(
    get, path = "/v1/stats", operation_id = "read_stats", tag = "sends",
    params(openapi::Tenant, openapi::StatsParameters),
    responses(
        (status = 200, description = "In whole buckets", body = StatsView<'static>),
        (status = 400, body = ProblemView<'static>, content_type = "application/problem+json", description = "A parameter is not right"),
        (status = 401, body = ProblemView<'static>, content_type = "application/problem+json", description = "No valid token"),
        (status = 403, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not allowed"),
        (status = 503, body = ProblemView<'static>, content_type = "application/problem+json", description = "The store cannot read, or too many answers are unread"),
    ),
)]
pub(super) async fn read(State(api): State<Arc<Shared>>, request: Request) -> Result<Response, Problem> {
    let caller = Caller::admit(request.headers(), &api.world.config(), Need::Read)?;
    let tenants = caller.tenants(request.headers())?;
    let (asked, bucket) = query::stats(request.uri().query(), tenants, clock::wall())?;
    let buckets = usize::try_from((asked.until - asked.since) / asked.bucket).unwrap_or_default();
    let likely = buckets * GROUPS * BUCKET_JSON_BYTES;
    let turn = api.turns.turn(&caller.holder(), likely).await?;
    let (store, of) = (api.store.clone(), asked.clone());
    let (turn, stats) = turn.reading(async move { store.stats(of).await }).await?;
    let told: usize = stats.groups.iter().map(|group| group.buckets.len() + 2).sum();
    let write = move || turn.json(StatusCode::OK, &StatsView::new(&asked, bucket, &stats));
    api.intake.apart().on(told * BUCKET_JSON_BYTES, &caller.holder().in_line(), write).await
}
