//! Opening: what the logs say is done again, from the first segment that is not checkpointed.
//!
//! A checkpointed segment is taken as its index says, because all that its log changed was synced before; where only
//! its index is lost, that is made anew ([`rebuild`]). Every log behind the checkpointed ones is read whole: its own
//! tables are made anew, and what it changed in earlier ones is changed again, which is the same. A torn tail of the
//! newest log is cut off: nothing of it was answered for. Whatever else is not whole is damage, told with its file and
//! extent.

use std::{fs, io, sync::Arc, sync::atomic::Ordering};

use super::doubt::{Doubts, RowAt};
use super::entry::{self, BeginHead, FinishFacts, FinishHead, SendHead};
use super::frame::{FrameKind, Scanned, Scanner};
use super::hashes::TenantHash;
use super::opening::Opening;
use super::segment::{self, End, FIRST_SEGMENT, FORMAT, Head, SEND_BYTES, Segment};
use super::table::{Extent, LOST, MOVED, Row};
use super::{Shared, cannot_write, locked, rebuild, span};
use crate::clock;
use crate::store::view::EndedExecution;
use crate::store::wire::{self, CallForm, EndingForm, Unreadable};
use crate::store::{StoreError, Why};

/// One log that is replayed, with the rows of its segment in memory.
struct Replayed {
    segment: Segment,
    rows: Vec<Row>,
    /// Sound rows that the table had before it was written anew.
    rows_before: u32,
    /// Those of them that were begun or ended: number and id.
    begun_before: Vec<(u32, u128)>,
    /// The newest end that was known here before.
    newest_end: u64,
}

