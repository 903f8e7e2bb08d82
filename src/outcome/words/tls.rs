//! Of TLS: a handshake that failed, a certificate that was not accepted, and TLS that ended a connection later.
//!
//! Alerts bear the names that the RFCs give them, and `why` is a library's reason in plain words: both come as such
//! from who reads them (`dial::tls`). What a certificate says is bounded and tamed where it is read.

use std::time::Duration;

use super::super::{Code, Failure, Phase};
use super::exchange::{SoFar, code_of};
use super::{Budget, HANDLED, PeerEnd};
use crate::limits::{
    TLS_CERTIFICATE_BYTES_MAX, TLS_CERTIFICATES_MAX, TLS_CERTIFICATES_OF_ONE_SUBJECT, TLS_CHAIN_BYTES_MAX,
};
use crate::record::Certificate;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TlsCause<'a> {
    /// No certificate can hold the host's name, as this label of it begins or ends with a hyphen; found before anything
    /// is looked up.
    NoName {
        label: &'a str,
    },
    /// It was not done in time.
    OutOfTime {
        total: Duration,
    },
    /// The connection ended in the middle of it.
    Gone {
        end: PeerEnd,
    },
    /// Asked for it, it has none, and nothing is said to it in the clear.
    NotOffered,
    NoCertificate,
    /// `shown`: what of it can be read.
    Certificate {
        fault: CertificateFault<'a>,
        shown: Option<&'a Certificate>,
    },
    /// What came is no TLS.
    NotTls,
    OldVersion,
    /// Neither of our protocols over TLS (ALPN).
    NoProtocol,
    /// It wants what we do not speak, we say.
    Incompatible {
        why: &'a str,
    },
    /// The same, it says.
    NothingInCommon {
        alert: &'a str,
    },
    NameNotServed {
        alert: &'a str,
    },
    ItsFault {
        alert: &'a str,
    },
    AccessDenied {
        alert: &'a str,
    },
    /// It wants a certificate of ours.
    WantsOurs {
        alert: &'a str,
    },
    /// Another alert.
    Ended {
        alert: &'a str,
    },
    /// Another reason of ours.
    Failed {
        why: &'a str,
    },
    /// An alert after the handshake. `so_far`: what had come of an answer.
    EndedLater {
        alert: &'a str,
        so_far: Option<SoFar>,
    },
    BrokenLater {
        why: &'a str,
        so_far: Option<SoFar>,
    },
}

/// What is wrong with a certificate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CertificateFault<'a> {
    Expired,
    NotValidYet,
    OtherName,
    UnknownIssuer,
    Revoked,
    WeakKey {
        bits: u32,
    },
    BadSignature,
    /// It, or one that it comes from, is signed in a way that is not accepted; `with`: its own.
    SignedWith {
        with: Option<&'a str>,
    },
    NotForServers,
    CriticalExtension,
    BadEncoding,
    /// What was shown with it is too much to be looked at.
    Chain(ChainFault),
    /// It is marked as an authority's own.
    Authority,
    BreaksRule {
        why: &'a str,
    },
    Other {
        why: &'a str,
    },
}

/// Why a chain is not even looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainFault {
    #[error("{shown} certificates were shown, more than {TLS_CERTIFICATES_MAX}")]
    TooMany { shown: usize },
    #[error("{bytes} bytes of certificates were shown, more than {TLS_CHAIN_BYTES_MAX}")]
    TooLarge { bytes: usize },
    #[error("a certificate of {bytes} bytes was shown, more than {TLS_CERTIFICATE_BYTES_MAX}")]
    CertificateTooLarge { bytes: usize },
    #[error("more than {TLS_CERTIFICATES_OF_ONE_SUBJECT} different certificates of one authority were shown")]
    LookAlikes,
}

/// RSA keys below this are not accepted (NIST SP 800-131A; public authorities issue none).
pub const RSA_BITS_MIN: u32 = 2048;

const CIPHERS: &str = "it must offer TLS 1.3, or TLS 1.2 with an ECDHE cipher suite with AES-GCM or ChaCha20-Poly1305";

