//! One command as a task: waits for a slot, looks at the catalogue, and runs once the engine says so.

use std::pin::pin;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::info;
use viworks_common::command::Arguments;
use viworks_common::engine::{Input as Told, Refused};
use viworks_common::id::{CommandId, CommandName};
use viworks_common::journal::{Entry, Idempotent};
use viworks_common::time::Monotonic;
use viworks_common::wire::message::Command;

use super::Parts;
use crate::catalogue::{Current, Refusal};
use crate::executor::Launch;

/// How long the look at a command's files may hold up the word that it is accepted.
const PROMPT: Duration = Duration::from_millis(500);

/// The word that what was prepared may start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begin {
    /// Until when.
    pub(super) deadline: Option<Monotonic>,
}

/// Prepares `entry`, and runs it when `begin` says so; without that word, or once it is cancelled, nothing starts.
pub(super) async fn run(
    parts: Parts,
    engine: mpsc::Sender<Told>,
    entry: Entry,
    begin: oneshot::Receiver<Begin>,
    cancel: CancellationToken,
) {
    let id = entry.command_id;
    let slot = match parts.executor.try_slot() {
        Some(slot) => slot,
        None => {
            tell(&engine, Told::Queued(id)).await;
            let freed = cancel.run_until_cancelled(parts.executor.slot()).await;
            let Some(slot) = freed else { return };
            slot
        }
    };
    // The permit may be older than the catalogue.
    let mut look = pin!(look(&parts.catalogue, id, &entry.name, &entry.arguments));
    let looked = match timeout(PROMPT, &mut look).await {
        Ok(looked) => looked,
        Err(_slow) => {
            tell(&engine, Told::Queued(id)).await;
            look.await
        }
    };
    let (verdict, launch) = match looked {
        Ok((idempotent, launch)) => (Ok(idempotent), Some(launch)),
        Err(refused) => (Err(refused), None),
    };
    tell(&engine, Told::Prepared(id, verdict)).await;
    let (Some(mut launch), Ok(begin)) = (launch, begin.await) else {
        return;
    };
    launch.deadline = begin.deadline;
    if let Some(limit) = entry.timeout_ms {
        launch.timeout = launch.timeout.min(Duration::from_millis(limit));
    }
    info!(command_id = %id, name = %entry.name, "starting a command");
    let outcome = slot.run(launch, cancel, Some(parts.live.clone())).await;
    tell(&engine, Told::Exited(id, Box::new(outcome))).await;
}

/// What the catalogue in force says of an offered command. Whether its files are there is asked where it starts, in
/// its own task: a look may take its time, and whoever asks this serves all commands.
pub(super) fn check(catalogue: &Current, command: &Command) -> Result<Idempotent, Refused> {
    let catalogue = catalogue.get();
    let allowed = catalogue.check(&command.name, &command.arguments);
    allowed
        .map(|allowed| Idempotent(allowed.idempotent()))
        .map_err(refused)
}

/// What it says of a command that is about to start: whether it may run twice, and what would run.
async fn look(
    catalogue: &Current,
    id: CommandId,
    name: &CommandName,
    arguments: &Arguments,
) -> Result<(Idempotent, Launch), Refused> {
    let catalogue = catalogue.get();
    let allowed = catalogue.check(name, arguments).map_err(refused)?;
    allowed.available().await.map_err(refused)?;
    Ok((Idempotent(allowed.idempotent()), allowed.launch(id)))
}

fn refused(refusal: Refusal) -> Refused {
    Refused {
        code: refusal.code,
        detail: refusal.detail,
    }
}

async fn tell(engine: &mpsc::Sender<Told>, told: Told) {
    // Without an engine the agent is ending; the journal knows.
    drop(engine.send(told).await);
}
