//! Finding rows of a segment without reading them all: by execution, by idempotency key, and by what a filter asks for.
//!
//! While a segment grows all of it is in memory. Once it is full it is checkpointed: [`Bloom`] stays in memory, the
//! rest is in the segment's `index` file: a frame with an [`IndexForm`], entries sorted by hash, the rows of each term,
//! which entries point at, and a frame with what each tenant has stored ([`Shares`]) and, last of all, where that
//! begins. All of it is derived from the logs: without a sound index they are replayed.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use super::bloom::Bloom;
use super::files;
use super::frame::{self, Frame, FrameKind};
use super::hashes::{ExecutionHash, TenantHash};
use super::seal::Asked;
use super::segment::sync_directory;
use super::table::{Extent, Row, first_term, term};
use super::zone_map::ZoneMap;
use crate::store::view::EndedExecution;
use crate::store::wire;

/// No row.
const NO_ROW: u32 = u32::MAX;
/// Far more than a full segment's takes.
const INDEX_BYTES_MAX: u64 = 256 << 20;
/// Entries of an index file that are read at once; the first of as many is in memory.
const STRETCH: u64 = 256;

pub enum Find {
    Growing(Growing),
    OnDisk(OnDisk),
}

#[derive(Default)]
pub struct Growing {
    /// Newest row and count of each execution's rows here.
    members: HashMap<ExecutionHash, (u32, u32)>,
    /// For each row, the one before it in its execution.
    previous: Vec<u32>,
    /// First row and count of each idempotent call.
    keys: HashMap<u64, (u32, u32)>,
    endings: HashMap<ExecutionHash, (Extent, EndedExecution)>,
    rows: Postings,
    later: RoaringBitmap,
}

pub struct OnDisk {
    bloom: Bloom,
    file: File,
    entries_at: u64,
    entries: u64,
    /// The first entry of each stretch.
    firsts: Vec<(u64, u64)>,
    bytes: u64,
    /// As [`Find::later_ones`] has them: they follow from the entries, and are few where runs are short.
    later: RoaringBitmap,
    /// Every send was done when it was written, and it holds all that can be known of them.
    complete: bool,
}

/// How the sends of a segment ended, as far as its index file does not say so. Apart from [`Find`], which is busy while
/// an index is written.
#[derive(Clone, Default)]
pub struct Ended {
    pub undone: RoaringBitmap,
    /// Those that were moved on since the index file was written, which has them among their executions' rows still.
    pub moved: RoaringBitmap,
    rows: Postings,
}

impl Ended {
    pub fn of(undone: RoaringBitmap) -> Self {
        Self { undone, ..Self::default() }
    }

    pub fn add(&mut self, number: u32, row: &Row) {
        self.undone.remove(number);
        if row.is_moved() {
            self.moved.insert(number);
        }
        self.rows.add(row.end_terms(), number);
    }

    pub fn may_have(&self, term: u64) -> bool {
        self.rows.0.contains_key(&term)
    }

    pub fn rows_with(&self, term: u64) -> RoaringBitmap {
        self.rows.0.get(&term).cloned().unwrap_or_default()
    }
}

/// The rows that have a term.
#[derive(Clone, Default)]
struct Postings(HashMap<u64, RoaringBitmap>);

impl Postings {
    fn add(&mut self, terms: impl IntoIterator<Item = u64>, number: u32) {
        for term in terms.into_iter().filter(|&term| term != 0) {
            self.0.entry(term).or_default().insert(number);
        }
    }
}

/// What an ending is known by.
pub enum FoundEnding {
    Known(EndedExecution),
    /// To be read from the log, and its names compared.
    At(Extent),
}

