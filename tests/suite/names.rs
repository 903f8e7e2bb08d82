//! Names: what a scripted name server says, what comes of it, and that nobody behind a forbidden answer is reached.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use egressd::outcome::Code;
use egressd::policy::{Suspensions, Verdict};
use egressd::publish::Notice;
use egressd::send::TenantId;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use crate::support::ground::{Ground, LONG, Plan, SHORT, SOURCE, StoppedClock, end_of, get};
use crate::support::name_server::{Asked, NameServer, Reply, address, alias};
use crate::support::receiver::{Receiver, Step, ok};
use crate::support::tls::{Authority, Leaf};

const NAME: &str = "hook.example.com";
/// Opened by the test's exception.
const GOOD: &str = "127.0.0.1";
/// Not opened: as private as any.
const BAD: &str = "127.0.0.2";

/// A receiver on the good address and one on the forbidden, on the same port.
struct Pair {
    good: Receiver,
    bad: Receiver,
}

impl Pair {
    async fn start() -> Self {
        loop {
            let good = Receiver::start([Step::Read, ok()]).await;
            let there = SocketAddr::new(BAD.parse().unwrap(), good.port());
            if let Ok(listener) = tokio::net::TcpListener::bind(there).await {
                return Self { good, bad: Receiver::on(listener, None, |_| vec![Step::Read, ok()]) };
            }
        }
    }

    fn url(&self) -> String {
        format!("http://{NAME}:{}/", self.good.port())
    }
}

/// Only the good address is opened.
fn plan(names: &NameServer) -> Plan {
    let mut plan = Plan::new().name_server(names.address()).delivery("keep_alive = \"0s\"\n");
    plan.opened = vec![format!("{GOOD}/32")];
    plan
}

fn only_a(asked: &Asked, ip: &str) -> Reply {
    let good = if asked.kind == RecordType::A { vec![address(&asked.name, 60, ip)] } else { Vec::new() };
    Reply::Records(good)
}

/// What a name server's answer to the first question must come to.
async fn check(rows: Vec<(&str, Reply, &str)>) {
    // All rows at once: what one waits for costs no other.
    futures_util::future::join_all(rows.into_iter().map(|(name, reply, end)| async move {
        let names = NameServer::start(move |_| reply.clone()).await;
        let ground = plan(&names).build();
        let pair = Pair::start().await;
        let total = if end.contains("timeout") { SHORT } else { LONG };
        let attempt = ground.deliver(get(&pair.url()), total).await;
        assert_eq!(end_of(&attempt), end, "{name}: {:?}", attempt.ended);
        let delivered = usize::from(end == "delivered");
        assert_eq!((pair.good.requests(), pair.bad.peers().len()), (delivered, 0), "{name}");
        if let Some(error) = attempt.ended.error {
            // The name server that is to blame, and never what stands behind a name.
            let rest = error.message.replace(&names.address().to_string(), "");
            assert!(!rest.contains("127.0.0."), "{name}: {}", error.message);
        }
        if !name.starts_with("blocked") {
            assert!(attempt.timings.dns.is_some(), "{name}");
        }
    }))
    .await;
}

