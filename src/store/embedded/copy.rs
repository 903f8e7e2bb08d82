//! A store that is a copy of an earlier moment, restored after a loss or brought from elsewhere. What waited then may
//! have been made since: all of it ends `interrupted`, and none of it is sent.
//!
//! That holds however often the process dies before it has come to that: a file in the store says so until every end is
//! written, whoever opens it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::cannot_write;
use super::segment::sync_directory;
use super::state::write_whole;
use crate::store::StoreError;

pub struct Copy {
    mark: PathBuf,
    /// Until all that waited has ended.
    is_one: AtomicBool,
}

impl Copy {
    /// `said`: whoever opens the store knows that it is one. Nothing of it may be claimed before this.
    pub fn of(root: &Path, said: bool) -> Result<Self, StoreError> {
        let mark = root.join("restored");
        if said && !mark.exists() {
            write_whole(&mark, b"what waits in this copy ends interrupted; egressd removes this file then\n")
                .map_err(|error| cannot_write(&mark, error))?;
        }
        let is_one = mark.exists();
        if is_one {
            tracing::warn!(
                "this store is a copy that was restored: what waits in it ends interrupted, and is not sent"
            );
        }
        Ok(Self { mark, is_one: AtomicBool::new(is_one) })
    }

    pub fn is_one(&self) -> bool {
        self.is_one.load(Ordering::Acquire)
    }

    /// Everything that waited has its end, on disk: from here on it is a store like any other.
    pub fn settled(&self) {
        if !self.is_one.swap(false, Ordering::AcqRel) {
            return;
        }
        let removed = fs::remove_file(&self.mark).and_then(|()| self.mark.parent().map_or(Ok(()), sync_directory));
        if let Err(error) = removed {
            let mark = self.mark.display();
            tracing::error!(%mark, %error, "the mark of a restored copy stays: remove it, or the next start ends what waits");
        }
    }
}
