//! The rows: each cause in each of its forms, how it ends, and what it must say.

use jiff::Timestamp;

use super::super::name::Fault;
use super::*;
use crate::policy::rules::PRECEDENCE;
use crate::record::Certificate;

pub const HOST: &str = "hook.example.com";
pub const SO_FAR: SoFar = SoFar { status: 200, bytes: 3, declared: Some(10) };
const ENDLESS: SoFar = SoFar { status: 200, bytes: 3, declared: None };
const TOTAL: Duration = Duration::from_secs(5);
const ONE: Tried = Tried { refused: 0, unreachable: 0, silent: 1 };
const TWO: Tried = Tried { refused: 1, unreachable: 0, silent: 1 };
const ALERT: &str = "some_alert";
const WHY: &str = "peer misbehaved: too many empty fragments";
const FAULTS: &[Fault] = &[
    fault(Unanswered::Silent, None),
    fault(Unanswered::Refusal(2), Some("AAAA")),
    fault(Unanswered::Refusal(99), None),
    fault(Unanswered::Lame, None),
    fault(Unanswered::Garbage, None),
    fault(Unanswered::Truncated, None),
    fault(Unanswered::Unreachable, None),
];

const fn fault(what: Unanswered, about: Option<&'static str>) -> Fault {
    let server = std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 53)), 53);
    Fault { server, what, about }
}

pub fn certificate() -> Certificate {
    Certificate {
        subject: "CN=leaf".to_owned(),
        issuer: "CN=Wire Inter".to_owned(),
        names: vec!["other.example.org".to_owned()],
        not_before: Some(Timestamp::UNIX_EPOCH),
        not_after: Timestamp::from_second(86_400).unwrap(),
        key: "ECDSA P-256".to_owned(),
        sha256: [0; 32],
    }
}

/// A cause, its `code phase processed`, and what it says.
pub type Row<'a> = (Cause<'a>, String, &'static [&'static str]);

fn row<'a>(cause: impl Into<Cause<'a>>, ends: &str, says: &'static [&'static str]) -> Row<'a> {
    (cause.into(), ends.to_owned(), says)
}

pub fn table(shown: &Certificate) -> Vec<Row<'_>> {
    let mut table = unmade();
    table.extend(name());
    table.extend(connect());
    table.extend(tls());
    table.extend(certificates(shown));
    table.extend(exchange());
    table.extend(mail());
    table
}

fn unmade() -> Vec<Row<'static>> {
    // The last one is said of tunnels, once they are open.
    let denied = PRECEDENCE.iter().chain(&[Code::PolicySni]).map(|&code| {
        let cause = UnmadeCause::Denied { code, why: "`a.corp` is no public name: ask the operator" };
        (cause.into(), format!("{code} none no"), &["`a.corp` is no public name"][..])
    });
    let mut rows: Vec<Row<'_>> = denied.collect();
    rows.extend([
        row(UnmadeCause::Suspended { reason: "abuse" }, "suspended none no", &["by the operator", "abuse", "lift it"]),
        row(UnmadeCause::Expired, "expired none no", &["`expires_in`", "resend it"]),
        row(UnmadeCause::Discarded, "discarded none no", &["discarded", "never sent"]),
        row(UnmadeCause::Interrupted, "interrupted none maybe", &["may or may not have it", "never sent again"]),
        row(UnmadeCause::Doubted, "interrupted none maybe", &["store is lost", "may or may not have it"]),
        row(
            UnmadeCause::Restored,
            "interrupted none maybe",
            &["copy of the store", "may have been made", "ask the receiver"],
        ),
        row(UnmadeCause::Unreadable, "internal none no", &["unreadable", "was not sent", "submit it again"]),
        row(UnmadeCause::UnreadableSince, "internal none maybe", &["unreadable", "goes on without it", "look there"]),
        row(
            UnmadeCause::Damaged { code: Code::Timeout, place: "00000001/log is unreadable at bytes 0 to 96" },
            "timeout none maybe",
            &["lost", "00000001/log", "operator"],
        ),
        row(UnmadeCause::Damaged { code: Code::Expired, place: "here" }, "expired none no", &["lost", "here"]),
        row(
            UnmadeCause::Moved,
            "policy_not_allowed none no",
            &["at another place now", "no second one", "before you resend"],
        ),
        row(UnmadeCause::NoCredentials, "internal none no", &["credentials", "nothing was sent", "ask the operator"]),
        row(UnmadeCause::Defect, "internal none maybe", &["defect in egressd", "may or may not have it", "report"]),
    ]);
    rows
}

