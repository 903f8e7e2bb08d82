use std::net::TcpStream;

use super::*;

const BOUNDS: Bounds = Bounds { connections: 64, connections_per_network: 16 };

#[test]
fn one_network_cannot_take_every_place() {
    let (doors, now) = (Doors::new(BOUNDS), clock::monotonic());
    let enter = |peer: &str| doors.enter(peer.parse().unwrap(), now);
    let mut inside = Vec::new();
    for last in 0..BOUNDS.connections_per_network {
        inside.push(enter(&format!("2001:db8::{last:x}")).unwrap());
    }
    assert!(enter("2001:db8::ffff").is_none());
    assert!(enter("2001:db8:0:1::1").is_some());
    inside.pop();
    assert!(enter("2001:db8::ffff").is_some());
    let mut v4 = 0_u32;
    while let Some(pass) = doors.enter(IpAddr::V4((0x0a00_0000 + v4).into()), now) {
        inside.push(pass);
        v4 += 1;
    }
    assert_eq!(inside.len(), BOUNDS.connections);
    inside.clear();
    assert!(doors.inside.lock().unwrap().places.is_empty());
}

#[test]
fn whoever_holds_a_place_for_long_makes_room() {
    let (doors, now) = (Doors::new(BOUNDS), clock::monotonic());
    let enter = |peer: u32, at: Instant| doors.enter(IpAddr::V4((0x0a00_0000 + peer).into()), at);
    let taken = |pass: &mut Pass| pass.taken.try_recv() == Err(oneshot::error::TryRecvError::Closed);
    let mut inside: Vec<_> = (0..BOUNDS.connections).map(|peer| enter(peer as u32, now).unwrap()).collect();
    let later = now + PLACE_TIME;
    assert!(enter(9999, later - std::time::Duration::from_millis(1)).is_none());
    let mut newcomer = enter(9999, later).unwrap();
    let gone: Vec<_> = (0..inside.len()).filter(|index| taken(&mut inside[*index])).collect();
    assert_eq!(gone, [0], "the oldest, and nobody else");
    assert!(!taken(&mut newcomer));
    assert_eq!(doors.inside.lock().unwrap().places.len(), BOUNDS.connections);
    // Leaving a place that another has does not take it away from them.
    inside.remove(0);
    assert_eq!(doors.inside.lock().unwrap().places.len(), BOUNDS.connections);

    // A network that is full makes room among its own.
    let doors = Doors::new(BOUNDS);
    let enter = |peer: &str, at: Instant| doors.enter(peer.parse().unwrap(), at);
    let mut other = enter("192.0.2.1", now).unwrap();
    let mut own: Vec<_> = (0..BOUNDS.connections_per_network).map(|_| enter("2001:db8::1", now).unwrap()).collect();
    let _newcomer = enter("2001:db8::2", later).unwrap();
    assert!(taken(&mut own[0]) && !taken(&mut own[1]) && !taken(&mut other));
}

#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "callers of a listener of ours")]
async fn whoever_comes_while_nobody_takes_them_in_waits_in_line() {
    const CALLERS: usize = 1000;
    let listener = open("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    // This thread is the only one, and accepts none of them until all are connected.
    let patience = std::time::Duration::from_secs(60);
    let callers: Vec<_> = (0..CALLERS).map(|_| TcpStream::connect_timeout(&address, patience).unwrap()).collect();
    for _ in &callers {
        listener.accept().await.unwrap();
    }
}

#[test]
fn a_proxys_connection_has_the_place_of_whom_it_asks_for() {
    let (doors, now) = (Doors::new(BOUNDS), clock::monotonic());
    let caller: IpAddr = "192.0.2.7".parse().unwrap();
    // As many as there are places may say nothing yet: they are of no network.
    let mut inside: Vec<_> = (0..BOUNDS.connections).map(|_| doors.enter_proxied(now).unwrap()).collect();
    assert!(doors.enter_proxied(now).is_none());
    let said = |inside: &[Pass]| inside.iter().filter(|pass| doors.is_for(pass.number, caller, now)).count();
    assert_eq!(said(&inside), BOUNDS.connections_per_network, "one caller has no more behind a proxy");
    inside.truncate(BOUNDS.connections_per_network);
    assert!(doors.enter(caller, now).is_none(), "nor beside it");
    assert!(doors.enter("192.0.2.8".parse().unwrap(), now).is_some());
    // Whose place was given away meanwhile has none.
    let gone = inside.pop().unwrap();
    let number = gone.number;
    drop(gone);
    assert!(!doors.is_for(number, caller, now));
}
