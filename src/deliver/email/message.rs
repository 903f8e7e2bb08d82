//! A letter as the message that leaves: MIME, by `lettre`, whose types let no header end another.
//!
//! Pure: values in, bytes out. What comes back is ready for DATA: lines end with CRLF and with nothing else, so that no
//! relay reads an end of the message where there is none, and those that begin with a dot have one more.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue};
use jiff::Timestamp;
use lettre::Message;
use lettre::message::header::{HeaderName as MailHeaderName, HeaderValue as MailHeaderValue};
use lettre::message::{Mailbox, MultiPart, SinglePart};

use crate::config::MailTo;
use crate::send::email::Letter;
use crate::send::{HeaderLines, SendId};

/// A message ready to be handed over.
#[derive(Debug)]
pub struct Written {
    /// With each line's first dot doubled, up to and with the last line's end.
    pub content: Vec<u8>,
    /// Who is told if it comes back.
    pub from: String,
    /// The tenant's own address first.
    pub to: Vec<String>,
    /// As records show them: all of its headers but its subject, which is content, and those of MIME.
    pub lines: HeaderLines,
}

/// Of the headers, those that records show.
const SHOWN: [&str; 5] = ["From", "To", "Cc", "Date", "Message-ID"];

/// `None`: no message can be made of it.
pub fn write(letter: Letter, id: SendId, from: Mailbox, mail_to: &MailTo, at: Timestamp) -> Option<Written> {
    let Letter { subject, text, html, include_collaborators } = letter;
    let sender = from.email.clone();
    let copies = if include_collaborators { &mail_to.collaborators[..] } else { &[] };
    let automatic = MailHeaderName::new_from_ascii_str("Auto-Submitted");
    let mut builder = Message::builder()
        .message_id(Some(format!("<{id}@{}>", sender.domain())))
        .date(SystemTime::from(at))
        .from(from)
        .to(Mailbox::new(None, mail_to.owner.clone()));
    builder = match subject.contains("=?") {
        false => builder.subject(subject),
        true => builder.raw_header(encoded_subject(subject)),
    };
    // RFC 3834: nobody's holidays are told to it.
    builder = builder.raw_header(MailHeaderValue::new(automatic, "auto-generated".to_owned()));
    for copy in copies {
        builder = builder.cc(Mailbox::new(None, copy.clone()));
    }
    let message = match (text.map(|text| lines_of(&text)), html.map(|html| lines_of(&html))) {
        (Some(text), Some(html)) => builder.multipart(MultiPart::alternative_plain_html(text, html)),
        (Some(text), None) => builder.singlepart(SinglePart::plain(text)),
        (None, Some(html)) => builder.singlepart(SinglePart::html(html)),
        (None, None) => return None,
    };
    let message = message.ok()?;
    let lines = SHOWN.iter().filter_map(|name| {
        let value = HeaderValue::from_bytes(message.headers().get_raw(name)?.as_bytes()).ok()?;
        Some((HeaderName::from_bytes(name.as_bytes()).ok()?, value))
    });
    let lines = lines.collect();
    let to = std::iter::once(&mail_to.owner).chain(copies).map(ToString::to_string).collect();
    Some(Written { content: for_data(&message.formatted())?, from: sender.to_string(), to, lines })
}

/// A subject that looks like words that are encoded already (RFC 2047), which whoever shows it would take them for:
/// encoded as a whole. What stands in it then is base64, so it can be nothing else.
fn encoded_subject(subject: String) -> MailHeaderValue {
    /// Of text in one word, whose length may be 75 (section 2).
    const BYTES_MAX: usize = 45;
    let (mut words, mut rest) = (Vec::new(), subject.as_str());
    while !rest.is_empty() {
        let end = (1..=rest.len().min(BYTES_MAX)).rev().find(|&at| rest.is_char_boundary(at)).unwrap_or(rest.len());
        words.push(format!("=?utf-8?B?{}?=", STANDARD.encode(&rest[..end])));
        rest = &rest[end..];
    }
    let name = MailHeaderName::new_from_ascii_str("Subject");
    MailHeaderValue::dangerous_new_pre_encoded(name, subject, words.join("\r\n "))
}

