use super::*;
use crate::config::PublishSays;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn the_file_is_addresses_comments_and_dates() {
    let list = PublishedList::parse(
        "# ours\n\n203.0.113.10\n203.0.113.12 announced=2026-11-22 active=2026-11-29 retires=2027-06-01 # new\r\n2001:db8::1\n",
    )
    .unwrap();
    let shown: Vec<_> = list.entries.iter().map(|e| (e.address.to_string(), e.line)).collect();
    assert_eq!(shown, [("203.0.113.10".into(), 3), ("203.0.113.12".into(), 4), ("2001:db8::1".into(), 5)]);
    assert_eq!(list.entry(ip("203.0.113.12")).unwrap().notice(), Some(Duration::from_secs(7 * 86_400)));
    assert_eq!(list.entry(ip("203.0.113.10")).unwrap().notice(), None);
}

#[test]
fn every_problem_of_the_file_is_told_with_its_line() {
    for (text, problems) in [
        ("nonsense", vec![(1, "\"nonsense\" is not an IP address")]),
        ("010.0.0.1", vec![(1, "\"010.0.0.1\" is not an IP address")]),
        ("203.0.113.1/32", vec![(1, "\"203.0.113.1/32\" is not an IP address")]),
        (
            "0.0.0.0\n224.0.0.1",
            vec![
                (1, "0.0.0.0 is no address that a connection can come from"),
                (2, "224.0.0.1 is no address that a connection can come from"),
            ],
        ),
        (
            "169.254.7.9\nfe80::1",
            vec![
                (1, "169.254.7.9 is link-local: it means another host on every link, and no receiver sees it"),
                (2, "fe80::1 is link-local: it means another host on every link, and no receiver sees it"),
            ],
        ),
        ("::ffff:203.0.113.1", vec![(1, "::ffff:203.0.113.1 is an IPv4 address in IPv6 form")]),
        ("203.0.113.1\n\n203.0.113.1", vec![(3, "203.0.113.1 stands in line 1 already")]),
        ("2001:db8::1\n2001:db8:0::1", vec![(2, "2001:db8::1 stands in line 1 already")]),
        ("203.0.113.1 activ=2026-11-22", vec![(1, "\"activ\" is not a key")]),
        ("203.0.113.1 soon", vec![(1, "\"soon\" is not KEY=DATE")]),
        ("203.0.113.1 active=2026-11-31", vec![(1, "active=2026-11-31 is not a date")]),
        ("203.0.113.1 active=20261122", vec![(1, "active=20261122 is not a date")]),
        ("203.0.113.1 active=2026-11-22T00:00:00", vec![(1, "active=2026-11-22T00:00:00 is not a date")]),
        ("203.0.113.1 active=2026-11-22 active=2026-11-23", vec![(1, "active is given twice")]),
        ("203.0.113.1 announced=2026-11-23 active=2026-11-22", vec![(1, "is active before it is announced")]),
        ("203.0.113.1 active=2026-11-22 retires=2026-11-22", vec![(1, "retires before it was active for a day")]),
        ("203.0.113.1 announced=2026-11-23 retires=2026-11-22", vec![(1, "retires before it is announced")]),
        (
            "x\n203.0.113.1 a=b c\ny",
            vec![
                (1, "\"x\" is not an IP address"),
                (2, "\"a\" is not a key"),
                (2, "\"c\" is not KEY=DATE"),
                (3, "\"y\" is not an IP address"),
            ],
        ),
    ] {
        let found = PublishedList::parse(text).unwrap_err();
        let found: Vec<_> = found.iter().map(|problem| (problem.line, problem.detail.as_str())).collect();
        assert_eq!(found, problems, "{text:?}");
    }
}

