//! What a node does: its store's answers, its deliveries, its loop; and what must hold of it after each step.

use super::*;

impl Simulation {
    pub(super) fn act(&mut self, number: usize, here: &mut Node, op: Op) {
        let suspended = here.suspended.clone();
        let now = self.clock(number);
        let view = View { now, suspended: &suspended, gated: self.gated[number] };
        let fenced = !self.store.lives.contains(&here.life);
        match op {
            Op::Tick => {
                let tick = here.flow.tick(&view);
                self.unsent(number, tick.unsent);
                if tick.expire {
                    self.later(number, 1, Op::Sweep { expire: true });
                }
                if tick.look && self.nodes.len() > 1 {
                    here.flow.waiting(self.store.unclaimed());
                }
                self.later(number, 100, Op::Tick);
                if fenced {
                    here.flow.stop();
                    here.over = self.random.one_in(50);
                }
            }
            Op::Write { mut admission, places } => {
                let held = self.store.rows[places[0]].execution;
                let over = held
                    .is_some_and(|execution| self.store.executions.get(&execution).is_some_and(|(ended, ..)| *ended));
                // A panic between decision and write, now and then.
                if self.store.away || fenced || over || self.random.one_in(500) {
                    return;
                }
                if let Some(execution) = held {
                    let (_, _, members) = self.store.executions.entry(execution).or_insert((false, now, Vec::new()));
                    members.extend(&places);
                }
                let (mut begun, mut kept) = (Vec::new(), Vec::new());
                let mut entries = std::mem::take(&mut admission.entries).into_iter();
                for place in places {
                    match entries.next() {
                        None => self.store.accept(place, State::Held, now),
                        Some(Entry::Wait) => self.store.accept(place, State::Waiting, now),
                        Some(Entry::Keep) => {
                            self.store.accept(place, State::Claimed(here.life), now);
                            kept.push(place);
                        }
                        Some(Entry::Begin(slot)) => {
                            self.store.accept(place, State::Begun(here.life), now);
                            let row = &self.store.rows[place];
                            *here.flying.entry((row.tenant, row.host)).or_default() += 1;
                            begun.push((place, slot));
                        }
                    }
                }
                // A panic after it, now and then.
                if begun.is_empty() && self.random.one_in(500) {
                    return;
                }
                let delay = self.random.below(3);
                self.later(number, delay, Op::Accepted { admission, begun, kept });
            }
            Op::Accepted { admission, begun, kept } => {
                for (place, slot) in begun {
                    self.deliver(number, place, slot);
                }
                let kept = self.claimed(&kept);
                let unsent = here.flow.accepted(admission, kept, &view);
                self.unsent(number, unsent);
            }
            Op::Claim(claim) => {
                // A question that comes to nothing, now and then.
                if !self.store.away && !fenced && !self.random.one_in(300) {
                    let (sends, left) = self.store.claim(here.life, &claim.wants);
                    let delay = self.random.below(3);
                    self.later(number, delay, Op::Claimed(claim, left, sends));
                } else if self.store.away {
                    here.flow.store_away();
                }
            }
            Op::Claimed(claim, left, sends) => {
                let sends = self.claimed(&sends);
                let unsent = here.flow.claimed(claim, &left, sends, &view);
                self.unsent(number, unsent);
            }
            Op::Begin(goes) => {
                let mut answers = Vec::new();
                for go in goes {
                    let place = number_of(go.send().expect("it has one").id);
                    let answer = match self.store.rows[place].state {
                        _ if fenced => Answer::Fenced,
                        _ if self.store.away => Answer::Away,
                        State::Claimed(by) if by == here.life => Answer::Started,
                        _ => Answer::NoSuchSend,
                    };
                    if matches!(answer, Answer::Started) {
                        self.store.set(place, State::Begun(here.life));
                        let row = &self.store.rows[place];
                        *here.flying.entry((row.tenant, row.host)).or_default() += 1;
                    }
                    answers.push((go, answer));
                }
                let delay = self.random.below(3);
                self.later(number, delay, Op::Begun(answers));
            }
            Op::Begun(answers) => {
                for (go, answer) in answers {
                    match answer {
                        Answer::Started => {
                            let (slot, send) = go.take().expect("it has one");
                            self.deliver(number, number_of(send.id), slot);
                        }
                        Answer::Away => here.flow.not_begun(go, NotBegun::StoreAway),
                        Answer::Fenced => here.flow.stop(),
                        Answer::NoSuchSend => {
                            let place = number_of(go.send().expect("it has one").id);
                            assert!(
                                self.store.rows[place].state == State::Done(End::Unreadable),
                                "{}",
                                self.say(&format!("send {place} is to begin that this node has not claimed"))
                            );
                            self.not_begun += 1;
                            here.flow.not_begun(go, NotBegun::Gone);
                        }
                    }
                }
            }
            Op::Delivered(place, mut slot) => {
                let row = &mut self.store.rows[place];
                row.arrived += 1;
                assert_eq!(row.arrived, 1, "send {place} was made twice");
                let ended_first = matches!(row.state, State::Done(End::Interrupted)) && fenced;
                assert!(ended_first || matches!(row.state, State::Begun(_)), "send {place} is delivered as {row:?}");
                *here.flying.get_mut(&(row.tenant, row.host)).unwrap() -= 1;
                self.deliveries += 1;
                // One in so many panics: its place comes back all the same.
                let end = if self.random.one_in(100) { End::Internal } else { End::Delivered };
                slot.moved(self.random.below(300_000));
                drop(slot);
                let delay = self.store_takes();
                self.later(number, delay, Op::End(place, end));
            }
            Op::End(place, end) => {
                let mine = match self.store.rows[place].state {
                    State::Begun(by) | State::Claimed(by) => by == here.life,
                    _ => false,
                };
                if self.store.away {
                    self.later(number, 100, Op::End(place, end));
                } else if mine {
                    self.store.set(place, State::Done(end));
                } else {
                    let row = &self.store.rows[place];
                    let ended_first = row.state == State::Done(End::Unreadable) && row.arrived == 0;
                    assert!(fenced || ended_first, "{}", self.say(&format!("{row:?} ends as {end:?}")));
                }
            }
            Op::GiveBack(ids) => {
                for id in ids {
                    let place = number_of(id);
                    if self.store.rows.get(place).is_some_and(|row| row.state == State::Claimed(here.life)) {
                        self.store.set(place, State::Waiting);
                        let who = tenant(self.store.rows[place].tenant);
                        here.flow.added(&who);
                    }
                }
            }
            Op::Learn => {
                here.suspended = self.suspended.clone();
                let view = View { now, suspended: &here.suspended, gated: self.gated[number] };
                let unsent = here.flow.suspended(&view);
                self.unsent(number, unsent);
                for place in 0..self.store.rows.len() {
                    let row = &self.store.rows[place];
                    let waits = matches!(row.state, State::Held | State::Waiting);
                    if waits && self.suspended.stops(row.tenant, row.host) {
                        self.store.set(place, State::Done(End::Suspended));
                    }
                }
            }
            Op::Sweep { expire: true } if !self.store.away => {
                let due = |row: &Row| row.released_at + row.expires_in <= now;
                for who in 0..TENANTS {
                    let expired: Vec<usize> =
                        self.store.queues[who].iter().map(|(_, n)| *n).filter(|n| due(&self.store.rows[*n])).collect();
                    for place in expired {
                        self.store.set(place, State::Done(End::Expired));
                    }
                }
            }
            Op::Sweep { expire: true } => {}
            Op::Sweep { expire: false } => {
                if !self.store.away && !fenced {
                    let due = self
                        .store
                        .executions
                        .iter()
                        .filter(|(_, (ended, opened, _))| !ended && opened + HOLD_LIMIT <= now);
                    let mut due: Vec<u32> = due.map(|(execution, _)| *execution).collect();
                    due.sort_unstable();
                    for execution in due {
                        for who in self.store.end_execution(execution, false, now) {
                            here.flow.added(&tenant(who));
                        }
                    }
                }
                self.later(number, 250, Op::Sweep { expire: false });
            }
            Op::Call | Op::Mischief | Op::Restart(_) => unreachable!("not a node's"),
        }
    }

