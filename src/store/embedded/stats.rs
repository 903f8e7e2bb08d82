//! Statistics: the ends of each segment's log are counted once, from its `ends` and the rows that they name.
//!
//! A full segment's counts are kept in its file `stats`, and those of the newest in memory, counted on from where they
//! were, every few seconds. So an answer costs the counts of its time, and the ends of those seconds. Derived: where the
//! file is missing or not sound it is made anew. Tenants, hosts and sources are told apart by the names that the log has:
//! rows know hashes, which two of them may share.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::entry::{FinishHead, SendHead};
use super::frame::{self, Frame, FrameKind};
use super::read::{Window, payload};
use super::segment::{END_BYTES, End, SCAN_ROWS, Segment};
use super::table::{Extent, ROW_BYTES, Row};
use super::{Shared, files, locked};
use crate::limits::{STATS_COUNTS_MAX, STATS_HOSTS_OF_SLOT};
use crate::outcome::Outcome;
use crate::send::TenantId;
use crate::store::StoreError;
use crate::store::stats::{By, Choosing, NO_TIME, Place, SLOT_SECONDS, Stats, StatsAsked, time_of};
use crate::store::wire::{self, Unreadable};

/// Ends that are read at once, and of the logs that name them so many bytes.
const ENDS_AT_ONCE: u32 = 4 * 1024;
const LOG_AT_ONCE: usize = 64 << 10;
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
    /// The number of its name here; 0: damage has taken that.
    tenant: u32,
    /// The number of an outcome, or that of a name; 0: of those that are not told apart.
    value: u32,
    delivered: bool,
    time: u8,
}

/// What a segment's ends come to, up to one of them.
#[derive(Default)]
pub struct Counted {
    to: u32,
    counts: HashMap<Key, u64>,
    /// Hosts, public addresses and tenants by their numbers, which are one for each text.
    names: HashMap<(u8, u32), Arc<str>>,
    numbers: HashMap<Arc<str>, u32>,
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

/// Shows what is asked for of one segment.
fn each(asked: &StatsAsked, counted: &Counted, mut add: impl FnMut(Option<&str>, Place, u64)) {
    let of = match asked.by {
        By::Outcome | By::Tenant => OUTCOME,
        By::Host => HOST,
        By::Source => SOURCE,
    };
    let tenant = match asked.reach.one().map(|tenant| counted.number(TENANT, tenant.as_str())) {
        Some(None) => return,
        Some(Some(number)) => Some(number),
        None => None,
    };
    for (key, &count) in &counted.counts {
        let is_asked = key.of == of && tenant.is_none_or(|tenant| tenant == key.tenant);
        if !is_asked || !asked.takes_in(key.slot) {
            continue;
        }
        let name = match asked.by {
            By::Outcome => u8::try_from(key.value).ok().and_then(|one| wire::outcome_of(one).ok()).map(Outcome::label),
            By::Tenant => counted.names.get(&(TENANT, key.tenant)).map(|name| &**name),
            By::Host | By::Source => counted.names.get(&(key.of, key.value)).map(|name| &**name),
        };
        add(name, Place { slot: key.slot, delivered: key.delivered, time: key.time }, count);
    }
}

pub fn stats(shared: &Shared, asked: &StatsAsked) -> Result<Stats, StoreError> {
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
            each(asked, counted, |name, place, count| choosing.add(name, place.delivered, count));
        })?;
    }
    let mut gathering = choosing.chosen();
    for segment in &within {
        with(shared, segment, |counted| {
            each(asked, counted, |name, place, count| gathering.add(asked, name, place, count));
        })?;
    }
    Ok(gathering.done())
}

/// With all that ended in this segment's log by now.
fn with<T>(shared: &Shared, segment: &Segment, look: impl FnOnce(&Counted) -> T) -> Result<T, StoreError> {
    let mut counted = locked(&segment.counted);
    if counted.to == 0 {
        if let Some(read) = read(segment) {
            return Ok(look(&read));
        }
        // It was not sound, if there was any.
        *counted = Counted::default();
    }
    count_on(shared, segment, &mut counted)?;
    Ok(look(&counted))
}

