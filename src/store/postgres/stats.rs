//! Statistics: ends are counted in the order of the tail, once, by whichever node looks first, into rows of five minutes
//! and of hours. Nobody who begins or ends a send waits for that.

use super::link::{Link, Trouble};
use super::read::{failed, settle};
use super::{Shared, sql};
use crate::limits::STATS_HOSTS_OF_SLOT;
use crate::outcome::Outcome;
use crate::store::stats::{By, Choosing, NO_TIME, Place, Stats, StatsAsked, TIMES};
use crate::store::{StoreError, wire};

/// Ends that one statement counts.
const AT_ONCE: i64 = 20_000;
/// The number that each of [`TIMES`], what is beyond them and what has no time goes under there. A step that comes later
/// gets a new one: what was counted before stands, and nodes of an earlier version count beside this one.
const STEPS: [i16; TIMES.len() + 2] =
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 26, 23, 24, 25];
const NANOSECONDS_PER_MS: i64 = 1_000_000;
/// Slots of five minutes in an hour.
const IN_AN_HOUR: i64 = 12;

/// Counts what came since.
pub async fn count(link: &Link, how: &'static str) -> Result<(), Trouble> {
    let times: Vec<i64> = TIMES.iter().map(|&time| i64::from(time) * NANOSECONDS_PER_MS).collect();
    let hosts = STATS_HOSTS_OF_SLOT as i64;
    let unseen = i16::from(wire::outcome_number(Outcome::Interrupted));
    loop {
        let counted: i64 = link.one(how, &[&AT_ONCE, &times, &hosts, &unseen, &&STEPS[..]]).await?.get(0);
        if counted < AT_ONCE {
            return Ok(());
        }
    }
}

pub async fn stats(shared: &Shared, asked: StatsAsked) -> Result<Stats, StoreError> {
    settle(shared).await?;
    let _turn = shared.list_turn(&asked.reach).await;
    count(shared.list(), sql::COUNT_STATS).await.map_err(failed)?;
    let tenant = asked.reach.one().map_or("", |tenant| tenant.as_str());
    let told_by: i16 = match asked.by {
        By::Outcome => 0,
        By::Host => 1,
        By::Source => 2,
        By::Tenant => 3,
    };
    // Whole hours are counted as such, too.
    let by_hours = [asked.since, asked.until, asked.bucket].iter().all(|slots| slots % IN_AN_HOUR == 0);
    let (seconds, slots): (i32, i64) = if by_hours { (3600, IN_AN_HOUR) } else { (300, 1) };
    let (since, until, bucket) = (asked.since / slots, asked.until / slots, asked.bucket / slots);
    let name = |value: &str| match asked.by {
        By::Outcome => {
            let outcome = value.parse().ok().and_then(|number: u8| wire::outcome_of(number).ok());
            outcome.map(|outcome| outcome.label().to_owned())
        }
        _ => (!value.is_empty()).then(|| value.to_owned()),
    };
    let link = shared.list();
    let rows = link.query(sql::STATS_CHOOSING, &[&tenant, &told_by, &seconds, &since, &until]).await.map_err(failed)?;
    let mut choosing = Choosing::default();
    for row in &rows {
        let (value, count): (&str, i64) = (row.get(0), row.get(2));
        choosing.add(name(value).as_deref(), row.get(1), count.unsigned_abs());
    }
    let mut gathering = choosing.chosen();
    let chosen: Vec<&str> = match asked.by {
        By::Outcome => rows.iter().map(|row| row.get(0)).collect(),
        _ => gathering.names(),
    };
    let given = link.query(sql::STATS, &[&tenant, &told_by, &seconds, &since, &until, &bucket, &chosen]).await;
    let found: Vec<(Option<String>, Place, u64)> = given
        .map_err(failed)?
        .iter()
        .map(|row| {
            let (value, at, took, count): (&str, i64, i16, i64) = (row.get(0), row.get(1), row.get(3), row.get(4));
            let time = STEPS.iter().position(|&step| step == took).map_or(NO_TIME, |time| time as u8);
            let place = Place { slot: at * asked.bucket, delivered: row.get(2), time };
            (name(value), place, count.unsigned_abs())
        })
        .collect();
    for (name, place, count) in found {
        gathering.add(&asked, name.as_deref(), place, count);
    }
    Ok(gathering.done())
}
