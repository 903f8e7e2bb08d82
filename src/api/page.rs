//! The inspector: a page of this binary's own, which asks the API as any client does.
//!
//! Its policy lets it load nothing but itself and talk to nobody but its origin, so what a receiver returned could
//! not run even where it were shown as more than text.

use std::borrow::Cow;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_FRAME_OPTIONS};
use rust_embed::RustEmbed;

use super::Shared;
use super::problem::Problem;

#[derive(RustEmbed)]
#[folder = "src/inspector/assets/"]
struct Assets;

/// Its end says who may show it in a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'; \
     frame-ancestors ";

/// The page itself is open to everyone; what it shows is not.
pub(super) async fn index(State(api): State<Arc<Shared>>) -> Result<Response, Problem> {
    file("index.html", &api.world.config().api.embed).ok_or_else(|| Problem::not_found("page in this build"))
}

pub(super) async fn asset(State(api): State<Arc<Shared>>, Path(path): Path<String>) -> Result<Response, Problem> {
    file(&path, &api.world.config().api.embed).ok_or_else(|| Problem::not_found("file of the page"))
}

fn file(path: &str, embed: &[String]) -> Option<Response> {
    let file = Assets::get(path)?;
    let kind = match path.rsplit_once('.').map(|(_, extension)| extension) {
        Some("html") => "text/html; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("ico") => "image/x-icon",
        Some("json" | "map") => "application/json",
        Some("woff2") => "font/woff2",
        _ => "application/octet-stream",
    };
    let ancestors = if embed.is_empty() { "'none'".to_owned() } else { embed.join(" ") };
    let headers = [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, &format!("{POLICY}{ancestors}")),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-cache"),
    ];
    // What is part of the binary is not copied for everyone who asks.
    let data = match file.data {
        Cow::Borrowed(data) => Bytes::from_static(data),
        Cow::Owned(data) => data.into(),
    };
    let mut response = (headers, data).into_response();
    if embed.is_empty() {
        // For browsers that do not know the policy's word for it.
        response.headers_mut().insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    }
    Some(response)
}
