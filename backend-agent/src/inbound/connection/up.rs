//! What comes up a session about commands: into the store first, then onto the socket.

use std::collections::BTreeMap;

use tracing::{debug, info, warn};
use viworks_common::command::{CommandState, Outcome};
use viworks_common::id::{CommandId, RunId};
use viworks_common::limits::COMMANDS_UNREPORTED_MAX;
use viworks_common::time::Monotonic;
use viworks_common::wire::message::{
    BackendMessage, CommandAccepted, CommandRef, CommandRejected, CommandResult, CommandStarted,
    Go, Output, ResultAck,
};
use viworks_runtime::fault;

use super::super::Inbound;
use super::live::Live;
use crate::command::bus::{CommandChange, OutputChunk, Written};
use crate::command::told;
use crate::data::{AcceptOutcome, Accepted, CompleteOutcome, Rejected, Run, Settled};

/// How long the start of a command waits for its end before it is stored by itself.
const STARTED_PAUSE: std::time::Duration = std::time::Duration::from_millis(25);

/// Commands whose runs are remembered.
const RUNS_MAX: usize = 1_024;

/// The runs of the commands a session deals with, for those who watch, and which delivery each is.
#[derive(Debug, Default)]
pub(super) struct Runs {
    known: BTreeMap<CommandId, (RunId, u32)>,
}

impl Runs {
    pub(super) fn remember(&mut self, command_id: CommandId, run_id: RunId, attempt: u32) {
        if self.known.len() < RUNS_MAX {
            self.known.insert(command_id, (run_id, attempt));
        }
    }

    fn of(&self, command_id: CommandId) -> Option<RunId> {
        self.known.get(&command_id).map(|(run_id, _)| *run_id)
    }

    fn attempt(&self, command_id: CommandId) -> u32 {
        self.known
            .get(&command_id)
            .map_or(1, |(_, attempt)| *attempt)
    }
}

impl Live {
    pub(super) async fn on_accepted(&mut self, accepted: CommandAccepted) {
        let command_id = accepted.command_id;
        let known = self.permitted.contains(&command_id);
        if known && accepted.idempotent && !accepted.awaiting_permit {
            // It was sent with its permit, which was committed before: the gateway has nothing to be told.
            return;
        }
        let accepted = Accepted {
            command_id,
            idempotent: accepted.idempotent,
            awaiting_permit: accepted.awaiting_permit,
        };
        let (tenant, now) = (&self.line.peer.identity.tenant, self.line_now());
        let store = &self.line.inbound.store;
        match store
            .accept_command(tenant, &self.holder, accepted, now)
            .await
        {
            Ok(AcceptOutcome::Go { deadline }) => {
                fault::point("release.committed.before_go");
                if let Some(run_id) = self.runs.of(command_id) {
                    self.moved(run_id, command_id, CommandState::Released, None);
                }
                let permit = self.line.permit(deadline);
                self.line
                    .send(BackendMessage::Go(Go { command_id, permit }));
            }
            Ok(AcceptOutcome::Drop) => {
                let more = self.close_offer(command_id);
                self.line
                    .send(BackendMessage::CommandDrop(CommandRef { command_id }));
                self.offer_more(more).await;
            }
            Ok(AcceptOutcome::Cancel) => {
                self.line
                    .send(BackendMessage::CommandCancel(CommandRef { command_id }));
            }
            Ok(AcceptOutcome::Wait) => {}
            Err(error) => self.line.fail(&error),
        }
    }

    pub(super) async fn on_rejected(&mut self, rejected: CommandRejected) {
        let (tenant, now) = (&self.line.peer.identity.tenant, self.line_now());
        let command_id = rejected.command_id;
        let detail = rejected.detail;
        let attempt = self.runs.attempt(command_id);
        let rest = self.line.inbound.dispatcher.rest(attempt);
        let rejected = Rejected {
            command_id,
            code: rejected.code,
            detail,
            again_at: now.saturating_add(rest),
        };
        let store = &self.line.inbound.store;
        match store
            .reject_command(tenant, &self.holder, rejected, now)
            .await
        {
            Ok(Some(settled)) => {
                if settled.state == CommandState::Queued {
                    self.ask_again(rest);
                }
                // Said again, it moves nothing. Of what is on offer here the answer to the move may have been lost:
                // then it is told once more. Not each time that the gateway goes on saying it: it is no offer any
                // more.
                if settled.moved || self.runs.of(command_id).is_some() {
                    self.settled(&settled, settled.reason.clone());
                }
            }
            Ok(None) => debug!(%command_id, "a gateway rejects a command that nobody knows"),
            Err(error) => return self.line.fail(&error),
        }
        let more = self.close_offer(command_id);
        self.offer_more(more).await;
    }

