//! A segment: a stretch of the store's life in one directory, dropped as a whole when retention says so.
//!
//! - `log`: frames, the truth. Sends accepted while this segment is the newest, and every ending, begin and finish of
//!   that time, also of sends of earlier segments.
//! - `bodies`: request and response bodies and sealed bytes, referred to by the log, synced before it.
//! - `table`: one [`Row`] per send accepted here. `ends`: one [`End`] per finish of this log, in the tail's order.
//!   Both are derived from the logs, and made anew from them until the segment is checkpointed.
//! - `index`: written when the segment is checkpointed: what finds rows ([`Find`]), and what the table holds in sum
//!   ([`ZoneMap`]). Until then both are in memory alone.
//! - `stats`: what the ends of this log come to, once nothing is added to it.

mod finding;
mod rows;

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use serde::{Deserialize, Serialize};

pub use self::rows::RowOf;
use super::files::{self, Link};
use super::frame::{self, Frame, FrameKind};
use super::hashes::TenantHash;
use super::index::{Ended, Find, Growing};
use super::seal::SLOT_BYTES;
use super::stats::Counted;
use super::table::{Extent, ROW_BYTES, Row};
use super::zone_map::ZoneMap;
use super::{Fault, Faults};
use crate::store::{StoreError, Why, wire};

/// Of everything under the store's path. A store of a later format is refused; those before are read as they are.
pub const FORMAT: u32 = 3;
/// The number of a store's first.
pub const FIRST_SEGMENT: u32 = 1;
/// What a send takes beside its frames and bodies: its row, its end's place in the tail, and what its index entries
/// come to.
pub const SEND_BYTES: u64 = ROW_BYTES as u64 + END_BYTES as u64 + 64;
/// What is kept free of a tenant's share for the end of each send that is not done: enough for one without the answer.
pub const END_BYTES_RESERVED: u64 = 1024;
/// A read that fails is tried so many times in all before anybody is told.
const READ_TRIES: u32 = 4;
/// Rows read at once by a scan.
pub const SCAN_ROWS: u32 = 1024;
/// Room for the table and `ends` is set aside in steps of this.
const RESERVED_BYTES: u64 = 64 * 1024;

pub struct Segment {
    pub number: u32,
    pub directory: PathBuf,
    pub log: File,
    /// Where the log is found.
    pub link: Link,
    table: File,
    ends: File,
    /// `None`: dropped, their time was over.
    bodies: RwLock<Option<File>>,
    /// What its ends come to.
    pub counted: Mutex<Counted>,
    /// Held while the table or `ends` is read or written, so that no half-written row is seen.
    table_lock: RwLock<()>,
    /// Sends accepted here and visible to readers.
    pub rows: AtomicU32,
    /// Bytes of the table and of `ends` that the file system has set room aside for.
    reserved: (AtomicU64, AtomicU64),
    /// Places in `ends`.
    pub ends_count: AtomicU32,
    /// Durable length.
    pub log_bytes: AtomicU64,
    pub bodies_bytes: AtomicU64,
    pub undone: AtomicU32,
    /// The tail's sequence number of the first finish in this log.
    pub first_seq: u64,
    pub opened_at: i64,
    pub zones: RwLock<ZoneMap>,
    find: RwLock<Find>,
    ended: RwLock<Ended>,
    /// Bytes of records and of bodies.
    shares: Mutex<BTreeMap<TenantHash, (u64, u64)>>,
    /// Rows that are damaged, as the logs have them.
    pub mended: Mutex<HashMap<u32, Option<Row>>>,
    /// A row was lost while running: the next start makes the segment's tables anew, and until then no index says
    /// otherwise.
    distrusted: AtomicBool,
    /// So many reads of it fail, for tests.
    #[cfg(test)]
    pub failing_reads: AtomicU32,
    /// Table, ends or slots were written since they were last synced. Set after the write, so that a sync in
    /// between does not pass it by.
    pub dirty: AtomicBool,
}

/// The first frame of a log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Head {
    pub format: u32,
    pub segment: u32,
    pub first_seq: u64,
    pub opened_at: i64,
    /// Bytes of the previous segment's log that count; what lies behind them was never answered for.
    pub previous_log_bytes: u64,
}

