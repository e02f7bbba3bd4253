//! The command engine: between the session's events, the journal and the executor, whether or not there is a session.
//!
//! One task decides, by the pure rules of `common::journal`, one event at a time; each command that may start runs in a
//! task of its own, which journals its start and its end itself. So a lost connection loses nothing: the next session is
//! told what the journal holds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use viworks_common::code::RejectCode;
use viworks_common::command::{self, Outcome, OutcomeState};
use viworks_common::id::{AgentRunId, CommandId};
use viworks_common::journal::{
    self as rules, Entry, EntryState, Idempotent, LocalView, OnCancel, OnCommand, OnDrop, OnGo,
    OnRestart,
};
use viworks_common::limits;
use viworks_common::time::Monotonic;
use viworks_common::wire::message::{
    AgentMessage, Command, CommandAccepted, CommandRejected, CommandResult, CommandStarted, Event,
};
use viworks_runtime::blocking;
use viworks_runtime::clock::{Clock, sleep_until};
use viworks_runtime::exit::ExitCode;
use viworks_runtime::lifecycle::Lifecycle;

use crate::catalogue::Current;
use crate::executor::{Executor, LiveOutput, end_strays};
use crate::journal::{Journal, JournalError};

mod start;

/// Events that may wait: offers, permits and requests about as many commands as may be unreported, and their ends.
const INPUTS_MAX: usize = 8 * limits::COMMANDS_UNREPORTED_MAX;

/// How long the search for processes of an earlier agent may take.
const STRAYS_TIME: Duration = Duration::from_secs(30);

/// How long running commands get to end by themselves when the agent stops; then they are ended and reported.
const STOP_TIME: Duration = Duration::from_secs(10);

/// What the engine is told.
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
    /// A task that runs a command has something to say.
    Say(Box<AgentMessage>),
    /// A task that runs a command has ended.
    Ended(CommandId),
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

    /// How many commands have started and not ended.
    #[must_use]
    pub fn active(&self) -> usize {
        *self.active.borrow()
    }
}

/// What the engine works with.
#[derive(Clone)]
pub struct Tools {
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

/// The engine's own state.
pub struct Engine {
    tools: Tools,
    inputs: mpsc::Receiver<Input>,
    /// For the tasks it starts.
    own: mpsc::Sender<Input>,
    session: Option<mpsc::Sender<AgentMessage>>,
    running: HashMap<CommandId, CancellationToken>,
    /// Until when accepted commands may still start.
    deadlines: HashMap<CommandId, Monotonic>,
    low_water: u64,
    active: watch::Sender<usize>,
}

impl Engine {
    /// Settles what an earlier process left behind, and is then ready to [`Engine::run`].
    ///
    /// # Errors
    ///
    /// When the journal fails; the agent must not run then.
    pub async fn recover(tools: Tools) -> Result<(Self, EngineHandle), JournalError> {
        let entries = tools.journal.load().await?;
        let interrupted: Vec<CommandId> = entries
            .iter()
            .filter(|entry| entry.state == EntryState::Started)
            .map(|entry| entry.command_id)
            .collect();
        if !interrupted.is_empty() {
            warn!(commands = ?interrupted, "commands were interrupted by the end of the last agent process");
            let ids = interrupted.clone();
            // Before anything can start again: nothing of the old process may run beside it.
            let search = move || end_strays(&ids);
            if let Err(error) = blocking::call("strays", STRAYS_TIME, search).await {
                error!(%error, "the search for left-over processes failed");
            }
        }
        for entry in &entries {
            match rules::on_restart(entry) {
                OnRestart::Keep => {}
                OnRestart::AwaitPermitAgain => {
                    tools
                        .journal
                        .await_again(entry.command_id, tools.agent_run_id)
                        .await?;
                }
                OnRestart::FinishIndeterminate => {
                    let outcome = Outcome::without_run(
                        OutcomeState::Indeterminate,
                        "the gateway agent ended while it ran",
                    );
                    tools.journal.finish(entry.command_id, &outcome).await?;
                }
            }
        }
        let low_water = tools.journal.meta().await?.low_water;
        let (own, inputs) = mpsc::channel(INPUTS_MAX);
        let (active, watched) = watch::channel(0);
        let handle = EngineHandle {
            inputs: own.clone(),
            active: watched,
        };
        let engine = Self {
            tools,
            inputs,
            own,
            session: None,
            running: HashMap::new(),
            deadlines: HashMap::new(),
            low_water,
            active,
        };
        Ok((engine, handle))
    }

