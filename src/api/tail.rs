//! `GET /v1/tail`: finished sends as they finish, as Server-Sent Events.
//!
//! Each event's id is its place in the order of finishing, sealed ([`super::cursors`]), which outlives restarts, so
//! `Last-Event-ID` resumes without a gap. A slow reader costs nothing: the store is looked into only as fast as events
//! are taken. Where nothing matches for a while, an id without an event moves the place on from which a client would
//! resume.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use tokio::sync::watch;
use tokio::time::Instant;

use super::access::{Caller, Need};
use super::budget::{Purpose, Room};
use super::cursors::Cursors;
use super::problem::{Problem, ProblemCode, ProblemView, RETRY_SOON};
use super::sends::LISTED_JSON_BYTES;
use super::view::{RecordView, Sight};
use super::{Shared, openapi, query};
use crate::store::{Filter, TailPlace};
use crate::{clock, limits};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Follow finished sends.
///
/// One `send` event per finished send, its data the record without bodies. `Last-Event-ID` resumes after that event;
/// without it the stream begins now. An id is opaque: it outlives restarts, and tells neither an order nor a number.
/// The stream's first lines, and a sign of life every 15 seconds without an event, carry an `id` and no data: as the
/// standard has it, that moves the place to resume at, and is no event.
#[utoipa::path(
    get, path = "/v1/tail", operation_id = "tail", tag = "sends",
    params(openapi::Tenant, openapi::Filters, ("last-event-id" = Option<String>, Header, description = "Resume after this id, as a tail gave it; empty: begin now", pattern = "^([A-Za-z0-9_-]{48})?$")),
    responses(
        (status = 200, description = "Server-Sent Events", body = String, content_type = "text/event-stream"),
        (status = 400, body = ProblemView<'static>, content_type = "application/problem+json", description = "A parameter is not right"),
        (status = 401, body = ProblemView<'static>, content_type = "application/problem+json", description = "No valid token"),
        (status = 403, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not allowed"),
        (status = 503, body = ProblemView<'static>, content_type = "application/problem+json", description = "The store cannot read, or too many follow already"),
    ),
)]
pub(super) async fn tail(State(api): State<Arc<Shared>>, request: Request) -> Result<Response, Problem> {
    let caller = Caller::admit(request.headers(), &api.world.config(), Need::Read)?;
    let tenants = caller.tenants(request.headers())?;
    let filter = query::tail(request.uri().query(), tenants, caller.operate)?;
    let resume = last_event_id(request.headers(), &api.places)?;
    let head = request.method() == Method::HEAD;
    // Whoever follows keeps its place, not its call.
    drop(request);
    let permit = api.tails.room(&caller.holder(), Purpose::Reading, 1).ok_or_else(|| {
        let detail = "as many tails are open already as this node has, in all or for you";
        Problem::new(ProblemCode::NodeFull, detail).retry_after(RETRY_SOON)
    })?;
    // Before the newest place is asked for, so that no end in between is missed.
    let newest = api.events.newest();
    let last = api.store.newest_place().await?;
    let at = resume.unwrap_or(last);
    if at > last {
        return Err(not_an_id());
    }
    let place = api.places.tail(at)?;
    let tail = Tail {
        closing: api.closing.clone(),
        api,
        caller,
        filter,
        at,
        newest,
        ready: VecDeque::new(),
        _room: None,
        quiet_until: clock::monotonic() + limits::TAIL_KEEP_ALIVE,
        _permit: permit,
    };
    let body = if head {
        Body::empty()
    } else {
        let hello = Bytes::from(format!("retry: 1000\n: finished sends follow\nid: {place}\n\n"));
        let events = stream::unfold(tail, |mut tail| async move {
            let chunk = tail.next().await?;
            Some((Ok::<_, std::convert::Infallible>(chunk), tail))
        });
        Body::from_stream(futures_util::StreamExt::chain(stream::iter([Ok(hello)]), events))
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Reverse proxies that buffer answers would hold events back.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(response)
}

fn last_event_id(headers: &HeaderMap, places: &Cursors) -> Result<Option<TailPlace>, Problem> {
    let Some(value) = headers.get(LAST_EVENT_ID) else { return Ok(None) };
    let text = value.to_str().map(str::trim).ok();
    // What a browser sends that has seen no id yet.
    if text == Some("") {
        return Ok(None);
    }
    text.and_then(|text| places.tail_place(text)).map(Some).ok_or_else(not_an_id)
}

/// Also of an id that lies ahead: it was given by a store that this one has taken the place of.
fn not_an_id() -> Problem {
    let detail = "Last-Event-ID is not an id that a tail of this node gave, or it was altered: leave it out to begin \
                  now, and find what was missed with GET /v1/sends";
    Problem::shape(detail)
}

struct Tail {
    api: Arc<Shared>,
    caller: Caller,
    filter: Filter,
    /// The last place looked at.
    at: TailPlace,
    newest: watch::Receiver<TailPlace>,
    closing: watch::Receiver<bool>,
    ready: VecDeque<Bytes>,
    /// What is ready takes.
    _room: Option<Room>,
    /// When a sign of life is due, should there be no event by then.
    quiet_until: Instant,
    _permit: Room,
}

impl Tail {
    /// The next piece of the stream; `None` ends it: the process stops, the token was withdrawn, or the store fails.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                self.quiet_until = clock::monotonic() + limits::TAIL_KEEP_ALIVE;
                return Some(chunk);
            }
            if *self.closing.borrow() || !self.caller.still_admitted(&self.api.world.config(), Need::Read) {
                return None;
            }
            self.newest.borrow_and_update();
            let before = self.at;
            if !self.look().await {
                return None;
            }
            if !self.ready.is_empty() {
                continue;
            }
            // However much finishes that does not match.
            if clock::monotonic() >= self.quiet_until {
                let place = self.place(self.at)?;
                self.ready.push_back(Bytes::from(format!(": still here\nid: {place}\n\n")));
                continue;
            }
            if self.at > before {
                // A stretch in which nothing matched: there may be more.
                continue;
            }
            let more = tokio::select! {
                changed = self.newest.changed() => changed.is_ok(),
                () = tokio::time::sleep_until(self.quiet_until) => continue,
                _ = self.closing.wait_for(|closing| *closing) => false,
            };
            if !more {
                return None;
            }
            // What finishes together is looked up together.
            tokio::time::sleep(limits::TAIL_PAUSE).await;
        }
    }

    /// What there is no turn or no room for yet stays in the store.
    async fn look(&mut self) -> bool {
        self._room = None;
        let Ok(turn) = self.api.turns.turn(&self.caller.holder(), limits::TAIL_ITEMS * LISTED_JSON_BYTES).await else {
            self.newest.mark_changed();
            return true;
        };
        let (store, at, filter) = (self.api.store.clone(), self.at, self.filter.clone());
        let read = async move { store.finished_after(at, filter, limits::TAIL_ITEMS).await };
        let Ok((turn, (items, looked_at))) = turn.reading(read).await else {
            tracing::warn!("a tail ends: the store does not answer");
            return false;
        };
        let sight = Sight { operate: self.caller.operate, bodies: false };
        let (mut room, mut taken) = (turn.into_room(), 0);
        let redactor = self.api.intake.redactor();
        for item in items {
            let Some(place) = self.place(item.place) else { return false };
            let mut event = format!("id: {place}\nevent: send\ndata: ").into_bytes();
            if serde_json::to_writer(&mut event, &RecordView::new(&redactor.visible(item.record), sight)).is_err() {
                return false;
            }
            event.extend_from_slice(b"\n\n");
            taken += event.capacity();
            if !room.cover(taken) {
                self.newest.mark_changed();
                self._room = Some(room);
                return true;
            }
            self.ready.push_back(Bytes::from(event));
            self.at = self.at.max(item.place);
            // Many that catch up at once must not keep the others' calls waiting.
            tokio::task::yield_now().await;
        }
        self.at = self.at.max(looked_at);
        self._room = Some(room);
        true
    }

    fn place(&self, place: TailPlace) -> Option<String> {
        self.api.places.tail(place).inspect_err(|error| tracing::warn!(%error, "a tail ends")).ok()
    }
}
