//! Events for data stores: `s3` and `sql`.

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

/// An event for a table.
pub(super) fn read_sql(value: &RawValue, at: At<'_>, bounds: &Bounds, problems: &mut Problems) -> Option<Event> {
    let way = bounds.sql.way().map_err(|(detail, hint)| problems.add(at, detail, hint)).ok();
    let members = Members::expect(value, at, "it must be an object with table and payload", problems)?;
    let [table, payload] =
        known(&members, &["table", "payload"], at, problems, |key| match key.to_ascii_lowercase().as_str() {
            "schema" | "database" | "url" | "host" | "user" | "password" => {
                Some("leave it out: the operator has configured the database, and each tenant has its schema")
            }
            "data" | "body" | "event" | "row" | "record" | "content" => Some("write payload"),
            _ => None,
        });
    let table = string(table, "table", at, problems);
    if let Some(table) = &table {
        let at = At::Key(&at, "table");
        if !is_table(table) {
            problems.add(at, "is no table's name", "a letter or a digit, then up to 62 letters, digits and _");
        } else if [BATCHES_TABLE, REFUSED_TABLE].iter().any(|kept| table.eq_ignore_ascii_case(kept)) {
            problems.add(at, "is the table in which batches are kept", "give the events another");
        }
    }
    let payload = read_payload(payload, at, bounds, problems);
    if let Some(why) = payload.as_ref().and_then(|payload| not_for_jsonb(payload)) {
        problems.add(At::Key(&at, "payload"), why, "write it as PostgreSQL's jsonb can hold it");
    }
    if !problems.is_empty() {
        return None;
    }
    Event::new(Place::Sql { table: table?.as_str().into() }, way?.clone(), payload?)
}

/// Which batches are in a schema; nobody's events.
pub const BATCHES_TABLE: &str = "egressd_batches";
/// Which events of these are not, because the database refused them.
pub const REFUSED_TABLE: &str = "egressd_refused";

fn is_table(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric();
    let rest = |byte: u8| letter(byte) || byte == b'_';
    (1..=limits::SQL_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().next().is_some_and(letter)
        && name.bytes().all(rest)
}

/// Why a value that is JSON is none for jsonb: one such event would keep all others of its batch out.
fn not_for_jsonb(json: &[u8]) -> Option<&'static str> {
    let (mut depth, mut at) = (0, 0);
    while let Some(&byte) = json.get(at) {
        at += 1;
        match byte {
            b'{' | b'[' => {
                depth += 1;
                if depth > limits::SQL_JSON_DEPTH_MAX {
                    return Some("is nested too deep");
                }
            }
            b'}' | b']' => depth -= 1,
            b'"' => match string_end(json, at) {
                Ok(end) => at = end,
                Err(why) => return Some(why),
            },
            b'-' | b'0'..=b'9' => {
                let of_number = |byte: &&u8| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-');
                let length = json[at..].iter().take_while(of_number).count();
                let number = std::str::from_utf8(&json[at - 1..at + length]).unwrap_or_default();
                let exponent = number.split(['e', 'E']).nth(1).map_or(Ok(0), str::parse::<i32>);
                let is_near = exponent.is_ok_and(|exponent| exponent.unsigned_abs() <= limits::SQL_EXPONENT_MAX);
                if number.len() > limits::SQL_NUMBER_BYTES_MAX || !is_near {
                    return Some("holds a number of too many digits");
                }
                at += length;
            }
            _ => {}
        }
    }
    None
}

/// The place behind a string that begins there.
fn string_end(json: &[u8], mut at: usize) -> Result<usize, &'static str> {
    let unit = |at: usize| {
        let digits = json.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    while let Some(&byte) = json.get(at) {
        match (byte, unit(at)) {
            (b'"', _) => return Ok(at + 1),
            (b'\\', Some(0)) => return Err("holds the character U+0000"),
            (b'\\', Some(0xd800..=0xdbff)) => match unit(at + 6) {
                Some(0xdc00..=0xdfff) => at += 12,
                _ => return Err("holds half of a surrogate pair, which is no character"),
            },
            (b'\\', Some(0xdc00..=0xdfff)) => return Err("holds half of a surrogate pair, which is no character"),
            (b'\\', Some(_)) => at += 6,
            (b'\\', None) => at += 2,
            _ => at += 1,
        }
    }
    Ok(at)
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
