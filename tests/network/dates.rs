//! Dates: the real process, with a clock of its own, lives through the midnights at which addresses come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::watch;

use crate::lab::{API, Lab, METRICS, PATIENCE, WORLD_V4, WORLD_V6, end_of, sh};

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn both(part: u8) -> [String; 2] {
    [format!("198.51.100.{part}"), format!("2001:db8:1::{part}")]
}

/// The list, a line for each family of a source.
fn lines(sources: &[(u8, &str)]) -> String {
    let lines = sources.iter().flat_map(|(part, dates)| both(*part).map(|address| format!("{address} {dates}\n")));
    lines.collect()
}

fn urls(path: &str) -> [String; 2] {
    [format!("http://{WORLD_V4}:8080{path}"), format!("http://[{WORLD_V6}]:8080{path}")]
}

/// Opens the world to these sources, whatever the list says of them: the capture is what is asked.
fn admit(lab: &Lab, sources: &[u8]) {
    for part in sources {
        let [v4, v6] = both(*part);
        sh(&format!(
            "ip netns exec {} nft 'add element inet wall v4 {{ {v4} }}; add element inet wall v6 {{ {v6} }}'",
            lab.world
        ));
    }
}

/// What the list says now.
struct Listed {
    text: BTreeSet<String>,
    status: BTreeMap<String, String>,
    token: i64,
    etag: String,
}

async fn listed(lab: &Lab) -> Listed {
    let mut caller = lab.caller(API).await;
    let (_, text) = caller.call("GET", "/public-ips.txt", "", &[]).await;
    let (_, json) = caller.call("GET", "/public-ips.json", "", &[]).await;
    let json: Value = serde_json::from_str(&json).expect("JSON");
    let status = json["prefixes"].as_array().expect("prefixes").iter().map(|prefix| {
        let address = prefix["ipv4Prefix"].as_str().or(prefix["ipv6Prefix"].as_str()).expect("a prefix");
        let (address, _) = address.split_once('/').expect("a prefix");
        (address.to_owned(), prefix["status"].as_str().expect("a status").to_owned())
    });
    Listed {
        text: text.lines().map(str::to_owned).collect(),
        status: status.collect(),
        token: json["syncToken"].as_str().expect("a token").parse().expect("a number"),
        etag: caller.etag("/public-ips.txt").await,
    }
}

fn expected(status: &[(u8, &str)]) -> BTreeMap<String, String> {
    let both = status.iter().flat_map(|(part, status)| both(*part).map(|address| (address, (*status).to_owned())));
    both.collect()
}

async fn usable(lab: &Lab, sources: &[(u8, f64)]) {
    for (part, usable) in sources {
        for address in both(*part) {
            let series = format!("egressd_source_usable{{source_ip=\"{address}\"}}");
            lab.metric(&series, |value| value == *usable).await;
        }
    }
}

fn left_from(record: &Value) -> IpAddr {
    record["connection"]["public_ip"].as_str().expect("a source").parse().expect("an address")
}

fn of(sources: &[u8]) -> BTreeSet<IpAddr> {
    sources.iter().flat_map(|part| both(*part)).map(|address| address.parse().expect("an address")).collect()
}

/// One send after the other to both families, of twelve tenants, until told to stop; their records.
struct Flow {
    rounds: watch::Receiver<usize>,
    enough: Arc<AtomicBool>,
    records: tokio::task::JoinHandle<Vec<(String, Value)>>,
}

