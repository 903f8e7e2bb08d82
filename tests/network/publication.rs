//! The list while running: a new address waits for its notice, one that goes finishes what it began.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;

use crate::lab::{API, Lab, PATIENCE, WORLD_V4, end_of, list, published, sh};

#[tokio::test(flavor = "multi_thread")]
async fn the_list_for_the_world_is_the_apis_and_nothing_else_is_there() {
    let mut lab = Lab::new(&[11]);
    lab.write_list(&list(&[11]));
    lab.configure(&[11], &["v4", "v6"], "[publish]\nlisten = \"[::]:8702\"\n");
    lab.start();
    for address in ["10.1.0.5:8702", "[2001:db8:1::5]:8702"] {
        let mut world = lab.caller(address).await;
        for path in ["/public-ips.txt", "/public-ips.json"] {
            let (status, own) = world.call("GET", path, "", &[]).await;
            assert_eq!((status, own), lab.call(API, "GET", path, "", &[]).await, "{path}");
        }
        let (status, caller) = world.call("GET", "/whoami", "", &[]).await;
        // Within the app: it calls itself from the address that it calls.
        let expected = address.trim_end_matches(":8702").trim_matches(['[', ']']);
        assert_eq!((status, caller.trim()), (200, expected));
        let given = [("if-none-match", "*")];
        assert_eq!(world.call("GET", "/public-ips.txt", "", &given).await, (304, String::new()));
        for path in ["/", "/public-ips.atom"] {
            assert_eq!(world.call("GET", path, "", &[]).await.0, 200, "{path}");
        }
        for path in ["/index.html", "/v1/sends", "/metrics", "/openapi.json", "/healthz"] {
            assert_eq!(world.call("GET", path, "", &[]).await.0, 404, "{path}");
        }
    }
}

async fn status_of(lab: &Lab, address: &str) -> Option<String> {
    let (_, json) = lab.call(API, "GET", "/public-ips.json", "", &[]).await;
    let json: Value = serde_json::from_str(&json).expect("JSON");
    let prefix = format!("{address}/32");
    let entry = json["prefixes"].as_array()?.iter().find(|entry| entry["ipv4Prefix"] == prefix)?.clone();
    entry["status"].as_str().map(str::to_owned)
}

async fn token(lab: &Lab) -> u64 {
    let (_, json) = lab.call(API, "GET", "/public-ips.json", "", &[]).await;
    let json: Value = serde_json::from_str(&json).expect("JSON");
    json["syncToken"].as_str().expect("a token").parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_announces_one_address_and_retires_another_without_dropping_a_delivery() {
    let mut lab = Lab::new(&[11, 12, 13]);
    lab.write_list(&list(&[11, 12]));
    let notice = Duration::from_secs(8);
    let more = "[egress]\nnotice = \"8s\"\n[delivery]\ndeadline = \"20s\"\ndrain = \"20s\"\n";
    lab.configure(&[11, 12], &["v4"], more);
    lab.start();
    for address in published(&[11, 12, 13]).into_iter().filter(std::net::IpAddr::is_ipv4) {
        sh(&format!("ip netns exec {} nft add element inet wall v4 '{{ {address} }}'", lab.world));
    }
    let capture = lab.capture();
    let receiver = lab.receiver(WORLD_V4, 8080).await;
    let mut caller = lab.caller(API).await;
    let before = token(&lab).await;

    // Deliveries in flight from both.
    let mut held = Vec::new();
    for tenant in 0..12 {
        let tenant = format!("t{tenant}");
        let ids = caller.submit(&tenant, &[format!("http://{WORLD_V4}:8080/hold/{tenant}")]).await;
        held.push((tenant, ids[0].clone()));
    }
    receiver.holds(12).await;

    let today = clock().to_zoned(jiff::tz::TimeZone::UTC).date();
    lab.write_list(&format!("198.51.100.11\n198.51.100.12 retires={today}\n198.51.100.13\n"));
    lab.configure(&[11, 12, 13], &["v4"], more);
    let reloaded = clock();
    lab.reload();
    assert_eq!(status_of(&lab, "198.51.100.12").await.as_deref(), Some("retiring"));
    assert_eq!(status_of(&lab, "198.51.100.13").await.as_deref(), Some("announced"));
    assert!(token(&lab).await > before);

    receiver.release();
    let mut used = std::collections::BTreeSet::new();
    for (tenant, id) in held {
        let record = caller.done(&tenant, &id).await;
        assert_eq!(end_of(&record), "delivered", "{record}");
        used.insert(record["connection"]["public_ip"].as_str().expect("a source").to_owned());
    }
    assert_eq!(used.into_iter().collect::<Vec<_>>(), ["198.51.100.11", "198.51.100.12"]);

    // A restart forgets nothing: the store knows when the address was first published.
    lab.stop();
    lab.start();
    let mut caller = lab.caller(API).await;
    let waiting = Instant::now();
    let first = (0..).map(|number| format!("n{number}"));
    let mut finished = None;
    for tenant in first {
        let record = caller.get(&tenant, &format!("http://{WORLD_V4}:8080/new")).await;
        assert_eq!(end_of(&record), "delivered", "{record}");
        match record["connection"]["public_ip"].as_str() {
            Some("198.51.100.11") => {}
            Some("198.51.100.13") => {
                // Its source is chosen some time after it is started.
                finished = record["finished_at"].as_str().map(|at| at.parse::<Timestamp>().expect("a time"));
                break;
            }
            _ => panic!("{record}"),
        }
        assert!(waiting.elapsed() < PATIENCE, "198.51.100.13 was never used");
    }
    let waited = finished.expect("an end").duration_since(reloaded);
    assert!(waited.unsigned_abs() >= notice, "used after {waited}");
    assert_eq!(lab.strangers(), 0);
    let v4 = published(&[11, 12, 13]).into_iter().filter(std::net::IpAddr::is_ipv4).collect();
    assert_eq!(capture.sources(), v4);
}

fn clock() -> Timestamp {
    egressd::clock::wall()
}
