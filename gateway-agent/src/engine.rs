//! Drives the command engine of `common::engine`: carries its writes to the journal, its starts to the executor and its
//! words to the session, and brings back what came of them.
//!
//! It decides nothing. Writes of different commands wait for the disk together, and so share commits; a session that
//! takes nothing holds up its own requests and nothing else.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, ready};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use viworks_common::engine::{Asked, Effect, Input as Told, Now, Unwritten, Write};
use viworks_common::id::{AgentRunId, CommandId};
use viworks_common::journal::Step;
use viworks_common::limits;
use viworks_common::time::Monotonic;
use viworks_common::wire::message::{AgentMessage, Command};
use viworks_runtime::blocking;
use viworks_runtime::clock::{Clock, sleep_until};
use viworks_runtime::exit::ExitCode;
use viworks_runtime::lifecycle::Lifecycle;

use crate::catalogue::Current;
use crate::executor::{Executor, LiveOutput, end_strays};
use crate::journal::{Journal, JournalError};

mod command;
mod outbox;

use command::Begin;
use outbox::Outbox;

/// Requests of the session that may wait: offers, permits and the rest about as many commands as may be unreported.
const INPUTS_MAX: usize = 8 * limits::COMMANDS_UNREPORTED_MAX;

/// Words of command tasks that may wait; each has two to say.
const TASKS_MAX: usize = 2 * limits::COMMANDS_UNREPORTED_MAX;

/// How long the search for processes of an earlier agent may take.
const STRAYS_TIME: Duration = Duration::from_secs(30);

/// What a session tells the engine.
#[derive(Debug)]
pub enum Input {
    /// A session is confirmed: everything to say goes there now, beginning with what the journal holds.
    Attach {
        /// Where messages go; when the session ends, its receiver is dropped.
        messages: mpsc::Sender<AgentMessage>,
        /// Up to which order everything is final.
        low_water: u64,
    },
    /// An offer, and until when it may start.
    Command(Box<Command>, Monotonic),
    /// A permit, and until when it holds.
    Go(CommandId, Monotonic),
    /// Never start it.
    Drop(CommandId),
    /// End it.
    Cancel(CommandId),
    /// Its result is committed.
    ResultAcknowledged {
        /// The command.
        command_id: CommandId,
        /// Up to which order everything is final.
        low_water: u64,
    },
}

/// The way to the engine. Clones share it.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    inputs: mpsc::Sender<Input>,
    active: watch::Receiver<usize>,
}

impl EngineHandle {
    /// Tells the engine something without waiting. False when it is hopelessly behind: then the session must end.
    #[must_use]
    pub fn tell(&self, input: Input) -> bool {
        self.inputs.try_send(input).is_ok()
    }

    /// How many commands have started and not ended, or ended without having been told.
    #[must_use]
    pub fn active(&self) -> usize {
        *self.active.borrow()
    }
}

/// What the engine is made of.
#[derive(Clone)]
pub struct Parts {
    /// This process.
    pub agent_run_id: AgentRunId,
    /// What may run.
    pub catalogue: Current,
    /// The durable record.
    pub journal: Journal,
    /// The one executor.
    pub executor: Executor,
    /// Both clocks.
    pub clock: Arc<dyn Clock>,
    /// Shutdown.
    pub lifecycle: Lifecycle,
    /// Where live output goes.
    pub live: mpsc::Sender<LiveOutput>,
}

/// What an effect that takes time came to.
enum Done {
    Told(Told),
    Written(Option<CommandId>, Result<(), JournalError>),
}

/// A task that runs a command, from its preparation on.
struct Task {
    /// Lets it start what it has prepared.
    begin: Option<oneshot::Sender<Begin>>,
    cancel: CancellationToken,
}

/// The machine and what it is connected to.
pub struct Engine {
    parts: Parts,
    machine: viworks_common::engine::Engine,
    inputs: mpsc::Receiver<Input>,
    own: (mpsc::Sender<Told>, mpsc::Receiver<Told>),
    under_way: FuturesUnordered<BoxFuture<'static, Done>>,
    tasks: HashMap<CommandId, Task>,
    outbox: Outbox,
    active: watch::Sender<usize>,
}

