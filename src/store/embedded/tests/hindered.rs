//! What cannot be read or written for a while costs nobody else's sends anything, and is come back to.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::*;
use crate::policy::Suspensions;
use crate::store::NewSend;

/// Each send in a segment of its own, so that one can be unreadable.
fn apart() -> OnDisk {
    OnDisk::with(SegmentLimits { sends: 1, ..OnDisk::limits() })
}

impl OnDisk {
    /// Rows of this send's segment cannot be read until [`Self::readable`].
    fn unreadable(&self, id: SendId) -> Arc<Segment> {
        let (segment, ..) = self.shared().find(id).expect("readable").expect("known");
        segment.failing_reads.store(u32::MAX, Ordering::Release);
        segment
    }

    async fn waits(&self, draft: &Draft) -> SendId {
        let send = NewSend { course: Course::Wait, ..draft.send() };
        let id = send.id;
        accept_new(self.store(), self.session(), call(vec![send], None)).await;
        id
    }

    async fn held(&self, draft: &Draft, name: &str) -> SendId {
        let send = draft.clone().in_execution(name).send();
        let id = send.id;
        accept_new(self.store(), self.session(), call(vec![send], Some(name))).await;
        id
    }

    async fn claimed_of(&self, wants: &[(&str, usize)]) -> Vec<SendId> {
        let wants = wants.iter().map(|(name, room)| Want { tenant: tenant(name), room: *room, full: Vec::new() });
        let claimed = self.store().claim(self.session(), wants.collect(), 100).await.expect("claimed");
        assert!(!claimed.more && claimed.ended.is_empty());
        claimed.sends.into_iter().map(|send| send.id).collect()
    }

    async fn expired(&self, second: i64) -> Vec<SendId> {
        let mut ended = Vec::new();
        loop {
            let swept = self.store().expire(self.session(), at(second), 2).await.expect("swept");
            ended.extend(swept.ended.iter().map(|end| end.id));
            if swept.next.is_none() {
                ended.sort();
                return ended;
            }
        }
    }

    async fn code_of(&self, id: SendId) -> Option<Code> {
        let record = self.store().record(Reach::All, id, false).await.expect("readable").expect("known");
        record.ended.and_then(|ended| ended.error).map(|error| error.code)
    }

    /// It was told, and nothing else was.
    #[track_caller]
    fn told_of(&self, segment: &Segment) {
        let damage = self.store().damage();
        assert!(
            !damage.is_empty() && damage.iter().all(|line| line.contains(&format!("{:08}/table", segment.number))),
            "{damage:?}"
        );
    }
}

fn readable(segment: &Segment) {
    segment.failing_reads.store(0, Ordering::Release);
}

#[tokio::test]
async fn a_read_error_in_the_middle_of_a_claim_costs_nobody_elses_sends() {
    let subject = apart();
    let mut all = Vec::new();
    for name in ["a", "a", "b", "b", "b", "c"] {
        all.push(subject.waits(&draft().of(name)).await);
    }
    let segment = subject.unreadable(all[2]);
    assert_eq!(subject.claimed_of(&[("a", 9), ("b", 1), ("c", 9)]).await, [all[0], all[1], all[3], all[5]]);
    assert_eq!(subject.claimed_of(&[("b", 9)]).await, [all[4]]);
    assert_eq!(subject.claimed_of(&[("b", 9)]).await, []);
    let count = subject.store().waiting_of(&tenant("b"));
    assert_eq!((count.queued, count.unclaimed), (3, 1));
    subject.told_of(&segment);
    readable(&segment);
    subject.store().give_back(subject.session(), vec![all[3]]).await.expect("given back");
    assert_eq!(subject.claimed_of(&[("b", 9)]).await, [all[2], all[3]], "in its place");
}

