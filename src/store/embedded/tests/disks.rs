//! A disk that refuses, and one that is really full.

use super::*;

#[tokio::test]
async fn what_the_disk_refuses_is_not_accepted_and_it_goes_on_when_the_disk_does() {
    for (place, kind, fix) in [
        (Fault::Write, io::ErrorKind::StorageFull, "free some space"),
        (Fault::Write, io::ErrorKind::ReadOnlyFilesystem, "mount it writable"),
        (Fault::Sync, io::ErrorKind::StorageFull, "free some space"),
        (Fault::Sync, io::ErrorKind::Other, "look at the disk"),
    ] {
        let subject = OnDisk::fresh().await;
        let before = accept_one(subject.store(), subject.session(), &draft()).await;
        subject.refuse(&[(place, kind)]);
        for _ in 0..3 {
            let refused = subject.store().accept(subject.session(), call(vec![draft().send()], None)).await;
            assert!(matches!(&refused, Err(StoreError::CannotWrite(why)) if why.contains(fix)), "{refused:?}");
        }
        let begun = begin_one(subject.store(), subject.session(), begin_of(before, &draft(), at(1))).await;
        assert!(matches!(begun, Err(StoreError::CannotWrite(_))), "{place:?}");
        let ended = subject.store().finish(subject.session(), finished(before, 200, at(1))).await;
        assert!(matches!(ended, Err(StoreError::CannotWrite(_))), "{place:?}");
        assert!(subject.store().health().is_err(), "{place:?}");
        assert_eq!(subject.all().await, [before], "what is there can be read all the while");
        subject.refuse(&[]);
        subject.until_healthy().await;
        let after = accept_one(subject.store(), subject.session(), &draft()).await;
        begin_one(subject.store(), subject.session(), begin_of(before, &draft(), at(1)))
            .await
            .expect("it was not begun");
        assert_eq!(subject.all().await, [before, after], "{place:?}");
        let (subject, recovered) = subject.harmed(|_| {}).await;
        assert_eq!((recovered.interrupted, recovered.discarded, recovered.damage.len()), (1, 0, 0), "{place:?}");
        assert_eq!(subject.all().await, [before, after], "{place:?}");
    }
}

#[tokio::test]
async fn a_disk_that_failed_and_then_the_power_leave_nothing_that_was_refused() {
    let subject = OnDisk::fresh().await;
    let before = accept_one(subject.store(), subject.session(), &draft()).await;
    let log = fs::read(subject.file("log")).unwrap();
    subject.refuse(&[(Fault::Sync, io::ErrorKind::Other)]);
    assert!(subject.store().accept(subject.session(), call(vec![draft().send()], None)).await.is_err());
    assert_eq!(fs::read(subject.file("log")).unwrap(), log, "it was cut off again");
    subject.refuse(&[]);
    subject.until_healthy().await;
    // After a failed sync another log is written to, and what may have reached the disk behind the old one's end
    // is not taken for anything.
    let after = accept_one(subject.store(), subject.session(), &draft()).await;
    let (subject, recovered) = subject
        .harmed(|subject| {
            change(&subject.file("log"), |log| {
                let starts = frames(&subject.file("log"));
                let copy = log[starts[1]..starts[2]].to_vec();
                log.extend_from_slice(&copy);
            });
        })
        .await;
    assert_eq!(recovered, Recovered::default());
    assert_eq!(subject.all().await, [before, after]);
}

#[tokio::test]
async fn what_is_durable_is_shown_once_the_tables_can_be_written() {
    let subject = OnDisk::fresh().await;
    subject.refuse(&[(Fault::Table, io::ErrorKind::StorageFull)]);
    let accepted = accept_one(subject.store(), subject.session(), &draft()).await;
    assert!(subject.store().health().is_err());
    assert!(subject.store().accept(subject.session(), call(vec![draft().send()], None)).await.is_err());
    // It is neither denied nor taken for done: what is asked about it waits until it is known.
    let asked = subject.store().record(Reach::All, accepted, true).await;
    assert!(matches!(asked, Err(StoreError::CannotWrite(_))), "{asked:?}");
    let begun = begin_one(subject.store(), subject.session(), begin_of(accepted, &draft(), at(1))).await;
    assert!(matches!(begun, Err(StoreError::CannotWrite(_))), "{begun:?}");
    let ended = subject.store().finish(subject.session(), finished(accepted, 200, at(1))).await;
    assert!(matches!(ended, Err(StoreError::CannotWrite(_))), "{ended:?}");
    subject.refuse(&[]);
    // Calls that come all the while, so that one of them finds the disk well again.
    let patience = Patience::begun();
    let next = loop {
        patience.lasts();
        let send = draft().send();
        let id = send.id;
        if subject.store().accept(subject.session(), call(vec![send], None)).await.is_ok() {
            break id;
        }
    };
    assert_eq!(subject.all().await, [accepted, next]);
    begin_one(subject.store(), subject.session(), begin_of(accepted, &draft(), at(1))).await.expect("begun");
    let (subject, recovered) = subject.harmed(|_| {}).await;
    assert_eq!((recovered.interrupted, recovered.discarded, recovered.damage.len()), (1, 0, 0));
    assert_eq!(subject.all().await, [accepted, next]);
}

