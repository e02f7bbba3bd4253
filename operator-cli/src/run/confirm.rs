//! What is asked before something changes, and what a dry run says.

use std::collections::BTreeSet;
use std::io::IsTerminal;

use serde_json::json;
use viworks_common::api::{Gateway, GatewayRef, GatewayStatus, RunRequest, Targets};
use viworks_common::catalogue::Risk;
use viworks_runtime::exit::ExitCode;

use super::flags::Options;
use crate::client::Client;
use crate::error::Failure;
use crate::output::{self, Format};

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
    match entry.risk {
        Risk::Read => Ok(()),
        Risk::Change if options.yes || !many => Ok(()),
        Risk::Change => ask(
            &format!("{} changes something on several gateways.", request.command),
            "--yes",
        ),
        Risk::Danger if options.confirm.is_some() => Ok(()),
        Risk::Danger => Err(Failure::new(
            ExitCode::Declined,
            format!("{} can cause an outage", request.command),
        )
        .with("say how many gateways you mean: --confirm=N (viworks run … --dry-run counts them)")),
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
    let named = |gateway: &Gateway, names: &[GatewayRef]| {
        names.iter().any(|name| {
            name.to_string() == gateway.name.as_str() || name.to_string() == gateway.id.to_string()
        })
    };
    let able: BTreeSet<_> = entry
        .gateways
        .iter()
        .flatten()
        .filter(|has| has.unavailable.is_none())
        .map(|has| has.gateway.id)
        .collect();
    let meant = gateways.iter().filter(|gateway| match &request.targets {
        Targets::All => gateway.status != GatewayStatus::Revoked,
        Targets::AllExcept(left_out) => {
            gateway.status != GatewayStatus::Revoked && !named(gateway, left_out)
        }
        Targets::Gateways(names) => named(gateway, names),
    });
    let (able, unable): (Vec<_>, Vec<_>) = meant.partition(|gateway| able.contains(&gateway.id));
    let names = |gateways: Vec<&Gateway>| -> Vec<String> {
        gateways
            .into_iter()
            .map(|gateway| gateway.name.to_string())
            .collect()
    };
    let (meant, unable) = (names(able), names(unable));
    match format {
        Format::Table => {
            output::line(&format!(
                "{} ({:?}) on {} gateways: {}",
                request.command,
                entry.risk,
                meant.len(),
                meant.join(" ")
            ))?;
            if !unable.is_empty() {
                output::line(&format!(
                    "skipped, because they cannot run it: {} gateways: {}",
                    unable.len(),
                    unable.join(" ")
                ))?;
            }
        }
        Format::Json => output::json(
            &json!({"apiVersion": "viworks/v1", "kind": "RunPlan", "request": request, "gateways": meant, "skipped": unable}),
        )?,
    }
    output::note("nothing was run");
    Ok(if meant.is_empty() {
        ExitCode::NotFound
    } else {
        ExitCode::Ok
    })
}