impl TlsCause<'_> {
    pub(super) fn row(self, host: &str) -> Failure {
        let row = |code, message| Failure::new(code, Phase::Tls, message);
        let handshake = |message| row(Code::TlsHandshake, message);
        match self {
            Self::NoName { label } => handshake(format!(
                "{host} is no name that a certificate can hold (its label {label} begins or ends with a hyphen, see RFC 5280 section 4.2.1.6): nobody can be verified under it, and it was not looked up; give the receiver a name with hyphens only inside of its labels"
            )),
            Self::OutOfTime { total } => row(
                Code::Timeout,
                format!(
                    "{host} took the connection and did not finish the TLS handshake within the {}; check that this port speaks TLS, and that what stands before the receiver is not overloaded",
                    Budget(total)
                ),
            ),
            Self::NotOffered => handshake(format!(
                "{host} offers no TLS, and nothing goes there in the clear; ask the operator, whose server it is"
            )),
            Self::Gone { end } => row(
                code_of(end),
                format!(
                    "{host} {end} during the TLS handshake; check that this port speaks TLS, and that what stands before it lets our published addresses in"
                ),
            ),
            Self::NoCertificate => row(
                Code::TlsCertificate,
                format!("{host} showed no certificate; install one that is valid for its name"),
            ),
            Self::Certificate { fault, shown } => {
                let (what, then) = fault.words(shown, host);
                let shown = shown.map(who).unwrap_or_default();
                row(Code::TlsCertificate, format!("the certificate of {host} was not accepted: {what}; {then}{shown}"))
            }
            Self::NotTls => handshake(format!(
                "{host} does not speak TLS on this port (what it sent is none); use http:// or the receiver's TLS port"
            )),
            Self::OldVersion => handshake(format!(
                "{host} speaks neither TLS 1.2 nor TLS 1.3, and older versions are not spoken any more; turn on one of the two"
            )),
            Self::NoProtocol => handshake(format!(
                "{host} speaks neither HTTP/2 nor HTTP/1.1 over TLS here (ALPN); have it offer one of the two"
            )),
            Self::Incompatible { why } => {
                handshake(format!("{host} wants TLS as we do not speak it ({why}); {CIPHERS}"))
            }
            Self::NothingInCommon { alert } => handshake(format!(
                "{host} found no cipher suite, or no other thing, that both of us take (its alert: {alert}); {CIPHERS}"
            )),
            Self::NameNotServed { alert } => handshake(format!(
                "{host} does not serve that name (its alert: {alert}); send to a name that it serves, or add this one to its TLS set-up"
            )),
            Self::ItsFault { alert } => handshake(format!(
                "{host} ended the TLS handshake over a fault of its own (its alert: {alert}); look into its log"
            )),
            Self::AccessDenied { alert } => handshake(format!(
                "{host} refuses us in the TLS handshake (its alert: {alert}); have it let our published addresses in"
            )),
            Self::WantsOurs { alert } => handshake(format!(
                "{host} asks for a client certificate, of which this node has none (its alert: {alert}); have it take requests without one, and tell by a header who you are"
            )),
            Self::Ended { alert } => handshake(format!(
                "{host} ended the TLS handshake (its alert: {alert}); check its TLS set-up, and look into its log"
            )),
            Self::Failed { why } => handshake(format!(
                "the TLS handshake with {host} failed ({why}); check its TLS set-up with another client, and what stands before it"
            )),
            Self::EndedLater { alert, so_far: None } => Failure::new(
                Code::TlsHandshake,
                Phase::Wait,
                format!(
                    "{host} ended TLS before it answered (its alert: {alert})"
                ),
            )
            .then("whether the request was handled is not known, and it is not sent again: look into the receiver's log"),
            Self::EndedLater { alert, so_far: Some(so_far) } => Failure::new(
                Code::ConnectionReset,
                Phase::Read,
                format!(
                    "{host} answered {} and ended TLS in the middle of its answer, after {so_far} of its body (its alert: {alert})",
                    so_far.status
                ),
            ).then(HANDLED),
            Self::BrokenLater { why, so_far: None } => Failure::new(
                Code::ProtocolError,
                Phase::Wait,
                format!(
                    "{host} broke TLS on the open connection ({why})"
                ),
            )
            .then(
                "whether the request was handled is not known, and it is not sent again: check what stands before the receiver",
            ),
            Self::BrokenLater { why, so_far: Some(so_far) } => Failure::new(
                Code::ProtocolError,
                Phase::Read,
                format!(
                    "{host} answered {} and broke TLS in the middle of its answer, after {so_far} of its body ({why})",
                    so_far.status
                ),
            ).then(HANDLED),
        }
    }
}

