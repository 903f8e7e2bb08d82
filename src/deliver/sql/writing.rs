//! One batch as one transaction: what is missing made, its id noted, its rows written, and those that are refused left out.
//!
//! A row that the database refuses takes no other with it. All of them are one statement first; where that is refused and
//! the same without any row is not, a row is to blame, and it is looked for by halves, each behind a savepoint. What was
//! left out is noted in [`REFUSED_TABLE`] in the same transaction, so whoever finds the batch there already reads which
//! of its events are not. The search has an end ([`Patience`]): what is refused behind it is left out with those that
//! stand beside it, and told so.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio_postgres::Client;
use tokio_postgres::error::DbError;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use super::{Rows, Stop, cut, may_pass};
use crate::deadline::Deadline;
use crate::limits;
use crate::record::BatchId;
use crate::send::parse::{BATCHES_TABLE, REFUSED_TABLE};

/// What a transaction is doing: the same code means another thing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    LoggingIn,
    /// A schema or a table that is missing.
    Making,
    Writing,
}

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Written {
    /// By an earlier transaction.
    pub was_there: bool,
    /// In order. Where these are all rows nothing is there, and nothing is noted.
    pub refused: Vec<Refused>,
}

/// Rows that are not there, as the database refused them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// More than one: of these some are to blame, and nobody knows which.
    pub rows: Range<usize>,
    pub sqlstate: String,
    /// Its words, in ASCII: they have to stand in a database of any encoding.
    pub said: String,
}

/// How long the rows that are to blame are looked for one by one.
pub struct Patience {
    pub deadline: Deadline,
    /// Bytes that the database may still say.
    pub left: Arc<AtomicUsize>,
    pub statements: usize,
}

impl Patience {
    fn is_over(&self) -> bool {
        self.statements == 0
            || self.deadline.spent() >= self.deadline.total() / 2
            || self.left.load(Ordering::Relaxed) < limits::SQL_ANSWER_BYTES_MAX / 2
    }
}

/// Where one batch goes.
pub struct Writing<'a> {
    client: &'a Client,
    schema: String,
    table: String,
    batches: String,
    refused: String,
    rows: &'a Rows,
    /// Set when it is asked to commit.
    commits: &'a AtomicBool,
}

impl<'a> Writing<'a> {
    pub fn new(client: &'a Client, schema: &str, table: &str, rows: &'a Rows, commits: &'a AtomicBool) -> Self {
        let schema = quoted(schema);
        let within = |name: &str| format!("{schema}.{}", quoted(name));
        let (table, batches, refused) = (within(table), within(BATCHES_TABLE), within(REFUSED_TABLE));
        Self { client, schema, table, batches, refused, rows, commits }
    }

    pub async fn all(&self, id: BatchId, patience: Patience) -> Result<Written, Stop> {
        // A process that is frozen in the middle keeps its connection: the batch would be held up behind it for as long. What is
        // checked when a transaction ends would take all of it along.
        let total = patience.deadline.total().as_millis().max(1);
        let begin = format!(
            "BEGIN; SET LOCAL idle_in_transaction_session_timeout = {total}; SET LOCAL statement_timeout = {}; \
             SET CONSTRAINTS ALL IMMEDIATE",
            2 * total
        );
        self.client.batch_execute(&begin).await?;
        let has_refused = self.make_missing().await?;
        let id = id.to_string();
        if !self.note(&id).await? {
            let refused = if has_refused { self.noted(&id).await? } else { Vec::new() };
            self.client.batch_execute("ROLLBACK").await?;
            return Ok(Written { was_there: true, refused });
        }
        let mut refused = self.insert_all(patience).await?;
        if refused.iter().map(|refused| refused.rows.len()).sum::<usize>() == self.rows.ids.len() && !refused.is_empty()
        {
            self.client.batch_execute("ROLLBACK").await?;
            return Ok(Written { was_there: false, refused });
        }
        if !refused.is_empty() {
            if !has_refused {
                self.make(&format!(
                    "CREATE TABLE IF NOT EXISTS {} (batch_id text, first_send uuid, last_send uuid NOT NULL, \
                     sends bigint NOT NULL, sqlstate text NOT NULL, said text NOT NULL, PRIMARY KEY (batch_id, first_send))",
                    self.refused
                ))
                .await?;
            }
            self.note_refused(&id, &refused).await?;
            // As the next one to come will read them, and may read them at all.
            refused = self.noted(&id).await?;
        }
        self.commits.store(true, Ordering::Relaxed);
        self.client.batch_execute("COMMIT").await?;
        Ok(Written { was_there: false, refused })
    }

