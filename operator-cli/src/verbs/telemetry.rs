//! `viworks telemetry`: a gateway's streams, records and reported gaps.

use viworks_api::TelemetryRecord;
use viworks_common::telemetry::FieldValue;
use viworks_common::time::Timestamp;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::exit::ExitCode;

use crate::client::{ALL, Client, Numbers};
use crate::failure::Failure;
use crate::flags::Telemetry;
use crate::output::{self, Format};
use crate::views;

/// Records of a stream when nobody says how many.
const RECORDS: usize = 50;

const BEGINNING: Timestamp = Timestamp::from_unix_micros(0);

pub(super) async fn execute(
    client: &Client,
    flags: &Telemetry,
    format: Format,
) -> Result<ExitCode, Failure> {
    let gateway = flags.gateway.as_str();
    if flags.gaps {
        let gaps = client.telemetry_gaps(gateway).await?;
        let refusals = client.telemetry_refusals(gateway).await?.items;
        views::telemetry::missing(&gaps, &refusals, format, SystemClock.wall())?;
    } else if let (Some(stream), Some(field), Some(step)) =
        (&flags.stream, &flags.field, flags.step)
    {
        let numbers = Numbers {
            stream,
            field,
            step,
            aggregate: flags.agg,
        };
        return steps(client, flags, &numbers, format).await;
    } else if let Some(stream) = &flags.stream {
        return records(client, flags, stream, format).await;
    } else {
        let streams = client.telemetry_streams(gateway).await?;
        views::telemetry::streams(gateway, &streams, format, SystemClock.wall())?;
    }
    Ok(ExitCode::Ok)
}

async fn records(
    client: &Client,
    flags: &Telemetry,
    stream: &str,
    format: Format,
) -> Result<ExitCode, Failure> {
    let now = SystemClock.wall();
    let limit = flags.limit.unwrap_or(RECORDS);
    let records = client
        .telemetry(&flags.gateway, stream, since(flags, now), limit)
        .await?;
    let is_there =
        !records.items.is_empty() || say_whether_it_is_there(client, flags, stream).await?;
    views::telemetry::records(&records, flags.since, format, now)?;
    Ok(found(is_there))
}

/// A stream that is not there is no answer of nothing.
const fn found(is_there: bool) -> ExitCode {
    if is_there {
        ExitCode::Ok
    } else {
        ExitCode::NotFound
    }
}

async fn steps(
    client: &Client,
    flags: &Telemetry,
    numbers: &Numbers<'_>,
    format: Format,
) -> Result<ExitCode, Failure> {
    let now = SystemClock.wall();
    // The oldest step is whole.
    let from = numbers.step.start_of(since(flags, now));
    let limit = flags.limit.unwrap_or(ALL);
    let steps = client
        .telemetry_steps(&flags.gateway, numbers, from, limit)
        .await?;
    let mut is_there = true;
    if steps.items.is_empty() {
        is_there = say_whether_it_is_there(client, flags, numbers.stream).await?;
        if is_there {
            say_which_fields_it_has(client, flags, numbers).await?;
        }
    }
    views::telemetry::steps(&steps, numbers, flags.since, format)?;
    Ok(found(is_there))
}

/// Nothing is older than the beginning of what a time can say.
fn since(flags: &Telemetry, now: Timestamp) -> Timestamp {
    now.saturating_sub(flags.since).max(BEGINNING)
}

/// A misspelt field has no numbers either.
async fn say_which_fields_it_has(
    client: &Client,
    flags: &Telemetry,
    numbers: &Numbers<'_>,
) -> Result<(), Failure> {
    let newest = client
        .telemetry(&flags.gateway, numbers.stream, BEGINNING, 1)
        .await?;
    let Some(newest) = newest.items.first() else {
        return Ok(());
    };
    let names = fields_with_numbers(newest);
    if !names.contains(&numbers.field) {
        output::note(&format!(
            "the newest record of {} has no number in {:?}; it has: {}",
            numbers.stream,
            numbers.field,
            if names.is_empty() {
                "none at all".to_owned()
            } else {
                names.join(" ")
            }
        ));
    }
    Ok(())
}

fn fields_with_numbers(record: &TelemetryRecord) -> Vec<&str> {
    let numbers = record.fields.iter().filter(|(_name, value)| match value {
        FieldValue::Integer(_) | FieldValue::Number(_) => true,
        FieldValue::Text(_) | FieldValue::Flag(_) => false,
    });
    numbers.map(|(name, _number)| name.as_str()).collect()
}

/// A misspelt stream has no records either. Answers whether there is such a stream.
async fn say_whether_it_is_there(
    client: &Client,
    flags: &Telemetry,
    stream: &str,
) -> Result<bool, Failure> {
    let known = client.telemetry_streams(&flags.gateway).await?.items;
    if known.iter().any(|known| known.stream.as_str() == stream) {
        return Ok(true);
    }
    let names: Vec<&str> = known.iter().map(|known| known.stream.as_str()).collect();
    output::note(&if names.is_empty() {
        format!("{} has delivered no stream yet", flags.gateway)
    } else {
        format!(
            "{} has no stream {stream:?}; it has: {}",
            flags.gateway,
            names.join(" ")
        )
    });
    Ok(false)
}
