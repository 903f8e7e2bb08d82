//! Which server a TLS client names as it begins (RFC 6066 section 3), read as it passes: a tunnel is judged by the host of
//! its CONNECT, so a ClientHello that names another would be a way around the policy's host lists.
//!
//! The client's first bytes are held back until they are a whole ClientHello, or none. Of that nothing is looked at but the
//! name: what versions, ciphers and extensions it has is the server's to judge. What is no TLS passes as it is; what is and
//! cannot be read, is larger than any, or comes as another record than a handshake's, is refused. A server may ask
//! for another ClientHello (RFC 8446 section 4.1.4), which names its server anew: so it is looked on until the client has
//! sent something else. The name of an encrypted ClientHello stands inside of it: its outer one counts here.

use std::borrow::Cow;
use std::net::IpAddr;

use crate::limits::CLIENT_HELLO_BYTES_MAX;
use crate::policy::Host;

/// What a record holds, its first byte (RFC 8446 section 5.1): these, and alerts, data and heartbeats between and behind.
const CHANGE_CIPHER_SPEC: u8 = 20;
const HANDSHAKE: u8 = 22;
const HEARTBEAT: u8 = 24;
/// The second byte of any record.
const VERSION: u8 = 3;
/// A record's own bytes, in front of what it holds.
const RECORD_HEAD: usize = 5;
/// The most that one may hold.
const RECORD_BYTES_MAX: usize = 1 << 14;
/// The first byte of a handshake's message, and how many say what it is and how long.
const CLIENT_HELLO: u8 = 1;
const MESSAGE_HEAD: usize = 4;
/// An extension, and the one kind of name that there is in it (RFC 6066 section 3).
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
const NAME_BYTES_MAX: usize = 255;
/// A fatal alert, `unrecognized_name` (RFC 8446 section 6.2, RFC 6066 section 3), in the clear.
pub const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// Reads the beginning of one tunnel.
#[derive(Default)]
pub struct Hello {
    /// Of the message that is being read, how much there is.
    length: usize,
    held: Vec<u8>,
    /// So much of what is held was looked at.
    at: usize,
    /// One has gone by.
    seen: bool,
}

/// What the bytes so far come to.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// More is needed; nothing goes on yet.
    More,
    /// A ClientHello goes on, and the server that it names, if any. There may be another: what is left is looked at next.
    Named(Vec<u8>, Option<String>),
    /// These go on, and nobody need look any more.
    On(Vec<u8>),
    /// It begins as TLS does, and is none that can be read.
    Unreadable,
}

impl Hello {
    pub fn take(&mut self, bytes: &[u8]) -> Said {
        self.hold(bytes);
        loop {
            let record = &self.held[self.at..];
            let is_within = self.length > 0;
            let whole = match *record {
                [] => None,
                [HANDSHAKE, VERSION, _, high, low, ..] => Some(usize::from(u16::from_be_bytes([high, low]))),
                [HANDSHAKE] | [HANDSHAKE, VERSION, ..] => None,
                [HANDSHAKE, ..] => return Said::Unreadable,
                _ if is_within => return Said::Unreadable,
                [CHANGE_CIPHER_SPEC..=HEARTBEAT] => None,
                // Some servers pass over what others send before a ClientHello.
                [CHANGE_CIPHER_SPEC..=HEARTBEAT, VERSION, ..] if !self.seen => return Said::Unreadable,
                [CHANGE_CIPHER_SPEC, VERSION, _, high, low, ..] => Some(usize::from(u16::from_be_bytes([high, low]))),
                [CHANGE_CIPHER_SPEC, VERSION, ..] => None,
                _ => return self.on(),
            };
            let Some(whole) = whole.filter(|whole| record.len() >= RECORD_HEAD + whole.min(&1)) else {
                return self.more();
            };
            let is_handshake = record[0] == HANDSHAKE;
            if is_handshake && !is_within && (whole == 0 || record[RECORD_HEAD] != CLIENT_HELLO) {
                return if self.seen { self.on() } else { Said::Unreadable };
            }
            if whole > RECORD_BYTES_MAX || is_handshake && whole == 0 {
                return Said::Unreadable;
            }
            let Some(record) = record.get(..RECORD_HEAD + whole) else { return self.more() };
            self.at += record.len();
            if !is_handshake {
                continue;
            }
            self.length += whole;
            if self.length < MESSAGE_HEAD {
                continue;
            }
            let message = self.message();
            let [_, a, b, c] = message[..MESSAGE_HEAD] else { return Said::Unreadable };
            let all = MESSAGE_HEAD + u32::from_be_bytes([0, a, b, c]) as usize;
            if self.length < all && all <= CLIENT_HELLO_BYTES_MAX {
                continue;
            }
            // Behind it, in the same record, there might stand another.
            let named = (self.length == all).then(|| Reader(&message[MESSAGE_HEAD..]).server_name()).flatten();
            let Some(named) = named else { return Said::Unreadable };
            let rest = self.held.split_off(self.at);
            let on = std::mem::take(&mut self.held);
            *self = Self { held: rest, seen: true, ..Self::default() };
            return Said::Named(on, named);
        }
    }

