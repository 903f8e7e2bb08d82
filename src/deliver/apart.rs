//! Work whose size a peer chooses, on threads of its own.
//!
//! A TLS handshake computes what the receiver's certificates ask for in one go, and no timer turns on its thread
//! meanwhile. So handshakes are made here, in turns by tenant as everything else is: whoever waits for one may stop
//! waiting at any moment, and a deadline ends its delivery on time whatever this does. What is left of the work then
//! is dropped over here.

use std::panic::resume_unwind;
use std::sync::{Arc, OnceLock};

use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::turns::Turns;
use crate::send::TenantId;

/// One for the process. Its threads are started with the first work, as many as there are processors: the kernel
/// shares those fairly between these and the ones that mostly sleep.
#[derive(Debug, Default)]
pub struct Apart {
    turns: Arc<Turns>,
    /// `None`: threads could not be had.
    runtime: OnceLock<Option<Runtime>>,
}

impl Apart {
    /// The work, done elsewhere; dropping this drops it.
    pub async fn run<F>(&self, tenant: &TenantId, work: F) -> F::Output
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let work = self.turns.take(tenant, Box::pin(work));
        let Some(runtime) = self.runtime.get_or_init(start) else { return work.await };
        let mut task = Task(runtime.spawn(work));
        match (&mut task.0).await {
            Ok(output) => output,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // The process ends.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

fn start() -> Option<Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread().thread_name("handshakes").build();
    runtime
        .inspect_err(|error| tracing::error!(%error, "no threads for TLS handshakes: they share those of deliveries"))
        .ok()
}

impl Drop for Apart {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take().flatten() {
            // Without waiting, which must not be done on a thread of another runtime.
            runtime.shutdown_background();
        }
    }
}

struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;
    use crate::deadline::Deadline;

    fn tenant() -> TenantId {
        TenantId::new("a")
    }

    #[tokio::test]
    async fn a_deadline_ends_what_waits_for_work_that_never_gives_its_thread_back() {
        let apart = Apart::default();
        let (release, released) = mpsc::channel::<()>();
        let (gone, dropped) = tokio::sync::oneshot::channel::<()>();
        let work = async move {
            let _gone = gone;
            // Held up in the middle of a turn, as by a verification without end.
            let _ = released.recv();
            tokio::task::yield_now().await;
        };
        let deadline = Deadline::start(Duration::from_millis(20));
        // One thread has this runtime: the timer fires because the work is not on it.
        assert!(deadline.bound(apart.run(&tenant(), work)).await.is_none());
        drop(release);
        assert!(dropped.await.is_err(), "what was left is dropped over there");
    }

    #[tokio::test]
    async fn what_comes_of_the_work_comes_back_a_panic_too() {
        let apart = Apart::default();
        assert_eq!(apart.run(&tenant(), async { 7 }).await, 7);
        let whose = tenant();
        let panics = std::panic::AssertUnwindSafe(apart.run(&whose, async { panic!("in the middle") }));
        assert!(panics.catch_unwind().await.is_err());
        assert_eq!(apart.run(&tenant(), async { 8 }).await, 8);
    }
}
