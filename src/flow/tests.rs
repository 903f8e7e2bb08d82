use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use uuid::Uuid;

use super::*;
use crate::policy::{Host, Scheme};

const CAPS: Caps = Caps { in_flight: 100, per_tenant: 20, per_destination: 5 };
const ROOM: Bounds = Bounds { tenant: 1_000_000, node: 1_000_000 };

/// Nobody is stopped, every source is usable.
struct Plain {
    now: i64,
    stopped: Option<TenantId>,
    without_source: bool,
}

impl Plain {
    fn at(now: i64) -> Self {
        Self { now, stopped: None, without_source: false }
    }
}

impl Terms for Plain {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(self.now).unwrap()
    }
    fn cap_of(&self, _: &TenantId) -> Option<u32> {
        None
    }
    fn admits(&self, _: &TenantId) -> Result<(), Arc<str>> {
        if self.without_source { Err(Arc::from("default")) } else { Ok(()) }
    }
    fn pool_usable(&self, _: &str) -> bool {
        !self.without_source
    }
    fn stopped(&self, tenant: &TenantId, _: Option<&str>, _: Option<&Destination>) -> Option<Arc<str>> {
        (Some(tenant) == self.stopped.as_ref()).then(|| Arc::from("abuse"))
    }
}

fn tenant(name: &str) -> TenantId {
    TenantId::new(name)
}

fn to(host: &str) -> Option<Destination> {
    Some(Destination { scheme: Scheme::Https, host: Host::Name(host.into()), port: 443 })
}

fn id(number: u128) -> SendId {
    SendId(Uuid::from_u128(number))
}

fn claimed(who: &str, host: &str, number: u128, expires: i64) -> Claimed {
    let at = |second| Timestamp::from_second(second).unwrap();
    Claimed {
        tenant: tenant(who),
        destination: to(host),
        send: Waiting {
            id: id(number),
            workflow: None,
            created_at: at(0),
            released_at: at(0),
            expires_at: at(expires),
            spec: None,
        },
    }
}

/// A flow whose loop runs.
fn running(caps: Caps) -> Flow {
    let mut flow = at_the_start(caps);
    flow.start();
    flow
}

/// It claims, and starts nothing yet.
fn at_the_start(caps: Caps) -> Flow {
    Flow::new(caps, Arc::new(|| ()))
}

/// An admitted call of so many sends to one host.
fn call(flow: &mut Flow, who: &str, host: &str, numbers: std::ops::Range<u128>) -> Admission {
    let terms = Plain::at(0);
    let count = (numbers.end - numbers.start) as u64;
    let mut admission = flow.admit(&tenant(who), count, Counted::default(), ROOM, &terms).unwrap();
    flow.place(&mut admission, numbers.map(|number| (id(number), to(host))), &terms);
    admission
}

/// As the letters B(egin), K(eep) and W(ait).
fn letters(admission: &Admission) -> String {
    let letter = |entry: &Entry| match entry {
        Entry::Begin(_) => 'B',
        Entry::Keep => 'K',
        Entry::Wait => 'W',
    };
    admission.entries.iter().map(letter).collect()
}

/// What a store with this much of a tenant would answer to its want.
fn answer(flow: &mut Flow, claim: Claim, mut store: impl FnMut(&Want) -> (Vec<Claimed>, Left)) {
    let answers: Vec<_> = claim.wants.iter().map(&mut store).collect();
    let left: Vec<Left> = answers.iter().map(|(_, left)| *left).collect();
    let sends = answers.into_iter().flat_map(|(sends, _)| sends).collect();
    assert!(flow.claimed(claim, &left, sends, &Plain::at(0)).is_empty());
}

#[test]
fn what_concurrent_calls_have_reserved_counts_until_the_store_counts_it() {
    let mut flow = running(CAPS);
    let terms = Plain::at(0);
    let bounds = Bounds { tenant: 10, node: 15 };
    let counted = Counted { tenant: 3, node: 5 };
    let who = tenant("a");
    let first = flow.admit(&who, 6, counted, bounds, &terms).unwrap();
    let full = flow.admit(&who, 2, counted, bounds, &terms).err();
    assert_eq!(full, Some(Full::Tenant { waiting: 9, limit: 10 }), "six are on their way to the disk");
    let _second = flow.admit(&who, 1, counted, bounds, &terms).unwrap();
    let other = Counted { tenant: 0, node: 5 };
    let full = flow.admit(&tenant("b"), 4, other, bounds, &terms).err();
    assert_eq!(full, Some(Full::Node { waiting: 12, limit: 15 }));
    let _third = flow.admit(&tenant("b"), 3, other, bounds, &terms).unwrap();
    drop(first);
    assert!(flow.admit(&who, 6, counted, bounds, &terms).is_ok(), "it came to nothing, and its room is free");
}

