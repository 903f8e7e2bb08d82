//! Name servers on a bad day: what a patient client would survive costs no send, and what nobody survives is told.

use std::sync::Arc;
use std::time::Duration;

use egressd::deadline::Deadline;
use egressd::dial::resolve::inquiry::Inquiry;
use egressd::outcome::Processed;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use crate::support::ground::{Ground, LONG, Plan, SHORT, SOURCE, end_of, get};
use crate::support::name_server::{Asked, NameServer, Reply, address, alias};
use crate::support::receiver::{Receiver, Step, ok};

const NAME: &str = "hook.example.com";
const GOOD: &str = "127.0.0.1";

/// How long an event is waited for before a test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

fn plan(names: &[&NameServer]) -> Plan {
    // A lookup is made once more after a quarter of the deadline at most; what tests allow is another matter.
    let mut plan = Plan::new().delivery("keep_alive = \"0s\"\ndeadline = \"400ms\"\n");
    plan.name_servers = names.iter().map(|names| names.address()).collect();
    plan
}

/// With an IPv6 source: both families are asked for.
fn both_families(names: &NameServer) -> Plan {
    plan(&[names]).sources(&[SOURCE, "::1"])
}

async fn receiver() -> Receiver {
    Receiver::start([Step::Read, ok()]).await
}

fn to(receiver: &Receiver, host: &str) -> String {
    format!("http://{host}:{}/", receiver.port())
}

fn only_a(asked: &Asked) -> Reply {
    let good = if asked.kind == RecordType::A { vec![address(&asked.name, 0, GOOD)] } else { Vec::new() };
    Reply::Records(good)
}

fn code(code: ResponseCode) -> Reply {
    Reply::Code(code, Vec::new())
}

/// What is no answer, and what its message says.
fn hiccups() -> Vec<(Reply, &'static str)> {
    vec![
        (code(ResponseCode::ServFail), "answered SERVFAIL"),
        (code(ResponseCode::Refused), "answered REFUSED"),
        (code(ResponseCode::FormErr), "answered FORMERR"),
        (code(ResponseCode::NotImp), "answered NOTIMP"),
        (code(ResponseCode::NotAuth), "answered NOTAUTH"),
        (Reply::Lame, "is lame: it answered with nothing"),
        (Reply::Garbage, "answered what cannot be read"),
        (Reply::Close, "did not answer"),
    ]
}

#[tokio::test]
async fn one_bad_answer_of_the_only_server_costs_no_send() {
    let receiver = receiver().await;
    for (hiccup, what) in hiccups() {
        let names = NameServer::start({
            let hiccup = hiccup.clone();
            // A server that cannot read EDNS is asked without, over UDP and then, being broken, over TCP.
            move |asked| if asked.before == 0 { hiccup.clone() } else { only_a(asked) }
        })
        .await;
        let attempt = plan(&[&names]).build().get(&to(&receiver, NAME)).await;
        assert_eq!(end_of(&attempt), "delivered", "{what}: {:?}", attempt.ended);
    }
}

#[tokio::test]
async fn the_next_server_is_asked_at_once_where_one_has_no_answer() {
    let receiver = receiver().await;
    for (hiccup, what) in hiccups() {
        let bad = NameServer::start(move |_| hiccup.clone()).await;
        let good = NameServer::start(only_a).await;
        let attempt = plan(&[&bad, &good]).build().get(&to(&receiver, NAME)).await;
        assert_eq!(end_of(&attempt), "delivered", "{what}: {:?}", attempt.ended);
        assert!(!bad.asked().is_empty() && !good.asked().is_empty(), "{what}");
    }
}

#[tokio::test]
async fn a_silent_server_does_not_keep_one_that_failed_from_being_asked_again() {
    let receiver = receiver().await;
    let fails_once = NameServer::start(|asked| match asked.before {
        0 => code(ResponseCode::ServFail),
        _ => only_a(asked),
    })
    .await;
    let silent = NameServer::start(|_| Reply::Silence).await;
    for servers in [[&fails_once, &silent], [&silent, &fails_once]] {
        let attempt = plan(&servers).build().get(&to(&receiver, NAME)).await;
        assert_eq!(end_of(&attempt), "delivered", "{:?}", attempt.ended);
    }
}