    /// No more room is taken than the largest that is waited for has.
    fn hold(&mut self, bytes: &[u8]) {
        let (held, room) = (self.held.len(), self.held.capacity());
        let wanted = held + bytes.len();
        if wanted > room {
            self.held.reserve_exact(wanted.max((2 * room).min(CLIENT_HELLO_BYTES_MAX)) - held);
        }
        self.held.extend_from_slice(bytes);
    }

    /// What the records that were looked at say.
    fn message(&self) -> Cow<'_, [u8]> {
        let mut rest = &self.held[..self.at];
        let mut message = Cow::Borrowed(&[][..]);
        while let [kind, _, _, high, low, behind @ ..] = rest {
            let (content, next) = behind.split_at(usize::from(u16::from_be_bytes([*high, *low])).min(behind.len()));
            match *kind {
                HANDSHAKE if message.is_empty() => message = Cow::Borrowed(content),
                HANDSHAKE => message.to_mut().extend_from_slice(content),
                _ => {}
            }
            rest = next;
        }
        message
    }

    fn more(&self) -> Said {
        if self.held.len() > CLIENT_HELLO_BYTES_MAX { Said::Unreadable } else { Said::More }
    }

    fn on(&mut self) -> Said {
        Said::On(std::mem::take(&mut self.held))
    }
}

/// Reads what has its length in front of it. Where that is not so, or there is less: `None`.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    fn short(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// With a length of one byte, or of two.
    fn little(&mut self) -> Option<&'a [u8]> {
        let length = self.byte()?;
        self.take(length.into())
    }

    fn much(&mut self) -> Option<Self> {
        let length = self.short()?;
        self.take(length.into()).map(Reader)
    }

    /// Of a ClientHello (RFC 8446 section 4.1.2, RFC 5246 section 7.4.1.2); what says twice which server is meant, or in
    /// another way than all clients do, cannot be read.
    fn server_name(mut self) -> Option<Option<String>> {
        let _version_and_random = self.take(2 + 32)?;
        let _session = self.little()?;
        let _ciphers = self.much()?;
        let _compression = self.little()?;
        if self.0.is_empty() {
            return Some(None);
        }
        let mut extensions = self.much()?;
        let mut name = None;
        while !extensions.0.is_empty() {
            let (kind, of_it) = (extensions.short()?, extensions.much()?);
            if kind == SERVER_NAME && name.replace(of_it.host_name()?).is_some() {
                return None;
            }
        }
        self.0.is_empty().then_some(name)
    }

    fn host_name(mut self) -> Option<String> {
        let mut names = self.much()?;
        let (kind, name) = (names.byte()?, names.much()?.0);
        let is_alone = names.0.is_empty() && self.0.is_empty();
        let is_text = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.iter().all(u8::is_ascii_graphic);
        (kind == HOST_NAME && is_alone && is_text).then(|| String::from_utf8_lossy(name).into_owned())
    }
}

