//! A send's body: `data` of any JSON kind, or bytes in base64.
//!
//! An object, array, number or boolean goes out as the bytes that stand in the call; a string as its text; a flat
//! object under `application/x-www-form-urlencoded` as a form. Bodies that make up most of their call share its
//! memory; others are copied, so that one small body does not keep a large call alive.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use serde_json::value::RawValue;

use super::parse::{At, Bounds, Members, Problems, ValueKind, text};

/// What a body is, for the `Content-Type` it gets where the author gives none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyKind {
    Json,
    Text,
    Bytes,
    /// Only where the author named the type.
    Form,
}

impl BodyKind {
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Text => "text/plain; charset=utf-8",
            Self::Bytes => "application/octet-stream",
            Self::Form => FORM,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct Body {
    pub kind: BodyKind,
    pub bytes: Bytes,
}

const FORM: &str = "application/x-www-form-urlencoded";

/// Base64 as most encoders write it; the padding may be left out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Whether this `Content-Type` asks for a form, whatever its parameters.
pub fn is_form(content_type: &str) -> bool {
    content_type.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(FORM)
}

/// RFC 2046 section 5.1.
fn is_multipart(content_type: &str) -> bool {
    content_type.trim_start().get(..10).is_some_and(|start| start.eq_ignore_ascii_case("multipart/"))
}

/// `None`: there is no body, or there are problems.
pub(crate) fn read(
    call: &Bytes,
    at: At<'_>,
    data: Option<&RawValue>,
    data_base64: Option<&RawValue>,
    content_type: Option<&str>,
    bounds: &Bounds,
    problems: &mut Problems,
) -> Option<Body> {
    let (at, body) = match (data, data_base64) {
        (None, None) => return None,
        (Some(_), Some(_)) => {
            problems.add(
                At::Key(&at, "data_base64"),
                "stands beside data: a request has one body",
                "keep data for JSON and text, data_base64 for bytes",
            );
            return None;
        }
        (Some(data), None) => {
            let at = At::Key(&at, "data");
            (at, from_data(call, at, data, content_type, problems)?)
        }
        (None, Some(encoded)) => {
            let at = At::Key(&at, "data_base64");
            (at, from_base64(at, encoded, problems)?)
        }
    };
    if body.bytes.len() as u64 > bounds.request_body {
        problems.too_large(
            at,
            format!("makes a body of {} bytes, one send may have {}", body.bytes.len(), bounds.request_body),
            "send less, or raise `[limits] request_body`",
        );
        return None;
    }
    Some(body)
}

fn from_data(
    call: &Bytes,
    at: At<'_>,
    data: &RawValue,
    content_type: Option<&str>,
    problems: &mut Problems,
) -> Option<Body> {
    let form = content_type.is_some_and(is_form);
    let multipart = content_type.is_some_and(is_multipart);
    match ValueKind::of(data) {
        ValueKind::Null => None,
        kind @ (ValueKind::Object | ValueKind::Array) if multipart => {
            problems.add(
                at,
                format!("is {}, and a multipart type has parts with a boundary, which JSON is not", kind.name()),
                "leave the Content-Type out to send JSON, write application/x-www-form-urlencoded to send a form, or encode the parts yourself (data or data_base64, with the boundary in the Content-Type)",
            );
            None
        }
        ValueKind::String => {
            let text = text(data, at, problems)?;
            let bytes = match text {
                std::borrow::Cow::Borrowed(text) => shared(call, text.as_bytes()),
                std::borrow::Cow::Owned(text) => Bytes::from(text),
            };
            Some(Body { kind: BodyKind::Text, bytes })
        }
        ValueKind::Object if form => {
            let members = Members::read(data, at, problems)?;
            form_encoded(at, &members, problems)
        }
        ValueKind::Array if form => {
            problems.add(
                at,
                "is an array, which a form cannot carry",
                "send an object of plain values, a string that is encoded already, or another Content-Type",
            );
            None
        }
        ValueKind::Object | ValueKind::Array | ValueKind::Number | ValueKind::Boolean => {
            Some(Body { kind: BodyKind::Json, bytes: shared(call, data.get().as_bytes()) })
        }
    }
}

/// WHATWG URL, `application/x-www-form-urlencoded` serializing; `null` is left out, as in `params`.
fn form_encoded(at: At<'_>, members: &Members<'_>, problems: &mut Problems) -> Option<Body> {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    let mut seen = std::collections::HashSet::new();
    let mut sound = true;
    for (key, value) in &members.0 {
        let at = At::Key(&at, key);
        if !seen.insert(key.as_ref()) {
            problems.add(at, "stands here a second time", "keep one of the two");
            sound = false;
        }
        match ValueKind::of(value) {
            ValueKind::Null => {}
            ValueKind::String => match text(value, at, problems) {
                Some(text) => _ = form.append_pair(key, &text),
                None => sound = false,
            },
            ValueKind::Number | ValueKind::Boolean => _ = form.append_pair(key, value.get()),
            nested @ (ValueKind::Array | ValueKind::Object) => {
                problems.add(
                    at,
                    format!("is {}: a form carries plain values only", nested.name()),
                    "flatten it, encode it into a string yourself, or use another Content-Type",
                );
                sound = false;
            }
        }
    }
    sound.then(|| Body { kind: BodyKind::Form, bytes: Bytes::from(form.finish()) })
}

fn from_base64(at: At<'_>, encoded: &RawValue, problems: &mut Problems) -> Option<Body> {
    if ValueKind::of(encoded) != ValueKind::String {
        problems.add(at, format!("is {}; it must be a string of base64", ValueKind::of(encoded).name()), None);
        return None;
    }
    let encoded = text(encoded, at, problems)?;
    match BASE64.decode(encoded.as_bytes()) {
        Ok(bytes) => Some(Body { kind: BodyKind::Bytes, bytes: Bytes::from(bytes) }),
        Err(_) => {
            let hint = if encoded.contains(['-', '_']) {
                "this looks like the URL-safe alphabet: use + and /"
            } else if encoded.starts_with("data:") {
                "leave out everything up to and including the comma of the data: URL"
            } else {
                "use the standard alphabet (RFC 4648 section 4), without line breaks"
            };
            problems.add(at, "is not base64", hint);
            None
        }
    }
}

/// `part` of `call`, sharing its memory where that does not keep much more alive than is used.
fn shared(call: &Bytes, part: &[u8]) -> Bytes {
    if part.len() * 2 >= call.len() { call.slice_ref(part) } else { Bytes::copy_from_slice(part) }
}
