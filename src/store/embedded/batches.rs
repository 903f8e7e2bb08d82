//! Batches, each in a file of its own beside the segments: nothing of a send's waits for them.
//!
//! ```text
//! <path>/batches/open/<id>     closed, and not done
//! <path>/batches/members/<id>  of the same what it holds, written once
//! <path>/batches/<day>/<id>    done: the day's number since 1970; dropped as a whole once it is past its retention
//! ```
//!
//! A file is written anew for each change, and is the old one or the new one whatever dies. What is done is moved behind
//! its last change: found in both places, the one that is done counts. Before the first try a batch has both of its files;
//! where one of them is lost later the other says whose ends nobody knows any more ([`Files::unfinished`]), so that none of
//! these is gathered anew.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;

use super::frame::{self, Frame, FrameKind};
use super::segment::sync_directory;
use super::state::write_whole;
use super::{cannot_write, files};
use crate::clock;
use crate::outcome::words::UnmadeCause;
use crate::outcome::{Ended, Processed, Timings};
use crate::record::{Batch, BatchId, BatchState, Finished, InBatch};
use crate::store::{StoreError, Why, wire};

pub struct Files {
    directory: PathBuf,
    retention: Duration,
    /// Of all that is there.
    bytes: AtomicU64,
}

const OPEN: &str = "open";
const MEMBERS: &str = "members";
/// Of common file systems.
const BLOCK: u64 = 4096;
const DAY_SECONDS: i64 = 24 * 3600;

fn day_of(at: Timestamp) -> i64 {
    at.as_second().div_euclid(DAY_SECONDS)
}

impl Files {
    pub fn open(root: &Path, retention: Duration) -> Result<Self, StoreError> {
        let files = Self { directory: root.join("batches"), retention, bytes: AtomicU64::new(0) };
        for made in [OPEN, MEMBERS].map(|name| files.directory.join(name)) {
            files::make_directory(&made).map_err(|error| cannot_write(&made, error))?;
        }
        for made in [&files.directory, root] {
            sync_directory(made).map_err(|error| cannot_write(made, error))?;
        }
        let own = [OPEN, MEMBERS].map(|name| files.directory.join(name));
        let days = files.days()?.into_iter().map(|(_, path)| path);
        let bytes = own.into_iter().chain(days).map(|directory| bytes_in(&directory)).sum();
        files.bytes.store(bytes, Ordering::Relaxed);
        Ok(files)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Durable when it returns.
    pub fn put(&self, batch: &Batch) -> Result<(), StoreError> {
        let name = batch.id.to_string();
        let open = self.directory.join(OPEN).join(&name);
        let members = self.directory.join(MEMBERS).join(&name);
        if batch.state != BatchState::Done {
            self.write(&open, batch)?;
            if !members.exists() {
                self.write(&members, &only_members(batch))?;
            }
            return Ok(());
        }
        let failed = |error| cannot_write(&open, error);
        let day = self.directory.join(day_of(batch.closes_at).to_string());
        if files::make_directory(&day).map_err(failed)? {
            sync_directory(&self.directory).map_err(failed)?;
        }
        self.write(&day.join(&name), batch)?;
        self.remove(&members)?;
        self.remove(&open)
    }

    fn write(&self, path: &Path, batch: &Batch) -> Result<(), StoreError> {
        let mut bytes = Vec::new();
        frame::append(&mut bytes, FrameKind::Batch, &[&wire::batch(batch)], None);
        let before = fs::metadata(path).map_or(0, |file| on_disk(file.len()));
        write_whole(path, &bytes).map_err(|error| cannot_write(path, error))?;
        self.bytes.fetch_add(on_disk(bytes.len() as u64), Ordering::Relaxed);
        self.less(before);
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<(), StoreError> {
        let bytes = fs::metadata(path).map_or(0, |file| on_disk(file.len()));
        match fs::remove_file(path) {
            Ok(()) => self.less(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(cannot_write(path, error)),
        }
        Ok(())
    }

    /// Files that others change meanwhile are counted roughly, and never below nothing.
    fn less(&self, bytes: u64) {
        let _ = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |all| Some(all.saturating_sub(bytes)));
    }

    pub fn find(&self, id: BatchId) -> Result<Option<Batch>, StoreError> {
        let name = id.to_string();
        for day in self.days()? {
            if let Some(batch) = read(&day.1.join(&name))? {
                return Ok(Some(batch));
            }
        }
        read(&self.directory.join(OPEN).join(&name))
    }

    /// The days of which there are batches, the newest first.
    fn days(&self) -> Result<Vec<(i64, PathBuf)>, StoreError> {
        let entries = fs::read_dir(&self.directory).map_err(|error| cannot_read(&self.directory, error))?;
        let mut days: Vec<_> = entries
            .flatten()
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<i64>().ok()?, entry.path())))
            .collect();
        days.sort_by_key(|(day, _)| std::cmp::Reverse(*day));
        Ok(days)
    }

    /// Those that are closed and not done, and what of them cannot be read. One of which what it holds alone is left may have
    /// been tried, and may have its end: it ends as what nobody knows the end of.
    pub fn unfinished(&self) -> Result<(Vec<Batch>, Vec<StoreError>), StoreError> {
        let (mut batches, mut unread) = (Vec::new(), Vec::new());
        for name in self.names()? {
            let [open, members] = [OPEN, MEMBERS].map(|directory| read(&self.directory.join(directory).join(&name)));
            let is_done = |batch: &Batch| {
                let path = self.directory.join(day_of(batch.closes_at).to_string()).join(&name);
                matches!(read(&path), Ok(Some(_)))
            };
            match (open, members) {
                (Ok(Some(batch)), members) => {
                    unread.extend(members.err());
                    if !is_done(&batch) {
                        batches.push(batch);
                    }
                }
                (open, Ok(Some(batch))) if !is_done(&batch) => {
                    let lost =
                        || StoreError::Damaged(format!("the batch {name} is lost, but for what it holds").into());
                    unread.push(open.err().unwrap_or_else(lost));
                    batches.push(unknown(batch));
                }
                (open, members) => unread.extend(open.err().into_iter().chain(members.err())),
            }
        }
        Ok((batches, unread))
    }

    /// Of all that are not done, in no order.
    fn names(&self) -> Result<BTreeSet<String>, StoreError> {
        let mut names = BTreeSet::new();
        for directory in [OPEN, MEMBERS].map(|name| self.directory.join(name)) {
            for entry in fs::read_dir(&directory).map_err(|error| cannot_read(&directory, error))? {
                let path = entry.map_err(|error| cannot_read(&directory, error))?.path();
                // What was being written when the process died.
                let is_whole = path.extension().is_none();
                names.extend(path.file_name().and_then(|name| name.to_str()).filter(|_| is_whole).map(str::to_owned));
            }
        }
        Ok(names)
    }

    /// Drops what is past its retention, and the oldest days but the newest where all of them have more than this many bytes.
    pub fn retain(&self, now: Timestamp, bytes_max: u64) {
        let kept = i64::try_from(self.retention.as_secs()).unwrap_or(i64::MAX);
        let over = |day: i64| (day + 1).saturating_mul(DAY_SECONDS).saturating_add(kept) < now.as_second();
        let mut days = self.days().unwrap_or_default();
        while let Some((day, path)) = days.pop() {
            if !over(day) && (self.bytes() <= bytes_max || days.is_empty()) {
                break;
            }
            let bytes = bytes_in(&path);
            super::retain::remove(&path);
            self.less(bytes);
        }
    }
}

