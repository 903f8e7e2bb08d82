//! Answers that are lost on their way, a database that was restored, and what steps around full destinations costs.

use std::sync::atomic::AtomicUsize;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::many::{One, Schema, eventually};
use super::*;
use crate::outcome::Code;
use crate::record::FinishedBy;
use crate::store::conformance::{
    accept_new, accept_one, at, begin_of, begin_one, call, draft, execution, finished, tenant,
};
use crate::store::{Course, ExecutionEnd, NewSend};

/// Between a node and the database: swallows one answer to a connection of this name, and breaks that connection.
pub struct Relay {
    pub port: u16,
    /// So many answers from now on; 0: none.
    swallow: Arc<AtomicUsize>,
    /// Whether connections of this name come through.
    open: watch::Sender<bool>,
}

impl Relay {
    async fn start() -> Self {
        Self::of("calls").await
    }

    pub async fn of(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let port = listener.local_addr().expect("bound").port();
        let swallow = Arc::new(AtomicUsize::new(0));
        let (open, is_open) = watch::channel(true);
        let told = swallow.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, name, told.clone(), is_open.clone()));
            }
        });
        Self { port, swallow, open }
    }

    /// The same, and nothing comes through after it until then.
    pub fn lose_and_shut(&self, nth: usize) {
        self.open.send_replace(false);
        self.lose(nth);
    }

    pub fn open_again(&self) {
        self.open.send_replace(true);
    }

    /// The answer to the next statement of calls is lost, or to one after it.
    pub fn lose(&self, nth: usize) {
        self.swallow.store(nth, Ordering::SeqCst);
    }

    pub fn has_lost_it(&self) -> bool {
        self.swallow.load(Ordering::SeqCst) == 0
    }
}

