//! On the way: only published addresses arrive, whatever happens to the addresses and to the packets.

use std::time::{Duration, Instant};

use crate::lab::{API, Lab, PATIENCE, WORLD_V4, WORLD_V6, end_of, inside, list, published, sh};
use crate::relay::SLOW;

const SOURCES: [u8; 3] = [11, 12, 13];

fn lab() -> Lab {
    let mut lab = Lab::new(&SOURCES);
    lab.write_list(&list(&SOURCES));
    // Far more than what is on the way needs, on a busy machine too: where the deadline comes, it was meant to.
    lab.configure(&SOURCES, &["v4", "v6"], "[delivery]\ndeadline = \"20s\"\ndrain = \"20s\"\n");
    lab.start();
    lab
}

fn urls(path: &str) -> [String; 2] {
    [format!("http://{WORLD_V4}:8080{path}"), format!("http://[{WORLD_V6}]:8080{path}")]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_leaves_unbound_is_seen_by_the_wall_and_by_the_capture() {
    let lab = Lab::new(&SOURCES);
    let capture = lab.capture();
    for (from, to) in [("0.0.0.0:0", WORLD_V4), ("[::]:0", WORLD_V6)] {
        inside(&lab.app, || {
            let socket = std::net::UdpSocket::bind(from).expect("a socket");
            socket.send_to(b"from nowhere", (to, 8080)).expect("a packet");
        });
    }
    let started = Instant::now();
    while lab.strangers() < 2 {
        assert!(started.elapsed() < PATIENCE, "the wall saw {} of two", lab.strangers());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(capture.sources(), published(&[5]));
    // Without this word the end of any test says what `nothing_but_published_addresses_ever_arrives` promises.
    for address in published(&[5]) {
        lab.lets_arrive(&address.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_published_addresses_ever_arrives() {
    let lab = lab();
    let capture = lab.capture();
    lab.admit_the_list().await;
    let (v4, v6) = (lab.receiver(WORLD_V4, 8080).await, lab.receiver(WORLD_V6, 8080).await);
    let mut caller = lab.caller(API).await;

    let mut used = std::collections::BTreeSet::new();
    for tenant in 0..24 {
        let tenant = format!("t{tenant}");
        for url in urls(&format!("/{tenant}/first")) {
            let record = caller.get(&tenant, &url).await;
            assert_eq!(end_of(&record), "delivered", "{record}");
            used.insert(record["connection"]["public_ip"].as_str().expect("a source").parse().expect("an address"));
        }
        let path = format!("/{tenant}/first");
        assert_eq!((v4.seen(&path).len(), v6.seen(&path).len()), (1, 1));
    }
    assert_eq!(used, published(&SOURCES));

    // An address is taken away while running: its destinations move, and nothing leaves unbound.
    lab.unplumb(12);
    for tenant in 0..24 {
        let tenant = format!("t{tenant}");
        for url in urls(&format!("/{tenant}/without")) {
            let record = caller.get(&tenant, &url).await;
            assert_eq!(end_of(&record), "delivered", "{record}");
            let source = record["connection"]["public_ip"].as_str().expect("a source");
            assert!(!source.ends_with("12"), "{record}");
        }
    }
    // All of them at once: what is accepted waits, and goes out from where it should.
    lab.unplumb(11);
    lab.unplumb(13);
    let ids = caller.submit("t0", &urls("/t0/later")).await;
    for source in SOURCES {
        lab.plumb(source);
    }
    for id in ids {
        let record = caller.done("t0", &id).await;
        assert!(["delivered", "source_unavailable"].contains(&end_of(&record)), "{record}");
    }
    // Given back, it is used again, in both families.
    let started = Instant::now();
    let (mut round, mut used) = (0, std::collections::BTreeSet::new());
    while !published(&[12]).is_subset(&used) {
        round += 1;
        for url in urls("/again") {
            let record = caller.get(&format!("again{round}"), &url).await;
            assert_eq!(end_of(&record), "delivered", "{record}");
            used.insert(record["connection"]["public_ip"].as_str().expect("a source").parse().expect("an address"));
        }
        assert!(started.elapsed() < PATIENCE, "of 198.51.100.12 and 2001:db8:1::12 only {used:?} were used again");
    }
    assert_eq!(lab.strangers(), 0);
    assert_eq!(capture.sources(), published(&SOURCES));
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_that_are_lost_cost_time_and_nothing_is_sent_twice() {
    let lab = lab();
    let capture = lab.capture();
    lab.admit_the_list().await;
    let (v4, v6) = (lab.receiver(WORLD_V4, 8080).await, lab.receiver(WORLD_V6, 8080).await);
    sh(&format!(
        "ip netns exec {} nft 'table inet road {{ chain forward {{ type filter hook forward priority 0; \
         meta l4proto tcp {} drop; }}; }}'",
        lab.router,
        one_of_a_hundred(25)
    ));
    let mut caller = lab.caller(API).await;
    let mut sent = Vec::new();
    for tenant in 0..10 {
        let tenant = format!("t{tenant}");
        for number in 0..5 {
            let path = format!("/{tenant}/{number}");
            let ids = caller.submit(&tenant, &urls(&path)).await;
            sent.extend(
                ids.into_iter().zip([&v4, &v6]).map(|(id, receiver)| (tenant.clone(), path.clone(), id, receiver)),
            );
        }
    }
    let mut delivered = 0;
    for (tenant, path, id, receiver) in sent {
        let record = caller.done(&tenant, &id).await;
        let count = receiver.seen(&path).len();
        match end_of(&record) {
            "delivered" => {
                delivered += 1;
                assert_eq!(count, 1, "{record}");
            }
            "timeout" => assert!(count <= 1, "{record}"),
            _ => panic!("{record}"),
        }
    }
    assert!(delivered >= 50, "only {delivered} of 100 were delivered");
    assert_eq!(lab.strangers(), 0);
    let arrived = capture.sources();
    assert!(arrived.is_subset(&published(&SOURCES)), "{arrived:?}");
}

/// Matches so many of every hundred packets, always the same ones of them: where they stand is from a seed, for what
/// comes at even distances may meet a sender that repeats at even ones.
fn one_of_a_hundred(percent: usize) -> String {
    let mut state = 0x5eed_u64;
    let mut those = std::collections::BTreeSet::new();
    while those.len() < percent {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        those.insert((state >> 33) % 100);
    }
    let those: Vec<_> = those.iter().map(ToString::to_string).collect();
    format!("numgen inc mod 100 {{ {} }}", those.join(", "))
}

/// What a delivery to a port of [`SLOW`] came to.
struct Slow {
    tenant: String,
    id: String,
    path: String,
    delay: u16,
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_slow_road_deliveries_take_their_time_and_end_at_their_deadline() {
    // Each to there; nothing is kept back on the way from there. 300: at ease. 1500: answered after 3 s, or 4 where the
    // first SYN was lost. 12,000: connected in time, the answer would come after 24. 25,000: not even connected.
    const DELAYS: [u16; 4] = [300, 1500, 12_000, 25_000];
    let lab = lab();
    lab.admit_the_list().await;
    let _near = (lab.receiver(WORLD_V4, 8080).await, lab.receiver(WORLD_V6, 8080).await);
    let mut caller = lab.caller(API).await;
    // Once on the fast road from every source that is used here, so that all neighbours know each other.
    for number in 0..6 {
        for url in urls("/first") {
            caller.get(&format!("t{number}"), &url).await;
        }
    }
    lab.slow_road();
    let mut receivers = std::collections::HashMap::new();
    for delay in DELAYS {
        for address in [WORLD_V4, WORLD_V6] {
            receivers.insert((delay, address), lab.receiver(address, SLOW + delay).await);
        }
    }
    let mut sent = Vec::new();
    for delay in DELAYS {
        for number in 0..6 {
            let (tenant, path) = (format!("t{number}"), format!("/{delay}/{number}"));
            let port = SLOW + delay;
            let urls = [format!("http://{WORLD_V4}:{port}{path}"), format!("http://[{WORLD_V6}]:{port}{path}")];
            for (id, address) in caller.submit(&tenant, &urls).await.into_iter().zip([WORLD_V4, WORLD_V6]) {
                sent.push((address, Slow { tenant: tenant.clone(), id, path: path.clone(), delay }));
            }
        }
    }
    for (address, Slow { tenant, id, path, delay }) in sent {
        let record = caller.done(&tenant, &id).await;
        let timing = |phase: &str| record["timings_ms"][phase].as_f64();
        let total = timing("total").expect("a time");
        let seen = receivers[&(delay, address)].seen(&path).len();
        let least = f64::from(delay);
        match delay {
            300 | 1500 => {
                assert_eq!((end_of(&record), seen), ("delivered", 1), "{record}");
                assert!(timing("connect").is_some_and(|connect| connect >= least), "{record}");
                assert!(timing("wait").is_some_and(|wait| wait >= least), "{record}");
                assert!(total >= 2.0 * least, "{record}");
            }
            _ => {
                assert_eq!(end_of(&record), "timeout", "{record}");
                let phase = if delay == 12_000 { "wait" } else { "connect" };
                assert_eq!(record["error"]["phase"], phase, "{record}");
                assert!(total >= 20_000.0, "{record}");
            }
        }
    }
    // The request of the third kind comes when nobody waits for its answer any more; never twice.
    for ((delay, address), receiver) in &receivers {
        let twice = (0..6).find(|number| receiver.seen(&format!("/{delay}/{number}")).len() > 1);
        assert_eq!(twice, None, "towards {address} with {delay} ms");
    }
    assert_eq!(lab.strangers(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_road_that_is_slow_and_loses_packets_costs_time_and_nothing_else() {
    const DELAY: u16 = 200;
    let lab = lab();
    lab.admit_the_list().await;
    lab.slow_road();
    let port = SLOW + DELAY;
    let (v4, v6) = (lab.receiver(WORLD_V4, port).await, lab.receiver(WORLD_V6, port).await);
    sh(&format!(
        "ip netns exec {} nft 'table inet road {{ chain forward {{ type filter hook forward priority 0; \
         iifname {{ slow, outer }} meta l4proto tcp {} drop; }}; }}'",
        lab.router,
        one_of_a_hundred(10)
    ));
    let mut caller = lab.caller(API).await;
    let mut sent = Vec::new();
    for number in 0..40 {
        let (tenant, path) = (format!("t{number}"), format!("/{number}"));
        let urls = [format!("http://{WORLD_V4}:{port}{path}"), format!("http://[{WORLD_V6}]:{port}{path}")];
        let ids = caller.submit(&tenant, &urls).await;
        sent.extend(ids.into_iter().zip([&v4, &v6]).map(|(id, receiver)| (tenant.clone(), path.clone(), id, receiver)));
    }
    let mut delivered = 0;
    for (tenant, path, id, receiver) in sent {
        let record = caller.done(&tenant, &id).await;
        let total = record["timings_ms"]["total"].as_f64().expect("a time");
        match end_of(&record) {
            "delivered" => {
                delivered += 1;
                assert_eq!(receiver.seen(&path).len(), 1, "{record}");
            }
            "timeout" => assert!(total >= 20_000.0 && receiver.seen(&path).len() <= 1, "{record}"),
            _ => panic!("{record}"),
        }
    }
    assert!(delivered >= 60, "only {delivered} of 80 were delivered");
    assert_eq!(lab.strangers(), 0);
}
