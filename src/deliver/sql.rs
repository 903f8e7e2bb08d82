//! A batch of rows in a warehouse that speaks PostgreSQL's protocol: one connection, one transaction.
//!
//! The batch's id goes into a table of the tenant's schema whose key it is, in the same transaction as its rows. Where it
//! stands there already, so do they, and nothing is done: a batch whose answer was lost may be brought again. Schema and
//! tables are made where they are missing. What the server says of a statement is the batch's answer, with a status as
//! HTTP has them ([`status_of`]). The protocol is the library's, over the stream of the one dial there is; TLS comes before
//! anything is said. Not here: whether it is tried again ([`crate::batcher`]).

use std::error::Error as _;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use futures_util::future::{Either, select};
use http::{HeaderName, HeaderValue};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio_postgres::config::SslMode;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

use super::{Deliverer, Found, Journey};
use crate::config::SqlSettings;
use crate::dial::tls::Offer;
use crate::dial::wire::Io;
use crate::limits::SQL_ANSWER_BYTES_MAX;
use crate::outcome::words::{ExchangeCause, PeerEnd, TlsCause, UnmadeCause};
use crate::outcome::{Code, Failure, Phase, tame};
use crate::policy::{Asker, Denial, Errand, Purpose};
use crate::record::BatchId;
use crate::redact::{RawResponse, sha256};
use crate::send::parse::BATCHES_TABLE;
use crate::send::{Event, SendId, TenantId};

/// What asks for TLS, and the answer that there is some.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
const YES: u8 = b'S';

/// Rows, column by column.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    pub ids: Vec<Uuid>,
    /// When each was accepted, in milliseconds since 1970.
    pub at: Vec<i64>,
    /// JSON.
    pub events: Vec<String>,
}

impl Rows {
    pub fn add(&mut self, id: SendId, event: &Event) {
        self.ids.push(id.0);
        // Ids begin with it (RFC 9562 section 5.7).
        self.at.push(i64::try_from(id.0.as_u128() >> 80).unwrap_or_default());
        self.events.push(String::from_utf8_lossy(event.payload()).into_owned());
    }
}

/// A stream of which no more than so much is read: the library keeps whole messages, however long they say that they are.
struct Bounded {
    stream: Box<dyn Io>,
    left: usize,
}

impl AsyncRead for Bounded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, into))?;
        let read = into.filled().len() - before;
        let Some(left) = self.left.checked_sub(read) else {
            return Poll::Ready(Err(io::Error::other("the database says more than a transaction's answers can be")));
        };
        self.left = left;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Why a transaction came to no end.
enum Stop {
    Refused(Box<tokio_postgres::error::DbError>),
    /// This node lacks a password, or a way to log in: it is the one that does not go on.
    NoLogin,
    Broken,
}

impl From<tokio_postgres::Error> for Stop {
    fn from(error: tokio_postgres::Error) -> Self {
        match (error.as_db_error(), error.source()) {
            (Some(error), _) => Self::Refused(Box::new(error.clone())),
            // What cannot be read or written, and what is out of its order, has an error of I/O beneath it, or none.
            (None, Some(source)) if !source.is::<io::Error>() => Self::NoLogin,
            (None, _) => Self::Broken,
        }
    }
}

/// An SQLSTATE's class as HTTP would have it: what may pass is 503; a right that is missing 403, what is not there 404, and
/// everything else 400.
fn status_of(sqlstate: &str) -> u16 {
    match (&sqlstate[..2.min(sqlstate.len())], sqlstate) {
        // The connection, a rollback for others, what has run out, who gave it up, the system; a standby; another made the
        // same at the same moment.
        ("08" | "40" | "53" | "57" | "58", _) | (_, "55P03" | "25006" | "23505" | "42P06" | "42P07") => 503,
        ("28", _) | (_, "42501") => 403,
        ("3D" | "3F", _) | (_, "42P01") => 404,
        _ => 400,
    }
}

