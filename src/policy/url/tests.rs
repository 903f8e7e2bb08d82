//! Every disguise of a host with the verdict and the code it must get, on the whole way from the text to the judged
//! answer; and what holds for every URL that is accepted.

use proptest::prelude::*;

use super::*;
use crate::policy::fixtures::{PUBLIC, Question};

/// How a send to this URL ends by default, its name resolving to a public address.
fn fate(raw: &str) -> &'static str {
    Question::default().ask(raw).word()
}

#[test]
fn userinfo_is_hidden_wherever_a_parser_could_see_it() {
    for (raw, shown) in [
        ("https://user:pw@host/path", "https://***@host/path"),
        ("https://user:p/w@host/", "https://***@host/"),
        ("user:pw@host", "***@host"),
        ("http:user:pw@host", "http:***@host"),
        ("http:\\\\user:pw@host", "http:\\\\***@host"),
        ("https://user:pw%40host", "https://***%40host"),
        ("https://user:pw＠host", "https://***＠host"),
        ("ftp://a:b@c@d/", "ftp://***@d/"),
        (" https://user:pw@host", " https://***@host"),
        ("https://host/a b", "https://host/a b"),
        ("https://host/a%40b c", "https://host/a%40b c"),
        ("https://@host", "https://@host"),
        ("", ""),
    ] {
        assert_eq!(without_userinfo(raw, |_| "***".to_owned()), shown, "{raw}");
    }
}

