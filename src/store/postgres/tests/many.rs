//! Several nodes on one database, each with a session of its own.

use std::sync::atomic::AtomicU64;

use futures_util::future::join_all;

use super::*;
use crate::outcome::Code;
use crate::store::conformance::{
    Draft, accept_new, accept_one, at, begin_of, begin_one, call, draft, execution, finished, tenant,
};
use crate::store::{Course, ExecutionEnd, NewSend, SuspensionScope};

/// How long anything may take: a busy machine is no failure.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A tier without nodes yet.
pub struct Schema {
    name: String,
    directory: tempfile::TempDir,
}

pub struct One {
    pub store: Postgres,
    pub session: Session,
}

impl Schema {
    pub fn fresh() -> Self {
        Self { name: fresh_schema(), directory: tempfile::tempdir().expect("a directory") }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn settings(&self) -> Settings {
        settings(self.directory.path())
    }

    pub async fn node(&self, name: &str) -> One {
        self.node_with(name, self.settings()).await
    }

    pub async fn node_with(&self, name: &str, settings: Settings) -> One {
        let store = Postgres::open(cluster().address(&self.name), settings).await.expect("opened");
        let session = store.join(Arc::from(name)).await.expect("joined");
        One { store, session }
    }

    /// By way of a relay on this port of loopback.
    pub async fn node_through(&self, name: &str, port: u16) -> One {
        let mut address = cluster().address(&self.name);
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(port).user("egressd").dbname("postgres");
        address.config = config;
        let store = Postgres::open(address, self.settings()).await.expect("opened");
        let session = store.join(Arc::from(name)).await.expect("joined");
        One { store, session }
    }

    /// A session of the database's own, outside of any node.
    pub async fn raw(&self) -> tokio_postgres::Client {
        cluster().address(&self.name).connect_first("a test").await.expect("connected")
    }

    /// The same, which may keep a transaction open for as long as others take.
    pub async fn locker(&self) -> tokio_postgres::Client {
        let raw = self.raw().await;
        raw.batch_execute("SET idle_in_transaction_session_timeout = 0").await.expect("set");
        raw
    }
}

impl One {
    pub async fn wait(&self, draft: &Draft) -> SendId {
        let send = NewSend { course: Course::Wait, ..draft.send() };
        let id = send.id;
        accept_new(&self.store, &self.session, call(vec![send], None)).await;
        id
    }

    pub async fn claim(&self, room: usize) -> Vec<SendId> {
        let want = Want { tenant: tenant("acme"), room, full: Vec::new() };
        let claimed = self.store.claim(&self.session, vec![want], room).await.expect("claimed");
        claimed.sends.into_iter().map(|send| send.id).collect()
    }

