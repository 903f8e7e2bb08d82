//! Statistics: the ends of each segment's log are counted once, from its `ends` and the rows that they name.
//!
//! A full segment's counts are kept in its file `stats`, and those of the newest in memory, counted on from where they
//! were, every few seconds. The file has them summed up, by the hour and the day too and over all tenants, in parts of
//! which an answer reads one of each segment, with the names in it. Derived: where the file is missing or not sound it
//! is made anew. Tenants, hosts and sources are told apart by the names that the log has: rows know hashes, which two of
//! them may share.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::entry::{FinishHead, SendHead};
use super::frame::{self, Frame, FrameKind};
use super::read::{Window, payload};
use super::segment::{END_BYTES, End, SCAN_ROWS, Segment};
use super::table::{Extent, ROW_BYTES, Row};
use super::{Shared, files, locked};
use crate::limits::{STATS_HOSTS_BYTES_MAX, STATS_HOSTS_OF_SLOT};
use crate::outcome::Outcome;
use crate::send::TenantId;
use crate::store::StoreError;
use crate::store::stats::{By, Choosing, Place, SLOT_SECONDS, Stats, StatsAsked, time_of};
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
/// Slots that are summed up: five minutes, an hour, a day.
const SPANS: [i64; 3] = [1, 12, 288];
/// What a count takes in a table that has just grown, and what a name does beside its text: its places in two tables.
const COUNT_BYTES: usize = 80;
const NAME_BYTES: usize = 140;
/// Of a part: every tenant's ends.
const ALL: u32 = u32::MAX;
/// Of which an answer for one tenant reads where its parts stand.
const TENANTS_OF_PAGE: usize = 128;

/// Ends that are counted together: of a tenant, and to one host, from one source or with one outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    last_number: u32,
    hosts: Hosts,
    /// What the hosts take at most, each tenant's with their names.
    host_bytes: usize,
    /// The first and the last.
    slots: Option<(i64, i64)>,
    /// All of it is in the file, and nothing comes any more.
    sealed: bool,
}

/// Of the newest slot: those that are told apart, with their tenants, and how many each tenant had of them.
#[derive(Default)]
struct Hosts {
    slot: i64,
    told: HashSet<(u32, u32)>,
    of_tenants: HashMap<u32, usize>,
}

/// The first frame of the file, which every answer reads.
#[derive(Serialize, Deserialize)]
struct StatsForm {
    ends: u32,
    slots: Option<(i64, i64)>,
    all: Kinds,
    /// Tenants in the order of their names: the first of each page.
    pages: Vec<(String, Stretch)>,
}

/// Where a frame stands behind the first one, and how long it is.
type Stretch = (u64, u32);
/// What there is of all, or of one tenant, by what it tells apart: the names there, and a part for each of [`SPANS`].
type Kinds = BTreeMap<u8, (Stretch, Vec<Stretch>)>;
type Page = Vec<(String, Kinds)>;
type Names = Vec<(u32, String)>;
/// The first slot, what of, whether delivered, the time.
type Sum = (i64, u32, bool, u8);
type Part = Vec<(Sum, u64)>;
/// What is asked for of one segment.
type Asked = Vec<(Option<Arc<str>>, Place, u64)>;

fn of_by(by: By) -> u8 {
    match by {
        By::Outcome => OUTCOME,
        By::Host => HOST,
        By::Source => SOURCE,
        By::Tenant => TENANT,
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
        for (name, place, count) in asked_of(shared, segment, asked)? {
            choosing.add(name.as_deref(), place.delivered, count);
        }
    }
    let mut gathering = choosing.chosen();
    for segment in &within {
        for (name, place, count) in asked_of(shared, segment, asked)? {
            gathering.add(asked, name.as_deref(), place, count);
        }
    }
    Ok(gathering.done())
}

/// With all that ended in this segment's log by now: from its file, or what is in memory.
fn with<T>(
    shared: &Shared,
    segment: &Segment,
    of_file: impl FnOnce(&Kept) -> Option<T>,
    of_memory: impl FnOnce(&Counted) -> T,
) -> Result<T, StoreError> {
    let mut counted = locked(&segment.counted);
    if counted.to == 0 {
        if let Some(read) = Kept::open(segment).and_then(|kept| of_file(&kept)) {
            return Ok(read);
        }
        // It was not sound, if there was any.
        *counted = Counted::default();
    }
    count_on(shared, segment, &mut counted)?;
    Ok(of_memory(&counted))
}

