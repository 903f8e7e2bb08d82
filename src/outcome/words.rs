//! What is said of each way in which a delivery fails: one table of code, phase and cause, which the record, the API,
//! the log and the page share.
//!
//! A message says what was tried, with which values, and what to do next; what is known of the request stands beside
//! it ([`Processed`]). Values of a peer's are tamed and bounded here. Not here: the policy's refusals, and what a name
//! server or a certificate was found to be, which those who look at them say.

use std::fmt::{self, Display};
use std::net::IpAddr;
use std::time::Duration;

use super::{Code, Failure, Phase, Processed, tame};

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

/// How much of an answer's body came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoFar {
    pub status: u16,
    pub bytes: u64,
    /// The `Content-Length` it declared.
    pub declared: Option<u64>,
}

impl Display for SoFar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.declared {
            Some(declared) => write!(f, "{} of {declared} bytes", self.bytes),
            None => write!(f, "{} bytes", self.bytes),
        }
    }
}

/// How the addresses of a host met a connect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tried {
    pub refused: usize,
    pub unreachable: usize,
    pub silent: usize,
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

/// Why a delivery failed. Hosts are as the author wrote them; ports and addresses are those of their host.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cause<'a> {
    /// No connect was answered in time. `from`: the published address that we left from.
    NoConnection {
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
    ResetAtConnect {
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
    NoSource {
        port: u16,
    },
    NoPort {
        port: u16,
    },
    LedElsewhere {
        port: u16,
    },
    NoSocket {
        port: u16,
    },
    NoHandshake {
        total: Duration,
    },
    /// A new connection that was closed before it took a byte.
    ClosedUnwritten,
    /// It stopped taking the request in.
    NotTaken {
        total: Duration,
        bytes: u64,
        of: u64,
    },
    NoAnswer {
        total: Duration,
    },
    HalfAnswer {
        total: Duration,
        so_far: SoFar,
    },
    /// A connection's end before an answer: while the request was written, or after it.
    Unanswered {
        end: PeerEnd,
        written: Option<(u64, u64)>,
    },
    /// A connection's end within an answer.
    CutOff {
        end: PeerEnd,
        so_far: SoFar,
    },
    /// TLS without its own end, under a body that lasts until the connection ends.
    CutWithoutNotice {
        so_far: SoFar,
    },
    /// An answer that ended in its framing before or after what it declared.
    WrongLength {
        so_far: SoFar,
    },
    /// What came is not HTTP. `line`: how it began.
    NotHttp {
        line: &'a str,
    },
    /// A line of the head is not one of HTTP's.
    BadLine {
        status: Option<u16>,
        line: &'a str,
        why: &'static str,
    },
    /// The body's framing broke.
    BadChunk {
        so_far: SoFar,
        line: &'a str,
        why: &'static str,
    },
    /// `status`: where it is known.
    HeadersTooLarge {
        status: Option<u16>,
        bytes: usize,
        lines: usize,
    },
    TooManyInformational {
        most: usize,
    },
    TooManyBytes {
        most: u64,
    },
    Switched,
    /// RST_STREAM(REFUSED_STREAM), RFC 9113 section 8.7.
    StreamRefused,
    /// A GOAWAY that leaves our stream out, RFC 9113 section 6.8.
    LeftOut,
    /// RFC 9113 section 7, HTTP_1_1_REQUIRED.
    Http1Required,
    /// Another end of a stream; `reason`: the error code's own name.
    StreamEnded {
        reason: &'a str,
        by_peer: bool,
        so_far: Option<SoFar>,
    },
    /// The two sides do not understand each other, and nothing more is known.
    Broken {
        so_far: Option<SoFar>,
    },
}

/// Characters of a line of a peer's in a message.
const LINE_CHARS_MAX: usize = 120;

const LET_IN: &str = "and that its firewall lets our published addresses in";
const UNKNOWN: &str =
    "whether the request was handled is not known, and it is not sent again: ask the receiver before you resend";
const HANDLED: &str = "the receiver has handled the request: look there before you resend";

impl Cause<'_> {
    /// What is known by its name alone.
    pub fn code(&self) -> Code {
        match self {
            Self::NoConnection { .. }
            | Self::NoHandshake { .. }
            | Self::NotTaken { .. }
            | Self::NoAnswer { .. }
            | Self::HalfAnswer { .. } => Code::Timeout,
            Self::Refused { .. } => Code::ConnectionRefused,
            Self::ResetAtConnect { .. } => Code::ConnectionReset,
            Self::Unreachable { .. } => Code::HostUnreachable,
            Self::NetworkUnreachable { .. } => Code::NetworkUnreachable,
            Self::NoSource { .. } => Code::SourceUnavailable,
            Self::NoPort { .. } => Code::SourcePortsExhausted,
            Self::LedElsewhere { .. } | Self::NoSocket { .. } => Code::Internal,
            Self::ClosedUnwritten | Self::CutWithoutNotice { .. } => Code::ConnectionClosed,
            Self::Unanswered { end, .. } | Self::CutOff { end, .. } => match end {
                PeerEnd::Closed => Code::ConnectionClosed,
                PeerEnd::Reset => Code::ConnectionReset,
                PeerEnd::Lost => Code::HostUnreachable,
            },
            // The connection lives: it is the request that was turned away.
            Self::StreamRefused => Code::ConnectionRefused,
            Self::LeftOut => Code::ConnectionClosed,
            Self::StreamEnded { by_peer: true, .. } => Code::ConnectionReset,
            Self::HeadersTooLarge { .. } => Code::ResponseHeadersTooLarge,
            Self::WrongLength { .. }
            | Self::NotHttp { .. }
            | Self::BadLine { .. }
            | Self::BadChunk { .. }
            | Self::TooManyInformational { .. }
            | Self::TooManyBytes { .. }
            | Self::Switched
            | Self::Http1Required
            | Self::StreamEnded { by_peer: false, .. }
            | Self::Broken { .. } => Code::ProtocolError,
        }
    }

    pub fn phase(&self) -> Phase {
        match self {
            Self::NoConnection { .. }
            | Self::Refused { .. }
            | Self::ResetAtConnect { .. }
            | Self::Unreachable { .. }
            | Self::NetworkUnreachable { .. }
            | Self::NoSource { .. }
            | Self::NoPort { .. }
            | Self::LedElsewhere { .. }
            | Self::NoSocket { .. } => Phase::Connect,
            Self::NoHandshake { .. } => Phase::Tls,
            Self::ClosedUnwritten | Self::NotTaken { .. } | Self::Unanswered { written: Some(_), .. } => Phase::Write,
            Self::NoAnswer { .. }
            | Self::Unanswered { written: None, .. }
            | Self::NotHttp { .. }
            | Self::BadLine { .. }
            | Self::HeadersTooLarge { .. }
            | Self::TooManyInformational { .. }
            | Self::TooManyBytes { .. }
            | Self::Switched
            | Self::StreamRefused
            | Self::LeftOut
            | Self::Http1Required
            | Self::StreamEnded { so_far: None, .. }
            | Self::Broken { so_far: None } => Phase::Wait,
            Self::HalfAnswer { .. }
            | Self::CutOff { .. }
            | Self::CutWithoutNotice { .. }
            | Self::WrongLength { .. }
            | Self::BadChunk { .. }
            | Self::StreamEnded { so_far: Some(_), .. }
            | Self::Broken { so_far: Some(_) } => Phase::Read,
        }
    }

    pub fn processed(&self) -> Processed {
        match self {
            Self::StreamRefused | Self::LeftOut | Self::Http1Required | Self::ClosedUnwritten => Processed::No,
            Self::NotTaken { bytes: 0, .. } | Self::Unanswered { written: Some((0, _)), .. } => Processed::No,
            Self::Switched => Processed::Yes,
            Self::BadLine { status, .. } | Self::HeadersTooLarge { status, .. } => {
                if status.is_some_and(|status| status >= 200) { Processed::Yes } else { Processed::Maybe }
            }
            Self::LedElsewhere { .. } | Self::NoSocket { .. } => Processed::No,
            _ => Processed::usual(self.code(), Some(self.phase())),
        }
    }

    /// The failure that it makes of a delivery to `host`.
    pub fn failure(&self, host: &str) -> Failure {
        Failure::new(self.code(), self.phase(), self.message(host)).but(self.processed())
    }

    fn message(&self, host: &str) -> String {
        match *self {
            Self::NoConnection { total, port, from, tried } => format!(
                "{host}:{port} answered no connect{}{} within the {} s that a delivery may take in all: packets are dropped on the way, as a firewall does that does not know our addresses; check address and port, {LET_IN}",
                From(from),
                of(tried),
                total.as_secs_f64()
            ),
            Self::Refused { port, from, tried } => format!(
                "{host}:{port} refused the connection{}{}; check that the receiver runs and listens on this port, {LET_IN}",
                From(from),
                of(tried)
            ),
            Self::ResetAtConnect { port, from, tried } => format!(
                "{host}:{port} reset the connection while it was made{}{}; check the receiver and what stands before it, {LET_IN}",
                From(from),
                of(tried)
            ),
            Self::Unreachable { port, from, tried } => {
                format!("{host}:{port} cannot be reached{}{}; check its address {LET_IN}", From(from), of(tried))
            }
            Self::NetworkUnreachable { port, tried } => format!(
                "there is no route to the network of {host}:{port}{}; check the address that its name resolves to",
                of(tried)
            ),
            Self::NoSource { port } => format!(
                "no source address of this node could be used towards {host}:{port}; tell the operator, or resend later"
            ),
            Self::NoPort { port } => format!(
                "every source address of this node has all its ports in use towards {host}:{port}; send to it less at once, or resend later"
            ),
            Self::LedElsewhere { port } => {
                format!("the connection to {host}:{port} led somewhere else and was closed unused; tell the operator")
            }
            Self::NoSocket { port } => {
                format!("this node could not open a connection to {host}:{port}; resend later, and tell the operator")
            }
            Self::NoHandshake { total } => format!(
                "{host} took the connection and did not finish the TLS handshake within the {} s that a delivery may take in all; check that this port speaks TLS, and that what stands before the receiver is not overloaded",
                total.as_secs_f64()
            ),
            Self::ClosedUnwritten => format!(
                "{host} accepted the connection and closed it before a byte of the request had left; check the receiver and what stands before it"
            ),
            Self::NotTaken { total, bytes, of } => format!(
                "{host} stopped reading after about {bytes} of the request's {of} bytes, until the {} s that a delivery may take in all were over; have it read its requests to their end, or send less",
                total.as_secs_f64()
            ),
            Self::NoAnswer { total } => format!(
                "{host} has the whole request and did not begin to answer within the {} s that a delivery may take in all; have it answer sooner, and do slow work after it has answered; {UNKNOWN}",
                total.as_secs_f64()
            ),
            Self::HalfAnswer { total, so_far } => format!(
                "{host} answered {}, and {so_far} of its body came within the {} s that a delivery may take in all; have it send a shorter answer, and all of it at once; {HANDLED}",
                so_far.status,
                total.as_secs_f64()
            ),
            Self::Unanswered { end, written: Some((bytes, of)) } => format!(
                "{host} {end} after about {bytes} of the request's {of} bytes, before it answered; check what it takes: size, type, credentials{}",
                if bytes == 0 { String::new() } else { format!("; {UNKNOWN}") }
            ),
            Self::Unanswered { end, written: None } => format!("{host} {end} before it answered; {UNKNOWN}"),
            Self::CutOff { end, so_far } => format!(
                "{host} answered {} and {end} in the middle of its answer, after {so_far} of its body; {HANDLED}",
                so_far.status
            ),
            Self::CutWithoutNotice { so_far } => format!(
                "{host} answered {} without a length, and its connection ended after {so_far} without TLS's own end (close_notify): whether that was all of it cannot be told; have it send a Content-Length or chunks; {HANDLED}",
                so_far.status
            ),
            Self::WrongLength { so_far } => format!(
                "{host} answered {} and ended its answer after {so_far}: less, or more, came than it declared; {HANDLED}",
                so_far.status
            ),
            Self::NotHttp { line } => format!(
                "what {host} answered is not HTTP: it begins with \"{}\"; check that the port is the right one, and speaks HTTP where the URL says http, TLS where it says https",
                quoted(line)
            ),
            Self::BadLine { status, line, why } => format!(
                "{host} answered{} with a line that {why}: \"{}\"; have it send headers as HTTP has them{}",
                match status {
                    Some(status) => format!(" {status}"),
                    None => String::new(),
                },
                quoted(line),
                if status.is_some() { format!("; {HANDLED}") } else { String::new() }
            ),
            Self::BadChunk { so_far, line, why } => format!(
                "{host} answered {} and its chunked body broke after {so_far}: {why}, \"{}\"; {HANDLED}",
                so_far.status,
                quoted(line)
            ),
            Self::HeadersTooLarge { status, bytes, lines } => format!(
                "the headers of {host}'s answer{} are larger than {bytes} bytes or more than {lines} lines; have it send fewer, or ask the operator for more ([limits] response_headers, response_header_lines)",
                match status {
                    Some(status) => format!(" (its status is {status})"),
                    None => String::new(),
                }
            ),
            Self::TooManyInformational { most } => format!(
                "{host} sent more than {most} informational (1xx) answers before its final one; have it send the final one"
            ),
            Self::TooManyBytes { most } => {
                format!("{host} sent more than {most} bytes that led to no answer; have it send the answer itself")
            }
            Self::Switched => format!(
                "{host} answered 101 and switched protocols, which nobody asked for; have it answer the request itself"
            ),
            Self::StreamRefused => format!(
                "{host} refused the request unread (REFUSED_STREAM): it was not handled, and may be resent; the receiver has too much to do, or is about to stop"
            ),
            Self::LeftOut => format!(
                "{host} ended the connection with a GOAWAY that leaves this request out: it was not handled, and may be resent"
            ),
            Self::Http1Required => format!(
                "{host} wants HTTP/1.1 for this request (HTTP_1_1_REQUIRED): it was not handled, and may be resent"
            ),
            Self::StreamEnded { reason, by_peer, so_far } => {
                let reason = tame(reason, LINE_CHARS_MAX);
                let ended = if by_peer { "ended the HTTP/2 exchange" } else { "broke the rules of HTTP/2" };
                match so_far {
                    None => format!("{host} {ended} before it answered ({reason}); {UNKNOWN}"),
                    Some(so_far) => format!(
                        "{host} answered {} and {ended} in the middle of its answer, after {so_far} of its body ({reason}); {HANDLED}",
                        so_far.status
                    ),
                }
            }
            Self::Broken { so_far: None } => {
                format!("the exchange with {host} broke before it answered; check what answers on this port; {UNKNOWN}")
            }
            Self::Broken { so_far: Some(so_far) } => format!(
                "{host} answered {} and the exchange broke after {so_far} of its body; check what answers on this port; {HANDLED}",
                so_far.status
            ),
        }
    }
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

fn quoted(line: &str) -> String {
    tame(line.trim_end(), LINE_CHARS_MAX).replace('"', "'")
}

#[cfg(test)]
mod tests;
