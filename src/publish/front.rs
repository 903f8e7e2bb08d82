//! The list for the world: `/public-ips.txt`, `/public-ips.json` and `/whoami`, and nothing else.
//!
//! [`router`] gives the API listener the two lists; [`serve`] runs the `[publish]` listener, which anyone may reach.
//! What a caller can take there is bounded whatever it does: connections in all and of one network, the time until
//! its head is read, the head's size and the connection's whole life; and where all places are taken, the oldest goes. Bodies are never read, and HTTP/1.1 is all that
//! is spoken. Not here: what is listed (`publish`) and when it changes (`publication`).

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use axum::Router;
use axum::extract::{Request, State};
use axum::routing::get;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode,
    header::{
        ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH,
        LAST_MODIFIED, TRANSFER_ENCODING, X_CONTENT_TYPE_OPTIONS,
    },
};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::{Timestamp, fmt::strtime, tz::TimeZone};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::clock;
use crate::limits::{
    PUBLISH_CONNECTION_LIFE, PUBLISH_CONNECTIONS_MAX, PUBLISH_CONNECTIONS_PER_NETWORK, PUBLISH_HEAD_BYTES_MAX,
    PUBLISH_HEAD_TIME, PUBLISH_HEADERS_MAX, PUBLISH_PLACE_TIME,
};
use crate::publication::{Publication, Served};

/// A change is announced days ahead, so that minutes do no harm; they spare us every reader that asks too often.
const LIST_CACHE: &str = "public, max-age=300";
/// RFC 9110 section 5.6.7, IMF-fixdate.
const HTTP_DATE: &str = "%a, %d %b %Y %H:%M:%S GMT";

/// The two lists, for a listener that serves other things beside them.
pub fn router(publication: Arc<Publication>) -> Router {
    async fn text(State(publication): State<Arc<Publication>>, request: Request) -> Response<axum::body::Body> {
        list(&publication.served(), Form::Text, request.headers()).map(axum::body::Body::new)
    }
    async fn json(State(publication): State<Arc<Publication>>, request: Request) -> Response<axum::body::Body> {
        list(&publication.served(), Form::Json, request.headers()).map(axum::body::Body::new)
    }
    Router::new().route("/public-ips.txt", get(text)).route("/public-ips.json", get(json)).with_state(publication)
}

