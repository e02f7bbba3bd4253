//! The catalogue: what may be run, with which arguments, and where.

use viworks_api::{CatalogueCommand, CatalogueList};
use viworks_common::catalogue::{Argument, ArgumentType};

use super::words::duration;
use crate::failure::Failure;
use crate::output::{self, Format, one_line};

/// Prints a row for each command.
pub fn list(list: &CatalogueList, format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => output::json(list),
        Format::Table => output::table(
            ["COMMAND", "RISK", "ARGUMENTS", "AVAILABLE", "TITLE"],
            list.items.iter().map(|entry| {
                let names: Vec<String> = entry.arguments.iter().map(short).collect();
                [
                    entry.name.to_string(),
                    risks(entry),
                    names.join(" "),
                    format!(
                        "{} of {}",
                        entry.available,
                        entry.available + entry.unavailable
                    ),
                    entry.title.clone(),
                ]
            }),
        ),
    }
}

/// The risk, and where gateways differ in it, on how many it is which.
fn risks(entry: &CatalogueCommand) -> String {
    if entry.risks.len() < 2 {
        return entry.risk.name().to_owned();
    }
    let each = entry
        .risks
        .iter()
        .map(|(risk, gateways)| format!("{} on {gateways}", risk.name()));
    each.collect::<Vec<_>>().join(", ")
}

fn short(argument: &Argument) -> String {
    match &argument.default {
        Some(default) => format!("[{}={default}]", argument.name),
        None => format!("{}=", argument.name),
    }
}

/// Prints one: its arguments and where it can run.
pub fn show(entry: &CatalogueCommand, format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(entry);
    }
    output::line(&format!("{}   {}", entry.name, one_line(&entry.title)))?;
    let repeat = if entry.idempotent {
        "may run twice"
    } else {
        "never runs twice"
    };
    output::line(&format!(
        "risk {}, {repeat}, ended after {}",
        risks(entry),
        duration(entry.timeout_ms)
    ))?;
    for argument in &entry.arguments {
        let allowed = match &argument.value {
            ArgumentType::String { pattern } => format!("text that matches {pattern}"),
            ArgumentType::Integer { min, max } => format!("a whole number from {min} to {max}"),
            ArgumentType::Choice { values } => format!("one of {}", values.join(", ")),
            ArgumentType::Boolean => "true or false".to_owned(),
        };
        let default = argument.default.as_ref().map_or_else(
            || "required".to_owned(),
            |default| format!("default {default}"),
        );
        output::line(&format!(
            "  {:<12} {} ({}; {default})",
            argument.name.as_str(),
            one_line(&argument.description),
            one_line(&allowed)
        ))?;
    }
    let Some(gateways) = &entry.gateways else {
        return Ok(());
    };
    output::line("")?;
    output::table(
        ["GATEWAY", "RISK", "AVAILABLE"],
        gateways.iter().map(|one| {
            [
                one.gateway.name.to_string(),
                one.risk.unwrap_or(entry.risk).name().to_owned(),
                one.unavailable
                    .as_ref()
                    .map_or_else(|| "yes".to_owned(), |reason| format!("no: {reason}")),
            ]
        }),
    )
}
