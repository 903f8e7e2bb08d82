//! How a send ends: the closed lists of outcomes, codes and phases, and the timings of a delivery.
//!
//! `label()` is the only name that log, metric, store and API use for a value.

pub mod words;

use std::time::Duration;

use crate::limits::MESSAGE_BYTES_MAX;

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
        /// A complete response with a status below 300.
        Delivered = "delivered",
        /// A complete response with a status of 300 or above: an answer, and what was sent was not taken.
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
        /// A tunnel's client names another server than its CONNECT.
        PolicySni = "policy_sni",
        Suspended = "suspended",
        Interrupted = "interrupted",
        Expired = "expired",
        Discarded = "discarded",
        Internal = "internal",
    }
}

impl Code {
    /// The end of a send that this is the reason of.
    pub fn outcome(self) -> Outcome {
        match self {
            Self::PolicyUrl
            | Self::PolicyPort
            | Self::PolicyName
            | Self::PolicyAddress
            | Self::PolicyMetadata
            | Self::PolicyScan
            | Self::PolicySelf
            | Self::PolicyMixed
            | Self::PolicyDenied
            | Self::PolicyNotAllowed
            | Self::PolicySni
            | Self::Suspended => Outcome::Blocked,
            Self::Interrupted => Outcome::Interrupted,
            Self::Expired => Outcome::Expired,
            Self::Discarded => Outcome::Discarded,
            _ => Outcome::Failed,
        }
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

labelled! {
    /// What is known of the receiver and the request: whether sending it again may do it twice.
    Processed {
        /// Nothing of the request left, or the peer said that it did nothing with it.
        No = "no",
        /// Some of it left, and nothing tells what became of it.
        Maybe = "maybe",
        /// A status came.
        Yes = "yes",
    }
}

impl Processed {
    /// What follows from where it ended, unless more is known.
    pub fn usual(code: Code, phase: Option<Phase>) -> Self {
        match (phase, code) {
            (None, Code::Interrupted | Code::Internal) => Self::Maybe,
            (None | Some(Phase::Dns | Phase::Connect | Phase::Tls), _) => Self::No,
            (Some(Phase::Write | Phase::Wait), _) => Self::Maybe,
            (Some(Phase::Read), _) => Self::Yes,
        }
    }
}

/// Why a send did not get a complete response, in words fit for its author.
///
/// `message` says what was tried, with which values, and what to do next. It never names an address
/// behind a denied name, so it may be shown to a tenant. Only the table in [`words`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: Code,
    /// `None` where no phase of a delivery was reached.
    pub phase: Option<Phase>,
    pub processed: Processed,
    pub message: String,
    said: Option<Box<Said>>,
    /// Bytes at the end of `message` that say what follows for who has made the one try there is.
    upshot: usize,
}

impl Failure {
    /// [`Processed::usual`]; see [`Self::but`].
    fn new(code: Code, phase: impl Into<Option<Phase>>, message: impl Into<String>) -> Self {
        let phase = phase.into();
        Self::recorded(code, phase, Processed::usual(code, phase), message)
    }

    /// One that was made before, as a store has kept it.
    pub fn recorded(code: Code, phase: Option<Phase>, processed: Processed, message: impl Into<String>) -> Self {
        Self { code, phase, processed, message: cut(message.into()), said: None, upshot: 0 }
    }

    /// With what else is known of the request.
    pub fn but(self, processed: Processed) -> Self {
        Self { processed, ..self }
    }

    /// With what the receiver sent that it comes of.
    fn over(self, said: Said) -> Self {
        Self { said: Some(Box::new(said)), ..self }
    }

    /// With what follows where what it is of is made once.
    fn then(mut self, upshot: &str) -> Self {
        let before = self.message.len();
        self.message = cut(format!("{}; {upshot}", self.message));
        self.upshot = self.message.len() - before;
        self
    }

