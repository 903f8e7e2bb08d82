//! How batches and their sends end, as values: what is remembered of each, and what an earlier try leaves in doubt.

use crate::clock;
use crate::deliver;
use crate::gather::Member;
use crate::limits;
use crate::outcome::{Ended, Failure, Outcome, Processed, Timings};
use crate::record::{Batch, Connection, Finished, InBatch, ShownBody, ShownResponse};
use crate::send::SendId;

/// What is remembered of an answer to a batch, with so much of its body at most.
pub(super) fn kept(mut response: ShownResponse, body_max: u64) -> ShownResponse {
    let mut left = limits::BATCH_ANSWER_KEPT;
    response.headers.retain(|(name, values)| {
        let bytes = name.len() + values.iter().map(String::len).sum::<usize>();
        let fits = bytes <= left;
        left = left.saturating_sub(bytes);
        fits
    });
    let body_max = usize::try_from(body_max).unwrap_or(usize::MAX).min(limits::BATCH_ANSWER_KEPT);
    if let Some(bytes) = response.body.bytes.as_mut().filter(|bytes| bytes.len() > body_max) {
        bytes.truncate(body_max);
        response.body.truncated = true;
    }
    response
}

/// The end of a batch that is not tried.
pub(super) fn stopped(first: SendId, batch: &Batch, why: Failure) -> Finished {
    let now = clock::wall();
    Finished {
        id: first,
        ended: Ended::because(why),
        sent_headers: None,
        response: None,
        connection: None,
        would_block: None,
        timings: Timings { queued: Some(clock::waited(batch.closes_at, now)), ..Timings::default() },
        released_at: Some(batch.closes_at),
        started_at: None,
        finished_at: now,
        batch: Some(InBatch { taken: Processed::No, ..batch.named() }),
    }
}

/// The end of one of its sends: `ended`, which is the batch's or its own, told shortly, as the batch's own record has all of it.
pub(super) fn end_of(member: &Member, ended: &Finished) -> Finished {
    let short = |response: &ShownResponse| ShownResponse {
        // A database's code is all that there is of a word.
        headers: response
            .headers
            .iter()
            .filter(|(name, _)| name == "sqlstate" || name == deliver::sql::REFUSED_EVENTS)
            .cloned()
            .collect(),
        body: match &response.body.bytes {
            Some(bytes) if ended.ended.outcome != Outcome::Delivered => {
                let some = bytes.slice(..bytes.len().min(limits::BATCH_ANSWER_OF_SEND));
                let truncated = response.body.truncated || some.len() < bytes.len();
                ShownBody { bytes: Some(some), truncated, sha256: None, ..response.body.clone() }
            }
            bytes => ShownBody {
                bytes: None,
                truncated: bytes.as_ref().is_some_and(|bytes| !bytes.is_empty()),
                ..response.body.clone()
            },
        },
        ..response.clone()
    };
    Finished {
        id: member.id,
        ended: ended.ended.clone(),
        sent_headers: None,
        response: ended.response.as_ref().map(short),
        connection: ended.connection.as_ref().map(|connection| Connection {
            resolved: Vec::new(),
            tls: None,
            ..connection.clone()
        }),
        would_block: ended.would_block,
        timings: Timings {
            held: Some(clock::waited(member.created_at, member.released_at)),
            queued: Some(clock::waited(member.released_at, ended.started_at.unwrap_or(ended.finished_at))),
            ..Timings::default()
        },
        released_at: Some(member.released_at),
        started_at: ended.started_at,
        finished_at: clock::wall(),
        batch: ended.batch,
    }
}
