//! `egressd bin`: a request bin in the foreground.

use std::net::SocketAddr;

use anyhow::Context as _;

use super::out::say;
use super::{OK, block_on};
use crate::request_bin::RequestBin;

#[derive(clap::Args)]
pub struct Args {
    /// Where to listen
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
}

pub fn run(args: Args) -> u8 {
    block_on(async move {
        let listener = crate::doors::open(args.listen).with_context(|| {
            format!("--listen {} cannot be bound: choose an address of this host and a free port", args.listen)
        })?;
        say!("listening on http://{}", listener.local_addr()?);
        let bin = RequestBin::printing(|line| say!("{line}"));
        tokio::select! {
            served = bin.serve(listener) => served?,
            stopped = super::stop_signal() => stopped?,
        }
        Ok(OK)
    })
}
