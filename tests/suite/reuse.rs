//! Connections that carry more than one request: only where it was proven safe, and a request that one of them lost
//! is lost.

use std::time::Duration;

use egressd::deadline::Deadline;
use egressd::dial::Dialer;
use egressd::policy::{CheckedUrl, SelfAddrs};
use egressd::send::TenantId;

use crate::support::ground::{Ground, LONG, Plan, end_of, get, post};
use crate::support::receiver::{Receiver, Step, ok, write};

/// Answers every request until the other side is gone.
fn willing() -> Vec<Step> {
    std::iter::repeat_n([Step::Read, ok()], 100).flatten().collect()
}

/// Lets idle time pass without waiting for it. Nothing else may be under way.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// One send, and then enough idle time, looked at, to prove that its connection stays open.
async fn prove(ground: &Ground, url: &str) {
    assert_eq!(end_of(&ground.get(url).await), "delivered");
    pass(Duration::from_millis(300)).await;
    ground.deliverer.tend();
}

async fn reused(ground: &Ground, url: &str) -> bool {
    let attempt = ground.get(url).await;
    assert_eq!(end_of(&attempt), "delivered", "{:?}", attempt.ended);
    attempt.connection.unwrap().reused
}

#[tokio::test]
async fn a_connection_that_stayed_open_carries_the_next_request() {
    let ground = Ground::new();
    let receiver = Receiver::start(willing()).await;
    let url = receiver.url("/");
    prove(&ground, &url).await;
    for _ in 0..3 {
        let attempt = ground.get(&url).await;
        let connection = attempt.connection.unwrap();
        assert!(connection.reused);
        assert_eq!((connection.source, connection.remote), (Some(receiver.peers()[0]), Some(receiver.address())));
        // Nothing was looked up, connected or agreed on.
        let timings = attempt.timings;
        assert_eq!((timings.dns, timings.connect, timings.tls), (None, None, None));
    }
    assert_eq!((receiver.peers().len(), receiver.requests()), (1, 4));
}

#[tokio::test]
async fn until_it_is_proven_every_request_has_its_own_connection() {
    let ground = Ground::new();
    let receiver = Receiver::start(willing()).await;
    for _ in 0..3 {
        assert!(!reused(&ground, &receiver.url("/")).await);
    }
    assert_eq!((receiver.peers().len(), receiver.requests()), (3, 3));
}

#[tokio::test]
async fn a_tenants_connection_is_not_anothers() {
    let ground = Ground::new();
    let receiver = Receiver::start(willing()).await;
    prove(&ground, &receiver.url("/")).await;
    let attempt = ground.deliver_for("other", get(&receiver.url("/")), LONG).await;
    assert!(!attempt.connection.unwrap().reused);
    assert_eq!(receiver.peers().len(), 2);
}

#[tokio::test]
async fn what_this_node_asks_for_its_own_sake_leaves_nothing_for_a_tenant_of_any_name() {
    let ground = Ground::new();
    let receiver = Receiver::start(willing()).await;
    let source = ground.world.sources().all().remove(0);
    let url = CheckedUrl::parse(&receiver.url("/whoami")).unwrap();
    for fetched in 1..=2 {
        ground.deliverer.fetch(&url, &source, Deadline::start(LONG)).await.unwrap();
        // Closed, whoever might have come next.
        receiver.ended(fetched).await;
        pass(Duration::from_millis(300)).await;
        ground.deliverer.tend();
    }
    for (before, tenant) in [(2, "egressd"), (3, TenantId::OURSELVES.as_str())] {
        let attempt = ground.deliver_for(tenant, get(&receiver.url("/")), LONG).await;
        assert!(!attempt.connection.unwrap().reused, "{tenant}");
        assert_eq!(receiver.peers().len(), before + 1);
    }
}

#[tokio::test]
async fn a_connection_that_the_receiver_closed_is_not_written_to() {
    let ground = Ground::new();
    let receiver =
        Receiver::at(
            [127, 0, 0, 1].into(),
            None,
            |number| if number == 0 { vec![Step::Read, ok()] } else { willing() },
        )
        .await;
    prove(&ground, &receiver.url("/")).await;
    let attempt = ground.deliver(post(&receiver.url("/"), "x"), LONG).await;
    assert_eq!(end_of(&attempt), "delivered");
    assert!(!attempt.connection.unwrap().reused);
    assert_eq!((receiver.peers().len(), receiver.requests()), (2, 2));
}

