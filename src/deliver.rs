//! One delivery: a [`Started`] send goes in, what came of it comes out. Never twice: `Started` is taken by value.
//!
//! Judged, resolved, judged again, connected, sent once, read, all within one [`Deadline`]. A request is given to a
//! second connection only where the first, an idle one, took no byte of it. Not here: redaction, records and the
//! store (`dispatch` turns an [`Attempt`] into what is remembered).

pub mod apart;
pub mod batch;
pub mod body;
pub mod email;
pub mod http;
pub mod http1;
pub mod http1_only;
pub mod http2;
pub mod s3;
pub mod sigv4;
pub mod sql;
pub mod turns;

use std::borrow::Cow;
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::http::HeaderValue;
use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio_rustls::client::TlsStream;

use self::apart::Apart;
use self::body::{BodyCaps, More, Receiving};
use self::email::Handing;
use self::http::{Channel, Line, Prepared, Unanswered, prepare};
use self::http1::head::HeadCaps;
use self::http1_only::Http1Only;
use self::http2::Tasks;
use self::turns::Turns;
use crate::clock;
use crate::deadline::{Deadline, Stopwatch};
use crate::dial::metrics::InFlight;
use crate::dial::pool::{Generation, Pool};
use crate::dial::resolve::inquiry::Inquiry;
use crate::dial::tls::{NoTls, Offer, Trust};
use crate::dial::wire::{Io, Meter, Wire};
use crate::dial::{
    Dialer, Look,
    connect::{Candidate, Connected, Met},
};
use crate::files;
use crate::limits::{BATCH_ANSWER_KEPT, IDLE_TOTAL};
use crate::outcome::words::{ConnectCause, ExchangeCause, HowUnended, NameCause, SoFar, TlsCause, UnmadeCause};
use crate::outcome::{Code, Ended, Failure, Phase, Processed, Timings};
use crate::policy::{Asker, CheckedUrl, Destination, Errand, Host, Purpose, ScanMemory, SelfAddrs, Suspensions};
use crate::record::{Connection, TlsFacts};
use crate::redact::RawResponse;
use crate::send::{HeaderLines, HttpRequest, Method, SendId, Spelling, Target, TenantId, To};
use crate::source::{Family, Source};
use crate::store::Started;
use crate::trace::Tracer;
use crate::world::{Settings, World};

/// What one delivery came to, unredacted.
pub struct Attempt {
    pub ended: Ended,
    /// Every header line that was handed to the wire, in order; `None` where no request was written. Of a message without
    /// its subject, which is content.
    pub sent_headers: Option<HeaderLines>,
    /// As far as it came; complete where `ended` has no error.
    pub response: Option<RawResponse>,
    pub connection: Option<Connection>,
    /// `held` and `queued` are left for the dispatcher.
    pub timings: Timings,
    pub would_block: Option<Code>,
    /// Of a batch: what it went without, and whether its place may have it though nothing says so: `No` or `Maybe`.
    pub left_out: Vec<LeftOut>,
    pub taken: Processed,
}

/// Events that were refused where their batch was not, and what was answered to each.
pub struct LeftOut {
    /// At least one.
    pub sends: Vec<SendId>,
    pub answer: RawResponse,
}

/// Makes deliveries. One for the process; what a reload changes is swapped inside.
pub struct Deliverer {
    world: Arc<World>,
    dialer: Dialer,
    pool: Pool<Channel>,
    turns: Arc<Turns>,
    /// Where handshakes are made.
    apart: Apart,
    http1_only: Http1Only,
    /// Stores that have said that they do not know `If-None-Match`.
    unconditional: Mutex<HashSet<Destination>>,
    /// What was ours when it was last looked at: a change closes what was judged by it.
    ours: ArcSwap<SelfAddrs>,
    /// The suspensions that idle connections were opened under. The same.
    suspensions: ArcSwap<Suspensions>,
    tracer: Tracer,
}

impl Deliverer {
    /// After the metrics recorder is installed.
    pub fn new(world: Arc<World>, trust: Trust) -> Arc<Self> {
        Self::traced(world, trust, Tracer::off())
    }