#[tokio::test]
async fn what_fails_twice_fails_and_says_at_whom() {
    let receiver = receiver().await;
    for (hiccup, what) in hiccups() {
        let names = NameServer::start(move |_| hiccup.clone()).await;
        let ground = plan(&[&names]).build();
        let attempt = ground.deliver(get(&to(&receiver, NAME)), LONG).await;
        let end = if what == "did not answer" { "failed timeout dns" } else { "failed dns_failed dns" };
        assert_eq!(end_of(&attempt), end, "{what}");
        let message = attempt.ended.error.unwrap().message;
        assert!(message.contains(&format!("{} {what}", names.address())) && message.contains(NAME), "{message}");
    }
    assert_eq!(receiver.requests(), 0);
}

#[tokio::test]
async fn a_name_denied_for_one_family_is_found_for_the_other() {
    let receiver = receiver().await;
    let (gone, empty) = (|| code(ResponseCode::NXDomain), || Reply::Records(Vec::new()));
    let late = |reply| Reply::Late(Duration::from_millis(100), Box::new(reply));
    let failed = || code(ResponseCode::ServFail);
    let found = |kind| {
        let (ip, owner) = if kind == RecordType::A { (GOOD, NAME) } else { ("::1", NAME) };
        Reply::Records(vec![address(owner, 0, ip)])
    };
    let a = || found(RecordType::A);
    for (what, of_a, of_aaaa, end) in [
        ("AAAA denied first", late(a()), gone(), "delivered"),
        ("AAAA denied last", a(), late(gone()), "delivered"),
        ("AAAA empty", late(a()), empty(), "delivered"),
        ("AAAA fails", late(a()), failed(), "delivered"),
        ("AAAA lame", late(a()), Reply::Lame, "delivered"),
        ("AAAA silent", a(), Reply::Silence, "delivered"),
        ("both denied", gone(), late(gone()), "failed dns_not_found dns"),
        ("A denied, AAAA empty", gone(), late(empty()), "failed dns_no_address dns"),
        ("A empty, AAAA denied", empty(), late(gone()), "failed dns_no_address dns"),
        ("A denied, AAAA fails", gone(), late(failed()), "failed dns_failed dns"),
    ] {
        let names =
            NameServer::start(move |asked| if asked.kind == RecordType::A { of_a.clone() } else { of_aaaa.clone() })
                .await;
        let attempt = both_families(&names).build().get(&to(&receiver, NAME)).await;
        assert_eq!(end_of(&attempt), end, "{what}: {:?}", attempt.ended);
    }
    // The other way round, over IPv6.
    let over_v6 = Receiver::at("::1".parse().unwrap(), None, |_| vec![Step::Read, ok()]).await;
    for late_one in [RecordType::A, RecordType::AAAA] {
        let names = NameServer::start(move |asked| {
            let reply = if asked.kind == RecordType::A { gone() } else { found(RecordType::AAAA) };
            if asked.kind == late_one { late(reply) } else { reply }
        })
        .await;
        let mut plan = both_families(&names);
        plan.opened.push("::1/128".to_owned());
        let attempt = plan.build().get(&to(&over_v6, NAME)).await;
        assert_eq!(end_of(&attempt), "delivered", "{late_one} late: {:?}", attempt.ended);
    }
}

#[tokio::test]
async fn a_server_behind_something_that_drops_edns_is_asked_without() {
    let names = NameServer::start(|asked| if asked.edns { Reply::Silence } else { only_a(asked) }).await;
    let (ground, receiver) = (plan(&[&names]).build(), receiver().await);
    let ask = async || {
        let before = names.asked().len();
        assert_eq!(end_of(&ground.get(&to(&receiver, NAME)).await), "delivered");
        names.asked()[before..].iter().map(|asked| asked.edns).collect::<Vec<_>>()
    };
    for _ in 0..3 {
        assert!(ask().await.starts_with(&[true, false]));
    }
    // By now it is known, and costs no wait any more.
    assert!(ask().await.iter().all(|edns| !edns));
}

#[tokio::test]
async fn labels_of_any_shape_are_asked_for() {
    let names = NameServer::start(only_a).await;
    let (ground, receiver) = (plan(&[&names]).build(), receiver().await);
    let hosts =
        ["-a.example.com", "a-.example.com", "_a.example.com", "a_.example.com", "-.example.com", "a--b.example.com"];
    for host in hosts {
        assert_eq!(end_of(&ground.get(&to(&receiver, host)).await), "delivered", "{host}");
    }
    let mut asked: Vec<_> = names.asked().into_iter().map(|asked| asked.name).collect();
    asked.dedup();
    assert_eq!(asked, hosts);
}

