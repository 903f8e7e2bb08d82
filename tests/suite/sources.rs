//! Sources, proven and published: what reflectors say decides who may be used, and the commands that show it.

use std::process::{Command, Output};
use std::sync::{Arc, OnceLock};

use egressd::config::Config;
use egressd::dial::resolve::inquiry::Inquiry;
use egressd::dial::{Dialer, connect::Candidate};
use egressd::outcome::Code;
use egressd::policy::{Asker, CheckedUrl, Errand, Purpose};
use egressd::publish::Notice;
use egressd::request_bin::RequestBin;
use egressd::send::TenantId;
use egressd::source::Verified;
use egressd::verify::{Memory, Verifier};
use egressd::world::World;

use crate::support::ground::{Ground, LONG, Plan, end_of, get};
use crate::support::name_server::{NameServer, Reply, address};
use crate::support::receiver::{Receiver, ok, write};

/// A reflector that tells the truth; what it answers on is its URL.
async fn honest() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/whoami", listener.local_addr().expect("an address"));
    tokio::spawn(RequestBin::default().serve(listener));
    url
}

/// A reflector that says the same to everyone.
async fn saying(text: &str) -> (String, Receiver) {
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len());
    let receiver = Receiver::start(vec![write(answer)]).await;
    (receiver.url("/whoami"), receiver)
}

fn ground(sources: &[(&str, &str)], reflectors: &[&str]) -> Ground {
    let mut plan = Plan::new();
    plan.sources = sources.iter().map(|(public, bind)| ((*public).to_owned(), (*bind).to_owned())).collect();
    plan.more = format!("[egress.verify]\nreflectors = {reflectors:?}\n");
    plan.build()
}

/// What each source counts as after one round.
async fn after_a_round(ground: &Ground) -> Vec<Verified> {
    let verifier = Verifier::new(ground.world.clone(), ground.deliverer.clone());
    verifier.ask_those_due(&mut Memory::default()).await;
    let sources = ground.world.sources();
    sources.all().iter().map(|source| sources.verification(source)).collect()
}

#[tokio::test]
async fn a_pair_that_is_not_true_is_taken_out_and_comes_back_when_it_is() {
    let (a, b) = (honest().await, honest().await);
    // Nothing maps the second's bound address to its public one.
    let ground = ground(&[("127.0.0.11", "127.0.0.11"), ("203.0.113.12", "127.0.0.12")], &[&a, &b]);
    assert_eq!(after_a_round(&ground).await, [Verified::Yes, Verified::Drift]);
    let sources = ground.world.sources();
    let now = egressd::clock::wall();
    let out = sources.all().remove(1);
    assert_eq!(sources.unusable(&out, now).as_deref(), Some("the reflectors see another address than 203.0.113.12"));
    for host in 0..20 {
        let receiver = Receiver::start(vec![crate::support::receiver::ok()]).await;
        ground.get(&receiver.url(&format!("/{host}"))).await;
        assert!(receiver.peers().iter().all(|peer| peer.ip().to_string() == "127.0.0.11"), "{:?}", receiver.peers());
    }
    // One that is out is asked about all the same, the only one too.
    let (c, d) = (saying("203.0.113.12\n").await, saying("{\"ip\": \"203.0.113.12\"}").await);
    let ground = self::ground(&[("203.0.113.12", "127.0.0.12")], &[&c.0, &d.0]);
    ground.world.sources().verified(&out, Verified::Drift);
    assert_eq!(after_a_round(&ground).await, [Verified::Yes]);
}

#[tokio::test]
async fn one_reflector_that_lies_or_is_dead_takes_nothing_out() {
    let dead = "http://127.0.0.1:1/whoami".to_owned();
    let (lying, _receiver) = saying("192.0.2.1").await;
    let garbled = saying("<html>").await;
    let truth = honest().await;
    for (reflectors, state) in [
        ([&truth, &dead], Verified::Yes),
        ([&truth, &lying], Verified::Unverified),
        ([&dead, &garbled.0], Verified::Unverified),
        ([&lying, &dead], Verified::Unverified),
    ] {
        let reflectors: Vec<&str> = reflectors.iter().map(|url| url.as_str()).collect();
        let ground = ground(&[("127.0.0.11", "127.0.0.11")], &reflectors);
        assert_eq!(after_a_round(&ground).await, [state], "{reflectors:?}");
        assert!(ground.world.sources().any_usable(egressd::clock::wall()));
    }
}

