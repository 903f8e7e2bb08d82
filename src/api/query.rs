//! What stands after the `?`: filters, pages and waits, every parameter known and, but for some filters, given once.

use std::borrow::Cow;
use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};

use super::access::Tenants;
use super::problem::Problem;
use crate::limits;
use crate::outcome::{Code, Outcome};
use crate::policy::{CheckedUrl, Host};
use crate::record::{ExecutionState, State, TunnelEnd};
use crate::send::{Method, TenantId};
use crate::store::stats::{By, StatsAsked};
use crate::store::{ExecutionFilter, Filter, HostFilter, Reach, StatusFilter, TunnelFilter};

/// One page of a list.
#[derive(Debug, PartialEq, Eq)]
pub struct PageQuery {
    pub limit: usize,
    pub cursor: Option<String>,
}

impl Default for PageQuery {
    fn default() -> Self {
        Self { limit: limits::PAGE_ITEMS_DEFAULT, cursor: None }
    }
}

/// `GET /v1/sends`. Third value: what is looked for in bodies.
pub fn list(
    query: Option<&str>,
    tenants: Tenants,
    operate: bool,
) -> Result<(Filter, PageQuery, Option<String>), Problem> {
    let mut reading = Parameters::default();
    let mut filter = filter_for(&tenants, operate);
    let mut page = PageQuery::default();
    let mut text = None;
    for (name, value) in reading.parameters(query) {
        if name == "text" {
            let most = limits::TEXT_CHARS_MAX;
            if value.is_empty() || value.chars().count() > most {
                reading.bad("text", format!("must be 1 to {most} characters"), None);
            }
            text = Some(value.into_owned());
            continue;
        }
        let known = reading.page(&mut page, &name, &value) || reading.filter(&mut filter, &tenants, &name, &value);
        reading.known(known, &name, FILTERS_AND_PAGE);
    }
    reading.done((filter, page, text))
}

/// `GET /v1/tail`.
pub fn tail(query: Option<&str>, tenants: Tenants, operate: bool) -> Result<Filter, Problem> {
    let mut reading = Parameters::default();
    let mut filter = filter_for(&tenants, operate);
    for (name, value) in reading.parameters(query) {
        let known = reading.filter(&mut filter, &tenants, &name, &value);
        reading.known(known, &name, FILTERS);
    }
    reading.done(filter)
}

/// `GET /v1/executions/{execution}`.
pub fn page(query: Option<&str>) -> Result<PageQuery, Problem> {
    let mut reading = Parameters::default();
    let mut page = PageQuery::default();
    for (name, value) in reading.parameters(query) {
        let known = reading.page(&mut page, &name, &value);
        reading.known(known, &name, "limit cursor");
    }
    reading.done(page)
}

/// `GET /v1/executions`.
pub fn executions(query: Option<&str>, tenants: Tenants) -> Result<(ExecutionFilter, PageQuery), Problem> {
    let mut reading = Parameters::default();
    let mut filter = ExecutionFilter::of(tenants.clone().reach());
    let mut page = PageQuery::default();
    for (name, value) in reading.parameters(query) {
        let known =
            reading.page(&mut page, &name, &value) || reading.execution_filter(&mut filter, &tenants, &name, &value);
        reading.known(known, &name, "workflow state since until limit cursor, and tenant for all tenants");
    }
    reading.done((filter, page))
}

/// `GET /v1/tunnels`.
pub fn tunnels(query: Option<&str>, tenants: Tenants, operate: bool) -> Result<(TunnelFilter, PageQuery), Problem> {
    let mut reading = Parameters::default();
    let mut filter = TunnelFilter { public_only: !operate, ..TunnelFilter::of(tenants.clone().reach()) };
    let mut page = PageQuery::default();
    for (name, value) in reading.parameters(query) {
        let known =
            reading.page(&mut page, &name, &value) || reading.tunnel_filter(&mut filter, &tenants, &name, &value);
        reading.known(known, &name, "host source_ip end code since until limit cursor, and tenant for all tenants");
    }
    reading.done((filter, page))
}

