//! The surroundings of the product's command engine: its writes go to the modelled disk, its starts to a modelled
//! executor, its words to the session; what comes of them comes back after a while.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use viworks_common::command::{Outcome, OutcomeState};
use viworks_common::engine::{Asked, Effect, Engine as Machine, Input, Now, Refused, Unwritten};
use viworks_common::id::{AgentRunId, CommandId};
use viworks_common::journal::{Entry, Idempotent};
use viworks_common::time::Monotonic;
use viworks_common::wire::message::{AgentMessage, Command, CommandResult};

use super::super::core::{Core, GatewayStep};
use super::super::disk_model::{Image, Write};
use super::super::network::ConnectionId;
use super::super::operator::Kind;
use super::super::scenario::Rules;
use super::{After, Host};

/// Commands that run at a time.
const SLOTS: usize = 2;
/// How long a step may take that needs neither disk nor network.
const MOMENT: Duration = Duration::from_millis(5);

/// What reaches the machine in its turn.
#[derive(Debug)]
enum Turn {
    Attach(ConnectionId, u64),
    Input(Input),
}

/// A command that has its permit.
#[derive(Debug)]
struct Task {
    entry: Entry,
    /// It holds a slot.
    placed: bool,
    /// The number of its start, for the outcome, once it runs.
    number: Option<u64>,
}

/// The machine and what waits around it.
#[derive(Debug)]
pub(super) struct Engine {
    machine: Machine<Rules>,
    turns: VecDeque<Turn>,
    /// The next turn is scheduled.
    busy: bool,
    attached: Option<ConnectionId>,
    tasks: BTreeMap<CommandId, Task>,
    woken_at: Option<Monotonic>,
}

impl Engine {
    pub(super) fn new(rules: Rules, run: AgentRunId, image: &Image) -> Self {
        let entries = image.entries.values().cloned();
        Self {
            machine: Machine::under(rules, run, entries, image.low_water),
            turns: VecDeque::new(),
            busy: false,
            attached: None,
            tasks: BTreeMap::new(),
            woken_at: None,
        }
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.turns.is_empty() && self.tasks.is_empty() && self.machine.is_quiet()
    }

    pub(super) fn is_settled(&self) -> bool {
        self.machine.is_settled()
    }
}

impl Host {
    /// A session asks something.
    pub(super) fn ask(&mut self, id: CommandId, asked: Asked, core: &mut Core) {
        self.tell(Input::Asked(id, asked), core);
    }

    /// A session is confirmed.
    pub(super) fn attach(&mut self, wire: ConnectionId, low_water: u64, core: &mut Core) {
        self.take_turn(Turn::Attach(wire, low_water), core);
    }

    fn tell(&mut self, input: Input, core: &mut Core) {
        self.take_turn(Turn::Input(input), core);
    }

    fn take_turn(&mut self, turn: Turn, core: &mut Core) {
        if let Some(process) = &mut self.process {
            process.engine.turns.push_back(turn);
        }
        self.go_on(core);
    }

    fn go_on(&mut self, core: &mut Core) {
        let event = self.event(GatewayStep::Engine);
        if let Some(process) = &mut self.process
            && !process.engine.busy
            && !process.engine.turns.is_empty()
        {
            process.engine.busy = true;
            let pause = core.random.span(Duration::ZERO, MOMENT);
            core.after(pause, event);
        }
    }

    pub(super) fn engine_step(&mut self, core: &mut Core) {
        let turn = self.process.as_mut().and_then(|process| {
            process.engine.busy = false;
            process.engine.turns.pop_front()
        });
        match turn {
            None => {}
            Some(Turn::Attach(wire, low_water)) => {
                if let Some(process) = &mut self.process {
                    process.engine.attached = Some(wire);
                }
                self.handle(Input::Attached(low_water), core);
            }
            Some(Turn::Input(input)) => self.handle(input, core),
        }
        self.go_on(core);
    }

    /// Something the machine waits for may be due.
    pub(super) fn wake(&mut self, core: &mut Core) {
        if let Some(process) = &mut self.process {
            process.engine.woken_at = None;
        }
        self.handle(Input::Timeout, core);
    }

    /// A write of the journal is durable, if its entry was in the right state.
    pub(super) fn journalled(&mut self, of: Option<CommandId>, done: bool, core: &mut Core) {
        let result = if done {
            Ok(())
        } else {
            Err(Unwritten::WrongState("it is in another state".to_owned()))
        };
        self.handle(Input::Written(of, result), core);
    }

    /// Lets the machine take something in, and does what it wants.
    fn handle(&mut self, input: Input, core: &mut Core) {
        let now = Now {
            clock: self.clock(core),
            wall: self.wall(core),
        };
        if let Some(process) = &mut self.process {
            process.engine.machine.handle(input, now);
        }
        self.perform(core);
        self.arm_engine(core);
    }

