//! What may become of three nodes and of their database, at seeded moments under load and at once; then the ledger, which
//! is read from the database in one go.
//!
//! `EGRESSD_TIER_EVENTS` says how many events there are, `EGRESSD_TIER_SEED` which.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::{Cluster, FENCED, READY, in_tier, is_fenced};
use crate::load::{Ledger, ends, judge, start_paced_load};
use crate::node::{Node, PATIENCE, SOURCES, counting_receiver, free_port};

/// What the gate has of them.
const EVENTS: usize = 100;
/// Between two calls of one caller: some forty sends a second on each node.
const PAUSE: Duration = Duration::from_millis(300);
/// A short lease, as what is gone has to be missed often.
const SOON: &str = "[delivery]\ndeadline = \"300ms\"\nhold_limit = \"1s\"\n";

const AWAY: &str = "the database takes nothing";
const BACK: &str = "the database is back";

/// The way from one node to the database's hosts. Cut, it takes what comes and lets nothing through, as a network does that
/// drops; who used it finds its connections closed once it is there again.
struct Way {
    ports: Vec<u16>,
    cut: watch::Sender<bool>,
}

impl Way {
    async fn to(hosts: &[u16]) -> Self {
        let (cut, is_cut) = watch::channel(false);
        let mut ports = Vec::new();
        for host in hosts.iter().copied() {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            ports.push(listener.local_addr().expect("bound").port());
            let is_cut = is_cut.clone();
            tokio::spawn(async move {
                while let Ok((mut near, _)) = listener.accept().await {
                    let mut is_cut = is_cut.clone();
                    tokio::spawn(async move {
                        let through = async {
                            let mut far = TcpStream::connect(("127.0.0.1", host)).await.ok()?;
                            tokio::io::copy_bidirectional(&mut near, &mut far).await.ok()?;
                            Some(())
                        };
                        tokio::select! {
                            _ = through => return,
                            cut = is_cut.wait_for(|cut| *cut) => if cut.is_err() { return },
                        }
                        let _ = is_cut.wait_for(|cut| !*cut).await;
                    });
                }
            });
        }
        Self { ports, cut }
    }

    fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }

    fn url(&self) -> String {
        let hosts: Vec<String> = self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!("postgres://egressd@{}/postgres?target_session_attrs=read-write", hosts.join(","))
    }
}

/// A seeded xorshift.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    fn of<T: Copy>(&mut self, some: &[T]) -> T {
        some[self.below(some.len())]
    }
}

/// What may become of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Hit {
    Killed,
    Drained,
    /// Not for long, as far as it is known.
    Frozen,
    /// As `Frozen`.
    CutOff,
    /// Until it is taken for dead.
    FrozenForLong,
    CutOffForLong,
}

/// What may become of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Outage {
    StoppedFast,
    StoppedAtOnce,
    FailedOver,
}

/// What happens at once.
#[derive(Debug)]
struct Round {
    hits: [Option<Hit>; 3],
    outage: Option<Outage>,
}

impl Round {
    /// Nodes die in any number. One that stands still goes on once the others have accepted more, so one is left that does,
    /// sooner or later; and who is to be missed is missed by nodes that are there for as long.
    fn one(number: usize, random: &mut Seeded) -> Self {
        let mut round = Self { hits: [None; 3], outage: None };
        if number % 12 == 5 {
            round.hits[random.below(3)] = Some(random.of(&[Hit::FrozenForLong, Hit::CutOffForLong]));
            return round;
        }
        let spared = random.below(3);
        for (n, hit) in round.hits.iter_mut().enumerate() {
            let some = [Hit::Killed, Hit::Drained, Hit::Frozen, Hit::CutOff];
            *hit = match random.below(4) {
                0 => None,
                _ if n == spared => Some(random.of(&some[..2])),
                _ => Some(random.of(&some)),
            };
        }
        round.outage = match random.below(16) {
            0 => Some(Outage::FailedOver),
            1..=4 => Some(random.of(&[Outage::StoppedFast, Outage::StoppedAtOnce])),
            _ => None,
        };
        round
    }
}