fn asked_of(shared: &Shared, segment: &Segment, asked: &StatsAsked) -> Result<Asked, StoreError> {
    with(shared, segment, |kept| kept.asked(asked), |counted| counted.asked(asked))
}

/// The file of a full segment.
struct Kept {
    file: File,
    form: StatsForm,
    /// Where the first part stands.
    parts_at: u64,
}

impl Kept {
    /// `None`: there is none, or it is not sound.
    fn open(segment: &Segment) -> Option<Self> {
        let file = File::open(segment.directory.join("stats")).ok()?;
        let bytes = file.metadata().ok()?.len();
        let length = frame::length_at(&file, 0).ok()?.filter(|&length| length as u64 <= bytes.min(FILE_BYTES_MAX))?;
        let head = frame::read_at(&file, 0, length).ok()?;
        let Frame { kind: FrameKind::Stats, payload, .. } = frame::parse(&head)? else { return None };
        let form: StatsForm = wire::decode(payload).ok()?;
        let is_of_it = form.ends == segment.ends_count.load(Ordering::Acquire);
        is_of_it.then_some(Self { file, form, parts_at: length as u64 })
    }

    fn read<T: DeserializeOwned>(&self, (at, length): Stretch) -> Option<T> {
        if u64::from(length) > FILE_BYTES_MAX {
            return None;
        }
        let bytes = frame::read_at(&self.file, self.parts_at.checked_add(at)?, length as usize).ok()?;
        let Frame { kind: FrameKind::Stats, payload, .. } = frame::parse(&bytes)? else { return None };
        wire::decode(payload).ok()
    }

    /// What there is of all, or of this tenant: where nothing of it ended, nothing.
    fn kinds(&self, one: Option<&str>) -> Option<Kinds> {
        let Some(one) = one else { return Some(self.form.all.clone()) };
        let behind = self.form.pages.partition_point(|(first, _)| first.as_str() <= one);
        let Some((_, page)) = behind.checked_sub(1).and_then(|at| self.form.pages.get(at)) else {
            return Some(Kinds::new());
        };
        let page: Page = self.read(*page)?;
        Some(page.into_iter().find(|(name, _)| name == one).map(|(_, kinds)| kinds).unwrap_or_default())
    }

    fn asked(&self, asked: &StatsAsked) -> Option<Asked> {
        let kinds = self.kinds(asked.reach.one().map(TenantId::as_str))?;
        let Some((names, parts)) = kinds.get(&of_by(asked.by)) else { return Some(Asked::new()) };
        let names: HashMap<u32, Arc<str>> =
            self.read::<Names>(*names)?.into_iter().map(|(number, name)| (number, Arc::from(name))).collect();
        let span = SPANS.iter().rposition(|span| asked.bucket % span == 0).unwrap_or(0);
        let part = self.read::<Part>(*parts.get(span)?)?.into_iter();
        let part = part.filter(|((slot, ..), _)| asked.takes_in(*slot));
        Some(
            part.map(|((slot, value, delivered, time), count)| {
                (names.get(&value).cloned(), Place { slot, delivered, time }, count)
            })
            .collect(),
        )
    }
}

/// Those of which any send ended in this segment's log.
pub fn tenants(shared: &Shared, segment: &Segment) -> Result<Vec<TenantId>, StoreError> {
    let of_file = |kept: &Kept| {
        let names = match kept.form.all.get(&TENANT) {
            Some((names, _)) => kept.read::<Names>(*names)?,
            None => Names::new(),
        };
        Some(names.into_iter().map(|(_, name)| TenantId::new(name)).collect())
    };
    let of_memory = |counted: &Counted| {
        let tenants = counted.names.iter().filter(|((of, _), _)| *of == TENANT);
        tenants.map(|(_, name)| TenantId::new(&**name)).collect()
    };
    with(shared, segment, of_file, of_memory)
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
        && let Some(kept) = Kept::open(segment)
    {
        *counted = Counted { sealed: true, slots: kept.form.slots, ..Counted::default() };
        return Ok(());
    }
    count_on(shared, segment, &mut counted).map_err(io::Error::other)?;
    write(segment, &counted)?;
    *counted = Counted { sealed: true, slots: counted.slots, ..Counted::default() };
    Ok(())
}

