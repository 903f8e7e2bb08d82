//! What is secret, and how it reads once hidden: `[redacted hmac:8hex]`, keyed, so that equal secrets of a tenant look
//! equal and nobody guesses one by what another tenant's calls are shown.
//!
//! Pure: a value in, a shown value out. The key comes from the store's key file. Bodies are looked into only where
//! `[redact] json_pointers` names something (see [`json`]); whatever cannot be read there is hidden, not shown.

pub mod json;

use std::collections::HashSet;
use std::ops::Deref;

use aws_lc_rs::digest;
use bytes::Bytes;
use http::header;

use self::json::Pointers;
use crate::config::Redact;
use crate::outcome::{Ended, Said, WHAT_CAME};
use crate::record::{Record, ShownBody, ShownHeaders, ShownRequest, ShownResponse, ShownTo};
use crate::send::{HeaderLines, SendSpec, Spelling, TenantId, To};

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

/// What every hidden value begins with.
pub const REDACTED_PREFIX: &str = "[redacted hmac:";

/// Bytes of every hidden value.
const HIDDEN_BYTES: usize = REDACTED_PREFIX.len() + 8 + 1;

fn is_hidden(value: &[u8]) -> bool {
    value.len() == HIDDEN_BYTES && value.starts_with(REDACTED_PREFIX.as_bytes()) && value.ends_with(b"]")
}

/// The keyed hash behind every redaction; one per store.
#[derive(Clone)]
pub struct RedactKey(aws_lc_rs::hmac::Key);

impl RedactKey {
    pub fn new(secret: &[u8]) -> Self {
        Self(aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret))
    }

    /// What hides this tenant's secrets.
    pub fn of<'a>(&'a self, tenant: &'a TenantId) -> Hide<'a> {
        Hide { key: self, tenant }
    }

    /// A key for another purpose, which the label names. It is the half of a hash that [`Hide::hide`] never shows any
    /// of, so whoever has the label itself hidden learns nothing of it.
    pub fn apart(&self, label: &str) -> [u8; 16] {
        let tag = aws_lc_rs::hmac::sign(&self.0, label.as_bytes());
        tag.as_ref().last_chunk().copied().unwrap_or_default()
    }
}

/// Hides the secrets of one tenant. Those of two do not look equal: whoever may submit for one of them and read the other's
/// records would find them out by trying.
#[derive(Clone, Copy)]
pub struct Hide<'a> {
    key: &'a RedactKey,
    tenant: &'a TenantId,
}

impl Hide<'_> {
    /// `[redacted hmac:8hex]`
    pub fn hide(self, secret: &[u8]) -> String {
        let mut hashed = aws_lc_rs::hmac::Context::with_key(&self.key.0);
        let tenant = self.tenant.as_str().as_bytes();
        // Its length first: no other tenant and secret read the same.
        hashed.update(&(tenant.len() as u64).to_be_bytes());
        hashed.update(tenant);
        hashed.update(secret);
        let tag = hashed.sign();
        let tag = tag.as_ref();
        format!("{REDACTED_PREFIX}{:02x}{:02x}{:02x}{:02x}]", tag[0], tag[1], tag[2], tag[3])
    }
}

/// The redaction in force: the key, the built-in names and what `[redact]` adds.
#[derive(Clone)]
pub struct Redactor {
    key: RedactKey,
    headers: HashSet<String>,
    pointers: Pointers,
}

/// An answer, before redaction.
pub struct RawResponse {
    pub status: u16,
    /// As [`ShownResponse::version`].
    pub version: &'static str,
    pub headers: HeaderLines,
    /// What was kept of the body (at most `response_body_stored`).
    pub body: Bytes,
    /// Bytes read in all.
    pub body_total: u64,
    pub body_truncated: bool,
    pub body_sha256: [u8; 32],
    pub declared: Option<u64>,
}

impl Redactor {
    pub fn new(key: RedactKey, settings: &Redact) -> Self {
        let added = settings.headers.iter().map(|name| name.replace('_', "-"));
        let headers = SECRET_HEADERS.iter().map(|name| (*name).to_owned()).chain(added).collect();
        Self { key, headers, pointers: Pointers::new(&settings.json_pointers) }
    }

    /// Whether it hides any of a body, which takes as long as the body is.
    pub fn looks_into_bodies(&self) -> bool {
        !self.pointers.is_empty()
    }

    /// `_` reads as `-`: many receivers take the two for the same name.
    pub fn is_secret_header(&self, lower_case: &str) -> bool {
        self.headers.contains(lower_case)
            || (lower_case.contains('_') && self.headers.contains(&lower_case.replace('_', "-")))
    }

