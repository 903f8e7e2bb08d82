use super::*;

const TOTAL: Duration = Duration::from_secs(5);
const SO_FAR: SoFar = SoFar { status: 200, bytes: 3, declared: Some(10) };
const ENDLESS: SoFar = SoFar { status: 200, bytes: 3, declared: None };
const ONE: Tried = Tried { refused: 0, unreachable: 0, silent: 1 };
const TWO: Tried = Tried { refused: 1, unreachable: 0, silent: 1 };

fn from() -> Option<IpAddr> {
    Some(IpAddr::from([198, 51, 100, 10]))
}

/// One row for each cause (and each of its forms), with what it must say.
fn table() -> Vec<(Cause<'static>, &'static str, &'static [&'static str])> {
    let (port, from) = (8443, from());
    vec![
        (
            Cause::NoConnection { total: TOTAL, port, from, tried: ONE },
            "timeout connect no",
            &["dropped", "firewall", "198.51.100.10", ":8443", "5 s"],
        ),
        (
            Cause::NoConnection { total: TOTAL, port, from, tried: TWO },
            "timeout connect no",
            &["of 2 addresses", "1 did not answer, 1 refused"],
        ),
        (
            Cause::Refused { port, from, tried: ONE },
            "connection_refused connect no",
            &["refused", "listens", "firewall", "198.51.100.10"],
        ),
        (
            Cause::ResetAtConnect { port, from, tried: ONE },
            "connection_reset connect no",
            &["reset", "firewall", "198.51.100.10"],
        ),
        (
            Cause::Unreachable { port, from, tried: ONE },
            "host_unreachable connect no",
            &["cannot be reached", "firewall"],
        ),
        (Cause::NetworkUnreachable { port, tried: ONE }, "network_unreachable connect no", &["no route"]),
        (Cause::NoSource { port }, "source_unavailable connect no", &["operator"]),
        (Cause::NoPort { port }, "source_ports_exhausted connect no", &["ports"]),
        (Cause::LedElsewhere { port }, "internal connect no", &["operator"]),
        (Cause::NoSocket { port }, "internal connect no", &["operator"]),
        (Cause::NoHandshake { total: TOTAL }, "timeout tls no", &["TLS handshake", "5 s"]),
        (Cause::ClosedUnwritten, "connection_closed write no", &["before a byte"]),
        (
            Cause::NotTaken { total: TOTAL, bytes: 700, of: 900 },
            "timeout write maybe",
            &["stopped reading", "700", "900", "5 s"],
        ),
        (Cause::NotTaken { total: TOTAL, bytes: 0, of: 900 }, "timeout write no", &["0 of"]),
        (Cause::NoAnswer { total: TOTAL }, "timeout wait maybe", &["answer sooner", "not known", "5 s"]),
        (
            Cause::HalfAnswer { total: TOTAL, so_far: SO_FAR },
            "timeout read yes",
            &["answered 200", "3 of 10 bytes", "has handled"],
        ),
        (Cause::HalfAnswer { total: TOTAL, so_far: ENDLESS }, "timeout read yes", &["3 bytes"]),
        (
            Cause::Unanswered { end: PeerEnd::Closed, written: None },
            "connection_closed wait maybe",
            &["closed", "before it answered", "not known", "not sent again"],
        ),
        (
            Cause::Unanswered { end: PeerEnd::Reset, written: None },
            "connection_reset wait maybe",
            &["reset", "not known"],
        ),
        (
            Cause::Unanswered { end: PeerEnd::Lost, written: None },
            "host_unreachable wait maybe",
            &["lost", "not known"],
        ),
        (
            Cause::Unanswered { end: PeerEnd::Reset, written: Some((5, 9)) },
            "connection_reset write maybe",
            &["5 of the request's 9 bytes", "not known"],
        ),
        (Cause::Unanswered { end: PeerEnd::Closed, written: Some((0, 9)) }, "connection_closed write no", &["0 of"]),
        (
            Cause::CutOff { end: PeerEnd::Closed, so_far: SO_FAR },
            "connection_closed read yes",
            &["answered 200", "3 of 10 bytes", "has handled"],
        ),
        (
            Cause::CutOff { end: PeerEnd::Reset, so_far: ENDLESS },
            "connection_reset read yes",
            &["answered 200", "3 bytes"],
        ),
        (Cause::CutOff { end: PeerEnd::Lost, so_far: SO_FAR }, "host_unreachable read yes", &["lost"]),
        (
            Cause::CutWithoutNotice { so_far: ENDLESS },
            "connection_closed read yes",
            &["close_notify", "Content-Length"],
        ),
        (Cause::WrongLength { so_far: SO_FAR }, "protocol_error read yes", &["3 of 10 bytes"]),
        (Cause::NotHttp { line: "SSH-2.0-x\r" }, "protocol_error wait maybe", &["not HTTP", "\"SSH-2.0-x\"", "port"]),
        (
            Cause::BadLine { status: Some(200), line: "nonsense", why: "has no colon" },
            "protocol_error wait yes",
            &["answered 200", "\"nonsense\"", "has no colon"],
        ),
        (
            Cause::BadLine { status: None, line: "HTTP/1.1 20", why: "is no status line" },
            "protocol_error wait maybe",
            &["\"HTTP/1.1 20\""],
        ),
        (
            Cause::BadChunk { so_far: ENDLESS, line: "zz", why: "is no chunk size" },
            "protocol_error read yes",
            &["answered 200", "\"zz\"", "no chunk size"],
        ),
        (
            Cause::HeadersTooLarge { status: Some(200), bytes: 65536, lines: 256 },
            "response_headers_too_large wait yes",
            &["65536", "256", "200", "response_header_lines"],
        ),
        (
            Cause::HeadersTooLarge { status: None, bytes: 65536, lines: 256 },
            "response_headers_too_large wait maybe",
            &["65536"],
        ),
        (Cause::TooManyInformational { most: 32 }, "protocol_error wait maybe", &["32", "1xx"]),
        (Cause::TooManyBytes { most: 9 }, "protocol_error wait maybe", &["9 bytes"]),
        (Cause::Switched, "protocol_error wait yes", &["101"]),
        (Cause::StreamRefused, "connection_refused wait no", &["REFUSED_STREAM", "not handled", "may be resent"]),
        (Cause::LeftOut, "connection_closed wait no", &["GOAWAY", "not handled", "may be resent"]),
        (Cause::Http1Required, "protocol_error wait no", &["HTTP_1_1_REQUIRED", "not handled", "may be resent"]),
        (
            Cause::StreamEnded { reason: "CANCEL", by_peer: true, so_far: None },
            "connection_reset wait maybe",
            &["CANCEL", "not known"],
        ),
        (
            Cause::StreamEnded { reason: "CANCEL", by_peer: true, so_far: Some(SO_FAR) },
            "connection_reset read yes",
            &["CANCEL", "3 of 10"],
        ),
        (
            Cause::StreamEnded { reason: "x", by_peer: false, so_far: None },
            "protocol_error wait maybe",
            &["rules of HTTP/2"],
        ),
        (Cause::Broken { so_far: None }, "protocol_error wait maybe", &["not known"]),
        (Cause::Broken { so_far: Some(SO_FAR) }, "protocol_error read yes", &["answered 200"]),
    ]
}

