//! The lines against a plain list of what waits, step by step.

use super::*;
use crate::record::FinishedBy;

/// A seeded xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A send as the plain list has it, in the order of release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plain {
    row: u32,
    tenant: usize,
    destination: u64,
    expires: u32,
    claimed: bool,
    begun: bool,
}

fn names() -> [TenantId; 3] {
    ["a", "b", "c"].map(TenantId::new)
}

fn check(waiting: &Waiting, plain: &[Plain]) {
    let waits = |send: &&Plain| !send.begun;
    let mut all = (0, 0);
    for (tenant, name) in names().iter().enumerate() {
        let of = || plain.iter().filter(waits).filter(move |send| send.tenant == tenant);
        let unclaimed = of().filter(|send| !send.claimed).count() as u64;
        let count = waiting.count_of(name);
        assert_eq!((count.held, count.queued, count.unclaimed), (0, of().count() as u64, unclaimed));
        all = (all.0 + count.queued, all.1 + count.unclaimed);
    }
    let count = waiting.count_of_all();
    assert_eq!((count.queued, count.unclaimed), all);
}

#[test]
fn the_lines_do_what_a_plain_list_does() {
    for seed in [0x5eed, 20_261_129, 7] {
        let mut random = Random(seed);
        let (mut waiting, mut plain) = (Waiting::default(), Vec::<Plain>::new());
        let by = waiting.join();
        let mut second = 1000;
        for row in 0..6_000_u32 {
            second += random.below(2) as u32;
            let tenant = random.below(3) as usize;
            let name = &names()[tenant];
            match random.below(10) {
                0..5 => {
                    let expires = second + 1 + random.below(200) as u32;
                    let number = waiting.number(name);
                    waiting.queue(number, Queued { segment: 1, row, expires, released: second });
                    let destination = 2 + random.below(4);
                    plain.push(Plain { row, tenant, destination, expires, claimed: false, begun: false });
                }
                5..7 => {
                    let full: HashSet<u64> = (2..6).filter(|_| random.below(3) == 0).collect();
                    let room = random.below(6) as usize;
                    let Some(number) = waiting.known(name) else { continue };
                    let mut claimed = Vec::new();
                    loop {
                        let looked = waiting.look(number, room - claimed.len(), &full);
                        if looked.is_empty() {
                            break;
                        }
                        for Looked { order, queued } in looked {
                            let Some(send) = plain.iter_mut().find(|send| send.row == queued.row) else { continue };
                            if full.contains(&send.destination) {
                                waiting.put_aside(number, send.destination, (order, queued));
                                continue;
                            }
                            let (destination, hand) = (send.destination, Hand::Claimed(by));
                            let taken = Taken {
                                queued,
                                tenant: number,
                                tenant_hash: TenantHash::any_of(1),
                                destination,
                                order,
                                hand,
                            };
                            waiting.claim(u128::from(queued.row), taken);
                            claimed.push(queued.row);
                        }
                    }
                    let wanted = plain.iter_mut().filter(|send| {
                        send.tenant == tenant && !send.claimed && !send.begun && !full.contains(&send.destination)
                    });
                    let wanted: Vec<u32> = wanted
                        .take(room)
                        .map(|send| {
                            send.claimed = true;
                            send.row
                        })
                        .collect();
                    assert_eq!(claimed, wanted, "seed {seed}, row {row}, full {full:?}");
                }
                7 => {
                    let of_tenant = |send: &&mut Plain| send.claimed && !send.begun && send.tenant == tenant;
                    for send in plain.iter_mut().filter(of_tenant) {
                        match random.below(3) {
                            0 => {
                                waiting.give_back(u128::from(send.row), by);
                                send.claimed = false;
                            }
                            1 => {
                                waiting.begin(u128::from(send.row), by);
                                send.begun = true;
                            }
                            _ => {}
                        }
                    }
                }
                8 => {
                    let begun: Vec<u32> = plain.iter().filter(|send| send.begun).map(|send| send.row).collect();
                    begun.iter().for_each(|row| assert!(waiting.finish(u128::from(*row))));
                    plain.retain(|send| !send.begun);
                }
                _ => {
                    let limit = 1 + random.below(20) as usize;
                    let expired = waiting.take_expired(second, limit);
                    let due = |send: &&Plain| !send.claimed && !send.begun && send.expires <= second;
                    let due = plain.iter().filter(due).count();
                    assert_eq!(expired.len(), due.min(limit), "seed {seed}, row {row}");
                    for (number, queued) in expired {
                        assert!(queued.expires <= second);
                        waiting.uncount(number, Counted::Queued);
                        plain.retain(|send| send.row != queued.row);
                    }
                }
            }
            check(&waiting, &plain);
        }
    }
}

#[test]
fn nothing_is_left_of_a_tenant_of_which_nothing_waits() {
    let mut waiting = Waiting::default();
    let by = waiting.join();
    let execution = |turn: u32| ExecutionHash { hash: u64::from(turn) + 1, tenant: 1 };
    for turn in 0..1000_u32 {
        let number = waiting.number(&TenantId::new(format!("tenant-{turn}")));
        let queued = Queued { segment: 1, row: turn, expires: 10, released: 1 };
        waiting.queue(number, queued);
        waiting.hold(number, execution(turn), 5, (1, turn), 2);
        let looked = waiting.look(number, 1, &HashSet::new());
        let (order, hand) = (looked[0].order, Hand::Claimed(by));
        waiting.claim(
            7,
            Taken { queued, tenant: number, tenant_hash: TenantHash::any_of(1), destination: 3, order, hand },
        );
        waiting.give_back(7, by);
        let ended = EndedExecution { ending: Ending::Finish(FinishedBy::Call), at: Timestamp::UNIX_EPOCH, count: 2 };
        waiting.close(execution(turn), ended);
        assert_eq!(waiting.count_of_all().unclaimed, 3);
        waiting.closed(number, execution(turn));
        (0..3).for_each(|_| waiting.uncount(number, Counted::Queued));
    }
    assert_eq!(waiting.count_of_all(), WaitingCount::default());
    assert_eq!(waiting.counts(), []);
    assert_eq!((waiting.tenants.len(), waiting.by_name.len()), (1, 0), "their numbers are used again");
    assert!(
        waiting.due.is_empty() && waiting.oldest.is_empty() && waiting.by_age.is_empty() && waiting.taken.is_empty()
    );
}
