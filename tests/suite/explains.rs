//! What `explain` says is what a real send then meets: over generated policies, names and URLs, with a real name
//! server and a real receiver.

use egressd::explain::Explainer;
use egressd::outcome::{Ended, Outcome};
use egressd::policy::Asker;
use egressd::redact::RedactKey;
use egressd::send::{Method, TenantId};
use hickory_proto::rr::RecordType;

use crate::support::ground::{LONG, Plan, get};
use crate::support::name_server::{NameServer, Reply, address, alias};
use crate::support::receiver::{Receiver, Step, ok};

/// A seeded xorshift: the same policies for the same seed.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    fn some<'a>(&mut self, of: &[&'a str]) -> Vec<&'a str> {
        of.iter().copied().filter(|_| self.below(3) == 0).collect()
    }
}

const HOSTS: [&str; 9] = [
    "good.example.com",
    "deep.good.example.com",
    "private.example.com",
    "mixed.example.com",
    "aliased.example.com",
    "metadata.example.com",
    "nowhere.example.com",
    "localhost",
    "intranet.corp",
];

/// What the name server says of the hosts above; anything else does not exist.
fn records(name: &str, kind: RecordType) -> Reply {
    let name = name.trim_end_matches('.');
    if kind != RecordType::A {
        return Reply::Records(Vec::new());
    }
    match name {
        "good.example.com" | "deep.good.example.com" | "intranet.corp" => {
            Reply::Records(vec![address(name, 60, "127.0.0.1")])
        }
        "private.example.com" => Reply::Records(vec![address(name, 60, "10.1.2.3")]),
        "mixed.example.com" => Reply::Records(vec![address(name, 60, "127.0.0.1"), address(name, 60, "192.168.1.1")]),
        "aliased.example.com" => {
            let target = "metadata.google.internal";
            Reply::Records(vec![alias(name, 60, target), address(target, 60, "127.0.0.1")])
        }
        "metadata.example.com" => Reply::Records(vec![address(name, 60, "169.254.169.254")]),
        _ => Reply::Records(Vec::new()),
    }
}

/// A policy that opens some networks and names, and has lists and ports of its own.
fn policy(random: &mut Seeded) -> String {
    let hosts = ["good.example.com", "*.good.example.com", "*.example.com", "localhost", "*.corp", "mixed.example.com"];
    let networks = ["127.0.0.0/8", "127.0.0.1/32", "10.0.0.0/8", "192.168.0.0/16"];
    let mode = if random.below(2) == 0 { "enforce" } else { "report" };
    let ports = if random.below(4) == 0 { "[443]" } else { "[80, 443, \"1024-65535\"]" };
    let opened = random.some(&networks);
    let mut text = format!(
        "[policy]\nmode = \"{mode}\"\nports = {ports}\ndeny_hosts = {:?}\ndeny_networks = {:?}\n",
        random.some(&hosts),
        if random.below(4) == 0 { random.some(&networks) } else { Vec::new() },
    );
    let names = if random.below(2) == 0 { vec!["intranet.corp"] } else { Vec::new() };
    if !opened.is_empty() || !names.is_empty() {
        let tenants = if random.below(3) == 0 { "tenants = [\"other\"]\n" } else { "" };
        text +=
            &format!("[[policy.exception]]\nnetworks = {opened:?}\nhosts = {names:?}\nreason = \"a test\"\n{tenants}");
    }
    if random.below(2) == 0 {
        text += &format!(
            "[[tenant]]\nid = \"acme\"\nallow_hosts = {:?}\ndeny_hosts = {:?}\n",
            random.some(&hosts),
            random.some(&hosts)
        );
    }
    text
}

