use proptest::prelude::*;

use super::*;
use crate::policy::fixtures::{Question, exception, patterns, settings};

const METADATA: &[&str] = &[
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "instance-data",
    "instance-data.ec2.internal",
    "metadata.tencentyun.com",
    "metadata.packet.net",
    "metadata.platformequinix.com",
    "rancher-metadata",
    "kubernetes",
    "kubernetes.default.svc",
    "host.docker.internal",
    "gateway.docker.internal",
];

const SPECIAL: &[&str] = &[
    "localhost",
    "local",
    "internal",
    "intranet",
    "lan",
    "home",
    "corp",
    "private",
    "localdomain",
    "home.arpa",
    "svc",
    "cluster.local",
    "arpa",
    "onion",
    "invalid",
    "test",
    "example",
    "alt",
];

#[test]
fn every_name_of_the_tables_is_denied_in_every_guise() {
    // An exception for all of them opens the special-use ones and none of the metadata ones.
    let mut opened = Question::default();
    let mut under = settings();
    for name in METADATA.iter().chain(SPECIAL) {
        under.exceptions.push(exception(&[], &[name, &format!("*.{name}")]));
    }
    opened.settings = under;
    let default = Question::default();

    let mut rows = 0;
    let mut check = |host: String, closed: &str, with_exception: &str| {
        let url = format!("https://{host}/");
        assert_eq!(default.ask(&url).word(), closed, "{host}");
        assert_eq!(opened.ask(&url).word(), with_exception, "{host} with an exception");
        rows += 1;
    };
    for (names, with_exception) in [(METADATA, "policy_name"), (SPECIAL, "allowed")] {
        for name in names {
            check((*name).to_owned(), "policy_name", with_exception);
            check(format!("{name}."), "policy_name", with_exception);
            check(name.to_uppercase(), "policy_name", with_exception);
            check(format!("a.{name}"), "policy_name", with_exception);
            check(format!("a.b-c.{name}."), "policy_name", with_exception);
            check(name.replace('.', "\u{3002}"), "policy_name", with_exception);
            check(format!("{name}\u{ff0e}"), "policy_name", with_exception);
            check(format!("\u{ad}{name}"), "policy_name", with_exception);
            check(wide(name), "policy_name", with_exception);
            check(format!("%{:02x}{}", name.as_bytes()[0], &name[1..]), "policy_name", with_exception);
            // Not the name and not under it.
            check(format!("{name}.receiver.com"), "allowed", "allowed");
        }
    }
    for name in ["metadata.goog", "metadata.tencentyun.com", "metadata.packet.net", "metadata.platformequinix.com"] {
        check(format!("x{name}"), "allowed", "allowed");
    }
    for suffix in SPECIAL.iter().filter(|suffix| !suffix.contains('.')) {
        check(format!("a.x{suffix}"), "allowed", "allowed");
    }
    println!("{rows} names");
}

/// The fullwidth forms of ASCII letters and digits.
fn wide(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_ascii_alphanumeric() { char::from_u32(u32::from(c) + 0xfee0).unwrap_or(c) } else { c })
        .collect()
}

#[test]
fn a_single_label_is_no_public_name() {
    let default = Question::default();
    for host in ["a", "com", "intranet-1", "ip6-localhost", "broadcasthost", "db", "redis.", "xn--p1ai", "рф", "_"] {
        assert_eq!(default.ask(&format!("http://{host}/")).word(), "policy_name", "{host}");
    }
    let mut opened = Question::default();
    opened.settings.exceptions = vec![exception(&[], &["receiver"])];
    assert_eq!(opened.ask("http://receiver/").word(), "allowed");
    assert_eq!(opened.ask("http://other/").word(), "policy_name");
}

#[test]
fn the_target_of_an_alias_is_judged_as_a_name() {
    for (target, word) in [
        ("receiver.cdn.net.", "allowed"),
        ("Receiver.CDN.net", "allowed"),
        ("metadata.google.internal.", "policy_name"),
        ("METADATA.GOOGLE.INTERNAL", "policy_name"),
        ("a.metadata.goog", "policy_name"),
        ("db.corp.", "policy_name"),
        ("localhost.", "policy_name"),
        ("localhost", "policy_name"),
        ("router", "policy_name"),
        ("strange name.local.", "policy_name"),
        ("a..internal.", "policy_name"),
        ("_dmarc.receiver.net.", "allowed"),
        ("", "policy_name"),
        (".", "policy_name"),
    ] {
        let question =
            Question { cname_targets: vec!["first.net.".to_owned(), target.to_owned()], ..Question::default() };
        let fate = question.ask("https://receiver.example.com/");
        assert_eq!(fate.word(), word, "{target}");
        assert!(
            fate.denial.is_none_or(|denial| target.len() < 2 || !denial.message.contains(target.trim_end_matches('.')))
        );
    }
}

