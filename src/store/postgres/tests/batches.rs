//! Batches between nodes: closed by one, carried by another, and ended once.

use super::lost::Relay;
use super::many::{One, Schema, eventually};
use super::*;
use crate::outcome::Code;
use crate::outcome::Processed;
use crate::record::{BatchState, InBatch, State};
use crate::store::Course;
use crate::store::conformance::batches::{close, event, gathered, of_batch, take};
use crate::store::conformance::{accept_new, at, call, draft, execution, tenant};

const HOUR: Duration = Duration::from_secs(3600);

async fn declare_dead(tier: &Schema, node: &str) {
    let raw = tier.raw().await;
    raw.execute("UPDATE node SET dead_at = clock_timestamp() WHERE name = $1", &[&node]).await.expect("dead");
}

fn ids(events: &[Pending]) -> Vec<SendId> {
    events.iter().map(|pending| pending.id).collect()
}

async fn taken(node: &One) -> (Vec<Batch>, Vec<SendId>) {
    let (batches, events) = take(&node.store, &node.session).await;
    (batches, ids(&events))
}

async fn close_within(node: &One, batch: &Batch, grace: Duration) -> Result<Vec<SendId>, StoreError> {
    node.store.close_batch(&node.session, Arc::new(batch.clone()), grace).await
}

fn ended(batch: &Batch, status: u16) -> Batch {
    Batch { ended: Some(of_batch(batch, batch.sends[0], status)), tried: batch.tried + 1, ..batch.clone() }
}

async fn put(node: &One, batch: &Batch) -> Result<(), StoreError> {
    node.store.put_batch(&node.session, Arc::new(batch.clone())).await
}

