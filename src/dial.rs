//! Reaching out: resolve → judge → choose a source → connect → TLS. Gives a connection that knows its source.
//!
//! Only [`connect`] makes a socket towards a destination, and it cannot be called without a
//! [`crate::source::Source`] and a [`crate::policy::CheckedAddr`]. Only [`resolve`] looks a destination up.
//! Nothing here retries what was written: the only second try is another address or source while no byte of a
//! request has left.

pub mod connect;
pub mod pool;
pub mod resolve;
pub mod tls;
