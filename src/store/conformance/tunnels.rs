//! Tunnels: each is found once, as it is now, by whoever may see it.

use super::*;
use crate::record::{Tunnel, TunnelEnd, TunnelEnded};

/// One that was opened `seconds` after the beginning.
pub fn opened(of: &str, host: &str, seconds: i64) -> Arc<Tunnel> {
    Arc::new(Tunnel {
        id: id_at(at(seconds)).0,
        tenant: tenant(of),
        node: NODE.to_owned(),
        client: Some(SocketAddr::from(([10, 0, 0, 7], 50_000))),
        host: host.to_owned(),
        port: 443,
        source: Some(IpAddr::from([10, 0, 0, 10])),
        public: Some(IpAddr::from([198, 51, 100, 10])),
        remote: Some(SocketAddr::from(([1, 1, 1, 1], 443))),
        resolved: vec![(IpAddr::from([1, 1, 1, 1]), Verdict::Allowed)],
        would_block: Some(Code::PolicyDenied),
        dns: Some(Duration::from_millis(3)),
        connect: None,
        server_name: None,
        begun_at: at(seconds),
        up: 0,
        down: 0,
        ended: None,
    })
}

/// The same, once it has ended.
pub fn ended(tunnel: &Tunnel, seconds: i64) -> Arc<Tunnel> {
    let ended = TunnelEnded { at: at(seconds), end: TunnelEnd::Closed, code: None, message: String::new() };
    let server_name = Some(tunnel.host.clone());
    Arc::new(Tunnel { up: 7, down: u64::from(u32::MAX) + 1, server_name, ended: Some(ended), ..tunnel.clone() })
}

fn refused(tunnel: &Tunnel, code: Code) -> Arc<Tunnel> {
    let (at, message) = (tunnel.begun_at, "it is not allowed".to_owned());
    let ended = TunnelEnded { at, end: TunnelEnd::Refused, code: Some(code), message };
    Arc::new(Tunnel { source: None, public: None, remote: None, ended: Some(ended), ..tunnel.clone() })
}

async fn found(store: &impl Store, filter: TunnelFilter) -> Vec<Tunnel> {
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let page = store.tunnels(filter.clone(), cursor, 2).await.expect("a page");
        assert!(page.tunnels.len() <= 2);
        found.extend(page.tunnels);
        match page.next {
            None => return found,
            next => cursor = next,
        }
    }
}

pub async fn a_tunnel_is_found_as_it_is_by_every_filter<S: Subject>() {
    let subject = S::fresh().await;
    let store = subject.store();
    let (open, long) = (opened("acme", "open.example.com", 10), opened("acme", "long.example.com", 20));
    let (short, other) = (opened("acme", "short.example.net", 30), opened("other", "short.example.net", 40));
    let blocked = refused(&opened("acme", "metadata.example.org", 50), Code::PolicyMetadata);
    let (short, other) = (ended(&short, 31), ended(&other, 41));
    store.note_tunnels(vec![open.clone(), long.clone()]).await.expect("noted");
    store.note_tunnels(vec![short.clone(), other.clone(), blocked.clone()]).await.expect("noted");
    let ended_long = ended(&long, 60);
    store.note_tunnels(vec![ended_long.clone()]).await.expect("noted");
    store.note_tunnels(Vec::new()).await.expect("nothing to note");

    let everything = found(store, TunnelFilter::of(Reach::All)).await;
    assert_eq!(everything.len(), 5, "each once");
    for tunnel in [&open, &ended_long, &short, &other, &blocked] {
        assert!(everything.contains(tunnel), "{tunnel:?}");
    }
    let acme = || TunnelFilter::of(Reach::One(tenant("acme")));
    let below = HostFilter::Below("example.com".to_owned());
    let public = Some(IpAddr::from([198, 51, 100, 10]));
    let bound = Some(IpAddr::from([10, 0, 0, 10]));
    let (since, until) = (Some(at(32)), Some(at(50)));
    for (filter, wanted) in [
        (acme(), vec![&open, &ended_long, &short, &blocked]),
        (TunnelFilter { host: Some(below), ..acme() }, vec![&open, &ended_long]),
        (TunnelFilter { host: Some(HostFilter::One("short.example.net".to_owned())), ..acme() }, vec![&short]),
        (TunnelFilter { source_ip: public, public_only: true, ..acme() }, vec![&open, &ended_long, &short]),
        (TunnelFilter { source_ip: bound, ..acme() }, vec![&open, &ended_long, &short]),
        (TunnelFilter { source_ip: bound, public_only: true, ..acme() }, vec![]),
        (TunnelFilter { ends: vec![TunnelEnd::Closed], ..acme() }, vec![&ended_long, &short]),
        (
            TunnelFilter { ends: vec![TunnelEnd::Closed, TunnelEnd::Refused], ..acme() },
            vec![&ended_long, &short, &blocked],
        ),
        (TunnelFilter { codes: vec![Code::PolicyMetadata], ..acme() }, vec![&blocked]),
        (TunnelFilter { codes: vec![Code::Timeout], ..acme() }, vec![]),
        // Whoever was there then, whenever it began.
        (TunnelFilter { since, ..acme() }, vec![&open, &ended_long, &blocked]),
        (TunnelFilter { until, ..acme() }, vec![&open, &ended_long, &short]),
        (TunnelFilter { since, until, ..acme() }, vec![&open, &ended_long]),
    ] {
        let mut found = found(store, filter.clone()).await;
        found.sort_by_key(|tunnel| tunnel.id);
        let mut wanted: Vec<_> = wanted.into_iter().map(|tunnel| Tunnel::clone(tunnel)).collect();
        wanted.sort_by_key(|tunnel| tunnel.id);
        assert_eq!(found, wanted, "{filter:?}");
    }
    let bad = store.tunnels(TunnelFilter::of(Reach::All), Some("nonsense".to_owned()), 1).await;
    assert_eq!(bad, Err(StoreError::BadCursor));
}

pub async fn a_tunnel_that_a_death_left_open_is_ended<S: Subject>() {
    let subject = S::fresh().await;
    let (open, done) = (opened("acme", "open.example.com", 10), opened("acme", "done.example.com", 20));
    subject.store().note_tunnels(vec![open.clone(), ended(&done, 21)]).await.expect("noted");
    let subject = subject.crash().await;
    let store = subject.store();
    assert_eq!(store.end_tunnels_left_open(NODE, at(100)).await, Ok(1));
    assert_eq!(store.end_tunnels_left_open(NODE, at(101)).await, Ok(0));
    let all = found(store, TunnelFilter::of(Reach::All)).await;
    assert_eq!(all.len(), 2);
    let code = |host: &str| {
        let tunnel = all.iter().find(|tunnel| tunnel.host == host).expect("it is there");
        tunnel.ended.as_ref().expect("it has ended").code
    };
    assert_eq!((code("open.example.com"), code("done.example.com")), (Some(Code::Interrupted), None));
    // What it carried nobody knows: that is not nothing.
    let carried = |host: &str| all.iter().find(|tunnel| tunnel.host == host).and_then(Tunnel::carried);
    assert_eq!((carried("open.example.com"), carried("done.example.com").is_some()), (None, true));
}
