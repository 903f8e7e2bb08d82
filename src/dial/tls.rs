//! TLS towards destinations: whom we trust, the handshake, and what is remembered of it.
//!
//! The certificate is verified against the name the send gave, never what DNS made of it. Sessions are resumed, each
//! tenant's apart from the others'; there is no 0-RTT, which an attacker could replay. Not here: TLS of our own
//! listeners.

pub mod faults;
mod sessions;
mod verifier;

use std::{cell::RefCell, error::Error, fmt, path::PathBuf, sync::Arc};

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, ProtocolVersion, RootCertStore};
use tokio_rustls::{TlsConnector, client::TlsStream};

use self::sessions::Sessions;
use self::verifier::{NoneOfOurs, SEEN, Verifier};
use super::wire::Wire;
use crate::config::{Roots, Tls};
use crate::outcome::Failure;
use crate::outcome::words::TlsCause;
use crate::policy::Host;
use crate::record::TlsFacts;
use crate::send::TenantId;

/// Why the configured trust cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("`[tls] extra_ca` {path}: {cause}: give a readable PEM file of CA certificates")]
    ExtraCa {
        path: PathBuf,
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
    #[error(
        "`[tls] roots = \"platform\"`: this host's certificate store is empty: install its ca-certificates, or use \"webpki\""
    )]
    NoPlatformRoots,
    #[error("TLS cannot be set up: {0}")]
    Provider(#[source] Box<dyn Error + Send + Sync>),
}

/// Whom we trust, as `[tls]` says, and each tenant's sessions.
pub struct Trust {
    base: ClientConfig,
    /// For what this node asks for its own sake, of which nothing is kept.
    unresumed: Arc<ClientConfig>,
    sessions: Sessions,
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
            let bad = |cause: Box<dyn Error + Send + Sync>| TrustError::ExtraCa { path: path.clone(), cause };
            let mut any = false;
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| bad(error.into()))? {
                let certificate = certificate.map_err(|error| bad(error.into()))?;
                roots.add(certificate.clone()).map_err(|error| bad(error.into()))?;
                extra.push(certificate);
                any = true;
            }
            if !any {
                return Err(bad("it holds no certificate".into()));
            }
        }
        // Named, because a second provider in the dependency graph would make the default one ambiguous.
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let by_chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|error| TrustError::Provider(error.into()))?;
        let mut base = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| TrustError::Provider(error.into()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier { by_chain, extra }))
            .with_client_cert_resolver(Arc::new(NoneOfOurs));
        base.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
        base.enable_early_data = false;
        base.resumption = Resumption::disabled();
        Ok(Self { unresumed: Arc::new(base.clone()), base, sessions: Sessions::default() })
    }

    fn of(&self, tenant: &TenantId) -> Arc<ClientConfig> {
        if *tenant == TenantId::OURSELVES {
            return self.unresumed.clone();
        }
        let mut config = self.base.clone();
        config.resumption = self.sessions.of(tenant);
        Arc::new(config)
    }

    /// The handshake. Runs until the caller's deadline drops it.
    pub async fn handshake(
        &self,
        tenant: &TenantId,
        host: &Host,
        offer: Offer,
        wire: Wire,
    ) -> Result<(Box<TlsStream<Wire>>, TlsFacts), NoTls> {
        let name = server_name(host)?;
        let meter = wire.meter().clone();
        let connector = TlsConnector::from(self.of(tenant));
        let connect = match offer {
            Offer::Both => connector.connect(name, wire),
            Offer::Http1 => connector.with_alpn(vec![HTTP1.to_vec()]).connect(name, wire),
            Offer::Nothing => connector.with_alpn(Vec::new()).connect(name, wire),
        };
        let made = async {
            let made = connect.await;
            (made, SEEN.with(|seen| seen.take()))
        };
        let (made, seen) = SEEN.scope(RefCell::default(), made).await;
        let stream = made.map_err(|error| {
            let failure = match faults::at_the_root_of(&error) {
                Some(cause) => faults::of_handshake(cause, &seen, &host.text()),
                None => faults::of_peer(meter.peer_end(), &host.text()),
            };
            let facts = seen.refused.map(|shown| TlsFacts {
                version: String::new(),
                cipher: String::new(),
                alpn: None,
                certificate: Some(shown.certificate),
            });
            NoTls { failure, facts: facts.map(Box::new) }
        })?;
        let facts = facts(&stream);
        Ok((Box::new(stream), facts))
    }
}

/// Which protocols a receiver is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// HTTP/2 and HTTP/1.1.
    Both,
    Http1,
    /// It is no HTTP, and its protocol goes without a name.
    Nothing,
}

const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// Why there is no TLS, and what the receiver showed before that.
#[derive(Debug)]
pub struct NoTls {
    pub failure: Failure,
    pub facts: Option<Box<TlsFacts>>,
}

impl From<Failure> for NoTls {
    fn from(failure: Failure) -> Self {
        Self { failure, facts: None }
    }
}

/// Whether a receiver of this name could be verified at all.
pub fn nameable(host: &Host) -> Result<(), Failure> {
    faults::unnameable(host).map_or(Ok(()), |cause| Err(cause.failure(&host.text())))
}

fn server_name(host: &Host) -> Result<ServerName<'static>, Failure> {
    match host {
        Host::Address(address) => Ok(ServerName::from(*address)),
        Host::Name(name) => ServerName::try_from(name.to_string()).map_err(|_| {
            let cause = faults::unnameable(host).unwrap_or(TlsCause::Failed { why: "its name cannot be asked for" });
            cause.failure(name)
        }),
    }
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
        certificate: session.peer_certificates().and_then(|chain| chain.first()).and_then(|leaf| verifier::read(leaf)),
    }
}
