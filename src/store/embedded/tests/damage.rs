//! Files that were torn, cut and changed.

use super::*;
use crate::store::StatusFilter;

#[tokio::test]
async fn a_log_torn_at_any_byte_keeps_every_whole_call_before_it() {
    let subject = OnDisk::fresh().await;
    let one = accept_one(subject.store(), subject.session(), &draft()).await;
    let call_of_three = call((0..3).map(|_| draft().in_execution("e").send()).collect(), Some("e"));
    let three: Vec<_> = call_of_three.sends.iter().map(|send| send.id).collect();
    accept_new(subject.store(), subject.session(), call_of_three).await;
    let last = accept_one(subject.store(), subject.session(), &draft()).await;
    let (subject, _) = subject.harmed(|_| {}).await;
    let whole = fs::read(subject.file("log")).unwrap();
    let ends = frames(&subject.file("log"));
    assert_eq!(ends.len(), 7, "a head and five sends");
    let ids = [&[one][..], &three, &[last]].concat();
    let mut subject = subject;
    for cut in (ends[1]..whole.len()).step_by(7).chain(ends[1..].iter().copied()) {
        let (torn, recovered) = subject
            .harmed(|subject| {
                fs::write(subject.file("log"), &whole[..cut]).unwrap();
                // The tables had not reached the disk either.
                fs::write(subject.file("table"), []).unwrap();
            })
            .await;
        let frames = ends.iter().filter(|&&end| end <= cut).count() - 2;
        let calls = [0, 1, 1, 1, 4, 5][frames];
        assert_eq!(torn.all().await, ids[..calls], "cut at {cut}");
        assert_eq!(recovered.damage, Vec::<String>::new(), "cut at {cut}");
        assert_eq!(fs::metadata(torn.file("log")).unwrap().len(), ends[1 + calls] as u64, "cut at {cut}");
        subject = torn;
    }
}

#[tokio::test]
async fn a_changed_byte_is_told_with_file_and_extent_and_the_rest_is_kept() {
    let subject = OnDisk::fresh().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(accept_one(subject.store(), subject.session(), &draft().in_execution("e")).await);
    }
    subject.store().finish(subject.session(), finished(ids[4], 200, at(1))).await.expect("ended");
    let (subject, recovered) = subject
        .harmed(|subject| {
            let starts = frames(&subject.file("log"));
            change(&subject.file("log"), |log| log[starts[3] + 40] ^= 1);
        })
        .await;
    let starts = 4;
    assert_eq!(recovered.damage.len(), 1, "{:?}", recovered.damage);
    assert!(recovered.damage[0].contains("00000001/log is unreadable at bytes "), "{:?}", recovered.damage);
    assert_eq!(subject.all().await, [ids[0], ids[1], ids[3], ids[4]]);
    let record = subject.store().record(Reach::All, ids[4], true).await.unwrap().unwrap();
    assert_eq!(record.response.map(|answer| answer.status), Some(200));
    assert_eq!(claimed(subject.store(), subject.session()).await, [ids[0], ids[1], ids[3]]);
    let indexes =
        accept_new(subject.store(), subject.session(), call(vec![draft().in_execution("e").send()], None)).await;
    assert_eq!(indexes, [Some(starts)], "the four that are left have indexes 0, 1, 3 and 4");
}

/// A store in which everything has happened to a send that may: the ids that wait, and those that may never go out.
async fn eventful() -> (OnDisk, Vec<SendId>, Vec<SendId>) {
    // In memory: it is opened some thousand times, and each would wait for syncs.
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let mut subject = OnDisk { store: None, session: None, directory, limits: OnDisk::limits() };
    subject.open();
    let (store, session) = (subject.store(), subject.session());
    let draft = draft();
    let held = |name: &str| draft.clone().in_execution(name);
    let hold = async |name: &str| {
        let send = held(name).send();
        let id = send.id;
        accept_new(store, session, call(vec![send], Some(name))).await;
        id
    };
    let end = async |name: &str, ending| {
        let ended = end_execution(store, session, draft.tenant.clone(), execution(name), ending, at(2)).await;
        ended.expect("ended");
    };
    let begin = async |id| drop(begin_one(store, session, begin_of(id, &draft, at(3))).await.expect("begun"));
    let finish = async |id| assert!(store.finish(session, finished(id, 200, at(3))).await.is_ok());

    let [delivered, flying, expired, queued] = [
        accept_one(store, session, &draft).await,
        accept_one(store, session, &draft).await,
        accept_one(store, session, &draft).await,
        accept_one(store, session, &draft).await,
    ];
    let [open, released, released_and_made, discarded, discarded_by_halves] =
        [hold("open").await, hold("released").await, hold("made").await, hold("discarded").await, hold("halves").await];
    begin(delivered).await;
    finish(delivered).await;
    begin(flying).await;
    finish(expired).await;
    end("released", Ending::Finish(FinishedBy::Call)).await;
    end("made", Ending::Finish(FinishedBy::Call)).await;
    claimed(store, session).await;
    begin(released_and_made).await;
    finish(released_and_made).await;
    end("discarded", Ending::Discard).await;
    // Its process died before the sends got their ends.
    let (tenant, name) = (draft.tenant.clone(), execution("halves"));
    let job = EndJob { by: session.clone(), tenant, execution: name, ending: Ending::Discard, at: at(2) };
    store.ask(|answer| Job::End(job, answer)).await.expect("ended");
    // What is behind a loss shows that it is one, and not the end of what was written.
    let last = accept_one(store, session, &draft).await;
    let over = vec![delivered, flying, expired, released_and_made, discarded, discarded_by_halves];
    (subject, vec![queued, open, released, last], over)
}