#[allow(clippy::disallowed_methods, reason = "it goes to the test's own database")]
async fn relay(mut client: TcpStream, name: &str, swallow: Arc<AtomicUsize>, mut is_open: watch::Receiver<bool>) {
    let mut server = TcpStream::connect(("127.0.0.1", cluster().port())).await.expect("connected");
    let mut start = vec![0; 4096];
    let Ok(read) = client.read(&mut start).await else { return };
    let start = &start[..read];
    let name = format!(" {name}\0");
    let is_of_calls = start.windows(name.len()).any(|part| part == name.as_bytes());
    if is_of_calls && is_open.wait_for(|open| *open).await.is_err() {
        return;
    }
    server.write_all(start).await.expect("sent on");
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let there = tokio::io::copy(&mut from_client, &mut to_server);
    let back = async {
        let mut bytes = vec![0; 64 * 1024];
        let mut unread = Vec::new();
        while let Ok(read) = from_server.read(&mut bytes).await {
            unread.extend_from_slice(&bytes[..read]);
            let counted = |left: usize| left.checked_sub(1);
            for _ in 0..answers_in(&mut unread) {
                if is_of_calls && swallow.fetch_update(Ordering::SeqCst, Ordering::SeqCst, counted) == Ok(1) {
                    return;
                }
            }
            if read == 0 {
                return;
            }
            if to_client.write_all(&bytes[..read]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        _ = there => {}
        () = back => {}
    }
}

/// How many answers end in what has come: the messages `ReadyForQuery`. What is not whole yet stays.
fn answers_in(unread: &mut Vec<u8>) -> usize {
    let (mut at, mut answers) = (0, 0);
    while let Some([kind, a, b, c, d]) = unread.get(at..at + 5).and_then(|head| <[u8; 5]>::try_from(head).ok()) {
        let next = at + 1 + u32::from_be_bytes([a, b, c, d]) as usize;
        if next > unread.len() {
            break;
        }
        answers += usize::from(kind == b'Z');
        at = next;
    }
    unread.drain(..at);
    answers
}

async fn waiting(node: &One, held: u64, queued: u64, unclaimed: u64) {
    eventually("the counts are right", async || {
        let count = node.store.waiting_of(&tenant("acme"));
        (count.held, count.queued, count.unclaimed) == (held, queued, unclaimed)
    })
    .await;
}

async fn hold(node: &One, name: &str, sends: usize) {
    let sends = (0..sends).map(|_| draft().in_execution(name).send()).collect();
    accept_new(&node.store, &node.session, call(sends, Some(name))).await;
}

async fn end(node: &One, name: &str, ending: Ending) {
    let answer = node.store.end_execution(&node.session, tenant("acme"), execution(name), ending, at(9)).await;
    assert!(matches!(answer.expect("answered").end, ExecutionEnd::Done { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_are_right_again_after_the_answer_that_told_them_was_lost() {
    const FINISH: Ending = Ending::Finish(FinishedBy::Call);
    let tier = Schema::fresh();
    let relay = Relay::start().await;
    let node = tier.node_through("a", relay.port).await;
    let other = tier.node("b").await;
    // Each statement is known to the connection before its answer is lost.
    hold(&node, "e", 1).await;
    end(&node, "e", FINISH).await;
    let claimed = node.claim(1).await;
    node.store.give_back(&node.session, claimed).await.expect("given back");
    assert_eq!(node.claim(1).await.len(), 1);
    waiting(&node, 0, 1, 0).await;

    hold(&node, "f", 3).await;
    relay.lose(1);
    end(&node, "f", FINISH).await;
    assert!(relay.has_lost_it());
    waiting(&node, 0, 4, 3).await;
    waiting(&other, 0, 4, 3).await;

    hold(&node, "g", 2).await;
    relay.lose(1);
    end(&node, "g", Ending::Discard).await;
    assert!(relay.has_lost_it());
    waiting(&node, 0, 4, 3).await;

    // The connection is a new one: it has to know the statement.
    assert_eq!(node.claim(1).await.len(), 1);
    waiting(&node, 0, 4, 2).await;
    relay.lose(1);
    let want = Want { tenant: tenant("acme"), room: 2, full: Vec::new() };
    node.store.claim(&node.session, vec![want], 2).await.expect_err("its answer is lost");
    assert!(relay.has_lost_it());
    // They are nobody's again, once that is noticed.
    waiting(&other, 0, 4, 2).await;
    waiting(&node, 0, 4, 2).await;

    node.store.expire(&node.session, at(10), 9).await.expect("nothing expires yet");
    // The counts were these before that claim, too.
    let mut all = Vec::new();
    eventually("both are nobody's", async || {
        all.extend(node.claim(9).await);
        all.len() == 2
    })
    .await;
    node.store.give_back(&node.session, all).await.expect("given back");
    let late = at(1_000_000_000);
    assert_eq!(node.store.expire(&node.session, late, 1).await.expect("swept").ended.len(), 1);
    relay.lose(2);
    let swept = node.store.expire(&node.session, late, 9).await.expect("found out");
    assert!(relay.has_lost_it());
    assert_eq!(swept.ended.len(), 1, "what was ended is told, so that it is counted");
    waiting(&other, 0, 2, 0).await;
    waiting(&node, 0, 2, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_is_given_beside_every_call_is_told() {
    let tier = Schema::fresh();
    let with = || Settings { lease: Duration::from_secs(2), ..tier.settings() };
    let (one, other) = (tier.node_with("one", with()).await, tier.node_with("other", with()).await);
    let mut news = other.store.news().expect("its news");
    let id = accept_one(&one.store, &one.session, &draft()).await;
    begin_one(&one.store, &one.session, begin_of(id, &draft(), at(1))).await.expect("begun");
    drop(one);
    let ends = loop {
        if let News::Closed(ends) = news.recv().await.expect("news") {
            break ends;
        }
    };
    let told: Vec<_> = ends.iter().map(|end| (end.id, end.tenant.clone(), end.code)).collect();
    assert_eq!(told, [(id, tenant("acme"), Code::Interrupted)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_goes_on_after_the_tables_were_brought_to_another_cluster() {
    let tier = Schema::fresh();
    let node = tier.node("a").await;
    let id = accept_one(&node.store, &node.session, &draft()).await;
    node.store.finish(&node.session, finished(id, 200, at(1))).await.expect("ended");
    node.store.close().await.expect("closed");
    // Where it was made, transactions had been counted further.
    let raw = tier.raw().await;
    raw.execute("UPDATE done SET seq = seq + (1000000::bigint << 20)", &[]).await.expect("brought over");
    let node = tier.node("a").await;
    let before = node.store.newest_place().await.expect("a place");
    let next = accept_one(&node.store, &node.session, &draft()).await;
    node.store.finish(&node.session, finished(next, 200, at(1))).await.expect("ended");
    let after = async |from| {
        let (items, _) = node.store.finished_after(from, Filter::of(Reach::All), 9).await.expect("a tail");
        items.into_iter().map(|item| item.record.id).collect::<Vec<_>>()
    };
    eventually("it is told after what was told before", async || after(before).await == [next]).await;
    assert_eq!(after(TailPlace::START).await, [id, next]);
    // That is noticed once.
    let base = "SELECT tail_base FROM tier";
    let first: i64 = raw.query_one(base, &[]).await.expect("asked").get(0);
    drop(tier.node("b").await);
    assert_eq!(raw.query_one(base, &[]).await.expect("asked").get::<_, i64>(0), first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_waits_in_a_restored_database_is_sent() {
    let tier = Schema::fresh();
    let node = tier.node("a").await;
    let claimed = accept_one(&node.store, &node.session, &draft()).await;
    let waits = node.wait(&draft()).await;
    let begun = accept_one(&node.store, &node.session, &draft()).await;
    begin_one(&node.store, &node.session, begin_of(begun, &draft(), at(1))).await.expect("begun");
    let sends = vec![draft().in_execution("e").send()];
    let held = sends[0].id;
    accept_new(&node.store, &node.session, call(sends, Some("e"))).await;
    // The copy knows nothing of the end of what is in it.
    drop(node);
    let other = tier.node_with("b", Settings { past: Past::Restored, ..tier.settings() }).await;
    assert_eq!(other.claim(9).await, []);
    for id in [claimed, waits, begun, held] {
        eventually("it ends interrupted", async || other.code_of(id).await == Some(Code::Interrupted)).await;
        let record = other.store.record(Reach::All, id, false).await.expect("read").expect("known");
        assert_eq!(record.started_at.is_some(), id == begun, "{record:?}");
    }
    eventually("nothing waits", async || other.store.waiting_in_all() == WaitingCount::default()).await;
    let id = accept_one(&other.store, &other.session, &draft()).await;
    begin_one(&other.store, &other.session, begin_of(id, &draft(), at(4))).await.expect("it goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_costs_no_more_however_much_waits_for_a_full_destination() {
    let tier = Schema::fresh();
    let node = tier.node("a").await;
    let full = draft().to("https://full.example.com/");
    let mut cost = Vec::new();
    for (more, free) in [(100, "https://one.example.com/"), (3_900, "https://two.example.com/")] {
        for _ in 0..more / 100 {
            let sends = (0..100).map(|_| NewSend { course: Course::Wait, ..full.send() }).collect();
            accept_new(&node.store, &node.session, call(sends, None)).await;
        }
        let behind = NewSend { course: Course::Wait, ..draft().to(free).send() };
        let id = behind.id;
        accept_new(&node.store, &node.session, call(vec![behind], None)).await;
        let of_full = full.send();
        let to = of_full.spec.destination().expect("a URL");
        let want = Want { tenant: tenant("acme"), room: 5, full: vec![to.clone()] };
        // What the same statement reads, told by the database.
        let raw = tier.raw().await;
        raw.batch_execute("ANALYZE").await.expect("analysed");
        let text = format!("EXPLAIN (ANALYZE, BUFFERS, TIMING OFF) {}", sql::CLAIM_AROUND);
        let (incarnation, number) = (node.session.incarnation() as i64, forms::short(Some(to)));
        raw.batch_execute("BEGIN").await.expect("begun");
        let (tenants, rooms, of, full) = (vec!["acme"], vec![5_i64], vec![1_i64], vec![number]);
        let rows = raw.query(&text, &[&incarnation, &tenants, &rooms, &of, &full, &i64::MIN, &9_i64]).await;
        raw.batch_execute("ROLLBACK").await.expect("undone");
        // The first line that tells is the whole statement's.
        let lines: Vec<String> = rows.expect("explained").iter().map(|row| row.get(0)).collect();
        let hits = lines.iter().find_map(|line| line.split_once("shared hit=")).expect("buffers").1;
        let hits: String = hits.chars().take_while(char::is_ascii_digit).collect();
        cost.push(hits.parse::<u64>().expect("a number"));
        let claimed = node.store.claim(&node.session, vec![want], 9).await.expect("claimed");
        assert_eq!(claimed.sends.iter().map(|send| send.id).collect::<Vec<_>>(), [id]);
    }
    assert!(cost[1] < 2 * cost[0], "blocks read: {cost:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_around_full_destinations_takes_of_each_other_in_the_order_of_release() {
    let tier = Schema::fresh();
    let node = tier.node("a").await;
    let hosts: Vec<String> = (0..4).map(|n| format!("https://h{n}.example.com/")).collect();
    let mut ids: HashMap<&str, Vec<SendId>> = HashMap::new();
    for _ in 0..3 {
        for host in &hosts {
            ids.entry(host).or_default().push(node.wait(&draft().to(host)).await);
        }
    }
    let full = draft().to(&hosts[0]).send();
    let to = full.spec.destination().expect("a URL");
    let want = |room| Want { tenant: tenant("acme"), room, full: vec![to.clone()] };
    let claimed = node.store.claim(&node.session, vec![want(6)], 6).await.expect("claimed").sends;
    let claimed: HashSet<SendId> = claimed.iter().map(|send| send.id).collect();
    let first = hosts[1..].iter().flat_map(|host| ids[host.as_str()][..2].iter().copied());
    assert_eq!(claimed, first.collect::<HashSet<_>>());
    let rest = node.store.claim(&node.session, vec![want(9)], 9).await.expect("claimed").sends;
    assert_eq!(rest.len(), 3);
    assert!(node.store.claim(&node.session, vec![want(9)], 9).await.expect("claimed").sends.is_empty());
    assert_eq!(node.claim(9).await, ids[hosts[0].as_str()]);
}
