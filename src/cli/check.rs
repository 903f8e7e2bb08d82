//! `egressd check`: everything that `serve` would load, and all of its problems at once.
//!
//! Every source is bound, to prove that its address is on this host. Neither the store nor a listener is touched, so
//! it runs beside `serve`.

use std::{io, net::IpAddr, net::SocketAddr, path::PathBuf, process::ExitCode};

use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use socket2::{Domain, Protocol, Socket, Type};

use super::{ERROR, OK};
use crate::clock;
use crate::config::file::{Wrong, wrong};
use crate::config::{Config, Problem};

#[derive(clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

pub fn run(args: Args) -> ExitCode {
    match Config::load_proven(&args.config, clock::wall(), &on_this_host) {
        Ok(config) => {
            let sources = match config.egress.sources.len() {
                1 => "its source is on this host".to_owned(),
                count => format!("its {count} sources are on this host"),
            };
            println!("{} is good: {sources}", args.config.display());
            ExitCode::from(OK)
        }
        Err(problems) => {
            eprint!("{}", told(&problems));
            ExitCode::from(ERROR)
        }
    }
}

/// One line a problem, and how many there are.
pub fn told(problems: &[Problem]) -> String {
    let lines: String = problems.iter().map(|problem| format!("{problem}\n")).collect();
    let count = if problems.len() == 1 { "1 problem".to_owned() } else { format!("{} problems", problems.len()) };
    format!("{lines}{count}\n")
}

/// Binds without taking a port, so that it neither needs nor spoils one.
fn on_this_host(address: IpAddr) -> Result<(), Wrong> {
    let bind = || -> io::Result<()> {
        let socket = Socket::new(Domain::for_address((address, 0).into()), Type::STREAM, Some(Protocol::TCP))?;
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::new(address, 0).into())
    };
    bind().map_err(|cause| match cause.kind() {
        io::ErrorKind::AddrNotAvailable => wrong(
            format!("{address} is not on this host"),
            format!("plumb it (ip address add {address} dev …), or drop the source"),
        ),
        _ => wrong(format!("{address} cannot be bound: {cause}"), "see whether this host can use the address"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_of_this_host_can_be_bound() {
        assert_eq!(on_this_host("127.0.0.77".parse().unwrap()), Ok(()));
        let wrong = on_this_host("192.0.2.1".parse().unwrap()).unwrap_err();
        assert_eq!(wrong.detail, "192.0.2.1 is not on this host");
    }
}