#[test]
fn patterns_are_exact_names_addresses_or_all_names_under_one() {
    let exact = |name: &str| Ok(HostPattern::Exact(name.into()));
    let under = |name: &str| Ok(HostPattern::Under(name.into()));
    for (text, pattern) in [
        ("example.com", exact("example.com")),
        ("EXAMPLE.com.", exact("example.com")),
        ("bücher.example.com", exact("xn--bcher-kva.example.com")),
        ("localhost", exact("localhost")),
        ("a_b.example.com", exact("a_b.example.com")),
        ("*.example.com", under("example.com")),
        ("*.com", under("com")),
        ("*.BÜCHER.de.", under("xn--bcher-kva.de")),
        ("93.184.216.34", exact("93.184.216.34")),
        ("::1", exact("::1")),
        ("[2001:DB8::1]", exact("2001:db8::1")),
        ("::ffff:10.0.0.1", exact("10.0.0.1")),
        ("１０.0.0.1", exact("10.0.0.1")),
    ] {
        assert_eq!(HostPattern::parse(text), pattern, "{text}");
    }
    for text in [
        "",
        ".",
        "..",
        "*",
        "*.",
        "**.example.com",
        "*example.com",
        "a.*.com",
        "www.*",
        "*.*.com",
        "*.10.0.0.1",
        "*.1",
        ".example.com",
        "example..com",
        "https://example.com",
        "example.com/",
        "example.com/path",
        "example.com:443",
        "10.0.0.0/8",
        "[::1]:80",
        "[::1",
        "::1]",
        "user@example.com",
        "exa mple.com",
        " example.com",
        "example.com\n",
        "%65xample.com",
        "exam\\ple.com",
        "127.1",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "2130706433",
        "1.2.3.4.5",
        "256.0.0.1",
        "xn--a",
        "*.::1",
        "a,b",
        "a.b;c",
        "é*.com",
        "fe80::1%eth0",
    ] {
        let problem = HostPattern::parse(text).expect_err(text);
        assert!(problem.contains("*.example.com"), "{problem}");
    }
    assert!(HostPattern::parse(".example.com").unwrap_err().contains("`*.example.com`"));
    assert!(HostPattern::parse("10.0.0.0/8").unwrap_err().contains("deny_networks"));
    assert!(HostPattern::parse("example.com:443").unwrap_err().contains("port"));
}

#[test]
fn a_pattern_covers_what_it_says() {
    for (pattern, host, covered) in [
        ("example.com", "example.com", true),
        ("example.com", "www.example.com", false),
        ("example.com", "xexample.com", false),
        ("*.example.com", "example.com", false),
        ("*.example.com", "www.example.com", true),
        ("*.example.com", "a.b.c.example.com", true),
        ("*.example.com", "xexample.com", false),
        ("*.example.com", "www.example.com.evil.net", false),
        ("*.com", "example.com", true),
        ("10.0.0.1", "10.0.0.1", true),
        ("10.0.0.1", "110.0.0.1", false),
        ("*.b", "a.b", true),
        ("*.b", "b", false),
    ] {
        assert_eq!(PatternSet::new(&patterns(&[pattern])).matches(host), covered, "{pattern} and {host}");
    }
}

#[test]
fn names_that_dns_cannot_hold_are_refused() {
    let label = "a".repeat(63);
    let longest = format!("{label}.{label}.{label}.{}", "b".repeat(61));
    assert_eq!(longest.len(), 253);
    for (host, word) in [
        (longest.clone(), "allowed"),
        (format!("{longest}."), "allowed"),
        (format!("{longest}b"), "policy_url"),
        (format!("{label}a.com"), "policy_url"),
        (format!("{label}.com"), "allowed"),
    ] {
        assert_eq!(Question::default().ask(&format!("https://{host}/")).word(), word, "{host}");
    }
}

proptest! {
    #[test]
    fn the_canonical_form_is_its_own(name in "\\PC{1,40}") {
        if let Ok(once) = canonical(&name) {
            prop_assert_eq!(canonical(&once), Ok(once));
        }
    }

    #[test]
    fn a_set_covers_what_one_of_its_patterns_covers(
        exact in proptest::collection::vec("[ab]{1,2}(\\.[ab]{1,2}){0,3}", 0..4),
        under in proptest::collection::vec("[ab]{1,2}(\\.[ab]{1,2}){0,3}", 0..4),
        host in "[ab]{1,2}(\\.[ab]{1,2}){0,4}",
    ) {
        let mut list: Vec<HostPattern> = exact.iter().map(|name| HostPattern::Exact(name.as_str().into())).collect();
        list.extend(under.iter().map(|name| HostPattern::Under(name.as_str().into())));
        let expected = exact.contains(&host) || under.iter().any(|parent| host.ends_with(&format!(".{parent}")));
        prop_assert_eq!(PatternSet::new(&list).matches(&host), expected);
    }
}
