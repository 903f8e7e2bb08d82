//! Statistics: ends counted by five minutes, and what an answer is made of.
//!
//! No store reads records to answer. Each counts ends once, as [`Place`]s with a number, and adds up those that are asked
//! for. How long deliveries took is counted by [`TIMES`], so that percentiles are within one of its steps. Pure.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;

use super::Reach;
use crate::limits::{STATS_BUCKETS_MAX, STATS_GROUPS_BY_COUNT, STATS_GROUPS_BY_LOSS};
use crate::outcome::labelled;

/// Ends are counted by so many seconds.
pub const SLOT_SECONDS: i64 = 300;
/// Milliseconds. A delivery is counted under the first of these that it did not pass, or beyond them all. A
/// timeout ends some milliseconds past its deadline and has a step of its own, which ends with the grace for that. Stores
/// keep the numbers of these.
pub const TIMES: [u32; 25] = [
    1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 4000, 5000, 5250,
    10000,
];
/// It was never begun, or nobody saw it end.
pub const NO_TIME: u8 = TIMES.len() as u8 + 1;

labelled! {
    /// What sends are told apart by.
    By {
        Outcome = "outcome",
        Host = "host",
        Tenant = "tenant",
        Source = "source",
    }
}

/// The slot of an instant.
pub fn slot_of(at: Timestamp) -> i64 {
    at.as_second().div_euclid(SLOT_SECONDS)
}

/// Where a delivery that took so long, as its own record has it, is counted.
pub fn time_of(total: Option<Duration>) -> u8 {
    let step = |total| TIMES.partition_point(|&most| Duration::from_millis(most.into()) < total) as u8;
    total.map_or(NO_TIME, step)
}

/// What `GET /v1/stats` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatsAsked {
    pub reach: Reach,
    /// Slots from the first to before the last; whole buckets.
    pub since: i64,
    pub until: i64,
    /// How many slots make a bucket.
    pub bucket: i64,
    pub by: By,
}

impl StatsAsked {
    /// Whole buckets that hold what is between two instants; `None`: that is nothing, or too many.
    pub fn of(reach: Reach, by: By, bucket: i64, since: Timestamp, until: Timestamp) -> Option<Self> {
        let since = slot_of(since).div_euclid(bucket) * bucket;
        let last = until.as_second() + i64::from(until.subsec_nanosecond() > 0);
        let until = -(-last).div_euclid(SLOT_SECONDS * bucket) * bucket;
        let buckets = (until - since) / bucket;
        (1..=STATS_BUCKETS_MAX).contains(&buckets).then_some(Self { reach, since, until, bucket, by })
    }

    pub fn takes_in(&self, slot: i64) -> bool {
        (self.since..self.until).contains(&slot)
    }

    pub fn start_of(slot: i64) -> Timestamp {
        Timestamp::from_second(slot * SLOT_SECONDS).unwrap_or(Timestamp::MAX)
    }
}

/// Ends that are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub slot: i64,
    pub delivered: bool,
    /// Of [`TIMES`].
    pub time: u8,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub count: u64,
    pub delivered: u64,
    times: [u64; TIMES.len() + 1],
}

impl Figures {
    fn add(&mut self, place: Place, count: u64) {
        self.count += count;
        self.delivered += if place.delivered { count } else { 0 };
        if let Some(times) = self.times.get_mut(usize::from(place.time)) {
            *times += count;
        }
    }

    /// Milliseconds that this share of those that have a time did not pass; `None`: none has one.
    pub fn percentile(&self, share: f64) -> Option<f64> {
        let timed: u64 = self.times.iter().sum();
        let rank = share * timed as f64;
        let mut before = 0.0;
        for (at, &count) in self.times.iter().enumerate().filter(|(_, count)| **count > 0) {
            let count = count as f64;
            if before + count >= rank {
                let least = at.checked_sub(1).map_or(0.0, |below| f64::from(TIMES[below]));
                // Beyond the last nothing is known but that.
                let most = TIMES.get(at).map_or(least, |&most| f64::from(most));
                return Some(least + (most - least) * ((rank - before) / count).clamp(0.0, 1.0));
            }
            before += count;
        }
        None
    }
}

