//! TLS sessions that may be resumed: each tenant's apart from the others', and only so many.
//!
//! What a session takes is chosen by the receiver (its ticket, the certificates it showed), and how many it offers as
//! well. So they are counted, per server, per tenant and in all; where there is no room the oldest of the tenant that
//! has the most goes, and no tenant empties what others have. One that is gone costs a full handshake. Lives as long as
//! the trust it was made under.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;

use crate::limits::{TLS_SESSIONS, TLS_SESSIONS_PER_SERVER, TLS_SESSIONS_PER_TENANT};
use crate::send::TenantId;

#[derive(Clone, Default)]
pub struct Sessions(Arc<Mutex<Kept<Session>>>);

impl Sessions {
    /// What one tenant's handshakes resume and leave behind.
    pub fn of(&self, tenant: &TenantId) -> Resumption {
        Resumption::store(Arc::new(OfTenant { tenant: tenant.clone(), kept: self.0.clone() }))
    }
}

/// What is remembered of a server; a session of TLS 1.3 is used once.
enum Session {
    Group(NamedGroup),
    Tls12(Tls12ClientSessionValue),
    Tls13(Tls13ClientSessionValue),
}

struct OfTenant {
    tenant: TenantId,
    kept: Arc<Mutex<Kept<Session>>>,
}

impl OfTenant {
    fn kept(&self) -> MutexGuard<'_, Kept<Session>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, server: ServerName<'static>, session: Session) {
        self.kept().add(&self.tenant, server, session);
    }

    fn take(&self, server: &ServerName<'_>, which: fn(&Session) -> bool) -> Option<Session> {
        self.kept().take(&self.tenant, server, which)
    }

    fn look<T>(&self, server: &ServerName<'_>, which: impl Fn(&Session) -> Option<T>) -> Option<T> {
        self.kept().of(&self.tenant).rev().filter(|(of, _)| of == server).find_map(|(_, session)| which(session))
    }
}

fn is_group(session: &Session) -> bool {
    matches!(session, Session::Group(_))
}

fn is_tls12(session: &Session) -> bool {
    matches!(session, Session::Tls12(_))
}

fn is_tls13(session: &Session) -> bool {
    matches!(session, Session::Tls13(_))
}

impl ClientSessionStore for OfTenant {
    fn set_kx_hint(&self, server: ServerName<'static>, group: NamedGroup) {
        self.take(&server, is_group);
        self.add(server, Session::Group(group));
    }

    fn kx_hint(&self, server: &ServerName<'_>) -> Option<NamedGroup> {
        self.look(server, |session| if let Session::Group(group) = session { Some(*group) } else { None })
    }

    fn set_tls12_session(&self, server: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.take(&server, is_tls12);
        self.add(server, Session::Tls12(value));
    }

    fn tls12_session(&self, server: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.look(server, |session| if let Session::Tls12(value) = session { Some(value.clone()) } else { None })
    }

    fn remove_tls12_session(&self, server: &ServerName<'static>) {
        self.take(server, is_tls12);
    }

    fn insert_tls13_ticket(&self, server: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.add(server, Session::Tls13(value));
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        match self.take(server, is_tls13) {
            Some(Session::Tls13(value)) => Some(value),
            _ => None,
        }
    }
}

impl fmt::Debug for OfTenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OfTenant").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

/// Of each tenant, the oldest first.
struct Kept<S> {
    tenants: HashMap<TenantId, VecDeque<(ServerName<'static>, S)>>,
    count: usize,
}

impl<S> Default for Kept<S> {
    fn default() -> Self {
        Self { tenants: HashMap::new(), count: 0 }
    }
}

impl<S> Kept<S> {
    fn of(&self, tenant: &TenantId) -> impl DoubleEndedIterator<Item = &(ServerName<'static>, S)> {
        self.tenants.get(tenant).into_iter().flatten()
    }

    fn add(&mut self, tenant: &TenantId, server: ServerName<'static>, session: S) {
        let of_tenant = self.tenants.entry(tenant.clone()).or_default();
        let oldest_of_server = of_tenant.iter().position(|(of, _)| *of == server);
        let of_server = of_tenant.iter().filter(|(of, _)| *of == server).count();
        let goes = if of_server >= TLS_SESSIONS_PER_SERVER {
            oldest_of_server.and_then(|oldest| of_tenant.remove(oldest))
        } else if of_tenant.len() >= TLS_SESSIONS_PER_TENANT {
            of_tenant.pop_front()
        } else {
            None
        };
        of_tenant.push_back((server, session));
        self.count += 1 - usize::from(goes.is_some());
        if self.count > TLS_SESSIONS {
            self.make_room();
        }
    }

