//! Zone maps: least and greatest of what the rows of a segment hold, as a whole and of each zone of rows, so that a
//! search may pass a segment, or a zone, by.

use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use super::table::Row;

/// Rows that share a [`Zone`].
const ZONE_ROWS: u32 = 256;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ZoneMap {
    zones: Vec<Zone>,
    whole: Zone,
    /// Of the finishes in this segment's log, or when the last send was moved here, if that was later.
    pub newest_finished_at: i64,
    /// The greatest id up to the end of each zone.
    #[serde(skip)]
    ids_to: Vec<u128>,
}

/// From the least to the greatest.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Zone {
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

impl Zone {
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

impl Default for ZoneMap {
    fn default() -> Self {
        Self { zones: Vec::new(), whole: Zone::EMPTY, newest_finished_at: i64::MIN, ids_to: Vec::new() }
    }
}

impl ZoneMap {
    pub fn add_row(&mut self, number: u32, row: &Row) {
        let zone = (number / ZONE_ROWS) as usize;
        if self.zones.len() <= zone {
            self.zones.resize(zone + 1, Zone::EMPTY);
            self.ids_to.resize(zone + 1, self.whole.ids.1);
        }
        self.zones[zone].add_row(row);
        self.whole.add_row(row);
        self.ids_to[zone] = self.whole.ids.1;
    }

    /// What is not written, from what is.
    pub fn complete(&mut self) {
        let greatest = self.zones.iter().scan(0, |to, zone| {
            *to = zone.ids.1.max(*to);
            Some(*to)
        });
        self.ids_to = greatest.collect();
    }

    /// A send of this segment ended.
    pub fn add_end(&mut self, number: u32, row: &Row) {
        if !row.is_begun() {
            return;
        }
        if let Some(zone) = self.zones.get_mut((number / ZONE_ROWS) as usize) {
            zone.add_start(row.started_at);
        }
        self.whole.add_start(row.started_at);
    }

    /// Its time counts from then on at the earliest.
    pub fn keep_from(&mut self, at: i64) {
        self.newest_finished_at = self.newest_finished_at.max(at);
    }

    /// When the newest of its sends was accepted or moved here, or the newest end in its log came about.
    pub fn newest_at(&self) -> i64 {
        self.whole.created.1.max(self.newest_finished_at)
    }

    /// The least and the greatest.
    pub fn ids(&self) -> (u128, u128) {
        self.whole.ids
    }

    /// The first stretch of rows from `from` on that may have this id, as `from..to`. Ids sort by time of acceptance,
    /// but for a little, so it is mostly the only one.
    pub fn rows_near_id(&self, id: u128, from: u32) -> Option<(u32, u32)> {
        let first = self.ids_to.partition_point(|&to| to < id).max((from / ZONE_ROWS) as usize);
        let near = self.zones.get(first..)?.iter().zip(first as u32..).find(|(zone, _)| zone.has_id(id));
        near.map(|(_, number)| (number * ZONE_ROWS, (number + 1) * ZONE_ROWS))
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
        for (zone, number) in self.zones.iter().zip(0..) {
            if zone.meets(window) {
                rows.insert_range(number * ZONE_ROWS..(number + 1) * ZONE_ROWS);
            }
        }
        Some(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_found_where_it_stands_also_among_ids_out_of_order() {
        // The second zone is of a clock that was set back, and the fourth of nothing but what was lost.
        let id = |number: u32| match number / ZONE_ROWS {
            1 => u128::from(number) - u128::from(ZONE_ROWS) + 5_000,
            3 => 0,
            _ => u128::from(number) + 10_000,
        };
        let rows = 5 * ZONE_ROWS - 7;
        let mut zones = ZoneMap::default();
        (0..rows).for_each(|number| zones.add_row(number, &Row { id: id(number), ..Row::default() }));
        let mut read = zones.clone();
        read.ids_to.clear();
        read.complete();
        for zones in [zones, read] {
            for number in (0..rows).filter(|number| number / ZONE_ROWS != 3) {
                let near = std::iter::successors(zones.rows_near_id(id(number), 0), |&(_, to)| {
                    assert!(to <= 5 * ZONE_ROWS);
                    zones.rows_near_id(id(number), to)
                });
                let near: Vec<_> = near.collect();
                assert!(near.iter().any(|(from, to)| (*from..*to).contains(&number)), "{number}: {near:?}");
                assert_eq!(near.len(), 1, "{number}: {near:?}");
            }
            assert_eq!(zones.rows_near_id(4_999, 0), None);
            assert_eq!(zones.rows_near_id(u128::from(rows) + 10_000, 0), None);
            assert_eq!(zones.ids(), (0, u128::from(rows) + 9_999));
        }
    }
}
