//! What the ends of segments come to.

use super::*;
use crate::store::stats::{By, StatsAsked};

fn asked(by: By) -> StatsAsked {
    StatsAsked::of(Reach::All, by, 12, at(0), at(3600)).expect("whole buckets")
}

#[tokio::test]
async fn ends_are_counted_into_a_file_and_anew_where_that_is_harmed_or_gone() {
    let subject = OnDisk::with(SegmentLimits { sends: 4, ..OnDisk::limits() });
    let (store, session) = (subject.store(), subject.session());
    for n in 0..42 {
        let draft = draft().of(["a", "b"][n % 2]).to(["https://one.example/", "https://two.example/"][n % 2]);
        let id = accept_one(store, session, &draft).await;
        store.finish(session, finished(id, 200, at(n as i64))).await.expect("ended");
    }
    let mut answers = Vec::new();
    for by in By::ALL {
        let stats = store.stats(asked(*by)).await.expect("counted");
        assert_eq!((stats.all.count, stats.all.delivered), (42, 42), "{by}");
        let names: Vec<_> = stats.groups.iter().map(|group| group.name.as_deref().unwrap_or("-")).collect();
        let expected = match by {
            By::Outcome => vec!["delivered"],
            By::Host => vec!["one.example", "two.example"],
            By::Tenant => vec!["a", "b"],
            By::Source => vec!["198.51.100.10"],
        };
        assert_eq!(names, expected);
        answers.push(stats);
    }
    let segments = subject.shared().segments();
    assert!(segments.len() > 5);
    let files: Vec<_> = segments.iter().map(|segment| segment.directory.join("stats")).collect();
    until(|| files[..files.len() - 1].iter().all(|file| file.exists())).await;
    drop(segments);

    let check = async |subject: &OnDisk, told: &str| {
        for (by, known) in By::ALL.iter().zip(&answers) {
            assert_eq!(subject.store().stats(asked(*by)).await.as_ref(), Ok(known), "{by}, {told}");
        }
    };
    check(&subject, "of the files").await;
    // Under a store that runs, and under one that starts.
    let harm = || {
        fs::write(&files[0], "no counts").expect("written");
        let mut bytes = fs::read(&files[1]).expect("readable");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&files[1], bytes).expect("written");
        fs::remove_file(&files[2]).expect("removed");
    };
    harm();
    check(&subject, "harmed while it runs").await;
    until(|| files[2].exists()).await;
    harm();
    let subject = subject.crash().await;
    check(&subject, "harmed before the start").await;
}

/// Of a flood of hosts some are told apart, and all are counted.
#[tokio::test]
async fn no_more_hosts_are_told_apart_than_there_is_room_for() {
    let subject = OnDisk::with(OnDisk::limits());
    let (store, session) = (subject.store(), subject.session());
    let most = crate::limits::STATS_HOSTS_OF_SLOT;
    let sends: Vec<_> = (0..most + 100).map(|n| draft().to(&format!("https://h{n}.example/")).send()).collect();
    let ids: Vec<SendId> = sends.iter().map(|send| send.id).collect();
    accept_new(store, session, call(sends, None)).await;
    for &id in &ids {
        store.finish(session, finished(id, 200, at(1))).await.expect("ended");
    }
    let stats = store.stats(asked(By::Host)).await.expect("counted");
    assert_eq!(stats.all.count, ids.len() as u64);
    let segments = subject.shared().segments();
    let told = segments[0].counted.lock().expect("whole").hosts_told();
    assert_eq!(told, most);
}
