//! TLS towards destinations: whom we trust, the handshake, and what is remembered of it.
//!
//! The certificate is verified against the name the send gave, never what DNS made of it. Sessions are resumed, each
//! tenant's apart from the others'; there is no 0-RTT, which an attacker could replay. Not here: TLS of our own
//! listeners.

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, ProtocolVersion, RootCertStore, SignatureScheme};
use tokio_rustls::{TlsConnector, client::TlsStream};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::chain::{self, ChainError};
use super::wire::{PeerEnd, Wire};
use crate::config::{Roots, Tls};
use crate::limits::{TLS_SESSIONS_PER_TENANT, TLS_TENANTS_MAX};
use crate::outcome::{Code, Failure, Phase};
use crate::policy::Host;
use crate::record::{Certificate, TlsFacts};
use crate::send::TenantId;

/// Why the configured trust cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("`[tls] extra_ca` {path}: {cause}: give a readable PEM file of CA certificates")]
    ExtraCa { path: PathBuf, cause: String },
    #[error(
        "`[tls] roots = \"platform\"`: this host's certificate store is empty: install its ca-certificates, or use \"webpki\""
    )]
    NoPlatformRoots,
    #[error("TLS cannot be set up: {0}")]
    Provider(String),
}

/// Whom we trust, as `[tls]` says, and each tenant's sessions.
pub struct Trust {
    base: ClientConfig,
    /// For what this node asks for its own sake, of which nothing is kept.
    unresumed: Arc<ClientConfig>,
    tenants: Mutex<HashMap<TenantId, Arc<ClientConfig>>>,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trust")
    }
}

impl Trust {
    /// Reads the files; nothing is kept of a trust that does not load.
    pub fn load(settings: &Tls) -> Result<Self, TrustError> {
        let mut roots = RootCertStore::empty();
        match settings.roots {
            Roots::Webpki => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Roots::Platform => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if roots.is_empty() {
                    return Err(TrustError::NoPlatformRoots);
                }
            }
        }
        let mut extra = Vec::new();
        for path in &settings.extra_ca {
            let bad = |cause: String| TrustError::ExtraCa { path: path.clone(), cause };
            let mut any = false;
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| bad(error.to_string()))? {
                let certificate = certificate.map_err(|error| bad(error.to_string()))?;
                roots.add(certificate.clone()).map_err(|error| bad(error.to_string()))?;
                extra.push(certificate);
                any = true;
            }
            if !any {
                return Err(bad("it holds no certificate".to_owned()));
            }
        }
        // Named, because a second provider in the dependency graph would make the default one ambiguous.
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let unusable = |error: &dyn fmt::Display| TrustError::Provider(error.to_string());
        let by_chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|error| unusable(&error))?;
        let mut base = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier { by_chain, extra }))
            .with_no_client_auth();
        base.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        base.enable_early_data = false;
        base.resumption = Resumption::disabled();
        Ok(Self { unresumed: Arc::new(base.clone()), base, tenants: Mutex::default() })
    }

    fn of(&self, tenant: &TenantId) -> Arc<ClientConfig> {
        if *tenant == TenantId::OURSELVES {
            return self.unresumed.clone();
        }
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = tenants.get(tenant) {
            return config.clone();
        }
        if tenants.len() >= TLS_TENANTS_MAX {
            tenants.clear();
        }
        let mut config = self.base.clone();
        config.resumption = Resumption::in_memory_sessions(TLS_SESSIONS_PER_TENANT);
        let config = Arc::new(config);
        tenants.insert(tenant.clone(), config.clone());
        config
    }

    /// The handshake. Runs until the caller's deadline drops it.
    pub async fn handshake(
        &self,
        tenant: &TenantId,
        host: &Host,
        wire: Wire,
    ) -> Result<(Box<TlsStream<Wire>>, TlsFacts), Failure> {
        let name = server_name(host)?;
        let meter = wire.meter().clone();
        let stream = TlsConnector::from(self.of(tenant)).connect(name, wire).await.map_err(|error| {
            match error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) {
                Some(cause) => of_rustls(cause, host),
                None => of_peer(meter.peer_end(), host),
            }
        })?;
        let facts = facts(&stream);
        Ok((Box::new(stream), facts))
    }
}

