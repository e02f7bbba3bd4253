//! `viworks gateway`: who the gateways are and whether they answer.

use clap::Subcommand;
use serde_json::json;
use viworks_api::{Fork, ForkHolder, Gateway, GatewayStatus, OrphanResult};
use viworks_common::human;
use viworks_common::time::Timestamp;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::exit::ExitCode;

use crate::client::Client;
use crate::error::Failure;
use crate::output::{self, Format, one_line};
use crate::run::program_name;

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
    /// Show every second holder of a gateway's identity beside the one that was accepted
    Forks {
        /// Its name or id
        gateway: String,
    },
    /// List results that a gateway reported of commands that the backend does not have; their output with -o json
    Orphans {
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
        Verb::Show { gateway } => {
            let gateway = client.gateway(&gateway).await?;
            show(&gateway, format)?;
            if gateway.forks > 0 && format == Format::Table {
                let forks = client.forks(&gateway.id.to_string()).await?;
                if let Some(latest) = forks.first() {
                    output::line("")?;
                    side_by_side(latest)?;
                }
                if forks.len() > 1 {
                    output::note(&format!(
                        "{} more: viworks gateway forks {}",
                        forks.len() - 1,
                        gateway.name
                    ));
                }
            }
        }
        Verb::Forks { gateway } => forks(&client.forks(&gateway).await?, format)?,
        Verb::Orphans { gateway } => orphans(&client.orphans(&gateway).await?, format)?,
    }
    Ok(ExitCode::Ok)
}

fn ls(gateways: &[Gateway], format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => output::json(
            &json!({"apiVersion": "viworks/v1", "kind": "GatewayList", "items": gateways}),
        ),
        Format::Table => {
            let now = SystemClock.wall();
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
            output::note(&if gateways.is_empty() {
                "no gateways".to_owned()
            } else {
                format!(
                    "{}: {}",
                    human::counted(gateways.len(), "gateway", "gateways"),
                    counts.join(", ")
                )
            });
            Ok(())
        }
    }
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

fn show(gateway: &Gateway, format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(gateway);
    }
    let unknown = || "–".to_owned();
    let now = SystemClock.wall();
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
                program_name(),
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

fn forks(forks: &[Fork], format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(
            &json!({"apiVersion": "viworks/v1", "kind": "ForkList", "items": forks}),
        );
    }
    for (number, fork) in forks.iter().enumerate() {
        if number > 0 {
            output::line("")?;
        }
        side_by_side(fork)?;
    }
    output::note(&format!("{} second holders of this identity", forks.len()));
    Ok(())
}

fn orphans(orphans: &[OrphanResult], format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(
            &json!({"apiVersion": "viworks/v1", "kind": "OrphanList", "items": orphans}),
        );
    }
    let now = SystemClock.wall();
    let bytes = |count: Option<u64>| human::count(count.unwrap_or(0));
    output::table(
        ["REPORTED", "COMMAND", "STATE", "EXIT", "STDOUT", "STDERR"],
        orphans.iter().map(|orphan| {
            let outcome = &orphan.outcome;
            [
                human::relative(orphan.received_at, now),
                orphan.command_id.to_string(),
                orphan.state.name().to_owned(),
                outcome
                    .exit_code
                    .map_or_else(|| "–".to_owned(), |code| code.to_string()),
                bytes(outcome.stdout_bytes),
                bytes(outcome.stderr_bytes),
            ]
        }),
    )?;
    output::note(&format!(
        "{}; the output that was kept: -o json",
        human::counted(
            orphans.len(),
            "result of a command that the backend does not have",
            "results of commands that the backend does not have"
        )
    ));
    Ok(())
}

/// Both holders in columns, and what the comparison says.
fn side_by_side(fork: &Fork) -> Result<(), Failure> {
    let now = SystemClock.wall();
    let time = |at: Option<Timestamp>| {
        at.map_or_else(|| "–".to_owned(), |at| human::relative_and_exact(at, now))
    };
    let cells = |holder: &ForkHolder| {
        [
            holder.peer_address.clone(),
            holder.epoch.to_string(),
            holder.install_id.to_string(),
            holder.boot_id.to_string(),
            holder.agent_run_id.to_string(),
            holder.certificate_sha256.clone(),
            time(holder.since),
            time(holder.last_seen),
        ]
    };
    let refused = cells(&fork.refused);
    let accepted = fork.accepted.as_ref().map(cells).unwrap_or_default();
    let names = [
        "address",
        "epoch",
        "installation",
        "boot",
        "process",
        "certificate",
        "since",
        "last seen",
    ];
    let rows = names.into_iter().zip(refused.into_iter().zip(accepted));
    output::table(
        ["HOLDER", "REFUSED", "ACCEPTED"],
        rows.map(|(name, (refused, accepted))| {
            [name.to_owned(), one_line(&refused), one_line(&accepted)]
        }),
    )?;
    output::note(&format!(
        "it was refused {} times; {}",
        fork.times,
        verdict(fork)
    ));
    Ok(())
}

/// What the two have in common says whether there are two machines.
fn verdict(fork: &Fork) -> &'static str {
    let Some(accepted) = &fork.accepted else {
        return "nobody holds this identity with a session";
    };
    let refused = &fork.refused;
    match (
        refused.boot_id == accepted.boot_id,
        refused.install_id == accepted.install_id,
    ) {
        (true, false) => {
            "one boot and two installations: the same machine; either its state folder was lost or replaced, or two agents run there (two containers have one boot): look for the second before anything is revoked"
        }
        (true, true) => {
            "one boot and one installation: the same machine, whose state folder was restored, or is used twice"
        }
        (false, true) => {
            "one installation and two boots: a copied disk, or an older state that was restored"
        }
        (false, false) => {
            "neither boot nor installation is the same: another machine, or a state folder that was lost with the old boot"
        }
    }
}
