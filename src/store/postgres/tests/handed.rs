//! Sends that one node hands over to another.

use super::lost::Relay;
use super::many::{One, Schema, eventually};
use super::*;
use crate::source::{Family, Neighbour, SourceTold};
use crate::store::conformance::{accept_new, at, begin_of, begin_one, call, draft, finished};
use crate::store::{Course, NewSend};

/// The one that it is to the others.
fn as_seen(node: &One) -> Neighbour {
    Neighbour { name: node.session.node().clone(), life: node.session.incarnation(), serves: Vec::new() }
}

async fn of_each_course(node: &One) -> [SendId; 2] {
    let sends = [Course::Claim, Course::Begin].map(|course| NewSend { course, ..draft().send() });
    let ids = [sends[0].id, sends[1].id];
    accept_new(&node.store, &node.session, call(sends.into(), None)).await;
    ids
}

async fn taken(node: &One) -> Vec<SendId> {
    let mut ids: Vec<_> =
        node.store.take_handed(&node.session).await.expect("taken").iter().map(|pending| pending.id).collect();
    ids.sort();
    ids
}

async fn counted(node: &One, queued: u64) {
    eventually("the counts are right", async || {
        let count = node.store.waiting_in_all();
        (count.held, count.queued, count.unclaimed) == (0, queued, 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_handed_over_is_the_others_alone_and_once() {
    let tier = Schema::fresh();
    let (one, other) = (tier.node("one").await, tier.node("other").await);
    let mut news = other.store.news().expect("its news");
    let ids = of_each_course(&one).await;
    counted(&one, 1).await;
    let moved = one.store.hand_over(&one.session, ids.into(), &as_seen(&other)).await.expect("handed over");
    assert_eq!(moved, ids);
    while news.recv().await.expect("news") != News::Handed {}
    // What was begun waits again, and begins once more: there.
    for node in [&one, &other] {
        counted(node, 2).await;
    }
    for id in ids {
        let tried = begin_one(&one.store, &one.session, begin_of(id, &draft(), at(1))).await;
        assert_eq!(tried.err(), Some(StoreError::NoSuchSend));
        assert_eq!(one.store.finish(&one.session, finished(id, 200, at(1))).await, Err(StoreError::NoSuchSend));
    }
    assert_eq!(one.store.hand_over(&one.session, ids.into(), &as_seen(&other)).await, Ok(Vec::new()), "it has none");
    assert_eq!(taken(&other).await, ids);
    assert_eq!(taken(&other).await, [], "once");
    for id in ids {
        begin_one(&other.store, &other.session, begin_of(id, &draft(), at(1))).await.expect("begun");
        other.store.finish(&other.session, finished(id, 200, at(2))).await.expect("ended");
    }
    for node in [&one, &other] {
        counted(node, 0).await;
    }
    assert_eq!(one.code_of(ids[0]).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_handed_over_to_or_by_the_dead_and_what_was_is_adopted_with_the_rest() {
    let tier = Schema::fresh();
    let with = || Settings { lease: Duration::from_secs(2), ..tier.settings() };
    let (one, other) = (tier.node_with("one", with()).await, tier.node_with("other", with()).await);
    let ids = of_each_course(&one).await;
    let other_seen = as_seen(&other);
    let moved = one.store.hand_over(&one.session, ids[..1].into(), &other_seen).await.expect("handed over");
    assert_eq!(moved, ids[..1]);
    // It dies before it has come for it.
    drop(other);
    let mut claimed = Vec::new();
    eventually("it waits again", async || {
        claimed.extend(one.claim(9).await);
        !claimed.is_empty()
    })
    .await;
    assert_eq!(claimed, ids[..1]);
    assert_eq!(one.store.hand_over(&one.session, ids.into(), &other_seen).await, Ok(Vec::new()));
    let raw = tier.raw().await;
    eventually("it is forgotten", async || {
        raw.query_one("SELECT count(*) FROM handed", &[]).await.expect("asked").get::<_, i64>(0) == 0
    })
    .await;
    // What the giver had begun is still its own.
    one.store.finish(&one.session, finished(ids[1], 200, at(1))).await.expect("ended");
    let third = tier.node_with("third", with()).await;
    raw.execute("UPDATE node SET dead_at = clock_timestamp() WHERE name = 'one'", &[]).await.expect("dead");
    assert_eq!(one.store.hand_over(&one.session, ids[..1].into(), &as_seen(&third)).await, Ok(Vec::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_over_whose_answer_was_lost_is_found_out() {
    let tier = Schema::fresh();
    let relay = Relay::of("calls").await;
    let (one, other) = (tier.node_through("one", relay.port).await, tier.node("other").await);
    // Each connection has prepared it by then.
    for _ in 0..4 {
        let ids = of_each_course(&one).await;
        one.store.hand_over(&one.session, ids.into(), &as_seen(&other)).await.expect("handed over");
    }
    let ids = of_each_course(&one).await;
    relay.lose(1);
    let moved = one.store.hand_over(&one.session, ids.into(), &as_seen(&other)).await;
    assert!(relay.has_lost_it());
    assert_eq!(moved, Ok(ids.into()));
    for node in [&one, &other] {
        counted(node, 10).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_told_what_the_others_can_send_from() {
    let tier = Schema::fresh();
    let (one, other, _none) = (tier.node("one").await, tier.node("other").await, tier.node("third").await);
    let told = |last: u8, pool: &str, family, usable| SourceTold {
        public: IpAddr::from([192, 0, 2, last]),
        pool: pool.into(),
        family,
        usable,
    };
    let all = vec![
        told(1, "default", Family::V4, true),
        told(2, "own", Family::V6, true),
        told(3, "third", Family::V4, false),
        told(4, "not held", Family::V4, true),
    ];
    let addresses = all[..3].iter().map(|source| source.public).collect();
    one.store.hold_sources(&one.session, addresses).await.expect("held");
    one.store.tell_sources(&one.session, all).await.expect("told");
    let seen = other.store.tell_sources(&other.session, Vec::new()).await.expect("told");
    let names: Vec<&str> = seen.iter().map(|node| &*node.name).collect();
    assert_eq!(names, ["one", "third"]);
    let mut serves = seen[0].serves.clone();
    serves.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(serves, [("default".into(), Family::V4), ("own".into(), Family::V6)]);
    assert_eq!((seen[0].life, seen[1].serves.len()), (one.session.incarnation(), 0));
}
