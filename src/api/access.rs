//! Who calls, what they may do, and for which tenant.
//!
//! A token is compared by its SHA-256, in constant time, against every client's. Without `[[api.client]]` the API is
//! loopback's alone: everyone who reaches it may do everything, so a browser must not be tricked into reaching it,
//! which is what [`guard`] is for.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, Method, Request, StatusCode, Uri, Version};

use super::budget::Holder;
use super::problem::{Problem, ProblemCode};
use crate::config::{ApiClient, Config, Scopes};
use crate::limits;
use crate::redact::sha256;
use crate::send::TenantId;
use crate::store::Reach;

/// Which tenant a call is for.
pub const TENANT_HEADER: &str = "egressd-tenant";
/// All of them, where it may be asked.
pub const ALL_TENANTS: &str = "*";
/// The tenant of callers who name none, while there are no clients.
pub const DEFAULT_TENANT: &str = "default";
/// W3C Fetch Metadata: where the page stands that makes a browser send a request.
const SEC_FETCH_SITE: &str = "sec-fetch-site";
/// Who acts while there are no clients.
const LOCAL: &str = "local";

/// What a call asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Submit,
    Read,
    SubmitAndRead,
    Operate,
    Proxy,
}

impl Need {
    fn met_by(self, scopes: Scopes) -> bool {
        match self {
            Self::Submit => scopes.submit,
            Self::Read => scopes.read,
            Self::SubmitAndRead => scopes.submit && scopes.read,
            Self::Operate => scopes.operate,
            Self::Proxy => scopes.proxy,
        }
    }

    fn names(self) -> &'static str {
        match self {
            Self::Submit => "submit",
            Self::Read => "read",
            Self::SubmitAndRead => "submit and read",
            Self::Operate => "operate",
            Self::Proxy => "proxy",
        }
    }
}

/// A caller who may do what the call asks for.
#[derive(Clone, Debug)]
pub struct Caller {
    pub name: String,
    /// The one tenant whose sends it sees; `None`: any.
    tenant: Option<TenantId>,
    /// Whether it may know addresses of ours.
    pub operate: bool,
    token_sha256: Option<[u8; 32]>,
}

/// The tenants that a call is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tenants {
    One(TenantId),
    All,
}

impl Tenants {
    pub fn reach(self) -> Reach {
        match self {
            Self::One(tenant) => Reach::One(tenant),
            Self::All => Reach::All,
        }
    }
}

impl Caller {
    pub fn admit(headers: &HeaderMap, config: &Config, need: Need) -> Result<Self, Problem> {
        if config.api.clients.is_empty() {
            return Ok(Self::of_this_host());
        }
        Self::with_token(bearer(headers)?, config, need)
    }

    /// While there are no clients.
    pub(crate) fn of_this_host() -> Self {
        Self { name: LOCAL.to_owned(), tenant: None, operate: true, token_sha256: None }
    }

    /// While there are.
    pub(crate) fn with_token(token: &[u8], config: &Config, need: Need) -> Result<Self, Problem> {
        let digest = sha256(token);
        let client = client_of(&config.api.clients, &digest)
            .ok_or_else(|| Problem::unauthorized("the bearer token is not one of a configured [[api.client]]"))?;
        if !need.met_by(client.scopes) {
            let detail = format!("client {} lacks the scope that this needs: {}", client.name, need.names());
            return Err(Problem::new(ProblemCode::Forbidden, detail));
        }
        Ok(Self {
            name: client.name.clone(),
            tenant: client.tenant.clone(),
            operate: client.scopes.operate,
            token_sha256: Some(digest),
        })
    }

    /// Whom what it makes us hold is counted for.
    pub(super) fn holder(&self) -> Holder {
        holder_of(&self.name, self.tenant.as_ref(), self.operate)
    }

    /// Under which its connections are counted.
    pub(crate) fn key(&self) -> Arc<str> {
        self.holder().key().clone()
    }

    /// Whether it still may do this for a tenant that it was admitted for.
    pub(crate) fn may_still(&self, config: &Config, need: Need, tenant: &TenantId) -> bool {
        match &self.token_sha256 {
            None => config.api.clients.is_empty(),
            Some(digest) => client_of(&config.api.clients, digest).is_some_and(|client| {
                need.met_by(client.scopes) && client.tenant.as_ref().is_none_or(|own| own == tenant)
            }),
        }
    }

