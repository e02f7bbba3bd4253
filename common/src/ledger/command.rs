//! A command as decisions see it, and the one way in which it changes.

use std::borrow::Cow;
use std::time::Duration;

use serde_json::json;

use super::record::{Record, Stance};
use crate::code::RejectCode;
use crate::command::{CommandEvent, CommandState, Outcome, OutcomeState, Transition, transition};
use crate::id::{AgentId, AgentRunId, CommandId, RunId};
use crate::time::Timestamp;

/// On whose account something changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The backend itself, by its rules.
    System,
    /// A gateway, by what it reported.
    Gateway(AgentId),
    /// Whoever asked for it.
    Caller,
}

/// The facts about a command that decisions depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The command.
    pub command_id: CommandId,
    /// The run that it belongs to.
    pub run_id: RunId,
    /// Its gateway.
    pub agent_id: AgentId,
    /// Where it is in its life.
    pub state: CommandState,
    /// Whether it may run twice, in the stricter of both ends' opinions.
    pub idempotent: bool,
    /// How often it was offered.
    pub attempt: u32,
    /// When it may be offered again.
    pub available_at: Timestamp,
    /// It does not start after this.
    pub deadline: Timestamp,
    /// How long it may run once it has started.
    pub timeout: Duration,
    /// The process that has its permit.
    pub released_to: Option<AgentRunId>,
    /// When that was given.
    pub released_at: Option<Timestamp>,
    /// When the gateway started it, by the gateway's clock.
    pub started_at: Option<Timestamp>,
    /// Whether somebody wants its end.
    pub cancel_requested: bool,
    /// Whether it has a result.
    pub has_result: bool,
    /// Whether an outcome came after it had ended, and is kept beside that.
    pub has_late_outcome: bool,
    /// Whether that one is the end of a run.
    pub has_late_run: bool,
    /// What is known of why it is where it is, for the operator.
    pub reason: Option<Cow<'static, str>>,
}

/// What a refusal of the moment begins with, as it is kept.
const REFUSED: &str = "the gateway refused it: ";

impl Command {
    /// One of a run for a gateway, before anything has happened to it: whether it may run twice, from when on it may be
    /// offered, and until when it may start, for how long.
    #[must_use]
    pub const fn queued(
        (command_id, run_id, agent_id): (CommandId, RunId, AgentId),
        idempotent: bool,
        available_at: Timestamp,
        (deadline, timeout): (Timestamp, Duration),
    ) -> Self {
        Self {
            command_id,
            run_id,
            agent_id,
            state: CommandState::Queued,
            idempotent,
            attempt: 0,
            available_at,
            deadline,
            timeout,
            released_to: None,
            released_at: None,
            started_at: None,
            cancel_requested: false,
            has_result: false,
            has_late_outcome: false,
            has_late_run: false,
            reason: None,
        }
    }

    /// The last refusal of the moment, while nothing has come after it.
    fn refusal(&self) -> Option<&str> {
        let reason = self.reason.as_deref();
        reason.filter(|reason| reason.starts_with(REFUSED))
    }
}

/// How a command ended, without its output.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Ended {
    /// How, in the gateway's words.
    pub state: OutcomeState,
    /// The exit code, when it exited.
    pub exit_code: Option<i32>,
    /// The signal that ended it, when one did.
    pub signal: Option<i32>,
    /// When it started, by the gateway's wall clock.
    pub started_at: Option<Timestamp>,
    /// How long it ran, in milliseconds.
    pub duration_ms: u64,
    /// Why it was refused or could not run.
    pub reason: Option<String>,
    /// The refusal's code.
    pub reject_code: Option<RejectCode>,
    /// What it wrote to its standard output, in bytes; older rows do not say.
    #[serde(default)]
    pub stdout_bytes: Option<u64>,
    /// What it wrote to its standard error, in bytes; older rows do not say.
    #[serde(default)]
    pub stderr_bytes: Option<u64>,
}

impl From<&Outcome> for Ended {
    fn from(outcome: &Outcome) -> Self {
        Self {
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
}

/// What is to be written of one command: a store finds it in `from`, or the decision does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The state that it is changed from; the same as afterwards when only other columns change.
    pub from: CommandState,
    /// The command as it is afterwards.
    pub command: Command,
    /// Why, for the operator, when this change has a reason of its own.
    pub reason: Option<Cow<'static, str>>,
    /// How it ended, to be kept.
    pub result: Option<Ended>,
    /// On whose account.
    pub by: By,
    /// When.
    pub at: Timestamp,
}

impl Change {
    /// Whether it ends the command: then its gateway's and its run's counters change as well.
    #[must_use]
    pub const fn ends(&self) -> bool {
        self.command.state.is_final()
    }

    /// The audit record of the end.
    #[must_use]
    pub fn record(&self) -> Option<Record> {
        let command = &self.command;
        self.ends().then(|| Record {
            by: self.by,
            action: "command.end",
            object: format!("command:{}", command.command_id),
            stance: Stance::Done,
            detail: json!({
                "state": command.state,
                "run_id": command.run_id,
                "agent_id": command.agent_id,
                "reason": self.reason,
            }),
        })
    }
}

/// Up to which order everything of a gateway is final, which never sinks: below the lowest order that is not.
#[must_use]
pub fn low_water(known: u64, lowest_open: Option<u64>, next_order: u64) -> u64 {
    known.max(lowest_open.unwrap_or(next_order).saturating_sub(1))
}

/// A command on its way through the events of one decision, which are written as one change.
#[derive(Debug)]
pub(super) struct Course {
    pub(super) command: Command,
    from: CommandState,
    reason: Option<Cow<'static, str>>,
    touched: bool,
}

impl Course {
    pub(super) const fn new(command: Command) -> Self {
        Self {
            from: command.state,
            command,
            reason: None,
            touched: false,
        }
    }

