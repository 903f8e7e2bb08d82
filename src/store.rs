//! Remembering: every step of a send's life, on disk before it is answered for.
//!
//! [`Store`] has five roles: the once-only protocol ([`OnceOnly`]), what is remembered of sends ([`Records`]), that of
//! tunnels ([`Tunnels`]), batches ([`Batches`]), and the little beside them ([`Registry`]). [`embedded`] is the default, [`postgres`] the one that many nodes share, `memory`
//! the twin for tests, and `conformance` the suite that all pass. A method that changes something returns once the
//! change is **durable**; concurrent calls share commits. No module but `app::stores` knows which store is in use.

mod batches;
#[cfg(test)]
pub mod conformance;
pub mod embedded;
#[cfg(test)]
pub mod memory;
mod once;
pub mod postgres;
mod records;
mod registry;
pub mod stats;
mod tunnels;
mod view;
mod wire;

use std::error::Error;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use futures_util::future::BoxFuture;

pub use self::batches::{Batches, Left, Opened};
pub use self::once::{
    Accept, Accepted, Begin, Claimed, Course, Ending, ExecutionAnswer, ExecutionEnd, IdempotencyKey, NewSend, OnceOnly,
    Pending, Recovered, Released, Session, Started, StoreEnd, SweepPlace, Swept, WaitingCount, Want,
};
pub use self::records::{
    ExecutionFilter, ExecutionPage, Filter, HostFilter, Page, Reach, Records, StatusFilter, TailItem, TailPlace,
};
use self::registry::lift_in;
pub use self::registry::{News, NodeLoad, NodeSeen, Published, Registry, Suspension, SuspensionScope, next_sync_token};
pub use self::tunnels::{NoRoom, TunnelFilter, TunnelPage, Tunnels};

/// What a store cannot do, and why. The message names file and cause and what to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// Nothing was written; the disk is full, read-only or failing. Later calls may succeed.
    CannotWrite(Why),
    /// It was asked to write, and has not answered in time. What it accepts of a call all the same ends unsent; of one
    /// with an Idempotency-Key it stays, and the same call is answered with it.
    Unanswered(Why),
    CannotRead(Why),
    /// Another process has it open.
    InUse {
        path: String,
        pid: Option<i32>,
    },
    /// Another life of this node goes on beside this one.
    NodeInUse(String),
    /// What is set up is not what the promises can rest on: for a person to mend, and no try again helps.
    Unfit(String),
    TooNew {
        path: String,
        found: u32,
        known: u32,
    },
    /// No such send, or of another tenant, or it was begun or finished already.
    NoSuchSend,
    /// The session is over: another life of its node has begun, or the store took it for dead.
    Fenced(String),
    Damaged(Why),
    /// The cursor is not one of ours.
    BadCursor,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CannotWrite(why) => write!(f, "the store cannot write: {why}"),
            Self::Unanswered(why) => write!(f, "the store does not answer: {why}"),
            Self::CannotRead(why) => write!(f, "the store cannot read: {why}"),
            Self::InUse { path, pid } => {
                let holder = holder(*pid);
                write!(f, "the store at {path} is in use by {holder}: stop it, or give this one another `[store] path`")
            }
            Self::NodeInUse(node) => {
                write!(
                    f,
                    "another live process of this tier is called {node}: stop it, or give this one another `node`"
                )
            }
            Self::Unfit(why) => f.write_str(why),
            Self::TooNew { path, found, known } => write!(
                f,
                "the store at {path} has format {found}, this egressd knows up to {known}: run the newer egressd that \
                 wrote it"
            ),
            Self::NoSuchSend => f.write_str("no such send is waiting"),
            Self::Fenced(session) => {
                write!(f, "the session {session} is over: this node begins nothing more under it, and joins again")
            }
            Self::Damaged(why) => why.fmt(f),
            Self::BadCursor => f.write_str("this cursor is not one that a list answered"),
        }
    }
}

// By hand, as a `Why` says in its words what its source says, and is no link of the chain itself.
impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::CannotWrite(why) | Self::Unanswered(why) | Self::CannotRead(why) | Self::Damaged(why) => why.source(),
            _ => None,
        }
    }
}

/// Words for people, and beneath them the error that the system gave, where it gave one.
#[derive(Clone, Debug)]
pub struct Why {
    words: String,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl Why {
    /// The words say what `source` says, too.
    pub fn by(words: String, source: impl Error + Send + Sync + 'static) -> Self {
        Self { words, source: Some(Arc::new(source)) }
    }

    /// Of the same source, in other words.
    fn said(&self, words: String) -> Self {
        Self { words, source: self.source.clone() }
    }

    pub fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl<T: Into<String>> From<T> for Why {
    fn from(words: T) -> Self {
        Self { words: words.into(), source: None }
    }
}

impl Deref for Why {
    type Target = str;

    fn deref(&self) -> &str {
        &self.words
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl PartialEq for Why {
    fn eq(&self, other: &Self) -> bool {
        self.words == other.words
    }
}

impl Eq for Why {}

/// Who has a store open: its file `lock` tells, where nobody took that away.
fn holder(pid: Option<i32>) -> String {
    pid.map_or("another process".to_owned(), |pid| format!("process {pid}"))
}

pub type StoreResult<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Where sends and tunnels are remembered.
pub trait Store: OnceOnly + Records + Tunnels + Batches + Registry {}

impl<T: OnceOnly + Records + Tunnels + Batches + Registry> Store for T {}
