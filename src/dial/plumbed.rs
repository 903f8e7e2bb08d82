//! Whether an address is on this host, asked of the kernel as a connection would ask it.
//!
//! Two questions. A source must be bound: [`is_on_host`] tries. A destination must not lead back here, and for that the
//! list of interfaces is not enough: a `local` route (AnyIP) makes whole networks this host's own without an address on
//! any interface, which is how clouds plumb prefixes and the addresses of load balancers. [`Routes`] asks the routing
//! tables themselves (rtnetlink(7)), as the connection will.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    sync::{Mutex, PoisonError},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt::IpBindAddressNoPort,
};
use socket2::{Domain, Protocol, Socket, Type};

/// Binds a socket that goes nowhere, without taking a port, so that it neither needs nor spoils one. `false`: the
/// address is not on this host; the error is that of another thing which keeps it from being bound.
pub fn is_on_host(address: IpAddr) -> io::Result<bool> {
    let socket = Socket::new(Domain::for_address((address, 0).into()), Type::STREAM, Some(Protocol::TCP))?;
    setsockopt(&socket, IpBindAddressNoPort, &true)?;
    match socket.bind(&SocketAddr::new(address, 0).into()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Ok(false),
        Err(error) => Err(error),
    }
}

/// The kernel's routing tables. One for the process.
#[derive(Debug, Default)]
pub struct Routes(Mutex<Option<Lookups>>);

#[derive(Debug)]
struct Lookups {
    netlink: OwnedFd,
    sequence: u32,
}

/// Answers that are not ours, or from a question before, that are passed over.
const STRAY_ANSWERS_MAX: usize = 8;

impl Routes {
    /// Whether what is sent to an address, from a source where one is given, ends on this host. Two system calls, 3 µs
    /// together: not worth remembering, for a route may come at any moment.
    pub fn is_local(&self, to: IpAddr, from: Option<IpAddr>) -> io::Result<bool> {
        let mut lookups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = match &mut *lookups {
            Some(lookups) => lookups.ask(to, from),
            empty => Lookups::open().and_then(|new| empty.insert(new).ask(to, from)),
        };
        asked.or_else(|error| {
            // Whatever still lies there is not read as the answer to the next question.
            *lookups = None;
            tracing::debug!(%error, "the kernel does not tell its routes: it is asked by a bind");
            // Which knows the routes of IPv4, and of IPv6 the interfaces.
            is_on_host(to)
        })
    }
}

/// Of linux/netlink.h and linux/rtnetlink.h.
mod kernel {
    pub const NLMSG_HEADER_BYTES: usize = 16;
    pub const NLMSG_ERROR: u16 = 2;
    pub const NLM_F_REQUEST: u16 = 1;
    pub const RTM_NEWROUTE: u16 = 24;
    pub const RTM_GETROUTE: u16 = 26;
    pub const RTA_DST: u16 = 1;
    pub const RTA_SRC: u16 = 2;
    /// Where `rtm_type` stands in an answer: after the header and the seven bytes in front of it.
    pub const TYPE_AT: usize = NLMSG_HEADER_BYTES + 7;
    pub const RTN_LOCAL: u8 = 2;
    /// An IPv6 router takes its subnets' anycast addresses for its own.
    pub const RTN_ANYCAST: u8 = 4;
}

impl Lookups {
    fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let netlink = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        Ok(Self { netlink, sequence: 0 })
    }

    fn ask(&mut self, to: IpAddr, from: Option<IpAddr>) -> io::Result<bool> {
        self.sequence = self.sequence.wrapping_add(1);
        send(self.netlink.as_raw_fd(), &question(self.sequence, to, from), MsgFlags::empty())?;
        let mut answer = [0; 1024];
        for _ in 0..STRAY_ANSWERS_MAX {
            // The kernel has answered before `send` returns.
            let length = recv(self.netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
            if let Some(local) = read_answer(self.sequence, &answer[..length.min(answer.len())]) {
                return Ok(local);
            }
        }
        Err(io::Error::other("the kernel did not answer about a route"))
    }
}

