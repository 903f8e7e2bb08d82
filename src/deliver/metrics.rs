//! How many deliveries are under way, by the source they leave from.

use metrics::{Gauge, describe_gauge, gauge};

use crate::source::Source;

pub fn describe() {
    describe_gauge!(
        "egressd_in_flight",
        "Deliveries under way, by the source address they leave from (none before one is chosen)"
    );
}

/// One delivery under way; counted until it is dropped.
pub struct InFlight {
    gauge: Gauge,
}

impl InFlight {
    pub fn start() -> Self {
        Self::counted(gauge!("egressd_in_flight", "source_ip" => "none"))
    }

    pub fn leaves_from(&mut self, source: &Source) {
        *self = Self::counted(gauge!("egressd_in_flight", "source_ip" => source.public().to_string()));
    }

    fn counted(gauge: Gauge) -> Self {
        gauge.increment(1.0);
        Self { gauge }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.gauge.decrement(1.0);
    }
}
