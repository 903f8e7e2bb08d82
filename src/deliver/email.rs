//! A message to the tenant's own address, handed to the operator's relay: one connection, one transaction, once.
//!
//! Which relay, who sends and who receives is the configuration's at this moment; of the send there is what stands in the
//! message alone. The relay is reached by the same dial as any destination, from the tenant's pool, over TLS or not at
//! all. What it answers, at any of its steps, is the send's answer; one recipient that it refuses is a refusal of the
//! whole, and nothing is sent. Not here: MIME ([`message`]) and the relay's language ([`smtp`]).

pub mod message;
pub mod smtp;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::FutureExt as _;
use http::{HeaderName, HeaderValue};

use self::message::Written;
use self::smtp::{Dialogue, Reply, Stop};
use super::{Deliverer, Found, Journey};
use crate::clock;
use crate::config::{EmailSettings, Login};
use crate::dial::tls::Offer;
use crate::dial::wire::{Io, Meter};
use crate::outcome::words::{MailCause, PeerEnd, SmtpStep};
use crate::outcome::{Code, Failure, Phase, tame};
use crate::policy::{Asker, Denial, Errand, Purpose, Scheme};
use crate::redact::{RawResponse, sha256};
use crate::send::{Email, HeaderLines, SendId};

/// How far a message has come. It lives outside of the work, as all of a journey does.
pub(super) struct Handing {
    /// What is waited for, or was answered last.
    step: SmtpStep,
    /// The end of the message may have left.
    over: bool,
    /// The headers that left, where any of the message did.
    lines: Option<HeaderLines>,
    reply: Option<RawResponse>,
}

impl Handing {
    fn begin() -> Self {
        Self { step: SmtpStep::Greeting, over: false, lines: None, reply: None }
    }

    /// What of a journey's end is its own: the headers that left, and what was answered.
    pub(super) fn end(self) -> (Option<HeaderLines>, Option<RawResponse>) {
        (self.lines, self.reply)
    }

    pub(super) fn ran_out(&self, total: Duration, host: &str) -> Failure {
        MailCause::Silent { total, step: self.step, over: self.over }.failure(host)
    }
}

impl Deliverer {
    /// The code that the relay answered.
    pub(super) async fn email(
        &self,
        asker: Asker<'_>,
        id: SendId,
        email: &Email,
        journey: &mut Journey,
    ) -> Result<u16, Failure> {
        let (settings, purpose) = (self.world.settings(), Purpose::Relay);
        let gone = |what: &str| Failure::from(Denial::new(Code::PolicyNotAllowed, what));
        let Some(set_up) = &settings.config.destinations.email else {
            return Err(gone("mail is not set up on this node any more: ask the operator for [destination.email]"));
        };
        let tenant = settings.config.tenant(asker.tenant);
        let Some(mail_to) = tenant.and_then(|tenant| tenant.mail.as_ref()) else {
            return Err(gone(
                "this tenant has no mail address any more: ask the operator to give the [[tenant]] its email",
            ));
        };
        let relay = &set_up.relay;
        journey.goes_to(relay);
        let judged_by = self.world.in_force();
        if let Some(denial) = self.world.judge_endpoint(asker, relay, purpose) {
            return Err(denial.into());
        }
        let (letter, from, mail_to, at) = (email.letter(), set_up.from.clone(), mail_to.clone(), clock::wall());
        let write = move || message::write(letter, id, from, &mail_to, at);
        let written = self.apart.on(email.content().len(), asker.tenant, write).await;
        let Some(written) = written else { return Err(MailCause::NotWritable.failure(&relay.host.text())) };

        let mut in_flight = self.dialer.metrics().in_flight();
        journey.watch.enter(Phase::Dns);
        let look = self.dialer.look(asker, relay, &settings, purpose, &journey.inquiry).await;
        let Found { aliases, addresses, candidates } = journey.looked(look)?;
        let errand = Errand { tenant: asker.tenant.clone(), destination: relay.clone(), purpose };
        let connected = self.connect(&errand, &candidates, journey, &mut in_flight).await?;
        if !self.world.in_force().is(&judged_by) {
            let remote = connected.remote;
            self.dialer.judge_endpoint_again(asker, relay, &aliases, &addresses, purpose, remote)?;
        }
        self.dialer.metrics().of(&connected.source).fresh.increment(1);

        let host = relay.host.text();
        let meter = connected.wire.meter().clone();
        let ours = named(connected.source.public());
        journey.handing = Some(Handing::begin());
        let wire = match relay.scheme {
            Scheme::Smtp => {
                journey.watch.enter(Phase::Write);
                let mut talk = Talk { dialogue: Dialogue::new(connected.wire), meter: &meter, host: &host, set_up };
                match talk.turn_to_tls(&ours, journey).await {
                    Ok(()) => {}
                    Err(Out::Failed(failure)) => return Err(failure),
                    Err(Out::Refused(reply)) => return Ok(talk.answered(reply, journey)),
                }
                match talk.dialogue.into_io() {
                    Some(wire) => wire,
                    // What was sent in the clear would else be read as if TLS had brought it.
                    None => {
                        let why = "sent more than its answer";
                        return Err(MailCause::BadReply { step: SmtpStep::StartTls, why, over: false }.failure(&host));
                    }
                }
            }
            _ => connected.wire,
        };
        let (stream, _) = self.shake_hands(asker.tenant, &relay.host, Offer::Nothing, wire, journey).await?;
        journey.watch.enter(Phase::Write);
        let mut talk = Talk { dialogue: Dialogue::new(stream), meter: &meter, host: &host, set_up };
        let greeted = relay.scheme == Scheme::Smtp;
        match talk.hand_over(&ours, greeted, written, journey).await {
            Ok(reply) | Err(Out::Refused(reply)) => Ok(talk.answered(reply, journey)),
            Err(Out::Failed(failure)) => Err(failure),
        }
    }
}