    /// What shows this tenant's requests and answers.
    pub fn of<'a>(&'a self, tenant: &'a TenantId) -> OfTenant<'a> {
        OfTenant { redactor: self, hide: self.key.of(tenant) }
    }
}

/// A record as it may be seen now: what was kept of it when less was secret is hidden as well.
pub struct Visible(Record);

impl Deref for Visible {
    type Target = Record;

    fn deref(&self) -> &Record {
        &self.0
    }
}

impl Redactor {
    /// Takes as long as its bodies are, where it [looks into them](Self::looks_into_bodies).
    pub fn visible(&self, mut record: Record) -> Visible {
        let tenant = record.tenant.clone();
        let of = self.of(&tenant);
        let request = &mut record.request;
        of.see_body(request.body.as_mut(), request.to.is_json() || shows_json(&request.headers));
        of.see_headers(&mut request.headers);
        if let Some(response) = &mut record.response {
            of.see_body(Some(&mut response.body), shows_json(&response.headers));
            of.see_headers(&mut response.headers);
        }
        if let Some(error) = record.ended.as_mut().and_then(|ended| ended.error.as_mut()) {
            of.see_quoted(&mut error.message);
        }
        Visible(record)
    }
}

/// The redaction in force, for one tenant.
#[derive(Clone, Copy)]
pub struct OfTenant<'a> {
    redactor: &'a Redactor,
    hide: Hide<'a>,
}

