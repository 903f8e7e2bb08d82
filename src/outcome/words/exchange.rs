//! Of a request and its answer, over a connection that stands.

use std::fmt::{self, Display};
use std::time::Duration;

use super::super::{Code, Failure, Phase, Processed, Said, tame};
use super::{Budget, HANDLED, PeerEnd, TRIED, UNKNOWN};

/// `so_far`: what came of the answer; where it may be missing, its head had not come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ExchangeCause<'a> {
    /// What the request is made of cannot stand in one.
    NotWritable {
        what: &'static str,
    },
    /// A new connection that was closed before it took a byte.
    ClosedUnwritten,
    /// A new connection on which something came before a byte of the request had left. `line`: how it began.
    Unasked {
        line: &'a str,
    },
    /// A new HTTP/2 connection that ended before a byte of the request had left; `reason`: as for a stream.
    NoHttp2 {
        reason: &'a str,
        by_peer: bool,
    },
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
    /// A transaction of a database that came to no end which is known. `commits`: it had been asked to commit.
    Transaction {
        how: HowUnended,
        commits: bool,
    },
    /// An answer that is a success, and not what a store says of an object that it has put.
    NoProof {
        status: u16,
        why: &'static str,
    },
    /// A line of the head is not one of HTTP's. `after`: the header before it.
    BadLine {
        status: Option<u16>,
        line: &'a str,
        after: Option<&'a str>,
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
    /// With `so_far`: one turn brought the answer's head and the flood behind it.
    TooManyBytes {
        most: u64,
        so_far: Option<SoFar>,
    },
    /// A body that has not ended, by the byte as it were.
    TooManyPieces {
        so_far: SoFar,
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

/// How a transaction came to no end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HowUnended {
    Late {
        total: Duration,
    },
    Ended {
        end: PeerEnd,
    },
    /// What came is not PostgreSQL's protocol, or more of it than a transaction's answers can be.
    Unreadable,
}

/// How much of an answer's body came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoFar {
    pub status: u16,
    pub bytes: u64,
    /// The `Content-Length` it declared.
    pub declared: Option<u64>,
}

/// Characters of an error code's name.
const REASON_CHARS_MAX: usize = 120;

