//! What is asked before something changes: a person by prompt, a script by flag.

use std::io::IsTerminal;

use viworks_api::{GatewayRef, NamedGateway, RunRequest, Targets};
use viworks_common::catalogue::Risk;
use viworks_common::human;
use viworks_runtime::exit::ExitCode;

use crate::client::Client;
use crate::failure::Failure;
use crate::flags::Run;
use crate::verbs::prompt;

/// Gateways that a refusal names.
const NAMED_MAX: usize = 10;
/// Gateways that a question names.
const NAMED: usize = 5;

/// Returns when the run is meant, without a question where the flags say so.
pub(super) async fn confirm(
    client: &Client,
    flags: &Run,
    request: &RunRequest,
) -> Result<(), Failure> {
    if flags.dry_run || flags.yes && flags.confirm.is_some() {
        return Ok(());
    }
    let entry = match client.catalogue_command(request.command.as_str()).await {
        Ok(entry) => entry,
        // Whoever was silent now would be waited for once more.
        Err(failure) if failure.problem.is_none() && failure.exit == ExitCode::Unavailable => {
            return Err(failure.with("nothing was submitted"));
        }
        // An unknown command is the backend's to explain; it names what is allowed.
        Err(_told) => return Ok(()),
    };
    let many = match &request.targets {
        Targets::All | Targets::AllExcept(_) => true,
        Targets::Gateways(names) => names.len() > 1,
    };
    // What a gateway that is not meant says about the risk is of no concern. Without a reason nothing dangerous is
    // sent: where gateways may be skipped, those are.
    let skips_danger = request.skip_unable && request.reason.is_none();
    let meant: Vec<(&NamedGateway, Risk)> = entry
        .gateways
        .iter()
        .flatten()
        .filter(|has| has.unavailable.is_none() && is_meant(&request.targets, &has.gateway))
        .map(|has| (&has.gateway, has.risk.unwrap_or(entry.risk)))
        .filter(|(_gateway, risk)| !(skips_danger && *risk == Risk::Danger))
        .collect();
    let Some(highest) = meant.iter().map(|(_gateway, risk)| *risk).max() else {
        return Ok(());
    };
    match highest {
        Risk::Read => Ok(()),
        Risk::Change if flags.yes => Ok(()),
        // A script that names one gateway means it; a person may have slipped.
        Risk::Change if !many && !std::io::stdin().is_terminal() => Ok(()),
        Risk::Change => prompt::ask(
            &format!(
                "{} changes something on {}.",
                request.command,
                whom(&request.targets)
            ),
            "--yes",
            "nothing was sent",
        ),
        Risk::Danger if flags.confirm.is_some() => Ok(()),
        Risk::Danger => {
            let dangerous = meant.iter().filter(|(_gateway, risk)| *risk == highest);
            let names: Vec<String> = dangerous
                .map(|(gateway, _risk)| gateway.name.to_string())
                .collect();
            let place = if names.len() == meant.len() {
                String::new()
            } else {
                format!(
                    " on {} of {}: {}",
                    names.len(),
                    human::counted(meant.len(), "gateway", "gateways"),
                    listed(&names)
                )
            };
            let failure = Failure::new(
                ExitCode::Declined,
                format!("{} can cause an outage{place}", request.command),
            )
            .with(
                "say how many gateways you mean: --confirm=N (viworks run … --dry-run counts them)",
            );
            Err(if place.is_empty() {
                failure
            } else {
                failure
                    .with("or leave those out: --except NAMES, or --skip-unable without --reason")
            })
        }
    }
}

/// Names, as many as a person reads.
fn listed(names: &[String]) -> String {
    let shown = names.iter().take(NAMED_MAX).cloned();
    let text = shown.collect::<Vec<_>>().join(" ");
    match names.len().saturating_sub(NAMED_MAX) {
        0 => text,
        more => format!("{text} and {more} more"),
    }
}

fn is_meant(targets: &Targets, gateway: &NamedGateway) -> bool {
    let named = |names: &[GatewayRef]| {
        names.iter().any(|name| match name {
            GatewayRef::Id(id) => *id == gateway.id,
            GatewayRef::Name(name) => *name == gateway.name,
        })
    };
    match targets {
        Targets::All => true,
        Targets::AllExcept(left_out) => !named(left_out),
        Targets::Gateways(names) => named(names),
    }
}

/// The gateways of a selection, as a person names them.
fn whom(targets: &Targets) -> String {
    match targets {
        Targets::All => "every gateway".to_owned(),
        Targets::AllExcept(left_out) => {
            format!("every gateway except {}", named(left_out))
        }
        Targets::Gateways(names) => named(names),
    }
}

fn named(names: &[GatewayRef]) -> String {
    let shown: Vec<String> = names.iter().take(NAMED).map(ToString::to_string).collect();
    match names.len().saturating_sub(NAMED) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
