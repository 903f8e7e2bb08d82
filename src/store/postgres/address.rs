//! Where the database is, as `[store]` says it, and whether it is one that the promises can rest on.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Client, Config, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::link::{Address, told};
use super::sql;
use crate::config::{PostgresSettings, Roots};
use crate::store::{StoreError, Why};

/// In which a tier's tables are.
const SCHEMA: &str = "egressd";

/// Settings without which a 202 would be a lie: what they must not be, and what is to be done.
const SYNCS: [&str; 3] = ["fsync", "synchronous_commit", "full_page_writes"];
/// 15, as `server_version_num` tells it.
const VERSION_MIN: i32 = 150_000;

impl Address {
    pub fn read(settings: &PostgresSettings, roots: Roots) -> Result<Self, StoreError> {
        let (url, asked) = mode_of(&settings.url);
        let mut config: Config = url.parse().map_err(|error: tokio_postgres::Error| {
            StoreError::Unfit(format!("`[store] url` is not one: {}", told(&error)))
        })?;
        if config.get_user().is_none() {
            return Err(StoreError::Unfit("`[store] url` names no user: postgres://USER@HOST/DATABASE".to_owned()));
        }
        if config.get_hosts().is_empty() {
            return Err(StoreError::Unfit(
                "`[store] url` names no host: postgres://USER@HOST/DATABASE, or ?host=/DIRECTORY of a socket"
                    .to_owned(),
            ));
        }
        if let Some(password) = password(settings.password_file.as_deref(), &config)? {
            config.password(password);
        }
        // Across a network nothing but a proven server is spoken to, unless the operator says otherwise.
        let far = config.get_hosts().iter().any(|host| match host {
            Host::Tcp(name) if name == "localhost" => false,
            Host::Tcp(name) => !name.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback()),
            Host::Unix(_) => false,
        });
        let tls = match asked.as_deref() {
            Some("disable") => None,
            None if !far => None,
            None | Some("require" | "verify-ca" | "verify-full") => Some(tls(settings.tls_ca.as_deref(), roots)?),
            Some(other) => {
                return Err(StoreError::Unfit(format!(
                    "`[store] url` asks for sslmode={other}, which may end without TLS: verify-full, or disable"
                )));
            }
        };
        config.ssl_mode(if tls.is_some() { SslMode::Require } else { SslMode::Disable });
        Ok(Self { config, tls, schema: SCHEMA.to_owned() })
    }

    /// Whether it can be reached, takes what is written, and keeps what it says it has kept. The first problem, with what
    /// to do; else what an operator should know.
    pub async fn prove(&self) -> Result<Vec<String>, StoreError> {
        let client = self.connect_first("check").await.map_err(|trouble| trouble.on_start())?;
        let other = self.connect_first("check").await.map_err(|trouble| trouble.on_start())?;
        let read = |error: tokio_postgres::Error| StoreError::CannotRead(Why::by(told(&error), error));
        if pooled(&client, &other).await.map_err(read)? {
            return Err(StoreError::Unfit(
                "the database is reached through a pool that gives each transaction another session (pgbouncer with \
                 pool_mode = transaction or statement), on which locks and leases cannot rest: name PostgreSQL itself in \
                 `[store] url`, or set pool_mode = session"
                    .to_owned(),
            ));
        }
        let asked = "SELECT pg_is_in_recovery(), current_setting('server_version_num')::int, \
                     current_setting('synchronous_standby_names'), (SELECT count(*) FROM pg_stat_replication)";
        let row = client.query_one(asked, &[]).await.map_err(read)?;
        if row.get(0) {
            // It may become the primary.
            return Err(StoreError::CannotWrite(
                "the database is a standby, which takes nothing: name the primary in `[store] url`, or all hosts and \
                 target_session_attrs=read-write"
                    .into(),
            ));
        }
        let version: i32 = row.get(1);
        if version < VERSION_MIN {
            return Err(StoreError::Unfit(format!(
                "the database is PostgreSQL {}, and {} or newer is needed",
                version / 10_000,
                VERSION_MIN / 10_000
            )));
        }
        for setting in SYNCS {
            let row = client.query_one("SELECT current_setting($1)", &[&setting]).await;
            let row = row.map_err(read)?;
            if row.get::<_, &str>(0) == "off" {
                return Err(StoreError::Unfit(format!(
                    "the database has {setting} = off, so what it has committed may be lost: set it to on, for the \
                     server, the role and the database"
                )));
            }
        }
        let (names, standbys): (&str, i64) = (row.get(2), row.get(3));
        let mut told = Vec::new();
        let clock: i64 = client.query_one(sql::CLOCK, &[]).await.map_err(read)?.get(0);
        if let Some(ahead) = jiff::Timestamp::from_microsecond(clock).ok().and_then(crate::clock::follow) {
            told.push(format!(
                "this machine's clock differs from the database's by {} s: the database's is used, for everything but the \
                 validity of certificates; set this one right",
                ahead.abs().as_secs()
            ));
        }
        if names.is_empty() && standbys > 0 {
            told.push(
                "the database has a standby and synchronous_standby_names is empty: after a failover to it, sends that \
                 were answered 202 may be gone and others may be made twice; name the standby there"
                    .to_owned(),
            );
        }
        Ok(told)
    }
}

