//! Large calls, whose bodies are written ahead of them.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::*;

/// As many bytes as several pieces have, in a few sends.
fn large(name: &str) -> Accept {
    // None of zeros: those read as what was never written does.
    let body = |n: u8| Some(Bytes::from(vec![n + 1; 300_000]));
    let sends = (0..5).map(|n| Draft { body: body(n), ..draft().of(name) }.send()).collect();
    call(sends, None)
}

impl OnDisk {
    fn newest(&self) -> Arc<Segment> {
        self.shared().segments().last().expect("one").clone()
    }

    async fn body_of(&self, id: SendId) -> Bytes {
        let record = self.store().record(Reach::All, id, true).await.expect("readable").expect("known");
        record.request.body.and_then(|body| body.bytes).expect("kept")
    }

    async fn are_whole(&self, ids: &[SendId]) {
        for (n, &id) in ids.iter().enumerate() {
            assert_eq!(self.body_of(id).await, vec![n as u8 + 1; 300_000], "{n}");
        }
    }
}

fn ids_of(call: &Accept) -> Vec<SendId> {
    call.sends.iter().map(|send| send.id).collect()
}

#[tokio::test]
async fn what_comes_while_a_large_call_is_written_is_written_before_it() {
    let disk = OnDisk::fresh().await;
    let accept = large("loud");
    let ids = ids_of(&accept);
    let held_up = locked(&disk.shared().faults.refusing);
    let mut writing = tokio::task::unconstrained(disk.store().accept(disk.session(), accept));
    let patience = Patience::begun();
    while disk.newest().bodies_bytes.load(Ordering::Acquire) == 0 {
        assert!((&mut writing).now_or_never().is_none());
        patience.lasts();
        std::thread::yield_now();
    }
    // Its first piece is on its way to the disk.
    let send = draft().of("quiet").send();
    let id = send.id;
    let mut after = disk.store().accept(disk.session(), call(vec![send], None));
    assert!((&mut after).now_or_never().is_none());
    drop(held_up);
    after.await.expect("accepted");
    writing.await.expect("accepted");
    let row = |id| disk.shared().find(id).expect("readable").expect("known").1;
    assert_eq!((row(id), row(ids[0])), (0, 1), "in the order in which they were decided");
    disk.are_whole(&ids).await;
}

#[tokio::test]
async fn a_large_call_reads_after_a_start_as_before_and_is_counted_the_same() {
    let mut disk = OnDisk::fresh().await;
    let accept = large("loud");
    let ids = ids_of(&accept);
    accept_new(disk.store(), disk.session(), accept).await;
    let stored = |disk: &OnDisk| disk.shared().stored_by(disk.shared().keys.tenant("loud"));
    let before = stored(&disk);
    assert!(before > 1_500_000, "{before}");
    disk = disk.crash().await;
    assert_eq!(stored(&disk), before);
    disk.are_whole(&ids).await;
}

#[tokio::test]
async fn nothing_is_written_of_a_large_call_that_is_answered_without() {
    let disk = OnDisk::fresh().await;
    let key = |fingerprint| {
        let (path, key) = ("/v1/sends".to_owned(), "k".to_owned());
        Some(IdempotencyKey { tenant: tenant("loud"), path, key, fingerprint: [fingerprint; 32] })
    };
    let keyed = |fingerprint| Accept { idempotency: key(fingerprint), ..large("loud") };
    let first = keyed(1);
    let ids = ids_of(&first);
    accept_new(disk.store(), disk.session(), first).await;
    let bytes = || disk.newest().bodies_bytes.load(Ordering::Acquire);
    let before = bytes();
    let answer = disk.store().accept(disk.session(), keyed(1)).await;
    assert!(matches!(&answer, Ok(Accepted::Replayed(known)) if *known == ids), "{answer:?}");
    let answer = disk.store().accept(disk.session(), keyed(2)).await;
    assert!(matches!(answer, Ok(Accepted::Mismatch)), "{answer:?}");
    assert_eq!(bytes(), before);
}

