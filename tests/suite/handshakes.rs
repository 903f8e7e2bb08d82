//! TLS: whom we trust, what is said of those we do not, and what is remembered.

use std::time::Duration;

use egressd::explain::Explainer;
use egressd::policy::Asker;
use egressd::record::TlsFacts;
use egressd::redact::RedactKey;
use egressd::send::{Method, TenantId};
use rustls::HandshakeKind;

use crate::support::ground::{Ground, LONG, Plan, SHORT, end_of, get, post};
use crate::support::name_server::NameServer;
use crate::support::receiver::{Receiver, Step, ok, write};
use crate::support::tls::{Authority, Leaf, look_alike_server, self_signed, server_of};

const NAME: &str = "hook.example.com";

/// A ground that resolves every name to 127.0.0.1 and trusts the authority.
async fn ground(authority: &Authority) -> (Ground, NameServer) {
    let names = NameServer::with_addresses(60, &["127.0.0.1"]).await;
    let ground = Plan::new().name_server(names.address()).trust(authority).build();
    (ground, names)
}

fn url(receiver: &Receiver) -> String {
    format!("https://{NAME}:{}/", receiver.port())
}

#[tokio::test]
async fn a_trusted_receiver_is_remembered_with_its_certificate() {
    let authority = Authority::new();
    let (ground, _names) = ground(&authority).await;
    let acceptor = authority.server(&[NAME], Leaf::Good, &["http/1.1"]);
    let receiver = Receiver::start_tls(acceptor, [Step::Read, ok()]).await;
    let attempt = ground.deliver(post(&url(&receiver), "x"), LONG).await;
    assert_eq!(end_of(&attempt), "delivered", "{:?}", attempt.ended);
    let TlsFacts { version, cipher, alpn, certificate } = attempt.connection.unwrap().tls.unwrap();
    assert_eq!((version.as_str(), alpn.as_deref()), ("TLSv1.3", Some("http/1.1")));
    assert!(cipher.starts_with("TLS13_"), "{cipher}");
    let certificate = certificate.unwrap();
    assert_eq!((certificate.subject.as_str(), certificate.issuer.as_str()), ("CN=Test Leaf", "CN=Test Authority"));
    assert_eq!(certificate.not_before.unwrap().to_string(), "2020-01-01T00:00:00Z");
    assert_eq!(certificate.not_after.to_string(), "2099-01-01T00:00:00Z");
    assert_eq!((certificate.names, certificate.key.as_str()), (vec![NAME.to_owned()], "ECDSA P-256"));
    assert!(attempt.timings.dns.is_some() && attempt.timings.tls.is_some());
    let sent = String::from_utf8(receiver.received()[0].clone()).unwrap();
    assert!(sent.starts_with(&format!("POST / HTTP/1.1\r\nHost: {NAME}:{}\r\n", receiver.port())), "{sent}");
}

#[tokio::test]
async fn an_address_can_have_a_certificate_too() {
    let authority = Authority::new();
    let (ground, names) = ground(&authority).await;
    let acceptor = authority.server(&["127.0.0.1"], Leaf::Good, &[]);
    let receiver = Receiver::start_tls(acceptor, [Step::Read, ok()]).await;
    let attempt = ground.get(&format!("https://{}/", receiver.address())).await;
    assert_eq!(end_of(&attempt), "delivered", "{:?}", attempt.ended);
    assert_eq!(names.asked(), []);
}

#[tokio::test]
async fn a_certificate_that_does_not_hold_is_named_with_the_reason() {
    let authority = Authority::new();
    let stranger = Authority::named("Stranger");
    let (ground, _names) = ground(&authority).await;
    for (name, acceptor, reason) in [
        ("expired", authority.server(&[NAME], Leaf::Expired, &[]), "expired at 2021-01-01"),
        ("not yet valid", authority.server(&[NAME], Leaf::NotYet, &[]), "not valid yet"),
        ("for another name", authority.server(&["other.example.com"], Leaf::Good, &[]), "another name"),
        ("of an unknown authority", stranger.server(&[NAME], Leaf::Good, &[]), "not trusted"),
    ] {
        let receiver = Receiver::start_tls(acceptor, [Step::Read, ok()]).await;
        let attempt = ground.deliver(post(&url(&receiver), "secret"), LONG).await;
        assert_eq!(end_of(&attempt), "failed tls_certificate tls", "{name}");
        let message = attempt.ended.error.unwrap().message;
        assert!(message.contains(reason) && message.contains(NAME), "{name}: {message}");
        assert_eq!((receiver.requests(), attempt.sent_headers), (0, None), "{name}");
        // Who showed what stands in the record.
        let facts = attempt.connection.unwrap().tls.unwrap();
        let certificate = facts.certificate.unwrap();
        assert_eq!((facts.version.as_str(), facts.alpn), ("", None), "{name}");
        assert_eq!((certificate.subject.as_str(), certificate.key.as_str()), ("CN=Test Leaf", "ECDSA P-256"), "{name}");
        assert_eq!(certificate.names.len(), 1, "{name}");
        for shown in [&certificate.names[0], &certificate.issuer, &certificate.key] {
            assert!(message.contains(shown), "{name}: {message}");
        }
    }
}

