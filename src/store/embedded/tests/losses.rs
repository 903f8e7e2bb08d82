//! What is lost under a store, moved from under it, or not to be had for a moment.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

#[tokio::test]
async fn a_store_that_is_moved_from_under_its_process_accepts_nothing_more() {
    type Harm = fn(&Path, &Path);
    let harms: [(&str, Harm, Harm); 6] = [
        (
            "the directory, renamed",
            |root, away| fs::rename(root, away).unwrap(),
            |root, away| {
                fs::rename(away, root).unwrap();
            },
        ),
        (
            "the directory, and another made",
            |root, away| {
                fs::rename(root, away).unwrap();
                fs::create_dir(root).unwrap();
            },
            |root, away| {
                fs::remove_dir(root).unwrap();
                fs::rename(away, root).unwrap();
            },
        ),
        (
            "the lock, renamed",
            |root, away| fs::rename(root.join("lock"), away).unwrap(),
            |root, away| {
                fs::rename(away, root.join("lock")).unwrap();
            },
        ),
        (
            "the lock, and another made",
            |root, away| {
                fs::rename(root.join("lock"), away).unwrap();
                fs::write(root.join("lock"), "1\n").unwrap();
            },
            |root, away| fs::rename(away, root.join("lock")).unwrap(),
        ),
        (
            "the newest log",
            |root, away| fs::rename(root.join("pieces/00000001/log"), away).unwrap(),
            |root, away| {
                fs::rename(away, root.join("pieces/00000001/log")).unwrap();
            },
        ),
        (
            "the segments",
            |root, away| fs::rename(root.join("pieces"), away).unwrap(),
            |root, away| {
                fs::rename(away, root.join("pieces")).unwrap();
            },
        ),
    ];
    for (name, harm, mend) in harms {
        let subject = OnDisk::fresh().await;
        let (store, session) = (subject.store(), subject.session());
        let before = accept_one(store, session, &draft()).await;
        let (root, away) = (subject.path(), subject.directory.path().join("away"));
        harm(&root, &away);
        let refused = store.accept(session, call(vec![draft().send()], None)).await;
        assert!(
            matches!(&refused, Err(StoreError::CannotWrite(why)) if why.contains("while the store was in use")),
            "{name}: {refused:?}"
        );
        assert!(store.health().is_err(), "{name}");
        let begun = begin_one(store, session, begin_of(before, &draft(), at(1))).await;
        assert!(begun.is_err(), "{name}: nothing begins without its mark");
        mend(&root, &away);
        subject.until_healthy().await;
        let after = accept_one(store, session, &draft()).await;
        assert_eq!(subject.all().await, [before, after], "{name}");
    }
}

#[tokio::test]
async fn it_is_told_without_anybody_calling() {
    let subject = OnDisk::fresh().await;
    fs::remove_dir_all(subject.path()).unwrap();
    until(|| subject.store().health().is_err()).await;
}

#[tokio::test]
async fn a_lock_file_that_is_removed_lets_no_second_process_in() {
    let subject = OnDisk::fresh().await;
    for remake in [false, true] {
        let _ = fs::remove_file(subject.path().join("lock"));
        if remake {
            fs::write(subject.path().join("lock"), "").unwrap();
        }
        let again = Embedded::open(&settings(subject.directory.path()), "another");
        let refused = again.err().expect("it is in use");
        assert!(matches!(refused, StoreError::InUse { pid: None, .. }), "made again: {remake}: {refused}");
        assert!(refused.to_string().contains("in use by another process"), "{refused}");
    }
}

#[tokio::test]
async fn every_file_is_its_owners_alone_also_in_a_directory_that_was_there() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    fs::create_dir(&root).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    let limits = SegmentLimits { sends: 3, ..OnDisk::limits() };
    let mut subject = OnDisk { store: None, session: None, directory, limits };
    subject.open();
    for _ in 0..10 {
        let id = accept_one(subject.store(), subject.session(), &draft()).await;
        subject.store().finish(subject.session(), finished(id, 200, at(1))).await.expect("ended");
    }
    subject.until_checkpointed().await;
    subject.store().publish(Vec::new(), Some([1; 32]), at(2)).await.expect("published");
    let (mut directories, mut files) = (vec![root], 0);
    while let Some(directory) = directories.pop() {
        assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o777, 0o700, "{}", directory.display());
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            files += 1;
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600, "{}", path.display());
        }
    }
    assert!(files > 15, "{files}");
}

