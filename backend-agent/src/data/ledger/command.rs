//! What happens to commands: which change an event brings, and what is answered.

use std::collections::BTreeSet;

use viworks_common::command::{
    CommandEvent, CommandState, Outcome, OutcomeState, Transition, transition,
};
use viworks_common::id::{AgentId, AgentRunId, CommandId, RunId};
use viworks_common::time::Timestamp;

use crate::data::{
    AcceptOutcome, Accepted, CommandResult, Confirmed, OpenCommand, Rejected, Settled,
};

const CANCELLED: &str = "cancelled by an operator";

/// A command as its state changes see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Which command.
    pub command_id: CommandId,
    /// Its run.
    pub run_id: RunId,
    /// Its gateway.
    pub agent_id: AgentId,
    /// Where it is in its life.
    pub state: CommandState,
    /// Whether it may run twice, by the stricter of both ends' opinions.
    pub idempotent: bool,
    /// Deliveries so far.
    pub attempt: u32,
    /// When it may be offered.
    pub available_at: Timestamp,
    /// It does not start after this.
    pub deadline: Timestamp,
    /// The process that holds its start permit.
    pub released_to: Option<AgentRunId>,
    /// When the permit was given.
    pub released_at: Option<Timestamp>,
    /// When it started, by the gateway's wall clock.
    pub started_at: Option<Timestamp>,
    /// Whether an operator asked for its end.
    pub cancel_requested: bool,
    /// Whether an outcome is kept.
    pub has_result: bool,
    /// Whether one that came too late is.
    pub has_late_outcome: bool,
}

impl Standing {
    /// How it is told of, once it has moved.
    #[must_use]
    pub const fn settled(&self, run_finished: bool) -> Settled {
        Settled {
            command_id: self.command_id,
            agent_id: self.agent_id,
            run_id: self.run_id,
            state: self.state,
            run_finished,
        }
    }
}

/// A change of one command, to be written where it is still in the state it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The state it comes from.
    pub from: CommandState,
    /// The command afterwards.
    pub command: Standing,
    /// Why it ended, for the operator.
    pub reason: Option<String>,
    /// How it ended.
    pub result: Option<CommandResult>,
}

/// What an event brings along besides the change of state.
#[derive(Debug, Clone, Default)]
struct Note {
    reason: Option<String>,
    result: Option<CommandResult>,
}

impl Note {
    fn because(reason: &str) -> Self {
        Self {
            reason: Some(reason.to_owned()),
            result: None,
        }
    }
}

/// A command on its way through a decision, with the changes so far.
struct Course {
    command: Standing,
    changes: Vec<Change>,
}

impl Course {
    const fn of(command: Standing) -> Self {
        Self {
            command,
            changes: Vec::new(),
        }
    }

    /// Lets an event happen. What was changed in the command before (attempt, permit, times, the stricter idempotence) is
    /// written along with the state, and not at all where that stays.
    fn happen(&mut self, event: CommandEvent, note: Note, now: Timestamp) -> Transition {
        let command = &mut self.command;
        let decision = transition(command.state, event, command.idempotent);
        let Transition::To(next) = decision else {
            return decision;
        };
        match next {
            CommandState::Queued | CommandState::Dispatched => {
                command.released_to = None;
                command.released_at = None;
                command.started_at = None;
            }
            CommandState::Released => command.released_at = Some(now),
            CommandState::Running
            | CommandState::Succeeded
            | CommandState::Failed
            | CommandState::TimedOut
            | CommandState::Rejected
            | CommandState::Expired
            | CommandState::Cancelled
            | CommandState::Dead
            | CommandState::Indeterminate => {}
        }
        let from = std::mem::replace(&mut command.state, next);
        self.write(from, note);
        decision
    }

    fn write(&mut self, from: CommandState, note: Note) {
        self.changes.push(Change {
            from,
            command: self.command.clone(),
            reason: note.reason,
            result: note.result,
        });
    }

    /// Gives the permit to exactly this process, if there is still time.
    fn release(&mut self, to: AgentRunId, now: Timestamp) -> AcceptOutcome {
        if self.command.deadline <= now {
            let note = Note::because("its deadline passed before it could start");
            self.happen(CommandEvent::DeadlinePassed, note, now);
            return AcceptOutcome::Drop;
        }
        if self.command.state == CommandState::Queued {
            // The offer came from an older session, or its lease was given up meanwhile; the gateway kept it.
            self.happen(CommandEvent::Dispatched, Note::default(), now);
        }
        self.command.released_to = Some(to);
        self.happen(CommandEvent::Released, Note::default(), now);
        AcceptOutcome::Go {
            deadline: self.command.deadline,
        }
    }

