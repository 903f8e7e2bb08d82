use std::{collections::HashMap, path::PathBuf, time::Duration};

use super::*;
use crate::config::SourceSettings;
use crate::publish::PublishedList;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

const NOW: &str = "2026-11-22T12:00:00Z";

fn egress(list: &str, pairs: &[(&str, &str, &str)]) -> Egress {
    let pairs = pairs.iter().map(|(public, bind, pool)| SourceSettings {
        public: public.parse().unwrap(),
        bind: bind.parse().unwrap(),
        pool: Arc::from(*pool),
    });
    Egress {
        published: Arc::new(PublishedList::parse(list).unwrap()),
        published_path: PathBuf::new(),
        notice: Duration::ZERO,
        sources: pairs.collect(),
        verify: None,
    }
}

fn many(count: u8) -> Egress {
    let addresses: Vec<String> = (1..=count).map(|last| format!("127.0.0.{last}")).collect();
    let pairs: Vec<_> = addresses.iter().map(|address| (address.as_str(), address.as_str(), "default")).collect();
    egress(&addresses.join("\n"), &pairs)
}

fn sources(egress: &Egress) -> Sources {
    Sources::new(egress, &Notice::given(), None)
}

fn chosen(sources: &Sources, tenant: &str, host: &str) -> Vec<String> {
    let list = sources.choose("default", Family::V4, &TenantId::new(tenant), host, at(NOW));
    list.iter().map(|source| source.public().to_string()).collect()
}

#[test]
fn a_source_that_another_node_sends_from_is_not_used() {
    let sources = sources(&many(2));
    let first = sources.all()[0].clone();
    sources.held_elsewhere(&HashMap::from([(first.public(), "other".to_owned())]));
    assert_eq!(chosen(&sources, "acme", "api.example.com"), ["127.0.0.2"]);
    assert_eq!(sources.unusable(&first, at(NOW)).as_deref(), Some("127.0.0.1 is used by node other of this tier"));
    for purpose in [Purpose::Delivery, Purpose::Reflector] {
        assert!(!sources.may_leave(&first, purpose, at(NOW)));
    }
    // A reload forgets it as little as the rest of what was found out.
    let again = Sources::new(&many(2), &Notice::given(), Some(&sources));
    assert!(again.unusable(&first, at(NOW)).is_some());
    again.held_elsewhere(&HashMap::new());
    assert_eq!(again.unusable(&first, at(NOW)), None);
}

#[test]
fn a_tenants_host_sees_the_same_address_in_every_process() {
    let sources = sources(&many(4));
    // Frozen: a new way of hashing would move every receiver to another address.
    for (tenant, host, order) in [
        ("acme", "api.example.com", "127.0.0.2 127.0.0.1 127.0.0.4 127.0.0.3"),
        ("acme", "hooks.example.com", "127.0.0.1 127.0.0.4 127.0.0.2 127.0.0.3"),
        ("other", "api.example.com", "127.0.0.1 127.0.0.3 127.0.0.4 127.0.0.2"),
    ] {
        assert_eq!(chosen(&sources, tenant, host).join(" "), order, "{tenant} {host}");
    }
}

#[test]
fn every_source_gets_its_share() {
    let sources = sources(&many(8));
    let mut counts: HashMap<String, u32> = HashMap::new();
    for host in 0..8000 {
        *counts.entry(chosen(&sources, "acme", &format!("h{host}.example.com")).remove(0)).or_default() += 1;
    }
    assert_eq!(counts.len(), 8);
    for (source, count) in counts {
        assert!((850..=1150).contains(&count), "{source} has {count} of 8000 hosts");
    }
}

#[test]
fn a_source_that_goes_moves_only_its_own_hosts() {
    let all = sources(&many(5));
    let gone = all.all().remove(2);
    let before: Vec<_> = (0..500).map(|host| chosen(&all, "acme", &format!("h{host}"))).collect();
    all.not_on_host(&gone, at(NOW));
    for (host, before) in before.iter().enumerate() {
        let expected: Vec<_> = before.iter().filter(|ip| **ip != gone.public().to_string()).cloned().collect();
        assert_eq!(chosen(&all, "acme", &format!("h{host}")), expected);
    }
}

