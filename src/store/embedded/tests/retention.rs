//! What goes when its time is over, and what stays.

use super::*;

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

#[tokio::test]
async fn a_segment_with_a_send_that_waits_is_kept_with_all_behind_it() {
    let subject = OnDisk::with(SegmentLimits { sends: 2, ..OnDisk::limits() });
    let waiting = accept_one(subject.store(), subject.session(), &draft().created(days(0))).await;
    for day in 1..6 {
        let id = accept_one(subject.store(), subject.session(), &draft().created(days(day))).await;
        subject.store().finish(subject.session(), finished(id, 200, days(day))).await.expect("ended");
    }
    subject.store().retain(days(100)).await.expect("retained");
    assert_eq!(subject.all().await.len(), 6);
    assert!(has_bodies(&subject, waiting).await);
    subject.store().finish(subject.session(), failed(waiting, Code::Expired, days(100))).await.expect("ended");
    subject.store().retain(days(100)).await.expect("retained");
    assert_eq!(subject.all().await, [waiting; 0], "all segments but the newest are past their time");
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