/// Opens every segment, makes one where there is none, and takes up what waits. Answers where the sends stand that wait
/// for nothing but an end.
pub fn load(shared: &Shared) -> Result<Vec<(u32, u32)>, StoreError> {
    let directory = shared.segments_directory();
    let failed = |error: io::Error| StoreError::CannotRead(Why::by(format!("{}: {error}", directory.display()), error));
    let (heads, lost) = heads(shared).map_err(failed)?;
    if let Some((path, head)) = heads.iter().find(|(_, head)| head.format > FORMAT) {
        let path = path.display().to_string();
        return Err(StoreError::TooNew { path, found: head.format, known: FORMAT });
    }
    let mut checkpointed = Vec::new();
    let mut replayed: Vec<Replayed> = Vec::new();
    for (at, (path, head)) in heads.iter().enumerate() {
        let mut segment = Segment::open(path.clone(), head).map_err(failed)?;
        if replayed.is_empty() && at + 1 < heads.len() && segment.load_index().map_err(failed)? {
            if segment.waiting_rows_are_sound()? {
                checkpointed.push(segment);
                continue;
            }
            // The log has what the table lost; without an index it is read.
            tracing::warn!(table = segment.file("table"), "rows fail their checksums: the table is made anew");
            segment.distrust();
            segment = Segment::open(path.clone(), head).map_err(failed)?;
        } else if replayed.is_empty() && rebuild::is_any_checkpointed(&heads[at + 1..]).map_err(failed)? {
            let next = heads.get(at + 1).map(|(_, next)| next).filter(|next| next.segment == head.segment + 1);
            if let Some(next) = next
                && rebuild::rebuild(shared, &checkpointed, &segment, next.previous_log_bytes).map_err(failed)?
            {
                checkpointed.push(segment);
                continue;
            }
        }
        if at + 1 == heads.len() {
            // Retention leaves the newest's alone, so where they are missing they are lost.
            segment.make_bodies().map_err(|error| cannot_write(path, error))?;
        }
        // Until its tables are whole again, no index may say so.
        segment.forget_index().map_err(|error| cannot_write(path, error))?;
        let before = segment.sound_rows().and_then(|sound| Ok((sound, segment.newest_end()?)));
        let before = before.and_then(|before| segment.empty_ends().map(|()| before));
        let ((rows_before, begun_before), newest_end) = before.map_err(|error| cannot_write(path, error))?;
        replayed.push(Replayed { segment, rows: Vec::new(), rows_before, begun_before, newest_end });
    }
    let mut doubts = Doubts::default();
    for number in lost {
        doubts.about_all_before((number, 0));
    }
    let first_replayed = checkpointed.len();
    let mut newest_seq = heads.last().map_or(0, |(_, head)| head.first_seq.saturating_sub(1));
    for at in 0..replayed.len() {
        let next = heads.get(first_replayed + at + 1).map(|(_, head)| head);
        let next = next.filter(|next| next.segment == replayed[at].segment.number + 1);
        let counts = next.map(|next| next.previous_log_bytes);
        let seq = replay(shared, &checkpointed, &mut replayed, at, counts, &mut doubts).map_err(failed)?;
        newest_seq = newest_seq.max(seq);
        let this = &replayed[at];
        if this.newest_end > seq.max(this.segment.first_seq.saturating_sub(1)) {
            // Whatever else stood behind it is lost too: starts of sends of earlier segments, whose own tables may be
            // lost.
            doubts.about_all_before((this.segment.number, this.rows.len() as u32));
            shared.tell_damage(format!(
                "{} lacks the end of send number {} of the tail, which was known before: what stood there is lost",
                this.segment.file("log"),
                this.newest_end
            ));
        }
    }
    shared.last_seq.store(newest_seq, Ordering::Release);

    let mut segments: Vec<_> = checkpointed.into_iter().map(Arc::new).collect();
    let mut read_again: Vec<(Arc<Segment>, Vec<Row>)> = Vec::new();
    for Replayed { segment, rows, rows_before, begun_before, .. } in replayed {
        // The table said that these had begun, and no log that is left does: the frame is lost, and whether the request
        // left nobody knows. A table is no proof of a start, but enough not to make one twice.
        for (number, id) in begun_before {
            let waits = |row: &&Row| row.id == id && !row.is_begun() && !row.is_done();
            if rows.get(number as usize).filter(waits).is_some() {
                doubts.about(id);
            }
        }
        let encoded: Vec<u8> = rows.iter().flat_map(Row::encode).collect();
        segment.replace_rows(&encoded).map_err(|error| cannot_write(&segment.directory, error))?;
        segment.add_rows(0, &rows);
        let mut undone = 0;
        for (row, number) in rows.iter().zip(0..) {
            if row.is_done() {
                segment.add_end(number, row);
            } else {
                undone += 1;
            }
        }
        segment.undone.store(undone, Ordering::Release);
        segment.rows.store(rows.len() as u32, Ordering::Release);
        if rows_before > rows.len() as u32 {
            // Its end is lost, and with it whatever else that said.
            doubts.about_all_before((segment.number, rows.len() as u32));
            shared.tell_damage(format!(
                "{} ends at byte {}, before the last {} sends that were accepted: they are lost",
                segment.file("log"),
                segment.log_bytes.load(Ordering::Relaxed),
                rows_before - rows.len() as u32
            ));
        }
        read_again.push((Arc::new(segment), rows));
    }
    let checkpointed = segments.len();
    segments.extend(read_again.iter().map(|(segment, _)| segment.clone()));
    if segments.is_empty() {
        let head = Head {
            format: FORMAT,
            segment: FIRST_SEGMENT,
            first_seq: 1,
            opened_at: wire::nanoseconds(clock::wall()),
            previous_log_bytes: 0,
        };
        let segment =
            Segment::create(&directory, &head, &shared.faults).map_err(|error| cannot_write(&directory, error))?;
        segments.push(Arc::new(segment));
    }
    shared.replace_segments(segments.clone());
    if let [first, ..] = &segments[..]
        && let Some(last) = segments.last()
    {
        span::note(shared, first.number..=last.number);
    }
    shared.segments().learn();
    let mut opening = Opening::of(shared, &doubts);
    for segment in segments[..checkpointed].iter().filter(|segment| segment.undone_count() > 0) {
        opening.look_through(segment)?;
    }
    for (segment, rows) in &read_again {
        for (row, number) in rows.iter().zip(0..).filter(|(row, _)| !row.is_done()) {
            opening.add(segment, number, row)?;
        }
    }
    let left = opening.done()?;
    let doubted = locked(&shared.doubted).len();
    if doubted > 0 {
        shared.tell_damage(format!(
            "{}: {doubted} sends that wait may have been made by what is lost: they end interrupted, and are not made",
            directory.display(),
        ));
    }
    Ok(left)
}

type Heads = Vec<(std::path::PathBuf, Head)>;

