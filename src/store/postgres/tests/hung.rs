//! Statements that the database does not come to an end with, and commits whose wait for a standby was given up.

use futures_util::future::join_all;

use super::many::{Schema, eventually};
use super::*;
use crate::store::conformance::{
    accept_new, at, begin_of, begin_one, call, draft, execution, finished, tenant, with_body,
};
use crate::store::{Course, NewSend};

fn keyed(key: &str, call: Accept) -> Accept {
    let key = IdempotencyKey {
        tenant: tenant("acme"),
        path: "/v1/sends".to_owned(),
        key: key.to_owned(),
        fingerprint: [1; 32],
    };
    Accept { idempotency: Some(key), ..call }
}

fn plain() -> Accept {
    call(vec![NewSend { course: Course::Wait, ..draft().send() }], None)
}

fn large() -> Accept {
    let send = draft().send();
    let body = Some(bytes::Bytes::from(vec![b'x'; LARGE_BYTES + 1]));
    let spec = Arc::new(with_body(&send.spec, body));
    call(vec![NewSend { spec, course: Course::Wait, ..send }], None)
}

/// How many statements of this tier wait for a lock.
async fn waiting(raw: &tokio_postgres::Client) -> i64 {
    let text = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                AND application_name LIKE current_schema() || ' %'";
    raw.query_one(text, &[]).await.expect("asked").get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_session_locks_out_is_given_up_in_the_database_and_done_when_it_is_free() {
    let tier = Schema::fresh();
    let with = Settings { statement_within: Duration::from_millis(300), ..tier.settings() };
    let node = tier.node_with("a", with).await;
    let (raw, locker) = (tier.raw().await, tier.locker().await);
    let begun = NewSend { course: Course::Begin, ..draft().send() };
    let claimed = NewSend { course: Course::Claim, ..draft().send() };
    let (begun_id, claimed_id) = (begun.id, claimed.id);
    accept_new(&node.store, &node.session, call(vec![begun, claimed], None)).await;
    accept_new(&node.store, &node.session, call(vec![draft().in_execution("e").send()], Some("e"))).await;
    locker
        .batch_execute("BEGIN; LOCK TABLE send, live, done, queue, execution, idem IN ACCESS EXCLUSIVE MODE")
        .await
        .expect("locked");
    let (store, session) = (&node.store, &node.session);
    // Many of them share a statement, and are refused with it.
    let said = join_all((0..20).map(|_| store.accept(session, plain()))).await;
    assert!(said.iter().all(|said| matches!(said, Err(StoreError::CannotWrite(_)))), "{said:?}");
    for (what, call) in [("keyed", keyed("k", plain())), ("large", large()), ("large, keyed", keyed("l", large()))] {
        let said = store.accept(session, call).await;
        assert!(matches!(said, Err(StoreError::CannotWrite(_))), "{what}: {said:?}");
    }
    let end = async || {
        store.end_execution(session, tenant("acme"), execution("e"), Ending::Discard, at(2)).await.map(|said| said.end)
    };
    let want = Want { tenant: tenant("acme"), room: 1, full: Vec::new() };
    let refused = [
        ("begin", begin_one(store, session, begin_of(claimed_id, &draft(), at(1))).await.err()),
        ("finish", store.finish(session, finished(begun_id, 200, at(1))).await.err()),
        ("the end of an execution", end().await.err()),
        ("claim", store.claim(session, vec![want], 1).await.err()),
        ("list", store.list(Filter::of(Reach::All), None, 1).await.err()),
        ("record", store.record(Reach::All, begun_id, false).await.err()),
    ];
    for (what, said) in refused {
        assert!(matches!(said, Some(StoreError::CannotWrite(_) | StoreError::CannotRead(_))), "{what}: {said:?}");
    }
    eventually("what nobody waits for is given up", async || waiting(&raw).await <= 1).await;
    locker.batch_execute("COMMIT").await.expect("unlocked");
    assert!(matches!(store.accept(session, plain()).await, Ok(Accepted::New { .. })));
    assert!(matches!(store.accept(session, keyed("k", plain())).await, Ok(Accepted::New { .. })));
    begin_one(store, session, begin_of(claimed_id, &draft(), at(1))).await.expect("begun");
    store.finish(session, finished(begun_id, 200, at(1))).await.expect("ended");
    assert_eq!(end().await, Ok(ExecutionEnd::Done { count: 1, first: true }));
    // Of what was refused nothing is there.
    let sends: i64 = raw.query_one("SELECT count(*) FROM send", &[]).await.expect("asked").get(0);
    assert_eq!(sends, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_cannot_be_renewed_is_told_and_renewed_when_it_can() {
    let tier = Schema::fresh();
    let node = tier.node_with("a", Settings { lease: Duration::from_secs(2), ..tier.settings() }).await;
    let locker = tier.locker().await;
    locker.batch_execute("BEGIN; LOCK TABLE node IN ACCESS EXCLUSIVE MODE").await.expect("locked");
    eventually("it says so", async || node.store.health().is_err()).await;
    locker.batch_execute("COMMIT").await.expect("unlocked");
    eventually("it goes on", async || node.store.health().is_ok()).await;
    eventually("it accepts", async || node.store.accept(&node.session, plain()).await.is_ok()).await;
}

/// The database says that it is committed, and warns: only there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_accepted_or_begun_whose_wait_for_the_standby_was_given_up() {
    let cluster = Cluster::start();
    let directory = tempfile::tempdir().expect("a directory");
    let store = Postgres::open(cluster.address("test"), settings(directory.path())).await.expect("opened");
    let session = store.join(Arc::from("a")).await.expect("joined");
    let raw = cluster.address("test").connect_first("a test").await.expect("connected");
    let claimed = NewSend { course: Course::Claim, ..draft().send() };
    let id = claimed.id;
    accept_new(&store, &session, call(vec![claimed], None)).await;
    for (what, link) in [("accept", "hot"), ("accept with a key", "calls"), ("begin", "hot")] {
        // One that never comes.
        let own = "ALTER SYSTEM SET synchronous_standby_names = 'nobody'";
        for text in [own, "SELECT pg_reload_conf()"] {
            raw.batch_execute(text).await.expect("set");
        }
        eventually("commits wait", async || {
            let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')";
            raw.query_one(waits, &[]).await.expect("asked").get(0)
        })
        .await;
        let made = async {
            match what {
                "accept" => store.accept(&session, plain()).await.map(drop),
                "begin" => begin_one(&store, &session, begin_of(id, &draft(), at(1))).await.map(drop),
                _ => store.accept(&session, keyed("k", plain())).await.map(drop),
            }
        };
        let given_up = async {
            let mut times = 0;
            eventually("it is given up, and waits again", async || {
                let text = "SELECT count(*) FROM (SELECT pg_cancel_backend(pid) FROM pg_stat_activity \
                            WHERE wait_event = 'SyncRep' AND application_name = current_schema() || ' ' || $1) AS one";
                times += raw.query_one(text, &[&link]).await.expect("asked").get::<_, i64>(0);
                times >= 3
            })
            .await;
        };
        tokio::pin!(made);
        tokio::select! {
            said = &mut made => panic!("{what}: {said:?}, and no standby has it"),
            () = given_up => {}
        }
        for text in ["ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()"] {
            raw.batch_execute(text).await.expect("set");
        }
        made.await.expect("it goes on");
    }
}