#[tokio::test]
async fn a_claim_brings_what_is_small_and_can_be_read() {
    let subject = apart();
    let of = |bytes: usize, secret| Draft { body: Some(Bytes::from(vec![b'x'; bytes])), secret, ..draft() };
    let drafts = [of(9, None), of(9, Some("Bearer token")), of(8 << 10, None), of(64 << 10, None), of(9, None)];
    let mut all = Vec::new();
    for draft in &drafts {
        all.push(subject.waits(draft).await);
    }
    // Its request is gone, while the log tells of it.
    let (segment, ..) = subject.shared().find(all[4]).expect("readable").expect("known");
    std::fs::write(segment.file("bodies"), [0; 64]).expect("damaged");
    let want = Want { tenant: tenant("acme"), room: 9, full: Vec::new() };
    let claimed = subject.store().claim(subject.session(), vec![want], 9).await.expect("claimed").sends;
    let brought: Vec<_> = claimed.iter().map(|send| send.spec.is_some()).collect();
    assert_eq!(brought, [true, true, true, false, false]);
    for ((pending, draft), readable) in claimed.iter().zip(&drafts).zip([true, true, true, true, false]) {
        let begin = Begin { spec: pending.spec.clone(), ..begin_of(pending.id, draft, at(2)) };
        let begun = begin_one(subject.store(), subject.session(), begin).await;
        assert_eq!(begun.as_ref().ok().map(Started::spec), readable.then_some(&draft.send().spec), "{begun:?}");
    }
    // However many are claimed at once, of how many tenants.
    for n in 0..24 {
        subject.waits(&of(8 << 10, None).of(["a", "b"][n % 2])).await;
    }
    let wants = ["a", "b"].map(|name| Want { tenant: tenant(name), room: 99, full: Vec::new() });
    let claimed = subject.store().claim(subject.session(), wants.to_vec(), 99).await.expect("claimed").sends;
    let brought = claimed.iter().filter(|send| send.spec.is_some()).count();
    assert_eq!((claimed.len(), brought), (24, 7), "64 KiB of them");
}

#[tokio::test]
async fn what_expires_ends_beside_a_row_that_cannot_be_read() {
    let subject = apart();
    let mut all = Vec::new();
    for _ in 0..5 {
        all.push(subject.waits(&draft()).await);
    }
    let segment = subject.unreadable(all[1]);
    assert_eq!(subject.expired(60).await, [all[0], all[2], all[3], all[4]]);
    subject.told_of(&segment);
    readable(&segment);
    assert_eq!(subject.expired(61).await, [], "it is left alone for a while");
    assert_eq!(subject.expired(120).await, [all[1]]);
    assert_eq!(subject.store().waiting_in_all(), WaitingCount::default());
}

#[tokio::test]
async fn what_is_suspended_ends_beside_a_row_that_cannot_be_read() {
    let subject = apart();
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(subject.waits(&draft()).await);
    }
    let segment = subject.unreadable(all[1]);
    let suspend = async || {
        let mut stopped = Suspensions::default();
        stopped.tenants.insert(tenant("acme"), Arc::from("spam"));
        let swept = subject.store().end_suspended(subject.session(), Arc::new(stopped), None, at(1), 9).await;
        let swept = swept.expect("swept");
        assert_eq!(swept.next, None);
        swept.ended.iter().map(|end| end.id).collect::<Vec<_>>()
    };
    assert_eq!(suspend().await, [all[0], all[2]]);
    subject.told_of(&segment);
    readable(&segment);
    assert_eq!(suspend().await, [all[1]]);
}

