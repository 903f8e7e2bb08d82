//! A batch of rows in a warehouse that speaks PostgreSQL's protocol: one connection, one transaction.
//!
//! The batch's id goes into a table of the tenant's schema whose key it is, in the same transaction as its rows. Where it
//! stands there already, so do they, and nothing is done: a batch whose answer was lost may be brought again. Schema and
//! tables are made where they are missing, and rows that are refused leave the others there ([`writing`]). What the server
//! says of a statement is the batch's answer, with a status as HTTP has them ([`status_of`]). The protocol is the library's, over the stream of the one dial there is; TLS comes before
//! anything is said. Not here: whether it is tried again ([`crate::batcher`]).

mod writing;

use std::collections::BTreeMap;
use std::error::Error as _;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use futures_util::future::{Either, select};
use http::{HeaderName, HeaderValue};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio_postgres::NoTls;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::DbError;
use uuid::Uuid;

use self::writing::{Doing, Patience, Refused, Writing, Written};
use super::{Deliverer, Found, Journey, LeftOut};
use crate::config::SqlSettings;
use crate::deadline::Deadline;
use crate::dial::tls::Offer;
use crate::dial::wire::Io;
use crate::limits::{self, SQL_ANSWER_BYTES_MAX};
use crate::outcome::words::{ExchangeCause, HowUnended, PeerEnd, TlsCause, UnmadeCause};
use crate::outcome::{Code, Failure, Phase, tame};
use crate::policy::{Asker, Denial, Errand, Purpose};
use crate::record::BatchId;
use crate::redact::{RawResponse, sha256};
use crate::send::{Event, SendId, TenantId};
use crate::world::Settings;

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
    left: Arc<AtomicUsize>,
}

impl AsyncRead for Bounded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, into))?;
        let read = into.filled().len() - before;
        let Some(left) = self.left.load(Ordering::Relaxed).checked_sub(read) else {
            return Poll::Ready(Err(io::Error::other("the database says more than a transaction's answers can be")));
        };
        self.left.store(left, Ordering::Relaxed);
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
#[derive(Debug)]
enum Stop {
    Refused(Doing, Box<DbError>),
    /// This node lacks a password, or a way to log in: it is the one that does not go on.
    NoLogin,
    Broken,
}

impl Stop {
    fn of(error: tokio_postgres::Error, doing: Doing) -> Self {
        match (error.as_db_error(), error.source()) {
            (Some(error), _) => Self::Refused(doing, Box::new(error.clone())),
            // What cannot be read or written, and what is out of its order, has an error of I/O beneath it, or none.
            (None, Some(source)) if !source.is::<io::Error>() => Self::NoLogin,
            (None, _) => Self::Broken,
        }
    }
}

impl From<tokio_postgres::Error> for Stop {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::of(error, Doing::Writing)
    }
}

/// Whether the same may be taken later, though nobody mends anything: PostgreSQL's classes of errors (its documentation,
/// appendix A), and of the others the codes that are of a moment.
fn may_pass(sqlstate: &str, doing: Doing) -> bool {
    match (sqlstate.get(..2).unwrap_or_default(), sqlstate) {
        // The connection (a pooler's words, too); a transaction that was idle or took too long, or a standby's; a rollback
        // for others; what has run out; who gave it up; the system; a snapshot, a configuration, a fault of its own.
        ("08" | "25" | "40" | "53" | "57" | "58" | "72" | "F0" | "XX", _) => true,
        // What others have or hold, a foreign server that is away, a pooler's memory of statements.
        (_, "55006" | "55P03" | "HV00N" | "26000") => true,
        // It takes no connections now.
        (_, "55000") => doing == Doing::LoggingIn,
        // Another made the same at the same moment.
        (_, "23505" | "42P06" | "42P07" | "42710") => doing == Doing::Making,
        _ => false,
    }
}

/// Whether what was asked to commit may have been committed all the same: it was cut off then, and what is refused or rolled
/// back for others is not.
fn is_unsure(sqlstate: &str, doing: Doing) -> bool {
    may_pass(sqlstate, doing) && (!sqlstate.starts_with("40") || sqlstate == "40003")
}

