//! Events through the real process into a bucket: gathered, closed, put there once whatever is answered and whatever dies,
//! and told of as any send is.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::bucket::{Answer, Bucket};
use crate::node::{Node, PATIENCE, SOURCES, call};
use crate::starts::day;

fn configure(node: &Node, bucket: &Bucket, more: &str) {
    std::fs::write(
        node.path("credentials"),
        "[default]\naws_access_key_id = AKIDTEST\naws_secret_access_key = s3cret-of-the-bucket\n",
    )
    .expect("the credentials");
    node.configure(&format!(
        "[destination.s3]\nendpoint = \"http://{}\"\npath_style = true\ncredentials_file = \"credentials\"\n{more}",
        bucket.address
    ));
}

fn node_with(bucket: &Bucket, more: &str) -> Node {
    let node = Node::new("");
    configure(&node, bucket, more);
    node
}

fn event(prefix: &str, payload: Value) -> Value {
    json!({"s3": {"bucket": "logs", "prefix": prefix, "payload": payload}})
}

async fn accepted(node: &Node, path: &str, send: &Value) -> Value {
    let (status, answer) = node.call("POST", path, &send.to_string()).await.expect("an answer");
    assert_eq!(status, 202, "{answer}");
    answer
}

fn id_of(answer: &Value) -> String {
    answer["id"].as_str().unwrap_or_else(|| panic!("an id: {answer}")).to_owned()
}

