//! The command line: arguments → command → exit code. One file a command.

pub mod bin;
pub mod check;
pub mod client;
pub mod demo;
pub mod explain;
pub mod ips;
pub mod operate;
pub mod out;
pub mod send;
pub mod serve;
pub mod show;
pub mod tail;

use std::future::Future;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::out::tell;

/// What the command was asked for ended well.
pub const OK: u8 = 0;
/// It ran, and the answer is no.
pub const NO: u8 = 1;
/// It could not do its work: bad arguments, bad configuration, no connection.
pub const ERROR: u8 = 2;

#[derive(Parser)]
#[command(
    name = "egressd",
    version = concat!(env!("CARGO_PKG_VERSION"), " (", env!("EGRESSD_COMMIT"), ")"),
    about = "Makes deferred HTTP requests: once, from published source addresses, within five seconds",
    after_help = "Try it: `egressd demo` runs the whole thing on loopback with nothing to set up."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the appliance in the foreground; SIGTERM drains, SIGHUP reloads
    Serve(serve::Args),
    /// Run the whole thing on loopback with no set-up, and sample sends through it
    Demo(demo::Args),
    /// Everything wrong with a configuration, at once
    Check(check::Args),
    /// The published addresses
    Ips(ips::Args),
    /// Say whether the policy would allow a send, and why; sends nothing
    Explain(explain::Args),
    /// Submit one send through the API
    Send(send::Args),
    /// Follow finished sends, one line each
    Tail(tail::Args),
    /// A request bin: answers 200 and shows every request with the address it came from
    Bin(bin::Args),
    /// Stop a tenant, one workflow of it, or every tenant's sends to a host; at once
    Suspend(operate::SuspendArgs),
    /// Lift a suspension
    Lift(operate::LiftArgs),
    /// The suspensions in force
    Suspensions(operate::SuspensionsArgs),
    /// What each tenant has waiting and under way, and how its sends of the last hour ended
    Tenants(operate::TenantsArgs),
    /// The nodes that share a store: how fresh each one's lease is, its sources, and what it has taken on
    Nodes(operate::NodesArgs),
}

/// Runs what the process' arguments say.
pub fn main() -> ExitCode {
    // rustls wants one provider for the process; every configuration of ours names it as well.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    no_core_dumps();
    if let Err(error) = crate::files::raise() {
        tell!("egressd: the limit of open files could not be raised: {error}");
    }
    let code = match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Check(args) => check::run(args),
        Command::Ips(args) => ips::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Send(args) => send::run(args),
        Command::Tail(args) => tail::run(args),
        Command::Bin(args) => bin::run(args),
        Command::Suspend(args) => operate::suspend(args),
        Command::Lift(args) => operate::lift(args),
        Command::Suspensions(args) => operate::suspensions(args),
        Command::Tenants(args) => operate::tenants(args),
        Command::Nodes(args) => operate::nodes(args),
    };
    out::exit(code)
}

/// What this process holds in memory (bodies, credentials, keys) is not written out when it crashes, wherever the host
/// sends core dumps: the limit alone does not stop a handler that the kernel pipes them to (core(5), prctl(2)).
fn no_core_dumps() {
    let undumpable = nix::sys::prctl::set_dumpable(false);
    let unlimited = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
    if let Err(error) = undumpable.and(unlimited) {
        tell!("egressd: core dumps could not be turned off: {error}");
    }
}

/// One for a command that has little to wait for.
fn runtime() -> Result<tokio::runtime::Runtime, String> {
    let made = tokio::runtime::Builder::new_current_thread().enable_all().build();
    made.map_err(|error| format!("this process cannot start its threads: {error}"))
}

/// Runs a command's work on a runtime of its own. An error is printed with its causes and exits with [`ERROR`].
pub fn block_on(work: impl Future<Output = anyhow::Result<u8>>) -> u8 {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tell!("egressd: this process cannot start its threads: {error}");
            return ERROR;
        }
    };
    let code = match runtime.block_on(work) {
        Ok(code) => code,
        Err(error) => {
            tell!("egressd: {error:#}");
            ERROR
        }
    };
    // A blocked reader of stdin or a slow disk must not hold the exit up.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    code
}

/// Ready when the process is asked to stop.
pub async fn stop_signal() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