/// An entry of the file: `(hash, value)`, the value's top two bits saying what it is.
pub const ENTRY_BYTES: usize = 16;
/// A row of an execution, under the hash of tenant and execution, with some of its tenant's above it; and, marked so,
/// under the term of any tenant's.
const MEMBER: u64 = 0;
const ANY: u64 = 1 << 61;
/// What is there of a tenant, so that two tenants' executions of one hash are told apart. Indexes of earlier versions
/// have nothing there.
const TENANT_BITS: u64 = (1 << 29) - 1;
const KEY: u64 = 1;
const ENDING: u64 = 2;
/// Where a term's rows stand in the file, and how many bytes they take.
const ROWS: u64 = 3;

#[derive(Serialize, Deserialize)]
pub struct IndexForm {
    pub rows: u32,
    pub ends: u32,
    /// Rows that are not done.
    pub undone: RoaringBitmap,
    pub zones: ZoneMap,
    bloom: Bloom,
    entries: u64,
    entries_sum: u32,
}

impl Find {
    /// Rows of this execution here, in order.
    pub fn members(&self, execution: ExecutionHash) -> io::Result<Vec<u32>> {
        match self {
            Self::Growing(growing) => {
                let mut rows = growing.chain(growing.members.get(&execution).map_or(NO_ROW, |&(last, _)| last));
                rows.reverse();
                Ok(rows)
            }
            Self::OnDisk(checkpointed) => checkpointed.members(execution),
        }
    }

    /// Rows of any tenant's execution of this name.
    pub fn members_of_any(&self, execution: u32) -> io::Result<RoaringBitmap> {
        match self {
            Self::Growing(growing) => {
                let of_this = growing.members.iter().filter(|(member, _)| member.hash as u32 == execution);
                Ok(of_this.flat_map(|(_, &(last, _))| growing.chain(last)).collect())
            }
            Self::OnDisk(checkpointed) => {
                let rows = checkpointed.entries(term(Asked::Execution, execution), MEMBER)?;
                Ok(rows.into_iter().map(|row| row as u32).collect())
            }
        }
    }

    pub fn member_count(&self, execution: ExecutionHash) -> io::Result<u32> {
        match self {
            Self::Growing(growing) => Ok(growing.members.get(&execution).map_or(0, |&(_, count)| count)),
            Self::OnDisk(checkpointed) => Ok(checkpointed.members(execution)?.len() as u32),
        }
    }

    /// The last row of this execution here.
    pub fn last_member(&self, execution: ExecutionHash) -> io::Result<Option<u32>> {
        match self {
            Self::Growing(growing) => Ok(growing.members.get(&execution).map(|&(last, _)| last)),
            Self::OnDisk(checkpointed) => Ok(checkpointed.members(execution)?.last().copied()),
        }
    }

    pub fn endings(&self, execution: ExecutionHash) -> io::Result<Vec<FoundEnding>> {
        match self {
            Self::Growing(growing) => {
                Ok(growing.endings.get(&execution).map(|(_, ended)| FoundEnding::Known(*ended)).into_iter().collect())
            }
            Self::OnDisk(checkpointed) => {
                let extent = |value: u64| FoundEnding::At(Extent { at: value as u32, length: (value >> 32) as u32 });
                Ok(checkpointed.entries(execution.hash, ENDING)?.into_iter().map(extent).collect())
            }
        }
    }

    /// First row and count of the calls with this key, newest last.
    pub fn calls(&self, hash: u64) -> io::Result<Vec<(u32, u32)>> {
        match self {
            Self::Growing(growing) => Ok(growing.keys.get(&hash).copied().into_iter().collect()),
            Self::OnDisk(checkpointed) => {
                let call = |value: u64| (value as u32, (value >> 32) as u32);
                Ok(checkpointed.entries(hash, KEY)?.into_iter().map(call).collect())
            }
        }
    }

    /// Whether a row with this term can be here.
    pub fn may_have(&self, term: u64) -> bool {
        match self {
            Self::Growing(growing) => growing.rows.0.contains_key(&term),
            Self::OnDisk(checkpointed) => checkpointed.bloom.may_have(term),
        }
    }

