//! Reading a response, frame by frame, with its caps applied while reading.
//!
//! What is kept is never more than `response_body_stored`, what is read never more than `response_body_read`: past
//! that the answer counts as complete and its connection is closed. Nothing is decompressed, trailers are passed
//! over.

use aws_lc_rs::digest::{Context, SHA256};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Version, header::CONTENT_LENGTH};

use crate::redact::RawResponse;

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
    headers: HeaderMap,
    declared: Option<u64>,
    caps: BodyCaps,
    kept: BytesMut,
    total: u64,
    digest: Context,
    cut: bool,
}

/// Whether more of a body is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum More {
    Wanted,
    /// `response_body_read` is full and there is more.
    Cut,
}

impl Receiving {
    pub fn new(status: u16, version: Version, headers: HeaderMap, caps: BodyCaps) -> Self {
        let declared = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let digest = Context::new(&SHA256);
        Self { status, version, headers, declared, caps, kept: BytesMut::new(), total: 0, digest, cut: false }
    }

    pub fn status(&self) -> u16 {
        self.status
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// Takes one frame's data.
    pub fn take(&mut self, data: &Bytes) -> More {
        let room = usize::try_from(self.caps.read - self.total).unwrap_or(usize::MAX);
        let read = &data[..data.len().min(room)];
        self.digest.update(read);
        self.total += read.len() as u64;
        let room = usize::try_from(self.caps.stored).unwrap_or(usize::MAX).saturating_sub(self.kept.len());
        self.kept.extend_from_slice(&read[..read.len().min(room)]);
        if read.len() < data.len() {
            self.cut = true;
            return More::Cut;
        }
        More::Wanted
    }

    /// What is remembered; `complete`: it ended where it should.
    pub fn finish(self, complete: bool) -> RawResponse {
        let mut body_sha256 = [0; 32];
        body_sha256.copy_from_slice(self.digest.finish().as_ref());
        let mut headers = Vec::with_capacity(self.headers.len());
        headers.extend(self.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        RawResponse {
            status: self.status,
            version: self.version,
            headers,
            body_truncated: self.cut || !complete || (self.kept.len() as u64) < self.total,
            body: self.kept.freeze(),
            body_total: self.total,
            body_sha256,
            declared: self.declared,
        }
    }
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
    fn the_digest_is_of_what_was_read() {
        let mut receiving = receiving(1, 3);
        assert_eq!(receiving.take(&Bytes::from_static(b"abcdef")), More::Cut);
        let digest = aws_lc_rs::digest::digest(&SHA256, b"abc");
        assert_eq!(receiving.finish(true).body_sha256, digest.as_ref());
    }
}