/// Lengths of the buckets of statistics, with how many slots each has.
pub const BUCKETS: [(&str, i64); 5] = [("5m", 1), ("15m", 3), ("1h", 12), ("6h", 72), ("1d", 288)];
/// Where no length is given, the shortest is taken of which there are no more than this.
const BUCKETS_USUAL: i64 = 100;
const STATS_USUAL: SignedDuration = SignedDuration::from_hours(24);

/// `GET /v1/stats`. Second value: the bucket's label.
pub fn stats(query: Option<&str>, tenants: Tenants, now: Timestamp) -> Result<(StatsAsked, &'static str), Problem> {
    let mut reading = Parameters::default();
    let mut reach = tenants.clone().reach();
    let (mut since, mut until, mut bucket, mut by) = (None, None, None, By::Outcome);
    for (name, value) in reading.parameters(query) {
        match &*name {
            "since" => since = reading.instant("since", &value),
            "until" => until = reading.instant("until", &value),
            "bucket" => {
                bucket = BUCKETS.into_iter().find(|(label, _)| *label == value);
                if bucket.is_none() {
                    reading.bad("bucket", one_of(BUCKETS.into_iter().map(|(label, _)| label)), None);
                }
            }
            "by" => match By::from_label(&value) {
                Some(given) => by = given,
                None => reading.bad("by", one_of(By::ALL.iter().map(|by| by.label())), None),
            },
            "tenant" if tenants == Tenants::All => reading.tenant(&mut reach, &value),
            _ => reading.known(false, &name, "since until bucket by, and tenant for all tenants"),
        }
    }
    let until = until.unwrap_or(now);
    let since = since.unwrap_or_else(|| until.saturating_sub(STATS_USUAL).unwrap_or(Timestamp::MIN));
    let of = |slots| StatsAsked::of(reach.clone(), by, slots, since, until);
    let usual = || {
        let fits = |(_, slots): &(&str, i64)| {
            of(*slots).is_some_and(|asked| (asked.until - asked.since) / slots <= BUCKETS_USUAL)
        };
        BUCKETS.into_iter().find(fits)
    };
    let (label, slots) = bucket.or_else(usual).unwrap_or(BUCKETS[BUCKETS.len() - 1]);
    let asked = of(slots);
    if asked.is_none() && reading.problems.is_empty() {
        let (name, detail) = match since < until {
            true => ("bucket", format!("makes more than {} of this time", limits::STATS_BUCKETS_MAX)),
            false => ("since", "must be before until".to_owned()),
        };
        reading.bad(name, detail, None);
    }
    let asked = asked.unwrap_or(StatsAsked { reach, since: 0, until: 1, bucket: 1, by });
    reading.done((asked, label))
}

/// `GET /v1/sends/{id}`: how many seconds to wait for its end.
pub fn wait(query: Option<&str>) -> Result<Option<u64>, Problem> {
    let mut reading = Parameters::default();
    let mut wait = None;
    for (name, value) in reading.parameters(query) {
        let known = name == "wait";
        if known {
            let most = limits::WAIT_MAX.as_secs();
            match value.parse() {
                Ok(seconds) if seconds <= most => wait = Some(seconds),
                _ => reading.bad("wait", format!("must be whole seconds, from 0 to {most}"), None),
            }
        }
        reading.known(known, &name, "wait");
    }
    reading.done(wait)
}

/// Calls that take no parameter.
pub fn none(query: Option<&str>) -> Result<(), Problem> {
    let mut reading = Parameters::default();
    for (name, _) in reading.parameters(query) {
        reading.known(false, &name, "none");
    }
    reading.done(())
}

/// A host as filters and suspensions name it: mapped as IDNA has it, or an address' text.
pub fn host(given: &str) -> Option<String> {
    let given = given.trim();
    let bracketed = given.contains(':') && !given.starts_with('[');
    let url = if bracketed { format!("http://[{given}]/") } else { format!("http://{given}/") };
    let checked = CheckedUrl::parse(&url).ok()?;
    // Anything but a bare host would have moved into another part of the URL.
    let plain =
        checked.origin_form() == "/" && !given.contains(['/', '?', '#', '@']) && checked.destination().port == 80;
    if !plain || (!bracketed && given.rsplit(']').next().is_some_and(|rest| rest.contains(':'))) {
        return None;
    }
    Some(match &checked.destination().host {
        Host::Name(name) => name.to_string(),
        Host::Address(address) => address.to_string(),
    })
}

