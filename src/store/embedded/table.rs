//! The table of a segment: one row of fixed size per send, for finding and filtering without reading what was said.
//!
//! A row says where in which log the send's frames stand, and carries numbers and hashes of all that a filter may
//! ask for. It is derived from the logs and may be made again from them; each row has its own checksum.

use std::time::Duration;

use super::hashes::ExecutionHash;
use super::seal::Asked;
use crate::send::SendId;

pub const ROW_BYTES: usize = 96;

/// One send. Hashes of absent values are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    pub id: u128,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// 0: not begun.
    pub started_at: i64,
    pub accepted: Extent,
    /// Segment in whose log the end stands; 0: not done.
    pub finish_segment: u32,
    pub finish: Extent,
    pub execution: u64,
    pub tenant: u32,
    pub workflow: u32,
    pub step: u32,
    pub host: u32,
    /// Bound and public source address.
    pub source: u32,
    pub public: u32,
    pub status: u16,
    pub outcome: u8,
    pub code: u8,
    pub flags: u8,
    /// How long it may wait, as [`expiry_number`] has it; 0: its frame alone knows.
    pub expiry: u32,
}

/// Expiries above so many seconds are kept in steps of [`EXPIRY_STEP`].
const EXPIRY_FINE: u32 = 1 << 23;
const EXPIRY_STEP: u32 = 64;

/// A duration in whole seconds, rounded up.
pub fn whole_seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX).saturating_add(u32::from(duration.subsec_nanos() > 0))
}

/// A duration as the three bytes of a row say it: never shorter than it is, and exact to the second for months.
pub fn expiry_number(duration: Duration) -> u32 {
    let seconds = whole_seconds(duration).max(1);
    match seconds.checked_sub(EXPIRY_FINE) {
        None => seconds,
        Some(beyond) => EXPIRY_FINE + beyond.div_ceil(EXPIRY_STEP).min(EXPIRY_FINE - 1),
    }
}

/// Part of a log, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    pub at: u32,
    pub length: u32,
}

/// Accepted to be held.
pub const HELD: u8 = 1;
/// Its accept frame has a slot with a wrapped key.
pub const SEALED: u8 = 2;
/// Its accept frame was lost to damage; nothing is known of it.
pub const LOST: u8 = 4;
/// It was moved on to a later segment, and its row there is the one that counts.
pub const MOVED: u8 = 8;
/// It was moved here from an earlier segment.
pub const CARRIED: u8 = 16;
/// It is the first send of its execution.
pub const FIRST: u8 = 32;
/// No outcome, no code.
pub const NONE: u8 = 0xff;

impl Row {
    pub fn id(&self) -> SendId {
        SendId(uuid::Uuid::from_u128(self.id))
    }
    /// Nothing waits here.
    pub fn is_done(&self) -> bool {
        self.has_end() || self.is_lost() || self.is_moved()
    }
    pub fn has_end(&self) -> bool {
        self.finish_segment != 0
    }
    pub fn is_moved(&self) -> bool {
        self.flags & MOVED != 0
    }
    pub fn is_carried(&self) -> bool {
        self.flags & CARRIED != 0
    }
    pub fn is_lost(&self) -> bool {
        self.flags & LOST != 0
    }
    pub fn is_begun(&self) -> bool {
        self.started_at != 0
    }
    pub fn is_held(&self) -> bool {
        self.flags & HELD != 0
    }
    pub fn is_first(&self) -> bool {
        self.flags & FIRST != 0
    }
    /// The execution that holds it, or held it until that ended.
    pub fn holder(&self) -> Option<ExecutionHash> {
        self.execution().filter(|_| self.is_held())
    }
    /// `None`: it is in no execution.
    pub fn execution(&self) -> Option<ExecutionHash> {
        (self.execution != 0).then_some(ExecutionHash { hash: self.execution, tenant: self.tenant })
    }
    pub fn is_sealed(&self) -> bool {
        self.flags & SEALED != 0
    }

    /// In seconds, rounded up; `None`: the row is from before rows had it.
    pub fn expires_in(&self) -> Option<u32> {
        match self.expiry.checked_sub(EXPIRY_FINE) {
            None => (self.expiry > 0).then_some(self.expiry),
            Some(steps) => Some(EXPIRY_FINE + steps * EXPIRY_STEP),
        }
    }

    /// What a filter may ask for of an accepted send; 0 where there is nothing.
    pub fn terms(&self) -> [u64; 5] {
        [
            if self.is_first() { first_term() } else { 0 },
            term(Asked::Tenant, self.tenant),
            term(Asked::Workflow, self.workflow),
            term(Asked::Step, self.step),
            term(Asked::Host, self.host),
        ]
    }

    /// What a filter may ask for of how it ended.
    pub fn end_terms(&self) -> [u64; 5] {
        if self.is_lost() {
            return [0; 5];
        }
        [
            outcome_term(self.outcome),
            code_term(self.code),
            status_term(self.status),
            term(Asked::Source, self.source),
            term(Asked::Source, self.public),
        ]
    }

