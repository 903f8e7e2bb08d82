//! The form of everything that is appended: frames with their length and a checksum, and finding them again.
//!
//! A frame is `magic, kind, slot, length, checksum, payload` and, where `slot` is set, one wrapped key behind it. The
//! checksum covers all but the slot, so that a slot may be overwritten. What fails its checksum is never taken for
//! anything: [`Scanner`] says from where to where it reaches, and goes on at the next whole frame.

use std::{fs::File, io, os::unix::fs::FileExt};

use super::seal::{SLOT_BYTES, Slot};

const MAGIC: [u8; 4] = [0xe6, b'g', b'r', 0x1e];
pub const HEADER_BYTES: usize = 16;
/// Larger than any frame that is written: bodies are bounded by `[limits]`, all else far below.
const FRAME_BYTES_MAX: usize = 1 << 30;
/// How much a scan reads at once.
const WINDOW_BYTES: usize = 1 << 20;

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// The first of every log: which segment, and what came before it.
    Head = 1,
    /// A send was accepted.
    Send = 2,
    /// An execution ended.
    Ending = 3,
    /// A delivery began.
    Begin = 4,
    /// A send ended.
    Finish = 5,
    /// A body, or sealed bytes; in bodies files alone.
    Body = 6,
    /// The small state beside the segments.
    State = 8,
    /// What is known of a checkpointed segment; in index files alone. (7 was an earlier form of it.)
    Index = 9,
    /// In index files of earlier versions alone: which terms come together.
    Pairs = 10,
    /// An idempotent call: behind its sends, as the second place of its key, or where these are gone before its day is
    /// over.
    Call = 11,
    /// What each tenant has stored in a checkpointed segment; at the end of index files alone.
    Shares = 12,
    /// What the ends of a full segment come to; in `stats` files alone. (13, 15 and 16 were earlier forms of it.)
    Stats = 17,
    /// Which segments there are; in the `span` file alone.
    Span = 14,
    /// A tunnel was opened, or was open when this piece of the tunnels' log was begun.
    TunnelOpen = 18,
    TunnelEnd = 19,
    /// What is known of a full piece of the tunnels' log; in a file of its own.
    Tunnels = 20,
    /// A batch, whole; in a file of its own.
    Batch = 21,
}

