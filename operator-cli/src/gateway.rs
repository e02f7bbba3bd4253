//! `viworks gateway`: who the gateways are and whether they answer.

use clap::Subcommand;
use serde_json::json;
use viworks_common::api::{Gateway, GatewayStatus};
use viworks_runtime::exit::ExitCode;

use crate::client::Client;
use crate::error::Failure;
use crate::output::{self, Format, one_line};

/// What to do with gateways.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List gateways
    Ls {
        /// Only those with this status
        #[arg(long, value_parser = status)]
        status: Option<GatewayStatus>,
    },
    /// Show one gateway
    Show {
        /// Its name or id
        gateway: String,
    },
}

fn status(text: &str) -> Result<GatewayStatus, String> {
    GatewayStatus::ALL
        .iter()
        .copied()
        .find(|status| status.name() == text)
        .ok_or_else(|| {
            let names: Vec<&str> = GatewayStatus::ALL
                .iter()
                .map(|status| status.name())
                .collect();
            format!("expected one of {}", names.join(", "))
        })
}

/// Carries it out.
pub async fn execute(client: &Client, verb: Verb, format: Format) -> Result<ExitCode, Failure> {
    match verb {
        Verb::Ls { status } => {
            let mut gateways = client.gateways().await?;
            gateways.retain(|gateway| status.is_none_or(|status| gateway.status == status));
            ls(&gateways, format)?;
        }
        Verb::Show { gateway } => show(&client.gateway(&gateway).await?, format)?,
    }
    Ok(ExitCode::Ok)
}

fn ls(gateways: &[Gateway], format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => output::json(
            &json!({"apiVersion": "viworks/v1", "kind": "GatewayList", "items": gateways}),
        ),
        Format::Table => {
            output::table(
                [
                    "NAME",
                    "STATUS",
                    "VERSION",
                    "RTT",
                    "QUEUE",
                    "LAST SEEN",
                    "LABELS",
                ],
                gateways.iter().map(|gateway| {
                    [
                        gateway.name.to_string(),
                        word(gateway.status).to_owned(),
                        gateway
                            .agent_version
                            .clone()
                            .unwrap_or_else(|| "–".to_owned()),
                        gateway.round_trip_us.map_or_else(
                            || "–".to_owned(),
                            |us| format!("{}.{} ms", us / 1_000, us % 1_000 / 100),
                        ),
                        gateway.queued_commands.to_string(),
                        gateway
                            .last_seen
                            .map_or_else(|| "never".to_owned(), |at| at.to_string()),
                        labels(gateway),
                    ]
                }),
            )?;
            let counts: Vec<String> = GatewayStatus::ALL
                .iter()
                .map(|status| {
                    (
                        gateways
                            .iter()
                            .filter(|gateway| gateway.status == *status)
                            .count(),
                        status.name(),
                    )
                })
                .filter(|(count, _name)| *count > 0)
                .map(|(count, name)| format!("{count} {name}"))
                .collect();
            output::note(&format!(
                "{} gateways: {}",
                gateways.len(),
                counts.join(", ")
            ));
            Ok(())
        }
    }
}

const fn word(status: GatewayStatus) -> &'static str {
    match status {
        GatewayStatus::Online => "● online",
        GatewayStatus::Offline => "○ offline",
        GatewayStatus::Never => "◌ never",
        GatewayStatus::Revoked => "✕ revoked",
        GatewayStatus::Blocked => "✕ blocked",
    }
}

fn labels(gateway: &Gateway) -> String {
    let labels: Vec<String> = gateway
        .labels
        .iter()
        .map(|label| format!("{}={}", label.key, label.value))
        .collect();
    one_line(&labels.join(","))
}

fn show(gateway: &Gateway, format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(gateway);
    }
    let unknown = || "–".to_owned();
    let mut rows = vec![
        ("name", gateway.name.to_string()),
        ("id", gateway.id.to_string()),
        (
            "status",
            format!("{} since {}", word(gateway.status), gateway.since),
        ),
        (
            "version",
            gateway.agent_version.clone().unwrap_or_else(unknown),
        ),
        ("labels", labels(gateway)),
        (
            "last seen",
            gateway
                .last_seen
                .map_or_else(|| "never".to_owned(), |at| at.to_string()),
        ),
        (
            "round trip",
            gateway
                .round_trip_us
                .map_or_else(unknown, |us| format!("{us} us")),
        ),
        (
            "clock skew",
            gateway
                .clock_skew_ms
                .map_or_else(unknown, |ms| format!("{ms} ms")),
        ),
        ("queued", gateway.queued_commands.to_string()),
        (
            "running",
            gateway
                .running_commands
                .map_or_else(unknown, |count| count.to_string()),
        ),
        (
            "catalogue",
            gateway
                .catalogue_digest
                .clone()
                .unwrap_or_else(|| "not reported yet".to_owned()),
        ),
        ("forks", gateway.forks.to_string()),
    ];
    if let Some(session) = &gateway.session {
        rows.push((
            "session",
            format!(
                "{} epoch {} from {}",
                session.id, session.epoch, session.peer_address
            ),
        ));
    }
    if let Some(spool) = &gateway.spool {
        rows.push((
            "spool",
            format!("{} records waiting, {} bytes", spool.records, spool.bytes),
        ));
    }
    rows.into_iter()
        .try_for_each(|(name, value)| output::line(&format!("{name:<11} {}", one_line(&value))))
}
