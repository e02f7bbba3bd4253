//! The pins that the configuration file names: read again before a dial and at SIGHUP, as certificates are.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::sync::watch;
use tracing::info;
use viworks_common::pin::SpkiPin;
use viworks_runtime::blocking::PerKey;
use viworks_runtime::clock::{Clock, sleep_until};
use viworks_runtime::conditions::{Conditions, Severity};
use viworks_runtime::config::Environment;
use viworks_runtime::lifecycle::Lifecycle;

use super::pins::Pins;
use crate::config::Config;

/// The condition while the configuration that was read again cannot be used.
const CONFIGURATION: &str = "reload.configuration";

/// How often the file is looked at while nothing else asks for it.
const INTERVAL: Duration = Duration::from_secs(10);

/// How long reading it may take.
const READ_TIME: Duration = Duration::from_secs(5);

/// One at a time, whoever asks: a disk that hangs keeps one thread.
static READS: LazyLock<PerKey<PathBuf, Result<BTreeSet<SpkiPin>, String>>> =
    LazyLock::new(|| PerKey::new("configuration", 1));

/// The pins of the configuration file. Clones share them.
#[derive(Debug, Clone)]
pub struct ConfiguredPins {
    path: PathBuf,
    environment: Environment,
    pins: Arc<Pins>,
    conditions: Conditions,
}

impl ConfiguredPins {
    /// Those of the file at `path` and what overrides it, which `pins` follow.
    #[must_use]
    pub const fn new(
        path: PathBuf,
        environment: Environment,
        pins: Arc<Pins>,
        conditions: Conditions,
    ) -> Self {
        Self {
            path,
            environment,
            pins,
            conditions,
        }
    }

    /// Reads the file again. Of the configuration, the pins alone are taken over; everything else needs a restart. A
    /// file that cannot be used changes nothing and is told. True when others are in force now.
    pub async fn refresh(&self) -> bool {
        let environment = self.environment.clone();
        let read = move |path: &PathBuf| {
            let read = Config::load(path, &environment);
            read.map(|config| config.outbound.pins)
                .map_err(|problems| problems.to_string())
        };
        let problems = match READS.ask(self.path.clone(), READ_TIME, read).await {
            Ok(Ok(configured)) => {
                self.conditions.clear(CONFIGURATION);
                let changed = self.pins.configure(configured);
                if changed {
                    info!("took over the configured pins; any other setting needs a restart");
                }
                return changed;
            }
            Ok(Err(problems)) => problems,
            Err(error) => error.to_string(),
        };
        let cause = format!(
            "the configuration cannot be used, and what the agent started with stays in force: {problems}"
        );
        let fix = "mend the file; it is read again within seconds, or at once with SIGHUP, and check-config lists every problem";
        self.conditions
            .raise(CONFIGURATION, Severity::Warn, &cause, fix);
        false
    }

    /// Looks at the file until the agent stops; each change is counted in `reloads`, so that a gateway that waits
    /// because of its pins dials at once.
    pub async fn watch(
        self,
        clock: Arc<dyn Clock>,
        reloads: watch::Sender<u64>,
        lifecycle: Lifecycle,
    ) {
        loop {
            let next = clock.now().saturating_add(INTERVAL);
            tokio::select! {
                () = lifecycle.stopping() => return,
                () = sleep_until(&*clock, next) => {}
            }
            if self.refresh().await {
                reloads.send_modify(|count| *count += 1);
            }
        }
    }
}
