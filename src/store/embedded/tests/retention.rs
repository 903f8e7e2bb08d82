//! What goes when its time is over, and what stays.

use super::*;
use crate::record::FinishedBy;
use crate::store::NewSend;

/// A store with segments of two sends, six done sends a day apart, and one that waits in the newest.
async fn aged(change: impl FnOnce(&mut StoreSettings)) -> (OnDisk, Vec<SendId>) {
    let directory = tempfile::tempdir().unwrap();
    let mut settings = settings(directory.path());
    change(&mut settings);
    let limits = SegmentLimits { sends: 2, ..OnDisk::limits() };
    let store = Embedded::open_with(&settings, conformance::NODE, limits).unwrap();
    let session = Some(joined_at_once(&store));
    let subject = OnDisk { store: Some(store), session, directory, limits };
    let mut ids = Vec::new();
    for day in 0..6 {
        let id = accept_one(subject.store(), subject.session(), &draft().created(days(day))).await;
        subject.store().finish(subject.session(), finished(id, 200, days(day))).await.expect("ended");
        ids.push(id);
    }
    ids.push(accept_one(subject.store(), subject.session(), &draft().created(days(6))).await);
    (subject, ids)
}

fn days(days: i64) -> Timestamp {
    at(days * 24 * 3600)
}

async fn has_bodies(subject: &OnDisk, id: SendId) -> bool {
    let record = subject.store().record(Reach::All, id, true).await.unwrap().expect("kept");
    record.request.body.is_some_and(|body| body.bytes.is_some())
}

#[tokio::test]
async fn records_and_bodies_go_by_age_segment_by_segment() {
    let (subject, ids) = aged(|_| {}).await;
    subject.store().retain(days(6)).await.expect("retained");
    assert_eq!(subject.all().await, ids, "records are young");
    for (day, &id) in ids.iter().enumerate() {
        assert_eq!(has_bodies(&subject, id).await, day >= 2, "three days and the rest of their segment: day {day}");
    }
    let older = subject.store().record(Reach::All, ids[0], true).await.unwrap().unwrap();
    assert_eq!(older.response.map(|answer| (answer.body.bytes, answer.body.total)), Some((None, 9)));
    let before = bytes_of(subject.store());
    subject.store().retain(days(32)).await.expect("retained");
    assert_eq!(subject.all().await, ids[2..], "the first segment is past thirty days");
    assert!(bytes_of(subject.store()) < before);
    assert!(!subject.file("log").exists());
    let (items, _) = subject.store().finished_after(TailPlace::START, Filter::of(Reach::All), 10).await.unwrap();
    assert_eq!(items.iter().map(|item| item.record.id).collect::<Vec<_>>(), ids[2..6]);
    let (subject, recovered) = subject.harmed(|_| {}).await;
    assert_eq!(recovered, Recovered::default());
    assert_eq!(subject.all().await, ids[2..]);
}

/// How sends may wait.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wait {
    Queued,
    Claimed,
    Held,
    Released,
}

/// Two sends of a call that wait, and five others that ended a day apart, in segments of three.
async fn with_two_that_wait(how: Wait) -> (OnDisk, Draft, Vec<SendId>, Vec<SendId>) {
    let subject = OnDisk::with(SegmentLimits { sends: 3, ..OnDisk::limits() });
    let (store, session) = (subject.store(), subject.session());
    let draft = Draft { secret: Some("Basic c2VjcmV0"), ..draft() }.in_execution("e").created(days(0));
    let course = if how == Wait::Claimed { Course::Claim } else { Course::Wait };
    let sends: Vec<_> = (0..2).map(|_| NewSend { course, ..draft.send() }).collect();
    let waiting: Vec<_> = sends.iter().map(|send| send.id).collect();
    let hold = matches!(how, Wait::Held | Wait::Released).then_some("e");
    accept_new(store, session, Accept { idempotency: Some(key()), ..call(sends, hold) }).await;
    let mut done = Vec::new();
    for day in 1..6 {
        let id = accept_one(store, session, &super::draft().created(days(day))).await;
        store.finish(session, finished(id, 200, days(day))).await.expect("ended");
        done.push(id);
    }
    if how == Wait::Released {
        let finish = Ending::Finish(FinishedBy::Call);
        end_execution(store, session, tenant("acme"), execution("e"), finish, days(6)).await.expect("released");
    }
    (subject, draft, waiting, done)
}