    pub async fn code_of(&self, id: SendId) -> Option<Code> {
        let record = self.store.record(Reach::All, id, false).await.expect("read").expect("known");
        record.ended.and_then(|ended| ended.error).map(|error| error.code)
    }
}

/// Asks until it is so.
pub async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let since = clock::monotonic();
    while !is_so().await {
        assert!(clock::monotonic().duration_since(since) < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_nodes_one_begins_each_send() {
    let tier = Schema::fresh();
    let nodes = [tier.node("a").await, tier.node("b").await, tier.node("c").await];
    let mut all = HashSet::new();
    for _ in 0..8 {
        let sends: Vec<_> = (0..50).map(|_| NewSend { course: Course::Wait, ..draft().send() }).collect();
        all.extend(sends.iter().map(|send| send.id));
        accept_new(&nodes[0].store, &nodes[0].session, call(sends, None)).await;
    }
    let work = nodes.iter().map(|node| async {
        let mut begun = Vec::new();
        loop {
            let ids = node.claim(7).await;
            if ids.is_empty() {
                return begun;
            }
            let begins = ids.iter().map(|id| begin_of(*id, &draft(), at(1))).collect();
            for started in node.store.begin(&node.session, begins).await.expect("begun") {
                begun.push(started.expect("it was claimed").id());
            }
        }
    });
    let begun: Vec<Vec<SendId>> = join_all(work).await;
    let together: Vec<SendId> = begun.iter().flatten().copied().collect();
    assert_eq!(together.len(), all.len(), "each once");
    assert_eq!(together.iter().copied().collect::<HashSet<_>>(), all);
    for (node, begun) in nodes.iter().zip(&begun) {
        let ends = begun.iter().map(|id| node.store.finish(&node.session, finished(*id, 200, at(1))));
        assert!(join_all(ends).await.iter().all(Result::is_ok));
    }
    for node in &nodes {
        eventually("every node's counts come to nothing", async || {
            node.store.waiting_in_all() == WaitingCount::default()
        })
        .await;
        let counts = node.store.outcomes_of_the_hour(at(2)).await.expect("counts");
        assert_eq!(counts[&tenant("acme")][&Outcome::Delivered], all.len() as u64);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_on_many_nodes_is_one_call() {
    let tier = Schema::fresh();
    let nodes = [tier.node("a").await, tier.node("b").await, tier.node("c").await];
    for round in 0..20 {
        let key = IdempotencyKey {
            tenant: tenant("acme"),
            path: "/v1/sends".to_owned(),
            key: format!("k-{round}"),
            fingerprint: [1; 32],
        };
        let calls = nodes.iter().map(|node| {
            let sends = (0..3).map(|_| draft().in_execution("e").send()).collect();
            let keyed = Accept { idempotency: Some(key.clone()), ..call(sends, None) };
            let ids: Vec<_> = keyed.sends.iter().map(|send| send.id).collect();
            async move { (ids, node.store.accept(&node.session, keyed).await.expect("answered")) }
        });
        let answers = join_all(calls).await;
        let new: Vec<_> = answers.iter().filter(|(_, answer)| matches!(answer, Accepted::New { .. })).collect();
        assert_eq!(new.len(), 1, "{answers:?}");
        let replayed = Accepted::Replayed(new[0].0.clone());
        assert_eq!(answers.iter().filter(|(_, answer)| *answer == replayed).count(), 2, "{answers:?}");
    }
    let seen = nodes[0].store.execution(tenant("acme"), execution("e"), None, 200).await.unwrap().unwrap();
    assert_eq!(seen.sends.iter().map(|record| record.index).collect::<Vec<_>>(), (0..60).map(Some).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_execution_that_ends_while_it_is_filled_leaves_nothing_held() {
    let tier = Schema::fresh();
    let nodes = [tier.node("a").await, tier.node("b").await, tier.node("c").await];
    for round in 0..15 {
        let name = format!("e-{round}");
        let fill = |node: &'static str, at_node: usize| {
            let (store, session, name) = (&nodes[at_node].store, &nodes[at_node].session, name.clone());
            async move {
                let mut accepted = 0;
                for _ in 0..10 {
                    let send = draft().in_execution(&name).send();
                    match store.accept(session, call(vec![send], Some(&name))).await.expect(node) {
                        Accepted::New { .. } => accepted += 1,
                        Accepted::Ended(_) => break,
                        other => panic!("{other:?}"),
                    }
                }
                accepted
            }
        };
        let end = async {
            tokio::time::sleep(Duration::from_millis(round)).await;
            let ending = if round % 2 == 0 { Ending::Discard } else { Ending::Finish(crate::record::FinishedBy::Call) };
            let (store, session) = (&nodes[2].store, &nodes[2].session);
            store.end_execution(session, tenant("acme"), execution(&name), ending, at(2)).await.expect("ended").end
        };
        let (one, two, end) = tokio::join!(fill("a", 0), fill("b", 1), end);
        assert_eq!(end, ExecutionEnd::Done { count: one + two, first: true });
    }
    let raw = tier.raw().await;
    let held: i64 = raw.query_one("SELECT count(*) FROM live WHERE held", &[]).await.expect("counted").get(0);
    assert_eq!(held, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_value_in_a_shared_batch_is_its_own_callers() {
    let tier = Schema::fresh();
    let node = tier.node("a").await;
    let calls = (0..40).map(|number| {
        // A NUL is nothing that a column of text can have.
        let draft = if number % 10 == 3 { draft().in_workflow("\0") } else { draft().in_workflow("w") };
        let send = draft.send();
        let id = send.id;
        let node = &node;
        async move { (id, number % 10 == 3, node.store.accept(&node.session, call(vec![send], None)).await) }
    });
    for (id, is_bad, answer) in join_all(calls).await {
        assert_eq!(matches!(answer, Err(StoreError::CannotWrite(_))), is_bad, "{answer:?}");
        assert_eq!(answer.is_ok(), !is_bad, "{answer:?}");
        assert_eq!(node.store.record(Reach::All, id, false).await.expect("read").is_some(), !is_bad);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_nodes_queue_is_taken_over_and_what_it_had_begun_ends_later() {
    let tier = Schema::fresh();
    let lease = Duration::from_secs(3);
    let grace = Duration::from_secs(2);
    let with = || Settings { lease, grace, ..tier.settings() };
    let (one, other) = (tier.node_with("one", with()).await, tier.node_with("other", with()).await);
    let begun = accept_one(&one.store, &one.session, &draft()).await;
    let claimed = accept_one(&one.store, &one.session, &draft()).await;
    let late = accept_one(&one.store, &one.session, &draft()).await;
    let unclaimed = one.wait(&draft()).await;
    for id in [begun, late] {
        begin_one(&one.store, &one.session, begin_of(id, &draft(), at(1))).await.expect("begun");
    }
    // It is frozen: it renews nothing any more.
    one.store.stop_renewing();
    let mut taken = Vec::new();
    eventually("its claims are taken over", async || {
        taken.extend(other.claim(9).await);
        taken.len() == 2
    })
    .await;
    taken.sort();
    assert_eq!(taken, [claimed, unclaimed]);
    // It wakes up. What it had begun it may end, while that has no other end.
    assert_eq!(other.code_of(begun).await, None, "not before nothing of it can be on the wire");
    one.store.finish(&one.session, finished(late, 200, at(1))).await.expect("its own");
    let tried = begin_one(&one.store, &one.session, begin_of(claimed, &draft(), at(2))).await;
    assert!(matches!(tried, Err(StoreError::Fenced(_))), "{tried:?}");
    let tried = one.store.accept(&one.session, call(vec![draft().send()], None)).await;
    assert!(matches!(tried, Err(StoreError::Fenced(_))), "{tried:?}");
    begin_one(&other.store, &other.session, begin_of(claimed, &draft(), at(3))).await.expect("it is the other's");
    eventually("what the dead had begun ends", async || other.code_of(begun).await == Some(Code::Interrupted)).await;
    let tried = one.store.finish(&one.session, finished(begun, 200, at(1))).await;
    assert_eq!(tried, Err(StoreError::NoSuchSend), "it has its end");
    // A new life of it goes on.
    let again = tier.node_with("one", with()).await;
    assert_ne!(again.session, one.session);
    let id = accept_one(&again.store, &again.session, &draft()).await;
    begin_one(&again.store, &again.session, begin_of(id, &draft(), at(4))).await.expect("begun");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_leaves_hands_over_at_once() {
    let tier = Schema::fresh();
    let (one, other) = (tier.node("one").await, tier.node("other").await);
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(accept_one(&one.store, &one.session, &draft()).await);
    }
    assert_eq!(other.claim(9).await, []);
    one.store.close().await.expect("closed");
    assert_eq!(other.claim(9).await, ids);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_over_begins_nothing_and_may_be_renewed_until_somebody_says_so() {
    let tier = Schema::fresh();
    let node = tier.node_with("only", Settings { lease: Duration::from_secs(4), ..tier.settings() }).await;
    // One whose begin is answered after its lease is none, and is not made again: there are others.
    let sends: Vec<_> = (0..20).map(|_| draft().send()).collect();
    let mut ids: Vec<_> = sends.iter().map(|send| send.id).collect();
    accept_new(&node.store, &node.session, call(sends, None)).await;
    node.store.stop_renewing();
    let raw = tier.raw().await;
    eventually("its lease is over", async || {
        raw.query_one("SELECT lease_until < clock_timestamp() FROM node", &[]).await.expect("a row").get(0)
    })
    .await;
    for id in &ids {
        let tried = begin_one(&node.store, &node.session, begin_of(*id, &draft(), at(1))).await;
        assert!(matches!(tried, Err(StoreError::CannotWrite(_))), "{tried:?}");
    }
    node.store.renew_again();
    eventually("it begins again", async || {
        let id = *ids.last().expect("none of so many was begun in time");
        let tried = begin_one(&node.store, &node.session, begin_of(id, &draft(), at(1))).await;
        if matches!(tried, Err(StoreError::NoSuchSend)) {
            ids.pop();
        }
        tried.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_begins_on_any_node_that_has_not_loaded_a_suspension() {
    let tier = Schema::fresh();
    // It is not waited for longer than that.
    let with = Settings { answer_within: Duration::from_millis(200), ..tier.settings() };
    let (one, other) = (tier.node_with("one", with).await, tier.node("other").await);
    let id = accept_one(&other.store, &other.session, &draft()).await;
    let mut news = other.store.news().expect("its news");
    let suspension = Suspension {
        id: conformance::id_at(at(1)),
        scope: SuspensionScope::Tenant { tenant: tenant("acme"), workflow: None },
        reason: "spam".to_owned(),
        by: "operations".to_owned(),
        at: at(1),
        lifted: None,
    };
    one.store.suspend(suspension.clone()).await.expect("suspended");
    let tried = begin_one(&other.store, &other.session, begin_of(id, &draft(), at(2))).await;
    assert!(matches!(tried, Err(StoreError::CannotWrite(_))), "{tried:?}");
    while news.recv().await.expect("news") != News::Suspensions {}
    assert_eq!(other.store.suspensions().await, Ok(vec![suspension]));
    let tried = begin_one(&other.store, &other.session, begin_of(id, &draft(), at(2))).await;
    assert!(tried.is_err(), "read is not loaded");
    other.store.suspensions_loaded();
    // What it begins now it has judged by it.
    begin_one(&other.store, &other.session, begin_of(id, &draft(), at(2))).await.expect("begun");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspension_is_answered_once_every_node_has_it_in_force() {
    let tier = Schema::fresh();
    let nodes = [tier.node("one").await, tier.node("other").await, tier.node("third").await];
    // One that has died, or whose lease is over, is not waited for.
    let raw = tier.raw().await;
    raw.execute("UPDATE node SET dead_at = clock_timestamp() WHERE name = 'third'", &[]).await.expect("dead");
    let mut news = nodes[1].store.news().expect("its news");
    for n in 0..3 {
        let suspension = Suspension {
            id: conformance::id_at(at(n)),
            scope: SuspensionScope::Host { host: format!("{n}.example.com") },
            reason: "spam".to_owned(),
            by: "operations".to_owned(),
            at: at(n),
            lifted: None,
        };
        let is_in_force = AtomicBool::new(false);
        let load = async {
            loop {
                while news.recv().await.expect("news") != News::Suspensions {}
                let all = nodes[1].store.suspensions().await.expect("read");
                is_in_force.store(all.len() as i64 == n + 1, Ordering::SeqCst);
                nodes[1].store.suspensions_loaded();
            }
        };
        tokio::select! {
            said = nodes[0].store.suspend(suspension) => said.expect("suspended"),
            () = load => {}
        }
        assert!(is_in_force.load(Ordering::SeqCst), "it was answered before the other node had it in force");
        assert_eq!(nodes[0].store.suspensions().await.expect("read").len() as i64, n + 1);
        nodes[0].store.suspensions_loaded();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_sees_every_end_once_while_many_nodes_write() {
    let tier = Schema::fresh();
    let nodes = [tier.node("a").await, tier.node("b").await, tier.node("c").await];
    let writers = nodes.iter().map(|node| async move {
        let mut ended = Vec::new();
        for _ in 0..40 {
            let draft = draft();
            let ids = join_all((0..3).map(|_| accept_one(&node.store, &node.session, &draft))).await;
            let ends = ids.iter().map(|id| node.store.finish(&node.session, finished(*id, 200, at(1))));
            for (id, place) in ids.iter().zip(join_all(ends).await) {
                ended.push((place.expect("ended"), *id));
            }
        }
        ended
    });
    let reader = async {
        let mut seen: Vec<(TailPlace, SendId)> = Vec::new();
        let mut from = TailPlace::START;
        while seen.len() < 3 * 40 * 3 {
            let (items, to) = nodes[0].store.finished_after(from, Filter::of(Reach::All), 50).await.expect("a tail");
            assert!(to >= from, "no later look contradicts an earlier one");
            seen.extend(items.iter().map(|item| (item.place, item.record.id)));
            from = to;
        }
        seen
    };
    let (written, seen) = tokio::join!(join_all(writers), reader);
    let mut written: Vec<_> = written.into_iter().flatten().collect();
    written.sort();
    assert_eq!(seen, written, "all of them, in the order of their places");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_lost_with_its_connection_is_found_out() {
    let tier = Schema::fresh();
    let node = tier.node("a").await;
    let stop = AtomicBool::new(false);
    let ended = AtomicU64::new(0);
    let worker = |_| async {
        while !stop.load(Ordering::Relaxed) {
            let draft = draft();
            let send = NewSend { course: Course::Begin, ..draft.send() };
            let id = send.id;
            let Ok(Accepted::New { started, .. }) = node.store.accept(&node.session, call(vec![send], None)).await
            else {
                continue;
            };
            assert_eq!(started.len(), 1, "accepted, so begun");
            let mut end = node.store.finish(&node.session, finished(id, 200, at(1))).await;
            while matches!(end, Err(StoreError::CannotWrite(_))) {
                end = node.store.finish(&node.session, finished(id, 200, at(1))).await;
            }
            end.expect("its only end, whatever became of the connection");
            let waits = accept_again(&node, &draft).await;
            let mut begun = begin_one(&node.store, &node.session, begin_of(waits, &draft, at(2))).await;
            while matches!(begun, Err(StoreError::CannotWrite(_) | StoreError::CannotRead(_))) {
                begun = begin_one(&node.store, &node.session, begin_of(waits, &draft, at(2))).await;
            }
            let started = begun.expect("claimed by its acceptance, so begun");
            drop(started);
            ended.fetch_add(1, Ordering::Relaxed);
        }
    };
    let work = join_all((0..8).map(worker));
    let killer = async {
        let raw = tier.raw().await;
        let mut killed = 0;
        while killed < 60 {
            let before = ended.load(Ordering::Relaxed);
            eventually("the work goes on", async || ended.load(Ordering::Relaxed) > before).await;
            let text = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                        WHERE application_name = current_schema() || $1";
            let name = if killed % 2 == 0 { " hot" } else { " ends" };
            killed += raw.query(text, &[&name]).await.expect("killed").len();
        }
        stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(work, killer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn days_past_their_retention_go_as_a_whole_and_what_waits_stays() {
    const DAY: i64 = 24 * 3600;
    let tier = Schema::fresh();
    let node = tier.node("a").await;
    let mut ids = Vec::new();
    for day in [0, 2, 20] {
        ids.push(accept_one(&node.store, &node.session, &draft().created(at(day * DAY))).await);
    }
    node.store.finish(&node.session, finished(ids[0], 200, at(1))).await.expect("ended");
    node.store.finish(&node.session, finished(ids[2], 200, at(20 * DAY))).await.expect("ended");
    node.store.retain(at(40 * DAY)).await.expect("retained");
    let listed = node.store.list(Filter::of(Reach::All), None, 9).await.expect("a list").sends;
    assert_eq!(listed.iter().map(|record| record.id).collect::<Vec<_>>(), [ids[2], ids[1]]);
    assert_eq!(node.store.record(Reach::All, ids[0], true).await, Ok(None));
    let raw = tier.raw().await;
    let text = "SELECT count(*) FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relname = $1";
    let gone = format!("done_{}", schema::day_of(ids[0].0));
    assert_eq!(raw.query_one(text, &[&gone]).await.expect("asked").get::<_, i64>(0), 0);
    begin_one(&node.store, &node.session, begin_of(ids[1], &draft(), at(40 * DAY))).await.expect("it still begins");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_has_begun_and_forgotten_ends_and_what_it_is_about_goes_on() {
    let tier = Schema::fresh();
    let node = tier.node("a").await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let send = NewSend { course: Course::Begin, ..draft().created(at(1)).send() };
        ids.push(send.id);
        accept_new(&node.store, &node.session, call(vec![send], None)).await;
    }
    ids.push(accept_one(&node.store, &node.session, &draft()).await);
    begin_one(&node.store, &node.session, begin_of(ids[3], &draft(), at(2))).await.expect("begun");
    for forgotten in [ids[0], ids[3]] {
        locked(&node.store.shared.begun).remove(&forgotten.0);
    }
    let look = async |before: &HashSet<uuid::Uuid>| {
        life::end_forgotten(&node.store.shared, before, Duration::from_secs(60)).await.expect("looked")
    };
    let seen = look(&HashSet::new()).await;
    assert_eq!(seen, HashSet::from([ids[0].0, ids[3].0]));
    let outcome = async |id: SendId| {
        let record = node.store.record(Reach::All, id, false).await.expect("readable").expect("known");
        record.ended.map(|ended| ended.outcome)
    };
    assert_eq!(outcome(ids[0]).await, None, "it is looked for twice");
    assert_eq!(look(&seen).await, HashSet::new());
    let interrupted = Some(Outcome::Interrupted);
    assert_eq!([outcome(ids[0]).await, outcome(ids[3]).await], [interrupted, interrupted]);
    for id in [ids[1], ids[2]] {
        assert_eq!(outcome(id).await, None);
        node.store.finish(&node.session, finished(id, 200, at(3))).await.expect("ended");
    }
    assert!(locked(&node.store.shared.begun).is_empty());
    // Of what has just begun it is not said.
    let send = NewSend { course: Course::Begin, ..draft().created(clock::wall()).send() };
    let id = send.id.0;
    accept_new(&node.store, &node.session, call(vec![send], None)).await;
    locked(&node.store.shared.begun).clear();
    assert!(!look(&HashSet::from([id])).await.contains(&id));
    assert_eq!(outcome(SendId(id)).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_claim_takes_so_many_and_says_that_there_are_more() {
    let tier = Schema::fresh();
    let node = tier.node("a").await;
    let sends = (0..520).map(|_| NewSend { course: Course::Wait, ..draft().send() }).collect();
    accept_new(&node.store, &node.session, call(sends, None)).await;
    for (taken, more) in [(512, true), (8, false)] {
        let want = Want { tenant: tenant("acme"), room: 1_000, full: Vec::new() };
        let claimed = node.store.claim(&node.session, vec![want], 2_000).await.expect("claimed");
        assert_eq!((claimed.sends.len(), claimed.more), (taken, more));
    }
}

async fn accept_again(node: &One, draft: &Draft) -> SendId {
    loop {
        let send = draft.send();
        let id = send.id;
        if node.store.accept(&node.session, call(vec![send], None)).await.is_ok() {
            return id;
        }
    }
}