/// Not synced: what a loss of power takes is counted anew.
fn write(segment: &Segment, counted: &Counted) -> io::Result<()> {
    let mut behind = Vec::new();
    let mut kinds: HashMap<u32, Kinds> = HashMap::new();
    counted.each_part(|of, tenant, parts| {
        let numbers: BTreeSet<u32> = parts[0].iter().map(|((_, number, ..), _)| *number).collect();
        let name = |number| counted.names.get(&(of, number)).map(|name| (number, name.to_string()));
        let names: Names = numbers.into_iter().filter_map(name).collect();
        let names = put(&mut behind, &names);
        let parts = parts.iter().map(|part| put(&mut behind, part)).collect();
        kinds.entry(tenant).or_default().insert(of, (names, parts));
    });
    let all = kinds.remove(&ALL).unwrap_or_default();
    let tenants = counted.names.iter().filter(|((of, _), _)| *of == TENANT);
    let mut tenants: Page =
        tenants.filter_map(|((_, number), name)| Some((name.to_string(), kinds.remove(number)?))).collect();
    tenants.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    let mut pages = Vec::new();
    while !tenants.is_empty() {
        let rest = tenants.split_off(tenants.len().min(TENANTS_OF_PAGE));
        pages.push((tenants[0].0.clone(), put(&mut behind, &tenants)));
        tenants = rest;
    }
    let form = StatsForm { ends: counted.to, slots: counted.slots, all, pages };
    let mut bytes = Vec::new();
    frame::append(&mut bytes, FrameKind::Stats, &[&wire::encode(&form, Vec::new())], None);
    let making = segment.directory.join("stats.new");
    let file = files::make(&making)?;
    file.write_all_at(&behind, bytes.len() as u64)?;
    file.write_all_at(&bytes, 0)?;
    std::fs::rename(&making, segment.directory.join("stats"))
}

fn put(behind: &mut Vec<u8>, form: &impl Serialize) -> Stretch {
    let at = behind.len() as u64;
    (at, frame::append(behind, FrameKind::Stats, &[&wire::encode(form, Vec::new())], None) as u32)
}

/// What is counted as one is asked for by its outcome, and by its tenant.
fn keys_of(key: Key) -> impl Iterator<Item = Key> {
    let by_tenant = (key.of == OUTCOME).then_some(Key { of: TENANT, value: key.tenant, ..key });
    [key].into_iter().chain(by_tenant)
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
    total: Option<Duration>,
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
        let Some(row) = told.row.as_ref().filter(|row| row.is_begun()) else { continue };
        if let Some((_, form)) = log.read(shared, row.finish_segment, row.finish, FinishHead::decode)? {
            told.source = form.sources().1.map(|public| public.to_string());
            told.total = form.total();
        }
    }
    Ok(told)
}

impl Counted {
    fn add(&mut self, end: &End, told: Told) {
        let slot = end.finished_at.div_euclid(SLOT_SECONDS * 1_000 * NANOSECONDS_PER_MS);
        self.slots = Some(self.slots.map_or((slot, slot), |(first, last)| (first.min(slot), last.max(slot))));
        let delivered = end.outcome == wire::outcome_number(Outcome::Delivered);
        let time = time_of(told.total);
        let tenant = told.tenant.map_or(0, |name| self.name(TENANT, &name));
        let source = told.source.map_or(0, |name| self.name(SOURCE, &name));
        if let Ok(outcome) = wire::outcome_of(end.outcome) {
            self.names.entry((OUTCOME, end.outcome.into())).or_insert_with(|| Arc::from(outcome.label()));
        }
        let host = told.host.map_or(0, |name| self.host(slot, tenant, &name));
        for (of, value) in [(OUTCOME, u32::from(end.outcome)), (HOST, host), (SOURCE, source)] {
            let count = self.counts.entry(Key { of, slot, tenant, value, delivered, time }).or_default();
            if *count == 0 && of == HOST && value != 0 {
                self.host_bytes += COUNT_BYTES;
            }
            *count += 1;
        }
        if self.host_bytes > STATS_HOSTS_BYTES_MAX {
            self.make_room();
        }
    }

    /// The number of a tenant's host, if its tenant may have one more.
    fn host(&mut self, slot: i64, tenant: u32, name: &str) -> u32 {
        if self.hosts.slot != slot {
            self.hosts = Hosts { slot, ..Hosts::default() };
        }
        if let Some(&number) = self.numbers.get(name)
            && self.hosts.told.contains(&(tenant, number))
        {
            return number;
        }
        let had = self.hosts.of_tenants.entry(tenant).or_default();
        if *had >= STATS_HOSTS_OF_SLOT {
            return 0;
        }
        *had += 1;
        let number = self.name(HOST, name);
        self.hosts.told.insert((tenant, number));
        self.host_bytes += NAME_BYTES + name.len();
        number
    }

