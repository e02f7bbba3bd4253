//! The surroundings of the product's command engine: its writes go to the modelled disk, its starts to a modelled
//! executor, its words to the session; what comes of them comes back after a while.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use viworks_common::command::{Outcome, OutcomeState};
use viworks_common::engine::{Effect, Engine as Machine, Input, Now, Refused, Unwritten};
use viworks_common::id::{AgentRunId, CommandId, CommandName};
use viworks_common::journal::{Entry, Idempotent};
use viworks_common::time::Monotonic;
use viworks_common::wire::message::{AgentMessage, CommandResult};

use super::super::core::{Core, GatewayStep};
use super::super::disk_model::{Image, Write};
use super::super::network::ConnectionId;
use super::super::operator::Kind;
use super::super::scenario::Rules;
use super::{Host, Process};

/// Commands that run at a time.
const SLOTS: usize = 2;
/// How long a step may take that needs neither disk nor network.
const MOMENT: Duration = Duration::from_millis(5);

/// What reaches the machine in its turn, and the connection that it is attached to by that.
type Turn = (Input, Option<ConnectionId>);

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

    /// The machine takes something in, once it is its turn.
    pub(super) fn tell(&mut self, input: Input, host: &Host, core: &mut Core) {
        self.take_turn((input, None), host, core);
    }

    /// The same; a session that is confirmed names its connection.
    pub(super) fn take_turn(&mut self, turn: Turn, host: &Host, core: &mut Core) {
        self.turns.push_back(turn);
        self.go_on(host, core);
    }

    fn go_on(&mut self, host: &Host, core: &mut Core) {
        if !self.busy && !self.turns.is_empty() {
            self.busy = true;
            let pause = core.random.span(Duration::ZERO, MOMENT);
            core.after(pause, host.event(GatewayStep::Engine));
        }
    }

    fn arm(&mut self, host: &Host, core: &mut Core) {
        let Some(due) = self.machine.poll_timeout() else {
            return;
        };
        let due = host.truly(due).max(core.now);
        // An earlier awakening looks again.
        if self.woken_at.is_none_or(|at| at > due) {
            self.woken_at = Some(due);
            core.at(due, host.event(GatewayStep::Expire));
        }
    }

    /// A command is over: everything that waits for a slot looks again.
    fn free(&mut self, id: CommandId, host: &Host, core: &mut Core) {
        self.tasks.remove(&id);
        for (id, _) in self.tasks.iter().filter(|(_, task)| !task.placed) {
            core.after(Duration::ZERO, host.event(GatewayStep::Begin(*id)));
        }
    }
}

impl Process {
    pub(super) fn engine_step(&mut self, host: &mut Host, core: &mut Core) {
        self.engine.busy = false;
        if let Some((input, attached)) = self.engine.turns.pop_front() {
            self.engine.attached = attached.or(self.engine.attached);
            self.handle(input, host, core);
        }
        self.engine.go_on(host, core);
    }

    /// Something the machine waits for may be due.
    pub(super) fn wake(&mut self, host: &mut Host, core: &mut Core) {
        self.engine.woken_at = None;
        self.handle(Input::Timeout, host, core);
    }

    /// A write of the journal is durable, if its entry was in the right state.
    pub(super) fn journalled(
        &mut self,
        of: Option<CommandId>,
        done: bool,
        host: &mut Host,
        core: &mut Core,
    ) {
        let wrong = || Unwritten::WrongState("it is in another state".to_owned());
        let result = done.then_some(()).ok_or_else(wrong);
        self.handle(Input::Written(of, result), host, core);
    }

    /// Lets the machine take something in, and does what it wants.
    fn handle(&mut self, input: Input, host: &mut Host, core: &mut Core) {
        let now = Now {
            clock: host.clock(core),
            wall: host.wall(core),
        };
        self.engine.machine.handle(input, now);
        self.perform(host, core);
        self.engine.arm(host, core);
    }

