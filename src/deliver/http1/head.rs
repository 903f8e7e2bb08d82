//! The head of an HTTP/1 answer, as RFC 9112 has it, and a little more where what a server sends is wrong and can be
//! read in one way.
//!
//! Read all the same, each marked [`Head::is_lenient`], after which the connection carries no other request: folded
//! lines (section 5.2 asks a user agent to read each fold as a space), white space before a colon (section 5.1 has even
//! proxies take it out), a line whose name is none (left out), control characters within a value (a space each, RFC
//! 9110 section 5.5), chunks under HTTP/1.0 (section 6.1: the framing is faulty, so the connection is closed). Smuggling
//! needs a second reader who sees another message than the first, or a second message: there is neither, since nothing
//! of the answer is passed on to anybody, and what comes after it on the connection is never read. Refused: what leaves
//! it open where the answer ends, a line without a colon and a NUL, as others refuse them.

use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Version, header};

/// Bounds of a head.
#[derive(Clone, Copy, Debug)]
pub struct HeadCaps {
    pub bytes: usize,
    pub lines: usize,
}

/// A head, read.
#[derive(Debug)]
pub struct Head {
    pub status: u16,
    pub version: Version,
    pub headers: HeaderMap,
    /// Something in it was read although it is wrong.
    pub is_lenient: bool,
}

/// Where an answer's body ends (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Empty,
    Length(u64),
    Chunked,
    /// It ends with the connection.
    Close,
}

/// Why what came is no head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bad {
    /// It does not begin as HTTP/1 does.
    NotHttp {
        line: String,
    },
    /// `after`: the header before it.
    Line {
        status: Option<u16>,
        line: String,
        after: Option<String>,
        why: &'static str,
    },
    TooLarge {
        status: Option<u16>,
    },
}

/// Bytes of a line that are kept for a message.
const LINE_BYTES_KEPT: usize = 480;

/// Takes a head off the front of `inbox` once all of it is there. `scanned`: bytes known to hold no end, kept between
/// calls so that a head that drips is looked at once.
pub fn take(inbox: &mut BytesMut, scanned: &mut usize, caps: HeadCaps) -> Result<Option<Head>, Bad> {
    while inbox.starts_with(b"\r\n") || inbox.starts_with(b"\n") {
        // RFC 9112 section 2.2: an empty line before a message is passed over.
        inbox.advance(if inbox[0] == b'\r' { 2 } else { 1 });
    }
    if &inbox[..] == b"\r" {
        return Ok(None);
    }
    if !begins_well(inbox) {
        let end = inbox.iter().position(|&byte| byte == b'\n').unwrap_or(inbox.len());
        return Err(Bad::NotHttp { line: kept(&inbox[..end]) });
    }
    let Some(end) = end_of_head(inbox, scanned) else {
        if inbox.len() > caps.bytes {
            return Err(Bad::TooLarge { status: status_of(inbox) });
        }
        return Ok(None);
    };
    if end > caps.bytes {
        return Err(Bad::TooLarge { status: status_of(inbox) });
    }
    *scanned = 0;
    let head = inbox.split_to(end);
    read(&head, caps).map(Some)
}

/// As far as it has come.
fn begins_well(bytes: &[u8]) -> bool {
    const START: &[u8] = b"HTTP/1.";
    let common = bytes.len().min(START.len());
    bytes[..common] == START[..common] && bytes.get(START.len()).is_none_or(|minor| matches!(minor, b'0' | b'1'))
}

/// Just behind the empty line.
fn end_of_head(bytes: &[u8], scanned: &mut usize) -> Option<usize> {
    let mut at = *scanned;
    while let Some(found) = bytes[at..].iter().position(|&byte| byte == b'\n') {
        let next = at + found + 1;
        match bytes.get(next..) {
            Some([b'\n', ..]) => return Some(next + 1),
            Some([b'\r', b'\n', ..]) => return Some(next + 2),
            // The line may be the last one: it is looked at again.
            Some([] | [b'\r']) | None => {
                *scanned = next - 1;
                return None;
            }
            Some(_) => at = next,
        }
    }
    *scanned = bytes.len();
    None
}

/// The status, where its line has come.
pub fn status_of(bytes: &[u8]) -> Option<u16> {
    let line = bytes.split(|&byte| byte == b'\n').next()?;
    (line.len() < bytes.len()).then(|| status_line(line).map(|(_, status)| status)).flatten()
}

/// `HTTP/1.1 200 any reason`
fn status_line(line: &[u8]) -> Option<(Version, u16)> {
    let version = match line.get(..9)? {
        b"HTTP/1.1 " => Version::HTTP_11,
        b"HTTP/1.0 " => Version::HTTP_10,
        _ => return None,
    };
    let digits = line.get(9..12).filter(|digits| digits.iter().all(u8::is_ascii_digit))?;
    let status = digits.iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
    let ends = matches!(line.get(12), None | Some(b' ' | b'\r'));
    (ends && (100..1000).contains(&status) && !line.contains(&0)).then_some((version, status))
}