    pub(super) fn claimed(&self, places: &[usize]) -> Vec<Claimed> {
        let one = |place: &usize| {
            let row = &self.store.rows[*place];
            Claimed {
                tenant: tenant(row.tenant),
                destination: host(row.host),
                send: Waiting {
                    id: id_of(*place),
                    workflow: None,
                    created_at: at(row.released_at),
                    released_at: at(row.released_at),
                    expires_at: at(row.released_at + row.expires_in),
                    spec: None,
                },
            }
        };
        places.iter().map(one).collect()
    }

    pub(super) fn deliver(&mut self, number: usize, place: usize, slot: Slot) {
        let takes = if self.store.rows[place].host == DEAD { DEADLINE } else { 1 + self.random.below(30) };
        self.later(number, takes, Op::Delivered(place, slot));
    }

    pub(super) fn unsent(&mut self, number: usize, unsent: Vec<Unsent>) {
        for one in unsent {
            let end = if one.why == Why::Expired { End::Expired } else { End::Suspended };
            let delay = self.store_takes();
            self.later(number, delay, Op::End(number_of(one.send.id), end));
        }
    }

    /// As the loop of a process does: a turn whenever one is due after an `event`, or it was woken.
    pub(super) fn attend(&mut self, number: usize, here: &mut Node, event: bool) {
        let mut turns = 0;
        let mut due = event && here.flow.is_due();
        while here.woken.swap(false, Ordering::Relaxed) || due {
            turns += 1;
            assert!(turns < 1_000, "{}", self.say("the loop spins"));
            let view = View { now: self.clock(number), suspended: &here.suspended, gated: self.gated[number] };
            let turn = here.flow.turn(&view);
            due = turn.again;
            for go in &turn.begin {
                let who = self.store.rows[number_of(go.send().expect("it has one").id)].tenant;
                self.pass_over(number, here, who);
            }
            if let Some(claim) = turn.claim {
                let delay = self.store_takes();
                self.later(number, delay, Op::Claim(claim));
            }
            if !turn.begin.is_empty() {
                let delay = self.store_takes();
                // A panic before the store has heard of it, now and then.
                if self.random.one_in(300) {
                    drop(turn.begin)
                } else {
                    self.later(number, delay, Op::Begin(turn.begin))
                }
            }
            self.unsent(number, turn.unsent);
            if !turn.give_back.is_empty() {
                let delay = self.store_takes();
                self.later(number, delay, Op::GiveBack(turn.give_back));
            }
        }
    }