    pub fn traced(world: Arc<World>, trust: Trust, tracer: Tracer) -> Arc<Self> {
        let dialer = Dialer::new(world.clone(), trust);
        let ours = ArcSwap::new(world.ours());
        let suspensions = ArcSwap::new(world.suspensions());
        Arc::new(Self {
            world,
            dialer,
            pool: Pool::new(files::of_idle(IDLE_TOTAL)),
            turns: Arc::default(),
            apart: Apart::new("peer-work"),
            http1_only: Http1Only::default(),
            unconditional: Mutex::default(),
            ours,
            suspensions,
            tracer,
        })
    }

    /// For those who want to know where a send would go, without sending.
    pub fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// To be called after [`World::reload`]: nothing that was opened under the settings before is used again.
    pub fn reload(&self, trust: Trust) {
        self.dialer.reload(trust);
        self.pool.clear();
    }

    /// Closes idle connections whose time is over, forgets what is out of date, brings gauges up to date. Called
    /// every [`crate::limits::TEND_EVERY`].
    pub fn tend(&self) {
        let ours = self.world.ours();
        if **self.ours.load() != *ours {
            self.ours.store(ours);
            self.pool.clear();
        }
        self.pool.tend(self.world.config().delivery.keep_alive);
        self.dialer.tend();
    }

    /// Where what a receiver can make long is done.
    pub fn apart(&self) -> &Apart {
        &self.apart
    }

    /// Who is told of sends.
    pub fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    /// Whose delivery is worked on next, for what else is done for one.
    pub fn turns(&self) -> &Arc<Turns> {
        &self.turns
    }

    /// Ends at the deadline and not later, whatever the receiver does; `flight` is dropped at that moment.
    pub async fn deliver(self: &Arc<Self>, started: Started, deadline: Deadline, flight: impl Send) -> Attempt {
        let mut journey = Journey::default();
        let carries = self.world.config().delivery.propagate_trace;
        let carried = carries.then(|| self.tracer.carried(&started)).flatten();
        let run = Box::pin(self.run(&started, carried.as_ref(), &mut journey));
        let mut run = self.turns.take(started.tenant(), run);
        // The deadline stands outside: it ends also what waits for its turn.
        let result = deadline.bound(&mut run).await;
        let total = deadline.spent();
        drop(flight);
        let rest = run.stop();
        if result.is_none() {
            // Closing what stands open takes its time; where thousands run out at the same moment, all of them end
            // first.
            self.turns.take(started.tenant(), Box::pin(async move { drop(rest) })).await;
        } else {
            drop(rest);
        }
        journey.end(result, &deadline, total)
    }

    /// The status that was answered.
    async fn run(
        &self,
        started: &Started,
        carried: Option<&HeaderValue>,
        journey: &mut Journey,
    ) -> Result<u16, Failure> {
        let (tenant, spec) = (started.tenant(), started.spec());
        let asker = Asker { tenant, workflow: spec.context.workflow.as_deref() };
        match &spec.to {
            To::Http(request) => self.request(asker, request, carried, journey).await,
            To::Email(email) => self.email(asker, started.id(), email, journey).await,
            // It goes with others, and is never begun ([`batch`]).
            To::Event(_) => Err(UnmadeCause::Defect.failure()),
        }
    }

