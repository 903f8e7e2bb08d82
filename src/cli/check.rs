//! `egressd check`: everything that `serve` would load, and all of its problems at once.
//!
//! Every source is bound, to prove that its address is on this host. Neither the store nor a listener is touched, so
//! it runs beside `serve`.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use super::out::{say, tell};
use super::{ERROR, OK};
use crate::api::tls::Acceptor;
use crate::clock;
use crate::config::file::{Wrong, wrong};
use crate::config::{Config, ConfigProblem};
use crate::dial::{Dialer, plumbed};

#[derive(clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

pub fn run(args: Args) -> u8 {
    match load(&args.config) {
        Ok(config) => {
            let sources = match config.egress.sources.len() {
                1 => "its source is on this host".to_owned(),
                count => format!("its {count} sources are on this host"),
            };
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
fn load(file: &Path) -> Result<Config, Vec<ConfigProblem>> {
    let config = Config::load_proven(file, clock::wall(), &on_this_host)?;
    let trust = Dialer::prepare(&config).err().map(|error| ("tls", error.to_string()));
    let api = config.api.tls.as_ref().and_then(|files| Acceptor::load(files).err());
    let api = api.map(|error| ("api.tls", error.to_string()));
    let problems: Vec<_> = [trust, api]
        .into_iter()
        .flatten()
        .map(|(key, detail)| ConfigProblem {
            file: file.to_owned(),
            line: None,
            key: key.to_owned(),
            detail,
            fix: "correct the files that it names".to_owned(),
        })
        .collect();
    if problems.is_empty() { Ok(config) } else { Err(problems) }
}

/// One line a problem, and how many there are, without a newline at the end.
pub fn told(problems: &[ConfigProblem]) -> String {
    let lines: String = problems.iter().map(|problem| format!("{problem}\n")).collect();
    let count = if problems.len() == 1 { "1 problem".to_owned() } else { format!("{} problems", problems.len()) };
    format!("{lines}{count}")
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
