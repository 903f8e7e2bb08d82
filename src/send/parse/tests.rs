use std::sync::LazyLock;

use super::*;
use crate::redact::RedactKey;
use crate::send::TenantId;

const BOUNDS: Bounds =
    Bounds { request_body: 1000, sends_per_request: 3, mail: Mail::NotSetUp, s3: None, sql: Sql::NotSetUp };

/// A send that is a request.
#[derive(Clone, Debug, PartialEq)]
struct Asked(SendSpec);

impl std::ops::Deref for Asked {
    type Target = HttpRequest;

    fn deref(&self) -> &HttpRequest {
        match &self.0.to {
            To::Http(request) => request,
            To::Email(_) | To::Event(_) => panic!("no request"),
        }
    }
}

fn hide() -> Hide<'static> {
    static KEY: LazyLock<(RedactKey, TenantId)> =
        LazyLock::new(|| (RedactKey::new(b"a key for tests"), TenantId::new("acme")));
    KEY.0.of(&KEY.1)
}

fn read(raw: &str) -> Result<Call, Vec<ShapeProblem>> {
    call(&Bytes::copy_from_slice(raw.as_bytes()), &BOUNDS, hide(), None)
}

/// One POST to https://example.com/ with these members beside method and url.
fn send(members: &str) -> Result<Asked, Vec<ShapeProblem>> {
    one(&format!(r#"{{"method":"POST","url":"https://example.com/"{}{members}}}"#, comma(members)))
}

fn comma(members: &str) -> &'static str {
    if members.is_empty() { "" } else { "," }
}

fn one(raw: &str) -> Result<Asked, Vec<ShapeProblem>> {
    read(raw).map(|call| match call {
        Call::One(send) => Asked(*send),
        Call::Many(_) => panic!("one send was read as several: {raw}"),
    })
}

/// The places of the problems, in order.
fn pointers(problems: &[ShapeProblem]) -> Vec<&str> {
    problems.iter().map(|problem| problem.pointer.as_str()).collect()
}

#[track_caller]
fn refused(result: Result<Asked, Vec<ShapeProblem>>, places: &[&str]) -> Vec<ShapeProblem> {
    let problems = result.expect_err("should have been refused");
    assert_eq!(pointers(&problems), places, "{problems:?}");
    problems
}

#[track_caller]
fn header<'a>(send: &'a Asked, name: &str) -> Vec<&'a str> {
    let values = send.headers.iter().filter(|(known, _)| known == name);
    values.map(|(_, value)| value.to_str().expect("visible ASCII")).collect()
}

#[test]
fn the_smallest_send_has_a_method_and_a_url() {
    let send = send("").expect("valid");
    assert_eq!(send.method, Method::Post);
    assert_eq!(send.target.shown(), "https://example.com/");
    assert_eq!(send.body, None);
    assert!(send.headers.is_empty() && send.dropped_headers.is_empty());
    assert_eq!(send.0.context, Context::default());
    assert_eq!(send.0.expires_in, None);
}

