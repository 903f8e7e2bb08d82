//! Tunnels of the forward proxy, in a log of their own beside the segments: nothing of a send's waits for it.
//!
//! ```text
//! <path>/tunnels/<n>          pieces of the log, the newest last: a frame when a tunnel is opened, one when it ended
//! <path>/tunnels/<n>.about    of a piece that is full: from when to when, and how much of it is whose
//! ```
//!
//! Each frame holds the whole tunnel, so a piece can be read by itself. The newest piece begins with those that were open
//! when it was made: it alone is read at a start. A list shows those that are open from memory, then the ends, the newest
//! first, and passes over pieces of another time. The oldest pieces go whole, by age and by size.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::frame::{self, Frame, FrameKind, Scanned, Scanner};
use super::{cannot_write, files, locked};
use crate::config::StoreSettings;
use crate::limits::LIST_LOOKED_AT_MAX;
use crate::record::Tunnel;
use crate::send::TenantId;
use crate::store::{StoreError, TunnelFilter, TunnelPage, wire};

/// When the newest piece makes room for another.
const PIECE_BYTES: u64 = 8 << 20;
/// Of `[store] max_bytes`, one in so many is what tunnels may have beside it.
const ONE_IN: u64 = 10;
/// Of that, one in so many is one tenant's.
const OF_TENANT_ONE_IN: u64 = 4;

pub struct Log {
    directory: PathBuf,
    retention: Duration,
    bytes_max: u64,
    piece_bytes: u64,
    inner: Mutex<Inner>,
    /// Bytes by tenant, under a lock that nobody holds while the disk is at work.
    shares: Mutex<HashMap<String, u64>>,
}

struct Inner {
    /// Those that are full, oldest first.
    full: Vec<Arc<Piece>>,
    newest: Piece,
    file: Arc<File>,
    open: BTreeMap<u128, Arc<Tunnel>>,
    /// Bytes by tenant, of all pieces.
    shares: HashMap<String, u64>,
}

/// What is known of a piece without reading it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Piece {
    number: u32,
    bytes: u64,
    /// When the first of its tunnels began, and the last one ended or began; nanoseconds.
    from: i64,
    to: i64,
    /// Bytes by tenant.
    of: HashMap<String, u64>,
}

impl Piece {
    fn new(number: u32) -> Self {
        Self { number, from: i64::MAX, to: i64::MIN, ..Self::default() }
    }

    fn add(&mut self, tunnel: &Tunnel, bytes: usize) {
        let begun = wire::nanoseconds(tunnel.begun_at);
        let at = tunnel.ended.as_ref().map_or(begun, |ended| wire::nanoseconds(ended.at));
        (self.from, self.to) = (self.from.min(begun), self.to.max(at));
        self.bytes += bytes as u64;
        *self.of.entry(tunnel.tenant.as_str().to_owned()).or_default() += bytes as u64;
    }
}

/// Where a list goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Among those that are open: before this one.
    Open(Option<u128>),
    /// Before the end of this number in this piece.
    Ends(u32, usize),
}

impl Place {
    fn read(cursor: &str) -> Option<Self> {
        match cursor.split_at_checked(1)? {
            ("o", id) => u128::from_str_radix(id, 16).ok().map(|id| Self::Open(Some(id))),
            ("e", rest) => {
                let (piece, at) = rest.split_once('.')?;
                Some(Self::Ends(piece.parse().ok()?, at.parse().ok()?))
            }
            _ => None,
        }
    }

    fn text(self) -> String {
        match self {
            Self::Open(id) => format!("o{:x}", id.unwrap_or(u128::MAX)),
            Self::Ends(piece, at) => format!("e{piece}.{at}"),
        }
    }
}

fn kind_of(tunnel: &Tunnel) -> FrameKind {
    if tunnel.ended.is_some() { FrameKind::TunnelEnd } else { FrameKind::TunnelOpen }
}

