//! The forward proxy: tunnels (CONNECT, RFC 9110 section 9.3.6) for code that needs its answer, over the same policy and
//! the same dial as sends.
//!
//! A request goes through these steps: who asks ([`who`]), where to ([`target`]), whether there is room ([`caps`]), then the
//! way there, judged, looked up, judged again and connected within one deadline ([`way`]); and the bytes, both ways
//! ([`relay`]), the first of them looked at ([`hello`]). What is refused at any of them is told in the words of a send's record, and its connection is closed
//! ([`refusal`]): nothing that came behind it is read as a request. Requests for absolute http URLs go the same way, and are
//! made once each ([`forward`]).
//!
//! That a tunnel was opened and how it ended is in the store a moment later ([`records`]). Nothing of a send's depends on
//! any of it: it runs on threads of its own, its lookups wait for each other alone, and a share of each source's ports is
//! left to sends. Nothing but `app` and `cli` knows this module.

mod caps;
mod forward;
mod hello;
pub mod lingering;
mod metrics;
mod records;
mod refusal;
pub mod relay;
mod target;
mod way;
mod who;

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::body::Body;
use bytes::Bytes;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use self::caps::{Caps, Most, Permit};
use self::forward::Exchange;
use self::lingering::Lingering;
use self::metrics::Metrics;
use self::records::Recorder;
use self::refusal::{Refusal, Why};
use self::relay::{Carried, Client, End, Relay, Terms};
use self::way::Journey;
use crate::api::access::{Caller, Need};
use crate::api::seats::{Begun, Bounds, Presence};
use crate::api::serve::explained::Explained;
use crate::api::serve::{Peer, Served, serve_on};
use crate::clock;
use crate::config::{Config, Proxy as ProxySettings};
use crate::deadline::Deadline;
use crate::deliver::Deliverer;
use crate::deliver::apart::Apart;
use crate::dial::Dialer;
use crate::dial::connect::Connected;
use crate::dial::wire::Wire;
use crate::doors::tls::Acceptor;
use crate::files;
use crate::limits;
use crate::outcome::words::ConnectCause;
use crate::outcome::{Failure, tame};
use crate::policy::{Asker, CheckedUrl};
use crate::record::{Tunnel, TunnelEnded};
use crate::send::TenantId;
use crate::source::Source;
use crate::store::Store;
use crate::world::{InForce, World};

/// The front, one for the process.
pub struct Proxy {
    world: Arc<World>,
    dialer: Dialer,
    caps: Caps,
    metrics: Metrics,
    records: Arc<Recorder>,
    /// When a cap was met by a tenant last, so that it was remembered.
    capped: Mutex<HashMap<TenantId, Instant>>,
    /// No more begin.
    draining: AtomicBool,
    tunnels: TaskTracker,
    /// By what those that are open were judged last.
    judged_by: ArcSwap<InForce>,
    /// What the tunnels that are open listen to.
    call: watch::Sender<Call>,
}

/// What all open tunnels are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Call {
    /// Counts up: the rules are others.
    rules: u64,
    /// The time that a drain gives is over.
    over: bool,
}

impl Proxy {
    /// After the metrics recorder is installed.
    pub fn new(world: Arc<World>, deliverer: &Deliverer, store: Arc<dyn Store>) -> Arc<Self> {
        let judged_by = ArcSwap::from_pointee(world.in_force());
        Arc::new(Self {
            world,
            dialer: deliverer.dialer().beside(),
            caps: Caps::default(),
            metrics: Metrics::new(),
            records: Arc::new(Recorder::new(store)),
            capped: Mutex::default(),
            draining: AtomicBool::new(false),
            tunnels: TaskTracker::new(),
            judged_by,
            call: watch::Sender::new(Call::default()),
        })
    }

