//! Telemetry over time: both stores tell of each step what a plain model of the same records tells.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use viworks_backend_agent::data::{Page, StepCursor, StepQuery, StepValue, Stepped};
use viworks_common::telemetry::steps::{Aggregate, Range, Step};
use viworks_common::telemetry::{Batch, FieldValue, Record};
use viworks_common::time::Timestamp;

use super::bed::{Bed, agent, at, process};
use super::telemetry::commit;

/// A record by its distance from [`at`] zero, in microseconds.
type Given = (i64, Option<FieldValue>);

fn batch(records: &[Given]) -> Batch {
    batch_from(1, records)
}

/// The same from a number.
fn batch_from(from_seq: u64, records: &[Given]) -> Batch {
    let record = |(micros, value): &Given| Record {
        stream: "host.load".parse().unwrap(),
        observed_at: Timestamp::from_unix_micros(at(0).unix_micros() + micros),
        fields: [("other".parse().unwrap(), FieldValue::Integer(1))]
            .into_iter()
            .chain(
                value
                    .clone()
                    .map(|value| ("load.m1-min_x".parse().unwrap(), value)),
            )
            .collect(),
    };
    Batch {
        spool_epoch: process(1),
        from_seq,
        to_seq: from_seq + u64::try_from(records.len()).unwrap() - 1,
        gaps: Vec::new(),
        records: (from_seq..).zip(records.iter().map(record)).collect(),
    }
}

fn values() -> impl Strategy<Value = Option<FieldValue>> {
    prop_oneof![
        6 => any::<i32>().prop_map(|number| Some(FieldValue::Integer(number.into()))),
        6 => (-1e9_f64..1e9).prop_map(|number| Some(FieldValue::Number(number))),
        1 => any::<i64>().prop_map(|number| Some(FieldValue::Integer(number))),
        1 => prop_oneof![Just(5e-324), Just(-1e-310), Just(1e-300), Just(-0.0)]
            .prop_map(|number| Some(FieldValue::Number(number))),
        1 => Just(Some(FieldValue::Text("12".to_owned()))),
        1 => any::<bool>().prop_map(|flag| Some(FieldValue::Flag(flag))),
        1 => Just(None),
    ]
}

fn query(step: Duration, aggregate: Aggregate, from: i64, until: i64) -> StepQuery {
    let zero = at(0).unix_micros();
    StepQuery {
        stream: "host.load".parse().unwrap(),
        field: "load.m1-min_x".parse().unwrap(),
        step: Step::new(step).unwrap(),
        aggregate,
        range: Range {
            from: Timestamp::from_unix_micros(zero + from),
            until: Timestamp::from_unix_micros(zero + until),
        },
        newest_first: false,
        rows_max: 500_000,
        bytes_max: 1 << 30,
    }
}

/// All pages, and how many there were.
async fn ask(bed: &Bed, n: u64, query: &StepQuery, limit: usize) -> (Vec<StepValue>, usize) {
    let (mut seen, mut pages, mut page) = (Vec::new(), 0, Page::first(limit));
    loop {
        let asked = bed
            .store
            .telemetry_steps(&bed.tenant, agent(n), query, page);
        let Stepped::Page(listing) = asked.await.unwrap() else {
            panic!("one step holds too many records");
        };
        assert!(listing.items.len() <= limit);
        seen.extend(listing.items);
        pages += 1;
        match listing.next {
            Some(next) => page = Page::after(next, limit),
            None => return (seen, pages),
        }
    }
}

/// A step, and how large its numbers are together.
type Expected = (StepValue, f64);

/// The same from the records as they were given.
fn model(records: &[Given], query: &StepQuery) -> Vec<Expected> {
    let zero = at(0).unix_micros();
    let mut steps: BTreeMap<i64, Vec<(i64, f64)>> = BTreeMap::new();
    for (micros, value) in records {
        let at = zero + micros;
        let inside = query.range.from.unix_micros() <= at && at < query.range.until.unix_micros();
        #[expect(clippy::cast_precision_loss, reason = "as both databases do it")]
        let number = match value {
            Some(FieldValue::Integer(number)) => *number as f64,
            Some(FieldValue::Number(number)) => *number,
            Some(FieldValue::Text(_) | FieldValue::Flag(_)) | None => continue,
        };
        if inside {
            let start = at.div_euclid(query.step.micros()) * query.step.micros();
            steps.entry(start).or_default().push((at, number));
        }
    }
    let told = steps.into_iter().map(|(start, mut numbers)| {
        // Stable: of the same time the one that came last is the last.
        numbers.sort_by_key(|(at, _)| *at);
        let each = || numbers.iter().map(|(_, number)| *number);
        #[expect(clippy::cast_precision_loss, reason = "a few")]
        let count = numbers.len() as f64;
        let value = match query.aggregate {
            Aggregate::Avg => each().map(|number| number / count).sum(),
            Aggregate::Min => each().fold(f64::INFINITY, f64::min),
            Aggregate::Max => each().fold(f64::NEG_INFINITY, f64::max),
            Aggregate::Sum => each().sum(),
            Aggregate::Count => count,
            Aggregate::Last => numbers.last().unwrap().1,
        };
        let step = StepValue {
            at: Timestamp::from_unix_micros(start),
            value: Some(value),
            records: u64::try_from(numbers.len()).unwrap(),
        };
        (step, each().map(f64::abs).sum())
    });
    let mut told: Vec<_> = told.collect();
    if query.newest_first {
        told.reverse();
    }
    told
}