impl Log {
    pub fn open(root: &Path, settings: &StoreSettings) -> Result<Self, StoreError> {
        Self::open_with(root, settings.retention, settings.max_bytes / ONE_IN, PIECE_BYTES)
    }

    fn open_with(root: &Path, retention: Duration, bytes_max: u64, piece_bytes: u64) -> Result<Self, StoreError> {
        let directory = root.join("tunnels");
        let failed = |error| cannot_write(&directory, error);
        files::make_directory(&directory).map_err(failed)?;
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            numbers.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
        }
        numbers.sort_unstable();
        let mut open = BTreeMap::new();
        let (mut full, mut newest) = (Vec::new(), Piece::new(1));
        let last = numbers.last().copied();
        for number in numbers {
            let path = path_of(&directory, number);
            if Some(number) == last {
                (newest, open) = scan(&path, number).map_err(failed)?;
            } else {
                let about = about(&directory, number).map_or_else(|| scan(&path, number).map(|(piece, _)| piece), Ok);
                full.push(Arc::new(about.map_err(failed)?));
            }
        }
        let file = files::open(&path_of(&directory, newest.number), true).map_err(failed)?;
        // Behind what is whole: what a crash has torn is written over.
        file.set_len(newest.bytes).map_err(failed)?;
        sync_directory(&directory).map_err(failed)?;
        let mut inner = Inner { full, newest, file: Arc::new(file), open, shares: HashMap::new() };
        inner.add_up();
        let shares = Mutex::new(inner.shares.clone());
        Ok(Self { directory, retention, bytes_max, piece_bytes, inner: Mutex::new(inner), shares })
    }

    /// Durable when this returns.
    pub fn note(&self, tunnels: &[Arc<Tunnel>]) -> Result<(), StoreError> {
        let mut inner = locked(&self.inner);
        inner.append(tunnels).map_err(|error| cannot_write(&self.directory, error))?;
        if inner.newest.bytes >= self.piece_bytes {
            self.begin_another(&mut inner).map_err(|error| cannot_write(&self.directory, error))?;
        }
        self.drop_old(&mut inner, None);
        (*locked(&self.shares)).clone_from(&inner.shares);
        Ok(())
    }

    /// The newest piece is full.
    fn begin_another(&self, inner: &mut Inner) -> io::Result<()> {
        let about = postcard::to_stdvec(&inner.newest).map_err(io::Error::other)?;
        let mut framed = Vec::new();
        frame::append(&mut framed, FrameKind::Tunnels, &[&about], None);
        let path = about_path(&self.directory, inner.newest.number);
        let file = files::make(&path)?;
        file.write_all_at(&framed, 0)?;
        file.sync_all()?;
        let number = inner.newest.number + 1;
        let file = files::make(&path_of(&self.directory, number))?;
        let before = std::mem::replace(&mut inner.newest, Piece::new(number));
        let file_before = std::mem::replace(&mut inner.file, Arc::new(file));
        let open: Vec<_> = inner.open.values().cloned().collect();
        let begun = inner.append(&open).and_then(|()| sync_directory(&self.directory));
        if let Err(error) = begun {
            // As if it had not been tried.
            (inner.newest, inner.file) = (before, file_before);
            let _ = fs::remove_file(path_of(&self.directory, number));
            inner.add_up();
            return Err(error);
        }
        inner.full.push(Arc::new(before));
        Ok(())
    }

    /// `now`: by age, too.
    fn drop_old(&self, inner: &mut Inner, now: Option<Timestamp>) {
        let oldest = now.map(|now| {
            let retention = i64::try_from(self.retention.as_nanos()).unwrap_or(i64::MAX);
            wire::nanoseconds(now).saturating_sub(retention)
        });
        let mut bytes = inner.bytes();
        while let Some(first) = inner.full.first() {
            if bytes <= self.bytes_max && oldest.is_none_or(|oldest| first.to >= oldest) {
                return;
            }
            bytes -= first.bytes;
            let gone = inner.full.remove(0);
            for (tenant, bytes) in &gone.of {
                let left = inner.shares.get(tenant).copied().unwrap_or(0).saturating_sub(*bytes);
                match left {
                    0 => drop(inner.shares.remove(tenant)),
                    left => drop(inner.shares.insert(tenant.clone(), left)),
                }
            }
            for path in [path_of(&self.directory, gone.number), about_path(&self.directory, gone.number)] {
                if let Err(error) = fs::remove_file(&path)
                    && error.kind() != io::ErrorKind::NotFound
                {
                    tracing::warn!(path = %path.display(), %error, "records of tunnels could not be removed yet");
                }
            }
        }
    }

    pub fn retain(&self, now: Timestamp) {
        let mut inner = locked(&self.inner);
        self.drop_old(&mut inner, Some(now));
        (*locked(&self.shares)).clone_from(&inner.shares);
    }

    pub fn end_left_open(&self, now: Timestamp) -> Result<u64, StoreError> {
        let left: Vec<_> = locked(&self.inner).open.values().map(|tunnel| Arc::new(tunnel.interrupted(now))).collect();
        self.note(&left)?;
        Ok(left.len() as u64)
    }

    pub fn is_full_of(&self, tenant: &TenantId) -> bool {
        let bytes = locked(&self.shares).get(tenant.as_str()).copied().unwrap_or(0);
        bytes >= self.bytes_max / OF_TENANT_ONE_IN
    }

    pub fn list(&self, filter: &TunnelFilter, cursor: Option<&str>, limit: usize) -> Result<TunnelPage, StoreError> {
        let place = match cursor {
            None => Place::Open(None),
            Some(cursor) => Place::read(cursor).ok_or(StoreError::BadCursor)?,
        };
        let (open, mut pieces) = {
            let inner = locked(&self.inner);
            let before = match place {
                Place::Open(before) => before.unwrap_or(u128::MAX),
                Place::Ends(..) => 0,
            };
            let open: Vec<_> = inner.open.range(..before).rev().map(|(_, tunnel)| tunnel.clone()).collect();
            let newest = Arc::new(inner.newest.clone());
            (open, inner.full.iter().cloned().chain([newest]).collect::<Vec<_>>())
        };
        let mut page = TunnelPage::default();
        for tunnel in open.iter().filter(|tunnel| filter.takes_in(tunnel)) {
            if page.tunnels.len() == limit {
                let last = page.tunnels.last().map(|last| last.id.as_u128());
                page.next = Some(Place::Open(last).text());
                return Ok(page);
            }
            page.tunnels.push(Tunnel::clone(tunnel));
        }
        let (last, mut before) = match place {
            Place::Open(_) => (u32::MAX, usize::MAX),
            Place::Ends(piece, before) => (piece, before),
        };
        pieces.retain(|piece| piece.number <= last);
        let mut looked_at = 0;
        while let Some(piece) = pieces.pop() {
            if piece.number != last {
                before = usize::MAX;
            }
            let since = filter.since.map_or(i64::MIN, wire::nanoseconds);
            let until = filter.until.map_or(i64::MAX, wire::nanoseconds);
            if piece.to < since || piece.from >= until {
                continue;
            }
            let ends = match ends_of(&path_of(&self.directory, piece.number), piece.bytes) {
                Ok(ends) => ends,
                // It was dropped meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    let path = path_of(&self.directory, piece.number);
                    return Err(StoreError::CannotRead(format!("{}: {error}", path.display()).into()));
                }
            };
            for (at, bytes) in ends.iter().enumerate().take(before).rev() {
                if page.tunnels.len() == limit || looked_at == LIST_LOOKED_AT_MAX {
                    page.next = Some(Place::Ends(piece.number, at + 1).text());
                    return Ok(page);
                }
                looked_at += 1;
                match wire::read_tunnel(bytes) {
                    Ok(tunnel) if filter.takes_in(&tunnel) => page.tunnels.push(tunnel),
                    Ok(_) => {}
                    Err(wire::Unreadable(why)) => {
                        tracing::warn!(piece = piece.number, why, "a record of a tunnel cannot be read");
                    }
                }
            }
        }
        Ok(page)
    }
}

