//! What is said of a handshake that failed, and of TLS that ended a connection later.
//!
//! Each of rustls' reasons in words for the author: what the receiver showed or said, with its values, and what to do.
//! What a receiver gives is bounded and tamed where it was read.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError, PeerIncompatible};

use super::verifier::{Seen, Shown};
use crate::dial::chain::ChainError;
use crate::dial::wire::PeerEnd;
use crate::outcome::{Code, Failure, Phase};
use crate::policy::Host;

/// RSA keys below this are not accepted (NIST SP 800-131A; public authorities issue none).
const RSA_BITS_MIN: u32 = 2048;

/// What rustls said of a handshake.
pub fn of_handshake(error: &rustls::Error, seen: &Seen, host: &Host) -> Failure {
    let host = host.text();
    let handshake = |message: String| Failure::new(Code::TlsHandshake, Phase::Tls, message);
    match error {
        rustls::Error::InvalidCertificate(reason) => {
            let (what, then) = of_certificate(reason, seen.refused.as_ref(), &host);
            let shown = seen.refused.as_ref().map(shown).unwrap_or_default();
            let message = format!("the certificate of {host} was not accepted: {what}; {then}{shown}");
            Failure::new(Code::TlsCertificate, Phase::Tls, message)
        }
        rustls::Error::NoCertificatesPresented => Failure::new(
            Code::TlsCertificate,
            Phase::Tls,
            format!("{host} showed no certificate; install one that is valid for its name"),
        ),
        rustls::Error::InvalidMessage(_) => handshake(format!(
            "{host} does not speak TLS on this port (what it sent is none); use http:// or the receiver's TLS port"
        )),
        rustls::Error::AlertReceived(alert) => handshake(of_alert(*alert, seen.wants_ours, &host)),
        rustls::Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        ) => handshake(old_version(&host)),
        rustls::Error::PeerIncompatible(_) => {
            handshake(format!("{host} wants TLS as we do not speak it ({}); {}", plain(&error.to_string()), CIPHERS))
        }
        rustls::Error::NoApplicationProtocol => handshake(no_protocol(&host)),
        _ => handshake(format!(
            "the TLS handshake with {host} failed ({}); check its TLS set-up with another client, and what stands before it",
            plain(&error.to_string())
        )),
    }
}

const CIPHERS: &str = "it must offer TLS 1.3, or TLS 1.2 with an ECDHE cipher suite with AES-GCM or ChaCha20-Poly1305";

fn old_version(host: &str) -> String {
    format!(
        "{host} speaks neither TLS 1.2 nor TLS 1.3, and older versions are not spoken any more; turn on one of the two"
    )
}

fn no_protocol(host: &str) -> String {
    format!("{host} speaks neither HTTP/2 nor HTTP/1.1 over TLS here (ALPN); have it offer one of the two")
}

/// It ended the handshake itself.
fn of_alert(alert: AlertDescription, wants_ours: bool, host: &str) -> String {
    let name = name_of(alert);
    if alert == AlertDescription::CertificateRequired || (wants_ours && is_about_ours(alert)) {
        return wants_certificate(alert, host);
    }
    match alert {
        AlertDescription::ProtocolVersion => old_version(host),
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => format!(
            "{host} found no cipher suite, or no other thing, that both of us take (its alert: {name}); {CIPHERS}"
        ),
        AlertDescription::UnrecognisedName => format!(
            "{host} does not serve that name (its alert: {name}); send to a name that it serves, or add this one to its TLS set-up"
        ),
        AlertDescription::NoApplicationProtocol => no_protocol(host),
        AlertDescription::InternalError => {
            format!("{host} ended the TLS handshake over a fault of its own (its alert: {name}); look into its log")
        }
        AlertDescription::AccessDenied => format!(
            "{host} refuses us in the TLS handshake (its alert: {name}); have it let our published addresses in"
        ),
        _ => format!("{host} ended the TLS handshake (its alert: {name}); check its TLS set-up, and look into its log"),
    }
}