fn name() -> Vec<Row<'static>> {
    let target = Some("gone.example.net");
    vec![
        row(NameCause::NoName, "dns_not_found dns no", &["253 characters", "check the URL"]),
        row(NameCause::Gone { target: None }, "dns_not_found dns no", &["no such name", "NXDOMAIN", "spelling"]),
        row(
            NameCause::Gone { target },
            "dns_not_found dns no",
            &["is an alias of gone.example.net", "publish gone.example.net", "the CNAME of hook.example.com"],
        ),
        row(NameCause::Empty { target: None, with_v6: false }, "dns_no_address dns no", &["no A record"]),
        row(NameCause::Empty { target: None, with_v6: true }, "dns_no_address dns no", &["no A or AAAA record"]),
        row(
            NameCause::Empty { target, with_v6: false },
            "dns_no_address dns no",
            &["is an alias of gone.example.net, which exists", "no A record"],
        ),
        row(NameCause::TooManyAliases { most: 8 }, "dns_failed dns no", &["more than 8 names", "CNAME"]),
        row(
            NameCause::Failed { faults: FAULTS },
            "dns_failed dns no",
            &[
                "asked twice",
                "192.0.2.53:53 did not answer",
                "answered SERVFAIL (about AAAA records)",
                "answered the code 99",
                "is lame",
                "what cannot be read",
                "over TCP",
                "cannot be reached",
                "name servers, or resend later",
            ],
        ),
        row(
            NameCause::OutOfTime { total: TOTAL, faults: FAULTS },
            "timeout dns no",
            &["5 s", "192.0.2.53:53 did not answer", "check the name servers of hook.example.com"],
        ),
        row(
            NameCause::NoTurn { total: TOTAL, at_once: 64, of_domain: 16 },
            "timeout dns no",
            &["5 s", "waited for its turn", "64", "16 of one domain"],
        ),
        row(NameCause::OutOfReach, "dns_no_address dns no", &["no address that this node could reach", "IPv4"]),
        row(NameCause::NotOfThisSource, "dns_no_address dns no", &["source's family", "another reflector"]),
    ]
}

fn connect() -> Vec<Row<'static>> {
    let (port, from) = (8443, Some([198, 51, 100, 10].into()));
    vec![
        row(
            ConnectCause::Silent { total: TOTAL, port, from, tried: ONE },
            "timeout connect no",
            &["dropped", "firewall", "198.51.100.10", ":8443", "5 s"],
        ),
        row(
            ConnectCause::Silent { total: TOTAL, port, from, tried: TWO },
            "timeout connect no",
            &["of 2 addresses", "1 did not answer, 1 refused"],
        ),
        row(
            ConnectCause::Refused { port, from, tried: ONE },
            "connection_refused connect no",
            &["refused", "listens", "firewall", "198.51.100.10"],
        ),
        row(
            ConnectCause::Reset { port, from, tried: ONE },
            "connection_reset connect no",
            &["reset", "firewall", "198.51.100.10"],
        ),
        row(
            ConnectCause::Unreachable { port, from, tried: ONE },
            "host_unreachable connect no",
            &["cannot be reached", "firewall"],
        ),
        row(ConnectCause::NetworkUnreachable { port, tried: ONE }, "network_unreachable connect no", &["no route"]),
        row(ConnectCause::NoSource { port }, "source_unavailable connect no", &["operator"]),
        row(ConnectCause::NoPort { port }, "source_ports_exhausted connect no", &["ports"]),
        row(ConnectCause::LedElsewhere { port }, "internal connect no", &["operator"]),
        row(ConnectCause::NoSocket { port }, "internal connect no", &["operator"]),
        row(ConnectCause::NoSourceOfFamily, "source_unavailable connect no", &["of their family", "operator"]),
        row(ConnectCause::JudgedForAnother { port }, "internal connect no", &["was not", "operator"]),
    ]
}

