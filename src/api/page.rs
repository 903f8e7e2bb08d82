//! The inspector: a page of this binary's own, which asks the API as any client does.
//!
//! Its policy lets it load nothing but itself and talk to nobody but its origin, so what a receiver returned could
//! not run even where it were shown as more than text.

use std::borrow::Cow;

use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_FRAME_OPTIONS};
use rust_embed::RustEmbed;

use super::problem::Problem;

#[derive(RustEmbed)]
#[folder = "src/inspector/assets/"]
struct Assets;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'; trusted-types 'none'";

/// The page itself is open to everyone; what it shows is not.
pub(super) async fn index() -> Result<Response, Problem> {
    file("index.html").ok_or_else(|| Problem::not_found("page in this build"))
}

pub(super) async fn asset(Path(path): Path<String>) -> Result<Response, Problem> {
    file(&path).ok_or_else(|| Problem::not_found("file of the page"))
}

fn file(path: &str) -> Option<Response> {
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
    let headers = [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        (REFERRER_POLICY, "no-referrer"),
        (X_FRAME_OPTIONS, "DENY"),
        (CACHE_CONTROL, "no-cache"),
    ];
    // What is part of the binary is not copied for everyone who asks.
    let data = match file.data {
        Cow::Borrowed(data) => Bytes::from_static(data),
        Cow::Owned(data) => data.into(),
    };
    Some((headers, data).into_response())
}
