//! The command engine: one input at a time, one write at a time, by the rules of `common::journal`.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use viworks_common::code::RejectCode;
use viworks_common::command::{Arguments, Outcome, OutcomeState, digest};
use viworks_common::id::CommandId;
use viworks_common::journal::{
    Entry, EntryState, Idempotent, LocalView, OnCancel, OnCommand, OnDrop, OnGo, on_cancel,
    on_command, on_drop, on_go,
};
use viworks_common::time::Monotonic;
use viworks_common::wire::message::{
    AgentMessage, Command, CommandAccepted, CommandRejected, CommandResult, CommandStarted,
};

use super::super::core::{Core, GatewayStep};
use super::super::disk_model::Write;
use super::super::network::ConnectionId;
use super::super::operator::Kind;
use super::super::scenario::Rule;
use super::task::Task;
use super::{After, Host};

/// What the engine is told.
#[derive(Debug, Clone)]
pub(super) enum Input {
    Attach(ConnectionId, u64),
    Command(Box<Command>, Monotonic),
    Go(CommandId, Monotonic),
    Drop(CommandId),
    Cancel(CommandId),
    ResultAcknowledged(CommandId, u64),
    Say(Box<AgentMessage>),
    Ended(CommandId),
}

/// What the engine does when its write is durable.
#[derive(Debug, Clone)]
pub(super) enum Then {
    Announce,
    Accepted(Box<Entry>, bool, Monotonic),
    Forget(u64),
    Tell(CommandId, Outcome),
    Nothing,
}

/// The engine's own state.
#[derive(Debug)]
pub(super) struct Engine {
    inputs: VecDeque<Input>,
    /// A write is on its way, or the next step is scheduled.
    busy: bool,
    attached: Option<ConnectionId>,
    pub(super) tasks: BTreeMap<CommandId, Task>,
    deadlines: BTreeMap<CommandId, Monotonic>,
    low_water: u64,
}

impl Engine {
    pub(super) const fn new(low_water: u64) -> Self {
        Self {
            inputs: VecDeque::new(),
            busy: false,
            attached: None,
            tasks: BTreeMap::new(),
            deadlines: BTreeMap::new(),
            low_water,
        }
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.inputs.is_empty() && !self.busy && self.tasks.is_empty()
    }
}

impl Host {
    /// Hands the engine something to do.
    pub(super) fn tell(&mut self, input: Input, core: &mut Core) {
        if let Some(process) = &mut self.process {
            process.engine.inputs.push_back(input);
        }
        self.go_on(core);
    }

    fn go_on(&mut self, core: &mut Core) {
        let event = self.event(GatewayStep::Engine);
        if let Some(process) = &mut self.process
            && !process.engine.busy
            && !process.engine.inputs.is_empty()
        {
            process.engine.busy = true;
            let pause = core.random.span(Duration::ZERO, Duration::from_millis(5));
            core.after(pause, event);
        }
    }

    pub(super) fn engine_step(&mut self, core: &mut Core) {
        let input = self.process.as_mut().and_then(|process| {
            process.engine.busy = false;
            process.engine.inputs.pop_front()
        });
        match input {
            None => {}
            Some(Input::Attach(wire, low_water)) => {
                if let Some(process) = &mut self.process {
                    process.engine.attached = Some(wire);
                }
                self.engine_write(Write::LowWater(low_water), Then::Announce, core);
            }
            Some(Input::Command(command, deadline)) => self.offered(&command, deadline, core),
            Some(Input::Go(id, deadline)) => self.permitted(id, deadline, core),
            Some(Input::Drop(id)) => self.dropped(id, core),
            Some(Input::Cancel(id)) => self.cancelled(id, core),
            Some(Input::ResultAcknowledged(id, low_water)) => {
                self.engine_write(Write::Reported(id), Then::Forget(low_water), core);
            }
            Some(Input::Say(message)) => self.say(*message, core),
            Some(Input::Ended(id)) => {
                if let Some(process) = &mut self.process {
                    process.engine.tasks.remove(&id);
                }
                self.begin_next(core);
            }
        }
        self.go_on(core);
    }

    fn engine_write(&mut self, write: Write, then: Then, core: &mut Core) {
        if let Some(process) = &mut self.process {
            process.engine.busy = true;
        }
        self.write(write, After::Engine(then), core);
    }

