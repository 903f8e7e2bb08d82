//! Whose delivery is worked on next, when more of them have something to do than there is time for.
//!
//! In one round of the runtime at most [`TURNS_PER_ROUND`] deliveries are worked on, and for no longer than
//! [`ROUND_TIME`]; then timers and sockets are looked at, and the next ones are called. Promises: tenants take turns,
//! however many deliveries of one have something to do (floods to read, handshakes to compute); and what waits costs
//! the runtime next to nothing, so that deadlines end what they should when they should. A turn that has begun is not
//! cut short: how long it may last is up to the work, see [`crate::limits::READ_TURN_BYTES`], and what a peer can make
//! longer than that is done [`super::apart`].

use std::collections::{HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock;
use crate::limits::{ROUND_TIME, TURNS_PER_ROUND, TURNS_PER_ROUND_MIN};
use crate::send::TenantId;

/// One for the process.
#[derive(Debug)]
pub struct Turns {
    queue: Mutex<Queue>,
}

/// Each of the [`TURNS_PER_ROUND`] turns is in one place: free, called, being worked on, spent or withheld.
#[derive(Debug)]
struct Queue {
    /// Turns that may still be taken in this round.
    free: usize,
    /// Turns that have been taken, for the next round.
    spent: usize,
    /// Turns that this round has not got: as many as it may have take too long.
    withheld: usize,
    /// How many a round may have.
    allowed: usize,
    /// Turns of this round that were worked on to their end, and how long all of them together took.
    worked: usize,
    time: Duration,
    /// The round's time is over: nobody begins until the next one.
    over: bool,
    /// The next round is being seen to.
    ending: bool,
    next: u64,
    /// Tenants with something in `lines`, each once.
    ring: VecDeque<TenantId>,
    lines: HashMap<TenantId, VecDeque<u64>>,
    /// Whom to wake, of all who still wait: one in a line without an entry here has gone.
    waiting: HashMap<u64, Waker>,
    /// Whose turn it is who have not come yet.
    called: HashSet<u64>,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            queue: Mutex::new(Queue {
                free: TURNS_PER_ROUND,
                spent: 0,
                withheld: 0,
                allowed: TURNS_PER_ROUND,
                worked: 0,
                time: Duration::ZERO,
                over: false,
                ending: false,
                next: 0,
                ring: VecDeque::new(),
                lines: HashMap::new(),
                waiting: HashMap::new(),
                called: HashSet::new(),
            }),
        }
    }
}

impl Turns {
    /// Does the work bit by bit, whenever it is this tenant's turn.
    pub fn take<F: Future>(self: &Arc<Self>, tenant: &TenantId, work: Pin<Box<F>>) -> InTurn<F> {
        InTurn { turns: self.clone(), tenant: tenant.clone(), place: None, work: Some(work) }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A turn was taken, which `worked` so long, or given up. Once half of a round's are, or its time is over, the next
    /// round is seen to.
    fn spend(self: &Arc<Self>, worked: Option<Duration>) {
        let mut queue = self.lock();
        let ends = queue.spend(worked);
        drop(queue);
        if ends {
            let turns = self.clone();
            tokio::spawn(async move {
                // Comes back once the runtime has looked at timers and sockets.
                tokio::task::yield_now().await;
                let wakers = turns.lock().next_round();
                wakers.into_iter().for_each(Waker::wake);
            });
        }
    }
}

impl Queue {
    /// `true`: the next round is to be seen to, by the one who is told.
    fn spend(&mut self, worked: Option<Duration>) -> bool {
        self.spent += 1;
        if let Some(time) = worked {
            self.worked += 1;
            self.time += time;
        }
        self.over |= self.time >= ROUND_TIME;
        // At half: the next round is called while this one's other half still works, so that no thread idles in between.
        // Also where no turn is out that would come to an end.
        let due = self.over || self.spent * 2 >= self.allowed || self.spent + self.withheld == TURNS_PER_ROUND;
        due && !std::mem::replace(&mut self.ending, true)
    }

