//! The command engine: offers and permits in, journalled steps, acceptances and results out.
//!
//! Each command that is not yet reported has one worker that takes it through the journal; the engine routes what arrives to
//! the workers and decides with the pure rules of `common::journal`. Workers outlive sessions: what a worker has to say is
//! said again in the next session until the backend has committed it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use viworks_common::code::RejectCode;
use viworks_common::command::{Outcome, OutcomeState};
use viworks_common::id::{AgentRunId, CommandId};
use viworks_common::journal::{self, Entry, EntryState, Idempotent, LocalView, OnCommand, OnRestart};
use viworks_common::limits;
use viworks_common::time::Monotonic;
use viworks_common::wire::message::{AgentMessage, Command, CommandRejected, CommandResult, Event};
use viworks_runtime::clock::Clock;
use viworks_runtime::exit::ExitCode;
use viworks_runtime::lifecycle::Lifecycle;

use crate::catalogue::Catalogue;
use crate::executor::{Executor, LiveOutput, end_strays};
use crate::journal::{Journal, JournalError};

mod worker;

use worker::{Input, Worker};

/// Inputs that may wait for one worker; each is repeated in the next session when it is lost.
const INPUTS_MAX: usize = 16;
/// Messages that may wait for the session; workers wait for room.
const UPLINK_MESSAGES_MAX: usize = 256;

/// What the engine works with.
pub struct Parts {
    /// The durable record.
    pub journal: Journal,
    /// The single executor.
    pub executor: Executor,
    /// What may run.
    pub catalogue: Catalogue,
    /// The clock deadlines are counted on.
    pub clock: Arc<dyn Clock>,
    /// This process.
    pub agent_run_id: AgentRunId,
    /// Who waits for the workers at the end.
    pub lifecycle: Lifecycle,
    /// Where live output goes.
    pub live: mpsc::Sender<LiveOutput>,
}

/// The engine; clones share it.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    journal: Journal,
    executor: Executor,
    catalogue: Mutex<Arc<Catalogue>>,
    clock: Arc<dyn Clock>,
    agent_run_id: AgentRunId,
    lifecycle: Lifecycle,
    live: mpsc::Sender<LiveOutput>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    known: BTreeMap<CommandId, Known>,
    low_water: u64,
    highest_order: u64,
    uplink: Option<mpsc::Sender<AgentMessage>>,
}

/// One journalled command: its entry as of the last durable step, and its worker while it has something to do.
struct Known {
    entry: Entry,
    worker: Option<mpsc::Sender<Input>>,
}

/// What HELLO says about commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Every command that the backend has not acknowledged as committed.
    pub unreported: Vec<CommandId>,
    /// The highest order ever seen.
    pub highest_order: u64,
    /// The highest low-water mark ever told.
    pub low_water: u64,
}

impl Engine {
    /// Takes over what an earlier process left in the journal: interrupted commands are ended and decided.
    ///
    /// # Errors
    /// When the journal cannot be read or written.
    pub async fn open(parts: Parts) -> Result<Self, JournalError> {
        let mut entries = parts.journal.load().await?;
        let interrupted: Vec<CommandId> =
            entries.iter().filter(|entry| entry.state == EntryState::Started).map(|entry| entry.command_id).collect();
        let ended = end_strays(&interrupted);
        if ended > 0 {
            tracing::warn!(processes = ended, "ended processes that an earlier run of this agent left behind");
        }
        for entry in &mut entries {
            recover(&parts, entry).await?;
        }
        let meta = parts.journal.meta().await?;
        let state = State { low_water: meta.low_water, highest_order: meta.highest_order, ..State::default() };
        let engine = Self {
            shared: Arc::new(Shared {
                journal: parts.journal,
                executor: parts.executor,
                catalogue: Mutex::new(Arc::new(parts.catalogue)),
                clock: parts.clock,
                agent_run_id: parts.agent_run_id,
                lifecycle: parts.lifecycle,
                live: parts.live,
                state: Mutex::new(state),
            }),
        };
        for entry in entries {
            let worker = (entry.state != EntryState::Reported).then(|| engine.spawn(entry.clone(), None, false));
            engine.state().known.insert(entry.command_id, Known { entry, worker });
        }
        Ok(engine)
    }

    /// What may run at this moment.
    #[must_use]
    pub fn catalogue(&self) -> Arc<Catalogue> {
        Arc::clone(&lock(&self.shared.catalogue))
    }

    /// Replaces what may run; commands that wait are checked against it before they start.
    pub fn replace_catalogue(&self, catalogue: Catalogue) {
        *lock(&self.shared.catalogue) = Arc::new(catalogue);
    }

