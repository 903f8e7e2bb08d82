//! The configuration as trusted: every value checked, every default filled in.
//!
//! [`mod@file`] is the TOML as written, [`check`] turns it into a [`Config`] or the list of **all** its problems.
//! Unknown keys are errors. Nothing here reads a clock or opens a socket; what a value means is said in
//! `config/egressd.toml`.

pub mod check;
pub mod file;
pub mod s3;
pub mod sql;

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use lettre::Address;
use lettre::message::Mailbox;

use crate::limits;
use crate::policy::Destination;
use crate::publish::PublishedList;
use crate::send::{Kind, Place, TenantId};

pub use self::file::ConfigProblem;
pub use self::s3::{S3Credentials, S3Settings};
pub use self::sql::SqlSettings;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub node: String,
    pub api: Api,
    pub metrics_listen: SocketAddr,
    pub publish: Option<Publish>,
    /// The forward proxy; `None`: there is none.
    pub proxy: Option<Proxy>,
    pub egress: Egress,
    pub delivery: Delivery,
    pub destinations: Destinations,
    pub tls: Tls,
    /// Name servers in order; from `/etc/resolv.conf` where the file names none. Never empty.
    pub dns_servers: Vec<SocketAddr>,
    pub policy: PolicySettings,
    pub tenants: HashMap<TenantId, TenantSettings>,
    pub redact: Redact,
    pub limits: Limits,
    pub store: StoreSettings,
    pub telemetry: Telemetry,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telemetry {
    /// The collector's URL, without a slash at the end. `None`: nobody is told of sends.
    pub otlp: Option<String>,
    /// Of so many sends that came without a trace it is told of one.
    pub one_in: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api {
    pub listen: SocketAddr,
    pub tls: Option<ListenerTls>,
    /// Empty only while `listen` is loopback: then everyone who reaches it may do everything.
    pub clients: Vec<ApiClient>,
    /// Origins whose pages may show the inspector in a frame.
    pub embed: Vec<String>,
}

/// Files are checked to be readable PEM at load, and read again at reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerTls {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Given: mutual TLS.
    pub client_ca: Option<PathBuf>,
}

/// The listener for the world, and what its page says beside the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    pub listen: SocketAddr,
    pub tls: Option<ListenerTls>,
    /// Proxies in front: what connects from these begins with a header of the PROXY protocol.
    pub proxies: Vec<IpNet>,
    pub says: PublishSays,
}

/// Empty is what was not given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishSays {
    /// Where the world reads the list, without a slash at the end.
    pub url: String,
    pub operator: String,
    pub abuse: String,
}

/// The forward proxy: its listener, and what each tunnel may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Loopback where there is no [`ApiClient`].
    pub listen: SocketAddr,
    pub tls: Option<ListenerTls>,
    /// For looking up, judging and connecting.
    pub connect_deadline: Duration,
    /// Without a byte either way.
    pub idle: Duration,
    pub lifetime: Duration,
    pub tunnels: u32,
    pub tunnels_per_tenant: u32,
    pub tunnels_per_tenant_destination: u32,
    /// Whether requests in absolute form are made, too.
    pub plain_http: bool,
    /// Whether a ClientHello may name another server than the tunnel's host.
    pub verify_sni: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiClient {
    pub name: String,
    pub token_sha256: [u8; 32],
    /// `None`: any tenant, named per request.
    pub tenant: Option<TenantId>,
    pub scopes: Scopes,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes {
    pub submit: bool,
    pub read: bool,
    pub operate: bool,
    pub proxy: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Egress {
    /// The published file, parsed, and where it was read from.
    pub published: Arc<PublishedList>,
    pub published_path: PathBuf,
    pub notice: Duration,
    pub sources: Vec<SourceSettings>,
    pub verify: Option<Verify>,
}

/// One source: an address pair. Its `public` stands in the published file; the families of both are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSettings {
    pub public: IpAddr,
    pub bind: IpAddr,
    pub pool: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verify {
    pub reflectors: Vec<String>,
    pub every: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub deadline: Duration,
    pub in_flight: u32,
    pub in_flight_per_tenant: u32,
    pub in_flight_per_tenant_destination: u32,
    pub queued: u64,
    pub queued_per_tenant: u64,
    pub hold_limit: Duration,
    pub expires_in: Duration,
    /// Zero: connections are never reused.
    pub keep_alive: Duration,
    /// With the contact, where one is given.
    pub user_agent: String,
    /// Empty: none.
    pub contact: String,
    /// Whether receivers are told of the trace.
    pub propagate_trace: bool,
    /// No shorter than any delivery may take.
    pub drain: Duration,
}

/// Where sends go beside URLs. `None`: no send may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destinations {
    pub email: Option<EmailSettings>,
    pub s3: Option<Arc<S3Settings>>,
    pub sql: Option<Arc<SqlSettings>>,
}

/// How events gather, and how long each batch of them is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gathering {
    /// A batch closes so long after its first event.
    pub every: Duration,
    /// Or with so many bytes of payloads, before they are compressed.
    pub bytes: u64,
    /// Or with so many events.
    pub sends: usize,
    /// Of one try, everything in it.
    pub deadline: Duration,
    /// After it closed.
    pub give_up: Duration,
}

