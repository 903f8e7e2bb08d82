//! What each tenant may keep, and what is kept for everybody whatever one of them does.

use bytes::Bytes;

use super::hashes::{TENANTS, with_known_key};
use super::*;
use crate::limits::IDEMPOTENCY_KEPT;
use crate::record::ShownBody;
use crate::store::NewSend;

struct Small {
    directory: TempDir,
    settings: StoreSettings,
    store: Option<(Embedded, Session)>,
}

impl Small {
    fn of(change: impl FnOnce(&mut StoreSettings)) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut settings = settings(directory.path());
        change(&mut settings);
        let mut this = Self { directory, settings, store: None };
        this.reopen();
        this
    }

    fn reopen(&mut self) {
        self.store = None;
        let limits = SegmentLimits { sends: 4, ..OnDisk::limits() };
        let store = Embedded::open_with(&self.settings, conformance::NODE, limits).expect("it opens");
        let session = joined_at_once(&store);
        self.store = Some((store, session));
    }

    fn store(&self) -> &Embedded {
        &self.store.as_ref().expect("open").0
    }

    /// Sends of this tenant that end at once, as blocked ones do; how many were taken.
    async fn flood(&self, name: &str, most: usize, second: i64) -> usize {
        let (store, session) = self.store.as_ref().expect("open");
        for taken in 0..most {
            let send = draft().of(name).created(at(second)).send();
            let id = send.id;
            match store.accept(session, call(vec![send], None)).await.expect("answered") {
                Accepted::New { .. } => {}
                Accepted::ShareFull { stored, share } => {
                    // An accepted send ends whatever its tenant has stored, so the last end may go past the share.
                    assert!(stored <= share + 1024 && share == self.settings.tenant_max_bytes, "{stored} of {share}");
                    return taken;
                }
                other => panic!("{other:?}"),
            }
            store.finish(session, failed(id, Code::PolicyUrl, at(second))).await.expect("ended");
        }
        most
    }
}

fn key(name: &str) -> IdempotencyKey {
    let (path, key) = ("/v1/sends".to_owned(), name.to_owned());
    IdempotencyKey { tenant: tenant("b"), path, key, fingerprint: [6; 32] }
}

#[tokio::test]
async fn a_key_lives_its_day_whatever_becomes_of_its_records() {
    let mut small = Small::of(|settings| settings.max_bytes = 6_000);
    let mut calls = Vec::new();
    for name in ["one", "two", "three"] {
        let (store, session) = small.store.as_ref().expect("open");
        let draft = draft().of("b").created(at(5));
        let keyed = Accept { idempotency: Some(key(name)), ..call(vec![draft.send(), draft.send()], None) };
        let ids: Vec<_> = keyed.sends.iter().map(|send| send.id).collect();
        accept_new(store, session, keyed).await;
        for &id in &ids {
            store.finish(session, finished(id, 200, at(6))).await.expect("ended");
        }
        calls.push((name, ids));
    }
    // Their records go, and what carried their keys goes too, more than once, and the process dies in between.
    for round in 0..4 {
        small.flood("a", 60, 10).await;
        for (name, ids) in &calls {
            let which = format!("{name}, round {round}");
            assert_eq!(small.store().record(Reach::All, ids[0], false).await, Ok(None), "{which}: gone");
            let replayed = Ok(Some(Accepted::Replayed(ids.clone())));
            assert_eq!(small.store().replay(key(name), at(11)).await, replayed, "{which}");
            let other = IdempotencyKey { fingerprint: [7; 32], ..key(name) };
            assert_eq!(small.store().replay(other, at(11)).await, Ok(Some(Accepted::Mismatch)), "{which}");
            let (store, session) = small.store.as_ref().expect("open");
            let again =
                Accept { idempotency: Some(key(name)), ..call(vec![draft().of("b").created(at(12)).send()], None) };
            assert_eq!(store.accept(session, again).await, Ok(Accepted::Replayed(ids.clone())), "{which}");
        }
        assert_eq!(small.store().replay(key("never"), at(11)).await, Ok(None));
        if round % 2 == 0 {
            small.reopen();
        }
    }
    let a_day = i64::try_from(IDEMPOTENCY_KEPT.as_secs()).expect("fits");
    assert!(matches!(small.store().replay(key("one"), at(5 + a_day - 1)).await, Ok(Some(_))));
    assert_eq!(small.store().replay(key("one"), at(5 + a_day)).await, Ok(None));
    assert_eq!(small.store().damage(), Vec::<String>::new());
}