#[tokio::test]
async fn no_changed_byte_lets_a_send_go_out_that_was_made_ended_or_called_off() {
    let (mut subject, waiting, over) = eventful().await;
    subject.store = None;
    let (log, table) = (fs::read(subject.file("log")).unwrap(), fs::read(subject.file("table")).unwrap());
    let starts = frames(&subject.file("log"));
    let last = starts[starts.len() - 2];
    // Each part of a frame's header and of what it is about, and some way into the rest.
    let parts = [0, 4, 5, 8, 12, 17, 33, 37, 41, 75];
    let bytes = starts.iter().flat_map(|start| parts.map(|part| start + part)).filter(|byte| *byte < last);
    let harms = bytes.map(|byte| (byte, 1 << (byte % 8)));
    let cuts = [last / 3, last / 2, last * 4 / 5];
    // With the table, as after the death of the process, and without, as after a loss of power.
    for (harm, with_table) in harms.map(Ok).chain(cuts.map(Err)).zip([true, false, false].into_iter().cycle()) {
        let with_table = with_table || harm.is_err();
        let mut harmed = log.clone();
        match harm {
            Ok((byte, bit)) => harmed[byte] ^= bit,
            Err(cut) => harmed.truncate(cut),
        }
        fs::remove_dir_all(subject.path().join("pieces")).unwrap();
        fs::create_dir_all(subject.file("log").parent().unwrap()).unwrap();
        fs::write(subject.file("log"), harmed).unwrap();
        fs::write(subject.file("bodies"), "").unwrap();
        if with_table {
            fs::write(subject.file("table"), &table).unwrap();
        }
        subject.open();
        let (store, session) = (subject.store(), subject.session());
        let recovered = store.recover(session, at(1000)).await.expect("recovered");
        let mut pending = claimed(store, session).await;
        let held = store.list(Filter::of(Reach::All), None, 200).await.unwrap().sends.into_iter();
        pending.extend(held.filter(|record| record.state == crate::record::State::Held).map(|record| record.id));
        pending.sort();
        let gone: Vec<_> = pending.iter().filter(|id| over.contains(id)).collect();
        assert!(gone.is_empty(), "{harm:?}, table: {with_table}: {gone:?} would be made: {:?}", recovered.damage);
        let told = recovered.damage.iter().any(|line| !line.contains("/bodies "));
        assert!(told || pending == waiting, "{harm:?}, table: {with_table}: {pending:?} wait and nothing was told");
        subject.store = None;
    }
}

#[tokio::test]
async fn a_log_that_lost_its_end_is_told_by_its_table() {
    let subject = OnDisk::fresh().await;
    let first = accept_one(subject.store(), subject.session(), &draft()).await;
    accept_one(subject.store(), subject.session(), &draft()).await;
    accept_one(subject.store(), subject.session(), &draft()).await;
    let (subject, recovered) = subject
        .harmed(|subject| {
            let starts = frames(&subject.file("log"));
            change(&subject.file("log"), |log| log.truncate(starts[2] + 20));
        })
        .await;
    assert_eq!(recovered.damage.len(), 2, "{:?}", recovered.damage);
    assert!(recovered.damage[0].contains("the last 2 sends that were accepted: they are lost"));
    assert!(recovered.damage[1].contains("1 sends that wait may have been made by what is lost"));
    assert_eq!(recovered.interrupted, 1, "its begin may have stood there");
    assert_eq!(subject.all().await, [first]);
    accept_one(subject.store(), subject.session(), &draft()).await;
}