/// The segments' directories with their heads, oldest first, and the numbers of those that are lost. What was half made
/// or half dropped goes.
fn heads(shared: &Shared) -> io::Result<(Heads, Vec<u32>)> {
    let (mut heads, mut lost) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(shared.segments_directory())? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.ends_with(".new") || name.ends_with(".gone") {
            fs::remove_dir_all(&path)?;
        } else if let Ok(number) = name.parse::<u32>() {
            let why = match Segment::head(&path) {
                Ok(Some(head)) if head.segment == number => {
                    heads.push((path, head));
                    continue;
                }
                Ok(_) => "does not begin as a log does",
                Err(error) if error.kind() == io::ErrorKind::NotFound => "is missing",
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => "is in no directory",
                Err(error) => return Err(error),
            };
            set_aside(shared, &path, why)?;
            lost.push(number);
        }
    }
    heads.sort_by_key(|(_, head)| head.segment);
    // Segments are dropped from the oldest on, so one between others is lost, and so is one that was noted.
    let there: Vec<u32> = heads.iter().map(|(_, head)| head.segment).collect();
    let between = there.first().zip(there.last()).into_iter().flat_map(|(first, last)| *first..=*last);
    let noted = span::noted(&shared.root).into_iter().flatten();
    let mut missing: Vec<u32> =
        between.chain(noted).filter(|number| !there.contains(number) && !lost.contains(number)).collect();
    missing.sort_unstable();
    missing.dedup();
    for number in &missing {
        let path = segment::directory_of(&shared.segments_directory(), *number);
        shared.tell_damage(format!("{} is missing: all that stood in this segment is lost", path.display()));
    }
    lost.extend(missing);
    Ok((heads, lost))
}

/// Renames a segment without a readable log, so that its number is free and what is left of it can be looked at.
fn set_aside(shared: &Shared, path: &std::path::Path, why: &str) -> io::Result<()> {
    let aside = (1..).map(|n| path.with_extension(format!("lost-{n}"))).find(|aside| !aside.exists());
    let aside = aside.unwrap_or_else(|| path.with_extension("lost"));
    fs::rename(path, &aside)?;
    let (log, aside) = (path.join("log"), aside.display());
    shared.tell_damage(format!(
        "{} {why}: all that stood in this segment is lost; what is left is kept as {aside}",
        log.display()
    ));
    Ok(())
}