fn key() -> IdempotencyKey {
    let (path, key) = ("/v1/sends".to_owned(), "k".to_owned());
    IdempotencyKey { tenant: tenant("acme"), path, key, fingerprint: [6; 32] }
}

/// What waits is there as it was accepted, and ends once.
async fn ends_as_it_was_accepted(subject: OnDisk, how: Wait, draft: &Draft, waiting: &[SendId], which: &str) -> OnDisk {
    let (store, session) = (subject.store(), subject.session());
    let before = (store.waiting_in_all().held, store.waiting_in_all().queued);
    assert_eq!(before, if how == Wait::Held { (2, 0) } else { (0, 2) }, "{which}");
    let page = store.execution(tenant("acme"), execution("e"), None, 10).await.unwrap().expect("known");
    let indexed: Vec<_> = page.sends.iter().map(|record| (record.id, record.index)).collect();
    assert_eq!((page.total, indexed), (2, vec![(waiting[0], Some(0)), (waiting[1], Some(1))]), "{which}");
    let second = store.execution(tenant("acme"), execution("e"), None, 1).await.unwrap().expect("known").next;
    let page = store.execution(tenant("acme"), execution("e"), second, 10).await.unwrap().expect("known");
    assert_eq!(page.sends.iter().map(|record| record.id).collect::<Vec<_>>(), waiting[1..], "{which}");
    for &id in waiting {
        let record = store.record(Reach::All, id, true).await.unwrap().expect("it is not done");
        assert_eq!((record.created_at, record.ended.is_none()), (draft.created_at, true), "{which}");
        assert_eq!(record.request.body.and_then(|body| body.bytes), draft.body, "{which}");
    }
    // What comes to the same execution goes on counting.
    let later = NewSend { course: Course::Wait, ..draft.send() };
    let (later_id, hold) = (later.id, (how == Wait::Held).then_some("e"));
    let indexes = accept_new(store, session, call(vec![later], hold)).await;
    assert_eq!(indexes, [Some(2)], "{which}");
    if how == Wait::Held {
        let finish = Ending::Finish(FinishedBy::Call);
        let ended = end_execution(store, session, tenant("acme"), execution("e"), finish, days(100)).await;
        assert_eq!(ended, Ok(ExecutionEnd::Done { count: 3, first: true }), "{which}");
    }
    let mut all = if how == Wait::Claimed { waiting.to_vec() } else { Vec::new() };
    all.extend(claimed(store, session).await);
    assert_eq!(all, [waiting, &[later_id]].concat(), "{which}: each once, in order");
    for &id in &all {
        let started = begin_one(store, session, begin_of(id, draft, days(100))).await.expect("begun");
        assert_eq!(**started.spec(), *draft.send().spec, "{which}");
        store.finish(session, finished(id, 200, days(100))).await.expect("ended");
    }
    let (subject, recovered) = subject.harmed(|_| {}).await;
    assert_eq!(recovered, Recovered::default(), "{which}");
    for &id in &all {
        let record = subject.store().record(Reach::All, id, false).await.unwrap().expect("its record is young");
        assert_eq!(record.ended.map(|ended| ended.outcome), Some(Outcome::Delivered), "{which}");
    }
    assert_eq!(subject.store().waiting_in_all(), WaitingCount::default(), "{which}");
    subject
}

