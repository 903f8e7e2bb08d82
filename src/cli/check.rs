//! `egressd check`: everything that `serve` would load, and all of its problems at once.
//!
//! Every source is bound, to prove that its address is on this host, and a tier's database is asked whether it can be
//! relied on. Neither the embedded store nor a listener is touched, and nothing is written, so it runs beside `serve`.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use nix::unistd::AccessFlags;

use super::out::{say, tell};
use super::{ERROR, OK};
use crate::app::stores;
use crate::clock;
use crate::config::file::{Wrong, wrong};
use crate::config::{Config, ConfigProblem, ListenerTls};
use crate::dial::{Dialer, plumbed};
use crate::doors::tls::{Acceptor, Listener};
use crate::source::Sources;

#[derive(clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Look with this user's rights, and whether they suffice for the store: the one that `serve` runs as (needs root)
    #[arg(long, value_name = "USER")]
    as_user: Option<String>,
}

pub fn run(args: Args) -> u8 {
    if let Some(user) = &args.as_user
        && let Err(error) = become_user(user)
    {
        tell!("egressd: --as-user {user}: {error:#}");
        return ERROR;
    }
    match load(&args.config, args.as_user.as_deref()) {
        Ok(config) => {
            let sources = match config.egress.sources.len() {
                1 => "its source is on this host".to_owned(),
                count => format!("its {count} sources are on this host"),
            };
            let now = clock::wall();
            let all = Sources::new(&config.egress, &stores::notice(&config, now), None);
            for line in all.told(now) {
                say!("{line}");
            }
            let without = all.pools_without(now);
            for pool in &without {
                tell!(
                    "{}: pool \"{pool}\" has no source that is usable now: its sends wait until one is, or expire; \
                     see the dates in {}",
                    args.config.display(),
                    config.egress.published_path.display()
                );
            }
            if !without.is_empty() {
                return ERROR;
            }
            say!("{} is good: {sources}", args.config.display());
            OK
        }
        Err(problems) => {
            tell!("{}", told(&problems));
            ERROR
        }
    }
}

/// Everything that `serve` loads before it binds a listener or opens the store.
fn load(file: &Path, user: Option<&str>) -> Result<Config, Vec<ConfigProblem>> {
    let config = Config::load_proven(file, clock::wall(), &on_this_host)?;
    let trust = Dialer::prepare(&config).err().map(|error| ("tls", error.to_string()));
    let unusable =
        |listener, files: Option<&ListenerTls>| files.and_then(|files| Acceptor::load(listener, files).err());
    let api = unusable(Listener::Api, config.api.tls.as_ref()).map(|error| ("api.tls", error.to_string()));
    let publish = config.publish.as_ref().and_then(|publish| publish.tls.as_ref());
    let publish = unusable(Listener::Publish, publish).map(|error| ("publish.tls", error.to_string()));
    let proxy = config.proxy.as_ref().and_then(|proxy| proxy.tls.as_ref());
    let proxy = unusable(Listener::Proxy, proxy).map(|error| ("proxy.tls", error.to_string()));
    let problem = |key: &str, detail: String, fix: String| ConfigProblem {
        file: file.to_owned(),
        line: None,
        key: key.to_owned(),
        detail,
        fix,
    };
    let loaded = [trust, api, publish, proxy].into_iter().flatten();
    let mut problems: Vec<_> =
        loaded.map(|(key, detail)| problem(key, detail, "correct the files that it names".to_owned())).collect();
    for (key, error) in stores::hindrances(&config) {
        problems.push(problem(key, error.to_string(), "mend it before `serve` is started".to_owned()));
    }
    match database(&config) {
        Ok(told) => told.iter().for_each(|line| tell!("{}: {line}", file.display())),
        Err(detail) => problems.push(problem("store", detail, "see `[store]` in the README".to_owned())),
    }
    if let Some(user) = user {
        let key = ("store.key_file", &config.store.key_file, false);
        let path = config.store.postgres.is_none().then_some(("store.path", &config.store.path, true));
        for (key, path, directory) in path.into_iter().chain([key]) {
            if let Some(denied) = denied(path, directory) {
                let fix = format!("give it to {user} (chown {user} {})", denied.display());
                problems.push(problem(key, format!("{user} may not use {}", denied.display()), fix));
            }
        }
    }
    if problems.is_empty() { Ok(config) } else { Err(problems) }
}

/// Whether a tier's database can be relied on. Nothing in it is changed.
fn database(config: &Config) -> Result<Vec<String>, String> {
    super::runtime()?.block_on(stores::check(config)).map_err(|error| error.to_string())
}

/// One line a problem, and how many there are, without a newline at the end.
pub fn told(problems: &[ConfigProblem]) -> String {
    let lines: String = problems.iter().map(|problem| format!("{problem}\n")).collect();
    let count = if problems.len() == 1 { "1 problem".to_owned() } else { format!("{} problems", problems.len()) };
    format!("{lines}{count}")
}

/// What keeps this user from a path of the store's: it, or where it would be made.
fn denied(path: &Path, directory: bool) -> Option<PathBuf> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let there = path.ancestors().find(|path| path.exists())?;
    let rights = match there == path {
        true if !directory => AccessFlags::R_OK,
        _ => AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK,
    };
    nix::unistd::access(there, rights).is_err().then(|| there.to_owned())
}

/// Gives this process' rights up for those of a user, its groups included.
fn become_user(name: &str) -> anyhow::Result<()> {
    let user = nix::unistd::User::from_name(name)?.context("there is no such user on this host")?;
    if nix::unistd::geteuid() == user.uid {
        return Ok(());
    }
    let groups = nix::unistd::initgroups(&std::ffi::CString::new(name)?, user.gid);
    groups.context("only root can look with another user's rights")?;
    nix::unistd::setgid(user.gid)?;
    nix::unistd::setuid(user.uid)?;
    Ok(())
}

fn on_this_host(address: IpAddr) -> Result<(), Wrong> {
    match plumbed::is_on_host(address) {
        Ok(true) => Ok(()),
        Ok(false) => Err(wrong(
            format!("{address} is not on this host"),
            format!("plumb it (ip address add {address} dev …), or drop the source"),
        )),
        Err(cause) => {
            Err(wrong(format!("{address} cannot be bound: {cause}"), "see whether this host can use the address"))
        }
    }
}
