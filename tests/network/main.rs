//! Fixed addresses across a real network, in namespaces of the test's own: the appliance with several addresses on one
//! interface, a router that does 1:1 NAT, and a world that admits only the published list and captures what arrives.
//!
//! Needs root, iproute2, nftables, tcpdump and faketime; `tests/run network` installs them. Not run by a bare `cargo test`:
//! say `cargo test --test network`.

mod dates;
mod lab;
#[allow(dead_code, reason = "the suite uses more of it")]
#[path = "../suite/support/name_server.rs"]
mod name_server;
mod own;
mod pairs;
mod pools;
mod ports;
mod publication;
mod relay;
mod resolvers;
mod road;
mod tunnels;