#[tokio::test]
async fn what_a_name_server_can_say() {
    let good = || vec![address(NAME, 60, GOOD)];
    let far = |count: usize| {
        let owner = |at: usize| if at == 0 { NAME.to_owned() } else { format!("alias{at}.example.net") };
        let mut records: Vec<_> = (0..count).map(|at| alias(&owner(at), 60, &owner(at + 1))).collect();
        records.push(address(&owner(count), 60, GOOD));
        // The order of records says nothing.
        records.reverse();
        records
    };
    check(vec![
        ("an address", Reply::Records(good()), "delivered"),
        ("eight aliases", Reply::Records(far(8)), "delivered"),
        ("nine aliases", Reply::Records(far(9)), "failed dns_failed dns"),
        ("no such name", Reply::Code(ResponseCode::NXDomain, Vec::new()), "failed dns_not_found dns"),
        (
            "an alias of no such name",
            Reply::Code(ResponseCode::NXDomain, vec![alias(NAME, 60, "gone.example.net")]),
            "failed dns_not_found dns",
        ),
        ("no address", Reply::Records(Vec::new()), "failed dns_no_address dns"),
        ("a broken server", Reply::Code(ResponseCode::ServFail, Vec::new()), "failed dns_failed dns"),
        ("a server that refuses", Reply::Code(ResponseCode::Refused, Vec::new()), "failed dns_failed dns"),
        ("garbage", Reply::Garbage, "failed dns_failed dns"),
        ("silence", Reply::Silence, "failed timeout dns"),
        ("the wrong id", Reply::WrongId(good()), "failed timeout dns"),
        (
            "an answer to another question",
            Reply::OtherQuestion("other.example.com".to_owned(), good()),
            "failed timeout dns",
        ),
        (
            "a guess before the truth",
            Reply::Both(Box::new(Reply::WrongId(vec![address(NAME, 60, BAD)])), Box::new(Reply::Records(good()))),
            "delivered",
        ),
        (
            "another's answer before the truth",
            Reply::Both(
                Box::new(Reply::OtherQuestion("other.example.com".to_owned(), vec![address(NAME, 60, BAD)])),
                Box::new(Reply::Records(good())),
            ),
            "delivered",
        ),
        (
            "addresses of another name",
            Reply::Records(vec![address("other.example.com", 60, GOOD)]),
            "failed dns_no_address dns",
        ),
        (
            "addresses beside an alias",
            Reply::Records(vec![
                alias(NAME, 60, "end.example.net"),
                address(NAME, 60, BAD),
                address("end.example.net", 60, GOOD),
            ]),
            "delivered",
        ),
        ("an alias of itself", Reply::Records(vec![alias(NAME, 60, NAME)]), "failed dns_failed dns"),
        (
            "an alias in a circle",
            Reply::Records(vec![alias(NAME, 60, "a.example.net"), alias("a.example.net", 60, NAME)]),
            "failed dns_failed dns",
        ),
    ])
    .await;
}

#[tokio::test]
async fn what_the_policy_says_of_an_answer() {
    let a = |ips: &[&str]| Reply::Records(ips.iter().map(|ip| address(NAME, 60, ip)).collect());
    let via = |target: &str, ip: &str| Reply::Records(vec![alias(NAME, 60, target), address(target, 60, ip)]);
    check(vec![
        ("blocked: a private address", a(&["10.0.0.1"]), "blocked policy_address"),
        ("blocked: loopback", a(&[BAD]), "blocked policy_address"),
        ("blocked: metadata", a(&["169.254.169.254"]), "blocked policy_metadata"),
        ("blocked: a mixed answer", a(&[GOOD, BAD]), "blocked policy_mixed"),
        ("blocked: a mixed answer, the other way round", a(&[BAD, GOOD]), "blocked policy_mixed"),
        ("blocked: an alias of a metadata name", via("metadata.google.internal", GOOD), "blocked policy_name"),
        ("blocked: an alias of a local name", via("printer.local", GOOD), "blocked policy_name"),
        (
            "blocked: an alias of a local name that has no address",
            Reply::Code(ResponseCode::NXDomain, vec![alias(NAME, 60, "printer.local")]),
            "blocked policy_name",
        ),
    ])
    .await;
}

/// Sends to `url` until its connection is known to be kept, and is used again; says how many that took.
async fn until_reused(ground: &Ground, url: &str) -> usize {
    for requests in 1..=5 {
        let attempt = ground.get(url).await;
        assert_eq!(end_of(&attempt), "delivered", "{:?}", attempt.ended);
        if attempt.connection.unwrap().reused {
            return requests;
        }
        tokio::time::pause();
        tokio::time::advance(Duration::from_millis(300)).await;
        tokio::time::resume();
        ground.deliverer.tend();
    }
    panic!("its connection is not used again");
}

