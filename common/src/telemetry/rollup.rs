//! Days of telemetry, rolled up: what the numbers of each field of a stream came to in each hour, and the same told of
//! longer steps. Decided here once, so that both stores tell the same, with roll-ups or without.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::steps::{Aggregate, Range, SUM_SCALE, Step, Sums};
use super::{FieldValue, Fields};
use crate::id::{FieldName, StreamName};
use crate::time::Timestamp;

/// An hour in microseconds.
pub const HOUR_MICROS: i64 = 3_600 * 1_000_000;

/// Hours of fields that one day of a gateway may come to. A day of more is left as it is, and told of record by
/// record: that happens where names of fields are made up.
pub const ENTRIES_MAX: usize = 50_000;

/// What the numbers of a time came to, and which of them was the last.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    /// All of them.
    pub sums: Sums,
    /// The one that was observed last.
    pub last: f64,
}

impl Part {
    /// Of one number.
    #[must_use]
    pub const fn of(number: f64) -> Self {
        Self {
            sums: Sums {
                records: 1,
                scaled: number / SUM_SCALE,
                least: number,
                most: number,
            },
            last: number,
        }
    }

    /// The same with what came later.
    #[must_use]
    pub const fn and(self, later: Self) -> Self {
        let (one, other) = (self.sums, later.sums);
        Self {
            sums: Sums {
                records: one.records.saturating_add(other.records),
                scaled: one.scaled + other.scaled,
                least: one.least.min(other.least),
                most: one.most.max(other.most),
            },
            last: later.last,
        }
    }

    /// What is asked of them; `None` when it is beyond every number.
    #[must_use]
    pub fn tell(self, aggregate: Aggregate) -> Option<f64> {
        match aggregate {
            Aggregate::Last => Some(self.last),
            Aggregate::Avg
            | Aggregate::Min
            | Aggregate::Max
            | Aggregate::Sum
            | Aggregate::Count => self.sums.tell(aggregate),
        }
    }
}

/// An hour of a day as it is stored: which one, how many records, their sum in parts of [`SUM_SCALE`], the least, the
/// greatest and the last.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Hour(u8, u64, f64, f64, f64, f64);

impl Hour {
    fn new(hour: u8, part: Part) -> Self {
        let Sums {
            records,
            scaled,
            least,
            most,
        } = part.sums;
        Self(hour, records, scaled, least, most, part.last)
    }

    /// When it begins, of a day that begins then; and what its numbers came to.
    #[must_use]
    pub fn read(self, day: Timestamp) -> (Timestamp, Part) {
        let Self(hour, records, scaled, least, most, last) = self;
        let begin = day.unix_micros() + i64::from(hour) * HOUR_MICROS;
        let sums = Sums {
            records,
            scaled,
            least,
            most,
        };
        (Timestamp::from_unix_micros(begin), Part { sums, last })
    }
}

/// The hours of each field of a stream.
pub type Hours = BTreeMap<FieldName, Vec<Hour>>;

/// A day of a gateway that is being rolled up.
#[derive(Debug, Default)]
pub struct Day {
    streams: BTreeMap<StreamName, BTreeMap<FieldName, BTreeMap<u8, Part>>>,
    entries: usize,
}

impl Day {
    /// Adds a record. Those of a stream come in the order of their times. Answers whether there was room.
    pub fn add(&mut self, stream: &StreamName, at: Timestamp, fields: &Fields) -> bool {
        let hour = at.unix_micros().div_euclid(HOUR_MICROS).rem_euclid(24);
        let hour = u8::try_from(hour).unwrap_or_default();
        for (name, value) in fields {
            let Some(number) = number(value) else {
                continue;
            };
            let part = Part::of(number);
            if let Some(of) = self.streams.get_mut(stream)
                && let Some(of) = of.get_mut(name)
                && let Some(known) = of.get_mut(&hour)
            {
                *known = known.and(part);
                continue;
            }
            if self.entries >= ENTRIES_MAX {
                return false;
            }
            self.entries += 1;
            let of = self.streams.entry(stream.clone()).or_default();
            of.entry(name.clone()).or_default().insert(hour, part);
        }
        true
    }

    /// The streams that have numbers, as they are stored.
    #[must_use]
    pub fn finish(self) -> BTreeMap<StreamName, Hours> {
        let hours = |of: BTreeMap<u8, Part>| -> Vec<Hour> {
            of.into_iter()
                .map(|(hour, part)| Hour::new(hour, part))
                .collect()
        };
        let fields = |of: BTreeMap<FieldName, BTreeMap<u8, Part>>| -> Hours {
            of.into_iter().map(|(name, of)| (name, hours(of))).collect()
        };
        let streams = self.streams.into_iter();
        streams.map(|(stream, of)| (stream, fields(of))).collect()
    }
}

/// The number of a field, as the databases have it.
fn number(value: &FieldValue) -> Option<f64> {
    match value {
        #[expect(clippy::cast_precision_loss, reason = "as both databases do it")]
        FieldValue::Integer(number) => Some(*number as f64),
        FieldValue::Number(number) => Some(*number),
        FieldValue::Text(_) | FieldValue::Flag(_) => None,
    }
}

/// A part of a range, and whether roll-ups tell of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The part.
    pub range: Range,
    /// Whether every record in it is in a roll-up.
    pub rolled: bool,
}

