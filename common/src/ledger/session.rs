//! What sessions come to: the fence, and what older sessions, ended sessions and restored databases leave behind.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::command::{By, Change, Command, Course};
use super::permit::CANCELLED;
use crate::command::{CommandEvent, CommandState};
use crate::id::{AgentRunId, CommandId};
use crate::rules::{Rule, Rulebook};
use crate::time::Timestamp;

const NO_TRACE: &str =
    "the process of the gateway agent that held its permit is gone and left no trace of it";
const ROLLED_BACK: &str = "the backend's database was rolled back past it";

/// Whether a session of `epoch` may change what belongs to its gateway, whose `confirmed` epoch this is.
#[must_use]
pub fn may_write(rules: impl Rulebook, confirmed: u64, revoked: bool, epoch: u64) -> bool {
    (confirmed == epoch && !revoked) || !rules.keeps(Rule::EpochFence)
}

/// The process that speaks for a gateway from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Successor {
    /// The process.
    pub run: AgentRunId,
    /// The commands in its journal whose outcome it has not reported, or of which it has none yet.
    pub unreported: BTreeSet<CommandId>,
    /// It has the identity by the decision of an operator, and another holder had it before: its journal knows nothing
    /// of what that one did.
    pub by_decision: bool,
}

impl Successor {
    /// Another machine, which is still to come and has no journal.
    #[must_use]
    pub const fn to_come() -> Self {
        Self {
            run: AgentRunId::from_uuid(Uuid::nil()),
            unreported: BTreeSet::new(),
            by_decision: false,
        }
    }
}

/// What older sessions and processes left behind, once a newer session is confirmed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Older {
    /// What is to be written.
    pub changes: Vec<Change>,
    /// Permitted to this process, and until when they may start: GO again.
    pub released: Vec<(CommandId, Timestamp)>,
    /// To be cancelled: said again.
    pub cancel_requested: Vec<CommandId>,
    /// Whether commands wait to be offered.
    pub waiting: bool,
}

/// Settles what is open of a gateway, in order, for the process that speaks for it from now on.
#[must_use]
pub fn settle_older(
    rules: impl Rulebook,
    open: impl IntoIterator<Item = Command>,
    successor: &Successor,
    now: Timestamp,
) -> Older {
    let mut older = Older::default();
    for command in open {
        let mut course = Course::new(command);
        let bound = rules.keeps(Rule::PermitBoundToRun);
        let here = course.command.released_to == Some(successor.run) || !bound;
        // What was permitted to the holder that was put out may have started there, whatever a copied journal says.
        let elsewhere = successor.by_decision && !here && !course.command.idempotent;
        let known = successor.unreported.contains(&course.command.command_id) && !elsewhere;
        if course.command.state == CommandState::Dispatched {
            course.on(CommandEvent::SessionLost, now);
        } else if course.command.state.has_permit() {
            // The same process without a trace of it: an inline permit that never arrived may be given again. One that
            // is not idempotent was journalled before its permit, so it is asked about once more.
            if !known && (!here || course.command.idempotent) {
                run_gone(&mut course, now);
            }
            older.sort(&course.command, here);
        }
        older.waiting |= course.command.state == CommandState::Queued;
        older.changes.extend(course.change(By::System, now));
    }
    older
}

impl Older {
    fn sort(&mut self, command: &Command, here: bool) {
        let id = command.command_id;
        if command.state.is_final() {
            return;
        }
        if command.released_to.is_some() && command.cancel_requested {
            self.cancel_requested.push(id);
        } else if command.state == CommandState::Released && here && !command.idempotent {
            // Of any other the gateway's own opinion is to be stored first, which it says again: by its catalogue it
            // may be one that must not run twice.
            self.released.push((id, command.deadline));
        }
    }
}

fn run_gone(course: &mut Course, now: Timestamp) {
    if course.command.idempotent {
        // It goes back to the queue, which is no reason for an operator.
        course.on(CommandEvent::RunGone, now);
    } else {
        course.because(CommandEvent::RunGone, NO_TRACE, now);
    }
    if course.command.state == CommandState::Queued && course.command.cancel_requested {
        course.because(CommandEvent::CancelRequested, CANCELLED, now);
    }
}

/// The session that held a command ended: what was offered and not permitted goes back to the queue.
#[must_use]
pub fn lose(command: Command, now: Timestamp) -> Option<Change> {
    let mut course = Course::new(command);
    course.on(CommandEvent::SessionLost, now);
    course.change(By::System, now)
}

/// The database forgot what happened since a backup: whatever may have run meanwhile, and is not in the gateway's
/// journal, can never be offered again.
#[must_use]
pub fn settle_rolled_back(
    open: impl IntoIterator<Item = Command>,
    unreported: &BTreeSet<CommandId>,
    now: Timestamp,
) -> Vec<Change> {
    let forgotten = |command: &Command| !unreported.contains(&command.command_id);
    let end = |command| {
        let mut course = Course::new(command);
        course.because(CommandEvent::RolledBack, ROLLED_BACK, now);
        course.change(By::System, now)
    };
    open.into_iter().filter(forgotten).filter_map(end).collect()
}