    /// As many turns as lately fitted into [`ROUND_TIME`]: those who are called shall find that they may begin, for
    /// whoever comes too late stands in line once more, and might do so again and again.
    fn next_round(&mut self) -> Vec<Waker> {
        self.allowed = if self.over {
            self.worked.clamp(TURNS_PER_ROUND_MIN, TURNS_PER_ROUND)
        } else {
            (self.allowed * 2).min(TURNS_PER_ROUND)
        };
        (self.over, self.ending, self.worked, self.time) = (false, false, 0, Duration::ZERO);
        // Turns that are out (called, or being worked on) come back to this round or the next: they are not handed out a
        // second time, and count against what is allowed.
        let here =
            std::mem::take(&mut self.spent) + std::mem::take(&mut self.withheld) + std::mem::take(&mut self.free);
        let turns = here.min(self.allowed.saturating_sub(TURNS_PER_ROUND - here));
        self.withheld = here - turns;
        let called: Vec<Waker> = (0..turns).map_while(|_| self.call_next()).collect();
        self.free = turns - called.len();
        called
    }

    fn call_next(&mut self) -> Option<Waker> {
        while let Some(tenant) = self.ring.pop_front() {
            let Some(line) = self.lines.get_mut(&tenant) else { continue };
            // Who has gone is still in line: to take it out where it left would cost a look at the whole line.
            while let Some(place) = line.pop_front() {
                let Some(waker) = self.waiting.remove(&place) else { continue };
                if line.is_empty() {
                    self.lines.remove(&tenant);
                } else {
                    self.ring.push_back(tenant);
                }
                self.called.insert(place);
                return Some(waker);
            }
            self.lines.remove(&tenant);
        }
        None
    }

    fn stand_in_line(&mut self, tenant: &TenantId, waker: &Waker) -> u64 {
        let place = self.next;
        self.next += 1;
        self.waiting.insert(place, waker.clone());
        let line = self.lines.entry(tenant.clone()).or_default();
        if line.is_empty() {
            self.ring.push_back(tenant.clone());
        }
        line.push_back(place);
        place
    }

    /// One who was called and came when the round was over stands first in line again, and its tenant in the ring.
    fn come_too_late(&mut self, tenant: &TenantId, place: u64, waker: &Waker) {
        self.waiting.insert(place, waker.clone());
        let line = self.lines.entry(tenant.clone()).or_default();
        if line.is_empty() {
            self.ring.push_front(tenant.clone());
        }
        line.push_front(place);
    }
}

/// Work that goes on only in its turn. Dropping it gives its place up.
#[derive(Debug)]
pub struct InTurn<F> {
    turns: Arc<Turns>,
    tenant: TenantId,
    /// In line, or called.
    place: Option<u64>,
    /// `None` once it was given back.
    work: Option<Pin<Box<F>>>,
}

impl<F> InTurn<F> {
    /// Gives back what there is of the work, which may take a while to drop; its place is free at once.
    pub fn stop(mut self) -> Option<Pin<Box<F>>> {
        self.work.take()
    }
}

impl<F: Future> Future for InTurn<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        let Some(work) = &mut this.work else { return Poll::Pending };
        let mut queue = this.turns.lock();
        match this.place {
            None if queue.free > 0 && !queue.over => queue.free -= 1,
            None => {
                this.place = Some(queue.stand_in_line(&this.tenant, cx.waker()));
                return Poll::Pending;
            }
            Some(place) if queue.called.remove(&place) => {
                if queue.over {
                    // It was woken in time and polled too late, behind work that the round did not expect. At the end of
                    // the line it might be so each time.
                    queue.come_too_late(&this.tenant, place, cx.waker());
                    let ends = queue.spend(None);
                    debug_assert!(!ends, "a round that is over is being seen to");
                    return Poll::Pending;
                }
                this.place = None;
            }
            Some(place) => {
                if let Some(waker) = queue.waiting.get_mut(&place) {
                    waker.clone_from(cx.waker());
                }
                return Poll::Pending;
            }
        }
        drop(queue);
        let _turn = Turn { turns: &this.turns, began: clock::monotonic() };
        work.as_mut().poll(cx)
    }
}

