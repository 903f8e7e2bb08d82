//! Destinations that asked for HTTP/1.1, and are offered nothing else for a while.
//!
//! A receiver that settles on HTTP/2 and then answers a request with HTTP_1_1_REQUIRED (RFC 9113 section 7; Apache and
//! IIS do so where a path wants a client certificate or Windows authentication) can never be reached over HTTP/2. Each
//! tenant finds that out for itself: what one of them knows tells another nothing, and pushes nothing of another's out.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::clock;
use crate::limits::{HTTP1_ONLY_KEPT, HTTP1_ONLY_PER_TENANT, HTTP1_ONLY_TENANTS_MAX};
use crate::policy::Destination;
use crate::send::TenantId;

/// One for the process.
#[derive(Debug, Default)]
pub struct Http1Only(Mutex<HashMap<TenantId, Vec<Asked>>>);

#[derive(Debug)]
struct Asked {
    destination: Destination,
    until: Instant,
}

impl Http1Only {
    pub fn holds(&self, tenant: &TenantId, destination: &Destination) -> bool {
        let known = self.lock();
        let Some(asked) = known.get(tenant) else { return false };
        let now = clock::monotonic();
        asked.iter().any(|asked| asked.destination == *destination && now < asked.until)
    }

    /// It has just asked.
    pub fn note(&self, tenant: &TenantId, destination: &Destination) {
        let now = clock::monotonic();
        let mut known = self.lock();
        if !known.contains_key(tenant) && known.len() == HTTP1_ONLY_TENANTS_MAX {
            // The last of each is its newest: whoever found nothing out for the longest time forgets.
            let oldest = known.iter().min_by_key(|(_, asked)| asked.last().map(|asked| asked.until));
            let oldest = oldest.map(|(tenant, _)| tenant.clone());
            oldest.map(|oldest| known.remove(&oldest));
        }
        let asked = known.entry(tenant.clone()).or_default();
        asked.retain(|asked| asked.destination != *destination && now < asked.until);
        if asked.len() == HTTP1_ONLY_PER_TENANT {
            asked.remove(0);
        }
        asked.push(Asked { destination: destination.clone(), until: now + HTTP1_ONLY_KEPT });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TenantId, Vec<Asked>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::policy::CheckedUrl;

    fn destination(host: &str) -> Destination {
        CheckedUrl::parse(&format!("https://{host}/")).unwrap().destination().clone()
    }

    fn tenant(number: usize) -> TenantId {
        TenantId::new(format!("t{number}"))
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_remembered_for_a_day_and_of_each_tenant_apart() {
        let known = Http1Only::default();
        let (one, other) = (destination("a.example.com"), destination("a.example.com:8443"));
        known.note(&tenant(1), &one);
        for (number, destination, holds) in [(1, &one, true), (1, &other, false), (2, &one, false)] {
            assert_eq!(known.holds(&tenant(number), destination), holds);
        }
        tokio::time::advance(HTTP1_ONLY_KEPT - Duration::from_secs(1)).await;
        assert!(known.holds(&tenant(1), &one));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!known.holds(&tenant(1), &one));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded_and_no_tenant_pushes_anothers_out() {
        let known = Http1Only::default();
        known.note(&tenant(0), &destination("a.example.com"));
        for number in 0..1_000 {
            known.note(&tenant(1), &destination(&format!("n{number}.example.com")));
        }
        assert_eq!(known.lock()[&tenant(1)].len(), HTTP1_ONLY_PER_TENANT);
        assert!(known.holds(&tenant(1), &destination("n999.example.com")));
        assert!(known.holds(&tenant(0), &destination("a.example.com")));
        for number in 2..2 * HTTP1_ONLY_TENANTS_MAX {
            tokio::time::advance(Duration::from_millis(1)).await;
            known.note(&tenant(number), &destination("a.example.com"));
        }
        assert_eq!(known.lock().len(), HTTP1_ONLY_TENANTS_MAX);
        assert!(known.holds(&tenant(2 * HTTP1_ONLY_TENANTS_MAX - 1), &destination("a.example.com")));
        assert!(!known.holds(&tenant(0), &destination("a.example.com")));
    }
}
