//! The suite that every store passes: what the trait promises, asked of it from outside.
//!
//! A store is handed in as a [`Subject`]; [`run`] goes through every promise with a fresh one. What only a store on
//! disk can break (torn files, a full disk, format versions) is tested beside that store.

pub mod batches;
mod drafts;
pub mod tunnels;
pub mod waiting;

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

pub use self::drafts::*;
use super::stats::{By, Group, SLOT_SECONDS, StatsAsked};
use super::*;
use crate::outcome::{Code, Ended, Failure, Outcome, Phase, Processed, Timings};
use crate::policy::{CheckedUrl, Destination, Host, Scheme, Verdict};
use crate::record::{
    Certificate, Connection, ExecutionState, ExecutionSummary, Finished, FinishedBy, Record, ShownBody, ShownHeaders,
    ShownRequest, ShownResponse, ShownTo, State, TlsFacts,
};
use crate::send::trace::TraceParent;
use crate::send::{Context, Email, ExecutionId, HttpRequest, Method, SendId, SendSpec, Target, TenantId, To};

pub const NODE: &str = "egress-test";

/// A store under test, and how to have it die and come back.
pub trait Subject: Sized {
    type Store: Store;
    fn fresh() -> impl Future<Output = Self>;
    fn store(&self) -> &Self::Store;
    /// Of this life.
    fn session(&self) -> &Session;
    /// Whatever a process that dies here leaves, opened again. Not recovered yet.
    fn crash(self) -> impl Future<Output = Self>;
}

/// Every promise, each with a fresh store.
pub async fn run<S: Subject>() {
    an_accepted_send_reads_back_as_it_was_given::<S>().await;
    a_message_is_remembered_as_any_send_is::<S>().await;
    a_send_is_begun_once_and_ended_once::<S>().await;
    a_finished_record_tells_everything::<S>().await;
    a_spec_that_left_memory_is_read_back::<S>().await;
    held_sends_wait_for_their_execution::<S>().await;
    an_execution_ends_one_way_only::<S>().await;
    an_execution_lists_its_sends_in_call_order::<S>().await;
    executions_are_listed_by_their_first_send::<S>().await;
    executions_are_listed_as_long_as_a_send_of_them_is_left::<S>().await;
    a_page_counts_so_many_sends_of_executions_and_no_more::<S>().await;
    an_execution_takes_so_many_sends_and_no_more::<S>().await;
    a_call_with_a_known_key_is_replayed::<S>().await;
    a_crash_interrupts_what_had_begun_and_nothing_else::<S>().await;
    a_crash_ends_the_held_sends_of_a_discarded_execution::<S>().await;
    Box::pin(every_filter_finds_its_sends::<S>()).await;
    a_page_looks_at_so_many_sends_and_no_more::<S>().await;
    a_list_pages_while_sends_are_added::<S>().await;
    the_tail_follows_the_order_of_finishing::<S>().await;
    outcomes_are_counted_per_tenant::<S>().await;
    ends_are_counted_over_time::<S>().await;
    tunnels::a_tunnel_is_found_as_it_is_by_every_filter::<S>().await;
    tunnels::a_tunnel_that_a_death_left_open_is_ended::<S>().await;
    suspensions_are_kept_with_their_lifting::<S>().await;
    first_publication_is_remembered::<S>().await;
    a_closed_store_takes_nothing::<S>().await;
}

async fn record_of(store: &impl Store, id: SendId) -> Record {
    store.record(Reach::All, id, true).await.expect("readable").expect("known")
}

async fn listed(store: &impl Store, filter: Filter) -> Vec<SendId> {
    store.list(filter, None, 200).await.expect("a list").sends.into_iter().map(|record| record.id).collect()
}

// The promises.

async fn an_accepted_send_reads_back_as_it_was_given<S: Subject>() {
    let subject = S::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    let mut draft = draft().in_workflow("w").in_execution("e").created(at(5));
    draft.context.trace = TraceParent::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let mut given = draft.send();
    given.resend_of = Some(SendId(Uuid::from_u128(77)));
    let id = given.id;
    let indexes = accept_new(store, session, call(vec![given.clone()], None)).await;
    assert_eq!(indexes, [Some(0)]);

    let record = record_of(store, id).await;
    assert_eq!(record.request, given.shown);
    assert_eq!((record.state, record.ended.as_ref()), (State::Queued, None));
    assert_eq!(record.context, given.spec.context);
    assert_eq!((record.index, record.resend_of), (Some(0), given.resend_of));
    assert_eq!((record.tenant.as_str(), record.node.as_str()), ("acme", NODE));
    assert_eq!((record.created_at, record.released_at, record.started_at), (at(5), Some(at(5)), None));

    let without = store.record(Reach::One(tenant("acme")), id, false).await.unwrap().unwrap();
    let body = without.request.body.expect("it has one");
    assert_eq!((body.bytes, body.total), (None, 12), "the body stays away, its size does not");
    assert_eq!(
        store.record(Reach::One(tenant("other")), id, true).await,
        Ok(None),
        "another tenant's send is not there"
    );
    assert_eq!(store.record(Reach::All, id_at(at(6)), true).await, Ok(None));
}

async fn a_message_is_remembered_as_any_send_is<S: Subject>() {
    let subject = S::fresh().await;
    let mut all = Vec::new();
    for keeps_body in [true, false] {
        let draft = Draft { keeps_body, ..draft().mail().in_execution("e").created(at(5)) };
        let given = draft.send();
        accept_new(subject.store(), subject.session(), call(vec![given.clone()], Some("e"))).await;
        let record = record_of(subject.store(), given.id).await;
        assert_eq!((record.state, &record.request), (State::Held, &given.shown));
        all.push((draft, given));
    }
    let (store, session) = (subject.store(), subject.session());
    let finish = Ending::Finish(FinishedBy::Call);
    end_execution(store, session, tenant("acme"), execution("e"), finish, at(6)).await.expect("released");
    let filter = Filter { host: Some(HostFilter::One("relay.example.net".to_owned())), ..Filter::of(Reach::All) };
    assert_eq!(listed(store, filter.clone()).await.len(), 2, "a message is found by its relay");
    let by_method = Filter { method: Some(Method::Post), ..filter.clone() };
    assert_eq!(listed(store, by_method).await, [], "it has no method");
    assert_eq!(listed(store, Filter { path: Some("/".to_owned()), ..filter }).await, [], "and no path");

    // What is to be made of it is read back by the next life, too.
    let subject = subject.crash().await;
    let (store, session) = (subject.store(), subject.session());
    store.recover(session, at(7)).await.expect("recovered");
    let want = Want { tenant: tenant("acme"), room: 10, full: Vec::new() };
    for pending in store.claim(session, vec![want], 10).await.expect("claimed").sends {
        assert_eq!(pending.destination, Some(drafts::relay()));
    }
    for (draft, given) in all {
        let started = begin_one(store, session, begin_of(given.id, &draft, at(8))).await.expect("begun");
        assert_eq!(started.spec(), &given.spec);
        let mut end = finished(given.id, 250, at(8));
        end.sent_headers = Some(vec![("to".to_owned(), vec!["owner@acme.example".to_owned()])]);
        store.finish(session, end.clone()).await.expect("ended");
        let record = record_of(store, given.id).await;
        assert_eq!((Some(record.request.headers), record.request.to), (end.sent_headers, given.shown.to.clone()));
        assert_eq!(record.request.body, given.shown.body);
    }
}

