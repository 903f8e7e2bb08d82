//! What a node tells of its tier at `/metrics`: its lease, who is there, what it took over, and how the database is.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use tokio::time::Instant;

use super::link::{Link, Trouble};
use super::{Shared, locked, sql};
use crate::clock;

/// How often the database is asked how it is.
pub const EVERY: Duration = Duration::from_secs(10);

pub fn describe() {
    describe_gauge!(
        "egressd_lease_age_seconds",
        Unit::Seconds,
        "Time since this node sent the last renewal of its lease that the database took; past `[store] lease` it begins nothing"
    );
    describe_gauge!("egressd_nodes", Unit::Count, "Nodes of the tier that are not declared dead, this one among them");
    describe_counter!("egressd_nodes_lost_total", Unit::Count, "Nodes that this one has declared dead");
    describe_counter!(
        "egressd_sends_adopted_total",
        Unit::Count,
        "Sends that a dead or drained node had claimed, and that this one let wait for anybody"
    );
    describe_histogram!(
        "egressd_store_commit_seconds",
        Unit::Seconds,
        "Time that one statement of the hot path took in the database, its commit included"
    );
    describe_gauge!(
        "egressd_store_dead_tuples",
        Unit::Count,
        "Rows of the queue's tables that are dead and that no vacuum has removed yet"
    );
    describe_gauge!(
        "egressd_store_oldest_transaction_seconds",
        Unit::Seconds,
        "Age of the oldest open transaction of the whole cluster that this role may see: it holds back tails and vacuum"
    );
    // From the start on, so that a first increment is seen as one.
    counter!("egressd_nodes_lost_total").increment(0);
    counter!("egressd_sends_adopted_total").increment(0);
}

pub fn lost_one() {
    counter!("egressd_nodes_lost_total").increment(1);
}

pub fn adopted(sends: i64) {
    counter!("egressd_sends_adopted_total").increment(sends.unsigned_abs());
}

pub fn committed(since: Instant) {
    histogram!("egressd_store_commit_seconds").record(clock::monotonic().duration_since(since));
}

/// Also while no renewal succeeds.
pub fn lease(shared: &Shared) {
    if let Some(life) = locked(&shared.life).as_ref() {
        let age = clock::monotonic().duration_since(life.renewed);
        gauge!("egressd_lease_age_seconds").set(age.as_secs_f64());
    }
}

#[allow(clippy::cast_precision_loss, reason = "gauges are floats")]
pub async fn database(link: &Link) -> Result<(), Trouble> {
    let row = link.one(sql::MEASURES, &[]).await?;
    gauge!("egressd_nodes").set(row.get::<_, i64>(0) as f64);
    gauge!("egressd_store_dead_tuples").set(row.get::<_, i64>(1) as f64);
    gauge!("egressd_store_oldest_transaction_seconds").set(row.get::<_, f64>(2));
    Ok(())
}
