//! Days of telemetry that are rolled up: which of them have to be, what they came to, and when that is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use viworks_common::id::{AgentId, FieldName, StreamName};
use viworks_common::ledger::telemetry::Limits;
use viworks_common::telemetry::Fields;
use viworks_common::telemetry::rollup::{Day, Hour, Hours, Part};
use viworks_common::telemetry::steps::Range;
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::{Row, params};

use super::proof::{self, Proof};
use super::queries::agent;
use crate::data::StoreResult;
use crate::data::intents::link::Sql;
use crate::data::intents::row::{Reader, column, to_json};
use crate::data::intents::tx::{Tx, View};

const DAY_MICROS: i64 = 24 * 3_600 * 1_000_000;

/// How long after its end a day is rolled up: what is under way then has come.
const SETTLED_AFTER: i64 = 2 * 3_600 * 1_000_000;

/// For how long a day is somebody's to roll up.
const CLAIMED: i64 = 15 * 60 * 1_000_000;

/// Records of a gateway's day that is rolled up; one of more is told of record by record.
const RECORDS_MAX: usize = 1_000_000;

/// Days for which it is known at least which days of gateways changed.
const DAYS_KEPT: u64 = 2;

/// Rows that one transaction forgets.
const FORGET: usize = 500;

macro_rules! mark {
    ($day:literal, $days:literal) => {
        concat!(
            "INSERT INTO telemetry_rollup_days (tenant, agent_id, day, changed, rolled, told, claimed_until) \
             SELECT :tenant, :agent_id, ", $day, ", 1, 0, 0, 0 FROM ", $days, " WHERE true \
             ON CONFLICT (tenant, agent_id, day) DO UPDATE SET changed = telemetry_rollup_days.changed + 1"
        )
    };
}

/// Notes that a day of a gateway has records that no roll-up has.
pub(in crate::data::intents) const MARK: Sql = Sql {
    sqlite: mark!("value", "json_each(:days)"),
    postgres: mark!("value::bigint", "json_array_elements_text(:days)"),
};

macro_rules! due {
    ($lock:literal) => {
        concat!(
            "SELECT tenant, agent_id, day FROM telemetry_rollup_days \
             WHERE tenant = :tenant AND rolled <> changed AND day >= :first AND day < :closed AND claimed_until <= :now \
             ORDER BY day, agent_id LIMIT 1",
            $lock
        )
    };
}

/// The first day that has to be rolled up and is nobody's, which is somebody's from now on.
pub(in crate::data::intents) const CLAIM: Sql = Sql {
    sqlite: concat!(
        "UPDATE telemetry_rollup_days SET claimed_until = :until WHERE (tenant, agent_id, day) IN (",
        due!(""),
        ") RETURNING agent_id, day, changed"
    ),
    postgres: concat!(
        "WITH due AS MATERIALIZED (",
        due!(" FOR UPDATE SKIP LOCKED"),
        ") UPDATE telemetry_rollup_days AS d SET claimed_until = :until FROM due \
         WHERE d.tenant = due.tenant AND d.agent_id = due.agent_id AND d.day = due.day \
         RETURNING d.agent_id, d.day, d.changed"
    ),
};

/// The records of a gateway's day, those of a stream in the order of their times.
pub(in crate::data::intents) const RECORDS: Sql = Sql {
    sqlite: "\
SELECT stream, observed_at, fields FROM telemetry
WHERE tenant = :tenant AND agent_id = :agent_id AND observed_at >= :from AND observed_at < :until
ORDER BY observed_at, spool_epoch, seq LIMIT :limit",
    postgres: concat!(
        "SELECT s.stream, t.observed_at, t.fields FROM telemetry AS t JOIN telemetry_stream_ids AS s ON s.id = t.stream \
         WHERE t.agent = ",
        agent!(),
        " AND t.observed_at >= :from AND t.observed_at < :until \
         ORDER BY t.stream, t.observed_at, t.epoch, t.seq LIMIT :limit"
    ),
};

macro_rules! save {
    ($streams:literal) => {
        concat!(
            "INSERT INTO telemetry_rollups (tenant, agent_id, stream, day, fields) \
             SELECT :tenant, :agent_id, key, :day, value FROM ",
            $streams,
            " WHERE true \
             ON CONFLICT (tenant, agent_id, stream, day) DO UPDATE SET fields = excluded.fields"
        )
    };
}

/// Streams of a day; none of those that were there is gone.
pub(in crate::data::intents) const SAVE: Sql = Sql {
    sqlite: save!("json_each(:streams)"),
    postgres: save!("json_each(:streams::json)"),
};

pub(in crate::data::intents) const DONE: &str = "\
UPDATE telemetry_rollup_days SET rolled = :changed, told = :told, claimed_until = 0
WHERE tenant = :tenant AND agent_id = :agent_id AND day = :day";