    /// A permit that belongs to another process: it may have been used there.
    fn release_again(&mut self, to: AgentRunId, now: Timestamp) -> AcceptOutcome {
        let gone = "its start permit belonged to a process of the gateway agent that is gone";
        self.happen(CommandEvent::RunGone, Note::because(gone), now);
        if self.command.state.is_final() {
            return AcceptOutcome::Drop;
        }
        if self.command.cancel_requested {
            self.happen(CommandEvent::CancelRequested, Note::because(CANCELLED), now);
            return AcceptOutcome::Drop;
        }
        self.release(to, now)
    }
}

/// What a decision changes, and what it answers.
pub type Decision<T> = (Vec<Change>, T);

/// One event that happens to a command, with the reason should it end; answers what the event came to.
#[must_use]
pub fn happen(
    command: Standing,
    event: CommandEvent,
    reason: Option<&str>,
    now: Timestamp,
) -> Decision<Transition> {
    let mut course = Course::of(command);
    let note = reason.map_or_else(Note::default, Note::because);
    let decision = course.happen(event, note, now);
    (course.changes, decision)
}

/// What becomes of a waiting command whose turn it is: it is offered, with its permit when it may run twice, or it ends
/// because its deliveries are used up.
#[must_use]
pub fn lease(
    mut command: Standing,
    to: AgentRunId,
    attempts_max: u32,
    now: Timestamp,
) -> Vec<Change> {
    if command.attempt >= attempts_max {
        let reason = "the allowed number of deliveries is used up";
        return happen(command, CommandEvent::AttemptsExhausted, Some(reason), now).0;
    }
    command.attempt += 1;
    let event = if command.idempotent {
        command.released_to = Some(to);
        CommandEvent::Released
    } else {
        CommandEvent::Dispatched
    };
    happen(command, event, None, now).0
}

/// The start permit of a command that its gateway has journalled.
#[must_use]
pub fn accept(
    mut command: Standing,
    by: AgentRunId,
    accepted: Accepted,
    now: Timestamp,
) -> Decision<AcceptOutcome> {
    let stricter = command.idempotent && !accepted.idempotent;
    command.idempotent &= accepted.idempotent;
    let (state, here) = (command.state, command.released_to == Some(by));
    let mut course = Course::of(command);
    let answer = match state {
        CommandState::Queued | CommandState::Dispatched => course.release(by, now),
        CommandState::Released | CommandState::Running if !here => course.release_again(by, now),
        CommandState::Released => {
            // Mostly there is nothing to write: the permit was given with the offer.
            if stricter {
                course.write(state, Note::default());
            }
            permitted(&course.command, accepted)
        }
        CommandState::Running => AcceptOutcome::Wait,
        CommandState::Succeeded
        | CommandState::Failed
        | CommandState::TimedOut
        | CommandState::Rejected
        | CommandState::Expired
        | CommandState::Cancelled
        | CommandState::Dead
        | CommandState::Indeterminate => AcceptOutcome::Drop,
    };
    (course.changes, answer)
}

/// What a gateway is told about a command that its process may start.
const fn permitted(command: &Standing, accepted: Accepted) -> AcceptOutcome {
    if command.cancel_requested {
        AcceptOutcome::Cancel
    } else if accepted.awaiting_permit {
        AcceptOutcome::Go {
            deadline: command.deadline,
        }
    } else {
        AcceptOutcome::Wait
    }
}

/// The gateway refused a command on arrival; one that is only busy may be offered again.
#[must_use]
pub fn reject(mut command: Standing, rejected: &Rejected, now: Timestamp) -> Vec<Change> {
    let again = rejected.code.is_transient();
    if again {
        command.available_at = rejected.again_at;
    }
    let stays = command.state != CommandState::Released && again;
    let result = CommandResult {
        state: OutcomeState::Rejected,
        exit_code: None,
        signal: None,
        started_at: None,
        duration_ms: 0,
        reason: Some(rejected.detail.clone()),
        reject_code: Some(rejected.code),
        stdout_bytes: Some(0),
        stderr_bytes: Some(0),
    };
    let note = Note {
        reason: Some(rejected.detail.clone()),
        result: (!stays).then_some(result),
    };
    let mut course = Course::of(command);
    course.happen(CommandEvent::Rejected(rejected.code), note, now);
    course.changes
}

/// The gateway started a command; answers whether that was news.
#[must_use]
pub fn start(mut command: Standing, started_at: Timestamp, now: Timestamp) -> Decision<bool> {
    command.started_at = Some(started_at);
    let (changes, decision) = happen(command, CommandEvent::Started, None, now);
    (changes, matches!(decision, Transition::To(_)))
}

/// What a reported outcome comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completion {
    /// It ends the command.
    Ends(Box<Change>),
    /// The command has ended as indeterminate: it is kept beside that.
    Late(CommandResult),
    /// The command has ended with what is known of it.
    Repeated,
}