/// A code as HTTP would have it: what may pass is 503; a right that is missing 403, what is not there 404, and everything
/// else 400.
fn status_of(sqlstate: &str, doing: Doing) -> u16 {
    match (sqlstate.get(..2).unwrap_or_default(), sqlstate) {
        _ if may_pass(sqlstate, doing) => 503,
        ("28", _) | (_, "42501") => 403,
        ("3D" | "3F", _) | (_, "42P01") => 404,
        _ => 400,
    }
}

/// What it says of a row: in ASCII, and not long.
fn cut(said: &str) -> String {
    let said = tame(said, limits::SQL_REFUSED_SAID);
    said.chars().map(|c| if c.is_ascii() { c } else { '?' }).collect()
}

impl Deliverer {
    /// The status of what was answered.
    #[allow(clippy::too_many_arguments, reason = "each is of another owner")]
    pub(super) async fn insert(
        &self,
        settings: &Settings,
        tenant: &TenantId,
        table: &str,
        id: BatchId,
        rows: &Rows,
        deadline: Deadline,
        journey: &mut Journey,
    ) -> Result<u16, Failure> {
        let purpose = Purpose::Warehouse;
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
        let look = self.dialer.look(asker, to, settings, purpose, &journey.inquiry).await;
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
        let commits = Arc::new(AtomicBool::new(false));
        journey.transaction = Some(commits.clone());
        journey.secrets.extend(set_up.password.as_ref().map(|password| password.expose().into()));
        let left = Arc::new(AtomicUsize::new(SQL_ANSWER_BYTES_MAX));
        let stream = Bounded { stream, left: left.clone() };
        let patience = Patience { deadline, left, statements: limits::SQL_REFUSED_SOUGHT };
        let done = transaction(set_up, &schema, table, id, rows, stream, patience, commits.clone()).await;
        journey.watch.leave();
        let commits = commits.load(Ordering::Relaxed);
        match done {
            Ok(Written { was_there, refused }) => {
                let gone: usize = refused.iter().map(|refused| refused.rows.len()).sum();
                let all = rows.ids.len();
                let (status, state, said) = match refused.first() {
                    Some(first) if gone >= all => (REFUSED, Some(&*first.sqlstate), first.said.clone()),
                    _ => {
                        let said = if was_there { "it was there already" } else { "committed" };
                        let but = if gone > 0 { format!(", without {gone} of {all}") } else { String::new() };
                        (200, None, format!("{said}{but}"))
                    }
                };
                journey.told = Some(answer(status, state, said));
                journey.left_out = left_out(rows, &refused);
                Ok(status)
            }
            Err(Stop::Refused(doing, error)) => {
                let (state, status) = (error.code().code(), status_of(error.code().code(), doing));
                journey.is_unsure = commits && is_unsure(state, doing);
                // Not its detail, which quotes rows.
                journey.told = Some(answer(status, Some(state), error.message().to_owned()));
                Ok(status)
            }
            Err(Stop::NoLogin) => Err(UnmadeCause::NoCredentials.failure()),
            Err(Stop::Broken) => {
                let how = match meter.peer_end() {
                    Some(end) => HowUnended::Ended { end },
                    None => HowUnended::Unreadable,
                };
                Err(ExchangeCause::Transaction { how, commits }.failure(&host))
            }
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

/// The answer to a row.
const REFUSED: u16 = 400;

/// The events of these rows, with what was answered to each: those with the same answer together.
fn left_out(rows: &Rows, refused: &[Refused]) -> Vec<LeftOut> {
    let mut alike: BTreeMap<(&str, &str, usize), Vec<SendId>> = BTreeMap::new();
    for Refused { rows: range, sqlstate, said } in refused {
        let sends = rows.ids[range.clone()].iter().copied().map(SendId);
        alike.entry((sqlstate, said, range.len())).or_default().extend(sends);
    }
    let left_out = |((sqlstate, said, together), sends): ((&str, &str, usize), Vec<SendId>)| {
        let mut answer = answer(REFUSED, Some(sqlstate), said.to_owned());
        answer.headers.push((HeaderName::from_static(REFUSED_EVENTS), HeaderValue::from(together)));
        LeftOut { sends, answer }
    };
    alike.into_iter().map(left_out).collect()
}

/// The line of an answer to events and not to a batch: how many were refused together, of which some are to blame.
pub const REFUSED_EVENTS: &str = "refused-events";

#[allow(clippy::too_many_arguments, reason = "each is of another owner")]
async fn transaction(
    set_up: &SqlSettings,
    schema: &str,
    table: &str,
    id: BatchId,
    rows: &Rows,
    stream: Bounded,
    patience: Patience,
    commits: Arc<AtomicBool>,
) -> Result<Written, Stop> {
    let mut config = tokio_postgres::Config::new();
    // TLS, where there is some, stands already.
    config.user(&set_up.user).dbname(&set_up.database).application_name("egressd").ssl_mode(SslMode::Disable);
    if let Some(password) = &set_up.password {
        config.password(password.expose());
    }
    let connected = config.connect_raw(stream, NoTls).await;
    let (client, connection) = connected.map_err(|error| Stop::of(error, Doing::LoggingIn))?;
    let writing = Writing::new(&client, schema, table, rows, &commits);
    let work = pin!(writing.all(id, patience));
    let connection = pin!(connection);
    match select(work, connection).await {
        Either::Left((done, _)) => done,
        // What it was told as the connection ended says more than that it did.
        Either::Right((Err(error), _)) => Err(error.into()),
        Either::Right((Ok(()), work)) => work.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_told_from_what_will_not() {
        use Doing::{LoggingIn, Making, Writing};
        for (state, doing, wanted) in [
            ("57P01", Writing, 503), // The server is shut down.
            ("57P03", LoggingIn, 503),
            ("57014", Writing, 503),   // It took longer than the database lets it.
            ("53300", LoggingIn, 503), // It has too many connections.
            ("53100", Writing, 503),
            ("40001", Writing, 503),
            ("40P01", Writing, 503),
            ("08006", Writing, 503),
            ("08P01", LoggingIn, 503), // A pooler that has no server.
            ("25006", Writing, 503),   // It has become a standby.
            ("25P03", Writing, 503),   // Idle within a transaction for too long, by its settings.
            ("25P04", Writing, 503),
            ("55P03", Writing, 503),
            ("55006", Making, 503),
            ("58030", Writing, 503),
            ("72000", Writing, 503),
            ("F0001", LoggingIn, 503),
            ("XX000", Writing, 503),
            ("55000", LoggingIn, 503), // It takes no connections now.
            ("55000", Writing, 400),   // What is written to is a view.
            ("23505", Making, 503),    // Another made the same table.
            ("23505", Writing, 400),   // A key of another's.
            ("42P07", Making, 503),
            ("42P07", Writing, 400),
            ("42501", Writing, 403),   // The right is missing.
            ("28P01", LoggingIn, 403), // The password is wrong.
            ("3D000", LoggingIn, 404),
            ("3F000", Writing, 404),
            ("42P01", Writing, 404),
            ("22P02", Writing, 400),
            ("22P05", Writing, 400),
            ("0A000", Writing, 400),
            ("23514", Writing, 400),
            ("42804", Writing, 400), // The table is another's, of other columns.
            ("42703", Writing, 400),
            ("54000", Writing, 400),
            ("P0001", Writing, 400),
            ("x", Writing, 400),
            ("\u{e9}", Writing, 400),
        ] {
            assert_eq!(status_of(state, doing), wanted, "{state} {doing:?}");
        }
    }

    #[test]
    fn what_was_cut_off_as_it_was_committed_may_be_there() {
        for (state, unsure) in [("57P01", true), ("08006", true), ("40003", true), ("40001", false), ("23505", false)] {
            assert_eq!(is_unsure(state, Doing::Writing), unsure, "{state}");
        }
    }

    #[test]
    fn what_is_said_of_a_row_stands_in_any_encoding() {
        assert_eq!(cut("\u{17e} is not\nthere"), "? is not?there");
        assert_eq!(cut(&"\u{1f980}x".repeat(limits::SQL_REFUSED_SAID)).chars().count(), limits::SQL_REFUSED_SAID);
    }
}
