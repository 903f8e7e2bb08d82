//! Turns in front of the connections that calls share. Who waits for one waits with its call in its own hands, so what is
//! given up takes nothing with it, and is behind one call of each tenant, not behind all that another has brought.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use super::locked;
use crate::send::TenantId;

pub struct Turns {
    of: Arc<Mutex<Line>>,
    room: usize,
}

struct Line {
    free: usize,
    waiting: HashMap<TenantId, VecDeque<Waiting>>,
    /// Of those, whose turn is next.
    order: VecDeque<TenantId>,
}

struct Waiting {
    weight: usize,
    tell: oneshot::Sender<Turn>,
}

/// Room that is taken until this goes.
pub struct Turn {
    of: Arc<Mutex<Line>>,
    weight: usize,
}

impl Turns {
    pub fn new(room: usize) -> Self {
        let line = Line { free: room, waiting: HashMap::new(), order: VecDeque::new() };
        Self { of: Arc::new(Mutex::new(line)), room }
    }

    /// Once there is room for it and it is this tenant's turn. What weighs more than all of the room takes all of it.
    pub async fn take(&self, tenant: &TenantId, weight: usize) -> Turn {
        let weight = weight.min(self.room);
        let told = {
            let mut line = locked(&self.of);
            if line.order.is_empty() && line.free >= weight {
                line.free -= weight;
                return Turn { of: self.of.clone(), weight };
            }
            let (tell, told) = oneshot::channel();
            line.wait(tenant, Waiting { weight, tell });
            told
        };
        match told.await {
            Ok(turn) => turn,
            // Nobody who waits is forgotten.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Line {
    fn wait(&mut self, tenant: &TenantId, one: Waiting) {
        let line = self.waiting.entry(tenant.clone()).or_default();
        if line.is_empty() {
            self.order.push_back(tenant.clone());
        }
        // While nothing moves, those who have left would stay.
        while line.front().is_some_and(|first| first.tell.is_closed()) {
            line.pop_front();
        }
        line.push_back(one);
    }

    /// The next one that there is room for.
    fn next(&mut self) -> Option<Waiting> {
        while let Some(tenant) = self.order.front() {
            let line = self.waiting.get_mut(tenant)?;
            while line.front().is_some_and(|first| first.tell.is_closed()) {
                line.pop_front();
            }
            let is_next = line.front().map(|first| first.weight <= self.free);
            if is_next == Some(false) {
                return None;
            }
            let one = line.pop_front();
            let is_empty = line.is_empty();
            if let Some(tenant) = self.order.pop_front() {
                if is_empty {
                    self.waiting.remove(&tenant);
                } else {
                    self.order.push_back(tenant);
                }
            }
            if let Some(one) = one {
                self.free -= one.weight;
                return Some(one);
            }
        }
        None
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        locked(&self.of).free += self.weight;
        loop {
            let Some(next) = locked(&self.of).next() else { return };
            // One that nobody takes any more comes back here.
            let _ = next.tell.send(Turn { of: self.of.clone(), weight: next.weight });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn tenants_take_turns_and_who_left_is_not_waited_for() {
        let turns = Turns::new(2);
        let (a, b) = (TenantId::new("a"), TenantId::new("b"));
        let first = turns.take(&a, 9).now_or_never().expect("there is room");
        let mut of_a = pin!(turns.take(&a, 2));
        let mut gone = Box::pin(turns.take(&a, 2));
        let mut last_of_a = pin!(turns.take(&a, 1));
        let mut of_b = pin!(turns.take(&b, 1));
        let mut more_of_b = pin!(turns.take(&b, 1));
        for waiting in [of_a.as_mut().now_or_never(), gone.as_mut().now_or_never()] {
            assert!(waiting.is_none());
        }
        for waiting in [last_of_a.as_mut().now_or_never(), of_b.as_mut().now_or_never()] {
            assert!(waiting.is_none());
        }
        assert!(more_of_b.as_mut().now_or_never().is_none());
        drop(gone);
        drop(first);
        let turn = of_a.as_mut().now_or_never().expect("its turn");
        assert!(of_b.as_mut().now_or_never().is_none(), "there is no room");
        drop(turn);
        // Those of both, not all of one.
        let turn = of_b.as_mut().now_or_never().expect("its turn");
        let other = last_of_a.as_mut().now_or_never().expect("its turn");
        assert!(more_of_b.as_mut().now_or_never().is_none());
        drop(other);
        more_of_b.as_mut().now_or_never().expect("its turn");
        drop(turn);
        // What was given and not taken is free again.
        let all = turns.take(&b, 2).now_or_never().expect("all of it is free");
        let mut unheard = Box::pin(turns.take(&a, 2));
        assert!(unheard.as_mut().now_or_never().is_none());
        drop(all);
        drop(unheard);
        turns.take(&b, 2).now_or_never().expect("all of it is free");
        assert!(locked(&turns.of).waiting.is_empty());
    }
}