/// Serves until `stopped` turns true; what is being answered then is finished.
pub async fn serve(listener: TcpListener, publication: Arc<Publication>, mut stopped: watch::Receiver<bool>) {
    let doors = Doors::default();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = stop(&mut stopped) => break,
        };
        match accepted {
            // One too many is closed at once.
            Ok((stream, peer)) => {
                if let Some(pass) = doors.enter(peer.ip().to_canonical(), clock::monotonic()) {
                    connections.spawn(answer(stream, peer, publication.clone(), stopped.clone(), pass));
                }
            }
            Err(error) => {
                // Out of files, most likely: asking again at once would only spin.
                tracing::warn!(%error, "the published list cannot accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Ready when the process is to stop, or its owner is gone.
async fn stop(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// One connection, from its first byte to its end.
async fn answer(
    stream: TcpStream,
    peer: SocketAddr,
    publication: Arc<Publication>,
    mut stopped: watch::Receiver<bool>,
    mut pass: Pass,
) {
    let respond = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let response = respond(&publication.served(), request.method(), request.uri().path(), request.headers(), peer);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PUBLISH_HEAD_TIME)
        .max_buf_size(PUBLISH_HEAD_BYTES_MAX)
        .max_headers(PUBLISH_HEADERS_MAX)
        .half_close(false)
        .serve_connection(TokioIo::new(stream), respond);
    tokio::pin!(connection);
    let life = tokio::time::sleep(PUBLISH_CONNECTION_LIFE);
    tokio::pin!(life);
    let mut ending = false;
    loop {
        tokio::select! {
            // A peer that misbehaves is no news: it gets hyper's answer or none.
            _ = connection.as_mut() => return,
            () = life.as_mut() => return,
            _ = &mut pass.taken => return,
            () = stop(&mut stopped), if !ending => {
                ending = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Which of a connection's requests gets what.
fn respond(
    served: &Served,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    peer: SocketAddr,
) -> Response<Full<Bytes>> {
    let form = match path {
        "/public-ips.txt" => Some(Form::Text),
        "/public-ips.json" => Some(Form::Json),
        _ => None,
    };
    let mut response = match (form, path) {
        (None, path) if path != "/whoami" => plain(StatusCode::NOT_FOUND, "not here\n".to_owned()),
        _ if method != Method::GET && method != Method::HEAD => {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n".to_owned());
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            response
        }
        (Some(form), _) => list(served, form, headers),
        (None, _) => plain(StatusCode::OK, format!("{}\n", peer.ip().to_canonical())),
    };
    // A body is not read, and so neither is what would follow it.
    if headers.contains_key(TRANSFER_ENCODING) || headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0") {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

#[derive(Clone, Copy, Debug)]
enum Form {
    Text,
    Json,
}

/// One of the lists, or 304 where the caller has it already (RFC 9110 section 13).
fn list(served: &Served, form: Form, asked: &HeaderMap) -> Response<Full<Bytes>> {
    let (body, etag, kind) = match form {
        Form::Text => (&served.text, &served.text_etag, "text/plain; charset=utf-8"),
        Form::Json => (&served.json, &served.json_etag, "application/json"),
    };
    let mut response = if is_known(asked, etag, served.last_modified) {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        let mut response = Response::new(Full::new(body.clone()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(LIST_CACHE));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    for (name, value) in [(ETAG, etag.clone()), (LAST_MODIFIED, http_date(served.last_modified))] {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
    response
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// `If-None-Match` decides where it is given; the date only where it is not.
fn is_known(asked: &HeaderMap, etag: &str, last_modified: Timestamp) -> bool {
    if asked.contains_key(IF_NONE_MATCH) {
        let tags = asked.get_all(IF_NONE_MATCH).iter().filter_map(|tags| tags.to_str().ok());
        let mut tags = tags.flat_map(|tags| tags.split(',')).map(str::trim);
        return tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag);
    }
    let since = asked.get(IF_MODIFIED_SINCE).and_then(|since| parse_http_date(since.to_str().ok()?));
    since.is_some_and(|since| last_modified.as_second() <= since.as_second())
}

fn http_date(at: Timestamp) -> String {
    at.strftime(HTTP_DATE).to_string()
}

fn parse_http_date(text: &str) -> Option<Timestamp> {
    let civil = strtime::parse(HTTP_DATE, text).ok()?.to_datetime().ok()?;
    civil.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

/// Who is in, in the order in which they came.
#[derive(Clone, Default)]
struct Doors(Arc<Mutex<Inside>>);

#[derive(Default)]
struct Inside {
    /// Of the next one.
    number: u64,
    places: BTreeMap<u64, Place>,
}

struct Place {
    network: IpAddr,
    since: Instant,
    /// Dropped when another takes the place.
    _held: oneshot::Sender<Infallible>,
}

/// A connection's place; leaving it gives it back.
struct Pass {
    doors: Doors,
    number: u64,
    /// Ready when another has taken the place.
    taken: oneshot::Receiver<Infallible>,
}

impl Doors {
    /// Where every place is taken (or every one of the caller's network), whoever has had one for longest makes room,
    /// once it had [`PUBLISH_PLACE_TIME`]: an answer takes no such time, holding places open does.
    fn enter(&self, peer: IpAddr, now: Instant) -> Option<Pass> {
        let network = network_of(peer);
        let mut inside = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = || inside.places.iter().filter(|(_, place)| place.network == network);
        let oldest = if own().count() >= PUBLISH_CONNECTIONS_PER_NETWORK {
            own().next()
        } else if inside.places.len() >= PUBLISH_CONNECTIONS_MAX {
            inside.places.iter().next()
        } else {
            None
        };
        if let Some((number, place)) = oldest {
            if now.duration_since(place.since) < PUBLISH_PLACE_TIME {
                return None;
            }
            let number = *number;
            inside.places.remove(&number);
        }
        let (held, taken) = oneshot::channel();
        let number = inside.number;
        inside.number += 1;
        inside.places.insert(number, Place { network, since: now, _held: held });
        Some(Pass { doors: self.clone(), number, taken })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.doors.0.lock().unwrap_or_else(PoisonError::into_inner).places.remove(&self.number);
    }
}

/// What counts as one caller: an IPv4 address, or an IPv6 network of /64, of which one host has every address.
fn network_of(peer: IpAddr) -> IpAddr {
    match peer {
        IpAddr::V4(_) => peer,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

#[cfg(test)]
mod tests;