    async fn request(
        &self,
        asker: Asker<'_>,
        asked: &HttpRequest,
        carried: Option<&HeaderValue>,
        journey: &mut Journey,
    ) -> Result<u16, Failure> {
        let url = match &asked.target {
            Target::Url(url) => url,
            Target::Refused { denial, .. } => return Err(denial.clone()),
        };
        let tenant = asker.tenant;
        journey.goes_to(url.destination());
        let generation = self.pool.generation();
        let judged_by = self.world.in_force();
        let judged = self.world.judge_url(asker, url, clock::wall());
        journey.would_block = judged.would_block;
        if let Some(denial) = judged.denial {
            return Err(denial.into());
        }
        let settings = self.world.settings();
        let mut in_flight = self.dialer.metrics().in_flight();

        if let Some(channel) = self.idle(tenant, url, &settings) {
            let purpose = Purpose::Delivery;
            let way = Way { tenant, asked, url, settings: &settings, carried, purpose, generation, reused: true };
            in_flight.leaves_from(&self.dialer.metrics().of(&channel.line().source));
            match self.exchange(&way, channel, journey).await {
                Err(Unanswered::Unwritten) => journey.forget_exchange(),
                Err(Unanswered::Failed(failure)) => return Err(failure),
                Ok(status) => return Ok(status),
            }
        }

        journey.watch.enter(Phase::Dns);
        let purpose = Purpose::Delivery;
        let looking = self.dialer.look(asker, url.destination(), &settings, purpose, &journey.inquiry);
        let look = looking.await;
        let Found { aliases, addresses, candidates } = journey.looked(look)?;

        let way = Way { tenant, asked, url, settings: &settings, carried, purpose, generation, reused: false };
        let channel = self.open(&way, &candidates, journey, &mut in_flight).await?;
        if !self.world.in_force().is(&judged_by) {
            // All of that took its time: whoever was stopped meanwhile, or whatever was denied, is sent nothing.
            self.dialer.judge_again(asker, url, &aliases, &addresses, channel.line().remote)?;
        }
        match self.exchange(&way, channel, journey).await {
            Ok(status) => Ok(status),
            Err(Unanswered::Failed(failure)) => Err(failure),
            // A new connection that was closed before it took a byte: the receiver does not want it.
            Err(Unanswered::Unwritten) => Err(journey.closed_unwritten()),
        }
    }

    /// An idle connection that leaves from where a new one would.
    fn idle(&self, tenant: &TenantId, url: &CheckedUrl, settings: &Settings) -> Option<Channel> {
        let keep_alive = settings.config.delivery.keep_alive;
        if keep_alive.is_zero() {
            return None;
        }
        // A host that is suspended by now may have been reached under another name, which is not looked up again.
        let suspensions = self.world.suspensions();
        if !Arc::ptr_eq(&*self.suspensions.load(), &suspensions) {
            // In this order: nobody takes the one for known while what was opened before still lies there.
            self.pool.clear();
            self.suspensions.store(suspensions);
        }
        let destination = url.destination();
        self.pool.take(tenant, destination, keep_alive, |source| {
            let pool = settings.config.pool_of(tenant);
            let family = Family::of(source.bind());
            let first = settings.sources.choose(&pool, family, tenant, &destination.host.text(), clock::wall());
            first.first().is_some_and(|first| **first == *source)
        })
    }

    async fn open(
        &self,
        &Way { tenant, url, settings, purpose, .. }: &Way<'_>,
        candidates: &[Candidate],
        journey: &mut Journey,
        in_flight: &mut InFlight,
    ) -> Result<Channel, Failure> {
        let destination = url.destination();
        let errand = Errand { tenant: tenant.clone(), destination: destination.clone(), purpose };
        let connected = self.connect(&errand, candidates, journey, in_flight).await?;
        let mut line = Line {
            source: connected.source,
            local: connected.local,
            remote: connected.remote,
            tls: None,
            meter: connected.wire.meter().clone(),
            probe: connected.wire.probe(),
            opened_at: clock::monotonic(),
        };
        let io: Box<dyn Io> = if destination.scheme.has_tls() {
            let offer = if self.http1_only.holds(tenant, destination) { Offer::Http1 } else { Offer::Both };
            let (stream, facts) = self.shake_hands(tenant, &destination.host, offer, connected.wire, journey).await?;
            line.tls = Some(Arc::new(facts));
            stream
        } else {
            Box::new(connected.wire)
        };
        let tasks = Tasks::new(&self.turns, tenant);
        let limits = &settings.config.limits;
        let caps = HeadCaps { bytes: bytes(limits.response_headers), lines: limits.response_header_lines as usize };
        Channel::open(io, line, tasks, &destination.host.text(), caps).await
    }

