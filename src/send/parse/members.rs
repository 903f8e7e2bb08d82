//! JSON read no further than it is asked about: values stay raw, and members keep their order and their doubles.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{At, Problems};
use crate::limits;

/// The kinds of JSON value, told from the first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ValueKind {
    Null,
    Boolean,
    Number,
    String,
    Array,
    Object,
}

impl ValueKind {
    pub(crate) fn of(raw: &RawValue) -> Self {
        match raw.get().as_bytes().first() {
            Some(b'"') => Self::String,
            Some(b'{') => Self::Object,
            Some(b'[') => Self::Array,
            Some(b't' | b'f') => Self::Boolean,
            Some(b'n') => Self::Null,
            _ => Self::Number,
        }
    }

    /// With its article, for messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Boolean => "a boolean",
            Self::Number => "a number",
            Self::String => "a string",
            Self::Array => "an array",
            Self::Object => "an object",
        }
    }
}

/// A string that borrows from the call where it has no escapes.
pub(crate) struct Text<'a>(pub(crate) Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AsText;
        impl<'de> Visitor<'de> for AsText {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(AsText)
    }
}

/// What stands in an object or an array, as far as it is not too much; all of it is counted.
struct Counted<T> {
    kept: Vec<T>,
    count: usize,
}

impl<T> Counted<T> {
    fn note(&mut self, one: T) {
        self.count += 1;
        if self.count <= limits::MEMBERS_MAX {
            self.kept.push(one);
        }
    }

    fn all(self, what: &str, at: At<'_>, problems: &mut Problems) -> Option<Vec<T>> {
        if self.count > limits::MEMBERS_MAX {
            let detail = format!("has {} {what}, and at most {} are read", self.count, limits::MEMBERS_MAX);
            problems.too_large(at, detail, "send fewer");
            return None;
        }
        Some(self.kept)
    }
}

impl<'de> Deserialize<'de> for Counted<(Cow<'de, str>, &'de RawValue)> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AsMembers;
        impl<'de> Visitor<'de> for AsMembers {
            type Value = Counted<(Cow<'de, str>, &'de RawValue)>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Counted { kept: Vec::with_capacity(8), count: 0 };
                while let Some(Text(key)) = map.next_key()? {
                    members.note((key, map.next_value::<&'de RawValue>()?));
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(AsMembers)
    }
}

impl<'de> Deserialize<'de> for Counted<&'de RawValue> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AsElements;
        impl<'de> Visitor<'de> for AsElements {
            type Value = Counted<&'de RawValue>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
                let mut elements = Counted { kept: Vec::new(), count: 0 };
                while let Some(element) = sequence.next_element()? {
                    elements.note(element);
                }
                Ok(elements)
            }
        }
        deserializer.deserialize_seq(AsElements)
    }
}

/// The elements of a value that is known to be an array, unread; there being too many is all that can fail.
pub(crate) fn elements<'a>(raw: &'a RawValue, at: At<'_>, problems: &mut Problems) -> Option<Vec<&'a RawValue>> {
    match serde_json::from_str::<Counted<&'a RawValue>>(raw.get()) {
        Ok(elements) => elements.all("elements", at, problems),
        Err(error) => {
            problems.add(at, format!("is not an array that can be read: {error}"), None);
            None
        }
    }
}

/// The members of an object in order, duplicates included, values unread.
pub(crate) struct Members<'a>(pub(crate) Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    /// Reads a value that is known to be an object; a key that cannot be decoded, and too many of them, are all that
    /// can fail.
    pub(crate) fn read(raw: &'a RawValue, at: At<'_>, problems: &mut Problems) -> Option<Self> {
        match serde_json::from_str::<Counted<(Cow<'a, str>, &'a RawValue)>>(raw.get()) {
            Ok(members) => members.all("members", at, problems).map(Self),
            Err(_) => {
                problems.add(at, "holds a key with an escape that is no character", "write keys as plain text");
                None
            }
        }
    }

    /// Reads an object, or says that there should be one.
    pub(crate) fn expect(raw: &'a RawValue, at: At<'_>, what: &str, problems: &mut Problems) -> Option<Self> {
        match ValueKind::of(raw) {
            ValueKind::Object => Self::read(raw, at, problems),
            other => {
                problems.add(at, format!("is {}; {what}", other.name()), None);
                None
            }
        }
    }
}

/// Decodes a string value; an unpaired surrogate is the only thing that can fail.
pub(crate) fn text<'a>(raw: &'a RawValue, at: At<'_>, problems: &mut Problems) -> Option<Cow<'a, str>> {
    match serde_json::from_str::<Text<'a>>(raw.get()) {
        Ok(Text(text)) => Some(text),
        Err(_) => {
            problems.add(at, "holds half of a surrogate pair, which is no character", "send bytes with data_base64");
            None
        }
    }
}