async fn a_send_is_begun_once_and_ended_once<S: Subject>() {
    let subject = S::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    let draft = draft();
    let id = accept_one(store, session, &draft).await;

    let of_another = Begin { tenant: tenant("other"), ..begin_of(id, &draft, at(1)) };
    assert!(matches!(begin_one(store, session, of_another).await, Err(StoreError::NoSuchSend)));
    let started = begin_one(store, session, begin_of(id, &draft, at(1))).await.expect("begun");
    assert_eq!((started.id(), started.tenant(), started.at()), (id, &draft.tenant, at(1)));
    assert!(matches!(begin_one(store, session, begin_of(id, &draft, at(2))).await, Err(StoreError::NoSuchSend)));
    let record = record_of(store, id).await;
    assert_eq!((record.state, record.started_at), (State::Sending, Some(at(1))));

    let seq = store.finish(session, finished(id, 200, at(1))).await.expect("ended");
    assert!(seq > TailPlace::START);
    assert_eq!(store.finish(session, finished(id, 500, at(1))).await, Err(StoreError::NoSuchSend));
    assert!(matches!(begin_one(store, session, begin_of(id, &draft, at(3))).await, Err(StoreError::NoSuchSend)));
    assert_eq!(record_of(store, id).await.response.map(|answer| answer.status), Some(200));

    let never_begun = accept_one(store, session, &draft).await;
    store
        .finish(session, failed(never_begun, Code::Expired, at(1)))
        .await
        .expect("a send may end without having begun");
    assert!(matches!(
        begin_one(store, session, begin_of(never_begun, &draft, at(3))).await,
        Err(StoreError::NoSuchSend)
    ));
    let unknown = id_at(at(0));
    assert!(matches!(begin_one(store, session, begin_of(unknown, &draft, at(3))).await, Err(StoreError::NoSuchSend)));
    assert_eq!(store.finish(session, finished(unknown, 200, at(1))).await, Err(StoreError::NoSuchSend));

    // Of many that try at once, one begins.
    let contended = accept_one(store, session, &draft).await;
    let tries = (0..16).map(|_| begin_one(store, session, begin_of(contended, &draft, at(4))));
    let begun = futures_util::future::join_all(tries).await.into_iter().filter(Result::is_ok).count();
    assert_eq!(begun, 1);
}

async fn a_finished_record_tells_everything<S: Subject>() {
    let subject = S::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    let draft = draft();
    let answered = accept_one(store, session, &draft).await;
    let unanswered = accept_one(store, session, &draft).await;
    begin_one(store, session, begin_of(answered, &draft, at(1))).await.expect("begun");
    let end = finished(answered, 404, at(1));
    store.finish(session, end.clone()).await.expect("ended");
    store.finish(session, failed(unanswered, Code::ConnectionRefused, at(1))).await.expect("ended");

    let record = record_of(store, answered).await;
    assert_eq!(record.state, State::Done);
    assert_eq!(record.ended, Some(end.ended));
    assert_eq!(Some(record.request.headers), end.sent_headers, "what left replaces what was asked for");
    assert_eq!(record.request.body.and_then(|body| body.bytes), draft.body);
    assert_eq!(record.response, end.response);
    assert_eq!(record.connection, end.connection);
    assert_eq!(record.would_block, end.would_block);
    assert_eq!(record.timings, end.timings);
    assert_eq!((record.released_at, record.started_at), (end.released_at, end.started_at));
    assert_eq!(record.finished_at, Some(end.finished_at));
    let without = store.record(Reach::All, answered, false).await.unwrap().unwrap();
    assert_eq!(without.response.map(|answer| answer.body.bytes), Some(None));

    let record = record_of(store, unanswered).await;
    assert_eq!(record.ended.as_ref().map(|ended| ended.outcome), Some(Outcome::Failed));
    let error = record.ended.and_then(|ended| ended.error).expect("a failure");
    assert_eq!((error.code, error.phase), (Code::ConnectionRefused, Some(Phase::Connect)));
    assert_eq!(record.request.headers.len(), 2, "nothing left: what was asked for stays");
}

async fn a_spec_that_left_memory_is_read_back<S: Subject>() {
    let subject = S::fresh().await;
    let mut drafts = Vec::new();
    for url in ["https://api.example.com/a?b=c", "http://[2001:db8::1]:8080/", "no url at all"] {
        for secret in [None, Some("Basic c2VjcmV0OnNlY3JldA==")] {
            for body in [None, Some(Bytes::new()), Some(Bytes::from_static(b"12345"))] {
                for keeps_body in [true, false] {
                    drafts.push(Draft { secret, keeps_body, body: body.clone(), ..draft().to(url) });
                }
            }
        }
    }
    let sends: Vec<_> = drafts.iter().map(Draft::send).collect();
    accept_new(subject.store(), subject.session(), call(sends.clone(), None)).await;
    let subject = subject.crash().await;
    let (store, session) = (subject.store(), subject.session());
    store.recover(session, at(1)).await.expect("recovered");
    let want = Want { tenant: tenant("acme"), room: 1_000, full: Vec::new() };
    let claimed = store.claim(session, vec![want], 1_000).await.expect("claimed").sends;
    assert_eq!(claimed.len(), sends.len());
    for (draft, send) in drafts.iter().zip(&sends) {
        let pending = claimed.iter().find(|pending| pending.id == send.id).expect("claimed");
        assert!(pending.spec.as_ref().is_none_or(|spec| *spec == send.spec), "{:?}", pending.spec);
        assert_eq!(record_of(store, send.id).await.request, send.shown);
        let started = begin_one(store, session, begin_of(send.id, draft, at(2))).await.expect("begun");
        assert_eq!(started.spec(), &send.spec);
    }
}

