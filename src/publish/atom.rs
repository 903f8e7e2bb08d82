//! The list as news: an Atom feed (RFC 4287) of what changes on it, so that a firewall's owner is told.
//!
//! Made of the list alone: its dates, when the store first published each address, and when it found that one had gone.
//! What is said of a change is said under an id of its own, so that every node of a tier says the same and a reader shows
//! it once. What is still to come stays in the feed, however much has been.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::net::IpAddr;

use jiff::Timestamp;

use super::{Notice, PublishedList, after_retirement, escaped, shown, start_of};
use crate::config::PublishSays;
use crate::limits::FEED_ENTRIES_MAX;

/// Of a node that was not told where the world reads its list.
const NAMELESS: &str = "urn:egressd:public-ips";

/// One piece of news.
struct News {
    id: String,
    at: Timestamp,
    title: String,
    text: String,
    is_to_come: bool,
}

/// `first`: when each address was first published, those that are gone included, and `left`: when these had gone, as far
/// as that is remembered. `changed`: when the list last did.
pub fn feed(
    list: &PublishedList,
    notice: &Notice,
    first: &HashMap<IpAddr, Timestamp>,
    left: &HashMap<IpAddr, Timestamp>,
    says: &PublishSays,
    changed: Timestamp,
    now: Timestamp,
) -> String {
    let mut news = news(list, notice, first, left, changed, now);
    let newest_first = |a: &News, b: &News| b.at.cmp(&a.at).then_with(|| a.id.cmp(&b.id));
    news.sort_by(|a, b| b.is_to_come.cmp(&a.is_to_come).then_with(|| newest_first(a, b)));
    // The list bounds what is still to come of it.
    news.truncate(FEED_ENTRIES_MAX.max(news.partition_point(|one| one.is_to_come)));
    news.sort_by(newest_first);
    let operator = escaped(if says.operator.is_empty() { "egressd" } else { &says.operator });
    let url = escaped(&says.url);
    let id = if url.is_empty() { NAMELESS.to_owned() } else { format!("{url}/public-ips.atom") };
    let updated = news.first().map_or(changed, |newest| newest.at.max(changed));
    let mut feed = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<feed xmlns=\"http://www.w3.org/2005/Atom\">\n<id>{id}</id>\n\
         <title>Addresses that requests of {operator} come from</title>\n<updated>{}</updated>\n\
         <author><name>{operator}</name></author>\n",
        instant(updated)
    );
    if !url.is_empty() {
        let _ = writeln!(feed, "<link rel=\"self\" type=\"application/atom+xml\" href=\"{id}\"/>");
        let _ = writeln!(feed, "<link rel=\"alternate\" type=\"text/html\" href=\"{url}/\"/>");
    }
    for News { id: of, at, title, text, .. } in &news {
        let separator = if url.is_empty() { ':' } else { '#' };
        let _ = writeln!(
            feed,
            "<entry><id>{id}{separator}{of}</id><title>{title}</title><updated>{}</updated><content type=\"text\">{text}</content></entry>",
            instant(*at)
        );
    }
    feed.push_str("</feed>\n");
    feed
}

fn news(
    list: &PublishedList,
    notice: &Notice,
    first: &HashMap<IpAddr, Timestamp>,
    left: &HashMap<IpAddr, Timestamp>,
    changed: Timestamp,
    now: Timestamp,
) -> Vec<News> {
    let mut news = Vec::new();
    let mut tell = |id: String, at: Timestamp, title: String, text: &str, is_to_come: bool| {
        news.push(News { id, at: at.min(now), title, text: text.to_owned(), is_to_come });
    };
    for entry in &list.entries {
        let address = entry.address;
        let listed = first.get(&address).copied().or(entry.announced.map(start_of)).unwrap_or(changed);
        let from = entry.active_from(notice);
        match from {
            Some(from) if from <= listed => tell(
                format!("{address}-listed"),
                listed,
                format!("{address} is on the list"),
                "Requests come from it. Let it in.",
                false,
            ),
            Some(from) => {
                let date = shown(from);
                tell(
                    format!("{address}-announced-{date}"),
                    listed,
                    format!("{address} is announced: requests come from it from {date} on"),
                    "Let it in before that date.",
                    now < from,
                );
                if now >= from {
                    let title = format!("requests come from {address} now");
                    tell(format!("{address}-active-{date}"), from, title, "It should have been let in by now.", false);
                }
            }
            None => tell(
                format!("{address}-announced"),
                listed,
                format!("{address} is announced, without a date yet"),
                "Nothing comes from it yet. Let it in when it suits you.",
                true,
            ),
        }
        if let Some(retires) = entry.retires {
            let (at, gone) = (start_of(retires), after_retirement(start_of(retires)));
            tell(
                format!("{address}-retires-{retires}"),
                // When that was written into the list is not remembered; it is no later than the list's last change.
                changed.min(at).max(listed),
                format!("{address} retires on {retires}"),
                "No new connection comes from it from that date on. It leaves the list a day later: let it in until then.",
                now < gone,
            );
            if now >= gone {
                tell(format!("{address}-gone"), gone, format!("{address} has left the list"), GONE, false);
            }
        }
    }
    let known: BTreeSet<_> = list.entries.iter().map(|entry| entry.address).collect();
    let mut gone: Vec<_> = first.iter().filter(|(address, _)| !known.contains(address)).collect();
    gone.sort_unstable();
    for (address, listed) in gone {
        // Not remembered: no later than the list's last change.
        let at = left.get(address).copied().unwrap_or(changed.max(*listed));
        tell(format!("{address}-gone"), at, format!("{address} has left the list"), GONE, false);
    }
    news
}

const GONE: &str = "Nothing comes from it any more, and it may become somebody else's: let it in no longer.";

/// RFC 3339, in whole seconds.
fn instant(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