#[tokio::test]
async fn a_lost_body_is_told_and_its_record_stays() {
    let subject = OnDisk::fresh().await;
    let first = accept_one(subject.store(), subject.session(), &draft()).await;
    let second = accept_one(subject.store(), subject.session(), &draft()).await;
    let (subject, recovered) =
        subject.harmed(|subject| change(&subject.file("bodies"), |bodies| bodies.truncate(bodies.len() - 3))).await;
    assert!(recovered.damage[0].contains("00000001/bodies ends at byte"), "{:?}", recovered.damage);
    let whole = subject.store().record(Reach::All, first, true).await.unwrap().unwrap();
    assert_eq!(whole.request.body.and_then(|body| body.bytes), draft().body);
    let lost =
        subject.store().record(Reach::All, second, true).await.unwrap().unwrap().request.body.expect("it had one");
    assert_eq!((lost.bytes, lost.truncated), (None, true));
    assert!(subject.store().damage().last().unwrap().contains("00000001/bodies is unreadable at bytes"));
    let told = subject.store().damage().len();
    assert!(subject.store().record(Reach::All, second, true).await.unwrap().is_some());
    assert_eq!(subject.store().damage().len(), told, "each place is told once");
    let begun = begin_one(subject.store(), subject.session(), begin_of(second, &draft(), at(1))).await;
    assert!(matches!(begun, Err(StoreError::Damaged(_))), "half a request is not sent");
}

/// Three checkpointed segments of two sends each, all done but the last, and the newest segment.
async fn checkpointed() -> (OnDisk, Vec<SendId>) {
    let subject = OnDisk::with(SegmentLimits { sends: 2, ..OnDisk::limits() });
    let mut ids = Vec::new();
    for turn in 0..6 {
        let draft = draft().in_execution(&format!("e{turn}")).in_workflow("w").created(at(turn));
        ids.push(accept_one(subject.store(), subject.session(), &draft).await);
        if turn < 5 {
            subject
                .store()
                .finish(subject.session(), finished(ids[turn as usize], 200, at(turn)))
                .await
                .expect("ended");
        }
    }
    // Segments with a send that waits are checkpointed once enough newer ones are there.
    for _ in 0..10 {
        let id = accept_one(subject.store(), subject.session(), &draft()).await;
        subject.store().finish(subject.session(), finished(id, 200, at(100))).await.expect("ended");
    }
    subject.until_checkpointed().await;
    (subject, ids)
}

#[tokio::test]
async fn checkpointed_segments_answer_as_they_did_and_without_their_index_too() {
    let (subject, ids) = checkpointed().await;
    let check = async |subject: &OnDisk, when: &str| {
        for (turn, &id) in ids.iter().enumerate() {
            let name = execution(&format!("e{turn}"));
            let seen = subject.store().execution(tenant("acme"), name, None, 10).await.unwrap().expect(when);
            assert_eq!(seen.sends.iter().map(|record| record.id).collect::<Vec<_>>(), [id], "{when}");
            assert_eq!(seen.delivered, u64::from(turn < 5), "{when}");
        }
        let filter = Filter { workflow: Some("w".to_owned()), ..Filter::of(Reach::All) };
        let page = subject.store().list(filter, None, 10).await.unwrap();
        assert_eq!(page.sends.iter().rev().map(|record| record.id).collect::<Vec<_>>(), ids, "{when}");
        assert_eq!(subject.store().waiting_in_all().queued, 1, "{when}");
        let (items, _) = subject.store().finished_after(TailPlace::START, Filter::of(Reach::All), 3).await.unwrap();
        assert_eq!(items.iter().map(|item| item.record.id).collect::<Vec<_>>(), ids[..3], "{when}");
    };
    check(&subject, "checkpointed").await;
    let (subject, recovered) = subject.harmed(|_| {}).await;
    assert_eq!(recovered, Recovered::default());
    check(&subject, "opened again").await;
    let (subject, recovered) = subject.harmed(|subject| fs::remove_file(subject.file("index")).unwrap()).await;
    assert_eq!(recovered, Recovered::default());
    check(&subject, "without an index").await;
    subject.until_checkpointed().await;
    let (subject, recovered) = subject.harmed(|subject| change(&subject.file("index"), |index| index[20] ^= 1)).await;
    assert_eq!(recovered, Recovered::default());
    check(&subject, "with a changed index").await;
    subject.until_checkpointed().await;
    let (subject, recovered) = subject.harmed(|subject| fs::write(subject.file("table"), b"").unwrap()).await;
    assert_eq!(recovered, Recovered::default());
    check(&subject, "with its table emptied").await;
}

/// Flips a bit of a row while the store has the file open.
fn flip_in_table(path: &Path, row: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("it is there");
    let at = row * table::ROW_BYTES as u64 + 50;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("readable");
    file.write_all_at(&[byte[0] ^ 4], at).expect("writable");
}