#[test]
fn a_date_decides_what_an_address_may_do() {
    let dated = "203.0.113.1 announced=2026-11-22 active=2026-11-29 retires=2027-06-01";
    let announced_only = "203.0.113.1 announced=2026-11-22";
    for (line, now, status, carries) in [
        ("203.0.113.1", "2000-01-01T00:00:00Z", Status::Active, true),
        (dated, "2026-11-01T00:00:00Z", Status::Announced, false),
        (dated, "2026-11-28T23:59:59.999Z", Status::Announced, false),
        (dated, "2026-11-29T00:00:00Z", Status::Retiring, true),
        (dated, "2027-05-31T23:59:59.999Z", Status::Retiring, true),
        (dated, "2027-06-01T00:00:00Z", Status::Retiring, false),
        (dated, "2027-06-01T23:59:59.999Z", Status::Retiring, false),
        (dated, "2027-06-02T00:00:00Z", Status::Gone, false),
        (announced_only, "2099-01-01T00:00:00Z", Status::Announced, false),
        ("203.0.113.1 active=2026-11-29", "2026-11-28T00:00:00Z", Status::Announced, false),
        ("203.0.113.1 active=2026-11-29", "2026-11-29T00:00:00Z", Status::Active, true),
        ("203.0.113.1 retires=2026-11-29", "2026-11-28T00:00:00Z", Status::Retiring, true),
    ] {
        let entry = PublishedList::parse(line).unwrap().entries.remove(0);
        let notice = Notice::given();
        assert_eq!(
            (entry.status(&notice, at(now)), entry.carries(&notice, at(now))),
            (status, carries),
            "{line} {now}"
        );
    }
}

#[test]
fn no_line_shortens_the_notice_that_first_publication_began() {
    let start = at("2026-11-01T00:00:00Z");
    let later = at("2026-11-22T12:00:00Z");
    // The third was published by a clock that was right, after a first start whose clock was ahead.
    let behind = at("2026-10-30T08:00:00Z");
    let first = HashMap::from([(ip("203.0.113.1"), start), (ip("203.0.113.2"), later), (ip("203.0.113.3"), behind)]);
    let notice = Notice::new(&first, start, Duration::from_secs(7 * 86_400));
    for (line, now, carries) in [
        ("203.0.113.1", "2026-11-01T00:00:00Z", true),
        ("203.0.113.2", "2026-11-28T23:59:59Z", false),
        ("203.0.113.2", "2026-11-29T00:00:00Z", true),
        ("203.0.113.2 announced=2020-01-01 active=2020-02-01", "2026-11-28T23:59:59Z", false),
        ("203.0.113.2 announced=2026-11-22 active=2026-11-29", "2026-11-29T00:00:00Z", true),
        ("203.0.113.2 active=2026-12-24", "2026-12-23T00:00:00Z", false),
        ("203.0.113.2 active=2026-12-24", "2026-12-24T00:00:00Z", true),
        ("203.0.113.2 retires=2026-11-25", "2026-11-24T00:00:00Z", false),
        ("203.0.113.1", "2026-10-30T08:00:00Z", true),
        ("203.0.113.3", "2026-10-30T08:00:00Z", false),
        ("203.0.113.3", "2026-11-05T23:59:59Z", false),
        ("203.0.113.3", "2026-11-06T00:00:00Z", true),
    ] {
        let entry = PublishedList::parse(line).unwrap().entries.remove(0);
        assert_eq!(entry.carries(&notice, at(now)), carries, "{line} {now}");
    }
}

#[test]
fn a_notice_counts_in_whole_days_from_the_day_of_first_publication() {
    let (start, first) = (at("2026-11-01T00:00:00Z"), at("2026-11-22T23:59:59.987654321Z"));
    let address = ip("203.0.113.2");
    for (notice, ends, told) in [
        (0, "2026-11-22T23:59:59.987654321Z", "2026-11-22T23:59:59Z"),
        (8, "2026-11-23T00:00:07.987654321Z", "2026-11-23T00:00:07Z"),
        (86_400, "2026-11-23T00:00:00Z", "2026-11-23"),
        (36 * 3600, "2026-11-24T00:00:00Z", "2026-11-24"),
        (7 * 86_400, "2026-11-29T00:00:00Z", "2026-11-29"),
    ] {
        let notice = Notice::new(&HashMap::from([(address, first)]), start, Duration::from_secs(notice));
        assert_eq!(notice.ends(address), Some(at(ends)));
        assert_eq!(shown(at(ends)), told);
    }
}

const LIST: &str = "203.0.113.10\n203.0.113.12 announced=2026-11-22 active=2026-11-29\n2001:db8::1 retires=2027-06-01\n\
                    203.0.113.9 retires=2026-11-01\n";

