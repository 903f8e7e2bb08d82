//! The list for the world: `/public-ips.txt`, `/public-ips.json`, `/public-ips.atom`, a page about them at `/`, `/whoami`,
//! and nothing else.
//!
//! [`router`] gives the API listener the lists; [`serve`] runs the `[publish]` listener, which anyone may reach.
//! What a caller can take there is bounded by its [`doors`]. Bodies are never read. Not here: what is listed (`publish`) and when it changes (`publication`).

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, LazyLock},
};

use axum::Router;
use axum::extract::Request;
use axum::routing::get;
use base64::Engine as _;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode,
    header::{
        ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG,
        IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED, TRANSFER_ENCODING, X_CONTENT_TYPE_OPTIONS,
    },
};
use http_body_util::Full;
use hyper::service::service_fn;
use jiff::{Timestamp, fmt::strtime, tz::TimeZone};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::doors::{self, Bounds, Way};
use crate::limits;
use crate::publication::{Form, Publication, Served};
use crate::publish::page;

const BOUNDS: Bounds = Bounds {
    connections: limits::PUBLISH_CONNECTIONS_MAX,
    connections_per_network: limits::PUBLISH_CONNECTIONS_PER_NETWORK,
};
/// A change is announced days ahead, so that minutes do no harm; they spare us every reader that asks too often.
const LIST_CACHE: &str = "public, max-age=300";
/// RFC 9110 section 5.6.7, IMF-fixdate.
const HTTP_DATE: &str = "%a, %d %b %Y %H:%M:%S GMT";

/// The lists, for a listener that serves other things beside them.
pub fn router(publication: Arc<Publication>) -> Router {
    let lists = [Kind::Text, Kind::Json, Kind::Atom];
    lists.into_iter().fold(Router::new(), |router, kind| {
        let publication = publication.clone();
        let answer = move |request: Request| {
            let response = list(&publication.served(), kind, request.headers()).map(axum::body::Body::new);
            std::future::ready(response)
        };
        router.route(kind.path(), get(answer))
    })
}

/// Serves until `stopped` turns true; what is being answered then is finished.
pub async fn serve(listener: TcpListener, publication: Arc<Publication>, way: Way, stopped: watch::Receiver<bool>) {
    let service = move |peer| {
        let publication = publication.clone();
        service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let response =
                respond(&publication.served(), request.method(), request.uri().path(), request.headers(), peer);
            async move { Ok::<_, Infallible>(response) }
        })
    };
    doors::serve(listener, "the published list", BOUNDS, way, service, stopped).await;
}

/// Which of a connection's requests gets what.
fn respond(
    served: &Served,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    peer: SocketAddr,
) -> Response<Full<Bytes>> {
    let kind = [Kind::Text, Kind::Json, Kind::Atom, Kind::Page].into_iter().find(|kind| kind.path() == path);
    let mut response = match (kind, path) {
        (None, path) if path != "/whoami" => plain(StatusCode::NOT_FOUND, "not here\n".to_owned()),
        _ if method != Method::GET && method != Method::HEAD => {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n".to_owned());
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            response
        }
        (Some(kind), _) => list(served, kind, headers),
        (None, _) => plain(StatusCode::OK, format!("{}\n", peer.ip().to_canonical())),
    };
    // A body is not read, and so neither is what would follow it.
    if headers.contains_key(TRANSFER_ENCODING) || headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0") {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Text,
    Json,
    Atom,
    Page,
}

impl Kind {
    const fn path(self) -> &'static str {
        match self {
            Self::Text => "/public-ips.txt",
            Self::Json => "/public-ips.json",
            Self::Atom => "/public-ips.atom",
            Self::Page => "/",
        }
    }

    const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; charset=utf-8",
            Self::Json => "application/json",
            Self::Atom => "application/atom+xml; charset=utf-8",
            Self::Page => "text/html; charset=utf-8",
        }
    }

    fn of(self, served: &Served) -> &Form {
        match self {
            Self::Text => &served.text,
            Self::Json => &served.json,
            Self::Atom => &served.atom,
            Self::Page => &served.page,
        }
    }
}

/// What the page may do: show itself. Its style sheet is named by its hash.
static PAGE_POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = base64::engine::general_purpose::STANDARD.encode(crate::redact::sha256(page::STYLE.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
});

/// One of the lists, or 304 where the caller has it already (RFC 9110 section 13).
fn list(served: &Served, kind: Kind, asked: &HeaderMap) -> Response<Full<Bytes>> {
    let Form { bytes, etag } = kind.of(served);
    // Feed and page change without the list, when a date or what the operator says does.
    let dated = matches!(kind, Kind::Text | Kind::Json).then_some(served.last_modified);
    let mut response = if is_known(asked, etag, dated) {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        let mut response = Response::new(Full::new(bytes.clone()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind.content_type()));
        response
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(LIST_CACHE));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let policy = matches!(kind, Kind::Page).then(|| (CONTENT_SECURITY_POLICY, PAGE_POLICY.clone()));
    let date = dated.map(|date| (LAST_MODIFIED, http_date(date)));
    for (name, value) in [Some((ETAG, etag.clone())), date, policy].into_iter().flatten() {
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
fn is_known(asked: &HeaderMap, etag: &str, last_modified: Option<Timestamp>) -> bool {
    if asked.contains_key(IF_NONE_MATCH) {
        let tags = asked.get_all(IF_NONE_MATCH).iter().filter_map(|tags| tags.to_str().ok());
        let mut tags = tags.flat_map(|tags| tags.split(',')).map(str::trim);
        return tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag);
    }
    let since = asked.get(IF_MODIFIED_SINCE).and_then(|since| parse_http_date(since.to_str().ok()?));
    since.zip(last_modified).is_some_and(|(since, last)| last.as_second() <= since.as_second())
}

fn http_date(at: Timestamp) -> String {
    at.strftime(HTTP_DATE).to_string()
}

fn parse_http_date(text: &str) -> Option<Timestamp> {
    let civil = strtime::parse(HTTP_DATE, text).ok()?.to_datetime().ok()?;
    civil.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

#[cfg(test)]
mod tests;