#[tokio::test]
async fn a_damaged_row_of_a_send_that_waits_costs_nobody_anything() {
    let (subject, ids) = checkpointed().await;
    let table = subject.path().join("pieces/00000003/table");
    // Damaged while it was closed: made anew from the log.
    let (subject, recovered) = subject.harmed(|_| flip_in_table(&table, 1)).await;
    assert_eq!(recovered, Recovered::default());
    assert_eq!(waiting_again(subject.store(), subject.session()).await, ids[5..]);
    subject.until_checkpointed().await;

    // Damaged while it is open: its send goes its way, and so does everyone's.
    flip_in_table(&table, 1);
    let want = Want { tenant: draft().tenant, room: 9, full: Vec::new() };
    let claimed = subject.store().claim(subject.session(), vec![want], 9).await.expect("claimed").sends;
    assert_eq!(claimed.iter().map(|send| send.id).collect::<Vec<_>>(), ids[5..]);
    let begin = Begin { spec: Some(draft().send().spec), ..begin_of(ids[5], &draft(), at(200)) };
    begin_one(subject.store(), subject.session(), begin).await.expect("begun");
    subject.store().finish(subject.session(), finished(ids[5], 200, at(200))).await.expect("ended");
    assert!(subject.store().health().is_ok());
    let next = accept_one(subject.store(), subject.session(), &draft()).await;
    subject.store().finish(subject.session(), finished(next, 200, at(201))).await.expect("ended");
    assert!(subject.store().damage().last().expect("told").contains("00000003/table is unreadable at bytes 96 to 192"));
    let (subject, recovered) = subject.harmed(|_| {}).await;
    assert_eq!(recovered, Recovered::default());
    for id in [ids[5], next] {
        let record = subject.store().record(Reach::All, id, false).await.unwrap().expect("known");
        assert_eq!(record.ended.map(|ended| ended.outcome), Some(Outcome::Delivered));
    }
    let filter =
        Filter { workflow: Some("w".to_owned()), outcomes: vec![Outcome::Delivered], ..Filter::of(Reach::All) };
    let page = subject.store().list(filter, None, 10).await.unwrap();
    assert_eq!(page.sends.iter().rev().map(|record| record.id).collect::<Vec<_>>(), ids);
}

/// The ends of one batch are written together, over rows of others: whatever of the table is damaged, each is told of,
/// and no other row changes.
#[tokio::test]
async fn what_ends_together_leaves_the_rows_between_as_they_are() {
    let ending = [59, 1, 2, 5, 17, 18, 40];
    // Of what ends nothing is damaged, a row is, or the table ends before it.
    for harm in ["", "a row", "cut short"] {
        let disk = OnDisk::fresh().await;
        let mut ids = Vec::new();
        for _ in 0..60 {
            let id = accept_one(disk.store(), disk.session(), &draft()).await;
            begin_one(disk.store(), disk.session(), begin_of(id, &draft(), at(1))).await.expect("begun");
            ids.push(id);
        }
        let path = disk.file_of_newest("table");
        // One that goes on.
        flip_in_table(&path, 3);
        match harm {
            "a row" => flip_in_table(&path, 17),
            "cut short" => change(&path, |table| table.truncate(40 * table::ROW_BYTES)),
            _ => {}
        }
        let before = fs::read(&path).expect("readable");
        let held_up = locked(&disk.shared().faults.refusing);
        let mut ends = Vec::new();
        for number in ending {
            let end = disk.store().finish(disk.session(), finished(ids[number], 200, at(2)));
            let mut end = Box::pin(tokio::task::unconstrained(end));
            assert!(end.as_mut().now_or_never().is_none());
            ends.push(end);
        }
        drop(held_up);
        for end in ends {
            end.await.expect("ended");
        }
        let after = fs::read(&path).expect("readable");
        let rows = before.chunks(table::ROW_BYTES).zip(after.chunks(table::ROW_BYTES)).enumerate();
        for (number, (before, after)) in rows {
            let changes = ending.contains(&number) && !(harm == "a row" && number == 17);
            assert_eq!(before != after, changes, "row {number}, {harm:?}");
        }
        let lost: &[usize] = match harm {
            "a row" => &[17],
            "cut short" => &[40, 59],
            _ => &[],
        };
        let told = disk.store().damage();
        for number in lost {
            let at = number * table::ROW_BYTES;
            let where_ = format!("table is unreadable at bytes {at} to ");
            assert!(told.iter().any(|line| line.contains(&where_)), "{where_}: {told:?}");
        }
        assert_eq!(told.len(), lost.len(), "{told:?}");
        let (disk, recovered) = disk.harmed(|_| {}).await;
        assert_eq!(recovered.interrupted as usize, ids.len() - ending.len());
        for number in ending {
            let record = disk.store().record(Reach::All, ids[number], false).await.unwrap().expect("known");
            assert_eq!(record.ended.map(|ended| ended.outcome), Some(Outcome::Delivered), "{number}, {harm:?}");
        }
        let (items, _) = disk.store().finished_after(TailPlace::START, Filter::of(Reach::All), 7).await.unwrap();
        let told: Vec<_> = items.iter().map(|item| item.record.id).collect();
        assert_eq!(told, ending.map(|number| ids[number]), "in the order in which they ended");
    }
}

