//! The memory of answers that are being held: nobody's reading, or not reading, may take all of it.
//!
//! An answer of more than a few KiB holds room for its bytes from when it is written until its last byte was handed
//! to the connection or dropped with it. Room is bounded in all and for one tenant (readers who may name any tenant
//! count as one), and so is how many answers are read and built at once. Where there is none within a short time, the
//! caller is told to come back, and nothing was built. A caller over HTTP/2 who takes nothing of an answer loses its
//! connection, as [`super::serve`] sees to over HTTP/1.1 by looking at the socket: a window that stays shut leaves
//! the socket idle. Not here: the tail, whose answers have no end.

use std::collections::HashMap;
use std::io::{self, Write};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body::{Frame, SizeHint};
use serde::Serialize;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::access::Caller;
use super::answered;
use super::problem::{Problem, ProblemCode, RETRY_SOON};
use crate::clock;
use crate::limits;
use crate::send::TenantId;

/// Answers up to this size take no room.
const SMALL: usize = 4 * limits::KIB as usize;
/// Bytes of an answer that a connection is given at once.
const FRAME: usize = 16 * limits::KIB as usize;

/// Who holds room: a tenant, or (of what is read) all who may name any.
type Holder = Option<TenantId>;

/// The room for one kind of answers.
pub(crate) struct Answers {
    /// In KiB, as all room.
    room: Arc<Semaphore>,
    room_of_one: usize,
    turns: Arc<Semaphore>,
    /// Of those who hold any now.
    shares: Mutex<HashMap<Holder, Weak<Share>>>,
}

/// What one holder may take.
struct Share {
    room: Arc<Semaphore>,
    turns: Arc<Semaphore>,
}

impl Answers {
    /// Of so many bytes in all, a quarter of them for one holder.
    pub(crate) fn new(bytes: u64) -> Self {
        let room = (bytes / limits::KIB) as usize;
        Self {
            room: Arc::new(Semaphore::new(room)),
            room_of_one: room / limits::API_ANSWER_HOLDERS_MIN,
            turns: Arc::new(Semaphore::new(limits::API_ANSWERS_BUILT)),
            shares: Mutex::default(),
        }
    }

    fn share(&self, holder: &Holder) -> Arc<Share> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(holder).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Share {
            room: Arc::new(Semaphore::new(self.room_of_one)),
            turns: Arc::new(Semaphore::new(limits::API_ANSWERS_BUILT_FOR_ONE)),
        });
        shares.insert(holder.clone(), Arc::downgrade(&share));
        share
    }

    /// A turn at reading and building an answer of about this size. Taken before anything is read.
    pub(crate) async fn turn(&self, caller: &Caller, hangup: Option<Hangup>, likely: usize) -> Result<Turn, Problem> {
        let share = self.share(&caller.holder());
        in_time(async {
            let room = self.room(share.clone(), likely).await?;
            // Its own first: whoever asks for much waits for itself, not others for it.
            let own = share.turns.clone().acquire_owned().await.ok()?;
            let turn = self.turns.clone().acquire_owned().await.ok()?;
            Some(Turn { room, hangup, _turns: [own, turn] })
        })
        .await
    }

    /// Room for the answer to a call that changes something, of about this size: taken before anything is changed.
    /// It counts as the tenant's that the call is for, whoever makes it: who sends for many has room for many.
    pub(crate) async fn receipt(
        &self,
        tenant: &TenantId,
        hangup: Option<Hangup>,
        likely: usize,
    ) -> Result<Receipt, Problem> {
        if likely <= SMALL {
            return Ok(Receipt(None));
        }
        let share = self.share(&Some(tenant.clone()));
        let room = in_time(self.room(share, likely)).await?;
        Ok(Receipt(Some((room, hangup))))
    }

    /// `None` never comes: these are not closed.
    async fn room(&self, share: Arc<Share>, likely: usize) -> Option<Room> {
        let kib = u32::try_from(kib(likely).clamp(1, self.room_of_one)).unwrap_or(u32::MAX);
        let own = share.room.clone().acquire_many_owned(kib).await.ok()?;
        let of_all = self.room.clone().acquire_many_owned(kib).await.ok()?;
        Some(Room { own, of_all, share, all: self.room.clone() })
    }
}

async fn in_time<T>(room: impl Future<Output = Option<T>>) -> Result<T, Problem> {
    #[allow(clippy::disallowed_methods, reason = "a caller's wait for others, no part of any delivery")]
    let room = tokio::time::timeout(limits::API_ANSWER_WAIT, room).await;
    room.ok().flatten().ok_or_else(full)
}

fn full() -> Problem {
    let detail = "this node holds as many unread answers as it has memory for, in all or for you: read those asked \
                  for already, or ask for less at once";
    Problem::new(ProblemCode::NodeFull, detail).retry_after(RETRY_SOON)
}

fn kib(bytes: usize) -> usize {
    bytes.div_ceil(limits::KIB as usize)
}

/// Room for one answer, of its holder's and of all.
struct Room {
    own: OwnedSemaphorePermit,
    of_all: OwnedSemaphorePermit,
    share: Arc<Share>,
    all: Arc<Semaphore>,
}

