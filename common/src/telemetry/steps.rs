//! Telemetry over time: steps of one length that all begin at multiples of it, and what is told of each.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::human;
use crate::time::Timestamp;

/// Steps that one question may span.
pub const STEPS_MAX: u64 = 10_000;

/// The longest step.
const STEP_MAX: Duration = Duration::from_secs(366 * 24 * 3_600);

/// What is told of the records of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Aggregate {
    /// The mean.
    Avg,
    /// The least.
    Min,
    /// The most.
    Max,
    /// All together.
    Sum,
    /// How many there are.
    Count,
    /// The one that was observed last.
    Last,
}

impl Aggregate {
    /// Every one.
    pub const ALL: &[Self] = &[
        Self::Avg,
        Self::Min,
        Self::Max,
        Self::Sum,
        Self::Count,
        Self::Last,
    ];

    /// The word in questions and answers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Avg => "avg",
            Self::Min => "min",
            Self::Max => "max",
            Self::Sum => "sum",
            Self::Count => "count",
            Self::Last => "last",
        }
    }

    /// The one with a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|known| known.name() == name)
    }
}

/// The length of steps, in microseconds. Each step begins at a multiple of it since 1970-01-01T00:00:00Z, whatever is
/// asked, so that the same step holds the same records in every answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Step(i64);

/// What is no length of steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the step is not valid: a number and ms, s, m, h or d, from 1ms to 366d, such as 5m")]
pub struct InvalidStep;

impl Step {
    /// Steps of this length: a millisecond at least, and a year at most.
    ///
    /// # Errors
    /// When it is shorter or longer.
    pub fn new(length: Duration) -> Result<Self, InvalidStep> {
        if length < Duration::from_millis(1) || length > STEP_MAX {
            return Err(InvalidStep);
        }
        let micros = i64::try_from(length.as_micros());
        micros.map(Self).map_err(|_too_long| InvalidStep)
    }

    /// Its length in microseconds.
    #[must_use]
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// When the step begins that a time lies in.
    #[must_use]
    pub const fn start_of(self, at: Timestamp) -> Timestamp {
        let micros = at.unix_micros();
        Timestamp::from_unix_micros(micros.saturating_sub(micros.rem_euclid(self.0)))
    }

    /// When the step ends that begins at `start`.
    #[must_use]
    pub const fn end_of(self, start: Timestamp) -> Timestamp {
        self.after(start, 1)
    }

    /// So many steps later.
    const fn after(self, at: Timestamp, steps: i64) -> Timestamp {
        let span = self.0.saturating_mul(steps);
        Timestamp::from_unix_micros(at.unix_micros().saturating_add(span))
    }

    /// How many steps a range touches at most, its ends being anywhere in them.
    #[must_use]
    pub fn spanned(self, from: Timestamp, until: Timestamp) -> u64 {
        let span = i128::from(until.unix_micros()) - i128::from(from.unix_micros());
        let steps = span.max(0).div_euclid(i128::from(self.0)) + 1;
        u64::try_from(steps).unwrap_or(u64::MAX)
    }

    /// The part of a range that begins with the step of `first` and holds so many steps.
    #[must_use]
    pub fn forward(self, range: Range, first: Timestamp, steps: usize) -> Range {
        let steps = i64::try_from(steps).unwrap_or(i64::MAX);
        let start = self.start_of(first);
        Range {
            from: start.max(range.from),
            until: self.after(start, steps).min(range.until),
        }
    }

    /// The part of a range that ends with the step of `last` and holds so many steps.
    #[must_use]
    pub fn backward(self, range: Range, last: Timestamp, steps: usize) -> Range {
        let steps = i64::try_from(steps).unwrap_or(i64::MAX);
        let end = self.end_of(self.start_of(last));
        Range {
            from: self.after(end, steps.saturating_neg()).max(range.from),
            until: end.min(range.until),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = self.0 / 1_000;
        for (unit, length) in [
            ("d", 86_400_000),
            ("h", 3_600_000),
            ("m", 60_000),
            ("s", 1_000),
        ] {
            if milliseconds % length == 0 {
                return write!(f, "{}{unit}", milliseconds / length);
            }
        }
        write!(f, "{milliseconds}ms")
    }
}

impl FromStr for Step {
    type Err = InvalidStep;

    fn from_str(text: &str) -> Result<Self, InvalidStep> {
        human::parse_span(text)
            .ok_or(InvalidStep)
            .and_then(Self::new)
    }
}

impl<'de> Deserialize<'de> for Step {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// A range of time; its end is not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// What is at this time or later.
    pub from: Timestamp,
    /// What is before this time.
    pub until: Timestamp,
}

/// By what numbers are divided before they are added up: as many as a database can hold stay below the greatest number
/// then, and a power of two changes no digit.
pub const SUM_SCALE: f64 = 4_294_967_296.0;

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sums {
    /// How many records have a number there.
    pub records: u64,
    /// All of them added up, each divided by [`SUM_SCALE`].
    pub scaled: f64,
    /// The least.
    pub least: f64,
    /// The greatest.
    pub most: f64,
}

impl Sums {
    /// What is asked of them; [`Aggregate::Last`] is no matter of sums. `None` when it is beyond every number.
    ///
    /// A sum in parts is off at the ends of what numbers can be: what is too small to be divided was left out, and the
    /// mean of the greatest may come out beyond them. A mean is never outside of its numbers, nor a sum of as many.
    #[must_use]
    pub fn tell(self, aggregate: Aggregate) -> Option<f64> {
        #[expect(
            clippy::cast_precision_loss,
            reason = "fewer records than a double can count"
        )]
        let records = self.records as f64;
        let told = match aggregate {
            Aggregate::Avg => between(self.least, self.scaled / records * SUM_SCALE, self.most),
            Aggregate::Sum => between(
                self.least * records,
                self.scaled * SUM_SCALE,
                self.most * records,
            ),
            Aggregate::Min => self.least,
            Aggregate::Max => self.most,
            Aggregate::Count => records,
            Aggregate::Last => return None,
        };
        told.is_finite().then_some(told)
    }
}

