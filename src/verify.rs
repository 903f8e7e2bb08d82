//! Proof that each source is seen as its published address: reflectors are asked through each source, at the start
//! and regularly, and what they say decides whether the source may be used.
//!
//! An announced source is asked about as well: a wrong pair must be found out before it carries anything. What an
//! answer means is [`verdict`]'s; a request to a reflector is made as any delivery is, under the policy and within
//! its deadline, and recorded nowhere. Not here: who may use a source that is out (`source`).

pub mod verdict;

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use futures_util::stream::{self, StreamExt};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use self::verdict::{Said, Standing, read_answer};
use crate::clock;
use crate::config::Verify;
use crate::deadline::Deadline;
use crate::deliver::Deliverer;
use crate::limits::{VERIFY_AT_ONCE, VERIFY_TICK};
use crate::policy::CheckedUrl;
use crate::source::{Source, Verified};
use crate::world::{Settings, World};

/// One for the process.
pub struct Verifier {
    world: Arc<World>,
    deliverer: Arc<Deliverer>,
}

/// What every reflector said of one source.
#[derive(Clone, Debug)]
pub struct Heard {
    pub source: Arc<Source>,
    /// In the order of the configuration.
    pub said: Vec<(String, Said)>,
}

impl Heard {
    /// A reflector named another address.
    pub fn differs(&self) -> bool {
        self.said.iter().any(|(_, said)| matches!(said, Said::Saw(seen) if *seen != self.source.public()))
    }

    /// No reflector named any address.
    pub fn is_unknown(&self) -> bool {
        self.said.iter().all(|(_, said)| matches!(said, Said::Nothing(_)))
    }
}

/// What is known of every source, by its pair, and under which settings it was asked for. Kept between rounds.
#[derive(Default)]
pub struct Memory {
    known: HashMap<(IpAddr, IpAddr), Known>,
    asked_under: Option<Verify>,
}

/// What is known of a source, and when it is asked about again.
struct Known {
    standing: Standing,
    due: Instant,
}

impl Verifier {
    pub fn new(world: Arc<World>, deliverer: Arc<Deliverer>) -> Self {
        Self { world, deliverer }
    }

    /// Asks whenever a source is due, under the settings in force then, until `stopped` turns true. `asked` is told
    /// when every source has been asked about once.
    pub async fn run(self, asked: oneshot::Sender<()>, mut stopped: watch::Receiver<bool>) {
        let (mut memory, mut asked) = (Memory::default(), Some(asked));
        loop {
            tokio::select! {
                () = self.ask_those_due(&mut memory) => {
                    // Nobody may be waiting any more.
                    let _ = asked.take().map(|asked| asked.send(()));
                }
                _ = stopped.wait_for(|stopped| *stopped) => return,
            }
            tokio::select! {
                () = tokio::time::sleep(VERIFY_TICK) => {}
                _ = stopped.wait_for(|stopped| *stopped) => return,
            }
        }
    }

    /// One round, under the settings in force: asks about the sources whose time has come, and says what was heard to
    /// all who choose among them.
    pub async fn ask_those_due(&self, memory: &mut Memory) {
        let settings = &*self.world.settings();
        let known = &mut memory.known;
        let sources = settings.sources.all();
        known.retain(|pair, _| sources.iter().any(|source| pair_of(source) == *pair));
        let verify = &settings.config.egress.verify;
        // Other reflectors may say otherwise: who put them in place waits for their word, not for the next round of
        // those before.
        let asks_anew = memory.asked_under != *verify;
        if asks_anew {
            memory.asked_under.clone_from(verify);
        }
        let Some(verify) = verify else {
            // Without reflectors nothing is known, and nobody could ever bring a source back.
            for source in sources {
                settings.sources.verified(&source, Verified::Unknown);
            }
            known.clear();
            return;
        };
        let (now, today) = (clock::monotonic(), clock::wall());
        let due = sources.into_iter().filter(|source| {
            let waits = !asks_anew && known.get(&pair_of(source)).is_some_and(|known| known.due > now);
            !waits && settings.sources.has_a_future(source, today)
        });
        let due: Vec<_> = due.collect();
        let mut heard = stream::iter(due.into_iter().map(|source| self.ask(settings, verify, source)))
            .buffer_unordered(VERIFY_AT_ONCE);
        while let Some(heard) = heard.next().await {
            let one = known
                .entry(pair_of(&heard.source))
                .or_insert_with(|| Known { standing: Standing::default(), due: now });
            let said: Vec<Said> = heard.said.iter().map(|(_, said)| said.clone()).collect();
            let now = clock::monotonic();
            let standing = one.standing.after(heard.source.public(), &said, now);
            tell(&heard, &one.standing, &standing);
            settings.sources.verified(&heard.source, standing.state);
            one.due = now + standing.asked_again_after(verify.every);
            one.standing = standing;
        }
    }

    /// Asks every reflector through one source.
    pub async fn ask(&self, settings: &Settings, verify: &Verify, source: Arc<Source>) -> Heard {
        let deadline = settings.config.delivery.deadline;
        let asked = verify.reflectors.iter().map(|reflector| self.ask_one(reflector, &source, deadline));
        let said = futures_util::future::join_all(asked).await;
        Heard { said: verify.reflectors.iter().cloned().zip(said).collect(), source }
    }

    async fn ask_one(&self, reflector: &str, source: &Arc<Source>, deadline: Duration) -> Said {
        let url = match CheckedUrl::parse(reflector) {
            Ok(url) => url,
            Err(denial) => return Said::Nothing(denial.message),
        };
        match self.deliverer.fetch(&url, source, Deadline::start(deadline)).await {
            Ok(fetched) => read_answer(fetched.status, &fetched.body),
            Err(failure) => Said::Nothing(format!("{}: {}", failure.code, failure.message)),
        }
    }
}

fn pair_of(source: &Source) -> (IpAddr, IpAddr) {
    (source.public(), source.bind())
}

/// Each change of state once, with what was said; a reflector's text never gets here, only an address or our words.
fn tell(heard: &Heard, before: &Standing, after: &Standing) {
    let (source_ip, bind) = (heard.source.public(), heard.source.bind());
    let said: Vec<_> = heard
        .said
        .iter()
        .map(|(reflector, said)| match said {
            Said::Saw(seen) => format!("{reflector} saw {seen}"),
            Said::Nothing(why) => format!("{reflector} said nothing ({why})"),
        })
        .collect();
    let said = said.join("; ");
    if after.is_suspected() && !before.is_suspected() {
        tracing::warn!(%source_ip, %bind, said, "the reflector names another address for this source: it is asked again");
    }
    if before.state == after.state {
        return;
    }
    match after.state {
        Verified::Drift => tracing::error!(
            %source_ip, %bind, said,
            "the source is seen as another address and was taken out: correct its NAT or routing, or its pair"
        ),
        Verified::Unverified => {
            tracing::warn!(%source_ip, %bind, said, "the source could not be verified; it is still used");
        }
        Verified::Yes => tracing::info!(%source_ip, %bind, "the source is seen as its published address"),
        Verified::Unknown => {}
    }
}
