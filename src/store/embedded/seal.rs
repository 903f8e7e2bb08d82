//! The key file and what hangs on it: sealing what records never show, and the keyed hashes.
//!
//! What a send's request has and its record lacks is encrypted with AES-256-GCM under a random key of its own. That
//! key is wrapped under one derived from the key file and the send's id, and the wrapped key lies in a place that is
//! overwritten when the send is done: from then on the sealed bytes are unreadable, by us too.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hmac;

use super::hashes::{ExecutionHash, TenantHash};
use crate::redact::RedactKey;
use crate::send::SendId;
use crate::store::{StoreError, Why};

/// Bytes of the key file.
const KEY_BYTES: usize = 32;
/// A wrapped key: 32 bytes and the tag.
pub const SLOT_BYTES: usize = 48;
/// The place of a wrapped key.
pub type Slot = [u8; SLOT_BYTES];

/// What a filter may ask for by hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Tenant = 1,
    Workflow = 2,
    Execution = 3,
    Step = 4,
    Host = 5,
    Source = 6,
    // Asked for as the numbers they are.
    Outcome = 7,
    Code = 8,
    Status = 9,
    First = 10,
}

/// Nobody but its owner may use a key file; of one that is another's (root's, a mounted secret) this process may be in the
/// group that reads it, as it could not otherwise.
fn is_private(mode: u32, is_own: bool) -> bool {
    mode & if is_own { 0o077 } else { 0o037 } == 0
}

/// The keys of one store.
pub struct Keys {
    root: hmac::Key,
    wrap: hmac::Key,
    fingerprint: hmac::Key,
    hash: (u64, u64),
    check: [u8; 16],
}

