//! The list of executions where what they began with is gone, was moved, or is damaged.

use super::*;
use crate::store::{ExecutionFilter, NewSend};

/// Its executions, page by page, with how many of their sends are there.
async fn listed(subject: &OnDisk) -> Vec<(String, u64)> {
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let page = subject.store().executions(ExecutionFilter::of(Reach::All), cursor, 1).await.expect("a page");
        found.extend(page.executions.into_iter().map(|one| (one.execution.to_string(), one.total)));
        cursor = page.next;
        if cursor.is_none() {
            found.sort();
            return found;
        }
    }
}

/// The same by the sends that are left.
async fn left(subject: &OnDisk) -> Vec<(String, u64)> {
    let page = subject.store().list(Filter::of(Reach::All), None, 200).await.expect("a list");
    let mut left: HashMap<String, u64> = HashMap::new();
    for execution in page.sends.into_iter().filter_map(|record| record.context.execution) {
        *left.entry(execution.to_string()).or_default() += 1;
    }
    let mut left: Vec<_> = left.into_iter().collect();
    left.sort();
    left
}

/// Both say the same, once nothing is moved between the two looks.
async fn as_left(subject: &OnDisk, which: &str) {
    let since = crate::clock::monotonic();
    loop {
        let (listed, left) = (listed(subject).await, left(subject).await);
        if listed == left {
            return;
        }
        assert!(since.elapsed() < PATIENCE, "{which}: {listed:?} are listed, {left:?} are left");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_execution_is_listed_as_long_as_a_send_of_it_is_left_wherever_that_was_moved() {
    let day = |days: i64| at(days * 24 * 3600);
    // Which sends of a run of six, one a day, wait for ever.
    for waiting in [&[0][..], &[1], &[0, 1], &[1, 3]] {
        for checkpointed in [false, true] {
            let mut subject = OnDisk::with(SegmentLimits { sends: 3, ..OnDisk::limits() });
            for today in 0..6 {
                for name in ["run", "other"] {
                    let send = draft().in_execution(name).created(day(today)).send();
                    let waits = name == "run" && waiting.contains(&today);
                    let send = NewSend { course: if waits { Course::Wait } else { Course::Claim }, ..send };
                    let id = send.id;
                    accept_new(subject.store(), subject.session(), call(vec![send], None)).await;
                    if !waits {
                        let end = finished(id, 200, day(today));
                        subject.store().finish(subject.session(), end).await.expect("ended");
                    }
                }
            }
            for days in [31, 33, 35] {
                let which = format!("{waiting:?} wait, checkpointed: {checkpointed}, after {days} days");
                if checkpointed {
                    subject.until_all_checkpointed().await;
                }
                // What waits is moved on in one go, and what held it goes in the next.
                for go in 0..3 {
                    subject.store().retain(day(days)).await.expect("retained");
                    as_left(&subject, &format!("{which}, go {go}")).await;
                }
                subject = subject.crash().await;
                as_left(&subject, &format!("{which}, opened again")).await;
            }
        }
    }
}

#[tokio::test]
async fn an_execution_whose_first_send_is_damaged_is_listed_by_another() {
    let subject = OnDisk::fresh().await;
    for name in ["a", "b", "a"] {
        accept_one(subject.store(), subject.session(), &draft().in_execution(name)).await;
    }
    let log = subject.file("log");
    let starts = frames(&log);
    change(&log, |log| log[starts[1] + 100] ^= 1);
    let expected = vec![("a".to_owned(), 2), ("b".to_owned(), 1)];
    assert_eq!(listed(&subject).await, expected, "while it runs");
    let (subject, _) = subject.harmed(|_| {}).await;
    let expected = vec![("a".to_owned(), 1), ("b".to_owned(), 1)];
    assert_eq!(listed(&subject).await, expected, "what is lost is no send any more");
}
