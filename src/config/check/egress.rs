//! `[egress]`: the published file, the sources, and how they are proven.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::super::file::{ConfigProblem, KeyAt, Setting, Table, Wrong, show_duration, wrong};
use super::super::{DEFAULT_POOL, Egress, SourceSettings, Verify};
use super::{DAY, SECOND, Surroundings, files};
use crate::limits;
use crate::publish::{Entry, Notice, PublishedList};

impl<'a, 'r> Surroundings<'a, 'r> {
    pub(super) fn egress(&self, table: Table<'a, 'r>) -> Egress {
        let path = self.published_path(&table);
        let published = (!path.broken).then(|| self.published(&path.value, &path.place)).flatten();
        let notice = table.duration("notice", limits::NOTICE, Duration::ZERO..=365 * DAY);
        let sources = self.sources(&table, published.as_ref(), (!notice.broken).then_some(notice.value));
        let verify = table.table("verify");
        let verify = verify.is_written().then(|| self.verify(verify)).flatten();
        table.finish();
        Egress {
            published: Arc::new(published.unwrap_or_default()),
            published_path: path.value,
            notice: notice.value,
            sources,
            verify,
        }
    }

    /// `None`: the problem is noted.
    pub(super) fn published_list(&self, table: &Table<'a, 'r>) -> Option<(PathBuf, PublishedList)> {
        let path = self.published_path(table);
        let list = (!path.broken).then(|| self.published(&path.value, &path.place)).flatten()?;
        Some((path.value, list))
    }

    fn published_path(&self, table: &Table<'a, 'r>) -> Setting<PathBuf> {
        table.text("published", self.base.join("public-ips.txt"), |text| match text {
            "" => Err(wrong("is empty", "name the file with the published addresses")),
            _ => Ok(self.base.join(text)),
        })
    }

    fn published(&self, path: &Path, place: &KeyAt) -> Option<PublishedList> {
        let text = match files::read_bounded(path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(cause) => {
                let detail = format!("{} cannot be read: {cause}", path.display());
                self.reader.note(place, wrong(detail, "name the file with the published addresses, one a line"));
                return None;
            }
        };
        PublishedList::parse(&text)
            .map_err(|problems| {
                for problem in problems {
                    self.reader.push(ConfigProblem {
                        file: path.to_owned(),
                        line: Some(problem.line),
                        key: String::new(),
                        detail: problem.detail,
                        fix: problem.fix,
                    });
                }
            })
            .ok()
    }

    /// `published`: `None` where it has problems of its own; then nothing is said of what stands in it.
    fn sources(
        &self,
        egress: &Table<'a, 'r>,
        published: Option<&PublishedList>,
        notice: Option<Duration>,
    ) -> Vec<SourceSettings> {
        let tables = egress.tables("source");
        if tables.is_empty() && egress.item("source").is_none_or(|item| item.value.as_array().is_some()) {
            let fix = "add at least one [[egress.source]] with public = \"ADDRESS\"";
            egress.note("source", wrong("no source: nothing could be sent", fix));
        }
        let mut sources = Vec::new();
        let mut seen_public = HashMap::new();
        let mut seen_bind = HashMap::new();
        for table in tables {
            let index_of = |seen: &mut HashMap<IpAddr, String>, address: IpAddr| -> Result<IpAddr, Wrong> {
                match seen.insert(address, table.place().key.clone()) {
                    Some(first) => {
                        Err(wrong(format!("{address} is the address of {first} already"), "keep one of the two"))
                    }
                    None => Ok(address),
                }
            };
            let public = table.required("public", "name the address as the world sees it", |text| {
                let address = index_of(&mut seen_public, source_address(text)?)?;
                self.is_published(address, published, notice)?;
                Ok(address)
            });
            let bind = table.optional("bind", source_address);
            let bound = bind.value.or(public);
            if let (Some(public), Some(bind)) = (public, bound) {
                if public.is_ipv4() != bind.is_ipv4() {
                    let detail = format!("{bind} is of another family than public, which is {public}");
                    table.note("bind", wrong(detail, "both IPv4, or both IPv6"));
                } else if let Err(wrong) = index_of(&mut seen_bind, bind).and_then(|bind| (self.outside.prove)(bind)) {
                    table.note(if table.item("bind").is_some() { "bind" } else { "public" }, wrong);
                }
            }
            let pool = table.text("pool", Arc::from(DEFAULT_POOL), pool_name);
            let bind = if bind.broken { None } else { bound };
            table.finish();
            if let (Some(public), Some(bind)) = (public, bind) {
                sources.push(SourceSettings { public, bind, pool: pool.value });
            }
        }
        sources
    }

