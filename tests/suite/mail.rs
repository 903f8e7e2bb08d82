//! Messages over a real relay: what it is handed, what it may answer, and what it may do instead.

use std::time::Duration;

use egressd::deliver::Attempt;
use egressd::outcome::Processed;
use egressd::policy::{SelfAddrs, Suspensions};
use egressd::send::email::Letter;
use egressd::send::{Context, Email, SendSpec, TenantId, To};
use futures_util::future::join_all;

use crate::support::ground::{Ground, LONG, Plan, SHORT, SOURCE, end_of, get};
use crate::support::receiver::{Receiver, Step, ok};
use crate::support::smtp::{At, EXTENSIONS, Relay, Twist};
use crate::support::tls::Authority;

const PASSWORD: &str = "s3cret \"pass\" w\u{f6}rd";
/// What stands in AUTH PLAIN, and in the second line of AUTH LOGIN.
const PLAIN: &str = "AGVncmVzc2QAczNjcmV0ICJwYXNzIiB3w7ZyZA==";
const LOGIN: &str = "czNjcmV0ICJwYXNzIiB3w7ZyZA==";

/// Mail by this relay, and a login where one is wanted.
fn plan(relay: &Relay, scheme: &str, login: bool) -> Plan {
    let mut plan = Plan::new().trust(&relay.authority);
    std::fs::write(plan.directory.path().join("password"), format!("{PASSWORD}\n")).expect("a writable directory");
    let login = if login { "user = \"egressd\"\npassword_file = \"password\"\n" } else { "" };
    plan.more = format!(
        "[destination.email]\nrelay = \"{}\"\nfrom = \"Workflows <notifications@example.net>\"\n{login}\
         [[tenant]]\nid = \"acme\"\nemail = \"owner@acme.example\"\ncollaborators = [\"a@acme.example\", \"b@acme.example\"]\n",
        relay.url(scheme)
    );
    plan
}

fn letter(text: &str) -> Letter {
    Letter { subject: "Order 7".to_owned(), text: Some(text.to_owned()), html: None, include_collaborators: false }
}

fn spec(ground: &Ground, letter: Letter) -> SendSpec {
    let relay = ground.world.config().destinations.email.as_ref().expect("set up").relay.clone();
    SendSpec { to: To::Email(Email::new(letter, relay)), context: Context::default(), expires_in: None }
}

async fn send(ground: &Ground, letter: Letter, total: Duration) -> Attempt {
    ground.deliver(spec(ground, letter), total).await
}

/// The outcome in words, with the code and the command that it answers where there is a reply.
fn told(attempt: &Attempt) -> String {
    let reply = attempt.response.as_ref().map(|reply| {
        let command = reply.headers.iter().find(|(name, _)| name == "command").expect("what was answered");
        format!(" {} {}", reply.status, command.1.to_str().expect("text"))
    });
    let processed = attempt.ended.error.as_ref().map(|error| format!(" {}", error.processed));
    end_of(attempt) + &reply.unwrap_or_default() + &processed.unwrap_or_default()
}