    /// A connection to one of the candidates, and what is known of it.
    async fn connect(
        &self,
        errand: &Errand,
        candidates: &[Candidate],
        journey: &mut Journey,
        in_flight: &mut InFlight,
    ) -> Result<Connected, Failure> {
        if let Some(first) = candidates.first()
            && let Some(source) = first.sources.first()
        {
            // Known before the connect, so that one that is refused or never ends is told of too. Only a source that
            // cannot be left from at all is followed by another.
            let remote = (candidates.len() == 1).then_some(first.address.socket_addr());
            journey.leaves_from(source, remote);
            in_flight.leaves_from(&self.dialer.metrics().of(source));
        }
        journey.watch.enter(Phase::Connect);
        let connected = self.dialer.connect(errand, candidates, &journey.met).await.inspect_err(|failure| {
            if matches!(failure.code, Code::SourceUnavailable | Code::SourcePortsExhausted) {
                journey.leaves_from_nowhere();
            }
        })?;
        journey.watch.leave();
        in_flight.leaves_from(&self.dialer.metrics().of(&connected.source));
        let connection = journey.connection.get_or_insert_default();
        connection.source = Some(connected.local);
        connection.public = Some(connected.source.public());
        connection.remote = Some(connected.remote);
        Ok(connected)
    }

    /// TLS over a connection that stands.
    async fn shake_hands(
        &self,
        tenant: &TenantId,
        host: &Host,
        offer: Offer,
        wire: Wire,
        journey: &mut Journey,
    ) -> Result<(Box<TlsStream<Wire>>, TlsFacts), Failure> {
        journey.watch.enter(Phase::Tls);
        let (trust, whose, host) = (self.dialer.trust(), tenant.clone(), host.clone());
        let handshake = async move { trust.handshake(&whose, &host, offer, wire).await };
        let (stream, facts) = self.apart.run(tenant, handshake).await.map_err(|NoTls { failure, facts }| {
            // A certificate that was refused is shown.
            if let Some(facts) = facts {
                connection_tls(journey, &facts);
            }
            failure
        })?;
        journey.watch.leave();
        connection_tls(journey, &facts);
        Ok((stream, facts))
    }