#[tokio::test]
async fn a_key_outlives_its_records_where_one_of_its_places_is_damaged() {
    let mut small = Small::of(|settings| settings.max_bytes = 6_000);
    let (store, session) = small.store.as_ref().expect("open");
    let keyed =
        Accept { idempotency: Some(key("the-only-key")), ..call(vec![draft().of("b").created(at(5)).send()], None) };
    let id = keyed.sends[0].id;
    accept_new(store, session, keyed).await;
    store.finish(session, finished(id, 200, at(6))).await.expect("ended");
    // Each time one of its two places in the one log that has it; and then that log goes.
    for (round, starts) in [false, true, true, false, true].into_iter().enumerate() {
        let mut flipped = 0;
        for segment in small.store().shared.segments().iter() {
            let log = segment.directory.join("log");
            let bytes = fs::read(&log).expect("readable");
            if let Some(found) = bytes.windows(12).position(|part| part == b"the-only-key") {
                change(&log, |log| log[found] ^= 1);
                flipped += 1;
            }
        }
        assert_eq!(flipped, 1, "round {round}");
        if starts {
            small.reopen();
        }
        small.flood("a", 60, 10).await;
        let replayed = Ok(Some(Accepted::Replayed(vec![id])));
        assert_eq!(small.store().replay(key("the-only-key"), at(11)).await, replayed, "round {round}");
    }
}

#[tokio::test]
async fn a_tenant_fills_its_share_and_nobody_elses() {
    let mut small = Small::of(|settings| settings.tenant_max_bytes = 20_000);
    let (store, session) = small.store.as_ref().expect("open");
    let of_b = accept_one(store, session, &draft().of("b")).await;
    store.finish(session, finished(of_b, 200, at(1))).await.expect("ended");
    let taken = small.flood("a", 1000, 10).await;
    assert!((10..60).contains(&taken), "{taken}: sends that were never made count too");
    assert_eq!(small.flood("c", 3, 10).await, 3, "others are not concerned");
    assert!(small.store().record(Reach::All, of_b, false).await.unwrap().is_some());
    let stored = |small: &Small, name: &str| {
        let shared = &small.store().shared;
        shared.stored_by(shared.keys.tenant(name))
    };
    let before = ["a", "b", "c"].map(|name| stored(&small, name));
    until(|| small.store().shared.segments()[0].is_checkpointed_for_good()).await;
    small.reopen();
    assert_eq!(["a", "b", "c"].map(|name| stored(&small, name)), before, "counted the same after a restart");
    assert_eq!(small.flood("a", 10, 11).await, 0);
    fs::remove_file(small.directory.path().join("store/pieces/00000001/index")).unwrap();
    small.reopen();
    assert_eq!(["a", "b", "c"].map(|name| stored(&small, name)), before, "and without an index");
    // An execution that nobody knows is refused as a send is, and one that holds something ends.
    let (store, session) = small.store.as_ref().expect("open");
    let finish = Ending::Finish(FinishedBy::Call);
    let mut ended = 0;
    while !matches!(
        end_execution(store, session, tenant("a"), execution(&format!("e{ended}")), finish, at(12)).await,
        Ok(ExecutionEnd::ShareFull { .. })
    ) {
        ended += 1;
        assert!(ended < 20, "as many ends of executions that nobody knows were taken");
    }
    let of_another = end_execution(store, session, tenant("c"), execution("e"), finish, at(12)).await;
    assert_eq!(of_another, Ok(ExecutionEnd::Done { count: 0, first: true }));
    // A send that waits may end, whatever its tenant has stored; and what is past its retention is free again.
    small.store().retain(at(40 * 86_400)).await.expect("dropped");
    assert!(stored(&small, "a") < before[0]);
    assert!(small.flood("a", 4, 40 * 86_400).await > 0);
}

