//! The forward proxy: tunnels (CONNECT, RFC 9110 section 9.3.6) for code that needs its answer, over the same policy and
//! the same dial as sends.
//!
//! A request goes through these steps: who asks ([`who`]), where to ([`target`]), whether there is room ([`caps`]), then the
//! way there, judged, looked up, judged again and connected within one deadline ([`way`]); and the bytes, both ways
//! ([`relay`]), the first of them looked at ([`hello`]). What is refused at any of them is told in the words of a send's record, and its connection is closed
//! ([`refusal`]): nothing that came behind it is read as a request.
//!
//! Nothing here is durable, and nothing of a send's depends on it: it runs on threads of its own, its lookups wait for
//! each other alone, and a share of each source's ports is left to sends. Nothing but `app` and `cli` knows this module.

mod caps;
mod hello;
pub mod lingering;
mod metrics;
mod refusal;
pub mod relay;
mod target;
mod way;
mod who;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::body::Body;
use bytes::Bytes;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;

use self::caps::{Caps, Most, Permit};
use self::lingering::Lingering;
use self::metrics::Metrics;
use self::refusal::Refusal;
use self::relay::{Client, End, Relay, Terms};
use self::way::Journey;
use crate::api::seats::{Bounds, Presence};
use crate::api::serve::explained::Explained;
use crate::api::serve::{Peer, Served, serve_on};
use crate::clock;
use crate::deadline::Deadline;
use crate::deliver::Deliverer;
use crate::deliver::apart::Apart;
use crate::dial::Dialer;
use crate::dial::connect::Connected;
use crate::doors::tls::Acceptor;
use crate::files;
use crate::limits;
use crate::outcome::Code;
use crate::policy::{Asker, CheckedUrl};
use crate::send::TenantId;
use crate::world::{InForce, World};

