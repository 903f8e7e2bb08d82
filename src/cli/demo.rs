//! `egressd demo`: the whole thing on loopback, with nothing to set up: several source addresses, the embedded store
//! in a temporary directory, a request bin as receiver, and the sends that a workflow author would write first, held
//! until their execution finishes and then released. With `--nodes`, the same through a tier ([`tier`]).

mod database;
mod tier;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context as _, bail};
use http::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::client::{ApiArgs, ApiClient};
use super::out::{reader_gone, say};
use super::show::{Style, clean, timings};
use super::{NO, OK, block_on};
use crate::app::{App, Past};
use crate::config::Config;
use crate::request_bin::RequestBin;
use crate::{clock, telemetry};

#[derive(clap::Args)]
pub struct Args {
    /// Exit when the sample sends are done
    #[arg(long)]
    once: bool,
    /// A tier of so many nodes over one PostgreSQL, one of which is killed on the way
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(2..=8))]
    nodes: Option<u8>,
    /// The database of that tier, in whose schema `egressd` it is made; else a private one is started from what is installed
    #[arg(long, value_name = "URL", requires = "nodes")]
    postgres: Option<String>,
}

/// Where deliveries leave from; the whole of 127.0.0.0/8 is this host's without set-up.
const SOURCES: [Ipv4Addr; 3] =
    [Ipv4Addr::new(127, 0, 0, 11), Ipv4Addr::new(127, 0, 0, 12), Ipv4Addr::new(127, 0, 0, 13)];

/// Three customers' hosts: each sees a steady source, and not all the same one.
const RECEIVERS: [Ipv4Addr; 3] = [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 4)];

/// Theirs where it is free, so that what the README shows can be sent as it stands there.
const RECEIVER_PORT: u16 = 8710;

/// One send, as a step would write it, and how it must end.
struct Sample {
    step: &'static str,
    /// The call in the workflow's step.
    call: String,
    send: Value,
    outcome: &'static str,
    /// Status of the answer, or the error's code.
    answer: &'static str,
}

pub fn run(args: Args) -> u8 {
    block_on(async move {
        let shown = async {
            match args.nodes {
                Some(nodes) => Box::pin(tier::demo(nodes, args.postgres, args.once)).await,
                None => Box::pin(demo(args.once)).await,
            }
        };
        tokio::select! {
            shown = shown => shown,
            () = reader_gone() => Ok(OK),
        }
    })
}

async fn demo(once: bool) -> anyhow::Result<u8> {
    let _ = telemetry::logs("warn");
    let style = Style::of_stdout();
    let directory = Scratch::new()?;

    let seen = RequestBin::default();
    let (receivers, down) = start_receivers(&seen).await?;
    let config = config(&directory.0)?;
    let app = App::start(config, None, Past::Own, telemetry::metrics()?).await?;
    let api = ApiArgs { api: Some(format!("http://{}", app.api)), ..ApiArgs::default() };
    let client = ApiClient::new(&api)?;

    say!("{}", style.bold("egressd demo: HTTP requests that leave once, from fixed addresses, within 5 seconds"));
    say!(
        "  sources    {} (the addresses a customer's firewall would let in)",
        SOURCES.map(|ip| ip.to_string()).join(", ")
    );
    let urls: Vec<String> = receivers.iter().map(|receiver| format!("http://{receiver}")).collect();
    say!("  receivers  {} (a request bin in this process)", urls.join(", "));
    say!("  inspector  http://{}/", app.api);
    say!("  API        http://{}/v1/sends (OpenAPI: /openapi.json)", app.api);
    say!("  metrics    http://{}/metrics", app.metrics);

    let execution = format!("demo-{}", std::process::id());
    let samples = samples(&receivers, down);
    say!(
        "\nA workflow runs (execution {execution}). Its steps ask for {} sends, which are held on disk:\n",
        samples.len()
    );
    let mut ids = Vec::new();
    for sample in &samples {
        let mut send = sample.send.clone();
        send["context"] = json!({ "workflow": "demo", "execution": execution, "step": sample.step });
        let path = format!("/v1/executions/{execution}/sends");
        let record = client.json(Method::POST, &path, Some(serde_json::to_vec(&send)?)).await?;
        let id = record["id"].as_str().context("the API's answer has no id")?;
        say!("  {} {}", style.dim(record["state"].as_str().unwrap_or("-")), sample.call);
        ids.push(id.to_owned());
    }
    let released = client.json(Method::POST, &format!("/v1/executions/{execution}/finish"), None).await?;
    say!("\nThe workflow has finished: {} sends are released. Each record as it ends:\n", released["released"]);
    say!("{}", heads(style));

    let mut waits = tokio::task::JoinSet::new();
    let client = std::sync::Arc::new(client);
    for (index, id) in ids.into_iter().enumerate() {
        let client = client.clone();
        waits.spawn(async move {
            loop {
                let record = client.json(Method::GET, &format!("/v1/sends/{id}?wait=30"), None).await?;
                if record["state"] == "done" {
                    return anyhow::Ok((index, record));
                }
            }
        });
    }
    let mut surprises = Vec::new();
    while let Some(ended) = waits.join_next().await {
        let (index, record) = ended??;
        say!("{}", shown(&record, style));
        surprises.extend(ending(&samples[index], &record));
    }

    say!("\nThe receiver saw {} requests, each once, from:", seen.seen().len());
    for source in SOURCES {
        let from = seen.seen().iter().filter(|one| one.peer.ip() == source).count();
        say!("  {source:<12} {from}");
    }
    if seen.seen().iter().any(|one| !SOURCES.iter().any(|source| one.peer.ip() == *source)) {
        surprises.push("the receiver saw a request from an address that is no source".to_owned());
    }
    let expected = expected(&samples);
    if seen.seen().len() != expected {
        surprises.push(format!("the receiver saw {} requests, not {expected}", seen.seen().len()));
    }
    for surprise in &surprises {
        say!("{}", style.bold(&format!("not as it should be: {surprise}")));
    }
    if once {
        app.drain().await;
        return Ok(if surprises.is_empty() { OK } else { NO });
    }
    say!("\nIt stays up. Look at the records: {}", style.bold(&format!("http://{}/", app.api)));
    say!(
        "Send one yourself: egressd send POST {}/hello -d '{{\"name\":\"Luke\"}}' --api http://{} --wait",
        urls[0],
        app.api
    );
    say!("Ctrl-C ends it, and removes what it stored.");
    super::stop_signal().await?;
    app.drain().await;
    Ok(if surprises.is_empty() { OK } else { NO })
}

