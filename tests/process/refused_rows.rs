//! A row that the database refuses: it ends by itself, and the rest of its batch is there, whatever refuses it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::node::{Node, call};
use crate::sql::{LETS_IN, cluster_with, configure, id_of, plain, rows};
use crate::tier::Cluster;

async fn cluster() -> (Cluster, tempfile::TempDir) {
    let (mut cluster, directory) = cluster_with(LETS_IN);
    cluster.tell("stop fast");
    cluster.tell("start");
    (cluster, directory)
}

async fn batch_of(node: &Node, record: &Value) -> Value {
    let batch = record["batch"]["id"].as_str().expect("a batch");
    let headers = [("egressd-tenant", "acme")];
    call(node.api, "GET", &format!("/v1/batches/{batch}"), "", &headers).await.expect("an answer").1
}

/// The records of events with these payloads, which are JSON as it is to stand in the call.
async fn ends(node: &Node, table: &str, payloads: &[String]) -> Vec<Value> {
    let mut ids = Vec::new();
    for some in payloads.chunks(1000) {
        let sends: Vec<String> = some
            .iter()
            .map(|payload| format!("{{\"sql\": {{\"table\": \"{table}\", \"payload\": {payload}}}}}"))
            .collect();
        let body = format!("[{}]", sends.join(","));
        let headers = [("egressd-tenant", "acme")];
        let (status, sent) = call(node.api, "POST", "/v1/sends", &body, &headers).await.expect("an answer");
        assert_eq!(status, 202, "{sent}");
        ids.extend(sent["sends"].as_array().expect("a list").iter().map(id_of));
    }
    let mut records = Vec::new();
    for id in &ids {
        records.push(node.done_as("acme", id).await);
    }
    records
}

fn numbered(n: impl std::fmt::Display) -> String {
    json!({"n": n.to_string()}).to_string()
}

fn short(record: &Value) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&record["outcome"]), text(&record["response"]["headers"]["sqlstate"][0]))
}

const RAISES: &str = "CREATE FUNCTION acme.raises() RETURNS trigger LANGUAGE plpgsql AS \
    'BEGIN IF NEW.event->>$$n$$ = $$bad$$ THEN RAISE EXCEPTION $$no \u{17e}, never$$; END IF; RETURN NEW; END'";
