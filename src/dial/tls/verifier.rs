//! Who is believed to be a receiver, and what is seen of it on the way to that.
//!
//! The public roots and `[tls] extra_ca` decide, once what is shown is within bounds ([`super::super::chain`]). What a
//! receiver shows and asks for is kept beside the handshake ([`Seen`]), because of one that fails rustls keeps nothing.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use crate::dial::chain;
use crate::limits::{CERTIFICATE_NAMES_MAX, CERTIFICATE_TEXT_CHARS_MAX};
use crate::outcome::tame;
use crate::record::Certificate;

/// What one handshake came to see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// A certificate that was not accepted.
    pub refused: Option<Shown>,
    /// It asked for a certificate of ours, of which we have none.
    pub wants_ours: bool,
}

/// A certificate, and what of it only a refusal speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub certificate: Certificate,
    pub is_authority: bool,
    pub signed_with: String,
}

tokio::task_local! {
    /// Of the handshake that this task is making: rustls verifies within its poll.
    pub static SEEN: RefCell<Seen>;
}

fn note(note: impl FnOnce(&mut Seen)) {
    // Outside of a handshake there is nobody to tell.
    let _ = SEEN.try_with(|seen| note(&mut seen.borrow_mut()));
}

#[derive(Debug)]
pub struct Verifier {
    pub by_chain: Arc<WebPkiServerVerifier>,
    /// Certificates that the operator trusts by themselves.
    pub extra: Vec<CertificateDer<'static>>,
}

impl Verifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // `openssl req -x509` marks what it makes as an authority's, which no server's certificate may be in a chain.
        // Here it is no chain's: the operator has named this very certificate, as one does for curl.
        if self.extra.iter().any(|trusted| **trusted == **leaf) {
            return by_itself(leaf, name, now);
        }
        self.by_chain.verify_server_cert(leaf, others, name, ocsp_response, now)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let others = chain::bounded(leaf, others)?;
        self.verify(leaf, &others, name, ocsp_response, now)
            .inspect_err(|_| note(|seen| seen.refused = Shown::read(leaf)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_chain
            .verify_tls12_signature(message, leaf, signature)
            .inspect_err(|_| note(|seen| seen.refused = Shown::read(leaf)))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_chain
            .verify_tls13_signature(message, leaf, signature)
            .inspect_err(|_| note(|seen| seen.refused = Shown::read(leaf)))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_chain.supported_verify_schemes()
    }
}

/// Name, dates and purpose of a certificate that is trusted without an issuer.
fn by_itself(
    leaf: &CertificateDer<'_>,
    name: &ServerName<'_>,
    now: UnixTime,
) -> Result<ServerCertVerified, rustls::Error> {
    verify_server_name(&ParsedCertificate::try_from(leaf)?, name)?;
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| CertificateError::BadEncoding)?;
    let at = |time: i64| UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(time).unwrap_or_default()));
    let validity = parsed.validity();
    let (not_before, not_after) = (at(validity.not_before.timestamp()), at(validity.not_after.timestamp()));
    if now < not_before {
        return Err(CertificateError::NotValidYetContext { time: now, not_before }.into());
    }
    if now > not_after {
        return Err(CertificateError::ExpiredContext { time: now, not_after }.into());
    }
    match parsed.extended_key_usage() {
        Ok(Some(usage)) if !usage.value.server_auth && !usage.value.any => Err(CertificateError::InvalidPurpose.into()),
        Ok(_) => Ok(ServerCertVerified::assertion()),
        Err(_) => Err(CertificateError::BadEncoding.into()),
    }
}

/// We have no certificate of our own; but who asks for one is told apart from who does not.
#[derive(Debug)]
pub struct NoneOfOurs;

impl ResolvesClientCert for NoneOfOurs {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        note(|seen| seen.wants_ours = true);
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

impl Shown {
    fn read(der: &[u8]) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        Some(Self {
            certificate: certificate(der, &parsed)?,
            is_authority: parsed.is_ca(),
            signed_with: signature_name(&parsed.signature_algorithm.algorithm.to_id_string()),
        })
    }
}

/// What a record says of a certificate.
pub fn read(der: &[u8]) -> Option<Certificate> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    certificate(der, &parsed)
}

fn certificate(der: &[u8], parsed: &X509Certificate<'_>) -> Option<Certificate> {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
    let text = |text: &str| tame(text, CERTIFICATE_TEXT_CHARS_MAX);
    let names = match parsed.subject_alternative_name() {
        Ok(Some(names)) => names.value.general_names.iter().filter_map(name_of).take(CERTIFICATE_NAMES_MAX).collect(),
        _ => Vec::new(),
    };
    let validity = parsed.validity();
    Some(Certificate {
        subject: text(&parsed.subject().to_string()),
        issuer: text(&parsed.issuer().to_string()),
        names,
        not_before: Timestamp::from_second(validity.not_before.timestamp()).ok(),
        not_after: Timestamp::from_second(validity.not_after.timestamp()).ok()?,
        key: key_of(parsed),
        sha256: digest.as_ref().try_into().ok()?,
    })
}

fn name_of(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(tame(name, CERTIFICATE_TEXT_CHARS_MAX)),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(std::net::IpAddr::from);
            let v6 = || <[u8; 16]>::try_from(*bytes).map(std::net::IpAddr::from);
            v4.or_else(|_| v6()).ok().map(|address| address.to_string())
        }
        _ => None,
    }
}

/// `RSA 2048`, `ECDSA P-256`, `Ed25519`, or the algorithm's number.
fn key_of(parsed: &X509Certificate<'_>) -> String {
    let algorithm = parsed.public_key().algorithm.algorithm.to_id_string();
    match parsed.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => format!("RSA {}", key.key_size()),
        // Of 66 bytes each, of which it uses 521 bits.
        Ok(PublicKey::EC(point)) if point.key_size() == 528 => "ECDSA P-521".to_owned(),
        Ok(PublicKey::EC(point)) => format!("ECDSA P-{}", point.key_size()),
        Ok(PublicKey::DSA(_)) => "DSA".to_owned(),
        _ if algorithm == "1.3.101.112" => "Ed25519".to_owned(),
        _ => algorithm,
    }
}

/// Those that are still met and not accepted have names (RFC 3279, RFC 5758); others their numbers.
fn signature_name(number: &str) -> String {
    match number {
        "1.2.840.113549.1.1.4" => "MD5 with RSA",
        "1.2.840.113549.1.1.5" => "SHA-1 with RSA",
        "1.2.840.10045.4.1" => "SHA-1 with ECDSA",
        "1.2.840.10040.4.3" => "SHA-1 with DSA",
        "1.2.840.113549.1.1.11" => "SHA-256 with RSA",
        "1.2.840.10045.4.3.2" => "SHA-256 with ECDSA",
        "1.3.101.112" => "Ed25519",
        other => other,
    }
    .to_owned()
}