    pub(super) fn engine_synced(&mut self, then: Then, done: bool, core: &mut Core) {
        if let Some(process) = &mut self.process {
            process.engine.busy = false;
            process.engine.low_water = self.disk.image.low_water;
        }
        match then {
            Then::Announce => self.announce(core),
            Then::Accepted(entry, start, deadline) => {
                self.say(accepted(&entry, !start), core);
                if start {
                    self.start(*entry, deadline, core);
                } else {
                    self.await_permit(entry.command_id, deadline, core);
                }
            }
            Then::Forget(low_water) => {
                let known = self.process.as_ref().map(|it| it.engine.low_water);
                if known.is_some_and(|known| low_water > known) {
                    self.engine_write(Write::LowWater(low_water), Then::Nothing, core);
                }
            }
            // It may have been dropped meanwhile.
            Then::Tell(command_id, outcome) if done => {
                let result = CommandResult {
                    command_id,
                    outcome,
                };
                self.say(AgentMessage::CommandResult(result), core);
            }
            Then::Tell(..) | Then::Nothing => {}
        }
        self.go_on(core);
    }

    /// Tells a new session what the journal holds.
    fn announce(&mut self, core: &mut Core) {
        let mut entries: Vec<Entry> = self.disk.image.entries.values().cloned().collect();
        entries.sort_unstable_by_key(|entry| (entry.order, entry.command_id));
        for entry in entries {
            match entry.state {
                EntryState::Accepted => {
                    let awaiting = !self.has_task(entry.command_id);
                    self.say(accepted(&entry, awaiting), core);
                }
                EntryState::Started => self.say_started(entry.command_id, core),
                EntryState::Finished if core.rules.keep(Rule::ResultsResent) => {
                    self.resend(&entry, core);
                }
                EntryState::Finished | EntryState::Reported => {}
            }
        }
    }

    fn offered(&mut self, command: &Command, deadline: Monotonic, core: &mut Core) {
        let id = command.command_id;
        let digest = digest(&command.name, &command.arguments);
        let known = self.disk.image.entries.get(&id).cloned();
        let kind = Kind::of(&command.name);
        let low_water = self.process.as_ref().map_or(0, |it| it.engine.low_water);
        let local = LocalView {
            verdict: kind.verdict().map(Idempotent),
            unreported: self.disk.image.unreported().len(),
            low_water,
            expired: deadline <= self.clock(core),
        };
        let permitted = command.permitted;
        let seen = known
            .as_ref()
            .filter(|_| core.rules.keep(Rule::KnownIdAnswered));
        let decision = on_command(seen, &digest, command.order, permitted, &local);
        match (decision, known) {
            (OnCommand::Accept { start, idempotent }, _) => {
                let start = start || !core.rules.keep(Rule::Permit);
                let run = self.process.as_ref().map(|process| process.run);
                let Some(agent_run_id) = run else { return };
                let entry = Box::new(Entry {
                    command_id: id,
                    order: command.order,
                    digest,
                    name: command.name.clone(),
                    arguments: Arguments::new(),
                    timeout_ms: command.timeout_ms,
                    idempotent,
                    state: EntryState::Accepted,
                    agent_run_id,
                    outcome: None,
                });
                let then = Then::Accepted(entry.clone(), start, deadline);
                self.engine_write(Write::Accept(entry), then, core);
            }
            (OnCommand::Announce { start }, Some(entry)) => {
                let running = self.has_task(id);
                self.say(accepted(&entry, !start && !running), core);
                if start {
                    self.start(entry, deadline, core);
                } else if !running {
                    self.await_permit(id, deadline, core);
                }
            }
            (OnCommand::ResendStarted, _) => self.say_started(id, core),
            (OnCommand::ResendResult, Some(entry)) => self.resend(&entry, core),
            (OnCommand::Reject(code), _) => self.reject(id, code, core),
            (OnCommand::SecurityEvent, _) => {
                core.recorder
                    .violated(|| format!("9: {id} came with another digest"));
            }
            (OnCommand::Announce { .. } | OnCommand::ResendResult, None) => {}
        }
    }

    fn reject(&mut self, command_id: CommandId, code: RejectCode, core: &mut Core) {
        let rejected = CommandRejected {
            command_id,
            code,
            detail: code.name().to_owned(),
        };
        self.say(AgentMessage::CommandRejected(rejected), core);
    }

    fn await_permit(&mut self, id: CommandId, deadline: Monotonic, core: &mut Core) {
        let (event, due) = (self.event(GatewayStep::Expire), self.truly(deadline));
        if let Some(process) = &mut self.process {
            process.engine.deadlines.insert(id, deadline);
            core.at(due, event);
        }
    }

