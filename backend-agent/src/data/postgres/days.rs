//! The tables of telemetry, one for each day and some for several: made before they are needed, and deleted whole.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use viworks_common::telemetry::steps::Range;
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::Row;

use super::connection::Connection;
use super::error::Error;
use crate::data::intents::link::{Link as _, LinkError};

const DAY_MICROS: i64 = 24 * 3_600 * 1_000_000;

/// Days from now on that are there before a record needs them.
const AHEAD: i64 = 3;

/// Days before the one on which it arrives that a record may be from to have a table of its day made. Earlier ones
/// share one with their week: how many tables there are follows from how old a site is, never from what gateways say.
const NEAR: i64 = 7;

/// Whoever makes tables does so alone.
const LOCK: &str =
    "SELECT pg_advisory_xact_lock(hashtextextended('viworks days of telemetry', 0)) IS NULL";

/// Every such table of this schema, and whether it is a part of the whole or was on its way out. By what the catalogue
/// says now: a name that was looked up before (`to_regclass`) may be remembered as one that is not there.
const PARTS: &str = "\
SELECT c.relname::text AS name, CASE WHEN i.inhrelid IS NULL THEN 'apart' WHEN i.inhdetachpending THEN 'leaving' ELSE 'there' END AS state
FROM pg_class AS c LEFT JOIN pg_inherits AS i ON i.inhrelid = c.oid AND i.inhparent = 'telemetry'::regclass
WHERE c.relkind = 'r' AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'telemetry'::regclass)
  AND c.relname ~ '^telemetry_[0-9]{4}_[0-9]{2}_[0-9]{2}(_to_[0-9]{4}_[0-9]{2}_[0-9]{2})?$'
ORDER BY c.relname";

/// Whoever deletes tables does so alone; the others leave it to it.
const TRY_LOCK: &str =
    "SELECT pg_try_advisory_lock(hashtextextended('viworks old days of telemetry', 0)) AS taken";
const UNLOCK: &str =
    "SELECT pg_advisory_unlock(hashtextextended('viworks old days of telemetry', 0))";

/// Less than whoever makes a table waits: a table on its way out keeps the whole to itself while it waits for somebody
/// who still reads it.
const DELETING_PATIENCE: &str = "SET lock_timeout = '2s'";
const USUAL_PATIENCE: &str = "RESET lock_timeout";

/// The day of a time, counted from 1970.
pub(super) const fn of(at: Timestamp) -> i64 {
    at.unix_micros().div_euclid(DAY_MICROS)
}

/// When a day begins.
const fn beginning(day: i64) -> Timestamp {
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

/// Days from the first to before the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    from: i64,
    until: i64,
}

impl Span {
    const fn holds(self, day: i64) -> bool {
        self.from <= day && day < self.until
    }

    /// What a record is to have made that is from a day without a table, stored on another one, where these tables are.
    fn wanted(day: i64, stored: i64, others: &[Part]) -> Self {
        let near_from = stored.saturating_sub(NEAR);
        if day >= near_from {
            return Self {
                from: day,
                until: day + 1,
            };
        }
        // 1970 began on a Thursday, weeks begin on Mondays.
        let monday = day - (day + 3).rem_euclid(7);
        let before = others.iter().map(|part| part.span.until);
        let behind = others.iter().map(|part| part.span.from);
        Self {
            from: before.filter(|it| *it <= day).fold(monday, i64::max),
            until: behind
                .filter(|it| *it > day)
                .fold(near_from.min(monday + 7), i64::min),
        }
    }

    /// The name of its table: its day, or its first and its last one.
    fn name(self) -> Result<String, Error> {
        let of = |day| Ok::<_, Error>(written(day)?.replace('-', "_"));
        let first = of(self.from)?;
        Ok(if self.until == self.from + 1 {
            format!("telemetry_{first}")
        } else {
            format!("telemetry_{first}_to_{}", of(self.until - 1)?)
        })
    }

    /// The days of the table with a name.
    fn named(name: &str) -> Option<Self> {
        let day = |text: &str| {
            let midnight = format!("{}T00:00:00Z", text.replace('_', "-"));
            Timestamp::parse(&midnight).ok().map(of)
        };
        let days = name.strip_prefix("telemetry_")?;
        let (first, last) = days.split_once("_to_").unwrap_or((days, days));
        Some(Self {
            from: day(first)?,
            until: day(last)? + 1,
        })
    }
}

/// What a table is to the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A part of it.
    There,
    /// Its leaving was begun and is not done: it takes no records any more, and no other table can have its days.
    Leaving,
    /// It has left, or was never attached.
    Apart,
}

/// A table of telemetry.
#[derive(Debug, Clone)]
struct Part {
    name: String,
    span: Span,
    state: State,
}

