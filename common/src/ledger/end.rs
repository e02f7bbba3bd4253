//! How commands end: by what their gateway reports, by an operator, by time, by the end of their gateway.

use std::time::Duration;

use serde_json::json;

use super::command::{By, Change, Command, Course, Ended};
use super::permit::{CANCELLED, LATE};
use super::record::{Record, Stance};
use crate::code::RejectCode;
use crate::command::{CommandEvent, CommandState, Outcome, OutcomeState};
use crate::id::{AgentId, AgentRunId, CommandId};
use crate::time::Timestamp;

const UNHEARD: &str = "its gateway did not report an outcome in the allowed time";
const REVOKED: &str = "its gateway was revoked";
const STARTED_ELSEWHERE: &str = "its gateway says that it never started, and another process with the same identity said before that it had: \
     a disk was set back or copied";

/// The gateway refused a command on arrival; it may be offered again at `again_at` when the refusal is of the moment.
#[must_use]
pub fn reject(
    command: Command,
    code: RejectCode,
    detail: String,
    again_at: Timestamp,
    now: Timestamp,
) -> Option<Change> {
    let by = By::Gateway(command.agent_id);
    let mut course = Course::new(command);
    if code.is_transient() {
        course.command.available_at = again_at;
    }
    let mut outcome = Outcome::without_run(OutcomeState::Rejected, detail.clone());
    outcome.reject_code = Some(code);
    if code.is_transient() {
        course.refused(code, &detail, now);
    } else {
        course.because(CommandEvent::Rejected(code), detail, now);
    }
    let change = course.change(by, now)?;
    Some(if change.ends() {
        kept(change, &outcome)
    } else {
        change
    })
}

/// An outcome is kept as the command's result.
fn kept(mut change: Change, outcome: &Outcome) -> Change {
    change.result = Some(Ended::from(outcome));
    change.command.has_result = true;
    change
}

/// The gateway started a command.
#[must_use]
pub fn start(command: Command, started_at: Timestamp, now: Timestamp) -> Option<Change> {
    let by = By::Gateway(command.agent_id);
    let mut course = Course::new(command);
    course.command.started_at = Some(started_at);
    course.on(CommandEvent::Started, now);
    course.change(by, now)
}

/// What a reported outcome comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reported {
    /// It ends the command, and is its result where the change has one.
    Ends(Box<Change>),
    /// It denies a start that another holder of the identity told: a security event. It is not kept, and ends the
    /// command unless that has ended.
    Denies(Option<Box<Change>>, Record),
    /// It came after the command had ended without it, and is kept beside that.
    Late(Box<Ended>, Record),
    /// It is known already, or contradicts what is: the first one counts.
    Repeated,
    /// Nobody here knows such a command: it is kept by itself.
    Orphan(Record),
}

/// Whether an outcome that process `run` reports says that nothing started, where another process has said that it did:
/// the journal is then an older one, or that of a copy. What the same process says is true: it may have told of a start
/// that came to nothing. So may an earlier process of a command that may run twice.
fn is_contradicted(command: &Command, run: AgentRunId, it: &Outcome) -> bool {
    let unstarted = matches!(
        it.state,
        OutcomeState::Expired | OutcomeState::Cancelled | OutcomeState::Rejected
    );
    let told = match command.state {
        CommandState::Running => true,
        CommandState::Indeterminate => command.started_at.is_some(),
        CommandState::Queued
        | CommandState::Dispatched
        | CommandState::Released
        | CommandState::Succeeded
        | CommandState::Failed
        | CommandState::TimedOut
        | CommandState::Rejected
        | CommandState::Expired
        | CommandState::Cancelled
        | CommandState::Dead => false,
    };
    told && !command.idempotent
        && command.released_to != Some(run)
        && unstarted
        && it.started_at.is_none()
}