    /// Does what the machine wants.
    pub(super) fn perform(&mut self, core: &mut Core) {
        while let Some(effect) = self
            .process
            .as_mut()
            .and_then(|it| it.engine.machine.poll_effect())
        {
            match effect {
                // What ran in an earlier process ended with its machine.
                Effect::EndLeftovers(_) => self.handle(Input::LeftoversEnded, core),
                Effect::Write(write) => {
                    let after = After::Journalled(write.step.command_id());
                    self.write(Write::Journal(write.step), after, core);
                }
                Effect::Check(command) => self.check(&command, core),
                Effect::Prepare(entry) => self.prepare(*entry, core),
                Effect::Abandon(id) => self.free(id, core),
                Effect::Launch(id) => self.launch(id, core),
                Effect::End(id) => {
                    core.after(Duration::ZERO, self.event(GatewayStep::Exit(id, true)));
                }
                Effect::Say(message) => {
                    if let AgentMessage::Event(event) = &*message {
                        let detail = &event.detail;
                        core.recorder.violated(|| format!("9: {detail}"));
                    }
                    self.say(*message, core);
                }
                Effect::Report(command_id, outcome) => {
                    let outcome = (*outcome).clone();
                    self.say_outcome(command_id, outcome, core);
                }
                Effect::Resend(id) => {
                    let entry = self.disk.image.entries.get(&id);
                    if let Some(outcome) = entry.and_then(|it| it.outcome.clone()) {
                        self.say_outcome(id, outcome, core);
                    }
                }
                Effect::Fail(reason) => core.recorder.violated(|| format!("9: {reason}")),
            }
        }
    }

    fn arm_engine(&mut self, core: &mut Core) {
        let event = self.event(GatewayStep::Expire);
        let Some(process) = &self.process else { return };
        let engine = &process.engine;
        let Some(due) = engine.machine.poll_timeout() else {
            return;
        };
        let due = self.truly(due).max(core.now);
        // An earlier awakening looks again.
        if engine.woken_at.is_none_or(|at| at > due) {
            if let Some(process) = &mut self.process {
                process.engine.woken_at = Some(due);
            }
            core.at(due, event);
        }
    }

    fn check(&mut self, command: &Command, core: &mut Core) {
        let verdict = verdict(Kind::of(&command.name));
        self.tell(Input::Checked(command.command_id, verdict), core);
    }

    fn prepare(&mut self, entry: Entry, core: &mut Core) {
        let id = entry.command_id;
        let Some(process) = &mut self.process else {
            return;
        };
        let task = Task {
            entry,
            placed: false,
            number: None,
        };
        process.engine.tasks.insert(id, task);
        let pause = core.random.span(Duration::ZERO, MOMENT);
        core.after(pause, self.event(GatewayStep::Begin(id)));
    }

    /// A command looks for a slot.
    pub(super) fn begin(&mut self, id: CommandId, core: &mut Core) {
        let Some(process) = &mut self.process else {
            return;
        };
        let tasks = &mut process.engine.tasks;
        let used = tasks.values().filter(|task| task.placed).count();
        let Some(task) = tasks.get_mut(&id).filter(|task| !task.placed) else {
            return;
        };
        if used < SLOTS {
            task.placed = true;
            let verdict = verdict(Kind::of(&task.entry.name));
            self.tell(Input::Prepared(id, verdict), core);
        } else {
            self.tell(Input::Queued(id), core);
        }
    }

    /// A command is over: everything that waits for a slot looks again.
    fn free(&mut self, id: CommandId, core: &mut Core) {
        let Some(process) = &mut self.process else {
            return;
        };
        process.engine.tasks.remove(&id);
        let tasks = process.engine.tasks.iter();
        let waiting = tasks.filter(|(_, task)| !task.placed);
        for id in waiting.map(|(id, _)| *id).collect::<Vec<_>>() {
            core.after(Duration::ZERO, self.event(GatewayStep::Begin(id)));
        }
    }

    fn launch(&mut self, id: CommandId, core: &mut Core) {
        let host = self.id;
        let Some(process) = &mut self.process else {
            return;
        };
        let run = process.run;
        let Some(task) = process.engine.tasks.get_mut(&id) else {
            return;
        };
        let what = (task.entry.idempotent, task.entry.timeout_ms);
        let number = core.recorder.started(id, (host, run), what, core.now);
        task.number = Some(number);
        core.note(|| format!("{host:?} STARTS {id} as number {number}"));
        let span = core.random.millis(0, 6_000);
        core.after(span, self.event(GatewayStep::Exit(id, false)));
    }

    /// A running command ends, by itself or not.
    pub(super) fn exit(&mut self, id: CommandId, ended: bool, core: &mut Core) {
        let luck = core.random.below(8);
        let tasks = self.process.as_ref().map(|it| &it.engine.tasks);
        let number = tasks.and_then(|tasks| tasks.get(&id)?.number);
        let Some(number) = number else { return };
        let state = match luck {
            _ if ended => OutcomeState::Cancelled,
            0 => OutcomeState::Failed,
            1 => OutcomeState::TimedOut,
            _ => OutcomeState::Succeeded,
        };
        let outcome = Outcome {
            exit_code: Some(0),
            duration_ms: number,
            reason: None,
            ..Outcome::without_run(state, "")
        };
        self.free(id, core);
        self.tell(Input::Exited(id, Box::new(outcome)), core);
    }

    fn say_outcome(&mut self, command_id: CommandId, outcome: Outcome, core: &mut Core) {
        let result = CommandResult {
            command_id,
            outcome,
        };
        self.say(AgentMessage::CommandResult(result), core);
    }

    /// Hands a message to the session it is attached to; the next one is told by the journal.
    fn say(&mut self, message: AgentMessage, core: &mut Core) {
        let attached = self.process.as_ref().and_then(|it| it.engine.attached);
        if let Some(wire) = attached {
            self.pass_on(wire, message, core);
        }
    }
}

fn verdict(kind: Kind) -> Result<Idempotent, Refused> {
    kind.verdict().map(Idempotent).map_err(|code| Refused {
        code,
        detail: code.name().to_owned(),
    })
}
