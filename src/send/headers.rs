//! A send's headers: shape, bounds, and which of them never leave.
//!
//! Framing and hop-by-hop fields, `host`, and what speaks for a proxy or to a metadata service are dropped and
//! named, not refused: callers forward whole header objects. Names count as such also with `_` for `-`, because
//! many receivers read the two alike.

use std::collections::{HashMap, HashSet};

use http::{HeaderName, HeaderValue, header};
use serde_json::value::RawValue;

use super::parse::{At, Members, Problems, ValueKind, elements, text};
use super::{HeaderLines, Spelling};
use crate::limits;

/// What an author's headers came to. Names compare without case (RFC 9110 section 5.1): of two spellings of one name the
/// last one given is the header, and the name stands among those dropped.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Headers {
    pub(crate) lines: HeaderLines,
    pub(crate) spelling: Spelling,
    /// Lower-case, in order, each once.
    pub(crate) dropped: Vec<String>,
}

impl Headers {
    /// The `Content-Type` given; its values are visible ASCII.
    pub(crate) fn content_type(&self) -> Option<&str> {
        self.lines.iter().find(|(name, _)| name == header::CONTENT_TYPE).and_then(|(_, value)| value.to_str().ok())
    }
}

/// RFC 9110 section 7.6.1 (hop-by-hop), framing, and what names a proxy or a metadata service's guard.
const DROPPED: &[&str] = &[
    "host",
    "content-length",
    "transfer-encoding",
    "te",
    "trailer",
    "connection",
    "keep-alive",
    "upgrade",
    "http2-settings",
    "expect",
    "via",
    "forwarded",
    "x-real-ip",
    "metadata",
    "metadata-flavor",
    "x-google-metadata-request",
];
const DROPPED_PREFIXES: &[&str] = &["proxy-", "x-forwarded-", "x-aws-ec2-metadata-token"];

/// Whether a header of this name (lower-case) never leaves as its author gave it.
pub fn is_dropped(name: &str) -> bool {
    if name.contains('_') {
        let dashed = name.replace('_', "-");
        return is_dropped_as_written(&dashed);
    }
    is_dropped_as_written(name)
}