/// Whether an outcome, of a command that has ended, says what was not known: how one ended that was given up, or that
/// one did run which was taken for never started, or of which its gateway said that it does not know. The database was
/// set back then, or another holder of the identity spoke first.
fn is_news(ended: &Command, it: &Outcome) -> bool {
    let is_open = ended.state == CommandState::Indeterminate;
    let is_known = ended.has_result && ended.started_at.is_some() && !is_open;
    let given_up = is_open && !ended.has_result && !ended.has_late_outcome;
    given_up || it.ran() && !is_known && !ended.has_late_run
}

/// Process `run` of a gateway reported an outcome; `command` is what the store has of it.
#[must_use]
pub fn report(
    command: Option<Command>,
    (agent_id, command_id, run): (AgentId, CommandId, AgentRunId),
    outcome: &Outcome,
    now: Timestamp,
) -> Reported {
    let by = By::Gateway(agent_id);
    let object = format!("command:{command_id}");
    let Some(command) = command else {
        return Reported::Orphan(Record {
            by,
            action: "command.orphan",
            object,
            stance: Stance::Noted,
            detail: json!({ "agent_id": agent_id, "state": outcome.state }),
        });
    };
    let run_id = command.run_id;
    if is_contradicted(&command, run, outcome) {
        if command.reason.as_deref() == Some(STARTED_ELSEWHERE) {
            // It was said before, and is known.
            return Reported::Repeated;
        }
        let record = Record {
            by,
            action: "command.start_denied",
            object,
            stance: Stance::Noted,
            detail: json!({
                "run_id": run_id,
                "agent_id": agent_id,
                "state": outcome.state,
                "agent_run_id": run,
                "started_by": command.released_to,
            }),
        };
        // It is not kept as the result: there is room for that of the process which started it.
        let mut course = Course::new(command);
        let unsure = CommandEvent::Ended(OutcomeState::Indeterminate);
        course.because(unsure, STARTED_ELSEWHERE, now);
        return Reported::Denies(course.change(by, now).map(Box::new), record);
    }
    let is_news = is_news(&command, outcome);
    let mut course = Course::new(command);
    course.command.started_at = outcome.started_at.or(course.command.started_at);
    course.on(CommandEvent::Ended(outcome.state), now);
    if let Some(change) = course.change(by, now) {
        return Reported::Ends(Box::new(kept(change, outcome)));
    }
    if is_news {
        let record = Record {
            by,
            action: "command.late_outcome",
            object,
            stance: Stance::Noted,
            detail: json!({ "run_id": run_id, "agent_id": agent_id }),
        };
        return Reported::Late(Box::new(Ended::from(outcome)), record);
    }
    Reported::Repeated
}

/// An operator wants the end of a command: without a permit it ends here, with one its gateway is asked, which is
/// `None`.
#[must_use]
pub fn cancel(command: Command, now: Timestamp) -> Option<Change> {
    let mut course = Course::new(command);
    course.command.cancel_requested = true;
    course.because(CommandEvent::CancelRequested, CANCELLED, now);
    course.change(By::Caller, now)
}

/// Ends what could not start in time.
#[must_use]
pub fn expire(command: Command, now: Timestamp) -> Option<Change> {
    if command.deadline > now {
        return None;
    }
    let mut course = Course::new(command);
    course.in_vain(CommandEvent::DeadlinePassed, LATE, now);
    course.change(By::System, now)
}

/// Whether a permitted command should have been heard of: it may start until its deadline, then run for its time, and
/// its gateway may be away for `wait` with the outcome.
#[must_use]
pub fn is_overdue(command: &Command, wait: Duration, now: Timestamp) -> bool {
    let heard_by = command
        .deadline
        .saturating_add(command.timeout)
        .saturating_add(wait);
    command.state.has_permit() && heard_by <= now
}

/// Ends what was permitted and never heard of again.
#[must_use]
pub fn give_up(command: Command, wait: Duration, now: Timestamp) -> Option<Change> {
    if !is_overdue(&command, wait, now) {
        return None;
    }
    let mut course = Course::new(command);
    course.because(CommandEvent::WaitExhausted, UNHEARD, now);
    course.change(By::System, now)
}

