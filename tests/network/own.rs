//! What is this host's own by a `local` route, which no list of interfaces tells: no send reaches it.

use crate::lab::{API, Lab, end_of, list, sh};

const SOURCES: [u8; 2] = [11, 12];

#[tokio::test(flavor = "multi_thread")]
async fn what_the_kernel_takes_for_its_own_by_a_route_is_not_reached() {
    let mut lab = Lab::new(&SOURCES);
    lab.write_list(&list(&SOURCES));
    let opened =
        "[[policy.exception]]\nnetworks = [\"93.184.218.0/24\", \"2606:2800:220::/48\"]\nreason = \"a test\"\n";
    let more = format!("[publish]\nlisten = \"0.0.0.0:8702\"\n{opened}");
    lab.configure(&SOURCES, &["v4", "v6"], &more);
    let app = format!("ip -n {}", lab.app);
    for network in ["93.184.217.0/24", "93.184.218.0/24"] {
        sh(&format!("{app} route add local {network} dev lo"));
    }
    for network in ["2606:2800:21f::/48", "2606:2800:220::/48"] {
        sh(&format!("{app} -6 route add local {network} dev lo"));
    }
    // And one that only what leaves from the sources is looked up in.
    sh(&format!("{app} route add local 93.184.219.0/24 dev lo table 77"));
    for source in SOURCES {
        sh(&format!("{app} rule add from 10.1.0.{source} lookup 77 priority 100"));
    }
    lab.start();
    let mut caller = lab.caller(API).await;
    for (host, end) in [
        ("93.184.217.77:8702", "policy_self"),
        ("93.184.217.77:9000", "policy_self"),
        ("[::ffff:93.184.217.77]:8702", "policy_self"),
        ("[64:ff9b::93.184.217.77]:8702", "policy_self"),
        ("[2606:2800:21f::77]:8702", "policy_self"),
        ("93.184.219.77:8702", "policy_self"),
        // An exception opens what it names: here nobody listens, and there we do.
        ("93.184.218.77:9000", "connection_refused"),
        ("[2606:2800:220::77]:9000", "connection_refused"),
        ("93.184.218.77:8702", "policy_self"),
        ("10.1.0.11:8702", "policy_address"),
    ] {
        let record = caller.get("acme", &format!("http://{host}/public-ips.txt")).await;
        assert_eq!(end_of(&record), end, "{host}: {record}");
    }
    // A route that comes while the appliance runs counts as well.
    sh(&format!("{app} route add local 93.184.221.0/24 dev lo"));
    let record = caller.get("acme", "http://93.184.221.1:8702/").await;
    assert_eq!(end_of(&record), "policy_self", "{record}");
    lab.stop();
}