    fn permitted(&mut self, id: CommandId, deadline: Monotonic, core: &mut Core) {
        let known = self.disk.image.entries.get(&id).cloned();
        let again = known
            .as_ref()
            .filter(|_| !core.rules.keep(Rule::PermitConsumed));
        if let Some(entry) = again {
            let entry = Entry {
                state: EntryState::Accepted,
                ..entry.clone()
            };
            self.disk.image.entries.insert(id, entry.clone());
            return self.start(entry, deadline, core);
        }
        match (on_go(known.as_ref()), known) {
            (OnGo::Start, Some(entry)) => self.start(entry, deadline, core),
            (OnGo::ResendResult, Some(entry)) => self.resend(&entry, core),
            (OnGo::Ignore, _) | (OnGo::Start | OnGo::ResendResult, None) => {}
        }
    }

    fn dropped(&mut self, id: CommandId, core: &mut Core) {
        if self.has_task(id) {
            return;
        }
        match on_drop(self.disk.image.entries.get(&id)) {
            OnDrop::Discard => {
                if let Some(process) = &mut self.process {
                    process.engine.deadlines.remove(&id);
                }
                self.engine_write(Write::Discard(id), Then::Nothing, core);
            }
            OnDrop::Ignore => {}
        }
    }

    fn cancelled(&mut self, id: CommandId, core: &mut Core) {
        if self.has_task(id) {
            return self.cancel_task(id, core);
        }
        let known = self.disk.image.entries.get(&id).cloned();
        match (on_cancel(known.as_ref()), known) {
            (OnCancel::FinishCancelled, _) => {
                self.finish_unstarted(id, OutcomeState::Cancelled, core);
            }
            (OnCancel::ResendResult, Some(entry)) => self.resend(&entry, core),
            (OnCancel::End | OnCancel::Ignore, _) | (OnCancel::ResendResult, None) => {}
        }
    }

    /// Finishes what has waited for its permit beyond its deadline; one at a time, as its input does not matter.
    pub(super) fn expire(&mut self, core: &mut Core) {
        let (now, event) = (self.clock(core), self.event(GatewayStep::Expire));
        let Some(process) = &mut self.process else {
            return;
        };
        let due = process.engine.deadlines.iter().find(|(_, at)| **at <= now);
        let Some((id, _)) = due else { return };
        let id = *id;
        core.after(Duration::from_millis(1), event);
        if !process.engine.busy {
            self.finish_unstarted(id, OutcomeState::Expired, core);
        }
    }

    fn finish_unstarted(&mut self, id: CommandId, state: OutcomeState, core: &mut Core) {
        if let Some(process) = &mut self.process {
            process.engine.deadlines.remove(&id);
        }
        let outcome = Outcome::without_run(state, "it was not started");
        let then = Then::Tell(id, outcome.clone());
        self.engine_write(Write::Finish(id, outcome), then, core);
    }

    fn has_task(&self, id: CommandId) -> bool {
        let process = self.process.as_ref();
        process.is_some_and(|process| process.engine.tasks.contains_key(&id))
    }

    fn start(&mut self, entry: Entry, deadline: Monotonic, core: &mut Core) {
        let id = entry.command_id;
        let event = self.event(GatewayStep::Begin(id));
        let Some(process) = &mut self.process else {
            return;
        };
        process.engine.deadlines.remove(&id);
        if process.engine.tasks.contains_key(&id) {
            return;
        }
        process.engine.tasks.insert(id, Task::new(entry, deadline));
        let pause = core.random.span(Duration::ZERO, Duration::from_millis(5));
        core.after(pause, event);
    }

    fn resend(&mut self, entry: &Entry, core: &mut Core) {
        if let Some(outcome) = &entry.outcome {
            let result = CommandResult {
                command_id: entry.command_id,
                outcome: outcome.clone(),
            };
            self.say(AgentMessage::CommandResult(result), core);
        }
    }

    fn say_started(&mut self, command_id: CommandId, core: &mut Core) {
        let started_at = self.wall(core);
        let started = CommandStarted {
            command_id,
            started_at,
        };
        self.say(AgentMessage::CommandStarted(started), core);
    }

    /// Hands a message to the session it is attached to; the next one is told by the journal.
    fn say(&mut self, message: AgentMessage, core: &mut Core) {
        let attached = self.process.as_ref().and_then(|it| it.engine.attached);
        if let Some(wire) = attached {
            self.pass_on(wire, message, core);
        }
    }
}

fn accepted(entry: &Entry, awaiting_permit: bool) -> AgentMessage {
    AgentMessage::CommandAccepted(CommandAccepted {
        command_id: entry.command_id,
        idempotent: entry.idempotent,
        awaiting_permit,
    })
}
