//! Start permits: what a gateway is told about a command that it has journalled.

use super::command::{By, Change, Command, Course};
use crate::command::{CommandEvent, CommandState};
use crate::id::AgentRunId;
use crate::rules::{Rule, Rulebook};
use crate::time::Timestamp;

pub(super) const LATE: &str = "its deadline passed before it could start";
pub(super) const CANCELLED: &str = "cancelled by an operator";
const OTHER_RUN: &str = "its start permit belonged to a process of the gateway agent that is gone";

/// What a gateway says of a command that it has journalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// Whether it may run twice, in the gateway's own opinion.
    pub idempotent: bool,
    /// Whether it waits for GO.
    pub awaiting_permit: bool,
}

/// What it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permit {
    /// It may start until then.
    Go(Timestamp),
    /// It never may.
    Drop,
    /// It is to be cancelled.
    Cancel,
    /// Nothing.
    Wait,
}

/// Decides about the permit of a command that process `run` of its gateway has journalled; `command` is what the store
/// has of it. Where the permit was given with the offer, there is mostly nothing to write.
#[must_use]
pub fn accept(
    rules: impl Rulebook,
    command: Option<Command>,
    run: AgentRunId,
    accepted: Accepted,
    now: Timestamp,
) -> (Permit, Option<Change>) {
    let Some(command) = command.filter(|command| !command.state.is_final()) else {
        return (Permit::Drop, None);
    };
    let mut course = Course::new(command);
    if course.command.idempotent && !accepted.idempotent {
        course.command.idempotent = false;
        course.touch();
    }
    let here = course.command.released_to == Some(run) || !rules.keeps(Rule::PermitBoundToRun);
    let state = course.command.state;
    let permit = if state.awaits_permit() {
        release(&mut course, run, now)
    } else if state.has_permit() && !here {
        release_again(&mut course, run, now)
    } else if state == CommandState::Released && course.command.cancel_requested {
        Permit::Cancel
    } else if state == CommandState::Released && accepted.awaiting_permit {
        Permit::Go(course.command.deadline)
    } else {
        Permit::Wait
    };
    (permit, course.change(By::System, now))
}

/// The first permit of a command, for exactly this process.
fn release(course: &mut Course, run: AgentRunId, now: Timestamp) -> Permit {
    if course.command.deadline <= now {
        course.in_vain(CommandEvent::DeadlinePassed, LATE, now);
        return Permit::Drop;
    }
    if course.command.state == CommandState::Queued {
        // The offer came from an older session, or its lease was given up meanwhile; the gateway kept it.
        course.on(CommandEvent::Dispatched, now);
    }
    course.command.released_to = Some(run);
    course.on(CommandEvent::Released, now);
    Permit::Go(course.command.deadline)
}

/// A permit that belongs to another process: it may have been used there.
fn release_again(course: &mut Course, run: AgentRunId, now: Timestamp) -> Permit {
    course.because(CommandEvent::RunGone, OTHER_RUN, now);
    if course.command.state.is_final() {
        return Permit::Drop;
    }
    if course.command.cancel_requested {
        course.because(CommandEvent::CancelRequested, CANCELLED, now);
        return Permit::Drop;
    }
    release(course, run, now)
}

#[cfg(test)]
mod tests {
    use super::super::command::tests::{NOW, command, run};
    use super::*;
    use crate::rules::Complete;

    const AWAITS: Accepted = Accepted {
        idempotent: true,
        awaiting_permit: true,
    };

    fn decide(command: Command, accepted: Accepted) -> (Permit, Option<Change>) {
        accept(Complete, Some(command), run(1), accepted, NOW)
    }

    #[test]
    fn the_first_permit_is_for_the_process_that_asked() {
        for state in [CommandState::Dispatched, CommandState::Queued] {
            let offered = command(state, false);
            let deadline = offered.deadline;
            let (permit, change) = decide(offered, AWAITS);
            assert_eq!(permit, Permit::Go(deadline));
            let change = change.unwrap();
            assert_eq!(
                (change.from, change.command.state),
                (state, CommandState::Released)
            );
            assert_eq!(change.command.released_to, Some(run(1)));
        }
    }

    #[test]
    fn what_is_late_unknown_or_over_is_dropped() {
        let late = Command {
            deadline: NOW,
            ..command(CommandState::Dispatched, false)
        };
        let (permit, change) = decide(late, AWAITS);
        assert_eq!(permit, Permit::Drop);
        assert_eq!(change.unwrap().command.state, CommandState::Expired);
        let over = command(CommandState::Cancelled, false);
        assert_eq!(decide(over, AWAITS), (Permit::Drop, None));
        let unknown = accept(Complete, None, run(1), AWAITS, NOW);
        assert_eq!(unknown, (Permit::Drop, None));
    }

    #[test]
    fn a_permit_of_another_process_may_have_been_used_there() {
        let other = |idempotent| Command {
            released_to: Some(run(2)),
            ..command(CommandState::Released, idempotent)
        };
        let (permit, change) = decide(other(false), AWAITS);
        assert_eq!(permit, Permit::Drop);
        assert_eq!(change.unwrap().command.state, CommandState::Indeterminate);
        let (permit, change) = decide(other(true), AWAITS);
        assert!(matches!(permit, Permit::Go(_)));
        assert_eq!(change.unwrap().command.released_to, Some(run(1)));
        let unwanted = Command {
            cancel_requested: true,
            ..other(true)
        };
        let (permit, change) = decide(unwanted, AWAITS);
        assert_eq!(permit, Permit::Drop);
        assert_eq!(change.unwrap().command.state, CommandState::Cancelled);
    }

    #[test]
    fn a_permit_given_with_the_offer_is_mostly_only_said_again() {
        let released = command(CommandState::Released, true);
        let runs = Accepted {
            idempotent: true,
            awaiting_permit: false,
        };
        assert_eq!(decide(released.clone(), runs), (Permit::Wait, None));
        let go = Permit::Go(released.deadline);
        assert_eq!(decide(released.clone(), AWAITS), (go, None));
        // The stricter opinion is kept.
        let stricter = Accepted {
            idempotent: false,
            awaiting_permit: true,
        };
        let (permit, change) = decide(released.clone(), stricter);
        assert_eq!(permit, go);
        let change = change.unwrap();
        assert_eq!(change.from, change.command.state);
        assert!(!change.command.idempotent);
        let unwanted = Command {
            cancel_requested: true,
            ..released
        };
        assert_eq!(decide(unwanted, AWAITS), (Permit::Cancel, None));
    }
}
