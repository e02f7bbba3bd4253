//! The first command of a demo: that gateways answer at all.

use std::time::Duration;

use tokio::time::Instant;
use viworks_api::{GatewayRef, RequestedArguments, RunRequest, Targets};
use viworks_common::command::CommandState;
use viworks_runtime::exit::ExitCode;

use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, Format};
use crate::verdict::exit_code;
use crate::views::live::Told;
use crate::views::{self, result};

const FIRST_COMMAND: &str = "gateway.info";

/// Runs it on these gateways and prints what came out.
pub(super) async fn command(
    client: &Client,
    names: &[String],
    format: Format,
) -> Result<ExitCode, Failure> {
    let step = Instant::now();
    let command = FIRST_COMMAND
        .parse()
        .map_err(|error| Failure::new(ExitCode::Error, format!("{error}")))?;
    let targets: Result<Vec<GatewayRef>, _> = names.iter().map(|name| name.parse()).collect();
    let request = RunRequest {
        command,
        arguments: RequestedArguments::default(),
        // Not all that are registered: an earlier demo in this folder may have had more.
        targets: Targets::Gateways(
            targets.map_err(|error| Failure::new(ExitCode::Error, format!("{error}")))?,
        ),
        deadline_ms: None,
        timeout_ms: None,
        skip_unable: false,
        expect_targets: None,
        reason: None,
    };
    let (submitted, _replayed) = client.submit(&request, None).await?;
    let finished = client.wait(submitted.id, Duration::from_secs(20)).await?;
    let results = client.run_results(submitted.id).await?;
    let commands = &results.commands;
    let answered = commands
        .iter()
        .filter(|command| command.state.is_final())
        .count();
    views::demo::step(
        "first command",
        FIRST_COMMAND,
        &format!("{answered} of {} answered", commands.len()),
        step.elapsed(),
    );
    output::note("");
    match format {
        Format::Table => output::line(&result::rows(commands, &[], |_id| Told::default()))?,
        Format::Json => result::document(&finished.run, &results, &[])?,
    }
    output::note("");
    let states: Vec<CommandState> = commands.iter().map(|command| command.state).collect();
    Ok(exit_code(&states))
}
