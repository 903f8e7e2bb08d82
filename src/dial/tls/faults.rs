//! What a handshake failed of, and TLS that ended a connection later: rustls' reasons, each as a cause of ours.
//!
//! The words are the table's ([`crate::outcome::words::tls`]); what of a library's text gets there is made plain here.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError, PeerIncompatible};

use super::verifier::{Seen, Shown};
use crate::dial::wire::PeerEnd;
use crate::outcome::Failure;
use crate::outcome::words::tls::{CertificateFault, RSA_BITS_MIN};
use crate::outcome::words::{SoFar, TlsCause};
use crate::policy::Host;

/// That no certificate can hold a host's name, for one of its labels. Other characters than certificates have the policy
/// has refused, and what DNS cannot hold it says itself.
pub fn unnameable(host: &Host) -> Option<TlsCause<'_>> {
    let Host::Name(name) = host else { return None };
    let label = name.split('.').find(|label| label.starts_with('-') || label.ends_with('-'))?;
    Some(TlsCause::NoName { label })
}

/// What rustls said of a handshake.
pub fn of_handshake(error: &rustls::Error, seen: &Seen, host: &str) -> Failure {
    let why = plain(&error.to_string());
    let cause = match error {
        rustls::Error::InvalidCertificate(reason) => {
            let why = match reason {
                CertificateError::Other(other) => plain(&other.0.to_string()),
                reason => plain(&reason.to_string()),
            };
            let shown = seen.refused.as_ref();
            let fault = fault_of(reason, shown, &why);
            return TlsCause::Certificate { fault, shown: shown.map(|shown| &shown.certificate) }.failure(host);
        }
        rustls::Error::AlertReceived(alert) => return of_alert(*alert, seen.wants_ours, host),
        rustls::Error::NoCertificatesPresented => TlsCause::NoCertificate,
        rustls::Error::InvalidMessage(_) => TlsCause::NotTls,
        rustls::Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        ) => TlsCause::OldVersion,
        rustls::Error::PeerIncompatible(_) => TlsCause::Incompatible { why: &why },
        rustls::Error::NoApplicationProtocol => TlsCause::NoProtocol,
        _ => TlsCause::Failed { why: &why },
    };
    cause.failure(host)
}

/// It ended the handshake itself.
fn of_alert(alert: AlertDescription, wants_ours: bool, host: &str) -> Failure {
    let name = &*name_of(alert);
    let cause = match alert {
        AlertDescription::CertificateRequired => TlsCause::WantsOurs { alert: name },
        _ if wants_ours && is_about_ours(alert) => TlsCause::WantsOurs { alert: name },
        AlertDescription::ProtocolVersion => TlsCause::OldVersion,
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
            TlsCause::NothingInCommon { alert: name }
        }
        AlertDescription::UnrecognisedName => TlsCause::NameNotServed { alert: name },
        AlertDescription::NoApplicationProtocol => TlsCause::NoProtocol,
        AlertDescription::InternalError => TlsCause::ItsFault { alert: name },
        AlertDescription::AccessDenied => TlsCause::AccessDenied { alert: name },
        _ => TlsCause::Ended { alert: name },
    };
    cause.failure(host)
}

/// What a server says that wanted a certificate of its client's and got none, or wants another.
fn is_about_ours(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::HandshakeFailure
            | AlertDescription::NoCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
    )
}

