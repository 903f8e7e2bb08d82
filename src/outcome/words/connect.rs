//! Of connecting: no source, no answer, a refusal. Nothing of a request has left.

use std::fmt::{self, Display};
use std::net::IpAddr;
use std::time::Duration;

use super::super::{Code, Failure, Phase};
use super::{Budget, LET_IN};

/// `from`: the published address that we left from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectCause {
    /// Every source of the family that it would take is out.
    NoSourceOfFamily,
    /// Those that there are could not be left from.
    NoSource {
        port: u16,
    },
    NoPort {
        port: u16,
    },
    /// No connect was answered in time.
    Silent {
        total: Duration,
        port: u16,
        from: Option<IpAddr>,
        tried: Tried,
    },
    Refused {
        port: u16,
        from: Option<IpAddr>,
        tried: Tried,
    },
    Reset {
        port: u16,
        from: Option<IpAddr>,
        tried: Tried,
    },
    Unreachable {
        port: u16,
        from: Option<IpAddr>,
        tried: Tried,
    },
    NetworkUnreachable {
        port: u16,
        tried: Tried,
    },
    LedElsewhere {
        port: u16,
    },
    /// An address that had passed for another tenant or destination.
    JudgedForAnother {
        port: u16,
    },
    NoSocket {
        port: u16,
    },
}

/// How the addresses of a host met a connect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tried {
    pub refused: usize,
    pub unreachable: usize,
    pub silent: usize,
}

impl ConnectCause {
    pub(super) fn row(self, host: &str) -> Failure {
        let row = |code, message| Failure::new(code, Phase::Connect, message);
        match self {
            Self::NoSourceOfFamily => row(
                Code::SourceUnavailable,
                format!(
                    "{host} has addresses, and no source address that may be used now is of their family; tell the operator, or resend later"
                ),
            ),
            Self::NoSource { port } => row(
                Code::SourceUnavailable,
                format!(
                    "no source address of this node could be used towards {host}:{port}; tell the operator, or resend later"
                ),
            ),
            Self::NoPort { port } => row(
                Code::SourcePortsExhausted,
                format!(
                    "every source address of this node has all its ports in use towards {host}:{port}; send to it less at once, or resend later"
                ),
            ),
            Self::Silent { total, port, from, tried } => row(
                Code::Timeout,
                format!(
                    "{host}:{port} answered no connect{}{} within the {}: packets are dropped on the way, as a firewall does that does not know our addresses; check address and port, {LET_IN}",
                    From(from),
                    of(tried),
                    Budget(total)
                ),
            ),
            Self::Refused { port, from, tried } => row(
                Code::ConnectionRefused,
                format!(
                    "{host}:{port} refused the connection{}{}; check that the receiver runs and listens on this port, {LET_IN}",
                    From(from),
                    of(tried)
                ),
            ),
            Self::Reset { port, from, tried } => row(
                Code::ConnectionReset,
                format!(
                    "{host}:{port} reset the connection while it was made{}{}; check the receiver and what stands before it, {LET_IN}",
                    From(from),
                    of(tried)
                ),
            ),
            Self::Unreachable { port, from, tried } => row(
                Code::HostUnreachable,
                format!("{host}:{port} cannot be reached{}{}; check its address {LET_IN}", From(from), of(tried)),
            ),
            Self::NetworkUnreachable { port, tried } => row(
                Code::NetworkUnreachable,
                format!(
                    "there is no route to the network of {host}:{port}{}; check the address that its name resolves to",
                    of(tried)
                ),
            ),
            Self::LedElsewhere { port } => row(
                Code::Internal,
                format!("the connection to {host}:{port} led somewhere else and was closed unused; tell the operator"),
            ),
            Self::JudgedForAnother { port } => row(
                Code::Internal,
                format!(
                    "an address that was judged for something else was to be dialled for {host}:{port}, and was not; tell the operator"
                ),
            ),
            Self::NoSocket { port } => row(
                Code::Internal,
                format!("this node could not open a connection to {host}:{port}; resend later, and tell the operator"),
            ),
        }
    }
}

impl Tried {
    fn all(self) -> usize {
        self.refused + self.unreachable + self.silent
    }
}

impl Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = false;
        for (count, what) in [
            (self.silent, "did not answer"),
            (self.refused, "refused the connection"),
            (self.unreachable, "could not be reached"),
        ] {
            if count > 0 {
                let and = if said { ", " } else { "" };
                write!(f, "{and}{count} {what}")?;
                said = true;
            }
        }
        Ok(())
    }
}

/// ` from 198.51.100.10`
struct From(Option<IpAddr>);

impl Display for From {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |from| write!(f, " from {from}"))
    }
}

fn of(tried: Tried) -> String {
    if tried.all() < 2 { String::new() } else { format!(" (of {} addresses {tried})", tried.all()) }
}
