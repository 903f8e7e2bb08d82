//! Reading a call's body: its type, its size while it arrives, and its time.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Shared;
use super::problem::{Problem, ProblemCode, RETRY_SOON};
use crate::limits;

/// Bodies up to this size are not counted against the bytes that all bodies share.
const SMALL: u64 = 64 * limits::KIB;

/// A body as it came, and its share of the memory for bodies, which ends with it.
pub(crate) struct Received {
    pub(crate) bytes: Bytes,
    _share: Option<OwnedSemaphorePermit>,
}

impl Shared {
    /// The whole body of a call that takes JSON.
    pub(crate) async fn body(&self, request: Request) -> Result<Received, Problem> {
        let limit = self.world.config().limits.api_request;
        let (parts, body) = request.into_parts();
        if body.is_end_stream() {
            return Ok(Received { bytes: Bytes::new(), _share: None });
        }
        must_be_json(&parts.headers)?;
        let declared = declared_length(&parts.headers);
        if declared.is_some_and(|declared| declared > limit) {
            return Err(too_large(limit));
        }
        #[allow(clippy::disallowed_methods, reason = "a caller's own slowness, no part of any delivery")]
        let read = tokio::time::timeout(limits::API_BODY_TIME, collect(body, limit, declared, &self.bodies)).await;
        read.unwrap_or_else(|_| {
            let seconds = limits::API_BODY_TIME.as_secs();
            let detail = format!("the body did not arrive within {seconds} s");
            Err(Problem::shape(detail).status(StatusCode::REQUEST_TIMEOUT))
        })
    }

    /// For calls that need no body: none, or an empty object.
    pub(crate) async fn no_body(&self, request: Request) -> Result<(), Problem> {
        let received = self.body(request).await?;
        let text = received.bytes.trim_ascii();
        let empty_object = text.strip_prefix(b"{").and_then(|rest| rest.strip_suffix(b"}")).map(<[u8]>::trim_ascii);
        if matches!(text, b"" | b"null") || empty_object == Some(b"") {
            return Ok(());
        }
        Err(Problem::shape("this call takes no body: leave it out"))
    }
}

fn must_be_json(headers: &HeaderMap) -> Result<(), Problem> {
    let unsupported = |detail: &str| Err(Problem::new(ProblemCode::UnsupportedType, detail));
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut parts = given.split(';');
    if !parts.next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
        return unsupported("send the body with Content-Type: application/json");
    }
    for parameter in parts {
        let Some((name, value)) = parameter.split_once('=') else { continue };
        if name.trim().eq_ignore_ascii_case("charset") && !value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
        {
            return unsupported("JSON is UTF-8: leave the charset out");
        }
    }
    if headers.get(CONTENT_ENCODING).is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return unsupported("send the body without Content-Encoding");
    }
    Ok(())
}

fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// A body of one frame, as most are, is not copied. Memory is counted as it is taken, not as it is declared: whoever
/// sends slowly holds what has come of theirs and no more, and nobody waits for anybody's share.
async fn collect(
    mut body: Body,
    limit: u64,
    declared: Option<u64>,
    bodies: &Arc<Semaphore>,
) -> Result<Received, Problem> {
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    let mut share: Option<OwnedSemaphorePermit> = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Problem::shape("the body ended before it was complete"))?;
        let Ok(data) = frame.into_data() else { continue };
        let so_far = first.as_ref().map_or(0, Bytes::len).max(rest.len());
        let total = (so_far + data.len()) as u64;
        if total > limit {
            return Err(too_large(limit));
        }
        take_share(&mut share, total, bodies)?;
        match &first {
            None => first = Some(data),
            Some(begun) => {
                if rest.is_empty() {
                    // Grows past what has come only as more comes: a declared length alone reserves nothing.
                    let enough = declared.unwrap_or(0).min(2 * SMALL) as usize;
                    rest.reserve(enough.max(begun.len() + data.len()));
                    rest.extend_from_slice(begun);
                }
                rest.extend_from_slice(&data);
            }
        }
    }
    let bytes = if rest.is_empty() { first.unwrap_or_default() } else { rest.freeze() };
    Ok(Received { bytes, _share: share })
}

/// Makes the share of a body cover this many bytes; small ones need none.
fn take_share(share: &mut Option<OwnedSemaphorePermit>, bytes: u64, bodies: &Arc<Semaphore>) -> Result<(), Problem> {
    let held = share.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
    let wanted = bytes.div_ceil(limits::KIB) as usize;
    if bytes <= SMALL || wanted <= held {
        return Ok(());
    }
    let more = u32::try_from(wanted - held).unwrap_or(u32::MAX);
    let Ok(more) = bodies.clone().try_acquire_many_owned(more) else {
        let detail = "this node reads as many large calls as it has memory for: try again soon";
        return Err(Problem::new(ProblemCode::NodeFull, detail).retry_after(RETRY_SOON));
    };
    match share {
        Some(share) => share.merge(more),
        None => *share = Some(more),
    }
    Ok(())
}

fn too_large(limit: u64) -> Problem {
    Problem::new(
        ProblemCode::TooLarge,
        format!("the call is larger than {limit} bytes: send fewer at once, or raise `[limits] api_request`"),
    )
}
