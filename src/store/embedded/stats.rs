//! Statistics: the ends of each segment's log are counted once, from its `ends` and the rows that they name.
//!
//! A full segment's counts are kept in its file `stats`, and those of the newest in memory, counted on from where they
//! were, every few seconds. So an answer costs the counts of its time, and the ends of those seconds. Derived: where the file is missing or
//! not sound it is made anew.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::entry::{FinishHead, SendHead};
use super::frame::{self, Frame, FrameKind};
use super::read::payload;
use super::seal::Asked;
use super::segment::{END_BYTES, End, SCAN_ROWS, Segment};
use super::table::{ROW_BYTES, Row};
use super::{Shared, files, locked};
use crate::limits::{STATS_COUNTS_MAX, STATS_HOSTS_OF_SLOT};
use crate::outcome::Outcome;
use crate::store::stats::{By, Choosing, NO_TIME, Place, SLOT_SECONDS, Stats, StatsAsked, time_of};
use crate::store::{StoreError, wire};

/// Ends that are read at once.
const ENDS_AT_ONCE: u32 = 16 * 1024;
/// Far more than a full segment's takes.
const FILE_BYTES_MAX: u64 = 256 << 20;
const NANOSECONDS_PER_MS: i64 = 1_000_000;
const OUTCOME: u8 = 0;
const HOST: u8 = 1;
const SOURCE: u8 = 2;
const TENANT: u8 = 3;

/// Ends that are counted together: of a tenant, and to one host, from one source or with one outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Key {
    of: u8,
    slot: i64,
    tenant: u32,
    /// The number of an outcome, or the row's hash; 0: of those that are not told apart.
    value: u32,
    delivered: bool,
    time: u8,
}

/// What a segment's ends come to, up to one of them.
#[derive(Default)]
pub struct Counted {
    to: u32,
    counts: HashMap<Key, u64>,
    /// Hosts, public addresses and tenants by their hashes.
    names: HashMap<(u8, u32), String>,
    /// Of the newest slot, with their tenants.
    hosts: (i64, HashSet<(u32, u32)>),
    /// The first and the last.
    slots: Option<(i64, i64)>,
    /// All of it is in the file, and nothing comes any more.
    sealed: bool,
}

#[derive(Serialize, Deserialize)]
struct StatsForm {
    ends: u32,
    counts: Vec<(Key, u64)>,
    names: Vec<(u8, u32, String)>,
}

/// What is asked for, of one segment.
struct Asking<'a> {
    asked: &'a StatsAsked,
    of: u8,
    tenant: u32,
}

impl Asking<'_> {
    fn each(&self, counted: &Counted, mut add: impl FnMut(Option<&str>, Place, u64)) {
        for (key, &count) in &counted.counts {
            let is_asked = key.of == self.of && (self.tenant == 0 || self.tenant == key.tenant);
            if !is_asked || !self.asked.takes_in(key.slot) {
                continue;
            }
            let name = match self.asked.by {
                By::Outcome => {
                    u8::try_from(key.value).ok().and_then(|one| wire::outcome_of(one).ok()).map(Outcome::label)
                }
                By::Tenant => counted.names.get(&(TENANT, key.tenant)).map(String::as_str),
                By::Host | By::Source => counted.names.get(&(key.of, key.value)).map(String::as_str),
            };
            add(name, Place { slot: key.slot, delivered: key.delivered, time: key.time }, count);
        }
    }
}

pub fn stats(shared: &Shared, asked: &StatsAsked) -> Result<Stats, StoreError> {
    let of = match asked.by {
        By::Outcome | By::Tenant => OUTCOME,
        By::Host => HOST,
        By::Source => SOURCE,
    };
    let tenant = asked.reach.one().map_or(0, |tenant| shared.keys.short(Asked::Tenant, tenant.as_str()));
    let asking = Asking { asked, of, tenant };
    let segments = shared.segments();
    let is_beside = |(first, last): (i64, i64)| last < asked.since || first >= asked.until;
    let within = segments.iter().filter(|segment| {
        let counted = locked(&segment.counted);
        !(counted.sealed && counted.slots.is_some_and(is_beside))
    });
    let within: Vec<&Arc<Segment>> = within.collect();
    let mut choosing = Choosing::default();
    for segment in &within {
        with(shared, segment, |counted| {
            asking.each(counted, |name, place, count| choosing.add(name, place.delivered, count));
        })?;
    }
    let mut gathering = choosing.chosen();
    for segment in &within {
        with(shared, segment, |counted| {
            asking.each(counted, |name, place, count| gathering.add(asked, name, place, count));
        })?;
    }
    Ok(gathering.done())
}