    /// Works until the agent stops and nothing runs any more. A journal that fails for good ends the agent.
    pub async fn run(mut self) {
        let lifecycle = self.tools.lifecycle.clone();
        let mut ending: Option<Monotonic> = None;
        loop {
            if lifecycle.is_stopping() {
                if self.running.is_empty() {
                    return;
                }
                ending.get_or_insert_with(|| self.tools.clock.now().saturating_add(STOP_TIME));
            }
            let clock = Arc::clone(&self.tools.clock);
            let expiry = self.deadlines.values().copied().chain(ending).min();
            let result = tokio::select! {
                biased;
                () = lifecycle.stopping(), if ending.is_none() => Ok(()),
                input = self.inputs.recv() => match input {
                    Some(input) => self.handle(input).await,
                    None => return,
                },
                () = sleep_until(&*clock, expiry.unwrap_or_default()), if expiry.is_some() => {
                    if ending.is_some_and(|due| due <= clock.now()) {
                        info!(commands = self.running.len(), "ending commands that still run");
                        self.running.values().for_each(CancellationToken::cancel);
                        // Their tasks journal how they ended; the grace period of the shutdown bounds them.
                        ending = Some(clock.now().saturating_add(STOP_TIME));
                    }
                    self.expire().await
                }
            };
            if let Err(error) = result
                && !self.survives(&error)
            {
                return;
            }
        }
    }

    /// Whether the engine can go on after a failure of the journal.
    fn survives(&self, error: &JournalError) -> bool {
        if error.is_fatal() {
            let reason = format!("the command journal failed: {error}");
            self.tools.lifecycle.fail(ExitCode::Error, reason);
            return false;
        }
        // The other end has not been told, so it offers or sends again.
        warn!(%error, "the command journal refused a step");
        true
    }

    async fn handle(&mut self, input: Input) -> Result<(), JournalError> {
        match input {
            Input::Attach {
                messages,
                low_water,
            } => {
                self.session = Some(messages);
                self.announce(low_water).await
            }
            Input::Command(command, deadline) => self.offered(&command, deadline).await,
            Input::Go(command_id, deadline) => self.permitted(command_id, deadline).await,
            Input::Drop(command_id) => self.dropped(command_id).await,
            Input::Cancel(command_id) => self.cancelled(command_id).await,
            Input::ResultAcknowledged {
                command_id,
                low_water,
            } => {
                // An unknown or unfinished one has nothing to note.
                match self.tools.journal.mark_reported(command_id).await {
                    Ok(()) | Err(JournalError::WrongState { .. }) => {}
                    Err(error) => return Err(error),
                }
                self.forget(low_water).await
            }
            Input::Say(message) => {
                self.say(*message).await;
                Ok(())
            }
            Input::Ended(command_id) => {
                self.running.remove(&command_id);
                self.active.send_replace(self.running.len());
                Ok(())
            }
        }
    }

    /// Tells a new session what the journal holds.
    async fn announce(&mut self, low_water: u64) -> Result<(), JournalError> {
        self.forget(low_water).await?;
        for entry in self.tools.journal.load().await? {
            match entry.state {
                EntryState::Accepted => {
                    let awaiting_permit = !self.running.contains_key(&entry.command_id);
                    self.say(accepted(&entry, awaiting_permit)).await;
                }
                EntryState::Started => self.say(self.started(entry.command_id)).await,
                EntryState::Finished => self.resend(&entry).await,
                EntryState::Reported => {}
            }
        }
        Ok(())
    }