impl Flow {
    async fn start(lab: &Lab) -> Self {
        let (told, rounds) = watch::channel(0);
        let (enough, mut caller) = (Arc::new(AtomicBool::new(false)), lab.caller(API).await);
        let stop = enough.clone();
        let records = tokio::spawn(async move {
            let mut records = Vec::new();
            for round in 0.. {
                for tenant in 0..12 {
                    let path = format!("/flow/{round}/{tenant}");
                    for url in urls(&path) {
                        records.push((path.clone(), caller.get(&format!("t{tenant}"), &url).await));
                    }
                }
                told.send_replace(round + 1);
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
            records
        });
        Self { rounds, enough, records }
    }

    /// Waits until each tenant has had a send of each family that began after this was called.
    async fn goes_round(&mut self) {
        let now = *self.rounds.borrow();
        tokio::select! {
            round = self.rounds.wait_for(|rounds| *rounds >= now + 2) => drop(round.expect("the flow")),
            () = tokio::time::sleep(PATIENCE) => panic!("the flow stands still"),
        }
    }

    async fn records(self) -> Vec<(String, Value)> {
        self.enough.store(true, Ordering::Relaxed);
        self.records.await.expect("the flow")
    }
}

/// Each was made once, as the receiver saw it, and no other source's than those that carried traffic at the time:
/// before `change`, and from then on. What was under way just then may be either's.
fn check_flow(
    records: &[(String, Value)],
    seen: impl Fn(&str) -> Vec<IpAddr>,
    change: Timestamp,
    [before, after]: [&BTreeSet<IpAddr>; 2],
) {
    let time = |record: &Value, key: &str| at(record[key].as_str().expect("a time"));
    let (mut used_before, mut used_after) = (BTreeSet::new(), BTreeSet::new());
    for (path, record) in records {
        assert_eq!(end_of(record), "delivered", "{record}");
        let source = left_from(record);
        let peers: Vec<IpAddr> = seen(path).into_iter().filter(|peer| peer.is_ipv4() == source.is_ipv4()).collect();
        assert_eq!(peers, [source], "{record}");
        if time(record, "finished_at") < change {
            assert!(before.contains(&source), "{record}");
            used_before.insert(source);
        } else if time(record, "started_at") >= change {
            assert!(after.contains(&source), "{record}");
            used_after.insert(source);
        }
    }
    assert_eq!((&used_before, &used_after), (before, after), "of {} sends", records.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn at_midnight_one_address_takes_over_from_another() {
    let mut lab = Lab::new(&[11, 12, 13, 14]);
    lab.write_list(&lines(&[
        (11, ""),
        (12, "retires=2031-05-02"),
        (13, "announced=2031-04-20 active=2031-05-02"),
        (14, "retires=2031-05-01"),
    ]));
    lab.configure(&[11, 12, 13, 14], &["v4", "v6"], "[delivery]\ndeadline = \"40s\"\ndrain = \"40s\"\n");
    lab.set_clock(at("2031-05-01T23:00:00Z"));
    lab.start();
    admit(&lab, &[11, 12, 13, 14]);
    let (v4, v6) = (lab.receiver(WORLD_V4, 8080).await, lab.receiver(WORLD_V6, 8080).await);
    let seen =
        |path: &str| [&v4, &v6].into_iter().flat_map(|receiver| receiver.seen(path)).map(|peer| peer.ip()).collect();
    let mut caller = lab.caller(API).await;

    let before = listed(&lab).await;
    assert_eq!(before.status, expected(&[(11, "active"), (12, "retiring"), (13, "announced"), (14, "retiring")]));
    assert_eq!(before.text, before.status.keys().cloned().collect());
    usable(&lab, &[(11, 1.0), (12, 1.0), (13, 0.0), (14, 0.0)]).await;

    // Under way over midnight, and others that come and go all the while.
    let mut held = Vec::new();
    for tenant in 0..12 {
        let tenant = format!("t{tenant}");
        for id in caller.submit(&tenant, &urls(&format!("/hold/{tenant}"))).await {
            held.push((tenant.clone(), id));
        }
    }
    v4.holds(12).await;
    v6.holds(12).await;
    let mut flow = Flow::start(&lab).await;
    flow.goes_round().await;
    let midnight = at("2031-05-02T00:00:00Z");
    lab.set_clock(at("2031-05-01T23:59:57Z"));
    usable(&lab, &[(11, 1.0), (12, 0.0), (13, 1.0), (14, 0.0)]).await;
    // The flow is to see the new day, too.
    flow.goes_round().await;
    let records = flow.records().await;
    check_flow(&records, seen, midnight, [&of(&[11, 12]), &of(&[11, 13])]);

    let after = listed(&lab).await;
    assert_eq!(after.status, expected(&[(11, "active"), (12, "retiring"), (13, "active")]));
    assert_eq!(after.text, after.status.keys().cloned().collect());
    assert!(after.token > before.token && after.token >= midnight.as_second(), "{} {}", before.token, after.token);
    let known = |etag: &str| [("if-none-match", etag.to_owned())];
    for (etag, status) in [(&before.etag, 200), (&after.etag, 304)] {
        let given = known(etag);
        let given: Vec<_> = given.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(lab.call(API, "GET", "/public-ips.txt", "", &given).await.0, status);
    }
    let (status, ready) = lab.call(METRICS, "GET", "/readyz", "", &[]).await;
    assert!(status == 200 && ready.contains("198.51.100.12 retired on 2031-05-02"), "{ready}");

    // What was under way finishes from where it began, the retired address too.
    v4.release();
    v6.release();
    let mut finished = BTreeSet::new();
    for (tenant, id) in held {
        let record = caller.done(&tenant, &id).await;
        assert_eq!(end_of(&record), "delivered", "{record}");
        assert!(at(record["started_at"].as_str().expect("a time")) < midnight, "{record}");
        assert!(at(record["finished_at"].as_str().expect("a time")) > midnight, "{record}");
        let path = format!("/hold/{tenant}");
        assert!(seen(&path).contains(&left_from(&record)) && seen(&path).len() == 2, "{record}");
        finished.insert(left_from(&record));
    }
    assert_eq!(finished, of(&[11, 12]));

    // A day later the retired address is no longer listed.
    lab.set_clock(at("2031-05-02T23:59:57Z"));
    let started = Instant::now();
    let gone = loop {
        let now = listed(&lab).await;
        if now.token > after.token {
            break now;
        }
        assert!(started.elapsed() < PATIENCE, "198.51.100.12 is listed for ever");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(gone.status, expected(&[(11, "active"), (13, "active")]));
    assert!(gone.token >= at("2031-05-03T00:00:00Z").as_second(), "{}", gone.token);
    assert_eq!(lab.strangers(), 0);
}

/// Until when the node says that this source's notice runs.
async fn notice_of(lab: &Lab, address: &str) -> Timestamp {
    let (_, ready) = lab.call(METRICS, "GET", "/readyz", "", &[]).await;
    let told = ready.lines().find_map(|line| {
        line.strip_prefix(&format!(
            "source {address} is not usable: {address} was first published too lately: its notice ends "
        ))
    });
    at(&format!("{}T00:00:00Z", told.unwrap_or_else(|| panic!("{ready}"))))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_line_shortens_the_notice_of_an_address_that_came_later() {
    let mut lab = Lab::new(&[11, 12]);
    lab.write_list(&lines(&[(11, "")]));
    lab.configure(&[11], &["v4", "v6"], "");
    lab.set_clock(at("2031-05-01T12:00:00Z"));
    lab.start();
    admit(&lab, &[11, 12]);
    let (v4, v6) = (lab.receiver(WORLD_V4, 8080).await, lab.receiver(WORLD_V6, 8080).await);
    let seen =
        |path: &str| [&v4, &v6].into_iter().flat_map(|receiver| receiver.seen(path)).map(|peer| peer.ip()).collect();

    // The line says that it was announced long ago. Nobody could have read that.
    lab.write_list(&lines(&[(11, ""), (12, "announced=2030-01-01 active=2030-01-08")]));
    lab.configure(&[11, 12], &["v4", "v6"], "");
    lab.reload();
    let ends = notice_of(&lab, "198.51.100.12").await;
    assert_eq!(ends, at("2031-05-08T00:00:00Z"), "whole days from the day of the first publication");
    assert_eq!(listed(&lab).await.status, expected(&[(11, "active"), (12, "announced")]));

    // Nor does a line without dates, over a restart; nor taking the line away and putting it back.
    lab.write_list(&lines(&[(11, ""), (12, "")]));
    lab.stop();
    lab.set_clock(at("2031-05-04T12:00:00Z"));
    lab.start();
    assert_eq!(notice_of(&lab, "198.51.100.12").await, ends);
    for (list, sources) in [(vec![(11, "")], vec![11]), (vec![(11, ""), (12, "")], vec![11, 12])] {
        lab.write_list(&lines(&list));
        lab.configure(&sources, &["v4", "v6"], "");
        lab.reload();
    }
    assert_eq!(notice_of(&lab, "198.51.100.12").await, ends);
    assert_eq!(listed(&lab).await.status, expected(&[(11, "active"), (12, "announced")]));
    usable(&lab, &[(11, 1.0), (12, 0.0)]).await;

    // It ends while the next process runs.
    lab.stop();
    lab.set_clock(ends - jiff::SignedDuration::from_secs(3600));
    lab.start();
    let mut flow = Flow::start(&lab).await;
    flow.goes_round().await;
    lab.set_clock(ends - jiff::SignedDuration::from_secs(3));
    usable(&lab, &[(11, 1.0), (12, 1.0)]).await;
    flow.goes_round().await;
    let records = flow.records().await;
    check_flow(&records, seen, ends, [&of(&[11]), &of(&[11, 12])]);
    assert_eq!(listed(&lab).await.status, expected(&[(11, "active"), (12, "active")]));
    assert_eq!(lab.strangers(), 0);
}
