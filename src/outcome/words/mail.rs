//! Of handing a message to the relay, over a connection that stands. What the relay refused in its own words is no
//! failure but an answer.

use std::time::Duration;

use super::super::{Code, Failure, Phase, Processed, labelled};
use super::exchange::code_of;
use super::{Budget, PeerEnd};

labelled! {
    /// What a reply answers: RFC 5321's commands as they follow one another.
    SmtpStep {
        /// Nothing: the relay speaks first.
        Greeting = "greeting",
        Ehlo = "EHLO",
        StartTls = "STARTTLS",
        Auth = "AUTH",
        Mail = "MAIL FROM",
        Rcpt = "RCPT TO",
        Data = "DATA",
        /// The message, with its end.
        Message = "message",
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MailCause {
    /// It does not offer it, and nothing is said to it in the clear.
    NoStartTls,
    /// It offers none of the ways to log in that there are.
    NoWayToLogIn,
    /// The connection broke off. `over`: the whole message had been handed over.
    Ended {
        end: PeerEnd,
        step: SmtpStep,
        over: bool,
    },
    /// Its reply is none of SMTP's.
    BadReply {
        step: SmtpStep,
        why: &'static str,
        over: bool,
    },
    Silent {
        total: Duration,
        step: SmtpStep,
        over: bool,
    },
    /// No message can be made of what was asked for.
    NotWritable,
}

const NOT_TAKEN: &str = "the message was not handled, and may be resent";
const UNKNOWN: &str =
    "whether the message was taken is not known, and it is not sent again: look into the mailbox before you resend";

impl MailCause {
    pub(super) fn row(self, relay: &str) -> Failure {
        match self {
            Self::NoStartTls => Failure::new(
                Code::TlsHandshake,
                Phase::Tls,
                format!("{relay} does not offer STARTTLS, and mail goes nowhere in the clear; ask the operator, whose relay it is"),
            ),
            Self::NoWayToLogIn => before(
                Code::ProtocolError,
                format!("{relay} offers neither AUTH PLAIN nor LOGIN: {NOT_TAKEN}; ask the operator, whose relay it is"),
            ),
            Self::Ended { end, step, over: false } => before(
                code_of(end),
                format!("{relay} {end} at {step}: {NOT_TAKEN}; ask the operator if it goes on"),
            ),
            Self::Ended { end, over: true, .. } => after(
                code_of(end),
                format!("{relay} {end} before it answered the message; {UNKNOWN}"),
            ),
            Self::BadReply { step, why, over: false } => before(
                Code::ProtocolError,
                format!("{relay} {why} at {step}, which is no SMTP: {NOT_TAKEN}; ask the operator, whose relay it is"),
            ),
            Self::BadReply { why, over: true, .. } => after(
                Code::ProtocolError,
                format!("{relay} {why} after the message, which is no SMTP; {UNKNOWN}"),
            ),
            Self::Silent { total, step, over: false } => before(
                Code::Timeout,
                format!("{relay} was too slow at {step} for the {}: {NOT_TAKEN}; ask the operator if it goes on", Budget(total)),
            ),
            Self::Silent { total, over: true, .. } => after(
                Code::Timeout,
                format!("{relay} did not answer the message within the {}; {UNKNOWN}", Budget(total)),
            ),
            Self::NotWritable => Failure::new(
                Code::Internal,
                Phase::Write,
                format!("what was asked for cannot be written as a message to {relay}; tell the operator, with the send's id"),
            )
            .but(Processed::No),
        }
    }
}

/// The end of the message had not left: a relay takes none without it (RFC 5321 section 4.1.1.4).
fn before(code: Code, message: String) -> Failure {
    Failure::new(code, Phase::Write, message).but(Processed::No)
}

fn after(code: Code, message: String) -> Failure {
    Failure::new(code, Phase::Wait, message)
}
