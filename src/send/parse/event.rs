//! Events for data stores: `s3`.

use bytes::Bytes;
use serde_json::value::RawValue;

use super::{At, Bounds, Members, Problems, ValueKind, known, text};
use crate::config::s3::is_bucket;
use crate::limits;
use crate::send::{Event, Place};

/// An event for a bucket.
pub(super) fn read_s3(value: &RawValue, at: At<'_>, bounds: &Bounds, problems: &mut Problems) -> Option<Event> {
    if bounds.s3.is_none() {
        problems.add(
            at,
            "this node's operator has not set S3 up",
            "ask the operator for [destination.s3], or send to a URL",
        );
    }
    let members = Members::expect(value, at, "it must be an object with bucket, prefix and payload", problems)?;
    let [bucket_value, prefix_value, payload] =
        known(&members, &["bucket", "prefix", "payload"], at, problems, |key| {
            match key.to_ascii_lowercase().as_str() {
                "key" | "path" | "folder" | "directory" => {
                    Some("write prefix: the rest of an object's key is made here")
                }
                "data" | "body" | "event" | "record" | "content" => Some("write payload"),
                "endpoint" | "region" | "credentials" | "access_key_id" | "secret_access_key" => {
                    Some("leave it out: the operator has configured the store")
                }
                _ => None,
            }
        });
    let bucket = string(bucket_value, "bucket", at, problems);
    let prefix = string(prefix_value, "prefix", at, problems);
    let payload = read_payload(payload, at, bounds, problems);
    if let Some(bucket) = &bucket {
        let at = At::Key(&at, "bucket");
        if !is_bucket(bucket) {
            let hint = "3 to 63 of a-z, 0-9, - and ., a letter or a digit at both ends";
            problems.add(at, "is not a bucket's name", hint);
        } else if bounds.s3.as_ref().is_some_and(|set_up| !set_up.allows(bucket)) {
            problems.add(at, "is not one of the buckets that the operator allows", "ask the operator");
        }
    }
    if let Some(prefix) = &prefix {
        read_prefix(prefix, At::Key(&at, "prefix"), problems);
    }
    let (bucket, prefix, set_up) = (bucket?, prefix?, bounds.s3.as_ref()?);
    if !problems.is_empty() {
        return None;
    }
    let way = match set_up.way(&bucket) {
        Ok(way) => way,
        Err(denial) => {
            problems.add(At::Key(&at, "bucket"), format!("makes no host of the store's: {}", denial.message), None);
            return None;
        }
    };
    let prefix = prefix.strip_suffix('/').unwrap_or(&prefix);
    Event::new(Place::S3 { bucket: bucket.as_str().into(), prefix: prefix.into() }, way, payload?)
}

fn read_prefix(prefix: &str, at: At<'_>, problems: &mut Problems) {
    if prefix.len() > limits::PREFIX_BYTES_MAX {
        let detail = format!("has {} bytes, at most {} may stand here", prefix.len(), limits::PREFIX_BYTES_MAX);
        problems.add(at, detail, None);
    }
    if prefix.contains(char::is_control) {
        problems.add(at, "holds a control character", "take it out");
    }
    if prefix.split('/').any(|part| matches!(part, "." | "..")) {
        problems.add(at, "has a part that is . or .., which a URL's path cannot keep", "name the folders themselves");
    }
}

fn string(value: Option<&RawValue>, name: &'static str, at: At<'_>, problems: &mut Problems) -> Option<String> {
    let place = At::Key(&at, name);
    let Some(value) = value else {
        problems.add(place, "is missing: an event needs it", None);
        return None;
    };
    if ValueKind::of(value) != ValueKind::String {
        problems.add(place, format!("is {}; it must be a string", ValueKind::of(value).name()), None);
        return None;
    }
    text(value, place, problems).map(std::borrow::Cow::into_owned)
}

/// In its own bytes.
fn read_payload(value: Option<&RawValue>, at: At<'_>, bounds: &Bounds, problems: &mut Problems) -> Option<Bytes> {
    let at = At::Key(&at, "payload");
    let Some(value) = value else {
        problems.add(at, "is missing: an event needs it", None);
        return None;
    };
    match ValueKind::of(value) {
        ValueKind::Object | ValueKind::Array => {}
        ValueKind::String => drop(text(value, at, problems)?),
        other => {
            let detail = format!("is {}; it must be an object, an array or a string", other.name());
            problems.add(at, detail, None);
            return None;
        }
    }
    let bytes = value.get().as_bytes();
    if bytes.len() as u64 > bounds.request_body {
        problems.too_large(
            at,
            format!("has {} bytes, one send may have {}", bytes.len(), bounds.request_body),
            "send less, or raise `[limits] request_body`",
        );
        return None;
    }
    Some(Bytes::copy_from_slice(bytes))
}