#[tokio::test]
async fn executions_are_released_beside_a_row_that_cannot_be_read() {
    let subject = apart();
    let mut all = Vec::new();
    for (name, second) in [("a", 1), ("b", 2), ("c", 3)] {
        all.push(subject.held(&draft().created(at(second)), name).await);
        all.push(subject.held(&draft().created(at(second)), name).await);
    }
    let segment = subject.unreadable(all[2]);
    let release = async || {
        let released = subject
            .store()
            .release_overdue(subject.session(), SignedDuration::from_secs(1), at(10), 9)
            .await
            .expect("released");
        assert!(!released.more);
        released.executions.iter().map(|(_, name, count)| (name.to_string(), *count)).collect::<Vec<_>>()
    };
    // Its name stands with the send that cannot be read, so that it is not even known which it is.
    assert_eq!(release().await, [("a".to_owned(), 2), ("c".to_owned(), 2)]);
    subject.told_of(&segment);
    assert_eq!(subject.claimed_of(&[("acme", 9)]).await, [all[0], all[1], all[4], all[5]]);
    readable(&segment);
    assert_eq!(release().await, [("b".to_owned(), 2)]);
    assert_eq!(subject.claimed_of(&[("acme", 9)]).await, [all[2], all[3]]);
}

#[tokio::test]
async fn what_one_execution_cannot_read_of_its_sends_keeps_none_of_the_others() {
    for ending in [Ending::Finish(FinishedBy::Call), Ending::Discard] {
        let subject = apart();
        let mut all = Vec::new();
        for name in ["a", "a", "a", "b"] {
            all.push(subject.held(&draft(), name).await);
        }
        let segment = subject.unreadable(all[1]);
        let (store, session) = (subject.store(), subject.session());
        let end =
            async |name: &str| end_execution(store, session, tenant("acme"), execution(name), ending, at(2)).await;
        let first = end("a").await;
        let other = end("b").await;
        subject.told_of(&segment);
        assert_eq!(other, Ok(ExecutionEnd::Done { count: 1, first: true }));
        if ending == Ending::Discard {
            assert!(matches!(first, Err(StoreError::CannotRead(_))), "{first:?}");
            for id in [all[0], all[2], all[3]] {
                assert_eq!(subject.code_of(id).await, Some(Code::Discarded));
            }
            readable(&segment);
            // By itself, and those are told of whose callers have heard of the error.
            let ended = subject.expired(3).await;
            assert!(ended.contains(&all[0]) && ended.contains(&all[1]) && ended.contains(&all[2]), "{ended:?}");
            assert_eq!(subject.code_of(all[1]).await, Some(Code::Discarded));
            assert_eq!(end("a").await, Ok(ExecutionEnd::Done { count: 3, first: false }));
        } else {
            assert_eq!(first, Ok(ExecutionEnd::Done { count: 3, first: true }));
            assert_eq!(subject.claimed_of(&[("acme", 9)]).await, [all[0], all[2], all[3]]);
            readable(&segment);
            assert_eq!(subject.claimed_of(&[("acme", 9)]).await, [all[1]]);
        }
        assert_eq!((store.waiting_in_all().held, store.waiting_in_all().unclaimed), (0, 0));
    }
}

#[tokio::test]
async fn what_the_last_process_left_behind_ends_beside_a_row_that_cannot_be_read() {
    let subject = apart();
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(accept_one(subject.store(), subject.session(), &draft()).await);
        let begin = begin_of(all[all.len() - 1], &draft(), at(1));
        begin_one(subject.store(), subject.session(), begin).await.expect("begun");
    }
    let subject = subject.crash().await;
    let (store, session) = (subject.store(), subject.session());
    let segment = subject.unreadable(all[1]);
    assert_eq!(store.recover(session, at(9)).await.map(|recovered| recovered.interrupted), Ok(2));
    subject.told_of(&segment);
    assert_eq!(subject.claimed_of(&[("acme", 9)]).await, [], "it can begin no more");
    readable(&segment);
    assert_eq!(store.recover(session, at(9)).await.map(|recovered| recovered.interrupted), Ok(1));
}

