//! What is said of each way in which a send fails: one table of code, phase and cause, which the record, the API, the
//! log and the page share.
//!
//! Each cause is a row: an arm that names its code and phase beside its words. A message says what was tried, with
//! which values, and what to do next; what is known of the request stands with it
//! ([`Processed`](super::Processed)). Who looks at a name server's answer, a handshake or a connection's end finds a
//! cause and hands over its values; the words are here, and so is the one way to make a [`Failure`]. Values of a peer's
//! are tamed and bounded, and what it sent is not in the words at all ([`super::Said`]).
//!
//! Of the policy's refusals only the way into a record is here ([`UnmadeCause::Denied`]): their codes are its rules,
//! and what of a destination their words may name is part of each rule's decision.

pub mod connect;
pub mod exchange;
pub mod mail;
pub mod name;
pub mod tls;
pub mod unmade;

use std::fmt::{self, Display};
use std::time::Duration;

pub use self::connect::{ConnectCause, Tried};
pub use self::exchange::{ExchangeCause, HowUnended, SoFar};
pub use self::mail::{MailCause, SmtpStep};
pub use self::name::NameCause;
pub use self::tls::TlsCause;
pub use self::unmade::UnmadeCause;
use super::Failure;

/// All of them, by how far the send had come: no cause makes a failure that is not one of these, and each of these has
/// a row in the tests.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cause<'a> {
    /// No receiver had a part in it.
    Unmade(UnmadeCause<'a>),
    Name(NameCause<'a>),
    Connect(ConnectCause),
    Tls(TlsCause<'a>),
    Exchange(ExchangeCause<'a>),
    Mail(MailCause),
}

impl Cause<'_> {
    fn failure(self, host: &str) -> Failure {
        match self {
            Self::Unmade(cause) => cause.row(),
            Self::Name(cause) => cause.row(host),
            Self::Connect(cause) => cause.row(host),
            Self::Tls(cause) => cause.row(host),
            Self::Exchange(cause) => cause.row(host),
            Self::Mail(cause) => cause.row(host),
        }
    }
}

impl UnmadeCause<'_> {
    /// The record has the destination beside it: no host is named once more.
    pub fn failure(self) -> Failure {
        Cause::Unmade(self).failure("")
    }
}

impl NameCause<'_> {
    /// What it makes of a send to `host`, which is as the author wrote it; so for the others.
    pub fn failure(self, host: &str) -> Failure {
        Cause::Name(self).failure(host)
    }
}

impl ConnectCause {
    pub fn failure(self, host: &str) -> Failure {
        Cause::Connect(self).failure(host)
    }
}

impl TlsCause<'_> {
    pub fn failure(self, host: &str) -> Failure {
        Cause::Tls(self).failure(host)
    }
}

impl ExchangeCause<'_> {
    pub fn failure(self, host: &str) -> Failure {
        Cause::Exchange(self).failure(host)
    }
}

impl MailCause {
    /// `host`: the relay.
    pub fn failure(self, host: &str) -> Failure {
        Cause::Mail(self).failure(host)
    }
}

/// How the peer, or the way to it, ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerEnd {
    /// It closed its side.
    Closed,
    /// It reset the connection, or a write found it closed.
    Reset,
    /// The network gave up on it.
    Lost,
}

impl Display for PeerEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed the connection",
            Self::Reset => "reset the connection",
            Self::Lost => "was lost (the network gave up on the connection)",
        })
    }
}

/// `5 s that there are for all of it`
struct Budget(Duration);

impl Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s that there are for all of it", self.0.as_secs_f64())
    }
}

const LET_IN: &str = "and that its firewall lets our published addresses in";
const UNKNOWN: &str =
    "whether the request was handled is not known, and it is not sent again: ask the receiver before you resend";
/// Of a batch, which may be tried again: in the place of [`UNKNOWN`] and [`HANDLED`].
pub(super) const TRIED: &str =
    "whether this try brought the batch there is not known, and another one does no harm: look there before you resend";
/// What follows of the tries before the last.
pub(super) const EARLIER: &str =
    "whether one of the batch's tries brought it there is not known: look there before you resend";
const HANDLED: &str = "the receiver has handled the request: look there before you resend";

#[cfg(test)]
mod tests;