impl FrameKind {
    fn of(number: u8) -> Option<Self> {
        use FrameKind::*;
        let all = [
            Head, Send, Ending, Begin, Finish, Body, State, Index, Pairs, Call, Shares, Stats, Span, TunnelOpen,
            TunnelEnd, Tunnels, Batch,
        ];
        all.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// A frame that passed its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub kind: FrameKind,
    pub payload: &'a [u8],
    /// Bytes of the whole frame, slot included.
    pub length: usize,
}

/// Appends a frame made of these parts; answers its length.
pub fn append(into: &mut Vec<u8>, kind: FrameKind, parts: &[&[u8]], slot: Option<&Slot>) -> usize {
    let start = into.len();
    let length: usize = parts.iter().map(|part| part.len()).sum();
    into.extend_from_slice(&MAGIC);
    into.extend_from_slice(&[kind as u8, u8::from(slot.is_some()), 0, 0]);
    into.extend_from_slice(&(length as u32).to_le_bytes());
    into.extend_from_slice(&[0; 4]);
    for part in parts {
        into.extend_from_slice(part);
    }
    let sum = checksum(&into[start..start + 12], &into[start + HEADER_BYTES..]);
    into[start + 12..start + HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    if let Some(slot) = slot {
        into.extend_from_slice(slot);
    }
    into.len() - start
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(header);
    sum.update(payload);
    sum.finalize()
}

/// Bytes of the whole frame whose header this is.
fn frame_length(header: &[u8]) -> Option<usize> {
    let header: &[u8; HEADER_BYTES] = header.first_chunk()?;
    if header[..4] != MAGIC || header[5] > 1 || header[6..8] != [0, 0] {
        return None;
    }
    let payload = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
    let length = HEADER_BYTES + payload + usize::from(header[5]) * SLOT_BYTES;
    (length <= FRAME_BYTES_MAX).then_some(length)
}

/// The frame at the start of `bytes`, if it is whole and sound.
pub fn parse(bytes: &[u8]) -> Option<Frame<'_>> {
    let length = frame_length(bytes)?;
    let kind = FrameKind::of(bytes[4])?;
    let payload = bytes.get(HEADER_BYTES..length - usize::from(bytes[5]) * SLOT_BYTES)?;
    bytes.get(..length)?;
    let sum = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
    (sum == checksum(&bytes[..12], payload)).then_some(Frame { kind, payload, length })
}

/// How long the frame at `at` says it is; `None`: no frame begins there.
pub fn length_at(file: &File, at: u64) -> io::Result<Option<usize>> {
    match read_at(file, at, HEADER_BYTES) {
        Ok(header) => Ok(frame_length(&header)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// What the frame at the start of `bytes` was, going by its header alone: kind, payload, and the bytes behind it. For
/// one that failed its checksum.
pub fn outline(bytes: &[u8]) -> Option<(FrameKind, &[u8], &[u8])> {
    let (frame, after) = bytes.split_at_checked(frame_length(bytes)?)?;
    let payload = HEADER_BYTES..frame.len() - usize::from(frame[5]) * SLOT_BYTES;
    Some((FrameKind::of(frame[4])?, &frame[payload], after))
}

/// Reads `length` bytes at `at`, all of them.
pub fn read_at(file: &File, at: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

#[derive(Debug, PartialEq, Eq)]
pub enum Scanned<'a> {
    /// A sound frame, and where it stands.
    Frame { at: u64, frame: Frame<'a> },
    /// Bytes that are no frame, with a sound frame behind them.
    Damage { from: u64, to: u64 },
    /// Nothing sound from here to the file's end.
    End { at: u64 },
}

/// Walks over a file's frames in order.
pub struct Scanner<'f> {
    file: &'f File,
    at: u64,
    end: u64,
    window: Vec<u8>,
    window_at: u64,
}

impl<'f> Scanner<'f> {
    /// From `at` to the file's end, or to `end` where that is less.
    pub fn new(file: &'f File, at: u64, end: u64) -> io::Result<Self> {
        let end = end.min(file.metadata()?.len());
        Ok(Self { file, at, end, window: Vec::new(), window_at: 0 })
    }

    /// The bytes from `at`, at least `length` where the file has them.
    fn bytes(&mut self, at: u64, length: usize) -> io::Result<&[u8]> {
        let have = self.window_at + self.window.len() as u64;
        let wanted = (at + length as u64).min(self.end);
        if at < self.window_at || wanted > have {
            let most = usize::try_from(self.end.saturating_sub(at)).unwrap_or(usize::MAX);
            self.window.resize(length.max(WINDOW_BYTES).min(most), 0);
            self.window_at = at;
            self.file.read_exact_at(&mut self.window, at)?;
        }
        Ok(&self.window[(at - self.window_at) as usize..])
    }

    fn sound(&mut self, at: u64) -> io::Result<Option<usize>> {
        let Some(length) = frame_length(self.bytes(at, HEADER_BYTES)?) else { return Ok(None) };
        Ok(parse(self.bytes(at, length)?).map(|frame| frame.length))
    }

    #[allow(clippy::should_implement_trait, reason = "what it gives borrows from it")]
    pub fn next(&mut self) -> io::Result<Scanned<'_>> {
        let at = self.at;
        if let Some(length) = self.sound(at)? {
            self.at += length as u64;
            let frame = parse(self.bytes(at, length)?);
            return Ok(frame.map_or(Scanned::End { at }, |frame| Scanned::Frame { at, frame }));
        }
        let mut next = at;
        while next + (HEADER_BYTES as u64) < self.end {
            next += 1;
            let bytes = self.bytes(next, WINDOW_BYTES / 2)?;
            match bytes.windows(MAGIC.len()).position(|window| window == MAGIC) {
                None => next += (bytes.len() - MAGIC.len().min(bytes.len())) as u64,
                Some(further) => {
                    next += further as u64;
                    if self.sound(next)?.is_some() {
                        self.at = next;
                        return Ok(Scanned::Damage { from: at, to: next });
                    }
                }
            }
        }
        Ok(Scanned::End { at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// Offset and payload of a frame, or from where to where damage reaches.
    type Seen = Result<(u64, Vec<u8>), (u64, u64)>;

    /// What is seen, and the end.
    fn walk(bytes: &[u8]) -> (Vec<Seen>, u64) {
        let file = file(bytes);
        let mut scanner = Scanner::new(&file, 0, u64::MAX).unwrap();
        let mut seen = Vec::new();
        loop {
            match scanner.next().unwrap() {
                Scanned::Frame { at, frame } => seen.push(Ok((at, frame.payload.to_vec()))),
                Scanned::Damage { from, to } => seen.push(Err((from, to))),
                Scanned::End { at } => return (seen, at),
            }
        }
    }

    #[test]
    fn frames_are_found_and_torn_and_damaged_ones_are_told_apart() {
        let mut bytes = Vec::new();
        let first = append(&mut bytes, FrameKind::Send, &[b"one", b"-", b"two"], Some(&[5; SLOT_BYTES])) as u64;
        let second = first + append(&mut bytes, FrameKind::Begin, &[b"three"], None) as u64;
        append(&mut bytes, FrameKind::Finish, &[&[7; 3_000_000]], None);
        let end = bytes.len() as u64;
        let whole =
            vec![Ok((0, b"one-two".to_vec())), Ok((first, b"three".to_vec())), Ok((second, vec![7; 3_000_000]))];
        assert_eq!(walk(&bytes), (whole.clone(), end));

        // A slot may change, nothing else may.
        bytes[first as usize - 1] = 0;
        assert_eq!(walk(&bytes), (whole.clone(), end));
        for broken in [first as usize, first as usize + 5, first as usize + 9, second as usize - 1] {
            let mut bytes = bytes.clone();
            bytes[broken] ^= 1;
            let expected = vec![whole[0].clone(), Err((first, second)), whole[2].clone()];
            assert_eq!(walk(&bytes), (expected, end), "byte {broken}");
        }
        for cut in [second as usize + 3, bytes.len() - 1] {
            assert_eq!(walk(&bytes[..cut]), (whole[..2].to_vec(), second), "cut at {cut}");
        }
        assert_eq!(walk(&[]), (vec![], 0));
        assert_eq!(walk(&[0; 5000]), (vec![], 0));
    }
}
