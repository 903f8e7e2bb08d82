//! What reflectors' answers say of a source. Pure: answers and `now` in, a state out.
//!
//! A source is taken out when two reflectors name another address for it in one round, or the only one there is does
//! so twice, [`VERIFY_AGAIN_AFTER`] apart: one that lies or is dead changes nothing by itself. It comes back when it
//! is seen as its published address again, and nobody contradicts.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::limits::{VERIFY_AGAIN_AFTER, VERIFY_OUT_AGAIN_AFTER};
use crate::source::Verified;

/// What one reflector said when it was asked through one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// The address that it saw.
    Saw(IpAddr),
    /// It could not be reached, or did not answer with an address: why.
    Nothing(String),
}

/// What is remembered of a source between rounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub state: Verified,
    /// When the only reflector first named another address, with no word for the source since.
    suspected: Option<Instant>,
}

impl Default for Standing {
    fn default() -> Self {
        Self { state: Verified::Unknown, suspected: None }
    }
}

impl Standing {
    /// One round: what every configured reflector said of the source whose published address is `public`.
    pub fn after(&self, public: IpAddr, said: &[Said], now: Instant) -> Self {
        let against = said.iter().filter(|said| matches!(said, Said::Saw(seen) if *seen != public)).count();
        let for_it = said.iter().filter(|said| matches!(said, Said::Saw(seen) if *seen == public)).count();
        let alone = said.len() == 1;
        let was_drift = self.state == Verified::Drift;
        let suspected = if alone && against == 1 { self.suspected.or(Some(now)) } else { None };
        // Silence between two words against it is no word for it.
        let suspected = if alone && for_it == 0 { suspected.or(self.suspected) } else { suspected };
        let confirmed = self.suspected.is_some_and(|since| now.duration_since(since) >= VERIFY_AGAIN_AFTER);
        let state = match (for_it, against) {
            (_, 2..) => Verified::Drift,
            (_, 1) if alone && confirmed => Verified::Drift,
            // Contradicted by one: outvoted, or left open.
            (2.., 1) => Verified::Yes,
            (_, 1) if was_drift => Verified::Drift,
            (_, 1) if alone => self.state,
            (_, 1) => Verified::Unverified,
            (1.., _) => Verified::Yes,
            (0, _) if was_drift => Verified::Drift,
            (0, _) => Verified::Unverified,
        };
        Self { state, suspected }
    }

    /// How long after a round the next one is, where the configuration says `every`.
    pub fn asked_again_after(&self, every: Duration) -> Duration {
        if self.is_suspected() {
            VERIFY_AGAIN_AFTER
        } else if self.state == Verified::Drift {
            VERIFY_OUT_AGAIN_AFTER.min(every)
        } else {
            every
        }
    }

    /// It has to be asked again soon, to hear the only reflector a second time.
    pub fn is_suspected(&self) -> bool {
        self.suspected.is_some() && self.state != Verified::Drift
    }
}

