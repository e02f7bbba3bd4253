//! One command's way through the journal, from accepted to reported.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use viworks_common::code::RejectCode;
use viworks_common::command::{Outcome, OutcomeState};
use viworks_common::journal::{self, Entry, EntryState, OnCancel, OnDrop, OnGo};
use viworks_common::time::Monotonic;
use viworks_common::wire::message::{AgentMessage, CommandAccepted, CommandResult, CommandStarted};
use viworks_runtime::clock;

use super::Engine;
use crate::executor::{Launch, Slot};
use crate::journal::JournalError;

/// What reaches a worker.
#[derive(Debug, Clone, Copy)]
pub(super) enum Input {
    /// The command was offered again.
    Offered(Offer),
    /// A start permit that ends at this time.
    Permitted(Monotonic),
    /// The backend decided without it.
    Dropped,
    /// An operator wants it ended.
    Cancelled,
    /// Its result is committed.
    Acknowledged,
    /// Say again where it stands.
    Announce,
}

/// An offer's terms.
#[derive(Debug, Clone, Copy)]
pub(super) struct Offer {
    /// When it may no longer start.
    pub(super) deadline: Monotonic,
    /// Whether it may start without GO.
    pub(super) start: bool,
}

/// What a waiting command does next.
enum Step {
    /// Start before this time.
    Start(Monotonic),
    /// End without having run.
    Finish(Outcome),
    /// Forget it.
    Discard,
    /// The agent stops; the next process goes on.
    Leave,
}

pub(super) struct Worker {
    engine: Engine,
    entry: Entry,
    /// When an offer that waits for its permit is over; unknown after a restart until it is offered again.
    deadline: Option<Monotonic>,
    inline: Option<Monotonic>,
    inputs: mpsc::Receiver<Input>,
}

impl Worker {
    pub(super) fn new(engine: Engine, entry: Entry, offer: Option<Offer>, inputs: mpsc::Receiver<Input>) -> Self {
        let inline = offer.filter(|offer| offer.start).map(|offer| offer.deadline);
        Self { engine, entry, deadline: offer.map(|offer| offer.deadline), inline, inputs }
    }

    /// Takes the command as far as it goes; `new` when it is not in the journal yet.
    pub(super) async fn run(mut self, new: bool) {
        let command_id = self.entry.command_id;
        if let Err(error) = self.advance(new).await {
            tracing::error!(%command_id, %error, "a command's step could not be journalled");
            self.engine.journal_failed(&error);
        }
    }

    async fn advance(&mut self, new: bool) -> Result<(), JournalError> {
        if new && !self.accept().await {
            return Ok(());
        }
        if self.entry.state == EntryState::Accepted {
            let step = match self.inline.take() {
                Some(deadline) => Step::Start(deadline),
                None => self.wait_for_permit().await,
            };
            match step {
                Step::Start(deadline) => {
                    let Some(outcome) = self.start(deadline).await? else { return Ok(()) };
                    self.finish(outcome).await?;
                }
                Step::Finish(outcome) => self.finish(outcome).await?,
                Step::Discard => {
                    self.engine.shared.journal.discard(self.entry.command_id).await?;
                    self.engine.remove(self.entry.command_id);
                    return Ok(());
                }
                Step::Leave => return Ok(()),
            }
        }
        self.report().await
    }

    /// Makes the acceptance durable, then says so.
    async fn accept(&mut self) -> bool {
        match self.engine.shared.journal.accept(&self.entry).await {
            Ok(()) => {
                self.say_accepted().await;
                true
            }
            Err(error) => {
                self.engine.remove(self.entry.command_id);
                self.engine.journal_failed(&error);
                self.engine.reject(self.entry.command_id, RejectCode::JournalUnavailable, "the gateway's journal takes no more entries");
                false
            }
        }
    }

    async fn say_accepted(&self) {
        let accepted = CommandAccepted {
            command_id: self.entry.command_id,
            idempotent: self.entry.idempotent,
            awaiting_permit: self.inline.is_none(),
        };
        self.engine.say(AgentMessage::CommandAccepted(accepted)).await;
    }

