//! How many files this process may have open, and who may have how many of them.
//!
//! Each connection is one, in and out, and the kernel's limit is for all of them together: where it is low, whoever
//! opens the most would leave none for the rest, and a send that finds none has failed. So each kind has a part of its
//! own, and waits where that is used up. The rest is the store's, the lookups' and the metrics'.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

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

/// Most of so many idle connections.
pub fn of_idle(most: usize) -> usize {
    most.min(limit() / 8)
}
