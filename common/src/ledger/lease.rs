//! Leases: which commands a session is offered next, in the order in which they were submitted.

use std::time::Duration;

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

/// Takes a command that [waits](waits()) for process `run` of its gateway. A change that does not end it is an offer;
/// the permit travels with it where the command may run twice.
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
        course.in_vain(CommandEvent::AttemptsExhausted, EXHAUSTED, now);
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

/// How long a command rests that its gateway was too busy for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// After its first delivery; twice as long after each further one.
    pub first: Duration,
    /// The longest.
    pub longest: Duration,
}

impl Backoff {
    /// The rest after `attempt` deliveries.
    #[must_use]
    pub fn after(&self, attempt: u32) -> Duration {
        let doublings = attempt.saturating_sub(1).min(20);
        self.first.saturating_mul(1 << doublings).min(self.longest)
    }
}

/// A session that has kept room for a command that is being submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The session's epoch.
    pub epoch: u64,
    /// The gateway's process.
    pub run: AgentRunId,
}

/// What a gateway is like at the moment when a command is submitted for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scene {
    /// The epoch of its live session.
    pub session_epoch: Option<u64>,
    /// Up to which order everything of it is final.
    pub low_water: u64,
    /// Whether an older command waits.
    pub waits: bool,
}

/// Offers a command at its birth, in the transaction that submits it: to the session that has kept room for it, if that
/// is still its gateway's live one, and nothing older is passed by.
#[must_use]
pub fn at_birth(
    command: Command,
    order: u64,
    place: Place,
    scene: Scene,
    now: Timestamp,
) -> Option<Change> {
    let live = scene.session_epoch == Some(place.epoch);
    if !live || scene.waits || order > window(scene.low_water) {
        return None;
    }
    take(command, place.run, u32::MAX, now)
}

#[cfg(test)]
mod tests {
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
    fn a_new_command_is_offered_at_its_birth_only_to_the_live_session_in_its_turn() {
        let new = |idempotent| Command {
            attempt: 0,
            ..queued(idempotent)
        };
        let place = Place {
            epoch: 4,
            run: run(1),
        };
        let scene = Scene {
            session_epoch: Some(4),
            low_water: 7,
            waits: false,
        };
        let last = window(7);
        for (idempotent, state) in [
            (true, CommandState::Released),
            (false, CommandState::Dispatched),
        ] {
            let born = at_birth(new(idempotent), last, place, scene, NOW).unwrap();
            assert_eq!(
                (born.from, born.command.state),
                (CommandState::Queued, state)
            );
            assert_eq!(born.command.attempt, 1);
            assert_eq!(born.command.released_to, idempotent.then(|| run(1)));
        }
        assert_eq!(at_birth(new(true), last + 1, place, scene, NOW), None);
        let elsewhere = [
            Scene {
                session_epoch: Some(5),
                ..scene
            },
            Scene {
                session_epoch: None,
                ..scene
            },
            Scene {
                waits: true,
                ..scene
            },
        ];
        for scene in elsewhere {
            assert_eq!(at_birth(new(true), 8, place, scene, NOW), None);
        }
    }

    #[test]
    fn a_rest_doubles_with_each_delivery_up_to_the_longest() {
        let seconds = Duration::from_secs;
        let backoff = Backoff {
            first: seconds(1),
            longest: seconds(60),
        };
        let rests = [0, 1, 2, 3, 6, 7, 8, u32::MAX].map(|attempt| backoff.after(attempt));
        assert_eq!(rests, [1, 1, 2, 4, 32, 60, 60, 60].map(seconds));
    }

    #[test]
    fn the_window_begins_behind_the_low_water_mark() {
        assert_eq!(window(7), 7 + limits::ORDER_WINDOW);
    }
}