    async fn wait_for_permit(&mut self) -> Step {
        let lifecycle = self.engine.shared.lifecycle.clone();
        loop {
            let input = tokio::select! {
                input = self.inputs.recv() => input,
                () = until(&self.engine, self.deadline) => {
                    return Step::Finish(Outcome::without_run(OutcomeState::Expired, "its deadline passed before it was permitted to start"));
                }
                () = lifecycle.stopping() => return Step::Leave,
            };
            match input {
                None => return Step::Leave,
                Some(Input::Offered(offer)) => {
                    self.deadline = Some(offer.deadline);
                    if offer.start {
                        return Step::Start(offer.deadline);
                    }
                    self.say_accepted().await;
                }
                Some(Input::Permitted(deadline)) => match journal::on_go(Some(&self.entry)) {
                    OnGo::Start => return Step::Start(deadline),
                    OnGo::Ignore | OnGo::ResendResult => {}
                },
                Some(Input::Dropped) => match journal::on_drop(Some(&self.entry)) {
                    OnDrop::Discard => return Step::Discard,
                    OnDrop::Ignore => {}
                },
                Some(Input::Cancelled) => match journal::on_cancel(Some(&self.entry)) {
                    OnCancel::FinishCancelled => {
                        return Step::Finish(Outcome::without_run(OutcomeState::Cancelled, "cancelled before it was started"));
                    }
                    OnCancel::End | OnCancel::ResendResult | OnCancel::Ignore => {}
                },
                Some(Input::Announce) => self.say_accepted().await,
                Some(Input::Acknowledged) => {}
            }
        }
    }

    /// Runs the command when everything still allows it; `None` when the agent stops first.
    async fn start(&mut self, deadline: Monotonic) -> Result<Option<Outcome>, JournalError> {
        let expired = || Outcome::without_run(OutcomeState::Expired, "its deadline passed before it could start");
        let slot = match self.wait_for_slot(deadline).await {
            Ok(slot) => slot,
            Err(Step::Finish(outcome)) => return Ok(Some(outcome)),
            Err(Step::Discard | Step::Leave | Step::Start(_)) => return Ok(None),
        };
        let launch = match self.check() {
            Ok(launch) => launch,
            Err(outcome) => return Ok(Some(outcome)),
        };
        if self.engine.shared.clock.now() >= deadline {
            return Ok(Some(expired()));
        }
        let agent_run_id = self.engine.shared.agent_run_id;
        self.engine.shared.journal.mark_started(self.entry.command_id, agent_run_id).await?;
        self.entry.state = EntryState::Started;
        self.entry.agent_run_id = agent_run_id;
        self.engine.note(self.entry.command_id, |entry| entry.state = EntryState::Started);
        // A slow disk must not make the start late.
        if self.engine.shared.clock.now() >= deadline {
            return Ok(Some(expired()));
        }
        Ok(self.execute(slot, launch).await)
    }

    async fn wait_for_slot(&mut self, deadline: Monotonic) -> Result<Slot, Step> {
        let executor = self.engine.shared.executor.clone();
        let lifecycle = self.engine.shared.lifecycle.clone();
        loop {
            let input = tokio::select! {
                slot = executor.slot() => return Ok(slot),
                () = until(&self.engine, Some(deadline)) => {
                    return Err(Step::Finish(Outcome::without_run(OutcomeState::Expired, "its deadline passed while other commands ran")));
                }
                () = lifecycle.stopping() => return Err(Step::Leave),
                input = self.inputs.recv() => input,
            };
            match input {
                None => return Err(Step::Leave),
                Some(Input::Cancelled) => {
                    return Err(Step::Finish(Outcome::without_run(OutcomeState::Cancelled, "cancelled before it was started")));
                }
                Some(Input::Announce | Input::Offered(_)) => self.say_accepted().await,
                // The permit is in use; a drop comes too late, and nothing was reported that could be acknowledged.
                Some(Input::Permitted(_) | Input::Dropped | Input::Acknowledged) => {}
            }
        }
    }

