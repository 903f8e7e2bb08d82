//! SMTP's lines over one connection (RFC 5321): a command goes out, one reply comes in, each bounded while it is read.
//!
//! Nothing is sent ahead, so nothing may come ahead: what comes before it was asked for ends the dialogue. Not here: what
//! is said, and what a reply means for a message ([`super`]).

use bytes::{Buf, BytesMut};
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::dial::wire::Io;
use crate::limits::{SMTP_LINE_BYTES_MAX, SMTP_REPLY_LINES_MAX};

/// A connection, and what was read of it and not yet looked at.
pub struct Dialogue<S> {
    io: S,
    came: BytesMut,
}

/// One reply, of one code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// 200 to 599.
    pub code: u16,
    /// What stands behind the code, of each line.
    lines: Vec<String>,
}

/// Why no reply came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The connection.
    Ended,
    /// What the relay did, as a part of a sentence.
    BadReply(&'static str),
}

impl Reply {
    /// It will not, now or ever.
    pub fn is_refusal(&self) -> bool {
        self.code >= 400
    }

    pub fn is_done(&self) -> bool {
        self.code < 300
    }

    /// One line under the other.
    pub fn text(&self) -> String {
        self.lines.join("\n")
    }

    /// Whether an EHLO's reply names this extension.
    pub fn offers(&self, extension: &str) -> bool {
        self.extensions().any(|(name, _)| name.eq_ignore_ascii_case(extension))
    }

    /// Whether it names this way to log in.
    pub fn offers_auth(&self, way: &str) -> bool {
        let ways = self.extensions().filter(|(name, _)| name.eq_ignore_ascii_case("AUTH"));
        ways.flat_map(|(_, ways)| ways.split_ascii_whitespace()).any(|one| one.eq_ignore_ascii_case(way))
    }

    fn extensions(&self) -> impl Iterator<Item = (&str, &str)> {
        self.lines.iter().skip(1).map(|line| line.trim().split_once(' ').unwrap_or((line.trim(), "")))
    }
}

impl<S: Io> Dialogue<S> {
    pub fn new(io: S) -> Self {
        Self { io, came: BytesMut::new() }
    }

    /// `None`: there is something on it that nobody asked for.
    pub fn into_io(self) -> Option<S> {
        self.came.is_empty().then_some(self.io)
    }

    /// A command, without its line's end, and the reply to it.
    pub async fn command(&mut self, line: &str) -> Result<Reply, Stop> {
        if !self.came.is_empty() {
            return Err(Stop::BadReply("spoke before it was asked"));
        }
        self.write(format!("{line}\r\n").as_bytes()).await?;
        self.reply().await
    }

    /// Whether it has spoken before it was asked, as far as that can be seen now.
    pub fn has_spoken(&mut self) -> bool {
        if self.came.is_empty() {
            self.came.reserve(SMTP_LINE_BYTES_MAX);
            // Whatever hinders this is met again by who waits for it.
            _ = self.io.read_buf(&mut self.came).now_or_never();
        }
        !self.came.is_empty()
    }

    /// Until the kernel has taken it.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.io.write_all(bytes).await.map_err(|_| Stop::Ended)?;
        self.io.flush().await.map_err(|_| Stop::Ended)
    }

    pub async fn reply(&mut self) -> Result<Reply, Stop> {
        let mut lines = Vec::new();
        let mut first = None;
        loop {
            let Line { code, goes_on, text } = Line::read(&self.line().await?)?;
            if *first.get_or_insert(code) != code {
                return Err(Stop::BadReply("changed its mind within a reply"));
            }
            lines.push(text);
            if !goes_on {
                return Ok(Reply { code, lines });
            }
            if lines.len() >= SMTP_REPLY_LINES_MAX {
                return Err(Stop::BadReply("sent a reply of too many lines"));
            }
        }
    }

    /// The next line, without its end.
    async fn line(&mut self) -> Result<BytesMut, Stop> {
        let mut looked_at = 0;
        loop {
            let end = self.came[looked_at..].iter().position(|byte| *byte == b'\n').map(|at| looked_at + at);
            if let Some(end) = end.filter(|end| *end < SMTP_LINE_BYTES_MAX) {
                let mut line = self.came.split_to(end);
                self.came.advance(1);
                if line.last() == Some(&b'\r') {
                    line.truncate(end - 1);
                }
                return Ok(line);
            }
            looked_at = self.came.len();
            if looked_at >= SMTP_LINE_BYTES_MAX {
                return Err(Stop::BadReply("sent a line that is too long"));
            }
            // No more than a line's worth beyond what is there.
            self.came.reserve(SMTP_LINE_BYTES_MAX);
            match self.io.read_buf(&mut self.came).await {
                Ok(0) | Err(_) => return Err(Stop::Ended),
                Ok(_) => {}
            }
        }
    }
}