#[test]
fn every_cause_has_its_code_phase_what_is_known_and_words() {
    for (cause, named, says) in table() {
        let failure = cause.failure("hook.example.com");
        let phase = failure.phase.map_or("none", Phase::label);
        assert_eq!(format!("{} {phase} {}", failure.code, failure.processed), named, "{cause:?}");
        for part in says {
            assert!(failure.message.contains(part), "{part}: {}", failure.message);
        }
        assert!(failure.message.contains("hook.example.com"), "{}", failure.message);
    }
}

#[test]
fn no_message_says_what_is_not_so_or_shows_how_it_was_made() {
    for (cause, ..) in table() {
        let Failure { message, processed, phase, .. } = cause.failure("hook.example.com");
        // What is known is not called unknown, and what never was answered is not said to be handled.
        let unknown = message.contains("not known");
        assert!(!unknown || processed == Processed::Maybe, "{message}");
        assert_eq!(
            message.contains("has handled"),
            processed == Processed::Yes && message.contains("answered 200"),
            "{message}"
        );
        assert_eq!(message.contains("may be resent"), message.contains("not handled"), "{message}");
        // Only who was reached can answer sooner.
        assert!(!message.contains("answer sooner") || phase == Some(Phase::Wait), "{message}");
        // Debug text of values has braces, `Some(` or `Err(` and names with `::`.
        for mark in ["{", "}", "Some(", "None", "Ok(", "Err(", "::", "Error {", "Kind", "\\"] {
            assert!(!message.contains(mark), "{mark}: {message}");
        }
        assert!(message.len() < 700, "{message}");
    }
}

#[test]
fn what_a_peer_sent_is_tamed_and_bounded() {
    let line = "\u{1b}[2J\"\u{202e}".to_owned() + &"x".repeat(5000);
    for cause in [
        Cause::NotHttp { line: &line },
        Cause::BadLine { status: None, line: &line, why: "is no status line" },
        Cause::BadChunk { so_far: SO_FAR, line: &line, why: "is no chunk size" },
        Cause::StreamEnded { reason: &line, by_peer: true, so_far: None },
    ] {
        let message = cause.failure("hook.example.com").message;
        assert!(!message.contains(['\u{1b}', '\u{202e}']) && message.len() < 700, "{message}");
    }
}
