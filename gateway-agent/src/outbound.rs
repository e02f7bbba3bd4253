//! The way out: dial, hold one session, wait, dial again, for as long as the agent runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tracing::{info, warn};
use viworks_common::code::CloseCode;
use viworks_common::id::AgentId;
use viworks_common::renewal::Against;
use viworks_common::session::backoff::Backoff;
use viworks_common::time::Timestamp;
use viworks_runtime::clock::{Clock, sleep_until};
use viworks_runtime::conditions::Conditions;
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::random;

use crate::catalogue::Current;
use crate::credentials::Credentials;
use crate::engine::EngineHandle;
use crate::executor::{Executor, LiveOutput};
use crate::identity::Identity;
use crate::journal::Journal;
use crate::material::Material;
use crate::renewal::Renewal;
use crate::spool::Spool;
use crate::status::{Failure, Status};

mod addresses;
pub mod configured;
mod connection;
pub mod dial;
pub mod door;
mod ending;
pub mod errand;
pub mod failure;
pub mod lapsed;
mod live;
pub mod look;
pub mod pinning;
pub mod pins;
mod refusals;
mod rekeying;
mod renewing;
pub mod security;

use configured::Configured;
use dial::Dialler;
use ending::{Ended, about_this};
use errand::{Blame, Errand};
use failure::DialFailure;
use lapsed::{Asking, Lapsed, has_ended};
use pins::Pins;
use security::Security;

/// Within which time another certificate, or another agent key, is tried when one was refused.
const ANOTHER_ONE: Duration = Duration::from_secs(5);

/// Within which time it is tried what the door gave: another certificate, or authorities.
const GOT_AT_DOOR: Duration = Duration::from_secs(1);

/// What the way out is made of.
#[derive(Clone)]
pub struct Parts {
    /// Certificate, keys and authority, as they are on disk.
    pub credentials: Credentials,
    /// What becomes of the certificate.
    pub renewal: Renewal,
    /// What the door is asked for: another certificate, or the authorities of the server's.
    pub lapsed: Lapsed,
    /// Who the gateway is.
    pub identity: Arc<Identity>,
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
    /// Where goes on record what no backend says.
    pub security: Security,
    /// The configuration, as far as it is taken over while the agent runs.
    pub configured: Configured,
    /// Counts how often the files were read again: then what spoke against a connection may be mended.
    pub reloads: watch::Sender<u64>,
    /// What people are told.
    pub status: Arc<Status>,
    /// What is wrong.
    pub conditions: Conditions,
    /// Both clocks.
    pub clock: Arc<dyn Clock>,
    /// Shutdown.
    pub lifecycle: Lifecycle,
}

/// Keeps the gateway connected until the agent stops.
pub async fn run(parts: Parts, mut live: mpsc::Receiver<LiveOutput>) {
    let mut settings = parts.configured.get().outbound.backoff;
    let mut backoff = Backoff::with(settings);
    let mut reloads = parts.reloads.subscribe();
    let mut said: Option<String> = None;
    while !parts.lifecycle.is_stopping() {
        // What was reloaded up to here is in use from here on.
        reloads.mark_unchanged();
        parts.status.connecting();
        let attempt = async {
            // Files that were changed count from this attempt on.
            tokio::join!(parts.credentials.refresh(), parts.configured.refresh());
            let accepted = parts.pins.accepted();
            let material = parts.credentials.get();
            let config = parts.configured.get();
            parts.status.dials(config.outbound.address());
            let dialler = Dialler::new(
                config.outbound.clone(),
                Arc::clone(&material.roots),
                material.shown.tls.clone(),
                material.shown.fingerprint,
            );
            let dialled = dialler.dial(accepted.pins).await;
            (dialled, material, config, accepted.version)
        };
        let (dialled, material, config, pins_version) = tokio::select! {
            biased;
            () = parts.lifecycle.stopping() => return,
            attempted = attempt => attempted,
        };
        if settings != config.outbound.backoff {
            settings = config.outbound.backoff;
            backoff = Backoff::with(settings);
        }
        let door_url = config.outbound.door_url.clone();
        let (mut ended, blame) = match dialled {
            Ok(dialled) => {
                // What ran while nobody listened is in the results.
                while live.try_recv().is_ok() {}
                // Boxed: a session outlives the attempt's buffers by far.
                let ended = Box::pin(connection::run(
                    dialled,
                    pins_version,
                    &material,
                    config,
                    &parts,
                    &mut live,
                ))
                .await;
                let blame = Blame::of_session(&ended);
                (ended, blame)
            }
            Err(failure) => undialled(failure, &material, parts.clock.wall()),
        };
        if parts.lifecycle.is_stopping() {
            return;
        }
        let (wall, not_after) = (parts.clock.wall(), material.shown.not_after);
        let errand = blame.errand(ended.code, has_ended(&material, wall));
        // Without an address there is nobody to ask.
        let at_door = door_url.as_deref().zip(errand);
        let another = shows_another(&ended, blame.certificate, &material, &parts.credentials);
        if !another {
            ended.fix = errand::fix(&ended, blame, not_after, wall, at_door.is_some());
        }
        // Not one failure more of those that the pauses count: it is another certificate, or another key.
        let delay = if another {
            spread(ANOTHER_ONE)
        } else if let Some((url, errand)) = at_door {
            let asked = ask_at_door(&parts, &material, url, errand, &ended);
            let asked = tokio::select! {
                biased;
                () = parts.lifecycle.stopping() => return,
                // Boxed: an attempt at the door is as large as one to connect.
                asked = Box::pin(asked) => asked,
            };
            match (asked, parts.lapsed.pause()) {
                (true, _) => {
                    // Nothing is told of the door any more.
                    ended.fix = failure::GIVEN_AT_THE_DOOR;
                    spread(GOT_AT_DOOR)
                }
                (false, Some(pause)) => next_delay(&ended, &mut backoff).min(pause),
                (false, None) => next_delay(&ended, &mut backoff),
            }
        } else {
            next_delay(&ended, &mut backoff)
        };
        say(&ended, material.name.agent_id, delay, &mut said);
        if ended.confirmed_for.is_some() && !ended.class.is_permanent() {
            // Files that were read while all was well are no reason to hurry.
            reloads.mark_unchanged();
        }
        if wait(&ended, delay, &parts, &mut reloads).await == Waited::Reloaded {
            // What spoke against the gateway may be mended; the history is that of the old files.
            backoff = Backoff::with(settings);
            parts.credentials.forget_refused();
            parts.lapsed.forget();
        }
    }
}