#[test]
fn pool_and_family_are_never_crossed() {
    let list = "192.0.2.1\n192.0.2.2\n2001:db8::1";
    let sources = sources(&egress(
        list,
        &[
            ("192.0.2.1", "10.0.0.1", "default"),
            ("192.0.2.2", "10.0.0.2", "fixed"),
            ("2001:db8::1", "2001:db8::1", "default"),
        ],
    ));
    let tenant = TenantId::new("acme");
    for (pool, family, expected, has) in [
        ("default", Family::V4, vec!["192.0.2.1"], true),
        ("default", Family::V6, vec!["2001:db8::1"], true),
        ("fixed", Family::V4, vec!["192.0.2.2"], true),
        ("fixed", Family::V6, vec![], false),
        ("none", Family::V4, vec![], false),
    ] {
        let chosen = sources.choose(pool, family, &tenant, "example.com", at(NOW));
        let chosen: Vec<_> = chosen.iter().map(|source| source.public().to_string()).collect();
        assert_eq!((chosen, sources.pool_has(pool, family)), (expected.iter().map(|s| s.to_string()).collect(), has));
    }
    assert!(sources.pool_usable("fixed", at(NOW)));
    assert!(!sources.pool_usable("none", at(NOW)));
}

#[test]
fn dates_and_notice_decide_whether_it_carries() {
    let list = "192.0.2.1 announced=2026-11-22 active=2026-11-29\n192.0.2.2 retires=2026-11-22\n192.0.2.3\n192.0.2.4";
    let pairs = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"].map(|ip| (ip, ip, "default"));
    let first = HashMap::from([("192.0.2.3".parse().unwrap(), at("2026-11-20T00:00:00Z"))]);
    let notice = Notice::new(&first, at("2026-01-01T00:00:00Z"), Duration::from_secs(7 * 86_400));
    let sources = Sources::new(&egress(list, &pairs), &notice, None);
    let reasons: Vec<_> = sources.all().iter().map(|source| sources.unusable(source, at(NOW))).collect();
    assert_eq!(
        reasons,
        [
            Some("192.0.2.1 is announced, and active from 2026-11-29".to_owned()),
            Some("192.0.2.2 retired on 2026-11-22".to_owned()),
            Some("192.0.2.3 was first published too lately: its notice ends 2026-11-27".to_owned()),
            None,
        ]
    );
    assert_eq!(sources.unusable(&sources.all()[0], at("2026-11-29T00:00:00Z")), None);
}

#[test]
fn an_address_missing_from_the_host_is_tried_again() {
    let sources = sources(&many(1));
    let source = sources.all().remove(0);
    sources.not_on_host(&source, at(NOW));
    assert!(!sources.any_usable(at("2026-11-22T12:00:09.999Z")));
    assert!(sources.any_usable(at("2026-11-22T12:00:10Z")));
    sources.not_on_host(&source, at(NOW));
    sources.on_host(&source);
    assert!(sources.any_usable(at(NOW)));
}

#[test]
fn only_a_drift_takes_a_source_out() {
    let sources = sources(&many(1));
    let source = sources.all().remove(0);
    for (state, usable) in [
        (Verified::Unknown, true),
        (Verified::Yes, true),
        (Verified::Unverified, true),
        (Verified::Drift, false),
        (Verified::Yes, true),
    ] {
        sources.verified(&source, state);
        assert_eq!((sources.verification(&source), sources.any_usable(at(NOW))), (state, usable));
    }
}

fn verified(mut egress: Egress) -> Egress {
    let reflectors = vec!["https://reflector.example.com/whoami".to_owned()];
    egress.verify = Some(crate::config::Verify { reflectors, every: Duration::from_secs(900) });
    egress
}

#[test]
fn a_reload_without_reflectors_forgets_what_they_said() {
    let old = sources(&verified(many(1)));
    let source = old.all().remove(0);
    old.verified(&source, Verified::Drift);
    let asked = Sources::new(&verified(many(1)), &Notice::given(), Some(&old));
    assert!(!asked.any_usable(at(NOW)), "still asked: still out");
    let unasked = Sources::new(&many(1), &Notice::given(), Some(&old));
    assert_eq!(unasked.verification(&source), Verified::Unknown);
    assert!(unasked.any_usable(at(NOW)));
}

