//! The published addresses: the file that is the truth, and the forms in which the world reads it.
//!
//! [`PublishedList`] is the file as parsed; [`Entry::status`] says what an address may do at an instant. Pure: the
//! file is read by `config`, the store remembers first publication, `app` serves the result.

use std::{collections::HashMap, net::IpAddr, time::Duration};

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

/// What the store remembers of publication: until when each address owes the world its notice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notice {
    ends: HashMap<IpAddr, Timestamp>,
}

impl Notice {
    /// An address published at the very first start owes none; any later one carries nothing before its first
    /// publication plus `notice`, whatever its line says.
    pub fn new(first: &HashMap<IpAddr, Timestamp>, first_start: Timestamp, notice: Duration) -> Self {
        let owing = first.iter().filter(|(_, at)| **at > first_start);
        let ends = owing.map(|(address, at)| (*address, at.saturating_add(notice).unwrap_or(Timestamp::MAX)));
        Self { ends: ends.collect() }
    }

    /// For commands that run without the store: every notice counts as given.
    pub fn given() -> Self {
        Self::default()
    }

    pub fn ends(&self, address: IpAddr) -> Option<Timestamp> {
        self.ends.get(&address).copied()
    }
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
    pub fn status(&self, _notice: &Notice, _now: Timestamp) -> Status {
        todo!()
    }
    /// Whether new connections may leave from it now.
    pub fn carries(&self, _notice: &Notice, _now: Timestamp) -> bool {
        todo!()
    }
}
