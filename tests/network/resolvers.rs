//! The C library's resolver and ours, side by side, against the same name servers: whatever `getent ahosts` finds, a
//! send finds too.
//!
//! Both run in a namespace whose `/etc/resolv.conf` names servers of the test's own; nothing is connected to.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use serde_json::Value;

use crate::lab::{PATIENCE, inside, sh};
use crate::name_server::{Asked, NameServer, Reply, address, alias};

const NAME: &str = "hook.example.com";
const V4: &str = "93.184.216.34";
const V6: &str = "2606:4700::1111";

/// What one server says; `None`: nobody listens at its address.
type Script = Option<fn(&Asked) -> Reply>;

/// A namespace with both families, and a resolv.conf for whatever is run in it.
struct Place {
    namespace: String,
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let namespace = format!("egr{}r{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let place = Self { namespace, directory: tempfile::tempdir().expect("a directory") };
        let name = &place.namespace;
        // Addresses beyond loopback: the C library asks for families that the host has.
        sh(&format!(
            "ip netns add {name} && ip -n {name} link set lo up && mkdir -p /etc/netns/{name} &&
             ip netns exec {name} sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0 &&
             ip -n {name} link add here type veth peer name there &&
             ip -n {name} link set here up && ip -n {name} link set there up &&
             ip -n {name} addr add 10.9.0.1/24 dev here && ip -n {name} addr add 2001:db8:9::1/64 dev here nodad"
        ));
        let path = place.directory.path();
        std::fs::write(path.join("ips.txt"), "10.9.0.1\n2001:db8:9::1\n").expect("a list");
        let config = "[egress]\npublished = \"ips.txt\"\n[[egress.source]]\npublic = \"10.9.0.1\"\n\
                      [[egress.source]]\npublic = \"2001:db8:9::1\"\n[store]\npath = \"store\"\nkey_file = \"key\"\n";
        std::fs::write(path.join("egressd.toml"), config).expect("a configuration");
        place
    }

    /// The servers of a row, from their first question on. They stop when dropped.
    async fn servers(&self, scripts: &[Script]) -> Vec<NameServer> {
        let addresses: Vec<String> = (1..=scripts.len()).map(|last| format!("127.0.0.{last}")).collect();
        // A silent server is left by either after a second.
        let lines: String = addresses.iter().map(|address| format!("nameserver {address}\n")).collect();
        let conf = format!("{lines}options timeout:1 attempts:2\n");
        std::fs::write(format!("/etc/netns/{}/resolv.conf", self.namespace), conf).expect("a resolv.conf");
        let mut servers = Vec::new();
        for (address, script) in addresses.iter().zip(scripts) {
            let Some(script) = *script else { continue };
            let at: SocketAddr = format!("{address}:53").parse().expect("an address");
            let begun = Instant::now();
            let bind = || inside(&self.namespace, || Some((TcpListener::bind(at).ok()?, UdpSocket::bind(at).ok()?)));
            let (tcp, udp) = loop {
                // Those of the row before close once their tasks have been dropped.
                if let Some(both) = bind() {
                    break both;
                }
                assert!(begun.elapsed() < PATIENCE, "{at} is taken");
                tokio::task::yield_now().await;
            };
            servers.push(NameServer::on(tcp, udp, script));
        }
        servers
    }

    async fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).args(words);
        tokio::task::spawn_blocking(move || command.output().expect("it runs")).await.expect("no panic")
    }

    async fn theirs(&self, name: &str, scripts: &[Script]) -> BTreeSet<String> {
        let _servers = self.servers(scripts).await;
        let output = self.run(&["getent", "ahosts", name]).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
    }

    /// With what is said of it where there is nothing.
    async fn ours(&self, name: &str, scripts: &[Script]) -> (BTreeSet<String>, String) {
        let _servers = self.servers(scripts).await;
        let config = self.directory.path().join("egressd.toml");
        let url = format!("http://{name}/");
        let egressd = env!("CARGO_BIN_EXE_egressd");
        let words = [egressd, "explain", "GET", &url, "--json", "--config", config.to_str().expect("a path")];
        let output = self.run(&words).await;
        let said: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        let resolved = said["resolved"].as_array().cloned().unwrap_or_default();
        let found = resolved.iter().filter_map(|one| one["ip"].as_str()).map(str::to_owned).collect();
        (found, said["code"].as_str().unwrap_or("none").to_owned())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let name = &self.namespace;
        sh(&format!("ip netns del {name}; rm -r /etc/netns/{name}"));
    }
}

