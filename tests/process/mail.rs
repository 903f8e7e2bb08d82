//! Messages through the real process: accepted, held, released, handed to a real relay once, and told of as any send is;
//! its secrets nowhere; a death between the message and the relay's answer.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::node::{Node, PATIENCE, call, call_text, counting_receiver};
use crate::smtp::{At, EXTENSIONS, Relay, Twist};

const PASSWORD: &str = "s3cret-of-the-relay";
/// `\0egressd\0` and it.
const PLAIN: &str = "AGVncmVzc2QAczNjcmV0LW9mLXRoZS1yZWxheQ==";

/// A node with this relay, which two tenants have an address for.
fn node_with(relay: &Relay, scheme: &str, more: &str) -> Node {
    let node = Node::new("");
    relay.authority.write_pem(&node.path("ca.pem"));
    std::fs::write(node.path("password"), PASSWORD).expect("the password");
    node.configure(&format!(
        "[tls]\nextra_ca = [\"ca.pem\"]\n[destination.email]\nrelay = \"{}\"\nfrom = \"Workflows <notifications@example.net>\"\n\
         user = \"egressd\"\npassword_file = \"password\"\n{more}\
         [[tenant]]\nid = \"default\"\nemail = \"owner@default.example\"\ncollaborators = [\"helper@default.example\"]\n\
         [[tenant]]\nid = \"quiet\"\nemail = \"owner@quiet.example\"\nkeep_bodies = false\n",
        relay.url(scheme)
    ));
    node
}

fn id_of(answer: &Value) -> String {
    answer["id"].as_str().unwrap_or_else(|| panic!("an id: {answer}")).to_owned()
}

