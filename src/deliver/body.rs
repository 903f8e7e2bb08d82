//! Reading a response, frame by frame, with its caps applied while reading.
//!
//! What is kept is never more than `response_body_stored`, what is read never more than `response_body_read`: past
//! that the answer counts as complete and its connection is closed; past [`RESPONSE_PIECES_MAX`] it does not. Nothing is
//! decompressed, trailers are passed over.

use aws_lc_rs::digest::{Context, SHA256};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Version};

use super::http1::head::content_length;
use crate::limits::{READ_TURN_PIECES, RESPONSE_PIECE_BYTES_MIN, RESPONSE_PIECES_MAX};
use crate::outcome::words::SoFar;
use crate::redact::RawResponse;
use crate::send::HeaderLines;

/// Caps in bytes.
#[derive(Clone, Copy, Debug)]
pub struct BodyCaps {
    pub stored: u64,
    pub read: u64,
}

/// A response as far as it has come.
pub struct Receiving {
    status: u16,
    version: Version,
    headers: HeaderLines,
    declared: Option<u64>,
    caps: BodyCaps,
    kept: Vec<u8>,
    total: u64,
    pieces: u64,
    digest: Context,
    cut: bool,
}

/// Whether more of a body is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum More {
    Wanted,
    /// `response_body_read` is full and there is more.
    Cut,
    /// In too many pieces: reading on would cost more than the body is worth, and where it ends nobody knows.
    TooManyPieces,
}

impl Receiving {
    pub fn new(status: u16, version: Version, headers: HeaderMap, caps: BodyCaps) -> Self {
        let declared = content_length(&headers).ok().flatten();
        let digest = Context::new(&SHA256);
        Self {
            status,
            version,
            headers: compact(&headers),
            declared,
            caps,
            kept: Vec::new(),
            total: 0,
            pieces: 0,
            digest,
            cut: false,
        }
    }

    pub fn so_far(&self) -> SoFar {
        SoFar { status: self.status, bytes: self.total, declared: self.declared }
    }

