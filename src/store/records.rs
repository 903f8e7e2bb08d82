//! Records: what is remembered of sends, for who asks about them.

use std::{collections::HashMap, net::IpAddr};

use jiff::Timestamp;

use super::stats::{Stats, StatsAsked};
use super::{StoreError, StoreResult};
use crate::outcome::{Code, Outcome};
use crate::record::{Execution, ExecutionState, ExecutionSummary, Record, State};
use crate::send::{ExecutionId, Method, SendId, TenantId};

/// Whose sends are asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    All,
    One(TenantId),
}

impl Reach {
    pub fn takes_in(&self, tenant: &TenantId) -> bool {
        match self {
            Self::All => true,
            Self::One(one) => one == tenant,
        }
    }

    pub fn one(&self) -> Option<&TenantId> {
        match self {
            Self::All => None,
            Self::One(tenant) => Some(tenant),
        }
    }
}

/// Filters of `GET /v1/sends` and the tail. Empty but for its reach: everything within that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    pub reach: Reach,
    pub workflow: Option<String>,
    pub execution: Option<String>,
    pub step: Option<String>,
    pub host: Option<HostFilter>,
    /// Any of these, as with the two that follow; empty: whichever.
    pub outcomes: Vec<Outcome>,
    pub codes: Vec<Code>,
    pub statuses: Vec<StatusFilter>,
    pub state: Option<State>,
    pub method: Option<Method>,
    /// What the path of the URL begins with.
    pub path: Option<String>,
    /// Bound or public.
    pub source_ip: Option<IpAddr>,
    /// Only the public address counts: who asks may not know which one is bound behind it.
    pub public_only: bool,
    /// Inclusive. Bound `created_at`, or `started_at` where `source_ip` is given.
    pub since: Option<Timestamp>,
    /// Exclusive.
    pub until: Option<Timestamp>,
}

impl Filter {
    /// Everything within this reach.
    pub fn of(reach: Reach) -> Self {
        Self {
            reach,
            workflow: None,
            execution: None,
            step: None,
            host: None,
            outcomes: Vec::new(),
            codes: Vec::new(),
            statuses: Vec::new(),
            state: None,
            method: None,
            path: None,
            source_ip: None,
            public_only: false,
            since: None,
            until: None,
        }
    }
}

/// Hosts of URLs, as IDNA maps them; IPv6 addresses without brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostFilter {
    One(String),
    /// Every name below this one, itself not (`*.example.com`).
    Below(String),
}

impl HostFilter {
    pub fn takes_in(&self, host: &str) -> bool {
        match self {
            Self::One(one) => one == host,
            Self::Below(parent) => host.strip_suffix(parent.as_str()).is_some_and(|rest| rest.ends_with('.')),
        }
    }
}

/// Status codes of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusFilter {
    One(u16),
    /// All that begin with this digit (`5xx`).
    Class(u16),
}

impl StatusFilter {
    pub fn takes_in(self, status: u16) -> bool {
        match self {
            Self::One(one) => one == status,
            Self::Class(class) => status / 100 == class,
        }
    }
}

/// One page, newest first. `next` is opaque and holds while sends are added. It may hold fewer than were asked for and
/// have a `next`: no more than [`crate::limits::LIST_LOOKED_AT_MAX`] sends are looked at for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    pub sends: Vec<Record>,
    pub next: Option<String>,
}

/// Filters of `GET /v1/executions`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutionFilter {
    pub reach: Reach,
    /// Of the first send that is left.
    pub workflow: Option<String>,
    pub state: Option<ExecutionState>,
    /// Inclusive, as `until` is not: when the first send that is left was accepted.
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
}

impl ExecutionFilter {
    /// Every execution within this reach.
    pub fn of(reach: Reach) -> Self {
        Self { reach, workflow: None, state: None, since: None, until: None }
    }

    /// What their first sends have.
    pub fn of_first(&self) -> Filter {
        Filter {
            workflow: self.workflow.clone(),
            since: self.since,
            until: self.until,
            ..Filter::of(self.reach.clone())
        }
    }
}

/// One page of executions, the one whose first send is newest first. As a [`Page`] it may hold fewer than were asked for
/// and have a `next`: the sends that are counted for it are bounded, too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecutionPage {
    pub executions: Vec<ExecutionSummary>,
    pub next: Option<String>,
}

/// A place in the order of finishing, across restarts. Opaque: a later end has a greater one, and that is all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TailPlace(u64);

impl TailPlace {
    /// Before the first end.
    pub const START: Self = Self(0);

    /// For whoever carries it elsewhere: the very same place again.
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
    pub fn to_bits(self) -> u64 {
        self.0
    }
}

/// A finished send as the tail shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct TailItem {
    pub place: TailPlace,
    pub record: Record,
}

/// What the store remembers of sends, and how it fares.
pub trait Records: std::marker::Send + Sync + 'static {
    /// One record within this reach; with its bodies where `bodies` is set.
    fn record(&self, reach: Reach, id: SendId, bodies: bool) -> StoreResult<'_, Option<Record>>;

    /// Newest first; bodies are left out.
    fn list(&self, filter: Filter, cursor: Option<String>, limit: usize) -> StoreResult<'_, Page>;

    /// `None`: this tenant has no such execution.
    fn execution(
        &self,
        tenant: TenantId,
        execution: ExecutionId,
        cursor: Option<String>,
        limit: usize,
    ) -> StoreResult<'_, Option<Execution>>;

    /// Executions that have sends, by when the first was accepted, newest first. One whose first send retention has
    /// dropped is not among them.
    fn executions(
        &self,
        filter: ExecutionFilter,
        cursor: Option<String>,
        limit: usize,
    ) -> StoreResult<'_, ExecutionPage>;

    /// Finished sends after a place, in finish order; bodies are left out. Second value: the last place looked at, so
    /// that a filter that matches nothing still advances.
    fn finished_after(
        &self,
        place: TailPlace,
        filter: Filter,
        limit: usize,
    ) -> StoreResult<'_, (Vec<TailItem>, TailPlace)>;

    /// Which of these are done, where other nodes end sends too; a store of one node tells of every end as it writes it.
    fn done_among(&self, _ids: Vec<SendId>) -> StoreResult<'_, Vec<SendId>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    /// The newest place of the tail.
    fn newest_place(&self) -> StoreResult<'_, TailPlace>;

    /// Outcomes of sends that ended within the last hour, by the minute, per tenant; costs what its answer does.
    fn outcomes_of_the_hour(&self, now: Timestamp) -> StoreResult<'_, HashMap<TenantId, HashMap<Outcome, u64>>>;

    /// How sends ended, by when they did, as far as records are kept; costs what it counts of each five minutes, however
    /// many sends that were. May be some seconds late.
    fn stats(&self, asked: StatsAsked) -> StoreResult<'_, Stats>;

    /// Drops what retention no longer keeps, whole segments at a time.
    fn retain(&self, now: Timestamp) -> StoreResult<'_, ()>;

    /// `Err` while it cannot write, with why; asked by `/readyz`. Tries anew now and then.
    fn health(&self) -> Result<(), StoreError>;

    /// What was found unreadable since it was opened, one line each with file and extent; empty on a sound store.
    fn damage(&self) -> Vec<String>;

    /// Everything written is synced and files are closed; later calls fail.
    fn close(&self) -> StoreResult<'_, ()>;
}
