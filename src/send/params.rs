//! A send's `params`: what they add to, and replace in, the query of its URL.
//!
//! Percent-encoding leaves only RFC 3986's unreserved characters as they are, so a space is `%20` and a plus sign
//! is `%2B`: both readings of `+` agree. What stays of the URL's own query keeps its bytes.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::parse::{At, Members, Problems, ValueKind, elements, text};

/// Keys in order, each with its values; a key without values only takes the URL's own out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Params(Vec<(String, Vec<String>)>);

impl Params {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The query that goes out; `None`: none at all.
    pub(crate) fn applied_to(&self, query: Option<&str>) -> Option<String> {
        let mut out = String::new();
        let names: std::collections::HashSet<&str> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        for part in query.unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
            let replaced =
                url::form_urlencoded::parse(part.as_bytes()).next().is_some_and(|(key, _)| names.contains(&*key));
            if !replaced {
                separate(&mut out);
                out.push_str(part);
            }
        }
        for (key, values) in &self.0 {
            for value in values {
                separate(&mut out);
                percent_encode(key, &mut out);
                out.push('=');
                percent_encode(value, &mut out);
            }
        }
        (!out.is_empty()).then_some(out)
    }
}

fn separate(out: &mut String) {
    if !out.is_empty() {
        out.push('&');
    }
}

fn percent_encode(text: &str, out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

/// `None` goes with at least one problem.
pub(crate) fn read(value: &RawValue, at: At<'_>, problems: &mut Problems) -> Option<Params> {
    let members = Members::expect(value, at, "it must be an object of names and values, e.g. {\"page\": 2}", problems)?;
    let mut params = Params(Vec::with_capacity(members.0.len()));
    let mut seen = std::collections::HashSet::with_capacity(members.0.len());
    let mut sound = true;
    for (key, value) in &members.0 {
        let at = At::Key(&at, key);
        if !seen.insert(key.as_ref()) {
            problems.add(at, "stands here a second time", "give an array to repeat the key");
            sound = false;
            continue;
        }
        let mut values = Vec::new();
        match ValueKind::of(value) {
            ValueKind::Null => continue,
            ValueKind::Array => match elements(value, at, problems) {
                Some(items) => {
                    for (index, item) in items.into_iter().enumerate() {
                        let at = At::Index(&at, index);
                        match ValueKind::of(item) {
                            ValueKind::Null => {}
                            _ => match plain(item, at, problems) {
                                Some(text) => values.push(text.into_owned()),
                                None => sound = false,
                            },
                        }
                    }
                }
                None => sound = false,
            },
            _ => match plain(value, at, problems) {
                Some(text) => values.push(text.into_owned()),
                None => sound = false,
            },
        }
        params.0.push((key.clone().into_owned(), values));
    }
    sound.then_some(params)
}

/// A string's text, or a number's or boolean's as it stands in the call.
fn plain<'a>(value: &'a RawValue, at: At<'_>, problems: &mut Problems) -> Option<Cow<'a, str>> {
    match ValueKind::of(value) {
        ValueKind::String => text(value, at, problems),
        ValueKind::Number | ValueKind::Boolean => Some(Cow::Borrowed(value.get())),
        other => {
            problems.add(
                at,
                format!("is {}; a parameter is a string, a number, a boolean or an array of them", other.name()),
                "encode it into a string, e.g. with JSON.stringify",
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// CPU that this thread has used.
    fn cpu() -> Duration {
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux says").into()
    }

    /// A query of so many parts, and as many params, none of which it names: or each of them.
    fn applied(count: usize, named: bool) -> Duration {
        let parts: Vec<String> = (0..count).map(|n| format!("a{n}=1")).collect();
        let name = |n: usize| if named { format!("a{n}") } else { format!("b{n}") };
        let params = Params((0..count).map(|n| (name(n), Vec::new())).collect());
        let query = parts.join("&");
        let before = cpu();
        let out = params.applied_to(Some(&query));
        let spent = cpu() - before;
        assert_eq!(out, (!named).then_some(query));
        spent
    }

    #[test]
    fn what_params_cost_grows_with_them_and_with_the_query_and_not_with_their_product() {
        const TIMES: usize = 32;
        for named in [false, true] {
            let few: Duration = (0..TIMES).map(|_| applied(250, named)).sum();
            let many = applied(250 * TIMES, named);
            // Were it the product, it would take so many times as long.
            assert!(many < few * (TIMES / 4) as u32, "{many:?}, and {few:?} in {TIMES} parts");
        }
    }

    #[test]
    fn params_without_values_take_the_querys_own_out() {
        let params = Params(vec![("a".to_owned(), vec![]), ("b c".to_owned(), vec!["x y".to_owned(), "+".to_owned()])]);
        for (query, out) in [
            (None, Some("b%20c=x%20y&b%20c=%2B")),
            (Some("a=1&d=%7e&&b+c=2&b%20c=3&A=4"), Some("d=%7e&A=4&b%20c=x%20y&b%20c=%2B")),
            (Some("a"), Some("b%20c=x%20y&b%20c=%2B")),
        ] {
            assert_eq!(params.applied_to(query).as_deref(), out, "{query:?}");
        }
        let none = Params(vec![("a".to_owned(), vec![])]);
        assert_eq!(none.applied_to(Some("a=1&a=2")), None);
    }
}