#[tokio::test]
async fn tenants_of_one_hash_have_a_share_each() {
    let mut small = Small::of(|settings| {
        settings.tenant_max_bytes = 20_000;
        with_known_key(&settings.key_file);
    });
    let [one, other] = [&*TENANTS[0], &*TENANTS[1]];
    // Accepted in one segment, and ended in the logs of others.
    let (store, session) = small.store.as_ref().expect("open");
    let mut ids = Vec::new();
    for name in [one, other, other, one, other] {
        ids.push(accept_one(store, session, &draft().of(name).created(at(9))).await);
    }
    small.flood("c", 8, 10).await;
    for id in ids {
        store.finish(session, finished(id, 200, at(10))).await.expect("ended");
    }
    let taken = small.flood(one, 1000, 10).await;
    assert!((10..60).contains(&taken), "{taken}");
    assert_eq!(small.flood(other, 5, 10).await, 5, "the other has a share of its own");
    let stored = |small: &Small| {
        let shared = &small.store().shared;
        [one, other, "c"].map(|name| shared.stored_by(shared.keys.tenant(name)))
    };
    let before = stored(&small);
    assert!(before[1] > 5 * segment::SEND_BYTES && before[0] > before[1] + 4_000, "{before:?}");
    for lost in ["no index", "all but the last index", "every index"] {
        until(|| small.store().shared.segments().iter().rev().skip(1).all(|one| one.is_checkpointed_for_good())).await;
        let segments = small.store().shared.segments();
        let indexes: Vec<_> = segments.iter().map(|segment| segment.directory.join("index")).collect();
        drop(segments);
        small.store = None;
        let full = indexes.len() - 1;
        let lost_ones = match lost {
            "no index" => 0,
            "every index" => full,
            _ => full - 1,
        };
        indexes[..lost_ones].iter().for_each(|index| fs::remove_file(index).expect("it was there"));
        small.reopen();
        assert_eq!(stored(&small), before, "with {lost} lost");
        assert_eq!(small.flood(one, 1, 11).await, 0, "with {lost} lost");
    }
    assert_eq!(small.flood(other, 5, 11).await, 5);
    // What is past its retention is nobody's any more.
    small.store().retain(at(40 * 86_400)).await.expect("dropped");
    let after = stored(&small);
    assert!(after[0] < before[0] && after[1] < before[1], "{after:?} of {before:?}");
}

#[tokio::test]
async fn answers_take_no_more_than_their_tenants_share_and_every_send_ends_all_the_same() {
    const SHARE: u64 = 100_000;
    let large = |id| {
        let mut end = finished(id, 200, at(11));
        let response = end.response.as_mut().expect("an answer");
        response.body =
            ShownBody { bytes: Some(vec![b'r'; 9_000].into()), total: 9_000, truncated: false, sha256: None };
        response.headers = vec![("x".to_owned(), vec!["h".repeat(4_000)])];
        end
    };
    // Accepted one by one and begun, in one call, and held until the hold ends.
    for (name, calls, hold) in [("one by one", 40, None), ("one call", 1, None), ("held", 1, Some("e"))] {
        let small = Small::of(|settings| {
            settings.tenant_max_bytes = SHARE;
            settings.max_bytes = 4 * SHARE;
        });
        let (store, session) = small.store.as_ref().expect("open");
        let of_b = accept_one(store, session, &draft().of("b").created(at(9))).await;
        store.finish(session, finished(of_b, 200, at(9))).await.expect("ended");
        let mut ids = Vec::new();
        for _ in 0..calls {
            let sends: Vec<_> = (0..40 / calls)
                .map(|_| match hold {
                    Some(hold) => draft().of("a").in_execution(hold).created(at(10)).send(),
                    None => draft().of("a").created(at(10)).send(),
                })
                .collect();
            ids.extend(sends.iter().map(|send| send.id));
            accept_new(store, session, call(sends, hold)).await;
        }
        if let Some(hold) = hold {
            let finish = Ending::Finish(FinishedBy::Call);
            end_execution(store, session, tenant("a"), execution(hold), finish, at(10)).await.expect("finished");
        }
        let want = Want { tenant: tenant("a"), room: 99, full: Vec::new() };
        store.claim(session, vec![want], 99).await.expect("claimed");
        // All at once, so that many of them are decided together.
        let ends = ids.iter().map(|&id| store.finish(session, large(id)));
        for ended in futures_util::future::join_all(ends).await {
            ended.expect("ended");
        }
        let stored = store.shared.stored_by(store.shared.keys.tenant("a"));
        assert!((SHARE / 2..=SHARE).contains(&stored), "{name}: {stored} of {SHARE}");
        let (mut whole, mut without) = (0, 0);
        for &id in &ids {
            let record = store.record(Reach::All, id, true).await.unwrap().expect("nothing of it is lost");
            assert_eq!(record.ended.map(|ended| ended.outcome), Some(Outcome::Delivered), "{name}");
            let response = record.response.expect("an answer");
            assert_eq!((response.status, response.body.total), (200, 9_000), "{name}");
            match response.body.bytes {
                Some(_) => whole += 1,
                None => without += 1,
            }
            let has_headers = !response.headers.is_empty();
            assert_eq!((response.body.truncated, has_headers), (!has_headers, !response.body.truncated), "{name}");
        }
        assert!(whole > 0 && without > 20, "{name}: {whole} with what came back, {without} without");
        assert!(store.record(Reach::All, of_b, false).await.unwrap().is_some(), "{name}: nobody else lost anything");
    }
}

