//! From the file as written to the [`Config`] as trusted, or **every** problem of it at once.
//!
//! Beside the file itself this reads what it names: the published addresses, PEM files, `/etc/resolv.conf`. It binds
//! nothing, resolves nothing and reads no clock. A relation between two keys is judged only where both could be read;
//! a default that would break one gives way to the key that was written.

mod destination;
mod egress;
mod files;
mod policy;
mod proxy;
mod publish;
mod unchangeable;

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::{HeaderName, HeaderValue};
use jiff::Timestamp;

use super::file::{ConfigProblem, KeyAt, Reader, Setting, Table, Wrong, show_duration, show_size, wrong};
use super::{
    Api, ApiClient, Config, DEFAULT_POOL, Delivery, Destinations, Limits, ListenerTls, PostgresSettings, Redact, Roots,
    Scopes, StoreSettings, Telemetry, TenantSettings, Tls,
};
use crate::limits::{self, KIB, MIB, TIB};
use crate::publish::PublishedList;
use crate::send::TenantId;

pub(in crate::config) use self::files::read_small;
pub use self::unchangeable::unchangeable;

const DAY: Duration = Duration::from_secs(86_400);
const SECOND: Duration = Duration::from_secs(1);

/// Asked of every address that a source binds: whether this host has it.
pub type Prove<'a> = &'a dyn Fn(IpAddr) -> Result<(), Wrong>;

impl Config {
    /// Reads and checks the file and all that it names.
    pub fn load(path: &Path, now: Timestamp) -> Result<Self, Vec<ConfigProblem>> {
        Self::load_proven(path, now, &|_| Ok(()))
    }

    /// As [`Self::load`], with what `prove` says of the sources among the problems.
    pub fn load_proven(path: &Path, now: Timestamp, prove: Prove<'_>) -> Result<Self, Vec<ConfigProblem>> {
        from_text(&text_of(path)?, path, Outside { resolv_conf: Path::new(RESOLV_CONF), now, prove })
    }

    /// As [`Self::load`], of a text in place of the file's: `path` names it in problems, and relative paths start at
    /// its directory.
    pub fn from_text(text: &str, path: &Path, now: Timestamp) -> Result<Self, Vec<ConfigProblem>> {
        from_text(text, path, Outside { resolv_conf: Path::new(RESOLV_CONF), now, prove: &|_| Ok(()) })
    }
}

/// The published addresses that the file names, and where they stand. The rest of the file is not looked at: whoever
/// wants the list need not be able to read keys.
pub fn published(path: &Path, now: Timestamp) -> Result<(PathBuf, PublishedList), Vec<ConfigProblem>> {
    let text = text_of(path)?;
    let reader = Reader::new(path, &text);
    let outside = Outside { resolv_conf: Path::new(RESOLV_CONF), now, prove: &|_| Ok(()) };
    let list = reader.parse().and_then(|document| {
        let root = Table::root(&reader, &document);
        let surroundings = Surroundings { reader: &reader, base: base_of(path), outside };
        surroundings.published_list(&root.table("egress"))
    });
    list.ok_or_else(|| reader.into_problems())
}

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What reading asks beside the files that are named.
#[derive(Clone, Copy)]
struct Outside<'a> {
    resolv_conf: &'a Path,
    now: Timestamp,
    prove: Prove<'a>,
}

fn text_of(path: &Path) -> Result<String, Vec<ConfigProblem>> {
    let whole = |detail: String, fix: &str| {
        let (file, key, fix) = (path.to_owned(), String::new(), fix.to_owned());
        vec![ConfigProblem { file, line: None, key, detail, fix }]
    };
    let bytes = files::read_bounded(path)
        .map_err(|cause| whole(format!("cannot be read: {cause}"), "name a readable file with --config"))?;
    String::from_utf8(bytes).map_err(|_| whole("is not UTF-8".to_owned(), "save it as UTF-8"))
}

/// Where relative paths start.
fn base_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

fn from_text(text: &str, path: &Path, outside: Outside<'_>) -> Result<Config, Vec<ConfigProblem>> {
    let reader = Reader::new(path, text);
    let config = reader.parse().map(|document| {
        let surroundings = Surroundings { reader: &reader, base: base_of(path), outside };
        surroundings.read(Table::root(&reader, &document))
    });
    match (config, reader.into_problems()) {
        (Some(config), problems) if problems.is_empty() => Ok(config),
        (_, problems) => Err(problems),
    }
}

