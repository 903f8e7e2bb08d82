//! Reading a call's body: its type, its size while it arrives, and its time.

use axum::body::Body;
use axum::extract::Request;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::sync::OwnedSemaphorePermit;

use super::Shared;
use super::problem::{Problem, ProblemCode};
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
        let expected = declared.unwrap_or(limit);
        let share = if expected > SMALL {
            let kib = u32::try_from(expected.div_ceil(limits::KIB).min(limits::API_BODIES_BYTES / limits::KIB));
            self.bodies.clone().acquire_many_owned(kib.unwrap_or(u32::MAX)).await.ok()
        } else {
            None
        };
        #[allow(clippy::disallowed_methods, reason = "a caller's own slowness, no part of any delivery")]
        let read = tokio::time::timeout(limits::API_BODY_TIME, collect(body, limit, declared)).await;
        let bytes = read.unwrap_or_else(|_| {
            let seconds = limits::API_BODY_TIME.as_secs();
            let detail = format!("the body did not arrive within {seconds} s");
            Err(Problem::shape(detail).status(StatusCode::REQUEST_TIMEOUT))
        })?;
        Ok(Received { bytes, _share: share })
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

/// A body of one frame, as most are, is not copied.
async fn collect(mut body: Body, limit: u64, declared: Option<u64>) -> Result<Bytes, Problem> {
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Problem::shape("the body ended before it was complete"))?;
        let Ok(data) = frame.into_data() else { continue };
        let so_far = first.as_ref().map_or(0, Bytes::len).max(rest.len());
        if (so_far + data.len()) as u64 > limit {
            return Err(too_large(limit));
        }
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
    Ok(if rest.is_empty() { first.unwrap_or_default() } else { rest.freeze() })
}

fn too_large(limit: u64) -> Problem {
    Problem::new(
        ProblemCode::TooLarge,
        format!("the call is larger than {limit} bytes: send fewer at once, or raise `[limits] api_request`"),
    )
}
