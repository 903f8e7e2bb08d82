//! 1:1 NAT: a pair that is not true is found out by reflectors in the world, and comes back when it is.

use nix::sys::signal::Signal;

use crate::lab::{API, Lab, METRICS, PATIENCE, WORLD_V4, WORLD_V4_OTHER, end_of, list, published};

const SOURCES: [u8; 3] = [11, 12, 13];

#[tokio::test(flavor = "multi_thread")]
async fn a_false_pair_is_taken_out_until_it_is_true() {
    let mut lab = Lab::new(&SOURCES);
    lab.write_list(&list(&SOURCES));
    let reflectors = [WORLD_V4, WORLD_V4_OTHER].map(|address| format!("http://{address}:8080/whoami"));
    lab.configure(&SOURCES, &["v4"], &format!("[egress.verify]\nreflectors = {reflectors:?}\nevery = \"1s\"\n"));
    let (receiver, _other) = (lab.receiver(WORLD_V4, 8080).await, lab.receiver(WORLD_V4_OTHER, 8080).await);
    // Everyone may come in: a wrong address has to reach the reflectors to be seen.
    for address in ["198.51.100.11", "198.51.100.12", "198.51.100.13", "198.51.100.99"] {
        crate::lab::sh(&format!("ip netns exec {} nft add element inet wall v4 '{{ {address} }}'", lab.world));
    }
    lab.lets_arrive("198.51.100.99");
    lab.map(12, "198.51.100.99");
    lab.start();
    for source in ["198.51.100.11", "198.51.100.13"] {
        lab.logged(0, &["the source is seen as its published address", source]);
    }
    lab.logged(0, &["taken out", "198.51.100.12", "198.51.100.99"]);

    lab.metric("egressd_source_verified{source_ip=\"198.51.100.12\"}", |value| value == -1.0).await;
    lab.metric("egressd_source_usable{source_ip=\"198.51.100.12\"}", |value| value == 0.0).await;
    lab.metric("egressd_source_verified{source_ip=\"198.51.100.11\"}", |value| value == 1.0).await;
    let (status, ready) = lab.call(METRICS, "GET", "/readyz", "", &[]).await;
    assert_eq!(status, 200, "one source less does not make a node unready: {ready}");
    assert!(ready.contains("198.51.100.12"), "{ready}");
    let (code, table, errors) = lab.run(&["ips", "--config", &lab.config(), "--verify"]);
    assert_eq!(code, Some(1), "{table}{errors}");
    assert_eq!(table.lines().filter(|line| line.contains("DIFFERS")).count(), 2, "{table}");

    let mut caller = lab.caller(API).await;
    let url = format!("http://{WORLD_V4}:8080/hook");
    let mut used = std::collections::BTreeSet::new();
    for tenant in 0..24 {
        let record = caller.get(&format!("t{tenant}"), &url).await;
        assert_eq!(end_of(&record), "delivered", "{record}");
        used.insert(record["connection"]["public_ip"].as_str().expect("a source").to_owned());
    }
    assert_eq!(used.into_iter().collect::<Vec<_>>(), ["198.51.100.11", "198.51.100.13"]);

    let before = lab.log_length();
    lab.map(12, "198.51.100.12");
    lab.logged(before, &["the source is seen as its published address", "198.51.100.12"]);
    // The receiver's word: the last packets of connections from before are still mapped as those were.
    let again = format!("http://{WORLD_V4}:8080/again");
    for tenant in 0..24 {
        caller.get(&format!("t{tenant}"), &again).await;
    }
    let seen: std::collections::BTreeSet<_> = receiver.seen("/again").iter().map(std::net::SocketAddr::ip).collect();
    let v4 = published(&SOURCES).into_iter().filter(std::net::IpAddr::is_ipv4).collect();
    assert_eq!(seen, v4);
    let (code, table, errors) = lab.run(&["ips", "--config", &lab.config(), "--verify"]);
    assert_eq!(code, Some(0), "{table}{errors}");

    // With every pair false nothing leaves at all, and the node says so.
    let before = lab.log_length();
    for source in SOURCES {
        lab.map(source, "198.51.100.99");
    }
    for source in SOURCES {
        lab.logged(before, &["taken out", &format!("198.51.100.{source}")]);
    }
    // The log is told just before the last is out.
    let started = std::time::Instant::now();
    loop {
        let (status, ready) = lab.call(METRICS, "GET", "/readyz", "", &[]).await;
        if status == 503 {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "{status} {ready}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let ids = caller.submit("t0", &[url]).await;
    let (_, answer) =
        caller.call("GET", &format!("/v1/sends/{}?wait=2", ids[0]), "", &[("egressd-tenant", "t0")]).await;
    assert!(answer.contains("\"queued\""), "{answer}");
    let before = lab.log_length();
    lab.map(11, "198.51.100.11");
    lab.logged(before, &["the source is seen as its published address", "198.51.100.11"]);
    let record = caller.done("t0", &ids[0]).await;
    assert_eq!(end_of(&record), "delivered", "{record}");
    lab.signal(Signal::SIGTERM);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_delivery_leaves_before_the_reflectors_were_asked() {
    let mut lab = Lab::new(&SOURCES);
    lab.write_list(&list(&SOURCES));
    let reflectors = [WORLD_V4, WORLD_V4_OTHER].map(|address| format!("http://{address}:8080/hold/whoami"));
    lab.configure(&SOURCES, &["v4"], &format!("[egress.verify]\nreflectors = {reflectors:?}\n"));
    let reflectors = [lab.receiver(WORLD_V4, 8080).await, lab.receiver(WORLD_V4_OTHER, 8080).await];
    let receiver = lab.receiver(WORLD_V4, 8081).await;
    for address in ["198.51.100.11", "198.51.100.12", "198.51.100.13", "198.51.100.99"] {
        crate::lab::sh(&format!("ip netns exec {} nft add element inet wall v4 '{{ {address} }}'", lab.world));
    }
    lab.lets_arrive("198.51.100.99");
    lab.map(12, "198.51.100.99");
    let url = format!("http://{WORLD_V4}:8081/hook");
    let left_from = |receiver: &crate::lab::Receiver| -> std::collections::BTreeSet<String> {
        receiver.seen("/hook").iter().map(|peer| peer.ip().to_string()).collect()
    };

    // They are slow: what is sent meanwhile waits, and then leaves from where it may.
    lab.start();
    let mut caller = lab.caller(API).await;
    let mut ids = Vec::new();
    for tenant in 0..24 {
        let tenant = format!("t{tenant}");
        let id = caller.submit(&tenant, std::slice::from_ref(&url)).await.remove(0);
        ids.push((tenant, id));
    }
    for reflector in &reflectors {
        reflector.holds(SOURCES.len()).await;
    }
    assert_eq!(left_from(&receiver).len(), 0);
    for reflector in &reflectors {
        reflector.release();
    }
    for (tenant, id) in &ids {
        let record = caller.done(tenant, id).await;
        assert_eq!(end_of(&record), "delivered", "{record}");
    }
    let expected = ["198.51.100.11", "198.51.100.13"].map(str::to_owned);
    assert_eq!(left_from(&receiver), expected.into());
    lab.stop();

    // They are gone for good: nothing is known, and every source is used.
    let silent = ["http://192.0.2.253:8080/whoami", "http://192.0.2.254:8080/whoami"];
    lab.configure(&SOURCES, &["v4"], &format!("[egress.verify]\nreflectors = {silent:?}\n"));
    lab.start();
    let mut caller = lab.caller(API).await;
    for (tenant, _) in &ids {
        let record = caller.get(tenant, &url).await;
        assert_eq!(end_of(&record), "delivered", "{record}");
    }
    assert!(left_from(&receiver).contains("198.51.100.99"), "{:?}", left_from(&receiver));
    assert_eq!(lab.strangers(), 0);
}