#[test]
fn a_reload_keeps_the_health_of_what_stays() {
    let old = sources(&many(2));
    let [first, second] = <[_; 2]>::try_from(old.all()).unwrap();
    old.not_on_host(&first, at(NOW));
    old.verified(&second, Verified::Drift);
    let new = Sources::new(&verified(many(3)), &Notice::given(), Some(&old));
    assert_eq!(chosen(&new, "acme", "example.com"), ["127.0.0.3"]);
    // Shared, not copied: what a delivery begun before the reload finds out counts after it.
    old.on_host(&first);
    assert_eq!(new.unusable(&first, at(NOW)), None);
    let fewer = Sources::new(&many(1), &Notice::given(), Some(&new));
    assert_eq!(fewer.unusable(&second, at(NOW)), Some("127.0.0.2 is no longer configured".to_owned()));
}

#[test]
fn a_source_that_became_another_pools_is_left_from_no_more_by_whoever_chose_it_before() {
    let list = "127.0.0.1\n127.0.0.2";
    let before = sources(&egress(list, &[("127.0.0.1", "127.0.0.1", "default"), ("127.0.0.2", "127.0.0.2", "other")]));
    let after = egress(list, &[("127.0.0.1", "127.0.0.1", "other"), ("127.0.0.2", "127.0.0.2", "other")]);
    let after = Sources::new(&after, &Notice::given(), Some(&before));
    let may = |source: &Source| {
        [Purpose::Delivery, Purpose::Reflector].map(|purpose| after.may_leave(source, purpose, at(NOW)))
    };
    let [moved, stays] = [0, 1].map(|index| before.all().remove(index));
    assert_eq!((may(&moved), may(&stays)), ([false, true], [true, true]), "it is verified all the same");
    assert!(after.may_leave(&after.all()[0], Purpose::Delivery, at(NOW)));
}

fn neighbour(name: &str, serves: &[(&str, Family)]) -> Neighbour {
    let serves = serves.iter().map(|(pool, family)| (Arc::from(*pool), *family)).collect();
    Neighbour { name: name.into(), life: 1, serves }
}

#[test]
fn of_many_nodes_one_sends_to_a_tenants_host_whoever_asks_and_whoever_else_goes() {
    let all = ["a", "b", "c"].map(|name| neighbour(name, &[("own", Family::V4)]));
    let others = |without: &[&str]| {
        let none = neighbour("none", &[("default", Family::V4), ("own", Family::V6)]);
        let rest = all.iter().filter(|node| !without.contains(&&*node.name)).cloned();
        Neighbours(rest.chain([none]).collect())
    };
    let mut chosen = HashMap::<String, usize>::new();
    for n in 0..90 {
        let (tenant, host) = (TenantId::new(format!("t{}", n % 9)), format!("{n}.example.com"));
        let ask = |neighbours: &Neighbours, own: Option<&str>| {
            let other = neighbours.choose("own", &[Family::V4], &tenant, &host, own);
            other.map(|node| node.name.to_string()).or(own.map(str::to_owned))
        };
        let one = ask(&others(&[]), None).expect("one of three");
        // Each of those that can says the same of itself and of the others.
        for own in ["a", "b", "c"] {
            assert_eq!(ask(&others(&[own]), Some(own)).as_deref(), Some(one.as_str()), "{own} of {host}");
        }
        // Whoever goes takes only its own with it.
        for gone in ["a", "b", "c"].into_iter().filter(|gone| *gone != one) {
            assert_eq!(ask(&others(&[gone]), None).as_deref(), Some(one.as_str()), "without {gone}: {host}");
        }
        *chosen.entry(one).or_default() += 1;
    }
    assert!(chosen.len() == 3 && chosen.values().all(|count| *count > 15), "{chosen:?}");
    // Nobody, where nobody can.
    let tenant = TenantId::new("t");
    assert_eq!(others(&["a", "b", "c"]).choose("own", &[Family::V4], &tenant, "h", None), None);
    assert!(others(&[]).choose("own", &[Family::V6], &tenant, "h", None).is_some_and(|node| &*node.name == "none"));
    assert!(others(&[]).has_none("none", "third") && !others(&[]).has_none("none", "own"));
    assert!(!others(&[]).has_none("unknown", "own"), "of one that is not there nothing is known");
}
