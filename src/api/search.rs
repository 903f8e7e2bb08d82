//! Sends in whose bodies a text stands: a list is gone through, each of its sends read with its bodies, until there are
//! enough, or so much was searched. The answer says how far that went, and its `next` goes on from there.
//!
//! Bodies are searched as they are kept (cut at `response_body_stored`, redacted, and as long as `body_retention` has it),
//! in small letters. What came compressed is not found.

use std::sync::Arc;

use jiff::Timestamp;

use crate::clock;
use crate::limits::{TEXT_BYTES_MAX, TEXT_SENDS_MAX, TEXT_TIME};
use crate::record::{Record, ShownBody};
use crate::store::{Filter, Page, Store, StoreError};

/// Of a list, at once.
const TOGETHER: usize = 50;

/// How far a search went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Searched {
    /// Whose bodies were.
    pub sends: u64,
    pub bytes: u64,
    /// When the oldest of them was accepted; `None`: there was none.
    pub back_to: Option<Timestamp>,
}

pub async fn search(
    store: Arc<dyn Store>,
    filter: Filter,
    mut cursor: Option<String>,
    limit: usize,
    text: String,
) -> Result<(Page, Searched), StoreError> {
    let text = text.to_lowercase();
    let ends = clock::monotonic() + TEXT_TIME;
    let (mut found, mut searched) = (Vec::new(), Searched::default());
    loop {
        // No more than there is room for, so that a page ends where its list does.
        let together = TOGETHER.min(limit - found.len());
        let page = store.list(filter.clone(), cursor, together).await?;
        for record in page.sends {
            searched.sends += 1;
            searched.back_to = Some(record.created_at);
            match store.record(filter.reach.clone(), record.id, true).await {
                Ok(Some(whole)) if is_in(&text, &whole, &mut searched.bytes) => found.push(record),
                // The list has shown that it is damaged, or retention was faster.
                Ok(_) | Err(StoreError::Damaged(_)) => {}
                Err(error) => return Err(error),
            }
        }
        cursor = page.next;
        let enough = found.len() >= limit || searched.sends >= TEXT_SENDS_MAX || searched.bytes >= TEXT_BYTES_MAX;
        if cursor.is_none() || enough || clock::monotonic() >= ends {
            return Ok((Page { sends: found, next: cursor }, searched));
        }
    }
}

fn is_in(text: &str, record: &Record, searched: &mut u64) -> bool {
    let bodies = [record.request.body.as_ref(), record.response.as_ref().map(|response| &response.body)];
    let mut bodies = bodies.into_iter().flatten().filter_map(|body: &ShownBody| body.bytes.as_ref());
    bodies.any(|bytes| {
        *searched += bytes.len() as u64;
        String::from_utf8_lossy(bytes).to_lowercase().contains(text)
    })
}
