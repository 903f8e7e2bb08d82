//! Opening another segment, and dropping those whose time is over.

use std::path::PathBuf;
use std::sync::{Arc, atomic::Ordering};

use jiff::Timestamp;

use super::{LOG_BYTES_MAX, Writer};
use crate::clock;
use crate::store::embedded::segment::{self, FORMAT, Head, Segment};
use crate::store::embedded::{cannot_write, locked, retain};
use crate::store::{StoreError, wire};

impl Writer {
    /// Opens another segment once the newest is full.
    pub(super) fn make_room(&mut self) {
        let limits = &self.shared.limits;
        let log_bytes = self.newest.log_bytes.load(Ordering::Relaxed);
        let full = self.newest.row_count() >= limits.sends
            || log_bytes >= limits.log_bytes
            || self.newest.bodies_bytes.load(Ordering::Relaxed) >= limits.bodies_bytes && !self.is_crowded();
        if !full || !self.owed.is_empty() {
            return;
        }
        let newest_at = self.newest.zones().newest_at();
        let opened = self.open_segment();
        if opened.is_ok() {
            let past = retain::past_their_time(&self.shared, None);
            // A clock that was set forward forgets no key.
            let now = wire::timestamp(newest_at).min(clock::wall());
            match self.drop_segments(&past, now) {
                Ok(gone) => locked(&self.shared.gone).extend(gone),
                Err(error) => tracing::warn!(%error, "retention was not applied; it is tried again"),
            }
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
        let past = retain::past_their_time(&self.shared, Some(now));
        let gone = self.drop_segments(&past, now)?;
        retain::drop_bodies(&self.shared, now)?;
        self.tell_bytes();
        Ok(gone)
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
