//! Events through the real process into a real PostgreSQL: rows of one transaction a batch, there once whatever dies, over
//! TLS and with a password where that is asked for.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::node::{Node, PATIENCE, call};
use crate::tier::Cluster;
use crate::tls::Authority;

pub fn configure(node: &Node, url: &str, more: &str) {
    node.configure(&format!("[destination.sql]\nurl = \"{url}\"\n{more}"));
}

/// In the clear, as the cluster speaks at first.
pub fn plain(cluster: &Cluster) -> String {
    format!("{}?sslmode=disable", cluster.url())
}

fn event(table: &str, payload: &Value) -> Value {
    json!({"sql": {"table": table, "payload": payload}})
}

async fn accepted(node: &Node, tenant: &str, path: &str, send: &Value) -> Value {
    let headers = [("egressd-tenant", tenant)];
    let (status, answer) = call(node.api, "POST", path, &send.to_string(), &headers).await.expect("an answer");
    assert_eq!(status, 202, "{answer}");
    answer
}

pub fn id_of(answer: &Value) -> String {
    answer["id"].as_str().unwrap_or_else(|| panic!("an id: {answer}")).to_owned()
}

/// Rows as text, by the cluster's own word.
pub async fn rows(cluster: &Cluster, query: &str) -> Vec<String> {
    let (client, connection) =
        tokio_postgres::connect(&cluster.url(), tokio_postgres::NoTls).await.expect("the database");
    let driven = tokio::spawn(connection);
    let answered = client.simple_query(query).await.unwrap_or_else(|error| panic!("{query}: {error:?}"));
    drop(client);
    let _ = driven.await;
    let row = |message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|at| row.get(at).unwrap_or("NULL")).collect::<Vec<_>>().join("|"))
        }
        _ => None,
    };
    answered.into_iter().filter_map(row).collect()
}

/// A cluster that lets connections from every address of loopback in as this line of its own form says, with a directory for
/// its files. From its next start on.
pub fn cluster_with(lets_in: &str) -> (Cluster, tempfile::TempDir) {
    use std::os::unix::fs::PermissionsExt;
    let mut cluster = Cluster::start();
    let directory = tempfile::Builder::new().prefix("egressd-sql").tempdir_in("/tmp").expect("a directory");
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).expect("a mode");
    let rules = directory.path().join("hba");
    let own = "local all all trust\nhost all all 127.0.0.1/32 trust";
    std::fs::write(&rules, format!("{own}\n{lets_in}\n")).expect("written");
    for_postgres(&rules);
    cluster.tell(&format!("sql ALTER SYSTEM SET hba_file = '{}'", rules.display()));
    (cluster, directory)
}

