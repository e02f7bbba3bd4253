//! What became of a run: a row for each gateway, one sentence, and a document with everything.

use std::borrow::Cow;
use std::num::NonZeroUsize;

use serde::Serialize;
use viworks_api::{CommandView, Run, SkippedGateway};
use viworks_common::command::CommandState;
use viworks_common::human;
use viworks_common::id::CommandId;

use super::document::{Document, Kind};
use super::live::Told;
use super::words::{SKIPPED, duration, said_later, word};
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
    why(command)
        .iter()
        .map(|text| last_line(text))
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

/// The same, whole: of a command that had ended before its gateway said how, first why it had.
pub(super) fn why(command: &CommandView) -> Vec<Cow<'_, str>> {
    let known = command.reason.as_deref();
    let outcome = command.outcome.as_ref();
    let said = outcome.and_then(|outcome| outcome.reason.as_deref());
    match outcome.and_then(said_later) {
        None => said.or(known).map(Cow::Borrowed).into_iter().collect(),
        Some(later) => [
            known.map(Cow::Borrowed),
            Some(Cow::Owned(later)),
            said.map(Cow::Borrowed),
        ]
        .into_iter()
        .flatten()
        .filter(|text| !text.is_empty())
        .collect(),
    }
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
    use serde_json::json;

    use super::*;

    fn command(state: &str, reason: Option<&str>, outcome: &serde_json::Value) -> CommandView {
        let command = json!({
            "kind": "Command", "id": "01940f5e-0001-7000-8000-000000000001",
            "run_id": "01940f5e-0002-7000-8000-000000000002",
            "gateway": {"id": "01940f5e-0003-7000-8000-000000000003", "name": "gw-1"},
            "state": state, "attempt": 1, "order": 1, "risk": "change", "idempotent": false, "timeout_ms": 1_000,
            "deadline": "2026-01-02T02:00:00Z", "created_at": "2026-01-02T01:00:00Z", "released_at": null,
            "started_at": null, "finished_at": null, "cancel_requested_at": null, "reason": reason,
            "outcome": outcome,
        });
        serde_json::from_value(command).unwrap()
    }

    #[test]
    fn an_answer_that_came_after_the_end_is_told_beside_that() {
        let late = json!({
            "exit_code": 3, "started_at": "2026-01-02T01:00:01Z", "duration_ms": 12, "late": true,
            "late_state": "failed", "reason": "it left something running",
        });
        let rejected = command("rejected", Some("not here"), &late);
        let row = rows(&[rejected], &[], |_id| Told::default());
        let told =
            "not here; the gateway said later that it ran: failed; it left something running";
        assert!(row.contains("✕ rejected") && row.contains(told), "{row}");
        // In time, what the gateway says takes the place of what is known here.
        let in_time = json!({"duration_ms": 0, "reason": "no such unit"});
        let rejected = command("rejected", Some("not here"), &in_time);
        assert_eq!(why(&rejected), ["no such unit"]);
        let row = rows(&[rejected], &[], |_id| Told::default());
        assert!(
            row.contains("no such unit") && !row.contains("later"),
            "{row}"
        );
    }

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
