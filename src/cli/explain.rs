//! `egressd explain`: whether the policy would allow a send, which rule decides, what the name resolves to, and which
//! source would be used. Sends nothing.
//!
//! Judges by a configuration of its own, beside any appliance that runs; suspensions, which an appliance's store
//! remembers, are the API's `/v1/explain` to tell.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::bail;

use super::show::Style;
use super::{ERROR, NO, OK, block_on, check::told};
use crate::api::explain::ExplanationView;
use crate::api::view::Sight;
use crate::app::ours;
use crate::clock;
use crate::config::Config;
use crate::deliver::Deliverer;
use crate::dial::Dialer;
use crate::explain::{Explainer, Explanation};
use crate::policy::{Asker, Suspensions};
use crate::publish::Notice;
use crate::redact::RedactKey;
use crate::send::{Method, TenantId};
use crate::world::World;

#[derive(clap::Args)]
pub struct Args {
    /// GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS
    method: String,
    /// What the send's `url` would say
    url: String,
    /// The configuration to judge by
    #[arg(long, value_name = "FILE", default_value = "/etc/egressd/egressd.toml")]
    config: PathBuf,
    /// Whose send it would be
    #[arg(long, value_name = "TENANT", default_value = "default")]
    tenant: String,
    /// Print JSON, as `POST /v1/explain` answers
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> ExitCode {
    let config = match Config::load(&args.config, clock::wall()) {
        Ok(config) => Arc::new(config),
        Err(problems) => {
            eprint!("{}", told(&problems));
            return ExitCode::from(ERROR);
        }
    };
    block_on(explain(args, config))
}

async fn explain(args: Args, config: Arc<Config>) -> anyhow::Result<u8> {
    let Some(method) = Method::from_label(&args.method) else {
        let known: Vec<&str> = Method::ALL.iter().map(|method| method.label()).collect();
        bail!("{} is not a method that a send may use: write one of {}", args.method, known.join(", "));
    };
    let listeners: Vec<_> =
        [Some(config.api.listen), Some(config.metrics_listen), config.publish_listen].into_iter().flatten().collect();
    let ours = ours::look(&config, &listeners);
    let world = World::new(config.clone(), &Notice::given(), ours, Suspensions::default());
    let deliverer = Deliverer::new(world.clone(), Dialer::prepare(&config)?);
    // Equal secrets need not look equal from one run to the next.
    let key = RedactKey::new(uuid::Uuid::now_v7().as_bytes());
    let tenant = TenantId::new(args.tenant);
    let asker = Asker { tenant: &tenant, workflow: None };
    let explanation = Explainer::new(world, deliverer, key).explain(asker, method, &args.url).await;
    if args.json {
        let view = ExplanationView::new(&tenant, &explanation, Sight { operate: true, bodies: false });
        println!("{}", serde_json::to_string_pretty(&view)?);
    } else {
        print(&explanation, Style::of_stdout());
    }
    Ok(if explanation.allowed() { OK } else { NO })
}

fn print(explanation: &Explanation, style: Style) {
    let field = |name: &str, value: &str| println!("  {} {value}", style.dim(&format!("{name:<10}")));
    let verdict = if explanation.allowed() { "allowed" } else { "not allowed" };
    println!("{}: {} {}", style.bold(verdict), explanation.method, super::show::clean(&explanation.url, 200));
    if let Some(refusal) = &explanation.refusal {
        field("rule", refusal.code.label());
        field("why", &refusal.message);
    }
    if let Some(code) = explanation.would_block {
        field("report", &format!("{code} would block it if the policy's mode were \"enforce\""));
    }
    for (address, verdict) in &explanation.resolved {
        field("resolves", &format!("{address} {}", verdict.label()));
    }
    if let Some(source) = &explanation.source {
        field("source", &format!("{} (bound as {}, pool {})", source.public(), source.bind(), source.pool()));
    }
}
