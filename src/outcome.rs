//! How a send ends: the closed lists of outcomes, codes and phases, and the timings of a delivery.
//!
//! `label()` is the only name that log, metric, store and API use for a value.

use std::time::Duration;

macro_rules! labelled {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $label:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$variant_meta])* $variant),+ }

        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The one name of this value in records, logs, metrics and the API.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label),+ }
            }

            /// The value that bears this label.
            pub fn from_label(label: &str) -> Option<Self> {
                match label { $($label => Some(Self::$variant),)+ _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.label())
            }
        }
    };
}
pub(crate) use labelled;

labelled! {
    /// How a send ended. Every accepted send ends in exactly one of these.
    Outcome {
        /// A complete response with a status below 400.
        Delivered = "delivered",
        /// A complete response with a status of 400 or above.
        Rejected = "rejected",
        /// No complete response; the code says why.
        Failed = "failed",
        /// The acceptable-use policy stopped it; nothing was sent.
        Blocked = "blocked",
        /// Not started within `expires_in`.
        Expired = "expired",
        /// Its execution was discarded.
        Discarded = "discarded",
        /// The appliance died after the delivery began; the receiver may or may not have it.
        Interrupted = "interrupted",
    }
}

labelled! {
    /// Why a send did not end `delivered` or `rejected`.
    Code {
        Timeout = "timeout",
        DnsNotFound = "dns_not_found",
        DnsFailed = "dns_failed",
        DnsNoAddress = "dns_no_address",
        ConnectionRefused = "connection_refused",
        ConnectionReset = "connection_reset",
        ConnectionClosed = "connection_closed",
        HostUnreachable = "host_unreachable",
        NetworkUnreachable = "network_unreachable",
        TlsCertificate = "tls_certificate",
        TlsHandshake = "tls_handshake",
        ProtocolError = "protocol_error",
        ResponseHeadersTooLarge = "response_headers_too_large",
        SourceUnavailable = "source_unavailable",
        SourcePortsExhausted = "source_ports_exhausted",
        PolicyUrl = "policy_url",
        PolicyPort = "policy_port",
        PolicyName = "policy_name",
        PolicyAddress = "policy_address",
        PolicyMetadata = "policy_metadata",
        PolicyScan = "policy_scan",
        PolicySelf = "policy_self",
        PolicyMixed = "policy_mixed",
        PolicyDenied = "policy_denied",
        PolicyNotAllowed = "policy_not_allowed",
        Suspended = "suspended",
        Interrupted = "interrupted",
        Expired = "expired",
        Discarded = "discarded",
        Internal = "internal",
    }
}

labelled! {
    /// The part of a delivery in which something happened. Each spends from the same deadline.
    Phase {
        Dns = "dns",
        Connect = "connect",
        Tls = "tls",
        Write = "write",
        Wait = "wait",
        Read = "read",
    }
}

/// Why a send did not get a complete response, in words fit for its author.
///
/// `message` says what was tried, with which values, and what to do next. It never names an address
/// behind a denied name, so it may be shown to a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: Code,
    /// `None` where no phase of a delivery was reached.
    pub phase: Option<Phase>,
    pub message: String,
}

impl Failure {
    pub fn new(code: Code, phase: impl Into<Option<Phase>>, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > crate::limits::MESSAGE_BYTES_MAX {
            let cut =
                (0..=crate::limits::MESSAGE_BYTES_MAX).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
            message.truncate(cut);
        }
        Self { code, phase: phase.into(), message }
    }
}

/// An end: the outcome, and the failure behind it unless a complete response came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub outcome: Outcome,
    pub error: Option<Failure>,
}

impl Ended {
    /// The end that a complete response with this status makes.
    pub fn answered(status: u16) -> Self {
        let outcome = if status < 400 { Outcome::Delivered } else { Outcome::Rejected };
        Self { outcome, error: None }
    }

    /// The end that a failure makes: the code decides the outcome.
    pub fn because(error: Failure) -> Self {
        let outcome = match error.code {
            Code::PolicyUrl
            | Code::PolicyPort
            | Code::PolicyName
            | Code::PolicyAddress
            | Code::PolicyMetadata
            | Code::PolicyScan
            | Code::PolicySelf
            | Code::PolicyMixed
            | Code::PolicyDenied
            | Code::PolicyNotAllowed
            | Code::Suspended => Outcome::Blocked,
            Code::Interrupted => Outcome::Interrupted,
            Code::Expired => Outcome::Expired,
            Code::Discarded => Outcome::Discarded,
            _ => Outcome::Failed,
        };
        Self { outcome, error: Some(error) }
    }

    /// The code as a metric label: `none` without an error.
    pub fn code_label(&self) -> &'static str {
        self.error.as_ref().map_or("none", |error| error.code.label())
    }
}

/// Where a send's time went. A phase that did not happen is `None`.
///
/// `total` is the delivery alone, the part that the deadline bounds; `held` and `queued` come before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    pub held: Option<Duration>,
    pub queued: Option<Duration>,
    pub dns: Option<Duration>,
    pub connect: Option<Duration>,
    pub tls: Option<Duration>,
    pub write: Option<Duration>,
    pub wait: Option<Duration>,
    pub read: Option<Duration>,
    pub total: Option<Duration>,
}

impl Timings {
    pub fn phase(&self, phase: Phase) -> Option<Duration> {
        match phase {
            Phase::Dns => self.dns,
            Phase::Connect => self.connect,
            Phase::Tls => self.tls,
            Phase::Write => self.write,
            Phase::Wait => self.wait,
            Phase::Read => self.read,
        }
    }

    /// Adds time spent in a phase.
    pub fn spend(&mut self, phase: Phase, spent: Duration) {
        let slot = match phase {
            Phase::Dns => &mut self.dns,
            Phase::Connect => &mut self.connect,
            Phase::Tls => &mut self.tls,
            Phase::Write => &mut self.write,
            Phase::Wait => &mut self.wait,
            Phase::Read => &mut self.read,
        };
        *slot = Some(slot.unwrap_or_default() + spent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_label_reads_back_as_its_value() {
        for &outcome in Outcome::ALL {
            assert_eq!(Outcome::from_label(outcome.label()), Some(outcome));
        }
        for &code in Code::ALL {
            assert_eq!(Code::from_label(code.label()), Some(code));
        }
        for &phase in Phase::ALL {
            assert_eq!(Phase::from_label(phase.label()), Some(phase));
        }
        assert_eq!(Code::from_label("no such code"), None);
    }

    #[test]
    fn a_code_decides_the_outcome() {
        for (code, outcome) in [
            (Code::Timeout, Outcome::Failed),
            (Code::PolicyMixed, Outcome::Blocked),
            (Code::Suspended, Outcome::Blocked),
            (Code::Expired, Outcome::Expired),
            (Code::Interrupted, Outcome::Interrupted),
            (Code::Discarded, Outcome::Discarded),
            (Code::Internal, Outcome::Failed),
        ] {
            assert_eq!(Ended::because(Failure::new(code, None, "")).outcome, outcome, "{code}");
        }
        assert_eq!(Ended::answered(399).outcome, Outcome::Delivered);
        assert_eq!(Ended::answered(400).outcome, Outcome::Rejected);
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let failure = Failure::new(Code::Internal, None, "é".repeat(2000));
        assert_eq!(failure.message.len(), crate::limits::MESSAGE_BYTES_MAX);
    }
}
