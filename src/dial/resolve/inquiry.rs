//! What one lookup asked and heard so far. It lives outside of the lookup, so that one that ran out still tells.
//!
//! Name servers are named with their addresses. Who may not see an address of ours is shown the message without it:
//! that is the API's ([`crate::policy::without_internal_addresses`]).

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::message::{Kind, Rcode};
use crate::limits::{DNS_LOOKUPS_PER_DOMAIN, DNS_LOOKUPS_PER_TENANT};
use crate::outcome::{Code, Failure, Phase};

/// Why one server gave no usable answer; the words follow its address.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unanswered {
    #[error("answered {0}")]
    Refusal(Rcode),
    #[error("is lame: it answered with nothing and does not look names up for others")]
    Lame,
    #[error("answered what cannot be read")]
    Garbage,
    #[error("cut its answer short and does not serve the rest over TCP")]
    Truncated,
    #[error("cannot be reached")]
    Unreachable,
}

/// What was heard of one server about one kind of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Nothing,
    Answer,
    Failed(Unanswered),
}

impl fmt::Display for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("did not answer"),
            Self::Answer => f.write_str("answered"),
            Self::Failed(unanswered) => unanswered.fmt(f),
        }
    }
}

/// Of one lookup, all of its questions.
#[derive(Debug, Default)]
pub struct Inquiry(Mutex<Notes>);

#[derive(Debug, Default)]
struct Notes {
    name: Arc<str>,
    heard: Vec<(SocketAddr, Kind, Heard)>,
}

impl Inquiry {
    fn lock(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is looked up.
    pub fn begin(&self, name: &Arc<str>) {
        self.lock().name = name.clone();
    }

    /// A question was sent. What had gone wrong before stays the word on that server until it says something else.
    pub fn asked(&self, server: SocketAddr, kind: Kind) {
        let all = &mut self.lock().heard;
        match all.iter_mut().find(|(of, about, _)| (*of, *about) == (server, kind)) {
            Some((_, _, heard)) if *heard == Heard::Answer => *heard = Heard::Nothing,
            Some(_) => {}
            None => all.push((server, kind, Heard::Nothing)),
        }
    }

    pub fn heard(&self, server: SocketAddr, kind: Kind, said: Result<(), Unanswered>) {
        let said = said.map_or_else(Heard::Failed, |()| Heard::Answer);
        for (_, _, heard) in self.lock().heard.iter_mut().filter(|(of, about, _)| (*of, *about) == (server, kind)) {
            *heard = said;
        }
    }

    /// Each server that did not do what it should, and what it did instead.
    pub fn faults(&self) -> String {
        let all = &self.lock().heard;
        let mut faults: Vec<String> = Vec::new();
        for (server, kind, heard) in all.iter().filter(|(_, _, heard)| *heard != Heard::Answer) {
            // What holds for one of two kinds alone says for which.
            let other = all.iter().find(|(of, about, _)| of == server && about != kind);
            let about = if other.is_some_and(|(_, _, other)| other != heard) {
                format!(" (about {kind} records)")
            } else {
                String::new()
            };
            let fault = format!("{server} {heard}{about}");
            if !faults.contains(&fault) {
                faults.push(fault);
            }
        }
        faults.join(", ")
    }

    /// What a delivery says that ran out during this lookup.
    pub fn ran_out(&self, total: Duration) -> Failure {
        let host = self.lock().name.clone();
        let total = total.as_secs_f64();
        let spent = format!("the {total} s that a delivery may take in all ran out while looking {host} up");
        let faults = self.faults();
        let message = if faults.is_empty() {
            format!(
                "{spent}: it waited for its turn behind this tenant's other lookups ({DNS_LOOKUPS_PER_TENANT} run at once, {DNS_LOOKUPS_PER_DOMAIN} of one domain); send less at a time to names that are slow to be found, or check their own name servers"
            )
        } else {
            format!(
                "{spent}: {faults}; check the name servers of {host}, or resend later (where other names fail too, tell the operator)"
            )
        };
        Failure::new(Code::Timeout, Phase::Dns, message)
    }
}
