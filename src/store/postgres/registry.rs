//! Suspensions and publications. They are the tier's: every node reads the same.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::hot::one_known;
use super::{Shared, sql};
use crate::clock;
use crate::send::{SendId, TenantId};
use crate::source::{Family, Neighbour, SourceTold};
use crate::store::{NodeLoad, NodeSeen, Published, Session, StoreError, Suspension, SuspensionScope, wire};

/// How often it is asked who has a suspension in force.
const LOADED_AGAIN: Duration = Duration::from_millis(20);

/// Once it answers, no node begins anything that it has not judged by it, and what was begun before and has no byte on the
/// wire is judged by it once more. A node that does not come to that is waited for no longer than the database is.
pub async fn suspend(shared: &Shared, suspension: Suspension) -> Result<(), StoreError> {
    shared.open()?;
    let (tenant, workflow, host) = match &suspension.scope {
        SuspensionScope::Tenant { tenant, workflow } => (Some(tenant.as_str()), workflow.as_deref(), None),
        SuspensionScope::Host { host } => (None, None, Some(host.as_str())),
    };
    let (id, at) = (suspension.id.0, wire::nanoseconds(suspension.at));
    let values: [&(dyn ToSql + Sync); 7] = [&id, &tenant, &workflow, &host, &suspension.reason, &suspension.by, &at];
    let (row, _) = one_known(shared.slow(), sql::SUSPEND, &values).await.map_err(|trouble| trouble.on_write())?;
    everywhere(shared, row.get(0)).await;
    Ok(())
}

/// Until every other node that lives has this version in force.
async fn everywhere(shared: &Shared, version: i64) {
    let mine = shared.session().map_or(0, |session| session.incarnation() as i64);
    let until = clock::monotonic() + shared.settings.answer_within;
    loop {
        let late = match shared.look.query(sql::NOT_LOADED, &[&mine, &version]).await {
            Ok(rows) if rows.is_empty() => return,
            Ok(rows) => rows.iter().map(|row| row.get::<_, &str>(0)).collect::<Vec<_>>().join(" "),
            Err(trouble) => trouble.on_read().to_string(),
        };
        if clock::monotonic() >= until {
            tracing::warn!(late, "a suspension is made, and a node has not told yet that it is in force there");
            return;
        }
        tokio::time::sleep(LOADED_AGAIN).await;
    }
}

/// Looks for newer suspensions than are in force here, and tells the others what is, until the store is closed. On its own:
/// a suspension is answered when the slowest node has come to that.
pub async fn watch(shared: Arc<Shared>) {
    let mut loaded = shared.loaded.subscribe();
    let (mut told, mut written) = (0, (0, 0));
    loop {
        tokio::select! {
            changed = loaded.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(super::POLL) => {}
        }
        let Some(incarnation) = shared.session().map(|session| session.incarnation() as i64) else { continue };
        let now = (incarnation, *loaded.borrow_and_update());
        if now != written && shared.look.query(sql::LOADED, &[&incarnation, &now.1]).await.is_ok() {
            written = now;
        }
        if let Ok(rows) = shared.look.query(sql::NEWEST_SUSPENSIONS, &[&incarnation]).await
            && let Some(newest) = rows.first().map(|row| row.get(0))
            && newest != told
        {
            told = newest;
            shared.tell_suspensions(newest);
        }
    }
}

pub async fn lift(shared: &Shared, id: SendId, at: Timestamp, by: String) -> Result<bool, StoreError> {
    shared.open()?;
    let row = shared.slow().one(sql::LIFT, &[&id.0, &wire::nanoseconds(at), &by]).await;
    row.map(|row| row.get(0)).map_err(|trouble| trouble.on_write())
}

pub async fn suspensions(shared: &Shared) -> Result<Vec<Suspension>, StoreError> {
    let rows = shared.look.query(sql::SUSPENSIONS, &[]).await.map_err(|trouble| trouble.on_read())?;
    if let Some(row) = rows.first() {
        shared.read.fetch_max(row.get(0), Ordering::AcqRel);
    }
    let of = |row: &tokio_postgres::Row| {
        let id: Uuid = row.get::<_, Option<Uuid>>(1)?;
        let scope = match (row.get::<_, Option<&str>>(2), row.get::<_, Option<String>>(4)) {
            (_, Some(host)) => SuspensionScope::Host { host },
            (tenant, None) => {
                SuspensionScope::Tenant { tenant: TenantId::new(tenant.unwrap_or_default()), workflow: row.get(3) }
            }
        };
        let lifted_at: Option<i64> = row.get(8);
        Some(Suspension {
            id: SendId(id),
            scope,
            reason: row.get(5),
            by: row.get(6),
            at: wire::timestamp(row.get(7)),
            lifted: lifted_at.map(|at| (wire::timestamp(at), row.get::<_, Option<String>>(9).unwrap_or_default())),
        })
    };
    Ok(rows.iter().filter_map(of).collect())
}