fn is_dropped_as_written(name: &str) -> bool {
    DROPPED.contains(&name) || DROPPED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// `None` goes with at least one problem.
pub(crate) fn read(value: &RawValue, at: At<'_>, problems: &mut Problems) -> Option<Headers> {
    let members =
        Members::expect(value, at, "it must be an object of names and values, e.g. {\"Accept\": \"*/*\"}", problems)?;
    let mut reading = HeaderReader {
        lines: Vec::with_capacity(members.0.len() + 2),
        last: HashMap::with_capacity(members.0.len()),
        spelling: Spelling::default(),
        member: 0,
        bytes: 0,
        count: 0,
        sound: true,
    };
    let mut seen = HashSet::with_capacity(members.0.len());
    for (member, (key, value)) in members.0.iter().enumerate() {
        let at = At::Key(&at, key);
        if !seen.insert(key.as_ref()) {
            problems.add(at, "stands here a second time", "give an array of strings to send several lines");
            reading.sound = false;
            continue;
        }
        let Ok(name) = HeaderName::from_bytes(key.as_bytes()) else {
            problems.add(
                at,
                "is not a header name: letters, digits and !#$%&'*+-.^_`|~ may stand in one",
                key.contains(':').then_some("leave out the colon"),
            );
            reading.sound = false;
            continue;
        };
        // Past the bound the call is refused anyway; noting a name looks at all those before it.
        if member < limits::REQUEST_HEADERS_MAX {
            reading.spelling.note(key);
        }
        reading.last.insert(name.clone(), member);
        reading.member = member;
        reading.values(&name, value, at, problems);
    }
    // A name without a line counts as well.
    let count = reading.count.max(members.0.len());
    if count > limits::REQUEST_HEADERS_MAX {
        problems.add(at, format!("are {count} lines, a send may have {}", limits::REQUEST_HEADERS_MAX), None);
        return None;
    }
    if reading.bytes > limits::REQUEST_HEADER_BYTES_MAX {
        problems.add(
            at,
            format!("take {} bytes, a send's may take {}", reading.bytes, limits::REQUEST_HEADER_BYTES_MAX),
            None,
        );
        return None;
    }
    reading.sound.then(|| reading.kept())
}

struct HeaderReader {
    /// Each with the member that it stands in.
    lines: Vec<(usize, HeaderName, HeaderValue)>,
    /// The last member of each name.
    last: HashMap<HeaderName, usize>,
    spelling: Spelling,
    /// The one that is being read.
    member: usize,
    bytes: usize,
    count: usize,
    sound: bool,
}

impl HeaderReader {
    fn values(&mut self, name: &HeaderName, value: &RawValue, at: At<'_>, problems: &mut Problems) {
        match ValueKind::of(value) {
            ValueKind::String => self.string(name, value, at, problems),
            ValueKind::Number => self.line(name, value.get(), at, problems),
            ValueKind::Array => {
                let Some(items) = elements(value, at, problems) else {
                    self.sound = false;
                    return;
                };
                for (index, item) in items.into_iter().enumerate() {
                    let at = At::Index(&at, index);
                    match ValueKind::of(item) {
                        ValueKind::String => self.string(name, item, at, problems),
                        other => {
                            problems.add(at, format!("is {}; every line must be a string", other.name()), None);
                            self.sound = false;
                        }
                    }
                }
            }
            other => {
                let hint = match other {
                    ValueKind::Null => "leave the header out",
                    ValueKind::Boolean => "put it into quotes",
                    _ => "encode it into a string",
                };
                problems.add(
                    at,
                    format!("is {}; a header is a string, a number or an array of strings", other.name()),
                    hint,
                );
                self.sound = false;
            }
        }
    }

    fn string(&mut self, name: &HeaderName, value: &RawValue, at: At<'_>, problems: &mut Problems) {
        match text(value, at, problems) {
            Some(text) => self.line(name, &text, at, problems),
            None => self.sound = false,
        }
    }

    fn line(&mut self, name: &HeaderName, text: &str, at: At<'_>, problems: &mut Problems) {
        self.count += 1;
        self.bytes = self.bytes.saturating_add(name.as_str().len() + text.len());
        if let Some(bad) = text.chars().find(|c| !matches!(c, ' '..='~')) {
            let what = if bad.is_control() { "a control character" } else { "a character outside visible ASCII" };
            problems.add(
                at,
                format!("holds {what} (U+{:04X})", u32::from(bad)),
                if bad.is_control() { None } else { Some("percent-encode it, or send it in the body") },
            );
            self.sound = false;
            return;
        }
        // RFC 9110 section 5.5: white space around a value is not part of it, and HTTP/2 forbids it.
        match HeaderValue::from_str(text.trim_matches(' ')) {
            // Past the bound the call is refused anyway, so nothing more is kept.
            Ok(value) if self.count <= limits::REQUEST_HEADERS_MAX => {
                self.lines.push((self.member, name.clone(), value));
            }
            Ok(_) => {}
            Err(_) => {
                problems.add(at, "is not a header value", None);
                self.sound = false;
            }
        }
    }

    /// Takes out what never leaves, what `connection` names, and what a later spelling of the same name replaces.
    fn kept(self) -> Headers {
        let named: Vec<String> = self
            .lines
            .iter()
            .filter(|(_, name, _)| name.as_str().replace('_', "-") == "connection")
            .filter_map(|(_, _, value)| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(|token| token.trim().to_ascii_lowercase().replace('_', "-"))
            .filter(|token| !token.is_empty())
            .collect();
        let mut headers =
            Headers { lines: Vec::with_capacity(self.lines.len() + 2), spelling: self.spelling, dropped: Vec::new() };
        for (member, name, value) in self.lines {
            let text = name.as_str();
            let dropped = is_dropped(text)
                || (!named.is_empty() && named.contains(&text.replace('_', "-")))
                || self.last.get(&name) != Some(&member);
            if !dropped {
                headers.lines.push((name, value));
            } else if !headers.dropped.iter().any(|known| known == text) {
                headers.dropped.push(text.to_owned());
            }
        }
        headers
    }
}