const FILTERS: &str = "workflow execution step host outcome code status state method path source_ip since until, and \
                       tenant for all tenants";
const FILTERS_AND_PAGE: &str = "workflow execution step host outcome code status state method path source_ip since \
                                until text limit cursor, and tenant for all tenants";
/// Each of these may stand several times: any of its values will do.
const SEVERAL: [&str; 4] = ["outcome", "code", "status", "end"];

/// A host, or `*.` and the name above those that are asked for.
fn hosts(given: &str) -> Option<HostFilter> {
    match given.trim().strip_prefix("*.") {
        Some(parent) => match parent.parse::<IpAddr>() {
            Ok(_) => None,
            Err(_) => host(parent).map(HostFilter::Below),
        },
        None => host(given).map(HostFilter::One),
    }
}

/// `503` or `5xx`.
fn statuses(given: &str) -> Option<StatusFilter> {
    match given.strip_suffix("xx") {
        Some(class) => class.parse().ok().filter(|class| (1..=9).contains(class)).map(StatusFilter::Class),
        None => given.parse().ok().filter(|status| (100..=999).contains(status)).map(StatusFilter::One),
    }
}

/// `operate`: whether the caller may know which addresses are bound behind the public ones.
fn filter_for(tenants: &Tenants, operate: bool) -> Filter {
    Filter { public_only: !operate, ..Filter::of(tenants.clone().reach()) }
}

#[derive(Default)]
struct Parameters {
    /// Told in the answer's `detail`: its `errors` point into a body.
    problems: Vec<String>,
}