#[tokio::test]
async fn a_message_is_handed_over_once_from_a_published_address_over_tls_alone() {
    for (scheme, login) in [("smtps", false), ("smtps", true), ("smtp", false), ("smtp", true)] {
        let relay = Relay::start(scheme == "smtps", EXTENSIONS, Vec::new()).await;
        let ground = plan(&relay, scheme, login).build();
        let attempt = send(&ground, letter("One line.\n.\nAnd another."), LONG).await;
        assert_eq!(told(&attempt), "delivered 250 message", "{scheme} {login}: {:?}", attempt.ended);

        let seen = relay.seen();
        assert_eq!(seen.peers.iter().map(ToString::to_string).collect::<Vec<_>>(), [SOURCE]);
        let (clear, over_tls): (Vec<_>, Vec<_>) = seen.commands.iter().partition(|(tls, _)| !tls);
        let clear: Vec<_> = clear.iter().map(|(_, command)| command.as_str()).collect();
        let ours = format!("EHLO [{SOURCE}]");
        assert_eq!(clear, if scheme == "smtp" { vec![ours.as_str(), "STARTTLS"] } else { Vec::new() });
        let auth = format!("AUTH PLAIN {PLAIN}");
        let size = format!("MAIL FROM:<notifications@example.net> SIZE={}", seen.messages[0].len());
        let over_tls: Vec<_> = over_tls.iter().map(|(_, command)| command.as_str()).collect();
        let mut wanted = vec![ours.as_str(), size.as_str(), "RCPT TO:<owner@acme.example>", "DATA"];
        if login {
            wanted.insert(1, &auth);
        }
        // QUIT is said and not waited for.
        assert_eq!(over_tls[..wanted.len()], wanted, "{scheme}");

        let [message] = &seen.messages[..] else { panic!("{} messages", seen.messages.len()) };
        for part in
            ["To: owner@acme.example\r\n", "Subject: Order 7\r\n", "\r\n\r\nOne line.\r\n..\r\nAnd another.\r\n"]
        {
            assert!(message.contains(part), "{part}: {message}");
        }
        let reply = attempt.response.expect("a reply");
        assert_eq!((reply.version, &reply.body[..]), ("SMTP", &b"2.0.0 queued as 4D3F"[..]));
        let sent = attempt.sent_headers.expect("it left");
        let named = |name: &str| sent.iter().find(|(known, _)| known == name).map(|(_, value)| value.to_str().unwrap());
        assert_eq!((named("to"), named("cc"), named("subject")), (Some("owner@acme.example"), None, None));
        let id = named("message-id").expect("an id");
        assert!(id.ends_with("@example.net>") && message.contains(id), "{id}");
        let connection = attempt.connection.expect("a connection");
        assert_eq!(connection.remote, Some(relay.address));
        assert!(connection.tls.is_some_and(|tls| tls.version == "TLSv1.3" && tls.alpn.is_none()));
        let timings = attempt.timings;
        let all = [timings.connect, timings.tls, timings.write, timings.wait, timings.total];
        assert!(all.iter().all(Option::is_some), "{timings:?}");
    }
}

#[tokio::test]
async fn collaborators_get_it_where_that_is_asked_for_and_a_relay_that_knows_login_alone_is_logged_in_to() {
    let relay = Relay::start(true, &["AUTH LOGIN"], Vec::new()).await;
    let ground = plan(&relay, "smtps", true).build();
    let large = "0123456789abcdef".repeat(50_000);
    let attempt = send(&ground, Letter { include_collaborators: true, ..letter(&large) }, LONG).await;
    assert_eq!(told(&attempt), "delivered 250 message", "{:?}", attempt.ended);
    let seen = relay.seen();
    let commands: Vec<_> = seen.commands.iter().map(|(_, command)| command.as_str()).collect();
    let wanted = [
        "AUTH LOGIN",
        "ZWdyZXNzZA==",
        LOGIN,
        "MAIL FROM:<notifications@example.net>",
        "RCPT TO:<owner@acme.example>",
        "RCPT TO:<a@acme.example>",
        "RCPT TO:<b@acme.example>",
        "DATA",
    ];
    assert_eq!(commands[1..=wanted.len()], wanted);
    assert!(seen.messages[0].contains("Cc: a@acme.example, b@acme.example\r\n"));
    assert_eq!(seen.messages[0].replace("=\r\n", "").matches("0123456789abcdef").count(), 50_000);
}