/// What does not change of it.
fn only_members(batch: &Batch) -> Batch {
    let (attempts, left_out) = (Vec::new(), Vec::new());
    Batch { attempts, left_out, ended: None, ..batch.clone() }
}

fn unknown(batch: Batch) -> Batch {
    let (id, closes_at) = (batch.id, batch.closes_at);
    let ended = batch.sends.first().map(|first| Finished {
        id: *first,
        ended: Ended::because(UnmadeCause::Doubted.failure()),
        sent_headers: None,
        response: None,
        connection: None,
        would_block: None,
        timings: Timings::default(),
        released_at: Some(closes_at),
        started_at: None,
        finished_at: clock::wall(),
        batch: Some(InBatch { id, closes_at, taken: Processed::Maybe }),
    });
    Batch { ended, taken: Processed::Maybe, ..batch }
}

/// What a file of this length takes: most of these are far smaller than a block.
fn on_disk(length: u64) -> u64 {
    length.next_multiple_of(BLOCK)
}

fn bytes_in(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|file| on_disk(file.len())).sum()
}

fn cannot_read(path: &Path, error: io::Error) -> StoreError {
    StoreError::CannotRead(Why::by(format!("{}: {error}", path.display()), error))
}

fn read(path: &Path) -> Result<Option<Batch>, StoreError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot_read(path, error)),
    };
    let batch = match frame::parse(&bytes) {
        Some(Frame { kind: FrameKind::Batch, payload, .. }) => wire::read_batch(payload).ok(),
        _ => None,
    };
    let damaged = || {
        StoreError::Damaged(format!("{} is unreadable: which events a batch held stood in it", path.display()).into())
    };
    batch.map(Some).ok_or_else(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Outcome;
    use crate::send::{Place, SendId, TenantId};

    const DAY: i64 = 24 * 3600;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("a time")
    }

    fn closed(number: u128, second: i64) -> Batch {
        let (tenant, place) = (TenantId::new("acme"), Place::S3 { bucket: "b".into(), prefix: "p".into() });
        let sends = vec![SendId(uuid::Uuid::from_u128(number)), SendId(uuid::Uuid::from_u128(number + 1))];
        Batch {
            id: BatchId::of(sends[0], &tenant, &place),
            tenant,
            place,
            state: BatchState::Closed,
            opened_at: at(second),
            closes_at: at(second),
            placed: Some("there".into()),
            sends,
            bytes: 2,
            tried: 0,
            taken: Processed::No,
            attempts: Vec::new(),
            ended: None,
            left_out: Vec::new(),
        }
    }

    fn files(root: &Path) -> Files {
        Files::open(root, Duration::from_secs(30 * 24 * 3600)).expect("opened")
    }

    /// What becomes of one of its files.
    type Harm = fn(&Path);

    fn all_of(files: &Files) -> u64 {
        let own = [OPEN, MEMBERS].map(|name| files.directory.join(name));
        let days = files.days().expect("read").into_iter().map(|(_, path)| path);
        own.into_iter().chain(days).map(|directory| bytes_in(&directory)).sum()
    }

    #[test]
    fn a_batch_that_is_lost_but_for_what_it_holds_ends_as_nobody_knows_how() {
        let flip: Harm = |path| {
            let mut bytes = fs::read(path).expect("read");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0xff;
            fs::write(path, bytes).expect("written");
        };
        let cut: Harm = |path| fs::write(path, b"").expect("written");
        let gone: Harm = |path| fs::remove_file(path).expect("removed");
        for (name, harm, is_unknown, is_told) in [
            (OPEN, flip, true, true),
            (OPEN, cut, true, true),
            (OPEN, gone, true, true),
            (MEMBERS, flip, false, true),
            (MEMBERS, gone, false, false),
        ] {
            let root = tempfile::tempdir().expect("a directory");
            let (first, batch) = (files(root.path()), Batch { tried: 1, ..closed(1, 0) });
            first.put(&batch).expect("kept");
            harm(&first.directory.join(name).join(batch.id.to_string()));
            let next = files(root.path());
            let (found, unread) = next.unfinished().expect("looked at");
            let [found] = &found[..] else { panic!("{name}: {found:?}") };
            assert_eq!((found.id, &found.sends), (batch.id, &batch.sends), "{name}");
            let ended = found.ended.as_ref().map(|ended| ended.ended.outcome);
            assert_eq!(ended, is_unknown.then_some(Outcome::Interrupted), "{name}");
            assert_eq!(!unread.is_empty(), is_told, "{name}");
            next.put(&Batch { state: BatchState::Done, ..found.clone() }).expect("done");
            assert_eq!(next.unfinished().expect("looked at"), (Vec::new(), Vec::new()), "{name}");
        }
    }

    #[test]
    fn what_is_there_is_counted_and_the_oldest_days_go_where_it_is_too_much() {
        let root = tempfile::tempdir().expect("a directory");
        let files = files(root.path());
        for day in 0..4 {
            let batch = closed(10 * u128::try_from(day).expect("small") + 1, day * DAY);
            for tried in [0, 1] {
                files.put(&Batch { tried, ..batch.clone() }).expect("kept");
                assert_eq!(files.bytes(), all_of(&files));
            }
            files.put(&Batch { state: BatchState::Done, ..batch }).expect("done");
            assert_eq!(files.bytes(), all_of(&files));
        }
        assert!(files.bytes() >= 4 * 4096, "each takes a block: {}", files.bytes());
        assert_eq!(Files::open(root.path(), Duration::ZERO).expect("opened").bytes(), files.bytes());
        let one = files.bytes() / 4;
        files.retain(at(4 * DAY), files.bytes());
        assert_eq!(files.days().expect("read").len(), 4);
        files.retain(at(4 * DAY), 2 * one);
        assert_eq!((files.days().expect("read").len(), files.bytes()), (2, all_of(&files)));
        // What was just done stays.
        files.retain(at(4 * DAY), 0);
        assert_eq!((files.days().expect("read").len(), files.bytes()), (1, all_of(&files)));
        files.retain(at(40 * DAY), u64::MAX);
        assert_eq!((files.days().expect("read").len(), files.bytes()), (0, 0));
    }
}