impl Inner {
    fn bytes(&self) -> u64 {
        self.full.iter().map(|piece| piece.bytes).sum::<u64>() + self.newest.bytes
    }

    /// What is whose, from what is known of each piece.
    fn add_up(&mut self) {
        self.shares.clear();
        for (tenant, bytes) in self.full.iter().flat_map(|piece| &piece.of).chain(&self.newest.of) {
            *self.shares.entry(tenant.clone()).or_default() += bytes;
        }
    }

    fn append(&mut self, tunnels: &[Arc<Tunnel>]) -> io::Result<()> {
        if tunnels.is_empty() {
            return Ok(());
        }
        let (mut bytes, mut newest, mut lengths) = (Vec::new(), self.newest.clone(), Vec::new());
        for tunnel in tunnels {
            let length = frame::append(&mut bytes, kind_of(tunnel), &[&wire::tunnel(tunnel)], None);
            newest.add(tunnel, length);
            lengths.push(length as u64);
        }
        // Where it fails the next one is written over it.
        self.file.write_all_at(&bytes, self.newest.bytes)?;
        self.file.sync_data()?;
        self.newest = newest;
        for (tunnel, length) in tunnels.iter().zip(lengths) {
            *self.shares.entry(tunnel.tenant.as_str().to_owned()).or_default() += length;
            match tunnel.ended {
                Some(_) => drop(self.open.remove(&tunnel.id.as_u128())),
                None => drop(self.open.insert(tunnel.id.as_u128(), tunnel.clone())),
            }
        }
        Ok(())
    }
}

