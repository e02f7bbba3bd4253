//! `viworks runs`: what was run, how it went, waiting for it and cancelling it.

use std::time::Duration;

use clap::Subcommand;
use serde_json::json;
use viworks_common::api::{CommandView, OutputView, Run};
use viworks_common::id::RunId;
use viworks_runtime::exit::ExitCode;

use crate::cli::span;
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
        #[arg(long, default_value_t = 20)]
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
                        run.created_at.to_string(),
                        run.created_by.clone(),
                        counts(run),
                    ]
                }),
            )?;
            output::note(&format!("{} runs", runs.len()));
        }
    }
    Ok(ExitCode::Ok)
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
            output::line(&format!(
                "created   {} by {}",
                found.created_at,
                one_line(&found.created_by)
            ))?;
            output::line(&format!("deadline  {}", found.deadline))?;
            output::line(&format!("result    {}\n", counts(&found)))?;
            if full {
                commands.iter().try_for_each(print_full)?;
            } else {
                run::print_commands(&commands, &skipped)?;
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
    let Some(outcome) = &command.outcome else {
        return Ok(());
    };
    if let Some(reason) = &outcome.reason {
        output::line(&one_line(reason))?;
    }
    for (name, view) in [("stdout", &outcome.stdout), ("stderr", &outcome.stderr)] {
        let Some(view) = view.as_ref().filter(|view| !view.head.text.is_empty()) else {
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
        text.push_str("\n… ");
        text.push_str(&view.cut_bytes.to_string());
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
        Format::Table => output::line(&format!(
            "{} cancelled, {} asked to stop on their gateway, {} were final already",
            answer.cancelled, answer.requested, answer.final_before
        ))?,
    }
    Ok(ExitCode::Ok)
}
