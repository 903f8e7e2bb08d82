//! A Bloom filter that says "surely not here" or "perhaps".

use serde::{Deserialize, Serialize};

/// Bits set for each key, all in one line.
const BITS_SET: u32 = 8;
/// Room for each key: a wrong "perhaps" is rarer than one in a thousand, and each costs a read of the disk.
const BITS_PER_KEY: usize = 20;

/// All bits of a key stand in one cache line, because an accept asks that of every segment there is.
#[derive(Clone, Serialize, Deserialize)]
pub struct Bloom(Vec<[u64; 8]>);

impl Bloom {
    pub fn new(keys: usize) -> Self {
        Self(vec![[0; 8]; (keys * BITS_PER_KEY).div_ceil(512).max(1)])
    }

    fn place(&self, hash: u64) -> (usize, [u64; 8]) {
        // The line by the hash's upper half, the bits by a mix of the lower.
        let line = ((hash >> 32).wrapping_mul(self.0.len() as u64) >> 32) as usize;
        let mut bits = [0; 8];
        let mut mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for _ in 0..BITS_SET {
            bits[(mixed >> 61) as usize] |= 1 << (mixed >> 55 & 63);
            mixed = mixed.rotate_left(11).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        (line, bits)
    }

    pub fn add(&mut self, hash: u64) {
        let (line, bits) = self.place(hash);
        self.0[line].iter_mut().zip(bits).for_each(|(word, bits)| *word |= bits);
    }

    pub fn may_have(&self, hash: u64) -> bool {
        let (line, bits) = self.place(hash);
        self.0.get(line).is_some_and(|words| words.iter().zip(bits).all(|(word, bits)| word & bits == bits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_there_and_little_else_seems_so() {
        // Any spread of bits will do: the store's keys are keyed hashes.
        let hash = |number: u64| number.wrapping_mul(0xd6e8_feb8_6659_fd93).rotate_left(32) ^ number;
        let mut bloom = Bloom::new(50_000);
        (0..50_000).for_each(|number| bloom.add(hash(number)));
        assert!((0..50_000).all(|number| bloom.may_have(hash(number))));
        let wrong = (50_000..150_000).filter(|&number| bloom.may_have(hash(number))).count();
        assert!(wrong < 200, "{wrong} of 100,000 seem to be there");
    }
}
