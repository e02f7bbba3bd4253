//! What sessions, operators and reconcilers do with commands.

use std::time::Duration;

use viworks_common::code::RejectCode;
use viworks_common::command::{CommandEvent, CommandState, Outcome, OutcomeState, Transition};
use viworks_common::id::{AgentId, CommandId, CommandName};
use viworks_common::limits;
use viworks_common::time::Timestamp;

use super::super::recorder::Recorder;
use super::super::scenario::Rule;
use super::{Command, Fenced, Holder, Store};

/// Deliveries before a command is dead; worlds are short, so that it takes a storm.
const ATTEMPTS_MAX: u32 = 16;
/// How soon a gateway that was busy is asked again.
const BUSY_PAUSE: Duration = Duration::from_secs(2);

/// A command for a session.
#[derive(Debug, Clone)]
pub(crate) struct Leased {
    pub id: CommandId,
    pub order: u64,
    pub name: CommandName,
    pub attempt: u32,
    pub deadline: Timestamp,
    pub permitted: bool,
    pub timeout_ms: Option<u64>,
}

/// What an acceptance is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AcceptOutcome {
    /// It may start.
    Go(Timestamp),
    /// It never may.
    Drop,
    /// It is to be cancelled.
    Cancel,
    /// Nothing.
    Wait,
}

impl Store {
    /// Accepts an operator's submission.
    pub(crate) fn submit(
        &mut self,
        id: CommandId,
        agent: AgentId,
        (name, idempotent): (CommandName, bool),
        (now, deadline): (Timestamp, Timestamp),
        timeout_ms: Option<u64>,
    ) {
        let Some(gateway) = self.gateways.get_mut(&agent) else {
            return;
        };
        let order = gateway.row.next_order;
        gateway.row.next_order += 1;
        let command = Command {
            id,
            agent,
            order,
            name,
            idempotent,
            state: CommandState::Queued,
            attempt: 0,
            available_at: now,
            deadline,
            timeout_ms,
            released_to: None,
            cancel_requested: false,
            result: None,
            late_outcome: None,
        };
        self.commands.insert(id, command);
    }

    /// Cancels what has no permit; true when the gateway must be asked.
    pub(crate) fn cancel(&mut self, id: CommandId) -> bool {
        let Some(command) = self.commands.get_mut(&id) else {
            return false;
        };
        if command.state.is_final() {
            return false;
        }
        command.cancel_requested = true;
        self.apply(id, CommandEvent::CancelRequested, None) == Transition::Stay
    }

    /// Takes the next commands in order.
    ///
    /// # Errors
    /// When the session is not the current one.
    pub(crate) fn lease(
        &mut self,
        holder: Holder,
        room: usize,
        now: Timestamp,
        recorder: &mut Recorder,
    ) -> Result<Vec<Leased>, Fenced> {
        self.fence(holder, recorder)?;
        let window = self
            .low_water(holder.agent)
            .saturating_add(limits::ORDER_WINDOW);
        let mut leased = Vec::new();
        let mut passed_over = None;
        for id in self.open(holder.agent, window) {
            let Some(command) = self.commands.get_mut(&id) else {
                continue;
            };
            let waits = command.state == CommandState::Queued
                && command.available_at <= now
                && command.deadline > now;
            // What was never offered and is in time has nothing to wait for.
            let fresh = command.state == CommandState::Queued && command.attempt == 0;
            if fresh && command.deadline > now && !waits {
                passed_over = passed_over.or(Some(id));
            }
            if !waits || leased.len() >= room {
                continue;
            }
            if let Some(earlier) = passed_over
                && command.attempt == 0
            {
                recorder.overtaken(earlier, id);
            }
            if command.attempt >= ATTEMPTS_MAX {
                self.apply(id, CommandEvent::AttemptsExhausted, None);
                continue;
            }
            command.attempt += 1;
            let event = if command.idempotent {
                CommandEvent::Released
            } else {
                CommandEvent::Dispatched
            };
            self.apply(id, event, None);
            leased.extend(self.offer(id, holder));
        }
        Ok(leased)
    }

    fn offer(&mut self, id: CommandId, holder: Holder) -> Option<Leased> {
        let command = self.commands.get_mut(&id)?;
        let permitted = command.state == CommandState::Released;
        if permitted {
            command.released_to = Some(holder.run);
        }
        Some(Leased {
            id,
            order: command.order,
            name: command.name.clone(),
            attempt: command.attempt,
            deadline: command.deadline,
            permitted,
            timeout_ms: command.timeout_ms,
        })
    }

    /// Whether a gateway has commands to lease.
    #[must_use]
    pub(crate) fn has_queued(&self, agent: AgentId, now: Timestamp) -> bool {
        self.commands.values().any(|command| {
            command.agent == agent
                && command.state == CommandState::Queued
                && command.available_at <= now
                && command.deadline > now
        })
    }

