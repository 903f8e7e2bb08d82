//! Retention: the oldest segments go, as wholes, and before them their bodies.
//!
//! A segment goes when its newest send is older than `[store] retention`, or while all segments together are larger
//! than `max_bytes`; its bodies by `body_retention` and `body_max_bytes`. Always from the oldest on, because logs tell of
//! sends of earlier segments, and never the newest segment. `max_bytes` is asked for whenever a segment is opened, so
//! that no flood outruns it.
//!
//! Never is a send lost that is not done: before a segment or its bodies go, the sends that wait there are moved on into
//! the newest, a batch at a time. So one send that waits for months holds up nobody's retention. To keep the size alone,
//! no more is moved than a multiple of what is written: a store full of what waits grows past its size instead.
//!
//! Whatever becomes of records, idempotency keys live their day: before a segment goes, the calls whose keys are still
//! promised are carried on into the newest log, each with the ids of its sends.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use jiff::Timestamp;

use super::segment::Segment;
use super::{Shared, cannot_write, span};
use crate::store::{StoreError, wire};

/// A segment that is past its time, or whose bodies are. By its age, or else because there is no room for it.
pub struct Past {
    pub segment: Arc<Segment>,
    pub by_age: bool,
}

/// The first of these, in which nothing waits any more.
pub fn free(past: &[Past]) -> Vec<Arc<Segment>> {
    let free = past.iter().take_while(|past| past.segment.undone_count() == 0);
    free.map(|past| past.segment.clone()).collect()
}

/// The segments that are past their time, oldest first. `now`: `None` asks for those alone for which there is no room.
pub fn past_their_time(shared: &Shared, now: Option<Timestamp>) -> Vec<Past> {
    let settings = &shared.settings;
    let segments = shared.segments();
    let newest = segments.len().saturating_sub(1);
    // Asked once of each: an index that is written meanwhile has another size, and what is left would be less than nothing.
    let sizes: Vec<(u64, u64)> = segments.iter().map(|segment| segment.bytes()).collect();
    let mut left: u64 = sizes.iter().map(|(records, bodies)| records + bodies).sum();
    left += shared.batches.bytes();
    let mut past = Vec::new();
    for (segment, (records, bodies)) in segments[..newest].iter().zip(sizes) {
        // What ended late in this log keeps it, and the records of those sends are no older than that.
        let newest_at = segment.zones().newest_at();
        let by_age = now.is_some_and(|now| older(now, newest_at, settings.retention));
        if !by_age && left <= settings.max_bytes {
            break;
        }
        left -= records + bodies;
        past.push(Past { segment: segment.clone(), by_age });
    }
    past
}

fn older(now: Timestamp, at: i64, than: std::time::Duration) -> bool {
    wire::nanoseconds(now).saturating_sub(at) > i64::try_from(than.as_nanos()).unwrap_or(i64::MAX)
}

/// Takes these from the store, which are its oldest. Answers their directories, renamed, for [`remove`].
pub fn drop_segments(shared: &Shared, past: &[Arc<Segment>]) -> Result<Vec<PathBuf>, StoreError> {
    let mut gone = Vec::new();
    if past.is_empty() {
        return Ok(gone);
    }
    let segments = shared.segments();
    shared.replace_segments(segments[past.len()..].to_vec());
    if let [oldest, .., newest] | [oldest @ newest] = &segments[past.len()..] {
        span::note(shared, oldest.number..=newest.number);
    }
    for segment in past {
        shared.forget_shares(segment, true);
        let directory = segment.directory.with_extension("gone");
        fs::rename(&segment.directory, &directory).map_err(|error| cannot_write(&segment.directory, error))?;
        tracing::info!(segment = segment.number, sends = segment.row_count(), "dropped a segment past its retention");
        gone.push(directory);
    }
    Ok(gone)
}

/// Drops the bodies of segments whose bodies are past their time, up to the first in which a send waits: that is the
/// answer.
pub fn drop_bodies(shared: &Shared, now: Timestamp) -> Result<Option<Past>, StoreError> {
    let settings = &shared.settings;
    let segments = shared.segments();
    let newest = segments.len().saturating_sub(1);
    let (_, mut body_bytes) = shared.bytes();
    for segment in &segments[..newest] {
        let by_age = older(now, segment.zones().newest_at(), settings.body_retention);
        if !by_age && body_bytes <= settings.body_max_bytes {
            break;
        }
        if segment.undone_count() > 0 {
            return Ok(Some(Past { segment: segment.clone(), by_age }));
        }
        if segment.has_bodies() {
            body_bytes -= segment.bodies_bytes.load(Ordering::Relaxed);
            shared.forget_shares(segment, false);
            segment.drop_bodies().map_err(|error| cannot_write(&segment.directory.join("bodies"), error))?;
            tracing::info!(segment = segment.number, "dropped the bodies of a segment past their retention");
        }
    }
    Ok(None)
}

/// Frees what a dropped segment held on disk. What cannot be removed is removed at the next start.
pub fn remove(directory: &Path) {
    if let Err(error) = fs::remove_dir_all(directory) {
        tracing::warn!(directory = %directory.display(), %error, "a dropped segment could not be removed yet");
    }
}