impl Deliverer {
    /// The status of what was answered.
    pub(super) async fn insert(
        &self,
        tenant: &TenantId,
        table: &str,
        id: BatchId,
        rows: &Rows,
        journey: &mut Journey,
    ) -> Result<u16, Failure> {
        let (settings, purpose) = (self.world.settings(), Purpose::Warehouse);
        let gone = |what: &str| Failure::from(Denial::new(Code::PolicyNotAllowed, what));
        let Some(set_up) = &settings.config.destinations.sql else {
            return Err(gone("SQL is not set up on this node any more: ask the operator for [destination.sql]"));
        };
        let schema = set_up.schema_of(tenant).map_err(|why| gone(&format!("{why}: ask the operator")))?;
        let to = &set_up.server;
        journey.goes_to(to);
        let asker = Asker { tenant, workflow: None };
        let judged_by = self.world.in_force();
        if let Some(denial) = self.world.judge_endpoint(asker, to, purpose) {
            return Err(denial.into());
        }
        let mut in_flight = self.dialer.metrics().in_flight();
        journey.watch.enter(Phase::Dns);
        let look = self.dialer.look(asker, to, &settings, purpose, &journey.inquiry).await;
        let Found { aliases, addresses, candidates } = journey.looked(look)?;
        let errand = Errand { tenant: tenant.clone(), destination: to.clone(), purpose };
        let connected = self.connect(&errand, &candidates, journey, &mut in_flight).await?;
        if !self.world.in_force().is(&judged_by) {
            let remote = connected.remote;
            self.dialer.judge_endpoint_again(asker, to, &aliases, &addresses, purpose, remote)?;
        }
        self.dialer.metrics().of(&connected.source).fresh.increment(1);

        let host = to.host.text();
        let meter = connected.wire.meter().clone();
        let end = || meter.peer_end().unwrap_or(PeerEnd::Closed);
        let mut wire = connected.wire;
        let stream: Box<dyn Io> = if to.scheme.has_tls() {
            journey.watch.enter(Phase::Tls);
            let mut answer = [0];
            let asked = async {
                wire.write_all(&SSL_REQUEST).await?;
                wire.read_exact(&mut answer).await
            };
            if asked.await.is_err() {
                return Err(TlsCause::Gone { end: end() }.failure(&host));
            }
            if answer != [YES] {
                return Err(TlsCause::NotOffered.failure(&host));
            }
            self.shake_hands(tenant, &to.host, Offer::Nothing, wire, journey).await?.0
        } else {
            Box::new(wire)
        };
        journey.watch.enter(Phase::Wait);
        journey.asks_without_lines = true;
        journey.secrets.extend(set_up.password.as_ref().map(|password| password.expose().into()));
        let stream = Bounded { stream, left: SQL_ANSWER_BYTES_MAX };
        let done = transaction(set_up, &schema, table, id, rows, stream).await;
        journey.watch.leave();
        match done {
            Ok(was_there) => {
                let said = if was_there { "it was there already" } else { "committed" };
                journey.told = Some(answer(200, None, said.to_owned()));
                Ok(200)
            }
            Err(Stop::Refused(error)) => {
                let (state, status) = (error.code().code(), status_of(error.code().code()));
                // Not its detail, which quotes rows.
                journey.told = Some(answer(status, Some(state), error.message().to_owned()));
                Ok(status)
            }
            Err(Stop::NoLogin) => Err(UnmadeCause::NoCredentials.failure()),
            Err(Stop::Broken) => Err(match meter.peer_end() {
                Some(end) => ExchangeCause::Unanswered { end, written: None }.failure(&host),
                None => ExchangeCause::NotPostgres.failure(&host),
            }),
        }
    }
}

fn answer(status: u16, sqlstate: Option<&str>, said: String) -> RawResponse {
    let said: Vec<String> = said.lines().map(|line| tame(line, crate::limits::SMTP_LINE_BYTES_MAX)).collect();
    let body = bytes::Bytes::from(said.join("\n"));
    let state = sqlstate.and_then(|state| HeaderValue::from_str(state).ok());
    RawResponse {
        status,
        version: "PostgreSQL",
        headers: state.map(|state| (HeaderName::from_static("sqlstate"), state)).into_iter().collect(),
        body_total: body.len() as u64,
        body_truncated: false,
        body_sha256: sha256(&body),
        body,
        declared: None,
    }
}

