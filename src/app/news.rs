//! What other processes do on the same store, brought to those who wait for it here.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::dispatch::Dispatcher;
use crate::intake::Intake;
use crate::ledger::Ledger;
use crate::store::{News, StoreError};

/// How often the ends that somebody waits for are looked for, beside the tail that tells of them: that is told in order, so
/// it stands while any transaction of the database is open.
const WAITS_LOOK: Duration = Duration::from_millis(75);

/// Until the process stops. On its own: a database that does not answer holds up no news.
pub async fn look_for_ends(ledger: Arc<Ledger>, mut stopped: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(WAITS_LOOK) => {}
            _ = stopped.wait_for(|stopped| *stopped) => return,
        }
        let waited_for = ledger.events.waited_for();
        // One that cannot be asked is asked again.
        if !waited_for.is_empty()
            && let Ok(done) = ledger.store.done_among(waited_for).await
        {
            done.into_iter().for_each(|id| ledger.events.is_done(id));
        }
    }
}

/// Until the process stops.
pub async fn follow(
    mut news: mpsc::Receiver<News>,
    intake: Arc<Intake>,
    dispatcher: Arc<Dispatcher>,
    ledger: Arc<Ledger>,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        let told = tokio::select! {
            told = news.recv() => told,
            _ = stopped.wait_for(|stopped| *stopped) => return,
        };
        match told {
            None => return,
            Some(News::Ended(ends)) => ends.into_iter().for_each(|(id, place)| ledger.events.finished(id, place)),
            Some(News::Closed(ends)) => ledger.closed_by_store(&ends),
            Some(News::Waiting(_)) => dispatcher.look(),
            Some(News::Handed) => dispatcher.take_handed(),
            Some(News::Suspensions) => intake.suspended_elsewhere().await,
            Some(News::Fenced) => dispatcher.fence(&StoreError::Fenced(ledger.session.to_string())),
        }
    }
}
