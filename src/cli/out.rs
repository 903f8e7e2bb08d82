//! What commands print. A reader that is gone (`egressd ips | head -1`) is an end like any other: nothing more is
//! written, and the command ends as it would have, without a word. `println!` panics there.
//!
//! Anything else that keeps output from being written (a full disk) is told, and is an error of the command.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::OnceLock;

use tokio::io::Interest;
use tokio::net::unix::pipe::Sender;

use super::ERROR;

/// Prints to stdout, with a newline.
macro_rules! say {
    ($($what:tt)*) => { $crate::cli::out::print(format_args!("{}\n", format_args!($($what)*))) };
}

/// Tells on stderr, with a newline: what is not the answer that was asked for.
macro_rules! tell {
    ($($what:tt)*) => { $crate::cli::out::whisper(format_args!("{}\n", format_args!($($what)*))) };
}

pub(crate) use {say, tell};

/// Why nothing more is written to stdout.
static ENDED: OnceLock<ErrorKind> = OnceLock::new();

/// To stdout, as it is; seen at once.
pub fn print(text: Arguments<'_>) {
    if ENDED.get().is_some() {
        return;
    }
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = stdout.write_fmt(text).and_then(|()| stdout.flush())
        && ENDED.set(error.kind()).is_ok()
        && error.kind() != ErrorKind::BrokenPipe
    {
        tell!("egressd: what this prints cannot be written: {error}");
    }
}

/// To stderr, as it is. Where that cannot be written there is nobody to tell it to.
pub fn whisper(text: Arguments<'_>) {
    let _ = std::io::stderr().lock().write_fmt(text);
}

/// The exit code: the command's own, unless its output was lost otherwise than by a reader who had seen enough.
pub fn exit(code: u8) -> ExitCode {
    match ENDED.get() {
        None | Some(ErrorKind::BrokenPipe) => ExitCode::from(code),
        Some(_) => ExitCode::from(ERROR),
    }
}

/// Ready once nobody reads stdout any more: for commands that go on until they are stopped. Never for a file.
pub async fn reader_gone() {
    let gone = async {
        // A copy to be waited on: unchecked, since the checked way would turn the pipe itself non-blocking.
        let pipe = Sender::from_owned_fd_unchecked(std::io::stdout().as_fd().try_clone_to_owned()?)?;
        loop {
            let ready = pipe.ready(Interest::ERROR).await?;
            if ready.is_error() || ready.is_write_closed() {
                return Ok(());
            }
        }
    };
    // What cannot be waited on (a file) does not go away.
    let gone: std::io::Result<()> = gone.await;
    if gone.is_err() {
        std::future::pending::<()>().await;
    }
}