#[tokio::test]
async fn a_dead_server_costs_nothing_once_it_is_known() {
    let (first, second) = (NameServer::start(only_a).await, NameServer::start(only_a).await);
    let (ground, receiver) = (plan(&[&first, &second]).build(), receiver().await);
    let ask = async || {
        let before = (first.asked().len(), second.asked().len());
        assert_eq!(end_of(&ground.get(&to(&receiver, NAME)).await), "delivered");
        (first.asked().len() > before.0, second.asked().len() > before.1)
    };
    assert!(ask().await.0);
    first.set_dead(true);
    assert_eq!(ask().await, (true, true));
    let known = async { while ask().await != (false, true) {} };
    Deadline::start(PATIENCE).bound(known).await.expect("it is known to be dead");
    // Alone, it would be asked still: it is last, not left out.
    second.set_dead(true);
    first.set_dead(false);
    assert_eq!(ask().await, (true, true));
    assert!(ask().await.0);
}

/// The authority of a name is its holder's, who decides which resolver gets an answer and which does not.
#[tokio::test]
async fn a_tenant_cannot_have_a_server_taken_for_dead() {
    let silent_for_some = |asked: &Asked| match asked.name.ends_with("trap.example.net") {
        true => Reply::Silence,
        false => only_a(asked),
    };
    let (first, second) = (NameServer::start(silent_for_some).await, NameServer::start(only_a).await);
    let (ground, receiver) = (Arc::new(plan(&[&first, &second]).build()), receiver().await);
    let port = receiver.port();
    let traps = (0..30).map(|number| {
        let ground = ground.clone();
        tokio::spawn(async move {
            let spec = get(&format!("http://n{number}.trap.example.net:{port}/"));
            end_of(&ground.deliver_for("evil", spec, LONG).await)
        })
    });
    for trap in traps.collect::<Vec<_>>() {
        assert_eq!(trap.await.unwrap(), "delivered");
    }
    assert_eq!(end_of(&ground.deliver_for("acme", get(&to(&receiver, NAME)), LONG).await), "delivered");
    assert!(first.asked().iter().any(|asked| asked.name == NAME), "the first is asked first still");
}

#[tokio::test]
async fn what_is_kept_tells_a_tenant_nothing_of_another() {
    let names = NameServer::with_addresses(60, &[GOOD]).await;
    let (ground, receiver) = (plan(&[&names]).build(), receiver().await);
    for (tenant, questions) in [("a", 1), ("a", 1), ("b", 2), ("a", 2), ("b", 2), ("c", 3)] {
        let attempt = ground.deliver_for(tenant, get(&to(&receiver, NAME)), LONG).await;
        assert_eq!(end_of(&attempt), "delivered");
        // A question that is sent once more has no EDNS.
        let asked = names.asked().iter().filter(|asked| asked.edns).count();
        assert_eq!(asked, questions, "{tenant}");
    }
}