fn tls() -> Vec<Row<'static>> {
    let (alert, why) = (ALERT, WHY);
    vec![
        row(
            TlsCause::NoName { label: "-a" },
            "tls_handshake tls no",
            &["its label -a begins or ends with a hyphen", "not looked up", "inside of its labels"],
        ),
        row(TlsCause::OutOfTime { total: TOTAL }, "timeout tls no", &["TLS handshake", "5 s"]),
        row(
            TlsCause::Gone { end: PeerEnd::Closed },
            "connection_closed tls no",
            &["closed", "during the TLS handshake"],
        ),
        row(TlsCause::Gone { end: PeerEnd::Reset }, "connection_reset tls no", &["reset", "published addresses"]),
        row(TlsCause::Gone { end: PeerEnd::Lost }, "host_unreachable tls no", &["lost"]),
        row(TlsCause::NotOffered, "tls_handshake tls no", &["offers no TLS", "in the clear", "ask the operator"]),
        row(TlsCause::NoCertificate, "tls_certificate tls no", &["showed no certificate", "install one"]),
        row(TlsCause::NotTls, "tls_handshake tls no", &["does not speak TLS", "use http://"]),
        row(TlsCause::OldVersion, "tls_handshake tls no", &["neither TLS 1.2 nor TLS 1.3"]),
        row(TlsCause::NoProtocol, "tls_handshake tls no", &["ALPN"]),
        row(TlsCause::Incompatible { why }, "tls_handshake tls no", &[WHY, "ECDHE"]),
        row(TlsCause::NothingInCommon { alert }, "tls_handshake tls no", &["cipher", ALERT, "ECDHE"]),
        row(TlsCause::NameNotServed { alert }, "tls_handshake tls no", &["does not serve that name", ALERT]),
        row(TlsCause::ItsFault { alert }, "tls_handshake tls no", &["fault of its own", ALERT, "log"]),
        row(TlsCause::AccessDenied { alert }, "tls_handshake tls no", &["refuses us", ALERT, "published addresses"]),
        row(TlsCause::WantsOurs { alert }, "tls_handshake tls no", &["client certificate", ALERT, "header"]),
        row(TlsCause::Ended { alert }, "tls_handshake tls no", &["ended the TLS handshake", ALERT]),
        row(TlsCause::Failed { why }, "tls_handshake tls no", &["failed", WHY, "another client"]),
        row(
            TlsCause::EndedLater { alert, so_far: None },
            "tls_handshake wait maybe",
            &["before it answered", ALERT, "not known", "log"],
        ),
        row(
            TlsCause::EndedLater { alert, so_far: Some(SO_FAR) },
            "connection_reset read yes",
            &["answered 200", "3 of 10 bytes", ALERT, "has handled"],
        ),
        row(TlsCause::BrokenLater { why, so_far: None }, "protocol_error wait maybe", &["broke TLS", WHY, "not known"]),
        row(
            TlsCause::BrokenLater { why, so_far: Some(SO_FAR) },
            "protocol_error read yes",
            &["answered 200", "broke TLS", WHY, "has handled"],
        ),
    ]
}

