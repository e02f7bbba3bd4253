//! SIGHUP: reads again what may change while the agent runs, each file as a whole or not at all.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::info;
use viworks_runtime::blocking;
use viworks_runtime::conditions::{Conditions, Severity};
use viworks_runtime::lifecycle::{Hangups, Lifecycle};

use crate::catalogue::{self, Current, Owners};
use crate::config::Config;
use crate::credentials::Credentials;
use crate::outbound::pins::Pins;
use crate::setup::Source;

/// The condition while the configuration that was read again cannot be used.
const CONFIGURATION: &str = "reload.configuration";

/// How long reading it may take.
const READ_TIME: Duration = Duration::from_secs(10);

/// What is read again.
pub struct Reload {
    /// What may run.
    pub catalogue: Current,
    /// Where it stands.
    pub commands_folder: PathBuf,
    /// Whose files of it are trusted.
    pub owners: Owners,
    /// Certificate, keys and authority.
    pub credentials: Credentials,
    /// The pins in force, which follow the configured ones.
    pub pins: Arc<Pins>,
    /// Where the configuration came from.
    pub source: Source,
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
            self.once().await;
        }
    }

    async fn once(&self) {
        self.credentials.refresh().await;
        self.pins().await;
        let folder = self.commands_folder.clone();
        catalogue::reload(&self.catalogue, folder, self.owners, &self.conditions).await;
        self.reloads.send_modify(|count| *count += 1);
    }

    /// Of the configuration, the pins alone are taken over; everything else needs a restart.
    async fn pins(&self) {
        let Source { path, environment } = self.source.clone();
        let read = blocking::call("configuration", READ_TIME, move || {
            Config::load(&path, &environment)
        })
        .await;
        let problems = match read {
            Ok(Ok(config)) => {
                self.conditions.clear(CONFIGURATION);
                if self.pins.configure(config.outbound.pins) {
                    info!("took over the configured pins; any other setting needs a restart");
                }
                return;
            }
            Ok(Err(problems)) => problems.to_string(),
            Err(error) => error.to_string(),
        };
        let cause = format!(
            "the configuration cannot be used, and what the agent started with stays in force: {problems}"
        );
        let fix = "mend the file and send SIGHUP again; check-config lists every problem";
        self.conditions
            .raise(CONFIGURATION, Severity::Warn, &cause, fix);
    }
}