/// An attempt that led to no connection, and what speaks against it.
fn undialled(failure: DialFailure, material: &Material, wall: Timestamp) -> (Ended, Blame) {
    let life = (material.shown.not_before, material.shown.not_after);
    let failure = failure.with_certificate(life, wall);
    let ended = Ended {
        class: failure.class(),
        cause: failure.to_string(),
        fix: failure.fix(),
        code: failure.code(),
        expected: false,
        confirmed_for: None,
        unproved: false,
    };
    (ended, Blame::of_attempt(&failure, material))
}

/// Asks the door for what is missing, where that is time. True when it is there.
async fn ask_at_door(
    parts: &Parts,
    material: &Material,
    url: &str,
    errand: Errand,
    ended: &Ended,
) -> bool {
    if let Some(pause) = parts.lapsed.pause() {
        parts.lapsed.waits(url, errand, material, pause);
        return false;
    }
    // What the attempt ended with is known before the door has answered.
    let wall = parts.clock.wall();
    let failure = told(ended, material.name.agent_id, wall);
    parts.status.failed(failure, wall);
    let asking = Asking {
        url,
        errand,
        pins: parts.pins.accepted().pins,
        material,
        credentials: &parts.credentials,
        identity: &parts.identity,
        journal: &parts.journal,
    };
    parts.lapsed.ask(&asking).await
}

/// What people are told of an end of this gateway's.
fn told(ended: &Ended, agent_id: AgentId, at: Timestamp) -> Failure {
    Failure {
        at,
        cause: ended.cause.clone(),
        fix: about_this(ended.fix, agent_id),
        code: ended.code.map(CloseCode::name),
    }
}

/// Whether an attempt failed because of what was shown, and this gateway has another key or certificate to show.
fn shows_another(
    ended: &Ended,
    against: Option<Against>,
    material: &Material,
    credentials: &Credentials,
) -> bool {
    let is_of_the_key = ended.is_of_the_key(material.has_later_key());
    if is_of_the_key && credentials.key_refused(material.key_digest()) {
        warn!(
            generation = material.key_generation,
            "this agent key is refused; another one that this gateway has is tried"
        );
        return true;
    }
    let refused = |against| credentials.refused(&material.shown.fingerprint, against);
    let another = against.is_some_and(refused);
    if another {
        warn!(path = %material.shown.path.display(), "this certificate is refused; another one that this gateway has is tried");
    }
    another
}

/// How a wait came to its end.
#[derive(Debug, PartialEq, Eq)]
enum Waited {
    Over,
    Reloaded,
}

/// A moment within this time.
fn spread(within: Duration) -> Duration {
    let millis = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(u64::from_ne_bytes(random::bytes()) % millis.max(1))
}

fn next_delay(ended: &Ended, backoff: &mut Backoff) -> Duration {
    if let Some(span) = ended.confirmed_for {
        backoff.confirmed_for(span);
    }
    let random = u64::from_ne_bytes(random::bytes());
    backoff.next(ended.class, random)
}

/// Whoever reads warnings alone learns of each lost session and of each new cause, and is not told the same again and
/// again.
fn say(ended: &Ended, agent_id: AgentId, delay: Duration, said: &mut Option<String>) {
    let lost = ended.confirmed_for.is_some() && !ended.expected;
    let new = said.as_ref() != Some(&ended.cause) && !ended.expected;
    // Where time heals it, nothing is to be done, and nothing is said of that.
    let fix = (!ended.fix.is_empty()).then(|| about_this(ended.fix, agent_id));
    let fix = fix.as_deref();
    let cause = ended.cause.as_str();
    let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
    if lost {
        warn!(
            cause,
            fix, delay_ms, "the connection to the backend is lost"
        );
    } else if new {
        warn!(cause, fix, delay_ms, "no connection to the backend");
    } else {
        info!(cause, fix, delay_ms, "no connection to the backend");
    }
    *said = Some(ended.cause.clone());
}

async fn wait(
    ended: &Ended,
    delay: Duration,
    parts: &Parts,
    reloads: &mut watch::Receiver<u64>,
) -> Waited {
    let wall = parts.clock.wall();
    let failure = told(ended, parts.identity.name.agent_id, wall);
    parts.status.failed(failure, wall.saturating_add(delay));
    let due = parts.clock.now().saturating_add(delay);
    tokio::select! {
        biased;
        () = parts.lifecycle.stopping() => Waited::Over,
        Ok(()) = reloads.changed() => {
            info!("the files were read again: dialling at once");
            Waited::Reloaded
        }
        () = sleep_until(&*parts.clock, due) => Waited::Over,
    }
}
