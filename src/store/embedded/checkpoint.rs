//! Checkpoints of full segments, beside the writer: once all that a log has changed is synced, and the segment's index
//! is written, the next start takes the tables as they are and does not replay it.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::Shared;
use crate::clock;

/// How often it is looked whether a segment may be checkpointed.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 2000 });

/// Checkpoints segments, oldest first, beside the writer.
pub fn when_asked(shared: &Shared, asked: &Receiver<()>, newest_end: u64) {
    if let Err(error) = super::hour::count(shared, newest_end, clock::wall()) {
        tracing::warn!(%error, "what ended before the start is not counted among the outcomes of the last hour");
    }
    shared.hour.done();
    loop {
        if matches!(asked.recv_timeout(CHECKPOINT_EVERY), Err(RecvTimeoutError::Disconnected)) {
            return;
        }
        for directory in std::mem::take(&mut *super::locked(&shared.gone)) {
            super::retain::remove(&directory);
        }
        if let Err(error) = checkpoint(shared) {
            tracing::warn!(%error, "the store cannot checkpoint a segment yet");
        }
    }
}

fn checkpoint(shared: &Shared) -> io::Result<()> {
    let segments = shared.segments();
    let Some((newest, full)) = segments.split_last() else { return Ok(()) };
    super::stats::keep_up(shared, newest);
    for segment in full {
        // What a list of statistics needs is no reason to hold a checkpoint up.
        if let Err(error) = super::stats::seal(shared, segment)
            && shared.segment(segment.number).is_some()
        {
            tracing::warn!(%error, segment = segment.number, "what ended in a segment is not counted in its file yet");
        }
    }
    let mut checkpointed = false;
    for segment in full {
        if segment.is_checkpointed_for_good() {
            continue;
        }
        // Whatever the log of this segment changed anywhere must be durable before it is no longer replayed.
        for segment in segments.iter() {
            segment.sync_derived()?;
        }
        if let Err(error) = segment.checkpoint() {
            if shared.segment(segment.number).is_none() {
                // It was dropped meanwhile.
                continue;
            }
            let is_damage = matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::Other
            );
            if !segment.is_checkpointed() || !is_damage {
                return Err(io::Error::new(error.kind(), format!("{}: {error}", segment.file("index"))));
            }
            // What it had is not sound: that of no other segment waits for it.
            shared.tell_damage(format!(
                "{} is unreadable: {error}; it is made anew at the next start",
                segment.file("index")
            ));
            segment.distrust();
            continue;
        }
        checkpointed = true;
    }
    if checkpointed {
        shared.segments().learn();
    }
    Ok(())
}
