//! What is remembered of a tunnel of the forward proxy: where it led, from which address, and how it ended. Never a byte
//! of what it carried.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use crate::outcome::{Code, labelled};
use crate::policy::Verdict;
use crate::send::TenantId;

labelled! {
    /// How a tunnel of the forward proxy ended.
    TunnelEnd {
        /// Both sides closed it, each in its own time.
        Closed = "closed",
        /// One of them, or the way to it, broke it off.
        Reset = "reset",
        /// Nothing went through it for too long.
        Idle = "idle",
        /// It had lasted as long as it may.
        Lifetime = "lifetime",
        /// It was not opened, or is no longer allowed.
        Refused = "refused",
        /// The process ended.
        Drained = "drained",
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Of version 7: by when it was asked for.
    pub id: Uuid,
    pub tenant: TenantId,
    pub node: String,
    /// Who asked for it; `None`: not known.
    pub client: Option<SocketAddr>,
    /// A name, or an address without brackets.
    pub host: String,
    pub port: u16,
    /// The local address that it leaves from, as this host has it.
    pub source: Option<IpAddr>,
    /// The same as the world sees it.
    pub public: Option<IpAddr>,
    pub remote: Option<SocketAddr>,
    pub resolved: Vec<(IpAddr, Verdict)>,
    /// What report mode let pass.
    pub would_block: Option<Code>,
    pub dns: Option<Duration>,
    pub connect: Option<Duration>,
    /// As a TLS client named it, where that was looked at.
    pub server_name: Option<String>,
    pub begun_at: Timestamp,
    /// Bytes that were given on, to where it leads and to the client; nothing while it is open.
    pub up: u64,
    pub down: u64,
    /// `None`: it is open.
    pub ended: Option<TunnelEnded>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelEnded {
    pub at: Timestamp,
    pub end: TunnelEnd,
    pub code: Option<Code>,
    /// Empty without a code.
    pub message: String,
}

impl Tunnel {
    /// Bytes that were given on, to where it leads and to the client; `None`: it is open, or nobody lived to count them.
    pub fn carried(&self) -> Option<(u64, u64)> {
        let ended = self.ended.as_ref()?;
        (ended.code != Some(Code::Interrupted)).then_some((self.up, self.down))
    }

    /// As it reads where the process that had it open is gone: how much it carried is not known.
    pub fn interrupted(&self, now: Timestamp) -> Self {
        let message =
            "the appliance stopped while this tunnel was open: how long it was and what it carried is not known";
        let ended = TunnelEnded {
            at: now.max(self.begun_at),
            end: TunnelEnd::Reset,
            code: Some(Code::Interrupted),
            message: message.to_owned(),
        };
        Self { ended: Some(ended), ..self.clone() }
    }
}