/// Whether callers of a listener may have to show a certificate.
#[derive(Clone, Copy)]
enum Mutual {
    Possible,
    /// It is for the world.
    Never,
}

/// Who may come to a listener that knows its callers by their tokens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Callers {
    /// Each `[[api.client]]`.
    Named,
    /// Whoever is on this host: there are none.
    OfThisHost,
}

/// Where the pools that tenants name have their sources.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pools {
    OfThisNode,
    OfTheTier,
}

/// What reading needs beside the document.
struct Surroundings<'a, 'r> {
    reader: &'r Reader<'a>,
    base: &'r Path,
    outside: Outside<'r>,
}

impl<'a, 'r> Surroundings<'a, 'r> {
    /// The configuration, good only if no problem was noted.
    fn read(&self, root: Table<'a, 'r>) -> Config {
        let node = root.text("node", String::new(), node_name);
        let api = root.table("api");
        let callers = if api.item("client").is_some() { Callers::Named } else { Callers::OfThisHost };
        let (api, api_listen) = self.api(api, callers);
        let metrics_listen = metrics(root.table("metrics"));
        let publish = self.publish(root.table("publish"));
        let proxy = self.proxy(root.table("proxy"), callers);
        let optional = [publish.as_ref().map(|(_, listen)| listen), proxy.as_ref().map(|(_, listen)| listen)];
        self.listeners_differ([&api_listen, &metrics_listen].into_iter().chain(optional.into_iter().flatten()));
        let egress = self.egress(root.table("egress"));
        let mut destinations = self.destinations(root.table("destination"));
        let delivery = self.delivery(root.table("delivery"), &destinations);
        let tls = self.tls(root.table("tls"));
        let dns_servers = self.dns(root.table("dns"));
        let mut policy = self.policy(root.table("policy"));
        let store = self.store(root.table("store"), delivery.deadline);
        // Another node of a tier may have a pool's sources.
        let pools = if store.postgres.is_some() { Pools::OfTheTier } else { Pools::OfThisNode };
        let Tenants { settings: tenants, hosts, named } =
            self.tenants(root.tables("tenant"), &delivery, &egress, pools);
        policy.tenants = hosts;
        if let Some(sql) = destinations.sql.as_mut().map(Arc::make_mut) {
            self.schemas(sql, &named);
        }
        let redact = redact(root.table("redact"));
        let limits = self.limits(root.table("limits"), &delivery);
        let telemetry = telemetry(root.table("telemetry"));
        if !node.written {
            self.known_host(&node);
        }
        root.finish();
        Config {
            node: if node.written { node.value } else { host_name().unwrap_or_default() },
            api,
            metrics_listen: metrics_listen.value,
            publish: publish.map(|(publish, _)| publish.or_contact(&delivery.contact)),
            proxy: proxy.map(|(proxy, _)| proxy),
            egress,
            delivery,
            destinations,
            tls,
            dns_servers,
            policy,
            tenants,
            redact,
            limits,
            store,
            telemetry,
        }
    }

    fn known_host(&self, node: &Setting<String>) {
        if host_name().is_none() {
            let wrong = wrong("is missing, and the host's name is not usable as one", "write node = \"egress-1\"");
            self.reader.note(&node.place, wrong);
        }
    }

    /// Notes `wrong` at the first unless one of the two could not be read: then nothing is known of their relation.
    fn relate<T, U>(&self, at: &Setting<T>, with: &Setting<U>, holds: bool, wrong: impl FnOnce() -> Wrong) {
        if !holds && !at.broken && !with.broken {
            self.reader.note(&at.place, wrong());
        }
    }

    /// `at` may not be greater than `of`.
    fn at_most<T: PartialOrd + Copy>(&self, at: &Setting<T>, name: &str, of: &Setting<T>, show: impl Fn(T) -> String) {
        self.relate(at, of, at.value <= of.value, || {
            let detail = format!("{} is more than {name}, which is {}", show(at.value), show(of.value));
            wrong(detail, format!("at most {}, or a greater {name}", show(of.value)))
        });
    }

    fn path(&self, written: &str) -> PathBuf {
        self.base.join(written)
    }