impl CertificateFault<'_> {
    /// What it is, and what to do about it.
    fn words(self, shown: Option<&Certificate>, host: &str) -> (String, String) {
        let words = |what: &str, then: &str| (what.to_owned(), then.to_owned());
        match self {
            Self::Expired => (
                shown.map_or("it has expired".to_owned(), |shown| format!("it expired at {}", shown.not_after)),
                "renew it".to_owned(),
            ),
            Self::NotValidYet => (
                match shown.and_then(|shown| shown.not_before) {
                    Some(at) => format!("it is not valid yet, but from {at} on"),
                    None => "it is not valid yet".to_owned(),
                },
                "wait, or install one that is".to_owned(),
            ),
            Self::OtherName => match shown {
                Some(shown) if shown.names.is_empty() => (
                    "it names no host in its subjectAltName, and a CN does not count".to_owned(),
                    format!("have it issued with {host} in its subjectAltName"),
                ),
                Some(shown) => (
                    format!("it is for another name: {}", shown.names.join(", ")),
                    "install one for this name, or send to a name it is for".to_owned(),
                ),
                None => words("it is for another name", "install one for this name, or send to the name it is for"),
            },
            Self::UnknownIssuer => match shown {
                Some(shown) if shown.issuer == shown.subject => words(
                    "it is signed by itself, and nobody vouches for it",
                    "install one of a public authority, or have the operator add it to `[tls] extra_ca`",
                ),
                Some(shown) => (
                    format!(
                        "it was issued by {}, which is not trusted or whose own certificate is missing",
                        shown.issuer
                    ),
                    "install the whole chain, or have the operator add the authority to `[tls] extra_ca`".to_owned(),
                ),
                None => words(
                    "it was issued by an authority that is not trusted",
                    "install the whole chain, or have the operator add the authority to `[tls] extra_ca`",
                ),
            },
            Self::Revoked => words("it has been revoked", "install a new one"),
            Self::WeakKey { bits } => (
                format!("its key is RSA of {bits} bits, and {RSA_BITS_MIN} are the least that is accepted"),
                format!("have it issued for a key of at least {RSA_BITS_MIN} bits, or an ECDSA one"),
            ),
            Self::BadSignature => {
                words("a signature of it is wrong", "install it anew, with its chain and its own key")
            }
            Self::SignedWith { with } => (
                match with {
                    Some(with) => {
                        format!("it, or one that it comes from, is signed in a way that is not accepted ({with})")
                    }
                    None => "it is signed in a way that is not accepted".to_owned(),
                },
                "have it issued with SHA-256, by RSA or ECDSA".to_owned(),
            ),
            Self::NotForServers => {
                words("it is not one for servers (its extended key usage lacks serverAuth)", "install one that is")
            }
            Self::CriticalExtension => {
                words("it holds a critical extension that is not known", "install one that public clients accept")
            }
            Self::BadEncoding => words("it cannot be read", "install one that public clients accept"),
            Self::Chain(fault) => (
                fault.to_string(),
                "install it with the certificates of its authorities up to the root, and no others".to_owned(),
            ),
            Self::Authority => words(
                "it is marked as an authority's own (CA:TRUE), as `openssl req -x509` makes it",
                "install a server's certificate, or have the operator add this very one to `[tls] extra_ca`",
            ),
            Self::BreaksRule { why } => {
                (format!("it breaks a rule ({why})"), "install one that public clients accept".to_owned())
            }
            Self::Other { why } => (why.to_owned(), "install one that public clients accept".to_owned()),
        }
    }
}

/// Who showed what.
fn who(one: &Certificate) -> String {
    let from = one.not_before.map(|at| format!("from {at} ")).unwrap_or_default();
    let names = if one.names.is_empty() { "no host".to_owned() } else { one.names.join(", ") };
    format!(
        " (it showed {}, for {names}, issued by {}, valid {from}to {}, with a key of {})",
        one.subject, one.issuer, one.not_after, one.key
    )
}