async fn held_sends_wait_for_their_execution<S: Subject>() {
    let subject = S::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    let draft = draft().in_execution("e");
    let sends = [draft.send(), draft.clone().created(at(3)).send()];
    let ids = sends.each_ref().map(|send| send.id);
    assert_eq!(accept_new(store, session, call(sends.to_vec(), Some("e"))).await, [Some(0), Some(1)]);
    let record = record_of(store, ids[1]).await;
    assert_eq!((record.state, record.released_at), (State::Held, None));
    assert!(matches!(begin_one(store, session, begin_of(ids[0], &draft, at(4))).await, Err(StoreError::NoSuchSend)));
    assert_eq!(claimed(store, session).await, [], "nobody claims what is held");

    let end =
        end_execution(store, session, tenant("acme"), execution("e"), Ending::Finish(FinishedBy::HoldLimit), at(9))
            .await;
    assert_eq!(end, Ok(ExecutionEnd::Done { count: 2, first: true }));
    let record = record_of(store, ids[1]).await;
    assert_eq!((record.state, record.released_at), (State::Queued, Some(at(9))));
    assert_eq!(record.timings.held, Some(Duration::from_secs(6)));
    assert_eq!(claimed(store, session).await, ids);
    begin_one(store, session, begin_of(ids[0], &draft, at(10))).await.expect("released, so it may begin");
    let seen = store.execution(tenant("acme"), execution("e"), None, 10).await.unwrap().unwrap();
    assert_eq!((seen.state, seen.finished_by), (ExecutionState::Finished, Some(FinishedBy::HoldLimit)));
}

async fn an_execution_ends_one_way_only<S: Subject>() {
    let subject = S::fresh().await;
    let finish = Ending::Finish(FinishedBy::Call);
    for (name, first, second) in [("finished", finish, Ending::Discard), ("discarded", Ending::Discard, finish)] {
        let (store, session) = (subject.store(), subject.session());
        let draft = draft().in_execution(name);
        let (blocked, held) = (draft.clone().in_workflow("stopped").send(), draft.send());
        accept_new(store, session, call(vec![blocked, held.clone(), draft.send()], Some(name))).await;
        let mut stopped = crate::policy::Suspensions::default();
        stopped.workflows.insert((tenant("acme"), Arc::from("stopped")), Arc::from("spam"));
        let swept = store.end_suspended(session, Arc::new(stopped), None, at(1), 10).await.expect("swept");
        assert_eq!(swept.ended.len(), 1, "{name}: ended while held");
        let end = |ending| end_execution(store, session, tenant("acme"), execution(name), ending, at(2));
        assert_eq!(end(first).await, Ok(ExecutionEnd::Done { count: 2, first: true }), "{name}");
        assert_eq!(end(first).await, Ok(ExecutionEnd::Done { count: 2, first: false }), "{name}");
        assert_eq!(end(second).await, Ok(ExecutionEnd::Conflict(first.state())), "{name}");
        let late = store.accept(session, call(vec![draft.send()], Some(name))).await;
        assert_eq!(late, Ok(Accepted::Ended(first.state())), "{name}");
        assert_eq!(
            accept_new(store, session, call(vec![draft.send()], None)).await,
            [Some(3)],
            "not held: it is listed"
        );
        claimed(store, session).await;
        let begun = begin_one(store, session, begin_of(held.id, &draft, at(3))).await;
        assert_eq!(begun.is_ok(), first == finish, "{name}");
        let other = end_execution(store, session, tenant("other"), execution(name), second, at(2)).await;
        assert_eq!(other, Ok(ExecutionEnd::Done { count: 0, first: true }), "another tenant's is another execution");
    }
    let subject = subject.crash().await;
    let (store, session) = (subject.store(), subject.session());
    store.recover(session, at(4)).await.expect("recovered");
    let end = end_execution(store, session, tenant("acme"), execution("finished"), finish, at(5)).await;
    assert_eq!(end, Ok(ExecutionEnd::Done { count: 2, first: false }));
    let end = end_execution(store, session, tenant("acme"), execution("discarded"), finish, at(5)).await;
    assert_eq!(end, Ok(ExecutionEnd::Conflict(ExecutionState::Discarded)));
    let unknown = end_execution(store, session, tenant("acme"), execution("unknown"), finish, at(5)).await;
    assert_eq!(unknown, Ok(ExecutionEnd::Done { count: 0, first: true }));
    let late = store.accept(session, call(vec![draft().in_execution("unknown").send()], Some("unknown"))).await;
    assert_eq!(late, Ok(Accepted::Ended(ExecutionState::Finished)), "ended before it began");
}

