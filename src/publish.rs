//! The published addresses: the file that is the truth, and the forms in which the world reads it.
//!
//! [`PublishedList`] is the file as parsed; [`Entry::status`] says what an address may do at an instant. Pure: the
//! file is read by `config`, the store remembers first publication, `app` serves the result.

pub mod atom;
pub mod front;
pub mod page;

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    ops::Range,
    time::Duration,
};

use jiff::{Timestamp, civil::Date, tz::TimeZone};

use crate::limits::LISTED_AFTER_RETIREMENT;
use crate::outcome::labelled;

/// Seconds of a day of the calendar that dates are of: UTC.
const DAY: u64 = 86_400;

/// The file, in its order; addresses are unique.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishedList {
    pub entries: Vec<Entry>,
}

/// One line. Dates are 00:00 UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub address: IpAddr,
    pub announced: Option<Date>,
    pub active: Option<Date>,
    pub retires: Option<Date>,
    /// 1-based line in the file.
    pub line: usize,
}

labelled! {
    Status {
        /// Listed, carries no traffic yet.
        Announced = "announced",
        /// Carries traffic.
        Active = "active",
        /// Carries traffic and has a `retires` date, or is past it: no new connections, listed for 24 h more.
        Retiring = "retiring",
        /// No longer listed.
        Gone = "gone",
    }
}

/// A problem of the file, with its 1-based line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListProblem {
    pub line: usize,
    pub detail: String,
    pub fix: String,
}

/// What the store remembers of publication: until when each address owes the world its notice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notice {
    ends: HashMap<IpAddr, Timestamp>,
}

impl Notice {
    /// An address published at the very first start, which has that very instant, owes none; any other carries nothing
    /// before its first publication plus `notice`, whatever its line says. So also one whose instant is earlier: the
    /// clock of the first start was ahead. Dates are days, and so is a notice of a day or more: it counts
    /// from the day of the first publication, so that an address announced today is usable on the date that its line
    /// names.
    pub fn new(first: &HashMap<IpAddr, Timestamp>, first_start: Timestamp, notice: Duration) -> Self {
        let owing = first.iter().filter(|(_, at)| **at != first_start);
        let ends = owing.map(|(address, at)| {
            let days = notice.as_secs().div_ceil(DAY);
            let end = if notice.as_secs() < DAY {
                at.saturating_add(notice)
            } else {
                start_of(at.to_zoned(TimeZone::UTC).date()).saturating_add(Duration::from_secs(days * DAY))
            };
            (*address, end.unwrap_or(Timestamp::MAX))
        });
        Self { ends: ends.collect() }
    }

    /// For commands that run without the store: every notice counts as given.
    pub fn given() -> Self {
        Self::default()
    }

    pub fn ends(&self, address: IpAddr) -> Option<Timestamp> {
        self.ends.get(&address).copied()
    }
}