// A disk that is really full: a file system of its own in a mount namespace of its own.

/// Where the child finds its small file system.
const SMALL_DISK: &str = "EGRESSD_TEST_SMALL_DISK";

#[test]
fn a_full_disk_is_told_and_outlived() {
    on_a_small_disk("the_child_on_a_small_disk");
}

#[test]
fn a_full_disk_is_freed_by_retention() {
    on_a_small_disk("the_child_whose_records_grow_old");
}

/// Runs one of the tests below where it finds a file system of 4 MiB.
fn on_a_small_disk(child: &str) {
    let directory = tempfile::tempdir().unwrap();
    let program = std::env::current_exe().unwrap();
    let script =
        "mount -t tmpfs -o size=4m tmpfs \"$EGRESSD_TEST_SMALL_DISK\" && exec \"$0\" --exact \"$1\" --nocapture";
    let (_, room) = module_path!().split_once("::").expect("a crate and its modules");
    let ran = std::process::Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", script])
        .arg(program)
        .arg(format!("{room}::{child}"))
        .env(SMALL_DISK, directory.path())
        .output()
        .expect("unshare (util-linux) is installed");
    let told = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "the child failed, or this system lets nobody mount a tmpfs in a namespace: {told}");
    assert!(told.contains("1 passed"), "the child has another name: {told}");
}

#[test]
fn the_child_on_a_small_disk() {
    let Some(directory) = std::env::var_os(SMALL_DISK) else { return };
    let directory = PathBuf::from(directory);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let settings = settings(&directory);
        let store = Embedded::open(&settings, "child").unwrap();
        let session = &joined(&store).await;
        fs::write(directory.join("ballast"), vec![1; 1 << 20]).unwrap();
        let large = Draft { body: Some(bytes::Bytes::from(vec![7; 20_000])), ..draft() };
        let mut accepted = Vec::new();
        let refused = loop {
            let send = large.send();
            let id = send.id;
            match store.accept(session, call(vec![send], None)).await {
                Ok(_) => accepted.push(id),
                Err(error) => break error,
            }
            assert!(accepted.len() < 10_000, "the disk never filled");
        };
        assert!(matches!(&refused, StoreError::CannotWrite(why) if why.contains("free some space")), "{refused}");
        assert!(store.health().is_err());
        fs::remove_file(directory.join("ballast")).unwrap();
        until(|| store.health().is_ok()).await;
        accepted.push(accept_one(&store, session, &large).await);

        drop(store);
        let store = Embedded::open(&settings, "child").unwrap();
        let session = &joined(&store).await;
        let recovered = store.recover(session, at(1)).await.unwrap();
        assert_eq!(recovered, Recovered::default());
        assert_eq!(claimed(&store, session).await, accepted);
    });
}

#[test]
fn the_child_whose_records_grow_old() {
    let Some(directory) = std::env::var_os(SMALL_DISK) else { return };
    let directory = PathBuf::from(directory);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let now = crate::clock::wall();
        let later = |days: i64| now + jiff::SignedDuration::from_hours(24 * days);
        let store = Embedded::open(&settings(&directory), "child").unwrap();
        let session = &joined(&store).await;
        let large = |at| Draft { body: Some(bytes::Bytes::from(vec![7; 20_000])), ..draft() }.created(at);
        let mut old = Vec::new();
        for _ in 0..10 {
            let id = accept_one(&store, session, &large(now)).await;
            store.finish(session, finished(id, 200, now)).await.expect("ended");
            old.push(id);
        }
        store.retain(later(2)).await.expect("a new segment");
        let mut waiting = Vec::new();
        while store.health().is_ok() {
            let send = large(later(2)).send();
            let id = send.id;
            if store.accept(session, call(vec![send], None)).await.is_ok() {
                waiting.push(id);
            }
            assert!(waiting.len() < 10_000, "the disk never filled");
        }
        let mut ballast = fs::File::create(directory.join("ballast")).unwrap();
        while ballast.write_all(&[1; 512]).is_ok() {}
        // By then another segment would be due, for which there is no room before this.
        store.retain(later(31)).await.expect("the old segment goes");
        assert_eq!(store.record(Reach::All, old[0], false).await, Ok(None));
        until(|| store.health().is_ok()).await;
        waiting.push(accept_one(&store, session, &large(later(31))).await);
        store.give_back(session, waiting.clone()).await.expect("given back");
        assert_eq!(claimed(&store, session).await, waiting);
    });
}