/// The front, one for the process.
pub struct Proxy {
    world: Arc<World>,
    dialer: Dialer,
    caps: Caps,
    metrics: Metrics,
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
    pub fn new(world: Arc<World>, deliverer: &Deliverer) -> Arc<Self> {
        let judged_by = ArcSwap::from_pointee(world.in_force());
        Arc::new(Self {
            world,
            dialer: deliverer.dialer().beside(limits::PORTS_LEFT_ONE_IN),
            caps: Caps::default(),
            metrics: Metrics::new(),
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
        let served = Served {
            name: "[proxy] listen",
            bounds: Bounds { all, strangers, strangers_of_network },
            handshakes: Apart::new("tunnel-tls"),
            builder: builder(),
            service: Front(self),
        };
        serve_on(served, Lingering::new, listener, tls, closing).await;
    }

    /// Looks whether what tunnels were judged by is still in force, and forgets what is out of date. Called every
    /// [`crate::limits::TEND_EVERY`].
    pub fn tend(&self) {
        self.dialer.tend();
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

    /// Ready when no tunnel is left: at `at` they are ended, those that are open then.
    pub async fn end_by(&self, at: Instant) {
        tokio::select! {
            () = self.tunnels.wait() => return,
            () = tokio::time::sleep_until(at) => {}
        }
        self.call.send_modify(|call| call.over = true);
        tokio::select! {
            () = self.tunnels.wait() => {}
            () = tokio::time::sleep(limits::TUNNEL_END) => {}
        }
    }

    async fn answer(self: Arc<Self>, mut request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let config = self.world.config();
        // The process that has no such table has no such listener; a reload cannot take it away.
        let Some(settings) = &config.proxy else { return Err(Refusal::draining()) };
        let (caller, tenant) = who::admit(request.headers(), &config)?;
        let presence = request.extensions().get::<Arc<Presence>>().cloned();
        if presence.as_ref().is_some_and(|presence| !presence.admit(&caller.key())) {
            return Err(Refusal::no_place());
        }
        let _under_way = presence.as_ref().map(Presence::begin);
        if request.method() != Method::CONNECT {
            return Err(Refusal::not_a_tunnel(request.method()));
        }
        target::without_content(request.headers())?;
        let url = target::of_connect(request.uri())?;
        if self.draining.load(Ordering::Acquire) {
            return Err(Refusal::draining());
        }
        let most = Most {
            all: files::of_tunnels(settings.tunnels, config.delivery.in_flight),
            of_tenant: settings.tunnels_per_tenant,
            of_destination: settings.tunnels_per_tenant_destination,
        };
        let permit = self.caps.take(&tenant, url.destination(), most)?;
        let token = self.tunnels.token();
        let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
        let mut opening = Opening { peer, tenant, url, permit, journey: Journey::default(), begun: clock::monotonic() };
        let connected = match self.open_way(&mut opening, settings.connect_deadline).await {
            Ok(connected) => connected,
            Err(refusal) => {
                self.tell(&opening, None, End::Refused, refusal.code(), &relay::Carried::default());
                return Err(refusal);
            }
        };
        self.metrics.connected(opening.begun.elapsed());
        let upgrade = hyper::upgrade::on(&mut request);
        let sni = settings.verify_sni.then(|| opening.url.destination().host.clone());
        let terms = Terms { idle: settings.idle, until: opening.begun + settings.lifetime, sni };
        let proxy = self.clone();
        // A task of its own: the connection's ends with the answer.
        tokio::spawn(async move {
            let _counted = token;
            proxy.carry(opening, connected, upgrade, terms).await;
        });
        Ok(Response::new(Body::empty()))
    }

    async fn open_way(&self, opening: &mut Opening, within: Duration) -> Result<Connected, Refusal> {
        let deadline = Deadline::start(within);
        let asker = Asker { tenant: &opening.tenant, workflow: None };
        let opened = way::open(&self.world, &self.dialer, asker, &opening.url, &mut opening.journey);
        let opened = deadline.bound(Box::pin(opened)).await;
        let failed = match opened {
            Some(Ok(connected)) => return Ok(connected),
            Some(Err(failure)) => failure,
            None => opening.journey.ran_out(&opening.url, within),
        };
        Err(Refusal::failed(&failed, &opening.url))
    }

    /// Everything of a tunnel after its `200`.
    async fn carry(&self, opening: Opening, connected: Connected, upgrade: OnUpgrade, terms: Terms) {
        let gauge = self.metrics.open_from(&connected.source);
        let Connected { wire, source, remote, .. } = connected;
        let mut call = self.call.subscribe();
        call.mark_unchanged();
        let mut end = End::Reset;
        let mut code = "none";
        let mut carried = relay::Carried::default();
        // One that hung up before it had its answer has no tunnel.
        if let Some((client, early)) = upgrade.await.ok().and_then(client_of) {
            let mut relay = Relay::new(client, wire, early, terms, self.metrics.bytes());
            end = loop {
                let told = tokio::select! {
                    biased;
                    end = relay.run() => {
                        if end == End::Refused {
                            code = Code::PolicySni.label();
                        }
                        break end;
                    }
                    told = call.changed() => told.map(|()| *call.borrow_and_update()),
                };
                match told {
                    Ok(Call { over: false, .. }) => {}
                    _ => break End::Drained,
                }
                let asker = Asker { tenant: &opening.tenant, workflow: None };
                let Journey { aliases, resolved, .. } = &opening.journey;
                let addresses: Vec<_> = resolved.iter().map(|(address, _)| *address).collect();
                let judged = self.dialer.judge_again(asker, &opening.url, aliases, &addresses, remote);
                if let Err(failure) = judged {
                    code = failure.code.label();
                    break End::Refused;
                }
                if !self.world.sources().has(&source) {
                    code = Code::SourceUnavailable.label();
                    break End::Refused;
                }
            };
            carried = relay.finish(end);
        }
        drop(gauge);
        self.tell(&opening, Some((source.public(), remote)), end, code, &carried);
    }

    /// The one log line of a tunnel, and its place in the counts.
    fn tell(
        &self,
        opening: &Opening,
        way: Option<(std::net::IpAddr, SocketAddr)>,
        end: End,
        code: &'static str,
        carried: &relay::Carried,
    ) {
        self.metrics.ended(end, code);
        let destination = opening.url.destination();
        tracing::info!(
            tenant = %opening.tenant,
            client = opening.peer.map(tracing::field::display),
            host = %destination.host,
            port = destination.port,
            source_ip = way.map(|(public, _)| tracing::field::display(public)),
            remote = way.map(|(_, remote)| tracing::field::display(remote)),
            up = carried.up,
            down = carried.down,
            seconds = opening.begun.elapsed().as_secs_f64(),
            end = end.label(),
            code,
            "tunnel ended"
        );
    }
}

/// A tunnel on its way to be one.
struct Opening {
    peer: Option<SocketAddr>,
    tenant: TenantId,
    url: CheckedUrl,
    /// Its place, for as long as this lives.
    #[allow(dead_code, reason = "held, not read")]
    permit: Permit,
    journey: Journey,
    begun: Instant,
}

/// HTTP/1.1, with the heads and times of the API.
fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::API_HEAD_TIME)
        .max_buf_size(limits::API_HEAD_BYTES);
    builder
}

/// The connection beneath an upgrade, and what came behind its request; HTTP is no longer spoken there.
fn client_of(upgraded: hyper::upgrade::Upgraded) -> Option<(Client, Bytes)> {
    type Plain = TokioIo<Explained<Lingering>>;
    type Tls = TokioIo<Explained<TlsStream<Lingering>>>;
    let upgraded = match auto::upgrade::downcast::<Plain>(upgraded) {
        Ok(parts) => return Some((Client::Plain(parts.io.into_inner().into_inner().into_inner()), parts.read_buf)),
        Err(upgraded) => upgraded,
    };
    let parts = auto::upgrade::downcast::<Tls>(upgraded).ok()?;
    let mut stream = parts.io.into_inner().into_inner();
    stream.get_mut().0.no_more();
    Some((Client::Tls(Box::new(stream)), parts.read_buf))
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
        Box::pin(async move { Ok(proxy.answer(request).await.unwrap_or_else(Refusal::into_response)) })
    }
}