/// One finish, at its place in the tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    pub finished_at: i64,
    pub segment: u32,
    pub row: u32,
    pub tenant: u32,
    pub outcome: u8,
}

pub const END_BYTES: usize = 32;

impl End {
    pub fn encode(&self) -> [u8; END_BYTES] {
        let mut bytes = [0; END_BYTES];
        bytes[..8].copy_from_slice(&self.finished_at.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.segment.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.row.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.tenant.to_le_bytes());
        bytes[20] = self.outcome;
        let sum = crc32fast::hash(&bytes[..28]);
        bytes[28..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// `None`: nothing is known to have ended at this place.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; END_BYTES] = bytes.first_chunk()?;
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if crc32fast::hash(&bytes[..28]) != number(28) {
            return None;
        }
        let (finished_at, _) = bytes.split_first_chunk()?;
        Some(Self {
            finished_at: i64::from_le_bytes(*finished_at),
            segment: number(8),
            row: number(12),
            tenant: number(16),
            outcome: bytes[20],
        })
    }
}

pub fn directory_of(segments: &Path, number: u32) -> PathBuf {
    segments.join(format!("{number:08}"))
}

/// Whether there is any segment.
pub fn are_in(segments: &Path) -> bool {
    let mut entries = std::fs::read_dir(segments).into_iter().flatten().flatten();
    entries.any(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()))
}

/// Whether there is a segment of this number, or what is left of one.
pub fn exists(segments: &Path, number: u32) -> bool {
    // What cannot be found out is taken for a yes.
    directory_of(segments, number).try_exists().unwrap_or(true)
}

/// Makes a directory's entries durable.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn open_file(path: PathBuf, make: bool) -> io::Result<File> {
    files::open(&path, make)
}

impl Segment {
    /// Makes an empty segment, durable as a whole. From the moment its directory has its name, the log before it counts
    /// no further than its head says. So all that may fail comes before that, but for making the name durable: after
    /// that nobody knows what the disk has, and [`exists`] says that nothing may be written to the log before it.
    pub(super) fn create(segments: &Path, head: &Head, faults: &Faults) -> io::Result<Self> {
        let directory = directory_of(segments, head.segment);
        let making = directory.with_extension("new");
        if making.exists() {
            fs::remove_dir_all(&making)?;
        }
        if directory.exists() {
            // Of a try whose name was not made durable. Nothing was ever written to it.
            fs::rename(&directory, &making)?;
            fs::remove_dir_all(&making)?;
        }
        files::make_directory(&making)?;
        let mut bytes = Vec::new();
        frame::append(&mut bytes, FrameKind::Head, &[&wire::encode(head, Vec::new())], None);
        for (name, content) in [("log", bytes.as_slice()), ("bodies", &[]), ("table", &[]), ("ends", &[])] {
            let file = open_file(making.join(name), true)?;
            file.write_all_at(content, 0)?;
            file.sync_all()?;
        }
        sync_directory(&making)?;
        let mut segment = Self::open(making.clone(), head)?;
        let above = File::open(segments)?;
        fs::rename(&making, &directory)?;
        faults.pass(Fault::Name)?;
        above.sync_all()?;
        segment.link = Link::of(&directory.join("log"), &segment.log)?;
        segment.directory = directory;
        Ok(segment)
    }

    /// The head of the segment in this directory; `None`: its first frame is not a head.
    pub fn head(directory: &Path) -> io::Result<Option<Head>> {
        let log = File::open(directory.join("log"))?;
        let mut scanner = frame::Scanner::new(&log, 0, u64::MAX)?;
        Ok(match scanner.next()? {
            frame::Scanned::Frame { at: 0, frame: Frame { kind: FrameKind::Head, payload, .. } } => {
                wire::decode(payload).ok()
            }
            _ => None,
        })
    }

