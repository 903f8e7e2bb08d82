//! What a refusal of a name or an answer says to the send's author: what was refused, by which rule, what to do next.
//!
//! Behind a name, nothing is named: a refusal must not map what is near us. Deciding is [`super::rules`]' work.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use super::address;
use super::name::NameRule;
use super::rules::Denial;
use super::url::Host;
use crate::outcome::Code;

/// Why a name as asked for is not looked up.
pub(super) fn name_message(name: &str, rule: NameRule) -> String {
    match rule {
        NameRule::Metadata => {
            format!(
                "`{name}` is a name of a metadata or platform service: it is never reached, and no exception opens it; \
                 name the receiver you meant"
            )
        }
        NameRule::SpecialUse(suffix) => format!(
            "`{name}` ends in `{suffix}`, which is no public name: use the receiver's public name, or ask the operator \
             for an exception"
        ),
        NameRule::SingleLabel => format!(
            "`{name}` is a single label, which is no public name: write the receiver's full name, or ask the operator \
             for an exception"
        ),
    }
}

/// Why an answer is refused. An address is named only where the author wrote it.
pub(super) fn answer_message(host: &Host, code: Code, by_alias: bool) -> String {
    match host {
        Host::Address(address) => literal_message(*address, code),
        Host::Name(name) => behind_name_message(name, code, by_alias),
    }
}

fn literal_message(address: IpAddr, code: Code) -> String {
    let what = match code {
        Code::PolicyDenied => "on the operator's or this tenant's deny list, or in a network there: ask the operator",
        Code::PolicyNotAllowed => {
            "not on the allow list of this tenant, which may reach nothing else: ask the operator to add it"
        }
        Code::PolicyMetadata => {
            "an address of a metadata or platform service: it is never reached, and no exception opens it; name the \
             receiver you meant"
        }
        Code::PolicySelf => "an address of this appliance itself: name the receiver you meant",
        _ => {
            let range = address::special(address).unwrap_or("it carries an IPv4 address that is not");
            return format!(
                "{address} is not an address of the public internet ({range}): use a public address, or ask the \
                 operator for an exception"
            );
        }
    };
    format!("{address} is {what}")
}

fn behind_name_message(name: &str, code: Code, by_alias: bool) -> String {
    let what = match code {
        Code::PolicyDenied if by_alias => "is an alias of a host on a deny list: ask the operator",
        Code::PolicyDenied => "resolves to an address on a deny list: ask the operator",
        Code::PolicyNotAllowed => {
            "is not on the allow list of this tenant, and resolves to an address that is not on it either: ask the \
             operator to add it"
        }
        Code::PolicyName => {
            "is an alias of a name that is not public: point it at a public name, or ask the operator for an exception"
        }
        Code::PolicyMetadata => {
            "resolves to an address of a metadata or platform service: those are never reached, and no exception opens \
             them; give the name a public address"
        }
        Code::PolicySelf => "resolves to an address of this appliance itself: name the receiver you meant",
        Code::PolicyMixed => {
            "resolves to addresses some of which may not be reached, and then none is tried: remove the others from its \
             DNS records"
        }
        _ => {
            "resolves to an address that is not of the public internet: give the name a public address, or ask the \
             operator for an exception"
        }
    };
    format!("`{name}` {what}")
}

/// Why nothing is connected to an address that turned out to be this host's own after it had passed.
pub fn leads_to_us(host: &str) -> Denial {
    let message = format!("{host} leads to this node itself, which no send may reach; use the receiver's own address");
    Denial::new(Code::PolicySelf, message)
}

/// `[fe80::1%eth0]:53` without its `%eth0`.
fn without_zone(word: &str) -> Cow<'_, str> {
    let Some((address, rest)) = word.split_once('%') else { return Cow::Borrowed(word) };
    let after = rest.find(']').map_or("", |end| &rest[end..]);
    Cow::Owned(format!("{address}{after}"))
}

/// The address that a URL's author wrote for its host, whichever way: that much he knows. `None` where it is a name.
pub fn written_address(url: &str) -> Option<IpAddr> {
    match url::Url::parse(url).ok()?.host()? {
        url::Host::Ipv4(address) => Some(address.into()),
        url::Host::Ipv6(address) => Some(address.into()),
        url::Host::Domain(_) => None,
    }
}

/// Whether an address is none of the public internet.
pub fn is_internal(address: IpAddr) -> bool {
    let canonical = address.to_canonical();
    address::special(canonical).is_some() || address::is_metadata(canonical)
}

