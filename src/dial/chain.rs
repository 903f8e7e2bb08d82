//! What certificates a peer may show, looked at before anything is computed from them.
//!
//! Verifying a chain is one piece of work that cannot be cut short, and the peer chooses its size: the verifier tries
//! every order of certificates that name each other (up to 200,000 steps, and it reads a certificate anew at each),
//! before the first signature shows that none of them is worth anything. So what is shown is bounded first, in number,
//! in bytes and in look-alikes, by one cheap pass: what is left has a few dozen paths at most. For receivers'
//! certificates and for those of callers alike. Not here: whether a chain is good.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{CertificateError, OtherError};
use x509_parser::asn1_rs::{Any, Class, FromDer};

use crate::limits::{
    TLS_CERTIFICATE_BYTES_MAX, TLS_CERTIFICATES_MAX, TLS_CERTIFICATES_OF_ONE_SUBJECT, TLS_CHAIN_BYTES_MAX,
};
use crate::outcome::words::tls::ChainFault;

impl From<ChainFault> for rustls::Error {
    fn from(error: ChainFault) -> Self {
        CertificateError::Other(OtherError(Arc::new(error))).into()
    }
}

/// The certificates beside the leaf, each once; those that cannot be read, which nothing can follow from, are left
/// out.
pub fn bounded<'c>(
    leaf: &CertificateDer<'_>,
    others: &'c [CertificateDer<'_>],
) -> Result<Vec<CertificateDer<'c>>, ChainFault> {
    let bytes = leaf.len() + others.iter().map(|certificate| certificate.len()).sum::<usize>();
    if bytes > TLS_CHAIN_BYTES_MAX {
        return Err(ChainFault::TooLarge { bytes });
    }
    let largest = others.iter().map(|certificate| certificate.len()).fold(leaf.len(), usize::max);
    if largest > TLS_CERTIFICATE_BYTES_MAX {
        return Err(ChainFault::CertificateTooLarge { bytes: largest });
    }
    let mut kept: Vec<CertificateDer<'c>> = Vec::with_capacity(others.len().min(TLS_CERTIFICATES_MAX));
    let mut of_subject: HashMap<&[u8], usize> = HashMap::new();
    for certificate in others {
        // Servers that show one twice are common, and it is the same path.
        if **certificate == **leaf || kept.iter().any(|known| **known == **certificate) {
            continue;
        }
        let Some(subject) = subject(certificate) else { continue };
        // The leaf is one of them.
        if kept.len() + 1 == TLS_CERTIFICATES_MAX {
            return Err(ChainFault::TooMany { shown: others.len() + 1 });
        }
        let alike = of_subject.entry(subject).or_default();
        *alike += 1;
        if *alike > TLS_CERTIFICATES_OF_ONE_SUBJECT {
            return Err(ChainFault::LookAlikes);
        }
        kept.push(CertificateDer::from(&certificate[..]));
    }
    Ok(kept)
}

/// The subject's bytes, found without reading anything else (RFC 5280 section 4.1).
fn subject(certificate: &[u8]) -> Option<&[u8]> {
    let (_, certificate) = Any::from_der(certificate).ok()?;
    let (_, to_be_signed) = Any::from_der(certificate.data).ok()?;
    let mut rest = to_be_signed.data;
    let mut next = || {
        let (after, field) = Any::from_der(rest).ok()?;
        rest = after;
        Some(field)
    };
    // The version, which version 1 leaves out, and the serial number.
    if next()?.header.class() == Class::ContextSpecific {
        next()?;
    }
    let (_algorithm, _issuer, _validity) = (next()?, next()?, next()?);
    Some(next()?.data)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};

    use super::*;

    fn certificate(subject: &str, padding: usize) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, subject);
        params.distinguished_name.push(DnType::OrganizationName, "x".repeat(padding));
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn a_chain_is_bounded_in_number_bytes_and_look_alikes() {
        let leaf = certificate("leaf", 0);
        let distinct = |count: usize| (0..count).map(|n| certificate(&format!("ca {n}"), 0)).collect::<Vec<_>>();
        let alike = |count: usize| (0..count).map(|_| certificate("X", 0)).collect::<Vec<_>>();
        let twice = |mut chain: Vec<CertificateDer<'static>>| {
            chain.extend(chain.clone());
            chain
        };
        let junk = || vec![CertificateDer::from(&b"not a certificate"[..]); 300];
        for (what, chain, kept) in [
            ("none", vec![], Ok(0)),
            ("the usual", distinct(2), Ok(2)),
            ("the most", distinct(TLS_CERTIFICATES_MAX - 1), Ok(TLS_CERTIFICATES_MAX - 1)),
            ("one more", distinct(TLS_CERTIFICATES_MAX), Err(ChainFault::TooMany { shown: TLS_CERTIFICATES_MAX + 1 })),
            ("each twice", twice(distinct(5)), Ok(5)),
            ("the leaf again", vec![leaf.clone(), leaf.clone()], Ok(0)),
            ("crossed", alike(TLS_CERTIFICATES_OF_ONE_SUBJECT), Ok(TLS_CERTIFICATES_OF_ONE_SUBJECT)),
            ("look-alikes", alike(TLS_CERTIFICATES_OF_ONE_SUBJECT + 1), Err(ChainFault::LookAlikes)),
            ("one of them twice", twice(alike(2)), Ok(2)),
            ("what is none", junk(), Ok(0)),
            ("good among what is none", [junk(), distinct(1)].concat(), Ok(1)),
        ] {
            assert_eq!(bounded(&leaf, &chain).map(|kept| kept.len()), kept, "{what}");
        }
        // A subject stands in each twice, as its issuer as well.
        let large = certificate("large", TLS_CERTIFICATE_BYTES_MAX / 2);
        let bytes = large.len();
        assert_eq!(bounded(&leaf, std::slice::from_ref(&large)), Err(ChainFault::CertificateTooLarge { bytes }));
        assert_eq!(bounded(&large, &[]), Err(ChainFault::CertificateTooLarge { bytes }));
        let half: Vec<_> = (0..3).map(|n| certificate(&format!("{n}"), TLS_CHAIN_BYTES_MAX / 6)).collect();
        assert!(matches!(bounded(&leaf, &half), Err(ChainFault::TooLarge { .. })));
    }

    #[test]
    fn a_subject_is_found_as_a_whole_reading_finds_it() {
        for name in ["a", "Wire Inter", "ü"] {
            let der = certificate(name, 3);
            let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
            let (_, whole) = Any::from_der(parsed.subject().as_raw()).unwrap();
            assert_eq!(subject(&der), Some(whole.data));
        }
        assert_eq!(subject(b""), None);
        assert_eq!(subject(&[0x30, 0x80]), None);
    }
}
