//! Which pieces may know an execution or an idempotency key, in a few looks however many pieces there are: every
//! accept asks it.
//!
//! 64 pieces share a table of words, a bit of each word for each piece. A hash names a few words; the pieces whose bit
//! is set in all of them may know it, and their own filters say more. Bits of dropped pieces stay until all of the 64
//! are gone.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::piece::Piece;

const TOGETHER: u32 = 64;
/// 8 MiB for the pieces of some eight million sends.
const WORDS: u64 = 1 << 20;
const WORDS_PER_HASH: u64 = 4;

struct Group {
    /// Pieces whose hashes are in; the others may know anything.
    known: AtomicU64,
    words: Box<[AtomicU64]>,
}

impl Group {
    fn new() -> Self {
        Self { known: AtomicU64::new(0), words: (0..WORDS).map(|_| AtomicU64::new(0)).collect() }
    }

    fn words(&self, hash: u64) -> impl Iterator<Item = &AtomicU64> {
        let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let (first, step) = (mixed >> 44, mixed >> 20 | 1);
        (0..WORDS_PER_HASH).map(move |turn| &self.words[(first.wrapping_add(turn * step) % WORDS) as usize])
    }

    fn add(&self, bit: u64, hashes: &[u64]) {
        for &hash in hashes {
            for word in self.words(hash) {
                word.fetch_or(bit, Ordering::Relaxed);
            }
        }
        self.known.fetch_or(bit, Ordering::Release);
    }

    fn may_know(&self, hash: u64) -> u64 {
        let known = self.known.load(Ordering::Acquire);
        self.words(hash).fold(!0, |all, word| all & word.load(Ordering::Relaxed)) | !known
    }
}

/// The pieces, oldest first; never empty once open.
#[derive(Default)]
pub struct Pieces {
    all: Vec<Arc<Piece>>,
    groups: Vec<Member>,
}

/// A group's pieces that are there.
struct Member {
    number: u32,
    group: Arc<Group>,
    there: u64,
    /// Where the first of them stands among all.
    at: usize,
}

fn bit_of(piece: &Piece) -> u64 {
    1 << (piece.number % TOGETHER)
}

impl Pieces {
    /// What was known before of pieces that stay is known still.
    pub fn of(all: Vec<Arc<Piece>>, before: &Self) -> Self {
        let mut groups: Vec<Member> = Vec::new();
        for (at, piece) in all.iter().enumerate() {
            let number = piece.number / TOGETHER;
            if groups.last().is_none_or(|last| last.number != number) {
                let known = before.groups.iter().find(|group| group.number == number);
                let group = known.map_or_else(|| Arc::new(Group::new()), |known| known.group.clone());
                groups.push(Member { number, group, there: 0, at });
            }
            if let Some(last) = groups.last_mut() {
                last.there |= bit_of(piece);
            }
        }
        Self { all, groups }
    }

    /// Takes in what settled pieces know. A piece whose index cannot be read is asked every time, and says so.
    pub fn learn(&self) {
        for member in &self.groups {
            for piece in self.all[member.at..].iter().take(member.there.count_ones() as usize) {
                let bit = bit_of(piece);
                if member.group.known.load(Ordering::Acquire) & bit == 0
                    && let Ok(Some(hashes)) = piece.find().hashes()
                {
                    member.group.add(bit, &hashes);
                }
            }
        }
    }

    /// Newest first, those that may know this execution or key.
    pub fn with(&self, hash: u64) -> impl Iterator<Item = &Arc<Piece>> {
        self.groups.iter().rev().flat_map(move |member| {
            let mut left = member.group.may_know(hash) & member.there;
            std::iter::from_fn(move || {
                let bit = left.checked_ilog2()?;
                left &= !(1 << bit);
                let before = member.there & ((1 << bit) - 1);
                Some(&self.all[member.at + before.count_ones() as usize])
            })
        })
    }
}

impl std::ops::Deref for Pieces {
    type Target = [Arc<Piece>];
    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_that_knows_a_hash_is_always_named_and_few_others_are() {
        let group = Group::new();
        let hash = |piece: u64, number: u64| {
            let mixed = (piece << 32 | number).wrapping_mul(0xd6e8_feb8_6659_fd93);
            mixed ^ mixed >> 29
        };
        for piece in 0..8 {
            let hashes: Vec<u64> = (0..20_000).map(|number| hash(piece, number)).collect();
            group.add(1 << piece, &hashes);
        }
        assert_eq!(group.may_know(hash(3, 7)) >> 8, !0 >> 8, "pieces that nothing is known of may know it");
        let mut others = 0;
        for piece in 0..8 {
            for number in 0..20_000 {
                let named = group.may_know(hash(piece, number)) & 0xff;
                assert_ne!(named & 1 << piece, 0);
                others += named.count_ones() - 1;
            }
        }
        assert!(others < 1000, "{others} of 1,120,000 were named for nothing");
    }
}