#[tokio::test]
async fn a_damaged_row_is_told_and_its_record_is_read_from_the_log() {
    // Of sends that ended in the log they were accepted in, and of one that did in a later one.
    for (number, rows) in [(1, &[1][..]), (3, &[0, 1])] {
        for harm in ["a bit", "a bit of the id", "zeroed"] {
            let (subject, ids) = checkpointed().await;
            let next = subject.store().finish(subject.session(), finished(ids[5], 404, at(300))).await;
            next.expect("it was begun");
            let of_segment = subject.path().join(format!("pieces/{number:08}/table"));
            let seen = async |subject: &OnDisk| {
                let filter = Filter { workflow: Some("w".to_owned()), ..Filter::of(Reach::All) };
                let page = subject.store().list(filter, None, 10).await.unwrap();
                let (items, _) =
                    subject.store().finished_after(TailPlace::START, Filter::of(Reach::All), 9).await.unwrap();
                let mut each = Vec::new();
                for &id in &ids {
                    each.push(subject.store().record(Reach::All, id, true).await);
                }
                (page.sends, items.into_iter().map(|item| item.record).collect::<Vec<_>>(), each)
            };
            let before = seen(&subject).await;
            for &row in rows {
                let file = fs::OpenOptions::new().write(true).open(&of_segment).expect("it is there");
                let at = row * table::ROW_BYTES as u64;
                match harm {
                    "a bit" => flip_in_table(&of_segment, row),
                    "a bit of the id" => file.write_all_at(&[0xa5], at + 3).expect("writable"),
                    _ => file.write_all_at(&[0; table::ROW_BYTES], at).expect("writable"),
                }
            }
            let which = format!("{harm} of rows {rows:?} in segment {number}");
            assert_eq!(seen(&subject).await, before, "{which}");
            let told = subject.store().damage();
            assert!(
                told.iter().any(|line| line.contains(&format!("{number:08}/table is unreadable"))),
                "{which}: {told:?}"
            );
            let (subject, recovered) = subject.harmed(|_| {}).await;
            assert_eq!(recovered, Recovered::default(), "{which}");
            assert_eq!(seen(&subject).await, before, "{which}, opened again");
        }
    }
}

#[tokio::test]
async fn of_a_row_that_neither_table_nor_log_has_nobody_says_that_it_never_was() {
    let (subject, ids) = checkpointed().await;
    let log = subject.file("log");
    let starts = frames(&log);
    flip_in_table(&subject.file("table"), 1);
    // The second send's, wherever it stands.
    for at in &starts[1..starts.len() - 1] {
        change(&log, |log| log[at + 60] ^= 1);
    }
    let record = subject.store().record(Reach::All, ids[1], true).await;
    assert!(matches!(record, Err(StoreError::Damaged(_))), "{record:?}");
    let never = subject.store().record(Reach::All, conformance::id_at(at(-1_000_000)), true).await;
    assert_eq!(never, Ok(None));
}

/// What the log of a segment says behind the head of the next does not count, so nothing may be answered for there.
#[tokio::test]
async fn a_segment_that_cannot_get_its_name_costs_nothing() {
    let subject = OnDisk::with(SegmentLimits { sends: 2, ..OnDisk::limits() });
    let refuse = |subject: &OnDisk| subject.refuse(&[(Fault::Name, io::ErrorKind::StorageFull)]);
    let mut ids = vec![accept_one(subject.store(), subject.session(), &draft()).await];
    refuse(&subject);
    ids.push(accept_one(subject.store(), subject.session(), &draft()).await);
    for _ in 0..3 {
        let refused = subject.store().accept(subject.session(), call(vec![draft().send()], None)).await;
        assert!(matches!(refused, Err(StoreError::CannotWrite(_))), "{refused:?}");
    }
    assert!(subject.store().health().is_err());
    // It dies there and then.
    let (subject, _) = subject.harmed(|_| {}).await;
    assert_eq!((subject.all().await, subject.store().damage()), (ids.clone(), vec![]));
    // It goes on once the disk does.
    ids.push(accept_one(subject.store(), subject.session(), &draft()).await);
    refuse(&subject);
    ids.push(accept_one(subject.store(), subject.session(), &draft()).await);
    assert!(subject.store().accept(subject.session(), call(vec![draft().send()], None)).await.is_err());
    subject.refuse(&[]);
    subject.until_healthy().await;
    for _ in 0..5 {
        ids.push(accept_one(subject.store(), subject.session(), &draft()).await);
    }
    let (subject, _) = subject.harmed(|_| {}).await;
    assert_eq!((subject.all().await, subject.store().damage()), (ids, vec![]));
}

