//! What each tenant may keep: of the tier, whoever accepts it.

use super::many::{One, PATIENCE, Schema};
use super::*;
use crate::record::{FinishedBy, ShownBody};
use crate::store::conformance::{
    accept_new, accept_one, at, call, draft, end_execution, execution, finished, id_at, tenant,
};
use crate::store::{Accept, ExecutionEnd};

const SHARE: u64 = 60_000;

async fn node(schema: &Schema, name: &str) -> One {
    schema.node_with(name, Settings { tenant_max_bytes: SHARE, ..schema.settings() }).await
}

/// Sends of this tenant that end at once; how many were taken.
async fn flood(node: &One, name: &str, most: usize, second: i64) -> usize {
    for taken in 0..most {
        let send = draft().of(name).created(at(second)).send();
        let id = send.id;
        match node.store.accept(&node.session, call(vec![send], None)).await.expect("answered") {
            Accepted::New { .. } => {}
            Accepted::ShareFull { stored, share } => {
                // Past it by what the others accepted since.
                assert!(stored <= 3 * SHARE && share == SHARE, "{stored} of {share}");
                return taken;
            }
            other => panic!("{other:?}"),
        }
        node.store.finish(&node.session, finished(id, 200, at(second))).await.expect("ended");
    }
    most
}

/// Looks at the database until this is so.
async fn seen(node: &One, what: impl Fn(u64) -> bool) {
    let began = clock::monotonic();
    while !what(node.store.shared.shares.kept_by(&tenant("a"))) {
        assert!(clock::monotonic().duration_since(began) < PATIENCE, "it is not seen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_fills_its_share_of_the_tier_and_nobody_elses() {
    let schema = Schema::fresh();
    let (one, other) = (node(&schema, "one").await, node(&schema, "other").await);
    let key = |id: u128| IdempotencyKey {
        tenant: tenant("a"),
        path: "/v1/sends".to_owned(),
        key: format!("k{id}"),
        fingerprint: [6; 32],
    };
    let keyed = |id: u128| {
        let sends = vec![draft().of("a").created(at(5)).send()];
        Accept { tenant: tenant("a"), idempotency: Some(key(id)), ..call(sends, None) }
    };
    let first = keyed(1);
    let id = first.sends[0].id;
    accept_new(&one.store, &one.session, first).await;
    accept_new(
        &one.store,
        &one.session,
        call(vec![draft().of("a").in_execution("e").created(at(6)).send()], Some("e")),
    )
    .await;
    // What is under way is taken for more than it comes to, until that is looked up.
    let (mut taken, began) = (0, clock::monotonic());
    while other.store.shared.shares.kept_by(&tenant("a")) < SHARE * 9 / 10 {
        taken += flood(&one, "a", 1_000, 10).await;
        assert!((10..100).contains(&taken) && clock::monotonic().duration_since(began) < PATIENCE, "{taken}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The other node has seen it, and so does one that comes later. (More, so that no look finds room in it.)
    let raw = schema.raw().await;
    raw.batch_execute("INSERT INTO kept_since VALUES ('a', 0, 60000, 0)").await.expect("counted");
    let third = node(&schema, "third").await;
    for node in [&one, &other, &third] {
        seen(node, |kept| kept > SHARE * 3 / 2).await;
        let name = node.session.to_string();
        assert_eq!(flood(node, "a", 2, 11).await, 0, "{name}");
        assert_eq!(flood(node, "b", 2, 11).await, 2, "{name}: others are not concerned");
    }
    // What was accepted before is answered, and what is new is not.
    assert_eq!(other.store.accept(&other.session, keyed(1)).await, Ok(Accepted::Replayed(vec![id])));
    let refused = other.store.accept(&other.session, keyed(2)).await;
    assert!(matches!(refused, Ok(Accepted::ShareFull { .. })), "{refused:?}");
    // So is the end of an execution that nobody knows; one that holds something ends.
    let finish = Ending::Finish(FinishedBy::Call);
    let end = |name: &str| end_execution(&other.store, &other.session, tenant("a"), execution(name), finish, at(12));
    assert!(matches!(end("never").await, Ok(ExecutionEnd::ShareFull { .. })));
    assert_eq!(end("e").await, Ok(ExecutionEnd::Done { count: 1, first: true }));
    // What is past its retention is free again, of bodies and of records. What waits holds its day.
    let want = Want { tenant: tenant("a"), room: 99, full: Vec::new() };
    let claimed = one.store.claim(&one.session, vec![want], 99).await.expect("claimed");
    for send in claimed.sends {
        one.store.finish(&one.session, finished(send.id, 200, at(13))).await.expect("ended");
    }
    one.store.finish(&one.session, finished(id, 200, at(13))).await.ok();
    one.store.retain(at(40 * 86_400)).await.expect("dropped");
    for node in [&one, &other] {
        seen(node, |kept| kept < SHARE / 2).await;
        assert!(flood(node, "a", 4, 40 * 86_400).await > 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_tenant_that_keeps_its_share_no_large_answer_is_kept_and_every_send_ends() {
    let schema = Schema::fresh();
    let one = node(&schema, "one").await;
    let large = |id| {
        let mut end = finished(id, 200, at(11));
        let response = end.response.as_mut().expect("an answer");
        response.body =
            ShownBody { bytes: Some(vec![b'r'; 40_000].into()), total: 40_000, truncated: false, sha256: None };
        end
    };
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(accept_one(&one.store, &one.session, &draft().of("a").created(at(10))).await);
    }
    let other = accept_one(&one.store, &one.session, &draft().of("b").created(at(10))).await;
    let (before, after) = ids.split_at(2);
    for &id in before {
        one.store.finish(&one.session, large(id)).await.expect("ended");
    }
    seen(&one, |kept| kept >= SHARE).await;
    for &id in after.iter().chain([&other]) {
        one.store.finish(&one.session, large(id)).await.expect("ended");
    }
    for id in ids.iter().chain([&other]) {
        let record = one.store.record(Reach::All, *id, true).await.unwrap().expect("nothing of it is lost");
        let answer = record.response.expect("an answer");
        let is_cut = after.contains(id);
        assert_eq!((answer.status, answer.body.total), (200, 40_000));
        assert_eq!((answer.body.bytes.is_none(), answer.body.truncated), (is_cut, is_cut), "{id:?}");
    }
    assert!(one.store.record(Reach::All, id_at(at(1)), false).await.unwrap().is_none());
}
