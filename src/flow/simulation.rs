//! The flow driven by a seed: nodes that share a store which delays, refuses, crashes and comes back, callers who do
//! everything callers do, and after every step the promises of the contract.
//!
//! Time is a number of milliseconds, and everything that happens stands in an agenda; each node reads a clock of its own,
//! minutes off. Nodes freeze, are taken for dead, and go on. The store is a model with the protocol's meaning and none of a
//! real one's means; the nodes are real flows with the thinnest of shells. What a crash takes with it is dropped, as a
//! process drops it.
//!
//! `EGRESSD_SIMULATED_STEPS` makes it run longer, `EGRESSD_SIMULATED_SEED` runs one seed alone.

mod node;
mod store;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use uuid::Uuid;

use self::store::{End, Row, State, Store};
use super::*;
use crate::policy::{Host, Scheme};

const TENANTS: usize = 9;
const HOSTS: usize = 6;
/// Never answers before the deadline.
const DEAD: usize = 0;
const DEADLINE: u64 = 2_000;
const HOLD_LIMIT: u64 = 4_000;
const BOUNDS: Bounds = Bounds { tenant: 1_500, node: 4_000 };
const CAPS: Caps = Caps { in_flight: 30, per_tenant: 12, per_destination: 5 };
/// The one tenant that has a cap of its own.
const OWN_CAP: (usize, u32) = (3, 4);
/// No two clocks are further apart.
const CLOCKS_APART: u64 = 10 * 60 * 1000;
/// Its pool loses its sources now and then.
const GATED: usize = 4;

/// A seeded xorshift: the same run for the same seed.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}

fn tenant(number: usize) -> TenantId {
    TenantId::new(number.to_string())
}

fn host(number: usize) -> Option<Destination> {
    Some(Destination { scheme: Scheme::Https, host: Host::Name(number.to_string().into()), port: 443 })
}

fn number_of(id: SendId) -> usize {
    usize::try_from(id.0.as_u128()).unwrap()
}

fn id_of(number: usize) -> SendId {
    SendId(Uuid::from_u128(number as u128))
}

fn at(time: u64) -> Timestamp {
    Timestamp::from_millisecond(i64::try_from(time).unwrap()).unwrap()
}

#[derive(Clone, Default, PartialEq, Eq)]
struct Suspended {
    tenants: BTreeSet<usize>,
    hosts: BTreeSet<usize>,
}

impl Suspended {
    fn stops(&self, tenant: usize, host: usize) -> bool {
        self.tenants.contains(&tenant) || self.hosts.contains(&host)
    }
}

struct View<'a> {
    now: u64,
    suspended: &'a Suspended,
    gated: bool,
}

impl Terms for View<'_> {
    fn now(&self) -> Timestamp {
        at(self.now)
    }
    fn cap_of(&self, who: &TenantId) -> Option<u32> {
        (who.as_str().parse() == Ok(OWN_CAP.0)).then_some(OWN_CAP.1)
    }
    fn admits(&self, who: &TenantId) -> Result<(), Arc<str>> {
        if self.gated && who.as_str().parse() == Ok(GATED) { Err(Arc::from("gated")) } else { Ok(()) }
    }
    fn pool_usable(&self, _pool: &str) -> bool {
        !self.gated
    }
    fn stopped(&self, who: &TenantId, _: Option<&str>, destination: Option<&Destination>) -> Option<Arc<str>> {
        let who = who.as_str().parse().unwrap();
        let stopped =
            (0..HOSTS).any(|number| host(number).as_ref() == destination && self.suspended.stops(who, number));
        (self.suspended.tenants.contains(&who) || stopped).then(|| Arc::from("abuse"))
    }
}

struct Node {
    life: u64,
    flow: Flow,
    woken: Arc<AtomicBool>,
    suspended: Suspended,
    /// In flight by our own count: tenant, host.
    flying: HashMap<(usize, usize), u32>,
    /// It has understood that it is fenced.
    over: bool,
    passed_over: HashMap<usize, u32>,
}

enum Op {
    Call,
    Mischief,
    Restart(usize),
    Tick,
    Write { admission: Admission, places: Vec<usize> },
    Accepted { admission: Admission, begun: Vec<(usize, Slot)>, kept: Vec<usize> },
    Claim(Claim),
    Claimed(Claim, Vec<Left>, Vec<usize>),
    Begin(Vec<Go>),
    Begun(Vec<(Go, Answer)>),
    Delivered(usize, Slot),
    End(usize, End),
    GiveBack(Vec<SendId>),
    Learn,
    Sweep { expire: bool },
}

#[derive(Clone, Copy)]
enum Answer {
    Started,
    NoSuchSend,
    Away,
    Fenced,
}

