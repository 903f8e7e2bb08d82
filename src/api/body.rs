//! Reading a call's body: its type, its size while it arrives, and its time.

use axum::body::Body;
use axum::extract::Request;
use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;

use super::Shared;
use super::access::Caller;
use super::answers::full;
use super::budget::{Purpose, Room};
use super::problem::{Problem, ProblemCode};
use crate::limits;
use crate::send::{TenantId, parse};

/// Room that a body begins with, and what it grows by at least.
const GROWTH: usize = 16 * limits::KIB as usize;

/// A body as it came, and the room that it takes, which ends with it.
pub(crate) struct Received {
    pub(crate) bytes: Bytes,
    pub(crate) room: Room,
}

impl Shared {
    /// The whole body of a call that takes JSON.
    pub(crate) async fn body(&self, caller: &Caller, request: Request) -> Result<Received, Problem> {
        let limit = self.world.config().limits.api_request;
        let room = self.budget.room(&caller.holder(), Purpose::Sending, 0).ok_or_else(full)?;
        let (parts, body) = request.into_parts();
        if body.is_end_stream() {
            return Ok(Received { bytes: Bytes::new(), room });
        }
        must_be_json(&parts.headers)?;
        let declared = declared_length(&parts.headers);
        if declared.is_some_and(|declared| declared > limit) {
            return Err(too_large(limit));
        }
        #[allow(clippy::disallowed_methods, reason = "a caller's own slowness, no part of any delivery")]
        let read = tokio::time::timeout(limits::API_BODY_TIME, collect(body, limit, declared, room)).await;
        read.unwrap_or_else(|_| {
            let seconds = limits::API_BODY_TIME.as_secs();
            let detail = format!("the body did not arrive within {seconds} s");
            Err(Problem::shape(detail).status(StatusCode::REQUEST_TIMEOUT))
        })
    }

    /// What stands in a body, read where nobody waits for it; and the room that both take.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        received: Received,
        tenant: &TenantId,
        read: impl FnOnce(&Bytes) -> Result<T, Vec<parse::ShapeProblem>> + Send + 'static,
    ) -> Result<(T, Room), Problem> {
        let Received { bytes, room } = received;
        let size = bytes.len();
        let work = move || match read(&bytes) {
            Ok(read) => Ok((read, room)),
            Err(problems) => Err(refusal(problems, room)),
        };
        self.intake.apart().on(size, tenant, work).await
    }

    /// For calls that need no body: none, or an empty object.
    pub(crate) async fn no_body(&self, caller: &Caller, request: Request) -> Result<(), Problem> {
        let received = self.body(caller, request).await?;
        // However much white space may stand in one.
        let text = if received.bytes.len() > limits::INLINE_BYTES { b"?" } else { received.bytes.trim_ascii() };
        let empty_object = text.strip_prefix(b"{").and_then(|rest| rest.strip_suffix(b"}")).map(<[u8]>::trim_ascii);
        if matches!(text, b"" | b"null") || empty_object == Some(b"") {
            return Ok(());
        }
        Err(Problem::shape("this call takes no body: leave it out"))
    }
}

/// Refused with all that is wrong, in the room of what was read.
pub(super) fn refusal(problems: Vec<parse::ShapeProblem>, room: Room) -> Problem {
    Problem::from(problems).written(room)
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

/// A body of one frame, as most are, is not copied; one that comes in pieces is, so that none of them keeps alive the
/// buffer it was read into. Room is taken for what has come, not for what is declared: whoever sends slowly holds what
/// has come of theirs and no more, and nobody waits for anybody's.
async fn collect(mut body: Body, limit: u64, declared: Option<u64>, mut room: Room) -> Result<Received, Problem> {
    let mut whole: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Problem::shape("the body ended before it was complete"))?;
        let Ok(data) = frame.into_data() else { continue };
        let length = whole.len() + data.len();
        if length as u64 > limit {
            return Err(too_large(limit));
        }
        if whole.is_empty() && (body.is_end_stream() || declared == Some(data.len() as u64)) {
            return if room.cover_beyond(data.len()) { Ok(Received { bytes: data, room }) } else { Err(full()) };
        }
        if length > whole.capacity() {
            // By doubling, where there is room for that, and never past what was declared.
            let ample =
                (2 * whole.capacity()).max(length).max(GROWTH).min(declared.unwrap_or(limit) as usize).max(length);
            let beside = limits::API_PIECES_BYTES;
            let capacity = if room.cover_beyond(ample + beside) { ample } else { length };
            if !room.cover_beyond(capacity + beside) {
                return Err(full());
            }
            whole.reserve_exact(capacity - whole.len());
        }
        whole.extend_from_slice(&data);
    }
    Ok(Received { bytes: whole.into(), room })
}

fn too_large(limit: u64) -> Problem {
    Problem::new(
        ProblemCode::TooLarge,
        format!("the call is larger than {limit} bytes: send fewer at once, or raise `[limits] api_request`"),
    )
}