    fn then_if(self, holds: bool, upshot: &str) -> Self {
        if holds { self.then(upshot) } else { self }
    }

    /// Of a try to carry a batch, which may be made again, and whose place has it only where it says so.
    pub fn of_a_try(mut self) -> Self {
        if self.processed == Processed::Yes {
            self.processed = Processed::Maybe;
        }
        if self.upshot > 0 {
            self.message.truncate(self.message.len() - std::mem::take(&mut self.upshot));
            self = self.then(words::TRIED);
        }
        self
    }

    /// Of the end of a batch that an earlier try may have brought there.
    pub fn after_a_doubt(mut self) -> Self {
        if self.processed == Processed::No {
            self.processed = Processed::Maybe;
            self.message = cut(format!("{}; {}", self.message, words::EARLIER));
        }
        self
    }

    /// With what the receiver sent, as `show` lets it be seen, at the end of its message.
    pub fn told(mut self, show: impl FnOnce(Said) -> Option<String>) -> Self {
        self.upshot = 0;
        if let Some(shown) = self.said.take().and_then(|said| show(*said)) {
            let shown = tame(shown.trim_end(), SAID_CHARS_MAX).replace('"', "'");
            self.message = cut(format!("{}{WHAT_CAME}{shown}\")", self.message));
        }
        self
    }
}

/// Before what a message quotes, which is the last of it.
pub const WHAT_CAME: &str = " (what came: \"";

fn cut(mut message: String) -> String {
    if message.len() > MESSAGE_BYTES_MAX {
        let cut = (0..=MESSAGE_BYTES_MAX).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
        message.truncate(cut);
    }
    message
}

/// What a receiver sent that cannot be read, as text. It may be secret, or of a body that nobody may keep, and so it is
/// no part of a message until redaction has seen it ([`Failure::told`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// A line of an answer's head. `after`: the header before it, in lower case, whose value it may go on with.
    Head { line: String, after: Option<String> },
    /// Bytes of a body, or of what is no HTTP and so has no head.
    Body(String),
}

impl Said {
    /// For who asked in the node's own name.
    pub fn into_text(self) -> String {
        match self {
            Self::Head { line, .. } => line,
            Self::Body(piece) => piece,
        }
    }
}

/// Characters of it in a message.
const SAID_CHARS_MAX: usize = 120;

/// What an answer of the class 3xx says: it is an answer, and it is not followed. `location` is what it named.
pub fn redirected(status: u16, location: Option<&str>) -> String {
    match location.map(place) {
        Some(place) => format!(
            "the receiver answered {status} and points to {place}: a redirect is never followed, and what was sent was not taken; send to that address instead"
        ),
        None => format!(
            "the receiver answered {status} and names no place to go to: what was sent was not taken; check the URL and what the receiver expects there"
        ),
    }
}

/// What a relay's refusal of a message says: it is an answer. `command` is what it answered.
pub fn refused_by_relay(status: u16, command: Option<&str>) -> String {
    let command = command.unwrap_or("the message");
    let what = format!("the relay answered {status} to {command}, and took nothing; its words are the response's body");
    match (status, command) {
        (_, "AUTH") => format!("the relay answered {status} to this node's login, and took nothing; ask the operator"),
        (400..=499, _) => format!("{what}; it may be resent later; ask the operator if it goes on"),
        _ => format!("{what}; correct what they name, or ask the operator, before you resend"),
    }
}

/// What the answer that ended a batch makes of its sends: what is known of them and what is said of it, which agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub processed: Processed,
    pub message: String,
}

impl Refusal {
    /// `what` of the batch was answered; `taken`: whether any of its tries may have brought it there.
    fn of(taken: Processed, what: &str, advice: &str) -> Self {
        let message = match taken {
            Processed::No => format!("{what}, and took nothing{advice}"),
            Processed::Maybe | Processed::Yes => format!("{what}{advice}; {}", words::EARLIER),
        };
        Self { processed: if taken == Processed::No { taken } else { Processed::Maybe }, message }
    }
}

