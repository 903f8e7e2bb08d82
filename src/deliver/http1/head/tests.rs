use super::*;

const CAPS: HeadCaps = HeadCaps { bytes: 1024, lines: 8 };

/// As it comes in one piece, byte by byte, and with something behind it.
fn take_all(text: &[u8]) -> Result<Option<Head>, Bad> {
    let whole = take(&mut BytesMut::from(text), &mut 0, CAPS);
    let (mut inbox, mut scanned, mut dripped) = (BytesMut::new(), 0, Ok(None));
    for byte in text {
        inbox.extend_from_slice(&[*byte]);
        dripped = take(&mut inbox, &mut scanned, CAPS);
        if !matches!(dripped, Ok(None)) {
            break;
        }
    }
    // What is not HTTP at all is known before its line has come.
    if !matches!((&whole, &dripped), (Err(Bad::NotHttp { .. }), Err(Bad::NotHttp { .. }))) {
        assert_eq!(format!("{whole:?}"), format!("{dripped:?}"), "{:?}", String::from_utf8_lossy(text));
    }
    let mut inbox = BytesMut::from(&[text, b"HTTP"].concat()[..]);
    if take(&mut inbox, &mut 0, CAPS).is_ok_and(|head| head.is_some()) && whole.as_ref().is_ok_and(Option::is_some) {
        assert!(inbox.ends_with(b"HTTP"));
    }
    whole
}

fn lines(head: &Head) -> Vec<(&str, &str)> {
    head.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap_or("not text"))).collect()
}

#[test]
fn a_head_is_read_and_what_is_wrong_and_plain_is_read_once() {
    for (text, headers, lenient) in [
        ("HTTP/1.1 200 OK\r\n\r\n", &[][..], false),
        ("HTTP/1.1 200\r\nA: 1\r\nb:2\r\nA:\t3 \r\n\r\n", &[("a", "1"), ("a", "3"), ("b", "2")], false),
        ("\r\nHTTP/1.1 200 OK\nx: 1\n\n", &[("x", "1")], false),
        ("HTTP/1.1 200 OK\r\nx:\r\n\r\n", &[("x", "")], false),
        // Folds.
        ("HTTP/1.1 200 OK\r\nx: a\r\n b\r\n\tc\r\ny: 1\r\n\r\n", &[("x", "a b c"), ("y", "1")], true),
        ("HTTP/1.1 200 OK\r\nx:\r\n a\r\n \r\n\r\n", &[("x", "a")], true),
        // Spaces before a colon.
        ("HTTP/1.1 200 OK\r\nx : 1\r\ncontent-length\t: 2\r\n\r\n", &[("x", "1"), ("content-length", "2")], true),
        // A name that is none goes, and what continues it.
        ("HTTP/1.1 200 OK\r\nx y: 1\r\n 2\r\n: 3\r\nz: 4\r\n\r\n", &[("z", "4")], true),
        // Controls.
        ("HTTP/1.1 200 OK\r\nx: a\u{1}b\rc\r\n\r\n", &[("x", "a b c")], true),
    ] {
        let head = take_all(text.as_bytes()).expect(text).expect(text);
        let mut wanted = headers.to_vec();
        wanted.sort_unstable();
        let mut found = lines(&head);
        found.sort_unstable();
        assert_eq!((found, head.is_lenient, head.status), (wanted, lenient, 200), "{text:?}");
        assert_eq!(head.keeps_open(), !lenient, "{text:?}");
    }
}

#[test]
fn what_is_no_head_is_named() {
    let bad = |text: &str| match take_all(text.as_bytes()) {
        Err(Bad::NotHttp { line }) => format!("no HTTP: {line}"),
        Err(Bad::Line { status, line, why, .. }) => format!("{} {why}: {line}", status.unwrap_or(0)),
        other => panic!("{text:?}: {other:?}"),
    };
    for (text, said) in [
        ("SSH-2.0-x", "no HTTP: SSH-2.0-x"),
        ("HTTP/2 200\r\n\r\n", "no HTTP: HTTP/2 200\r"),
        ("HTTP/1.2 200 OK\r\n\r\n", "no HTTP: HTTP/1.2 200 OK\r"),
        ("http/1.1 200 OK\r\n\r\n", "no HTTP: http/1.1 200 OK\r"),
        ("HTTP/1.1 20 OK\r\n\r\n", "0 is no status line: HTTP/1.1 20 OK"),
        ("HTTP/1.1 2000 OK\r\n\r\n", "0 is no status line: HTTP/1.1 2000 OK"),
        ("HTTP/1.1 099 OK\r\n\r\n", "0 is no status line: HTTP/1.1 099 OK"),
        ("HTTP/1.1  200 OK\r\n\r\n", "0 is no status line: HTTP/1.1  200 OK"),
        ("HTTP/1.1 200 OK\r\nnonsense\r\n\r\n", "200 has no colon: nonsense"),
        ("HTTP/1.1 503 Busy\r\n folded\r\n\r\n", "503 continues a header where there is none:  folded"),
        ("HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n", "200 holds a NUL: x"),
    ] {
        assert_eq!(bad(text), said, "{text:?}");
    }
}

