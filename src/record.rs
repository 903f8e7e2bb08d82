//! What is remembered of a send: the values behind a record, already redacted.
//!
//! These are domain values: the API and the store each have their own form of them.

mod batch;
mod tunnel;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;

use crate::outcome::labelled;
use crate::outcome::{Code, Ended, Failure, Outcome, Processed, Timings};
use crate::policy::{CheckedUrl, Destination, Verdict};
use crate::send::{Context, ExecutionId, Kind, Method, Place, SendId, Spelling, TenantId};

pub use self::batch::{Batch, BatchId, BatchState, InBatch, LeftOut};
pub use self::tunnel::{Tunnel, TunnelEnd, TunnelEnded};

labelled! {
    /// Where a send is on its way.
    State {
        Held = "held",
        Queued = "queued",
        Sending = "sending",
        Done = "done",
    }
}

/// Header lines as shown: lower-case names in order, each with its values; secrets read `[redacted hmac:…]`.
pub type ShownHeaders = Vec<(String, Vec<String>)>;

/// A body as shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShownBody {
    /// What is stored of it, JSON members redacted where `[redact]` says so. `None`: not kept, past its
    /// retention, or not asked for.
    pub bytes: Option<Bytes>,
    /// Size of the whole body as sent or read, in bytes.
    pub total: u64,
    /// Less is stored than was sent or read, or reading stopped at `response_body_read`.
    pub truncated: bool,
    /// Of the whole body; `None` where it is redacted or not kept.
    pub sha256: Option<[u8; 32]>,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownRequest {
    pub to: ShownTo,
    /// Of a message, those that left, and none before.
    pub headers: ShownHeaders,
    /// Not shown; a resend writes the names alike.
    pub spelling: Spelling,
    pub dropped_headers: Vec<String>,
    /// `None`: the request has no body. Of a message, the content of its [`crate::send::Email`]; of an event, its payload.
    pub body: Option<ShownBody>,
}

/// A [`crate::send::To`] as shown, but for what all of them have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShownTo {
    Http {
        method: Method,
        url: String,
    },
    /// The relay that was configured when it was accepted.
    Email {
        relay: Destination,
    },
    /// With what the configuration connected to when it was accepted.
    Event {
        place: Place,
        way: Destination,
    },
}

impl ShownTo {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Http { .. } => Kind::Http,
            Self::Email { .. } => Kind::Email,
            Self::Event { place, .. } => place.kind(),
        }
    }

    /// Its body is JSON whatever its headers say.
    pub fn is_json(&self) -> bool {
        matches!(self, Self::Email { .. } | Self::Event { .. })
    }

    /// `None`: its URL is refused.
    pub fn destination(&self) -> Option<Destination> {
        match self {
            Self::Http { url, .. } => CheckedUrl::parse(url).ok().map(|url| url.destination().clone()),
            Self::Email { relay: way } | Self::Event { way, .. } => Some(way.clone()),
        }
    }

    pub fn method(&self) -> Option<Method> {
        match self {
            Self::Http { method, .. } => Some(*method),
            Self::Email { .. } | Self::Event { .. } => None,
        }
    }

    pub fn url(&self) -> Option<&str> {
        match self {
            Self::Http { url, .. } => Some(url),
            Self::Email { .. } | Self::Event { .. } => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownResponse {
    pub status: u16,
    /// `HTTP/1.0`, `HTTP/1.1` or `HTTP/2`; `SMTP`, whose replies have one line of headers: `command`, what was answered.
    pub version: String,
    pub headers: ShownHeaders,
    pub body: ShownBody,
    /// The `Content-Length` it declared.
    pub declared: Option<u64>,
}

impl ShownResponse {
    /// A header's first value, as shown.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, values) = self.headers.iter().find(|(known, _)| known == name)?;
        values.first().map(String::as_str)
    }
}

/// The network side of a delivery, as far as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// The local address bound, and the port the kernel gave; 0 where it gave none, because no connection was made.
    pub source: Option<SocketAddr>,
    /// The published address the world sees.
    pub public: Option<IpAddr>,
    pub remote: Option<SocketAddr>,
    pub resolved: Vec<(IpAddr, Verdict)>,
    pub reused: bool,
    pub tls: Option<TlsFacts>,
}

