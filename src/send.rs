//! What a workflow asked for, as values that are valid by construction.
//!
//! [`SendSpec`] is one send to make: [`To`] says where it goes and what it carries, [`Context`] whose it is. Making one
//! from an author's JSON is [`parse`]'s work (with [`body`], [`headers`] and [`params`]); where the URL may point is
//! [`crate::policy`]'s. Not here: anything about how, when or whether it is delivered.

pub mod body;
pub mod email;
pub mod event;
pub mod headers;
pub mod params;
pub mod parse;
pub mod trace;

use std::{borrow::Cow, fmt, str::FromStr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use uuid::Uuid;

pub use self::email::Email;
pub use self::event::{Event, Place};
use crate::outcome::{Failure, labelled};
use crate::policy::{CheckedUrl, Destination};

/// A send's identity: a UUID of version 7, so that ids sort by the time of acceptance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SendId(pub Uuid);

impl fmt::Display for SendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl FromStr for SendId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::try_parse(text).map(Self)
    }
}

macro_rules! shared_text {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The caller has checked the text's length and characters.
            pub fn new(text: impl Into<Arc<str>>) -> Self { Self(text.into()) }
            pub fn as_str(&self) -> &str { &self.0 }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
    };
}

/// The account a send belongs to; at most [`crate::limits::TENANT_CHARS_MAX`] characters.
///
/// Or ourselves, for what this node asks for its own sake: no text that a caller or a configuration could give equals
/// that, so nothing that is kept by tenant is ever shared with one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(Whose);

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Whose {
    Named(Arc<str>),
    Ourselves,
}

impl TenantId {
    /// What this node asks for its own sake: it has no sends, and no records.
    pub const OURSELVES: Self = Self(Whose::Ourselves);

    /// The caller has checked the text's length and characters.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(Whose::Named(text.into()))
    }

    pub fn as_str(&self) -> &str {
        match &self.0 {
            Whose::Named(text) => text,
            Whose::Ourselves => "(this node itself)",
        }
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

shared_text! {
    /// One run of a workflow; unique within its tenant. At most [`crate::limits::CONTEXT_CHARS_MAX`] characters.
    ExecutionId
}

labelled! {
    /// The methods a send may use. `CONNECT` and `TRACE` are refused: the first makes a tunnel, the second
    /// reflects the request with its secrets.
    Method {
        Get = "GET",
        Head = "HEAD",
        Post = "POST",
        Put = "PUT",
        Patch = "PATCH",
        Delete = "DELETE",
        Options = "OPTIONS",
    }
}

/// What is explained: a send of this method, or a tunnel through the forward proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Explained {
    Send(Method),
    Tunnel,
}

impl Explained {
    pub fn label(self) -> &'static str {
        match self {
            Self::Send(method) => method.label(),
            Self::Tunnel => "CONNECT",
        }
    }

    pub fn from_label(label: &str) -> Option<Self> {
        match label {
            "CONNECT" => Some(Self::Tunnel),
            label => Method::from_label(label).map(Self::Send),
        }
    }

    pub fn labels() -> impl Iterator<Item = &'static str> {
        Method::ALL.iter().map(|method| method.label()).chain(["CONNECT"])
    }
}

impl From<Method> for Explained {
    fn from(method: Method) -> Self {
        Self::Send(method)
    }
}

/// Where a send came from, for finding its record again. Given by the author, apart from the tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    pub workflow: Option<Arc<str>>,
    pub execution: Option<ExecutionId>,
    pub step: Option<Arc<str>>,
    /// The trace that the submitting call was a part of.
    pub trace: Option<trace::TraceParent>,
}

/// Header lines in order; names are lower-case by [`HeaderName`]'s own rule.
pub type HeaderLines = Vec<(HeaderName, HeaderValue)>;

/// How header names leave over HTTP/1.1: as their author wrote them, else in `Title-Case`, as most clients write
/// their own and as receivers with case-sensitive code expect. Over HTTP/2 they are lower-case (RFC 9113 section 8.2.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spelling(Vec<Box<str>>);

impl Spelling {
    /// The last one noted of a name holds.
    pub fn note(&mut self, written: &str) {
        self.0.retain(|known| !known.eq_ignore_ascii_case(written));
        if title_case(&written.to_ascii_lowercase()) != written {
            self.0.push(written.into());
        }
    }

    pub fn of(&self, name: &HeaderName) -> Cow<'_, str> {
        match self.0.iter().find(|known| known.eq_ignore_ascii_case(name.as_str())) {
            Some(written) => Cow::Borrowed(written),
            None => Cow::Owned(title_case(name.as_str())),
        }
    }

    /// The names that are not in `Title-Case`, as they are written.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|written| &**written)
    }
}

