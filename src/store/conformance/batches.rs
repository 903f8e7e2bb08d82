//! Batches: remembered whole, found again by who may see them, and told as open until they are done.

use super::*;
use crate::policy::Suspensions;
use crate::record::{Batch, BatchId, BatchState, InBatch, LeftOut};
use crate::send::{Event, Kind, Place};

pub fn place() -> Place {
    Place::S3 { bucket: "logs".into(), prefix: "orders".into() }
}

fn way() -> Destination {
    Destination { scheme: Scheme::Https, host: Host::Name("logs.s3.example.net".into()), port: 443 }
}

/// A draft's send as an event.
pub fn event(draft: &Draft) -> NewSend {
    let mut new = draft.send();
    let payload = new.spec.body().cloned().expect("a payload");
    let event = Event::new(place(), way(), payload).expect("an event");
    new.spec = Arc::new(SendSpec { to: To::Event(event), ..(*new.spec).clone() });
    new.shown = ShownRequest {
        to: ShownTo::Event { place: place(), way: way() },
        headers: Vec::new(),
        spelling: Default::default(),
        dropped_headers: Vec::new(),
        body: new.shown.body,
    };
    new
}

/// Of a store that keeps batches.
pub async fn run<S: Subject>() {
    an_event_is_gathered_with_its_place_and_ends_with_its_batch_unbegun::<S>().await;
    a_batch_reads_back_and_is_open_until_it_is_done::<S>().await;
    what_a_batch_holds_ends_with_it_and_by_no_sweep::<S>().await;
    who_is_fenced_closes_and_ends_no_batch_and_who_comes_next_has_it_with_all_of_its_events::<S>().await;
}

/// What waits to be gathered is this session's, however the store hands it out; so are the batches that one before it left,
/// each with its events.
pub async fn take<S: Store>(store: &S, by: &Session) -> (Vec<Batch>, Vec<Pending>) {
    let left = store.take_left(by, Kind::ALL.to_vec()).await.expect("taken");
    let (mut batches, mut events) = (Vec::new(), left.events);
    for (batch, members) in left.batches {
        batches.push(batch);
        events.extend(members);
    }
    for batch in store.open_batches().await.expect("readable") {
        if !batches.contains(&batch) {
            batches.push(batch);
        }
    }
    let want = Want { tenant: tenant("acme"), room: 10, full: Vec::new() };
    events.extend(store.claim(by, vec![want], 10).await.expect("claimed").sends);
    events.sort_by_key(|pending| pending.id);
    (batches, events)
}

/// Events of one call that this session gathers, and the batch that they make.
pub async fn gathered<S: Store>(store: &S, by: &Session, count: usize) -> Batch {
    let events: Vec<NewSend> =
        (0..count).map(|_| NewSend { course: Course::Claim, ..event(&draft().created(at(1))) }).collect();
    let sends: Vec<SendId> = events.iter().map(|event| event.id).collect();
    accept_new(store, by, call(events, None)).await;
    Batch {
        id: BatchId::of(sends[0], &tenant("acme"), &place()),
        tenant: tenant("acme"),
        place: place(),
        state: BatchState::Closed,
        opened_at: at(1),
        closes_at: at(61),
        sends,
        bytes: 12 * count as u64,
        tried: 0,
        placed: Some("https://logs.s3.example.net:443/ us-east-1".into()),
        taken: Processed::No,
        attempts: Vec::new(),
        ended: None,
        left_out: Vec::new(),
    }
}

pub async fn close<S: Store>(store: &S, by: &Session, batch: &Batch) -> Result<Vec<SendId>, StoreError> {
    store.close_batch(by, Arc::new(batch.clone()), Duration::ZERO).await
}

/// A try, or an end, of this batch.
pub fn of_batch(batch: &Batch, id: SendId, status: u16) -> Finished {
    let named = InBatch { id: batch.id, closes_at: batch.closes_at, taken: Processed::No };
    Finished { batch: Some(named), ..finished(id, status, at(62)) }
}