pub const LETS_IN: &str = "host all all 127.0.0.0/8 trust";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_rows_of_one_transaction_and_told_of_as_any_send_is() {
    let (mut cluster, _directory) = cluster_with(LETS_IN);
    cluster.tell("stop fast");
    cluster.tell("start");
    let mut node = Node::new("");
    let tenants = "[[tenant]]\nid = \"Acme-GmbH\"\n";
    configure(&node, &plain(&cluster), &format!("every = \"300ms\"\n{tenants}"));
    node.start();
    let payloads = [json!({"n": 1, "text": "caf\u{e9} \u{1f980} 'quoted'"}), json!([1, 2.5]), json!("two\nlines")];
    let sends: Vec<Value> = payloads.iter().map(|payload| event("Orders", payload)).collect();
    let sent = accepted(&node, "Acme-GmbH", "/v1/sends", &json!(sends)).await;
    assert_eq!(sent["sends"][0]["sql"]["table"], "Orders", "{sent}");
    let other = accepted(&node, "plain", "/v1/sends", &event("Orders", &json!({"of": "another"}))).await;
    let first = id_of(&sent["sends"][0]);
    let record = node.done_as("Acme-GmbH", &first).await;
    assert_eq!((&record["outcome"], &record["response"]["status"]), (&json!("delivered"), &json!(200)), "{record}");
    assert_eq!(node.done_as("plain", &id_of(&other)).await["outcome"], "delivered");
    let found = rows(&cluster, "SELECT send_id, event::text FROM acme_gmbh.\"Orders\" ORDER BY send_id").await;
    let wanted: Vec<String> = sent["sends"].as_array().expect("a list").iter().map(id_of).collect();
    assert_eq!(found.iter().map(|row| row.split('|').next().expect("an id")).collect::<Vec<_>>(), wanted);
    for (row, payload) in found.iter().zip(&payloads) {
        let (_, event) = row.split_once('|').expect("two columns");
        assert_eq!(serde_json::from_str::<Value>(event).expect("JSON"), *payload);
    }
    assert_eq!(rows(&cluster, "SELECT event->>'of' FROM plain.\"Orders\"").await, ["another"]);
    let near = "SELECT count(*) FROM acme_gmbh.\"Orders\" WHERE sent_at BETWEEN now() - interval '1 hour' AND now()";
    assert_eq!(rows(&cluster, near).await, ["3"]);
    let batch = record["batch"]["id"].as_str().expect("a batch");
    let kept = rows(&cluster, "SELECT batch_id, sends FROM acme_gmbh.egressd_batches").await;
    assert_eq!(kept, [format!("{batch}|3")]);
    let headers = [("egressd-tenant", "Acme-GmbH")];
    let looked = call(node.api, "GET", &format!("/v1/batches/{batch}"), "", &headers).await.expect("an answer").1;
    assert_eq!((&looked["state"], &looked["destination"]["sql"]["table"]), (&json!("done"), &json!("Orders")));
    assert_eq!((&looked["sends"], &looked["tried"]), (&json!(3), &json!(1)), "{looked}");

    // What the database would not take of one is refused before it keeps the others out.
    for payload in ["\"a\\u0000b\"", "{\"a\": \"\\ud800\"}", "[1e400]"] {
        let raw = format!("{{\"sql\": {{\"table\": \"t\", \"payload\": {payload}}}}}");
        let (status, problem) = call(node.api, "POST", "/v1/sends", &raw, &headers).await.expect("an answer");
        assert_eq!((status, &problem["errors"][0]["pointer"]), (400, &json!("/sql/payload")), "{payload}: {problem}");
    }
    for table in ["", "a b", "egressd_batches", "_x", "a\"b"] {
        let (status, problem) =
            call(node.api, "POST", "/v1/sends", &event(table, &json!({})).to_string(), &headers).await.expect("one");
        assert_eq!((status, &problem["errors"][0]["pointer"]), (400, &json!("/sql/table")), "{table}: {problem}");
    }
    // A tenant whose id another's schema is, or that is none.
    for tenant in ["acme_gmbh", "No-Name"] {
        let headers = [("egressd-tenant", tenant)];
        let raw = event("t", &json!({})).to_string();
        let (status, problem) = call(node.api, "POST", "/v1/sends", &raw, &headers).await.expect("an answer");
        assert_eq!((status, &problem["errors"][0]["pointer"]), (400, &json!("/sql")), "{tenant}: {problem}");
    }
    let ask = event("Orders", &json!({})).to_string();
    let (status, explained) = call(node.api, "POST", "/v1/explain", &ask, &headers).await.expect("an answer");
    assert_eq!((status, &explained["verdict"]), (200, &json!("allowed")), "{explained}");
    let again = accepted(&node, "Acme-GmbH", &format!("/v1/sends/{first}/resend"), &json!({})).await;
    assert_eq!(node.done_as("Acme-GmbH", &id_of(&again)).await["outcome"], "delivered");
    assert_eq!(rows(&cluster, "SELECT count(*) FROM acme_gmbh.\"Orders\"").await, ["4"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_there_once_whatever_dies_and_a_missing_right_ends_at_once() {
    let (mut cluster, _directory) = cluster_with(LETS_IN);
    let mut node = Node::new("");
    configure(&node, &plain(&cluster), "every = \"50ms\"\n");
    node.start();
    // Each batch while the database is away, comes back, or this process dies.
    let mut sent = Vec::new();
    for round in 0..3 {
        cluster.tell("stop immediate");
        let sends: Vec<Value> = (0..5).map(|n| event("t", &json!({"round": round, "n": n}))).collect();
        let answer = accepted(&node, "acme", "/v1/sends", &json!(sends)).await;
        sent.extend(answer["sends"].as_array().expect("a list").iter().map(id_of));
        let batch = answer["sends"][0]["batch"]["id"].as_str().expect("a batch").to_owned();
        let headers = [("egressd-tenant", "acme")];
        let started = Instant::now();
        loop {
            let looked = call(node.api, "GET", &format!("/v1/batches/{batch}"), "", &headers).await.expect("one").1;
            if looked["tried"].as_u64().is_some_and(|tried| tried > 0) {
                break;
            }
            assert!(started.elapsed() < PATIENCE, "it was never tried: {looked}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        node.kill();
        cluster.tell("start");
        node.start();
    }
    for id in &sent {
        let record = node.done_as("acme", id).await;
        assert_eq!(record["outcome"], "delivered", "{record}");
    }
    assert_eq!(rows(&cluster, "SELECT count(*), count(DISTINCT send_id) FROM acme.t").await, ["15|15"]);

    // A batch that is there already is not written again, and that is what was wanted; one of others' columns is refused.
    cluster.tell("sql CREATE TABLE acme.mine (id int)");
    let answer = accepted(&node, "acme", "/v1/sends", &event("mine", &json!({}))).await;
    let record = node.done_as("acme", &id_of(&answer)).await;
    assert_eq!((&record["outcome"], &record["response"]["status"]), (&json!("rejected"), &json!(400)), "{record}");
    assert!(record["error"]["message"].as_str().is_some_and(|message| message.contains("42703")), "{record}");
    // An index has its name, and no statement makes a table of it.
    let answer = accepted(&node, "acme", "/v1/sends", &event("t_pkey", &json!({}))).await;
    let record = node.done_as("acme", &id_of(&answer)).await;
    assert_eq!((&record["outcome"], &record["response"]["status"]), (&json!("rejected"), &json!(400)), "{record}");
    assert!(record["error"]["message"].as_str().is_some_and(|message| message.contains("is no table")), "{record}");
    // What a row holds is not told by the row that is refused.
    cluster.tell("sql ALTER TABLE acme.t ADD CHECK (event->>'n' <> 'bad')");
    let answer = accepted(&node, "acme", "/v1/sends", &event("t", &json!({"n": "bad", "card": "4111-secret"}))).await;
    let record = node.done_as("acme", &id_of(&answer)).await;
    assert_eq!(
        (&record["outcome"], &record["response"]["headers"]["sqlstate"]),
        (&json!("rejected"), &json!(["23514"])),
        "{record}"
    );
    assert!(!record["response"].to_string().contains("4111-secret"), "{record}");
    cluster.tell("sql CREATE ROLE reader LOGIN");
    cluster.tell("sql GRANT USAGE ON SCHEMA acme TO reader");
    configure(&node, &plain(&cluster).replace("egressd@", "reader@"), "every = \"50ms\"\n");
    node.signal(Signal::SIGTERM);
    assert_eq!(node.ended(), Some(0), "{}", node.log());
    node.start();
    let answer = accepted(&node, "acme", "/v1/sends", &event("t", &json!({}))).await;
    let record = node.done_as("acme", &id_of(&answer)).await;
    assert_eq!((&record["outcome"], &record["response"]["status"]), (&json!("rejected"), &json!(403)), "{record}");
    assert!(record["error"]["message"].as_str().is_some_and(|message| message.contains("42501")), "{record}");
}

/// As the cluster's own user can read it, and nobody else.
fn for_postgres(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("a mode");
    if let Ok(Some(user)) = nix::unistd::User::from_name("postgres")
        && nix::unistd::geteuid().is_root()
    {
        std::os::unix::fs::chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("an owner");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_warehouse_proves_its_name_before_it_hears_a_word() {
    let (mut cluster, directory) = cluster_with("hostssl all all 127.0.0.0/8 scram-sha-256");
    let file = |name: &str| directory.path().join(name);
    let authority = Authority::new();
    authority.write_server(&["127.0.0.1"], &file("server.crt"), &file("server.key"));
    for (name, setting) in [("server.crt", "ssl_cert_file"), ("server.key", "ssl_key_file")] {
        for_postgres(&file(name));
        cluster.tell(&format!("sql ALTER SYSTEM SET {setting} = '{}'", file(name).display()));
    }
    cluster.tell("sql ALTER ROLE egressd PASSWORD 's3cret of the warehouse'");
    cluster.tell("sql ALTER SYSTEM SET ssl = on");
    cluster.tell("stop fast");
    cluster.tell("start");

    let mut node = Node::new("");
    let write = |node: &Node, trusted: bool, password: &str| {
        authority.write_pem(&node.path("ca.pem"));
        std::fs::write(node.path("password"), format!("{password}\n")).expect("written");
        let trust = if trusted { "[tls]\nextra_ca = [\"ca.pem\"]\n" } else { "" };
        let more = format!("password_file = \"password\"\nevery = \"50ms\"\ngive_up = \"3s\"\n{trust}");
        configure(node, &format!("{}?sslmode=verify-full", cluster.url()), &more);
    };
    for (trusted, password, outcome, told) in [
        (true, "s3cret of the warehouse", "delivered", ""),
        (true, "another", "rejected", "28P01"),
        (false, "s3cret of the warehouse", "failed", "tls_certificate"),
    ] {
        write(&node, trusted, password);
        node.start();
        let answer = accepted(&node, "acme", "/v1/sends", &event("t", &json!({}))).await;
        let record = node.done_as("acme", &id_of(&answer)).await;
        assert_eq!(record["outcome"], outcome, "{record}");
        assert!(record.to_string().contains(told), "{told}: {record}");
        if outcome == "delivered" {
            let batch = record["batch"]["id"].as_str().expect("a batch");
            let headers = [("egressd-tenant", "acme")];
            let looked = call(node.api, "GET", &format!("/v1/batches/{batch}"), "", &headers).await.expect("one").1;
            assert_eq!(looked["attempts"][0]["connection"]["tls"]["version"], "TLSv1.3", "{looked}");
        }
        node.signal(Signal::SIGTERM);
        assert_eq!(node.ended(), Some(0), "{}", node.log());
        assert!(!node.log().contains("s3cret"), "{}", node.log());
    }
}

/// What it says has a bound, and is none of this node's faults.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_never_stops_talking_is_hung_up_on() {
    // PostgreSQL's messages: what they are, how long they are, what they say (its documentation, "Message Formats").
    const LOGGED_IN: [u8; 9] = [b'R', 0, 0, 0, 8, 0, 0, 0, 0];
    const MOST: u64 = 32 << 20;
    let fields = [b"SNOTICE\0C00000\0M".to_vec(), vec![b'x'; 60_000], b"\0\0".to_vec()].concat();
    let notice = [vec![b'N'], (fields.len() as u32 + 4).to_be_bytes().to_vec(), fields].concat();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let said = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = said.clone();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.read(&mut [0; 1024]).await;
            let _ = socket.write_all(&LOGGED_IN).await;
            let mut of_this = 0;
            while of_this < 2 * MOST && socket.write_all(&notice).await.is_ok() {
                of_this += notice.len() as u64;
            }
            counted.fetch_max(of_this, std::sync::atomic::Ordering::Relaxed);
        }
    });
    let mut node = Node::new("");
    configure(
        &node,
        &format!("postgres://egressd@{address}/events?sslmode=disable"),
        "every = \"50ms\"\ngive_up = \"1s\"\n",
    );
    node.start();
    let answer = accepted(&node, "acme", "/v1/sends", &event("t", &json!({}))).await;
    let record = node.done_as("acme", &id_of(&answer)).await;
    assert_eq!(
        (&record["outcome"], &record["error"]["code"]),
        (&json!("failed"), &json!("protocol_error")),
        "{record}"
    );
    // It was never asked to commit.
    assert_eq!(record["error"]["processed"], "no", "{record}");
    assert!(
        record["error"]["message"].as_str().is_some_and(|said| said.contains("nothing of it is there")),
        "{record}"
    );
    let said = said.load(std::sync::atomic::Ordering::Relaxed);
    assert!((1..MOST).contains(&said), "{said} bytes");
}

/// A deadline that ends a transaction says so in a transaction's words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_takes_too_long_was_not_asked_to_commit() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            open.push(socket);
        }
    });
    let mut node = Node::new("");
    let url = format!("postgres://egressd@{address}/events?sslmode=disable");
    configure(&node, &url, "every = \"50ms\"\ndeadline = \"1s\"\ngive_up = \"1s\"\n");
    node.start();
    let answer = accepted(&node, "acme", "/v1/sends", &event("t", &json!({}))).await;
    let record = node.done_as("acme", &id_of(&answer)).await;
    let (error, message) = (&record["error"], record["error"]["message"].as_str().expect("words"));
    assert_eq!((&error["code"], &error["processed"]), (&json!("timeout"), &json!("no")), "{record}");
    assert!(message.contains("end of the batch's transaction within the 1 s"), "{message}");
    assert!(message.contains("not asked to commit") && !message.contains("whole request"), "{message}");
}