#[tokio::test]
async fn a_receiver_that_wants_a_certificate_of_ours_is_told_apart_in_both_versions() {
    let authority = Authority::new();
    let (ground, _names) = ground(&authority).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let acceptor = authority.server_wanting_ours(NAME, version);
        let receiver = Receiver::start_tls(acceptor, [Step::Read, ok()]).await;
        let attempt = ground.deliver(post(&url(&receiver), "x"), LONG).await;
        assert_eq!(end_of(&attempt), "failed tls_handshake tls", "{version:?}: {:?}", attempt.ended);
        let error = attempt.ended.error.unwrap();
        assert!(error.message.contains("client certificate"), "{version:?}: {}", error.message);
        assert_eq!(error.processed.label(), "no");
        assert_eq!(receiver.requests(), 0);
    }
}

#[tokio::test]
async fn a_name_that_no_certificate_can_hold_is_told_before_anything_is_looked_up_or_opened() {
    let authority = Authority::new();
    let (ground, names) = ground(&authority).await;
    let receiver = Receiver::start([Step::Read, ok()]).await;
    let explainer = Explainer::new(ground.world.clone(), ground.deliverer.clone(), RedactKey::new(b"test"));
    let tenant = TenantId::new("acme");
    let hosts = [
        ("-a.example.com", "label -a begins or ends with a hyphen"),
        ("a-.example.com", "label a- begins or ends with a hyphen"),
        ("x.-.example.com", "label - begins or ends with a hyphen"),
    ];
    for (host, said) in hosts {
        let url = format!("https://{host}:{}/", receiver.port());
        let attempt = ground.get(&url).await;
        assert_eq!(end_of(&attempt), "failed tls_handshake tls", "{host}: {:?}", attempt.ended);
        let error = attempt.ended.error.unwrap();
        assert!(error.message.contains(host) && error.message.contains(said), "{}", error.message);
        assert_eq!(error.processed.label(), "no");
        let timings = attempt.timings;
        assert_eq!((timings.dns, timings.connect, timings.tls), (None, None, None), "{host}");
        assert_eq!(attempt.connection.and_then(|connection| connection.source), None, "{host}");
        let asker = Asker { tenant: &tenant, workflow: None };
        let explained = explainer.explain(asker, Method::Get, &url).await;
        assert_eq!(explained.refusal, Some(error), "{host}");
    }
    assert_eq!((names.asked().len(), receiver.peers().len()), (0, 0));
    // It is for certificates alone: without TLS such a host is reached.
    for (host, _) in hosts {
        let attempt = ground.get(&format!("http://{host}:{}/", receiver.port())).await;
        assert_eq!(end_of(&attempt), "delivered", "{host}: {:?}", attempt.ended);
    }
    // Certificates with underscores are met, and accepted.
    let acceptor = authority.server(&["_a.example.com"], Leaf::Good, &[]);
    let receiver = Receiver::start_tls(acceptor, [Step::Read, ok()]).await;
    let attempt = ground.get(&format!("https://_a.example.com:{}/", receiver.port())).await;
    assert_eq!(end_of(&attempt), "delivered", "{:?}", attempt.ended);
}

#[tokio::test]
async fn a_chain_of_look_alikes_is_refused_before_a_path_is_looked_for() {
    let ground = Ground::new();
    for count in [3, 20, 100] {
        let receiver = Receiver::start_tls(look_alike_server(count), [Step::Read, ok()]).await;
        let attempt = ground.get(&format!("https://{}/", receiver.address())).await;
        assert_eq!(end_of(&attempt), "failed tls_certificate tls", "{count}");
        // The verifier that looks for paths would say that the issuer is not trusted.
        let message = attempt.ended.error.unwrap().message;
        let bound = ["certificates of one authority", "certificates were shown, more than", "bytes of certificates"];
        assert!(bound.iter().any(|bound| message.contains(bound)), "{count}: {message}");
        assert_eq!(receiver.requests(), 0);
    }
    // As few as a chain may have are looked at as any other.
    let receiver = Receiver::start_tls(look_alike_server(2), [Step::Read, ok()]).await;
    let attempt = ground.get(&format!("https://{}/", receiver.address())).await;
    let message = attempt.ended.error.unwrap().message;
    assert!(message.contains("not trusted"), "{message}");
}