impl Connection {
    /// Makes tables for the days that have none, inside the open transaction. Each day comes with the one on which its
    /// first record is stored.
    pub(super) fn ensure_days(&self, days: &BTreeMap<i64, i64>) -> Result<(), LinkError> {
        let known = self.known.days.borrow().clone();
        let unknown = days.iter().filter(|(day, _stored)| !known.contains(*day));
        let unknown: Vec<(i64, i64)> = unknown.map(|(day, stored)| (*day, *stored)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let mut parts = self.parts()?;
        if unknown.iter().any(|(day, _stored)| !has(&parts, *day)) {
            self.query(LOCK.into(), &[], &[], &mut |_row| ControlFlow::Continue(()))?;
            parts = self.parts()?;
            for (day, stored) in &unknown {
                self.make_part(*day, *stored, &mut parts)?;
            }
        }
        let mut known = self.known.days.borrow_mut();
        known.extend(unknown.into_iter().map(|(day, _stored)| day));
        Ok(())
    }

    fn make_part(&self, day: i64, stored: i64, parts: &mut Vec<Part>) -> Result<(), LinkError> {
        if has(parts, day) {
            return Ok(());
        }
        let (apart, attached): (Vec<Part>, _) =
            parts.drain(..).partition(|part| part.state == State::Apart);
        *parts = attached;
        let leaving = |part: &&Part| part.state == State::Leaving && part.span.holds(day);
        if let Some(part) = parts.iter().find(leaving) {
            // No transaction can do that, so it is done when this one has ended.
            *self.known.leaving.borrow_mut() = Some(part.name.clone());
            let told = format!("the leaving of {} was interrupted", part.name);
            let error = Error::Again(Arc::new(sqlx::Error::Protocol(told)));
            return Err(LinkError::Postgres(self.met(error)));
        }
        let span = Span::wanted(day, stored, parts);
        for old in apart {
            if old.span.from < span.until && span.from < old.span.until {
                // It had left, and was to be dropped.
                self.run(format!("DROP TABLE IF EXISTS {}", old.name))
                    .map_err(LinkError::Postgres)?;
            } else {
                parts.push(old);
            }
        }
        let made = self.attach(span);
        parts.push(made.map_err(LinkError::Postgres)?);
        Ok(())
    }

    /// Made apart and attached, which holds up nobody who reads or writes.
    fn attach(&self, span: Span) -> Result<Part, Error> {
        let (name, from, until) = (span.name()?, written(span.from)?, written(span.until)?);
        self.run(format!(
            "CREATE TABLE {name} (LIKE telemetry INCLUDING ALL); \
             ALTER TABLE telemetry ATTACH PARTITION {name} \
             FOR VALUES FROM ('{from} 00:00:00+00') TO ('{until} 00:00:00+00')"
        ))?;
        Ok(Part {
            name,
            span,
            state: State::There,
        })
    }

    /// Every table, in the order of days.
    fn parts(&self) -> Result<Vec<Part>, LinkError> {
        let mut parts = Vec::new();
        self.query(PARTS.into(), &[], &[], &mut |row: &Row<'_>| {
            let name: String = row.get("name").unwrap_or_default();
            let state = match row.text("state") {
                Some("there") => State::There,
                Some("leaving") => State::Leaving,
                _ => State::Apart,
            };
            // What is no day is somebody else's table.
            if let Some(span) = Span::named(&name) {
                parts.push(Part { name, span, state });
            }
            ControlFlow::Continue(())
        })?;
        Ok(parts)
    }

    /// The parts of a range that have a table each, in their order.
    pub(super) fn tables_of(&self, range: Range) -> Result<Vec<Range>, LinkError> {
        let mut parts = self.parts()?;
        parts.retain(|part| part.state == State::There);
        let clipped = parts.iter().map(|part| Range {
            from: beginning(part.span.from).max(range.from),
            until: beginning(part.span.until).min(range.until),
        });
        Ok(clipped.filter(|part| part.from < part.until).collect())
    }

    /// Makes the days that come next.
    pub(super) fn add_days(&self, now: Timestamp) -> Result<(), LinkError> {
        let today = of(now);
        let days = (today..=today + AHEAD).map(|day| (day, today));
        self.ensure_days(&days.collect())
    }

    /// Before which time nothing is left, where what is older than `before` is deleted.
    pub(super) fn telemetry_emptied_to(&self, before: Timestamp) -> Result<Timestamp, LinkError> {
        let parts = self.parts()?;
        let there = parts.iter().filter(|part| part.state == State::There);
        let earliest = there.map(|part| part.span.from).min();
        let day = of(before);
        Ok(beginning(
            earliest.map_or(day, |earliest| earliest.min(day)),
        ))
    }

