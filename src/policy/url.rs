//! The URL stage: raw checks, one parse, and a value that says both were done.
//!
//! [`CheckedUrl::parse`] refuses what is not a plain absolute `http`/`https` URL (`policy_url`): control
//! characters, whitespace, `\`, userinfo, empty labels, zone ids, over-long text; nothing is silently repaired.
//! Requests are built from the parsed form alone.

use std::net::IpAddr;
use std::sync::Arc;

use super::rules::Denial;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    Http,
    Https,
}

/// The host of a checked URL: a name as IDNA maps it (lower-case, no trailing dot), or an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    Name(Arc<str>),
    Address(IpAddr),
}

/// Scheme, host and port: what caps, connection reuse and the scan limit count by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    pub scheme: Scheme,
    pub host: Host,
    pub port: u16,
}

/// A plain absolute URL that passed the raw checks. Whether its host may be reached is not decided here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedUrl {
    url: ::url::Url,
    destination: Destination,
}

impl CheckedUrl {
    /// Parses what a send says. The denial is always `policy_url`.
    pub fn parse(_raw: &str) -> Result<Self, Denial> {
        todo!()
    }

    /// The whole URL as records show it and as it can be parsed again to the same value.
    pub fn as_str(&self) -> &str {
        self.url.as_str()
    }

    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    /// Path and query, for the request line (origin form, RFC 9112 section 3.2.1); never empty.
    pub fn origin_form(&self) -> String {
        todo!()
    }

    /// The `Host` field's value (RFC 9110 section 7.2): host, and the port unless it is the scheme's default.
    pub fn authority(&self) -> String {
        todo!()
    }

    /// The query as parsed, without `?`.
    pub fn query(&self) -> Option<&str> {
        self.url.query()
    }

    /// The same URL with another query (already percent-encoded). Refused when it becomes too long.
    pub fn with_query(self, _query: Option<&str>) -> Result<Self, Denial> {
        todo!()
    }
}

/// `raw` with whatever stands where userinfo would replaced by `redacted`, for showing a refused URL. Must be
/// generous: text that any parser might read as userinfo is replaced.
pub fn without_userinfo(_raw: &str, _redact: impl FnOnce(&str) -> String) -> String {
    todo!()
}
