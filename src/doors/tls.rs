//! TLS of a listener, mutual where `client_ca` is given. Files are read anew by a reload.
//!
//! Who speaks plain HTTP to it gets an answer in plain HTTP that says so: anything else would look like a dead port.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::ListenerTls;
use crate::dial::chain;

/// What is wrong with the files of a listener's TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{listener}: {path} cannot be read as {what}: {cause}")]
    File {
        listener: &'static str,
        path: PathBuf,
        what: &'static str,
        #[source]
        cause: Cause,
    },
    #[error("{listener}: certificate and key cannot be used: {cause}: is the key that of the first certificate?")]
    Pair {
        listener: &'static str,
        #[source]
        cause: rustls::Error,
    },
    #[error("{listener}: client_ca {path} cannot be used: {cause}")]
    ClientCa {
        listener: &'static str,
        path: PathBuf,
        #[source]
        cause: Cause,
    },
}

type Cause = Box<dyn Error + Send + Sync>;

/// The TLS settings in force; connections made before a reload keep theirs.
pub struct Acceptor(ArcSwap<ServerConfig>);

/// A listener that may have TLS: how it is called in messages, and what is spoken there.
#[derive(Clone, Copy, Debug)]
pub enum Listener {
    Api,
    Publish,
    Proxy,
}

impl Listener {
    fn name(self) -> &'static str {
        match self {
            Self::Api => "[api] tls",
            Self::Publish => "[publish] tls",
            Self::Proxy => "[proxy] tls",
        }
    }

    fn protocols(self) -> Vec<Vec<u8>> {
        let all: &[&[u8]] = match self {
            Self::Api | Self::Proxy => &[b"h2", b"http/1.1"],
            Self::Publish => &[b"http/1.1"],
        };
        all.iter().map(|protocol| protocol.to_vec()).collect()
    }
}

impl Acceptor {
    pub fn load(listener: Listener, files: &ListenerTls) -> Result<Self, TlsError> {
        Ok(Self(ArcSwap::new(server_config(listener, files)?)))
    }

    /// Takes over what was loaded beside this one, for connections from now on.
    pub fn replace(&self, loaded: &Self) {
        self.0.store(loaded.0.load_full());
    }

    pub fn current(&self) -> tokio_rustls::TlsAcceptor {
        self.0.load_full().into()
    }
}

fn server_config(which: Listener, files: &ListenerTls) -> Result<Arc<ServerConfig>, TlsError> {
    let listener = which.name();
    let chain = certificates(listener, &files.cert)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| TlsError::File {
        listener,
        path: files.key.clone(),
        what: "a private key in PEM",
        cause: error.into(),
    })?;
    let pair = |cause| TlsError::Pair { listener, cause };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().map_err(pair)?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let unusable = |cause: Cause| TlsError::ClientCa { listener, path: path.clone(), cause };
            let mut roots = RootCertStore::empty();
            for certificate in certificates(listener, path)? {
                roots.add(certificate).map_err(|error| unusable(error.into()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| unusable(error.into()))?;
            builder.with_client_cert_verifier(Arc::new(Bounded(verifier)))
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(pair)?;
    config.alpn_protocols = which.protocols();
    Ok(Arc::new(config))
}

/// Looks at what a caller shows, who needs no credentials for that, before anything is verified of it.
#[derive(Debug)]
struct Bounded(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Bounded {
    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.0.verify_client_cert(leaf, &chain::bounded(leaf, others)?, now)
    }

    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// How much of what such a caller sent is read, so that the answer is not lost to a reset.
const PLAIN_BYTES_MAX: usize = 64 * 1024;
/// And for how long.
const PLAIN_TIME: Duration = Duration::from_secs(1);
/// The first byte of a handshake (RFC 8446 section 5.1).
const HANDSHAKE: u8 = 22;

/// Whether this connection begins as TLS does; one that has ended does, too.
pub async fn speaks_tls(stream: &TcpStream) -> bool {
    let mut first = [0];
    !matches!(stream.peek(&mut first).await, Ok(1) if first[0] != HANDSHAKE)
}

/// To one who speaks plain HTTP where TLS is spoken. `kind` and `body` are the answer's.
pub async fn tell_plain(mut stream: TcpStream, kind: &str, body: &[u8]) {
    let head = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: {kind}\r\ncontent-length: {}\r\ncache-control: no-store\r\n\
         connection: close\r\n\r\n",
        body.len()
    );
    let told = async {
        stream.write_all(&[head.as_bytes(), body].concat()).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(PLAIN_BYTES_MAX as u64), &mut tokio::io::sink()).await
    };
    #[allow(clippy::disallowed_methods, reason = "a caller's own slowness, no part of any delivery")]
    let _ = tokio::time::timeout(PLAIN_TIME, told).await;
}

fn certificates(listener: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable =
        |cause: Cause| TlsError::File { listener, path: path.to_owned(), what: "certificates in PEM", cause };
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(|error| unreadable(error.into()))?.collect();
    let certificates = certificates.map_err(|error| unreadable(error.into()))?;
    if certificates.is_empty() {
        return Err(unreadable("it holds none".into()));
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::words::tls::ChainFault;

    #[test]
    fn a_caller_cannot_have_paths_looked_for_through_look_alikes() {
        let authority = || {
            let mut params = rcgen::CertificateParams::default();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.distinguished_name.push(rcgen::DnType::CommonName, "X");
            rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap()
        };
        let (trusted, issuer) = (authority(), authority());
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::default().signed_by(&key, &issuer).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(trusted.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = Bounded(WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap());
        for (count, looked_at) in [(0, true), (2, true), (3, false), (20, false)] {
            let chain: Vec<_> = (0..count).map(|_| authority().der().clone()).collect();
            let refused = verifier.verify_client_cert(leaf.der(), &chain, UnixTime::now()).unwrap_err();
            let rustls::Error::InvalidCertificate(rustls::CertificateError::Other(why)) = &refused else {
                assert!(looked_at, "{count}: {refused}");
                continue;
            };
            assert!(!looked_at && why.0.is::<ChainFault>(), "{count}: {refused}");
        }
    }
}
