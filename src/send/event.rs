//! An event for a data store that the operator has set up: a place there, and what is to be written.
//!
//! Events of one tenant for one place are carried together. Nothing here names a store: which one it is, and how it is
//! reached, is the configuration's.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::Kind;
use crate::policy::Destination;

/// Where events gather. No part of it holds a control character.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// `prefix` is without its last `/`, and may be empty.
    S3 { bucket: Arc<str>, prefix: Arc<str> },
    /// In the tenant's own schema.
    Sql { table: Arc<str> },
}

impl Place {
    pub fn kind(&self) -> Kind {
        match self {
            Self::S3 { .. } => Kind::S3,
            Self::Sql { .. } => Kind::Sql,
        }
    }

    /// One text for all of it; [`Self::read`] reads it.
    pub fn text(&self) -> String {
        match self {
            Self::S3 { bucket, prefix } => format!("{bucket}\n{prefix}"),
            Self::Sql { table } => table.to_string(),
        }
    }

    /// `None`: no such text.
    pub fn read(kind: Kind, text: &str) -> Option<Self> {
        match kind {
            Kind::S3 => {
                let (bucket, prefix) = text.split_once('\n')?;
                Some(Self::S3 { bucket: bucket.into(), prefix: prefix.into() })
            }
            Kind::Sql => Some(Self::Sql { table: text.into() }),
            Kind::Http | Kind::Email => None,
        }
    }
}

/// As people read it.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            Self::Sql { table } => f.write_str(table),
        }
    }
}

/// What an author writes of an event, and what it is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    place: Place,
    way: Destination,
    /// JSON: an object, an array or a string, in its author's own bytes.
    payload: Bytes,
}

impl Event {
    /// `way`: what the configuration in force connects to. Another may be in force when it is carried; this is what caps,
    /// lists and suspensions know it by. `None`: the payload is no JSON of these kinds.
    pub fn new(place: Place, way: Destination, payload: Bytes) -> Option<Self> {
        matches!(payload.first(), Some(b'{' | b'[' | b'"')).then_some(Self { place, way, payload })
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    pub fn way(&self) -> &Destination {
        &self.way
    }

    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The event in one line, without its end: JSON as it stands, a string as its text, but as JSON where its text has a
    /// line's end in it.
    pub fn line(&self) -> Cow<'_, [u8]> {
        let is_end = |byte: &u8| matches!(byte, b'\n' | b'\r');
        if self.payload.first() == Some(&b'"') {
            return match serde_json::from_slice::<String>(&self.payload) {
                Ok(text) if !text.as_bytes().iter().any(is_end) => Cow::Owned(text.into_bytes()),
                _ => Cow::Borrowed(&self.payload),
            };
        }
        // In JSON these stand between tokens alone, and nothing needs them there.
        if self.payload.iter().any(is_end) {
            return Cow::Owned(self.payload.iter().copied().filter(|byte| !is_end(byte)).collect());
        }
        Cow::Borrowed(&self.payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Host, Scheme};

    #[test]
    fn an_event_is_one_line_and_every_byte_of_it_its_authors() {
        let way = Destination { scheme: Scheme::Https, host: Host::Name("s3.example.net".into()), port: 443 };
        let place = Place::S3 { bucket: "b".into(), prefix: "p/q".into() };
        assert_eq!(Place::read(Kind::S3, &place.text()), Some(place.clone()));
        for (payload, line) in [
            (r#"{"a": 1.50, "a": 1e2}"#, r#"{"a": 1.50, "a": 1e2}"#),
            ("[1,\n  2,\r\n\t3]", "[1,  2,\t3]"),
            (r#"{"text": "one\ntwo"}"#, r#"{"text": "one\ntwo"}"#),
            (r#""caf\u00e9, \"so\"""#, "caf\u{e9}, \"so\""),
            (r#""""#, ""),
            (r#""one\ntwo""#, r#""one\ntwo""#),
            (r#""one\rtwo""#, r#""one\rtwo""#),
        ] {
            let event = Event::new(place.clone(), way.clone(), Bytes::from(payload)).expect("an event");
            assert_eq!(std::str::from_utf8(&event.line()), Ok(line), "{payload}");
        }
        for payload in ["", "1", "true", "null"] {
            assert_eq!(Event::new(place.clone(), way.clone(), Bytes::from(payload)), None, "{payload}");
        }
    }
}
