//! Who waits for a send to finish: `?wait=` by id, and the tail's "something new".

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, watch};

use crate::send::SendId;
use crate::store::TailPlace;

/// Told after a send's end is durable.
pub struct Events {
    waiting: Mutex<HashMap<SendId, Waiting>>,
    newest: watch::Sender<TailPlace>,
}

struct Waiting {
    wake: Arc<Notify>,
    callers: usize,
}

impl Default for Events {
    fn default() -> Self {
        Self { waiting: Mutex::default(), newest: watch::Sender::new(TailPlace::START) }
    }
}

impl Events {
    /// The send's end is durable, with this place in the tail.
    pub fn finished(&self, id: SendId, place: TailPlace) {
        self.newest.send_if_modified(|newest| {
            let grows = place > *newest;
            *newest = (*newest).max(place);
            grows
        });
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(one) = waiting.get(&id) {
            one.wake.notify_waiters();
        }
    }

    /// Those that somebody waits for.
    pub fn waited_for(&self) -> Vec<SendId> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    /// It is done, at whatever place of the tail.
    pub fn is_done(&self, id: SendId) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(one) = waiting.get(&id) {
            one.wake.notify_waiters();
        }
    }

    /// Changes whenever a send finishes: the newest place of the tail known to this process.
    pub fn newest(&self) -> watch::Receiver<TailPlace> {
        self.newest.subscribe()
    }

    /// To be made **before** looking at the record, so that no end is missed in between.
    pub fn wait_for(self: &Arc<Self>, id: SendId) -> Ticket {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let one = waiting.entry(id).or_insert_with(|| Waiting { wake: Arc::default(), callers: 0 });
        one.callers += 1;
        Ticket { id, wake: one.wake.clone(), events: self.clone() }
    }
}

/// One caller's wait for one send.
pub struct Ticket {
    id: SendId,
    wake: Arc<Notify>,
    events: Arc<Events>,
}

impl Ticket {
    /// Ready when the send finishes. Call `enable` on the future before looking at the record.
    pub fn finished(&self) -> tokio::sync::futures::Notified<'_> {
        self.wake.notified()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut waiting = self.events.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(one) = waiting.get_mut(&self.id) {
            one.callers -= 1;
            if one.callers == 0 {
                waiting.remove(&self.id);
            }
        }
    }
}