#[test]
fn a_send_starts_with_its_acceptance_where_nothing_is_before_it() {
    let mut flow = Flow::new(CAPS, Arc::new(|| ()));
    assert_eq!(letters(&call(&mut flow, "early", "x", 0..2)), "KK", "the loop does not run yet");
    flow.start();
    let admission = call(&mut flow, "a", "x", 2..9);
    assert_eq!(letters(&admission), "BBBBBKK", "five may be in flight to one destination");
    assert_eq!(letters(&call(&mut flow, "a", "y", 9..10)), "K", "what is on its way to the window is before it");
    assert_eq!(letters(&call(&mut flow, "b", "x", 10..11)), "B");
    drop(admission);
    assert_eq!(letters(&call(&mut flow, "a", "x", 11..13)), "WW", "the store may have those that came to nothing");
    assert_eq!(flow.in_flight(), 0, "all of them were dropped");
}

#[test]
fn a_place_that_comes_back_wakes_only_where_something_waits_for_it() {
    let woken = Arc::new(AtomicBool::new(false));
    let wakes = || woken.swap(false, Ordering::Relaxed);
    let ear = woken.clone();
    let mut flow = Flow::new(Caps { per_tenant: 1, ..CAPS }, Arc::new(move || ear.store(true, Ordering::Relaxed)));
    flow.start();
    let begin = |admission: &mut Admission| match admission.entries.pop() {
        Some(Entry::Begin(slot)) => slot,
        _ => panic!("its turn is at once"),
    };
    let slot = begin(&mut call(&mut flow, "a", "x", 0..1));
    assert!(!flow.is_due());
    drop(slot);
    assert!(!wakes(), "nobody waits for it");
    // The same again, and this time somebody comes while it is in flight.
    let slot = begin(&mut call(&mut flow, "a", "x", 1..2));
    let admission = call(&mut flow, "a", "x", 2..3);
    assert_eq!(letters(&admission), "K");
    assert!(!flow.is_due());
    assert!(flow.accepted(admission, vec![claimed("a", "x", 2, 99)], &Plain::at(0)).is_empty());
    assert!(!flow.is_due(), "its tenant's one place is taken");
    wakes();
    drop(slot);
    assert!(wakes());
    let go = flow.turn(&Plain::at(0)).begin.pop().expect("it is free now");
    drop(go);
    assert!(wakes(), "what did not begin waits again");
    let slot = flow.turn(&Plain::at(0)).begin.pop().and_then(Go::take).expect("again").0;
    // Given back in silence, just before somebody came who needs it.
    assert!(!flow.is_due());
    drop(slot);
    assert!(!wakes());
    flow.put_into_window(vec![claimed("a", "x", 3, 99)], &Plain::at(0));
    assert!(flow.is_due(), "what came back meanwhile is seen");
    assert_eq!(flow.turn(&Plain::at(0)).begin.len(), 1);
}

#[test]
fn what_waits_in_the_store_is_not_overtaken() {
    let mut flow = running(CAPS);
    flow.added(&tenant("a"));
    let before = call(&mut flow, "a", "x", 0..1);
    assert_eq!(letters(&before), "W");
    let claim = flow.turn(&Plain::at(0)).claim.unwrap();
    let meanwhile = call(&mut flow, "a", "x", 1..2);
    assert_eq!(letters(&meanwhile), "W", "nobody knows yet what the claim brings");
    answer(&mut flow, claim, |_| (vec![claimed("a", "x", 0, 99)], Left::Nothing));
    let admission = call(&mut flow, "a", "x", 1..2);
    assert_eq!(letters(&admission), "K", "after the one in the window");
    assert!(flow.accepted(admission, Vec::new(), &Plain::at(0)).is_empty());
    let begun = flow.turn(&Plain::at(0)).begin;
    assert_eq!(begun.len(), 1);
    assert_eq!(letters(&call(&mut flow, "a", "x", 1..2)), "B");
}

