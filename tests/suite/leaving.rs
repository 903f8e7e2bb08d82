//! Leaving from the right address: bound sources, ports that run out, addresses that do not answer.

use std::{collections::HashSet, net::SocketAddr, sync::Arc, time::Duration};

use egressd::{
    clock,
    deadline::Deadline,
    outcome::Code,
    policy::{CheckedUrl, SelfAddrs},
    source::Verified,
};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::support::ground::{Ground, LONG, Plan, SHORT, SOURCE, StoppedClock, end_of, get};
use crate::support::name_server::NameServer;
use crate::support::network::{in_own_network, set_port_range};
use crate::support::receiver::{Receiver, Step, ok};

const OTHER: &str = "127.0.0.12";

#[tokio::test]
async fn a_tenants_host_sees_one_source_and_hosts_differ() {
    let ground = Plan::new().sources(&[SOURCE, OTHER, "127.0.0.13"]).delivery("keep_alive = \"0s\"").build();
    let receiver = Receiver::start([Step::Read, ok()]).await;
    for _ in 0..4 {
        assert_eq!(end_of(&ground.get(&receiver.url("/")).await), "delivered");
    }
    let of_one: HashSet<_> = receiver.peers().iter().map(SocketAddr::ip).collect();
    assert_eq!(of_one.len(), 1);
    for tenant in 0..30 {
        let attempt = ground.deliver_for(&format!("tenant{tenant}"), get(&receiver.url("/")), LONG).await;
        assert_eq!(end_of(&attempt), "delivered");
    }
    let of_many: HashSet<_> = receiver.peers().iter().map(SocketAddr::ip).collect();
    assert_eq!(of_many.len(), 3);
}

#[tokio::test]
async fn a_source_that_is_not_on_this_host_gives_way_to_the_next() {
    let missing = "192.0.2.9";
    let ground = Plan::new().sources(&[missing, SOURCE]).build();
    let receiver = Receiver::start([Step::Read, ok()]).await;
    // Whichever of the two is the first choice of a tenant.
    for tenant in 0..8 {
        let attempt = ground.deliver_for(&format!("tenant{tenant}"), get(&receiver.url("/")), LONG).await;
        assert_eq!(end_of(&attempt), "delivered", "{:?}", attempt.ended);
        assert_eq!(attempt.connection.unwrap().public, Some(SOURCE.parse().unwrap()));
    }
    let sources = ground.world.sources();
    let of_missing = sources.all().into_iter().find(|source| source.bind().to_string() == missing).unwrap();
    assert!(sources.unusable(&of_missing, clock::wall()).is_some());

    let ground = Plan::new().sources(&[missing]).build();
    for _ in 0..2 {
        // First by the bind's word, then because it is known.
        let attempt = ground.get(&receiver.url("/")).await;
        assert_eq!(end_of(&attempt), "failed source_unavailable connect");
        assert!(!attempt.ended.error.unwrap().message.contains(missing));
        assert_eq!(attempt.connection.unwrap().source, None);
    }
}

/// Starts deliveries that the receiver holds, one by one, until it has this many connections.
async fn hold(deliveries: &mut JoinSet<String>, ground: &Arc<Ground>, receiver: &Receiver, connections: usize) {
    while receiver.peers().len() < connections {
        let (ground, url) = (ground.clone(), receiver.url("/"));
        let before = receiver.peers().len();
        deliveries.spawn(async move { end_of(&ground.deliver(get(&url), LONG).await) });
        while receiver.peers().len() == before {
            if let Some(end) = deliveries.try_join_next() {
                panic!("ended with {before} connections: {}", end.unwrap());
            }
            tokio::task::yield_now().await;
        }
    }
}

