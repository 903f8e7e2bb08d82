use std::collections::HashMap;

use jiff::Timestamp;
use uuid::Uuid;

use super::*;
use crate::policy::{Host, Scheme};

const CAPS: Caps = Caps { in_flight: 10_000, per_tenant: 2_000, per_destination: 200 };

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn waiting(id: u128, expires: i64) -> Waiting {
    Waiting {
        id: SendId(Uuid::from_u128(id)),
        workflow: None,
        created_at: at(0),
        released_at: at(0),
        expires_at: at(expires),
        spec: None,
    }
}

fn to(host: &str) -> Option<Destination> {
    Some(Destination { scheme: Scheme::Https, host: Host::Name(host.into()), port: 443 })
}

fn tenant(name: &str) -> TenantId {
    TenantId::new(name)
}

fn fill(schedule: &mut Schedule, who: &str, host: &str, ids: std::ops::Range<u128>) {
    for id in ids {
        schedule.push(&tenant(who), to(host), None, waiting(id, 1_000_000));
    }
}

#[test]
fn one_destination_is_served_in_call_order() {
    let mut schedule = Schedule::new(CAPS);
    fill(&mut schedule, "a", "x", 0..5);
    let order: Vec<u128> =
        std::iter::from_fn(|| schedule.next(|_| Ok(()))).map(|picked| picked.send.id.0.as_u128()).collect();
    assert_eq!(order, [0, 1, 2, 3, 4]);
    assert_eq!((schedule.queued(), schedule.in_flight()), (0, 5));
}

#[test]
fn a_late_tenant_is_served_within_one_round_of_a_flood() {
    let mut schedule = Schedule::new(CAPS);
    fill(&mut schedule, "flood", "x", 0..1_000);
    for _ in 0..50 {
        schedule.next(|_| Ok(())).unwrap();
    }
    fill(&mut schedule, "late", "y", 5_000..5_001);
    let position = std::iter::from_fn(|| schedule.next(|_| Ok(()))).position(|picked| picked.tenant == tenant("late"));
    assert!(position.unwrap() <= usize::try_from(QUANTUM).unwrap(), "after {position:?}");
}

#[test]
fn caps_hold_for_node_tenant_and_destination() {
    for (caps, picks) in [
        (Caps { in_flight: 7, per_tenant: 100, per_destination: 100 }, 7),
        (Caps { in_flight: 100, per_tenant: 3, per_destination: 100 }, 6),
        (Caps { in_flight: 100, per_tenant: 100, per_destination: 2 }, 8),
    ] {
        let mut schedule = Schedule::new(caps);
        for who in ["a", "b"] {
            for host in ["x", "y"] {
                fill(&mut schedule, who, host, 0..20);
            }
        }
        assert_eq!(std::iter::from_fn(|| schedule.next(|_| Ok(()))).count(), picks, "{caps:?}");
    }
}

#[test]
fn a_tenants_own_cap_wins_over_the_common_one() {
    let mut schedule = Schedule::new(CAPS);
    for id in 0..10 {
        schedule.push(&tenant("a"), to("x"), Some(4), waiting(id, 1_000_000));
    }
    assert_eq!(std::iter::from_fn(|| schedule.next(|_| Ok(()))).count(), 4);
}

#[test]
fn a_destination_at_its_cap_does_not_hold_back_the_others() {
    let mut schedule = Schedule::new(Caps { per_destination: 1, ..CAPS });
    fill(&mut schedule, "a", "slow", 0..10);
    assert_eq!(schedule.next(|_| Ok(())).unwrap().destination, to("slow"));
    fill(&mut schedule, "a", "quick", 10..12);
    let next = schedule.next(|_| Ok(())).unwrap();
    assert_eq!(next.destination, to("quick"));
    assert!(schedule.next(|_| Ok(())).is_none(), "both are at their cap");
    schedule.done(&next.tenant, &next.destination, 0);
    assert_eq!(schedule.next(|_| Ok(())).unwrap().destination, to("quick"));
}