/// Every end of a line as mail has it, whichever was written. `lettre` would do it too, at a cost that grows with the
/// square of their number.
fn lines_of(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 16);
    let mut rest = text;
    while let Some(at) = rest.find(['\r', '\n']) {
        let end = if rest[at..].starts_with("\r\n") { 2 } else { 1 };
        out.push_str(&rest[..at]);
        out.push_str("\r\n");
        rest = &rest[at + end..];
    }
    out.push_str(rest);
    out
}

/// RFC 5321 section 4.5.2. `None`: a line ends in another way, or is longer than one may be (section 4.5.3.1.6).
fn for_data(message: &[u8]) -> Option<Vec<u8>> {
    const LINE_BYTES_MAX: usize = 998;
    let mut content = Vec::with_capacity(message.len() + message.len() / 64 + 2);
    let mut rest = message.strip_suffix(b"\r\n").unwrap_or(message);
    loop {
        let end = rest.windows(2).position(|pair| pair == b"\r\n");
        let line = &rest[..end.unwrap_or(rest.len())];
        if line.len() > LINE_BYTES_MAX || line.iter().any(|byte| matches!(byte, b'\r' | b'\n')) {
            return None;
        }
        if line.starts_with(b".") {
            content.push(b'.');
        }
        content.extend_from_slice(line);
        content.extend_from_slice(b"\r\n");
        match end {
            Some(end) => rest = &rest[end + 2..],
            None => return Some(content),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(text: Option<&str>, html: Option<&str>) -> Letter {
        let own = |text: &str| text.to_owned();
        Letter { subject: "S".to_owned(), text: text.map(own), html: html.map(own), include_collaborators: false }
    }

    fn to() -> MailTo {
        let address = |text: &str| text.parse().unwrap();
        MailTo {
            owner: address("owner@acme.example"),
            collaborators: vec![address("a@b.example"), address("c@d.example")],
        }
    }

    fn written(letter: Letter) -> (Written, String) {
        let from = "Workflows <notifications@example.net>".parse().unwrap();
        let id = SendId(uuid::Uuid::from_u128(7));
        let written =
            write(letter, id, from, &to(), Timestamp::from_second(1_790_000_000).unwrap()).expect("a message");
        let text = String::from_utf8(written.content.clone()).expect("seven bits");
        (written, text)
    }

    #[test]
    fn a_message_names_its_people_its_send_and_its_parts() {
        let (written, text) =
            written(Letter { include_collaborators: true, ..letter(Some("T\u{e9}"), Some("<b>H</b>")) });
        assert_eq!(written.from, "notifications@example.net");
        assert_eq!(written.to, ["owner@acme.example", "a@b.example", "c@d.example"]);
        for part in [
            "From: Workflows <notifications@example.net>\r\n",
            "To: owner@acme.example\r\n",
            "Cc: a@b.example, c@d.example\r\n",
            "Subject: S\r\n",
            "Message-ID: <00000000-0000-0000-0000-000000000007@example.net>\r\n",
            "Date: Mon, 21 Sep 2026 14:13:20 +0000\r\n",
            "MIME-Version: 1.0\r\n",
            "Auto-Submitted: auto-generated\r\n",
            "Content-Type: multipart/alternative;",
            "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n\r\nVMOp\r\n",
            "Content-Type: text/html; charset=utf-8\r\n",
            "\r\n\r\n<b>H</b>\r\n",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let shown: Vec<_> =
            written.lines.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(shown[1..3], [("to", "owner@acme.example"), ("cc", "a@b.example, c@d.example")]);
        assert!(shown.iter().all(|(name, _)| *name != "subject"));

        let (written, text) = self::written(letter(Some("T"), None));
        assert_eq!(written.to, ["owner@acme.example"]);
        assert!(!text.contains("Cc:") && !text.contains("multipart"), "{text}");
        assert!(self::written(letter(None, Some("<i>"))).1.contains("text/html"));
    }

    #[test]
    fn nothing_that_an_author_writes_ends_a_header_a_line_or_the_message() {
        let hostile = [
            "a\r\nBcc: victim@example.org",
            "a\nBcc: victim@example.org\n\nbody",
            "a\rBcc: victim@example.org",
            "\r\n.\r\nMAIL FROM:<x@y>",
            "\n.\nQUIT",
            "\r.\r",
            ".\u{2028}.",
            "=?utf-8?Q?=0D=0ABcc:_victim@example.org?=",
            "\u{feff}\u{0b}\u{85}",
            &"\n".repeat(1000),
            &"x".repeat(5000),
            &"\u{1f980}".repeat(490),
        ];
        for evil in hostile {
            let both = Letter { subject: evil.chars().take(500).collect(), ..letter(Some(evil), Some(evil)) };
            let (written, text) = written(both);
            let (head, _) = text.split_once("\r\n\r\n").expect("a head");
            let names: Vec<_> = head
                .split("\r\n")
                .filter(|line| !line.starts_with(' '))
                .filter_map(|line| line.split_once(": "))
                .collect();
            let names: Vec<_> = names.iter().map(|(name, _)| *name).collect();
            let known =
                ["Message-ID", "Date", "From", "To", "Subject", "Auto-Submitted", "MIME-Version", "Content-Type"];
            assert_eq!(names, known, "{evil:?}\n{head}");
            assert_eq!(written.to, ["owner@acme.example"]);
            // One way to end a line, and no line that ends the message.
            assert!(!text.replace("\r\n", "").contains(['\r', '\n']), "{evil:?}");
            assert!(!text.contains("\r\n.\r\n") && !text.starts_with(".\r\n"), "{evil:?}");
            assert!(text.ends_with("\r\n") && text.is_ascii());
        }
    }

    #[test]
    fn a_subject_that_looks_encoded_is_shown_as_it_was_written() {
        let long = "=?".to_owned() + &"\u{e9}".repeat(23);
        for (subject, shown) in [
            ("=?utf-8?q?a?=", "Subject: =?utf-8?B?PT91dGYtOD9xP2E/PQ==?=\r\n"),
            // No word is cut within a character, and each is a line.
            (
                &long,
                "Subject: =?utf-8?B?PT/DqcOpw6nDqcOpw6nDqcOpw6nDqcOpw6nDqcOpw6nDqcOpw6nDqcOpw6k=?=\r\n =?utf-8?B?w6nDqQ==?=\r\n",
            ),
        ] {
            let (_, text) = written(Letter { subject: subject.to_owned(), ..letter(Some("T"), None) });
            assert!(text.contains(shown), "{text}");
        }
    }

    #[test]
    fn lines_end_as_mail_has_it_and_dots_are_doubled() {
        for (text, lines) in
            [("a", "a"), ("a\n", "a\r\n"), ("\r\n\r\r\n\n", "\r\n\r\n\r\n\r\n"), ("\ra\r", "\r\na\r\n")]
        {
            assert_eq!(lines_of(text), lines, "{text:?}");
        }
        for (message, content) in [
            ("a", Some("a\r\n")),
            ("a\r\n", Some("a\r\n")),
            (".\r\n..\r\n.a\r\na.\r\n", Some("..\r\n...\r\n..a\r\na.\r\n")),
            ("a\r\n\r\n", Some("a\r\n\r\n")),
            ("\r\n.", Some("\r\n..\r\n")),
            ("", Some("\r\n")),
            ("a\nb", None),
            ("a\rb\r\n", None),
            ("a\r\r\n", None),
            ("a\n", None),
        ] {
            assert_eq!(for_data(message.as_bytes()).as_deref(), content.map(str::as_bytes), "{message:?}");
        }
        assert!(for_data(&[b'x'; 998]).is_some() && for_data(&[b'x'; 999]).is_none());
    }
}
