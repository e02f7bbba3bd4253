//! Runs that were submitted: the list, one of them whole, and what a cancellation reached.

use viworks_api::{CommandView, OutputView, Run, RunCancelled, RunList, SkippedGateway};
use viworks_common::human;
use viworks_common::time::Timestamp;

use super::live::Told;
use super::result;
use super::words::{SKIPPED, word};
use crate::client::Results;
use crate::failure::Failure;
use crate::output::{self, Format, one_line, plain};
use crate::program;

/// Prints a row for each.
pub fn list(list: &RunList, format: Format, now: Timestamp) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(list);
    }
    output::table(
        ["RUN", "COMMAND", "CREATED", "BY", "RESULT"],
        list.items.iter().map(|run| {
            [
                run.id.to_string(),
                run.command.to_string(),
                human::relative(run.created_at, now),
                by(run),
                counts(run),
            ]
        }),
    )?;
    let rows = list.items.len();
    output::note(&if rows == 0 {
        format!(
            "nothing was run yet; what can be: {} command ls",
            program::name()
        )
    } else if list.next.is_some() {
        format!("the latest {rows}; more with --limit")
    } else {
        human::counted(rows, "run", "runs")
    });
    Ok(())
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

/// How much of the output is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// The last line of each gateway.
    Last,
    /// Everything that was kept.
    Full,
}

/// Prints what is known of a run as a whole.
pub fn head(run: &Run, now: Timestamp) -> Result<(), Failure> {
    let arguments: Vec<String> = run
        .arguments
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    output::line(&format!("run       {}", run.id))?;
    output::line(&format!(
        "command   {} {}",
        run.command,
        one_line(&arguments.join(" "))
    ))?;
    let times = |at| human::relative_and_exact(at, now);
    output::line(&format!(
        "created   {} by {}",
        times(run.created_at),
        one_line(&by(run))
    ))?;
    if let Some(reason) = &run.reason {
        output::line(&format!("reason    {}", one_line(reason)))?;
    }
    if let Some(dead) = run.retry_of {
        output::line(&format!("retries   {dead}, which could not be delivered"))?;
    }
    output::line(&format!("deadline  {}", times(run.deadline)))?;
    if let Some(at) = run.cancelled_at {
        output::line(&format!("cancelled {}", times(at)))?;
    }
    if let Some(at) = run.finished_at {
        output::line(&format!("finished  {}", times(at)))?;
    }
    output::line(&format!("result    {}\n", counts(run)))
}

/// Prints a row for each gateway.
pub fn last_lines(run: &Run, results: &Results, skipped: &[SkippedGateway]) -> Result<(), Failure> {
    let rows = result::rows(&results.commands, skipped, |_id| Told::default());
    output::line(&rows)?;
    if results.without_output == 0 {
        output::note(&format!(
            "the last line of each; everything that was kept: {}",
            in_full(run)
        ));
    }
    tell_without_output(run, results);
    Ok(())
}

/// Says of how many gateways the output is not shown, and what shows it.
pub fn tell_without_output(run: &Run, results: &Results) {
    if results.without_output > 0 {
        let gateways = human::counted(results.without_output, "gateway", "gateways");
        let full = in_full(run);
        output::note(&format!(
            "the output of {gateways} is not shown here; everything that was kept: {full}"
        ));
    }
}

fn in_full(run: &Run) -> String {
    format!("{} runs show {} --full", program::name(), run.id)
}

/// Prints why a gateway got no command, as [`whole`] prints those that did.
pub fn left_out(skipped: &SkippedGateway) -> Result<(), Failure> {
    output::line(&format!("══ {}  {SKIPPED}", skipped.gateway.name))?;
    output::line(&one_line(&skipped.detail))
}

/// Prints what one gateway answered, with all of its output.
pub fn whole(command: &CommandView) -> Result<(), Failure> {
    output::line(&format!(
        "══ {}  {}",
        command.gateway.name,
        word(command.state)
    ))?;
    for reason in result::why(command) {
        output::line(&one_line(&reason))?;
    }
    let Some(outcome) = command.outcome.as_ref() else {
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

/// Prints what a cancellation reached.
pub fn cancelled(run: &Run, answer: &RunCancelled, format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(answer);
    }
    output::line(&format!(
        "cancelled: {}; asked to stop on their gateway: {}; final already: {}",
        answer.cancelled, answer.requested, answer.final_before
    ))?;
    if answer.requested > 0 {
        output::note(&format!(
            "what came of it: {} runs wait {}",
            program::name(),
            run.id
        ));
    }
    Ok(())
}
