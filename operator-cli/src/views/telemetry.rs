//! A gateway's telemetry: streams, records, and what is missing of them.

use std::time::Duration;

use serde::Serialize;
use viworks_api::{
    TelemetryGapList, TelemetryList, TelemetryRecord, TelemetryRefusal, TelemetryStepList,
    TelemetryStreamList,
};
use viworks_common::human;
use viworks_common::telemetry::FieldValue;
use viworks_common::time::Timestamp;

use crate::client::Numbers;
use crate::failure::Failure;
use crate::output::{self, Format};
use crate::program;

/// What is missing, in one document.
#[derive(Serialize)]
struct Missing<'m> {
    #[serde(flatten)]
    gaps: &'m TelemetryGapList,
    refusals: &'m [TelemetryRefusal],
}

/// Prints what is missing: the reported gaps, and what arrived and was refused.
pub fn missing(
    gaps: &TelemetryGapList,
    refusals: &[TelemetryRefusal],
    format: Format,
    now: Timestamp,
) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(&Missing { gaps, refusals });
    }
    output::table(
        ["REPORTED", "SPOOL EPOCH", "FROM", "TO", "RECORDS", "REASON"],
        gaps.items.iter().map(|gap| {
            [
                human::relative(gap.reported_at, now),
                gap.spool_epoch.to_string(),
                gap.from_seq.to_string(),
                gap.to_seq.to_string(),
                gap.records.to_string(),
                gap.reason.name().to_owned(),
            ]
        }),
    )?;
    output::note(&human::counted(gaps.items.len(), "gap", "gaps"));
    if refusals.is_empty() {
        return Ok(());
    }
    refused(refusals, now)
}

/// What arrived and was not stored.
fn refused(refusals: &[TelemetryRefusal], now: Timestamp) -> Result<(), Failure> {
    let time =
        |at: Option<Timestamp>| at.map_or_else(|| "–".to_owned(), |at| human::relative(at, now));
    output::table(
        ["LAST REFUSED", "SPOOL EPOCH", "RECORDS", "REASON"],
        refusals.iter().map(|refusal| {
            [
                time(refusal.last_at),
                refusal
                    .spool_epoch
                    .map_or_else(|| "any other".to_owned(), |epoch| epoch.to_string()),
                refusal.records.to_string(),
                refusal.reason.name().to_owned(),
            ]
        }),
    )?;
    let records = refusals
        .iter()
        .fold(0_u64, |sum, it| sum.saturating_add(it.records));
    let refused = human::counted_all(records, "record was refused", "records were refused");
    output::note(&refused);
    Ok(())
}

/// Prints the streams of `gateway` and when each was heard last.
pub fn streams(
    gateway: &str,
    list: &TelemetryStreamList,
    format: Format,
    now: Timestamp,
) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(list);
    }
    output::table(
        ["STREAM", "NEWEST"],
        list.items.iter().map(|stream| {
            [
                stream.stream.to_string(),
                human::relative(stream.newest, now),
            ]
        }),
    )?;
    let program = program::name();
    output::note(&match list.items.first() {
        Some(first) => format!(
            "one stream: {program} telemetry -g {gateway} --stream {}",
            first.stream
        ),
        None => format!(
            "nothing arrived yet; whether it is connected: {program} gateway show {gateway}"
        ),
    });
    Ok(())
}

/// Prints records of the time since `since`, the newest first.
pub fn records(
    list: &TelemetryList,
    since: Duration,
    format: Format,
    now: Timestamp,
) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(list);
    }
    output::table(
        ["OBSERVED", "STREAM", "FIELDS"],
        list.items.iter().map(|record| {
            [
                human::relative(record.observed_at, now),
                record.stream.to_string(),
                fields(record),
            ]
        }),
    )?;
    output::note(&format!(
        "{} of the last {}, newest first{}",
        human::counted(list.items.len(), "record", "records"),
        human::span(since),
        if list.next.is_some() {
            "; older ones with --limit"
        } else if list.items.is_empty() {
            "; further back with --since"
        } else {
            ""
        }
    ));
    Ok(())
}

/// Prints numbers over time, the newest first.
pub fn steps(
    list: &TelemetryStepList,
    numbers: &Numbers<'_>,
    since: Duration,
    format: Format,
) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(list);
    }
    output::table(
        ["FROM", "VALUE", "RECORDS"],
        list.items.iter().map(|step| {
            [
                step.at.to_string(),
                step.value
                    .map_or_else(|| "beyond every number".to_owned(), number),
                human::count(step.records) + if step.partial { ", partial" } else { "" },
            ]
        }),
    )?;
    output::note(&format!(
        "{} of {} in {} of {}, of the last {}, newest first{}",
        numbers.aggregate.name(),
        numbers.field,
        human::counted(list.items.len(), "step", "steps"),
        numbers.step,
        human::span(since),
        if list.next.is_some() {
            "; older ones with --limit"
        } else if list.items.is_empty() {
            "; further back with --since"
        } else {
            ""
        }
    ));
    Ok(())
}

/// A number with three decimals at most, and a small one with its exponent.
fn number(number: f64) -> String {
    if number != 0.0 && number.abs() < 0.001 {
        return format!("{number:.3e}");
    }
    let text = format!("{number:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn fields(record: &TelemetryRecord) -> String {
    let parts: Vec<String> = record
        .fields
        .iter()
        .map(|(name, value)| match value {
            FieldValue::Integer(number) => format!("{name}={number}"),
            FieldValue::Number(number) => format!("{name}={number:.3}"),
            FieldValue::Text(text) => format!("{name}={text}"),
            FieldValue::Flag(flag) => format!("{name}={flag}"),
        })
        .collect();
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_are_short_and_never_rounded_to_nothing() {
        for (given, shown) in [
            (0.0, "0"),
            (100.0, "100"),
            (-2.5, "-2.5"),
            (1.0 / 3.0, "0.333"),
            (0.000_012, "1.200e-5"),
        ] {
            assert_eq!(number(given), shown);
        }
    }
}
