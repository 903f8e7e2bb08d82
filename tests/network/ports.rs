//! Ports: twenty of them, so that their end is near. A source carries as many connections towards one peer as there are
//! ports, N sources N times as many, and the end is told before and when it comes. And as many as a host has by
//! default, nearly all of them in use.

use std::io::{IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg, setsockopt, sockopt::IpBindAddressNoPort};
use socket2::{Domain, Socket, Type};

use crate::lab::{API, Lab, METRICS, WORLD_V4, WORLD_V4_OTHER, WORLD_V6, WORLD_V6_OTHER, end_of, inside, list, sh};

const PORTS: usize = 20;

/// One family's addresses: a receiver, another, and what the published ones begin with.
struct Family {
    receiver: &'static str,
    other: &'static str,
    public: &'static str,
}

const V4: Family = Family { receiver: WORLD_V4, other: WORLD_V4_OTHER, public: "198.51.100." };
const V6: Family = Family { receiver: WORLD_V6, other: WORLD_V6_OTHER, public: "2001:db8:1::" };

impl Family {
    fn url(&self, host: &str, path: &str) -> String {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        format!("http://{host}:8080{path}")
    }

    /// A metric of one of its sources.
    fn series(&self, name: &str, source: u8) -> String {
        format!("{name}{{source_ip=\"{}{source}\"}}", self.public)
    }
}

const USED: &str = "egressd_source_ports_used_ratio";
const EXHAUSTED: &str = "egressd_source_ports_exhausted_total";

fn lab(sources: &[u8], delivery: &str) -> Lab {
    let mut lab = Lab::new(sources);
    lab.write_list(&list(sources));
    lab.configure(sources, &["v4", "v6"], &format!("[delivery]\nkeep_alive = \"0s\"\n{delivery}"));
    sh(&format!(
        "ip netns exec {} sysctl -qw net.ipv4.ip_local_port_range='40000 40019' net.ipv4.tcp_tw_reuse=0",
        lab.app
    ));
    lab.start();
    lab
}