/// What the message of a lookup's end says of its cause, and never what it should not.
#[tokio::test]
async fn each_end_of_a_lookup_says_what_was_wrong_with_what() {
    let dangling = |target: &str| Reply::Code(ResponseCode::NXDomain, vec![alias(NAME, 60, target)]);
    let twice = || vec![alias(NAME, 60, "b.example.net"), alias("b.example.net", 60, "c.example.org")];
    let over_tcp = |asked: &Asked, reply: Reply| if asked.over_tcp { reply } else { Reply::Truncated };
    type Script = Box<dyn Fn(&Asked) -> Reply + Send + Sync>;
    let rows: Vec<(&str, Script, &str, &[&str])> = vec![
        (
            "silence",
            Box::new(|_| Reply::Silence),
            "failed timeout dns",
            &["ran out while looking hook.example.com up: SERVER did not answer"],
        ),
        (
            "one family's silence",
            Box::new(|asked| if asked.kind == RecordType::A { Reply::Silence } else { Reply::Records(Vec::new()) }),
            "failed timeout dns",
            &["SERVER did not answer (about A records)"],
        ),
        (
            "a dangling alias",
            Box::new(move |_| dangling("gone.example.net")),
            "failed dns_not_found dns",
            &["hook.example.com is an alias of gone.example.net", "no such name as gone.example.net"],
        ),
        (
            "a dangling alias behind an alias",
            Box::new(move |_| Reply::Code(ResponseCode::NXDomain, twice())),
            "failed dns_not_found dns",
            &["hook.example.com is an alias of c.example.org"],
        ),
        (
            "an alias whose target is asked for and denied",
            Box::new(|asked| match asked.name.as_str() {
                NAME => Reply::Records(vec![alias(NAME, 60, "gone.example.net")]),
                _ => code(ResponseCode::NXDomain),
            }),
            "failed dns_not_found dns",
            &["is an alias of gone.example.net"],
        ),
        (
            "an alias of what no host name holds",
            Box::new(move |_| dangling("a\u{1b}[31m b.example.net")),
            "failed dns_not_found dns",
            &["an alias of a\\027\\[31m\\032b.example.net"],
        ),
        (
            "an alias of a name without addresses",
            Box::new(move |_| Reply::Records(twice())),
            "failed dns_no_address dns",
            &["an alias of c.example.org, which exists and has no A or AAAA record", "publish one for c.example.org"],
        ),
        (
            "no such name",
            Box::new(|_| code(ResponseCode::NXDomain)),
            "failed dns_not_found dns",
            &["no such name as hook.example.com", "check its spelling"],
        ),
        ("a lame server", Box::new(|_| Reply::Lame), "failed dns_failed dns", &["SERVER is lame"]),
        (
            "a truncated answer, and TCP that is closed",
            Box::new(move |asked| over_tcp(asked, Reply::Close)),
            "failed dns_failed dns",
            &["SERVER cut its answer short and does not serve the rest over TCP"],
        ),
        (
            "a truncated answer, and silence over TCP",
            Box::new(move |asked| over_tcp(asked, Reply::Silence)),
            "failed timeout dns",
            &["SERVER cut its answer short and does not serve the rest over TCP"],
        ),
        (
            "a truncated answer, and a failure over TCP",
            Box::new(move |asked| over_tcp(asked, code(ResponseCode::ServFail))),
            "failed dns_failed dns",
            &["SERVER answered SERVFAIL"],
        ),
    ];
    for (what, script, end, says) in rows {
        let names = NameServer::start(script).await;
        let ground = both_families(&names).build();
        let attempt = ground
            .deliver(get(&format!("http://{NAME}:8080/")), if end.contains("timeout") { 4 * SHORT } else { LONG })
            .await;
        assert_eq!(end_of(&attempt), end, "{what}: {:?}", attempt.ended);
        let error = attempt.ended.error.unwrap();
        assert_eq!(error.processed, Processed::No, "{what}");
        let message = error.message;
        for says in says {
            assert!(message.contains(&says.replace("SERVER", &names.address().to_string())), "{what}: {message}");
        }
        assert!(!message.chars().any(char::is_control), "{what}: {message:?}");
    }
}

#[tokio::test]
async fn a_lookup_that_never_had_its_turn_says_so() {
    let inquiry = Inquiry::default();
    inquiry.begin(&NAME.into());
    let failure = inquiry.ran_out(Deadline::start(LONG).total());
    assert!(failure.message.contains("waited for its turn") && failure.message.contains(NAME), "{}", failure.message);
}

#[tokio::test]
async fn an_answer_stuffed_to_the_brim_is_read_as_far_as_it_counts() {
    let receiver = receiver().await;
    let longest = format!("{}x", "x.".repeat(120));
    for (what, stuffing) in [
        ("long owner names", address(&longest, 60, "127.0.0.9")),
        ("aliases of long names", alias("other.example.com", 60, &longest)),
        ("the same address over and over", address(NAME, 60, GOOD)),
    ] {
        let names = NameServer::start(move |asked| match asked.over_tcp {
            false => Reply::Truncated,
            true => Reply::Stuffed(vec![address(NAME, 60, GOOD)], Box::new(stuffing.clone())),
        })
        .await;
        let ground: Ground = plan(&[&names]).build();
        let attempt = ground.get(&to(&receiver, NAME)).await;
        assert_eq!(end_of(&attempt), "delivered", "{what}: {:?}", attempt.ended);
        let resolved: Vec<_> = attempt.connection.unwrap().resolved.iter().map(|(ip, _)| ip.to_string()).collect();
        assert_eq!(resolved, [GOOD], "{what}");
    }
}