    /// One request and its answer over one connection, which is closed or parked at the end.
    async fn exchange(&self, way: &Way<'_>, mut channel: Channel, journey: &mut Journey) -> Result<u16, Unanswered> {
        let config = &way.settings.config;
        let failed = Unanswered::Failed;

        let prepared =
            prepare(way.asked, way.url, &config.delivery.user_agent, way.carried, channel.version()).map_err(failed)?;
        let counters = self.dialer.metrics().of(&channel.line().source);
        journey.begin_exchange(channel.line(), &prepared, way.reused);
        let answer = channel.send(prepared).await;
        let meter = channel.line().meter.clone();
        match &answer {
            // A new connection may have been ended by an alert that came before the request could leave.
            Err(Unanswered::Unwritten) => {
                let alert = channel.tls_failure(None).filter(|_| !way.reused);
                return Err(alert.map_or(Unanswered::Unwritten, |failure| {
                    journey.exchange = None;
                    failed(failure)
                }));
            }
            _ if way.reused => counters.reused.increment(1),
            _ => counters.fresh.increment(1),
        }
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                if channel.wants_http1() {
                    self.http1_only.note(way.tenant, way.url.destination());
                }
                if way.reused && journey.nothing_came_back() {
                    self.pool.stale(way.tenant, way.url.destination());
                }
                return Err(error);
            }
        };
        journey.answered(&meter);
        let stored = config.limits.response_body_stored;
        // A bucket's answer is read for what it says, however little is shown of it.
        let stored = if way.purpose == Purpose::Bucket { stored.max(BATCH_ANSWER_KEPT as u64) } else { stored };
        let caps = BodyCaps { stored, read: config.limits.response_body_read };
        let receiving = journey.response.insert(Receiving::new(answer.status, answer.version, answer.headers, caps));
        let mut cut = false;
        while let Some(data) = channel.read(receiving.so_far()).await.map_err(failed)? {
            match receiving.take(&data) {
                More::Wanted => receiving.pace().await,
                More::Cut => {
                    cut = true;
                    break;
                }
                More::TooManyPieces => {
                    let cause = ExchangeCause::TooManyPieces { so_far: receiving.so_far() };
                    return Err(failed(cause.failure(&way.url.destination().host.text())));
                }
            }
        }
        let status = receiving.status();
        journey.watch.leave();
        journey.complete = true;
        channel.forget_answer();
        let keeps = way.purpose == Purpose::Delivery && !config.delivery.keep_alive.is_zero();
        if !cut && keeps && channel.is_reusable() {
            self.pool.park(way.tenant, way.url.destination(), way.generation, channel);
        }
        Ok(status)
    }

    /// One GET from one given source, for verifying that source; nothing is recorded, kept or reused.
    pub async fn fetch(&self, url: &CheckedUrl, source: &Arc<Source>, deadline: Deadline) -> Result<Fetched, Failure> {
        let mut journey = Journey::default();
        let run = Box::pin(self.fetch_within(url, source, &mut journey));
        let result = deadline.bound(run).await;
        let remote = journey.connection.as_ref().and_then(|connection| connection.remote);
        let Attempt { ended, response, .. } = journey.end(result, &deadline, deadline.spent());
        match (ended.error, response) {
            // An answer to this node itself, and no tenant's.
            (Some(failure), _) => Err(failure.told(|said| Some(said.into_text()))),
            (None, Some(response)) => Ok(Fetched { status: response.status, body: response.body, remote }),
            (None, None) => Err(UnmadeCause::Defect.failure()),
        }
    }

    async fn fetch_within(
        &self,
        url: &CheckedUrl,
        source: &Arc<Source>,
        journey: &mut Journey,
    ) -> Result<u16, Failure> {
        let tenant = TenantId::OURSELVES;
        let generation = self.pool.generation();
        let asker = Asker { tenant: &tenant, workflow: None };
        journey.goes_to(url.destination());
        let settings = self.world.settings();
        let suspensions = self.world.suspensions();
        // Its own memory: no tenant's tries are counted.
        let mut scan = ScanMemory::default();
        let judged = settings.policy.judge_url(asker, url, &suspensions, &mut scan, clock::wall());
        if let Some(denial) = judged.denial {
            return Err(denial.into());
        }
        journey.watch.enter(Phase::Dns);
        // The given source, whether or not a send may leave from it: that is what is being found out.
        let purpose = Purpose::Reflector;
        let found = self.dialer.find(asker, url.destination(), &settings, purpose, &journey.inquiry).await;
        let family = Family::of(source.bind());
        let candidates: Vec<_> = found
            .addresses?
            .into_iter()
            .filter(|address| Family::of(address.socket_addr().ip()) == family)
            .map(|address| Candidate { address, sources: vec![source.clone()] })
            .collect();
        if candidates.is_empty() {
            return Err(NameCause::NotOfThisSource.failure(&url.destination().host.text()));
        }
        let asked = HttpRequest {
            method: Method::Get,
            target: Target::Url(url.clone()),
            headers: Vec::new(),
            spelling: Spelling::default(),
            dropped_headers: Vec::new(),
            body: None,
        };
        let mut in_flight = self.dialer.metrics().in_flight();
        let (tenant, asked, settings) = (&tenant, &asked, &*settings);
        let way = Way { tenant, asked, url, settings, carried: None, purpose, generation, reused: false };
        let channel = self.open(&way, &candidates, journey, &mut in_flight).await?;
        match self.exchange(&way, channel, journey).await {
            Ok(status) => Ok(status),
            Err(Unanswered::Failed(failure)) => Err(failure),
            Err(Unanswered::Unwritten) => Err(journey.closed_unwritten()),
        }
    }
}

/// What [`Deliverer::fetch`] brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    pub status: u16,
    /// At most `response_body_stored` of it.
    pub body: Bytes,
    pub remote: Option<SocketAddr>,
}

/// What stays the same for one exchange.
struct Way<'a> {
    tenant: &'a TenantId,
    asked: &'a HttpRequest,
    url: &'a CheckedUrl,
    settings: &'a Settings,
    /// The `traceparent` that the receiver is told.
    carried: Option<&'a HeaderValue>,
    /// A connection to a reflector is never kept: the rules it was judged by are no send's.
    purpose: Purpose,
    /// From before anything was judged: what is judged by rules that have changed by the end is not used again.
    generation: Generation,
    reused: bool,
}

/// What a destination's name came to, and what of it may be dialled.
struct Found {
    aliases: Vec<String>,
    addresses: Vec<IpAddr>,
    candidates: Vec<Candidate>,
}

