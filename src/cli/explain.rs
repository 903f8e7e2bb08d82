//! `egressd explain`: whether the policy would allow a send, which rule decides, what the name resolves to, and which
//! source would be used. Sends nothing.
//!
//! Asks the appliance that runs, or judges by a configuration of its own beside it. Suspensions, and what the reflectors
//! have seen, only a running appliance knows.

use std::path::Path;
use std::sync::Arc;

use anyhow::bail;
use serde_json::{Value, json};

use super::client::{ApiClient, Whom};
use super::out::{say, tell};
use super::show::{Style, clean};
use super::{ERROR, NO, OK, block_on, check::told};
use crate::api::explain::ExplanationView;
use crate::api::view::Sight;
use crate::app::{ours, stores};
use crate::clock;
use crate::config::Config;
use crate::deliver::Deliverer;
use crate::dial::Dialer;
use crate::explain::Explainer;
use crate::policy::{Asker, Suspensions};
use crate::redact::RedactKey;
use crate::send::{Explained, TenantId};
use crate::world::World;

#[derive(clap::Args)]
pub struct Args {
    /// GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS of a send; CONNECT: a tunnel through the forward proxy
    method: String,
    /// What the send's `url` would say; of a tunnel HOST:PORT
    url: String,
    #[command(flatten)]
    whom: Whom,
    /// Print JSON, as `POST /v1/explain` answers
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> u8 {
    let Some(file) = args.whom.file() else { return block_on(by_the_node(args)) };
    match Config::load(&file, clock::wall()) {
        Ok(config) => block_on(by_a_file(args, Arc::new(config), &file)),
        Err(problems) => {
            tell!("{}", told(&problems));
            ERROR
        }
    }
}

async fn by_the_node(args: Args) -> anyhow::Result<u8> {
    let client = ApiClient::new(&args.whom.api)?;
    let call = serde_json::to_vec(&json!({ "method": args.method, "url": args.url }))?;
    let explanation = client.json(http::Method::POST, "/v1/explain", Some(call)).await?;
    shown(&explanation, &args)
}

async fn by_a_file(args: Args, config: Arc<Config>, file: &Path) -> anyhow::Result<u8> {
    let Some(method) = Explained::from_label(&args.method) else {
        let known: Vec<&str> = Explained::labels().collect();
        bail!("{} is not a method that a send may use, nor a tunnel: write one of {}", args.method, known.join(", "));
    };
    let publish = config.publish.as_ref().map(|publish| publish.listen);
    let proxy = config.proxy.as_ref().map(|proxy| proxy.listen);
    let listeners: Vec<_> =
        [config.api.listen, config.metrics_listen].into_iter().chain(publish).chain(proxy).collect();
    let ours = ours::look(&config, &listeners);
    let world = World::new(config.clone(), &stores::notice(&config, clock::wall()), ours, Suspensions::default());
    let deliverer = Deliverer::new(world.clone(), Dialer::prepare(&config)?);
    // Equal secrets need not look equal from one run to the next.
    let key = RedactKey::new(uuid::Uuid::now_v7().as_bytes());
    let tenant = TenantId::new(args.whom.api.tenant.as_deref().unwrap_or("default"));
    let asker = Asker { tenant: &tenant, workflow: None };
    let explanation = Explainer::new(world, deliverer, key).explain(asker, method, &args.url).await;
    let view = ExplanationView::new(&tenant, &explanation, Sight { operate: true, bodies: false });
    if !args.json && std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        tell!("judged by {}, without suspensions: those a running node knows (--api URL)", file.display());
    }
    shown(&serde_json::to_value(&view)?, &args)
}

/// Prints an explanation as the API writes it; the exit code is its verdict.
fn shown(explanation: &Value, args: &Args) -> anyhow::Result<u8> {
    let text = |key: &str| explanation.get(key).and_then(Value::as_str);
    let allowed = match text("verdict") {
        Some("allowed") => true,
        Some(_) => false,
        None => bail!("the answer has no verdict: is this an egressd?"),
    };
    if args.json {
        say!("{explanation:#}");
    } else {
        print(explanation, allowed, Style::of_stdout());
    }
    Ok(if allowed { OK } else { NO })
}

fn print(explanation: &Value, allowed: bool, style: Style) {
    let text = |key: &str| explanation.get(key).and_then(Value::as_str);
    let field = |name: &str, value: &str| say!("  {} {}", style.dim(&format!("{name:<10}")), clean(value, 1024));
    let verdict = if allowed { "allowed" } else { "not allowed" };
    let [method, url] = ["method", "url"].map(|key| text(key).unwrap_or("-"));
    say!("{}: {} {}", style.bold(verdict), clean(method, 20), clean(url, 200));
    for (name, key) in [("rule", "code"), ("why", "message")] {
        if let Some(value) = text(key) {
            field(name, value);
        }
    }
    if let Some(code) = text("would_block") {
        field("report", &format!("{code} would block it if the policy's mode were \"enforce\""));
    }
    for address in explanation.get("resolved").and_then(Value::as_array).into_iter().flatten() {
        let part = |key: &str| address.get(key).and_then(Value::as_str);
        field(
            "resolves",
            &format!("{} {}", part("ip").unwrap_or("(an internal address)"), part("verdict").unwrap_or("-")),
        );
    }
    match (text("public_ip"), text("source_ip")) {
        (Some(public), Some(bind)) if public != bind => field("source", &format!("{public} (bound as {bind})")),
        (Some(public), _) => field("source", public),
        (None, _) => {}
    }
}