/// How this node calls itself: by the address that the relay sees (RFC 5321 section 4.1.3).
fn named(public: IpAddr) -> String {
    match public {
        IpAddr::V4(ip) => format!("[{ip}]"),
        IpAddr::V6(ip) => format!("[IPv6:{ip}]"),
    }
}

const MISPLACED: Stop = Stop::BadReply("answered with a code that has no place");

/// Why a dialogue does not go on.
enum Out {
    Refused(Reply),
    Failed(Failure),
}

/// A dialogue with the relay, and who holds it.
struct Talk<'a, S> {
    dialogue: Dialogue<S>,
    meter: &'a Arc<Meter>,
    host: &'a str,
    set_up: &'a EmailSettings,
}

impl<S: Io> Talk<'_, S> {
    /// Up to the moment at which the relay waits for a handshake.
    async fn turn_to_tls(&mut self, ours: &str, journey: &mut Journey) -> Result<(), Out> {
        self.ask(SmtpStep::Greeting, None, journey).await?;
        let offered = self.ask(SmtpStep::Ehlo, Some(format!("EHLO {ours}")), journey).await?;
        if !offered.offers("STARTTLS") {
            return Err(Out::Failed(MailCause::NoStartTls.failure(self.host)));
        }
        self.ask(SmtpStep::StartTls, Some("STARTTLS".to_owned()), journey).await.map(|_| ())
    }

    /// Everything else, over TLS. `greeted`: the relay has spoken before.
    async fn hand_over(
        &mut self,
        ours: &str,
        greeted: bool,
        written: Written,
        journey: &mut Journey,
    ) -> Result<Reply, Out> {
        if !greeted {
            self.ask(SmtpStep::Greeting, None, journey).await?;
        }
        let offered = self.ask(SmtpStep::Ehlo, Some(format!("EHLO {ours}")), journey).await?;
        if let Some(login) = &self.set_up.login {
            self.log_in(login, &offered, journey).await?;
        }
        let Written { content, from, to, lines } = written;
        let size = if offered.offers("SIZE") { format!(" SIZE={}", content.len()) } else { String::new() };
        self.ask(SmtpStep::Mail, Some(format!("MAIL FROM:<{from}>{size}")), journey).await?;
        for recipient in to {
            self.ask(SmtpStep::Rcpt, Some(format!("RCPT TO:<{recipient}>")), journey).await?;
        }
        let go_on = self.ask(SmtpStep::Data, Some("DATA".to_owned()), journey).await?;
        if go_on.code != 354 {
            return Err(self.failed(MISPLACED, journey));
        }
        let handing = journey.handing.get_or_insert_with(Handing::begin);
        (handing.step, handing.lines) = (SmtpStep::Message, Some(lines));
        if let Err(stop) = self.dialogue.write(&content).await {
            return Err(self.failed(stop, journey));
        }
        // A reply that is there by now may refuse the message, and cannot take it: it has no end yet.
        if self.dialogue.has_spoken() {
            self.ask(SmtpStep::Message, None, journey).await?;
            return Err(self.failed(MISPLACED, journey));
        }
        // From here on the relay may have all of it.
        journey.handing.get_or_insert_with(Handing::begin).over = true;
        journey.watch.enter(Phase::Wait);
        if let Err(stop) = self.dialogue.write(b".\r\n").await {
            return Err(self.failed(stop, journey));
        }
        let reply = self.ask(SmtpStep::Message, None, journey).await;
        journey.watch.leave();
        // Whether it hears that changes nothing.
        _ = self.dialogue.write(b"QUIT\r\n").now_or_never();
        reply
    }

    /// RFC 4954, over TLS. PLAIN where there is that, else LOGIN.
    async fn log_in(&mut self, login: &Login, offered: &Reply, journey: &mut Journey) -> Result<(), Out> {
        let (user, password) = (&login.user, login.password.expose());
        if offered.offers_auth("PLAIN") {
            let both = STANDARD.encode(format!("\0{user}\0{password}"));
            self.expect(235, format!("AUTH PLAIN {both}"), journey).await
        } else if offered.offers_auth("LOGIN") {
            self.expect(334, "AUTH LOGIN".to_owned(), journey).await?;
            self.expect(334, STANDARD.encode(user), journey).await?;
            self.expect(235, STANDARD.encode(password), journey).await
        } else {
            Err(Out::Failed(MailCause::NoWayToLogIn.failure(self.host)))
        }
    }

    async fn expect(&mut self, code: u16, line: String, journey: &mut Journey) -> Result<(), Out> {
        let reply = self.ask(SmtpStep::Auth, Some(line), journey).await?;
        if reply.code == code {
            return Ok(());
        }
        Err(self.failed(MISPLACED, journey))
    }

    /// One command, where there is one, and its reply.
    async fn ask(&mut self, step: SmtpStep, line: Option<String>, journey: &mut Journey) -> Result<Reply, Out> {
        journey.handing.get_or_insert_with(Handing::begin).step = step;
        let reply = match line {
            Some(line) => self.dialogue.command(&line).await,
            None => self.dialogue.reply().await,
        };
        match reply {
            Ok(reply) if reply.is_refusal() => Err(Out::Refused(reply)),
            // Those two go on in between.
            Ok(reply) if reply.is_done() || matches!(step, SmtpStep::Auth | SmtpStep::Data) => Ok(reply),
            Ok(_) => Err(self.failed(MISPLACED, journey)),
            Err(stop) => Err(self.failed(stop, journey)),
        }
    }

    fn failed(&self, stop: Stop, journey: &mut Journey) -> Out {
        let Handing { step, over, .. } = *journey.handing.get_or_insert_with(Handing::begin);
        let cause = match stop {
            Stop::Ended => {
                // TLS has an end of its own, before the socket's.
                let end = self.meter.peer_end().unwrap_or(PeerEnd::Closed);
                MailCause::Ended { end, step, over }
            }
            Stop::BadReply(why) => MailCause::BadReply { step, why, over },
        };
        Out::Failed(cause.failure(self.host))
    }

    /// What the relay said last is the send's answer.
    fn answered(&self, reply: Reply, journey: &mut Journey) -> u16 {
        let code = reply.code;
        let handing = journey.handing.get_or_insert_with(Handing::begin);
        if handing.step == SmtpStep::Auth {
            // Every message ends so until the operator has done something, and no author can.
            tracing::warn!(
                code,
                "the relay refused this node's login: look at `[destination.email]` user and password_file"
            );
        }
        let said = if handing.step == SmtpStep::Auth { String::new() } else { self.without_secrets(reply.text()) };
        let command = (HeaderName::from_static("command"), HeaderValue::from_static(handing.step.label()));
        let body = bytes::Bytes::from(said);
        handing.reply = Some(RawResponse {
            status: code,
            version: "SMTP",
            headers: vec![command],
            body_total: body.len() as u64,
            body_truncated: false,
            body_sha256: sha256(&body),
            body,
            declared: None,
        });
        journey.complete = true;
        code
    }

    /// Nothing of what it says, where the password is in it in any form that it was given.
    fn without_secrets(&self, said: String) -> String {
        let leaks = self.set_up.login.as_ref().is_some_and(|Login { user, password }| {
            let password = password.expose();
            let forms =
                [password.to_owned(), STANDARD.encode(password), STANDARD.encode(format!("\0{user}\0{password}"))];
            forms.iter().any(|form| said.contains(form.as_str()))
        });
        if leaks { "[redacted]".to_owned() } else { tame_lines(&said) }
    }
}

/// Each line without what would steer a terminal.
fn tame_lines(said: &str) -> String {
    said.lines().map(|line| tame(line, crate::limits::SMTP_LINE_BYTES_MAX)).collect::<Vec<_>>().join("\n")
}
