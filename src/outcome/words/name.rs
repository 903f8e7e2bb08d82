//! Of looking a name up: what the name servers said, or did instead.
//!
//! Name servers are named with their addresses. Who may not see an address of ours is shown the message without it:
//! that is the API's ([`crate::policy::without_internal_addresses`]).

use std::fmt::{self, Display};
use std::net::SocketAddr;
use std::time::Duration;

use super::super::{Code, Failure, Phase};
use super::Budget;

/// `target`: the last name that the asked one is an alias of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameCause<'a> {
    /// DNS cannot hold it.
    NoName,
    Gone {
        target: Option<&'a str>,
    },
    /// It exists, without an address of a family that was asked for.
    Empty {
        target: Option<&'a str>,
        with_v6: bool,
    },
    TooManyAliases {
        most: usize,
    },
    /// No server gave a usable answer, twice.
    Failed {
        faults: &'a [Fault],
    },
    /// They were asked until the time was over.
    OutOfTime {
        total: Duration,
        faults: &'a [Fault],
    },
    /// It was never asked for.
    NoTurn {
        total: Duration,
        at_once: usize,
        of_domain: usize,
    },
    /// It has addresses, and no source is of their family.
    OutOfReach,
    /// A reflector without an address of the family of the source that is being verified.
    NotOfThisSource,
}

/// A name server that did not do what it should. `about`: of which kind of records alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub server: SocketAddr,
    pub what: Unanswered,
    pub about: Option<&'static str>,
}

/// What a name server did in place of a usable answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unanswered {
    Silent,
    /// A response code (IANA, DNS RCODEs), the extended part of EDNS included.
    Refusal(u16),
    Lame,
    Garbage,
    Truncated,
    Unreachable,
}

const OTHER_NAMES: &str = "or resend later (where other names fail too, tell the operator)";

impl NameCause<'_> {
    pub(super) fn row(self, host: &str) -> Failure {
        let row = |code, message| Failure::new(code, Phase::Dns, message);
        match self {
            Self::NoName => row(
                Code::DnsNotFound,
                format!(
                    "{host} cannot be asked of a name server: DNS holds names of at most 253 characters, in labels of 1 to 63; check the URL"
                ),
            ),
            Self::Gone { target: None } => row(
                Code::DnsNotFound,
                format!(
                    "there is no such name as {host} (the name servers answered NXDOMAIN); check its spelling, and that it is published in the public DNS"
                ),
            ),
            Self::Gone { target: Some(target) } => row(
                Code::DnsNotFound,
                format!(
                    "{host} is an alias of {target}, and there is no such name as {target} (the name servers answered NXDOMAIN); publish {target}, or point the CNAME of {host} at a name that exists"
                ),
            ),
            Self::Empty { target: None, with_v6 } => row(
                Code::DnsNoAddress,
                format!("{host} exists and has no {} record that could be used; publish one for it", records(with_v6)),
            ),
            Self::Empty { target: Some(target), with_v6 } => row(
                Code::DnsNoAddress,
                format!(
                    "{host} is an alias of {target}, which exists and has no {} record that could be used; publish one for {target}, or point the CNAME of {host} elsewhere",
                    records(with_v6)
                ),
            ),
            Self::TooManyAliases { most } => row(
                Code::DnsFailed,
                format!("{host} is an alias of more than {most} names in a row; shorten its CNAME chain"),
            ),
            Self::Failed { faults } => row(
                Code::DnsFailed,
                format!(
                    "looking up {host} failed, asked twice: {}; check the name's own name servers, {OTHER_NAMES}",
                    Faults(faults)
                ),
            ),
            Self::OutOfTime { total, faults } => row(
                Code::Timeout,
                format!(
                    "the {} ran out while looking {host} up: {}; check the name servers of {host}, {OTHER_NAMES}",
                    Budget(total),
                    Faults(faults)
                ),
            ),
            Self::NoTurn { total, at_once, of_domain } => row(
                Code::Timeout,
                format!(
                    "the {} ran out while looking {host} up: it waited for its turn behind this tenant's other lookups ({at_once} run at once, {of_domain} of one domain); send less at a time to names that are slow to be found, or check their own name servers",
                    Budget(total)
                ),
            ),
            Self::OutOfReach => row(
                Code::DnsNoAddress,
                format!(
                    "{host} has no address that this node could reach from any of its source addresses; publish an IPv4 address for it"
                ),
            ),
            Self::NotOfThisSource => row(
                Code::DnsNoAddress,
                format!("{host} has no address of this source's family; publish one for it, or name another reflector"),
            ),
        }
    }
}

fn records(with_v6: bool) -> &'static str {
    if with_v6 { "A or AAAA" } else { "A" }
}

struct Faults<'a>(&'a [Fault]);

impl Display for Faults<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, Fault { server, what, about }) in self.0.iter().enumerate() {
            let and = if place > 0 { ", " } else { "" };
            write!(f, "{and}{server} {what}")?;
            about.map_or(Ok(()), |kind| write!(f, " (about {kind} records)"))?;
        }
        Ok(())
    }
}

/// The words follow the server's address.
impl Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Silent => "did not answer",
            Self::Lame => "is lame: it answered with nothing and does not look names up for others",
            Self::Garbage => "answered what cannot be read",
            Self::Truncated => "cut its answer short and does not serve the rest over TCP",
            Self::Unreachable => "cannot be reached",
            Self::Refusal(0) => "answered NOERROR",
            Self::Refusal(1) => "answered FORMERR",
            Self::Refusal(2) => "answered SERVFAIL",
            Self::Refusal(3) => "answered NXDOMAIN",
            Self::Refusal(4) => "answered NOTIMP",
            Self::Refusal(5) => "answered REFUSED",
            Self::Refusal(9) => "answered NOTAUTH",
            Self::Refusal(16) => "answered BADVERS",
            Self::Refusal(other) => return write!(f, "answered the code {other}"),
        })
    }
}
