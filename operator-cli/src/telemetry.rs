//! `viworks telemetry`: a gateway's streams, records and reported gaps.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use viworks_api::{TelemetryRecord, TelemetryRefusal};
use viworks_common::human;
use viworks_common::telemetry::FieldValue;
use viworks_common::time::Timestamp;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::exit::ExitCode;

use crate::cli::{rows, span};
use crate::client::Client;
use crate::error::Failure;
use crate::output::{self, Format};
use crate::run::program_name;

/// Which records.
#[derive(Debug, Args)]
pub struct Options {
    /// The gateway, by name or id
    #[arg(short, long, value_name = "NAME")]
    gateway: String,
    /// One stream, such as host.cpu; without it the streams are listed
    #[arg(long)]
    stream: Option<String>,
    /// How far back the records of the stream go
    #[arg(long, value_name = "SPAN", value_parser = span, default_value = "1h", requires = "stream")]
    since: Duration,
    /// Most records of the stream, the newest of them
    #[arg(long, value_name = "ROWS", value_parser = rows, default_value = "50", requires = "stream")]
    limit: usize,
    /// Show the counted ranges that were dropped and the records that were refused, and why
    #[arg(long, conflicts_with_all = ["stream", "since", "limit"])]
    gaps: bool,
}

/// Carries it out.
pub async fn execute(
    client: &Client,
    options: &Options,
    format: Format,
) -> Result<ExitCode, Failure> {
    if options.gaps {
        return gaps(client, options, format).await;
    }
    match &options.stream {
        None => streams(client, options, format).await,
        Some(stream) => records(client, options, stream, format).await,
    }
}

async fn gaps(client: &Client, options: &Options, format: Format) -> Result<ExitCode, Failure> {
    let list = client.telemetry_gaps(&options.gateway).await?;
    let now = SystemClock.wall();
    let refusals = client.telemetry_refusals(&options.gateway).await?.items;
    match format {
        Format::Json => output::json(&json!({
            "apiVersion": list.api_version,
            "kind": list.kind,
            "items": list.items,
            "refusals": refusals,
        }))?,
        Format::Table => {
            output::table(
                ["REPORTED", "SPOOL EPOCH", "FROM", "TO", "RECORDS", "REASON"],
                list.items.iter().map(|gap| {
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
            output::note(&human::counted(list.items.len(), "gap", "gaps"));
            if !refusals.is_empty() {
                refused(&refusals, now)?;
            }
        }
    }
    Ok(ExitCode::Ok)
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
    output::note(&format!("{} records were refused", human::count(records)));
    Ok(())
}

async fn streams(client: &Client, options: &Options, format: Format) -> Result<ExitCode, Failure> {
    let list = client.telemetry_streams(&options.gateway).await?;
    let now = SystemClock.wall();
    match format {
        Format::Json => output::json(&list)?,
        Format::Table => {
            output::table(
                ["STREAM", "NEWEST"],
                list.items.iter().map(|stream| {
                    [
                        stream.stream.to_string(),
                        human::relative(stream.newest, now),
                    ]
                }),
            )?;
            let program = program_name();
            output::note(&match list.items.first() {
                Some(first) => format!(
                    "one stream: {program} telemetry -g {} --stream {}",
                    options.gateway, first.stream
                ),
                None => format!(
                    "nothing arrived yet; whether it is connected: {program} gateway show {}",
                    options.gateway
                ),
            });
        }
    }
    Ok(ExitCode::Ok)
}

async fn records(
    client: &Client,
    options: &Options,
    stream: &str,
    format: Format,
) -> Result<ExitCode, Failure> {
    let now = SystemClock.wall();
    // Nothing is older than the beginning of what a time can say.
    let beginning = Timestamp::from_unix_micros(0);
    let from = now.saturating_sub(options.since).max(beginning);
    let mut records: Vec<TelemetryRecord> = Vec::new();
    let mut cursor: Option<String> = None;
    while records.len() < options.limit {
        let mut query = vec![
            ("gateway", options.gateway.clone()),
            ("stream", stream.to_owned()),
            ("from", from.to_string()),
            // The newest is what is looked for; what --limit leaves out is old.
            ("order", "desc".to_owned()),
            (
                "limit",
                (options.limit - records.len()).min(500).to_string(),
            ),
        ];
        query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
        let page = client.telemetry(&query).await?;
        records.extend(page.items);
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    if records.is_empty() {
        say_whether_it_is_there(client, options, stream).await?;
    }
    match format {
        Format::Json => output::json(
            &json!({"apiVersion": "viworks/v1", "kind": "TelemetryList", "items": records}),
        )?,
        Format::Table => {
            output::table(
                ["OBSERVED", "STREAM", "FIELDS"],
                records.iter().map(|record| {
                    [
                        human::relative(record.observed_at, now),
                        record.stream.to_string(),
                        fields(record),
                    ]
                }),
            )?;
            output::note(&format!(
                "{} of the last {}, newest first{}",
                human::counted(records.len(), "record", "records"),
                human::span(options.since),
                if cursor.is_some() {
                    "; older ones with --limit"
                } else if records.is_empty() {
                    "; further back with --since"
                } else {
                    ""
                }
            ));
        }
    }
    Ok(ExitCode::Ok)
}

/// A misspelt stream has no records either.
async fn say_whether_it_is_there(
    client: &Client,
    options: &Options,
    stream: &str,
) -> Result<(), Failure> {
    let known = client.telemetry_streams(&options.gateway).await?.items;
    if known.iter().any(|known| known.stream.as_str() == stream) {
        return Ok(());
    }
    let names: Vec<&str> = known.iter().map(|known| known.stream.as_str()).collect();
    output::note(&if names.is_empty() {
        format!("{} has delivered no stream yet", options.gateway)
    } else {
        format!(
            "{} has no stream {stream:?}; it has: {}",
            options.gateway,
            names.join(" ")
        )
    });
    Ok(())
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
