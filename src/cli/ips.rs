//! `egressd ips`: the published addresses, as `/public-ips.txt` and `/public-ips.json` list them; with `--verify`,
//! how the reflectors see each source.
//!
//! The list is read from its file alone, so that it says what a node that serves it now would say once its notices
//! are given. Verifying needs the whole configuration; it asks through each source as `serve` does, and changes
//! nothing. A running node is asked for what it serves, and for what its reflectors told it last.

use std::{
    io::{IsTerminal, stderr},
    path::{Path, PathBuf},
    sync::Arc,
    time::UNIX_EPOCH,
};

use anyhow::{Context as _, anyhow};
use http::Method;
use serde_json::{Value, json};

use super::client::{ApiClient, Whom};
use super::out::{print, say, tell, whisper};
use super::show::{clean, columns};
use super::{ERROR, NO, OK, block_on, check::told};
use crate::clock;
use crate::config::{Config, check::published};
use crate::deliver::Deliverer;
use crate::dial::Dialer;
use crate::policy::{SelfAddrs, Suspensions};
use crate::publish::Notice;
use crate::verify::{Heard, Verifier, verdict::Said};
use crate::world::World;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    whom: Whom,
    /// How to print them
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Ask the reflectors of `[egress.verify]` through each source, and print what they saw; exits with 1 when one saw
    /// another address than the published one; that nothing was heard of a source is told, and exits with 0
    #[arg(long)]
    verify: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    /// One address a line
    Text,
    /// With the status and the dates of each, in the shape of Google's list
    Json,
}

pub fn run(args: Args) -> u8 {
    let Some(file) = args.whom.file() else {
        return block_on(async move { if args.verify { verified(&args).await } else { served(&args).await } });
    };
    if args.verify {
        return block_on(verify(args.format, file));
    }
    let now = clock::wall();
    let (path, list) = match published(&file, now) {
        Ok(found) => found,
        Err(problems) => {
            tell!("{}", told(&problems));
            return ERROR;
        }
    };
    let notice = Notice::given();
    match args.format {
        Format::Text => print(format_args!("{}", list.text(&notice, now))),
        Format::Json => print(format_args!("{}", list.json(&notice, modified(&path), now))),
    }
    OK
}

/// The list as a running node serves it.
async fn served(args: &Args) -> anyhow::Result<u8> {
    let path = match args.format {
        Format::Text => "/public-ips.txt",
        Format::Json => "/public-ips.json",
    };
    print(format_args!("{}", ApiClient::new(&args.whom.api)?.text(Method::GET, path).await?));
    Ok(OK)
}

/// What the reflectors last told a running node, which asks them itself.
async fn verified(args: &Args) -> anyhow::Result<u8> {
    let answer = ApiClient::new(&args.whom.api)?.json(Method::GET, "/v1/sources", None).await?;
    let sources = answer.get("sources").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let text = |source: &Value, key: &str| source.get(key).and_then(Value::as_str).unwrap_or("-").to_owned();
    match args.format {
        Format::Json => say!("{answer:#}"),
        Format::Text => {
            let head = ["PUBLIC", "BIND", "POOL", "REFLECTORS", "USABLE"].map(str::to_owned);
            let rows = sources.iter().map(|source| {
                let usable = match source.get("reason").and_then(Value::as_str) {
                    None => "yes".to_owned(),
                    Some(reason) => format!("no: {}", clean(reason, 300)),
                };
                let [public, bind, pool, seen] =
                    ["public_ip", "bind_ip", "pool", "verified"].map(|key| clean(&text(source, key), 80));
                [public, bind, pool, if seen == "drift" { "DIFFERS".to_owned() } else { seen }, usable]
            });
            print(format_args!("{}", columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>())));
        }
    }
    Ok(if sources.iter().any(|source| text(source, "verified") == "drift") { NO } else { OK })
}

/// The second at which the file was last written stands for the token: the one that is served is in the store.
fn modified(path: &Path) -> u64 {
    let time = std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |age| age.as_secs())
}

async fn verify(format: Format, file: PathBuf) -> anyhow::Result<u8> {
    let config = match Config::load(&file, clock::wall()) {
        Ok(config) => Arc::new(config),
        Err(problems) => {
            tell!("{}", told(&problems));
            return Ok(ERROR);
        }
    };
    let reflectors = config.egress.verify.clone().ok_or_else(|| {
        let file = file.display();
        anyhow!("{file} names no reflector to ask: write [egress.verify] with reflectors = [\"https://…/whoami\"]")
    })?;
    let trust = Dialer::prepare(&config).context("[tls] cannot be used")?;
    // Reflectors alone may be addresses of ours, so that what is ours need not be known here.
    let world = World::new(config, &Notice::given(), SelfAddrs::default(), Suspensions::default());
    let verifier = Verifier::new(world.clone(), Deliverer::new(world.clone(), trust));
    let settings = world.settings();
    let sources = settings.sources.all();
    let mut heard = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        if stderr().is_terminal() {
            whisper(format_args!("\rasking through source {} of {} …\x1b[K", index + 1, sources.len()));
        }
        heard.push(verifier.ask(&settings, &reflectors, source.clone()).await);
    }
    if stderr().is_terminal() {
        whisper(format_args!("\r\x1b[K"));
    }
    match format {
        Format::Text => print(format_args!("{}", table(&heard))),
        Format::Json => say!("{:#}", document(&heard)),
    }
    let unknown: Vec<_> = heard.iter().filter(|heard| heard.is_unknown()).map(|heard| heard.source.public()).collect();
    if !unknown.is_empty() {
        let addresses: Vec<_> = unknown.iter().map(ToString::to_string).collect();
        tell!(
            "egressd: {} of {} sources could not be verified, since no reflector answered with an address: {}",
            unknown.len(),
            heard.len(),
            addresses.join(", ")
        );
    }
    Ok(if heard.iter().any(Heard::differs) { NO } else { OK })
}

/// A line for every source and reflector.
fn table(heard: &[Heard]) -> String {
    let head = ["PUBLIC", "BIND", "REFLECTOR", "SEEN AS", "VERDICT"].map(str::to_owned);
    let mut rows = vec![head];
    for Heard { source, said } in heard {
        for (reflector, said) in said {
            let (seen, verdict) = match said {
                Said::Saw(seen) if *seen == source.public() => (seen.to_string(), "verified".to_owned()),
                Said::Saw(seen) => (seen.to_string(), "DIFFERS".to_owned()),
                Said::Nothing(why) => ("-".to_owned(), format!("unverified: {why}")),
            };
            let [public, bind] = [source.public(), source.bind()].map(|address| address.to_string());
            rows.push([public, bind, reflector.clone(), seen, verdict]);
        }
    }
    columns(&rows)
}

fn document(heard: &[Heard]) -> serde_json::Value {
    let sources = heard.iter().map(|heard| {
        let said = heard.said.iter().map(|(reflector, said)| match said {
            Said::Saw(seen) => json!({"reflector": reflector, "seen": seen.to_string(), "error": null}),
            Said::Nothing(why) => json!({"reflector": reflector, "seen": null, "error": why}),
        });
        json!({
            "public": heard.source.public().to_string(),
            "bind": heard.source.bind().to_string(),
            "pool": &**heard.source.pool(),
            "differs": heard.differs(),
            "reflectors": said.collect::<Vec<_>>(),
        })
    });
    json!({ "sources": sources.collect::<Vec<_>>() })
}
