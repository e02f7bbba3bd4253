//! The days of telemetry, each in a table of its own: made before they are needed, and deleted whole.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use viworks_common::time::Timestamp;
use viworks_runtime::params;
use viworks_runtime::sqlite::Row;

use super::connection::Connection;
use super::error::Error;
use crate::data::intents::link::{Link as _, LinkError};

const DAY_MICROS: i64 = 24 * 3_600 * 1_000_000;

/// The state of a day that takes records.
const THERE: &str = "there";

/// Days from now on that are there before a record needs them.
const AHEAD: i64 = 3;

/// What a day's table is. By what the catalogue says now: a name that was looked up before (`to_regclass`) may be
/// remembered as one that is not there.
const STATE: &str = "\
SELECT CASE WHEN i.inhrelid IS NULL THEN 'apart' WHEN i.inhdetachpending THEN 'leaving' ELSE 'there' END AS state
FROM pg_class AS c LEFT JOIN pg_inherits AS i ON i.inhrelid = c.oid AND i.inhparent = 'telemetry'::regclass
WHERE c.relkind = 'r' AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'telemetry'::regclass)
  AND c.relname = :name::name";

/// Whoever makes days does so alone.
const LOCK: &str =
    "SELECT pg_advisory_xact_lock(hashtextextended('viworks days of telemetry', 0)) IS NULL";

/// Every table of a day in this schema, and whether it is a part of the whole or was on its way out.
const DAYS: &str = "\
SELECT c.relname::text AS name, CASE WHEN i.inhrelid IS NULL THEN 'apart' WHEN i.inhdetachpending THEN 'leaving' ELSE 'there' END AS state
FROM pg_class AS c LEFT JOIN pg_inherits AS i ON i.inhrelid = c.oid AND i.inhparent = 'telemetry'::regclass
WHERE c.relkind = 'r' AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'telemetry'::regclass)
  AND c.relname ~ '^telemetry_[0-9]{4}_[0-9]{2}_[0-9]{2}$'
ORDER BY c.relname";

/// Whoever deletes days does so alone; the others leave it to it.
const TRY_LOCK: &str =
    "SELECT pg_try_advisory_lock(hashtextextended('viworks old days of telemetry', 0)) AS taken";

/// The day of a time, counted from 1970.
pub(super) const fn of(at: Timestamp) -> i64 {
    at.unix_micros().div_euclid(DAY_MICROS)
}

/// When a day begins.
pub(super) const fn beginning(day: i64) -> Timestamp {
    Timestamp::from_unix_micros(day.saturating_mul(DAY_MICROS))
}

/// A day as it is written, `2026-11-27`.
fn written(day: i64) -> Result<String, Error> {
    let text = beginning(day).to_string();
    match text.split_once('T') {
        Some((date, _midnight)) => Ok(date.to_owned()),
        None => Err(Error::Unfit(format!(
            "there is no table for the time {text}"
        ))),
    }
}

fn name(date: &str) -> String {
    format!("telemetry_{}", date.replace('-', "_"))
}

impl Connection {
    /// Makes the days that are not there, inside the open transaction.
    pub(super) fn ensure_days(&self, days: &BTreeSet<i64>) -> Result<(), LinkError> {
        let missing = days
            .iter()
            .filter(|day| !self.known.days.borrow().contains(*day));
        let missing: Vec<i64> = missing.copied().collect();
        for day in missing {
            let date = written(day).map_err(LinkError::Postgres)?;
            if self.state_of(&date)?.as_deref() != Some(THERE) {
                self.make_day(day, &date)?;
            }
            self.known.days.borrow_mut().insert(day);
        }
        Ok(())
    }

    fn make_day(&self, day: i64, date: &str) -> Result<(), LinkError> {
        self.query(LOCK.into(), &[], &[], &mut |_row| ControlFlow::Continue(()))?;
        let state = self.state_of(date)?;
        if state.as_deref() == Some(THERE) {
            return Ok(());
        }
        let next = written(day + 1).map_err(LinkError::Postgres)?;
        let name = name(date);
        if state.as_deref() == Some("apart") {
            // It had left, and was to be dropped.
            self.run(format!("DROP TABLE {name}"))
                .map_err(LinkError::Postgres)?;
        }
        // Made apart and attached, which holds up nobody who reads or writes.
        let make = format!(
            "CREATE TABLE {name} (LIKE telemetry INCLUDING ALL); \
             ALTER TABLE telemetry ATTACH PARTITION {name} \
             FOR VALUES FROM ('{date} 00:00:00+00') TO ('{next} 00:00:00+00')"
        );
        self.run(make).map_err(LinkError::Postgres)
    }

    fn state_of(&self, date: &str) -> Result<Option<String>, LinkError> {
        let (name, mut state) = (name(date), None);
        self.query(STATE.into(), params! { name }, &[], &mut |row| {
            state = row.get("state");
            ControlFlow::Break(())
        })?;
        Ok(state)
    }

    /// Makes the days that come next.
    pub(super) fn add_days(&self, now: Timestamp) -> Result<(), LinkError> {
        let today = of(now);
        self.ensure_days(&(today..=today + AHEAD).collect())
    }

    /// Deletes the days that end before `kept_from`, outside of any transaction; answers how many.
    pub(super) fn delete_days(&self, kept_from: Timestamp) -> Result<u64, Error> {
        let mut taken = false;
        let look = self.query(TRY_LOCK.into(), &[], &[], &mut |row| {
            taken = row.get("taken").unwrap_or_default();
            ControlFlow::Break(())
        });
        look.map_err(of_server)?;
        if !taken {
            return Ok(0);
        }
        let first_kept = name(&written(of(kept_from))?);
        let mut old = Vec::new();
        let look = self.query(DAYS.into(), &[], &[], &mut |row: &Row<'_>| {
            let name: String = row.get("name").unwrap_or_default();
            let state: String = row.get("state").unwrap_or_default();
            // Names are in the order of their days.
            if name < first_kept || state != THERE {
                old.push((name, state));
            }
            ControlFlow::Continue(())
        });
        look.map_err(of_server)?;
        let mut deleted = 0;
        for (name, state) in old {
            let detach = match state.as_str() {
                THERE => Some("CONCURRENTLY"),
                // Somebody was interrupted.
                "leaving" => Some("FINALIZE"),
                _ => None,
            };
            if let Some(how) = detach {
                self.run(format!(
                    "ALTER TABLE telemetry DETACH PARTITION {name} {how}"
                ))?;
            }
            self.run(format!("DROP TABLE {name}"))?;
            deleted += 1;
        }
        Ok(deleted)
    }
}

fn of_server(error: LinkError) -> Error {
    match error {
        LinkError::Postgres(error) => error,
        // This connection has no other kind.
        LinkError::Sqlite(_) => Error::Closed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_has_the_times_from_its_midnight_to_the_next() {
        let day = of(Timestamp::parse("2026-11-27T23:59:59.999999Z").unwrap());
        assert_eq!(name(&written(day).unwrap()), "telemetry_2026_11_27");
        assert_eq!(of(beginning(day)), day);
        assert_eq!(
            of(Timestamp::parse("2026-11-28T00:00:00Z").unwrap()),
            day + 1
        );
        assert_eq!(written(-1).unwrap(), "1969-12-31");
    }
}
