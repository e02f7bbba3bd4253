//! One command from its permit to its journalled end.

use std::time::Duration;

use viworks_common::command::{Outcome, OutcomeState};
use viworks_common::id::CommandId;
use viworks_common::journal::Entry;
use viworks_common::time::Monotonic;
use viworks_common::wire::message::{AgentMessage, CommandResult, CommandStarted};

use super::super::core::{Core, GatewayStep};
use super::super::disk_model::Write;
use super::engine::Input;
use super::{After, Host};

/// Commands that run at a time.
const SLOTS: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    Starting,
    Running,
    Finishing,
}

/// A command that may start, or has.
#[derive(Debug)]
pub(super) struct Task {
    entry: Entry,
    deadline: Monotonic,
    cancelled: bool,
    stage: Stage,
    /// The number of the start, for the outcome.
    number: u64,
}

impl Task {
    pub(super) const fn new(entry: Entry, deadline: Monotonic) -> Self {
        Self {
            entry,
            deadline,
            cancelled: false,
            stage: Stage::Waiting,
            number: 0,
        }
    }
}

impl Host {
    fn task(&mut self, id: CommandId) -> Option<&mut Task> {
        self.process.as_mut()?.engine.tasks.get_mut(&id)
    }

    pub(super) fn begin(&mut self, id: CommandId, core: &mut Core) {
        let now = self.clock(core);
        let Some(process) = &self.process else { return };
        let run = process.run;
        let tasks = process.engine.tasks.values();
        let used = tasks.filter(|task| task.stage != Stage::Waiting).count();
        let again = self.event(GatewayStep::Begin(id));
        let Some(task) = self.task(id).filter(|task| task.stage == Stage::Waiting) else {
            return;
        };
        let (cancelled, deadline) = (task.cancelled, task.deadline);
        if cancelled {
            return self.finish(id, unstarted(OutcomeState::Cancelled), core);
        }
        if deadline <= now {
            return self.finish(id, unstarted(OutcomeState::Expired), core);
        }
        if used >= SLOTS {
            return core.at(self.truly(deadline), again);
        }
        task.stage = Stage::Starting;
        self.write(Write::Started(id, run), After::TaskStarted(id), core);
    }

    /// Everything that waits for a slot looks again.
    pub(super) fn begin_next(&self, core: &mut Core) {
        let Some(process) = &self.process else { return };
        let tasks = process.engine.tasks.iter();
        let waiting = tasks.filter(|(_, task)| task.stage == Stage::Waiting);
        for id in waiting.map(|(id, _)| *id).collect::<Vec<_>>() {
            core.after(Duration::ZERO, self.event(GatewayStep::Begin(id)));
        }
    }

    pub(super) fn task_started(&mut self, id: CommandId, done: bool, core: &mut Core) {
        if !done {
            return self.tell(Input::Ended(id), core);
        }
        let (now, started_at) = (self.clock(core), self.wall(core));
        let (host, run) = (self.id, self.process.as_ref().map(|it| it.run));
        let (Some(task), Some(run)) = (self.task(id), run) else {
            return;
        };
        if task.deadline <= now {
            return self.finish(id, unstarted(OutcomeState::Expired), core);
        }
        let may_run_again = task.entry.idempotent;
        let limit = task.entry.timeout_ms;
        let number = core
            .recorder
            .started(id, (host, run), (may_run_again, limit), core.now);
        core.note(|| format!("{host:?} STARTS {id} as number {number}"));
        task.stage = Stage::Running;
        task.number = number;
        let span = if task.cancelled {
            Duration::ZERO
        } else {
            core.random.millis(0, 6_000)
        };
        core.after(span, self.event(GatewayStep::Exit(id)));
        let started = CommandStarted {
            command_id: id,
            started_at,
        };
        let message = Box::new(AgentMessage::CommandStarted(started));
        self.tell(Input::Say(message), core);
    }

    pub(super) fn cancel_task(&mut self, id: CommandId, core: &mut Core) {
        let (begin, exit) = (
            self.event(GatewayStep::Begin(id)),
            self.event(GatewayStep::Exit(id)),
        );
        let Some(task) = self.task(id) else { return };
        task.cancelled = true;
        match task.stage {
            Stage::Waiting => core.after(Duration::ZERO, begin),
            Stage::Running => core.after(Duration::ZERO, exit),
            Stage::Starting | Stage::Finishing => {}
        }
    }

    pub(super) fn exit(&mut self, id: CommandId, core: &mut Core) {
        let luck = core.random.below(8);
        let Some(task) = self.task(id).filter(|task| task.stage == Stage::Running) else {
            return;
        };
        let state = match luck {
            _ if task.cancelled => OutcomeState::Cancelled,
            0 => OutcomeState::Failed,
            1 => OutcomeState::TimedOut,
            _ => OutcomeState::Succeeded,
        };
        let outcome = Outcome {
            exit_code: Some(0),
            duration_ms: task.number,
            reason: None,
            ..Outcome::without_run(state, "")
        };
        self.finish(id, outcome, core);
    }

    fn finish(&mut self, id: CommandId, outcome: Outcome, core: &mut Core) {
        if let Some(task) = self.task(id) {
            task.stage = Stage::Finishing;
        }
        let after = After::TaskFinished(id, outcome.clone());
        self.write(Write::Finish(id, outcome), after, core);
    }

    pub(super) fn task_finished(
        &mut self,
        command_id: CommandId,
        outcome: Outcome,
        core: &mut Core,
    ) {
        let result = CommandResult {
            command_id,
            outcome,
        };
        let message = Box::new(AgentMessage::CommandResult(result));
        self.tell(Input::Say(message), core);
        self.tell(Input::Ended(command_id), core);
    }
}

fn unstarted(state: OutcomeState) -> Outcome {
    Outcome::without_run(state, "it was not started")
}
