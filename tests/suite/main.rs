//! The parts put together, against receivers and name servers that lie. No internet: loopback alone.

mod deaf;
mod deliveries;
mod explains;
mod handshakes;
mod hiccups;
mod house;
mod http2;
mod leaving;
mod mail;
mod names;
mod reuse;
mod sources;
mod support;