/// A node's log since it was last started.
fn says(log: &str, what: &str, unsaid_by: &str) -> bool {
    log.rfind(what).is_some_and(|at| log.rfind(unsaid_by).is_none_or(|unsaid| unsaid < at))
}

/// A node with its own way to the database.
struct Member {
    name: &'static str,
    node: Node,
    way: Way,
}

impl Member {
    fn is_fenced(&self) -> bool {
        is_fenced(&self.node)
    }

    /// Started, and past its start, which fails while the database is away. One that ends because of what may pass (it was
    /// taken for dead meanwhile, its last life still holds its name) is started again.
    async fn is_ready(&mut self) {
        let started = Instant::now();
        self.node.launch();
        while !self.node.log_of_this_life().contains(READY) {
            assert!(started.elapsed() < PATIENCE, "{} is not ready: {}", self.name, self.node.log());
            if !self.node.is_running() {
                assert_eq!(self.node.ended(), Some(1), "{}: {}", self.name, self.node.log());
                self.node.launch();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Taken for dead, as it finds out when it may, it ends.
    async fn is_fenced_and_ends(&mut self) {
        assert_eq!(self.node.has_ended().await, Some(1), "{}: {}", self.name, self.node.log());
        assert!(self.is_fenced(), "{}: {}", self.name, self.node.log());
    }

    async fn revived(&mut self) {
        if !self.node.is_running() {
            self.is_fenced_and_ends().await;
            self.is_ready().await;
        }
    }

    /// Returns once it is back.
    async fn hit(&mut self, what: Hit, after: usize, load: &Load, others: &[SocketAddr], may_fail: bool) {
        load.more(after, &[&self.node]).await;
        match what {
            Hit::Killed => self.node.kill(),
            Hit::Drained => {
                self.node.signal(Signal::SIGTERM);
                let code = self.node.has_ended().await;
                let is_well = code == Some(0) || code == Some(1) && (may_fail || self.is_fenced());
                assert!(is_well, "{} left with {code:?}: {}", self.name, self.node.log());
            }
            Hit::Frozen | Hit::FrozenForLong => {
                self.node.signal(Signal::SIGSTOP);
                self.stands_still(what, load, others).await;
                self.node.signal(Signal::SIGCONT);
            }
            Hit::CutOff | Hit::CutOffForLong => {
                self.way.cut(true);
                self.stands_still(what, load, others).await;
                self.way.cut(false);
            }
        }
        match what {
            Hit::Frozen | Hit::CutOff => return,
            Hit::FrozenForLong | Hit::CutOffForLong => self.is_fenced_and_ends().await,
            Hit::Killed | Hit::Drained => {}
        }
        self.is_ready().await;
    }

    async fn stands_still(&self, what: Hit, load: &Load, others: &[SocketAddr]) {
        match what {
            Hit::FrozenForLong | Hit::CutOffForLong => missed(self.name, others).await,
            _ => load.more(8, &[]).await,
        }
    }
}

/// Returns once one of these does not count it among the living any more.
async fn missed(name: &str, by: &[SocketAddr]) {
    let started = Instant::now();
    loop {
        for api in by {
            let answer = crate::node::call(*api, "GET", "/v1/nodes", "", &[]).await;
            let nodes = answer.as_ref().and_then(|(_, answer)| answer["nodes"].as_array());
            if nodes.is_some_and(|nodes| nodes.iter().all(|node| node["node"] != name)) {
                return;
            }
        }
        assert!(started.elapsed() < PATIENCE, "{name} was not missed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Callers of all of the nodes.
struct Load {
    ledger: Ledger,
}

impl Load {
    fn accepted(&self) -> usize {
        self.ledger.lock().unwrap().accepted.len()
    }

    /// Until so much more is accepted, or these are taken for dead.
    async fn more(&self, more: usize, unless: &[&Node]) {
        let (goal, started) = (self.accepted() + more, Instant::now());
        while self.accepted() < goal {
            if !unless.is_empty() && unless.iter().all(|node| is_fenced(node)) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "nothing more is accepted");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// The database goes away, and comes back once one of these has found that out.
async fn outage(what: Outage, cluster: &Arc<Mutex<Cluster>>, seen_by: &[PathBuf]) {
    let tell = async |command: &'static str| {
        let cluster = cluster.clone();
        tokio::task::spawn_blocking(move || cluster.lock().unwrap().tell(command)).await.expect("told");
    };
    match what {
        // What was answered 202 is there as well: commits wait for it.
        Outage::FailedOver => return tell("failover").await,
        Outage::StoppedFast => tell("stop fast").await,
        Outage::StoppedAtOnce => tell("stop immediate").await,
    }
    let stopped = Instant::now();
    let log = |path: &PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let is_fenced = |log: &str| FENCED.iter().any(|fenced| says(log, fenced, READY));
    let has_seen = |log: String| says(&log, AWAY, BACK) || is_fenced(&log);
    while !seen_by.is_empty() && !seen_by.iter().map(log).any(has_seen) {
        assert!(stopped.elapsed() < PATIENCE, "the database is away, and nobody says so");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tell("start").await;
}

/// Every record there is, in the shape of the API, once every send is done.
async fn records(url: &str) -> Vec<Value> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.expect("connected");
    tokio::spawn(connection);
    let started = Instant::now();
    loop {
        let open: i64 = client.query_one("SELECT count(*) FROM egressd.live", &[]).await.expect("an answer").get(0);
        if open == 0 {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "{open} sends never ended");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let all = "SELECT s.id::text, s.step, s.execution, d.outcome::int, d.code::int, d.source, d.node \
        FROM egressd.send s LEFT JOIN egressd.done d USING (id) ORDER BY s.id DESC";
    let rows = client.query(all, &[]).await.expect("an answer");
    let of = |row: &tokio_postgres::Row| {
        let text = |column| row.get::<_, Option<String>>(column);
        // As README names them; the numbers are the store's own.
        let outcome = row.get::<_, Option<i32>>(3).map(|number| match number {
            0 => "delivered",
            1 => "rejected",
            2 => "failed",
            5 => "discarded",
            6 => "interrupted",
            _ => "another",
        });
        let code = row.get::<_, Option<i32>>(4).map(|number| if number == 0 { "timeout" } else { "another" });
        json!({
            "id": text(0), "request": { "url": format!("http://receiver{}", text(1).expect("a step")) },
            "context": { "execution": text(2) }, "outcome": outcome, "error": { "code": code },
            "connection": { "source_ip": text(5) }, "node": text(6),
        })
    };
    rows.iter().map(of).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_outlive_what_a_seed_does_to_them_and_to_their_database() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let events = number("EGRESSD_TIER_EVENTS").map_or(EVENTS, |events| events as usize);
    let mut random = Seeded(number("EGRESSD_TIER_SEED").unwrap_or(5).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut cluster = Cluster::in_memory();
    let (primary, standby) = (cluster.port, free_port().port());
    cluster.tell(&format!("follow {standby}"));
    let cluster = Arc::new(Mutex::new(cluster));
    let (receiver, seen) = counting_receiver(Duration::from_millis(20)).await;
    let keys = tempfile::tempdir().expect("a directory");
    let mut members = Vec::new();
    for (name, source) in ["a", "b", "c"].into_iter().zip(SOURCES) {
        let way = Way::to(&[primary, standby]).await;
        let store = in_tier(&way.url(), &keys.path().join("key")).replace("\"3s\"", "\"1s\"");
        members.push(Member { name, node: Node::of(name, &[source], &store, SOON), way });
    }
    // The first makes the schema, and the key.
    for member in &mut members {
        member.is_ready().await;
    }
    let (is_over, over) = watch::channel(false);
    let load = Load { ledger: Ledger::default() };
    load.ledger.lock().unwrap().frozen = true;
    let callers = members
        .iter()
        .flat_map(|member| start_paced_load(member.node.api, receiver, member.name, &load.ledger, PAUSE, &over));
    let callers: Vec<_> = callers.collect();
    let (mut happened, mut kinds) = (0, HashMap::<String, usize>::new());
    for number in 0.. {
        if happened >= events {
            break;
        }
        let started = Instant::now();
        join_all(members.iter_mut().map(Member::revived)).await;
        load.more(6, &members.iter().map(|member| &member.node).collect::<Vec<_>>()).await;
        let round = Round::one(number, &mut random);
        let apis: Vec<SocketAddr> = members.iter().map(|member| member.node.api).collect();
        let each = members.iter_mut().zip(round.hits);
        let (mut spared, mut hits) = (Vec::new(), Vec::new());
        for (member, hit) in each {
            let Some(hit) = hit else {
                spared.push(member.node.path("log"));
                continue;
            };
            let others: Vec<SocketAddr> = apis.iter().copied().filter(|api| *api != member.node.api).collect();
            let (after, load, may_fail) = (random.below(12), &load, round.outage.is_some());
            *kinds.entry(format!("{hit:?}")).or_default() += 1;
            hits.push(async move { member.hit(hit, after, load, &others, may_fail).await });
        }
        happened += hits.len() + usize::from(round.outage.is_some());
        if let Some(what) = round.outage {
            *kinds.entry(format!("{what:?}")).or_default() += 1;
        }
        let after = random.below(12);
        let outage = async {
            if let Some(what) = round.outage {
                load.more(after, &[]).await;
                outage(what, &cluster, &spared).await;
            }
        };
        tokio::join!(join_all(hits), outage);
        println!("round {number}: {round:?} in {:?}, {} accepted", started.elapsed(), load.accepted());
    }
    join_all(members.iter_mut().map(Member::revived)).await;
    load.more(50, &[]).await;
    is_over.send_replace(true);
    // Callers end with the first call that is not accepted. What the three leave the first one ends.
    join_all(members.iter_mut().map(async |member| {
        member.node.signal(Signal::SIGTERM);
        let code = member.node.has_ended().await;
        assert!(code == Some(0) || member.is_fenced(), "{}: {code:?} {}", member.name, member.node.log());
    }))
    .await;
    for caller in callers {
        ends(caller).await;
    }
    members[0].is_ready().await;
    println!("{happened} events: {kinds:?}");
    let url =
        format!("postgres://egressd@127.0.0.1:{primary},127.0.0.1:{standby}/postgres?target_session_attrs=read-write");
    let records = records(&url).await;
    let all_seen = seen.all();
    let outcomes = judge(&records, &load.ledger.lock().unwrap(), &all_seen);
    println!("{} accepted, {} records: {outcomes:?}", load.accepted(), records.len());
    let delivered = outcomes.get("delivered").copied().unwrap_or_default();
    assert!(delivered * 2 > records.len() && outcomes.contains_key("interrupted"), "{outcomes:?}");
    // By the receiver's word and by the record's, each left from its own node's address.
    for record in &records {
        let path =
            record["request"]["url"].as_str().and_then(|url| url.strip_prefix("http://receiver")).expect("a path");
        let own = ["a", "b", "c"].iter().position(|name| record["node"] == *name).map(|n| SOURCES[n]).expect("a node");
        assert!(record["connection"]["source_ip"].as_str().is_none_or(|ip| ip == own), "{record}");
        let peers = all_seen.get(path).into_iter().flatten();
        peers.for_each(|peer| assert_eq!(peer.ip().to_string(), own, "{record}"));
    }
    // And as the API tells the newest of them.
    let page = members[0].node.get("/v1/sends?limit=200").await;
    for (told, record) in page["sends"].as_array().expect("a list").iter().zip(&records) {
        for pointer in ["/id", "/outcome", "/connection/source_ip", "/context/execution"] {
            let value = |of: &Value| of.pointer(pointer).cloned().unwrap_or_default();
            assert_eq!(value(told), value(record), "{pointer}: {told}");
        }
    }
}
