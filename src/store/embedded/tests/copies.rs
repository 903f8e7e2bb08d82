//! A restored copy: what waited in it ends `interrupted`, and nothing of it is ever claimed.

use super::*;
use crate::outcome::Outcome;

/// A store in which one send is done, one begun, one queued, one held, one released and one discarded.
async fn a_store_in_which_sends_wait(directory: &Path) -> Vec<SendId> {
    let store = Embedded::open(&settings(directory), conformance::NODE).expect("it opens");
    let session = joined_at_once(&store);
    let plain = draft();
    let [done, begun, queued] = [
        accept_one(&store, &session, &plain).await,
        accept_one(&store, &session, &plain).await,
        accept_one(&store, &session, &plain).await,
    ];
    for id in [done, begun] {
        begin_one(&store, &session, begin_of(id, &plain, at(1))).await.expect("begun");
    }
    store.finish(&session, finished(done, 200, at(1))).await.expect("ended");
    let mut ids = vec![done, begun, queued];
    for (name, ending) in
        [("open", None), ("finished", Some(Ending::Finish(FinishedBy::Call))), ("discarded", Some(Ending::Discard))]
    {
        let draft = draft().in_execution(name);
        let send = draft.send();
        ids.push(send.id);
        accept_new(&store, &session, call(vec![send], Some(name))).await;
        if let Some(ending) = ending {
            let _ended = end_execution(&store, &session, draft.tenant.clone(), execution(name), ending, at(2))
                .await
                .expect("ended");
        }
    }
    ids
}

async fn ends(store: &Embedded, ids: &[SendId]) -> Vec<Option<Outcome>> {
    let mut ends = Vec::new();
    for id in ids {
        let record = store.record(Reach::All, *id, false).await.expect("read").expect("there");
        ends.push(record.ended.map(|ended| ended.outcome));
    }
    ends
}

#[tokio::test]
async fn what_waits_in_a_copy_ends_interrupted_and_is_never_claimed() {
    use Outcome::{Delivered, Discarded, Interrupted};
    let all = [Delivered, Interrupted, Interrupted, Interrupted, Interrupted, Discarded].map(Some);
    for dies_before in [false, true] {
        let directory = tempfile::tempdir().expect("a directory");
        let ids = a_store_in_which_sends_wait(directory.path()).await;
        let settings = settings(directory.path());
        let copy = Embedded::open_copy(&settings, conformance::NODE).expect("it opens");
        // A process that dies before the ends are written leaves a copy behind, whatever the next one is told.
        let copy = if dies_before {
            drop(copy);
            Embedded::open(&settings, conformance::NODE).expect("it opens")
        } else {
            copy
        };
        let session = joined_at_once(&copy);
        let recovered = copy.recover(&session, at(7)).await.expect("recovered");
        // What was discarded had ended with its execution.
        assert_eq!((recovered.interrupted, recovered.discarded), (4, 0), "dies before: {dies_before}");
        assert_eq!(ends(&copy, &ids).await, all, "dies before: {dies_before}");
        assert!(claimed(&copy, &session).await.is_empty());
        // From here on it is a store like any other.
        let next = accept_one(&copy, &session, &draft()).await;
        drop(copy);
        let again = Embedded::open(&settings, conformance::NODE).expect("it opens");
        let session = joined_at_once(&again);
        assert_eq!(again.recover(&session, at(9)).await.expect("recovered").interrupted, 0);
        assert_eq!(ends(&again, &ids).await, all);
        assert_eq!(claimed(&again, &session).await, [next], "what was accepted since is made");
    }
}