/// A request bin at several hosts, and a port where nobody listens.
async fn start_receivers(seen: &RequestBin) -> anyhow::Result<(Vec<SocketAddr>, SocketAddr)> {
    let mut receivers = Vec::new();
    for host in RECEIVERS {
        let listener = match TcpListener::bind((host, RECEIVER_PORT)).await {
            Ok(listener) => listener,
            Err(_) => TcpListener::bind((host, 0)).await?,
        };
        receivers.push(listener.local_addr()?);
        tokio::spawn(seen.clone().serve(listener));
    }
    Ok((receivers, free_port(0)?))
}

/// Seven that the receiver answers, one that it answers too late; the others must not come.
fn expected(samples: &[Sample]) -> usize {
    samples.iter().filter(|sample| sample.outcome != "blocked" && sample.answer != "connection_refused").count()
}

/// How it ended otherwise than it must.
fn ending(sample: &Sample, record: &Value) -> Option<String> {
    let (outcome, answer) = (record["outcome"].as_str().unwrap_or("-"), answer(record));
    let is_right = (outcome, answer.as_str()) == (sample.outcome, sample.answer);
    (!is_right).then(|| format!("{} ended {outcome} {answer}, not {} {}", sample.call, sample.outcome, sample.answer))
}

fn heads(style: Style) -> String {
    let (outcome, answer, source) = ("outcome", "status or code", "source");
    style.dim(&format!("  {outcome:<10} {answer:<22} {source:<10} {:>8}  {:<7} url", "total ms", "method"))
}

/// What `$.send.http` samples a workflow author writes first.
fn samples(receivers: &[SocketAddr], down: SocketAddr) -> Vec<Sample> {
    let [bin, names, reports] = [0, 1, 2].map(|index| format!("http://{}", receivers[index]));
    let mut samples = vec![Sample {
        step: "notify",
        call: "$.send.http({ method: \"POST\", url, data: { name: \"Luke\" } })".to_owned(),
        send: json!({ "method": "POST", "url": format!("{bin}/hello"), "data": { "name": "Luke" } }),
        outcome: "delivered",
        answer: "200",
    }];
    for name in ["Luke", "Han", "Leia", "Obi Wan"] {
        samples.push(Sample {
            step: "loop",
            call: format!(
                "for (const name of names) $.send.http({{ method: \"POST\", url, data: {{ name }} }})  // {name}"
            ),
            send: json!({ "method": "POST", "url": format!("{names}/names"), "data": { "name": name } }),
            outcome: "delivered",
            answer: "200",
        });
    }
    let mut more = |step, call: &str, send, outcome, answer| {
        samples.push(Sample { step, call: call.to_owned(), send, outcome, answer });
    };
    more(
        "report",
        "$.send.http({ method: \"PUT\", url, params, headers, auth, data: \"plain text\" })",
        json!({
            "method": "PUT", "url": format!("{reports}/report"), "params": { "page": 2, "tag": ["a b", "c"] },
            "headers": { "X-Trace": "demo" }, "auth": { "username": "leia", "password": "organa" }, "data": "plain text",
        }),
        "delivered",
        "200",
    );
    more(
        "fetch",
        "$.send.http({ method: \"GET\", url })",
        json!({ "method": "GET", "url": format!("{reports}/items") }),
        "delivered",
        "200",
    );
    more(
        "broken",
        "$.send.http({ method: \"POST\", url: \"…/_status/500\" })  // a receiver that answers 500",
        json!({ "method": "POST", "url": format!("{bin}/_status/500"), "data": { "id": 1 } }),
        "rejected",
        "500",
    );
    more(
        "down",
        "$.send.http({ method: \"POST\", url })  // a receiver that is down",
        json!({ "method": "POST", "url": format!("http://{down}/"), "data": { "id": 2 } }),
        "failed",
        "connection_refused",
    );
    more(
        "slow",
        "$.send.http({ method: \"POST\", url: \"…/_delay/7000\" })  // a receiver that takes longer than 5 s",
        json!({ "method": "POST", "url": format!("{bin}/_delay/7000"), "data": { "id": 3 } }),
        "failed",
        "timeout",
    );
    more(
        "forbidden",
        "$.send.http({ method: \"GET\", url: \"http://169.254.169.254/…\" })  // one that the policy blocks",
        json!({ "method": "GET", "url": "http://169.254.169.254/latest/meta-data/" }),
        "blocked",
        "policy_metadata",
    );
    samples
}