    fn api(&self, table: Table<'a, 'r>, callers: Callers) -> (Api, Setting<SocketAddr>) {
        let listen = table.text("listen", SocketAddr::from(([127, 0, 0, 1], 8700)), listener);
        let tls = table.table("tls");
        let tls = tls.is_written().then(|| self.listener_tls(tls, Mutual::Possible)).flatten();
        let clients = self.clients(table.tables("client"));
        let embed = values(table.texts("embed", origin));
        let local = listen.value.ip().to_canonical().is_loopback();
        if callers == Callers::OfThisHost && !local && !listen.broken {
            self.reader.note(
                &KeyAt { key: "api.client".to_owned(), line: listen.place.line },
                wrong(
                    format!("is missing, and {} is open to more than this host", listen.value),
                    "add an [[api.client]] with name, token_sha256, tenant and scopes, or listen on 127.0.0.1",
                ),
            );
        }
        table.finish();
        (Api { listen: listen.value, tls, clients, embed }, listen)
    }

    fn listener_tls(&self, table: Table<'a, 'r>, mutual: Mutual) -> Option<ListenerTls> {
        let cert = table.required("cert", "name the PEM file with the certificate chain", |text| {
            let path = self.path(text);
            files::certificates(&path)?;
            Ok(path)
        });
        let key = table.required("key", "name the PEM file with the private key", |text| {
            let path = self.path(text);
            files::private_key(&path)?;
            Ok(path)
        });
        let client_ca = match mutual {
            Mutual::Never => None,
            Mutual::Possible => {
                let given = table.optional("client_ca", |text| {
                    let path = self.path(text);
                    files::authorities(&path)?;
                    Ok(path)
                });
                given.value
            }
        };
        let pair = cert.zip(key);
        if let Some((cert, key)) = &pair
            && let Err(wrong) = files::matching(cert, key)
        {
            table.note("key", wrong);
        }
        table.finish();
        pair.map(|(cert, key)| ListenerTls { cert, key, client_ca })
    }

    fn clients(&self, tables: Vec<Table<'a, 'r>>) -> Vec<ApiClient> {
        let mut clients = Vec::new();
        let mut names = HashSet::new();
        let mut tokens = HashSet::new();
        for table in tables {
            let name = table.required("name", "name the client, for logs", |text| {
                plain("a name", text, limits::NAME_CHARS_MAX)?;
                once(&mut names, text)
            });
            let token = table.required("token_sha256", "printf %s TOKEN | sha256sum", |text| {
                let digest = sha256_hex(text)?;
                if tokens.insert(digest) {
                    Ok(digest)
                } else {
                    Err(wrong("is another client's too", "give each client a token of its own"))
                }
            });
            let tenant = table.required("tenant", "\"*\" for any tenant, or one tenant's id", |text| {
                if text == "*" { Ok(None) } else { tenant_id(text).map(Some) }
            });
            let scopes = self.scopes(&table);
            table.finish();
            if let (Some(name), Some(token_sha256), Some(tenant), Some(scopes)) = (name, token, tenant, scopes) {
                clients.push(ApiClient { name, token_sha256, tenant, scopes });
            }
        }
        clients
    }

    fn scopes(&self, table: &Table<'a, 'r>) -> Option<Scopes> {
        let names = table.texts("scopes", |text| match text {
            "submit" | "read" | "operate" | "proxy" => Ok(text.to_owned()),
            _ => Err(wrong(format!("{text:?} is not a scope"), "submit, read, operate or proxy")),
        });
        let missing = table.item("scopes").is_none();
        if missing || table.is_empty_list("scopes") {
            let detail = if missing { "is missing" } else { "is empty" };
            table.note("scopes", wrong(detail, "one or more of \"submit\", \"read\", \"operate\", \"proxy\""));
        }
        let has = |scope: &str| names.iter().flatten().any(|(name, _)| name == scope);
        names.is_some().then(|| Scopes {
            submit: has("submit"),
            read: has("read"),
            operate: has("operate"),
            proxy: has("proxy"),
        })
    }

