//! Sends in whose bodies a text stands: a list is gone through, each of its sends read with its bodies, until there are
//! enough, or so much was searched. The answer says how far that went, and its `next` goes on from there.
//!
//! Bodies are searched as they are shown (cut at `response_body_stored`, redacted, and as long as `body_retention` has it),
//! in small letters or large, each where nobody's deadline waits for it. What came compressed is not found.

use std::sync::Arc;

use jiff::Timestamp;
use regex::bytes::{Regex, RegexBuilder};

use crate::clock;
use crate::intake::Intake;
use crate::limits::{TEXT_BYTES_MAX, TEXT_SENDS_MAX, TEXT_TIME};
use crate::record::Record;
use crate::send::TenantId;
use crate::store::{Filter, Page, Store, StoreError};

/// Of a list, at once: what was searched is looked at after so many.
const TOGETHER: usize = 16;

/// How far a search went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Searched {
    /// Whose bodies were.
    pub sends: u64,
    pub bytes: u64,
    /// When the oldest of them was accepted; `None`: there was none.
    pub back_to: Option<Timestamp>,
}

/// One text, for one caller.
pub struct Search {
    store: Arc<dyn Store>,
    intake: Arc<Intake>,
    /// Under whose name it takes turns at what is long.
    of: TenantId,
    text: Regex,
}

impl Search {
    /// Errors: far longer a text than a call may give.
    pub fn new(store: Arc<dyn Store>, intake: Arc<Intake>, of: TenantId, text: &str) -> Result<Self, regex::Error> {
        let text = RegexBuilder::new(&regex::escape(text)).case_insensitive(true).build()?;
        Ok(Self { store, intake, of, text })
    }

    pub async fn page(
        &self,
        filter: Filter,
        mut cursor: Option<String>,
        limit: usize,
    ) -> Result<(Page, Searched), StoreError> {
        let ends = clock::monotonic() + TEXT_TIME;
        let (mut found, mut searched) = (Vec::new(), Searched::default());
        loop {
            // No more than there is room for, so that a page ends where its list does.
            let together = TOGETHER.min(limit - found.len());
            let page = self.store.list(filter.clone(), cursor, together).await?;
            for record in page.sends {
                searched.sends += 1;
                searched.back_to = Some(record.created_at);
                match self.store.record(filter.reach.clone(), record.id, true).await {
                    Ok(Some(whole)) => {
                        let (bytes, is_in) = self.is_in(whole).await;
                        searched.bytes += bytes as u64;
                        found.extend(is_in.then_some(record));
                    }
                    // The list has shown that it is damaged, or retention was faster.
                    Ok(None) | Err(StoreError::Damaged(_)) => {}
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

    /// How much of it there was to search, and whether the text stands there.
    async fn is_in(&self, record: Record) -> (usize, bool) {
        let (bytes, text, redactor) =
            (bodies(&record).map(<[u8]>::len).sum(), self.text.clone(), self.intake.redactor());
        // What is hidden is not found either.
        let look = move || bodies(&redactor.visible(record)).any(|body| text.is_match(body));
        (bytes, self.intake.apart().on(bytes, &self.of, look).await)
    }
}

fn bodies(record: &Record) -> impl Iterator<Item = &[u8]> {
    let of_response = record.response.as_ref().map(|response| &response.body);
    record.request.body.as_ref().into_iter().chain(of_response).filter_map(|body| body.bytes.as_deref())
}
