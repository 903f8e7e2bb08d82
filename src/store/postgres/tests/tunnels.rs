//! Tunnels of nodes that are gone.

use super::many::Schema;
use super::*;
use crate::outcome::Code;
use crate::record::Tunnel;
use crate::store::conformance::at;
use crate::store::conformance::tunnels::{ended, opened};

async fn codes(store: &Postgres) -> Vec<(String, Option<Option<Code>>)> {
    let page = store.tunnels(TunnelFilter::of(Reach::All), None, 99).await.expect("a page");
    let code = |tunnel: &Tunnel| tunnel.ended.as_ref().map(|ended| ended.code);
    let mut codes: Vec<_> = page.tunnels.iter().map(|tunnel| (tunnel.host.clone(), code(tunnel))).collect();
    codes.sort();
    codes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_of_a_node_that_is_gone_are_ended_by_the_others_and_go_with_their_retention() {
    let tier = Schema::fresh();
    let one = tier.node("one").await;
    let of = |node: &str, host: &str, seconds| {
        let tunnel = Tunnel::clone(&opened("acme", host, seconds));
        Arc::new(Tunnel { node: node.to_owned(), ..tunnel })
    };
    // Dead for a minute, for a moment, and so long that nobody knows it any more.
    let dead = "INSERT INTO node (name, version, suspensions, lease_until, dead_at) SELECT name, '1', 0, since, since FROM \
                (VALUES ('dead', clock_timestamp() - interval '61 seconds'), ('blinks', clock_timestamp() + interval '1 hour')) AS d(name, since)";
    let raw = tier.raw().await;
    raw.execute(dead, &[]).await.expect("dead");
    let own = of("one", "own.example.com", 1);
    let gone: Vec<_> = (2..7).map(|number| of("dead", &format!("dead{number}.example.com"), number)).collect();
    let (blinks, forgotten) = (of("blinks", "blinks.example.com", 8), of("forgotten", "forgotten.example.com", 9));
    let later = of("later", "later.example.com", 10);
    let all = [vec![own, blinks, forgotten, later], gone.clone()].concat();
    one.store.note_tunnels(all).await.expect("noted");
    let unreadable = "UPDATE tunnel SET form = '\\xff' WHERE node = 'later'";
    assert_eq!(raw.execute(unreadable, &[]).await.expect("written"), 1);
    one.store.retain(at(60)).await.expect("applied");
    assert_eq!(
        raw.execute("DELETE FROM tunnel WHERE node = 'later' AND ended_at IS NULL", &[]).await.expect("gone"),
        1
    );

    let interrupted = Some(Some(Code::Interrupted));
    let mut wanted = vec![
        ("blinks.example.com".to_owned(), None),
        ("forgotten.example.com".to_owned(), interrupted),
        ("own.example.com".to_owned(), None),
    ];
    wanted.extend(gone.iter().map(|tunnel| (tunnel.host.clone(), interrupted)));
    wanted.sort();
    assert_eq!(codes(&one.store).await, wanted);
    // One that was taken for dead, and was not, knows better; what others say of it afterwards is no news.
    let told = ended(&gone[0], 70);
    one.store.note_tunnels(vec![told.clone()]).await.expect("noted");
    one.store.note_tunnels(vec![Arc::new(gone[0].interrupted(at(80)))]).await.expect("noted");
    one.store.note_tunnels(vec![gone[0].clone()]).await.expect("noted");
    let page = one.store.tunnels(TunnelFilter::of(Reach::All), None, 99).await.expect("a page");
    assert!(page.tunnels.contains(&told), "{page:?}");

    let kept = tier.settings().retention;
    one.store.retain(at(90).saturating_add(kept).unwrap()).await.expect("applied");
    let left: Vec<_> = codes(&one.store).await.into_iter().map(|(host, _)| host).collect();
    assert_eq!(left, ["blinks.example.com", "own.example.com"]);
}