#[test]
fn a_tenant_with_one_send_is_not_behind_anothers_million() {
    let mut flow = at_the_start(Caps { in_flight: 256, per_tenant: 128, per_destination: 128 });
    let terms = Plain::at(0);
    for flood in 0..40 {
        flow.added(&tenant(&format!("flood {flood}")));
    }
    // Everything that the window takes is theirs, and nothing of it starts.
    let mut number = 0;
    while let Some(claim) = flow.turn(&terms).claim {
        answer(&mut flow, claim, |want| {
            let sends = (0..want.room).map(|_| {
                number += 1;
                claimed(want.tenant.as_str(), "x", number, 99)
            });
            (sends.collect(), Left::More)
        });
    }
    assert!(flow.window() >= flow.window_max(), "{}", flow.window());
    flow.added(&tenant("late"));
    assert!(flow.is_due());
    let claim = flow.turn(&terms).claim.unwrap();
    assert_eq!(claim.wants.iter().map(|want| want.tenant.as_str()).collect::<Vec<_>>(), ["late"]);
    answer(&mut flow, claim, |_| (vec![claimed("late", "y", 1 << 40, 99)], Left::Nothing));
    flow.start();
    flow.tick(&terms);
    let mut held = Vec::new();
    let mut position = 0;
    'found: loop {
        let turn = flow.turn(&terms);
        assert!(!turn.begin.is_empty(), "it is not among the first {position}");
        for go in turn.begin {
            position += 1;
            let late = go.tenant() == Some(&tenant("late"));
            held.push(go);
            if late {
                break 'found;
            }
        }
    }
    // A quantum of each of the others.
    assert!(position <= 40 * 4 + 1, "{position}");
}

#[test]
fn memory_holds_a_window_of_what_waits_and_a_dead_host_fills_none_of_it() {
    let mut flow = running(CAPS);
    let terms = Plain::at(0);
    flow.added(&tenant("a"));
    let (mut number, mut dead, mut quick) = (0, 0, 0);
    let mut held = Vec::new();
    for _ in 0..200 {
        let turn = flow.turn(&terms);
        for go in turn.begin {
            // The dead host's never end.
            if go.take().is_some_and(|(slot, _)| {
                let is_dead = *slot.destination() == to("dead");
                held.extend(is_dead.then_some(slot));
                !is_dead
            }) {
                quick += 1;
            }
        }
        if let Some(claim) = turn.claim {
            answer(&mut flow, claim, |want| {
                let Some(Destination { .. }) = to("dead") else { unreachable!() };
                let host = if want.full.contains(&to("dead").unwrap()) { "quick" } else { "dead" };
                dead += if host == "dead" { want.room } else { 0 };
                let sends = (0..want.room).map(|_| {
                    number += 1;
                    claimed("a", host, number, 99)
                });
                (sends.collect(), Left::More)
            });
        }
        assert!(flow.window() <= 2 * WINDOW_PER_TENANT, "{}", flow.window());
    }
    assert_eq!(held.len(), 5, "a destination's cap");
    assert!(dead <= 2 * WINDOW_PER_TENANT as usize, "{dead} of the dead host were claimed");
    assert!(quick > 500, "only {quick} others went");
}

#[test]
fn what_is_dropped_comes_back() {
    let mut flow = running(CAPS);
    let terms = Plain::at(0);
    let kept = (0..3).map(|number| claimed("a", "x", number, 99)).collect();
    let admission = flow.admit(&tenant("a"), 3, Counted::default(), ROOM, &terms).unwrap();
    assert!(flow.accepted(admission, kept, &terms).is_empty());
    let begun = flow.turn(&terms).begin;
    assert_eq!((begun.len(), flow.in_flight()), (3, 3));
    drop(begun);
    // As before a task that panicked.
    let begun = flow.turn(&terms).begin;
    let order: Vec<_> = begun.iter().filter_map(|go| go.send().map(|send| send.id)).collect();
    assert_eq!(order.len(), 3);
    for go in begun {
        drop(go.take().map(|(slot, _)| slot));
    }
    assert!(flow.turn(&terms).begin.is_empty());
    assert_eq!(flow.in_flight(), 0);

    flow.added(&tenant("b"));
    let claim = flow.turn(&terms).claim;
    assert!(claim.is_some() && flow.turn(&terms).claim.is_none(), "one question at a time");
    drop(claim);
    assert!(flow.turn(&terms).claim.is_some(), "it is asked again");
}