/// Whether the batch was there before.
async fn transaction(
    set_up: &SqlSettings,
    schema: &str,
    table: &str,
    id: BatchId,
    rows: &Rows,
    stream: Bounded,
) -> Result<bool, Stop> {
    let mut config = tokio_postgres::Config::new();
    // TLS, where there is some, stands already.
    config.user(&set_up.user).dbname(&set_up.database).application_name("egressd").ssl_mode(SslMode::Disable);
    if let Some(password) = &set_up.password {
        config.password(password.expose());
    }
    let (client, connection) = config.connect_raw(stream, NoTls).await?;
    let work = pin!(write(&client, schema, table, id, rows));
    let connection = pin!(connection);
    match select(work, connection).await {
        Either::Left((done, _)) => done,
        // What it was told as the connection ended says more than that it did.
        Either::Right((Err(error), _)) => Err(error.into()),
        Either::Right((Ok(()), work)) => work.await,
    }
}

async fn write(client: &Client, schema: &str, table: &str, id: BatchId, rows: &Rows) -> Result<bool, Stop> {
    let (of_schema, of_table, of_batches) = (quoted(schema), quoted(table), quoted(BATCHES_TABLE));
    client.batch_execute("BEGIN").await?;
    let known = "SELECT to_regnamespace($1) IS NOT NULL, to_regclass($2) IS NOT NULL, to_regclass($3) IS NOT NULL";
    let names = [of_schema.clone(), format!("{of_schema}.{of_table}"), format!("{of_schema}.{of_batches}")];
    let names: Vec<(&(dyn ToSql + Sync), Type)> =
        names.iter().map(|name| (name as &(dyn ToSql + Sync), Type::TEXT)).collect();
    let found = client.query_typed_one(known, &names).await?;
    let missing = [
        (0, format!("CREATE SCHEMA IF NOT EXISTS {of_schema}")),
        (
            1,
            format!(
                "CREATE TABLE IF NOT EXISTS {of_schema}.{of_table} \
                 (send_id uuid PRIMARY KEY, sent_at timestamptz, event jsonb)"
            ),
        ),
        (
            2,
            format!(
                "CREATE TABLE IF NOT EXISTS {of_schema}.{of_batches} \
                 (batch_id text PRIMARY KEY, written_at timestamptz NOT NULL DEFAULT now(), sends bigint NOT NULL)"
            ),
        ),
    ];
    for (column, make) in missing {
        // Whoever made them for us need not let us make any.
        if !found.try_get::<_, bool>(column)? {
            client.batch_execute(&make).await?;
        }
    }
    let sends = i64::try_from(rows.ids.len()).unwrap_or(i64::MAX);
    let note = format!(
        "INSERT INTO {of_schema}.{of_batches} (batch_id, sends) VALUES ($1, $2) ON CONFLICT (batch_id) DO NOTHING"
    );
    let id = id.to_string();
    if client.execute_typed(&note, &[(&id, Type::TEXT), (&sends, Type::INT8)]).await? == 0 {
        client.batch_execute("ROLLBACK").await?;
        return Ok(true);
    }
    let insert = format!(
        "INSERT INTO {of_schema}.{of_table} (send_id, sent_at, event) \
         SELECT id, to_timestamp(at::double precision / 1000), event::jsonb \
         FROM unnest($1::uuid[], $2::bigint[], $3::text[]) AS of_batch (id, at, event) \
         ON CONFLICT (send_id) DO NOTHING"
    );
    let columns: [(&(dyn ToSql + Sync), Type); 3] =
        [(&rows.ids, Type::UUID_ARRAY), (&rows.at, Type::INT8_ARRAY), (&rows.events, Type::TEXT_ARRAY)];
    client.execute_typed(&insert, &columns).await?;
    client.batch_execute("COMMIT").await?;
    Ok(false)
}

/// As SQL has names that are to be taken by their bytes.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_told_from_what_will_not() {
        for (state, wanted) in [
            ("57P01", 503), // The server is shut down.
            ("53300", 503), // It has too many connections.
            ("40001", 503),
            ("40P01", 503),
            ("08006", 503),
            ("25006", 503), // It has become a standby.
            ("23505", 503), // Another made the same table.
            ("42501", 403), // The right is missing.
            ("28P01", 403), // The password is wrong.
            ("3D000", 404),
            ("3F000", 404),
            ("42P01", 404),
            ("22P02", 400),
            ("42804", 400), // The table is another's, of other columns.
            ("42703", 400),
            ("x", 400),
        ] {
            assert_eq!(status_of(state), wanted, "{state}");
        }
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
    }
}
