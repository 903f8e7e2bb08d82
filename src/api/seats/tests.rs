use std::time::Duration;

use super::*;

const BOUNDS: Bounds = Bounds { all: 10, strangers: 6, strangers_of_network: 4 };

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn client(name: &str) -> Arc<str> {
    name.into()
}

fn has_place(place: &Seat) -> bool {
    !place.0.gone.load(Ordering::Acquire)
}

impl Seats {
    fn counts(&self) -> (usize, usize) {
        let inside = self.inside();
        let of_networks: usize = inside.networks.values().map(BTreeSet::len).sum();
        assert_eq!(inside.strangers.len(), of_networks);
        assert_eq!(inside.clients.values().map(BTreeMap::len).sum::<usize>(), inside.of_clients);
        (inside.strangers.len(), inside.of_clients)
    }
}

#[tokio::test(start_paused = true)]
async fn a_stranger_makes_room_for_a_newcomer_the_oldest_of_the_largest_network_first() {
    let places = Seats::new(BOUNDS);
    let first = places.enter(ip("192.0.2.1"));
    let flood: Vec<_> = (0..4).map(|n| places.enter(ip(&format!("2001:db8::{n}")))).collect();
    let other = places.enter(ip("192.0.2.2"));
    assert_eq!(places.counts(), (6, 0));
    // All are taken: who came first is not who goes, for its network has one.
    let newcomer = places.enter(ip("192.0.2.3"));
    let left: Vec<_> = flood.iter().map(has_place).collect();
    assert_eq!(left, [false, true, true, true]);
    assert!([&first, &other, &newcomer].into_iter().all(has_place));
    // A network that is full makes room among its own, though others have some left.
    drop((first, other));
    let more: Vec<_> = (0..2).map(|n| places.enter(ip(&format!("2001:db8::f{n}")))).collect();
    let left: Vec<_> = flood.iter().map(has_place).collect();
    assert_eq!(left, [false, false, true, true]);
    assert_eq!(places.counts(), (5, 0));
    drop((flood, more, newcomer));
    assert_eq!(places.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_token_takes_a_connection_out_of_the_strangers_reach() {
    let places = Seats::new(BOUNDS);
    let own = places.enter(ip("192.0.2.1"));
    assert!(own.presence().admit(&client("nodes")));
    let flood: Vec<_> = (0..50).map(|_| places.enter(ip("192.0.2.1"))).collect();
    assert!(has_place(&own));
    assert_eq!(flood.iter().filter(|place| has_place(place)).count(), 4);
    assert_eq!(places.counts(), (4, 1));
    // One that had lost its place and shows a token all the same has one again.
    assert!(!has_place(&flood[0]) && flood[0].presence().admit(&client("nodes")) && has_place(&flood[0]));
    assert_eq!(places.counts(), (4, 2));
    drop((own, flood));
    assert_eq!(places.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_outlives_its_connection_keeps_no_place() {
    let places = Seats::new(BOUNDS);
    let place = places.enter(ip("192.0.2.1"));
    let presence = place.presence().clone();
    drop(place);
    assert!(presence.admit(&client("nodes")));
    assert_eq!(places.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn where_all_clients_places_are_taken_the_one_with_the_most_makes_room() {
    let places = Seats::new(BOUNDS);
    let enter = |name: &str| {
        let place = places.enter(ip("192.0.2.1"));
        let admitted = place.presence().admit(&client(name));
        (place, admitted)
    };
    let hogs: Vec<_> = (0..3).map(|_| enter("hog").0).collect();
    let (other, _) = enter("other");
    let busy: Vec<_> = [&hogs[0], &hogs[2]].map(|place| place.presence().begin()).into();
    tokio::time::advance(Duration::from_secs(1)).await;
    // Its idle one goes, not the oldest and not the other's.
    let (one, admitted) = enter("newcomer");
    assert!(admitted && !has_place(&hogs[1]) && has_place(&hogs[0]) && has_place(&hogs[2]) && has_place(&other));
    // Where all of its are in use, the one that is busy for longest, as the newcomer has fewer; nobody else's.
    let _called = other.presence().begin();
    let _again = one.presence().begin();
    let (two, admitted) = enter("late");
    assert!(admitted && !has_place(&hogs[0]) && has_place(&hogs[2]));
    // Everyone has one, and uses it.
    let _late = two.presence().begin();
    let (none, admitted) = enter("fifth");
    assert!(!admitted && has_place(&none), "it may say so");
    drop(busy);
    assert!(none.presence().admit(&client("fifth")) && !has_place(&hogs[2]));
}

#[tokio::test(start_paused = true)]
async fn strangers_have_little_time_and_clients_have_it_while_they_call() {
    let places = Seats::new(BOUNDS);
    let wait = |place: &Seat, time: Duration| {
        let verdict = place.presence().verdict(clock::monotonic() + time);
        match verdict {
            Verdict::Stay(_) => "stay",
            Verdict::Finish(_) => "finish",
            Verdict::Close => "close",
        }
    };
    let second = Duration::from_secs(1);
    let silent = places.enter(ip("192.0.2.1"));
    assert_eq!(wait(&silent, limits::API_STRANGER_IDLE - second), "stay");
    assert_eq!(wait(&silent, limits::API_STRANGER_IDLE), "finish");
    assert_eq!(wait(&silent, limits::API_STRANGER_IDLE + limits::API_FINISH), "close");
    // Calls that are refused do not lengthen the whole.
    let calling = places.enter(ip("192.0.2.1"));
    for _ in 0..9 {
        drop(calling.presence().begin());
        assert_eq!(wait(&calling, Duration::ZERO), "stay");
        tokio::time::advance(second).await;
    }
    let under_way = calling.presence().begin();
    assert_eq!(wait(&calling, second), "finish");
    assert_eq!(wait(&calling, second + limits::API_FINISH), "close");
    drop(under_way);

    let known = places.enter(ip("192.0.2.1"));
    assert!(known.presence().admit(&client("nodes")));
    assert_eq!(wait(&known, limits::API_IDLE - second), "stay");
    assert_eq!(wait(&known, limits::API_IDLE), "finish");
    let waiting = known.presence().begin();
    assert_eq!(wait(&known, limits::API_IDLE * 100), "stay");
    drop(waiting);
    assert_eq!(wait(&known, limits::API_IDLE - second), "stay");
}
