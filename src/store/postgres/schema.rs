//! The schema: made by the first node that starts, brought forward under an advisory lock, in one transaction; and the
//! partitions of its days.

use std::collections::BTreeSet;

use jiff::Timestamp;
use uuid::Uuid;

use super::link::{Link, Trouble};
use super::{Past, sql};
use crate::store::StoreError;
use crate::store::embedded::seal::Keys;

/// Of what is known here, in order: version 1 is made by the first.
const VERSIONS: &[&str] = &[
    include_str!("schema_1.sql"),
    include_str!("schema_2.sql"),
    include_str!("schema_3.sql"),
    include_str!("schema_4.sql"),
    include_str!("schema_5.sql"),
    include_str!("schema_6.sql"),
    include_str!("schema_7.sql"),
];
/// The newest version that is known.
pub const KNOWN: i32 = VERSIONS.len() as i32;
/// Of a newer schema, this one's readers and writers still work on it.
const PARTITIONED: [&str; 4] = ["send", "done", "send_body", "done_body"];
/// Days for which partitions are made ahead, today's beside them.
const DAYS_AHEAD: i64 = 3;
const MS_PER_DAY: i64 = 24 * 3600 * 1000;

/// Brings the schema to [`KNOWN`], with the keys that `keys` loads, or makes where the tier is new: one node at a time,
/// so that only the first makes any. A newer schema is refused, and an older one is brought forward while its nodes run.
pub async fn bring_forward(
    link: &Link,
    schema: &str,
    past: Past,
    keys: impl FnOnce(bool) -> Result<Keys, StoreError>,
) -> Result<Keys, StoreError> {
    let failed = |trouble: Trouble| trouble.on_write();
    let begun = link
        .run(&format!(
            "BEGIN; SELECT pg_advisory_xact_lock(hashtext('{schema}'), 0); DO $$ BEGIN \
             IF to_regnamespace('{schema}') IS NULL THEN CREATE SCHEMA {schema}; END IF; END $$"
        ))
        .await;
    let brought = match begun {
        Ok(()) => in_transaction(link, schema, past, keys).await,
        Err(trouble) => Err(failed(trouble)),
    };
    let end = if brought.is_ok() { "COMMIT" } else { "ROLLBACK" };
    let ended = link.run(end).await.map_err(failed);
    let keys = brought?;
    ended.map(|()| keys)
}

async fn in_transaction(
    link: &Link,
    schema: &str,
    past: Past,
    keys: impl FnOnce(bool) -> Result<Keys, StoreError>,
) -> Result<Keys, StoreError> {
    let failed = |trouble: Trouble| match trouble.on_start() {
        StoreError::CannotRead(why) => StoreError::CannotWrite(why.said(format!("making the schema {schema}: {why}"))),
        error => error,
    };
    let known = key_check(link, schema).await?;
    let keys = keys(known.is_none())?;
    let check = keys.check();
    let check = &check[..];
    if known.as_ref().is_some_and(|known| known != check) {
        return Err(another_key());
    }
    let found: i32 = match known {
        Some(_) => link.ask("SELECT version FROM tier", &[]).await.map_err(failed)?[0].get(0),
        None => 0,
    };
    for (at, text) in VERSIONS.iter().enumerate().skip(usize::try_from(found).unwrap_or_default()) {
        link.run(text).await.map_err(failed)?;
        let version = i32::try_from(at + 1).unwrap_or(i32::MAX);
        let noted = "INSERT INTO tier (version, key_check) VALUES ($1, $2) \
                     ON CONFLICT (one) DO UPDATE SET version = excluded.version";
        link.ask(noted, &[&version, &check]).await.map_err(failed)?;
    }
    link.ask(sql::TAIL_GOES_ON, &[]).await.map_err(failed)?;
    if past == Past::Restored {
        for text in sql::CALL_OFF {
            link.ask(text, &[]).await.map_err(failed)?;
        }
    }
    Ok(keys)
}

/// The check value of the key that the tier was made with; `None`: there is no tier yet. A newer one is refused.
pub async fn key_check(link: &Link, schema: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let failed = |trouble: Trouble| trouble.on_read();
    let made = link.ask("SELECT to_regclass('tier') IS NOT NULL", &[]).await.map_err(failed)?;
    if !made[0].get::<_, bool>(0) {
        return Ok(None);
    }
    let rows = link.ask("SELECT version, key_check FROM tier", &[]).await.map_err(failed)?;
    let Some(row) = rows.first() else { return Ok(None) };
    not_newer(row.get(0), schema)?;
    Ok(Some(row.get(1)))
}

pub fn another_key() -> StoreError {
    StoreError::Unfit(
        "the key file is not the one that this tier was made with: every node has the same; copy it from a node that \
         runs, or name another database in `[store] url`"
            .to_owned(),
    )
}