impl Connection {
    /// Of the addresses that were found, those that may be connected to.
    pub fn allowed(&self) -> impl Iterator<Item = IpAddr> {
        self.resolved.iter().filter(|(_, verdict)| *verdict == Verdict::Allowed).map(|(address, _)| *address)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFacts {
    /// Empty where the handshake did not come to its end, as is `cipher`.
    pub version: String,
    pub cipher: String,
    pub alpn: Option<String>,
    pub certificate: Option<Certificate>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    pub subject: String,
    pub issuer: String,
    /// The hosts and addresses it is for, at most [`crate::limits::CERTIFICATE_NAMES_MAX`] of them.
    pub names: Vec<String>,
    /// `None`: remembered before this was.
    pub not_before: Option<Timestamp>,
    pub not_after: Timestamp,
    /// Kind and size of its key: `RSA 2048`. Empty: remembered before this was.
    pub key: String,
    /// Of the DER form.
    pub sha256: [u8; 32],
}

/// A finished send, redacted, as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    pub id: SendId,
    pub ended: Ended,
    /// Every header that left, ours included; `None` where nothing was written.
    pub sent_headers: Option<ShownHeaders>,
    pub response: Option<ShownResponse>,
    pub connection: Option<Connection>,
    pub would_block: Option<Code>,
    pub timings: Timings,
    pub released_at: Option<Timestamp>,
    pub started_at: Option<Timestamp>,
    pub finished_at: Timestamp,
    /// What carried it, where others went with it.
    pub batch: Option<InBatch>,
}

impl Finished {
    /// The end of an event, or of its batch, that may be there already: what an earlier try may have brought there no later one
    /// takes back.
    pub fn in_doubt(mut self, taken: Processed) -> Self {
        if taken == Processed::No || self.ended.outcome == Outcome::Delivered {
            return self;
        }
        self.ended.error = self.ended.error.map(Failure::after_a_doubt);
        if let Some(batch) = &mut self.batch {
            batch.taken = taken;
        }
        self
    }
}

/// All that is remembered of one send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub id: SendId,
    pub state: State,
    pub ended: Option<Ended>,
    pub resend_of: Option<SendId>,
    pub tenant: TenantId,
    pub context: Context,
    /// Counts within the execution, in accept order; `None` without an execution.
    pub index: Option<u32>,
    pub request: ShownRequest,
    pub response: Option<ShownResponse>,
    pub would_block: Option<Code>,
    pub connection: Option<Connection>,
    pub timings: Timings,
    pub node: String,
    pub created_at: Timestamp,
    pub released_at: Option<Timestamp>,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    /// What carries it, where others go with it. Of one that has no end yet a store does not know: who gathers does.
    pub batch: Option<InBatch>,
}

/// A send that has no end yet: all that its record is made of.
#[derive(Clone, Debug)]
pub struct Unfinished {
    pub id: SendId,
    pub tenant: TenantId,
    pub context: Context,
    pub index: Option<u32>,
    pub request: ShownRequest,
    pub resend_of: Option<SendId>,
    pub node: String,
    pub created_at: Timestamp,
    /// `None` while it is held.
    pub released_at: Option<Timestamp>,
    pub started_at: Option<Timestamp>,
    /// So far.
    pub timings: Timings,
}

/// The one place where a record is made.
impl From<Unfinished> for Record {
    fn from(send: Unfinished) -> Self {
        Self {
            id: send.id,
            state: State::of(send.released_at, send.started_at),
            ended: None,
            resend_of: send.resend_of,
            tenant: send.tenant,
            context: send.context,
            index: send.index,
            request: send.request,
            response: None,
            would_block: None,
            connection: None,
            timings: send.timings,
            node: send.node,
            created_at: send.created_at,
            released_at: send.released_at,
            started_at: send.started_at,
            finished_at: None,
            batch: None,
        }
    }
}

impl Record {
    /// Its send has ended: what left takes the place of what was asked for.
    pub fn end(&mut self, finished: Finished) {
        if let Some(sent) = finished.sent_headers {
            self.request.headers = sent;
        }
        self.state = State::Done;
        self.ended = Some(finished.ended);
        self.response = finished.response;
        self.would_block = finished.would_block;
        self.connection = finished.connection;
        self.timings = finished.timings;
        self.released_at = finished.released_at;
        self.started_at = finished.started_at;
        self.finished_at = Some(finished.finished_at);
        self.batch = finished.batch;
    }
}

impl State {
    /// Of a send that has no end yet.
    pub fn of(released_at: Option<Timestamp>, started_at: Option<Timestamp>) -> Self {
        match (started_at, released_at) {
            (Some(_), _) => Self::Sending,
            (None, Some(_)) => Self::Queued,
            (None, None) => Self::Held,
        }
    }
}

labelled! {
    ExecutionState {
        Open = "open",
        Finished = "finished",
        Discarded = "discarded",
    }
}

labelled! {
    FinishedBy {
        Call = "call",
        HoldLimit = "hold_limit",
    }
}

/// One execution as looked at: counts over all its sends, and one page of them in call order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Execution {
    pub execution: ExecutionId,
    pub state: ExecutionState,
    pub finished_by: Option<FinishedBy>,
    pub delivered: u64,
    pub total: u64,
    pub sends: Vec<Record>,
    pub next: Option<String>,
}

/// One execution of a list: its counts, and when it came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutionSummary {
    pub tenant: TenantId,
    pub execution: ExecutionId,
    /// Of its first send that is left.
    pub workflow: Option<String>,
    pub state: ExecutionState,
    pub finished_by: Option<FinishedBy>,
    pub delivered: u64,
    /// Sends that have an outcome.
    pub done: u64,
    pub total: u64,
    /// When its first send that is left was accepted.
    pub created_at: Timestamp,
    /// When it was finished or discarded.
    pub ended_at: Option<Timestamp>,
}

/// How long a send waited between two instants of the wall clock; never negative.
pub fn waited(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}
