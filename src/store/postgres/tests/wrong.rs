//! The obvious ways that are wrong: each passes every test with one session, and fails here beside ours. Two sessions of
//! the database, one of them in the middle of a transaction.

use uuid::Uuid;

use super::many::{Schema, eventually};
use super::*;
use crate::store::conformance::{accept_one, at, draft};
use crate::store::wire;

/// Whether somebody in this schema waits for a lock.
async fn waits(raw: &tokio_postgres::Client, what: &str) {
    eventually(what, async || {
        let text = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                    AND application_name = current_schema() || ' a test'";
        raw.query_one(text, &[]).await.expect("asked").get::<_, i64>(0) > 0
    })
    .await;
}

/// A begin's statement by a session of the database's own: how many it began.
async fn begin(raw: &tokio_postgres::Client, by: &Session, version: i64, id: SendId) -> usize {
    let (incarnation, ids, tenants, times) = (by.incarnation() as i64, [id.0], ["acme"], [wire::nanoseconds(at(1))]);
    let row = raw
        .query_one(sql::BEGIN, &[&incarnation, &version, &&ids[..], &&tenants[..], &&times[..]])
        .await
        .expect("made");
    row.get::<_, Option<Vec<Uuid>>>(1).map_or(0, |ids| ids.len())
}

