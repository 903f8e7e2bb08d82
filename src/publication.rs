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
use crate::publish::{self, Notice, atom, page};
use crate::store::{Published, Store, StoreError, next_sync_token};

/// What is served until something changes.
#[derive(Clone, Debug)]
pub struct Served {
    pub text: Form,
    pub json: Form,
    /// The changes, as a feed.
    pub atom: Form,
    /// For people.
    pub page: Form,
    /// Of the two lists.
    pub last_modified: Timestamp,
    /// What the store remembers of each address, those that are gone included.
    pub(crate) known: Arc<Published>,
    /// Of the lists, but for the token.
    pub(crate) digest: [u8; 32],
}

/// One of the forms.
#[derive(Clone, Debug)]
pub struct Form {
    pub bytes: Bytes,
    /// A strong validator, quotes included.
    pub etag: String,
}

impl From<String> for Form {
    fn from(text: String) -> Self {
        Self { etag: etag(&crate::redact::sha256(text.as_bytes())), bytes: text.into() }
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
        if served.text.bytes == text.as_bytes() && served.digest == digest {
            // No change of the list, and yet one that the page may tell of.
            let _one = self.changing.lock().await;
            let served = self.served();
            if served.digest != digest {
                return Ok(());
            }
            let of = Of { config, notice: &self.notice(), known: &served.known, changed: served.last_modified, now };
            let (atom, page) = of.told();
            self.served.store(Arc::new(Served { atom, page, ..(*served).clone() }));
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
    let last_modified = publish::changed_at(sync_token);
    let known = Arc::new(published);
    let (atom, page) = Of { config, notice: &notice, known: &known, changed: last_modified, now }.told();
    let served = Served { text: text.into(), json: json.into(), atom, page, last_modified, known, digest };
    Ok((notice, served))
}

/// What feed and page are made of.
struct Of<'a> {
    config: &'a Config,
    notice: &'a Notice,
    known: &'a Published,
    changed: Timestamp,
    now: Timestamp,
}

impl Of<'_> {
    fn told(&self) -> (Form, Form) {
        let Self { config, notice, known, changed, now } = *self;
        let list = &config.egress.published;
        let says = config.publish.as_ref().map(|publish| publish.says.clone()).unwrap_or_default();
        let atom = atom::feed(list, notice, &known.first, &known.left, &says, changed, now);
        let page = page::page(list, notice, config.egress.notice, &says, changed, now);
        (atom.into(), page.into())
    }
}

fn etag(digest: &[u8]) -> String {
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("\"{hex}\"")
}