impl<F> Drop for InTurn<F> {
    fn drop(&mut self) {
        let Some(place) = self.place else { return };
        let mut queue = self.turns.lock();
        let gone = queue.waiting.remove(&place);
        let called = queue.called.remove(&place);
        drop(queue);
        drop(gone);
        if called {
            self.turns.spend(None);
        }
    }
}

/// Spent when dropped, also by a panic.
struct Turn<'a> {
    turns: &'a Arc<Turns>,
    began: Instant,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.spend(Some(self.began.elapsed()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    type Notes = Arc<Mutex<Vec<&'static str>>>;

    /// Work of so many turns, which notes each with its tenant.
    async fn work(turns: Arc<Turns>, tenant: &'static str, times: usize, notes: Notes) {
        let work = async move {
            for _ in 0..times {
                notes.lock().unwrap().push(tenant);
                tokio::task::yield_now().await;
            }
        };
        turns.take(&TenantId::new(tenant), Box::pin(work)).await;
    }

    fn assert_all_is_given_back(turns: &Turns) {
        let mut queue = turns.lock();
        assert_eq!((queue.free + queue.spent + queue.withheld, queue.called.len()), (TURNS_PER_ROUND, 0));
        // Those who have gone stand in line until they are passed over.
        assert!(queue.next_round().is_empty());
        assert_eq!((queue.waiting.len(), queue.lines.len(), queue.ring.len()), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_with_one_delivery_has_a_turn_in_every_round_beside_one_with_thousands() {
        let (turns, notes) = (Arc::new(Turns::default()), Notes::default());
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..3_000 {
            tasks.spawn(work(turns.clone(), "many", 5, notes.clone()));
        }
        tasks.spawn(work(turns.clone(), "one", 20, notes.clone()));
        tasks.join_all().await;
        {
            let notes = notes.lock().unwrap();
            assert_eq!(notes.len(), 15_020);
            let turns: Vec<usize> = (0..notes.len()).filter(|at| notes[*at] == "one").collect();
            let longest = turns.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
            // It stands in line when it has been woken: in the next round, or the one after.
            assert!(longest <= 2 * TURNS_PER_ROUND, "{longest} turns of others between two of its own");
        }
        assert_all_is_given_back(&turns);
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_take_turns_waits_for_one_round_of_what_does() {
        let (turns, notes) = (Arc::new(Turns::default()), Notes::default());
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..3_000 {
            tasks.spawn(work(turns.clone(), "many", 5, notes.clone()));
        }
        // Once the thousands have seen that it is not their turn.
        tokio::task::yield_now().await;
        for _ in 0..50 {
            let before = notes.lock().unwrap().len();
            tokio::task::yield_now().await;
            let between = notes.lock().unwrap().len() - before;
            assert!(between <= 2 * TURNS_PER_ROUND, "{between} turns within one round");
        }
        tasks.join_all().await;
    }

    /// Work of so many turns, each of which keeps its thread for so long.
    async fn long_work(turns: Arc<Turns>, tenant: &'static str, times: usize, each: Duration, notes: Notes) {
        let work = async move {
            for _ in 0..times {
                notes.lock().unwrap().push(tenant);
                // Moves the clock at once, and comes back in another turn.
                tokio::time::advance(each).await;
            }
        };
        turns.take(&TenantId::new(tenant), Box::pin(work)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_ends_when_its_time_is_over_however_few_turns_it_had() {
        for (each, turns_per_round) in [
            (ROUND_TIME * 50, 1),
            (ROUND_TIME, 1),
            (ROUND_TIME / 2, 2),
            (ROUND_TIME / 5, 5),
            (ROUND_TIME / 1_000, TURNS_PER_ROUND),
        ] {
            let (turns, notes) = (Arc::new(Turns::default()), Notes::default());
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..200 {
                tasks.spawn(long_work(turns.clone(), "many", 3, each, notes.clone()));
            }
            let (mut most, mut looks) = (0, 0);
            while notes.lock().unwrap().len() < 600 {
                looks += 1;
                assert!(looks < 100_000, "turns never come");
                let before = notes.lock().unwrap().len();
                tokio::task::yield_now().await;
                most = most.max(notes.lock().unwrap().len() - before);
            }
            tasks.join_all().await;
            assert!((1..=turns_per_round).contains(&most), "{each:?}: {most} turns between two looks at the clock");
            assert_all_is_given_back(&turns);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_is_not_behind_the_long_turns_of_another() {
        let (turns, notes) = (Arc::new(Turns::default()), Notes::default());
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..1_000 {
            tasks.spawn(long_work(turns.clone(), "many", 3, ROUND_TIME * 10, notes.clone()));
        }
        for looks in 0.. {
            if notes.lock().unwrap().len() >= 10 {
                break;
            }
            assert!(looks < 100_000, "turns never come");
            tokio::task::yield_now().await;
        }
        tasks.spawn(work(turns.clone(), "one", 20, notes.clone()));
        let from = notes.lock().unwrap().len();
        tasks.join_all().await;
        let notes = notes.lock().unwrap();
        let turns_of_one: Vec<usize> = (from..notes.len()).filter(|at| notes[*at] == "one").collect();
        let waits =
            std::iter::once(turns_of_one[0] - from).chain(turns_of_one.windows(2).map(|pair| pair[1] - pair[0]));
        // Two rounds of as few as there are.
        assert!(waits.max().unwrap() <= 2 * TURNS_PER_ROUND_MIN, "{turns_of_one:?} from {from}");
        assert_all_is_given_back(&turns);
    }

    #[tokio::test(start_paused = true)]
    async fn rounds_grow_again_once_turns_are_short() {
        let (turns, notes) = (Arc::new(Turns::default()), Notes::default());
        let long = (0..8).map(|_| long_work(turns.clone(), "long", 2, ROUND_TIME, notes.clone()));
        futures_util::future::join_all(long).await;
        assert!(turns.lock().allowed < TURNS_PER_ROUND);
        let short = (0..500).map(|_| work(turns.clone(), "short", 2, notes.clone()));
        futures_util::future::join_all(short).await;
        assert_eq!(turns.lock().allowed, TURNS_PER_ROUND);
        assert_all_is_given_back(&turns);
    }

    #[tokio::test]
    async fn work_that_was_stopped_in_line_is_not_called() {
        let (turns, notes) = (Arc::new(Turns::default()), Notes::default());
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..4 * TURNS_PER_ROUND {
            let (turns, notes) = (turns.clone(), notes.clone());
            tasks.spawn(async move {
                let tenant = TenantId::new("a");
                let endless = Box::pin(async {
                    loop {
                        tokio::task::yield_now().await;
                    }
                });
                let mut endless = turns.take(&tenant, endless);
                for _ in 0..10 {
                    assert!(futures_util::poll!(&mut endless).is_pending());
                    tokio::task::yield_now().await;
                }
                // It stands in line, or has been called, and will never come.
                let rest = endless.stop();
                turns.take(&tenant, Box::pin(async move { drop(rest) })).await;
                work(turns, "a", 3, notes).await;
            });
        }
        tasks.join_all().await;
        assert_eq!(notes.lock().unwrap().len(), 12 * TURNS_PER_ROUND);
        assert_all_is_given_back(&turns);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn turns_come_back_from_work_that_panics_and_work_that_is_dropped() {
        let turns = Arc::new(Turns::default());
        let done = Arc::new(AtomicUsize::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..2_000_usize {
            let (turns, done) = (turns.clone(), done.clone());
            let work = async move {
                for turn in 0..30 {
                    assert!(number % 7 != 0 || turn < 20, "a panic within a turn");
                    tokio::task::yield_now().await;
                }
                done.fetch_add(1, Relaxed);
            };
            let task = tasks.spawn(async move {
                turns.take(&TenantId::new(if number < 1_000 { "a" } else { "b" }), Box::pin(work)).await;
            });
            if number % 3 == 0 {
                tokio::task::yield_now().await;
                task.abort();
            }
        }
        while tasks.join_next().await.is_some() {}
        assert!(done.load(Relaxed) > 100);
        assert_all_is_given_back(&turns);
    }
}
