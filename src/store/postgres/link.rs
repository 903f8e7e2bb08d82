//! Connections to the database: made anew when they break, each with its prepared statements.
//!
//! A statement either was not made ([`Trouble::Away`]), or was refused by the database ([`Trouble::Refused`]), or its
//! answer was lost with the connection ([`Trouble::Lost`]): then nobody knows whether it was committed, and whoever
//! made it finds out.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls, Row, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::store::{StoreError, Why};

/// How long a connection may take to be made; who calls waits no longer for a refusal.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// The same at a start, where nobody waits yet and much is under way at once.
const START_WITHIN: Duration = Duration::from_secs(15);
/// How long sent bytes may stay without the database's word on them.
const SILENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub enum Trouble {
    Away(Why),
    Lost(Why),
    Refused(Arc<tokio_postgres::Error>),
}

impl Trouble {
    pub fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Refused(error) => error.code(),
            _ => None,
        }
    }

    /// It says nothing of the statement: the same may be taken in a moment.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Away(_) | Self::Lost(_) => true,
            // Out of something, rolled back for others, or given up by somebody: cancelled, or past a time that was set.
            Self::Refused(_) => self.code().is_some_and(|code| {
                let code = code.code();
                code.starts_with("40") || code.starts_with("53") || code == "57014" || code == "55P03"
            }),
        }
    }

    pub fn took_too_long(&self) -> bool {
        self.code() == Some(&SqlState::QUERY_CANCELED)
    }

    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::Refused(error) => error.as_db_error().and_then(|error| error.detail()),
            _ => None,
        }
    }

    fn why(&self) -> Why {
        match self {
            Self::Away(why) => why.said(format!("the database cannot be reached: {why}")),
            Self::Lost(why) => why.said(format!("an answer of the database was lost: {why}")),
            Self::Refused(error) => Why::by(format!("the database refused: {}", told(error)), error.clone()),
        }
    }

    pub fn on_write(&self) -> StoreError {
        StoreError::CannotWrite(self.why())
    }

    pub fn on_read(&self) -> StoreError {
        StoreError::CannotRead(self.why())
    }

    /// At the start: who is not let in, or asks for what is not there, waits for a person.
    pub fn on_start(&self) -> StoreError {
        match self.code().map(|code| &code.code()[..2]) {
            Some("28" | "3D" | "42") => StoreError::Unfit(self.why().to_string()),
            _ => self.on_read(),
        }
    }
}

/// With its cause, which the driver leaves out.
pub fn told(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(error) => format!("{} ({})", error.message(), error.code().code()),
        None => match std::error::Error::source(error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        },
    }
}

fn because(error: tokio_postgres::Error) -> Why {
    Why::by(told(&error), error)
}

/// Where the database is and how it is spoken to.
#[derive(Clone)]
pub struct Address {
    pub config: Config,
    pub tls: Option<MakeRustlsConnect>,
    /// In which everything is.
    pub schema: String,
}

impl Address {
    /// One that nobody waits for.
    pub async fn connect_first(&self, name: &str) -> Result<Client, Trouble> {
        self.connect(name, START_WITHIN, None).await.map(|(client, _)| client)
    }

    /// One connection of its own, and how often the database has warned on it.
    async fn connect(
        &self,
        name: &str,
        within: Duration,
        statement: Option<Duration>,
    ) -> Result<(Client, Arc<AtomicU64>), Trouble> {
        let mut config = self.config.clone();
        config.application_name(format!("{} {name}", self.schema)).connect_timeout(within).tcp_user_timeout(SILENCE);
        config.keepalives_idle(SILENCE).keepalives_interval(SILENCE).keepalives_retries(2);
        let limited = statement.map(|most| format!("; SET statement_timeout = {}", most.as_millis()));
        let connecting = async {
            let warnings = Arc::<AtomicU64>::default();
            let client = match &self.tls {
                Some(tls) => {
                    let (client, connection) = config.connect(tls.clone()).await?;
                    tokio::spawn(driven(connection, warnings.clone()));
                    client
                }
                None => {
                    let (client, connection) = config.connect(NoTls).await?;
                    tokio::spawn(driven(connection, warnings.clone()));
                    client
                }
            };
            // What the statements here rely on, whatever the server's or the role's defaults are. A prepared one is
            // planned while its tables are as good as empty (a new tier, a new day): reading all of one seems cheap then,
            // for each of the rows that it is asked for, and is done for as long as nobody has counted what came since.
            client
                .batch_execute(&format!(
                    "SET search_path = {}; SET default_transaction_isolation = 'read committed'; \
                     SET default_transaction_read_only = off; SET jit = off; SET enable_bitmapscan = off; \
                     SET enable_seqscan = off; \
                     SET max_parallel_workers_per_gather = 0; SET idle_in_transaction_session_timeout = '10s'; \
                     SET client_min_messages = 'warning'{}",
                    self.schema,
                    limited.as_deref().unwrap_or_default(),
                ))
                .await?;
            Ok((client, warnings))
        };
        tokio::select! {
            made = connecting => made.map_err(|error: tokio_postgres::Error| match error.code() {
                // It is there, and does not let this node in.
                Some(code) if code.code().starts_with("28") || code.code().starts_with("3D") => {
                    Trouble::Refused(Arc::new(error))
                }
                _ => Trouble::Away(because(error)),
            }),
            () = tokio::time::sleep(within) => {
                let words = format!("no connection within {} s", within.as_secs());
                Err(Trouble::Away(Why::by(words, std::io::Error::from(std::io::ErrorKind::TimedOut))))
            }
        }
    }
}