/// With all that ended in this segment's log by now.
fn with<T>(shared: &Shared, segment: &Segment, look: impl FnOnce(&Counted) -> T) -> Result<T, StoreError> {
    let mut counted = locked(&segment.counted);
    if counted.sealed {
        if let Some(read) = read(segment) {
            return Ok(look(&read));
        }
        // It was not sound.
        *counted = Counted::default();
    }
    count_on(shared, segment, &mut counted)?;
    Ok(look(&counted))
}

/// Counts what ended by now, so that who asks next need not wait for it.
pub fn keep_up(shared: &Shared, newest: &Segment) {
    // What cannot be read is told to whoever asks.
    let _ = count_on(shared, newest, &mut locked(&newest.counted));
}

/// Keeps what a full segment's ends come to in its file, where it is not there.
pub fn seal(shared: &Shared, segment: &Segment) -> io::Result<()> {
    let mut counted = locked(&segment.counted);
    if counted.sealed {
        return Ok(());
    }
    if counted.to == 0
        && let Some(read) = read(segment)
    {
        *counted = Counted { sealed: true, slots: read.slots, ..Counted::default() };
        return Ok(());
    }
    count_on(shared, segment, &mut counted).map_err(io::Error::other)?;
    write(segment, &counted)?;
    *counted = Counted { sealed: true, slots: counted.slots, ..Counted::default() };
    Ok(())
}

fn read(segment: &Segment) -> Option<Counted> {
    let file = std::fs::File::open(segment.directory.join("stats")).ok()?;
    let length = file.metadata().ok()?.len();
    if length > FILE_BYTES_MAX {
        return None;
    }
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let Frame { kind: FrameKind::Stats, payload, .. } = frame::parse(&bytes)? else { return None };
    let form: StatsForm = wire::decode(payload).ok()?;
    if form.ends != segment.ends_count.load(Ordering::Acquire) {
        return None;
    }
    let slots = || form.counts.iter().map(|(key, _)| key.slot);
    let slots = slots().min().zip(slots().max());
    Some(Counted {
        to: form.ends,
        slots,
        counts: form.counts.into_iter().collect(),
        names: form.names.into_iter().map(|(of, hash, name)| ((of, hash), name)).collect(),
        ..Counted::default()
    })
}

/// Not synced: what a loss of power takes is counted anew.
fn write(segment: &Segment, counted: &Counted) -> io::Result<()> {
    let mut counts: Vec<(Key, u64)> = counted.counts.iter().map(|(key, count)| (*key, *count)).collect();
    counts.sort_unstable();
    let names = counted.names.iter().map(|(&(of, hash), name)| (of, hash, name.clone())).collect();
    let form = StatsForm { ends: counted.to, counts, names };
    let mut bytes = Vec::new();
    frame::append(&mut bytes, FrameKind::Stats, &[&wire::encode(&form, Vec::new())], None);
    let making = segment.directory.join("stats.new");
    files::make(&making)?.write_all_at(&bytes, 0)?;
    std::fs::rename(&making, segment.directory.join("stats"))
}

/// Counts the ends that came since.
fn count_on(shared: &Shared, segment: &Segment, counted: &mut Counted) -> Result<(), StoreError> {
    let durable = (shared.last_seq.load(Ordering::Acquire) + 1).saturating_sub(segment.first_seq);
    let known = u32::try_from(durable).unwrap_or(u32::MAX).min(segment.ends_count.load(Ordering::Acquire));
    let mut rows = Rows::default();
    while counted.to < known {
        let to = known.min(counted.to.saturating_add(ENDS_AT_ONCE));
        let bytes = segment.ends(counted.to, to)?;
        for end in bytes.chunks_exact(END_BYTES).filter_map(End::decode) {
            let row = rows.of(shared, &end).filter(|row| !row.is_lost());
            counted.add(shared, &end, row.as_ref());
        }
        counted.to = to;
    }
    Ok(())
}

