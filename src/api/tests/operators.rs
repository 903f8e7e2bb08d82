use serde_json::json;

use super::*;
use futures_util::FutureExt;

use crate::policy::Host;
use crate::source::Verified;

#[tokio::test]
async fn a_suspended_tenant_is_refused_until_it_is_lifted() {
    let desk = Desk::new();
    let waiting = Desk::accepted(&desk.post("/v1/sends", SEND).await);
    let made = desk.post("/v1/suspensions", r#"{"tenant":"default","reason":"abuse report 1"}"#).await;
    let suspension = made.ok(201);
    assert_eq!(suspension["tenant"], "default");
    assert_eq!((&suspension["by"], &suspension["lifted_at"]), (&json!("local"), &Value::Null));
    assert_eq!((&suspension["hit"], &suspension["covers"]), (&json!(1), &json!("every send of tenant default")));
    assert_eq!(suspension["warning"], Value::Null);
    // What waited has ended; what comes is refused.
    let ended = desk.get(&format!("/v1/sends/{waiting}")).await.ok(200);
    assert_eq!((&ended["outcome"], &ended["error"]["code"]), (&json!("blocked"), &json!("suspended")));
    let refused = desk.post("/v1/sends", SEND).await;
    assert!(refused.problem(403, "suspended").contains("abuse report 1"));
    desk.call("POST", "/v1/sends", &[("egressd-tenant", "other")], SEND).await.ok(202);

    let path = format!("/v1/suspensions/{}", suspension["id"].as_str().expect("an id"));
    let lifted = desk.call("DELETE", &path, &[], "").await;
    assert_eq!((lifted.status.as_u16(), lifted.body.len()), (204, 0));
    desk.call("DELETE", &path, &[], "").await.problem(404, "not_found");
    desk.post("/v1/sends", SEND).await.ok(202);
    let all = desk.get("/v1/suspensions").await.ok(200);
    assert_eq!(all["suspensions"][0]["lifted_by"], "local");
    assert_eq!(all["suspensions"][0]["reason"], "abuse report 1");
}

#[tokio::test]
async fn suspensions_are_changed_by_one_at_a_time() {
    let desk = Desk::new();
    let suspend = |host: &str| json!({ "host": host, "reason": "r" }).to_string();
    let first = desk.post("/v1/suspensions", &suspend("first.example.com")).await.ok(201);
    let path = format!("/v1/suspensions/{}", first["id"].as_str().expect("an id"));
    let bodies = [suspend("second.example.com"), suspend("third.example.com")];
    let turn = desk.intake.change_suspensions().await;
    // Whoever has read what is in force puts that in force before the next reads it.
    let mut changes = std::pin::pin!(futures_util::future::join3(
        desk.post("/v1/suspensions", &bodies[0]),
        desk.post("/v1/suspensions", &bodies[1]),
        desk.call("DELETE", &path, &[], ""),
    ));
    for _ in 0..100 {
        assert!(changes.as_mut().now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    let in_force = |host: &str| desk.world.suspensions().of_host(&Host::Name(host.into())).is_some();
    assert!(in_force("first.example.com") && !in_force("second.example.com"));
    drop(turn);
    let (second, third, lifted) = changes.await;
    second.ok(201);
    third.ok(201);
    assert_eq!(lifted.status.as_u16(), 204);
    let hosts = ["first.example.com", "second.example.com", "third.example.com"];
    assert_eq!(hosts.map(in_force), [false, true, true]);
}

#[tokio::test]
async fn a_suspension_of_whom_nothing_is_known_warns() {
    let desk = Desk::new();
    let send = r#"{"method":"GET","url":"https://example.com/","context":{"workflow":"shop"}}"#;
    desk.post("/v1/sends", send).await.ok(202);
    for (call, warned_of) in [
        (r#"{"tenant":"default","workflow":"shop","reason":"r"}"#, None),
        (r#"{"tenant":"default","workflow":"shpo","reason":"r"}"#, Some("workflow shpo of tenant default")),
        (r#"{"tenant":"defualt","reason":"r"}"#, Some("no send of tenant defualt")),
        (r#"{"tenant":"default","reason":"r"}"#, None),
        (r#"{"host":"never.example.com","reason":"r"}"#, None),
    ] {
        let made = desk.post("/v1/suspensions", call).await.ok(201);
        match (made["warning"].as_str(), warned_of) {
            (Some(warning), Some(of)) => assert!(warning.contains(of), "{call}: {warning}"),
            (warning, of) => assert_eq!(warning, of, "{call}"),
        }
    }
}

#[tokio::test]
async fn one_workflow_or_one_host_can_be_stopped_alone() {
    let desk = Desk::new();
    desk.post("/v1/suspensions", r#"{"tenant":"default","workflow":"scraper","reason":"r"}"#).await.ok(201);
    let of = |workflow: &str| {
        format!(r#"{{"method":"GET","url":"https://example.com/","context":{{"workflow":"{workflow}"}}}}"#)
    };
    desk.post("/v1/sends", &of("scraper")).await.problem(403, "suspended");
    desk.post("/v1/sends", &of("shop")).await.ok(202);
    let host = desk.post("/v1/suspensions", r#"{"host":"Victim.Example.com.","reason":"r"}"#).await.ok(201);
    assert_eq!((&host["host"], &host["hit"]), (&json!("victim.example.com"), &json!(0)));
    assert!(host["covers"].as_str().is_some_and(|covers| covers.contains("not the names under it")), "{host}");
    // Sends to a suspended host are accepted, and end blocked: their author sees them beside the others.
    desk.post("/v1/sends", r#"{"method":"GET","url":"https://victim.example.com/"}"#).await.ok(202);
    let explained = desk.post("/v1/explain", r#"{"method":"GET","url":"https://victim.example.com/"}"#).await;
    assert_eq!(explained.ok(200)["code"], "suspended");
}

#[tokio::test]
async fn a_host_may_be_all_under_a_name_or_a_network() {
    let desk = Desk::new();
    let waiting = ["https://a.victim.com/", "https://93.184.216.34/", "https://example.com/"];
    for url in waiting {
        desk.post("/v1/sends", &json!({"method": "GET", "url": url}).to_string()).await.ok(202);
    }
    for (host, shown, hit, covers) in [
        ("*.Victim.com", "*.victim.com", 1, "every name under victim.com"),
        ("93.184.216.0/24", "93.184.216.0/24", 1, "every address in 93.184.216.0/24"),
        ("[2606:4700::1]", "2606:4700::1", 0, "under every name that resolves to it"),
    ] {
        let made = desk.post("/v1/suspensions", &json!({"host": host, "reason": "r"}).to_string()).await.ok(201);
        assert_eq!((&made["host"], &made["hit"]), (&json!(shown), &json!(hit)));
        assert!(made["covers"].as_str().is_some_and(|said| said.contains(covers)), "{made}");
    }
    let left = desk.get("/v1/sends").await.ok(200);
    let states: Vec<_> = left["sends"].as_array().expect("a list").iter().map(|send| &send["state"]).collect();
    assert_eq!(states, [&json!("queued"), &json!("done"), &json!("done")]);
}

#[tokio::test]
async fn a_suspension_says_what_and_why() {
    let desk = Desk::new();
    for (body, places) in [
        ("{}", &["/reason", ""][..]),
        (r#"{"tenant":"a"}"#, &["/reason"]),
        (r#"{"reason":"r"}"#, &[""]),
        (r#"{"tenant":"a","host":"b.example.com","reason":"r"}"#, &["/host"]),
        (r#"{"host":"http://x/","reason":"r"}"#, &["/host"]),
        (r#"{"host":"0.0.0.0/0","reason":"r"}"#, &["/host"]),
        (r#"{"host":"*","workflow":"w"}"#, &["/reason", "/host", "/workflow"]),
        (r#"{"host":"b.example.com","workflow":"w","reason":"r"}"#, &["/workflow"]),
        (r#"{"tenant":1,"reason":""}"#, &["/tenant", "/reason"]),
        (r#"{"tenant":"a","reason":"r","until":"x"}"#, &["/until"]),
        ("[]", &[""]),
    ] {
        let answer = desk.post("/v1/suspensions", body).await;
        answer.problem(400, "shape");
        let errors = answer.json()["errors"].clone();
        let found: Vec<&str> =
            errors.as_array().expect("errors").iter().map(|one| one["pointer"].as_str().unwrap_or("?")).collect();
        assert_eq!(found, places, "{body}");
    }
    desk.get("/v1/suspensions?x=1").await.problem(400, "shape");
}

#[tokio::test]
async fn an_operator_of_one_tenant_stops_that_one_alone() {
    let desk = Desk::with(&clients(&[("operator", "*", "operate"), ("acme", "acme", "operate submit read")]));
    let call = async |name: &str, method: &str, path: &str, body: &str| {
        let token = format!("Bearer {name}");
        desk.call(method, path, &[("authorization", &token)], body).await
    };
    let own = call("acme", "POST", "/v1/suspensions", r#"{"tenant":"acme","workflow":"w","reason":"r"}"#).await.ok(201);
    call("acme", "POST", "/v1/suspensions", r#"{"tenant":"other","reason":"r"}"#).await.problem(403, "forbidden");
    call("acme", "POST", "/v1/suspensions", r#"{"host":"x.example.com","reason":"r"}"#).await.problem(403, "forbidden");
    let host = call("operator", "POST", "/v1/suspensions", r#"{"host":"x.example.com","reason":"r"}"#).await.ok(201);
    let count = |answer: Answer| answer.ok(200)["suspensions"].as_array().map(Vec::len);
    assert_eq!(count(call("acme", "GET", "/v1/suspensions", "").await), Some(1));
    assert_eq!(count(call("operator", "GET", "/v1/suspensions", "").await), Some(2));
    let path = |one: &Value| format!("/v1/suspensions/{}", one["id"].as_str().expect("an id"));
    call("acme", "DELETE", &path(&host), "").await.problem(404, "not_found");
    assert_eq!(call("acme", "DELETE", &path(&own), "").await.status, 204);
    assert_eq!(call("operator", "DELETE", &path(&host), "").await.status, 204);
}

#[tokio::test]
async fn an_operator_of_one_tenant_fills_no_others_list() {
    let desk = Desk::with(&clients(&[("operator", "*", "operate"), ("acme", "acme", "operate")]));
    let suspend = async |name: &str, workflow: usize| {
        let token = format!("Bearer {name}");
        let body = json!({"tenant": "acme", "workflow": format!("w{workflow}"), "reason": "r"}).to_string();
        desk.call("POST", "/v1/suspensions", &[("authorization", &token)], &body).await
    };
    let mut first = None;
    for workflow in 0..limits::SUSPENSIONS_OF_TENANT {
        first.get_or_insert(suspend("acme", workflow).await.ok(201));
    }
    // Also where it names one a second time.
    suspend("acme", 0).await.problem(429, "tenant_full");
    suspend("operator", 9999).await.ok(201);
    let id = first.as_ref().and_then(|made| made["id"].as_str()).expect("an id");
    for _ in 0..2 {
        let path = format!("/v1/suspensions/{id}");
        desk.call("DELETE", &path, &[("authorization", "Bearer acme")], "").await;
    }
    suspend("acme", 1).await.problem(429, "tenant_full");
}

#[tokio::test]
async fn tenants_show_who_is_noisy() {
    let desk = Desk::new();
    let noisy = [("egressd-tenant", "noisy")];
    let ids = desk.call("POST", "/v1/sends", &noisy, &format!("[{SEND},{SEND},{SEND}]")).await.ok(202);
    let id = |n: usize| ids["sends"][n]["id"].as_str().and_then(|id| id.parse().ok()).expect("an id");
    desk.call("POST", "/v1/executions/e/sends", &noisy, SEND).await.ok(202);
    desk.answer("noisy", id(0), 200).await;
    desk.answer("noisy", id(1), 500).await;
    desk.post("/v1/sends", SEND).await.ok(202);
    let tenants = desk.get("/v1/tenants").await.ok(200)["tenants"].clone();
    let names: Vec<&str> =
        tenants.as_array().expect("an array").iter().filter_map(|one| one["tenant"].as_str()).collect();
    assert_eq!(names, ["default", "noisy"]);
    assert_eq!(tenants[1]["held"], 1);
    assert_eq!((&tenants[1]["finished"]["delivered"], &tenants[1]["finished"]["rejected"]), (&json!(1), &json!(1)));
    assert_eq!(tenants[1]["finished"]["interrupted"], 0);
    assert!(tenants[0]["oldest_queued"].is_string());
}

#[tokio::test]
async fn a_node_that_is_alone_tells_of_itself() {
    let desk = Desk::new();
    desk.post("/v1/executions/e/sends", SEND).await.ok(202);
    let answer = desk.get("/v1/nodes").await.ok(200);
    let expected = json!({
        "held": 1, "queued": 0,
        "nodes": [{
            "node": "test", "version": env!("CARGO_PKG_VERSION"), "this": true, "lease_age_ms": null, "lease_ms": null,
            "sources": ["127.0.0.11"], "queued": 0, "in_flight": 0
        }]
    });
    assert_eq!(answer, expected);
    // Of one tenant there is nothing; what all have together is not told.
    let answer = desk.call("GET", "/v1/nodes", &[("egressd-tenant", "other")], "").await.ok(200);
    assert_eq!((&answer["held"], &answer["nodes"][0]["in_flight"]), (&json!(0), &json!(null)));
    desk.get("/v1/nodes?limit=1").await.problem(400, "shape");
}

#[tokio::test]
async fn sources_show_their_state_and_why() {
    let desk = Desk::new();
    let answer = desk.get("/v1/sources").await.ok(200);
    assert_eq!((&answer["node"], &answer["deadline_ms"]), (&json!("test"), &json!(5000)));
    assert_eq!(
        answer["sources"],
        json!([{
            "public_ip": "127.0.0.11", "bind_ip": "127.0.0.11", "pool": "default", "usable": true, "reason": null,
            "verified": "unknown", "in_flight": 0, "ports_used_ratio": 0.0
        }])
    );
    let sources = desk.world.sources();
    // One delivery under way from it, and gone again.
    let counters = desk.deliverer.dialer().metrics().of(&sources.all()[0]);
    let mut delivery = desk.deliverer.dialer().metrics().in_flight();
    delivery.leaves_from(&counters);
    assert_eq!(desk.get("/v1/sources").await.ok(200)["sources"][0]["in_flight"], 1);
    drop(delivery);
    assert_eq!(desk.get("/v1/sources").await.ok(200)["sources"][0]["in_flight"], 0);
    sources.verified(&sources.all()[0], Verified::Drift);
    let answer = desk.get("/v1/sources").await.ok(200);
    let source = &answer["sources"][0];
    assert_eq!((&source["usable"], &source["verified"]), (&json!(false), &json!("drift")));
    assert!(source["reason"].as_str().is_some_and(|reason| reason.contains("127.0.0.11")), "{source}");
}
