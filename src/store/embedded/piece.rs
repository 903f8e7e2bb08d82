//! A piece: a stretch of the store's life in one directory, dropped as a whole when retention says so.
//!
//! - `log`: frames, the truth. Sends accepted while this piece is the newest, and every ending, begin and finish of
//!   that time, also of sends of earlier pieces.
//! - `bodies`: request and response bodies and sealed bytes, referred to by the log, synced before it.
//! - `table`: one [`Row`] per send accepted here. `ends`: one [`End`] per finish of this log, in the tail's order.
//!   Both are derived from the logs, and made anew from them until the piece is settled.
//! - `index`: written when the piece is settled: sorted hashes of executions and idempotency keys, and what the table
//!   holds in sum. Until then [`Find::Growing`] has the same in memory.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};

use super::frame::{self, Frame, Kind};
use super::seal::SLOT_BYTES;
use super::table::{Extent, NONE, ROW_BYTES, Row};
use crate::store::view::EndedExecution;
use crate::store::{StoreError, wire};

/// Of everything under the store's path. A store of a later format is refused.
pub const FORMAT: u32 = 1;
/// Rows that share an entry in [`Facts::blocks`].
const BLOCK_ROWS: u32 = 256;
/// Rows read at once by a scan.
pub const SCAN_ROWS: u32 = 1024;
/// Room for the table and `ends` is set aside in steps of this.
const RESERVED_BYTES: u64 = 64 * 1024;
/// No row.
const NO_ROW: u32 = u32::MAX;

pub struct Piece {
    pub number: u32,
    pub directory: PathBuf,
    pub log: File,
    table: File,
    ends: File,
    /// `None`: dropped, their time was over.
    bodies: RwLock<Option<File>>,
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
    pub facts: RwLock<Facts>,
    find: RwLock<Find>,
    /// Table, ends or slots were written since they were last synced. Set after the write, so that a sync in
    /// between does not pass it by.
    pub dirty: AtomicBool,
}

/// The first frame of a log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Head {
    pub format: u32,
    pub piece: u32,
    pub first_seq: u64,
    pub opened_at: i64,
    /// Bytes of the previous piece's log that count; what lies behind them was never answered for.
    pub previous_log_bytes: u64,
}

/// What the rows hold in sum, so that a search may pass a piece by.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    pub blocks: Vec<Block>,
    /// One bit per outcome's and per code's number.
    pub outcomes: u64,
    pub codes: u64,
    pub statuses: BTreeSet<u16>,
    pub newest_created_at: i64,
    /// Of the finishes in this piece's log.
    pub newest_finished_at: i64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Block {
    pub ids: (u128, u128),
    pub created: (i64, i64),
}

impl Facts {
    pub fn add_row(&mut self, number: u32, row: &Row) {
        let block = (number / BLOCK_ROWS) as usize;
        let empty = Block { ids: (u128::MAX, 0), created: (i64::MAX, i64::MIN) };
        if self.blocks.len() <= block {
            self.blocks.resize(block + 1, empty);
        }
        let block = &mut self.blocks[block];
        block.ids = (block.ids.0.min(row.id), block.ids.1.max(row.id));
        block.created = (block.created.0.min(row.created_at), block.created.1.max(row.created_at));
        self.newest_created_at = self.newest_created_at.max(row.created_at);
    }

    pub fn add_end(&mut self, row: &Row) {
        if row.outcome != NONE {
            self.outcomes |= 1 << (row.outcome & 63);
        }
        if row.code != NONE {
            self.codes |= 1 << (row.code & 63);
        }
        if row.status != 0 {
            self.statuses.insert(row.status);
        }
    }
}

/// One finish, at its place in the tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    pub finished_at: i64,
    pub piece: u32,
    pub row: u32,
    pub tenant: u32,
    pub outcome: u8,
}

pub const END_BYTES: usize = 32;

impl End {
    pub fn encode(&self) -> [u8; END_BYTES] {
        let mut bytes = [0; END_BYTES];
        bytes[..8].copy_from_slice(&self.finished_at.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.piece.to_le_bytes());
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
            piece: number(8),
            row: number(12),
            tenant: number(16),
            outcome: bytes[20],
        })
    }
}

/// Finding executions and idempotency keys by their hash.
pub enum Find {
    Growing(Growing),
    Settled(Settled),
}