impl Keys {
    /// Reads the key file, or makes it at the first start. `may_make`: the store is new; an old store whose key file
    /// is gone must not get another, because what is sealed in it would be lost without a word.
    pub fn load(path: &Path, may_make: bool) -> Result<Self, StoreError> {
        let shown = path.display();
        let secret = match fs::read(path) {
            Ok(secret) => {
                let (mode, owner) = fs::metadata(path).map_or((0, 0), |about| (about.mode() & 0o777, about.uid()));
                if !is_private(mode, owner == nix::unistd::geteuid().as_raw()) {
                    return Err(StoreError::CannotRead(format!(
                        "key file {shown} has mode {mode:03o}, so others than its owner may use it: chmod 600 {shown}"
                    ).into()));
                }
                secret
            }
            Err(error) if error.kind() == ErrorKind::NotFound && may_make => Self::make(path)?,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(StoreError::CannotRead(format!(
                    "key file {shown} is gone, and the store needs the one it was made with: restore it, or give this \
                     egressd another `[store] path`"
                ).into()));
            }
            Err(error) => {
                return Err(StoreError::CannotRead(Why::by(
                    format!(
                        "key file {shown}: {error}: let the user who runs egressd read it, or name another `[store] \
                     key_file`"
                    ),
                    error,
                )));
            }
        };
        if secret.len() != KEY_BYTES {
            return Err(StoreError::CannotRead(
                format!(
                    "key file {shown} has {} bytes instead of {KEY_BYTES}: restore it; only while the store is still \
                 empty, delete it and a new one is made",
                    secret.len()
                )
                .into(),
            ));
        }
        Ok(Self::derive(&secret))
    }

    /// Whether [`Self::load`] could read the key file or make it, once the store's directory is made; nothing is made. A
    /// store that is not new needs more.
    pub fn look_at(path: &Path, store: &Path) -> Result<(), StoreError> {
        if path.exists() {
            return Self::load(path, false).map(drop);
        }
        let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
        match directory.filter(|directory| !directory.is_dir() && (directory.exists() || !store.starts_with(directory)))
        {
            Some(directory) => Err(StoreError::CannotWrite(
                format!("key file {} cannot be made: {} is no directory", path.display(), directory.display()).into(),
            )),
            None => Ok(()),
        }
    }

    fn make(path: &Path) -> Result<Vec<u8>, StoreError> {
        let failed = |error: std::io::Error| {
            StoreError::CannotWrite(Why::by(format!("making key file {}: {error}", path.display()), error))
        };
        let mut secret = vec![0; KEY_BYTES];
        aws_lc_rs::rand::fill(&mut secret)
            .map_err(|_| failed(std::io::Error::other("the system gives no random bytes")))?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        file.write_all(&secret).and_then(|()| file.sync_all()).map_err(failed)?;
        Ok(secret)
    }

    fn derive(secret: &[u8]) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let labelled = |label: &str| hmac::sign(&root, label.as_bytes());
        let hash = labelled("egressd places 1");
        let (low, rest) = hash.as_ref().split_first_chunk().unwrap_or((&[0; 8], &[]));
        let (high, _) = rest.split_first_chunk().unwrap_or((&[0; 8], &[]));
        let mut check = [0; 16];
        for (into, from) in check.iter_mut().zip(labelled("egressd check 1").as_ref()) {
            *into = *from;
        }
        Self {
            wrap: hmac::Key::new(hmac::HMAC_SHA256, labelled("egressd wrap 1").as_ref()),
            fingerprint: hmac::Key::new(hmac::HMAC_SHA256, labelled("egressd fingerprint 1").as_ref()),
            hash: (u64::from_le_bytes(*low), u64::from_le_bytes(*high)),
            check,
            root,
        }
    }

    /// Tells this key from others, and nothing about it.
    pub fn check(&self) -> [u8; 16] {
        self.check
    }

    pub fn redact_key(&self) -> RedactKey {
        RedactKey::new(hmac::sign(&self.root, b"egressd redact 1").as_ref())
    }

    /// What is kept of a call's fingerprint: without the key it says nothing about the call's body, however few bodies
    /// there are to guess from.
    pub fn fingerprint(&self, fingerprint: &[u8; 32]) -> [u8; 32] {
        let keyed = hmac::sign(&self.fingerprint, fingerprint);
        keyed.as_ref().first_chunk().copied().unwrap_or_default()
    }

    /// Encrypts in place; the slot is what opens it again.
    pub fn seal(&self, id: SendId, plain: &mut Vec<u8>) -> Result<Slot, StoreError> {
        let failed = || StoreError::CannotWrite("sealing a send's secrets failed in the cipher".into());
        let mut own = [0; 32];
        aws_lc_rs::rand::fill(&mut own).map_err(|_| failed())?;
        let cipher = key(&own).ok_or_else(failed)?;
        cipher.seal_in_place_append_tag(once(), aad(id), plain).map_err(|_| failed())?;
        let mut slot = [0; SLOT_BYTES];
        let (wrapped, tag) = slot.split_at_mut(32);
        wrapped.copy_from_slice(&own);
        let made = self.wrapping(id).ok_or_else(failed)?;
        tag.copy_from_slice(made.seal_in_place_separate_tag(once(), aad(id), wrapped).map_err(|_| failed())?.as_ref());
        Ok(slot)
    }

    /// `None`: the slot is not of this key and send, or the bytes are not what was sealed.
    pub fn open<'a>(&self, id: SendId, slot: &Slot, sealed: &'a mut [u8]) -> Option<&'a [u8]> {
        let mut own = *slot;
        let own = self.wrapping(id)?.open_in_place(once(), aad(id), &mut own).ok()?;
        let opened = key(own)?.open_in_place(once(), aad(id), sealed).ok()?;
        Some(opened)
    }

    /// Each id has a wrapping key of its own, so each is used for one message.
    fn wrapping(&self, id: SendId) -> Option<LessSafeKey> {
        key(hmac::sign(&self.wrap, id.0.as_bytes()).as_ref())
    }

    /// A 32-bit hash of what a filter may ask for, never 0. Each kind has its own, so that equal texts differ.
    pub fn short(&self, asked: Asked, text: &str) -> u32 {
        (self.hash(asked as u8, &[text]) as u32).max(1)
    }

    /// Its upper half is the [`Asked::Tenant`] that [`Self::short`] has.
    pub fn tenant(&self, tenant: &str) -> TenantHash {
        let hash = self.hash(Asked::Tenant as u8, &[tenant]);
        TenantHash::of((hash as u32).max(1), ((hash >> 32) as u32).max(1))
    }

    /// Never 0. The lower half is the [`Asked::Execution`] of any tenant's.
    pub fn execution(&self, tenant: &str, execution: &str) -> ExecutionHash {
        let hash = self.hash(16, &[tenant, execution]) << 32 | u64::from(self.short(Asked::Execution, execution));
        ExecutionHash { hash, tenant: self.short(Asked::Tenant, tenant) }
    }

    pub fn call(&self, tenant: &str, path: &str, key: &str) -> u64 {
        self.hash(17, &[tenant, path, key]).max(1)
    }

    /// SipHash-2-4 over the parts, with their lengths so that none runs into the next.
    fn hash(&self, kind: u8, parts: &[&str]) -> u64 {
        let mut sip = Sip::new(self.hash.0, self.hash.1);
        sip.write(&[kind]);
        for part in parts {
            sip.write(&(part.len() as u32).to_le_bytes());
            sip.write(part.as_bytes());
        }
        sip.finish()
    }
}

fn key(bytes: &[u8]) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, bytes).ok().map(LessSafeKey::new)
}

