//! The rules put together: which one decides, for every pair and more; what exceptions open and what they never do;
//! what a refusal may say.

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::limits::DNS_CNAMES_MAX;
use crate::policy::Scheme;
use crate::policy::fixtures::{Fate, PUBLIC, Question, exception, ip, patterns, settings, tenant};

const NAME: &str = "https://receiver.com/";
/// Another address that nothing denies.
const OTHER: &str = "1.1.1.1";
/// An address of this host in the tests that have one.
const OURS: &str = "198.41.0.4";

fn networks(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn resolving_to(addresses: &[&str]) -> Question {
    Question { addresses: addresses.iter().map(|address| ip(address)).collect(), ..Question::default() }
}

type Apply = fn(&mut Scene);

/// The rules in the order in which they are named, each with what makes it apply.
const RULES: &[(Code, Apply)] = &[
    (Code::PolicyUrl, |scene| scene.userinfo = "user:pw@"),
    (Code::PolicyPort, |scene| scene.port = 22),
    (Code::Suspended, |scene| {
        scene.question.suspensions.tenants.insert(TenantId::new("acme"), "spam".into());
    }),
    (Code::PolicyDenied, |scene| scene.question.settings.deny_hosts = patterns(&["receiver.com", "receiver.corp"])),
    (Code::PolicyNotAllowed, |scene| {
        scene.question.settings.tenants.push(tenant("acme", Some(&["elsewhere.com"]), &[]));
    }),
    (Code::PolicyScan, |scene| scene.question.settings.distinct_destinations_per_minute = 0),
    (Code::PolicyName, |scene| scene.host = "receiver.corp"),
    (Code::PolicyMetadata, |scene| scene.question.addresses.push(ip("169.254.169.254"))),
    (Code::PolicyAddress, |scene| scene.question.addresses.push(ip("10.0.0.1"))),
    (Code::PolicySelf, |scene| scene.question.addresses.push(ip(OURS))),
];

struct Scene {
    userinfo: &'static str,
    host: &'static str,
    port: u16,
    question: Question,
}

impl Scene {
    fn with(applying: impl IntoIterator<Item = usize>) -> Self {
        let mut question = resolving_to(&[]);
        question.ours.interfaces = vec![ip(OURS)];
        let mut scene = Self { userinfo: "", host: "receiver.com", port: 443, question };
        applying.into_iter().for_each(|rule| RULES[rule].1(&mut scene));
        scene
    }

    fn play(&self) -> Fate {
        self.question.ask(&format!("https://{}{}:{}/", self.userinfo, self.host, self.port))
    }
}

#[test]
fn of_all_rules_that_apply_the_first_is_named() {
    // Every set of rules, pairs among them.
    for set in 0..1_usize << RULES.len() {
        let applying: Vec<usize> = (0..RULES.len()).filter(|rule| set >> rule & 1 == 1).collect();
        let fate = Scene::with(applying.iter().copied()).play();
        let expected = applying.first().map(|rule| RULES[*rule].0);
        let shown: Vec<_> = applying.iter().map(|rule| RULES[*rule].0.label()).collect();
        assert_eq!(fate.code(), expected, "{shown:?}");
        assert!(fate.dialled.is_empty());
    }
    println!("{} sets of rules, {} pairs among them", 1 << RULES.len(), RULES.len() * (RULES.len() - 1) / 2);
}

#[test]
fn report_mode_lets_through_what_host_lists_alone_would_have_blocked() {
    let lists = [Code::PolicyDenied, Code::PolicyNotAllowed];
    for set in 0..1_usize << RULES.len() {
        let applying: Vec<usize> = (0..RULES.len()).filter(|rule| set >> rule & 1 == 1).collect();
        let mut scene = Scene::with(applying.iter().copied());
        scene.question.settings.mode = PolicyMode::Report;
        let fate = scene.play();
        let codes = || applying.iter().map(|rule| RULES[*rule].0);
        let denied = codes().find(|code| !lists.contains(code));
        assert_eq!(fate.code(), denied);
        // What is blocked for another reason would have been delivered by no mode.
        let would_block = codes().find(|code| lists.contains(code)).filter(|_| denied.is_none());
        assert_eq!(fate.would_block, would_block);
    }
}

#[test]
fn a_mixed_answer_is_refused_as_a_whole() {
    for denied in ["169.254.169.254", "10.0.0.1", OURS, "2.2.2.2", "::1", "64:ff9b::7f00:1"] {
        for order in [[PUBLIC, denied], [denied, PUBLIC]] {
            let mut question = resolving_to(&order);
            question.ours.interfaces = vec![ip(OURS)];
            question.settings.deny_networks = networks(&["2.2.2.0/24"]);
            let fate = question.ask(NAME);
            assert_eq!((fate.code(), fate.dialled.len()), (Some(Code::PolicyMixed), 0), "{order:?}");
            let verdicts: Vec<_> = fate.resolved.iter().map(|(_, verdict)| *verdict == Verdict::Allowed).collect();
            assert_eq!(verdicts, order.map(|address| address == PUBLIC), "each address keeps its own verdict");
        }
    }
    // What an alias is refused for stands before it.
    let mut aliased = resolving_to(&[PUBLIC, "10.0.0.1"]);
    aliased.cname_targets = vec!["db.corp".to_owned()];
    assert_eq!(aliased.ask(NAME).code(), Some(Code::PolicyName));
}

#[test]
fn nat64_forms_of_good_addresses_are_passed_over() {
    for (addresses, word, dialled) in [
        (&[PUBLIC, "64:ff9b::5db8:d822"][..], "allowed", &[PUBLIC][..]),
        (&["64:ff9b::5db8:d822"], "allowed", &[]),
        (&["64:ff9b::7f00:1"], "policy_address", &[]),
        (&["64:ff9b::5db8:d822", "64:ff9b::7f00:1"], "policy_address", &[]),
        (&["10.0.0.1", "64:ff9b::5db8:d822"], "policy_address", &[]),
        (&["10.0.0.1", "64:ff9b::a00:1"], "policy_address", &[]),
        (&[PUBLIC, "64:ff9b::a9fe:a9fe"], "policy_mixed", &[]),
        (&[], "allowed", &[]),
        (&["::ffff:93.184.216.34", PUBLIC, PUBLIC], "allowed", &[PUBLIC]),
        (&["2606:4700::1111", PUBLIC], "allowed", &["2606:4700::1111", PUBLIC]),
    ] {
        let fate = resolving_to(addresses).ask(NAME);
        assert_eq!(fate.word(), word, "{addresses:?}");
        assert_eq!(fate.dialled, dialled.iter().map(|address| ip(address)).collect::<Vec<_>>(), "{addresses:?}");
        assert_eq!(fate.resolved.len(), addresses.len());
    }
}

#[test]
fn sixteen_addresses_are_looked_at_and_no_other_is_dialled() {
    let many: Vec<IpAddr> = (0..40).map(|n| ip(&format!("1.1.1.{n}"))).collect();
    let mut question = Question { addresses: many.clone(), ..Question::default() };
    let fate = question.ask(NAME);
    assert_eq!((fate.resolved.len(), &*fate.dialled), (16, &many[..16]));
    // A denied one behind them is neither judged nor dialled.
    question.addresses[16] = ip("10.0.0.1");
    assert_eq!(question.ask(NAME).dialled, &many[..16]);
    question.addresses[15] = ip("10.0.0.1");
    assert_eq!(question.ask(NAME).code(), Some(Code::PolicyMixed));
}

#[test]
fn an_exception_opens_what_it_names_and_nothing_else() {
    let mut question = resolving_to(&[]);
    question.settings.exceptions = vec![exception(&["10.20.0.0/16", "fd12:3456::/32"], &["billing.corp"])];
    let mut ask = |url: &str, address: &str| {
        question.addresses = vec![ip(address)];
        question.ask(url).word()
    };
    for (url, address, word) in [
        ("https://billing.corp/", "10.20.0.1", "allowed"),
        ("https://billing.corp./", "10.20.255.255", "allowed"),
        ("https://BILLING.corp/", PUBLIC, "allowed"),
        ("https://billing.corp/", "10.21.0.0", "policy_address"),
        ("https://billing.corp/", "10.19.255.255", "policy_address"),
        ("https://other.corp/", "10.20.0.1", "policy_name"),
        ("https://a.billing.corp/", "10.20.0.1", "policy_name"),
        (NAME, "10.20.0.1", "allowed"),
        ("https://10.20.0.1/", PUBLIC, "allowed"),
        ("https://10.5121/", PUBLIC, "policy_address"), // 10.0.20.1
        ("https://10.1310721/", PUBLIC, "allowed"),     // 10.20.0.1
        ("https://[fd12:3456::1]/", PUBLIC, "allowed"),
        ("https://[fd12:3457::1]/", PUBLIC, "policy_address"),
        ("https://[::ffff:10.20.0.1]/", PUBLIC, "allowed"),
        // Another form of an opened address is another way to it, which was not opened.
        ("https://[::10.20.0.1]/", PUBLIC, "policy_address"),
        ("https://[2002:a14:1::]/", PUBLIC, "policy_address"),
        // An opened IPv6 range does not open what is carried in it.
        ("https://[fd12:3456::5efe:10.0.0.1]/", PUBLIC, "policy_address"),
        ("https://[fd12:3456::5efe:10.20.0.1]/", PUBLIC, "allowed"),
        ("https://[fd12:3456::5efe:169.254.169.254]/", PUBLIC, "policy_metadata"),
    ] {
        assert_eq!(ask(url, address), word, "{url} at {address}");
    }
}

#[test]
fn an_exception_holds_for_its_tenants_alone() {
    let mut question = resolving_to(&["10.20.0.1"]);
    let mut billing = exception(&["10.20.0.0/16"], &["billing.corp"]);
    billing.tenants = vec![TenantId::new("billing"), TenantId::new("audit")];
    question.settings.exceptions = vec![billing];
    for (tenant, word) in
        [("billing", "allowed"), ("audit", "allowed"), ("acme", "policy_name"), ("Billing", "policy_name")]
    {
        question.tenant = TenantId::new(tenant);
        assert_eq!(question.ask("https://billing.corp/").word(), word, "{tenant}");
    }
}

/// Exceptions as wide as a configuration may hold them, for everything that is ever denied.
fn everything_opened() -> Vec<Exception> {
    let v4: Vec<String> = (0..=255).map(|first| format!("{first}.0.0.0/8")).collect();
    let v6: Vec<String> = (0..=0xffff).step_by(1).map(|first| format!("{first:x}::/16")).collect();
    let all: Vec<&str> = v4.iter().chain(&v6).map(String::as_str).collect();
    let mut hosts: Vec<String> = name::METADATA_NAMES.iter().map(|name| (*name).to_owned()).collect();
    hosts.extend(name::METADATA_NAMES.iter().map(|name| format!("*.{name}")));
    hosts.extend(["*.internal", "*.goog", "*.com", "*.net", "*.svc"].map(str::to_owned));
    vec![exception(&all, &hosts.iter().map(String::as_str).collect::<Vec<_>>())]
}

#[test]
fn no_exception_opens_metadata_or_what_is_ours() {
    let mut question = Question::default();
    question.settings.exceptions = everything_opened();
    question.ours.interfaces = vec![ip(OURS), ip("10.0.0.10"), ip("fd12::10"), ip("127.0.0.1")];
    question.ours.sources = vec![ip("203.0.113.10")];
    question.ours.name_servers = vec!["9.9.9.9:443".parse().unwrap()];
    for (host, word) in [
        ("169.254.169.254", "policy_metadata"),
        ("169.254.170.2", "policy_metadata"),
        ("100.100.100.200", "policy_metadata"),
        ("168.63.129.16", "policy_metadata"),
        ("[fd00:ec2::254]", "policy_metadata"),
        ("[::ffff:169.254.169.254]", "policy_metadata"),
        ("[::169.254.169.254]", "policy_metadata"),
        ("[::ffff:0:169.254.169.254]", "policy_metadata"),
        ("[64:ff9b::169.254.169.254]", "policy_metadata"),
        ("[64:ff9b:1::169.254.169.254]", "policy_metadata"),
        ("[64:ff9b:1:a9fe:a9:fe00::]", "policy_metadata"),
        ("[64:ff9b:1:a9:fe:a9fe::]", "policy_metadata"),
        ("[64:ff9b:1:0:a9:fea9:fe00::]", "policy_metadata"),
        ("[2002:a9fe:a9fe::1]", "policy_metadata"),
        ("[2001::5601:5601]", "policy_metadata"),
        ("[fe80::5efe:169.254.169.254]", "policy_metadata"),
        ("metadata.google.internal", "policy_name"),
        ("a.metadata.goog", "policy_name"),
        ("kubernetes", "policy_name"),
        (OURS, "policy_self"),
        ("10.0.0.10", "policy_self"),
        ("[fd12::10]", "policy_self"),
        ("203.0.113.10", "policy_self"),
        ("[::ffff:203.0.113.10]", "policy_self"),
        ("[2002:cb00:710a::]", "policy_self"),
        ("[64:ff9b::203.0.113.10]", "policy_self"),
        ("9.9.9.9", "policy_self"),
        ("0.0.0.0", "policy_self"),
        ("[::]", "policy_self"),
        ("10.0.0.11", "allowed"),
        ("169.254.169.252", "allowed"),
        ("[64:ff9b::93.184.216.34]", "allowed"),
        ("other.internal", "allowed"),
    ] {
        assert_eq!(question.ask(&format!("https://{host}/")).word(), word, "{host}");
    }
}

#[test]
fn a_translator_that_is_opened_is_dialled() {
    let dialled = |network: &str, host: &str| {
        let mut question = Question::default();
        question.settings.exceptions = vec![exception(&[network], &[])];
        let fate = question.ask(&format!("https://{host}/"));
        (fate.word(), fate.dialled.len())
    };
    assert_eq!(dialled("64:ff9b::/96", "[64:ff9b::93.184.216.34]"), ("allowed", 1));
    assert_eq!(dialled("64:ff9b::/96", "[64:ff9b::10.0.0.1]"), ("policy_address", 0));
    // Of the local prefix, the other readings carry addresses that are not public: the operator knows which is meant.
    assert_eq!(dialled("64:ff9b:1::/96", "[64:ff9b:1::93.184.216.34]"), ("allowed", 1));
    assert_eq!(dialled("10.0.0.0/8", "[64:ff9b::93.184.216.34]"), ("allowed", 0));
}

#[test]
fn deny_beats_allow_and_exceptions() {
    let mut question = resolving_to(&["10.20.0.1"]);
    question.settings.exceptions = vec![exception(&["10.20.0.0/16"], &["billing.corp"])];
    question.settings.tenants = vec![tenant("acme", Some(&["billing.corp", "*.receiver.com"]), &["no.receiver.com"])];
    question.settings.deny_networks =
        networks(&["10.20.30.0/24", "2.2.0.0/16", "::ffff:3.3.3.0/120", "2606:4700::/32"]);
    question.settings.deny_hosts = patterns(&["*.no.receiver.com", "4.4.4.4"]);
    for (url, address, word) in [
        ("https://billing.corp/", "10.20.0.1", "allowed"),
        ("https://billing.corp/", "10.20.30.1", "policy_denied"),
        ("https://a.receiver.com/", PUBLIC, "allowed"),
        ("https://no.receiver.com/", PUBLIC, "policy_denied"),
        ("https://a.no.receiver.com/", PUBLIC, "policy_denied"),
        ("https://receiver.com/", PUBLIC, "policy_not_allowed"),
        ("https://a.receiver.com/", "2.2.255.255", "policy_denied"),
        ("https://a.receiver.com/", "3.3.3.3", "policy_denied"),
        ("https://a.receiver.com/", "::ffff:3.3.3.3", "policy_denied"),
        ("https://a.receiver.com/", "64:ff9b::3.3.3.3", "policy_denied"),
        ("https://a.receiver.com/", "64:ff9b::202:202", "policy_denied"),
        ("https://a.receiver.com/", "2600::5efe:2.2.2.2", "policy_denied"),
        ("https://a.receiver.com/", "2606:4700::1", "policy_denied"),
        ("https://2.2.2.2/", PUBLIC, "policy_denied"),
        ("https://33686018/", PUBLIC, "policy_denied"),
        ("https://[::ffff:2.2.2.2]/", PUBLIC, "policy_denied"),
        ("https://4.4.4.4/", PUBLIC, "policy_denied"),
        ("https://0x04040404/", PUBLIC, "policy_denied"),
        ("https://[::ffff:4.4.4.4]/", PUBLIC, "policy_denied"),
        ("https://4.4.4.5/", PUBLIC, "policy_not_allowed"),
    ] {
        question.addresses = vec![ip(address)];
        assert_eq!(question.ask(url).word(), word, "{url} at {address}");
    }
}

#[test]
fn an_address_on_a_host_list_counts_under_every_name_and_in_every_form() {
    let on_lists = |operator: &[&str], allow: Option<&[&str]>, deny: &[&str], opened: &[&str]| {
        let mut question = Question::default();
        question.settings.deny_hosts = patterns(operator);
        question.settings.tenants = vec![tenant("acme", allow, deny)];
        if !opened.is_empty() {
            question.settings.exceptions = vec![exception(&[], opened)];
        }
        question
    };
    let literal = "https://93.184.216.34/";
    for (mut question, url, answer, word) in [
        // Denied by the operator, or by the tenant's own list.
        (on_lists(&[PUBLIC], None, &[], &[]), literal, PUBLIC, "policy_denied"),
        (on_lists(&[PUBLIC], None, &[], &[]), NAME, PUBLIC, "policy_denied"),
        (on_lists(&[PUBLIC], None, &[], &[]), NAME, "::ffff:93.184.216.34", "policy_denied"),
        (on_lists(&[PUBLIC], None, &[], &[]), NAME, "64:ff9b::5db8:d822", "policy_denied"),
        (on_lists(&[PUBLIC], None, &[], &[]), "https://[64:ff9b::5db8:d822]/", PUBLIC, "policy_denied"),
        (on_lists(&[PUBLIC], None, &[], &[]), NAME, OTHER, "allowed"),
        (on_lists(&[], None, &[PUBLIC], &[]), NAME, PUBLIC, "policy_denied"),
        (on_lists(&[], None, &["2606:4700::1"], &[]), NAME, "2606:4700:0::1", "policy_denied"),
        (on_lists(&["::ffff:93.184.216.34"], None, &[], &[]), NAME, PUBLIC, "policy_denied"),
        // Allowed: as itself, and behind names that are on no list.
        (on_lists(&[], Some(&[PUBLIC]), &[], &[]), literal, PUBLIC, "allowed"),
        (on_lists(&[], Some(&[PUBLIC]), &[], &[]), NAME, PUBLIC, "allowed"),
        (on_lists(&[], Some(&[PUBLIC]), &[], &[]), NAME, OTHER, "policy_not_allowed"),
        (on_lists(&[], Some(&[PUBLIC]), &[], &[]), "https://1.1.1.1/", OTHER, "policy_not_allowed"),
        (on_lists(&[], Some(&["receiver.com"]), &[], &[]), NAME, OTHER, "allowed"),
        (on_lists(&[], Some(&["receiver.com", PUBLIC]), &[], &[]), NAME, OTHER, "allowed"),
        (on_lists(&[], Some(&["elsewhere.com"]), &[], &[]), NAME, PUBLIC, "policy_not_allowed"),
        (on_lists(&[PUBLIC], Some(&[PUBLIC]), &[], &[]), NAME, PUBLIC, "policy_denied"),
        // An exception for a host that is an address opens that one.
        (on_lists(&[], None, &[], &["10.1.2.3"]), "https://10.1.2.3/", PUBLIC, "allowed"),
        (on_lists(&[], None, &[], &["10.1.2.3"]), NAME, "10.1.2.3", "allowed"),
        (on_lists(&[], None, &[], &["10.1.2.3"]), NAME, "10.1.2.4", "policy_address"),
        (on_lists(&["10.1.2.3"], None, &[], &["10.1.2.3"]), NAME, "10.1.2.3", "policy_denied"),
    ] {
        question.addresses = vec![ip(answer)];
        assert_eq!(question.ask(url).word(), word, "{url} at {answer}");
        // Report mode lets pass what a list alone would have blocked, and says so.
        question.settings.mode = PolicyMode::Report;
        let fate = question.ask(url);
        let by_list = ["policy_denied", "policy_not_allowed"].contains(&word);
        assert_eq!(fate.word(), if by_list { "allowed" } else { word }, "{url} at {answer}");
        assert_eq!(fate.would_block.map(Code::label), by_list.then_some(word), "{url} at {answer}");
    }
    // Beside an allowed address, one that is not makes the answer a mixed one.
    let mut question = on_lists(&[], Some(&[PUBLIC]), &[], &[]);
    question.addresses = vec![ip(PUBLIC), ip(OTHER)];
    assert_eq!(question.ask(NAME).word(), "policy_mixed");
    question.settings.tenants = vec![tenant("acme", None, &[OTHER])];
    assert_eq!(question.ask(NAME).word(), "policy_mixed");
}

#[test]
fn a_network_is_of_one_family() {
    for (denied, address, word) in [
        ("::/0", PUBLIC, "allowed"),
        ("::/0", "2606:4700::1", "policy_denied"),
        ("::/0", "::ffff:93.184.216.34", "allowed"),
        ("::/95", PUBLIC, "allowed"),
        ("0.0.0.0/0", "2606:4700::1", "allowed"),
        ("0.0.0.0/0", "::ffff:93.184.216.34", "policy_denied"),
        ("::ffff:0:0/96", PUBLIC, "policy_denied"),
        ("::ffff:93.184.216.34/128", PUBLIC, "policy_denied"),
        ("::ffff:93.184.216.35/128", PUBLIC, "allowed"),
    ] {
        let mut question = resolving_to(&[address]);
        question.settings.deny_networks = networks(&[denied]);
        assert_eq!(question.ask(NAME).word(), word, "{denied} and {address}");
    }
    // As an exception, the mapped form opens nothing: it would be wider than an exception may be.
    let mut question = resolving_to(&["10.0.0.1"]);
    question.settings.exceptions = vec![exception(&["::ffff:0:0/96", "::/16"], &[])];
    assert_eq!(question.ask(NAME).word(), "policy_address");
}

#[test]
fn host_lists_belong_to_their_tenant() {
    let mut question = resolving_to(&[OTHER]);
    question.settings.tenants = vec![
        tenant("acme", Some(&["receiver.com", "93.184.216.34", "[2606:4700::1]"]), &[]),
        tenant("beta", None, &["*.receiver.com"]),
        tenant("gamma", Some(&[]), &[]),
    ];
    for (who, url, word) in [
        ("acme", "https://receiver.com/", "allowed"),
        ("acme", "https://Receiver.com.:8443/", "allowed"),
        ("acme", "https://93.184.216.34/", "allowed"),
        ("acme", "https://1572395042/", "allowed"),
        ("acme", "https://[2606:4700:0::1]/", "allowed"),
        ("acme", "https://1.1.1.1/", "policy_not_allowed"),
        ("acme", "https://a.receiver.com/", "policy_not_allowed"),
        ("beta", "https://receiver.com/", "allowed"),
        ("beta", "https://a.receiver.com/", "policy_denied"),
        ("gamma", "https://receiver.com/", "policy_not_allowed"),
        ("delta", "https://a.receiver.com/", "allowed"),
    ] {
        question.tenant = TenantId::new(who);
        assert_eq!(question.ask(url).word(), word, "{who}: {url}");
    }
}

#[test]
fn an_alias_of_a_denied_host_is_denied() {
    let mut question = Question { cname_targets: vec!["Evil.NET.".to_owned()], ..Question::default() };
    question.settings.deny_hosts = patterns(&["evil.net"]);
    assert_eq!(question.ask(NAME).word(), "policy_denied");
    question.settings.mode = PolicyMode::Report;
    let fate = question.ask(NAME);
    assert_eq!((fate.word(), fate.would_block), ("allowed", Some(Code::PolicyDenied)));
    // An allow list is about what is asked for: receivers move behind aliases as they like.
    question.settings.deny_hosts.clear();
    question.settings.tenants = vec![tenant("acme", Some(&["receiver.com"]), &[])];
    assert_eq!(question.ask(NAME).word(), "allowed");
    // A denied alias anywhere in a long chain counts.
    question.cname_targets = (0..DNS_CNAMES_MAX).map(|n| format!("hop-{n}.net")).collect();
    assert_eq!(question.ask(NAME).word(), "allowed");
    question.cname_targets[DNS_CNAMES_MAX - 1] = "metadata.goog.".to_owned();
    assert_eq!(question.ask(NAME).word(), "policy_name");
}

#[test]
fn an_alias_of_a_suspended_host_is_suspended() {
    let mut question = Question::default();
    question.suspensions.stop_host("victim.net", "report 4711".into());
    assert_eq!(question.ask(NAME).word(), "allowed");
    for targets in [&["Victim.NET."][..], &["hop.net", "victim.net."], &["victim.net", "evil.net", "metadata.goog"]] {
        question.cname_targets = targets.iter().map(|&target| target.to_owned()).collect();
        let fate = question.ask(NAME);
        assert_eq!(fate.word(), "suspended", "{targets:?}");
        let message = fate.denial.expect("denied").message;
        assert!(message.contains("report 4711") && !message.contains("victim.net"), "{message}");
        assert!(fate.dialled.is_empty());
    }
    // It stands before what else is wrong with the answer, and report mode opens nothing of it.
    question.settings.deny_hosts = patterns(&["evil.net"]);
    question.settings.mode = PolicyMode::Report;
    question.addresses.push(ip("10.0.0.1"));
    assert_eq!(question.ask(NAME).word(), "suspended");
    // What lies under a suspended host is another host.
    question = Question { suspensions: question.suspensions, ..Question::default() };
    question.cname_targets = vec!["www.victim.net".to_owned()];
    assert_eq!(question.ask(NAME).word(), "allowed");
}

#[test]
fn a_suspended_address_is_reached_under_no_name_and_in_no_form() {
    let mut question = Question::default();
    question.suspensions.stop_host("93.184.216.34", "report 4711".into());
    question.suspensions.stop_host("2606:2800:220:1::1", "report 4712".into());
    for (answer, word) in [
        (&[OTHER][..], "allowed"),
        (&["93.184.216.34"], "suspended"),
        (&["::ffff:93.184.216.34"], "suspended"),
        (&["64:ff9b::5db8:d822"], "suspended"),
        (&["2606:2800:220:1::1"], "suspended"),
        // The whole answer, and before what else is wrong with it.
        (&[OTHER, "93.184.216.34"], "suspended"),
        (&["93.184.216.34", OTHER], "suspended"),
        (&["169.254.169.254", "93.184.216.34", "10.0.0.1"], "suspended"),
    ] {
        for mode in [PolicyMode::Enforce, PolicyMode::Report] {
            question.settings.mode = mode;
            question.addresses = answer.iter().map(|address| ip(address)).collect();
            let fate = question.ask(NAME);
            assert_eq!(fate.word(), word, "{answer:?}");
            let Some(denial) = fate.denial else { continue };
            assert!(denial.message.contains("report 471") && !denial.message.contains("184"), "{}", denial.message);
            assert!(fate.dialled.is_empty());
            let told = |verdict| matches!(verdict, Verdict::Denied(Code::Suspended));
            assert_eq!(fate.resolved.iter().filter(|(_, verdict)| told(*verdict)).count(), 1, "{:?}", fate.resolved);
        }
    }
    // A literal that carries it is a form of it.
    assert_eq!(question.ask("https://[64:ff9b::5db8:d822]/").word(), "suspended");
}

#[test]
fn loopback_is_opened_by_an_exception_but_for_our_own_listeners() {
    let ours = SelfAddrs {
        interfaces: vec![ip("127.0.0.1"), ip("::1"), ip("10.0.0.10")],
        sources: vec![ip("127.0.0.21"), ip("127.0.0.22")],
        listeners: vec![
            "127.0.0.1:8700".parse().unwrap(),
            "0.0.0.0:8702".parse().unwrap(),
            "[::]:8703".parse().unwrap(),
            "[::1]:8704".parse().unwrap(),
        ],
        name_servers: vec!["127.0.0.53:5353".parse().unwrap()],
    };
    let mut question = Question { ours, ..Question::default() };
    let closed = ["127.0.0.1:9000", "127.0.0.1:8700", "[::1]:9000", "127.0.0.21:9000", "[::ffff:127.0.0.1]:9000"];
    for host in closed {
        assert_eq!(question.ask(&format!("http://{host}/")).word(), "policy_address", "{host}");
    }
    question.settings.exceptions = vec![exception(&["127.0.0.0/8", "::1/128"], &["localhost", "*.localhost"])];
    for (host, word) in [
        ("127.0.0.1:9000", "allowed"),
        ("127.0.0.21:9000", "allowed"),
        ("127.9.9.9:9000", "allowed"),
        ("[::1]:9000", "allowed"),
        ("[::ffff:127.0.0.1]:9000", "allowed"),
        ("127.0.0.1:8700", "policy_self"),
        ("[::ffff:127.0.0.1]:8700", "policy_self"),
        ("2130706433:8700", "policy_self"),
        ("127.0.0.2:8700", "allowed"),
        ("127.0.0.1:8702", "policy_self"),
        ("127.9.9.9:8702", "policy_self"),
        ("[::1]:8702", "policy_self"),
        ("127.9.9.9:8703", "policy_self"),
        ("[::1]:8703", "policy_self"),
        ("[::1]:8704", "policy_self"),
        ("127.0.0.1:8704", "allowed"),
        ("127.0.0.53:5353", "policy_self"),
        ("127.0.0.53:5354", "allowed"),
        ("0.0.0.0:9000", "policy_address"),
        ("10.0.0.10:9000", "policy_address"),
    ] {
        assert_eq!(question.ask(&format!("http://{host}/")).word(), word, "{host}");
    }
    question.addresses = vec![ip("127.0.0.1")];
    assert_eq!(question.ask("http://a.localhost:9000/").word(), "allowed");
    assert_eq!(question.ask("http://a.localhost:8700/").word(), "policy_self");
    assert_eq!(question.ask("http://receiver.com:8700/").word(), "policy_self");
}

#[test]
fn what_is_ours_is_refused_on_the_ports_that_are_ours() {
    let ours = SelfAddrs {
        interfaces: vec![ip(OURS), ip("2606:4700::5")],
        sources: vec![ip("9.9.9.10")],
        listeners: vec!["1.1.1.1:8702".parse().unwrap(), "0.0.0.0:8700".parse().unwrap()],
        name_servers: vec!["8.8.8.8:5353".parse().unwrap(), "[2606:4700::1111]:5353".parse().unwrap()],
    };
    let mut question = Question { ours, ..Question::default() };
    for (host, word) in [
        ("198.41.0.4", "policy_self"),
        ("198.41.0.4:8443", "policy_self"),
        ("[::ffff:198.41.0.4]:8443", "policy_self"),
        ("[2606:4700::5]", "policy_self"),
        ("[2606:4700:0:0::5]:9000", "policy_self"),
        ("9.9.9.10:1024", "policy_self"),
        ("9.9.9.11:1024", "allowed"),
        ("1.1.1.1:8702", "policy_self"),
        ("1.1.1.1:8703", "allowed"),
        ("1.1.1.2:8700", "allowed"),
        ("8.8.8.8:5353", "policy_self"),
        ("8.8.8.8:443", "allowed"),
        ("[2606:4700::1111]:5353", "policy_self"),
        ("[2606:4700::1111]:5354", "allowed"),
        ("[2600::5efe:198.41.0.4]", "policy_self"),
    ] {
        assert_eq!(question.ask(&format!("https://{host}/")).word(), word, "{host}");
    }
    // Reflectors skip this rule alone.
    question.purpose = Purpose::Reflector;
    for (host, word) in [
        ("198.41.0.4", "allowed"),
        ("9.9.9.10:1024", "allowed"),
        ("1.1.1.1:8702", "allowed"),
        ("10.0.0.1", "policy_address"),
        ("169.254.169.254", "policy_metadata"),
        ("metadata.goog", "policy_name"),
        ("198.41.0.4:22", "policy_port"),
    ] {
        assert_eq!(question.ask(&format!("https://{host}/")).word(), word, "{host}");
    }
}

#[test]
fn suspensions_stop_tenants_workflows_and_hosts() {
    let mut question = Question::default();
    let acme = TenantId::new("acme");
    question.suspensions.workflows.insert((acme.clone(), "newsletter".into()), "spam".into());
    question.suspensions.stop_host("receiver.com", "complained".into());
    question.suspensions.stop_host("93.184.216.34", "complained".into());
    question.addresses = vec![ip(OTHER)];
    for (workflow, url, word) in [
        (None, "https://other.com/", "allowed"),
        (Some("invoices"), "https://other.com/", "allowed"),
        (Some("newsletter"), "https://other.com/", "suspended"),
        (None, "https://receiver.com/", "suspended"),
        (None, "https://RECEIVER.com.:8443/", "suspended"),
        (None, "https://a.receiver.com/", "allowed"),
        (None, "https://93.184.216.34/", "suspended"),
        (None, "https://1572395042/", "suspended"),
        (None, "https://[::ffff:93.184.216.34]/", "suspended"),
        (None, "https://receiver.com:22/", "policy_port"),
    ] {
        question.workflow = workflow;
        assert_eq!(question.ask(url).word(), word, "{workflow:?} {url}");
    }
    question.workflow = Some("newsletter");
    question.tenant = TenantId::new("beta");
    assert_eq!(question.ask("https://other.com/").word(), "allowed", "another tenant's workflow of the same name");

    let asker = |workflow| Asker { tenant: &acme, workflow };
    assert_eq!(question.suspensions.of(asker(Some("newsletter"))), Some("spam"));
    assert_eq!(question.suspensions.of(asker(None)), None);
    question.suspensions.tenants.insert(acme.clone(), "abuse".into());
    assert_eq!(question.suspensions.of(asker(Some("newsletter"))), Some("abuse"));
    let denial = Question { tenant: acme.clone(), ..question }.ask("https://other.com/").denial.unwrap();
    assert!(denial.message.contains("abuse"), "{}", denial.message);
}

#[test]
fn only_a_try_that_nothing_else_denied_counts_towards_the_scan_limit() {
    let mut settings = crate::policy::fixtures::settings();
    settings.distinct_destinations_per_minute = 1;
    settings.deny_hosts = patterns(&["*.no.com"]);
    let policy = Policy::new(&settings);
    let acme = TenantId::new("acme");
    let mut scan = ScanMemory::default();
    let mut judge = |url: &str| {
        let asker = Asker { tenant: &acme, workflow: None };
        let url = CheckedUrl::parse(url).unwrap();
        let judged = policy.judge_url(asker, &url, &Suspensions::default(), &mut scan, Timestamp::UNIX_EPOCH);
        judged.denial.map(|denial| denial.code)
    };
    for n in 0..10 {
        assert_eq!(judge(&format!("https://a{n}.no.com/")), Some(Code::PolicyDenied));
        assert_eq!(judge(&format!("https://a{n}.com:22/")), Some(Code::PolicyPort));
    }
    // A denied name is a try: names could be mapped as addresses can.
    assert_eq!(judge("https://a.corp/"), Some(Code::PolicyName));
    assert_eq!(judge("https://b.corp/"), Some(Code::PolicyScan));
    assert_eq!(judge("https://a.corp/again"), Some(Code::PolicyName));
}

#[test]
fn a_refusal_never_names_what_is_behind_a_name() {
    for (target, address) in [
        ("", "10.1.2.3"),
        ("", "169.254.169.254"),
        ("", OURS),
        ("", "2.2.2.2"),
        ("db.corp", PUBLIC),
        ("evil.net", PUBLIC),
        ("", "fd12::7"),
        ("", "64:ff9b::a01:203"),
    ] {
        for beside in [&[][..], &[OTHER]] {
            let mut question = resolving_to(&[&[address], beside].concat());
            question.cname_targets = Some(target.to_owned()).filter(|target| !target.is_empty()).into_iter().collect();
            question.ours.interfaces = vec![ip(OURS)];
            question.settings.deny_networks = networks(&["2.2.2.0/24"]);
            question.settings.deny_hosts = patterns(&["evil.net"]);
            let message = question.ask(NAME).denial.unwrap().message;
            assert!(message.contains("receiver.com") && message.contains(": "), "{message}");
            assert!(!message.contains(address) && (target.is_empty() || !message.contains(target)), "{message}");
            assert!(!message.chars().any(|c| c.is_ascii_digit()), "no part of an address: {message}");
        }
    }
    // What the author wrote may be named, with the reason.
    let message = Question::default().ask("https://0xa010203/").denial.unwrap().message;
    assert!(message.contains("10.1.2.3") && message.contains("10.0.0.0/8"), "{message}");
}

fn any_settings() -> impl Strategy<Value = PolicySettings> {
    let any_network = prop_oneof![
        (any::<u32>(), 8..=32_u8).prop_map(|(n, length)| IpNet::new(IpAddr::V4(n.into()), length).unwrap()),
        (any::<u128>(), 16..=128_u8).prop_map(|(n, length)| IpNet::new(IpAddr::V6(n.into()), length).unwrap()),
        proptest::sample::select(
            &[
                "10.0.0.0/8",
                "127.0.0.0/8",
                "169.254.0.0/16",
                "64:ff9b::/96",
                "fd00::/16",
                "fe80::/16",
                "2002::/16",
                "::/16"
            ][..]
        )
        .prop_map(|text| text.parse().unwrap()),
    ];
    let any_networks = || proptest::collection::vec(any_network.clone(), 0..4);
    (any_networks(), any_networks(), any::<bool>()).prop_map(|(opened, denied, report)| {
        let mut settings = crate::policy::fixtures::settings();
        settings.exceptions = vec![Exception { networks: opened, ..exception(&[], &[]) }];
        settings.deny_networks = denied;
        settings.mode = if report { PolicyMode::Report } else { PolicyMode::Enforce };
        settings
    })
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    let telling = [
        "169.254.169.254",
        "127.0.0.1",
        "10.0.0.10",
        OURS,
        PUBLIC,
        "::1",
        "fd00:ec2::254",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b::808:808",
        "::ffff:10.0.0.10",
        "2002:a9fe:a9fe::",
    ];
    prop_oneof![
        2 => proptest::sample::select(telling.to_vec()).prop_map(ip).boxed(),
        1 => any::<u32>().prop_map(|n| IpAddr::V4(n.into())).boxed(),
        1 => any::<u128>().prop_map(|n| IpAddr::V6(n.into())).boxed(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn whatever_is_configured_some_things_hold(
        settings in any_settings(),
        addresses in proptest::collection::vec(any_address(), 0..20),
    ) {
        let denied = settings.deny_networks.clone();
        let opened = settings.exceptions[0].networks.clone();
        let mut question = Question { settings, addresses: addresses.clone(), ..Question::default() };
        question.ours.interfaces = vec![ip("10.0.0.10"), ip(OURS), ip("127.0.0.1")];
        let fate = question.ask(NAME);

        // The answer is as long as what was looked at, and an address is dialled only where none was denied.
        prop_assert_eq!(fate.resolved.len(), addresses.len().min(DNS_ADDRESSES_MAX));
        let any_denied = fate.resolved.iter().any(|(_, verdict)| matches!(verdict, Verdict::Denied(_)));
        let any_allowed = fate.resolved.iter().any(|(_, verdict)| *verdict == Verdict::Allowed);
        prop_assert_eq!(fate.denial.is_some(), any_denied);
        prop_assert_eq!(fate.code() == Some(Code::PolicyMixed), any_denied && any_allowed);
        prop_assert_eq!(!fate.dialled.is_empty(), any_allowed && !any_denied);
        for address in &fate.dialled {
            prop_assert!(fate.resolved.iter().any(|(ip, verdict)| ip.to_canonical() == *address && *verdict == Verdict::Allowed));
            // Never these, whatever is opened.
            prop_assert!(!crate::policy::address::is_metadata(*address), "{}", address);
            prop_assert!(*address != ip("10.0.0.10") && *address != ip(OURS), "{}", address);
            prop_assert!(!denied.iter().any(|network| network.contains(address)), "{}", address);
            // Special only where it is opened.
            prop_assert!(
                crate::policy::address::special(*address).is_none() || opened.iter().any(|network| network.contains(address)),
                "{}", address
            );
        }
    }
}

#[test]
fn what_the_kernel_takes_for_its_own_is_ours_in_every_form() {
    let ours = SelfAddrs {
        interfaces: vec![ip("93.184.216.10")],
        listeners: vec!["0.0.0.0:8700".parse().unwrap(), "93.184.216.10:8701".parse().unwrap()],
        ..SelfAddrs::default()
    };
    let local = vec![ip("93.184.217.77"), ip("2606:2800:21f::77"), ip("10.9.9.9")];
    let mut question = Question { ours, local, ..Question::default() };
    for (host, word) in [
        ("93.184.217.77", "policy_self"),
        ("93.184.217.77:8700", "policy_self"),
        ("[::ffff:93.184.217.77]", "policy_self"),
        ("[64:ff9b::93.184.217.77]", "policy_self"),
        ("[2606:2800:21f::77]", "policy_self"),
        ("93.184.217.78", "allowed"),
        ("[2606:2800:21f::78]", "allowed"),
        ("10.9.9.9", "policy_address"),
    ] {
        assert_eq!(question.ask(&format!("http://{host}/")).word(), word, "{host}");
    }
    question.addresses = vec![ip("93.184.217.77")];
    assert_eq!(question.ask("http://receiver.example.com/").word(), "policy_self");
    question.purpose = Purpose::Reflector;
    assert_eq!(question.ask("http://receiver.example.com/").word(), "allowed");
    question.purpose = Purpose::Delivery;
    // An exception opens what it names, and never what we listen on.
    question.settings.exceptions = vec![exception(&["93.184.217.0/24", "10.9.9.0/24"], &[])];
    for (host, word) in [
        ("93.184.217.77", "allowed"),
        ("93.184.217.77:8700", "policy_self"),
        ("[::ffff:93.184.217.77]:8700", "policy_self"),
        // Listened on at another address alone.
        ("93.184.217.77:8701", "allowed"),
        ("10.9.9.9", "allowed"),
        ("10.9.9.9:8700", "policy_self"),
        ("[2606:2800:21f::77]", "policy_self"),
        ("93.184.216.10", "policy_self"),
    ] {
        assert_eq!(question.ask(&format!("http://{host}/")).word(), word, "{host}");
    }
}

#[test]
fn an_address_says_what_it_was_judged_for() {
    let question = Question::default();
    let url = CheckedUrl::parse("https://receiver.example.com:8443/x").unwrap();
    let asker = Asker { tenant: &question.tenant, workflow: None };
    let (ours, suspensions) = (SelfAddrs::default(), Suspensions::default());
    let address = ip("93.184.216.34");
    for (local, purpose) in [(&[][..], Purpose::Delivery), (&[address], Purpose::Reflector)] {
        let by = Circumstances { ours: &ours, local, suspensions: &suspensions, purpose };
        let answer = Policy::new(&question.settings).judge_answer(asker, url.destination(), &[], &[address], by);
        let [checked] = &answer.addresses[..] else { panic!("{answer:?}") };
        let errand = Errand { tenant: question.tenant.clone(), destination: url.destination().clone(), purpose };
        assert_eq!((checked.errand(), checked.socket_addr()), (&errand, SocketAddr::new(address, 8443)));
        assert_eq!(checked.may_be_local(), !local.is_empty());
    }
}

#[test]
fn an_endpoint_is_judged_for_this_node_itself_on_the_port_that_it_names() {
    let to = |host: &str, port| Destination {
        scheme: Scheme::Smtps,
        host: host.parse().map_or_else(|_| Host::Name(host.into()), Host::Address),
        port,
    };
    let acme = TenantId::new("acme");
    let asker = Asker { tenant: &acme, workflow: Some("w") };
    let mut stopped = Suspensions::default();
    stopped.workflows.insert((acme.clone(), "w".into()), "spam".into());
    let mut of_host = Suspensions::default();
    of_host.stop_host("mail.example.com", "it loops".into());
    let none = Suspensions::default();
    let settings = |change: fn(&mut PolicySettings)| {
        let mut settings = settings();
        settings.tenants = vec![tenant("acme", Some(&["other.com"]), &["mail.example.com"])];
        change(&mut settings);
        settings
    };
    fn only(kind: Kind, tenants: &[&str]) -> Vec<Exception> {
        let tenants = tenants.iter().map(|id| TenantId::new(*id)).collect();
        vec![Exception { destinations: vec![kind], tenants, ..exception(&[], &["mail.corp"]) }]
    }
    type Change = fn(&mut PolicySettings);
    let rows: Vec<(Destination, &Suspensions, Change, &str)> = vec![
        // No port is a bad one, and neither are the tenant's lists asked.
        (to("mail.example.com", 465), &none, |_| {}, "allowed"),
        (to("mail.example.com", 25), &none, |_| {}, "allowed"),
        (to("mail.example.com", 465), &stopped, |_| {}, "suspended"),
        (to("mail.example.com", 465), &of_host, |_| {}, "suspended"),
        (to("mail.example.com", 465), &none, |all| all.deny_hosts = patterns(&["*.example.com"]), "policy_denied"),
        (
            to("192.0.2.25", 465),
            &none,
            |all| all.deny_networks = vec!["192.0.2.0/24".parse().unwrap()],
            "policy_denied",
        ),
        (to("mail.corp", 465), &none, |_| {}, "policy_name"),
        (to("mail.corp", 465), &none, |all| all.exceptions = vec![exception(&[], &["mail.corp"])], "allowed"),
        (to("mail.corp", 465), &none, |all| all.exceptions = only(Kind::Email, &[]), "allowed"),
        (to("mail.corp", 465), &none, |all| all.exceptions = only(Kind::Http, &[]), "policy_name"),
        (to("mail.corp", 465), &none, |all| all.exceptions = only(Kind::Email, &["acme"]), "policy_name"),
        (
            to("metadata.google.internal", 465),
            &none,
            |all| all.exceptions = vec![exception(&[], &["*.internal"])],
            "policy_name",
        ),
    ];
    for (to, suspensions, change, word) in rows {
        let policy = Policy::new(&settings(change));
        let denial = policy.judge_endpoint(asker, &to, suspensions, Purpose::Relay);
        assert_eq!(denial.as_ref().map_or("allowed", |denial| denial.code.label()), word, "{to:?}");
    }
}

#[test]
fn an_exception_for_one_kind_of_destination_opens_nothing_to_another() {
    for (kinds, request, relay, reflector) in [
        (&[][..], "allowed", "allowed", "allowed"),
        (&[Kind::Http], "allowed", "policy_address", "policy_address"),
        (&[Kind::Email], "policy_address", "allowed", "policy_address"),
        (&[Kind::Email, Kind::Http], "allowed", "allowed", "policy_address"),
    ] {
        let mut question = Question::default();
        let opened = Exception { destinations: kinds.to_vec(), ..exception(&["10.0.0.0/8"], &[]) };
        question.settings.exceptions = vec![opened];
        for (purpose, word) in [(Purpose::Delivery, request), (Purpose::Relay, relay), (Purpose::Reflector, reflector)]
        {
            question.purpose = purpose;
            assert_eq!(question.verdict(ip("10.1.2.3")).label(), word, "{kinds:?} {purpose:?}");
            // No exception opens these.
            assert_eq!(question.verdict(ip("169.254.169.254")).label(), "policy_metadata", "{purpose:?}");
        }
    }
}

#[test]
fn a_relay_may_be_an_address_of_ours_and_a_tenants_lists_are_not_for_it() {
    let mut question = Question::default();
    question.settings.tenants = vec![tenant("acme", Some(&["other.com"]), &[PUBLIC])];
    question.ours.interfaces = vec![ip(PUBLIC)];
    for (purpose, word) in [(Purpose::Delivery, "policy_denied"), (Purpose::Relay, "allowed")] {
        question.purpose = purpose;
        assert_eq!(question.verdict(ip(PUBLIC)).label(), word);
    }
}