/// Added up in another order, the last digits differ: those of all numbers of the step, without their signs.
fn alike(seen: &[StepValue], expected: &[Expected]) -> bool {
    let close = |one: Option<f64>, other: Option<f64>, size: f64| match (one, other) {
        (Some(one), Some(other)) => (one - other).abs() <= size * 1e-12 + 1e-280,
        (one, other) => one == other,
    };
    seen.len() == expected.len()
        && seen.iter().zip(expected).all(|(seen, (expected, size))| {
            (seen.at, seen.records) == (expected.at, expected.records)
                && close(seen.value, expected.value, *size)
        })
}

pub(crate) async fn steps_are_what_a_plain_model_says(bed: &Bed) {
    const HOUR: i64 = 3_600_000_000;
    let mut runner = TestRunner::default();
    let records = proptest::collection::vec((-30 * HOUR..HOUR, values()), 1..120);
    let questions = (
        1_u64..20_000_000,
        -31 * HOUR..HOUR,
        1..32 * HOUR,
        any::<bool>(),
        1_usize..20,
    );
    for case in 1..=8 {
        bed.gateway(case).await;
        bed.session(case, case).await;
        let given = records.new_tree(&mut runner).unwrap().current();
        let stored = commit(bed, case, batch(&given)).await;
        assert_eq!(stored.stored, u64::try_from(given.len()).unwrap());
        for aggregate in Aggregate::ALL {
            let (length, from, span, newest_first, limit) =
                questions.new_tree(&mut runner).unwrap().current();
            let mut query = query(Duration::from_millis(length), *aggregate, from, from + span);
            query.newest_first = newest_first;
            let expected = model(&given, &query);
            let (seen, _pages) = ask(bed, case, &query, limit).await;
            assert!(alike(&seen, &expected), "{query:?}\n{seen:?}\n{expected:?}");
        }
    }
}

pub(crate) async fn a_page_of_steps_looks_at_so_many_records_and_tells_of_none_twice(bed: &Bed) {
    const SECOND: i64 = 1_000_000;
    bed.gateway(1).await;
    bed.session(1, 1).await;
    // A record a second, and an hour without one.
    let given: Vec<Given> = (0..120_i64)
        .chain(3_700..3_760)
        .map(|second| ((second - 7_200) * SECOND, Some(FieldValue::Integer(second))))
        .collect();
    commit(bed, 1, batch(&given)).await;
    for newest_first in [false, true] {
        let mut query = query(Duration::from_secs(10), Aggregate::Sum, -7_200 * SECOND, 0);
        query.newest_first = newest_first;
        let expected = model(&given, &query);
        assert_eq!(expected.len(), 18);
        // Whole steps of ten records: three of them, where a page looks at thirty-nine.
        query.rows_max = 39;
        let (seen, pages) = ask(bed, 1, &query, 100).await;
        assert!(alike(&seen, &expected) && pages > 5, "{pages} {seen:?}");
        // Each record's fields are thirty bytes and a little.
        (query.rows_max, query.bytes_max) = (1_000, 1_100);
        let (seen, pages) = ask(bed, 1, &query, 100).await;
        assert!(alike(&seen, &expected) && pages > 5, "{pages} {seen:?}");
        query.bytes_max = 100;
        let page: Page<StepCursor> = Page::first(100);
        let asked = bed
            .store
            .telemetry_steps(&bed.tenant, agent(1), &query, page);
        assert_eq!(asked.await.unwrap(), Stepped::TooManyRecords);
        (query.rows_max, query.bytes_max) = (9, 1 << 30);
        let page: Page<StepCursor> = Page::first(100);
        let asked = bed
            .store
            .telemetry_steps(&bed.tenant, agent(1), &query, page);
        assert_eq!(asked.await.unwrap(), Stepped::TooManyRecords);
    }
    let mut other = query(Duration::from_secs(10), Aggregate::Sum, -7_200 * SECOND, 0);
    other.field = "other".parse().unwrap();
    other.aggregate = Aggregate::Count;
    assert_eq!(ask(bed, 1, &other, 100).await.0.len(), 18);
    other.field = "none".parse().unwrap();
    assert_eq!(ask(bed, 1, &other, 5).await.0, []);
    other.stream = "none".parse().unwrap();
    assert_eq!(ask(bed, 1, &other, 5).await, (Vec::new(), 1));
}