/// Loopback, localhost and link-local in disguise, each written as a host.
const DISGUISED_HOSTS: &[(&str, &str)] = &[
    // Numbers that the C library and the URL Standard read as addresses.
    ("2130706433", "policy_address"),
    ("0x7f000001", "policy_address"),
    ("0X7F000001", "policy_address"),
    ("0x7f.1", "policy_address"),
    ("0X7F.0.0.1", "policy_address"),
    ("0x7F.0x0.0x0.0x1", "policy_address"),
    ("0177.0.0.1", "policy_address"),
    ("0177.0x0.0.1", "policy_address"),
    ("017700000001", "policy_address"),
    ("00000000177.0.0.1", "policy_address"),
    ("127.1", "policy_address"),
    ("127.0.1", "policy_address"),
    ("127.1.", "policy_address"),
    ("127.65535", "policy_address"),
    ("127.0.0.0x1", "policy_address"),
    ("0", "policy_address"),
    ("00", "policy_address"),
    ("0.", "policy_address"),
    ("0.0", "policy_address"),
    ("0x", "policy_address"),
    ("0x.0x.0x.0x", "policy_address"),
    ("%30", "policy_address"),
    ("4294967295", "policy_address"),
    ("0300.0250.1", "policy_address"),
    ("3232235521", "policy_address"),
    ("10.1", "policy_address"),
    ("012.1", "policy_address"),
    ("0xa000001", "policy_address"),
    ("127.0.0.1", "policy_address"),
    ("127.0.0.1.", "policy_address"),
    ("127.255.255.254", "policy_address"),
    ("169.254.43518", "policy_metadata"),
    ("169.16689662", "policy_metadata"),
    ("2852039166", "policy_metadata"),
    ("0xa9fea9fe", "policy_metadata"),
    ("0xa9.0xfe.0xa9.0xfe", "policy_metadata"),
    ("0251.0376.0251.0376", "policy_metadata"),
    ("169.254.169.254.", "policy_metadata"),
    ("168.63.129.16", "policy_metadata"),
    ("0xa83f8110", "policy_metadata"),
    // Numbers that no parser agrees on.
    ("127.0.0.1..", "policy_url"),
    (".127.0.0.1", "policy_url"),
    ("127..0.1", "policy_url"),
    ("127.0.0.1.1", "policy_url"),
    ("256.0.0.1", "policy_url"),
    ("127.0.0.256", "policy_url"),
    ("4294967296", "policy_url"),
    ("0x100000000", "policy_url"),
    ("18446744073709551615", "policy_url"),
    ("08.0.0.1", "policy_url"),
    ("127.0.0.0x", "policy_address"),
    ("127.0.0.09", "policy_url"),
    ("receiver.0", "policy_url"),
    ("receiver.0x", "policy_url"),
    ("receiver.0xff", "policy_url"),
    ("-1", "policy_name"),
    // Other writings of the same characters.
    ("\u{ff11}\u{ff12}\u{ff17}.0.0.1", "policy_address"),
    ("127\u{3002}0\u{3002}0\u{3002}1", "policy_address"),
    ("127\u{ff0e}0\u{ff0e}0\u{ff0e}1", "policy_address"),
    ("127\u{ff61}0\u{ff61}0\u{ff61}1", "policy_address"),
    ("\u{2460}\u{2461}\u{2466}.0.0.1", "policy_address"),
    ("\u{1d7cf}\u{1d7d0}\u{1d7d5}.0.0.1", "policy_address"),
    ("\u{b9}\u{b2}\u{2077}.0.0.1", "policy_address"),
    ("\u{ff10}\u{ff58}7f.1", "policy_address"),
    ("127.0.0.1\u{ad}", "policy_address"),
    ("127.0.0.1\u{feff}", "policy_address"),
    ("12\u{200b}7.0.0.1", "policy_address"),
    ("\u{661}\u{662}\u{667}.0.0.1", "policy_url"),
    ("\u{967}\u{968}\u{96d}.0.0.1", "policy_url"),
    ("\u{bc}.0.0.1", "policy_url"),
    ("\u{2488}127.0.0.1", "policy_url"),
    ("%31%32%37.0.0.1", "policy_address"),
    ("127%2e0%2e0%2e1", "policy_address"),
    ("127.0.0.1%2e", "policy_address"),
    ("%31%36%39.254.169.254", "policy_metadata"),
    ("127.0.0.1%2f.receiver.com", "policy_url"),
    ("receiver.com%40127.0.0.1", "policy_url"),
    ("receiver.com%3a80", "policy_url"),
    ("receiver.com%23.net", "policy_url"),
    ("receiver.com%5c.net", "policy_url"),
    ("receiver.com%00", "policy_url"),
    ("receiver.com%0a", "policy_url"),
    ("receiver.com%20", "policy_url"),
    ("receiver.com%25", "policy_url"),
    ("receiver%", "policy_url"),
    ("receiver%zz.com", "policy_url"),
    ("%", "policy_url"),
    // localhost.
    ("localhost", "policy_name"),
    ("LOCALHOST", "policy_name"),
    ("localhost.", "policy_name"),
    ("localhost..", "policy_url"),
    ("localhost%2e", "policy_name"),
    ("a.localhost", "policy_name"),
    ("localhost.localdomain", "policy_name"),
    ("ip6-localhost", "policy_name"),
    ("\u{24db}ocalhost", "policy_name"),
    ("\u{ff4c}\u{ff4f}\u{ff43}\u{ff41}\u{ff4c}\u{ff48}\u{ff4f}\u{ff53}\u{ff54}", "policy_name"),
    ("lo\u{ad}calhost", "policy_name"),
    ("lo\u{200b}calhost", "policy_name"),
    ("lo\u{2060}calhost", "policy_name"),
    ("lo\u{fe0f}calhost", "policy_name"),
    ("lo\u{180b}calhost", "policy_name"),
    ("lo\u{200d}calhost", "policy_url"),
    ("lo\u{e0061}calhost", "policy_url"),
    ("localho\u{17f}t", "policy_name"),
    ("\u{2112}ocalhost", "policy_name"),
    ("\u{1d4c1}ocalhost", "policy_name"),
    ("l\u{1d52}calhost", "policy_name"),
    ("\u{1f17b}ocalhost", "policy_name"),
    ("localhost\u{3002}", "policy_name"),
    ("localhost\u{ff0e}localdomain", "policy_name"),
    ("%6c%6fcalhost", "policy_name"),
    ("%6C%6F%63%61%6C%68%6F%73%74", "policy_name"),
    ("%e2%93%9bocalhost", "policy_name"),
    ("xn--localhost-", "policy_url"),
    ("xn--localhost", "policy_url"),
    ("XN--LOCALHOST-", "policy_url"),
    ("xn--127.0.0.1", "policy_url"),
    // Metadata services by name.
    ("metadata", "policy_name"),
    ("Metadata.", "policy_name"),
    ("METADATA.google.INTERNAL", "policy_name"),
    ("metadata\u{3002}google\u{3002}internal", "policy_name"),
    ("metadata%2egoogle%2einternal", "policy_name"),
    ("metadata.goo\u{ad}g", "policy_name"),
    ("x.metadata.goog", "policy_name"),
    ("\u{212a}ubernetes", "policy_name"),
    ("kubernetes.default.svc.cluster.local", "policy_name"),
    ("api.kubernetes.default.svc", "policy_name"),
    ("instance-data.", "policy_name"),
    // Brackets.
    ("[::1]", "policy_address"),
    ("[::]", "policy_address"),
    ("[0:0:0:0:0:0:0:1]", "policy_address"),
    ("[0000:0000:0000:0000:0000:0000:0000:0001]", "policy_address"),
    ("[::ffff:127.0.0.1]", "policy_address"),
    ("[::FFFF:7F00:1]", "policy_address"),
    ("[0:0:0:0:0:ffff:127.0.0.1]", "policy_address"),
    ("[::ffff:0.0.0.0]", "policy_address"),
    ("[::127.0.0.1]", "policy_address"),
    ("[64:ff9b::7f00:1]", "policy_address"),
    ("[64:ff9b::127.0.0.1]", "policy_address"),
    ("[64:ff9b:1::127.0.0.1]", "policy_address"),
    ("[::ffff:0:127.0.0.1]", "policy_address"),
    ("[2002:7f00:1::]", "policy_address"),
    ("[2001:0:4136:e378:8000:63bf:80ff:fffe]", "policy_address"),
    ("[2600:1::5efe:127.0.0.1]", "policy_address"),
    ("[2600:1::200:5efe:127.0.0.1]", "policy_address"),
    ("[fe80::1]", "policy_address"),
    ("[fc00::1]", "policy_address"),
    ("[ff02::1]", "policy_address"),
    ("[::ffff:169.254.169.254]", "policy_metadata"),
    ("[::ffff:a9fe:a9fe]", "policy_metadata"),
    ("[::169.254.169.254]", "policy_metadata"),
    ("[64:ff9b::a9fe:a9fe]", "policy_metadata"),
    ("[64:ff9b:1:a9fe:a9:fe00::]", "policy_metadata"),
    ("[2002:a9fe:a9fe::]", "policy_metadata"),
    ("[2001:0:a9fe:a9fe::]", "policy_metadata"),
    ("[2001:0:1:2:3:4:5601:5601]", "policy_metadata"),
    ("[2600:1::5efe:a9fe:a9fe]", "policy_metadata"),
    ("[fd00:ec2::254]", "policy_metadata"),
    ("[fe80::a9fe:a9fe]", "policy_metadata"),
    ("[fe80::1%25eth0]", "policy_url"),
    ("[fe80::1%eth0]", "policy_url"),
    ("[fe80::1%25]", "policy_url"),
    ("[::1%2500]", "policy_url"),
    ("[::1%00]", "policy_url"),
    ("[127.0.0.1]", "policy_url"),
    ("[2130706433]", "policy_url"),
    ("[localhost]", "policy_url"),
    ("[::127.1]", "policy_url"),
    ("[::ffff:0x7f.0.0.1]", "policy_url"),
    ("[::ffff:0177.0.0.1]", "policy_url"),
    ("[1::2::3]", "policy_url"),
    ("[v1.fe80::1]", "policy_url"),
    ("[]", "policy_url"),
    ("[:]", "policy_url"),
    ("[::1", "policy_url"),
    ("::1]", "policy_url"),
    ("::1", "policy_url"),
    ("[[::1]]", "policy_url"),
    ("[::1].receiver.com", "policy_url"),
    ("[::1]80", "policy_url"),
    ("%5b::1%5d", "policy_url"),
    ("\u{ff3b}::1\u{ff3d}", "policy_url"),
    // Userinfo.
    ("user:pw@127.0.0.1", "policy_url"),
    ("user:pw@receiver.com", "policy_url"),
    ("user@receiver.com", "policy_url"),
    ("@receiver.com", "policy_url"),
    (":@receiver.com", "policy_url"),
    ("receiver.com:80@127.0.0.1", "policy_url"),
    ("receiver.com:80@127.0.0.1@receiver.com", "policy_url"),
    ("receiver.com;@127.0.0.1", "policy_url"),
    ("receiver.com&@127.0.0.1", "policy_url"),
    ("receiver.com\u{ff20}127.0.0.1", "policy_url"),
    ("receiver.com\u{fe6b}127.0.0.1", "policy_url"),
    ("receiver.com\\@127.0.0.1", "policy_url"),
    ("receiver.com:80\\@127.0.0.1", "policy_url"),
    ("[::1]:80@receiver.com", "policy_url"),
    // Ports.
    ("receiver.com:65536", "policy_url"),
    ("receiver.com:65616", "policy_url"),
    ("receiver.com:4294967376", "policy_url"),
    ("receiver.com:+80", "policy_url"),
    ("receiver.com:-80", "policy_url"),
    ("receiver.com:0x50", "policy_url"),
    ("receiver.com:80a", "policy_url"),
    ("receiver.com:8\u{ff10}", "policy_url"),
    ("receiver.com\u{ff1a}80", "policy_url"),
    ("receiver.com:80:80", "policy_url"),
    ("receiver.com:%38%30", "policy_url"),
    ("receiver.com:000080", "policy_url"),
    ("receiver.com:0", "policy_port"),
    ("receiver.com:00000", "policy_port"),
    ("receiver.com:22", "policy_port"),
    ("receiver.com:00022", "policy_port"),
    ("receiver.com:00080", "allowed"),
    // Empty and odd labels.
    ("", "policy_url"),
    (".", "policy_url"),
    ("..", "policy_url"),
    ("%2e", "policy_url"),
    ("\u{3002}", "policy_url"),
    ("\u{ad}", "policy_url"),
    ("a..b", "policy_url"),
    ("a%2e.b", "policy_url"),
    ("a\u{3002}.b", "policy_url"),
    (".receiver.com", "policy_url"),
    ("receiver.com..", "policy_url"),
    ("*.receiver.com", "policy_url"),
    ("re\"ceiver.com", "policy_url"),
    ("re'ceiver.com", "policy_url"),
    ("re$ceiver.com", "policy_url"),
    ("re!ceiver.com", "policy_url"),
    ("(receiver).com", "policy_url"),
    ("re,ceiver.com", "policy_url"),
    ("re;ceiver.com", "policy_url"),
    ("re=ceiver.com", "policy_url"),
    ("re&ceiver.com", "policy_url"),
    ("re+ceiver.com", "policy_url"),
    ("re`ceiver.com", "policy_url"),
    ("re~ceiver.com", "policy_url"),
    ("re{ceiver}.com", "policy_url"),
    ("re|ceiver.com", "policy_url"),
    ("re^ceiver.com", "policy_url"),
    ("re<ceiver>.com", "policy_url"),
    ("re\u{2100}ceiver.com", "policy_url"),
    ("xn--a", "policy_url"),
    // Control characters and whitespace, wherever a parser might drop them.
    ("127.0.0.1\t", "policy_url"),
    ("re\tceiver.com", "policy_url"),
    ("re\nceiver.com", "policy_url"),
    ("re\rceiver.com", "policy_url"),
    ("re ceiver.com", "policy_url"),
    ("receiver.com\u{0}", "policy_url"),
    ("receiver.com\u{7f}", "policy_url"),
    ("receiver.com\u{85}", "policy_url"),
    ("receiver.com\u{a0}", "policy_url"),
    ("receiver.com\u{3000}", "policy_url"),
    ("receiver.com\u{2028}", "policy_url"),
    // Plain ones, which must get through.
    ("receiver.com", "allowed"),
    ("RECEIVER.com", "allowed"),
    ("receiver.com.", "allowed"),
    ("receiver.com:8443", "allowed"),
    ("re_ceiver.com", "allowed"),
    ("b\u{fc}cher.de", "allowed"),
    ("xn--bcher-kva.de", "allowed"),
    ("127.0.0.1\u{2044}.receiver.com", "allowed"), // A look-alike of `/` is a letter of an `xn--` label.
    ("127.0.0.1.receiver.com", "allowed"),
    ("localhost.receiver.com", "allowed"),
    (PUBLIC, "allowed"),
    ("[2606:4700:4700::1111]", "allowed"),
    ("[2606:4700:4700::1111]:8443", "allowed"),
    ("[::ffff:93.184.216.34]", "allowed"),
];