    /// Two listeners on one port would be found out only when the second is bound.
    fn listeners_differ<'s>(&self, all: impl Iterator<Item = &'s Setting<SocketAddr>>) {
        let all: Vec<_> = all.collect();
        for (index, later) in all.iter().enumerate() {
            for earlier in &all[..index] {
                let (a, b) = (earlier.value, later.value);
                let meet = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
                self.relate(later, earlier, !(meet && a.port() == b.port() && a.port() != 0), || {
                    wrong(format!("{b} collides with {}, which is {a}", earlier.place.key), "give it another port")
                });
            }
        }
    }

    fn delivery(&self, table: Table<'a, 'r>, destinations: &Destinations) -> Delivery {
        let ms = Duration::from_millis;
        let deadline = table.duration("deadline", limits::DEADLINE, ms(10)..=limits::DEADLINE_MAX);
        let in_flight = table.count("in_flight", limits::IN_FLIGHT, 1..=limits::IN_FLIGHT_MAX);
        let per_tenant = table
            .count("in_flight_per_tenant", limits::IN_FLIGHT_PER_TENANT, 1..=limits::IN_FLIGHT_MAX)
            .or_default(limits::IN_FLIGHT_PER_TENANT.min(in_flight.value));
        let per_destination = table
            .count(
                "in_flight_per_tenant_destination",
                limits::IN_FLIGHT_PER_TENANT_DESTINATION,
                1..=limits::IN_FLIGHT_MAX,
            )
            .or_default(limits::IN_FLIGHT_PER_TENANT_DESTINATION.min(per_tenant.value));
        let queued = table.number("queued", limits::QUEUED, 1..=limits::QUEUED_MAX);
        let queued_per_tenant = table
            .number("queued_per_tenant", limits::QUEUED_PER_TENANT, 1..=limits::QUEUED_MAX)
            .or_default(limits::QUEUED_PER_TENANT.min(queued.value));
        let hold_limit = table.duration("hold_limit", limits::HOLD_LIMIT, SECOND..=7 * DAY);
        let expires_in = table.duration("expires_in", limits::EXPIRES_IN, SECOND..=30 * DAY);
        let keep_alive = table.duration("keep_alive", limits::KEEP_ALIVE, Duration::ZERO..=60 * SECOND);
        let user_agent = table.text("user_agent", default_user_agent(), user_agent);
        let contact = table.text("contact", String::new(), contact);
        let propagate_trace = table.flag("propagate_trace", false);
        let drain =
            table.duration("drain", limits::DRAIN, ms(10)..=600 * SECOND).or_default(limits::DRAIN.max(deadline.value));
        let of_email = destinations.email.as_ref().map_or(Duration::ZERO, |email| email.deadline);
        self.at_most(&per_tenant, "in_flight", &in_flight, |n| n.to_string());
        self.at_most(&per_destination, "in_flight_per_tenant", &per_tenant, |n| n.to_string());
        self.at_most(&queued_per_tenant, "queued", &queued, |n| n.to_string());
        self.relate(&drain, &deadline, drain.value >= deadline.value, || {
            let (drain, deadline) = (show_duration(drain.value), show_duration(deadline.value));
            let detail = format!("{drain} is less than deadline, which is {deadline}: deliveries would be cut off");
            wrong(detail, format!("at least {deadline}"))
        });
        table.finish();
        Delivery {
            deadline: deadline.value,
            in_flight: in_flight.value,
            in_flight_per_tenant: per_tenant.value,
            in_flight_per_tenant_destination: per_destination.value,
            queued: queued.value,
            queued_per_tenant: queued_per_tenant.value,
            hold_limit: hold_limit.value,
            expires_in: expires_in.value,
            keep_alive: keep_alive.value,
            user_agent: match &*contact.value {
                "" => user_agent.value,
                contact => format!("{} (+{contact})", user_agent.value),
            },
            contact: contact.value,
            propagate_trace: propagate_trace.value,
            drain: drain.value.max(of_email),
        }
    }

    fn tls(&self, table: Table<'a, 'r>) -> Tls {
        let roots = table.text("roots", Roots::Webpki, |text| match text {
            "webpki" => Ok(Roots::Webpki),
            "platform" => files::platform_roots().map(|()| Roots::Platform),
            _ => Err(wrong(format!("{text:?} is not a set of roots"), "\"webpki\" or \"platform\"")),
        });
        let extra_ca = table.texts("extra_ca", |text| {
            let path = self.path(text);
            files::authorities(&path)?;
            Ok(path)
        });
        table.finish();
        Tls { roots: roots.value, extra_ca: values(extra_ca) }
    }

    fn dns(&self, table: Table<'a, 'r>) -> Vec<SocketAddr> {
        let mut seen = HashSet::new();
        let mut servers = Vec::new();
        for (server, place) in table.texts("servers", name_server).unwrap_or_default() {
            if !seen.insert(server) {
                self.reader.note(&place, wrong(format!("{server} is named twice"), "name it once"));
            }
            servers.push(server);
        }
        if servers.len() > limits::NAME_SERVERS_MAX {
            let detail = format!("names {} servers", servers.len());
            table.note("servers", wrong(detail, format!("at most {}", limits::NAME_SERVERS_MAX)));
        }
        if table.item("servers").is_none() || table.is_empty_list("servers") {
            match files::name_servers(self.outside.resolv_conf) {
                Ok(found) => servers = found,
                Err(wrong) => table.note("servers", wrong),
            }
        }
        table.finish();
        servers
    }

    fn limits(&self, table: Table<'a, 'r>, delivery: &Delivery) -> Limits {
        let request_body = table.size("request_body", limits::REQUEST_BODY, 1..=64 * MIB);
        let api_request = table.size("api_request", limits::API_REQUEST, KIB..=limits::API_REQUEST_MAX);
        let capped = u32::try_from(delivery.queued_per_tenant).unwrap_or(u32::MAX);
        let sends_per_request = table
            .count("sends_per_request", limits::SENDS_PER_REQUEST, 1..=limits::MEMBERS_MAX as u32)
            .or_default(limits::SENDS_PER_REQUEST.min(capped));
        let sends_per_execution = table.count("sends_per_execution", limits::SENDS_PER_EXECUTION, 1..=1_000_000);
        let response_body_read = table.size("response_body_read", limits::RESPONSE_BODY_READ, 1..=256 * MIB);
        let response_body_stored = table
            .size("response_body_stored", limits::RESPONSE_BODY_STORED, 0..=256 * MIB)
            .or_default(limits::RESPONSE_BODY_STORED.min(response_body_read.value));
        let response_headers = table.size("response_headers", limits::RESPONSE_HEADERS, KIB..=MIB);
        let response_header_lines =
            table.count("response_header_lines", limits::RESPONSE_HEADER_LINES, 16..=limits::RESPONSE_HEADER_LINES_MAX);
        self.at_most(&response_body_stored, "response_body_read", &response_body_read, show_size);
        let encoded = request_body.value.div_ceil(3) * 4;
        self.relate(&request_body, &api_request, encoded <= api_request.value, || {
            let (body, call) = (show_size(request_body.value), show_size(api_request.value));
            let detail = format!("a body of {body} does not fit, as base64, into an api_request of {call}");
            wrong(detail, format!("at most {}, or a greater api_request", show_size(api_request.value / 4 * 3)))
        });
        self.relate(&sends_per_request, &sends_per_request, sends_per_request.value <= capped, || {
            let detail = format!("{} is more than a tenant may have queued ({capped})", sends_per_request.value);
            wrong(detail, "at most delivery.queued_per_tenant")
        });
        table.finish();
        Limits {
            request_body: request_body.value,
            api_request: api_request.value,
            sends_per_request: sends_per_request.value,
            sends_per_execution: sends_per_execution.value,
            response_body_stored: response_body_stored.value,
            response_body_read: response_body_read.value,
            response_headers: response_headers.value,
            response_header_lines: response_header_lines.value,
        }
    }

    fn store(&self, table: Table<'a, 'r>, deadline: Duration) -> StoreSettings {
        let path = table.text("path", PathBuf::from("/var/lib/egressd"), |text| self.store_path(text));
        let postgres = self.postgres(&table, deadline);
        let key_file = table
            .text("key_file", PathBuf::new(), |text| self.store_path(text))
            .or_default(if postgres.is_some() { PathBuf::from("/etc/egressd/key") } else { path.value.join("key") });
        // A key is promised for as long; where records go earlier for want of room, it is carried on.
        let retention = table.duration("retention", limits::RETENTION, limits::IDEMPOTENCY_KEPT..=3650 * DAY);
        let body_retention = table
            .duration("body_retention", limits::BODY_RETENTION, Duration::ZERO..=3650 * DAY)
            .or_default(limits::BODY_RETENTION.min(retention.value));
        let max_bytes = table.size("max_bytes", limits::STORE_BYTES, 16 * MIB..=1024 * TIB);
        let body_max_bytes = table
            .size("body_max_bytes", limits::STORE_BODY_BYTES, MIB..=1024 * TIB)
            .or_default(limits::STORE_BODY_BYTES.min(max_bytes.value));
        let tenant_max_bytes =
            table.size("tenant_max_bytes", limits::STORE_BYTES / 4, MIB..=1024 * TIB).or_default(max_bytes.value / 4);
        // How large a tier's database may be is not said here.
        if postgres.is_none() {
            self.at_most(&tenant_max_bytes, "max_bytes", &max_bytes, show_size);
        }
        self.at_most(&body_retention, "retention", &retention, show_duration);
        self.at_most(&body_max_bytes, "max_bytes", &max_bytes, show_size);
        self.relate(&key_file, &path, key_file.value != path.value, || {
            wrong("is the store's directory itself", "name a file")
        });
        table.finish();
        StoreSettings {
            postgres,
            path: path.value,
            key_file: key_file.value,
            retention: retention.value,
            body_retention: body_retention.value,
            max_bytes: max_bytes.value,
            body_max_bytes: body_max_bytes.value,
            tenant_max_bytes: tenant_max_bytes.value,
        }
    }

    /// The database of a tier, where that is the engine.
    fn postgres(&self, table: &Table<'a, 'r>, deadline: Duration) -> Option<PostgresSettings> {
        let engine = table.text("engine", false, |text| match text {
            "embedded" => Ok(false),
            "postgres" => Ok(true),
            _ => Err(wrong(format!("{text:?} is not an engine"), "\"embedded\" or \"postgres\"")),
        });
        let url = table.optional("url", database_url);
        let password_file = table.optional("password_file", |text| self.store_path(text));
        let tls_ca = table.optional("tls_ca", |text| {
            let path = self.path(text);
            files::certificates(&path)?;
            Ok(path)
        });
        let connections = table.count(
            "connections",
            limits::POSTGRES_CONNECTIONS,
            limits::POSTGRES_CONNECTIONS_MIN..=limits::POSTGRES_CONNECTIONS_MAX,
        );
        let least = deadline * limits::LEASE_DEADLINES;
        let lease =
            table.duration("lease", limits::LEASE, SECOND..=limits::LEASE_MAX).or_default(limits::LEASE.max(least));
        if !engine.value {
            if url.written && !engine.written {
                let fix = "write engine = \"postgres\", or take the url out";
                table.note("engine", wrong("is missing, and a url is given", fix));
            }
            return None;
        }
        if lease.value < least && !lease.broken {
            let (is, least) = (show_duration(lease.value), show_duration(least));
            let detail =
                format!("{is} is less than three times [delivery] deadline: a slow answer would be taken for a death");
            self.reader.note(&lease.place, wrong(detail, format!("at least {least}")));
        }
        for key in ["path", "max_bytes", "body_max_bytes"] {
            if table.item(key).is_some() {
                table.note(key, wrong("is of the embedded store, and engine is \"postgres\"", "take it out"));
            }
        }
        if !url.written {
            self.reader.note(&url.place, wrong("is missing", "postgres://USER@HOST/DATABASE"));
        }
        Some(PostgresSettings {
            url: url.value?,
            password_file: password_file.value,
            tls_ca: tls_ca.value,
            connections: connections.value,
            lease: lease.value,
        })
    }

    fn store_path(&self, text: &str) -> Result<PathBuf, Wrong> {
        if text.is_empty() {
            return Err(wrong("is empty", "name a path, like \"/var/lib/egressd\""));
        }
        Ok(self.path(text))
    }

    fn tenants(
        &self,
        tables: Vec<Table<'a, 'r>>,
        delivery: &Delivery,
        egress: &super::Egress,
        whose: Pools,
    ) -> Tenants {
        let mut tenants = HashMap::new();
        let mut hosts = Vec::new();
        let mut ids = HashSet::new();
        let mut named = Vec::new();
        let pools: HashSet<&str> = egress.sources.iter().map(|source| &*source.pool).collect();
        for table in tables {
            let id = table.required("id", "name the tenant that differs", |text| {
                once(&mut ids, text)?;
                tenant_id(text)
            });
            let pool = table.text("pool", Arc::from(DEFAULT_POOL), |text| {
                let pool = egress::pool_name(text)?;
                if whose == Pools::OfTheTier || pools.is_empty() || pools.contains(&*pool) {
                    return Ok(pool);
                }
                Err(wrong(format!("no source is in the pool {text:?}"), "give a source this pool, or name another"))
            });
            let in_flight = table.count("in_flight", delivery.in_flight_per_tenant, 1..=delivery.in_flight);
            let queued = table.number("queued", delivery.queued_per_tenant, 1..=delivery.queued);
            let keep_bodies = table.flag("keep_bodies", true);
            let allow = table.texts("allow_hosts", policy::host_pattern);
            let deny = table.texts("deny_hosts", policy::host_pattern);
            let mail = self.mail_to(&table);
            let place = table.place_of("id");
            table.finish();
            let Some(id) = id else { continue };
            named.push((id.clone(), place));
            // The key's default is the empty list, so writing that down cannot mean anything else.
            let allow = allow.map(|list| values(Some(list))).filter(|list| !list.is_empty());
            hosts.push(super::TenantHosts { tenant: id.clone(), allow, deny: values(deny) });
            tenants.insert(
                id.clone(),
                TenantSettings {
                    id,
                    pool: pool.value,
                    in_flight: in_flight.value,
                    queued: queued.value,
                    keep_bodies: keep_bodies.value,
                    mail,
                },
            );
        }
        let served = |pool: &&str| **pool == *DEFAULT_POOL || tenants.values().any(|tenant| *tenant.pool == **pool);
        if whose == Pools::OfThisNode && !pools.is_empty() && !pools.iter().any(served) {
            let place = KeyAt { key: "egress.source".to_owned(), line: None };
            let fix = "put a source into the pool \"default\", or give a [[tenant]] one of theirs";
            self.reader.note(&place, wrong("no source is in a pool that any tenant uses", fix));
        }
        Tenants { settings: tenants, hosts, named }
    }
}