    /// The rows that have this term.
    pub fn rows_with(&self, term: u64) -> io::Result<RoaringBitmap> {
        match self {
            Self::Growing(growing) => Ok(growing.rows.0.get(&term).cloned().unwrap_or_default()),
            Self::OnDisk(checkpointed) => checkpointed.rows_with(term),
        }
    }

    /// The executions and keys that a checkpointed segment knows.
    pub fn known_calls(&self) -> io::Result<Option<Vec<u64>>> {
        let Self::OnDisk(checkpointed) = self else { return Ok(None) };
        let is_call = |value: u64| value >> 62 != ROWS && (value >> 62 != MEMBER || value & ANY == 0);
        let entries = checkpointed.all_entries()?.into_iter().filter(|(_, value)| is_call(*value));
        let mut hashes: Vec<u64> = entries.map(|(hash, _)| hash).collect();
        hashes.dedup();
        Ok(Some(hashes))
    }

    /// Every idempotent call, under its hash, as [`Self::calls`] has it.
    pub fn all_calls(&self) -> io::Result<Vec<(u64, u32, u32)>> {
        match self {
            Self::Growing(growing) => {
                Ok(growing.keys.iter().map(|(&hash, &(first, count))| (hash, first, count)).collect())
            }
            Self::OnDisk(checkpointed) => {
                let entries = checkpointed.all_entries()?.into_iter().filter(|(_, value)| value >> 62 == KEY);
                let call = |(hash, value): (u64, u64)| (hash, value as u32, ((value & VALUE) >> 32) as u32);
                Ok(entries.map(call).collect())
            }
        }
    }

    /// The first rows here of executions that began elsewhere: the oldest that is left of one whose first send is gone is
    /// among them.
    pub fn later_ones(&self) -> &RoaringBitmap {
        match self {
            Self::Growing(growing) => &growing.later,
            Self::OnDisk(checkpointed) => &checkpointed.later,
        }
    }