/// rustls' word, where it is at the root of what a layer above calls an error of its own.
pub fn at_the_root_of<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    let mut next = Some(error);
    // A chain of causes, not a ring; bounded all the same.
    for _ in 0..16 {
        let error = next?;
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = inner.map(|inner| inner as &(dyn Error + 'static)).or_else(|| error.source());
    }
    None
}

/// TLS ended the connection after our side of the handshake was done, and before a byte of the request had left: the
/// handshake is what it refused, and over TLS 1.3 that may be for the want of a certificate of ours.
pub fn before_request(error: &rustls::Error, host: &str) -> Failure {
    of_handshake(error, &Seen { refused: None, wants_ours: true }, host)
}

/// TLS ended the connection after our side of the handshake was done: over TLS 1.3 that is when a receiver says that it
/// wants a certificate of ours (RFC 8446 section 4.4.2.4), and nothing of the request was looked at. `so_far`: what had
/// come of an answer.
pub fn after_handshake(error: &rustls::Error, so_far: Option<SoFar>, host: &str) -> Failure {
    match error {
        rustls::Error::AlertReceived(alert) => {
            let name = &*name_of(*alert);
            if so_far.is_none() && is_about_ours(*alert) {
                TlsCause::WantsOurs { alert: name }.failure(host)
            } else {
                TlsCause::EndedLater { alert: name, so_far }.failure(host)
            }
        }
        _ => TlsCause::BrokenLater { why: &plain(&error.to_string()), so_far }.failure(host),
    }
}

/// The peer went away in the middle of the handshake.
pub fn of_peer(end: Option<PeerEnd>, host: &str) -> Failure {
    TlsCause::Gone { end: end.unwrap_or(PeerEnd::Closed) }.failure(host)
}

/// What is wrong with a certificate. `why`: the reason as text.
fn fault_of<'a>(reason: &CertificateError, shown: Option<&'a Shown>, why: &'a str) -> CertificateFault<'a> {
    if let CertificateError::Other(other) = reason
        && let Some(fault) = other.0.downcast_ref()
    {
        return CertificateFault::Chain(*fault);
    }
    match reason {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => CertificateFault::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => CertificateFault::NotValidYet,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            CertificateFault::OtherName
        }
        CertificateError::UnknownIssuer => CertificateFault::UnknownIssuer,
        CertificateError::Revoked => CertificateFault::Revoked,
        CertificateError::BadSignature => match shown.and_then(|shown| weak_rsa(&shown.certificate.key)) {
            Some(bits) => CertificateFault::WeakKey { bits },
            None => CertificateFault::BadSignature,
        },
        #[allow(deprecated, reason = "still one of its values")]
        CertificateError::UnsupportedSignatureAlgorithm
        | CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            CertificateFault::SignedWith { with: shown.map(|shown| &*shown.signed_with) }
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            CertificateFault::NotForServers
        }
        CertificateError::UnhandledCriticalExtension => CertificateFault::CriticalExtension,
        CertificateError::BadEncoding => CertificateFault::BadEncoding,
        _ if shown.is_some_and(|shown| shown.is_authority) => CertificateFault::Authority,
        CertificateError::Other(_) => CertificateFault::BreaksRule { why },
        _ => CertificateFault::Other { why },
    }
}

fn weak_rsa(key: &str) -> Option<u32> {
    let bits = key.strip_prefix("RSA ")?.parse().ok()?;
    (bits < RSA_BITS_MIN).then_some(bits)
}

/// As the RFCs write it: `handshake_failure`.
fn name_of(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::Unknown(number) => format!("alert_{number}"),
        AlertDescription::UnrecognisedName => "unrecognized_name".to_owned(),
        _ => spaced(&format!("{alert:?}")).replace(' ', "_"),
    }
}

/// Words of a library's, without the names of its values: `NameConstraintViolation` reads as what it says.
fn plain(text: &str) -> String {
    text.split(' ').map(spaced).collect::<Vec<_>>().join(" ")
}

