//! What finds the rows of a segment, and what each tenant has stored in it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{PoisonError, RwLockReadGuard, atomic::Ordering};

use roaring::RoaringBitmap;

use super::{END_BYTES, SCAN_ROWS, SEND_BYTES, Segment};
use crate::store::embedded::hashes::{ExecutionHash, TenantHash};
use crate::store::embedded::index::{Ended, Find, FoundEnding, OnDisk, Shares};
use crate::store::embedded::locked;
use crate::store::embedded::table::{ROW_BYTES, Row, first_term};
use crate::store::embedded::zone_map::ZoneMap;
use crate::store::{StoreError, Why};

impl Segment {
    /// Says of a failed read of the index what may be done about it.
    fn index_unreadable(&self, error: io::Error) -> StoreError {
        let is_damage =
            matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::Other);
        if !is_damage {
            return StoreError::CannotRead(Why::by(
                format!("{}: {error}: look at the disk and the kernel's log", self.file("index")),
                error,
            ));
        }
        StoreError::Damaged(Why::by(
            format!(
                "{} is unreadable: {error}; stop egressd, remove the file, and it is made anew from the log at the next start",
                self.file("index")
            ),
            error,
        ))
    }

    /// Rows of this execution here, in order.
    pub fn members(&self, execution: ExecutionHash) -> Result<Vec<u32>, StoreError> {
        let mut rows = self.find().members(execution).map_err(|error| self.index_unreadable(error))?;
        let ended = self.ended();
        if !ended.moved.is_empty() {
            rows.retain(|&row| !ended.moved.contains(row));
        }
        Ok(rows)
    }

    pub fn member_count(&self, execution: ExecutionHash) -> Result<u32, StoreError> {
        if !self.ended().moved.is_empty() {
            return self.members(execution).map(|rows| rows.len() as u32);
        }
        self.find().member_count(execution).map_err(|error| self.index_unreadable(error))
    }

    /// The last row of this execution here, also where it was moved on.
    pub fn last_member(&self, execution: ExecutionHash) -> Result<Option<u32>, StoreError> {
        self.find().last_member(execution).map_err(|error| self.index_unreadable(error))
    }

    pub fn endings(&self, execution: ExecutionHash) -> Result<Vec<FoundEnding>, StoreError> {
        self.find().endings(execution).map_err(|error| self.index_unreadable(error))
    }

    /// First row and count of the calls with this key, newest last.
    pub fn calls(&self, hash: u64) -> Result<Vec<(u32, u32)>, StoreError> {
        self.find().calls(hash).map_err(|error| self.index_unreadable(error))
    }

    pub fn all_calls(&self) -> Result<Vec<(u64, u32, u32)>, StoreError> {
        self.find().all_calls().map_err(|error| self.index_unreadable(error))
    }

    /// Whether a row with this term can be here.
    pub fn may_have(&self, term: u64) -> bool {
        self.find().may_have(term) || self.ended().may_have(term)
    }

    /// The rows that have this term.
    pub fn rows_with(&self, term: u64) -> Result<RoaringBitmap, StoreError> {
        let found = self.find().rows_with(term).map_err(|error| self.index_unreadable(error))?;
        Ok(found | self.ended().rows_with(term))
    }

    /// Rows among which are those that executions are listed by: their first sends, and where those are gone or unreadable
    /// the oldest that are left.
    pub fn first_ones(&self) -> Result<RoaringBitmap, StoreError> {
        let mut rows = self.rows_with(first_term())?;
        let later = self.find().later_ones().clone();
        let moved = &later & &self.ended().moved;
        rows |= later;
        // The next one stands in the place of one that was moved on, until the index is written anew.
        for number in moved {
            if let Some(execution) = self.row(number)?.execution() {
                rows.extend(self.members(execution)?.first());
            }
        }
        Ok(rows)
    }

    /// Whether any can be here.
    pub fn may_have_first_ones(&self) -> bool {
        self.may_have(first_term()) || !self.find().later_ones().is_empty()
    }

    /// Rows of any tenant's execution of this name.
    pub fn members_of_any(&self, execution: u32) -> Result<RoaringBitmap, StoreError> {
        self.find().members_of_any(execution).map_err(|error| self.index_unreadable(error))
    }

    /// Writes the index and lets go of what was in memory. The table and all it depends on are synced already.
    pub fn checkpoint(&self) -> io::Result<()> {
        let counts = (self.row_count(), self.ends_count.load(Ordering::Acquire));
        let then = self.ended().clone();
        let zones = self.zones().clone();
        let shares = self.shares();
        let checkpointed = self.find().checkpoint(&self.directory, counts, zones, &then, &shares)?;
        // Both at once: a reader between the two would look for an end in neither, or count it twice.
        let mut find = self.find.write().unwrap_or_else(PoisonError::into_inner);
        let mut ended = self.ended.write().unwrap_or_else(PoisonError::into_inner);
        let mut since = Ended::of(ended.undone.clone());
        for number in &then.undone - &ended.undone {
            // It ended while the index was written.
            since.add(number, &self.row(number).map_err(io::Error::other)?);
        }
        *find = Find::OnDisk(checkpointed);
        *ended = since;
        Ok(())
    }

    // What each tenant has stored here.

    pub fn add_share(&self, tenant: TenantHash, records: u64, bodies: u64) {
        let mut shares = locked(&self.shares);
        let share = shares.entry(tenant).or_default();
        *share = (share.0 + records, share.1 + bodies);
    }

    pub fn shares(&self) -> Shares {
        locked(&self.shares).iter().map(|(&tenant, &(log, bodies))| (tenant, log, bodies)).collect()
    }

    /// The tenant of those rows here that have this of theirs; `None`: that may be several, and each row's frame knows.
    /// Whoever has a row here has a share.
    pub fn tenant_by_shares(&self, short: u32) -> Option<TenantHash> {
        let shares = locked(&self.shares);
        let mut all = shares.range(TenantHash::all_of(short)).map(|(&tenant, _)| tenant);
        let first = all.next().filter(|tenant| tenant.is_ones());
        first.filter(|_| all.next().is_none())
    }

    /// As far as the rows know: for an index from before it had shares. Bodies are shared out by the sends.
    fn shares_of_rows(&self, rows: u32) -> Result<BTreeMap<TenantHash, (u64, u64)>, StoreError> {
        let mut shares: BTreeMap<TenantHash, (u64, u64)> = BTreeMap::new();
        let of_bodies = self.bodies_bytes.load(Ordering::Relaxed) / u64::from(rows.max(1));
        let mut bytes = Vec::new();
        for from in (0..rows).step_by(SCAN_ROWS as usize) {
            self.rows(from, rows.min(from + SCAN_ROWS), &mut bytes)?;
            for row in bytes.chunks_exact(ROW_BYTES).filter_map(|row| row.first_chunk()).map(Row::peek) {
                let share = shares.entry(TenantHash::any_of(row.tenant)).or_default();
                share.0 += u64::from(row.accepted.length) + u64::from(row.finish.length) + SEND_BYTES;
                share.1 += of_bodies;
            }
        }
        Ok(shares)
    }

    /// Takes the index up again; `false`: there is none, or it is not sound, and the log has to be replayed.
    pub fn load_index(&self) -> io::Result<bool> {
        let Some((checkpointed, form)) = OnDisk::load(&self.directory)? else { return Ok(false) };
        if !self.may_hold(&form.zones, form.rows) {
            return Ok(false);
        }
        let sound = self.table.metadata()?.len() == u64::from(form.rows) * ROW_BYTES as u64
            && self.ends.metadata()?.len() >= u64::from(form.ends) * END_BYTES as u64;
        if !sound {
            return Ok(false);
        }
        let shares = checkpointed.shares()?;
        let tells_tenants = |shares: &Shares| shares.iter().all(|(tenant, ..)| tenant.of_earlier().is_none());
        if !form.undone.is_empty() && !shares.as_ref().is_some_and(tells_tenants) {
            // It is of an earlier version, and does not tell whose it is that waits.
            return Ok(false);
        }
        let shares = match shares {
            Some(shares) => {
                let shares = shares.into_iter();
                shares.map(|(tenant, log, bodies)| (tenant.of_earlier().unwrap_or(tenant), (log, bodies))).collect()
            }
            None => self.shares_of_rows(form.rows).map_err(io::Error::other)?,
        };
        self.rows.store(form.rows, Ordering::Release);
        self.ends_count.store(form.ends, Ordering::Release);
        self.undone.store(form.undone.len() as u32, Ordering::Release);
        self.change_zones(|zones| {
            *zones = form.zones;
            zones.complete();
        });
        self.change_ended(|ended| ended.undone = form.undone);
        *locked(&self.shares) = shares;
        *self.find.write().unwrap_or_else(PoisonError::into_inner) = Find::OnDisk(checkpointed);
        Ok(true)
    }

    /// Whether these can be the zones of this table, and not of another segment's.
    fn may_hold(&self, zones: &ZoneMap, rows: u32) -> bool {
        let (least, greatest) = zones.ids();
        let held = |number: u32| self.row(number).map_or(true, |row| (least..=greatest).contains(&row.id));
        rows == 0 || held(0) && held(rows - 1)
    }

    /// How its sends ended, as far as the index does not say so.
    pub fn ended(&self) -> RwLockReadGuard<'_, Ended> {
        self.ended.read().unwrap_or_else(PoisonError::into_inner)
    }
}
