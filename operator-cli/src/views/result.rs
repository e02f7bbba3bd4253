//! What became of a run: a row for each gateway, one sentence, and a document with everything.

use std::num::NonZeroUsize;

use serde::Serialize;
use viworks_api::{CommandView, Run, SkippedGateway};
use viworks_common::command::CommandState;
use viworks_common::human;
use viworks_common::id::CommandId;

use super::document::{Document, Kind};
use super::live::Told;
use super::words::{SKIPPED, duration, word};
use crate::client::Results;
use crate::failure::Failure;
use crate::output::{self, last_line, plain};
use crate::verdict::Tally;

#[derive(Serialize)]
struct Everything<'r> {
    run: &'r Run,
    commands: &'r [CommandView],
    skipped: &'r [SkippedGateway],
    /// Of how many commands the output is not among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    without_output: Option<NonZeroUsize>,
}

/// Prints everything that is known of a run as one document.
pub fn document(run: &Run, results: &Results, skipped: &[SkippedGateway]) -> Result<(), Failure> {
    let body = Everything {
        run,
        commands: &results.commands,
        skipped,
        without_output: NonZeroUsize::new(results.without_output),
    };
    Document::new(Kind::RunResult, body).print()
}

/// One row for each gateway that was meant, whether it got the command or not.
pub fn rows(
    commands: &[CommandView],
    skipped: &[SkippedGateway],
    told: impl Fn(CommandId) -> Told,
) -> String {
    let ran = commands.iter().map(|command| {
        let outcome = command.outcome.as_ref();
        [
            command.gateway.name.to_string(),
            word(command.state).to_owned(),
            outcome
                .and_then(|outcome| outcome.exit_code)
                .map_or_else(|| "–".to_owned(), |code| code.to_string()),
            outcome.map_or_else(|| "–".to_owned(), |outcome| duration(outcome.duration_ms)),
            in_a_word(command, told(command.id)),
        ]
    });
    let none = || "–".to_owned();
    let left_out = skipped.iter().map(|skipped| {
        [
            skipped.gateway.name.to_string(),
            SKIPPED.to_owned(),
            none(),
            none(),
            plain(&skipped.detail),
        ]
    });
    let mut rows: Vec<[String; 5]> = ran.chain(left_out).collect();
    rows.sort();
    output::render(["GATEWAY", "STATUS", "EXIT", "TIME", "OUTPUT"], rows)
}

/// What the table says of a command's output, never without what is missing.
fn in_a_word(command: &CommandView, told: Told) -> String {
    let why = said(command);
    let well = matches!(
        command.state,
        CommandState::Succeeded | CommandState::Running
    );
    let mut text = match told.held {
        Some(line) if well || why.is_empty() => line,
        None if well && told.printed > 0 => {
            let lines = if told.printed == 1 { "line" } else { "lines" };
            format!("{} {lines} above", human::count(told.printed))
        }
        // Why it ended does not take the place of what it wrote.
        Some(line) if line != why => format!("{why} · it wrote: {line}"),
        Some(_) | None => why,
    };
    let not_kept = command.outcome.as_ref().map_or(0, |outcome| {
        [&outcome.stdout, &outcome.stderr]
            .into_iter()
            .flatten()
            .fold(0_u64, |sum, view| sum.saturating_add(view.cut_bytes))
    });
    let aside = if well { reason(command) } else { String::new() };
    if !aside.is_empty() && aside != text {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str("⚠ ");
        text.push_str(&aside);
    }
    for (bytes, what) in [(told.not_shown, "not shown"), (not_kept, "not kept")] {
        if bytes > 0 {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str("… ");
            text.push_str(&human::count(bytes));
            text.push_str(" bytes ");
            text.push_str(what);
        }
    }
    text
}

/// The last line of what a command wrote, or why it did not run.
fn said(command: &CommandView) -> String {
    let Some(outcome) = &command.outcome else {
        return plain(command.reason.as_deref().unwrap_or(""));
    };
    let text = |view: &Option<viworks_api::OutputView>| {
        view.as_ref().map(|view| {
            if view.cut_bytes > 0 {
                view.tail.text.clone()
            } else {
                format!("{}{}", view.head.text, view.tail.text)
            }
        })
    };
    let stdout = text(&outcome.stdout).unwrap_or_default();
    let stderr = text(&outcome.stderr).unwrap_or_default();
    let preferred = if command.state == CommandState::Succeeded {
        // Its reason is told beside it: it is not what became of the command.
        [stdout, stderr, String::new()]
    } else {
        [reason(command), stderr, stdout]
    };
    preferred
        .iter()
        .map(|text| last_line(text))
        .find(|line| !line.is_empty())
        .unwrap_or_default()
}

/// What the gateway, or the backend, says about a command's end, such as what it left running.
fn reason(command: &CommandView) -> String {
    let outcome = command.outcome.as_ref();
    let said = outcome.and_then(|outcome| outcome.reason.as_deref());
    last_line(said.or(command.reason.as_deref()).unwrap_or_default())
}

/// One sentence whose numbers add up to the number of targets.
pub fn sentence(tally: &Tally) -> String {
    let mut parts = vec![format!("{} ok", tally.ok)];
    for (number, word) in [
        (tally.failed, "failed"),
        (tally.no_answer, "no answer"),
        (tally.open, "still open"),
        (tally.skipped, "skipped"),
    ] {
        if number > 0 {
            parts.push(format!("{number} {word}"));
        }
    }
    format!("{} = {}", parts.join(", "), tally.total())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_adds_up() {
        use CommandState as S;
        let tally = Tally::of(&[S::Succeeded, S::Failed, S::Dead, S::Queued], 2);
        assert_eq!(
            sentence(&tally),
            "1 ok, 1 failed, 1 no answer, 1 still open, 2 skipped = 6"
        );
    }
}
