//! What a caller over HTTP/2 still sends when its call is refused: read to its end before the answer, where it is small.
//!
//! Whoever is answered before its body has come gets the stream reset behind the answer (RFC 9113 section 8.1), and curl
//! up to 7.88 takes that for the answer's loss. Nothing of it is kept, and nobody is waited for for long.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::Request;
use bytes::Bytes;
use http::Version;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;

use crate::limits::{API_REST_TIME, API_STREAM_WINDOW};

type Left = Arc<Mutex<Option<Body>>>;

/// Of a body that was handed on: what is left of it.
pub struct Rest(Left);

/// Comes back when it is dropped.
struct Lent {
    body: Option<Body>,
    left: Left,
}

/// Hands the call on; what its reader leaves of the body comes back.
pub fn lend(request: Request) -> (Request, Option<Rest>) {
    if request.version() != Version::HTTP_2 || request.body().is_end_stream() {
        return (request, None);
    }
    let left = Left::default();
    let rest = Rest(left.clone());
    (request.map(|body| Body::new(Lent { body: Some(body), left })), Some(rest))
}

impl Rest {
    /// Reads what is left, where no more is to come than is on its way already.
    pub async fn read(self) {
        let left = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut body) = left.filter(|body| !body.is_end_stream()) else { return };
        let mut room = u64::from(API_STREAM_WINDOW);
        if body.size_hint().lower() > room {
            return;
        }
        let reading = async {
            while let Some(Ok(frame)) = body.frame().await {
                let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
                let Some(rest) = room.checked_sub(bytes) else { return };
                room = rest;
            }
        };
        #[allow(clippy::disallowed_methods, reason = "a caller's own slowness, no part of any delivery")]
        let _ = tokio::time::timeout(API_REST_TIME, reading).await;
    }
}

impl http_body::Body for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, http_body::Body::size_hint)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = self.body.take();
    }
}