/// Whether the schema can be made, where there is none.
pub async fn may_be_made(link: &Link, schema: &str) -> Result<(), StoreError> {
    let asked = "SELECT CASE WHEN to_regnamespace($1) IS NULL THEN has_database_privilege(current_database(), 'CREATE') \
                 ELSE has_schema_privilege($1, 'CREATE') END, current_user::text, current_database()::text";
    let rows = link.ask(asked, &[&schema]).await.map_err(|trouble| trouble.on_read())?;
    if rows[0].get(0) {
        return Ok(());
    }
    let (user, database): (&str, &str) = (rows[0].get(1), rows[0].get(2));
    Err(StoreError::Unfit(format!(
        "the role {user} may not make the schema {schema}: CREATE SCHEMA {schema} AUTHORIZATION {user} in the database \
         {database}"
    )))
}

fn not_newer(found: i32, schema: &str) -> Result<(), StoreError> {
    if found <= KNOWN {
        return Ok(());
    }
    Err(StoreError::TooNew {
        path: format!("schema {schema} of the database"),
        found: found.unsigned_abs(),
        known: KNOWN.unsigned_abs(),
    })
}

/// The day of an id of version 7, counted from 1970.
pub fn day_of(id: Uuid) -> i64 {
    let milliseconds = (id.as_u128() >> 80) as i64;
    milliseconds.div_euclid(MS_PER_DAY)
}

/// The first ids of a day's hours, the next day's with them.
pub fn hours_of(day: i64) -> impl Iterator<Item = (Uuid, Uuid)> {
    let hour = move |hour: i64| {
        let milliseconds = u128::try_from(day.max(0) * MS_PER_DAY + hour * 3_600_000).unwrap_or_default();
        Uuid::from_u128(milliseconds << 80)
    };
    (0..24).map(move |of| (hour(of), hour(of + 1)))
}

pub fn day_at(now: Timestamp) -> i64 {
    now.as_millisecond().div_euclid(MS_PER_DAY)
}

/// The first id that a day may have.
pub fn first_of(day: i64) -> Uuid {
    let milliseconds = u128::try_from(day.max(0) * MS_PER_DAY).unwrap_or_default();
    Uuid::from_u128(milliseconds << 80)
}

/// Makes the partitions of these days where they are missing: attached, so that nothing which reads or writes waits.
pub async fn make_days(link: &Link, schema: &str, days: impl IntoIterator<Item = i64>) -> Result<(), Trouble> {
    let days: BTreeSet<i64> = days.into_iter().collect();
    let there: BTreeSet<i64> = known_days(link).await?.into_iter().collect();
    for day in days.difference(&there) {
        let mut text = format!(
            "SELECT set_config('lock_timeout', '2s', true); SELECT pg_advisory_xact_lock(hashtext('{schema}'), 2);"
        );
        for parent in PARTITIONED {
            let (from, to) = (first_of(*day), first_of(*day + 1));
            text += &format!(
                "CREATE TABLE IF NOT EXISTS {parent}_{day} (LIKE {parent} INCLUDING DEFAULTS INCLUDING CONSTRAINTS); \
                 DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = '{parent}_{day}'::regclass) THEN \
                 ALTER TABLE {parent} ATTACH PARTITION {parent}_{day} FOR VALUES FROM ('{from}') TO ('{to}'); \
                 END IF; END $$;"
            );
        }
        // One message, so one transaction.
        link.run(&text).await?;
    }
    Ok(())
}

/// Today's and those to come.
pub async fn make_ahead(link: &Link, schema: &str, now: Timestamp) -> Result<(), Trouble> {
    let today = day_at(now);
    make_days(link, schema, today - 1..=today + DAYS_AHEAD).await
}

/// The days that have partitions, the oldest first.
pub async fn known_days(link: &Link) -> Result<Vec<i64>, Trouble> {
    let rows = link
        .ask(
            "SELECT substr(c.relname, 6)::bigint FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
             WHERE i.inhparent = 'done'::regclass AND c.relname ~ '^done_[0-9]+$' ORDER BY 1",
            &[],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Drops the days before this one of these parents, whole: detached first, so that nobody waits for who reads them.
pub async fn drop_before(link: &Link, day: i64, bodies_alone: bool) -> Result<(), Trouble> {
    let parents = if bodies_alone { &PARTITIONED[2..] } else { &PARTITIONED[..] };
    for parent in parents {
        let rows = link
            .ask(
                "SELECT c.relname, i.inhdetachpending FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
                 WHERE i.inhparent = $1::text::regclass \
                 AND CASE WHEN c.relname ~ ('^' || $1 || '_[0-9]+$') \
                 THEN substr(c.relname, length($1) + 2)::bigint < $2 END",
                &[parent, &day],
            )
            .await?;
        for row in rows {
            let (name, pending): (&str, bool) = (row.get(0), row.get(1));
            let how = if pending { "FINALIZE" } else { "CONCURRENTLY" };
            link.run("SET lock_timeout = '2s'").await?;
            link.run(&format!("ALTER TABLE {parent} DETACH PARTITION {name} {how}")).await?;
            link.run(&format!("DROP TABLE {name}")).await?;
        }
    }
    Ok(())
}