    /// Lets `event` happen.
    pub(super) fn on(&mut self, event: CommandEvent, now: Timestamp) -> Transition {
        let command = &mut self.command;
        let decision = transition(command.state, event, command.idempotent);
        let Transition::To(next) = decision else {
            return decision;
        };
        self.touched = true;
        if next.awaits_permit() {
            command.released_to = None;
            command.released_at = None;
            command.started_at = None;
        } else if next == CommandState::Released {
            command.released_at = Some(now);
        }
        if is_run(next) {
            // Why it was refused for the moment, or went back to the queue, is not why it ended.
            command.reason = None;
        }
        command.state = next;
        decision
    }

    /// The same, and why.
    pub(super) fn because(
        &mut self,
        event: CommandEvent,
        reason: impl Into<Cow<'static, str>>,
        now: Timestamp,
    ) -> Transition {
        let decision = self.on(event, now);
        if let Transition::To(_) = decision {
            let reason = reason.into();
            self.command.reason = Some(reason.clone());
            self.reason = Some(reason);
        }
        decision
    }

    /// The same for an end without an answer, which the gateway's last refusal explains if there was one.
    pub(super) fn in_vain(
        &mut self,
        event: CommandEvent,
        reason: &'static str,
        now: Timestamp,
    ) -> Transition {
        let reason = match self.command.refusal() {
            Some(refusal) => Cow::Owned(format!("{reason}; {refusal}")),
            None => Cow::Borrowed(reason),
        };
        self.because(event, reason, now)
    }

    /// The gateway refused it for the moment.
    pub(super) fn refused(&mut self, code: RejectCode, detail: &str, now: Timestamp) -> Transition {
        let said = if detail.is_empty() {
            code.name()
        } else {
            detail
        };
        let reason = format!("{REFUSED}{said}");
        self.because(CommandEvent::Rejected(code), reason, now)
    }

    /// Something else about it changed.
    pub(super) const fn touch(&mut self) {
        self.touched = true;
    }

    /// What is to be written, if anything is.
    pub(super) fn change(self, by: By, at: Timestamp) -> Option<Change> {
        self.touched.then_some(Change {
            from: self.from,
            command: self.command,
            reason: self.reason,
            result: None,
            by,
            at,
        })
    }
}

/// Whether a command in this state has been started, as far as is known.
const fn is_run(state: CommandState) -> bool {
    match state {
        CommandState::Running
        | CommandState::Succeeded
        | CommandState::Failed
        | CommandState::TimedOut => true,
        CommandState::Queued
        | CommandState::Dispatched
        | CommandState::Released
        | CommandState::Rejected
        | CommandState::Expired
        | CommandState::Cancelled
        | CommandState::Dead
        | CommandState::Indeterminate => false,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    pub(in crate::ledger) const NOW: Timestamp = Timestamp::from_unix_micros(1_000_000_000);

    pub(in crate::ledger) fn run(n: u128) -> AgentRunId {
        AgentRunId::from_uuid(Uuid::from_u128(n))
    }

    pub(in crate::ledger) fn agent() -> AgentId {
        AgentId::from_uuid(Uuid::from_u128(7))
    }

    /// A command that may start for a minute from [`NOW`].
    pub(in crate::ledger) fn command(state: CommandState, idempotent: bool) -> Command {
        let released = state.has_permit();
        Command {
            command_id: CommandId::from_uuid(Uuid::from_u128(1)),
            run_id: RunId::from_uuid(Uuid::from_u128(2)),
            agent_id: agent(),
            state,
            idempotent,
            attempt: 1,
            available_at: NOW,
            deadline: NOW.saturating_add(Duration::from_secs(60)),
            timeout: Duration::from_secs(30),
            released_to: released.then(|| run(1)),
            released_at: released.then_some(NOW),
            started_at: None,
            cancel_requested: false,
            has_result: false,
            has_late_outcome: false,
            has_late_run: false,
            reason: None,
        }
    }

    proptest! {
        #[test]
        fn a_low_water_mark_never_sinks_and_never_passes_what_is_open(
            known in 0_u64..100, open in prop::option::of(1_u64..100), next in 1_u64..100
        ) {
            let mark = low_water(known, open, next);
            prop_assert!(mark >= known);
            if let Some(open) = open.filter(|open| *open > known) {
                prop_assert!(mark < open);
            }
        }
    }

    #[test]
    fn what_goes_back_to_the_queue_loses_its_permit() {
        let mut course = Course::new(command(CommandState::Released, true));
        course.on(CommandEvent::RunGone, NOW);
        let change = course.change(By::System, NOW).unwrap();
        assert_eq!(change.from, CommandState::Released);
        assert_eq!(change.command.state, CommandState::Queued);
        assert_eq!(change.command.released_to, None);
        assert_eq!(change.command.released_at, None);
        assert_eq!(change.record(), None, "it has not ended");
    }

    #[test]
    fn an_end_leaves_an_audit_record_and_nothing_else_does() {
        let mut course = Course::new(command(CommandState::Queued, true));
        course.because(CommandEvent::DeadlinePassed, "late", NOW);
        let change = course.change(By::System, NOW).unwrap();
        let record = change.record().unwrap();
        assert_eq!(record.action, "command.end");
        assert_eq!(record.detail["state"], "expired");
        assert_eq!(record.detail["reason"], "late");
        let course = Course::new(command(CommandState::Queued, true));
        assert_eq!(course.change(By::System, NOW), None);
    }
}