/// Whole texts, where it matters what stands before the host or behind it.
const TEXTS: &[(&str, &str)] = &[
    ("http:127.0.0.1", "policy_url"),
    ("http:/127.0.0.1", "policy_url"),
    ("http:///127.0.0.1", "policy_url"),
    ("http:////127.0.0.1", "policy_url"),
    ("http:\\\\127.0.0.1", "policy_url"),
    ("http:/\\127.0.0.1", "policy_url"),
    ("http:\\/127.0.0.1", "policy_url"),
    ("http://\\127.0.0.1", "policy_url"),
    ("http:receiver.com", "policy_url"),
    ("https:///receiver.com", "policy_url"),
    ("//receiver.com/", "policy_url"),
    ("/path", "policy_url"),
    ("", "policy_url"),
    ("http", "policy_url"),
    ("http:", "policy_url"),
    ("http:/", "policy_url"),
    ("http://", "policy_url"),
    ("http://?", "policy_url"),
    ("http://#", "policy_url"),
    ("http://:80", "policy_url"),
    ("receiver.com", "policy_url"),
    ("receiver.com:443", "policy_url"),
    ("localhost:80", "policy_url"),
    ("127.0.0.1", "policy_url"),
    (" http://receiver.com/", "policy_url"),
    ("http://receiver.com/ ", "policy_url"),
    ("\thttp://receiver.com/", "policy_url"),
    ("\u{feff}http://receiver.com/", "policy_url"),
    ("\u{1}http://receiver.com/", "policy_url"),
    ("ht\ttp://receiver.com/", "policy_url"),
    ("http\n://receiver.com/", "policy_url"),
    ("http://receiver.com/\r\nHost: other", "policy_url"),
    ("http://receiver.com/\tb", "policy_url"),
    ("http://receiver.com/a b", "policy_url"),
    ("http://receiver.com/?a=\n", "policy_url"),
    ("http://receiver.com/#\n", "policy_url"),
    ("http://receiver.com/a\\b", "policy_url"),
    ("http://receiver.com?\\", "policy_url"),
    ("ftp://receiver.com/", "policy_url"),
    ("ws://receiver.com/", "policy_url"),
    ("wss://receiver.com/", "policy_url"),
    ("file:///etc/passwd", "policy_url"),
    ("file://localhost/etc/passwd", "policy_url"),
    ("gopher://127.0.0.1:6379/_SET", "policy_url"),
    ("javascript://receiver.com/%0aalert", "policy_url"),
    ("data:text/plain,x", "policy_url"),
    ("blob:http://receiver.com/", "policy_url"),
    ("view-source:http://receiver.com", "policy_url"),
    ("jar:http://receiver.com!/", "policy_url"),
    ("http+unix://%2fvar%2frun%2fdocker.sock/", "policy_url"),
    ("unix:///var/run/docker.sock", "policy_url"),
    ("httpss://receiver.com/", "policy_url"),
    ("xhttp://receiver.com/", "policy_url"),
    ("h\u{ff54}tp://receiver.com/", "policy_url"),
    ("http\u{ff1a}//receiver.com/", "policy_url"),
    ("http:\u{ff0f}\u{ff0f}receiver.com/", "policy_url"),
    ("http://1.1.1.1 &@2.2.2.2# @3.3.3.3/", "policy_url"),
    ("http://1.1.1.1&@2.2.2.2#@3.3.3.3/", "policy_url"),
    // The host ends where every parser ends it.
    ("http://127.0.0.1#@receiver.com", "policy_address"),
    ("http://127.0.0.1?@receiver.com", "policy_address"),
    ("http://127.0.0.1/@receiver.com", "policy_address"),
    ("http://127.0.0.1?.receiver.com", "policy_address"),
    ("http://receiver.com#@127.0.0.1", "allowed"),
    ("http://receiver.com?@127.0.0.1", "allowed"),
    ("http://receiver.com/@127.0.0.1", "allowed"),
    ("http://receiver.com/http://127.0.0.1/", "allowed"),
    ("http://receiver.com//127.0.0.1/", "allowed"),
    ("http://receiver.com/..//127.0.0.1/", "allowed"),
    ("http://receiver.com/%0d%0aHost:%20other", "allowed"),
    ("HTTP://receiver.com/", "allowed"),
    ("hTTpS://receiver.com", "allowed"),
    ("https://receiver.com/a/../b?c=d#e", "allowed"),
];