impl ExchangeCause<'_> {
    pub(super) fn row(self, host: &str) -> Failure {
        use Phase::{Read, Wait, Write};
        match self {
            Self::NotWritable { what } => Failure::new(
                Code::Internal,
                Write,
                format!("the {what} of a request to {host} cannot be put on the wire; check the URL's characters"),
            )
            .but(Processed::No),
            Self::ClosedUnwritten => Failure::new(
                Code::ConnectionClosed,
                Write,
                format!(
                    "{host} accepted the connection and closed it before a byte of the request had left; check the receiver and what stands before it"
                ),
            )
            .but(Processed::No),
            Self::Unasked { line } => Failure::new(
                Code::ProtocolError,
                Write,
                format!(
                    "{host} spoke before it was asked for anything: that is no answer, and nothing of the request was sent; check that the port is the right one, and what stands before the receiver"
                ),
            )
            .but(Processed::No)
            .over(Said::Body(line.to_owned())),
            Self::NoHttp2 { reason, by_peer } => {
                let reason = tame(reason, REASON_CHARS_MAX);
                let (code, ended) = http2_end(by_peer);
                Failure::new(
                    code,
                    Wait,
                    format!(
                        "{host} {ended} before a byte of the request had left ({reason}); check what answers on this port"
                    ),
                )
                .but(Processed::No)
            }
            Self::NotTaken { total, bytes, of } => Failure::new(
                Code::Timeout,
                Write,
                format!(
                    "{host} stopped reading after about {bytes} of the request's {of} bytes, until the {} were over; have it read its requests to their end, or send less",
                    Budget(total)
                ),
            )
            .but(taken(bytes)),
            Self::NoAnswer { total } => Failure::new(
                Code::Timeout,
                Wait,
                format!(
                    "{host} has the whole request and did not begin to answer within the {}; have it answer sooner, and do slow work after it has answered",
                    Budget(total)
                ),
            ).then(UNKNOWN),
            Self::HalfAnswer { total, so_far } => Failure::new(
                Code::Timeout,
                Read,
                format!(
                    "{host} answered {}, and {so_far} of its body came within the {}; have it send a shorter answer, and all of it at once",
                    so_far.status,
                    Budget(total)
                ),
            ).then(HANDLED),
            Self::Unanswered { end, written: Some((bytes, of)) } => Failure::new(
                code_of(end),
                Write,
                format!(
                    "{host} {end} after about {bytes} of the request's {of} bytes, before it answered; check what it takes: size, type, credentials"
                ),
            )
            .then_if(bytes > 0, UNKNOWN)
            .but(taken(bytes)),
            Self::Unanswered { end, written: None } => {
                Failure::new(code_of(end), Wait, format!("{host} {end} before it answered")).then(UNKNOWN)
            }
            Self::CutOff { end, so_far } => Failure::new(
                code_of(end),
                Read,
                format!(
                    "{host} answered {} and {end} in the middle of its answer, after {so_far} of its body",
                    so_far.status
                ),
            ).then(HANDLED),
            Self::CutWithoutNotice { so_far } => Failure::new(
                Code::ConnectionClosed,
                Read,
                format!(
                    "{host} answered {} without a length, and its connection ended after {so_far} without TLS's own end (close_notify): whether that was all of it cannot be told; have it send a Content-Length or chunks",
                    so_far.status
                ),
            ).then(HANDLED),
            Self::WrongLength { so_far } => Failure::new(
                Code::ProtocolError,
                Read,
                format!(
                    "{host} answered {} and ended its answer after {so_far}: less, or more, came than it declared",
                    so_far.status
                ),
            ).then(HANDLED),
            Self::NotHttp { line } => Failure::new(
                Code::ProtocolError,
                Wait,
                format!(
                    "what {host} answered is not HTTP; check that the port is the right one, and speaks HTTP where the URL says http, TLS where it says https"
                ),
            )
            .over(Said::Body(line.to_owned())),
            Self::Transaction { how, commits } => {
                let (code, what) = match how {
                    HowUnended::Late { total } => (
                        Code::Timeout,
                        format!("{host} did not come to the end of the batch's transaction within the {}", Budget(total)),
                    ),
                    HowUnended::Ended { end } => {
                        (code_of(end), format!("{host} {end} in the middle of the batch's transaction"))
                    }
                    HowUnended::Unreadable => (
                        Code::ProtocolError,
                        format!("what {host} answered cannot be read as a database's answers"),
                    ),
                };
                if commits {
                    Failure::new(code, Wait, format!("{what}, as it was asked to commit it")).then(TRIED)
                } else {
                    let what = format!("{what}; it was not asked to commit anything, so nothing of it is there; ask the operator if it goes on");
                    Failure::new(code, Wait, what).but(Processed::No)
                }
            }
            Self::NoProof { status, why } => Failure::new(
                Code::ProtocolError,
                Read,
                format!("{host} answered {status} to the batch, {why}: a store that has put an object says so otherwise; check that the endpoint is the store's"),
            )
            .then(TRIED)
            .but(Processed::Maybe),
            Self::BadLine { status, line, after, why } => Failure::new(
                Code::ProtocolError,
                Wait,
                format!(
                    "{host} answered{} with a line that {why}; have it send headers as HTTP has them",
                    status.map(|status| format!(" {status}")).unwrap_or_default()
                ),
            )
            .then_if(answered(status) == Processed::Yes, HANDLED)
            .but(answered(status))
            .over(Said::Head { line: line.to_owned(), after: after.map(str::to_owned) }),
            Self::BadChunk { so_far, line, why } => Failure::new(
                Code::ProtocolError,
                Read,
                format!(
                    "{host} answered {} and its chunked body broke after {so_far}, at what {why}",
                    so_far.status
                ),
            ).then(HANDLED)
            .over(Said::Body(line.to_owned())),
            Self::HeadersTooLarge { status, bytes, lines } => Failure::new(
                Code::ResponseHeadersTooLarge,
                Wait,
                format!(
                    "the headers of {host}'s answer{} are larger than {bytes} bytes or more than {lines} lines; have it send fewer, or ask the operator for more ([limits] response_headers, response_header_lines)",
                    status.map(|status| format!(" (its status is {status})")).unwrap_or_default()
                ),
            )
            .but(answered(status)),
            Self::TooManyInformational { most } => Failure::new(
                Code::ProtocolError,
                Wait,
                format!(
                    "{host} sent more than {most} informational (1xx) answers before its final one; have it send the final one"
                ),
            ),
            Self::TooManyBytes { most, so_far: Some(so_far) } => Failure::new(
                Code::ProtocolError,
                Read,
                format!(
                    "{host} answered {} and sent more than {most} bytes around it that are no part of its body; have it \
                     send the answer itself",
                    so_far.status
                ),
            ).then(HANDLED),
            Self::TooManyBytes { most, so_far: None } => Failure::new(
                Code::ProtocolError,
                Wait,
                format!("{host} sent more than {most} bytes that led to no answer; have it send the answer itself"),
            ),
            Self::TooManyPieces { so_far } => Failure::new(
                Code::ProtocolError,
                Read,
                format!(
                    "{host} answered {} and sent {so_far} of its body in too many pieces (chunks, frames), so that its \
                     end was not waited for; have it write more at once",
                    so_far.status
                ),
            ).then(HANDLED),
            Self::Switched => Failure::new(
                Code::ProtocolError,
                Wait,
                format!(
                    "{host} answered 101 and switched protocols, which nobody asked for; have it answer the request itself"
                ),
            )
            .but(Processed::Yes),
            Self::StreamRefused => Failure::new(
                // The connection lives: it is the request that was turned away.
                Code::ConnectionRefused,
                Wait,
                format!(
                    "{host} refused the request unread (REFUSED_STREAM): it was not handled, and may be resent; the receiver has too much to do, or is about to stop"
                ),
            )
            .but(Processed::No),
            Self::LeftOut => Failure::new(
                Code::ConnectionClosed,
                Wait,
                format!(
                    "{host} ended the connection with a GOAWAY that leaves this request out: it was not handled, and may be resent"
                ),
            )
            .but(Processed::No),
            Self::Http1Required => Failure::new(
                Code::ProtocolError,
                Wait,
                format!(
                    "{host} wants HTTP/1.1 for this request (HTTP_1_1_REQUIRED): it was not handled, and may be resent"
                ),
            )
            .but(Processed::No),
            Self::StreamEnded { reason, by_peer, so_far } => {
                let reason = tame(reason, REASON_CHARS_MAX);
                let (code, ended) = http2_end(by_peer);
                match so_far {
                    None => {
                        Failure::new(code, Wait, format!("{host} {ended} before it answered ({reason})")).then(UNKNOWN)
                    }
                    Some(so_far) => Failure::new(
                        code,
                        Read,
                        format!(
                            "{host} answered {} and {ended} in the middle of its answer, after {so_far} of its body ({reason})",
                            so_far.status
                        ),
                    ).then(HANDLED),
                }
            }
            Self::Broken { so_far: None } => Failure::new(
                Code::ProtocolError,
                Wait,
                format!("the exchange with {host} broke before it answered; check what answers on this port"),
            ).then(UNKNOWN),
            Self::Broken { so_far: Some(so_far) } => Failure::new(
                Code::ProtocolError,
                Read,
                format!(
                    "{host} answered {} and the exchange broke after {so_far} of its body; check what answers on this port",
                    so_far.status
                ),
            ).then(HANDLED),
        }
    }
}

pub(super) fn code_of(end: PeerEnd) -> Code {
    match end {
        PeerEnd::Closed => Code::ConnectionClosed,
        PeerEnd::Reset => Code::ConnectionReset,
        PeerEnd::Lost => Code::HostUnreachable,
    }
}

fn http2_end(by_peer: bool) -> (Code, &'static str) {
    if by_peer {
        (Code::ConnectionReset, "ended the HTTP/2 exchange")
    } else {
        (Code::ProtocolError, "broke the rules of HTTP/2")
    }
}

/// Of a request of which so many bytes left.
fn taken(bytes: u64) -> Processed {
    if bytes == 0 { Processed::No } else { Processed::Maybe }
}

/// Where the head named a final status, or not.
fn answered(status: Option<u16>) -> Processed {
    if status.is_some_and(|status| status >= 200) { Processed::Yes } else { Processed::Maybe }
}

impl Display for SoFar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.declared {
            Some(declared) => write!(f, "{} of {declared} bytes", self.bytes),
            None => write!(f, "{} bytes", self.bytes),
        }
    }
}
