//! What the process logs of sends: a share for each tenant, and a count of the rest.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::node::{Node, call};

const SENDS: usize = 600;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_whose_every_send_is_refused_does_not_fill_the_journal() {
    let mut node = Node::started("");
    let blocked = json!({ "method": "GET", "url": "http://169.254.169.254/" });
    let submit = async |tenant: &str, count: usize| {
        let body = Value::Array(vec![blocked.clone(); count]).to_string();
        let answer = call(node.api, "POST", "/v1/sends", &body, &[("egressd-tenant", tenant)]).await;
        let (status, answer) = answer.expect("an answer");
        assert_eq!(status, 202, "{answer}");
        answer["sends"].as_array().expect("records").iter().map(|send| send["id"].clone()).collect::<Vec<_>>()
    };
    for (tenant, count) in [("loud", SENDS), ("quiet", 3)] {
        for id in submit(tenant, count).await {
            let record = node.done_as(tenant, id.as_str().expect("an id")).await;
            assert_eq!(record["error"]["code"], "policy_metadata", "every record says so: {record}");
        }
    }
    node.signal(Signal::SIGTERM);
    assert_eq!(node.ended(), Some(0));

    let lines: Vec<Value> = node.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let of = |message: &str, tenant: &str| -> Vec<Value> {
        let fields = lines.iter().map(|line| line["fields"].clone());
        fields.filter(|fields| fields["message"] == message && fields["tenant"] == tenant).collect()
    };
    assert_eq!(of("send ended", "quiet").len(), 3);
    let (written, told) = (of("send ended", "loud").len(), of("more like this in the last minute", "loud"));
    assert!(told.iter().all(|told| told["like"] == "send ended"), "{told:?}");
    let left_out: u64 = told.iter().map(|told| told["left_out"].as_u64().expect("a number")).sum();
    // However many minutes it took.
    assert!(written >= 60 && left_out > 0, "{written} written, {left_out} left out");
    assert_eq!(written + left_out as usize, SENDS, "none is lost sight of");
}