#[derive(Default)]
pub struct Growing {
    /// Newest row and count of each execution's rows here.
    members: HashMap<u64, (u32, u32)>,
    /// For each row, the one before it in its execution.
    previous: Vec<u32>,
    /// First row and count of each idempotent call.
    keys: HashMap<u64, (u32, u32)>,
    endings: HashMap<u64, (Extent, EndedExecution)>,
    /// Every other hash a filter may ask for.
    hashes: HashSet<u64>,
}

pub struct Settled {
    bloom: Arc<Bloom>,
    file: File,
    entries_at: u64,
    entries: u64,
    /// What the index says of sends that are not done; it is written anew once they are.
    undone: u32,
}

/// An entry of a settled piece's index: `(hash, value)`, the value's top two bits saying what it is.
const ENTRY_BYTES: usize = 16;
const MEMBER: u64 = 0;
const KEY: u64 = 1;
const ENDING: u64 = 2;

#[derive(Serialize, Deserialize)]
struct IndexForm {
    rows: u32,
    ends: u32,
    undone: u32,
    facts: Facts,
    #[serde(with = "shared")]
    bloom: Arc<Bloom>,
    entries: u64,
    entries_sum: u32,
}

/// A shared value stored as the value it is.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<T: Serialize, S: Serializer>(value: &Arc<T>, serializer: S) -> Result<S::Ok, S::Error> {
        T::serialize(value, serializer)
    }

    pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Arc<T>, D::Error> {
        T::deserialize(from).map(Arc::new)
    }
}

/// A Bloom filter with about twelve bits a key, six of them set in one cache line: says "surely not here", or
/// "perhaps". One line, because an accept asks that of every piece there is.
#[derive(Serialize, Deserialize)]
pub struct Bloom(Vec<[u64; 8]>);

impl Bloom {
    fn new(keys: usize) -> Self {
        Self(vec![[0; 8]; (keys * 12).div_ceil(512).max(1)])
    }
    fn place(&self, hash: u64) -> (usize, [u64; 8]) {
        // The line by the hash's upper half, the bits by a mix of the lower.
        let line = ((hash >> 32).wrapping_mul(self.0.len() as u64) >> 32) as usize;
        let mut bits = [0; 8];
        let mut mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for _ in 0..6 {
            bits[(mixed >> 61) as usize] |= 1 << (mixed >> 55 & 63);
            mixed = mixed.rotate_left(11).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        (line, bits)
    }
    fn add(&mut self, hash: u64) {
        let (line, bits) = self.place(hash);
        self.0[line].iter_mut().zip(bits).for_each(|(word, bits)| *word |= bits);
    }
    pub fn may_have(&self, hash: u64) -> bool {
        let (line, bits) = self.place(hash);
        self.0.get(line).is_some_and(|words| words.iter().zip(bits).all(|(word, bits)| word & bits == bits))
    }
}

/// Where an ending was found.
pub enum FoundEnding {
    Known(EndedExecution),
    /// To be read from the log, and its names compared.
    At(Extent),
}

pub fn directory_of(pieces: &Path, number: u32) -> PathBuf {
    pieces.join(format!("{number:08}"))
}

/// Makes a directory's entries durable.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn open_file(path: PathBuf, make: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(make).truncate(false).open(path)
}

impl Piece {
    /// Makes an empty piece, durable as a whole.
    pub fn create(pieces: &Path, head: &Head) -> io::Result<Self> {
        let directory = directory_of(pieces, head.piece);
        let making = directory.with_extension("new");
        if making.exists() {
            fs::remove_dir_all(&making)?;
        }
        fs::create_dir_all(&making)?;
        let mut bytes = Vec::new();
        frame::append(&mut bytes, Kind::Head, &[&wire::encode(head, Vec::new())], None);
        for (name, content) in [("log", bytes.as_slice()), ("bodies", &[]), ("table", &[]), ("ends", &[])] {
            let file = open_file(making.join(name), true)?;
            file.write_all_at(content, 0)?;
            file.sync_all()?;
        }
        sync_directory(&making)?;
        fs::rename(&making, &directory)?;
        sync_directory(pieces)?;
        Self::open(directory, head)
    }

