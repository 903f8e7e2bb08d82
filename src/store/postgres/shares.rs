//! What each tenant keeps, and whether that is its share: what the database has of it, as of a look a few seconds ago,
//! and what this node has accepted since.
//!
//! A tenant may go past its share by what the other nodes accept of it between two looks, and by the ends of what was
//! accepted. Tenants that keep less than half of a share are not remembered: the most that there can be of them is not
//! of interest.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::Duration;

use super::link::{Link, Trouble};
use super::{locked, sql};
use crate::send::TenantId;

/// How often a node looks.
pub const LOOKED_AT_EVERY: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });
/// What a send takes beside its bytes: rows, their places in indexes, and an end of few words.
pub const SEND_BYTES: u64 = sql::KEPT_OF_SEND;

#[derive(Default)]
struct Known {
    kept: HashMap<TenantId, u64>,
    /// By this node, since the look before the last was begun.
    since: HashMap<TenantId, u64>,
    /// Those that keep all of their share.
    full: HashSet<TenantId>,
}

impl Known {
    fn kept_by(&self, tenant: &TenantId) -> u64 {
        let of = |kept: &HashMap<TenantId, u64>| kept.get(tenant).copied().unwrap_or_default();
        of(&self.kept).saturating_add(of(&self.since))
    }

    /// What the database had when it was asked. Whoever filled its share meanwhile keeps it full.
    fn looked(&mut self, kept: HashMap<TenantId, u64>, share: u64) {
        self.kept = kept;
        let full = self.kept.keys().chain(self.since.keys()).filter(|tenant| self.kept_by(tenant) >= share);
        self.full = full.cloned().collect();
    }
}

pub struct Shares {
    share: u64,
    known: Mutex<Known>,
}

impl Shares {
    pub fn of(share: u64) -> Self {
        Self { share, known: Mutex::default() }
    }

    pub fn share(&self) -> u64 {
        self.share
    }

    pub fn kept_by(&self, tenant: &TenantId) -> u64 {
        locked(&self.known).kept_by(tenant)
    }

    /// What it keeps, where that and so many bytes more are past the share.
    pub fn past(&self, tenant: &TenantId, more: u64) -> Option<u64> {
        let kept = self.kept_by(tenant);
        (kept.saturating_add(more) > self.share).then_some(kept)
    }

    pub fn add(&self, tenant: &TenantId, bytes: u64) {
        let mut known = locked(&self.known);
        let kept = known.since.entry(tenant.clone()).or_default();
        *kept = kept.saturating_add(bytes);
        if known.kept_by(tenant) >= self.share {
            known.full.insert(tenant.clone());
        }
    }

    /// Those that keep all of their share.
    pub fn full(&self) -> Vec<String> {
        locked(&self.known).full.iter().map(|tenant| tenant.as_str().to_owned()).collect()
    }

    /// What this node accepts while it looks is counted twice until the next time.
    pub async fn look(&self, link: &Link) -> Result<(), Trouble> {
        link.query(sql::COMPACT_KEPT, &[]).await?;
        let before = std::mem::take(&mut locked(&self.known).since);
        let half = i64::try_from(self.share / 2).unwrap_or(i64::MAX);
        match link.query(sql::KEPT, &[&half]).await {
            Ok(rows) => {
                let kept = rows.iter().map(|row| (TenantId::new(row.get::<_, &str>(0)), row.get::<_, i64>(1)));
                let kept = kept.map(|(tenant, kept)| (tenant, u64::try_from(kept).unwrap_or_default())).collect();
                locked(&self.known).looked(kept, self.share);
                Ok(())
            }
            Err(trouble) => {
                before.iter().for_each(|(tenant, bytes)| self.add(tenant, *bytes));
                Err(trouble)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fills_a_share_while_the_database_is_asked_keeps_it_full() {
        let [full, filling, below] = ["full", "filling", "below"].map(TenantId::new);
        let shares = Shares::of(100);
        // As while the database is asked: it saw none of what follows of the second.
        shares.add(&filling, 100);
        shares.add(&below, 99);
        locked(&shares.known).looked(HashMap::from([(full.clone(), 100)]), 100);
        let mut known = shares.full();
        known.sort();
        assert_eq!(known, ["filling", "full"]);

        // The next look has all of it, and it was taken away meanwhile.
        locked(&shares.known).since.clear();
        locked(&shares.known).looked(HashMap::from([(filling, 40)]), 100);
        assert_eq!(shares.full(), Vec::<String>::new());
    }
}
