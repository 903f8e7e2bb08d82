//! The PROXY protocol: who it is that a proxy in front of us asks for.
//!
//! Both versions of <https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>. Only what comes from a configured
//! proxy is read so, and then it must begin with such a header: nothing is guessed, and nobody else may say who they are.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Of version 2.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of version 1, with its end.
const LINE_BYTES_MAX: usize = 107;
/// Most of a version 2 header behind its first 16 bytes: addresses, and what else a proxy tells (which is not looked at).
const REST_BYTES_MAX: usize = 4096;

/// Whether what connects from there is a proxy of ours.
pub fn is_proxy(proxies: &[IpNet], peer: IpAddr) -> bool {
    proxies.iter().any(|network| network.contains(&peer))
}

/// Reads the header, and nothing behind it. `None`: the proxy asks for itself (a health check), or does not know.
pub async fn caller(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    // As many as the shortest header has, and fewer than any.
    let mut first = [0; 12];
    stream.read_exact(&mut first).await?;
    if first == SIGNATURE { binary(stream).await } else { line(first.to_vec(), stream).await }
}

async fn line(mut line: Vec<u8>, stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    if !line.starts_with(b"PROXY ") {
        return Err(bad("it is no PROXY header"));
    }
    while !line.ends_with(b"\r\n") {
        if line.len() == LINE_BYTES_MAX {
            return Err(bad("the line is too long"));
        }
        line.push(stream.read_u8().await?);
    }
    let text = std::str::from_utf8(&line).map_err(|_| bad("the line is no text"))?.trim_end_matches("\r\n");
    let words: Vec<&str> = text.split(' ').collect();
    let source = match words[..] {
        ["PROXY", "UNKNOWN", ..] => return Ok(None),
        ["PROXY", family, source, to, port, to_port] => {
            let address = |text: &str| match family {
                "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
                "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
                _ => None,
            };
            let _: u16 = to_port.parse().map_err(|_| bad("a port is none"))?;
            address(to).and(address(source)).zip(port.parse().ok())
        }
        _ => None,
    };
    let (address, port) = source.ok_or_else(|| bad("the line names no addresses"))?;
    Ok(Some(SocketAddr::new(address, port)))
}

async fn binary(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let [version_command, family] = [stream.read_u8().await?, stream.read_u8().await?];
    let length = usize::from(stream.read_u16().await?);
    if length > REST_BYTES_MAX {
        return Err(bad("the header is too long"));
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await?;
    match version_command {
        0x20 => return Ok(None),
        0x21 => {}
        _ => return Err(bad("neither version 2 nor a command of it")),
    }
    let port = |at: usize| rest.get(at..at + 2).and_then(|port| port.try_into().ok()).map(u16::from_be_bytes);
    let source = match family {
        0x11 => rest.first_chunk::<4>().filter(|_| length >= 12).map(|v4| IpAddr::from(*v4)).zip(port(8)),
        0x21 => rest.first_chunk::<16>().filter(|_| length >= 36).map(|v6| IpAddr::from(*v6)).zip(port(32)),
        // Of another family, or of none.
        _ => return Ok(None),
    };
    let (address, port) = source.ok_or_else(|| bad("the addresses are cut short"))?;
    Ok(Some(SocketAddr::new(address, port)))
}

fn bad(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version_2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        [&SIGNATURE[..], &[command, family], &(rest.len() as u16).to_be_bytes(), rest].concat()
    }

    #[tokio::test]
    async fn a_header_says_for_whom_and_ends_before_the_request() {
        let v4 = [192, 0, 2, 7, 198, 51, 100, 1, 0x12, 0x67, 0x01, 0xbb];
        let (from, to) = ("2001:db8::7".parse::<Ipv6Addr>().unwrap(), "2001:db8::1".parse::<Ipv6Addr>().unwrap());
        let v6 = [&from.octets()[..], &to.octets(), &[0x12, 0x67, 0x01, 0xbb]].concat();
        let known = |text: &str| Some(text.parse::<SocketAddr>().unwrap());
        for (header, wanted) in [
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n".to_vec(), known("192.0.2.7:4711")),
            (b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n".to_vec(), known("[2001:db8::7]:4711")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), None),
            (version_2(0x21, 0x11, &v4), known("192.0.2.7:4711")),
            (version_2(0x21, 0x11, &[&v4[..], b"\x03\0\x04abcd"].concat()), known("192.0.2.7:4711")),
            (version_2(0x21, 0x21, &v6), known("[2001:db8::7]:4711")),
            (version_2(0x20, 0x00, &[]), None),
            (version_2(0x21, 0x00, &[]), None),
        ] {
            let both = [&header[..], b"GET"].concat();
            let mut stream = &both[..];
            assert_eq!(caller(&mut stream).await.unwrap(), wanted, "{}", header.escape_ascii());
            assert_eq!(stream, b"GET", "{}", header.escape_ascii());
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        for header in [
            b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 4711\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 99999 443\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 x\r\n".to_vec(),
            b"PROXY TCP4 2001:db8::7 198.51.100.1 4711 443\r\n".to_vec(),
            b"PROXY TCP4  192.0.2.7 198.51.100.1 4711 443\r\n".to_vec(),
            b"PROXY TCP9 192.0.2.7 198.51.100.1 4711 443\r\n".to_vec(),
            [b"PROXY UNKNOWN ".to_vec(), vec![b'a'; 200]].concat(),
            b"PROXY TCP4 192.0".to_vec(),
            version_2(0x21, 0x11, &[192, 0, 2, 7]),
            version_2(0x11, 0x11, &[0; 12]),
            version_2(0x22, 0x11, &[0; 12]),
            version_2(0x21, 0x11, &vec![0; REST_BYTES_MAX + 1]),
            version_2(0x21, 0x21, &[0; 35]),
            SIGNATURE.to_vec(),
        ] {
            assert!(caller(&mut &header[..]).await.is_err(), "{}", header.escape_ascii());
        }
    }

    #[test]
    fn nobody_but_a_proxy_is_one() {
        let proxies = ["10.0.0.5/32", "10.1.0.0/16", "2001:db8::/64"].map(|network| network.parse().unwrap());
        for (peer, wanted) in
            [("10.0.0.5", true), ("10.0.0.6", false), ("10.1.255.255", true), ("2001:db8::7", true), ("::1", false)]
        {
            assert_eq!(is_proxy(&proxies, peer.parse().unwrap()), wanted, "{peer}");
        }
    }
}
