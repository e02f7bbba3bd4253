//! `viworks validate`: runs the checks and says go or no-go.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use viworks_runtime::exit::ExitCode;
use viworks_runtime::files;

use crate::client::Client;
use crate::ending::interruption;
use crate::failure::{Failure, chain};
use crate::flags::Validate;
use crate::output::{self, Format};
use crate::validation::{Report, Verdict, Wanted, junit, validate};
use crate::views;

pub(super) async fn execute(
    client: &Client,
    flags: &Validate,
    format: Format,
) -> Result<ExitCode, Failure> {
    let wanted = Wanted {
        gateway: flags.gateway.clone(),
        agent: match &flags.agent {
            Some(agent) => agent.clone(),
            None => beside()?,
        },
        door: flags.door.clone(),
        commands: flags.commands,
        records: flags.records,
        only: flags.only.clone(),
    };
    let is_seen = std::io::stderr().is_terminal();
    // An agent that was started for it, and what holds its identity, must not stay behind.
    let report = validate(client, &wanted, interruption(), |title| {
        if is_seen {
            output::status(&format!("{title} …"));
        }
    });
    let report = report.await;
    output::clear_status();
    let report = report?;
    if let Some(folder) = &flags.report {
        write(&report, folder)?;
    }
    views::validation::print(&report, format)?;
    Ok(match report.verdict {
        Verdict::Go => ExitCode::Ok,
        Verdict::NoGo => ExitCode::NoGo,
    })
}

/// The gateway agent beside this program.
fn beside() -> Result<PathBuf, Failure> {
    let me = std::env::current_exe()?;
    let agent = me.with_file_name("viworks-gateway-agent");
    if agent.is_file() {
        return Ok(agent);
    }
    Err(Failure::new(
        ExitCode::Config,
        format!("{} was not found", agent.display()),
    )
    .with("fix: install it here (the package viworks-gateway), or name it: --agent FILE"))
}

/// Both reports; what was there of an earlier run is replaced.
fn write(report: &Report, folder: &Path) -> Result<(), Failure> {
    let failed = |exit, error: &dyn std::error::Error| {
        Failure::new(exit, format!("the report: {}", chain(error)))
    };
    let fixed = |failure: Failure, fix: Option<&str>| match fix {
        Some(fix) => failure.with(format!("fix: {fix}")),
        None => failure,
    };
    std::fs::create_dir_all(folder).map_err(|error| {
        let what = format!("the report: {}: {error}", folder.display());
        let failure = Failure::new(ExitCode::of_file(&error), what);
        fixed(failure, files::output_fix(&error))
    })?;
    let json = serde_json::to_string_pretty(report);
    let json = json.map_err(|error| failed(ExitCode::Error, &error))?;
    for (name, text) in [("validation.json", json), ("validation.xml", junit(report))] {
        let written = files::write_atomic(&folder.join(name), text.as_bytes());
        written.map_err(|error| fixed(failed(error.exit_code(), &error), error.named_fix()))?;
    }
    Ok(())
}