    async fn offered(
        &mut self,
        command: &Command,
        deadline: Monotonic,
    ) -> Result<(), JournalError> {
        let id = command.command_id;
        let digest = command::digest(&command.name, &command.arguments);
        if hex_of(&digest) != command.digest {
            self.reject(
                id,
                RejectCode::DigestMismatch,
                "name, arguments and digest do not fit",
            )
            .await;
            return Ok(());
        }
        let known = self.tools.journal.entry(id).await?;
        let catalogue = self.tools.catalogue.get();
        let checked = match catalogue.check(&command.name, &command.arguments) {
            // Whether its files are there is asked where it starts, in its own task: a look may take its time, and this
            // loop serves all commands.
            Ok(allowed) => Ok(Idempotent(allowed.idempotent())),
            Err(refusal) => Err(refusal),
        };
        let stopping = self.tools.lifecycle.is_stopping();
        let local = LocalView {
            verdict: match &checked {
                Ok(_) if stopping => Err(RejectCode::Busy),
                Ok(idempotent) => Ok(*idempotent),
                Err(refusal) => Err(refusal.code),
            },
            unreported: self.tools.journal.unreported().await?.len(),
            low_water: self.low_water,
            expired: deadline <= self.tools.clock.now(),
        };
        let decision = rules::on_command(
            known.as_ref(),
            &digest,
            command.order,
            command.permitted,
            &local,
        );
        match (decision, known) {
            (OnCommand::Accept { start, idempotent }, _) => {
                let entry = Entry {
                    command_id: id,
                    order: command.order,
                    digest,
                    name: command.name.clone(),
                    arguments: command.arguments.clone(),
                    timeout_ms: command.timeout_ms,
                    idempotent,
                    state: EntryState::Accepted,
                    agent_run_id: self.tools.agent_run_id,
                    outcome: None,
                };
                self.accept(entry, start, deadline).await?;
            }
            (OnCommand::Announce { start }, Some(entry)) => {
                let running = self.running.contains_key(&id);
                self.say(accepted(&entry, !start && !running)).await;
                if start {
                    self.start(entry, deadline);
                } else if !running {
                    self.deadlines.insert(id, deadline);
                }
            }
            (OnCommand::ResendStarted, _) => self.say(self.started(id)).await,
            (OnCommand::ResendResult, Some(entry)) => self.resend(&entry).await,
            (OnCommand::Reject(code), _) => {
                let detail = match &checked {
                    Err(refusal) if refusal.code == code => refusal.detail.as_str(),
                    Ok(_) | Err(_) => code.name(),
                };
                self.reject(id, code, detail).await;
            }
            (OnCommand::SecurityEvent, _) => {
                let detail = format!("command {id} came again with another digest");
                warn!(detail, "security event");
                self.say(AgentMessage::Event(Event {
                    kind: "digest_mismatch".to_owned(),
                    detail: detail.clone(),
                }))
                .await;
                self.reject(id, RejectCode::DigestMismatch, &detail).await;
            }
            // The rules answer so only about an entry that is there.
            (OnCommand::Announce { .. } | OnCommand::ResendResult, None) => {}
        }
        Ok(())
    }

    async fn accept(
        &mut self,
        entry: Entry,
        start: bool,
        deadline: Monotonic,
    ) -> Result<(), JournalError> {
        if let Err(error) = self.journal_accepted(&entry).await {
            let (code, detail) = match &error {
                JournalError::Full(_) => (RejectCode::Busy, error.to_string()),
                JournalError::Database(_)
                | JournalError::Lost(_)
                | JournalError::WrongState { .. }
                | JournalError::Inconsistent(_) => {
                    (RejectCode::JournalUnavailable, error.to_string())
                }
            };
            self.reject(entry.command_id, code, &detail).await;
            return if error.is_fatal() { Err(error) } else { Ok(()) };
        }
        self.say(accepted(&entry, !start)).await;
        if start {
            self.start(entry, deadline);
        } else {
            self.deadlines.insert(entry.command_id, deadline);
        }
        Ok(())
    }

    /// What must not run twice is accepted only while the next process will know of it.
    async fn journal_accepted(&self, entry: &Entry) -> Result<(), JournalError> {
        if !entry.idempotent {
            self.tools.journal.kept().await?;
        }
        self.tools.journal.accept(entry).await
    }

    async fn permitted(
        &mut self,
        command_id: CommandId,
        deadline: Monotonic,
    ) -> Result<(), JournalError> {
        let known = self.tools.journal.entry(command_id).await?;
        match (rules::on_go(known.as_ref()), known) {
            (OnGo::Start, Some(entry)) => self.start(entry, deadline),
            (OnGo::ResendResult, Some(entry)) => self.resend(&entry).await,
            (OnGo::Ignore, _) | (OnGo::Start | OnGo::ResendResult, None) => {}
        }
        Ok(())
    }

    async fn dropped(&mut self, command_id: CommandId) -> Result<(), JournalError> {
        if self.running.contains_key(&command_id) {
            return Ok(());
        }
        let known = self.tools.journal.entry(command_id).await?;
        match rules::on_drop(known.as_ref()) {
            OnDrop::Discard => {
                self.deadlines.remove(&command_id);
                self.tools.journal.discard(command_id).await?;
            }
            OnDrop::Ignore => {}
        }
        Ok(())
    }

