//! What a refusal of a name or an answer says to the send's author: what was refused, by which rule, what to do next.
//!
//! Behind a name, nothing is named: a refusal must not map what is near us. Deciding is [`super::rules`]' work.

use std::net::IpAddr;

use super::address;
use super::name::NameRule;
use super::url::Host;
use crate::outcome::Code;

/// Why a name as asked for is not looked up.
pub(super) fn name_message(name: &str, rule: NameRule) -> String {
    match rule {
        NameRule::Metadata => {
            format!(
                "`{name}` is a name of a metadata or platform service: it is never reached, and no exception opens it"
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
        Code::PolicyNotAllowed => "not on the allow list of this tenant, which may reach nothing else",
        Code::PolicyMetadata => {
            "an address of a metadata or platform service: it is never reached, and no exception opens it"
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
            "is not on the allow list of this tenant, and resolves to an address that is not on it either"
        }
        Code::PolicyName => {
            "is an alias of a name that is not public: point it at a public name, or ask the operator for an exception"
        }
        Code::PolicyMetadata => {
            "resolves to an address of a metadata or platform service: those are never reached, and no exception opens \
             them"
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