/// Does again what one log says. `counts`: its length, where the head of the next segment says so. Answers the newest
/// seq of the tail in it.
fn replay(
    shared: &Shared,
    checkpointed: &[Segment],
    replayed: &mut [Replayed],
    at: usize,
    counts: Option<u64>,
    doubts: &mut Doubts,
) -> io::Result<u64> {
    let (before, rest) = replayed.split_at_mut(at);
    let [this, ..] = rest else { return Ok(0) };
    let log = this.segment.log.try_clone()?;
    let log_name = this.segment.file("log");
    let mut scanner = Scanner::new(&log, 0, counts.unwrap_or(u64::MAX))?;
    let first_seq = this.segment.first_seq;
    let mut newest_seq = first_seq.saturating_sub(1);
    // Sends of a call whose last has not come yet: where the call began, and its first row.
    let mut open_call: Option<(u64, usize)> = None;
    let mut open_key = None;
    // The last call with a key: its hash, and its first row. Its second place comes next.
    let mut last_key: Option<(u64, u32)> = None;
    let add_key = |segment: &Segment, last_key: &mut Option<(u64, u32)>, key: Option<(u64, u32, u32)>| {
        if let Some((hash, first, count)) = key {
            segment.change_growing(|growing| growing.add_key(hash, first, count));
            *last_key = Some((hash, first));
        }
    };
    let mut bodies_end = 0;
    let examine = |doubts: &mut Doubts, extent, newest, before: &[Replayed], this: &Replayed| {
        let id_at = |(segment, row): RowAt| {
            let mut all = before.iter().chain(std::iter::once(this));
            match all.find(|replayed| replayed.segment.number == segment) {
                Some(replayed) => replayed.rows.get(row as usize).map(|row| row.id),
                None => checkpointed.iter().find(|one| one.number == segment)?.row(row).ok().map(|row| row.id),
            }
        };
        doubts.examine(&this.segment.log, extent, (this.segment.number, this.rows.len() as u32), newest, id_at)
    };
    let lost = |from: u64, to: u64, why: &str| {
        shared
            .tell_damage(format!("{log_name} is unreadable at bytes {from} to {to}: {why}; what stood there is lost"));
    };
    let end = loop {
        let (at, frame) = match scanner.next()? {
            Scanned::Frame { at, frame } => (at, frame),
            Scanned::Damage { from, to } => {
                lost(from, to, "it fails its checksum");
                newest_seq = examine(doubts, (from, to), newest_seq, before, this)?;
                // What is left of a call was accepted with it: the damage is within what was answered for, so it is not a
                // call that was cut off, and its other sends must not be forgotten with the one that is lost.
                open_call = None;
                add_key(&this.segment, &mut last_key, open_key.take());
                continue;
            }
            Scanned::End { at } => break at,
        };
        let extent = Extent { at: at as u32, length: frame.length as u32 };
        let read = match frame.kind {
            FrameKind::Send => SendHead::decode(frame.payload).and_then(|(head, form)| {
                if u64::from(head.row) > entry::row_at_most(at) {
                    return Err(Unreadable("it names a row that this log cannot have"));
                }
                let number = head.row as usize;
                // Numbers of rows are positions in the table, and later frames name them: what is lost keeps its place.
                while this.rows.len() < number {
                    this.rows.push(Row { flags: LOST, ..Row::default() });
                }
                // A number that comes again: what had it was of a batch that was cut off, and answered for by nobody.
                this.rows.truncate(number);
                let row = entry::accepted_row(&shared.keys, &head, &form, extent);
                if let Some(((segment, row), moved_at)) = form.moved_from() {
                    this.segment.change_zones(|known| known.keep_from(moved_at));
                    change(checkpointed, before, this, (segment, row, head.id), |_, row| row.flags |= MOVED);
                }
                let bodies = u64::from(head.body.length) + u64::from(head.rest.length);
                let tenant = shared.keys.tenant(form.tenant);
                this.segment.add_share(tenant, frame.length as u64 + SEND_BYTES, bodies);
                if let Some(key) = &form.key {
                    open_key = Some((shared.keys.call(form.tenant, key.path, key.key), head.row, key.count));
                }
                if head.remaining == 0 {
                    add_key(&this.segment, &mut last_key, open_key.take());
                }
                this.rows.push(row);
                open_call = match (head.remaining, open_call) {
                    (0, _) => None,
                    (_, None) => Some((at, number)),
                    (_, open) => open,
                };
                for body in [head.body, head.rest] {
                    bodies_end = bodies_end.max(body.at + u64::from(body.length));
                }
                Ok(())
            }),
            FrameKind::Ending => wire::decode::<EndingForm<'_>>(frame.payload).and_then(|form| {
                let ended: EndedExecution = form.ended()?;
                let hash = shared.keys.execution(form.tenant, form.execution);
                this.segment.add_share(shared.keys.tenant(form.tenant), frame.length as u64, 0);
                this.segment.change_growing(|growing| growing.add_ending(hash, extent, ended));
                Ok(())
            }),
            FrameKind::Begin => BeginHead::decode(frame.payload).map(|head| {
                let begin = |_: &Segment, row: &mut Row| row.started_at = head.at;
                change(checkpointed, before, this, (head.segment, head.row, head.id), begin)
            }),
            FrameKind::Finish => FinishHead::decode(frame.payload).map(|(head, form)| {
                let facts = FinishFacts::of(&shared.keys, &form);
                let number = this.segment.number;
                let mut done = None;
                change(checkpointed, before, this, (head.segment, head.row, head.id), |segment, row| {
                    facts.apply(row, number, extent);
                    done = Some(shared.tenant_of(segment, row));
                });
                // One that this log cannot have is of a log that was read wrong, once or now: it comes next.
                let is_possible = head.seq <= entry::seq_at_most(first_seq, at);
                let seq = if is_possible { head.seq } else { newest_seq + 1 };
                newest_seq = newest_seq.max(seq);
                bodies_end = bodies_end.max(head.body.at + u64::from(head.body.length));
                if let Some(tenant) = done {
                    this.segment.add_share(tenant, frame.length as u64, u64::from(head.body.length));
                }
                let end = End {
                    finished_at: facts.finished_at,
                    segment: head.segment,
                    row: head.row,
                    tenant: done.map_or(0, TenantHash::short),
                    outcome: form.outcome(),
                };
                let written = this.segment.write_ends(seq, &end.encode());
                this.segment
                    .change_zones(|known| known.newest_finished_at = known.newest_finished_at.max(end.finished_at));
                if let Err(error) = written {
                    shared.tell_damage(format!("{}: {error}: the tail lacks an entry", this.segment.file("ends")));
                }
            }),
            FrameKind::Call => wire::decode::<CallForm<'_>>(frame.payload).map(|form| {
                let hash = shared.keys.call(form.tenant, form.key.path, form.key.key);
                let first = last_key.filter(|(last, _)| *last == hash).and_then(|(_, row)| this.rows.get(row as usize));
                if first.is_some_and(|first| form.is_of(first.id)) {
                    this.segment.add_share(shared.keys.tenant(form.tenant), frame.length as u64, 0);
                } else {
                    // Its records are gone, or its first send's frame is lost.
                    this.segment.change_growing(|growing| growing.add_key(hash, extent.at, 0));
                }
            }),
            FrameKind::Head
            | FrameKind::Body
            | FrameKind::Index
            | FrameKind::Pairs
            | FrameKind::State
            | FrameKind::Shares
            | FrameKind::Stats
            | FrameKind::Span
            | FrameKind::Batch
            | FrameKind::TunnelOpen
            | FrameKind::TunnelEnd
            | FrameKind::Tunnels => Ok(()),
        };
        if let Err(why) = read {
            lost(at, at + frame.length as u64, why.0);
        }
    };
    let mut end = end;
    if let Some((call_at, first)) = open_call {
        // The call was cut off, so it was never answered.
        this.rows.truncate(first);
        end = call_at;
    }
    let length = this.segment.log.metadata()?.len();
    match counts {
        Some(counts) if end < counts => {
            lost(end, counts, "it ends too early, or fails its checksum");
            newest_seq = examine(doubts, (end, counts), newest_seq, before, this)?;
        }
        Some(_) => {}
        // Only the newest log may end in the middle: nothing was written behind it, so what is not whole was not synced,
        // and nobody was told of it. Left there, it would be damage once something follows.
        None if end < length => {
            tracing::warn!(log = log_name, from = end, to = length, "cutting off what was not written whole");
            this.segment.log.set_len(end)?;
            this.segment.log.sync_all()?;
        }
        None => {}
    }
    this.segment.log_bytes.store(counts.unwrap_or(end).min(length.max(end)), Ordering::Release);
    let bodies = this.segment.bodies_bytes.load(Ordering::Relaxed);
    if this.segment.has_bodies() && bodies < bodies_end {
        shared.tell_damage(format!(
            "{} ends at byte {bodies}, and was written up to {bodies_end}: the bodies that stood there are lost",
            this.segment.file("bodies")
        ));
        this.segment.bodies_bytes.store(bodies_end, Ordering::Release);
    }
    Ok(newest_seq)
}

