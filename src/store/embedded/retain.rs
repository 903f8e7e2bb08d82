//! Retention: the oldest pieces go, as wholes, and before them their bodies.
//!
//! A piece goes when its newest send is older than `[store] retention`, or while all pieces together are larger than
//! `max_bytes`; its bodies by `body_retention` and `body_max_bytes`. Always from the oldest on, never the newest
//! piece, and never one with a send that is not done: what is behind such a piece waits with it, because logs tell of
//! sends of earlier pieces. `max_bytes` is asked for whenever a piece is opened, so that no flood outruns it.
//!
//! Whatever becomes of records, idempotency keys live their day: before a piece goes, the calls whose keys are still
//! promised are carried on into the newest log, each with the ids of its sends.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use jiff::Timestamp;

use super::piece::Piece;
use super::{Shared, cannot_write};
use crate::store::{StoreError, wire};

/// The pieces that are past their time, oldest first. `now`: `None` asks for those alone for which there is no room.
pub fn past_their_time(shared: &Shared, now: Option<Timestamp>) -> Vec<Arc<Piece>> {
    let settings = &shared.settings;
    let pieces = shared.pieces();
    let newest = pieces.len().saturating_sub(1);
    let done = pieces[..newest].iter().take_while(|piece| piece.undone_count() == 0).count();
    let (mut record_bytes, mut body_bytes) = shared.bytes();
    let mut past = Vec::new();
    for piece in &pieces[..done] {
        // What ended late in this log keeps it, and the records of those sends are no older than that.
        let newest_at = piece.facts().newest_at();
        let (records, bodies) = piece.bytes();
        let is_old = now.is_some_and(|now| older(now, newest_at, settings.retention));
        if !is_old && record_bytes + body_bytes <= settings.max_bytes {
            break;
        }
        record_bytes -= records;
        body_bytes -= bodies;
        past.push(piece.clone());
    }
    past
}

fn older(now: Timestamp, at: i64, than: std::time::Duration) -> bool {
    wire::nanoseconds(now).saturating_sub(at) > i64::try_from(than.as_nanos()).unwrap_or(i64::MAX)
}

/// Takes these from the store, which are its oldest. Answers their directories, renamed, for [`remove`].
pub fn drop_pieces(shared: &Shared, past: &[Arc<Piece>]) -> Result<Vec<PathBuf>, StoreError> {
    let mut gone = Vec::new();
    if past.is_empty() {
        return Ok(gone);
    }
    let pieces = shared.pieces();
    shared.replace_pieces(pieces[past.len()..].to_vec());
    for piece in past {
        shared.forget_shares(piece, true);
        let directory = piece.directory.with_extension("gone");
        fs::rename(&piece.directory, &directory).map_err(|error| cannot_write(&piece.directory, &error))?;
        tracing::info!(piece = piece.number, sends = piece.row_count(), "dropped a piece past its retention");
        gone.push(directory);
    }
    Ok(gone)
}

/// Drops the bodies of pieces whose bodies are past their time.
pub fn drop_bodies(shared: &Shared, now: Timestamp) -> Result<(), StoreError> {
    let settings = &shared.settings;
    let pieces = shared.pieces();
    let newest = pieces.len().saturating_sub(1);
    let (_, mut body_bytes) = shared.bytes();
    for piece in pieces[..newest].iter().take_while(|piece| piece.undone_count() == 0) {
        let newest_at = piece.facts().newest_at();
        if !older(now, newest_at, settings.body_retention) && body_bytes <= settings.body_max_bytes {
            break;
        }
        if piece.has_bodies() {
            body_bytes -= piece.bodies_bytes.load(Ordering::Relaxed);
            shared.forget_shares(piece, false);
            piece.drop_bodies().map_err(|error| cannot_write(&piece.directory.join("bodies"), &error))?;
            tracing::info!(piece = piece.number, "dropped the bodies of a piece past their retention");
        }
    }
    Ok(())
}

/// Frees what a dropped piece held on disk. What cannot be removed is removed at the next start.
pub fn remove(directory: &Path) {
    if let Err(error) = fs::remove_dir_all(directory) {
        tracing::warn!(directory = %directory.display(), %error, "a dropped piece could not be removed yet");
    }
}
