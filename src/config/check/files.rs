//! The files that a configuration names: read here once, so that a bad one is a problem of the configuration and not
//! of the first connection that needs it.

use std::{
    fs::File,
    io::{self, Read},
    net::{IpAddr, SocketAddr},
    path::Path,
};

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject};
use rustls::sign::CertifiedKey;

use super::{Wrong, wrong};
use crate::limits::{CONFIG_FILE_BYTES_MAX, NAME_SERVERS_MAX};

pub fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    read_small(path, CONFIG_FILE_BYTES_MAX)
}

/// Of at most so many bytes.
pub fn read_small(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("it is larger than {most} bytes")));
    }
    Ok(bytes)
}

fn read(path: &Path) -> Result<Vec<u8>, Wrong> {
    read_bounded(path)
        .map_err(|cause| wrong(format!("{} cannot be read: {cause}", path.display()), "name a readable PEM file"))
}

fn bad_pem(path: &Path, cause: &pem::Error) -> Wrong {
    wrong(format!("{} is not valid PEM: {cause}", path.display()), "name a PEM file")
}

/// A chain for a server: one certificate at least.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Wrong> {
    let bytes = read(path)?;
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(&bytes).collect::<Result<_, _>>().map_err(|cause| bad_pem(path, &cause))?;
    if certificates.is_empty() {
        return Err(wrong(format!("{} holds no certificate", path.display()), "name a PEM file with one"));
    }
    Ok(certificates)
}

pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Wrong> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|cause| match cause {
        pem::Error::NoItemsFound => {
            wrong(format!("{} holds no private key", path.display()), "name a PEM file with an unencrypted one")
        }
        cause => bad_pem(path, &cause),
    })
}

/// Certificates that can stand as authorities.
pub fn authorities(path: &Path) -> Result<(), Wrong> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in certificates(path)?.into_iter().enumerate() {
        roots.add(certificate).map_err(|cause| {
            let detail = format!("certificate {} of {} cannot be an authority: {cause}", index + 1, path.display());
            wrong(detail, "leave it out, or replace it by the authority's own certificate")
        })?;
    }
    Ok(())
}

/// The key is the certificate's.
pub fn matching(cert: &Path, key: &Path) -> Result<(), Wrong> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    CertifiedKey::from_der(certificates(cert)?, private_key(key)?, &provider).map(drop).map_err(|cause| {
        let detail = format!("{} does not go with {}: {cause}", key.display(), cert.display());
        wrong(detail, "name the key that the certificate was made for")
    })
}

pub fn platform_roots() -> Result<(), Wrong> {
    if rustls_native_certs::load_native_certs().certs.is_empty() {
        let fix = "install them (Debian: ca-certificates), or write \"webpki\"";
        return Err(wrong("this host has no certificate authorities", fix));
    }
    Ok(())
}

/// The `nameserver` lines of resolv.conf(5), in order. Addresses with a zone are passed over: a socket address has
/// no place for an interface's name.
pub fn name_servers(path: &Path) -> Result<Vec<SocketAddr>, Wrong> {
    let fix = "name the servers to ask, like servers = [\"192.0.2.53\"]";
    let bytes = read_bounded(path)
        .map_err(|cause| wrong(format!("is empty, and {} cannot be read: {cause}", path.display()), fix))?;
    let text = String::from_utf8_lossy(&bytes);
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = (words.next()? == "nameserver").then(|| words.next())??;
        address.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 53))
    });
    let mut found: Vec<SocketAddr> = Vec::new();
    for server in servers.take(NAME_SERVERS_MAX) {
        if !found.contains(&server) {
            found.push(server);
        }
    }
    if found.is_empty() {
        return Err(wrong(format!("is empty, and {} names no usable server", path.display()), fix));
    }
    Ok(found)
}
