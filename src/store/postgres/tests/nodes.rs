//! What the nodes of a tier see of each other, and whose a source address is.

use super::many::{Schema, eventually};
use super::*;

fn addresses(of: &[&str]) -> Vec<IpAddr> {
    of.iter().map(|text| text.parse().expect("an address")).collect()
}

fn held_by(node: &str, of: &[&str]) -> HashMap<IpAddr, String> {
    addresses(of).into_iter().map(|address| (address, node.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_sees_all_that_live_with_their_sources_and_load() {
    let tier = Schema::fresh();
    let with = || Settings { lease: Duration::from_secs(3), ..tier.settings() };
    let (b, a) = (tier.node_with("b", with()).await, tier.node_with("a", with()).await);
    a.store.hold_sources(&a.session, addresses(&["192.0.2.1", "2001:db8::1"])).await.expect("held");
    a.store.tell_load(NodeLoad { queued: 3, in_flight: 7 });
    let mut seen = Vec::new();
    eventually("its load is told", async || {
        seen = b.store.nodes().await.expect("nodes");
        seen[0].load == NodeLoad { queued: 3, in_flight: 7 }
    })
    .await;
    let told: Vec<_> = seen.iter().map(|node| (node.name.as_str(), node.sources.clone(), node.lease)).collect();
    let lease = Duration::from_secs(3);
    assert_eq!(told, [("a", addresses(&["192.0.2.1", "2001:db8::1"]), lease), ("b", Vec::new(), lease)]);
    assert!(seen.iter().all(|node| node.version == env!("CARGO_PKG_VERSION")));
    // Who has left is not there any more.
    a.store.close().await.expect("closed");
    assert_eq!(b.store.nodes().await.expect("nodes").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_is_one_nodes_at_a_time() {
    let tier = Schema::fresh();
    let with = || Settings { lease: Duration::from_secs(3), grace: Duration::from_secs(2), ..tier.settings() };
    let (one, other) = (tier.node_with("one", with()).await, tier.node_with("other", with()).await);
    let hold = async |node: &super::many::One, of: &[&str]| {
        node.store.hold_sources(&node.session, addresses(of)).await.expect("an answer")
    };
    // Both at once, of every address: one of them has it.
    let all = ["192.0.2.1", "192.0.2.2", "192.0.2.3"];
    let (ones, others) = tokio::join!(hold(&one, &all), hold(&other, &all));
    assert_eq!(ones.len() + others.len(), all.len(), "{ones:?} {others:?}");
    hold(&one, &[]).await;
    assert_eq!(hold(&other, &all).await, HashMap::new());
    assert_eq!(hold(&one, &all[..2]).await, held_by("other", &all[..2]));
    // What it lets go of is free at once.
    hold(&other, &all[..1]).await;
    assert_eq!(hold(&one, &all).await, held_by("other", &all[..1]));
    // Its own earlier life is no other.
    one.store.close().await.expect("closed");
    let one = tier.node_with("one", with()).await;
    assert_eq!(hold(&one, &all).await, held_by("other", &all[..1]));
    // A dead one's is free once nothing of it can be on the wire, and not before.
    let session = other.session.clone();
    drop(other);
    eventually("its source is free", async || hold(&one, &all).await.is_empty()).await;
    let grace = "SELECT dead_at + interval '2 seconds' <= clock_timestamp() FROM node WHERE name = 'other'";
    assert!(tier.raw().await.query_one(grace, &[]).await.expect("asked").get::<_, bool>(0));
    let late = one.store.hold_sources(&session, addresses(&all)).await;
    assert_eq!(late, Err(StoreError::Fenced(session.to_string())), "one that was taken for dead holds nothing");
}
