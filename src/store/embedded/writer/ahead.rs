//! Large calls, whose bodies go to disk ahead of them: a piece at a time, between the batches of all others, which so wait
//! for a piece and not for a call.
//!
//! Nothing names what stands there before the call's own batch is durable. Of a call that ends in between something may
//! be left, which counts against its tenant until the segment goes, or the process does.

use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use super::job::{AcceptJob, Answer};
use super::{Fault, Job, Writer, cannot_write};
use crate::store::embedded::entry::BodyPlace;
use crate::store::embedded::frame::{self, FrameKind};
use crate::store::embedded::segment::Segment;
use crate::store::{Accepted, StoreError};

/// A call of more bytes is large.
const LARGE_BYTES: usize = 1 << 20;
/// What others wait for at most.
const PIECE_BYTES: usize = if cfg!(test) { 1 << 16 } else { 1 << 20 };

pub struct Large {
    job: Box<AcceptJob>,
    answer: Answer<Accepted>,
    /// Where its bodies go.
    segment: u32,
    /// Of its sends, so many have their places there.
    placed: usize,
    /// The bodies of the last of them, where these begin, and how much of them is on disk.
    frames: Vec<u8>,
    at: u64,
    written: usize,
}

impl Large {
    pub fn is(job: &AcceptJob) -> bool {
        job.bytes() > LARGE_BYTES
    }

    pub fn of(job: Box<AcceptJob>, answer: Answer<Accepted>) -> Self {
        Self { job, answer, segment: 0, placed: 0, frames: Vec::new(), at: 0, written: 0 }
    }

    /// Its bodies go to this segment from now on.
    fn go_to(&mut self, segment: u32) {
        self.job.sends.iter_mut().for_each(|send| send.ahead = None);
        (self.segment, self.placed, self.written) = (segment, 0, 0);
        self.frames.clear();
    }

    /// Gives some more of its bodies their places; not where none is left.
    fn place_more(&mut self, newest: &Segment) -> bool {
        self.frames.clear();
        (self.at, self.written) = (newest.bodies_bytes.load(Ordering::Relaxed), 0);
        while self.frames.len() < PIECE_BYTES
            && let Some(send) = self.job.sends.get_mut(self.placed)
        {
            let places = send.bodies().map(|body| {
                let Some(body) = body else { return BodyPlace::default() };
                let at = self.at + self.frames.len() as u64;
                let length = frame::append(&mut self.frames, FrameKind::Body, &[body], None);
                BodyPlace { at, length: length as u32 }
            });
            send.ahead = Some(places);
            self.placed += 1;
        }
        newest.bodies_bytes.store(self.at + self.frames.len() as u64, Ordering::Release);
        !self.frames.is_empty()
    }
}

impl Writer {
    pub(super) fn has_large(&self) -> bool {
        self.ahead.is_some() || !self.large.is_empty()
    }

    /// Writes a piece of a large call, or what is left of it, if there is any.
    pub(super) fn take_large(&mut self) -> bool {
        let Some(mut large) = self.ahead.take().or_else(|| self.next_large()) else { return false };
        match self.write_piece(&mut large) {
            Ok(true) => self.ahead = Some(large),
            Ok(false) => {
                let in_debt = self.pay_debts().err();
                let mut batch = self.empty_batch();
                self.put(&mut batch, Job::Accept(large.job, large.answer), in_debt.as_ref());
                self.commit(batch);
            }
            Err(error) => drop(large.answer.send(Err(error))),
        }
        true
    }

    /// Of another tenant than the last one, where one of another waits. One that is answered without being written is
    /// answered here.
    fn next_large(&mut self) -> Option<Large> {
        while !self.large.is_empty() {
            let is_anothers = |large: &Large| Some(&large.job.tenant) != self.last_large.as_ref();
            let next = self.large.iter().position(is_anothers).unwrap_or(0);
            let large = self.large.remove(next)?;
            self.last_large = Some(large.job.tenant.clone());
            let answered = self.pay_debts().and_then(|()| self.answered(&mut self.empty_batch(), &large.job));
            match answered.transpose() {
                None => return Some(large),
                Some(answer) => drop(large.answer.send(answer)),
            }
        }
        None
    }

    /// Whether there was anything to write. Where the store is failing there is not: the call's own batch is told why.
    fn write_piece(&mut self, large: &mut Large) -> Result<bool, StoreError> {
        let is_failing = self.is_failing();
        // Of what has its place some may not be on disk yet. The call's own batch may find the store mended: it has it all.
        if large.segment != self.newest.number || is_failing {
            large.go_to(self.newest.number);
        }
        let newest = self.newest.clone();
        if is_failing || large.written == large.frames.len() && !large.place_more(&newest) {
            return Ok(false);
        }
        let at = large.at + large.written as u64;
        let piece = &large.frames[large.written..];
        let piece = &piece[..piece.len().min(PIECE_BYTES)];
        let mut synced = true;
        let written = newest.with_bodies(|bodies| {
            self.shared.faults.pass(Fault::Write)?;
            bodies.write_all_at(piece, at)?;
            synced = false;
            self.shared.faults.pass(Fault::Sync)?;
            bodies.sync_data()?;
            synced = true;
            Ok(())
        });
        if let Err(error) = written {
            self.abandon_newest |= !synced;
            let error = cannot_write(&newest.directory.join("bodies"), error);
            self.fail(&error);
            return Err(error);
        }
        self.shared.store(&newest, large.job.tenant_hash, 0, piece.len() as u64);
        large.written += piece.len();
        self.earn(piece.len() as u64);
        Ok(true)
    }
}