#[tokio::test(flavor = "multi_thread")]
async fn every_source_brings_all_of_its_ports() {
    for (sources, family) in [(vec![11], V4), (vec![11, 12, 13], V4), (vec![11, 12], V6)] {
        let lab = lab(&sources, "deadline = \"30s\"\ndrain = \"30s\"\n");
        lab.admit_the_list().await;
        let (receiver, other) = (lab.receiver(family.receiver, 8080).await, lab.receiver(family.other, 8080).await);
        let mut caller = lab.caller(API).await;
        let all = PORTS * sources.len();
        let urls: Vec<_> = (0..all).map(|number| family.url(family.receiver, &format!("/hold/{number}"))).collect();
        let ids = caller.submit("acme", &urls).await;
        receiver.holds(all).await;
        for source in &sources {
            lab.metric(&family.series(USED, *source), |value| value == 1.0).await;
        }
        let record = caller.get("acme", &family.url(family.receiver, "/one-too-many")).await;
        assert_eq!(end_of(&record), "source_ports_exhausted", "{record}");
        assert!(receiver.seen("/one-too-many").is_empty());
        for source in &sources {
            lab.metric(&family.series(EXHAUSTED, *source), |value| value >= 1.0).await;
        }
        // Only towards that peer.
        let record = caller.get("acme", &family.url(family.other, "/else")).await;
        assert_eq!(end_of(&record), "delivered", "{record}");
        assert_eq!(other.seen("/else").len(), 1);
        receiver.release();
        let mut counts = std::collections::HashMap::<String, usize>::new();
        for id in ids {
            let record = caller.done("acme", &id).await;
            assert_eq!(end_of(&record), "delivered", "{record}");
            let source = record["connection"]["public_ip"].as_str().expect("a source").to_owned();
            *counts.entry(source).or_default() += 1;
        }
        assert!(counts.len() == sources.len() && counts.values().all(|count| *count == PORTS), "{counts:?}");
        assert_eq!(lab.strangers(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_in_time_wait_count_and_the_next_source_takes_over() {
    for (sources, family) in [(vec![11], V4), (vec![11, 12, 13], V4), (vec![11, 12], V6)] {
        let lab = lab(&sources, "");
        lab.admit_the_list().await;
        let receiver = lab.receiver(family.receiver, 8080).await;
        let mut caller = lab.caller(API).await;
        // The receiver keeps connections open, so that we close first and the waiting is ours.
        let mut ends = Vec::new();
        for number in 0..PORTS * sources.len() + 2 {
            let record = caller.get("acme", &family.url(family.receiver, &format!("/{number}"))).await;
            let count = receiver.seen(&format!("/{number}")).len();
            ends.push((end_of(&record).to_owned(), count));
        }
        let delivered = ends.iter().filter(|end| **end == ("delivered".to_owned(), 1)).count();
        let exhausted = ends.iter().filter(|end| **end == ("source_ports_exhausted".to_owned(), 0)).count();
        assert_eq!((delivered, exhausted), (PORTS * sources.len(), 2), "{ends:?}");
        assert_eq!(lab.strangers(), 0);
        // Nothing is open, and every port is in use.
        for source in &sources {
            lab.metric(&family.series(USED, *source), |value| value == 1.0).await;
        }

        // Where the kernel may use them again after a second, they count as free, and are.
        sh(&format!("ip netns exec {} sysctl -qw net.ipv4.tcp_tw_reuse=1", lab.app));
        for source in &sources {
            lab.metric(&family.series(USED, *source), |value| value == 0.0).await;
        }
        for number in 0..PORTS {
            let record = caller.get("acme", &family.url(family.receiver, &format!("/again/{number}"))).await;
            assert_eq!(end_of(&record), "delivered", "{record}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_ports_is_seen_before_it_comes() {
    let lab = lab(&[11], "");
    lab.admit_the_list().await;
    let _receiver = lab.receiver(WORLD_V4, 8080).await;
    let mut caller = lab.caller(API).await;
    // More than the alert's 80 %, all in TIME_WAIT.
    for number in 0..PORTS * 17 / 20 {
        let record = caller.get("acme", &format!("http://{WORLD_V4}:8080/{number}")).await;
        assert_eq!(end_of(&record), "delivered", "{record}");
    }
    lab.metric(&V4.series(USED, 11), |value| value > 0.8).await;
    let (_, metrics) = lab.call(METRICS, "GET", "/metrics", "", &[]).await;
    let told = metrics.lines().find(|line| line.starts_with(EXHAUSTED));
    assert!(told.is_none_or(|line| line.ends_with(" 0")), "{told:?}");
    let (_, sources) = lab.call(API, "GET", "/v1/sources", "", &[]).await;
    assert!(sources.contains("\"ports_used_ratio\":0.85"), "{sources}");
}

/// How fast connections are made while more and more of 28,232 ports are in use. Asserts that they are made; the figures
/// are for whoever reads the output. What is in use is held open: TIME_WAIT ends after a minute, which a busy machine
/// may need for less than all of this. So there is none here, and every port is accounted for.
#[tokio::test(flavor = "multi_thread")]
async fn a_default_range_that_is_nearly_full_still_carries_and_says_how_fast() {
    const RANGE: (u16, u16) = (32_768, 60_999);
    const EACH: usize = 200;
    let ports = usize::from(RANGE.1 - RANGE.0) + 1;
    let mut lab = Lab::new(&[11]);
    lab.write_list(&list(&[11]));
    lab.configure(&[11], &["v4"], "[delivery]\nkeep_alive = \"0s\"\n");
    let range = format!("{} {}", RANGE.0, RANGE.1);
    sh(&format!(
        "ip netns exec {} sysctl -qw net.ipv4.ip_local_port_range='{range}' net.ipv4.tcp_max_tw_buckets=0",
        lab.app
    ));
    lab.start();
    lab.admit_the_list().await;
    let _receiver = PlainReceiver::start(&lab);
    let held = Parking::new();
    let mut used = 0;
    println!(
        "ports in use  connect() with the range set  and without it    connect phase of a delivery (p50, p99, µs)"
    );
    for percent in [0, 50, 75, 95] {
        let lacking = (ports * percent / 100).saturating_sub(used);
        assert_eq!(connects(&lab, &held, lacking, Some(RANGE)).len(), lacking);
        let [with, without] = [Some(RANGE), None].map(|range| {
            let times = connects(&lab, &held, EACH, range);
            assert_eq!(times.len(), EACH);
            shown(times)
        });
        used += lacking + 2 * EACH;
        let path = format!("/at{percent}");
        let urls: Vec<_> = (0..EACH).map(|_| format!("http://{WORLD_V4}:8080{path}")).collect();
        let (mut phases, mut caller) = (Vec::new(), lab.caller(API).await);
        for url in urls {
            let record = caller.get("acme", &url).await;
            assert_eq!(end_of(&record), "delivered", "{record}");
            let phase = record["timings_ms"]["connect"].as_f64().expect("a time");
            phases.push(Duration::from_secs_f64(phase / 1000.0));
        }
        println!("{:>5} {percent:>3} %     {with:>26}  {without:>16}    {:>20}", used, shown(phases));
    }
    lab.metric(&V4.series(USED, 11), |value| value > 0.95).await;

    // Not one left: how long it takes to be told so.
    used += connects(&lab, &held, ports, Some(RANGE)).len();
    assert_eq!(used, ports);
    let mut caller = lab.caller(API).await;
    let mut refused = Vec::new();
    for _ in 0..EACH {
        let record = caller.get("acme", &format!("http://{WORLD_V4}:8080/none-left")).await;
        assert_eq!(end_of(&record), "source_ports_exhausted", "{record}");
        refused.push(Duration::from_secs_f64(record["timings_ms"]["connect"].as_f64().expect("a time") / 1000.0));
    }
    println!("{ports:>5} 100 %     none left: {:>56}", shown(refused));
    lab.metric(&V4.series(USED, 11), |value| value == 1.0).await;
    assert_eq!(lab.strangers(), 0);
}

/// A receiver that costs next to nothing: whatever it is asked, it says yes, and it never closes first. Who asks it to
/// hold is held until it is dropped.
struct PlainReceiver(Socket);

impl PlainReceiver {
    fn start(lab: &Lab) -> Self {
        let listener = inside(&lab.world, || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            let address: SocketAddr = format!("{WORLD_V4}:8080").parse().expect("an address");
            socket.bind(&address.into()).expect("the receiver's address");
            socket.listen(4096).expect("a listener");
            socket
        });
        let ours = listener.try_clone().expect("a descriptor");
        std::thread::spawn(move || {
            let held = Parking::new();
            let (mut asked, mut next) = ([0; 4096], Vec::new());
            for mut stream in std::net::TcpListener::from(listener).incoming().map_while(Result::ok) {
                while let Ok(length @ 1..) = stream.read(&mut asked) {
                    if asked[..length] == *HOLD {
                        let _ = stream.write_all(HOLD);
                        next.push(stream);
                        break;
                    }
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
                }
                if next.len() == Parking::AT_ONCE {
                    held.park(&next);
                    next.clear();
                }
            }
        });
        Self(ours)
    }
}

impl Drop for PlainReceiver {
    fn drop(&mut self) {
        // A listener that is shut down accepts no more, and its thread ends.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

const HOLD: &[u8] = b"hold";

/// Sockets that stay open without a descriptor: under way between two Unix sockets that nobody reads (unix(7),
/// `SCM_RIGHTS`), because a process may have fewer descriptors than a host has ports. They are closed with it.
struct Parking(UnixStream, #[allow(dead_code, reason = "what is under way to it lives as long as it")] UnixStream);

impl Parking {
    /// A message takes 253.
    const AT_ONCE: usize = 200;

    fn new() -> Self {
        let (near, far) = UnixStream::pair().expect("two sockets");
        // Where there is no room, an error instead of waiting for ever.
        near.set_nonblocking(true).expect("a socket");
        Self(near, far)
    }

    fn park(&self, sockets: &[impl AsRawFd]) {
        for some in sockets.chunks(Self::AT_ONCE) {
            let descriptors: Vec<_> = some.iter().map(AsRawFd::as_raw_fd).collect();
            let rights = [ControlMessage::ScmRights(&descriptors)];
            let sent = sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(b"_")], &rights, MsgFlags::empty(), None);
            assert_eq!(sent, Ok(1), "open sockets on their way");
        }
    }
}

/// So many connections from the first source to the receiver, each held open; how long each `connect` took. Fewer,
/// where no port is left.
fn connects(lab: &Lab, held: &Parking, count: usize, range: Option<(u16, u16)>) -> Vec<Duration> {
    let (from, to): (SocketAddr, SocketAddr) =
        (SocketAddr::from(([10, 1, 0, 11], 0)), format!("{WORLD_V4}:8080").parse().expect("an address"));
    let connect = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        setsockopt(&socket, IpBindAddressNoPort, &true).expect("an option");
        if let Some(range) = range {
            set_port_range(&socket, range);
        }
        socket.bind(&from.into()).expect("the source");
        let begun = Instant::now();
        match socket.connect(&to.into()) {
            Ok(()) => Some((begun.elapsed(), TcpStream::from(socket))),
            Err(error) if error.kind() == std::io::ErrorKind::AddrNotAvailable => None,
            Err(error) => panic!("{error}"),
        }
    };
    inside(&lab.app, || {
        let mut times = Vec::with_capacity(count);
        while times.len() < count {
            let wanted = Parking::AT_ONCE.min(count - times.len());
            let (took, mut streams): (Vec<_>, Vec<_>) = std::iter::from_fn(connect).take(wanted).unzip();
            for stream in &mut streams {
                stream.write_all(HOLD).expect("the receiver reads");
                stream.read_exact(&mut [0; HOLD.len()]).expect("the receiver holds it");
            }
            held.park(&streams);
            times.extend(&took);
            if took.len() < wanted {
                break;
            }
        }
        times
    })
}

#[allow(unsafe_code, reason = "one socket option by its number, which no crate has a setter for")]
fn set_port_range(socket: &Socket, (low, high): (u16, u16)) {
    let packed = u32::from(high) << 16 | u32::from(low);
    // SAFETY: the kernel reads four bytes of a local, and the descriptor is open.
    let answer = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_IP, 51, (&raw const packed).cast(), size_of::<u32>() as u32)
    };
    assert_eq!(answer, 0, "IP_LOCAL_PORT_RANGE");
}

/// Median and 99th percentile, in microseconds.
fn shown(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let of = |share: usize| times[(times.len() - 1) * share / 100].as_micros();
    format!("{} {}", of(50), of(99))
}