    /// The round's promise: whoever could start is passed over at most for a few rounds.
    pub(super) fn pass_over(&self, number: usize, here: &mut Node, picked: usize) {
        here.passed_over.insert(picked, 0);
        let view = View { now: self.clock(number), suspended: &here.suspended, gated: self.gated[number] };
        for who in (0..TENANTS).filter(|who| *who != picked) {
            let name = tenant(who);
            let cap = view.cap_of(&name).unwrap_or(CAPS.per_tenant);
            let could = here.flow.schedule.startable_of(&name) > 0
                && here.flow.in_flight_of(&name) < cap
                && view.admits(&name).is_ok();
            let passed = here.passed_over.entry(who).or_default();
            *passed = if could { *passed + 1 } else { 0 };
            // A quantum of each other, and what it may owe itself.
            let most = 4 * TENANTS as u32 * (2 + 64 / 4);
            assert!(*passed <= most, "{}", self.say(&format!("tenant {who} was passed over {passed} times")));
        }
    }

    pub(super) fn check(&self, here: &Node) {
        let flow = &here.flow;
        let (mut all, mut of) = (0, [0; TENANTS]);
        for ((who, to), flying) in &here.flying {
            assert!(*flying <= CAPS.per_destination, "{}", self.say(&format!("{flying} of {who} to {to}")));
            all += flying;
            of[*who] += flying;
        }
        assert!(all <= CAPS.in_flight, "{}", self.say(&format!("{all} in flight")));
        for (who, flying) in of.iter().enumerate() {
            let cap = if who == OWN_CAP.0 { OWN_CAP.1 } else { CAPS.per_tenant };
            assert!(*flying <= cap, "{}", self.say(&format!("{flying} of {who} in flight")));
        }
        // Two windows and what one question may bring beyond.
        let most = 3 * flow.window_max();
        assert!(flow.window() <= most, "{}", self.say(&format!("{} in the window", flow.window())));
        if self.nodes.len() == 1 {
            for (who, waiting) in self.store.waiting.iter().enumerate() {
                assert!(*waiting <= BOUNDS.tenant, "{}", self.say(&format!("{waiting} of {who} wait")));
            }
            let waiting = self.store.waiting.iter().sum::<u64>();
            assert!(waiting <= BOUNDS.node, "{}", self.say(&format!("{waiting} wait")));
        }
    }
}
