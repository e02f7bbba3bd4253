//! What a run would do: on which gateways, at which risk, and who would be left out.

use std::collections::BTreeMap;

use serde::Serialize;
use viworks_api::{NamedGateway, RunPlan, RunRequest};
use viworks_common::catalogue::Risk;
use viworks_common::human;

use super::document::{Document, Kind};
use crate::failure::Failure;
use crate::output::{self, Format};

#[derive(Serialize)]
struct Plan<'p> {
    request: &'p RunRequest,
    gateways: Vec<&'p str>,
    risks: BTreeMap<Risk, Vec<&'p str>>,
    skipped: Vec<&'p str>,
}

/// Prints it, and that nothing was run.
pub fn print(request: &RunRequest, plan: &RunPlan, format: Format) -> Result<(), Failure> {
    let mut risks: BTreeMap<Risk, Vec<&str>> = BTreeMap::new();
    for planned in &plan.gateways {
        let names = risks.entry(planned.risk).or_default();
        names.push(planned.gateway.name.as_str());
    }
    let plan = Plan {
        request,
        gateways: names(plan.gateways.iter().map(|planned| &planned.gateway)),
        risks,
        skipped: names(plan.skipped.iter().map(|skipped| &skipped.gateway)),
    };
    match format {
        Format::Json => Document::new(Kind::RunPlan, plan).print()?,
        Format::Table => table(&plan)?,
    }
    output::note("nothing was run");
    Ok(())
}

/// A line for each risk: who gives the command another one than the others stands alone.
fn table(plan: &Plan<'_>) -> Result<(), Failure> {
    for (risk, names) in &plan.risks {
        output::line(&format!(
            "{} ({}) on {}: {}",
            plan.request.command,
            risk.name(),
            human::counted(names.len(), "gateway", "gateways"),
            names.join(" ")
        ))?;
    }
    if plan.skipped.is_empty() {
        return Ok(());
    }
    output::line(&format!(
        "skipped, because they cannot run it: {}: {}",
        human::counted(plan.skipped.len(), "gateway", "gateways"),
        plan.skipped.join(" ")
    ))
}

fn names<'g>(gateways: impl Iterator<Item = &'g NamedGateway>) -> Vec<&'g str> {
    gateways.map(|gateway| gateway.name.as_str()).collect()
}