    pub fn status(&self) -> u16 {
        self.status
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// Lets others have a turn when it is time: pieces that have already come would else be taken without a pause.
    pub async fn pace(&self) {
        if self.pieces.is_multiple_of(u64::from(READ_TURN_PIECES)) {
            tokio::task::yield_now().await;
        }
    }

    /// Takes one piece.
    pub fn take(&mut self, data: &Bytes) -> More {
        self.pieces += 1;
        let room = usize::try_from(self.caps.read - self.total).unwrap_or(usize::MAX);
        let read = &data[..data.len().min(room)];
        self.digest.update(read);
        self.total += read.len() as u64;
        let cap = usize::try_from(self.caps.stored).unwrap_or(usize::MAX);
        let keep = &read[..read.len().min(cap.saturating_sub(self.kept.len()))];
        if self.kept.capacity() - self.kept.len() < keep.len() {
            // Twice as much each time, but never more than will be kept.
            let wanted = (self.kept.len() + keep.len()).max((2 * self.kept.len()).min(cap));
            self.kept.reserve_exact(wanted - self.kept.len());
        }
        self.kept.extend_from_slice(keep);
        let too_many = self.pieces > RESPONSE_PIECES_MAX + self.total / RESPONSE_PIECE_BYTES_MIN;
        if read.len() < data.len() {
            self.cut = true;
            return More::Cut;
        }
        if too_many {
            return More::TooManyPieces;
        }
        More::Wanted
    }

    /// What is remembered; `complete`: it ended where it should.
    pub fn finish(self, complete: bool) -> RawResponse {
        let mut body_sha256 = [0; 32];
        body_sha256.copy_from_slice(self.digest.finish().as_ref());
        RawResponse {
            status: self.status,
            version: version_name(self.version),
            headers: self.headers,
            body_truncated: self.cut || !complete || (self.kept.len() as u64) < self.total,
            body: self.kept.into(),
            body_total: self.total,
            body_sha256,
            declared: self.declared,
        }
    }
}

fn version_name(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

/// The lines with their values in memory of their own: as they come, each keeps the whole buffer that it was read into.
fn compact(headers: &HeaderMap) -> HeaderLines {
    let mut values = BytesMut::with_capacity(headers.values().map(HeaderValue::len).sum());
    headers.values().for_each(|value| values.extend_from_slice(value.as_bytes()));
    let mut values = values.freeze();
    let mut lines = Vec::with_capacity(headers.len());
    for (name, value) in headers {
        let own = HeaderValue::from_maybe_shared(values.split_to(value.len()));
        lines.push((name.clone(), own.unwrap_or_else(|_| value.clone())));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receiving(stored: u64, read: u64) -> Receiving {
        Receiving::new(200, Version::HTTP_11, HeaderMap::new(), BodyCaps { stored, read })
    }

    #[test]
    fn a_body_is_cut_where_its_caps_say() {
        for (stored, read, body, more, kept, total, truncated) in [
            (4, 8, &b"abc"[..], More::Wanted, &b"abc"[..], 3, false),
            (4, 8, b"abcd", More::Wanted, b"abcd", 4, false),
            (4, 8, b"abcdef", More::Wanted, b"abcd", 6, true),
            (4, 8, b"abcdefgh", More::Wanted, b"abcd", 8, true),
            (4, 8, b"abcdefghi", More::Cut, b"abcd", 8, true),
            (8, 8, b"abcdefghi", More::Cut, b"abcdefgh", 8, true),
        ] {
            let mut whole = receiving(stored, read);
            assert_eq!(whole.take(&Bytes::copy_from_slice(body)), more);
            let response = whole.finish(true);
            assert_eq!((&response.body[..], response.body_total, response.body_truncated), (kept, total, truncated));

            let mut dripped = receiving(stored, read);
            let ends: Vec<_> = body.iter().map(|byte| dripped.take(&Bytes::copy_from_slice(&[*byte]))).collect();
            assert_eq!(ends.last(), Some(&more));
            let dripped = dripped.finish(true);
            assert_eq!((&dripped.body, dripped.body_sha256), (&response.body, response.body_sha256));
        }
    }

    #[test]
    fn a_body_in_too_many_pieces_is_told_from_one_in_pieces_of_some_length() {
        for (piece, pieces, more) in [
            (1, RESPONSE_PIECES_MAX, More::Wanted),
            (1, RESPONSE_PIECES_MAX + RESPONSE_PIECES_MAX / 32, More::TooManyPieces),
            (64, 4 * RESPONSE_PIECES_MAX, More::Wanted),
        ] {
            let mut receiving = receiving(8, u64::MAX);
            let data = Bytes::from(vec![b'x'; piece]);
            let last = (0..pieces).map(|_| receiving.take(&data)).last();
            assert_eq!(last, Some(more), "{pieces} pieces of {piece}");
            assert_eq!(receiving.finish(true).body_total, piece as u64 * pieces);
        }
    }

    #[test]
    fn no_more_memory_is_taken_than_is_kept() {
        let mut receiving = receiving(100_000, 1_000_000);
        for _ in 0..70 {
            receiving.take(&Bytes::from(vec![b'x'; 3_000]));
            assert!(receiving.kept.capacity() <= 100_000, "{}", receiving.kept.capacity());
        }
        assert_eq!(receiving.finish(true).body.len(), 100_000);
    }

    #[test]
    fn the_length_that_is_declared_is_one_number() {
        for (values, declared) in [
            (&[][..], None),
            (&["7"], Some(7)),
            (&["007"], Some(7)),
            (&["7", "7"], Some(7)),
            (&["7, 7"], Some(7)),
            (&["7", "8"], None),
            (&["+7"], None),
            (&["0x7"], None),
            (&[""], None),
            (&["18446744073709551615"], Some(u64::MAX)),
            (&["18446744073709551616"], None),
        ] {
            let mut headers = HeaderMap::new();
            values.iter().for_each(|value| _ = headers.append("content-length", HeaderValue::from_static(value)));
            let receiving = Receiving::new(200, Version::HTTP_2, headers, BodyCaps { stored: 1, read: 1 });
            assert_eq!(receiving.finish(true).declared, declared, "{values:?}");
        }
    }

    #[test]
    fn header_lines_stay_as_they_came() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("a", "1"), ("b", ""), ("a", "\u{e9}"), ("content-length", "7")] {
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let lines: HeaderLines = headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        assert_eq!(compact(&headers), lines);
    }

    #[test]
    fn the_digest_is_of_what_was_read() {
        let mut receiving = receiving(1, 3);
        assert_eq!(receiving.take(&Bytes::from_static(b"abcdef")), More::Cut);
        let digest = aws_lc_rs::digest::digest(&SHA256, b"abc");
        assert_eq!(receiving.finish(true).body_sha256, digest.as_ref());
    }
}
