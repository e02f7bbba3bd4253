//! The way out: dial, hold one session, wait, dial again, for as long as the agent runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{info, warn};
use viworks_common::session::backoff::{Backoff, BackoffSettings, FailureClass};
use viworks_runtime::clock::{Clock, sleep_until};
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::random;

use crate::catalogue::Current;
use crate::engine::EngineHandle;
use crate::executor::{Executor, LiveOutput};
use crate::identity::Identity;
use crate::journal::Journal;
use crate::spool::Spool;
use crate::status::Status;

pub mod connection;
pub mod dial;
pub mod failure;
pub mod pinning;
pub mod pins;
pub mod socket;

use connection::Ended;
use dial::Dialler;
use pins::Pins;

/// Everything a session needs of the agent.
#[derive(Clone)]
pub struct Parts {
    /// Who the gateway is.
    pub identity: Arc<Identity>,
    /// Labels for HELLO.
    pub labels: std::collections::BTreeMap<String, String>,
    /// The lowest protocol version that is spoken.
    pub version_floor: u8,
    /// For the opening.
    pub opening_timeout: Duration,
    /// For a send to make progress.
    pub send_timeout: Duration,
    /// Between attempts.
    pub backoff: BackoffSettings,
    /// What may run.
    pub catalogue: Current,
    /// The command engine.
    pub engine: EngineHandle,
    /// Commands and ratchet.
    pub journal: Journal,
    /// Telemetry.
    pub spool: Spool,
    /// How many commands run.
    pub executor: Executor,
    /// The pin set.
    pub pins: Arc<Pins>,
    /// What people are told.
    pub status: Arc<Status>,
    /// Both clocks.
    pub clock: Arc<dyn Clock>,
    /// Shutdown.
    pub lifecycle: Lifecycle,
}

/// Keeps the gateway connected until the agent stops.
pub async fn run(dialler: Dialler, parts: Parts, mut live: mpsc::Receiver<LiveOutput>) {
    let mut backoff = Backoff::with(parts.backoff);
    while !parts.lifecycle.is_stopping() {
        parts.status.connecting();
        let accepted = parts.pins.accepted();
        let attempt = dialler.dial(accepted.pins);
        let dialled = tokio::select! {
            biased;
            () = parts.lifecycle.stopping() => return,
            dialled = attempt => dialled,
        };
        let ended = match dialled {
            Ok(dialled) => {
                // What ran while nobody listened is in the results.
                while live.try_recv().is_ok() {}
                // Boxed: a session outlives the attempt's buffers by far.
                Box::pin(connection::run(
                    dialled,
                    accepted.version,
                    &parts,
                    &mut live,
                ))
                .await
            }
            Err(failure) => Ended {
                class: failure.class(),
                cause: failure.to_string(),
                fix: failure.fix(),
                confirmed_for: None,
            },
        };
        if parts.lifecycle.is_stopping() {
            return;
        }
        wait(&ended, &mut backoff, &parts).await;
    }
}

async fn wait(ended: &Ended, backoff: &mut Backoff, parts: &Parts) {
    if let Some(span) = ended.confirmed_for {
        backoff.confirmed_for(span);
    }
    let random = u64::from_ne_bytes(random::bytes());
    let delay = backoff.next(ended.class, random);
    let wall = parts.clock.wall();
    let next = wall.saturating_add(delay);
    parts.status.failed(&ended.cause, ended.fix, next, wall);
    let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
    if ended.class == FailureClass::PermanentAuthenticated {
        warn!(
            cause = ended.cause,
            fix = ended.fix,
            delay_ms,
            "no connection to the backend"
        );
    } else {
        info!(
            cause = ended.cause,
            fix = ended.fix,
            delay_ms,
            "no connection to the backend"
        );
    }
    let due = parts.clock.now().saturating_add(delay);
    tokio::select! {
        biased;
        () = parts.lifecycle.stopping() => {}
        () = sleep_until(&*parts.clock, due) => {}
    }
}