/// A statement made while a begin is made and not committed: whether it waits for that, behind ours and behind the
/// wrong one.
async fn behind_a_begin(then: &'static str, wrong: &'static str) -> (bool, bool) {
    let tier = Schema::fresh();
    let node = tier.node("a").await;
    let (first, second, looker) = (tier.raw().await, tier.raw().await, tier.raw().await);
    let incarnation = node.session.incarnation() as i64;
    let mut waited = [false, false];
    for (waited, is_ours) in waited.iter_mut().zip([true, false]) {
        let id = accept_one(&node.store, &node.session, &draft()).await;
        first.batch_execute("BEGIN").await.expect("begun");
        let begun = if is_ours {
            begin(&first, &node.session, 1, id).await as u64
        } else {
            let text = wrong.replace("$me", &incarnation.to_string()).replace("$id", &id.to_string());
            first.execute(&text, &[]).await.expect("made")
        };
        assert_eq!(begun, 1);
        let then = then.replace("$me", &incarnation.to_string());
        let behind = async {
            second.batch_execute(&then).await.expect("made");
        };
        let open = async {
            waits(&looker, "it waits").await;
        };
        tokio::pin!(behind);
        *waited = tokio::select! {
            () = &mut behind => false,
            () = open => true,
        };
        first.batch_execute("COMMIT").await.expect("committed");
        if *waited {
            behind.await;
        }
        let before = "UPDATE node SET dead_at = NULL, suspensions = 1; UPDATE tier SET suspensions = 1";
        first.batch_execute(before).await.expect("as before");
    }
    (waited[0], waited[1])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_declared_dead_while_a_begin_of_it_may_still_be_committed() {
    let waited = behind_a_begin(
        "UPDATE node SET dead_at = clock_timestamp() WHERE incarnation = $me",
        // The node's row is looked at, and not locked: what it begins is committed after its death was declared, and
        // may be on the wire when it is taken for interrupted.
        "UPDATE live SET began_at = 1 WHERE id = '$id' AND incarnation = $me AND began_at IS NULL AND EXISTS \
         (SELECT FROM node WHERE incarnation = $me AND dead_at IS NULL AND lease_until > clock_timestamp())",
    )
    .await;
    assert_eq!(waited, (true, false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_suspension_is_answered_while_a_begin_without_it_may_still_be_committed() {
    let waited = behind_a_begin(
        "SELECT suspend('00000000-0000-0000-0000-000000000001', 'acme', NULL, NULL, 'spam', 'me', 1)",
        "UPDATE live SET began_at = 1 WHERE id = '$id' AND incarnation = $me AND began_at IS NULL \
         AND NOT EXISTS (SELECT FROM suspension WHERE tenant = 'acme' AND made_at < 0)",
    )
    .await;
    assert_eq!(waited, (true, false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_begin_that_waited_for_an_adoption_begins_nothing() {
    let tier = Schema::fresh();
    let node = tier.node("a").await;
    let (first, second, looker) = (tier.raw().await, tier.raw().await, tier.raw().await);
    let incarnation = node.session.incarnation() as i64;
    let mut came_to = [0, 0];
    for (came_to, is_ours) in came_to.iter_mut().zip([true, false]) {
        let id = accept_one(&node.store, &node.session, &draft()).await;
        first.batch_execute("BEGIN").await.expect("begun");
        let adopted = first.execute("UPDATE live SET incarnation = NULL WHERE incarnation = $1", &[&incarnation]).await;
        assert_eq!(adopted.expect("adopted"), 1);
        let behind = async {
            *came_to = if is_ours {
                begin(&second, &node.session, 1, id).await as u64
            } else {
                // Who owns it is asked in a subquery, which is not asked again after the wait.
                let text = format!(
                    "UPDATE live SET began_at = 1 WHERE id IN (SELECT id FROM live WHERE id = '{id}' \
                     AND incarnation = {incarnation} AND began_at IS NULL)"
                );
                second.execute(&text, &[]).await.expect("made")
            };
        };
        let commit = async {
            waits(&looker, "it waits").await;
            first.batch_execute("COMMIT").await.expect("committed");
        };
        tokio::join!(behind, commit);
        first.batch_execute("DELETE FROM live").await.expect("as before");
    }
    assert_eq!(came_to, [0, 1], "the wrong way began what was nobody's any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_waits_for_a_begin_that_is_not_committed() {
    let tier = Schema::fresh();
    let node = tier.node("a").await;
    let id = accept_one(&node.store, &node.session, &draft()).await;
    let (first, second, looker) = (tier.raw().await, tier.raw().await, tier.raw().await);
    first.batch_execute("BEGIN").await.expect("begun");
    assert_eq!(begin(&first, &node.session, 1, id).await, 1);
    let incarnation = node.session.incarnation() as i64;
    // Declaring and adopting in one statement would adopt by a look from before the begin.
    let death = async {
        second.execute(sql::LEAVE, &[&incarnation]).await.expect("declared");
        second.query(sql::ADOPT, &[&100_i64, &incarnation]).await.expect("adopted").len()
    };
    let commit = async {
        waits(&looker, "the declaration waits").await;
        first.batch_execute("COMMIT").await.expect("committed");
    };
    let (adopted, ()) = tokio::join!(death, commit);
    assert_eq!(adopted, 0, "what had begun is not begun by another");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_is_committed_late_is_not_passed_over() {
    let tier = Schema::fresh();
    let node = tier.node("a").await;
    let ids = [
        accept_one(&node.store, &node.session, &draft()).await,
        accept_one(&node.store, &node.session, &draft()).await,
    ];
    let (first, second) = (tier.raw().await, tier.raw().await);
    first.batch_execute("CREATE SEQUENCE naive; CREATE TABLE naive_done (seq bigint, id uuid)").await.expect("made");
    let put = async |raw: &tokio_postgres::Client, id: SendId| {
        let text = format!(
            "INSERT INTO naive_done VALUES (nextval('naive'), '{id}'); INSERT INTO done (id, seq, tenant, outcome, \
             finished_at, node, form) VALUES ('{id}', tail_now() | 1, 'acme', 0, 1, \
             'a', '')"
        );
        raw.batch_execute(&text).await.expect("put");
    };
    // The first takes its place first, and is committed last.
    first.batch_execute("BEGIN").await.expect("begun");
    put(&first, ids[0]).await;
    put(&second, ids[1]).await;
    let read = async |naive_from: i64, from: i64| {
        let rows = second.query("SELECT seq, id FROM naive_done WHERE seq > $1 ORDER BY seq", &[&naive_from]).await;
        let naive: Vec<(i64, Uuid)> = rows.expect("read").iter().map(|row| (row.get(0), row.get(1))).collect();
        let rows = second.query(sql::TAIL, &[&from, &100_i64]).await.expect("read");
        let ours: Vec<(i64, Uuid)> = rows.iter().map(|row| (row.get(1), row.get(0))).collect();
        (naive, ours)
    };
    let (naive, ours) = read(0, 0).await;
    assert_eq!(naive, [(2, ids[1].0)]);
    assert_eq!(ours, [], "nothing is told while something in front of it may still come");
    first.batch_execute("COMMIT").await.expect("committed");
    let mut told = Vec::new();
    eventually("both are told", async || {
        let (naive, ours) = read(2, 0).await;
        assert_eq!(naive, [], "the sequence's reader has lost the first for good");
        told = ours;
        told.len() == 2
    })
    .await;
    assert_eq!(told.iter().map(|(_, id)| SendId(*id)).collect::<Vec<_>>(), ids);
}