#[tokio::test]
async fn a_large_call_that_the_disk_refuses_leaves_nothing_and_holds_up_nobody() {
    for fault in [Fault::Write, Fault::Sync] {
        let mut disk = OnDisk::fresh().await;
        let before = accept_one(disk.store(), disk.session(), &draft()).await;
        let accept = large("loud");
        let ids = ids_of(&accept);
        locked(&disk.shared().faults.refusing).push((fault, io::ErrorKind::StorageFull));
        let refused = disk.store().accept(disk.session(), accept).await;
        assert!(matches!(refused, Err(StoreError::CannotWrite(_))), "{fault:?}: {refused:?}");
        locked(&disk.shared().faults.refusing).clear();
        until(|| disk.store().health().is_ok()).await;
        let again = large("loud");
        let taken = ids_of(&again);
        accept_new(disk.store(), disk.session(), again).await;
        for round in 0..2 {
            for &id in &ids {
                assert_eq!(disk.store().record(Reach::All, id, false).await, Ok(None), "{fault:?}, {round}");
            }
            disk.are_whole(&taken).await;
            assert!(disk.store().record(Reach::All, before, false).await.expect("readable").is_some());
            disk = disk.crash().await;
        }
    }
}

/// What is old is followed by another segment, also while a piece is on its way to it.
#[tokio::test]
async fn a_large_call_stands_whole_in_one_segment() {
    let disk = OnDisk::with(SegmentLimits { sends: 2, age: Duration::ZERO, ..OnDisk::limits() });
    accept_one(disk.store(), disk.session(), &draft()).await;
    let calls = [large("loud"), large("other"), large("loud")];
    let ids = calls.each_ref().map(ids_of);
    let old = disk.newest();
    let held_up = locked(&disk.shared().faults.refusing);
    let mut writing = calls.map(|accept| tokio::task::unconstrained(disk.store().accept(disk.session(), accept)));
    let patience = Patience::begun();
    while old.bodies_bytes.load(Ordering::Acquire) < 1 << 16 {
        assert!(writing.iter_mut().all(|call| call.now_or_never().is_none()));
        patience.lasts();
        std::thread::yield_now();
    }
    let mut retained = disk.store().retain(crate::clock::wall());
    assert!((&mut retained).now_or_never().is_none());
    drop(held_up);
    retained.await.expect("retained");
    for call in writing {
        call.await.expect("accepted");
    }
    let segment_of = |id| disk.shared().find(id).expect("readable").expect("known").0.number;
    for ids in &ids {
        let segments: Vec<_> = ids.iter().map(|id| segment_of(*id)).collect();
        assert!(segments.iter().all(|number| *number == segments[0] && *number > old.number), "{segments:?}");
    }
    let disk = disk.crash().await;
    for ids in &ids {
        disk.are_whole(ids).await;
    }
}

/// What it has on disk by then is half of a body.
#[tokio::test]
async fn a_large_call_that_the_store_fails_under_is_whole_where_its_own_batch_mends_it() {
    let mut disk = OnDisk::fresh().await;
    let opened = Patience::begun();
    let accept = large("loud");
    let ids = ids_of(&accept);
    let held_up = locked(&disk.shared().faults.refusing);
    let mut writing = tokio::task::unconstrained(disk.store().accept(disk.session(), accept));
    let patience = Patience::begun();
    while disk.newest().bodies_bytes.load(Ordering::Acquire) == 0 {
        assert!((&mut writing).now_or_never().is_none());
        patience.lasts();
        std::thread::yield_now();
    }
    // Its first piece is on its way to the disk. Whoever comes next tries whether the disk takes writes, as none has for
    // so long.
    while opened.0.elapsed() < crate::store::embedded::writer::TRY_AGAIN_EVERY {
        patience.lasts();
        std::thread::yield_now();
    }
    disk.shared().set_failing(Some("for a moment".to_owned()));
    drop(held_up);
    assert!(matches!(writing.await, Ok(Accepted::New { .. })));
    for _ in 0..2 {
        disk.are_whole(&ids).await;
        disk = disk.crash().await;
    }
}
