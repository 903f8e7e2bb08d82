//! Certificates made for one test: an authority, and leaves that are right, expired or for somebody else.

use std::{path::Path, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use tokio_rustls::TlsAcceptor;

/// An authority that only those trust who were given its PEM.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What a leaf is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    Good,
    Expired,
    NotYet,
}

impl Authority {
    pub fn new() -> Self {
        Self::named("Test Authority")
    }

    pub fn named(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        Self { issuer: CertifiedIssuer::self_signed(params, key).expect("a certificate") }
    }

    pub fn der(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    pub fn sign(&self, params: CertificateParams, key: &KeyPair) -> CertificateDer<'static> {
        params.signed_by(key, &self.issuer).expect("a certificate").der().clone()
    }

    /// A certificate for these names with its key, as files.
    pub fn write_server(&self, names: &[&str], certificate: &Path, key_file: &Path) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().expect("a key");
        let leaf = CertificateParams::new(names).expect("names").signed_by(&key, &self.issuer).expect("a certificate");
        std::fs::write(certificate, leaf.pem()).expect("a writable directory");
        std::fs::write(key_file, key.serialize_pem()).expect("a writable directory");
    }

    /// What a client shows that this authority knows.
    pub fn client(&self, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        (vec![self.sign(params, &key)], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    pub fn write_pem(&self, path: &Path) {
        std::fs::write(path, self.issuer.pem()).expect("a writable directory");
    }

    /// A server of one version of TLS that wants a certificate of its client's.
    pub fn server_wanting_ours(&self, name: &str, version: &'static rustls::SupportedProtocolVersion) -> TlsAcceptor {
        let params = CertificateParams::new(vec![name.to_owned()]).expect("names");
        let key = KeyPair::generate().expect("a key");
        let leaf = params.signed_by(&key, &self.issuer).expect("a certificate");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("an authority");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_client_cert_verifier(verifier.build().expect("an authority"))
            .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .expect("a certificate with its key");
        TlsAcceptor::from(Arc::new(config))
    }

    /// A server for these names that offers these protocols.
    pub fn server(&self, names: &[&str], leaf: Leaf, alpn: &[&str]) -> TlsAcceptor {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.push(DnType::CommonName, "Test Leaf");
        let (from, to) = match leaf {
            Leaf::Good => ((2020, 1, 1), (2099, 1, 1)),
            Leaf::Expired => ((2020, 1, 1), (2021, 1, 1)),
            Leaf::NotYet => ((2098, 1, 1), (2099, 1, 1)),
        };
        params.not_before = date_time_ymd(from.0, from.1, from.2);
        params.not_after = date_time_ymd(to.0, to.1, to.2);
        let key = KeyPair::generate().expect("a key");
        let leaf = params.signed_by(&key, &self.issuer).expect("a certificate");
        server_of(vec![leaf.der().clone()], &key, alpn)
    }
}

/// A server that shows these certificates, the first of which is of this key.
pub fn server_of(chain: Vec<CertificateDer<'static>>, key: &KeyPair, alpn: &[&str]) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .expect("a certificate with its key");
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

/// So many authorities of one name, none of which anybody trusts: every order of them is a path.
pub fn look_alikes(count: usize) -> Vec<CertificateDer<'static>> {
    (0..count).map(|_| Authority::named("X").issuer.der().clone()).collect()
}

/// A server whose certificate is of the first of so many look-alikes, all of which it shows.
pub fn look_alike_server(count: usize) -> TlsAcceptor {
    let first = Authority::named("X");
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("names");
    let key = KeyPair::generate().expect("a key");
    let leaf = params.signed_by(&key, &first.issuer).expect("a certificate");
    let mut chain = vec![leaf.der().clone(), first.issuer.der().clone()];
    chain.extend(look_alikes(count - 1));
    server_of(chain, &key, &["http/1.1"])
}

/// What `openssl req -x509` makes: signed by itself, and marked as an authority's.
pub fn self_signed(names: &[&str], until: (i32, u8, u8)) -> (rcgen::Certificate, KeyPair) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(until.0, until.1, until.2);
    let key = KeyPair::generate().expect("a key");
    (params.self_signed(&key).expect("a certificate"), key)
}
