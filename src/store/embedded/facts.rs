//! What the rows of a piece hold in sum, so that a search may pass a piece, or a block of its rows, by.

use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use super::table::Row;

/// Rows that share a [`Block`].
const BLOCK_ROWS: u32 = 256;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Facts {
    blocks: Vec<Block>,
    whole: Block,
    /// Of the finishes in this piece's log.
    pub newest_finished_at: i64,
}

/// From the least to the greatest.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Block {
    ids: (u128, u128),
    created: (i64, i64),
    /// Of the sends that are done.
    started: (i64, i64),
}

/// Since and until, in nanoseconds, of when a send was created or when it was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub since: i64,
    pub until: i64,
    pub of_start: bool,
}

impl Window {
    /// Everything is in it, also what was never started.
    fn is_open(&self) -> bool {
        self.since == i64::MIN && self.until == i64::MAX
    }
}

impl Block {
    const EMPTY: Self = Self { ids: (u128::MAX, 0), created: (i64::MAX, i64::MIN), started: (i64::MAX, i64::MIN) };

    fn add_row(&mut self, row: &Row) {
        self.ids = (self.ids.0.min(row.id), self.ids.1.max(row.id));
        self.created = (self.created.0.min(row.created_at), self.created.1.max(row.created_at));
    }

    fn add_start(&mut self, at: i64) {
        self.started = (self.started.0.min(at), self.started.1.max(at));
    }

    fn has_id(&self, id: u128) -> bool {
        self.ids.0 <= id && id <= self.ids.1
    }

    fn meets(&self, window: &Window) -> bool {
        let (first, last) = if window.of_start { self.started } else { self.created };
        last >= window.since && first < window.until
    }

    fn is_within(&self, window: &Window) -> bool {
        let (first, last) = if window.of_start { self.started } else { self.created };
        first >= window.since && last < window.until
    }
}

impl Default for Facts {
    fn default() -> Self {
        Self { blocks: Vec::new(), whole: Block::EMPTY, newest_finished_at: i64::MIN }
    }
}

impl Facts {
    pub fn add_row(&mut self, number: u32, row: &Row) {
        let block = (number / BLOCK_ROWS) as usize;
        if self.blocks.len() <= block {
            self.blocks.resize(block + 1, Block::EMPTY);
        }
        self.blocks[block].add_row(row);
        self.whole.add_row(row);
    }

    /// A send of this piece ended.
    pub fn add_end(&mut self, number: u32, row: &Row) {
        if !row.is_begun() {
            return;
        }
        if let Some(block) = self.blocks.get_mut((number / BLOCK_ROWS) as usize) {
            block.add_start(row.started_at);
        }
        self.whole.add_start(row.started_at);
    }

    /// When the newest of its sends was accepted or the newest end in its log came about.
    pub fn newest_at(&self) -> i64 {
        self.whole.created.1.max(self.newest_finished_at)
    }

    /// Stretches of rows that may have this id, as `from..to`. Ids sort by time of acceptance, so they are few.
    pub fn rows_near_id(&self, id: u128) -> Vec<(u32, u32)> {
        if !self.whole.has_id(id) {
            return Vec::new();
        }
        let near = self.blocks.iter().zip(0..).filter(|(block, _)| block.has_id(id));
        near.map(|(_, number)| (number * BLOCK_ROWS, (number + 1) * BLOCK_ROWS)).collect()
    }

    pub fn meets(&self, window: &Window) -> bool {
        window.is_open() || self.whole.meets(window)
    }

    /// The rows that may lie in a window; `None`: all of them do.
    pub fn rows_in(&self, window: &Window) -> Option<RoaringBitmap> {
        if window.is_open() || self.whole.is_within(window) {
            return None;
        }
        let mut rows = RoaringBitmap::new();
        for (block, number) in self.blocks.iter().zip(0..) {
            if block.meets(window) {
                rows.insert_range(number * BLOCK_ROWS..(number + 1) * BLOCK_ROWS);
            }
        }
        Some(rows)
    }
}