    fn is_published(
        &self,
        address: IpAddr,
        published: Option<&PublishedList>,
        notice: Option<Duration>,
    ) -> Result<(), Wrong> {
        let (Some(published), Some(notice)) = (published, notice) else { return Ok(()) };
        let Some(entry) = published.entry(address) else {
            let detail = format!("{address} is not in the published file");
            return Err(wrong(detail, "publish it there, in time, or drop this source"));
        };
        self.gives_notice(entry, notice)
    }

    fn gives_notice(&self, entry: &Entry, notice: Duration) -> Result<(), Wrong> {
        let Entry { address, line, .. } = entry;
        match entry.notice() {
            Some(given) if given < notice => {
                let (given, notice) = (show_duration(given), show_duration(notice));
                let detail =
                    format!("{address} is published with {given} of notice, less than egress.notice ({notice})");
                Err(wrong(detail, format!("put its `active` date in line {line} {notice} after `announced`, or later")))
            }
            // With an `active` date to come and no `announced` one, nothing says that the notice is given.
            None if entry.active.is_some()
                && !entry.carries(&Notice::given(), self.outside.now)
                && !notice.is_zero() =>
            {
                let detail = format!("{address} has an `active` date and no `announced` one: its notice is unknown");
                Err(wrong(detail, format!("write announced=DATE in line {line} of the published file")))
            }
            _ => Ok(()),
        }
    }

    fn verify(&self, table: Table<'a, 'r>) -> Option<Verify> {
        let reflectors = table.texts("reflectors", reflector);
        let every = table.duration("every", limits::VERIFY_EVERY, SECOND..=DAY);
        if table.item("reflectors").is_none() {
            table.note(
                "reflectors",
                wrong("is missing", "name at least one URL that answers with the caller's address"),
            );
        }
        let mut seen = Vec::new();
        if let Some(list) = reflectors {
            if table.is_empty_list("reflectors") {
                table.note("reflectors", wrong("is empty", "name at least one URL, or leave [egress.verify] out"));
            }
            if list.len() > limits::REFLECTORS_MAX {
                let detail = format!("names {} reflectors", list.len());
                table.note("reflectors", wrong(detail, format!("at most {}", limits::REFLECTORS_MAX)));
            }
            for (url, place) in list {
                if seen.contains(&url) {
                    // Two answers of one reflector would count as two witnesses.
                    self.reader.note(&place, wrong(format!("{url} is named twice"), "name each reflector once"));
                }
                seen.push(url);
            }
        }
        table.finish();
        Some(Verify { reflectors: seen, every: every.value })
    }
}

fn source_address(text: &str) -> Result<IpAddr, Wrong> {
    let address: IpAddr = text
        .parse()
        .map_err(|_| wrong(format!("{text:?} is not an IP address"), "write one address, like \"198.51.100.10\""))?;
    if let IpAddr::V6(v6) = address
        && v6.to_ipv4_mapped().is_some()
    {
        return Err(wrong(format!("{text} is an IPv4 address in IPv6 form"), "write the IPv4 address"));
    }
    if address.is_unspecified() || address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Err(wrong(format!("{text} is no address that a connection can come from"), "name one of this host's"));
    }
    Ok(address)
}

pub(super) fn pool_name(text: &str) -> Result<Arc<str>, Wrong> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > limits::NAME_CHARS_MAX || !text.chars().all(good) {
        let fix = "letters, digits, `-`, `_` and `.`";
        return Err(wrong(format!("{text:?} is not a pool's name"), fix));
    }
    Ok(Arc::from(text))
}

fn reflector(text: &str) -> Result<String, Wrong> {
    match crate::policy::CheckedUrl::parse(text) {
        Ok(url) => Ok(url.as_str().to_owned()),
        Err(denial) => Err(wrong(denial.message, "write a plain URL, like \"https://a.example.net/whoami\"")),
    }
}
