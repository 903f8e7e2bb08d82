//! Acceptable use: the destinations a send may reach.
//!
//! Asked twice: [`Policy::judge_url`] on what the send says, [`Policy::judge_answer`] on what DNS answered. Only
//! an address that passed is dialled, and a [`CheckedAddr`] cannot be made elsewhere. Pure: no sockets, no clock.
//! Not here: looking names up (`dial`).

pub mod address;
pub mod name;
pub mod port;
pub mod rules;
pub mod scan;
pub mod suspended;
pub mod url;
mod wording;

pub use self::rules::{
    Answer, Asker, CheckedAddr, Circumstances, Denial, Errand, Judged, Policy, Purpose, ScanMemory, SelfAddrs,
    StoppedHost, Suspensions, Verdict, forms,
};
pub use self::url::{CheckedUrl, Destination, Host, Scheme};
pub use self::wording::{is_internal, leads_to_us, without_internal_addresses, written_address};

#[cfg(test)]
pub(crate) mod fixtures;