/// Every key here encrypts one message in its life, so the nonce need not differ.
fn once() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

fn aad(id: SendId) -> Aad<[u8; 16]> {
    Aad::from(*id.0.as_bytes())
}

/// SipHash-2-4 (Aumasson and Bernstein, 2012). The standard library's hasher promises no stable result.
struct Sip {
    v: [u64; 4],
    tail: [u8; 8],
    filled: usize,
    length: u8,
}

impl Sip {
    fn new(k0: u64, k1: u64) -> Self {
        let v = [
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ];
        Self { v, tail: [0; 8], filled: 0, length: 0 }
    }

    fn round(&mut self) {
        let [v0, v1, v2, v3] = &mut self.v;
        *v0 = v0.wrapping_add(*v1);
        *v1 = v1.rotate_left(13) ^ *v0;
        *v0 = v0.rotate_left(32);
        *v2 = v2.wrapping_add(*v3);
        *v3 = v3.rotate_left(16) ^ *v2;
        *v0 = v0.wrapping_add(*v3);
        *v3 = v3.rotate_left(21) ^ *v0;
        *v2 = v2.wrapping_add(*v1);
        *v1 = v1.rotate_left(17) ^ *v2;
        *v2 = v2.rotate_left(32);
    }

    fn word(&mut self, word: u64) {
        self.v[3] ^= word;
        self.round();
        self.round();
        self.v[0] ^= word;
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.tail[self.filled] = byte;
            self.filled += 1;
            self.length = self.length.wrapping_add(1);
            if self.filled == 8 {
                self.word(u64::from_le_bytes(self.tail));
                self.filled = 0;
            }
        }
    }

    fn finish(mut self) -> u64 {
        self.tail[self.filled..].fill(0);
        self.tail[7] = self.length;
        self.word(u64::from_le_bytes(self.tail));
        self.v[2] ^= 0xff;
        for _ in 0..4 {
            self.round();
        }
        self.v.into_iter().fold(0, |all, part| all ^ part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_siphash() {
        // The test vectors of the paper's reference implementation: key 00..0f, input 00, 00 01, ...
        let (k0, k1) = (0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908);
        for (length, expected) in [
            (0, 0x726f_db47_dd0e_0e31_u64),
            (1, 0x74f8_39c5_93dc_67fd),
            (7, 0xab02_00f5_8b01_d137),
            (8, 0x93f5_f579_9a93_2462),
            (15, 0xa129_ca61_49be_45e5),
        ] {
            let input: Vec<u8> = (0..length).collect();
            let mut sip = Sip::new(k0, k1);
            sip.write(&input);
            assert_eq!(sip.finish(), expected, "{length} bytes");
        }
    }

    #[test]
    fn only_the_right_key_send_and_slot_open_what_was_sealed() {
        let id = |number| SendId(uuid::Uuid::from_u128(number));
        let keys = Keys::derive(&[1; 32]);
        let mut sealed = b"a secret".to_vec();
        let slot = keys.seal(id(1), &mut sealed).unwrap();
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
        assert_eq!(keys.open(id(1), &slot, &mut sealed.clone()), Some(&b"a secret"[..]));
        assert_eq!(keys.open(id(2), &slot, &mut sealed.clone()), None);
        assert_eq!(keys.open(id(1), &[0; SLOT_BYTES], &mut sealed.clone()), None);
        assert_eq!(Keys::derive(&[2; 32]).open(id(1), &slot, &mut sealed.clone()), None);
        sealed[0] ^= 1;
        assert_eq!(keys.open(id(1), &slot, &mut sealed), None);
    }

    #[test]
    fn a_key_file_of_roots_may_be_read_by_the_group_and_ones_own_may_not() {
        for (mode, of_own, of_anothers) in [
            (0o600, true, true),
            (0o400, true, true),
            (0o440, false, true),
            (0o640, false, true),
            (0o660, false, false),
        ]
        .into_iter()
        .chain([(0o444, false, false), (0o604, false, false)])
        {
            assert_eq!((is_private(mode, true), is_private(mode, false)), (of_own, of_anothers), "{mode:o}");
        }
    }

    #[test]
    fn a_key_file_is_made_private_and_held_to_it() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        assert!(matches!(Keys::load(&path, false), Err(StoreError::CannotRead(why)) if why.contains("is gone")));
        let made = Keys::load(&path, true).unwrap().check();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(Keys::load(&path, false).unwrap().check(), made);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Keys::load(&path, true), Err(StoreError::CannotRead(why)) if why.contains("chmod 600")));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, b"short").unwrap();
        assert!(matches!(Keys::load(&path, true), Err(StoreError::CannotRead(why)) if why.contains("5 bytes")));
    }
}
