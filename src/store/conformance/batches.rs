//! Batches: remembered whole, found again by who may see them, and told as open until they are done.

use super::*;
use crate::record::{Batch, BatchId, BatchState, InBatch, LeftOut};
use crate::send::{Event, Place};

fn place() -> Place {
    Place::S3 { bucket: "logs".into(), prefix: "orders".into() }
}

fn way() -> Destination {
    Destination { scheme: Scheme::Https, host: Host::Name("logs.s3.example.net".into()), port: 443 }
}

/// A draft's send as an event.
fn event(draft: &Draft) -> NewSend {
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
    an_event_is_claimed_with_its_place_and_ends_with_its_batch_unbegun::<S>().await;
    a_batch_reads_back_and_is_open_until_it_is_done::<S>().await;
}

async fn an_event_is_claimed_with_its_place_and_ends_with_its_batch_unbegun<S: Subject>() {
    for keeps_body in [true, false] {
        let mut subject = S::fresh().await;
        let given = event(&Draft { keeps_body, ..draft().created(at(5)) });
        let id = given.id;
        accept_new(subject.store(), subject.session(), call(vec![given.clone()], None)).await;
        assert_eq!(record_of(subject.store(), id).await.request, given.shown);
        // A life later it waits, and is claimed.
        subject = subject.crash().await;
        let (store, session) = (subject.store(), subject.session());
        let recovered = store.recover(session, at(6)).await.expect("recovered");
        assert_eq!(recovered.interrupted, 0);
        let want = Want { tenant: tenant("acme"), room: 10, full: Vec::new() };
        let claimed = store.claim(session, vec![want], 10).await.expect("claimed").sends;
        let [one] = &claimed[..] else { panic!("{claimed:?}") };
        assert_eq!((one.id, one.gathers.clone(), one.destination.clone()), (id, Some((place(), 12)), Some(way())));
        let specs = store.specs(vec![id, SendId(Uuid::from_u128(9))]).await;
        match specs {
            Ok(specs) => assert_eq!(specs, [Some(given.spec.clone()), None]),
            Err(error) => panic!("{error}"),
        }
        let batch = InBatch { id: BatchId::of(id, &tenant("acme"), &place()), closes_at: at(7) };
        let end = Finished { batch: Some(batch), ..finished(id, 200, at(8)) };
        store.finish(session, end).await.expect("ended");
        let record = record_of(store, id).await;
        assert_eq!((record.state, record.batch, record.started_at), (State::Done, Some(batch), Some(at(8))));
        assert_eq!(store.specs(vec![id]).await, Ok(vec![None]), "it has its end");
    }
}

async fn a_batch_reads_back_and_is_open_until_it_is_done<S: Subject>() {
    let subject = S::fresh().await;
    let (store, session) = (subject.store(), subject.session());
    let sends: Vec<SendId> = (1..4).map(|n| SendId(Uuid::from_u128(n))).collect();
    let mut batch = Batch {
        id: BatchId::of(sends[0], &tenant("acme"), &place()),
        tenant: tenant("acme"),
        place: place(),
        state: BatchState::Closed,
        opened_at: at(1),
        closes_at: at(61),
        sends,
        bytes: 36,
        tried: 0,
        attempts: Vec::new(),
        ended: None,
        left_out: Vec::new(),
    };
    let id = batch.id;
    assert_eq!(store.batch(Reach::All, id).await, Ok(None));
    store.put_batch(session, Arc::new(batch.clone())).await.expect("kept");
    assert_eq!(store.open_batches().await, Ok(vec![batch.clone()]));
    batch.tried = 2;
    let of_first = |status| Finished {
        batch: Some(InBatch { id, closes_at: at(61) }),
        ..finished(SendId(Uuid::from_u128(1)), status, at(62))
    };
    batch.attempts = vec![of_first(503), failed(SendId(Uuid::from_u128(1)), Code::Timeout, at(63))];
    store.put_batch(session, Arc::new(batch.clone())).await.expect("kept");
    let subject = subject.crash().await;
    let (store, session) = (subject.store(), subject.session());
    assert_eq!(store.open_batches().await, Ok(vec![batch.clone()]));
    assert_eq!(store.batch(Reach::One(tenant("other")), id).await, Ok(None));
    batch.attempts.push(of_first(200));
    (batch.tried, batch.ended) = (3, Some(of_first(200)));
    let of_third = Finished { batch: of_first(400).batch, ..finished(batch.sends[2], 400, at(62)) };
    batch.left_out = vec![LeftOut { sends: vec![batch.sends[2]], end: of_third }];
    store.put_batch(session, Arc::new(batch.clone())).await.expect("kept");
    assert_eq!(store.open_batches().await, Ok(vec![batch.clone()]), "its sends have no ends yet");
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