#[test]
fn a_head_is_bounded_in_bytes_and_lines() {
    let of = |bytes: usize| format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "v".repeat(bytes - 24));
    assert!(take(&mut BytesMut::from(of(1024).as_bytes()), &mut 0, CAPS).is_ok_and(|head| head.is_some()));
    for text in [of(1025), "HTTP/1.1 200 OK\r\nx: ".to_owned() + &"v".repeat(2000)] {
        let taken = take(&mut BytesMut::from(text.as_bytes()), &mut 0, CAPS);
        assert_eq!(taken.map(|_| ()), Err(Bad::TooLarge { status: Some(200) }));
    }
    for (count, taken) in [(8, true), (9, false)] {
        let text = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: 1\r\n".repeat(count));
        assert_eq!(take(&mut BytesMut::from(text.as_bytes()), &mut 0, CAPS).is_ok(), taken, "{count}");
    }
}

#[test]
fn where_an_answer_ends_is_read_in_one_way() {
    for (head, framing) in [
        ("HTTP/1.1 200 OK", Some(Framing::Close)),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5", Some(Framing::Length(5))),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nContent-Length: 5", Some(Framing::Length(5))),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5, 5", Some(Framing::Length(5))),
        ("HTTP/1.1 200 OK\r\ncontent-length : 5", Some(Framing::Length(5))),
        ("HTTP/1.1 200 OK\r\ncontent-length:\r\n 5", Some(Framing::Length(5))),
        ("HTTP/1.1 204 OK\r\ncontent-length: 5", Some(Framing::Empty)),
        ("HTTP/1.1 304 OK\r\ntransfer-encoding: chunked", Some(Framing::Empty)),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked", Some(Framing::Chunked)),
        ("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked", Some(Framing::Chunked)),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, Chunked\r\ncontent-length: 3", Some(Framing::Chunked)),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\ntransfer-encoding: chunked", Some(Framing::Chunked)),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, gzip", Some(Framing::Close)),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6", None),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5, 6", None),
        ("HTTP/1.1 200 OK\r\ncontent-length: 0x5", None),
        ("HTTP/1.1 200 OK\r\ncontent-length: +5", None),
        ("HTTP/1.1 200 OK\r\ncontent-length: -1", None),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5 5", None),
        ("HTTP/1.1 200 OK\r\ncontent-length:", None),
        ("HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999", None),
    ] {
        let read = take_all(format!("{head}\r\n\r\n").as_bytes()).expect(head).expect(head);
        assert_eq!(read.framing(false).ok(), framing, "{head}");
        assert_eq!(read.framing(true).ok(), Some(Framing::Empty), "{head}");
    }
}

#[test]
fn a_receiver_says_how_long_it_keeps_a_connection() {
    for (line, said) in [
        ("keep-alive: timeout=5", Some(5)),
        ("keep-alive: timeout=5, max=100", Some(5)),
        ("Keep-Alive: max=100,Timeout = \"7\"", Some(7)),
        ("keep-alive: timeout=0", Some(0)),
        ("keep-alive: 300", None),
        ("keep-alive: timeout=soon", None),
        ("keep-alive: timeout=-1", None),
        ("x: timeout=5", None),
    ] {
        let head = take_all(format!("HTTP/1.1 200 OK\r\n{line}\r\n\r\n").as_bytes()).expect(line).expect(line);
        assert_eq!(keep_alive_hint(&head.headers), said.map(Duration::from_secs), "{line}");
        assert!(head.keeps_open());
    }
    for line in [
        "connection: close",
        "connection: x, CLOSE",
        // Framing that another reader may take otherwise.
        "content-length: 5\r\ntransfer-encoding: chunked",
        "connection: close, \u{e9}",
        "transfer-encoding: chunked\r\ntransfer-encoding: \u{e9}",
    ] {
        let head = take_all(format!("HTTP/1.1 200 OK\r\n{line}\r\n\r\n").as_bytes()).expect(line).expect(line);
        assert!(!head.keeps_open(), "{line}");
    }
    for line in ["content-length: 40", "transfer-encoding: chunked"] {
        let head = take_all(format!("HTTP/1.1 204 None\r\n{line}\r\n\r\n").as_bytes()).expect(line).expect(line);
        assert!(!head.keeps_open(), "204 with {line}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn no_bytes_make_it_panic_and_however_they_are_cut_they_read_alike(
        tail in proptest::collection::vec(proptest::sample::select(&b"a1: \t\r\n\0,;\xff"[..]), 0..60),
    ) {
        let _ = take_all(&tail);
        let _ = take_all(&[b"HTTP/1.1 200 OK\r\n", &tail[..]].concat());
    }
}