    /// Serves until `closing` turns `true`. Tunnels go on, until they end or [`Self::end_by`] ends them.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        tls: Option<Arc<Acceptor>>,
        closing: watch::Receiver<bool>,
    ) {
        let all = files::of_callers(limits::PROXY_CONNECTIONS);
        let strangers = limits::PROXY_STRANGERS.min(all / 2);
        let strangers_of_network = limits::PROXY_STRANGERS_OF_NETWORK.min(strangers / 2);
        let recording = tokio::spawn(self.records.clone().run(closing.clone()));
        let served = Served {
            name: "[proxy] listen",
            bounds: Bounds { all, strangers, strangers_of_network },
            handshakes: Apart::new("tunnel-tls"),
            builder: builder(),
            service: Front(self),
        };
        serve_on(served, Lingering::new, listener, tls, closing).await;
        let _ = recording.await;
    }

    /// Looks whether what tunnels were judged by is still in force, and forgets what is out of date. Called every
    /// [`crate::limits::TEND_EVERY`].
    pub fn tend(&self) {
        self.dialer.tend();
        let now = clock::monotonic();
        self.capped().retain(|_, at| now.duration_since(*at) < limits::TUNNEL_CAPPED_NOTED_EVERY);
        let in_force = self.world.in_force();
        if !in_force.is(&self.judged_by.load()) {
            self.judged_by.store(Arc::new(in_force));
            self.call.send_modify(|call| call.rules += 1);
        }
    }

    /// What follows a reload.
    pub fn reload(&self) {
        self.dialer.forget_names();
        self.tend();
    }

    /// No more tunnels begin.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.tunnels.close();
    }

    /// How many tunnels there are, those that are being opened among them.
    pub fn open(&self) -> usize {
        self.tunnels.len()
    }

    /// Ready when no tunnel is left, and all of them are remembered: at `at` those that are open then are ended.
    pub async fn end_by(&self, at: Instant) {
        let ended = tokio::select! {
            () = self.tunnels.wait() => true,
            () = tokio::time::sleep_until(at) => false,
        };
        if !ended {
            self.call.send_modify(|call| call.over = true);
            tokio::select! {
                () = self.tunnels.wait() => {}
                () = tokio::time::sleep(limits::TUNNEL_END) => {}
            }
        }
        if let Err(error) = self.records.write().await {
            tracing::error!(%error, "how the last tunnels ended is not remembered");
        }
    }

    /// Who asks for what, and its place.
    fn admit(
        &self,
        request: &Request<Incoming>,
        config: &Config,
        settings: &ProxySettings,
    ) -> Result<Admitted, Refusal> {
        let (caller, tenant) = who::admit(request.headers(), config)?;
        let presence = request.extensions().get::<Arc<Presence>>().cloned();
        if presence.as_ref().is_some_and(|presence| !presence.admit(&caller.key())) {
            return Err(Refusal::no_place());
        }
        let under_way = presence.as_ref().map(Presence::begin);
        let url = match *request.method() {
            Method::CONNECT => {
                target::without_content(request.headers())?;
                target::of_connect(request.uri())?
            }
            Method::TRACE => return Err(Refusal::not_taken(request.method())),
            _ if settings.plain_http => forward::target(request.uri())?,
            _ => return Err(Refusal::not_taken(request.method())),
        };
        if self.draining.load(Ordering::Acquire) {
            return Err(Refusal::draining());
        }
        let all = files::of_tunnels(settings.tunnels, config.delivery.in_flight);
        let most = Most {
            all,
            // No tenant has all of them where there are few.
            of_tenant: files::in_proportion(settings.tunnels_per_tenant, settings.tunnels, all),
            of_destination: settings.tunnels_per_tenant_destination,
        };
        self.records.admits(&tenant)?;
        let permit = self.caps.take(&tenant, url.destination(), most).map_err(|full| {
            let refusal = Refusal::from(full);
            let client = request.extensions().get::<Peer>().map(|peer| peer.0);
            self.remember_capped(client, &tenant, &url, &refusal);
            refusal
        })?;
        Ok(Admitted { caller, tenant, url, permit, under_way })
    }

    async fn answer(self: Arc<Self>, mut request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let judged_by = self.world.in_force();
        let config = self.world.config();
        // The process that has no such table has no such listener; a reload cannot take it away.
        let Some(settings) = &config.proxy else { return Err(Refusal::draining()) };
        let client = request.extensions().get::<Peer>().map(|peer| peer.0);
        let Admitted { caller, tenant, url, permit, under_way } =
            self.admit(&request, &config, settings).inspect_err(|refusal| {
                self.metrics.ended(End::Refused, refusal.code());
                // Without what a URL may hold before its host.
                let host = request.uri().host().map(|host| tame(host, limits::ECHO_CHARS_MAX));
                let (port, code) = (request.uri().port_u16(), refusal.code());
                tracing::info!(client = client.map(tracing::field::display), host, port, code, "no tunnel");
            })?;
        let token = self.tunnels.token();
        let mut opening = Opening {
            proxy: self.clone(),
            id: Uuid::now_v7(),
            client,
            caller,
            judged_by,
            tenant,
            url,
            permit,
            journey: Journey::default(),
            begun: clock::monotonic(),
            begun_at: clock::wall(),
            tunnel: None,
            is_over: false,
        };
        let connected = match self.open_way(&mut opening, settings.connect_deadline).await {
            Ok(connected) => connected,
            Err(refusal) => {
                opening.end(End::Refused, Some(refusal.why()));
                return Err(refusal);
            }
        };
        self.metrics.connected(opening.begun.elapsed());
        let mut tunnel = self.remembered(&opening);
        tunnel.source = Some(connected.local.ip());
        (tunnel.public, tunnel.remote) = (Some(connected.source.public()), Some(connected.remote));
        self.records.note(tunnel.clone());
        opening.tunnel = Some(tunnel);
        let sni = settings.verify_sni.then(|| opening.url.destination().host.clone());
        let terms = Terms { idle: settings.idle, until: opening.begun + settings.lifetime, sni };
        let Connected { wire, source, remote, .. } = connected;
        let mut open = Open { opening, source, remote, terms };
        if *request.method() == Method::CONNECT {
            let upgrade = hyper::upgrade::on(&mut request);
            let proxy = self.clone();
            // A task of its own: the connection's ends with the answer, or goes on with others (HTTP/2), as one in use.
            tokio::spawn(async move {
                let _counted = (token, under_way);
                proxy.carry(open, wire, upgrade).await;
            });
            return Ok(Response::new(Body::empty()));
        }
        let url = open.opening.url.clone();
        let refused = |failure: &Failure| Refusal::failed(failure, &url);
        let forward = match forward::open(wire, &config.limits).await {
            Ok(forward) => forward,
            Err(failure) => {
                open.opening.end(End::Reset, Some(failure.clone().into()));
                return Err(refused(&failure));
            }
        };
        let (answer, exchange) = forward.send(request, &url);
        let proxy = self.clone();
        tokio::spawn(async move {
            let _counted = token;
            proxy.forward(open, exchange).await;
        });
        let answer = answer.await.map_err(|failure| refused(&failure))?;
        Ok(forward::arriving(answer, under_way))
    }

    async fn open_way(&self, opening: &mut Opening, within: Duration) -> Result<Connected, Refusal> {
        let deadline = Deadline::start(within);
        let asker = Asker { tenant: &opening.tenant, workflow: None };
        let opened = way::open(&self.world, &self.dialer, asker, &opening.url, &mut opening.journey);
        let opened = deadline.bound(Box::pin(opened)).await;
        let failed = match opened {
            // All of that took its time.
            Some(Ok(_)) if self.is_revoked(opening) => return Err(Refusal::revoked()),
            Some(Ok(connected)) => return Ok(connected),
            Some(Err(failure)) => failure,
            None => opening.journey.ran_out(&opening.url, within),
        };
        Err(Refusal::failed(&failed, &opening.url))
    }

    /// Everything of a tunnel after its `200`.
    async fn carry(&self, mut open: Open, wire: Wire, upgrade: OnUpgrade) {
        let gauge = self.metrics.open_from(&open.source);
        let (mut end, mut why) = (End::Reset, None);
        // One that hung up before it had its answer has no tunnel.
        if let Some((client, early)) = upgrade.await.ok().map(client_of) {
            let mut relay = Relay::new(client, wire, early, open.terms.clone(), self.metrics.bytes());
            (end, why) = self.attend(&open, relay.run()).await;
            if end == End::Refused {
                why = why.or_else(|| Some(relay.refused(&open.opening.url).into()));
            }
            let server_name = relay.server_name().map(str::to_owned);
            open.opening.carried(relay.finish(end), server_name);
        }
        drop(gauge);
        open.opening.end(end, why);
    }

    /// Everything of a forwarded request after its connection was made.
    async fn forward(&self, mut open: Open, mut exchange: Exchange) {
        let gauge = self.metrics.open_from(&open.source);
        let host = open.opening.url.destination().host.text().into_owned();
        let (end, why) = self.attend(&open, exchange.run(&open.terms, &host)).await;
        if let Some(failure) = why.as_ref().and_then(|why| why.failure.as_deref()) {
            exchange.cut_short(failure.clone());
        }
        let (carried, unanswered) = exchange.settle().await;
        let bytes = self.metrics.bytes();
        bytes.up.increment(carried.up);
        bytes.down.increment(carried.down);
        open.opening.carried(carried, None);
        drop(gauge);
        open.opening.end(end, why.or_else(|| unanswered.map(Why::from)));
    }

    /// Looks after what is open until it has ended by itself, or is no longer allowed, or the process ends.
    async fn attend(&self, open: &Open, running: impl Future<Output = End>) -> (End, Option<Why>) {
        let mut call = self.call.subscribe();
        // What was said before it listened is in force already.
        let mut is_judged = self.world.in_force().is(&open.opening.judged_by);
        let mut running = std::pin::pin!(running);
        loop {
            if call.borrow_and_update().over {
                return (End::Drained, None);
            }
            if !is_judged && let Some(why) = self.no_longer(&open.opening, &open.source, open.remote) {
                return (End::Refused, Some(why));
            }
            is_judged = false;
            tokio::select! {
                biased;
                end = &mut running => return (end, None),
                told = call.changed() => if told.is_err() {
                    return (End::Drained, None);
                },
            }
        }
    }

    /// Its token was taken away, or what it may, since it was opened.
    fn is_revoked(&self, opening: &Opening) -> bool {
        !self.world.in_force().is(&opening.judged_by)
            && !opening.caller.may_still(&self.world.config(), Need::Proxy, &opening.tenant)
    }

    /// Why this tunnel may not be any more, by what is in force now.
    fn no_longer(&self, opening: &Opening, source: &Source, remote: SocketAddr) -> Option<Why> {
        if self.is_revoked(opening) {
            return Some(Refusal::revoked().why());
        }
        let asker = Asker { tenant: &opening.tenant, workflow: None };
        let Journey { aliases, resolved, .. } = &opening.journey;
        let addresses: Vec<_> = resolved.iter().map(|(address, _)| *address).collect();
        if let Err(failure) = self.dialer.judge_again(asker, &opening.url, aliases, &addresses, remote) {
            return Some(failure.into());
        }
        let destination = opening.url.destination();
        let gone = ConnectCause::NoSource { port: destination.port };
        (!self.world.sources().has(source)).then(|| gone.failure(&destination.host.text()).into())
    }

    fn capped(&self) -> MutexGuard<'_, HashMap<TenantId, Instant>> {
        self.capped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who meets a cap reads so among its tunnels: now and then, as whoever asks again and again has no other bound.
    fn remember_capped(&self, client: Option<SocketAddr>, tenant: &TenantId, url: &CheckedUrl, refusal: &Refusal) {
        let now = clock::monotonic();
        let mut capped = self.capped();
        let before = capped.get(tenant);
        if before.is_some_and(|at| now.duration_since(*at) < limits::TUNNEL_CAPPED_NOTED_EVERY) {
            return;
        }
        capped.insert(tenant.clone(), now);
        drop(capped);
        let mut tunnel = self.asked_for(Uuid::now_v7(), client, tenant, url, clock::wall());
        let (at, end, message) = (tunnel.begun_at, End::Refused, refusal.why().message());
        tunnel.ended = Some(TunnelEnded { at, end, code: None, message });
        self.records.note(tunnel);
    }

    /// As it is when it was asked for, and what came of it so far.
    fn remembered(&self, opening: &Opening) -> Tunnel {
        let Journey { resolved, would_block, .. } = &opening.journey;
        let timings = opening.journey.watch.so_far();
        Tunnel {
            resolved: resolved.clone(),
            would_block: *would_block,
            dns: timings.dns,
            connect: timings.connect,
            ..self.asked_for(opening.id, opening.client, &opening.tenant, &opening.url, opening.begun_at)
        }
    }

    fn asked_for(
        &self,
        id: Uuid,
        client: Option<SocketAddr>,
        tenant: &TenantId,
        url: &CheckedUrl,
        begun_at: Timestamp,
    ) -> Tunnel {
        let destination = url.destination();
        Tunnel {
            id,
            tenant: tenant.clone(),
            node: self.world.config().node.clone(),
            client,
            host: destination.host.text().into_owned(),
            port: destination.port,
            source: None,
            public: None,
            remote: None,
            resolved: Vec::new(),
            would_block: None,
            dns: None,
            connect: None,
            server_name: None,
            begun_at,
            up: 0,
            down: 0,
            ended: None,
        }
    }

    /// A tunnel's record, its one log line, and its place in the counts.
    fn ended(&self, mut tunnel: Tunnel, opening: &Opening, end: End, why: Option<Why>) {
        let label = why.as_ref().map_or("none", |why| why.code);
        self.metrics.ended(end, label);
        tracing::info!(
            tunnel = %tunnel.id,
            tenant = %tunnel.tenant,
            client = tunnel.client.map(tracing::field::display),
            host = tunnel.host,
            port = tunnel.port,
            source_ip = tunnel.public.map(tracing::field::display),
            remote = tunnel.remote.map(tracing::field::display),
            server_name = tunnel.server_name,
            up = tunnel.up,
            down = tunnel.down,
            seconds = opening.begun.elapsed().as_secs_f64(),
            end = end.label(),
            code = label,
            "tunnel ended"
        );
        let code = why.as_ref().and_then(|why| why.failure.as_ref()).map(|failure| failure.code);
        let message = why.map(Why::message).unwrap_or_default();
        tunnel.ended = Some(TunnelEnded { at: clock::wall().max(tunnel.begun_at), end, code, message });
        self.records.note(tunnel);
    }
}