/// The others do not wait for it, and it is told with its file.
#[tokio::test]
async fn an_index_that_cannot_be_read_when_it_is_to_be_written_again_is_told_and_holds_up_none() {
    // The third segment has a send that waits, so its index is written again once that has ended.
    let (subject, ids) = checkpointed().await;
    change(&subject.path().join("pieces/00000003/index"), |index| {
        let length = index.len();
        index[length - 60..].fill(0xff);
    });
    subject.store().finish(subject.session(), finished(ids[5], 200, at(200))).await.expect("ended");
    let mut latest = ids[5];
    for _ in 0..4 {
        latest = accept_one(subject.store(), subject.session(), &draft()).await;
        subject.store().finish(subject.session(), finished(latest, 200, at(201))).await.expect("ended");
    }
    let segments = subject.shared().segments();
    until(|| segments[..segments.len() - 1].iter().all(|segment| segment.is_checkpointed_for_good())).await;
    let told = subject.store().damage();
    assert!(told.len() == 1 && told[0].contains("00000003/index is unreadable"), "{told:?}");
    let (subject, _) = subject.harmed(|_| {}).await;
    assert_eq!(subject.store().damage(), [""; 0]);
    let filter = Filter { statuses: vec![StatusFilter::One(200)], ..Filter::of(Reach::All) };
    let page = subject.store().list(filter, None, 50).await.expect("a page");
    assert_eq!((page.sends.len(), page.sends[0].id), (20, latest));
}

#[tokio::test]
async fn an_index_that_cannot_be_written_yet_is_no_damage() {
    let (subject, ids) = checkpointed().await;
    let in_the_way = subject.path().join("pieces/00000003/index.new");
    fs::create_dir(&in_the_way).expect("made");
    subject.store().finish(subject.session(), finished(ids[5], 200, at(200))).await.expect("ended");
    let third = subject.shared().segments()[2].clone();
    // Long enough for some tries.
    std::thread::sleep(Duration::from_millis(300));
    assert!(!third.is_checkpointed_for_good());
    assert_eq!(subject.store().damage(), [""; 0]);
    fs::remove_dir(&in_the_way).expect("removed");
    until(|| third.is_checkpointed_for_good()).await;
    assert_eq!(subject.store().damage(), [""; 0]);
    assert!(subject.path().join("pieces/00000003/index").exists());
}

#[tokio::test]
async fn an_index_is_not_taken_for_that_of_another_segment() {
    let (subject, ids) = checkpointed().await;
    let harm = |subject: &OnDisk| {
        fs::copy(subject.path().join("pieces/00000002/index"), subject.file("index")).expect("copied");
    };
    let (subject, _) = subject.harmed(harm).await;
    for (turn, &id) in ids.iter().enumerate() {
        let name = execution(&format!("e{turn}"));
        let seen = subject.store().execution(tenant("acme"), name, None, 10).await.unwrap().expect("known");
        assert_eq!(seen.sends.iter().map(|record| record.id).collect::<Vec<_>>(), [id]);
    }
}

#[tokio::test]
async fn past_so_many_segments_only_records_make_another() {
    let few = SegmentLimits { sends: 4, bodies_bytes: 1, many: 5, ..OnDisk::limits() };
    let subject = OnDisk::with(few);
    let draft = draft();
    let accept = async || {
        accept_one(subject.store(), subject.session(), &draft).await;
        // The writer makes room before it looks at what comes next.
        let unknown = draft.send();
        let begin = Begin { spec: Some(unknown.spec.clone()), ..begin_of(unknown.id, &draft, at(1)) };
        assert!(matches!(begin_one(subject.store(), subject.session(), begin).await, Err(StoreError::NoSuchSend)));
        subject.shared().segments().len()
    };
    for turn in 1..5 {
        assert_eq!(accept().await, turn + 1, "each body fills a segment");
    }
    for _ in 0..3 {
        assert_eq!(accept().await, 5);
    }
    assert_eq!(accept().await, 6, "four sends fill one in any case");
}