#[test]
fn every_disguise_of_a_host_gets_its_verdict() {
    for (host, word) in DISGUISED_HOSTS {
        for scheme in ["http", "https"] {
            // What follows the host changes nothing.
            for rest in ["", "/", "/path?query", "?query", "#fragment"] {
                let raw = format!("{scheme}://{host}{rest}");
                assert_eq!(fate(&raw), *word, "{raw:?}");
            }
        }
    }
    for (raw, word) in TEXTS {
        assert_eq!(fate(raw), *word, "{raw:?}");
    }
    println!("{} hosts, each in 10 URLs, and {} whole texts", DISGUISED_HOSTS.len(), TEXTS.len());
}

#[test]
fn a_refusal_says_what_to_do_and_quotes_nothing() {
    for (raw, hint) in [
        ("https://s3cret:s3cret@host.com/", "`auth`"),
        ("https://host.com/s3cret s3cret", "U+0020, at byte 23"),
        ("https://host.com/s3cret\\", "backslash"),
        ("https://host.com:s3cret/", "port"),
        ("https://[fe80::1%s3cret]/", "zone id"),
        ("s3cret", "`http://` or `https://`"),
        ("https://s3cret..com/", "empty label"),
        ("https://s3cret$.com/", "letter"),
        ("https://s3cret%.com/", "international"),
    ] {
        let denial = CheckedUrl::parse(raw).unwrap_err();
        assert_eq!(denial.code, Code::PolicyUrl);
        assert!(denial.message.contains(hint), "{}", denial.message);
        assert!(!denial.message.contains("s3cret"), "{}", denial.message);
    }
}