/// The address in a reflector's answer: text, or `{"ip": …}`.
pub fn read_answer(status: u16, body: &[u8]) -> Said {
    if status != 200 {
        return Said::Nothing(format!("it answered with status {status}"));
    }
    let text = std::str::from_utf8(body).ok().filter(|text| text.len() <= 4096).map(str::trim);
    let address = text.and_then(|text| match text.parse::<IpAddr>() {
        Ok(address) => Some(address),
        Err(_) => {
            let json: serde_json::Value = serde_json::from_str(text).ok()?;
            json.get("ip")?.as_str()?.parse().ok()
        }
    });
    match address {
        Some(address) => Said::Saw(address.to_canonical()),
        None => Said::Nothing("it did not answer with an address".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    /// `=` names the published address, `x` and `y` others, `-` nothing.
    fn said(letters: &str) -> Vec<Said> {
        let one = |letter| match letter {
            '=' => Said::Saw("203.0.113.1".parse().unwrap()),
            'x' => Said::Saw("203.0.113.2".parse().unwrap()),
            'y' => Said::Saw("2001:db8::1".parse().unwrap()),
            _ => Said::Nothing("silent".to_owned()),
        };
        letters.chars().map(one).collect()
    }

    /// Rounds, each after so many seconds, and the state that each leaves.
    #[track_caller]
    fn check(rounds: &[(u64, &str, Verified)]) {
        let (mut standing, start) = (Standing::default(), clock::monotonic());
        for (second, letters, state) in rounds {
            let now = start + Duration::from_secs(*second);
            standing = standing.after("203.0.113.1".parse().unwrap(), &said(letters), now);
            assert_eq!(standing.state, *state, "{letters} at {second} of {rounds:?}");
        }
    }

    use Verified::{Drift, Unknown, Unverified, Yes};

    #[test]
    fn two_reflectors_that_name_another_address_take_a_source_out() {
        for (letters, state) in [
            ("==", Yes),
            ("=-", Yes),
            ("--", Unverified),
            ("=x", Unverified),
            ("-x", Unverified),
            ("xx", Drift),
            ("xy", Drift),
            ("==x", Yes),
            ("=-x", Unverified),
            ("=xx", Drift),
            ("-xx", Drift),
            ("---", Unverified),
        ] {
            check(&[(0, letters, state)]);
        }
    }

    #[test]
    fn one_of_several_that_lies_for_ever_takes_nothing_out() {
        check(&[(0, "=x", Unverified), (900, "=x", Unverified), (1800, "-x", Unverified), (2700, "==", Yes)]);
    }

    #[test]
    fn the_only_reflector_is_believed_the_second_time() {
        check(&[(0, "=", Yes), (900, "x", Yes), (909, "x", Yes), (910, "x", Drift)]);
        check(&[(0, "x", Unknown), (10, "x", Drift), (20, "=", Yes)]);
        // A good word in between clears it; silence does not.
        check(&[(0, "x", Unknown), (10, "=", Yes), (20, "x", Yes), (30, "x", Drift)]);
        check(&[(0, "x", Unknown), (10, "-", Unverified), (20, "x", Drift)]);
        check(&[(0, "-", Unverified), (10, "=", Yes)]);
    }

    #[test]
    fn a_source_that_is_out_comes_back_only_when_it_is_seen_right() {
        check(&[(0, "xx", Drift), (10, "--", Drift), (20, "=x", Drift), (30, "-x", Drift), (40, "=-", Yes)]);
        check(&[(0, "xx", Drift), (10, "==", Yes)]);
        check(&[(0, "x", Unknown), (10, "x", Drift), (20, "-", Drift), (30, "x", Drift), (40, "=", Yes)]);
    }

    #[test]
    fn only_a_suspicion_is_followed_up_soon() {
        let now = clock::monotonic();
        let after = |letters| Standing::default().after("203.0.113.1".parse().unwrap(), &said(letters), now);
        for (letters, suspected) in [("x", true), ("=", false), ("-", false), ("=x", false), ("xx", false)] {
            assert_eq!(after(letters).is_suspected(), suspected, "{letters}");
        }
    }

    #[test]
    fn a_source_that_is_out_is_asked_about_every_minute() {
        let now = clock::monotonic();
        let quarter = Duration::from_secs(900);
        for (letters, every, wait) in [
            ("==", quarter, quarter),
            ("--", quarter, quarter),
            ("x", quarter, Duration::from_secs(10)),
            ("xx", quarter, Duration::from_secs(60)),
            ("xx", Duration::from_secs(5), Duration::from_secs(5)),
        ] {
            let standing = Standing::default().after("203.0.113.1".parse().unwrap(), &said(letters), now);
            assert_eq!(standing.asked_again_after(every), wait, "{letters} {every:?}");
        }
    }

    #[test]
    fn an_answer_is_an_address_as_text_or_json() {
        for (status, body, seen) in [
            (200, "203.0.113.1\n", Some("203.0.113.1")),
            (200, "  2001:db8::1 ", Some("2001:db8::1")),
            (200, "::ffff:203.0.113.1", Some("203.0.113.1")),
            (200, "{\"ip\": \"203.0.113.1\", \"x\": 1}", Some("203.0.113.1")),
            (200, "{\"ip\": 1}", None),
            (200, "\"203.0.113.1\"", None),
            (200, "<html>203.0.113.1</html>", None),
            (200, "", None),
            (200, "203.0.113.1, 10.0.0.1", None),
            (302, "203.0.113.1", None),
            (503, "203.0.113.1", None),
        ] {
            let said = read_answer(status, body.as_bytes());
            match seen {
                Some(seen) => assert_eq!(said, Said::Saw(seen.parse().unwrap()), "{body}"),
                None => assert!(matches!(said, Said::Nothing(_)), "{status} {body}: {said:?}"),
            }
        }
        assert!(matches!(read_answer(200, &[0xff, 0xfe]), Said::Nothing(_)));
    }
}