    async fn make(&self, statement: &str) -> Result<(), Stop> {
        self.client.batch_execute(statement).await.map_err(|error| Stop::of(error, Doing::Making))
    }

    /// Whether there is a table of what was refused, which is made when it is needed.
    async fn make_missing(&self) -> Result<bool, Stop> {
        let known = "SELECT to_regnamespace($1) IS NOT NULL, to_regclass($2) IS NOT NULL, to_regclass($3) IS NOT NULL, \
                     to_regclass($4) IS NOT NULL";
        let names = [&self.schema, &self.table, &self.batches, &self.refused];
        let names = names.map(|name| (name as &(dyn ToSql + Sync), Type::TEXT));
        let found = self.client.query_typed_one(known, &names).await?;
        let missing = [
            (0, format!("CREATE SCHEMA IF NOT EXISTS {}", self.schema)),
            (
                1,
                format!(
                    "CREATE TABLE IF NOT EXISTS {} (send_id uuid PRIMARY KEY, sent_at timestamptz, event jsonb)",
                    self.table
                ),
            ),
            (
                2,
                format!(
                    "CREATE TABLE IF NOT EXISTS {} \
                     (batch_id text PRIMARY KEY, written_at timestamptz NOT NULL DEFAULT now(), sends bigint NOT NULL)",
                    self.batches
                ),
            ),
        ];
        for (column, make) in missing {
            // Whoever made them for us need not let us make any.
            if !found.try_get::<_, bool>(column)? {
                self.make(&make).await?;
            }
        }
        Ok(found.try_get(3)?)
    }

    /// `false`: the batch is there.
    async fn note(&self, id: &String) -> Result<bool, Stop> {
        let sends = i64::try_from(self.rows.ids.len()).unwrap_or(i64::MAX);
        let note =
            format!("INSERT INTO {} (batch_id, sends) VALUES ($1, $2) ON CONFLICT (batch_id) DO NOTHING", self.batches);
        Ok(self.client.execute_typed(&note, &[(id, Type::TEXT), (&sends, Type::INT8)]).await? > 0)
    }

    /// Those that are refused, in order; the others are written.
    async fn insert_all(&self, mut patience: Patience) -> Result<Vec<Refused>, Stop> {
        let mut refused = Vec::new();
        let mut to_come: Vec<Range<usize>> = std::iter::once(0..self.rows.ids.len()).collect();
        let (mut mark, mut is_a_row) = ("SAVEPOINT rows", false);
        while let Some(rows) = to_come.pop() {
            if !mark.is_empty() {
                self.client.batch_execute(mark).await?;
            }
            let Some(error) = self.insert(rows.clone()).await? else {
                mark = "RELEASE SAVEPOINT rows; SAVEPOINT rows";
                continue;
            };
            (mark, patience.statements) = ("", patience.statements.saturating_sub(1));
            // What no row at all is refused for is no row's fault.
            if !is_a_row && let Some(error) = self.insert(0..0).await? {
                return Err(Stop::Refused(Doing::Writing, error));
            }
            is_a_row = true;
            let is_over = patience.is_over();
            if rows.len() == 1 || is_over && rows.len() <= limits::SQL_REFUSED_TOGETHER {
                let (sqlstate, said) = (error.code().code().to_owned(), cut(error.message()));
                refused.push(Refused { rows, sqlstate, said });
                continue;
            }
            let step = if is_over { limits::SQL_REFUSED_TOGETHER } else { rows.len().div_ceil(2) };
            let parts = rows.clone().step_by(step).map(|from| from..rows.end.min(from + step));
            to_come.extend(parts.rev());
        }
        Ok(refused)
    }

