//! Spans to a collector: OTLP over HTTP in its JSON form (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>).
//!
//! Beside everything else: it reads a queue that nobody waits at. What the collector does not take at the first try is
//! left out, counted and told; a trace is help, and never a record.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use jiff::Timestamp;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use crate::config::Config;
use crate::limits::{TRACE_ANSWER_BYTES, TRACE_BATCH, TRACE_EVERY, TRACE_TIME};
use crate::outcome::Phase;
use crate::send::Kind;
use crate::send::trace::TraceParent;
use crate::store::{Reach, Store};
use crate::trace::{News, Told, Tracer, spans};

/// Where spans go.
pub struct Collector {
    url: String,
    /// Of this process: OTLP's resource.
    resource: Value,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Collector {
    pub fn new(otlp: &str, config: &Config) -> anyhow::Result<Self> {
        let tls = rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots(&config.tls.extra_ca)?)
            .with_no_client_auth();
        let connector =
            hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        let attributes = [
            attribute("service.name", "egressd"),
            attribute("service.version", env!("CARGO_PKG_VERSION")),
            attribute("service.instance.id", &config.node),
        ];
        Ok(Self {
            url: format!("{otlp}/v1/traces"),
            resource: json!({ "attributes": attributes }),
            client: Client::builder(TokioExecutor::new()).build(connector),
        })
    }

    /// Until `stopped` turns true, and what has been told by then. `store`: what has ended while it waited.
    pub async fn run(
        self,
        (tracer, mut told): (Tracer, mpsc::Receiver<News>),
        store: Arc<dyn Store>,
        mut stopped: watch::Receiver<bool>,
    ) {
        let mut batch = Vec::with_capacity(TRACE_BATCH);
        let mut ends = false;
        while !ends {
            tokio::select! {
                _ = told.recv_many(&mut batch, TRACE_BATCH) => {}
                _ = stopped.wait_for(|stopped| *stopped) => ends = true,
            }
            if !ends && batch.len() < TRACE_BATCH {
                tokio::select! {
                    () = tokio::time::sleep(TRACE_EVERY) => {}
                    _ = stopped.wait_for(|stopped| *stopped) => ends = true,
                }
            }
            loop {
                while batch.len() < TRACE_BATCH {
                    let Ok(one) = told.try_recv() else { break };
                    batch.push(one);
                }
                if batch.is_empty() {
                    break;
                }
                let all = batch.len() < TRACE_BATCH;
                let told = of_news(&tracer, &*store, &mut batch).await;
                if !told.is_empty() {
                    self.send(&told).await;
                }
                if all {
                    break;
                }
            }
        }
    }

    async fn send(&self, batch: &[Told]) {
        let count = batch.len() as u64;
        match self.post(batch).await {
            Ok(()) => spans("sent").increment(count),
            Err(error) => {
                spans("refused").increment(count);
                tracing::warn!(
                    error = format!("{error:#}"),
                    sends = count,
                    "the collector of traces did not take what it was told"
                );
            }
        }
    }

    async fn post(&self, batch: &[Told]) -> anyhow::Result<()> {
        let body = serde_json::to_vec(&self.written(batch))?;
        let request =
            Request::builder().method(Method::POST).uri(&self.url).header(header::CONTENT_TYPE, "application/json");
        let request = request.body(Full::new(Bytes::from(body)))?;
        let exchange = async {
            let response =
                self.client.request(request).await.with_context(|| format!("no answer from {}", self.url))?;
            let status = response.status();
            // Read, so that the connection serves again; what it says is for nobody.
            let _ = Limited::new(response.into_body(), TRACE_ANSWER_BYTES).collect().await;
            anyhow::ensure!(status == StatusCode::OK, "{} answered {status}", self.url);
            Ok(())
        };
        #[allow(clippy::disallowed_methods, reason = "a collector's own slowness, no part of any delivery")]
        tokio::time::timeout(TRACE_TIME, exchange)
            .await
            .with_context(|| format!("no answer from {} in time", self.url))?
    }

    fn written(&self, batch: &[Told]) -> Value {
        let spans: Vec<Span> = batch.iter().flat_map(spans_of).collect();
        let scope = json!({ "name": "egressd", "version": env!("CARGO_PKG_VERSION") });
        json!({ "resourceSpans": [{ "resource": self.resource, "scopeSpans": [{ "scope": scope, "spans": spans }] }] })
    }
}

/// What is told, of sends that are told of.
async fn of_news(tracer: &Tracer, store: &dyn Store, news: &mut Vec<News>) -> Vec<Told> {
    let mut all = Vec::with_capacity(news.len());
    for news in news.drain(..) {
        match news {
            News::Ended(told) => all.push(*told),
            News::Waited(id) => match store.record(Reach::All, id, false).await {
                Ok(Some(record)) => all.extend(tracer.of_record(&record)),
                Ok(None) | Err(_) => tracer.left_out(),
            },
        }
    }
    all
}

