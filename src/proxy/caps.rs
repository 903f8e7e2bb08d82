//! How many tunnels there may be at once: in all, of one tenant, and of one tenant to one host and port.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::policy::{Destination, Host};
use crate::send::TenantId;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Most {
    pub all: u32,
    pub of_tenant: u32,
    pub of_destination: u32,
}

/// Which of them was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    All(u32),
    OfTenant(u32),
    OfDestination(u32),
}

/// Who has how many. One for the process.
#[derive(Debug, Default)]
pub struct Caps(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    all: u32,
    tenants: HashMap<TenantId, OfTenant>,
}

#[derive(Debug, Default)]
struct OfTenant {
    all: u32,
    destinations: HashMap<Place, u32>,
}

type Place = (Host, u16);

/// A tunnel's place in all three counts, until it is dropped.
#[derive(Debug)]
pub struct Permit {
    held: Arc<Mutex<Held>>,
    tenant: TenantId,
    place: Place,
}

impl Caps {
    pub fn take(&self, tenant: &TenantId, destination: &Destination, most: Most) -> Result<Permit, Full> {
        let place = (destination.host.clone(), destination.port);
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = held.tenants.get(tenant);
        if own.and_then(|own| own.destinations.get(&place)).is_some_and(|count| *count >= most.of_destination) {
            return Err(Full::OfDestination(most.of_destination));
        }
        if own.is_some_and(|own| own.all >= most.of_tenant) {
            return Err(Full::OfTenant(most.of_tenant));
        }
        if held.all >= most.all {
            return Err(Full::All(most.all));
        }
        held.all += 1;
        let own = held.tenants.entry(tenant.clone()).or_default();
        own.all += 1;
        *own.destinations.entry(place.clone()).or_default() += 1;
        drop(held);
        Ok(Permit { held: self.0.clone(), tenant: tenant.clone(), place })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.all -= 1;
        let Some(own) = held.tenants.get_mut(&self.tenant) else { return };
        own.all -= 1;
        if let Some(count) = own.destinations.get_mut(&self.place) {
            *count -= 1;
            if *count == 0 {
                own.destinations.remove(&self.place);
            }
        }
        if own.all == 0 {
            held.tenants.remove(&self.tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::CheckedUrl;

    #[test]
    fn each_cap_is_met_by_itself_and_a_place_comes_back() {
        let caps = Caps::default();
        let most = Most { all: 4, of_tenant: 3, of_destination: 2 };
        let take = |tenant: &str, to: &str| {
            let url = CheckedUrl::parse(&format!("http://{to}/")).unwrap();
            caps.take(&TenantId::new(tenant), url.destination(), most)
        };
        let mut held = vec![take("a", "one.net").unwrap(), take("a", "one.net").unwrap()];
        assert_eq!(take("a", "one.net").unwrap_err(), Full::OfDestination(2));
        // Another port is another place.
        held.push(take("a", "one.net:81").unwrap());
        assert_eq!(take("a", "two.net").unwrap_err(), Full::OfTenant(3));
        held.push(take("b", "one.net").unwrap());
        assert_eq!(take("b", "one.net").unwrap_err(), Full::All(4));
        held.remove(0);
        held.push(take("a", "one.net").unwrap());
        drop(held);
        let left = caps.0.lock().unwrap();
        assert!(left.all == 0 && left.tenants.is_empty(), "{left:?}");
    }
}
