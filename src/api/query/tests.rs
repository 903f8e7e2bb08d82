use super::*;

#[test]
fn a_host_is_a_name_or_an_address_alone() {
    for (given, mapped) in [
        ("example.com", Some("example.com")),
        ("Example.COM", Some("example.com")),
        ("example.com.", Some("example.com")),
        (" example.com ", Some("example.com")),
        ("bücher.example.com", Some("xn--bcher-kva.example.com")),
        ("localhost", Some("localhost")),
        ("127.0.0.1", Some("127.0.0.1")),
        ("2130706433", Some("127.0.0.1")),
        ("::1", Some("::1")),
        ("[::1]", Some("::1")),
        ("2001:db8::0:1", Some("2001:db8::1")),
        ("", None),
        ("a b", None),
        ("example.com:80", None),
        ("example.com:8080", None),
        ("[::1]:80", None),
        ("http://example.com", None),
        ("example.com/", None),
        ("example.com/x", None),
        ("example.com?x", None),
        ("example.com#x", None),
        ("user@example.com", None),
        ("a..b", None),
        ("*.example.com", None),
    ] {
        assert_eq!(host(given).as_deref(), mapped, "{given:?}");
    }
}

#[test]
fn filters_may_ask_for_several_and_for_kinds() {
    let ask = |query: &str| list(Some(query), Tenants::All, true).map(|(filter, ..)| filter);
    let all = || Filter { public_only: false, ..Filter::of(Reach::All) };
    for (query, filter) in [
        ("outcome=failed&outcome=expired", Filter { outcomes: vec![Outcome::Failed, Outcome::Expired], ..all() }),
        ("code=timeout&code=dns_failed", Filter { codes: vec![Code::Timeout, Code::DnsFailed], ..all() }),
        ("status=5xx&status=404", Filter { statuses: vec![StatusFilter::Class(5), StatusFilter::One(404)], ..all() }),
        ("state=held", Filter { state: Some(State::Held), ..all() }),
        ("method=POST&path=/a%20b", Filter { method: Some(Method::Post), path: Some("/a b".to_owned()), ..all() }),
        ("host=*.Example.com", Filter { host: Some(HostFilter::Below("example.com".to_owned())), ..all() }),
    ] {
        assert_eq!(ask(query).ok(), Some(filter), "{query}");
    }
    for query in [
        "state=held&state=queued",
        "state=waiting",
        "status=0xx",
        "status=xx",
        "status=5x",
        "status=99",
        "status=1000",
        "method=post",
        "method=BREW",
        "path=orders",
        "path=",
        "host=*.",
        "host=*.10.0.0.1",
        "host=a.*.com",
        "host=*",
        "outcome=failed&outcome=lost",
    ] {
        assert!(ask(query).is_err(), "{query}");
    }
}

#[test]
fn no_more_parameters_are_looked_at_than_the_bound() {
    let many: Vec<String> = (0..limits::QUERY_PARAMETERS_MAX * 3).map(|n| format!("p{n}=1")).collect();
    assert!(none(Some(&many.join("&"))).is_err());
    assert!(none(Some("")).is_ok() && none(None).is_ok());
}

/// `errors` point into a body; a query's problems are told once, in `detail`.
#[test]
fn what_is_wrong_with_a_query_is_told_once_and_as_of_the_query() {
    let problem = list(Some("limit=0&colour=red&colour=blue&since=now"), Tenants::All, true).expect_err("refused");
    let told: serde_json::Value = serde_json::from_slice(&problem.body()).expect("JSON");
    assert_eq!(told.get("errors"), None, "{told}");
    let detail = told["detail"].as_str().expect("text");
    for (part, times) in [
        ("the parameter limit must be a number", 1),
        ("the parameter colour is not one that this call takes", 1),
        ("the parameter colour stands here a second time (keep one of the two)", 1),
        ("the parameter since must be an instant", 1),
        ("body", 0),
    ] {
        assert_eq!(detail.matches(part).count(), times, "{part}: {detail}");
    }
}

#[test]
fn a_page_has_a_default_size() {
    assert_eq!(page(None).ok(), Some(PageQuery { limit: limits::PAGE_ITEMS_DEFAULT, cursor: None }));
    let asked = page(Some("limit=7&cursor=abc")).ok();
    assert_eq!(asked, Some(PageQuery { limit: 7, cursor: Some("abc".to_owned()) }));
}
