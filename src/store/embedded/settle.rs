//! Settling full pieces, beside the writer.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::Shared;

/// How often it is looked whether a piece may be settled.
const SETTLE_EVERY: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 2000 });

/// Settles pieces, oldest first, beside the writer.
pub fn when_asked(shared: &Shared, asked: &Receiver<()>, newest_end: u64) {
    if let Err(error) = super::hour::count(shared, newest_end) {
        tracing::warn!(%error, "what ended before the start is not counted among the outcomes of the last hour");
    }
    shared.hour.done();
    loop {
        if matches!(asked.recv_timeout(SETTLE_EVERY), Err(RecvTimeoutError::Disconnected)) {
            return;
        }
        for directory in std::mem::take(&mut *super::locked(&shared.gone)) {
            super::retain::remove(&directory);
        }
        if let Err(error) = settle(shared) {
            tracing::warn!(%error, "the store cannot settle a piece yet");
        }
    }
}

fn settle(shared: &Shared) -> io::Result<()> {
    let pieces = shared.pieces();
    let Some((_, full)) = pieces.split_last() else { return Ok(()) };
    let mut settled = false;
    for piece in full {
        if piece.is_settled_for_good() {
            continue;
        }
        // Whatever the log of this piece changed anywhere must be durable before it is no longer replayed.
        for piece in pieces.iter() {
            piece.sync_derived()?;
        }
        if let Err(error) = piece.settle() {
            if shared.piece(piece.number).is_none() {
                // It was dropped meanwhile.
                continue;
            }
            let is_damage = matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::Other
            );
            if !piece.is_settled() || !is_damage {
                return Err(io::Error::new(error.kind(), format!("{}: {error}", piece.file("index"))));
            }
            // What it had is not sound: that of no other piece waits for it.
            shared.tell_damage(format!(
                "{} is unreadable: {error}; it is made anew at the next start",
                piece.file("index")
            ));
            piece.distrust();
            continue;
        }
        settled = true;
    }
    if settled {
        shared.pieces().learn();
    }
    Ok(())
}