    /// Bytes of the index file.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::OnDisk(checkpointed) => checkpointed.bytes,
            Self::Growing(_) => 0,
        }
    }

    /// Whether every send was done when the index was written, and it holds all that can be known of them.
    pub fn is_complete(&self) -> bool {
        matches!(self, Self::OnDisk(checkpointed) if checkpointed.complete)
    }

    /// The sorted entries, the filter for them, and the rows that the entries point at.
    fn parts(&self, ended: &Ended) -> io::Result<(Bloom, Vec<u8>, Vec<u8>)> {
        let entry = |hash: u64, kind: u64, value: u64| (hash, kind << 62 | value);
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let mut entries: Vec<(u64, u64)> = Vec::new();
        let mut postings = ended.rows.clone();
        match self {
            Self::Growing(growing) => {
                for (&ExecutionHash { hash, tenant }, &(last, _)) in &growing.members {
                    let any = term(Asked::Execution, hash as u32);
                    let of = (u64::from(tenant) & TENANT_BITS) << 32;
                    let rows = growing.chain(last).into_iter().filter(|&row| !ended.moved.contains(row)).map(u64::from);
                    entries.extend(rows.flat_map(|row| [entry(hash, MEMBER, of | row), entry(any, MEMBER, row | ANY)]));
                }
                let keys = growing.keys.iter();
                entries.extend(keys.map(|(&hash, &(first, count))| entry(hash, KEY, pair(first, count))));
                let endings = growing.endings.iter();
                entries
                    .extend(endings.map(|(execution, (at, _))| entry(execution.hash, ENDING, pair(at.at, at.length))));
                for (&term, rows) in &growing.rows.0 {
                    *postings.0.entry(term).or_default() |= rows;
                }
            }
            Self::OnDisk(checkpointed) => {
                for (hash, value) in checkpointed.all_entries()? {
                    if value >> 62 == ROWS {
                        *postings.0.entry(hash).or_default() |= checkpointed.rows_at(value & VALUE)?;
                    } else if value >> 62 != MEMBER || !ended.moved.contains(value as u32) {
                        entries.push((hash, value));
                    }
                }
            }
        }
        let mut rows = Vec::new();
        for (&term, posting) in &postings.0 {
            let at = rows.len();
            let sum = rows.len() + 4;
            rows.extend_from_slice(&[0; 4]);
            posting.serialize_into(&mut rows)?;
            let sum = crc32fast::hash(&rows[sum..]);
            rows[at..at + 4].copy_from_slice(&sum.to_le_bytes());
            entries.push(entry(term, ROWS, pair(at as u32, (rows.len() - at) as u32)));
        }
        entries.sort_unstable();
        let mut hashes: Vec<u64> = entries.iter().map(|(hash, _)| *hash).collect();
        hashes.dedup();
        let mut bloom = Bloom::new(hashes.len());
        hashes.into_iter().for_each(|hash| bloom.add(hash));
        let bytes = entries.into_iter().flat_map(|(hash, value)| {
            let mut bytes = [0; ENTRY_BYTES];
            bytes[..8].copy_from_slice(&hash.to_le_bytes());
            bytes[8..].copy_from_slice(&value.to_le_bytes());
            bytes
        });
        Ok((bloom, bytes.collect(), rows))
    }

    /// Writes all of it to a segment's directory, durably.
    pub fn checkpoint(
        &self,
        directory: &Path,
        (rows, ends): (u32, u32),
        zones: ZoneMap,
        ended: &Ended,
        shares: &Shares,
    ) -> io::Result<OnDisk> {
        let (bloom, entries, postings) = self.parts(ended)?;
        let form = IndexForm {
            rows,
            ends,
            undone: ended.undone.clone(),
            zones,
            bloom,
            entries: (entries.len() / ENTRY_BYTES) as u64,
            entries_sum: crc32fast::hash(&entries),
        };
        let mut bytes = Vec::new();
        let entries_at = frame::append(&mut bytes, FrameKind::Index, &[&wire::encode(&form, Vec::new())], None) as u64;
        bytes.extend_from_slice(&entries);
        bytes.extend_from_slice(&postings);
        let at = bytes.len() as u64;
        frame::append(&mut bytes, FrameKind::Shares, &[&wire::encode(shares, Vec::new())], None);
        bytes.extend_from_slice(&at.to_le_bytes());
        let making = directory.join("index.new");
        let file = files::make(&making)?;
        file.write_all_at(&bytes, 0)?;
        file.sync_all()?;
        fs::rename(&making, directory.join("index"))?;
        sync_directory(directory)?;
        OnDisk::of(&form, file, entries_at, &entries, bytes.len() as u64)
    }
}

/// What is left of a value without its kind.
const VALUE: u64 = (1 << 62) - 1;

fn pair_of(bytes: &[u8]) -> (u64, u64) {
    let number = |at: usize| {
        let mut number = [0; 8];
        number.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(number)
    };
    (number(0), number(8))
}

impl OnDisk {
    fn of(form: &IndexForm, file: File, entries_at: u64, entries: &[u8], bytes: u64) -> io::Result<Self> {
        let complete = form.undone.is_empty() && shares(&file, bytes)?.is_some();
        let firsts = entries.chunks(ENTRY_BYTES * STRETCH as usize).map(pair_of).collect();
        // Sorted by hash and tenant, so the first of each is its first row.
        let members = entries.chunks_exact(ENTRY_BYTES).map(pair_of);
        let members = members.filter(|(_, value)| value >> 62 == MEMBER && value & ANY == 0);
        let mut before = None;
        let first_ones =
            members.filter(|&(hash, value)| before.replace((hash, value >> 32)) != Some((hash, value >> 32)));
        let first_ones: RoaringBitmap = first_ones.map(|(_, value)| value as u32).collect();
        let bloom = form.bloom.clone();
        let later = RoaringBitmap::new();
        let mut this = Self { bloom, file, entries_at, entries: form.entries, firsts, bytes, later, complete };
        // More than there are do no harm.
        this.later = first_ones - this.rows_with(first_term()).unwrap_or_default();
        Ok(this)
    }

