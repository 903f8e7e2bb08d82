//! Which segments may know an execution or a key, in a few looks however many segments there are: every accept asks it.
//!
//! 64 segments share a bit-sliced Bloom filter: words, a bit of each for each segment. A hash names a few words; the
//! segments whose bit is set in all of them may know it, and their own filters say more. Bits of dropped segments stay
//! until all of the 64 are gone.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering},
};

use super::segment::Segment;

const TOGETHER: u32 = 64;
const WORDS_PER_HASH: u32 = 4;
/// For each hash that a segment may have: one that has as many is named for nothing once in six times.
const WORDS_FOR_EACH: usize = 4;
/// 4 KiB.
const PAGE_WORDS: usize = 512;

/// Executions and idempotency keys of a segment: two for each send at most. 8 MiB for some eight million sends.
const CALLS: usize = 256 * 1024;

/// The executions and keys that 64 segments know.
struct SlicedBloom {
    /// Segments whose hashes are in; the others may know anything.
    known: AtomicU64,
    /// Segments that were added, also those with too many to be in.
    added: AtomicU64,
    /// Most hashes of a segment.
    most: usize,
    /// Made once the first segment's are known.
    words: OnceLock<Box<[AtomicU64]>>,
}

impl SlicedBloom {
    fn new(most: usize) -> Self {
        Self { known: AtomicU64::new(0), added: AtomicU64::new(0), most, words: OnceLock::new() }
    }

    fn words(&self) -> usize {
        (self.most * WORDS_FOR_EACH).next_multiple_of(PAGE_WORDS)
    }

    /// All in one page of memory: to find out where a page is costs more than a look at it.
    fn places(&self, hash: u64) -> impl Iterator<Item = usize> {
        let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let page = (mixed >> 40) as usize % (self.words() / PAGE_WORDS) * PAGE_WORDS;
        (0..WORDS_PER_HASH).map(move |turn| page + (mixed >> (9 * turn)) as usize % PAGE_WORDS)
    }

    fn has_added(&self, bit: u64) -> bool {
        self.added.load(Ordering::Acquire) & bit != 0
    }

    /// A segment with more than there is room for stays one that may know anything.
    fn add(&self, bit: u64, hashes: &[u64]) {
        self.added.fetch_or(bit, Ordering::Release);
        if hashes.len() > self.most {
            return;
        }
        let words = || (0..self.words()).map(|_| AtomicU64::new(0)).collect();
        let words = self.words.get_or_init(words);
        for &hash in hashes {
            for place in self.places(hash) {
                words[place].fetch_or(bit, Ordering::Relaxed);
            }
        }
        self.known.fetch_or(bit, Ordering::Release);
    }

    fn may_know(&self, hash: u64) -> u64 {
        let known = self.known.load(Ordering::Acquire);
        let Some(words) = self.words.get() else { return !0 };
        self.places(hash).fold(!0, |all, place| all & words[place].load(Ordering::Relaxed)) | !known
    }
}

/// The segments, oldest first; never empty once open.
#[derive(Default)]
pub struct Segments {
    all: Vec<Arc<Segment>>,
    groups: Vec<Member>,
    /// Least and greatest id of each but the newest, which alone takes more.
    ids: Vec<(u128, u128)>,
}

/// A group's segments that are there.
struct Member {
    number: u32,
    calls: Arc<SlicedBloom>,
    there: u64,
    /// Where the first of them stands among all.
    at: usize,
}

fn bit_of(segment: &Segment) -> u64 {
    1 << (segment.number % TOGETHER)
}

impl Segments {
    /// What was known before of segments that stay is known still.
    pub fn of(all: Vec<Arc<Segment>>, before: &Self) -> Self {
        let mut groups: Vec<Member> = Vec::new();
        for (at, segment) in all.iter().enumerate() {
            let number = segment.number / TOGETHER;
            if groups.last().is_none_or(|last| last.number != number) {
                let known = before.groups.iter().find(|group| group.number == number);
                let calls = known.map_or_else(|| Arc::new(SlicedBloom::new(CALLS)), |known| known.calls.clone());
                groups.push(Member { number, calls, there: 0, at });
            }
            if let Some(last) = groups.last_mut() {
                last.there |= bit_of(segment);
            }
        }
        let full = all.split_last().map_or(&[][..], |(_, full)| full);
        let ids = full.iter().map(|segment| segment.zones().ids()).collect();
        Self { all, groups, ids }
    }