#[tokio::test]
async fn no_more_is_kept_than_may_be_whenever_a_segment_is_opened() {
    // Also where another tenant has sends that wait and will for long.
    for waits in [0, 1, 3] {
        let mut small = Small::of(|settings| settings.max_bytes = 8_000);
        let (store, session) = small.store.as_ref().expect("open");
        let mut waiting = Vec::new();
        for _ in 0..waits {
            waiting.push(accept_one(store, session, &draft().of("quiet").created(at(9))).await);
        }
        let mut most = 0;
        for _ in 0..80 {
            assert_eq!(small.flood("a", 1, 10).await, 1, "{waits} wait");
            most = most.max(bytes_of(small.store()));
        }
        assert!(small.store().shared.segments()[0].number > 5, "{waits} wait: segments were dropped");
        assert!(most < 8_000 + 2 * 4 * 1_000, "{waits} wait: {most} bytes stood there");
        small.reopen();
        let (store, session) = small.store.as_ref().expect("open");
        let want = Want { tenant: tenant("quiet"), room: 99, full: Vec::new() };
        let claimed = store.claim(session, vec![want], 99).await.expect("claimed").sends;
        assert_eq!(claimed.iter().map(|send| send.id).collect::<Vec<_>>(), waiting, "none is lost");
    }
}

#[tokio::test]
async fn a_store_full_of_what_waits_moves_no_more_than_a_multiple_of_what_is_written() {
    const SENDS: u64 = 100;
    let directory = tempfile::tempdir().unwrap();
    let settings = StoreSettings { max_bytes: 8_000, ..settings(directory.path()) };
    let limits = SegmentLimits { sends: 4, log_bytes: 4_000, bodies_bytes: 4_000, ..OnDisk::limits() };
    let store = Embedded::open_with(&settings, conformance::NODE, limits).expect("it opens");
    let session = joined_at_once(&store);
    let mut ids = Vec::new();
    for _ in 0..SENDS {
        let send = NewSend { course: Course::Wait, ..draft().created(at(10)).send() };
        ids.push(send.id);
        accept_new(&store, &session, call(vec![send], None)).await;
    }
    // With nothing more written it comes to rest: a few rounds of the writer's after which nothing was moved.
    let moved = || store.shared.segments().last().map(|newest| (newest.number, newest.row_count()));
    let mut before = None;
    let patience = Patience::begun();
    loop {
        let now = moved();
        if std::mem::replace(&mut before, now) == now {
            break;
        }
        for _ in 0..4 {
            store.give_back(&session, Vec::new()).await.expect("answered");
        }
        patience.lasts();
    }
    let segments = u64::from(store.shared.segments().last().expect("one").number);
    assert!(segments < SENDS, "{segments} segments were written for {SENDS} sends");
    assert_eq!(claimed(&store, &session).await, ids, "in order");
}

#[tokio::test]
async fn large_calls_are_written_one_at_a_time_between_all_others() {
    let subject = OnDisk::fresh().await;
    let large = Bytes::from(vec![b'x'; 2 << 20]);
    let of = |name: &str, body: &Bytes| Draft { body: Some(body.clone()), ..draft().of(name) }.send();
    let mut sends: Vec<NewSend> = (0..4).map(|_| of("loud", &large)).collect();
    sends.extend([of("quiet", &Bytes::from_static(b"1")), of("other", &large)]);
    // The writer comes no further than to the first of them while this is held.
    let waiting = locked(&subject.shared().waiting);
    let mut calls: Vec<_> =
        sends.iter().map(|send| subject.store().accept(subject.session(), call(vec![send.clone()], None))).collect();
    let (room, patience) = (subject.store().room.available_permits(), Patience::begun());
    while subject.store().room.available_permits() + calls.len() > room {
        patience.lasts();
        assert!(calls.iter_mut().all(|call| call.now_or_never().is_none()));
        std::thread::yield_now();
    }
    drop(waiting);
    futures_util::future::join_all(calls).await.into_iter().for_each(|answer| drop(answer.expect("accepted")));
    let row = |send: &NewSend| subject.shared().find(send.id).expect("readable").expect("known").1;
    let rows: Vec<u32> = sends.iter().map(row).collect();
    assert!(rows[4] <= 1 && rows[5] <= 2, "{rows:?}");
}
