//! Work whose size a peer chooses, on threads of its own.
//!
//! A TLS handshake computes what the peer's certificates ask for in one go, and a large call is read, redacted and
//! answered in a few; no timer turns on their thread meanwhile, and no other caller is answered. So they are made here,
//! in turns by tenant as everything else is: whoever waits for one may stop waiting at any moment, and a deadline ends
//! its delivery on time whatever this does. What is left of the work then is dropped over here.

use std::panic::resume_unwind;
use std::sync::{Arc, OnceLock};

use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::turns::Turns;
use crate::limits::INLINE_BYTES;
use crate::send::TenantId;

/// One for deliveries, one for calls and one for callers' handshakes, so that none waits for another's. Its threads are
/// started with the first work, as many as there are processors: the kernel shares those fairly between these and the
/// ones that mostly sleep.
#[derive(Debug)]
pub struct Apart {
    /// Of its threads.
    name: &'static str,
    turns: Arc<Turns>,
    /// `None`: threads could not be had.
    runtime: OnceLock<Option<Runtime>>,
}

impl Apart {
    pub fn new(name: &'static str) -> Self {
        Self { name, turns: Arc::default(), runtime: OnceLock::new() }
    }

    /// Without threads of its own: whoever waits for the work does it. For tests whose clock goes on when nothing runs
    /// on their own thread.
    #[cfg(test)]
    pub fn here() -> Self {
        Self { name: "here", turns: Arc::default(), runtime: OnceLock::from(None) }
    }

    /// Work that grows with so many bytes: done elsewhere where they are many, at once where they are few.
    pub async fn on<T: Send + 'static>(
        &self,
        bytes: usize,
        tenant: &TenantId,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        if bytes <= INLINE_BYTES {
            return work();
        }
        self.run(tenant, async { work() }).await
    }

    /// The work, done elsewhere; dropping this drops it.
    pub async fn run<F>(&self, tenant: &TenantId, work: F) -> F::Output
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let work = self.turns.take(tenant, Box::pin(work));
        let Some(runtime) = self.runtime.get_or_init(|| start(self.name)) else { return work.await };
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

fn start(name: &str) -> Option<Runtime> {
    // Time is what a caller's stream may want to wait by; nothing that has to be on time waits here.
    let runtime = tokio::runtime::Builder::new_multi_thread().thread_name(name).enable_time().build();
    runtime
        .inspect_err(
            |error| tracing::error!(%error, name, "no threads for what takes long: it shares those of deliveries"),
        )
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
        let apart = Apart::new("test");
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
        let apart = Apart::new("test");
        assert_eq!(apart.run(&tenant(), async { 7 }).await, 7);
        let whose = tenant();
        let panics = std::panic::AssertUnwindSafe(apart.run(&whose, async { panic!("in the middle") }));
        assert!(panics.catch_unwind().await.is_err());
        assert_eq!(apart.run(&tenant(), async { 8 }).await, 8);
    }
}