    /// Decides about the start permit of a command that its gateway has journalled.
    ///
    /// # Errors
    /// When the session is not the current one.
    pub(crate) fn accept(
        &mut self,
        holder: Holder,
        id: CommandId,
        (idempotent, awaiting_permit): (bool, bool),
        now: Timestamp,
        recorder: &mut Recorder,
    ) -> Result<AcceptOutcome, Fenced> {
        self.fence(holder, recorder)?;
        let bound = self.rules.keep(Rule::PermitBoundToRun);
        let Some(command) = self.commands.get_mut(&id) else {
            return Ok(AcceptOutcome::Drop);
        };
        if command.agent != holder.agent || command.state.is_final() {
            return Ok(AcceptOutcome::Drop);
        }
        command.idempotent &= idempotent;
        let elsewhere = bound && command.released_to != Some(holder.run);
        Ok(match command.state {
            CommandState::Queued | CommandState::Dispatched => self.release(id, holder, now),
            CommandState::Released | CommandState::Running if elsewhere => {
                self.release_again(id, holder, now)
            }
            CommandState::Released if command.cancel_requested => AcceptOutcome::Cancel,
            CommandState::Released if awaiting_permit => AcceptOutcome::Go(command.deadline),
            CommandState::Released
            | CommandState::Running
            | CommandState::Succeeded
            | CommandState::Failed
            | CommandState::TimedOut
            | CommandState::Rejected
            | CommandState::Expired
            | CommandState::Cancelled
            | CommandState::Dead
            | CommandState::Indeterminate => AcceptOutcome::Wait,
        })
    }

    fn release(&mut self, id: CommandId, holder: Holder, now: Timestamp) -> AcceptOutcome {
        let Some(command) = self.commands.get(&id) else {
            return AcceptOutcome::Drop;
        };
        let (deadline, state) = (command.deadline, command.state);
        if deadline <= now {
            self.apply(id, CommandEvent::DeadlinePassed, None);
            return AcceptOutcome::Drop;
        }
        if state == CommandState::Queued {
            self.apply(id, CommandEvent::Dispatched, None);
        }
        self.apply(id, CommandEvent::Released, None);
        if let Some(command) = self.commands.get_mut(&id) {
            command.released_to = Some(holder.run);
        }
        AcceptOutcome::Go(deadline)
    }

    fn release_again(&mut self, id: CommandId, holder: Holder, now: Timestamp) -> AcceptOutcome {
        self.apply(id, CommandEvent::RunGone, None);
        let Some(command) = self.commands.get(&id) else {
            return AcceptOutcome::Drop;
        };
        if command.state.is_final() {
            return AcceptOutcome::Drop;
        }
        if command.cancel_requested {
            self.apply(id, CommandEvent::CancelRequested, None);
            return AcceptOutcome::Drop;
        }
        self.release(id, holder, now)
    }

    /// The gateway refused a command on arrival.
    ///
    /// # Errors
    /// When the session is not the current one.
    pub(crate) fn reject(
        &mut self,
        holder: Holder,
        id: CommandId,
        code: RejectCode,
        now: Timestamp,
        recorder: &mut Recorder,
    ) -> Result<(), Fenced> {
        self.fence(holder, recorder)?;
        if code == RejectCode::Stale {
            recorder.stale(id);
        }
        if let Some(command) = self.commands.get_mut(&id) {
            if code.is_transient() {
                command.available_at = now.saturating_add(BUSY_PAUSE);
            }
            let outcome = Outcome::without_run(OutcomeState::Rejected, code.name());
            self.apply(id, CommandEvent::Rejected(code), Some(&outcome));
        }
        Ok(())
    }

    /// The gateway started a command.
    ///
    /// # Errors
    /// When the session is not the current one.
    pub(crate) fn start(
        &mut self,
        holder: Holder,
        id: CommandId,
        recorder: &mut Recorder,
    ) -> Result<(), Fenced> {
        self.fence(holder, recorder)?;
        self.apply(id, CommandEvent::Started, None);
        Ok(())
    }

    /// The gateway reported an outcome; answered with the low-water mark.
    ///
    /// # Errors
    /// When the session is not the current one.
    pub(crate) fn complete(
        &mut self,
        holder: Holder,
        id: CommandId,
        outcome: &Outcome,
        recorder: &mut Recorder,
    ) -> Result<u64, Fenced> {
        self.fence(holder, recorder)?;
        recorder.outcome_committed(outcome.duration_ms);
        if self.commands.contains_key(&id) {
            let event = CommandEvent::Ended(outcome.state);
            if self.apply(id, event, Some(outcome)) == Transition::LateOutcome
                && let Some(command) = self.commands.get_mut(&id)
                && command.result.is_none()
                && command.late_outcome.is_none()
            {
                recorder.counts.late_outcomes += 1;
                command.late_outcome = Some(outcome.clone());
            }
        } else {
            self.orphans.insert(id);
        }
        Ok(self.low_water(holder.agent))
    }

    /// Ends what could not start in time, and what was permitted and never heard of again.
    pub(crate) fn end_late(&mut self, overdue_wait: Duration, now: Timestamp) {
        let late: Vec<(CommandId, CommandEvent)> = self
            .commands
            .values()
            .filter_map(|command| match command.state {
                CommandState::Queued | CommandState::Dispatched if command.deadline <= now => {
                    Some((command.id, CommandEvent::DeadlinePassed))
                }
                CommandState::Released | CommandState::Running
                    if command.deadline.saturating_add(overdue_wait) <= now =>
                {
                    Some((command.id, CommandEvent::WaitExhausted))
                }
                CommandState::Queued
                | CommandState::Dispatched
                | CommandState::Released
                | CommandState::Running
                | CommandState::Succeeded
                | CommandState::Failed
                | CommandState::TimedOut
                | CommandState::Rejected
                | CommandState::Expired
                | CommandState::Cancelled
                | CommandState::Dead
                | CommandState::Indeterminate => None,
            })
            .collect();
        for (id, event) in late {
            self.apply(id, event, None);
        }
    }
}
