//! Which store is in use: the one place that knows.

use std::sync::Arc;

use jiff::Timestamp;

use super::{Past, StartError};
use crate::config::{Config, PostgresSettings};
use crate::limits;
use crate::publish::Notice;
use crate::store::embedded::{self, Embedded};
use crate::store::postgres::{self, Address, Postgres, Settings};
use crate::store::{Store, StoreError};

/// Opens the store that the configuration names.
pub async fn open(config: &Config, past: Past) -> Result<Arc<dyn Store>, StartError> {
    if let Some(postgres) = &config.store.postgres {
        let address = Address::read(postgres, config.tls.roots)?;
        for told in address.prove().await? {
            tracing::warn!("{told}");
        }
        return Ok(Arc::new(Box::pin(Postgres::open(address, settings(config, postgres, past))).await?));
    }
    let (settings, node) = (config.store.clone(), config.node.clone());
    let opened = tokio::task::spawn_blocking(move || match past {
        Past::Own => Embedded::open(&settings, &node),
        Past::Restored => Embedded::open_copy(&settings, &node),
    })
    .await;
    Ok(Arc::new(opened.map_err(anyhow::Error::from)??))
}

fn settings(config: &Config, postgres: &PostgresSettings, past: Past) -> Settings {
    Settings {
        key_file: config.store.key_file.clone(),
        connections: postgres.connections as usize,
        lease: postgres.lease,
        grace: config.longest_deadline() + limits::DEAD_GRACE,
        answer_within: limits::STORE_ANSWERS_WITHIN,
        statement_within: limits::STORE_STATEMENT_WITHIN,
        retention: config.store.retention,
        body_retention: config.store.body_retention,
        tenant_max_bytes: config.store.tenant_max_bytes,
        past: match past {
            Past::Own => postgres::Past::Own,
            Past::Restored => postgres::Past::Restored,
        },
    }
}

/// What stands in the way of the embedded store, where it is the one, by the key of the configuration; nothing is opened.
pub fn hindrances(config: &Config) -> Vec<(&'static str, StoreError)> {
    match config.store.postgres {
        Some(_) => Vec::new(),
        None => embedded::hindrances(&config.store.path, &config.store.key_file),
    }
}

/// The notice that each listed address carries, for a command beside the node: what the embedded store knows is read from
/// its file, and an address that it does not know would be published now. Where there is no store yet, its first start
/// gives every notice; a tier's database is not asked.
pub fn notice(config: &Config, now: Timestamp) -> Notice {
    let known = config.store.postgres.is_none().then(|| embedded::published(&config.store.path)).flatten();
    let Some(mut published) = known.filter(|published| !published.first.is_empty()) else { return Notice::given() };
    published.add(config.egress.published.entries.iter().map(|entry| entry.address).collect(), now);
    Notice::new(&published.first, published.first_start, config.egress.notice)
}

/// What is wrong with the tier's database, as `egressd check` tells it: it is reached, and nothing in it is changed.
///
/// Else what its operator should know.
pub async fn check(config: &Config) -> Result<Vec<String>, StoreError> {
    let Some(postgres) = &config.store.postgres else { return Ok(Vec::new()) };
    let address = Address::read(postgres, config.tls.roots)?;
    let told = address.prove().await?;
    Postgres::check(address, &settings(config, postgres, Past::Own)).await.map(|()| told)
}
