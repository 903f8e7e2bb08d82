//! The once-only protocol: what is changed is asked of the writer, and answered once it is durable.

use super::*;

impl OnceOnly for Embedded {
    fn join(&self, node: Arc<str>) -> StoreResult<'_, Session> {
        self.ask(|answer| Job::Join(node, answer)).boxed()
    }

    fn recover<'a>(&'a self, by: &'a Session, now: Timestamp) -> StoreResult<'a, Recovered> {
        self.ask(move |answer| Job::Recover(by.clone(), now, answer)).boxed()
    }

    fn accept<'a>(&'a self, by: &'a Session, call: Accept) -> StoreResult<'a, Accepted> {
        async move {
            // Sealing and writing down what is large takes its time.
            let footprint: u64 = call.sends.iter().map(|new| new.spec.footprint()).sum();
            let (job, call) = if footprint <= INLINE_BYTES as u64 {
                (self.shared.accept_job(by, &call)?, call)
            } else {
                let by = by.clone();
                self.blocking(move |shared| Ok((shared.accept_job(&by, &call)?, call))).await?
            };
            let mut accepted = self.ask(|answer| Job::Accept(Box::new(job), answer)).await?;
            if let Accepted::New { started, .. } = &mut accepted
                && call.hold.is_none()
            {
                let begun = call.sends.into_iter().filter(|new| new.course == Course::Begin);
                started.extend(begun.map(|new| Started::new(new.id, new.tenant, new.spec, new.created_at, by.clone())));
            }
            Ok(accepted)
        }
        .boxed()
    }

    fn replay(&self, key: IdempotencyKey, now: Timestamp) -> StoreResult<'_, Option<Accepted>> {
        self.blocking(move |shared| {
            let hash = shared.keys.call(key.tenant.as_str(), &key.path, &key.key);
            shared.known_call(hash, &key, now)
        })
        .boxed()
    }

    fn end_execution<'a>(
        &'a self,
        by: &'a Session,
        tenant: TenantId,
        execution: ExecutionId,
        ending: Ending,
        at: Timestamp,
    ) -> StoreResult<'a, ExecutionAnswer> {
        async move {
            let hash = self.shared.keys.execution(tenant.as_str(), execution.as_str());
            let name = tenant.clone();
            let job = EndJob { by: by.clone(), tenant, execution, ending, at };
            let end = self.ask(|answer| Job::End(job, answer)).await?;
            // Also after an earlier call's end: that call may have been cut off before it came to this.
            let number = locked(&self.shared.waiting).known(&name);
            let ended = match (ending, number) {
                (_, None) => Vec::new(),
                (Ending::Discard, Some(number)) => self.end_discarded(number, Some(hash), at).await?,
                (Ending::Finish(_), Some(number)) => {
                    // Released they are; what cannot be lined up now is when it is claimed.
                    let lined_up = self.blocking(move |shared| claim::line_up(shared, number)).await;
                    lined_up.unwrap_or_else(|error| self.shared.tell_unread(&error));
                    Vec::new()
                }
            };
            Ok(ExecutionAnswer { end, ended })
        }
        .boxed()
    }

    fn claim<'a>(&'a self, by: &'a Session, wants: Vec<Want>, limit: usize) -> StoreResult<'a, Claimed> {
        async move {
            let session = by.clone();
            let claim = self.blocking(move |shared| claim::claim(shared, &session, &wants, limit)).await?;
            let ended = match self.end_by_store(claim.unreadable, true).await {
                Ok(ended) => ended,
                Err(error) => {
                    tracing::warn!(%error, "sends that cannot be read do not get their ends yet");
                    Vec::new()
                }
            };
            Ok(Claimed { sends: claim.sends, ended, more: claim.more })
        }
        .boxed()
    }

    fn give_back<'a>(&'a self, by: &'a Session, sends: Vec<SendId>) -> StoreResult<'a, ()> {
        self.ask(move |answer| Job::GiveBack(by.clone(), sends, answer)).boxed()
    }

    fn begin<'a>(
        &'a self,
        by: &'a Session,
        mut sends: Vec<Begin>,
    ) -> StoreResult<'a, Vec<Result<Started, StoreError>>> {
        async move {
            let mut specs: Vec<Result<Arc<SendSpec>, StoreError>> = Vec::with_capacity(sends.len());
            if sends.iter().all(|begin| begin.spec.is_some()) {
                specs.extend(sends.iter_mut().filter_map(|begin| begin.spec.take()).map(Ok));
            } else {
                let wanted: Vec<_> = sends.iter_mut().map(|begin| (begin.id, begin.spec.take())).collect();
                specs = self
                    .blocking(move |shared| {
                        let read = |(id, spec): (SendId, Option<Arc<SendSpec>>)| match spec {
                            Some(spec) => Ok(spec),
                            None => read::spec(shared, id).and_then(|spec| spec.ok_or(StoreError::NoSuchSend)),
                        };
                        Ok(wanted.into_iter().map(read).collect())
                    })
                    .await?;
            }
            let job = |begin: &Begin| BeginJob {
                id: begin.id.0.as_u128(),
                tenant: self.shared.keys.tenant(begin.tenant.as_str()),
                at: wire::nanoseconds(begin.at),
            };
            let readable = sends.iter().zip(&specs).filter(|(_, spec)| spec.is_ok());
            let jobs = readable.map(|(begin, _)| job(begin)).collect();
            let mut begun = self.ask(|answer| Job::Begin(by.clone(), jobs, answer)).await?.into_iter();
            let answers = sends.into_iter().zip(specs).map(|(begin, spec)| {
                let spec = spec?;
                begun.next().unwrap_or(Err(StoreError::NoSuchSend))?;
                Ok(Started::new(begin.id, begin.tenant, spec, begin.at, by.clone()))
            });
            Ok(answers.collect())
        }
        .boxed()
    }

    fn finish<'a>(&'a self, by: &'a Session, finished: Finished) -> StoreResult<'a, TailPlace> {
        async move {
            let job = FinishJob::of(&self.shared.keys, &finished);
            self.ask(|answer| Job::Finish(by.clone(), Box::new(job), answer)).await.map(TailPlace::from_bits)
        }
        .boxed()
    }

    fn release_overdue<'a>(
        &'a self,
        by: &'a Session,
        held_for: SignedDuration,
        now: Timestamp,
        limit: usize,
    ) -> StoreResult<'a, Released> {
        async move {
            self.shared.in_force(&locked(&self.shared.waiting), by)?;
            let overdue = self.blocking(move |shared| Ok(claim::overdue(shared, held_for, now, limit))).await?;
            self.tell_later(self.end_by_store(overdue.unreadable, false).await?);
            overdue.nameless.into_iter().for_each(|execution| locked(&self.shared.waiting).forget_age(execution));
            let ending = Ending::Finish(FinishedBy::HoldLimit);
            let ends = overdue.executions.into_iter().map(|(tenant, execution)| async move {
                let (name, of) = (tenant.clone(), execution.clone());
                let answer = self.end_execution(by, tenant, execution, ending, now).await?;
                Ok(match answer.end {
                    ExecutionEnd::Done { count, first: true } => Some((name, of, count)),
                    _ => None,
                })
            });
            let ended: Result<Vec<_>, StoreError> = futures_util::future::join_all(ends).await.into_iter().collect();
            Ok(Released { executions: ended?.into_iter().flatten().collect(), more: overdue.more })
        }
        .boxed()
    }

    fn expire<'a>(&'a self, by: &'a Session, now: Timestamp, limit: usize) -> StoreResult<'a, Swept> {
        async move {
            self.shared.in_force(&locked(&self.shared.waiting), by)?;
            let mut swept = self.sweep(now, limit).await?;
            swept.ended.append(&mut locked(&self.shared.untold));
            Ok(swept)
        }
        .boxed()
    }

    fn end_suspended<'a>(
        &'a self,
        by: &'a Session,
        suspensions: Arc<Suspensions>,
        from: Option<SweepPlace>,
        now: Timestamp,
        limit: usize,
    ) -> StoreResult<'a, Swept> {
        async move {
            self.shared.in_force(&locked(&self.shared.waiting), by)?;
            let swept = self.blocking(move |shared| Ok(claim::suspended(shared, &suspensions, from, now, limit)));
            let (ends, next) = swept.await?;
            Ok(Swept { ended: self.end_by_store(ends, false).await?, next })
        }
        .boxed()
    }

    fn waiting_of(&self, tenant: &TenantId) -> WaitingCount {
        locked(&self.shared.waiting).count_of(tenant)
    }

    fn waiting_in_all(&self) -> WaitingCount {
        locked(&self.shared.waiting).count_of_all()
    }

    fn waiting(&self) -> Vec<(TenantId, WaitingCount)> {
        locked(&self.shared.waiting).counts()
    }
}