#[tokio::test]
async fn a_request_that_a_stale_connection_took_is_never_made_again() {
    for end in [vec![Step::Read], vec![Step::Read, Step::Reset]] {
        let ground = Ground::new();
        // The second request of the first connection is read and not answered.
        let first = [vec![Step::Read, ok()], end].concat();
        let receiver = Receiver::at(
            [127, 0, 0, 1].into(),
            None,
            move |number| {
                if number == 0 { first.clone() } else { willing() }
            },
        )
        .await;
        let url = receiver.url("/");
        prove(&ground, &url).await;
        let attempt = ground.deliver(post(&url, "once"), LONG).await;
        assert_eq!(attempt.ended.outcome.label(), "failed");
        assert!(attempt.connection.unwrap().reused);
        let message = attempt.ended.error.unwrap().message;
        assert!(message.contains("not sent again"), "{message}");
        assert_eq!((receiver.peers().len(), receiver.requests()), (1, 2));

        // From now on its connections are not reused, until ten minutes have passed.
        prove(&ground, &url).await;
        prove(&ground, &url).await;
        assert_eq!(receiver.peers().len(), 3);
        pass(Duration::from_secs(601)).await;
        prove(&ground, &url).await;
        assert!(reused(&ground, &url).await);
        assert_eq!((receiver.peers().len(), receiver.requests()), (4, 6));
    }
}

#[tokio::test]
async fn what_ends_a_connections_use() {
    let zero = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n";
    for (name, answer) in [
        ("it says so", format!("{zero}connection: close\r\n\r\n")),
        ("HTTP/1.0", "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n".to_owned()),
        ("it keeps it for a second, and a second is our margin", format!("{zero}keep-alive: timeout=1\r\n\r\n")),
        ("a folded line", format!("{zero}x: 1\r\n 2\r\n\r\n")),
        ("a space before a colon", format!("{zero}x : 1\r\n\r\n")),
        ("bytes after the end", format!("{zero}\r\nHTTP/1.1 200 OK\r\n\r\n")),
        ("garbage after the end", format!("{zero}\r\n\0")),
    ] {
        let ground = Ground::new();
        let receiver = Receiver::start([Step::Read, write(answer), Step::Read, ok()]).await;
        prove(&ground, &receiver.url("/")).await;
        receiver.ended(1).await;
        let _ = ground.get(&receiver.url("/")).await;
        assert_eq!(receiver.peers().len(), 2, "{name}");
    }
}

#[tokio::test]
async fn bytes_that_come_while_idle_end_a_connections_use() {
    let ground = Ground::new();
    let late = [Step::Read, ok(), Step::Pause(Duration::from_millis(50)), write("HTTP/1.1 200 OK\r\n\r\n"), Step::Hold];
    let receiver = Receiver::start(late).await;
    assert_eq!(end_of(&ground.get(&receiver.url("/")).await), "delivered");
    // Closed as soon as it is looked at, which the receiver notices.
    let closed = receiver.ended(1);
    tokio::pin!(closed);
    let looks = async {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            ground.deliverer.tend();
        }
    };
    // No longer than the receiver's own patience.
    tokio::select! {
        () = &mut closed => {}
        () = looks => {}
    }
    assert_eq!(receiver.requests(), 1);
}

#[tokio::test]
async fn an_idle_connection_is_closed_when_its_time_is_over() {
    let ground = Ground::new();
    let receiver = Receiver::start(willing()).await;
    prove(&ground, &receiver.url("/")).await;
    pass(Duration::from_secs(4)).await;
    assert!(!reused(&ground, &receiver.url("/")).await);
    receiver.ended(1).await;
    pass(Duration::from_secs(4)).await;
    ground.deliverer.tend();
    receiver.ended(2).await;
}

#[tokio::test]
async fn without_keep_alive_nothing_is_kept() {
    let ground = Plan::new().delivery("keep_alive = \"0s\"").build();
    let receiver = Receiver::start(willing()).await;
    for connections in 1..4 {
        prove(&ground, &receiver.url("/")).await;
        receiver.ended(connections).await;
    }
}

#[tokio::test]
async fn after_a_reload_no_connection_from_before_is_used() {
    let ground = Ground::new();
    let receiver = Receiver::start(willing()).await;
    prove(&ground, &receiver.url("/")).await;
    ground.deliverer.reload(Dialer::prepare(&ground.world.config()).unwrap());
    receiver.ended(1).await;
    assert!(!reused(&ground, &receiver.url("/")).await);
    ground.world.set_ours(SelfAddrs { interfaces: vec!["192.0.2.1".parse().unwrap()], ..SelfAddrs::default() });
    ground.deliverer.tend();
    receiver.ended(2).await;
}

#[tokio::test]
async fn a_connection_grows_no_older_than_the_answer_that_led_to_it() {
    let ground = Ground::new();
    let receiver = Receiver::start(willing()).await;
    prove(&ground, &receiver.url("/")).await;
    let mut spent = 0;
    while reused(&ground, &receiver.url("/")).await {
        pass(Duration::from_secs(1)).await;
        spent += 1;
        assert!(spent < 70);
    }
    assert!(spent >= 58);
    assert_eq!(receiver.peers().len(), 2);
}
