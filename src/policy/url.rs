//! The URL stage: raw checks, one parse, and a value that says both were done.
//!
//! [`CheckedUrl::parse`] refuses what is not a plain absolute `http`/`https` URL (`policy_url`): control
//! characters, whitespace, `\`, userinfo, empty labels, zone ids, over-long text; nothing is silently repaired.
//! Requests are built from the parsed form alone. Whether the host may be reached is [`super::Policy`]'s question.

use std::{borrow::Cow, fmt, net::IpAddr, sync::Arc};

use ::url::Url;

use super::name;
use super::rules::Denial;
use crate::limits::URL_BYTES_MAX;
use crate::outcome::Code;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    Http,
    Https,
    /// Of a relay alone, which a configuration names: no URL of a send has this scheme or the next. TLS begins with
    /// STARTTLS, before anything of a message.
    Smtp,
    /// TLS from the first byte.
    Smtps,
    /// Of a warehouse alone, as those of a relay.
    Postgres,
    /// TLS is asked for before anything else.
    PostgresTls,
}

impl Scheme {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Smtp => "smtp",
            Self::Smtps => "smtps",
            Self::Postgres => "postgres",
            Self::PostgresTls => "postgres+tls",
        }
    }

    /// Of SMTP, those of submission (RFC 8314 section 3.3).
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
            Self::Smtp => 587,
            Self::Smtps => 465,
            Self::Postgres | Self::PostgresTls => 5432,
        }
    }

    /// Whether the peer has to prove its name.
    pub const fn has_tls(self) -> bool {
        !matches!(self, Self::Http | Self::Postgres)
    }
}

/// The host of a checked URL: a name as IDNA maps it (lower-case, no trailing dot), or an address. An IPv4-mapped
/// IPv6 address is the IPv4 address that it is, so that every cap and list counts it once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    Name(Arc<str>),
    Address(IpAddr),
}

impl Host {
    /// The form that host lists and suspensions compare: a name, or an address without brackets.
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Name(name) => Cow::Borrowed(name),
            Self::Address(address) => Cow::Owned(address.to_string()),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// Scheme, host and port: what caps, connection reuse and the scan limit count by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    pub scheme: Scheme,
    pub host: Host,
    pub port: u16,
}

/// A plain absolute URL that passed the raw checks. Whether its host may be reached is not decided here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedUrl {
    url: Url,
    destination: Destination,
}

impl CheckedUrl {
    /// Parses what a send says. The denial is always `policy_url`.
    pub fn parse(raw: &str) -> Result<Self, Denial> {
        let checked = parse_once(raw).map_err(refused)?;
        // What was normalised must read as the same URL to whoever parses it next: a store, a resend, a log reader.
        if checked.as_str() != raw && parse_once(checked.as_str()).as_ref() != Ok(&checked) {
            return Err(refused("its normalised form reads as another URL: write it in its plain form"));
        }
        Ok(checked)
    }

    /// Parses where a tunnel is to lead, `host:port` (RFC 9112 section 3.2.3), with the same checks. Its scheme is of no
    /// account: what goes through a tunnel is not ours to know.
    pub fn of_authority(written: &str) -> Result<Self, Denial> {
        let has_port = written.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty() && !port.ends_with(']'));
        if !has_port {
            return Err(refused("it names no port, as a tunnel's target has to: example.com:443"));
        }
        let url = Self::parse(&format!("http://{written}/"))?;
        if url.origin_form() != "/" || url.as_str().contains('#') {
            return Err(refused("it is more than a host and a port, which is all that a tunnel's target has"));
        }
        Ok(url)
    }

    /// As [`Self::of_authority`] takes it.
    pub fn host_and_port(&self) -> String {
        format!("{}:{}", self.url.host_str().unwrap_or_default(), self.destination.port)
    }

    /// The whole URL as records show it and as it can be parsed again to the same value.
    pub fn as_str(&self) -> &str {
        self.url.as_str()
    }

    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    /// Path and query, for the request line (origin form, RFC 9112 section 3.2.1); never empty.
    pub fn origin_form(&self) -> String {
        match self.url.query() {
            None => self.url.path().to_owned(),
            Some(query) => format!("{}?{query}", self.url.path()),
        }
    }

    /// The `Host` field's value (RFC 9110 section 7.2): host, and the port unless it is the scheme's default.
    pub fn authority(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        match self.url.port() {
            None => host.to_owned(),
            Some(port) => format!("{host}:{port}"),
        }
    }

    /// The query as parsed, without `?`.
    pub fn query(&self) -> Option<&str> {
        self.url.query()
    }

    /// The same URL with another query (already percent-encoded). Refused when it becomes too long.
    pub fn with_query(mut self, query: Option<&str>) -> Result<Self, Denial> {
        if let Some(refusal) = query.and_then(unwelcome_character) {
            return Err(refused(format!("with its params applied, {refusal}")));
        }
        self.url.set_query(query);
        if self.as_str().len() > URL_BYTES_MAX {
            return Err(refused(format!(
                "with its params applied it is {} bytes long and may be {URL_BYTES_MAX}: send large values in the body",
                self.as_str().len()
            )));
        }
        Ok(self)
    }
}

/// One denial for every refusal of this stage. `problem` never quotes the URL: parts of it may be a secret.
fn refused(problem: impl fmt::Display) -> Denial {
    Denial::new(Code::PolicyUrl, format!("the URL is refused: {problem}"))
}

