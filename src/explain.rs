//! What would become of a send, or of a tunnel: the same judging, resolving and choosing as a delivery, and nothing sent.
//!
//! It counts as a try towards the scan limit, so that it cannot be used to scan.

use std::net::IpAddr;
use std::sync::Arc;

use crate::clock;
use crate::deadline::Deadline;
use crate::deliver::Deliverer;
use crate::dial::resolve::inquiry::Inquiry;
use crate::outcome::{Code, Failure};
use crate::policy::{Asker, Destination, Purpose, Verdict};
use crate::redact::RedactKey;
use crate::send::parse::target_of;
use crate::send::{Explained, Kind, Target};
use crate::source::Source;
use crate::world::World;

/// The answer: what a real send would meet up to its connection.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// `None`: it is a message. Else its method, and its URL: as parsed (of a tunnel host and port); as given, with userinfo
    /// redacted and cut to what a URL may have, where it was refused.
    pub request: Option<(Explained, String)>,
    /// `None`: it would be tried. Else why not; the code is the rule that decided (or why it would fail).
    pub refusal: Option<Failure>,
    /// A rule that report mode lets pass.
    pub would_block: Option<Code>,
    /// What the name resolves to, as far as it was looked up.
    pub resolved: Vec<(IpAddr, Verdict)>,
    /// The source that would be left from.
    pub source: Option<Arc<Source>>,
}

impl Explanation {
    pub fn allowed(&self) -> bool {
        self.refusal.is_none()
    }
}

/// Explains for the API and the command line.
pub struct Explainer {
    world: Arc<World>,
    deliverer: Arc<Deliverer>,
    redact_key: RedactKey,
}

impl Explainer {
    pub fn new(world: Arc<World>, deliverer: Arc<Deliverer>, redact_key: RedactKey) -> Arc<Self> {
        Arc::new(Self { world, deliverer, redact_key })
    }

    /// Ends within the deadline of a delivery.
    pub async fn explain(&self, asker: Asker<'_>, method: impl Into<Explained>, raw_url: &str) -> Explanation {
        let method = method.into();
        self.of(asker, method, target_of(method, raw_url, self.redact_key.of(asker.tenant))).await
    }

    /// The same of a URL that was read.
    pub async fn of(&self, asker: Asker<'_>, method: Explained, target: Target) -> Explanation {
        let url = match target {
            Target::Url(url) => url,
            Target::Refused { shown, denial } => {
                return Explanation {
                    request: Some((method, shown)),
                    refusal: Some(denial),
                    would_block: None,
                    resolved: Vec::new(),
                    source: None,
                };
            }
        };
        let judged = self.world.judge_url(asker, &url, clock::wall());
        let text = match method {
            Explained::Send(_) => url.as_str().to_owned(),
            Explained::Tunnel => url.host_and_port(),
        };
        let explanation = Explanation {
            request: Some((method, text)),
            refusal: judged.denial.map(Failure::from),
            would_block: judged.would_block,
            resolved: Vec::new(),
            source: None,
        };
        self.looked(explanation, asker, url.destination(), Kind::Http, Purpose::Delivery).await
    }

    /// The same of what the operator has configured for this kind.
    pub async fn of_endpoint(&self, asker: Asker<'_>, to: &Destination, kind: Kind, purpose: Purpose) -> Explanation {
        let denial = self.world.judge_endpoint(asker, to, purpose);
        let explanation = Explanation {
            request: None,
            refusal: denial.map(Failure::from),
            would_block: None,
            resolved: Vec::new(),
            source: None,
        };
        self.looked(explanation, asker, to, kind, purpose).await
    }

    /// With what its destination comes to, where nothing was said against it before.
    async fn looked(
        &self,
        mut explanation: Explanation,
        asker: Asker<'_>,
        to: &Destination,
        kind: Kind,
        purpose: Purpose,
    ) -> Explanation {
        if explanation.refusal.is_some() {
            return explanation;
        }
        let settings = self.world.settings();
        let deadline = Deadline::start(settings.config.deadline_of(kind));
        let inquiry = Inquiry::default();
        let look = self.deliverer.dialer().look(asker, to, &settings, purpose, &inquiry);
        match deadline.bound(look).await {
            None => explanation.refusal = Some(inquiry.ran_out(deadline.total())),
            Some(look) => {
                explanation.source = look.source().cloned();
                explanation.would_block = explanation.would_block.or(look.would_block);
                explanation.resolved = look.resolved;
                explanation.refusal = look.way.err();
            }
        }
        explanation
    }
}
