use http::{HeaderName, HeaderValue};

use super::*;
use crate::outcome::words::ExchangeCause;
use crate::outcome::{Failure, Outcome, Timings};
use crate::policy::CheckedUrl;
use crate::record::State;
use crate::send::{Context, HttpRequest, Method, Target, To};

fn key() -> RedactKey {
    RedactKey::new(b"a key for tests")
}

fn tenant() -> TenantId {
    TenantId::new("acme")
}

fn redactor(headers: &[&str], pointers: &[&str]) -> Redactor {
    let owned = |list: &[&str]| list.iter().map(|one| (*one).to_owned()).collect();
    Redactor::new(key(), &Redact { headers: owned(headers), json_pointers: owned(pointers) })
}

fn lines(lines: &[(&'static str, &str)]) -> HeaderLines {
    let line = |&(name, value): &(&'static str, &str)| {
        (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a test's own value"))
    };
    lines.iter().map(line).collect()
}

fn spec(headers: HeaderLines, body: Option<&'static [u8]>) -> SendSpec {
    SendSpec {
        to: To::Http(HttpRequest {
            method: Method::Post,
            target: Target::Url(CheckedUrl::parse("https://example.com/").expect("a plain URL")),
            headers,
            spelling: crate::send::Spelling::default(),
            dropped_headers: vec!["host".to_owned()],
            body: body.map(Bytes::from_static),
        }),
        context: Context::default(),
        expires_in: None,
    }
}

#[test]
fn a_secret_header_is_one_with_underscores_too() {
    let redactor = redactor(&["x_own-secret"], &[]);
    for name in ["x-api-key", "x_api_key", "x-api_key", "set_cookie", "x-own-secret", "x_own_secret"] {
        assert!(redactor.is_secret_header(name), "{name}");
    }
    assert!(!redactor.is_secret_header("x_trace"));
}

#[test]
fn equal_secrets_of_a_tenant_look_equal_and_others_differ() {
    let hidden = |key: &[u8], tenant: &str, secret: &[u8]| RedactKey::new(key).of(&TenantId::new(tenant)).hide(secret);
    let shown = hidden(b"key", "acme", b"one");
    assert!(shown.starts_with(REDACTED_PREFIX) && shown.len() == REDACTED_PREFIX.len() + 9, "{shown}");
    assert_eq!(shown, hidden(b"key", "acme", b"one"));
    for (key, tenant, secret) in [
        ("key", "acme", "two"),
        ("another", "acme", "one"),
        ("key", "other", "one"),
        ("key", "acmeo", "ne"),
        ("key", "acm", "eone"),
    ] {
        assert_ne!(shown, hidden(key.as_bytes(), tenant, secret.as_bytes()), "{key} {tenant} {secret}");
    }
}

#[test]
fn named_members_are_hidden_and_every_other_byte_stays() {
    let hide = |secret: &[u8]| format!("<{}>", String::from_utf8_lossy(secret));
    for (pointers, body, shown) in [
        (&["/a"][..], r#"{"a":1}"#, Some(r#"{"a":"<1>"}"#)),
        (&["/a"], r#"{ "b" : 1 , "a" : "x" }"#, Some(r#"{ "b" : 1 , "a" : "<"x">" }"#)),
        (&["/a"], r#"{"b":{"a":1}}"#, None),
        (&["/b/a"], r#"{"b":{"a":1,"c":2},"a":3}"#, Some(r#"{"b":{"a":"<1>","c":2},"a":3}"#)),
        (&["/a"], r#"{"a":1,"a":2}"#, Some(r#"{"a":"<1>","a":"<2>"}"#)),
        (&["/a"], r#"{"\u0061":1}"#, Some(r#"{"\u0061":"<1>"}"#)),
        // Names with escapes that JSON does not have may be any to a lenient reader.
        (&["/a"], r#"{"\a":1,"b":2}"#, Some(r#"{"\a":"<1>","b":2}"#)),
        (&["/a/b"], r#"{"\x":{"b":1,"c":2}}"#, Some(r#"{"\x":{"b":"<1>","c":2}}"#)),
        (&["/a"], r#"{"\ud800":1}"#, Some(r#"{"\ud800":"<1>"}"#)),
        (&["/a/b"], r#"{"c":{"\a":1}}"#, None),
        (&["/a"], r#"{"a":{"deep":[1,{"x":"}"}]},"b":2}"#, Some(r#"{"a":"<{"deep":[1,{"x":"}"}]}>","b":2}"#)),
        (&["/0/t"], r#"[{"t":1},{"t":2}]"#, Some(r#"[{"t":"<1>"},{"t":2}]"#)),
        (&["/1"], r#"["x","y","z"]"#, Some(r#"["x","<"y">","z"]"#)),
        (&["/01"], r#"["x","y","z"]"#, None),
        (&["/a~1b", "/c~0d"], r#"{"a/b":1,"c~d":2}"#, Some(r#"{"a/b":"<1>","c~d":"<2>"}"#)),
        (&["/a", "/a/b"], r#"{"a":{"b":1}}"#, Some(r#"{"a":"<{"b":1}>"}"#)),
        (&["/"], r#"{"":1}"#, Some(r#"{"":"<1>"}"#)),
        (&[""], r#"{"x":1}"#, Some(r#""<{"x":1}>""#)),
        (&["/a"], "{\"a\":1}\n{\"a\":2}\n", Some("{\"a\":\"<1>\"}\n{\"a\":\"<2>\"}\n")),
        // Cut off where storing stopped: what had begun of the value is hidden too.
        (&["/a"], r#"{"b":1,"a":"secr"#, Some(r#"{"b":1,"a":"<"secr>""#)),
        (&["/a"], r#"{"b":1,"a":{"x":["#, Some(r#"{"b":1,"a":"<{"x":[>""#)),
        (&["/a"], r#"{"b":"cut of"#, None),
        (&["/a"], r#"{"b":1,"a"#, None),
        (&["/a"], r#"{"b":1,"a":"#, None),
        (&["/a"], r#"{"b":1,"#, None),
        // No longer JSON: the rest is hidden whole.
        (&["/a"], r#"{"b":1;"a":2}"#, Some(r#"{"b":1<;"a":2}>"#)),
        (&["/a"], r#"{b:1,'a':2}"#, Some(r#"{<b:1,'a':2}>"#)),
        (&["/a"], "{\"b\":\"x\ny\"}", Some("{\"b\":<\"x\ny\"}>")),
        (&["/a"], r#"{"b":1} oops"#, None),
        (&["/a"], r#"{"b":1} "oops" ?"#, Some(r#"{"b":1} "oops" <?>"#)),
        (&["/a"], "\u{feff}{\"a\":1}", Some("\u{feff}{\"a\":\"<1>\"}")),
        // Not JSON at all, and not said to be.
        (&["/a"], "a=1&b=2", None),
        (&["/a"], "", None),
        (&["/a"], r#""a""#, None),
    ] {
        let owned: Vec<String> = pointers.iter().map(|pointer| (*pointer).to_owned()).collect();
        let hidden = Pointers::new(&owned).hide(body.as_bytes(), false, hide);
        let hidden = hidden.map(|bytes| String::from_utf8(bytes).expect("UTF-8 in, UTF-8 out"));
        assert_eq!(hidden.as_deref(), shown, "{pointers:?} {body}");
    }
}

#[test]
fn a_body_that_only_claims_to_be_json_is_hidden_whole() {
    let hide = |_: &[u8]| "<hidden>".to_owned();
    let pointers = Pointers::new(&["/a".to_owned()]);
    assert_eq!(pointers.hide(b"<html>a=1</html>", true, hide).as_deref(), Some(&b"<hidden>"[..]));
    assert_eq!(pointers.hide(b"12", true, hide), None);
}

#[test]
fn deep_nesting_is_read_without_recursion() {
    let deep = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    let body = format!(r#"{{"b":{deep},"a":1,"c":{deep}}}"#);
    let hidden = Pointers::new(&["/a".to_owned()]).hide(body.as_bytes(), false, |_| "x".to_owned());
    assert_eq!(hidden.map(|bytes| bytes.len()), Some(body.len() + 2));
}

#[test]
fn a_plain_request_is_shown_as_it_is_and_needs_no_seal() {
    let spec = spec(lines(&[("accept", "*/*"), ("x-a", "1"), ("accept", "text/html")]), Some(b"{\"a\":1}"));
    let (shown, sealed) = redactor(&[], &[]).of(&tenant()).request(&spec, true);
    assert!(!sealed);
    assert_eq!(
        shown.headers,
        [
            ("accept".to_owned(), vec!["*/*".to_owned(), "text/html".to_owned()]),
            ("x-a".to_owned(), vec!["1".to_owned()])
        ]
    );
    let body = shown.body.expect("there is one");
    assert_eq!(body.bytes.as_deref(), Some(&b"{\"a\":1}"[..]));
    assert_eq!((body.total, body.truncated), (7, false));
    assert_eq!(body.sha256, Some(sha256(b"{\"a\":1}")));
}

#[test]
fn secret_headers_are_hidden_and_seal_the_send() {
    for name in SECRET_HEADERS.iter().chain(&["x-mine"]) {
        let (shown, sealed) =
            redactor(&["x-mine"], &[]).of(&tenant()).request(&spec(lines(&[(name, "s3cret")]), None), true);
        assert!(sealed, "{name}");
        assert_eq!(shown.headers, [((*name).to_owned(), vec![key().of(&tenant()).hide(b"s3cret")])]);
    }
    let (_, sealed) = redactor(&[], &[]).of(&tenant()).request(&spec(lines(&[("x-mine", "plain")]), None), true);
    assert!(!sealed);
}

#[test]
fn a_redacted_body_has_no_digest_and_seals_the_send() {
    let redactor = redactor(&[], &["/token"]);
    let (shown, sealed) = redactor.of(&tenant()).request(&spec(Vec::new(), Some(br#"{"token":"t","b":1}"#)), true);
    assert!(sealed);
    let body = shown.body.expect("there is one");
    let expected = format!(r#"{{"token":"{}","b":1}}"#, key().of(&tenant()).hide(br#""t""#));
    assert_eq!(body.bytes.as_deref(), Some(expected.as_bytes()));
    assert_eq!((body.total, body.truncated, body.sha256), (19, false, None));

    let (shown, sealed) = redactor.of(&tenant()).request(&spec(Vec::new(), Some(br#"{"b":1}"#)), true);
    assert!(!sealed);
    assert!(shown.body.is_some_and(|body| body.sha256.is_some()));
}

#[test]
fn a_tenant_that_keeps_no_bodies_has_its_size_alone() {
    let redactor = redactor(&[], &[]);
    let (shown, sealed) = redactor.of(&tenant()).request(&spec(Vec::new(), Some(b"abc")), false);
    assert!(sealed);
    assert_eq!(shown.body, Some(ShownBody { bytes: None, total: 3, truncated: true, sha256: None }));
    let (shown, sealed) = redactor.of(&tenant()).request(&spec(Vec::new(), None), false);
    assert!(!sealed);
    assert_eq!(shown.body, None);
}

#[test]
fn a_response_is_shown_with_its_secrets_hidden() {
    let raw = |body: &'static [u8]| RawResponse {
        status: 200,
        version: "HTTP/2",
        headers: lines(&[("set-cookie", "sid=1"), ("set-cookie", "b=2"), ("content-type", "application/json")]),
        body: Bytes::from_static(body),
        body_total: body.len() as u64,
        body_truncated: false,
        body_sha256: sha256(body),
        declared: None,
    };
    let shown = redactor(&[], &["/token"]).of(&tenant()).response(raw(br#"{"token":1}"#), true);
    assert_eq!(shown.version, "HTTP/2");
    assert_eq!(
        shown.headers[0],
        ("set-cookie".to_owned(), vec![key().of(&tenant()).hide(b"sid=1"), key().of(&tenant()).hide(b"b=2")])
    );
    assert_eq!(shown.body.sha256, None);
    let shown = redactor(&[], &[]).of(&tenant()).response(raw(b"{}"), true);
    assert_eq!(shown.body.sha256, Some(sha256(b"{}")));
    let shown = redactor(&[], &[]).of(&tenant()).response(raw(b"{}"), false);
    assert_eq!(shown.body, ShownBody { bytes: None, total: 2, truncated: true, sha256: None });
}

#[test]
fn a_body_cannot_have_values_hidden_without_end() {
    let most = crate::limits::HIDDEN_VALUES_MAX;
    let pointers = Pointers::new(&["/a".to_owned()]);
    for (what, count, asked) in
        [("as many as may be", most, most), ("more", most + 1, most + 1), ("many", 150_000, most + 1)]
    {
        let members = format!("{{{}\"b\":1}}", "\"a\":1,".repeat(count));
        let documents = "{\"a\":1}\n".repeat(count);
        for body in [members, documents] {
            let hidden = std::cell::Cell::new(0);
            let hide = |_: &[u8]| {
                hidden.set(hidden.get() + 1);
                "x".to_owned()
            };
            let shown = pointers.hide(body.as_bytes(), true, hide).unwrap();
            assert_eq!(hidden.get(), asked, "{what}");
            assert!(!shown.windows(5).any(|window| window == b"\"a\":1"), "{what}: nothing named is shown");
        }
    }
}

#[test]
fn what_a_receiver_sent_is_quoted_as_far_as_it_might_be_kept() {
    let body = || Said::Body("{\"token\":\"s3cret\"".to_owned());
    let head = |line: &str, after: Option<&str>| Said::Head { line: line.to_owned(), after: after.map(str::to_owned) };
    let open = redactor(&["x-own"], &[]);
    for (said, keep_bodies, shown) in [
        (body(), true, Some("{\"token\":\"s3cret\"")),
        (body(), false, None),
        (Said::Body("Set-Cookie: id=s3cret".to_owned()), true, Some("Set-Cookie<>")),
        (Said::Body("{\"x_own\": \"s3cret\"".to_owned()), true, Some("{\"x_own<>")),
        (head("nonsense", None), true, Some("nonsense")),
        (head("nonsense", None), false, Some("nonsense")),
        (head("nonsense", Some("x-trace")), false, Some("nonsense")),
        (head("set-cookie", None), true, Some("set-cookie")),
        // What a secret header holds, however the line is broken.
        (head("Set-Cookie id=s3cret", None), true, Some("Set-Cookie<>")),
        (head(" Set-Cookie: id=s3cret", None), true, Some(" Set-Cookie<>")),
        (head("x: y Set-Cookie: id=s3cret", None), true, Some("x: y Set-Cookie<>")),
        (head("X_Own s3cret", None), true, Some("X_Own<>")),
        (head("x-api-key=s3cret", None), true, Some("x-api-key<>")),
        (head("Authorization\u{fffd}s3cret", None), true, Some("Authorization<>")),
        (head("id=s3cret; path=/", Some("set-cookie")), true, Some("<>")),
        (head("id=s3cret; path=/", Some("x_own")), false, Some("<>")),
    ] {
        let what = format!("{said:?} {keep_bodies}");
        let told = open.of(&tenant()).said(said, keep_bodies);
        let plain = told.map(|told| match told.split_once(REDACTED_PREFIX) {
            Some((before, hidden)) => format!("{before}<{}>", &hidden[9..]),
            None => told,
        });
        assert_eq!(plain.as_deref(), shown, "{what}");
    }
    // A piece of a body cannot be looked into for what is to be hidden.
    let pointed = redactor(&[], &["/token"]);
    assert_eq!(pointed.of(&tenant()).said(body(), true), None);
    assert_eq!(pointed.of(&tenant()).said(head("nonsense", None), true), Some("nonsense".to_owned()));
}

/// A finished record as it is kept under this redaction.
fn kept(redactor: &Redactor, failure: Failure) -> Record {
    let raw = RawResponse {
        status: 200,
        version: "HTTP/1.1",
        headers: lines(&[("content-type", "application/json"), ("x-sess", "s3cret"), ("x_sess", "s3cret")]),
        body: Bytes::from_static(br#"{"k":"s3cret","o":1}"#),
        body_total: 20,
        body_truncated: false,
        body_sha256: [1; 32],
        declared: None,
    };
    let headers = lines(&[("content-type", "text/plain"), ("x-sess", "s3cret"), ("cookie", "always")]);
    let of = tenant();
    let of = redactor.of(&of);
    let ended = Ended { outcome: Outcome::Failed, error: Some(failure) };
    let at = jiff::Timestamp::UNIX_EPOCH;
    Record {
        id: crate::send::SendId(uuid::Uuid::nil()),
        state: State::Done,
        ended: Some(of.ended(ended, true)),
        resend_of: None,
        tenant: tenant(),
        context: Context::default(),
        index: None,
        request: of.request(&spec(headers, Some(br#"[{"k":"s3cret"},{"k":2}]"#)), true).0,
        response: Some(of.response(raw, true)),
        would_block: None,
        connection: None,
        timings: Timings::default(),
        node: "n".to_owned(),
        created_at: at,
        released_at: None,
        started_at: None,
        finished_at: None,
        batch: None,
    }
}

#[test]
fn what_was_kept_when_less_was_secret_is_seen_as_what_is_kept_now() {
    let line = |line| ExchangeCause::BadLine { status: None, line, after: None, why: "is none" }.failure("example.com");
    let body = |line| ExchangeCause::NotHttp { line }.failure("example.com");
    let head = || line("X_Sess: s3cret");
    let all = redactor(&["x-sess"], &["/k", "/0/k"]);
    for (what, before) in [
        ("nothing", redactor(&[], &[])),
        ("the header", redactor(&["x-sess"], &[])),
        ("one body", redactor(&[], &["/k"])),
        ("the other body", redactor(&[], &["/0/k"])),
        ("all", redactor(&["x-sess"], &["/k", "/0/k"])),
    ] {
        let seen = all.visible(kept(&before, head()));
        let text = format!("{:?}", *seen);
        assert!(!text.contains("s3cret"), "{what}: {text}");
        // Of what a message quotes nobody knows any more whether it was of a body.
        let told = |record: &Record| record.ended.as_ref().and_then(|ended| ended.error.clone()).expect("it failed");
        assert_eq!(told(&seen).message, head().message, "{what}");
        let mut now = kept(&all, head());
        assert_eq!((&seen.request, &seen.response), (&now.request, &now.response), "{what}");
        now.ended.clone_from(&seen.ended);
        assert_eq!(*seen, now, "{what}");
        let again = all.visible(now.clone());
        assert_eq!(*again, now, "{what}: what is hidden stays as it is");
    }
    // Without pointers what is quoted stays, but for what a secret header has.
    for (said, expected) in [
        (head(), " (what came: \"X_Sess<>\")"),
        (body("chunk s3cret"), " (what came: \"chunk s3cret\")"),
        (line("Cookie: s3cret"), " (what came: \"Cookie<>\")"),
    ] {
        let words = said.message.clone();
        let seen = redactor(&["x-sess"], &[]).visible(kept(&redactor(&[], &[]), said));
        let message = seen.ended.as_ref().and_then(|ended| ended.error.as_ref()).expect("it failed").message.clone();
        let (before, hidden) = message.split_once(REDACTED_PREFIX).map_or((&*message, ""), |(a, b)| (a, &b[9..]));
        let plain = if hidden.is_empty() { before.to_owned() } else { format!("{before}<>{hidden}") };
        assert_eq!(plain, words + expected);
    }
}

#[test]
fn a_body_hidden_twice_reads_as_one_hidden_once() {
    let hide = |secret: &[u8]| key().of(&tenant()).hide(secret);
    let some = |text: &[&str]| Pointers::new(&text.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>());
    let many = r#"{"a":1}"#.repeat(crate::limits::HIDDEN_VALUES_MAX + 10);
    for (pointers, body) in [
        (some(&["/a"]), r#"{"a":1,"b":2}"#),
        (some(&["/a"]), r#"{"a":"cut o"#),
        (some(&["/a"]), r#"{"b":1} {the rest"#),
        (some(&["/a"]), r#"{"b":1,nonsense}"#),
        (some(&["/b/7"]), r#"{"b":[1,2 nonsense"#),
        (some(&["/0/a"]), r#"[nonsense here]"#),
        (some(&["/0/a"]), r#"["a" nonsense"#),
        (some(&["/a"]), "<p>not JSON</p>"),
        (some(&[""]), r#"{"a":1}"#),
        (some(&["/a/b", "/a"]), r#"{"a":{"b":1}} {"a":2}"#),
        (some(&["/a"]), &many),
    ] {
        let once = pointers.hide(body.as_bytes(), true, hide).unwrap_or_else(|| panic!("{body:.60}"));
        let again = pointers.hide_more(&once, true, hide);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).chars().take(200).collect::<String>();
        assert_eq!(again.as_deref().map(text), None, "{body:.60}: {}", text(&once));
        // From nothing hidden it hides as much.
        assert_eq!(pointers.hide_more(body.as_bytes(), true, hide), Some(once));
    }
    // Another name beside those that are hidden.
    let once = some(&["/a"]).hide(br#"{"a":1,"b":2}"#, true, hide).expect("hidden");
    let both = some(&["/a", "/b"]);
    assert_eq!(both.hide_more(&once, true, hide), both.hide(br#"{"a":1,"b":2}"#, true, hide));
}
