//! `egressd suspend`, `lift`, `suspensions`, `tenants` and `nodes`: what an operator asks a running node for, each with how much
//! it concerns.

use anyhow::Context as _;
use http::Method;
use serde_json::{Value, json};

use super::client::{ApiArgs, ApiClient};
use super::out::{print, say, tell};
use super::show::{clean, columns};
use super::{OK, block_on};

#[derive(clap::Args)]
pub struct SuspendArgs {
    #[command(subcommand)]
    whom: Suspend,
}

#[derive(clap::Subcommand)]
enum Suspend {
    /// A tenant, or one workflow of it: what waits ends `blocked`, and its calls get 403
    Tenant {
        /// Its id, as its workflow nodes give it
        id: String,
        /// Only the sends whose context names this workflow
        #[arg(long, value_name = "W")]
        workflow: Option<String>,
        #[command(flatten)]
        how: How,
    },
    /// Every tenant's sends to a host: they end `blocked`
    Host {
        /// A name, `*.name`, an address or a network
        host: String,
        #[command(flatten)]
        how: How,
    },
}

#[derive(clap::Args)]
struct How {
    /// Why, for whoever looks at it later
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    ask: Ask,
}

/// Common to all of them.
#[derive(clap::Args)]
struct Ask {
    /// Print JSON, as the API answers
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(clap::Args)]
pub struct LiftArgs {
    /// The suspension's id: `egressd suspensions` lists them
    id: String,
    #[command(flatten)]
    ask: Ask,
}

#[derive(clap::Args)]
pub struct SuspensionsArgs {
    /// Those that were lifted, too
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    ask: Ask,
}

#[derive(clap::Args)]
pub struct TenantsArgs {
    #[command(flatten)]
    ask: Ask,
}

#[derive(clap::Args)]
pub struct NodesArgs {
    #[command(flatten)]
    ask: Ask,
}

pub fn suspend(args: SuspendArgs) -> u8 {
    let (call, how) = match args.whom {
        Suspend::Tenant { id, workflow, how } => {
            (json!({ "tenant": id, "workflow": workflow, "reason": how.reason }), how)
        }
        Suspend::Host { host, how } => (json!({ "host": host, "reason": how.reason }), how),
    };
    block_on(async move {
        let client = ApiClient::new(&how.ask.api)?;
        let made = client.json(Method::POST, "/v1/suspensions", Some(serde_json::to_vec(&call)?)).await?;
        if let Some(warning) = made.get("warning").and_then(Value::as_str) {
            tell!("egressd: {}", clean(warning, 500));
        }
        if how.ask.json {
            say!("{made:#}");
        } else {
            let hit = made.get("hit").and_then(Value::as_u64).context("the API's answer has no count")?;
            say!("suspended: {}", text(&made, "covers"));
            say!("  {}", counted(hit, "send that waited has ended", "sends that waited have ended"));
            say!("  lift it with: egressd lift {}", text(&made, "id"));
        }
        Ok(OK)
    })
}

pub fn lift(args: LiftArgs) -> u8 {
    block_on(async move {
        let client = ApiClient::new(&args.ask.api)?;
        // What it covered is told; whoever may lift may list.
        let known = client.json(Method::GET, "/v1/suspensions", None).await?;
        let id = url::form_urlencoded::byte_serialize(args.id.as_bytes()).collect::<String>();
        client.call(Method::DELETE, &format!("/v1/suspensions/{id}"), None, &[]).await?;
        let lifted = list(&known, "suspensions").iter().find(|one| text(one, "id") == args.id);
        match lifted {
            _ if args.ask.json => {
                say!("{:#}", json!({ "id": args.id, "covered": lifted.map(|one| text(one, "covers")) }))
            }
            None => say!("lifted: {}", args.id),
            Some(one) => {
                say!("lifted: {}", text(one, "covers"));
                say!("  in force since {}, by {}: {}", second(&text(one, "at")), text(one, "by"), text(one, "reason"));
                say!("  what ended `blocked` meanwhile stays so: its authors can resend it");
            }
        }
        Ok(OK)
    })
}