#[tokio::test]
async fn a_suspended_address_is_reached_under_no_name() {
    let names = NameServer::start(|asked| only_a(asked, GOOD)).await;
    let mut plan = plan(&names);
    plan.delivery.clear();
    let ground = plan.build();
    let receiver = Receiver::start(std::iter::repeat_n([Step::Read, ok()], 10).flatten().collect::<Vec<_>>()).await;
    let url = |host: &str| format!("http://{host}:{}/", receiver.port());
    let requests = until_reused(&ground, &url(NAME)).await;
    let mut suspensions = Suspensions::default();
    suspensions.stop_host(GOOD, "its owner asked".into());
    ground.world.set_suspensions(suspensions);
    for host in [GOOD, NAME, "other.example.com"] {
        let attempt = ground.get(&url(host)).await;
        assert_eq!(end_of(&attempt), "blocked suspended", "{host}: {:?}", attempt.ended);
        let message = &attempt.ended.error.as_ref().unwrap().message;
        assert!(message.contains("its owner asked") && (host == GOOD || !message.contains(GOOD)), "{message}");
    }
    assert_eq!(receiver.requests(), requests, "nothing was sent after it was suspended");
    ground.world.set_suspensions(Suspensions::default());
    assert_eq!(end_of(&ground.get(&url(NAME)).await), "delivered");
}

#[tokio::test]
async fn a_suspended_host_is_reached_under_no_name() {
    let names = NameServer::start(|asked| match asked.name.as_str() {
        "victim.example.net" => only_a(asked, GOOD),
        name if asked.kind == RecordType::A => Reply::Records(vec![
            alias(name, 60, "edge.example.org"),
            alias("edge.example.org", 60, "victim.example.net"),
            address("victim.example.net", 60, GOOD),
        ]),
        _ => Reply::Records(Vec::new()),
    })
    .await;
    let mut plan = plan(&names);
    plan.delivery.clear();
    let ground = plan.build();
    let receiver = Receiver::start(std::iter::repeat_n([Step::Read, ok()], 10).flatten().collect::<Vec<_>>()).await;
    let url = |host: &str| format!("http://{host}:{}/", receiver.port());

    let requests = until_reused(&ground, &url(NAME)).await;
    let mut suspensions = Suspensions::default();
    suspensions.stop_host("victim.example.net", "its owner asked".into());
    ground.world.set_suspensions(suspensions);
    for host in ["victim.example.net", NAME, "other.example.com"] {
        let attempt = ground.get(&url(host)).await;
        assert_eq!(end_of(&attempt), "blocked suspended", "{host}: {:?}", attempt.ended);
        let message = &attempt.ended.error.as_ref().unwrap().message;
        assert!(message.contains("its owner asked"), "{message}");
    }
    assert_eq!(receiver.requests(), requests, "nothing was sent after it was suspended");
    ground.world.set_suspensions(Suspensions::default());
    assert_eq!(end_of(&ground.get(&url(NAME)).await), "delivered");
}