/// A node of a version that knows no events goes by these alone.
async fn an_older_node_sees_nothing_to_do(tier: &Schema) {
    let raw = tier.raw().await;
    let seen = "SELECT (SELECT count(*) FROM live WHERE incarnation IS NOT NULL OR began_at IS NOT NULL) \
                + (SELECT count(*) FROM queue) + (SELECT coalesce(sum(unclaimed), 0)::bigint FROM tally)";
    assert_eq!(raw.query_one(seen, &[]).await.expect("asked").get::<_, i64>(0), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_batch_is_anothers_with_all_of_its_events_once_nothing_of_it_can_be_on_the_wire() {
    let tier = Schema::fresh();
    let (one, other) = (tier.node("one").await, tier.node("other").await);
    let late = gathered(&one.store, &one.session, 3).await;
    let soon = gathered(&one.store, &one.session, 2).await;
    let waits = gathered(&one.store, &one.session, 1).await;
    close_within(&one, &late, HOUR).await.expect("closed");
    close(&one.store, &one.session, &soon).await.expect("closed");
    assert_eq!(taken(&other).await, (Vec::new(), Vec::new()), "their owner lives");
    an_older_node_sees_nothing_to_do(&tier).await;
    declare_dead(&tier, "one").await;
    let (batches, mut events) = taken(&other).await;
    assert_eq!(batches, std::slice::from_ref(&soon));
    let mut all = [soon.sends.clone(), waits.sends.clone()].concat();
    all.sort();
    events.sort();
    assert_eq!(events, all, "the one that is late comes with none of its events");
    an_older_node_sees_nothing_to_do(&tier).await;
    // Of the one that is not taken over yet the word of who tried it counts.
    put(&one, &ended(&late, 200)).await.expect("taken");
    assert_eq!(put(&one, &ended(&soon, 200)).await, Err(StoreError::Fenced(one.session.to_string())));
    let raw = tier.raw().await;
    raw.execute("UPDATE node SET dead_at = dead_at - interval '1 hour' WHERE name = 'one'", &[]).await.expect("later");
    let (batches, events) = taken(&other).await;
    assert!(batches.contains(&ended(&late, 200)), "{batches:?}");
    assert_eq!(events, late.sends);
    // The first end stays.
    let refused = Batch { ended: None, ..late.clone() };
    assert_eq!(put(&other, &refused).await, Err(StoreError::NoSuchSend));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_hands_everything_over_at_once_and_a_batch_may_be_given_to_another() {
    let tier = Schema::fresh();
    let (one, other) = (tier.node("one").await, tier.node("other").await);
    let carried = gathered(&one.store, &one.session, 2).await;
    let gathers = gathered(&one.store, &one.session, 2).await;
    let given = gathered(&one.store, &one.session, 1).await;
    close_within(&one, &carried, HOUR).await.expect("closed");
    close_within(&one, &given, HOUR).await.expect("closed");
    let to = Neighbour { name: "other".into(), life: other.session.incarnation(), serves: Vec::new() };
    let gone = Neighbour { life: 999, ..to.clone() };
    assert_eq!(one.store.hand_batch(&one.session, given.id, &gone).await, Ok(false), "nobody is there");
    assert_eq!(other.store.hand_batch(&other.session, given.id, &to).await, Ok(false), "not by another");
    assert_eq!(one.store.hand_batch(&one.session, given.id, &to).await, Ok(true));
    assert_eq!(one.store.hand_batch(&one.session, given.id, &to).await, Ok(false), "once");
    assert_eq!(one.store.may_carry(&one.session, given.id).await, Err(StoreError::Fenced(one.session.to_string())));
    assert_eq!(taken(&other).await, (vec![given.clone()], given.sends.clone()));
    other.store.may_carry(&other.session, given.id).await.expect("its own");
    one.store.close().await.expect("closed");
    let (batches, mut events) = taken(&other).await;
    assert!(batches.contains(&carried) && batches.len() == 2, "{batches:?}");
    let mut all = [carried.sends.clone(), gathers.sends.clone()].concat();
    all.sort();
    events.sort();
    assert_eq!(events, all);
    an_older_node_sees_nothing_to_do(&tier).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_in_the_middle_of_closing_comes_before_it_or_after_it() {
    let tier = Schema::fresh();
    let (one, other) = (tier.node("one").await, tier.node("other").await);
    // Held up behind an event of its own, the closing holds the node's row: the death waits for it.
    let batch = gathered(&one.store, &one.session, 3).await;
    let mut locker = tier.locker().await;
    let open = locker.transaction().await.expect("begun");
    open.execute("SELECT FROM live WHERE id = $1 FOR UPDATE", &[&batch.sends[1].0]).await.expect("locked");
    let closing = close(&one.store, &one.session, &batch);
    let dying = async {
        blocked(&tier, 1).await;
        let dying = declare_dead(&tier, "one");
        let free = async {
            blocked(&tier, 2).await;
            assert_eq!(taken(&other).await, (Vec::new(), Vec::new()));
            open.commit().await.expect("let go");
        };
        tokio::join!(dying, free);
    };
    let (closed, ()) = tokio::join!(closing, dying);
    assert_eq!(closed, Ok(batch.sends.clone()));
    assert_eq!(taken(&other).await, (vec![batch.clone()], batch.sends.clone()));
    // The death is there, and not yet committed: the closing waits for it, and finds itself fenced.
    let third = tier.node("third").await;
    let batch = gathered(&third.store, &third.session, 3).await;
    let open = locker.transaction().await.expect("begun");
    open.execute("UPDATE node SET dead_at = clock_timestamp() WHERE name = 'third'", &[]).await.expect("dead");
    let closing = close(&third.store, &third.session, &batch);
    let dying = async {
        blocked(&tier, 1).await;
        open.commit().await.expect("committed");
    };
    let (closed, ()) = tokio::join!(closing, dying);
    assert_eq!(closed, Err(StoreError::Fenced(third.session.to_string())));
    assert_eq!(other.store.batch(Reach::All, batch.id).await, Ok(None));
    let mut events = taken(&other).await.1;
    events.sort();
    assert_eq!(events, batch.sends);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_batch_that_takes_several_transactions_a_death_leaves_a_smaller_one() {
    let tier = Schema::fresh();
    let (one, other) = (tier.node("one").await, tier.node("other").await);
    let whole = gathered(&one.store, &one.session, 7).await;
    assert_eq!(close(&one.store, &one.session, &whole).await, Ok(whole.sends.clone()));
    assert_eq!(close(&one.store, &one.session, &whole).await, Ok(whole.sends.clone()), "again it is the same");
    assert_eq!(other.store.batch(Reach::All, whole.id).await, Ok(Some(whole.clone())));
    // As one that dies before its last transaction leaves it.
    let cut = gathered(&one.store, &one.session, 7).await;
    let begun = Batch { sends: cut.sends[..6].to_vec(), ..cut.clone() };
    assert_eq!(close(&one.store, &one.session, &begun).await, Ok(begun.sends.clone()));
    declare_dead(&tier, "one").await;
    assert_eq!(close(&one.store, &one.session, &cut).await, Err(StoreError::Fenced(one.session.to_string())));
    let (mut batches, mut events) = taken(&other).await;
    batches.retain(|batch| batch.id == cut.id);
    assert_eq!(batches, [begun]);
    events.retain(|event| !whole.sends.contains(event));
    events.sort();
    assert_eq!(events, cut.sends, "six with their batch, and one to gather");
}

/// So many statements of the tier's nodes, and of its tests, wait for a lock.
async fn blocked(tier: &Schema, count: i64) {
    let raw = tier.raw().await;
    let pattern = format!("{}%", tier.name());
    eventually("they wait", async || {
        let asked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name LIKE $1 \
                     AND (query LIKE '%close_batch%' OR query LIKE 'UPDATE node SET dead_at%')";
        raw.query_one(asked, &[&pattern]).await.expect("asked").get::<_, i64>(0) >= count
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closing_whose_answer_was_lost_is_found_out() {
    let tier = Schema::fresh();
    let relay = Relay::of("large").await;
    let (one, other) = (tier.node_through("one", relay.port).await, tier.node("other").await);
    // The connection has prepared it by then.
    let before = gathered(&one.store, &one.session, 1).await;
    close(&one.store, &one.session, &before).await.expect("closed");
    let batch = gathered(&one.store, &one.session, 3).await;
    relay.lose(1);
    assert_eq!(close(&one.store, &one.session, &batch).await, Ok(batch.sends.clone()));
    assert!(relay.has_lost_it());
    assert_eq!(other.store.batch(Reach::All, batch.id).await, Ok(Some(batch.clone())));
    // What has its end by then is in no batch.
    let mut rest = gathered(&one.store, &one.session, 3).await;
    one.store.finish(&one.session, of_batch(&rest, rest.sends[1], 500)).await.expect("ended");
    let gone = rest.sends.remove(1);
    let asked = Batch { sends: [&rest.sends[..], &[gone]].concat(), ..rest.clone() };
    assert_eq!(close(&one.store, &one.session, &asked).await, Ok(rest.sends.clone()));
    let none = Batch { sends: vec![gone], id: before.id, ..rest.clone() };
    assert_eq!(close(&one.store, &one.session, &none).await, Ok(before.sends), "as it was closed before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_a_batch_end_by_its_carrier_until_it_has_its_end_and_each_once() {
    let tier = Schema::fresh();
    let (one, other) = (tier.node("one").await, tier.node("other").await);
    let mut batch = gathered(&one.store, &one.session, 3).await;
    let end = |batch: &Batch, at: usize| of_batch(batch, batch.sends[at], 200);
    assert_eq!(other.store.finish(&other.session, end(&batch, 0)).await, Err(StoreError::NoSuchSend));
    close(&one.store, &one.session, &batch).await.expect("closed");
    assert_eq!(other.store.finish(&other.session, end(&batch, 0)).await, Err(StoreError::NoSuchSend));
    one.store.finish(&one.session, end(&batch, 0)).await.expect("one that could not be read");
    batch = ended(&batch, 200);
    put(&one, &batch).await.expect("kept");
    assert_eq!(one.store.may_carry(&one.session, batch.id).await, Err(StoreError::Fenced(one.session.to_string())));
    // From here on it is the same whoever writes it.
    other.store.finish(&other.session, end(&batch, 1)).await.expect("ended");
    one.store.finish(&one.session, end(&batch, 2)).await.expect("ended");
    for at in 0..3 {
        assert_eq!(one.store.finish(&one.session, end(&batch, at)).await, Err(StoreError::NoSuchSend));
    }
    batch.state = BatchState::Done;
    put(&one, &batch).await.expect("kept");
    for node in [&one, &other] {
        eventually("nothing waits", async || node.store.waiting_in_all() == WaitingCount::default()).await;
        assert_eq!(node.store.batch(Reach::All, batch.id).await, Ok(Some(batch.clone())));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_tells_which_batch_an_event_is_in_and_none_tells_a_wrong_one() {
    let tier = Schema::fresh();
    let (one, other) = (tier.node("one").await, tier.node("other").await);
    let batch = gathered(&one.store, &one.session, 3).await;
    let opened = |batch: &Batch| Opened {
        id: batch.id,
        tenant: batch.tenant.clone(),
        place: batch.place.clone(),
        opened_at: batch.opened_at,
        closes_at: batch.closes_at,
    };
    let told = async |send: SendId| {
        let record = other.store.record(Reach::All, send, false).await.expect("read").expect("known");
        (record.state, record.batch.map(|batch| batch.id))
    };
    assert_eq!(told(batch.sends[0]).await, (State::Queued, None), "nobody was told yet");
    one.store.note_gathering(&one.session, vec![opened(&batch)]).await.expect("noted");
    assert_eq!(told(batch.sends[0]).await, (State::Queued, Some(batch.id)));
    let (seen, count) = other.store.gathering(Reach::All, batch.id).await.expect("read").expect("it gathers");
    let wanted = Batch { state: BatchState::Gathering, placed: None, sends: Vec::new(), ..batch.clone() };
    assert_eq!((seen, count), (wanted, 3));
    assert_eq!(other.store.gathering(Reach::One(tenant("other")), batch.id).await, Ok(None));
    // The next one of this place opens before this one is closed for good.
    let next = gathered(&one.store, &one.session, 1).await;
    one.store.note_gathering(&one.session, vec![opened(&next)]).await.expect("noted");
    for send in [batch.sends[0], next.sends[0]] {
        assert_eq!(told(send).await, (State::Queued, None));
    }
    close(&one.store, &one.session, &batch).await.expect("closed");
    assert_eq!(told(batch.sends[0]).await, (State::Queued, Some(batch.id)));
    assert_eq!(told(next.sends[0]).await, (State::Queued, Some(next.id)));
    assert_eq!(other.store.gathering(Reach::All, batch.id).await, Ok(None));
    one.store.forget_gathering(&one.session, vec![next.id]).await.expect("forgotten");
    assert_eq!(told(next.sends[0]).await, (State::Queued, None));
    let named = InBatch { id: batch.id, closes_at: batch.closes_at, taken: Processed::No };
    let listed = other.store.list(Filter::of(Reach::All), None, 10).await.expect("a page");
    assert_eq!(listed.sends.iter().filter(|record| record.batch == Some(named)).count(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_try_begins_under_a_suspension_that_is_not_loaded_and_what_nobody_gathers_ends_by_the_sweeps() {
    let tier = Schema::fresh();
    let (one, other) = (tier.node("one").await, tier.node("other").await);
    let batch = gathered(&one.store, &one.session, 1).await;
    close(&one.store, &one.session, &batch).await.expect("closed");
    let raw = tier.raw().await;
    raw.execute("SELECT suspensions_changed()", &[]).await.expect("bumped");
    let tried = one.store.may_carry(&one.session, batch.id).await;
    assert!(matches!(tried, Err(StoreError::CannotWrite(_))), "{tried:?}");
    one.store.suspensions().await.expect("read");
    one.store.suspensions_loaded();
    one.store.may_carry(&one.session, batch.id).await.expect("loaded");

    // Released, and nobody's: it is counted, and nobody claims it.
    let held = NewSend { course: Course::Wait, ..event(&draft().in_execution("e").created(at(1))) };
    let id = held.id;
    accept_new(&one.store, &one.session, call(vec![held], Some("e"))).await;
    let finish = Ending::Finish(crate::record::FinishedBy::Call);
    one.store.end_execution(&one.session, tenant("acme"), execution("e"), finish, at(2)).await.expect("released");
    for node in [&one, &other] {
        eventually("it is counted", async || {
            let count = node.store.waiting_in_all();
            (count.held, count.queued, count.unclaimed) == (0, 2, 0)
        })
        .await;
    }
    an_older_node_sees_nothing_to_do(&tier).await;
    assert_eq!(other.claim(9).await, []);
    // The same by what a node of the version before calls.
    let held = NewSend { course: Course::Wait, ..event(&draft().in_execution("f").created(at(1))) };
    let released = held.id;
    accept_new(&one.store, &one.session, call(vec![held], Some("f"))).await;
    let older =
        "SELECT o_count FROM end_execution($1, 'acme', 'f', 1::smallint, 1, 0::smallint, 0::smallint, 'one', '')";
    let joined = "INSERT INTO node (name, version, suspensions, lease_until) SELECT 'older', '', suspensions, 'infinity' FROM tier \
                  RETURNING incarnation";
    let incarnation: i64 = raw.query_one(joined, &[]).await.expect("joined").get(0);
    let count = raw.query_one(older, &[&incarnation]).await.expect("released");
    assert_eq!(count.get::<_, i64>(0), 1);
    an_older_node_sees_nothing_to_do(&tier).await;
    let days = SignedDuration::from_hours(24 * 400);
    let swept = other.store.expire(&other.session, at(2).saturating_add(days).expect("a time"), 10).await;
    let swept = swept.expect("swept").ended;
    let mut swept: Vec<SendId> = swept.iter().map(|end| end.id).collect();
    swept.sort();
    assert_eq!(swept, [id, released], "not what is in a batch");
    let stopped = NewSend { course: Course::Wait, ..event(&draft().created(at(3))) };
    let id = stopped.id;
    accept_new(&one.store, &one.session, call(vec![stopped], None)).await;
    let mut suspensions = Suspensions::default();
    suspensions.tenants.insert(tenant("acme"), "a test".into());
    let swept = other.store.end_suspended(&other.session, Arc::new(suspensions), None, at(4), 10).await;
    assert_eq!(swept.expect("swept").ended.iter().map(|end| end.id).collect::<Vec<_>>(), [id]);
    for node in [&one, &other] {
        eventually("the batch's is left", async || node.store.waiting_in_all().queued == 1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_restored_database_gathers_or_is_carried() {
    let tier = Schema::fresh();
    let node = tier.node("one").await;
    let closed = gathered(&node.store, &node.session, 2).await;
    close(&node.store, &node.session, &closed).await.expect("closed");
    let gathers = gathered(&node.store, &node.session, 1).await;
    let sends = [NewSend { course: Course::Wait, ..event(&draft().created(at(1))) }, event(&draft().in_execution("e"))];
    let (waits, held) = (sends[0].id, sends[1].id);
    let [waiting, holding] = sends;
    accept_new(&node.store, &node.session, call(vec![waiting], None)).await;
    accept_new(&node.store, &node.session, call(vec![holding], Some("e"))).await;
    drop(node);
    let other = tier.node_with("other", Settings { past: Past::Restored, ..tier.settings() }).await;
    // Whoever has the batch finds that all of its events have ends of their own.
    assert_eq!(taken(&other).await, (vec![closed.clone()], Vec::new()));
    for id in [&closed.sends[..], &gathers.sends, &[waits, held]].concat() {
        eventually("it ends interrupted", async || other.code_of(id).await == Some(Code::Interrupted)).await;
    }
    eventually("nothing waits", async || other.store.waiting_in_all() == WaitingCount::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_answer_was_lost_of_is_gathered_by_somebody() {
    let tier = Schema::fresh();
    let relay = Relay::of("calls").await;
    let one = tier.node_through("one", relay.port).await;
    // The connection has prepared it by then.
    one.store.take_left(&one.session, vec![Kind::S3]).await.expect("nothing");
    let waits = (0..3).map(|_| NewSend { course: Course::Wait, ..event(&draft().created(at(1))) });
    let waits: Vec<NewSend> = waits.collect();
    let all: HashSet<SendId> = waits.iter().map(|send| send.id).collect();
    accept_new(&one.store, &one.session, call(waits, None)).await;
    // Behind the look at what the dead have noted.
    relay.lose(2);
    let lost = one.store.take_left(&one.session, vec![Kind::S3]).await;
    assert!(relay.has_lost_it() && lost.is_err(), "{lost:?}");
    let mut found = HashSet::new();
    eventually("all of them are gathered", async || {
        if let Ok(left) = one.store.take_left(&one.session, vec![Kind::S3]).await {
            found.extend(ids(&left.events));
        }
        found == all
    })
    .await;
}