/// The number, or the bound that it is beyond. `clamp` would panic at bounds that a damaged roll-up may have.
const fn between(least: f64, number: f64, most: f64) -> f64 {
    number.max(least).min(most)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_unix_micros(micros)
    }

    fn step(text: &str) -> Step {
        text.parse().unwrap()
    }

    #[test]
    fn steps_are_read_as_they_are_shown_or_refused() {
        for text in ["1ms", "1500ms", "90s", "5m", "1h", "36h", "7d", "366d"] {
            assert_eq!(step(text).to_string(), text);
        }
        assert_eq!(step("60s"), step("1m"));
        for text in [
            "",
            "5",
            "0s",
            "0ms",
            "367d",
            "-5m",
            "5 m",
            "99999999999999999999d",
        ] {
            assert_eq!(text.parse::<Step>(), Err(InvalidStep), "{text}");
        }
    }

    #[test]
    fn every_aggregate_has_a_name_that_reads_as_it() {
        for aggregate in Aggregate::ALL {
            assert_eq!(Aggregate::from_name(aggregate.name()), Some(*aggregate));
        }
        assert_eq!(Aggregate::from_name("median"), None);
    }

    #[test]
    fn what_is_beyond_every_number_is_not_told() {
        let sums = Sums {
            records: 2,
            scaled: f64::MAX / SUM_SCALE * 2.0,
            least: f64::MAX,
            most: f64::MAX,
        };
        assert_eq!(sums.tell(Aggregate::Sum), None);
        assert_eq!(sums.tell(Aggregate::Avg), Some(f64::MAX));
        assert_eq!(sums.tell(Aggregate::Count), Some(2.0));
    }

    #[test]
    fn a_mean_is_never_outside_of_its_numbers() {
        // The parts of the smallest were left out; those of the greatest come out a little too great.
        let smallest = Sums {
            records: 3,
            scaled: 0.0,
            least: 5e-324,
            most: 1e-300,
        };
        assert_eq!(smallest.tell(Aggregate::Avg), Some(5e-324));
        assert_eq!(smallest.tell(Aggregate::Sum), Some(1.5e-323));
        let part = f64::MAX / SUM_SCALE;
        let greatest = Sums {
            records: 3,
            scaled: (part * 3.0).next_up(),
            least: f64::MAX,
            most: f64::MAX,
        };
        assert_eq!(greatest.tell(Aggregate::Avg), Some(f64::MAX));
        let lowest = Sums {
            records: 1,
            scaled: 0.0,
            least: -5e-324,
            most: -5e-324,
        };
        assert_eq!(lowest.tell(Aggregate::Sum), Some(-5e-324));
        let damaged = Sums {
            least: 2.0,
            most: 1.0,
            ..lowest
        };
        assert_eq!(damaged.tell(Aggregate::Avg), Some(1.0));
    }

    proptest! {
        /// A step begins at a multiple of its length, at or before what lies in it, and never as long ago as its
        /// length.
        #[test]
        fn a_time_lies_in_its_step(
            micros in -2_000_000_000_000_000_i64..4_000_000_000_000_000,
            length in 1_u64..31_622_400_000,
        ) {
            let step = Step::new(Duration::from_millis(length)).unwrap();
            let start = step.start_of(at(micros));
            prop_assert_eq!(start.unix_micros().rem_euclid(step.micros()), 0);
            prop_assert!(start <= at(micros) && at(micros) < step.end_of(start));
        }

        /// Parts of a range that follow each other cover it once, whichever way they go.
        #[test]
        fn parts_cover_a_range_once(
            from in -1_000_i64..1_000, span in 1_i64..5_000, length in 1_i64..300, steps in 1_usize..6,
        ) {
            let step = Step(length);
            let range = Range { from: at(from), until: at(from + span) };
            let mut rest = range;
            while rest.from < rest.until {
                let part = step.forward(rest, rest.from, steps);
                prop_assert_eq!(part.from, rest.from);
                prop_assert!(part.until == range.until || step.start_of(part.until) == part.until);
                prop_assert!(part.until > part.from);
                rest.from = part.until;
            }
            rest = range;
            while rest.from < rest.until {
                let part = step.backward(rest, at(rest.until.unix_micros() - 1), steps);
                prop_assert_eq!(part.until, rest.until);
                prop_assert!(part.from == range.from || step.start_of(part.from) == part.from);
                prop_assert!(part.until > part.from);
                rest.until = part.from;
            }
            prop_assert!(step.spanned(range.from, range.until) > 0);
        }
    }
}