#[test]
fn parts_are_what_the_request_is_built_from() {
    for (raw, shown, authority, origin_form) in [
        ("https://receiver.com", "https://receiver.com/", "receiver.com", "/"),
        ("HTTPS://Receiver.COM:443/a", "https://receiver.com/a", "receiver.com", "/a"),
        ("http://receiver.com:443/", "http://receiver.com:443/", "receiver.com:443", "/"),
        ("http://receiver.com:/x", "http://receiver.com/x", "receiver.com", "/x"),
        ("https://receiver.com:?a", "https://receiver.com/?a", "receiver.com", "/?a"),
        ("http://[2001:db8::1]:", "http://[2001:db8::1]/", "[2001:db8::1]", "/"),
        ("http://receiver.com:00080?a=b", "http://receiver.com/?a=b", "receiver.com", "/?a=b"),
        ("http://receiver.com?", "http://receiver.com/?", "receiver.com", "/?"),
        ("https://receiver.com/a/../b/./c#d", "https://receiver.com/b/c#d", "receiver.com", "/b/c"),
        ("https://receiver.com//x//", "https://receiver.com//x//", "receiver.com", "//x//"),
        (
            "https://b\u{fc}cher.de/\u{fc}?\u{fc}",
            "https://xn--bcher-kva.de/%C3%BC?%C3%BC",
            "xn--bcher-kva.de",
            "/%C3%BC?%C3%BC",
        ),
        ("https://receiver.com/?q='<>\"", "https://receiver.com/?q=%27%3C%3E%22", "receiver.com", "/?q=%27%3C%3E%22"),
        ("https://[2606:4700::1]:8443/", "https://[2606:4700::1]:8443/", "[2606:4700::1]:8443", "/"),
        ("https://0x5db8d822/", "https://93.184.216.34/", "93.184.216.34", "/"),
        ("https://receiver.com./", "https://receiver.com./", "receiver.com.", "/"),
    ] {
        let url = CheckedUrl::parse(raw).unwrap();
        assert_eq!((url.as_str(), &*url.authority(), &*url.origin_form()), (shown, authority, origin_form), "{raw}");
    }
    let host = |raw| CheckedUrl::parse(raw).unwrap().destination().host.clone();
    assert_eq!(host("https://receiver.com./"), Host::Name("receiver.com".into()));
    assert_eq!(host("https://[::ffff:93.184.216.34]/"), Host::Address(PUBLIC.parse().unwrap()));
}