/// A range, divided into what roll-ups of some days tell of and what lies before, between and behind. The days, counted
/// from 1970, come in their order. Of the first and the last one the hours are told of that are whole.
#[must_use]
pub fn segments(range: Range, days: &[i64]) -> Vec<Segment> {
    let time = |hour: i64| Timestamp::from_unix_micros(hour.saturating_mul(HOUR_MICROS));
    let last = range.until.unix_micros().div_euclid(HOUR_MICROS);
    let first = range.from.unix_micros().div_euclid(HOUR_MICROS);
    let first = if time(first) < range.from {
        first + 1
    } else {
        first
    };
    let mut all: Vec<Segment> = Vec::new();
    let mut add = |from: Timestamp, until: Timestamp, rolled: bool| {
        if from >= until {
            return;
        }
        match all.last_mut().filter(|last| last.rolled == rolled) {
            Some(last) => last.range.until = until,
            None => all.push(Segment {
                range: Range { from, until },
                rolled,
            }),
        }
    };
    let mut reached = range.from;
    for day in days {
        let hour = day.saturating_mul(24);
        let (from, until) = (hour.max(first), hour.saturating_add(24).min(last));
        if from < until {
            add(reached, time(from), false);
            add(time(from), time(until), true);
            reached = time(until);
        }
    }
    add(reached, range.until, false);
    all
}

/// Steps that are put together from parts.
#[derive(Debug)]
pub struct Steps {
    step: Step,
    parts: BTreeMap<Timestamp, Part>,
}

impl Steps {
    /// None yet.
    #[must_use]
    pub const fn new(step: Step) -> Self {
        Self {
            step,
            parts: BTreeMap::new(),
        }
    }

    /// Adds what the numbers of a time came to, which lies in one step. Times come in their order.
    pub fn add(&mut self, at: Timestamp, part: Part) {
        let start = self.step.start_of(at);
        let known = self.parts.get(&start).copied();
        let part = known.map_or(part, |known| known.and(part));
        self.parts.insert(start, part);
    }

    /// Each with its beginning.
    pub fn finish(self) -> impl Iterator<Item = (Timestamp, Part)> {
        self.parts.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_unix_micros(micros)
    }

    #[test]
    fn a_day_of_made_up_fields_is_not_rolled_up() {
        let stream: StreamName = "s".parse().unwrap();
        let mut day = Day::default();
        let mut added = 0;
        let has_room = |day: &mut Day, number: usize| {
            let name: FieldName = format!("f{number}").parse().unwrap();
            day.add(&stream, at(0), &[(name, FieldValue::Integer(1))].into())
        };
        while has_room(&mut day, added) {
            added += 1;
        }
        assert_eq!(added, ENTRIES_MAX);
        // What has its place is added up all the same.
        assert!(has_room(&mut day, 0));
    }

    proptest! {
        /// What a range is divided into covers it once, and roll-ups tell of whole hours of their days only.
        #[test]
        fn segments_cover_a_range_once(
            from in 0..100 * HOUR_MICROS,
            span in 1..100 * HOUR_MICROS,
            days in prop::collection::btree_set(-1_i64..9, 0..8),
        ) {
            let range = Range { from: at(from), until: at(from + span) };
            let days: Vec<i64> = days.into_iter().collect();
            let mut reached = range.from;
            for Segment { range: part, rolled } in segments(range, &days) {
                prop_assert_eq!(part.from, reached);
                prop_assert!(part.from < part.until);
                reached = part.until;
                if rolled {
                    for edge in [part.from, part.until] {
                        prop_assert_eq!(edge.unix_micros() % HOUR_MICROS, 0);
                    }
                    let of = |micros: i64| micros.div_euclid(24 * HOUR_MICROS);
                    let (first, last) = (of(part.from.unix_micros()), of(part.until.unix_micros() - 1));
                    prop_assert!((first..=last).all(|day| days.contains(&day)));
                }
            }
            prop_assert_eq!(reached, range.until);
        }

        /// Hours that were stored and read tell the same of a step as the numbers themselves.
        #[test]
        fn steps_of_hours_are_steps_of_their_numbers(
            numbers in prop::collection::vec((0..24 * HOUR_MICROS, -1e12_f64..1e12), 1..200),
            hours in 1_u64..30,
        ) {
            let mut numbers = numbers;
            numbers.sort_by_key(|(at, _)| *at);
            let (stream, field): (StreamName, FieldName) = ("s".parse().unwrap(), "f".parse().unwrap());
            let step = Step::new(std::time::Duration::from_secs(hours * 3_600)).unwrap();
            let (mut day, mut live) = (Day::default(), Steps::new(step));
            for (micros, number) in &numbers {
                let fields = [(field.clone(), FieldValue::Number(*number))].into();
                prop_assert!(day.add(&stream, at(*micros), &fields));
                live.add(at(*micros), Part::of(*number));
            }
            let stored = serde_json::to_string(&day.finish()[&stream]).unwrap();
            let read: Hours = serde_json::from_str(&stored).unwrap();
            let mut rolled = Steps::new(step);
            for hour in &read[&field] {
                let (begin, part) = hour.read(at(0));
                rolled.add(begin, part);
            }
            let (rolled, live): (Vec<_>, Vec<_>) = (rolled.finish().collect(), live.finish().collect());
            prop_assert_eq!(rolled.len(), live.len());
            for ((one, rolled), (other, live)) in rolled.into_iter().zip(live) {
                prop_assert_eq!(one, other);
                prop_assert_eq!(rolled.sums.records, live.sums.records);
                prop_assert_eq!(
                    (rolled.sums.least, rolled.sums.most, rolled.last),
                    (live.sums.least, live.sums.most, live.last)
                );
                prop_assert!((rolled.sums.scaled - live.sums.scaled).abs() < 1e-6);
            }
        }
    }
}
