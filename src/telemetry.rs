//! Logs and metrics of the process: where they go and in which buckets.
//!
//! Every metric is described where it is counted; labels come from closed lists or the configured sources only.

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

/// From a millisecond to just past the default deadline, in seconds.
const DELIVERY_BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 4.9, 5.05, 5.25, 10.0];
/// A queue may be as old as a send's expiry: to a day, in seconds.
const QUEUE_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 86400.0,
];
/// What a sync to disk takes, in seconds.
const COMMIT_BUCKETS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// Makes this process' metrics go to the handle. Once per process.
pub fn metrics() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full("egressd_delivery_seconds".to_owned()), DELIVERY_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full("egressd_phase_seconds".to_owned()), DELIVERY_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full("egressd_queue_wait_seconds".to_owned()), QUEUE_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full("egressd_store_commit_seconds".to_owned()), COMMIT_BUCKETS)?
        .install_recorder()?;
    metrics::describe_gauge!("egressd_build_info", metrics::Unit::Count, "Always 1; the version is the label.");
    metrics::gauge!("egressd_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(handle)
}

/// Logs go to stderr: as lines for a person on a terminal, as JSON when piped. `EGRESSD_LOG` filters
/// (`tracing_subscriber`'s directives; default `info`).
pub fn logs(default: &str) {
    use std::io::IsTerminal;
    let filter = EnvFilter::try_from_env("EGRESSD_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second call (tests start several appliances in one process) keeps the first.
    let _ = if std::io::stderr().is_terminal() { builder.try_init() } else { builder.json().try_init() };
}