/// Whether a server's name is that of the host that the tunnel was opened to.
pub fn is_of(named: &str, host: &Host) -> bool {
    match host {
        Host::Name(name) => named.trim_end_matches('.').eq_ignore_ascii_case(name),
        // No client is to name an address, and some do.
        Host::Address(address) => named.parse::<IpAddr>().is_ok_and(|named| named.to_canonical() == *address),
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
                let mut hello = Hello::default();
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
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"SSH-2.0-x\r\n", &[0x80, 0x2e, 1], &[23, 4], &[25, 3]] {
            assert_eq!(Hello::default().take(bytes), Said::On(bytes.to_vec()));
        }
        for bytes in [&[22][..], &[21]] {
            assert_eq!(Hello::default().take(bytes), Said::More);
        }
        for bytes in [
            &[22, 3, 1, 0, 4, 2, 0, 0, 0][..],
            &[22, 9, 9, 0, 1, 1],
            b"\x16\x03\x01\x00\x05hello",
            // A server may pass over each of these.
            &[21, 3, 1, 0, 2, 1, 90],
            &[20, 3, 3, 0, 1, 1],
            &[23, 3, 3],
            &[24, 3, 1],
            &[22, 3, 1, 0, 0],
        ] {
            assert_eq!(Hello::default().take(bytes), Said::Unreadable, "{bytes:?}");
        }
        // One that never ends.
        let mut endless = Hello::default();
        let mut record = vec![22, 3, 1, 0x3f, 0xff];
        record.resize(5 + 0x3fff, 0);
        record[5..9].copy_from_slice(&[1, 0xff, 0xff, 0xff]);
        let said = (0..10).map(|_| endless.take(&record)).find(|said| *said != Said::More);
        assert_eq!(said, Some(Said::Unreadable));
    }

    /// What a client sends behind its ClientHello, in pieces of any size.
    #[test]
    fn another_hello_is_looked_at_wherever_it_may_stand() {
        let (first, other) = (hello("shop.example.com"), hello("other.example.com"));
        let change = [20, 3, 3, 0, 1, 1];
        let names = |parts: &[&[u8]]| {
            let bytes = parts.concat();
            let each = [1, 7, bytes.len()].map(|pieces| {
                let (mut hello, mut names, mut on) = (Hello::default(), Vec::new(), Vec::new());
                for piece in bytes.chunks(pieces) {
                    let mut piece = piece;
                    loop {
                        match hello.take(std::mem::take(&mut piece)) {
                            Said::More => break,
                            Said::Named(bytes, name) => {
                                on.extend(bytes);
                                names.push(name.expect("one is named"));
                            }
                            Said::On(bytes) => {
                                on.extend(bytes);
                                assert!(parts.concat().starts_with(&on), "in their order");
                                return names;
                            }
                            Said::Unreadable => {
                                names.push("?".to_owned());
                                return names;
                            }
                        }
                    }
                }
                names
            });
            assert!(each.iter().all(|names| *names == each[0]), "{each:?}");
            each[0].clone()
        };
        let both = ["shop.example.com", "other.example.com"];
        assert_eq!(names(&[&first, &other]), both);
        assert_eq!(names(&[&first, &change, &other]), both);
        assert_eq!(names(&[&first, &change, &change, &other, &[23, 3, 3, 0, 1, 0]]), both);
        // What else follows one: keys in the clear (TLS 1.2), data, an alert.
        for rest in [&[22, 3, 3, 0, 5, 16, 0, 0, 1, 9][..], &[23, 3, 3, 0, 1, 0], &[21, 3, 3, 0, 2, 1, 0], b"HTTP"] {
            assert_eq!(names(&[&first, rest, &other]), both[..1], "{rest:?}");
        }
        // Two in one record.
        let mut two = [&first[..], &other[5..]].concat();
        let length = (two.len() - 5) as u16;
        two[3..5].copy_from_slice(&length.to_be_bytes());
        assert_eq!(names(&[&two]), ["?"]);
    }

    /// A ClientHello with these extensions, or with none at all.
    fn written(extensions: Option<&[&[u8]]>) -> Vec<u8> {
        let mut body = vec![3, 1];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0, 0x2f, 1, 0]);
        if let Some(extensions) = extensions {
            let all = extensions.concat();
            body.extend((all.len() as u16).to_be_bytes());
            body.extend(all);
        }
        let mut hello = vec![22, 3, 1];
        hello.extend((body.len() as u16 + 4).to_be_bytes());
        hello.extend([1, 0]);
        hello.extend((body.len() as u16).to_be_bytes());
        hello.extend(body);
        hello
    }

    fn naming(name: &[u8]) -> Vec<u8> {
        let length = |more: usize| ((name.len() + more) as u16).to_be_bytes();
        [&[0, 0][..], &length(5), &length(3), &[0], &length(0), name].concat()
    }

    #[test]
    fn of_a_hello_only_the_name_is_judged() {
        let shop = naming(b"shop.example.com");
        let other = [&[0, 10, 0, 2, 0, 0][..]];
        let named = |name: &str| Some(Some(name.to_owned()));
        for (extensions, wanted) in [
            // As clients of 1999 write it, without any; without one that says a name; without those of later years.
            (None, Some(None)),
            (Some(vec![]), Some(None)),
            (Some(other.to_vec()), Some(None)),
            (Some(vec![&shop[..]]), named("shop.example.com")),
            (Some(vec![other[0], &shop]), named("shop.example.com")),
            (Some(vec![&shop, &shop]), None),
            (Some(vec![&shop, &[0]]), None),
            (Some(vec![&shop, &[0, 10, 0, 9]]), None),
            (Some(vec![&naming(b"")]), None),
            (Some(vec![&naming(b"shop.example.com\0.example.net")]), None),
            (Some(vec![&naming(&[b'a'; 256])]), None),
            (Some(vec![&naming(b"192.0.2.1")]), named("192.0.2.1")),
            // No list; an empty one; one of another kind of name; two names; something behind the list.
            (Some(vec![&[0, 0, 0, 0]]), None),
            (Some(vec![&[0, 0, 0, 2, 0, 0]]), None),
            (Some(vec![&[0, 0, 0, 6, 0, 4, 1, 0, 1, b'a']]), None),
            (Some(vec![&[0, 0, 0, 10, 0, 8, 0, 0, 1, b'a', 0, 0, 1, b'b']]), None),
            (Some(vec![&[0, 0, 0, 7, 0, 4, 0, 0, 1, b'a', 9]]), None),
        ] {
            let hello = written(extensions.as_deref());
            let said = match Hello::default().take(&hello) {
                Said::Named(on, name) => {
                    assert_eq!(on, hello);
                    Some(name)
                }
                Said::Unreadable => None,
                said => panic!("{said:?}"),
            };
            assert_eq!(said, wanted, "{extensions:?}");
        }
        // Bytes behind the extensions.
        let mut longer = written(Some(&[&shop]));
        longer.push(0);
        longer[4] += 1;
        longer[8] += 1;
        assert_eq!(Hello::default().take(&longer), Said::Unreadable);
    }

    #[test]
    fn what_is_waited_for_takes_no_more_than_the_largest_has() {
        let mut hello = Hello::default();
        let mut record = vec![22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc];
        record.resize(5 + RECORD_BYTES_MAX - 1, 0);
        for piece in record.chunks(100) {
            assert_eq!(hello.take(piece), Said::More);
            assert!(hello.held.capacity() <= CLIENT_HELLO_BYTES_MAX, "{}", hello.held.capacity());
        }
    }

    #[test]
    fn an_address_has_no_name() {
        let bytes = hello("127.0.0.1");
        assert_eq!(Hello::default().take(&bytes), Said::Named(bytes.clone(), None));
    }

    #[test]
    fn only_the_host_itself_is_the_host() {
        let name = |name: &str| Host::Name(name.into());
        for (named, host, same) in [
            ("example.com", name("example.com"), true),
            ("EXAMPLE.com.", name("example.com"), true),
            ("www.example.com", name("example.com"), false),
            ("example.com", Host::Address([192, 0, 2, 1].into()), false),
            ("192.0.2.1", Host::Address([192, 0, 2, 1].into()), true),
            ("192.0.2.2", Host::Address([192, 0, 2, 1].into()), false),
            ("192.0.2.1", name("example.com"), false),
        ] {
            assert_eq!(is_of(named, &host), same, "{named}");
        }
    }
}
