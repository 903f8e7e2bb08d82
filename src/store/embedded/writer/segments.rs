//! Opening another segment, and dropping those whose time is over.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, atomic::Ordering};

use jiff::Timestamp;

use super::batch::Effect;
use super::{LOG_BYTES_MAX, Writer};
use crate::clock;
use crate::store::embedded::retain::{self, Past};
use crate::store::embedded::segment::{self, FORMAT, Head, Segment};
use crate::store::embedded::waiting::Hand;
use crate::store::embedded::{cannot_write, locked, span};
use crate::store::{StoreError, wire};

/// Sends that are moved on in one go; their bytes are those of a batch.
const MOVED_AT_ONCE: usize = 4096;
/// Bytes that may be moved on for each that is written.
const MOVED_FOR_EACH: u64 = 2;

impl Writer {
    /// Opens another segment once the newest is full, and no large call is half written there.
    pub(super) fn make_room(&mut self) {
        let limits = &self.shared.limits;
        let log_bytes = self.newest.log_bytes.load(Ordering::Relaxed);
        let full = self.newest.row_count() >= limits.sends
            || log_bytes >= limits.log_bytes
            || self.newest.bodies_bytes.load(Ordering::Relaxed) >= limits.bodies_bytes && !self.is_crowded();
        if !full || !self.owed.is_empty() || self.ahead.is_some() {
            return;
        }
        let newest_at = self.newest.zones().newest_at();
        let opened = self.open_segment();
        if opened.is_ok() {
            // A clock that was set forward forgets no key.
            let now = wire::timestamp(newest_at).min(clock::wall());
            let past = retain::past_their_time(&self.shared, None);
            match self.drop_segments(&retain::free(&past), now) {
                Ok(gone) => locked(&self.shared.gone).extend(gone),
                Err(error) => tracing::warn!(%error, "retention was not applied; it is tried again"),
            }
            // What else is past its time has sends that wait: one by one, beside what is asked of the writer.
            self.letting_go.get_or_insert(None);
            let _ = self.checkpoint.send(());
        }
        if let Err(error) = opened {
            if log_bytes >= LOG_BYTES_MAX {
                self.abandon_newest = true;
                self.fail(&error);
            } else {
                tracing::warn!(%error, "the store cannot open another segment yet");
            }
        }
    }

    /// Each segment keeps its files open. Past so many another is made only where the records need it; what is dropped
    /// with one is more then.
    pub(super) fn is_crowded(&self) -> bool {
        self.shared.segments().len() >= self.shared.limits.many
    }

    pub(super) fn open_segment(&mut self) -> Result<(), StoreError> {
        let head = Head {
            format: FORMAT,
            segment: self.newest.number + 1,
            first_seq: self.shared.last_seq.load(Ordering::Acquire) + 1,
            opened_at: wire::nanoseconds(clock::wall()),
            previous_log_bytes: self.newest.log_bytes.load(Ordering::Relaxed),
        };
        let directory = self.shared.segments_directory();
        let made = Segment::create(&directory, &head, &self.shared.faults).map_err(|error| {
            let error = cannot_write(&directory, error);
            if segment::exists(&directory, head.segment) {
                // Whatever were written to the log now would not count at the next start.
                self.abandon_newest = true;
                self.fail(&error);
            }
            error
        });
        let segment = Arc::new(made?);
        let mut segments = self.shared.segments().to_vec();
        segments.push(segment.clone());
        self.newest = segment;
        let oldest = segments.first().map_or(self.newest.number, |oldest| oldest.number);
        span::note(&self.shared, oldest..=self.newest.number);
        self.shared.replace_segments(segments);
        let _ = self.checkpoint.send(());
        Ok(())
    }

    pub(super) fn retain(&mut self, now: Timestamp) -> Result<Vec<PathBuf>, StoreError> {
        let age = now.as_nanosecond() - i128::from(self.newest.opened_at);
        let old = age >= self.shared.limits.age.as_nanos() as i128;
        if old
            && !self.is_crowded()
            && (self.newest.row_count() > 0 || self.newest.ends_count.load(Ordering::Relaxed) > 0)
        {
            let opened = self.pay_debts().and_then(|()| self.open_segment());
            // What is old goes all the same: on a full disk that is what makes room.
            if let Err(error) = opened {
                tracing::warn!(%error, "the store cannot open another segment yet");
            }
        }
        let gone = self.let_go(Some(now));
        self.tell_bytes();
        gone
    }