#[tokio::test]
async fn what_a_calls_body_was_cannot_be_guessed_from_its_key() {
    let subject = OnDisk::fresh().await;
    let key = |fingerprint| IdempotencyKey {
        tenant: tenant("acme"),
        path: "/v1/sends".to_owned(),
        key: "k".to_owned(),
        fingerprint,
    };
    let keyed = Accept { idempotency: Some(key([0x5a; 32])), ..call(vec![draft().send()], None) };
    let old =
        Accept { idempotency: Some(IdempotencyKey { key: "old".to_owned(), ..key([0x3c; 32]) }), ..keyed.clone() };
    let id = keyed.sends[0].id;
    accept_new(subject.store(), subject.session(), keyed).await;
    // As a store wrote it before fingerprints were keyed.
    let old = Accept { sends: vec![draft().send()], ..old };
    let old_id = old.sends[0].id;
    let mut job = subject.store().shared.accept_job(subject.session(), &old).unwrap();
    job.sends[0].form =
        wire::accepted(&old.sends[0], conformance::NODE, false, old.idempotency.as_ref().map(|key| (key, 1))).form;
    subject.store().ask(|answer| Job::Accept(Box::new(job), answer)).await.expect("accepted");

    let log = fs::read(subject.file("log")).unwrap();
    let has = |byte: u8| log.windows(16).any(|window| window == [byte; 16]);
    assert_eq!((has(0x5a), has(0x3c)), (false, true));
    let subject = subject.crash().await;
    let replay = async |key| subject.store().replay(key, at(1)).await;
    assert_eq!(replay(key([0x5a; 32])).await, Ok(Some(Accepted::Replayed(vec![id]))));
    assert_eq!(replay(key([0x5b; 32])).await, Ok(Some(Accepted::Mismatch)));
    let old = |fingerprint| IdempotencyKey { key: "old".to_owned(), ..key(fingerprint) };
    assert_eq!(replay(old([0x3c; 32])).await, Ok(Some(Accepted::Replayed(vec![old_id]))), "of an older store");
    assert_eq!(replay(old([0x3d; 32])).await, Ok(Some(Accepted::Mismatch)));
}

#[tokio::test]
async fn a_disk_that_does_not_answer_for_a_moment_is_no_damage_and_costs_no_send_its_outcome() {
    let subject = OnDisk::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(accept_one(store, session, &draft()).await);
    }
    for &id in &ids {
        begin_one(store, session, begin_of(id, &draft(), at(1))).await.expect("begun");
    }
    let segment = subject.shared().segments()[0].clone();
    let fail = |reads| segment.failing_reads.store(reads, Ordering::Release);
    // So few that nobody notices.
    for reads in 1..4 {
        fail(reads);
        let record = store.record(Reach::All, ids[0], false).await;
        assert!(record.is_ok(), "{reads}: {record:?}");
    }
    // So many that a reader is told what it is.
    fail(1000);
    let record = store.record(Reach::All, ids[0], false).await;
    assert!(
        matches!(&record, Err(StoreError::CannotRead(why)) if why.contains("times: look at the disk")),
        "{record:?}"
    );
    let source = record.as_ref().err().and_then(std::error::Error::source).expect("what the system said");
    let source = source.downcast_ref::<std::io::Error>().expect("of its kind");
    assert_eq!(source.raw_os_error(), Some(nix::errno::Errno::EIO as i32));
    let list = store.list(Filter::of(Reach::All), None, 10).await;
    assert!(matches!(list, Err(StoreError::CannotRead(_))), "{list:?}");
    // An end is durable, and is shown once its row can be read again.
    store.finish(session, finished(ids[0], 200, at(1))).await.expect("durable");
    assert!(store.health().is_err(), "and it is told meanwhile");
    fail(0);
    subject.until_healthy().await;
    for &id in &ids[1..] {
        store.finish(session, finished(id, 200, at(1))).await.expect("ended");
    }
    for &id in &ids {
        let record = store.record(Reach::All, id, false).await.unwrap().unwrap();
        assert_eq!(record.ended.map(|ended| ended.outcome), Some(Outcome::Delivered));
    }
    assert_eq!(store.damage(), Vec::<String>::new());
}