#[tokio::test]
async fn what_waits_is_moved_on_and_holds_up_neither_records_nor_bodies() {
    for how in [Wait::Queued, Wait::Claimed, Wait::Held, Wait::Released] {
        for (checkpointed, restarts, until_day) in [
            (false, false, 100),
            (true, false, 100),
            (false, true, 100),
            (true, true, 100),
            (true, true, 9),
            (false, true, 9),
        ] {
            let which = format!("{how:?}, checkpointed: {checkpointed}, restarts: {restarts}, by day {until_day}");
            let (mut subject, draft, waiting, done) = with_two_that_wait(how).await;
            if checkpointed {
                subject.until_all_checkpointed().await;
            }
            // By day 9 the first two segments' bodies go, and their records stay. Again later: moved more than once.
            let patience = Patience::begun();
            let goes_on = async |subject: &OnDisk| match until_day {
                100 => subject.store().record(Reach::All, done[0], false).await.unwrap().is_some(),
                _ => has_bodies(subject, done[0]).await,
            };
            while goes_on(&subject).await {
                subject.store().retain(days(until_day)).await.expect("retained");
                patience.lasts();
            }
            if checkpointed {
                subject.until_all_checkpointed().await;
            }
            // Its day is over when its records go.
            let known = (until_day < 30).then(|| Accepted::Replayed(waiting.clone()));
            assert_eq!(subject.store().replay(key(), days(0)).await, Ok(known), "{which}");
            // One that was claimed is nobody's for the next process.
            let how = if restarts && how == Wait::Claimed { Wait::Queued } else { how };
            if restarts {
                let (again, recovered) = subject.harmed(|_| {}).await;
                assert_eq!(recovered, Recovered::default(), "{which}");
                subject = again;
            }
            ends_as_it_was_accepted(subject, how, &draft, &waiting, &which).await;
        }
    }
}

#[tokio::test]
async fn wherever_the_process_dies_while_sends_are_moved_each_is_there_once() {
    for how in [Wait::Queued, Wait::Held, Wait::Released] {
        for checkpointed in [false, true] {
            for cut in 0..6 {
                let (subject, draft, waiting, _) = with_two_that_wait(how).await;
                if checkpointed {
                    subject.until_all_checkpointed().await;
                }
                // On disk, and in no table; or not all of it on disk.
                let before = frames(&subject.file_of_newest("log")).len();
                subject.refuse(&[(Fault::Table, io::ErrorKind::StorageFull)]);
                assert!(subject.store().retain(days(9)).await.is_err());
                let log = subject.file_of_newest("log");
                let after = frames(&log);
                assert!(after.len() >= before + 2, "they are moved");
                let to = (before - 1 + cut / 2).min(after.len() - 1);
                let (subject, recovered) =
                    subject.harmed(|_| change(&log, |log| log.truncate(after[to] + cut % 2 * 20))).await;
                let which = format!("{how:?}, checkpointed: {checkpointed}, cut {cut}");
                assert_eq!(recovered, Recovered::default(), "{which}");
                ends_as_it_was_accepted(subject, how, &draft, &waiting, &which).await;
            }
        }
    }
}

#[tokio::test]
async fn what_is_just_being_moved_on_begins_once_it_is_there() {
    let subject = OnDisk::fresh().await;
    let id = accept_one(subject.store(), subject.session(), &draft()).await;
    let (segment, number, row) = subject.shared().find(id).expect("readable").expect("known");
    // The writer has come so far that the row counts no more, and that it does elsewhere is not known yet.
    let moving = subject.shared().places.write().expect("whole");
    let moved = table::Row { flags: row.flags | table::MOVED, ..row };
    segment.write_rows(number, &moved.encode()).expect("written");
    let mut beginning = Box::pin(begin_one(subject.store(), subject.session(), begin_of(id, &draft(), at(1))));
    for _ in 0..1000 {
        assert!((&mut beginning).now_or_never().is_none(), "nobody knows of it, or where it is");
        std::thread::yield_now();
    }
    segment.write_rows(number, &row.encode()).expect("written");
    drop(moving);
    beginning.await.expect("begun");
}

#[tokio::test]
async fn the_oldest_go_while_all_are_too_large() {
    let (subject, ids) = aged(|settings| settings.body_max_bytes = 0).await;
    subject.store().retain(days(0)).await.expect("retained");
    assert_eq!(subject.all().await, ids);
    assert!(!has_bodies(&subject, ids[0]).await);
    assert!(has_bodies(&subject, ids[6]).await, "never the newest segment's");

    let (subject, ids) = aged(|settings| settings.max_bytes = 4096).await;
    subject.store().retain(days(0)).await.expect("retained");
    let kept = subject.all().await;
    assert!(kept.len() < ids.len() && ids.ends_with(&kept), "{} of {}", kept.len(), ids.len());
    assert!(bytes_of(subject.store()) <= 4096 || kept.len() == 1);
}
