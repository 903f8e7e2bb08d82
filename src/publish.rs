//! The published addresses: the file that is the truth, and the forms in which the world reads it.
//!
//! [`PublishedList`] is the file as parsed; [`Entry::status`] says what an address may do at an instant. Pure: the
//! file is read by `config`, the store remembers first publication, `app` serves the result.

use std::net::IpAddr;

use jiff::{Timestamp, civil::Date};

use crate::outcome::labelled;

/// The file, in its order; addresses are unique.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishedList {
    pub entries: Vec<Entry>,
}

/// One line. Dates are 00:00 UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub address: IpAddr,
    pub announced: Option<Date>,
    pub active: Option<Date>,
    pub retires: Option<Date>,
    /// 1-based line in the file.
    pub line: usize,
}

labelled! {
    Status {
        /// Listed, carries no traffic yet.
        Announced = "announced",
        /// Carries traffic.
        Active = "active",
        /// Carries traffic and has a `retires` date, or is past it: no new connections, listed for 24 h more.
        Retiring = "retiring",
        /// No longer listed.
        Gone = "gone",
    }
}

/// A problem of the file, with its 1-based line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListProblem {
    pub line: usize,
    pub detail: String,
    pub fix: String,
}

impl PublishedList {
    /// All problems at once: bad addresses, duplicates, unknown keys, bad or misordered dates.
    pub fn parse(_text: &str) -> Result<Self, Vec<ListProblem>> {
        todo!()
    }

    pub fn entry(&self, address: IpAddr) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.address == address)
    }
}

impl Entry {
    pub fn status(&self, _now: Timestamp) -> Status {
        todo!()
    }
    /// Whether new connections may leave from it now.
    pub fn carries(&self, _now: Timestamp) -> bool {
        todo!()
    }
}