    /// Takes the index in this directory up again; `None`: there is none, or it is not sound.
    pub fn load(directory: &Path) -> io::Result<Option<(Self, IndexForm)>> {
        let file = match File::open(directory.join("index")) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let bytes = file.metadata()?.len();
        if bytes > INDEX_BYTES_MAX {
            return Ok(None);
        }
        let Some(length) = frame::length_at(&file, 0)?.filter(|length| *length as u64 <= bytes) else {
            return Ok(None);
        };
        let head = frame::read_at(&file, 0, length)?;
        let Some(Frame { kind: FrameKind::Index, payload, .. }) = frame::parse(&head) else { return Ok(None) };
        let Ok(form) = wire::decode::<IndexForm>(payload) else { return Ok(None) };
        let entries_at = length as u64;
        let entries_bytes = form.entries.saturating_mul(ENTRY_BYTES as u64);
        if entries_at.saturating_add(entries_bytes) > bytes {
            return Ok(None);
        }
        let entries = frame::read_at(&file, entries_at, entries_bytes as usize)?;
        if crc32fast::hash(&entries) != form.entries_sum {
            return Ok(None);
        }
        let rows_end = entries.chunks_exact(ENTRY_BYTES).map(pair_of).filter(|(_, value)| value >> 62 == ROWS);
        let rows_end = rows_end.map(|(_, value)| (value & u64::from(u32::MAX)) + ((value & VALUE) >> 32)).max();
        if entries_at + entries_bytes + rows_end.unwrap_or(0) > bytes {
            return Ok(None);
        }
        Ok(Some((Self::of(&form, file, entries_at, &entries, bytes)?, form)))
    }

    fn read(&self, from: u64, to: u64) -> io::Result<Vec<u8>> {
        let at = self.entries_at + from * ENTRY_BYTES as u64;
        frame::read_at(&self.file, at, (to - from) as usize * ENTRY_BYTES)
    }

    fn all_entries(&self) -> io::Result<Vec<(u64, u64)>> {
        Ok(self.read(0, self.entries)?.chunks_exact(ENTRY_BYTES).map(pair_of).collect())
    }

    /// Values of one kind under a hash, in order, without the kind's bits.
    fn entries(&self, hash: u64, kind: u64) -> io::Result<Vec<u64>> {
        let mut values = Vec::new();
        if !self.bloom.may_have(hash) {
            return Ok(values);
        }
        let wanted = (hash, kind << 62);
        let stretch = self.firsts.partition_point(|first| *first < wanted).saturating_sub(1);
        let mut at = stretch as u64 * STRETCH;
        while at < self.entries {
            let to = self.entries.min(at + STRETCH);
            let entries = self.read(at, to)?;
            for entry in entries.chunks_exact(ENTRY_BYTES).map(pair_of).skip_while(|entry| *entry < wanted) {
                let (found, value) = entry;
                if found != hash || value >> 62 != kind {
                    return Ok(values);
                }
                values.push(value & VALUE);
            }
            at = to;
        }
        Ok(values)
    }

    fn members(&self, execution: ExecutionHash) -> io::Result<Vec<u32>> {
        let of = u64::from(execution.tenant) & TENANT_BITS;
        let entries = self.entries(execution.hash, MEMBER)?.into_iter();
        let mut rows: Vec<(u64, u32)> = entries.map(|value| (value >> 32 & TENANT_BITS, value as u32)).collect();
        rows.retain(|(tenant, _)| *tenant == of || *tenant == 0);
        if rows.iter().any(|(tenant, _)| *tenant == 0) {
            let of_tenant = self.rows_with(term(Asked::Tenant, execution.tenant))?;
            rows.retain(|(_, row)| of_tenant.contains(*row));
        }
        Ok(rows.into_iter().map(|(_, row)| row).collect())
    }

