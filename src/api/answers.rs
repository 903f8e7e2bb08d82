//! What is answered, and that it is taken: nobody's reading, or not reading, may hold others up.
//!
//! Every answer is counted until its last byte was handed to the connection or dropped with it ([`taken`]): the call
//! that it answers counts as under way until then, and its room ([`super::budget`]) is held. A caller over HTTP/2 that
//! takes nothing of an answer for long loses its connection ([`super::seats`]), as over HTTP/1.1 by the socket. Large
//! answers take more room, and a turn: few are read and built at once, in all and for one holder. Who finds no turn
//! within a short time, or no room, is told to come back, and nothing was built.

use std::collections::HashMap;
use std::io::{self, Write};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use http_body::{Frame, SizeHint};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::budget::{Budget, Holder, Purpose, Room};
use super::problem::{Problem, ProblemCode, RETRY_SOON};
use super::seats::Begun;
use super::{answered, in_full};
use crate::clock;
use crate::limits;
use crate::store::StoreError;

/// Bytes of an answer that a connection is given at once.
const FRAME: usize = 16 * limits::KIB as usize;

/// Whose turns, and whether they are for searches.
type Own = (Arc<str>, bool);

/// Who reads and builds large answers now.
pub(crate) struct Turns {
    budget: Budget,
    all: Arc<Semaphore>,
    /// Beside those of all.
    of_operators: Arc<Semaphore>,
    /// Beside those of all, too: a search takes a hundred times as long as any other reading.
    of_searches: Arc<Semaphore>,
    /// Of those who have any now.
    of_one: Mutex<HashMap<Own, Weak<Semaphore>>>,
}

impl Turns {
    pub(crate) fn new(budget: Budget) -> Self {
        Self {
            budget,
            all: Arc::new(Semaphore::new(limits::API_ANSWERS_BUILT)),
            of_operators: Arc::new(Semaphore::new(limits::API_ANSWERS_BUILT_RESERVE)),
            of_searches: Arc::new(Semaphore::new(limits::API_SEARCHES)),
            of_one: Mutex::default(),
        }
    }

    fn of_one(&self, holder: &Holder, searches: bool) -> Arc<Semaphore> {
        let mut of_one = self.of_one.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (holder.key().clone(), searches);
        if let Some(own) = of_one.get(&key).and_then(Weak::upgrade) {
            return own;
        }
        of_one.retain(|_, own| own.strong_count() > 0);
        let turns = if searches { limits::API_SEARCHES_OF_ONE } else { limits::API_ANSWERS_BUILT_FOR_ONE };
        let turns = turns * if holder.is_many() { 2 } else { 1 };
        let own = Arc::new(Semaphore::new(turns));
        of_one.insert(key, Arc::downgrade(&own));
        own
    }

    /// A turn at reading and building an answer of about this size. Taken before anything is read.
    pub(crate) async fn turn(&self, holder: &Holder, likely: usize) -> Result<Turn, Problem> {
        let all = if holder.operates() { &self.of_operators } else { &self.all };
        self.turn_of(all, self.of_one(holder, false), holder, likely).await
    }

    /// A turn at searching: however many search, nobody who reads waits for their turns.
    pub(crate) async fn turn_to_search(&self, holder: &Holder, likely: usize) -> Result<Turn, Problem> {
        self.turn_of(&self.of_searches, self.of_one(holder, true), holder, likely).await
    }

    async fn turn_of(
        &self,
        all: &Arc<Semaphore>,
        own: Arc<Semaphore>,
        holder: &Holder,
        likely: usize,
    ) -> Result<Turn, Problem> {
        let turns = async {
            // Its own first: whoever asks for much waits for itself, not others for it.
            let own = own.acquire_owned().await.ok()?;
            Some([own, all.clone().acquire_owned().await.ok()?])
        };
        #[allow(clippy::disallowed_methods, reason = "a caller's wait for others, no part of any delivery")]
        let turns = tokio::time::timeout(limits::API_ANSWER_WAIT, turns).await;
        let turns = turns.ok().flatten().ok_or_else(full)?;
        let room = self.budget.room(holder, Purpose::Reading, likely).ok_or_else(full)?;
        Ok(Turn { room, _turns: turns })
    }
}

pub(super) fn full() -> Problem {
    let detail = "this node holds as much of calls and unread answers as it has memory for, in all or for you: read \
                  what was asked for already, or ask for less at once";
    Problem::new(ProblemCode::NodeFull, detail).retry_after(RETRY_SOON)
}

