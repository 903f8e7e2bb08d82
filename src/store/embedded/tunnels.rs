//! Tunnels of the forward proxy, in a log of their own beside the segments: nothing of a send's waits for it.
//!
//! ```text
//! <path>/tunnels/<n>          pieces of the log, the newest last: a frame when a tunnel is opened, one when it ended
//! <path>/tunnels/<n>.about    of a piece that is full: from when to when, and how much of it is whose
//! ```
//!
//! Each frame holds the whole tunnel, so a piece can be read by itself. The newest piece begins with those that were open
//! when it was made: it alone is read at a start. A list shows those that are open from memory, then the ends, the newest
//! first, and passes over pieces of another time.
//!
//! The oldest pieces go whole: past their retention, and before anything is written for which there would be no room. A
//! piece is so much of that room, or of the retention, that what goes with it is little; what it holds past its retention
//! is no longer shown. A tenant's share is of what has ended, and of those that are open with what their ends will take.
//! What is open moves along into each new piece, and is nobody's but the room's there.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
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
use crate::store::{NoRoom, StoreError, TunnelFilter, TunnelPage, wire};

/// The largest piece.
const PIECE_BYTES: u64 = 8 << 20;
/// Of the room, and of the retention, one in so many is a piece's.
const PIECE_ONE_IN: u8 = 16;
/// Of `[store] max_bytes`, one in so many is what tunnels may have beside it.
const ONE_IN: u64 = 10;
/// Of that, one in so many is one tenant's, and those that are open may take no more together.
const SHARE_ONE_IN: u64 = 4;

pub struct Log {
    directory: PathBuf,
    retention: Duration,
    bytes_max: u64,
    piece_bytes: u64,
    inner: Mutex<Inner>,
    /// What is asked before each tunnel, under a lock that nobody holds while the disk is at work.
    shares: Mutex<Shares>,
    /// What ended before is past its retention; nanoseconds.
    kept_from: AtomicI64,
}

/// Bytes by tenant: of what has ended, and of what is open; and all that is open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Shares {
    of: HashMap<String, u64>,
    open: u64,
}

struct Inner {
    /// Those that are full, oldest first.
    full: Vec<Arc<Piece>>,
    newest: Piece,
    file: Arc<File>,
    open: BTreeMap<u128, Open>,
}

/// One that is open, and how long its frame is.
#[derive(Clone)]
struct Open {
    tunnel: Arc<Tunnel>,
    bytes: u64,
}

/// What is known of a piece without reading it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Piece {
    number: u32,
    bytes: u64,
    /// When the first of its tunnels began, and the last one ended or began; nanoseconds.
    from: i64,
    to: i64,
    /// Bytes of ends by tenant.
    of: HashMap<String, u64>,
    /// When the first of them ended.
    ended_from: i64,
}

impl Piece {
    fn new(number: u32) -> Self {
        Self { number, from: i64::MAX, to: i64::MIN, ended_from: i64::MAX, ..Self::default() }
    }

    /// Bytes of ends: what would go with it.
    fn ends(&self) -> u64 {
        self.of.values().sum()
    }

    fn add(&mut self, tunnel: &Tunnel, bytes: u64) {
        let begun = wire::nanoseconds(tunnel.begun_at);
        (self.from, self.to) = (self.from.min(begun), self.to.max(begun));
        self.bytes += bytes;
        if let Some(ended) = &tunnel.ended {
            let at = wire::nanoseconds(ended.at);
            (self.to, self.ended_from) = (self.to.max(at), self.ended_from.min(at));
            *self.of.entry(tunnel.tenant.as_str().to_owned()).or_default() += bytes;
        }
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
        Self::open_with(root, settings.retention, settings.max_bytes / ONE_IN)
    }

    fn open_with(root: &Path, retention: Duration, bytes_max: u64) -> Result<Self, StoreError> {
        let piece_bytes = PIECE_BYTES.min(bytes_max / u64::from(PIECE_ONE_IN));
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
        let inner = Inner { full, newest, file: Arc::new(file), open };
        let shares = Mutex::new(Shares::of(&inner));
        let kept_from = AtomicI64::new(i64::MIN);
        Ok(Self { directory, retention, bytes_max, piece_bytes, inner: Mutex::new(inner), shares, kept_from })
    }