/// Each as who sees the certificate says it.
fn certificates(shown: &Certificate) -> Vec<Row<'_>> {
    let seen = |fault, says| row(TlsCause::Certificate { fault, shown: Some(shown) }, "tls_certificate tls no", says);
    let unseen = |fault, says| row(TlsCause::Certificate { fault, shown: None }, "tls_certificate tls no", says);
    let chain = |fault, says| unseen(CertificateFault::Chain(fault), says);
    vec![
        seen(
            CertificateFault::Expired,
            &[
                "it expired at 1970-01-02",
                "renew",
                "it showed CN=leaf, for other.example.org, issued by CN=Wire Inter",
                "key of ECDSA P-256",
            ],
        ),
        unseen(CertificateFault::Expired, &["has expired"]),
        seen(CertificateFault::NotValidYet, &["from 1970-01-01", "wait"]),
        unseen(CertificateFault::NotValidYet, &["not valid yet"]),
        seen(CertificateFault::OtherName, &["another name: other.example.org"]),
        unseen(CertificateFault::OtherName, &["another name"]),
        seen(CertificateFault::UnknownIssuer, &["issued by CN=Wire Inter", "extra_ca"]),
        unseen(CertificateFault::UnknownIssuer, &["not trusted", "extra_ca"]),
        unseen(CertificateFault::Revoked, &["revoked", "install a new one"]),
        seen(CertificateFault::WeakKey { bits: 1024 }, &["RSA of 1024 bits", "at least 2048 bits"]),
        seen(CertificateFault::BadSignature, &["signature", "install it anew"]),
        seen(CertificateFault::SignedWith { with: Some("SHA-1 with RSA") }, &["SHA-1 with RSA", "SHA-256"]),
        unseen(CertificateFault::SignedWith { with: None }, &["is signed in a way", "SHA-256"]),
        seen(CertificateFault::NotForServers, &["serverAuth"]),
        seen(CertificateFault::CriticalExtension, &["critical extension"]),
        unseen(CertificateFault::BadEncoding, &["cannot be read"]),
        chain(ChainFault::TooMany { shown: 11 }, &["11 certificates were shown, more than 10", "no others"]),
        chain(ChainFault::TooLarge { bytes: 99_999 }, &["99999 bytes of certificates", "no others"]),
        chain(ChainFault::CertificateTooLarge { bytes: 20_000 }, &["a certificate of 20000 bytes", "no others"]),
        chain(ChainFault::LookAlikes, &["different certificates of one authority", "no others"]),
        seen(CertificateFault::Authority, &["CA:TRUE", "extra_ca"]),
        seen(
            CertificateFault::BreaksRule { why: "name constraint violation" },
            &["a rule (name constraint violation)"],
        ),
        seen(CertificateFault::Other { why: "something else" }, &["something else", "public clients accept"]),
    ]
}