    /// Tenants whose hosts take more than their share of three quarters of the room give back those with fewest sends, so
    /// that none's made-up hosts take the name of another's. What went there is nobody's from then on.
    fn make_room(&mut self) {
        // A host's sends, and what it takes, by tenant.
        let mut tenants: BTreeMap<u32, HashMap<u32, (u64, usize)>> = BTreeMap::new();
        for (key, &count) in self.counts.iter().filter(|(key, _)| key.of == HOST && key.value != 0) {
            let text = self.names.get(&(HOST, key.value)).map_or(0, |name| name.len());
            let host = tenants.entry(key.tenant).or_default().entry(key.value).or_insert((0, NAME_BYTES + text));
            *host = (host.0 + count, host.1 + COUNT_BYTES);
        }
        let taken = |hosts: &HashMap<u32, (u64, usize)>| hosts.values().map(|(_, bytes)| bytes).sum::<usize>();
        let share = share_of(tenants.values().map(taken).collect(), STATS_HOSTS_BYTES_MAX / 4 * 3);
        let mut gone: HashSet<(u32, u32)> = HashSet::new();
        self.host_bytes = 0;
        for (tenant, hosts) in tenants {
            let mut bytes = taken(&hosts);
            let mut hosts: Vec<(u64, u32, usize)> = match bytes > share {
                true => hosts.into_iter().map(|(host, (count, bytes))| (count, host, bytes)).collect(),
                false => Vec::new(),
            };
            hosts.sort_unstable_by_key(|&(count, host, _)| (count, std::cmp::Reverse(host)));
            for (_, host, its) in hosts {
                if bytes <= share {
                    break;
                }
                bytes -= its;
                gone.insert((tenant, host));
            }
            self.host_bytes += bytes;
        }
        let of_gone = |key: &Key| key.of == HOST && gone.contains(&(key.tenant, key.value));
        let moved: Vec<(Key, u64)> = self.counts.extract_if(|key, _| of_gone(key)).collect();
        for (key, count) in moved {
            *self.counts.entry(Key { value: 0, ..key }).or_default() += count;
        }
        self.hosts.told.retain(|host| !gone.contains(host));
        let named: HashSet<u32> = self.counts.keys().filter(|key| key.of == HOST).map(|key| key.value).collect();
        self.names.retain(|(of, number), _| *of != HOST || named.contains(number));
        let names = &self.names;
        self.numbers.retain(|_, number| [HOST, SOURCE, TENANT].iter().any(|of| names.contains_key(&(*of, *number))));
    }

    /// The number of a name, which is given one.
    fn name(&mut self, of: u8, name: &str) -> u32 {
        let next = self.last_number + 1;
        let (text, number) = match self.numbers.get_key_value(name) {
            Some((text, &number)) => (text.clone(), number),
            None => (Arc::from(name), next),
        };
        if number == next {
            self.last_number = next;
            self.numbers.insert(text.clone(), number);
        }
        self.names.entry((of, number)).or_insert(text);
        number
    }

    /// Of a segment that is not full yet.
    fn asked(&self, asked: &StatsAsked) -> Asked {
        let tenant = match asked.reach.one().map(|one| self.numbers.get(one.as_str())) {
            Some(None) => return Asked::new(),
            Some(Some(&number)) => Some(number),
            None => None,
        };
        let of = of_by(asked.by);
        let counts = self.counts.iter().flat_map(|(key, &count)| keys_of(*key).map(move |key| (key, count)));
        let counts = counts.filter(|(key, _)| {
            key.of == of && asked.takes_in(key.slot) && tenant.is_none_or(|tenant| tenant == key.tenant)
        });
        counts
            .map(|(key, count)| {
                let place = Place { slot: key.slot, delivered: key.delivered, time: key.time };
                (self.names.get(&(of, key.value)).cloned(), place, count)
            })
            .collect()
    }

    /// All that can be asked for, one of a kind and tenant after another: the sums of one are small, those of all are not.
    /// With a part for each of [`SPANS`].
    fn each_part(&self, mut parts: impl FnMut(u8, u32, [Part; SPANS.len()])) {
        let mut all: Vec<((u8, u32), Sum, u64)> = Vec::with_capacity(self.counts.len() * 3);
        for (key, &count) in &self.counts {
            for Key { of, slot, tenant, value, delivered, time } in keys_of(*key) {
                all.extend([tenant, ALL].map(|tenant| ((of, tenant), (slot, value, delivered, time), count)));
            }
        }
        all.sort_unstable();
        for one in all.chunk_by(|(one, ..), (next, ..)| one == next) {
            let (of, tenant) = one[0].0;
            let summed_up = SPANS.map(|span| {
                let mut sums: BTreeMap<Sum, u64> = BTreeMap::new();
                for &(_, (slot, value, delivered, time), count) in one {
                    *sums.entry((slot.div_euclid(span) * span, value, delivered, time)).or_default() += count;
                }
                sums.into_iter().collect()
            });
            parts(of, tenant, summed_up);
        }
    }