    /// Deletes the tables that end before `kept_from`, outside of any transaction; answers how many.
    pub(super) fn delete_days(&self, kept_from: Timestamp) -> Result<u64, Error> {
        self.batch(DELETING_PATIENCE)?;
        if !self.try_lock()? {
            return Ok(0);
        }
        let first_kept = of(kept_from);
        let mut old = self.parts().map_err(of_server)?;
        old.retain(|part| part.span.until <= first_kept || part.state != State::There);
        // As long as one is leaving no other one can.
        old.sort_by_key(|part| (part.state != State::Leaving, part.span.from));
        let mut deleted = 0;
        for part in old {
            self.delete(&part)?;
            deleted += 1;
        }
        Ok(deleted)
    }

    fn delete(&self, part: &Part) -> Result<(), Error> {
        let Part { name, state, .. } = part;
        let detach = match state {
            State::There => Some("CONCURRENTLY"),
            // Somebody was interrupted.
            State::Leaving => Some("FINALIZE"),
            State::Apart => None,
        };
        if let Some(how) = detach {
            self.run(format!(
                "ALTER TABLE telemetry DETACH PARTITION {name} {how}"
            ))?;
        }
        self.run(format!("DROP TABLE IF EXISTS {name}"))
    }

    fn try_lock(&self) -> Result<bool, Error> {
        let mut taken = false;
        let look = self.query(TRY_LOCK.into(), &[], &[], &mut |row| {
            taken = row.get("taken").unwrap_or_default();
            ControlFlow::Break(())
        });
        look.map_err(of_server)?;
        Ok(taken)
    }

    /// Finishes the leaving of a table that the last transaction ran into, unless somebody is at it. What does not
    /// succeed is found again by whoever needs one of its days.
    pub(super) fn finish_leaving(&self) {
        let Some(name) = self.known.leaving.take() else {
            return;
        };
        if let Err(error) = self.try_finish(&name) {
            tracing::info!(%error, table = name, "a table of telemetry is still on its way out");
        }
    }

    fn try_finish(&self, name: &str) -> Result<(), Error> {
        if !self.try_lock()? {
            return Ok(());
        }
        let finish = || {
            self.batch(DELETING_PATIENCE)?;
            let mut parts = self.parts().map_err(of_server)?.into_iter();
            let left = parts.find(|part| part.name == name && part.state == State::Leaving);
            left.map_or(Ok(()), |part| self.delete(&part))
        };
        let finished = finish();
        self.batch(USUAL_PATIENCE)?;
        self.batch(UNLOCK)?;
        finished
    }
}

fn has(parts: &[Part], day: i64) -> bool {
    let there = |part: &Part| part.state == State::There && part.span.holds(day);
    parts.iter().any(there)
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
    use proptest::prelude::*;

    use super::*;

    fn part(from: i64, until: i64) -> Part {
        let span = Span { from, until };
        Part {
            name: span.name().unwrap(),
            span,
            state: State::There,
        }
    }

    #[test]
    fn a_day_has_the_times_from_its_midnight_to_the_next() {
        let day = of(Timestamp::parse("2026-11-27T23:59:59.999999Z").unwrap());
        assert_eq!(part(day, day + 1).name, "telemetry_2026_11_27");
        assert_eq!(
            part(day, day + 3).name,
            "telemetry_2026_11_27_to_2026_11_29"
        );
        assert_eq!(of(beginning(day)), day);
        assert_eq!(
            of(Timestamp::parse("2026-11-28T00:00:00Z").unwrap()),
            day + 1
        );
        assert_eq!(written(-1).unwrap(), "1969-12-31");
    }

    #[test]
    fn what_is_no_table_of_days_is_none() {
        for name in [
            "telemetry",
            "telemetry_2026_13_01",
            "telemetry_records",
            "other_2026_11_27",
        ] {
            assert_eq!(Span::named(name), None, "{name}");
        }
    }

    proptest! {
        /// Whatever comes in whatever order, no two tables share a day, those near have one each, and of the others
        /// there are no more than weeks and what separates them.
        #[test]
        fn tables_are_few_and_apart(
            today in 400_i64..40_000,
            ages in prop::collection::vec(-1_i64..400, 1..300),
        ) {
            let mut parts: Vec<Part> = Vec::new();
            for age in ages {
                let day = today - age;
                if !has(&parts, day) {
                    let span = Span::wanted(day, today, &parts);
                    prop_assert!(span.holds(day));
                    prop_assert!(age > NEAR || span.until == span.from + 1);
                    prop_assert_eq!(Span::named(&span.name().unwrap()), Some(span));
                    let apart = |part: &Part| part.span.until <= span.from || span.until <= part.span.from;
                    prop_assert!(parts.iter().all(apart), "{:?} {:?}", span, parts);
                    parts.push(Part { name: String::new(), span, state: State::There });
                }
            }
            prop_assert!(parts.len() <= 400 / 7 + 2 + 9, "{}", parts.len());
        }
    }
}
