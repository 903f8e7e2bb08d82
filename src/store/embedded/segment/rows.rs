//! A segment's table: one row for each send accepted in it.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{PoisonError, atomic::Ordering};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::{END_BYTES, RESERVED_BYTES, SCAN_ROWS, Segment, sync_directory};
use crate::store::StoreError;
use crate::store::embedded::table::{ROW_BYTES, Row};

impl Segment {
    /// Writes consecutive rows.
    pub fn write_rows(&self, first: u32, rows: &[u8]) -> io::Result<()> {
        let _lock = self.table_lock.write().unwrap_or_else(PoisonError::into_inner);
        let written = self.table.write_all_at(rows, u64::from(first) * ROW_BYTES as u64);
        self.dirty.store(true, Ordering::Release);
        written
    }

    pub fn row(&self, number: u32) -> Result<Row, StoreError> {
        let at = u64::from(number) * ROW_BYTES as u64;
        let mut bytes = [0; ROW_BYTES];
        self.read("table", (at, ROW_BYTES), || {
            let _lock = self.table_lock.read().unwrap_or_else(PoisonError::into_inner);
            self.table.read_exact_at(&mut bytes, at)
        })?;
        Row::decode(&bytes).ok_or_else(|| {
            StoreError::Damaged(format!(
                "{} is unreadable at bytes {at} to {}: the row fails its checksum; it is made anew from the log at the \
                 next start",
                self.file("table"),
                at + ROW_BYTES as u64
            ).into())
        })
    }

    /// A row or the index turned out to be damaged: the log knows it still, so the next start is to read that instead
    /// of the index.
    pub fn distrust(&self) {
        if !self.distrusted.swap(true, Ordering::AcqRel)
            && let Err(error) = self.forget_index()
        {
            tracing::error!(%error, index = self.file("index"), "remove it and restart: it is damaged, or a row of the table is");
        }
    }

    /// The next start reads the log, also after a loss of power.
    pub fn forget_index(&self) -> io::Result<()> {
        match fs::remove_file(self.directory.join("index")) {
            Ok(()) => sync_directory(&self.directory),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether the rows of all sends that are not done pass their checksums.
    pub fn waiting_rows_are_sound(&self) -> Result<bool, StoreError> {
        let waiting = self.ended().undone.clone();
        let rows = self.row_count();
        let mut bytes = Vec::new();
        for from in (0..rows).step_by(SCAN_ROWS as usize) {
            let to = rows.min(from + SCAN_ROWS);
            if waiting.range_cardinality(from..to) == 0 {
                continue;
            }
            self.rows(from, to, &mut bytes)?;
            let row = |number: u32| bytes[(number - from) as usize * ROW_BYTES..].first_chunk();
            if !waiting.range(from..to).all(|number| row(number).and_then(Row::decode).is_some()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The bytes of rows `from..to`.
    pub fn rows(&self, from: u32, to: u32, into: &mut Vec<u8>) -> Result<(), StoreError> {
        let at = u64::from(from) * ROW_BYTES as u64;
        into.resize((to - from) as usize * ROW_BYTES, 0);
        self.read("table", (at, into.len()), || {
            let _lock = self.table_lock.read().unwrap_or_else(PoisonError::into_inner);
            self.table.read_exact_at(into, at)
        })
    }

    /// How many sound rows the table has on disk, and of those that were begun or ended, number and id.
    pub fn sound_rows(&self) -> io::Result<(u32, Vec<(u32, u128)>)> {
        let length = self.table.metadata()?.len();
        let (mut at, mut sound, mut begun) = (0, 0, Vec::new());
        let mut bytes = vec![0; ROW_BYTES * SCAN_ROWS as usize];
        while at + ROW_BYTES as u64 <= length {
            let most = ((length - at) as usize / ROW_BYTES * ROW_BYTES).min(bytes.len());
            self.table.read_exact_at(&mut bytes[..most], at)?;
            let first = (at / ROW_BYTES as u64) as u32;
            for (row, number) in bytes[..most].chunks_exact(ROW_BYTES).zip(first..) {
                let Some(row) = row.first_chunk().and_then(Row::decode) else { continue };
                sound += 1;
                if row.is_begun() || row.is_done() {
                    begun.push((number, row.id));
                }
            }
            at += most as u64;
        }
        Ok((sound, begun))
    }

    /// All rows, where each is sound and nothing is left over.
    pub fn whole_table(&self) -> io::Result<Option<Vec<Row>>> {
        let length = self.table.metadata()?.len();
        let count = u32::try_from(length / ROW_BYTES as u64).unwrap_or(u32::MAX);
        if u64::from(count) * ROW_BYTES as u64 != length {
            return Ok(None);
        }
        let mut rows = Vec::with_capacity(count as usize);
        let mut bytes = Vec::new();
        for from in (0..count).step_by(SCAN_ROWS as usize) {
            self.rows(from, count.min(from + SCAN_ROWS), &mut bytes).map_err(io::Error::other)?;
            for row in bytes.chunks_exact(ROW_BYTES) {
                let Some(row) = row.first_chunk().and_then(Row::decode) else { return Ok(None) };
                rows.push(row);
            }
        }
        Ok(Some(rows))
    }

    /// Writes all of the rows anew. In the room that they have already, so that a full disk takes them too.
    pub fn replace_rows(&self, rows: &[u8]) -> io::Result<()> {
        self.write_rows(0, rows)?;
        self.table.set_len(rows.len() as u64)
    }

    /// Has the file system set room aside for this many rows and ends, some ahead, so that once a log says something
    /// its row can be written too. Where a file system cannot do that, nothing is set aside.
    pub fn reserve(&self, rows: u32, ends: u64) -> io::Result<()> {
        for (file, bytes, reserved) in [
            (&self.table, u64::from(rows) * ROW_BYTES as u64, &self.reserved.0),
            (&self.ends, ends.saturating_mul(END_BYTES as u64), &self.reserved.1),
        ] {
            let before = reserved.load(Ordering::Relaxed);
            if bytes <= before {
                continue;
            }
            let Some(after) = bytes.checked_next_multiple_of(RESERVED_BYTES) else { continue };
            match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, before as i64, (after - before) as i64) {
                Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => reserved.store(after, Ordering::Relaxed),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Finds a send's row by its id.
    pub fn row_of(&self, id: u128) -> Result<RowOf, StoreError> {
        let near = |from| self.zones().rows_near_id(id, from);
        let rows = self.row_count();
        let mut bytes = Vec::new();
        let mut unsound = Vec::new();
        let mut next = near(0);
        while let Some((from, to)) = next {
            next = near(to);
            let to = rows.min(to);
            if from >= to {
                break;
            }
            self.rows(from, to, &mut bytes)?;
            let wanted = id.to_le_bytes();
            let each = || bytes.chunks_exact(ROW_BYTES).zip(from..);
            let sound = |row: &[u8]| row.first_chunk().and_then(Row::decode);
            let found =
                each().find_map(|(row, number)| (row[..16] == wanted).then(|| Some((number, sound(row)?))).flatten());
            if let Some((number, row)) = found {
                return Ok(RowOf::Found(number, row));
            }
            unsound.extend(each().filter(|(row, _)| sound(row).is_none()).map(|(_, number)| number));
        }
        Ok(if unsound.is_empty() { RowOf::Nowhere } else { RowOf::AmongUnsound(unsound) })
    }
}

/// Where a send's row is.
pub enum RowOf {
    Found(u32, Row),
    Nowhere,
    /// If anywhere it is one of these, which fail their checksums.
    AmongUnsound(Vec<u32>),
}