fn answer(record: &Value) -> String {
    match record.pointer("/error/code").and_then(Value::as_str) {
        Some(code) => code.to_owned(),
        None => record.pointer("/response/status").map_or_else(|| "-".to_owned(), ToString::to_string),
    }
}

/// A record in two or three lines: how it ended, where its time went, and why.
fn shown(record: &Value, style: Style) -> String {
    let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str).unwrap_or("-").to_owned();
    let total = record.pointer("/timings_ms/total").and_then(Value::as_f64);
    let mut lines = format!(
        "  {} {:<22} {:<10} {:>8}  {:<7} {}\n    {}",
        style.bold(&format!("{:<10}", text("/outcome"))),
        answer(record),
        text("/connection/source_ip"),
        total.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}")),
        text("/request/method"),
        clean(&text("/request/url"), 120),
        style.dim(&timings(record)),
    );
    if let Some(message) = record.pointer("/error/message").and_then(Value::as_str) {
        lines += &format!("\n    {}", clean(message, 300));
    }
    lines
}

/// This port of loopback where it is free, else any that is.
fn free_port(wanted: u16) -> anyhow::Result<SocketAddr> {
    let listen = |port| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    Ok(listen(wanted).or_else(|_| listen(0))?.local_addr()?)
}

/// What makes one node's configuration.
struct Setting<'a> {
    node: &'a str,
    api: SocketAddr,
    metrics: SocketAddr,
    sources: &'a [Ipv4Addr],
    /// The tier's.
    published: &'a [Ipv4Addr],
    /// Its tables, the last of them `[store]`.
    store: &'a str,
}

impl Setting<'_> {
    /// With the published list beside it.
    fn written(&self, directory: &Path) -> anyhow::Result<String> {
        let lines: String = self.published.iter().map(|source| format!("{source}\n")).collect();
        let published = format!("# the demo's sources\n{lines}");
        let sources: String =
            self.sources.iter().map(|source| format!("[[egress.source]]\npublic = \"{source}\"\n")).collect();
        std::fs::write(directory.join("public-ips.txt"), published)?;
        let Self { node, api, metrics, store, .. } = self;
        Ok(format!(
            r#"
node = "{node}"
[api]
listen = "{api}"
[metrics]
listen = "{metrics}"
{sources}
{store}
[dns]
servers = ["127.0.0.1:53"]
[[policy.exception]]
networks = ["127.0.0.0/8"]
reason = "the demo's receiver is on loopback"
"#
        ))
    }
}

/// The contract's own ports where they are free, so that `egressd send` finds the demo.
fn config(directory: &Path) -> anyhow::Result<Config> {
    let port = |port: u16| {
        let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        SocketAddr::from((Ipv4Addr::LOCALHOST, if free { port } else { 0 }))
    };
    let quoted = |name: &str| toml::Value::String(directory.join(name).display().to_string());
    let store = format!("[store]\npath = {}\nkey_file = {}\n", quoted("store"), quoted("key"));
    let setting = Setting {
        node: "demo",
        api: port(8700),
        metrics: port(8701),
        sources: &SOURCES,
        published: &SOURCES,
        store: &store,
    };
    match Config::from_text(&setting.written(directory)?, &directory.join("egressd.toml"), clock::wall()) {
        Ok(config) => Ok(config),
        Err(problems) => {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            bail!("the demo's configuration is refused: {}", problems.join("; "))
        }
    }
}

/// A directory of this demo alone, gone when it ends.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let path = std::env::temp_dir().join(format!("egressd-demo-{}", uuid::Uuid::now_v7()));
        std::fs::DirBuilder::new().mode(0o700).create(&path).with_context(|| {
            format!("{} cannot be made: set TMPDIR to a directory that can be written", path.display())
        })?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