    /// The rows that have this term.
    fn rows_with(&self, term: u64) -> io::Result<RoaringBitmap> {
        let mut rows = RoaringBitmap::new();
        for value in self.entries(term, ROWS)? {
            rows |= self.rows_at(value)?;
        }
        Ok(rows)
    }

    /// `None`: it is from before there were any, or they are damaged.
    pub fn shares(&self) -> io::Result<Option<Shares>> {
        shares(&self.file, self.bytes)
    }

    /// The rows that an entry of the kind [`ROWS`] points at.
    fn rows_at(&self, value: u64) -> io::Result<RoaringBitmap> {
        let (at, length) = (value & u64::from(u32::MAX), (value >> 32) as usize);
        let at = self.entries_at + self.entries * ENTRY_BYTES as u64 + at;
        let bytes = frame::read_at(&self.file, at, length)?;
        match bytes.split_first_chunk() {
            Some((sum, rows)) if u32::from_le_bytes(*sum) == crc32fast::hash(rows) => {
                RoaringBitmap::deserialize_from(rows)
            }
            _ => Err(io::Error::other(format!("bytes {at} to {} fail their checksum", at + length as u64))),
        }
    }
}

/// What each tenant has stored in a segment: bytes of records, and of bodies. Of an index of an earlier
/// version [`TenantHash::of_earlier`] knows what it means.
pub type Shares = Vec<(TenantHash, u64, u64)>;

/// In the frame that the end of an index names.
fn shares(file: &File, bytes: u64) -> io::Result<Option<Shares>> {
    let Some(end) = bytes.checked_sub(8) else { return Ok(None) };
    let mut at = [0; 8];
    file.read_exact_at(&mut at, end)?;
    let at = u64::from_le_bytes(at);
    if at >= end {
        return Ok(None);
    }
    let Some(length) = frame::length_at(file, at)?.filter(|&length| at + length as u64 == end) else { return Ok(None) };
    let bytes = frame::read_at(file, at, length)?;
    Ok(match frame::parse(&bytes) {
        Some(Frame { kind: FrameKind::Shares, payload, .. }) => wire::decode(payload).ok(),
        _ => None,
    })
}

impl Growing {
    /// A row and those before it in its execution, newest first.
    fn chain(&self, last: u32) -> Vec<u32> {
        let mut rows = Vec::new();
        let mut row = last;
        while row != NO_ROW {
            rows.push(row);
            row = self.previous.get(row as usize).copied().unwrap_or(NO_ROW);
        }
        rows
    }

    /// A row was accepted; rows come in order.
    pub fn add_row(&mut self, number: u32, row: &Row) {
        self.previous.resize(number as usize, NO_ROW);
        let mut before = NO_ROW;
        if let Some(execution) = row.execution() {
            let member = self.members.entry(execution).or_insert((NO_ROW, 0));
            before = member.0;
            *member = (number, member.1 + 1);
            if before == NO_ROW && !row.is_first() {
                self.later.insert(number);
            }
        }
        self.previous.push(before);
        self.rows.add(row.terms(), number);
    }

    pub fn add_key(&mut self, hash: u64, first: u32, count: u32) {
        self.keys.insert(hash, (first, count));
    }