#[tokio::test]
async fn a_real_send_meets_what_explain_said() {
    let names = NameServer::start(|asked| records(&asked.name, asked.kind)).await;
    let receiver = Receiver::start([Step::Read, ok()]).await;
    let tenant = TenantId::new("acme");
    let (mut allowed, mut blocked, mut failed) = (0, 0, 0);
    for seed in 1..=60 {
        let mut random = Seeded(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let mut plan = Plan::new().name_server(names.address()).delivery("keep_alive = \"0s\"\n");
        plan.opened = Vec::new();
        plan.more = policy(&mut random);
        let described = plan.more.clone();
        let ground = plan.build();
        let explainer = Explainer::new(ground.world.clone(), ground.deliverer.clone(), RedactKey::new(b"test"));
        let urls = HOSTS.iter().map(|host| format!("http://{host}:{}/", receiver.port()));
        let others = [
            receiver.url("/"),
            "http://10.0.0.9:8080/".to_owned(),
            "http://user:pw@good.example.com/".to_owned(),
            "http://good.example.com:25/".to_owned(),
            "http:good.example.com".to_owned(),
            format!("http://2130706433:{}/", receiver.port()),
        ];
        for url in urls.chain(others) {
            let asker = Asker { tenant: &tenant, workflow: None };
            // An opened private network has nobody who answers; its sends would leave this machine.
            if (url.contains("//10.") || url.contains("private")) && described.contains("10.0.0.0/8") {
                continue;
            }
            if url.contains("mixed") && described.contains("192.168.0.0/16") {
                continue;
            }
            let said = explainer.explain(asker, Method::Get, &url).await;
            let met = ground.deliver(get(&url), LONG).await;
            let told = format!("seed {seed}, {url}, under\n{described}\nsaid {said:?}\nmet {:?}", met.ended);
            assert_eq!(met.would_block, said.would_block, "{told}");
            let resolved = met.connection.as_ref().map(|connection| connection.resolved.clone()).unwrap_or_default();
            assert_eq!(resolved, said.resolved, "{told}");
            match said.refusal {
                Some(refusal) => {
                    let error = met.ended.error.as_ref().unwrap_or_else(|| panic!("{told}"));
                    assert_eq!((error.code, &error.message), (refusal.code, &refusal.message), "{told}");
                    assert_eq!(met.ended, Ended::because(error.clone()), "{told}");
                    assert!(met.sent_headers.is_none(), "{told}");
                    if met.ended.outcome == Outcome::Blocked { blocked += 1 } else { failed += 1 }
                }
                None => {
                    assert_eq!(met.ended.outcome, Outcome::Delivered, "{told}");
                    let source = met.connection.and_then(|connection| connection.source).map(|source| source.ip());
                    assert_eq!(source, said.source.map(|source| source.bind()), "{told}");
                    allowed += 1;
                }
            }
        }
    }
    assert!(allowed > 50 && blocked > 200 && failed > 5, "{allowed} allowed, {blocked} blocked, {failed} failed");
    assert_eq!(receiver.requests(), allowed, "the receiver saw what was allowed, each once");
}

#[tokio::test]
async fn ports_of_a_denied_host_all_look_the_same() {
    let names = NameServer::start(|asked| records(&asked.name, asked.kind)).await;
    // One that answers, one that is silent and one where nobody listens: only the policy speaks.
    let answers = Receiver::start([Step::Read, ok()]).await;
    let silent = Receiver::start([Step::Read]).await;
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let mut plan = Plan::new().name_server(names.address());
    plan.opened = Vec::new();
    let ground = plan.build();
    let mut told = Vec::new();
    for port in [answers.port(), silent.port(), closed] {
        for host in ["127.0.0.1", "good.example.com", "private.example.com"] {
            let met = ground.get(&format!("http://{host}:{port}/")).await;
            let error = met.ended.error.unwrap();
            let resolved = met.connection.map(|connection| (connection.resolved, connection.source, connection.remote));
            told.push((host, error.code, error.phase, error.message.replace(&port.to_string(), "PORT"), resolved));
        }
    }
    for (index, one) in told.iter().enumerate() {
        assert_eq!(one, &told[index % 3]);
        assert!(!(one.0 == "private.example.com" && one.3.contains("10.1.2.3")), "{}", one.3);
    }
    assert_eq!((answers.requests(), silent.requests(), answers.peers().len(), silent.peers().len()), (0, 0, 0, 0));
}