fn wants_certificate(alert: AlertDescription, host: &str) -> String {
    format!(
        "{host} asks for a client certificate, of which this node has none (its alert: {}); have it take requests without one, and tell by a header who you are",
        name_of(alert)
    )
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

/// TLS ended the connection after our side of the handshake was done: over TLS 1.3 that is when a receiver says that it
/// wants a certificate of ours (RFC 8446 section 4.4.2.4), and nothing of the request was looked at.
pub fn after_handshake(error: &rustls::Error, phase: Phase, host: &str) -> Failure {
    match error {
        rustls::Error::AlertReceived(alert) if phase != Phase::Read && is_about_ours(*alert) => {
            Failure::new(Code::TlsHandshake, Phase::Tls, wants_certificate(*alert, host))
        }
        rustls::Error::AlertReceived(alert) => {
            let name = name_of(*alert);
            let (code, when) = match phase {
                Phase::Read => (Code::ConnectionReset, "in the middle of its answer"),
                _ => (Code::TlsHandshake, "before it answered"),
            };
            let message = format!(
                "{host} ended TLS {when} (its alert: {name}); whether the request was handled is not known, and it is not sent again: look into the receiver's log"
            );
            Failure::new(code, phase, message)
        }
        _ => {
            let message = format!(
                "{host} broke TLS on the open connection ({}); whether the request was handled is not known, and it is not sent again: check what stands before the receiver",
                plain(&error.to_string())
            );
            Failure::new(Code::ProtocolError, phase, message)
        }
    }
}

/// What is wrong with a certificate, and what to do about it.
fn of_certificate(reason: &CertificateError, shown: Option<&Shown>, host: &str) -> (String, String) {
    let then = |what: &str, then: &str| (what.to_owned(), then.to_owned());
    let certificate = shown.map(|shown| &shown.certificate);
    match reason {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
            certificate
                .map_or("it has expired".to_owned(), |certificate| format!("it expired at {}", certificate.not_after)),
            "renew it".to_owned(),
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => (
            match certificate.and_then(|certificate| certificate.not_before) {
                Some(at) => format!("it is not valid yet, but from {at} on"),
                None => "it is not valid yet".to_owned(),
            },
            "wait, or install one that is".to_owned(),
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => match certificate {
            Some(certificate) if certificate.names.is_empty() => (
                "it names no host in its subjectAltName, and a CN does not count".to_owned(),
                format!("have it issued with {host} in its subjectAltName"),
            ),
            Some(certificate) => (
                format!("it is for another name: {}", certificate.names.join(", ")),
                "install one for this name, or send to a name it is for".to_owned(),
            ),
            None => then("it is for another name", "install one for this name, or send to the name it is for"),
        },
        CertificateError::UnknownIssuer => match certificate {
            Some(certificate) if certificate.issuer == certificate.subject => then(
                "it is signed by itself, and nobody vouches for it",
                "install one of a public authority, or have the operator add it to `[tls] extra_ca`",
            ),
            Some(certificate) => (
                format!(
                    "it was issued by {}, which is not trusted or whose own certificate is missing",
                    certificate.issuer
                ),
                "install the whole chain, or have the operator add the authority to `[tls] extra_ca`".to_owned(),
            ),
            None => then(
                "it was issued by an authority that is not trusted",
                "install the whole chain, or have the operator add the authority to `[tls] extra_ca`",
            ),
        },
        CertificateError::Revoked => then("it has been revoked", "install a new one"),
        CertificateError::BadSignature => match certificate.and_then(|certificate| weak_rsa(&certificate.key)) {
            Some(bits) => (
                format!("its key is RSA of {bits} bits, and {RSA_BITS_MIN} are the least that is accepted"),
                format!("have it issued for a key of at least {RSA_BITS_MIN} bits, or an ECDSA one"),
            ),
            None => then("a signature of it is wrong", "install it anew, with its chain and its own key"),
        },
        #[allow(deprecated, reason = "still one of its values")]
        CertificateError::UnsupportedSignatureAlgorithm
        | CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => (
            match shown {
                Some(shown) => format!(
                    "it, or one that it comes from, is signed in a way that is not accepted ({})",
                    shown.signed_with
                ),
                None => "it is signed in a way that is not accepted".to_owned(),
            },
            "have it issued with SHA-256, by RSA or ECDSA".to_owned(),
        ),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            then("it is not one for servers (its extended key usage lacks serverAuth)", "install one that is")
        }
        CertificateError::UnhandledCriticalExtension => {
            then("it holds a critical extension that is not known", "install one that public clients accept")
        }
        CertificateError::BadEncoding => then("it cannot be read", "install one that public clients accept"),
        CertificateError::Other(other) if other.0.is::<ChainError>() => (
            other.0.to_string(),
            "install it with the certificates of its authorities up to the root, and no others".to_owned(),
        ),
        _ if shown.is_some_and(|shown| shown.is_authority) => then(
            "it is marked as an authority's own (CA:TRUE), as `openssl req -x509` makes it",
            "install a server's certificate, or have the operator add this very one to `[tls] extra_ca`",
        ),
        CertificateError::Other(other) => (
            format!("it breaks a rule ({})", plain(&other.0.to_string())),
            "install one that public clients accept".to_owned(),
        ),
        other => (plain(&other.to_string()), "install one that public clients accept".to_owned()),
    }
}

fn weak_rsa(key: &str) -> Option<u32> {
    let bits = key.strip_prefix("RSA ")?.parse().ok()?;
    (bits < RSA_BITS_MIN).then_some(bits)
}

/// Who showed what.
fn shown(shown: &Shown) -> String {
    let one = &shown.certificate;
    let from = one.not_before.map(|at| format!("from {at} ")).unwrap_or_default();
    let names = if one.names.is_empty() { "no host".to_owned() } else { one.names.join(", ") };
    format!(
        " (it showed {}, for {names}, issued by {}, valid {from}to {}, with a key of {})",
        one.subject, one.issuer, one.not_after, one.key
    )
}

/// The peer went away in the middle.
pub fn of_peer(end: Option<PeerEnd>, host: &Host) -> Failure {
    let host = host.text();
    let (code, what) = match end {
        Some(PeerEnd::Reset) => (Code::ConnectionReset, "reset the connection"),
        Some(PeerEnd::Lost) => (Code::HostUnreachable, "could not be reached any more"),
        Some(PeerEnd::Closed) | None => (Code::ConnectionClosed, "closed the connection"),
    };
    let message = format!(
        "{host} {what} during the TLS handshake; check that this port speaks TLS, and that what stands before it lets our published addresses in"
    );
    Failure::new(code, Phase::Tls, message)
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

    use super::*;
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
        let host = Host::Name("a.example.com".into());
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
            (ChainError::LookAlikes.into(), nothing.clone(), &["different certificates of one authority", "no others"]),
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
            let failure = of_handshake(&error, &seen, &host);
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
        for (error, phase, ends) in [
            (alert(), Phase::Wait, "tls_handshake tls"),
            (alert(), Phase::Write, "tls_handshake tls"),
            (alert(), Phase::Read, "connection_reset read"),
            (rustls::Error::AlertReceived(AlertDescription::InternalError), Phase::Wait, "tls_handshake wait"),
            (rustls::Error::DecryptError, Phase::Read, "protocol_error read"),
        ] {
            let failure = after_handshake(&error, phase, "a.example.com");
            let phase = failure.phase.map_or("-", Phase::label);
            assert_eq!(format!("{} {phase}", failure.code), ends, "{error:?}");
        }
    }
}