    /// The second check, at the moment of the start: the catalogue may have changed since.
    fn check(&self) -> Result<Launch, Outcome> {
        let catalogue = self.engine.catalogue();
        let refused = |code: RejectCode, reason: String| Outcome {
            reject_code: Some(code),
            ..Outcome::without_run(OutcomeState::Rejected, reason)
        };
        let allowed =
            catalogue.check(&self.entry.name, &self.entry.arguments).map_err(|refusal| refused(refusal.code, refusal.detail))?;
        if self.entry.idempotent && !allowed.idempotent() {
            // Its permit was given for a command that may run twice; it no longer is one.
            return Err(refused(RejectCode::NotAllowed, "the catalogue changed between acceptance and start".to_owned()));
        }
        Ok(allowed.launch(self.entry.command_id))
    }

    async fn execute(&mut self, slot: Slot, launch: Launch) -> Option<Outcome> {
        self.say_started().await;
        let cancel = CancellationToken::new();
        let running = slot.run(launch, cancel.clone(), Some(self.engine.shared.live.clone()));
        tokio::pin!(running);
        let lifecycle = self.engine.shared.lifecycle.clone();
        let mut open = true;
        loop {
            let input = tokio::select! {
                outcome = &mut running => return Some(outcome),
                // The hard end: the future is dropped, its processes are killed, and the next process decides.
                () = lifecycle.aborting() => return None,
                input = self.inputs.recv(), if open => input,
            };
            match input {
                None => open = false,
                Some(Input::Cancelled) => cancel.cancel(),
                Some(Input::Announce | Input::Offered(_)) => self.say_started().await,
                Some(Input::Permitted(_) | Input::Dropped | Input::Acknowledged) => {}
            }
        }
    }

    async fn say_started(&self) {
        let started = CommandStarted { command_id: self.entry.command_id, started_at: self.engine.shared.clock.wall() };
        self.engine.say(AgentMessage::CommandStarted(started)).await;
    }

    async fn finish(&mut self, outcome: Outcome) -> Result<(), JournalError> {
        self.engine.shared.journal.finish(self.entry.command_id, &outcome).await?;
        self.entry.state = EntryState::Finished;
        self.entry.outcome = Some(outcome.clone());
        self.engine.note(self.entry.command_id, |entry| {
            entry.state = EntryState::Finished;
            entry.outcome = Some(outcome);
        });
        Ok(())
    }

    /// Sends the outcome until the backend has committed it.
    async fn report(&mut self) -> Result<(), JournalError> {
        let lifecycle = self.engine.shared.lifecycle.clone();
        self.say_result().await;
        loop {
            let input = tokio::select! {
                input = self.inputs.recv() => input,
                () = lifecycle.stopping() => return Ok(()),
            };
            match input {
                None => return Ok(()),
                Some(Input::Acknowledged) => break,
                Some(Input::Announce | Input::Offered(_) | Input::Permitted(_) | Input::Cancelled) => self.say_result().await,
                Some(Input::Dropped) => {}
            }
        }
        self.engine.shared.journal.mark_reported(self.entry.command_id).await?;
        self.entry.state = EntryState::Reported;
        self.engine.note(self.entry.command_id, |entry| entry.state = EntryState::Reported);
        self.engine.retire(self.entry.command_id);
        Ok(())
    }

    async fn say_result(&self) {
        let Some(outcome) = self.entry.outcome.clone() else { return };
        let result = CommandResult { command_id: self.entry.command_id, outcome };
        self.engine.say(AgentMessage::CommandResult(result)).await;
    }
}

/// Until `deadline` on the engine's clock; for ever when there is none.
async fn until(engine: &Engine, deadline: Option<Monotonic>) {
    match deadline {
        Some(deadline) if deadline.as_duration() < Duration::MAX => clock::sleep_until(engine.shared.clock.as_ref(), deadline).await,
        Some(_) | None => std::future::pending().await,
    }
}