    fn make_room(&mut self) {
        let most = self.tenants.iter().max_by_key(|(_, kept)| kept.len()).map(|(tenant, _)| tenant.clone());
        if let Some(tenant) = most {
            self.remove(&tenant, 0);
        }
    }

    /// The newest.
    fn take(&mut self, tenant: &TenantId, server: &ServerName<'_>, which: fn(&S) -> bool) -> Option<S> {
        let of_tenant = self.tenants.get(tenant)?;
        let index = of_tenant.iter().rposition(|(of, session)| of == server && which(session))?;
        self.remove(tenant, index)
    }

    fn remove(&mut self, tenant: &TenantId, index: usize) -> Option<S> {
        let of_tenant = self.tenants.get_mut(tenant)?;
        let (_, session) = of_tenant.remove(index)?;
        if of_tenant.is_empty() {
            self.tenants.remove(tenant);
        }
        self.count -= 1;
        Some(session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(number: usize) -> TenantId {
        TenantId::new(format!("t{number}"))
    }

    fn server(number: usize) -> ServerName<'static> {
        ServerName::try_from(format!("s{number}.example.com")).expect("a name")
    }

    fn counts(kept: &Kept<usize>) -> HashMap<&TenantId, usize> {
        assert_eq!(kept.count, kept.tenants.values().map(VecDeque::len).sum::<usize>());
        assert!(kept.tenants.values().all(|of_tenant| !of_tenant.is_empty()));
        kept.tenants.iter().map(|(tenant, of_tenant)| (tenant, of_tenant.len())).collect()
    }

    #[test]
    fn a_server_offers_as_many_as_it_likes_and_the_newest_are_kept() {
        let mut kept = Kept::default();
        kept.add(&tenant(0), server(1), 1_000);
        for number in 0..10 * TLS_SESSIONS {
            kept.add(&tenant(0), server(0), number);
        }
        assert_eq!(counts(&kept)[&tenant(0)], TLS_SESSIONS_PER_SERVER + 1);
        assert_eq!(kept.take(&tenant(0), &server(1), |_| true), Some(1_000), "another server's is where it was");
        for number in (0..10 * TLS_SESSIONS).rev().take(TLS_SESSIONS_PER_SERVER) {
            assert_eq!(kept.take(&tenant(0), &server(0), |_| true), Some(number));
        }
        assert_eq!(kept.take(&tenant(0), &server(0), |_| true), None);
        assert_eq!((counts(&kept).len(), kept.count), (0, 0), "a tenant of whom there is nothing takes nothing");
    }

    #[test]
    fn a_tenant_reaches_as_many_servers_as_it_likes_and_others_keep_theirs() {
        let mut kept = Kept::default();
        kept.add(&tenant(0), server(0), 0);
        for loud in 1..=100 {
            for number in 0..2 * TLS_SESSIONS_PER_TENANT {
                kept.add(&tenant(loud), server(number), number);
                assert!(kept.count <= TLS_SESSIONS);
                assert!(kept.tenants[&tenant(loud)].len() <= TLS_SESSIONS_PER_TENANT);
            }
        }
        let counts = counts(&kept);
        assert_eq!((kept.count, counts[&tenant(0)]), (TLS_SESSIONS, 1));
        // Shared evenly, whoever came last.
        let (least, most) = (TLS_SESSIONS / 101, TLS_SESSIONS_PER_TENANT);
        assert!((1..=100).all(|loud| (least..=most).contains(&counts[&tenant(loud)])), "{counts:?}");
        assert_eq!(kept.take(&tenant(0), &server(0), |_| true), Some(0));
        assert_eq!(kept.take(&tenant(0), &server(1), |_| true), None, "nobody is given another's");
    }

    #[test]
    fn what_is_taken_is_the_newest_of_its_kind_and_server() {
        let mut kept = Kept::default();
        for number in 0..4 {
            kept.add(&tenant(0), server(number % 2), number);
        }
        let odd = |number: &usize| number % 2 == 1;
        assert_eq!(kept.take(&tenant(0), &server(0), odd), None);
        assert_eq!(kept.take(&tenant(0), &server(1), odd), Some(3));
        assert_eq!(kept.take(&tenant(1), &server(1), odd), None);
        assert_eq!(kept.of(&tenant(0)).map(|(_, number)| *number).collect::<Vec<_>>(), [0, 1, 2]);
    }
}
