//! Leases: which commands a session is offered next, in the order in which they were submitted.

use super::command::{By, Change, Command, Course};
use crate::command::{CommandEvent, CommandState};
use crate::id::AgentRunId;
use crate::limits;
use crate::time::Timestamp;

const EXHAUSTED: &str = "the allowed number of deliveries is used up";

/// Up to which order a gateway may be offered commands: beyond that its journal could not tell old from new.
#[must_use]
pub const fn window(low_water: u64) -> u64 {
    low_water.saturating_add(limits::ORDER_WINDOW)
}

/// Whether a command waits to be offered now.
#[must_use]
pub fn waits(command: &Command, now: Timestamp) -> bool {
    command.state == CommandState::Queued && command.available_at <= now && command.deadline > now
}

/// Takes a command that [waits](waits()) for process `run` of its gateway. A change that does not end it is an offer; the
/// permit travels with it where the command may run twice.
#[must_use]
pub fn take(
    command: Command,
    run: AgentRunId,
    attempts_max: u32,
    now: Timestamp,
) -> Option<Change> {
    if !waits(&command, now) {
        return None;
    }
    let mut course = Course::new(command);
    if course.command.attempt >= attempts_max {
        course.because(CommandEvent::AttemptsExhausted, EXHAUSTED, now);
    } else {
        course.command.attempt += 1;
        if course.command.idempotent {
            course.command.released_to = Some(run);
            course.on(CommandEvent::Released, now);
        } else {
            course.on(CommandEvent::Dispatched, now);
        }
    }
    course.change(By::System, now)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::command::tests::{NOW, command, run};
    use super::*;

    fn offer(command: Command) -> Option<Change> {
        take(command, run(1), 3, NOW)
    }

    fn queued(idempotent: bool) -> Command {
        command(CommandState::Queued, idempotent)
    }

    #[test]
    fn the_permit_travels_with_the_offer_only_where_the_command_may_run_twice() {
        let again = offer(queued(true)).unwrap().command;
        assert_eq!(again.state, CommandState::Released);
        assert_eq!(again.released_to, Some(run(1)));
        assert_eq!(again.attempt, 2);
        let once = offer(queued(false)).unwrap().command;
        assert_eq!(once.state, CommandState::Dispatched);
        assert_eq!(once.released_to, None);
    }

    #[test]
    fn what_is_late_pauses_or_is_under_way_is_not_offered() {
        let late = Command {
            deadline: NOW,
            ..queued(true)
        };
        let pauses = Command {
            available_at: NOW.saturating_add(Duration::from_secs(1)),
            ..queued(true)
        };
        let under_way = command(CommandState::Dispatched, true);
        for command in [late, pauses, under_way] {
            assert_eq!(offer(command), None);
        }
    }

    #[test]
    fn a_command_that_was_delivered_too_often_is_dead() {
        let tired = Command {
            attempt: 3,
            ..queued(true)
        };
        let change = offer(tired).unwrap();
        assert_eq!(change.command.state, CommandState::Dead);
        assert_eq!(change.command.attempt, 3);
        assert!(change.ends());
    }

    #[test]
    fn the_window_begins_behind_the_low_water_mark() {
        assert_eq!(window(7), 7 + limits::ORDER_WINDOW);
    }
}