impl Default for Gathering {
    fn default() -> Self {
        Self {
            every: limits::BATCH_EVERY,
            bytes: limits::BATCH_BYTES,
            sends: limits::BATCH_SENDS as usize,
            deadline: limits::BATCH_DEADLINE,
            give_up: limits::BATCH_GIVE_UP,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmailSettings {
    /// Its scheme is one of SMTP's.
    pub relay: Destination,
    pub login: Option<Login>,
    pub from: Mailbox,
    pub deadline: Duration,
}

/// Who this node is to an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    pub user: String,
    /// As its file read at load.
    pub password: Secret,
}

/// What no record, log, metric or error may show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// For whoever it is meant for.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    pub roots: Roots,
    pub extra_ca: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roots {
    Webpki,
    Platform,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicySettings {
    pub mode: PolicyMode,
    /// Inclusive ranges; the bad ports are always taken out.
    pub ports: Vec<(u16, u16)>,
    pub deny_hosts: Vec<HostPattern>,
    pub deny_networks: Vec<IpNet>,
    pub distinct_destinations_per_minute: u32,
    pub exceptions: Vec<Exception>,
    /// What single tenants may reach: `[[tenant]] allow_hosts, deny_hosts`.
    pub tenants: Vec<TenantHosts>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyMode {
    Enforce,
    Report,
}

/// An exact name, or every name under one. Text is IDNA-mapped, lower-case, dot-trimmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    Exact(Arc<str>),
    /// `*.example.com`: every name under `example.com`, not itself.
    Under(Arc<str>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exception {
    pub networks: Vec<IpNet>,
    pub hosts: Vec<HostPattern>,
    pub reason: String,
    /// Empty: every tenant.
    pub tenants: Vec<TenantId>,
    /// Empty: every kind, and reflectors.
    pub destinations: Vec<Kind>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantHosts {
    pub tenant: TenantId,
    /// `Some`: nothing else is allowed.
    pub allow: Option<Vec<HostPattern>>,
    pub deny: Vec<HostPattern>,
}

/// What differs for one tenant; everything else follows `[delivery]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantSettings {
    pub id: TenantId,
    pub pool: Arc<str>,
    pub in_flight: u32,
    pub queued: u64,
    pub keep_bodies: bool,
    /// `None`: this tenant has no mail.
    pub mail: Option<MailTo>,
}

/// The only places that a tenant's mail goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailTo {
    pub owner: Address,
    pub collaborators: Vec<Address>,
}

/// Beside the built-in secret headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redact {
    /// Lower-case header names.
    pub headers: Vec<String>,
    /// RFC 6901 pointers into JSON bodies.
    pub json_pointers: Vec<String>,
}

/// Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub request_body: u64,
    pub api_request: u64,
    pub sends_per_request: u32,
    pub sends_per_execution: u32,
    pub response_body_stored: u64,
    pub response_body_read: u64,
    pub response_headers: u64,
    pub response_header_lines: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreSettings {
    /// `Some`: the tier's database; what is about files here is of the embedded store.
    pub postgres: Option<PostgresSettings>,
    pub path: PathBuf,
    pub key_file: PathBuf,
    pub retention: Duration,
    pub body_retention: Duration,
    pub max_bytes: u64,
    pub body_max_bytes: u64,
    /// Of one tenant, records and bodies; past it that tenant's calls are refused.
    pub tenant_max_bytes: u64,
}

/// The database of a tier of many nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PostgresSettings {
    /// Without a password.
    pub url: String,
    pub password_file: Option<PathBuf>,
    /// Besides the roots of `[tls]`.
    pub tls_ca: Option<PathBuf>,
    pub connections: u32,
    pub lease: Duration,
}

/// The pool of a tenant without settings of its own, and of a source that names none.
pub const DEFAULT_POOL: &str = "default";

impl Config {
    pub fn tenant(&self, id: &TenantId) -> Option<&TenantSettings> {
        self.tenants.get(id)
    }

    pub fn pool_of(&self, id: &TenantId) -> Arc<str> {
        self.tenant(id).map_or_else(|| Arc::from(DEFAULT_POOL), |tenant| tenant.pool.clone())
    }

    pub fn keeps_bodies(&self, id: &TenantId) -> bool {
        self.tenant(id).is_none_or(|tenant| tenant.keep_bodies)
    }

    /// How long a delivery of this kind may take, everything in it.
    pub fn deadline_of(&self, kind: Kind) -> Duration {
        match kind {
            Kind::Http => self.delivery.deadline,
            Kind::Email => self.destinations.email.as_ref().map_or(self.delivery.deadline, |email| email.deadline),
            Kind::S3 => {
                self.destinations.s3.as_ref().map_or(self.delivery.deadline, |set_up| set_up.gathering.deadline)
            }
            Kind::Sql => {
                self.destinations.sql.as_ref().map_or(self.delivery.deadline, |set_up| set_up.gathering.deadline)
            }
        }
    }

    /// Of a kind that gathers; where it is not set up any more, what is left of it closes and ends by the defaults.
    pub fn gathering_of(&self, kind: Kind) -> Gathering {
        match kind {
            Kind::S3 => self.destinations.s3.as_ref().map(|set_up| set_up.gathering).unwrap_or_default(),
            Kind::Sql => self.destinations.sql.as_ref().map(|set_up| set_up.gathering).unwrap_or_default(),
            Kind::Http | Kind::Email => Gathering::default(),
        }
    }

    /// What a batch for this place is connected to; `None`: nothing is set up for it.
    pub fn way_of(&self, place: &Place) -> Option<Destination> {
        match place {
            Place::S3 { bucket, .. } => self.destinations.s3.as_ref()?.way(bucket).ok(),
            Place::Sql { .. } => self.destinations.sql.as_ref().map(|set_up| set_up.server.clone()),
        }
    }

    /// Which place this is, by what is set up now: another configuration may lead the same events elsewhere. `None`: nothing is.
    pub fn placed(&self, tenant: &TenantId, place: &Place) -> Option<String> {
        match place {
            Place::S3 { bucket, .. } => self.destinations.s3.as_ref()?.placed(bucket),
            Place::Sql { .. } => self.destinations.sql.as_ref()?.placed(tenant),
        }
    }

    /// No delivery that began is under way for longer: a batch's tries are none.
    pub fn longest_deadline(&self) -> Duration {
        let begun = Kind::ALL.iter().filter(|kind| matches!(kind, Kind::Http | Kind::Email));
        begun.map(|kind| self.deadline_of(*kind)).max().unwrap_or(self.delivery.deadline)
    }
}