fn read(head: &[u8], caps: HeadCaps) -> Result<Head, Bad> {
    let mut lines = head.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = lines.next().unwrap_or_default();
    let Some((version, status)) = status_line(first) else {
        return Err(Bad::Line { status: None, line: kept(first), after: None, why: "is no status line" });
    };
    let bad = |line: &[u8], after, why| Bad::Line { status: Some(status), line: kept(line), after, why };
    let mut read = Lines { headers: HeaderMap::new(), open: None, is_lenient: false };
    let mut count = 0;
    for line in lines.take_while(|line| !line.is_empty()) {
        count += 1;
        if count > caps.lines {
            return Err(Bad::TooLarge { status: Some(status) });
        }
        if line.contains(&0) {
            // Its name alone: the value may be a secret.
            let name = line.split(|&byte| byte == b':').next().unwrap_or_default();
            return Err(bad(name, read.last(), "holds a NUL"));
        }
        if matches!(line[0], b' ' | b'\t') {
            read.fold(line).map_err(|why| bad(line, None, why))?;
            continue;
        }
        let Some(colon) = line.iter().position(|&byte| byte == b':') else {
            return Err(bad(line, read.last(), "has no colon"));
        };
        read.close();
        let name = line[..colon].trim_ascii_end();
        read.is_lenient |= name.len() < colon;
        match HeaderName::from_bytes(name) {
            Ok(name) => read.open = Some((Some(name), line[colon + 1..].trim_ascii().to_vec())),
            Err(_) => {
                // No name that anybody could ask for: neither it nor its folds are a header.
                read.is_lenient = true;
                read.open = Some((None, Vec::new()));
            }
        }
    }
    read.close();
    Ok(Head { status, version, headers: read.headers, is_lenient: read.is_lenient })
}

struct Lines {
    headers: HeaderMap,
    /// The line that may be folded.
    open: Option<(Option<HeaderName>, Vec<u8>)>,
    is_lenient: bool,
}

impl Lines {
    /// The header before, whose value a line that is none may go on with.
    fn last(&self) -> Option<String> {
        let (name, _) = self.open.as_ref()?;
        name.as_ref().map(HeaderName::to_string)
    }

    fn fold(&mut self, line: &[u8]) -> Result<(), &'static str> {
        let Some((_, value)) = &mut self.open else { return Err("continues a header where there is none") };
        self.is_lenient = true;
        let more = line.trim_ascii();
        if !more.is_empty() && !value.is_empty() {
            value.push(b' ');
        }
        value.extend_from_slice(more);
        Ok(())
    }

    fn close(&mut self) {
        let Some((Some(name), mut value)) = self.open.take() else { return };
        for byte in &mut value {
            if *byte != b'\t' && byte.is_ascii_control() {
                *byte = b' ';
                self.is_lenient = true;
            }
        }
        if let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(value)) {
            self.headers.append(name, value);
        }
    }
}

impl Head {
    /// `head_only`: the request was a HEAD.
    pub fn framing(&self, head_only: bool) -> Result<Framing, Bad> {
        if head_only || matches!(self.status, 100..=199 | 204 | 304) {
            return Ok(Framing::Empty);
        }
        if self.headers.contains_key(header::TRANSFER_ENCODING) {
            let codings = tokens(&self.headers, &header::TRANSFER_ENCODING);
            let chunked = codings.last().is_some_and(|last| last.eq_ignore_ascii_case("chunked"));
            return Ok(if chunked { Framing::Chunked } else { Framing::Close });
        }
        let length = content_length(&self.headers).map_err(|(value, why)| Bad::Line {
            status: Some(self.status),
            line: kept(&[b"content-length: ", value].concat()),
            after: None,
            why,
        })?;
        Ok(length.map_or(Framing::Close, Framing::Length))
    }

    /// Whether the connection may carry another request after this answer (RFC 9112 section 9.3), by what its head says.
    pub fn keeps_open(&self) -> bool {
        let has = |name: &HeaderName| self.headers.contains_key(name);
        let unread = |name: &HeaderName| self.headers.get_all(name).into_iter().any(|value| value.to_str().is_err());
        // Framing that another reader may take otherwise (RFC 9112 section 6.3).
        let doubtful = (has(&header::TRANSFER_ENCODING) && (has(&header::CONTENT_LENGTH) || self.status == 204))
            || (self.status == 204 && !matches!(content_length(&self.headers), Ok(None | Some(0))))
            || unread(&header::CONNECTION)
            || unread(&header::TRANSFER_ENCODING);
        self.version == Version::HTTP_11
            && !self.is_lenient
            && !doubtful
            && !tokens(&self.headers, &header::CONNECTION).iter().any(|token| token.eq_ignore_ascii_case("close"))
    }
}

/// The length that an answer declares, once or in several equal values (RFC 9110 section 8.6); or the value that is
/// none, and why.
pub fn content_length(headers: &HeaderMap) -> Result<Option<u64>, (&[u8], &'static str)> {
    let mut length = None;
    for value in headers.get_all(header::CONTENT_LENGTH).into_iter().map(HeaderValue::as_bytes) {
        for one in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            let digits = !one.is_empty() && one.iter().all(u8::is_ascii_digit);
            let one = std::str::from_utf8(one).ok().filter(|_| digits).and_then(|one| one.parse().ok());
            let Some(one) = one else { return Err((value, "declares a length that is no number")) };
            if length.is_some_and(|length: u64| length != one) {
                return Err((value, "declares another length than the one before"));
            }
            length = Some(one);
        }
    }
    Ok(length)
}

/// How long the receiver says that it keeps an idle connection open: `Keep-Alive: timeout=5, max=100` (RFC 2068 section
/// 19.7.1.1, as servers write it).
pub fn keep_alive_hint(headers: &HeaderMap) -> Option<Duration> {
    let said = tokens(headers, &HeaderName::from_static("keep-alive"));
    let seconds = said.iter().find_map(|token| {
        let (name, value) = token.split_once('=')?;
        if !name.trim().eq_ignore_ascii_case("timeout") {
            return None;
        }
        value.trim().trim_matches('"').parse::<u32>().ok()
    })?;
    Some(Duration::from_secs(u64::from(seconds)))
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty()).collect()
}

/// For a message.
pub fn kept(line: &[u8]) -> String {
    String::from_utf8_lossy(&line[..line.len().min(LINE_BYTES_KEPT)]).into_owned()
}

#[cfg(test)]
mod tests;
