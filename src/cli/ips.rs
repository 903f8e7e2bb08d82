//! `egressd ips`: the published addresses, as `/public-ips.txt` and `/public-ips.json` list them.
//!
//! Read from the file alone, so that it says what a node that serves it now would say once its notices are given.

use std::{path::PathBuf, process::ExitCode, time::UNIX_EPOCH};

use super::{ERROR, OK, check::told};
use crate::clock;
use crate::config::check::published;
use crate::publish::Notice;

#[derive(clap::Args)]
pub struct Args {
    /// The configuration file that names the published addresses
    #[arg(long, value_name = "FILE", default_value = "/etc/egressd/egressd.toml")]
    config: PathBuf,
    /// How to print them
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    /// One address a line
    Text,
    /// With the status and the dates of each, in the shape of Google's list
    Json,
}

pub fn run(args: Args) -> ExitCode {
    let now = clock::wall();
    let (path, list) = match published(&args.config, now) {
        Ok(found) => found,
        Err(problems) => {
            eprint!("{}", told(&problems));
            return ExitCode::from(ERROR);
        }
    };
    let notice = Notice::given();
    match args.format {
        Format::Text => print!("{}", list.text(&notice, now)),
        Format::Json => print!("{}", list.json(&notice, modified(&path), now)),
    }
    ExitCode::from(OK)
}

/// The second at which the file was last written stands for the token: the one that is served is in the store.
fn modified(path: &std::path::Path) -> u64 {
    let time = std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |age| age.as_secs())
}
