//! Nobody is slowed by a neighbour: what one tenant's receivers and name servers do, and how much it sends, is not
//! felt by another, nor by the same tenant's sends to other places.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harm::{Hostile, Kind};
use crate::name_server::{NameServer, Reply, address};
use crate::node::{Node, alone, call, counting_receiver};
use crate::tls::{Authority, Leaf};

/// What one tenant may have waiting: it is filled.
const QUEUED: usize = 3_000;

/// Sends are made until the tenant is told that it is full, which it alone is.
const UNTIL_FULL: usize = usize::MAX;

/// How many of the noise's sends go at once, to its one destination.
const AT_ONCE: u64 = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_neighbour_is_not_slowed_whatever_a_tenants_receivers_do_and_however_much_it_sends() {
    let _alone = alone().await;
    let names = NameServer::start(|asked| match asked.name.as_str() {
        name if name.starts_with("fast") => Reply::Records(vec![address(name, 60, "127.0.0.1")]),
        _ => Reply::Silence,
    })
    .await;
    let mut node = Node::new(&format!(
        // The noise stays: each of its turns takes a minute, so that who waits for one of them is seen to.
        "[delivery]\ndeadline = \"60s\"\ndrain = \"60s\"\nqueued_per_tenant = {QUEUED}\n[tls]\nextra_ca = [\"ca.pem\"]\n\
         [limits]\nresponse_body_read = \"16MiB\"\n"
    ));
    let text = std::fs::read_to_string(node.config()).expect("the configuration");
    let text = text.replace("127.0.0.1:53", &names.address().to_string());
    std::fs::write(node.config(), text).expect("the configuration");
    let authority = Authority::new();
    authority.write_pem(&node.path("ca.pem"));
    node.start();
    let acceptor = |alpn: &[&str]| authority.server(&["127.0.0.1"], Leaf::Good, alpn);
    let (fast, seen) = counting_receiver(Duration::ZERO).await;

    // Each beside those before it.
    let noise: [(&str, Option<Kind>, usize); 5] = [
        ("silent", Some(Kind::Silent), UNTIL_FULL),
        ("unaccepted", Some(Kind::Unaccepted), 300),
        ("name server", None, 300),
        ("large answers", Some(Kind::FloodBody), 200),
        ("answers in pieces", Some(Kind::FloodChunks), 100),
    ];
    let mut receivers = Vec::new();
    for (number, (what, kind, sends)) in noise.into_iter().enumerate() {
        let receiver = kind.map(|kind| Hostile::start(kind, &acceptor));
        let url = receiver.as_ref().map_or_else(|| "http://slow.example.org/".to_owned(), |receiver| receiver.url(0));
        receivers.push(receiver);
        let noisy = format!("noisy-{number}");
        let one = json!({ "method": "POST", "url": url, "data": { "name": "Luke" } });
        let mut accepted = 0;
        while accepted < sends {
            let (status, answer) = submit(&node, &noisy, &Value::Array(vec![one.clone(); 100])).await;
            if sends == UNTIL_FULL && status == 429 {
                assert_eq!(answer["code"], "tenant_full", "{answer}");
                assert!(accepted >= QUEUED, "full after {accepted}");
                break;
            }
            assert_eq!(status, 202, "{what}: {answer}");
            accepted += 100;
        }
        let both = [("quiet", "quiet"), (noisy.as_str(), "elsewhere")];
        for (who, path) in if sends == UNTIL_FULL { &both[..1] } else { &both } {
            let who = *who;
            for nth in 0..8 {
                // By a name of its own each, so that each is looked up.
                let host = format!("fast-{number}-{nth}-{path}.example.com:{}", fast.port());
                let one =
                    json!({ "method": "POST", "url": format!("http://{host}/{path}-{number}-{nth}"), "data": {} });
                let (status, answer) = submit(&node, who, &one).await;
                assert_eq!(status, 202, "{what}, {who}: {answer}");
                let record = node.done_as(who, answer["id"].as_str().expect("an id")).await;
                assert_eq!(record["outcome"], "delivered", "{what}, {who}: {record}");
            }
        }
        let busy = node.get("/v1/tenants").await;
        let busy =
            busy["tenants"].as_array().expect("a list").iter().find(|tenant| tenant["tenant"] == "noisy-0").cloned();
        let busy = busy.expect("the first of them is at it still");
        // Up to sixteen sends of each kind of noise were done before all but a few turns of what was there before them:
        // whatever a machine needs for a turn, it is the same for both.
        let [queued, in_flight] = ["queued", "in_flight"].map(|of| busy[of].as_u64().expect("a count"));
        assert!(queued + in_flight >= QUEUED as u64 - 3 * AT_ONCE, "{what}: its neighbours waited for turns: {busy}");
        assert!(in_flight > AT_ONCE / 2, "{what}: it is not at it: {busy}");
        assert!(in_flight <= AT_ONCE, "more than a destination of a tenant may have: {busy}");
    }
    assert!(seen.all().values().all(|peers| peers.len() == 1));
}

async fn submit(node: &Node, tenant: &str, body: &Value) -> (u16, Value) {
    let answer = call(node.api, "POST", "/v1/sends", &body.to_string(), &[("egressd-tenant", tenant)]).await;
    answer.expect("an answer")
}