/// Where the shares stand in an index, and what follows them.
fn shares_of_index(index: &[u8]) -> usize {
    let (_, at) = index.split_last_chunk().expect("a number");
    u64::from_le_bytes(*at) as usize
}

#[tokio::test]
async fn an_index_from_before_it_had_shares_is_taken_as_it_is_and_gets_them() {
    for with_pairs in [false, true] {
        let (subject, ids) = checkpointed().await;
        let (subject, _) = subject
            .harmed(|subject| {
                change(&subject.file("index"), |index| {
                    let at = shares_of_index(index);
                    index.truncate(at);
                    if with_pairs {
                        // As it was when it had the pairs of terms there.
                        frame::append(
                            index,
                            frame::FrameKind::Pairs,
                            &[&wire::encode(&Some(vec![7_u64; 9]), Vec::new())],
                            None,
                        );
                        index.extend_from_slice(&(at as u64).to_le_bytes());
                    }
                });
                // Whoever replays the log meets this.
                let starts = frames(&subject.file("log"));
                change(&subject.file("log"), |log| log[starts[1] + 100] ^= 1);
            })
            .await;
        assert_eq!(subject.store().damage(), [""; 0]);
        until(|| subject.shared().segments()[0].is_checkpointed_for_good()).await;
        let index = fs::read(subject.file("index")).expect("readable");
        assert!(
            frame::length_at(&fs::File::open(subject.file("index")).unwrap(), shares_of_index(&index) as u64)
                .is_ok_and(|length| length.is_some())
        );
        for (status, wanted) in [(200, &ids[..5]), (503, &[])] {
            let filter = Filter {
                workflow: Some("w".to_owned()),
                statuses: vec![StatusFilter::One(status)],
                ..Filter::of(Reach::All)
            };
            let page = subject.store().list(filter, None, 10).await.expect("a page");
            assert_eq!(page.sends.iter().rev().map(|record| record.id).collect::<Vec<_>>(), wanted);
        }
    }
}

#[tokio::test]
async fn a_lost_index_is_made_anew_from_its_own_segment_alone() {
    let key = IdempotencyKey {
        tenant: tenant("acme"),
        path: "/v1/sends".to_owned(),
        key: "k".to_owned(),
        fingerprint: [1; 32],
    };
    for (what, is_whole) in [("index", true), ("table", false), ("a row", false), ("ends", false), ("log", false)] {
        // The first segment has a keyed call of an execution that was finished, and a send that waits.
        let subject = OnDisk::with(SegmentLimits { sends: 3, ..OnDisk::limits() });
        let (store, session) = (subject.store(), subject.session());
        let mut keyed = call(vec![draft().in_execution("e").send(), draft().in_execution("e").send()], Some("e"));
        keyed.idempotency = Some(key.clone());
        let ids: Vec<SendId> = keyed.sends.iter().map(|send| send.id).collect();
        accept_new(store, session, keyed).await;
        store
            .end_execution(subject.session(), tenant("acme"), execution("e"), Ending::Finish(FinishedBy::Call), at(1))
            .await
            .expect("ended");
        assert_eq!(claimed(store, session).await, ids);
        for &id in &ids {
            store.finish(session, finished(id, 200, at(2))).await.expect("ended");
        }
        let waits = accept_one(store, session, &draft()).await;
        for _ in 0..10 {
            let id = accept_one(store, session, &draft()).await;
            store.finish(session, finished(id, 200, at(100))).await.expect("ended");
        }
        subject.until_checkpointed().await;
        let harm = |subject: &OnDisk| {
            change(&subject.file("index"), |index| index[20] ^= 1);
            match what {
                "table" | "ends" => change(&subject.file(what), |bytes| bytes[8] ^= 1),
                "a row" => change(&subject.file("table"), |table| table.truncate(2 * table::ROW_BYTES)),
                "log" => {
                    let starts = frames(&subject.file("log"));
                    change(&subject.file("log"), |log| log[starts[1] + 100] ^= 1);
                }
                _ => {}
            }
            // Whoever replays the second log meets this.
            let second = subject.path().join("pieces/00000002/log");
            let starts = frames(&second);
            change(&second, |log| log[starts[1] + 100] ^= 1);
        };
        let (subject, _) = subject.harmed(harm).await;
        let told = subject.store().damage();
        assert_eq!(told.is_empty(), is_whole, "{what}: {told:?}");
        for when in ["at once", "checkpointed"] {
            let store = subject.store();
            if is_whole {
                let seen = store.execution(tenant("acme"), execution("e"), None, 10).await.unwrap().expect(when);
                assert_eq!(
                    (seen.total, seen.delivered, seen.state),
                    (2, 2, crate::record::ExecutionState::Finished),
                    "{when}"
                );
                let replayed = store.replay(key.clone(), at(3)).await;
                assert_eq!(replayed, Ok(Some(Accepted::Replayed(ids.clone()))), "{when}");
                let (items, _) = store.finished_after(TailPlace::START, Filter::of(Reach::All), 2).await.unwrap();
                assert_eq!(items.iter().map(|item| item.record.id).collect::<Vec<_>>(), ids, "{when}");
                let page = store
                    .list(Filter { statuses: vec![StatusFilter::One(200)], ..Filter::of(Reach::All) }, None, 50)
                    .await
                    .unwrap();
                assert_eq!(page.sends.len(), 12, "{when}");
            }
            assert_eq!(waiting_again(store, subject.session()).await, [waits], "{what}, {when}");
            subject.until_checkpointed().await;
        }
        let (subject, recovered) = subject.harmed(|_| {}).await;
        assert_eq!(recovered, Recovered::default(), "{what}");
        assert_eq!(claimed(subject.store(), subject.session()).await, [waits], "it waits still");
        subject.store().finish(subject.session(), finished(waits, 200, at(200))).await.expect("ended");
    }
}

