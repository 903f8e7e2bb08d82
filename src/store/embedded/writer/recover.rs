//! What the last process left half done is brought to its end.

use jiff::Timestamp;

use super::job::FinishJob;
use super::{Writer, why};
use crate::outcome::Outcome;
use crate::record::Finished;
use crate::store::embedded::entry::id_of;
use crate::store::embedded::locked;
use crate::store::view::{self, EndedExecution, Standing};
use crate::store::{Ending, Recovered, StoreError, wire};

impl Writer {
    pub fn recover(&mut self, now: Timestamp) -> Result<Recovered, StoreError> {
        let mut ends = match self.left_behind.take() {
            Some(ends) => ends,
            None => self.find_left_behind(now)?,
        };
        let count = |outcome| ends.iter().filter(|end| end.ended.outcome == outcome).count() as u64;
        let (interrupted, discarded) = (count(Outcome::Interrupted), count(Outcome::Discarded));
        while !ends.is_empty() {
            let some = ends.split_off(ends.len().saturating_sub(1024));
            if let Err(error) = self.end_all(&some) {
                ends.extend(some);
                self.left_behind = Some(ends);
                return Err(error);
            }
        }
        Ok(Recovered { interrupted, discarded, damage: locked(&self.shared.damage).clone() })
    }

    /// Writes ends, the last of them first: all or none.
    fn end_all(&mut self, ends: &[Finished]) -> Result<(), StoreError> {
        self.pay_debts()?;
        let mut batch = self.empty_batch();
        for finished in ends.iter().rev() {
            self.decide_finish(&mut batch, FinishJob::of(&self.shared.keys, finished))?;
        }
        self.write(&batch)?;
        self.owed.extend(batch.effects);
        self.apply_owed();
        self.make_room();
        Ok(())
    }

    /// Ends of what the last process left half done, latest first.
    fn find_left_behind(&self, now: Timestamp) -> Result<Vec<Finished>, StoreError> {
        let mut ends = Vec::new();
        let doubts = locked(&self.shared.doubted);
        for (&id, send) in &self.live.sends {
            let ended = if send.held_by == 0 { None } else { self.shared.ending(send.held_by, None)? };
            let discarded = matches!(ended, Some(EndedExecution { ending: Ending::Discard, .. }));
            let settled = self.shared.piece(send.piece).is_some_and(|piece| piece.is_settled());
            let doubted = doubts.contains(&id);
            if !send.begun && !discarded && !settled && !doubted {
                continue;
            }
            let piece = self.piece_of(send)?;
            let row = piece.row(send.row)?;
            let standing = Standing {
                created_at: wire::timestamp(row.created_at),
                held: row.is_held(),
                ended,
                started_at: row.is_begun().then(|| wire::timestamp(row.started_at)),
            };
            let error = if send.begun {
                view::interrupted()
            } else if discarded {
                view::discarded()
            } else if doubted {
                view::doubted()
            } else if let Err(error) = piece.frame(row.accepted) {
                // A replay has read the logs that are not settled; of the others only now it shows.
                self.shared.tell_damage(why(&error));
                view::unreadable()
            } else {
                continue;
            };
            ends.push((send.piece, send.row, standing.end(id_of(id), error, now)));
        }
        ends.sort_unstable_by_key(|(piece, row, _)| std::cmp::Reverse((*piece, *row)));
        Ok(ends.into_iter().map(|(_, _, finished)| finished).collect())
    }
}