#[test]
fn a_query_is_replaced_and_stays_within_bounds() {
    let url = || CheckedUrl::parse("https://receiver.com/a?b=c#d").unwrap();
    let with = |query: Option<&str>| url().with_query(query);
    assert_eq!(with(Some("x=%20y")).unwrap().as_str(), "https://receiver.com/a?x=%20y#d");
    assert_eq!(with(Some("x=#y")).unwrap().as_str(), "https://receiver.com/a?x=%23y#d");
    assert_eq!(with(None).unwrap().as_str(), "https://receiver.com/a#d");
    for bad in ["x=\ny", "x=\ty", "x= y", "x=\\y", "x=\u{0}"] {
        assert_eq!(with(Some(bad)).unwrap_err().code, Code::PolicyUrl, "{bad:?}");
    }
    let room = URL_BYTES_MAX - with(Some("")).unwrap().as_str().len();
    assert!(with(Some(&"x".repeat(room))).is_ok());
    assert_eq!(with(Some(&"x".repeat(room + 1))).unwrap_err().code, Code::PolicyUrl);
}

#[test]
fn length_is_bounded_as_written_and_as_normalised() {
    let of_length = |bytes: usize| {
        let start = "https://receiver.com/";
        format!("{start}{}", "a".repeat(bytes - start.len()))
    };
    assert!(CheckedUrl::parse(&of_length(URL_BYTES_MAX)).is_ok());
    assert_eq!(fate(&of_length(URL_BYTES_MAX + 1)), "policy_url");
    let grows = format!("https://receiver.com/{}", "\u{fc}".repeat(2000));
    assert!(grows.len() < URL_BYTES_MAX);
    assert_eq!(fate(&grows), "policy_url", "each of its characters becomes six bytes");
}

