//! The rules for every message, over a row for each cause and each of its forms.

mod rows;

use std::collections::HashSet;

use self::rows::{HOST, certificate, table};
use super::name::Unanswered;
use super::tls::{CertificateFault, ChainFault};
use super::*;
use crate::outcome::{Code, Phase, Processed, Said};

#[test]
fn every_cause_has_its_code_phase_what_is_known_and_words() {
    for (cause, named, says) in table(&certificate()) {
        let failure = cause.failure(HOST);
        let phase = failure.phase.map_or("none", Phase::label);
        assert_eq!(format!("{} {phase} {}", failure.code, failure.processed), named, "{cause:?}");
        for part in says {
            assert!(failure.message.contains(part), "{part}: {}", failure.message);
        }
    }
}

/// The name of a value's variant, and all of their names. A variant that is missing from the list does not compile.
macro_rules! variants {
    ($name:ident($of:ident) = $($variant:ident),+ $(,)?) => {
        #[allow(elided_lifetimes_in_paths, reason = "some of them have none")]
        mod $name {
            use super::*;

            pub const ALL: &[&str] = &[$(concat!(stringify!($of), "::", stringify!($variant))),+];

            pub fn of(value: &$of) -> &'static str {
                match value { $($of::$variant { .. } => concat!(stringify!($of), "::", stringify!($variant))),+ }
            }
        }
    };
}

variants!(
    unmade(UnmadeCause) = Denied,
    Suspended,
    Expired,
    Discarded,
    Interrupted,
    Doubted,
    Restored,
    Unreadable,
    UnreadableSince,
    Damaged,
    NoCredentials,
    Moved,
    Defect
);
variants!(
    name(NameCause) = NoName,
    Gone,
    Empty,
    TooManyAliases,
    Failed,
    OutOfTime,
    NoTurn,
    OutOfReach,
    NotOfThisSource
);
variants!(unanswered(Unanswered) = Silent, Refusal, Lame, Garbage, Truncated, Unreachable);
variants!(
    connect(ConnectCause) = NoSourceOfFamily,
    NoSource,
    NoPort,
    Silent,
    Refused,
    Reset,
    Unreachable,
    NetworkUnreachable,
    LedElsewhere,
    JudgedForAnother,
    NoSocket,
);
variants!(
    tls(TlsCause) = NoName,
    OutOfTime,
    Gone,
    NotOffered,
    NoCertificate,
    Certificate,
    NotTls,
    OldVersion,
    NoProtocol,
    Incompatible,
    NothingInCommon,
    NameNotServed,
    ItsFault,
    AccessDenied,
    WantsOurs,
    Ended,
    Failed,
    EndedLater,
    BrokenLater,
);
variants!(
    fault(CertificateFault) = Expired,
    NotValidYet,
    OtherName,
    UnknownIssuer,
    Revoked,
    WeakKey,
    BadSignature,
    SignedWith,
    NotForServers,
    CriticalExtension,
    BadEncoding,
    Chain,
    Authority,
    BreaksRule,
    Other,
);
variants!(chain(ChainFault) = TooMany, TooLarge, CertificateTooLarge, LookAlikes);
variants!(
    exchange(ExchangeCause) = NotWritable,
    ClosedUnwritten,
    Unasked,
    NoHttp2,
    NotTaken,
    NoAnswer,
    HalfAnswer,
    Unanswered,
    CutOff,
    CutWithoutNotice,
    WrongLength,
    NotHttp,
    Transaction,
    NoProof,
    BadLine,
    BadChunk,
    HeadersTooLarge,
    TooManyInformational,
    TooManyBytes,
    TooManyPieces,
    Switched,
    StreamRefused,
    LeftOut,
    Http1Required,
    StreamEnded,
    Broken,
);
variants!(unended(HowUnended) = Late, Ended, Unreadable);
variants!(mail(MailCause) = NoStartTls, NoWayToLogIn, Ended, BadReply, Silent, NotWritable);
variants!(end(PeerEnd) = Closed, Reset, Lost);

#[test]
fn every_cause_and_every_kind_of_one_has_a_row() {
    let mut seen: HashSet<&str> = HashSet::new();
    let mut codes: HashSet<Code> = HashSet::new();
    let certificate = certificate();
    for (cause, ..) in table(&certificate) {
        codes.insert(cause.failure(HOST).code);
        match &cause {
            Cause::Unmade(cause) => {
                seen.insert(unmade::of(cause));
            }
            Cause::Name(cause) => {
                seen.insert(name::of(cause));
                if let NameCause::Failed { faults } | NameCause::OutOfTime { faults, .. } = cause {
                    seen.extend(faults.iter().map(|fault| unanswered::of(&fault.what)));
                }
            }
            Cause::Connect(cause) => {
                seen.insert(connect::of(cause));
            }
            Cause::Tls(cause) => {
                seen.insert(tls::of(cause));
                if let TlsCause::Certificate { fault: one, .. } = cause {
                    seen.insert(fault::of(one));
                    if let CertificateFault::Chain(one) = one {
                        seen.insert(chain::of(one));
                    }
                }
            }
            Cause::Mail(cause) => {
                seen.insert(mail::of(cause));
            }
            Cause::Exchange(cause) => {
                seen.insert(exchange::of(cause));
                if let ExchangeCause::Unanswered { end: how, .. } | ExchangeCause::CutOff { end: how, .. } = cause {
                    seen.insert(end::of(how));
                }
                if let ExchangeCause::Transaction { how, .. } = cause {
                    seen.insert(unended::of(how));
                }
            }
        }
    }
    let all = [
        unmade::ALL,
        name::ALL,
        unanswered::ALL,
        connect::ALL,
        tls::ALL,
        fault::ALL,
        chain::ALL,
        exchange::ALL,
        unended::ALL,
        mail::ALL,
        end::ALL,
    ];
    let missing: Vec<&&str> = all.iter().flat_map(|all| all.iter()).filter(|one| !seen.contains(**one)).collect();
    assert!(missing.is_empty(), "no row for {missing:?}");
    let unmade: Vec<&Code> = Code::ALL.iter().filter(|code| !codes.contains(code)).collect();
    assert!(unmade.is_empty(), "no cause makes {unmade:?}");
}