#[test]
fn while_the_store_is_away_nothing_starts_and_then_the_first_goes_first() {
    let mut flow = running(CAPS);
    let terms = Plain::at(0);
    let kept = (0..3).map(|number| claimed("a", "x", number, 99)).collect();
    let admission = flow.admit(&tenant("a"), 3, Counted::default(), ROOM, &terms).unwrap();
    flow.accepted(admission, kept, &terms);
    for go in flow.turn(&terms).begin.into_iter().rev() {
        flow.not_begun(go, NotBegun::StoreAway);
    }
    for _ in 0..PAUSE_TICKS - 1 {
        flow.tick(&terms);
        assert!(flow.turn(&terms).begin.is_empty());
        let admission = call(&mut flow, "b", "x", 9..10);
        assert_eq!(letters(&admission), "K");
        flow.accepted(admission, Vec::new(), &terms);
    }
    flow.tick(&terms);
    let begun = flow.turn(&terms).begin;
    let order: Vec<_> = begun.iter().filter_map(|go| go.send().map(|send| send.id)).collect();
    assert_eq!(order, [id(0), id(1), id(2)]);
}

#[test]
fn what_is_in_the_window_expires_and_is_suspended_there_and_on_its_way_there() {
    let mut flow = at_the_start(CAPS);
    let idle = Plain::at(10);
    let admission = flow.admit(&tenant("a"), 2, Counted::default(), ROOM, &idle).unwrap();
    flow.accepted(admission, vec![claimed("a", "x", 1, 20), claimed("a", "x", 2, 30)], &idle);
    let whys =
        |unsent: Vec<Unsent>| -> Vec<(SendId, Why)> { unsent.into_iter().map(|one| (one.send.id, one.why)).collect() };
    assert!(flow.tick(&idle).unsent.is_empty());
    let later = Plain { now: 20, ..idle };
    assert_eq!(whys(flow.tick(&later).unsent), [(id(1), Why::Expired)]);
    let stopped = Plain { stopped: Some(tenant("a")), ..later };
    assert_eq!(whys(flow.suspended(&stopped)), [(id(2), Why::Suspended(Arc::from("abuse")))]);
    // Accepted just before it was stopped, and claimed just before.
    let admission = flow.admit(&tenant("a"), 1, Counted::default(), ROOM, &stopped).unwrap();
    let unsent = flow.accepted(admission, vec![claimed("a", "x", 3, 99)], &stopped);
    assert_eq!(whys(unsent), [(id(3), Why::Suspended(Arc::from("abuse")))]);
    flow.added(&tenant("a"));
    let claim = flow.turn(&stopped).claim.unwrap();
    let unsent = flow.claimed(claim, &[Left::Nothing], vec![claimed("a", "x", 4, 99)], &stopped);
    assert_eq!(whys(unsent), [(id(4), Why::Suspended(Arc::from("abuse")))]);
    assert_eq!(flow.window(), 0);
}

#[test]
fn a_flow_that_stops_gives_back_what_it_had_claimed() {
    let mut flow = running(CAPS);
    let terms = Plain::at(0);
    let kept = (0..8).map(|number| claimed("a", "x", number, 99)).collect();
    let admission = flow.admit(&tenant("a"), 8, Counted::default(), ROOM, &terms).unwrap();
    flow.accepted(admission, kept, &terms);
    flow.added(&tenant("b"));
    let turn = flow.turn(&terms);
    assert_eq!(turn.begin.len(), 5);
    flow.stop();
    let mut given = flow.turn(&terms).give_back;
    assert_eq!(given.len(), 3);
    drop(turn.begin);
    given.extend(flow.turn(&terms).give_back);
    let sends = vec![claimed("b", "x", 8, 99)];
    assert!(flow.claimed(turn.claim.unwrap(), &[Left::More], sends, &terms).is_empty());
    let last = flow.turn(&terms);
    given.extend(last.give_back);
    given.sort_unstable();
    assert_eq!(given, (0..9).map(id).collect::<Vec<_>>());
    assert!(last.begin.is_empty() && last.claim.is_none());
    assert_eq!(letters(&call(&mut flow, "a", "x", 9..10)), "W");
}