impl OfTenant<'_> {
    /// A send's request as records may show it. The second value: the send holds what the shown form does not
    /// (a secret header, a redacted body, or a body that is not kept), so it is stored sealed only.
    pub fn request(self, spec: &SendSpec, keep_bodies: bool) -> (ShownRequest, bool) {
        let (to, headers, spelling, dropped_headers) = match &spec.to {
            To::Http(request) => (
                ShownTo::Http { method: request.method, url: request.target.shown().to_owned() },
                &request.headers,
                request.spelling.clone(),
                request.dropped_headers.clone(),
            ),
            To::Email(email) => {
                (ShownTo::Email { relay: email.relay().clone() }, &Vec::new(), Spelling::default(), Vec::new())
            }
            To::Event(event) => {
                let (place, way) = (event.place().clone(), event.way().clone());
                (ShownTo::Event { place, way }, &Vec::new(), Spelling::default(), Vec::new())
            }
        };
        let mut sealed = headers.iter().any(|(name, _)| self.redactor.is_secret_header(name.as_str()));
        let says_json = to.is_json() || says_json(headers);
        let body = spec.body().map(|bytes| {
            let total = bytes.len() as u64;
            if !keep_bodies {
                sealed |= total > 0;
                return ShownBody { bytes: None, total, truncated: total > 0, sha256: None };
            }
            match self.hidden_in_body(bytes, says_json) {
                Some(hidden) => {
                    sealed = true;
                    ShownBody { bytes: Some(hidden), total, truncated: false, sha256: None }
                }
                None => ShownBody { bytes: Some(bytes.clone()), total, truncated: false, sha256: Some(sha256(bytes)) },
            }
        });
        (ShownRequest { to, headers: self.sent_headers(headers), spelling, dropped_headers, body }, sealed)
    }

    /// Header lines as records show them: grouped by name in order of first appearance.
    pub fn sent_headers(self, lines: &HeaderLines) -> ShownHeaders {
        let mut shown: ShownHeaders = Vec::with_capacity(lines.len());
        for (name, value) in lines {
            let value = if self.redactor.is_secret_header(name.as_str()) {
                self.hide.hide(value.as_bytes())
            } else {
                header_text(value.as_bytes())
            };
            match shown.iter_mut().find(|(known, _)| known == name.as_str()) {
                Some((_, values)) => values.push(value),
                None => shown.push((name.as_str().to_owned(), vec![value])),
            }
        }
        shown
    }

    pub fn response(self, raw: RawResponse, keep_bodies: bool) -> ShownResponse {
        let RawResponse { status, version, headers, body, body_total, body_truncated, body_sha256, declared } = raw;
        let body = if !keep_bodies {
            ShownBody { bytes: None, total: body_total, truncated: body_total > 0, sha256: None }
        } else {
            match self.hidden_in_body(&body, says_json(&headers)) {
                Some(hidden) => {
                    ShownBody { bytes: Some(hidden), total: body_total, truncated: body_truncated, sha256: None }
                }
                None => ShownBody {
                    bytes: Some(body),
                    total: body_total,
                    truncated: body_truncated,
                    sha256: Some(body_sha256),
                },
            }
        };
        ShownResponse { status, version: version.to_owned(), headers: self.sent_headers(&headers), body, declared }
    }

    /// An end as records may tell it: what the receiver sent is quoted where it may be seen.
    pub fn ended(self, ended: Ended, keep_bodies: bool) -> Ended {
        let error = ended.error.map(|failure| failure.told(|said| self.said(said, keep_bodies)));
        Ended { error, ..ended }
    }

    /// Of a body nothing, where bodies are not kept or hold what is to be hidden: a piece of one cannot be looked into.
    /// Of the rest all but what a secret header has, wherever in it that is named: what was not taken for a head may be one.
    fn said(self, said: Said, keep_bodies: bool) -> Option<String> {
        match said {
            Said::Body(piece) => {
                (keep_bodies && self.redactor.pointers.is_empty()).then(|| self.but_secret_headers(piece))
            }
            Said::Head { line, after } if after.as_deref().is_some_and(|name| self.redactor.is_secret_header(name)) => {
                Some(self.hide.hide(line.as_bytes()))
            }
            Said::Head { line, .. } => Some(self.but_secret_headers(line)),
        }
    }

    fn but_secret_headers(self, line: String) -> String {
        let plain = line.to_ascii_lowercase().replace('_', "-");
        let secret = |name: &String| plain.find(name.as_str()).map(|at| at + name.len());
        match self.redactor.headers.iter().filter_map(secret).min() {
            Some(end) if end < line.len() && !is_hidden(&line.as_bytes()[end..]) => {
                line[..end].to_owned() + &self.hide.hide(&line.as_bytes()[end..])
            }
            _ => line,
        }
    }

    fn see_headers(self, headers: &mut ShownHeaders) {
        for (_, values) in headers.iter_mut().filter(|(name, _)| self.redactor.is_secret_header(name)) {
            for value in values.iter_mut().filter(|value| !is_hidden(value.as_bytes())) {
                *value = self.hide.hide(value.as_bytes());
            }
        }
    }

    fn see_body(self, body: Option<&mut ShownBody>, says_json: bool) {
        let pointers = &self.redactor.pointers;
        let Some(body) = body.filter(|_| !pointers.is_empty()) else { return };
        let Some(bytes) = body.bytes.as_ref().filter(|bytes| !bytes.is_empty()) else { return };
        if let Some(hidden) = pointers.hide_more(bytes, says_json, |secret| self.hide.hide(secret)) {
            body.bytes = Some(hidden.into());
            body.sha256 = None;
        }
    }

    /// Of what a message quotes nobody knows any more whether it was of a body.
    fn see_quoted(self, message: &mut String) {
        let Some(at) = message.rfind(WHAT_CAME) else { return };
        if !self.redactor.pointers.is_empty() {
            return message.truncate(at);
        }
        let quoted = &message[at + WHAT_CAME.len()..];
        let (quoted, end) = quoted.strip_suffix("\")").map_or((quoted, ""), |quoted| (quoted, "\")"));
        let seen = self.but_secret_headers(quoted.to_owned()) + end;
        message.replace_range(at + WHAT_CAME.len().., &seen);
    }

    /// `None`: the body holds nothing to hide.
    fn hidden_in_body(self, body: &Bytes, says_json: bool) -> Option<Bytes> {
        if self.redactor.pointers.is_empty() || body.is_empty() {
            return None;
        }
        self.redactor.pointers.hide(body, says_json, |secret| self.hide.hide(secret)).map(Bytes::from)
    }
}

/// As UTF-8 where it is that, else each byte as the character of its number (ISO 8859-1, as RFC 9110 section 5.5
/// reads old fields).
fn header_text(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) => text.to_owned(),
        Err(_) => value.iter().map(|&byte| char::from(byte)).collect(),
    }
}

/// Whether the `Content-Type` among these lines does.
fn says_json(lines: &HeaderLines) -> bool {
    let mut types = lines.iter().filter(|(name, _)| name == header::CONTENT_TYPE);
    types.any(|(_, value)| value.to_str().is_ok_and(|value| value.to_ascii_lowercase().contains("json")))
}

fn shows_json(headers: &ShownHeaders) -> bool {
    let types = headers.iter().filter(|(name, _)| name == header::CONTENT_TYPE.as_str());
    types.flat_map(|(_, values)| values).any(|value| value.to_ascii_lowercase().contains("json"))
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, bytes);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

#[cfg(test)]
mod tests;
