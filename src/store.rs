//! Remembering: every step of a send's life, on disk before it is answered for.
//!
//! [`Store`] has three roles: the once-only protocol ([`OnceOnly`]), what is remembered of sends ([`Records`]), and the
//! little beside them ([`Registry`]). [`embedded`] is the default, `memory` the twin for tests, and `conformance` the
//! suite that both pass. A method that changes something returns once the change is **durable**; concurrent calls
//! share commits. No module but `app` knows which store is in use.

#[cfg(test)]
pub mod conformance;
pub mod embedded;
#[cfg(test)]
pub mod memory;
mod once;
mod records;
mod registry;
mod view;
mod wire;

use futures_util::future::BoxFuture;

pub use self::once::{
    Accept, Accepted, Begin, Claimed, Course, Ending, ExecutionAnswer, ExecutionEnd, IdempotencyKey, NewSend, OnceOnly,
    Pending, Recovered, Released, Session, Started, StoreEnd, SweepPlace, Swept, WaitingCount, Want,
};
pub use self::records::{Filter, Page, Reach, Records, TailItem, TailPlace};
use self::registry::lift_in;
pub use self::registry::{Published, Registry, Suspension, SuspensionScope, next_sync_token};

/// What a store cannot do, and why. The message names file and cause and what to do next.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum StoreError {
    /// Nothing was written; the disk is full, read-only or failing. Later calls may succeed.
    #[error("the store cannot write: {0}")]
    CannotWrite(String),
    #[error("the store cannot read: {0}")]
    CannotRead(String),
    /// Another process has it open.
    #[error("the store at {path} is in use by {}: stop it, or give this one another `[store] path`", holder(*pid))]
    InUse { path: String, pid: Option<i32> },
    #[error(
        "the store at {path} has format {found}, this egressd knows up to {known}: run the newer egressd that wrote it"
    )]
    TooNew { path: String, found: u32, known: u32 },
    /// No such send, or of another tenant, or it was begun or finished already.
    #[error("no such send is waiting")]
    NoSuchSend,
    /// The session is over: another life of its node has begun, or the store took it for dead.
    #[error("the session {0} is over: this node begins nothing more under it, and joins again")]
    Fenced(String),
    #[error("{0}")]
    Damaged(String),
    /// The cursor is not one of ours.
    #[error("this cursor is not one that a list answered")]
    BadCursor,
}

/// Who has a store open: its file `lock` tells, where nobody took that away.
fn holder(pid: Option<i32>) -> String {
    pid.map_or("another process".to_owned(), |pid| format!("process {pid}"))
}

pub type StoreResult<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Where sends are remembered.
pub trait Store: OnceOnly + Records + Registry {}

impl<T: OnceOnly + Records + Registry> Store for T {}