#[tokio::test]
async fn whatever_the_relay_refuses_is_its_answer_and_nothing_is_sent_behind_it() {
    use At::{Auth, Data, Ehlo, EhloInTls, Greeting, Mail, Message, Rcpt, StartTls};
    for (scheme, at, says, wanted) in [
        ("smtps", Greeting, "554 5.3.2 no\r\n", "rejected 554 greeting"),
        ("smtps", Greeting, "421 4.7.0 too many connections\r\n", "rejected 421 greeting"),
        ("smtps", EhloInTls, "550 no\r\n", "rejected 550 EHLO"),
        ("smtps", Auth, "535 5.7.8 bad\r\n", "rejected 535 AUTH"),
        ("smtps", Auth, "454 4.7.0 later\r\n", "rejected 454 AUTH"),
        ("smtps", Mail, "452 4.3.1 full\r\n", "rejected 452 MAIL FROM"),
        ("smtps", Mail, "552-5.3.4 too\r\n552 5.3.4 large\r\n", "rejected 552 MAIL FROM"),
        ("smtps", Rcpt, "550 5.1.1 unknown\r\n", "rejected 550 RCPT TO"),
        ("smtps", Rcpt, "450 4.2.0 greylisted\r\n", "rejected 450 RCPT TO"),
        ("smtps", Data, "554 no\r\n", "rejected 554 DATA"),
        ("smtps", Message, "554 5.6.0 spam\r\n", "rejected 554 message"),
        ("smtps", Message, "451 4.3.0 later\r\n", "rejected 451 message"),
        ("smtp", Greeting, "554 no\r\n", "rejected 554 greeting"),
        ("smtp", Ehlo, "502 no\r\n", "rejected 502 EHLO"),
        ("smtp", StartTls, "454 4.7.0 no TLS now\r\n", "rejected 454 STARTTLS"),
        ("smtp", EhloInTls, "550 no\r\n", "rejected 550 EHLO"),
    ] {
        let relay = Relay::start(scheme == "smtps", EXTENSIONS, vec![(at, Twist::Says(says))]).await;
        let ground = plan(&relay, scheme, true).build();
        let attempt = send(&ground, letter("x"), LONG).await;
        assert_eq!(told(&attempt), wanted, "{at:?}: {:?}", attempt.ended);
        assert_eq!(relay.seen().messages.len(), usize::from(at == Message), "{at:?}");
        assert_eq!(attempt.sent_headers.is_some(), at == Message, "{at:?}");
        let said = attempt.response.expect("a reply").body;
        let said = std::str::from_utf8(&said).expect("text");
        // What is said of a login is for nobody's record.
        let words = if at == Auth { "" } else { says };
        let words: Vec<_> = words.lines().map(|line| &line[4..]).collect();
        assert_eq!(said, words.join("\n"), "{at:?}");
        assert_eq!(relay.seen().peers.len(), 1, "once");
    }
}