/// What `[[tenant]]` says.
struct Tenants {
    settings: HashMap<TenantId, TenantSettings>,
    hosts: Vec<super::TenantHosts>,
    /// Where each is named.
    named: Vec<(TenantId, KeyAt)>,
}

fn metrics(table: Table<'_, '_>) -> Setting<SocketAddr> {
    let listen = table.text("listen", SocketAddr::from(([127, 0, 0, 1], 8701)), listener);
    table.finish();
    listen
}

fn telemetry(table: Table<'_, '_>) -> Telemetry {
    let otlp = table.optional("otlp", publish::own_url);
    let one_in = table.count("one_in", 1, 1..=1_000_000_000);
    table.finish();
    Telemetry { otlp: otlp.value, one_in: one_in.value }
}

fn redact(table: Table<'_, '_>) -> Redact {
    let headers = table.texts("headers", |text| {
        HeaderName::from_bytes(text.as_bytes())
            .map(|name| name.as_str().to_owned())
            .map_err(|_| wrong(format!("{text:?} is not a header's name"), "write the name alone, like \"x-secret\""))
    });
    let json_pointers = table.texts("json_pointers", json_pointer);
    table.finish();
    Redact { headers: values(headers), json_pointers: values(json_pointers) }
}

fn values<T>(list: Option<Vec<(T, KeyAt)>>) -> Vec<T> {
    list.unwrap_or_default().into_iter().map(|(value, _)| value).collect()
}

