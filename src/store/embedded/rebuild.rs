//! The index of a segment made anew from the segment alone, where it is lost and that of a later one is not.
//!
//! Segments are checkpointed oldest first, and each once all that was changed is on disk: with a later segment
//! checkpointed, this one's table and ends are whole, whatever happened to its index. What they lack, keys and endings,
//! is read from its log. Were this not so, every log from here on would have to be replayed. Whatever does not fit is
//! left to that.

use std::io;
use std::sync::atomic::Ordering;

use super::Shared;
use super::entry::{FinishHead, SendHead, seq_at_most};
use super::frame::{FrameKind, Scanned, Scanner};
use super::hashes::{ExecutionHash, TenantHash};
use super::index::OnDisk;
use super::segment::{End, Head, SEND_BYTES, Segment};
use super::table::{Extent, Row};
use crate::store::wire::{self, CallForm, EndingForm};

type Heads = [(std::path::PathBuf, Head)];

/// Whether any of these but the last, which is never checkpointed, has a sound index.
pub fn is_any_checkpointed(heads: &Heads) -> io::Result<bool> {
    let Some((_, full)) = heads.split_last() else { return Ok(false) };
    for (directory, _) in full {
        if OnDisk::load(directory)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What the segment's log says that neither its table nor its ends do.
#[derive(Default)]
struct Told {
    /// Of the tail's latest place here, and the one behind it.
    ends: u32,
    /// Hash, first row and count.
    keys: Vec<(u64, u32, u32)>,
    endings: Vec<(ExecutionHash, Extent, crate::store::view::EndedExecution)>,
    /// Of each row.
    tenants: Vec<TenantHash>,
    shares: Vec<(TenantHash, u64, u64)>,
}

/// Fills in all that an index would have; it is written like that of any other full segment. `false`: the segment is
/// not whole, and as it was. `before`: those that come before it, as far as they are there. `log_bytes`: how much of its
/// log counts.
pub fn rebuild(shared: &Shared, before: &[Segment], segment: &Segment, log_bytes: u64) -> io::Result<bool> {
    let Some(rows) = segment.whole_table()? else { return Ok(false) };
    let Some(told) = read(shared, before, segment, log_bytes, &rows)? else { return Ok(false) };
    if told.tenants.len() != rows.len() {
        return Ok(false);
    }
    let Ok(ends) = segment.ends(0, told.ends) else { return Ok(false) };
    let ends: Option<Vec<End>> = ends.chunks_exact(super::segment::END_BYTES).map(End::decode).collect();
    let Some(ends) = ends else { return Ok(false) };
    segment.add_rows(0, &rows);
    told.shares.iter().for_each(|&(tenant, records, bodies)| segment.add_share(tenant, records, bodies));
    let mut undone = 0;
    for (row, number) in rows.iter().zip(0..) {
        if row.is_done() {
            segment.add_end(number, row);
        } else {
            undone += 1;
        }
    }
    segment.change_zones(|zones| {
        zones.newest_finished_at = ends.iter().map(|end| end.finished_at).max().unwrap_or(i64::MIN);
    });
    segment.change_growing(|growing| {
        told.keys.iter().for_each(|&(hash, first, count)| growing.add_key(hash, first, count));
        told.endings.iter().for_each(|&(hash, at, ended)| growing.add_ending(hash, at, ended));
    });
    segment.undone.store(undone, Ordering::Release);
    segment.ends_count.store(told.ends, Ordering::Release);
    segment.log_bytes.store(log_bytes, Ordering::Release);
    segment.rows.store(rows.len() as u32, Ordering::Release);
    tracing::warn!(index = segment.file("index"), "is lost, unreadable or of an earlier version: it is made anew");
    Ok(true)
}

/// Whose a row is of a segment before the one that is being made anew.
fn tenant_before(shared: &Shared, before: &[Segment], (number, row): (u32, u32)) -> Option<TenantHash> {
    let at = before.binary_search_by_key(&number, |segment| segment.number).ok()?;
    Some(shared.tenant_of(&before[at], &before[at].row(row).ok()?))
}

/// `None`: something is unreadable, or is not what the table says.
fn read(
    shared: &Shared,
    before: &[Segment],
    segment: &Segment,
    log_bytes: u64,
    rows: &[Row],
) -> io::Result<Option<Told>> {
    let mut told = Told::default();
    let mut scanner = Scanner::new(&segment.log, 0, log_bytes)?;
    loop {
        let (at, frame) = match scanner.next()? {
            Scanned::Frame { at, frame } => (at, frame),
            Scanned::End { at } if at == log_bytes => return Ok(Some(told)),
            Scanned::Damage { .. } | Scanned::End { .. } => return Ok(None),
        };
        match frame.kind {
            FrameKind::Send => {
                let Ok((head, form)) = SendHead::decode(frame.payload) else { return Ok(None) };
                if rows.get(head.row as usize).is_none_or(|row| row.id != head.id) {
                    return Ok(None);
                }
                if let Some(key) = &form.key {
                    told.keys.push((shared.keys.call(form.tenant, key.path, key.key), head.row, key.count));
                }
                let tenant = shared.keys.tenant(form.tenant);
                let bodies = u64::from(head.body.length) + u64::from(head.rest.length);
                told.shares.push((tenant, frame.length as u64 + SEND_BYTES, bodies));
                told.tenants.truncate(head.row as usize);
                told.tenants.resize(head.row as usize, TenantHash::any_of(0));
                told.tenants.push(tenant);
            }
            FrameKind::Ending => {
                let Ok(form) = wire::decode::<EndingForm<'_>>(frame.payload) else { return Ok(None) };
                let Ok(ended) = form.ended() else { return Ok(None) };
                let at = Extent { at: at as u32, length: frame.length as u32 };
                told.shares.push((shared.keys.tenant(form.tenant), frame.length as u64, 0));
                told.endings.push((shared.keys.execution(form.tenant, form.execution), at, ended));
            }
            FrameKind::Finish => {
                let Ok((head, _)) = FinishHead::decode(frame.payload) else { return Ok(None) };
                if head.seq > seq_at_most(segment.first_seq, at) {
                    return Ok(None);
                }
                let place = head.seq.checked_sub(segment.first_seq).and_then(|place| u32::try_from(place).ok());
                let Some(place) = place else { return Ok(None) };
                let tenant = if head.segment == segment.number {
                    told.tenants.get(head.row as usize).copied()
                } else {
                    tenant_before(shared, before, (head.segment, head.row))
                };
                if let Some(tenant) = tenant {
                    told.shares.push((tenant, frame.length as u64, u64::from(head.body.length)));
                }
                told.ends = told.ends.max(place + 1);
            }
            FrameKind::Begin
            | FrameKind::Head
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
            | FrameKind::Tunnels => {}
            FrameKind::Call => {
                let Ok(form) = wire::decode::<CallForm<'_>>(frame.payload) else { return Ok(None) };
                let hash = shared.keys.call(form.tenant, form.key.path, form.key.key);
                let last = told.keys.last().filter(|(last, _, count)| *last == hash && *count > 0);
                let first = last.and_then(|(_, row, _)| rows.get(*row as usize));
                if first.is_some_and(|first| form.is_of(first.id)) {
                    told.shares.push((shared.keys.tenant(form.tenant), frame.length as u64, 0));
                } else {
                    told.keys.push((hash, at as u32, 0));
                }
            }
        }
    }
}