impl Engine {
    /// Settles what an earlier process left behind, and is then ready to [`Engine::run`].
    ///
    /// # Errors
    ///
    /// When the journal fails; the agent must not run then.
    pub async fn recover(parts: Parts) -> Result<(Self, EngineHandle), JournalError> {
        let entries = parts.journal.load().await?;
        let low_water = parts.journal.meta().await?.low_water;
        let machine =
            viworks_common::engine::Engine::recover(parts.agent_run_id, entries, low_water);
        let (sender, inputs) = mpsc::channel(INPUTS_MAX);
        let (active, watched) = watch::channel(0);
        let handle = EngineHandle {
            inputs: sender,
            active: watched,
        };
        let mut engine = Self {
            outbox: Outbox::new(parts.journal.clone()),
            parts,
            machine,
            inputs,
            own: mpsc::channel(TASKS_MAX),
            under_way: FuturesUnordered::new(),
            tasks: HashMap::new(),
            active,
        };
        engine.perform();
        while !engine.machine.is_settled() {
            match engine.under_way.next().await {
                Some(Done::Written(_, Err(error))) => return Err(error),
                Some(done) => engine.done(done),
                // Whatever is not settled is being written.
                None => break,
            }
        }
        Ok((engine, handle))
    }

    /// Works until the agent stops and nothing runs any more. A journal that fails for good ends the agent.
    pub async fn run(mut self) {
        let lifecycle = self.parts.lifecycle.clone();
        let clock = Arc::clone(&self.parts.clock);
        let mut stopping = false;
        while !(self.machine.is_done() && self.outbox.is_empty()) {
            let due = self.machine.poll_timeout();
            let room = self.machine.has_room() && self.outbox.has_room();
            tokio::select! {
                biased;
                () = lifecycle.stopping(), if !stopping => {
                    stopping = true;
                    self.tell(Told::Stopping);
                }
                Some(done) = self.under_way.next(), if !self.under_way.is_empty() => self.done(done),
                Some(told) = self.own.1.recv() => self.tell(told),
                () = self.outbox.pass_on(), if !self.outbox.is_empty() => {}
                input = self.inputs.recv(), if room => match input {
                    Some(input) => self.asked(input),
                    None => return,
                },
                () = sleep_until(&*clock, due.unwrap_or_default()), if due.is_some() => {
                    self.tell(Told::Timeout);
                }
            }
            let untold = usize::from(!self.outbox.is_empty());
            let active = self.machine.active().max(untold);
            self.active.send_if_modified(|known| {
                let changed = *known != active;
                *known = active;
                changed
            });
        }
    }