    /// Opens the files; rows and the rest are for [`Self::load_index`] or a replay of the log to fill in.
    pub fn open(directory: PathBuf, head: &Head) -> io::Result<Self> {
        let log = open_file(directory.join("log"), false)?;
        let bodies = match open_file(directory.join("bodies"), false) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let bodies_bytes = bodies.as_ref().map_or(Ok(0), |file| file.metadata().map(|about| about.len()))?;
        Ok(Self {
            number: head.segment,
            table: open_file(directory.join("table"), true)?,
            ends: open_file(directory.join("ends"), true)?,
            log_bytes: AtomicU64::new(log.metadata()?.len()),
            link: Link::of(&directory.join("log"), &log)?,
            log,
            bodies: RwLock::new(bodies),
            bodies_bytes: AtomicU64::new(bodies_bytes),
            table_lock: RwLock::new(()),
            rows: AtomicU32::new(0),
            ends_count: AtomicU32::new(0),
            reserved: (AtomicU64::new(0), AtomicU64::new(0)),
            undone: AtomicU32::new(0),
            first_seq: head.first_seq,
            opened_at: head.opened_at,
            zones: RwLock::default(),
            find: RwLock::new(Find::Growing(Growing::default())),
            ended: RwLock::default(),
            shares: Mutex::default(),
            counted: Mutex::default(),
            mended: Mutex::default(),
            distrusted: AtomicBool::new(false),
            #[cfg(test)]
            failing_reads: AtomicU32::new(0),
            dirty: AtomicBool::new(false),
            directory,
        })
    }

    pub fn row_count(&self) -> u32 {
        self.rows.load(Ordering::Acquire)
    }

    pub fn undone_count(&self) -> u32 {
        self.undone.load(Ordering::Acquire)
    }

    pub fn is_checkpointed(&self) -> bool {
        matches!(*self.find(), Find::OnDisk(_))
    }

    /// Its index says what is, or cannot yet say more than it does: nothing is to be written.
    pub fn is_checkpointed_for_good(&self) -> bool {
        let find = self.find();
        self.distrusted.load(Ordering::Acquire)
            || matches!(*find, Find::OnDisk(_)) && (find.is_complete() || self.undone_count() > 0)
    }