fn spaced(word: &str) -> String {
    // One capital alone, or a word of capitals, is no name of a value.
    let humps = word.chars().zip(word.chars().skip(1)).filter(|(one, next)| one.is_lowercase() && next.is_uppercase());
    let is_name =
        humps.count() > 0 || (word.starts_with(char::is_uppercase) && word.chars().skip(1).all(char::is_lowercase));
    if !is_name {
        return word.to_owned();
    }
    let mut out = String::with_capacity(word.len() + 4);
    let mut before = None;
    for c in word.chars() {
        if c.is_uppercase() && before.is_some_and(char::is_alphanumeric) && !before.is_some_and(char::is_uppercase) {
            out.push(' ');
        }
        out.extend(c.to_lowercase());
        before = Some(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use rustls::OtherError;
    use rustls::pki_types::ServerName;

    use super::*;
    use crate::outcome::Phase;
    use crate::outcome::words::tls::ChainFault;
    use crate::record::Certificate;

    fn shown(change: impl FnOnce(&mut Shown)) -> Seen {
        let mut shown = Shown {
            certificate: Certificate {
                subject: "CN=leaf".to_owned(),
                issuer: "CN=Wire Inter".to_owned(),
                names: vec!["other.example.org".to_owned()],
                not_before: Some(Timestamp::UNIX_EPOCH),
                not_after: Timestamp::from_second(86_400).unwrap(),
                key: "ECDSA P-256".to_owned(),
                sha256: [0; 32],
            },
            is_authority: false,
            signed_with: "SHA-1 with RSA".to_owned(),
        };
        change(&mut shown);
        Seen { refused: Some(shown), wants_ours: false }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("NameConstraintViolation")]
    struct OfWebpki;

    fn invalid(reason: CertificateError) -> rustls::Error {
        rustls::Error::InvalidCertificate(reason)
    }

    #[test]
    fn every_reason_says_what_was_shown_and_what_to_do() {
        let as_it_is = || shown(|_| {});
        let alert = rustls::Error::AlertReceived;
        let nothing = Seen::default();
        let asked = Seen { wants_ours: true, ..Seen::default() };
        let other = CertificateError::Other(OtherError(std::sync::Arc::new(OfWebpki)));
        for (error, seen, parts) in [
            (invalid(CertificateError::Expired), as_it_is(), &["expired at 1970-01-02", "renew", "CN=Wire Inter"][..]),
            (invalid(CertificateError::NotValidYet), as_it_is(), &["from 1970-01-01", "wait"]),
            (
                invalid(CertificateError::NotValidForName),
                as_it_is(),
                &["another name: other.example.org", "ECDSA P-256"],
            ),
            (
                invalid(CertificateError::NotValidForName),
                shown(|shown| shown.certificate.names.clear()),
                &["subjectAltName", "CN does not count", "a.example.com"],
            ),
            (invalid(CertificateError::UnknownIssuer), as_it_is(), &["issued by CN=Wire Inter", "extra_ca"]),
            (
                invalid(CertificateError::UnknownIssuer),
                shown(|shown| shown.certificate.issuer = "CN=leaf".to_owned()),
                &["signed by itself", "extra_ca"],
            ),
            (
                invalid(CertificateError::BadSignature),
                shown(|shown| shown.certificate.key = "RSA 1024".to_owned()),
                &["RSA of 1024 bits", "2048"],
            ),
            (invalid(CertificateError::BadSignature), as_it_is(), &["signature", "install it anew"]),
            (
                invalid(CertificateError::UnsupportedSignatureAlgorithmContext {
                    signature_algorithm_id: vec![],
                    supported_algorithms: vec![],
                }),
                as_it_is(),
                &["SHA-1 with RSA", "SHA-256"],
            ),
            (invalid(CertificateError::InvalidPurpose), as_it_is(), &["serverAuth"]),
            (invalid(other.clone()), as_it_is(), &["name constraint violation"]),
            (invalid(other), shown(|shown| shown.is_authority = true), &["CA:TRUE", "extra_ca"]),
            (
                invalid(CertificateError::Other(OtherError(std::sync::Arc::new(ChainFault::LookAlikes)))),
                nothing.clone(),
                &["different certificates of one authority", "no others"],
            ),
            (rustls::Error::NoCertificatesPresented, nothing.clone(), &["showed no certificate"]),
            (alert(AlertDescription::ProtocolVersion), nothing.clone(), &["TLS 1.2", "TLS 1.3"]),
            (alert(AlertDescription::HandshakeFailure), nothing.clone(), &["cipher", "handshake_failure"]),
            (alert(AlertDescription::HandshakeFailure), asked.clone(), &["client certificate", "handshake_failure"]),
            (alert(AlertDescription::CertificateRequired), nothing.clone(), &["client certificate"]),
            (alert(AlertDescription::UnrecognisedName), nothing.clone(), &["unrecognized_name", "name"]),
            (alert(AlertDescription::NoApplicationProtocol), nothing.clone(), &["ALPN"]),
            (alert(AlertDescription::InternalError), asked, &["internal_error", "log"]),
            (alert(AlertDescription::Unknown(200)), nothing.clone(), &["alert_200"]),
            (PeerIncompatible::ServerDoesNotSupportTls12Or13.into(), nothing.clone(), &["neither TLS 1.2 nor TLS 1.3"]),
            (
                PeerIncompatible::NoCipherSuitesInCommon.into(),
                nothing.clone(),
                &["no cipher suites in common", "ECDHE"],
            ),
            (
                rustls::PeerMisbehaved::TooManyEmptyFragments.into(),
                nothing,
                &["peer misbehaved: too many empty fragments"],
            ),
        ] {
            let failure = of_handshake(&error, &seen, "a.example.com");
            assert_eq!(failure.phase, Some(Phase::Tls));
            for part in parts {
                assert!(failure.message.contains(part), "{error:?}: {} lacks {part}", failure.message);
            }
            for debug in ["Other", "Context", "{", "::"] {
                assert!(!failure.message.contains(debug), "{error:?}: {}", failure.message);
            }
        }
    }

    #[test]
    fn tls_at_the_root_of_another_error_is_found() {
        let alert = || rustls::Error::AlertReceived(AlertDescription::CertificateRequired);
        let inside = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, alert()));
        assert_eq!(at_the_root_of(&inside), Some(&alert()));
        assert_eq!(at_the_root_of(&io::Error::other("no")), None);
        let some = Some(SoFar { status: 200, bytes: 3, declared: Some(10) });
        for (error, so_far, ends) in [
            (alert(), None, "tls_handshake tls no"),
            (alert(), some, "connection_reset read yes"),
            (rustls::Error::AlertReceived(AlertDescription::InternalError), None, "tls_handshake wait maybe"),
            (rustls::Error::DecryptError, None, "protocol_error wait maybe"),
            (rustls::Error::DecryptError, some, "protocol_error read yes"),
        ] {
            let failure = after_handshake(&error, so_far, "a.example.com");
            let phase = failure.phase.map_or("-", Phase::label);
            assert_eq!(format!("{} {phase} {}", failure.code, failure.processed), ends, "{error:?}");
        }
    }
    #[test]
    fn tls_that_ends_before_a_byte_of_the_request_says_that_nothing_was_handled() {
        for (error, says) in [
            (rustls::Error::AlertReceived(AlertDescription::CertificateRequired), "client certificate"),
            (rustls::Error::AlertReceived(AlertDescription::UnknownCA), "client certificate"),
            (rustls::Error::AlertReceived(AlertDescription::InternalError), "fault of its own"),
            (rustls::Error::AlertReceived(AlertDescription::UnrecognisedName), "does not serve that name"),
            (rustls::Error::DecryptError, "cannot decrypt peer's message"),
        ] {
            let failure = before_request(&error, "a.example.com");
            let phase = failure.phase.map_or("-", Phase::label);
            assert_eq!(format!("{} {phase} {}", failure.code, failure.processed), "tls_handshake tls no", "{error:?}");
            let message = failure.message;
            assert!(message.contains(says) && !message.contains("not known"), "{error:?}: {message}");
        }
    }

    #[test]
    fn a_name_that_no_certificate_can_hold_is_known_by_its_label() {
        for (name, unnameable_by) in [
            ("a.example.com", None),
            ("_a._tcp.example.com", None),
            ("a-b.a--b.xn--bcher-kva.example.com", None),
            ("1.2.example.com", None),
            ("-a.example.com", Some("-a")),
            ("a-.example.com", Some("a-")),
            ("x.-.example.com", Some("-")),
            ("a.b.example-", Some("example-")),
        ] {
            let host = Host::Name(name.into());
            let by = unnameable(&host).map(|cause| match cause {
                TlsCause::NoName { label } => label,
                other => panic!("{other:?}"),
            });
            assert_eq!(by, unnameable_by, "{name}");
            assert_eq!(ServerName::try_from(name).is_err(), by.is_some(), "{name}");
        }
        assert_eq!(unnameable(&Host::Address([127, 0, 0, 1].into())), None);
    }
}
