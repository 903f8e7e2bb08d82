//! What each tenant may keep, and what is kept for everybody whatever one of them does.

use super::*;
use crate::limits::IDEMPOTENCY_KEPT;

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
        shared.stored_by(shared.keys.short(Asked::Tenant, name))
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
    let unknown = end_execution(store, session, tenant("a"), execution("e"), finish, at(12)).await;
    assert!(matches!(unknown, Ok(ExecutionEnd::ShareFull { .. })), "{unknown:?}");
    let of_another = end_execution(store, session, tenant("c"), execution("e"), finish, at(12)).await;
    assert_eq!(of_another, Ok(ExecutionEnd::Done { count: 0, first: true }));
    // A send that waits may end, whatever its tenant has stored; and what is past its retention is free again.
    small.store().retain(at(40 * 86_400)).await.expect("dropped");
    assert!(stored(&small, "a") < before[0]);
    assert!(small.flood("a", 4, 40 * 86_400).await > 0);
}

#[tokio::test]
async fn no_more_is_kept_than_may_be_whenever_a_segment_is_opened() {
    let small = Small::of(|settings| settings.max_bytes = 8_000);
    let mut most = 0;
    for _ in 0..80 {
        small.flood("a", 1, 10).await;
        most = most.max(bytes_of(small.store()));
    }
    assert!(small.store().shared.segments()[0].number > 5, "segments were dropped");
    assert!(most < 8_000 + 2 * 4 * 1_000, "{most} bytes stood there");
}
