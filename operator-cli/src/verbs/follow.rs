//! Follows a run: its output while it comes, then what became of it, and an exit code that says so.

mod waiting;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use viworks_api::Run;
use viworks_common::command::CommandState;
use viworks_runtime::exit::ExitCode;

use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, Format};
use crate::program;
use crate::verdict::{Tally, exit_code};
use crate::views::live::Live;
use crate::views::{self, result};

/// Shows a run live and then its result. A gateway that was meant and skipped counts as one that gave no answer, unless
/// whoever asks said that gateways may be skipped.
pub(super) async fn follow(
    client: &Client,
    run: &Run,
    limit: Duration,
    may_skip: bool,
    format: Format,
) -> Result<ExitCode, Failure> {
    let skipped = client.run_skipped(run).await?;
    let many = run.total > 1 || !skipped.is_empty();
    let live = Mutex::new(Live::new(run.id, many, format));
    let follow = client.follow(run.id, |event| {
        live.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .event(event)
    });
    tokio::select! {
        followed = tokio::time::timeout(limit, follow) => {
            if let Ok(outcome) = followed {
                outcome?;
            }
        }
        failure = waiting::tell(client, run, &live) => return Err(failure),
    }
    output::clear_status();
    let mut live = live.into_inner().unwrap_or_else(PoisonError::into_inner);
    let results = client.run_results(run.id).await?;
    let commands = &results.commands;
    for command in commands {
        live.complete(command)?;
    }
    match format {
        Format::Json => result::document(&client.run(run.id).await?, &results, &skipped)?,
        Format::Table => {
            let rows = result::rows(commands, &skipped, |id| live.told(id));
            // The output of one gateway stands alone, so that a pipe gets that and nothing else.
            if many {
                output::line(&rows)?;
            } else {
                output::note(&rows);
            }
            views::runs::tell_without_output(run, &results);
        }
    }
    let states: Vec<CommandState> = commands.iter().map(|command| command.state).collect();
    let mut exit = exit_code(&states);
    if exit == ExitCode::Ok && !skipped.is_empty() && !may_skip {
        exit = ExitCode::NoAnswer;
    }
    output::note(&result::sentence(&Tally::of(&states, skipped.len())));
    if exit == ExitCode::Pending {
        output::note(&format!("Follow  {} runs wait {}", program::name(), run.id));
    }
    Ok(exit)
}