fn path_of(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("{number:08}"))
}

fn about_path(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("{number:08}.about"))
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// What was written of a full piece; `None`: it has to be read.
fn about(directory: &Path, number: u32) -> Option<Piece> {
    let bytes = fs::read(about_path(directory, number)).ok()?;
    let Frame { kind: FrameKind::Tunnels, payload, .. } = frame::parse(&bytes)? else { return None };
    postcard::from_bytes(payload).ok().filter(|piece: &Piece| piece.number == number)
}

/// Each sound frame of a piece, as far as it goes.
fn walk(path: &Path, bytes: u64, mut each: impl FnMut(Frame<'_>)) -> io::Result<u64> {
    let file = File::open(path)?;
    let mut scanner = Scanner::new(&file, 0, bytes)?;
    loop {
        match scanner.next()? {
            Scanned::Frame { frame, .. } => each(frame),
            Scanned::Damage { from, to } => {
                tracing::error!(path = %path.display(), from, to, "records of tunnels are damaged");
            }
            Scanned::End { at } => return Ok(at),
        }
    }
}

fn scan(path: &Path, number: u32) -> io::Result<(Piece, BTreeMap<u128, Arc<Tunnel>>)> {
    let (mut piece, mut open) = (Piece::new(number), BTreeMap::new());
    let end = walk(path, u64::MAX, |frame| {
        let Ok(tunnel) = wire::read_tunnel(frame.payload) else { return };
        piece.add(&tunnel, frame.length);
        match tunnel.ended {
            Some(_) => drop(open.remove(&tunnel.id.as_u128())),
            None => drop(open.insert(tunnel.id.as_u128(), Arc::new(tunnel))),
        }
    })?;
    piece.bytes = end;
    Ok((piece, open))
}

fn ends_of(path: &Path, bytes: u64) -> io::Result<Vec<Vec<u8>>> {
    let mut ends = Vec::new();
    walk(path, bytes, |frame| {
        if frame.kind == FrameKind::TunnelEnd {
            ends.push(frame.payload.to_vec());
        }
    })?;
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Reach;
    use crate::store::conformance::tunnels::{ended, opened};

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn hosts(page: &TunnelPage) -> Vec<&str> {
        page.tunnels.iter().map(|tunnel| tunnel.host.as_str()).collect()
    }

    fn all(log: &Log) -> Vec<String> {
        let (mut found, mut cursor) = (Vec::new(), None);
        loop {
            let page = log.list(&TunnelFilter::of(Reach::All), cursor.as_deref(), 3).unwrap();
            found.extend(page.tunnels.iter().map(|tunnel| tunnel.host.clone()));
            match page.next {
                None => return found,
                next => cursor = next,
            }
        }
    }

    #[test]
    fn pieces_follow_each_other_and_what_is_open_is_known_after_a_death() {
        let root = tempfile::tempdir().unwrap();
        let log = Log::open_with(root.path(), DAY, 1 << 20, 1_000).unwrap();
        let long = opened("acme", "long.example.com", 1);
        log.note(std::slice::from_ref(&long)).unwrap();
        for number in 2..40 {
            let tunnel = opened("acme", &format!("{number}.example.com"), number);
            log.note(std::slice::from_ref(&tunnel)).unwrap();
            log.note(&[ended(&tunnel, number + 1)]).unwrap();
        }
        assert!(locked(&log.inner).full.len() > 3);
        let found = all(&log);
        assert_eq!((found.len(), found[0].as_str(), found[1].as_str()), (39, "long.example.com", "39.example.com"));
        drop(log);
        // Half a frame at its end, and what is known of a full piece gone.
        let newest = fs::read_dir(root.path().join("tunnels")).unwrap().map(|entry| entry.unwrap().path());
        let newest = newest.filter(|path| path.extension().is_none()).max().unwrap();
        let torn = [fs::read(&newest).unwrap(), vec![0xe6, b'g', b'r']].concat();
        fs::write(&newest, torn).unwrap();
        fs::remove_file(about_path(&root.path().join("tunnels"), 1)).unwrap();
        let log = Log::open_with(root.path(), DAY, 1 << 20, 1_000).unwrap();
        assert_eq!(all(&log), found);
        assert_eq!(log.end_left_open(ended(&long, 100).ended.clone().unwrap().at).unwrap(), 1);
        assert_eq!(log.end_left_open(Timestamp::MAX).unwrap(), 0);
        let page = log.list(&TunnelFilter::of(Reach::All), None, 1).unwrap();
        let interrupted = page.tunnels[0].ended.as_ref().unwrap();
        assert_eq!(hosts(&page), ["long.example.com"]);
        assert_eq!(interrupted.code, Some(crate::outcome::Code::Interrupted));
        assert_eq!(all(&log).len(), 39, "each once");
    }

    #[test]
    fn the_oldest_go_by_age_and_by_size_and_no_tenant_has_more_than_its_share() {
        let root = tempfile::tempdir().unwrap();
        let log = Log::open_with(root.path(), DAY, 8_000, 1_000).unwrap();
        let (acme, other) = (TenantId::new("acme"), TenantId::new("other"));
        assert!(!log.is_full_of(&acme));
        for number in 1..200 {
            log.note(&[ended(&opened("acme", &format!("{number}.example.com"), number), number + 1)]).unwrap();
        }
        assert!(log.is_full_of(&acme) && !log.is_full_of(&other));
        let inner_bytes = locked(&log.inner).bytes();
        assert!(inner_bytes <= 9_200, "{inner_bytes}");
        assert_eq!(all(&log)[0], "199.example.com");
        let last = ended(&opened("acme", "x", 199), 200).ended.clone().unwrap().at;
        log.retain(last.saturating_add(2 * DAY).unwrap());
        // The newest piece stays, whatever its age.
        assert!(locked(&log.inner).full.is_empty() && !log.is_full_of(&acme));
        let left = fs::read_dir(root.path().join("tunnels")).unwrap().count();
        assert_eq!(left, 1);
    }
}