fn exchange() -> Vec<Row<'static>> {
    vec![
        row(
            ExchangeCause::NotWritable { what: "path" },
            "internal write no",
            &["the path of a request", "check the URL"],
        ),
        row(
            ExchangeCause::NoHttp2 { reason: "PROTOCOL_ERROR", by_peer: false },
            "protocol_error wait no",
            &["rules of HTTP/2", "before a byte", "PROTOCOL_ERROR"],
        ),
        row(
            ExchangeCause::NoHttp2 { reason: "CANCEL", by_peer: true },
            "connection_reset wait no",
            &["ended the HTTP/2", "before a byte", "CANCEL"],
        ),
        row(ExchangeCause::ClosedUnwritten, "connection_closed write no", &["before a byte"]),
        row(
            ExchangeCause::Unasked { line: "220 mail.example.com ESMTP" },
            "protocol_error write no",
            &["spoke before", "nothing of the request was sent"],
        ),
        row(
            ExchangeCause::NotTaken { total: TOTAL, bytes: 700, of: 900 },
            "timeout write maybe",
            &["stopped reading", "700", "900", "5 s"],
        ),
        row(ExchangeCause::NotTaken { total: TOTAL, bytes: 0, of: 900 }, "timeout write no", &["0 of"]),
        row(ExchangeCause::NoAnswer { total: TOTAL }, "timeout wait maybe", &["answer sooner", "not known", "5 s"]),
        row(
            ExchangeCause::HalfAnswer { total: TOTAL, so_far: SO_FAR },
            "timeout read yes",
            &["answered 200", "3 of 10 bytes", "has handled"],
        ),
        row(ExchangeCause::HalfAnswer { total: TOTAL, so_far: ENDLESS }, "timeout read yes", &["3 bytes"]),
        row(
            ExchangeCause::Transaction { how: HowUnended::Unreadable, commits: true },
            "protocol_error wait maybe",
            &["cannot be read", "asked to commit", "not known", "does no harm"],
        ),
        row(
            ExchangeCause::Transaction { how: HowUnended::Late { total: TOTAL }, commits: false },
            "timeout wait no",
            &["within the 5 s", "not asked to commit", "nothing of it is there"],
        ),
        row(
            ExchangeCause::Transaction { how: HowUnended::Ended { end: PeerEnd::Reset }, commits: true },
            "connection_reset wait maybe",
            &["in the middle of the batch's transaction", "not known"],
        ),
        row(
            ExchangeCause::NoProof { status: 200, why: "without an ETag" },
            "protocol_error read maybe",
            &["answered 200", "without an ETag", "endpoint", "not known"],
        ),
        row(
            ExchangeCause::Unanswered { end: PeerEnd::Closed, written: None },
            "connection_closed wait maybe",
            &["closed", "before it answered", "not known", "not sent again"],
        ),
        row(
            ExchangeCause::Unanswered { end: PeerEnd::Reset, written: None },
            "connection_reset wait maybe",
            &["reset", "not known"],
        ),
        row(
            ExchangeCause::Unanswered { end: PeerEnd::Lost, written: None },
            "host_unreachable wait maybe",
            &["lost", "not known"],
        ),
        row(
            ExchangeCause::Unanswered { end: PeerEnd::Reset, written: Some((5, 9)) },
            "connection_reset write maybe",
            &["5 of the request's 9 bytes", "not known"],
        ),
        row(
            ExchangeCause::Unanswered { end: PeerEnd::Closed, written: Some((0, 9)) },
            "connection_closed write no",
            &["0 of"],
        ),
        row(
            ExchangeCause::CutOff { end: PeerEnd::Closed, so_far: SO_FAR },
            "connection_closed read yes",
            &["answered 200", "3 of 10 bytes", "has handled"],
        ),
        row(
            ExchangeCause::CutOff { end: PeerEnd::Reset, so_far: ENDLESS },
            "connection_reset read yes",
            &["answered 200", "3 bytes"],
        ),
        row(ExchangeCause::CutOff { end: PeerEnd::Lost, so_far: SO_FAR }, "host_unreachable read yes", &["lost"]),
        row(
            ExchangeCause::CutWithoutNotice { so_far: ENDLESS },
            "connection_closed read yes",
            &["close_notify", "Content-Length"],
        ),
        row(ExchangeCause::WrongLength { so_far: SO_FAR }, "protocol_error read yes", &["3 of 10 bytes"]),
        row(ExchangeCause::NotHttp { line: "SSH-2.0-x\r" }, "protocol_error wait maybe", &["not HTTP", "port"]),
        row(
            ExchangeCause::BadLine { status: Some(200), line: "nonsense", after: None, why: "has no colon" },
            "protocol_error wait yes",
            &["answered 200", "has no colon"],
        ),
        row(
            ExchangeCause::BadLine { status: None, line: "HTTP/1.1 20", after: None, why: "is no status line" },
            "protocol_error wait maybe",
            &["is no status line"],
        ),
        row(
            ExchangeCause::BadChunk { so_far: ENDLESS, line: "zz", why: "is no chunk size" },
            "protocol_error read yes",
            &["answered 200", "at what is no chunk size"],
        ),
        row(
            ExchangeCause::HeadersTooLarge { status: Some(200), bytes: 65536, lines: 256 },
            "response_headers_too_large wait yes",
            &["65536", "256", "200", "response_header_lines"],
        ),
        row(
            ExchangeCause::HeadersTooLarge { status: None, bytes: 65536, lines: 256 },
            "response_headers_too_large wait maybe",
            &["65536"],
        ),
        row(ExchangeCause::TooManyInformational { most: 32 }, "protocol_error wait maybe", &["32", "1xx"]),
        row(ExchangeCause::TooManyBytes { most: 9, so_far: None }, "protocol_error wait maybe", &["9 bytes"]),
        row(
            ExchangeCause::TooManyBytes { most: 9, so_far: Some(SoFar { status: 200, bytes: 0, declared: None }) },
            "protocol_error read yes",
            &["9 bytes", "200", "has handled"],
        ),
        row(
            ExchangeCause::TooManyPieces { so_far: SoFar { status: 200, bytes: 8323, declared: None } },
            "protocol_error read yes",
            &["8323 bytes", "pieces", "has handled"],
        ),
        row(ExchangeCause::Switched, "protocol_error wait yes", &["101"]),
        row(
            ExchangeCause::StreamRefused,
            "connection_refused wait no",
            &["REFUSED_STREAM", "not handled", "may be resent"],
        ),
        row(ExchangeCause::LeftOut, "connection_closed wait no", &["GOAWAY", "not handled", "may be resent"]),
        row(
            ExchangeCause::Http1Required,
            "protocol_error wait no",
            &["HTTP_1_1_REQUIRED", "not handled", "may be resent"],
        ),
        row(
            ExchangeCause::StreamEnded { reason: "CANCEL", by_peer: true, so_far: None },
            "connection_reset wait maybe",
            &["CANCEL", "not known"],
        ),
        row(
            ExchangeCause::StreamEnded { reason: "CANCEL", by_peer: true, so_far: Some(SO_FAR) },
            "connection_reset read yes",
            &["CANCEL", "3 of 10"],
        ),
        row(
            ExchangeCause::StreamEnded { reason: "x", by_peer: false, so_far: None },
            "protocol_error wait maybe",
            &["rules of HTTP/2"],
        ),
        row(ExchangeCause::Broken { so_far: None }, "protocol_error wait maybe", &["not known"]),
        row(ExchangeCause::Broken { so_far: Some(SO_FAR) }, "protocol_error read yes", &["answered 200"]),
    ]
}

