use serde_json::json;

use super::*;

/// The keys of an object in their order, as text.
fn keys(body: &[u8], path: &[&str]) -> Vec<String> {
    use serde_json::value::RawValue;
    struct Keys(Vec<(String, Box<RawValue>)>);
    impl<'de> serde::Deserialize<'de> for Keys {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Visit;
            impl<'de> serde::de::Visitor<'de> for Visit {
                type Value = Keys;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("an object")
                }
                fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                    let mut entries = Vec::new();
                    while let Some(entry) = map.next_entry()? {
                        entries.push(entry);
                    }
                    Ok(Keys(entries))
                }
            }
            deserializer.deserialize_map(Visit)
        }
    }
    let Keys(entries) = serde_json::from_slice(body).expect("an object");
    match path {
        [] => entries.into_iter().map(|(key, _)| key).collect(),
        [first, rest @ ..] => {
            let (_, inner) = entries.into_iter().find(|(key, _)| key == first).expect("the key");
            keys(inner.get().as_bytes(), rest)
        }
    }
}

#[tokio::test]
async fn one_send_is_answered_with_its_record() {
    let desk = Desk::new();
    let answer = desk
        .post(
            "/v1/sends",
            r#"{"method":"POST","url":"https://example.com/x","data":{"a":1},"params":{"q":"v w"},
                "headers":{"Host":"evil","X-A":["1","2"]},"auth":{"username":"u","password":"p"},
                "context":{"workflow":"w","step":"s"}}"#,
        )
        .await;
    let record = answer.ok(202);
    let id = Desk::accepted(&answer);
    assert_eq!(answer.header("location"), format!("/v1/sends/{id}"));
    assert_eq!(record["state"], "queued");
    assert_eq!(record["outcome"], Value::Null);
    assert_eq!(
        record["context"],
        json!({"tenant": "default", "workflow": "w", "execution": null, "step": "s", "index": null})
    );
    let request = &record["request"];
    assert_eq!(request["url"], "https://example.com/x?q=v%20w");
    assert_eq!(request["dropped_headers"], json!(["host"]));
    assert_eq!(request["headers"]["x-a"], json!(["1", "2"]));
    assert_eq!(request["headers"]["content-type"], json!(["application/json"]));
    let authorization = request["headers"]["authorization"][0].as_str().expect("shown");
    assert!(authorization.starts_with("[redacted hmac:"), "{authorization}");
    assert_eq!((&request["body"], &request["body_encoding"]), (&json!("{\"a\":1}"), &json!("utf8")));
    assert_eq!((&request["body_bytes"], &request["body_truncated"]), (&json!(7), &json!(false)));
    assert_eq!(request["body_sha256"], "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862");
    assert_eq!(record["node"], "test");
    assert_eq!(record["created_at"], record["released_at"]);
    // What was accepted is what is read.
    assert_eq!(desk.get(&format!("/v1/sends/{id}")).await.ok(200), record);
}

#[tokio::test]
async fn a_record_has_every_key_in_the_contracts_order() {
    let desk = Desk::new();
    let id = Desk::accepted(&desk.post("/v1/sends", SEND).await);
    let queued = desk.get(&format!("/v1/sends/{id}")).await;
    desk.answer("default", id, 200).await;
    let done = desk.get(&format!("/v1/sends/{id}")).await;
    for answer in [&queued, &done] {
        assert_eq!(
            keys(&answer.body, &[]).join(" "),
            "id state outcome error resend_of context request response would_block connection timings_ms node \
             created_at released_at started_at finished_at"
        );
        assert_eq!(keys(&answer.body, &["context"]).join(" "), "tenant workflow execution step index");
        assert_eq!(
            keys(&answer.body, &["request"]).join(" "),
            "method url headers dropped_headers body body_encoding body_bytes body_truncated body_sha256"
        );
        assert_eq!(keys(&answer.body, &["timings_ms"]).join(" "), "held queued dns connect tls write wait read total");
    }
    assert_eq!(
        keys(&done.body, &["response"]).join(" "),
        "status version headers body body_encoding body_bytes body_declared body_truncated"
    );
    assert_eq!(
        keys(&done.body, &["connection"]).join(" "),
        "source_ip public_ip source_port remote_ip remote_port resolved reused tls"
    );
    let record = done.json();
    assert_eq!(record["response"]["body"], "hello");
    assert_eq!(record["timings_ms"]["wait"], 20.5);
    assert_eq!(record["timings_ms"]["dns"], 1.234);
    assert_eq!(record["timings_ms"]["tls"], Value::Null);
    assert_eq!((&record["state"], &record["outcome"]), (&json!("done"), &json!("delivered")));
}