/// Sends that have something in common. `None`: all that no other group of the answer has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub name: Option<String>,
    pub all: Figures,
    /// By the bucket's first slot; those in which any ended.
    pub buckets: BTreeMap<i64, Figures>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub all: Figures,
    /// Those with most sends first, the one without a name last.
    pub groups: Vec<Group>,
}

/// The first of two rounds: which groups the answer has.
#[derive(Default)]
pub struct Choosing(HashMap<String, (u64, u64)>);

impl Choosing {
    pub fn add(&mut self, name: Option<&str>, delivered: bool, count: u64) {
        let Some(name) = name else { return };
        if !self.0.contains_key(name) {
            self.0.insert(name.to_owned(), (0, 0));
        }
        if let Some(known) = self.0.get_mut(name) {
            known.0 += count;
            known.1 += if delivered { 0 } else { count };
        }
    }

    /// Those with most sends, and those of which most were not delivered.
    pub fn chosen(self) -> Gathering {
        let mut all: Vec<(String, (u64, u64))> = self.0.into_iter().collect();
        all.sort_by(|one, two| two.1.0.cmp(&one.1.0).then_with(|| one.0.cmp(&two.0)));
        let rest = all.split_off(all.len().min(STATS_GROUPS_BY_COUNT));
        let mut rest: Vec<_> = rest.into_iter().filter(|(_, (_, lost))| *lost > 0).collect();
        rest.sort_by(|one, two| two.1.1.cmp(&one.1.1).then_with(|| one.0.cmp(&two.0)));
        rest.truncate(STATS_GROUPS_BY_LOSS);
        let names: Vec<String> = all.into_iter().chain(rest).map(|(name, _)| name).collect();
        let places = names.iter().cloned().zip(0..).collect();
        let group = |name| Group { name, all: Figures::default(), buckets: BTreeMap::new() };
        let groups = names.into_iter().map(Some).chain([None]).map(group).collect();
        Gathering { places, groups, all: Figures::default() }
    }
}

/// The second: what each of them has.
pub struct Gathering {
    places: HashMap<String, usize>,
    /// The last one is that without a name.
    groups: Vec<Group>,
    all: Figures,
}

impl Gathering {
    pub fn names(&self) -> Vec<&str> {
        self.groups.iter().filter_map(|group| group.name.as_deref()).collect()
    }

    pub fn add(&mut self, asked: &StatsAsked, name: Option<&str>, place: Place, count: u64) {
        self.all.add(place, count);
        let at = name.and_then(|name| self.places.get(name)).copied().unwrap_or(self.places.len());
        let Some(group) = self.groups.get_mut(at) else { return };
        group.all.add(place, count);
        let bucket = place.slot.div_euclid(asked.bucket) * asked.bucket;
        group.buckets.entry(bucket).or_default().add(place, count);
    }