/// The retry of a batch that may be there does not go elsewhere, whatever the operator has changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_may_be_in_one_schema_are_brought_to_no_other() {
    let (mut cluster, _directory) = cluster_with(LETS_IN);
    cluster.tell("stop fast");
    cluster.tell("start");
    cluster.tell("sql CREATE DATABASE other");
    for (n, change) in [("{tenant}", "x_{tenant}"), ("/postgres?", "/other?")].into_iter().enumerate() {
        let (relay, lost) = crate::refused_rows::loses_a_commit(&cluster, true).await;
        let mut node = Node::new("");
        let url = format!("postgres://egressd@{relay}/postgres?sslmode=disable");
        let more = "every = \"50ms\"\nschema = \"{tenant}\"\n";
        configure(&node, &url, more);
        node.start();
        let answer = accepted(&node, &format!("acme{n}"), "/v1/sends", &event("t", &json!({}))).await;
        let started = Instant::now();
        while lost.load(std::sync::atomic::Ordering::Relaxed) == 0 {
            assert!(started.elapsed() < PATIENCE, "no commit: {}", node.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        configure(&node, &url.replace(change.0, change.1), &more.replace(change.0, change.1));
        node.signal(Signal::SIGHUP);
        let record = node.done_as(&format!("acme{n}"), &id_of(&answer)).await;
        let (error, message) = (&record["error"], record["error"]["message"].as_str().expect("words"));
        assert_eq!((&record["outcome"], &error["processed"]), (&json!("blocked"), &json!("maybe")), "{record}");
        assert!(message.contains("no second one") && message.contains("not known"), "{message}");
        assert_eq!(rows(&cluster, &format!("SELECT count(*) FROM acme{n}.t")).await, ["1"]);
    }
    assert_eq!(rows(&cluster, "SELECT to_regclass('x_acme0.t') IS NULL").await, ["t"]);
}
