//! `[proxy]`: the forward proxy's listener, and what each tunnel may take.

use std::net::SocketAddr;

use super::super::Proxy;
use super::{Callers, DAY, Duration, Mutual, SECOND, Setting, Surroundings, Table, limits, listener, wrong};

impl<'a, 'r> Surroundings<'a, 'r> {
    /// The proxy is there when its table is.
    pub(super) fn proxy(&self, table: Table<'a, 'r>, callers: Callers) -> Option<(Proxy, Setting<SocketAddr>)> {
        let listen = table.text("listen", SocketAddr::from(([127, 0, 0, 1], 8703)), listener);
        let tls = table.table("tls");
        let tls = tls.is_written().then(|| self.listener_tls(tls, Mutual::Possible)).flatten();
        let connect_deadline = table.duration(
            "connect_deadline",
            limits::PROXY_CONNECT_DEADLINE,
            Duration::from_millis(10)..=limits::DEADLINE_MAX,
        );
        let idle = table.duration("idle", limits::PROXY_IDLE, SECOND..=DAY);
        let lifetime = table.duration("lifetime", limits::PROXY_LIFETIME, SECOND..=7 * DAY);
        let all = table.count("tunnels", limits::TUNNELS, 1..=limits::TUNNELS_MAX);
        let of_tenant = table
            .count("tunnels_per_tenant", limits::TUNNELS_PER_TENANT, 1..=limits::TUNNELS_MAX)
            .or_default(limits::TUNNELS_PER_TENANT.min(all.value));
        let of_destination = table
            .count("tunnels_per_tenant_destination", limits::TUNNELS_PER_TENANT_DESTINATION, 1..=limits::TUNNELS_MAX)
            .or_default(limits::TUNNELS_PER_TENANT_DESTINATION.min(of_tenant.value));
        let plain_http = table.flag("plain_http", true);
        let verify_sni = table.flag("verify_sni", true);
        self.at_most(&of_tenant, "tunnels", &all, |n| n.to_string());
        self.at_most(&of_destination, "tunnels_per_tenant", &of_tenant, |n| n.to_string());
        let local = listen.value.ip().to_canonical().is_loopback();
        if table.is_written() && callers == Callers::OfThisHost && !local && !listen.broken {
            let detail = format!("{} is open to more than this host, and there is no [[api.client]]", listen.value);
            let fix = "add one with the scope \"proxy\", or listen on 127.0.0.1";
            self.reader.note(&listen.place, wrong(detail, fix));
        }
        let written = table.is_written();
        table.finish();
        let proxy = Proxy {
            listen: listen.value,
            tls,
            connect_deadline: connect_deadline.value,
            idle: idle.value,
            lifetime: lifetime.value,
            tunnels: all.value,
            tunnels_per_tenant: of_tenant.value,
            tunnels_per_tenant_destination: of_destination.value,
            plain_http: plain_http.value,
            verify_sni: verify_sni.value,
        };
        written.then_some((proxy, listen))
    }
}