async fn an_execution_lists_its_sends_in_call_order<S: Subject>() {
    let subject = S::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    assert_eq!(store.execution(tenant("acme"), execution("e"), None, 10).await, Ok(None));
    let draft = draft().in_execution("e");
    let mut ids = Vec::new();
    for (sends, hold) in [(3, Some("e")), (1, None), (2, Some("e"))] {
        let sends: Vec<_> = (0..sends).map(|_| draft.send()).collect();
        ids.extend(sends.iter().map(|send| send.id));
        accept_new(store, session, call(sends, hold)).await;
    }
    accept_one(store, session, &draft.clone().of("other")).await;
    store.finish(session, finished(ids[3], 200, at(1))).await.expect("ended");

    let mut seen = Vec::new();
    let mut cursor = None;
    loop {
        let page = store.execution(tenant("acme"), execution("e"), cursor, 4).await.unwrap().unwrap();
        assert_eq!((page.delivered, page.total, page.state), (1, 6, ExecutionState::Open));
        assert!(page.sends.len() <= 4);
        seen.extend(page.sends.into_iter().map(|record| (record.id, record.index)));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    let expected: Vec<_> = ids.iter().copied().zip((0..).map(Some)).collect();
    assert_eq!(seen, expected);
    let garbled = store.execution(tenant("acme"), execution("e"), Some("nonsense".to_owned()), 4).await;
    assert_eq!(garbled, Err(StoreError::BadCursor));
}

async fn executions_are_listed_by_their_first_send<S: Subject>() {
    let subject = S::fresh().await;
    let session = subject.session().clone();
    let of = |name: &str, second| draft().in_execution(name).created(at(second));
    let all = || ExecutionFilter::of(Reach::All);
    assert_eq!(subject.store().executions(all(), None, 10).await, Ok(ExecutionPage::default()));
    let store = subject.store();
    let w = |name, second| of(name, second).in_workflow("w");
    let first = accept_new(store, &session, call(vec![w("a", 0).send(), w("a", 0).send()], Some("a"))).await;
    assert_eq!(first, [Some(0), Some(1)]);
    let opened = [w("b", 1).send(), of("b", 1).send(), of("b", 1).send()];
    let ids = opened.each_ref().map(|send| send.id);
    accept_new(store, &session, call(opened.to_vec(), None)).await;
    accept_one(store, &session, &draft().created(at(2))).await;
    accept_one(store, &session, &of("a", 3).of("other")).await;
    accept_new(store, &session, call(vec![of("d", 4).send()], Some("d"))).await;
    // It stands where its first send does.
    accept_one(store, &session, &w("b", 5)).await;
    store.finish(&session, finished(ids[0], 200, at(6))).await.expect("ended");
    store.finish(&session, finished(ids[1], 500, at(6))).await.expect("ended");
    let end = async |name, ending, second| {
        end_execution(store, &session, tenant("acme"), execution(name), ending, at(second)).await.expect("ended")
    };
    end("a", Ending::Finish(FinishedBy::Call), 7).await;
    end("d", Ending::Discard, 8).await;
    // It has no sends.
    end("empty", Ending::Finish(FinishedBy::Call), 9).await;

    let acme = || ExecutionFilter::of(Reach::One(tenant("acme")));
    let asked = [
        (all(), "d other/a b a"),
        (acme(), "d b a"),
        (ExecutionFilter::of(Reach::One(tenant("nobody"))), ""),
        (ExecutionFilter { workflow: Some("w".to_owned()), ..all() }, "b a"),
        (ExecutionFilter { workflow: Some("v".to_owned()), ..all() }, ""),
        (ExecutionFilter { state: Some(ExecutionState::Open), ..acme() }, "b"),
        (ExecutionFilter { state: Some(ExecutionState::Finished), ..all() }, "a"),
        (ExecutionFilter { state: Some(ExecutionState::Discarded), ..all() }, "d"),
        (ExecutionFilter { since: Some(at(1)), ..acme() }, "d b"),
        (ExecutionFilter { since: Some(at(1)), until: Some(at(4)), ..acme() }, "b"),
    ];
    let check = async |store: &S::Store| {
        for (filter, expected) in &asked {
            let page = store.executions(filter.clone(), None, 10).await.expect("a page");
            let name = |one: &ExecutionSummary| match one.tenant.as_str() {
                "acme" => one.execution.to_string(),
                of => format!("{of}/{}", one.execution),
            };
            let found: Vec<String> = page.executions.iter().map(name).collect();
            assert_eq!((found.join(" ").as_str(), page.next), (*expected, None), "{filter:?}");
        }
        let page = store.executions(acme(), None, 10).await.expect("a page");
        let counts = page.executions.iter().map(|one| (one.delivered, one.done, one.total, one.finished_by));
        let by = Some(FinishedBy::Call);
        assert_eq!(counts.collect::<Vec<_>>(), [(0, 1, 1, None), (1, 2, 4, None), (0, 0, 2, by)]);
        let times = page.executions.iter().map(|one| (one.created_at, one.ended_at, one.workflow.as_deref()));
        let expected = [(at(4), Some(at(8)), None), (at(1), None, Some("w")), (at(0), Some(at(7)), Some("w"))];
        assert_eq!(times.collect::<Vec<_>>(), expected);
    };
    check(store).await;
    let mut cursor = None;
    let mut seen = Vec::new();
    loop {
        let page = store.executions(all(), cursor, 1).await.expect("a page");
        seen.extend(page.executions.iter().map(|one| one.created_at));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, [at(4), at(3), at(1), at(0)]);
    let garbled = store.executions(all(), Some("nonsense".to_owned()), 4).await;
    assert_eq!(garbled, Err(StoreError::BadCursor));
    let subject = subject.crash().await;
    check(subject.store()).await;
}

/// Whatever retention has dropped: by what each store keeps.
async fn executions_are_listed_as_long_as_a_send_of_them_is_left<S: Subject>() {
    let day = |days: i64| at(days * 24 * 3600);
    let mut subject = S::fresh().await;
    // They run for a month, a week and a day; one more of each name is another tenant's.
    let runs: [(&str, &str, &[i64]); 6] = [
        ("acme", "month", &[0, 1, 2, 10, 11, 25]),
        ("acme", "week", &[0, 4, 5, 7]),
        ("acme", "day", &[0, 0, 0]),
        ("acme", "other", &[12, 25]),
        ("bolt", "month", &[1, 25]),
        ("bolt", "week", &[9]),
    ];
    for today in 0..=25 {
        for (of, name, days) in runs {
            for _ in days.iter().filter(|&&day| day == today) {
                let draft = draft().of(of).in_execution(name).in_workflow(of).created(day(today));
                let id = accept_one(subject.store(), subject.session(), &draft).await;
                subject.store().finish(subject.session(), finished(id, 200, day(today))).await.expect("ended");
            }
        }
    }
    let check = async |subject: &S, when: &str| {
        let store = subject.store();
        for reach in [Reach::All, Reach::One(tenant("acme")), Reach::One(tenant("bolt"))] {
            // Whose sends are left, by their oldest.
            let mut wanted: Vec<(TenantId, ExecutionId, Timestamp, u64)> = Vec::new();
            let page = store.list(Filter::of(reach.clone()), None, 200).await.expect("a list");
            for record in page.sends.into_iter().rev() {
                let execution = record.context.execution.expect("each is of one");
                match wanted.iter_mut().find(|one| (&one.0, &one.1) == (&record.tenant, &execution)) {
                    Some(one) => one.3 += 1,
                    None => wanted.push((record.tenant, execution, record.created_at, 1)),
                }
            }
            wanted.reverse();
            for (of, name, _, sends) in &wanted {
                let (mut seen, mut cursor) = (0, None);
                loop {
                    let page = store.execution(of.clone(), name.clone(), cursor, 2).await.expect("a page");
                    let page = page.expect("it is there");
                    assert_eq!((page.total, page.delivered), (*sends, *sends), "{when}, {name}");
                    seen += page.sends.len() as u64;
                    cursor = page.next;
                    if cursor.is_none() {
                        break;
                    }
                }
                assert_eq!(seen, *sends, "{when}, {name}: each of its sends once");
            }
            for limit in [1, 2, 50] {
                let (mut found, mut cursor) = (Vec::new(), None);
                loop {
                    let filter = ExecutionFilter::of(reach.clone());
                    let page = store.executions(filter, cursor, limit).await.expect("a page");
                    assert!(page.executions.len() <= limit, "{when}");
                    let each = page.executions.into_iter();
                    found.extend(each.map(|one| (one.tenant, one.execution, one.created_at, one.total)));
                    cursor = page.next;
                    if cursor.is_none() {
                        break;
                    }
                }
                assert_eq!(found, wanted, "{when}, {reach:?}, {limit} a page");
            }
        }
        let of_bolt = ExecutionFilter { workflow: Some("bolt".to_owned()), ..ExecutionFilter::of(Reach::All) };
        let page = store.executions(of_bolt, None, 50).await.expect("a page");
        assert!(page.executions.iter().all(|one| one.tenant.as_str() == "bolt"), "{when}");
        assert!(!page.executions.is_empty(), "{when}");
    };
    check(&subject, "all of it").await;
    for days in [33, 36, 41] {
        subject.store().retain(day(days)).await.expect("retained");
        check(&subject, &format!("after {days} days")).await;
        subject = subject.crash().await;
        check(&subject, &format!("after {days} days, opened again")).await;
    }
    // What is gone has had its number.
    let later = draft().in_execution("month").created(day(41)).send();
    let indexes = accept_new(subject.store(), subject.session(), call(vec![later], None)).await;
    assert_eq!(indexes, [Some(6)]);
}

async fn a_page_counts_so_many_sends_of_executions_and_no_more<S: Subject>() {
    let subject = S::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    let each = crate::limits::LIST_LOOKED_AT_MAX;
    for name in ["a", "b"] {
        let draft = draft().in_execution(name);
        let sends = (0..each).map(|_| draft.send()).collect();
        accept_new(store, session, Accept { sends_per_execution: each as u32, ..call(sends, Some(name)) }).await;
    }
    let mut found = Vec::new();
    let mut cursor = None;
    for _ in 0..20 {
        let page = store.executions(ExecutionFilter::of(Reach::All), cursor, 50).await.expect("a page");
        found.extend(page.executions.into_iter().map(|one| (one.execution.to_string(), one.total)));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(cursor, None);
    assert_eq!(found, [("b".to_owned(), each as u64), ("a".to_owned(), each as u64)]);
}

async fn an_execution_takes_so_many_sends_and_no_more<S: Subject>() {
    let subject = S::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    let draft = draft().in_execution("e");
    let of =
        |count: usize| Accept { sends_per_execution: 5, ..call((0..count).map(|_| draft.send()).collect(), Some("e")) };
    assert_eq!(store.accept(session, of(6)).await, Ok(Accepted::ExecutionFull));
    accept_new(store, session, of(3)).await;
    assert_eq!(store.accept(session, of(3)).await, Ok(Accepted::ExecutionFull));
    assert_eq!(accept_new(store, session, of(2)).await, [Some(3), Some(4)], "what was refused took no index");
}

async fn a_call_with_a_known_key_is_replayed<S: Subject>() {
    let subject = S::fresh().await;
    let draft = draft().in_execution("e");
    let key = IdempotencyKey {
        tenant: tenant("acme"),
        path: "/v1/executions/e/sends".to_owned(),
        key: "k-1".to_owned(),
        fingerprint: [1; 32],
    };
    let keyed = |key: &IdempotencyKey, hold, at| Accept {
        idempotency: Some(key.clone()),
        ..call(vec![draft.clone().created(at).send(), draft.clone().created(at).send()], hold)
    };
    let calls = [keyed(&key, Some("e"), at(0)), keyed(&key, Some("e"), at(0))];
    let ids_of = |call: &Accept| call.sends.iter().map(|send| send.id).collect::<Vec<_>>();
    let ids = calls.each_ref().map(ids_of);
    assert_eq!(subject.store().replay(key.clone(), at(0)).await, Ok(None));
    // Two of the same at once are one call, whichever comes first.
    let (store, session) = (subject.store(), subject.session());
    let answers = futures_util::future::join_all(calls.map(|call| store.accept(session, call))).await;
    let first = usize::from(matches!(answers[0], Ok(Accepted::Replayed(_))));
    assert_eq!(answers[first], Ok(Accepted::New { indexes: vec![Some(0), Some(1)], started: Vec::new() }));
    assert_eq!(answers[1 - first], Ok(Accepted::Replayed(ids[first].clone())));
    let ids = ids[first].clone();

    let discard =
        end_execution(subject.store(), subject.session(), tenant("acme"), execution("e"), Ending::Discard, at(1)).await;
    assert_eq!(discard, Ok(ExecutionEnd::Done { count: 2, first: true }));
    let subject = subject.crash().await;
    let (store, session) = (subject.store(), subject.session());
    store.recover(session, at(2)).await.expect("recovered");
    let replayed = Ok(Accepted::Replayed(ids.clone()));
    assert_eq!(
        store.accept(session, keyed(&key, Some("e"), at(3))).await,
        replayed,
        "before the execution's end is looked at"
    );
    assert_eq!(store.replay(key.clone(), at(3)).await, Ok(Some(Accepted::Replayed(ids))));
    let changed = IdempotencyKey { fingerprint: [2; 32], ..key.clone() };
    assert_eq!(store.replay(changed.clone(), at(3)).await, Ok(Some(Accepted::Mismatch)));
    assert_eq!(store.accept(session, keyed(&changed, Some("e"), at(3))).await, Ok(Accepted::Mismatch));
    for elsewhere in [
        IdempotencyKey { tenant: tenant("other"), ..key.clone() },
        IdempotencyKey { path: "/v1/sends".to_owned(), ..key.clone() },
        IdempotencyKey { key: "k-2".to_owned(), ..key.clone() },
    ] {
        assert_eq!(store.replay(elsewhere, at(3)).await, Ok(None));
    }
    let a_day = i64::try_from(crate::limits::IDEMPOTENCY_KEPT.as_secs()).expect("fits");
    assert!(matches!(store.replay(key.clone(), at(a_day - 1)).await, Ok(Some(_))));
    assert_eq!(store.replay(key.clone(), at(a_day)).await, Ok(None), "forgotten after a day");
    let again = keyed(&key, None, at(a_day));
    let ids: Vec<_> = again.sends.iter().map(|send| send.id).collect();
    accept_new(store, session, again).await;
    assert_eq!(store.replay(key.clone(), at(a_day + 1)).await, Ok(Some(Accepted::Replayed(ids))));
}

async fn a_crash_interrupts_what_had_begun_and_nothing_else<S: Subject>() {
    let subject = S::fresh().await;
    let draft = draft();
    let (store, session) = (subject.store(), subject.session());
    let done = accept_one(store, session, &draft).await;
    let begun = accept_one(store, session, &draft).await;
    let queued = accept_one(store, session, &draft).await;
    for id in [done, begun] {
        begin_one(store, session, begin_of(id, &draft, at(1))).await.expect("begun");
    }
    let before = store.finish(session, finished(done, 200, at(1))).await.expect("ended");
    let subject = subject.crash().await;
    let (store, session) = (subject.store(), subject.session());
    let recovered = store.recover(session, at(7)).await.expect("recovered");
    assert_eq!((recovered.interrupted, recovered.discarded), (1, 0));
    assert!(recovered.some.iter().all(|id| *id == begun), "{recovered:?}");
    let record = record_of(store, begun).await;
    let ended = record.ended.expect("an end");
    assert_eq!((ended.outcome, ended.error.map(|error| error.code)), (Outcome::Interrupted, Some(Code::Interrupted)));
    assert_eq!((record.started_at, record.finished_at), (Some(at(1)), Some(at(7))));
    assert!(matches!(begin_one(store, session, begin_of(begun, &draft, at(8))).await, Err(StoreError::NoSuchSend)));
    assert_eq!(claimed(store, session).await, [queued]);
    assert_eq!(record_of(store, done).await.response.map(|answer| answer.status), Some(200));
    let newest = store.newest_place().await.expect("a place");
    assert!(newest > before, "the tail goes on where it was");
    assert_eq!(store.recover(session, at(9)).await, Ok(Recovered::default()), "nothing is left to do");
}

async fn a_crash_ends_the_held_sends_of_a_discarded_execution<S: Subject>() {
    let subject = S::fresh().await;
    let draft = draft().in_execution("e");
    let (store, session) = (subject.store(), subject.session());
    let held = draft.send();
    let id = held.id;
    accept_new(store, session, call(vec![held], Some("e"))).await;
    let beside = accept_one(store, session, &draft).await;
    end_execution(store, session, tenant("acme"), execution("e"), Ending::Discard, at(1)).await.expect("ended");
    let subject = subject.crash().await;
    let (store, session) = (subject.store(), subject.session());
    let recovered = store.recover(session, at(2)).await.expect("recovered");
    assert_eq!((recovered.interrupted, recovered.damage), (0, Vec::new()));
    let record = record_of(store, id).await;
    assert_eq!(record.ended.map(|ended| ended.outcome), Some(Outcome::Discarded));
    assert_eq!((record.released_at, record.started_at), (None, None));
    assert_eq!(record_of(store, beside).await.state, State::Queued, "it was never held");
}

async fn every_filter_finds_its_sends<S: Subject>() {
    let subject = S::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    let plain = accept_one(store, session, &draft()).await;
    let placed = Draft {
        context: Context {
            workflow: Some(Arc::from("w")),
            execution: Some(execution("e")),
            step: Some(Arc::from("s")),
            trace: None,
        },
        ..draft().to("https://other.example.com/").created(at(10))
    };
    let placed_id = accept_one(store, session, &placed).await;
    let foreign =
        accept_one(store, session, &placed.clone().of("other").to("http://[2001:db8::7]/").created(at(20))).await;
    let failing = accept_one(store, session, &draft().created(at(30))).await;
    store.finish(session, finished(placed_id, 503, at(40))).await.expect("ended");
    let mut elsewhere = finished(foreign, 200, at(50));
    elsewhere.connection = Some(left_from("10.0.0.11", "198.51.100.11"));
    store.finish(session, elsewhere).await.expect("ended");
    store.finish(session, failed(failing, Code::Timeout, at(60))).await.expect("ended");

    let all = || Filter::of(Reach::All);
    let ip = |text: &str| text.parse().ok();
    for (filter, expected) in [
        (all(), vec![failing, foreign, placed_id, plain]),
        (Filter { reach: Reach::One(tenant("acme")), ..all() }, vec![failing, placed_id, plain]),
        (Filter { reach: Reach::One(tenant("nobody")), ..all() }, vec![]),
        (Filter { workflow: Some("w".to_owned()), ..all() }, vec![foreign, placed_id]),
        (Filter { workflow: Some("e".to_owned()), ..all() }, vec![]),
        (Filter { execution: Some("e".to_owned()), ..all() }, vec![foreign, placed_id]),
        (Filter { step: Some("s".to_owned()), reach: Reach::One(tenant("other")), ..all() }, vec![foreign]),
        (Filter { host: Some(HostFilter::One("other.example.com".to_owned())), ..all() }, vec![placed_id]),
        (Filter { host: Some(HostFilter::One("2001:db8::7".to_owned())), ..all() }, vec![foreign]),
        (Filter { outcomes: vec![Outcome::Rejected], ..all() }, vec![placed_id]),
        (Filter { outcomes: vec![Outcome::Blocked], ..all() }, vec![]),
        (Filter { codes: vec![Code::Timeout], ..all() }, vec![failing]),
        (Filter { statuses: vec![StatusFilter::One(200)], ..all() }, vec![foreign]),
        (Filter { source_ip: ip("10.0.0.10"), ..all() }, vec![placed_id]),
        (Filter { source_ip: ip("198.51.100.11"), ..all() }, vec![foreign]),
        (Filter { source_ip: ip("198.51.100.12"), ..all() }, vec![]),
        (Filter { source_ip: ip("198.51.100.11"), public_only: true, ..all() }, vec![foreign]),
        (Filter { source_ip: ip("10.0.0.11"), public_only: true, ..all() }, vec![]),
        (Filter { since: Some(at(10)), ..all() }, vec![failing, foreign, placed_id]),
        (Filter { until: Some(at(10)), ..all() }, vec![plain]),
        (Filter { since: Some(at(10)), until: Some(at(30)), ..all() }, vec![foreign, placed_id]),
        // With a source, the bounds are those of the delivery's start.
        (Filter { source_ip: ip("10.0.0.10"), since: Some(at(40)), until: Some(at(41)), ..all() }, vec![placed_id]),
        (Filter { source_ip: ip("10.0.0.10"), since: Some(at(10)), until: Some(at(40)), ..all() }, vec![]),
        (Filter { workflow: Some("w".to_owned()), statuses: vec![StatusFilter::One(503)], ..all() }, vec![placed_id]),
        (Filter { workflow: Some("w".to_owned()), statuses: vec![StatusFilter::One(504)], ..all() }, vec![]),
        (Filter { outcomes: vec![Outcome::Rejected, Outcome::Failed], ..all() }, vec![failing, placed_id]),
        (Filter { codes: vec![Code::Timeout, Code::Expired], ..all() }, vec![failing]),
        (Filter { statuses: vec![StatusFilter::Class(5)], ..all() }, vec![placed_id]),
        (Filter { statuses: vec![StatusFilter::Class(2), StatusFilter::One(503)], ..all() }, vec![foreign, placed_id]),
        (Filter { statuses: vec![StatusFilter::Class(4)], ..all() }, vec![]),
        (Filter { state: Some(State::Done), ..all() }, vec![failing, foreign, placed_id]),
        (Filter { state: Some(State::Sending), ..all() }, vec![]),
        (Filter { state: Some(State::Queued), ..all() }, vec![plain]),
        (Filter { state: Some(State::Held), ..all() }, vec![]),
        (Filter { host: Some(HostFilter::Below("example.com".to_owned())), ..all() }, vec![failing, placed_id, plain]),
        (Filter { host: Some(HostFilter::Below("other.example.com".to_owned())), ..all() }, vec![]),
        (Filter { host: Some(HostFilter::Below("ample.com".to_owned())), ..all() }, vec![]),
        (Filter { method: Some(Method::Get), ..all() }, vec![]),
        (Filter { path: Some("/".to_owned()), outcomes: vec![Outcome::Delivered], ..all() }, vec![foreign]),
        (Filter { path: Some("/no".to_owned()), ..all() }, vec![]),
    ] {
        assert_eq!(listed(store, filter.clone()).await, expected, "{filter:?}");
    }
}

/// A filter that finds little costs its caller more pages.
async fn a_page_looks_at_so_many_sends_and_no_more<S: Subject>() {
    let subject = S::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    let rare = accept_one(store, session, &draft().to("https://a.example.com/rare")).await;
    for _ in 0..crate::limits::LIST_LOOKED_AT_MAX * 2 {
        accept_one(store, session, &draft().created(at(1))).await;
    }
    let filter = Filter { path: Some("/rare".to_owned()), ..Filter::of(Reach::All) };
    let mut pages = 0;
    let (mut cursor, mut found) = (None, Vec::new());
    loop {
        let page = store.list(filter.clone(), cursor, 50).await.expect("a page");
        found.extend(page.sends.into_iter().map(|record| record.id));
        pages += 1;
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(found, vec![rare]);
    assert!((2..6).contains(&pages), "{pages}");
}

async fn a_list_pages_while_sends_are_added<S: Subject>() {
    let subject = S::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    let mut ids = Vec::new();
    for _ in 0..23 {
        ids.push(accept_one(store, session, &draft().in_workflow("w")).await);
        accept_one(store, session, &draft().in_workflow("another")).await;
    }
    let filter = Filter { workflow: Some("w".to_owned()), ..Filter::of(Reach::All) };
    let mut seen = Vec::new();
    let mut cursor = None;
    loop {
        let page = store.list(filter.clone(), cursor, 5).await.expect("a page");
        seen.extend(page.sends.iter().map(|record| record.id));
        assert!(page.sends.iter().all(|record| record.request.body.as_ref().is_some_and(|body| body.bytes.is_none())));
        accept_one(store, session, &draft().in_workflow("w")).await;
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    ids.reverse();
    assert_eq!(seen, ids, "each once, newest first, and none that came later");
    for nonsense in ["", "x", "99999999999999999999", "l.1.2.3", "é"] {
        let page = store.list(Filter::of(Reach::All), Some(nonsense.to_owned()), 5).await;
        assert_eq!(page, Err(StoreError::BadCursor), "{nonsense:?}");
    }
}

async fn the_tail_follows_the_order_of_finishing<S: Subject>() {
    let subject = S::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    assert_eq!(store.newest_place().await, Ok(TailPlace::START));
    let mut ids = Vec::new();
    for name in ["a", "b", "a", "b", "a"] {
        ids.push(accept_one(store, session, &draft().of(name)).await);
    }
    let order = [ids[3], ids[0], ids[4], ids[1], ids[2]];
    let mut seqs = Vec::new();
    for id in order {
        seqs.push(store.finish(session, finished(id, 200, at(1))).await.expect("ended"));
    }
    assert!(seqs.is_sorted() && seqs[0] > TailPlace::START);
    let subject = subject.crash().await;
    let (store, session) = (subject.store(), subject.session());
    store.recover(session, at(2)).await.expect("recovered");
    assert_eq!(store.newest_place().await, Ok(seqs[4]));
    let (items, looked_at) = store.finished_after(TailPlace::START, Filter::of(Reach::All), 3).await.expect("a tail");
    let seen: Vec<_> = items.iter().map(|item| (item.place, item.record.id)).collect();
    assert_eq!(seen, [(seqs[0], order[0]), (seqs[1], order[1]), (seqs[2], order[2])]);
    assert_eq!(looked_at, seqs[2]);
    let only_b = Filter::of(Reach::One(tenant("b")));
    let (items, looked_at) = store.finished_after(seqs[0], only_b.clone(), 3).await.expect("a tail");
    assert_eq!(items.iter().map(|item| item.record.id).collect::<Vec<_>>(), [order[3]]);
    assert_eq!(looked_at, seqs[4]);
    let (items, looked_at) = store.finished_after(seqs[4], Filter::of(Reach::All), 3).await.expect("a tail");
    assert_eq!((items.len(), looked_at), (0, seqs[4]));
}

async fn outcomes_are_counted_per_tenant<S: Subject>() {
    let subject = S::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    for (name, status, second) in [("a", 200, 1), ("a", 200, 50), ("a", 500, 60), ("b", 204, 70), ("b", 200, 2)] {
        let id = accept_one(store, session, &draft().of(name)).await;
        store.finish(session, finished(id, status, at(second))).await.expect("ended");
    }
    // Of minutes: the one that begins at second 40 is the first of the hour then.
    let counts = store.outcomes_of_the_hour(at(40 + 59 * 60)).await.expect("counts");
    assert_eq!(counts.len(), 2);
    assert_eq!(counts[&tenant("a")], HashMap::from([(Outcome::Delivered, 1), (Outcome::Rejected, 1)]));
    assert_eq!(counts[&tenant("b")], HashMap::from([(Outcome::Delivered, 1)]));
}

async fn ends_are_counted_over_time<S: Subject>() {
    let subject = S::fresh().await;
    let session = subject.session().clone();
    let store = subject.store();
    let slot = SLOT_SECONDS;
    // 1,790,000,000 is 200 s into its five minutes, and 800 s into its quarter and its hour.
    let reach = |name: Option<&str>| name.map_or(Reach::All, |name| Reach::One(tenant(name)));
    let asked = |by, of: Option<&str>, bucket, since, until| {
        StatsAsked::of(reach(of), by, bucket, at(since), at(until)).expect("whole buckets")
    };
    let shown = async |store: &S::Store, asked: StatsAsked| -> Vec<String> {
        let stats = store.stats(asked).await.expect("counted");
        let group = |group: &Group| {
            let buckets = group.buckets.iter().map(|(slot, figures)| {
                let minutes = (slot * SLOT_SECONDS - at(0).as_second()).div_euclid(60);
                format!("{minutes}:{}/{}", figures.delivered, figures.count)
            });
            let buckets: Vec<String> = buckets.collect();
            let name = group.name.as_deref().unwrap_or("-");
            format!("{name} {}/{} {}", group.all.delivered, group.all.count, buckets.join(" "))
        };
        stats.groups.iter().map(group).collect()
    };
    assert!(shown(store, asked(By::Outcome, None, 1, 0, 900)).await.is_empty());
    let other = draft().of("other").to("https://other.example.com/");
    for (draft, status, second) in
        [(draft(), 200, 0), (draft(), 200, 1), (draft(), 500, 2), (other.clone(), 204, slot), (other, 200, 2 * slot)]
    {
        let id = accept_one(store, &session, &draft.created(at(0))).await;
        store.finish(&session, finished(id, status, at(second))).await.expect("ended");
    }
    let lost = accept_one(store, &session, &draft()).await;
    let end = failed(lost, Code::Timeout, at(2 * slot));
    let timings = Timings { total: Some(Duration::from_micros(5_014_300)), ..end.timings.clone() };
    let finished_at = at(2 * slot) + SignedDuration::from_micros(5_014_300);
    store.finish(&session, Finished { timings, finished_at, ..end }).await.expect("ended");
    let expired = accept_one(store, &session, &draft()).await;
    let end = Finished {
        timings: Timings::default(),
        started_at: None,
        finished_at: at(3 * slot),
        ..failed(expired, Code::Expired, at(0))
    };
    store.finish(&session, end).await.expect("ended");
    // One that nobody saw end, whatever the clock said when it was found.
    let unseen = accept_one(store, &session, &draft()).await;
    let end = Finished {
        timings: Timings::default(),
        finished_at: at(2 * slot),
        ..failed(unseen, Code::Interrupted, at(slot))
    };
    store.finish(&session, end).await.expect("ended");

    let check = async |store: &S::Store| {
        // A tier counts what is older than every open transaction, and other tests have theirs.
        let since = crate::clock::monotonic();
        while store.stats(asked(By::Outcome, None, 12, 0, 900)).await.expect("counted").all.count < 8 {
            assert!(since.elapsed() < Duration::from_secs(60), "what has ended is never counted");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for (asked, expected) in [
            (
                asked(By::Outcome, None, 1, 0, 900),
                vec![
                    "delivered 4/4 -4:2/2 1:1/1 6:1/1",
                    "expired 0/1 11:0/1",
                    "failed 0/1 6:0/1",
                    "interrupted 0/1 6:0/1",
                    "rejected 0/1 -4:0/1",
                ],
            ),
            (asked(By::Outcome, Some("other"), 1, 0, 900), vec!["delivered 2/2 1:1/1 6:1/1"]),
            (asked(By::Outcome, Some("nobody"), 1, 0, 900), vec![]),
            (
                asked(By::Host, None, 3, 0, 900),
                vec!["api.example.com 2/6 -14:2/3 1:0/3", "other.example.com 2/2 1:2/2"],
            ),
            (asked(By::Host, Some("acme"), 1, 600, 601), vec!["api.example.com 0/2 6:0/2"]),
            (asked(By::Tenant, None, 12, 0, 900), vec!["acme 2/6 -14:2/6", "other 2/2 -14:2/2"]),
            (asked(By::Tenant, Some("other"), 12, 0, 900), vec!["other 2/2 -14:2/2"]),
            (asked(By::Source, None, 12, 0, 900), vec!["198.51.100.10 4/5 -14:4/5", "- 0/3 -14:0/3"]),
            (asked(By::Outcome, None, 288, -90_000, -80_000), vec![]),
        ] {
            let label = format!("{asked:?}");
            let mut found = shown(store, asked).await;
            found.sort();
            let mut expected = expected;
            expected.sort_unstable();
            assert_eq!(found, expected, "{label}");
        }
        let stats = store.stats(asked(By::Outcome, None, 12, 0, 900)).await.expect("counted");
        assert_eq!((stats.all.count, stats.all.delivered), (8, 4));
        for (share, within) in [(0.5, 30.0..50.0), (0.99, 5_000.0..5_250.0)] {
            let told = stats.all.percentile(share).expect("some have a time");
            assert!(within.contains(&told), "{share}: {told}");
        }
        let unseen = stats.groups.iter().find(|group| group.name.as_deref() == Some("interrupted"));
        assert_eq!(unseen.and_then(|group| group.all.percentile(0.5)), None);
    };
    check(store).await;
    // Asking counts nothing twice.
    check(store).await;
    let subject = subject.crash().await;
    check(subject.store()).await;
}

async fn suspensions_are_kept_with_their_lifting<S: Subject>() {
    let subject = S::fresh().await;
    let suspension = |scope, second| Suspension {
        id: id_at(at(second)),
        scope,
        reason: "spam".to_owned(),
        by: "operations".to_owned(),
        at: at(second),
        lifted: None,
    };
    let of_tenant = suspension(SuspensionScope::Tenant { tenant: tenant("acme"), workflow: Some("w".to_owned()) }, 1);
    let of_host = suspension(SuspensionScope::Host { host: "victim.example.com".to_owned() }, 2);
    subject.store().suspend(of_tenant.clone()).await.expect("suspended");
    subject.store().suspend(of_host.clone()).await.expect("suspended");
    let subject = subject.crash().await;
    let store = subject.store();
    assert_eq!(store.suspensions().await, Ok(vec![of_host.clone(), of_tenant.clone()]));
    assert_eq!(store.lift(of_tenant.id, at(3), "someone".to_owned()).await, Ok(true));
    assert_eq!(store.lift(of_tenant.id, at(4), "someone else".to_owned()).await, Ok(false));
    assert_eq!(store.lift(id_at(at(0)), at(4), "someone".to_owned()).await, Ok(false));
    let lifted = Suspension { lifted: Some((at(3), "someone".to_owned())), ..of_tenant };
    let subject = subject.crash().await;
    assert_eq!(subject.store().suspensions().await, Ok(vec![of_host, lifted]));
}

async fn first_publication_is_remembered<S: Subject>() {
    let subject = S::fresh().await;
    let store = subject.store();
    let [one, two]: [IpAddr; 2] = ["198.51.100.10", "2001:db8::10"].map(|text| text.parse().expect("an address"));
    let published = store.publish(vec![one], None, at(10)).await.expect("published");
    assert_eq!((published.first_start, published.sync_token), (at(10), 0));
    assert_eq!(published.first, HashMap::from([(one, at(10))]));
    let second = |published: &Published| i64::try_from(published.sync_token).expect("fits") - at(0).as_second();
    let published = store.publish(vec![one], Some([1; 32]), at(20)).await.expect("published");
    assert_eq!(second(&published), 20);
    let subject = subject.crash().await;
    let store = subject.store();
    let published = store.publish(vec![two, one], Some([1; 32]), at(30)).await.expect("published");
    assert_eq!((published.first_start, second(&published)), (at(10), 20), "the same list keeps its token");
    assert_eq!(published.first, HashMap::from([(one, at(10)), (two, at(30))]));
    let published = store.publish(vec![one], Some([2; 32]), at(15)).await.expect("published");
    assert_eq!(second(&published), 21, "the clock stepped back, the token does not");
    assert_eq!(published.first.len(), 2, "an address that was taken out is still known");
    let third: IpAddr = "198.51.100.11".parse().expect("an address");
    let published = store.publish(vec![one, third], None, at(5)).await.expect("published");
    let known = HashMap::from([(one, at(10)), (two, at(30)), (third, at(5))]);
    assert_eq!((published.first_start, published.first), (at(10), known), "the first start's clock was ahead");
}

async fn a_closed_store_takes_nothing<S: Subject>() {
    let subject = S::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    let draft = draft();
    let id = accept_one(store, session, &draft).await;
    store.close().await.expect("closed");
    assert!(matches!(store.accept(session, call(vec![draft.send()], None)).await, Err(StoreError::CannotWrite(_))));
    assert!(matches!(begin_one(store, session, begin_of(id, &draft, at(1))).await, Err(StoreError::CannotWrite(_))));
    assert!(matches!(store.finish(session, finished(id, 200, at(1))).await, Err(StoreError::CannotWrite(_))));
    assert!(store.health().is_err());
    store.close().await.expect("closed already");
}
