//! What sessions before this one left half done is brought to its end.

use jiff::Timestamp;

use super::batch::SendAt;
use super::job::{FinishJob, StoreEndJob};
use super::{Writer, why};
use crate::outcome::Outcome;
use crate::record::Finished;
use crate::store::embedded::hashes::TenantHash;
use crate::store::embedded::locked;
use crate::store::embedded::waiting::Counted;
use crate::store::view::{self, EndedExecution, Standing};
use crate::store::{Ending, Recovered, Session, StoreError, wire};

/// Ends that are written together.
const ENDS_AT_ONCE: usize = 1024;

impl Writer {
    pub fn recover(&mut self, by: &Session, now: Timestamp) -> Result<Recovered, StoreError> {
        let begun = {
            let waiting = locked(&self.shared.waiting);
            self.shared.in_force(&waiting, by)?;
            waiting.begun_before()
        };
        let mut places = std::mem::take(&mut self.left_behind);
        places.extend(begun.iter().map(|(_, taken)| (taken.queued.segment, taken.queued.row)));
        places.sort_unstable();
        places.dedup();
        let mut recovered = Recovered::default();
        for (at, some) in places.chunks(ENDS_AT_ONCE).enumerate() {
            if let Err(error) = self.end_left_behind(some, now, &mut recovered) {
                self.left_behind.extend(&places[at * ENDS_AT_ONCE..]);
                return Err(error);
            }
        }
        self.shared.copy.settled();
        recovered.damage = locked(&self.shared.damage).clone();
        Ok(recovered)
    }

    /// Writes the ends of these, all or none, and notes them. What cannot be read waits for the next call, and keeps
    /// nobody else from its end: nothing of it can be begun meanwhile.
    fn end_left_behind(
        &mut self,
        places: &[(u32, u32)],
        now: Timestamp,
        recovered: &mut Recovered,
    ) -> Result<(), StoreError> {
        self.pay_debts()?;
        let mut ended = Vec::with_capacity(places.len());
        let mut batch = self.empty_batch();
        for &place in places {
            let (send, number, finished) = match self.left_behind(place, now) {
                Ok(Some(left)) => left,
                Ok(None) => continue,
                Err(error) => {
                    self.shared.tell_unread(&error);
                    self.left_behind.push(place);
                    continue;
                }
            };
            let (id, outcome) = (finished.id, finished.ended.outcome);
            let finish = FinishJob::of(&self.shared.keys, &finished);
            let job = StoreEndJob { send, number, counted: Counted::Not, finish };
            if self.decide_store_end(&mut batch, job).is_some() {
                ended.push((id, outcome));
            }
        }
        let written = self.write(&batch);
        if let Err(error) = written {
            self.not_ended(&batch.ending);
            self.left_behind.retain(|place| !places.contains(place));
            return Err(error);
        }
        self.owed.extend(batch.effects);
        self.apply_owed();
        self.make_room();
        for (id, outcome) in ended {
            recovered.interrupted += u64::from(outcome == Outcome::Interrupted);
            recovered.discarded += u64::from(outcome == Outcome::Discarded);
            recovered.note(id);
        }
        Ok(())
    }

    fn left_behind(
        &self,
        (segment, number): (u32, u32),
        now: Timestamp,
    ) -> Result<Option<(SendAt, u32, Finished)>, StoreError> {
        let Some(segment) = self.shared.segment(segment) else { return Ok(None) };
        let Some(row) = self.shared.waiting_row(&segment, number)? else { return Ok(None) };
        if row.is_done() || !segment.ended().undone.contains(number) {
            return Ok(None);
        }
        let ended = self.shared.ended_of(&row)?;
        let standing = Standing {
            created_at: wire::timestamp(row.created_at),
            held: row.is_held(),
            ended,
            started_at: row.is_begun().then(|| wire::timestamp(row.started_at)),
        };
        let end = |why| standing.end(row.id(), why, now);
        let finished = if row.is_begun() {
            end(view::interrupted())
        } else if matches!(ended, Some(EndedExecution { ending: Ending::Discard, .. })) {
            end(view::discarded())
        } else if locked(&self.shared.doubted).contains(&row.id) {
            end(view::doubted())
        } else if self.shared.copy.is_one() {
            end(view::restored())
        } else {
            match segment.frame(row.accepted) {
                Ok(_) => return Ok(None),
                Err(error @ StoreError::Damaged(_)) => {
                    self.shared.tell_damage(why(&error));
                    self.shared.unreadable(standing, row.id(), now)
                }
                Err(error) => return Err(error),
            }
        };
        // Where its frame is damaged, nobody knows whose it is.
        let name = self.shared.tenant_named(&segment, &row).ok();
        let tenant = name.as_ref().map(|name| self.shared.keys.tenant(name.as_str()));
        let send =
            SendAt { segment: segment.number, row: number, tenant: tenant.unwrap_or(TenantHash::any_of(row.tenant)) };
        let number = name.map_or(u32::MAX, |name| locked(&self.shared.waiting).number(&name));
        Ok(Some((send, number, finished)))
    }
}