/// Changes a row of this or of an earlier segment. A row that is not there was lost, and told of, before.
fn change(
    checkpointed: &[Segment],
    before: &mut [Replayed],
    this: &mut Replayed,
    (segment, row, id): (u32, u32, u128),
    change: impl FnOnce(&Segment, &mut Row),
) {
    let replayed = before.iter_mut().chain(std::iter::once(this)).find(|replayed| replayed.segment.number == segment);
    if let Some(replayed) = replayed {
        if let Some(found) = replayed.rows.get_mut(row as usize).filter(|found| found.id == id) {
            change(&replayed.segment, found);
            wipe_if_done(&replayed.segment, found);
        }
        return;
    }
    let Ok(at) = checkpointed.binary_search_by_key(&segment, |segment| segment.number) else { return };
    let segment = &checkpointed[at];
    match segment.row(row) {
        Ok(mut found) if found.id == id => {
            change(segment, &mut found);
            wipe_if_done(segment, &found);
            if let Err(error) = segment.write_rows(row, &found.encode()) {
                tracing::error!(%error, "a row could not be changed; the next start changes it");
            }
        }
        Ok(_) => {}
        Err(error) => tracing::error!(%error, "a row could not be changed"),
    }
}

/// The wrapped key's place was overwritten when the send was done; perhaps that did not reach the disk.
fn wipe_if_done(segment: &Segment, row: &Row) {
    if row.is_done()
        && row.is_sealed()
        && let Err(error) = segment.wipe(row.accepted)
    {
        tracing::error!(%error, "a sealed send's key could not be overwritten; the next start does it");
    }
}
