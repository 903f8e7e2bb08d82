#![allow(clippy::disallowed_methods, reason = "a paused clock says that nobody was woken")]

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::config::Config;
use crate::deliver::apart::Apart;
use crate::dial::Dialer;
use crate::intake::{Intake, Submit, Submitted};
use crate::ops::Readiness;
use crate::outcome::{Code, Outcome};
use crate::policy::{CheckedUrl, SelfAddrs, Suspensions};
use crate::publish::Notice;
use crate::record::{FinishedBy, Record, State};
use crate::redact::Redactor;
use crate::send::{Context, ExecutionId, HttpRequest, Method, SendId, SendSpec, Target, To};
use crate::store::memory::Memory;
use crate::store::{Ending, Reach, Store};
use crate::trace::Tracer;

/// A whole middle over the twin.
struct Middle {
    world: Arc<World>,
    ledger: Arc<Ledger>,
    backlog: Arc<Backlog>,
    dispatcher: Arc<Dispatcher>,
    intake: Arc<Intake>,
    _directory: tempfile::TempDir,
}

impl Middle {
    async fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(directory.path().join("ips.txt"), "127.0.0.11\n").expect("a writable directory");
        let text = "node = \"test\"\n[egress]\npublished = \"ips.txt\"\n[[egress.source]]\npublic = \"127.0.0.11\"\n\
                    [dns]\nservers = [\"127.0.0.1:1\"]\n";
        let config = Config::from_text(text, &directory.path().join("egressd.toml"), clock::wall());
        let config = Arc::new(config.expect("a configuration"));
        let world = World::new(config.clone(), &Notice::default(), SelfAddrs::default(), Suspensions::default());
        let store: Arc<dyn Store> = Arc::new(Memory::new());
        let session = store.join(Arc::from("test")).await.expect("joined");
        let ledger =
            Ledger::new(store.clone(), session, Redactor::new(store.redact_key(), &config.redact), Tracer::off());
        let backlog = Backlog::new(caps(&config));
        let deliverer = Deliverer::new(world.clone(), Dialer::prepare(&config).expect("trust"));
        let dispatcher = Dispatcher::new(world.clone(), backlog.clone(), ledger.clone(), deliverer);
        let intake = Intake::new(world.clone(), ledger.clone(), backlog.clone(), dispatcher.clone(), Apart::here());
        Self { world, ledger, backlog, dispatcher, intake, _directory: directory }
    }

    /// The policy blocks it without a look at the network.
    async fn submit(&self, sends: usize, hold: Option<&str>) -> Vec<Record> {
        let execution = hold.map(ExecutionId::new);
        let spec = || SendSpec {
            to: To::Http(HttpRequest {
                method: Method::Get,
                target: Target::Url(CheckedUrl::parse("http://169.254.169.254/").expect("a URL")),
                headers: Vec::new(),
                spelling: Default::default(),
                dropped_headers: Vec::new(),
                body: None,
            }),
            context: Context { execution: execution.clone(), ..Context::default() },
            expires_in: None,
        };
        let call = Submit {
            tenant: TenantId::new("acme"),
            sends: (0..sends).map(|_| spec()).collect(),
            hold: execution.clone(),
            idempotency: None,
            resend_of: None,
        };
        match self.intake.submit(call).await.expect("accepted") {
            Submitted::Accepted(records) => records,
            Submitted::Replayed(ids) => panic!("{ids:?}"),
        }
    }

    async fn record(&self, id: SendId) -> Record {
        self.ledger.store.record(Reach::All, id, false).await.expect("readable").expect("it is there")
    }

    /// Waits for its end as a caller with `?wait=` does.
    async fn ended(&self, id: SendId) -> Record {
        loop {
            let ticket = self.ledger.events.wait_for(id);
            let finished = ticket.finished();
            tokio::pin!(finished);
            finished.as_mut().enable();
            let record = self.record(id).await;
            if record.state == State::Done {
                return record;
            }
            tokio::time::timeout(Duration::from_secs(3600), finished).await.expect("nobody was woken by its end");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_loop_that_does_not_turn_is_not_ready() {
    let middle = Middle::new().await;
    let readiness = Readiness {
        world: middle.world.clone(),
        store: middle.ledger.store.clone(),
        intake: middle.intake.clone(),
        dispatcher: middle.dispatcher.clone(),
    };
    let stalled = || readiness.reasons().iter().any(|reason| reason.contains("stalled"));
    tokio::time::advance(limits::DISPATCH_STALLED_AFTER).await;
    assert!(!stalled(), "{:?}", readiness.reasons());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(stalled(), "{:?}", readiness.reasons());
    let (stop, stopped) = watch::channel(false);
    let running = tokio::spawn(middle.dispatcher.clone().run(stopped));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!stalled(), "it turns: {:?}", readiness.reasons());
    stop.send_replace(true);
    running.await.expect("it stops");
    tokio::time::advance(Duration::from_secs(60)).await;
    assert!(!stalled(), "who has stopped has not stalled");
}

#[tokio::test(start_paused = true)]
async fn sends_go_out_whichever_way_they_waited_and_who_waits_for_them_is_woken() {
    let middle = Middle::new().await;
    let before = middle.submit(3, None).await;
    assert!(before.iter().all(|record| record.state == State::Queued), "the loop does not run yet");
    let (_stop, stopped) = watch::channel(false);
    tokio::spawn(middle.dispatcher.clone().run(stopped));
    let held = middle.submit(700, Some("run")).await;
    for record in &before {
        let ended = middle.ended(record.id).await;
        assert_eq!(ended.ended.map(|ended| ended.outcome), Some(Outcome::Blocked));
    }
    let at_once = middle.submit(1, None).await;
    assert_eq!((at_once[0].state, at_once[0].started_at), (State::Sending, Some(at_once[0].created_at)));
    middle.ended(at_once[0].id).await;
    assert!(middle.record(held[0].id).await.state == State::Held);
    let (tenant, execution) = (TenantId::new("acme"), ExecutionId::new("run"));
    let finish = Ending::Finish(FinishedBy::Call);
    assert_eq!(middle.intake.end_execution(tenant, execution, finish).await, Ok(700));
    for record in &held {
        middle.ended(record.id).await;
    }
    assert_eq!(middle.ledger.store.waiting_in_all(), Default::default());
    assert!(middle.intake.tenants(&Reach::All).is_empty());
    assert_eq!(middle.backlog.lock().in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_woken_by_the_ends_that_the_store_gives() {
    let middle = Middle::new().await;
    let held = middle.submit(2, Some("run")).await;
    let (waiting, id) = (middle.ledger.events.wait_for(held[1].id), held[1].id);
    let woken = waiting.finished();
    tokio::pin!(woken);
    woken.as_mut().enable();
    let (tenant, execution) = (TenantId::new("acme"), ExecutionId::new("run"));
    assert_eq!(middle.intake.end_execution(tenant, execution, Ending::Discard).await, Ok(2));
    tokio::time::timeout(Duration::from_secs(3600), woken).await.expect("nobody was woken");
    assert_eq!(middle.record(id).await.ended.map(|ended| ended.outcome), Some(Outcome::Discarded));
}

#[tokio::test(start_paused = true)]
async fn a_send_that_the_store_does_not_let_begin_is_not_made() {
    let middle = Middle::new().await;
    let ids: Vec<SendId> = middle.submit(3, None).await.iter().map(|record| record.id).collect();
    // In the window, and by the store's account nobody's.
    middle.ledger.store.give_back(&middle.ledger.session, vec![ids[1]]).await.expect("given back");
    let (_stop, stopped) = watch::channel(false);
    tokio::spawn(middle.dispatcher.clone().run(stopped));
    for id in [ids[0], ids[2]] {
        middle.ended(id).await;
    }
    let refused = middle.record(ids[1]).await;
    assert_eq!((refused.state, refused.started_at), (State::Queued, None));
    // Who looks at what waits finds it.
    middle.ended(ids[1]).await;
    // Its place is taken back with a turn.
    middle.backlog.lock().turn(&middle.world.terms());
    assert_eq!(middle.backlog.lock().in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_name_another_has_begins_nothing_more() {
    let middle = Middle::new().await;
    let ids: Vec<SendId> = middle.submit(3, None).await.iter().map(|record| record.id).collect();
    let other = middle.ledger.store.join(Arc::from("test")).await.expect("joined");
    let (_stop, stopped) = watch::channel(false);
    tokio::spawn(middle.dispatcher.clone().run(stopped));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(middle.dispatcher.fenced());
    for id in ids {
        assert_eq!(middle.record(id).await.state, State::Queued);
    }
    let want = store::Want { tenant: TenantId::new("acme"), room: 9, full: Vec::new() };
    assert_eq!(middle.ledger.store.claim(&other, vec![want], 9).await.expect("in force").sends.len(), 3);
    assert_eq!(middle.backlog.lock().in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_panics_gives_its_slot_back_and_its_send_ends() {
    let middle = Middle::new().await;
    let id = middle.submit(1, None).await[0].id;
    let begin = Begin { id, tenant: TenantId::new("acme"), spec: None, at: clock::wall() };
    let answers = middle.ledger.store.begin(&middle.ledger.session, vec![begin]).await.expect("in force");
    let started = answers.into_iter().next().expect("an answer").expect("it waits");
    middle.backlog.decide(|flow| flow.start());
    let go = middle.backlog.lock().turn(&middle.world.terms()).begin.remove(0);
    let (slot, _) = go.take().expect("its slot");
    assert_eq!(middle.backlog.lock().in_flight(), 1);
    let since = Since { created_at: started.at(), released_at: started.at() };
    let unended = Unended::new(middle.dispatcher.clone(), id, since, started.at());
    let task = tokio::spawn(async move {
        let _held = (started, slot, unended);
        tokio::task::yield_now().await;
        panic!("a defect, made for this test");
    });
    assert!(task.await.is_err());
    let record = middle.ended(id).await;
    let error = record.ended.and_then(|ended| ended.error).expect("why");
    assert_eq!(error.code, Code::Internal);
    middle.backlog.lock().turn(&middle.world.terms());
    assert_eq!(middle.backlog.lock().in_flight(), 0);
}
