//! The index of a piece made anew from the piece alone, where it is lost and that of a later one is not.
//!
//! Pieces are settled oldest first, and each once all that was changed is on disk: with a later piece settled, this
//! one's table and ends are whole, whatever happened to its index. What they lack, keys and endings, is read from its
//! log. Were this not so, every log from here on would have to be replayed. Whatever does not fit is left to that.

use std::io;
use std::sync::atomic::Ordering;

use super::Shared;
use super::entry::{FinishHead, SendHead};
use super::frame::{Found, Kind, Scanner};
use super::index::Settled;
use super::piece::{End, Head, Piece, SEND_BYTES};
use super::seal::Asked;
use super::table::{Extent, Row};
use crate::store::wire::{self, CallForm, EndingForm};

type Heads = [(std::path::PathBuf, Head)];

/// Whether any of these but the last, which is never settled, has a sound index.
pub fn is_any_settled(heads: &Heads) -> io::Result<bool> {
    let Some((_, full)) = heads.split_last() else { return Ok(false) };
    for (directory, _) in full {
        if Settled::load(directory)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What the piece's log says that neither its table nor its ends do.
#[derive(Default)]
struct Told {
    rows: u32,
    /// Of the tail's latest place here, and the one behind it.
    ends: u32,
    /// Hash, first row and count.
    keys: Vec<(u64, u32, u32)>,
    endings: Vec<(u64, Extent, crate::store::view::EndedExecution)>,
    shares: Vec<(u32, u64, u64)>,
}

/// Fills in all that an index would have; it is written like that of any other full piece. `false`: the piece is not
/// whole, and as it was. `log_bytes`: how much of its log counts.
pub fn remake(shared: &Shared, piece: &Piece, log_bytes: u64) -> io::Result<bool> {
    let Some(rows) = piece.whole_table()? else { return Ok(false) };
    let Some(told) = read(shared, piece, log_bytes, &rows)? else { return Ok(false) };
    if told.rows as usize != rows.len() {
        return Ok(false);
    }
    let Ok(ends) = piece.ends(0, told.ends) else { return Ok(false) };
    let ends: Option<Vec<End>> = ends.chunks_exact(super::piece::END_BYTES).map(End::decode).collect();
    let Some(ends) = ends else { return Ok(false) };
    piece.add_rows(0, &rows);
    told.shares.iter().for_each(|&(tenant, records, bodies)| piece.add_share(tenant, records, bodies));
    let mut undone = 0;
    for (row, number) in rows.iter().zip(0..) {
        if row.is_done() {
            piece.add_end(number, row);
        } else {
            undone += 1;
        }
    }
    piece.change_facts(|facts| {
        facts.newest_finished_at = ends.iter().map(|end| end.finished_at).max().unwrap_or(i64::MIN);
    });
    piece.change_growing(|growing| {
        told.keys.iter().for_each(|&(hash, first, count)| growing.add_key(hash, first, count));
        told.endings.iter().for_each(|&(hash, at, ended)| growing.add_ending(hash, at, ended));
    });
    piece.undone.store(undone, Ordering::Release);
    piece.ends_count.store(told.ends, Ordering::Release);
    piece.log_bytes.store(log_bytes, Ordering::Release);
    piece.rows.store(told.rows, Ordering::Release);
    tracing::warn!(index = piece.file("index"), "is lost or unreadable: it is made anew");
    Ok(true)
}

impl Shared {
    /// A row of this piece, which is being made anew, or of one before it.
    fn row_of_any(&self, piece: &Piece, rows: &[Row], (number, row): (u32, u32)) -> Option<Row> {
        if number == piece.number {
            return rows.get(row as usize).copied();
        }
        self.piece(number)?.row(row).ok()
    }
}

/// `None`: something is unreadable, or is not what the table says.
fn read(shared: &Shared, piece: &Piece, log_bytes: u64, rows: &[Row]) -> io::Result<Option<Told>> {
    let mut told = Told::default();
    let mut scanner = Scanner::new(&piece.log, 0, log_bytes)?;
    loop {
        let (at, frame) = match scanner.next()? {
            Found::Frame { at, frame } => (at, frame),
            Found::End { at } if at == log_bytes => return Ok(Some(told)),
            Found::Damage { .. } | Found::End { .. } => return Ok(None),
        };
        match frame.kind {
            Kind::Send => {
                let Ok((head, form)) = SendHead::decode(frame.payload) else { return Ok(None) };
                if rows.get(head.row as usize).is_none_or(|row| row.id != head.id) {
                    return Ok(None);
                }
                if let Some(key) = &form.key {
                    told.keys.push((shared.keys.call(form.tenant, key.path, key.key), head.row, key.count));
                }
                let tenant = shared.keys.short(Asked::Tenant, form.tenant);
                let bodies = u64::from(head.body.length) + u64::from(head.rest.length);
                told.shares.push((tenant, frame.length as u64 + SEND_BYTES, bodies));
                told.rows = told.rows.max(head.row + 1);
            }
            Kind::Ending => {
                let Ok(form) = wire::decode::<EndingForm<'_>>(frame.payload) else { return Ok(None) };
                let Ok(ended) = form.ended() else { return Ok(None) };
                let at = Extent { at: at as u32, length: frame.length as u32 };
                told.shares.push((shared.keys.short(Asked::Tenant, form.tenant), frame.length as u64, 0));
                told.endings.push((shared.keys.execution(form.tenant, form.execution), at, ended));
            }
            Kind::Finish => {
                let Ok((head, _)) = FinishHead::decode(frame.payload) else { return Ok(None) };
                let place = head.seq.checked_sub(piece.first_seq).and_then(|place| u32::try_from(place).ok());
                let Some(place) = place else { return Ok(None) };
                if let Some(row) = shared.row_of_any(piece, rows, (head.piece, head.row)) {
                    told.shares.push((row.tenant, frame.length as u64, u64::from(head.body.length)));
                }
                told.ends = told.ends.max(place + 1);
            }
            Kind::Begin | Kind::Head | Kind::Body | Kind::Index | Kind::Pairs | Kind::State | Kind::Shares => {}
            Kind::Call => {
                let Ok(form) = wire::decode::<CallForm<'_>>(frame.payload) else { return Ok(None) };
                let hash = shared.keys.call(form.tenant, form.key.path, form.key.key);
                told.keys.push((hash, at as u32, 0));
            }
        }
    }
}
