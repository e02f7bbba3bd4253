//! `viworks runs`: what was run, how it went, waiting for it and cancelling it.

use std::time::Duration;

use clap::Subcommand;
use serde_json::json;
use viworks_api::{CommandView, OutputView, Run};
use viworks_common::human;
use viworks_common::id::RunId;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::exit::ExitCode;

use crate::cli::{rows, span};
use crate::client::Client;
use crate::error::Failure;
use crate::output::{self, Format, one_line, plain};
use crate::run;

/// What to do with runs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List runs, latest first
    Ls {
        /// Most rows
        #[arg(long, value_name = "ROWS", value_parser = rows, default_value = "20")]
        limit: usize,
    },
    /// Show one run: its request, and what every gateway answered
    Show {
        /// The run's id, or its unique beginning
        id: String,
        /// Print all retained output of every gateway
        #[arg(long)]
        full: bool,
    },
    /// Follow a run until it is finished
    Wait {
        /// The run's id, or its unique beginning
        id: String,
        /// Stop waiting after this long (exit code 8)
        #[arg(long, value_name = "SPAN", value_parser = span, default_value = "1d")]
        timeout: Duration,
    },
    /// Cancel what has not finished
    Cancel {
        /// The run's id, or its unique beginning
        id: String,
    },
}

/// Carries it out.
pub async fn execute(client: &Client, verb: Verb, format: Format) -> Result<ExitCode, Failure> {
    match verb {
        Verb::Ls { limit } => ls(client, limit, format).await,
        Verb::Show { id, full } => show(client, &id, full, format).await,
        Verb::Wait { id, timeout } => {
            let found = find(client, &id).await?;
            run::follow(client, &found, timeout, false, format).await
        }
        Verb::Cancel { id } => cancel(client, &id, format).await,
    }
}

/// A run by its id or by a beginning that fits one of the latest runs alone.
async fn find(client: &Client, text: &str) -> Result<Run, Failure> {
    if let Ok(id) = text.parse::<RunId>() {
        return client.run(id).await;
    }
    if text.is_empty() || !text.chars().all(|c| c.is_ascii_hexdigit() || c == '-') {
        return Err(Failure::usage(format!("{text:?} is no run's id")).with("see: viworks runs ls"));
    }
    let mut fitting = client.runs(1_000).await?;
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

async fn ls(client: &Client, limit: usize, format: Format) -> Result<ExitCode, Failure> {
    let runs = client.runs(limit).await?;
    let now = SystemClock.wall();
    match format {
        Format::Json => {
            output::json(&json!({"apiVersion": "viworks/v1", "kind": "RunList", "items": runs}))?;
        }
        Format::Table => {
            output::table(
                ["RUN", "COMMAND", "CREATED", "BY", "RESULT"],
                runs.iter().map(|run| {
                    [
                        run.id.to_string(),
                        run.command.to_string(),
                        human::relative(run.created_at, now),
                        by(run),
                        counts(run),
                    ]
                }),
            )?;
            output::note(&if runs.is_empty() {
                format!(
                    "nothing was run yet; what can be: {} command ls",
                    run::program_name()
                )
            } else if runs.len() == limit {
                format!("the latest {limit}; more with --limit")
            } else {
                human::counted(runs.len(), "run", "runs")
            });
        }
    }
    Ok(ExitCode::Ok)
}

/// Who submitted a run: a key by its name.
fn by(run: &Run) -> String {
    run.created_by_name
        .clone()
        .unwrap_or_else(|| run.created_by.clone())
}

fn counts(run: &Run) -> String {
    let parts: Vec<String> = run
        .counts
        .iter()
        .filter(|(_state, count)| **count > 0)
        .map(|(state, count)| format!("{count} {}", state.name()))
        .collect();
    let skipped = if run.skipped > 0 {
        format!(", {} skipped", run.skipped)
    } else {
        String::new()
    };
    format!("{} of {}{skipped}", parts.join(", "), run.total)
}

async fn show(client: &Client, id: &str, full: bool, format: Format) -> Result<ExitCode, Failure> {
    let found = find(client, id).await?;
    let commands = run::with_output(client, client.run_commands(found.id).await?).await?;
    let skipped = client.run_skipped(&found).await?;
    match format {
        Format::Json => output::json(
            &json!({"apiVersion": "viworks/v1", "kind": "RunResult", "run": found, "commands": commands, "skipped": skipped}),
        )?,
        Format::Table => {
            let arguments: Vec<String> = found
                .arguments
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            output::line(&format!("run       {}", found.id))?;
            output::line(&format!(
                "command   {} {}",
                found.command,
                one_line(&arguments.join(" "))
            ))?;
            let now = SystemClock.wall();
            let times = |at| human::relative_and_exact(at, now);
            output::line(&format!(
                "created   {} by {}",
                times(found.created_at),
                one_line(&by(&found))
            ))?;
            if let Some(reason) = &found.reason {
                output::line(&format!("reason    {}", one_line(reason)))?;
            }
            output::line(&format!("deadline  {}", times(found.deadline)))?;
            if let Some(at) = found.cancelled_at {
                output::line(&format!("cancelled {}", times(at)))?;
            }
            if let Some(at) = found.finished_at {
                output::line(&format!("finished  {}", times(at)))?;
            }
            output::line(&format!("result    {}\n", counts(&found)))?;
            if full {
                commands.iter().try_for_each(print_full)?;
            } else {
                run::print_commands(&commands, &skipped, |_id| run::Told::default())?;
                output::note(&format!(
                    "the last line of each; everything that was kept: {} runs show {} --full",
                    run::program_name(),
                    found.id
                ));
            }
        }
    }
    Ok(ExitCode::Ok)
}

fn print_full(command: &CommandView) -> Result<(), Failure> {
    output::line(&format!(
        "══ {}  {}",
        command.gateway.name,
        run::word(command.state)
    ))?;
    let outcome = command.outcome.as_ref();
    let reason = outcome
        .and_then(|outcome| outcome.reason.as_ref())
        .or(command.reason.as_ref());
    if let Some(reason) = reason {
        output::line(&one_line(reason))?;
    }
    let Some(outcome) = outcome else {
        return Ok(());
    };
    for (name, view) in [("stdout", &outcome.stdout), ("stderr", &outcome.stderr)] {
        let empty = |view: &OutputView| view.head.text.is_empty() && view.cut_bytes == 0;
        let Some(view) = view.as_ref().filter(|view| !empty(view)) else {
            continue;
        };
        output::line(&format!("── {name}"))?;
        output::raw(&text(view))?;
    }
    Ok(())
}

fn text(view: &OutputView) -> String {
    let mut text = plain(&view.head.text);
    if view.cut_bytes > 0 {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str("… ");
        text.push_str(&human::count(view.cut_bytes));
        text.push_str(" bytes were not kept …\n");
        text.push_str(&plain(&view.tail.text));
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

async fn cancel(client: &Client, id: &str, format: Format) -> Result<ExitCode, Failure> {
    let found = find(client, id).await?;
    let answer = client.cancel(found.id).await?;
    match format {
        Format::Json => output::json(&answer)?,
        Format::Table => {
            output::line(&format!(
                "{} cancelled, {} asked to stop on their gateway, {} were final already",
                answer.cancelled, answer.requested, answer.final_before
            ))?;
            if answer.requested > 0 {
                output::note(&format!(
                    "what came of it: {} runs wait {}",
                    run::program_name(),
                    found.id
                ));
            }
        }
    }
    Ok(ExitCode::Ok)
}