/// Whether two connections are of one session by turns. What one of them has set is gone, or the other's, once the other
/// has been in a transaction. As plain text: what is prepared fails on such a pool in ways of its own.
async fn pooled(one: &Client, other: &Client) -> Result<bool, tokio_postgres::Error> {
    const MARK: &str = "SELECT coalesce(current_setting('egressd.mark', true), '')";
    let mark = async |client: &Client| {
        let messages = client.simple_query(MARK).await?;
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        Ok::<_, tokio_postgres::Error>(rows.last().unwrap_or_default())
    };
    one.batch_execute("SET egressd.mark = 'one'").await?;
    other.batch_execute("BEGIN").await?;
    let others = mark(other).await?;
    let ones = mark(one).await?;
    other.batch_execute("COMMIT").await?;
    Ok(others == "one" || ones != "one")
}

/// The URL as the driver takes it, and the `sslmode` that it asks for.
fn mode_of(url: &str) -> (String, Option<String>) {
    let Some((front, query)) = url.split_once('?') else { return (url.to_owned(), None) };
    let mut mode = None;
    let rest: Vec<&str> = query
        .split('&')
        .filter(|pair| match pair.strip_prefix("sslmode=") {
            Some(asked) => {
                mode = Some(asked.to_owned());
                false
            }
            None => true,
        })
        .collect();
    let url = if rest.is_empty() { front.to_owned() } else { format!("{front}?{}", rest.join("&")) };
    (url, mode)
}

/// From the file that is named, or the one that `PGPASSFILE` names, as libpq reads it.
fn password(file: Option<&Path>, config: &Config) -> Result<Option<String>, StoreError> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|error| {
            StoreError::Unfit(format!(
                "password file {}: {error}: let the user who runs egressd read it",
                path.display()
            ))
        })
    };
    if let Some(file) = file {
        return Ok(Some(read(file)?.trim_end_matches(['\n', '\r']).to_owned()));
    }
    let Some(file) = std::env::var_os("PGPASSFILE") else { return Ok(None) };
    let text = read(Path::new(&file))?;
    let port = config.get_ports().first().copied().unwrap_or(5432).to_string();
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(name)) => name.clone(),
        _ => "localhost".to_owned(),
    };
    let user = config.get_user().unwrap_or_default();
    let database = config.get_dbname().unwrap_or(user);
    let wanted = [host.as_str(), &port, database, user];
    Ok(text.lines().find_map(|line| password_in(line, wanted)))
}

/// `host:port:database:user:password`, each of the first four also `*`; `\` takes the next character as it is.
fn password_in(line: &str, wanted: [&str; 4]) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => fields.last_mut()?.extend(characters.next()),
            ':' if fields.len() < 5 => fields.push(String::new()),
            c => fields.last_mut()?.push(c),
        }
    }
    let fits = fields.len() == 5 && fields.iter().zip(wanted).all(|(field, wanted)| field == "*" || field == wanted);
    if fits { fields.pop() } else { None }
}

fn tls(ca: Option<&Path>, roots: Roots) -> Result<MakeRustlsConnect, StoreError> {
    let failed = |why: String| StoreError::Unfit(format!("TLS to the database: {why}"));
    let mut store = RootCertStore::empty();
    match roots {
        Roots::Webpki => store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Roots::Platform => {
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if let Some(file) = ca {
        let wrong = |error: &dyn std::fmt::Display| failed(format!("`[store] tls_ca` {}: {error}", file.display()));
        let certificates = CertificateDer::pem_file_iter(file).map_err(|error| wrong(&error))?;
        for certificate in certificates {
            store.add(certificate.map_err(|error| wrong(&error))?).map_err(|error| wrong(&error))?;
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(error.to_string()))?
        .with_root_certificates(store)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_found_as_libpq_finds_it() {
        let wanted = ["db.example.net", "5432", "egressd", "me"];
        for (line, found) in [
            ("db.example.net:5432:egressd:me:secret", Some("secret")),
            ("*:*:*:me:a:b\\\\c", Some("a:b\\c")),
            ("*:5433:*:*:no", None),
            ("#*:*:*:*:no", None),
            ("*:*:*:*", None),
            ("", None),
        ] {
            assert_eq!(password_in(line, wanted).as_deref(), found, "{line}");
        }
    }

    #[test]
    fn across_a_network_there_is_tls_unless_it_is_told_not_to_be() {
        let read = |url: &str| {
            let settings = PostgresSettings { url: url.to_owned(), ..PostgresSettings::default() };
            Address::read(&settings, Roots::Webpki).map(|address| address.tls.is_some())
        };
        for (url, tls) in [
            ("postgres://me@db.example.net/egressd", true),
            ("postgres://me@db.example.net/egressd?sslmode=verify-full", true),
            ("postgres://me@10.0.0.7/egressd?sslmode=disable", false),
            ("postgres://me@one.example.net,localhost/egressd?target_session_attrs=read-write", true),
            ("postgres://me@localhost/egressd", false),
            ("postgres://me@127.0.0.1:5433/egressd", false),
            ("postgres://me@/egressd?host=/run/postgresql", false),
            ("postgres://me@localhost/egressd?sslmode=require", true),
        ] {
            assert_eq!(read(url), Ok(tls), "{url}");
        }
        for url in
            ["postgres://db.example.net/egressd", "postgres://me@db.example.net/?sslmode=prefer", "postgres://me@/x"]
        {
            assert!(matches!(read(url), Err(StoreError::Unfit(_))), "{url}");
        }
    }
}
