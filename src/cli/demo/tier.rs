//! `egressd demo --nodes 3`: the same samples through a tier of nodes over one PostgreSQL, of which one node is killed
//! while a delivery of its own is under way.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use http::Method;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::database::Database;
use super::{Scratch, Setting, ending, free_port, shown, start_receivers};
use crate::cli::client::{ApiArgs, ApiClient};
use crate::cli::out::say;
use crate::cli::show::Style;
use crate::cli::{NO, OK};
use crate::clock;
use crate::request_bin::RequestBin;

/// A death is seen after a lease, and what the dead had in flight is ended a deadline and a second later: both are short
/// here, so that the demo shows it soon.
const DEADLINE_AND_LEASE: &str = "[delivery]\ndeadline = \"2s\"\n[store]\nlease = \"6s\"\n";
const STARTS_WITHIN: Duration = Duration::from_secs(60);
const DRAINS_WITHIN: Duration = Duration::from_secs(15);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The whole of 127.0.0.0/8 is this host's without set-up.
fn source_of(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, 10 + node)
}

struct Node {
    name: String,
    source: Ipv4Addr,
    api: SocketAddr,
    client: ApiClient,
    log: std::path::PathBuf,
    child: Child,
}

impl Node {
    fn start(number: u8, published: &[Ipv4Addr], directory: &Path, store: &str) -> anyhow::Result<Self> {
        let (name, source) = (format!("node-{number}"), source_of(number));
        let directory = directory.join(&name);
        std::fs::create_dir(&directory)?;
        // The contract's own ports for the first, where they are free.
        let port = |own: u16| free_port(if number == 1 { own } else { 0 });
        let (api, metrics) = (port(8700)?, port(8701)?);
        let text = Setting { node: &name, api, metrics, sources: &[source], published, store }.written(&directory)?;
        let file = directory.join("egressd.toml");
        std::fs::write(&file, text)?;
        let log = directory.join("log");
        let child = Command::new(std::env::current_exe()?)
            .args(["serve", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            // Ctrl-C is the demo's alone.
            .process_group(0)
            .spawn()
            .context("a node cannot be started")?;
        let client = ApiClient::new(&ApiArgs { api: Some(format!("http://{api}")), ..ApiArgs::default() })?;
        Ok(Self { name, source, api, client, log, child })
    }

    /// Until it serves, and sees so many nodes.
    async fn sees(&mut self, nodes: usize) -> anyhow::Result<()> {
        let until = clock::monotonic() + STARTS_WITHIN;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}: {}", self.name, std::fs::read_to_string(&self.log)?.trim());
            }
            let seen = self.client.json(Method::GET, "/v1/nodes", None).await;
            if seen.is_ok_and(|seen| seen["nodes"].as_array().is_some_and(|seen| seen.len() == nodes)) {
                return Ok(());
            }
            if clock::monotonic() > until {
                bail!("{} does not come up: {}", self.name, std::fs::read_to_string(&self.log)?.trim());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn signal(&self, signal: Signal) {
        if let Ok(id) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(id), signal);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All at once, each as long as its drain may take.
async fn drain(mut nodes: Vec<Node>) -> anyhow::Result<()> {
    nodes.iter().for_each(|node| node.signal(Signal::SIGTERM));
    let until = clock::monotonic() + DRAINS_WITHIN;
    while clock::monotonic() < until {
        let mut ended = 0;
        for node in &mut nodes {
            ended += usize::from(node.child.try_wait()?.is_some());
        }
        if ended == nodes.len() {
            break;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

async fn done(client: &ApiClient, id: &str) -> anyhow::Result<Value> {
    loop {
        let record = client.json(Method::GET, &format!("/v1/sends/{id}?wait=30"), None).await?;
        if record["state"] == "done" {
            return Ok(record);
        }
    }
}

fn id_of(record: &Value) -> anyhow::Result<String> {
    Ok(record["id"].as_str().context("the API's answer has no id")?.to_owned())
}

pub async fn demo(count: u8, postgres: Option<String>, once: bool) -> anyhow::Result<u8> {
    let style = Style::of_stdout();
    let directory = Scratch::new()?;
    let seen = RequestBin::default();
    let (receivers, down) = start_receivers(&seen).await?;

    say!("{}", style.bold("egressd demo: a tier of nodes over one PostgreSQL, each with an address of its own"));
    let private = match &postgres {
        Some(_) => None,
        None => {
            say!("  {}", style.dim("a private PostgreSQL is made and started …"));
            Some(Database::start(&directory.0)?)
        }
    };
    let url = private.as_ref().map_or_else(|| postgres.clone().unwrap_or_default(), Database::url);
    let quoted = |text: String| toml::Value::String(text);
    let mut store = format!(
        "{DEADLINE_AND_LEASE}engine = \"postgres\"\nurl = {}\nkey_file = {}\n",
        quoted(url.clone()),
        quoted(directory.0.join("key").display().to_string())
    );
    if let Some(private) = &private {
        store += &format!("password_file = {}\n", quoted(private.password_file.display().to_string()));
    }
    let mut nodes = Vec::new();
    let sources: Vec<Ipv4Addr> = (1..=count).map(source_of).collect();
    for number in 1..=count {
        // The first makes the schema and the key.
        let mut node = Node::start(number, &sources, &directory.0, &store)?;
        node.sees(usize::from(number)).await?;
        nodes.push(node);
    }
    say!("  database   {url}{}", if private.is_some() { " (the demo's own, gone with it)" } else { "" });
    for node in &nodes {
        say!("  {:<10} sends from {:<12} inspector and API http://{}/", node.name, node.source.to_string(), node.api);
    }
    let urls: Vec<String> = receivers.iter().map(|receiver| format!("http://{receiver}")).collect();
    say!("  receivers  {} (a request bin in this process)", urls.join(", "));

    let execution = format!("demo-{}", std::process::id());
    let samples = super::samples(&receivers, down);
    say!("\nA workflow runs once for each node. Its {} sends are held in the database:\n", samples.len());
    let mut ids = Vec::new();
    for (index, sample) in samples.iter().enumerate() {
        let mut send = sample.send.clone();
        send["context"] = json!({ "workflow": "demo", "step": sample.step });
        let (run, node) = (index % nodes.len(), &nodes[index % nodes.len()]);
        let execution = format!("{execution}-{run}");
        send["context"]["execution"] = json!(execution);
        let path = format!("/v1/executions/{execution}/sends");
        let record = node.client.json(Method::POST, &path, Some(serde_json::to_vec(&send)?)).await?;
        say!("  {} {}", style.dim(&node.name), sample.call);
        ids.push(id_of(&record)?);
    }

    let victim = nodes.pop().context("there is a last node")?;
    let slow = json!({ "method": "POST", "url": format!("{}/_delay/1500", urls[0]), "data": { "caught": true } });
    let record = victim.client.json(Method::POST, "/v1/sends", Some(serde_json::to_vec(&slow)?)).await?;
    let caught = id_of(&record)?;
    while !seen.seen().iter().any(|one| one.target == "/_delay/1500") {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    victim.signal(Signal::SIGKILL);
    let name = victim.name.clone();
    drop(victim);
    say!("\n{}", style.bold(&format!("{name} is killed (SIGKILL), with a delivery of its own on the wire.")));

    // What the dead one took is the tier's.
    let mut released = 0;
    for run in 0..usize::from(count) {
        let finish = format!("/v1/executions/{execution}-{run}/finish");
        let answer = nodes[run % nodes.len()].client.json(Method::POST, &finish, None).await?;
        released += answer["released"].as_u64().unwrap_or_default();
    }
    say!("\nThe runs finish on the others: {released} sends are released. Each record as it ends:\n");
    say!("{}", super::heads(style));
    let mut surprises = Vec::new();
    let mut waits: futures_util::stream::FuturesUnordered<_> = ids
        .iter()
        .enumerate()
        .map(|(index, id)| {
            let node = &nodes[index % nodes.len()];
            async move { anyhow::Ok((index, done(&node.client, id).await?)) }
        })
        .collect();
    while let Some(ended) = futures_util::StreamExt::next(&mut waits).await {
        let (index, record) = ended?;
        let by = record["node"].as_str().unwrap_or("-");
        say!("{}\n    {}", shown(&record, style), style.dim(&format!("by {by}")));
        surprises.extend(ending(&samples[index], &record));
        if by == name {
            surprises.push(format!("{} was made by {name}, which is dead", samples[index].call));
        }
    }
    drop(waits);

    say!(
        "\n{}",
        style.dim("What the dead node had on the wire is ended once its lease, a deadline and a second are over …")
    );
    let record = done(&nodes[0].client, &caught).await?;
    say!("{}", shown(&record, style));
    if record["outcome"] != "interrupted" {
        surprises.push(format!("what {name} had on the wire ended {}, not interrupted", record["outcome"]));
    }
    let left = nodes.len();
    nodes[0].sees(left).await?;

    say!("\nThe receiver saw {} requests, each once, from:", seen.seen().len());
    for source in &sources {
        say!("  {:<12} {}", source.to_string(), seen.seen().iter().filter(|one| one.peer.ip() == *source).count());
    }
    if seen.seen().iter().any(|one| !sources.iter().any(|source| one.peer.ip() == *source)) {
        surprises.push("the receiver saw a request from an address that is no source".to_owned());
    }
    let expected = super::expected(&samples) + 1;
    if seen.seen().len() != expected {
        surprises.push(format!("the receiver saw {} requests, not {expected}", seen.seen().len()));
    }
    for surprise in &surprises {
        say!("{}", style.bold(&format!("not as it should be: {surprise}")));
    }
    if !once {
        say!("\nIt stays up. Look at the nodes: {}", style.bold(&format!("http://{}/#/nodes", nodes[0].api)));
        say!("Ctrl-C ends it, and removes what it stored.");
        crate::cli::stop_signal().await?;
    }
    drain(nodes).await?;
    Ok(if surprises.is_empty() { OK } else { NO })
}