#[test]
fn a_tenant_without_a_usable_source_waits_and_holds_nobody_back() {
    let mut schedule = Schedule::new(CAPS);
    fill(&mut schedule, "gated", "x", 0..3);
    fill(&mut schedule, "open", "x", 3..6);
    let picked: Vec<_> =
        std::iter::from_fn(|| schedule.next(|who| if who.as_str() == "open" { Ok(()) } else { Err("empty".into()) }))
            .collect();
    assert_eq!(picked.len(), 3);
    assert!(picked.iter().all(|picked| picked.tenant == tenant("open")));
    assert!(schedule.next(|_| Ok(())).is_none(), "parked until it is asked again");
    schedule.unpark(|_| true);
    assert_eq!(std::iter::from_fn(|| schedule.next(|_| Ok(()))).count(), 3);
}

#[test]
fn what_is_put_back_goes_first_again() {
    let mut schedule = Schedule::new(CAPS);
    fill(&mut schedule, "a", "x", 0..3);
    let first = schedule.next(|_| Ok(())).unwrap();
    schedule.put_back(&first.tenant, first.destination.clone(), None, first.send.clone());
    schedule.done(&first.tenant, &first.destination, 0);
    assert_eq!((schedule.queued(), schedule.in_flight()), (3, 0));
    assert_eq!(schedule.next(|_| Ok(())).unwrap().send.id, first.send.id);
}

#[test]
fn expired_sends_come_out_at_their_time_and_the_rest_stays() {
    let mut schedule = Schedule::new(CAPS);
    schedule.push(&tenant("a"), to("x"), None, waiting(1, 10));
    schedule.push(&tenant("a"), to("x"), None, waiting(2, 20));
    schedule.push(&tenant("b"), to("y"), None, waiting(3, 10));
    assert!(schedule.expire(at(9)).is_empty());
    let mut gone: Vec<u128> = schedule.expire(at(10)).iter().map(|picked| picked.send.id.0.as_u128()).collect();
    gone.sort_unstable();
    assert_eq!(gone, [1, 3]);
    assert_eq!(schedule.queued(), 1);
    assert_eq!(schedule.next(|_| Ok(())).unwrap().send.id.0.as_u128(), 2);
    assert!(schedule.next(|_| Ok(())).is_none());
}

#[test]
fn an_idle_schedule_remembers_no_tenant() {
    let mut schedule = Schedule::new(CAPS);
    for n in 0..100 {
        schedule.push(&tenant(&n.to_string()), to("x"), None, waiting(n, 10));
    }
    for picked in std::iter::from_fn(|| schedule.next(|_| Ok(()))).collect::<Vec<_>>() {
        schedule.done(&picked.tenant, &picked.destination, 0);
    }
    assert_eq!(schedule.tenants.len(), 0);
    schedule.push(&tenant("z"), to("x"), None, waiting(1, 10));
    assert_eq!(schedule.expire(at(10)).len(), 1);
    assert!(schedule.next(|_| Ok(())).is_none());
    assert_eq!((schedule.tenants.len(), schedule.ring.len()), (0, 0));
}

#[test]
fn large_transfers_are_charged_but_never_lock_out() {
    let mut schedule = Schedule::new(Caps { in_flight: 1, ..CAPS });
    fill(&mut schedule, "large", "x", 0..2_000);
    fill(&mut schedule, "small", "y", 0..2_000);
    let mut served: HashMap<TenantId, u32> = HashMap::new();
    for _ in 0..1_000 {
        let picked = schedule.next(|_| Ok(())).unwrap();
        *served.entry(picked.tenant.clone()).or_default() += 1;
        let bytes = if picked.tenant == tenant("large") { 1024 * 1024 } else { 100 };
        schedule.done(&picked.tenant, &picked.destination, bytes);
    }
    let (large, small) = (served[&tenant("large")], served[&tenant("small")]);
    assert!(large >= 20, "{large}");
    assert!(small > large * 4, "{small} against {large}");
}