#[tokio::test]
async fn what_is_stopped_or_denied_while_its_name_is_looked_up_is_sent_nothing() {
    type Change = fn(&Ground);
    fn suspend(ground: &Ground, change: impl FnOnce(&mut Suspensions)) {
        let mut suspensions = Suspensions::default();
        change(&mut suspensions);
        ground.world.set_suspensions(suspensions);
    }
    fn reload(ground: &Ground, toml: &str) {
        let mut plan = Plan::new();
        plan.opened = vec![format!("{GOOD}/32")];
        plan.more = toml.to_owned();
        ground.world.reload(plan.config(), &Notice::default());
    }
    let changes: [(&str, Change, &str); 7] = [
        ("nothing", |_| {}, "delivered"),
        ("something else", |ground| suspend(ground, |all| all.stop_host("other.example", "r".into())), "delivered"),
        ("its host", |ground| suspend(ground, |all| all.stop_host(NAME, "r".into())), "blocked suspended"),
        ("its address", |ground| suspend(ground, |all| all.stop_host(GOOD, "r".into())), "blocked suspended"),
        (
            "its tenant",
            |ground| suspend(ground, |all| drop(all.tenants.insert(TenantId::new("acme"), "r".into()))),
            "blocked suspended",
        ),
        (
            "its host, by a reload",
            |ground| reload(ground, &format!("[policy]\ndeny_hosts = [\"{NAME}\"]\n")),
            "blocked policy_denied",
        ),
        (
            "its address, by a reload",
            |ground| reload(ground, &format!("[policy]\ndeny_networks = [\"{GOOD}/32\"]\n")),
            "blocked policy_denied",
        ),
    ];
    for (what, change, end) in changes {
        let world: Arc<OnceLock<Arc<Ground>>> = Arc::default();
        let there = world.clone();
        // As late as may be: with the answer, which is judged right after.
        let names = NameServer::start(move |asked| {
            let ground = there.get().expect("built").clone();
            change(&ground);
            only_a(asked, GOOD)
        })
        .await;
        let ground = Arc::new(plan(&names).build());
        assert!(world.set(ground.clone()).is_ok());
        let receiver = Receiver::start([Step::Read, ok()]).await;
        let attempt = ground.get(&format!("http://{NAME}:{}/", receiver.port())).await;
        assert_eq!(end_of(&attempt), end, "{what}: {:?}", attempt.ended);
        assert_eq!(receiver.requests(), usize::from(end == "delivered"), "{what}");
    }
}

#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "somebody between egressd and its receiver")]
async fn what_is_stopped_while_a_connection_is_made_is_sent_nothing() {
    let authority = Authority::new();
    let names = NameServer::with_addresses(60, &[GOOD]).await;
    let ground = Arc::new(Plan::new().name_server(names.address()).trust(&authority).build());
    let receiver = Receiver::start_tls(authority.server(&[NAME], Leaf::Good, &[]), [Step::Read, ok()]).await;
    // Reached through somebody who hands on what is said, and acts in the middle of the handshake.
    let between = tokio::net::TcpListener::bind((GOOD, 0)).await.unwrap();
    let (port, behind, stopped) = (between.local_addr().unwrap().port(), receiver.address(), ground.clone());
    tokio::spawn(async move {
        let (mut near, _) = between.accept().await.unwrap();
        near.readable().await.unwrap();
        let mut suspensions = Suspensions::default();
        suspensions.stop_host(NAME, "its owner asked".into());
        stopped.world.set_suspensions(suspensions);
        let mut far = tokio::net::TcpStream::connect(behind).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
    });
    let attempt = ground.get(&format!("https://{NAME}:{port}/")).await;
    assert_eq!(end_of(&attempt), "blocked suspended", "{:?}", attempt.ended);
    assert_eq!(receiver.requests(), 0);
}

#[tokio::test]
async fn the_second_answer_of_a_rebinding_name_is_never_dialled() {
    for second in [vec![BAD], vec![GOOD, BAD]] {
        let second: Vec<String> = second.iter().map(|ip| (*ip).to_owned()).collect();
        let names = NameServer::start(move |asked| match asked.before {
            0 => Reply::Records(vec![address(&asked.name, 0, GOOD)]),
            _ => Reply::Records(second.iter().map(|ip| address(&asked.name, 0, ip)).collect()),
        })
        .await;
        let ground = plan(&names).build();
        let pair = Pair::start().await;
        assert_eq!(end_of(&ground.get(&pair.url()).await), "delivered");
        // Once looked up, once dialled: the delivery never asks again.
        assert_eq!(names.asked().len(), 1);
        let attempt = ground.get(&pair.url()).await;
        assert_eq!(attempt.ended.outcome.label(), "blocked");
        assert_eq!((pair.good.requests(), pair.bad.peers().len()), (1, 0));
    }
}

#[tokio::test]
async fn a_truncated_answer_is_asked_for_over_tcp() {
    let names = NameServer::start(|asked| if asked.over_tcp { only_a(asked, GOOD) } else { Reply::Truncated }).await;
    let (ground, pair) = (plan(&names).build(), Pair::start().await);
    assert_eq!(end_of(&ground.get(&pair.url()).await), "delivered");
    let over_tcp: Vec<_> = names.asked().iter().map(|asked| asked.over_tcp).collect();
    assert_eq!(over_tcp, [false, true]);
}