    /// Another go of retention, where there is more to do.
    pub(super) fn go_on(&mut self) {
        if self.is_failing() {
            return;
        }
        let Some(now) = self.letting_go.take() else { return };
        match self.let_go(now) {
            Ok(gone) => locked(&self.shared.gone).extend(gone),
            Err(error) => tracing::warn!(%error, "retention was not applied; it is tried again"),
        }
    }

    /// One go: drops what is past its time, or moves on some of what waits there. `now`: `None` looks at the size alone.
    fn let_go(&mut self, now: Option<Timestamp>) -> Result<Vec<PathBuf>, StoreError> {
        let past = retain::past_their_time(&self.shared, now);
        let known = self.shared.segments().iter().map(|segment| segment.zones().newest_at()).max();
        let at = now.unwrap_or_else(|| wire::timestamp(known.unwrap_or(i64::MIN)).min(clock::wall()));
        let gone = self.drop_segments(&retain::free(&past), at)?;
        let held_up = match past.into_iter().find(|past| past.segment.undone_count() > 0) {
            None => now.map_or(Ok(None), |now| retain::drop_bodies(&self.shared, now))?,
            held_up => held_up,
        };
        if let Some(Past { segment, by_age }) = held_up
            && (by_age || self.may_move > 0)
        {
            let moved = self.move_on_from(&segment, wire::nanoseconds(at))?;
            if !by_age {
                self.may_move = self.may_move.saturating_sub(moved);
            }
            if moved > 0 {
                self.letting_go = Some(now);
            }
        }
        Ok(gone)
    }

    pub(super) fn earn(&mut self, bytes: u64) {
        let limits = &self.shared.limits;
        let most = MOVED_FOR_EACH * (limits.log_bytes + limits.bodies_bytes);
        self.may_move = self.may_move.saturating_add(MOVED_FOR_EACH * bytes).min(most);
    }

    /// Moves some of what waits in this segment to the newest, so that it holds up nothing that goes. Answers how many
    /// bytes that were. What has begun stays: it ends within its deadline. So does what nothing but `recover` may end,
    /// and what cannot be read.
    fn move_on_from(&mut self, segment: &Segment, now: i64) -> Result<u64, StoreError> {
        self.pay_debts()?;
        let left: HashSet<(u32, u32)> = self.left_behind.iter().copied().collect();
        let undone: Vec<u32> = segment.ended().undone.iter().collect();
        let mut batch = self.empty_batch();
        let mut moved = Vec::new();
        for number in undone.into_iter().filter(|&number| !left.contains(&(segment.number, number))) {
            if moved.len() == MOVED_AT_ONCE || batch.is_full() {
                break;
            }
            let shared = &self.shared;
            let is_begun =
                |id| locked(&shared.waiting).taken(id).is_some_and(|taken| matches!(taken.hand, Hand::Begun(_)));
            let one = shared.waiting_row(segment, number).and_then(|row| {
                let row = row.filter(|row| !row.is_begun() && !row.is_done() && !is_begun(row.id));
                row.map(|row| self.move_on(&mut batch, segment, number, &row, now)).transpose()
            });
            match one {
                Ok(one) => moved.extend(one),
                Err(error) => shared.tell_unread(&error),
            }
        }
        if moved.is_empty() {
            return Ok(0);
        }
        let (sends, bytes) = (moved.len(), (batch.log.len() + batch.bodies.len()) as u64);
        batch.effects.push(Effect::Moved(moved, now));
        self.write_alone(batch)?;
        tracing::debug!(segment = segment.number, sends, bytes, "moved on what waits in a segment past its time");
        self.make_room();
        Ok(bytes)
    }

    /// Drops the store's oldest segments, once their keys that are still promised stand in the newest log.
    pub(super) fn drop_segments(&mut self, past: &[Arc<Segment>], now: Timestamp) -> Result<Vec<PathBuf>, StoreError> {
        for segment in past {
            let calls = self.shared.calls_to_carry(segment, now)?;
            if calls.is_empty() {
                continue;
            }
            self.pay_debts()?;
            let mut batch = self.empty_batch();
            for (hash, form) in calls {
                self.carry(&mut batch, hash, &form);
                if batch.is_full() {
                    let full = std::mem::replace(&mut batch, self.empty_batch());
                    self.write_alone(full)?;
                }
            }
            self.write_alone(batch)?;
        }
        retain::drop_segments(&self.shared, past)
    }
}
