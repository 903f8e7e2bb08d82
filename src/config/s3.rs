//! An S3-compatible store as configured: where it is, which of its buckets may be written, and by whom.

use std::path::{Path, PathBuf};

use super::file::{Wrong, wrong};
use super::{Gathering, Secret};
use crate::limits;
use crate::policy::{CheckedUrl, Denial, Destination, Host, Scheme};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Settings {
    /// Its scheme is one of HTTP's.
    pub endpoint: Destination,
    /// The bucket goes into the path, and not before the host's name.
    pub path_style: bool,
    pub region: String,
    /// Read at each upload: whoever changes it need not tell.
    pub credentials_file: PathBuf,
    /// Empty: every bucket. Else patterns, in which `*` stands for any characters.
    pub buckets: Vec<String>,
    pub gathering: Gathering,
}

impl S3Settings {
    pub fn allows(&self, bucket: &str) -> bool {
        self.buckets.is_empty() || self.buckets.iter().any(|pattern| matches(pattern, bucket))
    }

    /// A bucket with a dot in its name is no one label, which a certificate of the store's would have to name.
    fn is_in_path(&self, bucket: &str) -> bool {
        self.path_style || (self.endpoint.scheme == Scheme::Https && bucket.contains('.'))
    }

    /// Of an object.
    pub fn url(&self, bucket: &str, key: &str) -> Result<CheckedUrl, Denial> {
        let Destination { scheme, host, port } = &self.endpoint;
        let host = match host {
            Host::Name(name) => name.to_string(),
            Host::Address(std::net::IpAddr::V6(address)) => format!("[{address}]"),
            Host::Address(address) => address.to_string(),
        };
        let scheme = if *scheme == Scheme::Https { "https" } else { "http" };
        let path = encoded(key);
        CheckedUrl::parse(&if self.is_in_path(bucket) {
            format!("{scheme}://{host}:{port}/{bucket}/{path}")
        } else {
            format!("{scheme}://{bucket}.{host}:{port}/{path}")
        })
    }

    /// Where the objects of this bucket are, as a text that another place does not have.
    pub fn placed(&self, bucket: &str) -> Option<String> {
        let url = self.url(bucket, "").ok()?;
        Some(format!("{} {}", url.as_str(), self.region))
    }

    /// What an upload into this bucket is connected to.
    pub fn way(&self, bucket: &str) -> Result<Destination, Denial> {
        self.url(bucket, "").map(|url| url.destination().clone())
    }
}

/// As a path holds it (RFC 3986 section 2): everything that is not unreserved, but for `/`, by its bytes.
fn encoded(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    for byte in key.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut last = None;
    for part in parts {
        if let Some(before) = last.replace(part) {
            let Some(at) = rest.find(before) else { return false };
            rest = &rest[at + str::len(before)..];
        }
    }
    last.map_or(rest.is_empty(), |last| rest.ends_with(last))
}

/// Whether a bucket may be called so (S3's rules for general purpose buckets).
pub fn is_bucket(name: &str) -> bool {
    let good = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    (3..=limits::BUCKET_CHARS_MAX).contains(&bytes.len())
        && bytes.iter().all(|byte| good(*byte))
        && ends(bytes.first())
        && ends(bytes.last())
        && name.split('.').all(|label| !label.is_empty() && !label.starts_with('-') && !label.ends_with('-'))
        && name.parse::<std::net::Ipv4Addr>().is_err()
}

/// Who writes there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Credentials {
    pub access_key_id: String,
    pub secret_access_key: Secret,
    /// Of credentials that last a while.
    pub session_token: Option<Secret>,
}