    /// What finds its rows; nothing of it changes while this is held.
    pub fn find(&self) -> RwLockReadGuard<'_, Find> {
        self.find.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn zones(&self) -> RwLockReadGuard<'_, ZoneMap> {
        self.zones.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn change_zones(&self, change: impl FnOnce(&mut ZoneMap)) {
        change(&mut self.zones.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// A checkpointed segment takes no more keys and endings.
    pub fn change_growing(&self, change: impl FnOnce(&mut Growing)) {
        if let Find::Growing(growing) = &mut *self.find.write().unwrap_or_else(PoisonError::into_inner) {
            change(growing);
        }
    }

    fn change_ended(&self, change: impl FnOnce(&mut Ended)) {
        change(&mut self.ended.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Consecutive sends were accepted here, which are not done.
    pub fn add_rows(&self, first: u32, rows: &[Row]) {
        let numbered = || rows.iter().zip(first..);
        self.change_zones(|zones| numbered().for_each(|(row, number)| zones.add_row(number, row)));
        self.change_growing(|growing| numbered().for_each(|(row, number)| growing.add_row(number, row)));
        self.change_ended(|ended| {
            ended.undone.insert_range(first..first + rows.len() as u32);
        });
    }

    /// A send of this segment ended.
    pub fn add_end(&self, number: u32, row: &Row) {
        self.change_zones(|zones| zones.add_end(number, row));
        self.change_ended(|ended| ended.add(number, row));
    }

    /// The same, where the row itself is damaged: what it said is not known to any filter before the next start.
    pub fn add_lost_end(&self, number: u32) {
        self.change_ended(|ended| {
            ended.undone.remove(number);
        });
    }

    /// Bytes of the segment on disk, bodies apart.
    pub fn bytes(&self) -> (u64, u64) {
        let derived = u64::from(self.row_count()) * ROW_BYTES as u64
            + self.find().bytes()
            + u64::from(self.ends_count.load(Ordering::Relaxed)) * END_BYTES as u64;
        (self.log_bytes.load(Ordering::Relaxed) + derived, self.bodies_bytes.load(Ordering::Relaxed))
    }

    /// The file's name for messages.
    pub fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    /// Reads, and again where the disk fails: what is not there or not whole is damage, and a disk that does not answer
    /// is none.
    fn read(
        &self,
        name: &str,
        (at, length): (u64, usize),
        mut read: impl FnMut() -> io::Result<()>,
    ) -> Result<(), StoreError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.answers().and_then(|()| read()) {
                Ok(()) => return Ok(()),
                Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData) => {
                    return Err(self.unreadable(name, at, length, &error));
                }
                Err(error) if tries == READ_TRIES => {
                    return Err(StoreError::CannotRead(Why::by(
                        format!(
                            "{} at bytes {at} to {}: {error}, {tries} times: look at the disk and the kernel's log",
                            self.file(name),
                            at + length as u64
                        ),
                        error,
                    )));
                }
                Err(_) => {}
            }
        }
    }

    #[cfg(test)]
    fn answers(&self) -> io::Result<()> {
        let failing = |left: u32| left.checked_sub(1);
        match self.failing_reads.fetch_update(Ordering::AcqRel, Ordering::Acquire, failing) {
            Ok(_) => Err(io::Error::from_raw_os_error(nix::errno::Errno::EIO as i32)),
            Err(_) => Ok(()),
        }
    }

    #[cfg(not(test))]
    fn answers(&self) -> io::Result<()> {
        Ok(())
    }

    fn unreadable(&self, name: &str, at: u64, length: usize, why: &dyn std::fmt::Display) -> StoreError {
        StoreError::Damaged(format!(
            "{} is unreadable at bytes {at} to {}: {why}; what stood there is lost, restore the file from a copy if \
             it is needed",
            self.file(name),
            at + length as u64
        ).into())
    }

    // The tail.

    /// Writes ends that follow on each other, the first with this number.
    pub fn write_ends(&self, first_seq: u64, ends: &[u8]) -> io::Result<()> {
        let Some(place) = first_seq.checked_sub(self.first_seq) else { return Ok(()) };
        let _lock = self.table_lock.write().unwrap_or_else(PoisonError::into_inner);
        let written = self.ends.write_all_at(ends, place * END_BYTES as u64);
        self.dirty.store(true, Ordering::Release);
        written?;
        let count = u32::try_from(place + (ends.len() / END_BYTES) as u64).unwrap_or(u32::MAX);
        self.ends_count.fetch_max(count, Ordering::AcqRel);
        Ok(())
    }

    /// The bytes of places `from..to` of the tail's part in this segment.
    pub fn ends(&self, from: u32, to: u32) -> Result<Vec<u8>, StoreError> {
        let at = u64::from(from) * END_BYTES as u64;
        let mut bytes = vec![0; (to - from) as usize * END_BYTES];
        let length = bytes.len();
        self.read("ends", (at, length), || {
            let _lock = self.table_lock.read().unwrap_or_else(PoisonError::into_inner);
            self.ends.read_exact_at(&mut bytes, at)
        })?;
        Ok(bytes)
    }

    /// The tail's greatest number that `ends` has on disk; 0: none.
    pub fn newest_end(&self) -> io::Result<u64> {
        let length = self.ends.metadata()?.len();
        let mut bytes = vec![0; END_BYTES * SCAN_ROWS as usize];
        let (mut at, mut newest) = (0, 0);
        while at + END_BYTES as u64 <= length {
            let most = ((length - at) as usize / END_BYTES * END_BYTES).min(bytes.len());
            self.ends.read_exact_at(&mut bytes[..most], at)?;
            for (end, place) in bytes[..most].chunks_exact(END_BYTES).zip(at / END_BYTES as u64..) {
                if End::decode(end).is_some() {
                    newest = self.first_seq + place;
                }
            }
            at += most as u64;
        }
        Ok(newest)
    }

    /// Nothing is known to have ended here. The file keeps its room, as the table does.
    pub fn empty_ends(&self) -> io::Result<()> {
        let length = self.ends.metadata()?.len();
        let zeros = vec![0; 64 * 1024];
        for at in (0..length).step_by(zeros.len()) {
            let most = (length - at).min(zeros.len() as u64) as usize;
            self.ends.write_all_at(&zeros[..most], at)?;
        }
        Ok(())
    }

    // Log and bodies.

    /// Reads the frame at an extent of the log, with its slot.
    pub fn frame(&self, extent: Extent) -> Result<Vec<u8>, StoreError> {
        let at = u64::from(extent.at);
        let mut bytes = Vec::new();
        self.read("log", (at, extent.length as usize), || {
            bytes = frame::read_at(&self.log, at, extent.length as usize)?;
            Ok(())
        })?;
        match frame::parse(&bytes) {
            Some(frame) if frame.length == bytes.len() => Ok(bytes),
            _ => Err(self.unreadable("log", at, extent.length as usize, &"it fails its checksum")),
        }
    }

    /// Reads the frame that begins here, and says itself how long it is.
    pub fn frame_at(&self, at: u32) -> Result<Vec<u8>, StoreError> {
        let mut length = None;
        self.read("log", (u64::from(at), frame::HEADER_BYTES), || {
            length = frame::length_at(&self.log, u64::from(at))?;
            Ok(())
        })?;
        match length {
            Some(length) => self.frame(Extent { at, length: length as u32 }),
            None => Err(self.unreadable("log", u64::from(at), frame::HEADER_BYTES, &"no frame begins there")),
        }
    }

    /// Reads a body's frame; `None`: the bodies of this segment were dropped.
    pub fn body(&self, at: u64, length: u32) -> Result<Option<Vec<u8>>, StoreError> {
        let bodies = self.bodies.read().unwrap_or_else(PoisonError::into_inner);
        let Some(file) = &*bodies else { return Ok(None) };
        let mut bytes = Vec::new();
        self.read("bodies", (at, length as usize), || {
            bytes = frame::read_at(file, at, length as usize)?;
            Ok(())
        })?;
        match frame::parse(&bytes) {
            Some(Frame { kind: FrameKind::Body, payload, length }) if length == bytes.len() => {
                Ok(Some(payload.to_vec()))
            }
            _ => Err(self.unreadable("bodies", at, length as usize, &"it fails its checksum")),
        }
    }

    pub fn with_bodies<T>(&self, with: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        match &*self.bodies.read().unwrap_or_else(PoisonError::into_inner) {
            Some(file) => with(file),
            None => Err(io::Error::other("the newest segment has no bodies file")),
        }
    }

    /// Forgets the bodies. What was read of them stays with who read it.
    pub fn drop_bodies(&self) -> io::Result<()> {
        let mut bodies = self.bodies.write().unwrap_or_else(PoisonError::into_inner);
        fs::remove_file(self.directory.join("bodies"))?;
        *bodies = None;
        self.bodies_bytes.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// Makes an empty file where there is none.
    pub fn make_bodies(&self) -> io::Result<()> {
        let mut bodies = self.bodies.write().unwrap_or_else(PoisonError::into_inner);
        if bodies.is_none() {
            *bodies = Some(open_file(self.directory.join("bodies"), true)?);
        }
        Ok(())
    }

    pub fn has_bodies(&self) -> bool {
        self.bodies.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Overwrites the wrapped key of a sealed send: what it sealed is unreadable from then on.
    pub fn wipe(&self, accepted: Extent) -> io::Result<()> {
        let at = u64::from(accepted.at) + u64::from(accepted.length) - SLOT_BYTES as u64;
        let written = self.log.write_all_at(&[0; SLOT_BYTES], at);
        self.dirty.store(true, Ordering::Release);
        written
    }

    /// Makes durable what no commit waits for.
    pub fn sync_derived(&self) -> io::Result<()> {
        if self.dirty.swap(false, Ordering::AcqRel) {
            let synced =
                self.table.sync_data().and_then(|()| self.ends.sync_data()).and_then(|()| self.log.sync_data());
            if synced.is_err() {
                self.dirty.store(true, Ordering::Release);
            }
            return synced;
        }
        Ok(())
    }
}