    pub fn add_ending(&mut self, execution: ExecutionHash, at: Extent, ended: EndedExecution) {
        self.endings.insert(execution, (at, ended));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The index of this directory without what earlier versions did not write.
    fn of_an_earlier_version(directory: &Path) -> OnDisk {
        let (index, mut form) = OnDisk::load(directory).expect("readable").expect("sound");
        let bytes = fs::read(directory.join("index")).expect("readable");
        let of_no_tenant = |(hash, value): (u64, u64)| match value >> 62 {
            MEMBER if value & ANY == 0 => (hash, u64::from(value as u32)),
            _ => (hash, value),
        };
        let mut entries: Vec<_> = index.all_entries().expect("readable").into_iter().map(of_no_tenant).collect();
        entries.sort_unstable();
        let entries: Vec<u8> =
            entries.iter().flat_map(|(hash, value)| [hash.to_le_bytes(), value.to_le_bytes()].concat()).collect();
        form.entries_sum = crc32fast::hash(&entries);
        let mut earlier = Vec::new();
        frame::append(&mut earlier, FrameKind::Index, &[&wire::encode(&form, Vec::new())], None);
        earlier.extend_from_slice(&entries);
        earlier.extend_from_slice(&bytes[index.entries_at as usize + entries.len()..]);
        // As another file: the one that was read is open still.
        fs::remove_file(directory.join("index")).expect("there");
        fs::write(directory.join("index"), earlier).expect("written");
        OnDisk::load(directory).expect("readable").expect("sound").0
    }

    #[test]
    fn an_index_finds_all_that_it_was_made_of_however_unevenly_it_is_spread() {
        // Executions of one to three sends, and a crowd of one hash, of several tenants, which fills many stretches. Keys
        // are of both, and of hashes at either end.
        let hash = |number: u64| number.wrapping_mul(0xd6e8_feb8_6659_fd93) | 1;
        let crowd = 0x7000_0000_0000_0001;
        let mut growing = Growing::default();
        let mut members: HashMap<ExecutionHash, Vec<u32>> = HashMap::new();
        for number in 0..12_000_u32 {
            let execution = if number % 3 == 0 { crowd } else { hash(u64::from(number / 5)) };
            let row = Row { execution, tenant: 1 + number % 7, ..Row::default() };
            growing.add_row(number, &row);
            members.entry(row.execution().expect("of one")).or_default().push(number);
        }
        let keys: Vec<u64> = (20_000..22_000).map(hash).chain([1, 2, u64::MAX, crowd]).collect();
        keys.iter().zip(0..).for_each(|(&hash, first)| growing.add_key(hash, first, 2));
        let directory = tempfile::tempdir().expect("a directory");
        let growing = Find::Growing(growing);
        let all_shares = vec![(TenantHash::of(3, 4), 5, 7)];
        let checkpointed =
            growing.checkpoint(directory.path(), (12_000, 0), ZoneMap::default(), &Ended::default(), &all_shares);
        let checkpointed = Find::OnDisk(checkpointed.expect("written"));
        let (loaded, form) = OnDisk::load(directory.path()).expect("readable").expect("sound");
        assert_eq!((form.rows, form.undone.len()), (12_000, 0));
        assert_eq!(loaded.shares().expect("read"), Some(all_shares));
        let earlier = of_an_earlier_version(directory.path());
        for find in [&growing, &checkpointed, &Find::OnDisk(loaded), &Find::OnDisk(earlier)] {
            for (&execution, rows) in &members {
                assert_eq!(&find.members(execution).expect("read"), rows);
                assert_eq!(find.member_count(execution).expect("read") as usize, rows.len());
                assert!(find.members_of_any(execution.hash as u32).expect("read").contains(rows[0]));
            }
            for (&hash, first) in keys.iter().zip(0..) {
                assert_eq!(find.calls(hash).expect("read"), [(first, 2)]);
            }
            for number in 30_000..33_000 {
                let nobodys = ExecutionHash { hash: hash(number), tenant: 1 };
                assert!(find.members(nobodys).expect("read").is_empty());
                assert!(find.calls(hash(number)).expect("read").is_empty());
            }
            for tenant in 0..8 {
                let with = find.rows_with(term(Asked::Tenant, tenant)).expect("read");
                let rows = (0..12_000).filter(|number| tenant != 0 && 1 + number % 7 == tenant);
                assert!(with.iter().eq(rows), "tenant {tenant}");
            }
        }
    }
}
