//! What became of a run: a row for each gateway, one sentence, and an exit code.

use viworks_api::{CommandView, SkippedGateway};
use viworks_common::command::CommandState;
use viworks_common::human;
use viworks_common::id::CommandId;
use viworks_runtime::exit::ExitCode;

use super::live::Told;
use crate::client::Client;
use crate::error::Failure;
use crate::output::{self, last_line, plain};

/// How many commands' output is fetched for a table; beyond that the run's page is the better reader.
const OUTPUTS_SHOWN_MAX: usize = 50;

/// Adds the retained output, for as many commands as a person reads.
pub async fn with_output(
    client: &Client,
    commands: Vec<CommandView>,
) -> Result<Vec<CommandView>, Failure> {
    if commands.len() > OUTPUTS_SHOWN_MAX {
        return Ok(commands);
    }
    let mut complete = Vec::with_capacity(commands.len());
    for command in commands {
        complete.push(if command.outcome.is_some() {
            client.command(command.run_id, command.id).await?
        } else {
            command
        });
    }
    Ok(complete)
}

/// One row for each gateway that was meant, whether it got the command or not.
pub fn print_commands(
    commands: &[CommandView],
    skipped: &[SkippedGateway],
    told: impl Fn(CommandId) -> Told,
) -> Result<(), Failure> {
    output::line(&rows(commands, skipped, told))
}

/// The rows as text.
pub(super) fn rows(
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
            "○ skipped".to_owned(),
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

/// A state as a table shows it: a shape and a word.
pub const fn word(state: CommandState) -> &'static str {
    match state {
        CommandState::Queued => "◌ queued",
        CommandState::Dispatched => "◌ dispatched",
        CommandState::Released => "◌ released",
        CommandState::Running => "◐ running",
        CommandState::Succeeded => "✓ ok",
        CommandState::Failed => "✕ failed",
        CommandState::TimedOut => "✕ timed_out",
        CommandState::Rejected => "✕ rejected",
        CommandState::Expired => "○ expired",
        CommandState::Cancelled => "✕ cancelled",
        CommandState::Dead => "○ dead",
        CommandState::Indeterminate => "✕ indeterminate",
    }
}

/// A duration as people read it.
pub fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        _ => format!("{} m {} s", ms / 60_000, ms % 60_000 / 1_000),
    }
}

/// One sentence whose numbers add up to the number of targets.
pub(super) fn summary(states: &[CommandState], skipped: usize) -> String {
    let count =
        |wanted: &[CommandState]| states.iter().filter(|state| wanted.contains(state)).count();
    let ok = count(&[CommandState::Succeeded]);
    let no_answer = count(&[CommandState::Expired, CommandState::Dead]);
    let open = states.iter().filter(|state| !state.is_final()).count();
    let failed = states.len() - ok - no_answer - open;
    let mut parts = vec![format!("{ok} ok")];
    for (number, word) in [
        (failed, "failed"),
        (no_answer, "no answer"),
        (open, "still open"),
        (skipped, "skipped"),
    ] {
        if number > 0 {
            parts.push(format!("{number} {word}"));
        }
    }
    format!("{} = {}", parts.join(", "), states.len() + skipped)
}

/// Failed beats no answer beats pending; nothing targeted is not found.
pub fn exit_code(states: impl Iterator<Item = CommandState>) -> ExitCode {
    let mut exit = None;
    let rank = |code: ExitCode| {
        let order = [ExitCode::Pending, ExitCode::NoAnswer, ExitCode::Failed];
        order
            .iter()
            .position(|ranked| *ranked == code)
            .map_or(0, |position| position + 1)
    };
    for state in states {
        let code = match state {
            CommandState::Succeeded => ExitCode::Ok,
            CommandState::Failed
            | CommandState::TimedOut
            | CommandState::Rejected
            | CommandState::Cancelled
            | CommandState::Indeterminate => ExitCode::Failed,
            CommandState::Expired | CommandState::Dead => ExitCode::NoAnswer,
            CommandState::Queued
            | CommandState::Dispatched
            | CommandState::Released
            | CommandState::Running => ExitCode::Pending,
        };
        if exit.is_none_or(|current| rank(code) > rank(current)) {
            exit = Some(code);
        }
    }
    exit.unwrap_or(ExitCode::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_beats_no_answer_beats_pending() {
        use CommandState as S;
        assert_eq!(exit_code([S::Succeeded].into_iter()), ExitCode::Ok);
        assert_eq!(
            exit_code([S::Succeeded, S::Queued].into_iter()),
            ExitCode::Pending
        );
        assert_eq!(
            exit_code([S::Expired, S::Running].into_iter()),
            ExitCode::NoAnswer
        );
        assert_eq!(
            exit_code([S::Dead, S::Indeterminate].into_iter()),
            ExitCode::Failed
        );
        assert_eq!(exit_code(std::iter::empty()), ExitCode::NotFound);
    }

    #[test]
    fn the_summary_adds_up() {
        use CommandState as S;
        assert_eq!(
            summary(&[S::Succeeded, S::Failed, S::Dead, S::Queued], 2),
            "1 ok, 1 failed, 1 no answer, 1 still open, 2 skipped = 6"
        );
    }
}