const GIVEN_UP: &str = "; it was tried until it was given up";

/// What a store's refusal of a batch says. `code`: the word of its error, where it gave one.
pub fn refused_by_bucket(status: u16, code: Option<&str>, taken: Processed) -> Refusal {
    let what = match code {
        Some(code) => format!("the store answered {status} ({code}) to the batch"),
        None => format!("the store answered {status} to the batch"),
    };
    let advice = match (status, code) {
        (_, Some("RequestTimeTooSkewed")) => {
            ": this node's clock and the store's differ too much; ask the operator to set it"
        }
        (_, Some("ExpiredToken" | "TokenRefreshRequired")) => {
            ": what this node signs with is out of date, and nothing newer came; ask the operator"
        }
        (_, Some("NoSuchBucket")) | (404, None) => ": check the bucket's name, or ask the operator to make it",
        (401 | 403, _) => ": this node may not write there; ask the operator",
        (307 | 408 | 409 | 425 | 429 | 500..=599, _) => GIVEN_UP,
        _ => "; its words are the batch's own answer; ask the operator",
    };
    Refusal::of(taken, &what, advice)
}

/// The same of a database's. `sqlstate`: the code of its error; `events`: how many events were refused and not the batch, of
/// which some are to blame.
pub fn refused_by_warehouse(status: u16, sqlstate: Option<&str>, events: Option<&str>, taken: Processed) -> Refusal {
    let state = sqlstate.unwrap_or("no code");
    if let Some(events) = events {
        let message = match events {
            "1" => format!(
                "the database refused this event of the batch (SQLSTATE {state}), and took nothing of it; its words are the answer's body: correct what they name before you resend it, or ask the operator"
            ),
            events => format!(
                "the database refused {events} events together (SQLSTATE {state}), this one with them, and took none of these; it refuses so much of the batch that no more was sought which of them are to blame; its words are the answer's body; ask the operator before you resend it"
            ),
        };
        // It is the transaction itself that says so.
        return Refusal { processed: Processed::No, message };
    }
    let what = format!("the database refused the batch (SQLSTATE {state}; its words are the answer's body)");
    let advice = match (status, sqlstate) {
        (503, _) => GIVEN_UP,
        (403, _) => ": this node may not do that there; ask the operator",
        (_, Some("42809")) => {
            ": what has this name there is no table (an index, a sequence or a view, perhaps); give the events another"
        }
        _ => "; ask the operator",
    };
    Refusal::of(taken, &what, advice)
}

/// Where a URL of a peer's points, without what may be secret in it: userinfo and query.
fn place(location: &str) -> String {
    let end = location.find(['?', '#']).unwrap_or(location.len());
    let (shown, rest) = location.split_at(end);
    let authority = shown.find("//").map_or(0, |at| at + 2);
    let path = shown[authority..].find('/').map_or(shown.len(), |at| authority + at);
    let host = match shown[..path].rfind('@') {
        Some(at) if at >= authority => at + 1,
        _ => authority,
    };
    let text = tame(&format!("{}{}", &shown[..authority], &shown[host..]), PLACE_CHARS_MAX);
    if rest.starts_with('?') { text + "?…" } else { text }
}

/// Characters of a peer's URL in a message.
const PLACE_CHARS_MAX: usize = 300;