const POLICY: &str = "CREATE POLICY p ON acme.policed FOR ALL USING (true) WITH CHECK (event->>'n' <> 'bad')";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_refuses_a_row_the_others_of_its_batch_are_there() {
    let (mut cluster, _directory) = cluster().await;
    cluster.tell("sql CREATE ROLE writer LOGIN");
    cluster.tell("sql CREATE SCHEMA acme");
    cluster.tell(&format!("sql {RAISES}"));
    for table in ["checked", "keyed", "guarded", "late", "typed", "policed"] {
        let columns = "send_id uuid PRIMARY KEY, sent_at timestamptz, event jsonb";
        cluster.tell(&format!("sql CREATE TABLE acme.{table} ({columns})"));
    }
    for made in [
        "ALTER TABLE acme.checked ADD CHECK (event->>'n' <> 'bad')",
        "CREATE UNIQUE INDEX ON acme.keyed ((event->>'n'))",
        "INSERT INTO acme.keyed VALUES (gen_random_uuid(), now(), '{\"n\": \"bad\"}')",
        "CREATE TRIGGER t BEFORE INSERT ON acme.guarded FOR EACH ROW EXECUTE FUNCTION acme.raises()",
        "CREATE CONSTRAINT TRIGGER t AFTER INSERT ON acme.late DEFERRABLE INITIALLY DEFERRED FOR EACH ROW \
         EXECUTE FUNCTION acme.raises()",
        "ALTER TABLE acme.typed ADD n int GENERATED ALWAYS AS ((CASE event->>'n' WHEN 'bad' THEN 'x' ELSE '1' END)::int) STORED",
        "ALTER TABLE acme.policed ENABLE ROW LEVEL SECURITY",
        POLICY,
        "GRANT USAGE, CREATE ON SCHEMA acme TO writer",
        "GRANT INSERT, SELECT ON ALL TABLES IN SCHEMA acme TO writer",
        "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'",
        "CREATE DATABASE bytes TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'",
        "ALTER DATABASE latin OWNER TO writer",
        "ALTER DATABASE bytes OWNER TO writer",
    ] {
        cluster.tell(&format!("sql {made}"));
    }
    let as_writer = plain(&cluster).replace("egressd@", "writer@");
    let of = |database: &str| as_writer.replace("/postgres?", &format!("/{database}?"));
    let bad = numbered("bad");
    let mut node = Node::new("");
    let mut at = String::new();
    for (database, table, bad, sqlstate) in [
        ("postgres", "checked", &*bad, "23514"),
        ("postgres", "keyed", &bad, "23505"),
        ("postgres", "guarded", &bad, "P0001"),
        ("postgres", "late", &bad, "P0001"),
        ("postgres", "typed", &bad, "22P02"),
        ("postgres", "policed", &bad, "42501"),
        ("latin", "t", "\"\u{65e5}\u{672c}\"", "22P05"),
        ("bytes", "t", "\"\\u65e5\"", "0A000"),
    ] {
        if at != database {
            if !at.is_empty() {
                node.kill();
            }
            configure(&node, &of(database), "every = \"200ms\"\n");
            node.start();
            at = database.to_owned();
        }
        let good = |n: usize| numbered(format!("{table}-{n}"));
        let payloads = [good(0), bad.to_owned(), good(2), good(3), good(4), bad.to_owned(), good(6)];
        let records = ends(&node, table, &payloads).await;
        for (n, record) in records.iter().enumerate() {
            let wanted = if matches!(n, 1 | 5) { ("rejected", sqlstate) } else { ("delivered", "") };
            let (outcome, state) = short(record);
            assert_eq!((&*outcome, &*state), wanted, "{database} {table} {n}: {record}");
        }
        let batch = batch_of(&node, &records[0]).await;
        let wanted = json!(["delivered", 7, 2, 1]);
        assert_eq!(
            json!([batch["outcome"], batch["sends"], batch["refused"], batch["tried"]]),
            wanted,
            "{table}: {batch}"
        );
        let (error, said) = (&records[5]["error"], records[5]["response"]["body"].as_str().expect("words"));
        let message = error["message"].as_str().expect("words");
        assert!(message.contains("refused this event of the batch") && message.contains(sqlstate), "{error}");
        assert_eq!(error["processed"], "no", "{error}");
        assert!(said.len() > 10 && said.is_ascii(), "{said}");
        if database == "postgres" {
            let written = format!("SELECT count(*) FROM acme.{table}");
            let before = usize::from(table == "keyed");
            assert_eq!(rows(&cluster, &written).await, [(5 + before).to_string()], "{table}");
            let noted = format!(
                "SELECT first_send = last_send, sends, sqlstate FROM acme.egressd_refused WHERE batch_id = {}",
                records[0]["batch"]["id"].to_string().replace('"', "'")
            );
            let row = format!("t|1|{sqlstate}");
            assert_eq!(rows(&cluster, &noted).await, [row.clone(), row], "{table}");
        }
    }
}