async fn accepted(node: &Node, path: &str, send: &Value) -> Value {
    let (status, answer) = node.call("POST", path, &send.to_string()).await.expect("an answer");
    assert_eq!(status, 202, "{answer}");
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_told_of_as_any_send_is() {
    let relay = Relay::start_tls(Vec::new()).await;
    let mut node = node_with(&relay, "smtp", "");
    node.start();
    let (receiver, _) = counting_receiver(Duration::ZERO).await;

    // Held beside a request, and released with it.
    let mail = json!({"email": {"subject": "Order 7", "text": "It has arrived.", "include_collaborators": true}});
    let request = json!({"method": "POST", "url": format!("http://{receiver}/x")});
    let answer = accepted(&node, "/v1/executions/e/sends", &json!([mail, request])).await;
    let first = &answer["sends"][0];
    assert_eq!((&first["state"], &first["request"]), (&json!("held"), &Value::Null));
    assert!(first["email"].is_object() && answer["sends"][1].get("email").is_none(), "{answer}");
    assert_eq!(relay.seen().peers.len(), 0, "held");
    let looked = node.get("/v1/executions/e").await;
    assert_eq!((&looked["delivered"], &looked["total"]), (&json!(0), &json!(2)));
    assert_eq!(node.call("POST", "/v1/executions/e/finish", "").await.expect("an answer").1["released"], 2);
    let id = id_of(first);
    let record = node.done_as("default", &id).await;
    assert_eq!(record["outcome"], "delivered", "{record}");
    assert_eq!(record["error"], Value::Null);
    let email = &record["email"];
    assert_eq!(
        (&email["subject"], &email["text"], &email["html"], &email["include_collaborators"]),
        (&json!("Order 7"), &json!("It has arrived."), &Value::Null, &json!(true))
    );
    assert_eq!(email["headers"]["to"], json!(["owner@default.example"]));
    assert_eq!(email["headers"]["cc"], json!(["helper@default.example"]));
    assert!(email["headers"]["message-id"][0].as_str().is_some_and(|text| text == format!("<{id}@example.net>")));
    let reply = &record["response"];
    assert_eq!(
        (&reply["status"], &reply["version"], &reply["body"], &reply["headers"]["command"]),
        (&json!(250), &json!("SMTP"), &json!("2.0.0 queued as 4D3F"), &json!(["message"]))
    );
    assert_eq!(record["connection"]["remote_port"], relay.address.port());
    assert_eq!(record["connection"]["tls"]["version"], "TLSv1.3");
    let source = record["connection"]["public_ip"].as_str().expect("a source").to_owned();
    assert_eq!(relay.seen().peers.iter().map(ToString::to_string).collect::<Vec<_>>(), [source.as_str()]);

    // As it was explained: the same relay, judged and from the same source.
    let ask = json!({"email": {"text": "x"}}).to_string();
    let (status, explained) = node.call("POST", "/v1/explain", &ask).await.expect("an answer");
    assert_eq!(
        (status, &explained["verdict"], &explained["method"]),
        (200, &json!("allowed"), &Value::Null),
        "{explained}"
    );
    assert_eq!((&explained["public_ip"], &explained["resolved"]), (&json!(source), &record["connection"]["resolved"]));
    let both = json!({"email": {"text": "x"}, "method": "GET"}).to_string();
    assert_eq!(node.call("POST", "/v1/explain", &both).await.expect("an answer").0, 400);

    // In lists without its content, in counts, in what is searched, and by the relay's host.
    let settled = node.settled().await;
    assert_eq!(settled.len(), 2);
    let looked = node.get("/v1/executions/e").await;
    assert_eq!((&looked["delivered"], &looked["total"]), (&json!(2), &json!(2)));
    assert_eq!(looked["sends"][0]["email"]["text"], Value::Null);
    for (query, found) in [
        ("text=arrived", 1),
        ("host=127.0.0.1", 2),
        ("method=POST", 1),
        ("path=/", 1),
        ("status=250", 1),
        ("status=2xx", 2),
        ("outcome=delivered", 2),
        ("execution=e", 2),
    ] {
        let page = node.get(&format!("/v1/sends?{query}")).await;
        assert_eq!(page["sends"].as_array().map(Vec::len), Some(found), "{query}");
    }
    assert_eq!(node.metric("egressd_sends_total{outcome=\"delivered\",code=\"none\"}").await, Some(2.0));
    assert_eq!(node.metric("egressd_responses_total{status_class=\"2xx\"}").await, Some(2.0));
    let stats = node.get("/v1/stats?by=host").await;
    assert!(stats.to_string().contains("127.0.0.1"), "{stats}");
    let (status, har) = node.call("GET", &format!("/v1/sends/{id}/har"), "").await.expect("an answer");
    assert_eq!((status, &har["code"]), (404, &json!("not_found")), "{har}");
    assert!(
        har["detail"].as_str().is_some_and(|detail| detail.contains("HTTP alone") || detail.contains("of HTTP")),
        "{har}"
    );

    // Again as it was, and with another content.
    let (status, again) = node.call("POST", &format!("/v1/sends/{id}/resend"), "{}").await.expect("an answer");
    assert_eq!((status, &again["resend_of"]), (202, &json!(id)), "{again}");
    let other = json!({"email": {"html": "<p>Once more</p>"}}).to_string();
    let (status, other) = node.call("POST", &format!("/v1/sends/{id}/resend"), &other).await.expect("an answer");
    assert_eq!(status, 202, "{other}");
    let wrong = json!({"data": 1}).to_string();
    let (status, wrong) = node.call("POST", &format!("/v1/sends/{id}/resend"), &wrong).await.expect("an answer");
    assert_eq!((status, &wrong["errors"][0]["pointer"]), (400, &json!("/data")), "{wrong}");
    for again in [&again, &other] {
        assert_eq!(node.done_as("default", &id_of(again)).await["outcome"], "delivered");
    }
    let messages = relay.seen().messages;
    assert_eq!(messages.len(), 3);
    assert_eq!(messages.iter().filter(|message| message.contains("It has arrived.")).count(), 2);
    assert!(messages.iter().any(|message| message.contains("<p>Once more</p>")));
    node.signal(Signal::SIGTERM);
    assert_eq!(node.ended(), Some(0), "{}", node.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_is_not_set_up_is_a_problem_of_the_call() {
    let relay = Relay::tls(Vec::new()).await;
    let mail = json!({"email": {"text": "x"}}).to_string();
    let bare = Node::started("");
    let mut set_up = node_with(&relay, "smtps", "");
    set_up.start();
    for (node, tenant, says) in [(&bare, "default", "has not set mail up"), (&set_up, "other", "has no mail address")] {
        for path in ["/v1/sends", "/v1/executions/e/sends"] {
            let answer = call(node.api, "POST", path, &mail, &[("egressd-tenant", tenant)]).await;
            let (status, answer) = answer.expect("an answer");
            assert_eq!((status, &answer["code"]), (400, &json!("shape")), "{answer}");
            let problem = &answer["errors"][0];
            assert_eq!(problem["pointer"], "/email");
            assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(says)), "{answer}");
            assert!(problem["hint"].as_str().is_some_and(|hint| hint.contains("ask the operator")), "{answer}");
        }
    }
    assert_eq!(relay.seen().peers.len(), 0);
    // Whoever names a recipient is told that there is no such thing.
    let named = json!({"email": {"text": "x", "to": "victim@example.org"}}).to_string();
    let (status, answer) = set_up.call("POST", "/v1/sends", &named).await.expect("an answer");
    assert_eq!((status, &answer["errors"][0]["pointer"]), (400, &json!("/email/to")), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_a_rejection_with_the_relays_words_and_a_suspension_stops_mail() {
    let relay = Relay::tls(vec![(At::Rcpt, Twist::Says("550 5.1.1 no such mailbox\r\n"))]).await;
    let mut node = node_with(&relay, "smtps", "");
    node.start();
    let mail = json!({"email": {"text": "x"}});
    let record = node.done_as("default", &id_of(&accepted(&node, "/v1/sends", &mail).await)).await;
    assert_eq!((&record["outcome"], &record["response"]["status"]), (&json!("rejected"), &json!(550)), "{record}");
    assert_eq!(record["response"]["body"], "5.1.1 no such mailbox");
    let error = &record["error"];
    assert_eq!((&error["code"], &error["processed"]), (&Value::Null, &json!("no")), "{record}");
    assert!(error["message"].as_str().is_some_and(|message| message.contains("550 to RCPT TO")), "{record}");
    assert_eq!(record["email"]["headers"], json!({}), "nothing left");

    let held = id_of(&accepted(&node, "/v1/executions/e/sends", &mail).await);
    let stop = json!({"host": "127.0.0.1", "reason": "it loops"}).to_string();
    let (status, answer) = node.call("POST", "/v1/suspensions", &stop).await.expect("an answer");
    assert_eq!(status, 201, "{answer}");
    let record = node.done_as("default", &held).await;
    assert_eq!((&record["outcome"], &record["error"]["code"]), (&json!("blocked"), &json!("suspended")), "{record}");
    let record = node.done_as("default", &id_of(&accepted(&node, "/v1/sends", &mail).await)).await;
    assert_eq!((&record["outcome"], &record["error"]["code"]), (&json!("blocked"), &json!("suspended")), "{record}");
    let (_, explained) = node.call("POST", "/v1/explain", &mail.to_string()).await.expect("an answer");
    assert_eq!((&explained["verdict"], &explained["code"]), (&json!("blocked"), &json!("suspended")), "{explained}");
    assert_eq!(relay.seen().peers.len(), 1);
}

/// `true`: the secret stands somewhere in it.
fn has(bytes: &[u8], secret: &str) -> bool {
    bytes.windows(secret.len()).any(|window| window == secret.as_bytes())
}

fn in_store(node: &Node, secret: &str) -> bool {
    fn any(directory: &std::path::Path, secret: &str) -> bool {
        let entries = std::fs::read_dir(directory).expect("a directory");
        entries.map(|entry| entry.expect("an entry").path()).any(|path| match path.is_dir() {
            true => any(&path, secret),
            false => has(&std::fs::read(&path).expect("a readable file"), secret),
        })
    }
    any(&node.path("store"), secret)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_relays_password_and_what_nobody_may_keep_are_nowhere() {
    // It repeats what it was told.
    let says = "550 5.7.1 AGVncmVzc2QAczNjcmV0LW9mLXRoZS1yZWxheQ== s3cret-of-the-relay\r\n";
    let (relay, echo) = (Relay::tls(Vec::new()).await, Relay::tls(vec![(At::Rcpt, Twist::Says(says))]).await);
    let denying = Relay::tls(vec![(At::Auth, Twist::Says("535 5.7.8 s3cret-of-the-relay is wrong\r\n"))]).await;
    for (relay, outcome) in [(&relay, "delivered"), (&echo, "rejected"), (&denying, "rejected")] {
        let mut node = node_with(relay, "smtps", "");
        node.start_with(|command| {
            command.env("EGRESSD_LOG", "trace");
        });
        let mail =
            json!({"email": {"subject": "s3cret-subject", "text": "s3cret-text", "html": "s3cret-html"}}).to_string();
        let mut ids = Vec::new();
        for tenant in ["default", "quiet"] {
            let answer = call(node.api, "POST", "/v1/executions/e/sends", &mail, &[("egressd-tenant", tenant)]).await;
            let (status, answer) = answer.expect("an answer");
            assert_eq!(status, 202, "{answer}");
            ids.push((tenant, id_of(&answer)));
        }
        let kept = |node: &Node| ["s3cret-subject", "s3cret-text", "s3cret-html"].map(|secret| in_store(node, secret));
        assert_eq!(kept(&node), [true; 3], "of the tenant that keeps bodies");
        for (tenant, id) in &ids {
            call(node.api, "POST", "/v1/executions/e/finish", "", &[("egressd-tenant", tenant)])
                .await
                .expect("an answer");
            let record = node.done_as(tenant, id).await;
            assert_eq!(record["outcome"], outcome, "{record}");
            let text = record["email"]["text"].as_str();
            assert_eq!(text, (*tenant == "default").then_some("s3cret-text"), "{record}");
            if *tenant == "quiet" {
                assert!(!record.to_string().contains("s3cret"), "{record}");
                assert_eq!(
                    (&record["email"]["body_truncated"], &record["response"]["body"]),
                    (&json!(true), &Value::Null)
                );
            }
            for path in [&format!("/v1/sends/{id}"), "/v1/sends", "/v1/sources", "/v1/tenants", "/v1/executions/e"] {
                let answer =
                    call_text(node.api, "GET", path, "", &[("egressd-tenant", tenant)]).await.expect("an answer").1;
                assert!(!answer.contains(PASSWORD) && !answer.contains(PLAIN), "{path}: {answer}");
            }
        }
        let (_, metrics) = call_text(node.metrics, "GET", "/metrics", "", &[]).await.expect("metrics");
        let log = node.log();
        for secret in [PASSWORD, PLAIN] {
            assert!(!log.contains(secret), "the log");
            assert!(!metrics.contains(secret) && !in_store(&node, secret), "{secret}");
        }
        assert!(!log.contains("s3cret-text") && !log.contains("s3cret-subject"), "the log");
        let (code, out, err) = crate::node::run(&["check", "--config", "egressd.toml"], node.directory.path());
        assert!(!out.contains(PASSWORD) && !err.contains(PASSWORD), "{code:?}");
    }
    // Only sealed, while it waits, of the tenant that keeps none.
    let mut node = node_with(&relay, "smtps", "");
    node.start();
    let mail = json!({"email": {"text": "s3cret-of-quiet"}}).to_string();
    let answer = call(node.api, "POST", "/v1/executions/e/sends", &mail, &[("egressd-tenant", "quiet")]).await;
    let id = id_of(&answer.expect("an answer").1);
    node.kill();
    assert!(!in_store(&node, "s3cret-of-quiet"));
    node.start();
    call(node.api, "POST", "/v1/executions/e/finish", "", &[("egressd-tenant", "quiet")]).await.expect("an answer");
    assert_eq!(node.done_as("quiet", &id).await["outcome"], "delivered");
    assert!(relay.seen().messages.iter().any(|message| message.contains("s3cret-of-quiet")), "it was read back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_between_the_message_and_its_answer_reads_interrupted_and_nothing_is_sent_again() {
    let relay = Relay::start(true, EXTENSIONS, vec![(At::Message, Twist::Silent)]).await;
    let mut node = node_with(&relay, "smtps", "");
    node.start();
    let mail = json!({"email": {"text": "x"}});
    let id = id_of(&accepted(&node, "/v1/sends", &mail).await);
    let started = Instant::now();
    while relay.seen().messages.is_empty() {
        assert!(started.elapsed() < PATIENCE, "{}", node.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    node.kill();
    node.start();
    let record = node.done_as("default", &id).await;
    assert_eq!(record["outcome"], "interrupted", "{record}");
    assert_eq!(record["error"]["processed"], "maybe");
    // What comes later shows that the node goes on, and that the first was not among it.
    let other = id_of(&accepted(&node, "/v1/sends", &json!({"method": "GET", "url": "http://127.0.0.1:1/"})).await);
    node.done_as("default", &other).await;
    let seen = relay.seen();
    assert_eq!((seen.peers.len(), seen.messages.len()), (1, 1), "once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_takes_another_relay_and_password_as_a_whole() {
    let (first, second) = (Relay::tls(Vec::new()).await, Relay::tls(Vec::new()).await);
    let mut node = node_with(&first, "smtps", "deadline = \"20s\"\n");
    node.start();
    let mail = json!({"email": {"text": "x"}});
    node.done_as("default", &id_of(&accepted(&node, "/v1/sends", &mail).await)).await;
    let text = std::fs::read_to_string(node.config()).expect("the configuration");
    let text = text.replace(&first.url("smtps"), &second.url("smtps"));
    second.authority.write_pem(&node.path("ca.pem"));
    std::fs::write(node.config(), &text).expect("written");
    std::fs::write(node.path("password"), "another\n").expect("written");
    node.signal(Signal::SIGHUP);
    let started = Instant::now();
    while node.metric("egressd_config_reloads_total{result=\"ok\"}").await != Some(1.0) {
        assert!(started.elapsed() < PATIENCE, "{}", node.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node.done_as("default", &id_of(&accepted(&node, "/v1/sends", &mail).await)).await;
    assert_eq!((first.seen().messages.len(), second.seen().messages.len()), (1, 1));
    assert!(second.seen().commands.iter().any(|(_, command)| command == "AUTH PLAIN AGVncmVzc2QAYW5vdGhlcg=="));
}