#[test]
fn who_runs_out_while_the_window_is_full_claims_before_those_who_fill_it() {
    let mut flow = at_the_start(Caps { in_flight: 128, per_tenant: 1, per_destination: 1 });
    let terms = Plain::at(0);
    flow.added(&tenant("late"));
    let claim = flow.turn(&terms).claim.unwrap();
    answer(&mut flow, claim, |_| (vec![claimed("late", "y", 1 << 40, 99)], Left::Skipped));
    let mut number = 0;
    for flood in 0..40 {
        flow.added(&tenant(&format!("flood {flood}")));
    }
    while let Some(claim) = flow.turn(&terms).claim {
        answer(&mut flow, claim, |want| {
            let sends = (0..want.room).map(|_| {
                number += 1;
                claimed(want.tenant.as_str(), "x", number, 99)
            });
            (sends.collect(), Left::More)
        });
    }
    // It has one here, and stands behind those who came before it.
    flow.added(&tenant("late"));
    assert!(flow.turn(&terms).claim.is_none(), "the window is full");
    flow.start();
    flow.tick(&terms);
    let mut turn = flow.turn(&terms);
    while !turn.begin.iter().any(|go| go.tenant() == Some(&tenant("late"))) {
        assert!(turn.again, "it never went");
        turn = flow.turn(&terms);
    }
    let claim = turn.claim.or_else(|| flow.turn(&terms).claim).unwrap();
    assert_eq!(claim.wants[0].tenant, tenant("late"));
}

#[test]
fn what_a_full_destination_has_too_many_of_goes_back() {
    let mut flow = running(CAPS);
    let terms = Plain::at(0);
    flow.added(&tenant("a"));
    let claim = flow.turn(&terms).claim.unwrap();
    answer(&mut flow, claim, |_| ((0..5).map(|n| claimed("a", "dead", n, 99)).collect(), Left::More));
    let turn = flow.turn(&terms);
    assert_eq!(turn.begin.len(), 5, "as many as may be in flight there");
    // Another node hands some over while the store is asked.
    flow.handed((1_000..1_100).map(|n| claimed("a", "dead", n, 99)).collect(), &terms);
    answer(&mut flow, turn.claim.unwrap(), |want| {
        ((5..5 + want.room as u128).map(|n| claimed("a", "dead", n, 99)).collect(), Left::More)
    });
    let turn = flow.turn(&terms);
    assert_eq!((flow.window(), turn.give_back.len()), (FULL_KEPT as u64, 100));
    let full = turn.claim.unwrap().wants.remove(0).full;
    assert_eq!(full, [to("dead").unwrap()], "no more of it is asked for");
}

#[test]
fn a_backlog_towards_one_destination_is_claimed_once() {
    // Deliveries in flight there: few, as many as are kept beside them, more than a tenant's share.
    for per_destination in [1, 5, 128, 200, 1_000] {
        let mut flow = running(Caps { in_flight: 2_000, per_tenant: 2_000, per_destination });
        let terms = Plain::at(0);
        flow.added(&tenant("a"));
        let (mut left, mut number, mut claims, mut ended) = (5_000, 0, 0, 0);
        let mut in_flight = std::collections::VecDeque::new();
        while ended < 5_000 {
            let turn = flow.turn(&terms);
            assert!(turn.give_back.is_empty(), "{per_destination}: {} of {number}", turn.give_back.len());
            in_flight.extend(turn.begin.into_iter().filter_map(Go::take));
            if let Some(claim) = turn.claim {
                claims += 1;
                answer(&mut flow, claim, |want| {
                    let some = if want.full.is_empty() { want.room.min(left) } else { 0 };
                    left -= some;
                    number += some as u128;
                    let sends = number - some as u128..number;
                    let sends = sends.map(|n| claimed("a", "x", n, 99)).collect();
                    (
                        sends,
                        if left == 0 {
                            Left::Nothing
                        } else if some > 0 {
                            Left::More
                        } else {
                            Left::Skipped
                        },
                    )
                });
            }
            // One ends, then the next.
            ended += usize::from(in_flight.pop_front().is_some());
        }
        assert!(claims <= 2 * 5_000 / (FULL_KEPT - CROWDED) + 10, "{per_destination}: {claims}");
    }
}

#[test]
fn a_destination_that_drained_while_the_store_was_asked_is_asked_for_again() {
    let mut flow = running(CAPS);
    let terms = Plain::at(0);
    let admission = call(&mut flow, "a", "x", 0..1000);
    let letters = letters(&admission);
    let kept = letters.chars().zip(0..).filter(|(letter, _)| *letter == 'K');
    let kept: Vec<_> = kept.map(|(_, number)| claimed("a", "x", number, 99)).collect();
    assert!(kept.len() >= CROWDED, "{}", kept.len());
    assert!(flow.accepted(admission, kept, &terms).is_empty());
    let mut asked = None;
    for _ in 0..1000 {
        let turn = flow.turn(&terms);
        asked = turn.claim.or(asked);
        for go in turn.begin {
            drop(go.take());
        }
    }
    assert_eq!(flow.window(), 0);
    let asked = asked.expect("the store has more");
    assert_eq!(asked.wants[0].full, [to("x").unwrap()], "it was full when it was asked");
    answer(&mut flow, asked, |_| (Vec::new(), Left::Skipped));
    let claim = flow.turn(&terms).claim.expect("it is asked for what was stepped over");
    assert!(claim.wants[0].full.is_empty());
}

