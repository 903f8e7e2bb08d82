//! Which segments there should be. Between others one that is lost is missed; the oldest and the newest are by this
//! alone.
//!
//! What stands here is never ahead of the directories: the newest is noted once it is there, the oldest before those
//! below it go. So whatever a crash leaves, nothing is taken for lost that is not.

use std::{fs, ops::RangeInclusive, path::Path};

use super::Shared;
use super::frame::{self, Frame, FrameKind};
use super::state::write_whole;

const NAME: &str = "span";

/// As noted last; `None` where nobody did, or it is not sound.
pub fn noted(root: &Path) -> Option<RangeInclusive<u32>> {
    let bytes = fs::read(root.join(NAME)).ok()?;
    let Frame { kind: FrameKind::Span, payload, .. } = frame::parse(&bytes)? else { return None };
    let (oldest, newest) = payload.split_first_chunk()?;
    Some(u32::from_le_bytes(*oldest)..=u32::from_le_bytes(*newest.first_chunk()?))
}

/// Durable when it returns. Where it cannot be, nothing is noted any more, which does no harm: what goes must go on a
/// full disk, too.
pub fn note(shared: &Shared, span: RangeInclusive<u32>) {
    let path = shared.root.join(NAME);
    let mut bytes = Vec::new();
    frame::append(&mut bytes, FrameKind::Span, &[&span.start().to_le_bytes(), &span.end().to_le_bytes()], None);
    if let Err(error) = write_whole(&path, &bytes) {
        let _ = fs::remove_file(&path);
        tracing::warn!(path = %path.display(), %error, "which segments there are could not be noted");
    }
}
