//! What one lookup asked and heard so far. It lives outside of the lookup, so that one that ran out still tells.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::message::RecordType;
use crate::limits::{DNS_LOOKUPS_PER_DOMAIN, DNS_LOOKUPS_PER_TENANT};
use crate::outcome::Failure;
use crate::outcome::words::NameCause;
pub use crate::outcome::words::name::{Fault, Unanswered};

/// Of one lookup, all of its questions.
#[derive(Debug, Default)]
pub struct Inquiry(Mutex<Notes>);

#[derive(Debug, Default)]
struct Notes {
    name: Arc<str>,
    /// The last word of each server about one kind of records.
    heard: Vec<(SocketAddr, RecordType, Result<(), Unanswered>)>,
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
    pub fn asked(&self, server: SocketAddr, kind: RecordType) {
        let all = &mut self.lock().heard;
        match all.iter_mut().find(|(of, about, _)| (*of, *about) == (server, kind)) {
            Some((_, _, heard)) if heard.is_ok() => *heard = Err(Unanswered::Silent),
            Some(_) => {}
            None => all.push((server, kind, Err(Unanswered::Silent))),
        }
    }

    pub fn heard(&self, server: SocketAddr, kind: RecordType, said: Result<(), Unanswered>) {
        for (_, _, heard) in self.lock().heard.iter_mut().filter(|(of, about, _)| (*of, *about) == (server, kind)) {
            *heard = said;
        }
    }

    /// Whether anything is looked up at all.
    pub fn has_begun(&self) -> bool {
        !self.lock().name.is_empty()
    }

    /// Each server that did not do what it should, and what it did instead.
    pub fn faults(&self) -> Vec<Fault> {
        let all = &self.lock().heard;
        let mut faults = Vec::new();
        for (server, kind, heard) in all {
            let Err(what) = *heard else { continue };
            // What holds for one of two kinds alone says for which.
            let other = all.iter().find(|(of, about, _)| of == server && about != kind);
            let about = other.filter(|(_, _, other)| other != heard).map(|_| kind.label());
            let fault = Fault { server: *server, what, about };
            if !faults.contains(&fault) {
                faults.push(fault);
            }
        }
        faults
    }

    /// What a delivery says that ran out during this lookup.
    pub fn ran_out(&self, total: Duration) -> Failure {
        let host = self.lock().name.clone();
        match &*self.faults() {
            [] => NameCause::NoTurn { total, at_once: DNS_LOOKUPS_PER_TENANT, of_domain: DNS_LOOKUPS_PER_DOMAIN },
            faults => NameCause::OutOfTime { total, faults },
        }
        .failure(&host)
    }
}
