//! Which terms come together: a piece that has both, but never in one send, need not be searched for them.

use std::collections::HashSet;

use super::table::Row;

/// The pairs of all terms that one send has, or nothing where they are not known.
pub type Pairs = Option<Vec<u64>>;

/// Of one piece; more are not worth their room, and the piece is searched.
pub const PAIRS_MAX: usize = 64 * 1024;

/// A number for two terms, in whatever order.
pub fn pair(one: u64, other: u64) -> u64 {
    let (low, high) = (one.min(other), one.max(other));
    (low.rotate_left(32) ^ high).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// All pairs of these.
pub fn pairs_of(terms: &[u64]) -> impl Iterator<Item = u64> {
    let after = |at: usize| terms.iter().skip(at + 1);
    terms.iter().enumerate().flat_map(move |(at, &one)| after(at).map(move |&other| pair(one, other)))
}

/// Collects the pairs of a piece, row by row.
#[derive(Default)]
pub struct Together {
    /// Sends are much alike: few have terms that no other had.
    seen: HashSet<Vec<u64>>,
    pairs: HashSet<u64>,
}

impl Together {
    /// `false`: there are too many.
    pub fn add(&mut self, row: &Row) -> bool {
        let terms: Vec<u64> = row.terms().into_iter().chain(row.end_terms()).filter(|&term| term != 0).collect();
        if !self.seen.contains(&terms) {
            self.pairs.extend(pairs_of(&terms));
            self.seen.insert(terms);
        }
        self.pairs.len() <= PAIRS_MAX
    }

    pub fn pairs(self) -> Vec<u64> {
        self.pairs.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_known_of_sends_that_have_both_and_of_no_others() {
        let row = |tenant, host, status| Row { tenant, host, status, ..Row::default() };
        let mut together = Together::default();
        for _ in 0..3 {
            assert!(together.add(&row(1, 10, 200)));
            assert!(together.add(&row(2, 10, 503)));
        }
        let pairs: HashSet<u64> = together.pairs().into_iter().collect();
        let has = |row: Row, other: Row| {
            let [tenant, .., host] = row.terms();
            let [.., status, _, _] = other.end_terms();
            (pairs.contains(&pair(tenant, status)), pairs.contains(&pair(status, host)))
        };
        assert_eq!(has(row(1, 10, 0), row(0, 0, 200)), (true, true));
        assert_eq!(has(row(2, 10, 0), row(0, 0, 503)), (true, true));
        assert_eq!(has(row(1, 11, 0), row(0, 0, 503)), (false, false));
    }

    #[test]
    fn a_piece_with_too_many_says_so() {
        let mut together = Together::default();
        let fits = |number: u32| together.add(&Row { tenant: number, host: number, step: 7, ..Row::default() });
        let most = (1..).map(fits).take_while(|fits| *fits).count();
        assert!((PAIRS_MAX / 20..PAIRS_MAX).contains(&most), "{most}");
    }
}