#[tokio::test]
async fn an_answer_in_other_letters_is_asked_for_over_tcp() {
    // The question's letters are mixed at random: an answer that does not repeat them may be a guess.
    let names = NameServer::start(|asked| Reply::LowerCase(vec![address(&asked.name, 60, GOOD)])).await;
    let (ground, pair) = (plan(&names).build(), Pair::start().await);
    assert_eq!(end_of(&ground.get(&pair.url()).await), "delivered");
    assert!(names.asked().last().unwrap().over_tcp);
}

#[tokio::test]
async fn a_server_without_edns_is_asked_without() {
    let names = NameServer::start(|asked| {
        if asked.edns { Reply::Code(ResponseCode::FormErr, Vec::new()) } else { only_a(asked, GOOD) }
    })
    .await;
    let (ground, pair) = (plan(&names).build(), Pair::start().await);
    assert_eq!(end_of(&ground.get(&pair.url()).await), "delivered");
}

#[tokio::test]
async fn the_next_name_server_is_asked_where_one_fails() {
    let broken = NameServer::start(|_| Reply::Code(ResponseCode::ServFail, Vec::new())).await;
    let silent = NameServer::start(|_| Reply::Silence).await;
    let good = NameServer::with_addresses(60, &[GOOD]).await;
    let closed = SocketAddr::from(([127, 0, 0, 1], 1));
    let pair = Pair::start().await;
    for servers in [[broken.address(), good.address()], [closed, good.address()], [silent.address(), good.address()]] {
        let mut plan = plan(&good);
        plan.name_servers = servers.to_vec();
        let attempt = plan.build().get(&pair.url()).await;
        assert_eq!(end_of(&attempt), "delivered", "{:?}", attempt.ended);
    }
    let mut plan = plan(&good);
    plan.name_servers = vec![broken.address(), closed];
    assert_eq!(end_of(&plan.build().get(&pair.url()).await), "failed dns_failed dns");
}

#[tokio::test]
async fn a_lost_question_is_asked_again() {
    let names = NameServer::start(|asked| if asked.before == 0 { Reply::Silence } else { only_a(asked, GOOD) }).await;
    let (ground, pair) = (plan(&names).build(), Pair::start().await);
    let attempt = ground.get(&pair.url()).await;
    assert_eq!(end_of(&attempt), "delivered", "{:?}", attempt.ended);
    assert_eq!(names.asked().len(), 2);
}

#[tokio::test]
async fn a_server_that_stops_at_an_alias_is_asked_for_its_target() {
    let names = NameServer::start(|asked| match asked.name.as_str() {
        NAME => Reply::Records(vec![alias(NAME, 60, "target.example.net")]),
        _ => only_a(asked, GOOD),
    })
    .await;
    let (ground, pair) = (plan(&names).build(), Pair::start().await);
    assert_eq!(end_of(&ground.get(&pair.url()).await), "delivered");
    let asked: Vec<_> = names.asked().into_iter().map(|asked| asked.name).collect();
    assert_eq!(asked, [NAME, "target.example.net"]);
}

#[tokio::test]
async fn at_most_sixteen_addresses_are_looked_at() {
    let names = NameServer::start(|asked| {
        let mut many = vec![address(&asked.name, 60, GOOD)];
        many.extend((1..=40).map(|last| address(&asked.name, 60, &format!("93.184.216.{last}"))));
        Reply::Records(many)
    })
    .await;
    let (ground, pair) = (plan(&names).build(), Pair::start().await);
    let attempt = ground.get(&pair.url()).await;
    assert_eq!(end_of(&attempt), "delivered");
    let resolved = attempt.connection.unwrap().resolved;
    assert_eq!(resolved.len(), 16);
    assert!(resolved.iter().all(|(_, verdict)| *verdict == Verdict::Allowed));
}