#[tokio::test]
async fn reflectors_that_a_reload_brings_are_asked_at_once() {
    let (x, y) = (saying("192.0.2.1").await, saying("192.0.2.2").await);
    let (a, b) = (honest().await, honest().await);
    let plan = |reflectors: &[&str]| {
        let mut plan = Plan::new().sources(&["127.0.0.11"]);
        plan.more = format!("[egress.verify]\nreflectors = {reflectors:?}\n");
        plan
    };
    let ground = plan(&[&x.0, &y.0]).build();
    let verifier = Verifier::new(ground.world.clone(), ground.deliverer.clone());
    let mut memory = Memory::default();
    for _ in 0..3 {
        verifier.ask_those_due(&mut memory).await;
        let sources = ground.world.sources();
        assert_eq!(sources.verification(&sources.all()[0]), Verified::Drift);
    }
    // The same ones are not asked again before their time, and a reload that changes nothing of it is no reason.
    ground.world.reload(plan(&[&x.0, &y.0]).config(), &Notice::default());
    verifier.ask_those_due(&mut memory).await;
    assert_eq!((x.1.peers().len(), y.1.peers().len()), (1, 1));

    ground.world.reload(plan(&[&a, &b]).config(), &Notice::default());
    verifier.ask_those_due(&mut memory).await;
    let sources = ground.world.sources();
    assert_eq!(sources.verification(&sources.all()[0]), Verified::Yes);
    assert!(sources.any_usable(egressd::clock::wall()));
}

#[tokio::test]
async fn without_reflectors_nothing_stays_taken_out() {
    let ground = Plan::new().build();
    let source = ground.world.sources().all().remove(0);
    ground.world.sources().verified(&source, Verified::Drift);
    assert_eq!(after_a_round(&ground).await, [Verified::Unknown]);
}

#[tokio::test]
async fn a_reload_while_a_name_is_looked_up_decides_which_source_is_left_from() {
    let receiver = Receiver::start(vec![ok()]).await;
    let reload: Arc<OnceLock<(Arc<World>, Arc<Config>)>> = Arc::default();
    let asked_to = reload.clone();
    let names = NameServer::start(move |asked| {
        let (world, config) = asked_to.get().expect("set before the first question");
        world.reload(config.clone(), &Notice::default());
        Reply::Records(vec![address(&asked.name, 60, "127.0.0.1")])
    })
    .await;
    let plan = |source| Plan::new().sources(&[source]).name_server(names.address());
    let ground = plan("127.0.0.11").build();
    assert!(reload.set((ground.world.clone(), plan("127.0.0.12").config())).is_ok());
    let attempt = ground.get(&format!("http://hooks.receiver.com:{}/", receiver.port())).await;
    assert_eq!(end_of(&attempt), "delivered");
    let peers: Vec<String> = receiver.peers().iter().map(|peer| peer.ip().to_string()).collect();
    assert_eq!(peers, ["127.0.0.12"]);
}

#[tokio::test]
async fn a_source_that_a_reload_takes_out_is_left_from_no_more_whoever_chose_it_before() {
    let receiver = Receiver::start(vec![ok()]).await;
    let plan = |sources: &[&str]| Plan::new().sources(sources);
    let both = plan(&["127.0.0.11", "127.0.0.12"]);
    let trust = Dialer::prepare(&both.config()).expect("trust");
    let ground = both.build();
    let dialer = Dialer::new(ground.world.clone(), trust);
    let url = CheckedUrl::parse(&receiver.url("/")).expect("a plain URL");
    let tenant = TenantId::new("acme");
    let asker = Asker { tenant: &tenant, workflow: None };
    let settings = ground.world.settings();
    let errand = |purpose| Errand { tenant: tenant.clone(), destination: url.destination().clone(), purpose };
    let look = dialer.look(asker, url.destination(), &settings, Purpose::Delivery, &Inquiry::default()).await;
    let candidates = look.way.expect("a way");
    assert_eq!(candidates[0].sources.len(), 2);

    // The one that would be first goes.
    let (first, second) = (candidates[0].sources[0].bind(), candidates[0].sources[1].bind());
    ground.world.reload(plan(&[&second.to_string()]).config(), &Notice::default());
    let connected =
        dialer.connect(&errand(Purpose::Delivery), &candidates, &Default::default()).await.expect("connected");
    assert_eq!((connected.source.bind(), connected.local.ip()), (second, second), "and not {first}");
    drop(connected);
    // Then both do. A reflector is asked through neither.
    ground.world.reload(plan(&["127.0.0.13"]).config(), &Notice::default());
    for purpose in [Purpose::Delivery, Purpose::Reflector] {
        let candidates: Vec<_> = dialer
            .find(asker, url.destination(), &settings, purpose, &Inquiry::default())
            .await
            .addresses
            .expect("addresses");
        let candidates: Vec<_> =
            candidates.into_iter().map(|address| Candidate { address, sources: settings.sources.all() }).collect();
        let failure =
            dialer.connect(&errand(purpose), &candidates, &Default::default()).await.expect_err("no source is left");
        assert_eq!(failure.code, Code::SourceUnavailable, "{purpose:?}");
    }
    receiver.ended(1).await;
    assert_eq!(receiver.peers().iter().map(|peer| peer.ip()).collect::<Vec<_>>(), [second]);
}

