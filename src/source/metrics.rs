//! What is measured of the sources.

use jiff::Timestamp;

use super::{Sources, Verified};

const USABLE: &str = "egressd_source_usable";
const VERIFIED: &str = "egressd_source_verified";

/// To be called once, when the recorder is in place.
pub fn describe() {
    metrics::describe_gauge!(USABLE, "Whether new connections may leave from this source (1) or not (0)");
    metrics::describe_gauge!(
        VERIFIED,
        "What the reflectors see of this source: its published address (1), another one (-1), or they cannot be reached (0)"
    );
}

impl Sources {
    /// Sets the gauges of every configured source.
    pub fn measure(&self, now: Timestamp) {
        for slot in &self.slots {
            let label = slot.source.public().to_string();
            let usable = if slot.unusable(now).is_none() { 1.0 } else { 0.0 };
            metrics::gauge!(USABLE, "source_ip" => label.clone()).set(usable);
            let verified = match slot.health.verified() {
                Verified::Yes => 1.0,
                Verified::Unverified => 0.0,
                Verified::Drift => -1.0,
                // Nobody was asked: no sample, so that no alert speaks of it.
                Verified::Unknown => continue,
            };
            metrics::gauge!(VERIFIED, "source_ip" => label).set(verified);
        }
    }

    /// Sources that a reload took away no longer count as usable.
    pub fn forget_measures(&self, kept: &Sources) {
        for slot in &self.slots {
            if !kept.slots.iter().any(|other| other.source.public() == slot.source.public()) {
                let label = slot.source.public().to_string();
                metrics::gauge!(USABLE, "source_ip" => label).set(0.0);
            }
        }
    }

    /// Reflectors are no longer asked: the samples there are compare with nothing, so that no alert speaks of them.
    pub fn forget_verification(&self) {
        for slot in &self.slots {
            metrics::gauge!(VERIFIED, "source_ip" => slot.source.public().to_string()).set(f64::NAN);
        }
    }
}