pub fn suspensions(args: SuspensionsArgs) -> u8 {
    block_on(async move {
        let answer = ApiClient::new(&args.ask.api)?.json(Method::GET, "/v1/suspensions", None).await?;
        let in_force = |one: &&Value| one.get("lifted_at").is_none_or(Value::is_null);
        let shown: Vec<&Value> = list(&answer, "suspensions").iter().filter(|one| args.all || in_force(one)).collect();
        if args.ask.json {
            say!("{:#}", json!({ "suspensions": shown }));
            return Ok(OK);
        }
        let head = ["ID", "SINCE", "BY", "REASON", "COVERS"].map(str::to_owned);
        let rows = shown.iter().map(|one| {
            let covers = match one.get("lifted_at").and_then(Value::as_str) {
                None => text(one, "covers"),
                Some(at) => format!("(lifted {} by {}) {}", second(at), text(one, "lifted_by"), text(one, "covers")),
            };
            [text(one, "id"), second(&text(one, "at")), text(one, "by"), text(one, "reason"), covers]
        });
        print(format_args!("{}", columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>())));
        if shown.is_empty() {
            tell!("none is in force");
        }
        Ok(OK)
    })
}

pub fn tenants(args: TenantsArgs) -> u8 {
    block_on(async move {
        let answer = ApiClient::new(&args.ask.api)?.json(Method::GET, "/v1/tenants", None).await?;
        if args.ask.json {
            say!("{answer:#}");
            return Ok(OK);
        }
        let mut tenants: Vec<&Value> = list(&answer, "tenants").iter().collect();
        let count = |tenant: &Value, pointer: &str| tenant.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
        // Who is noisy stands first.
        tenants.sort_by_key(|tenant| {
            std::cmp::Reverse(["/held", "/queued", "/in_flight"].map(|at| count(tenant, at)).iter().sum::<u64>())
        });
        let head =
            ["TENANT", "HELD", "QUEUED", "IN FLIGHT", "OLDEST QUEUED", "ENDED WITHIN THE HOUR"].map(str::to_owned);
        let rows = tenants.iter().map(|tenant| {
            let finished = tenant.get("finished").and_then(Value::as_object).into_iter().flatten();
            let ended = finished.filter(|(_, count)| count.as_u64() != Some(0));
            let ended: Vec<String> = ended.map(|(outcome, count)| format!("{} {count}", clean(outcome, 40))).collect();
            let [held, queued, in_flight] = ["/held", "/queued", "/in_flight"].map(|at| count(tenant, at).to_string());
            let ended = if ended.is_empty() { "none".to_owned() } else { ended.join(", ") };
            [text(tenant, "tenant"), held, queued, in_flight, second(&text(tenant, "oldest_queued")), ended]
        });
        print(format_args!("{}", columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>())));
        if tenants.is_empty() {
            tell!("no tenant has anything waiting, under way or ended within the hour");
        }
        Ok(OK)
    })
}

pub fn nodes(args: NodesArgs) -> u8 {
    block_on(async move {
        let answer = ApiClient::new(&args.ask.api)?.json(Method::GET, "/v1/nodes", None).await?;
        if args.ask.json {
            say!("{answer:#}");
            return Ok(OK);
        }
        let number = |of: &Value, key: &str| of.get(key).and_then(Value::as_u64);
        let shown = |count: Option<u64>| count.map_or("-".to_owned(), |count| count.to_string());
        let head = ["NODE", "VERSION", "LEASE RENEWED", "QUEUED", "IN FLIGHT", "SENDS FROM"].map(str::to_owned);
        let rows = list(&answer, "nodes").iter().map(|node| {
            let lease = match (number(node, "lease_age_ms"), number(node, "lease_ms")) {
                (Some(age), Some(whole)) if age > whole => format!("{} ms ago: it is over", age),
                (Some(age), _) => format!("{age} ms ago"),
                _ => "alone".to_owned(),
            };
            let sources = list(node, "sources").iter().filter_map(Value::as_str).map(|ip| clean(ip, 50));
            let sources: Vec<String> = sources.collect();
            let counts = ["queued", "in_flight"].map(|key| shown(number(node, key)));
            let [queued, in_flight] = counts;
            [text(node, "node"), text(node, "version"), lease, queued, in_flight, sources.join(", ")]
        });
        print(format_args!("{}", columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>())));
        say!("in all {} queued, {} held", shown(number(&answer, "queued")), shown(number(&answer, "held")));
        Ok(OK)
    })
}

fn list<'a>(answer: &'a Value, key: &str) -> &'a [Value] {
    answer.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value, key: &str) -> String {
    clean(value.get(key).and_then(Value::as_str).unwrap_or("-"), 300)
}

/// An instant as the API writes it, to the second.
fn second(instant: &str) -> String {
    let at: Option<jiff::Timestamp> = instant.parse().ok();
    at.map_or_else(|| clean(instant, 40), |at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}
