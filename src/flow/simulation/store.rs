//! What a real store remembers, with the protocol's rules and none of its means.

use std::collections::{BTreeSet, HashMap};

use super::{TENANTS, host, tenant};
use crate::flow::{Counted, Left, Want};
use crate::send::TenantId;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Delivered,
    Internal,
    Interrupted,
    Discarded,
    Expired,
    Suspended,
    /// Not by whoever had it.
    Unreadable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// A call has an id for it, no more.
    Unwritten,
    Held,
    Waiting,
    Claimed(u64),
    Begun(u64),
    Done(End),
}

#[derive(Clone, Debug)]
pub struct Row {
    pub tenant: usize,
    pub host: usize,
    pub execution: Option<u32>,
    pub released_at: u64,
    pub expires_in: u64,
    pub state: State,
    /// Requests that the receiver saw.
    pub arrived: u32,
}

/// What a real store remembers, with its rules.
#[derive(Default)]
pub struct Store {
    pub rows: Vec<Row>,
    /// Unclaimed, by tenant and release.
    pub queues: Vec<BTreeSet<(u64, usize)>>,
    pub waiting: Vec<u64>,
    pub executions: HashMap<u32, (bool, u64, Vec<usize>)>,
    pub lives: BTreeSet<u64>,
    pub away: bool,
    pub accepted: usize,
    pub done: usize,
}

impl Store {
    pub fn counted(&self, tenant: usize) -> Counted {
        Counted { tenant: self.waiting[tenant], node: self.waiting.iter().sum() }
    }

    /// Tenants with something that nobody has claimed.
    pub fn unclaimed(&self) -> Vec<TenantId> {
        (0..TENANTS).filter(|who| !self.queues[*who].is_empty()).map(tenant).collect()
    }

    pub fn set(&mut self, number: usize, state: State) {
        let row = &mut self.rows[number];
        let waits = |state: State| matches!(state, State::Unwritten | State::Held | State::Waiting | State::Claimed(_));
        assert!(!matches!(row.state, State::Done(_)), "send {number} ends twice: {row:?} then {state:?}");
        if waits(row.state) && !waits(state) {
            self.waiting[row.tenant] -= 1;
        }
        if row.state == State::Waiting {
            self.queues[row.tenant].remove(&(row.released_at, number));
        }
        if state == State::Waiting {
            self.queues[row.tenant].insert((row.released_at, number));
        }
        self.done += usize::from(matches!(state, State::Done(_)));
        row.state = state;
    }

    /// An id for a send that is not accepted yet.
    pub fn name(&mut self, row: Row) -> usize {
        self.rows.push(row);
        self.rows.len() - 1
    }

    pub fn accept(&mut self, number: usize, state: State, now: u64) {
        self.accepted += 1;
        let row = &mut self.rows[number];
        row.released_at = now;
        self.waiting[row.tenant] += 1;
        self.set(number, state);
    }

    /// The node's life is over, or declared so: what it claimed waits again, what it had begun is interrupted.
    pub fn fence(&mut self, life: u64) {
        self.lives.remove(&life);
        for number in 0..self.rows.len() {
            match self.rows[number].state {
                State::Claimed(by) if by == life => self.set(number, State::Waiting),
                State::Begun(by) if by == life => self.set(number, State::Done(End::Interrupted)),
                _ => {}
            }
        }
    }

    /// Some of what this life has claimed is found unreadable, and gets its end: who has claimed it is not told.
    pub fn lose_some(&mut self, life: u64, which: impl Fn(usize) -> bool) {
        for number in 0..self.rows.len() {
            if self.rows[number].state == State::Claimed(life) && which(number) {
                self.set(number, State::Done(End::Unreadable));
            }
        }
    }

    pub fn claim(&mut self, life: u64, wants: &[Want]) -> (Vec<usize>, Vec<Left>) {
        let (mut sends, mut left) = (Vec::new(), Vec::new());
        for want in wants {
            let who: usize = want.tenant.as_str().parse().unwrap();
            let is_full = |number: &usize| host(self.rows[*number].host).is_some_and(|host| want.full.contains(&host));
            let queue = self.queues[who].iter().map(|(_, number)| *number);
            let taken: Vec<usize> = queue.filter(|number| !is_full(number)).take(want.room).collect();
            for number in &taken {
                self.set(*number, State::Claimed(life));
            }
            left.push(match () {
                () if self.queues[who].is_empty() => Left::Nothing,
                () if taken.len() < want.room => Left::Skipped,
                () => Left::More,
            });
            sends.extend(taken);
        }
        (sends, left)
    }

    pub fn end_execution(&mut self, execution: u32, discard: bool, now: u64) -> Vec<usize> {
        let Some((ended, _, members)) = self.executions.get_mut(&execution) else { return Vec::new() };
        if std::mem::replace(ended, true) {
            return Vec::new();
        }
        let members = members.clone();
        let mut released = Vec::new();
        for number in members {
            if self.rows[number].state != State::Held {
                continue;
            }
            if discard {
                self.set(number, State::Done(End::Discarded));
            } else {
                self.rows[number].released_at = now;
                self.set(number, State::Waiting);
                released.push(self.rows[number].tenant);
            }
        }
        released
    }
}