/// What begins an advice.
const ADVICE: &[&str] = &[
    "; check ",
    "; ask ",
    ": ask ",
    ", and it is not sent again: check ",
    ", and it is not sent again: look ",
    ": look there",
    "; have ",
    "; send ",
    "; resend ",
    ", and may be resent",
    "; tell ",
    "; install ",
    "; publish ",
    "; use ",
    ": use ",
    "; give ",
    "; look ",
    "; turn on ",
    "; wait, or ",
    "; shorten ",
    "; renew ",
    "; submit ",
    "; it must offer ",
];

#[test]
fn no_message_says_what_is_not_so_or_shows_how_it_was_made() {
    for (cause, ..) in table(&certificate()) {
        let Failure { message, processed, phase, .. } = cause.failure(HOST);
        // A record has the destination beside it; whoever made a delivery says of which host it speaks.
        assert!(message.contains(HOST) || matches!(cause, Cause::Unmade(_)), "{message}");
        assert!(ADVICE.iter().any(|advice| message.contains(advice)), "no advice: {message}");
        // What is known is not called unknown, and what never was answered is not said to be handled.
        let unknown = message.contains("not known") && !message.contains("extension");
        assert!(!unknown || processed == Processed::Maybe, "{message}");
        assert_eq!(
            message.contains("has handled"),
            processed == Processed::Yes && message.contains("answered 200"),
            "{message}"
        );
        assert_eq!(message.contains("may be resent"), message.contains("not handled"), "{message}");
        // Only who was reached can answer sooner.
        assert!(!message.contains("answer sooner") || phase == Some(Phase::Wait), "{message}");
        // Debug text of values has braces, `Some(` or `Err(`, names with `::` and names in camel case.
        for mark in ["{", "}", "Some(", "None", "Ok(", "Err(", "::", "Error {", "Kind", "\\"] {
            assert!(!message.contains(mark), "{mark}: {message}");
        }
        for word in message.split(|c: char| !c.is_alphanumeric()) {
            let hump =
                word.chars().zip(word.chars().skip(1)).any(|(one, next)| one.is_lowercase() && next.is_uppercase());
            // As X.509 and TLS call them.
            let known = ["subjectAltName", "serverAuth", "ChaCha20"].contains(&word);
            assert!(!hump || known, "{word}: {message}");
        }
        assert!(message.len() < 700, "{message}");
    }
}

#[test]
fn what_a_peer_sent_stands_in_no_message_and_its_names_are_tamed_and_bounded() {
    let line = "\u{1b}[2J\"\u{202e}s3cret".to_owned() + &"x".repeat(5000);
    for (cause, said) in [
        (ExchangeCause::NotHttp { line: &line }, Said::Body(line.clone())),
        (
            ExchangeCause::BadLine { status: None, line: &line, after: Some("x-a"), why: "is no status line" },
            Said::Head { line: line.clone(), after: Some("x-a".to_owned()) },
        ),
        (
            ExchangeCause::BadChunk { so_far: rows::SO_FAR, line: &line, why: "is no chunk size" },
            Said::Body(line.clone()),
        ),
    ] {
        let failure = cause.failure(HOST);
        assert!(!failure.message.contains("s3cret"), "{}", failure.message);
        let mut told = None;
        let _ = failure.told(|said| {
            told = Some(said);
            None
        });
        assert_eq!(told, Some(said));
    }
    let reason = ExchangeCause::StreamEnded { reason: &line, by_peer: true, so_far: None };
    let message = reason.failure(HOST).message;
    assert!(!message.contains(['\u{1b}', '\u{202e}']) && message.len() < 700, "{message}");
}

/// A try is made again, so none says that it is not; what it cannot know it does not say.
#[test]
fn of_a_try_to_carry_a_batch_nothing_is_said_that_holds_of_a_send_alone() {
    for (cause, ..) in table(&certificate()) {
        let plain = cause.failure(HOST);
        let tried = plain.clone().of_a_try();
        let Failure { processed, message, .. } = &tried;
        if !matches!(cause, Cause::Unmade(_) | Cause::Mail(_)) {
            assert!(!message.contains("not sent again") && !message.contains("has handled"), "{message}");
        }
        assert_eq!(*processed == Processed::No, plain.processed == Processed::No, "{message}");
        assert_ne!(*processed, Processed::Yes, "{message}");
        let ended = tried.clone().after_a_doubt();
        assert_eq!(ended.processed, Processed::Maybe, "{}", ended.message);
        let says = tried.processed == Processed::No || tried.message.ends_with(EARLIER);
        assert_eq!(ended.message.ends_with(EARLIER), says, "{}", ended.message);
        assert!(ended.message.starts_with(&*tried.message) && ended.message.len() < 900, "{}", ended.message);
    }
}
