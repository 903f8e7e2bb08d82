//! What the ends of segments come to.

use std::net::Ipv4Addr;

use jiff::SignedDuration;

use super::*;
use crate::outcome::Outcome;
use crate::record::Finished;
use crate::store::embedded::seal::Asked;
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

/// An answer reads what it tells, and where that stands.
#[tokio::test]
async fn of_many_tenants_each_is_found_without_a_look_at_the_others() {
    let subject = OnDisk::with(SegmentLimits { sends: 400, ..OnDisk::limits() });
    let (store, session) = (subject.store(), subject.session());
    let accepted = |name: String| async move { accept_one(store, session, &draft().of(&name)).await };
    let names = || (0..300).map(|number| format!("tenant-{number:03}"));
    for id in futures_util::future::join_all(names().map(accepted)).await {
        store.finish(session, finished(id, 200, at(1))).await.expect("ended");
    }
    futures_util::future::join_all((0..100).map(|_| accepted("fills".to_owned()))).await;
    let file = subject.file("stats");
    until(|| file.exists()).await;
    for by in [By::Tenant, By::Outcome, By::Host, By::Source] {
        let of = async |reach| store.stats(StatsAsked { reach, ..asked(by) }).await.expect("counted");
        assert_eq!(of(Reach::All).await.all.count, 300, "{by}");
        for name in names().chain(["a", "fills", "tenant-1500", "z"].map(str::to_owned)) {
            let stats = of(Reach::One(tenant(&name))).await;
            let ended = u64::from(name.len() == "tenant-000".len());
            assert_eq!((stats.all.count, stats.groups.len() as u64), (ended, ended), "{by} of {name}");
        }
    }
    let bytes = fs::read(&file).expect("readable");
    let head = frame::parse(&bytes).expect("whole").length;
    assert!(head < 1000 && bytes.len() > 100 * 300, "{head} of {} bytes", bytes.len());
}

/// A clock that is stepped while deliveries are made makes none of them longer or shorter.
#[tokio::test]
async fn a_delivery_takes_what_its_record_says_and_not_what_clocks_do() {
    let subject = OnDisk::with(OnDisk::limits());
    let (store, session) = (subject.store(), subject.session());
    for seconds in [-600, 0, 600] {
        let id = accept_one(store, session, &draft()).await;
        let end = Finished { finished_at: at(900 + seconds), ..finished(id, 200, at(900)) };
        store.finish(session, end).await.expect("ended");
    }
    let stats = store.stats(asked(By::Outcome)).await.expect("counted");
    assert_eq!(stats.all.count, 3);
    for share in [0.01, 0.5, 1.0] {
        let told = stats.all.percentile(share).expect("each has a time");
        assert!((30.0..=50.0).contains(&told), "{share}: {told}");
    }
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

/// Two texts that rows know by one hash.
fn of_one_hash(subject: &OnDisk, asked: Asked, text: impl Fn(u32) -> String) -> [String; 2] {
    super::hashes::of_one_hash(text, |text| subject.shared().keys.short(asked, text))
}

#[tokio::test]
async fn tenants_hosts_and_sources_of_one_hash_are_told_apart() {
    let mut subject = OnDisk::with(SegmentLimits { sends: 4, ..OnDisk::limits() });
    let tenants = of_one_hash(&subject, Asked::Tenant, |number| format!("tenant-{number}"));
    let hosts = of_one_hash(&subject, Asked::Host, |number| format!("h{number}.example"));
    let sources = of_one_hash(&subject, Asked::Source, |number| Ipv4Addr::from(number).to_string());
    let now = crate::clock::wall();
    // The first of each ends three times, the second twice.
    for which in [0, 1, 0, 1, 0] {
        let draft = draft().of(&tenants[which]).to(&format!("https://{}/", hosts[which]));
        let id = accept_one(subject.store(), subject.session(), &draft).await;
        let connection = Some(left_from("10.0.0.10", &sources[which]));
        let end = Finished { connection, ..finished(id, 200, now) };
        subject.store().finish(subject.session(), end).await.expect("ended");
    }
    let expect = async |subject: &OnDisk, told: &str| {
        let of = |by, reach| StatsAsked::of(reach, by, 12, now, now + SignedDuration::from_secs(60)).expect("whole");
        for (by, names) in [(By::Tenant, &tenants), (By::Host, &hosts), (By::Source, &sources)] {
            let stats = subject.store().stats(of(by, Reach::All)).await.expect("counted");
            let groups: Vec<_> = stats.groups.iter().map(|group| (group.name.as_deref(), group.all.count)).collect();
            assert_eq!(groups, [(Some(&*names[0]), 3), (Some(&*names[1]), 2)], "{by}, {told}");
            for (tenant, count) in tenants.iter().zip([3, 2]) {
                let reach = Reach::One(TenantId::new(&**tenant));
                let stats = subject.store().stats(of(by, reach)).await.expect("counted");
                assert_eq!((stats.all.count, stats.groups.len()), (count, 1), "{by} of {tenant}, {told}");
            }
        }
        let hour = subject.store().outcomes_of_the_hour(now + SignedDuration::from_secs(1)).await.expect("told");
        let mut ended: Vec<_> =
            hour.iter().map(|(tenant, outcomes)| (tenant.to_string(), outcomes[&Outcome::Delivered])).collect();
        ended.sort_unstable_by_key(|(_, count)| std::cmp::Reverse(*count));
        assert_eq!(ended, [(tenants[0].clone(), 3), (tenants[1].clone(), 2)], "{told}");
    };
    expect(&subject, "counted as they ended").await;
    for told in ["after a start", "after a start with files"] {
        subject = subject.crash().await;
        expect(&subject, told).await;
        let first = subject.shared().segments()[0].directory.join("stats");
        until(|| first.exists()).await;
    }
}

/// The hash of an execution has half of its bits of the execution's name alone.
#[tokio::test]
async fn executions_of_one_name_and_one_hash_are_each_of_their_tenant() {
    let subject = OnDisk::with(SegmentLimits { sends: 4, ..OnDisk::limits() });
    let (store, session) = (subject.store(), subject.session());
    let hash = |name: &str| subject.shared().keys.execution(name, "nightly").hash;
    let names = super::hashes::of_one_hash(|number| format!("tenant-{number}"), hash);
    for which in [0, 1, 0, 1, 0] {
        let id = accept_one(store, session, &draft().of(&names[which]).in_execution("nightly")).await;
        if which == 0 {
            store.finish(session, finished(id, 200, at(1))).await.expect("ended");
        }
    }
    for (name, total, delivered) in [(&names[0], 3, 3), (&names[1], 2, 0)] {
        let read = store.execution(tenant(name), execution("nightly"), None, 50).await.expect("readable");
        let read = read.expect("known");
        assert_eq!((read.total, read.delivered, read.sends.len()), (total, delivered, total as usize), "{name}");
        assert!(read.sends.iter().all(|send| send.tenant == tenant(name)), "{name}");
    }
    let page = store.executions(ExecutionFilter::of(Reach::All), None, 50).await.expect("a page");
    let counts: Vec<_> = page.executions.iter().map(|one| (one.tenant.as_str(), one.total, one.delivered)).collect();
    assert_eq!(counts, [(&*names[1], 2, 0), (&*names[0], 3, 3)], "each is listed with what is its own");
}