    async fn cancelled(&mut self, command_id: CommandId) -> Result<(), JournalError> {
        // Started, or about to be: its task sees to it.
        if let Some(cancel) = self.running.get(&command_id) {
            cancel.cancel();
            return Ok(());
        }
        let known = self.tools.journal.entry(command_id).await?;
        match (rules::on_cancel(known.as_ref()), known) {
            (OnCancel::FinishCancelled, _) => {
                let reason = "cancelled before it was started";
                self.finish_unstarted(command_id, OutcomeState::Cancelled, reason)
                    .await
            }
            (OnCancel::ResendResult, Some(entry)) => {
                self.resend(&entry).await;
                Ok(())
            }
            (OnCancel::End | OnCancel::Ignore, _) | (OnCancel::ResendResult, None) => Ok(()),
        }
    }

    /// Finishes what has waited for its permit beyond its deadline.
    async fn expire(&mut self) -> Result<(), JournalError> {
        let now = self.tools.clock.now();
        let due: Vec<CommandId> = self
            .deadlines
            .iter()
            .filter(|(_, deadline)| **deadline <= now)
            .map(|(id, _)| *id)
            .collect();
        for command_id in due {
            let reason = "its deadline passed before it was started";
            self.finish_unstarted(command_id, OutcomeState::Expired, reason)
                .await?;
        }
        Ok(())
    }

    async fn finish_unstarted(
        &mut self,
        command_id: CommandId,
        state: OutcomeState,
        reason: &str,
    ) -> Result<(), JournalError> {
        self.deadlines.remove(&command_id);
        let outcome = Outcome::without_run(state, reason);
        match self.tools.journal.finish(command_id, &outcome).await {
            Ok(()) => {}
            // It has been dropped meanwhile.
            Err(JournalError::WrongState { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
        let result = CommandResult {
            command_id,
            outcome,
        };
        self.say(AgentMessage::CommandResult(result)).await;
        Ok(())
    }

    /// Starts a task for an entry that has its permit; a second permit finds it started.
    fn start(&mut self, entry: Entry, deadline: Monotonic) {
        let id = entry.command_id;
        self.deadlines.remove(&id);
        if self.running.contains_key(&id) {
            return;
        }
        let cancel = CancellationToken::new();
        self.running.insert(id, cancel.clone());
        self.active.send_replace(self.running.len());
        let task = start::run(
            self.tools.clone(),
            self.own.clone(),
            entry,
            deadline,
            cancel,
        );
        self.tools.lifecycle.spawn("command", task);
    }

    async fn forget(&mut self, low_water: u64) -> Result<(), JournalError> {
        if low_water > self.low_water {
            self.tools.journal.forget_up_to(low_water).await?;
            self.low_water = low_water;
        }
        Ok(())
    }

    async fn reject(&mut self, command_id: CommandId, code: RejectCode, detail: &str) {
        info!(%command_id, %code, detail, "refused a command");
        let end = detail.floor_char_boundary(limits::DETAIL_BYTES_MAX);
        self.say(AgentMessage::CommandRejected(CommandRejected {
            command_id,
            code,
            detail: detail[..end].to_owned(),
        }))
        .await;
    }

    async fn resend(&mut self, entry: &Entry) {
        if let Some(outcome) = &entry.outcome {
            let result = CommandResult {
                command_id: entry.command_id,
                outcome: outcome.clone(),
            };
            self.say(AgentMessage::CommandResult(result)).await;
        }
    }

    fn started(&self, command_id: CommandId) -> AgentMessage {
        AgentMessage::CommandStarted(CommandStarted {
            command_id,
            started_at: self.tools.clock.wall(),
        })
    }

    /// Hands a message to the session, if there is one; the next one is told by the journal.
    async fn say(&mut self, message: AgentMessage) {
        if let Some(session) = &self.session
            && session.send(message).await.is_err()
        {
            self.session = None;
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

/// Lower-case hexadecimal digits.
pub(crate) fn hex_of(digest: &[u8; 32]) -> String {
    use std::fmt::Write;
    digest
        .iter()
        .fold(String::with_capacity(64), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a string succeeds");
            text
        })
}