#[test]
fn the_bare_form_lists_all_that_is_not_gone() {
    let list = PublishedList::parse(LIST).unwrap();
    assert_eq!(list.text(&Notice::given(), at("2026-11-22T00:00:00Z")), "203.0.113.10\n203.0.113.12\n2001:db8::1\n");
}

#[test]
fn the_json_form_has_the_shape_that_importers_know() {
    let list = PublishedList::parse(LIST).unwrap();
    let json = list.json(&Notice::given(), 1_795_305_600, at("2026-11-22T00:00:00Z"));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "syncToken": "1795305600",
            "creationTime": "2026-11-22T00:00:00",
            "prefixes": [
                {"ipv4Prefix": "203.0.113.10/32", "status": "active", "announced": null, "active": null, "retires": null},
                {"ipv4Prefix": "203.0.113.12/32", "status": "announced", "announced": "2026-11-22",
                 "active": "2026-11-29", "retires": null},
                {"ipv6Prefix": "2001:db8::1/128", "status": "retiring", "announced": null, "active": null,
                 "retires": "2027-06-01"},
            ]
        })
    );
}

#[test]
fn the_digest_changes_exactly_when_what_is_served_does() {
    let list = PublishedList::parse(LIST).unwrap();
    let given = Notice::given();
    let now = at("2026-11-22T00:00:00Z");
    let next = list.next_change(&given, now).unwrap();
    assert_eq!(next, at("2026-11-29T00:00:00Z"));
    let before = list.digest(&given, now);
    assert_eq!(before, list.digest(&given, at("2026-11-28T23:59:59Z")));
    assert_ne!(before, list.digest(&given, next));
    assert_eq!(list.next_change(&given, at("2028-01-01T00:00:00Z")), None);
}

#[test]
fn an_address_within_its_notice_shows_the_day_that_ends_it() {
    let list = PublishedList::parse("203.0.113.1").unwrap();
    let first = HashMap::from([(ip("203.0.113.1"), at("2026-11-22T12:00:00Z"))]);
    let notice = Notice::new(&first, at("2026-11-01T00:00:00Z"), Duration::from_secs(7 * 86_400));
    let now = at("2026-11-22T12:00:00Z");
    let json: serde_json::Value = serde_json::from_str(&list.json(&notice, 0, now)).unwrap();
    assert_eq!(json["prefixes"][0]["status"], "announced");
    assert_eq!(json["prefixes"][0]["active"], "2026-11-29");
    assert_eq!(list.next_change(&notice, now), Some(at("2026-11-29T00:00:00Z")));
}

/// `(id's end, updated, title)` of each entry.
fn entries(feed: &str) -> Vec<(String, String, String)> {
    let part = |entry: &str, tag: &str| {
        let (_, rest) = entry.split_once(&format!("<{tag}>")).unwrap();
        rest.split_once(&format!("</{tag}>")).unwrap().0.to_owned()
    };
    let entries = feed.split("<entry>").skip(1);
    entries.map(|one| (part(one, "id"), part(one, "updated"), part(one, "title"))).collect()
}

