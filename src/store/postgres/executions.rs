//! Executions, the newest first: each is found by its first send, and where that is gone with its day by the oldest that
//! is left: retention has noted it ([`sql::STAND_FOR_EXECUTIONS`]).

use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::read::{Stretches, failed};
use super::wait::state_of;
use super::{Shared, sql};
use crate::limits::LIST_LOOKED_AT_MAX;
use crate::record::{ExecutionState, ExecutionSummary};
use crate::send::{ExecutionId, TenantId};
use crate::store::{ExecutionFilter, ExecutionPage, Reach, StoreError, wire};

/// To count as many sends takes what it does to look at one.
const COUNTED_AS_ONE: usize = 16;

pub async fn list(
    shared: &Shared,
    filter: ExecutionFilter,
    cursor: Option<String>,
    limit: usize,
) -> Result<ExecutionPage, StoreError> {
    let mut page = ExecutionPage::default();
    let window = (filter.since, filter.until);
    let Some(mut stretches) = Stretches::of(shared, window, cursor).await? else { return Ok(page) };
    let (conditions, values) = conditions(&filter);
    let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|value| value.as_ref() as _).collect();
    let mut found: Vec<(Uuid, ExecutionSummary)> = Vec::new();
    let mut looked_at = 0;
    'walk: while let Some((from, to)) = stretches.next() {
        let most = limit - found.len() + 1;
        let columns = "s.id, s.tenant, s.execution, s.workflow, s.created_at, x.state, x.ended_at, x.next";
        let text = format!(
            "(SELECT {columns} FROM send s JOIN execution x ON x.tenant = s.tenant AND x.execution = s.execution \
             WHERE s.place = 0 AND s.id >= '{from}' AND s.id < '{to}'{conditions} ORDER BY s.id DESC LIMIT {most}) \
             UNION ALL (SELECT {columns} FROM execution x JOIN send s ON s.id = x.oldest \
             WHERE x.oldest >= '{from}' AND x.oldest < '{to}'{conditions} AND NOT EXISTS (SELECT FROM send f \
             WHERE f.tenant = x.tenant AND f.execution = x.execution AND f.place < s.place) \
             ORDER BY x.oldest DESC LIMIT {most}) ORDER BY 1 DESC LIMIT {most}"
        );
        let _turn = shared.list_turn(&filter.reach).await;
        let rows = shared.list().ask(&text, &values).await.map_err(failed)?;
        for row in &rows {
            if found.len() == limit || looked_at >= LIST_LOOKED_AT_MAX {
                page.next = found.last().map(|(id, _)| id.as_hyphenated().to_string());
                break 'walk;
            }
            let (tenant, execution): (&str, &str) = (row.get(1), row.get(2));
            let (state, finished_by) = state_of(row.get(5));
            let total: i32 = row.get(7);
            looked_at += 1 + total.unsigned_abs() as usize / COUNTED_AS_ONE;
            let summary = ExecutionSummary {
                tenant: TenantId::new(tenant),
                execution: ExecutionId::new(execution),
                workflow: row.get(3),
                state,
                finished_by,
                delivered: 0,
                done: 0,
                total: 0,
                created_at: wire::timestamp(row.get(4)),
                ended_at: row.get::<_, Option<i64>>(6).map(wire::timestamp),
            };
            found.push((row.get(0), summary));
        }
        stretches.walked(None);
    }
    let tenants: Vec<&str> = found.iter().map(|(_, one)| one.tenant.as_str()).collect();
    let executions: Vec<&str> = found.iter().map(|(_, one)| one.execution.as_str()).collect();
    let counts = shared.list().query(sql::SENDS_OF_EXECUTIONS, &[&tenants, &executions]).await.map_err(failed)?;
    page.executions = found
        .iter()
        .zip(&counts)
        .map(|((_, one), row)| {
            let [total, done, delivered] = [0, 1, 2].map(|at| row.get::<_, i64>(at).unsigned_abs());
            ExecutionSummary { total, done, delivered, ..one.clone() }
        })
        .collect();
    Ok(page)
}

type Values = Vec<Box<dyn ToSql + Sync + Send>>;

fn conditions(filter: &ExecutionFilter) -> (String, Values) {
    let mut text = String::new();
    let mut values: Values = Vec::new();
    let mut and = |condition: &str, value: Box<dyn ToSql + Sync + Send>| {
        values.push(value);
        text += &format!(" AND {condition} ${}", values.len());
    };
    if let Reach::One(tenant) = &filter.reach {
        and("s.tenant =", Box::new(tenant.as_str().to_owned()));
    }
    if let Some(workflow) = &filter.workflow {
        and("s.workflow =", Box::new(workflow.clone()));
    }
    for (condition, bound) in [("s.created_at >=", filter.since), ("s.created_at <", filter.until)] {
        if let Some(bound) = bound {
            and(condition, Box::new(wire::nanoseconds(bound)));
        }
    }
    text += match filter.state {
        Some(ExecutionState::Open) => " AND x.state = 0",
        Some(ExecutionState::Finished) => " AND x.state IN (1, 2)",
        Some(ExecutionState::Discarded) => " AND x.state = 3",
        None => "",
    };
    (text, values)
}