#[tokio::test]
async fn an_error_has_every_key_and_a_redirect_says_where_it_points_without_a_code() {
    let desk = Desk::new();
    let ended = async |status| {
        let id = Desk::accepted(&desk.post("/v1/sends", SEND).await);
        desk.answer("default", id, status).await;
        desk.get(&format!("/v1/sends/{id}")).await
    };
    for (status, outcome) in [(299, "delivered"), (400, "rejected")] {
        let record = ended(status).await.ok(200);
        assert_eq!((&record["outcome"], &record["error"]), (&json!(outcome), &Value::Null), "{status}");
    }
    let redirected = ended(308).await;
    assert_eq!(keys(&redirected.body, &["error"]).join(" "), "code phase processed message");
    let record = redirected.json();
    assert_eq!(record["outcome"], "rejected");
    assert_eq!((&record["error"]["code"], &record["error"]["processed"]), (&Value::Null, &json!("yes")));
    assert!(record["error"]["message"].as_str().is_some_and(|text| text.contains("308")), "{record}");

    let discarded = Desk::accepted(&desk.post("/v1/executions/e/sends", SEND).await);
    desk.post("/v1/executions/e/discard", "").await.ok(200);
    let record = desk.get(&format!("/v1/sends/{discarded}")).await;
    assert_eq!(keys(&record.body, &["error"]).join(" "), "code phase processed message");
    assert_eq!(record.json()["error"]["processed"], "no");
}

#[tokio::test]
async fn several_sends_are_answered_in_call_order_without_bodies() {
    let desk = Desk::new();
    let answer = desk
        .post(
            "/v1/sends",
            r#"[{"method":"POST","url":"https://example.com/1","data":"x"},{"method":"GET","url":"not a url"}]"#,
        )
        .await;
    let sends = answer.ok(202)["sends"].clone();
    assert_eq!(sends[0]["request"]["url"], "https://example.com/1");
    assert_eq!((&sends[0]["request"]["body"], &sends[0]["request"]["body_bytes"]), (&Value::Null, &json!(1)));
    assert_eq!(sends[1]["request"]["url"], "not a url");
    assert_eq!(answer.header("location"), "");
}