impl S3Credentials {
    /// A file in AWS's form, of one profile.
    pub fn read(path: &Path) -> Result<Self, Wrong> {
        const FIX: &str = "a file with aws_access_key_id and aws_secret_access_key, in one profile";
        let named = path.display();
        let bytes = super::check::read_small(path, limits::CREDENTIALS_BYTES_MAX)
            .map_err(|cause| wrong(format!("{named} cannot be read: {cause}"), FIX))?;
        let text = String::from_utf8(bytes).map_err(|_| wrong(format!("{named} is not UTF-8"), FIX))?;
        Self::parse(&text).map_err(|why| wrong(format!("{named} {why}"), FIX))
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        let (mut id, mut secret, mut token, mut profiles) = (None, None, None, 0);
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if line.starts_with('[') {
                profiles += 1;
                if profiles > 1 {
                    return Err("has more than one profile");
                }
                continue;
            }
            let Some((name, value)) = line.split_once('=') else { return Err("has a line that is no name = value") };
            let value = value.trim();
            if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err("has a value that is empty or has more than visible ASCII");
            }
            match name.trim() {
                "aws_access_key_id" => id = Some(value.to_owned()),
                "aws_secret_access_key" => secret = Some(Secret::new(value.to_owned())),
                "aws_session_token" => token = Some(Secret::new(value.to_owned())),
                // Others read the same file.
                _ => {}
            }
        }
        let access_key_id = id.ok_or("has no aws_access_key_id")?;
        let secret_access_key = secret.ok_or("has no aws_secret_access_key")?;
        Ok(Self { access_key_id, secret_access_key, session_token: token })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(path_style: bool, scheme: Scheme, host: &str, port: u16) -> S3Settings {
        S3Settings {
            endpoint: Destination { scheme, host: Host::Name(host.into()), port },
            path_style,
            region: "us-east-1".to_owned(),
            credentials_file: PathBuf::new(),
            buckets: Vec::new(),
            gathering: Gathering::default(),
        }
    }

    #[test]
    fn a_bucket_stands_before_the_hosts_name_or_in_the_path() {
        let host = "s3.example.net";
        for (path_style, scheme, port, bucket, wanted) in [
            (false, Scheme::Https, 443, "logs", "https://logs.s3.example.net/a/b%20c%2Bd/%C3%A9.gz"),
            (false, Scheme::Https, 8443, "logs", "https://logs.s3.example.net:8443/a/b%20c%2Bd/%C3%A9.gz"),
            (true, Scheme::Http, 9000, "logs", "http://s3.example.net:9000/logs/a/b%20c%2Bd/%C3%A9.gz"),
            (false, Scheme::Https, 443, "my.logs", "https://s3.example.net/my.logs/a/b%20c%2Bd/%C3%A9.gz"),
            (false, Scheme::Http, 80, "my.logs", "http://my.logs.s3.example.net/a/b%20c%2Bd/%C3%A9.gz"),
        ] {
            let url = settings(path_style, scheme, host, port).url(bucket, "a/b c+d/\u{e9}.gz").expect("a URL");
            assert_eq!(url.as_str(), wanted);
        }
    }

    #[test]
    fn names_of_buckets_and_patterns_of_them() {
        for good in ["abc", "a-b.c-1", "1logs", &"a".repeat(63)] {
            assert!(is_bucket(good), "{good}");
        }
        for bad in ["", "ab", "Logs", "a_b", "-ab", "ab-", "a..b", "a.-b", "10.0.0.1", "a/b", "a b", &"a".repeat(64)] {
            assert!(!is_bucket(bad), "{bad}");
        }
        for (pattern, bucket, is_one) in [
            ("logs", "logs", true),
            ("logs", "logs-2", false),
            ("logs-*", "logs-2", true),
            ("*-logs", "a-logs", true),
            ("*-logs", "a-logs-b", false),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXYc", false),
            ("a*b", "ab", true),
            ("ab*b", "ab", false),
            ("*", "anything", true),
        ] {
            let one = S3Settings { buckets: vec![pattern.to_owned()], ..settings(true, Scheme::Https, "h", 443) };
            assert_eq!(one.allows(bucket), is_one, "{pattern} {bucket}");
        }
        assert!(settings(true, Scheme::Https, "h", 443).allows("anything"));
    }

    #[test]
    fn credentials_are_read_as_aws_writes_them() {
        let text = "# ours\n[default]\naws_access_key_id = AKID\naws_secret_access_key=s/e+c=ret\nregion = eu\n";
        let read = S3Credentials::parse(text).expect("credentials");
        assert_eq!((read.access_key_id.as_str(), read.secret_access_key.expose()), ("AKID", "s/e+c=ret"));
        assert_eq!(read.session_token, None);
        assert!(!format!("{read:?}").contains("c=ret"));
        let with_token = S3Credentials::parse(&format!("{text}aws_session_token = tok\n")).expect("credentials");
        assert_eq!(with_token.session_token.as_ref().map(Secret::expose), Some("tok"));
        for (text, why) in [
            ("", "has no aws_access_key_id"),
            ("aws_access_key_id = a", "has no aws_secret_access_key"),
            ("[a]\n[b]\n", "has more than one profile"),
            ("nothing", "has a line that is no name = value"),
            ("aws_access_key_id =", "has a value that is empty or has more than visible ASCII"),
        ] {
            assert_eq!(S3Credentials::parse(text), Err(why), "{text}");
        }
    }
}
