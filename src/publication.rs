//! The published list in force: the file, what the store remembers of first publication, and both served forms.
//!
//! The forms are made anew only when the list or a date changes them, so that serving is handing bytes out. Not
//! here: routes (`api`, `publish::front`) and the rules of dates (`publish`).

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::Mutex;

use crate::config::Config;
use crate::publish::{self, Notice};
use crate::store::{Store, StoreError, next_sync_token};

/// What is served until something changes.
#[derive(Clone, Debug)]
pub struct Served {
    pub text: Bytes,
    pub json: Bytes,
    /// Strong validators, quotes included.
    pub text_etag: String,
    pub json_etag: String,
    pub last_modified: Timestamp,
    /// Of what is served but the token.
    digest: [u8; 32],
}

impl Served {
    pub(crate) fn new(text: String, json: String, last_modified: Timestamp, digest: [u8; 32]) -> Self {
        let [text_etag, json_etag] = [&text, &json].map(|form| etag(&crate::redact::sha256(form.as_bytes())));
        Self { text: text.into(), json: json.into(), text_etag, json_etag, last_modified, digest }
    }
}

/// One for the process.
pub struct Publication {
    store: Arc<dyn Store>,
    served: ArcSwap<Served>,
    notice: ArcSwap<Notice>,
    /// One change at a time.
    changing: Mutex<()>,
}

impl Publication {
    /// Remembers the list's addresses as published from now on, where they were not before.
    pub async fn open(store: Arc<dyn Store>, config: &Config, now: Timestamp) -> Result<Arc<Self>, StoreError> {
        let (notice, served) = publish(&*store, config, now).await?;
        let (served, notice) = (ArcSwap::from_pointee(served), ArcSwap::from_pointee(notice));
        Ok(Arc::new(Self { store, served, notice, changing: Mutex::default() }))
    }

    pub fn served(&self) -> Arc<Served> {
        self.served.load_full()
    }

    pub fn notice(&self) -> Arc<Notice> {
        self.notice.load_full()
    }

    /// Puts another configuration's list in force; what it owes in notice is the answer.
    pub async fn replace(&self, config: &Config, now: Timestamp) -> Result<Arc<Notice>, StoreError> {
        let _one = self.changing.lock().await;
        let (notice, served) = publish(&*self.store, config, now).await?;
        let notice = Arc::new(notice);
        self.notice.store(notice.clone());
        self.served.store(Arc::new(served));
        Ok(notice)
    }

    /// Makes the served forms anew where a date has changed them.
    pub async fn refresh(&self, config: &Config, now: Timestamp) -> Result<(), StoreError> {
        let list = &config.egress.published;
        let text = list.text(&self.notice(), now);
        let digest = list.digest(&self.notice(), now);
        let served = self.served();
        if served.text == text.as_bytes() && served.digest == digest {
            return Ok(());
        }
        self.replace(config, now).await.map(drop)
    }
}

async fn publish(store: &dyn Store, config: &Config, now: Timestamp) -> Result<(Notice, Served), StoreError> {
    let list = &config.egress.published;
    let addresses: Vec<_> = list.entries.iter().map(|entry| entry.address).collect();
    let published = store.publish(addresses.clone(), None, now).await?;
    let notice = Notice::new(&published.first, published.first_start, config.egress.notice);
    let digest = list.digest(&notice, now);
    let sync_token = match store.publish(addresses, Some(digest), now).await {
        Ok(published) => published.sync_token,
        // A date has changed what is true, which no full disk may keep back. What the next start remembers of it is
        // later, and a token may grow once more than it has to.
        Err(StoreError::CannotWrite(why)) => {
            tracing::warn!(%why, "the published list has changed, and the store could not remember when");
            next_sync_token(published.sync_token, now)
        }
        Err(error) => return Err(error),
    };
    let text = list.text(&notice, now);
    let json = list.json(&notice, sync_token, now);
    let served = Served::new(text, json, publish::changed_at(sync_token), digest);
    Ok((notice, served))
}

fn etag(digest: &[u8]) -> String {
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("\"{hex}\"")
}