/// Days whose records have begun to leave cannot be rolled up again, so what they came to stands.
pub(in crate::data::intents) const SETTLE: &str = "\
UPDATE telemetry_rollup_days SET rolled = changed WHERE (tenant, agent_id, day) IN (
    SELECT tenant, agent_id, day FROM telemetry_rollup_days
    WHERE tenant = :tenant AND rolled <> changed AND told = 1 AND day < :first LIMIT :most)";

pub(in crate::data::intents) const FORGET_ROLLUPS: &str = "\
DELETE FROM telemetry_rollups WHERE (tenant, agent_id, stream, day) IN (
    SELECT tenant, agent_id, stream, day FROM telemetry_rollups WHERE tenant = :tenant AND day < :before LIMIT :most)";

pub(in crate::data::intents) const FORGET_DAYS: &str = "\
DELETE FROM telemetry_rollup_days WHERE (tenant, agent_id, day) IN (
    SELECT tenant, agent_id, day FROM telemetry_rollup_days WHERE tenant = :tenant AND day < :before LIMIT :most)";

/// The days of a gateway of which the roll-up holds everything.
pub(in crate::data::intents) const ROLLED: &str = "\
SELECT day FROM telemetry_rollup_days
WHERE tenant = :tenant AND agent_id = :agent_id AND day >= :low AND day < :high AND told = 1 AND rolled = changed
ORDER BY day";

macro_rules! edge {
    ($order:literal) => {
        concat!(
            "SELECT day FROM telemetry_rollups WHERE tenant = :tenant AND agent_id = :agent_id AND stream = :stream \
             AND day >= :low AND day < :high ORDER BY day ",
            $order,
            " LIMIT 1"
        )
    };
}

pub(in crate::data::intents) const FIRST_DAY: &str = edge!("ASC");

pub(in crate::data::intents) const LAST_DAY: &str = edge!("DESC");

macro_rules! hours {
    ($hours:literal) => {
        concat!(
            "SELECT day, ", $hours, " AS hours FROM telemetry_rollups \
             WHERE tenant = :tenant AND agent_id = :agent_id AND stream = :stream AND day >= :low AND day < :high \
             ORDER BY day"
        )
    };
}

/// What a field of a stream came to in the hours of some days.
pub(in crate::data::intents) const HOURS: Sql = Sql {
    sqlite: hours!("json_extract(fields, '$.\"' || :field || '\"')"),
    postgres: hours!("fields -> :field::text"),
};

/// The day of a time, counted from 1970.
pub(super) const fn day_of(at: Timestamp) -> i64 {
    at.unix_micros().div_euclid(DAY_MICROS)
}

/// When a day begins.
pub(super) const fn beginning(day: i64) -> Timestamp {
    Timestamp::from_unix_micros(day.saturating_mul(DAY_MICROS))
}

/// The days that a range touches: the first, and the one behind the last.
pub(super) const fn days_of(range: Range) -> (i64, i64) {
    let last = range.until.unix_micros().saturating_sub(1);
    let last = Timestamp::from_unix_micros(last);
    (day_of(range.from), day_of(last).saturating_add(1))
}

/// Notes that days of a gateway have records that no roll-up has.
pub(super) fn mark(tx: &Tx<'_>, agent_id: AgentId, days: &BTreeSet<i64>) -> StoreResult<()> {
    if days.is_empty() {
        return Ok(());
    }
    let days = to_json(days);
    tx.execute(MARK, params! { agent_id, days }).map(drop)
}

/// A day of a gateway that has to be rolled up.
#[derive(Debug, Clone, Copy)]
pub(in crate::data::intents) struct Due {
    agent_id: AgentId,
    day: i64,
    /// How often it had been noted that it changed.
    changed: i64,
}

/// What was found out about a day.
#[derive(Debug)]
pub(in crate::data::intents) struct Rolled {
    /// What it came to; none where that is more than may be rolled up, or nothing is.
    streams: Option<BTreeMap<StreamName, Hours>>,
    proof: Proof,
}

/// What there is to do.
#[derive(Debug, Clone, Copy)]
pub(in crate::data::intents) struct Claimed {
    /// A day, if there is one.
    pub(in crate::data::intents) due: Option<Due>,
    /// Rows that were older than roll-ups are kept.
    pub(in crate::data::intents) forgotten: u64,
    /// Whether there may be more of those.
    pub(in crate::data::intents) more: bool,
    /// Where there is no day: spool epochs that were found to have a record twice.
    pub(in crate::data::intents) twice: u64,
}

