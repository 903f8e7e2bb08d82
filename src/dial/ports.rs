//! Ports in use as the kernel counts them (sock_diag(7)): connections that are open, being opened or closed, and those
//! in TIME_WAIT whose port cannot carry another to the same peer yet.
//!
//! Our own count ends when we close a connection; the port of one that we closed first stays taken for a minute more,
//! and that is what a source runs out of. Blocks for the time of one answer of the kernel: milliseconds for tens of
//! thousands of sockets. Not here: what follows from it (`dial::metrics`).

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};

/// `SOCK_DIAG_BY_FAMILY` of linux/sock_diag.h.
const BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST | NLM_F_DUMP`, `NLMSG_ERROR`, `NLMSG_DONE` of linux/netlink.h.
const REQUEST_DUMP: u16 = 0x1 | 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Sizes of `struct nlmsghdr`, `struct inet_diag_req_v2` and `struct inet_diag_msg`.
const HEADER: usize = 16;
const QUESTION: usize = 56;
const ANSWER: usize = 72;
/// Of net/tcp_states.h.
const TIME_WAIT: u8 = 6;
/// The states that hold a port of a connection that we began: all but SYN_RECV, CLOSE and LISTEN.
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << TIME_WAIT | 1 << 8 | 1 << 9 | 1 << 11;
/// `TCP_TIMEWAIT_LEN` of net/tcp.h, in milliseconds.
const TIME_WAIT_MS: u32 = 60_000;

/// When the port of a connection in TIME_WAIT may carry another one to the same peer (`tcp_tw_reuse`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reuse {
    /// 0: never; 1: always; 2: on loopback.
    mode: u8,
    /// From this age on, in milliseconds.
    after: u32,
}

impl Reuse {
    /// As this host has it. Without timestamps there is none.
    fn of_this_host() -> Self {
        let number = |name: &str| -> Option<u32> {
            std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).ok()?.trim().parse().ok()
        };
        let timestamps = number("tcp_timestamps").unwrap_or(1) != 0;
        let mode = number("tcp_tw_reuse").filter(|_| timestamps).and_then(|mode| u8::try_from(mode).ok());
        Self { mode: mode.unwrap_or(0), after: number("tcp_tw_reuse_delay").unwrap_or(1000) }
    }

    /// Whether a connection in TIME_WAIT, with so many milliseconds of it left, is in nobody's way.
    fn frees(self, local: IpAddr, peer: IpAddr, left: u32) -> bool {
        let applies = match self.mode {
            1 => true,
            2 => local.is_loopback() && peer.is_loopback(),
            _ => false,
        };
        applies && TIME_WAIT_MS.saturating_sub(left) >= self.after
    }
}

/// The peer towards which most ports of an address are in use, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busiest {
    pub peer: SocketAddr,
    pub ports: u32,
}

/// Ports in use towards the peer that has the most, by bound address; nothing is said of one with none in use.
pub fn busiest(binds: &HashSet<IpAddr>) -> io::Result<HashMap<IpAddr, Busiest>> {
    let reuse = Reuse::of_this_host();
    let mut used: HashMap<(IpAddr, SocketAddr), u32> = HashMap::new();
    for (family, of_it) in [(nix::libc::AF_INET, true), (nix::libc::AF_INET6, false)] {
        if binds.iter().any(|bind| bind.is_ipv4() == of_it) {
            ask(u8::try_from(family).unwrap_or_default(), |socket| {
                let Seen { local, peer, state, left } = socket;
                let free = state == TIME_WAIT && reuse.frees(local, peer.ip(), left);
                if binds.contains(&local) && !free {
                    *used.entry((local, peer)).or_default() += 1;
                }
            })?;
        }
    }
    let mut busiest = HashMap::new();
    for ((local, peer), ports) in used {
        let most: &mut Busiest = busiest.entry(local).or_insert(Busiest { peer, ports });
        if ports > most.ports {
            *most = Busiest { peer, ports };
        }
    }
    Ok(busiest)
}

/// One socket, as the kernel tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    local: IpAddr,
    peer: SocketAddr,
    state: u8,
    /// Milliseconds until its timer runs out; in TIME_WAIT until that ends.
    left: u32,
}

/// Every TCP socket of a family that is in one of [`STATES`].
fn ask(family: u8, mut each: impl FnMut(Seen)) -> io::Result<()> {
    let socket =
        socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    sendto(socket.as_raw_fd(), &question(family), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if length == 0 || !read(&buffer[..length], &mut each)? {
            return Ok(());
        }
    }
}

fn question(family: u8) -> Vec<u8> {
    let length = u32::try_from(HEADER + QUESTION).unwrap_or_default();
    let mut question = Vec::with_capacity(HEADER + QUESTION);
    question.extend(length.to_ne_bytes());
    question.extend(BY_FAMILY.to_ne_bytes());
    question.extend(REQUEST_DUMP.to_ne_bytes());
    // Sequence number and port: one question, and the kernel answers whoever asked.
    question.extend([0; 8]);
    question.extend([family, nix::libc::IPPROTO_TCP as u8, 0, 0]);
    question.extend(STATES.to_ne_bytes());
    // Of any address and port.
    question.resize(HEADER + QUESTION, 0);
    question
}

/// One datagram of the answer; `false`: it was the last.
fn read(mut bytes: &[u8], each: &mut impl FnMut(Seen)) -> io::Result<bool> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's list of sockets is not as expected");
    while let Some(header) = bytes.get(..HEADER) {
        let length = usize::try_from(word(header, 0)).map_err(|_| malformed())?;
        let body = bytes.get(HEADER..length).ok_or_else(malformed)?;
        match u16::from_ne_bytes([header[4], header[5]]) {
            DONE => return Ok(false),
            ERROR => {
                let code = body.get(..4).map_or(0, |body| word(body, 0)).cast_signed();
                return Err(io::Error::from_raw_os_error(code.saturating_neg()));
            }
            BY_FAMILY => each(seen(body).ok_or_else(malformed)?),
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// A `struct inet_diag_msg`.
fn seen(message: &[u8]) -> Option<Seen> {
    let message = message.get(..ANSWER)?;
    let (family, state) = (message[0], message[1]);
    let address = |at: usize| -> Option<IpAddr> {
        Some(match i32::from(family) {
            nix::libc::AF_INET => <[u8; 4]>::try_from(message.get(at..at + 4)?).ok()?.into(),
            nix::libc::AF_INET6 => <[u8; 16]>::try_from(message.get(at..at + 16)?).ok()?.into(),
            _ => return None,
        })
    };
    let peer_port = u16::from_be_bytes([message[6], message[7]]);
    Some(Seen { local: address(8)?, peer: SocketAddr::new(address(24)?, peer_port), state, left: word(message, 52) })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[allow(clippy::disallowed_methods, reason = "a test's own connections")]
    fn connect(to: SocketAddr) -> TcpStream {
        TcpStream::connect(to).unwrap()
    }

    fn states(to: SocketAddr) -> Vec<u8> {
        let mut states = Vec::new();
        let family = if to.is_ipv4() { nix::libc::AF_INET } else { nix::libc::AF_INET6 };
        ask(u8::try_from(family).unwrap(), |seen| {
            if seen.peer == to {
                assert_eq!(seen.local, to.ip());
                states.push(seen.state);
            }
        })
        .unwrap();
        states.sort_unstable();
        states
    }

    #[test]
    fn the_kernel_tells_of_connections_that_are_open_and_of_those_in_time_wait() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        assert_eq!(states(to), [0; 0]);
        let open: Vec<_> = (0..3).map(|_| (connect(to), listener.accept().unwrap().0)).collect();
        assert_eq!(states(to), [1, 1, 1]);
        for (ours, theirs) in open {
            // We close first, and the waiting is ours.
            drop(ours);
            let mut end = [0];
            assert_eq!(std::io::Read::read(&mut &theirs, &mut end).unwrap(), 0);
        }
        let begun = crate::clock::monotonic();
        while states(to) != [TIME_WAIT; 3] {
            assert!(begun.elapsed() < std::time::Duration::from_secs(60), "{:?}", states(to));
            std::thread::yield_now();
        }
    }

    #[test]
    fn only_what_a_source_uses_towards_its_busiest_peer_counts() {
        let (a, b) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let from = |source: [u8; 4], to: &TcpListener| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
            socket.connect(&to.local_addr().unwrap().into()).unwrap();
            socket
        };
        let (one, other) = ([127, 0, 0, 201], [127, 0, 0, 202]);
        let _open = [from(one, &a), from(one, &a), from(one, &b), from(other, &a)];
        let binds = HashSet::from([IpAddr::from(one), "::1".parse().unwrap(), "127.0.0.203".parse().unwrap()]);
        let most = Busiest { peer: a.local_addr().unwrap(), ports: 2 };
        assert_eq!(busiest(&binds).unwrap(), HashMap::from([(IpAddr::from(one), most)]));
    }

    #[test]
    fn a_port_in_time_wait_is_in_use_until_it_may_be_used_again() {
        let (loopback, other): (IpAddr, IpAddr) = ("127.0.0.1".parse().unwrap(), "192.0.2.1".parse().unwrap());
        for (mode, local, left, free) in [
            (0, other, 1, false),
            (1, other, 59_001, false),
            (1, other, 59_000, true),
            (2, other, 1, false),
            (2, loopback, 59_000, true),
            (2, loopback, 60_000, false),
        ] {
            let reuse = Reuse { mode, after: 1000 };
            assert_eq!(reuse.frees(local, local, left), free, "{mode} {local} {left}");
        }
    }

    #[test]
    fn an_answer_is_read_message_by_message() {
        let mut message = vec![0; HEADER + ANSWER];
        message[..4].copy_from_slice(&88_u32.to_ne_bytes());
        message[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
        let body = &mut message[HEADER..];
        (body[0], body[1], body[6], body[7]) = (10, TIME_WAIT, 0x1f, 0x90);
        body[8..24].copy_from_slice(&"2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
        body[24..40].copy_from_slice(&"2001:db8::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
        body[52..56].copy_from_slice(&1234_u32.to_ne_bytes());
        let mut done = vec![0; HEADER + 4];
        done[..4].copy_from_slice(&20_u32.to_ne_bytes());
        done[4..6].copy_from_slice(&DONE.to_ne_bytes());
        let mut found = Vec::new();
        assert!(read(&message, &mut |seen| found.push(seen)).unwrap());
        assert!(!read(&[&message[..], &done].concat(), &mut |seen| found.push(seen)).unwrap());
        let (local, peer) = ("2001:db8::1".parse().unwrap(), "[2001:db8::2]:8080".parse().unwrap());
        assert_eq!(found, [Seen { local, peer, state: TIME_WAIT, left: 1234 }; 2]);

        // What the kernel refuses is its error; what is cut is none of ours.
        done[4..6].copy_from_slice(&ERROR.to_ne_bytes());
        done[HEADER..].copy_from_slice(&(-2_i32).to_ne_bytes());
        let none = &mut |_| panic!("nothing was told");
        assert_eq!(read(&done, none).unwrap_err().raw_os_error(), Some(2));
        for cut in [HEADER, HEADER + 1, HEADER + ANSWER - 1] {
            assert_eq!(read(&message[..cut], none).unwrap_err().kind(), io::ErrorKind::InvalidData, "{cut}");
        }
    }
}
