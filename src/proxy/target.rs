//! Where a tunnel is to lead: `host:port` (RFC 9112 section 3.2.3), judged as the URL of a send is. A `Host` header says
//! nothing here: the target alone decides.

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Uri};

use super::refusal::Refusal;
use crate::api::problem::Problem;
use crate::outcome::Failure;
use crate::policy::CheckedUrl;

/// The URL stage, of a request's target as it was written.
pub fn of_connect(target: &Uri) -> Result<CheckedUrl, Refusal> {
    let written = target.authority().map(http::uri::Authority::as_str).unwrap_or_default();
    if target.scheme().is_some() || target.path_and_query().is_some() || written.is_empty() {
        return Err(Problem::shape("CONNECT takes a host and a port: CONNECT example.com:443").into());
    }
    CheckedUrl::of_authority(written).map_err(|denial| Refusal::denied(&Failure::from(denial)))
}

/// What follows the head of a CONNECT is the tunnel's: where something else is announced, two readers would see two
/// things.
pub fn without_content(headers: &HeaderMap) -> Result<(), Refusal> {
    let empty = headers.get_all(CONTENT_LENGTH).iter().all(|length| length.as_bytes() == b"0");
    if headers.contains_key(TRANSFER_ENCODING) || !empty {
        return Err(Problem::shape("a CONNECT has no content: leave Content-Length and Transfer-Encoding out").into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Code;
    use crate::policy::Host;

    #[test]
    fn a_target_is_read_as_a_sends_url_is() {
        let named = |name: &str, port| Ok((Host::Name(name.into()), port));
        let at = |address: &str, port| Ok((Host::Address(address.parse().unwrap()), port));
        for (written, wanted) in [
            ("example.com:443", named("example.com", 443)),
            ("EXAMPLE.com:80", named("example.com", 80)),
            ("example.com.:443", named("example.com", 443)),
            ("192.0.2.1:8443", at("192.0.2.1", 8443)),
            ("[2001:db8::1]:443", at("2001:db8::1", 443)),
            ("[::ffff:127.0.0.1]:443", at("127.0.0.1", 443)),
            ("2130706433:443", at("127.0.0.1", 443)),
            ("0x7f.1:443", at("127.0.0.1", 443)),
            ("0177.0.0.1:443", at("127.0.0.1", 443)),
            ("127.1:443", at("127.0.0.1", 443)),
            ("0:443", at("0.0.0.0", 443)),
            ("169.254.43518:80", at("169.254.169.254", 80)),
            ("127.0.0.1.:80", at("127.0.0.1", 80)),
            ("example.com:0", named("example.com", 0)),
            ("example.com:25", named("example.com", 25)),
            ("example.com", Err("names no port")),
            ("example.com:", Err("names no port")),
            ("[2001:db8::1]", Err("names no port")),
            ("example.com:65536", Err("port is not a number")),
            ("example.com:+80", Err("port is not a number")),
            ("example.com:443:443", Err("port is not a number")),
            ("2001:db8::1:443", Err("port is not a number")),
            ("user@example.com:443", Err("before `@`")),
            ("user:pw@127.0.0.1:443", Err("before `@`")),
            ("[fe80::1%25eth0]:443", Err("zone id")),
            ("localhost..:443", Err("")),
            ("a..b:443", Err("")),
            ("example.com/:443", Err("")),
            ("example.com/x?y:443", Err("")),
            ("example.com#:443", Err("")),
            ("example.com\\@127.0.0.1:443", Err("backslash")),
            ("%6c%6fcalhost:443", named("localhost", 443)),
        ] {
            let url = CheckedUrl::of_authority(written);
            if let Ok(url) = &url {
                assert_eq!(CheckedUrl::of_authority(&url.host_and_port()).as_ref(), Ok(url), "{written}");
            }
            let found = url.map(|url| (url.destination().host.clone(), url.destination().port));
            match (found, wanted) {
                (Ok(found), Ok(wanted)) => assert_eq!(found, wanted, "{written}"),
                (Err(denial), Err(words)) => {
                    assert!(denial.code == Code::PolicyUrl && denial.message.contains(words), "{written}: {denial:?}");
                }
                (found, _) => panic!("{written}: {found:?}"),
            }
        }
    }

    #[test]
    fn what_announces_content_is_no_tunnel() {
        for (name, value, fine) in
            [("content-length", "0", true), ("content-length", "5", false), ("transfer-encoding", "chunked", false)]
        {
            let headers = HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]);
            assert_eq!(without_content(&headers).is_ok(), fine, "{name}: {value}");
        }
        assert!(without_content(&HeaderMap::new()).is_ok());
    }

    #[test]
    fn only_a_host_and_a_port_are_a_target() {
        for target in ["/", "*", "http://example.com:443/", "http://example.com:443"] {
            assert_eq!(of_connect(&target.parse().unwrap()).unwrap_err().status().as_u16(), 400, "{target}");
        }
        assert!(of_connect(&"example.com:443".parse().unwrap()).is_ok());
    }
}