/// Verifies as the public roots and `extra_ca` have it, once what is shown is within bounds.
#[derive(Debug)]
struct Verifier {
    by_chain: Arc<WebPkiServerVerifier>,
    /// Certificates that the operator trusts by themselves.
    extra: Vec<CertificateDer<'static>>,
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
        // `openssl req -x509` marks what it makes as an authority's, which no server's certificate may be in a chain.
        // Here it is no chain's: the operator has named this very certificate, as one does for curl.
        if self.extra.iter().any(|trusted| **trusted == **leaf) {
            return by_itself(leaf, name, now);
        }
        self.by_chain.verify_server_cert(leaf, &others, name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_chain.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_chain.verify_tls13_signature(message, leaf, signature)
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

fn server_name(host: &Host) -> Result<ServerName<'static>, Failure> {
    match host {
        Host::Address(address) => Ok(ServerName::from(*address)),
        Host::Name(name) => ServerName::try_from(name.to_string()).map_err(|_| {
            let message =
                format!("{name} is not a name that a TLS certificate can hold; use another name for the receiver");
            Failure::new(Code::TlsHandshake, Phase::Tls, message)
        }),
    }
}

fn of_rustls(error: &rustls::Error, host: &Host) -> Failure {
    let host = host.text();
    let (code, message) = match error {
        rustls::Error::InvalidCertificate(reason) => {
            let (what, then) = of_certificate(reason);
            (Code::TlsCertificate, format!("the certificate of {host} was not accepted: {what}; {then}"))
        }
        rustls::Error::NoCertificatesPresented => {
            (Code::TlsCertificate, format!("{host} showed no certificate; install one that is valid for its name"))
        }
        rustls::Error::InvalidMessage(_) => (
            Code::TlsHandshake,
            format!("{host} does not speak TLS on this port ({error}); use http:// or the receiver's TLS port"),
        ),
        rustls::Error::AlertReceived(_) => (
            Code::TlsHandshake,
            format!(
                "{host} ended the TLS handshake ({error}); check its TLS set-up, its name for SNI, and whether it asks for a client certificate"
            ),
        ),
        _ => (
            Code::TlsHandshake,
            format!(
                "the TLS handshake with {host} failed ({error}); the receiver must speak TLS 1.2 or 1.3 with a current cipher"
            ),
        ),
    };
    Failure::new(code, Phase::Tls, message)
}

/// What is wrong with a certificate, and what to do about it.
fn of_certificate(reason: &CertificateError) -> (String, &'static str) {
    match reason {
        CertificateError::Expired => ("it has expired".to_owned(), "renew it"),
        CertificateError::ExpiredContext { not_after, .. } => {
            let day = i64::try_from(not_after.as_secs()).ok().and_then(|at| Timestamp::from_second(at).ok());
            (day.map_or("it has expired".to_owned(), |at| format!("it expired at {at}")), "renew it")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            ("it is not valid yet".to_owned(), "wait, or install one that is")
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            ("it is for another name".to_owned(), "install one for this name, or send to the name it is for")
        }
        CertificateError::UnknownIssuer => (
            "it was issued by an authority that is not trusted".to_owned(),
            "install the whole chain, or have the operator add the authority to `[tls] extra_ca`",
        ),
        CertificateError::Revoked => ("it has been revoked".to_owned(), "install a new one"),
        CertificateError::Other(other) if other.0.is::<ChainError>() => {
            (other.to_string(), "install it with the certificates of its authorities up to the root, and no others")
        }
        CertificateError::BadSignature => ("its signature is wrong".to_owned(), "install it anew with its chain"),
        other => (format!("{other}"), "install one that public clients accept"),
    }
}

/// The peer went away in the middle.
fn of_peer(end: Option<PeerEnd>, host: &Host) -> Failure {
    let host = host.text();
    let (code, what) = match end {
        Some(PeerEnd::Reset) => (Code::ConnectionReset, "reset the connection"),
        Some(PeerEnd::Lost) => (Code::HostUnreachable, "could not be reached any more"),
        Some(PeerEnd::Closed) | None => (Code::ConnectionClosed, "closed the connection"),
    };
    let message =
        format!("{host} {what} during the TLS handshake; check that this port speaks TLS and admits our addresses");
    Failure::new(code, Phase::Tls, message)
}

fn facts(stream: &TlsStream<Wire>) -> TlsFacts {
    let (_, session) = stream.get_ref();
    TlsFacts {
        version: match session.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3".to_owned(),
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2".to_owned(),
            other => other.map_or(String::new(), |version| format!("{version:?}")),
        },
        cipher: session.negotiated_cipher_suite().map_or(String::new(), |suite| format!("{:?}", suite.suite())),
        alpn: session.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned()),
        certificate: session.peer_certificates().and_then(|chain| chain.first()).and_then(|leaf| certificate(leaf)),
    }
}

fn certificate(der: &[u8]) -> Option<Certificate> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
    Some(Certificate {
        subject: parsed.subject().to_string(),
        issuer: parsed.issuer().to_string(),
        not_after: Timestamp::from_second(parsed.validity().not_after.timestamp()).ok()?,
        sha256: digest.as_ref().try_into().ok()?,
    })
}
