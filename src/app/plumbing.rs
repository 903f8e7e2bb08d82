//! The host's addresses as they come and go: the kernel says when (rtnetlink(7)), and then everything that depends on
//! them is brought up to date at once.
//!
//! A source whose address was taken away would otherwise be found out by the sends that leave from it; and a
//! connection that is kept idle gives no sign at all: what is written to it only waits for its deadline.

use std::{io, net::SocketAddr, os::fd::AsRawFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket};
use tokio::net::UnixDatagram;

use super::ours;
use crate::clock;
use crate::deliver::Deliverer;
use crate::dial::plumbed;
use crate::world::World;

/// `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR` of linux/rtnetlink.h.
const ADDRESS_GROUPS: u32 = 0x10 | 0x100;

/// Tells that some address of this host has come or gone; not which one.
///
/// The socket is netlink's; tokio's type for datagrams only waits and receives, which is the same for every family.
pub struct AddressEvents(UnixDatagram);

impl AddressEvents {
    pub fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let descriptor = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(descriptor.as_raw_fd(), &NetlinkAddr::new(0, ADDRESS_GROUPS))?;
        Ok(Self(UnixDatagram::from_std(descriptor.into())?))
    }

    /// Ready after a change. Several at once count as one.
    pub async fn changed(&mut self) -> io::Result<()> {
        let mut buffer = [0; 8192];
        let told = |result: io::Result<usize>| match result {
            // More than the socket holds is a change as well.
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => Ok(()),
            result => result.map(drop),
        };
        told(self.0.recv(&mut buffer).await)?;
        loop {
            match self.0.try_recv(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                result => told(result)?,
            }
        }
    }
}

/// Brings everything that depends on this host's addresses up to date.
pub fn look(world: &World, deliverer: &Deliverer, listeners: &[SocketAddr]) {
    let now = clock::wall();
    let sources = world.sources();
    for source in sources.all() {
        match plumbed::is_on_host(source.bind()) {
            Ok(true) => sources.on_host(&source),
            Ok(false) => sources.not_on_host(&source, now),
            // Not the address's fault: a delivery will say more.
            Err(error) => tracing::debug!(%error, bind = %source.bind(), "a source could not be looked at"),
        }
    }
    sources.measure(now);
    let ours = ours::look(&world.config(), listeners);
    if ours != *world.ours() {
        world.set_ours(ours);
        // It closes what is idle: at once, not at its next turn.
        deliverer.tend();
    }
}