/// Keeps a connection going, and counts warnings. None of the statements here is warned of, but for one whose wait for the
/// standby was given up because somebody asked for that: it is committed here, and no standby may have it.
async fn driven<S, T>(mut connection: Connection<S, T>, warnings: Arc<AtomicU64>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
        if let AsyncMessage::Notice(notice) = message {
            warnings.fetch_add(1, Ordering::SeqCst);
            tracing::warn!(code = notice.code().code(), "the database warns: {}", notice.message());
        }
    }
}

/// A connection that is made when it is needed, and again after it broke.
pub struct Link {
    address: Arc<Address>,
    name: &'static str,
    /// How long one statement may take.
    most: Option<Duration>,
    current: tokio::sync::Mutex<Option<Arc<Open>>>,
}

/// An open one.
pub struct Open {
    client: Client,
    /// It is one to a server that takes nothing any more.
    useless: AtomicBool,
    warnings: Arc<AtomicU64>,
    statements: Mutex<HashMap<&'static str, Statement>>,
}

impl Link {
    pub fn new(address: Arc<Address>, name: &'static str) -> Self {
        Self { address, name, most: None, current: tokio::sync::Mutex::default() }
    }

    /// One whose statements are given up after this long.
    pub fn limited(address: Arc<Address>, name: &'static str, most: Duration) -> Self {
        Self { most: Some(most), ..Self::new(address, name) }
    }

    pub async fn open(&self) -> Result<Arc<Open>, Trouble> {
        self.open_within(CONNECT_WITHIN).await
    }

    async fn open_within(&self, within: Duration) -> Result<Arc<Open>, Trouble> {
        let mut current = self.current.lock().await;
        if let Some(open) = current.as_ref().filter(|open| open.is_useful()) {
            return Ok(open.clone());
        }
        let (client, warnings) = self.address.connect(self.name, within, self.most).await?;
        let open = Open { client, useless: AtomicBool::new(false), warnings, statements: Mutex::default() };
        let open = Arc::new(open);
        *current = Some(open.clone());
        Ok(open)
    }

    /// At a start.
    pub async fn open_first(&self) -> Result<(), Trouble> {
        self.open_within(START_WITHIN).await.map(drop)
    }

    pub async fn query(&self, sql: &'static str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Trouble> {
        self.open().await?.query(sql, values).await
    }

    pub async fn one(&self, sql: &'static str, values: &[&(dyn ToSql + Sync)]) -> Result<Row, Trouble> {
        let row = self.query(sql, values).await?.into_iter().next();
        row.ok_or_else(|| Trouble::Away("the database gave no row where there is always one".into()))
    }

    /// Text that differs from call to call.
    pub async fn ask(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Trouble> {
        let open = self.open().await?;
        open.client.query(sql, values).await.map_err(|error| open.trouble(error))
    }

    pub async fn run(&self, sql: &str) -> Result<(), Trouble> {
        let open = self.open().await?;
        open.client.batch_execute(sql).await.map_err(|error| open.trouble(error))
    }
}

impl Open {
    fn is_useful(&self) -> bool {
        !self.client.is_closed() && !self.useless.load(Ordering::Relaxed)
    }

    pub async fn query(&self, sql: &'static str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Trouble> {
        let known = self.statements.lock().unwrap_or_else(PoisonError::into_inner).get(sql).cloned();
        let statement = match known {
            Some(statement) => statement,
            None => {
                // It was not made yet: a connection that breaks here has lost nothing.
                let made = self.client.prepare(sql).await.map_err(|error| match self.trouble(error) {
                    Trouble::Lost(why) => Trouble::Away(why),
                    trouble => trouble,
                })?;
                self.statements.lock().unwrap_or_else(PoisonError::into_inner).insert(sql, made.clone());
                made
            }
        };
        let warned = self.warnings.load(Ordering::SeqCst);
        let rows = self.client.query(&statement, values).await.map_err(|error| self.trouble(error))?;
        // A warning comes before the answer. It may be another statement's that is under way on this connection.
        if self.warnings.load(Ordering::SeqCst) == warned {
            Ok(rows)
        } else {
            Err(Trouble::Lost("the database answered with a warning: the standby may not have it".into()))
        }
    }

    /// Whose fault it is.
    fn trouble(&self, error: tokio_postgres::Error) -> Trouble {
        match error.code() {
            // The backend ends, and the transaction may have been committed before.
            Some(code) if code.code().starts_with("57P") || code.code().starts_with("08") => {
                Trouble::Lost(because(error))
            }
            // What was the primary is a standby now: another connection may find the new one.
            Some(code) if *code == SqlState::READ_ONLY_SQL_TRANSACTION => {
                self.useless.store(true, Ordering::Relaxed);
                Trouble::Away(because(error))
            }
            Some(_) => Trouble::Refused(Arc::new(error)),
            None if self.client.is_closed() || error.is_closed() => Trouble::Lost(because(error)),
            // An error of I/O: the connection's task ends with it.
            None if std::error::Error::source(&error).is_some_and(|cause| cause.is::<std::io::Error>()) => {
                Trouble::Lost(because(error))
            }
            None => Trouble::Refused(Arc::new(error)),
        }
    }
}