async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn an_answer_is_used_for_its_ttl_and_never_more_than_a_minute() {
    // For each TTL in seconds: how many questions three deliveries ask, each this many seconds after the one before.
    for (ttl, apart, questions) in
        [(0, 0, 3), (5, 1, 1), (5, 6, 3), (60, 25, 1), (86_400, 25, 1), (86_400, 31, 2), (86_400, 61, 3)]
    {
        let names = NameServer::with_addresses(ttl, &[GOOD]).await;
        let (ground, pair) = (plan(&names).build(), Pair::start().await);
        for _ in 0..3 {
            assert_eq!(end_of(&ground.get(&pair.url()).await), "delivered");
            pass(Duration::from_secs(apart)).await;
        }
        assert_eq!(names.asked().len(), questions, "TTL {ttl}, {apart} s apart");
    }
}

#[tokio::test]
async fn ipv6_is_asked_for_only_where_a_source_has_it() {
    let names = NameServer::with_addresses(60, &[GOOD, "::1"]).await;
    let pair = Pair::start().await;
    let ground = plan(&names).build();
    assert_eq!(end_of(&ground.get(&pair.url()).await), "delivered");
    assert!(names.asked().iter().all(|asked| asked.kind == RecordType::A));

    let names = NameServer::with_addresses(60, &["::1"]).await;
    let mut both = plan(&names).sources(&[SOURCE, "::1"]);
    both.opened = vec!["::1/128".to_owned()];
    let ground = both.build();
    let receiver = Receiver::at("::1".parse().unwrap(), None, |_| vec![Step::Read, ok()]).await;
    let attempt = ground.get(&format!("http://{NAME}:{}/", receiver.port())).await;
    assert_eq!(end_of(&attempt), "delivered", "{:?}", attempt.ended);
    assert_eq!(receiver.peers()[0].ip().to_string(), "::1");
    let kinds: Vec<_> = names.asked().iter().map(|asked| asked.kind).collect();
    assert!(kinds.contains(&RecordType::A) && kinds.contains(&RecordType::AAAA), "{kinds:?}");

    // A name that has IPv6 alone cannot be reached from IPv4 sources, and neither can such an address.
    let ground = plan(&names).build();
    for url in [format!("http://{NAME}:8080/"), "http://[2606:4700::1111]:8080/".to_owned()] {
        let attempt = ground.get(&url).await;
        assert_eq!(attempt.ended.error.map(|error| error.code), Some(Code::DnsNoAddress), "{url}");
    }
}

#[tokio::test]
async fn a_synthesised_address_beside_the_real_one_is_skipped() {
    // What a DNS64 resolver makes of 127.0.0.1.
    let names = NameServer::with_addresses(60, &["64:ff9b::7f00:1", GOOD]).await;
    let ground = plan(&names).sources(&[SOURCE, "::1"]).build();
    let pair = Pair::start().await;
    let attempt = ground.get(&pair.url()).await;
    assert_eq!(end_of(&attempt), "delivered", "{:?}", attempt.ended);
    let verdicts: Vec<_> = attempt.connection.unwrap().resolved.into_iter().map(|(_, verdict)| verdict).collect();
    assert_eq!(verdicts, [Verdict::Skipped, Verdict::Allowed]);
}

#[tokio::test]
async fn one_silent_family_does_not_hold_up_the_other() {
    let names = NameServer::start(|asked| match asked.kind {
        RecordType::AAAA => Reply::Silence,
        _ => only_a(asked, GOOD),
    })
    .await;
    let ground = plan(&names).sources(&[SOURCE, "::1"]).build();
    let pair = Pair::start().await;
    let attempt = ground.get(&pair.url()).await;
    assert_eq!(end_of(&attempt), "delivered", "{:?}", attempt.ended);
    // When its own time was over, and not only at the deadline.
    assert!(attempt.timings.total.unwrap() < LONG / 2);
    // Half an answer is not kept.
    let before = names.asked().len();
    assert_eq!(end_of(&ground.get(&pair.url()).await), "delivered");
    assert!(names.asked().len() > before);
}