#[tokio::test]
async fn a_discard_whose_ends_could_not_be_written_is_come_back_to() {
    let subject = OnDisk::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    let held = [subject.held(&draft(), "e").await, subject.held(&draft(), "e").await];
    let discard = async || end_execution(store, session, tenant("acme"), execution("e"), Ending::Discard, at(2)).await;
    // The execution's end is written, and then the disk is full.
    let (tenant_id, execution_id) = (tenant("acme"), execution("e"));
    let (ending, at_two, by) = (Ending::Discard, at(2), session.clone());
    let job = EndJob { by, tenant: tenant_id, execution: execution_id, ending, at: at_two };
    store.ask(|answer| Job::End(job, answer)).await.expect("ended");
    subject.refuse(&[(Fault::Write, io::ErrorKind::StorageFull)]);
    let refused = discard().await;
    assert!(matches!(refused, Err(StoreError::CannotWrite(_))), "{refused:?}");
    assert!(matches!(store.expire(session, at(3), 9).await, Err(StoreError::CannotWrite(_))));
    let state = async |id| store.record(Reach::All, id, false).await.unwrap().unwrap().state;
    assert_ne!(state(held[0]).await, crate::record::State::Done);
    subject.refuse(&[]);
    subject.until_healthy().await;
    assert_eq!(subject.expired(4).await, held, "nobody asks for it again");
    assert_eq!(subject.code_of(held[1]).await, Some(Code::Discarded));
    assert_eq!(subject.expired(5).await, []);
    assert_eq!(discard().await, Ok(ExecutionEnd::Done { count: 2, first: false }));
}

#[tokio::test]
async fn no_try_that_fails_on_a_full_disk_puts_a_send_in_line_once_more() {
    let subject = OnDisk::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    for _ in 0..3 {
        subject.waits(&draft()).await;
    }
    subject.refuse(&[(Fault::Write, io::ErrorKind::StorageFull)]);
    let mut stopped = Suspensions::default();
    stopped.tenants.insert(tenant("acme"), Arc::from("spam"));
    let stopped = Arc::new(stopped);
    for turn in 0..10 {
        let swept = store.end_suspended(session, stopped.clone(), None, at(1), 9).await;
        assert!(matches!(swept, Err(StoreError::CannotWrite(_))), "{swept:?}");
        let swept = store.expire(session, at(100 + turn), 9).await;
        assert!(matches!(swept, Err(StoreError::CannotWrite(_))), "{swept:?}");
        // Also past the look that spares the try.
        let (ends, _) = claim::expired(subject.shared(), at(100 + turn), 9);
        assert_eq!(ends.len(), 3);
        assert!(store.end_by_store(ends, true).await.is_err());
    }
    let in_line = {
        let mut waiting = locked(&subject.shared().waiting);
        let number = waiting.known(&tenant("acme")).expect("it waits");
        waiting.look(number, 1000, &HashSet::new()).len()
    };
    assert_eq!(in_line, 3);
}

#[tokio::test]
async fn an_execution_that_ends_while_its_sends_are_suspended_leaves_counts_right() {
    let finish = Ending::Finish(FinishedBy::Call);
    for (ending, in_one_batch) in [(finish, false), (finish, true), (Ending::Discard, false), (Ending::Discard, true)] {
        let subject = OnDisk::fresh().await;
        let (store, session) = (subject.store(), subject.session());
        let stops = draft().in_workflow("stopped");
        let ids = [subject.held(&stops, "e").await, subject.held(&draft(), "e").await, subject.held(&stops, "e").await];
        let mut stopped = Suspensions::default();
        stopped.workflows.insert((tenant("acme"), Arc::from("stopped")), Arc::from("spam"));
        let (ends, _) = claim::suspended(subject.shared(), &stopped, None, at(1), 9);
        assert_eq!(ends.len(), 2);
        let mut ending_it = Box::pin(end_execution(store, session, tenant("acme"), execution("e"), ending, at(2)));
        let mut suspending = Box::pin(store.end_by_store(ends, false));
        if in_one_batch {
            let hindered = locked(&subject.shared().waiting);
            assert!((&mut ending_it).now_or_never().is_none() && (&mut suspending).now_or_never().is_none());
            drop(hindered);
            let (ended, suspended) = tokio::join!(ending_it, suspending);
            assert!(ended.is_ok() && suspended.is_ok(), "{ended:?}, {suspended:?}");
        } else {
            ending_it.await.expect("ended");
            suspending.await.expect("those that have no end yet");
        }
        let count = store.waiting_of(&tenant("acme"));
        let left = u64::from(ending == finish);
        let what = format!("{ending:?}, {in_one_batch}");
        assert_eq!((count.held, count.queued, count.unclaimed), (0, left, left), "{what}");
        assert_eq!(store.waiting_in_all(), count, "{what}");
        assert_eq!(subject.claimed_of(&[("acme", 9)]).await, if ending == finish { vec![ids[1]] } else { vec![] });
        for id in [ids[0], ids[2]] {
            assert!(subject.code_of(id).await.is_some(), "{what}");
        }
        let subject = subject.crash().await;
        assert_eq!(subject.store().waiting_of(&tenant("acme")).queued, left, "{what}");
    }
}