/// At most `max` characters of a text that comes from elsewhere, control characters and direction overrides replaced.
pub fn tame(text: &str, max: usize) -> String {
    let tame = |c: char| {
        let steers =
            matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
        if c.is_control() || steers { '\u{fffd}' } else { c }
    };
    let mut out: String = text.chars().take(max).map(tame).collect();
    if text.chars().nth(max).is_some() {
        out.pop();
        out.push('…');
    }
    out
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
        let outcome = if status < 300 { Outcome::Delivered } else { Outcome::Rejected };
        Self { outcome, error: None }
    }

    /// The end that a failure makes: the code decides the outcome.
    pub fn because(error: Failure) -> Self {
        Self { outcome: error.code.outcome(), error: Some(error) }
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
        for &processed in Processed::ALL {
            assert_eq!(Processed::from_label(processed.label()), Some(processed));
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
            assert_eq!(code.outcome(), outcome);
        }
        for (status, outcome) in
            [(200, Outcome::Delivered), (299, Outcome::Delivered), (300, Outcome::Rejected), (404, Outcome::Rejected)]
        {
            assert_eq!(Ended::answered(status).outcome, outcome, "{status}");
        }
    }

    #[test]
    fn where_it_ended_says_what_is_known_of_the_request() {
        for (code, phase, processed) in [
            (Code::DnsFailed, Some(Phase::Dns), Processed::No),
            (Code::Timeout, Some(Phase::Connect), Processed::No),
            (Code::TlsHandshake, Some(Phase::Tls), Processed::No),
            (Code::Timeout, Some(Phase::Write), Processed::Maybe),
            (Code::ConnectionReset, Some(Phase::Wait), Processed::Maybe),
            (Code::ConnectionClosed, Some(Phase::Read), Processed::Yes),
            (Code::PolicyUrl, None, Processed::No),
            (Code::Expired, None, Processed::No),
            (Code::Interrupted, None, Processed::Maybe),
            (Code::Internal, None, Processed::Maybe),
        ] {
            let failure = Failure::new(code, phase, "");
            assert_eq!(failure.processed, processed, "{code} {phase:?}");
            assert_eq!(failure.but(Processed::No).processed, Processed::No);
        }
    }

    #[test]
    fn a_redirect_names_where_it_points_and_no_secret() {
        for (location, named) in [
            ("https://a.example.com/hook/", "points to https://a.example.com/hook/:"),
            ("/hook/", "points to /hook/:"),
            ("../x?token=s3cret", "points to ../x?…:"),
            ("https://me:s3cret@a.example.com/x#s3cret", "points to https://a.example.com/x:"),
            ("//me:s3cret@a.example.com", "points to //a.example.com:"),
            ("/x@y", "points to /x@y:"),
            ("https://a.example.com/a@b//c", "points to https://a.example.com/a@b//c:"),
            ("\u{1b}[2J\u{202e}x", "points to \u{fffd}[2J\u{fffd}x:"),
            ("", "points to :"),
        ] {
            let message = redirected(308, Some(location));
            assert!(message.contains(named) && message.contains("308") && !message.contains("s3cret"), "{message}");
        }
        assert!(redirected(302, Some(&"x".repeat(9000))).len() < 500);
        assert!(redirected(304, None).contains("304"));
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let failure = Failure::new(Code::Internal, None, "é".repeat(2000));
        assert_eq!(failure.message.len(), MESSAGE_BYTES_MAX);
    }

    #[test]
    fn what_a_receiver_sent_is_told_only_as_it_may_be_shown_tamed_and_bounded() {
        let line = "\u{1b}[2J\"\u{202e}".to_owned() + &"x".repeat(5000) + "\r\n";
        let failure = Failure::new(Code::ProtocolError, Phase::Wait, "no").over(Said::Body(line.clone()));
        assert_eq!(failure.message, "no");
        assert_eq!(failure.clone().told(|_| None).message, "no");
        let told = failure.told(|said| {
            assert_eq!(said, Said::Body(line.clone()));
            Some(line.clone())
        });
        assert!(told.message.starts_with("no (what came: \"\u{fffd}[2J'\u{fffd}xxx"), "{}", told.message);
        assert!(told.message.ends_with("x…\")") && told.message.len() < 200, "{}", told.message);
        assert_eq!(told.clone().told(|_| Some("more".to_owned())), told);
    }
}