/// Takes a day, if there is one and `takes` says so, and forgets what is older than roll-ups are kept.
pub(in crate::data::intents) fn claim(
    tx: &Tx<'_>,
    limits: &Limits,
    takes: bool,
) -> StoreResult<Claimed> {
    let kept = i64::try_from(limits.rollup_days.max(DAYS_KEPT)).unwrap_or(i64::MAX);
    let before = day_of(tx.now).saturating_sub(kept);
    let most = FORGET;
    // Days first: of those that are noted as told of by a roll-up, the roll-up is whole.
    let mut forgotten = tx.execute(FORGET_DAYS, params! { before, most })?;
    let mut more = forgotten == FORGET;
    if !more {
        let rollups = tx.execute(FORGET_ROLLUPS, params! { before, most })?;
        forgotten += rollups;
        more = rollups == FORGET;
    }
    let kept_from = limits.kept_from(tx.now);
    let first = kept_from.map_or(before, |from| day_of(from).saturating_add(1).max(before));
    if kept_from.is_some() {
        tx.execute(SETTLE, params! { first, most })?;
    }
    let now = tx.now.unix_micros();
    let closed = day_of(Timestamp::from_unix_micros(
        now.saturating_sub(SETTLED_AFTER),
    ));
    let until = now.saturating_add(CLAIMED);
    let read = |row: &Row<'_>| {
        let row = Reader::new("telemetry_rollup_days", row);
        Ok(Due {
            agent_id: row.get("agent_id")?,
            day: row.get("day")?,
            changed: row.get("changed")?,
        })
    };
    let due = if takes {
        tx.optional(CLAIM, params! { first, closed, until }, read)?
    } else {
        None
    };
    let twice = if due.is_none() { proof::found(tx)? } else { 0 };
    Ok(Claimed {
        due,
        forgotten: u64::try_from(forgotten).unwrap_or(u64::MAX),
        more,
        twice,
    })
}

/// What the day comes to: its roll-up, where those are made, and whether a record is there twice.
pub(in crate::data::intents) fn read(
    view: &View<'_>,
    due: &Due,
    makes: bool,
) -> StoreResult<Rolled> {
    let streams = if makes { streams(view, due)? } else { None };
    let proof = proof::prove(view, due.agent_id, due.day)?;
    Ok(Rolled { streams, proof })
}

fn streams(view: &View<'_>, due: &Due) -> StoreResult<Option<BTreeMap<StreamName, Hours>>> {
    let (agent_id, from, until) = (due.agent_id, beginning(due.day), beginning(due.day + 1));
    let limit = RECORDS_MAX + 1;
    let (mut day, mut records, mut fits) = (Day::default(), 0_usize, true);
    view.each(RECORDS, params! { agent_id, from, until, limit }, |row| {
        let row = Reader::new("telemetry", row);
        let stream: StreamName = row.get("stream")?;
        let fields: Fields = row.json("fields")?;
        records += 1;
        fits = records <= RECORDS_MAX && day.add(&stream, row.get("observed_at")?, &fields);
        Ok(if fits {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        })
    })?;
    Ok(fits.then(|| day.finish()))
}

/// Stores what the day came to. If it changed meanwhile, it is due again.
pub(in crate::data::intents) fn save(tx: &Tx<'_>, due: &Due, rolled: &Rolled) -> StoreResult<()> {
    let Due {
        agent_id,
        day,
        changed,
    } = *due;
    proof::keep(tx, agent_id, day, &rolled.proof)?;
    if let Some(streams) = &rolled.streams
        && !streams.is_empty()
    {
        let streams = to_json(streams);
        tx.execute(SAVE, params! { agent_id, day, streams })?;
    }
    let told = i64::from(rolled.streams.is_some());
    tx.execute(DONE, params! { agent_id, day, changed, told })
        .map(drop)
}

/// The days of a range of which roll-ups hold everything.
pub(super) fn rolled(view: &View<'_>, agent_id: AgentId, range: Range) -> StoreResult<Vec<i64>> {
    let (low, high) = days_of(range);
    let read = column("telemetry_rollup_days", "day");
    view.all(ROLLED, params! { agent_id, low, high }, read)
}

/// The first day in a range that has a roll-up of a stream, or the last one.
pub(super) fn edge(
    view: &View<'_>,
    agent_id: AgentId,
    stream: &StreamName,
    range: Range,
    newest_first: bool,
) -> StoreResult<Option<i64>> {
    let (low, high) = days_of(range);
    let sql = if newest_first { LAST_DAY } else { FIRST_DAY };
    let read = column("telemetry_rollups", "day");
    view.optional(sql, params! { agent_id, stream, low, high }, read)
}

/// Each hour of a range that a field of a stream has numbers in, by time.
pub(super) fn hours(
    view: &View<'_>,
    agent_id: AgentId,
    (stream, field): (&StreamName, &FieldName),
    range: Range,
) -> StoreResult<Vec<(Timestamp, Part)>> {
    let (low, high) = days_of(range);
    let params = params! { agent_id, stream, field, low, high };
    let days = view.all(HOURS, params, |row| {
        let row = Reader::new("telemetry_rollups", row);
        let day: i64 = row.get("day")?;
        let hours: Option<Vec<Hour>> = row.json_optional("hours")?;
        Ok((beginning(day), hours.unwrap_or_default()))
    })?;
    let hours = days.into_iter();
    let hours = hours.flat_map(|(day, hours)| hours.into_iter().map(move |hour| hour.read(day)));
    Ok(hours
        .filter(|(at, _)| range.from <= *at && *at < range.until)
        .collect())
}