async fn an_event_is_gathered_with_its_place_and_ends_with_its_batch_unbegun<S: Subject>() {
    for keeps_body in [true, false] {
        let mut subject = S::fresh().await;
        let given = event(&Draft { keeps_body, ..draft().created(at(5)) });
        let id = given.id;
        accept_new(subject.store(), subject.session(), call(vec![given.clone()], None)).await;
        assert_eq!(record_of(subject.store(), id).await.request, given.shown);
        // A life later it waits, and is gathered.
        subject = subject.crash().await;
        let (store, session) = (subject.store(), subject.session());
        let recovered = store.recover(session, at(6)).await.expect("recovered");
        assert_eq!(recovered.interrupted, 0);
        let taken = take(store, session).await.1;
        let [one] = &taken[..] else { panic!("{taken:?}") };
        assert_eq!((one.id, one.gathers.clone(), one.destination.clone()), (id, Some((place(), 12)), Some(way())));
        let specs = store.specs(vec![id, SendId(Uuid::from_u128(9))]).await;
        match specs {
            Ok(specs) => assert_eq!(specs, [Some(given.spec.clone()), None]),
            Err(error) => panic!("{error}"),
        }
        let waiting = store.waiting_of(&tenant("acme"));
        assert_eq!((waiting.held, waiting.queued, waiting.unclaimed), (0, 1, 0));
        let batch =
            InBatch { id: BatchId::of(id, &tenant("acme"), &place()), closes_at: at(7), taken: Processed::Maybe };
        let end = Finished { batch: Some(batch), ..finished(id, 200, at(8)) };
        store.finish(session, end).await.expect("ended");
        let record = record_of(store, id).await;
        assert_eq!((record.state, record.batch, record.started_at), (State::Done, Some(batch), Some(at(8))));
        assert_eq!(store.specs(vec![id]).await, Ok(vec![None]), "it has its end");
        assert_eq!(store.waiting_of(&tenant("acme")), WaitingCount::default());
    }
}

async fn a_batch_reads_back_and_is_open_until_it_is_done<S: Subject>() {
    let subject = S::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    let mut batch = gathered(store, session, 3).await;
    let (id, first) = (batch.id, batch.sends[0]);
    assert_eq!(store.batch(Reach::All, id).await, Ok(None));
    assert_eq!(close(store, session, &batch).await, Ok(batch.sends.clone()));
    assert_eq!(store.may_carry(session, id).await, Ok(()));
    assert_eq!(store.open_batches().await, Ok(vec![batch.clone()]));
    (batch.tried, batch.taken) = (2, Processed::Maybe);
    batch.attempts = vec![of_batch(&batch, first, 503), failed(first, Code::Timeout, at(63))];
    store.put_batch(session, Arc::new(batch.clone())).await.expect("kept");
    let subject = subject.crash().await;
    let (store, session) = (subject.store(), subject.session());
    let (left, events) = take(store, session).await;
    assert_eq!(left, [batch.clone()]);
    let ids = |events: &[Pending]| events.iter().map(|pending| pending.id).collect::<Vec<_>>();
    assert_eq!(ids(&events), batch.sends, "and all of its events");
    let (again, events) = take(store, session).await;
    assert_eq!((again, ids(&events)), (left, Vec::new()), "once");
    assert_eq!(store.batch(Reach::One(tenant("other")), id).await, Ok(None));
    batch.attempts.push(of_batch(&batch, first, 200));
    (batch.tried, batch.ended) = (3, Some(of_batch(&batch, first, 200)));
    let refused = of_batch(&batch, batch.sends[2], 400);
    batch.left_out = vec![LeftOut { sends: vec![batch.sends[2]], end: refused }];
    store.put_batch(session, Arc::new(batch.clone())).await.expect("kept");
    assert_eq!(store.open_batches().await, Ok(vec![batch.clone()]), "its sends have no ends yet");
    for send in &batch.sends {
        store.finish(session, of_batch(&batch, *send, 200)).await.expect("ended");
    }
    batch.state = BatchState::Done;
    for _ in 0..2 {
        store.put_batch(session, Arc::new(batch.clone())).await.expect("kept");
        assert_eq!(store.open_batches().await, Ok(Vec::new()));
    }
    assert_eq!(store.batch(Reach::One(tenant("acme")), id).await, Ok(Some(batch.clone())));
    // Past its retention, counted by whole days.
    let days = |days: i64| batch.closes_at.saturating_add(SignedDuration::from_hours(24 * days)).expect("a time");
    store.retain(days(1)).await.expect("retained");
    assert!(store.batch(Reach::All, id).await.expect("readable").is_some());
    store.retain(days(40)).await.expect("retained");
    assert_eq!(store.batch(Reach::All, id).await, Ok(None));
}