/// The newest may have said that what waits in earlier ones had begun; the oldest can't.
#[tokio::test]
async fn a_segment_that_is_gone_is_told_wherever_it_stood() {
    for (gone, left) in [(&[1][..], 5), (&[1, 2], 3), (&[2], 3), (&[4], 0), (&[3, 4], 0), (&[1, 4], 0)] {
        let subject = OnDisk::with(SegmentLimits { sends: 2, ..OnDisk::limits() });
        for _ in 0..7 {
            accept_one(subject.store(), subject.session(), &draft()).await;
        }
        let directory = |subject: &OnDisk, number: &u32| subject.path().join(format!("pieces/{number:08}"));
        assert!(directory(&subject, &4).exists() && !directory(&subject, &5).exists());
        let (subject, recovered) = subject
            .harmed(|subject| gone.iter().for_each(|gone| fs::remove_dir_all(directory(subject, gone)).unwrap()))
            .await;
        for gone in gone {
            let told = format!("{} is missing", directory(&subject, gone).display());
            let lines = recovered.damage.iter().filter(|line| line.contains(&told));
            assert_eq!(lines.count(), 1, "{gone}: {:?}", recovered.damage);
        }
        let waits = claimed(subject.store(), subject.session()).await;
        assert_eq!(waits.len(), left, "{gone:?}");
        // Between others it is missed for as long as they are there.
        let (subject, recovered) = subject.harmed(|_| {}).await;
        assert_eq!(recovered.damage.len(), usize::from(gone == [2]), "{gone:?}: {:?}", recovered.damage);
        drop(subject);
    }
}

#[tokio::test]
async fn what_stands_where_another_file_should_keeps_no_store_from_opening() {
    type Harm = fn(&OnDisk);
    let harms: [(&str, usize, Harm); 4] = [
        ("the state in the place of the span", 0, |subject| {
            fs::copy(subject.path().join("state"), subject.path().join("span")).unwrap();
        }),
        ("no span", 0, |subject| fs::remove_file(subject.path().join("span")).unwrap()),
        ("a file called as a segment", 1, |subject| fs::write(subject.path().join("pieces/00000007"), "?").unwrap()),
        ("an empty directory called so", 1, |subject| fs::create_dir(subject.path().join("pieces/00000007")).unwrap()),
    ];
    for (name, told, harm) in harms {
        let subject = OnDisk::fresh().await;
        let id = accept_one(subject.store(), subject.session(), &draft()).await;
        let (subject, recovered) = subject.harmed(harm).await;
        let lines = recovered.damage.iter().filter(|line| line.contains("00000007"));
        assert_eq!(lines.count(), told, "{name}: {:?}", recovered.damage);
        assert_eq!(subject.all().await, [id], "{name}");
    }
}

#[tokio::test]
async fn without_its_state_no_store_of_sends_is_opened() {
    let subject = OnDisk::fresh().await;
    accept_one(subject.store(), subject.session(), &draft()).await;
    let path = subject.path().to_owned();
    let OnDisk { store, directory, limits, .. } = subject;
    drop(store);
    for with_key in [true, false] {
        drop(fs::remove_file(path.join("state")));
        if !with_key {
            fs::remove_file(directory.path().join("key")).unwrap();
        }
        let opened = Embedded::open_with(&settings(directory.path()), conformance::NODE, limits);
        let why = opened.err().expect("refused").to_string();
        assert!(why.contains("state is missing") && why.contains("restore it"), "{why}");
        assert!(!path.join("state").exists(), "nothing is made in its place");
    }
}