async fn until(what: &str, node: &Node, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "{what} never came: {}", node.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_put_as_one_object_for_each_place_and_told_of_as_any_send_is() {
    let bucket = Bucket::start([]).await;
    let mut node = node_with(&bucket, "every = \"1s\"\n");
    node.start();
    // Three for one place, one of them held, and one for another.
    let held = accepted(&node, "/v1/executions/e/sends", &event("orders/", json!({"held": true}))).await;
    assert_eq!((&held["state"], held.get("batch")), (&json!("held"), None), "{held}");
    let context = json!({"execution": "e", "workflow": "w"});
    let mut one = event("orders", json!({"n": 1}));
    one["context"] = context.clone();
    let first = accepted(&node, "/v1/sends", &one).await;
    assert_eq!((&first["state"], &first["request"]), (&json!("queued"), &Value::Null), "{first}");
    let batch = first["batch"]["id"].as_str().expect("a batch").to_owned();
    assert!(batch.len() == 64 && first["batch"]["closes_at"].is_string(), "{first}");
    assert_eq!(first["s3"]["payload"], json!({"n": 1}));
    let both = json!([event("orders/", json!("text")), event("other", json!([1, 2]))]);
    let both = accepted(&node, "/v1/sends", &both).await;
    assert_eq!(both["sends"][0]["batch"]["id"], json!(batch));
    assert_ne!(both["sends"][1]["batch"]["id"], json!(batch));
    assert_eq!(node.call("POST", "/v1/executions/e/finish", "").await.expect("an answer").1["released"], 1);

    let id = id_of(&first);
    let record = node.done_as("default", &id).await;
    assert_eq!((&record["outcome"], &record["error"]), (&json!("delivered"), &Value::Null), "{record}");
    let records = node.settled().await;
    assert_eq!(records.len(), 4);
    let objects = bucket.objects();
    let lines: Vec<Vec<String>> = objects.values().cloned().collect();
    assert_eq!(lines.iter().flatten().count(), 4, "{objects:?}");
    let path = objects.keys().find(|path| path.contains(&batch)).expect("its object");
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    assert_eq!((parts[0], parts[1], parts.len()), ("logs", "orders", 7), "{path}");
    let stem = parts[2..6].join("-");
    assert!(parts[6].starts_with(&stem) && parts[6].ends_with(&format!("-{batch}.gz")), "{path}");
    assert!(objects[path].iter().any(|line| line == "{\"n\":1}") && objects[path].iter().any(|line| line == "text"));
    assert!(lines.iter().any(|lines| lines == &["[1,2]"]), "{objects:?}");
    // Signed, from a published address.
    for put in bucket.puts() {
        assert!(put.headers["authorization"].starts_with("AWS4-HMAC-SHA256 Credential=AKIDTEST/"), "{put:?}");
        assert_eq!(put.headers["if-none-match"], "*");
        assert_eq!(put.headers["x-amz-content-sha256"].len(), 64);
    }
    let source = record["connection"]["public_ip"].as_str().expect("a source");
    assert!(bucket.peers().iter().any(|peer| peer.to_string() == source), "{record}");

    // The batch, and what counts.
    let started = Instant::now();
    let looked = loop {
        // Its sends have their ends a moment before it is done.
        let looked = node.get(&format!("/v1/batches/{batch}")).await;
        if looked["state"] != "closed" {
            break looked;
        }
        assert!(started.elapsed() < PATIENCE, "{looked}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(
        (&looked["state"], &looked["outcome"], &looked["tried"]),
        (&json!("done"), &json!("delivered"), &json!(1))
    );
    assert_eq!(looked["destination"]["s3"]["bucket"], "logs");
    assert_eq!(format!("/logs/{}", looked["destination"]["s3"]["key"].as_str().expect("a key")), *path);
    let attempt = &looked["attempts"][0];
    assert_eq!((&attempt["outcome"], &attempt["response"]["status"]), (&json!("delivered"), &json!(200)), "{looked}");
    assert!(attempt["connection"]["public_ip"].is_string() && attempt["timings_ms"]["total"].is_number(), "{looked}");
    let (status, _) = node.call("GET", &format!("/v1/batches/{}", "0".repeat(64)), "").await.expect("an answer");
    assert_eq!(status, 404);
    let other = call(node.api, "GET", &format!("/v1/batches/{batch}"), "", &[("egressd-tenant", "other")]).await;
    assert_eq!(other.expect("an answer").0, 404, "another tenant's");
    let execution = node.get("/v1/executions/e").await;
    assert_eq!((&execution["delivered"], &execution["total"]), (&json!(2), &json!(2)));
    assert_eq!(node.metric("egressd_sends_total{outcome=\"delivered\",code=\"none\"}").await, Some(4.0));
    for (query, found) in [("status=200", 4), ("outcome=delivered", 4), ("host=127.0.0.1", 4), ("workflow=w", 1)] {
        let page = node.get(&format!("/v1/sends?{query}")).await;
        assert_eq!(page["sends"].as_array().map(Vec::len), Some(found), "{query}");
    }

    // Again as it was, and explained.
    let (status, again) = node.call("POST", &format!("/v1/sends/{id}/resend"), "{}").await.expect("an answer");
    assert_eq!((status, &again["resend_of"]), (202, &json!(id)), "{again}");
    assert_eq!(node.done_as("default", &id_of(&again)).await["outcome"], "delivered");
    let ask = event("orders", json!({})).to_string();
    let (status, explained) = node.call("POST", "/v1/explain", &ask).await.expect("an answer");
    assert_eq!((status, &explained["verdict"]), (200, &json!("allowed")), "{explained}");
    // What waits at the end is there at the next start.
    let last = accepted(&node, "/v1/sends", &event("orders", json!({"last": true}))).await;
    node.signal(Signal::SIGTERM);
    assert_eq!(node.ended(), Some(0), "{}", node.log());
    assert!(!node.log().contains("s3cret"), "{}", node.log());
    node.start();
    assert_eq!(node.done_as("default", &id_of(&last)).await["outcome"], "delivered");
    assert_eq!(bucket.met(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_pass_is_tried_again_and_what_will_not_ends_at_once() {
    let answers = [Answer::Refused(503, "SlowDown"), Answer::Lost];
    let bucket = Bucket::start(answers).await;
    let mut node = node_with(&bucket, "every = \"50ms\"\ngive_up = \"1m\"\n");
    node.start();
    let sent = accepted(&node, "/v1/sends", &event("a", json!({"n": 1}))).await;
    let record = node.done_as("default", &id_of(&sent)).await;
    // The third finds it there, which is what was wanted.
    assert_eq!((&record["outcome"], &record["response"]["status"]), (&json!("delivered"), &json!(412)), "{record}");
    let puts = bucket.puts();
    assert_eq!((puts.len(), bucket.objects().len(), bucket.met()), (3, 1, 1));
    assert!(puts.iter().all(|put| (&put.path, &put.body) == (&puts[0].path, &puts[0].body)), "{puts:?}");
    let looked = node.get(&format!("/v1/batches/{}", record["batch"]["id"].as_str().expect("its batch"))).await;
    let ends: Vec<_> =
        looked["attempts"].as_array().expect("a list").iter().map(|one| one["outcome"].clone()).collect();
    assert_eq!((json!(ends), &looked["tried"]), (json!(["rejected", "failed", "delivered"]), &json!(3)), "{looked}");

    for (status, code, says) in [
        (403, "AccessDenied", "may not write there"),
        (404, "NoSuchBucket", "bucket's name"),
        (400, "InvalidRequest", "answered 400 (InvalidRequest)"),
    ] {
        let before = bucket.puts().len();
        bucket.always(Some(Answer::Refused(status, code)));
        let sent = accepted(&node, "/v1/sends", &json!([event("b", json!({})), event("b", json!({}))])).await;
        for send in sent["sends"].as_array().expect("a list") {
            let record = node.done_as("default", &id_of(send)).await;
            assert_eq!((&record["outcome"], &record["response"]["status"]), (&json!("rejected"), &json!(status)));
            let message = record["error"]["message"].as_str().expect("words");
            assert!(message.contains(says) && message.contains("took nothing"), "{record}");
            assert_eq!(record["error"]["processed"], "no", "{record}");
            assert!(record["response"]["body"].as_str().is_some_and(|body| body.contains(code)), "{record}");
        }
        assert_eq!(bucket.puts().len(), before + 1, "{code}: once");
    }

    // Until it is given up.
    configure(&node, &bucket, "every = \"50ms\"\ngive_up = \"3s\"\n");
    node.signal(Signal::SIGHUP);
    bucket.always(Some(Answer::Refused(500, "InternalError")));
    let before = bucket.puts().len();
    until("the reload", &node, || node.log().contains("reload")).await;
    let sent = accepted(&node, "/v1/sends", &event("c", json!({}))).await;
    let record = node.done_as("default", &id_of(&sent)).await;
    assert_eq!((&record["outcome"], &record["response"]["status"]), (&json!("rejected"), &json!(500)), "{record}");
    assert!(bucket.puts().len() > before + 1, "tried again before");
}

/// Killed between the closing and the first try, and between two of them: each has the same key and the same bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_dies_an_event_is_there_once() {
    let bucket = Bucket::start([]).await;
    bucket.always(Some(Answer::Silent));
    let mut node = node_with(&bucket, "every = \"100ms\"\n");
    node.start();
    let sends: Vec<Value> = (0..20).map(|n| event("a", json!({"n": n}))).collect();
    let sent = accepted(&node, "/v1/sends", &json!(sends)).await;
    let open = node.path("store/batches/open");
    let closed = || std::fs::read_dir(&open).is_ok_and(|entries| entries.count() > 0);
    until("the batch", &node, closed).await;
    node.kill();
    // Twice while the first try is under way.
    for _ in 0..2 {
        node.start();
        let before = bucket.puts().len();
        until("a try", &node, || bucket.puts().len() > before).await;
        node.kill();
    }
    // Once when it was put, and nobody heard.
    bucket.always(Some(Answer::Lost));
    node.start();
    until("the object", &node, || !bucket.objects().is_empty()).await;
    node.kill();
    bucket.always(None);
    node.start();
    for send in sent["sends"].as_array().expect("a list") {
        let record = node.done_as("default", &id_of(send)).await;
        assert_eq!(record["outcome"], "delivered", "{record}");
    }
    // And where it dies while the sends of a batch get their ends.
    let many: Vec<Value> = (0..500).map(|n| event("b", json!({"many": n}))).collect();
    let many = accepted(&node, "/v1/sends", &json!(many)).await;
    until("the other object", &node, || bucket.objects().len() == 2).await;
    node.kill();
    node.start();
    for send in many["sends"].as_array().expect("a list") {
        let record = node.done_as("default", &id_of(send)).await;
        assert_eq!(record["outcome"], "delivered", "{record}");
    }
    let many: Vec<String> =
        bucket.objects().into_iter().filter(|(path, _)| path.contains("/b/")).flat_map(|(_, lines)| lines).collect();
    assert_eq!(many.len(), 500, "each once");
    let puts: Vec<_> = bucket.puts().into_iter().filter(|put| put.path.contains("/a/")).collect();
    assert!(puts.len() >= 4, "{}", puts.len());
    assert!(puts.iter().all(|put| (&put.path, &put.body) == (&puts[0].path, &puts[0].body)));
    let objects = bucket.objects();
    let lines: Vec<&String> =
        objects.iter().filter(|(path, _)| path.contains("/a/")).flat_map(|(_, lines)| lines).collect();
    assert_eq!((objects.len(), lines.len()), (2, 20), "{objects:?}");
    let started = Instant::now();
    while closed() {
        assert!(started.elapsed() < PATIENCE, "the batch is not done: {}", node.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suspensions_and_discards_stop_what_gathers_and_what_is_tried() {
    let bucket = Bucket::start([]).await;
    let mut node = node_with(&bucket, "every = \"1h\"\nbatch_sends = 3\n");
    node.start();
    let two = json!([event("a", json!({"n": 1})), event("a", json!({"n": 2}))]);
    let sent = accepted(&node, "/v1/sends", &two).await;
    let held = accepted(&node, "/v1/executions/gone/sends", &event("a", json!({"n": 3}))).await;
    assert_eq!(node.call("POST", "/v1/executions/gone/discard", "").await.expect("an answer").1["discarded"], 1);
    assert_eq!(node.done_as("default", &id_of(&held)).await["outcome"], "discarded");
    let suspend = async |on: &Value| {
        let (status, answer) = node.call("POST", "/v1/suspensions", &on.to_string()).await.expect("an answer");
        assert_eq!(status, 201, "{answer}");
        answer
    };
    let answer = suspend(&json!({"host": "127.0.0.1", "reason": "abuse"})).await;
    for send in sent["sends"].as_array().expect("a list") {
        let record = node.done_as("default", &id_of(send)).await;
        assert_eq!(
            (&record["outcome"], &record["error"]["code"]),
            (&json!("blocked"), &json!("suspended")),
            "{record}"
        );
    }
    assert_eq!(bucket.puts().len(), 0, "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_set_up_or_not_allowed_is_a_problem_of_the_call() {
    let bucket = Bucket::start([]).await;
    let bare = Node::started("");
    let mut set_up = node_with(&bucket, "buckets = [\"logs-*\"]\n");
    set_up.start();
    for (node, pointer, says) in [(&bare, "/s3", "has not set S3 up"), (&set_up, "/s3/bucket", "none of")] {
        let (status, problem) =
            node.call("POST", "/v1/sends", &event("a", json!({})).to_string()).await.expect("an answer");
        assert_eq!(
            (status, &problem["code"], &problem["errors"][0]["pointer"]),
            (400, &json!("shape"), &json!(pointer))
        );
        let told = problem["errors"][0]["detail"].as_str().expect("told");
        assert!(told.contains(says) || told.contains("is not one of the buckets"), "{problem}");
    }
}

/// Each try of its batches takes as long as its deadline; none of them has a slot that a send could have while it waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_hangs_holds_up_batches_alone() {
    let (bucket, receiver) = (Bucket::start([]).await, Bucket::start([]).await);
    bucket.always(Some(Answer::Silent));
    let caps = "[delivery]\nin_flight = 6\nin_flight_per_tenant = 6\nin_flight_per_tenant_destination = 6\n";
    let mut node = node_with(&bucket, &format!("every = \"10ms\"\ndeadline = \"60s\"\n{caps}"));
    node.start();
    for n in 0..40 {
        accepted(&node, "/v1/sends", &event(&format!("p{n}"), json!({ "n": n }))).await;
    }
    until("a try of as many as a tenant may have carried of a kind", &node, || bucket.puts().len() == 3).await;
    let send = json!({"method": "POST", "url": format!("http://{}/", receiver.address), "data": 1});
    let id = id_of(&accepted(&node, "/v1/sends", &send).await);
    let record = node.done_as("default", &id).await;
    assert_eq!(record["outcome"], "delivered", "{record}");
    assert_eq!(bucket.puts().len(), 3);
}

/// A try that lost its answer may have brought it there: what stops the batch afterwards takes that back from nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_try_may_have_brought_there_is_not_said_to_be_nowhere() {
    let bucket = Bucket::start([Answer::Lost]).await;
    bucket.always(Some(Answer::Refused(503, "SlowDown")));
    let mut node = node_with(&bucket, "every = \"10ms\"\n");
    node.start();
    let id = id_of(&accepted(&node, "/v1/sends", &event("p", json!([1]))).await);
    until("a second try", &node, || bucket.puts().len() > 1).await;
    let stop = json!({"tenant": "default", "reason": "abuse"});
    let (status, answer) = node.call("POST", "/v1/suspensions", &stop.to_string()).await.expect("an answer");
    assert_eq!(status, 201, "{answer}");
    let record = node.done_as("default", &id).await;
    assert_eq!((&record["outcome"], &record["error"]["processed"]), (&json!("blocked"), &json!("maybe")), "{record}");
    assert_eq!(bucket.objects().len(), 1);
}

/// What an answer says of the moment alone, or what proves nothing: another try brings it there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_the_moment_or_without_proof_is_followed_by_another_try() {
    const PAGE: &str = "<!DOCTYPE html><html><body>Sign in to the network</body></html>";
    let answers = [
        (Answer::Refused(400, "ExpiredToken"), "rejected"),
        (Answer::Refused(403, "RequestTimeTooSkewed"), "rejected"),
        (Answer::Refused(400, "IncompleteBody"), "rejected"),
        (Answer::Refused(400, "BadDigest"), "rejected"),
        (Answer::Refused(400, "RequestTimeout"), "rejected"),
        (Answer::Page(200, PAGE), "failed"),
        (Answer::Page(206, ""), "failed"),
        // Whoever stands in between says 412, too.
        (Answer::Page(412, PAGE), "failed"),
        (Answer::Page(412, ""), "failed"),
        (Answer::Refused(412, "AccessDenied"), "failed"),
        (Answer::Page(200, "{\"error\": \"quota\"}"), "failed"),
    ];
    let bucket = Bucket::start([]).await;
    let mut node = node_with(&bucket, "every = \"10ms\"\n");
    node.start();
    // Each of another batch, all of them at once.
    let mut sent = Vec::new();
    for (n, (answer, outcome)) in answers.into_iter().enumerate() {
        bucket.then(answer);
        let before = bucket.puts().len();
        let id = id_of(&accepted(&node, "/v1/sends", &event(&format!("p{n}"), json!([n]))).await);
        until("a try", &node, || bucket.puts()[before..].iter().any(|put| put.path.contains(&format!("/p{n}/")))).await;
        sent.push((id, answer, outcome));
    }
    for (id, answer, outcome) in sent {
        let record = node.done_as("default", &id).await;
        assert_eq!(
            (&record["outcome"], &record["response"]["status"]),
            (&json!("delivered"), &json!(200)),
            "{answer:?}"
        );
        let looked = node.get(&format!("/v1/batches/{}", record["batch"]["id"].as_str().expect("its batch"))).await;
        assert_eq!((&looked["tried"], &looked["attempts"][0]["outcome"]), (&json!(2), &json!(outcome)), "{looked}");
    }
    assert_eq!((bucket.objects().len(), bucket.met()), (11, 0));
}

/// The last answer is of one try: what an earlier one may have done, or the same try, no words take back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_and_what_is_known_agree_whatever_came_before_the_end() {
    let bucket = Bucket::start([]).await;
    let mut node = node_with(&bucket, "every = \"10ms\"\ngive_up = \"2s\"\n");
    node.start();
    for (n, (answers, outcome, says)) in [
        (vec![Answer::Lost, Answer::Refused(403, "AccessDenied")], "rejected", "may not write there"),
        (
            vec![Answer::KeptBut(500, "InternalError"), Answer::Refused(404, "NoSuchBucket")],
            "rejected",
            "bucket's name",
        ),
        (vec![Answer::KeptBut(503, "ServiceUnavailable"); 9], "rejected", "until it was given up"),
        (vec![Answer::Lost; 9], "failed", "does no harm"),
        (vec![Answer::Page(200, "<html>"); 9], "failed", "with a body"),
    ]
    .into_iter()
    .enumerate()
    {
        bucket.only(answers);
        let id = id_of(&accepted(&node, "/v1/sends", &event(&format!("p{n}"), json!([n]))).await);
        let record = node.done_as("default", &id).await;
        let (error, message) = (&record["error"], record["error"]["message"].as_str().expect("words"));
        assert_eq!((&record["outcome"], &error["processed"]), (&json!(outcome), &json!("maybe")), "{n}: {record}");
        assert!(message.contains(says) && message.contains("not known"), "{n}: {message}");
        for untrue in ["took nothing", "not sent again", "has handled", "may be resent"] {
            assert!(!message.contains(untrue), "{untrue}: {message}");
        }
        assert!(bucket.puts().iter().filter(|put| put.path.contains(&format!("/p{n}/"))).count() > 1, "{n}");
    }
}

/// What may be in one place goes to no other; what cannot be anywhere goes where the configuration leads it now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_may_be_in_one_place_is_brought_to_no_other() {
    let other = Bucket::start([]).await;
    for (n, (answer, dies, region)) in [
        (Answer::Lost, false, "us-east-1"),
        (Answer::Lost, true, "us-east-1"),
        (Answer::Silent, true, "us-east-1"),
        (Answer::Lost, false, "eu-west-1"),
        (Answer::Refused(503, "SlowDown"), false, "us-east-1"),
    ]
    .into_iter()
    .enumerate()
    {
        let bucket = Bucket::start([]).await;
        bucket.always(Some(answer));
        let mut node = node_with(&bucket, "every = \"10ms\"\n");
        node.start();
        let id = id_of(&accepted(&node, "/v1/sends", &event(&format!("p{n}"), json!([n]))).await);
        // By its second try the first one's end is on disk; who hangs has one.
        let tries = if answer == Answer::Silent { 1 } else { 2 };
        until("a try", &node, || bucket.puts().len() >= tries).await;
        if dies {
            node.kill();
        }
        let to = if region == "us-east-1" { &other } else { &bucket };
        configure(&node, to, &format!("every = \"10ms\"\nregion = \"{region}\"\n"));
        if dies {
            node.start();
        } else {
            node.signal(Signal::SIGHUP);
        }
        let record = node.done_as("default", &id).await;
        let path = format!("/p{n}/");
        let there = other.objects().keys().filter(|key| key.contains(&path)).count();
        if matches!(answer, Answer::Refused(..)) {
            assert_eq!((&record["outcome"], there), (&json!("delivered"), 1), "{record}");
            continue;
        }
        let (error, message) = (&record["error"], record["error"]["message"].as_str().expect("words"));
        assert_eq!((&record["outcome"], &error["processed"]), (&json!("blocked"), &json!("maybe")), "{n}: {record}");
        assert!(message.contains("no second one") && message.contains("not known"), "{message}");
        assert_eq!(there, 0, "{record}");
    }
    // Nobody was ever there.
    let gone = Bucket::start([]).await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let mut node = node_with(&gone, "every = \"10ms\"\n");
    node.configure(&format!(
        "[destination.s3]\nendpoint = \"http://{nobody}\"\npath_style = true\ncredentials_file = \"credentials\"\n\
         every = \"10ms\"\n"
    ));
    node.start();
    let sent = accepted(&node, "/v1/sends", &event("new", json!(["new"]))).await;
    let batch = || format!("/v1/batches/{}", sent["batch"]["id"].as_str().expect("its batch"));
    let started = Instant::now();
    while node.get(&batch()).await["tried"].as_u64() < Some(1) {
        assert!(started.elapsed() < PATIENCE, "no try");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    configure(&node, &other, "every = \"10ms\"\n");
    node.signal(Signal::SIGHUP);
    let record = node.done_as("default", &id_of(&sent)).await;
    assert_eq!(record["outcome"], "delivered", "{record}");
    assert!(other.objects().keys().any(|key| key.contains("/new/")));
}

/// A closed batch that cannot be anywhere yet goes without the events of a workflow that is stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workflow_that_is_stopped_is_in_no_batch_that_was_not_tried_yet() {
    let bucket = Bucket::start([]).await;
    bucket.always(Some(Answer::Refused(429, "SlowDown")));
    let mut node = node_with(&bucket, "every = \"500ms\"\n");
    node.start();
    let of = |workflow: &str, n: usize| {
        let mut event = event("p", json!([n]));
        event["context"] = json!({"workflow": workflow});
        event
    };
    let both = json!([of("good", 1), of("bad", 2), of("good", 3)]);
    let sent = accepted(&node, "/v1/sends", &both).await;
    until("a try", &node, || !bucket.puts().is_empty()).await;
    let stop = json!({"tenant": "default", "workflow": "bad", "reason": "abuse"});
    let (status, answer) = node.call("POST", "/v1/suspensions", &stop.to_string()).await.expect("an answer");
    assert_eq!(status, 201, "{answer}");
    bucket.always(None);
    for (n, wanted) in ["delivered", "blocked", "delivered"].into_iter().enumerate() {
        let record = node.done_as("default", &id_of(&sent["sends"][n])).await;
        assert_eq!(record["outcome"], wanted, "{record}");
    }
    let lines: Vec<String> = bucket.objects().into_values().flatten().collect();
    assert_eq!(lines, ["[1]", "[3]"]);
}

/// What of a batch is damaged may have said that it is there: its events are put there by no second one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_whose_file_is_damaged_is_not_gathered_anew() {
    let bucket = Bucket::start([]).await;
    bucket.always(Some(Answer::Lost));
    let mut node = node_with(&bucket, "every = \"50ms\"\n");
    node.start();
    let three: Vec<Value> = (0..3).map(|n| event("p", json!([n]))).collect();
    let sent = accepted(&node, "/v1/sends", &json!(three)).await;
    until("the object", &node, || !bucket.objects().is_empty()).await;
    node.kill();
    let name = sent["sends"][0]["batch"]["id"].as_str().expect("a batch");
    let path = node.path("store/batches/open").join(name);
    let mut bytes = std::fs::read(&path).expect("its file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(&path, bytes).expect("damaged");
    bucket.always(None);
    node.start();
    for send in sent["sends"].as_array().expect("a list") {
        let record = node.done_as("default", &id_of(send)).await;
        assert_eq!(
            (&record["outcome"], &record["error"]["processed"]),
            (&json!("interrupted"), &json!("maybe")),
            "{record}"
        );
        assert_eq!(record["batch"]["id"], name, "{record}");
    }
    assert!(node.log().contains("is unreadable"), "{}", node.log());
    assert_eq!(bucket.objects().len(), 1);
    assert_eq!(bucket.objects().into_values().flatten().count(), 3);
}

/// An event that cannot be read any more is told as what an earlier try leaves of it, and nobody is asked to send it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_is_unreadable_after_a_try_is_not_said_to_be_nowhere() {
    for (answer, processed, words) in [
        (Answer::Lost, "maybe", "goes on without it; whether one of the batch's tries"),
        (Answer::Silent, "maybe", "goes on without it; whether one of the batch's tries"),
    ] {
        let bucket = Bucket::start([]).await;
        bucket.always(Some(answer));
        let mut node = node_with(&bucket, "every = \"50ms\"\n");
        node.start();
        let two = json!([event("p", json!(["marked-payload"])), event("p", json!([2]))]);
        let sent = accepted(&node, "/v1/sends", &two).await;
        until("a try", &node, || !bucket.puts().is_empty()).await;
        node.kill();
        let damaged = damage(&node.path("store/pieces"), b"marked-payload");
        assert_eq!(damaged, 1, "where its payload is kept");
        bucket.always(None);
        node.start();
        let [one, other] = [0, 1].map(|n| id_of(&sent["sends"][n]));
        let record = node.done_as("default", &one).await;
        assert_eq!(
            (&record["outcome"], &record["error"]["code"], &record["error"]["processed"]),
            (&json!("failed"), &json!("internal"), &json!(processed)),
            "{record}"
        );
        let message = record["error"]["message"].as_str().expect("a message");
        assert!(message.contains(words) && !message.contains("submit it again"), "{message}");
        assert_eq!(record["batch"]["id"], sent["sends"][0]["batch"]["id"], "{record}");
        assert_eq!(node.done_as("default", &other).await["outcome"], "delivered");
    }
}

/// Of a batch whose events all are unreadable nothing is put: neither a delivery nor a hole where its object may be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_put_of_a_batch_that_nothing_is_left_of() {
    let bucket = Bucket::start([]).await;
    bucket.always(Some(Answer::Refused(503, "SlowDown")));
    let mut node = node_with(&bucket, "every = \"50ms\"\n");
    node.start();
    let sent = accepted(&node, "/v1/sends", &json!([event("p", json!(["marked-payload"]))])).await;
    until("a try", &node, || !bucket.puts().is_empty()).await;
    damage(&node.path("store/pieces"), b"marked-payload");
    bucket.always(None);
    let record = node.done_as("default", &id_of(&sent["sends"][0])).await;
    assert_eq!((&record["outcome"], &record["error"]["code"]), (&json!("failed"), &json!("internal")), "{record}");
    let path = format!("/v1/batches/{}", sent["sends"][0]["batch"]["id"].as_str().expect("its batch"));
    let started = Instant::now();
    let batch = loop {
        let batch = node.get(&path).await;
        if batch["state"] == "done" {
            break batch;
        }
        assert!(started.elapsed() < PATIENCE, "{batch}");
    };
    assert_eq!(batch["outcome"], "failed", "{batch}");
    assert!(bucket.objects().is_empty());
}

/// One of its events has had its end, and more waits than is claimed: what is left of it goes all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_was_left_behind_goes_on_whatever_else_its_tenant_waits_for() {
    let bucket = Bucket::start([]).await;
    bucket.always(Some(Answer::Refused(503, "SlowDown")));
    let mut node = node_with(&bucket, "every = \"50ms\"\n[delivery]\nin_flight_per_tenant_destination = 1\n");
    node.start();
    let two = json!([event("p", json!(["marked-payload"])), event("p", json!([2]))]);
    let sent = accepted(&node, "/v1/sends", &two).await;
    until("a try", &node, || !bucket.puts().is_empty()).await;
    damage(&node.path("store/pieces"), b"marked-payload");
    let [first, other] = [0, 1].map(|n| id_of(&sent["sends"][n]));
    assert_eq!(node.done_as("default", &first).await["outcome"], "failed");
    // A receiver that takes its time for each of many.
    let (slow, _) = crate::node::counting_receiver(Duration::from_millis(900)).await;
    let request = json!({"method": "GET", "url": format!("http://{slow}/")});
    for _ in 0..4 {
        accepted(&node, "/v1/sends", &json!(vec![request.clone(); 100])).await;
    }
    node.kill();
    bucket.always(None);
    node.start();
    assert_eq!(node.done_as("default", &other).await["outcome"], "delivered");
    let (_, left) = node.call("GET", "/v1/tenants", "").await.expect("an answer");
    assert!(left["tenants"][0]["queued"].as_u64().is_some_and(|queued| queued > 0), "what it did not wait for: {left}");
}

