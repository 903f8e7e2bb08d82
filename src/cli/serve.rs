//! `egressd serve`: the appliance in the foreground. SIGTERM and SIGINT drain, SIGHUP reloads.

use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};

use super::out::tell;
use super::{ERROR, NO, OK, block_on};
use crate::app::{App, Past};
use crate::clock;
use crate::config::Config;
use crate::files;
use crate::telemetry::{self, Logs};

#[derive(clap::Args)]
pub struct Args {
    /// The configuration; `config/egressd.toml` shows every key
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The store is a copy of an earlier moment: all that waits in it ends `interrupted`, and none of it is sent
    #[arg(long)]
    restored: bool,
}

pub fn run(args: Args) -> u8 {
    let config = match Config::load(&args.config, clock::wall()) {
        Ok(config) => config,
        Err(problems) => {
            for problem in &problems {
                tell!("{problem}");
            }
            tell!("egressd: {} with {}: nothing was started", count(problems.len()), args.config.display());
            return ERROR;
        }
    };
    block_on(serve(config, args.config, if args.restored { Past::Restored } else { Past::Own }))
}

fn count(problems: usize) -> String {
    if problems == 1 { "1 problem".to_owned() } else { format!("{problems} problems") }
}

async fn serve(config: Config, file: PathBuf, past: Past) -> anyhow::Result<u8> {
    let logs = telemetry::logs("info");
    let ended = Box::pin(run_until_told(config, file, past, &logs)).await;
    logs.close();
    ended
}

async fn run_until_told(config: Config, file: PathBuf, past: Past, logs: &Logs) -> anyhow::Result<u8> {
    // Before anything can take long, so that no signal gets its default effect.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    if config.delivery.in_flight > files::of_deliveries() {
        tracing::warn!(
            files = files::limit(),
            in_flight = files::of_deliveries(),
            configured = config.delivery.in_flight,
            "this process may open too few files for what is configured: raise LimitNOFILE (ulimit -n), or lower `[delivery] in_flight`"
        );
    }
    for exception in &config.policy.exceptions {
        tracing::warn!(
            networks = ?exception.networks, hosts = ?exception.hosts, destinations = ?exception.destinations, reason = %exception.reason,
            "the policy has an exception"
        );
    }
    let metrics = telemetry::metrics()?;
    let app = tokio::select! {
        started = App::start(config, Some(file), past, metrics) => started,
        _ = terminate.recv() => return Ok(OK),
        _ = interrupt.recv() => return Ok(OK),
    };
    let app = match app {
        Ok(app) => app,
        Err(error) => {
            let code = if error.may_pass() { NO } else { ERROR };
            tell!("egressd: {error}");
            return Ok(code);
        }
    };
    tracing::info!(api = %app.api, metrics = %app.metrics, publish = ?app.publish, "ready");
    notify(&[sd_notify::NotifyState::Ready]);
    let mut watchdog = watchdog();
    let mut minute = tokio::time::interval(telemetry::MINUTE / 4);
    let mut over = false;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            // What is in flight comes to its end; the service manager starts a new life of this node.
            () = app.session_over() => {
                over = true;
                break;
            }
            _ = hangup.recv() => {
                reloading();
                // A refused reload is logged and counted; the appliance goes on as it was.
                let status = match app.reload().await {
                    Ok(()) => String::new(),
                    Err(problems) => format!("the last reload was refused: {}, in the journal", count(problems)),
                };
                notify(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status(&status)]);
            }
            _ = minute.tick() => logs.tell(),
            () = watchdog.tick() => {
                if app.dispatcher_turns() {
                    notify(&[sd_notify::NotifyState::Watchdog]);
                }
            }
        }
    }
    notify(&[sd_notify::NotifyState::Stopping]);
    let clean = app.drain().await;
    Ok(if clean && !over { OK } else { NO })
}

/// Tells the service manager, where there is one.
fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager was not told");
    }
}

fn reloading() {
    match sd_notify::NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[sd_notify::NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "the service manager was not told"),
    }
}

/// Turns at half the time that the service manager allows between two signs of life.
fn watchdog() -> Watchdog {
    let every = sd_notify::watchdog_enabled().map(|allowed| tokio::time::interval(allowed / 2));
    Watchdog(every)
}

struct Watchdog(Option<tokio::time::Interval>);

impl Watchdog {
    async fn tick(&mut self) {
        match &mut self.0 {
            Some(interval) => {
                interval.tick().await;
            }
            None => std::future::pending().await,
        }
    }
}
