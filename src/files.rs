//! How many files this process may have open, and who may have how many of them.
//!
//! Each connection is one, in and out, and the kernel's limit is for all of them together: where it is low, whoever
//! opens the most would leave none for the rest, and a send that finds none has failed. So each kind has a part of its
//! own, and waits where that is used up. The rest is the store's, the lookups' and the metrics'.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::limits;

/// Raises the limit as far as the host lets this process. Once, before anything is opened.
pub fn raise() -> std::io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(())
}

/// What the kernel allows now.
pub fn limit() -> usize {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(usize::MAX, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX))
}

/// Most deliveries at once.
pub fn of_deliveries() -> u32 {
    u32::try_from(limit() / 2).unwrap_or(u32::MAX)
}

/// Most of so many connections to the API at once.
pub fn of_callers(most: usize) -> usize {
    most.min(limit() / 4)
}

/// Most of so many tunnels, which take two each, beside deliveries (of which there are at most `in_flight`), callers and
/// idle connections; what is left over is everything else's.
pub fn of_tunnels(most: u32, in_flight: u32) -> u32 {
    tunnels_within(limit(), most, in_flight)
}

/// Of `part` of `most`, as much as there is where there are only so many in all: whoever may have a fifth of them may
/// have a fifth of fewer, and no less than one.
pub fn in_proportion(part: u32, most: u32, in_all: u32) -> u32 {
    let share = u64::from(part.min(most)) * u64::from(in_all.min(most)) / u64::from(most.max(1));
    u32::try_from(share).unwrap_or(u32::MAX).max(1)
}

fn tunnels_within(limit: usize, most: u32, in_flight: u32) -> u32 {
    let deliveries = (limit / 2).min(usize::try_from(in_flight).unwrap_or(usize::MAX));
    let callers = limits::API_CONNECTIONS.min(limit / 4);
    let idle = limits::IDLE_TOTAL.min(limit / 8);
    let rest =
        limit.saturating_sub(deliveries + callers + idle + limits::PROXY_CONNECTIONS.min(limit / 16) + limit / 32);
    most.min(u32::try_from(rest / 2).unwrap_or(u32::MAX)).max(1)
}

/// Most of so many idle connections.
pub fn of_idle(most: usize) -> usize {
    most.min(limit() / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnels_take_what_deliveries_and_callers_leave() {
        for (limit, most, in_flight, tunnels) in [
            (1_048_576, 5_000, 10_000, 5_000),
            (65_536, 5_000, 10_000, 5_000),
            (20_000, 5_000, 2_000, 4_990),
            (20_000, 5_000, 10_000, 990),
            (1_024, 5_000, 10_000, 16),
            (0, 5_000, 10_000, 1),
        ] {
            assert_eq!(tunnels_within(limit, most, in_flight), tunnels, "{limit} {in_flight}");
        }
    }

    #[test]
    fn a_part_of_fewer_is_as_much_smaller() {
        for (part, most, in_all, wanted) in [
            (1_000, 5_000, 5_000, 1_000),
            (1_000, 5_000, 990, 198),
            (200, 5_000, 16, 1),
            (5_000, 5_000, 16, 16),
            (9_000, 5_000, 16, 16),
            (u32::MAX, u32::MAX, u32::MAX, u32::MAX),
            (1, 1, 1, 1),
        ] {
            assert_eq!(in_proportion(part, most, in_all), wanted, "{part} of {most}, of {in_all}");
        }
    }
}