/// A message as who may not see what is near us reads it: without addresses that are not of the public internet, those
/// of name servers and sources among them. `told`: what the reader knows anyway. Networks (`10.0.0.0/8`) are no
/// addresses.
pub fn without_internal_addresses(message: &str, told: impl Fn(IpAddr) -> bool) -> Cow<'_, str> {
    let outside = |c: char| !(c.is_ascii_alphanumeric() || "-_.:[]%".contains(c));
    let hidden = |word: &str| {
        let whole = word.trim_end_matches(['.', ':']);
        let plain = without_zone(whole);
        let word = &*plain;
        let bare = word.strip_prefix('[').and_then(|word| word.strip_suffix(']')).unwrap_or(word);
        let address = bare.parse().or_else(|_| word.parse().map(|address: SocketAddr| address.ip())).ok()?;
        (is_internal(address) && !told(address)).then_some(whole.len())
    };
    let mut shown = String::new();
    let (mut copied, mut at) = (0, 0);
    while at < message.len() {
        let rest = &message[at..];
        let length = rest.find(outside).unwrap_or(rest.len());
        let after = &rest[length..];
        let is_network = after.starts_with('/') && after[1..].starts_with(|c: char| c.is_ascii_digit());
        if let Some(bytes) = hidden(&rest[..length]).filter(|_| !is_network) {
            shown.push_str(&message[copied..at]);
            shown.push_str("[an internal address]");
            copied = at + bytes;
        }
        at += length + after.chars().next().map_or(0, char::len_utf8);
    }
    if copied == 0 {
        return Cow::Borrowed(message);
    }
    shown.push_str(&message[copied..]);
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_names_what_was_refused_and_what_to_do_and_shows_nothing_behind_a_name() {
        let name = Host::Name("a.example.com".into());
        let address: IpAddr = [10, 1, 2, 3].into();
        let mut messages = vec![leads_to_us("a.example.com").message];
        for rule in [NameRule::Metadata, NameRule::SpecialUse("example"), NameRule::SingleLabel] {
            messages.push(name_message("a.example.com", rule));
        }
        for &code in super::super::rules::PRECEDENCE {
            messages.extend([true, false].map(|by_alias| answer_message(&name, code, by_alias)));
            messages.push(answer_message(&Host::Address(address), code, false).replace("10.1.2.3", "a.example.com"));
        }
        let advice = ["ask the operator", "name the receiver", "use ", "give the name", "point it at", "remove the"];
        for message in messages {
            assert!(message.contains("a.example.com") && !message.contains("10.1"), "{message}");
            assert!(advice.iter().any(|advice| message.contains(advice)), "no advice: {message}");
            assert!(!message.contains("::") && !message.contains('{') && !message.contains('"'), "{message}");
        }
    }

    #[test]
    fn what_a_url_says_beside_its_host_tells_no_address() {
        for (url, address) in [
            ("http://10.0.0.1/", Some("10.0.0.1")),
            ("http://0x0a000001:8080/", Some("10.0.0.1")),
            ("https://user:pass@[fd00::1]/x", Some("fd00::1")),
            ("https://example.com/?10.0.0.1", None),
            ("https://10.0.0.1@example.com/10.0.0.1#10.0.0.1", None),
            ("https://10.0.0.1.example.com/", None),
            ("10.0.0.1", None),
        ] {
            assert_eq!(written_address(url), address.map(|address| address.parse().unwrap()), "{url}");
        }
    }

    #[test]
    fn a_message_without_internal_addresses_is_the_same_for_the_rest() {
        let told: IpAddr = [10, 9, 9, 9].into();
        for (message, shown) in [
            ("nothing of the kind", None),
            ("10.0.0.2:53 did not answer", Some("X did not answer")),
            (
                "up: 127.0.0.53:53 answered SERVFAIL, 8.8.8.8:53 did not answer",
                Some("up: X answered SERVFAIL, 8.8.8.8:53 did not answer"),
            ),
            ("at 192.168.1.1, [fd00::1]:53; [fe80::1] and fd00::2", Some("at X, X; X and X")),
            ("by 169.254.169.253.", Some("by X.")),
            ("from ::ffff:10.0.0.1: refused", Some("from X: refused")),
            ("(10.0.0.1)", Some("(X)")),
            ("é10.0.0.1é", Some("éXé")),
            ("10.9.9.9:80 is what you wrote", None),
            ("public 93.184.216.34:443 and 2606:4700::1111", None),
            ("private, 10.0.0.0/8", None),
            ("ip-10.0.0.1.example.com and 10.0.0.1.example.com", None),
            ("10.0.0.1/path", Some("X/path")),
            ("at 12:30:01 ::: 1.2.3 ...", None),
            ("at fe80::1234%1, [fe80::1234%eth0]:5399 and [fe80::1%3].", Some("at X, X and X.")),
            ("https://example.com/a%20b%3A and 100% of 10%", None),
        ] {
            let expected = shown.unwrap_or(message).replace('X', "[an internal address]");
            assert_eq!(without_internal_addresses(message, |address| address == told), expected, "{message}");
        }
    }
}
