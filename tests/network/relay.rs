//! A slow road: a TUN device in the router that keeps every packet back for a while (this kernel may have no netem).
//!
//! How long is said by the port that it goes to: `SLOW + milliseconds`. All others go on at once.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::lab::{Lab, inside, sh};

/// A packet to this port is kept back for no time, to the next one for a millisecond, and so on.
pub const SLOW: u16 = 20_000;
const LONGEST: u16 = 30_000;

impl Lab {
    /// From now on everything from the app to the world takes the slow road; what comes back does not.
    pub fn slow_road(&self) {
        let router = &self.router;
        let device = inside(router, || open("slow"));
        // Tracked, and mapped, only when it comes back from the device: on its way there it is not yet itself.
        sh(&format!(
            "ip netns exec {router} nft 'table inet slow {{ chain pre {{ type filter hook prerouting priority -300; \
             iifname inner notrack; }}; }}' &&
             ip netns exec {router} sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.slow.rp_filter=0 &&
             ip -n {router} link set slow up &&
             for family in -4 -6; do
                 ip $family -n {router} route add default dev slow table 7 &&
                 ip $family -n {router} rule add iif inner table 7 || exit 1
             done"
        ));
        let (mut from, mut to) = (device.try_clone().expect("a device"), device);
        let (kept, due) = channel();
        // Both end with the router, whose device goes with it.
        std::thread::spawn(move || {
            let mut packet = [0; 2048];
            while let Ok(length @ 1..) = from.read(&mut packet) {
                let packet = packet[..length].to_vec();
                if kept.send((Instant::now() + delay_of(&packet), packet)).is_err() {
                    return;
                }
            }
        });
        std::thread::spawn(move || forward(&due, &mut to));
    }
}

type Kept = (Instant, Vec<u8>);

/// Lets each packet go when its time has come.
fn forward(due: &Receiver<Kept>, to: &mut File) {
    let (mut waiting, mut number) = (BinaryHeap::new(), 0_u64);
    loop {
        let next = waiting.peek().map(|Reverse((at, ..)): &Reverse<(Instant, u64, Vec<u8>)>| *at);
        let patience = next.map_or(Duration::from_secs(1), |at| at.saturating_duration_since(Instant::now()));
        match due.recv_timeout(patience) {
            // Those of one instant in their order.
            Ok((at, packet)) => {
                number += 1;
                waiting.push(Reverse((at, number, packet)));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        while waiting.peek().is_some_and(|Reverse((at, ..))| *at <= Instant::now()) {
            let Some(Reverse((_, _, packet))) = waiting.pop() else { return };
            if to.write_all(&packet).is_err() {
                return;
            }
        }
    }
}

/// By the port that a TCP packet goes to.
fn delay_of(packet: &[u8]) -> Duration {
    let port = match packet[0] >> 4 {
        4 if packet[9] == 6 => port_at(packet, usize::from(packet[0] & 15) * 4 + 2),
        6 if packet[6] == 6 => port_at(packet, 42),
        _ => None,
    };
    let milliseconds = port.and_then(|port| port.checked_sub(SLOW)).filter(|milliseconds| *milliseconds <= LONGEST);
    Duration::from_millis(milliseconds.unwrap_or(0).into())
}

fn port_at(packet: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?))
}

/// A TUN device of this name, in the namespace of the thread (tuntap.rst of the kernel's documentation).
#[allow(unsafe_code, reason = "one ioctl that names the device, with a pointer to a local of the size it is told")]
fn open(name: &str) -> File {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    const IFF_TUN_NO_PI: u16 = 0x1001;
    let device = OpenOptions::new().read(true).write(true).open("/dev/net/tun").expect("the kernel has TUN devices");
    // A `struct ifreq`: the name, and flags in its union.
    let mut request = [0_u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&IFF_TUN_NO_PI.to_ne_bytes());
    // SAFETY: the descriptor is open, and the kernel reads and writes 40 bytes of a local.
    let answer = unsafe { libc::ioctl(device.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
    assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
    device
}