#[cfg(test)]
mod tests {
    use super::super::command::tests::{NOW, command, run};
    use super::*;
    use crate::rules::Complete;

    fn settle(open: Command, journalled: bool) -> Older {
        settle_for(open, journalled, false)
    }

    fn settle_for(open: Command, journalled: bool, by_decision: bool) -> Older {
        let unreported = journalled.then_some(open.command_id);
        let successor = Successor {
            run: run(1),
            unreported: unreported.into_iter().collect(),
            by_decision,
        };
        settle_older(Complete, [open], &successor, NOW)
    }

    fn of_another(state: CommandState, idempotent: bool) -> Command {
        Command {
            released_to: Some(run(2)),
            ..command(state, idempotent)
        }
    }

    #[test]
    fn only_the_session_of_the_confirmed_epoch_may_write() {
        assert!(may_write(Complete, 5, false, 5));
        assert!(!may_write(Complete, 5, false, 4));
        assert!(!may_write(Complete, 5, false, 6));
        assert!(!may_write(Complete, 5, true, 5));
    }

    #[test]
    fn what_was_only_offered_is_offered_again() {
        let older = settle(command(CommandState::Dispatched, false), false);
        assert_eq!(older.changes[0].command.state, CommandState::Queued);
        assert!(older.waiting);
    }

    #[test]
    fn a_permit_of_this_process_is_said_again() {
        let older = settle(command(CommandState::Released, false), true);
        assert_eq!(older.released.len(), 1);
        assert!(older.changes.is_empty());
        // Whether it may run twice after all is said by the gateway first.
        let older = settle(command(CommandState::Released, true), true);
        assert!(older.released.is_empty() && older.changes.is_empty());
        // Without a trace of it: what may not run twice was journalled before its permit, and is asked about again.
        let older = settle(command(CommandState::Released, false), false);
        assert_eq!(older.released.len(), 1);
        // What may was permitted inline, and that may never have arrived.
        let older = settle(command(CommandState::Released, true), false);
        assert_eq!(older.changes[0].command.state, CommandState::Queued);
        assert!(older.waiting && older.released.is_empty());
    }

    #[test]
    fn a_permit_of_a_process_without_a_trace_is_indeterminate_unless_it_may_run_twice() {
        for state in [CommandState::Released, CommandState::Running] {
            let older = settle(of_another(state, false), false);
            assert_eq!(older.changes[0].command.state, CommandState::Indeterminate);
            assert!(older.changes[0].ends() && older.released.is_empty());
            let older = settle(of_another(state, true), false);
            assert_eq!(older.changes[0].command.state, CommandState::Queued);
            // Its journal will tell.
            let older = settle(of_another(state, false), true);
            assert!(older.changes.is_empty());
        }
    }

    #[test]
    fn who_has_the_identity_by_a_decision_cannot_tell_what_the_other_holder_did() {
        for state in [CommandState::Released, CommandState::Running] {
            let older = settle_for(of_another(state, false), true, true);
            assert_eq!(older.changes[0].command.state, CommandState::Indeterminate);
            // What may run twice is told by its journal, or offered again.
            let older = settle_for(of_another(state, true), true, true);
            assert!(older.changes.is_empty());
            // What was permitted to the one that is kept, nobody else has started.
            let older = settle_for(command(state, false), true, true);
            assert!(older.changes.is_empty());
        }
        let older = settle_for(command(CommandState::Dispatched, false), true, true);
        assert_eq!(older.changes[0].command.state, CommandState::Queued);
    }

    #[test]
    fn a_wish_for_its_end_survives_the_session() {
        let wanted = |command| Command {
            cancel_requested: true,
            ..command
        };
        let older = settle(wanted(command(CommandState::Running, false)), true);
        assert_eq!(older.cancel_requested.len(), 1);
        let older = settle(wanted(of_another(CommandState::Released, true)), false);
        assert_eq!(older.changes[0].command.state, CommandState::Cancelled);
        assert!(older.cancel_requested.is_empty());
    }

    #[test]
    fn the_end_of_a_session_takes_back_offers_and_no_permits() {
        let held = [
            command(CommandState::Dispatched, false),
            command(CommandState::Released, false),
            command(CommandState::Queued, false),
        ];
        let [offered, permitted, queued] = held.map(|command| lose(command, NOW));
        assert_eq!(offered.unwrap().command.state, CommandState::Queued);
        assert_eq!((permitted, queued), (None, None));
    }

    #[test]
    fn a_restored_database_ends_what_may_have_run_and_nothing_that_is_journalled() {
        let queued = command(CommandState::Queued, false);
        let none = BTreeSet::new();
        let changes = settle_rolled_back([queued.clone()], &none, NOW);
        assert_eq!(changes[0].command.state, CommandState::Indeterminate);
        let known = [queued.command_id].into();
        assert!(settle_rolled_back([queued], &known, NOW).is_empty());
        let again = command(CommandState::Queued, true);
        assert!(settle_rolled_back([again], &none, NOW).is_empty());
    }
}