/// A span of opentelemetry-proto's `trace.proto`, in the JSON form that OTLP gives it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Span {
    trace_id: String,
    span_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_span_id: Option<String>,
    name: String,
    kind: u8,
    start_time_unix_nano: String,
    end_time_unix_nano: String,
    attributes: Vec<Value>,
    status: Value,
}

const INTERNAL: u8 = 1;
const CLIENT: u8 = 3;

/// The send's own, and one for each phase. Phases follow one another; how long each took is known, and what little
/// lies between them counts for none, so they are laid end to end.
fn spans_of(told: &Told) -> Vec<Span> {
    let begun = &told.begun;
    let failed = told.code.is_some() || told.status.is_some_and(|status| status >= 400);
    let mut own = span(&begun.place, begun.parent.map(|parent| parent.span_hex()), told.created_at, told.finished_at);
    own.name = begun.method.map_or(begun.kind.label(), |method| method.label()).to_owned();
    // Of one that waited to its end nothing left.
    own.kind = if told.timings.total.is_some() { CLIENT } else { INTERNAL };
    own.attributes = attributes(told);
    own.status = if failed { json!({ "code": 2, "message": told.code.unwrap_or_default() }) } else { json!({}) };
    let later = |at: Timestamp, took: Duration| at.saturating_add(took).unwrap_or(at);
    let released = later(told.created_at, told.timings.held.unwrap_or_default());
    let waits = [("held", told.timings.held, told.created_at), ("queued", told.timings.queued, released)];
    let waits = waits
        .into_iter()
        .filter_map(|(name, took, at)| took.filter(|took| !took.is_zero()).map(|took| (name, took, at)));
    let mut at = begun.started_at;
    let phases = Phase::ALL.iter().filter_map(|phase| {
        let took = told.timings.phase(*phase)?;
        let from = at;
        at = later(from, took);
        Some((phase.label(), took, from))
    });
    let parts: Vec<(&str, Duration, Timestamp)> = waits.chain(phases).collect();
    let parent = begun.place.span_hex();
    let parts = parts.into_iter().zip(0..).map(|((name, took, from), number)| Span {
        name: name.to_owned(),
        ..span(&begun.place.part(number), Some(parent.clone()), from, later(from, took))
    });
    parts.chain([own]).collect()
}

fn span(place: &TraceParent, parent: Option<String>, from: Timestamp, until: Timestamp) -> Span {
    Span {
        trace_id: place.trace_hex(),
        span_id: place.span_hex(),
        parent_span_id: parent,
        name: String::new(),
        kind: INTERNAL,
        start_time_unix_nano: from.as_nanosecond().to_string(),
        end_time_unix_nano: until.as_nanosecond().to_string(),
        attributes: Vec::new(),
        status: json!({}),
    }
}

/// By the names of OpenTelemetry's conventions where there are such. Nothing that was sent: a path, a query, a header
/// or a body may hold a secret.
fn attributes(told: &Told) -> Vec<Value> {
    let begun = &told.begun;
    let mut all = vec![
        attribute("egressd.send", &begun.id.to_string()),
        attribute("egressd.tenant", begun.tenant.as_str()),
        attribute("egressd.outcome", told.outcome.label()),
        attribute("egressd.destination", begun.kind.label()),
    ];
    all.extend(begun.method.map(|method| attribute("http.request.method", method.label())));
    if let Some(destination) = &begun.destination {
        all.push(attribute("url.scheme", destination.scheme.label()));
        all.push(attribute("server.address", &destination.host.text()));
        all.push(number("server.port", destination.port));
    }
    let texts = [
        ("egressd.workflow", begun.workflow.as_deref()),
        ("egressd.execution", begun.execution.as_ref().map(|execution| execution.as_str())),
        ("egressd.step", begun.step.as_deref()),
        ("error.type", told.code),
        ("network.protocol.version", told.version.as_deref().map(|version| version.trim_start_matches("HTTP/"))),
    ];
    all.extend(texts.into_iter().filter_map(|(name, text)| Some(attribute(name, text?))));
    let status = match begun.kind {
        Kind::Http | Kind::S3 => "http.response.status_code",
        Kind::Email => "smtp.response.status_code",
        Kind::Sql => "db.response.status_code",
    };
    all.extend(told.status.map(|code| number(status, code)));
    if let Some(public) = told.public {
        all.push(attribute("egressd.source_ip", &public.to_string()));
        all.push(json!({ "key": "egressd.connection.reused", "value": { "boolValue": told.reused } }));
    }
    all
}

fn attribute(name: &str, value: &str) -> Value {
    json!({ "key": name, "value": { "stringValue": value } })
}

fn number(name: &str, value: u16) -> Value {
    json!({ "key": name, "value": { "intValue": value.to_string() } })
}

fn roots(extra: &[PathBuf]) -> anyhow::Result<rustls::RootCertStore> {
    let mut roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    for path in extra {
        for certificate in CertificateDer::pem_file_iter(path).with_context(|| format!("{}", path.display()))? {
            roots.add(certificate?)?;
        }
    }
    Ok(roots)
}
