//! Everything accepted that has not begun, as this process sees it: the [`flow`](crate::flow) behind a lock that is
//! held for one decision at a time, and the bytes of what waits in memory. `intake` fills it, `dispatch` empties it.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::Notify;

use crate::config::Config;
use crate::files;
use crate::flow::Flow;
use crate::limits;
use crate::schedule::{Caps, HotSpec};
use crate::send::SendSpec;

/// How one tenant stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantBacklog {
    pub held: u64,
    pub queued: u64,
    pub in_flight: u64,
    pub oldest_queued: Option<Timestamp>,
}

pub struct Backlog {
    flow: Mutex<Flow>,
    /// A turn of the loop is worth taking.
    pub wake: Arc<Notify>,
    hot_bytes: Arc<AtomicU64>,
    hot_bytes_max: u64,
}

/// As configured, and no more than there are files for: then no tenant has more than half of them.
pub fn caps(config: &Config) -> Caps {
    let (wanted, most) = (config.delivery.in_flight, files::of_deliveries());
    let of_tenant = if wanted > most { most / 2 } else { most };
    Caps {
        in_flight: wanted.min(most),
        per_tenant: config.delivery.in_flight_per_tenant.min(of_tenant),
        per_destination: config.delivery.in_flight_per_tenant_destination,
    }
}

impl Backlog {
    pub fn new(caps: Caps) -> Arc<Self> {
        Self::with_room(caps, limits::HOT_BYTES_MAX)
    }

    fn with_room(caps: Caps, hot_bytes_max: u64) -> Arc<Self> {
        let wake = Arc::new(Notify::new());
        let waker = wake.clone();
        let flow = Flow::new(caps, Arc::new(move || waker.notify_one()));
        Arc::new(Self { flow: Mutex::new(flow), wake, hot_bytes: Arc::default(), hot_bytes_max })
    }

    /// One decision. The loop is woken where it leaves something to be done.
    pub fn decide<T>(&self, event: impl FnOnce(&mut Flow) -> T) -> T {
        let mut flow = self.lock();
        let answer = event(&mut flow);
        let due = flow.is_due();
        drop(flow);
        if due {
            self.wake.notify_one();
        }
        answer
    }

    /// For the loop itself, and for looking.
    pub fn lock(&self) -> MutexGuard<'_, Flow> {
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the spec in memory for its delivery, if there is room.
    pub fn keep_hot(&self, spec: &Arc<SendSpec>) -> Option<Arc<HotSpec>> {
        HotSpec::keep(spec, &self.hot_bytes, self.hot_bytes_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::CheckedUrl;
    use crate::send::{Context, HttpRequest, Method, Target, To};

    #[test]
    fn specs_kept_in_memory_stay_within_their_bytes() {
        let spec = Arc::new(SendSpec {
            to: To::Http(HttpRequest {
                method: Method::Post,
                target: Target::Url(CheckedUrl::parse("http://example.com/").expect("a URL")),
                headers: Vec::new(),
                spelling: Default::default(),
                dropped_headers: Vec::new(),
                body: Some(vec![0; 10_000].into()),
            }),
            context: Context::default(),
            expires_in: None,
        });
        let each = spec.footprint();
        let caps = Caps { in_flight: 1, per_tenant: 1, per_destination: 1 };
        let backlog = Backlog::with_room(caps, 3 * each + 1);
        let mut kept: Vec<_> = (0..10).map_while(|_| backlog.keep_hot(&spec)).collect();
        assert_eq!(kept.len(), 3);
        kept.pop();
        assert!(backlog.keep_hot(&spec).is_some(), "one was let go");
        assert_eq!(kept.len(), 2);
        let backlog = Backlog::new(caps);
        let kept: Vec<_> = (0..limits::HOT_BYTES_MAX / each + 10).map_while(|_| backlog.keep_hot(&spec)).collect();
        assert_eq!(kept.len() as u64, limits::HOT_BYTES_MAX / each);
    }
}
