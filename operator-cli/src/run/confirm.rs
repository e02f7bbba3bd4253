//! What is asked before something changes, and what a dry run says.

use std::collections::BTreeMap;
use std::io::IsTerminal;

use serde_json::json;
use viworks_common::api::{GatewayRef, GatewayStatus, NamedGateway, RunRequest, Targets};
use viworks_common::catalogue::Risk;
use viworks_common::human;
use viworks_runtime::exit::ExitCode;

use super::flags::Options;
use crate::client::Client;
use crate::error::Failure;
use crate::output::{self, Format};

/// Gateways that a refusal names.
const NAMED_MAX: usize = 10;

/// Asks before something changes: a person by prompt, a script by flag.
pub(super) async fn confirm(
    client: &Client,
    options: &Options,
    request: &RunRequest,
) -> Result<(), Failure> {
    if options.dry_run || options.yes && options.confirm.is_some() {
        return Ok(());
    }
    // An unknown command is the backend's to explain; it names what is allowed.
    let Ok(entry) = client.catalogue_command(request.command.as_str()).await else {
        return Ok(());
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
        Risk::Change if options.yes || !many => Ok(()),
        Risk::Change => ask(
            &format!("{} changes something on several gateways.", request.command),
            "--yes",
        ),
        Risk::Danger if options.confirm.is_some() => Ok(()),
        Risk::Danger => {
            let dangerous = meant.iter().filter(|(_gateway, risk)| *risk == highest);
            let names: Vec<String> = dangerous
                .map(|(gateway, _risk)| gateway.name.to_string())
                .collect();
            let place = if names.len() == meant.len() {
                String::new()
            } else {
                format!(
                    " on {} of {} gateways: {}",
                    names.len(),
                    meant.len(),
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

fn ask(what: &str, flag: &str) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(
            Failure::new(ExitCode::Declined, format!("{what} A prompt was needed"))
                .with(format!("in scripts, add {flag}")),
        );
    }
    output::note(&format!("{what} Continue? [y/N]"));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        Ok(())
    } else {
        Err(Failure::new(
            ExitCode::Declined,
            "you said no; nothing was sent",
        ))
    }
}

/// Says what would be run and where.
pub(super) async fn dry_run(
    client: &Client,
    request: &RunRequest,
    format: Format,
) -> Result<ExitCode, Failure> {
    let entry = client.catalogue_command(request.command.as_str()).await?;
    let gateways = client.gateways().await?;
    let able: BTreeMap<_, _> = entry
        .gateways
        .iter()
        .flatten()
        .filter(|has| has.unavailable.is_none())
        .map(|has| (has.gateway.id, has.risk.unwrap_or(entry.risk)))
        .collect();
    let meant = gateways.iter().filter(|gateway| {
        let named = NamedGateway {
            id: gateway.id,
            name: gateway.name.clone(),
        };
        let there = gateway.status != GatewayStatus::Revoked
            || matches!(request.targets, Targets::Gateways(_));
        there && is_meant(&request.targets, &named)
    });
    let (mut meant_names, mut unable) = (Vec::new(), Vec::new());
    let mut risks: BTreeMap<Risk, Vec<String>> = BTreeMap::new();
    for gateway in meant {
        let name = gateway.name.to_string();
        match able.get(&gateway.id) {
            Some(risk) => {
                risks.entry(*risk).or_default().push(name.clone());
                meant_names.push(name);
            }
            None => unable.push(name),
        }
    }
    let meant = meant_names;
    match format {
        Format::Table => {
            // A line for each risk: who gives the command another one than the others stands alone.
            for (risk, names) in &risks {
                output::line(&format!(
                    "{} ({}) on {}: {}",
                    request.command,
                    risk.name(),
                    human::counted(names.len(), "gateway", "gateways"),
                    names.join(" ")
                ))?;
            }
            if !unable.is_empty() {
                output::line(&format!(
                    "skipped, because they cannot run it: {} gateways: {}",
                    unable.len(),
                    unable.join(" ")
                ))?;
            }
        }
        Format::Json => output::json(
            &json!({"apiVersion": "viworks/v1", "kind": "RunPlan", "request": request, "gateways": meant, "risks": risks, "skipped": unable}),
        )?,
    }
    output::note("nothing was run");
    Ok(if meant.is_empty() {
        ExitCode::NotFound
    } else {
        ExitCode::Ok
    })
}
