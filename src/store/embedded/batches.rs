//! Batches, each in a file of its own beside the segments: nothing of a send's waits for them.
//!
//! ```text
//! <path>/batches/open/<id>     closed, and not done
//! <path>/batches/<day>/<id>    done: the day's number since 1970; dropped as a whole once it is past its retention
//! ```
//!
//! A file is written anew for each change, and is the old one or the new one whatever dies. What is done is moved behind
//! its last change: found in both places, the one that is done counts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

use super::frame::{self, Frame, FrameKind};
use super::segment::sync_directory;
use super::state::write_whole;
use super::{cannot_write, files};
use crate::record::{Batch, BatchId, BatchState};
use crate::store::{StoreError, Why, wire};

pub struct Files {
    directory: PathBuf,
    retention: Duration,
}

const OPEN: &str = "open";
const DAY_SECONDS: i64 = 24 * 3600;

fn day_of(at: Timestamp) -> i64 {
    at.as_second().div_euclid(DAY_SECONDS)
}

impl Files {
    pub fn open(root: &Path, retention: Duration) -> Result<Self, StoreError> {
        let files = Self { directory: root.join("batches"), retention };
        let open = files.directory.join(OPEN);
        files::make_directory(&open).map_err(|error| cannot_write(&open, error))?;
        for made in [&files.directory, root] {
            sync_directory(made).map_err(|error| cannot_write(made, error))?;
        }
        Ok(files)
    }

    /// Durable when it returns.
    pub fn put(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut bytes = Vec::new();
        frame::append(&mut bytes, FrameKind::Batch, &[&wire::batch(batch)], None);
        let open = self.directory.join(OPEN).join(batch.id.to_string());
        let failed = |error| cannot_write(&open, error);
        if batch.state != BatchState::Done {
            return write_whole(&open, &bytes).map_err(failed);
        }
        let day = self.directory.join(day_of(batch.closes_at).to_string());
        if files::make_directory(&day).map_err(failed)? {
            sync_directory(&self.directory).map_err(failed)?;
        }
        write_whole(&day.join(batch.id.to_string()), &bytes).map_err(failed)?;
        match fs::remove_file(&open) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
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

    /// Those that are closed and not done, and what of them cannot be read.
    pub fn unfinished(&self) -> Result<(Vec<Batch>, Vec<StoreError>), StoreError> {
        let open = self.directory.join(OPEN);
        let (mut batches, mut unread) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&open).map_err(|error| cannot_read(&open, error))? {
            let path = entry.map_err(|error| cannot_read(&open, error))?.path();
            // What was being written when the process died.
            if path.extension().is_some() {
                continue;
            }
            let done = |batch: &Batch| {
                let path = self.directory.join(day_of(batch.closes_at).to_string()).join(batch.id.to_string());
                matches!(read(&path), Ok(Some(_)))
            };
            match read(&path) {
                Ok(Some(batch)) if !done(&batch) => batches.push(batch),
                Ok(_) => {}
                Err(error) => unread.push(error),
            }
        }
        Ok((batches, unread))
    }

    pub fn retain(&self, now: Timestamp) {
        let kept = i64::try_from(self.retention.as_secs()).unwrap_or(i64::MAX);
        let over = |day: i64| (day + 1).saturating_mul(DAY_SECONDS).saturating_add(kept) < now.as_second();
        let days = self.days().unwrap_or_default();
        for (_, path) in days.into_iter().filter(|(day, _)| over(*day)) {
            super::retain::remove(&path);
        }
    }
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
