//! `viworks run`: submit a command, follow it live, and say in the exit code how it went.

mod confirm;
mod flags;
mod live;
mod summary;
mod waiting;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use viworks_api::Run;
use viworks_common::command::CommandState;
use viworks_common::human;
use viworks_common::id::RunId;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::exit::ExitCode;

pub use self::flags::Options;
use self::live::Live;
pub use self::live::Told;
pub use self::summary::{duration, exit_code, print_commands, with_output, word};
use crate::client::Client;
use crate::error::Failure;
use crate::output::{self, Format};

/// Submits and, unless told otherwise, waits.
pub async fn run(client: &Client, options: &Options, format: Format) -> Result<ExitCode, Failure> {
    let request = flags::request(options)?;
    confirm::confirm(client, options, &request).await?;
    if options.dry_run {
        return confirm::dry_run(client, &request, format).await;
    }
    let (submitted, replayed) = client
        .submit(&request, options.idempotency_key.as_deref())
        .await?;
    if replayed {
        output::note(&format!(
            "nothing new was run: this is the run {} that the same key submitted {}",
            submitted.id,
            human::relative(submitted.created_at, SystemClock.wall())
        ));
    }
    if options.no_wait {
        match format {
            Format::Table => output::line(&submitted.id.to_string())?,
            Format::Json => output::json(&submitted)?,
        }
        if submitted.skipped > 0 {
            output::note(&format!(
                "{} not able to take it and skipped: {} runs show {}",
                human::counted_all(submitted.skipped, "gateway is", "gateways are"),
                program_name(),
                submitted.id
            ));
        }
        output::note(&format!(
            "submitted to {}; follow it: {} runs wait {}",
            human::counted_all(submitted.total, "gateway", "gateways"),
            program_name(),
            submitted.id
        ));
        return Ok(ExitCode::Ok);
    }
    let limit = options.wait.unwrap_or(Duration::from_secs(24 * 3_600));
    let exit = tokio::select! {
        exit = follow(client, &submitted, limit, options.skip_unable, format) => {
            exit.map_err(|failure| went_on(failure, submitted.id))?
        }
        signal = tokio::signal::ctrl_c() => {
            signal?;
            output::note("");
            output::note(&format!("stopped watching; the run goes on. Back to it: {0} runs wait {1}   cancel it: {0} runs cancel {1}", program_name(), submitted.id));
            ExitCode::Interrupted
        }
    };
    Ok(exit)
}

/// The run was accepted before this failed, and whoever believes that nothing was done submits it twice.
fn went_on(failure: Failure, run: RunId) -> Failure {
    if failure.quiet {
        return failure;
    }
    failure.with(format!(
        "the run was accepted and goes on without this command: {0} runs wait {run}   cancel it: {0} runs cancel {run}",
        program_name()
    ))
}

/// Shows a run live and then its result. A gateway that was meant and skipped counts as one that gave no answer, unless
/// whoever asks said that gateways may be skipped.
pub async fn follow(
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
    let commands = with_output(client, client.run_commands(run.id).await?).await?;
    for command in &commands {
        live.complete(command)?;
    }
    match format {
        Format::Json => {
            let run = client.run(run.id).await?;
            output::json(
                &json!({"apiVersion": "viworks/v1", "kind": "RunResult", "run": run, "commands": commands, "skipped": skipped}),
            )?;
        }
        Format::Table if many => print_commands(&commands, &skipped, |id| live.told(id))?,
        // The output of one gateway stands alone, so that a pipe gets that and nothing else.
        Format::Table => output::note(&summary::rows(&commands, &skipped, |id| live.told(id))),
    }
    let states: Vec<CommandState> = commands.iter().map(|command| command.state).collect();
    let mut exit = exit_code(states.iter().copied());
    if exit == ExitCode::Ok && !skipped.is_empty() && !may_skip {
        exit = ExitCode::NoAnswer;
    }
    output::note(&summary::summary(&states, skipped.len()));
    if exit == ExitCode::Pending {
        output::note(&format!("Follow  {} runs wait {}", program_name(), run.id));
    }
    Ok(exit)
}

/// How to call this program from where the person stands.
pub fn program_name() -> String {
    let me = std::env::args_os()
        .next()
        .map(|arg| arg.to_string_lossy().into_owned());
    me.unwrap_or_else(|| "viworks".to_owned())
}