/// Text that parsers disagree about: pieces of URLs, put together at random.
fn any_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("http://".to_owned()),
        Just("https://".to_owned()),
        proptest::sample::select(DISGUISED_HOSTS).prop_map(|(host, _)| host.to_owned()),
        proptest::sample::select(
            &["/", "//", "?", "#", "@", ":", ".", "%", "%25", "%2e", "[", "]", "\\", "\t", "..", "xn--"][..]
        )
        .prop_map(str::to_owned),
        "[a-z0-9.-]{1,8}",
        "\\PC{1,4}",
        any::<char>().prop_map(String::from),
    ];
    let host = proptest::sample::select(DISGUISED_HOSTS).prop_map(|(host, _)| host.to_owned());
    prop_oneof![
        proptest::collection::vec(piece.clone(), 0..8).prop_map(|pieces| pieces.concat()),
        (prop_oneof!["https?://", Just("http://".to_owned())], host, proptest::collection::vec(piece, 0..5))
            .prop_map(|(scheme, host, rest)| format!("{scheme}{host}/{}", rest.concat())),
        "https?://[a-z0-9.\u{e0}-\u{ff}-]{1,12}(:[0-9]{1,5})?/\\PC{0,30}",
    ]
}

fn reads_the_same_to_everyone(url: &CheckedUrl) {
    // To ourselves, from a store.
    assert_eq!(CheckedUrl::parse(url.as_str()).as_ref(), Ok(url));
    // To whoever reads lines.
    for text in [url.as_str(), &url.origin_form(), &url.authority()] {
        assert!(text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\'), "{text:?}");
    }
    // To the HTTP library that builds the request.
    let target: http::uri::PathAndQuery = url.origin_form().parse().unwrap();
    assert_eq!(target.as_str(), url.origin_form());
    assert!(url.origin_form().starts_with('/') && !url.origin_form().contains('#'));
    let authority: http::uri::Authority = url.authority().parse().unwrap();
    let destination = url.destination();
    assert_eq!(authority.port_u16().unwrap_or(destination.scheme.default_port()), destination.port);
    assert!(!url.authority().contains('@'));
    match &destination.host {
        Host::Name(name) => {
            assert_eq!(authority.host().trim_end_matches('.'), &**name);
            assert_eq!(name::canonical(name), Ok(name.to_string()));
        }
        Host::Address(address) => {
            let written: IpAddr = authority.host().trim_matches(['[', ']']).parse().unwrap();
            assert_eq!(written.to_canonical(), *address);
        }
    }
    assert_eq!(Host::parse(&destination.host.text()).as_ref(), Ok(&destination.host));
}

#[test]
fn what_the_fuzzer_kept_is_read_the_same_to_everyone() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz/corpus/url");
    let mut read = 0;
    for file in std::fs::read_dir(corpus).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        for raw in [text.to_string(), format!("http://{text}"), format!("https://{text}/")] {
            CheckedUrl::parse(&raw).iter().for_each(reads_the_same_to_everyone);
        }
        read += 1;
    }
    assert!(read > 20, "only {read} files in {corpus}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn what_is_accepted_reads_the_same_to_everyone(raw in any_text()) {
        CheckedUrl::parse(&raw).iter().for_each(reads_the_same_to_everyone);
    }

    #[test]
    fn a_query_of_any_text_leaves_the_rest_alone(query in "\\PC{0,40}") {
        let url = CheckedUrl::parse("https://receiver.com/a").unwrap();
        if let Ok(with) = url.clone().with_query(Some(&query)) {
            prop_assert_eq!(with.destination(), url.destination());
            prop_assert_eq!(CheckedUrl::parse(with.as_str()), Ok(with));
        }
    }

    #[test]
    fn hidden_userinfo_is_gone(
        scheme in prop_oneof![Just("https://"), Just("http:"), Just("ftp://"), Just(""), Just("//")],
        before in "[a-z:/]{0,6}",
        after in "[a-z/.@]{0,8}",
    ) {
        let raw = format!("{scheme}{before}S3CRET{after}@host");
        prop_assert!(!without_userinfo(&raw, |_| String::new()).contains("S3CRET"), "{}", raw);
    }
}
