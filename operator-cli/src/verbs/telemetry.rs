//! `viworks telemetry`: a gateway's streams, records and reported gaps.

use viworks_common::time::Timestamp;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::exit::ExitCode;

use crate::client::Client;
use crate::failure::Failure;
use crate::flags::Telemetry;
use crate::output::{self, Format};
use crate::views;

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
    } else if let Some(stream) = &flags.stream {
        records(client, flags, stream, format).await?;
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
) -> Result<(), Failure> {
    let now = SystemClock.wall();
    // Nothing is older than the beginning of what a time can say.
    let beginning = Timestamp::from_unix_micros(0);
    let from = now.saturating_sub(flags.since).max(beginning);
    let records = client
        .telemetry(&flags.gateway, stream, from, flags.limit)
        .await?;
    if records.items.is_empty() {
        say_whether_it_is_there(client, flags, stream).await?;
    }
    views::telemetry::records(&records, flags.since, format, now)
}

/// A misspelt stream has no records either.
async fn say_whether_it_is_there(
    client: &Client,
    flags: &Telemetry,
    stream: &str,
) -> Result<(), Failure> {
    let known = client.telemetry_streams(&flags.gateway).await?.items;
    if known.iter().any(|known| known.stream.as_str() == stream) {
        return Ok(());
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
    Ok(())
}