#[tokio::test]
async fn two_losses_at_once_make_no_send_go_out_twice() {
    type Harm = fn(&OnDisk);
    fn file(subject: &OnDisk, segment: u32, name: &str) -> PathBuf {
        subject.path().join(format!("pieces/{segment:08}/{name}"))
    }
    fn cut(subject: &OnDisk, frames_left: usize) {
        let log = file(subject, 2, "log");
        let starts = frames(&log);
        change(&log, |bytes| bytes.truncate(starts[frames_left]));
    }
    let harms: [(&str, Harm); 8] = [
        ("the oldest table gone", |subject| fs::remove_file(file(subject, 1, "table")).unwrap()),
        ("the oldest table cut", |subject| change(&file(subject, 1, "table"), |table| table.truncate(150))),
        ("the oldest table emptied", |subject| change(&file(subject, 1, "table"), Vec::clear)),
        ("a bit of the oldest table", |subject| change(&file(subject, 1, "table"), |table| table[200] ^= 4)),
        ("both tables gone", |subject| {
            fs::remove_file(file(subject, 1, "table")).unwrap();
            fs::remove_file(file(subject, 2, "table")).unwrap();
        }),
        ("the newest table gone", |subject| fs::remove_file(file(subject, 2, "table")).unwrap()),
        ("the oldest index gone, or not yet there", |subject| drop(fs::remove_file(file(subject, 1, "index")))),
        ("the oldest index and table gone", |subject| {
            drop(fs::remove_file(file(subject, 1, "index")));
            fs::remove_file(file(subject, 1, "table")).unwrap();
        }),
    ];
    for (name, harm) in harms {
        for (checkpointed, frames_left) in [(false, 2), (true, 2), (false, 4), (true, 3)] {
            let subject = OnDisk::with(SegmentLimits { sends: 4, ..OnDisk::limits() });
            let (store, session) = (subject.store(), subject.session());
            let mut ids = Vec::new();
            for _ in 0..5 {
                ids.push(accept_one(store, session, &draft()).await);
            }
            until(|| !checkpointed || subject.shared().segments()[0].is_checkpointed()).await;
            // In the log of the second segment: starts and ends of sends of the first.
            for &id in &ids[..3] {
                begin_one(store, session, begin_of(id, &draft(), at(1))).await.expect("begun");
                store.finish(session, finished(id, 200, at(1))).await.expect("ended");
            }
            let (subject, recovered) = subject
                .harmed(|subject| {
                    cut(subject, frames_left);
                    harm(subject);
                })
                .await;
            let want = Want { tenant: tenant("acme"), room: 99, full: Vec::new() };
            let claimed = subject.store().claim(subject.session(), vec![want], 99).await.expect("claimed").sends;
            let twice: Vec<_> = claimed.iter().filter(|send| ids[..3].contains(&send.id)).collect();
            let which = format!("{name}, checkpointed: {checkpointed}, {frames_left} frames left");
            assert!(twice.is_empty(), "{which}: {} would be made twice", twice.len());
            assert!(!recovered.damage.is_empty(), "{which}: and nothing was told");
        }
    }
}

#[tokio::test]
async fn outcomes_of_the_hour_are_counted_again_after_a_start_whatever_records_are_damaged() {
    for segments in [3, OnDisk::limits().sends] {
        let mut subject = OnDisk::with(SegmentLimits { sends: segments, ..OnDisk::limits() });
        for (name, status, second) in [("a", 200, 1), ("a", 200, 50), ("a", 500, 60), ("b", 204, 70), ("b", 200, 70)] {
            let id = accept_one(subject.store(), subject.session(), &draft().of(name)).await;
            subject.store().finish(subject.session(), finished(id, status, at(second))).await.expect("ended");
        }
        let held = draft().of("c").in_execution("e").send();
        accept_new(subject.store(), subject.session(), call(vec![held], Some("e"))).await;
        let end =
            subject.store().end_execution(subject.session(), tenant("c"), execution("e"), Ending::Discard, at(80));
        end.await.expect("discarded");
        let of =
            async |subject: &OnDisk| subject.store().outcomes_of_the_hour(at(40 + 59 * 60)).await.expect("counted");
        let before = of(&subject).await;
        assert_eq!(before[&tenant("a")], HashMap::from([(Outcome::Delivered, 1), (Outcome::Rejected, 1)]));
        assert_eq!(before[&tenant("b")], HashMap::from([(Outcome::Delivered, 2)]));
        assert_eq!(before[&tenant("c")], HashMap::from([(Outcome::Discarded, 1)]));
        subject = subject.crash().await;
        assert_eq!(of(&subject).await, before, "{segments} to a segment");
        if segments == 3 {
            subject.until_all_checkpointed().await;
            let (harmed, _) = subject
                .harmed(|subject| {
                    let starts = frames(&subject.file("log"));
                    change(&subject.file("log"), |log| log[starts[1] + 100] ^= 1);
                })
                .await;
            assert_eq!(of(&harmed).await, before, "with a damaged record");
        }
    }
}