    /// Does what the machine wants.
    pub(super) fn perform(&mut self, host: &mut Host, core: &mut Core) {
        while let Some(effect) = self.engine.machine.poll_effect() {
            match effect {
                // What ran in an earlier process ended with its machine.
                Effect::EndLeftovers(_) => self.handle(Input::LeftoversEnded, host, core),
                Effect::Write(write) => host.write(Write::Journal(write.step), core),
                Effect::Check(command) => {
                    let checked = Input::Checked(command.command_id, verdict(&command.name));
                    self.engine.tell(checked, host, core);
                }
                Effect::Prepare(entry) => self.prepare(*entry, host, core),
                Effect::Abandon(id) => self.engine.free(id, host, core),
                Effect::Launch(id, _) => self.launch(id, host, core),
                Effect::End(id) => {
                    core.after(Duration::ZERO, host.event(GatewayStep::Exit(id, true)));
                }
                Effect::Say(message) => {
                    if let AgentMessage::Event(event) = &*message {
                        let detail = &event.detail;
                        core.recorder.violated(|| format!("9: {detail}"));
                    }
                    self.say(*message, host, core);
                }
                Effect::Report(id, outcome) => {
                    self.say(result(id, (*outcome).clone()), host, core);
                }
                Effect::Resend(id) => {
                    let entry = host.disk.image.entries.get(&id);
                    if let Some(outcome) = entry.and_then(|it| it.outcome.clone()) {
                        self.say(result(id, outcome), host, core);
                    }
                }
                Effect::Fail(reason) => core.recorder.violated(|| format!("9: {reason}")),
            }
        }
    }

    fn prepare(&mut self, entry: Entry, host: &Host, core: &mut Core) {
        let id = entry.command_id;
        let task = Task {
            entry,
            placed: false,
            number: None,
        };
        self.engine.tasks.insert(id, task);
        let pause = core.random.span(Duration::ZERO, MOMENT);
        core.after(pause, host.event(GatewayStep::Begin(id)));
    }

    /// A command looks for a slot.
    pub(super) fn begin(&mut self, id: CommandId, host: &Host, core: &mut Core) {
        let tasks = &mut self.engine.tasks;
        let used = tasks.values().filter(|task| task.placed).count();
        let Some(task) = tasks.get_mut(&id).filter(|task| !task.placed) else {
            return;
        };
        task.placed = used < SLOTS;
        let input = if task.placed {
            Input::Prepared(id, verdict(&task.entry.name))
        } else {
            Input::Queued(id)
        };
        self.engine.tell(input, host, core);
    }

    fn launch(&mut self, id: CommandId, host: &Host, core: &mut Core) {
        let Some(task) = self.engine.tasks.get_mut(&id) else {
            return;
        };
        let what = (task.entry.idempotent, task.entry.timeout_ms);
        let (host_id, run) = (host.id, self.run);
        let number = core.recorder.started(id, (host_id, run), what, core.now);
        task.number = Some(number);
        core.note(|| format!("{host_id:?} STARTS {id} as number {number}"));
        let span = core.random.millis(0, 6_000);
        core.after(span, host.event(GatewayStep::Exit(id, false)));
    }

    /// A running command ends, by itself or not.
    pub(super) fn exit(&mut self, id: CommandId, ended: bool, host: &Host, core: &mut Core) {
        let luck = core.random.below(8);
        let Some(number) = self.engine.tasks.get(&id).and_then(|task| task.number) else {
            return;
        };
        let state = match luck {
            _ if ended => OutcomeState::Cancelled,
            0 => OutcomeState::Failed,
            1 => OutcomeState::TimedOut,
            _ => OutcomeState::Succeeded,
        };
        let outcome = Outcome {
            exit_code: Some(0),
            started_at: Some(host.wall(core)),
            duration_ms: number,
            reason: None,
            ..Outcome::without_run(state, "")
        };
        self.engine.free(id, host, core);
        let exited = Input::Exited(id, Box::new(outcome));
        self.engine.tell(exited, host, core);
    }

    /// Hands a message to the session it is attached to; the next one is told by the journal.
    fn say(&mut self, message: AgentMessage, host: &mut Host, core: &mut Core) {
        let attached = self.engine.attached;
        let link = self.link.as_mut();
        if let Some(link) = link.filter(|link| Some(link.wire) == attached) {
            link.pass_on(message);
            self.pump(host, core);
        }
    }
}

fn result(command_id: CommandId, outcome: Outcome) -> AgentMessage {
    AgentMessage::CommandResult(CommandResult {
        command_id,
        outcome,
    })
}

/// What the gateway's catalogue says of a command.
fn verdict(name: &CommandName) -> Result<Idempotent, Refused> {
    let verdict = Kind::of(name).verdict();
    verdict.map(Idempotent).map_err(|code| Refused {
        code,
        detail: code.name().to_owned(),
    })
}