    /// What HELLO says.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state();
        let unreported = state.known.values().filter(|known| known.entry.state != EntryState::Reported);
        Snapshot {
            unreported: unreported.map(|known| known.entry.command_id).collect(),
            highest_order: state.highest_order,
            low_water: state.low_water,
        }
    }

    /// A session is established: everything that waits for the backend is said again on it.
    #[must_use]
    pub fn connected(&self, low_water: u64) -> mpsc::Receiver<AgentMessage> {
        let (uplink, messages) = mpsc::channel(UPLINK_MESSAGES_MAX);
        let workers: Vec<mpsc::Sender<Input>> = {
            let mut state = self.state();
            state.uplink = Some(uplink);
            state.known.values().filter_map(|known| known.worker.clone()).collect()
        };
        for worker in workers {
            deliver(&worker, Input::Announce);
        }
        self.forget_up_to(low_water);
        messages
    }

    /// COMMAND, with its deadline on this machine's clock.
    pub fn offered(&self, command: Command, deadline: Monotonic) {
        let Some(digest) = decode_digest(&command.digest) else {
            return self.reject(command.command_id, RejectCode::DigestMismatch, "the digest is not 64 hexadecimal digits");
        };
        let catalogue = self.catalogue();
        let checked = catalogue.check(&command.name, &command.arguments);
        let verdict = checked.as_ref().map(|allowed| Idempotent(allowed.idempotent())).map_err(|refusal| refusal.code);
        let detail = checked.err().map(|refusal| refusal.detail);
        let mut state = self.state();
        let unreported = state.known.values().filter(|known| known.entry.state != EntryState::Reported).count();
        let local =
            LocalView { verdict, unreported, low_water: state.low_water, expired: self.shared.clock.now() >= deadline };
        let known = state.known.get(&command.command_id);
        let decision = if viworks_common::command::digest(&command.name, &command.arguments) == digest {
            journal::on_command(known.map(|known| &known.entry), &digest, command.order, command.permitted, &local)
        } else {
            OnCommand::SecurityEvent
        };
        match decision {
            OnCommand::Accept { start, idempotent } => {
                let entry = Entry {
                    command_id: command.command_id,
                    order: command.order,
                    digest,
                    name: command.name,
                    arguments: command.arguments,
                    idempotent,
                    state: EntryState::Accepted,
                    agent_run_id: self.shared.agent_run_id,
                    outcome: None,
                };
                state.highest_order = state.highest_order.max(entry.order);
                // Known before it is durable, so that a repeated offer cannot make a second worker.
                let worker = self.spawn(entry.clone(), Some(worker::Offer { deadline, start }), true);
                state.known.insert(entry.command_id, Known { entry, worker: Some(worker) });
            }
            OnCommand::Announce { start } => route(known, Input::Offered(worker::Offer { deadline, start })),
            OnCommand::ResendStarted => route(known, Input::Announce),
            OnCommand::ResendResult => match known {
                Some(Known { worker: Some(worker), .. }) => deliver(worker, Input::Announce),
                Some(Known { entry: Entry { outcome: Some(outcome), .. }, worker: None }) => {
                    let result = CommandResult { command_id: command.command_id, outcome: outcome.clone() };
                    send_now(&state, AgentMessage::CommandResult(result));
                }
                Some(Known { entry: Entry { outcome: None, .. }, worker: None }) | None => {}
            },
            OnCommand::Reject(code) => {
                drop(state);
                let detail = match code {
                    RejectCode::Stale => "its order is at or below the low-water mark and its id is unknown".to_owned(),
                    RejectCode::Busy => format!("{} commands wait for the backend already", limits::COMMANDS_UNREPORTED_MAX),
                    RejectCode::NotAllowed
                    | RejectCode::Unavailable
                    | RejectCode::BadArguments
                    | RejectCode::DigestMismatch
                    | RejectCode::JournalUnavailable => detail.unwrap_or_else(|| code.to_string()),
                };
                self.reject(command.command_id, code, &detail);
            }
            OnCommand::SecurityEvent => {
                drop(state);
                tracing::warn!(command_id = %command.command_id, "a command came with a digest that does not belong to it");
                let detail = format!("command {} came with another digest", command.command_id);
                send_now(&self.state(), AgentMessage::Event(Event { kind: "command_digest_mismatch".to_owned(), detail: detail.clone() }));
                self.reject(command.command_id, RejectCode::DigestMismatch, &detail);
            }
        }
    }

    /// GO, with its deadline on this machine's clock.
    pub fn permitted(&self, command_id: CommandId, deadline: Monotonic) {
        self.to_worker(command_id, Input::Permitted(deadline));
    }

    /// `COMMAND_DROP`.
    pub fn dropped(&self, command_id: CommandId) {
        self.to_worker(command_id, Input::Dropped);
    }

    /// `COMMAND_CANCEL`.
    pub fn cancelled(&self, command_id: CommandId) {
        self.to_worker(command_id, Input::Cancelled);
    }

    /// `RESULT_ACK`.
    pub fn acknowledged(&self, command_id: CommandId, low_water: u64) {
        self.to_worker(command_id, Input::Acknowledged);
        self.forget_up_to(low_water);
    }

    /// How many commands run, local ones included.
    #[must_use]
    pub fn running(&self) -> u32 {
        self.shared.executor.running()
    }

    fn to_worker(&self, command_id: CommandId, input: Input) {
        route(self.state().known.get(&command_id), input);
    }

    fn reject(&self, command_id: CommandId, code: RejectCode, detail: &str) {
        let end = detail.floor_char_boundary(limits::DETAIL_BYTES_MAX);
        let rejected = CommandRejected { command_id, code, detail: detail[..end].to_owned() };
        send_now(&self.state(), AgentMessage::CommandRejected(rejected));
    }

    /// Raises the mark and forgets what is reported up to it.
    fn forget_up_to(&self, low_water: u64) {
        let forgettable = {
            let mut state = self.state();
            state.low_water = state.low_water.max(low_water);
            let mark = state.low_water;
            let before = state.known.len();
            state.known.retain(|_id, known| !journal::may_forget(known.entry.state, known.entry.order, mark));
            before != state.known.len()
        };
        let engine = self.clone();
        if forgettable || low_water > 0 {
            self.shared.lifecycle.spawn("journal-forget", async move {
                let mark = engine.state().low_water;
                if let Err(error) = engine.shared.journal.forget_up_to(mark).await {
                    engine.journal_failed(&error);
                }
            });
        }
    }

    fn spawn(&self, entry: Entry, offer: Option<worker::Offer>, new: bool) -> mpsc::Sender<Input> {
        let (sender, inputs) = mpsc::channel(INPUTS_MAX);
        let worker = Worker::new(self.clone(), entry, offer, inputs);
        self.shared.lifecycle.spawn("command", worker.run(new));
        sender
    }

    /// Follows a worker's durable step.
    fn note(&self, command_id: CommandId, change: impl FnOnce(&mut Entry)) {
        if let Some(known) = self.state().known.get_mut(&command_id) {
            change(&mut known.entry);
        }
    }

    /// A worker has nothing more to do for a reported command.
    fn retire(&self, command_id: CommandId) {
        let mut state = self.state();
        let mark = state.low_water;
        if let Some(known) = state.known.get_mut(&command_id) {
            known.worker = None;
            if journal::may_forget(known.entry.state, known.entry.order, mark) {
                state.known.remove(&command_id);
            }
        }
    }

    /// An offer that did not come to be, or was dropped.
    fn remove(&self, command_id: CommandId) {
        self.state().known.remove(&command_id);
    }

    /// Says something to the backend; without a session it is said again by [`Engine::connected`].
    async fn say(&self, message: AgentMessage) {
        let uplink = self.state().uplink.clone();
        if let Some(uplink) = uplink {
            // A session that ended takes nothing; the next one is told again.
            let _taken = uplink.send(message).await;
        }
    }

    /// A journal that lies is worse than none: the process ends, and the next one reads what is really there.
    fn journal_failed(&self, error: &JournalError) {
        if error.is_fatal() {
            self.shared.lifecycle.fail(ExitCode::Error, format!("the command journal failed: {error}"));
        } else {
            tracing::error!(%error, "a step could not be journalled");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared.state)
    }
}