/// How far a delivery has come. It lives outside of the work, so that a delivery that ran out tells as much as one
/// that ended.
#[derive(Default)]
struct Journey {
    /// What the send names.
    to: Option<Destination>,
    watch: Stopwatch,
    inquiry: Inquiry,
    /// What became of the connect that is under way.
    met: Mutex<Met>,
    would_block: Option<Code>,
    connection: Option<Connection>,
    exchange: Option<Exchange>,
    /// Where a message is handed over.
    handing: Option<Handing>,
    /// What a database said.
    told: Option<RawResponse>,
    left_out: Vec<LeftOut>,
    /// It answered that it did not do what it may have done.
    is_unsure: bool,
    /// A database's transaction, and whether it has been asked to commit.
    transaction: Option<Arc<AtomicBool>>,
    /// What a batch is signed or logged in with: it is in no answer that is shown.
    secrets: Vec<Box<str>>,
    response: Option<Receiving>,
    /// The response was read to its end, or as far as it is read.
    complete: bool,
}

/// A request on its way out.
struct Exchange {
    meter: Arc<Meter>,
    lines: HeaderLines,
    written_before: u64,
    read_before: u64,
    /// Of the request in all.
    bytes: u64,
}

impl Exchange {
    /// Bytes of the request that the kernel took, TLS framing included.
    fn written(&self) -> u64 {
        self.meter.bytes_written() - self.written_before
    }
}

impl Journey {
    fn goes_to(&mut self, to: &Destination) {
        self.to = Some(to.clone());
    }

    fn looked(&mut self, look: Look) -> Result<Found, Failure> {
        let Look { aliases, resolved, would_block, way } = look;
        if self.inquiry.has_begun() {
            self.watch.leave();
        } else {
            self.watch.cancel();
        }
        self.would_block = self.would_block.or(would_block);
        let addresses = resolved.iter().map(|(address, _)| *address).collect();
        self.connection.get_or_insert_default().resolved = resolved;
        Ok(Found { aliases, addresses, candidates: way? })
    }

    /// The host and port that it goes to.
    fn named(&self) -> (Cow<'_, str>, u16) {
        self.to.as_ref().map_or((Cow::Borrowed(""), 0), |to| (to.host.text(), to.port))
    }

    fn leaves_from(&mut self, source: &Source, remote: Option<SocketAddr>) {
        let connection = self.connection.get_or_insert_default();
        connection.public = Some(source.public());
        connection.source = Some(SocketAddr::new(source.bind(), 0));
        connection.remote = remote;
    }

    /// The source that a connect was begun from, where none came of it: it may not be the one that was to be.
    fn names_where_it_left_from(&mut self) {
        let met = self.met.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(from) = &met.from
            && let Some(connection) = &mut self.connection
            && connection.source.is_some_and(|source| source.port() == 0)
        {
            connection.public = Some(from.public());
            connection.source = Some(SocketAddr::new(from.bind(), 0));
        }
    }

    fn leaves_from_nowhere(&mut self) {
        let connection = self.connection.get_or_insert_default();
        (connection.source, connection.public) = (None, None);
    }

    fn begin_exchange(&mut self, line: &Line, prepared: &Prepared, reused: bool) {
        let connection = self.connection.get_or_insert_default();
        connection.source = Some(line.local);
        connection.public = Some(line.source.public());
        connection.remote = Some(line.remote);
        connection.reused = reused;
        if reused {
            connection.tls = line.tls.as_deref().cloned();
        }
        let meter = line.meter.clone();
        let (written_before, read_before) = (meter.bytes_written(), meter.bytes_read());
        meter.begin_request(prepared.body_bytes);
        let (lines, bytes) = (prepared.lines.clone(), prepared.bytes());
        self.exchange = Some(Exchange { meter, lines, written_before, read_before, bytes });
        self.watch.enter(Phase::Write);
    }

    /// The idle connection took nothing: as if it had not been there.
    fn forget_exchange(&mut self) {
        self.exchange = None;
        self.connection = None;
        self.watch.cancel();
    }

    fn answered(&mut self, meter: &Meter) {
        // An answer may come before the request is out; it was not waited for then.
        if let Some(at) = meter.request_out_at() {
            self.watch.enter_at(Phase::Wait, at);
        }
        self.watch.enter(Phase::Read);
    }