#[test]
fn ports_are_counted_per_peer_and_a_full_source_gives_way() {
    in_own_network(&[], || async {
        // Listeners outside of the range: one inside would take its port from every source of the host.
        set_port_range(50_000, 50_099);
        let receiver = Receiver::start([Step::Read, Step::Hold]).await;
        let elsewhere = Receiver::at([127, 0, 0, 5].into(), None, |_| vec![Step::Read, Step::Hold]).await;
        set_port_range(40_000, 40_019);
        let ground = Arc::new(Plan::new().sources(&[SOURCE, OTHER]).build());
        let mut deliveries = JoinSet::new();
        hold(&mut deliveries, &ground, &receiver, 40).await;
        let peers = receiver.peers();
        let sources: Vec<HashSet<_>> =
            peers.chunks(20).map(|peers| peers.iter().map(SocketAddr::ip).collect()).collect();
        // Twenty from the first, then twenty from the second.
        assert!(sources[0].len() == 1 && sources[1].len() == 1 && sources[0] != sources[1], "{sources:?}");
        assert_eq!(peers.iter().collect::<HashSet<_>>().len(), 40);

        let attempt = ground.deliver(get(&receiver.url("/")), LONG).await;
        assert_eq!(end_of(&attempt), "failed source_ports_exhausted connect");
        let message = attempt.ended.error.unwrap().message;
        assert!(!message.contains(SOURCE) && !message.contains(OTHER), "{message}");
        assert_eq!(receiver.peers().len(), 40);

        // Towards another peer the same ports are free: none was taken from all destinations at once.
        hold(&mut deliveries, &ground, &elsewhere, 20).await;
        assert_eq!(elsewhere.peers().iter().map(SocketAddr::ip).collect::<HashSet<_>>().len(), 1);
    });
}

#[test]
fn what_the_network_says_is_told() {
    const SET_UP: &[&str] = &[
        "ip addr add 10.1.0.1/32 dev lo",
        "ip route add unreachable 10.9.0.0/16",
        "ip route add prohibit 10.8.0.0/16",
    ];
    in_own_network(SET_UP, || async {
        let mut plan = Plan::new().sources(&["10.1.0.1"]);
        plan.opened = vec!["10.0.0.0/8".to_owned()];
        let ground = plan.build();
        for (host, end) in [
            ("10.9.0.1", "failed host_unreachable connect"),
            ("10.8.0.1", "failed host_unreachable connect"),
            ("10.7.0.1", "failed network_unreachable connect"),
        ] {
            let attempt = ground.get(&format!("http://{host}:8080/")).await;
            assert_eq!(end_of(&attempt), end, "{host}: {:?}", attempt.ended);
        }
    });
}

/// A listener that answers no connect: its queue is full.
struct Deaf {
    address: SocketAddr,
    listener: TcpListener,
    _queued: Vec<tokio::net::TcpStream>,
}

impl Deaf {
    #[allow(clippy::disallowed_methods, reason = "the test fills a queue of its own")]
    async fn at(address: SocketAddr) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(0).unwrap();
        let queued = vec![tokio::net::TcpStream::connect(address).await.unwrap()];
        Self { address, listener, _queued: queued }
    }

    /// What it would have been sent, once it takes its connections: bytes of each.
    async fn drain(self) -> Vec<usize> {
        drop(self._queued);
        let mut all = Vec::new();
        while let Ok((mut stream, _)) = {
            let mut accept = std::pin::pin!(self.listener.accept());
            std::future::poll_fn(|cx| {
                std::task::Poll::Ready(match accept.as_mut().poll(cx) {
                    std::task::Poll::Ready(accepted) => accepted,
                    std::task::Poll::Pending => Err(std::io::ErrorKind::WouldBlock.into()),
                })
            })
            .await
        } {
            let mut bytes = Vec::new();
            let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut bytes).await;
            all.push(bytes.len());
        }
        all
    }
}

/// A name with two addresses on one port: the first as given, the second a willing receiver.
async fn two_addresses(first: &str) -> (Ground, NameServer, Receiver, SocketAddr) {
    let names = NameServer::with_addresses(60, &[first, "127.0.0.1"]).await;
    let ground = Plan::new().name_server(names.address()).build();
    let receiver = Receiver::start([Step::Read, ok()]).await;
    let there = SocketAddr::new(first.parse().unwrap(), receiver.port());
    (ground, names, receiver, there)
}