/// A relay to the cluster that hangs up where the answer to the first COMMIT would come, and on everybody from then on
/// where it `shuts`.
pub async fn loses_a_commit(cluster: &Cluster, shuts: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let port: u16 = cluster.url().split([':', '/']).rev().nth(1).expect("a port").parse().expect("a number");
    let lost = Arc::new(AtomicUsize::new(0));
    let counted = lost.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            if shuts && counted.load(Ordering::Relaxed) > 0 {
                continue;
            }
            let counted = counted.clone();
            tokio::spawn(async move {
                let server = TcpStream::connect(("127.0.0.1", port)).await.expect("the cluster");
                let ((mut said, mut told), (mut answers, mut asked)) = (client.into_split(), server.into_split());
                let loses = counted.load(Ordering::Relaxed) == 0;
                let (mut one, mut other) = (vec![0; 65536], vec![0; 65536]);
                let mut is_lost = false;
                loop {
                    tokio::select! {
                        read = said.read(&mut one) => {
                            let Ok(read @ 1..) = read else { return };
                            is_lost |= loses && one[..read].windows(6).any(|window| window == b"COMMIT");
                            if asked.write_all(&one[..read]).await.is_err() { return }
                        }
                        read = answers.read(&mut other) => {
                            let Ok(read @ 1..) = read else { return };
                            if is_lost {
                                counted.fetch_add(1, Ordering::Relaxed);
                                return;
                            }
                            if told.write_all(&other[..read]).await.is_err() { return }
                        }
                    }
                }
            });
        }
    });
    (address, lost)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_left_out_is_known_where_the_answer_was_lost() {
    let (mut cluster, _directory) = cluster().await;
    cluster.tell("sql CREATE SCHEMA acme");
    cluster.tell("sql CREATE TABLE acme.t (send_id uuid PRIMARY KEY, sent_at timestamptz, event jsonb)");
    cluster.tell("sql ALTER TABLE acme.t ADD CHECK (event->>'n' <> 'bad')");
    let (relay, lost) = loses_a_commit(&cluster, false).await;
    let mut node = Node::new("");
    let url = format!("postgres://egressd@{relay}/postgres?sslmode=disable");
    configure(&node, &url, "every = \"200ms\"\n");
    node.start();
    let payloads = [numbered(1), numbered("bad"), numbered(2)];
    let records = ends(&node, "t", &payloads).await;
    let told: Vec<_> = records.iter().map(short).collect();
    let of = |outcome: &str, state: &str| (outcome.to_owned(), state.to_owned());
    assert_eq!(told, [of("delivered", ""), of("rejected", "23514"), of("delivered", "")], "{records:?}");
    assert_eq!(lost.load(Ordering::Relaxed), 1);
    let batch = batch_of(&node, &records[1]).await;
    assert_eq!((&batch["tried"], &batch["refused"]), (&json!(2), &json!(1)), "{batch}");
    let said = batch["attempts"][1]["response"]["body"].as_str().expect("words");
    assert_eq!(said, "it was there already, without 1 of 3");
    assert_eq!(rows(&cluster, "SELECT count(*) FROM acme.t").await, ["2"]);
}

/// One of many costs little; where most are refused the search for them ends, and no event is without a true end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_many_is_found_and_a_search_among_many_ends() {
    let (mut cluster, _directory) = cluster().await;
    cluster.tell("sql CREATE SCHEMA acme");
    cluster.tell("sql CREATE TABLE acme.t (send_id uuid PRIMARY KEY, sent_at timestamptz, event jsonb)");
    cluster.tell("sql ALTER TABLE acme.t ADD CHECK (event->>'n' <> 'bad')");
    let mut node = Node::new("");
    configure(&node, &plain(&cluster), "every = \"2s\"\ndeadline = \"60s\"\nbatch_sends = 4000\n");
    node.start();
    let mut payloads: Vec<String> = (0..4000).map(numbered).collect();
    payloads[2717] = numbered("bad");
    let records = ends(&node, "t", &payloads).await;
    let refused: Vec<usize> = (0..4000).filter(|&n| records[n]["outcome"] == "rejected").collect();
    assert_eq!(refused, [2717], "{}", records[2717]);
    assert_eq!(rows(&cluster, "SELECT count(*) FROM acme.t").await, ["3999"]);

    let payloads: Vec<String> = (0..4000).map(|n| if n < 3500 { numbered("bad") } else { numbered(n) }).collect();
    let records = ends(&node, "t", &payloads).await;
    let (mut taken, mut alone, mut together) = (0, 0, 0);
    for record in &records {
        let message = record["error"]["message"].as_str().unwrap_or_default();
        match (record["outcome"].as_str(), message) {
            (Some("delivered"), _) => taken += 1,
            (Some("rejected"), message) if message.contains("refused this event") => alone += 1,
            (Some("rejected"), message) if message.contains("events together") => together += 1,
            _ => panic!("{record}"),
        }
    }
    assert!(alone > 1000 && together > 100 && taken >= 400, "{alone} alone, {together} together, {taken} taken");
    assert_eq!(taken + alone + together, 4000);
    assert_eq!(rows(&cluster, "SELECT count(*) FROM acme.t").await, [(3999 + taken).to_string()]);
    // And where all of them are, nothing is there.
    let records = ends(&node, "t", &vec![numbered("bad"); 20]).await;
    assert!(records.iter().all(|record| short(record) == ("rejected".to_owned(), "23514".to_owned())), "{records:?}");
    let batch = batch_of(&node, &records[0]).await;
    assert_eq!((&batch["outcome"], &batch["refused"]), (&json!("rejected"), &json!(20)), "{batch}");
    let noted =
        format!("SELECT count(*) FROM acme.egressd_batches WHERE batch_id = '{}'", batch["id"].as_str().unwrap());
    assert_eq!(rows(&cluster, &noted).await, ["0"]);
}