pub(crate) async fn the_smallest_numbers_are_numbers(bed: &Bed) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    let given = [5e-324, 1e-310, 4.0].map(FieldValue::Number);
    let given = (-3_i64..).zip(given.map(Some));
    commit(bed, 1, batch(&given.collect::<Vec<_>>())).await;
    for (aggregate, value) in [
        (Aggregate::Sum, 4.0),
        (Aggregate::Avg, 4.0 / 3.0),
        (Aggregate::Min, 5e-324),
        (Aggregate::Max, 4.0),
        (Aggregate::Last, 4.0),
        (Aggregate::Count, 3.0),
    ] {
        let query = query(Duration::from_secs(1), aggregate, -1_000_000, 0);
        let (seen, _pages) = ask(bed, 1, &query, 10).await;
        assert_eq!((seen.len(), seen[0].records), (1, 3));
        assert_eq!(seen[0].value, Some(value), "{aggregate:?}");
    }
}

/// Every mixture of the smallest and the greatest has an answer that is a number or nothing, and a mean among them.
pub(crate) async fn numbers_at_both_ends_have_answers(bed: &Bed) {
    const ENDS: [f64; 8] = [
        5e-324,
        f64::MIN_POSITIVE,
        9.9e-291,
        1.1e-290,
        f64::MAX,
        f64::MIN,
        -5e-324,
        0.0,
    ];
    bed.gateway(1).await;
    bed.session(1, 1).await;
    // Every subset of them in a second of its own.
    let members = |set: usize| (0..ENDS.len()).filter(move |place| set & (1 << place) != 0);
    let mut given: Vec<Given> = Vec::new();
    for set in 1..1_usize << ENDS.len() {
        let second = i64::try_from(set).unwrap() * -1_000_000;
        let of = (0_i64..).zip(members(set));
        given.extend(
            of.map(|(micros, place)| (second + micros, Some(FieldValue::Number(ENDS[place])))),
        );
    }
    given.sort_by_key(|(micros, _)| *micros);
    commit(bed, 1, batch(&given)).await;
    let sets = 1_i64 << ENDS.len();
    for aggregate in Aggregate::ALL {
        let query = query(Duration::from_secs(1), *aggregate, -sets * 1_000_000, 0);
        let (seen, _pages) = ask(bed, 1, &query, 100).await;
        assert_eq!(seen.len(), 255);
        for (set, step) in (1_usize..256).rev().zip(seen) {
            let numbers = || members(set).map(|place| ENDS[place]);
            let (least, most) = (
                numbers().fold(f64::INFINITY, f64::min),
                numbers().fold(f64::NEG_INFINITY, f64::max),
            );
            assert_eq!(step.records, u64::from(set.count_ones()));
            let Some(told) = step.value else {
                assert!(matches!(aggregate, Aggregate::Sum), "{aggregate:?} {set}");
                continue;
            };
            assert!(told.is_finite(), "{aggregate:?} {set} {told}");
            match aggregate {
                Aggregate::Avg => assert!((least..=most).contains(&told), "{set} {told}"),
                Aggregate::Min => assert_eq!(told, least),
                Aggregate::Max => assert_eq!(told, most),
                Aggregate::Sum | Aggregate::Count | Aggregate::Last => {}
            }
        }
    }
}

pub(crate) async fn a_sum_beyond_every_number_is_absent(bed: &Bed) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    let huge = |micros| (micros, Some(FieldValue::Number(f64::MAX)));
    commit(bed, 1, batch(&[huge(-3), huge(-2), huge(-1)])).await;
    for (aggregate, value) in [
        (Aggregate::Sum, None),
        (Aggregate::Avg, Some(f64::MAX)),
        (Aggregate::Max, Some(f64::MAX)),
        (Aggregate::Last, Some(f64::MAX)),
        (Aggregate::Count, Some(3.0)),
    ] {
        let query = query(Duration::from_secs(1), aggregate, -1_000_000, 0);
        let (seen, _pages) = ask(bed, 1, &query, 10).await;
        assert_eq!((seen.len(), seen[0].records), (1, 3));
        let close = match (seen[0].value, value) {
            (Some(seen), Some(value)) => (seen / value - 1.0).abs() < 1e-12,
            (seen, value) => seen == value,
        };
        assert!(close, "{aggregate:?} {seen:?}");
    }
}