/// A seeded xorshift: the same run for the same seed.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Millions of steps of arrivals, deliveries that take very different times, and expiry: after every step the caps
/// hold and nothing is lost; and a tenant that has something runnable while slots come free is served within the
/// bound: one quantum of each other tenant, and its own debt.
#[test]
fn no_tenant_waits_longer_than_a_round_whatever_the_others_do() {
    for seed in [1, 7, 42, 4711] {
        let mut random = Seeded(seed);
        let caps = Caps { in_flight: 60, per_tenant: 20, per_destination: 8 };
        let mut schedule = Schedule::new(caps);
        let tenants = 12_u64;
        let mut flights: Vec<(u64, Picked)> = Vec::new();
        let (mut pushed, mut ended, mut next_id) = (0_u64, 0_u64, 0_u128);
        let mut passed_over: HashMap<TenantId, i64> = HashMap::new();
        for step in 0..300_000_u64 {
            // Tenant 0 floods one slow destination; the others come and go.
            for _ in 0..random.below(4) {
                let who = if random.below(2) == 0 { 0 } else { random.below(tenants) };
                let host = if who == 0 { "slow".to_owned() } else { format!("h{}", random.below(5)) };
                if schedule.queued_of(&tenant(&who.to_string())) < 500 {
                    next_id += 1;
                    pushed += 1;
                    let expires = i64::try_from(step + 200_000).unwrap();
                    schedule.push(&tenant(&who.to_string()), to(&host), None, waiting(next_id, expires));
                }
            }
            while let Some(picked) = schedule.next(|_| Ok(())) {
                for (who, state) in &schedule.tenants {
                    if *who != picked.tenant && state.place == RingState::Ring {
                        *passed_over.entry(who.clone()).or_default() += 1;
                    }
                }
                passed_over.insert(picked.tenant.clone(), 0);
                let slow = picked.tenant == tenant("0");
                let until = step + if slow { 500 } else { 1 + random.below(20) };
                flights.push((until, picked));
            }
            let bound = QUANTUM * i64::try_from(tenants).unwrap() + QUANTUM;
            let worst = passed_over.values().copied().max().unwrap_or_default();
            assert!(worst <= bound, "seed {seed}, step {step}: passed over {worst} times, {bound} promised");

            let (over, still): (Vec<_>, Vec<_>) = flights.drain(..).partition(|(until, _)| *until <= step);
            flights = still;
            for (_, picked) in over {
                ended += 1;
                schedule.done(&picked.tenant, &picked.destination, 0);
                if !schedule.tenants.contains_key(&picked.tenant) {
                    passed_over.remove(&picked.tenant);
                }
            }
            ended += schedule.expire(at(i64::try_from(step).unwrap())).len() as u64;

            assert_eq!(u64::from(schedule.in_flight()), flights.len() as u64);
            assert_eq!(pushed, ended + schedule.queued() + flights.len() as u64, "seed {seed}, step {step}");
            assert!(schedule.in_flight() <= caps.in_flight);
            if step % 16 != 0 {
                continue;
            }
            let mut per_tenant: HashMap<&TenantId, u32> = HashMap::new();
            let mut per_destination: HashMap<(&TenantId, &Option<Destination>), u32> = HashMap::new();
            for (_, picked) in &flights {
                *per_tenant.entry(&picked.tenant).or_default() += 1;
                *per_destination.entry((&picked.tenant, &picked.destination)).or_default() += 1;
            }
            assert!(per_tenant.values().all(|count| *count <= caps.per_tenant));
            assert!(per_destination.values().all(|count| *count <= caps.per_destination));
        }
        assert!(ended > 100_000, "seed {seed}: the simulation hardly moved ({ended} ended)");
    }
}

#[test]
fn new_caps_take_effect_on_what_waits() {
    let mut schedule = Schedule::new(Caps { per_destination: 1, ..CAPS });
    fill(&mut schedule, "a", "x", 0..5);
    assert_eq!(std::iter::from_fn(|| schedule.next(|_| Ok(()))).count(), 1);
    schedule.set_caps(CAPS, |_| None);
    assert_eq!(std::iter::from_fn(|| schedule.next(|_| Ok(()))).count(), 4);
}

#[test]
fn lower_caps_hold_at_once_for_who_is_in_the_middle_of_a_round() {
    for (common, own) in [(3, None), (CAPS.per_tenant, Some(3))] {
        let mut schedule = Schedule::new(CAPS);
        fill(&mut schedule, "a", "x", 0..20);
        for _ in 0..6 {
            schedule.next(|_| Ok(())).unwrap();
        }
        schedule.set_caps(Caps { per_tenant: common, ..CAPS }, |_| own);
        assert!(schedule.next(|_| Ok(())).is_none(), "six are in flight, three may be");
        for picks in [0, 0, 0, 1, 1] {
            schedule.done(&tenant("a"), &to("x"), 0);
            assert_eq!(std::iter::from_fn(|| schedule.next(|_| Ok(()))).count(), picks);
        }
    }
}