    #[cfg(test)]
    pub fn hosts_told(&self) -> usize {
        self.names.keys().filter(|(of, _)| *of == HOST).count()
    }
}

/// The most that each may have, so that all of it is within the room.
fn share_of(mut taken: Vec<usize>, mut room: usize) -> usize {
    taken.sort_unstable();
    for (before, &one) in taken.iter().enumerate() {
        let share = room / (taken.len() - before);
        if one > share {
            return share;
        }
        room -= one;
    }
    usize::MAX
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Reach;

    /// What ends are counted from.
    fn end(counted: &mut Counted, slot: i64, tenant: &str, host: &str) {
        let finished_at = slot * SLOT_SECONDS * 1_000 * NANOSECONDS_PER_MS;
        let end = End { finished_at, segment: 1, row: 0, tenant: 0, outcome: 0 };
        let told = Told {
            tenant: Some(tenant.to_owned()),
            host: Some(host.to_owned()),
            total: Some(Duration::ZERO),
            ..Told::default()
        };
        counted.add(&end, told);
    }

    fn hosts_of(counted: &Counted, tenant: &str) -> BTreeMap<Option<Arc<str>>, u64> {
        let reach = Reach::One(TenantId::new(tenant));
        let asked = StatsAsked { reach, since: 0, until: 1_000, bucket: 1, by: By::Host };
        let mut hosts = BTreeMap::new();
        counted.asked(&asked).into_iter().for_each(|(name, _, count)| *hosts.entry(name).or_default() += count);
        hosts
    }

    /// Whatever of the two is first in five minutes, and whether room is made for the others or not.
    #[test]
    fn no_tenants_made_up_hosts_take_the_name_of_anothers() {
        let mut counted = Counted::default();
        let slots = 40;
        for slot in 0..slots {
            for host in 0..STATS_HOSTS_OF_SLOT + 50 {
                end(&mut counted, slot, "noisy", &format!("h{host}.of-{slot}.{}.example", "long".repeat(host % 40)));
                assert!(counted.host_bytes <= STATS_HOSTS_BYTES_MAX, "slot {slot}");
            }
            (0..5).for_each(|_| end(&mut counted, slot, "noisy", "real.example"));
            end(&mut counted, slot, "quiet", "one.example");
            end(&mut counted, slot, &format!("late-{slot}"), "two.example");
        }
        let slots = slots as u64;
        let name = |name: &str| Some(Arc::from(name));
        assert_eq!(hosts_of(&counted, "quiet"), BTreeMap::from([(name("one.example"), slots)]));
        for slot in 0..slots {
            assert_eq!(hosts_of(&counted, &format!("late-{slot}")), BTreeMap::from([(name("two.example"), 1)]));
        }
        let noisy = hosts_of(&counted, "noisy");
        assert_eq!(noisy.values().sum::<u64>(), slots * (STATS_HOSTS_OF_SLOT as u64 + 55), "all are counted");
        assert!(noisy.len() > 500 && noisy.len() < 4_000, "{} hosts", noisy.len());

        // What names and counts take is what was reckoned, at most.
        let texts: usize = counted.names.iter().filter(|((of, _), _)| *of == HOST).map(|(_, name)| name.len()).sum();
        let counts = counted.counts.keys().filter(|key| key.of == HOST && key.value != 0).count();
        assert!(texts + counted.hosts_told() * NAME_BYTES + counts * COUNT_BYTES <= counted.host_bytes);
        assert!(counted.numbers.len() <= counted.names.len());
    }

    #[test]
    fn those_who_have_little_keep_it() {
        for (taken, room, share) in [
            (vec![], 10, usize::MAX),
            (vec![4, 6], 10, usize::MAX),
            (vec![11], 10, 10),
            (vec![100, 1, 2], 10, 7),
            (vec![5, 100, 100], 10, 3),
            (vec![1, 100, 100], 11, 5),
        ] {
            assert_eq!(share_of(taken.clone(), room), share, "{taken:?}");
            assert!(taken.iter().map(|&one| one.min(share)).sum::<usize>() <= room, "{taken:?}");
        }
    }
}
