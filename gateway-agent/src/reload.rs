//! SIGHUP: reads again what may change while the agent runs, each file as a whole or not at all.

use std::path::PathBuf;

use tokio::sync::watch;
use viworks_runtime::conditions::Conditions;
use viworks_runtime::lifecycle::{Hangups, Lifecycle, notify};

use crate::catalogue::{self, Current, OtherUsers, Owners};
use crate::credentials::Credentials;
use crate::outbound::configured::Configured;

/// What is read again.
pub struct Reload {
    /// What may run.
    pub catalogue: Current,
    /// Where it stands.
    pub commands_folder: PathBuf,
    /// Whose files of it are trusted.
    pub owners: Owners,
    /// Who runs what is another user's.
    pub others: OtherUsers,
    /// Certificate, keys and authority.
    pub credentials: Credentials,
    /// The configuration, as far as it is taken over while the agent runs.
    pub configured: Configured,
    /// Where a file that cannot be used is told.
    pub conditions: Conditions,
    /// Raised after each round: what spoke against a connection may be mended.
    pub reloads: watch::Sender<u64>,
}

impl Reload {
    /// Reads again at every SIGHUP, until the agent stops.
    pub async fn run(self, mut hangups: Hangups, lifecycle: Lifecycle) {
        loop {
            tokio::select! {
                biased;
                () = lifecycle.stopping() => return,
                () = hangups.next() => {}
            }
            notify::reloading();
            self.once().await;
            notify::ready();
        }
    }

    async fn once(&self) {
        self.credentials.refresh().await;
        let _changed: bool = self.configured.refresh().await;
        let folder = self.commands_folder.clone();
        let others = self.others.clone();
        catalogue::reload(
            &self.catalogue,
            folder,
            self.owners,
            others,
            &self.conditions,
        )
        .await;
        self.reloads.send_modify(|count| *count += 1);
    }
}
