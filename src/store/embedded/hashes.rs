//! What tenants and executions are known by where their names are not at hand: keyed hashes of 64 bits at the least, so
//! that no two are taken for one. What rows have of a tenant alone is half of that, and several may share it: whose a row
//! is, its segment's shares tell, or its frame.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// A tenant; what rows have of it is the upper half. Made by [`Keys::tenant`](super::seal::Keys::tenant).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TenantHash(u64);

impl TenantHash {
    /// Neither half is 0.
    pub fn of(short: u32, rest: u32) -> Self {
        Self(u64::from(short) << 32 | u64::from(rest))
    }

    /// Whichever it is of those of which rows have this: nothing more is known.
    pub fn any_of(short: u32) -> Self {
        Self::of(short, 0)
    }

    /// All that [`Self::short`] does not tell apart.
    pub fn all_of(short: u32) -> RangeInclusive<Self> {
        Self::any_of(short)..=Self::of(short, u32::MAX)
    }

    /// What rows have of it.
    pub fn short(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// It is one tenant's.
    pub fn is_ones(self) -> bool {
        self.0 as u32 != 0
    }

    /// Where this was stored by an earlier version, which had no more than rows have: what it is.
    pub fn of_earlier(self) -> Option<Self> {
        (self.short() == 0).then(|| Self::any_of(self.0 as u32))
    }
}

/// A tenant's execution, as a row has it. What two tenants' executions of one name, or two of one tenant's, have in
/// common is never more than a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExecutionHash {
    /// What it is looked up by. The lower half is of its name alone.
    pub hash: u64,
    /// What rows have of its tenant.
    pub tenant: u32,
}