    /// Durable when this returns.
    pub fn note(&self, tunnels: &[Arc<Tunnel>]) -> Result<(), StoreError> {
        let mut inner = locked(&self.inner);
        let framed = Framed::of(tunnels);
        self.make_room(&mut inner, framed.bytes.len() as u64)
            .and_then(|()| inner.append(tunnels, &framed))
            .map_err(|error| cannot_write(&self.directory, error))?;
        let mut shares = locked(&self.shares);
        for (tunnel, &bytes) in tunnels.iter().zip(&framed.lengths) {
            let id = tunnel.id.as_u128();
            let open = Open { tunnel: tunnel.clone(), bytes };
            let before = if tunnel.ended.is_some() {
                shares.ended(&tunnel.tenant, bytes);
                inner.open.remove(&id)
            } else {
                shares.opened(&open);
                inner.open.insert(id, open)
            };
            before.iter().for_each(|before| shares.not_open(before));
        }
        Ok(())
    }

    /// For so much more in the newest piece. What is full is begun anew, and the oldest go while there is too much.
    fn make_room(&self, inner: &mut Inner, more: u64) -> io::Result<()> {
        if inner.newest.ends() >= self.piece_bytes {
            self.begin_another(inner)?;
        }
        while inner.bytes() + more > self.bytes_max {
            if inner.full.is_empty() {
                if inner.newest.ends() == 0 {
                    // Those that are open: no more of them are admitted.
                    return Ok(());
                }
                self.begin_another(inner)?;
            }
            self.drop_oldest(inner);
        }
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
        let open: Vec<_> = inner.open.values().map(|open| open.tunnel.clone()).collect();
        let begun = inner.append(&open, &Framed::of(&open)).and_then(|()| sync_directory(&self.directory));
        if let Err(error) = begun {
            // As if it had not been tried.
            (inner.newest, inner.file) = (before, file_before);
            let _ = fs::remove_file(path_of(&self.directory, number));
            return Err(error);
        }
        inner.full.push(Arc::new(before));
        Ok(())
    }