fn host_name() -> Option<String> {
    let name = nix::unistd::gethostname().ok()?.into_string().ok()?;
    node_name(&name).ok()
}

fn node_name(text: &str) -> Result<String, Wrong> {
    plain("a name", text, limits::NAME_CHARS_MAX)
}

/// A name as logs, metrics and pages can show it without care.
fn plain(what: &str, text: &str, chars_max: usize) -> Result<String, Wrong> {
    if text.is_empty() || text.len() > chars_max || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        let fix = format!("1 to {chars_max} visible ASCII characters without spaces");
        return Err(wrong(format!("{text:?} is not usable as {what}"), fix));
    }
    Ok(text.to_owned())
}

fn once(seen: &mut HashSet<String>, text: &str) -> Result<String, Wrong> {
    if seen.insert(text.to_owned()) {
        Ok(text.to_owned())
    } else {
        Err(wrong(format!("{text:?} stands here twice"), "each needs its own; join the two tables"))
    }
}

pub(super) fn tenant_id(text: &str) -> Result<TenantId, Wrong> {
    if text == "*" {
        return Err(wrong("\"*\" stands for every tenant", "name one tenant"));
    }
    plain("a tenant's id", text, limits::TENANT_CHARS_MAX).map(TenantId::new)
}

/// An origin as browsers tell it.
fn origin(text: &str) -> Result<String, Wrong> {
    let fix = "like \"https://flows.example.net\": no path, and http for this host alone";
    let not_one = || wrong(format!("{text:?} is not the origin of a page"), fix);
    let url = url::Url::parse(text).map_err(|_| not_one())?;
    let local = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    let is_one = url.scheme() == "https" || url.scheme() == "http" && local;
    let told = url.origin().ascii_serialization();
    if is_one && url.as_str().trim_end_matches('/') == told { Ok(told) } else { Err(not_one()) }
}

