//! Which server a TLS client names as it begins (RFC 6066 section 3), read as it passes: a tunnel is judged by the host of
//! its CONNECT, so a ClientHello that names another would be a way around the policy's host lists.
//!
//! The client's first bytes are held back until they are a whole ClientHello, or none. What does not begin as a handshake
//! does passes as it is; one that begins so and cannot be read, or is larger than any, is refused. The name of an
//! encrypted ClientHello stands inside of it: its outer one counts here.

use rustls::server::Acceptor;

use crate::limits::CLIENT_HELLO_BYTES_MAX;
use crate::policy::Host;

/// The first byte of a handshake (RFC 8446 section 5.1).
const HANDSHAKE: u8 = 22;
/// A fatal alert, `unrecognized_name` (RFC 8446 section 6.2, RFC 6066 section 3), in the clear.
pub const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// Reads the beginning of one tunnel.
pub struct Hello {
    acceptor: Acceptor,
    held: Vec<u8>,
}

/// What the bytes so far come to.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// More is needed; nothing goes on yet.
    More,
    /// These go on; the server that was named, where this is TLS and names one.
    Named(Vec<u8>, Option<String>),
    /// It begins as a handshake does, and is none that can be read.
    Unreadable,
}

impl Hello {
    pub fn new() -> Self {
        Self { acceptor: Acceptor::default(), held: Vec::new() }
    }

    pub fn take(&mut self, bytes: &[u8]) -> Said {
        self.held.extend_from_slice(bytes);
        if self.held.first().is_some_and(|first| *first != HANDSHAKE) {
            return Said::Named(std::mem::take(&mut self.held), None);
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.acceptor.read_tls(&mut rest) {
                Ok(1..) => {}
                // It has as much as it takes at once.
                Ok(0) | Err(_) => return Said::Unreadable,
            }
            match self.acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let named = accepted.client_hello().server_name().map(str::to_owned);
                    return Said::Named(std::mem::take(&mut self.held), named);
                }
                Err(_) => return Said::Unreadable,
            }
        }
        if self.held.len() > CLIENT_HELLO_BYTES_MAX { Said::Unreadable } else { Said::More }
    }
}

/// Whether a server's name is that of the host that the tunnel was opened to.
pub fn is_of(named: &str, host: &Host) -> bool {
    match host {
        Host::Name(name) => named.trim_end_matches('.').eq_ignore_ascii_case(name),
        // An address is named by nobody.
        Host::Address(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    /// As the library's client writes it.
    fn hello(name: &'static str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let mut client = ClientConnection::new(Arc::new(config), ServerName::try_from(name).unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_hello_in_whatever_pieces_tells_its_name_and_goes_on_whole() {
        let whole = hello("shop.example.com");
        // One record, and the same in records of eleven bytes.
        let mut records = Vec::new();
        for part in whole[5..].chunks(11) {
            records.extend_from_slice(&[22, 3, 1, 0, part.len() as u8]);
            records.extend_from_slice(part);
        }
        for bytes in [whole, records] {
            for pieces in [1, 7, 100, bytes.len()] {
                let mut hello = Hello::new();
                let mut rest = bytes.chunks(pieces);
                let said = loop {
                    match hello.take(rest.next().expect("it ends with the hello")) {
                        Said::More => {}
                        said => break said,
                    }
                };
                let Said::Named(on, Some(name)) = said else { panic!("{said:?}") };
                assert_eq!(name, "shop.example.com");
                assert!(bytes.starts_with(&on), "{pieces}");
            }
        }
    }

    #[test]
    fn what_is_no_handshake_passes_and_what_only_begins_as_one_does_not() {
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"SSH-2.0-x\r\n", &[0x80, 0x2e, 1], &[23, 3, 3]] {
            assert_eq!(Hello::new().take(bytes), Said::Named(bytes.to_vec(), None));
        }
        assert_eq!(Hello::new().take(&[22]), Said::More);
        for bytes in [&[22, 3, 1, 0, 4, 2, 0, 0, 0][..], &[22, 9, 9, 0, 1, 1], b"\x16\x03\x01\x00\x05hello"] {
            assert_eq!(Hello::new().take(bytes), Said::Unreadable, "{bytes:?}");
        }
        // One that never ends.
        let mut endless = Hello::new();
        let mut record = vec![22, 3, 1, 0x3f, 0xff];
        record.resize(5 + 0x3fff, 0);
        record[5..9].copy_from_slice(&[1, 0xff, 0xff, 0xff]);
        let said = (0..10).map(|_| endless.take(&record)).find(|said| *said != Said::More);
        assert_eq!(said, Some(Said::Unreadable));
    }

    #[test]
    fn an_address_has_no_name() {
        let bytes = hello("127.0.0.1");
        assert_eq!(Hello::new().take(&bytes), Said::Named(bytes.clone(), None));
    }

    #[test]
    fn only_the_host_itself_is_the_host() {
        let name = |name: &str| Host::Name(name.into());
        for (named, host, same) in [
            ("example.com", name("example.com"), true),
            ("EXAMPLE.com.", name("example.com"), true),
            ("www.example.com", name("example.com"), false),
            ("example.com", Host::Address([192, 0, 2, 1].into()), false),
        ] {
            assert_eq!(is_of(named, &host), same, "{named}");
        }
    }
}