#[tokio::test]
async fn a_list_does_without_a_damaged_index() {
    let (subject, ids) = checkpointed().await;
    // The rows of the terms stand before the shares, and are not looked at when the store opens.
    let harm = |subject: &OnDisk| {
        change(&subject.file("index"), |index| {
            let shares = shares_of_index(index);
            index[shares - 40..shares].fill(0xff);
        });
    };
    let (subject, _) = subject.harmed(harm).await;
    for filter in [
        Filter { workflow: Some("w".to_owned()), ..Filter::of(Reach::All) },
        Filter { workflow: Some("w".to_owned()), statuses: vec![StatusFilter::One(200)], ..Filter::of(Reach::All) },
        Filter { reach: Reach::One(tenant("acme")), until: Some(at(10)), ..Filter::of(Reach::All) },
    ] {
        let page = subject.store().list(filter.clone(), None, 50).await.unwrap();
        let found: Vec<_> =
            page.sends.iter().rev().map(|record| record.id).filter(|id| ids[..2].contains(id)).collect();
        assert_eq!(found, ids[..2], "{filter:?}");
    }
}

#[tokio::test]
async fn a_damaged_record_of_a_checkpointed_segment_is_told_and_does_not_hide_the_others() {
    let (subject, ids) = checkpointed().await;
    let (subject, recovered) = subject
        .harmed(|subject| {
            let starts = frames(&subject.file("log"));
            change(&subject.file("log"), |log| log[starts[1] + 100] ^= 1);
        })
        .await;
    assert_eq!(recovered, Recovered::default(), "checkpointed segments are not read at the start");
    let error = subject.store().record(Reach::All, ids[0], false).await;
    assert!(matches!(error, Err(StoreError::Damaged(why)) if why.contains("00000001/log is unreadable at bytes")));
    let filter = Filter { workflow: Some("w".to_owned()), ..Filter::of(Reach::All) };
    let page = subject.store().list(filter, None, 10).await.unwrap();
    assert_eq!(page.sends.iter().rev().map(|record| record.id).collect::<Vec<_>>(), ids);
    let shown = page.sends.last().expect("six of them");
    assert!(shown.request.to.url().is_some_and(|url| url.starts_with("unreadable: ")), "{:?}", shown.request.to);
    assert_eq!(shown.ended.as_ref().map(|ended| ended.outcome), Some(Outcome::Delivered));
}

#[tokio::test]
async fn a_waiting_send_whose_request_is_damaged_gets_its_end() {
    let (subject, ids) = checkpointed().await;
    let (subject, recovered) = subject
        .harmed(|subject| {
            let log = subject.path().join("pieces/00000003/log");
            let starts = frames(&log);
            // The last frame is the send that filled the segment.
            change(&log, |log| log[starts[starts.len() - 2] + 100] ^= 1);
        })
        .await;
    assert_eq!(recovered.damage.len(), 1, "{:?}", recovered.damage);
    assert!(recovered.damage[0].contains("00000003/log is unreadable at bytes"));
    assert_eq!(subject.store().waiting_in_all().queued, 0);
    let page = subject.store().list(Filter::of(Reach::All), None, 200).await.unwrap();
    let shown = page.sends.iter().find(|record| record.id == ids[5]).expect("listed");
    assert_eq!(shown.ended.as_ref().map(|ended| ended.outcome), Some(Outcome::Failed));
}