    /// Whether it would still be admitted: asked by answers that last long, as reloads change clients.
    pub fn still_admitted(&self, config: &Config, need: Need) -> bool {
        match &self.token_sha256 {
            None => config.api.clients.is_empty(),
            Some(digest) => client_of(&config.api.clients, digest).is_some_and(|client| {
                need.met_by(client.scopes) && client.tenant == self.tenant && client.scopes.operate == self.operate
            }),
        }
    }

    /// The tenant that a call is for; it must be one.
    pub fn tenant(&self, headers: &HeaderMap) -> Result<TenantId, Problem> {
        self.tenant_named(named_tenant(headers)?)
    }

    /// The same of one that is named in another way.
    pub(crate) fn tenant_named(&self, named: Option<&str>) -> Result<TenantId, Problem> {
        match (&self.tenant, named) {
            (_, Some(ALL_TENANTS)) if self.tenant.is_none() => {
                Err(Problem::shape("Egressd-Tenant: * is for reading: name the one tenant that this is for"))
            }
            (Some(own), None) => Ok(own.clone()),
            (Some(own), Some(named)) if own.as_str() == named => Ok(own.clone()),
            (Some(_), Some(_)) => Err(foreign_tenant()),
            (None, Some(named)) => Ok(TenantId::new(named)),
            (None, None) if self.token_sha256.is_none() => Ok(TenantId::new(DEFAULT_TENANT)),
            (None, None) => Err(Problem::shape("name the tenant that this is for with the header Egressd-Tenant")),
        }
    }

    /// The tenant or tenants that a reading call is about.
    pub fn tenants(&self, headers: &HeaderMap) -> Result<Tenants, Problem> {
        if named_tenant(headers)? == Some(ALL_TENANTS) && self.tenant.is_none() {
            if self.operate {
                return Ok(Tenants::All);
            }
            let detail = format!("client {} lacks the scope that all tenants' sends need: operate", self.name);
            return Err(Problem::new(ProblemCode::Forbidden, detail));
        }
        self.tenant(headers).map(Tenants::One)
    }

    /// For what operators do: the tenants it may touch, all of them where no one is named.
    pub fn reach(&self, headers: &HeaderMap) -> Result<Tenants, Problem> {
        match (&self.tenant, named_tenant(headers)?) {
            (None, None | Some(ALL_TENANTS)) => Ok(Tenants::All),
            _ => self.tenant(headers).map(Tenants::One),
        }
    }
}

/// Whom a call is counted for, by its token alone; `None`: by nobody that is known.
pub(super) fn holder(headers: &HeaderMap, config: &Config) -> Option<Holder> {
    if config.api.clients.is_empty() {
        return Some(Holder::client(LOCAL, true));
    }
    let client = client_of(&config.api.clients, &sha256(bearer(headers).ok()?))?;
    Some(holder_of(&client.name, client.tenant.as_ref(), client.scopes.operate))
}

/// All tokens of one tenant are one holder.
fn holder_of(name: &str, tenant: Option<&TenantId>, operate: bool) -> Holder {
    match tenant {
        Some(tenant) => Holder::tenant(tenant.as_str(), operate),
        None => Holder::client(name, operate),
    }
}

fn foreign_tenant() -> Problem {
    Problem::new(ProblemCode::Forbidden, "this token is another tenant's: leave Egressd-Tenant out, or name its own")
}

/// The token of RFC 6750 section 2.1.
fn bearer(headers: &HeaderMap) -> Result<&[u8], Problem> {
    let value = headers
        .get(AUTHORIZATION)
        .ok_or_else(|| Problem::unauthorized("send a token: Authorization: Bearer TOKEN"))?
        .as_bytes();
    let scheme = value.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case(b"bearer "));
    match scheme {
        Some(_) => Ok(value[7..].trim_ascii()),
        None => Err(Problem::unauthorized("the Authorization header must read: Bearer TOKEN")),
    }
}

/// Looks at every client, so that the time taken tells nothing of which one was near.
fn client_of<'a>(clients: &'a [ApiClient], digest: &[u8; 32]) -> Option<&'a ApiClient> {
    let mut found = None;
    for client in clients {
        if aws_lc_rs::constant_time::verify_slices_are_equal(&client.token_sha256, digest).is_ok() {
            found = Some(client);
        }
    }
    found
}

pub(crate) fn named_tenant(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut values = headers.get_all(TENANT_HEADER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Problem::shape("Egressd-Tenant may be given once"));
    }
    tenant_text(value.as_bytes()).map(Some)
}