/// Those of which any send ended in this segment's log.
pub fn tenants(shared: &Shared, segment: &Segment) -> Result<Vec<TenantId>, StoreError> {
    with(shared, segment, |counted| {
        let tenants = counted.names.iter().filter(|((of, _), _)| *of == TENANT);
        tenants.map(|(_, name)| TenantId::new(&**name)).collect()
    })
}

/// Whose send this is; `None`: it is damaged, or gone.
pub fn tenant_of(shared: &Shared, end: &End) -> Result<Option<TenantId>, StoreError> {
    let Some(row) = Rows::default().of(shared, end)? else { return Ok(None) };
    let mut log = Log(None);
    let form = log.read(shared, end.segment, row.accepted, SendHead::decode)?;
    Ok(form.map(|(_, form)| form.tenant_id()))
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
        names: form.names.into_iter().map(|(of, number, name)| ((of, number), name.into())).collect(),
        ..Counted::default()
    })
}

/// Not synced: what a loss of power takes is counted anew.
fn write(segment: &Segment, counted: &Counted) -> io::Result<()> {
    let mut counts: Vec<(Key, u64)> = counted.counts.iter().map(|(key, count)| (*key, *count)).collect();
    counts.sort_unstable();
    let names = counted.names.iter().map(|(&(of, number), name)| (of, number, name.to_string())).collect();
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
    while counted.to < known {
        let to = known.min(counted.to.saturating_add(ENDS_AT_ONCE));
        let bytes = segment.ends(counted.to, to)?;
        let ends: Vec<End> = bytes.chunks_exact(END_BYTES).filter_map(End::decode).collect();
        let told = told(shared, &ends)?;
        ends.iter().zip(told).for_each(|(end, told)| counted.add(end, told));
        counted.to = to;
    }
    Ok(())
}

/// What its row and the log know of an end.
#[derive(Default)]
struct Told {
    row: Option<Row>,
    tenant: Option<String>,
    host: Option<String>,
    source: Option<String>,
}

/// Of each of these ends. Read in the order in which the logs have it.
fn told(shared: &Shared, ends: &[End]) -> Result<Vec<Told>, StoreError> {
    let mut told: Vec<Told> = Vec::with_capacity(ends.len());
    let mut rows = Rows::default();
    for end in ends {
        let row = rows.of(shared, end)?.filter(|row| !row.is_lost());
        told.push(Told { row, ..Told::default() });
    }
    let mut order: Vec<(u32, Extent, usize)> = Vec::with_capacity(ends.len());
    order.extend(
        ends.iter()
            .zip(&told)
            .enumerate()
            .filter_map(|(at, (end, told))| told.row.as_ref().map(|row| (end.segment, row.accepted, at))),
    );
    order.sort_unstable_by_key(|(segment, place, _)| (*segment, place.at));
    let mut log = Log(None);
    for (segment, place, at) in order {
        if let Some((_, form)) = log.read(shared, segment, place, SendHead::decode)? {
            told[at].tenant = Some(form.tenant.to_owned());
            told[at].host = form.host();
        }
    }
    let mut log = Log(None);
    for told in &mut told {
        let Some(row) = told.row.as_ref().filter(|row| row.public != 0) else { continue };
        if let Some((_, form)) = log.read(shared, row.finish_segment, row.finish, FinishHead::decode)? {
            told.source = form.sources().1.map(|public| public.to_string());
        }
    }
    Ok(told)
}

impl Counted {
    fn add(&mut self, end: &End, told: Told) {
        let slot = end.finished_at.div_euclid(SLOT_SECONDS * 1_000 * NANOSECONDS_PER_MS);
        self.slots = Some(self.slots.map_or((slot, slot), |(first, last)| (first.min(slot), last.max(slot))));
        let delivered = end.outcome == wire::outcome_number(Outcome::Delivered);
        let took = told.row.as_ref().filter(|row| row.is_begun());
        let time = took.map_or(NO_TIME, |row| time_of((end.finished_at - row.started_at) / NANOSECONDS_PER_MS));
        let tenant = told.tenant.map_or(0, |name| self.name(TENANT, &name));
        let source = told.source.map_or(0, |name| self.name(SOURCE, &name));
        let host = told.host.map_or(0, |name| self.host(slot, tenant, &name));
        for (of, value) in [(OUTCOME, u32::from(end.outcome)), (HOST, host), (SOURCE, source)] {
            let key = Key { of, slot, tenant, value, delivered, time };
            *self.counts.entry(key).or_default() += 1;
        }
    }