/// The writer is kept from the state until all jobs have arrived, so that they are one batch.
#[tokio::test]
async fn submits_and_their_executions_end_in_one_batch_are_taken_in_order() {
    const CALLS: usize = 5;
    for ending in [Ending::Finish(FinishedBy::Call), Ending::Discard] {
        for before in 0..=CALLS {
            let subject = OnDisk::fresh().await;
            let (store, session) = (subject.store(), subject.session());
            let calls: Vec<_> =
                (0..CALLS).map(|_| vec![draft().in_execution("e").send(), draft().in_execution("e").send()]).collect();
            let ids: Vec<_> = calls.iter().flatten().map(|send| send.id).collect();
            let submits = calls.into_iter().map(|sends| store.accept(session, call(sends, Some("e"))));
            let mut submits: Vec<_> = submits.map(Box::pin).collect();
            let end = |ending| Box::pin(store.end_execution(session, tenant("acme"), execution("e"), ending, at(2)));
            let mut ended = end(ending);
            let other = if ending == Ending::Discard { Ending::Finish(FinishedBy::Call) } else { Ending::Discard };
            let mut too_late = end(other);
            {
                let _hindered = locked(&subject.shared().waiting);
                let (first, rest) = submits.split_at_mut(before);
                assert!(first.iter_mut().all(|submit| submit.now_or_never().is_none()));
                assert!((&mut ended).now_or_never().is_none() && (&mut too_late).now_or_never().is_none());
                assert!(rest.iter_mut().all(|submit| submit.now_or_never().is_none()));
            }
            let submitted = futures_util::future::join_all(submits);
            let (submitted, ended, too_late) = tokio::join!(submitted, ended, too_late);
            let what = format!("{ending:?} after {before} calls");
            for (at, submit) in submitted.into_iter().enumerate() {
                match submit {
                    Ok(Accepted::New { .. }) => assert!(at < before, "{what}: {at}"),
                    other => assert_eq!(other, Ok(Accepted::Ended(ending.state())), "{what}: {at}"),
                }
            }
            let mine = &ids[..2 * before];
            let ended = ended.expect("ended");
            assert_eq!(ended.end, ExecutionEnd::Done { count: mine.len() as u64, first: true }, "{what}");
            assert_eq!(too_late.map(|answer| answer.end), Ok(ExecutionEnd::Conflict(ending.state())), "{what}");
            let is_discard = ending == Ending::Discard;
            let waits = if is_discard { vec![] } else { mine.to_vec() };
            assert_eq!(store.waiting_in_all().held, 0, "{what}");
            assert_eq!(claimed(store, session).await, waits, "{what}");
            for id in mine {
                assert_eq!(subject.code_of(*id).await, is_discard.then_some(Code::Discarded), "{what}");
            }
            let subject = subject.crash().await;
            subject.store().recover(subject.session(), at(9)).await.expect("recovered");
            assert_eq!(subject.store().waiting_in_all().held, 0, "{what}");
            assert_eq!(claimed(subject.store(), subject.session()).await, waits, "{what}");
        }
    }
}