impl<'a> FromIterator<&'a str> for Spelling {
    fn from_iter<T: IntoIterator<Item = &'a str>>(names: T) -> Self {
        let mut spelling = Self::default();
        names.into_iter().for_each(|name| spelling.note(name));
        spelling
    }
}

fn title_case(lower: &str) -> String {
    let mut start = true;
    let upper = |c: char| {
        let out = if start { c.to_ascii_uppercase() } else { c };
        start = c == '-';
        out
    };
    lower.chars().map(upper).collect()
}

/// Where a send points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A plain absolute URL with the send's `params` applied. Its host has not been judged yet.
    Url(CheckedUrl),
    /// Not such a URL: the send is accepted, and ends `blocked` without being tried. `shown` is the text as
    /// given, with any userinfo redacted.
    Refused { shown: String, denial: Failure },
}

impl Target {
    /// The URL as records show it.
    pub fn shown(&self) -> &str {
        match self {
            Self::Url(url) => url.as_str(),
            Self::Refused { shown, .. } => shown,
        }
    }
}

/// One send to make, complete and of valid shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendSpec {
    pub to: To,
    pub context: Context,
    /// Counted from release (or acceptance); `None`: the configured default.
    pub expires_in: Option<Duration>,
}

labelled! {
    /// The kinds of destination that there are.
    Kind {
        Http = "http",
        Email = "email",
        S3 = "s3",
        Sql = "sql",
    }
}

/// Where a send goes, and what it carries there. Everything that differs between destinations is a `match` on this, or
/// on [`crate::record::ShownTo`], its form in records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    Http(HttpRequest),
    Email(Email),
    /// Carried in a batch, with others: nothing of it alone is ever begun.
    Event(Event),
}

/// One request to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRequest {
    pub method: Method,
    pub target: Target,
    /// What the author asked for (`auth` already turned into `authorization`, `content-type` filled in), without
    /// those of [`Self::dropped_headers`]. Framing, `host` and our own are added when it is delivered.
    pub headers: HeaderLines,
    pub spelling: Spelling,
    /// Names of the headers that were given and are never sent (or of which a later spelling is), lower-case, in order.
    pub dropped_headers: Vec<String>,
    /// `None`: the request has no body (and no `Content-Length` where the method defines none).
    pub body: Option<Bytes>,
}

impl To {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Http(_) => Kind::Http,
            Self::Email(_) => Kind::Email,
            Self::Event(event) => event.place().kind(),
        }
    }
}

impl SendSpec {
    /// What it is connected to: caps, lists and suspensions know it by that. `None`: it goes nowhere, as its URL is
    /// refused.
    pub fn destination(&self) -> Option<&Destination> {
        match &self.to {
            To::Http(HttpRequest { target: Target::Url(url), .. }) => Some(url.destination()),
            To::Http(HttpRequest { target: Target::Refused { .. }, .. }) => None,
            To::Email(email) => Some(email.relay()),
            To::Event(event) => Some(event.way()),
        }
    }

    /// What of it is kept apart, sealed, searched and dropped as bodies are.
    pub fn body(&self) -> Option<&Bytes> {
        match &self.to {
            To::Http(request) => request.body.as_ref(),
            To::Email(email) => Some(email.content()),
            To::Event(event) => Some(event.payload()),
        }
    }

    /// Where it gathers with others; `None`: it goes by itself.
    pub fn gathers(&self) -> Option<&Place> {
        match &self.to {
            To::Event(event) => Some(event.place()),
            To::Http(_) | To::Email(_) => None,
        }
    }

    /// About how much memory this takes, in bytes.
    pub fn footprint(&self) -> u64 {
        let beside = match &self.to {
            To::Http(request) => request.footprint(),
            To::Email(_) | To::Event(_) => 0,
        };
        (512 + beside + self.body().map_or(0, Bytes::len)) as u64
    }
}

impl HttpRequest {
    /// Without its body.
    fn footprint(&self) -> usize {
        /// Its place, and two pieces of memory.
        const OF_LINE: usize = 144;
        let headers: usize = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + OF_LINE).sum();
        let spelling: usize = self.spelling.iter().map(|name| name.len() + 16).sum();
        headers + spelling + self.target.shown().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_spells_ourselves() {
        let ours = TenantId::OURSELVES;
        for text in ["egressd", "", "Ourselves", ours.as_str()] {
            assert_ne!(TenantId::new(text), ours, "{text}");
        }
    }
}
