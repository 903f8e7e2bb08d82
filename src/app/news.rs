//! What other processes do on the same store, brought to those who wait for it here.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use crate::dispatch::Dispatcher;
use crate::intake::Intake;
use crate::ledger::Ledger;
use crate::store::{News, StoreError};

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
            Some(News::Suspensions) => intake.suspended_elsewhere().await,
            Some(News::Fenced) => dispatcher.fence(&StoreError::Fenced(ledger.session.to_string())),
        }
    }
}