#[tokio::test]
async fn an_address_that_does_not_answer_is_overtaken_by_the_next() {
    let (ground, _names, receiver, there) = two_addresses("127.0.0.3").await;
    let deaf = Deaf::at(there).await;
    let attempt = ground.get(&format!("http://two.example.com:{}/", receiver.port())).await;
    assert_eq!(end_of(&attempt), "delivered", "{:?}", attempt.ended);
    let connection = attempt.connection.unwrap();
    assert_eq!(connection.remote, Some(receiver.address()));
    assert_eq!(connection.resolved.len(), 2);
    let connect = attempt.timings.connect.unwrap();
    assert!(connect >= Duration::from_millis(245), "{connect:?}");
    // The one that lost carried nothing.
    assert_eq!(deaf.address, there);
    assert!(deaf.drain().await.iter().all(|bytes| *bytes == 0));
    assert_eq!(receiver.requests(), 1);
}

#[tokio::test]
async fn an_address_that_refuses_is_followed_at_once() {
    let (ground, _names, receiver, _) = two_addresses("127.0.0.3").await;
    // So that no timer starts the second.
    let _clock = StoppedClock::stop();
    let attempt = ground.get(&format!("http://two.example.com:{}/", receiver.port())).await;
    assert_eq!(end_of(&attempt), "delivered", "{:?}", attempt.ended);
    assert_eq!(attempt.timings.connect, Some(Duration::ZERO));
    assert_eq!(receiver.requests(), 1);
}

#[tokio::test]
async fn where_no_address_answers_the_deadline_does() {
    let (ground, _names, receiver, there) = two_addresses("127.0.0.3").await;
    let port = receiver.port();
    drop(receiver);
    let attempt = ground.deliver(get(&format!("http://two.example.com:{port}/")), LONG).await;
    assert_eq!(end_of(&attempt), "failed connection_refused connect");
    assert!(attempt.ended.error.unwrap().message.contains("2 addresses"));
    let _deaf = Deaf::at(there).await;
    let attempt = ground.deliver(get(&format!("http://two.example.com:{port}/")), SHORT).await;
    assert_eq!(end_of(&attempt), "failed timeout connect");
    assert_eq!(attempt.sent_headers, None);
}

#[tokio::test]
async fn a_source_is_verified_by_a_fetch_through_it_alone() {
    // Our own addresses are closed to sends, and open to a fetch that asks how we are seen.
    let ours = SelfAddrs { interfaces: vec!["93.184.216.34".parse().unwrap()], ..SelfAddrs::default() };
    let ground = Plan { ours, ..Plan::new().sources(&[SOURCE, OTHER]) }.build();
    let receiver = Receiver::start([Step::Read, ok()]).await;
    let url = CheckedUrl::parse(&receiver.url("/whoami")).unwrap();
    let sources = ground.world.sources();
    for source in sources.all() {
        // Also, and above all, where it was taken out.
        sources.all().iter().for_each(|source| sources.verified(source, Verified::Drift));
        let fetched = ground.deliverer.fetch(&url, &source, Deadline::start(LONG)).await.unwrap();
        assert_eq!((fetched.status, &fetched.body[..], fetched.remote), (200, &b"ok"[..], Some(receiver.address())));
        assert_eq!(receiver.peers().last().unwrap().ip(), source.bind());
    }
    assert_eq!(end_of(&ground.get(&receiver.url("/")).await), "failed source_unavailable connect");
    let attempt = ground.get("http://93.184.216.34:8080/").await;
    assert_eq!(attempt.ended.error.unwrap().code, Code::PolicySelf);
    let source = ground.world.sources().all().remove(0);
    let blocked = CheckedUrl::parse("http://10.0.0.1:8080/whoami").unwrap();
    let failure = ground.deliverer.fetch(&blocked, &source, Deadline::start(SHORT)).await.unwrap_err();
    assert_eq!(failure.code, Code::PolicyAddress);
}