#[tokio::test]
async fn whatever_the_relay_does_instead_ends_in_time_and_says_whether_it_may_have_the_message() {
    use At::{Auth, Content, Data, Ehlo, EhloInTls, Greeting, Mail, Message, Rcpt, StartTls};
    use Twist::{Cut, Endless, Says, Silent};
    let protocol = "failed protocol_error write no";
    let mut rows: Vec<(&str, At, Twist, &str)> = Vec::new();
    for at in [Greeting, EhloInTls, Auth, Mail, Rcpt, Data] {
        rows.push(("smtps", at, Silent, "failed timeout write no"));
        rows.push(("smtps", at, Cut, "failed connection_closed write no"));
        rows.push(("smtps", at, Endless("x"), protocol));
        rows.push(("smtps", at, Endless("250-x\r\n"), protocol));
        rows.push(("smtps", at, Says("HTTP/1.1 400 Bad Request\r\n"), protocol));
    }
    for at in [Greeting, Ehlo, StartTls] {
        rows.push(("smtp", at, Silent, "failed timeout write no"));
        rows.push(("smtp", at, Cut, "failed connection_closed write no"));
        rows.push(("smtp", at, Endless("220-"), protocol));
    }
    rows.extend([
        ("smtps", Message, Silent, "failed timeout wait maybe"),
        ("smtps", Message, Cut, "failed connection_closed wait maybe"),
        ("smtps", Message, Endless("x"), "failed protocol_error wait maybe"),
        ("smtps", Message, Endless("250-\r\n"), "failed protocol_error wait maybe"),
        ("smtps", Message, Says("354 more\r\n"), "failed protocol_error wait maybe"),
        ("smtps", Content, Cut, "failed connection_closed wait maybe"),
        ("smtps", Data, Says("250 what for?\r\n"), protocol),
        // Whoever answers a message that has no end yet has not taken it.
        ("smtps", Data, Says("354 go\r\n250 2.0.0 queued\r\n"), protocol),
        ("smtps", Mail, Says("354 go on\r\n"), protocol),
        ("smtps", Auth, Says("334 more\r\n"), protocol),
        ("smtps", Rcpt, Says("250 one\r\n250 two\r\n"), protocol),
        ("smtp", Ehlo, Says("250-relay\r\n250 SIZE 1\r\n"), "failed tls_handshake tls no"),
        // An answer to what comes later, in the clear: whoever reads on over TLS would take it for the relay's.
        ("smtp", StartTls, Says("220 go\r\n250 STARTTLS\r\n"), protocol),
        ("smtp", StartTls, Says("220 go\r\nnot TLS"), protocol),
    ]);
    // Those that only the deadline ends, beside one another.
    let each = rows.into_iter().map(|(scheme, at, twist, wanted)| async move {
        let mut within = if matches!(twist, Silent) { SHORT } else { LONG };
        let (relay, attempt, ended) = loop {
            let relay = Relay::start(scheme == "smtps", EXTENSIONS, vec![(at, twist.clone())]).await;
            let ground = plan(&relay, scheme, true).build();
            let attempt = send(&ground, letter("x"), within).await;
            // Of a connection that is cut, a write may find out before the read does.
            let ended = told(&attempt).replace("connection_reset", "connection_closed");
            if ended == wanted || within >= LONG {
                break (relay, attempt, ended);
            }
            // A machine that is busy may not come as far as the silence within that.
            within *= 4;
        };
        assert_eq!(ended, wanted, "{at:?} {twist:?}: {:?}", attempt.ended);
        let in_full_but_its_end = matches!(&twist, Says(said) if said.contains("queued"));
        let shown = ended.ends_with("maybe") || in_full_but_its_end;
        assert_eq!(attempt.sent_headers.is_some(), shown, "{at:?} {twist:?}");
        assert_eq!(relay.seen().peers.len(), 1, "once: {at:?} {twist:?}");
    });
    join_all(each).await;
}

#[tokio::test]
async fn a_relay_without_a_way_to_log_in_and_one_that_nobody_vouches_for_get_nothing() {
    let relay = Relay::start(true, &["SIZE 1000", "AUTH CRAM-MD5"], Vec::new()).await;
    let attempt = send(&plan(&relay, "smtps", true).build(), letter("x"), LONG).await;
    assert_eq!(told(&attempt), "failed protocol_error write no");
    assert!(relay.seen().commands.iter().all(|(_, command)| command.starts_with("EHLO")), "{:?}", relay.seen());

    for scheme in ["smtps", "smtp"] {
        let relay = Relay::start(scheme == "smtps", EXTENSIONS, Vec::new()).await;
        let ground = plan(&relay, scheme, true).trust(&Authority::new()).build();
        let attempt = send(&ground, letter("x"), LONG).await;
        assert_eq!(told(&attempt), "failed tls_certificate tls no", "{:?}", attempt.ended);
        assert!(relay.seen().commands.iter().all(|(tls, _)| !tls));
        assert!(attempt.connection.and_then(|connection| connection.tls).is_some(), "what it showed is told");
    }
}

#[tokio::test]
async fn a_relay_that_repeats_the_password_is_not_quoted() {
    const ECHO: &str = "550 5.1.1 AGVncmVzc2QAczNjcmV0ICJwYXNzIiB3w7ZyZA== is no user\r\n";
    const WORD: &str = "550 5.1.1 s3cret \"pass\" w\u{f6}rd\r\n";
    const HALF: &str = "550 5.1.1 czNjcmV0ICJwYXNzIiB3w7ZyZA==\r\n";
    for (at, says, shown) in [
        (At::Auth, WORD, ""),
        (At::Rcpt, ECHO, "[redacted]"),
        (At::Message, WORD, "[redacted]"),
        (At::Mail, HALF, "[redacted]"),
    ] {
        let relay = Relay::tls(vec![(at, Twist::Says(says))]).await;
        let attempt = send(&plan(&relay, "smtps", true).build(), letter("x"), LONG).await;
        assert_eq!(attempt.response.map(|reply| reply.body).as_deref(), Some(shown.as_bytes()), "{at:?}");
    }
}