    /// The number of a tenant's host, if there is room for one more.
    fn host(&mut self, slot: i64, tenant: u32, name: &str) -> u32 {
        if self.hosts.0 != slot {
            self.hosts = (slot, HashSet::new());
        }
        if let Some(&number) = self.numbers.get(name)
            && self.hosts.1.contains(&(tenant, number))
        {
            return number;
        }
        if self.hosts.1.len() >= STATS_HOSTS_OF_SLOT || self.counts.len() >= STATS_COUNTS_MAX {
            return 0;
        }
        let number = self.name(HOST, name);
        self.hosts.1.insert((tenant, number));
        number
    }

    /// The number of a name, which is given one.
    fn name(&mut self, of: u8, name: &str) -> u32 {
        let next = self.numbers.len() as u32 + 1;
        let (text, number) = match self.numbers.get_key_value(name) {
            Some((text, &number)) => (text.clone(), number),
            None => (Arc::from(name), next),
        };
        if number == next {
            self.numbers.insert(text.clone(), number);
        }
        self.names.entry((of, number)).or_insert(text);
        number
    }

    fn number(&self, of: u8, name: &str) -> Option<u32> {
        let is_it = |number: u32| self.names.get(&(of, number)).is_some_and(|known| **known == *name);
        match self.numbers.get(name) {
            Some(&number) => Some(number).filter(|&number| is_it(number)),
            // Of a file.
            None => self.names.iter().find(|((its, _), known)| *its == of && ***known == *name).map(|((_, it), _)| *it),
        }
    }

    #[cfg(test)]
    pub fn hosts_told(&self) -> usize {
        self.names.keys().filter(|(of, _)| *of == HOST).count()
    }
}

/// Frames of logs, mostly one after another. What is damaged is told where somebody asks for the record.
struct Log(Option<Window>);

impl Log {
    /// `None`: it is damaged, or its segment was dropped.
    fn read<'a, T>(
        &'a mut self,
        shared: &Shared,
        segment: u32,
        at: Extent,
        read: impl FnOnce(&'a [u8]) -> Result<T, Unreadable>,
    ) -> Result<Option<T>, StoreError> {
        if self.0.as_ref().is_none_or(|window| window.segment.number != segment) {
            let Some(segment) = shared.segment(segment) else { return Ok(None) };
            self.0 = Some(Window::of(segment, LOG_AT_ONCE));
        }
        let Some(window) = &mut self.0 else { return Ok(None) };
        let segment = window.segment.clone();
        match window.frame(at).and_then(|bytes| payload(&segment, at, bytes, read)) {
            Err(StoreError::Damaged(_)) => Ok(None),
            read => read.map(Some),
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
    fn of(&mut self, shared: &Shared, end: &End) -> Result<Option<Row>, StoreError> {
        let is_here = self.segment.as_ref().is_some_and(|segment| segment.number == end.segment)
            && (self.from..self.from + (self.bytes.len() / ROW_BYTES) as u32).contains(&end.row);
        if !is_here {
            let Some(segment) = shared.segment(end.segment) else { return Ok(None) };
            let from = end.row / SCAN_ROWS * SCAN_ROWS;
            let to = segment.row_count().min(from + SCAN_ROWS);
            self.segment = None;
            if end.row >= to {
                return Ok(None);
            }
            match segment.rows(from, to, &mut self.bytes) {
                Err(StoreError::Damaged(_)) => return Ok(None),
                read => read?,
            }
            (self.from, self.segment) = (from, Some(segment));
        }
        let at = (end.row - self.from) as usize * ROW_BYTES;
        Ok(self.bytes.get(at..).and_then(|row| row.first_chunk()).and_then(Row::decode))
    }
}