#[tokio::test]
async fn a_certificate_that_the_operator_named_is_trusted_by_itself() {
    for (what, names, until, trusted, end) in [
        ("as curl takes it", &["127.0.0.1"][..], (2099, 1, 1), true, "delivered"),
        ("not named", &["127.0.0.1"], (2099, 1, 1), false, "failed tls_certificate tls"),
        ("for another host", &["127.0.0.2"], (2099, 1, 1), true, "failed tls_certificate tls"),
        ("expired", &["127.0.0.1"], (2021, 1, 1), true, "failed tls_certificate tls"),
    ] {
        let (certificate, key) = self_signed(names, until);
        let plan = if trusted { Plan::new().trust_pem(&certificate.pem()) } else { Plan::new() };
        let receiver = Receiver::start_tls(server_of(vec![certificate.der().clone()], &key, &[]), [Step::Read, ok()]);
        let receiver = receiver.await;
        let attempt = plan.build().get(&format!("https://{}/", receiver.address())).await;
        assert_eq!(end_of(&attempt), end, "{what}: {:?}", attempt.ended);
    }
}

#[tokio::test]
async fn what_is_not_tls_gets_no_request() {
    let authority = Authority::new();
    let (ground, _names) = ground(&authority).await;
    // What our hello looks like to a server of another kind is not its subject: it answers, or it is gone.
    for (name, script, end, total) in [
        ("plain HTTP", vec![write("HTTP/1.1 400 Bad Request\r\n\r\n"), Step::Hold], "failed tls_handshake tls", LONG),
        ("garbage", vec![write("\u{7}garbage, and quite a lot of it"), Step::Hold], "failed tls_handshake tls", LONG),
        ("closed at once", vec![], "failed connection_closed tls", LONG),
        ("reset", vec![Step::Pause(Duration::from_millis(30)), Step::Reset], "failed connection_reset tls", LONG),
        ("silent", vec![Step::Hold], "failed timeout tls", SHORT),
        ("an alert", vec![write([0x15, 3, 3, 0, 2, 2, 40].to_vec()), Step::Hold], "failed tls_handshake tls", LONG),
        ("another", vec![write([0x15, 3, 3, 0, 2, 2, 70].to_vec()), Step::Hold], "failed tls_handshake tls", LONG),
    ] {
        let receiver = Receiver::start(script).await;
        let attempt = ground.deliver(get(&url(&receiver)), total).await;
        assert_eq!(end_of(&attempt), end, "{name}: {:?}", attempt.ended);
        assert_eq!(attempt.sent_headers, None, "{name}");
        for bytes in receiver.received() {
            assert!(bytes.is_empty() || bytes[0] == 0x16, "{name}: only a TLS hello may leave");
        }
    }
}

#[tokio::test]
async fn http_to_a_tls_port_is_a_protocol_error() {
    let authority = Authority::new();
    let (ground, _names) = ground(&authority).await;
    let receiver = Receiver::start_tls(authority.server(&[NAME], Leaf::Good, &[]), [Step::Read, ok()]).await;
    let attempt = ground.get(&receiver.url("/")).await;
    let code = attempt.ended.error.unwrap().code.label();
    // The server's alert is bytes that are not HTTP; it may be lost in the reset that follows.
    assert!(["protocol_error", "connection_reset", "connection_closed"].contains(&code), "{code}");
    assert_eq!(receiver.requests(), 0);
}

#[tokio::test]
async fn an_answer_that_ends_without_tls_saying_so_is_not_complete() {
    let authority = Authority::new();
    let (ground, _names) = ground(&authority).await;
    let acceptor = authority.server(&[NAME], Leaf::Good, &[]);
    // Reset: the connection ends under TLS, in the middle of a body that only its end would complete.
    let script =
        [Step::Read, write("HTTP/1.1 200 OK\r\n\r\nhalf"), Step::Pause(Duration::from_millis(50)), Step::Reset];
    let receiver = Receiver::start_tls(acceptor, script).await;
    let attempt = ground.get(&url(&receiver)).await;
    assert_eq!(end_of(&attempt), "failed connection_reset read");
}

#[tokio::test]
async fn sessions_are_resumed_and_never_for_another_tenant() {
    let authority = Authority::new();
    let (ground, _names) = ground(&authority).await;
    let acceptor = authority.server(&[NAME], Leaf::Good, &[]);
    let receiver = Receiver::start_tls(acceptor, [Step::Read, ok()]).await;
    for tenant in ["acme", "acme", "other"] {
        let attempt = ground.deliver_for(tenant, get(&url(&receiver)), LONG).await;
        assert_eq!(end_of(&attempt), "delivered");
        assert!(attempt.connection.unwrap().tls.unwrap().certificate.is_some());
    }
    let handshakes = receiver.handshakes();
    assert_eq!(handshakes, [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Full]);
}