    /// The head of the piece in this directory; `None`: its first frame is not a head.
    pub fn head(directory: &Path) -> io::Result<Option<Head>> {
        let log = File::open(directory.join("log"))?;
        let mut scanner = frame::Scanner::new(&log, 0, u64::MAX)?;
        Ok(match scanner.next()? {
            frame::Found::Frame { at: 0, frame: Frame { kind: Kind::Head, payload, .. } } => wire::decode(payload).ok(),
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
            number: head.piece,
            table: open_file(directory.join("table"), true)?,
            ends: open_file(directory.join("ends"), true)?,
            log_bytes: AtomicU64::new(log.metadata()?.len()),
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
            facts: RwLock::default(),
            find: RwLock::new(Find::Growing(Growing::default())),
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

    pub fn is_settled(&self) -> bool {
        matches!(*self.find(), Find::Settled(_))
    }

    /// Its index says what is, or will be replayed: nothing is to be written.
    pub fn is_settled_for_good(&self) -> bool {
        matches!(&*self.find(), Find::Settled(settled) if settled.undone == 0 || self.undone_count() > 0)
    }

    /// Of a settled piece.
    pub fn bloom(&self) -> Option<Arc<Bloom>> {
        match &*self.find() {
            Find::Settled(settled) => Some(settled.bloom.clone()),
            Find::Growing(_) => None,
        }
    }

    fn find(&self) -> RwLockReadGuard<'_, Find> {
        self.find.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn facts(&self) -> RwLockReadGuard<'_, Facts> {
        self.facts.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn change_facts(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.facts.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// `false`: settled, or it cannot change.
    pub fn change_growing(&self, change: impl FnOnce(&mut Growing)) {
        if let Find::Growing(growing) = &mut *self.find.write().unwrap_or_else(PoisonError::into_inner) {
            change(growing);
        }
    }

    /// Bytes of the piece on disk, bodies apart.
    pub fn bytes(&self) -> (u64, u64) {
        let derived = u64::from(self.row_count()) * (ROW_BYTES + ENTRY_BYTES) as u64
            + u64::from(self.ends_count.load(Ordering::Relaxed)) * END_BYTES as u64;
        (self.log_bytes.load(Ordering::Relaxed) + derived, self.bodies_bytes.load(Ordering::Relaxed))
    }

    /// The file's name for messages.
    pub fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    fn unreadable(&self, name: &str, at: u64, length: usize, why: &dyn std::fmt::Display) -> StoreError {
        StoreError::Damaged(format!(
            "{} is unreadable at bytes {at} to {}: {why}; what stood there is lost, restore the file from a copy if \
             it is needed",
            self.file(name),
            at + length as u64
        ))
    }

    // The table.

    /// Writes consecutive rows.
    pub fn write_rows(&self, first: u32, rows: &[u8]) -> io::Result<()> {
        let _lock = self.table_lock.write().unwrap_or_else(PoisonError::into_inner);
        let written = self.table.write_all_at(rows, u64::from(first) * ROW_BYTES as u64);
        self.dirty.store(true, Ordering::Release);
        written
    }

    pub fn row(&self, number: u32) -> Result<Row, StoreError> {
        let at = u64::from(number) * ROW_BYTES as u64;
        let mut bytes = [0; ROW_BYTES];
        let read = {
            let _lock = self.table_lock.read().unwrap_or_else(PoisonError::into_inner);
            self.table.read_exact_at(&mut bytes, at)
        };
        read.map_err(|error| self.unreadable("table", at, ROW_BYTES, &error))?;
        Row::decode(&bytes).ok_or_else(|| self.unreadable("table", at, ROW_BYTES, &"the row fails its checksum"))
    }

    /// The bytes of rows `from..to`.
    pub fn rows(&self, from: u32, to: u32, into: &mut Vec<u8>) -> Result<(), StoreError> {
        let at = u64::from(from) * ROW_BYTES as u64;
        into.resize((to - from) as usize * ROW_BYTES, 0);
        let _lock = self.table_lock.read().unwrap_or_else(PoisonError::into_inner);
        self.table.read_exact_at(into, at).map_err(|error| self.unreadable("table", at, into.len(), &error))
    }

    /// How many sound rows the table has on disk.
    pub fn sound_rows(&self) -> io::Result<u32> {
        let length = self.table.metadata()?.len();
        let (mut at, mut sound) = (0, 0);
        let mut bytes = vec![0; ROW_BYTES * SCAN_ROWS as usize];
        while at + ROW_BYTES as u64 <= length {
            let most = ((length - at) as usize / ROW_BYTES * ROW_BYTES).min(bytes.len());
            self.table.read_exact_at(&mut bytes[..most], at)?;
            let rows = bytes[..most].chunks_exact(ROW_BYTES);
            sound += rows.filter(|row| row.first_chunk().and_then(Row::decode).is_some()).count() as u32;
            at += most as u64;
        }
        Ok(sound)
    }

    /// Writes all of the rows anew. In the room that they have already, so that a full disk takes them too.
    pub fn replace_rows(&self, rows: &[u8]) -> io::Result<()> {
        self.write_rows(0, rows)?;
        self.table.set_len(rows.len() as u64)
    }

    /// Has the file system set room aside for this many rows and ends, some ahead, so that once a log says something
    /// its row can be written too. Where a file system cannot do that, nothing is set aside.
    pub fn reserve(&self, rows: u32, ends: u64) -> io::Result<()> {
        for (file, bytes, reserved) in [
            (&self.table, u64::from(rows) * ROW_BYTES as u64, &self.reserved.0),
            (&self.ends, ends * END_BYTES as u64, &self.reserved.1),
        ] {
            let before = reserved.load(Ordering::Relaxed);
            if bytes <= before {
                continue;
            }
            let after = bytes.next_multiple_of(RESERVED_BYTES);
            match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, before as i64, (after - before) as i64) {
                Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => reserved.store(after, Ordering::Relaxed),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Finds a send's row by its id. Ids sort by time of acceptance, so few blocks can have it.
    pub fn row_of(&self, id: u128) -> Result<Option<(u32, Row)>, StoreError> {
        let rows = self.row_count();
        let blocks: Vec<u32> = {
            let facts = self.facts();
            let within = |(_, block): &(usize, &Block)| block.ids.0 <= id && id <= block.ids.1;
            facts.blocks.iter().enumerate().filter(within).map(|(number, _)| number as u32).collect()
        };
        let mut bytes = Vec::new();
        for block in blocks {
            let from = block * BLOCK_ROWS;
            let to = rows.min(from + BLOCK_ROWS);
            if from >= to {
                continue;
            }
            self.rows(from, to, &mut bytes)?;
            let wanted = id.to_le_bytes();
            let found = bytes.chunks_exact(ROW_BYTES).position(|row| row[..16] == wanted);
            if let Some(found) = found {
                let number = from + found as u32;
                return Ok(Some((number, self.row(number)?)));
            }
        }
        Ok(None)
    }

    // The tail.

    pub fn write_end(&self, seq: u64, end: &End) -> io::Result<()> {
        let Some(place) = seq.checked_sub(self.first_seq) else { return Ok(()) };
        let _lock = self.table_lock.write().unwrap_or_else(PoisonError::into_inner);
        let written = self.ends.write_all_at(&end.encode(), place * END_BYTES as u64);
        self.dirty.store(true, Ordering::Release);
        written?;
        let count = u32::try_from(place + 1).unwrap_or(u32::MAX);
        self.ends_count.fetch_max(count, Ordering::AcqRel);
        Ok(())
    }

    /// The bytes of places `from..to` of the tail's part in this piece.
    pub fn ends(&self, from: u32, to: u32) -> Result<Vec<u8>, StoreError> {
        let at = u64::from(from) * END_BYTES as u64;
        let mut bytes = vec![0; (to - from) as usize * END_BYTES];
        let _lock = self.table_lock.read().unwrap_or_else(PoisonError::into_inner);
        match self.ends.read_exact_at(&mut bytes, at) {
            Ok(()) => Ok(bytes),
            Err(error) => Err(self.unreadable("ends", at, bytes.len(), &error)),
        }
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
        let bytes = frame::read_at(&self.log, at, extent.length as usize)
            .map_err(|error| self.unreadable("log", at, extent.length as usize, &error))?;
        match frame::parse(&bytes) {
            Some(frame) if frame.length == bytes.len() => Ok(bytes),
            _ => Err(self.unreadable("log", at, extent.length as usize, &"it fails its checksum")),
        }
    }

    /// Reads a body's frame; `None`: the bodies of this piece were dropped.
    pub fn body(&self, at: u64, length: u32) -> Result<Option<Vec<u8>>, StoreError> {
        let bodies = self.bodies.read().unwrap_or_else(PoisonError::into_inner);
        let Some(file) = &*bodies else { return Ok(None) };
        let bytes = frame::read_at(file, at, length as usize)
            .map_err(|error| self.unreadable("bodies", at, length as usize, &error))?;
        match frame::parse(&bytes) {
            Some(Frame { kind: Kind::Body, payload, length }) if length == bytes.len() => Ok(Some(payload.to_vec())),
            _ => Err(self.unreadable("bodies", at, length as usize, &"it fails its checksum")),
        }
    }

    pub fn with_bodies<T>(&self, with: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        match &*self.bodies.read().unwrap_or_else(PoisonError::into_inner) {
            Some(file) => with(file),
            None => Err(io::Error::other("the newest piece has no bodies file")),
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

    // Executions and keys.

    /// Rows of this execution here, in order.
    pub fn members(&self, hash: u64) -> Result<Vec<u32>, StoreError> {
        match &*self.find() {
            Find::Growing(growing) => {
                let Some(&(last, count)) = growing.members.get(&hash) else { return Ok(Vec::new()) };
                let mut rows = Vec::with_capacity(count as usize);
                let mut row = last;
                while row != NO_ROW {
                    rows.push(row);
                    row = growing.previous.get(row as usize).copied().unwrap_or(NO_ROW);
                }
                rows.reverse();
                Ok(rows)
            }
            Find::Settled(settled) => {
                let rows = self.entries(settled, hash, MEMBER)?.into_iter().map(|value| value as u32);
                Ok(rows.collect())
            }
        }
    }

    pub fn member_count(&self, hash: u64) -> Result<u32, StoreError> {
        match &*self.find() {
            Find::Growing(growing) => Ok(growing.members.get(&hash).map_or(0, |&(_, count)| count)),
            Find::Settled(settled) => Ok(self.entries(settled, hash, MEMBER)?.len() as u32),
        }
    }

    pub fn endings(&self, hash: u64) -> Result<Vec<FoundEnding>, StoreError> {
        match &*self.find() {
            Find::Growing(growing) => {
                Ok(growing.endings.get(&hash).map(|(_, ended)| FoundEnding::Known(*ended)).into_iter().collect())
            }
            Find::Settled(settled) => {
                let extent = |value: u64| FoundEnding::At(Extent { at: value as u32, length: (value >> 32) as u32 });
                Ok(self.entries(settled, hash, ENDING)?.into_iter().map(extent).collect())
            }
        }
    }

    /// First row and count of the calls with this key, newest last.
    pub fn calls(&self, hash: u64) -> Result<Vec<(u32, u32)>, StoreError> {
        match &*self.find() {
            Find::Growing(growing) => Ok(growing.keys.get(&hash).copied().into_iter().collect()),
            Find::Settled(settled) => {
                let call = |value: u64| (value as u32, (value >> 32) as u32);
                Ok(self.entries(settled, hash, KEY)?.into_iter().map(call).collect())
            }
        }
    }

    /// Whether a row with this hash can be here.
    pub fn may_have(&self, hash: u64) -> bool {
        match &*self.find() {
            Find::Growing(growing) => growing.hashes.contains(&hash),
            Find::Settled(settled) => settled.bloom.may_have(hash),
        }
    }

    fn entry(&self, settled: &Settled, number: u64) -> Result<(u64, u64), StoreError> {
        let at = settled.entries_at + number * ENTRY_BYTES as u64;
        let mut bytes = [0; ENTRY_BYTES];
        settled
            .file
            .read_exact_at(&mut bytes, at)
            .map_err(|error| self.unreadable("index", at, ENTRY_BYTES, &error))?;
        let both = u128::from_le_bytes(bytes);
        Ok((both as u64, (both >> 64) as u64))
    }

    /// Values of one kind under a hash, in order, without the kind's bits.
    fn entries(&self, settled: &Settled, hash: u64, kind: u64) -> Result<Vec<u64>, StoreError> {
        if !settled.bloom.may_have(hash) {
            return Ok(Vec::new());
        }
        let (mut low, mut high) = (0, settled.entries);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.entry(settled, middle)? < (hash, kind << 62) { low = middle + 1 } else { high = middle }
        }
        let mut values = Vec::new();
        while low < settled.entries {
            let (found, value) = self.entry(settled, low)?;
            if found != hash || value >> 62 != kind {
                break;
            }
            values.push(value & ((1 << 62) - 1));
            low += 1;
        }
        Ok(values)
    }

    /// Writes the index and lets go of what was in memory. The table and all it depends on are synced already.
    pub fn settle(&self) -> io::Result<()> {
        let undone = self.undone_count();
        let (bloom, entries) = match &*self.find() {
            Find::Growing(growing) => growing.entries(),
            Find::Settled(settled) => {
                let length = settled.entries as usize * ENTRY_BYTES;
                (settled.bloom.clone(), frame::read_at(&settled.file, settled.entries_at, length)?)
            }
        };
        let form = IndexForm {
            rows: self.row_count(),
            ends: self.ends_count.load(Ordering::Acquire),
            undone,
            facts: self.facts().clone(),
            bloom,
            entries: (entries.len() / ENTRY_BYTES) as u64,
            entries_sum: crc32fast::hash(&entries),
        };
        let mut bytes = Vec::new();
        let entries_at = frame::append(&mut bytes, Kind::Index, &[&wire::encode(&form, Vec::new())], None) as u64;
        bytes.extend_from_slice(&entries);
        let making = self.directory.join("index.new");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&making)?;
        file.write_all_at(&bytes, 0)?;
        file.sync_all()?;
        fs::rename(&making, self.directory.join("index"))?;
        sync_directory(&self.directory)?;
        let settled = Settled { bloom: form.bloom, file, entries_at, entries: form.entries, undone };
        *self.find.write().unwrap_or_else(PoisonError::into_inner) = Find::Settled(settled);
        Ok(())
    }

    /// Takes the index up again; `false`: there is none, or it is not sound, and the log has to be replayed.
    pub fn load_index(&self) -> io::Result<bool> {
        let file = match File::open(self.directory.join("index")) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let bytes = frame::read_at(&file, 0, file.metadata()?.len() as usize)?;
        let Some(Frame { kind: Kind::Index, payload, length }) = frame::parse(&bytes) else { return Ok(false) };
        let Ok(form) = wire::decode::<IndexForm>(payload) else { return Ok(false) };
        let sound = crc32fast::hash(&bytes[length..]) == form.entries_sum
            && self.table.metadata()?.len() == u64::from(form.rows) * ROW_BYTES as u64
            && self.ends.metadata()?.len() >= u64::from(form.ends) * END_BYTES as u64;
        if !sound {
            return Ok(false);
        }
        self.rows.store(form.rows, Ordering::Release);
        self.ends_count.store(form.ends, Ordering::Release);
        self.undone.store(form.undone, Ordering::Release);
        self.change_facts(|facts| *facts = form.facts);
        let settled =
            Settled { bloom: form.bloom, file, entries_at: length as u64, entries: form.entries, undone: form.undone };
        *self.find.write().unwrap_or_else(PoisonError::into_inner) = Find::Settled(settled);
        Ok(true)
    }
}

impl Growing {
    /// What an index holds of it: the filter, and the sorted entries.
    fn entries(&self) -> (Arc<Bloom>, Vec<u8>) {
        let mut entries: Vec<u128> = Vec::with_capacity(self.previous.len());
        let entry = |hash: u64, kind: u64, value: u64| u128::from(kind << 62 | value) << 64 | u128::from(hash);
        for (&hash, &(last, _)) in &self.members {
            let mut row = last;
            while row != NO_ROW {
                entries.push(entry(hash, MEMBER, u64::from(row)));
                row = self.previous.get(row as usize).copied().unwrap_or(NO_ROW);
            }
        }
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        entries.extend(self.keys.iter().map(|(&hash, &(first, count))| entry(hash, KEY, pair(first, count))));
        let endings = self.endings.iter();
        entries.extend(endings.map(|(&hash, (extent, _))| entry(hash, ENDING, pair(extent.at, extent.length))));
        entries.sort_unstable_by_key(|entry| (*entry as u64, (*entry >> 64) as u64));
        let all = self.members.len() + self.keys.len() + self.endings.len() + self.hashes.len();
        let mut bloom = Bloom::new(all);
        let hashes = self.members.keys().chain(self.keys.keys()).chain(self.endings.keys());
        hashes.chain(&self.hashes).for_each(|&hash| bloom.add(hash));
        (Arc::new(bloom), entries.into_iter().flat_map(u128::to_le_bytes).collect())
    }

    /// A row was accepted; rows come in order.
    pub fn add_row(&mut self, number: u32, row: &Row) {
        self.previous.resize(number as usize, NO_ROW);
        let mut before = NO_ROW;
        if row.execution != 0 {
            let member = self.members.entry(row.execution).or_insert((NO_ROW, 0));
            before = member.0;
            *member = (number, member.1 + 1);
        }
        self.previous.push(before);
        self.hashes.extend(row.asked().into_iter().filter(|&asked| asked != 0));
    }

    pub fn add_key(&mut self, hash: u64, first: u32, count: u32) {
        self.keys.insert(hash, (first, count));
    }

    pub fn add_ending(&mut self, hash: u64, at: Extent, ended: EndedExecution) {
        self.endings.insert(hash, (at, ended));
    }
}
