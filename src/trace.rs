//! What a collector of traces is told of a send, where one is set up: one span, with its phases as parts. Of one that
//! ended while it waited the queue has the id alone, and its record is read where the queue is.
//!
//! Telling is one look at a bounded queue: where that is full the span is left out and counted, and no delivery ever
//! waits for it or is lost by it. A span holds what an operator needs to find the send and its time, and nothing of what
//! was sent: no path or query, no header, no body, no message. Not here: who reads the queue (`telemetry::otlp`).

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderValue;
use jiff::Timestamp;
use metrics::{Counter, Unit, counter, describe_counter};
use tokio::sync::mpsc;

use crate::clock;
use crate::limits::TRACE_QUEUE;
use crate::outcome::{Outcome, Timings};
use crate::policy::Destination;
use crate::record::{Finished, Record};
use crate::send::trace::TraceParent;
use crate::send::{ExecutionId, Kind, Method, SendId, TenantId, To};
use crate::store::Started;

/// Of what a collector is to be told.
pub enum News {
    Ended(Box<Told>),
    /// Without having been begun.
    Waited(SendId),
}

/// A send that has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    pub begun: Begun,
    pub created_at: Timestamp,
    pub finished_at: Timestamp,
    pub outcome: Outcome,
    /// The code of its error.
    pub code: Option<&'static str>,
    pub status: Option<u16>,
    pub version: Option<String>,
    /// The published address it left from.
    pub public: Option<IpAddr>,
    pub reused: bool,
    pub timings: Timings,
}

/// What is known of it before.
#[derive(Clone, Debug, PartialEq)]
pub struct Begun {
    pub id: SendId,
    pub place: TraceParent,
    pub parent: Option<TraceParent>,
    pub tenant: TenantId,
    pub workflow: Option<Arc<str>>,
    pub execution: Option<ExecutionId>,
    pub step: Option<Arc<str>>,
    pub kind: Kind,
    /// Of HTTP.
    pub method: Option<Method>,
    pub destination: Option<Destination>,
    pub started_at: Timestamp,
}

/// One for the process.
#[derive(Clone)]
pub struct Tracer {
    to: Option<mpsc::Sender<News>>,
    /// Of so many sends that came without a trace one is told of.
    one_in: u32,
    left_out: Counter,
}

/// How the metric counts spans.
pub fn spans(result: &'static str) -> Counter {
    counter!("egressd_trace_spans_total", "result" => result)
}

impl Tracer {
    /// Nothing is told.
    pub fn off() -> Self {
        Self::new(None, 1)
    }

    /// And who reads it.
    pub fn on(one_in: u32) -> (Self, mpsc::Receiver<News>) {
        let (to, told) = mpsc::channel(TRACE_QUEUE);
        (Self::new(Some(to), one_in), told)
    }

    fn new(to: Option<mpsc::Sender<News>>, one_in: u32) -> Self {
        describe_counter!(
            "egressd_trace_spans_total",
            Unit::Count,
            "Sends that the collector of traces was told of, by whether it took them, refused them, or they were left out as the queue was full or the store could not say."
        );
        ["sent", "refused"].into_iter().for_each(|result| spans(result).increment(0));
        let left_out = spans("left_out");
        left_out.increment(0);
        Self { to, one_in, left_out }
    }

    /// `None`: this send is not told of.
    pub fn begun(&self, started: &Started) -> Option<Begun> {
        let spec = started.spec();
        let parent = spec.context.trace;
        self.to.as_ref().filter(|_| self.samples(started.id(), parent.as_ref()))?;
        Some(Begun {
            id: started.id(),
            place: TraceParent::of(started.id(), parent.as_ref()),
            parent,
            tenant: started.tenant().clone(),
            workflow: spec.context.workflow.clone(),
            execution: spec.context.execution.clone(),
            step: spec.context.step.clone(),
            kind: spec.to.kind(),
            method: match &spec.to {
                To::Http(request) => Some(request.method),
                To::Email(_) | To::Event(_) => None,
            },
            destination: spec.destination().cloned(),
            started_at: started.at(),
        })
    }

    /// A send ended that nobody had begun.
    pub fn waited(&self, id: SendId) {
        self.tell(News::Waited(id));
    }

    /// What there is to tell of such a one; `None`: it is not told of.
    pub fn of_record(&self, record: &Record) -> Option<Told> {
        let (ended, finished_at) = (record.ended.as_ref()?, record.finished_at?);
        let (parent, connection) = (record.context.trace, record.connection.as_ref());
        let mut timings = record.timings.clone();
        if record.started_at.is_none() {
            timings.held = Some(clock::waited(record.created_at, record.released_at.unwrap_or(finished_at)));
            timings.queued = record.released_at.map(|released| clock::waited(released, finished_at));
        }
        self.samples(record.id, parent.as_ref()).then(|| Told {
            begun: Begun {
                id: record.id,
                place: TraceParent::of(record.id, parent.as_ref()),
                parent,
                tenant: record.tenant.clone(),
                workflow: record.context.workflow.clone(),
                execution: record.context.execution.clone(),
                step: record.context.step.clone(),
                kind: record.request.to.kind(),
                method: record.request.to.method(),
                destination: record.request.to.destination(),
                started_at: record.started_at.unwrap_or(finished_at),
            },
            created_at: record.created_at,
            finished_at,
            outcome: ended.outcome,
            code: ended.error.as_ref().map(|_| ended.code_label()),
            status: None,
            version: None,
            public: connection.and_then(|connection| connection.public),
            reused: false,
            timings,
        })
    }

    /// Who began the trace decides; without one, every so many-th, by chance.
    fn samples(&self, id: SendId, parent: Option<&TraceParent>) -> bool {
        match parent {
            Some(parent) => parent.sampled,
            None => {
                self.one_in == 1
                    || u64::from_be_bytes(TraceParent::of(id, None).span).is_multiple_of(self.one_in.into())
            }
        }
    }

    pub fn ended(&self, begun: Begun, created_at: Timestamp, finished: &Finished) {
        let (response, connection) = (finished.response.as_ref(), finished.connection.as_ref());
        let told = Told {
            begun,
            created_at,
            finished_at: finished.finished_at,
            outcome: finished.ended.outcome,
            code: finished.ended.error.as_ref().map(|_| finished.ended.code_label()),
            status: response.map(|response| response.status),
            version: response.map(|response| response.version.clone()),
            public: connection.and_then(|connection| connection.public),
            reused: connection.is_some_and(|connection| connection.reused),
            timings: finished.timings.clone(),
        };
        self.tell(News::Ended(Box::new(told)));
    }

    fn tell(&self, news: News) {
        if self.to.as_ref().is_some_and(|to| to.try_send(news).is_err()) {
            self.left_out();
        }
    }

    /// Nobody is told of a send.
    pub fn left_out(&self) {
        self.left_out.increment(1);
    }

    /// What the receiver is told: this send's place, where it is told of here as well; else its caller's.
    pub fn carried(&self, started: &Started) -> Option<HeaderValue> {
        let parent = started.spec().context.trace;
        let place = match (&self.to, parent) {
            (Some(_), parent) if self.samples(started.id(), parent.as_ref()) => {
                TraceParent::of(started.id(), parent.as_ref())
            }
            (_, parent) => parent?,
        };
        HeaderValue::try_from(place.to_string()).ok()
    }
}