#[test]
fn the_feed_tells_each_change_once_and_under_one_id() {
    let list = PublishedList::parse(
        "203.0.113.1\n203.0.113.2 announced=2026-11-22 active=2026-11-29\n203.0.113.3 retires=2027-01-10\n2001:db8::1 \
         announced=2026-12-01\n",
    )
    .unwrap();
    let first: HashMap<_, _> = [
        ("203.0.113.1", "2026-11-01T10:00:00Z"),
        ("203.0.113.3", "2026-11-01T10:00:00Z"),
        ("203.0.113.2", "2026-11-22T09:30:00Z"),
        ("2001:db8::1", "2026-12-01T08:00:00Z"),
        ("203.0.113.9", "2026-11-01T10:00:00Z"),
    ]
    .map(|(address, when)| (ip(address), at(when)))
    .into();
    let says = PublishSays {
        url: "https://egress.example.net".into(),
        operator: "A <b> & \"C\"".into(),
        ..PublishSays::default()
    };
    let notice = Notice::new(&first, at("2026-11-01T10:00:00Z"), Duration::from_secs(7 * 86_400));
    let changed = at("2026-12-01T08:00:00Z");
    let feed = |now: &str| atom::feed(&list, &notice, &first, &HashMap::new(), &says, changed, at(now));
    let early = feed("2026-12-01T09:00:00Z");
    let told = entries(&early);
    let lines: Vec<_> = told.iter().map(|(id, at, title)| format!("{id} {at} {title}")).collect();
    let id = |rest: &str| format!("https://egress.example.net/public-ips.atom#{rest}");
    assert_eq!(
        lines,
        [
            id("2001:db8::1-announced 2026-12-01T08:00:00Z 2001:db8::1 is announced, without a date yet"),
            id("203.0.113.3-retires-2027-01-10 2026-12-01T08:00:00Z 203.0.113.3 retires on 2027-01-10"),
            id("203.0.113.9-gone 2026-12-01T08:00:00Z 203.0.113.9 has left the list"),
            id("203.0.113.2-active-2026-11-29 2026-11-29T00:00:00Z requests come from 203.0.113.2 now"),
            id(
                "203.0.113.2-announced-2026-11-29 2026-11-22T09:30:00Z 203.0.113.2 is announced: requests come from it from \
                2026-11-29 on"
            ),
            id("203.0.113.1-listed 2026-11-01T10:00:00Z 203.0.113.1 is on the list"),
            id("203.0.113.3-listed 2026-11-01T10:00:00Z 203.0.113.3 is on the list"),
        ]
    );
    assert!(early.contains("<author><name>A &lt;b&gt; &amp; &quot;C&quot;</name></author>"), "{early}");
    // What was told stays as it was told; what is new comes on top.
    let late = entries(&feed("2027-01-11T00:00:00Z"));
    assert_eq!(late[0].2, "203.0.113.3 has left the list");
    assert_eq!(late[1..], told);
    // Without a place of its own it is told of under a name, and no link leads anywhere.
    let says = PublishSays::default();
    let bare = atom::feed(&list, &notice, &first, &HashMap::new(), &says, changed, at("2026-12-01T09:00:00Z"));
    assert!(bare.contains("<id>urn:egressd:public-ips:203.0.113.1-listed</id>") && !bare.contains("<link"), "{bare}");
    assert_eq!(entries(&bare).len(), told.len());
}

#[test]
fn the_feed_is_bounded() {
    let first: HashMap<IpAddr, _> =
        (0..10_000_u32).map(|n| (IpAddr::V4((0x0a00_0000 + n).into()), at("2026-11-01T10:00:00Z"))).collect();
    let now = at("2026-12-01T09:00:00Z");
    let (list, says) = (PublishedList::default(), PublishSays::default());
    let feed = atom::feed(&list, &Notice::given(), &first, &HashMap::new(), &says, now, now);
    assert_eq!(entries(&feed).len(), crate::limits::FEED_ENTRIES_MAX);
}

#[test]
fn what_is_still_to_come_stays_in_the_feed_and_what_has_gone_keeps_its_time() {
    let list = PublishedList::parse(
        "203.0.113.1\n203.0.113.2 announced=2026-11-22 active=2026-12-20\n203.0.113.3 retires=2027-01-10\n203.0.113.4 \
         announced=2026-11-22\n",
    )
    .unwrap();
    let (long_ago, first_change) = (at("2025-01-01T10:00:00Z"), at("2026-11-25T10:00:00Z"));
    let gone = (0..120_u32).map(|n| IpAddr::V4((0xc612_0000 + n).into()));
    let listed = list.entries.iter().map(|entry| entry.address);
    let first: HashMap<IpAddr, _> = gone.clone().chain(listed).map(|address| (address, long_ago)).collect();
    let left: HashMap<IpAddr, _> = gone.map(|address| (address, first_change)).collect();
    for (what, left) in [("remembered", left), ("not remembered", HashMap::new())] {
        // Others came and went since.
        for now in ["2026-11-25T10:00:00Z", "2026-12-01T09:00:00Z"] {
            let (says, changed) = (PublishSays::default(), at(now));
            let told = entries(&atom::feed(&list, &Notice::given(), &first, &left, &says, changed, changed));
            assert_eq!(told.len(), crate::limits::FEED_ENTRIES_MAX, "{what}, {now}");
            let ids: Vec<_> = told.iter().map(|(id, ..)| id.trim_start_matches("urn:egressd:public-ips:")).collect();
            for id in ["203.0.113.2-announced-2026-12-20", "203.0.113.3-retires-2027-01-10", "203.0.113.4-announced"] {
                assert!(ids.contains(&id), "{what}, {now}: {id} in {ids:?}");
            }
            assert!(told.is_sorted_by(|one, next| one.1 >= next.1), "{what}, {now}: the newest first");
            let of_gone: Vec<_> =
                told.iter().filter(|(id, ..)| id.ends_with("-gone")).map(|(_, at, _)| &**at).collect();
            let expected = if left.is_empty() { now } else { "2026-11-25T10:00:00Z" };
            assert!(!of_gone.is_empty() && of_gone.iter().all(|at| *at == expected), "{what}, {now}: {of_gone:?}");
        }
    }
}