/// A gateway reported how a command ended.
#[must_use]
pub fn complete(mut command: Standing, outcome: &Outcome, now: Timestamp) -> Completion {
    let result = without_output(outcome);
    let kept = command.has_result || command.has_late_outcome;
    command.started_at = outcome.started_at.or(command.started_at);
    let mut course = Course::of(command);
    let note = Note {
        reason: None,
        result: Some(result.clone()),
    };
    match course.happen(CommandEvent::Ended(outcome.state), note, now) {
        Transition::LateOutcome if !kept => Completion::Late(result),
        Transition::To(_) | Transition::LateOutcome | Transition::Stay | Transition::Refused => {
            course.changes.pop().map_or(Completion::Repeated, |change| {
                Completion::Ends(Box::new(change))
            })
        }
    }
}

fn without_output(outcome: &Outcome) -> CommandResult {
    CommandResult {
        state: outcome.state,
        exit_code: outcome.exit_code,
        signal: outcome.signal,
        started_at: outcome.started_at,
        duration_ms: outcome.duration_ms,
        reason: outcome.reason.clone(),
        reject_code: outcome.reject_code,
        stdout_bytes: Some(outcome.stdout.total_bytes()),
        stderr_bytes: Some(outcome.stderr.total_bytes()),
    }
}

/// Its gateway is revoked: without a permit it never ran; with one, nobody will ever be heard again who could tell.
#[must_use]
pub fn revoke(command: Standing, now: Timestamp) -> Vec<Change> {
    let event = if command.released_to.is_some() {
        CommandEvent::WaitExhausted
    } else {
        CommandEvent::CancelRequested
    };
    happen(command, event, Some("its gateway was revoked"), now).0
}

/// An operator asked for its end; answers whether it is over, because it had no permit.
#[must_use]
pub fn cancel(command: Standing, now: Timestamp) -> Decision<bool> {
    let (changes, decision) = happen(command, CommandEvent::CancelRequested, Some(CANCELLED), now);
    (changes, matches!(decision, Transition::To(_)))
}

/// What older sessions and processes left behind, for the session that is confirmed: the changes, and what it has to
/// take care of.
#[must_use]
pub fn settle_older(
    open: Vec<Standing>,
    agent_run_id: AgentRunId,
    unreported: &[CommandId],
    now: Timestamp,
) -> Decision<Confirmed> {
    let unreported: BTreeSet<_> = unreported.iter().copied().collect();
    let mut changes = Vec::new();
    let mut confirmed = Confirmed {
        released: Vec::new(),
        cancel_requested: Vec::new(),
        ended_indeterminate: Vec::new(),
        low_water: 0,
        waiting: false,
        fenced: None,
    };
    for command in open {
        let journalled = unreported.contains(&command.command_id);
        let mut course = Course::of(command);
        match course.command.state {
            CommandState::Dispatched => {
                course.happen(CommandEvent::SessionLost, Note::default(), now);
            }
            CommandState::Released | CommandState::Running => {
                let here = course.command.released_to == Some(agent_run_id);
                // The same process without a trace of it: an inline permit that never arrived may be given again. One
                // that is not idempotent was journalled before its permit, so it is asked about once more.
                if !journalled && (!here || course.command.idempotent) {
                    run_gone(&mut course, now);
                }
                sort_open(&mut confirmed, &course.command, here);
            }
            CommandState::Queued
            | CommandState::Succeeded
            | CommandState::Failed
            | CommandState::TimedOut
            | CommandState::Rejected
            | CommandState::Expired
            | CommandState::Cancelled
            | CommandState::Dead
            | CommandState::Indeterminate => {}
        }
        confirmed.waiting |= course.command.state == CommandState::Queued;
        changes.append(&mut course.changes);
    }
    (changes, confirmed)
}

fn sort_open(confirmed: &mut Confirmed, command: &Standing, here: bool) {
    if command.state == CommandState::Indeterminate {
        confirmed.ended_indeterminate.push(command.command_id);
    } else if command.released_to.is_some() && command.cancel_requested {
        confirmed.cancel_requested.push(command.command_id);
    } else if command.state == CommandState::Released && here {
        confirmed.released.push(OpenCommand {
            command_id: command.command_id,
            deadline: command.deadline,
        });
    }
}

fn run_gone(course: &mut Course, now: Timestamp) {
    // A command that goes back to the queue has no reason to end.
    let note = if course.command.idempotent {
        Note::default()
    } else {
        Note::because(
            "the process of the gateway agent that held its permit is gone and left no trace of it",
        )
    };
    course.happen(CommandEvent::RunGone, note, now);
    if course.command.state == CommandState::Queued && course.command.cancel_requested {
        course.happen(CommandEvent::CancelRequested, Note::because(CANCELLED), now);
    }
}
