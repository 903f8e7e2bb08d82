//! Choosing: a tenant's pool is kept to whatever happens, in both families, and a receiver sees a steady address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::lab::{API, Caller, Lab, WORLD_V4, WORLD_V6, end_of, list, published};

fn urls(path: &str) -> [String; 2] {
    [format!("http://{WORLD_V4}:8080{path}"), format!("http://[{WORLD_V6}]:8080{path}")]
}

fn left_from(record: &Value) -> IpAddr {
    record["connection"]["public_ip"].as_str().expect("a source").parse().expect("an address")
}

/// Where each tenant's sends leave from towards each of the two receivers.
async fn chosen(caller: &mut Caller, tenants: &[String]) -> BTreeMap<(String, String), IpAddr> {
    let mut chosen = BTreeMap::new();
    for tenant in tenants {
        for url in urls("/chosen") {
            let record = caller.get(tenant, &url).await;
            assert_eq!(end_of(&record), "delivered", "{record}");
            chosen.insert((tenant.clone(), url), left_from(&record));
        }
    }
    chosen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_is_never_left_and_a_receiver_sees_a_steady_address() {
    let mut lab = Lab::new(&[11, 12, 13, 14]);
    lab.write_list(&list(&[11, 12, 13, 14]));
    let source = |public: &str, bind: &str, pool: &str| {
        format!("[[egress.source]]\npublic = \"{public}\"\nbind = \"{bind}\"\npool = \"{pool}\"\n")
    };
    let more = [
        source("198.51.100.13", "10.1.0.13", "few"),
        source("2001:db8:1::13", "2001:db8:1::13", "few"),
        source("198.51.100.14", "10.1.0.14", "old"),
        "[[tenant]]\nid = \"careful\"\npool = \"few\"\n[[tenant]]\nid = \"legacy\"\npool = \"old\"\n".to_owned(),
    ];
    lab.configure(&[11, 12], &["v4", "v6"], &more.concat());
    lab.start();
    lab.admit_the_list().await;
    let (v4, v6) = (lab.receiver(WORLD_V4, 8080).await, lab.receiver(WORLD_V6, 8080).await);
    let mut caller = lab.caller(API).await;
    let tenants: Vec<_> = (0..16).map(|tenant| format!("t{tenant}")).chain(["careful".to_owned()]).collect();

    let before = chosen(&mut caller, &tenants).await;
    let of = |tenant: &dyn Fn(&str) -> bool| -> BTreeSet<IpAddr> {
        before.iter().filter(|((name, _), _)| tenant(name)).map(|(_, source)| *source).collect()
    };
    assert_eq!(of(&|tenant| tenant == "careful"), published(&[13]));
    assert_eq!(of(&|tenant| tenant != "careful"), published(&[11, 12]));
    let seen: BTreeSet<_> =
        [&v4, &v6].iter().flat_map(|receiver| receiver.seen("/chosen")).map(|peer| peer.ip()).collect();
    assert_eq!(seen, published(&[11, 12, 13]));
    // A pool without a source of the only family there is: no other pool's, and the send says so.
    let record = caller.get("legacy", &urls("/legacy")[0]).await;
    assert_eq!((end_of(&record), left_from(&record)), ("delivered", "198.51.100.14".parse().expect("an address")));
    let record = caller.get("legacy", &urls("/legacy")[1]).await;
    assert_eq!(end_of(&record), "source_unavailable", "{record}");
    assert!(v6.seen("/legacy").is_empty());

    // The pool's only addresses go: its sends wait, or expire unsent, and everybody else's go on.
    lab.unplumb(13);
    for family in ["198.51.100.13", "2001:db8:1::13"] {
        lab.metric(&format!("egressd_source_usable{{source_ip=\"{family}\"}}"), |value| value == 0.0).await;
    }
    let waiting = caller.submit("careful", &urls("/waits")).await;
    let short = json!({"method": "GET", "url": urls("/expires")[0], "expires_in": 1}).to_string();
    let headers = [("egressd-tenant", "careful")];
    let (_, record) = caller.call("POST", "/v1/sends", &short, &headers).await;
    let record: Value = serde_json::from_str(&record).expect("JSON");
    let record = caller.done("careful", record["id"].as_str().expect("an id")).await;
    assert_eq!(end_of(&record), "expired", "{record}");
    for url in urls("/others") {
        assert_eq!(end_of(&caller.get("t0", &url).await), "delivered");
    }
    for (id, receiver) in waiting.iter().zip([&v4, &v6]) {
        let (_, record) = caller.call("GET", &format!("/v1/sends/{id}"), "", &headers).await;
        assert!(record.contains("\"queued\"") && receiver.seen("/waits").is_empty(), "{record}");
    }
    assert!(v4.seen("/expires").is_empty());
    lab.plumb(13);
    for id in &waiting {
        let record = caller.done("careful", id).await;
        assert_eq!(end_of(&record), "delivered", "{record}");
        assert!(published(&[13]).contains(&left_from(&record)), "{record}");
    }

    // Another process chooses the same.
    lab.stop();
    lab.start();
    let mut caller = lab.caller(API).await;
    assert_eq!(chosen(&mut caller, &tenants).await, before);
    assert_eq!(lab.strangers(), 0);
}