/// What may be opened.
struct Admitted {
    caller: Caller,
    tenant: TenantId,
    url: CheckedUrl,
    permit: Permit,
    under_way: Option<Begun>,
}

/// A tunnel on its way to be one, and then one. Wherever it is given up, as when its caller hangs up while it is connected,
/// it is remembered: something may have left for where it leads.
struct Opening {
    proxy: Arc<Proxy>,
    id: Uuid,
    client: Option<SocketAddr>,
    caller: Caller,
    /// What was in force before it was asked for.
    judged_by: InForce,
    tenant: TenantId,
    url: CheckedUrl,
    /// Its place, for as long as this lives.
    #[allow(dead_code, reason = "held, not read")]
    permit: Permit,
    journey: Journey,
    begun: Instant,
    begun_at: Timestamp,
    /// What is remembered of it since it was connected.
    tunnel: Option<Tunnel>,
    /// Its end is remembered.
    is_over: bool,
}

impl Opening {
    fn carried(&mut self, carried: Carried, server_name: Option<String>) {
        if let Some(tunnel) = &mut self.tunnel {
            (tunnel.up, tunnel.down, tunnel.server_name) = (carried.up, carried.down, server_name);
        }
    }

    fn end(&mut self, end: End, why: Option<Why>) {
        self.is_over = true;
        let tunnel = self.tunnel.take().unwrap_or_else(|| {
            let mut tunnel = self.proxy.remembered(self);
            if let Some(source) = self.journey.left_from() {
                (tunnel.source, tunnel.public) = (Some(source.bind()), Some(source.public()));
            }
            tunnel
        });
        self.proxy.ended(tunnel, self, end, why);
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if !self.is_over {
            self.end(End::Reset, None);
        }
    }
}