/// The same with all else that happens to a schedule: large transfers, starts that fail, sources that come and go,
/// suspensions, caps that change, and tenants with caps of their own. No pick exceeds a cap in force, every tenant's
/// count is right, nobody is passed over for longer than its debt and a round, and nothing is remembered at the end.
#[test]
fn the_promises_hold_whatever_else_happens() {
    for seed in [3, 99] {
        let mut random = Seeded(seed);
        let tenants = 8_u64;
        let name = |who: u64| tenant(&who.to_string());
        let own = |who: &TenantId| (who.as_str() == "3").then_some(5_u32);
        let mut caps = Caps { in_flight: 40, per_tenant: 12, per_destination: 6 };
        let mut schedule = Schedule::new(caps);
        let mut flights: Vec<(u64, Picked)> = Vec::new();
        let mut waiting_of: HashMap<TenantId, u64> = HashMap::new();
        let mut passed_over: HashMap<TenantId, i64> = HashMap::new();
        let mut without_source: Option<TenantId> = None;
        let (mut next_id, mut picks, mut longest) = (0_u128, 0_u64, 0);
        let steps = 120_000_u64;
        for step in 0.. {
            for _ in 0..if step < steps { random.below(5) } else { 0 } {
                let who = name(random.below(tenants));
                if schedule.queued_of(&who) < 200 {
                    next_id += 1;
                    let host = format!("h{}", random.below(4));
                    let expires = i64::try_from(step + 2_000 + random.below(100_000)).unwrap();
                    schedule.push(&who, to(&host), own(&who), waiting(next_id, expires));
                    *waiting_of.entry(who).or_default() += 1;
                }
            }
            match random.below(400) {
                0 => {
                    let one = |least: u64, most: u64, random: &mut Seeded| {
                        u32::try_from(least + random.below(most - least)).unwrap()
                    };
                    caps = Caps {
                        in_flight: one(10, 60, &mut random),
                        per_tenant: one(2, 20, &mut random),
                        per_destination: one(1, 10, &mut random),
                    };
                    schedule.set_caps(caps, own);
                }
                1 => without_source = Some(name(random.below(tenants))),
                2 => without_source = None,
                3 => {
                    let suspended = name(random.below(tenants));
                    for gone in schedule.remove_where(|who, _, send| *who == suspended && send.id.0.as_u128() % 2 == 0)
                    {
                        *waiting_of.get_mut(&gone.tenant).unwrap() -= 1;
                    }
                }
                _ => {}
            }
            if step % 10 == 0 {
                schedule.unpark(|_| true);
            }
            let admits = |who: &TenantId| Some(who) != without_source.as_ref();
            let asked = |who: &TenantId| if admits(who) { Ok(()) } else { Err(Arc::from(who.as_str())) };
            while let Some(picked) = schedule.next(asked) {
                picks += 1;
                assert!(admits(&picked.tenant), "seed {seed}, step {step}: a pick without a source");
                *waiting_of.get_mut(&picked.tenant).unwrap() -= 1;
                if picks.is_multiple_of(97) {
                    // Its start could not be written.
                    *waiting_of.get_mut(&picked.tenant).unwrap() += 1;
                    schedule.done(&picked.tenant, &picked.destination, 0);
                    schedule.put_back(&picked.tenant, picked.destination, own(&picked.tenant), picked.send);
                    break;
                }
                for (who, state) in &schedule.tenants {
                    if *who != picked.tenant && state.place == RingState::Ring && admits(who) {
                        *passed_over.entry(who.clone()).or_default() += 1;
                    }
                }
                passed_over.insert(picked.tenant.clone(), 0);
                flights.push((step + 1 + random.below(60), picked));
                let last = &flights[flights.len() - 1].1;
                let of_tenant = flights.iter().filter(|(_, flight)| flight.tenant == last.tenant);
                let (mut in_all, mut there) = (0, 0);
                for (_, flight) in of_tenant {
                    in_all += 1;
                    there += u32::from(flight.destination == last.destination);
                }
                assert!(in_all <= own(&last.tenant).unwrap_or(caps.per_tenant), "seed {seed}, step {step}: {in_all}");
                assert!(there <= caps.per_destination, "seed {seed}, step {step}: {there} to one destination");
                assert!(flights.len() as u64 <= u64::from(caps.in_flight), "seed {seed}, step {step}");
            }
            longest = longest.max(passed_over.values().copied().max().unwrap_or_default());
            let rounds = 2 + DEBT_MAX / QUANTUM;
            let bound = rounds * QUANTUM * i64::try_from(tenants).unwrap();
            assert!(longest <= bound, "seed {seed}, step {step}: passed over {longest} times, {bound} promised");

            let (over, still): (Vec<_>, Vec<_>) = flights.drain(..).partition(|(until, _)| *until <= step);
            flights = still;
            for (_, picked) in over {
                // Tenant 1 moves a lot: each such end may set it back by all of its debt.
                let bytes = if picked.tenant == name(1) { random.below(8 * 1024 * 1024) } else { 500 };
                schedule.done(&picked.tenant, &picked.destination, bytes);
                if bytes > 500 || !schedule.tenants.contains_key(&picked.tenant) {
                    passed_over.remove(&picked.tenant);
                }
            }
            for gone in schedule.expire(at(i64::try_from(step).unwrap())) {
                *waiting_of.get_mut(&gone.tenant).unwrap() -= 1;
            }
            assert_eq!(schedule.in_flight() as usize, flights.len());
            assert_eq!(schedule.queued(), waiting_of.values().sum::<u64>(), "seed {seed}, step {step}");
            assert!(waiting_of.iter().all(|(who, count)| schedule.queued_of(who) == *count));
            if step >= steps {
                without_source = None;
                if schedule.queued() == 0 && flights.is_empty() {
                    break;
                }
            }
            assert!(step < steps + 50_000, "seed {seed}: {} wait and never go", schedule.queued());
        }
        schedule.unpark(|_| true);
        assert!(schedule.next(|_| Ok(())).is_none());
        assert_eq!((schedule.tenants.len(), schedule.ring.len(), schedule.parked.len()), (0, 0, 0), "seed {seed}");
        assert!(picks > 50_000 && longest > 0, "seed {seed}: the simulation hardly moved ({picks} picks)");
    }
}