fn listener(text: &str) -> Result<SocketAddr, Wrong> {
    text.parse().map_err(|_| {
        wrong(
            format!("{text:?} is not an address and port"),
            "write an IP address and a port, like \"127.0.0.1:8700\" or \"[::1]:8700\"",
        )
    })
}

fn name_server(text: &str) -> Result<SocketAddr, Wrong> {
    let bare = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
    let server = bare.or_else(|_| text.parse()).map_err(|_| {
        wrong(
            format!("{text:?} is not the address of a name server"),
            "an IP address, or one with a port: \"192.0.2.53:53\"",
        )
    })?;
    if server.ip().is_unspecified() || server.ip().is_multicast() || server.port() == 0 {
        return Err(wrong(format!("{text:?} cannot be asked"), "name the address at which the name server answers"));
    }
    Ok(server)
}

/// A database's URL, without a password: it would stand in a file that many read.
fn database_url(text: &str) -> Result<String, Wrong> {
    const FORM: &str = "postgres://USER@HOST/DATABASE";
    let rest = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"));
    let rest = rest.ok_or_else(|| wrong("is not the URL of a PostgreSQL database", FORM))?;
    let (front, query) = rest.split_once('?').unwrap_or((rest, ""));
    let user = front.split('/').next().and_then(|authority| authority.rsplit_once('@')).map(|(user, _)| user);
    if user.is_some_and(|user| user.contains(':')) || query.split('&').any(|pair| pair.starts_with("password=")) {
        return Err(wrong("has a password in it", "put the password into a file, and name that as password_file"));
    }
    Ok(text.to_owned())
}

