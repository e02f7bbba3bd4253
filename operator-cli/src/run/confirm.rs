//! What is asked before something changes, and what a dry run says.

use std::io::IsTerminal;

use serde_json::json;
use viworks_common::api::{GatewayRef, NamedGateway, RunRequest, Targets};
use viworks_common::catalogue::Risk;
use viworks_runtime::exit::ExitCode;

use super::flags::Options;
use crate::client::Client;
use crate::error::Failure;
use crate::human;
use crate::output::{self, Format};

/// Gateways that a question names.
const NAMED: usize = 5;

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
        Risk::Change if options.yes => Ok(()),
        // A script that names one gateway means it; a person may have slipped.
        Risk::Change if !many && !std::io::stdin().is_terminal() => Ok(()),
        Risk::Change => ask(
            &format!(
                "{} changes something on {}.",
                request.command,
                whom(&request.targets)
            ),
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

/// Says what would be run and where; the backend decides it by the code that a submission meets.
pub(super) async fn dry_run(
    client: &Client,
    request: &RunRequest,
    format: Format,
) -> Result<ExitCode, Failure> {
    let plan = client.plan(request).await?;
    let meant = names(plan.gateways.iter());
    let skipped = names(plan.skipped.iter().map(|skipped| &skipped.gateway));
    match format {
        Format::Table => {
            output::line(&format!(
                "{} ({}) on {}: {}",
                request.command,
                plan.risk.name(),
                human::counted(meant.len(), "gateway", "gateways"),
                meant.join(" ")
            ))?;
            if !skipped.is_empty() {
                output::line(&format!(
                    "skipped, because they cannot run it: {}: {}",
                    human::counted(skipped.len(), "gateway", "gateways"),
                    skipped.join(" ")
                ))?;
            }
        }
        Format::Json => output::json(
            &json!({"apiVersion": "viworks/v1", "kind": "RunPlan", "request": request, "gateways": meant, "skipped": skipped}),
        )?,
    }
    output::note("nothing was run");
    Ok(ExitCode::Ok)
}

fn names<'g>(gateways: impl Iterator<Item = &'g NamedGateway>) -> Vec<String> {
    gateways.map(|gateway| gateway.name.to_string()).collect()
}