impl Room {
    /// Makes it cover this many bytes, where there is as much.
    fn cover(&mut self, bytes: usize) -> bool {
        let Some(more) = kib(bytes).checked_sub(self.own.num_permits()).filter(|more| *more > 0) else { return true };
        let Ok(more) = u32::try_from(more) else { return false };
        let own = self.share.room.clone().try_acquire_many_owned(more);
        let of_all = self.all.clone().try_acquire_many_owned(more);
        let (Ok(own), Ok(of_all)) = (own, of_all) else { return false };
        self.own.merge(own);
        self.of_all.merge(of_all);
        true
    }

    /// Gives back what this many bytes do not need.
    fn shrink(&mut self, bytes: usize) {
        let unneeded = self.own.num_permits().saturating_sub(kib(bytes));
        drop((self.own.split(unneeded), self.of_all.split(unneeded)));
    }

    /// These bytes as a body that holds this room.
    fn body(mut self, mut bytes: Vec<u8>, hangup: Option<Hangup>) -> Body {
        bytes.shrink_to_fit();
        if bytes.len() <= SMALL {
            return bytes.into();
        }
        self.shrink(bytes.len());
        let taken = Arc::new(Mutex::new(clock::monotonic()));
        if let Some(hangup) = hangup {
            tokio::spawn(hangup.when_untaken(Arc::downgrade(&taken)));
        }
        let held = Held { bytes, _room: self, _taken: taken.clone() };
        Body::new(Frames { rest: Bytes::from_owner(held), taken: Arc::downgrade(&taken) })
    }
}

/// An answer that may be read and built now, with room for what it is likely to take.
pub(crate) struct Turn {
    room: Room,
    hangup: Option<Hangup>,
    _turns: [OwnedSemaphorePermit; 2],
}

impl Turn {
    /// The answer as JSON; more room is taken as it grows past what was likely.
    pub(crate) fn json(self, status: StatusCode, value: &impl Serialize) -> Result<Response, Problem> {
        let mut written = Written { bytes: Vec::with_capacity(SMALL / 2), room: self.room, full: false };
        if let Err(error) = serde_json::to_writer(&mut written, value) {
            return Err(if written.full { full() } else { super::unwritten(&error) });
        }
        let Written { bytes, room, .. } = written;
        Ok(answered(status, room.body(bytes, self.hangup)))
    }
}

/// The answer to a call that changed something: what was done must be said, so it is written whatever it takes.
pub(crate) struct Receipt(Option<(Room, Option<Hangup>)>);

impl Receipt {
    pub(crate) fn json(self, status: StatusCode, value: &impl Serialize, size: usize) -> Response {
        let Self(Some((mut room, hangup))) = self else { return super::json_sized(status, value, size) };
        let mut bytes = Vec::with_capacity(size);
        if let Err(error) = serde_json::to_writer(&mut bytes, value) {
            return super::unwritten(&error).into_response();
        }
        room.cover(bytes.len());
        answered(status, room.body(bytes, hangup))
    }
}

impl Receipt {
    /// For what was refused with many words.
    pub(crate) fn problem(self, problem: Problem) -> Response {
        problem.answered(|bytes| match self.0 {
            Some((mut room, hangup)) => {
                room.cover(bytes.len());
                room.body(bytes, hangup)
            }
            None => bytes.into(),
        })
    }
}

/// What is written of an answer, and the room that it takes.
struct Written {
    bytes: Vec<u8>,
    room: Room,
    full: bool,
}

impl Write for Written {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        let length = self.bytes.len() + more.len();
        if length > self.bytes.capacity() {
            let ample = (self.bytes.capacity() * 2).max(length);
            let capacity = if self.room.cover(ample) { ample } else { length };
            if !self.room.cover(capacity) {
                self.full = true;
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// When a connection last took a frame of an answer; there for as long as any byte of it is held.
type Taken = Mutex<Instant>;

/// The bytes of an answer, with their room: it ends when the last frame of them is dropped, wherever that is held.
struct Held {
    bytes: Vec<u8>,
    _room: Room,
    _taken: Arc<Taken>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A body in frames, so that a connection takes only so much of it as there is a use for.
struct Frames {
    rest: Bytes,
    taken: Weak<Taken>,
}

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let size = self.rest.len().min(FRAME);
        if let Some(taken) = self.taken.upgrade() {
            *taken.lock().unwrap_or_else(PoisonError::into_inner) = clock::monotonic();
        }
        let frame = if size == self.rest.len() { std::mem::take(&mut self.rest) } else { self.rest.split_to(size) };
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

/// Ends a connection over HTTP/2, whose callers may leave an answer where it is without the socket knowing.
#[derive(Clone, Default)]
pub(crate) struct Hangup(Arc<Notify>);

impl Hangup {
    /// The one of a call's connection, where it has one.
    pub(crate) fn of<B>(request: &Request<B>) -> Option<Self> {
        request.extensions().get().cloned()
    }

    /// Ready when an answer was left for too long.
    pub(crate) async fn due(&self) {
        self.0.notified().await;
    }

    /// Watches an answer until all of it was taken, or nothing for too long.
    async fn when_untaken(self, taken: Weak<Taken>) {
        loop {
            let Some(last) = taken.upgrade().map(|taken| *taken.lock().unwrap_or_else(PoisonError::into_inner)) else {
                return;
            };
            let until = last + limits::API_WRITE_STALL;
            if clock::monotonic() >= until {
                tracing::debug!("a caller took nothing of an answer: its connection is closed");
                self.0.notify_one();
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}
