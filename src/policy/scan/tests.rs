use super::*;
use crate::policy::CheckedUrl;

fn at(millisecond: i64) -> Timestamp {
    Timestamp::from_millisecond(1_800_000_000_000 + millisecond).unwrap()
}

fn destination(url: &str) -> Destination {
    CheckedUrl::parse(url).unwrap().destination().clone()
}

fn nth(n: usize) -> Destination {
    destination(&format!("https://host-{n}.example.com/"))
}

fn acme() -> TenantId {
    TenantId::new("acme")
}

#[test]
fn one_distinct_pair_too_many_is_refused_until_one_leaves_the_window() {
    let mut memory = ScanMemory::default();
    for n in 0..3 {
        assert!(memory.admit(&acme(), &nth(n), 3, at(n as i64 * 1000)));
    }
    assert!(!memory.admit(&acme(), &nth(3), 3, at(3_000)));
    assert!(!memory.admit(&acme(), &nth(3), 3, at(59_999)));
    assert!(memory.admit(&acme(), &nth(3), 3, at(60_000)), "the first left the window at 60 s");
    assert!(!memory.admit(&acme(), &nth(4), 3, at(60_999)));
    assert!(memory.admit(&acme(), &nth(4), 3, at(61_000)));
}

#[test]
fn a_pair_tried_again_counts_once_and_stays() {
    let mut memory = ScanMemory::default();
    for second in 0..1000 {
        assert!(memory.admit(&acme(), &nth(0), 1, at(second * 1000)));
    }
    assert!(!memory.admit(&acme(), &nth(1), 1, at(999_999 + 58_000)));
    assert!(memory.admit(&acme(), &nth(1), 1, at(999_000 + 60_000)));
}

#[test]
fn a_pair_is_a_host_and_a_port_whatever_the_scheme_and_the_spelling() {
    let mut memory = ScanMemory::default();
    for (url, admitted) in [
        ("https://a.example.com/", true),
        ("https://a.example.com:443/other?path", true),
        ("http://A.EXAMPLE.com.:443/", true),
        ("https://93.184.216.34/", true),
        ("https://[::ffff:93.184.216.34]/", true),
        ("https://0x5db8d822/", true),
        ("http://a.example.com/", false),
        ("https://a.example.com:8443/", false),
        ("https://b.example.com/", false),
        ("https://93.184.216.35/", false),
    ] {
        assert_eq!(memory.admit(&acme(), &destination(url), 2, at(0)), admitted, "{url}");
    }
}

#[test]
fn tenants_do_not_share_a_limit() {
    let mut memory = ScanMemory::default();
    assert!(memory.admit(&acme(), &nth(0), 1, at(0)));
    assert!(!memory.admit(&acme(), &nth(1), 1, at(0)));
    assert!(memory.admit(&TenantId::new("other"), &nth(1), 1, at(0)));
}

#[test]
fn a_lower_limit_holds_at_once() {
    let mut memory = ScanMemory::default();
    assert!((0..10).all(|n| memory.admit(&acme(), &nth(n), 10, at(0))));
    assert!(memory.admit(&acme(), &nth(0), 2, at(1)), "a pair that is known is no new one");
    assert!(!memory.admit(&acme(), &nth(10), 2, at(1)));
    assert!(!memory.admit(&TenantId::new("other"), &nth(0), 0, at(1)));
}

#[test]
fn memory_is_bounded_by_the_limit_and_by_who_is_active() {
    let mut memory = ScanMemory::default();
    for n in 0..500 {
        memory.admit(&acme(), &nth(n), 100, at(n as i64));
        memory.admit(&acme(), &nth(n), 100, at(n as i64));
    }
    let tries = &memory.tenants[&acme()];
    assert_eq!((tries.last.len(), tries.by_time.len()), (100, 100));

    for n in 0..1000 {
        memory.admit(&TenantId::new(format!("tenant-{n}")), &nth(0), 100, at(1000));
    }
    assert_eq!(memory.tenants.len(), 1001);
    memory.admit(&TenantId::new("late"), &nth(0), 100, at(121_000));
    assert_eq!(memory.tenants.len(), 1);
}

#[test]
fn a_clock_set_back_costs_no_tenant_more_than_a_minute() {
    let mut memory = ScanMemory::default();
    assert!(memory.admit(&acme(), &nth(0), 1, at(3_600_000)));
    assert!(!memory.admit(&acme(), &nth(1), 1, at(3_590_000)), "a small step back counts as no time passed");
    assert!(memory.admit(&acme(), &nth(1), 1, at(0)), "an hour back: what was noted says nothing any more");
    assert!(!memory.admit(&acme(), &nth(2), 1, at(1)));
}

proptest::proptest! {
    /// Against the plain definition: pairs with a try within the last minute.
    #[test]
    fn admits_what_the_definition_admits(
        tries in proptest::collection::vec((0..6_usize, 0..40_000_i64), 1..60),
        limit in 0..4_u32,
    ) {
        let mut memory = ScanMemory::default();
        let mut last: HashMap<usize, i64> = HashMap::new();
        let mut now = 0;
        for (pair, pause) in tries {
            now += pause;
            last.retain(|_, tried| now - *tried < 60_000);
            let expected = last.contains_key(&pair) || last.len() < limit as usize;
            if expected {
                last.insert(pair, now);
            }
            proptest::prop_assert_eq!(memory.admit(&acme(), &nth(pair), limit, at(now)), expected);
        }
    }
}