#[tokio::test]
async fn a_record_names_the_source_that_a_connect_was_begun_from() {
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound");
    // The first is not on this host, so that nothing leaves from it, whoever has it first in line.
    let sources = [("203.0.113.11", "192.0.2.77"), ("203.0.113.12", "127.0.0.12")];
    for tenant in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        let mut plan = Plan::new();
        plan.sources = sources.map(|(public, bind)| (public.to_owned(), bind.to_owned())).to_vec();
        let ground = plan.build();
        let attempt = ground.deliver_for(tenant, get(&format!("http://{closed}/")), LONG).await;
        assert_eq!(end_of(&attempt), "failed connection_refused connect", "{tenant}");
        let connection = attempt.connection.expect("a connect was begun");
        assert_eq!(connection.public.map(|ip| ip.to_string()).as_deref(), Some("203.0.113.12"), "{tenant}");
        assert_eq!(connection.source.map(|at| at.ip().to_string()).as_deref(), Some("127.0.0.12"), "{tenant}");
        let message = attempt.ended.error.expect("refused").message;
        assert!(message.contains("203.0.113.12") && !message.contains("203.0.113.11"), "{tenant}: {message}");
    }
}

#[tokio::test]
async fn an_address_is_dialled_for_what_it_was_judged_for_and_nothing_else() {
    let receiver = Receiver::start(vec![ok()]).await;
    let trust = Dialer::prepare(&Plan::new().config()).expect("trust");
    let ground = Ground::new();
    let dialer = Dialer::new(ground.world.clone(), trust);
    let url = CheckedUrl::parse(&receiver.url("/")).expect("a plain URL");
    let tenant = TenantId::new("acme");
    let asker = Asker { tenant: &tenant, workflow: None };
    let settings = ground.world.settings();
    let look = dialer.look(asker, url.destination(), &settings, Purpose::Delivery, &Inquiry::default()).await;
    let candidates = look.way.expect("a way");
    let judged = Errand { tenant: tenant.clone(), destination: url.destination().clone(), purpose: Purpose::Delivery };
    let elsewhere = CheckedUrl::parse("http://other.example.com/").expect("a plain URL").destination().clone();
    for (errand, dialled) in [
        (Errand { tenant: TenantId::new("other"), ..judged.clone() }, false),
        (Errand { tenant: TenantId::OURSELVES, ..judged.clone() }, false),
        (Errand { destination: elsewhere, ..judged.clone() }, false),
        (Errand { purpose: Purpose::Reflector, ..judged.clone() }, false),
        (judged, true),
    ] {
        match dialer.connect(&errand, &candidates, &Default::default()).await {
            Ok(_) => assert!(dialled, "{errand:?}"),
            Err(failure) => assert!(!dialled && failure.code == Code::Internal, "{errand:?}: {failure:?}"),
        }
    }
    receiver.ended(1).await;
    assert_eq!(receiver.peers().len(), 1);
}

/// Runs egressd beside this test's runtime, which answers as the reflectors.
async fn egressd(arguments: &[&str]) -> (Option<i32>, String, String) {
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let run = move || Command::new(env!("CARGO_BIN_EXE_egressd")).args(arguments).output().expect("egressd runs");
    let Output { status, stdout, stderr } = tokio::task::spawn_blocking(run).await.expect("egressd runs");
    (status.code(), String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr).into_owned())
}

/// A directory with a published list and a configuration of this text.
fn written(list: &str, text: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("public-ips.txt"), list).expect("a file");
    let path = directory.path().join("egressd.toml");
    std::fs::write(&path, format!("[dns]\nservers = [\"127.0.0.1\"]\n{text}")).expect("a file");
    (directory, path.display().to_string())
}