#[test]
fn a_null_optional_field_counts_as_absent() {
    let with_nulls = send(
        r#""data":null,"data_base64":null,"headers":null,"params":null,"auth":null,"context":null,"expires_in":null"#,
    );
    assert_eq!(with_nulls, send(""));
    let nulls_within = send(r#""context":{"workflow":null,"execution":null,"step":null}"#);
    assert_eq!(nulls_within, send(""));
    // A required one that is null is missing.
    refused(one(r#"{"method":null,"url":null}"#), &["/method", "/url"]);
}

#[test]
fn what_is_not_a_call_says_so() {
    for raw in ["", " ", "{", "[", "nope", "{\"method\":}", "{\"a\":1,}", "1 2", "{} {}", "\u{feff}{}", "{'a':1}"] {
        let problems = read(raw).expect_err(raw);
        assert_eq!(pointers(&problems), [""], "{raw}");
        assert!(problems[0].detail.starts_with("the body is not JSON"), "{raw}: {}", problems[0].detail);
    }
    for (raw, is) in [("null", "null"), ("1", "a number"), ("true", "a boolean"), ("\"x\"", "a string")] {
        let problems = read(raw).expect_err(raw);
        assert!(problems[0].detail.starts_with(&format!("the body is {is};")), "{raw}: {}", problems[0].detail);
    }
    let not_utf8 = Bytes::from_static(b"{\"method\":\"\xff\"}");
    let problems = call(&not_utf8, &BOUNDS, hide(), None).expect_err("not UTF-8");
    assert_eq!(problems[0].detail, "the body is not JSON: byte 11 is not UTF-8, as JSON has to be");
}

#[test]
fn an_array_keeps_its_order_and_its_bounds() {
    let item = |n: usize| format!(r#"{{"method":"GET","url":"https://example.com/{n}"}}"#);
    let Ok(Call::Many(sends)) = read(&format!("[{},{}]", item(1), item(2))) else { panic!("two sends") };
    assert_eq!(
        sends.into_iter().map(|send| Asked(send).target.shown().to_owned()).collect::<Vec<_>>(),
        ["https://example.com/1", "https://example.com/2"]
    );
    assert_eq!(pointers(&read("[]").expect_err("empty")), [""]);
    let four = format!("[{},{},{},{}]", item(1), item(2), item(3), item(4));
    let problems = read(&four).expect_err("one too many");
    assert_eq!(problems[0].fault, Fault::TooLarge);
    for raw in ["[1]", "[null]", "[[]]", "[\"x\"]"] {
        assert_eq!(pointers(&read(raw).expect_err(raw)), ["/0"], "{raw}");
    }
}

#[test]
fn every_problem_of_a_call_is_named_at_once() {
    let problems = read(
        r#"[{"method":"post","url":1,"body":{}},
            {"url":"https://example.com/","headers":{"a b":"x","c":true,"d":["ok",1]},"params":{"p":{"q":1}}},
            {"method":"GET","url":"https://example.com/","auth":{"username":"u"},"context":{"tenant":"t"},"expires_in":0}]"#,
    )
    .expect_err("many problems");
    assert_eq!(
        pointers(&problems),
        [
            "/0/body",
            "/0/method",
            "/0/url",
            "/1/method",
            "/1/headers/a b",
            "/1/headers/c",
            "/1/headers/d/1",
            "/1/params/p",
            "/2/auth/password",
            "/2/context/tenant",
            "/2/expires_in",
        ]
    );
    assert!(problems.iter().all(|problem| problem.fault == Fault::Shape));
}

#[test]
fn the_list_of_problems_is_bounded() {
    let keys = (0..limits::PROBLEMS_MAX + 5).map(|n| format!(r#""k{n}":1"#)).collect::<Vec<_>>().join(",");
    let problems = send(&keys).expect_err("unknown keys");
    assert_eq!(problems.len(), limits::PROBLEMS_MAX + 1);
    assert_eq!(problems.last().map(|last| last.detail.as_str()), Some("5 more problems are not listed"));
    let long = send(&format!(r#""{}":1"#, "k".repeat(5000))).expect_err("an unknown key");
    assert!(long[0].pointer.len() <= limits::ECHO_CHARS_MAX + 1);
}

#[test]
fn what_is_read_of_an_object_or_an_array_is_bounded() {
    let bounds = Bounds { request_body: 10_000_000, ..BOUNDS };
    let members = |count: usize| vec![r#""":0"#; count].join(",");
    let elements = |count: usize| vec!["0"; count].join(",");
    let many = limits::MEMBERS_MAX + 1;
    let form = r#""headers":{"content-type":"application/x-www-form-urlencoded"},"data""#;
    for (call, pointer) in [
        (format!("{{{}}}", members(many)), ""),
        (format!("[{}]", elements(many)), ""),
        (format!("[{}]", elements(10 * many)), ""),
        (send_with(&format!(r#""headers":{{{}}}"#, members(many))), "/headers"),
        (send_with(&format!(r#""headers":{{"a":[{}]}}"#, elements(many))), "/headers/a"),
        (send_with(&format!(r#""params":{{{}}}"#, members(many))), "/params"),
        (send_with(&format!(r#""params":{{"a":[{}]}}"#, elements(many))), "/params/a"),
        (send_with(&format!(r#""auth":{{{}}}"#, members(many))), "/auth"),
        (send_with(&format!(r#""context":{{{}}}"#, members(many))), "/context"),
        (send_with(&format!("{form}:{{{}}}", members(many))), "/data"),
    ] {
        let read = super::call(&Bytes::from(call), &bounds, hide(), None);
        let problems = read.expect_err("too many");
        assert_eq!(pointers(&problems), [pointer], "{problems:?}");
        assert!(problems[0].fault == Fault::TooLarge && problems[0].detail.contains("100000"), "{problems:?}");
    }
    // What nobody looks into has no such bound.
    let data = send_with(&format!(r#""data":[{}]"#, elements(many)));
    assert!(super::call(&Bytes::from(data), &bounds, hide(), None).is_ok());
}

fn send_with(members: &str) -> String {
    format!(r#"{{"method":"POST","url":"https://example.com/",{members}}}"#)
}

#[test]
fn pointers_are_escaped() {
    refused(send(r#""a/b~c":1"#), &["/a~1b~0c"]);
}

#[test]
fn unknown_keys_are_refused_with_what_was_meant() {
    for (key, hint) in [
        ("body", Some("write data")),
        ("json", Some("write data")),
        ("payload", Some("write data")),
        ("Data", Some("write data, in lower case")),
        ("query", Some("write params")),
        ("queryParams", Some("write params")),
        ("qs", Some("write params")),
        ("Params", Some("write params")),
        ("uri", Some("write url")),
        ("endpoint", Some("write url")),
        ("URL", Some("write url")),
        ("baseURL", Some("write the whole address as url")),
        ("Method", Some("write method")),
        ("verb", Some("write method")),
        ("header", Some("write headers")),
        ("Content-Type", Some("write headers: {\"Content-Type\": …}")),
        ("username", Some("write auth: {\"username\": …, \"password\": …}")),
        ("expiresIn", Some("write expires_in, in whole seconds")),
        ("ttl", Some("write expires_in, in whole seconds")),
        ("timeout", Some("leave it out: every delivery has the same deadline")),
        ("retries", Some("leave it out: a send is made once and never retried")),
        ("maxRedirects", Some("leave it out: a redirect is an answer and is never followed")),
        ("proxy", Some("leave it out: sends leave from the published addresses")),
        ("responseType", Some("leave it out: the response is recorded as it came")),
        ("dataBase64", Some("write data_base64")),
        ("tenant", Some("the tenant is named by the header Egressd-Tenant, or by the token")),
        ("workflow", Some("write context: {\"workflow\": …, \"execution\": …, \"step\": …}")),
        ("ur", Some("did you mean url?")),
        ("metod", Some("did you mean method?")),
        ("Heders", Some("did you mean headers?")),
        ("dta", Some("did you mean data?")),
        ("contxt", Some("did you mean context?")),
        ("frobnicate", None),
        ("", None),
    ] {
        let problems = send(&format!(r#""{key}":1"#)).expect_err(key);
        assert_eq!(problems.len(), 1, "{key}");
        assert_eq!(problems[0].hint.as_deref(), hint, "{key}");
        // Also where its value is null: the key is what is unknown.
        assert!(send(&format!(r#""{key}":null"#)).is_err(), "{key}");
    }
}

#[test]
fn a_key_may_stand_once() {
    refused(one(r#"{"method":"GET","method":"POST","url":"https://example.com/"}"#), &["/method"]);
    refused(one(r#"{"method":"GET","url":"https://a.example.com/","\u0075rl":"https://b.example.com/"}"#), &["/url"]);
    refused(send(r#""data":null,"data":{}"#), &["/data"]);
    refused(send(r#""headers":{"a":"1","a":"2"}"#), &["/headers/a"]);
    refused(send(r#""params":{"a":1,"a":2}"#), &["/params/a"]);
    refused(send(r#""auth":{"username":"a","username":"b","password":"c"}"#), &["/auth/username"]);
    refused(send(r#""context":{"step":"a","step":"b"}"#), &["/context/step"]);
}

#[test]
fn methods_are_upper_case_and_of_the_list() {
    for &method in Method::ALL {
        let send = one(&format!(r#"{{"method":"{method}","url":"https://example.com/"}}"#)).expect("known");
        assert_eq!(send.method, method);
    }
    for (method, detail, hint) in [
        ("\"post\"", "methods are written in upper case", Some("write POST")),
        ("\"Get\"", "methods are written in upper case", Some("write GET")),
        ("\" GET \"", "methods are written in upper case", Some("write GET")),
        ("\"CONNECT\"", "CONNECT is refused: it would make a tunnel past the policy", None),
        ("\"connect\"", "CONNECT is refused: it would make a tunnel past the policy", None),
        ("\"TRACE\"", "TRACE is refused: its answer repeats the request with its secrets", None),
        ("\"FETCH\"", "is not one of GET HEAD POST PUT PATCH DELETE OPTIONS", None),
        ("\"\"", "is not one of GET HEAD POST PUT PATCH DELETE OPTIONS", None),
        ("\"GET\\n\"", "methods are written in upper case", Some("write GET")),
        ("1", "is a number; it must be a string", None),
        ("{}", "is an object; it must be a string", None),
        ("\"\\ud800\"", "holds half of a surrogate pair, which is no character", Some("send bytes with data_base64")),
    ] {
        let problems = one(&format!(r#"{{"method":{method},"url":"https://example.com/"}}"#)).expect_err(method);
        assert_eq!(problems.len(), 1, "{method}: {problems:?}");
        assert_eq!((problems[0].detail.as_str(), problems[0].hint.as_deref()), (detail, hint), "{method}");
        assert_eq!(problems[0].pointer, "/method");
    }
}

#[test]
fn where_a_url_points_is_never_a_problem_of_shape() {
    for url in
        ["", "example.com", "ftp://example.com/", "http://a b/", "https://u:p@example.com/", "http:///x", "\\u0000"]
    {
        let send = one(&format!(r#"{{"method":"GET","url":"{url}"}}"#)).expect(url);
        let Target::Refused { denial, .. } = &send.target else { panic!("{url} should be refused by the policy") };
        assert_eq!(denial.code, crate::outcome::Code::PolicyUrl, "{url}");
    }
    for url in ["1", "null", "{}", "[]", "true"] {
        refused(one(&format!(r#"{{"method":"GET","url":{url}}}"#)), &["/url"]);
    }
}

#[test]
fn userinfo_of_a_refused_url_is_hidden() {
    let send = one(r#"{"method":"GET","url":"https://user:s3cret@example.com/x"}"#).expect("accepted");
    assert!(!send.target.shown().contains("s3cret"), "{}", send.target.shown());
    assert!(send.target.shown().contains("[redacted hmac:"), "{}", send.target.shown());
    let long = format!("https://{}:s3cret@example.com/", "u".repeat(limits::URL_BYTES_MAX));
    let send = one(&format!(r#"{{"method":"GET","url":"{long}"}}"#)).expect("accepted");
    assert!(!send.target.shown().contains("s3cret") && send.target.shown().len() <= limits::URL_BYTES_MAX);
}

#[test]
fn data_goes_out_as_it_stands_in_the_call() {
    for (data, body, content_type) in [
        (r#"{"b":1,"a":2}"#, r#"{"b":1,"a":2}"#, "application/json"),
        (
            r#"{ "a" :  [1, 2.50, 1e400] , "a":"\u0041" }"#,
            r#"{ "a" :  [1, 2.50, 1e400] , "a":"\u0041" }"#,
            "application/json",
        ),
        ("{}", "{}", "application/json"),
        ("[]", "[]", "application/json"),
        ("[1, 2]", "[1, 2]", "application/json"),
        ("0", "0", "application/json"),
        ("-1.50E+3", "-1.50E+3", "application/json"),
        ("12345678901234567890123", "12345678901234567890123", "application/json"),
        ("true", "true", "application/json"),
        ("false", "false", "application/json"),
        (r#""plain""#, "plain", "text/plain; charset=utf-8"),
        (r#""a\n\"b\" \u00e9\ud83d\ude00""#, "a\n\"b\" é😀", "text/plain; charset=utf-8"),
        (r#""""#, "", "text/plain; charset=utf-8"),
        (r#""{\"a\":1}""#, r#"{"a":1}"#, "text/plain; charset=utf-8"),
    ] {
        let send = send(&format!(r#""data": {data} "#)).expect(data);
        assert_eq!(send.body.as_deref(), Some(body.as_bytes()), "{data}");
        assert_eq!(header(&send, "content-type"), [content_type], "{data}");
    }
    refused(send(r#""data":"\ud800""#), &["/data"]);
}

#[test]
fn a_content_type_given_is_kept() {
    for (data, name) in [(r#"{"a":1}"#, "Content-Type"), (r#""text""#, "content-type"), ("1", "CONTENT-TYPE")] {
        let send = send(&format!(r#""data":{data},"headers":{{"{name}":"application/x-mine"}}"#)).expect(data);
        assert_eq!(header(&send, "content-type"), ["application/x-mine"], "{data}");
    }
    // Without a body none is added, and one that is given stays.
    let send = send(r#""headers":{"content-type":"text/csv"}"#).expect("valid");
    assert_eq!((send.body.as_ref(), header(&send, "content-type")), (None, vec!["text/csv"]));
}

#[test]
fn a_flat_object_becomes_a_form_where_the_type_says_so() {
    let form = |content_type: &str, data: &str| {
        send(&format!(r#""data":{data},"headers":{{"Content-Type":"{content_type}"}}"#))
    };
    for (data, body) in [
        (r#"{"a":"1","b":"two words"}"#, "a=1&b=two+words"),
        (r#"{"a":1.50,"b":true,"c":null,"d":""}"#, "a=1.50&b=true&d="),
        (r#"{"é&=":"+%"}"#, "%C3%A9%26%3D=%2B%25"),
        ("{}", ""),
        (r#""a=1&already""#, "a=1&already"),
    ] {
        for content_type in ["application/x-www-form-urlencoded", "Application/X-WWW-Form-URLEncoded; charset=utf-8"] {
            let send = form(content_type, data).expect(data);
            assert_eq!(send.body.as_deref(), Some(body.as_bytes()), "{data}");
            assert_eq!(header(&send, "content-type"), [content_type], "{data}");
        }
    }
    for (data, places) in [
        (r#"{"a":{"b":1}}"#, &["/data/a"][..]),
        (r#"{"a":[1],"b":{},"c":1}"#, &["/data/a", "/data/b"]),
        (r#"{"a":1,"a":2}"#, &["/data/a"]),
        ("[1]", &["/data"]),
        (r#"{"a":"\udc00"}"#, &["/data/a"]),
    ] {
        refused(form("application/x-www-form-urlencoded", data), places);
    }
    // Another type that only resembles it is JSON.
    let send = form("application/x-www-form-urlencoded-not", r#"{"a":{"b":1}}"#).expect("JSON");
    assert_eq!(send.body.as_deref(), Some(&br#"{"a":{"b":1}}"#[..]));
}

#[test]
fn bytes_come_in_base64() {
    for (encoded, bytes) in
        [("", &b""[..]), ("AA==", &[0]), ("AA", &[0]), ("/+8=", &[0xff, 0xef]), ("aGVsbG8=", b"hello")]
    {
        let send = send(&format!(r#""data_base64":"{encoded}""#)).expect(encoded);
        assert_eq!(send.body.as_deref(), Some(bytes), "{encoded}");
        assert_eq!(header(&send, "content-type"), ["application/octet-stream"]);
    }
    for (encoded, hint) in [
        ("\"_-8=\"", Some("this looks like the URL-safe alphabet: use + and /")),
        ("\"a\"", Some("use the standard alphabet (RFC 4648 section 4), without line breaks")),
        ("\"a GVs\"", Some("use the standard alphabet (RFC 4648 section 4), without line breaks")),
        ("\"data:image/png;base64,AA==\"", Some("leave out everything up to and including the comma of the data: URL")),
        ("1", None),
        ("{}", None),
    ] {
        let problems = refused(send(&format!(r#""data_base64":{encoded}"#)), &["/data_base64"]);
        assert_eq!(problems[0].hint.as_deref(), hint, "{encoded}");
    }
    refused(send(r#""data":1,"data_base64":"AA==""#), &["/data_base64"]);
    assert!(send(r#""data":null,"data_base64":"AA==""#).is_ok());
}

#[test]
fn a_head_request_has_no_body() {
    let head =
        |members: &str| one(&format!(r#"{{"method":"HEAD","url":"https://example.com/"{}{members}}}"#, comma(members)));
    assert!(head("").is_ok());
    assert!(head(r#""data":null"#).is_ok());
    refused(head(r#""data":{}"#), &["/data"]);
    refused(head(r#""data":"""#), &["/data"]);
    refused(head(r#""data_base64":"""#), &["/data_base64"]);
    // Every other method may have one.
    for method in ["GET", "DELETE", "OPTIONS", "PATCH", "PUT"] {
        let send = one(&format!(r#"{{"method":"{method}","url":"https://example.com/","data":{{"a":1}}}}"#));
        assert!(send.is_ok_and(|send| send.body.is_some()), "{method}");
    }
}

#[test]
fn a_body_over_the_limit_is_too_large_and_not_a_matter_of_shape() {
    let send_of = |bytes: usize| send(&format!(r#""data":"{}""#, "x".repeat(bytes)));
    assert!(send_of(1000).is_ok());
    let problems = refused(send_of(1001), &["/data"]);
    assert_eq!(problems[0].fault, Fault::TooLarge);
    assert_eq!(problems[0].detail, "makes a body of 1001 bytes, one send may have 1000");
    // What counts is the body that goes out.
    let escaped = send(&format!(r#""data":"{}""#, "\\u0041".repeat(1000)));
    assert!(escaped.is_ok());
    let problems = refused(send(&format!(r#""data_base64":"{}""#, "AAAA".repeat(334))), &["/data_base64"]);
    assert_eq!(problems[0].fault, Fault::TooLarge);
}

#[test]
fn a_body_shares_the_calls_memory_only_where_it_is_most_of_it() {
    let large =
        Bytes::from(format!(r#"{{"method":"POST","url":"https://example.com/","data":"{}"}}"#, "x".repeat(900)));
    let Ok(Call::One(send)) = call(&large, &BOUNDS, hide(), None) else { panic!("valid") };
    let body = send.body().expect("there is one");
    let within = |part: &Bytes, whole: &Bytes| whole.as_ptr_range().contains(&part.as_ptr());
    assert!(within(body, &large));
    let small = Bytes::from(format!(
        r#"[{{"method":"POST","url":"https://example.com/","data":"x"}},{{"method":"POST","url":"https://example.com/","data":"{}"}}]"#,
        "y".repeat(900)
    ));
    let Ok(Call::Many(sends)) = call(&small, &BOUNDS, hide(), None) else { panic!("valid") };
    assert!(!within(sends[0].body().expect("there is one"), &small));
    assert!(within(sends[1].body().expect("there is one"), &small));
}

#[test]
fn headers_are_strings_numbers_or_arrays_of_strings() {
    let send_with = |headers: &str| send(&format!(r#""headers":{headers}"#));
    let send = send_with(r#"{"X-A":"one","X-Num":1.50,"X-Many":["a","b"],"X-None":[],"x-empty":"","X-Pad":"  a b "}"#)
        .expect("valid");
    assert_eq!(header(&send, "x-a"), ["one"]);
    assert_eq!(header(&send, "x-num"), ["1.50"]);
    assert_eq!(header(&send, "x-many"), ["a", "b"]);
    assert_eq!(header(&send, "x-none"), [""; 0]);
    assert_eq!(header(&send, "x-empty"), [""]);
    assert_eq!(header(&send, "x-pad"), ["a b"]);

    for (headers, places) in [
        ("[]", &["/headers"][..]),
        ("\"x\"", &["/headers"]),
        ("1", &["/headers"]),
        (r#"{"a":null}"#, &["/headers/a"]),
        (r#"{"a":true}"#, &["/headers/a"]),
        (r#"{"a":{}}"#, &["/headers/a"]),
        (r#"{"a":[1]}"#, &["/headers/a/0"]),
        (r#"{"a":["x",null,["y"]]}"#, &["/headers/a/1", "/headers/a/2"]),
        (r#"{"":"x"}"#, &["/headers/"]),
        (r#"{"a b":"x"}"#, &["/headers/a b"]),
        (r#"{"a:":"x"}"#, &["/headers/a:"]),
        (r#"{":authority":"x"}"#, &["/headers/:authority"]),
        (r#"{"é":"x"}"#, &["/headers/é"]),
        (r#"{"a\nb":"x"}"#, &["/headers/a\nb"]),
    ] {
        refused(send_with(headers), places);
    }
}

#[test]
fn of_two_spellings_of_one_name_the_last_is_the_header_and_the_record_says_so() {
    for (headers, name, values, written, dropped) in [
        (
            r#"{"Content-Type":"application/json","content-type":"text/plain"}"#,
            "content-type",
            &["text/plain"][..],
            "content-type",
            &["content-type"][..],
        ),
        (
            r#"{"content-type":"text/plain","Content-Type":"application/json"}"#,
            "content-type",
            &["application/json"],
            "Content-Type",
            &["content-type"],
        ),
        (r#"{"X-A":["1","2"],"b":"","x-A":["3","4"],"X-a":"5"}"#, "x-a", &["5"], "X-a", &["x-a"]),
        (r#"{"X-A":"1","x-a":[]}"#, "x-a", &[], "x-a", &["x-a"]),
        (r#"{"AUTHORIZATION":"a","authorization":"b"}"#, "authorization", &["b"], "authorization", &["authorization"]),
        (r#"{"Host":"a","host":"b"}"#, "host", &[], "host", &["host"]),
        // What any of them names goes with it.
        (r#"{"Connection":"x-a","connection":"close","X-A":"1"}"#, "x-a", &[], "X-A", &["connection", "x-a"]),
        (r#"{"SOAPAction":"x"}"#, "soapaction", &["x"], "SOAPAction", &[]),
        (r#"{"X-Plain":"x"}"#, "x-plain", &["x"], "X-Plain", &[]),
    ] {
        let send = send(&format!(r#""headers":{headers}"#)).expect(headers);
        assert_eq!(header(&send, name), values, "{headers}");
        assert_eq!(send.spelling.of(&name.parse().expect("a name")), written, "{headers}");
        assert_eq!(send.dropped_headers, dropped, "{headers}");
    }
    // Ours, where the author gave none.
    let send = send(r#""data":{},"auth":{"username":"u","password":"p"}"#).expect("valid");
    let ours = send.headers.iter().map(|(name, _)| send.spelling.of(name).into_owned());
    assert_eq!(ours.collect::<Vec<_>>(), ["Authorization", "Content-Type"]);
}

#[test]
fn json_is_no_part_of_a_multipart_body() {
    let with = |content_type: &str, data: &str| {
        send(&format!(r#""data":{data},"headers":{{"Content-Type":"{content_type}"}}"#))
    };
    for content_type in ["multipart/form-data", "Multipart/Form-Data; boundary=x", " multipart/mixed"] {
        for data in ["{}", r#"{"a":1}"#, "[1]"] {
            let problems = with(content_type, data).expect_err(content_type);
            assert!(
                problems[0].hint.as_deref().is_some_and(|hint| hint.contains("x-www-form-urlencoded")),
                "{problems:?}"
            );
            refused(with(content_type, data), &["/data"]);
        }
        assert!(with(content_type, r#""--x\r\n""#).is_ok());
    }
    assert!(with("application/json", "{}").is_ok());
}

#[test]
fn header_values_are_visible_ascii() {
    let value = |text: &str| send(&format!(r#""headers":{{"x-a":"{text}"}}"#));
    for escape in [
        "\\r",
        "\\n",
        "\\u0000",
        "\\t",
        "a\\r\\nb: c",
        "\\u0001",
        "\\u001f",
        "\\u007f",
        "\\u0080",
        "\\u00a0",
        "é",
        "\\u2028",
        "😀",
        "a\\u0000b",
        " \\n",
        "\\u000b",
    ] {
        refused(value(escape), &["/headers/x-a"]);
        // A header that would be dropped anyway is no way around.
        refused(send(&format!(r#""headers":{{"host":"{escape}"}}"#)), &["/headers/host"]);
        refused(send(&format!(r#""headers":{{"x-a":["fine","{escape}"]}}"#)), &["/headers/x-a/1"]);
    }
    for fine in ["", " ", "a b", "!#$%&'()*+,-./:;<=>?@[]^_`{|}~", "\\\"quoted\\\"", "a\\\\b"] {
        assert!(value(fine).is_ok(), "{fine}");
    }
}

#[test]
fn headers_are_bounded_in_number_and_bytes() {
    let many = |count: usize| (0..count).map(|n| format!(r#""h{n}":"v""#)).collect::<Vec<_>>().join(",");
    assert!(send(&format!(r#""headers":{{{}}}"#, many(limits::REQUEST_HEADERS_MAX))).is_ok());
    refused(send(&format!(r#""headers":{{{}}}"#, many(limits::REQUEST_HEADERS_MAX + 1))), &["/headers"]);
    let none = |count: usize| (0..count).map(|n| format!(r#""h{n}":[]"#)).collect::<Vec<_>>().join(",");
    assert!(send(&format!(r#""headers":{{{}}}"#, none(limits::REQUEST_HEADERS_MAX))).is_ok());
    refused(send(&format!(r#""headers":{{{}}}"#, none(20_000))), &["/headers"]);
    let lines = |count: usize| vec![r#""v""#; count].join(",");
    assert!(send(&format!(r#""headers":{{"h":[{}]}}"#, lines(limits::REQUEST_HEADERS_MAX))).is_ok());
    refused(send(&format!(r#""headers":{{"h":[{}]}}"#, lines(limits::REQUEST_HEADERS_MAX + 1))), &["/headers"]);
    let bytes = |count: usize| "v".repeat(count - 1);
    assert!(send(&format!(r#""headers":{{"h":"{}"}}"#, bytes(limits::REQUEST_HEADER_BYTES_MAX))).is_ok());
    refused(send(&format!(r#""headers":{{"h":"{}"}}"#, bytes(limits::REQUEST_HEADER_BYTES_MAX + 1))), &["/headers"]);
}

#[test]
fn what_never_leaves_is_dropped_and_named() {
    for name in [
        "Host",
        "Content-Length",
        "Transfer-Encoding",
        "TE",
        "Trailer",
        "Connection",
        "Keep-Alive",
        "Upgrade",
        "HTTP2-Settings",
        "Expect",
        "Proxy-Authorization",
        "Proxy-Connection",
        "Proxy-Anything",
        "Via",
        "Forwarded",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Whatever",
        "X-Real-IP",
        "Metadata",
        "Metadata-Flavor",
        "X-Google-Metadata-Request",
        "X-aws-ec2-metadata-token",
        "X-aws-ec2-metadata-token-ttl-seconds",
        // The same once `_` is read as `-`.
        "Content_Length",
        "transfer_encoding",
        "X_Forwarded_For",
        "x-forwarded_for",
        "X_Real_IP",
        "proxy_x",
        "metadata_flavor",
        "keep_alive",
        "x_aws_ec2_metadata_token",
    ] {
        let send = send(&format!(r#""headers":{{"{name}":"1","X-Kept":"2"}}"#)).expect(name);
        assert_eq!(send.dropped_headers, [name.to_ascii_lowercase()], "{name}");
        assert_eq!(send.headers.len(), 1, "{name}");
        assert_eq!(header(&send, "x-kept"), ["2"]);
    }
    for name in [
        "Hostname",
        "X-Host",
        "X-Forward",
        "Authorization",
        "Cookie",
        "User-Agent",
        "Accept-Encoding",
        "Origin",
        "Referer",
        "Content-Encoding",
        "Range",
        "If-None-Match",
        "Date",
        "X-Metadata",
        "Viaduct",
        "Proxy",
        "X-Forwarded",
    ] {
        let send = send(&format!(r#""headers":{{"{name}":"1"}}"#)).expect(name);
        assert_eq!((send.headers.len(), send.dropped_headers.len()), (1, 0), "{name}");
    }
}

#[test]
fn connection_takes_with_it_what_it_names() {
    let send = send(
        r#""headers":{"X-A":"1","Connection":["close, x-a","X_B ,, keep-alive"],"x-b":"2","x_a":"3","X-C":"4","Accept":"5"}"#,
    )
    .expect("valid");
    assert_eq!(send.dropped_headers, ["x-a", "connection", "x-b", "x_a"]);
    assert_eq!(send.headers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["x-c", "accept"]);
}

#[test]
fn params_are_encoded_into_the_query() {
    let with = |url: &str, params: &str| {
        one(&format!(r#"{{"method":"GET","url":"{url}","params":{params}}}"#))
            .map(|send| send.target.shown().to_owned())
            .unwrap_or_else(|problems| format!("{problems:?}"))
    };
    for (url, params, result) in [
        ("https://example.com/", r#"{"a":"1"}"#, "https://example.com/?a=1"),
        ("https://example.com", r#"{"a":1.50,"b":true,"c":false}"#, "https://example.com/?a=1.50&b=true&c=false"),
        ("https://example.com/p", r#"{"q":"two words"}"#, "https://example.com/p?q=two%20words"),
        (
            "https://example.com/p",
            r#"{"q":"a+b&c=d#e%f/?é"}"#,
            "https://example.com/p?q=a%2Bb%26c%3Dd%23e%25f%2F%3F%C3%A9",
        ),
        ("https://example.com/p", r#"{"a b":"","~-._":"~-._"}"#, "https://example.com/p?a%20b=&~-._=~-._"),
        ("https://example.com/p", r#"{"a":["1",2,true]}"#, "https://example.com/p?a=1&a=2&a=true"),
        ("https://example.com/p", r#"{"a":null}"#, "https://example.com/p"),
        ("https://example.com/p", r#"{"a":["1",null]}"#, "https://example.com/p?a=1"),
        ("https://example.com/p?x=1", "{}", "https://example.com/p?x=1"),
        ("https://example.com/p?x=1", "null", "https://example.com/p?x=1"),
        ("https://example.com/p?x=1", r#"{"a":2}"#, "https://example.com/p?x=1&a=2"),
        ("https://example.com/p?x=1&y=2&x=3", r#"{"x":9}"#, "https://example.com/p?y=2&x=9"),
        ("https://example.com/p?x=1", r#"{"x":[]}"#, "https://example.com/p"),
        ("https://example.com/p?x=1", r#"{"x":null}"#, "https://example.com/p?x=1"),
        ("https://example.com/p?a%20b=1&a+b=2&c=3", r#"{"a b":4}"#, "https://example.com/p?c=3&a%20b=4"),
        ("https://example.com/p?%78=1", r#"{"x":2}"#, "https://example.com/p?x=2"),
        ("https://example.com/p?keep=a%2fb+c&flag&=v", r#"{"a":1}"#, "https://example.com/p?keep=a%2fb+c&flag&=v&a=1"),
        ("https://example.com/p?flag", r#"{"flag":1}"#, "https://example.com/p?flag=1"),
        ("https://example.com/p?x=1#frag", r#"{"a":2}"#, "https://example.com/p?x=1&a=2#frag"),
        // Without params the query goes out as it was parsed.
        ("https://example.com/p?a=b%20c+d&&", "null", "https://example.com/p?a=b%20c+d&&"),
    ] {
        assert_eq!(with(url, params), result, "{url} {params}");
    }
    for (params, places) in [
        ("[]", &["/params"][..]),
        ("\"a=1\"", &["/params"]),
        ("1", &["/params"]),
        (r#"{"a":{}}"#, &["/params/a"]),
        (r#"{"a":[["x"],{},1]}"#, &["/params/a/0", "/params/a/1"]),
        (r#"{"a":"\ud800"}"#, &["/params/a"]),
    ] {
        refused(send(&format!(r#""params":{params}"#)), places);
    }
    // Too long with its params: the policy says so, as it does of a URL that was too long from the start.
    let send = send(&format!(r#""params":{{"a":"{}"}}"#, "x".repeat(limits::URL_BYTES_MAX))).expect("accepted");
    assert!(matches!(send.target, Target::Refused { .. }));
}

#[test]
fn auth_becomes_http_basic_and_wins() {
    let send_basic = send(r#""auth":{"username":"user","password":"pa:ss"}"#).expect("valid");
    assert_eq!(header(&send_basic, "authorization"), ["Basic dXNlcjpwYTpzcw=="]);
    let both = send(r#""headers":{"Authorization":["Bearer a","Bearer b"]},"auth":{"username":"","password":""}"#);
    assert_eq!(header(&both.expect("valid"), "authorization"), ["Basic Og=="]);
    let named = send(r#""headers":{"Connection":"authorization"},"auth":{"username":"a","password":"é"}"#);
    assert_eq!(header(&named.expect("valid"), "authorization"), ["Basic YTrDqQ=="]);
    let null = send(r#""headers":{"Authorization":"Bearer a"},"auth":null"#);
    assert_eq!(header(&null.expect("valid"), "authorization"), ["Bearer a"]);
    for (auth, places) in [
        ("\"u:p\"", &["/auth"][..]),
        ("[]", &["/auth"]),
        ("{}", &["/auth/username", "/auth/password"]),
        (r#"{"username":"u"}"#, &["/auth/password"]),
        (r#"{"username":"u","password":null}"#, &["/auth/password"]),
        (r#"{"username":1,"password":true}"#, &["/auth/username", "/auth/password"]),
        (r#"{"username":"a:b","password":"c"}"#, &["/auth/username"]),
        (r#"{"username":"u","password":"p\n"}"#, &["/auth/password"]),
        (r#"{"username":"u\u0000","password":"\u007f"}"#, &["/auth/username", "/auth/password"]),
        (r#"{"username":"\t","password":"\u0085"}"#, &["/auth/username", "/auth/password"]),
        (r#"{"user":"u","pass":"p"}"#, &["/auth/user", "/auth/pass", "/auth/username", "/auth/password"]),
        (r#"{"username":"u","password":"p","type":"digest"}"#, &["/auth/type"]),
    ] {
        refused(send(&format!(r#""auth":{auth}"#)), places);
    }
}

#[test]
fn no_problem_repeats_a_secret() {
    let problems = send(
        r#""auth":{"username":"s3cret:x","password":7},"headers":{"authorization":"s3cret\n","cookie":["s3cret\u0000"]},
           "data_base64":"s3cret!","params":{"k":{"s3cret":1}}"#,
    )
    .expect_err("refused");
    assert_eq!(problems.len(), 6, "{problems:?}");
    assert!(!format!("{problems:?}").contains("s3cret"), "{problems:?}");
}

#[test]
fn context_says_where_a_send_came_from() {
    let send_full = send(r#""context":{"workflow":"w","execution":"e","step":"s"}"#).expect("valid");
    assert_eq!(send_full.0.context.workflow.as_deref(), Some("w"));
    assert_eq!(send_full.0.context.execution.as_ref().map(ExecutionId::as_str), Some("e"));
    assert_eq!(send_full.0.context.step.as_deref(), Some("s"));
    let longest = "é".repeat(limits::CONTEXT_CHARS_MAX);
    assert!(send(&format!(r#""context":{{"workflow":"{longest}"}}"#)).is_ok());
    for (context, places) in [
        ("[]", &["/context"][..]),
        ("\"x\"", &["/context"]),
        (r#"{"workflow":1}"#, &["/context/workflow"]),
        (r#"{"execution":{},"step":false}"#, &["/context/step", "/context/execution"]),
        (r#"{"index":0}"#, &["/context/index"]),
    ] {
        refused(send(&format!(r#""context":{context}"#)), places);
    }
    refused(send(&format!(r#""context":{{"step":"{longest}x"}}"#)), &["/context/step"]);
}

#[test]
fn the_path_names_the_execution() {
    let path = ExecutionId::new("e1");
    let held = |context: &str| {
        let raw = format!(r#"{{"method":"GET","url":"https://example.com/"{}{context}}}"#, comma(context));
        call(&Bytes::from(raw), &BOUNDS, hide(), Some(&path)).map(|call| match call {
            Call::One(send) => Asked(*send),
            Call::Many(_) => panic!("one send"),
        })
    };
    for context in [
        "",
        r#""context":null"#,
        r#""context":{}"#,
        r#""context":{"execution":"e1"}"#,
        r#""context":{"execution":null}"#,
    ] {
        let send = held(context).expect(context);
        assert_eq!(send.0.context.execution, Some(path.clone()), "{context}");
    }
    refused(held(r#""context":{"execution":"e2"}"#), &["/context/execution"]);
}

#[test]
fn expires_in_is_whole_seconds() {
    for (seconds, read) in [("1", 1), ("60", 60), ("31622400", 31_622_400)] {
        let send = send(&format!(r#""expires_in":{seconds}"#)).expect(seconds);
        assert_eq!(send.0.expires_in, Some(Duration::from_secs(read)));
    }
    for seconds in
        ["0", "-1", "1.5", "1.0", "1e3", "31622401", "99999999999999999999", "\"60\"", "\"1h\"", "true", "{}", "[]"]
    {
        refused(send(&format!(r#""expires_in":{seconds}"#)), &["/expires_in"]);
    }
}

#[test]
fn a_resend_supplies_only_what_may_be_missing() {
    let read = |raw: &str| supplied(&Bytes::copy_from_slice(raw.as_bytes()), &BOUNDS, None);
    assert_eq!(read(""), Ok(Supplied::default()));
    assert_eq!(read(" \n"), Ok(Supplied::default()));
    assert_eq!(read(" null"), Ok(Supplied::default()));
    assert_eq!(read("{}"), Ok(Supplied::default()));
    let all =
        read(r#"{"auth":{"username":"u","password":"p"},"headers":{"cookie":"c=1"},"data":{"a":1}}"#).expect("valid");
    assert_eq!(all.authorization, Some(HeaderValue::from_static("Basic dTpw")));
    assert_eq!(all.headers.len(), 1);
    assert_eq!(all.body.map(|body| body.bytes), Some(Bytes::from_static(b"{\"a\":1}")));
    for (raw, places) in [
        ("[]", &[""][..]),
        ("{", &[""]),
        (r#"{"method":"GET"}"#, &["/method"]),
        (r#"{"auth":1,"data":1,"data_base64":"AA=="}"#, &["/auth", "/data_base64"]),
    ] {
        assert_eq!(pointers(&read(raw).expect_err(raw)), places, "{raw}");
    }
    // The original's type decides what an object becomes.
    let form =
        supplied(&Bytes::from_static(br#"{"data":{"a":"b c"}}"#), &BOUNDS, Some("application/x-www-form-urlencoded"));
    assert_eq!(form.expect("valid").body.map(|body| body.bytes), Some(Bytes::from_static(b"a=b+c")));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn no_input_makes_the_parser_panic(raw in "\\PC{0,200}") {
        let _ = read(&raw);
    }

    #[test]
    fn any_json_value_of_data_keeps_its_bytes(value in "[\\[\\]{}\":,a0 \\\\.eE+-]{0,40}") {
        if let Ok(json) = serde_json::from_str::<&RawValue>(&value)
            && !matches!(ValueKind::of(json), ValueKind::String | ValueKind::Null)
        {
            let send = send(&format!(r#""data":{value}"#)).expect("JSON is taken");
            proptest::prop_assert_eq!(send.body.as_deref(), Some(json.get().as_bytes()));
        }
    }
}

/// A call of a tenant that may send mail.
fn mail(raw: &str) -> Result<Email, Vec<ShapeProblem>> {
    let bounds = Bounds { mail: Mail::Relay(relay()), ..BOUNDS };
    call(&Bytes::copy_from_slice(raw.as_bytes()), &bounds, hide(), None).map(|call| match call {
        Call::One(send) => match send.to {
            To::Email(email) => email,
            To::Http(_) | To::Event(_) => panic!("no message: {raw}"),
        },
        Call::Many(_) => panic!("several: {raw}"),
    })
}

fn relay() -> Destination {
    Destination {
        scheme: crate::policy::Scheme::Smtps,
        host: crate::policy::Host::Name("mail.example.net".into()),
        port: 465,
    }
}

#[test]
fn a_message_is_a_subject_and_a_text_or_html() {
    let letter = |subject: &str, text: Option<&str>, html: Option<&str>, include_collaborators| Letter {
        subject: subject.to_owned(),
        text: text.map(str::to_owned),
        html: html.map(str::to_owned),
        include_collaborators,
    };
    for (raw, wanted) in [
        (r#"{"subject":"S","text":"T"}"#, letter("S", Some("T"), None, false)),
        (r#"{"text":"a\nb","html":null,"include_collaborators":null}"#, letter("", Some("a\nb"), None, false)),
        (r#"{"html":"<b>","include_collaborators":true}"#, letter("", None, Some("<b>"), true)),
        (r#"{"subject":"\u00e9","text":"","html":""}"#, letter("\u{e9}", Some(""), Some(""), false)),
    ] {
        let email = mail(&format!(r#"{{"email":{raw}}}"#)).expect(raw);
        assert_eq!(email.letter(), wanted, "{raw}");
        assert_eq!(email.relay(), &relay());
    }
    let longest = "\u{e9}".repeat(limits::SUBJECT_CHARS_MAX);
    assert!(
        mail(&format!(r#"{{"email":{{"subject":"{longest}","text":""}}}}"#)).is_err(),
        "1,000 bytes, and what is around"
    );
    let subject = "x".repeat(limits::SUBJECT_CHARS_MAX);
    assert!(mail(&format!(r#"{{"email":{{"subject":"{subject}","text":""}}}}"#)).is_ok());
    let large = mail(&format!(r#"{{"email":{{"text":"{}"}}}}"#, "x".repeat(1000))).expect_err("too large");
    assert_eq!((pointers(&large), large[0].fault), (vec!["/email"], Fault::TooLarge));
}

#[test]
fn what_a_message_may_not_have_is_named() {
    for (raw, places) in [
        ("{}", &["/email"][..]),
        (r#"{"subject":"S"}"#, &["/email"]),
        (r#"{"subject":"S","text":null,"html":null}"#, &["/email"]),
        ("[]", &["/email"]),
        ("\"x\"", &["/email"]),
        (r#"{"subject":1,"text":[],"html":{}}"#, &["/email/subject", "/email/text", "/email/html"]),
        (r#"{"text":"x","include_collaborators":"yes"}"#, &["/email/include_collaborators"]),
        (r#"{"text":"x","include_collaborators":1}"#, &["/email/include_collaborators"]),
        (r#"{"text":"x","subject":"a\r\nBcc: victim@example.org"}"#, &["/email/subject"]),
        (r#"{"text":"x","subject":"a\tb"}"#, &["/email/subject"]),
        (r#"{"text":"x","subject":"a\u0085b"}"#, &["/email/subject"]),
        (r#"{"text":"a\u0000b","html":"\u0000"}"#, &["/email/text", "/email/html"]),
        (r#"{"text":"x","text":"y"}"#, &["/email/text"]),
        (r#"{"text":"x","to":"victim@example.org"}"#, &["/email/to"]),
        (
            r#"{"text":"x","From":"ceo@example.org","cc":[],"attachments":[]}"#,
            &["/email/From", "/email/cc", "/email/attachments"],
        ),
    ] {
        let problems = mail(&format!(r#"{{"email":{raw}}}"#)).expect_err(raw);
        assert_eq!(pointers(&problems), places, "{raw}: {problems:?}");
        assert!(!format!("{problems:?}").contains("victim"), "{problems:?}");
    }
    let problems = mail(r#"{"email":{"text":"x","to":"a"}}"#).expect_err("a recipient");
    assert!(problems[0].hint.as_deref().is_some_and(|hint| hint.contains("the tenant's own address")), "{problems:?}");
    let long = format!(r#"{{"email":{{"text":"x","subject":"{}"}}}}"#, "x".repeat(limits::SUBJECT_CHARS_MAX + 1));
    assert_eq!(pointers(&mail(&long).expect_err("too long")), ["/email/subject"]);
}

#[test]
fn a_send_goes_to_one_destination() {
    for member in [
        r#""method":"POST""#,
        r#""url":"https://example.com/""#,
        r#""data":1"#,
        r#""data_base64":"""#,
        r#""headers":{}"#,
        r#""params":{}"#,
        r#""auth":{"username":"u","password":"p"}"#,
    ] {
        let problems = mail(&format!(r#"{{"email":{{"text":"x"}},{member}}}"#)).expect_err(member);
        let name = member.split('"').nth(1).expect("a name");
        assert_eq!(pointers(&problems), [format!("/{name}")], "{problems:?}");
    }
    let beside = r#"{"email":{"text":"x"},"method":null,"context":{"workflow":"w"},"expires_in":60}"#;
    assert!(mail(beside).is_ok());
    assert_eq!(pointers(&mail(r#"{"email":{"text":"x"},"expires_in":0}"#).expect_err("no time")), ["/expires_in"]);
}

#[test]
fn mail_that_is_not_set_up_is_said_to_be_that() {
    for (mail, says) in [
        (Mail::NotSetUp, "this node's operator has not set mail up"),
        (Mail::NoAddress, "this tenant has no mail address, and mail goes nowhere else"),
    ] {
        let bounds = Bounds { mail, ..BOUNDS };
        for raw in [r#"{"email":{"text":"x"}}"#, r#"[{"email":{"text":"x"}}]"#] {
            let problems = call(&Bytes::from(raw), &bounds, hide(), None).expect_err(raw);
            assert_eq!((problems.len(), problems[0].detail.as_str(), problems[0].fault), (1, says, Fault::Shape));
            assert!(problems[0].pointer.ends_with("/email") && problems[0].hint.is_some(), "{problems:?}");
        }
        let resend = supplied(&Bytes::from(r#"{"email":{"text":"x"}}"#), &bounds, None).expect_err("not set up");
        assert_eq!((pointers(&resend), resend[0].detail.as_str()), (vec!["/email"], says));
    }
}

/// A call on a node that may write to these buckets.
fn event(raw: &str) -> Result<Event, Vec<ShapeProblem>> {
    let set_up = S3Settings {
        endpoint: Destination {
            scheme: crate::policy::Scheme::Https,
            host: crate::policy::Host::Name("s3.example.net".into()),
            port: 443,
        },
        path_style: false,
        region: "us-east-1".to_owned(),
        credentials_file: Default::default(),
        buckets: vec!["logs*".to_owned()],
        gathering: Default::default(),
    };
    let bounds = Bounds { s3: Some(Arc::new(set_up)), ..BOUNDS };
    call(&Bytes::copy_from_slice(raw.as_bytes()), &bounds, hide(), None).map(|call| match call {
        Call::One(send) => match send.to {
            To::Event(event) => event,
            other => panic!("no event: {other:?}"),
        },
        Call::Many(_) => panic!("several: {raw}"),
    })
}

#[test]
fn an_event_is_a_bucket_a_prefix_and_a_payload_in_its_own_bytes() {
    for (prefix, payload, folder) in [
        ("a/b/", r#"{"n": 1.0}"#, "a/b"),
        ("a/b", "[ 1,\n2 ]", "a/b"),
        ("", r#""text\u00e9""#, ""),
        ("/", "{}", ""),
        ("\u{e9} +", "[]", "\u{e9} +"),
    ] {
        let raw = format!(r#"{{"s3":{{"bucket":"logs-1","prefix":"{prefix}","payload":{payload}}}}}"#);
        let event = event(&raw).unwrap_or_else(|problems| panic!("{raw}: {problems:?}"));
        assert_eq!(&event.payload()[..], payload.as_bytes());
        assert_eq!(event.place(), &crate::send::Place::S3 { bucket: "logs-1".into(), prefix: folder.into() });
        assert_eq!(event.way().host.text(), "logs-1.s3.example.net");
    }
}

#[test]
fn what_an_event_may_not_have_is_named() {
    let long = format!(r#"{{"bucket":"logs","prefix":"{}","payload":{{}}}}"#, "x".repeat(limits::PREFIX_BYTES_MAX + 1));
    let large = format!(r#"{{"bucket":"logs","prefix":"","payload":"{}"}}"#, "x".repeat(1000));
    for (raw, places) in [
        ("{}", &["/s3/bucket", "/s3/prefix", "/s3/payload"][..]),
        ("[]", &["/s3"]),
        (r#"{"bucket":1,"prefix":[],"payload":1}"#, &["/s3/bucket", "/s3/prefix", "/s3/payload"]),
        (r#"{"bucket":"logs","prefix":"","payload":null}"#, &["/s3/payload"]),
        (r#"{"bucket":"logs","prefix":"","payload":true}"#, &["/s3/payload"]),
        (r#"{"bucket":"logs","prefix":"","payload":"\ud800"}"#, &["/s3/payload"]),
        (r#"{"bucket":"Logs","prefix":"","payload":{}}"#, &["/s3/bucket"]),
        (r#"{"bucket":"other","prefix":"","payload":{}}"#, &["/s3/bucket"]),
        (r#"{"bucket":"logs","prefix":"a/../b","payload":{}}"#, &["/s3/prefix"]),
        (r#"{"bucket":"logs","prefix":"a\nb","payload":{}}"#, &["/s3/prefix"]),
        (&long, &["/s3/prefix"]),
        (&large, &["/s3/payload"]),
        (r#"{"bucket":"logs","prefix":"","payload":{},"key":"x","region":"y"}"#, &["/s3/key", "/s3/region"]),
    ] {
        let problems = event(&format!(r#"{{"s3":{raw}}}"#)).expect_err(raw);
        assert_eq!(pointers(&problems), places, "{raw}: {problems:?}");
    }
    let beside = r#"{"email":{"text":"x"},"s3":{"bucket":"logs","prefix":"","payload":{}},"url":"https://a.example/"}"#;
    let problems = event(beside).expect_err("two");
    assert!(
        problems.iter().filter(|one| one.detail.contains("a send goes to one destination")).count() == 2,
        "{problems:?}"
    );
    let raw = r#"{"s3":{"bucket":"logs","prefix":"","payload":{}}}"#;
    let problems = call(&Bytes::from(raw), &BOUNDS, hide(), None).expect_err("not set up");
    assert_eq!((pointers(&problems), problems.len()), (vec!["/s3"], 1), "{problems:?}");
    assert!(problems[0].detail.contains("has not set S3 up"));
}

/// A call on a node that may write to a database.
fn row(raw: &str) -> Result<Event, Vec<ShapeProblem>> {
    let server = Destination {
        scheme: crate::policy::Scheme::PostgresTls,
        host: crate::policy::Host::Name("warehouse.example.net".into()),
        port: 5432,
    };
    let bounds = Bounds { sql: Sql::Server(server), ..BOUNDS };
    call(&Bytes::copy_from_slice(raw.as_bytes()), &bounds, hide(), None).map(|call| match call {
        Call::One(send) => match send.to {
            To::Event(event) => event,
            other => panic!("no event: {other:?}"),
        },
        Call::Many(_) => panic!("several: {raw}"),
    })
}

#[test]
fn a_row_is_a_table_and_what_jsonb_can_hold() {
    for table in ["orders", "Orders_2", "0x", &"t".repeat(63)] {
        let event = row(&format!(r#"{{"sql":{{"table":"{table}","payload":{{}}}}}}"#)).expect(table);
        assert_eq!(event.place(), &crate::send::Place::Sql { table: table.into() });
    }
    for table in ["", "_x", "a b", "a-b", "a\\\"b", "Egressd_Batches", "caf\u{e9}", &"t".repeat(64)] {
        let problems = row(&format!(r#"{{"sql":{{"table":"{table}","payload":{{}}}}}}"#)).expect_err(table);
        assert_eq!(pointers(&problems), ["/sql/table"], "{table}: {problems:?}");
    }
    let deep = |by: usize| format!("{}{}", "[".repeat(by), "]".repeat(by));
    for payload in [
        r#"{"a": "\\u0000", "b": "\ud83e\udd80", "c": [-1.5e-300, 1E+300, 0]}"#,
        r#""\"\\""#,
        r#"{"u0000": "{[\"1e999\"]}"}"#,
        &deep(500),
        &format!("[{}]", "9".repeat(400)),
    ] {
        let read = row(&format!(r#"{{"sql":{{"table":"t","payload":{payload}}}}}"#));
        assert_eq!(read.expect(payload).payload(), payload.as_bytes());
    }
    for payload in [
        r#""\u0000""#,
        r#"{"a\u0000": 1}"#,
        r#"["\ud800"]"#,
        r#"["\ud800\u0041"]"#,
        r#"["\udc00"]"#,
        "[1e301]",
        "[1e-301]",
        "[1e99999999999]",
        &deep(501),
        &format!("[{}]", "9".repeat(401)),
    ] {
        let problems = row(&format!(r#"{{"sql":{{"table":"t","payload":{payload}}}}}"#)).expect_err(payload);
        assert_eq!(pointers(&problems), ["/sql/payload"], "{payload}: {problems:?}");
    }
    for (sql, says) in [(Sql::NotSetUp, "has not set SQL up"), (Sql::NoSchema("it has no schema"), "it has no schema")]
    {
        let bounds = Bounds { sql, ..BOUNDS };
        let raw = r#"{"sql":{"table":"t","payload":{}}}"#;
        let problems = call(&Bytes::from(raw), &bounds, hide(), None).expect_err("nowhere");
        assert_eq!(pointers(&problems), ["/sql"], "{problems:?}");
        assert!(problems[0].detail.contains(says), "{problems:?}");
    }
}