/// A good answer to whatever is asked.
fn good(asked: &Asked) -> Reply {
    Reply::Records(records(asked, &asked.name))
}

fn records(asked: &Asked, owner: &str) -> Vec<hickory_proto::rr::Record> {
    match asked.kind {
        RecordType::A => vec![address(owner, 60, V4)],
        RecordType::AAAA => vec![address(owner, 60, V6)],
        _ => Vec::new(),
    }
}

/// The first question about each family meets this, and those after it a good answer.
fn once(asked: &Asked, reply: Reply) -> Reply {
    if asked.before == 0 { reply } else { good(asked) }
}

fn is_a(asked: &Asked) -> bool {
    asked.kind == RecordType::A
}

fn only_a(asked: &Asked) -> Reply {
    if is_a(asked) { good(asked) } else { Reply::Records(Vec::new()) }
}

fn code(code: ResponseCode) -> Reply {
    Reply::Code(code, Vec::new())
}

fn late(reply: Reply) -> Reply {
    Reply::Late(Duration::from_millis(100), Box::new(reply))
}

#[tokio::test]
async fn what_the_c_library_finds_a_send_finds_too() {
    use ResponseCode::{FormErr, NXDomain, NotImp, Refused, ServFail};
    let (both, v4, none) = (&[V4, V6][..], &[V4][..], &[][..]);
    let gone = |asked: &Asked| if is_a(asked) { late(good(asked)) } else { code(NXDomain) };
    let rows: Vec<(&str, &str, Vec<Script>, &[&str], &str)> = vec![
        ("both families", NAME, vec![Some(good)], both, "none"),
        ("IPv4 alone", NAME, vec![Some(only_a)], v4, "none"),
        ("SERVFAIL once", NAME, vec![Some(|asked| once(asked, code(ServFail)))], both, "none"),
        ("REFUSED once", NAME, vec![Some(|asked| once(asked, code(Refused)))], both, "none"),
        ("NOTIMP once", NAME, vec![Some(|asked| once(asked, code(NotImp)))], both, "none"),
        ("lame once", NAME, vec![Some(|asked| once(asked, Reply::Lame))], both, "none"),
        ("silent once", NAME, vec![Some(|asked| once(asked, Reply::Silence))], both, "none"),
        ("unreadable once", NAME, vec![Some(|asked| once(asked, Reply::Garbage))], both, "none"),
        ("the first: SERVFAIL", NAME, vec![Some(|_| code(ServFail)), Some(good)], both, "none"),
        ("the first: REFUSED", NAME, vec![Some(|_| code(Refused)), Some(good)], both, "none"),
        ("the first: lame", NAME, vec![Some(|_| Reply::Lame), Some(good)], both, "none"),
        ("the first: silent", NAME, vec![Some(|_| Reply::Silence), Some(good)], both, "none"),
        ("the first: nobody there", NAME, vec![None, Some(good)], both, "none"),
        ("the last of three alone", NAME, vec![None, Some(|_| code(ServFail)), Some(good)], both, "none"),
        (
            "SERVFAIL once, beside a silent one",
            NAME,
            vec![Some(|asked| once(asked, code(ServFail))), Some(|_| Reply::Silence)],
            both,
            "none",
        ),
        ("AAAA: NXDOMAIN, first", NAME, vec![Some(gone)], v4, "none"),
        (
            "AAAA: NXDOMAIN, last",
            NAME,
            vec![Some(|asked| if is_a(asked) { good(asked) } else { late(code(NXDomain)) })],
            v4,
            "none",
        ),
        (
            "A: NXDOMAIN",
            NAME,
            vec![Some(|asked| if is_a(asked) { code(NXDomain) } else { late(good(asked)) })],
            &[V6],
            "none",
        ),
        (
            "AAAA: SERVFAIL",
            NAME,
            vec![Some(|asked| if is_a(asked) { good(asked) } else { code(ServFail) })],
            v4,
            "none",
        ),
        (
            "A: SERVFAIL once",
            NAME,
            vec![Some(|asked| if is_a(asked) { once(asked, code(ServFail)) } else { good(asked) })],
            both,
            "none",
        ),
        (
            "AAAA: lame once",
            NAME,
            vec![Some(|asked| if is_a(asked) { good(asked) } else { once(asked, Reply::Lame) })],
            both,
            "none",
        ),
        ("AAAA: lame", NAME, vec![Some(|asked| if is_a(asked) { good(asked) } else { Reply::Lame })], v4, "none"),
        ("AAAA: silence", NAME, vec![Some(|asked| if is_a(asked) { good(asked) } else { Reply::Silence })], v4, "none"),
        ("EDNS dropped", NAME, vec![Some(|asked| if asked.edns { Reply::Silence } else { good(asked) })], both, "none"),
        ("EDNS refused", NAME, vec![Some(|asked| if asked.edns { code(FormErr) } else { good(asked) })], both, "none"),
        (
            "cut short",
            NAME,
            vec![Some(|asked| if asked.over_tcp { good(asked) } else { Reply::Truncated })],
            both,
            "none",
        ),
        (
            "cut short, and TCP closed at the first",
            NAME,
            vec![Some(|asked| if asked.over_tcp { Reply::Close } else { Reply::Truncated }), Some(good)],
            both,
            "none",
        ),
        ("other letters", NAME, vec![Some(|asked| Reply::LowerCase(records(asked, &asked.name)))], both, "none"),
        ("a hyphen first", "-a.example.com", vec![Some(good)], both, "none"),
        ("a hyphen last", "a-.example.com", vec![Some(good)], both, "none"),
        ("underscores", "_a.b_.example.com", vec![Some(good)], both, "none"),
        (
            "an alias",
            NAME,
            vec![Some(|asked| {
                let mut all = vec![alias(NAME, 60, "edge.example.net")];
                all.extend(records(asked, "edge.example.net"));
                Reply::Records(all)
            })],
            both,
            "none",
        ),
        (
            "an alias that leads nowhere",
            NAME,
            vec![Some(|_| Reply::Code(NXDomain, vec![alias(NAME, 60, "edge.example.net")]))],
            none,
            "dns_not_found",
        ),
        ("no such name", NAME, vec![Some(|_| code(NXDomain))], none, "dns_not_found"),
        ("no address", NAME, vec![Some(|_| Reply::Records(Vec::new()))], none, "dns_no_address"),
        ("SERVFAIL always", NAME, vec![Some(|_| code(ServFail)), Some(|_| code(ServFail))], none, "dns_failed"),
    ];
    let place = Place::new();
    println!("{:<40} {:<36} {:<36}", "", "getent ahosts", "egressd");
    let show = |found: &BTreeSet<String>| found.iter().cloned().collect::<Vec<_>>().join(" ");
    let mut found_by_both = 0;
    for (what, name, scripts, expected, code) in rows {
        let theirs = place.theirs(name, &scripts).await;
        let (ours, why) = place.ours(name, &scripts).await;
        println!("{what:<40} {:<36} {:<36} {why}", show(&theirs), show(&ours));
        assert!(theirs.is_subset(&ours), "{what}: getent finds {theirs:?}, egressd {ours:?} ({why})");
        let expected: BTreeSet<String> = expected.iter().map(|ip| (*ip).to_owned()).collect();
        assert_eq!((&ours, why.as_str()), (&expected, code), "{what}");
        found_by_both += usize::from(!theirs.is_empty());
    }
    // Else the C library was not asked what it should have been.
    assert!(found_by_both > 15, "{found_by_both}");
}