    /// Takes in what checkpointed segments know. A segment whose index cannot be read is asked every time, and says so.
    pub fn learn(&self) {
        for member in &self.groups {
            for segment in self.all[member.at..].iter().take(member.there.count_ones() as usize) {
                let (bit, find) = (bit_of(segment), segment.find());
                let is_new = !member.calls.has_added(bit);
                let Some(known) = is_new.then(|| find.known_calls()).and_then(|read| read.ok().flatten()) else {
                    continue;
                };
                member.calls.add(bit, &known);
            }
        }
    }

    /// Newest first, those that may know this execution or key.
    pub fn with(&self, hash: u64) -> impl DoubleEndedIterator<Item = &Arc<Segment>> {
        self.groups.iter().rev().flat_map(move |member| {
            let left = Bits(member.calls.may_know(hash) & member.there);
            left.map(|bit| {
                let before = member.there & ((1 << bit) - 1);
                &self.all[member.at + before.count_ones() as usize]
            })
        })
    }

    /// Newest first, those that may have the send of this id.
    pub fn with_id(&self, id: u128) -> impl Iterator<Item = &Arc<Segment>> {
        let full = self.ids.iter().zip(&self.all).rev();
        let full = full.filter(move |(ids, _)| ids.0 <= id && id <= ids.1).map(|(_, segment)| segment);
        self.all.last().into_iter().chain(full)
    }
}

/// The bits that are set, highest first.
struct Bits(u64);

impl Iterator for Bits {
    type Item = u32;
    fn next(&mut self) -> Option<u32> {
        let bit = self.0.checked_ilog2()?;
        self.0 &= !(1 << bit);
        Some(bit)
    }
}

impl DoubleEndedIterator for Bits {
    fn next_back(&mut self) -> Option<u32> {
        let bit = (self.0 != 0).then(|| self.0.trailing_zeros())?;
        self.0 &= !(1 << bit);
        Some(bit)
    }
}

impl std::ops::Deref for Segments {
    type Target = [Arc<Segment>];
    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_that_knows_a_hash_is_always_named_and_few_others_are() {
        let table = SlicedBloom::new(CALLS);
        let hash = |segment: u64, number: u64| {
            let mixed = (segment << 32 | number).wrapping_mul(0xd6e8_feb8_6659_fd93);
            mixed ^ mixed >> 29
        };
        assert_eq!(table.may_know(hash(3, 7)), !0, "nothing is known of any");
        for segment in 0..8 {
            let hashes: Vec<u64> = (0..20_000).map(|number| hash(segment, number)).collect();
            table.add(1 << segment, &hashes);
        }
        assert_eq!(table.may_know(hash(3, 7)) >> 8, !0 >> 8, "segments that nothing is known of may know it");
        let mut others = 0;
        for segment in 0..8 {
            for number in 0..20_000 {
                let named = table.may_know(hash(segment, number)) & 0xff;
                assert_ne!(named & 1 << segment, 0);
                others += named.count_ones() - 1;
            }
        }
        assert!(others < 1000, "{others} of 1,120,000 were named for nothing");
    }

    #[test]
    fn a_segment_with_more_than_fits_may_know_anything_and_spoils_nothing_for_others() {
        let table = SlicedBloom::new(1024);
        let hash = |number: u64| number.wrapping_mul(0xd6e8_feb8_6659_fd93);
        table.add(1, &(0..1025).map(hash).collect::<Vec<_>>());
        table.add(2, &(0..1000).map(hash).collect::<Vec<_>>());
        assert!(table.has_added(1) && table.has_added(2));
        let named = (2000..3000).map(|number| table.may_know(hash(number)) & 3);
        let (first, second) = named.fold((0, 0), |(first, second), named| (first + (named & 1), second + (named >> 1)));
        assert_eq!(first, 1000);
        assert!(second < 300, "{second} of 1,000 were named for nothing");
    }

    #[test]
    fn bits_are_walked_from_either_end() {
        assert_eq!(Bits(0b1010_0001).collect::<Vec<_>>(), [7, 5, 0]);
        assert_eq!(Bits(1 << 63 | 0b110).rev().collect::<Vec<_>>(), [1, 2, 63]);
    }
}
