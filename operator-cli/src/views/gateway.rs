//! Gateways: who they are and whether they answer.

use viworks_api::{Gateway, GatewayList, GatewayStatus};
use viworks_common::human;
use viworks_common::time::Timestamp;

use crate::failure::Failure;
use crate::output::{self, Format, one_line};
use crate::program;

/// Prints a row for each, and how many of them are how.
pub fn list(list: &GatewayList, format: Format, now: Timestamp) -> Result<(), Failure> {
    match format {
        Format::Json => output::json(list),
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
                list.items.iter().map(|gateway| {
                    [
                        gateway.name.to_string(),
                        word(gateway.status).to_owned(),
                        gateway
                            .agent_version
                            .clone()
                            .unwrap_or_else(|| "–".to_owned()),
                        gateway
                            .round_trip_us
                            .map_or_else(|| "–".to_owned(), milliseconds),
                        gateway.queued_commands.to_string(),
                        gateway
                            .last_seen
                            .map_or_else(|| "never".to_owned(), |at| human::relative(at, now)),
                        labels(gateway),
                    ]
                }),
            )?;
            output::note(&counts(&list.items));
            Ok(())
        }
    }
}

fn counts(gateways: &[Gateway]) -> String {
    if gateways.is_empty() {
        return "no gateways".to_owned();
    }
    let with = |status: GatewayStatus| {
        let same = gateways.iter().filter(|gateway| gateway.status == status);
        same.count()
    };
    let counts: Vec<String> = GatewayStatus::ALL
        .iter()
        .map(|status| (with(*status), status.name()))
        .filter(|(count, _name)| *count > 0)
        .map(|(count, name)| format!("{count} {name}"))
        .collect();
    format!(
        "{}: {}",
        human::counted(gateways.len(), "gateway", "gateways"),
        counts.join(", ")
    )
}

fn milliseconds(us: u64) -> String {
    format!("{}.{} ms", us / 1_000, us % 1_000 / 100)
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

/// Prints everything that is known of one.
pub fn show(gateway: &Gateway, format: Format, now: Timestamp) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(gateway);
    }
    let unknown = || "–".to_owned();
    let times = |at| human::relative_and_exact(at, now);
    let mut rows = vec![
        ("name", gateway.name.to_string()),
        ("id", gateway.id.to_string()),
        (
            "status",
            format!("{} since {}", word(gateway.status), times(gateway.since)),
        ),
        (
            "version",
            gateway.agent_version.clone().unwrap_or_else(unknown),
        ),
        ("labels", labels(gateway)),
        (
            "last seen",
            gateway.last_seen.map_or_else(|| "never".to_owned(), times),
        ),
        (
            "round trip",
            gateway.round_trip_us.map_or_else(unknown, milliseconds),
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
    if gateway.orphans > 0 {
        rows.push((
            "orphans",
            format!(
                "{}: {} gateway orphans {}",
                human::counted_all(
                    gateway.orphans,
                    "result of a command that the backend does not have",
                    "results of commands that the backend does not have"
                ),
                program::name(),
                gateway.name
            ),
        ));
    }
    if let Some(session) = &gateway.session {
        rows.push((
            "session",
            format!(
                "{} epoch {} from {}",
                session.id, session.epoch, session.peer_address
            ),
        ));
        if let Some(backend) = &session.backend {
            rows.push(("backend", backend.clone()));
        }
    }
    if let Some(spool) = &gateway.spool {
        rows.push((
            "spool",
            format!(
                "{} waiting, {} bytes",
                human::counted_all(spool.records, "record", "records"),
                human::count(spool.bytes)
            ),
        ));
    }
    rows.into_iter()
        .try_for_each(|(name, value)| output::line(&format!("{name:<11} {}", one_line(&value))))
}