fn sha256_hex(text: &str) -> Result<[u8; 32], Wrong> {
    let bad =
        || wrong("is not 64 hex digits", "the SHA-256 of the token, never the token: printf %s TOKEN | sha256sum");
    if text.len() != 64 || !text.is_ascii() {
        return Err(bad());
    }
    let mut digest = [0; 32];
    for (index, byte) in digest.iter_mut().enumerate() {
        let digits = text.get(2 * index..2 * index + 2).ok_or_else(bad)?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(bad());
        }
        *byte = u8::from_str_radix(digits, 16).map_err(|_| bad())?;
    }
    Ok(digest)
}

fn user_agent(text: &str) -> Result<String, Wrong> {
    let visible = text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    let trimmed = text.trim() == text && !text.is_empty();
    if !visible || !trimmed || text.len() > 256 || HeaderValue::from_str(text).is_err() {
        return Err(wrong(format!("{text:?} is not a User-Agent"), "1 to 256 visible ASCII characters"));
    }
    Ok(text.replace("<version>", env!("CARGO_PKG_VERSION")))
}

/// What stands in the User-Agent as a comment (RFC 9110 section 10.1.5), which parentheses would end.
fn contact(text: &str) -> Result<String, Wrong> {
    let good = |byte: u8| (0x21..0x7f).contains(&byte) && !matches!(byte, b'(' | b')' | b'\\');
    if !text.bytes().all(good) || text.len() > 200 {
        let fix =
            "a URL or a mail address, like \"https://egress.example.net/\", of at most 200 visible ASCII characters";
        return Err(wrong(format!("{text:?} is no contact"), fix));
    }
    Ok(text.to_owned())
}

fn default_user_agent() -> String {
    format!("egressd/{}", env!("CARGO_PKG_VERSION"))
}

/// RFC 6901 section 3.
fn json_pointer(text: &str) -> Result<String, Wrong> {
    if text.is_empty() {
        return Err(wrong("points to the whole body", "name a part of it; a [[tenant]] may have keep_bodies = false"));
    }
    let escaped = text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    if !text.starts_with('/') || !escaped || text.len() > 1024 {
        let fix = "begin with /, write ~1 for / and ~0 for ~ in a name, like \"/customer/email\"";
        return Err(wrong(format!("{text:?} is not a JSON Pointer"), fix));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests;