pub async fn nodes(shared: &Shared) -> Result<Vec<NodeSeen>, StoreError> {
    let rows = shared.look.query(sql::NODES, &[]).await.map_err(|trouble| trouble.on_read())?;
    let seconds = |number: f64| Duration::from_millis((number.max(0.0) * 1000.0).round() as u64);
    let of = |row: &tokio_postgres::Row| NodeSeen {
        name: row.get(0),
        version: row.get(1),
        renewed_ago: seconds(row.get(2)),
        lease: seconds(row.get(3)),
        sources: row.get::<_, Vec<&str>>(4).iter().filter_map(|text| text.parse().ok()).collect(),
        load: NodeLoad { queued: row.get::<_, i64>(5).unsigned_abs(), in_flight: row.get::<_, i64>(6).unsigned_abs() },
    };
    Ok(rows.iter().map(of).collect())
}

pub async fn hold_sources(
    shared: &Shared,
    by: &Session,
    addresses: Vec<IpAddr>,
) -> Result<HashMap<IpAddr, String>, StoreError> {
    shared.open()?;
    let texts: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    let (incarnation, grace) = (by.incarnation() as i64, shared.settings.grace.as_secs_f64());
    let rows = match shared.slow().query(sql::HOLD_SOURCES, &[&incarnation, &texts, &grace]).await {
        Ok(rows) => rows,
        Err(trouble) if trouble.code().is_some_and(|code| code.code() == "EGFEN") => {
            return Err(StoreError::Fenced(by.to_string()));
        }
        Err(trouble) => return Err(trouble.on_write()),
    };
    Ok(rows.iter().filter_map(|row| Some((row.get::<_, &str>(0).parse().ok()?, row.get(1)))).collect())
}

pub async fn tell_sources(
    shared: &Shared,
    by: &Session,
    sources: Vec<SourceTold>,
) -> Result<Vec<Neighbour>, StoreError> {
    shared.open()?;
    let incarnation = by.incarnation() as i64;
    let addresses: Vec<String> = sources.iter().map(|source| source.public.to_string()).collect();
    let pools: Vec<&str> = sources.iter().map(|source| &*source.pool).collect();
    let v6: Vec<bool> = sources.iter().map(|source| source.family == Family::V6).collect();
    let usable: Vec<bool> = sources.iter().map(|source| source.usable).collect();
    let told: [&(dyn ToSql + Sync); 5] = [&incarnation, &addresses, &pools, &v6, &usable];
    shared.look.query(sql::TELL_SOURCES, &told).await.map_err(|trouble| trouble.on_write())?;
    let rows = shared.look.query(sql::NEIGHBOURS, &[&incarnation]).await.map_err(|trouble| trouble.on_read())?;
    let mut neighbours: Vec<Neighbour> = Vec::new();
    for row in rows {
        let (name, incarnation): (&str, i64) = (row.get(0), row.get(1));
        if neighbours.last().is_none_or(|last| &*last.name != name) {
            neighbours.push(Neighbour { name: name.into(), life: incarnation.unsigned_abs(), serves: Vec::new() });
        }
        let (pool, v6): (Option<&str>, Option<bool>) = (row.get(2), row.get(3));
        if let (Some(pool), Some(v6), Some(last)) = (pool, v6, neighbours.last_mut()) {
            last.serves.push((pool.into(), if v6 { Family::V6 } else { Family::V4 }));
        }
    }
    Ok(neighbours)
}

pub async fn publish(
    shared: &Shared,
    addresses: Vec<IpAddr>,
    digest: Option<[u8; 32]>,
    now: Timestamp,
) -> Result<Published, StoreError> {
    let failed = |trouble: super::Trouble| trouble.on_write();
    let texts: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    let digest = digest.as_ref().map(|digest| &digest[..]);
    let row = shared.slow().one(sql::PUBLISH, &[&texts, &digest, &wire::nanoseconds(now)]).await.map_err(failed)?;
    let rows = shared.slow().query(sql::PUBLISHED, &[]).await.map_err(failed)?;
    let first: HashMap<IpAddr, Timestamp> = rows
        .iter()
        .filter_map(|row| Some((row.get::<_, &str>(0).parse().ok()?, wire::timestamp(row.get(1)))))
        .collect();
    let (sync_token, first_start) = (row.get::<_, i64>(0).unsigned_abs(), wire::timestamp(row.get(1)));
    Ok(Published { first, left: HashMap::new(), sync_token, first_start })
}