#[tokio::test]
async fn a_call_of_wrong_shape_is_refused_whole() {
    let desk = Desk::new();
    let answer =
        desk.post("/v1/sends", &format!(r#"[{SEND},{{"method":"post","url":"https://example.com/","body":1}}]"#)).await;
    answer.problem(400, "shape");
    assert_eq!(
        answer.json()["errors"],
        json!([
            {"pointer": "/1/body", "detail": "is not a key that is known here: method, url, data, data_base64, headers, params, auth, email, s3, sql, context, expires_in", "hint": "write data"},
            {"pointer": "/1/method", "detail": "methods are written in upper case", "hint": "write POST"},
        ])
    );
    assert_eq!(desk.get("/v1/sends").await.ok(200)["sends"], json!([]));
    for body in ["[]", "{", "null", "", "3"] {
        desk.post("/v1/sends", body).await.problem(400, "shape");
    }
    desk.post("/v1/sends?wait=1", SEND).await.problem(400, "shape");
}

#[tokio::test]
async fn a_large_call_is_read_like_any_other() {
    let desk = Desk::new();
    let data = "x".repeat(limits::INLINE_BYTES);
    let send = format!(r#"{{"method":"POST","url":"https://example.com/","data":"{data}"}}"#);
    assert_eq!(desk.post("/v1/sends", &send).await.ok(202)["request"]["body_bytes"], data.len());
    desk.post("/v1/sends", &send.replace("POST", "post")).await.problem(400, "shape");
}

#[tokio::test]
async fn size_alone_is_413() {
    let desk = Desk::with("[limits]\nrequest_body = \"1KiB\"\nsends_per_request = 2\n");
    let send = format!(r#"{{"method":"POST","url":"https://example.com/","data":"{}"}}"#, "x".repeat(1025));
    desk.post("/v1/sends", &send).await.problem(413, "too_large");
    desk.post("/v1/sends", &format!("[{SEND},{SEND},{SEND}]")).await.problem(413, "too_large");
    // Beside a problem of shape it is one of several problems.
    desk.post("/v1/sends", &format!("[{send},{{}}]")).await.problem(400, "shape");
}

#[tokio::test]
async fn the_same_key_answers_the_first_calls_sends() {
    let desk = Desk::new();
    let with_key =
        async |key: &str, body: &str| desk.call("POST", "/v1/sends", &[("idempotency-key", key)], body).await;
    let first = with_key("k1", SEND).await;
    let id = Desk::accepted(&first);
    assert_eq!(first.header("idempotency-replayed"), "");
    desk.answer("default", id, 500).await;
    let again = with_key("k1", SEND).await;
    assert_eq!((again.ok(202)["id"].as_str(), again.header("idempotency-replayed")), (Some(&*id.to_string()), "true"));
    assert_eq!(again.json()["outcome"], "rejected");
    with_key("k1", r#"{"method":"GET","url":"https://example.com/2"}"#).await.problem(422, "idempotency_mismatch");
    with_key("k1", "not even json").await.problem(422, "idempotency_mismatch");
    assert_ne!(Desk::accepted(&with_key("k2", SEND).await), id);
    // Scoped to tenant and path.
    let other_tenant =
        desk.call("POST", "/v1/sends", &[("idempotency-key", "k1"), ("egressd-tenant", "other")], SEND).await;
    assert_ne!(Desk::accepted(&other_tenant), id);
    let held = desk.call("POST", "/v1/executions/e/sends", &[("idempotency-key", "k1")], SEND).await;
    assert_ne!(Desk::accepted(&held), id);
    // A replay comes before any refusal, limits lowered since then included.
    let large = r#"{"method":"POST","url":"https://example.com/","data":"0123456789012345678901234567890123456789"}"#;
    with_key("k3", large).await.ok(202);
    desk.intake.drain();
    with_key("k3", large).await.ok(202);
    with_key("k4", SEND).await.problem(503, "draining");
    for key in ["", " ", &"k".repeat(limits::IDEMPOTENCY_KEY_CHARS_MAX + 1), "ü"] {
        let mut headers = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_str(key) {
            headers.insert("idempotency-key", value);
        }
        assert!(headers.is_empty() || sends::idempotency_key(&headers).is_err(), "{key:?}");
    }
}

#[tokio::test]
async fn a_caller_that_prefers_little_is_told_ids_and_states_alone() {
    let desk = Desk::new();
    let told = async |prefer: &str, key: &str, path: &str, body: &str| {
        let answer = desk.call("POST", path, &[("prefer", prefer), ("idempotency-key", key)], body).await;
        (answer.header("preference-applied").to_owned(), answer.header("location").to_owned(), answer.ok(202))
    };
    let names = |of: &Value| of.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    let (applied, location, one) = told("return=minimal", "one", "/v1/sends", SEND).await;
    assert_eq!((applied.as_str(), names(&one)), ("return=minimal", vec!["id".to_owned(), "state".to_owned()]));
    let id = one["id"].as_str().expect("an id").to_owned();
    assert_eq!(location, format!("/v1/sends/{id}"));
    let record = desk.get(&format!("/v1/sends/{id}")).await.ok(200);
    assert_eq!(record["state"], one["state"], "as it is");
    // An array, held ones, a replay once it is done, and what is sent again.
    let (_, _, several) = told("return=minimal", "several", "/v1/sends", &format!("[{SEND},{SEND}]")).await;
    let several: Vec<_> = several["sends"].as_array().expect("sends").iter().map(names).collect();
    assert_eq!(several, [["id", "state"], ["id", "state"]]);
    let (_, _, held) = told("return=minimal", "held", "/v1/executions/e/sends", SEND).await;
    assert_eq!((names(&held), &held["state"]), (vec!["id".to_owned(), "state".to_owned()], &Value::from("held")));
    desk.answer("default", id.parse().expect("an id"), 500).await;
    let (_, _, again) = told("return=minimal", "one", "/v1/sends", SEND).await;
    assert_eq!(again, serde_json::json!({"id": id, "state": "done"}));
    let (_, location, resent) = told("return=minimal", "resent", &format!("/v1/sends/{id}/resend"), "").await;
    assert_eq!(
        (names(&resent), location),
        (vec!["id".to_owned(), "state".to_owned()], format!("/v1/sends/{}", resent["id"].as_str().expect("an id")))
    );
    // The rest of what may be preferred changes nothing; of one name the first counts.
    for (prefer, is_minimal) in [
        ("return=representation", false),
        ("respond-async", false),
        ("return", false),
        ("return=\"minimal\"", true),
        ("respond-async, Return = minimal; foo=bar", true),
        ("return=representation, return=minimal", false),
        ("wait=10;return=minimal", false),
    ] {
        let (applied, _, one) = told(prefer, prefer, "/v1/sends", SEND).await;
        assert_eq!((applied == "return=minimal", names(&one).len() == 2), (is_minimal, is_minimal), "{prefer}");
    }
}

#[tokio::test]
async fn an_array_replays_as_an_array() {
    let desk = Desk::new();
    let body = format!("[{SEND},{SEND}]");
    let first = desk.call("POST", "/v1/sends", &[("idempotency-key", "k")], &body).await.ok(202);
    let again = desk.call("POST", "/v1/sends", &[("idempotency-key", "k")], &body).await.ok(202);
    assert_eq!(first, again);
    assert_eq!(again["sends"].as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn a_replay_names_sends_whose_records_are_gone() {
    let desk = Desk::new();
    let with_key = async |key: &str, body: &str| {
        let answer = desk.call("POST", "/v1/sends", &[("idempotency-key", key)], body).await;
        assert_eq!(answer.header("idempotency-replayed"), "true");
        answer.ok(202)
    };
    let first =
        async |key: &str, body: &str| desk.call("POST", "/v1/sends", &[("idempotency-key", key)], body).await.ok(202);
    let id_of = |record: &Value| record["id"].as_str().expect("an id").to_owned();
    let done = async |id: &str| desk.answer("default", id.parse().expect("an id"), 200).await;
    let one = id_of(&first("one", SEND).await);
    let several = first("several", &format!("[{SEND},{SEND},{SEND}]")).await;
    let several: Vec<String> = several["sends"].as_array().expect("sends").iter().map(id_of).collect();
    for id in [&one, &several[0], &several[2]] {
        done(id).await;
    }
    let later = clock::wall() + jiff::SignedDuration::from_hours(31 * 24);
    desk.ledger.store.retain(later).await.expect("retained");
    desk.get(&format!("/v1/sends/{one}")).await.problem(404, "not_found");
    let gone = |id: &str| serde_json::json!({"id": id, "state": "gone"});
    assert_eq!(with_key("one", SEND).await, gone(&one), "an object by an object");
    let again = with_key("several", &format!("[{SEND},{SEND},{SEND}]")).await;
    assert_eq!((&again["sends"][0], &again["sends"][2]), (&gone(&several[0]), &gone(&several[2])));
    assert_eq!(again["sends"][1]["id"], *several[1], "in call order, those among them that are there as they are");
    assert_eq!(again["sends"][1]["state"], "queued");
}

#[tokio::test]
async fn too_much_says_when_to_come_again() {
    let desk = Desk::with("[delivery]\nqueued = 3\nqueued_per_tenant = 2\n[limits]\nsends_per_request = 2\n");
    desk.post("/v1/sends", &format!("[{SEND},{SEND}]")).await.ok(202);
    let full = desk.post("/v1/sends", SEND).await;
    full.problem(429, "tenant_full");
    assert!(full.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds >= 1));
    let other = [("egressd-tenant", "other")];
    desk.call("POST", "/v1/sends", &other, SEND).await.ok(202);
    let node = desk.call("POST", "/v1/sends", &other, SEND).await;
    node.problem(503, "node_full");
    assert!(node.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds >= 1));
    // How many wait in all is for operators to know, which everyone here is without clients.
    assert!(node.problem(503, "node_full").contains("3 sends waiting"));
    desk.intake.drain();
    let draining = desk.post("/v1/sends", SEND).await;
    draining.problem(503, "draining");
    assert!(!draining.header("retry-after").is_empty());
}

#[tokio::test]
async fn a_full_node_tells_no_tenant_how_much_others_have_waiting() {
    let rows =
        [("a", "a", "submit"), ("b", "b", "submit"), ("nodes", "*", "submit"), ("operator", "*", "submit operate")];
    let desk = Desk::with(&format!("[delivery]\nqueued = 7\nqueued_per_tenant = 7\n{}", clients(&rows)));
    let several = format!("[{}]", [SEND; 5].join(","));
    let submit = async |name: &str, path: &str, body: &str| {
        let token = format!("Bearer {name}");
        desk.call("POST", path, &[("authorization", &token), ("egressd-tenant", "a")], body).await
    };
    let waits = desk.call("POST", "/v1/sends", &[("authorization", "Bearer b")], &several).await;
    waits.ok(202);
    for path in ["/v1/sends", "/v1/executions/e/sends"] {
        for name in ["a", "nodes"] {
            let refused = submit(name, path, &several).await;
            let detail = refused.problem(503, "node_full");
            assert!(!detail.contains(|c: char| c.is_ascii_digit()), "{detail}");
            assert_eq!(refused.header("retry-after"), "5");
        }
        assert!(submit("operator", path, &several).await.problem(503, "node_full").contains("5 sends waiting, 7 may"));
    }
}

#[tokio::test]
async fn a_store_that_cannot_write_is_503() {
    let desk = Desk::new();
    desk.ledger.store.close().await.expect("closed");
    for answer in [
        desk.post("/v1/sends", SEND).await,
        desk.get("/v1/sends").await,
        desk.post("/v1/executions/e/finish", "").await,
        desk.get("/v1/suspensions").await,
    ] {
        answer.problem(503, "store");
        assert_eq!(answer.header("retry-after"), "5");
    }
}

#[tokio::test]
async fn an_execution_holds_then_releases_in_order() {
    let desk = Desk::new();
    let path = "/v1/executions/run%201";
    desk.get(path).await.problem(404, "not_found");
    let held = desk.post(&format!("{path}/sends"), &format!("[{SEND},{SEND}]")).await.ok(202);
    assert_eq!(held["sends"][1]["state"], "held");
    assert_eq!(held["sends"][1]["released_at"], Value::Null);
    assert_eq!(held["sends"][1]["context"]["execution"], "run 1");
    assert_eq!((&held["sends"][0]["context"]["index"], &held["sends"][1]["context"]["index"]), (&json!(0), &json!(1)));
    // Named in its context and not held: listed with the others.
    let beside = r#"{"method":"GET","url":"https://example.com/","context":{"execution":"run 1"}}"#;
    assert_eq!(desk.post("/v1/sends", beside).await.ok(202)["state"], "queued");
    let open = desk.get(path).await;
    assert_eq!(keys(&open.body, &[]).join(" "), "execution state finished_by delivered total sends next");
    let open = open.ok(200);
    assert_eq!((&open["state"], &open["total"], &open["finished_by"]), (&json!("open"), &json!(3), &Value::Null));
    let page = desk.get(&format!("{path}?limit=2")).await.ok(200);
    assert_eq!(page["sends"].as_array().map(Vec::len), Some(2));
    let cursor = page["next"].as_str().expect("a next page");
    let rest = desk.get(&format!("{path}?limit=2&cursor={cursor}")).await.ok(200);
    assert_eq!((rest["sends"].as_array().map(Vec::len), &rest["next"]), (Some(1), &Value::Null));

    assert_eq!(desk.post(&format!("{path}/finish"), "").await.ok(200), json!({"released": 2}));
    assert_eq!(desk.post(&format!("{path}/finish"), "{}").await.ok(200), json!({"released": 2}));
    let finished = desk.get(path).await.ok(200);
    assert_eq!((&finished["state"], &finished["finished_by"]), (&json!("finished"), &json!("call")));
    assert_eq!(finished["sends"][0]["state"], "queued");
    desk.post(&format!("{path}/sends"), SEND).await.problem(409, "conflict");
    desk.post(&format!("{path}/discard"), "").await.problem(409, "conflict");
    desk.post(&format!("{path}/finish"), r#"{"x":1}"#).await.problem(400, "shape");
}

#[tokio::test]
async fn a_discarded_execution_sends_nothing() {
    let desk = Desk::new();
    desk.post("/v1/executions/e/sends", &format!("[{SEND},{SEND}]")).await.ok(202);
    assert_eq!(desk.post("/v1/executions/e/discard", "").await.ok(200), json!({"discarded": 2}));
    assert_eq!(desk.post("/v1/executions/e/discard", "").await.ok(200), json!({"discarded": 2}));
    desk.post("/v1/executions/e/finish", "").await.problem(409, "conflict");
    let execution = desk.get("/v1/executions/e").await.ok(200);
    assert_eq!((&execution["state"], &execution["sends"][0]["outcome"]), (&json!("discarded"), &json!("discarded")));
    assert_eq!(execution["sends"][0]["error"]["code"], "discarded");
    // Unknown: created and closed.
    assert_eq!(desk.post("/v1/executions/unknown/finish", "").await.ok(200), json!({"released": 0}));
    desk.post("/v1/executions/unknown/sends", SEND).await.problem(409, "conflict");
}

#[tokio::test]
async fn an_execution_in_the_path_is_bounded_and_wins() {
    let desk = Desk::with("[limits]\nsends_per_execution = 2\n");
    let long = "x".repeat(limits::CONTEXT_CHARS_MAX + 1);
    desk.post(&format!("/v1/executions/{long}/sends"), SEND).await.problem(400, "shape");
    desk.post("/v1/executions/%ff/sends", SEND).await.problem(400, "shape");
    let other = r#"{"method":"GET","url":"https://example.com/","context":{"execution":"f"}}"#;
    let answer = desk.post("/v1/executions/e/sends", other).await;
    answer.problem(400, "shape");
    assert_eq!(answer.json()["errors"][0]["pointer"], "/context/execution");
    desk.post("/v1/executions/e/sends", &format!("[{SEND},{SEND}]")).await.ok(202);
    desk.post("/v1/executions/e/sends", SEND).await.problem(413, "too_large");
    assert_eq!(desk.post("/v1/executions/a%2Fb/sends", SEND).await.ok(202)["context"]["execution"], "a/b");
}

#[tokio::test]
async fn lists_filter_and_page() {
    let desk = Desk::new();
    let send = |n: usize| {
        format!(
            r#"{{"method":"GET","url":"https://h{}.example.com/{n}","context":{{"workflow":"w{}","step":"s","execution":"e"}}}}"#,
            n % 2,
            n % 2
        )
    };
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(Desk::accepted(&desk.post("/v1/sends", &send(n)).await));
    }
    desk.answer("default", ids[0], 200).await;
    desk.answer("default", ids[1], 503).await;
    let found = async |query: &str| -> Vec<usize> {
        let page = desk.get(&format!("/v1/sends?{query}")).await.ok(200);
        let sends = page["sends"].as_array().expect("an array").clone();
        let place = |send: &Value| ids.iter().position(|id| send["id"] == id.to_string()).expect("one of ours");
        sends.iter().map(place).collect()
    };
    assert_eq!(found("").await, [4, 3, 2, 1, 0]);
    assert_eq!(found("workflow=w0").await, [4, 2, 0]);
    assert_eq!(found("workflow=w0&outcome=delivered").await, [0]);
    assert_eq!(found("host=H1.Example.COM.").await, [3, 1]);
    assert_eq!(found("status=503").await, [1]);
    assert_eq!(found("execution=e&step=s&limit=1").await, [4]);
    assert_eq!(found("code=timeout").await, [0; 0]);
    assert_eq!(found("source_ip=127.0.0.11").await, [1, 0]);
    assert_eq!(found("source_ip=198.51.100.10").await, [1, 0]);
    assert_eq!(found("since=2999-01-01T00:00:00Z").await, [0; 0]);
    assert_eq!(found("until=2999-01-01T00:00:00%2B01:00").await.len(), 5);
    assert_eq!(found("until=2999-01-01T00:00:00+01:00").await.len(), 5);
    let first = desk.get("/v1/sends?limit=2").await.ok(200);
    let cursor = first["next"].as_str().expect("more");
    assert_eq!(found(&format!("limit=2&cursor={cursor}")).await, [2, 1]);
    let body = &desk.get("/v1/sends").await.ok(200)["sends"][4]["response"]["body"];
    assert_eq!(body, &Value::Null);

    for query in [
        "limit=0",
        "limit=201",
        "limit=x",
        "limit=",
        "cursor=",
        "cursor=nonsense",
        "outcome=Delivered",
        "outcome=",
        "code=nope",
        "status=99",
        "status=abc",
        "source_ip=example.com",
        "since=yesterday",
        "until=1795300000",
        "host=a%20b",
        "host=http://x/",
        "host=x:80",
        "host=",
        "unknown=1",
        "workflow=a&workflow=b",
        "tenant=default",
    ] {
        desk.get(&format!("/v1/sends?{query}")).await.problem(400, "shape");
    }
    // All of them, once, and as of the query: `errors` point into a body.
    let answer = desk.get("/v1/sends?limit=0&outcome=x&foo=1").await;
    let detail = answer.json()["detail"].as_str().map(str::to_owned).unwrap_or_default();
    for parameter in ["limit", "outcome", "foo"] {
        assert_eq!(detail.matches(&format!("the parameter {parameter} ")).count(), 1, "{detail}");
    }
    assert_eq!(answer.json()["errors"], Value::Null);
}

#[tokio::test]
async fn an_id_that_is_none_is_not_there() {
    let desk = Desk::new();
    for id in ["x", "0198aaaa-0000-7000-8000-000000000000", "%ff", "..", "0198aaaa"] {
        for path in [format!("/v1/sends/{id}"), format!("/v1/sends/{id}/har"), format!("/v1/sends/{id}?wait=30")] {
            desk.get(&path).await.problem(404, "not_found");
        }
        desk.post(&format!("/v1/sends/{id}/resend"), "").await.problem(404, "not_found");
    }
}

#[tokio::test(start_paused = true)]
#[allow(clippy::disallowed_methods, reason = "a paused clock passes only once nobody has anything to do")]
async fn a_wait_answers_as_soon_as_the_send_is_done() {
    let desk = Arc::new(Desk::new());
    let started = clock::monotonic();
    let id = Desk::accepted(&desk.post("/v1/sends", SEND).await);
    let waiting = {
        let desk = desk.clone();
        tokio::spawn(async move { desk.get(&format!("/v1/sends/{id}?wait=30")).await })
    };
    // By then it waits for nothing but the send's end.
    tokio::time::sleep(Duration::from_secs(1)).await;
    desk.answer("default", id, 204).await;
    let record = waiting.await.expect("no panic").ok(200);
    assert_eq!(record["outcome"], "delivered");
    assert_eq!(started.elapsed().as_secs(), 1, "it was woken");
    // Done already: at once.
    assert_eq!(desk.get(&format!("/v1/sends/{id}?wait=30")).await.ok(200)["state"], "done");
    for wait in ["31", "-1", "x", "1.5", ""] {
        desk.get(&format!("/v1/sends/{id}?wait={wait}")).await.problem(400, "shape");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_with_its_time_or_with_the_process() {
    let desk = Arc::new(Desk::new());
    let id = Desk::accepted(&desk.post("/v1/sends", SEND).await);
    let started = clock::monotonic();
    assert_eq!(desk.get(&format!("/v1/sends/{id}?wait=3")).await.ok(200)["state"], "queued");
    assert_eq!(started.elapsed().as_secs(), 3);
    assert_eq!(desk.get(&format!("/v1/sends/{id}?wait=0")).await.ok(200)["state"], "queued");
    desk.closing.send_replace(true);
    desk.get(&format!("/v1/sends/{id}?wait=30")).await.ok(200);
    assert_eq!(started.elapsed().as_secs(), 3);
}

#[tokio::test]
async fn a_resend_is_a_new_send_of_the_same_request() {
    let desk = Desk::new();
    let body = r#"{"method":"PUT","url":"https://example.com/x?a=1","data":{"n":1},"context":{"workflow":"w"},"headers":{"X-Mine":"1"}}"#;
    let id = Desk::accepted(&desk.post("/v1/sends", body).await);
    desk.answer("default", id, 500).await;
    let again = desk.post(&format!("/v1/sends/{id}/resend"), "").await;
    let record = again.ok(202);
    assert_ne!(record["id"], id.to_string());
    assert_eq!(record["resend_of"], id.to_string());
    assert_eq!(record["request"]["method"], "PUT");
    assert_eq!(record["request"]["url"], "https://example.com/x?a=1");
    assert_eq!(record["request"]["body"], "{\"n\":1}");
    assert_eq!(record["context"]["workflow"], "w");
    // What we added to the original is not the author's.
    assert_eq!(record["request"]["headers"], json!({"x-mine": ["1"]}));
    desk.post(&format!("/v1/sends/{id}/resend"), r#"{"url":"https://example.com/"}"#).await.problem(400, "shape");
}

#[tokio::test]
async fn a_resend_names_what_is_missing() {
    let desk =
        Desk::with("[redact]\njson_pointers = [\"/token\"]\n[[tenant]]\nid = \"private\"\nkeep_bodies = false\n");
    let secret = r#"{"method":"POST","url":"https://example.com/","data":{"token":"t"},
        "headers":{"Cookie":"c=1","X-A":"1"},"auth":{"username":"u","password":"p"}}"#;
    let id = Desk::accepted(&desk.post("/v1/sends", secret).await);
    let path = format!("/v1/sends/{id}/resend");
    let missing = desk.post(&path, "").await;
    let detail = missing.problem(409, "resend_incomplete");
    let pointers = |answer: &Answer| -> Vec<String> {
        let errors = answer.json()["errors"].clone();
        errors.as_array().expect("errors").iter().map(|one| one["pointer"].as_str().unwrap_or("").to_owned()).collect()
    };
    assert_eq!(pointers(&missing), ["/headers/cookie", "/auth", "/data"], "{detail}");
    let still = desk.post(&path, r#"{"headers":{"cookie":"c=2"},"data":{"token":"u"}}"#).await;
    still.problem(409, "resend_incomplete");
    assert_eq!(pointers(&still), ["/auth"]);
    let record = desk
        .post(&path, r#"{"headers":{"cookie":"c=2","authorization":"Bearer x"},"data":{"token":"u"}}"#)
        .await
        .ok(202);
    assert_eq!(record["request"]["headers"]["x-a"], json!(["1"]));
    assert_eq!(record["request"]["headers"]["content-type"], json!(["application/json"]));
    desk.post(&path, r#"{"headers":{"cookie":"c=2"},"auth":{"username":"u","password":"p"},"data":1}"#).await.ok(202);

    let private = [("egressd-tenant", "private")];
    let id = Desk::accepted(
        &desk.call("POST", "/v1/sends", &private, r#"{"method":"POST","url":"https://example.com/","data":"x"}"#).await,
    );
    let path = format!("/v1/sends/{id}/resend");
    let answer = desk.call("POST", &path, &private, "").await;
    answer.problem(409, "resend_incomplete");
    assert_eq!(pointers(&answer), ["/data"]);
    desk.call("POST", &path, &private, r#"{"data_base64":"eA=="}"#).await.ok(202);
}

#[tokio::test]
async fn a_record_is_also_a_har() {
    let desk = Desk::new();
    let body = r#"{"method":"POST","url":"https://example.com/x?a=1&b=c%20d","data":{"n":1}}"#;
    let id = Desk::accepted(&desk.post("/v1/sends", body).await);
    let queued = desk.get(&format!("/v1/sends/{id}/har")).await.ok(200);
    assert_eq!(queued["log"]["version"], "1.2");
    assert_eq!(queued["log"]["entries"][0]["response"]["status"], 0);
    desk.answer("default", id, 201).await;
    let answer = desk.get(&format!("/v1/sends/{id}/har")).await;
    let entry = answer.ok(200)["log"]["entries"][0].clone();
    assert_eq!(entry["request"]["method"], "POST");
    assert_eq!(entry["request"]["postData"]["text"], "{\"n\":1}");
    assert_eq!(entry["request"]["queryString"], json!([{"name": "a", "value": "1"}, {"name": "b", "value": "c d"}]));
    assert_eq!(entry["response"]["status"], 201);
    assert_eq!(entry["response"]["content"]["text"], "hello");
    assert_eq!(entry["serverIPAddress"], "127.0.0.1");
    assert_eq!(entry["timings"]["connect"], 3.0);
    assert_eq!(entry["timings"]["ssl"], -1.0);
    assert_eq!(entry["time"], 25.034);
    for phase in ["send", "wait", "receive"] {
        assert!(entry["timings"][phase].as_f64().is_some_and(|time| time >= 0.0), "{phase}");
    }
}

#[tokio::test]
async fn explaining_says_what_would_become_of_a_send() {
    let desk = Desk::new();
    let answer = desk.post("/v1/explain", r#"{"method":"GET","url":"http://169.254.169.254/latest"}"#).await;
    assert_eq!(
        keys(&answer.body, &[]).join(" "),
        "tenant method url verdict code message would_block resolved source_ip public_ip"
    );
    let blocked = answer.ok(200);
    assert_eq!((&blocked["verdict"], &blocked["code"]), (&json!("blocked"), &json!("policy_metadata")));
    let allowed = desk.post("/v1/explain", r#"{"method":"GET","url":"http://127.0.0.1:18080/"}"#).await.ok(200);
    assert_eq!((&allowed["verdict"], &allowed["code"]), (&json!("allowed"), &Value::Null), "{allowed}");
    assert_eq!(allowed["resolved"], json!([{"ip": "127.0.0.1", "verdict": "allowed"}]));
    assert_eq!(allowed["source_ip"], "127.0.0.11");
    let refused = desk.post("/v1/explain", r#"{"method":"GET","url":"https://u:s3cret@example.com/"}"#).await.ok(200);
    assert_eq!(refused["code"], "policy_url");
    assert!(!refused.to_string().contains("s3cret"));
    for body in ["", "[]", "{}", r#"{"method":"get","url":"x"}"#, r#"{"method":"GET","url":"x","data":1}"#] {
        desk.post("/v1/explain", body).await.problem(400, "shape");
    }
}

#[tokio::test]
async fn secrets_are_in_no_answer() {
    let desk = Desk::with("[redact]\nheaders = [\"x-mine\"]\njson_pointers = [\"/card/number\"]\n");
    let body = r#"{"method":"POST","url":"https://user:s3cret@example.com/","data":{"card":{"number":"s3cret"}},
        "headers":{"Authorization":"s3cret","X-Mine":"s3cret","Cookie":["a=s3cret","b=s3cret"],"X-Api-Key":"s3cret",
        "Proxy-Authorization":"s3cret"},"auth":{"username":"s3cret","password":"s3cret"}}"#;
    let answer = desk.post("/v1/sends", body).await;
    let id = Desk::accepted(&answer);
    let record = format!("/v1/sends/{id}");
    for answer in [
        answer,
        desk.get(&record).await,
        desk.get(&format!("{record}/har")).await,
        desk.get("/v1/sends").await,
        desk.post(&format!("{record}/resend"), "").await,
    ] {
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(!text.contains("s3cret") && !text.contains("czNjcmV0"), "{text}");
    }
}

#[tokio::test]
async fn a_text_in_bodies_is_searched_for_page_by_page_and_the_answer_says_how_far() {
    let desk = Desk::with(&clients(&[("acme", "acme", "submit read"), ("nodes", "*", "submit read")]));
    let send = async |tenant: &str, body: &str| {
        let body = serde_json::json!({"method": "POST", "url": "https://example.com/needle", "data": body}).to_string();
        let token = "Bearer nodes";
        let headers = [("authorization", token), ("egressd-tenant", tenant)];
        Desk::accepted(&desk.call("POST", "/v1/sends", &headers, &body).await)
    };
    let find = async |query: &str| {
        desk.call("GET", &format!("/v1/sends?{query}"), &[("authorization", "Bearer acme")], "").await.ok(200)
    };
    let ids = |page: &Value| -> Vec<String> {
        let sends = page["sends"].as_array().expect("a list").iter();
        sends.map(|send| send["id"].as_str().expect("an id").to_owned()).collect()
    };
    let first = send("acme", "the Needle, ÄÖ").await;
    send("other", "a needle of another tenant").await;
    for number in 0..120 {
        send("acme", &format!("hay {number}")).await;
    }
    let answered = send("acme", "hay").await;
    // What comes back is searched, too.
    desk.answer("acme", answered, 200).await;
    for (query, found) in [
        ("text=needle", vec![first]),
        ("text=NEEDLE%2C+%C3%A4", vec![first]),
        ("text=hello", vec![answered]),
        ("text=hello&outcome=failed", vec![]),
        ("text=hay+119", vec![]),
        ("text=nothing+of+it", vec![]),
    ] {
        let page = find(query).await;
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        if query != "text=hay+119" {
            assert_eq!(ids(&page), found, "{query}");
        }
        assert_eq!(page["next"], Value::Null, "{query}");
        let all = if query.contains("failed") { 0 } else { 122 };
        assert_eq!(page["searched"]["sends"], all, "{query}");
        assert_eq!(page["searched"]["back_to"].is_string(), all > 0, "{query}");
    }
    let page = find("text=hay&limit=60").await;
    assert_eq!((ids(&page).len(), &page["searched"]["sends"]), (60, &serde_json::json!(60)));
    // A list without a text says nothing of it.
    assert_eq!(find("limit=1").await["searched"], Value::Null);
    let mut seen = ids(&page);
    let mut next = page["next"].as_str().map(str::to_owned);
    while let Some(cursor) = next {
        let page = find(&format!("text=hay&limit=60&cursor={cursor}")).await;
        seen.extend(ids(&page));
        next = page["next"].as_str().map(str::to_owned);
    }
    seen.dedup();
    assert_eq!(seen.len(), 121);
    for wrong in
        ["text=".to_owned(), format!("text={}", "x".repeat(limits::TEXT_CHARS_MAX + 1)), "text=a&text=b".to_owned()]
    {
        desk.call("GET", &format!("/v1/sends?{wrong}"), &[("authorization", "Bearer acme")], "")
            .await
            .problem(400, "shape");
    }
    // The tail has no bodies.
    let tail = desk.call("GET", "/v1/tail?text=x", &[("authorization", "Bearer acme")], "").await;
    tail.problem(400, "shape");
}

#[tokio::test(start_paused = true)]
async fn a_search_in_bodies_ends_when_it_has_looked_at_so_much_or_for_so_long() {
    let desk = Desk::new();
    let body = "x".repeat(1_000_000);
    let send = serde_json::json!({"method": "POST", "url": "https://example.com/", "data": body}).to_string();
    let count = usize::try_from(limits::TEXT_BYTES_MAX / 1_000_000).expect("small") + 60;
    for _ in 0..count {
        desk.post("/v1/sends", &send).await.ok(202);
    }
    let page = desk.get("/v1/sends?text=y").await.ok(200);
    let bytes = page["searched"]["bytes"].as_u64().expect("a number");
    // As far as it had to, and no further than one more stretch of the list.
    assert!((limits::TEXT_BYTES_MAX..limits::TEXT_BYTES_MAX + 17_000_000).contains(&bytes), "{bytes}");
    assert!(page["next"].is_string() && ids_len(&page) == 0, "{page}");
    let cursor = page["next"].as_str().expect("a cursor");
    let rest = desk.get(&format!("/v1/sends?text=y&cursor={cursor}")).await.ok(200);
    let searched = |page: &Value| page["searched"]["sends"].as_u64().expect("a number");
    assert_eq!(searched(&page) + searched(&rest), count as u64);
    assert_eq!(rest["next"], Value::Null);
}

fn ids_len(page: &Value) -> usize {
    page["sends"].as_array().map_or(0, Vec::len)
}
