//! `viworks runs`: what was run, how it went, waiting for it and cancelling it.

use viworks_api::Run;
use viworks_common::id::RunId;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::exit::ExitCode;

use super::follow::follow;
use crate::client::{Client, Results};
use crate::failure::Failure;
use crate::flags::Runs;
use crate::output::Format;
use crate::views::runs::Extent;
use crate::views::{self, result};

/// The latest runs, among which the beginning of an id is looked for.
const FOUND_AMONG: usize = 1_000;

pub(super) async fn execute(
    client: &Client,
    verb: Runs,
    format: Format,
) -> Result<ExitCode, Failure> {
    match verb {
        Runs::Ls { limit } => {
            let runs = client.runs(limit).await?;
            views::runs::list(&runs, format, SystemClock.wall())?;
        }
        Runs::Show { id, full } => {
            let extent = if full { Extent::Full } else { Extent::Last };
            show(client, &find(client, &id).await?, extent, format).await?;
        }
        Runs::Wait { id, timeout } => {
            let found = find(client, &id).await?;
            return follow(client, &found, timeout, false, format).await;
        }
        Runs::Cancel { id } => {
            let found = find(client, &id).await?;
            let answer = client.cancel(found.id).await?;
            views::runs::cancelled(&found, &answer, format)?;
        }
    }
    Ok(ExitCode::Ok)
}

/// A run by its id or by a beginning that fits one of the latest runs alone.
async fn find(client: &Client, text: &str) -> Result<Run, Failure> {
    if let Ok(id) = text.parse::<RunId>() {
        return client.run(id).await;
    }
    if text.is_empty() || !text.chars().all(|c| c.is_ascii_hexdigit() || c == '-') {
        return Err(Failure::usage(format!("{text:?} is no run's id")).with("see: viworks runs ls"));
    }
    let mut fitting = client.runs(FOUND_AMONG).await?.items;
    fitting.retain(|run| run.id.to_string().starts_with(&text.to_lowercase()));
    match fitting.len() {
        0 => Err(
            Failure::new(ExitCode::NotFound, format!("no run begins with {text:?}"))
                .with("see: viworks runs ls"),
        ),
        1 => Ok(fitting.remove(0)),
        several => Err(Failure::usage(format!(
            "{several} runs begin with {text:?}; type more of the id"
        ))),
    }
}

async fn show(client: &Client, run: &Run, extent: Extent, format: Format) -> Result<(), Failure> {
    let skipped = client.run_skipped(run).await?;
    match (format, extent) {
        (Format::Json, Extent::Last) => {
            let results = client.run_results(run.id).await?;
            result::document(run, &results, &skipped)
        }
        (Format::Json, Extent::Full) => {
            let mut commands = client.run_commands(run.id).await?;
            for command in &mut commands {
                *command = client.with_output(run.id, command.clone()).await?;
            }
            let results = Results {
                commands,
                without_output: 0,
            };
            result::document(run, &results, &skipped)
        }
        (Format::Table, Extent::Last) => {
            let results = client.run_results(run.id).await?;
            views::runs::head(run, SystemClock.wall())?;
            views::runs::last_lines(run, &results, &skipped)
        }
        (Format::Table, Extent::Full) => {
            let commands = client.run_commands(run.id).await?;
            views::runs::head(run, SystemClock.wall())?;
            // Each as it comes: all outputs together may be more than this machine holds.
            for command in commands {
                views::runs::whole(&client.with_output(run.id, command).await?)?;
            }
            skipped.iter().try_for_each(views::runs::left_out)
        }
    }
}
