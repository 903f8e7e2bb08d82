//! The page for whoever sees requests from these addresses: whose they are, what changes when, how to be told, and whom
//! to write to. Plain HTML, without scripts and without anything from elsewhere.

use std::fmt::Write as _;

use jiff::Timestamp;

use super::{Notice, PublishedList, Status, after_retirement, escaped, shown, start_of};
use crate::config::PublishSays;
use crate::config::file::show_duration;

/// The one style sheet; [`super::front`] allows it by its hash.
pub const STYLE: &str = "body{font:1rem/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;\
    color:#1a1a1a;background:#fff}table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .6rem;\
    border-bottom:1px solid #ccc}code,td:first-child{font-family:ui-monospace,monospace;overflow-wrap:anywhere}\
    @media(prefers-color-scheme:dark){body{color:#e8e8e8;background:#16181c}th,td{border-color:#444}a{color:#8ab4f8}}";

/// `notice`: `[egress] notice`.
pub fn page(
    list: &PublishedList,
    notice: &Notice,
    least: std::time::Duration,
    says: &PublishSays,
    changed: Timestamp,
    now: Timestamp,
) -> String {
    let operator = escaped(if says.operator.is_empty() { "this platform" } else { &says.operator });
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>Addresses of {operator}</title>\
         <link rel=\"alternate\" type=\"application/atom+xml\" title=\"Changes\" href=\"public-ips.atom\">\
         <style>{STYLE}</style></head><body><main>\n\
         <h1>Where requests of {operator} come from</h1>\n\
         <p>Workflows that customers of {operator} run send HTTP requests. They come from the addresses below and from no \
         others, each is made once, and none is repeated by itself.</p>\n\
         <table><thead><tr><th>Address<th>Now<th>Requests from<th>Until</tr></thead><tbody>\n"
    );
    for (entry, status) in list.listed(notice, now) {
        let means = match status {
            Status::Announced => "announced: nothing comes from it yet",
            Status::Active => "active",
            Status::Retiring if entry.carries(notice, now) => "active, retires",
            _ => "retired: finishes its connections",
        };
        let from = match entry.active_from(notice) {
            Some(from) if from == Timestamp::MIN => "\u{2013}".to_owned(),
            Some(from) => shown(from),
            None => "not dated yet".to_owned(),
        };
        let until = entry.retires.map_or("\u{2013}".to_owned(), |date| date.to_string());
        let _ = writeln!(page, "<tr><td>{}<td>{means}<td>{from}<td>{until}</tr>", entry.address);
    }
    page.push_str("</tbody></table>\n<p>Dates are 00:00 UTC.</p>\n<h2>What changes when</h2>\n");
    let mut changes: Vec<(Timestamp, String)> = Vec::new();
    for (entry, _) in list.listed(notice, now) {
        let address = entry.address;
        if let Some(from) = entry.active_from(notice) {
            changes.push((from, format!("requests begin to come from {address}")));
        }
        if let Some(retires) = entry.retires.map(start_of) {
            changes.push((retires, format!("no new connection comes from {address}")));
            changes.push((after_retirement(retires), format!("{address} leaves the list")));
        }
    }
    changes.retain(|(at, _)| *at > now);
    changes.sort();
    if changes.is_empty() {
        page.push_str("<p>No change is planned.</p>\n");
    } else {
        page.push_str("<ul>\n");
        for (at, what) in changes {
            let _ = writeln!(page, "<li>{}: {what}", shown(at));
        }
        page.push_str("</ul>\n");
    }
    let _ = writeln!(
        page,
        "<p>A new address is on the list for at least {} before anything comes from it, and a retired one for a day after \
         its last new connection, so that an allow-list made from the list is never too small. The list last changed on \
         {}.</p>",
        show_duration(least),
        changed.strftime("%Y-%m-%d %H:%M UTC")
    );
    page.push_str(
        "<h2>How to be told</h2>\n<ul>\n\
         <li><a href=\"public-ips.atom\">public-ips.atom</a>: every change, for a feed reader\n\
         <li><a href=\"public-ips.txt\">public-ips.txt</a>: one address a line, for an allow-list. Ask once an hour with \
         <code>If-None-Match</code>\n\
         <li><a href=\"public-ips.json\">public-ips.json</a>: the same with status and dates; its <code>syncToken</code> \
         grows with every change and never falls\n\
         <li><a href=\"whoami\">whoami</a>: the address that you ask from\n</ul>\n<h2>Abuse</h2>\n",
    );
    let abuse = escaped(&says.abuse);
    let reach = if abuse.is_empty() {
        "<p>Who runs this list has not written here how to be reached: the registry of the address (WHOIS, RDAP) names its \
         owner."
            .to_owned()
    } else if says.abuse.starts_with("https://")
        || says.abuse.starts_with("http://")
        || says.abuse.starts_with("mailto:")
    {
        format!("<p>If a request from here troubles you, write to <a href=\"{abuse}\">{abuse}</a>.")
    } else if says.abuse.contains('@') {
        format!("<p>If a request from here troubles you, write to <a href=\"mailto:{abuse}\">{abuse}</a>.")
    } else {
        format!("<p>If a request from here troubles you, write to {abuse}.")
    };
    page.push_str(&reach);
    page.push_str(
        " Say which address, when (with the time zone), and which host of yours was reached: that names the workflow, and \
         it can be stopped at once.</p>\n</main></body></html>\n",
    );
    page
}
