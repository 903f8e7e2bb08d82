//! Which sends may have been begun, ended or called off by what is lost: those are never made.
//!
//! A send that waits by what is left of a damaged store may have gone out by what stood in the lost part. Making it
//! again could be making it twice, so it ends `interrupted`, as one does that was begun when the process died. A lost
//! frame mostly still names its send, and a table may know more than its log does; only where neither helps, all that
//! was accepted before the loss is in doubt.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
};

use super::frame::{self, FrameKind};

/// A row's place: its segment, and its number there.
pub type RowAt = (u32, u32);

#[derive(Default)]
pub struct Doubts {
    ids: HashSet<u128>,
    /// Everything accepted before that place.
    before: Option<RowAt>,
    /// Everything held that was accepted before that place: the end of an execution is lost.
    held_before: Option<RowAt>,
}

impl Doubts {
    pub fn about(&mut self, id: u128) {
        self.ids.insert(id);
    }

    pub fn about_all_before(&mut self, place: RowAt) {
        self.before = self.before.max(Some(place));
    }

    /// Whether a send that waits by what is left is in doubt.
    pub fn has(&self, id: u128, place: RowAt, held: bool) -> bool {
        let earlier = |before: Option<RowAt>| before.is_some_and(|before| place < before);
        self.ids.contains(&id) || earlier(self.before) || (held && earlier(self.held_before))
    }

    /// What bytes `from..to` of a log may have said. `next`: the place of the next send to be accepted there. `id_at`
    /// says whose row is at a place. `newest`: the newest number of the tail before it. Answers the newest after it, by
    /// counting: what failed its checksum is believed no number, on whose word room would be set aside.
    pub fn examine(
        &mut self,
        log: &File,
        (from, to): (u64, u64),
        next: RowAt,
        mut newest: u64,
        id_at: impl Fn(RowAt) -> Option<u128>,
    ) -> io::Result<u64> {
        let length = log.metadata()?.len();
        let bytes = frame::read_at(log, from, to.min(length).saturating_sub(from) as usize)?;
        let mut rest = bytes.as_slice();
        let mut next = next;
        let mut whole = to <= length;
        // Sends of this very stretch: they are lost, and whatever happened to them with it.
        let mut here: HashMap<RowAt, u128> = HashMap::new();
        while whole && !rest.is_empty() {
            let Some((kind, payload, after)) = frame::outline(rest) else {
                whole = false;
                break;
            };
            // Begins and ends say first whose they are, as a send's own frame does.
            let id = payload.first_chunk().map(|id| u128::from_le_bytes(*id));
            let number = |at: usize| payload.get(at..at + 4)?.first_chunk().map(|number| u32::from_le_bytes(*number));
            if kind == FrameKind::Finish {
                newest = newest.saturating_add(1);
            }
            match kind {
                FrameKind::Send if number(16) == Some(next.1) => {
                    here.extend(id.map(|id| (next, id)));
                    // Where it was moved here, it still seems to wait where it stood before.
                    id.into_iter().for_each(|id| self.about(id));
                    next.1 += 1;
                }
                FrameKind::Begin | FrameKind::Finish => match (id, number(16), number(20)) {
                    (Some(id), Some(segment), Some(row)) if here.get(&(segment, row)) == Some(&id) => {}
                    (Some(id), Some(segment), Some(row)) if id_at((segment, row)) == Some(id) => self.about(id),
                    _ => whole = false,
                },
                // The second place of a key says nothing of what became of its sends.
                FrameKind::Call => {}
                FrameKind::Ending => self.held_before = self.held_before.max(Some(next)),
                _ => whole = false,
            }
            rest = after;
        }
        if !whole {
            self.about_all_before(next);
        }
        Ok(newest)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Doubts after these bytes were found damaged, with a row of id 7 at (1, 2) and the next send at (1, 5).
    fn after(bytes: &[u8]) -> Doubts {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let mut doubts = Doubts::default();
        let id_at = |place| (place == (1, 2)).then_some(7);
        doubts.examine(&file, (0, bytes.len() as u64), (1, 5), 0, id_at).unwrap();
        doubts
    }

    fn subject(id: u128, segment: u32, row: u32) -> Vec<u8> {
        [&id.to_le_bytes()[..], &segment.to_le_bytes(), &row.to_le_bytes(), &[0; 8]].concat()
    }

    #[test]
    fn what_a_lost_frame_still_names_is_in_doubt_alone_and_else_all_before_it() {
        let make = |kind, payload: &[u8]| {
            let mut bytes = Vec::new();
            frame::append(&mut bytes, kind, &[payload], None);
            bytes
        };
        let (mine, other, later) = ((7, (1, 2)), (8, (1, 3)), (10, (1, 5)));
        for (name, bytes, doubted, held) in [
            ("its begin", make(FrameKind::Begin, &subject(7, 1, 2)), [true, false], [true, false]),
            ("its end", make(FrameKind::Finish, &subject(7, 1, 2)), [true, false], [true, false]),
            ("a begin of nobody known", make(FrameKind::Begin, &subject(6, 1, 2)), [true, true], [true, true]),
            ("a begin of another row", make(FrameKind::Begin, &subject(7, 1, 3)), [true, true], [true, true]),
            ("the next send", make(FrameKind::Send, &subject(9, 5, 0)), [false, false], [false, false]),
            ("a send that is not the next", make(FrameKind::Send, &subject(9, 4, 0)), [true, true], [true, true]),
            ("an execution's end", make(FrameKind::Ending, b"e"), [false, false], [true, true]),
            ("what no log has", make(FrameKind::Index, b"e"), [true, true], [true, true]),
            ("noise", vec![0x5a; 100], [true, true], [true, true]),
            (
                "a send and the begin of another",
                [make(FrameKind::Send, &subject(9, 5, 0)), make(FrameKind::Begin, &subject(7, 1, 2))].concat(),
                [true, false],
                [true, false],
            ),
            (
                "a send and its own begin",
                [make(FrameKind::Send, &subject(9, 5, 0)), make(FrameKind::Begin, &subject(9, 1, 5))].concat(),
                [false, false],
                [false, false],
            ),
            ("half a frame", make(FrameKind::Send, &subject(9, 5, 0))[..40].to_vec(), [true, true], [true, true]),
        ] {
            let doubts = after(&bytes);
            let has = |held| [mine, other].map(|(id, place)| doubts.has(id, place, held));
            assert_eq!((has(false), has(true)), (doubted, held), "{name}");
            if !matches!(name, "a send and the begin of another" | "a send and its own begin") {
                assert!(!doubts.has(later.0, later.1, true), "{name}: what was accepted after it is not in doubt");
            }
        }
    }
}
