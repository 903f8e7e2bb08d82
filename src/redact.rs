//! What is secret, and how it reads once hidden: `[redacted hmac:8hex]`, keyed, so that equal secrets look equal
//! and none can be guessed.
//!
//! Pure: a value in, a shown value out. The key comes from the store's key file.

use crate::config::Redact;
use crate::record::{ShownBody, ShownHeaders, ShownRequest, ShownResponse};
use crate::send::{HeaderLines, SendSpec};

/// Headers that are always secret (lower-case).
pub const SECRET_HEADERS: &[&str] = &[
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
    "x-api-key",
    "api-key",
    "x-auth-token",
    "x-amz-security-token",
];

/// The keyed hash behind every redaction; one per store.
#[derive(Clone)]
pub struct RedactKey(aws_lc_rs::hmac::Key);

impl RedactKey {
    pub fn new(secret: &[u8]) -> Self {
        Self(aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret))
    }

    /// `[redacted hmac:8hex]`
    pub fn hide(&self, secret: &[u8]) -> String {
        let tag = aws_lc_rs::hmac::sign(&self.0, secret);
        let tag = tag.as_ref();
        format!("[redacted hmac:{:02x}{:02x}{:02x}{:02x}]", tag[0], tag[1], tag[2], tag[3])
    }
}

/// The redaction in force: the key, the built-in names and what `[redact]` adds.
#[derive(Clone)]
pub struct Redactor {
    key: RedactKey,
    headers: std::collections::HashSet<String>,
    pointers: Vec<String>,
}

/// A body received, before redaction.
pub struct RawResponse {
    pub status: u16,
    pub version: http::Version,
    pub headers: HeaderLines,
    /// What was kept of the body (at most `response_body_stored`).
    pub body: bytes::Bytes,
    /// Bytes read in all.
    pub body_total: u64,
    pub body_truncated: bool,
    pub body_sha256: [u8; 32],
    pub declared: Option<u64>,
}

impl Redactor {
    pub fn new(key: RedactKey, settings: &Redact) -> Self {
        let headers =
            SECRET_HEADERS.iter().map(|name| (*name).to_owned()).chain(settings.headers.iter().cloned()).collect();
        Self { key, headers, pointers: settings.json_pointers.clone() }
    }

    pub fn key(&self) -> &RedactKey {
        &self.key
    }

    pub fn is_secret_header(&self, lower_case: &str) -> bool {
        self.headers.contains(lower_case)
    }
}