#[tokio::test]
async fn ips_prints_the_list_in_both_forms() {
    let (_directory, config) = written("203.0.113.1 # ours\n2001:db8::1 announced=2020-01-01\n", "[api]\nlisten = 1\n");
    let (code, text, _) = egressd(&["ips", "--config", &config]).await;
    assert_eq!((code, text.as_str()), (Some(0), "203.0.113.1\n2001:db8::1\n"));
    let (code, json, _) = egressd(&["ips", "--config", &config, "--format", "json"]).await;
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(code, Some(0));
    assert_eq!(json["prefixes"][0]["ipv4Prefix"], "203.0.113.1/32");
    assert_eq!(json["prefixes"][1]["status"], "announced");
    let (code, _, errors) = egressd(&["ips", "--config", "/nonexistent/egressd.toml"]).await;
    assert_eq!(code, Some(2));
    assert!(errors.contains("/nonexistent/egressd.toml: cannot be read"), "{errors}");
}

#[tokio::test]
async fn ips_verify_prints_how_each_source_is_seen() {
    let (a, b) = (honest().await, honest().await);
    let opened = "[[policy.exception]]\nnetworks = [\"127.0.0.0/8\"]\nreason = \"a test\"\n";
    let verify = format!("[egress.verify]\nreflectors = [\"{a}\", \"{b}\"]\n");
    let good = "[[egress.source]]\npublic = \"127.0.0.11\"\n";
    let bad = "[[egress.source]]\npublic = \"203.0.113.12\"\nbind = \"127.0.0.12\"\n";
    let list = "127.0.0.11\n203.0.113.12\n";

    let (_directory, config) = written(list, &format!("{opened}{verify}{good}"));
    let (code, text, errors) = egressd(&["ips", "--config", &config, "--verify"]).await;
    assert_eq!((code, errors.as_str()), (Some(0), ""), "{text}");
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[1], ["127.0.0.11", "127.0.0.11", a.as_str(), "127.0.0.11", "verified"]);
    assert_eq!(rows.len(), 3);

    let (_directory, config) = written(list, &format!("{opened}{verify}{good}{bad}"));
    let (code, json, _) = egressd(&["ips", "--config", &config, "--verify", "--format", "json"]).await;
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(code, Some(1), "{json}");
    assert_eq!(json["sources"][0]["differs"], false);
    assert_eq!(json["sources"][1]["differs"], true);
    assert_eq!(json["sources"][1]["reflectors"][1]["seen"], "127.0.0.12");

    // Nothing heard is no difference, and is not passed over.
    let dead = "[egress.verify]\nreflectors = [\"http://127.0.0.1:1/whoami\"]\n";
    let (_directory, config) = written(list, &format!("{opened}{dead}{good}"));
    let (code, text, errors) = egressd(&["ips", "--config", &config, "--verify"]).await;
    assert!(text.contains("unverified: "), "{text}");
    let told =
        "egressd: 1 of 1 sources could not be verified, since no reflector answered with an address: 127.0.0.11\n";
    assert_eq!((code, errors.as_str()), (Some(0), told));

    let (_directory, config) = written(list, good);
    let (code, _, errors) = egressd(&["ips", "--config", &config, "--verify"]).await;
    assert_eq!(code, Some(2));
    assert!(errors.contains("names no reflector to ask"), "{errors}");
}

#[tokio::test]
async fn check_tells_all_problems_and_where_a_source_is_missing() {
    let (_directory, config) = written("127.0.0.11\n", "[[egress.source]]\npublic = \"127.0.0.11\"\n");
    let (code, text, errors) = egressd(&["check", "--config", &config]).await;
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    let each = "source 127.0.0.11 (pool default): usable now\n";
    assert_eq!(text, format!("{each}{config} is good: its source is on this host\n"));

    let text = "[delivery]\ndrain = \"1s\"\ndedline = \"5s\"\n[[egress.source]]\npublic = \"192.0.2.1\"\n";
    let (_directory, config) = written("192.0.2.1\n", text);
    let (code, text, errors) = egressd(&["check", "--config", &config]).await;
    assert_eq!((code, text.as_str()), (Some(2), ""));
    let lines: Vec<&str> = errors.lines().map(|line| line.strip_prefix(config.as_str()).unwrap_or(line)).collect();
    assert_eq!(
        lines,
        [
            ":7: egress.source[0].public: 192.0.2.1 is not on this host: plumb it (ip address add 192.0.2.1 dev …), or \
             drop the source",
            ":4: delivery.drain: 1s is less than deadline, which is 5s: deliveries would be cut off: at least 5s",
            ":5: delivery.dedline: is not a key of egressd: did you mean `deadline`?",
            "3 problems",
        ]
    );
}