    fn asked(&mut self, input: Input) {
        let told = match input {
            Input::Attach {
                messages,
                low_water,
            } => {
                self.outbox.attach(messages);
                Told::Attached(low_water)
            }
            Input::Command(command, deadline) => {
                Told::Asked(command.command_id, Asked::Offer(command, deadline))
            }
            Input::Go(id, deadline) => Told::Asked(id, Asked::Go(deadline)),
            Input::Drop(id) => Told::Asked(id, Asked::Drop),
            Input::Cancel(id) => Told::Asked(id, Asked::Cancel),
            Input::ResultAcknowledged {
                command_id,
                low_water,
            } => Told::Asked(command_id, Asked::Acknowledged(low_water)),
        };
        self.tell(told);
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Told(told) => self.tell(told),
            Done::Written(of, Ok(())) => self.tell(Told::Written(of, Ok(()))),
            Done::Written(of, Err(error)) => {
                // The other end has not been told, so it offers or sends again.
                warn!(command_id = ?of, %error, "the command journal refused a step");
                self.tell(Told::Written(of, Err(unwritten(&error))));
            }
        }
    }

    fn tell(&mut self, told: Told) {
        if let Told::Exited(id, outcome) = &told {
            info!(command_id = %id, state = ?outcome.state, exit_code = outcome.exit_code, "a command ended");
            self.tasks.remove(id);
        }
        let now = Now {
            clock: self.parts.clock.now(),
            wall: self.parts.clock.wall(),
        };
        self.machine.handle(told, now);
        self.perform();
    }

    fn perform(&mut self) {
        while let Some(effect) = self.machine.poll_effect() {
            match effect {
                Effect::EndLeftovers(ids) => self.end_leftovers(ids),
                Effect::Write(write) => {
                    let journal = self.parts.journal.clone();
                    self.under_way.push(Box::pin(async move {
                        let of = write.step.command_id();
                        Done::Written(of, carry_out(&journal, write).await)
                    }));
                }
                Effect::Check(command) => {
                    let verdict = command::check(&self.parts.catalogue, &command);
                    let told = Told::Checked(command.command_id, verdict);
                    self.under_way.push(Box::pin(ready(Done::Told(told))));
                }
                Effect::Prepare(entry) => {
                    let (begin, begun) = oneshot::channel();
                    let cancel = CancellationToken::new();
                    let task = Task {
                        begin: Some(begin),
                        cancel: cancel.clone(),
                    };
                    self.tasks.insert(entry.command_id, task);
                    let (parts, own) = (self.parts.clone(), self.own.0.clone());
                    let work = command::run(parts, own, *entry, begun, cancel);
                    self.parts.lifecycle.spawn("command", work);
                }
                Effect::Abandon(id) => {
                    if let Some(task) = self.tasks.remove(&id) {
                        task.cancel.cancel();
                    }
                }
                Effect::Launch(id, deadline) => {
                    let task = self.tasks.get_mut(&id);
                    if let Some(begin) = task.and_then(|task| task.begin.take()) {
                        // It waits for this word, unless the process is being torn down.
                        let _gone = begin.send(Begin { deadline }).is_err();
                    }
                }
                Effect::End(id) => {
                    info!(command_id = %id, "ending a command");
                    if let Some(task) = self.tasks.get(&id) {
                        task.cancel.cancel();
                    }
                }
                Effect::Say(message) => self.say(message),
                Effect::Report(id, outcome) => self.outbox.report(id, outcome),
                Effect::Resend(id) => self.outbox.resend(id),
                Effect::Fail(reason) => self.parts.lifecycle.fail(ExitCode::Error, reason),
            }
        }
    }

    fn say(&mut self, message: Box<AgentMessage>) {
        if let AgentMessage::CommandRejected(it) = &*message {
            info!(command_id = %it.command_id, code = %it.code, detail = it.detail, "refused a command");
        } else if let AgentMessage::Event(event) = &*message {
            warn!(detail = event.detail, "security event");
        }
        self.outbox.say(message);
    }

    /// Before anything can start again: nothing of the old process may run beside it.
    fn end_leftovers(&self, ids: Vec<CommandId>) {
        warn!(commands = ?ids, "commands were interrupted by the end of the last agent process");
        self.under_way.push(Box::pin(async move {
            let search = move || end_strays(&ids);
            if let Err(error) = blocking::call("strays", STRAYS_TIME, search).await {
                error!(%error, "the search for left-over processes failed");
            }
            Done::Told(Told::LeftoversEnded)
        }));
    }
}

/// What must not run twice is accepted and started only while the next process will know of it.
async fn carry_out(journal: &Journal, write: Write) -> Result<(), JournalError> {
    if write.kept {
        journal.kept().await?;
    }
    match write.step {
        Step::Accept(entry) => journal.accept(*entry).await,
        Step::Start(id, run) => journal.mark_started(id, run).await,
        Step::Finish(id, outcome) => journal.finish(id, &outcome).await,
        Step::Report(id) => journal.mark_reported(id).await,
        Step::Discard(id) => match journal.discard(id).await? {
            true => Ok(()),
            false => Err(JournalError::WrongState {
                command_id: id,
                wanted: "accepted",
            }),
        },
        Step::AwaitAgain(id, run) => journal.await_again(id, run).await,
        Step::LowWater(mark) => journal.forget_up_to(mark).await.map(drop),
    }
}

fn unwritten(error: &JournalError) -> Unwritten {
    let detail = error.to_string();
    match error {
        _ if error.is_fatal() => Unwritten::Fatal(detail),
        JournalError::Full(_) => Unwritten::Full(detail),
        JournalError::Lost(lost) => Unwritten::Lost(lost.to_string()),
        JournalError::WrongState { .. } => Unwritten::WrongState(detail),
        JournalError::Database(_)
        | JournalError::Unusable { .. }
        | JournalError::Broken { .. }
        | JournalError::Inconsistent(_) => Unwritten::Refused(detail),
    }
}