/// An answer that may be read and built now, with room for what it is likely to take.
pub(crate) struct Turn {
    room: Room,
    _turns: [OwnedSemaphorePermit; 2],
}

impl Turn {
    /// The answer as JSON; more room is taken as it grows past what was likely.
    pub(crate) fn json(self, status: StatusCode, value: &impl Serialize) -> Result<Response, Problem> {
        let mut written = Written { bytes: Vec::with_capacity(1024), room: self.room, full: false };
        if let Err(error) = serde_json::to_writer(&mut written, value) {
            return Err(if written.full { full() } else { super::unwritten(&error) });
        }
        let Written { bytes, room, .. } = written;
        Ok(answered(status, held(room, bytes)))
    }

    /// Reads in this turn, and to the end: what a store reads is not undone because its caller hung up, who would
    /// otherwise have the next turn meanwhile, and the one after it.
    pub(crate) async fn reading<T: Send + 'static>(
        self,
        read: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<(Self, T), Problem> {
        let (turn, read) = in_full(async move {
            let read = read.await;
            (self, read)
        })
        .await?;
        Ok((turn, read?))
    }

    /// What is built of it is held for longer than the turn.
    pub(super) fn into_room(self) -> Room {
        self.room
    }
}

/// The answer to a call that changed something: what was done must be said, so it is written whatever it takes.
pub(crate) struct Receipt(pub(super) Room);

impl Receipt {
    pub(crate) fn json(self, status: StatusCode, value: &impl Serialize, size: usize) -> Response {
        let mut bytes = Vec::with_capacity(size);
        if let Err(error) = serde_json::to_writer(&mut bytes, value) {
            return super::unwritten(&error).into_response();
        }
        answered(status, held(self.0, bytes))
    }
}

/// These bytes as a body that holds this room, which covers them as far as there is any.
pub(super) fn held(mut room: Room, mut bytes: Vec<u8>) -> Body {
    // What every call counts for anyhow need not be given back: that would copy most answers once more.
    if bytes.capacity() > limits::API_CALL_INCLUDED {
        bytes.shrink_to_fit();
    }
    room.cover_beyond(bytes.len());
    room.shrink(bytes.len().saturating_sub(limits::API_CALL_INCLUDED));
    Body::from(Bytes::from_owner(Held { bytes, _room: room }))
}

/// The bytes of an answer, with their room: it ends when the last frame of them is dropped, wherever that is held.
struct Held {
    bytes: Vec<u8>,
    _room: Room,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
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
            // Twice: what it is written from is there as well. Near the end of what there is, by a frame at a time.
            let capacity = if self.room.cover(2 * ample) { ample } else { length + FRAME };
            if !self.room.cover(2 * capacity) {
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

/// An answer that is there for as long as any byte of it is held, with what its call takes.
pub(crate) struct Untaken {
    /// Since when the connection has something to take and does not; `None`: it waits for us.
    since: Mutex<Option<Instant>>,
    _room: Room,
    _begun: Option<Begun>,
}

impl Untaken {
    pub(crate) fn new(room: Room, begun: Option<Begun>) -> Arc<Self> {
        Arc::new(Self { since: Mutex::default(), _room: room, _begun: begun })
    }

    pub(crate) fn since(&self) -> Option<Instant> {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, since: Option<Instant>) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }
}

/// This body in frames of which each keeps the answer untaken until it is dropped: so a connection takes only as much
/// as there is a use for.
pub(crate) fn taken(body: Body, untaken: Arc<Untaken>) -> Body {
    untaken.set(Some(clock::monotonic()));
    Body::new(Frames { body, rest: Bytes::new(), untaken })
}

struct Frames {
    body: Body,
    rest: Bytes,
    untaken: Arc<Untaken>,
}

/// A part of an answer.
struct Part {
    bytes: Bytes,
    _of: Arc<Untaken>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        while self.rest.is_empty() {
            self.untaken.set(None);
            let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
            self.untaken.set(Some(clock::monotonic()));
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => self.rest = data,
                Some(Ok(Err(other))) => return Poll::Ready(Some(Ok(other))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        self.untaken.set(Some(clock::monotonic()));
        let size = self.rest.len().min(FRAME);
        let bytes = if size == self.rest.len() { std::mem::take(&mut self.rest) } else { self.rest.split_to(size) };
        let part = Part { bytes, _of: self.untaken.clone() };
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(part)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, body) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(rest + body.lower());
        if let Some(upper) = body.upper() {
            hint.set_upper(rest + upper);
        }
        hint
    }
}
