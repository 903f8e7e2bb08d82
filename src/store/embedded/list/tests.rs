//! Lists against the plain reading of a filter: every record asked, one by one.

use super::super::tests::{OnDisk, until};
use super::super::{Embedded, SegmentLimits};
use crate::outcome::{Code, Outcome};
use crate::record::{Record, State};
use crate::send::{Method, SendId};
use crate::store::conformance::{
    Draft, Subject, accept_one, at, begin_of, begin_one, claimed, draft, failed, finished, tenant,
};
use crate::store::{Filter, HostFilter, OnceOnly, Reach, Records, Session, StatusFilter};

/// A seeded xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
    fn several<T>(&mut self, value: impl Fn(&mut Self) -> T) -> Vec<T> {
        let many = self.below(9).saturating_sub(6);
        (0..many).map(|_| value(self)).collect()
    }
    fn sometimes<T>(&mut self, value: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.below(3) == 0).then(|| value(self))
    }
}

fn some_draft(random: &mut Random, second: i64) -> Draft {
    let mut draft = draft().of(["acme", "bolt", "crow"][random.below(3) as usize]).created(at(second));
    draft = draft.to(&format!("https://h{}.example.com/orders", random.below(4)));
    if let Some(workflow) = random.sometimes(|random| random.below(4)) {
        draft = draft.in_workflow(&format!("w{workflow}"));
    }
    if let Some(execution) = random.sometimes(|random| random.below(6)) {
        draft = draft.in_execution(&format!("e{execution}"));
    }
    draft
}

fn some_filter(random: &mut Random, seconds: u64) -> Filter {
    Filter {
        reach: random
            .sometimes(|random| tenant(["acme", "bolt", "crow", "nobody"][random.below(4) as usize]))
            .map_or(Reach::All, Reach::One),
        workflow: random.sometimes(|random| format!("w{}", random.below(5))),
        execution: random.sometimes(|random| format!("e{}", random.below(7))),
        step: None,
        host: random.sometimes(|random| match random.below(8) {
            0 => HostFilter::Below("example.com".to_owned()),
            1 => HostFilter::Below("ample.com".to_owned()),
            _ => HostFilter::One(format!("h{}.example.com", random.below(5))),
        }),
        outcomes: random.several(|random| {
            [Outcome::Delivered, Outcome::Rejected, Outcome::Failed, Outcome::Expired][random.below(4) as usize]
        }),
        codes: random
            .several(|random| [Code::Timeout, Code::ConnectionRefused, Code::Expired][random.below(3) as usize]),
        statuses: random.several(|random| match random.below(3) {
            0 => StatusFilter::Class([2, 4, 5][random.below(3) as usize]),
            _ => StatusFilter::One([200, 404, 503][random.below(3) as usize]),
        }),
        state: random.sometimes(|random| State::ALL[random.below(State::ALL.len() as u64) as usize]),
        method: random.sometimes(|random| [Method::Post, Method::Get][random.below(2) as usize]),
        path: random.sometimes(|random| ["/", "/orders", "/ord", "/other"][random.below(4) as usize].to_owned()),
        source_ip: random.sometimes(|random| {
            let ip = ["10.0.0.10", "198.51.100.10", "203.0.113.9"][random.below(3) as usize];
            ip.parse().expect("an address")
        }),
        public_only: random.below(2) == 0,
        since: random.sometimes(|random| at(random.below(seconds) as i64)),
        until: random.sometimes(|random| at(random.below(seconds) as i64)),
    }
}

async fn finish_some(
    store: &Embedded,
    session: &Session,
    random: &mut Random,
    waiting: &mut Vec<(SendId, Draft)>,
    second: i64,
) {
    if waiting.is_empty() {
        return;
    }
    let (id, draft) = waiting.swap_remove(random.below(waiting.len() as u64) as usize);
    begin_one(store, session, begin_of(id, &draft, at(second))).await.expect("begun");
    let end = match random.below(4) {
        0 => failed(id, Code::Timeout, at(second)),
        1 => finished(id, 404, at(second)),
        _ => finished(id, 200, at(second)),
    };
    store.finish(session, end).await.expect("ended");
}

/// Every record, newest first.
async fn records(store: &Embedded) -> Vec<Record> {
    let mut all = Vec::new();
    let mut at = None;
    loop {
        let page = store.list(Filter::of(Reach::All), at, 200).await.expect("a page");
        all.extend(page.sends);
        at = page.next;
        if at.is_none() {
            return all;
        }
    }
}

/// Asks many filters, page by page.
async fn check(store: &Embedded, random: &mut Random, seconds: i64, when: &str) -> usize {
    let all = records(store).await;
    let mut found_in_all = 0;
    for _ in 0..80 {
        let filter = some_filter(random, seconds as u64);
        let host = |record: &Record| {
            let rest = record.request.to.url().and_then(|url| url.strip_prefix("https://")).expect("an https URL");
            rest.split('/').next().map(str::to_owned)
        };
        let wanted: Vec<SendId> = all
            .iter()
            .filter(|record| filter.lets_through(record, host(record).as_deref()))
            .map(|record| record.id)
            .collect();
        let mut found = Vec::new();
        let mut at = None;
        loop {
            let page = store.list(filter.clone(), at, 7).await.expect("a page");
            found.extend(page.sends.into_iter().map(|record| record.id));
            at = page.next;
            if at.is_none() {
                break;
            }
        }
        assert_eq!(found, wanted, "{when}, {filter:?}");
        found_in_all += found.len();
    }
    found_in_all
}

#[tokio::test]
async fn a_list_finds_what_every_record_says_of_itself() {
    for seed in [0x5eed, 20_261_122] {
        let mut random = Random(seed);
        let mut subject = OnDisk::with(SegmentLimits { sends: 25, ..OnDisk::limits() });
        let mut waiting = Vec::new();
        let mut second = 0;
        // Twelve segments: some checkpointed with sends that wait, some of which end afterwards.
        for _ in 0..300 {
            second += 1;
            let draft = some_draft(&mut random, second);
            waiting.push((accept_one(subject.store(), subject.session(), &draft).await, draft));
            if random.below(5) > 0 {
                finish_some(subject.store(), subject.session(), &mut random, &mut waiting, second).await;
            }
        }
        assert!(check(subject.store(), &mut random, second, "as it grew").await > 50);
        until(|| subject.store().shared.segments().iter().rev().skip(1).all(|segment| segment.is_checkpointed())).await;
        check(subject.store(), &mut random, second, "checkpointed").await;
        for _ in 0..40 {
            second += 1;
            finish_some(subject.store(), subject.session(), &mut random, &mut waiting, second).await;
        }
        check(subject.store(), &mut random, second, "ended after they were checkpointed").await;
        subject = subject.crash().await;
        check(subject.store(), &mut random, second, "opened again").await;
        claimed(subject.store(), subject.session()).await;
        while !waiting.is_empty() {
            second += 1;
            finish_some(subject.store(), subject.session(), &mut random, &mut waiting, second).await;
        }
        until(|| {
            subject.store().shared.segments().iter().rev().skip(1).all(|segment| segment.is_checkpointed_for_good())
        })
        .await;
        check(subject.store(), &mut random, second, "all done").await;
        subject = subject.crash().await;
        check(subject.store(), &mut random, second, "all done and opened again").await;
    }
}