/// A tenant's id as a caller may write it.
pub(crate) fn tenant_text(given: &[u8]) -> Result<&str, Problem> {
    let text = std::str::from_utf8(given).map(str::trim).unwrap_or_default();
    let visible = text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    if text.is_empty() || !visible || text.len() > limits::TENANT_CHARS_MAX {
        let most = limits::TENANT_CHARS_MAX;
        return Err(Problem::shape(format!("Egressd-Tenant must be 1 to {most} visible ASCII characters")));
    }
    Ok(text)
}

/// What keeps a web page in somebody's browser from using the API in their name. Asked before anything else.
/// `framed`: a page of another site may show the page itself in a frame; which one, the answer's policy says.
pub fn guard<B>(request: &Request<B>, open_to_all: bool, framed: bool) -> Result<(), Problem> {
    let (method, uri, headers) = (request.method(), request.uri(), request.headers());
    // Two readings of one request are one too many (RFC 9112 section 3.2).
    let mut hosts = headers.get_all(HOST).iter();
    let first = hosts.next();
    if hosts.next().is_some() || (first.is_none() && request.version() == Version::HTTP_11) {
        return Err(Problem::shape("a request has one Host header"));
    }
    if first.is_some_and(|host| !host.is_empty() && Authority::try_from(host.as_bytes()).is_err()) {
        return Err(Problem::shape("the Host header is no host"));
    }
    let host = host_of(uri, headers);
    if open_to_all && !host.as_ref().is_some_and(|host| is_loopback(host.host())) {
        // A name that an attacker points at 127.0.0.1 arrives with that name (DNS rebinding).
        return Err(Problem::new(
            ProblemCode::Forbidden,
            "what is open to everyone on loopback takes a loopback name or address as Host",
        )
        .status(StatusCode::MISDIRECTED_REQUEST));
    }
    // What a browser says of the page behind a request that has no `Origin`: of images, scripts, frames and the like.
    let mut sites = headers.get_all(SEC_FETCH_SITE).iter();
    if sites.any(|site| !["same-origin", "none"].iter().any(|own| site.as_bytes().eq_ignore_ascii_case(own.as_bytes())))
        && !is_link_to_page(request, framed)
    {
        let detail = format!("{method} from a page of another site is refused");
        return Err(Problem::new(ProblemCode::Forbidden, detail));
    }
    let mut origins = headers.get_all(ORIGIN).iter();
    if let Some(origin) = origins.next() {
        let own = origin.to_str().ok().is_some_and(|origin| is_own_origin(origin, host.as_ref()));
        if !own || origins.next().is_some() {
            let detail = format!("{method} from a page of another origin is refused");
            return Err(Problem::new(ProblemCode::Forbidden, detail));
        }
    }
    Ok(())
}

/// A link that somebody followed to the page itself, which shows nothing by itself, or a frame that shows it.
fn is_link_to_page<B>(request: &Request<B>, framed: bool) -> bool {
    let says = |name: &str, value: &str| request.headers().get(name).is_some_and(|given| given == value);
    request.method() == Method::GET
        && request.uri().path() == "/"
        && says("sec-fetch-mode", "navigate")
        && (says("sec-fetch-dest", "document") || framed && says("sec-fetch-dest", "iframe"))
}

/// Where the caller thinks this is: the URI's authority (HTTP/2), or the one `Host`.
fn host_of(uri: &Uri, headers: &HeaderMap) -> Option<Authority> {
    let mut hosts = headers.get_all(HOST).iter();
    let header = hosts.next().and_then(|value| Authority::try_from(value.as_bytes()).ok());
    if hosts.next().is_some() {
        return None;
    }
    match (uri.authority(), header) {
        (Some(authority), None) => Some(authority.clone()),
        (None, header) => header,
        // Both (absolute form, or HTTP/2 with Host) must say the same.
        (Some(authority), Some(header)) => (*authority == header).then_some(header),
    }
    .filter(|authority| !authority.as_str().contains('@'))
}

fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return address.to_canonical().is_loopback();
    }
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

/// The page itself was served from where it now asks.
fn is_own_origin(origin: &str, host: Option<&Authority>) -> bool {
    let Some(rest) = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")) else {
        return false;
    };
    let default_port = if origin.starts_with("https") { 443 } else { 80 };
    let (Ok(origin), Some(host)) = (Authority::try_from(rest), host) else { return false };
    origin.host().eq_ignore_ascii_case(host.host())
        && origin.port_u16().unwrap_or(default_port) == host.port_u16().unwrap_or(default_port)
        && !rest.contains('@')
}
