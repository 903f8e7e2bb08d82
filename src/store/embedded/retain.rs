//! Retention: the oldest pieces go, as wholes, and before them their bodies.
//!
//! A piece goes when its newest send is older than `[store] retention`, or while all pieces together are larger than
//! `max_bytes`; its bodies by `body_retention` and `body_max_bytes`. Always from the oldest on, never the newest
//! piece, and never one with a send that is not done: what is behind such a piece waits with it, because logs tell of
//! sends of earlier pieces.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
};

use jiff::Timestamp;

use super::{Shared, cannot_write};
use crate::store::{StoreError, wire};

/// Takes the pieces that are past their time from the store. Answers their directories, renamed, for [`remove`].
pub fn drop_old(shared: &Shared, now: Timestamp) -> Result<Vec<PathBuf>, StoreError> {
    let settings = &shared.settings;
    let older = |at: i64, than: std::time::Duration| {
        wire::nanoseconds(now).saturating_sub(at) > i64::try_from(than.as_nanos()).unwrap_or(i64::MAX)
    };
    let pieces = shared.pieces();
    let newest = pieces.len().saturating_sub(1);
    let done = pieces[..newest].iter().take_while(|piece| piece.undone_count() == 0).count();
    let (mut record_bytes, mut body_bytes) = shared.bytes();

    let mut dropped = 0;
    for piece in &pieces[..done] {
        // What ended late in this log keeps it, and the records of those sends are no older than that.
        let newest_at = piece.facts().newest_at();
        let (records, bodies) = piece.bytes();
        if !older(newest_at, settings.retention) && record_bytes + body_bytes <= settings.max_bytes {
            break;
        }
        record_bytes -= records;
        body_bytes -= bodies;
        dropped += 1;
    }
    let mut gone = Vec::new();
    if dropped > 0 {
        shared.replace_pieces(pieces[dropped..].to_vec());
        for piece in &pieces[..dropped] {
            let directory = piece.directory.with_extension("gone");
            fs::rename(&piece.directory, &directory).map_err(|error| cannot_write(&piece.directory, &error))?;
            tracing::info!(piece = piece.number, sends = piece.row_count(), "dropped a piece past its retention");
            gone.push(directory);
        }
    }
    for piece in &pieces[dropped..done.max(dropped)] {
        let newest_at = piece.facts().newest_at();
        if !older(newest_at, settings.body_retention) && body_bytes <= settings.body_max_bytes {
            break;
        }
        if piece.has_bodies() {
            body_bytes -= piece.bodies_bytes.load(Ordering::Relaxed);
            piece.drop_bodies().map_err(|error| cannot_write(&piece.directory.join("bodies"), &error))?;
            tracing::info!(piece = piece.number, "dropped the bodies of a piece past their retention");
        }
    }
    Ok(gone)
}

/// Frees what a dropped piece held on disk. What cannot be removed is removed at the next start.
pub fn remove(directory: &Path) {
    if let Err(error) = fs::remove_dir_all(directory) {
        tracing::warn!(directory = %directory.display(), %error, "a dropped piece could not be removed yet");
    }
}