    /// Most commands are over in a moment; then their result says that they started, and a transaction is saved.
    pub(super) fn on_started(&mut self, started: CommandStarted) {
        let due = self.line.now().saturating_add(STARTED_PAUSE);
        self.started
            .retain(|(_, known)| known.command_id != started.command_id);
        // Nobody has more open; a report beyond that says nothing that matters.
        if self.started.len() < COMMANDS_UNREPORTED_MAX {
            self.started.push_back((due, started));
        }
    }

    /// Stores what started and is not over yet.
    pub(super) async fn store_started(&mut self, now: Monotonic) {
        while self.started.front().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, started)) = self.started.pop_front() {
                self.start(started).await;
            }
        }
    }

    async fn start(&mut self, started: CommandStarted) {
        let (tenant, now) = (&self.line.peer.identity.tenant, self.line_now());
        let CommandStarted {
            command_id,
            started_at,
        } = started;
        let store = &self.line.inbound.store;
        match store
            .start_command(tenant, &self.holder, command_id, started_at, now)
            .await
        {
            Ok(true) => {
                if let Some(run_id) = self.runs.of(command_id) {
                    self.moved(run_id, command_id, CommandState::Running, None);
                }
            }
            Ok(false) => {}
            Err(error) => self.line.fail(&error),
        }
    }

    pub(super) async fn on_result(&mut self, result: CommandResult) {
        self.started
            .retain(|(_, started)| started.command_id != result.command_id);
        let (tenant, now) = (&self.line.peer.identity.tenant, self.line_now());
        let CommandResult {
            command_id,
            outcome,
        } = result;
        let (summary, said) = (Summary::of(&outcome), outcome.state.command_state());
        let store = &self.line.inbound.store;
        let completed = store
            .complete_command(tenant, &self.holder, command_id, outcome, now)
            .await;
        let completed = match completed {
            Ok(completed) => completed,
            Err(error) => return self.line.fail(&error),
        };
        fault::point("result.committed.before_acknowledgement");
        let low_water = completed.low_water();
        let not_kept = matches!(completed, CompleteOutcome::Orphan { kept: false, .. });
        match completed {
            CompleteOutcome::Completed { settled, run, .. } => {
                if settled.state != said {
                    self.start_denied(command_id);
                }
                self.completed(&settled, summary, run.map(|run| *run));
            }
            CompleteOutcome::LateOutcome { .. } | CompleteOutcome::Repeated { .. } => {}
            CompleteOutcome::Orphan { kept, .. } => self.orphan(command_id, kept),
        }
        let more = self.close_offer(command_id);
        // One too many of them ended the session: nothing is offered to it any more.
        if self.line.session.closed().is_some() {
            return;
        }
        self.line.send(BackendMessage::ResultAck(ResultAck {
            command_id,
            low_water,
            not_kept: not_kept && self.announced.tells_not_kept,
        }));
        self.offer_more(more).await;
    }

    /// Another holder of the identity told that it had started. The audit trail has who it was.
    fn start_denied(&self, command_id: CommandId) {
        let (now, agent_id) = (self.line.now(), self.holder.agent_id);
        let Inbound {
            metrics, manager, ..
        } = &*self.line.inbound;
        metrics.refused("start_denied");
        if let Some(left_out) = manager.may_log(agent_id, now) {
            warn!(gateway = %self.line.peer.name, %agent_id, %command_id, left_out, "the gateway denies the start of a command that another process with its identity told: a disk was set back or copied");
        }
    }

    /// The database was restored to before a command, or its gateway made it up.
    fn orphan(&mut self, command_id: CommandId, kept: bool) {
        let (now, agent_id) = (self.line.now(), self.holder.agent_id);
        let Inbound {
            metrics, manager, ..
        } = &*self.line.inbound;
        metrics.refused(if kept {
            "orphan_result"
        } else {
            "orphan_result_not_kept"
        });
        if let Some(left_out) = manager.may_log(agent_id, now) {
            info!(gateway = %self.line.peer.name, %agent_id, %command_id, kept, left_out, "the result of a command that the database does not have");
        }
        if let Err(wait) = self.pace.unknown(now) {
            let reason = "results of too many commands that nobody knows";
            self.line.slow_down(reason, wait);
        }
    }

    pub(super) async fn on_output(&mut self, output: Output) {
        let bytes = u64::try_from(output.data.len()).unwrap_or(u64::MAX);
        self.output_received = self.output_received.saturating_add(bytes);
        let Some(run_id) = self.find_run(output.command_id).await else {
            if let Err(wait) = self.pace.unknown(self.line.now()) {
                let reason = "output of too many commands that nobody knows";
                self.line.slow_down(reason, wait);
            }
            return;
        };
        let chunk = OutputChunk {
            at: self.line_now(),
            command_id: output.command_id,
            agent_id: self.holder.agent_id,
            stream: output.stream,
            offset: output.offset,
            data: output.data,
        };
        self.line.inbound.bus.output(run_id, chunk);
    }

    /// Its credit comes back; says whether somebody waits for that.
    fn close_offer(&mut self, command_id: CommandId) -> bool {
        self.permitted.remove(&command_id);
        self.runs.known.remove(&command_id);
        self.shelf.over(command_id)
    }

    /// Credit came back: what did not fit before may fit now.
    async fn offer_more(&mut self, more: bool) {
        if more {
            self.offer_commands().await;
        }
    }

    /// The run of a command that may have been offered in an earlier session.
    async fn find_run(&mut self, command_id: CommandId) -> Option<RunId> {
        if let Some(run_id) = self.runs.of(command_id) {
            return Some(run_id);
        }
        let tenant = &self.line.peer.identity.tenant;
        let found = self.line.inbound.store.command(tenant, command_id).await;
        let run_id = found
            .ok()
            .flatten()
            .filter(|command| command.agent_id == self.holder.agent_id)?
            .run_id;
        self.runs.remember(command_id, run_id, 1);
        Some(run_id)
    }

    pub(super) fn moved(
        &self,
        run_id: RunId,
        command_id: CommandId,
        state: CommandState,
        attempt: Option<u32>,
    ) {
        let change = CommandChange {
            at: self.line_now(),
            command_id,
            agent_id: self.holder.agent_id,
            state,
            attempt,
            exit_code: None,
            duration_ms: None,
            reason: None,
            written: None,
        };
        self.line.inbound.bus.command_changed(run_id, change, false);
    }

    pub(super) fn settled(&self, settled: &Settled, reason: Option<String>) {
        let Inbound { metrics, bus, .. } = &*self.line.inbound;
        let change = CommandChange {
            reason,
            ..told::change(settled, self.line_now())
        };
        told::tell_more(bus, metrics, settled, change, None);
    }

    fn completed(&self, settled: &Settled, summary: Summary, run: Option<Run>) {
        let Inbound { metrics, bus, .. } = &*self.line.inbound;
        let change = CommandChange {
            exit_code: summary.exit_code,
            duration_ms: Some(summary.duration_ms),
            written: Some(summary.written),
            reason: summary.reason,
            ..told::change(settled, self.line_now())
        };
        told::tell_more(bus, metrics, settled, change, run);
    }
}

/// What watchers hear of an outcome.
struct Summary {
    exit_code: Option<i32>,
    duration_ms: u64,
    reason: Option<String>,
    written: Written,
}

impl Summary {
    fn of(outcome: &Outcome) -> Self {
        Self {
            exit_code: outcome.exit_code,
            duration_ms: outcome.duration_ms,
            reason: outcome.reason.clone(),
            written: Written {
                stdout: outcome.stdout.total_bytes(),
                stderr: outcome.stderr.total_bytes(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn the_runs_of_so_many_commands_of_a_session_are_known() {
        let id = |n: usize| Uuid::from_u128(u128::try_from(n).unwrap());
        let command = |n| CommandId::from_uuid(id(n));
        let run = |n| RunId::from_uuid(id(n));
        let mut runs = Runs::default();
        for n in 0..=RUNS_MAX {
            runs.remember(command(n), run(n), 2);
        }
        let last = RUNS_MAX - 1;
        assert_eq!(runs.of(command(last)), Some(run(last)));
        let beyond = command(RUNS_MAX);
        assert_eq!((runs.of(beyond), runs.attempt(beyond)), (None, 1));
    }
}