#[tokio::test]
async fn the_relay_is_judged_as_what_the_operator_has_configured_and_opens_nothing_to_requests() {
    let exception = |more: &str| {
        format!("[[policy.exception]]\nnetworks = [\"127.0.0.0/8\"]\nreason = \"the relay of this host\"\n{more}")
    };
    for (opened, mail, request) in [
        (String::new(), "blocked policy_address no", "blocked policy_address"),
        (exception(""), "delivered 250 message", "delivered"),
        (exception("destinations = [\"email\"]\n"), "delivered 250 message", "blocked policy_address"),
        (exception("destinations = [\"http\"]\n"), "blocked policy_address no", "delivered"),
        (exception("destinations = [\"http\", \"email\"]\n"), "delivered 250 message", "delivered"),
        // Opened for a tenant, it is not opened for the relay, which is nobody's.
        (exception("tenants = [\"acme\"]\n"), "blocked policy_address no", "delivered"),
    ] {
        let (relay, receiver) = (Relay::tls(Vec::new()).await, Receiver::start([Step::Read, ok()]).await);
        let mut plan = plan(&relay, "smtps", false);
        plan.opened.clear();
        plan.more += &opened;
        // What listens on this host may be it, and no tenant's lists count for it.
        plan.more = plan.more.replace("id = \"acme\"\n", "id = \"acme\"\nallow_hosts = [\"127.0.0.1\"]\n");
        plan.ours = SelfAddrs { listeners: vec![relay.address], ..SelfAddrs::default() };
        let ground = plan.build();
        assert_eq!(told(&send(&ground, letter("x"), LONG).await), mail, "{opened}");
        assert_eq!(end_of(&ground.deliver(get(&receiver.url("/")), LONG).await), request, "{opened}");
    }
}

#[tokio::test]
async fn lists_of_a_tenant_are_not_for_the_relay_and_who_is_stopped_sends_no_mail() {
    let relay = Relay::tls(Vec::new()).await;
    let mut plan = plan(&relay, "smtps", false);
    plan.more = plan.more.replace("id = \"acme\"\n", "id = \"acme\"\nallow_hosts = [\"a.example.com\"]\n");
    let ground = plan.build();
    assert_eq!(told(&send(&ground, letter("x"), LONG).await), "delivered 250 message");

    let mut of_tenant = Suspensions::default();
    of_tenant.tenants.insert(TenantId::new("acme"), "spam".into());
    let mut of_host = Suspensions::default();
    of_host.stop_host("127.0.0.1", "it loops".into());
    for stopped in [of_tenant, of_host] {
        ground.world.set_suspensions(stopped);
        assert_eq!(told(&send(&ground, letter("x"), LONG).await), "blocked suspended no");
    }
    assert_eq!(relay.seen().messages.len(), 1);
}

#[tokio::test]
async fn what_was_accepted_while_mail_was_set_up_is_not_made_without_it() {
    let relay = Relay::tls(Vec::new()).await;
    let ground = plan(&relay, "smtps", false).build();
    let accepted = spec(&ground, letter("x"));
    let other = ground.deliver_for("other", accepted.clone(), LONG).await;
    assert_eq!(told(&other), "blocked policy_not_allowed no", "a tenant without an address");

    let without = Plan::new();
    ground.world.reload(without.config(), &Default::default());
    let attempt = ground.deliver(accepted, LONG).await;
    assert_eq!(told(&attempt), "blocked policy_not_allowed no");
    let error = attempt.ended.error.expect("a reason");
    assert!(error.message.contains("ask the operator") && error.processed == Processed::No, "{}", error.message);
    assert_eq!(relay.seen().peers.len(), 0);
}