/// Its gateway was revoked. Without a permit it never ran; with one, nobody will ever be heard again who could tell.
#[must_use]
pub fn revoke(command: Command, now: Timestamp) -> Option<Change> {
    let event = if command.released_to.is_some() {
        CommandEvent::WaitExhausted
    } else {
        CommandEvent::CancelRequested
    };
    let mut course = Course::new(command);
    course.because(event, REVOKED, now);
    course.change(By::Caller, now)
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::super::command::tests::{NOW, agent, command, run};
    use super::*;

    fn after(change: Option<Change>) -> CommandState {
        change.expect("something changes").command.state
    }

    fn told(known: Command, state: OutcomeState) -> Reported {
        let whose = (known.agent_id, known.command_id, run(1));
        let outcome = Outcome::without_run(state, "");
        report(Some(known), whose, &outcome, NOW)
    }

    #[test]
    fn a_refusal_of_the_moment_is_offered_again_and_any_other_ends_the_command() {
        let later = NOW.saturating_add(Duration::from_secs(2));
        let refuse = |code| {
            let offered = command(CommandState::Dispatched, false);
            reject(offered, code, "no".to_owned(), later, NOW).unwrap()
        };
        let busy = refuse(RejectCode::Busy);
        assert_eq!(busy.command.state, CommandState::Queued);
        assert_eq!(busy.command.available_at, later);
        assert!(busy.result.is_none() && !busy.command.has_result);
        let refused = refuse(RejectCode::NotAllowed);
        assert_eq!(refused.command.state, CommandState::Rejected);
        assert!(refused.result.is_some() && refused.command.has_result);
        assert_eq!(refused.by, By::Gateway(agent()));
    }

    #[test]
    fn the_last_refusal_of_the_moment_is_told_when_the_time_is_over() {
        let refuse = |known: Command, code, detail: &str| {
            let offered = Command {
                state: CommandState::Dispatched,
                ..known
            };
            reject(offered, code, detail.to_owned(), NOW, NOW)
                .unwrap()
                .command
        };
        let waiting = command(CommandState::Queued, false);
        let busy = refuse(waiting, RejectCode::Busy, "");
        assert_eq!(busy.reason.as_deref(), Some("the gateway refused it: busy"));
        let lost = refuse(busy, RejectCode::JournalUnavailable, "the disk is full");
        let due = lost.deadline;
        let told =
            "its deadline passed before it could start; the gateway refused it: the disk is full";
        let expired = expire(lost.clone(), due).unwrap();
        assert_eq!(expired.reason.as_deref(), Some(told));
        assert_eq!(expired.command.reason.as_deref(), Some(told));
        // What ran in the end was not refused, and another end has another reason.
        let offered = |state| Command {
            state,
            ..lost.clone()
        };
        let started = start(offered(CommandState::Released), NOW, NOW).unwrap();
        assert_eq!(started.command.reason, None);
        let again = Command {
            reason: Some(Cow::Borrowed("its process is gone")),
            ..offered(CommandState::Released)
        };
        let started = start(again, NOW, NOW).unwrap();
        assert_eq!(started.command.reason, None);
        let cancelled = cancel(lost, NOW).unwrap();
        assert_eq!(cancelled.command.reason.as_deref(), Some(CANCELLED));
    }

    #[test]
    fn a_start_is_noted_once() {
        let started = start(command(CommandState::Released, false), NOW, NOW).unwrap();
        assert_eq!(started.command.started_at, Some(NOW));
        assert_eq!(start(started.command, NOW, NOW), None);
        assert_eq!(
            start(command(CommandState::Cancelled, false), NOW, NOW),
            None
        );
    }

    #[test]
    fn the_first_outcome_counts() {
        let running = command(CommandState::Running, false);
        let Reported::Ends(change) = told(running, OutcomeState::Succeeded) else {
            panic!("it ends");
        };
        assert_eq!(change.command.state, CommandState::Succeeded);
        assert!(change.result.is_some());
        assert_eq!(
            told(change.command, OutcomeState::Failed),
            Reported::Repeated
        );
    }

    #[test]
    fn nobody_says_that_what_another_process_started_never_did() {
        let of = |process: u128| Command {
            released_to: Some(run(process)),
            ..command(CommandState::Running, false)
        };
        let ended = |known: Command, state| {
            let change = match told(known, state) {
                Reported::Ends(change) => change,
                Reported::Denies(Some(change), record) => {
                    assert_eq!(record.action, "command.start_denied");
                    assert_eq!(record.detail["agent_run_id"], json!(run(1)));
                    assert_eq!(record.detail["started_by"], json!(run(2)));
                    change
                }
                other @ (Reported::Denies(None, _)
                | Reported::Late(..)
                | Reported::Repeated
                | Reported::Orphan(_)) => panic!("it does not end: {other:?}"),
            };
            (change.command.state, change.result.is_some())
        };
        for (state, own) in [
            (OutcomeState::Expired, CommandState::Expired),
            (OutcomeState::Cancelled, CommandState::Cancelled),
            (OutcomeState::Rejected, CommandState::Rejected),
        ] {
            assert_eq!(ended(of(2), state), (CommandState::Indeterminate, false));
            // A start of its own that came to nothing, and what nobody said to have started.
            assert_eq!(ended(of(1), state), (own, true));
            let silent = Command {
                state: CommandState::Released,
                ..of(2)
            };
            assert_eq!(ended(silent, state), (own, true));
        }
        // What ran is told by whoever has its journal.
        let ran = ended(of(2), OutcomeState::Succeeded);
        assert_eq!(ran, (CommandState::Succeeded, true));
        let stopped = Outcome {
            started_at: Some(NOW),
            ..Outcome::without_run(OutcomeState::Cancelled, "")
        };
        let whose = (agent(), of(2).command_id, run(1));
        let Reported::Ends(change) = report(Some(of(2)), whose, &stopped, NOW) else {
            panic!("it ends");
        };
        assert_eq!(change.command.state, CommandState::Cancelled);
    }

    #[test]
    fn the_outcome_of_the_process_that_started_it_is_kept_after_another_one_denied_that() {
        let running = |idempotent| Command {
            released_to: Some(run(2)),
            started_at: Some(NOW),
            ..command(CommandState::Running, idempotent)
        };
        let Reported::Denies(Some(change), _) = told(running(false), OutcomeState::Expired) else {
            panic!("it ends");
        };
        let denied = change.command;
        assert_eq!(denied.state, CommandState::Indeterminate);
        // The same again does not take the place of what is true.
        assert_eq!(
            told(denied.clone(), OutcomeState::Expired),
            Reported::Repeated
        );
        // Nor where it had ended by something else, and that is told of as well.
        let late = told(denied.clone(), OutcomeState::Succeeded);
        assert!(matches!(late, Reported::Late(ended, _) if ended.state == OutcomeState::Succeeded));
        let given_up = Command {
            reason: Some(Cow::Borrowed(UNHEARD)),
            ..denied
        };
        assert!(matches!(
            told(given_up, OutcomeState::Expired),
            Reported::Denies(None, _)
        ));
        // What may run twice was begun anew, and may have been withdrawn then.
        let Reported::Ends(change) = told(running(true), OutcomeState::Cancelled) else {
            panic!("it ends");
        };
        assert_eq!(change.command.state, CommandState::Cancelled);
    }

    #[test]
    fn an_outcome_after_the_end_is_kept_beside_it_once() {
        let given_up = command(CommandState::Indeterminate, false);
        let late = told(given_up.clone(), OutcomeState::Succeeded);
        assert!(
            matches!(late, Reported::Late(_, record) if record.action == "command.late_outcome")
        );
        let known = Command {
            has_late_outcome: true,
            ..given_up.clone()
        };
        assert_eq!(told(known, OutcomeState::Succeeded), Reported::Repeated);
        // The gateway itself called it indeterminate: then that was its outcome.
        let own = Command {
            has_result: true,
            ..given_up
        };
        assert_eq!(
            told(own.clone(), OutcomeState::Indeterminate),
            Reported::Repeated
        );
        assert_eq!(told(own, OutcomeState::Cancelled), Reported::Repeated);
    }

    #[test]
    fn that_it_ran_is_kept_beside_an_end_that_did_not_know_it() {
        let ran = Outcome {
            started_at: Some(NOW),
            ..Outcome::without_run(OutcomeState::Succeeded, "")
        };
        let say = |known: &Command, outcome: &Outcome| {
            let whose = (agent(), known.command_id, run(1));
            report(Some(known.clone()), whose, outcome, NOW)
        };
        let ended = |state, has_result| Command {
            has_result,
            ..command(state, false)
        };
        for known in [
            // By a database that was set back to before its permit.
            ended(CommandState::Expired, false),
            ended(CommandState::Cancelled, false),
            ended(CommandState::Dead, false),
            // By another holder, with a journal of before its start.
            ended(CommandState::Expired, true),
            ended(CommandState::Rejected, true),
            // By another holder that had copied a journal in which it ran.
            ended(CommandState::Indeterminate, true),
            // And after it was given up.
            Command {
                has_late_outcome: true,
                ..ended(CommandState::Indeterminate, false)
            },
        ] {
            assert!(matches!(say(&known, &ran), Reported::Late(..)), "{known:?}");
            let known = Command {
                has_late_outcome: true,
                has_late_run: true,
                ..known
            };
            assert_eq!(say(&known, &ran), Reported::Repeated);
        }
        // Of what ran twice, as it may, the first outcome counts.
        let known = Command {
            started_at: Some(NOW),
            ..ended(CommandState::Failed, true)
        };
        assert_eq!(say(&known, &ran), Reported::Repeated);
        // That it never started is no news of what ended so.
        let never = Outcome::without_run(OutcomeState::Cancelled, "");
        let expired = ended(CommandState::Expired, false);
        assert_eq!(say(&expired, &never), Reported::Repeated);
    }

    #[test]
    fn an_outcome_of_an_unknown_command_is_kept_by_itself() {
        let known = command(CommandState::Running, false);
        let whose = (known.agent_id, known.command_id, run(1));
        let outcome = Outcome::without_run(OutcomeState::Failed, "");
        let told = report(None, whose, &outcome, NOW);
        assert!(matches!(told, Reported::Orphan(record) if record.action == "command.orphan"));
    }

    #[test]
    fn a_cancel_ends_what_has_no_permit_and_asks_for_the_end_of_the_rest() {
        for state in [CommandState::Queued, CommandState::Dispatched] {
            assert_eq!(
                after(cancel(command(state, false), NOW)),
                CommandState::Cancelled
            );
        }
        for state in [CommandState::Released, CommandState::Running] {
            assert_eq!(cancel(command(state, false), NOW), None);
        }
    }

    #[test]
    fn only_what_has_no_permit_expires_and_not_before_its_deadline() {
        let waiting = command(CommandState::Queued, false);
        assert_eq!(expire(waiting.clone(), NOW), None);
        let due = waiting.deadline;
        assert_eq!(after(expire(waiting, due)), CommandState::Expired);
        assert_eq!(expire(command(CommandState::Released, false), due), None);
    }

    #[test]
    fn what_was_permitted_is_given_up_after_deadline_time_limit_and_wait() {
        let wait = Duration::from_secs(10);
        let running = command(CommandState::Running, false);
        let due = running.deadline.saturating_add(running.timeout + wait);
        let before = due.saturating_sub(Duration::from_micros(1));
        assert_eq!(give_up(running.clone(), wait, before), None);
        let given_up = give_up(running, wait, due);
        assert_eq!(after(given_up), CommandState::Indeterminate);
        let waiting = command(CommandState::Queued, false);
        assert_eq!(give_up(waiting, wait, due), None);
    }

    #[test]
    fn revoking_a_gateway_ends_everything() {
        let ends = |state| after(revoke(command(state, false), NOW));
        assert_eq!(ends(CommandState::Queued), CommandState::Cancelled);
        assert_eq!(ends(CommandState::Dispatched), CommandState::Cancelled);
        assert_eq!(ends(CommandState::Released), CommandState::Indeterminate);
        assert_eq!(ends(CommandState::Running), CommandState::Indeterminate);
    }
}