fn mail() -> Vec<Row<'static>> {
    use PeerEnd::{Closed, Lost, Reset};
    let step = SmtpStep::Rcpt;
    let broken = |end, over, ends: &str, says| row(MailCause::Ended { end, step, over }, ends, says);
    let bad =
        |over, ends: &str, says| row(MailCause::BadReply { step, why: "sent a line without end", over }, ends, says);
    let silent = |over, ends: &str, says| row(MailCause::Silent { total: TOTAL, step, over }, ends, says);
    vec![
        row(MailCause::NoStartTls, "tls_handshake tls no", &["STARTTLS", "in the clear"]),
        row(MailCause::NoWayToLogIn, "protocol_error write no", &["neither AUTH PLAIN nor LOGIN", "may be resent"]),
        broken(Closed, false, "connection_closed write no", &["closed the connection at RCPT TO", "not handled"]),
        broken(Reset, false, "connection_reset write no", &["reset the connection at RCPT TO"]),
        broken(Lost, false, "host_unreachable write no", &["was lost"]),
        broken(Closed, true, "connection_closed wait maybe", &["before it answered the message", "not known"]),
        bad(false, "protocol_error write no", &["sent a line without end at RCPT TO", "not handled"]),
        bad(true, "protocol_error wait maybe", &["sent a line without end after the message", "not known"]),
        silent(false, "timeout write no", &["too slow at RCPT TO", "5 s that"]),
        silent(true, "timeout wait maybe", &["did not answer the message", "5 s that", "not known"]),
        row(MailCause::NotWritable, "internal write no", &["cannot be written as a message"]),
    ]
}

impl From<MailCause> for Cause<'_> {
    fn from(cause: MailCause) -> Self {
        Self::Mail(cause)
    }
}

impl<'a> From<UnmadeCause<'a>> for Cause<'a> {
    fn from(cause: UnmadeCause<'a>) -> Self {
        Self::Unmade(cause)
    }
}

impl<'a> From<NameCause<'a>> for Cause<'a> {
    fn from(cause: NameCause<'a>) -> Self {
        Self::Name(cause)
    }
}

impl From<ConnectCause> for Cause<'_> {
    fn from(cause: ConnectCause) -> Self {
        Self::Connect(cause)
    }
}

impl<'a> From<TlsCause<'a>> for Cause<'a> {
    fn from(cause: TlsCause<'a>) -> Self {
        Self::Tls(cause)
    }
}

impl<'a> From<ExchangeCause<'a>> for Cause<'a> {
    fn from(cause: ExchangeCause<'a>) -> Self {
        Self::Exchange(cause)
    }
}