#[tokio::test]
async fn ends_by_a_clock_that_was_ahead_are_none_of_the_last_hour_after_a_start() {
    for segments in [2, OnDisk::limits().sends] {
        let subject = OnDisk::with(SegmentLimits { sends: segments, ..OnDisk::limits() });
        let now = crate::clock::wall();
        let ends = [(200, -60), (200, 2 * 3600), (500, 2 * 3600), (200, 3 * 3600), (404, -2), (200, -2 * 3600)];
        for (status, seconds) in ends {
            let id = accept_one(subject.store(), subject.session(), &draft().of("a").created(now)).await;
            let at = now + jiff::SignedDuration::from_secs(seconds);
            subject.store().finish(subject.session(), finished(id, status, at)).await.expect("ended");
        }
        let subject = subject.crash().await;
        let counts = subject.store().outcomes_of_the_hour(crate::clock::wall()).await.expect("counted");
        let expected = HashMap::from([(Outcome::Delivered, 1), (Outcome::Rejected, 1)]);
        assert_eq!(counts[&tenant("a")], expected, "{segments} to a segment");
    }
}

#[tokio::test]
async fn no_number_of_a_damaged_end_is_believed() {
    // Of the number in the tail, which stands behind the frame's header, the send's id and its place.
    for bit in [0, 7, 27, 33, 40, 55, 62, 63] {
        for end in [3, 5] {
            let subject = OnDisk::fresh().await;
            for _ in 0..5 {
                let id = accept_one(subject.store(), subject.session(), &draft()).await;
                subject.store().finish(subject.session(), finished(id, 200, at(1))).await.expect("ended");
            }
            // What is behind a loss shows that it is one, and not the end of what was written.
            accept_one(subject.store(), subject.session(), &draft()).await;
            let newest = subject.store().newest_place().await.expect("a place").to_bits();
            let (subject, recovered) = subject
                .harmed(|subject| {
                    let at = frames(&subject.file("log"))[2 * end] + frame::HEADER_BYTES + 24 + bit / 8;
                    change(&subject.file("log"), |log| log[at] ^= 1 << (bit % 8));
                })
                .await;
            assert!(recovered.damage[0].contains("log is unreadable at bytes"), "{:?}", recovered.damage);
            let place = subject.store().newest_place().await.expect("a place").to_bits();
            // One more where the send that lost its end is given one.
            assert!((newest..=newest + 1).contains(&place), "bit {bit} of end {end}: {place} after {newest}");
            let id = accept_one(subject.store(), subject.session(), &draft()).await;
            subject.store().finish(subject.session(), finished(id, 200, at(1))).await.expect("ended");
            subject.store().health().expect("it writes");
            let taken = |name: &str| fs::metadata(subject.file(name)).unwrap().blocks() * 512;
            assert!(taken("ends") + taken("table") < 1 << 20, "bit {bit}: {} bytes are set aside", taken("ends"));
        }
    }
}

