//! The way to where a tunnel leads: judged, looked up, judged again, connected. The caller's deadline ends it.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::clock;
use crate::deadline::Stopwatch;
use crate::dial::connect::{Connected, Met};
use crate::dial::resolve::inquiry::Inquiry;
use crate::dial::{Dialer, Look};
use crate::outcome::words::ConnectCause;
use crate::outcome::{Code, Failure, Phase};
use crate::policy::{Asker, CheckedUrl, Errand, Purpose, Verdict};
use crate::source::Source;
use crate::world::World;

/// How far it has come: outside of the work, so that one that ran out tells as much as one that ended.
#[derive(Default)]
pub struct Journey {
    pub watch: Stopwatch,
    inquiry: Inquiry,
    met: Mutex<Met>,
    pub would_block: Option<Code>,
    /// Where the name leads under other names.
    pub aliases: Vec<String>,
    pub resolved: Vec<(IpAddr, Verdict)>,
}

pub async fn open(
    world: &World,
    dialer: &Dialer,
    asker: Asker<'_>,
    url: &CheckedUrl,
    journey: &mut Journey,
) -> Result<Connected, Failure> {
    let judged_by = world.in_force();
    let judged = world.judge_url(asker, url, clock::wall());
    journey.would_block = judged.would_block;
    if let Some(denial) = judged.denial {
        return Err(denial.into());
    }
    let settings = world.settings();
    journey.watch.enter(Phase::Dns);
    let look = dialer.look(asker, url.destination(), &settings, Purpose::Delivery, &journey.inquiry).await;
    if journey.inquiry.has_begun() {
        journey.watch.leave();
    } else {
        journey.watch.cancel();
    }
    let Look { aliases, resolved, would_block, way } = look;
    journey.would_block = journey.would_block.or(would_block);
    (journey.aliases, journey.resolved) = (aliases, resolved);
    let candidates = way?;

    journey.watch.enter(Phase::Connect);
    let (tenant, destination) = (asker.tenant.clone(), url.destination().clone());
    let errand = Errand { tenant, destination, purpose: Purpose::Delivery };
    let connected = dialer.connect(&errand, &candidates, &journey.met).await?;
    journey.watch.leave();
    if !world.in_force().is(&judged_by) {
        // All of that took its time: whoever was stopped meanwhile, or whatever was denied, gets no tunnel.
        let addresses: Vec<_> = journey.resolved.iter().map(|(address, _)| *address).collect();
        dialer.judge_again(asker, url, &journey.aliases, &addresses, connected.remote)?;
    }
    Ok(connected)
}

impl Journey {
    /// The source that a connect was begun from.
    pub fn left_from(&self) -> Option<Arc<Source>> {
        self.met.lock().unwrap_or_else(PoisonError::into_inner).from.clone()
    }

    /// Where it was when its time was over.
    pub fn ran_out(&self, url: &CheckedUrl, total: Duration) -> Failure {
        match self.watch.phase() {
            Some(Phase::Connect) => {
                let destination = url.destination();
                let met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
                let from = met.from.as_ref().map(|source| source.public());
                let cause = ConnectCause::Silent { total, port: destination.port, from, tried: met.tried };
                cause.failure(&destination.host.text())
            }
            _ => self.inquiry.ran_out(total),
        }
    }
}
