//! One command from its permit to its journalled end.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use viworks_common::code::RejectCode;
use viworks_common::command::{Outcome, OutcomeState};
use viworks_common::journal::Entry;
use viworks_common::time::Monotonic;
use viworks_common::wire::message::{AgentMessage, CommandResult, CommandStarted};
use viworks_runtime::clock::sleep_until;
use viworks_runtime::exit::ExitCode;

use super::{Input, Tools};
use crate::journal::JournalError;

/// Runs `entry` unless something speaks against it, and journals how it ended.
pub(super) async fn run(
    tools: Tools,
    engine: mpsc::Sender<Input>,
    entry: Entry,
    deadline: Monotonic,
    cancel: CancellationToken,
) {
    let id = entry.command_id;
    let lifecycle = tools.lifecycle.clone();
    let outcome = match attempt(&tools, &engine, entry, deadline, cancel).await {
        Ok(Some(outcome)) => outcome,
        Ok(None) => return tell(&engine, Input::Ended(id)).await,
        Err(error) => {
            warn!(command_id = %id, %error, "not started: the journal refused");
            if error.is_fatal() {
                lifecycle.fail(
                    ExitCode::Error,
                    format!("the command journal failed: {error}"),
                );
            }
            return tell(&engine, Input::Ended(id)).await;
        }
    };
    match tools.journal.finish(id, &outcome).await {
        Ok(()) => {
            info!(command_id = %id, state = ?outcome.state, exit_code = outcome.exit_code, "a command ended");
            let result = CommandResult {
                command_id: id,
                outcome,
            };
            tell(
                &engine,
                Input::Say(Box::new(AgentMessage::CommandResult(result))),
            )
            .await;
        }
        // Nothing can be kept, and the backend can still be told; without a session it finds out that nobody knows.
        Err(JournalError::Lost(lost)) => {
            warn!(command_id = %id, %lost, "a command ended and its outcome cannot be kept");
            let result = CommandResult {
                command_id: id,
                outcome,
            };
            let message = Box::new(AgentMessage::CommandResult(result));
            tell(&engine, Input::Say(message)).await;
        }
        // The outcome is known to nobody but this process, and cannot be kept: the next one must find the truth.
        Err(error) => lifecycle.fail(
            ExitCode::Error,
            format!("the outcome of command {id} cannot be journalled: {error}"),
        ),
    }
    tell(&engine, Input::Ended(id)).await;
}

/// `None` when it stays in the journal as it is.
async fn attempt(
    tools: &Tools,
    engine: &mpsc::Sender<Input>,
    entry: Entry,
    deadline: Monotonic,
    cancel: CancellationToken,
) -> Result<Option<Outcome>, JournalError> {
    let id = entry.command_id;
    let unstarted = |state, reason: &str| Ok(Some(Outcome::without_run(state, reason)));
    let slot = tokio::select! {
        biased;
        () = cancel.cancelled() => {
            return unstarted(OutcomeState::Cancelled, "cancelled before it was started");
        }
        () = sleep_until(&*tools.clock, deadline) => {
            return unstarted(OutcomeState::Expired, "its deadline passed before it was started");
        }
        () = tools.lifecycle.stopping() => {
            return if entry.idempotent {
                // The next process announces it, and gets a fresh permit.
                Ok(None)
            } else {
                unstarted(OutcomeState::Cancelled, "the gateway agent stopped before it was started")
            };
        }
        slot = tools.executor.slot() => slot,
    };
    // The permit may be older than the catalogue.
    let catalogue = tools.catalogue.get();
    let allowed = match catalogue.check(&entry.name, &entry.arguments) {
        Ok(allowed) => allowed.available().await.map(|()| allowed),
        Err(refusal) => Err(refusal),
    };
    let launch = match allowed {
        // Its permit was given for a command that may run twice, and it no longer is one.
        Ok(allowed) if entry.idempotent && !allowed.idempotent() => {
            let reason = "the catalogue changed between acceptance and start";
            let mut outcome = Outcome::without_run(OutcomeState::Rejected, reason);
            outcome.reject_code = Some(RejectCode::NotAllowed);
            return Ok(Some(outcome));
        }
        Ok(allowed) => {
            let mut launch = allowed.launch(id);
            if let Some(limit) = entry.timeout_ms {
                launch.timeout = launch.timeout.min(Duration::from_millis(limit));
            }
            launch
        }
        Err(refusal) => {
            let mut outcome = Outcome::without_run(OutcomeState::Rejected, refusal.detail);
            outcome.reject_code = Some(refusal.code);
            return Ok(Some(outcome));
        }
    };
    if deadline <= tools.clock.now() {
        return unstarted(
            OutcomeState::Expired,
            "its deadline passed before it was started",
        );
    }
    if !entry.idempotent
        && let Err(lost) = tools.journal.kept().await
    {
        // Its start would be forgotten with this process, and a later one could start it again.
        let reason = format!("the gateway's state folder is lost: {lost}");
        let mut outcome = Outcome::without_run(OutcomeState::Rejected, reason);
        outcome.reject_code = Some(RejectCode::JournalUnavailable);
        return Ok(Some(outcome));
    }
    tools.journal.mark_started(id, tools.agent_run_id).await?;
    // The write takes time of its own, and a disk can hang: what is late now must not start either.
    if deadline <= tools.clock.now() {
        return unstarted(
            OutcomeState::Expired,
            "its deadline passed before it was started",
        );
    }
    let started = CommandStarted {
        command_id: id,
        started_at: tools.clock.wall(),
    };
    tell(
        engine,
        Input::Say(Box::new(AgentMessage::CommandStarted(started))),
    )
    .await;
    if deadline <= tools.clock.now() {
        return unstarted(
            OutcomeState::Expired,
            "its deadline passed before it was started",
        );
    }
    info!(command_id = %id, name = %entry.name, "starting a command");
    Ok(Some(
        slot.run(launch, cancel, Some(tools.live.clone())).await,
    ))
}

async fn tell(engine: &mpsc::Sender<Input>, input: Input) {
    // Without an engine the agent is ending; the journal knows.
    drop(engine.send(input).await);
}
