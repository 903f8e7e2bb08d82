//! Calls that are accepted after their caller was told that nothing is known of them, and what was done where the answer
//! that said so was lost and the node's lease is over.

use futures_util::future::join_all;

use super::lost::Relay;
use super::many::{One, Schema, eventually};
use super::*;
use crate::outcome::Code;
use crate::send::SendSpec;
use crate::store::Course;
use crate::store::conformance::{accept_new, accept_one, at, begin_of, begin_one, call, draft, tenant, with_body};

const COURSES: [Course; 3] = [Course::Begin, Course::Claim, Course::Wait];

fn one_of_each() -> Vec<NewSend> {
    COURSES.map(|course| NewSend { course, ..draft().send() }).into()
}

/// How these ended; `None`: they have not, or were never accepted.
async fn ends(raw: &tokio_postgres::Client, ids: &[SendId]) -> Vec<Option<i16>> {
    let ids: Vec<uuid::Uuid> = ids.iter().map(|id| id.0).collect();
    let text = "SELECT (SELECT code FROM done WHERE done.id = g.id) FROM unnest($1::uuid[]) WITH ORDINALITY AS g(id, n) \
                ORDER BY n";
    raw.query(text, &[&ids]).await.expect("asked").iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_accepted_after_its_caller_was_refused_ends_unsent_but_for_what_a_key_tells() {
    let tier = Schema::fresh();
    let with = Settings { answer_within: Duration::from_millis(300), ..tier.settings() };
    let (node, other) = (tier.node_with("a", with).await, tier.node("b").await);
    let (raw, locker) = (tier.raw().await, tier.locker().await);
    let interrupted = Some(i16::from(wire_code(Code::Interrupted)));
    let key = IdempotencyKey {
        tenant: tenant("acme"),
        path: "/v1/sends".to_owned(),
        key: "k".to_owned(),
        fingerprint: [1; 32],
    };
    let plain = call(one_of_each(), None);
    let named = call(vec![NewSend { course: Course::Wait, ..draft().in_execution("e").send() }], None);
    let held = call((0..3).map(|_| draft().in_execution("h").send()).collect(), Some("h"));
    let keyed = Accept { idempotency: Some(key), ..call(one_of_each(), None) };
    let ids = |of: &Accept| of.sends.iter().map(|send| send.id).collect::<Vec<_>>();
    for (round, (what, is_keyed)) in
        [(plain, false), (named, false), (held, false), (keyed, true)].into_iter().enumerate()
    {
        let ids = ids(&what);
        locker.batch_execute("BEGIN; LOCK TABLE send IN ACCESS EXCLUSIVE MODE").await.expect("locked");
        let said = node.store.accept(&node.session, what.clone()).await;
        assert!(matches!(said, Err(StoreError::Unanswered(_))), "{round}: {said:?}");
        locker.batch_execute("COMMIT").await.expect("unlocked");
        if !is_keyed {
            eventually("all of it ends", async || ends(&raw, &ids).await.iter().all(|end| *end == interrupted)).await;
            assert_eq!(other.claim(9).await, []);
            for store in [&node.store, &other.store] {
                eventually("nothing waits", async || store.waiting_in_all() == WaitingCount::default()).await;
            }
            continue;
        }
        // What was begun for it is nobody's to deliver; the rest goes on, and the same call tells of it.
        eventually("what was begun ends", async || ends(&raw, &ids[..1]).await == [interrupted]).await;
        let mut claimed = Vec::new();
        eventually("the rest waits", async || {
            claimed.extend(other.claim(9).await);
            claimed.len() == 2
        })
        .await;
        claimed.sort();
        assert_eq!(claimed, ids[1..]);
        let again = Accept { sends: one_of_each(), ..what };
        assert_eq!(node.store.accept(&node.session, again).await, Ok(Accepted::Replayed(ids)));
    }
}

fn wire_code(code: Code) -> u8 {
    crate::store::wire::code_number(code)
}

/// A node whose lease is over, by the database's clock, while the answer to what it has just done is lost.
async fn with_its_lease_over(tier: &Schema, relay: &Relay, node: &One, is_done: &str) {
    let raw = tier.raw().await;
    eventually("it is committed", async || raw.query_one(is_done, &[]).await.expect("asked").get::<_, bool>(0)).await;
    assert!(relay.has_lost_it());
    let over = "UPDATE node SET lease_until = clock_timestamp() - interval '1 second' WHERE incarnation = $1";
    raw.execute(over, &[&(node.session.incarnation() as i64)]).await.expect("over");
    relay.open_again();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_accept_whose_answer_was_lost_is_found_out_after_the_lease() {
    let tier = Schema::fresh();
    let relay = Relay::of("hot").await;
    let node = tier.node_through("a", relay.port).await;
    accept_one(&node.store, &node.session, &draft()).await;
    for is_dead in [false, true] {
        node.store.stop_renewing();
        relay.lose_and_shut(1);
        let what = call(one_of_each(), None);
        let id = what.sends[0].id.0;
        let is_done = format!("SELECT EXISTS (SELECT FROM live WHERE id = '{id}')");
        let (said, ()) = tokio::join!(node.store.accept(&node.session, what), async {
            with_its_lease_over(&tier, &relay, &node, &is_done).await;
            if is_dead {
                let raw = tier.raw().await;
                raw.execute("UPDATE node SET dead_at = clock_timestamp()", &[]).await.expect("dead");
            } else {
                node.store.renew_again();
            }
        });
        let Ok(Accepted::New { started, .. }) = said else { panic!("dead: {is_dead}: {said:?}") };
        assert_eq!(started.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_begin_whose_answer_was_lost_is_found_out_after_the_lease() {
    let tier = Schema::fresh();
    let relay = Relay::of("hot").await;
    let node = tier.node_through("a", relay.port).await;
    let first = accept_one(&node.store, &node.session, &draft()).await;
    begin_one(&node.store, &node.session, begin_of(first, &draft(), at(1))).await.expect("begun");
    let what = call(vec![draft().send()], None);
    let id = what.sends[0].id;
    accept_new(&node.store, &node.session, what).await;
    node.store.stop_renewing();
    relay.lose_and_shut(1);
    let is_done = format!("SELECT began_at IS NOT NULL FROM live WHERE id = '{}'", id.0);
    let (said, ()) = tokio::join!(begin_one(&node.store, &node.session, begin_of(id, &draft(), at(1))), async {
        with_its_lease_over(&tier, &relay, &node, &is_done).await;
        node.store.renew_again();
    });
    said.expect("it was begun");
}

/// A call of so many bytes, and what tells whether somebody still has it.
fn heavy(bytes: usize, key: Option<&str>) -> (Accept, std::sync::Weak<SendSpec>) {
    let plain = draft().send();
    let body = Some(bytes::Bytes::from(vec![b'x'; bytes]));
    let spec = Arc::new(with_body(&plain.spec, body));
    let still = Arc::downgrade(&spec);
    let key = key.map(|key| IdempotencyKey {
        tenant: tenant("acme"),
        path: "/v1/sends".to_owned(),
        key: key.to_owned(),
        fingerprint: [1; 32],
    });
    (Accept { idempotency: key, ..call(vec![NewSend { spec, course: Course::Wait, ..plain }], None) }, still)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_refused_calls_carried_is_given_back_while_the_database_hangs() {
    let tier = Schema::fresh();
    let with = Settings { answer_within: Duration::from_millis(300), ..tier.settings() };
    let node = tier.node_with("a", with).await;
    let locker = tier.locker().await;
    locker.batch_execute("BEGIN; LOCK TABLE send IN ACCESS EXCLUSIVE MODE").await.expect("locked");
    for (bytes, calls, may_stay) in
        [(LARGE_BYTES + 1, 20, 1), (128 << 10, 200, HOT_ROOM / (128 << 10)), (128 << 10, 200, SLOW_ROOM / (128 << 10))]
    {
        let is_keyed = may_stay != HOT_ROOM / (128 << 10);
        let made = (0..calls).map(|n| heavy(bytes, is_keyed.then(|| format!("k-{n}")).as_deref()));
        let (all, still): (Vec<_>, Vec<_>) = made.unzip();
        let said = all.into_iter().map(|call| node.store.accept(&node.session, call));
        for said in join_all(said).await {
            assert!(matches!(said, Err(StoreError::Unanswered(_) | StoreError::CannotWrite(_))), "{said:?}");
        }
        let held = still.iter().filter(|spec| spec.strong_count() > 0).count();
        assert!(held <= may_stay, "of {calls} calls of {bytes} bytes {held} are still held");
    }
    locker.batch_execute("COMMIT").await.expect("unlocked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_call_that_hangs_keeps_nobody_elses_waiting() {
    let tier = Schema::fresh();
    let node = tier.node("a").await;
    let (locker, looker) = (tier.locker().await, tier.raw().await);
    // Another node is at these keys.
    let taken = "BEGIN; INSERT INTO idem (tenant, path, key, fingerprint, at, sends) \
                 SELECT 'acme', '/v1/sends', 'k-' || n, '', 0, '{}' FROM generate_series(0, 2) n";
    locker.batch_execute(taken).await.expect("taken");
    let large: Vec<Accept> = (0..3).map(|n| heavy(LARGE_BYTES + 1, Some(&format!("k-{n}"))).0).collect();
    let large = join_all(large.into_iter().map(|call| node.store.accept(&node.session, call)));
    let others = async {
        eventually("one of them waits", async || {
            let text = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type IN ('Lock') \
                        AND application_name LIKE current_schema() || ' %'";
            looker.query_one(text, &[]).await.expect("asked").get::<_, i64>(0) > 0
        })
        .await;
        let sends = vec![NewSend { tenant: tenant("other"), ..draft().send() }];
        let key = IdempotencyKey {
            tenant: tenant("other"),
            path: "/v1/sends".to_owned(),
            key: "k-0".to_owned(),
            fingerprint: [1; 32],
        };
        let small = Accept { tenant: tenant("other"), idempotency: Some(key), ..call(sends, None) };
        let said = node.store.accept(&node.session, small).await;
        assert!(matches!(said, Ok(Accepted::New { .. })), "{said:?}");
        locker.batch_execute("ROLLBACK").await.expect("let go");
    };
    let (said, ()) = tokio::join!(large, others);
    for said in said {
        assert!(matches!(said, Ok(Accepted::New { .. })), "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_behind_a_list_but_for_lists() {
    let tier = Schema::fresh();
    let node = tier.node("a").await;
    let (locker, looker) = (tier.locker().await, tier.raw().await);
    let (keyed, _) = heavy(1, Some("k"));
    let key = keyed.idempotency.clone().expect("a key");
    accept_new(&node.store, &node.session, keyed).await;
    let id = node.claim(1).await[0];
    // What only a list of this kind asks for.
    locker.batch_execute("BEGIN; LOCK TABLE done IN ACCESS EXCLUSIVE MODE").await.expect("locked");
    let filter = Filter { outcomes: vec![Outcome::Failed], ..Filter::of(Reach::One(tenant("acme"))) };
    let lists = join_all((0..3).map(|_| node.store.list(filter.clone(), None, 9)));
    let others = async {
        eventually("a list waits", async || {
            let text = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                        AND application_name = current_schema() || ' lists'";
            looker.query_one(text, &[]).await.expect("asked").get::<_, i64>(0) > 0
        })
        .await;
        // Each of these would come back after the lists alone.
        let replayed = node.store.replay(key, at(1)).await;
        assert!(matches!(replayed, Ok(Some(Accepted::Replayed(_)))), "{replayed:?}");
        let unread = Begin { spec: None, ..begin_of(id, &draft(), at(1)) };
        begin_one(&node.store, &node.session, unread).await.expect("begun");
        assert_eq!(node.store.suspensions().await, Ok(Vec::new()));
        let lists_wait = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                          AND application_name = current_schema() || ' lists'";
        assert!(looker.query_one(lists_wait, &[]).await.expect("asked").get::<_, i64>(0) > 0, "the lists wait still");
        locker.batch_execute("COMMIT").await.expect("unlocked");
    };
    let (lists, ()) = tokio::join!(lists, others);
    assert!(lists.iter().all(Result::is_ok), "{lists:?}");
    let most = node.store.shared.lists[0].ask("SHOW statement_timeout", &[]).await.expect("asked");
    assert_eq!(most[0].get::<_, &str>(0), "2min");
}