#[test]
fn a_tenants_destinations_take_turns() {
    let mut schedule = Schedule::new(CAPS);
    fill(&mut schedule, "a", "x", 0..3);
    fill(&mut schedule, "a", "y", 10..13);
    let order: Vec<u128> =
        std::iter::from_fn(|| schedule.next(|_| Ok(()))).map(|picked| picked.send.id.0.as_u128()).collect();
    assert_eq!(order, [0, 10, 1, 11, 2, 12]);
}

#[test]
fn a_tenant_that_comes_back_has_a_whole_turn() {
    let mut schedule = Schedule::new(CAPS);
    fill(&mut schedule, "a", "x", 0..1);
    schedule.next(|_| Ok(())).unwrap();
    fill(&mut schedule, "a", "x", 1..20);
    fill(&mut schedule, "b", "x", 20..40);
    let first = std::iter::from_fn(|| schedule.next(|_| Ok(()))).take_while(|picked| picked.tenant == tenant("a"));
    assert_eq!(first.count(), usize::try_from(QUANTUM).unwrap());
}

#[test]
fn what_others_take_out_changes_nothing_of_when_the_rest_expires() {
    let mut schedule = Schedule::new(CAPS);
    schedule.push(&tenant("a"), to("x"), None, waiting(1, 10));
    schedule.push(&tenant("b"), to("x"), None, waiting(2, 20));
    assert_eq!(schedule.remove_where(|who, _, _| *who == tenant("a")).len(), 1);
    assert!(schedule.expire(at(19)).is_empty());
    assert_eq!(schedule.expire(at(20)).len(), 1);
}

#[test]
fn a_full_node_has_nothing_runnable_and_says_what_waits_longest() {
    let mut schedule = Schedule::new(Caps { in_flight: 1, ..CAPS });
    for (id, who, host, released) in [(1, "a", "x", 5), (2, "a", "y", 3), (3, "b", "x", 4), (4, "a", "x", 9)] {
        let send = Waiting { released_at: at(released), ..waiting(id, 1_000_000) };
        schedule.push(&tenant(who), to(host), None, send);
    }
    assert!(schedule.runnable());
    assert_eq!(schedule.oldest(), Some(at(3)));
    let loads: HashMap<_, _> = schedule.loads().map(|(who, load)| (who.clone(), load.oldest)).collect();
    assert_eq!((loads[&tenant("a")], loads[&tenant("b")]), (Some(at(3)), Some(at(4))));
    let picked = schedule.next(|_| Ok(())).unwrap();
    assert!(!schedule.runnable());
    schedule.done(&picked.tenant, &picked.destination, 0);
    assert!(schedule.runnable());
}