    pub fn encode(&self) -> [u8; ROW_BYTES] {
        let mut bytes = [0; ROW_BYTES];
        let mut at = 0;
        let mut put = |part: &[u8]| {
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        };
        put(&self.id.to_le_bytes());
        put(&self.created_at.to_le_bytes());
        put(&self.started_at.to_le_bytes());
        put(&self.execution.to_le_bytes());
        for number in [
            self.accepted.at,
            self.accepted.length,
            self.finish_segment,
            self.finish.at,
            self.finish.length,
            self.tenant,
            self.workflow,
            self.step,
            self.host,
            self.source,
            self.public,
        ] {
            put(&number.to_le_bytes());
        }
        put(&self.status.to_le_bytes());
        put(&[self.outcome, self.code, self.flags]);
        put(&self.expiry.to_le_bytes()[..3]);
        let sum = crc32fast::hash(&bytes[..ROW_BYTES - 4]);
        bytes[ROW_BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// `None`: it fails its checksum.
    pub fn decode(bytes: &[u8; ROW_BYTES]) -> Option<Self> {
        let row = Self::peek(bytes);
        let sum = u32::from_le_bytes([bytes[92], bytes[93], bytes[94], bytes[95]]);
        (crc32fast::hash(&bytes[..ROW_BYTES - 4]) == sum).then_some(row)
    }

    /// The row without asking for its checksum: for a scan, which asks only about what it found.
    pub fn peek(bytes: &[u8; ROW_BYTES]) -> Self {
        fn part<const N: usize>(bytes: &[u8; ROW_BYTES], at: usize) -> [u8; N] {
            let mut part = [0; N];
            part.copy_from_slice(&bytes[at..at + N]);
            part
        }
        let number = |index: usize| u32::from_le_bytes(part(bytes, 40 + 4 * index));
        Self {
            id: u128::from_le_bytes(part(bytes, 0)),
            created_at: i64::from_le_bytes(part(bytes, 16)),
            started_at: i64::from_le_bytes(part(bytes, 24)),
            execution: u64::from_le_bytes(part(bytes, 32)),
            accepted: Extent { at: number(0), length: number(1) },
            finish_segment: number(2),
            finish: Extent { at: number(3), length: number(4) },
            tenant: number(5),
            workflow: number(6),
            step: number(7),
            host: number(8),
            source: number(9),
            public: number(10),
            status: u16::from_le_bytes(part(bytes, 84)),
            outcome: bytes[86],
            code: bytes[87],
            flags: bytes[88],
            expiry: u32::from_le_bytes([bytes[89], bytes[90], bytes[91], 0]),
        }
    }
}

/// A number or hash and what it is of, spread over 64 bits; 0 where there is nothing to ask for.
pub fn term(asked: Asked, value: u32) -> u64 {
    if value == 0 { 0 } else { ((asked as u64) << 32 | u64::from(value)).wrapping_mul(0x9e37_79b9_7f4a_7c15) }
}

pub fn outcome_term(outcome: u8) -> u64 {
    if outcome == NONE { 0 } else { term(Asked::Outcome, u32::from(outcome) + 1) }
}

pub fn code_term(code: u8) -> u64 {
    if code == NONE { 0 } else { term(Asked::Code, u32::from(code) + 1) }
}

pub fn status_term(status: u16) -> u64 {
    term(Asked::Status, u32::from(status))
}

/// Of the first sends of executions.
pub fn first_term() -> u64 {
    term(Asked::First, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_is_never_shortened_and_exact_for_months() {
        for (given, read) in [
            (Duration::from_millis(1), 1),
            (Duration::from_secs(60), 60),
            (Duration::from_millis(60_001), 61),
            (Duration::from_secs(90 * 86_400), 90 * 86_400),
            (Duration::from_secs(u64::from(EXPIRY_FINE) + 1), EXPIRY_FINE + EXPIRY_STEP),
            (crate::limits::EXPIRES_IN_MAX, 366 * 86_400),
        ] {
            let row = Row { expiry: expiry_number(given), ..Row::default() };
            let decoded = Row::decode(&row.encode()).and_then(|row| row.expires_in());
            assert!(
                decoded.is_some_and(|decoded| (read..read + EXPIRY_STEP).contains(&decoded)),
                "{given:?}: {decoded:?}"
            );
            if read < EXPIRY_FINE {
                assert_eq!(decoded, Some(read), "{given:?}");
            }
        }
        assert_eq!(Row::default().expires_in(), None);
    }

    #[test]
    fn a_row_reads_back_and_a_flipped_bit_shows() {
        let row = Row {
            id: 1 << 100 | 7,
            created_at: -5,
            started_at: 6,
            accepted: Extent { at: 1, length: 2 },
            finish_segment: 3,
            finish: Extent { at: 4, length: 5 },
            execution: u64::MAX - 1,
            tenant: 6,
            workflow: 7,
            step: 8,
            host: 9,
            source: 10,
            public: 11,
            status: 599,
            outcome: 3,
            code: NONE,
            flags: HELD | SEALED,
            expiry: 12,
        };
        let bytes = row.encode();
        assert_eq!(Row::decode(&bytes), Some(row));
        for byte in 0..ROW_BYTES {
            let mut bytes = bytes;
            bytes[byte] ^= 4;
            assert_eq!(Row::decode(&bytes), None, "byte {byte}");
        }
    }
}