struct Simulation {
    seed: u64,
    random: Seeded,
    now: u64,
    steps: u64,
    agenda: BTreeMap<(u64, u64), (usize, u64, Op)>,
    order: u64,
    nodes: Vec<Option<Node>>,
    /// Of each node, whether it is there or about to be.
    life_of: Vec<u64>,
    lives: u64,
    store: Store,
    suspended: Suspended,
    /// Of each node, whether it has lost the sources of the one pool.
    gated: Vec<bool>,
    /// By how much each node's clock is ahead of the agenda's: they disagree by minutes, and are set now and then.
    ahead: Vec<u64>,
    /// Until when each is frozen.
    still: Vec<u64>,
    executions: u32,
    calling: bool,
    refused: u64,
    /// Starts that the store refused: the send was not this node's any more.
    not_begun: u64,
    crashes: u64,
    /// Nodes that stood still, and went on as if nothing had been.
    frozen: u64,
    deliveries: u64,
}

/// Not a node's.
const NOBODY: usize = usize::MAX;

impl Simulation {
    fn new(seed: u64, nodes: usize) -> Self {
        let mut this = Self {
            seed,
            random: Seeded(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            now: 1,
            steps: 0,
            agenda: BTreeMap::new(),
            order: 0,
            nodes: (0..nodes).map(|_| None).collect(),
            life_of: vec![0; nodes],
            lives: 0,
            store: Store { queues: vec![BTreeSet::new(); TENANTS], waiting: vec![0; TENANTS], ..Store::default() },
            suspended: Suspended::default(),
            gated: vec![false; nodes],
            ahead: vec![0; nodes],
            still: vec![0; nodes],
            executions: 0,
            calling: true,
            refused: 0,
            not_begun: 0,
            crashes: 0,
            frozen: 0,
            deliveries: 0,
        };
        for node in 0..nodes {
            this.set_clock(node);
            this.later(NOBODY, 0, Op::Restart(node));
        }
        this.later(NOBODY, 1, Op::Call);
        this.later(NOBODY, 50, Op::Mischief);
        this
    }

    #[track_caller]
    fn say(&self, what: &str) -> String {
        format!("seed {}, step {}, at {} ms: {what}", self.seed, self.steps, self.now)
    }

    fn later(&mut self, node: usize, delay: u64, op: Op) {
        let life = self.life_of.get(node).copied().unwrap_or_default();
        self.order += 1;
        let still = self.still.get(node).copied().unwrap_or_default();
        self.agenda.insert(((self.now + delay).max(still), self.order), (node, life, op));
    }

    fn clock(&self, node: usize) -> u64 {
        self.now + self.ahead[node]
    }

    fn set_clock(&mut self, node: usize) {
        self.ahead[node] = self.random.below(CLOCKS_APART);
    }

    /// The node does nothing for a while: its own events come later by as much. The store may take it for dead meanwhile,
    /// and what it then does is what a fenced one does.
    fn freeze(&mut self, node: usize) {
        let Some(life) = self.nodes[node].as_ref().map(|node| node.life) else { return };
        self.frozen += 1;
        let still = 1 + self.random.below(10_000);
        self.still[node] = self.now + still;
        let its: Vec<_> = self.agenda.iter().filter(|(_, (owner, ..))| *owner == node).map(|(at, _)| *at).collect();
        for (time, order) in its {
            let event = self.agenda.remove(&(time, order)).expect("it was there");
            self.agenda.insert((time + still, order), event);
        }
        if self.nodes.len() > 1 && self.random.one_in(2) {
            self.store.fence(life);
        }
    }

    /// How long the store, or the way to it, takes.
    fn store_takes(&mut self) -> u64 {
        match self.random.below(50) {
            0 => 50 + self.random.below(300),
            _ => self.random.below(4),
        }
    }

    fn run(&mut self, steps: u64) {
        while self.steps < steps {
            self.step();
        }
        // Everything heals, nobody calls any more: all that was accepted must come to its end.
        self.calling = false;
        self.store.away = false;
        self.gated.fill(false);
        self.suspended = Suspended::default();
        let until = self.now + 600_000;
        while self.store.done < self.store.accepted || self.in_flight() > 0 || self.agenda_works() {
            assert!(self.now < until, "{}", self.say(&format!("{} were forgotten: {}", self.left(), self.examples())));
            self.step();
        }
        for node in self.nodes.iter().flatten() {
            let flow = &node.flow;
            assert_eq!(
                (flow.schedule.queued(), flow.in_flight(), flow.reserved, flow.coming, flow.line.len()),
                (0, 0, 0, 0, 0),
                "{}",
                self.say("something is remembered that is over")
            );
            assert!(flow.stocks.is_empty(), "{}", self.say(&format!("{:?}", flow.stocks)));
        }
    }

    fn agenda_works(&self) -> bool {
        self.agenda.values().any(|(_, _, op)| !matches!(op, Op::Tick | Op::Call | Op::Mischief | Op::Sweep { .. }))
    }

    fn left(&self) -> usize {
        self.store.accepted - self.store.done
    }

    fn examples(&self) -> String {
        let over = |row: &Row| matches!(row.state, State::Done(_) | State::Unwritten);
        let open = self.store.rows.iter().enumerate().filter(|(_, row)| !over(row));
        format!("{:?}", open.take(3).collect::<Vec<_>>())
    }

    fn in_flight(&self) -> u32 {
        self.nodes.iter().flatten().map(|node| node.flow.in_flight()).sum()
    }

    fn step(&mut self) {
        let ((time, _), (node, life, op)) = self.agenda.pop_first().expect("ticks go on");
        self.now = time;
        self.steps += 1;
        if node == NOBODY {
            return self.world(op);
        }
        match self.nodes[node].take() {
            // What it was doing died with it.
            Some(mut here) if here.life == life => {
                // A place that comes back is nobody's event: only its wake is heard.
                let event = !matches!(op, Op::Delivered(..));
                self.act(node, &mut here, op);
                self.attend(node, &mut here, event);
                self.check(&here);
                if here.over {
                    self.nodes[node] = Some(here);
                    return self.crash(node);
                }
                self.nodes[node] = Some(here);
            }
            other => self.nodes[node] = other,
        }
    }

    fn world(&mut self, op: Op) {
        match op {
            Op::Call if self.calling => {
                for _ in 0..=self.random.below(3) {
                    self.call();
                }
                let pause = if self.random.one_in(200) { 3_000 } else { self.random.below(40) };
                self.later(NOBODY, pause, Op::Call);
            }
            Op::Mischief if self.calling => {
                self.mischief();
                self.later(NOBODY, 100, Op::Mischief);
            }
            Op::Restart(node) if self.nodes[node].is_none() => self.start(node),
            _ => {}
        }
    }

    fn start(&mut self, number: usize) {
        self.lives += 1;
        let woken = Arc::new(AtomicBool::new(true));
        let flag = woken.clone();
        let mut flow = Flow::new(CAPS, Arc::new(move || flag.store(true, Ordering::Relaxed)));
        self.store.lives.insert(self.lives);
        flow.waiting(self.store.unclaimed());
        flow.start();
        let node = Node {
            life: self.lives,
            flow,
            woken,
            suspended: self.suspended.clone(),
            flying: HashMap::new(),
            over: false,
            passed_over: HashMap::new(),
        };
        self.nodes[number] = Some(node);
        self.life_of[number] = self.lives;
        self.later(number, 1, Op::Tick);
        self.later(number, 250, Op::Sweep { expire: false });
    }

    fn mischief(&mut self) {
        let node = usize::try_from(self.random.below(self.nodes.len() as u64)).unwrap();
        match self.random.below(120) {
            0 => self.store.away = true,
            1..=12 => self.store.away = false,
            // A process is killed; the next one with its name fences it.
            13 => self.crash(node),
            // The store takes a node for dead that is not.
            14 if self.nodes.len() > 1 => {
                if let Some(life) = self.nodes[node].as_ref().map(|node| node.life) {
                    self.store.fence(life);
                }
            }
            15 => {
                let who = usize::try_from(self.random.below(TENANTS as u64)).unwrap();
                let to = usize::try_from(self.random.below(HOSTS as u64)).unwrap();
                if self.random.one_in(2) {
                    self.suspended.tenants.insert(who)
                } else {
                    self.suspended.hosts.insert(to)
                };
                self.tell_nodes();
            }
            16..=30 => {
                self.suspended = Suspended::default();
                self.tell_nodes();
            }
            71..=75 => {
                let every = 1 + usize::try_from(self.random.below(4)).unwrap();
                if let Some(life) = self.nodes[node].as_ref().map(|node| node.life) {
                    self.store.lose_some(life, |number| number.is_multiple_of(every));
                }
            }
            76 => self.freeze(node),
            77 => self.set_clock(node),
            31 => self.gated[node] = true,
            32..=40 => self.gated[node] = false,
            41..=70 if self.executions > 0 => {
                let execution = self.executions - u32::try_from(self.random.below(8)).unwrap().min(self.executions - 1);
                let discard = self.random.one_in(3);
                // The call is one to this node, which answers nobody while it is frozen.
                if !self.store.away && self.now >= self.still[node] {
                    let released = self.store.end_execution(execution, discard, self.clock(node));
                    self.tell_added(node, released);
                }
            }
            _ => {}
        }
    }

    fn crash(&mut self, node: usize) {
        let Some(gone) = self.nodes[node].take() else { return };
        self.crashes += 1;
        self.store.fence(gone.life);
        self.agenda.retain(|_, (owner, _, _)| *owner != node);
        drop(gone);
        self.still[node] = 0;
        let down = self.random.below(3_000);
        self.later(NOBODY, down, Op::Restart(node));
    }

    fn tell_nodes(&mut self) {
        for node in 0..self.nodes.len() {
            let delay = self.random.below(20);
            self.later(node, delay, Op::Learn);
        }
    }

    fn tell_added(&mut self, node: usize, released: Vec<usize>) {
        let Some(mut here) = self.nodes[node].take() else { return };
        for who in released.into_iter().collect::<BTreeSet<_>>() {
            here.flow.added(&tenant(who));
        }
        self.attend(node, &mut here, true);
        self.nodes[node] = Some(here);
    }

    /// A caller's submission to some node.
    fn call(&mut self) {
        let number = usize::try_from(self.random.below(self.nodes.len() as u64)).unwrap();
        if self.now < self.still[number] {
            return;
        }
        let Some(mut here) = self.nodes[number].take() else { return };
        // Tenant 0 floods, tenant 1 floods what never answers.
        let who = usize::try_from(match self.random.below(3) {
            0 => self.random.below(2),
            _ => self.random.below(TENANTS as u64),
        })
        .unwrap();
        let count = if who < 2 { 1 + self.random.below(200) } else { 1 + self.random.below(4) };
        let execution = self.random.one_in(4).then(|| {
            self.executions += u32::from(self.executions == 0 || self.random.one_in(3));
            self.executions
        });
        let rows: Vec<Row> = (0..count)
            .map(|_| Row {
                tenant: who,
                host: match who {
                    1 if !self.random.one_in(4) => DEAD,
                    _ => usize::try_from(self.random.below(HOSTS as u64)).unwrap(),
                },
                execution,
                released_at: self.clock(number),
                expires_in: if self.random.one_in(5) { 500 + self.random.below(20_000) } else { 10_000_000 },
                state: State::Unwritten,
                arrived: 0,
            })
            .collect();
        if !rows.iter().any(|row| here.suspended.tenants.contains(&row.tenant)) {
            let hosts: Vec<_> = rows.iter().map(|row| host(row.host)).collect();
            let places: Vec<usize> = rows.into_iter().map(|row| self.store.name(row)).collect();
            let ids = places.iter().map(|place| id_of(*place));
            let sends: Vec<_> = if execution.is_some() { Vec::new() } else { ids.zip(hosts).collect() };
            let view = View { now: self.clock(number), suspended: &here.suspended, gated: self.gated[number] };
            match here.flow.admit(&tenant(who), count, self.store.counted(who), BOUNDS, &view) {
                Ok(mut admission) => {
                    here.flow.place(&mut admission, sends.into_iter(), &view);
                    let delay = self.store_takes();
                    self.nodes[number] = Some(here);
                    return self.later(number, delay, Op::Write { admission, places });
                }
                Err(_) => self.refused += 1,
            }
        }
        self.nodes[number] = Some(here);
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn simulate(nodes: usize) {
    let steps = number("EGRESSD_SIMULATED_STEPS").unwrap_or(40_000);
    let seeds = number("EGRESSD_SIMULATED_SEED").map_or(1..=8, |seed| seed..=seed);
    let (mut refused, mut not_begun, mut crashes, mut frozen, mut deliveries) = (0, 0, 0, 0, 0);
    for seed in seeds {
        let mut simulation = Simulation::new(seed, nodes);
        simulation.run(steps);
        refused += simulation.refused;
        not_begun += simulation.not_begun;
        crashes += simulation.crashes;
        frozen += simulation.frozen;
        deliveries += simulation.deliveries;
    }
    println!(
        "{deliveries} deliveries, {crashes} crashes, {frozen} nodes frozen, {refused} calls refused for room, \
         {not_begun} starts refused"
    );
    assert!(
        deliveries > steps / 2 && crashes > 0 && frozen > 0 && refused > 0 && not_begun > 0,
        "{deliveries}, {crashes}, {frozen}, {refused}, {not_begun}: it hardly moved"
    );
}

#[test]
fn every_accepted_send_ends_once_whatever_the_store_does() {
    simulate(1);
}

#[test]
fn every_accepted_send_ends_once_whatever_nodes_do_that_share_a_store() {
    simulate(3);
}