    fn drop_oldest(&self, inner: &mut Inner) {
        let gone = inner.full.remove(0);
        locked(&self.shares).gone(&gone);
        for path in [path_of(&self.directory, gone.number), about_path(&self.directory, gone.number)] {
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "records of tunnels could not be removed yet");
            }
        }
    }

    /// By age.
    pub fn retain(&self, now: Timestamp) {
        let before = |age: Duration| {
            let age = i64::try_from(age.as_nanos()).unwrap_or(i64::MAX);
            wire::nanoseconds(now).saturating_sub(age)
        };
        let kept_from = before(self.retention);
        self.kept_from.store(kept_from, Ordering::Relaxed);
        let mut inner = locked(&self.inner);
        if inner.newest.ended_from < before(self.retention / u32::from(PIECE_ONE_IN))
            && let Err(error) = self.begin_another(&mut inner).and_then(|()| self.make_room(&mut inner, 0))
        {
            tracing::warn!(%error, "records of tunnels may be kept longer than they are to be");
        }
        while inner.full.first().is_some_and(|first| first.to < kept_from) {
            self.drop_oldest(&mut inner);
        }
    }

    pub fn end_left_open(&self, now: Timestamp) -> Result<u64, StoreError> {
        let left: Vec<_> =
            locked(&self.inner).open.values().map(|open| Arc::new(open.tunnel.interrupted(now))).collect();
        self.note(&left)?;
        Ok(left.len() as u64)
    }

    /// Whether one more may be opened.
    pub fn room(&self, tenant: &TenantId) -> Result<(), NoRoom> {
        let share = self.bytes_max / SHARE_ONE_IN;
        let shares = locked(&self.shares);
        if shares.of.get(tenant.as_str()).is_some_and(|bytes| *bytes >= share) {
            return Err(NoRoom::OfTenant);
        }
        if shares.open >= share { Err(NoRoom::AtAll) } else { Ok(()) }
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
            let open: Vec<_> = inner.open.range(..before).rev().map(|(_, open)| open.tunnel.clone()).collect();
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
        let kept_from = self.kept_from.load(Ordering::Relaxed);
        let is_kept =
            |tunnel: &Tunnel| tunnel.ended.as_ref().is_none_or(|ended| wire::nanoseconds(ended.at) >= kept_from);
        let mut looked_at = 0;
        while let Some(piece) = pieces.pop() {
            if piece.number != last {
                before = usize::MAX;
            }
            let since = filter.since.map_or(i64::MIN, wire::nanoseconds).max(kept_from);
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
                    Ok(tunnel) if is_kept(&tunnel) && filter.takes_in(&tunnel) => page.tunnels.push(tunnel),
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

    fn append(&mut self, tunnels: &[Arc<Tunnel>], framed: &Framed) -> io::Result<()> {
        if tunnels.is_empty() {
            return Ok(());
        }
        // Where it fails the next one is written over it.
        self.file.write_all_at(&framed.bytes, self.newest.bytes)?;
        self.file.sync_data()?;
        for (tunnel, &bytes) in tunnels.iter().zip(&framed.lengths) {
            self.newest.add(tunnel, bytes);
        }
        Ok(())
    }
}

/// As tunnels are written: a frame each.
struct Framed {
    bytes: Vec<u8>,
    lengths: Vec<u64>,
}

impl Framed {
    fn of(tunnels: &[Arc<Tunnel>]) -> Self {
        let (mut bytes, mut lengths) = (Vec::new(), Vec::with_capacity(tunnels.len()));
        for tunnel in tunnels {
            lengths.push(frame::append(&mut bytes, kind_of(tunnel), &[&wire::tunnel(tunnel)], None) as u64);
        }
        Self { bytes, lengths }
    }
}

impl Shares {
    fn of(inner: &Inner) -> Self {
        let mut shares = Self::default();
        for (tenant, bytes) in inner.full.iter().flat_map(|piece| &piece.of).chain(&inner.newest.of) {
            *shares.of.entry(tenant.clone()).or_default() += bytes;
        }
        inner.open.values().for_each(|open| shares.opened(open));
        shares
    }

    fn ended(&mut self, tenant: &TenantId, bytes: u64) {
        *self.of.entry(tenant.as_str().to_owned()).or_default() += bytes;
    }

    /// With as much again, for its end.
    fn opened(&mut self, open: &Open) {
        self.ended(&open.tunnel.tenant, 2 * open.bytes);
        self.open += open.bytes;
    }

    fn not_open(&mut self, open: &Open) {
        self.less(open.tunnel.tenant.as_str(), 2 * open.bytes);
        self.open = self.open.saturating_sub(open.bytes);
    }

    fn gone(&mut self, piece: &Piece) {
        piece.of.iter().for_each(|(tenant, bytes)| self.less(tenant, *bytes));
    }

    fn less(&mut self, tenant: &str, bytes: u64) {
        if let Some(of) = self.of.get_mut(tenant) {
            *of = of.saturating_sub(bytes);
            if *of == 0 {
                self.of.remove(tenant);
            }
        }
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

fn scan(path: &Path, number: u32) -> io::Result<(Piece, BTreeMap<u128, Open>)> {
    let (mut piece, mut open) = (Piece::new(number), BTreeMap::new());
    let end = walk(path, u64::MAX, |frame| {
        let Ok(tunnel) = wire::read_tunnel(frame.payload) else { return };
        let bytes = frame.length as u64;
        piece.add(&tunnel, bytes);
        match tunnel.ended {
            Some(_) => drop(open.remove(&tunnel.id.as_u128())),
            None => drop(open.insert(tunnel.id.as_u128(), Open { tunnel: Arc::new(tunnel), bytes })),
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

    /// A log whose pieces hold a few records.
    fn small(root: &Path) -> Log {
        Log::open_with(root, DAY, 16_000).unwrap()
    }

    fn files(root: &Path) -> Vec<PathBuf> {
        let mut files: Vec<_> =
            fs::read_dir(root.join("tunnels")).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    /// Bytes of records on the disk.
    fn on_disk(root: &Path) -> u64 {
        let pieces = files(root).into_iter().filter(|path| path.extension().is_none());
        pieces.map(|path| fs::metadata(path).unwrap().len()).sum()
    }

    #[test]
    fn pieces_follow_each_other_and_what_is_open_is_known_after_a_death() {
        let root = tempfile::tempdir().unwrap();
        let log = small(root.path());
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
        let shares = locked(&log.shares).clone();
        drop(log);
        // Half a frame at its end, and what is known of a full piece gone.
        let newest = files(root.path()).into_iter().filter(|path| path.extension().is_none()).max().unwrap();
        let torn = [fs::read(&newest).unwrap(), vec![0xe6, b'g', b'r']].concat();
        fs::write(&newest, torn).unwrap();
        fs::remove_file(about_path(&root.path().join("tunnels"), 1)).unwrap();
        let log = small(root.path());
        assert_eq!(all(&log), found);
        assert_eq!(*locked(&log.shares), shares);
        assert_eq!(log.end_left_open(ended(&long, 100).ended.clone().unwrap().at).unwrap(), 1);
        assert_eq!(log.end_left_open(Timestamp::MAX).unwrap(), 0);
        let page = log.list(&TunnelFilter::of(Reach::All), None, 1).unwrap();
        let interrupted = page.tunnels[0].ended.as_ref().unwrap();
        assert_eq!(hosts(&page), ["long.example.com"]);
        assert_eq!(interrupted.code, Some(crate::outcome::Code::Interrupted));
        assert_eq!(all(&log).len(), 39, "each once");
    }

    #[test]
    fn the_room_is_never_exceeded_and_the_oldest_make_it() {
        let root = tempfile::tempdir().unwrap();
        let log = small(root.path());
        let long = opened("long", "long.example.com", 1);
        log.note(std::slice::from_ref(&long)).unwrap();
        for number in 1..200 {
            let few: Vec<_> = (0..number % 7)
                .map(|at| ended(&opened("acme", &format!("{number}.{at}.example.com"), number), number + 1))
                .collect();
            log.note(&few).unwrap();
            assert!(on_disk(root.path()) <= 16_000, "{number}: {}", on_disk(root.path()));
        }
        let found = all(&log);
        assert_eq!((found[0].as_str(), found[1].as_str()), ("long.example.com", "199.2.example.com"));
        // What went is little at a time.
        assert!(on_disk(root.path()) > 12_000, "{}", on_disk(root.path()));
        // A batch that is larger than a piece.
        let many: Vec<_> = (0..40).map(|at| ended(&opened("acme", &format!("many.{at}"), 300), 301)).collect();
        log.note(&many).unwrap();
        assert!(on_disk(root.path()) <= 16_000, "{}", on_disk(root.path()));
        assert!(all(&log).len() > 40);
        assert_eq!(*locked(&log.shares), Shares::of(&locked(&log.inner)));
    }

    #[test]
    fn a_tenants_share_comes_back_as_its_records_go_by_their_age() {
        let root = tempfile::tempdir().unwrap();
        let log = small(root.path());
        let (acme, other) = (TenantId::new("acme"), TenantId::new("other"));
        let mut number = 0;
        while log.room(&acme).is_ok() {
            number += 1;
            log.note(&[ended(&opened("acme", "shop.example.com", number), number)]).unwrap();
            assert!(number < 200);
        }
        assert_eq!((log.room(&acme), log.room(&other)), (Err(NoRoom::OfTenant), Ok(())));
        let last = ended(&opened("acme", "x", number), number).ended.clone().unwrap().at;
        let later = |times: u32| last.saturating_add(DAY / 16 * times).unwrap();
        // Nothing is written any more: what there is goes all the same.
        for sixteenth in 1..=15 {
            log.retain(later(sixteenth));
        }
        assert_eq!(all(&log).len(), usize::try_from(number).unwrap(), "kept for as long as it is to be");
        log.retain(later(17));
        assert_eq!((all(&log).len(), log.room(&acme)), (0, Ok(())));
        assert_eq!(on_disk(root.path()), 0);
        assert_eq!(files(root.path()).len(), 1, "{:?}", files(root.path()));
    }

    #[test]
    fn what_is_past_its_retention_is_shown_no_more_and_what_is_open_stays() {
        let root = tempfile::tempdir().unwrap();
        let log = Log::open_with(root.path(), DAY, 16 << 20).unwrap();
        let long = opened("acme", "long.example.com", 1);
        let old = ended(&opened("acme", "old.example.com", 2), 3);
        let last = ended(&opened("acme", "last.example.com", 4), 1000);
        log.note(&[long, old, last.clone()]).unwrap();
        assert_eq!(all(&log).len(), 3);
        log.retain(last.begun_at.saturating_add(DAY).unwrap());
        assert_eq!(all(&log), ["long.example.com", "last.example.com"]);
        for times in 17..20 {
            log.retain(last.begun_at.saturating_add(DAY / 16 * times).unwrap());
        }
        assert_eq!(all(&log), ["long.example.com"]);
    }

    #[test]
    fn what_is_open_leaves_room_for_what_has_ended() {
        let root = tempfile::tempdir().unwrap();
        let log = small(root.path());
        let mut open = Vec::new();
        for number in 1.. {
            let tenant = format!("tenant {number}");
            if log.room(&TenantId::new(&*tenant)).is_err() {
                break;
            }
            open.push(opened(&tenant, "long.example.com", number));
            log.note(&open[open.len() - 1..]).unwrap();
        }
        assert_eq!(log.room(&TenantId::new("another")), Err(NoRoom::AtAll));
        assert!(open.len() > 10, "{}", open.len());
        let ends: Vec<_> = open.iter().map(|tunnel| ended(tunnel, 1000)).collect();
        log.note(&ends).unwrap();
        assert_eq!(log.room(&TenantId::new("another")), Ok(()));
        assert!(on_disk(root.path()) <= 16_000);
        assert_eq!(all(&log).len(), open.len());
    }
}
