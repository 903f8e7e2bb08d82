//! Ports: twenty of them, so that their end is near. A source carries as many connections towards one peer as there are
//! ports, N sources N times as many, and the end is told before and when it comes.

use crate::lab::{API, Lab, WORLD_V4, WORLD_V4_OTHER, end_of, list, sh};

const PORTS: usize = 20;

fn lab(sources: &[u8], delivery: &str) -> Lab {
    let mut lab = Lab::new(sources);
    lab.write_list(&list(sources));
    lab.configure(sources, &["v4"], &format!("[delivery]\nkeep_alive = \"0s\"\n{delivery}"));
    sh(&format!(
        "ip netns exec {} sysctl -qw net.ipv4.ip_local_port_range='40000 40019' net.ipv4.tcp_tw_reuse=0",
        lab.app
    ));
    lab.start();
    lab
}

#[tokio::test(flavor = "multi_thread")]
async fn every_source_brings_all_of_its_ports() {
    for sources in [vec![11], vec![11, 12, 13]] {
        let lab = lab(&sources, "deadline = \"30s\"\ndrain = \"30s\"\n");
        lab.admit_the_list().await;
        let (receiver, other) = (lab.receiver(WORLD_V4, 8080).await, lab.receiver(WORLD_V4_OTHER, 8080).await);
        let mut caller = lab.caller(API).await;
        let all = PORTS * sources.len();
        let urls: Vec<_> = (0..all).map(|number| format!("http://{WORLD_V4}:8080/hold/{number}")).collect();
        let ids = caller.submit("acme", &urls).await;
        receiver.holds(all).await;
        for source in &sources {
            let series = format!("egressd_source_ports_used_ratio{{source_ip=\"198.51.100.{source}\"}}");
            lab.metric(&series, |value| value == 1.0).await;
        }
        let record = caller.get("acme", &format!("http://{WORLD_V4}:8080/one-too-many")).await;
        assert_eq!(end_of(&record), "source_ports_exhausted", "{record}");
        assert!(receiver.seen("/one-too-many").is_empty());
        for source in &sources {
            let series = format!("egressd_source_ports_exhausted_total{{source_ip=\"198.51.100.{source}\"}}");
            lab.metric(&series, |value| value >= 1.0).await;
        }
        // Only towards that peer.
        let record = caller.get("acme", &format!("http://{WORLD_V4_OTHER}:8080/else")).await;
        assert_eq!(end_of(&record), "delivered", "{record}");
        assert_eq!(other.seen("/else").len(), 1);
        receiver.release();
        let mut counts = std::collections::HashMap::<String, usize>::new();
        for id in ids {
            let record = caller.done("acme", &id).await;
            assert_eq!(end_of(&record), "delivered", "{record}");
            let source = record["connection"]["public_ip"].as_str().expect("a source").to_owned();
            *counts.entry(source).or_default() += 1;
        }
        assert!(counts.len() == sources.len() && counts.values().all(|count| *count == PORTS), "{counts:?}");
        assert_eq!(lab.strangers(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_in_time_wait_count_and_the_next_source_takes_over() {
    for sources in [vec![11], vec![11, 12, 13]] {
        let lab = lab(&sources, "");
        lab.admit_the_list().await;
        let receiver = lab.receiver(WORLD_V4, 8080).await;
        let mut caller = lab.caller(API).await;
        // The receiver keeps connections open, so that we close first and the waiting is ours.
        let mut ends = Vec::new();
        for number in 0..PORTS * sources.len() + 2 {
            let record = caller.get("acme", &format!("http://{WORLD_V4}:8080/{number}")).await;
            let count = receiver.seen(&format!("/{number}")).len();
            ends.push((end_of(&record).to_owned(), count));
        }
        let delivered = ends.iter().filter(|end| **end == ("delivered".to_owned(), 1)).count();
        let exhausted = ends.iter().filter(|end| **end == ("source_ports_exhausted".to_owned(), 0)).count();
        assert_eq!((delivered, exhausted), (PORTS * sources.len(), 2), "{ends:?}");
        assert_eq!(lab.strangers(), 0);
    }
}
