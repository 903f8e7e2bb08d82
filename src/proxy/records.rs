//! The way of tunnels into the store: gathered for a moment, and written together. A crash loses no more than that moment.
//!
//! While the store does not take them, nothing more is opened: of each tunnel it must be known afterwards that it was.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::refusal::Refusal;
use crate::limits::{TUNNELS_NOTED_AT_ONCE, TUNNELS_NOTED_EVERY, TUNNELS_UNNOTED_MAX};
use crate::record::Tunnel;
use crate::send::TenantId;
use crate::store::{Store, StoreError};

pub struct Recorder {
    store: Arc<dyn Store>,
    /// The last word on each that is not in the store yet.
    waiting: Mutex<BTreeMap<u128, Arc<Tunnel>>>,
    failing: AtomicBool,
    /// One at a time writes.
    writing: tokio::sync::Mutex<()>,
}

impl Recorder {
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, waiting: Mutex::default(), failing: AtomicBool::new(false), writing: Default::default() }
    }

    /// Whether one more of this tenant may be opened.
    pub fn admits(&self, tenant: &TenantId) -> Result<(), Refusal> {
        if self.failing.load(Ordering::Relaxed) || self.waiting().len() >= TUNNELS_UNNOTED_MAX {
            return Err(Refusal::unrecorded());
        }
        self.store.room_for_tunnel(tenant).map_err(Refusal::no_room)
    }

    pub fn note(&self, tunnel: Tunnel) {
        self.waiting().insert(tunnel.id.as_u128(), Arc::new(tunnel));
    }

    /// Writes what waits.
    pub async fn write(&self) -> Result<(), StoreError> {
        let _one = self.writing.lock().await;
        let mut taken = std::mem::take(&mut *self.waiting());
        loop {
            let next = taken.keys().nth(TUNNELS_NOTED_AT_ONCE).copied();
            let rest = next.map(|next| taken.split_off(&next)).unwrap_or_default();
            if taken.is_empty() && !self.failing.load(Ordering::Relaxed) {
                return Ok(());
            }
            let noted = self.note_all(&taken).await;
            if noted.is_err() {
                let mut waiting = self.waiting();
                for (id, tunnel) in taken.into_iter().chain(rest) {
                    waiting.entry(id).or_insert(tunnel);
                }
                return noted;
            }
            taken = rest;
        }
    }

    async fn note_all(&self, tunnels: &BTreeMap<u128, Arc<Tunnel>>) -> Result<(), StoreError> {
        let noted = self.store.note_tunnels(tunnels.values().cloned().collect()).await;
        if self.failing.swap(noted.is_err(), Ordering::Relaxed) != noted.is_err() {
            match &noted {
                Ok(()) => tracing::info!("the store takes records of tunnels again"),
                Err(error) => tracing::error!(%error, "the store takes no records of tunnels: none is opened"),
            }
        }
        noted
    }

    pub async fn run(self: Arc<Self>, mut stopped: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(TUNNELS_NOTED_EVERY) => {}
                _ = stopped.wait_for(|stopped| *stopped) => return,
            }
            // Told by then, and tried again.
            let _ = self.write().await;
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, BTreeMap<u128, Arc<Tunnel>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance::tunnels::{ended, opened};
    use crate::store::memory::Memory;
    use crate::store::{Reach, Records, TunnelFilter, Tunnels};

    #[tokio::test]
    async fn what_the_store_does_not_take_waits_and_nothing_more_is_opened_meanwhile() {
        let store = Arc::new(Memory::new());
        let recorder = Recorder::new(store.clone());
        let acme = TenantId::new("acme");
        let (one, two) = (opened("acme", "one.net", 1), opened("acme", "two.net", 2));
        recorder.note(Tunnel::clone(&one));
        recorder.note(Tunnel::clone(&ended(&one, 3)));
        recorder.write().await.unwrap();
        let page = store.tunnels(TunnelFilter::of(Reach::All), None, 9).await.unwrap();
        assert_eq!(page.tunnels, [Tunnel::clone(&ended(&one, 3))]);
        assert!(recorder.admits(&acme).is_ok());

        store.close().await.unwrap();
        recorder.note(Tunnel::clone(&two));
        assert!(recorder.write().await.is_err());
        assert_eq!(recorder.admits(&acme).unwrap_err().status().as_u16(), 503);
        // What ended meanwhile is not put back as it was.
        recorder.note(Tunnel::clone(&ended(&two, 4)));
        assert!(recorder.write().await.is_err());
        let waiting: Vec<_> = recorder.waiting().values().cloned().collect();
        assert_eq!(waiting, [ended(&two, 4)]);
    }

    #[tokio::test]
    async fn many_are_written_a_few_at_a_time() {
        let store = Arc::new(Memory::new());
        let recorder = Recorder::new(store.clone());
        let tunnels: Vec<_> =
            (0..3 * TUNNELS_NOTED_AT_ONCE as i64 + 1).map(|number| opened("acme", "one.net", number)).collect();
        tunnels.iter().for_each(|tunnel| recorder.note(Tunnel::clone(tunnel)));
        recorder.write().await.unwrap();
        let page = store.tunnels(TunnelFilter::of(Reach::All), None, 99).await.unwrap();
        assert_eq!(page.tunnels.len(), tunnels.len());
        assert!(recorder.waiting().is_empty());
    }

    #[test]
    fn so_many_wait_and_no_more() {
        let recorder = Recorder::new(Arc::new(Memory::new()));
        let acme = TenantId::new("acme");
        for number in 0..TUNNELS_UNNOTED_MAX {
            assert!(recorder.admits(&acme).is_ok(), "{number}");
            recorder.note(Tunnel::clone(&opened("acme", "one.net", 1)));
        }
        assert!(recorder.admits(&acme).is_err());
    }
}