impl PublishedList {
    /// All problems at once: bad addresses, duplicates, unknown keys, bad or misordered dates.
    pub fn parse(text: &str) -> Result<Self, Vec<ListProblem>> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut lines = HashMap::new();
        let mut problems = Vec::new();
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for (index, written) in text.lines().enumerate() {
            let line = index + 1;
            let written = written.split_once('#').map_or(written, |(before, _)| before);
            let mut words = written.split_whitespace();
            let Some(address) = words.next() else { continue };
            let mut note = |wrong: (String, &str)| {
                problems.push(ListProblem { line, detail: wrong.0, fix: wrong.1.to_owned() });
            };
            let dates = Dates::read(words, &mut note);
            let address = match parse_address(address) {
                Ok(address) => address,
                Err(wrong) => {
                    note(wrong);
                    continue;
                }
            };
            if let Some(first) = lines.insert(address, line) {
                note((format!("{address} stands in line {first} already"), "keep one of the two lines"));
                continue;
            }
            let Dates { announced, active, retires } = dates;
            entries.push(Entry { address, announced, active, retires, line });
        }
        if problems.is_empty() { Ok(Self { entries }) } else { Err(problems) }
    }

    pub fn entry(&self, address: IpAddr) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.address == address)
    }

    /// What is listed now, in the order of the file.
    pub fn listed<'a>(&'a self, notice: &'a Notice, now: Timestamp) -> impl Iterator<Item = (&'a Entry, Status)> {
        let states = self.entries.iter().map(move |entry| (entry, entry.status(notice, now)));
        states.filter(|(_, status)| *status != Status::Gone)
    }

    /// When the state of any address next changes; `None`: never again.
    pub fn next_change(&self, notice: &Notice, now: Timestamp) -> Option<Timestamp> {
        let changes = self.entries.iter().flat_map(|entry| {
            let retires = entry.retires.map(start_of);
            [entry.active_from(notice), retires, retires.map(after_retirement)].into_iter().flatten()
        });
        changes.filter(|at| *at > now).min()
    }

    /// The bare form: one address a line. Announced, active and retiring ones alike, so that an allow-list made from
    /// it is never too small.
    pub fn text(&self, notice: &Notice, now: Timestamp) -> String {
        self.listed(notice, now).map(|(entry, _)| format!("{}\n", entry.address)).collect()
    }

    /// The form whose shape is Google's `goog.json`, so that importers of that read it, with what each address is in
    /// for beside each prefix. `sync_token` is the Unix second at which what is served last changed.
    pub fn json(&self, notice: &Notice, sync_token: u64, now: Timestamp) -> String {
        let prefixes = self.listed(notice, now).map(|(entry, status)| {
            let (family, bits) = if entry.address.is_ipv4() { ("ipv4Prefix", 32) } else { ("ipv6Prefix", 128) };
            let shown = |date: Option<Date>| date.map(|date| date.to_string());
            serde_json::json!({
                family: format!("{}/{bits}", entry.address),
                "status": status.label(),
                "announced": shown(entry.announced),
                "active": shown(entry.active_date(notice)),
                "retires": shown(entry.retires),
            })
        });
        let list = serde_json::json!({
            "syncToken": sync_token.to_string(),
            "creationTime": changed_at(sync_token).strftime("%Y-%m-%dT%H:%M:%S").to_string(),
            "prefixes": prefixes.collect::<Vec<_>>(),
        });
        format!("{list:#}\n")
    }

    /// Of all that is served but the token itself: it changes exactly when the token has to.
    pub fn digest(&self, notice: &Notice, now: Timestamp) -> [u8; 32] {
        sha256(self.json(notice, 0, now).as_bytes())
    }
}

impl Entry {
    pub fn status(&self, notice: &Notice, now: Timestamp) -> Status {
        let retires = self.retires.map(start_of);
        match self.active_from(notice) {
            _ if retires.is_some_and(|at| now >= after_retirement(at)) => Status::Gone,
            _ if retires.is_some_and(|at| now >= at) => Status::Retiring,
            Some(active) if now >= active => {
                if retires.is_some() {
                    Status::Retiring
                } else {
                    Status::Active
                }
            }
            _ => Status::Announced,
        }
    }

    /// Whether new connections may leave from it now.
    pub fn carries(&self, notice: &Notice, now: Timestamp) -> bool {
        self.window(notice).is_some_and(|window| window.contains(&now))
    }

    /// From when until when it carries traffic; `None`: that is not dated yet.
    pub fn window(&self, notice: &Notice) -> Option<Range<Timestamp>> {
        Some(self.active_from(notice)?..self.retires.map_or(Timestamp::MAX, start_of))
    }

    /// The notice that the line itself gives; `None` where it has not both dates.
    pub fn notice(&self) -> Option<Duration> {
        let (announced, active) = (start_of(self.announced?), start_of(self.active?));
        Some(active.duration_since(announced).unsigned_abs())
    }

    /// From when on it carries traffic; `None` while only an announcement is dated.
    fn active_from(&self, notice: &Notice) -> Option<Timestamp> {
        let line = match (self.announced, self.active) {
            (_, Some(active)) => start_of(active),
            (None, None) => Timestamp::MIN,
            (Some(_), None) => return None,
        };
        Some(notice.ends(self.address).map_or(line, |ends| ends.max(line)))
    }

