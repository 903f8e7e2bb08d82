//! What a claim brings.

use bytes::Bytes;

use super::many::Schema;
use super::*;
use crate::store::conformance::{Draft, at, begin_of, begin_one, draft, tenant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_brings_what_is_small_and_can_be_read() {
    let tier = Schema::fresh();
    let node = tier.node("a").await;
    let of = |bytes: usize, secret| Draft { body: Some(Bytes::from(vec![b'x'; bytes])), secret, ..draft() };
    let forgotten = |bytes| Draft { keeps_body: false, ..of(bytes, None) };
    let drafts = [
        of(9, None),
        of(9, Some("Bearer token")),
        Draft { body: None, ..draft() },
        of(16 << 10, None),
        forgotten(8 << 10),
        forgotten(16 << 10),
        of((16 << 10) + 1, None),
        of(9, None),
    ];
    let mut all = Vec::new();
    for draft in &drafts {
        all.push(node.wait(draft).await);
    }
    let gone = tier.raw().await.execute("DELETE FROM send_body WHERE id = $1", &[&all[7].0]).await.expect("deleted");
    assert_eq!(gone, 1, "its request is gone");
    let want = Want { tenant: tenant("acme"), room: 9, full: Vec::new() };
    let claimed = node.store.claim(&node.session, vec![want], 9).await.expect("claimed").sends;
    assert_eq!(claimed.iter().map(|send| send.id).collect::<Vec<_>>(), all);
    let brought: Vec<_> = claimed.iter().map(|send| send.spec.is_some()).collect();
    assert_eq!(brought, [true, true, true, true, true, false, false, false]);
    for (n, (pending, draft)) in claimed.iter().zip(&drafts).enumerate() {
        let begin = Begin { spec: pending.spec.clone(), ..begin_of(pending.id, draft, at(2)) };
        let begun = begin_one(&node.store, &node.session, begin).await;
        assert_eq!(begun.as_ref().ok().map(Started::spec), (n != 7).then_some(&draft.send().spec), "{begun:?}");
    }
}
