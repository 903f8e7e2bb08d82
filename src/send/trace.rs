//! The caller's trace (W3C Trace Context, <https://www.w3.org/TR/trace-context/>), and what a send is in it.
//!
//! A send is one span, whose identity follows from the send's own, so that whatever process makes the delivery, and
//! whenever, it is the same. `tracestate` is not carried.

use std::fmt;

use super::SendId;
use crate::redact::sha256;

/// A place in a trace: what `traceparent` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    pub trace: [u8; 16],
    pub span: [u8; 8],
    /// Whoever began the trace records it.
    pub sampled: bool,
}

/// As stored.
const BYTES: usize = 25;

impl TraceParent {
    /// `None`: it says nothing that can be gone by, and counts as absent (section 3.2.2 of the standard).
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let version = hex::<1>(parts.next()?)?;
        let (trace, span, flags) = (hex::<16>(parts.next()?)?, hex::<8>(parts.next()?)?, hex::<1>(parts.next()?)?);
        // Later versions may say more.
        let known = version == [0xff] || (version == [0] && parts.next().is_some());
        let valid = !known && trace != [0; 16] && span != [0; 8];
        valid.then_some(Self { trace, span, sampled: flags[0] & 1 == 1 })
    }

    /// The send's own place: in its caller's trace, or in one of its own.
    pub fn of(send: SendId, parent: Option<&Self>) -> Self {
        let digest = sha256(send.0.as_bytes());
        let (mut trace, mut span) = ([0; 16], [0; 8]);
        trace.copy_from_slice(&digest[..16]);
        span.copy_from_slice(&digest[16..24]);
        match parent {
            Some(parent) => Self { span, ..*parent },
            None => Self { trace, span, sampled: true },
        }
    }

    /// A part of this one, by its number.
    pub fn part(&self, number: u8) -> Self {
        let digest = sha256(&[&self.span[..], &[number]].concat());
        let mut span = [0; 8];
        span.copy_from_slice(&digest[..8]);
        Self { span, ..*self }
    }

    pub fn to_bytes(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..16].copy_from_slice(&self.trace);
        bytes[16..24].copy_from_slice(&self.span);
        bytes[24] = self.sampled.into();
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; BYTES] = bytes.try_into().ok()?;
        let (trace, rest) = bytes.split_first_chunk()?;
        let (span, rest) = rest.split_first_chunk()?;
        Some(Self { trace: *trace, span: *span, sampled: rest == [1] })
    }

    pub fn trace_hex(&self) -> String {
        shown(&self.trace)
    }

    pub fn span_hex(&self) -> String {
        shown(&self.span)
    }
}

/// As the header.
impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace_hex(), self.span_hex(), u8::from(self.sampled))
    }
}

/// Lower-case digits, as many as there have to be.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N || !digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

fn shown(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_a_caller_gives_is_read_or_counts_as_absent() {
        let read = TraceParent::parse(GIVEN).unwrap();
        assert_eq!(read.to_string(), GIVEN);
        assert_eq!(TraceParent::from_bytes(&read.to_bytes()), Some(read));
        for (text, sampled) in [
            (GIVEN.replace("-01", "-00"), Some(false)),
            (GIVEN.replace("-01", "-03"), Some(true)),
            (GIVEN.replacen("00-", "cc-", 1), Some(true)),
            (GIVEN.replacen("00-", "cc-", 1) + "-what-comes-later", Some(true)),
            (GIVEN.to_owned() + "-more", None),
            (GIVEN.replacen("00-", "ff-", 1), None),
            (GIVEN.to_uppercase(), None),
            (GIVEN.replace("0af7651916cd43dd8448eb211c80319c", "00000000000000000000000000000000"), None),
            (GIVEN.replace("b7ad6b7169203331", "0000000000000000"), None),
            (GIVEN.replace("b7ad6b7169203331", "b7ad6b716920333"), None),
            (GIVEN.replace("b7", "+7"), None),
            (String::new(), None),
            ("00".to_owned(), None),
        ] {
            assert_eq!(TraceParent::parse(&text).map(|parent| parent.sampled), sampled, "{text}");
        }
        assert_eq!(TraceParent::from_bytes(b"short"), None);
    }

    #[test]
    fn a_send_is_one_span_wherever_it_is_looked_at_and_tells_nothing_of_its_id() {
        let id: SendId = "01a229b7-2905-774b-ac40-0001a2a1c018".parse().unwrap();
        let parent = TraceParent::parse(GIVEN).unwrap();
        let (joined, own) = (TraceParent::of(id, Some(&parent)), TraceParent::of(id, None));
        assert_eq!((joined.trace, joined.span, joined.sampled), (parent.trace, own.span, true));
        assert_eq!(own, TraceParent::of(id, None));
        assert!(!own.to_string().contains("01a229b7"), "{own}");
        let mut spans: Vec<_> =
            (0..8).map(|number| joined.part(number).span).chain([joined.span, parent.span]).collect();
        spans.sort_unstable();
        spans.dedup();
        assert_eq!(spans.len(), 10);
    }
}