#[test]
fn a_tenant_that_waited_for_a_pool_goes_on_with_another() {
    struct Moved(bool);
    impl Terms for Moved {
        fn now(&self) -> Timestamp {
            Plain::at(0).now()
        }
        fn cap_of(&self, _: &TenantId) -> Option<u32> {
            None
        }
        fn admits(&self, _: &TenantId) -> Result<(), Arc<str>> {
            if self.0 { Ok(()) } else { Err(Arc::from("gone")) }
        }
        fn pool_usable(&self, pool: &str) -> bool {
            pool != "gone"
        }
        fn stopped(&self, _: &TenantId, _: Option<&str>, _: Option<&Destination>) -> Option<Arc<str>> {
            None
        }
    }
    let mut flow = running(CAPS);
    let admission = flow.admit(&tenant("a"), 1, Counted::default(), ROOM, &Moved(false)).unwrap();
    assert!(flow.accepted(admission, vec![claimed("a", "x", 1, 99)], &Moved(false)).is_empty());
    let turn = flow.turn(&Moved(false));
    assert!(turn.begin.is_empty() && turn.claim.is_none(), "its pool has no source");
    assert_eq!(turn.give_back, [id(1)], "another node may have one");
    flow.set_caps(CAPS, &Moved(true));
    let claim = flow.turn(&Moved(true)).claim.expect("a reload gave it another");
    answer(&mut flow, claim, |_| (vec![claimed("a", "x", 1, 99)], Left::Nothing));
    assert_eq!(flow.turn(&Moved(true)).begin.len(), 1);
}

#[test]
fn what_cannot_leave_from_here_stays_in_the_store_until_it_can() {
    let open = Plain::at(0);
    let shut = Plain { without_source: true, ..Plain::at(0) };
    let mut flow = running(CAPS);
    let mut admission = flow.admit(&tenant("a"), 1, Counted::default(), ROOM, &shut).unwrap();
    flow.place(&mut admission, std::iter::once((id(1), None)), &shut);
    assert!(matches!(admission.entries[..], [Entry::Wait]));
    flow.accepted(admission, Vec::new(), &shut);
    assert!(flow.turn(&shut).claim.is_none(), "another node may have a source for it");
    flow.tick(&shut);
    assert!(flow.turn(&shut).claim.is_none());
    flow.tick(&open);
    let claim = flow.turn(&open).claim.expect("it can leave from here now");
    assert_eq!(claim.wants[0].tenant, tenant("a"));
}

#[test]
fn a_call_that_came_to_no_end_may_wait_in_the_store() {
    let terms = Plain::at(0);
    let mut flow = running(Caps { in_flight: 1, ..CAPS });
    let mut admission = flow.admit(&tenant("a"), 1, Counted::default(), ROOM, &terms).unwrap();
    flow.place(&mut admission, std::iter::once((id(1), None)), &Plain { without_source: true, ..terms });
    assert_eq!(flow.turn(&Plain::at(0)).claim.map(|claim| claim.wants.len()), None);
    drop(admission);
    assert!(flow.turn(&Plain::at(0)).claim.is_some());
}

#[test]
fn what_gathers_takes_no_place_and_goes_back_where_its_call_came_to_no_end() {
    let (mut flow, terms) = (running(CAPS), Plain::at(0));
    for comes_to_an_end in [true, false] {
        let mut admission = flow.admit(&tenant("a"), 2, Counted::default(), ROOM, &terms).unwrap();
        admission.gather([id(1), id(2)].into_iter());
        assert!(!admission.is_spent());
        // Beside it another of the tenant starts at once.
        let other = call(&mut flow, "a", "b.example", 3..4);
        assert_eq!(letters(&other), "B");
        drop(other);
        if comes_to_an_end {
            assert!(flow.accepted(admission, Vec::new(), &terms).is_empty());
        } else {
            drop(admission);
        }
        let turn = flow.turn(&terms);
        let wanted = if comes_to_an_end { Vec::new() } else { vec![id(1), id(2)] };
        assert_eq!((turn.give_back, flow.window(), flow.reserved), (wanted, 0, 0));
    }
}