/// Without a source that is usable it has no turn, and its events have an end all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_nothing_can_carry_is_given_up() {
    let bucket = Bucket::start([]).await;
    bucket.always(Some(Answer::Refused(503, "SlowDown")));
    let mut node = node_with(&bucket, "every = \"50ms\"\ngive_up = \"3s\"\ndeadline = \"1s\"\n");
    node.start();
    let sent = accepted(&node, "/v1/sends", &json!([event("p", json!([1]))])).await;
    until("a try", &node, || !bucket.puts().is_empty()).await;
    let retired = SOURCES.map(|source| format!("{source} retires={}\n", day(-1)));
    std::fs::write(node.path("public-ips.txt"), retired.concat()).expect("the list");
    node.signal(Signal::SIGHUP);
    until("the reload", &node, || node.log().contains("no source of this pool is usable now")).await;
    let late = accepted(&node, "/v1/sends", &{
        let mut late = event("q", json!([2]));
        late["expires_in"] = json!(3);
        late
    })
    .await;
    for (sent, outcome) in [(id_of(&sent["sends"][0]), "rejected"), (id_of(&late), "expired")] {
        let record = node.done_as("default", &sent).await;
        assert_eq!(record["outcome"], outcome, "{record}");
    }
}

/// Where one store hangs, the batches of the same tenant for another are carried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_hangs_does_not_hold_up_the_tenants_database() {
    let bucket = Bucket::start([]).await;
    bucket.always(Some(Answer::Silent));
    let sql =
        "[destination.sql]\nurl = \"postgres://u@127.0.0.1:1/d?sslmode=disable\"\nevery = \"10ms\"\ngive_up = \"1s\"\n";
    let mut node = node_with(&bucket, &format!("every = \"10ms\"\ndeadline = \"60s\"\n{sql}"));
    node.start();
    let many: Vec<Value> = (0..20).map(|n| event(&format!("place{n}"), json!([n]))).collect();
    accepted(&node, "/v1/sends", &json!(many)).await;
    until("as many tries as a tenant may have", &node, || bucket.puts().len() >= 3).await;
    let row = json!({"sql": {"table": "t", "payload": [1]}});
    let id = id_of(&accepted(&node, "/v1/sends", &row).await);
    // Nobody listens there: it was tried.
    let record = node.done_as("default", &id).await;
    assert_eq!(record["error"]["code"], "connection_refused", "{record}");
    assert_eq!(bucket.puts().len(), 3, "and those hang on");
}

