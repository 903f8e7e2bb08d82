//! Any text as a URL: what is accepted reads the same to everyone, and names nothing that the rules forbid.
#![no_main]

use std::net::IpAddr;
use std::sync::LazyLock;

use egressd::config::HostPattern;
use egressd::policy::url::without_userinfo;
use egressd::policy::{CheckedUrl, Host, Policy, name};
use libfuzzer_sys::fuzz_target;

mod policy;

static POLICY: LazyLock<Policy> = LazyLock::new(policy::default_policy);

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for raw in [text.to_owned(), format!("http://{text}"), format!("https://{text}/")] {
        match CheckedUrl::parse(&raw) {
            Ok(url) => accepted(&url),
            Err(_) => refused(&raw),
        }
    }
    if let Ok(pattern) = HostPattern::parse(text) {
        let (HostPattern::Exact(host) | HostPattern::Under(host)) = &pattern;
        assert!(Host::parse(host).is_ok_and(|again| again.text() == **host), "{text:?}");
    }
    if let Ok(canonical) = name::canonical(text) {
        assert_eq!(name::canonical(&canonical).as_ref(), Ok(&canonical), "{text:?}");
    }
    if let Ok(with) = CheckedUrl::parse("https://receiver.com/a").and_then(|url| url.with_query(Some(text))) {
        accepted(&with);
    }
});

fn accepted(url: &CheckedUrl) {
    let shown = url.as_str();
    assert_eq!(CheckedUrl::parse(shown).as_ref(), Ok(url), "{shown:?}");
    for part in [shown, &url.origin_form(), &url.authority()] {
        assert!(part.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\'), "{part:?}");
    }
    let uri: http::Uri = url.origin_form().parse().unwrap_or_else(|error| panic!("{error}: {shown:?}"));
    assert_eq!(uri.path_and_query().map(|target| target.as_str()), Some(&*url.origin_form()));
    let authority: http::uri::Authority = url.authority().parse().unwrap_or_else(|error| panic!("{error}: {shown:?}"));
    assert!(!authority.as_str().contains('@'), "{shown:?}");
    let destination = url.destination();
    assert_eq!(authority.port_u16().unwrap_or(destination.scheme.default_port()), destination.port, "{shown:?}");

    let written = authority.host();
    match &destination.host {
        Host::Name(host) => {
            assert_eq!(written.trim_end_matches('.'), &**host);
            // No name that any other parser would take for an address.
            assert!(
                !host.rsplit('.').next().is_some_and(|last| last.starts_with(|c: char| c.is_ascii_digit())
                    && (last.bytes().all(|byte| byte.is_ascii_digit())
                        || last.starts_with("0x") && last[2..].bytes().all(|byte| byte.is_ascii_hexdigit()))),
                "{shown:?}"
            );
            if policy::passes(&POLICY, url) {
                assert!(host.contains('.'), "{shown:?}");
                for closed in ["localhost", "internal", "local", "corp", "arpa", "metadata.goog"] {
                    assert!(!format!(".{host}").ends_with(&format!(".{closed}")), "{shown:?}");
                }
            }
        }
        Host::Address(address) => {
            let plain: IpAddr = written.trim_matches(['[', ']']).parse().unwrap_or_else(|_| panic!("{shown:?}"));
            assert_eq!(plain.to_canonical(), *address);
            policy::verdict(&POLICY, url, *address);
        }
    }
}

/// What is shown of a refused URL holds nothing that a lenient parser would read as a user name or password.
fn refused(raw: &str) {
    let shown = without_userinfo(raw, |_| String::new());
    if let Ok(url) = url::Url::parse(&shown)
        && matches!(url.scheme(), "http" | "https")
    {
        assert!(url.username().is_empty() && url.password().is_none(), "{raw:?} shown as {shown:?}");
    }
}
