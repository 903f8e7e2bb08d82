//! Whether an address is on this host, asked of the kernel as a connection would ask it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_of_this_host_can_be_bound() {
        for (address, there) in [("127.0.0.77", true), ("192.0.2.1", false), ("2001:db8::1", false)] {
            assert_eq!(is_on_host(address.parse().unwrap()).unwrap(), there, "{address}");
        }
    }
}
