//! What is remembered of sends, and the little beside them: read beside the writer.

use super::*;

impl Records for Embedded {
    fn record(&self, reach: Reach, id: SendId, bodies: bool) -> StoreResult<'_, Option<Record>> {
        self.blocking(move |shared| {
            let record = read::record(shared, id, bodies)?;
            Ok(record.filter(|record| reach.takes_in(&record.tenant)))
        })
        .boxed()
    }

    fn list(&self, filter: Filter, cursor: Option<String>, limit: usize) -> StoreResult<'_, Page> {
        self.blocking(move |shared| list::list(shared, &filter, cursor.as_deref(), limit)).boxed()
    }

    fn execution(
        &self,
        tenant: TenantId,
        execution: ExecutionId,
        cursor: Option<String>,
        limit: usize,
    ) -> StoreResult<'_, Option<Execution>> {
        self.blocking(move |shared| read::execution(shared, &tenant, execution, cursor.as_deref(), limit)).boxed()
    }

    fn executions(
        &self,
        filter: ExecutionFilter,
        cursor: Option<String>,
        limit: usize,
    ) -> StoreResult<'_, ExecutionPage> {
        self.blocking(move |shared| executions::executions(shared, &filter, cursor.as_deref(), limit)).boxed()
    }

    fn finished_after(
        &self,
        place: TailPlace,
        filter: Filter,
        limit: usize,
    ) -> StoreResult<'_, (Vec<TailItem>, TailPlace)> {
        self.blocking(move |shared| read::finished_after(shared, place.to_bits(), &filter, limit)).boxed()
    }

    fn newest_place(&self) -> StoreResult<'_, TailPlace> {
        let newest = self.shared.last_seq.load(Ordering::Acquire);
        std::future::ready(Ok(TailPlace::from_bits(newest))).boxed()
    }

    fn outcomes_of_the_hour(&self, now: Timestamp) -> StoreResult<'_, HashMap<TenantId, HashMap<Outcome, u64>>> {
        self.blocking(move |shared| Ok(shared.hour.outcomes(now))).boxed()
    }

    fn stats(&self, asked: StatsAsked) -> StoreResult<'_, Stats> {
        self.blocking(move |shared| stats::stats(shared, &asked)).boxed()
    }

    fn retain(&self, now: Timestamp) -> StoreResult<'_, ()> {
        async move {
            let gone = self.ask(|answer| Job::Retain(now, answer)).await?;
            // Freeing the blocks of large files takes its time; nobody waits for it but this caller.
            self.blocking(move |shared| {
                shared.tunnels.retain(now);
                shared.batches.retain(now, shared.settings.max_bytes / BATCHES_SHARE);
                gone.iter().for_each(|directory| retain::remove(directory));
                Ok(())
            })
            .await
        }
        .boxed()
    }

    fn health(&self) -> Result<(), StoreError> {
        self.shared.health()
    }

    fn damage(&self) -> Vec<String> {
        locked(&self.shared.damage).clone()
    }

    fn close(&self) -> StoreResult<'_, ()> {
        async move {
            if self.shared.closed.load(Ordering::Acquire) {
                return Ok(());
            }
            let done = self.ask(Job::Close).await;
            let threads: Vec<_> = locked(&self.threads).drain(..).collect();
            let _ =
                tokio::task::spawn_blocking(move || threads.into_iter().for_each(|thread| drop(thread.join()))).await;
            *locked(&self.lock) = None;
            done
        }
        .boxed()
    }
}

impl Tunnels for Embedded {
    fn note_tunnels(&self, tunnels: Vec<Arc<Tunnel>>) -> StoreResult<'_, ()> {
        self.blocking(move |shared| shared.tunnels.note(&tunnels)).boxed()
    }

    fn tunnels(&self, filter: TunnelFilter, cursor: Option<String>, limit: usize) -> StoreResult<'_, TunnelPage> {
        self.blocking(move |shared| shared.tunnels.list(&filter, cursor.as_deref(), limit)).boxed()
    }

    fn end_tunnels_left_open<'a>(&'a self, _node: &'a str, now: Timestamp) -> StoreResult<'a, u64> {
        self.blocking(move |shared| shared.tunnels.end_left_open(now)).boxed()
    }

    fn room_for_tunnel(&self, tenant: &TenantId) -> Result<(), NoRoom> {
        self.shared.tunnels.room(tenant)
    }
}

/// Of `[store] max_bytes`, what files of batches may take before the oldest days of them go.
const BATCHES_SHARE: u64 = 16;

impl Batches for Embedded {
    fn put_batch<'a>(&'a self, by: &'a Session, batch: Arc<Batch>) -> StoreResult<'a, ()> {
        async move {
            self.shared.in_force(&locked(&self.shared.waiting), by)?;
            self.blocking(move |shared| {
                shared.batches.put(&batch)?;
                if batch.state == BatchState::Done {
                    let mut batched = locked(&shared.batched);
                    for send in &batch.sends {
                        batched.remove(&send.0.as_u128());
                    }
                }
                Ok(())
            })
            .await
        }
        .boxed()
    }

    fn batch(&self, reach: Reach, id: BatchId) -> StoreResult<'_, Option<Batch>> {
        self.blocking(move |shared| Ok(shared.batches.find(id)?.filter(|batch| reach.takes_in(&batch.tenant)))).boxed()
    }

    fn open_batches(&self) -> StoreResult<'_, Vec<Batch>> {
        self.blocking(|shared| {
            let (batches, unread) = shared.batches.unfinished()?;
            unread.iter().for_each(|error| shared.tell_unread(error));
            Ok(batches)
        })
        .boxed()
    }

    fn specs(&self, sends: Vec<SendId>) -> StoreResult<'_, Vec<Option<Arc<SendSpec>>>> {
        self.blocking(move |shared| {
            let one = |id| match read::spec(shared, id) {
                Err(StoreError::Damaged(why)) => {
                    shared.tell_damage(why.to_string());
                    Ok(None)
                }
                read => read,
            };
            sends.into_iter().map(one).collect()
        })
        .boxed()
    }
}

impl Registry for Embedded {
    fn redact_key(&self) -> RedactKey {
        self.shared.keys.redact_key()
    }

    fn suspend(&self, suspension: Suspension) -> StoreResult<'_, ()> {
        self.blocking(move |shared| shared.change_state(|state| state.suspensions.push(suspension))).boxed()
    }

    fn lift(&self, id: SendId, at: Timestamp, by: String) -> StoreResult<'_, bool> {
        self.blocking(move |shared| {
            shared.change_state(|state| crate::store::lift_in(&mut state.suspensions, id, at, by))
        })
        .boxed()
    }

    fn suspensions(&self) -> StoreResult<'_, Vec<Suspension>> {
        let newest_first = locked(&self.shared.state).suspensions.iter().rev().cloned().collect();
        std::future::ready(Ok(newest_first)).boxed()
    }

    fn publish(&self, addresses: Vec<IpAddr>, digest: Option<[u8; 32]>, now: Timestamp) -> StoreResult<'_, Published> {
        self.blocking(move |shared| {
            shared.change_state(|state| {
                let published = &mut state.published;
                published.add(addresses, now);
                if digest.is_some() && digest != state.digest {
                    state.digest = digest;
                    published.sync_token = crate::store::next_sync_token(published.sync_token, now);
                }
                published.clone()
            })
        })
        .boxed()
    }
}