#[test]
fn more_may_be_to_come_than_the_feed_has_of_what_was() {
    let lines: String = (0..150).map(|n| format!("203.0.113.{n} announced=2026-11-22\n")).collect();
    let (list, now) = (PublishedList::parse(&lines).unwrap(), at("2026-12-01T09:00:00Z"));
    let (none, says) = (HashMap::new(), PublishSays::default());
    assert_eq!(entries(&atom::feed(&list, &Notice::given(), &none, &none, &says, now, now)).len(), 150);
}

#[test]
fn the_page_says_whose_they_are_what_changes_when_and_whom_to_write_to() {
    let list = PublishedList::parse(
        "203.0.113.1\n203.0.113.2 announced=2026-11-22 active=2026-11-29\n203.0.113.3 retires=2027-01-10\n203.0.113.4 \
         retires=2026-11-01\n203.0.113.5 announced=2026-11-22\n",
    )
    .unwrap();
    let week = Duration::from_secs(7 * 86_400);
    let page = |operator: &str, abuse: &str, now: &str| {
        let says = PublishSays { operator: operator.into(), abuse: abuse.into(), ..PublishSays::default() };
        page::page(&list, &Notice::given(), week, &says, at("2026-11-22T09:30:00Z"), at(now))
    };
    let shown = page("A <b> & Co", "abuse@example.net", "2026-11-23T12:00:00Z");
    for part in [
        "<h1>Where requests of A &lt;b&gt; &amp; Co come from</h1>",
        "<tr><td>203.0.113.1<td>active<td>\u{2013}<td>\u{2013}</tr>",
        "<tr><td>203.0.113.2<td>announced: nothing comes from it yet<td>2026-11-29<td>\u{2013}</tr>",
        "<tr><td>203.0.113.3<td>active, retires<td>\u{2013}<td>2027-01-10</tr>",
        "<tr><td>203.0.113.5<td>announced: nothing comes from it yet<td>not dated yet<td>\u{2013}</tr>",
        "<ul>\n<li>2026-11-29: requests begin to come from 203.0.113.2\n<li>2027-01-10: no new connection comes from \
         203.0.113.3\n<li>2027-01-11: 203.0.113.3 leaves the list\n</ul>",
        "at least 7d before",
        "href=\"public-ips.atom\"",
        "<a href=\"mailto:abuse@example.net\">abuse@example.net</a>",
    ] {
        assert!(shown.contains(part), "{part}\n{shown}");
    }
    assert!(!shown.contains("203.0.113.4"), "{shown}");
    let retired = page("", "https://egress.example.net/abuse", "2027-01-10T12:00:00Z");
    assert!(retired.contains("203.0.113.3<td>retired: finishes its connections"), "{retired}");
    assert!(retired.contains("<a href=\"https://egress.example.net/abuse\">"), "{retired}");
    let over = page("", "", "2028-01-01T00:00:00Z");
    assert!(over.contains("No change is planned.") && over.contains("WHOIS, RDAP"), "{over}");
    // Nothing of it runs, or comes from elsewhere.
    assert!(!over.contains("<script") && !over.contains("src="), "{over}");
}
