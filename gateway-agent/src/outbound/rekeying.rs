//! The agent key within one session: a later one is kept, and has a session of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tracing::info;
use viworks_common::key::{AgentKey, Identity as Name};
use viworks_common::renewal::trial;
use viworks_common::time::{Monotonic, Timestamp};
use viworks_runtime::blocking;
use viworks_runtime::clock::Clock;
use viworks_runtime::conditions::{Conditions, Severity};
use viworks_runtime::random;

use super::Parts;
use crate::credentials::Credentials;
use crate::keyring::{self, Held};
use crate::material::Material;

/// How long the disk may take for the file.
const WRITE_TIME: Duration = Duration::from_secs(10);

/// The condition while a later agent key is not in use as it should be.
const AGENT_KEY: &str = "agent_key";
const FIX_DISK: &str = "see the room and the rights of the state folder; the backend sends the key again in the next session";
const FIX_REFUSED: &str = "look at the log of the backend: its master key is another one than the one that this gateway's later key was made with; rotate this gateway's key again, or put the master key back";

/// The agent key as far as one session goes.
pub(super) struct Rekeying {
    folder: PathBuf,
    name: Name,
    /// Which generation this session was opened with.
    in_use: u8,
    /// SHA-256 of that key.
    digest: [u8; 32],
    /// From when and by when a session of its own uses the one that came.
    trial: Option<(Monotonic, Monotonic)>,
    credentials: Credentials,
    conditions: Conditions,
    clock: Arc<dyn Clock>,
}

impl Rekeying {
    /// Of a session with the key that `material` shows.
    pub(super) fn new(parts: &Parts, material: &Material) -> Self {
        Self {
            folder: parts.renewal.folder().to_owned(),
            name: material.name.clone(),
            in_use: material.key_generation,
            digest: material.key_digest(),
            trial: None,
            credentials: parts.credentials.clone(),
            conditions: parts.conditions.clone(),
            clock: Arc::clone(&parts.clock),
        }
    }

    /// The session is confirmed: the key that it was opened with is good.
    pub(super) fn confirmed(&self, credentials: &Credentials) {
        if credentials.key_taken(&self.digest) {
            let cause =
                "a later agent key is refused, and this gateway is connected with an earlier one";
            self.conditions
                .raise(AGENT_KEY, Severity::Warn, cause, FIX_REFUSED);
        } else {
            self.conditions.clear(AGENT_KEY);
        }
    }

    /// Keeps a key that came. The generation of the latest one that is durable, to be reported; none when it could not
    /// be kept. `not_after` is the end of the certificate in use.
    pub(super) async fn offered(
        &mut self,
        generation: u8,
        key: AgentKey,
        not_after: Timestamp,
    ) -> Option<u8> {
        if generation <= self.in_use {
            return Some(self.in_use);
        }
        let (folder, name, in_use) = (self.folder.clone(), self.name.clone(), self.in_use);
        let new = Held { generation, key };
        let digest = new.digest();
        let keep = move || keyring::keep(&folder, &name, in_use, &new);
        let failed = match blocking::call("agent key", WRITE_TIME, keep).await {
            Ok(Ok(())) => {
                self.credentials.key_offered(&digest);
                info!(
                    generation,
                    "a later agent key is kept; the next session uses it"
                );
                let random = u64::from_ne_bytes(random::bytes());
                let (wall, now) = (self.clock.wall(), self.clock.now());
                self.trial = Some(trial(not_after, wall, now, random));
                return Some(generation);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_unanswered) => "the state folder does not answer".to_owned(),
        };
        let cause = format!("a later agent key cannot be kept: {failed}");
        self.conditions
            .raise(AGENT_KEY, Severity::Warn, &cause, FIX_DISK);
        None
    }

    /// Whether it is time to leave for a session with the key that came; `quiet` while no command runs.
    pub(super) fn wants_session(&self, quiet: bool, now: Monotonic) -> bool {
        self.trial
            .is_some_and(|(from, latest)| now >= latest || (quiet && now >= from))
    }
}