    /// Behind a savepoint, to which it goes back where it is refused.
    async fn insert(&self, rows: Range<usize>) -> Result<Option<Box<DbError>>, Stop> {
        let insert = format!(
            "INSERT INTO {} (send_id, sent_at, event) \
             SELECT id, to_timestamp(at::double precision / 1000), event::jsonb \
             FROM unnest($1::uuid[], $2::bigint[], $3::text[]) AS of_batch (id, at, event) \
             ON CONFLICT (send_id) DO NOTHING",
            self.table
        );
        let Rows { ids, at, events } = self.rows;
        let (ids, at, events) = (&ids[rows.clone()], &at[rows.clone()], &events[rows]);
        let columns: [(&(dyn ToSql + Sync), Type); 3] =
            [(&ids, Type::UUID_ARRAY), (&at, Type::INT8_ARRAY), (&events, Type::TEXT_ARRAY)];
        match self.client.execute_typed(&insert, &columns).await.map_err(|error| Stop::of(error, Doing::Writing)) {
            Ok(_) => Ok(None),
            Err(Stop::Refused(doing, error)) if !may_pass(error.code().code(), doing) => {
                self.client.batch_execute("ROLLBACK TO SAVEPOINT rows").await?;
                Ok(Some(error))
            }
            Err(stop) => Err(stop),
        }
    }

    async fn note_refused(&self, id: &String, refused: &[Refused]) -> Result<(), Stop> {
        let note = format!(
            "INSERT INTO {} (batch_id, first_send, last_send, sends, sqlstate, said) \
             SELECT $1, * FROM unnest($2::uuid[], $3::uuid[], $4::bigint[], $5::text[], $6::text[])",
            self.refused
        );
        let ids = &self.rows.ids;
        let first: Vec<Uuid> = refused.iter().map(|refused| ids[refused.rows.start]).collect();
        let last: Vec<Uuid> = refused.iter().map(|refused| ids[refused.rows.end - 1]).collect();
        let sends: Vec<i64> =
            refused.iter().map(|refused| i64::try_from(refused.rows.len()).unwrap_or(i64::MAX)).collect();
        let states: Vec<&str> = refused.iter().map(|refused| &*refused.sqlstate).collect();
        let said: Vec<&str> = refused.iter().map(|refused| &*refused.said).collect();
        let columns: [(&(dyn ToSql + Sync), Type); 6] = [
            (id, Type::TEXT),
            (&first, Type::UUID_ARRAY),
            (&last, Type::UUID_ARRAY),
            (&sends, Type::INT8_ARRAY),
            (&states, Type::TEXT_ARRAY),
            (&said, Type::TEXT_ARRAY),
        ];
        self.client.execute_typed(&note, &columns).await?;
        Ok(())
    }

    /// What the transaction that wrote this batch left out.
    async fn noted(&self, id: &String) -> Result<Vec<Refused>, Stop> {
        let ask = format!("SELECT first_send, last_send, sqlstate, said FROM {} WHERE batch_id = $1", self.refused);
        let found = self.client.query_typed(&ask, &[(id, Type::TEXT)]).await?;
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let places: HashMap<Uuid, usize> = self.rows.ids.iter().enumerate().map(|(at, id)| (*id, at)).collect();
        let mut refused = Vec::with_capacity(found.len());
        for row in found {
            let (first, last): (Uuid, Uuid) = (row.try_get(0)?, row.try_get(1)?);
            // One that cannot be read back any more is not among the rows.
            if let (Some(&first), Some(&last)) = (places.get(&first), places.get(&last))
                && first <= last
            {
                refused.push(Refused { rows: first..last + 1, sqlstate: row.try_get(2)?, said: row.try_get(3)? });
            }
        }
        refused.sort_by_key(|refused| refused.rows.start);
        Ok(refused)
    }
}

/// As SQL has names that are to be taken by their bytes.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_by_its_bytes() {
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
    }
}