/// One that has come about, a tunnel or a forwarded request.
struct Open {
    opening: Opening,
    source: Arc<Source>,
    remote: SocketAddr,
    terms: Terms,
}

/// HTTP/1.1 and HTTP/2, with the heads, times and windows of the API.
fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::API_HEAD_TIME)
        .max_buf_size(limits::API_HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits::API_STREAMS_PER_CONNECTION)
        .max_header_list_size(limits::API_HEAD_BYTES as u32)
        .initial_stream_window_size(limits::API_STREAM_WINDOW)
        .initial_connection_window_size(limits::PROXY_CONNECTION_WINDOW)
        .max_send_buf_size(limits::API_SEND_BUFFER)
        .keep_alive_interval(limits::API_HEAD_TIME)
        .keep_alive_timeout(limits::API_HEAD_TIME);
    builder
}

/// The connection beneath an upgrade, and what came behind its request; HTTP is no longer spoken there.
fn client_of(upgraded: Upgraded) -> (Client, Bytes) {
    type Plain = TokioIo<Explained<Lingering>>;
    type Tls = TokioIo<Explained<TlsStream<Lingering>>>;
    let upgraded = match auto::upgrade::downcast::<Plain>(upgraded) {
        Ok(parts) => return (Client::Plain(parts.io.into_inner().into_inner().into_inner()), parts.read_buf),
        Err(upgraded) => upgraded,
    };
    match auto::upgrade::downcast::<Tls>(upgraded) {
        Ok(parts) => {
            let mut stream = parts.io.into_inner().into_inner();
            stream.get_mut().0.no_more();
            (Client::Tls(Box::new(stream)), parts.read_buf)
        }
        // HTTP/2, whose connection carries others, too.
        Err(upgraded) => (Client::Stream(Box::new(TokioIo::new(upgraded))), Bytes::new()),
    }
}

/// What is served on the listener.
#[derive(Clone)]
struct Front(Arc<Proxy>);

impl Service<Request<Incoming>> for Front {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let proxy = self.0.clone();
        let version = request.version();
        Box::pin(
            async move { Ok(proxy.answer(request).await.unwrap_or_else(|refusal| refusal.into_response(version))) },
        )
    }
}