impl Counted {
    fn add(&mut self, shared: &Shared, end: &End, row: Option<&Row>) {
        let slot = end.finished_at.div_euclid(SLOT_SECONDS * 1_000 * NANOSECONDS_PER_MS);
        self.slots = Some(self.slots.map_or((slot, slot), |(first, last)| (first.min(slot), last.max(slot))));
        let delivered = end.outcome == wire::outcome_number(Outcome::Delivered);
        let took = row.filter(|row| row.is_begun()).map(|row| (end.finished_at - row.started_at) / NANOSECONDS_PER_MS);
        let time = took.map_or(NO_TIME, time_of);
        let (mut host, public) = row.map_or((0, 0), |row| (row.host, row.public));
        if host != 0 {
            if self.hosts.0 != slot {
                self.hosts = (slot, HashSet::new());
            }
            let is_room = self.hosts.1.len() < STATS_HOSTS_OF_SLOT && self.counts.len() < STATS_COUNTS_MAX;
            let pair = (end.tenant, host);
            if !self.hosts.1.contains(&pair) {
                if is_room {
                    self.hosts.1.insert(pair);
                } else {
                    host = 0;
                }
            }
        }
        if let Some(row) = row {
            self.learn(shared, end, row, host);
        }
        let values = [(OUTCOME, u32::from(end.outcome)), (HOST, host), (SOURCE, public)];
        for (of, value) in values {
            let key = Key { of, slot, tenant: end.tenant, value, delivered, time };
            *self.counts.entry(key).or_default() += 1;
        }
    }

    #[cfg(test)]
    pub fn hosts_told(&self) -> usize {
        self.names.keys().filter(|(of, _)| *of == HOST).count()
    }

    /// The names that hashes stand for are read of the first send that has them.
    fn learn(&mut self, shared: &Shared, end: &End, row: &Row, host: u32) {
        let is_new = |of, hash| hash != 0 && !self.names.contains_key(&(of, hash));
        let (new_host, new_tenant) = (is_new(HOST, host), is_new(TENANT, end.tenant));
        let new_source = is_new(SOURCE, row.public);
        if (new_host || new_tenant)
            && let Some(segment) = shared.segment(end.segment)
            && let Ok(bytes) = segment.frame(row.accepted)
            && let Ok((_, form)) = payload(&segment, row.accepted, &bytes, SendHead::decode)
        {
            self.names.insert((TENANT, end.tenant), form.tenant_id().to_string());
            if let Some(name) = form.host().filter(|_| new_host) {
                self.names.insert((HOST, host), name);
            }
        }
        if new_source
            && let Some(segment) = shared.segment(row.finish_segment)
            && let Ok(bytes) = segment.frame(row.finish)
            && let Ok((_, form)) = payload(&segment, row.finish, &bytes, FinishHead::decode)
            && let (_, Some(public)) = form.sources()
        {
            self.names.insert((SOURCE, row.public), public.to_string());
        }
    }
}

/// Rows that ends name, which mostly stand near one another.
#[derive(Default)]
struct Rows {
    segment: Option<Arc<Segment>>,
    from: u32,
    bytes: Vec<u8>,
}

impl Rows {
    /// `None`: it is damaged, or its segment was dropped.
    fn of(&mut self, shared: &Shared, end: &End) -> Option<Row> {
        let is_here = self.segment.as_ref().is_some_and(|segment| segment.number == end.segment)
            && (self.from..self.from + (self.bytes.len() / ROW_BYTES) as u32).contains(&end.row);
        if !is_here {
            let segment = shared.segment(end.segment)?;
            let from = end.row / SCAN_ROWS * SCAN_ROWS;
            let to = segment.row_count().min(from + SCAN_ROWS);
            self.segment = None;
            if end.row >= to {
                return None;
            }
            segment.rows(from, to, &mut self.bytes).ok()?;
            (self.from, self.segment) = (from, Some(segment));
        }
        let at = (end.row - self.from) as usize * ROW_BYTES;
        self.bytes.get(at..)?.first_chunk().and_then(Row::decode)
    }
}