/// One line of a reply.
struct Line {
    code: u16,
    goes_on: bool,
    text: String,
}

impl Line {
    /// RFC 5321 section 4.2.
    fn read(line: &[u8]) -> Result<Self, Stop> {
        let bad = Stop::BadReply("sent a line that is no reply");
        let (code, rest) = line.split_at_checked(3).ok_or(bad)?;
        if !matches!(code, [b'2'..=b'5', b'0'..=b'9', b'0'..=b'9']) {
            return Err(bad);
        }
        let code = code.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
        let (goes_on, text) = match rest {
            [b'-', text @ ..] => (true, text),
            [b' ', text @ ..] => (false, text),
            [] => (false, rest),
            _ => return Err(bad),
        };
        Ok(Self { code, goes_on, text: String::from_utf8_lossy(text).into_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of these bytes, in pieces of so many.
    async fn read(bytes: &[u8], piece: usize) -> Result<Reply, Stop> {
        let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
        let bytes = bytes.to_vec();
        let writing = async move {
            for piece in bytes.chunks(piece) {
                if theirs.write_all(piece).await.is_err() {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        // Dropped when the reply has come, so that nobody writes on and on.
        let reading = async move { Dialogue::new(ours).reply().await };
        tokio::join!(reading, writing).0
    }

    #[tokio::test]
    async fn a_reply_is_lines_of_one_code_and_nothing_else_is_one() {
        let long = |length: usize| format!("250 {}\r\n", "x".repeat(length - 6));
        let many = |lines: usize| "250-x\r\n".repeat(lines - 1) + "250 x\r\n";
        let bad = |why| Err(Stop::BadReply(why));
        type Row<'a> = (String, Result<(u16, &'a str), Stop>);
        let rows: Vec<Row<'_>> = vec![
            ("220 hello\r\n".into(), Ok((220, "hello"))),
            ("250\r\n".into(), Ok((250, ""))),
            ("250 \n".into(), Ok((250, ""))),
            ("250-a\r\n250-b c\r\n250 d\r\n".into(), Ok((250, "a\nb c\nd"))),
            ("554 5.7.1 \u{e9}\r\n".into(), Ok((554, "5.7.1 \u{e9}"))),
            ("250-a\r\n250\r\n".into(), Ok((250, "a\n"))),
            ("250-a\r\n550 b\r\n".into(), bad("changed its mind within a reply")),
            ("\r\n".into(), bad("sent a line that is no reply")),
            ("25\r\n".into(), bad("sent a line that is no reply")),
            ("2500 x\r\n".into(), bad("sent a line that is no reply")),
            ("199 x\r\n".into(), bad("sent a line that is no reply")),
            ("600 x\r\n".into(), bad("sent a line that is no reply")),
            ("+50 x\r\n".into(), bad("sent a line that is no reply")),
            ("HTTP/1.1 400 Bad Request\r\n".into(), bad("sent a line that is no reply")),
            (long(SMTP_LINE_BYTES_MAX), Ok((250, ""))),
            (long(SMTP_LINE_BYTES_MAX + 1), bad("sent a line that is too long")),
            ("x".repeat(100_000), bad("sent a line that is too long")),
            (many(SMTP_REPLY_LINES_MAX), Ok((250, ""))),
            (many(SMTP_REPLY_LINES_MAX + 1), bad("sent a reply of too many lines")),
            ("250-x\r\n".repeat(10_000), bad("sent a reply of too many lines")),
            ("".into(), Err(Stop::Ended)),
            ("250-a\r\n".into(), Err(Stop::Ended)),
            ("250 a".into(), Err(Stop::Ended)),
        ];
        for (bytes, wanted) in rows {
            for piece in [1, 3, 7, 100_000] {
                let reply = read(bytes.as_bytes(), piece).await;
                let shown = &bytes[..bytes.len().min(40)];
                match (&wanted, reply) {
                    (Ok((code, text)), Ok(reply)) => {
                        assert_eq!(reply.code, *code, "{shown}");
                        assert!(text.is_empty() || reply.text() == *text, "{shown}: {}", reply.text());
                    }
                    (Err(wanted), reply) => assert_eq!(reply, Err(*wanted), "{shown}"),
                    (wanted, reply) => panic!("{shown}: {reply:?} in place of {wanted:?}"),
                }
            }
        }
    }

    #[tokio::test]
    async fn whatever_comes_ends_in_a_reply_or_a_reason_in_bounded_memory() {
        // A seed for each, so that one that fails can be had again.
        for seed in 0..2_000_u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut next = |below: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % below
            };
            let parts: [&[u8]; 12] = [
                b"250",
                b"-",
                b" ",
                b"\r\n",
                b"\n",
                b"\r",
                b"354 go\r\n",
                b"550-no\r\n",
                b"\0",
                b"\xff\xfe",
                b"9",
                b"text",
            ];
            let bytes: Vec<u8> = (0..next(400)).flat_map(|_| parts[next(12) as usize].to_vec()).collect();
            let piece = 1 + next(64) as usize;
            let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
            let writing = async move {
                for piece in bytes.chunks(piece) {
                    if theirs.write_all(piece).await.is_err() {
                        return;
                    }
                }
            };
            let reading = async {
                let mut dialogue = Dialogue::new(ours);
                let mut replies = 0;
                while let Ok(reply) = dialogue.reply().await {
                    assert!((200..600).contains(&reply.code) && reply.lines.len() <= SMTP_REPLY_LINES_MAX, "{seed}");
                    assert!(
                        dialogue.came.capacity() <= 4 * SMTP_LINE_BYTES_MAX,
                        "{seed}: {}",
                        dialogue.came.capacity()
                    );
                    replies += 1;
                }
                replies
            };
            let (replies, ()) = tokio::join!(reading, writing);
            assert!(replies <= 400, "{seed}");
        }
    }

    #[test]
    fn what_a_relay_offers_is_read_whatever_its_spelling() {
        let lines =
            ["relay.example.net greets you, STARTTLS", "size 1000", "AUTH login PLAIN", "StartTLS", "X-AUTH CRAM-MD5"];
        let reply = Reply { code: 250, lines: lines.map(str::to_owned).to_vec() };
        for (extension, offered) in [("STARTTLS", true), ("SIZE", true), ("AUTH", true), ("relay.example.net", false)] {
            assert_eq!(reply.offers(extension), offered, "{extension}");
        }
        for (way, offered) in [("PLAIN", true), ("LOGIN", true), ("CRAM-MD5", false)] {
            assert_eq!(reply.offers_auth(way), offered, "{way}");
        }
        let alone = Reply { code: 250, lines: vec!["STARTTLS".to_owned()] };
        assert!(!alone.offers("STARTTLS"), "the first line is a greeting");
    }

    #[tokio::test]
    async fn what_comes_before_it_was_asked_for_ends_the_dialogue() {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        theirs.write_all(b"220 a\r\n250 b\r\n").await.expect("written");
        let mut dialogue = Dialogue::new(ours);
        assert_eq!(dialogue.reply().await.map(|reply| reply.code), Ok(220));
        assert_eq!(dialogue.command("EHLO x").await, Err(Stop::BadReply("spoke before it was asked")));
        assert!(dialogue.into_io().is_none());
    }
}