fn question(sequence: u32, to: IpAddr, from: Option<IpAddr>) -> Vec<u8> {
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let family = match to {
        IpAddr::V4(_) => nix::libc::AF_INET,
        IpAddr::V6(_) => nix::libc::AF_INET6,
    };
    let bits = |address: Option<IpAddr>| address.map_or(0, |address| if address.is_ipv4() { 32 } else { 128 });
    #[allow(clippy::cast_possible_truncation, reason = "families, and lengths of a few bytes")]
    {
        // rtmsg: family, lengths of both addresses, tos, table, protocol, scope, type; then four bytes of flags.
        let mut body = vec![family as u8, bits(Some(to)), bits(from), 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for (kind, address) in [(kernel::RTA_DST, Some(to)), (kernel::RTA_SRC, from)] {
            let Some(address) = address.map(bytes) else { continue };
            body.extend_from_slice(&(4 + address.len() as u16).to_ne_bytes());
            body.extend_from_slice(&kind.to_ne_bytes());
            body.extend_from_slice(&address);
        }
        let mut message = ((kernel::NLMSG_HEADER_BYTES + body.len()) as u32).to_ne_bytes().to_vec();
        message.extend_from_slice(&kernel::RTM_GETROUTE.to_ne_bytes());
        message.extend_from_slice(&kernel::NLM_F_REQUEST.to_ne_bytes());
        message.extend_from_slice(&sequence.to_ne_bytes());
        message.extend_from_slice(&[0; 4]);
        message.extend_from_slice(&body);
        message
    }
}

/// `None`: not an answer to this question.
fn read_answer(sequence: u32, answer: &[u8]) -> Option<bool> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    if answer.get(8..12)? != sequence.to_ne_bytes() {
        return None;
    }
    match kind {
        kernel::RTM_NEWROUTE => {
            let kind = *answer.get(kernel::TYPE_AT)?;
            Some(kind == kernel::RTN_LOCAL || kind == kernel::RTN_ANYCAST)
        }
        // There is no way there: connecting will say so.
        kernel::NLMSG_ERROR => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_of_this_host_can_be_bound() {
        for (address, there) in [("127.0.0.77", true), ("192.0.2.1", false), ("2001:db8::1", false)] {
            assert_eq!(is_on_host(address.parse().unwrap()).unwrap(), there, "{address}");
        }
    }

    #[test]
    fn the_kernel_says_what_leads_back_to_this_host() {
        let routes = Routes::default();
        for (to, local) in
            [("127.0.0.1", true), ("127.200.3.4", true), ("::1", true), ("192.0.2.1", false), ("2001:db8::1", false)]
        {
            for _ in 0..3 {
                assert_eq!(routes.is_local(to.parse().unwrap(), None).unwrap(), local, "{to}");
            }
        }
        let from = Some("127.0.0.11".parse().unwrap());
        assert!(routes.is_local("127.0.0.1".parse().unwrap(), from).unwrap());
        // From an address that is not here there is no way anywhere.
        assert!(!routes.is_local("127.0.0.1".parse().unwrap(), Some("192.0.2.1".parse().unwrap())).unwrap());
    }

    #[test]
    fn an_answer_to_another_question_is_none() {
        let mut answer = question(7, "192.0.2.1".parse().unwrap(), None);
        answer[4..6].copy_from_slice(&kernel::RTM_NEWROUTE.to_ne_bytes());
        for (kind, local) in [(1, false), (2, true), (3, false), (4, true), (7, false)] {
            answer[kernel::TYPE_AT] = kind;
            assert_eq!(read_answer(7, &answer), Some(local), "{kind}");
            assert_eq!(read_answer(8, &answer), None);
        }
        assert_eq!(read_answer(7, &answer[..kernel::TYPE_AT]), None);
        assert_eq!(read_answer(7, &[]), None);
    }
}