#[tokio::test]
async fn no_flipped_bit_of_a_rows_number_makes_tail_or_table_larger_than_their_log() {
    const SENDS: u64 = 4;
    // Of a row's number: in which kind of frame, and where in its payload.
    let rows = [(2_u8, 16), (4, 20), (5, 20)];
    for (kind, at, bit) in rows.into_iter().flat_map(|(kind, at)| [0, 13, 31].map(|bit| (kind, at, bit))) {
        // The last such frame, behind which nothing says more, and one with others behind it.
        for last in [true, false] {
            let subject = OnDisk::fresh().await;
            for _ in 0..SENDS {
                let id = accept_one(subject.store(), subject.session(), &draft()).await;
                begin_one(subject.store(), subject.session(), begin_of(id, &draft(), conformance::at(1)))
                    .await
                    .expect("begun");
                subject.store().finish(subject.session(), finished(id, 200, conformance::at(2))).await.expect("ended");
            }
            let (subject, recovered) = subject
                .harmed(|subject| {
                    let starts = frames(&subject.file("log"));
                    change(&subject.file("log"), |log| {
                        let mut of_kind: Vec<usize> =
                            starts.into_iter().filter(|&start| log.get(start + 4) == Some(&kind)).collect();
                        let start = if last { of_kind.pop() } else { of_kind.get(1).copied() }.expect("there is one");
                        log[start + frame::HEADER_BYTES + at + bit / 8] ^= 1 << (bit % 8);
                    });
                })
                .await;
            let which = format!("bit {bit} from byte {at} of frame kind {kind}, the last: {last}");
            assert!(!recovered.damage.is_empty() || last, "{which}: nothing was told");
            // What was interrupted for it has its own number.
            let newest = subject.shared().last_seq.load(Ordering::Acquire);
            assert!((SENDS - 1..=2 * SENDS).contains(&newest), "{which}: the tail reaches to {newest}");
            let id = accept_one(subject.store(), subject.session(), &draft()).await;
            begin_one(subject.store(), subject.session(), begin_of(id, &draft(), conformance::at(3)))
                .await
                .expect("begun");
            let place =
                subject.store().finish(subject.session(), finished(id, 200, conformance::at(4))).await.expect("ended");
            assert_eq!(place.to_bits(), newest + 1, "{which}");
            for name in ["table", "ends"] {
                let taken = fs::metadata(subject.file(name)).unwrap().blocks() * 512;
                assert!(taken <= 256 * 1024, "{which}: {name} takes {taken} bytes");
            }
        }
    }
}

#[tokio::test]
async fn a_sound_frame_that_no_such_log_can_have_is_damage_and_no_measure() {
    // As a disk has it that wrote another log's block here: each frame is sound.
    let subject = OnDisk::fresh().await;
    let id = accept_one(subject.store(), subject.session(), &draft()).await;
    begin_one(subject.store(), subject.session(), begin_of(id, &draft(), conformance::at(1))).await.expect("begun");
    subject.store().finish(subject.session(), finished(id, 200, conformance::at(2))).await.expect("ended");
    let again = |log: &mut Vec<u8>, starts: &[usize], kind: u8, change: fn(&mut Vec<u8>)| {
        let at = starts.iter().position(|&start| log[start + 4] == kind).expect("there is one");
        let mut payload = log[starts[at] + frame::HEADER_BYTES..starts[at + 1]].to_vec();
        change(&mut payload);
        let kind = if kind == 2 { frame::FrameKind::Send } else { frame::FrameKind::Finish };
        frame::append(log, kind, &[&payload], None);
    };
    let (subject, recovered) = subject
        .harmed(|subject| {
            let starts = frames(&subject.file("log"));
            change(&subject.file("log"), |log| {
                again(log, &starts, 2, |send| send[16..20].copy_from_slice(&u32::MAX.to_le_bytes()));
                again(log, &starts, 5, |end| end[24..32].copy_from_slice(&u64::MAX.to_le_bytes()));
            });
        })
        .await;
    assert!(recovered.damage.iter().any(|told| told.contains("a row that this log cannot have")), "{recovered:?}");
    assert_eq!(subject.shared().last_seq.load(Ordering::Acquire), 2);
    let record = subject.store().record(Reach::All, id, false).await.unwrap().unwrap();
    assert_eq!(record.ended.map(|ended| ended.outcome), Some(Outcome::Delivered));
    accept_one(subject.store(), subject.session(), &draft()).await;
}