    pub fn done(self) -> Stats {
        let mut groups = self.groups;
        groups.retain(|group| group.all.count > 0);
        groups.sort_by_key(|group| (group.name.is_none(), std::cmp::Reverse(group.all.count)));
        Stats { all: self.all, groups }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_within_a_step_of_what_was_measured() {
        let mut figures = Figures::default();
        assert_eq!(figures.percentile(0.5), None);
        let measured: Vec<u64> = (1..=1000).map(|n| n * 4).collect();
        for total in measured.into_iter().map(Duration::from_millis) {
            figures.add(Place { slot: 0, delivered: true, time: time_of(Some(total)) }, 1);
        }
        figures.add(Place { slot: 0, delivered: false, time: NO_TIME }, 9);
        assert_eq!((figures.count, figures.delivered), (1009, 1000));
        for (share, truth) in [(0.5, 2000.0), (0.95, 3800.0), (0.99, 3960.0)] {
            let told = figures.percentile(share).expect("some were begun");
            assert!((told / truth - 1.0).abs() < 0.35, "{share}: {told} for {truth}");
        }
        let mut beyond = Figures::default();
        beyond.add(Place { slot: 0, delivered: true, time: time_of(Some(Duration::from_secs(60))) }, 1);
        assert_eq!(beyond.percentile(0.5), Some(10_000.0));
    }

    #[test]
    fn a_timeout_reads_as_one() {
        for late in [1, 500, 14_300, 249_999] {
            let mut figures = Figures::default();
            let total = Duration::from_secs(5) + Duration::from_micros(late);
            figures.add(Place { slot: 0, delivered: false, time: time_of(Some(total)) }, 40);
            for share in [0.01, 0.5, 0.99, 1.0] {
                let told = figures.percentile(share).expect("each has a time");
                assert!((5_000.0..=5_250.0).contains(&told), "{late}, {share}: {told}");
            }
        }
    }

    #[test]
    fn buckets_are_whole_and_bounded() {
        let at = |second| Timestamp::from_second(second).expect("in range");
        let of = |bucket, since, until| {
            StatsAsked::of(Reach::All, By::Outcome, bucket, at(since), at(until))
                .map(|asked| (asked.since, asked.until))
        };
        for (bucket, since, until, expected) in [
            (1, 0, 300, Some((0, 1))),
            (1, 299, 301, Some((0, 2))),
            (12, 3599, 3600, Some((0, 12))),
            (12, 3600, 3601, Some((12, 24))),
            (12, 3600, 3600, None),
            (12, 7200, 3600, None),
            (1, 0, STATS_BUCKETS_MAX * 300, Some((0, STATS_BUCKETS_MAX))),
            (1, 0, STATS_BUCKETS_MAX * 300 + 1, None),
        ] {
            assert_eq!(of(bucket, since, until), expected, "{bucket} {since} {until}");
        }
    }

    #[test]
    fn an_answer_has_so_many_groups_and_the_rest_in_one() {
        let asked = StatsAsked { reach: Reach::All, since: 0, until: 24, bucket: 12, by: By::Host };
        let ends = || {
            let many = (0..100u64).map(|n| (format!("h{n:03}"), 1000 - n, true));
            many.chain([("bad".to_owned(), 5, false), ("mixed".to_owned(), 2, false)])
        };
        let mut choosing = Choosing::default();
        ends().for_each(|(name, count, delivered)| choosing.add(Some(&name), delivered, count));
        choosing.add(None, true, 7);
        let mut gathering = choosing.chosen();
        for (name, count, delivered) in ends() {
            let slot = i64::try_from(count % 24).expect("small");
            gathering.add(&asked, Some(&name), Place { slot, delivered, time: 3 }, count);
        }
        gathering.add(&asked, None, Place { slot: 1, delivered: true, time: 3 }, 7);
        let stats = gathering.done();
        let names: Vec<_> = stats.groups.iter().map(|group| group.name.as_deref()).collect();
        assert_eq!(names.len(), STATS_GROUPS_BY_COUNT + 3);
        assert_eq!(names[..2], [Some("h000"), Some("h001")]);
        assert_eq!(names[STATS_GROUPS_BY_COUNT..], [Some("bad"), Some("mixed"), None]);
        let sum = |figures: &mut dyn Iterator<Item = &Figures>| figures.map(|one| one.count).sum::<u64>();
        assert_eq!(sum(&mut stats.groups.iter().map(|group| &group.all)), stats.all.count);
        for group in &stats.groups {
            assert_eq!(sum(&mut group.buckets.values()), group.all.count);
            assert!(group.buckets.keys().all(|bucket| [0, 12].contains(bucket)));
        }
    }
}
