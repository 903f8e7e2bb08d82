//! Tunnels: a table of their own. A tunnel is its node's; lists see those of all. What a node that is gone left open is
//! ended by the others.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{Shared, sql};
use crate::limits::LIST_LOOKED_AT_MAX;
use crate::outcome::Code;
use crate::record::Tunnel;
use crate::store::{StoreError, TunnelFilter, TunnelPage, wire};

/// Rows that the first look of a page takes; each next one takes as many times more.
const FIRST_LOOK: i64 = 500;
const NEXT_LOOK: i64 = 4;
/// Rows that are dropped in one statement.
const DROPPED_AT_ONCE: i64 = 10_000;
/// Tunnels of nodes that are gone that are ended in one statement.
const ENDED_AT_ONCE: i64 = if cfg!(test) { 2 } else { 1_000 };

pub async fn note(shared: &Shared, tunnels: Vec<Arc<Tunnel>>) -> Result<(), StoreError> {
    shared.open()?;
    if tunnels.is_empty() {
        return Ok(());
    }
    // The last word on each: a statement may name a row once.
    let mut last: Vec<&Tunnel> = Vec::with_capacity(tunnels.len());
    for tunnel in &tunnels {
        match last.iter_mut().find(|known| known.id == tunnel.id) {
            Some(known) => *known = tunnel,
            None => last.push(tunnel),
        }
    }
    let ended = |tunnel: &&Tunnel| tunnel.ended.clone();
    let text = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string());
    let ids: Vec<Uuid> = last.iter().map(|tunnel| tunnel.id).collect();
    let tenants: Vec<&str> = last.iter().map(|tunnel| tunnel.tenant.as_str()).collect();
    let nodes: Vec<&str> = last.iter().map(|tunnel| tunnel.node.as_str()).collect();
    let hosts: Vec<&str> = last.iter().map(|tunnel| tunnel.host.as_str()).collect();
    let sources: Vec<Option<String>> = last.iter().map(|tunnel| text(tunnel.source)).collect();
    let public: Vec<Option<String>> = last.iter().map(|tunnel| text(tunnel.public)).collect();
    let begun: Vec<i64> = last.iter().map(|tunnel| wire::nanoseconds(tunnel.begun_at)).collect();
    let ended_at: Vec<Option<i64>> = last.iter().map(|one| ended(one).map(|end| wire::nanoseconds(end.at))).collect();
    let ends: Vec<Option<i16>> =
        last.iter().map(|one| ended(one).map(|end| wire::end_number(end.end).into())).collect();
    let code = |one: &&Tunnel| ended(one).and_then(|end| end.code).map(|code| wire::code_number(code).into());
    let codes: Vec<Option<i16>> = last.iter().map(code).collect();
    let forms: Vec<Vec<u8>> = last.iter().map(|tunnel| wire::tunnel(tunnel)).collect();
    let interrupted = i16::from(wire::code_number(Code::Interrupted));
    let values: [&(dyn ToSql + Sync); 12] =
        [&ids, &tenants, &nodes, &hosts, &sources, &public, &begun, &ended_at, &ends, &codes, &forms, &interrupted];
    shared.slow().query(sql::NOTE_TUNNELS, &values).await.map(drop).map_err(|trouble| trouble.on_write())
}

pub async fn list(
    shared: &Shared,
    filter: TunnelFilter,
    cursor: Option<String>,
    limit: usize,
) -> Result<TunnelPage, StoreError> {
    let failed = super::read::failed;
    let mut before = match &cursor {
        None => Uuid::max(),
        Some(text) if text.len() == 36 => Uuid::try_parse(text).map_err(|_| StoreError::BadCursor)?,
        Some(_) => return Err(StoreError::BadCursor),
    };
    let tenant = filter.reach.one().map(|tenant| tenant.as_str().to_owned());
    let mut page = TunnelPage::default();
    let (mut looked_at, mut look) = (0, FIRST_LOOK);
    loop {
        let _turn = shared.list_turn(&filter.reach).await;
        let values: [&(dyn ToSql + Sync); 3] = [&before, &tenant, &look];
        let rows = shared.list().query(sql::TUNNELS, &values).await.map_err(failed)?;
        for row in &rows {
            if page.tunnels.len() == limit {
                page.next = Some(before.as_hyphenated().to_string());
                return Ok(page);
            }
            before = row.get(0);
            let tunnel = wire::read_tunnel(row.get(1)).map_err(unreadable)?;
            if filter.takes_in(&tunnel) {
                page.tunnels.push(tunnel);
            }
        }
        looked_at += rows.len();
        if (rows.len() as i64) < look {
            return Ok(page);
        }
        if looked_at >= LIST_LOOKED_AT_MAX {
            page.next = Some(before.as_hyphenated().to_string());
            return Ok(page);
        }
        look *= NEXT_LOOK;
    }
}

fn unreadable(wire::Unreadable(why): wire::Unreadable) -> StoreError {
    StoreError::CannotRead(format!("a record of a tunnel: {why}").into())
}

pub async fn end_left_open(shared: &Shared, node: &str, now: Timestamp) -> Result<u64, StoreError> {
    shared.open()?;
    let rows = shared.slow().query(sql::TUNNELS_LEFT_OPEN, &[&node]).await.map_err(|trouble| trouble.on_write())?;
    interrupt(shared, &rows, now).await
}

/// Ends those of nodes that are gone, and have not come back to do so by themselves.
pub async fn end_of_the_dead(shared: &Shared, now: Timestamp) -> Result<(), StoreError> {
    let mut after = Uuid::nil();
    loop {
        let asked: [&(dyn ToSql + Sync); 2] = [&after, &ENDED_AT_ONCE];
        let rows = shared.admin.query(sql::TUNNELS_OF_THE_DEAD, &asked).await.map_err(|trouble| trouble.on_write())?;
        let Some(last) = rows.last() else { return Ok(()) };
        after = last.get(0);
        let ended = interrupt(shared, &rows, now).await?;
        tracing::info!(tunnels = ended, "tunnels of nodes that are gone have ended with them");
    }
}

/// Answers how many. What cannot be read here, of a later version, is left to others.
async fn interrupt(shared: &Shared, rows: &[Row], now: Timestamp) -> Result<u64, StoreError> {
    let mut left = Vec::with_capacity(rows.len());
    for row in rows {
        match wire::read_tunnel(row.get(1)) {
            Ok(tunnel) => left.push(Arc::new(tunnel.interrupted(now))),
            Err(wire::Unreadable(why)) => {
                let id: Uuid = row.get(0);
                tracing::warn!(tunnel = %id, why, "a record of a tunnel cannot be read");
            }
        }
    }
    let count = left.len() as u64;
    note(shared, left).await?;
    Ok(count)
}

/// Those that ended before this.
pub async fn drop_before(shared: &Shared, at: i64) -> Result<(), StoreError> {
    loop {
        let asked: [&(dyn ToSql + Sync); 2] = [&at, &DROPPED_AT_ONCE];
        let dropped = shared.admin.query(sql::FORGET_TUNNELS, &asked).await.map_err(|trouble| trouble.on_write())?;
        if (dropped.len() as i64) < DROPPED_AT_ONCE {
            return Ok(());
        }
    }
}
