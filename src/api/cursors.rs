//! Places in the store's order as clients get to see them: where a tail resumes, and where a list goes on.
//!
//! The store keeps all tenants' sends in one order. A number of that order tells how much everybody sends, and two of
//! them how much was sent in between, so a place leaves sealed (AES-GCM-SIV, RFC 8452): as long as any other of its
//! kind, never the same twice even where the place is the same, and taken back only unaltered and for what it was
//! given for. The key comes from the store's, so a place holds over restarts. Not here: whose sends follow. A place
//! opens nothing, what is shown from it on is for the caller's token and filters to say.

use aws_lc_rs::aead::{AES_128_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::redact::RedactKey;
use crate::store::{StoreError, TailPlace};

/// What a place is for. One kind is not taken for another.
#[derive(Clone, Copy)]
enum Purpose {
    Tail,
    List,
}

impl Purpose {
    fn label(self) -> Aad<&'static [u8]> {
        Aad::from(match self {
            Self::Tail => b"tail",
            Self::List => b"list",
        })
    }
}

/// Seals and opens the places of one store.
pub struct Cursors([u8; 16]);

impl Cursors {
    pub fn new(key: &RedactKey) -> Self {
        Self(key.apart("egressd places of the API 1"))
    }

    /// An event's id.
    pub fn tail(&self, place: TailPlace) -> Result<String, StoreError> {
        self.seal(Purpose::Tail, place.to_bits().to_be_bytes().to_vec())
    }

    /// `None`: no tail of this store gave this id.
    pub fn tail_place(&self, id: &str) -> Option<TailPlace> {
        if id.len() != TAIL_ID_CHARS {
            return None;
        }
        self.open(Purpose::Tail, id)?.try_into().ok().map(|bits| TailPlace::from_bits(u64::from_be_bytes(bits)))
    }

    /// A page's `next`, of the store's own cursor.
    pub fn list(&self, cursor: &str) -> Result<String, StoreError> {
        let mut plain = cursor.as_bytes().to_vec();
        plain.resize(plain.len().next_multiple_of(CURSOR_BYTES), 0);
        self.seal(Purpose::List, plain)
    }

    /// The store's own cursor again.
    pub fn list_cursor(&self, next: &str) -> Result<String, StoreError> {
        let plain = self.open(Purpose::List, next).and_then(|plain| String::from_utf8(plain).ok());
        Ok(plain.ok_or(StoreError::BadCursor)?.trim_end_matches('\0').to_owned())
    }

    fn seal(&self, kind: Purpose, mut plain: Vec<u8>) -> Result<String, StoreError> {
        let failed = || StoreError::CannotRead("sealing a place failed in the cipher".into());
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| failed())?;
        let cipher = self.cipher().ok_or_else(failed)?;
        // Should a random nonce ever come twice, this cipher shows whether the places are the same, and no more.
        let sealing = Nonce::assume_unique_for_key(nonce);
        cipher.seal_in_place_append_tag(sealing, kind.label(), &mut plain).map_err(|_| failed())?;
        Ok(URL_SAFE_NO_PAD.encode([&nonce[..], &plain].concat()))
    }

    fn open(&self, kind: Purpose, text: &str) -> Option<Vec<u8>> {
        let mut sealed = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (nonce, sealed) = sealed.split_first_chunk_mut::<NONCE_LEN>()?;
        let opening = Nonce::assume_unique_for_key(*nonce);
        Some(self.cipher()?.open_in_place(opening, kind.label(), sealed).ok()?.to_vec())
    }

    fn cipher(&self) -> Option<LessSafeKey> {
        UnboundKey::new(&AES_128_GCM_SIV, &self.0).ok().map(LessSafeKey::new)
    }
}

/// Characters of every id of the tail: nonce, number and tag in base64url.
pub const TAIL_ID_CHARS: usize = (NONCE_LEN + size_of::<u64>() + TAG_BYTES) / 3 * 4;
const TAG_BYTES: usize = 16;
/// A store's cursor is filled up to a multiple of this, so that its length does not tell how large its numbers are.
const CURSOR_BYTES: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;

    fn places(secret: &str) -> Cursors {
        Cursors::new(&RedactKey::new(secret.as_bytes()))
    }

    #[test]
    fn a_place_comes_back_as_it_went_also_after_a_restart() {
        for seq in [0, 1, 2, 1_000_000, u64::MAX] {
            let id = places("one").tail(TailPlace::from_bits(seq)).unwrap();
            assert_eq!(places("one").tail_place(&id), Some(TailPlace::from_bits(seq)));
            assert_eq!(id.len(), TAIL_ID_CHARS, "{id}");
            assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')), "{id}");
        }
        for cursor in ["l0.0", "lffffffff.ffffffff", "e1.2", "17", &"x".repeat(CURSOR_BYTES + 1)] {
            let next = places("one").list(cursor).unwrap();
            assert_eq!(places("one").list_cursor(&next).as_deref(), Ok(cursor));
        }
    }

    #[test]
    fn what_was_not_given_is_refused() {
        let places = places("one");
        let (id, next) = (places.tail(TailPlace::from_bits(41)).unwrap(), places.list("l0.29").unwrap());
        let altered_or_cut = |text: &str| -> Vec<String> {
            let at = |at: usize| {
                let (before, rest) = text.split_at(at);
                let other = if rest.starts_with('A') { 'B' } else { 'A' };
                [before.to_owned(), format!("{before}{other}{}", &rest[1..])]
            };
            (0..text.len()).flat_map(at).collect()
        };
        for wrong in altered_or_cut(&id) {
            assert_eq!(places.tail_place(&wrong), None, "{wrong} for {id}");
        }
        for wrong in altered_or_cut(&next) {
            assert_eq!(places.list_cursor(&wrong), Err(StoreError::BadCursor), "{wrong} for {next}");
        }
        // One kind for the other, another store's, and numbers as they are.
        let another = super::tests::places("another").tail(TailPlace::from_bits(41)).unwrap();
        let zeros = "0".repeat(TAIL_ID_CHARS);
        for text in ["", "0", "41", "-1", "18446744073709551615", &next, &another, &zeros, &format!("{id}A")] {
            assert_eq!(places.tail_place(text), None, "{text}");
        }
        for text in ["", "41", "l0.29", "l0.1", &id] {
            assert_eq!(places.list_cursor(text), Err(StoreError::BadCursor), "{text}");
        }
    }

    /// Neither the size of a place, nor its nearness to another, nor that it is another's equal.
    #[test]
    fn a_place_tells_nothing() {
        let places = places("one");
        let all: Vec<Vec<u8>> = [7, 7, 8, u64::MAX]
            .iter()
            .map(|seq| URL_SAFE_NO_PAD.decode(places.tail(TailPlace::from_bits(*seq)).unwrap()).unwrap())
            .collect();
        for (at, one) in all.iter().enumerate() {
            for other in &all[at + 1..] {
                let differing: u32 = one.iter().zip(other).map(|(one, other)| (one ^ other).count_ones()).sum();
                // Of 288 bits, as between random ones: 144, give or take 9 standard deviations.
                assert!((68..=220).contains(&differing), "{one:x?} {other:x?}");
            }
        }
        let lengths: Vec<usize> =
            ["l0.1", "lffffffff.ffffffff"].iter().map(|cursor| places.list(cursor).unwrap().len()).collect();
        assert_eq!(lengths[0], lengths[1]);
    }
}