/// Flips a bit wherever a file below has this text; how often.
fn damage(below: &Path, text: &[u8]) -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir(below).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            count += damage(&path, text);
            continue;
        }
        let mut bytes = std::fs::read(&path).expect("a file");
        if let Some(at) = bytes.windows(text.len()).position(|some| some == text) {
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).expect("damaged");
            count += 1;
        }
    }
    count
}

/// What hangs holds the others of its tenant up, and not past the age at which they are given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_place_among_those_that_are_tried_is_given_up_in_time() {
    let bucket = Bucket::start([]).await;
    bucket.only(vec![Answer::Refused(503, "SlowDown"); 10]);
    bucket.always(Some(Answer::Silent));
    let mut node = node_with(&bucket, "every = \"10ms\"\ngive_up = \"4s\"\ndeadline = \"60s\"\n");
    node.start();
    let ten: Vec<Value> = (0..10).map(|n| event(&format!("place{n}"), json!([n]))).collect();
    let sent = accepted(&node, "/v1/sends", &json!(ten)).await;
    let started = Instant::now();
    let mut done = Vec::new();
    while done.len() < 6 {
        assert!(started.elapsed() < PATIENCE, "they wait on: {}", node.log());
        done.clear();
        for n in 0..10 {
            let record = node.get(&format!("/v1/sends/{}", id_of(&sent["sends"][n]))).await;
            if record["state"] == "done" {
                done.push(record);
            }
        }
    }
    for record in done {
        assert_eq!((&record["outcome"], &record["response"]["status"]), (&json!("rejected"), &json!(503)), "{record}");
        let batch = node.get(&format!("/v1/batches/{}", record["batch"]["id"].as_str().expect("its batch"))).await;
        assert_eq!(batch["tried"], 1, "whoever was tried again hangs: {batch}");
    }
}

/// However often it is tried, and whatever is answered: what is remembered of it has a bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_remembered_of_tries_has_a_bound() {
    const PAGE: &str = const {
        match std::str::from_utf8(&[b'x'; 60_000]) {
            Ok(page) => page,
            Err(_) => "",
        }
    };
    let bucket = Bucket::start([]).await;
    bucket.always(Some(Answer::Page(503, PAGE)));
    let mut node = node_with(&bucket, "every = \"10ms\"\ngive_up = \"3s\"\n");
    node.start();
    let id = id_of(&accepted(&node, "/v1/sends", &event("p", json!([1]))).await);
    let record = node.done_as("default", &id).await;
    let looked = node.get(&format!("/v1/batches/{}", record["batch"]["id"].as_str().expect("its batch"))).await;
    for attempt in looked["attempts"].as_array().expect("a list") {
        let answer = &attempt["response"];
        assert_eq!(answer["body"].as_str().map(str::len), Some(4096), "{answer}");
        assert_eq!((&answer["body_truncated"], &answer["body_bytes"]), (&json!(true), &json!(60_000)), "{answer}");
    }
    let stored = node.metric("egressd_store_bytes").await.expect("a metric");
    assert!(stored > 0.0, "{stored}");
}