/// Rolls up everything that is due at that second; answers how many days of gateways that was.
async fn roll_up(bed: &Bed, now: i64) -> u64 {
    let mut days = 0;
    loop {
        let rolled = bed.store.roll_up_telemetry(&bed.tenant, at(now)).await;
        let rolled = rolled.unwrap();
        days += rolled.days;
        if !rolled.more {
            return days;
        }
    }
}

pub(crate) async fn days_that_are_rolled_up_tell_what_their_records_told(bed: &Bed) {
    const HOUR: i64 = 3_600_000_000;
    let mut runner = TestRunner::default();
    // Two at least: some come at once and some late, and no batch is empty.
    let records = proptest::collection::vec((-90 * HOUR..HOUR, values()), 2..120);
    let questions = (
        1_u64..40,
        -100 * HOUR..HOUR,
        1..101 * HOUR,
        any::<bool>(),
        1_usize..20,
    );
    for case in 1..=6 {
        bed.gateway(case).await;
        bed.session(case, case).await;
        // Some of it comes late: when its days are rolled up.
        let mut given = records.new_tree(&mut runner).unwrap().current();
        let late = given.split_off(given.len() * 3 / 4);
        commit(bed, case, batch(&given)).await;
        let mut asked = async |given: &[Given]| {
            for aggregate in Aggregate::ALL {
                let (hours, from, span, newest_first, limit) =
                    questions.new_tree(&mut runner).unwrap().current();
                let step = Duration::from_secs(hours * 3_600);
                let mut query = query(step, *aggregate, from, from + span);
                query.newest_first = newest_first;
                let expected = model(given, &query);
                let (seen, _pages) = ask(bed, case, &query, limit).await;
                assert!(alike(&seen, &expected), "{query:?}\n{seen:?}\n{expected:?}");
            }
        };
        asked(&given).await;
        roll_up(bed, 0).await;
        assert_eq!(roll_up(bed, 0).await, 0, "nothing has changed");
        asked(&given).await;
        let before = u64::try_from(given.len()).unwrap();
        commit(bed, case, batch_from(before + 1, &late)).await;
        given.extend(late);
        asked(&given).await;
        roll_up(bed, 0).await;
        asked(&given).await;
    }
}

pub(crate) async fn roll_ups_outlive_the_records(bed: &Bed) {
    const DAY: i64 = 24 * 3_600;
    const MICROS: i64 = 1_000_000;
    bed.gateway(1).await;
    bed.session(1, 1).await;
    let given: Vec<Given> = (0..200)
        .map(|n| ((n * 997 - 200_000) * MICROS, Some(FieldValue::Integer(n))))
        .collect();
    commit(bed, 1, batch(&given)).await;
    // Today is not over, and not rolled up.
    let days = roll_up(bed, 0).await;
    assert!((2..=3).contains(&days), "{days}");
    assert_eq!(roll_up(bed, 3 * DAY).await, 1);
    // The suite keeps records for thirty days.
    let later = 40 * DAY;
    let mut after = None;
    loop {
        let purged = bed
            .store
            .purge_telemetry(&bed.tenant, after, 500, at(later));
        let purged = purged.await.unwrap();
        after = purged.after;
        if !purged.more {
            break;
        }
    }
    assert_eq!(roll_up(bed, later).await, 0);
    for aggregate in Aggregate::ALL {
        for newest_first in [false, true] {
            let hour = Duration::from_secs(3_600);
            let mut hours = query(hour, *aggregate, -60 * 3_600 * MICROS, 3_600 * MICROS);
            hours.newest_first = newest_first;
            let expected = model(&given, &hours);
            assert!(expected.len() > 40);
            let (seen, _pages) = ask(bed, 1, &hours, 7).await;
            assert!(alike(&seen, &expected), "{seen:?}\n{expected:?}");
        }
    }
    // What is not told of in hours is gone with the records.
    let minutes = query(
        Duration::from_secs(60),
        Aggregate::Count,
        -60 * 3_600 * MICROS,
        0,
    );
    assert_eq!(ask(bed, 1, &minutes, 7).await.0, []);
    // And roll-ups go in their time.
    assert_eq!(roll_up(bed, 740 * DAY).await, 0);
    let hours = query(
        Duration::from_secs(3_600),
        Aggregate::Count,
        -60 * 3_600 * MICROS,
        0,
    );
    assert_eq!(ask(bed, 1, &hours, 7).await.0, []);
}
