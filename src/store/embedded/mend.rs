//! Rows of a table that turn out to be damaged while the store is open, as the logs have them: readers are told what is
//! there. The next start makes the table anew; until then the writer leaves what is damaged alone.
//!
//! The logs are read once for all damaged rows of a segment, and again where more of them turn up, or one has ended since.

use std::collections::HashMap;
use std::sync::Arc;

use super::entry::{BeginHead, FinishFacts, FinishHead, SendHead, accepted_row};
use super::frame::{FrameKind, Scanned, Scanner};
use super::segment::{END_BYTES, End, SCAN_ROWS, Segment};
use super::table::{Extent, ROW_BYTES, Row};
use super::{Shared, locked};
use crate::store::{StoreError, Why};

/// Most sends end in the log that they were accepted in or in the next; the ends of no more are looked through.
const LOGS_MAX: usize = 8;
/// Ends that are read at once.
const ENDS_AT_ONCE: u32 = 16 * 1024;

impl Shared {
    /// A row, from the logs where the table has lost it; `None`: neither has it, which is told.
    pub fn known_row(&self, segment: &Segment, number: u32) -> Result<Option<Row>, StoreError> {
        match self.sound_row(segment, number)? {
            Some(row) => Ok(Some(row)),
            None => self.mended_row(segment, number),
        }
    }

    /// A damaged row by the logs.
    pub fn mended_row(&self, segment: &Segment, number: u32) -> Result<Option<Row>, StoreError> {
        let mut mended = locked(&segment.mended);
        let is_new = match mended.get(&number) {
            None => true,
            // What waited then has ended.
            Some(known) => known.is_some_and(|row| !row.is_done()) && !segment.ended().undone.contains(number),
        };
        if is_new {
            *mended = self.mend(segment)?;
            mended.entry(number).or_default();
        }
        Ok(mended[&number])
    }

    /// All damaged rows of a segment.
    fn mend(&self, segment: &Segment) -> Result<HashMap<u32, Option<Row>>, StoreError> {
        let mut rows: HashMap<u32, Option<Row>> = unsound(segment)?.into_iter().map(|number| (number, None)).collect();
        let undone = segment.ended().undone.clone();
        let mut left: Vec<u32> = rows.keys().copied().filter(|number| !undone.contains(*number)).collect();
        self.read_log(segment, segment, &mut rows)?;
        let ended_in = |rows: &HashMap<u32, Option<Row>>, number: &u32| rows[number].is_some_and(|row| row.has_end());
        left.retain(|number| !ended_in(&rows, number));
        let segments = self.segments();
        let later = segments.iter().filter(|later| later.number > segment.number).take(LOGS_MAX);
        for log in later.cloned().collect::<Vec<Arc<Segment>>>() {
            if left.is_empty() {
                break;
            }
            if tells_ends_of(&log, segment, &left)? {
                self.read_log(&log, segment, &mut rows)?;
                left.retain(|number| !ended_in(&rows, number));
            }
        }
        // Not told how it ended: it was moved on, or that is too far away.
        for number in left {
            rows.insert(number, None);
        }
        Ok(rows)
    }

    /// What this log says of damaged rows of a segment.
    fn read_log(
        &self,
        log: &Segment,
        segment: &Segment,
        rows: &mut HashMap<u32, Option<Row>>,
    ) -> Result<(), StoreError> {
        let failed =
            |error: std::io::Error| StoreError::CannotRead(Why::by(format!("{}: {error}", log.file("log")), error));
        let end = log.log_bytes.load(std::sync::atomic::Ordering::Acquire);
        let mut scanner = Scanner::new(&log.log, 0, end).map_err(failed)?;
        loop {
            let (at, frame) = match scanner.next().map_err(failed)? {
                Scanned::Frame { at, frame } => (at, frame),
                Scanned::Damage { .. } => continue,
                Scanned::End { .. } => return Ok(()),
            };
            let extent = Extent { at: at as u32, length: frame.length as u32 };
            let row_of = |rows: &'_ mut HashMap<u32, Option<Row>>, id, number: u32, of| -> Option<Row> {
                let known = rows.get(&number).copied().flatten();
                known.filter(|row: &Row| row.id == id && of == segment.number)
            };
            match frame.kind {
                FrameKind::Send if log.number == segment.number => {
                    if let Ok((head, form)) = SendHead::decode(frame.payload)
                        && let Some(row) = rows.get_mut(&head.row)
                    {
                        *row = Some(accepted_row(&self.keys, &head, &form, extent));
                    }
                }
                FrameKind::Begin => {
                    if let Ok(head) = BeginHead::decode(frame.payload)
                        && let Some(row) = row_of(rows, head.id, head.row, head.segment)
                    {
                        rows.insert(head.row, Some(Row { started_at: head.at, ..row }));
                    }
                }
                FrameKind::Finish => {
                    if let Ok((head, form)) = FinishHead::decode(frame.payload)
                        && let Some(mut row) = row_of(rows, head.id, head.row, head.segment)
                    {
                        FinishFacts::of(&self.keys, &form).apply(&mut row, log.number, extent);
                        rows.insert(head.row, Some(row));
                    }
                }
                _ => {}
            }
        }
    }
}

/// The rows of a segment that fail their checksums.
fn unsound(segment: &Segment) -> Result<Vec<u32>, StoreError> {
    let rows = segment.row_count();
    let (mut unsound, mut bytes) = (Vec::new(), Vec::new());
    for from in (0..rows).step_by(SCAN_ROWS as usize) {
        segment.rows(from, rows.min(from + SCAN_ROWS), &mut bytes)?;
        let each = bytes.chunks_exact(ROW_BYTES).zip(from..);
        unsound.extend(each.filter(|(row, _)| row.first_chunk().and_then(Row::decode).is_none()).map(|(_, at)| at));
    }
    Ok(unsound)
}

/// Whether any of these rows of a segment ended in this log.
fn tells_ends_of(log: &Segment, segment: &Segment, rows: &[u32]) -> Result<bool, StoreError> {
    let known = log.ends_count.load(std::sync::atomic::Ordering::Acquire);
    for from in (0..known).step_by(ENDS_AT_ONCE as usize) {
        let bytes = log.ends(from, known.min(from + ENDS_AT_ONCE))?;
        let mut ends = bytes.chunks_exact(END_BYTES).filter_map(End::decode);
        if ends.any(|end| end.segment == segment.number && rows.contains(&end.row)) {
            return Ok(true);
        }
    }
    Ok(false)
}