#[tokio::test]
async fn an_address_is_never_asked_for() {
    let names = NameServer::with_addresses(60, &[BAD]).await;
    let (ground, pair) = (plan(&names).build(), Pair::start().await);
    assert_eq!(end_of(&ground.get(&pair.good.url("/")).await), "delivered");
    assert_eq!(ground.get(&pair.bad.url("/")).await.ended.outcome.label(), "blocked");
    assert_eq!(names.asked(), []);
}

/// The deadline of those of a flood.
const FLOODED: Duration = Duration::from_millis(900);

/// Starts this many deliveries to names of these domains, and gives them the rest of their deadline.
async fn flood(
    ground: &Arc<Ground>,
    tenant: &'static str,
    domain: &'static str,
    count: usize,
) -> Vec<tokio::task::JoinHandle<String>> {
    let deliveries = (0..count).map(|number| {
        let ground = ground.clone();
        tokio::spawn(async move {
            let spec = get(&format!("http://n{number}.{domain}:8080/"));
            end_of(&ground.deliver_for(tenant, spec, FLOODED).await)
        })
    });
    deliveries.collect()
}

#[tokio::test]
async fn slow_names_cost_their_own_tenant_and_domain_alone() {
    let names =
        NameServer::start(|asked| if asked.name.contains("slow") { Reply::Silence } else { only_a(asked, GOOD) }).await;
    let ground = Arc::new(plan(&names).build());
    let pair = Pair::start().await;
    // None of them runs out, which would let others in.
    let clock = StoppedClock::stop();
    let mut floods = flood(&ground, "acme", "slow1.com", 40).await;
    floods.extend(flood(&ground, "acme", "slow1.co.uk", 40).await);
    // Another domain of the same tenant, and another tenant, are answered while those wait.
    for tenant in ["acme", "other"] {
        let attempt = ground.deliver_for(tenant, get(&pair.url()), LONG).await;
        assert_eq!(end_of(&attempt), "delivered", "{tenant}: {:?}", attempt.ended);
    }
    let asked = names.asked();
    clock.passes(2 * FLOODED).await;
    for delivery in floods {
        assert_eq!(delivery.await.unwrap(), "failed timeout dns");
    }
    for domain in ["slow1.com", "slow1.co.uk"] {
        let distinct: HashSet<&str> =
            asked.iter().map(|asked| asked.name.as_str()).filter(|name| name.ends_with(domain)).collect();
        assert_eq!(distinct.len(), 16, "{domain}");
    }
}

#[tokio::test]
async fn a_tenant_looks_up_at_most_sixty_four_names_at_once() {
    let names = NameServer::start(|_| Reply::Silence).await;
    let ground = Arc::new(plan(&names).build());
    // None of them runs out, which would let others in.
    let clock = StoppedClock::stop();
    let mut floods = Vec::new();
    for domain in ["a.com", "b.com", "c.com", "d.com", "e.com", "f.com"] {
        // Each label under `.com` is a domain of its own.
        floods.extend(flood(&ground, "acme", domain, 16).await);
    }
    while names.asked().len() < 64 {
        assert!(floods.iter().all(|flood| !flood.is_finished()), "they were never asked for");
        tokio::task::yield_now().await;
    }
    // Another tenant's lookup comes after all of theirs.
    let other = flood(&ground, "other", "z.com", 1).await.remove(0);
    while !names.asked().iter().any(|asked| asked.name == "n0.z.com") {
        assert!(!other.is_finished(), "it was never asked for");
        tokio::task::yield_now().await;
    }
    // Some may have been asked about twice by now.
    let distinct: HashSet<String> = names.asked().into_iter().map(|asked| asked.name).collect();
    assert_eq!(distinct.len(), 64 + 1);
    clock.passes(2 * FLOODED).await;
    for delivery in floods {
        assert_eq!(delivery.await.unwrap(), "failed timeout dns");
    }
    assert_eq!(other.await.unwrap(), "failed timeout dns");
}
