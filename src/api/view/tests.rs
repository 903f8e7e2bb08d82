use bytes::Bytes;

use super::*;

const ALL: Sight = Sight { operate: true, bodies: true };

fn body(bytes: &'static [u8], truncated: bool) -> ShownBody {
    ShownBody { bytes: Some(Bytes::from_static(bytes)), total: 1000, truncated, sha256: None }
}

#[test]
fn a_body_is_text_where_it_is_utf8_and_base64_elsewhere() {
    for (bytes, truncated, text, encoding) in [
        (&b""[..], false, "", "utf8"),
        (b"plain", false, "plain", "utf8"),
        ("é😀\0".as_bytes(), false, "é😀\0", "utf8"),
        (b"\xff\xfe", false, "//4=", "base64"),
        (b"a\xc3", false, "YcM=", "base64"),
        // Storing cut the last character in two: what is whole is text.
        (b"a\xc3", true, "a", "utf8"),
        (b"ab\xf0\x9f\x98", true, "ab", "utf8"),
        (b"a\xff\xc3", true, "Yf/D", "base64"),
        (b"\xc3", true, "ww==", "base64"),
    ] {
        let body = body(bytes, truncated);
        let (shown, shown_encoding) = shown_body(Some(&body), ALL);
        assert_eq!((shown.as_deref(), shown_encoding), (Some(text), Some(encoding)), "{bytes:?}");
    }
}

#[test]
fn a_body_that_is_not_shown_is_null_with_its_encoding() {
    let shown = body(b"x", false);
    assert_eq!(shown_body(Some(&shown), Sight { bodies: false, ..ALL }), (None, None));
    assert_eq!(shown_body(Some(&ShownBody::default()), ALL), (None, None));
    assert_eq!(shown_body(None, ALL), (None, None));
}

#[test]
fn times_are_milliseconds_to_the_microsecond() {
    for (duration, shown) in [
        (Duration::ZERO, "0.0"),
        (Duration::from_nanos(999), "0.0"),
        (Duration::from_micros(800), "0.8"),
        (Duration::from_micros(1_234), "1.234"),
        (Duration::from_secs(5), "5000.0"),
    ] {
        assert_eq!(serde_json::to_string(&milliseconds(duration)).expect("a number"), shown);
    }
}

#[test]
fn headers_are_an_object_of_arrays_in_their_order() {
    let headers = vec![("b".to_owned(), vec!["1".to_owned(), "2".to_owned()]), ("a".to_owned(), vec!["\"".to_owned()])];
    assert_eq!(serde_json::to_string(&Headers(&headers)).expect("JSON"), r#"{"b":["1","2"],"a":["\""]}"#);
}

#[test]
fn a_digest_is_lower_case_hex() {
    let mut digest = [0; 32];
    digest[0] = 0xAB;
    digest[31] = 0x0F;
    let text = serde_json::to_string(&Hex(&digest)).expect("JSON");
    assert!(text.starts_with("\"ab00") && text.ends_with("0f\"") && text.len() == 66, "{text}");
}

#[test]
fn who_does_not_operate_is_told_no_address_near_us_for_a_relay() {
    use crate::outcome::{
        Ended,
        words::{MailCause, SmtpStep},
    };
    use crate::policy::{Destination, Host, Scheme};
    use crate::record::{ShownResponse, Unfinished};
    use crate::redact::{RedactKey, Redactor};
    use crate::send::{Context, TenantId};

    let relay = Destination { scheme: Scheme::Smtp, host: Host::Address([10, 0, 0, 25].into()), port: 587 };
    let request = |to| ShownRequest {
        to,
        headers: Vec::new(),
        spelling: Default::default(),
        dropped_headers: Vec::new(),
        body: None,
    };
    let mail = request(ShownTo::Email { relay });
    let http = request(ShownTo::Http { method: Method::Get, url: "https://hook.example.com/".to_owned() });
    let redactor = Redactor::new(RedactKey::new(b"k"), &Default::default());
    for (request, operate, told) in
        [(&mail, true, true), (&mail, false, false), (&http, true, true), (&http, false, true)]
    {
        let mut record = Record::from(Unfinished {
            id: SendId(uuid::Uuid::nil()),
            tenant: TenantId::new("acme"),
            context: Context::default(),
            index: None,
            request: request.clone(),
            resend_of: None,
            node: "n".to_owned(),
            created_at: Timestamp::UNIX_EPOCH,
            released_at: None,
            started_at: None,
            timings: Timings::default(),
        });
        record.connection = Some(Connection {
            remote: Some(SocketAddr::from(([10, 0, 0, 25], 587))),
            public: Some([203, 0, 113, 7].into()),
            resolved: vec![([10, 0, 0, 25].into(), Verdict::Allowed), ([93, 184, 216, 34].into(), Verdict::Allowed)],
            ..Connection::default()
        });
        let gone = MailCause::Silent { total: Duration::from_secs(15), step: SmtpStep::Auth, over: false };
        record.ended = Some(Ended::because(gone.failure("10.0.0.25")));
        record.response = Some(ShownResponse {
            status: 250,
            version: "SMTP".to_owned(),
            headers: Vec::new(),
            body: ShownBody { bytes: Some(Bytes::from_static(b"handed on to 10.0.0.25")), ..ShownBody::default() },
            declared: None,
        });
        let visible = redactor.visible(record);
        let view = RecordView::new(&visible, Sight { operate, bodies: true });
        let shown = serde_json::to_string(&view).expect("JSON");
        assert_eq!(shown.contains("10.0.0.25"), told, "{shown}");
        assert!(shown.contains("93.184.216.34") && shown.contains("203.0.113.7"), "{shown}");
    }
}
