//! What is left of a body when its call is refused, over HTTP/2.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use http_body::{Frame, SizeHint};

use super::*;

/// Pieces that come one by one, a moment apart; whether they end.
struct Pieces {
    left: usize,
    bytes: usize,
    ends: bool,
    declared: u64,
    taken: Arc<AtomicUsize>,
    pause: Pin<Box<tokio::time::Sleep>>,
}

const MOMENT: Duration = Duration::from_millis(10);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.pause.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.pause = Box::pin(tokio::time::sleep(MOMENT));
        if self.left == 0 {
            return if self.ends { Poll::Ready(None) } else { self.poll_frame(cx) };
        }
        self.left -= 1;
        self.taken.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![b'x'; self.bytes])))))
    }

    fn size_hint(&self) -> SizeHint {
        if self.declared > 0 { SizeHint::with_exact(self.declared) } else { SizeHint::default() }
    }
}

#[tokio::test(start_paused = true)]
async fn a_small_body_is_read_before_its_call_is_refused() {
    let desk = Desk::new();
    for (path, kind, status) in
        [("/v1/sends", "text/plain", 415), ("/v1/nowhere", "application/json", 404), ("/", "x/y", 405)]
    {
        for (version, pieces, bytes, ends, declared, read) in [
            (Version::HTTP_2, 3, 10, true, 0, 3..=3),
            (Version::HTTP_2, 3, 10, true, 30, 3..=3),
            // One that is large, by its own word or not.
            (Version::HTTP_2, 100, 16 * 1024, true, 100 * 16 * 1024, 0..=0),
            (Version::HTTP_2, 100, 16 * 1024, true, 0, 4..=5),
            // One that does not end is not waited for for long: or this test would not end either.
            (Version::HTTP_2, 3, 10, false, 0, 3..=3),
            // Here a connection is closed behind the answer, and nothing is lost by that.
            (Version::HTTP_11, 3, 10, true, 0, 0..=0),
        ] {
            let taken = Arc::new(AtomicUsize::new(0));
            let pause = Box::pin(tokio::time::sleep(MOMENT));
            let body = Pieces { left: pieces, bytes, ends, declared, taken: taken.clone(), pause };
            let request =
                Request::builder().method("POST").uri(path).header("content-type", kind).header("host", "localhost");
            let request = request.version(version).body(Body::new(body)).expect("a request");
            let response = desk.router.clone().oneshot(request).await.expect("an answer");
            let told = format!("{path} {version:?} {pieces} of {bytes}, declared {declared}");
            assert_eq!(response.status(), status, "{told}");
            assert!(read.contains(&taken.load(Ordering::Relaxed)), "{told}: {taken:?} were read");
        }
    }
}
