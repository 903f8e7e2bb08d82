use super::*;
use crate::outcome::words::UnmadeCause;
use crate::record::{ShownBody, ShownResponse};
use crate::store::memory::Memory;
use crate::store::{OnceOnly, Records, Registry};

/// The end of a send that answered with so many bytes.
fn end(bytes: usize) -> Finished {
    let mut finished = unsent(SendId(uuid::Uuid::now_v7()), clock::wall(), None, UnmadeCause::Unreadable.failure());
    let body = ShownBody { bytes: Some(vec![0; bytes].into()), total: 0, truncated: false, sha256: None };
    let version = "HTTP/1.1".to_owned();
    finished.response = Some(ShownResponse { status: 200, version, headers: Vec::new(), body, declared: None });
    finished
}

#[tokio::test(start_paused = true)]
async fn ends_on_their_way_to_the_disk_are_bounded_by_their_bytes() {
    let store = Arc::new(Memory::new());
    let session = store.join(Arc::from("test")).await.expect("joined");
    let redactor = Redactor::new(store.redact_key(), &Default::default());
    let ledger = Ledger::new(store.clone(), session, redactor, Tracer::off());
    store.close().await.expect("closed");
    // The store takes nothing: what has room waits there, what has none waits before it.
    let each = limits::ENDS_BYTES / 8;
    for _ in 0..7 {
        let (ledger, finished) = (ledger.clone(), end(each));
        let room = tokio::time::timeout(Duration::from_secs(1), ledger.room(&finished)).await;
        assert!(room.is_ok(), "there is room");
        drop(room);
        tokio::spawn(async move { ledger.close(finished).await });
        tokio::task::yield_now().await;
    }
    let more = end(each);
    let waits = tokio::time::timeout(Duration::from_secs(3600), ledger.room(&more));
    assert!(waits.await.is_err(), "an eighth one has no room while the store is away");
    assert!(tokio::time::timeout(Duration::from_secs(1), ledger.room(&end(0))).await.is_ok());
}