/// Not by one that comes before whoever is to try it again has claimed it, either.
async fn what_a_batch_holds_ends_with_it_and_by_no_sweep<S: Subject>() {
    let mut subject = S::fresh().await;
    let mut batch = gathered(subject.store(), subject.session(), 3).await;
    close(subject.store(), subject.session(), &batch).await.expect("closed");
    batch.taken = Processed::Maybe;
    subject.store().put_batch(subject.session(), Arc::new(batch.clone())).await.expect("kept");
    subject = subject.crash().await;
    let (store, session) = (subject.store(), subject.session());
    store.recover(session, at(64)).await.expect("recovered");
    let swept = store.expire(session, at(40 * 24 * 3600), 10).await.expect("swept");
    assert_eq!(swept.ended, []);
    let mut suspensions = Suspensions::default();
    suspensions.tenants.insert(tenant("acme"), Arc::from("spam"));
    let swept = store.end_suspended(session, Arc::new(suspensions), None, at(65), 10).await.expect("swept");
    assert_eq!(swept.ended, []);
    let (left, events) = take(store, session).await;
    let ids: Vec<SendId> = events.iter().map(|pending| pending.id).collect();
    assert_eq!((left, ids), (vec![batch.clone()], batch.sends));
}

async fn who_is_fenced_closes_and_ends_no_batch_and_who_comes_next_has_it_with_all_of_its_events<S: Subject>() {
    let subject = S::fresh().await;
    let (store, first) = (subject.store(), subject.session());
    let mut batch = gathered(store, first, 3).await;
    let second = store.join(Arc::from(NODE)).await.expect("joined");
    assert_eq!(close(store, first, &batch).await, Err(StoreError::Fenced(first.to_string())));
    let ids = |events: &[Pending]| events.iter().map(|pending| pending.id).collect::<Vec<_>>();
    let (left, events) = take(store, &second).await;
    assert_eq!((left, ids(&events)), (Vec::new(), batch.sends.clone()), "they gather anew");
    assert_eq!(close(store, &second, &batch).await, Ok(batch.sends.clone()));
    let third = store.join(Arc::from(NODE)).await.expect("joined");
    let (left, events) = take(store, &third).await;
    assert_eq!((left, ids(&events)), (vec![batch.clone()], batch.sends.clone()), "as it was closed");
    let ended = Batch { ended: Some(of_batch(&batch, batch.sends[0], 500)), ..batch.clone() };
    let fenced = || Err(StoreError::Fenced(second.to_string()));
    assert_eq!(store.put_batch(&second, Arc::new(ended)).await, fenced());
    assert_eq!(close(store, &second, &batch).await.map(drop), fenced());
    batch.ended = Some(of_batch(&batch, batch.sends[0], 200));
    store.put_batch(&third, Arc::new(batch.clone())).await.expect("kept");
    for send in &batch.sends {
        store.finish(&third, of_batch(&batch, *send, 200)).await.expect("ended");
        assert_eq!(store.finish(&third, of_batch(&batch, *send, 200)).await, Err(StoreError::NoSuchSend), "once");
        assert_eq!(record_of(store, *send).await.response.map(|response| response.status), Some(200));
    }
    batch.state = BatchState::Done;
    store.put_batch(&third, Arc::new(batch.clone())).await.expect("kept");
    assert_eq!(store.batch(Reach::All, batch.id).await, Ok(Some(batch)));
}