async fn recover(parts: &Parts, entry: &mut Entry) -> Result<(), JournalError> {
    match journal::on_restart(entry) {
        OnRestart::Keep => {}
        OnRestart::AwaitPermitAgain => {
            parts.journal.await_again(entry.command_id, parts.agent_run_id).await?;
            entry.state = EntryState::Accepted;
            entry.agent_run_id = parts.agent_run_id;
        }
        OnRestart::FinishIndeterminate => {
            let outcome =
                Outcome::without_run(OutcomeState::Indeterminate, "the agent ended while the command ran; whether it did its work is not known");
            parts.journal.finish(entry.command_id, &outcome).await?;
            entry.state = EntryState::Finished;
            entry.outcome = Some(outcome);
        }
    }
    Ok(())
}

fn route(known: Option<&Known>, input: Input) {
    if let Some(worker) = known.and_then(|known| known.worker.as_ref()) {
        deliver(worker, input);
    }
}

fn deliver(worker: &mpsc::Sender<Input>, input: Input) {
    if let Err(error) = worker.try_send(input) {
        tracing::debug!(%error, "a command's worker took nothing more; the backend repeats itself in the next session");
    }
}

/// For what need not be repeated by a worker; a full queue loses it, and the backend asks again in the next session.
fn send_now(state: &State, message: AgentMessage) {
    if let Some(uplink) = &state.uplink
        && let Err(error) = uplink.try_send(message)
    {
        tracing::debug!(%error, "the session took nothing more");
    }
}

fn decode_digest(text: &str) -> Option<[u8; 32]> {
    viworks_common::command::parse_digest(text)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these locks; a poisoned one still guards consistent data.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
