//! What is counted of tunnels.

use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use super::relay::{Bytes, End};
use crate::source::Source;

pub struct Metrics {
    connect: Histogram,
    up: Counter,
    down: Counter,
}

/// One open tunnel's place in the gauge.
pub struct Open(Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

impl Metrics {
    /// Once, after the recorder is installed.
    pub fn new() -> Self {
        describe_gauge!("egressd_tunnels_open", Unit::Count, "Tunnels that are open, by the source they leave from.");
        describe_counter!(
            "egressd_tunnels_total",
            Unit::Count,
            "Tunnels that ended, by how (refused: it was never opened, or is no longer allowed) and by the code of why."
        );
        describe_counter!(
            "egressd_tunnel_bytes_total",
            Unit::Bytes,
            "Bytes that tunnels carried: up, to where they lead, and down, to the client."
        );
        describe_histogram!(
            "egressd_tunnel_connect_seconds",
            Unit::Seconds,
            "From a tunnel's request to its answer: DNS, policy and connect, of those that were opened."
        );
        Self {
            connect: histogram!("egressd_tunnel_connect_seconds"),
            up: counter!("egressd_tunnel_bytes_total", "direction" => "up"),
            down: counter!("egressd_tunnel_bytes_total", "direction" => "down"),
        }
    }

    pub fn connected(&self, took: Duration) {
        self.connect.record(took);
    }

    pub fn open_from(&self, source: &Source) -> Open {
        let gauge = gauge!("egressd_tunnels_open", "source_ip" => source.public().to_string());
        gauge.increment(1.0);
        Open(gauge)
    }

    pub fn bytes(&self) -> Bytes {
        Bytes { up: self.up.clone(), down: self.down.clone() }
    }

    pub fn ended(&self, end: End, code: &'static str) {
        counter!("egressd_tunnels_total", "end" => end.label(), "code" => code).increment(1);
    }
}