    /// The date to be shown. Where the notice puts it off to the middle of a day, that day's: whoever goes by it is
    /// early, never late.
    fn active_date(&self, notice: &Notice) -> Option<Date> {
        let put_off = notice.ends(self.address).map(|ends| ends.to_zoned(TimeZone::UTC).date());
        self.active.max(put_off).filter(|_| self.active.is_some() || self.announced.is_none())
    }
}

/// An instant as messages show it: a date where it is the beginning of one, as the list writes dates.
pub fn shown(at: Timestamp) -> String {
    let zoned = at.to_zoned(TimeZone::UTC);
    if start_of(zoned.date()) == at { zoned.date().to_string() } else { at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string() }
}

/// The `key=date` words of a line.
#[derive(Default)]
struct Dates {
    announced: Option<Date>,
    active: Option<Date>,
    retires: Option<Date>,
}

impl Dates {
    fn read<'a>(words: impl Iterator<Item = &'a str>, note: &mut impl FnMut((String, &'static str))) -> Self {
        let mut dates = Self::default();
        for word in words {
            let Some((key, value)) = word.split_once('=') else {
                note((format!("{word:?} is not KEY=DATE"), "one address a line, then announced=, active=, retires="));
                continue;
            };
            let slot = match key {
                "announced" => &mut dates.announced,
                "active" => &mut dates.active,
                "retires" => &mut dates.retires,
                _ => {
                    note((format!("{key:?} is not a key"), "the keys are announced, active and retires"));
                    continue;
                }
            };
            if slot.is_some() {
                note((format!("{key} is given twice"), "keep one of them"));
                continue;
            }
            match parse_date(value) {
                Some(date) => *slot = Some(date),
                None => note((format!("{key}={value} is not a date"), "write it as 2026-11-22")),
            }
        }
        for (earlier, later, detail) in [
            (dates.announced, dates.active, "is active before it is announced"),
            (dates.announced, dates.retires, "retires before it is announced"),
        ] {
            if earlier.zip(later).is_some_and(|(earlier, later)| later < earlier) {
                note((detail.to_owned(), "announced comes first, then active, then retires"));
            }
        }
        if dates.active.zip(dates.retires).is_some_and(|(active, retires)| retires <= active) {
            note(("retires before it was active for a day".to_owned(), "put `retires` after `active`"));
        }
        dates
    }
}

/// Strictly `2026-11-22`, within the years that make sense here.
fn parse_date(text: &str) -> Option<Date> {
    if text.len() != 10 {
        return None;
    }
    text.parse().ok().filter(|date: &Date| (1970..=9000).contains(&date.year()) && date.to_string() == text)
}

fn parse_address(text: &str) -> Result<IpAddr, (String, &'static str)> {
    let address: IpAddr = text
        .parse()
        .map_err(|_| (format!("{text:?} is not an IP address"), "one IPv4 or IPv6 address a line; `#` comments"))?;
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err((format!("{text} is an IPv4 address in IPv6 form"), "write the IPv4 address"))
        }
        _ if address.is_unspecified() || address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) => {
            Err((format!("{text} is no address that a connection can come from"), "remove the line"))
        }
        IpAddr::V4(v4) if v4.is_link_local() => link_local(text),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => link_local(text),
        _ => Ok(address),
    }
}

fn link_local(text: &str) -> Result<IpAddr, (String, &'static str)> {
    let detail = format!("{text} is link-local: it means another host on every link, and no receiver sees it");
    Err((detail, "write the address that the world sees"))
}

fn start_of(date: Date) -> Timestamp {
    date.to_zoned(TimeZone::UTC).map_or(Timestamp::MAX, |midnight| midnight.timestamp())
}

fn after_retirement(retires: Timestamp) -> Timestamp {
    retires.saturating_add(LISTED_AFTER_RETIREMENT).unwrap_or(Timestamp::MAX)
}

/// As text of HTML and XML, and as the value of an attribute in double quotes.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The instant that a token stands for.
pub fn changed_at(sync_token: u64) -> Timestamp {
    i64::try_from(sync_token).ok().and_then(|second| Timestamp::from_second(second).ok()).unwrap_or(Timestamp::MAX)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

#[cfg(test)]
mod tests;
