//! How the database goes about statements that were prepared before there was anything to go by.

use tokio_postgres::SimpleQueryMessage;

use super::many::Schema;
use super::*;

/// Those that ask for rows by their keys.
const BY_KEYS: [(&str, &str); 28] = [
    ("accepted", sql::ACCEPTED),
    ("accept", sql::ACCEPT),
    ("undo", sql::UNDO),
    ("begin", sql::BEGIN),
    ("begun", sql::BEGUN),
    ("specs", sql::SPECS),
    ("finish", sql::FINISH),
    ("why not finished", sql::WHY_NOT_FINISHED),
    ("end waiting", sql::END_WAITING),
    ("ended by", sql::ENDED_BY),
    ("end interrupted", sql::END_INTERRUPTED),
    ("claim", sql::CLAIM),
    ("claim around", sql::CLAIM_AROUND),
    ("give back", sql::GIVE_BACK),
    ("hand over", sql::HAND_OVER),
    ("mine among", sql::MINE_AMONG),
    ("take handed", sql::TAKE_HANDED),
    ("adopt", sql::ADOPT),
    ("expired", sql::EXPIRED),
    ("sends", sql::SENDS),
    ("lives", sql::LIVES),
    ("done among", sql::DONE_AMONG),
    ("dones", sql::DONES),
    ("tail", sql::TAIL),
    ("take events", sql::TAKE_EVENTS),
    ("members of batch", sql::MEMBERS_OF_BATCH),
    ("specs alive", sql::SPECS_ALIVE),
    ("gathering", sql::GATHERING),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_statement_that_asks_by_keys_reads_a_whole_table_however_little_was_in_it() {
    let tier = Schema::fresh();
    let _node = tier.node("a").await;
    let raw = tier.raw().await;
    raw.batch_execute("SET plan_cache_mode = force_generic_plan").await.expect("set");
    for (what, sql) in BY_KEYS {
        let has = |n: &usize| sql.contains(&format!("${n}"));
        let values = vec!["NULL"; (1..100).take_while(has).count()].join(", ");
        let text = format!("PREPARE one AS {sql}; EXPLAIN (COSTS OFF) EXECUTE one({values}); DEALLOCATE one");
        let text = text.replace("one()", "one");
        let told = raw.simple_query(&text).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        let plan: Vec<&str> = told
            .iter()
            .filter_map(|message| if let SimpleQueryMessage::Row(row) = message { row.get(0) } else { None })
            .collect();
        let whole =
            |line: &&&str| ["live", "queue", "send", "done"].iter().any(|t| line.contains(&format!("Seq Scan on {t}")));
        assert!(!plan.is_empty(), "{what}");
        // Joined with a list, each row would be compared with all of it where the database takes few rows to be meant.
        let by_list = |line: &&str| line.contains("Index Cond: (id = ANY (");
        if ["take events", "members of batch"].contains(&what) {
            assert!(plan.iter().any(by_list), "{what}:\n{}", plan.join("\n"));
        }
        assert_eq!(plan.iter().find(whole), None, "{what}:\n{}", plan.join("\n"));
    }
}