    /// All of it was handed to the kernel, or there was none.
    fn request_is_out(&self) -> bool {
        self.exchange.as_ref().is_none_or(|exchange| exchange.meter.request_out_at().is_some())
    }

    fn nothing_came_back(&self) -> bool {
        self.exchange.as_ref().is_some_and(|exchange| exchange.meter.bytes_read() == exchange.read_before)
    }

    fn closed_unwritten(&mut self) -> Failure {
        self.exchange = None;
        ExchangeCause::ClosedUnwritten.failure(&self.named().0)
    }

    /// What a delivery that ran out in this phase says.
    fn ran_out(&self, phase: Phase, deadline: &Deadline) -> Failure {
        let (host, port) = self.named();
        let host = &*host;
        let total = deadline.total();
        if let (Some(handing), Phase::Write | Phase::Wait) = (&self.handing, phase) {
            return handing.ran_out(total, host);
        }
        match phase {
            Phase::Dns => self.inquiry.ran_out(total),
            Phase::Connect => {
                let from = self.connection.as_ref().and_then(|connection| connection.public);
                let tried = self.met.lock().unwrap_or_else(PoisonError::into_inner).tried;
                ConnectCause::Silent { total, port, from, tried }.failure(host)
            }
            Phase::Tls => TlsCause::OutOfTime { total }.failure(host),
            Phase::Write => {
                let (bytes, of) = self
                    .exchange
                    .as_ref()
                    .map_or((0, 0), |exchange| (exchange.written().min(exchange.bytes), exchange.bytes));
                ExchangeCause::NotTaken { total, bytes, of }.failure(host)
            }
            Phase::Wait => match &self.transaction {
                Some(asked) => {
                    let how = HowUnended::Late { total };
                    ExchangeCause::Transaction { how, commits: asked.load(Ordering::Relaxed) }.failure(host)
                }
                None => ExchangeCause::NoAnswer { total }.failure(host),
            },
            Phase::Read => {
                let nothing = SoFar { status: 0, bytes: 0, declared: None };
                let so_far = self.response.as_ref().map_or(nothing, Receiving::so_far);
                ExchangeCause::HalfAnswer { total, so_far }.failure(host)
            }
        }
    }

    fn end(mut self, result: Option<Result<u16, Failure>>, deadline: &Deadline, total: Duration) -> Attempt {
        self.names_where_it_left_from();
        // Where writing had in fact ended, the rest was waiting.
        if self.watch.phase() == Some(Phase::Write)
            && let Some(at) = self.exchange.as_ref().and_then(|exchange| exchange.meter.request_out_at())
        {
            self.watch.enter_at(Phase::Wait, at);
        }
        let phase = self.watch.phase();
        let mut ended = match result {
            Some(Ok(status)) => Ended::answered(status),
            Some(Err(mut failure)) => {
                // The exchange knows best whether the request had been written.
                if failure.phase == Some(Phase::Wait) && phase == Some(Phase::Write) {
                    failure.phase = Some(Phase::Write);
                }
                Ended::because(failure)
            }
            None => Ended::because(self.ran_out(phase.unwrap_or(Phase::Dns), deadline)),
        };
        let sent = self.exchange.filter(|exchange| exchange.written() > 0).map(|exchange| exchange.lines);
        let (handed, reply) = self.handing.map(Handing::end).unwrap_or_default();
        let sent = sent.or(handed);
        if let Some(error) = &mut ended.error
            && error.processed == Processed::Maybe
            && sent.is_none()
            && self.transaction.is_none()
        {
            error.processed = Processed::No;
        }
        Attempt {
            ended,
            sent_headers: sent,
            response: self.response.map(|response| response.finish(self.complete)).or(reply).or(self.told),
            connection: self.connection,
            timings: self.watch.finish(deadline, total),
            would_block: self.would_block,
            left_out: self.left_out,
            taken: if self.is_unsure { Processed::Maybe } else { Processed::No },
        }
    }
}

fn connection_tls(journey: &mut Journey, facts: &TlsFacts) {
    journey.connection.get_or_insert_default().tls = Some(facts.clone());
}

fn bytes(limit: u64) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}