impl Parameters {
    /// Names and values, decoded; a name that stands twice is a problem.
    fn parameters<'q>(&mut self, query: Option<&'q str>) -> Vec<(Cow<'q, str>, Cow<'q, str>)> {
        let mut seen: Vec<(Cow<'q, str>, Cow<'q, str>)> = Vec::new();
        for (name, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            if !SEVERAL.contains(&&*name) && seen.iter().any(|(known, _)| *known == name) {
                self.bad(&name, "stands here a second time".to_owned(), Some("keep one of the two"));
            } else if seen.len() < limits::QUERY_PARAMETERS_MAX {
                seen.push((name, value));
            }
        }
        seen
    }

    fn bad(&mut self, name: &str, detail: String, hint: Option<&str>) {
        if self.problems.len() < limits::QUERY_PARAMETERS_MAX {
            let name: String = name.chars().take(limits::ECHO_CHARS_MAX).collect();
            let hint = hint.map_or_else(String::new, |hint| format!(" ({hint})"));
            self.problems.push(format!("the parameter {name} {detail}{hint}"));
        }
    }

    fn known(&mut self, known: bool, name: &str, all: &str) {
        if !known {
            self.bad(name, format!("is not one that this call takes: {all}"), None);
        }
    }

    fn done<T>(self, value: T) -> Result<T, Problem> {
        match self.problems.as_slice() {
            [] => Ok(value),
            problems => Err(Problem::shape(problems.join("; "))),
        }
    }

    fn page(&mut self, page: &mut PageQuery, name: &str, value: &str) -> bool {
        match name {
            "limit" => match value.parse() {
                Ok(limit) if (1..=limits::PAGE_ITEMS_MAX).contains(&limit) => page.limit = limit,
                _ => self.bad("limit", format!("must be a number from 1 to {}", limits::PAGE_ITEMS_MAX), None),
            },
            "cursor" if value.is_empty() => {
                self.bad("cursor", "is empty".to_owned(), Some("leave it out for the first page"));
            }
            "cursor" => page.cursor = Some(value.to_owned()),
            _ => return false,
        }
        true
    }

    fn filter(&mut self, filter: &mut Filter, tenants: &Tenants, name: &str, value: &str) -> bool {
        match name {
            "workflow" => filter.workflow = Some(value.to_owned()),
            "execution" => filter.execution = Some(value.to_owned()),
            "step" => filter.step = Some(value.to_owned()),
            "host" => filter.host = self.hosts(value),
            "outcome" => match Outcome::from_label(value) {
                Some(outcome) => filter.outcomes.push(outcome),
                None => self.bad("outcome", one_of(Outcome::ALL.iter().map(|outcome| outcome.label())), None),
            },
            "code" => filter.codes.extend(self.code(value)),
            "status" => match statuses(value) {
                Some(statuses) => filter.statuses.push(statuses),
                None => {
                    self.bad("status", "must be a status code or a class of them, e.g. 503 or 5xx".to_owned(), None)
                }
            },
            "state" => match State::from_label(value) {
                Some(state) => filter.state = Some(state),
                None => self.bad("state", one_of(State::ALL.iter().map(|state| state.label())), None),
            },
            "method" => match Method::from_label(value) {
                Some(method) => filter.method = Some(method),
                None => self.bad("method", one_of(Method::ALL.iter().map(|method| method.label())), None),
            },
            "path" if !value.starts_with('/') => {
                self.bad("path", "must begin with /".to_owned(), Some("it is what the URL's path begins with"));
            }
            "path" => filter.path = Some(value.to_owned()),
            "source_ip" => filter.source_ip = self.source_ip(value),
            "since" => filter.since = self.instant("since", value),
            "until" => filter.until = self.instant("until", value),
            "tenant" if *tenants == Tenants::All => self.tenant(&mut filter.reach, value),
            _ => return false,
        }
        true
    }

    fn execution_filter(&mut self, filter: &mut ExecutionFilter, tenants: &Tenants, name: &str, value: &str) -> bool {
        match name {
            "workflow" => filter.workflow = Some(value.to_owned()),
            "state" => match ExecutionState::from_label(value) {
                Some(state) => filter.state = Some(state),
                None => self.bad("state", one_of(ExecutionState::ALL.iter().map(|state| state.label())), None),
            },
            "since" => filter.since = self.instant("since", value),
            "until" => filter.until = self.instant("until", value),
            "tenant" if *tenants == Tenants::All => self.tenant(&mut filter.reach, value),
            _ => return false,
        }
        true
    }

    fn tunnel_filter(&mut self, filter: &mut TunnelFilter, tenants: &Tenants, name: &str, value: &str) -> bool {
        match name {
            "host" => filter.host = self.hosts(value),
            "source_ip" => filter.source_ip = self.source_ip(value),
            "end" => match TunnelEnd::from_label(value) {
                Some(end) => filter.ends.push(end),
                None => self.bad("end", one_of(TunnelEnd::ALL.iter().map(|end| end.label())), None),
            },
            "code" => filter.codes.extend(self.code(value)),
            "since" => filter.since = self.instant("since", value),
            "until" => filter.until = self.instant("until", value),
            "tenant" if *tenants == Tenants::All => self.tenant(&mut filter.reach, value),
            _ => return false,
        }
        true
    }

    fn hosts(&mut self, value: &str) -> Option<HostFilter> {
        let found = hosts(value);
        if found.is_none() {
            let detail = "must be a host name, *.name or address, without scheme and port".to_owned();
            self.bad("host", detail, None);
        }
        found
    }

    fn source_ip(&mut self, value: &str) -> Option<IpAddr> {
        let found = value.parse().ok();
        if found.is_none() {
            self.bad("source_ip", "must be an IP address".to_owned(), None);
        }
        found
    }

    fn code(&mut self, value: &str) -> Option<Code> {
        let found = Code::from_label(value);
        if found.is_none() {
            self.bad("code", one_of(Code::ALL.iter().map(|code| code.label())), None);
        }
        found
    }

    fn tenant(&mut self, reach: &mut Reach, value: &str) {
        if value.is_empty() || value.chars().count() > limits::TENANT_CHARS_MAX {
            self.bad("tenant", format!("must be 1 to {} characters", limits::TENANT_CHARS_MAX), None);
        } else {
            *reach = Reach::One(TenantId::new(value));
        }
    }

    fn instant(&mut self, name: &'static str, value: &str) -> Option<Timestamp> {
        // A plus sign that was not percent-encoded has become a space.
        let instant = value.replace(' ', "+").parse().ok();
        if instant.is_none() {
            self.bad(name, "must be an instant of RFC 3339, e.g. 2026-11-22T03:00:00Z".to_owned(), None);
        }
        instant
    }
}

fn one_of<'a>(labels: impl Iterator<Item = &'a str>) -> String {
    format!("must be one of {}", labels.collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests;