fn parse_once(raw: &str) -> Result<CheckedUrl, Cow<'static, str>> {
    let written = Written::read(raw)?;
    let url = Url::parse(raw).map_err(|error| format!("it does not parse ({error})"))?;

    // The parser must have understood what the raw checks understood.
    let agrees = url.scheme() == written.scheme.label()
        && url.username().is_empty()
        && url.password().is_none()
        && url.port_or_known_default() == Some(written.port);
    if !agrees {
        return Err("its scheme, userinfo or port can be read in two ways: write it in its plain form".into());
    }
    if url.as_str().len() > URL_BYTES_MAX {
        return Err(too_long(url.as_str().len()).into());
    }
    let host = match url.host() {
        Some(::url::Host::Domain(name)) => {
            let name = name.strip_suffix('.').unwrap_or(name);
            name::check_shape(name).map_err(|problem| format!("its host {problem}"))?;
            Host::Name(name.into())
        }
        Some(::url::Host::Ipv4(address)) => Host::Address(address.into()),
        Some(::url::Host::Ipv6(address)) => Host::Address(IpAddr::V6(address).to_canonical()),
        None => return Err("it has no host".into()),
    };
    Ok(CheckedUrl { url, destination: Destination { scheme: written.scheme, host, port: written.port } })
}

/// What can be told from the text before any parser repairs it.
struct Written {
    scheme: Scheme,
    port: u16,
}

impl Written {
    fn read(raw: &str) -> Result<Self, Cow<'static, str>> {
        if raw.len() > URL_BYTES_MAX {
            return Err(too_long(raw.len()).into());
        }
        if let Some(refusal) = unwelcome_character(raw) {
            return Err(refusal.into());
        }
        let (scheme, rest) = strip_scheme(raw)
            .ok_or("it does not begin with `http://` or `https://`: write an absolute URL with one of these schemes")?;
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.contains('@') {
            return Err("it holds a user name or password before `@`: give them as `auth` instead".into());
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(bracketed) => {
                let (address, after) = bracketed.split_once(']').ok_or("its `[` is not closed")?;
                if address.contains('%') {
                    return Err("its address has a zone id (`%…`), which means something on one host only".into());
                }
                match after.strip_prefix(':') {
                    Some(port) => (address, Some(port)),
                    None if after.is_empty() => (address, None),
                    None => return Err("something other than `:port` follows its `]`".into()),
                }
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        if host.is_empty() {
            return Err("it has no host".into());
        }
        let port = match port {
            // RFC 3986 section 3.2.3: a port may be empty, and is then the scheme's own.
            None | Some("") => scheme.default_port(),
            Some(digits) => (1..=5)
                .contains(&digits.len())
                .then_some(digits)
                .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|digits| digits.parse().ok())
                .ok_or("its port is not a number from 1 to 65535 (an IPv6 address stands in brackets)")?,
        };
        Ok(Self { scheme, port })
    }
}

fn too_long(bytes: usize) -> String {
    format!("it is {bytes} bytes long and may be {URL_BYTES_MAX}: send large values in the body")
}

/// Characters that parsers drop, split at or read as another one.
fn unwelcome_character(text: &str) -> Option<String> {
    let (at, found) = text.char_indices().find(|(_, c)| c.is_control() || c.is_whitespace() || *c == '\\')?;
    let what = match found {
        '\\' => "a backslash",
        _ if found.is_control() => "a control character",
        _ => "whitespace",
    };
    Some(format!("it holds {what} (U+{:04X}, at byte {at}): percent-encode it or take it out", u32::from(found)))
}

fn strip_scheme(raw: &str) -> Option<(Scheme, &str)> {
    [Scheme::Http, Scheme::Https].into_iter().find_map(|scheme| {
        let (written, rest) = raw.split_once("://")?;
        written.eq_ignore_ascii_case(scheme.label()).then_some((scheme, rest))
    })
}

/// `raw` with whatever stands where userinfo would replaced by `redacted`, for showing a refused URL. Must be
/// generous: text that any parser might read as userinfo is replaced.
///
/// Everything between the scheme and the last `@` goes, even past a `/`: passwords are written unescaped. So does
/// what stands before an `@` in another guise (fullwidth, or percent-encoded before the first `/`).
pub fn without_userinfo(raw: &str, redact: impl FnOnce(&str) -> String) -> String {
    let start = userinfo_start(raw);
    let Some(rest) = raw.get(start..) else { return raw.to_owned() };

    let plain = rest.rfind(['@', '\u{ff20}', '\u{fe6b}']);
    let before_path = &rest[..rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len())];
    let end = plain.max(before_path.rfind("%40"));
    match end {
        None | Some(0) => raw.to_owned(),
        Some(end) => format!("{}{}{}", &raw[..start], redact(&rest[..end]), &rest[end..]),
    }
}

/// Where userinfo could begin at the earliest: behind `scheme://`, or behind `http:` or `https:` alone.
fn userinfo_start(raw: &str) -> usize {
    let trimmed = raw.trim_start_matches(|c: char| c.is_whitespace() || c.is_control());
    let lead = raw.len() - trimmed.len();
    let Some((scheme, rest)) = trimmed.split_once(':') else { return lead };
    let slashes = rest.len() - rest.trim_start_matches(['/', '\\']).len();
    let is_web = ["http", "https"].iter().any(|web| scheme.eq_ignore_ascii_case(web));
    let is_scheme = scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    if is_web || (is_scheme && slashes >= 2) { lead + scheme.len() + 1 + slashes } else { lead }
}

#[cfg(test)]
mod tests;
